/* fixed_math.h - exp of float and log of double from additions and multiplications alone: the same bits on every machine.
 *
 * libm picks variants by CPU (with and without fused multiply-add) whose last bits differ; sampled tokens and printed
 * log-probabilities must not.  Both are within 2 ulp.  exp is float so that a vocabulary's worth of it vectorises. */
#ifndef MF_BASE_FIXED_MATH_H
#define MF_BASE_FIXED_MATH_H

#include <stdint.h>
#include <string.h>

/* Functions that a GPU has, too. */
#ifdef __CUDACC__
#define MF_FIXED static __host__ __device__ __forceinline__
#else
#define MF_FIXED static inline
#endif

/* e^x for x <= 0; exactly 0 below -87, where a weight beside e^0 could not be drawn anyway. */
MF_FIXED float mf_fixed_exp(float x)
{
    float clamped = x > -87.0f ? x : -87.0f;
    /* x = k ln2 + r: adding 1.5 * 2^23 rounds x / ln2 to the integer k in the low mantissa bits. */
    float shifted = clamped * 0x1.715476p0f + 0x1.8p23f;
    float k = shifted - 0x1.8p23f;
    float r = (clamped - k * 0x1.62ep-1f) - k * 0x1.0bfbe8p-15f; /* the first product is exact */
    /* Taylor to r^7 / 7!; |r| <= 0.3466 leaves 6e-9. */
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u; /* 2^k */
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x > -87.0f ? p * scale : 0.0f;
}

/* ln x for normal x > 0. */
MF_FIXED double mf_fixed_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    /* x = 2^e m with m in [sqrt(1/2), sqrt(2)) */
    uint64_t shifted = bits - 0x3fe6a09e667f3bcdu;
    int64_t e = (int64_t)shifted >> 52;
    bits -= (uint64_t)e << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    /* ln m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716: the series to s^21 leaves 1e-19. */
    double s = (m - 1.0) / (m + 1.0);
    double z = s * s;
    double p = 1.0 / 21.0;
    p = p * z + 1.0 / 19.0;
    p = p * z + 1.0 / 17.0;
    p = p * z + 1.0 / 15.0;
    p = p * z + 1.0 / 13.0;
    p = p * z + 1.0 / 11.0;
    p = p * z + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    double tail = 2.0 * s * z * p + (double)e * 0x1.a39ef35793c76p-33;
    return (double)e * 0x1.62e42fee00000p-1 + (2.0 * s + tail);
}

#endif
