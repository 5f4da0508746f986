/* sum_reduce_avx2.c - the combine's sums with AVX2, FMA and F16C: 32 elements at a time stay in registers while the terms
 * pass by.  Each element's chain is the scalar one. */
#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/ref/views.h"

#define INLINE static inline __attribute__((always_inline))

/* C short streams side by side are no pattern for hardware prefetchers: each asks this many bytes ahead, which past a part's
 * end is the next part of the same row.  bf16, 512 x 9 x 7168, one thread: 1.45 times as fast. */
enum { LINE = 64, AHEAD = 2048 };

INLINE __m256 load8(const char *row, mf_dtype dtype, int64_t i)
{
    switch (dtype) {
    case MF_BF16: {
        __m128i words = _mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
    }
    case MF_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i)));
    default:
        return _mm256_loadu_ps((const float *)(const void *)(row + 4 * i));
    }
}

INLINE void sum_rows_of(const mf_cpu_terms *terms, mf_dtype dtype, int64_t first, int64_t n, float *acc)
{
    int64_t h = 0;
    for (; h + 32 <= n; h += 32) {
        __m256 a0 = _mm256_loadu_ps(acc + h), a1 = _mm256_loadu_ps(acc + h + 8);
        __m256 a2 = _mm256_loadu_ps(acc + h + 16), a3 = _mm256_loadu_ps(acc + h + 24);
        for (int32_t k = 0; k < terms->count; k++) {
            const char *row = terms->row[k];
            const char *ahead = row + (first + h) * (dtype == MF_F32 ? 4 : 2) + AHEAD;
            __m256 w = _mm256_set1_ps(terms->weight[k]);
            _mm_prefetch(ahead, _MM_HINT_T0);
            if (dtype == MF_F32) {
                _mm_prefetch(ahead + LINE, _MM_HINT_T0);
            }
            a0 = _mm256_fmadd_ps(w, load8(row, dtype, first + h), a0);
            a1 = _mm256_fmadd_ps(w, load8(row, dtype, first + h + 8), a1);
            a2 = _mm256_fmadd_ps(w, load8(row, dtype, first + h + 16), a2);
            a3 = _mm256_fmadd_ps(w, load8(row, dtype, first + h + 24), a3);
        }
        _mm256_storeu_ps(acc + h, a0);
        _mm256_storeu_ps(acc + h + 8, a1);
        _mm256_storeu_ps(acc + h + 16, a2);
        _mm256_storeu_ps(acc + h + 24, a3);
    }
    for (; h + 8 <= n; h += 8) {
        __m256 a = _mm256_loadu_ps(acc + h);
        for (int32_t k = 0; k < terms->count; k++) {
            a = _mm256_fmadd_ps(_mm256_set1_ps(terms->weight[k]), load8(terms->row[k], dtype, first + h), a);
        }
        _mm256_storeu_ps(acc + h, a);
    }
    for (; h < n; h++) {
        for (int32_t k = 0; k < terms->count; k++) {
            mf_tensor row = { .data = (void *)terms->row[k], .dtype = dtype };
            acc[h] = fmaf(terms->weight[k], mf_load_f32(&row, first + h), acc[h]);
        }
    }
}

static void sum_rows_avx2(const mf_cpu_terms *terms, int64_t first, int64_t n, float *acc)
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

static void scale_add_avx2(float factor, const float *r, const float *residual, int64_t n, float *s)
{
    int64_t h = 0;
    for (; h + 8 <= n; h += 8) {
        __m256 v = _mm256_fmadd_ps(_mm256_set1_ps(factor), _mm256_loadu_ps(r + h), _mm256_loadu_ps(s + h));
        v = residual ? _mm256_add_ps(v, _mm256_loadu_ps(residual + h)) : v;
        _mm256_storeu_ps(s + h, v);
    }
    for (; h < n; h++) {
        s[h] = fmaf(factor, r[h], s[h]);
        s[h] = residual ? s[h] + residual[h] : s[h];
    }
}

void mf_cpu_sum_reduce_fill_avx2(mf_cpu_kernels *kernels)
{
    kernels->sum_rows = sum_rows_avx2;
    kernels->scale_add = scale_add_avx2;
}
