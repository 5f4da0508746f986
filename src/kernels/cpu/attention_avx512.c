/* attention_avx512.c - attention's inner kernels with AVX-512 (F, BW, VL, DQ): sixteen queries a vector.  Panels and
 * decoded weights stay with the AVX2 rung. */
#include "kernels/cpu/avx512.h"

typedef __m512 vec;
enum { LANES = 16, SCORE_VECTORS = 4, BLEND_QUERIES = 12 };
#define SCORE_ROWS(vectors) ((vectors) == 4 ? 6 : (vectors) == 2 ? 12 : 10)

#define v_zero() _mm512_setzero_ps()
#define v_set(x) _mm512_set1_ps(x)
#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, v) _mm512_storeu_ps(p, v)
#define v_load_part(p, n) _mm512_maskz_loadu_ps(mask16(n), p)
#define v_store_part(p, v, n) _mm512_mask_storeu_ps(p, mask16(n), v)
#define v_add(a, b) _mm512_add_ps(a, b)
#define v_sub(a, b) _mm512_sub_ps(a, b)
#define v_mul(a, b) _mm512_mul_ps(a, b)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_max(a, b) _mm512_max_ps(a, b)

INLINE vec v_keep_below(int64_t s, const int32_t *limits, vec x)
{
    const __mmask16 below = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(limits), _mm512_set1_epi32((int)s));
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), below, x);
}

INLINE vec v_keep_from(int64_t s, const int32_t *begins, vec x)
{
    const __mmask16 before = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(begins), _mm512_set1_epi32((int)s));
    return _mm512_mask_mov_ps(x, before, _mm512_set1_ps(-INFINITY));
}

/* +0 below -87, -infinity included; NaN stays */
INLINE vec v_exp(vec x)
{
    const __m512 least = _mm512_set1_ps(-87.0f);
    const __mmask16 keep = _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ);
    x = _mm512_max_ps(least, x); /* the second operand when NaN */
    return _mm512_maskz_mov_ps(keep, exp_reduced16(x, rint16(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)))));
}

#include "kernels/cpu/attention_tiles.h"

void mf_cpu_attention_fill_avx512(mf_cpu_kernels *k)
{
    mf_cpu_attention_kernels *a = &k->attention;
    a->scores = scores_of;
    a->softmax = softmax_of;
    a->merge = merge_of;
    a->blend = blend_of;
    a->combine = combine_of;
    a->scale = scale_of;
}
