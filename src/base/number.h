/* number.h - storage formats of numbers and f32, exactly, in plain integer arithmetic: f32 <-> bf16, f16, e4m3fn, e8m0.
 *
 * All conversions round to nearest, ties to even, keep subnormals and turn a NaN into a quiet NaN.  e4m3fn has no
 * infinity: values past 448 saturate. */
#ifndef MF_BASE_NUMBER_H
#define MF_BASE_NUMBER_H

#include <stdint.h>
#include <string.h>

static inline uint32_t mf_f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float mf_f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float mf_bf16_to_f32(uint16_t h)
{
    return mf_f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t mf_f32_to_bf16(float x)
{
    uint32_t u = mf_f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((u >> 16) | 0x40u);
    }
    u += 0x7fffu + ((u >> 16) & 1u);
    return (uint16_t)(u >> 16);
}

static inline float mf_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t mag = h & 0x7fffu;
    if (mag >= 0x7c00u) { /* inf, NaN */
        return mf_f32_from_bits(sign | 0x7f800000u | ((mag & 0x3ffu) << 13));
    }
    if (mag >= 0x400u) {
        return mf_f32_from_bits(sign | ((mag << 13) + 0x38000000u));
    }
    float v = (float)mag * 0x1p-24f; /* subnormal: exact */
    return mf_f32_from_bits(mf_f32_bits(v) | sign);
}

static inline uint16_t mf_f32_to_f16(float x)
{
    uint32_t u = mf_f32_bits(x);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (mag >= 0x477ff000u) { /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (mag < 0x38800000u) { /* below 2^-14: the sum's low mantissa bits are the rounded subnormal */
        float shifted = mf_f32_from_bits(mag) + 0.5f;
        return (uint16_t)(sign | (mf_f32_bits(shifted) - 0x3f000000u));
    }
    mag += 0xfffu + ((mag >> 13) & 1u);
    return (uint16_t)(sign | ((mag - 0x38000000u) >> 13));
}

/* e4m3fn: 1-4-3, bias 7, 0x7f and 0xff are NaN, largest 448. */
static inline float mf_e4m3_to_f32(uint8_t b)
{
    uint32_t sign = (uint32_t)(b & 0x80u) << 24;
    uint32_t mag = b & 0x7fu;
    if (mag == 0x7fu) {
        return mf_f32_from_bits(sign | 0x7fc00000u);
    }
    if (mag >= 8u) {
        return mf_f32_from_bits(sign | ((mag << 20) + (120u << 23)));
    }
    return mf_f32_from_bits(mf_f32_bits((float)mag * 0x1p-9f) | sign);
}

static inline uint8_t mf_f32_to_e4m3(float x)
{
    uint32_t u = mf_f32_bits(x);
    uint8_t sign = (uint8_t)((u >> 24) & 0x80u);
    uint32_t mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) {
        return (uint8_t)(sign | 0x7fu);
    }
    if (mag >= 0x43e00000u) { /* 448 and above saturate */
        return (uint8_t)(sign | 0x7eu);
    }
    if (mag < 0x3c800000u) { /* below 2^-6: multiples of 2^-9 */
        float shifted = mf_f32_from_bits(mag) + 16384.0f; /* ulp of [2^14, 2^15) is 2^-9 */
        return (uint8_t)(sign | (mf_f32_bits(shifted) - 0x46800000u));
    }
    mag += 0x7ffffu + ((mag >> 20) & 1u);
    uint32_t code = (mag >> 20) - (120u << 3);
    return (uint8_t)(sign | (code > 0x7eu ? 0x7eu : code));
}

/* e8m0: 2^(b - 127); 255 is NaN; b = 0 is 2^-127, an f32 subnormal. */
static inline float mf_e8m0_to_f32(uint8_t b)
{
    if (b == 255) {
        return mf_f32_from_bits(0x7fc00000u);
    }
    return b == 0 ? mf_f32_from_bits(0x00400000u) : mf_f32_from_bits((uint32_t)b << 23);
}

static inline float mf_e2m1_to_f32(uint8_t code)
{
    static const float magnitude[8] = { 0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f };
    float v = magnitude[code & 7u];
    return code & 8u ? -v : v;
}

#endif
