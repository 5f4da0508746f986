/* lanes_avx512_bf16.c - codes times many bf16 inputs with VDPBF16PS, sixteen rows as lanes: the bits of
 * quads_avx512_bf16.c, which multiplies few. */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/products_avx512.h"
#include "kernels/cpu/values_avx512_bf16.h"

#define HAS_STARTS 0
enum { STEP_COLUMNS = 2, STEP_STRIDE = 16 };

typedef struct lanes_kind {
    mf_format format;
    bool has_zero; /* INT4 with zero points */
} lanes_kind;

INLINE int word_steps(const lanes_kind kind)
{
    return mf_format_is_4bit(kind.format) ? 4 : 2;
}

INLINE int64_t group_of(const lanes_kind kind, const mf_matrix *w)
{
    return kind.format == MF_FORMAT_FP8_BLOCK ? MF_FP8_BLOCK_SIZE
           : kind.format == MF_FORMAT_MXFP4   ? MF_MXFP4_GROUP
                                              : w->group_size;
}

INLINE int64_t unit_columns(const lanes_kind kind)
{
    (void)kind;
    return 32;
}

/* MF_CPU_FORM_BF16_QUADS */
INLINE int64_t unit_offset(const lanes_kind kind, int64_t unit)
{
    (void)kind;
    return (unit >> 2) * 256 + (unit & 3) * 4;
}

INLINE int64_t four_stride(const lanes_kind kind)
{
    (void)kind;
    return 4 * STEP_STRIDE;
}

INLINE void load_scales_of(mf_format format, mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    (void)format;
    load_scales(dtype, p, n, out);
}

INLINE bool has_offset(const lanes_kind kind)
{
    return kind.has_zero;
}

/* Of a zero point from 0 to 16: 16 less it, in both words of a lane. */
INLINE __m512i load_offsets(const mf_matrix *w, int64_t at, int64_t n)
{
    const __m512i zeros = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first16(n), w->zero + at));
    const __m512i less = _mm512_sub_epi32(_mm512_set1_epi32(16), zeros);
    return _mm512_or_si512(less, _mm512_slli_epi32(less, 16));
}

/* The upper halves of sixteen f32, twice. */
INLINE __m512i words_of(__m512 v)
{
    const __m512i odd = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 31, 29, 27, 25, 23,
                                         21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutexvar_epi16(odd, _mm512_castps_si512(v));
}

/* Pairs of bytes that become steps' pairs: columns i and 4 + i of each eight. */
INLINE __m512i arrange(const lanes_kind kind, __m512i line)
{
    return kind.format == MF_FORMAT_FP8_BLOCK
               ? _mm512_shuffle_epi8(
                     line, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15)))
               : line;
}

INLINE void expand(const lanes_kind kind, __m512i v, __m512i offset, __m512i *steps)
{
    if (kind.format == MF_FORMAT_FP8_BLOCK) {
        e4m3_values(v, &steps[0], &steps[1]);
        return;
    }
    const __m512 e2m1 = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f,
                                       -2.0f, -3.0f, -4.0f, -6.0f);
    const __m512 ints = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i less_8 = words_of(_mm512_sub_ps(ints, _mm512_set1_ps(8.0f)));
    const __m512i less_16 = words_of(_mm512_sub_ps(ints, _mm512_set1_ps(16.0f))); /* then 0 to 15 */
    const __m512i values = kind.format == MF_FORMAT_MXFP4 ? words_of(e2m1)
                           : kind.has_zero ? _mm512_mask_blend_epi16(0xffff0000u, less_16, words_of(ints))
                                           : less_8;
    UNROLL(4) for (int i = 0; i < 4; i++)
    {
        /* codes i and 4 + i of each row in the low bits of its words: the permutation looks at five */
        __m512i codes = i ? _mm512_srli_epi16(v, 4 * i) : v;
        if (kind.has_zero) {
            codes = _mm512_add_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(15)), offset);
        }
        steps[i] = _mm512_permutexvar_epi16(codes, values);
    }
}

typedef vec acc_type;

INLINE acc_type acc_zero(void)
{
    return vec_zero();
}

INLINE vec dot(vec acc, __m512i w, __m512i x)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}

INLINE int step_place(const lanes_kind kind, int word, int step)
{
    return word * word_steps(kind) + step;
}

INLINE int32_t input_term(const lanes_kind kind, const uint8_t *x, int64_t k)
{
    (void)kind;
    (void)x;
    (void)k;
    return 0;
}

INLINE vec lanes_flush(const lanes_kind kind, vec acc, vec scale, vec total)
{
    (void)kind;
    return _mm512_fmadd_ps(acc, scale, total);
}

INLINE vec add_totals(const lanes_kind kind, vec a, vec b)
{
    (void)kind;
    return _mm512_add_ps(a, b);
}

INLINE void finish(const lanes_kind kind, const mf_cpu_tile *tile, int64_t r, int64_t t, int64_t num_rows, vec total,
                   __m512 factors, int32_t term)
{
    (void)term;
    (void)factors;
    (void)kind;
    _mm512_mask_storeu_ps(tile->out + t * tile->out_stride + r, first16(num_rows), total);
}

#include "kernels/cpu/product_lanes.h"

void mf_cpu_lanes_int4_bf16(const mf_cpu_tile *tile)
{
    if (tile->w->zero) {
        lanes_many((lanes_kind){ .format = MF_FORMAT_INT4_GROUP, .has_zero = true }, tile);
    } else {
        lanes_many((lanes_kind){ .format = MF_FORMAT_INT4_GROUP }, tile);
    }
}

void mf_cpu_lanes_mxfp4_bf16(const mf_cpu_tile *tile)
{
    lanes_many((lanes_kind){ .format = MF_FORMAT_MXFP4 }, tile);
}

void mf_cpu_lanes_fp8_block_bf16(const mf_cpu_tile *tile)
{
    lanes_many((lanes_kind){ .format = MF_FORMAT_FP8_BLOCK }, tile);
}
