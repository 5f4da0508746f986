/* delta_net.cu - the gated delta net as ops.h defines it, token by token: convolution, unit queries and keys,
 * recurrence.
 *
 * Rows of a sequence follow one another in a block, so a text's bits do not depend on how it is cut.  A block of the
 * recurrence takes a sequence and a value head, a thread a column of the state. */
#include <cuda_runtime.h>

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/numbers.cuh"

namespace
{

constexpr int THREADS = 128;

MF_DEV float sigmoid(float x)
{
    return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-x)));
}

MF_DEV int channels_of(const mf_cuda_delta_net &p)
{
    return 2 * p.num_k_heads * p.k_dim + p.num_v_heads * p.v_dim;
}

/* Where channel c of a row is in qkvz. */
MF_DEV int place_of(const mf_cuda_delta_net &p, int c)
{
    const int keys = p.num_k_heads * p.k_dim, values = p.num_v_heads / p.num_k_heads * p.v_dim;
    const int section = 2 * (p.k_dim + values);
    if (c < keys) {
        return c / p.k_dim * section + c % p.k_dim;
    }
    if (c < 2 * keys) {
        c -= keys;
        return c / p.k_dim * section + p.k_dim + c % p.k_dim;
    }
    c -= 2 * keys;
    return c / values * section + 2 * p.k_dim + c % values;
}

MF_DEV int row_width(const mf_cuda_delta_net &p)
{
    return p.num_k_heads * 2 * (p.k_dim + p.num_v_heads / p.num_k_heads * p.v_dim);
}

/* A thread takes a channel of a sequence: the state's past inputs, then the batch's. */
__global__ void __launch_bounds__(THREADS) convolve_kernel(const __grid_constant__ mf_cuda_delta_net p)
{
    const int c = blockIdx.x * THREADS + threadIdx.x, run = blockIdx.y, channels = channels_of(p), taps = p.conv_size;
    if (c >= channels) {
        return;
    }
    float *past = p.states + p.slot[run] * p.slot_floats + (int64_t)p.num_v_heads * p.k_dim * p.v_dim + c;
    const float *w = p.conv + (int64_t)c * taps;
    const int begin = p.start[run], end = p.start[run + 1], place = place_of(p, c), width = row_width(p);
    const bool is_new = p.is_new[run] != 0;
    for (int i = begin; i < end; i++) {
        float sum = 0.0f;
        for (int j = 0; j < taps; j++) {
            const int from = i - (taps - 1) + j; /* before begin: the state's, whose youngest is the last */
            const float x = from >= begin ? p.qkvz[(int64_t)p.rows[from] * width + place]
                            : is_new      ? 0.0f
                                          : past[(int64_t)(taps - 1 + from - begin) * channels];
            sum = __fadd_rn(sum, __fmul_rn(w[j], x));
        }
        p.y[(int64_t)p.rows[i] * channels + c] = __fmul_rn(sum, sigmoid(sum));
    }
    for (int j = 0; j < taps - 1; j++) { /* ascending: what is read lies ahead of what is written */
        const int from = end - (taps - 1) + j;
        past[(int64_t)j * channels] = from >= begin ? p.qkvz[(int64_t)p.rows[from] * width + place]
                                      : is_new      ? 0.0f
                                                    : past[(int64_t)(taps - 1 + from - begin) * channels];
    }
}

MF_DEV float warp_sum(float v)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        v = __fadd_rn(v, __shfl_xor_sync(MF_FULL_WARP, v, step));
    }
    return v;
}

/* A warp takes one query or key of a row. */
__global__ void __launch_bounds__(THREADS) unit_kernel(const __grid_constant__ mf_cuda_delta_net p)
{
    const int lane = threadIdx.x & 31;
    const int64_t at = (int64_t)blockIdx.x * (THREADS / 32) + (threadIdx.x >> 5);
    if (at >= p.num_tokens * 2 * p.num_k_heads) {
        return;
    }
    const int64_t row = at / (2 * p.num_k_heads);
    const int which = (int)(at % (2 * p.num_k_heads));
    float *x = p.y + row * channels_of(p) + (int64_t)which * p.k_dim;
    float sum = 0.0f;
    for (int i = lane; i < p.k_dim; i += 32) {
        sum = __fmaf_rn(x[i], x[i], sum);
    }
    const float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(warp_sum(sum), 1e-6f)));
    const float scale = which < p.num_k_heads ? __fdiv_rn(1.0f, __fsqrt_rn((float)p.k_dim)) : 1.0f;
    for (int i = lane; i < p.k_dim; i += 32) {
        x[i] = __fmul_rn(__fmul_rn(x[i], factor), scale);
    }
}

/* As many threads as columns, in whole warps; the state in shared memory where it fits. */
__global__ void recur_kernel(const __grid_constant__ mf_cuda_delta_net p, int in_shared)
{
    extern __shared__ __align__(16) float room[]; /* q, k [k_dim]; sums of warps [32]; the state */
    const int head = blockIdx.x, run = blockIdx.y, j = threadIdx.x, k_dim = p.k_dim, v_dim = p.v_dim;
    const int ratio = p.num_v_heads / p.num_k_heads, key_head = head / ratio, nth = head % ratio;
    const int channels = channels_of(p), warps = (blockDim.x + 31) / 32;
    float *q = room, *k = q + k_dim, *sums = k + k_dim;
    float *stored = p.states + p.slot[run] * p.slot_floats + (int64_t)head * k_dim * v_dim;
    float *state = in_shared ? sums + 32 : stored;
    const bool is_mine = j < v_dim, is_new = p.is_new[run] != 0;
    for (int i = 0; i < k_dim && is_mine; i++) {
        if (in_shared || is_new) {
            state[i * v_dim + j] = is_new ? 0.0f : stored[i * v_dim + j];
        }
    }
    __shared__ float factors[2]; /* beta and decay of a row; in double, because a decay's error grows with each token */
    for (int at = p.start[run]; at < p.start[run + 1]; at++) {
        const int64_t row = p.rows[at];
        const float *y = p.y + row * channels;
        __syncthreads();
        for (int i = j; i < k_dim; i += blockDim.x) {
            q[i] = y[key_head * k_dim + i];
            k[i] = y[(p.num_k_heads + key_head) * k_dim + i];
        }
        if (j == 0) {
            const float *ba = p.ba + (row * p.num_k_heads + key_head) * 2 * ratio;
            const double x = (double)__fadd_rn(ba[ratio + nth], p.dt_bias[head]);
            factors[0] = sigmoid(ba[nth]);
            factors[1] = (float)exp(-exp((double)p.a_log[head]) * (x > 20.0 ? x : log1p(exp(x))));
        }
        __syncthreads();
        const float beta = factors[0], decay = factors[1];
        float o = 0.0f;
        if (is_mine) {
            float seen = 0.0f;
#pragma unroll 8
            for (int i = 0; i < k_dim; i++) {
                const float s = __fmul_rn(state[i * v_dim + j], decay);
                state[i * v_dim + j] = s;
                seen = __fmaf_rn(k[i], s, seen);
            }
            const float change = __fmul_rn(beta, __fsub_rn(y[2 * p.num_k_heads * k_dim + head * v_dim + j], seen));
#pragma unroll 8
            for (int i = 0; i < k_dim; i++) {
                const float s = __fmaf_rn(k[i], change, state[i * v_dim + j]);
                state[i * v_dim + j] = s;
                o = __fmaf_rn(q[i], s, o);
            }
        }
        const float part = warp_sum(__fmul_rn(o, o));
        if ((j & 31) == 0) {
            sums[j >> 5] = part;
        }
        __syncthreads();
        float square = 0.0f;
        for (int w = 0; w < warps; w++) {
            square = __fadd_rn(square, sums[w]);
        }
        if (is_mine) {
            const float scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(square, (float)v_dim), p.norm_eps)));
            const float z = p.qkvz[row * row_width(p) + (int64_t)key_head * 2 * (k_dim + ratio * v_dim) + 2 * k_dim +
                                   (ratio + nth) * v_dim + j];
            p.out[(row * p.num_v_heads + head) * v_dim + j] =
                __fmul_rn(__fmul_rn(__fmul_rn(o, scale), p.norm[j]), __fmul_rn(z, sigmoid(z)));
        }
    }
    for (int i = 0; i < k_dim && is_mine && in_shared; i++) {
        stored[i * v_dim + j] = state[i * v_dim + j];
    }
}

} // namespace

int mf_cuda_launch_delta_net(const mf_cuda_delta_net *call, void *stream)
{
    const mf_cuda_delta_net &p = *call;
    cudaStream_t s = (cudaStream_t)stream;
    const int channels = 2 * p.num_k_heads * p.k_dim + p.num_v_heads * p.v_dim;
    convolve_kernel<<<dim3((unsigned)((channels + THREADS - 1) / THREADS), (unsigned)p.num_runs), THREADS, 0, s>>>(p);
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
        return (int)error;
    }
    const int64_t units = p.num_tokens * 2 * p.num_k_heads;
    unit_kernel<<<(unsigned)((units + THREADS / 32 - 1) / (THREADS / 32)), THREADS, 0, s>>>(p);
    error = cudaGetLastError();
    if (error != cudaSuccess) {
        return (int)error;
    }
    const size_t base = (size_t)(2 * p.k_dim + 32) * 4, whole = base + (size_t)p.k_dim * (size_t)p.v_dim * 4;
    const int in_shared = whole <= 96 * 1024;
    const size_t bytes = in_shared ? whole : base;
    error = cudaFuncSetAttribute(recur_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) {
        return (int)error;
    }
    recur_kernel<<<dim3((unsigned)p.num_v_heads, (unsigned)p.num_runs), (unsigned)((p.v_dim + 31) / 32 * 32), bytes,
                   s>>>(p, in_shared);
    return (int)cudaGetLastError();
}
