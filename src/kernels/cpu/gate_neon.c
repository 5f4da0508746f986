/* gate_neon.c - the gate's wide steps on aarch64, four columns at a time.  The bits are the scalar ones: every
 * operation here is the correctly rounded f32 operation of ref/canonical.h in the same order. */
#include "kernels/cpu/neon.h"
#include "kernels/cpu/gate_wide.h"

/* ---- canonical values and elementary functions ---- */

INLINE float32x4_t canon_zero4(float32x4_t v)
{
    uint32x4_t magnitude = vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x7fffffffu));
    return keep4(vcgtq_u32(magnitude, vdupq_n_u32(0x007fffffu)), v);
}

/* v is no NaN. */
INLINE float32x4_t canon_input4(float32x4_t v)
{
    return canon_zero4(vmaxq_f32(vminq_f32(v, vdupq_n_f32(FLT_MAX)), vdupq_n_f32(-FLT_MAX)));
}

INLINE uint32x4_t is_number4(float32x4_t v)
{
    return vceqq_f32(v, v);
}

INLINE float32x4_t minus_abs4(float32x4_t v)
{
    return vnegq_f32(vabsq_f32(v));
}

INLINE float32x4_t exp4(float32x4_t x)
{
    const float32x4_t magic = vdupq_n_f32(0x1.8p23f);
    float32x4_t n = vsubq_f32(vaddq_f32(vmulq_f32(x, vdupq_n_f32(0x1.715476p+0f)), magic), magic);
    return keep4(vcgeq_f32(x, vdupq_n_f32(-87.0f)), exp_reduced4(x, n));
}

INLINE float32x4_t log1p4(float32x4_t z)
{
    const float32x4_t two = vdupq_n_f32(2.0f);
    float32x4_t s = vdivq_f32(z, vaddq_f32(two, z));
    float32x4_t q = vmulq_f32(s, s);
    float32x4_t p = vdupq_n_f32(0x1.e1e1e2p-4f);
    p = vfmaq_f32(vdupq_n_f32(0x1.111112p-3f), p, q);
    p = vfmaq_f32(vdupq_n_f32(0x1.3b13b2p-3f), p, q);
    p = vfmaq_f32(vdupq_n_f32(0x1.745d18p-3f), p, q);
    p = vfmaq_f32(vdupq_n_f32(0x1.c71c72p-3f), p, q);
    p = vfmaq_f32(vdupq_n_f32(0x1.24924ap-2f), p, q);
    p = vfmaq_f32(vdupq_n_f32(0x1.99999ap-2f), p, q);
    p = vfmaq_f32(vdupq_n_f32(0x1.555556p-1f), p, q);
    p = vfmaq_f32(two, p, q);
    return select4(vcltq_f32(z, vdupq_n_f32(0x1p-24f)), z, vmulq_f32(p, s));
}

INLINE float32x4_t sigmoid4(float32x4_t x)
{
    const float32x4_t one = vdupq_n_f32(1.0f);
    float32x4_t z = exp4(minus_abs4(x));
    return vdivq_f32(select4(vcgezq_f32(x), one, z), vaddq_f32(one, z));
}

INLINE float32x4_t sqrtsoftplus4(float32x4_t x)
{
    float32x4_t positive = vmaxq_f32(x, vdupq_n_f32(0.0f));
    return vsqrtq_f32(vaddq_f32(positive, log1p4(exp4(minus_abs4(x)))));
}

/* ---- reading ---- */

/* Four values from column i on; those from n on are `filler`. */
INLINE float32x4_t load_some(const mf_tensor *t, int64_t offset, int64_t i, int64_t n, float filler)
{
    float v[4];
    if (i + 4 <= n) {
        return load4(t->data, t->dtype, offset + i);
    }
    for (int64_t k = 0; k < 4; k++) {
        v[k] = i + k < n ? mf_load_f32(t, offset + i + k) : filler;
    }
    return vld1q_f32(v);
}

INLINE void store_flags(bool *flags, uint32x4_t mask)
{
    uint16x4_t words = vmovn_u32(mask);
    uint8x8_t bytes = vand_u8(vmovn_u16(vcombine_u16(words, words)), vdup_n_u8(1));
    uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    memcpy(flags, &four, sizeof four);
}

/* All ones where the flag is set. */
INLINE uint32x4_t load_flags(const bool *flags)
{
    uint32_t four;
    memcpy(&four, flags, sizeof four);
    uint32x4_t lanes = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    return vtstq_u32(lanes, lanes);
}

INLINE float32x4_t bias4(const mf_tensor *bias, int64_t i, int64_t n)
{
    float32x4_t b = load_some(bias, 0, i, n, 0.0f);
    return canon_input4(keep4(is_number4(b), b));
}

static void read_logits_neon(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *logits = &call->args->router_logits;
    const mf_tensor *bias = call->cfg.bias_domain == MF_BIAS_LOGIT ? bias_of_row(call, row->t) : NULL;
    const int64_t n = call->row_width, end = padded(call);
    uint32x4_t good_so_far = vdupq_n_u32(0xffffffffu);
    for (int64_t i = 0; i < end; i += 4) {
        float32x4_t x = load_some(logits, row->t * logits->stride[0], i, n, 0.0f);
        uint32x4_t good = is_number4(x);
        good_so_far = vandq_u32(good_so_far, good);
        if (i + 4 > n) { /* columns behind the row are bad experts */
            const int32x4_t lanes = { 0, 1, 2, 3 };
            good = vandq_u32(good, vcltq_s32(lanes, vdupq_n_s32((int32_t)(n - i))));
        }
        x = canon_input4(keep4(good, x));
        if (bias) {
            x = canon_input4(vaddq_f32(x, bias4(bias, i, n)));
        }
        vst1q_f32(row->x + i, x);
        store_flags(row->bad + i, vmvnq_u32(good));
    }
    row->has_nan = vminvq_u32(good_so_far) == 0;
}

/* ---- scores and keys ---- */

/* The sum of 32 lanes in eight registers: lane l and l xor d for d = 16, 8, 4, 2, 1; lane 0 of the result. */
static float fold_lanes(float32x4_t lane[8])
{
    for (int d = 4; d > 0; d /= 2) {
        for (int j = 0; j < d; j++) {
            lane[j] = vaddq_f32(lane[j], lane[j + d]);
        }
    }
    return sum_lanes4(lane[0]);
}

static void softmax_neon(mf_gate_row *row, int64_t end)
{
    const float32x4_t least = vdupq_n_f32(-FLT_MAX);
    float32x4_t most = least;
    for (int64_t i = 0; i < end; i += 4) {
        most = vmaxq_f32(most, select4(load_flags(row->bad + i), least, vld1q_f32(row->x + i)));
    }
    const float32x4_t max = vdupq_n_f32(vmaxvq_f32(most));
    float32x4_t sums[8];
    for (int j = 0; j < 8; j++) {
        sums[j] = vdupq_n_f32(0.0f);
    }
    for (int64_t i = 0; i < end; i += 4) {
        float32x4_t e = exp4(vsubq_f32(vld1q_f32(row->x + i), max));
        e = keep4(vmvnq_u32(load_flags(row->bad + i)), e);
        vst1q_f32(row->a + i, e);
        sums[i / 4 % 8] = vaddq_f32(sums[i / 4 % 8], e);
    }
    const float32x4_t sum = vdupq_n_f32(fold_lanes(sums));
    for (int64_t i = 0; i < end; i += 4) { /* 0 / 0 is a NaN that the flags take away */
        float32x4_t a = canon_zero4(vdivq_f32(vld1q_f32(row->a + i), sum));
        vst1q_f32(row->a + i, keep4(vmvnq_u32(load_flags(row->bad + i)), a));
    }
}

static void score_neon(const mf_gate_call *call, mf_gate_row *row)
{
    const int64_t end = padded(call);
    switch (call->cfg.scoring) {
    case MF_SCORING_TOPK_SOFTMAX:
        return;
    case MF_SCORING_SOFTMAX:
        softmax_neon(row, end);
        return;
    case MF_SCORING_SIGMOID:
    case MF_SCORING_TOPK_SIGMOID:
        for (int64_t i = 0; i < end; i += 4) {
            float32x4_t a = canon_zero4(sigmoid4(vld1q_f32(row->x + i)));
            vst1q_f32(row->a + i, keep4(vmvnq_u32(load_flags(row->bad + i)), a));
        }
        return;
    default: /* SQRTSOFTPLUS and its other name: the same bits */
        for (int64_t i = 0; i < end; i += 4) {
            float32x4_t a = canon_zero4(sqrtsoftplus4(vld1q_f32(row->x + i)));
            vst1q_f32(row->a + i, keep4(vmvnq_u32(load_flags(row->bad + i)), a));
        }
        return;
    }
}

static void make_keys_neon(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *bias;
    const float *from = key_source(call, row, &bias);
    const int64_t n = call->row_width, end = padded(call);
    for (int64_t i = 0; i < end; i += 4) {
        float32x4_t key = vld1q_f32(from + i);
        if (bias) {
            key = canon_zero4(vaddq_f32(key, bias4(bias, i, n)));
        }
        vst1q_f32(row->key + i, select4(load_flags(row->bad + i), vdupq_n_f32(-INFINITY), key));
    }
    memset(row->allowed, 1, (size_t)n);
    memset(row->allowed + n, 0, (size_t)(end - n));
}

/* ---- choice ---- */

/* Keys as integers in the same order; INT32_MIN, which no key maps to, stands for "not allowed". */
static void order_keys(const mf_gate_row *row, int64_t end, int32_t *order)
{
    for (int64_t i = 0; i < end; i += 4) {
        int32x4_t bits = vreinterpretq_s32_f32(vld1q_f32(row->key + i));
        int32x4_t flip = vandq_s32(vshrq_n_s32(bits, 31), vdupq_n_s32(0x7fffffff));
        vst1q_s32(order + i, vbslq_s32(load_flags(row->allowed + i), veorq_s32(bits, flip), vdupq_n_s32(INT32_MIN)));
    }
}

static int32_t largest(const int32_t *order, int64_t end)
{
    int32x4_t most[4];
    UNROLL(4) for (int j = 0; j < 4; j++) {
        most[j] = vdupq_n_s32(INT32_MIN);
    }
    for (int64_t i = 0; i < end; i += 16) {
        UNROLL(4) for (int j = 0; j < 4; j++) {
            most[j] = vmaxq_s32(most[j], vld1q_s32(order + i + 4 * j));
        }
    }
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(most[0], most[1]), vmaxq_s32(most[2], most[3])));
}

static int32_t first_equal(const int32_t *order, int32_t value)
{
    const int32x4_t v = vdupq_n_s32(value);
    for (int32_t i = 0;; i += 8) { /* the value is there */
        uint16x4_t low = vmovn_u32(vceqq_s32(v, vld1q_s32(order + i)));
        uint16x4_t high = vmovn_u32(vceqq_s32(v, vld1q_s32(order + i + 4)));
        uint64_t bytes = vget_lane_u64(vreinterpret_u64_u8(vmovn_u16(vcombine_u16(low, high))), 0);
        if (bytes != 0) {
            return i + __builtin_ctzll(bytes) / 8;
        }
    }
}

static void choose_neon(const mf_gate_call *call, mf_gate_row *row)
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

/* The largest and the second largest of `size` keys (a multiple of 4); an equal key counts as second. */
static void top_two(const float *key, int64_t size, float *first, float *second)
{
    float32x4_t m1 = vdupq_n_f32(-INFINITY), m2 = m1;
    for (int64_t i = 0; i < size; i += 4) {
        float32x4_t k = vld1q_f32(key + i);
        m2 = vmaxq_f32(m2, vminq_f32(m1, k));
        m1 = vmaxq_f32(m1, k);
    }
    /* Two sorted pairs join into one: the larger first, then the best of what remains. */
    float32x2_t a1 = vget_low_f32(m1), b1 = vget_high_f32(m1), a2 = vget_low_f32(m2), b2 = vget_high_f32(m2);
    a2 = vmax_f32(vmax_f32(a2, b2), vmin_f32(a1, b1));
    a1 = vmax_f32(a1, b1);
    b1 = vrev64_f32(a1);
    b2 = vrev64_f32(a2);
    *first = vget_lane_f32(vmax_f32(a1, b1), 0);
    *second = vget_lane_f32(vmax_f32(vmax_f32(a2, b2), vmin_f32(a1, b1)), 0);
}

static void drop_groups_neon(const mf_gate_call *call, mf_gate_row *row)
{
    const int64_t num_groups = call->cfg.n_group, size = call->row_width / num_groups;
    float score[MF_GATE_MAX_WIDTH / 4];
    if (size % 4 != 0) {
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

static const mf_gate_steps neon_steps = { .read_logits = read_logits_neon,
                                          .score = score_neon,
                                          .make_keys = make_keys_neon,
                                          .drop_groups = drop_groups_neon,
                                          .choose = choose_neon };

void mf_cpu_gate_fill_neon(mf_cpu_kernels *kernels)
{
    kernels->gate_steps = &neon_steps;
}
