/* activation.h - one element of an expert's activation, and the dtype that activations are kept in.
 *
 * Min, max and clamp propagate NaN: a comparison with a NaN is false, so the value itself must be what falls through.
 */
#ifndef MF_KERNELS_ACTIVATION_H
#define MF_KERNELS_ACTIVATION_H

#include <math.h>

#include "base/number.h"
#include "kernels/ops.h"

static inline float mf_act_min(float x, float limit)
{
    return x > limit ? limit : x;
}

static inline float mf_act_clamp(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x;
}

static inline float mf_act_sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* g is the gate's value (not read by RELU2), u the up projection's. */
static inline float mf_activate(const mf_slot *slot, float g, float u)
{
    const float limit = slot->limit;
    switch (slot->activation) {
    case MF_ACT_SILU:
        return g * mf_act_sigmoid(g) * u;
    case MF_ACT_SILU_CLAMP:
        g = mf_act_min(g, limit);
        return g * mf_act_sigmoid(g) * mf_act_clamp(u, limit);
    case MF_ACT_SILU_CLAMP_AFTER:
        return mf_act_min(g * mf_act_sigmoid(g), limit) * mf_act_clamp(u, limit);
    case MF_ACT_SWIGLU_OAI:
        g = mf_act_min(g, limit);
        u = mf_act_clamp(u, limit);
        return g * mf_act_sigmoid(slot->alpha * g) * (u + 1.0f);
    case MF_ACT_GELU_TANH: {
        float inner = 0x1.988454p-1f * (g + 0.044715f * g * g * g); /* sqrt(2 / pi) */
        return 0.5f * g * (1.0f + tanhf(inner)) * u;
    }
    case MF_ACT_GELU_ERF:
        return 0.5f * g * (1.0f + erff(g * 0x1.6a09e6p-1f)) * u;
    case MF_ACT_SITU:
        return slot->beta * tanhf(g / slot->beta) * mf_act_sigmoid(g) * (slot->lbeta * tanhf(u / slot->lbeta));
    case MF_ACT_RELU2: {
        float r = u < 0.0f ? 0.0f : u;
        return r * r;
    }
    }
    return 0.0f;
}

static inline float mf_round_to_dtype(float x, mf_dtype dtype)
{
    return dtype == MF_BF16 ? mf_bf16_to_f32(mf_f32_to_bf16(x)) : dtype == MF_F16 ? mf_f16_to_f32(mf_f32_to_f16(x)) : x;
}

/* n contiguous elements of dtype f32, bf16 or f16, aligned or not. */
static inline void mf_load_row(const void *data, mf_dtype dtype, int64_t n, float *out)
{
    const uint8_t *p = data;
    uint16_t h;
    if (dtype == MF_F32) {
        memcpy(out, p, (size_t)n * 4);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        memcpy(&h, p + 2 * i, 2);
        out[i] = dtype == MF_BF16 ? mf_bf16_to_f32(h) : mf_f16_to_f32(h);
    }
}

static inline void mf_store_row(const float *x, int64_t n, mf_dtype dtype, void *data)
{
    uint8_t *p = data;
    if (dtype == MF_F32) {
        memcpy(p, x, (size_t)n * 4);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = dtype == MF_BF16 ? mf_f32_to_bf16(x[i]) : mf_f32_to_f16(x[i]);
        memcpy(p + 2 * i, &h, 2);
    }
}

#endif
