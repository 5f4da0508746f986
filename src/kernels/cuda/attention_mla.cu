/* attention_mla.cu - multi-head latent attention over a bf16 cache through the tensor cores, in attention_mma.cuh's
 * arithmetic: the latent part of a cached row is both key and value of all heads.
 *
 * A block takes TILES * 16 rows (heads of a token, or of several) and one piece at a time in shared memory.  Each of
 * its eight warps scores eight positions, all weigh the same scores, each sums 64 columns of the values. */
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"

namespace
{

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int RANK = 512, TAIL = 64, DIM = RANK + TAIL, CHUNKS = DIM / 8;
constexpr int SCORE_PITCH = PIECE + 8; /* rows g and columns 2q of a warp's floats meet all banks */

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

template <int TILES, bool DECODE>
__global__ void __launch_bounds__(THREADS, 1) mla_kernel(const __grid_constant__ mf_cuda_attention p)
{
    constexpr int ROWS = TILES * 16, STAGES = STAGES_OF<DECODE>;
    extern __shared__ __align__(128) uint4 shared[];
    let_next_start();
    __shared__ int32_t sequences[ROWS], positions[ROWS];
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
    if (!DECODE) {
        wait_for_previous();
    } else {
        /* The first piece comes while the queries are rounded.  A token alone: what lies before its own piece was
         * cached by earlier steps, and the kernels in front do not touch it. */
        const int64_t position = p.position[t0], first = first_seen(p, position), piece = first / PIECE + blockIdx.z;
        const bool is_early = p.num_tokens == 1 && piece < position / PIECE;
        if (!is_early) {
            wait_for_previous();
        }
        if (piece <= position / PIECE) {
            copy_rows(shared, p, p.block_table + (int64_t)p.sequence[t0] * p.max_blocks, piece * PIECE, first,
                      position);
            copy_commit();
        }
        if (is_early) {
            wait_for_previous();
        }
    }
#pragma unroll 3
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
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
        for (int64_t piece = from; piece <= to; piece += step) {
            uint4 *rows = shared + (DECODE ? 0 : (piece - from) % 2 * PIECE * CHUNKS);
            if (DECODE) {
                if (piece > from) {
                    copy_rows(rows, p, blocks, piece * PIECE, lowest, highest);
                    copy_commit();
                }
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
            float part[TILES][2], of_old[TILES][2], of_next[TILES][2];
#pragma unroll
            for (int i = 0; i < TILES; i++) {
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
                    if (DECODE && is_mine[i][e] && warp == 0 && q == 0) {
                        float *to_piece = piece_of(p, t0, head[i][e], piece);
                        to_piece[0] = most[e];
                        to_piece[1] = part[i][e];
                    } else if (!DECODE && part[i][e] != 0.0f) {
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
    constexpr int BYTES = shared_bytes<TILES, DECODE>();
    const cudaError_t error =
        cudaFuncSetAttribute(mla_kernel<TILES, DECODE>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error != cudaSuccess) {
        return (int)error;
    }
    want_all_shared(mla_kernel<TILES, DECODE>);
    return launch_early(mla_kernel<TILES, DECODE>, grid, THREADS, (size_t)BYTES, stream, p);
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
        const int code =
            launch<1, true>(p, dim3(tokens, (heads + 15) / 16, (unsigned)p.num_splits), (cudaStream_t)stream);
        return code != 0 ? code : mf_cuda_launch_attention_merge_pieces(&p, stream);
    }
    const unsigned group = heads < 32 ? heads : 32, each = 32 / group;
    return launch<2, false>(p, dim3((tokens + each - 1) / each, (heads + group - 1) / group), (cudaStream_t)stream);
}
