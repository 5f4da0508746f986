/* products_avx512_vnni.c - int8 inputs times int8 codes with VPDPBUSD: one side of it is unsigned.  Weights become so by
 * adding 128, which the sum of the inputs takes back.  int4 codes have a file of their own (quads_avx512_vnni.c). */
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/lanes.h"

typedef __m512i ivec;
typedef __m512i weights;

enum { CODES = 64, INT8_TOKENS = 6, INT8_BIAS = 128 };

INLINE ivec int_zero(void)
{
    return _mm512_setzero_si512();
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

INLINE __m256i fold_int(ivec v)
{
    return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

INLINE void sum_four_int(ivec a, ivec b, ivec c, ivec d, int32_t *out)
{
    const __m256i ab = _mm256_hadd_epi32(fold_int(a), fold_int(b));
    const __m256i four = _mm256_hadd_epi32(ab, _mm256_hadd_epi32(fold_int(c), fold_int(d)));
    _mm_storeu_si128((__m128i *)(void *)out, _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
}

#include "kernels/cpu/codes_loops.h"
#include "kernels/cpu/int8_rows.h"

/* Sums are exact, so any order gives the same bits: sixteen rows as lanes are faster from so many tokens on. */
static void int8_avx512_vnni(const mf_cpu_tile *tile)
{
    enum { MANY = 20 };
    if (tile->num_tokens >= MANY) {
        mf_cpu_lanes_int8_codes(tile);
        return;
    }
    int8_rows_work work;
    work.tile = tile;
    for (int64_t t = 0; t < tile->num_tokens; t++) {
        work.x[t] = tile->x[t];
        work.bias[t] = (int32_t)((uint32_t)sum_of_input(tile->x[t], tile->w->k) * 128u);
    }
    const int64_t done = multiply_int8_tile(&work);
    if (done < tile->num_rows) {
        mf_cpu_tile rest = *tile;
        rest.first_row += done;
        rest.num_rows -= done;
        rest.out += done;
        rest.next = NULL;
        int8_codes(&rest);
    }
}

void mf_cpu_products_fill_avx512_vnni(mf_cpu_kernels *k)
{
    k->isa = "avx512_vnni";
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ int8_avx512_vnni, MF_CPU_FORM_I8 };
    mf_cpu_quads_fill_avx512_vnni(k);
}
