/* linear_tiles.cu - products of a model's dense layers with bf16 weights on Hopper, for many tokens, with the sums of
 * linear_wgmma.cu: tiles of 128 or 64 tokens by 64, 128 or 192 rows, in turn by blocks that stay.
 *
 * One thread brings lines of 64 columns by tensor copies; two warpgroups multiply, half of the tokens each, or of the
 * rows where there are 64 tokens.  PAIRED: two blocks of a cluster have neighbouring tiles of tokens, and each brings
 * half of the weights for both.  DOUBLE: two sets of sums, so that a run is added to the total while the next one is
 * multiplied; runs have four lines, which are written out, as ptxas does products one by one where they are open over a
 * loop's end. ADDS, with DOUBLE: to what is in out.  HEADS: the rows of a tile are a head of queries, keys or values,
 * which linear_heads.cuh ends. */
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_heads.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/linear_lines.cuh"

namespace
{

constexpr int TILE_THREADS = 384;
constexpr int GROUP = 2048; /* tokens that share weights while these are near */
enum { PLAIN = 0, HEADS = 1, PAIRED = 2, DOUBLE = 4, ADDS = 8 };

template <int TOKENS, int ROWS, int PARTS, int KIND> struct tile {
    static constexpr int STAGE = (PARTS * TOKENS + ROWS) * LINE, END = KIND & HEADS ? 8 * HEADS_ROOM : 0;
    static constexpr int FIT = (224 * 1024 - END) / STAGE, STAGES = FIT < 8 ? FIT : 8;
    static constexpr int N = TOKENS == 64 ? ROWS / 2 : ROWS; /* of a warpgroup's products */
    static constexpr int BLOCKS = KIND & PAIRED ? 2 : 1;
    static_assert(TOKENS == 128 || (TOKENS == 64 && !(KIND & (HEADS | PAIRED))), "128 tokens or 64");
    static_assert(!(KIND & HEADS) || (ROWS == HEAD && PARTS == 1), "a head's rows");
};

struct tile_place {
    int which, batch, r0;
    int64_t t0;
};

/* Tile `at` of `tokens` tokens, of which a GROUP shares a tile's rows while these are near. */
MF_DEV tile_place place_of(const mf_cuda_linear &p, int64_t at, int tokens, int rows)
{
    const int group_size = GROUP / tokens;
    const int64_t token_tiles = (p.num_tokens + tokens - 1) / tokens, row_tiles = p.first_block[p.num],
                  per_batch = token_tiles * row_tiles;
    const int batch = (int)(at / per_batch), in_batch = (int)(at - batch * per_batch);
    const int per_group = group_size * (int)row_tiles, group = in_batch / per_group, in_group = in_batch % per_group;
    const int left = (int)token_tiles - group * group_size, size = left < group_size ? left : group_size;
    const int row_tile = in_group / size;
    tile_place place;
    place.which = matrix_of(p, row_tile);
    place.batch = batch;
    place.r0 = (int)(row_tile - p.first_block[place.which]) * rows;
    place.t0 = (int64_t)(group * group_size + in_group % size) * tokens;
    return place;
}

/* What the thread's sums are added to, as store_sums has them: of whole tiles of rows, in pairs. */
template <int N> MF_DEV void load_out(const mf_cuda_linear &p, int r0, int64_t t, float (&held)[N / 2])
{
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int64_t token = t + 8 * e < p.num_tokens ? t + 8 * e : p.num_tokens - 1;
        const float *from = p.out[0] + token * p.out_stride[0] + r0 + 2 * (threadIdx.x & 3);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            const float2 v = *(const float2 *)(from + 8 * n);
            held[4 * n + 2 * e] = v.x;
            held[4 * n + 2 * e + 1] = v.y;
        }
    }
}

/* A thread's sums: of tokens t and t + 8, two neighbouring rows of each eight from r0 on.  adds: to `held`. */
template <int N>
MF_DEV void store_sums(const mf_cuda_linear &p, const tile_place &at, int r0, int64_t t, float (&total)[N / 2],
                       bool adds, const float (&held)[N / 2])
{
    const int q = threadIdx.x & 3;
    const int64_t num_rows = p.num_batches > 0 ? p.rows : p.w[at.which].n, stride = p.out_stride[at.which];
    float *out = p.out[at.which] + (p.num_batches > 0 ? at.batch * p.out_step : 0);
    const float *bias = p.bias[at.which], *scale = p.row_scale[at.which];
    const bool in_pairs = stride % 2 == 0 && (uintptr_t)out % 8 == 0;
    if (scale && r0 + N <= num_rows) {
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            const float2 s = *(const float2 *)(scale + r0 + 8 * n + 2 * q);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                total[4 * n + i] = __fmul_rn(total[4 * n + i], i % 2 ? s.y : s.x);
            }
        }
        scale = NULL;
    }
    if (!bias && !scale && in_pairs && r0 + N <= num_rows) { /* the usual tile, in little code */
        float *to = out + t * stride + r0 + 2 * q;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (t + 8 * e < p.num_tokens) {
#pragma unroll
                for (int n = 0; n < N / 8; n++) {
                    float2 v = make_float2(total[4 * n + 2 * e], total[4 * n + 2 * e + 1]);
                    if (adds) {
                        v = make_float2(__fadd_rn(held[4 * n + 2 * e], v.x), __fadd_rn(held[4 * n + 2 * e + 1], v.y));
                    }
                    *(float2 *)(to + 8 * n) = v;
                }
            }
            to += 8 * stride;
        }
        return;
    }
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        const int r = r0 + n * 8 + 2 * q;
        const float b0 = bias && r < num_rows ? bias[r] : 0.0f, b1 = bias && r + 1 < num_rows ? bias[r + 1] : 0.0f;
        const float s0 = scale && r < num_rows ? scale[r] : 1.0f, s1 = scale && r + 1 < num_rows ? scale[r + 1] : 1.0f;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float *to = out + (t + 8 * e) * stride + r;
            float x = __fmul_rn(total[4 * n + 2 * e], s0), y = __fmul_rn(total[4 * n + 2 * e + 1], s1);
            x = bias ? __fadd_rn(x, b0) : x;
            y = bias ? __fadd_rn(y, b1) : y;
            x = adds ? __fadd_rn(held[4 * n + 2 * e], x) : x;
            y = adds ? __fadd_rn(held[4 * n + 2 * e + 1], y) : y;
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

template <int TOKENS, int ROWS, int PARTS, int KIND>
__global__ void __launch_bounds__(TILE_THREADS, 1) tile_kernel(const __grid_constant__ mf_cuda_linear_maps call)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    using shape = tile<TOKENS, ROWS, PARTS, KIND>;
    constexpr int STAGE = shape::STAGE, STAGES = shape::STAGES, N = shape::N, X_BYTES = TOKENS * LINE;
    constexpr int BLOCKS = shape::BLOCKS;
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    const mf_cuda_linear &p = call.p;
    const int rank = BLOCKS == 2 ? blockIdx.x & 1 : 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8 * BLOCKS);
        }
        barrier_init_fence();
    }
    __shared__ float norms[KIND & HEADS ? 2 * HEAD : 1];
    if (KIND & HEADS && threadIdx.x < 2 * HEAD) {
        const float *from = threadIdx.x < HEAD ? call.heads.q_norm : call.heads.k_norm;
        norms[threadIdx.x] = from ? from[threadIdx.x % HEAD] : 0.0f;
    }
    let_next_start();
    if (BLOCKS == 2) {
        __syncwarp();
        cluster_sync();
    } else {
        __syncthreads();
    }
    const int64_t tiles = (p.num_tokens + BLOCKS * TOKENS - 1) / (BLOCKS * TOKENS) * p.first_block[p.num] *
                          (p.num_batches > 0 ? p.num_batches : 1);
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
        if (threadIdx.x == 0) {
            wait_for_previous();
            for (int64_t i = blockIdx.x / BLOCKS; i < tiles; i += gridDim.x / BLOCKS) {
                const tile_place at = place_of(p, i, BLOCKS * TOKENS, ROWS);
                const int units = (int)(p.w[at.which].k / 64), t0 = (int)at.t0 + rank * TOKENS;
                const int row = at.r0 + (p.num_batches > 0 ? (int)(at.batch * p.batch_rows + p.first_row) : 0);
                const int x_line = p.num_batches > 0 ? (int)(at.batch * p.x_step / 64) : 0;
                for (int u = 0; u < units; u++) {
                    uint8_t *to = stages + stage * STAGE, *rows = to + PARTS * X_BYTES;
                    barrier_wait(&empty[stage], parity ^ 1);
                    barrier_expect(&full[stage], STAGE);
                    copy_box(to, &call.x, t0, x_line + u, &full[stage]);
#pragma unroll
                    for (int part = 1; part < PARTS; part++) {
                        copy_box(to + part * X_BYTES, &call.rests, (int)((part - 1) * p.num_tokens) + t0, x_line + u,
                                 &full[stage]);
                    }
                    if (BLOCKS == 2) {
                        copy_box_to_both(rows + rank * (ROWS / 2 * LINE), &call.w[at.which], row + rank * (ROWS / 2), u,
                                         &full[stage]);
                    } else {
                        copy_box(rows, &call.w[at.which], row, u, &full[stage]);
                    }
                    next();
                }
            }
        }
        __syncwarp();
    } else {
        take_registers<232>();
        wait_for_previous();
        const int tid = threadIdx.x - 128, group = tid >> 7, lane = tid & 31, warp = tid >> 5 & 3, g = lane >> 2;
        const int own_tokens = TOKENS == 64 ? 0 : group * SUB, own_rows = TOKENS == 64 ? group * N : 0;
        auto give_back = [&](int which) {
            __syncwarp();
            if (BLOCKS == 2 && lane < 2) {
                arrive_at_block(&empty[which], lane);
            } else if (BLOCKS == 1 && lane == 0) {
                barrier_arrive(&empty[which]);
            }
        };
        for (int64_t i = blockIdx.x / BLOCKS; i < tiles; i += gridDim.x / BLOCKS) {
            const tile_place at = place_of(p, i, BLOCKS * TOKENS, ROWS);
            const int units = (int)(p.w[at.which].k / 64);
            const int64_t t = at.t0 + rank * TOKENS + own_tokens / LINE + warp * 16;
            head_rows to_rows;
            int32_t position[2];
            head_angles angles;
            const bool rotates = KIND & HEADS && at.which < 2 && call.heads.rope_dim > 0;
            if constexpr (KIND & HEADS) {
                to_rows = rows_of_heads(call.heads, at.which, at.r0, t + (lane & 15));
                find_positions(call.heads, t, position);
            }
            float acc[N / 2], total[N / 2], held[N / 2]; /* held: ADDS, what is in out */
#pragma unroll
            for (int k = 0; k < N / 2; k++) {
                acc[k] = total[k] = 0.0f;
            }
            auto multiply = [&](float(&sums)[N / 2], int u, bool add) {
                barrier_wait(&full[stage], parity);
                pin(sums);
                products_begin();
                const uint8_t *x = stages + stage * STAGE, *rows = x + PARTS * X_BYTES + own_rows * LINE;
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    add_line<N>(sums, product_operand(x + part * X_BYTES + own_tokens), product_operand(rows),
                                add || part > 0);
                }
                products_commit();
            };
            if constexpr (KIND & DOUBLE) { /* a run is added while the next one's first line is multiplied */
                float other[N / 2];
#pragma unroll
                for (int k = 0; k < N / 2; k++) {
                    other[k] = 0.0f;
                }
#pragma unroll 1
                for (int runs = 0; runs < p.runs; runs += 8) {
                    int before = 0;
                    auto take_run = [&](float(&sums)[N / 2], float(&last)[N / 2], bool is_first, bool is_last) {
#pragma unroll
                        for (int u = 0; u < 4; u++) {
                            multiply(sums, u, u > 0);
                            if (u > 0 || !is_first) {
                                products_wait<1>();
                                give_back(before);
                            }
                            if (u == 0 && !is_first) {
                                pin(last);
#pragma unroll
                                for (int k = 0; k < N / 2; k++) {
                                    total[k] = __fadd_rn(total[k], last[k]);
                                }
                            }
                            if (u == 0 && is_last && rotates && runs + 8 == p.runs) { /* where `last` was */
                                load_angles(angles, call.heads, position);
                            }
                            if (KIND & ADDS && u == 0 && is_last && runs + 8 == p.runs) {
                                load_out<N>(p, at.r0, t + g, held);
                            }
                            before = stage;
                            next();
                        }
                    };
                    take_run(acc, other, true, false);
#pragma unroll
                    for (int i = 0; i < 3; i++) {
                        take_run(other, acc, false, false);
                        take_run(acc, other, false, false);
                    }
                    take_run(other, acc, false, true);
                    products_wait<0>();
                    pin(other);
                    give_back(before);
#pragma unroll
                    for (int k = 0; k < N / 2; k++) {
                        total[k] = __fadd_rn(total[k], other[k]);
                    }
                }
            } else {
                for (int run = 0; run < p.runs; run++) {
                    const int from = run_start(run, units, p.runs), to = run_start(run + 1, units, p.runs);
                    if (from == to) { /* an empty run adds nothing but a zero's sign, which is + already */
                        continue;
                    }
                    if (rotates && run == p.runs - 1) { /* behind what comes to an end now */
                        load_angles(angles, call.heads, position);
                    }
                    int before = -1;
                    for (int u = from; u < to; u++) {
                        multiply(acc, u, u > from);
                        if (before >= 0) {
                            products_wait<1>();
                            give_back(before);
                        }
                        before = stage;
                        next();
                    }
                    products_wait<0>();
                    pin(acc);
                    give_back(before);
#pragma unroll
                    for (int k = 0; k < N / 2; k++) {
                        total[k] = __fadd_rn(total[k], acc[k]);
                    }
                }
            }
            if constexpr (KIND & HEADS) {
                const float *weight = at.which == 0       ? call.heads.q_norm ? norms : NULL
                                      : call.heads.k_norm ? norms + HEAD
                                                          : NULL;
                finish_heads(call, at.which, at.r0, t, to_rows, angles, weight, total,
                             stages + STAGES * STAGE + (group * 4 + warp) * HEADS_ROOM);
            } else {
                store_sums<N>(p, at, at.r0 + own_rows, t + g, total, KIND & ADDS, held);
            }
        }
        __syncwarp();
    }
    if (BLOCKS == 2) {
        cluster_end(); /* nobody leaves whom the other one still writes to */
    }
}

template <int TOKENS, int ROWS, int PARTS, int KIND>
int launch_tile(const mf_cuda_linear_maps &call, int multiprocessors, cudaStream_t stream)
{
    using shape = tile<TOKENS, ROWS, PARTS, KIND>;
    constexpr int BLOCKS = shape::BLOCKS;
    const mf_cuda_linear &p = call.p;
    const int64_t tiles = (p.num_tokens + BLOCKS * TOKENS - 1) / (BLOCKS * TOKENS) * p.first_block[p.num] *
                          (p.num_batches > 0 ? p.num_batches : 1);
    const int64_t most = multiprocessors / BLOCKS;
    const dim3 grid((unsigned)((tiles < most ? tiles : most) * BLOCKS));
    constexpr size_t BYTES = (size_t)shape::STAGES * shape::STAGE + shape::END;
    auto kernel = tile_kernel<TOKENS, ROWS, PARTS, KIND>;
    if (BLOCKS == 2) {
        return launch_clusters(2, kernel, grid, TILE_THREADS, BYTES, stream, call);
    }
    return launch_shared(true, kernel, grid, TILE_THREADS, BYTES, stream, call);
}

} // namespace

int mf_cuda_launch_linear_tiles(const mf_cuda_linear_maps *call, int multiprocessors, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    const bool is_paired = call->is_paired, is_double = call->is_double;
    if (call->adds) { /* is_double, too */
        return is_paired ? launch_tile<128, 128, 1, PAIRED | DOUBLE | ADDS>(*call, multiprocessors, s)
                         : launch_tile<128, 128, 1, DOUBLE | ADDS>(*call, multiprocessors, s);
    }
    if (call->makes_heads) {
        return is_paired   ? is_double ? launch_tile<128, HEAD, 1, PAIRED | HEADS | DOUBLE>(*call, multiprocessors, s)
                                       : launch_tile<128, HEAD, 1, PAIRED | HEADS>(*call, multiprocessors, s)
                 : is_double ? launch_tile<128, HEAD, 1, HEADS | DOUBLE>(*call, multiprocessors, s)
                           : launch_tile<128, HEAD, 1, HEADS>(*call, multiprocessors, s);
    }
    if (call->p.parts == 3) {
        return call->x_rows == 64 ? (call->tile_rows == 64 ? launch_tile<64, 64, 3, PLAIN>(*call, multiprocessors, s)
                                                           : launch_tile<64, 128, 3, PLAIN>(*call, multiprocessors, s))
               : call->tile_rows == 128 ? launch_tile<128, 128, 3, PLAIN>(*call, multiprocessors, s)
                                        : launch_tile<128, 192, 3, PLAIN>(*call, multiprocessors, s);
    }
    if (call->tile_rows == 128) {
        return is_paired   ? is_double ? launch_tile<128, 128, 1, PAIRED | DOUBLE>(*call, multiprocessors, s)
                                       : launch_tile<128, 128, 1, PAIRED>(*call, multiprocessors, s)
                 : is_double ? launch_tile<128, 128, 1, DOUBLE>(*call, multiprocessors, s)
                           : launch_tile<128, 128, 1, PLAIN>(*call, multiprocessors, s);
    }
    return launch_tile<128, 192, 1, PLAIN>(*call, multiprocessors, s);
}
