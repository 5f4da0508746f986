/* kernels_avx2.c - AVX2, FMA and F16C: conversions, activations, quantisation, vectors.  Products are in products_avx2.c.
 */
#include "kernels/activation.h"
#include "kernels/cpu/avx2.h"

/* exp(x) within 2 ulp; +0 below -87, infinity from 88.4 on; NaN stays. */
INLINE __m256 exp8(__m256 x)
{
    __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f),
                      _mm256_min_ps(_mm256_set1_ps(89.0f), x)); /* the second operand when NaN */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_and_ps(exp_reduced8(x, n), keep);
}

INLINE __m256 sigmoid8(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(one, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

/* x > limit ? limit : x, so NaN stays: the comparison's second operand is what a NaN selects */
INLINE __m256 min8(__m256 x, float limit)
{
    return _mm256_min_ps(_mm256_set1_ps(limit), x);
}

INLINE __m256 clamp8(__m256 x, float limit)
{
    return _mm256_max_ps(_mm256_set1_ps(-limit), min8(x, limit));
}

INLINE __m128i bf16_from_f32(__m256 x)
{
    const __m256i words = bf16_words(x);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

INLINE __m128i f16_from_f32(__m256 x)
{
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
}

INLINE __m256 round8(__m256 x, mf_dtype dtype)
{
    if (dtype == MF_BF16) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16_from_f32(x)), 16));
    }
    return dtype == MF_F16 ? _mm256_cvtph_ps(f16_from_f32(x)) : x;
}

INLINE __m256 activate8(const mf_slot *slot, __m256 g, __m256 u)
{
    switch (slot->activation) {
    case MF_ACT_SILU:
        return _mm256_mul_ps(_mm256_mul_ps(g, sigmoid8(g)), u);
    case MF_ACT_SILU_CLAMP:
        g = min8(g, slot->limit);
        return _mm256_mul_ps(_mm256_mul_ps(g, sigmoid8(g)), clamp8(u, slot->limit));
    case MF_ACT_SILU_CLAMP_AFTER:
        return _mm256_mul_ps(min8(_mm256_mul_ps(g, sigmoid8(g)), slot->limit), clamp8(u, slot->limit));
    default: /* SWIGLU_OAI */
        g = min8(g, slot->limit);
        u = clamp8(u, slot->limit);
        return _mm256_mul_ps(_mm256_mul_ps(g, sigmoid8(_mm256_mul_ps(_mm256_set1_ps(slot->alpha), g))),
                             _mm256_add_ps(u, _mm256_set1_ps(1.0f)));
    }
}

static void activate_avx2(const mf_slot *slot, mf_dtype dtype, const float *g, const float *u, int64_t n, float *h)
{
    if (slot->activation > MF_ACT_SWIGLU_OAI) {
        for (int64_t i = 0; i < n; i++) {
            h[i] = mf_round_to_dtype(mf_activate(slot, g[i], u[i]), dtype);
        }
        return;
    }
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(h + i, round8(activate8(slot, _mm256_loadu_ps(g + i), _mm256_loadu_ps(u + i)), dtype));
    }
    if (i < n) {
        float last[8];
        _mm256_storeu_ps(last, round8(activate8(slot, load_tail(g + i, n - i), load_tail(u + i, n - i)), dtype));
        memcpy(h + i, last, (size_t)(n - i) * sizeof(float));
    }
}

static void load_row_avx2(const void *data, mf_dtype dtype, int64_t n, float *out)
{
    const uint8_t *p = data;
    int64_t i = 0;
    if (dtype == MF_BF16) {
        for (; i + 8 <= n; i += 8) {
            _mm256_storeu_ps(out + i, f32_from_bf16(p + 2 * i));
        }
    } else if (dtype == MF_F16) {
        for (; i + 8 <= n; i += 8) {
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i))));
        }
    }
    mf_load_row(p + i * (dtype == MF_F32 ? 4 : 2), dtype, n - i, out + i);
}

static void store_row_avx2(const float *x, int64_t n, mf_dtype dtype, void *data)
{
    uint8_t *p = data;
    int64_t i = 0;
    if (dtype != MF_F32) {
        for (; i + 8 <= n; i += 8) {
            __m256 v = _mm256_loadu_ps(x + i);
            _mm_storeu_si128((__m128i *)(void *)(p + 2 * i), dtype == MF_BF16 ? bf16_from_f32(v) : f16_from_f32(v));
        }
    }
    mf_store_row(x + i, n - i, dtype, p + i * (dtype == MF_F32 ? 4 : 2));
}

/* v to the nearest e4m3 value, saturating; NaN stays. */
INLINE __m256 round_e4m3(__m256 v)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f);
    __m256 sign = _mm256_and_ps(v, sign_bit);
    __m256 mag = _mm256_min_ps(_mm256_set1_ps(448.0f), _mm256_andnot_ps(sign_bit, v));
    /* below 2^-6 the steps are 2^-9, the ulp of [2^14, 2^15) */
    const __m256 magic = _mm256_set1_ps(16384.0f);
    __m256 small = _mm256_sub_ps(_mm256_add_ps(mag, magic), magic);
    __m256i bits = _mm256_castps_si256(mag);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
    bits = _mm256_and_si256(bits, _mm256_set1_epi32((int)0xfff00000u));
    __m256 rounded =
        _mm256_blendv_ps(_mm256_castsi256_ps(bits), small, _mm256_cmp_ps(mag, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ));
    rounded = _mm256_blendv_ps(rounded, v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_or_ps(rounded, sign);
}

/* mf_quant_amax: the same value, since a maximum has no order */
static float amax_avx2(const float *x, int64_t n)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f);
    __m256 m0 = _mm256_setzero_ps(), m1 = m0, nan = m0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
        m0 = _mm256_max_ps(m0, _mm256_andnot_ps(sign_bit, a));
        m1 = _mm256_max_ps(m1, _mm256_andnot_ps(sign_bit, b));
    }
    const float rest = mf_quant_amax(x + i, n - i);
    m0 = _mm256_max_ps(m0, m1);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(m0), _mm256_extractf128_ps(m0, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    const float most = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    if (_mm256_movemask_ps(nan) != 0) {
        return __builtin_nanf("");
    }
    return most > rest ? most : rest; /* a NaN among the rest stays */
}

static void quantise_avx2(mf_quant quant, float static_scale, bool e8m0, float *x, int64_t n, float *scale)
{
    const int64_t group = mf_quant_group(quant, n);
    for (int64_t first = 0; first < n; first += group) {
        const int64_t end = n - first < group ? n : first + group;
        const float s = quant == MF_QUANT_FP8_STATIC ? static_scale
                                                     : mf_quant_scale_of(quant, e8m0, amax_avx2(x + first, end - first));
        const __m256 divisor = _mm256_set1_ps(s);
        int64_t i = first;
        for (; i + 8 <= end; i += 8) {
            __m256 v = _mm256_div_ps(_mm256_loadu_ps(x + i), divisor);
            if (quant != MF_QUANT_INT8_TOKEN) {
                _mm256_storeu_ps(x + i, _mm256_mul_ps(round_e4m3(v), divisor));
                continue;
            }
            v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
            v = clamp8(_mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 127.0f);
            _mm256_storeu_ps(x + i, v);
        }
        for (; i < end; i++) {
            float code = mf_quant_code(quant, x[i], s);
            x[i] = quant == MF_QUANT_INT8_TOKEN ? code : code * s;
        }
        if (quant == MF_QUANT_INT8_TOKEN) {
            *scale = s;
        }
    }
}

static float dot_avx2(const float *a, const float *b, int64_t n)
{
    __m256 acc[4];
    UNROLL(4) for (int j = 0; j < 4; j++) {
        acc[j] = _mm256_setzero_ps();
    }
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        UNROLL(4) for (int j = 0; j < 4; j++) {
            acc[j] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j), acc[j]);
        }
    }
    for (; i + 8 <= n; i += 8) {
        acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), acc[0]);
    }
    if (i < n) {
        acc[1] = _mm256_fmadd_ps(load_tail(a + i, n - i), load_tail(b + i, n - i), acc[1]);
    }
    return sum_lanes(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
}

static void rms_norm_avx2(const float *x, const float *weight, int64_t n, float eps, float *out)
{
    float scale = 1.0f / sqrtf(dot_avx2(x, x, n) / (float)n + eps);
    const __m256 factor = _mm256_set1_ps(scale);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(out + i,
                         _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor), _mm256_loadu_ps(weight + i)));
    }
    for (; i < n; i++) {
        out[i] = x[i] * scale * weight[i];
    }
}

static void add_avx2(float *acc, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(acc + i, _mm256_add_ps(_mm256_loadu_ps(acc + i), _mm256_loadu_ps(x + i)));
    }
    for (; i < n; i++) {
        acc[i] += x[i];
    }
}

/* ---- rotary embedding ---- */

/* Pairs lie side by side, as their cosines and sines do. */
static void rope_pairs(float *x, int64_t dim, const float *cos_sin)
{
    int64_t i = 0;
    for (; i + 8 <= dim; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i), t = _mm256_loadu_ps(cos_sin + i);
        const __m256 by_sin = _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), _mm256_movehdup_ps(t));
        _mm256_storeu_ps(x + i, _mm256_addsub_ps(_mm256_mul_ps(v, _mm256_moveldup_ps(t)), by_sin));
    }
    for (; i < dim; i += 2) {
        const float a = x[i], b = x[i + 1], c = cos_sin[i], s = cos_sin[i + 1];
        x[i] = a * c - b * s;
        x[i + 1] = b * c + a * s;
    }
}

/* Pairs lie half a vector apart. */
static void rope_halves(float *x, int64_t dim, const float *cos_sin)
{
    const int64_t half = dim / 2;
    int64_t i = 0;
    for (; i + 8 <= half; i += 8) {
        const __m256 t0 = _mm256_loadu_ps(cos_sin + 2 * i), t1 = _mm256_loadu_ps(cos_sin + 2 * i + 8);
        const __m256 low = _mm256_permute2f128_ps(t0, t1, 0x20), high = _mm256_permute2f128_ps(t0, t1, 0x31);
        const __m256 c = _mm256_shuffle_ps(low, high, 0x88), s = _mm256_shuffle_ps(low, high, 0xdd);
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + half + i);
        _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + half + i, _mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, s)));
    }
    for (; i < half; i++) {
        const float a = x[i], b = x[half + i], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
        x[i] = a * c - b * s;
        x[half + i] = b * c + a * s;
    }
}

static void rope_avx2(float *x, int64_t num_vectors, int64_t vector_stride, int64_t dim, bool pair, const float *cos_sin)
{
    for (int64_t v = 0; v < num_vectors; v++) {
        if (pair) {
            rope_pairs(x + v * vector_stride, dim, cos_sin);
        } else {
            rope_halves(x + v * vector_stride, dim, cos_sin);
        }
    }
}

/* ---- inputs of products ---- */

enum { SPLIT = 16, BLOCK = MF_CPU_COLUMNS };

/* Of 16 columns the even ones, then the odd. */
INLINE void store_split(float *to, __m256 a, __m256 b)
{
    const __m256 even = _mm256_shuffle_ps(a, b, 0x88), odd = _mm256_shuffle_ps(a, b, 0xdd);
    _mm256_storeu_ps(to, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8)));
    _mm256_storeu_ps(to + 8, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8)));
}

/* 32 columns of whole numbers as int8; returns their sum. */
INLINE int32_t store_codes(uint8_t *to, const float *x)
{
    __m256i v[4];
    UNROLL(4) for (int j = 0; j < 4; j++) {
        v[j] = _mm256_cvtps_epi32(_mm256_loadu_ps(x + 8 * j));
    }
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(v[0], v[1]), _mm256_add_epi32(v[2], v[3]));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permutevar8x32_epi32(bytes, order));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

/* Column k and the 63 behind it; false: not a form that this rung's products take. */
INLINE bool pack_block(const mf_cpu_pack *p, int64_t k, const float *x)
{
    uint8_t *row = p->row;
    switch (p->form) {
    case MF_CPU_FORM_F32:
        memcpy(row + 4 * k, x, BLOCK * sizeof *x);
        return true;
    case MF_CPU_FORM_F32_SPLIT:
        for (int64_t i = 0; i < BLOCK; i += SPLIT) {
            store_split((float *)(void *)row + k + i, _mm256_loadu_ps(x + i), _mm256_loadu_ps(x + i + 8));
        }
        return true;
    case MF_CPU_FORM_F32_BYTES: {
        static const uint8_t from[8] = { 0, 2, 16, 18, 1, 3, 17, 19 };
        const __m256i lanes = _mm256_setr_epi32(0, 4, 8, 12, 32, 36, 40, 44);
        for (int v = 0; v < 8; v++) {
            _mm256_storeu_ps((float *)(void *)row + k + 8 * v, _mm256_i32gather_ps(x + from[v], lanes, 4));
        }
        return true;
    }
    case MF_CPU_FORM_I8: {
        const int32_t sums[2] = { store_codes(row + k, x), store_codes(row + k + 32, x + 32) };
        memcpy(row + mf_cpu_round_columns(p->k) + 4 * (k / 32), sums, sizeof sums);
        return true;
    }
    case MF_CPU_FORM_I8_HALVES: {
        uint8_t codes[BLOCK];
        const int32_t sums[2] = { store_codes(codes, x), store_codes(codes + 32, x + 32) };
        const __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)codes);
        const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(codes + 32));
        const __m256i low = _mm256_set1_epi16(0xff);
        const __m256i even = _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
        const __m256i odd = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        uint8_t *to = row + k - k % MF_CPU_INTERLEAVED + k % MF_CPU_INTERLEAVED / 2;
        _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permute4x64_epi64(even, 0xd8));
        _mm256_storeu_si256((__m256i *)(void *)(to + MF_CPU_INTERLEAVED / 2), _mm256_permute4x64_epi64(odd, 0xd8));
        memcpy(row + mf_cpu_form_columns(p->form, p->k) + 4 * (k / 32), sums, sizeof sums);
        return true;
    }
    default:
        return false;
    }
}

static void pack_avx2(const mf_cpu_pack *p, const float *x, int64_t first, int64_t n)
{
    int64_t i = 0;
    while (i + BLOCK <= n && pack_block(p, first + i, x + i)) {
        i += BLOCK;
    }
    if (i < n && n - i < BLOCK && first + n == p->k) {
        float last[BLOCK] = { 0 };
        memcpy(last, x + i, (size_t)(n - i) * sizeof *x);
        i = pack_block(p, first + i, last) ? n : i;
    }
    if (i < n) {
        mf_cpu_pack_c(p, SPLIT, x + i, first + i, n - i);
    } else if (first + n == p->k && mf_cpu_round_columns(p->k) < mf_cpu_form_columns(p->form, p->k)) {
        const float zeros[BLOCK] = { 0 };
        pack_block(p, mf_cpu_round_columns(p->k), zeros);
    }
}

/* ---- gated delta net ---- */

static void sigmoid_gate_avx2(float *x, const float *gate, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), sigmoid8(_mm256_loadu_ps(gate + i))));
    }
    if (i < n) {
        float last[8];
        _mm256_storeu_ps(last, _mm256_mul_ps(load_tail(x + i, n - i), sigmoid8(load_tail(gate + i, n - i))));
        memcpy(x + i, last, (size_t)(n - i) * sizeof *x);
    }
}

/* Four vectors of columns run their chains of sums side by side; decay * S is made twice and stored once. */
static void delta_step_avx2(const mf_cpu_delta *d)
{
    enum { VECTORS = 4 };
    if (d->num_columns != 8 * VECTORS) {
        mf_cpu_delta_step_c(d);
        return;
    }
    const float *q = d->q, *k = d->k; /* what is stored below could be *d, for all that the compiler knows */
    const int64_t k_dim = d->k_dim, stride = d->state_stride;
    const __m256 decay = _mm256_set1_ps(d->decay), beta = _mm256_set1_ps(d->beta);
    __m256 delta[VECTORS], out[VECTORS];
    UNROLL(4) for (int j = 0; j < VECTORS; j++) {
        delta[j] = out[j] = _mm256_setzero_ps();
    }
    const float *from = d->state;
    for (int64_t i = 0; i < k_dim; i++, from += stride) {
        const __m256 key = _mm256_broadcast_ss(k + i);
        UNROLL(4) for (int j = 0; j < VECTORS; j++) {
            delta[j] = _mm256_fmadd_ps(key, _mm256_mul_ps(decay, _mm256_loadu_ps(from + 8 * j)), delta[j]);
        }
    }
    UNROLL(4) for (int j = 0; j < VECTORS; j++) {
        delta[j] = _mm256_mul_ps(beta, _mm256_sub_ps(_mm256_loadu_ps(d->v + 8 * j), delta[j]));
    }
    float *to = d->state;
    for (int64_t i = 0; i < k_dim; i++, to += stride) {
        const __m256 key = _mm256_broadcast_ss(k + i), query = _mm256_broadcast_ss(q + i);
        UNROLL(4) for (int j = 0; j < VECTORS; j++) {
            const __m256 next = _mm256_fmadd_ps(key, delta[j], _mm256_mul_ps(decay, _mm256_loadu_ps(to + 8 * j)));
            _mm256_storeu_ps(to + 8 * j, next);
            out[j] = _mm256_fmadd_ps(query, next, out[j]);
        }
    }
    UNROLL(4) for (int j = 0; j < VECTORS; j++) {
        _mm256_storeu_ps(d->out + 8 * j, out[j]);
    }
}

void mf_cpu_kernels_fill_avx2(mf_cpu_kernels *k)
{
    k->isa = "avx2+fma+f16c";
    k->split = SPLIT;
    k->pack = pack_avx2;
    mf_cpu_products_fill_avx2(k);
    mf_cpu_codes_fill_avx2(k);
    k->activate = activate_avx2;
    k->load_row = load_row_avx2;
    k->store_row = store_row_avx2;
    k->quantise = quantise_avx2;
    k->rms_norm = rms_norm_avx2;
    k->delta_step = delta_step_avx2;
    k->delta_columns = 32;
    k->sigmoid_gate = sigmoid_gate_avx2;
    k->add = add_avx2;
    k->rope = rope_avx2;
    mf_cpu_attention_fill_avx2(k);
    mf_cpu_gate_fill_avx2(k);
    mf_cpu_sum_reduce_fill_avx2(k);
}
