/* sum_reduce_avx512.c - the combine's sums with AVX-512: 64 elements at a time stay in registers while the terms pass by.
 * Each element's chain is the scalar one. */
#include "kernels/cpu/avx512.h"

/* C short streams side by side are no pattern for hardware prefetchers: each asks this many bytes ahead, which past a part's
 * end is the next part of the same row. */
enum { LINE = 64, AHEAD = 2048 };

INLINE __m512 load16(__mmask16 mask, const char *row, mf_dtype dtype, int64_t i)
{
    switch (dtype) {
    case MF_BF16:
        return f32x16_from_bf16_masked(mask, row + 2 * i);
    case MF_F16:
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, row + 2 * i));
    default:
        return _mm512_maskz_loadu_ps(mask, row + 4 * i);
    }
}

INLINE void sum_rows_of(const mf_cpu_terms *terms, mf_dtype dtype, int64_t first, int64_t n, float *acc)
{
    const int64_t size = dtype == MF_F32 ? 4 : 2;
    int64_t h = 0;
    for (; h + 64 <= n; h += 64) {
        __m512 a[4];
        UNROLL(4) for (int j = 0; j < 4; j++) {
            a[j] = _mm512_loadu_ps(acc + h + 16 * j);
        }
        for (int32_t k = 0; k < terms->count; k++) {
            const char *row = terms->row[k];
            const char *ahead = row + (first + h) * size + AHEAD;
            const __m512 w = _mm512_set1_ps(terms->weight[k]);
            for (int64_t line = 0; line < 64 * size; line += LINE) {
                _mm_prefetch(ahead + line, _MM_HINT_T0);
            }
            UNROLL(4) for (int j = 0; j < 4; j++) {
                a[j] = _mm512_fmadd_ps(w, load16(0xffff, row, dtype, first + h + 16 * j), a[j]);
            }
        }
        UNROLL(4) for (int j = 0; j < 4; j++) {
            _mm512_storeu_ps(acc + h + 16 * j, a[j]);
        }
    }
    for (; h < n; h += 16) {
        const __mmask16 mask = mask16(n - h);
        __m512 a = _mm512_maskz_loadu_ps(mask, acc + h);
        for (int32_t k = 0; k < terms->count; k++) {
            a = _mm512_fmadd_ps(_mm512_set1_ps(terms->weight[k]), load16(mask, terms->row[k], dtype, first + h), a);
        }
        _mm512_mask_storeu_ps(acc + h, mask, a);
    }
}

static void sum_rows_avx512(const mf_cpu_terms *terms, int64_t first, int64_t n, float *acc)
{
    switch (terms->dtype) { /* constants, so that the loops hold no test */
    case MF_BF16:
        sum_rows_of(terms, MF_BF16, first, n, acc);
        break;
    case MF_F16:
        sum_rows_of(terms, MF_F16, first, n, acc);
        break;
    default:
        sum_rows_of(terms, MF_F32, first, n, acc);
        break;
    }
}

static void scale_add_avx512(float factor, const float *r, const float *residual, int64_t n, float *s)
{
    for (int64_t h = 0; h < n; h += 16) {
        const __mmask16 mask = mask16(n - h);
        __m512 v = _mm512_fmadd_ps(_mm512_set1_ps(factor), _mm512_maskz_loadu_ps(mask, r + h),
                                   _mm512_maskz_loadu_ps(mask, s + h));
        v = residual ? _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, residual + h)) : v;
        _mm512_mask_storeu_ps(s + h, mask, v);
    }
}

void mf_cpu_sum_reduce_fill_avx512(mf_cpu_kernels *kernels)
{
    kernels->sum_rows = sum_rows_avx512;
    kernels->scale_add = scale_add_avx512;
}
