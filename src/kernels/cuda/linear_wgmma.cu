/* linear_wgmma.cu - products of a model's dense layers with bf16 weights on Hopper: linear.cu's, through wgmma and
 * tensor copies.
 *
 * k is cut into 8 or 16 runs, each summed from zero in ascending order, the runs added in order: the same in both
 * kernels, so a row's bits do not depend on the batch.  WAVE takes up to 64 tokens of one plane, STREAM other products
 * of up to 128: 64 weight rows a cluster of 4 or 8 blocks, a run or two of k a block, whose weights are all under way
 * before the kernel in front has ended; the sums meet through the cluster's shared memory.  TILE takes 128 tokens by 128 or 192 rows at a time, persistent. */
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/wgmma.cuh"

#define MF_SUMS_192                                                                                                    \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                 \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

#define MF_OPERANDS_192                                                                                                \
    MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28), MF_SUM4(32),  \
        MF_SUM4(36), MF_SUM4(40), MF_SUM4(44), MF_SUM4(48), MF_SUM4(52), MF_SUM4(56), MF_SUM4(60), MF_SUM4(64),        \
        MF_SUM4(68), MF_SUM4(72), MF_SUM4(76), MF_SUM4(80), MF_SUM4(84), MF_SUM4(88), MF_SUM4(92)

template <> struct products<192> {
    static __device__ __forceinline__ void bf16(float (&sums)[96], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %98, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" MF_SUMS_192
                     "}, %96, %97, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_192
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

namespace
{

constexpr int LINE = 128;      /* bytes of k in a stage's rows: 64 columns */
constexpr int SUB = 64 * LINE; /* 64 rows of a line */
constexpr int CLUSTER = 8, STREAM_THREADS = 128;
constexpr int STREAM_STAGES = 16;

/* sums += one line of 64 rows by N. */
template <int N> MF_DEV void add_line(float (&sums)[N / 2], uint64_t rows, uint64_t columns, bool add)
{
#pragma unroll
    for (int k = 0; k < 4; k++) { /* 32 bytes of k each */
        products<N>::bf16(sums, rows + 2 * k, columns + 2 * k, add || k > 0);
    }
}

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
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const int64_t num_rows = p.num_batches > 0 ? p.rows : p.w[which].n;
    const int r0 = (int)(block - p.first_block[which]) * 64;
    const int map_row = r0 + (p.num_batches > 0 ? (int)(blockIdx.z * p.batch_rows + p.first_row) : 0);
    const int64_t x_at = p.num_batches > 0 ? blockIdx.z * p.x_step : 0;
    const int units = (int)(p.w[which].k / 64), first = run_start(rank * EACH, units, CLUSTER * EACH),
              count = run_start((rank + 1) * EACH, units, CLUSTER * EACH) - first;
    auto bring_weights = [&](int i) {
        const int s = i % call.stages;
        barrier_expect(&full[s], STAGE);
        copy_box(stages + s * STAGE, &call.w[which], map_row, first + i, &full[s]);
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
        for (int i = 0; i < ahead; i++) { /* nobody writes weights: they need not wait for what comes before */
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
#pragma unroll
    for (int e = 0; e < EACH; e++) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            acc[e][i] = 0.0f;
        }
        pin(acc[e]);
    }
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
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        pin(acc[e]);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int t = n * 8 + 2 * q + (k & 1), r = warp * 16 + g + 8 * (k >> 1);
                sums[(e * N + t) * PITCH + r] = acc[e][4 * n + k];
            }
        }
    }
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
            out[t * p.out_stride[which] + r0 + r] = p.bias[which] ? __fadd_rn(v, p.bias[which][r0 + r]) : v;
        }
    }
    cluster_sync(); /* nobody leaves whose sums are being read */
}

/* ---- WAVE ---- */

/* Two runs of k a block: clusters of half as many blocks as there are runs. */
constexpr int WAVE_EACH = 2, WAVE_UNITS = 8; /* at most, of a ring */
constexpr int WAVE_BYTES = 72 * 1024, WAVE_X_BYTES = 32 * 1024; /* of rings, of tokens': three blocks a multiprocessor */

/* N tokens; weights and tokens have rings of their own, call.stages and call.x_stages units deep. */
template <int N, int BLOCKS>
__global__ void __launch_bounds__(STREAM_THREADS) wave_kernel(const __grid_constant__ mf_cuda_linear_maps call)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    constexpr int X_BYTES = N * LINE, RUNS = BLOCKS * WAVE_EACH, OWN = 64 / BLOCKS, PITCH = 68;
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ uint64_t w_full[WAVE_UNITS], x_full[WAVE_UNITS];
    const mf_cuda_linear &p = call.p;
    const int rank = blockIdx.x % BLOCKS, block = blockIdx.x / BLOCKS, which = matrix_of(p, block);
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const int64_t num_rows = p.num_batches > 0 ? p.rows : p.w[which].n;
    const int r0 = (int)(block - p.first_block[which]) * 64;
    const int map_row = r0 + (p.num_batches > 0 ? (int)(blockIdx.z * p.batch_rows + p.first_row) : 0);
    const int x_line = p.num_batches > 0 ? (int)(blockIdx.z * p.x_step / 64) : 0;
    const int units = (int)(p.w[which].k / 64), first = run_start(rank * WAVE_EACH, units, RUNS),
              count = run_start((rank + 1) * WAVE_EACH, units, RUNS) - first;
    uint8_t *tokens = stages + call.stages * SUB;
    auto bring_weights = [&](int i, int s) {
        barrier_expect(&w_full[s], SUB);
        copy_box(stages + s * SUB, &call.w[which], map_row, first + i, &w_full[s]);
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
        for (int i = 0; i < min(count, call.stages); i++) { /* nobody writes weights: they need not wait */
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
#pragma unroll
    for (int e = 0; e < WAVE_EACH; e++) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            acc[e][i] = 0.0f;
        }
        pin(acc[e]);
    }
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
    products_wait<0>();
    float *sums = (float *)stages; /* [WAVE_EACH][N][PITCH] over what was multiplied */
    __syncthreads();
#pragma unroll
    for (int e = 0; e < WAVE_EACH; e++) {
        pin(acc[e]);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int t = n * 8 + 2 * q + (k & 1), r = warp * 16 + g + 8 * (k >> 1);
                sums[(e * N + t) * PITCH + r] = acc[e][4 * n + k];
            }
        }
    }
    cluster_sync();
    float *out = p.out[which] + (p.num_batches > 0 ? blockIdx.z * p.out_step : 0);
    const int64_t stride = p.out_stride[which];
    const float *bias = p.bias[which];
    const bool is_wide = stride % 4 == 0 && (uintptr_t)out % 16 == 0;
#pragma unroll 1
    for (int at = tid; at < OWN / 4 * N; at += STREAM_THREADS) { /* this block's rows, four at a time */
        const int r = rank * OWN + at % (OWN / 4) * 4, t = at / (OWN / 4);
        float4 part[RUNS];
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            part[run] = load_4_of_block(sums + (run % WAVE_EACH * N + t) * PITCH + r, run / WAVE_EACH);
        }
        float v[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            v[0] = __fadd_rn(v[0], part[run].x);
            v[1] = __fadd_rn(v[1], part[run].y);
            v[2] = __fadd_rn(v[2], part[run].z);
            v[3] = __fadd_rn(v[3], part[run].w);
        }
        if (t >= p.num_tokens) {
            continue;
        }
        float *to = out + t * stride + r0 + r;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            v[k] = bias && r0 + r + k < num_rows ? __fadd_rn(v[k], bias[r0 + r + k]) : v[k];
        }
        if (is_wide && r0 + r + 4 <= num_rows) {
            *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
            continue;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (r0 + r + k < num_rows) {
                to[k] = v[k];
            }
        }
    }
    cluster_sync(); /* nobody leaves whose sums are being read */
}

/* ---- TILE ---- */

constexpr int TILE_TOKENS = 128, TILE_THREADS = 384;
constexpr int GROUP = 16; /* tiles of tokens that share weights while these are near */

template <int ROWS> __host__ __device__ constexpr int tile_stage_bytes()
{
    return (TILE_TOKENS + ROWS) * LINE;
}
template <int ROWS> constexpr int TILE_STAGES = 216 * 1024 / tile_stage_bytes<ROWS>();

struct tile_place {
    int which, batch, r0;
    int64_t t0;
};

MF_DEV tile_place place_of(const mf_cuda_linear &p, int64_t tile, int rows)
{
    const int64_t token_tiles = (p.num_tokens + TILE_TOKENS - 1) / TILE_TOKENS, row_tiles = p.first_block[p.num],
                  per_batch = token_tiles * row_tiles;
    const int batch = (int)(tile / per_batch), in_batch = (int)(tile - batch * per_batch);
    const int per_group = GROUP * (int)row_tiles, group = in_batch / per_group, at = in_batch % per_group;
    const int left = (int)token_tiles - group * GROUP, size = left < GROUP ? left : GROUP;
    const int row_tile = at / size;
    tile_place place;
    place.which = matrix_of(p, row_tile);
    place.batch = batch;
    place.r0 = (int)(row_tile - p.first_block[place.which]) * rows;
    place.t0 = (int64_t)(group * GROUP + at % size) * TILE_TOKENS;
    return place;
}

template <int ROWS, int PARTS>
__global__ void __launch_bounds__(TILE_THREADS, 1) tile_kernel(const __grid_constant__ mf_cuda_linear_maps call)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    constexpr int STAGE = tile_stage_bytes<ROWS>(), STAGES = TILE_STAGES<ROWS>;
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    const mf_cuda_linear &p = call.p;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8);
        }
        barrier_init_fence();
    }
    let_next_start();
    __syncthreads();
    const int64_t tiles =
        (p.num_tokens + TILE_TOKENS - 1) / TILE_TOKENS * p.first_block[p.num] * (p.num_batches > 0 ? p.num_batches : 1);
    int stage = 0;
    uint32_t parity = 0;
    auto next = [&]() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    };
    if (threadIdx.x < 128) {
        give_registers<40>();
        if (threadIdx.x != 0) {
            return;
        }
        wait_for_previous();
        for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            const tile_place at = place_of(p, tile, ROWS);
            const int units = (int)(p.w[at.which].k / 64);
            const int row = at.r0 + (p.num_batches > 0 ? (int)(at.batch * p.batch_rows + p.first_row) : 0);
            const int x_line = p.num_batches > 0 ? (int)(at.batch * p.x_step / 64) : 0;
            for (int u = 0; u < units; u++) {
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    uint8_t *to = stages + stage * STAGE;
                    barrier_wait(&empty[stage], parity ^ 1);
                    barrier_expect(&full[stage], STAGE);
                    copy_box(to, &call.x, (int)(part * p.num_tokens + at.t0), x_line + u, &full[stage]);
                    copy_box(to + TILE_TOKENS * LINE, &call.w[at.which], row, u, &full[stage]);
                    next();
                }
            }
        }
        return;
    }
    take_registers<232>();
    wait_for_previous();
    const int tid = threadIdx.x - 128, group = tid >> 7, lane = tid & 31, warp = tid >> 5 & 3, g = lane >> 2,
              q = lane & 3;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const tile_place at = place_of(p, tile, ROWS);
        const int units = (int)(p.w[at.which].k / 64);
        float acc[ROWS / 2], total[ROWS / 2];
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) {
            acc[i] = total[i] = 0.0f;
        }
        for (int run = 0; run < p.runs; run++) {
            const int from = run_start(run, units, p.runs), to = run_start(run + 1, units, p.runs);
            if (from == to) { /* an empty run adds nothing but a zero's sign, which is + already */
                continue;
            }
            int before = -1;
            for (int u = from * PARTS; u < to * PARTS; u++) {
                barrier_wait(&full[stage], parity);
                pin(acc);
                products_begin();
                const uint8_t *rows = stages + stage * STAGE;
                add_line<ROWS>(acc, product_operand(rows + group * SUB), product_operand(rows + TILE_TOKENS * LINE),
                               u > from * PARTS);
                products_commit();
                if (before >= 0) {
                    products_wait<1>();
                    __syncwarp();
                    if (lane == 0) {
                        barrier_arrive(&empty[before]);
                    }
                }
                before = stage;
                next();
            }
            products_wait<0>();
            pin(acc);
            __syncwarp();
            if (lane == 0) {
                barrier_arrive(&empty[before]);
            }
#pragma unroll
            for (int i = 0; i < ROWS / 2; i++) {
                total[i] = __fadd_rn(total[i], acc[i]);
            }
        }
        const int64_t num_rows = p.num_batches > 0 ? p.rows : p.w[at.which].n, stride = p.out_stride[at.which];
        float *out = p.out[at.which] + (p.num_batches > 0 ? at.batch * p.out_step : 0);
        const float *bias = p.bias[at.which];
        const bool in_pairs = stride % 2 == 0 && (uintptr_t)out % 8 == 0;
        const int64_t t = at.t0 + group * 64 + warp * 16 + g;
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            const int r = at.r0 + n * 8 + 2 * q;
            const float b0 = bias && r < num_rows ? bias[r] : 0.0f, b1 = bias && r + 1 < num_rows ? bias[r + 1] : 0.0f;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float *to = out + (t + 8 * e) * stride + r;
                const float x = bias ? __fadd_rn(total[4 * n + 2 * e], b0) : total[4 * n + 2 * e],
                            y = bias ? __fadd_rn(total[4 * n + 2 * e + 1], b1) : total[4 * n + 2 * e + 1];
                if (t + 8 * e >= p.num_tokens || r >= num_rows) {
                    continue;
                }
                if (in_pairs && r + 1 < num_rows) {
                    *(float2 *)to = make_float2(x, y);
                } else {
                    to[0] = x;
                    if (r + 1 < num_rows) {
                        to[1] = y;
                    }
                }
            }
        }
    }
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
    return launch_clusters(BLOCKS, wave_kernel<N, BLOCKS>, grid, STREAM_THREADS, rings < sums ? sums : rings, stream, call);
}

template <int N> int launch_wave_of(mf_cuda_linear_maps &call, cudaStream_t stream)
{
    return call.p.runs == 8 ? launch_wave<N, 4>(call, stream) : launch_wave<N, 8>(call, stream);
}

template <int N> int launch_stream(mf_cuda_linear_maps &call, cudaStream_t stream)
{
    if constexpr (N <= 64) {
        if (call.p.parts == 1) {
            return launch_wave_of<N>(call, stream);
        }
    }
    const bool is_split = call.p.parts == 3;
    return call.p.runs == 8
               ? is_split ? launch_stream_of<N, 3, 1>(call, stream) : launch_stream_of<N, 1, 1>(call, stream)
           : is_split ? launch_stream_of<N, 3, 2>(call, stream)
                      : launch_stream_of<N, 1, 2>(call, stream);
}

template <int ROWS>
int launch_tile(const mf_cuda_linear_maps &call, int64_t tiles, int multiprocessors, cudaStream_t stream)
{
    auto kernel = call.p.parts == 1 ? tile_kernel<ROWS, 1> : tile_kernel<ROWS, 3>;
    const dim3 grid((unsigned)(tiles < multiprocessors ? tiles : multiprocessors));
    return launch_shared(true, kernel, grid, TILE_THREADS, (size_t)TILE_STAGES<ROWS> * tile_stage_bytes<ROWS>(), stream,
                         call);
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

int mf_cuda_launch_linear_tiles(const mf_cuda_linear_maps *call, int multiprocessors, void *stream)
{
    const mf_cuda_linear &p = call->p;
    const int64_t tiles =
        (p.num_tokens + TILE_TOKENS - 1) / TILE_TOKENS * p.first_block[p.num] * (p.num_batches > 0 ? p.num_batches : 1);
    return call->w_rows == 128 ? launch_tile<128>(*call, tiles, multiprocessors, (cudaStream_t)stream)
                               : launch_tile<192>(*call, tiles, multiprocessors, (cudaStream_t)stream);
}
