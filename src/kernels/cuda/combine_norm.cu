/* combine_norm.cu - the usual combine of few tokens, of f32 or bf16 into f32, and the norm of what it leaves: one
 * launch for sum_reduce.cu's and dense.cu's two, with their bits.
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

} // namespace

int mf_cuda_launch_combine_norm(const mf_cuda_combine_norm *call, int starts_early, void *stream)
{
    auto kernel = call->x_is_bf16 ? combine_norm_kernel<uint16_t> : combine_norm_kernel<float>;
    want_all_shared(kernel);
    return launch_kernel(starts_early != 0, kernel, dim3((unsigned)call->num_tokens), THREADS,
                         (size_t)call->hidden_size * 4, stream, *call);
}
