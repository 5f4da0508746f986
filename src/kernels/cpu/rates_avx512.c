/* rates_avx512.c - what 512-bit registers reach, alone, with VNNI and with BF16: see kernels/bench/rates.h. */
#include <immintrin.h>

#include "kernels/bench/rates.h"
#include "kernels/cpu/unroll.h"

/* Of 32 registers.  The dot products are written as assembly: as intrinsics their sums are copied, or spilled, by some
 * compilers, and the loop would measure that. */
enum { CHAINS = 24 };

static double rate_f32(int64_t rounds)
{
    __m512 acc[CHAINS];
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = _mm512_set1_ps((float)i * 1e-3f);
    }
    const __m512 factor = _mm512_set1_ps(0.999f), addend = _mm512_set1_ps(1e-5f);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL(24)
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = _mm512_fmadd_ps(acc[i], factor, addend);
        }
    }
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"v"(acc[i]));
    }
    return (double)rounds * CHAINS * 16 * 2;
}

static double rate_bf16(int64_t rounds)
{
    __m512 acc[CHAINS];
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = _mm512_set1_ps((float)i);
    }
    const __m512i a = _mm512_set1_epi16(0x3c00), b = _mm512_set1_epi16(0x3b00);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL(24)
        for (int i = 0; i < CHAINS; i++) {
            __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
        }
    }
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"v"(acc[i]));
    }
    return (double)rounds * CHAINS * 32 * 2;
}

static double rate_int8(int64_t rounds)
{
    __m512i acc[CHAINS];
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = _mm512_set1_epi32(i);
    }
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL(24)
        for (int i = 0; i < CHAINS; i++) {
            __asm__("vpdpbusd %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
        }
    }
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"v"(acc[i]));
    }
    return (double)rounds * CHAINS * 64 * 2;
}

static uint64_t read_vectors(const void *data, size_t bytes, size_t ahead)
{
    const char *p = data;
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 512) {
        const __m512i *v = (const __m512i *)(const void *)(p + i);
        if (ahead) {
            for (size_t line = 0; line < 512; line += 64) {
                _mm_prefetch(p + i + ahead + line, _MM_HINT_T0);
            }
        }
        a = _mm512_xor_si512(a, _mm512_xor_si512(_mm512_load_si512(v), _mm512_load_si512(v + 1)));
        b = _mm512_xor_si512(b, _mm512_xor_si512(_mm512_load_si512(v + 2), _mm512_load_si512(v + 3)));
        c = _mm512_xor_si512(c, _mm512_xor_si512(_mm512_load_si512(v + 4), _mm512_load_si512(v + 5)));
        d = _mm512_xor_si512(d, _mm512_xor_si512(_mm512_load_si512(v + 6), _mm512_load_si512(v + 7)));
    }
    a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
    return (uint64_t)_mm_cvtsi128_si64(_mm512_castsi512_si128(a));
}

const mf_rates mf_rates_avx512 = { "avx512", { [MF_RATE_F32] = rate_f32 }, read_vectors };
const mf_rates mf_rates_avx512_vnni = { "avx512_vnni", { [MF_RATE_INT8] = rate_int8 }, NULL };
const mf_rates mf_rates_avx512_bf16 = { "avx512_bf16", { [MF_RATE_BF16] = rate_bf16 }, NULL };
