/* lanes_avx512_vnni.c - int8 inputs of many tokens times int8 and int4 codes with VPDPBUSD, sixteen rows as lanes: the
 * bits of the products of few.  One side of the instruction is unsigned: codes get a bias, which the inputs' sums take
 * back. */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/products_avx512.h"

#define HAS_STARTS 1
enum { STEP_COLUMNS = 4, STEP_STRIDE = 4, INT8_BIAS = 128, INT4_BIAS = 8, OFFSET_BIAS = 16 };

typedef struct lanes_kind {
    mf_format format;
    bool has_zero;
    int32_t bias; /* added to what each code stands for, so that it is unsigned */
} lanes_kind;

INLINE int word_steps(const lanes_kind kind)
{
    return kind.format == MF_FORMAT_INT4_GROUP ? 2 : 1;
}

INLINE int64_t group_of(const lanes_kind kind, const mf_matrix *w)
{
    return kind.format == MF_FORMAT_INT4_GROUP ? w->group_size : 0;
}

INLINE int64_t unit_columns(const lanes_kind kind)
{
    return kind.format == MF_FORMAT_INT8_CHANNEL ? 256 : 32;
}

/* MF_CPU_FORM_I8_HALVES for int4, MF_CPU_FORM_I8 for int8 */
INLINE int64_t unit_offset(const lanes_kind kind, int64_t unit)
{
    return kind.format == MF_FORMAT_INT8_CHANNEL ? unit * 256 : unit / 4 * 128 + unit % 4 * 16;
}

INLINE int64_t four_stride(const lanes_kind kind)
{
    return kind.format == MF_FORMAT_INT8_CHANNEL ? 16 : 64;
}

INLINE bool has_offset(const lanes_kind kind)
{
    return kind.has_zero;
}

/* Of a zero point from 0 to 16: 16 less it, in each byte. */
INLINE __m512i load_offsets(const mf_matrix *w, int64_t at, int64_t n)
{
    const __m512i zeros = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first16(n), w->zero + at));
    return _mm512_mullo_epi32(_mm512_sub_epi32(_mm512_set1_epi32(OFFSET_BIAS), zeros), _mm512_set1_epi32(0x01010101));
}

INLINE void load_scales_of(mf_format format, mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    (void)format;
    load_scales(dtype, p, n, out);
}

/* Of each 32 columns of int4 the even ones come first, 4 a word. */
INLINE int step_place(const lanes_kind kind, int word, int step)
{
    return kind.format == MF_FORMAT_INT4_GROUP ? word / 4 * 8 + word % 4 + 4 * step : word;
}

INLINE __m512i arrange(const lanes_kind kind, __m512i line)
{
    (void)kind;
    return line;
}

INLINE void expand(const lanes_kind kind, __m512i v, __m512i offset, __m512i *steps)
{
    if (kind.format == MF_FORMAT_INT8_CHANNEL) {
        steps[0] = _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80));
        return;
    }
    const __m512i mask = _mm512_set1_epi8(15);
    steps[0] = _mm512_and_si512(v, mask);
    steps[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
    if (kind.has_zero) {
        steps[0] = _mm512_add_epi8(steps[0], offset);
        steps[1] = _mm512_add_epi8(steps[1], offset);
    }
}

INLINE int64_t lanes_columns(const lanes_kind kind, int64_t k)
{
    return kind.format == MF_FORMAT_INT8_CHANNEL ? mf_cpu_round_columns(k) : (k + 127) / 128 * 128;
}

typedef __m512i acc_type;

INLINE acc_type vec_of(int32_t start)
{
    return _mm512_set1_epi32(start);
}

/* Less the bias times the sum of a unit's inputs; INT8's goes once, at the end. */
INLINE void chain_starts(const lanes_kind kind, const uint8_t *x, const mf_matrix *w, int64_t first, int64_t end,
                         int32_t *out)
{
    const uint8_t *sums = x + lanes_columns(kind, w->k) + first / 32 * 4;
    const int64_t unit = unit_columns(kind), num_units = (end - first + unit - 1) / unit;
    const __m512i factor = _mm512_set1_epi32(-kind.bias);
    if (kind.format == MF_FORMAT_INT8_CHANNEL) {
        memset(out, 0, (size_t)num_units * sizeof *out);
        return;
    }
    for (int64_t u = 0; u < num_units; u += 16) {
        const __mmask16 mask = first16(num_units - u);
        _mm512_mask_storeu_epi32(out + u, mask,
                                 _mm512_mullo_epi32(_mm512_maskz_loadu_epi32(mask, sums + 4 * u), factor));
    }
}

/* Of an input's codes, from the sums of 32 behind them. */
INLINE int32_t input_term(const lanes_kind kind, const uint8_t *x, int64_t k)
{
    const int64_t columns = mf_cpu_round_columns(k);
    int32_t total = 0;
    for (int64_t g = 0; kind.format == MF_FORMAT_INT8_CHANNEL && g < columns / 32; g++) {
        int32_t sum;
        memcpy(&sum, x + columns + 4 * g, 4);
        total += sum;
    }
    return total;
}

INLINE acc_type dot(acc_type acc, __m512i w, __m512i x)
{
    return _mm512_dpbusd_epi32(acc, w, x);
}

/* INT8: integers to the end. */
INLINE __m512 lanes_flush(const lanes_kind kind, acc_type acc, __m512 scale, __m512 total)
{
    return kind.format == MF_FORMAT_INT4_GROUP ? _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), scale, total)
                                               : _mm512_castsi512_ps(_mm512_add_epi32(acc, _mm512_castps_si512(total)));
}

INLINE __m512 add_totals(const lanes_kind kind, __m512 a, __m512 b)
{
    return kind.format == MF_FORMAT_INT4_GROUP
               ? _mm512_add_ps(a, b)
               : _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

INLINE void finish(const lanes_kind kind, const mf_cpu_tile *tile, int64_t r, int64_t t, int64_t num_rows, __m512 total,
                   __m512 scales, int32_t term)
{
    const __m512 x_scale = _mm512_set1_ps(tile->x_scale[t]);
    __m512 out = _mm512_mul_ps(total, x_scale);
    if (kind.format == MF_FORMAT_INT8_CHANNEL) {
        /* the bias wraps around and back: integers modulo 2^32 */
        const __m512i bias = _mm512_set1_epi32((int32_t)((uint32_t)INT8_BIAS * (uint32_t)term));
        const __m512 sums = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_castps_si512(total), bias));
        out = _mm512_mul_ps(_mm512_mul_ps(sums, x_scale), scales);
    }
    _mm512_mask_storeu_ps(tile->out + t * tile->out_stride + r, first16(num_rows), out);
}

#include "kernels/cpu/product_lanes.h"

void mf_cpu_lanes_int4_codes(const mf_cpu_tile *tile)
{
    if (tile->w->zero) {
        lanes_many((lanes_kind){ .format = MF_FORMAT_INT4_GROUP, .has_zero = true, .bias = OFFSET_BIAS }, tile);
    } else {
        lanes_many((lanes_kind){ .format = MF_FORMAT_INT4_GROUP, .bias = INT4_BIAS }, tile);
    }
}

void mf_cpu_lanes_int8_codes(const mf_cpu_tile *tile)
{
    lanes_many((lanes_kind){ .format = MF_FORMAT_INT8_CHANNEL, .bias = INT8_BIAS }, tile);
}
