/* attention_neon.c - attention's inner kernels on aarch64: four queries a vector; decoded rows of weights. */
#include "kernels/cpu/neon.h"

typedef float32x4_t vec;
enum { LANES = 4, SCORE_VECTORS = 4, BLEND_QUERIES = 12 };
#define SCORE_ROWS(vectors) ((vectors) == 4 ? 6 : 12)

#define v_zero() vdupq_n_f32(0.0f)
#define v_set(x) vdupq_n_f32(x)
#define v_load(p) vld1q_f32(p)
#define v_store(p, v) vst1q_f32(p, v)
#define v_add(a, b) vaddq_f32(a, b)
#define v_sub(a, b) vsubq_f32(a, b)
#define v_mul(a, b) vmulq_f32(a, b)
#define v_fma(a, b, c) vfmaq_f32(c, a, b)

/* a > b ? a : b, which FMAX is not when one is a NaN */
INLINE vec v_max(vec a, vec b)
{
    return select4(vcgtq_f32(a, b), a, b);
}

INLINE vec v_load_part(const float *p, int64_t n)
{
    return load_tail(p, n);
}

INLINE void v_store_part(float *p, vec v, int64_t n)
{
    float four[4];
    vst1q_f32(four, v);
    memcpy(p, four, (size_t)n * sizeof(float));
}

INLINE vec v_keep_below(int64_t s, const int32_t *limits, vec x)
{
    return select4(vcgtq_s32(vld1q_s32(limits), vdupq_n_s32((int32_t)s)), x, vdupq_n_f32(-INFINITY));
}

INLINE vec v_keep_from(int64_t s, const int32_t *begins, vec x)
{
    return select4(vcgtq_s32(vld1q_s32(begins), vdupq_n_s32((int32_t)s)), vdupq_n_f32(-INFINITY), x);
}

/* +0 below -87, -infinity included; NaN stays */
INLINE vec v_exp(vec x)
{
    const float32x4_t least = vdupq_n_f32(-87.0f);
    const uint32x4_t drop = vcltq_f32(x, least);
    x = vmaxq_f32(x, least);
    const float32x4_t e = exp_reduced4(x, vrndnq_f32(vmulq_f32(x, vdupq_n_f32(0x1.715476p+0f))));
    return keep4(vmvnq_u32(drop), e);
}

#include "kernels/cpu/attention_tiles.h"

/* ---- panels ---- */

INLINE void transpose4(float32x4_t r[4])
{
    const float32x4_t a = vzip1q_f32(r[0], r[2]), b = vzip2q_f32(r[0], r[2]);
    const float32x4_t c = vzip1q_f32(r[1], r[3]), d = vzip2q_f32(r[1], r[3]);
    r[0] = vzip1q_f32(a, c);
    r[1] = vzip2q_f32(a, c);
    r[2] = vzip1q_f32(b, d);
    r[3] = vzip2q_f32(b, d);
}

static void pack_neon(const float *const *queries, int64_t num_queries, int64_t dim, float *panel, int64_t stride)
{
    for (int64_t q = 0; q < stride; q += 4) {
        for (int64_t d = 0; d < dim; d += 4) {
            const int64_t n = dim - d < 4 ? dim - d : 4;
            float32x4_t r[4];
            UNROLL(4) for (int i = 0; i < 4; i++) {
                r[i] = q + i >= num_queries ? v_zero()
                       : n == 4             ? v_load(queries[q + i] + d)
                                            : v_load_part(queries[q + i] + d, n);
            }
            transpose4(r);
            UNROLL(4) for (int i = 0; i < 4; i++) {
                if (i < n) {
                    v_store(panel + (d + i) * stride + q, r[i]);
                }
            }
        }
    }
}

/* ---- weights ---- */

/* Eight codes from column k on, k even for 4-bit formats, as mf_matrix_decode_codes has them, NaN codes but for. */
INLINE void codes8(mf_format format, const uint8_t *row, int64_t k, float zero, seen_codes *seen, float32x4_t values[2])
{
    if (format == MF_FORMAT_INT8_CHANNEL) {
        f32_from_i8(vld1_u8(row + k), values);
        return;
    }
    if (!mf_format_is_4bit(format)) {
        f32_from_e4m3(vld1_u8(row + k), seen, values);
        return;
    }
    uint32_t pairs;
    memcpy(&pairs, row + k / 2, sizeof pairs);
    const uint8x8_t codes = vget_low_u8(nibbles(vreinterpret_u8_u32(vdup_n_u32(pairs))));
    if (format == MF_FORMAT_INT4_GROUP) {
        f32_from_i8(codes, values);
        values[0] = vsubq_f32(values[0], vdupq_n_f32(zero));
        values[1] = vsubq_f32(values[1], vdupq_n_f32(zero));
        return;
    }
    const uint8x16_t twice = { 0, 1, 2, 3, 4, 6, 8, 12 };
    f32_from_i8(vqtbl1_u8(twice, vand_u8(codes, vdup_n_u8(7))), values);
    const uint16x8_t sign = vshlq_n_u16(vmovl_u8(vshr_n_u8(codes, 3)), 15);
    UNROLL(2) for (int i = 0; i < 2; i++) {
        const uint32x4_t half = vreinterpretq_u32_f32(vmulq_n_f32(values[i], 0.5f));
        const float32x4_t flip = i == 0 ? f32_from_bf16_low(sign) : f32_from_bf16_high(sign);
        values[i] = vreinterpretq_f32_u32(veorq_u32(half, vreinterpretq_u32_f32(flip)));
    }
}

/* Columns [first, first + count) of one scale, a multiple of eight; false: some are NaN codes. */
INLINE bool decode_scaled(mf_format format, const uint8_t *row, int64_t first, int64_t count, float scale, float zero,
                          float *out)
{
    seen_codes seen = seen_none();
    for (int64_t i = 0; i < count; i += 8) {
        float32x4_t values[2];
        codes8(format, row, first + i, zero, &seen, values);
        v_store(out + i, vmulq_n_f32(values[0], scale));
        v_store(out + i + 4, vmulq_n_f32(values[1], scale));
    }
    return !has_seen_nan(seen);
}

static bool decode_group(const mf_matrix *m, const uint8_t *row, int64_t k, int64_t count, int64_t scale_index,
                         float *out)
{
    const float scale = mf_matrix_scale_at(m, scale_index);
    switch (m->format) {
    case MF_FORMAT_INT8_CHANNEL:
        return decode_scaled(MF_FORMAT_INT8_CHANNEL, row, k, count, scale, 0.0f, out);
    case MF_FORMAT_INT4_GROUP:
        return decode_scaled(MF_FORMAT_INT4_GROUP, row, k, count, scale, m->zero ? (float)m->zero[scale_index] : 8.0f,
                             out);
    case MF_FORMAT_MXFP4:
        return decode_scaled(MF_FORMAT_MXFP4, row, k, count, scale, 0.0f, out);
    default:
        return decode_scaled(MF_FORMAT_FP8_BLOCK, row, k, count, scale, 0.0f, out);
    }
}

static void decode_row_neon(const mf_matrix *m, int64_t r, int64_t first, int64_t count, float *out)
{
    const uint8_t *row = mf_matrix_row(m, r);
    const int64_t group = mf_matrix_group(m), base = mf_matrix_scale_row(m, r);
    if (m->format < MF_FORMAT_FP8_BLOCK) {
        int64_t done = 0;
        for (; m->format == MF_FORMAT_BF16 && done + 4 <= count; done += 4) {
            v_store(out + done, load4(row, MF_BF16, first + done));
        }
        for (; m->format == MF_FORMAT_F16 && done + 4 <= count; done += 4) {
            v_store(out + done, load4(row, MF_F16, first + done));
        }
        mf_matrix_decode_row(m, r, first + done, count - done, out + done);
        return;
    }
    for (int64_t i = 0; i < count;) {
        const int64_t k = first + i, g = group ? k / group : 0;
        const int64_t end = group && (g + 1) * group - first < count ? (g + 1) * group - first : count;
        int64_t whole = mf_format_is_4bit(m->format) && k % 2 ? 0 : (end - i) / 8 * 8;
        if (!decode_group(m, row, k, whole, base + g, out + i)) {
            whole = 0;
        }
        mf_matrix_decode_row(m, r, k + whole, end - i - whole, out + i + whole);
        i = end;
    }
}

void mf_cpu_attention_fill_neon(mf_cpu_kernels *k)
{
    k->attention = (mf_cpu_attention_kernels){ .pack = pack_neon,
                                               .scores = scores_of,
                                               .softmax = softmax_of,
                                               .merge = merge_of,
                                               .blend = blend_of,
                                               .combine = combine_of,
                                               .scale = scale_of,
                                               .decode_row = decode_row_neon };
}
