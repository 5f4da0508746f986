/* sum_reduce_avx512.c - the combine with AVX-512: 64 elements at a time stay in registers from their first term to the
 * stored result.  Each element's chain is the scalar one. */
#include "kernels/cpu/avx512.h"

/* Up to nine short streams side by side are no pattern for hardware prefetchers: each asks this many bytes ahead, which past
 * a row's end is a row that follows. */
enum { LINE = 64, AHEAD = 1024, BLOCK = 64 };

/* Elements i to i + 63 of a row, those of the mask, else +0.  Of each 32 of bf16 the even ones come first, then the odd: one
 * load and two operations where widening takes four. */
INLINE void load64(const char *row, mf_dtype dtype, int64_t i, __mmask64 mask, __m512 v[4])
{
    UNROLL(4) for (int j = 0; j < 4; j++) {
        const __mmask16 part = (__mmask16)(mask >> (16 * j));
        switch (dtype) {
        case MF_BF16:
            if (j % 2 == 0) {
                const __m512i w = _mm512_maskz_loadu_epi16((__mmask32)(mask >> (16 * j)), row + 2 * (i + 16 * j));
                v[j] = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
                v[j + 1] = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000u)));
            }
            break;
        case MF_F16:
            v[j] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(part, row + 2 * (i + 16 * j)));
            break;
        default:
            v[j] = _mm512_maskz_loadu_ps(part, row + 4 * (i + 16 * j));
            break;
        }
    }
}

/* Even and odd elements of 32 into their order, and back. */
INLINE void interleave(__m512 v[2])
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512 first = _mm512_permutex2var_ps(v[0], low, v[1]);
    v[1] = _mm512_permutex2var_ps(v[0], _mm512_add_epi32(low, _mm512_set1_epi32(8)), v[1]);
    v[0] = first;
}

INLINE void separate(__m512 v[2])
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 first = _mm512_permutex2var_ps(v[0], even, v[1]);
    v[1] = _mm512_permutex2var_ps(v[0], _mm512_add_epi32(even, _mm512_set1_epi32(1)), v[1]);
    v[0] = first;
}

INLINE void add_terms(const mf_cpu_terms *terms, mf_dtype dtype, int64_t i, __mmask64 mask, __m512 acc[4])
{
    const int64_t size = dtype == MF_F32 ? 4 : 2;
    for (int32_t k = 0; k < terms->count; k++) {
        const char *row = terms->row[k];
        const __m512 w = _mm512_set1_ps(terms->weight[k]);
        __m512 v[4];
        for (int64_t line = 0; line < BLOCK * size; line += LINE) {
            _mm_prefetch(row + i * size + AHEAD + line, _MM_HINT_T0);
        }
        load64(row, dtype, i, mask, v);
        UNROLL(4) for (int j = 0; j < 4; j++) {
            acc[j] = _mm512_fmadd_ps(w, v[j], acc[j]);
        }
    }
}

/* v, in the order in which load64 gives dtype. */
INLINE void store64(char *row, mf_dtype dtype, int64_t i, __mmask64 mask, const __m512 v[4])
{
    UNROLL(4) for (int j = 0; j < 4; j++) {
        const __mmask16 part = (__mmask16)(mask >> (16 * j));
        switch (dtype) {
        case MF_BF16:
            if (j % 2 == 0) {
                const __m512i even = bf16_words16(v[j]), odd = bf16_words16(v[j + 1]);
                const __m512i pairs = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
                _mm512_mask_storeu_epi16(row + 2 * (i + 16 * j), (__mmask32)(mask >> (16 * j)), pairs);
            }
            break;
        case MF_F16:
            _mm256_mask_storeu_epi16(row + 2 * (i + 16 * j), part, _mm512_cvtps_ph(v[j], _MM_FROUND_TO_NEAREST_INT));
            break;
        default:
            _mm512_mask_storeu_ps(row + 4 * (i + 16 * j), part, v[j]);
            break;
        }
    }
}

INLINE void combine_block(const mf_cpu_combine *c, mf_dtype dtype, int64_t i, __mmask64 mask)
{
    const __m512 factor = _mm512_set1_ps(c->factor);
    __m512 r[4], s[4], residual[4];
    UNROLL(4) for (int j = 0; j < 4; j++) {
        r[j] = s[j] = _mm512_setzero_ps();
    }
    add_terms(&c->routed, dtype, i, mask, r);
    add_terms(&c->shared, dtype, i, mask, s);
    UNROLL(4) for (int j = 0; j < 4; j++) {
        s[j] = _mm512_fmadd_ps(factor, r[j], s[j]);
    }
    if (dtype == MF_BF16 && c->dtype != MF_BF16) {
        interleave(s);
        interleave(s + 2);
    } else if (dtype != MF_BF16 && c->dtype == MF_BF16) {
        separate(s);
        separate(s + 2);
    }
    if (c->residual) {
        load64(c->residual, c->dtype, i, mask, residual);
        UNROLL(4) for (int j = 0; j < 4; j++) {
            s[j] = _mm512_add_ps(s[j], residual[j]);
        }
    }
    store64(c->out, c->dtype, i, mask, s);
}

INLINE void combine_of(const mf_cpu_combine *c, mf_dtype dtype, int64_t first, int64_t n)
{
    int64_t i = first;
    for (; i + BLOCK <= first + n; i += BLOCK) {
        combine_block(c, dtype, i, ~(__mmask64)0);
    }
    if (i < first + n) {
        combine_block(c, dtype, i, ((__mmask64)1 << (first + n - i)) - 1);
    }
}

static void combine_avx512(const mf_cpu_combine *c, int64_t first, int64_t n)
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

void mf_cpu_sum_reduce_fill_avx512(mf_cpu_kernels *kernels)
{
    kernels->combine = combine_avx512;
}
