/* combine_norm.cu - the usual combine, of f32 or bf16 (few tokens) or bf16 (many) into f32, and the norm of what it
 * leaves: one launch for sum_reduce.cu's and dense.cu's two, with their bits.
 *
 * A block takes a token.  The row stands in shared memory between the two: the norm's sum has norm_kernel<8>'s order,
 * 256 threads' elements 256 apart. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/combine_norm.h"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/heads.cuh"

namespace
{

constexpr int THREADS = 512, NORM_THREADS = 256, COLUMNS = 10;

/* Of the row that the block's threads have written. */
MF_DEV float sum_of_squares(const float *row, int n)
{
    __shared__ float parts[NORM_THREADS / 32];
    const int tid = threadIdx.x;
    __syncthreads();
    if (tid < NORM_THREADS) {
        float sum = 0.0f;
#pragma unroll 8
        for (int i = tid; i < n; i += NORM_THREADS) {
            sum = __fmaf_rn(row[i], row[i], sum);
        }
        sum = sum_of(sum);
        if ((tid & 31) == 0) {
            parts[tid >> 5] = sum;
        }
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < NORM_THREADS / 32; k++) {
        sum = __fadd_rn(sum, parts[k]);
    }
    return sum;
}

/* Four elements of the norm's result. */
MF_DEV float4 normed(float4 v, float scale, float4 weight)
{
    return make_float4(__fmul_rn(__fmul_rn(v.x, scale), weight.x), __fmul_rn(__fmul_rn(v.y, scale), weight.y),
                       __fmul_rn(__fmul_rn(v.z, scale), weight.z), __fmul_rn(__fmul_rn(v.w, scale), weight.w));
}

MF_DEV float4 load_4(const float *p)
{
    return __ldcg((const float4 *)p);
}

MF_DEV float4 load_4(const uint16_t *p)
{
    const uint2 v = __ldcg((const uint2 *)p);
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                       __uint_as_float(v.y & 0xffff0000u));
}

/* Y: float, or uint16_t for bf16. */
template <typename Y>
__global__ void __launch_bounds__(THREADS) combine_norm_kernel(const __grid_constant__ mf_cuda_combine_norm p)
{
    extern __shared__ __align__(16) float row[];
    const int tid = threadIdx.x, n = p.hidden_size;
    const int64_t t = blockIdx.x;
    let_next_start();
    float4 weight = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (tid * 4 < n) {
        weight = *(const float4 *)(p.norm_weight + tid * 4);
    }
    wait_for_previous();
    float w[COLUMNS];
    bool use[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        use[c] = c < p.num_columns && (!p.ids || p.ids[t * p.ids_stride + c] >= 0);
        w[c] = use[c] && p.weights ? p.weights[t * p.weights_stride + c] : 1.0f;
    }
#pragma unroll 1
    for (int h = tid * 4; h < n; h += THREADS * 4) {
        const Y *x = (const Y *)p.x + t * p.x_stride + h;
        float4 v[COLUMNS];
        float4 residual = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            if (use[c]) {
                v[c] = load_4(x + c * p.column_stride);
            }
        }
        if (p.residual) {
            residual = __ldcg((const float4 *)(p.residual + t * p.residual_stride + h));
        }
        float r[4] = { 0.0f, 0.0f, 0.0f, 0.0f }, s[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const float of[4] = { v[c].x, v[c].y, v[c].z, v[c].w };
            if (use[c] && c < p.routed) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    r[e] = __fmaf_rn(w[c], of[e], r[e]);
                }
            } else if (use[c]) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[e] = __fmaf_rn(w[c], of[e], s[e]);
                }
            }
        }
        const float add[4] = { residual.x, residual.y, residual.z, residual.w };
#pragma unroll
        for (int e = 0; e < 4; e++) {
            r[e] = __fmaf_rn(p.factor, r[e], s[e]);
            r[e] = p.residual ? __fadd_rn(r[e], add[e]) : r[e];
        }
        const float4 all = make_float4(r[0], r[1], r[2], r[3]);
        *(float4 *)(row + h) = all;
        *(float4 *)(p.out + t * p.out_stride + h) = all;
    }
    const float scale = norm_scale(sum_of_squares(row, n), n, p.norm_eps);
#pragma unroll 1
    for (int h = tid * 4; h < n; h += THREADS * 4) {
        if (h >= THREADS * 4) {
            weight = *(const float4 *)(p.norm_weight + h);
        }
        const float4 v = *(const float4 *)(row + h);
        const float4 y = normed(v, scale, weight);
        *(float4 *)(p.norm_out + t * n + h) = y;
        if (p.norm_rounded) {
            *(uint2 *)(p.norm_rounded + t * n + h) = make_uint2(pack_bf16(y.x, y.y), pack_bf16(y.z, y.w));
        }
    }
}

/* Many tokens of bf16, up to MOST columns, eight elements of each a load; several blocks a multiprocessor overlap. */
template <int MOST>
__global__ void __launch_bounds__(NORM_THREADS, MOST <= 8 ? 4 : 3)
    combine_norm_rows_kernel(const __grid_constant__ mf_cuda_combine_norm p)
{
    constexpr int EACH = 8;
    extern __shared__ __align__(16) float row[];
    const int tid = threadIdx.x, n = p.hidden_size;
    const int64_t t = blockIdx.x;
    let_next_start();
    wait_for_previous();
    float w[MOST];
    uint32_t use = 0;
#pragma unroll
    for (int c = 0; c < MOST; c++) {
        use |= (uint32_t)(c < p.num_columns && (!p.ids || p.ids[t * p.ids_stride + c] >= 0)) << c;
        w[c] = c < p.num_columns && p.weights ? p.weights[t * p.weights_stride + c] : 1.0f;
    }
#pragma unroll 1
    for (int h = tid * EACH; h < n; h += NORM_THREADS * EACH) {
        const uint16_t *x = (const uint16_t *)p.x + t * p.x_stride + h;
        uint4 v[MOST];
#pragma unroll
        for (int c = 0; c < MOST; c++) {
            if (use >> c & 1) {
                v[c] = *(const uint4 *)(x + c * p.column_stride);
            }
        }
        float r[EACH], s[EACH], add[EACH];
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            r[e] = s[e] = add[e] = 0.0f;
        }
        if (p.residual) {
            const float *from = p.residual + t * p.residual_stride + h;
            const float4 low = *(const float4 *)from, high = *(const float4 *)(from + 4);
            add[0] = low.x, add[1] = low.y, add[2] = low.z, add[3] = low.w;
            add[4] = high.x, add[5] = high.y, add[6] = high.z, add[7] = high.w;
        }
#pragma unroll
        for (int c = 0; c < MOST; c++) {
            const uint32_t pairs[4] = { v[c].x, v[c].y, v[c].z, v[c].w };
            if ((use >> c & 1) && c < p.routed) {
#pragma unroll
                for (int e = 0; e < EACH; e++) {
                    r[e] =
                        __fmaf_rn(w[c], __uint_as_float(e % 2 ? pairs[e / 2] & 0xffff0000u : pairs[e / 2] << 16), r[e]);
                }
            } else if (use >> c & 1) {
#pragma unroll
                for (int e = 0; e < EACH; e++) {
                    s[e] =
                        __fmaf_rn(w[c], __uint_as_float(e % 2 ? pairs[e / 2] & 0xffff0000u : pairs[e / 2] << 16), s[e]);
                }
            }
        }
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            r[e] = __fmaf_rn(p.factor, r[e], s[e]);
            r[e] = p.residual ? __fadd_rn(r[e], add[e]) : r[e];
        }
        float *out = p.out + t * p.out_stride + h;
#pragma unroll
        for (int e = 0; e < EACH; e += 4) {
            const float4 four = make_float4(r[e], r[e + 1], r[e + 2], r[e + 3]);
            *(float4 *)(row + h + e) = four;
            *(float4 *)(out + e) = four;
        }
    }
    const float scale = norm_scale(sum_of_squares(row, n), n, p.norm_eps);
#pragma unroll 1
    for (int h = tid * EACH; h < n; h += NORM_THREADS * EACH) {
        const float4 low = normed(*(const float4 *)(row + h), scale, *(const float4 *)(p.norm_weight + h)),
                     high = normed(*(const float4 *)(row + h + 4), scale, *(const float4 *)(p.norm_weight + h + 4));
        if (p.norm_out) {
            *(float4 *)(p.norm_out + t * n + h) = low;
            *(float4 *)(p.norm_out + t * n + h + 4) = high;
        }
        if (p.norm_rounded) {
            *(uint4 *)(p.norm_rounded + t * n + h) = make_uint4(pack_bf16(low.x, low.y), pack_bf16(low.z, low.w),
                                                                pack_bf16(high.x, high.y), pack_bf16(high.z, high.w));
        }
    }
}

} // namespace

int mf_cuda_launch_combine_norm(const mf_cuda_combine_norm *call, int starts_early, void *stream)
{
    if (call->num_tokens > MF_CUDA_COMBINE_NORM_FEW) {
        return launch_kernel(
            starts_early != 0, call->num_columns <= 8 ? combine_norm_rows_kernel<8> : combine_norm_rows_kernel<COLUMNS>,
            dim3((unsigned)call->num_tokens), NORM_THREADS, (size_t)call->hidden_size * 4, stream, *call);
    }
    auto kernel = call->x_is_bf16 ? combine_norm_kernel<uint16_t> : combine_norm_kernel<float>;
    want_all_shared(kernel);
    return launch_kernel(starts_early != 0, kernel, dim3((unsigned)call->num_tokens), THREADS,
                         (size_t)call->hidden_size * 4, stream, *call);
}
