/* vectors_avx512.c - AVX-512 (F, BW, VL, DQ): conversions, activations, quantisation, vectors.  Inputs of products are
 * packed in pack_avx512.c. */
#include "kernels/activation.h"
#include "kernels/cpu/avx512.h"

/* ---- elementary functions ---- */

/* exp(x) within 2 ulp; +0 below -87, infinity where f32 ends; NaN stays. */
INLINE __m512 exp16(__m512 x)
{
    const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), x)); /* the second operand when NaN */
    const __m512 n = rint16(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)));
    return _mm512_maskz_mov_ps(keep, exp_reduced16(x, n));
}

INLINE __m512 sigmoid16(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

INLINE __m512 abs16(__m512 x)
{
    return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x);
}

INLINE __m512 with_sign16(__m512 magnitude, __m512 x)
{
    return _mm512_or_ps(magnitude, _mm512_and_ps(x, _mm512_set1_ps(-0.0f)));
}

/* Within 2 ulp: an odd polynomial where 1 - 2 / (e^2x + 1) would cancel. */
INLINE __m512 tanh16(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f), t = abs16(x), s = _mm512_mul_ps(x, x);
    __m512 p = _mm512_set1_ps(-5.70498872745e-3f);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(2.06390887954e-2f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-5.37397155531e-2f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(1.33314422036e-1f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-3.33332819422e-1f));
    const __m512 small = _mm512_fmadd_ps(_mm512_mul_ps(p, s), x, x);
    const __m512 e = exp16(_mm512_add_ps(t, t));
    const __m512 large = with_sign16(_mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one))), x);
    return _mm512_mask_mov_ps(large, _mm512_cmp_ps_mask(t, _mm512_set1_ps(0.625f), _CMP_LT_OQ), small);
}

/* Within 1.5 ulp: a polynomial in x below 475/512, 1 - e^polynomial above. */
INLINE __m512 erf16(__m512 x)
{
    const __m512 t = abs16(x), s = _mm512_mul_ps(x, x);
    __m512 r = _mm512_fmadd_ps(_mm512_set1_ps(-1.72853470e-5f), t, _mm512_set1_ps(3.83197126e-4f));
    const __m512 u = _mm512_fmadd_ps(_mm512_set1_ps(-3.88396438e-3f), t, _mm512_set1_ps(2.42546219e-2f));
    r = _mm512_fmadd_ps(r, s, u);
    r = _mm512_fmadd_ps(r, t, _mm512_set1_ps(-1.06777877e-1f));
    r = _mm512_fmadd_ps(r, t, _mm512_set1_ps(-6.34846687e-1f));
    r = _mm512_fmadd_ps(r, t, _mm512_set1_ps(-1.28717512e-1f));
    r = _mm512_fmsub_ps(r, t, t);
    /* Past 10 the polynomial bends up again; there e^-50 is nothing beside 1. */
    r = _mm512_mask_mov_ps(r, _mm512_cmp_ps_mask(t, _mm512_set1_ps(10.0f), _CMP_GT_OQ), _mm512_set1_ps(-50.0f));
    const __m512 large = with_sign16(_mm512_sub_ps(_mm512_set1_ps(1.0f), exp16(r)), x);
    __m512 p = _mm512_set1_ps(-5.96761703e-4f);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(4.99119423e-3f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-2.67681349e-2f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(1.12819925e-1f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-3.76125336e-1f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(1.28379166e-1f));
    const __m512 small = _mm512_fmadd_ps(p, x, x);
    return _mm512_mask_mov_ps(large, _mm512_cmp_ps_mask(t, _mm512_set1_ps(0.927734375f), _CMP_LT_OQ), small);
}

/* ---- activations ---- */

/* x > limit ? limit : x, so NaN stays: the comparison's second operand is what a NaN selects */
INLINE __m512 min16(__m512 x, float limit)
{
    return _mm512_min_ps(_mm512_set1_ps(limit), x);
}

INLINE __m512 clamp16(__m512 x, float limit)
{
    return _mm512_max_ps(_mm512_set1_ps(-limit), min16(x, limit));
}

INLINE __m512 silu16(__m512 g)
{
    return _mm512_mul_ps(g, sigmoid16(g));
}

/* 0.5 g (1 + f) u */
INLINE __m512 gelu16(__m512 g, __m512 f, __m512 u)
{
    const __m512 half = _mm512_mul_ps(_mm512_set1_ps(0.5f), g);
    return _mm512_mul_ps(_mm512_mul_ps(half, _mm512_add_ps(_mm512_set1_ps(1.0f), f)), u);
}

INLINE __m512 soft_limit16(__m512 x, float limit)
{
    const __m512 l = _mm512_set1_ps(limit);
    return _mm512_mul_ps(l, tanh16(_mm512_div_ps(x, l)));
}

INLINE __m512 activate16(const mf_slot *slot, mf_activation activation, __m512 g, __m512 u)
{
    switch (activation) {
    case MF_ACT_SILU:
        return _mm512_mul_ps(silu16(g), u);
    case MF_ACT_SILU_CLAMP:
        return _mm512_mul_ps(silu16(min16(g, slot->limit)), clamp16(u, slot->limit));
    case MF_ACT_SILU_CLAMP_AFTER:
        return _mm512_mul_ps(min16(silu16(g), slot->limit), clamp16(u, slot->limit));
    case MF_ACT_SWIGLU_OAI:
        g = min16(g, slot->limit);
        u = clamp16(u, slot->limit);
        return _mm512_mul_ps(_mm512_mul_ps(g, sigmoid16(_mm512_mul_ps(_mm512_set1_ps(slot->alpha), g))),
                             _mm512_add_ps(u, _mm512_set1_ps(1.0f)));
    case MF_ACT_GELU_TANH: {
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.044715f), g), g), g);
        return gelu16(g, tanh16(_mm512_mul_ps(_mm512_set1_ps(0x1.988454p-1f), _mm512_add_ps(g, cube))), u);
    }
    case MF_ACT_GELU_ERF:
        return gelu16(g, erf16(_mm512_mul_ps(g, _mm512_set1_ps(0x1.6a09e6p-1f))), u);
    case MF_ACT_SITU:
        return _mm512_mul_ps(_mm512_mul_ps(soft_limit16(g, slot->beta), sigmoid16(g)), soft_limit16(u, slot->lbeta));
    default: { /* RELU2 */
        __m512 r = _mm512_max_ps(_mm512_setzero_ps(), u);
        return _mm512_mul_ps(r, r);
    }
    }
}

INLINE __m512 round16(__m512 x, mf_dtype dtype)
{
    if (dtype == MF_BF16) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16x16_from_f32(x)), 16));
    }
    return dtype == MF_F16 ? _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)) : x;
}

INLINE void activate_as(const mf_slot *slot, mf_activation activation, mf_dtype dtype, const float *g, const float *u,
                        int64_t n, float *h)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask16(n - i);
        const __m512 value =
            activate16(slot, activation, _mm512_maskz_loadu_ps(mask, g + i), _mm512_maskz_loadu_ps(mask, u + i));
        _mm512_mask_storeu_ps(h + i, mask, round16(value, dtype));
    }
}

static void activate_avx512(const mf_slot *slot, mf_dtype dtype, const float *g, const float *u, int64_t n, float *h)
{
    if (slot->activation == MF_ACT_SILU && dtype == MF_BF16) { /* most models' */
        activate_as(slot, MF_ACT_SILU, MF_BF16, g, u, n, h);
    } else {
        activate_as(slot, slot->activation, dtype, g, u, n, h);
    }
}

/* ---- rows ---- */

static void load_row_avx512(const void *data, mf_dtype dtype, int64_t n, float *out)
{
    const uint8_t *p = data;
    if (dtype == MF_F32) {
        memcpy(out, p, (size_t)n * 4);
        return;
    }
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask16(n - i);
        const __m512 value = dtype == MF_BF16 ? f32x16_from_bf16_masked(mask, p + 2 * i)
                                              : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p + 2 * i));
        _mm512_mask_storeu_ps(out + i, mask, value);
    }
}

static void store_row_avx512(const float *x, int64_t n, mf_dtype dtype, void *data)
{
    uint8_t *p = data;
    if (dtype == MF_F32) {
        memcpy(p, x, (size_t)n * 4);
        return;
    }
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask16(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
        _mm256_mask_storeu_epi16(p + 2 * i, mask,
                                 dtype == MF_BF16 ? bf16x16_from_f32(v) : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
}

/* ---- quantisation ---- */

/* v to the nearest e4m3 value, saturating; NaN stays. */
INLINE __m512 round_e4m3(__m512 v)
{
    const __m512 magnitude = _mm512_min_ps(_mm512_set1_ps(448.0f), abs16(v));
    /* below 2^-6 the steps are 2^-9, the ulp of [2^14, 2^15) */
    const __m512 magic = _mm512_set1_ps(16384.0f);
    const __m512 small = _mm512_sub_ps(_mm512_add_ps(magnitude, magic), magic);
    __m512i bits = _mm512_castps_si512(magnitude);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff)));
    bits = _mm512_and_si512(bits, _mm512_set1_epi32((int)0xfff00000u));
    __m512 rounded = _mm512_mask_mov_ps(_mm512_castsi512_ps(bits),
                                        _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ), small);
    rounded = _mm512_mask_mov_ps(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
    return with_sign16(rounded, v);
}

/* mf_quant_amax: the same value, since a maximum has no order */
static float amax_avx512(const float *x, int64_t n)
{
    __m512 m0 = _mm512_setzero_ps(), m1 = m0;
    __mmask16 nan = 0;
    for (int64_t i = 0; i < n; i += 32) {
        const __m512 a = _mm512_maskz_loadu_ps(mask16(n - i), x + i);
        const __m512 b = _mm512_maskz_loadu_ps(mask16(n - i - 16), x + i + 16);
        nan = (__mmask16)(nan | _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q));
        m0 = _mm512_max_ps(m0, abs16(a));
        m1 = _mm512_max_ps(m1, abs16(b));
    }
    return nan ? __builtin_nanf("") : _mm512_reduce_max_ps(_mm512_max_ps(m0, m1));
}

static void quantise_avx512(mf_quant quant, float static_scale, bool e8m0, float *x, int64_t n, float *scale)
{
    const int64_t group = mf_quant_group(quant, n);
    for (int64_t first = 0; first < n; first += group) {
        const int64_t count = n - first < group ? n - first : group;
        const float s = quant == MF_QUANT_FP8_STATIC ? static_scale
                                                     : mf_quant_scale_of(quant, e8m0, amax_avx512(x + first, count));
        const __m512 divisor = _mm512_set1_ps(s);
        for (int64_t i = 0; i < count; i += 16) {
            const __mmask16 mask = mask16(count - i);
            const __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, x + first + i), divisor);
            __m512 out;
            if (quant == MF_QUANT_INT8_TOKEN) { /* a NaN's code is 0: the scale carries it */
                out = clamp16(rint16(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v)), 127.0f);
            } else {
                out = _mm512_mul_ps(round_e4m3(v), divisor);
            }
            _mm512_mask_storeu_ps(x + first + i, mask, out);
        }
        if (quant == MF_QUANT_INT8_TOKEN) {
            *scale = s;
        }
    }
}

/* ---- vectors ---- */

static float dot_avx512(const float *a, const float *b, int64_t n)
{
    __m512 acc[4];
    UNROLL(4) for (int j = 0; j < 4; j++) {
        acc[j] = _mm512_setzero_ps();
    }
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        UNROLL(4) for (int j = 0; j < 4; j++) {
            acc[j] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16 * j), _mm512_loadu_ps(b + i + 16 * j), acc[j]);
        }
    }
    UNROLL(4) for (int j = 0; j < 4; j++) {
        const __mmask16 mask = mask16(n - i - 16 * j);
        acc[j] = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i + 16 * j),
                                       _mm512_maskz_loadu_ps(mask, b + i + 16 * j), acc[j], mask);
    }
    return sum_lanes16(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
}

static void rms_norm_avx512(const float *x, const float *weight, int64_t n, float eps, float *out)
{
    const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(dot_avx512(x, x, n) / (float)n + eps));
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask16(n - i);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(mask, weight + i)));
    }
}

static void add_avx512(float *acc, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask16(n - i);
        _mm512_mask_storeu_ps(
            acc + i, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, acc + i), _mm512_maskz_loadu_ps(mask, x + i)));
    }
}

/* ---- rotary embedding ---- */

/* Pairs lie side by side, as their cosines and sines do. */
static void rope_pairs(float *x, int64_t dim, const float *cos_sin)
{
    for (int64_t i = 0; i < dim; i += 16) {
        const __mmask16 mask = mask16(dim - i);
        const __m512 v = _mm512_maskz_loadu_ps(mask, x + i), t = _mm512_maskz_loadu_ps(mask, cos_sin + i);
        const __m512 by_cos = _mm512_mul_ps(v, _mm512_moveldup_ps(t));
        const __m512 by_sin = _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), _mm512_movehdup_ps(t));
        const __m512 sum = _mm512_add_ps(by_cos, by_sin);
        _mm512_mask_storeu_ps(x + i, mask, _mm512_mask_sub_ps(sum, 0x5555, by_cos, by_sin));
    }
}

/* Pairs lie half a vector apart. */
static void rope_halves(float *x, int64_t dim, const float *cos_sin)
{
    const int64_t half = dim / 2;
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = mask16(half - i);
        const __m512 t0 = _mm512_maskz_loadu_ps(mask16(2 * (half - i)), cos_sin + 2 * i);
        const __m512 t1 = _mm512_maskz_loadu_ps(mask16(2 * (half - i) - 16), cos_sin + 2 * i + 16);
        const __m512 c = _mm512_permutex2var_ps(t0, even, t1), s = _mm512_permutex2var_ps(t0, odd, t1);
        const __m512 a = _mm512_maskz_loadu_ps(mask, x + i), b = _mm512_maskz_loadu_ps(mask, x + half + i);
        _mm512_mask_storeu_ps(x + i, mask, _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s)));
        _mm512_mask_storeu_ps(x + half + i, mask, _mm512_add_ps(_mm512_mul_ps(b, c), _mm512_mul_ps(a, s)));
    }
}

static void rope_avx512(float *x, int64_t num_vectors, int64_t vector_stride, int64_t dim, bool pair,
                        const float *cos_sin)
{
    for (int64_t v = 0; v < num_vectors; v++) {
        if (pair) {
            rope_pairs(x + v * vector_stride, dim, cos_sin);
        } else {
            rope_halves(x + v * vector_stride, dim, cos_sin);
        }
    }
}

/* ---- gated delta net ---- */

static void sigmoid_gate_avx512(float *x, const float *gate, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = mask16(n - i);
        const __m512 factor = sigmoid16(_mm512_maskz_loadu_ps(mask, gate + i));
        _mm512_mask_storeu_ps(x + i, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor));
    }
}

/* As in kernels_avx2.c.  `vectors` of 16 columns, the last of `left`; four run their chains of sums side by side. */
INLINE void delta_columns(const mf_cpu_delta *d, int vectors, int64_t left)
{
    enum { MOST = MF_CPU_DELTA_COLUMNS / 16 };
    const __mmask16 last = mask16(left);
    const __m512 decay = _mm512_set1_ps(d->decay), beta = _mm512_set1_ps(d->beta);
    const float *q = d->q, *k = d->k;
    const int64_t k_dim = d->k_dim, stride = d->state_stride;
    __m512 delta[MOST], out[MOST];
    UNROLL(4) for (int j = 0; j < vectors; j++) {
        delta[j] = out[j] = _mm512_setzero_ps();
    }
    const float *from = d->state;
    for (int64_t i = 0; i < k_dim; i++, from += stride) {
        const __m512 key = _mm512_set1_ps(k[i]);
        UNROLL(4) for (int j = 0; j < vectors; j++) {
            const __mmask16 mask = j + 1 < vectors ? 0xffff : last;
            delta[j] = _mm512_fmadd_ps(key, _mm512_mul_ps(decay, _mm512_maskz_loadu_ps(mask, from + 16 * j)), delta[j]);
        }
    }
    UNROLL(4) for (int j = 0; j < vectors; j++) {
        const __mmask16 mask = j + 1 < vectors ? 0xffff : last;
        delta[j] = _mm512_mul_ps(beta, _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, d->v + 16 * j), delta[j]));
    }
    float *to = d->state;
    for (int64_t i = 0; i < k_dim; i++, to += stride) {
        const __m512 key = _mm512_set1_ps(k[i]), query = _mm512_set1_ps(q[i]);
        UNROLL(4) for (int j = 0; j < vectors; j++) {
            const __mmask16 mask = j + 1 < vectors ? 0xffff : last;
            const __m512 decayed = _mm512_mul_ps(decay, _mm512_maskz_loadu_ps(mask, to + 16 * j));
            const __m512 next = _mm512_fmadd_ps(key, delta[j], decayed);
            _mm512_mask_storeu_ps(to + 16 * j, mask, next);
            out[j] = _mm512_fmadd_ps(query, next, out[j]);
        }
    }
    UNROLL(4) for (int j = 0; j < vectors; j++) {
        _mm512_mask_storeu_ps(d->out + 16 * j, j + 1 < vectors ? 0xffff : last, out[j]);
    }
}

static void delta_step_avx512(const mf_cpu_delta *d)
{
    const int64_t n = d->num_columns;
    if (n == MF_CPU_DELTA_COLUMNS) {
        delta_columns(d, 4, 16);
    } else if (n > 48) {
        delta_columns(d, 4, n - 48);
    } else if (n > 32) {
        delta_columns(d, 3, n - 32);
    } else if (n > 16) {
        delta_columns(d, 2, n - 16);
    } else {
        delta_columns(d, 1, n);
    }
}

void mf_cpu_kernels_fill_avx512(mf_cpu_kernels *k)
{
    k->isa = "avx512";
    k->activate = activate_avx512;
    k->load_row = load_row_avx512;
    k->store_row = store_row_avx512;
    k->quantise = quantise_avx512;
    k->rms_norm = rms_norm_avx512;
    k->delta_step = delta_step_avx512;
    k->delta_columns = MF_CPU_DELTA_COLUMNS;
    k->sigmoid_gate = sigmoid_gate_avx512;
    k->add = add_avx512;
    k->rope = rope_avx512;
    mf_cpu_products_fill_avx512(k);
    mf_cpu_pack_fill_avx512(k);
    mf_cpu_attention_fill_avx512(k);
    mf_cpu_gate_fill_avx512(k);
    mf_cpu_sum_reduce_fill_avx512(k);
}
