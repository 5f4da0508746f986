/* attention_mla.cu - multi-head latent attention over a bf16 cache through the tensor cores, in attention_mma.cuh's
 * arithmetic: the latent part of a cached row is both key and value of all heads.
 *
 * A block takes TILES * 16 rows (heads of a token, or of several) and one piece at a time in shared memory.  Each of
 * its eight warps scores eight positions, all weigh the same scores (DECODE: a warp two heads'), each sums 64 columns of
 * the values. */
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"

namespace
{

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int RANK = 512, TAIL = 64, DIM = RANK + TAIL, CHUNKS = DIM / 8;
constexpr int SCORE_PITCH = PIECE + 8; /* rows g and columns 2q of a warp's floats meet all banks */
constexpr int WEIGHT_PITCH = PIECE + 8; /* of bf16: eight rows' 16 bytes meet all banks */

static_assert(RANK == WARPS * 64, "a warp takes 64 columns of the values");
static_assert(PIECE == WARPS * 8, "a warp scores eight positions");

template <bool DECODE> constexpr int STAGES_OF = DECODE ? 1 : 2;

template <int TILES, bool DECODE> constexpr int shared_bytes()
{
    return STAGES_OF<DECODE> * PIECE * DIM * 2 + TILES * 16 * DIM * 2 + TILES * 16 * SCORE_PITCH * 4;
}

MF_DEV void copy_rows(uint4 *rows, const mf_cuda_attention &p, const int32_t *blocks, int64_t base, int64_t first,
                      int64_t last)
{
    static_assert(PIECE * CHUNKS % THREADS == 0, "whole turns");
#pragma unroll 6
    for (int i = 0; i < PIECE * CHUNKS / THREADS; i++) {
        const int at = i * THREADS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
        const int64_t position = base + row;
        const bool is_there = position >= first && position <= last;
        const uint16_t *from = (const uint16_t *)p.cache + (is_there ? row_offset(p, blocks, position) : 0);
        copy_async(rows + place<CHUNKS>(row, chunk), from + chunk * 8, is_there);
    }
}

/* A row by a warp; zeros where there is none. */
MF_DEV void copy_row(uint4 *rows, int row, const uint16_t *from, bool is_there, int lane)
{
#pragma unroll
    for (int i = 0; i < (CHUNKS + 31) / 32; i++) {
        const int chunk = i * 32 + lane;
        if (i < CHUNKS / 32 || chunk < CHUNKS) {
            copy_async(rows + place<CHUNKS>(row, chunk), from + chunk * 8, is_there);
        }
    }
}

/* Rows of a piece that have been found, but for row `skipped`. */
MF_DEV void copy_found_rows(uint4 *rows, const mf_cuda_attention &p, const int32_t *row_of, int skipped, int warp,
                            int lane)
{
#pragma unroll 2
    for (int row = warp; row < PIECE; row += WARPS) {
        const int from = row_of[row];
        if (row != skipped) {
            copy_row(rows, row, (const uint16_t *)p.cache + (from < 0 ? 0 : from) * p.row_size, from >= 0, lane);
        }
    }
}

/* DECODE meets its code cold, so there is little of it.  Scores of two heads and 64 positions by a warp, a lane four of
 * them, become weights: as they are, and rounded in `weights`.  Returns the maximum of the lane's row. */
MF_DEV float weigh_two_rows(float *all_scores, uint16_t *weights, int64_t base, int64_t first, int64_t last, int warp,
                            int lane)
{
    const int row = warp * 2 + (lane >> 4), at = (lane & 15) * 4;
    const int low = first > base ? (int)(first - base) : 0, high = last - base < PIECE ? (int)(last - base) : PIECE;
    float4 *scores = (float4 *)(all_scores + row * SCORE_PITCH + at);
    float4 v = *scores;
    v.x = at >= low && at <= high ? v.x : minus_infinity();
    v.y = at + 1 >= low && at + 1 <= high ? v.y : minus_infinity();
    v.z = at + 2 >= low && at + 2 <= high ? v.z : minus_infinity();
    v.w = at + 3 >= low && at + 3 <= high ? v.w : minus_infinity();
    float most = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {
        most = fmaxf(most, __shfl_xor_sync(MF_FULL_WARP, most, step));
    }
    const float below = most == minus_infinity() ? 0.0f : most;
    v = make_float4(exp2_fast(__fsub_rn(v.x, below)), exp2_fast(__fsub_rn(v.y, below)),
                    exp2_fast(__fsub_rn(v.z, below)), exp2_fast(__fsub_rn(v.w, below)));
    *scores = v;
    *(uint2 *)(weights + row * WEIGHT_PITCH + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    return most;
}

/* A row's weights in weigh's order: columns 2q, 2q + 1 of each eight one after the other, then the four threads'. */
MF_DEV float sum_of_row(const float *row, int q)
{
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const float2 v = *(const float2 *)(row + n * 8 + 2 * q);
        total = n == 0 ? v.x : __fadd_rn(total, v.x);
        total = __fadd_rn(total, v.y);
    }
    total = __fadd_rn(total, __shfl_xor_sync(MF_FULL_WARP, total, 1));
    return __fadd_rn(total, __shfl_xor_sync(MF_FULL_WARP, total, 2));
}

template <int TILES, bool DECODE>
__global__ void __launch_bounds__(THREADS, 1) mla_kernel(const __grid_constant__ mf_cuda_attention p)
{
    constexpr int ROWS = TILES * 16, STAGES = STAGES_OF<DECODE>;
    extern __shared__ __align__(128) uint4 shared[];
    let_next_start();
    __shared__ int32_t sequences[ROWS], positions[ROWS], row_of[DECODE ? PIECE : 1];
    __shared__ __align__(16) uint16_t weights[DECODE ? ROWS * WEIGHT_PITCH : 1];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    uint4 *queries = shared + STAGES * PIECE * CHUNKS;
    float *all_scores = (float *)(queries + ROWS * CHUNKS);
    const int group = p.num_heads < ROWS ? p.num_heads : ROWS, each = ROWS / group, head0 = blockIdx.y * group;
    const int64_t t0 = DECODE ? blockIdx.x : (int64_t)(gridDim.x - 1 - blockIdx.x) * each;
    const int tokens = DECODE ? 1 : p.num_tokens - t0 < each ? (int)(p.num_tokens - t0) : each;
    if (threadIdx.x < tokens) { /* no kernel's work: no need to wait */
        sequences[threadIdx.x] = p.sequence[t0 + threadIdx.x];
        positions[threadIdx.x] = p.position[t0 + threadIdx.x];
    }
    int own_row = -1; /* DECODE: its place in the first piece, where it has not been asked for */
    if (!DECODE) {
        wait_for_previous();
    } else {
        /* The first piece is asked for before the kernels in front have ended where no other row of the batch is of
         * the sequence, but for the token's own row. */
        const int64_t position = p.position[t0], first = first_seen(p, position), piece = first / PIECE + blockIdx.z;
        const bool is_there = piece <= position / PIECE, is_early = is_alone(p, t0);
        const int skipped = is_early && piece == position / PIECE ? (int)(position % PIECE) : -1;
        find_rows(row_of, p, p.block_table + (int64_t)p.sequence[t0] * p.max_blocks, piece * PIECE, first, position);
        __syncthreads();
        if (!is_early) {
            wait_for_previous();
        }
        if (is_there) {
            copy_found_rows(shared, p, row_of, skipped, warp, lane);
            copy_commit();
        }
        own_row = skipped;
    }
#pragma unroll 3
    for (int i = threadIdx.x; !DECODE && i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS, token = row / group, head = head0 + row % group;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (token < tokens && head < p.num_heads) {
            v = chunk < RANK / 8 ? *(const uint4 *)((const uint16_t *)p.q + (t0 + token) * p.q_stride +
                                                    head * p.q_head_stride + chunk * 8)
                                 : pack_chunk(p.q_tail + (t0 + token) * p.tail_stride + head * p.tail_head_stride +
                                                  chunk * 8 - RANK,
                                              p.scale);
        }
        queries[place<CHUNKS>(row, chunk)] = v;
    }
    __syncthreads();
    int token[TILES][2], head[TILES][2];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int row = i * 16 + g + 8 * e;
            token[i][e] = row / group;
            head[i][e] = head0 + row % group;
        }
    }
    for (int begin = 0, end; begin < tokens; begin = end) {
        for (end = begin + 1;
             end < tokens && sequences[end] == sequences[begin] && positions[end] == positions[end - 1] + 1; end++) {
        }
        const int32_t *blocks = p.block_table + (int64_t)sequences[begin] * p.max_blocks;
        const int64_t lowest = first_seen(p, positions[begin]), highest = positions[end - 1];
        int64_t first[TILES][2], last[TILES][2];
        float m[TILES][2], sum[TILES][2], value[DECODE ? 1 : TILES][8][4];
        bool is_mine[TILES][2];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                is_mine[i][e] = token[i][e] >= begin && token[i][e] < end && head[i][e] < p.num_heads;
                last[i][e] = is_mine[i][e] ? positions[token[i][e]] : -1;
                first[i][e] = is_mine[i][e] ? first_seen(p, last[i][e]) : 0;
                m[i][e] = minus_infinity();
                sum[i][e] = 0.0f;
            }
#pragma unroll
            for (int n = 0; n < 8; n++) {
                value[DECODE ? 0 : i][n][0] = value[DECODE ? 0 : i][n][1] = value[DECODE ? 0 : i][n][2] =
                    value[DECODE ? 0 : i][n][3] = 0.0f;
            }
        }
        const int64_t step = DECODE ? p.num_splits : 1, from = lowest / PIECE + (DECODE ? blockIdx.z : 0),
                      to = highest / PIECE;
        if (!DECODE) {
            __syncthreads(); /* the run before has read its last piece */
            copy_rows(shared, p, blocks, from * PIECE, lowest, highest);
            copy_commit();
        }
#pragma unroll 1
        for (int64_t piece = from; piece <= to; piece += step) {
            uint4 *rows = shared + (DECODE ? 0 : (piece - from) % 2 * PIECE * CHUNKS);
            if (DECODE) {
                if (piece > from) {
                    find_rows(row_of, p, blocks, piece * PIECE, lowest, highest);
                    __syncthreads();
                    copy_found_rows(rows, p, row_of, -1, warp, lane);
                } else {
                    wait_for_previous();
                    const uint16_t *row0 = (const uint16_t *)p.q + t0 * p.q_stride + head0 * p.q_head_stride;
#pragma unroll
                    for (int row = warp; row < ROWS; row += WARPS) {
                        const bool is_there = head0 + row < p.num_heads;
                        copy_row(queries, row, row0 + (is_there ? row * DIM : 0), is_there, lane);
                    }
                    if (own_row >= 0 && warp == 0) {
                        copy_row(rows, own_row, (const uint16_t *)p.cache + row_of[own_row] * p.row_size, true, lane);
                    }
                }
                copy_commit();
                copy_wait<0>();
            } else {
                if (piece < to) {
                    copy_rows(shared + (piece - from + 1) % 2 * PIECE * CHUNKS, p, blocks, (piece + 1) * PIECE, lowest,
                              highest);
                }
                copy_commit();
                copy_wait<1>();
            }
            __syncthreads();
            const int64_t base = piece * PIECE;
            {
                float acc[TILES][4];
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.0f;
                }
#pragma unroll(DECODE ? 3 : CHUNKS / 4)                /* decode meets its code cold: less of it */
                for (int c = 0; c < CHUNKS / 4; c++) { /* two steps of 16 columns */
                    uint32_t key[4];
                    load_tiles(key, rows + place<CHUNKS>(warp * 8 + (lane & 7), c * 4 + (lane >> 3)));
#pragma unroll
                    for (int i = 0; i < TILES; i++) {
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            uint32_t a[4];
                            load_tiles(a, queries + place<CHUNKS>(i * 16 + (lane & 15), c * 4 + k * 2 + (lane >> 4)));
                            mma_bf16(acc[i], a[0], a[1], a[2], a[3], key[2 * k], key[2 * k + 1]);
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    float *to_row = all_scores + (i * 16 + g) * SCORE_PITCH + warp * 8 + 2 * q;
                    *(float2 *)to_row = make_float2(acc[i][0], acc[i][1]);
                    *(float2 *)(to_row + 8 * SCORE_PITCH) = make_float2(acc[i][2], acc[i][3]);
                }
            }
            __syncthreads();
            uint32_t packed[TILES][4][4];
            float part[TILES][2], of_old[TILES][2], of_next[TILES][2], own_most = 0.0f;
            if constexpr (DECODE) {
                own_most = weigh_two_rows(all_scores, weights, base, lowest, highest, warp, lane);
                __syncthreads();
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    load_tiles(packed[0][k], weights + (lane & 15) * WEIGHT_PITCH + k * 16 + (lane >> 4) * 8);
                }
            }
#pragma unroll
            for (int i = 0; i < TILES && !DECODE; i++) {
                scores s;
                float most[2];
#pragma unroll
                for (int n = 0; n < 8; n++) {
                    const float *row = all_scores + (i * 16 + g) * SCORE_PITCH + n * 8 + 2 * q;
                    const float2 low = *(const float2 *)row, high = *(const float2 *)(row + 8 * SCORE_PITCH);
                    s.v[n][0] = low.x, s.v[n][1] = low.y, s.v[n][2] = high.x, s.v[n][3] = high.y;
                }
                mask(s, base, q, first[i], last[i]);
                weigh(s, most, part[i]);
                pack_weights(packed[i], s);
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (part[i][e] != 0.0f) {
                        merge_factors2(m[i][e], most[e], of_old[i][e], of_next[i][e]);
                        sum[i][e] = merged(sum[i][e], of_old[i][e], part[i][e], of_next[i][e]);
                    }
                }
            }
            /* As in prefill of grouped queries: values that are no numbers, seen by some tokens of the run only. */
            int only = -1;
            if (!DECODE && (base < first_seen(p, highest) || base + PIECE - 1 > positions[begin]) && end - begin > 1) {
                bool bad = false;
                for (int i = threadIdx.x; i < PIECE * CHUNKS; i += THREADS) {
                    bad |= has_no_end(rows[i]);
                }
                only = __syncthreads_or(bad) ? begin : -1;
            }
#pragma unroll 1
            do {
                if (!DECODE && only >= 0) {
                    const int64_t seen = first_seen(p, positions[only]);
                    __syncthreads();
                    for (int i = threadIdx.x; i < PIECE * CHUNKS; i += THREADS) {
                        const int row = i / CHUNKS, chunk = i % CHUNKS;
                        const int64_t at = base + row;
                        rows[place<CHUNKS>(row, chunk)] =
                            at >= seen && at <= positions[only]
                                ? *(const uint4 *)((const uint16_t *)p.cache + row_offset(p, blocks, at) + chunk * 8)
                                : make_uint4(0, 0, 0, 0);
                    }
                    __syncthreads();
                }
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    float out[8][4];
                    weigh_values<CHUNKS, 8>(out, packed[i], rows, warp * 8, lane);
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        if (DECODE && is_mine[i][e]) {
                            float *to_piece = piece_of(p, t0, head[i][e], piece) + 2 + warp * 64 + 2 * q;
#pragma unroll
                            for (int n = 0; n < 8; n++) {
                                *(float2 *)(to_piece + n * 8) = make_float2(out[n][2 * e], out[n][2 * e + 1]);
                            }
                        } else if (!DECODE && part[i][e] != 0.0f && (only < 0 || token[i][e] == only)) {
#pragma unroll
                            for (int n = 0; n < 8; n++) {
                                float &low = value[DECODE ? 0 : i][n][2 * e],
                                      &high = value[DECODE ? 0 : i][n][2 * e + 1];
                                low = merged(low, of_old[i][e], out[n][2 * e], of_next[i][e]);
                                high = merged(high, of_old[i][e], out[n][2 * e + 1], of_next[i][e]);
                            }
                        }
                    }
                }
            } while (!DECODE && only >= 0 && ++only < end);
            if constexpr (DECODE) {
                const float most = __shfl_sync(MF_FULL_WARP, own_most, g % 2 * 16),
                            total = sum_of_row(all_scores + (warp * 2 + g % 2) * SCORE_PITCH, q);
                const int of_head = head0 + warp * 2 + g;
                if (g < 2 && q == 0 && of_head < p.num_heads) {
                    *(float2 *)piece_of(p, t0, of_head, piece) = make_float2(most, total);
                }
            }
            __syncthreads(); /* before rows and scores are overwritten */
        }
        if constexpr (!DECODE) {
#pragma unroll
            for (int i = 0; i < TILES; i++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (is_mine[i][e]) {
                        const float part_of_all = __frcp_rn(sum[i][e]);
                        const int64_t row =
                            ((t0 + token[i][e]) * p.num_heads + head[i][e]) * RANK + warp * 64 + 2 * q;
#pragma unroll
                        for (int n = 0; n < 8; n++) {
                            const float low = __fmul_rn(value[i][n][2 * e], part_of_all),
                                        high = __fmul_rn(value[i][n][2 * e + 1], part_of_all);
                            if (p.rounded) {
                                *(uint32_t *)(p.rounded + row + n * 8) = pack_bf16(low, high);
                            } else {
                                *(float2 *)(p.out + row + n * 8) = make_float2(low, high);
                            }
                        }
                    }
                }
            }
        }
    }
}

template <int TILES, bool DECODE> int launch(const mf_cuda_attention &p, dim3 grid, cudaStream_t stream)
{
    want_all_shared(mla_kernel<TILES, DECODE>);
    return launch_shared(mf_cuda_starts_early != 0, mla_kernel<TILES, DECODE>, grid, THREADS,
                         (size_t)shared_bytes<TILES, DECODE>(), stream, p);
}

} // namespace

int64_t mf_cuda_attention_mla_shared(void)
{
    return shared_bytes<2, false>();
}

int mf_cuda_launch_attention_mla(const mf_cuda_attention *call, int is_decode, void *stream)
{
    mf_cuda_attention p = *call;
    p.scale = (float)((double)p.scale * 1.4426950408889634); /* scores in units of log2 */
    const unsigned tokens = (unsigned)p.num_tokens, heads = (unsigned)p.num_heads;
    if (is_decode) {
        return launch<1, true>(p, dim3(tokens, (heads + 15) / 16, (unsigned)p.num_splits), (cudaStream_t)stream);
    }
    const unsigned group = heads < 32 ? heads : 32, each = 32 / group;
    return launch<2, false>(p, dim3((tokens + each - 1) / each, (heads + group - 1) / group), (cudaStream_t)stream);
}
