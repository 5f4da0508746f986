/* products_neon.h - what aarch64's product files share: one 128-bit accumulator per (row, token), codes of a group
 * multiplied before their scale (is_flushed), so that values are exact in f32 and in bf16 alike. */
#ifndef MF_KERNELS_CPU_PRODUCTS_NEON_H
#define MF_KERNELS_CPU_PRODUCTS_NEON_H

#include "kernels/cpu/neon.h"

typedef float32x4_t vec;

#define TOKENS_IN_REGISTERS 6
#define HAS_FLUSHED_FORMATS 1
#ifndef BLOCK
#define BLOCK 2
#endif
enum { ROWS = 4, TOKENS = 6, FLUSH_TOKENS = 3, SCALES_AT_ONCE = 64 };

INLINE bool is_flushed(mf_format format)
{
    return format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_INT4_GROUP || format == MF_FORMAT_MXFP4;
}

/* Flushed formats keep two sums per row and token. */
INLINE int stream_tokens(mf_format format)
{
    return is_flushed(format) ? 2 : 4;
}

INLINE int stream_passes(mf_format format)
{
    (void)format;
    return 1;
}

INLINE float row_factor(mf_format format)
{
    (void)format;
    return 1.0f;
}

INLINE vec vec_zero(void)
{
    return vdupq_n_f32(0.0f);
}

INLINE vec vec_load(const void *p)
{
    return vreinterpretq_f32_u8(vld1q_u8(p));
}

INLINE vec flush(vec acc, float scale, vec total)
{
    return vfmaq_n_f32(total, acc, scale);
}

/* Keeps the next token's load behind this one's products: hoisted to the loop's start, the loads push sums out of the
 * registers. */
INLINE void pace(void)
{
    __asm__ volatile("" ::: "memory");
}

/* (0+1) + (2+3) of each. */
INLINE void sum_four(vec a, vec b, vec c, vec d, float out[4])
{
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

/* ---- codes as values ---- */

/* 4-bit formats: the low and the high bytes of the sixteen values as bf16. */
typedef struct decoder {
    uint8x16_t low, high;
} decoder;

INLINE decoder decoder_of_bf16(uint16x8_t first, uint16x8_t last)
{
    const uint8x16_t a = vreinterpretq_u8_u16(first), b = vreinterpretq_u8_u16(last);
    return (decoder){ vuzp1q_u8(a, b), vuzp2q_u8(a, b) };
}

/* code - zero, a whole number from -255 to 15: its f32 has nothing in the lower half. */
INLINE uint16x8_t bf16_of_codes(uint8_t first, float zero)
{
    const uint8x8_t lanes = vcreate_u8(0x0706050403020100ull);
    const uint16x8_t codes = vmovl_u8(vadd_u8(lanes, vdup_n_u8(first)));
    const float32x4_t a = vsubq_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(codes))), vdupq_n_f32(zero));
    const float32x4_t b = vsubq_f32(vcvtq_f32_u32(vmovl_u16(vget_high_u16(codes))), vdupq_n_f32(zero));
    return vuzp2q_u16(vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b));
}

INLINE decoder decoder_for(mf_format format, float scale, float zero)
{
    (void)scale;
    if (format == MF_FORMAT_INT4_GROUP) {
        return decoder_of_bf16(bf16_of_codes(0, zero), bf16_of_codes(8, zero));
    }
    if (format == MF_FORMAT_MXFP4) { /* 0, 0.5, 1, 1.5, 2, 3, 4, 6 */
        const uint16x8_t positive = { 0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0 };
        return decoder_of_bf16(positive, vorrq_u16(positive, vdupq_n_u16(0x8000)));
    }
    return (decoder){ vdupq_n_u8(0), vdupq_n_u8(0) };
}

INLINE void load_scales(mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    if (dtype == MF_F8_E8M0) {
        for (int64_t i = 0; i < n; i++) {
            out[i] = mf_e8m0_to_f32(p[i]);
        }
        return;
    }
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1q_f32(out + i, load4(p, dtype, i));
    }
    mf_load_row(p + i * (dtype == MF_F32 ? 4 : 2), dtype, n - i, out + i);
}

INLINE void load_scales_of(mf_format format, mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    (void)format;
    load_scales(dtype, p, n, out);
}

#endif
