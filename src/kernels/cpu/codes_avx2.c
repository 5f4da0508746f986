/* codes_avx2.c - int8 inputs times int8 and int4 codes with AVX2: bytes are multiplied in pairs, unsigned by signed.
 *
 * INT8 weights give their sign to the input and stay as magnitudes: pairs reach at most 2 * 128 * 127, which 16 bits hold. */
#include "kernels/cpu/avx2.h"

typedef __m256i ivec;
typedef __m256 fvec;

typedef struct weights {
    __m256i code, magnitude;
} weights;

enum { CODES = 32, INT8_TOKENS = 2, INT4_TOKENS = 3, INT4_COLUMNS = 64, INT8_BIAS = 0 };

INLINE ivec int_zero(void)
{
    return _mm256_setzero_si256();
}

INLINE fvec float_zero(void)
{
    return _mm256_setzero_ps();
}

INLINE ivec load_x(const int8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

INLINE weights load_int8(const uint8_t *p, int64_t n)
{
    __m256i code;
    if (n == CODES) {
        code = _mm256_loadu_si256((const __m256i *)(const void *)p);
    } else {
        uint8_t padded[CODES] = { 0 };
        memcpy(padded, p, (size_t)n);
        code = _mm256_loadu_si256((const __m256i *)(const void *)padded);
    }
    return (weights){ code, _mm256_abs_epi8(code) };
}

/* Sums of pairs in 16 bits become sums of four in 32. */
INLINE ivec add_pairs(ivec acc, __m256i pairs)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE ivec dot_int8(ivec acc, weights w, ivec x)
{
    return add_pairs(acc, _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(x, w.code)));
}

/* 32 bytes are 64 columns: low nibbles, the even ones, then high. */
INLINE __m256i load_int4(const uint8_t *p, int64_t n)
{
    if (n == INT4_COLUMNS) {
        return _mm256_loadu_si256((const __m256i *)(const void *)p);
    }
    uint8_t padded[INT4_COLUMNS / 2] = { 0 };
    memcpy(padded, p, (size_t)((n + 1) / 2));
    return _mm256_loadu_si256((const __m256i *)(const void *)padded);
}

INLINE fvec scale_add(fvec scale, ivec sums, fvec acc)
{
    return _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums), acc);
}

/* The halves of 64 columns. */
INLINE fvec each_32(const float *p)
{
    return _mm256_blend_ps(_mm256_broadcast_ss(p), _mm256_broadcast_ss(p + 1), 0xf0);
}

INLINE ivec each_32_words(const int32_t *p)
{
    return _mm256_blend_epi32(_mm256_set1_epi16((short)p[0]), _mm256_set1_epi16((short)p[1]), 0xf0);
}

INLINE void sum_four_int(ivec a, ivec b, ivec c, ivec d, int32_t *out)
{
    const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_storeu_si128((__m128i *)(void *)out, _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
}

INLINE void sum_four_float(fvec a, fvec b, fvec c, fvec d, float *out)
{
    const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
}

INLINE void load_scales(mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + 8 <= n && dtype == MF_F16; i += 8) {
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i))));
    }
    for (; i + 8 <= n && dtype == MF_BF16; i += 8) {
        _mm256_storeu_ps(out + i, f32_from_bf16(p + 2 * i));
    }
    for (; i < n; i++) {
        uint16_t half;
        if (dtype == MF_F32) {
            memcpy(out + i, p + 4 * i, 4);
        } else {
            memcpy(&half, p + 2 * i, 2);
            out[i] = dtype == MF_F16 ? mf_f16_to_f32(half) : mf_bf16_to_f32(half);
        }
    }
}

#include "kernels/cpu/codes_loops.h"

/* ---- INT4_GROUP ----
 *
 * A lane's sum of (code - zero) * x, an integer, times the group's scale is added to that lane's f32, columns ascending, and
 * the lanes in a tree at the end: one order for any number of tokens and rows. */

enum { SPAN = 2048 /* columns whose scales are converted at a time */, BLOCKS = SPAN / 32 };

/* Scales and zero points of one span, one per 32 columns; 0 past the row's end. */
typedef struct span_scales {
    float scale[ROWS][BLOCKS + 2];
    int32_t zero[ROWS][BLOCKS + 2];
} span_scales;

INLINE void scales_of(bool has_zero, bool is_first, const mf_matrix *w, const code_rows *q, int64_t first, span_scales *s)
{
    const int64_t left = w->k - first < SPAN ? w->k - first : SPAN;
    const int64_t blocks = (left + 31) / 32;
    const int64_t per_group = w->group_size / 32;
    const int64_t g0 = first / w->group_size, g1 = (first + left - 1) / w->group_size;
    const int64_t size = (int64_t)mf_dtype_size(w->scale_dtype);
    for (int i = 0; i < ROWS; i++) {
        float *out = s->scale[i];
        const uint8_t *scales = (const uint8_t *)w->scale + (q->scale[i] + g0) * size;
        for (int64_t line = 0; is_first && line < (g1 - g0 + 1) * size; line += LINE) {
            __builtin_prefetch(scales + ROWS_AHEAD * w->scale_row_stride * size + line, 0, 3);
        }
        load_scales(w->scale_dtype, scales, g1 - g0 + 1, out);
        for (int64_t g = g1, b = blocks; per_group > 1 && g >= g0; g--) { /* from the back: read before written over */
            const float value = out[g - g0];
            const int64_t start = g > g0 ? g * per_group - first / 32 : 0;
            for (; b >= start + 4; b -= 4) {
                _mm_storeu_ps(out + b - 4, _mm_set1_ps(value));
            }
            while (b > start) {
                out[--b] = value;
            }
        }
        out[blocks] = out[blocks + 1] = 0.0f;
        s->zero[i][blocks] = s->zero[i][blocks + 1] = 0;
        for (int64_t g = g0, b = 0; has_zero && g <= g1; g++) {
            const int64_t stop = g < g1 ? (g + 1) * per_group - first / 32 : blocks;
            while (b < stop) {
                s->zero[i][b++] = w->zero[q->scale[i] + g];
            }
        }
    }
}

/* 64 columns from k on, n of them there: sums of four products fit 16 bits, as do eight times the sums of four inputs. */
INLINE void int4_step(bool has_zero, int NT, const code_rows *q, const int8_t *const *x, int64_t k, int64_t n, int64_t b,
                      const span_scales *s, fvec acc[ROWS][INT4_TOKENS])
{
    const __m256i ones = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1), mask = _mm256_set1_epi8(15);
    const int64_t at = k - k % MF_CPU_INTERLEAVED + k % MF_CPU_INTERLEAVED / 2;
    ivec even[INT4_TOKENS], odd[INT4_TOKENS], fours[INT4_TOKENS];
    UNROLL(8) for (int j = 0; j < NT; j++) {
        even[j] = load_x(x[j] + at);
        odd[j] = load_x(x[j] + at + MF_CPU_INTERLEAVED / 2);
        fours[j] = _mm256_add_epi16(_mm256_maddubs_epi16(ones, even[j]), _mm256_maddubs_epi16(ones, odd[j]));
        fours[j] = has_zero ? fours[j] : _mm256_slli_epi16(fours[j], 3);
    }
    UNROLL(4) for (int i = 0; i < ROWS; i++) {
        const __m256i codes = load_int4(q->codes[i] + k / 2, n);
        const __m256i low = _mm256_and_si256(codes, mask), high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
        const fvec scale = each_32(&s->scale[i][b]);
        UNROLL(8) for (int j = 0; j < NT; j++) {
            ivec sums = _mm256_add_epi16(_mm256_maddubs_epi16(low, even[j]), _mm256_maddubs_epi16(high, odd[j]));
            if (has_zero) {
                const ivec zeros = _mm256_madd_epi16(fours[j], each_32_words(&s->zero[i][b]));
                sums = _mm256_sub_epi32(_mm256_madd_epi16(sums, ones16), zeros);
            } else {
                sums = _mm256_madd_epi16(_mm256_sub_epi16(sums, fours[j]), ones16);
            }
            acc[i][j] = scale_add(scale, sums, acc[i][j]);
        }
    }
}

/* s holds the scales of the last span: where that is all of them, later tokens find them there. */
INLINE void int4_rows(bool has_zero, int NT, const mf_cpu_tile *tile, const code_rows *q, int64_t r, int64_t t,
                      span_scales *s)
{
    const int64_t size = tile->w->k;
    const int8_t *x[INT4_TOKENS];
    fvec acc[ROWS][INT4_TOKENS];
    UNROLL(8) for (int j = 0; j < NT; j++) {
        x[j] = tile->x[t + j];
        UNROLL(4) for (int i = 0; i < ROWS; i++) {
            acc[i][j] = float_zero();
        }
    }
    for (int64_t first = 0; first < size; first += SPAN) {
        const int64_t end = size - first < SPAN ? size : first + SPAN;
        if (t == 0 || size > SPAN) {
            scales_of(has_zero, t == 0, tile->w, q, first, s);
        }
        int64_t k = first;
        for (; k + INT4_COLUMNS <= end; k += INT4_COLUMNS) {
            if (t == 0 && k % (2 * LINE) == 0) {
                ask_ahead(q, k / 2);
            }
            int4_step(has_zero, NT, q, x, k, INT4_COLUMNS, (k - first) / 32, s, acc);
        }
        if (k < end) {
            int4_step(has_zero, NT, q, x, k, end - k, (k - first) / 32, s, acc);
        }
    }
    UNROLL(8) for (int j = 0; j < NT; j++) {
        float sums[ROWS];
        sum_four_float(acc[0][j], acc[1][j], acc[2][j], acc[3][j], sums);
        for (int i = 0; i < q->num_rows; i++) {
            tile->out[(t + j) * tile->out_stride + r + i] = sums[i] * tile->x_scale[t + j];
        }
    }
}

INLINE void int4_tile(bool has_zero, const mf_cpu_tile *tile)
{
    span_scales s;
    for (int64_t r = 0; r < tile->num_rows; r += ROWS) {
        const code_rows q = code_rows_at(tile, r);
        int64_t t = 0;
        for (; t + INT4_TOKENS <= tile->num_tokens; t += INT4_TOKENS) {
            int4_rows(has_zero, INT4_TOKENS, tile, &q, r, t, &s);
        }
        if (t + 2 <= tile->num_tokens) {
            int4_rows(has_zero, 2, tile, &q, r, t, &s);
            t += 2;
        }
        if (t < tile->num_tokens) {
            int4_rows(has_zero, 1, tile, &q, r, t, &s);
        }
    }
}

static void int4_codes(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % 32 != 0) {
        mf_cpu_tile_rare(tile, MF_CPU_FORM_I8_HALVES, 1);
    } else if (tile->w->zero) {
        int4_tile(true, tile);
    } else {
        int4_tile(false, tile);
    }
}

void mf_cpu_codes_fill_avx2(mf_cpu_kernels *k)
{
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ int8_codes, MF_CPU_FORM_I8 };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] = (mf_cpu_product){ int4_codes, MF_CPU_FORM_I8_HALVES };
}
