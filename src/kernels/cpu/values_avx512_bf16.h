/* values_avx512_bf16.h - what codes stand for as bf16, in tables that permutations look up. */
#ifndef MF_KERNELS_CPU_VALUES_AVX512_BF16_H
#define MF_KERNELS_CPU_VALUES_AVX512_BF16_H

#include "kernels/cpu/avx512.h"

/* The low and high bytes of an e4m3 magnitude as bf16; 0x7f is a NaN. */
#define LOW(m) ((m) == 0x7f ? 0xc0 : (m) >= 8 ? ((m) << 4) & 0xff : ((SMALL(m)) & 0xff))
#define HIGH(m) ((m) == 0x7f ? 0x7f : (m) >= 8 ? (((m) + (120 << 3)) >> 4) & 0xff : ((SMALL(m)) >> 8))
/* m * 2^-9 for m < 8: exponent of the leading bit, then what stands behind it */
#define SMALL(m) ((m) == 0 ? 0 : (m) == 1 ? 118 << 7 : (m) < 4 ? 119 << 7 | ((m)&1) << 6 : 120 << 7 | ((m)&3) << 5)
#define BYTES4(f, m) (char)f(m), (char)f((m) + 1), (char)f((m) + 2), (char)f((m) + 3)
#define BYTES16(f, m) BYTES4(f, m), BYTES4(f, (m) + 4), BYTES4(f, (m) + 8), BYTES4(f, (m) + 12)
#define BYTES64(f, m) BYTES16(f, m), BYTES16(f, (m) + 16), BYTES16(f, (m) + 32), BYTES16(f, (m) + 48)
static _Alignas(64) const char e4m3_low[128] = { BYTES64(LOW, 0), BYTES64(LOW, 64) };
static _Alignas(64) const char e4m3_high[128] = { BYTES64(HIGH, 0), BYTES64(HIGH, 64) };

/* 64 e4m3 codes as bf16: of each 16 the first eight, and the others. */
INLINE void e4m3_values(__m512i codes, __m512i *first, __m512i *second)
{
    const __m512i low0 = _mm512_load_si512(e4m3_low), low1 = _mm512_load_si512(e4m3_low + 64);
    const __m512i high0 = _mm512_load_si512(e4m3_high), high1 = _mm512_load_si512(e4m3_high + 64);
    const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1); /* looks at seven bits */
    __m512i high = _mm512_permutex2var_epi8(high0, codes, high1);
    high = _mm512_ternarylogic_epi64(high, codes, _mm512_set1_epi8((char)0x80), 0xf8); /* high | (codes & 0x80) */
    *first = _mm512_unpacklo_epi8(low, high);
    *second = _mm512_unpackhi_epi8(low, high);
}

#endif
