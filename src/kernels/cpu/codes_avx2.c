/* codes_avx2.c - int8 inputs times int8 and int4 codes with AVX2: bytes are multiplied in pairs, unsigned by signed.
 *
 * INT8 weights give their sign to the input and stay as magnitudes: pairs reach at most 2 * 128 * 127, which 16 bits hold. */
#include "kernels/cpu/avx2.h"

typedef __m256i ivec;
typedef __m256 fvec;

typedef struct weights {
    __m256i code, magnitude;
} weights;

enum { CODES = 32, INT8_TOKENS = 2, INT4_TOKENS = 2, INT8_BIAS = 0 };

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

/* 16 bytes are a group of 32 columns: low nibbles, the even ones, then high. */
INLINE ivec load_int4(const uint8_t *p, int64_t n)
{
    __m128i bytes;
    if (n == CODES) {
        bytes = _mm_loadu_si128((const __m128i *)(const void *)p);
    } else {
        uint8_t padded[CODES / 2] = { 0 };
        memcpy(padded, p, (size_t)((n + 1) / 2));
        bytes = _mm_loadu_si128((const __m128i *)(const void *)padded);
    }
    const __m256i moved = _mm256_srlv_epi64(_mm256_broadcastsi128_si256(bytes), _mm256_setr_epi64x(0, 0, 4, 4));
    return _mm256_and_si256(moved, _mm256_set1_epi8(15));
}

INLINE ivec dot_int4(ivec acc, ivec codes, ivec x)
{
    return add_pairs(acc, _mm256_maddubs_epi16(codes, x));
}

INLINE ivec lane_sums(ivec x)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), x), _mm256_set1_epi16(1));
}

INLINE ivec times_minus_8(ivec sums)
{
    return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sums, 3));
}

INLINE ivec times_minus(ivec sums, ivec zeros)
{
    return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_mullo_epi32(sums, zeros));
}

INLINE fvec scale_add(fvec scale, ivec sums, fvec acc)
{
    return _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums), acc);
}

INLINE fvec each_32(const float *p)
{
    return _mm256_broadcast_ss(p);
}

INLINE ivec each_32_int(const int32_t *p)
{
    return _mm256_set1_epi32(p[0]);
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
        for (int64_t b = blocks - 1; per_group > 1 && b > 0; b--) { /* from the back: sources are read before written over */
            out[b] = out[(first / 32 + b) / per_group - g0];
        }
        out[blocks] = out[blocks + 1] = 0.0f;
        for (int64_t b = 0; has_zero && b < blocks + 2; b++) {
            s->zero[i][b] = b < blocks ? w->zero[q->scale[i] + (first / 32 + b) / per_group] : 0;
        }
    }
}

INLINE void int4_step(bool has_zero, int NT, const code_rows *q, const int8_t *const *x, int64_t k, int64_t n, int64_t b,
                      const span_scales *s, fvec acc[ROWS][INT4_TOKENS])
{
    ivec xk[INT4_TOKENS], start[INT4_TOKENS];
    UNROLL(8) for (int j = 0; j < NT; j++) {
        xk[j] = load_x(x[j] + k);
        start[j] = lane_sums(xk[j]);
        start[j] = has_zero ? start[j] : times_minus_8(start[j]);
    }
    UNROLL(4) for (int i = 0; i < ROWS; i++) {
        const ivec codes = load_int4(q->codes[i] + k / 2, n);
        const fvec scale = each_32(&s->scale[i][b]);
        UNROLL(8) for (int j = 0; j < NT; j++) {
            const ivec first = has_zero ? times_minus(start[j], each_32_int(&s->zero[i][b])) : start[j];
            acc[i][j] = scale_add(scale, dot_int4(first, codes, xk[j]), acc[i][j]);
        }
    }
}

INLINE void int4_rows(bool has_zero, int NT, const mf_cpu_tile *tile, const code_rows *q, int64_t r, int64_t t)
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
        span_scales s;
        scales_of(has_zero, t == 0, tile->w, q, first, &s);
        int64_t k = first;
        for (; k + CODES <= end; k += CODES) {
            if (t == 0 && k % (2 * LINE) == 0) {
                ask_ahead(q, k / 2);
            }
            int4_step(has_zero, NT, q, x, k, CODES, (k - first) / 32, &s, acc);
        }
        if (k < end) {
            int4_step(has_zero, NT, q, x, k, end - k, (k - first) / 32, &s, acc);
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
    for (int64_t r = 0; r < tile->num_rows; r += ROWS) {
        const code_rows q = code_rows_at(tile, r);
        int64_t t = 0;
        for (; t + INT4_TOKENS <= tile->num_tokens; t += INT4_TOKENS) {
            int4_rows(has_zero, INT4_TOKENS, tile, &q, r, t);
        }
        for (; t < tile->num_tokens; t++) {
            int4_rows(has_zero, 1, tile, &q, r, t);
        }
    }
}

static void int4_codes(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % 32 != 0) {
        mf_cpu_tile_rare(tile, MF_CPU_FORM_I8_SPLIT, 32);
    } else if (tile->w->zero) {
        int4_tile(true, tile);
    } else {
        int4_tile(false, tile);
    }
}

void mf_cpu_codes_fill_avx2(mf_cpu_kernels *k)
{
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ int8_codes, MF_CPU_FORM_I8 };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] = (mf_cpu_product){ int4_codes, MF_CPU_FORM_I8_SPLIT };
}
