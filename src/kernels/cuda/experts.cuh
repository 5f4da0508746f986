/* experts.cuh - what the experts' kernels share: a pair's slot, activations, quantisation of what enters a product. */
#ifndef MF_KERNELS_CUDA_EXPERTS_CUH
#define MF_KERNELS_CUDA_EXPERTS_CUH

#include "kernels/cuda/numbers.cuh"

/* As kernels/quantise.h numbers them; experts_plan.c asserts it. */
enum { QUANT_NONE = 0, QUANT_FP8_GROUP, QUANT_FP8_TOKEN, QUANT_FP8_STATIC, QUANT_INT8_TOKEN };

MF_DEV int32_t pair_id(const mf_cuda_experts &p, int64_t pair)
{
    const uint32_t columns = (uint32_t)p.num_columns, i = (uint32_t)pair;
    return load_at<int32_t>(p.ids, (int64_t)(i / columns) * p.ids_stride + i % columns, p.bytewise);
}

MF_DEV int64_t pair_token(const mf_cuda_experts &p, int64_t pair)
{
    return (uint32_t)pair / (uint32_t)p.num_columns;
}

MF_DEV int64_t y_offset(const mf_cuda_experts &p, int64_t pair)
{
    const uint32_t columns = (uint32_t)p.num_columns, i = (uint32_t)pair;
    return (int64_t)(i / columns) * p.y_stride + (int64_t)(i % columns) * p.y_column_stride;
}

/* ---- activations: the expressions of kernels/activation.h; comparisons let a NaN fall through ---- */

MF_DEV float act_clamp(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x;
}

MF_DEV float act_sigmoid(float x)
{
    return __fdiv_rn(1.0f, 1.0f + expf(-x));
}

/* Not inlined: a kernel calls it in unrolled code, and one copy of eight activations is enough. */
static __device__ __noinline__ float activate(const mf_cuda_slot &slot, float g, float u)
{
    const float limit = slot.limit;
    switch (slot.activation) {
    case MF_ACT_SILU:
        return g * act_sigmoid(g) * u;
    case MF_ACT_SILU_CLAMP:
        g = g > limit ? limit : g;
        return g * act_sigmoid(g) * act_clamp(u, limit);
    case MF_ACT_SILU_CLAMP_AFTER: {
        const float s = g * act_sigmoid(g);
        return (s > limit ? limit : s) * act_clamp(u, limit);
    }
    case MF_ACT_SWIGLU_OAI:
        g = g > limit ? limit : g;
        u = act_clamp(u, limit);
        return g * act_sigmoid(slot.alpha * g) * (u + 1.0f);
    case MF_ACT_GELU_TANH:
        return 0.5f * g * (1.0f + tanhf(0x1.988454p-1f * (g + 0.044715f * g * g * g))) * u;
    case MF_ACT_GELU_ERF:
        return 0.5f * g * (1.0f + erff(g * 0x1.6a09e6p-1f)) * u;
    case MF_ACT_SITU:
        return slot.beta * tanhf(g / slot.beta) * act_sigmoid(g) * (slot.lbeta * tanhf(u / slot.lbeta));
    default: {
        const float r = u < 0.0f ? 0.0f : u;
        return r * r;
    }
    }
}

/* ---- quantisation ---- */

MF_DEV float quant_scale(int quant, float static_scale, bool e8m0, float amax)
{
    if (quant == QUANT_FP8_STATIC) {
        return static_scale;
    }
    float scale = __fdiv_rn(amax < 1e-10f ? 1e-10f : amax, quant == QUANT_INT8_TOKEN ? 127.0f : 448.0f);
    if (e8m0 && quant == QUANT_FP8_GROUP && scale < __uint_as_float(0x7f800000u)) {
        scale = __uint_as_float((__float_as_uint(scale) + 0x7fffffu) & 0x7f800000u);
    }
    return scale;
}

MF_DEV uint8_t quant_e4m3(float x, float scale)
{
    return (uint8_t)__nv_cvt_float_to_fp8(__fdiv_rn(x, scale), __NV_SATFINITE, __NV_E4M3);
}

/* Four codes as f16 numbers. */
MF_DEV uint2 quant_e4m3_as_f16(const float (&v)[4], float scale)
{
    uint32_t h[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const __half_raw raw = __nv_cvt_fp8_to_halfraw(quant_e4m3(v[k], scale), __NV_E4M3);
        h[k] = raw.x;
    }
    return make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16);
}

MF_DEV float quant_code(int quant, float x, float scale)
{
    if (quant == QUANT_INT8_TOKEN) {
        float v = rintf(__fdiv_rn(x, scale));
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
        return v == v ? v : 0.0f; /* the scale is then NaN or inf and carries it */
    }
    return e4m3_to_f32(quant_e4m3(x, scale));
}

#endif
