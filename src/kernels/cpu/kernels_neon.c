/* kernels_neon.c - aarch64: conversions, activations, quantisation, vectors.  Products are in products_neon*.c.
 *
 * Lanes of a sum are those of the C and AVX2 rungs: eight, lane k % 8. */
#include "kernels/cpu/neon.h"

/* exp(x) within 2 ulp; +0 below -87, infinity from 88.4 on; NaN stays. */
INLINE float32x4_t exp4(float32x4_t x)
{
    uint32x4_t keep = vmvnq_u32(vcltq_f32(x, vdupq_n_f32(-87.0f)));
    x = vmaxq_f32(vdupq_n_f32(-87.0f), vminq_f32(vdupq_n_f32(89.0f), x)); /* both give NaN for NaN */
    float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(0x1.715476p+0f)));
    return keep4(keep, exp_reduced4(x, n));
}

INLINE float32x4_t sigmoid4(float32x4_t x)
{
    const float32x4_t one = vdupq_n_f32(1.0f);
    return vdivq_f32(one, vaddq_f32(one, exp4(vnegq_f32(x))));
}

INLINE float32x4_t min4(float32x4_t x, float limit)
{
    return vminq_f32(x, vdupq_n_f32(limit));
}

INLINE float32x4_t clamp4(float32x4_t x, float limit)
{
    return vmaxq_f32(min4(x, limit), vdupq_n_f32(-limit));
}

INLINE float32x4_t round4(float32x4_t x, mf_dtype dtype)
{
    if (dtype == MF_BF16) {
        return vreinterpretq_f32_u32(vshll_n_u16(bf16_from_f32(x), 16));
    }
    return dtype == MF_F16 ? vcvt_f32_f16(vcvt_f16_f32(x)) : x;
}

INLINE float32x4_t activate4(const mf_slot *slot, float32x4_t g, float32x4_t u)
{
    switch (slot->activation) {
    case MF_ACT_SILU:
        return vmulq_f32(vmulq_f32(g, sigmoid4(g)), u);
    case MF_ACT_SILU_CLAMP:
        g = min4(g, slot->limit);
        return vmulq_f32(vmulq_f32(g, sigmoid4(g)), clamp4(u, slot->limit));
    case MF_ACT_SILU_CLAMP_AFTER:
        return vmulq_f32(min4(vmulq_f32(g, sigmoid4(g)), slot->limit), clamp4(u, slot->limit));
    default: /* SWIGLU_OAI */
        g = min4(g, slot->limit);
        u = clamp4(u, slot->limit);
        return vmulq_f32(vmulq_f32(g, sigmoid4(vmulq_f32(vdupq_n_f32(slot->alpha), g))),
                         vaddq_f32(u, vdupq_n_f32(1.0f)));
    }
}

static void activate_neon(const mf_slot *slot, mf_dtype dtype, const float *g, const float *u, int64_t n, float *h)
{
    if (slot->activation > MF_ACT_SWIGLU_OAI) {
        for (int64_t i = 0; i < n; i++) {
            h[i] = mf_round_to_dtype(mf_activate(slot, g[i], u[i]), dtype);
        }
        return;
    }
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1q_f32(h + i, round4(activate4(slot, vld1q_f32(g + i), vld1q_f32(u + i)), dtype));
    }
    if (i < n) {
        float last[4];
        vst1q_f32(last, round4(activate4(slot, load_tail(g + i, n - i), load_tail(u + i, n - i)), dtype));
        memcpy(h + i, last, (size_t)(n - i) * sizeof(float));
    }
}

static void load_row_neon(const void *data, mf_dtype dtype, int64_t n, float *out)
{
    int64_t i = 0;
    if (dtype != MF_F32) {
        for (; i + 4 <= n; i += 4) {
            vst1q_f32(out + i, load4(data, dtype, i));
        }
    }
    mf_load_row((const uint8_t *)data + i * (dtype == MF_F32 ? 4 : 2), dtype, n - i, out + i);
}

static void store_row_neon(const float *x, int64_t n, mf_dtype dtype, void *data)
{
    uint8_t *p = data;
    int64_t i = 0;
    if (dtype != MF_F32) {
        for (; i + 4 <= n; i += 4) {
            float32x4_t v = vld1q_f32(x + i);
            vst1_u8(p + 2 * i,
                    dtype == MF_BF16 ? vreinterpret_u8_u16(bf16_from_f32(v)) : vreinterpret_u8_f16(vcvt_f16_f32(v)));
        }
    }
    mf_store_row(x + i, n - i, dtype, p + i * (dtype == MF_F32 ? 4 : 2));
}

/* v to the nearest e4m3 value, saturating; NaN stays. */
INLINE float32x4_t round_e4m3(float32x4_t v)
{
    const uint32x4_t sign_bit = vdupq_n_u32(0x80000000u);
    float32x4_t mag = vminq_f32(vabsq_f32(v), vdupq_n_f32(448.0f));
    /* below 2^-6 the steps are 2^-9, the ulp of [2^14, 2^15) */
    const float32x4_t magic = vdupq_n_f32(16384.0f);
    float32x4_t small = vsubq_f32(vaddq_f32(mag, magic), magic);
    uint32x4_t bits = vreinterpretq_u32_f32(mag);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 20), vdupq_n_u32(1));
    bits = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7ffff)));
    bits = vandq_u32(bits, vdupq_n_u32(0xfff00000u));
    float32x4_t rounded = select4(vcltq_f32(mag, vdupq_n_f32(0x1p-6f)), small, vreinterpretq_f32_u32(bits));
    rounded = vbslq_f32(sign_bit, v, rounded);
    return select4(vceqq_f32(v, v), rounded, v);
}

static void quantise_neon(mf_quant quant, float static_scale, bool e8m0, float *x, int64_t n, float *scale)
{
    const int64_t group = mf_quant_group(quant, n);
    for (int64_t first = 0; first < n; first += group) {
        const int64_t end = n - first < group ? n : first + group;
        const float s = mf_quant_scale(quant, static_scale, e8m0, x + first, end - first);
        const float32x4_t divisor = vdupq_n_f32(s);
        int64_t i = first;
        for (; i + 4 <= end; i += 4) {
            float32x4_t v = vdivq_f32(vld1q_f32(x + i), divisor);
            if (quant != MF_QUANT_INT8_TOKEN) {
                vst1q_f32(x + i, vmulq_f32(round_e4m3(v), divisor));
                continue;
            }
            v = keep4(vceqq_f32(v, v), v);
            vst1q_f32(x + i, clamp4(vrndnq_f32(v), 127.0f));
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

/* Whole blocks of columns; what is left, and other machines' forms, go the plain way. */
static void pack_neon(const mf_cpu_pack *pack, const float *x, int64_t first, int64_t n)
{
    const int64_t whole = n / MF_CPU_COLUMNS * MF_CPU_COLUMNS;
    uint8_t *row = pack->row;
    switch (pack->form) {
    case MF_CPU_FORM_F32:
        memcpy(row + 4 * first, x, (size_t)whole * sizeof(float));
        break;
    case MF_CPU_FORM_BF16:
        for (int64_t i = 0; i < whole; i += 4) {
            vst1_u16((uint16_t *)(void *)row + first + i, bf16_from_f32(vld1q_f32(x + i)));
        }
        break;
    case MF_CPU_FORM_I8:
    case MF_CPU_FORM_I8_SPLIT: {
        uint8_t *sums = row + mf_cpu_round_columns(pack->k);
        for (int64_t i = 0; i < whole; i += 32) {
            int16x8_t words[4];
            UNROLL(4) for (int j = 0; j < 4; j++) {
                int32x4_t low = vcvtq_s32_f32(vld1q_f32(x + i + 8 * j));
                int32x4_t high = vcvtq_s32_f32(vld1q_f32(x + i + 8 * j + 4));
                words[j] = vcombine_s16(vmovn_s32(low), vmovn_s32(high));
            }
            int8x16_t a = vcombine_s8(vmovn_s16(words[0]), vmovn_s16(words[1]));
            int8x16_t b = vcombine_s8(vmovn_s16(words[2]), vmovn_s16(words[3]));
            const bool split = pack->form == MF_CPU_FORM_I8_SPLIT;
            vst1q_s8((int8_t *)row + first + i, split ? vuzp1q_s8(a, b) : a);
            vst1q_s8((int8_t *)row + first + i + 16, split ? vuzp2q_s8(a, b) : b);
            int32_t sum = vaddlvq_s16(vaddq_s16(vaddq_s16(words[0], words[1]), vaddq_s16(words[2], words[3])));
            memcpy(sums + 4 * ((first + i) / 32), &sum, 4);
        }
        break;
    }
    default:
        mf_cpu_pack_c(pack, MF_CPU_COLUMNS, x, first, n);
        return;
    }
    if (whole < n) { /* the row's end, and the zeros behind it */
        mf_cpu_pack_c(pack, MF_CPU_COLUMNS, x + whole, first + whole, n - whole);
    }
}

static void add_neon(float *acc, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1q_f32(acc + i, vaddq_f32(vld1q_f32(acc + i), vld1q_f32(x + i)));
    }
    for (; i < n; i++) {
        acc[i] += x[i];
    }
}

/* One vector of dim floats; each product and sum is rounded by itself, as in the reference. */
INLINE void rope_vector(float *x, int64_t dim, bool pair, const float *cos_sin)
{
    const int64_t half = dim / 2;
    int64_t i = 0;
    for (; i + 4 <= half; i += 4) {
        const float32x4x2_t table = vld2q_f32(cos_sin + 2 * i);
        const float32x4_t c = table.val[0], s = table.val[1];
        const float32x4x2_t v =
            pair ? vld2q_f32(x + 2 * i) : (float32x4x2_t){ { vld1q_f32(x + i), vld1q_f32(x + half + i) } };
        const float32x4_t a = vsubq_f32(vmulq_f32(v.val[0], c), vmulq_f32(v.val[1], s));
        const float32x4_t b = vaddq_f32(vmulq_f32(v.val[1], c), vmulq_f32(v.val[0], s));
        if (pair) {
            vst2q_f32(x + 2 * i, ((float32x4x2_t){ { a, b } }));
        } else {
            vst1q_f32(x + i, a);
            vst1q_f32(x + half + i, b);
        }
    }
    for (; i < half; i++) {
        float *a = x + (pair ? 2 * i : i), *b = a + (pair ? 1 : half);
        const float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a0 = *a, b0 = *b;
        *a = a0 * c - b0 * s;
        *b = b0 * c + a0 * s;
    }
}

static void rope_neon(float *x, int64_t num_vectors, int64_t vector_stride, int64_t dim, bool pair,
                      const float *cos_sin)
{
    for (int64_t v = 0; v < num_vectors; v++) {
        if (pair) {
            rope_vector(x + v * vector_stride, dim, true, cos_sin);
        } else {
            rope_vector(x + v * vector_stride, dim, false, cos_sin);
        }
    }
}

static float dot_neon(const float *a, const float *b, int64_t n)
{
    float32x4_t acc[8];
    UNROLL(8) for (int j = 0; j < 8; j++) {
        acc[j] = vdupq_n_f32(0.0f);
    }
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        UNROLL(8) for (int j = 0; j < 8; j++) {
            acc[j] = vfmaq_f32(acc[j], vld1q_f32(a + i + 4 * j), vld1q_f32(b + i + 4 * j));
        }
    }
    for (; i + 4 <= n; i += 4) {
        acc[0] = vfmaq_f32(acc[0], vld1q_f32(a + i), vld1q_f32(b + i));
    }
    if (i < n) {
        acc[1] = vfmaq_f32(acc[1], load_tail(a + i, n - i), load_tail(b + i, n - i));
    }
    UNROLL(4) for (int j = 0; j < 4; j++) {
        acc[j] = vaddq_f32(acc[j], acc[j + 4]);
    }
    return sum_lanes4(vaddq_f32(vaddq_f32(acc[0], acc[2]), vaddq_f32(acc[1], acc[3])));
}

static void rms_norm_neon(const float *x, const float *weight, int64_t n, float eps, float *out)
{
    float scale = 1.0f / sqrtf(dot_neon(x, x, n) / (float)n + eps);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1q_f32(out + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(weight + i)));
    }
    for (; i < n; i++) {
        out[i] = x[i] * scale * weight[i];
    }
}

/* ---- gated delta net ---- */

static void sigmoid_gate_neon(float *x, const float *gate, int64_t n)
{
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1q_f32(x + i, vmulq_f32(vld1q_f32(x + i), sigmoid4(vld1q_f32(gate + i))));
    }
    if (i < n) {
        float last[4];
        vst1q_f32(last, vmulq_f32(load_tail(x + i, n - i), sigmoid4(load_tail(gate + i, n - i))));
        memcpy(x + i, last, (size_t)(n - i) * sizeof *x);
    }
}

/* As in kernels_avx2.c: eight vectors of columns run their chains of sums side by side. */
static void delta_step_neon(const mf_cpu_delta *d)
{
    enum { VECTORS = 8 };
    if (d->num_columns != 4 * VECTORS) {
        mf_cpu_delta_step_c(d);
        return;
    }
    const float *q = d->q, *k = d->k; /* what is stored below could be *d, for all that the compiler knows */
    const int64_t k_dim = d->k_dim, stride = d->state_stride;
    const float decay = d->decay;
    float32x4_t delta[VECTORS], out[VECTORS];
    UNROLL(8) for (int j = 0; j < VECTORS; j++) {
        delta[j] = out[j] = vdupq_n_f32(0.0f);
    }
    const float *from = d->state;
    for (int64_t i = 0; i < k_dim; i++, from += stride) {
        UNROLL(8) for (int j = 0; j < VECTORS; j++) {
            delta[j] = vfmaq_n_f32(delta[j], vmulq_n_f32(vld1q_f32(from + 4 * j), decay), k[i]);
        }
    }
    UNROLL(8) for (int j = 0; j < VECTORS; j++) {
        delta[j] = vmulq_n_f32(vsubq_f32(vld1q_f32(d->v + 4 * j), delta[j]), d->beta);
    }
    float *to = d->state;
    for (int64_t i = 0; i < k_dim; i++, to += stride) {
        UNROLL(8) for (int j = 0; j < VECTORS; j++) {
            const float32x4_t next = vfmaq_n_f32(vmulq_n_f32(vld1q_f32(to + 4 * j), decay), delta[j], k[i]);
            vst1q_f32(to + 4 * j, next);
            out[j] = vfmaq_n_f32(out[j], next, q[i]);
        }
    }
    UNROLL(8) for (int j = 0; j < VECTORS; j++) {
        vst1q_f32(d->out + 4 * j, out[j]);
    }
}

void mf_cpu_kernels_fill_neon(mf_cpu_kernels *k)
{
    k->isa = "neon";
    k->pack = pack_neon;
    k->activate = activate_neon;
    k->load_row = load_row_neon;
    k->store_row = store_row_neon;
    k->quantise = quantise_neon;
    k->rms_norm = rms_norm_neon;
    k->delta_step = delta_step_neon;
    k->delta_columns = 32;
    k->sigmoid_gate = sigmoid_gate_neon;
    k->add = add_neon;
    k->rope = rope_neon;
    mf_cpu_attention_fill_neon(k);
    mf_cpu_products_fill_neon(k);
    mf_cpu_gate_fill_neon(k);
    mf_cpu_sum_reduce_fill_neon(k);
}
