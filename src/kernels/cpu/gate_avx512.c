/* gate_avx512.c - the gate's wide steps, sixteen columns at a time.  The bits are the scalar ones: every operation here is
 * the correctly rounded f32 operation of ref/canonical.h in the same order. */
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/gate_wide.h"

enum { ROWS_AHEAD = 2 };

/* ---- canonical values and elementary functions ---- */

/* A subnormal or zero has no bit of the exponent. */
INLINE __m512 canon_zero16(__m512 v)
{
    return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(_mm512_castps_si512(v), _mm512_set1_epi32(0x7f800000)), v);
}

/* v is no NaN. */
INLINE __m512 canon_input16(__m512 v)
{
    return canon_zero16(_mm512_max_ps(_mm512_min_ps(v, _mm512_set1_ps(FLT_MAX)), _mm512_set1_ps(-FLT_MAX)));
}

INLINE __m512 minus_abs16(__m512 v)
{
    return _mm512_or_ps(v, _mm512_set1_ps(-0.0f));
}

INLINE __m512 exp16(__m512 x)
{
    const __m512 n = rint16(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ), exp_reduced16(x, n));
}

INLINE __m512 log1p16(__m512 z)
{
    const __m512 two = _mm512_set1_ps(2.0f);
    const __m512 s = _mm512_div_ps(z, _mm512_add_ps(two, z));
    const __m512 q = _mm512_mul_ps(s, s);
    __m512 p = _mm512_set1_ps(0x1.e1e1e2p-4f);
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0x1.111112p-3f));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0x1.3b13b2p-3f));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0x1.745d18p-3f));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0x1.c71c72p-3f));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0x1.24924ap-2f));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0x1.99999ap-2f));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0x1.555556p-1f));
    p = _mm512_fmadd_ps(p, q, two);
    return _mm512_mask_mov_ps(_mm512_mul_ps(p, s), _mm512_cmp_ps_mask(z, _mm512_set1_ps(0x1p-24f), _CMP_LT_OQ), z);
}

INLINE __m512 sigmoid16(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f), z = exp16(minus_abs16(x));
    const __m512 top = _mm512_mask_mov_ps(z, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), one);
    return _mm512_div_ps(top, _mm512_add_ps(one, z));
}

INLINE __m512 sqrtsoftplus16(__m512 x)
{
    const __m512 positive = _mm512_max_ps(x, _mm512_setzero_ps());
    return _mm512_sqrt_ps(_mm512_add_ps(positive, log1p16(exp16(minus_abs16(x)))));
}

/* ---- reading ---- */

/* Sixteen values from column i on; those from n on are `filler`. */
INLINE __m512 load_some(const mf_tensor *t, int64_t offset, int64_t i, int64_t n, float filler)
{
    const __mmask16 mask = mask16(n - i);
    const char *p = t->data;
    __m512 v;
    switch (t->dtype) {
    case MF_BF16:
        v = f32x16_from_bf16_masked(mask, p + 2 * (offset + i));
        break;
    case MF_F16:
        v = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p + 2 * (offset + i)));
        break;
    default:
        v = _mm512_maskz_loadu_ps(mask, p + 4 * (offset + i));
        break;
    }
    return _mm512_mask_mov_ps(_mm512_set1_ps(filler), mask, v);
}

INLINE void store_flags(bool *flags, __mmask16 mask)
{
    _mm_storeu_si128((__m128i *)(void *)flags, _mm_maskz_set1_epi8(mask, 1));
}

INLINE __mmask16 load_flags(const bool *flags)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)flags);
    return _mm_test_epi8_mask(bytes, bytes);
}

/* v where the expert is good, else +0 */
INLINE __m512 if_good(const mf_gate_row *row, int64_t i, __m512 v)
{
    return _mm512_mask_mov_ps(v, load_flags(row->bad + i), _mm512_setzero_ps());
}

INLINE __m512 bias16(const mf_tensor *bias, int64_t i, int64_t n)
{
    const __m512 b = load_some(bias, 0, i, n, 0.0f);
    return canon_input16(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(b, b, _CMP_ORD_Q), b));
}

static void read_logits_avx512(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *logits = &call->args->router_logits;
    const mf_tensor *bias = call->cfg.bias_domain == MF_BIAS_LOGIT ? bias_of_row(call, row->t) : NULL;
    const int64_t n = call->row_width, end = padded(call);
    const int64_t size = logits->dtype == MF_F32 ? 4 : 2;
    const char *ahead = (const char *)logits->data + (row->t + ROWS_AHEAD) * logits->stride[0] * size;
    unsigned any = 0;
    for (int64_t i = 0; i < end; i += 16) {
        _mm_prefetch(ahead + i * size, _MM_HINT_T0);
        __m512 x = load_some(logits, row->t * logits->stride[0], i, n, NAN);
        const __mmask16 good = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
        any |= ~(unsigned)good & mask16(n - i);
        x = canon_input16(_mm512_maskz_mov_ps(good, x));
        if (bias) {
            x = canon_input16(_mm512_add_ps(x, bias16(bias, i, n)));
        }
        _mm512_storeu_ps(row->x + i, x);
        store_flags(row->bad + i, (__mmask16)~good);
    }
    row->has_nan = any != 0;
}

/* ---- scores and keys ---- */

/* lanesum32's folds: lane l and l xor d for d = 16, 8, 4, 2, 1 */
static void softmax_avx512(mf_gate_row *row, int64_t end)
{
    __m512 most = _mm512_set1_ps(-FLT_MAX);
    for (int64_t i = 0; i < end; i += 16) {
        const __mmask16 good = (__mmask16)~load_flags(row->bad + i);
        most = _mm512_mask_max_ps(most, good, most, _mm512_loadu_ps(row->x + i));
    }
    const __m512 m = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __m512 sums[2] = { _mm512_setzero_ps(), _mm512_setzero_ps() };
    for (int64_t i = 0; i < end; i += 32) {
        UNROLL(2) for (int j = 0; j < 2; j++) {
            const __m512 e = exp16(_mm512_sub_ps(_mm512_loadu_ps(row->x + i + 16 * j), m));
            const __m512 kept = if_good(row, i + 16 * j, e);
            _mm512_storeu_ps(row->a + i + 16 * j, kept);
            sums[j] = _mm512_add_ps(sums[j], kept);
        }
    }
    const __m512 sum = _mm512_set1_ps(sum_lanes16(_mm512_add_ps(sums[0], sums[1])));
    for (int64_t i = 0; i < end; i += 16) { /* 0 / 0 is a NaN that the flags take away */
        const __m512 a = canon_zero16(_mm512_div_ps(_mm512_loadu_ps(row->a + i), sum));
        _mm512_storeu_ps(row->a + i, if_good(row, i, a));
    }
}

static void score_avx512(const mf_gate_call *call, mf_gate_row *row)
{
    const int64_t end = padded(call);
    switch (call->cfg.scoring) {
    case MF_SCORING_TOPK_SOFTMAX:
        return;
    case MF_SCORING_SOFTMAX:
        softmax_avx512(row, end);
        return;
    case MF_SCORING_SIGMOID:
    case MF_SCORING_TOPK_SIGMOID:
        for (int64_t i = 0; i < end; i += 32) { /* two at a time: one divides while the other multiplies */
            UNROLL(2) for (int j = 0; j < 2; j++) {
                const __m512 a = canon_zero16(sigmoid16(_mm512_loadu_ps(row->x + i + 16 * j)));
                _mm512_storeu_ps(row->a + i + 16 * j, if_good(row, i + 16 * j, a));
            }
        }
        return;
    default: /* SQRTSOFTPLUS and its other name: the same bits */
        for (int64_t i = 0; i < end; i += 16) {
            const __m512 a = canon_zero16(sqrtsoftplus16(_mm512_loadu_ps(row->x + i)));
            _mm512_storeu_ps(row->a + i, if_good(row, i, a));
        }
        return;
    }
}

static void make_keys_avx512(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *bias;
    const float *from = key_source(call, row, &bias);
    const int64_t n = call->row_width, end = padded(call);
    for (int64_t i = 0; i < end; i += 16) {
        __m512 key = _mm512_loadu_ps(from + i);
        if (bias) {
            key = canon_zero16(_mm512_add_ps(key, bias16(bias, i, n)));
        }
        _mm512_storeu_ps(row->key + i,
                         _mm512_mask_mov_ps(key, load_flags(row->bad + i), _mm512_set1_ps(-INFINITY)));
        store_flags(row->allowed + i, mask16(n - i));
    }
}

/* ---- choice ---- */

/* GCC 12 may spill 16 bits of a mask and count 32 bits of that memory, so the mask is widened first. */
INLINE int32_t count_lanes(__mmask16 mask)
{
    return __builtin_popcount((uint32_t)_mm512_kunpackw(0, mask));
}

/* Keys as integers in the same order; INT32_MIN, which no key maps to, stands for "not allowed".  Returns the largest of
 * each lane. */
static __m512i order_keys(const mf_gate_row *row, int64_t end, int32_t *order)
{
    const __m512i least = _mm512_set1_epi32(INT32_MIN);
    __m512i most = least;
    for (int64_t i = 0; i < end; i += 16) {
        const __m512i bits = _mm512_loadu_si512(row->key + i);
        const __m512i flip = _mm512_and_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(0x7fffffff));
        const __m512i value = _mm512_mask_xor_epi32(least, load_flags(row->allowed + i), bits, flip);
        _mm512_storeu_si512(order + i, value);
        most = _mm512_max_epi32(most, value);
    }
    return most;
}

/* The k-th largest of 16 lanes, k >= 1. */
static int32_t kth_largest(__m512i v, int32_t k)
{
    int32_t lanes[16];
    __m512i larger[2] = { _mm512_setzero_si512(), _mm512_setzero_si512() };
    _mm512_storeu_si512(lanes, v);
    UNROLL(16) for (int j = 0; j < 16; j++) {
        const __mmask16 less = _mm512_cmplt_epi32_mask(v, _mm512_set1_epi32(lanes[j]));
        larger[j % 2] = _mm512_mask_sub_epi32(larger[j % 2], less, larger[j % 2], _mm512_set1_epi32(-1));
    }
    const __m512i rank = _mm512_add_epi32(larger[0], larger[1]);
    return _mm512_mask_reduce_min_epi32(_mm512_cmplt_epi32_mask(rank, _mm512_set1_epi32(k)), v);
}

/* One after the other: for many columns, or many equal keys. */
static void choose_in_turn(int32_t *order, int64_t end, int32_t top_k, int32_t *id)
{
    for (int32_t k = 0; k < top_k; k++) {
        __m512i m0 = _mm512_set1_epi32(INT32_MIN), m1 = m0;
        for (int64_t i = 0; i < end; i += 32) {
            m0 = _mm512_max_epi32(m0, _mm512_loadu_si512(order + i));
            m1 = _mm512_max_epi32(m1, _mm512_loadu_si512(order + i + 16));
        }
        const int32_t best = _mm512_reduce_max_epi32(_mm512_max_epi32(m0, m1));
        id[k] = -1;
        if (best == INT32_MIN) {
            continue;
        }
        __mmask16 equal = 0;
        int64_t i = -16;
        while (equal == 0) { /* the value is there */
            i += 16;
            equal = _mm512_cmpeq_epi32_mask(_mm512_set1_epi32(best), _mm512_loadu_si512(order + i));
        }
        id[k] = (int32_t)i + __builtin_ctz(equal);
        order[id[k]] = INT32_MIN;
    }
}

/* The k-th largest of the 16 lanes' largest keys is a bound that at least k keys reach, and few more than k: those are
 * collected in the order of their ids, and each one's place is the number of those that go before it. */
static void choose_avx512(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *mask = &call->args->expert_mask;
    const int64_t end = padded(call);
    const int32_t top_k = call->cfg.top_k;
    int32_t order[MF_GATE_MAX_WIDTH + 16], ids[MF_GATE_MAX_WIDTH + 16];
    for (int64_t i = 0; mask->data && i < call->row_width; i++) {
        row->allowed[i] = row->allowed[i] && mf_load_u8(mask, i) != 0;
    }
    const __m512i most = order_keys(row, end, order);
    if (top_k > 16) {
        choose_in_turn(order, end, top_k, row->id);
        return;
    }
    const int32_t kth = kth_largest(most, top_k);
    const __m512i bound = _mm512_set1_epi32(kth == INT32_MIN ? INT32_MIN + 1 : kth);
    const __m512i step = _mm512_set1_epi32(16);
    __m512i id = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t count = 0;
    for (int64_t i = 0; i < end; i += 16) {
        const __mmask16 reach = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(order + i), bound);
        _mm512_storeu_si512(ids + count, _mm512_maskz_compress_epi32(reach, id));
        count += count_lanes(reach);
        id = _mm512_add_epi32(id, step);
    }
    if (count > 16) {
        choose_in_turn(order, end, top_k, row->id);
        return;
    }
    const __mmask16 found = mask16(count);
    const __m512i chosen = _mm512_maskz_loadu_epi32(found, ids);
    const __m512i keys = _mm512_mask_i32gather_epi32(_mm512_set1_epi32(INT32_MIN), found, chosen, order, 4);
    int32_t key[16], sorted[16];
    _mm512_storeu_si512(key, keys);
    for (int64_t j = 0; j < count; j++) {
        const __m512i own = _mm512_set1_epi32(key[j]);
        const __mmask16 before = _mm512_mask_cmpeq_epi32_mask((__mmask16)((1u << j) - 1), keys, own);
        sorted[count_lanes((__mmask16)(_mm512_cmpgt_epi32_mask(keys, own) | before))] = ids[j];
    }
    for (int32_t k = 0; k < top_k; k++) {
        row->id[k] = k < count ? sorted[k] : -1;
    }
}

/* ---- groups ---- */

/* Two sorted pairs per lane join into one: the larger first, then the best of what remains. */
#define JOIN(width, m1, m2, n1, n2)                                                        \
    do {                                                                                   \
        m2 = width##_max_ps(width##_max_ps(m2, n2), width##_min_ps(m1, n1));               \
        m1 = width##_max_ps(m1, n1);                                                       \
    } while (0)

/* The largest and the second largest of `size` keys (a multiple of 16); an equal key counts as second. */
INLINE void top_two(const float *key, int64_t size, float *first, float *second)
{
    __m512 m1 = _mm512_set1_ps(-INFINITY), m2 = m1;
    for (int64_t i = 0; i < size; i += 16) {
        const __m512 k = _mm512_loadu_ps(key + i);
        m2 = _mm512_max_ps(m2, _mm512_min_ps(m1, k));
        m1 = _mm512_max_ps(m1, k);
    }
    __m256 a1 = _mm512_castps512_ps256(m1), b1 = _mm512_extractf32x8_ps(m1, 1);
    __m256 a2 = _mm512_castps512_ps256(m2), b2 = _mm512_extractf32x8_ps(m2, 1);
    JOIN(_mm256, a1, a2, b1, b2);
    __m128 c1 = _mm256_castps256_ps128(a1), d1 = _mm256_extractf128_ps(a1, 1);
    __m128 c2 = _mm256_castps256_ps128(a2), d2 = _mm256_extractf128_ps(a2, 1);
    JOIN(_mm, c1, c2, d1, d2);
    d1 = _mm_movehl_ps(c1, c1);
    d2 = _mm_movehl_ps(c2, c2);
    JOIN(_mm, c1, c2, d1, d2);
    d1 = _mm_movehdup_ps(c1);
    d2 = _mm_movehdup_ps(c2);
    JOIN(_mm, c1, c2, d1, d2);
    *first = _mm_cvtss_f32(c1);
    *second = _mm_cvtss_f32(c2);
}

static void drop_groups_avx512(const mf_gate_call *call, mf_gate_row *row)
{
    const int64_t num_groups = call->cfg.n_group, size = call->row_width / num_groups;
    float score[16] = { 0 };
    if (size % 16 != 0 || num_groups > 16) {
        mf_ref_gate_steps.drop_groups(call, row);
        return;
    }
    for (int64_t g = 0; g < num_groups; g++) {
        float first, second;
        top_two(row->key + g * size, size, &first, &second);
        score[g] = score_of_group(call, first, second);
    }
    const __mmask16 groups = mask16(num_groups);
    const __m512 scores = _mm512_maskz_loadu_ps(groups, score);
    for (int64_t g = 0; g < num_groups; g++) { /* kept: fewer than topk_group go before it */
        const __m512 own = _mm512_set1_ps(score[g]);
        const __mmask16 before = _mm512_mask_cmp_ps_mask((__mmask16)((1u << g) - 1), scores, own, _CMP_EQ_OQ);
        const __mmask16 above = _mm512_mask_cmp_ps_mask(groups, scores, own, _CMP_GT_OQ);
        const __m128i kept = _mm_set1_epi8(count_lanes((__mmask16)(above | before)) < call->cfg.topk_group);
        for (int64_t i = g * size; i < (g + 1) * size; i += 16) {
            _mm_storeu_si128((__m128i *)(void *)(row->allowed + i), kept);
        }
    }
}

static const mf_gate_steps avx512_steps = { .read_logits = read_logits_avx512,
                                            .score = score_avx512,
                                            .make_keys = make_keys_avx512,
                                            .drop_groups = drop_groups_avx512,
                                            .choose = choose_avx512 };

void mf_cpu_gate_fill_avx512(mf_cpu_kernels *kernels)
{
    kernels->gate_steps = &avx512_steps;
}
