/* product.cuh - the tensor-core products' order of sums, which the kernels for few and for many tokens share to the bit.
 *
 * Weight rows are the 16-row operand, tokens the 8 columns.  A unit is 128 bytes of a weight row: 64 bf16 or 128 e4m3.  Lane
 * (g, q) = (lane / 4, lane % 4) holds the 16-byte chunks q and q + 4 of rows g and g + 8, and the same columns of token g;
 * both operands are permuted alike inside the unit, so rows are read as they lie.  A unit's instructions, in order:
 *     bf16: chunk q words x y, words z w; chunk q + 4 the same (a word is two columns)
 *     e4m3: chunk q words x, y, z, w; chunk q + 4 the same (a word is four columns, widened to f16: exact)
 * This GPU has no e4m3 instruction that a warp alone can start, so tokens' codes are kept as the f16 numbers that they are.
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
    static constexpr int SIZE = 2, UNIT = 64, TOKEN_SIZE = 2;
    static constexpr bool SCALED = false;
};
template <> struct product_of<MF_CUDA_PATH_FP8> {
    static constexpr int SIZE = 1, UNIT = 128, TOKEN_SIZE = 2;
    static constexpr bool SCALED = true;
};

/* What a lane holds of a token for half a unit. */
template <int PATH> constexpr int TOKEN_CHUNKS = PATH == MF_CUDA_PATH_FP8 ? 2 : 1;
template <int PATH> constexpr int TOKEN_UNIT_BYTES = product_of<PATH>::UNIT * product_of<PATH>::TOKEN_SIZE;

template <int PATH> struct token_chunk {
    uint4 v[TOKEN_CHUNKS<PATH>];
};

/* Step s of half a unit (STEPS of them): one instruction. */
template <int PATH> constexpr int STEPS = PATH == MF_CUDA_PATH_FP8 ? 4 : 2;

MF_DEV uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* A row's chunk as operands of the steps: pairs of columns. */
template <int PATH> struct row_chunk {
    uint32_t v[2 * STEPS<PATH>];
};

template <int PATH> MF_DEV row_chunk<PATH> widen_row(const uint4 &v)
{
    row_chunk<PATH> r;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (PATH == MF_CUDA_PATH_FP8) {
            r.v[2 * i % (2 * STEPS<PATH>)] = e4m3_pair_to_f16(word_of(v, i) & 0xffffu);
            r.v[(2 * i + 1) % (2 * STEPS<PATH>)] = e4m3_pair_to_f16(word_of(v, i) >> 16);
        } else {
            r.v[i] = word_of(v, i);
        }
    }
    return r;
}

template <int PATH>
MF_DEV void add_step(float (&c)[4], const row_chunk<PATH> &low, const row_chunk<PATH> &high, const token_chunk<PATH> &token,
                     int s)
{
    const uint32_t b0 = word_of(token.v[s / 2 % TOKEN_CHUNKS<PATH>], s % 2 * 2);
    const uint32_t b1 = word_of(token.v[s / 2 % TOKEN_CHUNKS<PATH>], s % 2 * 2 + 1);
    if (PATH == MF_CUDA_PATH_FP8) {
        mma_f16(c, low.v[2 * s], high.v[2 * s], low.v[2 * s + 1], high.v[2 * s + 1], b0, b1);
    } else {
        mma_bf16(c, low.v[2 * s], high.v[2 * s], low.v[2 * s + 1], high.v[2 * s + 1], b0, b1);
    }
}

/* One half of a unit: low and high rows' chunk, the token's columns. */
template <int PATH> MF_DEV void add_half(float (&c)[4], const uint4 &low, const uint4 &high, const token_chunk<PATH> &token)
{
    const row_chunk<PATH> l = widen_row<PATH>(low), h = widen_row<PATH>(high);
#pragma unroll
    for (int s = 0; s < STEPS<PATH>; s++) {
        add_step<PATH>(c, l, h, token, s);
    }
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
