/* linear.cu - products of a model's dense layers: out[t, r] = w[r] . x[t] + bias[r].
 *
 * PLAIN takes any format in f32 arithmetic: a warp sums a row, lane l the columns 8l.. of each 256, one tree at the
 * end. bf16 weights go through mma.sync, 16 columns an instruction, k cut into 8 or 16 runs, each from zero,
 * added in order: FEW with the weights streamed once past all tokens, TILE by tiles of 128 rows, with the same bits,
 * which are linear_wgmma.cu's, too.  Inputs are rounded to bf16, or, where they count as f32, split into three bf16
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

/* ---- FEW: 16 rows a block, a run of k a warp ---- */

constexpr int ROW_PAD =
    64; /* bytes between rows of x in shared memory: a row's chunks and the next one's meet all banks */

/* x [T, k] as planes of bf16 in shared memory, eight columns a thread at a time. */
template <int PARTS> MF_DEV void stage_x(uint8_t *shared, const mf_cuda_linear &p, int k, int64_t x_at)
{
    const int pitch = k * 2 + ROW_PAD, chunks = k / 8, tokens = (int)p.num_tokens;
    for (int t = 0; t < tokens; t++) {
        for (int c = threadIdx.x; c < chunks; c += blockDim.x) {
            uint4 v[PARTS];
            load_chunk<PARTS>(v, p, x_at + t * p.x_stride + c * 8, true);
#pragma unroll
            for (int n = 0; n < PARTS; n++) {
                *(uint4 *)(shared + (n * tokens + t) * pitch + c * 16) = v[n];
            }
        }
    }
    __syncthreads();
}

/* The norm's result as planes in shared memory: the sums and products of dense.cu's norm_kernel<8>, in its order.
 * Behind the planes lies the row as f32. */
template <int PARTS> MF_DEV void stage_norm(uint8_t *shared, const mf_cuda_linear &p, int n)
{
    __shared__ float parts[8];
    const int pitch = n * 2 + ROW_PAD, tid = threadIdx.x;
    float *row = (float *)(shared + PARTS * pitch);
    const bool is_first = blockIdx.x == 0;
    if (tid < 256) {
        constexpr int KEPT = 8; /* loads that are under way together: a store between them would part them */
        float sum = 0.0f;
#pragma unroll 1
        for (int base = tid; base < n; base += KEPT * 256) {
            float v[KEPT], add[KEPT];
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                const int i = base + k * 256;
                v[k] = i < n ? p.norm_acc[i] : 0.0f;
                add[k] = p.norm_add && i < n ? p.norm_add[i] : 0.0f;
            }
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                const int i = base + k * 256;
                v[k] = p.norm_add ? __fadd_rn(v[k], add[k]) : v[k];
                if (i < n) {
                    row[i] = v[k];
                    sum = __fmaf_rn(v[k], v[k], sum);
                }
            }
            for (int k = 0; k < KEPT && is_first && p.norm_out && base + k * 256 < n; k++) {
                p.norm_out[base + k * 256] = row[base + k * 256];
            }
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            sum = __fadd_rn(sum, __shfl_xor_sync(MF_FULL_WARP, sum, step));
        }
        if ((tid & 31) == 0) {
            parts[tid >> 5] = sum;
        }
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; w++) {
        sum = __fadd_rn(sum, parts[w]);
    }
    const float scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)n), p.norm_eps)));
    for (int c = tid; c < n / 2; c += blockDim.x) {
        const float2 v = *(const float2 *)(row + 2 * c), w = *(const float2 *)(p.norm_weight + 2 * c);
        const float x = __fmul_rn(__fmul_rn(v.x, scale), w.x), y = __fmul_rn(__fmul_rn(v.y, scale), w.y);
        if (is_first && p.norm_rounded) {
            *(uint32_t *)(p.norm_rounded + 2 * c) = pack_bf16(x, y);
        }
        uint32_t words[PARTS];
        split_pair<PARTS>(words, x, y);
#pragma unroll
        for (int k = 0; k < PARTS; k++) {
            *(uint32_t *)(shared + k * pitch + 4 * c) = words[k];
        }
    }
    __syncthreads();
}

/* A lane's 16-byte chunk of four becomes its operands of two steps of 16 columns: chunks 0 and 1 meet in the first, 2
 * and 3 in the second.  Lane q has words 2 * (q / 2) and the next of chunk q % 2 in both. */
MF_DEV void share_chunks(uint4 &v, int q)
{
    const bool is_low = q < 2;
    const uint32_t a = __shfl_xor_sync(MF_FULL_WARP, is_low ? v.z : v.x, 2);
    const uint32_t b = __shfl_xor_sync(MF_FULL_WARP, is_low ? v.w : v.y, 2);
    v = is_low ? make_uint4(v.x, v.y, a, b) : make_uint4(a, b, v.z, v.w);
}

/* The same words of a row of x: half a unit from `half` on. */
MF_DEV uint4 share_of(const uint8_t *half, int q)
{
    const uint2 first = *(const uint2 *)(half + (q & 1) * 16 + (q >> 1) * 8),
                second = *(const uint2 *)(half + 32 + (q & 1) * 16 + (q >> 1) * 8);
    return make_uint4(first.x, first.y, second.x, second.y);
}

/* A block takes TILES * 8 tokens.  TILES 1: x is staged in shared memory, NORM: as the norm of what is there; more: its
 * planes are read from device memory.  Kernels are kept short: between the products of a step their code is fetched
 * anew. */
template <int TILES, int RUNS, int PARTS, bool NORM>
__global__ void __launch_bounds__(32 * RUNS, RUNS == 16 || TILES > 2    ? 1
                                             : TILES == 1 || PARTS == 1 ? 3
                                                                        : 2)
    few_kernel(const __grid_constant__ mf_cuda_linear p)
{
    constexpr int AHEAD = RUNS == 8 ? 2 : 4; /* units whose loads are under way together */
    constexpr bool STAGED = TILES == 1;
    extern __shared__ __align__(16) uint8_t staged[];
    __shared__ float sums[RUNS][TILES * 8][17];
    const int which = matrix_of(p, blockIdx.x), lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2,
              q = lane & 3;
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = (blockIdx.x - p.first_block[which]) * 16, num_rows = p.num_batches > 0 ? p.rows : m.n;
    const int64_t row0 = r0 + (p.num_batches > 0 ? blockIdx.z * p.batch_rows + p.first_row : 0);
    const int64_t x_at = p.num_batches > 0 ? blockIdx.z * p.x_step : 0;
    const int units = (int)(m.k / 64), start = run_start(warp, units, RUNS), end = run_start(warp + 1, units, RUNS);
    const uint8_t *low = r0 + g < num_rows ? m.data + ((row0 + g) * m.row_stride + q * 8) * 2 : NULL;
    const uint8_t *high = r0 + g + 8 < num_rows ? m.data + ((row0 + g + 8) * m.row_stride + q * 8) * 2 : NULL;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    uint4 l[AHEAD][2], h[AHEAD][2];
    auto load_weights = [&](int slot, int u) {
        const int64_t at = (int64_t)u * UNIT_BYTES;
        if (u < end) {
            l[slot][0] = low ? load_stream(low + at) : zero;
            l[slot][1] = low ? load_stream(low + at + 64) : zero;
            h[slot][0] = high ? load_stream(high + at) : zero;
            h[slot][1] = high ? load_stream(high + at + 64) : zero;
        }
    };
    let_next_start();
#pragma unroll
    for (int i = 0; i < AHEAD; i++) { /* nobody writes weights: they need not wait for what comes before */
        load_weights(i, start + i);
    }
    wait_for_previous();
    const int64_t pitch = STAGED ? m.k * 2 + ROW_PAD : p.x_stride * 2,
                  plane = STAGED ? p.num_tokens * pitch : p.x_plane * 2;
    if constexpr (NORM) {
        stage_norm<PARTS>(staged, p, (int)m.k);
    } else if constexpr (STAGED) {
        stage_x<PARTS>(staged, p, (int)m.k, x_at);
    }
    const int64_t t0 = (int64_t)blockIdx.y * TILES * 8, num_tokens = p.num_tokens - t0;
    const uint8_t *x = STAGED ? staged : (const uint8_t *)((const uint16_t *)p.x + x_at + t0 * p.x_stride);
    float acc[TILES][4];
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
    }
    for (int u0 = start; u0 < end; u0 += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (u0 + i < end) {
                uint4 low_chunks[2] = { l[i][0], l[i][1] }, high_chunks[2] = { h[i][0], h[i][1] };
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    share_chunks(low_chunks[k], q);
                    share_chunks(high_chunks[k], q);
                }
                load_weights(i, u0 + i + AHEAD);
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
#pragma unroll
                    for (int n = 0; n < TILES; n++) {
                        const int64_t t = n * 8 + g;
                        const uint8_t *unit = x + part * plane + t * pitch + (int64_t)(u0 + i) * UNIT_BYTES;
                        token_chunk<MF_CUDA_PATH_BF16> first, second;
                        first.v[0] = t < num_tokens ? share_of(unit, q) : zero;
                        second.v[0] = t < num_tokens ? share_of(unit + 64, q) : zero;
                        add_half<MF_CUDA_PATH_BF16>(acc[n], low_chunks[0], high_chunks[0], first);
                        add_half<MF_CUDA_PATH_BF16>(acc[n], low_chunks[1], high_chunks[1], second);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        sums[warp][n * 8 + 2 * q][g] = acc[n][0];
        sums[warp][n * 8 + 2 * q + 1][g] = acc[n][1];
        sums[warp][n * 8 + 2 * q][g + 8] = acc[n][2];
        sums[warp][n * 8 + 2 * q + 1][g + 8] = acc[n][3];
    }
    __syncthreads();
    float *out = p.out[which] + (p.num_batches > 0 ? blockIdx.z * p.out_step : 0);
    for (int i = threadIdx.x; i < TILES * 8 * 16; i += 32 * RUNS) {
        const int t = i >> 4, r = i & 15;
        if (t < num_tokens && r0 + r < num_rows) {
            float v = 0.0f;
#pragma unroll
            for (int s = 0; s < RUNS; s++) {
                v = __fadd_rn(v, sums[s][t][r]);
            }
            out[(t0 + t) * p.out_stride[which] + r0 + r] = p.bias[which] ? __fadd_rn(v, p.bias[which][r0 + r]) : v;
        }
    }
}

template <int TILES, int RUNS, int PARTS> int launch_few_of(const mf_cuda_linear &p, cudaStream_t stream)
{
    auto kernel = few_kernel<TILES, RUNS, PARTS, false>;
    if constexpr (TILES == 1) {
        kernel = p.norm_weight ? few_kernel<TILES, RUNS, PARTS, true> : kernel;
    }
    const size_t bytes =
        TILES == 1 ? (size_t)(PARTS * p.num_tokens * (p.w[0].k * 2 + ROW_PAD) + (p.norm_weight ? p.w[0].k * 4 : 0)) : 0;
    if (bytes > 48 * 1024 - sizeof(float) * RUNS * TILES * 8 * 17) {
        const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
        if (error != cudaSuccess) {
            return (int)error;
        }
    }
    const dim3 grid((unsigned)p.first_block[p.num], (unsigned)((p.num_tokens + TILES * 8 - 1) / (TILES * 8)),
                    p.num_batches > 0 ? (unsigned)p.num_batches : 1);
    return launch_early(kernel, grid, 32u * RUNS, bytes, stream, p);
}

template <int TILES> int launch_few(const mf_cuda_linear &p, cudaStream_t stream)
{
    return p.runs == 8    ? p.parts == 1 ? launch_few_of<TILES, 8, 1>(p, stream) : launch_few_of<TILES, 8, 3>(p, stream)
              : p.parts == 1 ? launch_few_of<TILES, 16, 1>(p, stream)
                          : launch_few_of<TILES, 16, 3>(p, stream);
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

/* Blocks of `rows` rows of each matrix. */
mf_cuda_linear cut(const mf_cuda_linear *call, int rows)
{
    mf_cuda_linear p = *call;
    int64_t blocks = 0;
    for (int i = 0; i < p.num; i++) {
        p.first_block[i] = blocks;
        blocks += ((p.num_batches > 0 ? p.rows : p.w[i].n) + rows - 1) / rows;
    }
    p.first_block[p.num] = blocks;
    return p;
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

int64_t mf_cuda_linear_few_shared(int64_t num_tokens, int64_t k, int parts)
{
    return num_tokens <= 8 ? parts * num_tokens * (k * 2 + ROW_PAD) : 0;
}

int mf_cuda_launch_linear_few(const mf_cuda_linear *call, void *stream)
{
    const mf_cuda_linear p = cut(call, 16);
    cudaStream_t s = (cudaStream_t)stream;
    return p.num_tokens <= 8 ? launch_few<1>(p, s) : p.num_tokens <= 16 ? launch_few<2>(p, s) : launch_few<4>(p, s);
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
