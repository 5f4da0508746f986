/* linear_wgmma.cu - products of a model's dense layers with bf16 weights on Hopper: linear.cu's, through wgmma and
 * tensor copies.
 *
 * k is cut into 8 or 16 runs, each summed from zero in ascending order, the runs added in order: the same in all
 * kernels, so a row's bits do not depend on the batch.  WAVE takes up to 64 tokens of one plane, STREAM other products
 * of up to 128: 64 weight rows a cluster of 4 or 8 blocks, a run or two of k a block, whose weights are all under way
 * before the kernel in front has ended; the sums meet through the cluster's shared memory.  More tokens:
 * linear_tiles.cu. */
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/linear_wave.cuh"

namespace
{

constexpr int CLUSTER = 8;
constexpr int STREAM_STAGES = 16;

/* ---- STREAM ---- */

/* 64 weight rows and a plane's N tokens each. */
template <int N, int PARTS> __host__ __device__ constexpr int stream_stage_bytes()
{
    return SUB + PARTS * N * LINE;
}

template <int N, int PARTS, int EACH>
__global__ void __launch_bounds__(STREAM_THREADS) stream_kernel(const __grid_constant__ mf_cuda_linear_maps call)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    constexpr int STAGE = stream_stage_bytes<N, PARTS>(), PITCH = 68; /* rows g, tokens 2q meet all banks */
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ uint64_t full[STREAM_STAGES];
    const mf_cuda_linear &p = call.p;
    const int rank = blockIdx.x % CLUSTER, block = blockIdx.x / CLUSTER, which = matrix_of(p, block);
    const int tid = threadIdx.x;
    const int64_t num_rows = p.num_batches > 0 ? p.rows : p.w[which].n;
    const int r0 = (int)(block - p.first_block[which]) * 64;
    const int map_row = r0 + (p.num_batches > 0 ? (int)(blockIdx.z * p.batch_rows + p.first_row) : 0);
    const int64_t x_at = p.num_batches > 0 ? blockIdx.z * p.x_step : 0;
    const int units = (int)(p.w[which].k / 64), first = run_start(rank * EACH, units, CLUSTER * EACH),
              count = run_start((rank + 1) * EACH, units, CLUSTER * EACH) - first;
    auto bring_weights = [&](int i) {
        const int s = i % call.stages;
        barrier_expect(&full[s], STAGE);
        copy_box_once(stages + s * STAGE, &call.w[which], map_row, first + i, &full[s]);
    };
    auto bring_tokens = [&](int i) {
        const int s = i % call.stages;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            copy_box(stages + s * STAGE + SUB + part * N * LINE, &call.x, part * (int)p.num_tokens,
                     (int)(x_at / 64) + first + i, &full[s]);
        }
    };
    const int ahead = count < call.stages ? count : call.stages;
    if (tid == 0) {
        for (int s = 0; s < ahead; s++) {
            barrier_init(&full[s], 1);
        }
        barrier_init_fence();
        if (p.w_is_made) {
            wait_for_previous();
        }
        for (int i = 0; i < ahead; i++) { /* else nobody writes weights: they need not wait for what comes before */
            bring_weights(i);
        }
    }
    let_next_start();
    wait_for_previous();
    if (tid == 0) {
        for (int i = 0; i < ahead; i++) {
            bring_tokens(i);
        }
    }
    __syncthreads();
    float acc[EACH][N / 2];
    clear_sums<EACH, N>(acc);
    int i = 0;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int end = run_start(rank * EACH + e + 1, units, CLUSTER * EACH) - first;
        for (; i < end; i++) {
            const int s = i % call.stages;
            barrier_wait(&full[s], (uint32_t)(i / call.stages) & 1);
            products_begin();
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const uint8_t *x = stages + s * STAGE + SUB + part * N * LINE;
                add_line<N>(acc[e], product_operand(stages + s * STAGE), product_operand(x), true);
            }
            products_commit();
            if (i + call.stages < count) {
                products_wait<0>();
                __syncthreads();
                if (tid == 0) {
                    bring_weights(i + call.stages);
                    bring_tokens(i + call.stages);
                }
            }
        }
    }
    products_wait<0>();
    float *sums = (float *)stages; /* [EACH][N][PITCH] over what was multiplied */
    __syncthreads();
    lay_sums<EACH, N, PITCH>(sums, acc);
    cluster_sync();
    float *out = p.out[which] + (p.num_batches > 0 ? blockIdx.z * p.out_step : 0);
#pragma unroll(EACH == 1 ? 4 : 2)
    for (int at = tid; at < 8 * N; at += STREAM_THREADS) { /* this block's eight rows */
        const int r = rank * 8 + (at & 7), t = at >> 3;
        float part[CLUSTER * EACH];
#pragma unroll
        for (int run = 0; run < CLUSTER * EACH; run++) {
            part[run] = load_of_block(sums + (run % EACH * N + t) * PITCH + r, run / EACH);
        }
        float v = 0.0f;
#pragma unroll
        for (int run = 0; run < CLUSTER * EACH; run++) {
            v = __fadd_rn(v, part[run]);
        }
        if (t < p.num_tokens && r0 + r < num_rows) {
            out[t * p.out_stride[which] + r0 + r] = finish_row(p, which, r0 + r, v);
        }
    }
    cluster_sync(); /* nobody leaves whose sums are being read */
}

/* ---- WAVE ---- */

constexpr int WAVE_UNITS = 8; /* at most, of a ring */
constexpr int WAVE_BYTES = 72 * 1024,
              WAVE_X_BYTES = 32 * 1024; /* of rings, of tokens': three blocks a multiprocessor */

/* N tokens; weights and tokens have rings of their own, call.stages and call.x_stages units deep. */
template <int N, int BLOCKS>
__global__ void __launch_bounds__(STREAM_THREADS) wave_kernel(const __grid_constant__ mf_cuda_linear_maps call)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    constexpr int X_BYTES = N * LINE, RUNS = BLOCKS * WAVE_EACH;
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ uint64_t w_full[WAVE_UNITS], x_full[WAVE_UNITS];
    const mf_cuda_linear &p = call.p;
    const int rank = blockIdx.x % BLOCKS, block = blockIdx.x / BLOCKS, which = matrix_of(p, block);
    const int tid = threadIdx.x;
    const int r0 = (int)(block - p.first_block[which]) * 64;
    const int map_row = r0 + (p.num_batches > 0 ? (int)(blockIdx.z * p.batch_rows + p.first_row) : 0);
    const int x_line = p.num_batches > 0 ? (int)(blockIdx.z * p.x_step / 64) : 0;
    const int units = (int)(p.w[which].k / 64), first = run_start(rank * WAVE_EACH, units, RUNS),
              count = run_start((rank + 1) * WAVE_EACH, units, RUNS) - first;
    uint8_t *tokens = stages + call.stages * SUB;
    auto bring_weights = [&](int i, int s) {
        barrier_expect(&w_full[s], SUB);
        copy_box_once(stages + s * SUB, &call.w[which], map_row, first + i, &w_full[s]);
    };
    auto bring_tokens = [&](int i, int s) {
        barrier_expect(&x_full[s], X_BYTES);
        copy_box(tokens + s * X_BYTES, &call.x, 0, x_line + first + i, &x_full[s]);
    };
    if (tid == 0) {
        for (int s = 0; s < WAVE_UNITS; s++) {
            barrier_init(&w_full[s], 1);
            barrier_init(&x_full[s], 1);
        }
        barrier_init_fence();
        if (p.w_is_made) {
            wait_for_previous();
        }
        for (int i = 0; i < min(count, call.stages); i++) { /* else nobody writes weights: they need not wait */
            bring_weights(i, i);
        }
    }
    let_next_start();
    wait_for_previous();
    if (tid == 0) {
        for (int i = 0; i < min(count, call.x_stages); i++) {
            bring_tokens(i, i);
        }
    }
    __syncthreads();
    float acc[WAVE_EACH][N / 2];
    clear_sums<WAVE_EACH, N>(acc);
    int i = 0, slot = 0, x_slot = 0;
    uint32_t parity = 0, x_parity = 0;
#pragma unroll
    for (int e = 0; e < WAVE_EACH; e++) {
        const int end = run_start(rank * WAVE_EACH + e + 1, units, RUNS) - first;
        for (; i < end; i++) {
            barrier_wait(&w_full[slot], parity);
            barrier_wait(&x_full[x_slot], x_parity);
            products_begin();
            add_line<N>(acc[e], product_operand(stages + slot * SUB), product_operand(tokens + x_slot * X_BYTES), true);
            products_commit();
            const bool more = i + call.stages < count, more_x = i + call.x_stages < count;
            if (more || more_x) {
                products_wait<0>();
                __syncthreads();
                if (tid == 0 && more) {
                    bring_weights(i + call.stages, slot);
                }
                if (tid == 0 && more_x) {
                    bring_tokens(i + call.x_stages, x_slot);
                }
            }
            if (++slot == call.stages) {
                slot = 0;
                parity ^= 1;
            }
            if (++x_slot == call.x_stages) {
                x_slot = 0;
                x_parity ^= 1;
            }
        }
    }
    finish_wave<N, BLOCKS>(p, which, r0, rank, (float *)stages, acc,
                           [&](int64_t row, float v) { return finish_row(p, which, row, v); });
}

/* ---- launches ---- */

template <int N, int PARTS, int EACH> int launch_stream_of(mf_cuda_linear_maps &call, cudaStream_t stream)
{
    constexpr int STAGE = stream_stage_bytes<N, PARTS>(), MOST = 96 * 1024;
    const mf_cuda_linear &p = call.p;
    const int units = (int)(p.w[0].k / 64), lines = (units + CLUSTER - 1) / CLUSTER,
              fits = MOST / STAGE < STREAM_STAGES ? MOST / STAGE : STREAM_STAGES;
    call.stages = lines < fits ? lines : fits;
    const size_t sums = (size_t)EACH * N * 68 * 4;
    size_t bytes = (size_t)call.stages * STAGE;
    bytes = bytes < sums ? sums : bytes;
    const dim3 grid((unsigned)(p.first_block[p.num] * CLUSTER), 1, p.num_batches > 0 ? (unsigned)p.num_batches : 1);
    return launch_clusters(CLUSTER, stream_kernel<N, PARTS, EACH>, grid, STREAM_THREADS, bytes, stream, call);
}

template <int N, int BLOCKS> int launch_wave(mf_cuda_linear_maps &call, cudaStream_t stream)
{
    constexpr int X_BYTES = N * LINE;
    const mf_cuda_linear &p = call.p;
    const int units = (int)(p.w[0].k / 64), of_block = (units + BLOCKS - 1) / BLOCKS,
              most = of_block < WAVE_UNITS ? of_block : WAVE_UNITS;
    call.x_stages = most < WAVE_X_BYTES / X_BYTES ? most : WAVE_X_BYTES / X_BYTES;
    const int fits = (WAVE_BYTES - call.x_stages * X_BYTES) / SUB;
    call.stages = most < fits ? most : fits;
    const size_t sums = (size_t)WAVE_EACH * N * 68 * 4,
                 rings = (size_t)call.stages * SUB + (size_t)call.x_stages * X_BYTES;
    const dim3 grid((unsigned)(p.first_block[p.num] * BLOCKS), 1, p.num_batches > 0 ? (unsigned)p.num_batches : 1);
    return launch_clusters(BLOCKS, wave_kernel<N, BLOCKS>, grid, STREAM_THREADS, rings < sums ? sums : rings, stream,
                           call);
}

/* Three planes: STREAM.  One: WAVE where its tokens fit. */
template <int N> int launch_stream(mf_cuda_linear_maps &call, cudaStream_t stream)
{
    const bool is_short = call.p.runs == 8;
    if (call.p.parts == 3) {
        return is_short ? launch_stream_of<N, 3, 1>(call, stream) : launch_stream_of<N, 3, 2>(call, stream);
    }
    if constexpr (N <= 64) {
        return is_short ? launch_wave<N, 4>(call, stream) : launch_wave<N, 8>(call, stream);
    } else {
        return is_short ? launch_stream_of<N, 1, 1>(call, stream) : launch_stream_of<N, 1, 2>(call, stream);
    }
}

} // namespace

int mf_cuda_launch_linear_stream(mf_cuda_linear_maps *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    return call->x_rows == 16   ? launch_stream<16>(*call, s)
           : call->x_rows == 32 ? launch_stream<32>(*call, s)
           : call->x_rows == 64 ? launch_stream<64>(*call, s)
                                : launch_stream<128>(*call, s);
}
