/* grouped.cuh - what the kernels of the grouped products on Hopper share: tiles of tokens, stages in shared memory, the
 * products' arithmetic.
 *
 * Order of sums, the same for every tile, batch and kernel here: K ascending in one accumulator (bf16), or a part of 128
 * columns from zero and then acc = fma(part, scale_x * scale_w, acc), parts ascending (FP8_BLOCK).  A column of a product does
 * not see its neighbours, so tokens may be tiled anyhow. */
#ifndef MF_KERNELS_CUDA_GROUPED_CUH
#define MF_KERNELS_CUDA_GROUPED_CUH

#include "kernels/cuda/experts.cuh"
#include "kernels/cuda/wgmma.cuh"

constexpr int LINE = 128;                 /* bytes of K in a stage's rows */
constexpr int SUBTILE = 64 * LINE;        /* 64 weight rows: one product's */
constexpr int SCALE_BYTES = 1024;         /* of a stage: the tokens' scales, whole swizzle atoms */

/* The place of a 16-byte chunk in swizzled rows. */
MF_DEV uint32_t swizzled(int row, int chunk)
{
    return (uint32_t)(row * LINE + ((chunk ^ (row & 7)) << 4));
}

MF_DEV const CUtensorMap *map_of(const mf_cuda_grouped &p, int slot, int matrix, int is_short)
{
    return (const CUtensorMap *)p.maps + ((int64_t)slot * 3 + matrix) * 2 + is_short;
}

/* g * sigmoid(g) from the fast exponential and division; three units in the last place of f32, rounded to bf16 next. */
MF_DEV float fast_sigmoid_times(float g, float alpha)
{
    return __fdividef(g, 1.0f + exp2f(__fmul_rn(__fmul_rn(g, alpha), -1.44269504f)));
}

/* The activations that MF_CUDA_GROUPED plans (experts_plan.c): all are g * sigmoid(alpha g) * (u + beta) with clamps. */
struct swiglu {
    float limit, alpha, beta;
    int32_t kind;
};

MF_DEV swiglu swiglu_of(const mf_cuda_slot &slot)
{
    swiglu s;
    s.kind = slot.activation;
    s.limit = slot.activation == MF_ACT_SILU ? __uint_as_float(0x7f800000u) : slot.limit;
    s.alpha = slot.activation == MF_ACT_SWIGLU_OAI ? slot.alpha : 1.0f;
    s.beta = slot.activation == MF_ACT_SWIGLU_OAI ? 1.0f : 0.0f;
    return s;
}

MF_DEV float apply(const swiglu &s, float g, float u)
{
    if (s.kind != MF_ACT_SILU) {
        if (s.kind != MF_ACT_SILU_CLAMP_AFTER) {
            g = g > s.limit ? s.limit : g;
        }
        u = act_clamp(u, s.limit);
    }
    float r = fast_sigmoid_times(g, s.alpha);
    if (s.kind == MF_ACT_SILU_CLAMP_AFTER) {
        r = r > s.limit ? s.limit : r;
    }
    return __fmul_rn(r, __fadd_rn(u, s.beta));
}

MF_DEV uint32_t pack_bf16(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* 16 bf16 of a row and its seven neighbours' (8 lanes hold 128) to codes and their scale. */
MF_DEV uint4 quantise_16(const uint4 (&v)[2], bool e8m0, float &scale)
{
    float x[16];
    uint32_t amax = 0;
    const uint32_t words[8] = { v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w };
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        const uint32_t a = words[i] << 16 & 0x7fffffffu, b = words[i] & 0x7fff0000u;
        amax = a > amax ? a : amax;
        amax = b > amax ? b : amax;
    }
#pragma unroll
    for (int d = 1; d < 8; d *= 2) {
        const uint32_t other = __shfl_xor_sync(MF_FULL_WARP, amax, d);
        amax = other > amax ? other : amax;
    }
    scale = quant_scale(QUANT_FP8_GROUP, 0.0f, e8m0, __uint_as_float(amax));
    uint32_t codes[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        codes[i] = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            codes[i] |= (uint32_t)quant_e4m3(x[4 * i + k], scale) << 8 * k;
        }
    }
    return make_uint4(codes[0], codes[1], codes[2], codes[3]);
}

/* acc += part * (token scale * weight scale), for a lane's two tokens of every eight. */
template <int N> MF_DEV void promote(float (&acc)[N / 2], const float (&part)[N / 2], const float *token_scales, float scale)
{
    const int q = threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        const float2 t = *(const float2 *)(token_scales + 8 * i + 2 * q);
        const float low = __fmul_rn(t.x, scale), high = __fmul_rn(t.y, scale);
        acc[4 * i] = __fmaf_rn(part[4 * i], low, acc[4 * i]);
        acc[4 * i + 1] = __fmaf_rn(part[4 * i + 1], high, acc[4 * i + 1]);
        acc[4 * i + 2] = __fmaf_rn(part[4 * i + 2], low, acc[4 * i + 2]);
        acc[4 * i + 3] = __fmaf_rn(part[4 * i + 3], high, acc[4 * i + 3]);
    }
}

template <bool FP8, int N> MF_DEV void add_line(float (&sums)[N / 2], uint64_t rows, uint64_t tokens, bool add)
{
#pragma unroll
    for (int k = 0; k < 4; k++) { /* 32 bytes of K each */
        if (FP8) {
            products<N>::e4m3(sums, rows + 2 * k, tokens + 2 * k, add || k > 0);
        } else {
            products<N>::bf16(sums, rows + 2 * k, tokens + 2 * k, add || k > 0);
        }
    }
}

#endif
