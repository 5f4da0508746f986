/* sum_reduce_avx2.c - the combine with AVX2, FMA and F16C: 32 elements at a time stay in registers from their first term to
 * the stored result.  Each element's chain is the scalar one. */
#include <math.h>

#include "kernels/activation.h"
#include "kernels/cpu/avx2.h"
#include "kernels/ref/views.h"

/* Up to nine short streams side by side are no pattern for hardware prefetchers: each asks this many bytes ahead, which past
 * a row's end is a row that follows. */
enum { LINE = 64, AHEAD = 1024, BLOCK = 32 };

/* Elements i to i + 31 of a row.  Of each 16 of bf16 the even ones come first, then the odd: one load and two operations
 * where widening takes four. */
INLINE void load32(const char *row, mf_dtype dtype, int64_t i, __m256 v[4])
{
    UNROLL(4) for (int j = 0; j < 4; j++) {
        const char *p = row + (dtype == MF_F32 ? 4 : 2) * (i + 8 * j);
        switch (dtype) {
        case MF_BF16:
            if (j % 2 == 0) {
                const __m256i w = _mm256_loadu_si256((const __m256i *)(const void *)p);
                v[j] = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
                v[j + 1] = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000u)));
            }
            break;
        case MF_F16:
            v[j] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
            break;
        default:
            v[j] = _mm256_loadu_ps((const float *)(const void *)p);
            break;
        }
    }
}

/* Even and odd elements of 16 into their order, and back. */
INLINE void interleave(__m256 v[2])
{
    const __m256 a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
    v[0] = _mm256_permute2f128_ps(a, b, 0x20);
    v[1] = _mm256_permute2f128_ps(a, b, 0x31);
}

INLINE void separate(__m256 v[2])
{
    const __m256 a = _mm256_permute2f128_ps(v[0], v[1], 0x20), b = _mm256_permute2f128_ps(v[0], v[1], 0x31);
    v[0] = _mm256_shuffle_ps(a, b, 0x88);
    v[1] = _mm256_shuffle_ps(a, b, 0xdd);
}

INLINE void add_terms(const mf_cpu_terms *terms, mf_dtype dtype, int64_t i, __m256 acc[4])
{
    const int64_t size = dtype == MF_F32 ? 4 : 2;
    for (int32_t k = 0; k < terms->count; k++) {
        const char *row = terms->row[k];
        const __m256 w = _mm256_set1_ps(terms->weight[k]);
        __m256 v[4];
        for (int64_t line = 0; line < BLOCK * size; line += LINE) {
            _mm_prefetch(row + i * size + AHEAD + line, _MM_HINT_T0);
        }
        load32(row, dtype, i, v);
        UNROLL(4) for (int j = 0; j < 4; j++) {
            acc[j] = _mm256_fmadd_ps(w, v[j], acc[j]);
        }
    }
}

/* v, in the order in which load32 gives dtype. */
INLINE void store32(char *row, mf_dtype dtype, int64_t i, const __m256 v[4])
{
    UNROLL(4) for (int j = 0; j < 4; j++) {
        char *p = row + (dtype == MF_F32 ? 4 : 2) * (i + 8 * j);
        switch (dtype) {
        case MF_BF16:
            if (j % 2 == 0) {
                const __m256i pairs = _mm256_or_si256(bf16_words(v[j]), _mm256_slli_epi32(bf16_words(v[j + 1]), 16));
                _mm256_storeu_si256((__m256i *)(void *)p, pairs);
            }
            break;
        case MF_F16:
            _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v[j], _MM_FROUND_TO_NEAREST_INT));
            break;
        default:
            _mm256_storeu_ps((float *)(void *)p, v[j]);
            break;
        }
    }
}

INLINE void combine_block(const mf_cpu_combine *c, mf_dtype dtype, int64_t i)
{
    const __m256 factor = _mm256_set1_ps(c->factor);
    __m256 r[4], s[4], residual[4];
    UNROLL(4) for (int j = 0; j < 4; j++) {
        r[j] = s[j] = _mm256_setzero_ps();
    }
    add_terms(&c->routed, dtype, i, r);
    add_terms(&c->shared, dtype, i, s);
    UNROLL(4) for (int j = 0; j < 4; j++) {
        s[j] = _mm256_fmadd_ps(factor, r[j], s[j]);
    }
    if (dtype == MF_BF16 && c->dtype != MF_BF16) {
        interleave(s);
        interleave(s + 2);
    } else if (dtype != MF_BF16 && c->dtype == MF_BF16) {
        separate(s);
        separate(s + 2);
    }
    if (c->residual) {
        load32(c->residual, c->dtype, i, residual);
        UNROLL(4) for (int j = 0; j < 4; j++) {
            s[j] = _mm256_add_ps(s[j], residual[j]);
        }
    }
    store32(c->out, c->dtype, i, s);
}

static float chain(const mf_cpu_terms *terms, int64_t i)
{
    float acc = 0.0f;
    for (int32_t k = 0; k < terms->count; k++) {
        const mf_tensor row = { .data = (void *)terms->row[k], .dtype = terms->dtype };
        acc = fmaf(terms->weight[k], mf_load_f32(&row, i), acc);
    }
    return acc;
}

/* The last elements, fewer than a block. */
static void combine_rest(const mf_cpu_combine *c, int64_t i, int64_t n)
{
    float v[BLOCK];
    for (int64_t h = 0; h < n; h++) {
        v[h] = fmaf(c->factor, chain(&c->routed, i + h), chain(&c->shared, i + h));
        if (c->residual) {
            const mf_tensor residual = { .data = (void *)c->residual, .dtype = c->dtype };
            v[h] = v[h] + mf_load_f32(&residual, i + h);
        }
    }
    mf_store_row(v, n, c->dtype, (char *)c->out + i * (c->dtype == MF_F32 ? 4 : 2));
}

INLINE void combine_of(const mf_cpu_combine *c, mf_dtype dtype, int64_t first, int64_t n)
{
    int64_t i = first;
    for (; i + BLOCK <= first + n; i += BLOCK) {
        combine_block(c, dtype, i);
    }
    if (i < first + n) {
        combine_rest(c, i, first + n - i);
    }
}

static void combine_avx2(const mf_cpu_combine *c, int64_t first, int64_t n)
{
    switch (c->routed.dtype) { /* constants, so that the loops hold no test */
    case MF_BF16:
        combine_of(c, MF_BF16, first, n);
        break;
    case MF_F16:
        combine_of(c, MF_F16, first, n);
        break;
    default:
        combine_of(c, MF_F32, first, n);
        break;
    }
}

void mf_cpu_sum_reduce_fill_avx2(mf_cpu_kernels *kernels)
{
    kernels->combine = combine_avx2;
}
