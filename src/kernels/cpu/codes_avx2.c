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

void mf_cpu_codes_fill_avx2(mf_cpu_kernels *k)
{
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ int8_codes, MF_CPU_FORM_I8 };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] = (mf_cpu_product){ int4_codes, MF_CPU_FORM_I8_SPLIT };
}
