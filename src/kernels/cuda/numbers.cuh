/* numbers.cuh - storage formats and the gate's elementary functions on the device: the bits of base/number.h and
 * kernels/ref/canonical.h.
 *
 * The files that include it are compiled with -fmad=false -prec-div=true -prec-sqrt=true -ftz=false: a product and a sum
 * stay two roundings unless an fma is written. */
#ifndef MF_KERNELS_CUDA_NUMBERS_CUH
#define MF_KERNELS_CUDA_NUMBERS_CUH

#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <float.h>
#include <stdint.h>

#include "kernels/cuda/calls.h"

#define MF_DEV static __device__ __forceinline__
#define MF_DEV_MEMBER static __device__ __forceinline__
#define MF_FULL_WARP 0xffffffffu

/* ---- memory, aligned or not ---- */

template <typename T> MF_DEV T load_at(const void *base, int64_t i, bool bytewise)
{
    const uint8_t *p = (const uint8_t *)base + i * (int64_t)sizeof(T);
    if (!bytewise) {
        return *(const T *)p;
    }
    T v;
    uint8_t *b = (uint8_t *)&v;
#pragma unroll
    for (int k = 0; k < (int)sizeof(T); k++) {
        b[k] = p[k];
    }
    return v;
}

template <typename T> MF_DEV void store_at(void *base, int64_t i, T v, bool bytewise)
{
    uint8_t *p = (uint8_t *)base + i * (int64_t)sizeof(T);
    if (!bytewise) {
        *(T *)p = v;
        return;
    }
    const uint8_t *b = (const uint8_t *)&v;
#pragma unroll
    for (int k = 0; k < (int)sizeof(T); k++) {
        p[k] = b[k];
    }
}

MF_DEV float bf16_to_f32(uint16_t h)
{
    return __uint_as_float((uint32_t)h << 16);
}

MF_DEV uint16_t f32_to_bf16(float x)
{
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((u >> 16) | 0x40u);
    }
    u += 0x7fffu + ((u >> 16) & 1u);
    return (uint16_t)(u >> 16);
}

MF_DEV float f16_to_f32(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}

MF_DEV uint16_t f32_to_f16(float x)
{
    return __half_as_ushort(__float2half_rn(x));
}

MF_DEV float e8m0_to_f32(uint8_t b)
{
    return b == 255 ? __uint_as_float(0x7fc00000u) : b == 0 ? __uint_as_float(0x00400000u) : __uint_as_float((uint32_t)b << 23);
}

MF_DEV float e2m1_to_f32(int c)
{
    const int e = (c >> 1) & 3, m = c & 1;
    const float v = e == 0 ? 0.5f * m : (float)((2 + m) << e) * 0.25f;
    return c & 8 ? -v : v;
}

/* Exact: every e4m3 value is an f16. */
MF_DEV float e4m3_to_f32(uint8_t b)
{
    __half_raw h = __nv_cvt_fp8_to_halfraw(b, __NV_E4M3);
    return __half2float(__half(h));
}

/* Scale i of a matrix. */
MF_DEV float scale_at(const mf_cuda_matrix &m, int64_t i)
{
    if (m.scale_dtype == MF_F32) {
        return load_at<float>(m.scale, i, m.reserved);
    }
    if (m.scale_dtype == MF_F8_E8M0) {
        return e8m0_to_f32(m.scale[i]);
    }
    const uint16_t h = load_at<uint16_t>(m.scale, i, m.reserved);
    return m.scale_dtype == MF_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

MF_DEV float load_float(const void *base, int dtype, int64_t i, bool bytewise)
{
    if (dtype == MF_F32) {
        return load_at<float>(base, i, bytewise);
    }
    uint16_t h = load_at<uint16_t>(base, i, bytewise);
    return dtype == MF_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

MF_DEV void store_float(void *base, int dtype, int64_t i, float v, bool bytewise)
{
    if (dtype == MF_F32) {
        store_at<float>(base, i, v, bytewise);
    } else {
        store_at<uint16_t>(base, i, dtype == MF_BF16 ? f32_to_bf16(v) : f32_to_f16(v), bytewise);
    }
}

MF_DEV float round_to_dtype(float x, int dtype)
{
    return dtype == MF_BF16 ? bf16_to_f32(f32_to_bf16(x)) : dtype == MF_F16 ? f16_to_f32(f32_to_f16(x)) : x;
}

MF_DEV int64_t num_valid_rows(const void *num_valid, int64_t num_tokens, bool bytewise)
{
    if (!num_valid) {
        return num_tokens;
    }
    int32_t n = load_at<int32_t>(num_valid, 0, bytewise);
    return n < 0 ? 0 : n < num_tokens ? n : num_tokens;
}

/* ---- the gate's functions, to the bit ---- */

MF_DEV bool is_nan(float v)
{
    return (__float_as_uint(v) & 0x7fffffffu) > 0x7f800000u;
}

MF_DEV float canon_zero(float v)
{
    return (__float_as_uint(v) & 0x7fffffffu) < 0x00800000u ? 0.0f : v;
}

MF_DEV float canon_input(float v)
{
    return canon_zero(v > FLT_MAX ? FLT_MAX : v < -FLT_MAX ? -FLT_MAX : v);
}

MF_DEV float canon_bias(float v)
{
    return is_nan(v) ? 0.0f : canon_input(v);
}

/* e^x / 2^n, n the nearest integer to x / ln 2. */
MF_DEV float exp_of_rest(float x, float n)
{
    float r = __fmaf_rn(-n, 0x1.62e400p-1f, x);
    r = __fmaf_rn(-n, 0x1.7f7d1cp-20f, r);
    float p = 0x1.a01a02p-13f;
    p = __fmaf_rn(p, r, 0x1.6c16c2p-10f);
    p = __fmaf_rn(p, r, 0x1.111112p-7f);
    p = __fmaf_rn(p, r, 0x1.555556p-5f);
    p = __fmaf_rn(p, r, 0x1.555556p-3f);
    p = __fmaf_rn(p, r, 0x1p-1f);
    p = __fmaf_rn(p, r, 1.0f);
    return __fmaf_rn(p, r, 1.0f);
}

MF_DEV float gate_exp(float x)
{
    float v = __fmul_rn(x, 0x1.715476p+0f);
    float n = __fadd_rn(__fadd_rn(v, 0x1.8p23f), -0x1.8p23f);
    float p = exp_of_rest(x, n);
    float e = __fmul_rn(p, __uint_as_float((uint32_t)(__float2int_rn(n) + 127) << 23));
    return x < -87.0f ? 0.0f : e;
}

MF_DEV float gate_log1p(float z)
{
    float s = __fdiv_rn(z, __fadd_rn(2.0f, z));
    float q = __fmul_rn(s, s);
    float p = 0x1.e1e1e2p-4f;
    p = __fmaf_rn(p, q, 0x1.111112p-3f);
    p = __fmaf_rn(p, q, 0x1.3b13b2p-3f);
    p = __fmaf_rn(p, q, 0x1.745d18p-3f);
    p = __fmaf_rn(p, q, 0x1.c71c72p-3f);
    p = __fmaf_rn(p, q, 0x1.24924ap-2f);
    p = __fmaf_rn(p, q, 0x1.99999ap-2f);
    p = __fmaf_rn(p, q, 0x1.555556p-1f);
    p = __fmaf_rn(p, q, 2.0f);
    return z < 0x1p-24f ? z : __fmul_rn(p, s);
}

MF_DEV float gate_sigmoid(float x)
{
    float z = gate_exp(-fabsf(x));
    return __fdiv_rn(x >= 0.0f ? 1.0f : z, __fadd_rn(1.0f, z));
}

MF_DEV float gate_sqrtsoftplus(float x)
{
    return __fsqrt_rn(__fadd_rn(x > 0.0f ? x : 0.0f, gate_log1p(gate_exp(-fabsf(x)))));
}

/* Order of unsigned integers = order of the floats; 0 is below every number and every infinity. */
MF_DEV uint32_t ordered(float v)
{
    uint32_t u = __float_as_uint(v);
    return u ^ ((u >> 31) ? 0xffffffffu : 0x80000000u);
}

MF_DEV float unordered(uint32_t u)
{
    return __uint_as_float(u ^ ((u >> 31) ? 0x80000000u : 0xffffffffu));
}

#endif
