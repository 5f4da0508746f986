/* products_avx512.h - what the AVX-512 products share: vectors of sums, cut loads of codes, scales. */
#ifndef MF_KERNELS_CPU_PRODUCTS_AVX512_H
#define MF_KERNELS_CPU_PRODUCTS_AVX512_H

#include <immintrin.h>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/unroll.h"

typedef __m512 vec;

enum { ROWS = 4, SCALES_AT_ONCE = 16 };

INLINE vec vec_zero(void)
{
    return _mm512_setzero_ps();
}

INLINE vec vec_load(const void *p)
{
    return _mm512_load_ps(p);
}

/* Lane l and l + 8, then 4, 2, 1. */
INLINE void sum_four(vec a, vec b, vec c, vec d, float out[4])
{
    const vec ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const vec cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    vec v = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, v)));
}

INLINE __mmask16 first16(int64_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u);
}

/* ---- n columns of codes; bytes past them are not read and count as 0 ---- */

/* 32 of 16 bits, 32 bytes, 32 of 4 bits */
INLINE __m512i load_words(const uint8_t *p, int64_t n)
{
    return n >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1u), p);
}

INLINE __m256i load_bytes(const uint8_t *p, int64_t n)
{
    return n >= 32 ? _mm256_loadu_si256((const __m256i *)(const void *)p)
                   : _mm256_maskz_loadu_epi8((__mmask32)((1ull << n) - 1u), p);
}

INLINE __m128i load_pairs(const uint8_t *p, int64_t n)
{
    return n >= 32 ? _mm_loadu_si128((const __m128i *)(const void *)p) : _mm_maskz_loadu_epi8(first16((n + 1) / 2), p);
}

/* The scales that `mask` names, 0 for the others, which are not read. */
INLINE __m512 scales_as_floats(mf_dtype dtype, const uint8_t *p, __mmask16 mask)
{
    switch (dtype) {
    case MF_F8_E8M0: {
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p));
        __m512i bits = _mm512_slli_epi32(codes, 23);
        bits = _mm512_mask_mov_epi32(bits, _mm512_mask_testn_epi32_mask(mask, codes, codes), _mm512_set1_epi32(0x00400000));
        bits = _mm512_mask_mov_epi32(bits, _mm512_cmpeq_epi32_mask(codes, _mm512_set1_epi32(255)),
                                     _mm512_set1_epi32(0x7fc00000));
        return _mm512_castsi512_ps(bits);
    }
    case MF_BF16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
    case MF_F16:
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
    default:
        return _mm512_maskz_loadu_ps(mask, p);
    }
}

/* n <= 16 scales; lanes past n are not read. */
INLINE void load_scales(mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    _mm512_storeu_ps(out, scales_as_floats(dtype, p, first16(n)));
}

#endif
