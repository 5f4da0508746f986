/* router_gate.cu - one token's norm, router and gate in one launch: the bits of linear_ring.cu's product with its norm
 * and of gate_rows.cu's choice.
 *
 * A block multiplies all rows of the router's weights by one or two of the runs that k is cut into, a warpgroup 64 rows
 * by one run: products of rows in registers by the token (and seven zero ones), added up in mma.sync's order.  The
 * blocks are one cluster: all give their runs' sums to the first one, which adds them and chooses.
 *
 * What is left to do once the kernel in front has ended is a chain of short steps, and each would wait for its code: so
 * all of them run once before that, on what lies in memory, and store nothing outside the block.  Therefore what the
 * kernel in front writes is read past the first-level cache. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/gate_usual.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/router_gate.h"
#include "kernels/cuda/wgmma.cuh"

namespace
{

constexpr int UNITS = MF_CUDA_ROUTER_UNITS, COLUMNS_OF_RUN = UNITS * 64, LINE = 128;
constexpr int TILE_ROWS = 64, TILE = TILE_ROWS * LINE, TOKENS_TILE = 8 * LINE, OF_RUN = UNITS * 3 * TOKENS_TILE;
constexpr int NORM_THREADS = 256, NORM_WARPS = NORM_THREADS / 32;

struct router_call {
    const uint8_t *weights;
    int64_t row_bytes;
    const float *acc, *add, *norm_weight, *bias;
    float *sum;        /* acc + add */
    uint16_t *rounded; /* the norm's result, or NULL */
    float *logits;
    float eps;
    rows_call gate;
};

/* A warp's part of the sum of squares of K elements of acc + add, in the order of dense.cu's norm_kernel<8>. */
template <int K> MF_DEV float sum_of_squares(const router_call &c)
{
    constexpr int OF_THREAD = K / NORM_THREADS, AT_ONCE = 8;
    const float *acc = c.acc + threadIdx.x, *more = c.add + threadIdx.x;
    float sum = 0.0f;
#pragma unroll 1
    for (int first = 0; first < OF_THREAD; first += AT_ONCE) {
        float v[AT_ONCE], add[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            v[j] = __ldcg(acc + (first + j) * NORM_THREADS);
            add[j] = __ldcg(more + (first + j) * NORM_THREADS);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            v[j] = __fadd_rn(v[j], add[j]);
            sum = __fmaf_rn(v[j], v[j], sum);
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(MF_FULL_WARP, sum, step));
    }
    return sum;
}

/* What is left of the eight largest keys of each warp, and what the choice takes besides. */
template <int WARPS, bool SOFTMAX> struct choice_memory {
    uint32_t keys[WARPS][64];              /* a warp's; then the same + 1, for those of lower ids win a tie */
    alignas(16) uint32_t best[16 * WARPS]; /* by warp, largest first; then the same + 1 */
    int32_t id[8 * WARPS];
    float score[8 * WARPS];
    float parts[SOFTMAX ? WARPS * 32 : 1];
    choice chosen[MAX_K];
    candidate list[128]; /* of the general way */
};

/* By the threads of N experts, thread i with expert i's logit x and bias b: which eight have the largest keys.  Returns
 * the first warp's lanes' choice (lane & 7) and SOFTMAX's sum; general: the general way must do it. */
template <int WARPS, bool SOFTMAX>
MF_DEV choice choose(choice_memory<WARPS, SOFTMAX> &mem, int i, float x, float b, float &sum, bool &general)
{
    constexpr int N = WARPS * 32;
    const int lane = i & 31, warp = i >> 5;
    const bool odd = !(fabsf(x) <= (SOFTMAX ? 1e15f : 64.0f)) || !(fabsf(b) <= FLT_MAX);
    const float score = SOFTMAX ? flush_to_zero(x) : sigmoid_in_range(x);
    /* Below the largest number, so that + 1 stays one: a NaN's rank is its own, too, though nothing is made of it. */
    const uint32_t key = min(ordered(SOFTMAX ? score : __fadd_rn(score, flush_to_zero(b))), 0xfffffffeu);
    mem.keys[warp][lane] = key;
    mem.keys[warp][lane + 32] = key + 1;
    __syncwarp();
    int rank = 0;
#pragma unroll
    for (int d = 1; d < 32; d++) {
        rank += mem.keys[warp][lane + d] > key;
    }
    if (rank < MAX_K) {
        const int at = warp * MAX_K + rank;
        mem.best[at] = key;
        mem.best[at + MAX_K * WARPS] = key + 1;
        mem.id[at] = i;
        mem.score[at] = score;
    }
    general = sync_threads_or(1, N, odd);
    if (general) {
        return choice{ 0, 0.0f };
    }
    float most = 0.0f;
    if (SOFTMAX) {
        uint32_t largest = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            largest = max(largest, mem.best[w * MAX_K]);
        }
        most = unordered(largest);
        const float d = __fsub_rn(score, most);
        mem.parts[i] = zero_if_below(d, -87.0f, exp_in_range(d));
        if (warp > 0) {
            named_arrive<2, N>();
        }
    }
    if (warp > 0) {
        return choice{ 0, 0.0f };
    }
    if (lane < MAX_K * WARPS) {
        const uint32_t mine = mem.best[lane];
        int place = lane & 7;
#pragma unroll
        for (int d = 1; d < WARPS; d++) {
#pragma unroll
            for (int e = 0; e < MAX_K; e += 4) {
                const uint4 k = *(const uint4 *)&mem.best[((lane >> 3) + d) * MAX_K + e];
                place += (k.x > mine) + (k.y > mine) + (k.z > mine) + (k.w > mine);
            }
        }
        if (place < MAX_K) {
            mem.chosen[place] = choice{ mem.id[lane], mem.score[lane] };
        }
    }
    if (SOFTMAX) {
        named_barrier<2, N>();
        sum = 0.0f;
#pragma unroll
        for (int j = 0; j < WARPS; j++) {
            sum = __fadd_rn(sum, mem.parts[j * 32 + lane]);
        }
#pragma unroll
        for (int d = 16; d > 0; d /= 2) {
            sum = __fadd_rn(sum, __shfl_xor_sync(MF_FULL_WARP, sum, d));
        }
    }
    __syncwarp();
    choice own = mem.chosen[lane & 7];
    if (SOFTMAX) {
        const float d = __fsub_rn(own.w, most);
        own.w = zero_if_below(d, -87.0f, exp_in_range(d));
    }
    return own;
}

/* A warp's 16 rows of a run's weights, as products take them from registers. */
struct row_tiles {
    uint32_t of[UNITS][4][4];
};

MF_DEV void load_rows(row_tiles &w, const uint8_t *rows)
{
    const int lane = threadIdx.x & 31, row = lane & 15;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
#pragma unroll
        for (int s = 0; s < 4; s++) {
            load_tiles(w.of[u][s], rows + u * TILE + row * LINE + (((s * 2 + (lane >> 4)) ^ (row & 7)) << 4));
        }
    }
}

/* 64 rows by a run: the sums of its units, of each unit's planes, of each plane's steps, one after the other. */
MF_DEV void multiply(float (&sums)[4], const row_tiles &w, const uint8_t *tokens)
{
    uint64_t of_tokens = product_operand(tokens);
    asm volatile("" : "+l"(of_tokens)); /* or all operands are made before, and no register is left */
#pragma unroll
    for (int e = 0; e < 4; e++) {
        sums[e] = 0.0f;
    }
    pin(sums);
    products_begin();
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
#pragma unroll
        for (int n = 0; n < 3; n++) {
#pragma unroll
            for (int s = 0; s < 4; s++) {
                product_of_registers(sums, w.of[u][s], of_tokens + ((u * 3 + n) * TOKENS_TILE >> 4) + 2 * s);
            }
        }
    }
    products_commit();
    products_wait<0>();
    pin(sums);
}

/* WARPS: of 32 experts; RUNS: of k; OWN: a block's. */
template <int WARPS, bool SOFTMAX, int RUNS, int OWN>
__global__ void __launch_bounds__(WARPS * 64 * OWN, 8 / (WARPS * OWN))
    router_gate_kernel(const __grid_constant__ router_call c)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    constexpr int N = WARPS * 32, TILES = N / TILE_ROWS, THREADS = 128 * TILES * OWN, K = RUNS * COLUMNS_OF_RUN,
                  PER = OWN * COLUMNS_OF_RUN / THREADS;
    static_assert(THREADS >= NORM_THREADS && THREADS >= N && PER * THREADS == OWN * COLUMNS_OF_RUN &&
                      (K & (K - 1)) == 0,
                  "who does what; divided by as its reciprocal is multiplied with");
    extern __shared__ __align__(1024) uint8_t shared[];
    __shared__ choice_memory<WARPS, SOFTMAX> mem;
    __shared__ __align__(16) float parts[NORM_WARPS];
    __shared__ uint32_t given[RUNS][N];       /* the first block's: sums of all runs */
    __shared__ __align__(8) uint64_t full[2]; /* by pass: they are there */
    const int tid = threadIdx.x, lane = tid & 31, block = blockIdx.x;
    const int group = __shfl_sync(MF_FULL_WARP, tid >> 7, 0), tile = group % TILES, own = group / TILES,
              run = block * OWN + own;
    uint8_t *weights = shared + group * (UNITS * TILE), *tokens = shared + TILES * OWN * UNITS * TILE;
    let_next_start();
    {
        const int row = (tid >> 5 & 3) * 16 + (lane >> 3), chunk = lane & 7; /* a warp copies what it multiplies */
        const uint8_t *from = c.weights + (tile * TILE_ROWS + row) * c.row_bytes + run * (UNITS * LINE) + chunk * 16;
#pragma unroll 1
        for (int u = 0; u < UNITS; u++) { /* nobody writes weights: they need not wait for what comes before */
#pragma unroll
            for (int i = 0; i < 4; i++) {
                copy_async(weights + u * TILE + (row + 4 * i) * LINE + ((chunk ^ ((row + 4 * i) & 7)) << 4),
                           from + u * LINE + i * 4 * c.row_bytes, true);
            }
        }
        copy_commit();
    }
    const int first = block * OWN * COLUMNS_OF_RUN + tid; /* of a thread's columns */
    float norm_weights[PER], bias = 0.0f, gate_bias = 0.0f;
#pragma unroll
    for (int i = 0; i < PER; i++) {
        norm_weights[i] = c.norm_weight[first + i * THREADS];
        keep_here(norm_weights[i]);
    }
    if (c.bias && tid < N) {
        bias = c.bias[tid];
    }
    if (!SOFTMAX && c.gate.bias && tid < N) {
        gate_bias = c.gate.bias[tid];
    }
    keep_here(bias);
    keep_here(gate_bias);
    for (int i = tid; i < OWN * OF_RUN / 16; i += THREADS) { /* the other seven tokens of the products stay zeros */
        *(uint4 *)(tokens + i * 16) = make_uint4(0, 0, 0, 0);
    }
    if (tid == 0) {
        barrier_init(&full[0], 1);
        barrier_init(&full[1], 1);
        barrier_init_fence();
        barrier_expect(&full[0], OWN * N * 4);
        barrier_expect(&full[1], RUNS * N * 4);
    }
    copy_wait<0>(); /* the first pass uses nothing of them, but a reader has to be behind its copies */
    __syncthreads();
    cluster_meet();
#pragma unroll 1
    for (int pass = 0; pass < 2; pass++) {
        const bool real = pass == 1;
        row_tiles rows;
        load_rows(rows, weights + (tid >> 5 & 3) * (16 * LINE));
        if (real) {
            wait_for_previous();
        }
        float x[PER], add[PER];
#pragma unroll
        for (int i = 0; i < PER; i++) {
            x[i] = __ldcg(c.acc + first + i * THREADS);
            add[i] = __ldcg(c.add + first + i * THREADS);
        }
        if (tid < NORM_THREADS) {
            const float part = sum_of_squares<K>(c);
            if (lane == 0) {
                parts[tid >> 5] = part;
            }
        }
        __syncthreads();
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < NORM_WARPS; w++) {
            sum = __fadd_rn(sum, parts[w]);
        }
        const float scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fmul_rn(sum, 1.0f / K), c.eps)));
#pragma unroll
        for (int i = 0; i < PER; i++) {
            const int column = tid + i * THREADS;
            uint8_t *to = tokens + column / 64 * (3 * TOKENS_TILE) + column % 64 * 2;
            const float v = __fadd_rn(x[i], add[i]);
            float rest = __fmul_rn(__fmul_rn(v, scale), norm_weights[i]);
            const uint16_t rounded = (uint16_t)pack_bf16(rest, 0.0f);
            /* linear_input.cuh's split, but for what a NaN looks like, which no sum tells. */
#pragma unroll
            for (int n = 0; n < 3; n++) {
                const uint16_t plane = (uint16_t)pack_bf16(rest, 0.0f);
                const float of = bf16_to_f32(plane);
                rest = n > 0 || fabsf(of) <= FLT_MAX ? __fsub_rn(rest, of) : 0.0f;
                *(uint16_t *)(to + n * TOKENS_TILE) = plane;
            }
            if (real) {
                c.sum[first + i * THREADS] = v;
                if (c.rounded) {
                    c.rounded[first + i * THREADS] = rounded;
                }
            }
        }
        fence_shared_for_products();
        __syncthreads();
        float sums[4];
        multiply(sums, rows, tokens + own * OF_RUN);
        if ((lane & 3) == 0) { /* the first token's, of rows g and g + 8 of a warp's 16 */
            uint32_t *to = &given[run][tile * TILE_ROWS + (tid >> 5 & 3) * 16 + (lane >> 2)];
            give_word(to, __float_as_uint(sums[0]), &full[pass], real ? 0 : block);
            give_word(to + 8, __float_as_uint(sums[2]), &full[pass], real ? 0 : block);
        }
        if (block > 0 || tid >= N) {
            continue;
        }
        barrier_wait(&full[pass], 0);
        float logit = 0.0f;
#pragma unroll
        for (int r = 0; r < RUNS; r++) {
            logit = __fadd_rn(logit, __uint_as_float(given[r][tid]));
        }
        logit = c.bias ? __fadd_rn(logit, bias) : logit;
        if (real) {
            c.logits[tid] = logit;
        }
        float total = 1.0f;
        bool general = false;
        const choice mine = choose(mem, tid, logit, gate_bias, total, general);
        if (tid >= 32) {
            continue;
        }
        if (general) {
            if (real) {
                take_general_row_alone<N>(c.gate.general, mem.list, 0, 1);
            }
            continue;
        }
        const bool here = real && lane < MAX_K;
        emit<SOFTMAX>(c.gate, 0, lane & 7, here, here, mine, total, [&](int32_t id) {
            if (c.gate.load && id < c.gate.num_experts) {
                add_relaxed(c.gate.load + id, 1);
            }
        });
    }
}

template <int WARPS, bool SOFTMAX, int RUNS, int OWN> int launch(const router_call &c, cudaStream_t stream)
{
    const auto kernel = router_gate_kernel<WARPS, SOFTMAX, RUNS, OWN>;
    want_all_shared(kernel);
    return launch_clusters(RUNS / OWN, kernel, dim3(RUNS / OWN), WARPS * 64 * OWN,
                           (size_t)mf_cuda_router_shared(WARPS * 32, OWN), stream, c);
}

template <bool SOFTMAX> int launch_shape(const router_call &c, int experts, int runs, cudaStream_t stream)
{
    if (experts == 64) {
        return runs == 8 ? launch<2, SOFTMAX, 8, 2>(c, stream) : launch<2, SOFTMAX, 16, 2>(c, stream);
    }
    return runs == 8 ? launch<4, SOFTMAX, 8, 1>(c, stream) : launch<4, SOFTMAX, 16, 2>(c, stream);
}

} // namespace

int mf_cuda_launch_router_gate(const mf_cuda_linear *product, const mf_cuda_gate *gate, const mf_cuda_grid *grid,
                               void *stream)
{
    const mf_cuda_matrix &w = product->w[0];
    router_call c = {};
    c.weights = w.data;
    c.row_bytes = w.row_stride * 2;
    c.acc = product->norm_acc;
    c.add = product->norm_add;
    c.norm_weight = product->norm_weight;
    c.bias = product->bias[0];
    c.sum = product->norm_out;
    c.rounded = product->norm_rounded;
    c.logits = product->out[0];
    c.eps = product->norm_eps;
    c.gate = rows_call_of(gate, grid);
    return gate->scoring == MF_SCORING_SOFTMAX ? launch_shape<true>(c, (int)w.n, product->runs, (cudaStream_t)stream)
                                               : launch_shape<false>(c, (int)w.n, product->runs, (cudaStream_t)stream);
}
