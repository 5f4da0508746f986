/* canonical.h - the elementary functions of the gate, defined to the bit so that every backend chooses the same experts.
 *
 * Plain IEEE f32, nearest even, no contraction; an fma is one rounding.  Callers run with FTZ and DAZ off (fp_env.h).
 * Shared by the reference and by the CPU backends' scalar code. */
#ifndef MF_KERNELS_REF_CANONICAL_H
#define MF_KERNELS_REF_CANONICAL_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/number.h"

/* Limits of the gate that fixed-size rows rely on; api_gate.c refuses more. */
enum { MF_GATE_MAX_WIDTH = 4096, MF_GATE_MAX_TOP_K = 64, MF_GATE_MAX_SHARED = 16 };
enum { MF_GATE_MAX_COLUMNS = MF_GATE_MAX_TOP_K + MF_GATE_MAX_SHARED };

static inline bool mf_is_nan(float v)
{
    return (mf_f32_bits(v) & 0x7fffffffu) > 0x7f800000u;
}

/* Infinities become the largest finite values, so that differences and products of inputs stay numbers. */
static inline float mf_canon_finite(float v)
{
    return v > FLT_MAX ? FLT_MAX : v < -FLT_MAX ? -FLT_MAX : v;
}

/* Subnormals and -0 become +0, so that no result depends on whether hardware flushes them.  By bits, not by comparison:
 * DAZ must not matter even here. */
static inline float mf_canon_zero(float v)
{
    return (mf_f32_bits(v) & 0x7fffffffu) < 0x00800000u ? 0.0f : v;
}

static inline float mf_canon_input(float v)
{
    return mf_canon_zero(mf_canon_finite(v));
}

/* A bias cannot be refused here: on a device its values are unknown to the host.  NaN counts as no bias. */
static inline float mf_canon_bias(float v)
{
    return mf_is_nan(v) ? 0.0f : mf_canon_input(v);
}

/* exp(x) for x <= 0, within 0.94 ulp; +0 below -87, so the result is never subnormal. */
static inline float mf_exp(float x)
{
    if (x < -87.0f) {
        return 0.0f;
    }
    float v = x * 0x1.715476p+0f;
    float n = (v + 0x1.8p23f) - 0x1.8p23f; /* rint */
    float r = fmaf(-n, 0x1.62e400p-1f, x);
    r = fmaf(-n, 0x1.7f7d1cp-20f, r);
    float p = 0x1.a01a02p-13f;
    p = fmaf(p, r, 0x1.6c16c2p-10f);
    p = fmaf(p, r, 0x1.111112p-7f);
    p = fmaf(p, r, 0x1.555556p-5f);
    p = fmaf(p, r, 0x1.555556p-3f);
    p = fmaf(p, r, 0x1p-1f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * mf_f32_from_bits((uint32_t)((int32_t)n + 127) << 23);
}

/* log(1 + z) for 0 <= z <= 1, within 2.9 ulp: the odd series of atanh at z / (2 + z). */
static inline float mf_log1p(float z)
{
    if (z < 0x1p-24f) {
        return z;
    }
    float s = z / (2.0f + z);
    float q = s * s;
    float p = 0x1.e1e1e2p-4f;
    p = fmaf(p, q, 0x1.111112p-3f);
    p = fmaf(p, q, 0x1.3b13b2p-3f);
    p = fmaf(p, q, 0x1.745d18p-3f);
    p = fmaf(p, q, 0x1.c71c72p-3f);
    p = fmaf(p, q, 0x1.24924ap-2f);
    p = fmaf(p, q, 0x1.99999ap-2f);
    p = fmaf(p, q, 0x1.555556p-1f);
    p = fmaf(p, q, 2.0f);
    return p * s;
}

static inline float mf_sigmoid(float x)
{
    float z = mf_exp(-fabsf(x));
    return x >= 0.0f ? 1.0f / (1.0f + z) : z / (1.0f + z);
}

/* sqrt(log(1 + exp(x))) */
static inline float mf_sqrtsoftplus(float x)
{
    return sqrtf((x > 0.0f ? x : 0.0f) + mf_log1p(mf_exp(-fabsf(x))));
}

/* The sum of v[0..n) in one fixed order that 32 lanes of a warp, or 8 lanes times 4 registers, can follow.  v holds no NaN
 * in the gate; values are >= +0 there, so elements that a caller wants absent may be +0. */
static inline float mf_lanesum32(const float *v, int64_t n)
{
    float lane[32] = { 0.0f };
    for (int64_t i = 0; i < n; i++) {
        lane[i & 31] += v[i];
    }
    for (int d = 16; d > 0; d /= 2) {
        for (int l = 0; l < d; l++) {
            lane[l] += lane[l + d]; /* lane l xor d, for the half of the lanes that lane 0 depends on */
        }
    }
    return lane[0];
}

#endif
