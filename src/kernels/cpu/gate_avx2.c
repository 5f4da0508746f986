/* gate_avx2.c - the gate's wide steps, eight columns at a time.  The bits are the scalar ones: every operation here is the
 * correctly rounded f32 operation of ref/canonical.h in the same order. */
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/gate_wide.h"

enum { ROWS_AHEAD = 2 };

/* ---- canonical values and elementary functions ---- */

INLINE __m256 canon_zero8(__m256 v)
{
    __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x007fffff))));
}

/* v is no NaN. */
INLINE __m256 canon_input8(__m256 v)
{
    v = _mm256_max_ps(_mm256_min_ps(v, _mm256_set1_ps(FLT_MAX)), _mm256_set1_ps(-FLT_MAX));
    return canon_zero8(v);
}

INLINE __m256 is_number8(__m256 v)
{
    return _mm256_cmp_ps(v, v, _CMP_ORD_Q);
}

INLINE __m256 minus_abs8(__m256 v)
{
    return _mm256_or_ps(v, _mm256_set1_ps(-0.0f));
}

INLINE __m256 exp8(__m256 x)
{
    const __m256 magic = _mm256_set1_ps(0x1.8p23f);
    __m256 n = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)), magic), magic);
    return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ), exp_reduced8(x, n));
}

INLINE __m256 log1p8(__m256 z)
{
    const __m256 two = _mm256_set1_ps(2.0f);
    __m256 s = _mm256_div_ps(z, _mm256_add_ps(two, z));
    __m256 q = _mm256_mul_ps(s, s);
    __m256 p = _mm256_set1_ps(0x1.e1e1e2p-4f);
    p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0x1.111112p-3f));
    p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0x1.3b13b2p-3f));
    p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0x1.745d18p-3f));
    p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0x1.c71c72p-3f));
    p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0x1.24924ap-2f));
    p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0x1.99999ap-2f));
    p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0x1.555556p-1f));
    p = _mm256_fmadd_ps(p, q, two);
    return _mm256_blendv_ps(_mm256_mul_ps(p, s), z, _mm256_cmp_ps(z, _mm256_set1_ps(0x1p-24f), _CMP_LT_OQ));
}

INLINE __m256 sigmoid8(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 z = exp8(minus_abs8(x));
    __m256 top = _mm256_blendv_ps(z, one, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
    return _mm256_div_ps(top, _mm256_add_ps(one, z));
}

INLINE __m256 sqrtsoftplus8(__m256 x)
{
    __m256 positive = _mm256_max_ps(x, _mm256_setzero_ps());
    return _mm256_sqrt_ps(_mm256_add_ps(positive, log1p8(exp8(minus_abs8(x)))));
}

/* ---- reading ---- */

INLINE __m256 load8(const char *p, mf_dtype dtype, int64_t i)
{
    switch (dtype) {
    case MF_BF16: {
        __m128i words = _mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
    }
    case MF_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i)));
    default:
        return _mm256_loadu_ps((const float *)(const void *)(p + 4 * i));
    }
}

/* Eight values from column i on; those from n on are `filler`. */
INLINE __m256 load_some(const mf_tensor *t, int64_t offset, int64_t i, int64_t n, float filler)
{
    float v[8];
    if (i + 8 <= n) {
        return load8(t->data, t->dtype, offset + i);
    }
    for (int64_t k = 0; k < 8; k++) {
        v[k] = i + k < n ? mf_load_f32(t, offset + i + k) : filler;
    }
    return _mm256_loadu_ps(v);
}

INLINE void store_flags(bool *flags, __m256 mask)
{
    __m256i lanes = _mm256_castps_si256(mask);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    _mm_storel_epi64((__m128i *)(void *)flags, _mm_and_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(1)));
}

/* All ones where the flag is set. */
INLINE __m256 load_flags(const bool *flags)
{
    __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)flags));
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(lanes, _mm256_setzero_si256()));
}

INLINE __m256 bias8(const mf_tensor *bias, int64_t i, int64_t n)
{
    __m256 b = load_some(bias, 0, i, n, 0.0f);
    return canon_input8(_mm256_and_ps(b, is_number8(b)));
}

static void read_logits_avx2(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *logits = &call->args->router_logits;
    const mf_tensor *bias = call->cfg.bias_domain == MF_BIAS_LOGIT ? bias_of_row(call, row->t) : NULL;
    const int64_t n = call->row_width, end = padded(call);
    const int64_t size = logits->dtype == MF_F32 ? 4 : 2;
    const char *ahead = (const char *)logits->data + (row->t + ROWS_AHEAD) * logits->stride[0] * size;
    int any = 0;
    for (int64_t i = 0; i < end; i += 8) {
        _mm_prefetch(ahead + i * size, _MM_HINT_T0);
        __m256 x = load_some(logits, row->t * logits->stride[0], i, n, NAN);
        __m256 good = is_number8(x);
        int count = n - i < 8 ? (int)(n > i ? n - i : 0) : 8;
        any |= ~_mm256_movemask_ps(good) & ((1 << count) - 1);
        x = canon_input8(_mm256_and_ps(x, good));
        if (bias) {
            x = canon_input8(_mm256_add_ps(x, bias8(bias, i, n)));
        }
        _mm256_storeu_ps(row->x + i, x);
        store_flags(row->bad + i, _mm256_xor_ps(good, _mm256_castsi256_ps(_mm256_set1_epi32(-1))));
    }
    row->has_nan = any != 0;
}

/* ---- scores and keys ---- */

/* The sum of 32 lanes in four registers: lane l and l xor d for d = 16, 8, 4, 2, 1; lane 0 of the result. */
static float fold_lanes(const __m256 lane[4])
{
    __m256 v = _mm256_add_ps(_mm256_add_ps(lane[0], lane[2]), _mm256_add_ps(lane[1], lane[3]));
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));
}

static void softmax_avx2(mf_gate_row *row, int64_t end)
{
    const __m256 least = _mm256_set1_ps(-FLT_MAX);
    __m256 most = least;
    for (int64_t i = 0; i < end; i += 8) {
        most = _mm256_max_ps(most, _mm256_blendv_ps(_mm256_loadu_ps(row->x + i), least, load_flags(row->bad + i)));
    }
    float lanes[8], m = -FLT_MAX;
    _mm256_storeu_ps(lanes, most);
    for (int i = 0; i < 8; i++) {
        m = lanes[i] > m ? lanes[i] : m;
    }
    __m256 sums[4] = { _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps() };
    for (int64_t i = 0; i < end; i += 8) {
        __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(row->x + i), _mm256_set1_ps(m)));
        e = _mm256_andnot_ps(load_flags(row->bad + i), e);
        _mm256_storeu_ps(row->a + i, e);
        sums[i / 8 % 4] = _mm256_add_ps(sums[i / 8 % 4], e);
    }
    const __m256 sum = _mm256_set1_ps(fold_lanes(sums));
    for (int64_t i = 0; i < end; i += 8) { /* 0 / 0 is a NaN that the flags take away */
        __m256 a = canon_zero8(_mm256_div_ps(_mm256_loadu_ps(row->a + i), sum));
        _mm256_storeu_ps(row->a + i, _mm256_andnot_ps(load_flags(row->bad + i), a));
    }
}

static void score_avx2(const mf_gate_call *call, mf_gate_row *row)
{
    const int64_t end = padded(call);
    switch (call->cfg.scoring) {
    case MF_SCORING_TOPK_SOFTMAX:
        return;
    case MF_SCORING_SOFTMAX:
        softmax_avx2(row, end);
        return;
    case MF_SCORING_SIGMOID:
    case MF_SCORING_TOPK_SIGMOID:
        for (int64_t i = 0; i < end; i += 8) {
            __m256 a = canon_zero8(sigmoid8(_mm256_loadu_ps(row->x + i)));
            _mm256_storeu_ps(row->a + i, _mm256_andnot_ps(load_flags(row->bad + i), a));
        }
        return;
    default: /* SQRTSOFTPLUS and its other name: the same bits */
        for (int64_t i = 0; i < end; i += 8) {
            __m256 a = canon_zero8(sqrtsoftplus8(_mm256_loadu_ps(row->x + i)));
            _mm256_storeu_ps(row->a + i, _mm256_andnot_ps(load_flags(row->bad + i), a));
        }
        return;
    }
}

static void make_keys_avx2(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *bias;
    const float *from = key_source(call, row, &bias);
    const int64_t n = call->row_width, end = padded(call);
    for (int64_t i = 0; i < end; i += 8) {
        __m256 key = _mm256_loadu_ps(from + i);
        if (bias) {
            key = canon_zero8(_mm256_add_ps(key, bias8(bias, i, n)));
        }
        _mm256_storeu_ps(row->key + i, _mm256_blendv_ps(key, _mm256_set1_ps(-INFINITY), load_flags(row->bad + i)));
    }
    memset(row->allowed, 1, (size_t)n);
    memset(row->allowed + n, 0, (size_t)(end - n));
}

/* ---- choice ---- */

/* Keys as integers in the same order; INT32_MIN, which no key maps to, stands for "not allowed". */
static void order_keys(const mf_gate_row *row, int64_t end, int32_t *order)
{
    for (int64_t i = 0; i < end; i += 8) {
        __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(row->key + i));
        __m256i flip = _mm256_and_si256(_mm256_srai_epi32(bits, 31), _mm256_set1_epi32(0x7fffffff));
        __m256i allowed = _mm256_castps_si256(load_flags(row->allowed + i));
        __m256i value = _mm256_blendv_epi8(_mm256_set1_epi32(INT32_MIN), _mm256_xor_si256(bits, flip), allowed);
        _mm256_storeu_si256((__m256i *)(void *)(order + i), value);
    }
}

static int32_t largest(const int32_t *order, int64_t end)
{
    __m256i m0 = _mm256_set1_epi32(INT32_MIN), m1 = m0;
    for (int64_t i = 0; i < end; i += 16) {
        m0 = _mm256_max_epi32(m0, _mm256_loadu_si256((const __m256i *)(const void *)(order + i)));
        m1 = _mm256_max_epi32(m1, _mm256_loadu_si256((const __m256i *)(const void *)(order + i + 8)));
    }
    m0 = _mm256_max_epi32(m0, m1);
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(m0), _mm256_extracti128_si256(m0, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1));
    return _mm_cvtsi128_si32(h);
}

static int32_t first_equal(const int32_t *order, int32_t value)
{
    const __m256i v = _mm256_set1_epi32(value);
    for (int32_t i = 0;; i += 8) { /* the value is there */
        __m256i equal = _mm256_cmpeq_epi32(v, _mm256_loadu_si256((const __m256i *)(const void *)(order + i)));
        int mask = _mm256_movemask_ps(_mm256_castsi256_ps(equal));
        if (mask != 0) {
            return i + __builtin_ctz((unsigned)mask);
        }
    }
}

static void choose_avx2(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *mask = &call->args->expert_mask;
    const int64_t end = padded(call);
    int32_t order[MF_GATE_MAX_WIDTH];
    for (int64_t i = 0; mask->data && i < call->row_width; i++) {
        row->allowed[i] = row->allowed[i] && mf_load_u8(mask, i) != 0;
    }
    order_keys(row, end, order);
    for (int32_t k = 0; k < call->cfg.top_k; k++) {
        int32_t best = largest(order, end);
        row->id[k] = -1;
        if (best != INT32_MIN) {
            row->id[k] = first_equal(order, best);
            order[row->id[k]] = INT32_MIN;
        }
    }
}

/* ---- groups ---- */

/* The largest and the second largest of `size` keys (a multiple of 8); an equal key counts as second. */
static void top_two(const float *key, int64_t size, float *first, float *second)
{
    __m256 m1 = _mm256_set1_ps(-INFINITY), m2 = m1;
    for (int64_t i = 0; i < size; i += 8) {
        __m256 k = _mm256_loadu_ps(key + i);
        m2 = _mm256_max_ps(m2, _mm256_min_ps(m1, k));
        m1 = _mm256_max_ps(m1, k);
    }
    /* Two sorted pairs join into one: the larger first, then the best of what remains. */
    __m128 a1 = _mm256_castps256_ps128(m1), b1 = _mm256_extractf128_ps(m1, 1);
    __m128 a2 = _mm256_castps256_ps128(m2), b2 = _mm256_extractf128_ps(m2, 1);
    a2 = _mm_max_ps(_mm_max_ps(a2, b2), _mm_min_ps(a1, b1));
    a1 = _mm_max_ps(a1, b1);
    b1 = _mm_movehl_ps(a1, a1);
    b2 = _mm_movehl_ps(a2, a2);
    a2 = _mm_max_ps(_mm_max_ps(a2, b2), _mm_min_ps(a1, b1));
    a1 = _mm_max_ps(a1, b1);
    b1 = _mm_shuffle_ps(a1, a1, 1);
    b2 = _mm_shuffle_ps(a2, a2, 1);
    *first = _mm_cvtss_f32(_mm_max_ss(a1, b1));
    *second = _mm_cvtss_f32(_mm_max_ss(_mm_max_ss(a2, b2), _mm_min_ss(a1, b1)));
}

static void drop_groups_avx2(const mf_gate_call *call, mf_gate_row *row)
{
    const int64_t num_groups = call->cfg.n_group, size = call->row_width / num_groups;
    float score[MF_GATE_MAX_WIDTH / 8];
    if (size % 8 != 0) {
        mf_ref_gate_steps.drop_groups(call, row);
        return;
    }
    for (int64_t g = 0; g < num_groups; g++) {
        float first, second;
        top_two(row->key + g * size, size, &first, &second);
        score[g] = score_of_group(call, first, second);
    }
    allow_best_groups(call, score, row);
}

static const mf_gate_steps avx2_steps = { .read_logits = read_logits_avx2,
                                          .score = score_avx2,
                                          .make_keys = make_keys_avx2,
                                          .drop_groups = drop_groups_avx2,
                                          .choose = choose_avx2 };

void mf_cpu_gate_fill_avx2(mf_cpu_kernels *kernels)
{
    kernels->gate_steps = &avx2_steps;
}
