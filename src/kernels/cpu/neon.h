/* neon.h - what the aarch64 files share: four floats at a time. */
#ifndef MF_KERNELS_CPU_NEON_H
#define MF_KERNELS_CPU_NEON_H

#include <arm_neon.h>

#include "kernels/activation.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/unroll.h"

INLINE float32x4_t select4(uint32x4_t mask, float32x4_t yes, float32x4_t no)
{
    return vbslq_f32(mask, yes, no);
}

/* v where the mask is set, +0 elsewhere. */
INLINE float32x4_t keep4(uint32x4_t mask, float32x4_t v)
{
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(v)));
}

/* The low and the high four of eight bf16: zeros below each. */
INLINE float32x4_t f32_from_bf16_low(uint16x8_t v)
{
    return vreinterpretq_f32_u16(vzip1q_u16(vdupq_n_u16(0), v));
}

INLINE float32x4_t f32_from_bf16_high(uint16x8_t v)
{
    return vreinterpretq_f32_u16(vzip2q_u16(vdupq_n_u16(0), v));
}

/* Nearest even; a NaN stays one, quiet: mf_f32_to_bf16. */
INLINE uint16x4_t bf16_from_f32(float32x4_t x)
{
    uint32x4_t bits = vreinterpretq_u32_f32(x);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint16x4_t rounded = vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    uint16x4_t quiet = vorr_u16(vshrn_n_u32(bits, 16), vdup_n_u16(0x40));
    return vbsl_u16(vmovn_u32(vceqq_f32(x, x)), rounded, quiet);
}

/* Four elements of f32, bf16 or f16 at any alignment. */
INLINE float32x4_t load4(const void *row, mf_dtype dtype, int64_t i)
{
    const uint8_t *p = row;
    switch (dtype) {
    case MF_BF16:
        return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p + 2 * i)), 16));
    case MF_F16:
        return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 2 * i)));
    default:
        return vreinterpretq_f32_u8(vld1q_u8(p + 4 * i));
    }
}

/* The first n < 4 floats, then zeros. */
INLINE float32x4_t load_tail(const float *x, int64_t n)
{
    float padded[4] = { 0 };
    memcpy(padded, x, (size_t)n * sizeof(float));
    return vld1q_f32(padded);
}

/* (0+2) + (1+3) */
INLINE float sum_lanes4(float32x4_t v)
{
    float32x2_t two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(vadd_f32(two, vdup_lane_f32(two, 1)), 0);
}

/* Lanes 0..3 in v[0], 4..7 in v[1]: ((0+4) + (2+6)) + ((1+5) + (3+7)). */
INLINE float sum_lanes8(const float32x4_t v[2])
{
    return sum_lanes4(vaddq_f32(v[0], v[1]));
}

/* e^x once n = rint(x * log2 e) is known: mf_exp's reduction and polynomial (ref/canonical.h), the same bits. */
INLINE float32x4_t exp_reduced4(float32x4_t x, float32x4_t n)
{
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0x1.62e400p-1f));
    r = vfmsq_f32(r, n, vdupq_n_f32(0x1.7f7d1cp-20f));
    float32x4_t p = vdupq_n_f32(0x1.a01a02p-13f);
    p = vfmaq_f32(vdupq_n_f32(0x1.6c16c2p-10f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.111112p-7f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.555556p-5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.555556p-3f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1p-1f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(power));
}

/* ---- codes ---- */

/* The larger magnitude bits of fp8 codes: 0x7f anywhere says that a row may hold a NaN code. */
typedef uint8x8_t seen_codes;

INLINE seen_codes seen_none(void)
{
    return vdup_n_u8(0);
}

INLINE bool has_seen_nan(seen_codes seen)
{
    return vmaxv_u8(seen) == 0x7f;
}

/* e4m3's bits moved up are the f32 of code * 2^-120, subnormals included: only the exponent's bias differs.  NaN codes
 * come out as 480: see seen_codes. */
INLINE void f32_from_e4m3(uint8x8_t codes, seen_codes *seen, float32x4_t values[2])
{
    const float32x4_t factor = vdupq_n_f32(0x1p120f);
    *seen = vmax_u8(*seen, vand_u8(codes, vdup_n_u8(0x7f)));
    const uint16x8_t words =
        vandq_u16(vreinterpretq_u16_s16(vshll_n_s8(vreinterpret_s8_u8(codes), 4)), vdupq_n_u16(0x87f0));
    values[0] = vmulq_f32(f32_from_bf16_low(words), factor);
    values[1] = vmulq_f32(f32_from_bf16_high(words), factor);
}

INLINE void f32_from_i8(uint8x8_t codes, float32x4_t values[2])
{
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(codes));
    values[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
    values[1] = vcvtq_f32_s32(vmovl_high_s16(words));
}

/* Codes in order, the low nibble first: 16 of the 8 bytes. */
INLINE uint8x16_t nibbles(uint8x8_t pairs)
{
    const uint8x8_t even = vand_u8(pairs, vdup_n_u8(15)), odd = vshr_n_u8(pairs, 4);
    return vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
}

/* Entries of the table, one function per file. */
void mf_cpu_products_fill_neon(mf_cpu_kernels *kernels);
void mf_cpu_gate_fill_neon(mf_cpu_kernels *kernels);
void mf_cpu_sum_reduce_fill_neon(mf_cpu_kernels *kernels);
void mf_cpu_attention_fill_neon(mf_cpu_kernels *kernels);

#endif
