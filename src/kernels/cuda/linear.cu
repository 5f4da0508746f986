/* linear.cu - products of a model's dense layers: out[t, r] = w[r] . x[t] + bias[r].
 *
 * PLAIN takes any format in f32 arithmetic: a warp sums a row, lane l the columns 8l.. of each 256, one tree at the
 * end. bf16 weights go through mma.sync, 16 columns an instruction, k cut into 8 or 16 runs, each from zero,
 * added in order: TILE by tiles of 128 rows, linear_few.cu with the weights streamed once past all tokens, with the same
 * bits, which are linear_wgmma.cu's, too.  Inputs are rounded to bf16, or, where they count as f32, split into three bf16
 * numbers that hold all their bits.  Which order is taken depends on the matrix alone. */
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/matrix.cuh"
#include "kernels/cuda/product.cuh"

namespace
{

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;

/* ---- PLAIN ---- */

MF_DEV void load_x8(const mf_cuda_linear &p, const float *x, int64_t k, int64_t columns, float (&v)[8])
{
    if (p.x_is_wide && k + 8 <= columns) {
        const float4 a = *(const float4 *)(x + k), b = *(const float4 *)(x + k + 4);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = k + i < columns ? x[k + i] : 0.0f;
        }
    }
    if (p.round_x) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = bf16_to_f32(f32_to_bf16(v[i]));
        }
    }
}

/* A warp takes ROWS rows and TOKENS tokens; columns past the end count as zeros, which change no sum but the sign of a
 * zero. */
template <int FORMAT, int ROWS, int TOKENS>
__global__ void __launch_bounds__(THREADS) plain_kernel(const __grid_constant__ mf_cuda_linear p)
{
    begin_early();
    const int which = matrix_of(p, blockIdx.x), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = ((blockIdx.x - p.first_block[which]) * (blockDim.x / 32) + warp) * ROWS,
                  t0 = (int64_t)blockIdx.y * TOKENS;
    const int64_t num_rows = p.num_batches > 0 ? p.rows : m.n,
                  row_base = p.num_batches > 0 ? blockIdx.z * p.batch_rows + p.first_row : 0;
    if (r0 >= num_rows) {
        return;
    }
    const bool is_wide = m.quant != 0; /* the host has looked at pointers and strides */
    const float *x = (const float *)p.x + (p.num_batches > 0 ? blockIdx.z * p.x_step : 0);
    const uint8_t *rows[ROWS];
    int64_t scale_rows[ROWS];
    float acc[ROWS][TOKENS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int64_t row = row_base + (r0 + r < num_rows ? r0 + r : num_rows - 1);
        rows[r] = matrix_row<FORMAT>(m, row);
        scale_rows[r] = matrix_scale_row<FORMAT>(m, row);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            acc[r][t] = 0.0f;
        }
    }
#pragma unroll 2
    for (int64_t k = 8 * lane; k < m.k; k += 256) {
        float w[ROWS][8];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            matrix_values8<FORMAT>(m, rows[r], scale_rows[r], k, is_wide, w[r]);
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float v[8];
            const int64_t token = t0 + t < p.num_tokens ? t0 + t : p.num_tokens - 1;
            load_x8(p, x + token * p.x_stride, k, m.k, v);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    acc[r][t] = k + i < m.k ? __fmaf_rn(w[r][i], v[i], acc[r][t]) : acc[r][t];
                }
            }
        }
    }
    float *out = p.out[which] + (p.num_batches > 0 ? blockIdx.z * p.out_step : 0);
    const float *bias = p.bias[which];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float v = acc[r][t];
#pragma unroll
            for (int step = 16; step > 0; step /= 2) {
                v = __fadd_rn(v, __shfl_xor_sync(MF_FULL_WARP, v, step));
            }
            if (lane == 0 && r0 + r < num_rows && t0 + t < p.num_tokens) {
                out[(t0 + t) * p.out_stride[which] + r0 + r] = bias ? __fadd_rn(v, bias[r0 + r]) : v;
            }
        }
    }
}

/* Small blocks where there are few rows: a multiprocessor each. */
template <int ROWS, int TOKENS> int launch_plain(const mf_cuda_linear &call, cudaStream_t stream)
{
    mf_cuda_linear p = call;
    int64_t blocks = 0, rows = 0;
    for (int i = 0; i < p.num; i++) {
        rows += (p.num_batches > 0 ? p.rows * p.num_batches : p.w[i].n) * ((p.num_tokens + TOKENS - 1) / TOKENS);
    }
    const int warps = rows <= 256 * ROWS ? 1 : rows <= 1024 * ROWS ? 4 : WARPS;
    for (int i = 0; i < p.num; i++) {
        p.first_block[i] = blocks;
        blocks += ((p.num_batches > 0 ? p.rows : p.w[i].n) + warps * ROWS - 1) / (warps * ROWS);
    }
    p.first_block[p.num] = blocks;
    const dim3 grid((unsigned)blocks, (unsigned)((p.num_tokens + TOKENS - 1) / TOKENS),
                    p.num_batches > 0 ? (unsigned)p.num_batches : 1);
    return with_format(p.w[0].format, [&](auto f) {
        return launch_early(plain_kernel<decltype(f)::value, ROWS, TOKENS>, grid, 32u * (unsigned)warps, (size_t)0,
                            stream, p);
    });
}

/* Planes of x for the kernels that read them from device memory. */
__global__ void __launch_bounds__(THREADS)
    split_kernel(const float *x, int64_t x_stride, int64_t n, int64_t count, uint16_t *out)
{
    begin_early();
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < count) {
        float part[3];
        split_bf16(x[at / n * x_stride + at % n], part);
#pragma unroll
        for (int k = 0; k < 3; k++) {
            out[k * count + at] = f32_to_bf16(part[k]);
        }
    }
}

/* ---- TILE: 128 rows by TOKENS tokens ---- */

constexpr int ROWS = 128;
constexpr int STAGES = 4;

/* Eight rows' chunks meet all banks. */
MF_DEV int swizzled(int row, int chunk)
{
    return row * 8 + (chunk ^ (row & 7));
}

template <int TOKENS> struct tile_shape;
template <> struct tile_shape<128> {
    static constexpr int WARPS_N = 2, M = 2, N = 8;
};
template <> struct tile_shape<64> {
    static constexpr int WARPS_N = 2, M = 2, N = 4;
};
template <> struct tile_shape<32> {
    static constexpr int WARPS_N = 2, M = 2, N = 2;
};

template <int TOKENS, int PARTS>
__global__ void __launch_bounds__(THREADS, TOKENS == 128 ? 1 : 2) tile_kernel(const __grid_constant__ mf_cuda_linear p)
{
    using shape = tile_shape<TOKENS>;
    constexpr int M = shape::M, N = shape::N, STAGE = (ROWS + TOKENS) * 8;
    constexpr int A_COPIES = ROWS * 8 / THREADS, B_COPIES = TOKENS * 8 / THREADS;
    extern __shared__ __align__(128) uint4 stages[];
    begin_early();
    const int which = matrix_of(p, blockIdx.y), tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2,
              q = lane & 3;
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = (blockIdx.y - p.first_block[which]) * ROWS, t0 = (int64_t)blockIdx.x * TOKENS;
    const int64_t num_rows = p.num_batches > 0 ? p.rows : m.n;
    const int64_t row_base = p.num_batches > 0 ? blockIdx.z * p.batch_rows + p.first_row : 0;
    const int real_units = (int)(m.k / 64),
              units = real_units * PARTS; /* each unit of weights meets every plane of x */
    const uint8_t *a_from[A_COPIES], *b_from[B_COPIES];
    uint32_t there = 0;
#pragma unroll
    for (int i = 0; i < A_COPIES; i++) {
        const int64_t r = r0 + ((tid + i * THREADS) >> 3);
        const bool is_there = r < num_rows;
        a_from[i] = m.data + (is_there ? (row_base + r) * m.row_stride * 2 : 0) + (tid & 7) * 16;
        there |= (uint32_t)is_there << i;
    }
#pragma unroll
    for (int i = 0; i < B_COPIES; i++) {
        const int64_t t = t0 + ((tid + i * THREADS) >> 3);
        const bool is_there = t < p.num_tokens;
        b_from[i] = (const uint8_t *)p.x + (p.num_batches > 0 ? blockIdx.z * p.x_step * 2 : 0) +
                    (is_there ? t * p.x_stride * 2 : 0) + (tid & 7) * 16;
        there |= (uint32_t)is_there << (A_COPIES + i);
    }
    auto copy_unit = [&](int unit) {
        if (unit < units) {
            uint4 *stage = stages + unit % STAGES * STAGE;
            const int at = unit / PARTS, part = unit % PARTS;
#pragma unroll
            for (int i = 0; i < A_COPIES; i++) {
                copy_async(stage + swizzled((tid + i * THREADS) >> 3, tid & 7), a_from[i] + (int64_t)at * UNIT_BYTES,
                           there >> i & 1);
            }
#pragma unroll
            for (int i = 0; i < B_COPIES; i++) {
                copy_async(stage + ROWS * 8 + swizzled((tid + i * THREADS) >> 3, tid & 7),
                           b_from[i] + (PARTS == 1 ? 0 : part * p.x_plane * 2) + (int64_t)at * UNIT_BYTES,
                           there >> (A_COPIES + i) & 1);
            }
        }
        copy_commit();
    };
    const int m0 = warp / shape::WARPS_N * M, n0 = warp % shape::WARPS_N * N;
    float acc[M][N][4], total[M][N][4];
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) {
        (&acc[0][0][0])[i] = 0.0f;
        (&total[0][0][0])[i] = 0.0f;
    }
    auto end_run = [&]() {
#pragma unroll
        for (int i = 0; i < M * N * 4; i++) {
            float &t = (&total[0][0][0])[i], &a = (&acc[0][0][0])[i];
            t = __fadd_rn(t, a);
            a = 0.0f;
        }
    };
    for (int u = 0; u < STAGES - 1; u++) {
        copy_unit(u);
    }
    int run = 1, next_run = run_start(1, real_units, p.runs) * PARTS; /* where the next one begins */
    for (int u = 0; u < units; u++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        copy_unit(u + STAGES - 1);
        while (run < p.runs && next_run <= u) {
            end_run();
            run++;
            next_run = run_start(run, real_units, p.runs) * PARTS;
        }
        const uint4 *a_rows = stages + u % STAGES * STAGE, *b_rows = a_rows + ROWS * 8;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t a[2][M][4], b[N][4];
#pragma unroll
            for (int i = 0; i < M; i++) {
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    load_tiles(a[step][i],
                               a_rows + swizzled((m0 + i) * 16 + (lane & 15), half * 4 + step * 2 + (lane >> 4)));
                }
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                load_tiles(b[n], b_rows + swizzled((n0 + n) * 8 + (lane & 7), half * 4 + (lane >> 3)));
            }
#pragma unroll
            for (int step = 0; step < 2; step++) {
#pragma unroll
                for (int i = 0; i < M; i++) {
#pragma unroll
                    for (int n = 0; n < N; n++) {
                        const uint32_t(&v)[4] = a[step][i];
                        mma_bf16(acc[i][n], v[0], v[1], v[2], v[3], b[n][2 * step], b[n][2 * step + 1]);
                    }
                }
            }
        }
    }
    for (; run < p.runs; run++) { /* runs that are empty */
        end_run();
    }
    end_run();
    float *out = p.out[which] + (p.num_batches > 0 ? blockIdx.z * p.out_step : 0);
    const int64_t stride = p.out_stride[which];
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int64_t r = r0 + (m0 + i) * 16 + g + 8 * e;
            const float bias = p.bias[which] && r < num_rows ? p.bias[which][r] : 0.0f;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int64_t t = t0 + (n0 + n) * 8 + 2 * q + k;
                    if (r < num_rows && t < p.num_tokens) {
                        const float v = total[i][n][2 * e + k];
                        out[t * stride + r] = p.bias[which] ? __fadd_rn(v, bias) : v;
                    }
                }
            }
        }
    }
}

template <int TOKENS> int launch_tile(const mf_cuda_linear &p, cudaStream_t stream)
{
    constexpr int BYTES = STAGES * (ROWS + TOKENS) * 128;
    auto kernel = p.parts == 1 ? tile_kernel<TOKENS, 1> : tile_kernel<TOKENS, 3>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error != cudaSuccess) {
        return (int)error;
    }
    const dim3 grid((unsigned)((p.num_tokens + TOKENS - 1) / TOKENS), (unsigned)p.first_block[p.num],
                    p.num_batches > 0 ? (unsigned)p.num_batches : 1);
    return launch_early(kernel, grid, THREADS, (size_t)BYTES, stream, p);
}

} // namespace

int mf_cuda_launch_linear_plain(const mf_cuda_linear *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    return call->num_tokens == 1    ? launch_plain<1, 1>(*call, s)
           : call->num_tokens <= 32 ? launch_plain<1, 4>(*call, s)
                                    : launch_plain<4, 8>(*call, s);
}

int mf_cuda_launch_split(const float *x, int64_t x_stride, int64_t num_rows, int64_t n, void *out, void *stream)
{
    const int64_t count = num_rows * n;
    return launch_early(split_kernel, dim3((unsigned)((count + THREADS - 1) / THREADS)), THREADS, (size_t)0, stream, x,
                        x_stride, n, count, (uint16_t *)out);
}

int mf_cuda_launch_linear_tile(const mf_cuda_linear *call, void *stream)
{
    const mf_cuda_linear p = cut(call, ROWS);
    cudaStream_t s = (cudaStream_t)stream;
    const int64_t blocks = p.first_block[p.num] * (p.num_batches > 0 ? p.num_batches : 1);
    return p.num_tokens <= 32 || (p.num_tokens + 31) / 32 * blocks <= 264   ? launch_tile<32>(p, s)
           : p.num_tokens <= 64 || (p.num_tokens + 63) / 64 * blocks <= 264 ? launch_tile<64>(p, s)
                                                                            : launch_tile<128>(p, s);
}
