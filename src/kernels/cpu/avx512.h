/* avx512.h - what the AVX-512 files share: sixteen floats at a time, tails by masks.  Needs F, BW, VL and DQ. */
#ifndef MF_KERNELS_CPU_AVX512_H
#define MF_KERNELS_CPU_AVX512_H

#include <immintrin.h>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/unroll.h"

/* The first `left` lanes of 16; all of them from 16 on, none below 1. */
INLINE __mmask16 mask16(int64_t left)
{
    return left >= 16 ? (__mmask16)0xffff : left <= 0 ? (__mmask16)0 : (__mmask16)((1u << left) - 1);
}

INLINE __m512 f32x16_from_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}

INLINE __m512 f32x16_from_bf16_masked(__mmask16 mask, const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}

/* Nearest even; a NaN stays one, quiet: mf_f32_to_bf16, as words of 32 bits.  Without the AVX-512-BF16 instructions, which
 * flush subnormals. */
INLINE __m512i bf16_words16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(_mm512_srli_epi32(sum, 16), nan, high, _mm512_set1_epi32(0x40));
}

INLINE __m256i bf16x16_from_f32(__m512 x)
{
    return _mm512_cvtepi32_epi16(bf16_words16(x));
}

/* Lanes l and l + 8, l and l + 4, l and l + 2, l and l + 1: one order for every compiler. */
INLINE float sum_lanes16(__m512 v)
{
    const __m256 high = _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(v), 1));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* e^x once n = rint(x * log2 e) is known: mf_exp's reduction and polynomial (ref/canonical.h), the same bits. */
INLINE __m512 exp_reduced16(__m512 x, __m512 n)
{
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e400p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 p = _mm512_set1_ps(0x1.a01a02p-13f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.6c16c2p-10f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.111112p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555556p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1p-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

INLINE __m512 rint16(__m512 x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* b[4q + j] holds, in each lane of 16 bytes, word j of its four words of four rows from 4q on; v[j] word j of all rows. */
INLINE void turn_lanes16(const __m512i b[16], __m512i v[16])
{
    UNROLL(16) for (int j = 0; j < 4; j++)
    {
        const __m512i low01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
        const __m512i low23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        const __m512i high01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        const __m512i high23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        v[j] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        v[4 + j] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        v[12 + j] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
}

/* Lane l of v[j] becomes lane j of v[l]. */
INLINE void turn16(__m512i v[16])
{
    __m512i a[16], b[16];
    UNROLL(16) for (int i = 0; i < 16; i += 2)
    {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL(16) for (int i = 0; i < 16; i += 4) /* b[4q + j]: words j of four rows, in each lane of 16 bytes */
    {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    turn_lanes16(b, v);
}

/* pack, split and turn_panel, called by mf_cpu_kernels_fill_avx512. */
void mf_cpu_pack_fill_avx512(mf_cpu_kernels *kernels);

#endif
