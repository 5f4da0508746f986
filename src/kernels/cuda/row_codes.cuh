/* row_codes.cuh - what products of codes with a scale per token and per row of weights add to grouped.cuh: whole rows
 * that become codes, sums that meet their scales at the end.
 *
 * Order of sums: a part of 128 columns from zero and then acc = acc + part, parts ascending (FP8_ROW); integers, exact
 * (INT8_ROW).  A result is acc * (token scale * row scale), or (acc * token scale) * row scale of an int8 sum as f32,
 * as `ref` has them. */
#ifndef MF_KERNELS_CUDA_ROW_CODES_CUH
#define MF_KERNELS_CUDA_ROW_CODES_CUH

#include <type_traits>

#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/wgmma_int8.cuh"

template <int CODES> constexpr bool BY_ROW = CODES >= MF_CUDA_CODES_FP8_ROW;
template <int CODES> constexpr bool IS_INT8 = CODES == MF_CUDA_CODES_INT8_ROW;
template <int CODES> constexpr bool IS_FP8 = CODES == MF_CUDA_CODES_FP8_BLOCK || CODES == MF_CUDA_CODES_FP8_ROW;
template <int CODES> using sum_type = typename std::conditional<IS_INT8<CODES>, int32_t, float>::type;

template <int CODES> MF_DEV float scaled_sum(sum_type<CODES> sum, float token_scale, float row_scale)
{
    if constexpr (IS_INT8<CODES>) {
        return __fmul_rn(__fmul_rn((float)sum, token_scale), row_scale);
    } else {
        return __fmul_rn(sum, __fmul_rn(token_scale, row_scale));
    }
}

template <int N> MF_DEV void add_line(int32_t (&sums)[N / 2], uint64_t rows, uint64_t tokens, bool add)
{
#pragma unroll
    for (int k = 0; k < 4; k++) { /* 32 bytes of K each */
        integer_products<N>::s8(sums, rows + 2 * k, tokens + 2 * k, add || k > 0);
    }
}

template <int N> MF_DEV void add_part(float (&acc)[N / 2], const float (&part)[N / 2])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        acc[i] = __fadd_rn(acc[i], part[i]);
    }
}

/* ---- scales of rows of weights: f32 or bf16 ---- */

/* That of row `row`, asked for here; 0 past the last one, whose sums nobody reads. */
MF_DEV float weight_scale_of(const mf_cuda_matrix &m, int64_t row)
{
    if (row >= m.n) {
        return 0.0f;
    }
    if (m.scale_dtype == MF_F32) {
        return load_early((const float *)m.scale + row * m.scale_row_stride);
    }
    return bf16_to_f32(__ldg((const uint16_t *)m.scale + row * m.scale_row_stride));
}

/* Thread `tid` of eight brings an eighth of those of a unit's 256 rows to the second-level cache. */
MF_DEV void prefetch_scale_rows(const mf_cuda_slot &slot, bool is_down, int row0, int tid)
{
    if (tid < 8) {
        const int second = !is_down && tid > 3, row = row0 + 32 * (tid - 4 * second);
        const mf_cuda_matrix &m = is_down ? slot.down : second ? slot.up : slot.gate;
        prefetch_line(m.scale + min((int64_t)row, m.n - 1) * m.scale_row_stride * (m.scale_dtype == MF_F32 ? 4 : 2));
    }
}

/* The words that hold the scales of 256 rows, in w13 128 of gate and of up, to the stage of a step's last line.  Past
 * the last row: any. */
template <int GATHERING>
MF_DEV void copy_scale_rows(const mf_cuda_slot &slot, bool is_down, int row0, int tid, uint32_t to)
{
#pragma unroll
    for (int i = 0; i < (256 + GATHERING - 1) / GATHERING; i++) {
        const int r = tid + GATHERING * i, second = !is_down && r > 127;
        if (r < 256) {
            const mf_cuda_matrix &m = is_down ? slot.down : second ? slot.up : slot.gate;
            const int size = m.scale_dtype == MF_F32 ? 4 : 2;
            const uint8_t *at =
                m.scale + (int64_t)min(row0 + r - 128 * second, (int)m.n - 1) * ((int)m.scale_row_stride * size);
            const int before = (int)((uintptr_t)at & 3);
            copy_bytes_async_at(to + r * 4, at - before, before + size);
        }
    }
}

/* How a word gives the scale of a row that lies an even number of rows behind the first one, or an odd one. */
struct scale_reader {
    uint32_t shift[2], mask[2];
};

MF_DEV scale_reader reader_of(const mf_cuda_matrix &m, int row0)
{
    scale_reader r = { { 0, 0 }, { 0xffffffffu, 0xffffffffu } };
    if (m.scale_dtype != MF_F32) {
        const uint32_t stride = (uint32_t)m.scale_row_stride,
                       first = (uint32_t)((uintptr_t)m.scale >> 1) + row0 * stride;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const bool is_high = (first + e * stride) & 1;
            r.shift[e] = is_high ? 0 : 16;
            r.mask[e] = is_high ? 0xffff0000u : 0xffffffffu;
        }
    }
    return r;
}

MF_DEV float read_scale(const scale_reader &r, int odd, float word)
{
    return __uint_as_float(__float_as_uint(word) << r.shift[odd] & r.mask[odd]);
}

/* Larger of what two bf16 are in magnitude, and of `amax`, as bits; a NaN is the largest of all. */
MF_DEV uint32_t larger_magnitude(uint32_t amax, uint32_t two)
{
    return max(amax, max(two << 16 & 0x7fffffffu, two & 0x7fff0000u));
}

MF_DEV uint32_t larger_magnitude(uint32_t amax, const uint4 &v)
{
    return larger_magnitude(larger_magnitude(larger_magnitude(larger_magnitude(amax, v.x), v.y), v.z), v.w);
}

template <int CODES> MF_DEV float row_code_scale(uint32_t amax)
{
    return quant_scale(IS_INT8<CODES> ? QUANT_INT8_TOKEN : QUANT_FP8_TOKEN, 0.0f, false, __uint_as_float(amax));
}

/* What divides a row: its scale and 1 / scale; of a scale that is infinite or a NaN two zeros, which make codes of 0,
 * and NaN of what is no number. */
struct divisor {
    float scale, r;
};

MF_DEV divisor divisor_of(float scale)
{
    const bool is_finite = scale < __uint_as_float(0x7f800000u);
    return { is_finite ? scale : 0.0f, is_finite ? __frcp_rn(scale) : 0.0f };
}

/* Four int8 codes of numbers that are at most 127 in magnitude. */
MF_DEV uint32_t four_integers(const float *q)
{
    uint32_t v[4]; /* in the low byte: numbers this large are whole */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = __float_as_uint(__fadd_rn(q[i], 0x1.8p23f));
    }
    return __byte_perm(__byte_perm(v[0], v[1], 0x0040), __byte_perm(v[2], v[3], 0x0040), 0x5410);
}

/* Codes of four bf16. */
template <int CODES> MF_DEV uint32_t four_codes_of(uint32_t low, uint32_t high, const divisor &d)
{
    float x[4] = { __uint_as_float(low << 16), __uint_as_float(low & 0xffff0000u), __uint_as_float(high << 16),
                   __uint_as_float(high & 0xffff0000u) };
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = divided(x[i], d.scale, d.r);
    }
    return !IS_INT8<CODES> ? four_codes(x) : d.r > 0.0f ? four_integers(x) : 0; /* a NaN has no code */
}

template <int CODES> MF_DEV uint2 eight_codes(const uint4 &v, const divisor &d)
{
    return make_uint2(four_codes_of<CODES>(v.x, v.y, d), four_codes_of<CODES>(v.z, v.w, d));
}

/* A row of 8 x `pieces` bf16, which load(piece) gives eight of, as codes, by a warp; its scale. */
template <int CODES, typename Load> MF_DEV float quantise_whole_row(int pieces, uint8_t *to, Load load)
{
    constexpr int KEPT = 8; /* pieces that a lane holds: longer rows are read twice */
    const int lane = threadIdx.x & 31;
    uint4 v[KEPT];
    uint32_t amax = 0;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        v[i] = make_uint4(0, 0, 0, 0);
        if (lane + 32 * i < pieces) {
            v[i] = load(lane + 32 * i);
        }
    }
    for (int at = lane + 32 * KEPT; at < pieces; at += 32) {
        amax = larger_magnitude(amax, load(at));
    }
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        amax = larger_magnitude(amax, v[i]);
    }
    const float scale = row_code_scale<CODES>(__reduce_max_sync(MF_FULL_WARP, amax));
    const divisor d = divisor_of(scale);
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        if (lane + 32 * i < pieces) {
            ((uint2 *)to)[lane + 32 * i] = eight_codes<CODES>(v[i], d);
        }
    }
    for (int at = lane + 32 * KEPT; at < pieces; at += 32) {
        ((uint2 *)to)[at] = eight_codes<CODES>(load(at), d);
    }
    return scale;
}

/* Rows t, t + apart, .. of the intermediate, AT_ONCE of them at a time and less than `count`, as codes, by a warp; a
 * lane holds KEPT pieces of each. */
template <int CODES, int AT_ONCE, int KEPT>
MF_DEV void quantise_together(const mf_cuda_grouped &p, int first, int t, int count, int apart, int pieces)
{
    const int lane = threadIdx.x & 31;
#pragma unroll 1
    for (; t < count; t += AT_ONCE * apart) {
        uint4 v[AT_ONCE][KEPT];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const uint4 *from =
                (const uint4 *)((const uint16_t *)p.e.h + (int64_t)(first + t + k * apart) * p.e.h_stride);
#pragma unroll
            for (int i = 0; i < KEPT; i++) {
                v[k][i] = make_uint4(0, 0, 0, 0);
                if (t + k * apart < count && lane + 32 * i < pieces) {
                    v[k][i] = load_fresh(from + lane + 32 * i);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (t + k * apart >= count) {
                break;
            }
            uint32_t amax = 0;
#pragma unroll
            for (int i = 0; i < KEPT; i++) {
                amax = larger_magnitude(amax, v[k][i]);
            }
            const float scale = row_code_scale<CODES>(__reduce_max_sync(MF_FULL_WARP, amax));
            const divisor d = divisor_of(scale);
            uint2 *to = (uint2 *)(p.h_codes + (int64_t)(first + t + k * apart) * p.e.h_stride);
#pragma unroll
            for (int i = 0; i < KEPT; i++) {
                if (lane + 32 * i < pieces) {
                    to[lane + 32 * i] = eight_codes<CODES>(v[k][i], d);
                }
            }
            if (lane == 0) {
                p.h_scales[first + t + k * apart] = scale;
            }
        }
    }
}

/* The intermediate of places first .. first + count - 1, `width` columns that other blocks may have written, as codes;
 * by warp `warp` of `warps`. */
template <int CODES, int AT_ONCE>
MF_DEV void quantise_intermediate(const mf_cuda_grouped &p, int first, int count, int width, int warp, int warps)
{
    const int pieces = width / 8;
    if (pieces <= 3 * 32) {
        quantise_together<CODES, AT_ONCE, 3>(p, first, warp, count, warps, pieces);
        return;
    }
    if (pieces <= 6 * 32) {
        quantise_together<CODES, AT_ONCE, 6>(p, first, warp, count, warps, pieces);
        return;
    }
#pragma unroll 1
    for (int t = warp; t < count; t += warps) {
        const int64_t at = (int64_t)(first + t) * p.e.h_stride;
        const uint4 *from = (const uint4 *)((const uint16_t *)p.e.h + at);
        const float scale =
            quantise_whole_row<CODES>(pieces, p.h_codes + at, [&](int i) { return load_fresh(from + i); });
        if ((threadIdx.x & 31) == 0) {
            p.h_scales[first + t] = scale;
        }
    }
}

#endif
