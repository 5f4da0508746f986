/* product.cuh - the tensor-core products' order of sums, which the kernels for few and for many tokens share to the bit.
 *
 * Weight rows are the 16-row operand, tokens the 8 columns.  A unit is 128 bytes of a row: 64 bf16 or 128 e4m3.  Lane
 * (g, q) = (lane / 4, lane % 4) holds the 16-byte chunks q and q + 4 of rows g and g + 8 and of token g; both operands are
 * permuted alike inside the unit, so rows are read as they lie.  A unit is four instructions in this order:
 *     chunk q words x y, chunk q words z w, chunk q + 4 words x y, chunk q + 4 words z w
 * FP8_BLOCK: a unit is one scale group, summed from zero, then acc = fma(unit, scale_x * scale_w, acc).
 * Sums over H are cut into SEGMENTS runs of units, each from zero, added in order (w13); sums over I are one run (w2). */
#ifndef MF_KERNELS_CUDA_PRODUCT_CUH
#define MF_KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/experts.cuh"
#include "kernels/cuda/sm90.cuh"

constexpr int SEGMENTS = 8;
constexpr int UNIT_BYTES = 128;

/* First unit of a segment. */
MF_DEV int segment_start(int segment, int units)
{
    return (int)((int64_t)segment * units / SEGMENTS);
}

template <int PATH> struct product_of;
template <> struct product_of<MF_CUDA_PATH_BF16> {
    static constexpr int SIZE = 2, UNIT = 64;
    static constexpr bool SCALED = false;
    MF_DEV_MEMBER void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
    {
        mma_bf16(c, a0, a1, a2, a3, b0, b1);
    }
};
template <> struct product_of<MF_CUDA_PATH_FP8> {
    static constexpr int SIZE = 1, UNIT = 128;
    static constexpr bool SCALED = true;
    MF_DEV_MEMBER void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
    {
        mma_e4m3(c, a0, a1, a2, a3, b0, b1);
    }
};

/* One half of a unit: low and high rows' chunk, the token's chunk. */
template <int PATH> MF_DEV void add_half(float (&c)[4], const uint4 &low, const uint4 &high, const uint4 &token)
{
    product_of<PATH>::mma(c, low.x, high.x, low.y, high.y, token.x, token.y);
    product_of<PATH>::mma(c, low.z, high.z, low.w, high.w, token.z, token.w);
}

/* x times the column's input scale, rounded to bf16, in place: two values a word. */
MF_DEV uint32_t scale_pair(uint32_t v, float scale)
{
    const float low = __fmul_rn(__uint_as_float(v << 16), scale), high = __fmul_rn(__uint_as_float(v & 0xffff0000u), scale);
    return (uint32_t)f32_to_bf16(low) | (uint32_t)f32_to_bf16(high) << 16;
}

MF_DEV uint4 scale_chunk(uint4 v, float scale)
{
    return make_uint4(scale_pair(v.x, scale), scale_pair(v.y, scale), scale_pair(v.z, scale), scale_pair(v.w, scale));
}

MF_DEV float input_scale_of(const mf_cuda_experts &p, int64_t pair)
{
    return load_at<float>(p.input_scale,
                          pair_token(p, pair) * p.input_scale_stride + (uint32_t)pair % (uint32_t)p.num_columns, p.bytewise);
}

/* The intermediate of one pair and column from its gate and up sums. */
MF_DEV float finish_up(const mf_cuda_slot &slot, int64_t i, float g, float u)
{
    g = slot.gate_bias ? __fadd_rn(g, slot.gate_bias[i]) : g;
    u = slot.up_bias ? __fadd_rn(u, slot.up_bias[i]) : u;
    return activate(slot, g, u);
}

MF_DEV float finish_down(const mf_cuda_slot &slot, int64_t i, float v)
{
    return slot.down_bias ? __fadd_rn(v, slot.down_bias[i]) : v;
}

#endif
