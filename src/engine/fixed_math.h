/* fixed_math.h - exp and log of double from additions and multiplications alone, so that every machine gets the same bits.
 *
 * libm picks variants by CPU (with and without fused multiply-add) whose last bits differ; sampled tokens and printed
 * log-probabilities must not.  Both are within 2 ulp. */
#ifndef MF_ENGINE_FIXED_MATH_H
#define MF_ENGINE_FIXED_MATH_H

#include <stdint.h>
#include <string.h>

/* e^x for x <= 0; below -708 it is the smallest normal scale's value, which no sum of ours can see. */
static inline double mf_fixed_exp(double x)
{
    x = x > -708.0 ? x : -708.0;
    /* x = k ln2 + r: adding 1.5 * 2^52 rounds x / ln2 to the integer k in the low mantissa bits. */
    double shifted = x * 0x1.71547652b82fep0 + 0x1.8p52;
    double k = shifted - 0x1.8p52;
    double r = (x - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
    /* Taylor to r^13 / 13!; |r| <= 0.3466 leaves 4e-18. */
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 52) + 0x3ff0000000000000u; /* 2^k */
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* ln x for normal x > 0. */
static inline double mf_fixed_log(double x)
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
