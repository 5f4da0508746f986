/* rates_avx2.c - what 256-bit registers reach: see kernels/bench/rates.h. */
#include <immintrin.h>

#include "kernels/bench/rates.h"
#include "kernels/cpu/unroll.h"

/* 12 chains cover a latency of 4 to 6 cycles at two per cycle and leave registers for the factors. */
static double rate_f32(int64_t rounds)
{
    enum { CHAINS = 12 };
    __m256 acc[CHAINS];
    UNROLL(12)
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = _mm256_set1_ps((float)i * 1e-3f);
    }
    const __m256 factor = _mm256_set1_ps(0.999f), addend = _mm256_set1_ps(1e-5f);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL(12)
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = _mm256_fmadd_ps(acc[i], factor, addend);
        }
    }
    UNROLL(12)
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"x"(acc[i]));
    }
    return (double)rounds * CHAINS * 8 * 2;
}

/* 32 products of bytes: pairs to i16, pairs of these to i32, one sum. */
static double rate_int8(int64_t rounds)
{
    enum { CHAINS = 6 };
    __m256i acc[CHAINS];
    const __m256i ones = _mm256_set1_epi16(1), codes = _mm256_set1_epi8(3);
    __m256i x = _mm256_set1_epi8(5);
    UNROLL(6)
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = _mm256_set1_epi32(i);
    }
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL(6)
        for (int i = 0; i < CHAINS; i++) {
            __asm__ volatile(
                ""
                : "+x"(x)); /* a new value in the compiler's eyes: the product is not taken out of the loop */
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
        }
    }
    UNROLL(6)
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"x"(acc[i]));
    }
    return (double)rounds * CHAINS * 32 * 2;
}

static uint64_t read_vectors(const void *data, size_t bytes, size_t ahead)
{
    const char *p = data;
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 256) {
        const __m256i *v = (const __m256i *)(const void *)(p + i);
        if (ahead) {
            _mm_prefetch(p + i + ahead, _MM_HINT_T0);
            _mm_prefetch(p + i + ahead + 64, _MM_HINT_T0);
            _mm_prefetch(p + i + ahead + 128, _MM_HINT_T0);
            _mm_prefetch(p + i + ahead + 192, _MM_HINT_T0);
        }
        a = _mm256_xor_si256(a, _mm256_xor_si256(_mm256_load_si256(v), _mm256_load_si256(v + 1)));
        b = _mm256_xor_si256(b, _mm256_xor_si256(_mm256_load_si256(v + 2), _mm256_load_si256(v + 3)));
        c = _mm256_xor_si256(c, _mm256_xor_si256(_mm256_load_si256(v + 4), _mm256_load_si256(v + 5)));
        d = _mm256_xor_si256(d, _mm256_xor_si256(_mm256_load_si256(v + 6), _mm256_load_si256(v + 7)));
    }
    a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
    return (uint64_t)_mm256_extract_epi64(a, 0);
}

const mf_rates mf_rates_avx2 = { "avx2", { [MF_RATE_F32] = rate_f32, [MF_RATE_INT8] = rate_int8 }, read_vectors };
