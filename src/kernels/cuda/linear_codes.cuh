/* linear_codes.cuh - kinds of integer codes as the dense products of linear_codes.cu and linear_codes_wgmma.cu see
 * them. */
#ifndef MF_KERNELS_CUDA_LINEAR_CODES_CUH
#define MF_KERNELS_CUDA_LINEAR_CODES_CUH

#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/matrix.cuh"
#include "kernels/cuda/packed.cuh"

constexpr int CHUNK_BYTES = 16;

/* Of a kind of codes: a lane's columns of a chunk, the four lanes' of a block. */
template <int KIND> struct kind_of {
    static constexpr bool IS_8BIT = KIND == MF_CUDA_PACKED_INT8;
    static constexpr int FORMAT = IS_8BIT ? MF_FORMAT_INT8_CHANNEL : MF_FORMAT_INT4_GROUP;
    static constexpr int CHUNK = CHUNK_BYTES * 8 / format_of<FORMAT>::BITS, BLOCK = 4 * CHUNK;
    static constexpr int STEPS = CHUNK / 16; /* of a chunk: instructions */
};

/* ---- scales of 4-bit codes ---- */

/* A row's. */
template <int KIND> struct scale_row {
    const uint8_t *scale, *zero;
    int shift, dtype;

    MF_DEV_MEMBER scale_row at(const mf_cuda_matrix &m, int64_t row)
    {
        const int64_t first = row * m.scale_row_stride;
        return { m.scale + first * (KIND != MF_CUDA_PACKED_INT4 && m.scale_dtype == MF_F32 ? 4 : 2),
                 KIND != MF_CUDA_PACKED_INT4 && m.zero ? m.zero + first : NULL, 31 - __clz((int)m.group_size),
                 m.scale_dtype };
    }
};

/* What lanes hand each other of a group: the scale as packed_scale has it, once, and the zero point twice. */
struct group_words {
    uint32_t scale, zero;
};

template <int KIND> MF_DEV group_words load_group(const scale_row<KIND> &row, int column)
{
    const int i = column >> row.shift;
    if (KIND == MF_CUDA_PACKED_INT4) {
        return { __ldg((const uint16_t *)row.scale + i), 0u };
    }
    float scale;
    if (row.dtype == MF_F32) {
        scale = __ldg((const float *)row.scale + i);
    } else {
        const uint16_t h = __ldg((const uint16_t *)row.scale + i);
        scale = row.dtype == MF_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
    }
    const auto s = packed_scale<MF_CUDA_PACKED_INT4_ANY>::make(__float_as_uint(scale), 0u);
    return { __byte_perm(s.high, s.low, 0x5410), row.zero ? twice(__ldg(row.zero + i)) : 0x00080008u };
}

/* What packed_scale's SLOW conversions want, which are right for scales and zero points of any size. */
MF_DEV packed_scale<MF_CUDA_PACKED_INT4> expand(group_words w, packed_scale<MF_CUDA_PACKED_INT4>)
{
    packed_scale<MF_CUDA_PACKED_INT4> s = {};
    s.scale = twice(w.scale);
    return s;
}

MF_DEV packed_scale<MF_CUDA_PACKED_INT4_ANY> expand(group_words w, packed_scale<MF_CUDA_PACKED_INT4_ANY>)
{
    packed_scale<MF_CUDA_PACKED_INT4_ANY> s = {};
    s.high = __byte_perm(w.scale, 0, 0x1010);
    s.low = __byte_perm(w.scale, 0, 0x3232);
    s.zero = twice(__float_as_uint(-(float)(w.zero & 0xffffu)) >> 16);
    return s;
}

/* A word's eight codes as pairs i and i + 4, with the scale of a lane's own group of a block of columns, or, if the
 * four lanes' chunks of a row may lie in several, another's. */
template <int KIND, bool UNIFORM> MF_DEV void widen_word(uint32_t (&a)[4], group_words own, int lender, uint32_t word)
{
    if (!UNIFORM) {
        own.scale = __shfl_sync(MF_FULL_WARP, own.scale, lender, 4);
        own.zero = __shfl_sync(MF_FULL_WARP, own.zero, lender, 4);
    }
    const packed_scale<KIND> scale = expand(own, packed_scale<KIND>());
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a[i] = packed_scale<KIND>::template widen<true>(scale, word, i);
    }
}

/* ---- chunks ---- */

/* Word q of each of the four lanes' of a row for lane q. */
MF_DEV void transpose(uint32_t (&w)[4], int q)
{
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool is_high = q & step;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int i = step == 1 ? 2 * k : k, j = i + step;
            const uint32_t other = __shfl_xor_sync(MF_FULL_WARP, is_high ? w[i] : w[j], step);
            w[i] = is_high ? other : w[i];
            w[j] = is_high ? w[j] : other;
        }
    }
}

/* A lane's chunks of `BLOCKS` blocks of columns from `first` on, of two rows of a matrix, and their groups; zeros from
 * `end` on. */
template <int KIND, int BLOCKS> struct held_codes {
    uint4 v[BLOCKS][2];
    group_words groups[BLOCKS][2];

    MF_DEV_MEMBER void load(held_codes &to, int k, const scale_row<KIND> (&scales)[2], const uint8_t *const (&codes)[2],
                            int first, int end, int q)
    {
        using kind = kind_of<KIND>;
#pragma unroll
        for (int d = 0; d < BLOCKS; d++) {
            const int column = first + d * kind::BLOCK + q * kind::CHUNK;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                to.v[d][half] = column < end ? load_stream(codes[half] + (int64_t)(column / kind::CHUNK) * CHUNK_BYTES)
                                             : make_uint4(0, 0, 0, 0);
            }
        }
        if constexpr (!kind::IS_8BIT) {
#pragma unroll
            for (int d = 0; d < BLOCKS; d++) {
                const int column = min(first + d * kind::BLOCK + q * kind::CHUNK, k - 1);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    to.groups[d][half] = load_group<KIND>(scales[half], column);
                }
            }
        }
    }
};

/* A chunk's operand of its instructions for both rows: words that lanes have handed each other. */
template <int KIND, bool UNIFORM>
MF_DEV void widen_chunk(uint32_t (&a)[2][2 * kind_of<KIND>::STEPS], const group_words (&own)[2], int lender,
                        uint32_t low, uint32_t high)
{
    if constexpr (kind_of<KIND>::IS_8BIT) {
        wide_codes<KIND>::widen(low, a[0][0], a[0][1]);
        wide_codes<KIND>::widen(high, a[1][0], a[1][1]);
    } else {
        widen_word<KIND, UNIFORM>(a[0], own[0], lender, low);
        widen_word<KIND, UNIFORM>(a[1], own[1], lender, high);
    }
}

/* ---- launches ---- */

/* Whether each block of columns of every run is of one group. */
template <int KIND> static bool is_uniform(const mf_cuda_linear &p)
{
    bool is = true;
    for (int i = 0; i < p.num; i++) {
        is = is && p.w[i].group_size >= kind_of<KIND>::BLOCK && p.w[i].k % (kind_of<KIND>::BLOCK * p.runs) == 0;
    }
    return is;
}

/* Calls f with the kind as a constant. */
template <typename F> static int with_kind(int kind, F f)
{
    switch (kind) {
    case MF_CUDA_PACKED_INT8:
        return f(std::integral_constant<int, MF_CUDA_PACKED_INT8>());
    case MF_CUDA_PACKED_INT4:
        return f(std::integral_constant<int, MF_CUDA_PACKED_INT4>());
    default:
        return f(std::integral_constant<int, MF_CUDA_PACKED_INT4_ANY>());
    }
}

/* The same with whether every block of columns is of one group, too. */
template <typename F> static int with_uniform_kind(const mf_cuda_linear &p, int kind, F f)
{
    return with_kind(kind, [&](auto k) {
        if constexpr (!kind_of<decltype(k)::value>::IS_8BIT) {
            if (!is_uniform<decltype(k)::value>(p)) {
                return f(k, std::false_type());
            }
        }
        return f(k, std::true_type());
    });
}

#endif
