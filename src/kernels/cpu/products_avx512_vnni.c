/* products_avx512_vnni.c - int8 inputs times int8 and int4 codes with VPDPBUSD: one side of it is unsigned.
 *
 * INT8 weights become unsigned by adding 128, which the sum of the inputs takes back; INT4 codes are unsigned already. */
#include "kernels/cpu/avx512.h"

typedef __m512i ivec;
typedef __m512 fvec;
typedef __m512i weights;

enum { CODES = 64, INT8_TOKENS = 6, INT4_TOKENS = 4, INT8_BIAS = 128 };

INLINE ivec int_zero(void)
{
    return _mm512_setzero_si512();
}

INLINE fvec float_zero(void)
{
    return _mm512_setzero_ps();
}

INLINE ivec load_x(const int8_t *p)
{
    return _mm512_loadu_si512(p);
}

INLINE weights load_int8(const uint8_t *p, int64_t n)
{
    const __m512i w = n == CODES ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(((uint64_t)1 << n) - 1, p);
    return _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80));
}

INLINE ivec dot_int8(ivec acc, weights w, ivec x)
{
    return _mm512_dpbusd_epi32(acc, w, x);
}

/* 32 bytes hold two groups of 32 columns; a group's 16 bytes twice side by side, low nibbles kept in one, high in the other. */
INLINE ivec load_int4(const uint8_t *p, int64_t n)
{
    const __m256i bytes = n == CODES ? _mm256_loadu_si256((const __m256i *)(const void *)p)
                                     : _mm256_maskz_loadu_epi8((__mmask32)(((uint64_t)1 << (n + 1) / 2) - 1), p);
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), _mm512_castsi256_si512(bytes));
    const __m512i moved = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
    return _mm512_and_si512(moved, _mm512_set1_epi8(15));
}

INLINE ivec dot_int4(ivec acc, ivec codes, ivec x)
{
    return _mm512_dpbusd_epi32(acc, codes, x);
}

INLINE ivec lane_sums(ivec x)
{
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), x);
}

INLINE ivec times_minus_8(ivec sums)
{
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 3));
}

INLINE ivec times_minus(ivec sums, ivec zeros)
{
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_mullo_epi32(sums, zeros));
}

INLINE fvec scale_add(fvec scale, ivec sums, fvec acc)
{
    return _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums), acc);
}

INLINE fvec each_32(const float *p)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_broadcast_ss(p)), _mm256_broadcast_ss(p + 1), 1);
}

INLINE ivec each_32_int(const int32_t *p)
{
    return _mm512_inserti32x8(_mm512_castsi256_si512(_mm256_set1_epi32(p[0])), _mm256_set1_epi32(p[1]), 1);
}

INLINE __m256i fold_int(ivec v)
{
    return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

INLINE __m256 fold_float(fvec v)
{
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

INLINE void sum_four_int(ivec a, ivec b, ivec c, ivec d, int32_t *out)
{
    const __m256i ab = _mm256_hadd_epi32(fold_int(a), fold_int(b));
    const __m256i four = _mm256_hadd_epi32(ab, _mm256_hadd_epi32(fold_int(c), fold_int(d)));
    _mm_storeu_si128((__m128i *)(void *)out, _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
}

INLINE void sum_four_float(fvec a, fvec b, fvec c, fvec d, float *out)
{
    const __m256 ab = _mm256_hadd_ps(fold_float(a), fold_float(b));
    const __m256 four = _mm256_hadd_ps(ab, _mm256_hadd_ps(fold_float(c), fold_float(d)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
}

INLINE void load_scales(mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask16(n - i);
        __m512 v;
        if (dtype == MF_F32) {
            v = _mm512_maskz_loadu_ps(mask, p + 4 * i);
        } else if (dtype == MF_F16) {
            v = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p + 2 * i));
        } else {
            v = f32x16_from_bf16_masked(mask, p + 2 * i);
        }
        _mm512_mask_storeu_ps(out + i, mask, v);
    }
}

#include "kernels/cpu/codes_loops.h"

void mf_cpu_products_fill_avx512_vnni(mf_cpu_kernels *k)
{
    k->isa = "avx512_vnni";
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ int8_codes, MF_CPU_FORM_I8 };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] = (mf_cpu_product){ int4_codes, MF_CPU_FORM_I8_SPLIT };
}
