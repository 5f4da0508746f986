/* kernels_avx2.c - AVX2, FMA and F16C: conversions, activations, quantisation, vectors.  Products are in tiles_avx2.c.
 */
#include "kernels/activation.h"
#include "kernels/cpu/avx2.h"

/* exp(x) within 2 ulp; +0 below -87, the largest float's neighbourhood above 88; NaN stays. */
INLINE __m256 exp8(__m256 x)
{
    __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f),
                      _mm256_min_ps(_mm256_set1_ps(88.0f), x)); /* the second operand when NaN */
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
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
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

static void quantise_avx2(mf_quant quant, float static_scale, bool e8m0, float *x, int64_t n, float *scale)
{
    const int64_t group = mf_quant_group(quant, n);
    for (int64_t first = 0; first < n; first += group) {
        const int64_t end = n - first < group ? n : first + group;
        const float s = mf_quant_scale(quant, static_scale, e8m0, x + first, end - first);
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

/* Heads [h, h + NH) and NV vectors from column i, the last one masked: sums stay in registers over all rows. */
INLINE void mix_block(const mf_cpu_mix *m, int NH, int NV, int64_t h, int64_t i, __m256i mask)
{
    __m256 acc[4][2];
    UNROLL(4) for (int a = 0; a < NH; a++) {
        UNROLL(2) for (int v = 0; v < NV; v++) {
            acc[a][v] = _mm256_maskload_ps(m->acc + (h + a) * m->acc_stride + i + 8 * v, mask);
        }
    }
    for (int64_t s = 0; s < m->num_rows; s++) {
        const float *row = m->rows + s * m->row_stride + i;
        __m256 values[2];
        UNROLL(2) for (int v = 0; v < NV; v++) {
            values[v] = _mm256_maskload_ps(row + 8 * v, mask);
        }
        UNROLL(4) for (int a = 0; a < NH; a++) {
            const __m256 weight = _mm256_broadcast_ss(m->weights + (h + a) * m->weight_stride + s);
            UNROLL(2) for (int v = 0; v < NV; v++) {
                acc[a][v] = _mm256_fmadd_ps(weight, values[v], acc[a][v]);
            }
        }
    }
    UNROLL(4) for (int a = 0; a < NH; a++) {
        UNROLL(2) for (int v = 0; v < NV; v++) {
            _mm256_maskstore_ps(m->acc + (h + a) * m->acc_stride + i + 8 * v, mask, acc[a][v]);
        }
    }
}

static void mix_avx2(const mf_cpu_mix *m)
{
    const __m256i all = _mm256_set1_epi32(-1);
    for (int64_t i = 0; i < m->n; i += m->n - i >= 16 ? 16 : 8) {
        const bool two = m->n - i >= 16;
        const int left = two || m->n - i > 8 ? 8 : (int)(m->n - i);
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        int64_t h = 0;
        for (; h + 4 <= m->num_heads; h += 4) {
            if (two) {
                mix_block(m, 4, 2, h, i, all);
            } else {
                mix_block(m, 4, 1, h, i, mask);
            }
        }
        for (; h < m->num_heads; h++) {
            if (two) {
                mix_block(m, 1, 2, h, i, all);
            } else {
                mix_block(m, 1, 1, h, i, mask);
            }
        }
    }
}

static float exp_sum_avx2(float *x, int64_t n, float max)
{
    const __m256 shift = _mm256_set1_ps(max);
    __m256 sum = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), shift));
        _mm256_storeu_ps(x + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    if (i < n) {
        float last[8] = { 0 };
        _mm256_storeu_ps(last, exp8(_mm256_sub_ps(load_tail(x + i, n - i), shift)));
        memcpy(x + i, last, (size_t)(n - i) * sizeof(float));
        sum = _mm256_add_ps(sum, load_tail(last, n - i));
    }
    return sum_lanes(sum);
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

void mf_cpu_kernels_fill_avx2(mf_cpu_kernels *k)
{
    k->isa = "avx2+fma+f16c";
    mf_cpu_tiles_fill_avx2(k);
    k->activate = activate_avx2;
    k->load_row = load_row_avx2;
    k->store_row = store_row_avx2;
    k->quantise = quantise_avx2;
    k->mix = mix_avx2;
    k->exp_sum = exp_sum_avx2;
    k->rms_norm = rms_norm_avx2;
    mf_cpu_gate_fill_avx2(k);
    mf_cpu_sum_reduce_fill_avx2(k);
}
