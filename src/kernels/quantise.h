/* quantise.h - activations quantised on the fly for W8A8 products.
 *
 * Which rule applies follows from the weight's format; a NaN or inf among the inputs reaches every output through the
 * scale. */
#ifndef MF_KERNELS_QUANTISE_H
#define MF_KERNELS_QUANTISE_H

#include <math.h>

#include "kernels/format.h"

typedef enum mf_quant {
    MF_QUANT_NONE = 0,
    MF_QUANT_FP8_GROUP,  /* e4m3, one scale per token and 128 columns */
    MF_QUANT_FP8_TOKEN,  /* e4m3, one scale per token */
    MF_QUANT_FP8_STATIC, /* e4m3, the slot's scale */
    MF_QUANT_INT8_TOKEN, /* int8, one scale per token */
    MF_QUANT_COUNT
} mf_quant;

static inline mf_quant mf_quant_for(mf_act_quant act_quant, mf_format format, float static_scale)
{
    if (act_quant == MF_ACT_QUANT_NONE) {
        return MF_QUANT_NONE;
    }
    if (act_quant == MF_ACT_QUANT_INT8) {
        return format == MF_FORMAT_INT8_CHANNEL || format == MF_FORMAT_INT4_GROUP ? MF_QUANT_INT8_TOKEN : MF_QUANT_NONE;
    }
    switch (format) {
    case MF_FORMAT_FP8_BLOCK:
        return MF_QUANT_FP8_GROUP;
    case MF_FORMAT_FP8_CHANNEL:
        return static_scale > 0 ? MF_QUANT_FP8_STATIC : MF_QUANT_FP8_TOKEN;
    case MF_FORMAT_INT8_CHANNEL:
        return MF_QUANT_INT8_TOKEN;
    default:
        return MF_QUANT_NONE;
    }
}

/* Columns of x under one scale. */
static inline int64_t mf_quant_group(mf_quant quant, int64_t n)
{
    return quant == MF_QUANT_FP8_GROUP ? MF_FP8_BLOCK_SIZE : n;
}

static inline int64_t mf_quant_num_scales(mf_quant quant, int64_t n)
{
    return quant == MF_QUANT_NONE ? 0 : (n + mf_quant_group(quant, n) - 1) / mf_quant_group(quant, n);
}

/* max |x| that is NaN when any x is. */
static inline float mf_quant_amax(const float *x, int64_t n)
{
    float amax = 0.0f;
    bool has_nan = false;
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        amax = a > amax ? a : amax;
        has_nan |= x[i] != x[i];
    }
    return has_nan ? __builtin_nanf("") : amax;
}

/* The scale of values whose largest magnitude is amax; not for FP8_STATIC. */
static inline float mf_quant_scale_of(mf_quant quant, bool e8m0, float amax)
{
    float scale = (amax < 1e-10f ? 1e-10f : amax) / (quant == MF_QUANT_INT8_TOKEN ? 127.0f : 448.0f);
    if (e8m0 && quant == MF_QUANT_FP8_GROUP && scale < INFINITY) { /* up to a power of two */
        uint32_t bits = mf_f32_bits(scale);
        scale = mf_f32_from_bits((bits + 0x7fffffu) & 0x7f800000u);
    }
    return scale;
}

static inline float mf_quant_scale(mf_quant quant, float static_scale, bool e8m0, const float *x, int64_t n)
{
    return quant == MF_QUANT_FP8_STATIC ? static_scale : mf_quant_scale_of(quant, e8m0, mf_quant_amax(x, n));
}

static inline float mf_quant_code(mf_quant quant, float x, float scale)
{
    float v = x / scale;
    if (quant == MF_QUANT_INT8_TOKEN) {
        v = rintf(v);
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
        return v == v ? v : 0.0f; /* the scale is then NaN or inf and carries it */
    }
    return mf_e4m3_values[mf_f32_to_e4m3(v)]; /* saturates; keeps NaN */
}

/* x[n] to codes (as f32) and scales (mf_quant_num_scales of them).  codes may be x. */
static inline void mf_quantise_row(mf_quant quant, float static_scale, bool e8m0, const float *x, int64_t n,
                                   float *codes, float *scales)
{
    int64_t group = mf_quant_group(quant, n);
    for (int64_t first = 0, g = 0; first < n; first += group, g++) {
        int64_t count = n - first < group ? n - first : group;
        float scale = mf_quant_scale(quant, static_scale, e8m0, x + first, count);
        for (int64_t i = 0; i < count; i++) {
            codes[first + i] = mf_quant_code(quant, x[first + i], scale);
        }
        scales[g] = scale;
    }
}

#endif
