/* attention_mma.cu - grouped queries over a bf16 cache through the tensor cores, in attention_mma.cuh's arithmetic:
 * DECODE leaves pieces in memory and another kernel merges them, PREFILL merges in registers. */
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"

namespace
{

/* ---- grouped queries ---- */

/* Keys of one kv head [64, DIM] and values behind them, chunk by chunk, what lies outside [first, last] as zeros. */
template <int DIM, int THREADS>
MF_DEV void copy_piece(uint4 *keys, uint4 *values, const mf_cuda_attention &p, const int32_t *blocks, int kv_head,
                       int64_t base, int64_t first, int64_t last, int thread)
{
    constexpr int CHUNKS = DIM / 8;
    static_assert(PIECE * CHUNKS % THREADS == 0, "whole turns");
#pragma unroll 4
    for (int i = 0; i < PIECE * CHUNKS / THREADS; i++) {
        const int at = i * THREADS + thread, row = at / CHUNKS, chunk = at % CHUNKS;
        const int64_t position = base + row;
        const bool is_there = position >= first && position <= last;
        const uint16_t *from = (const uint16_t *)p.cache + (is_there ? row_offset(p, blocks, position) : 0);
        copy_async(keys + place<CHUNKS>(row, chunk), from + kv_head * DIM + chunk * 8, is_there);
        copy_async(values + place<CHUNKS>(row, chunk), from + p.value_at + kv_head * DIM + chunk * 8, is_there);
    }
}

/* The rows' keys or values, chunk by chunk; zeros where there is no row, and nothing in row `skipped`. */
template <int DIM, int THREADS>
MF_DEV void copy_part(uint4 *rows, const uint16_t *part, int64_t row_size, const int32_t *row_of, int skipped)
{
    constexpr int CHUNKS = DIM / 8;
    const int chunk = threadIdx.x % CHUNKS;
#pragma unroll 4
    for (int row = threadIdx.x / CHUNKS; row < PIECE; row += THREADS / CHUNKS) {
        const int from = row_of[row];
        if (row != skipped) {
            copy_async(rows + place<CHUNKS>(row, chunk), part + (from < 0 ? 0 : from) * row_size + chunk * 8,
                       from >= 0);
        }
    }
}

/* 16 rows of queries as operands of steps of 16 columns: rows g and g + 8, columns 2q, 2q + 1 and eight further on. */
template <int DIM> struct query_rows {
    uint32_t v[DIM / 16][4];
};

MF_DEV uint32_t query_pair(const float *row, int column, float scale)
{
    const float2 v = row ? *(const float2 *)(row + column) : make_float2(0.0f, 0.0f);
    return pack_query(v.x, v.y, scale);
}

template <int DIM>
MF_DEV void load_queries(query_rows<DIM> &r, const float *low, const float *high, float scale, int q)
{
#pragma unroll
    for (int s = 0; s < DIM / 16; s++) {
        r.v[s][0] = query_pair(low, s * 16 + 2 * q, scale);
        r.v[s][1] = query_pair(high, s * 16 + 2 * q, scale);
        r.v[s][2] = query_pair(low, s * 16 + 8 + 2 * q, scale);
        r.v[s][3] = query_pair(high, s * 16 + 8 + 2 * q, scale);
    }
}

/* Positions [8 n, 8 n + 8). */
template <int DIM> MF_DEV void score_tile(float (&acc)[4], const query_rows<DIM> &r, const uint4 *keys, int n, int lane)
{
    acc[0] = acc[1] = acc[2] = acc[3] = 0.0f;
#pragma unroll
    for (int s = 0; s < DIM / 16; s += 2) {
        uint32_t b[4];
        load_tiles(b, keys + place<DIM / 8>(n * 8 + (lane & 7), s * 2 + (lane >> 3)));
        mma_bf16(acc, r.v[s][0], r.v[s][1], r.v[s][2], r.v[s][3], b[0], b[1]);
        mma_bf16(acc, r.v[s + 1][0], r.v[s + 1][1], r.v[s + 1][2], r.v[s + 1][3], b[2], b[3]);
    }
}

template <int DIM> MF_DEV void score(scores &s, const query_rows<DIM> &r, const uint4 *keys, int lane)
{
#pragma unroll
    for (int n = 0; n < 8; n++) {
        score_tile<DIM>(s.v[n], r, keys, n, lane);
    }
}

constexpr int DECODE_WARPS = 4;
constexpr int SCORE_PITCH = PIECE + 8;

/* A block takes one row of the batch and up to 16 heads of a kv head, a piece at a time, into memory: a warp scores 16
 * positions, all weigh the same scores, each sums a quarter of the values' columns. */
template <int DIM>
__global__ void __launch_bounds__(32 * DECODE_WARPS) decode_kernel(const __grid_constant__ mf_cuda_attention p)
{
    constexpr int CHUNKS = DIM / 8, TILES = DIM / 8 / DECODE_WARPS, THREADS = 32 * DECODE_WARPS;
    extern __shared__ __align__(128) uint4 shared[];
    __shared__ float all_scores[16][SCORE_PITCH];
    __shared__ int32_t row_of[PIECE];
    let_next_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const int group = p.num_heads / p.num_kv_heads, tiles = (group + 15) / 16;
    const int kv_head = blockIdx.y / tiles, head0 = kv_head * group + blockIdx.y % tiles * 16;
    const int heads = (blockIdx.y % tiles + 1) * 16 < group ? 16 : group - blockIdx.y % tiles * 16;
    const int64_t t = blockIdx.x, position = p.position[t], first = first_seen(p, position);
    const int32_t *blocks = p.block_table + (int64_t)p.sequence[t] * p.max_blocks;
    uint4 *keys = shared, *values = keys + PIECE * CHUNKS;
    const float *queries = p.q + t * p.q_stride + head0 * p.q_head_stride;
    query_rows<DIM> r;
    const int64_t begins[2] = { first, first }, ends[2] = { position, position };
    const int64_t start = first / PIECE + blockIdx.z, own_piece = position / PIECE;
    const bool is_early = is_alone(p, t);
    const uint16_t *cached = (const uint16_t *)p.cache + kv_head * DIM;
#pragma unroll 1
    for (int64_t piece = start; piece <= own_piece; piece += p.num_splits) {
        find_rows(row_of, p, blocks, piece * PIECE, first, position); /* the table is no kernel's work */
        __syncthreads();
        if (!is_early) {
            wait_for_previous();
        }
        /* The token's own row, where the others are asked for before it is there. */
        const int skipped = is_early && piece == start && piece == own_piece ? (int)(position % PIECE) : -1;
        copy_part<DIM, THREADS>(keys, cached, p.row_size, row_of, skipped);
        copy_commit();
        copy_part<DIM, THREADS>(values, cached + p.value_at, p.row_size, row_of, skipped);
        copy_commit();
        if (piece == start) {
            wait_for_previous();
            if (skipped >= 0 && threadIdx.x < 2 * CHUNKS) {
                const int chunk = threadIdx.x % CHUNKS;
                const bool is_key = threadIdx.x < CHUNKS;
                copy_async((is_key ? keys : values) + place<CHUNKS>(skipped, chunk),
                           cached + (is_key ? 0 : p.value_at) + row_of[skipped] * p.row_size + chunk * 8, true);
            }
            copy_commit();
            load_queries(r, g < heads ? queries + g * p.q_head_stride : NULL,
                         g + 8 < heads ? queries + (g + 8) * p.q_head_stride : NULL, p.scale, q);
        }
        if (piece == start) {
            copy_wait<0>();
        } else {
            copy_wait<1>();
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int n = warp * 2 + i;
            float acc[4];
            score_tile<DIM>(acc, r, keys, n, lane);
            *(float2 *)&all_scores[g][n * 8 + 2 * q] = make_float2(acc[0], acc[1]);
            *(float2 *)&all_scores[g + 8][n * 8 + 2 * q] = make_float2(acc[2], acc[3]);
        }
        copy_wait<0>();
        __syncthreads();
        scores s;
        uint32_t packed[4][4];
        float most[2], sum[2], out[TILES][4];
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const float2 low = *(const float2 *)&all_scores[g][n * 8 + 2 * q],
                         high = *(const float2 *)&all_scores[g + 8][n * 8 + 2 * q];
            s.v[n][0] = low.x, s.v[n][1] = low.y, s.v[n][2] = high.x, s.v[n][3] = high.y;
        }
        mask(s, piece * PIECE, q, begins, ends);
        weigh(s, most, sum);
        pack_weights(packed, s);
        weigh_values<CHUNKS, TILES>(out, packed, values, warp * TILES, lane);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (g + 8 * e < heads) {
                float *to = piece_of(p, t, head0 + g + 8 * e, piece);
                if (warp == 0 && q == 0) {
                    to[0] = most[e];
                    to[1] = sum[e];
                }
#pragma unroll
                for (int n = 0; n < TILES; n++) {
                    *(float2 *)(to + 2 + (warp * TILES + n) * 8 + 2 * q) =
                        make_float2(out[n][2 * e], out[n][2 * e + 1]);
                }
            }
        }
    }
}

constexpr int MERGE_THREADS = 128;

/* One row, one head and 128 columns: pieces in ascending order; those without weight change nothing, not even a sign.
 * A thread finds the factors of a piece, all then add theirs.  What comes after the wait is short and would be met
 * cold: a first pass goes through it beforehand, without a trace but its code in the caches, and nothing is read
 * through the first-level cache, where it would leave what stood there before. */
__global__ void __launch_bounds__(MERGE_THREADS) merge_kernel(const __grid_constant__ mf_cuda_attention p)
{
    constexpr int EARLY = 12; /* pieces whose values are loaded beside the factors */
    __shared__ float of_old[MERGE_THREADS], of_next[MERGE_THREADS], maxima[MERGE_THREADS], sums[MERGE_THREADS];
    __shared__ float largest;
    let_next_start();
    const int64_t t = blockIdx.x, position = p.position[t], first = first_seen(p, position);
    const int head = blockIdx.y, j = blockIdx.z * MERGE_THREADS + threadIdx.x, tid = threadIdx.x;
    const float *pieces = piece_of(p, t, head, 0);
    const int64_t size = p.v_dim + 2, end = position / PIECE + 1;
    const bool is_mine = j < p.v_dim;
    const float start_most = start_maximum2(p, head);
#pragma unroll 1
    for (int pass = 0; pass < 2; pass++) {
        if (pass > 0) {
            wait_for_previous();
        }
        float m = start_most, sum = start_sum(p), value = 0.0f;
        const int64_t last = pass > 0 || end < first / PIECE + EARLY ? end : first / PIECE + EARLY;
#pragma unroll 1
        for (int64_t base = first / PIECE; base < last; base += MERGE_THREADS) {
            const int count = last - base < MERGE_THREADS ? (int)(last - base) : MERGE_THREADS;
            const float *column = pieces + base * size + 2 + (is_mine ? j : 0);
            float early[EARLY];
#pragma unroll
            for (int i = 0; i < EARLY; i++) {
                early[i] = i < count ? __ldcg(column + i * size) : 0.0f;
            }
            __syncthreads();
            if (tid < count) {
                maxima[tid] = __ldcg(pieces + (base + tid) * size);
                sums[tid] = __ldcg(pieces + (base + tid) * size + 1);
            }
            __syncthreads();
            if (tid < count) {
#pragma unroll 4
                for (int i = 0; i < tid; i++) {
                    m = sums[i] != 0.0f ? next_maximum2(m, maxima[i]) : m;
                }
                float old = 1.0f, next = 0.0f;
                if (sums[tid] != 0.0f) {
                    merge_factors2(m, maxima[tid], old, next);
                }
                of_old[tid] = old;
                of_next[tid] = next;
                if (tid == count - 1) {
                    largest = m;
                }
            }
            __syncthreads();
            m = largest;
            auto add = [&](int i, float v) {
                if (sums[i] != 0.0f) {
                    sum = merged(sum, of_old[i], sums[i], of_next[i]);
                    value = merged(value, of_old[i], v, of_next[i]);
                }
            };
#pragma unroll
            for (int i = 0; i < EARLY; i++) {
                if (i < count) {
                    add(i, early[i]);
                }
            }
#pragma unroll 8
            for (int i = EARLY; i < count; i++) {
                add(i, __ldcg(column + i * size));
            }
        }
        if (is_mine && pass > 0) {
            const int64_t at = (t * p.num_heads + head) * p.v_dim + j;
            const float v = __fmul_rn(value, __frcp_rn(sum));
            if (p.rounded) {
                p.rounded[at] = f32_to_bf16(v);
            } else {
                p.out[at] = v;
            }
        }
    }
}

constexpr int PREFILL_WARPS = 8;
constexpr int PREFILL_ROWS = 16 * PREFILL_WARPS;

/* A block takes some rows of the batch and all heads of a kv head: row r of its 128 is head r % group of token r /
 * group. Tokens that follow one another in a sequence share pieces; others take their turn. */
template <int DIM>
__global__ void __launch_bounds__(32 * PREFILL_WARPS, 1) prefill_kernel(const __grid_constant__ mf_cuda_attention p)
{
    begin_early();
    constexpr int CHUNKS = DIM / 8, TILES = DIM / 8, THREADS = 32 * PREFILL_WARPS, STAGE = 2 * PIECE * CHUNKS;
    extern __shared__ __align__(128) uint4 shared[];
    __shared__ int32_t sequences[PREFILL_ROWS], positions[PREFILL_ROWS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const int group = p.num_heads / p.num_kv_heads, each = PREFILL_ROWS / group, kv_head = blockIdx.y;
    const int64_t t0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * each; /* the longest contexts first */
    const int tokens = p.num_tokens - t0 < each ? (int)(p.num_tokens - t0) : each;
    if (threadIdx.x < tokens) {
        sequences[threadIdx.x] = p.sequence[t0 + threadIdx.x];
        positions[threadIdx.x] = p.position[t0 + threadIdx.x];
    }
    __syncthreads();
    int token[2], head[2];
    query_rows<DIM> r;
    const float *rows[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int row = warp * 16 + g + 8 * e;
        token[e] = row / group;
        head[e] = kv_head * group + row % group;
        rows[e] = token[e] < tokens ? p.q + (t0 + token[e]) * p.q_stride + head[e] * p.q_head_stride : NULL;
    }
    load_queries(r, rows[0], rows[1], p.scale, q);

    for (int begin = 0, end; begin < tokens; begin = end) {
        for (end = begin + 1;
             end < tokens && sequences[end] == sequences[begin] && positions[end] == positions[end - 1] + 1; end++) {
        }
        const int32_t *blocks = p.block_table + (int64_t)sequences[begin] * p.max_blocks;
        const int64_t lowest = first_seen(p, positions[begin]), highest = positions[end - 1];
        int64_t first[2], last[2];
        float m[2], sum[2], value[TILES][4];
        bool is_mine[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            is_mine[e] = token[e] >= begin && token[e] < end;
            last[e] = is_mine[e] ? positions[token[e]] : -1;
            first[e] = is_mine[e] ? first_seen(p, last[e]) : 0;
            m[e] = is_mine[e] ? start_maximum2(p, head[e]) : minus_infinity();
            sum[e] = start_sum(p);
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            value[n][0] = value[n][1] = value[n][2] = value[n][3] = 0.0f;
        }
        const int64_t from = lowest / PIECE, to = highest / PIECE;
        __syncthreads(); /* the run before has read its last piece */
        copy_piece<DIM, THREADS>(shared, shared + PIECE * CHUNKS, p, blocks, kv_head, from * PIECE, lowest, highest,
                                 threadIdx.x);
        copy_commit();
        for (int64_t piece = from; piece <= to; piece++) {
            uint4 *keys = shared + (piece - from) % 2 * STAGE, *values = keys + PIECE * CHUNKS;
            if (piece < to) {
                uint4 *next = shared + (piece - from + 1) % 2 * STAGE;
                copy_piece<DIM, THREADS>(next, next + PIECE * CHUNKS, p, blocks, kv_head, (piece + 1) * PIECE, lowest,
                                         highest, threadIdx.x);
            }
            copy_commit();
            copy_wait<1>();
            __syncthreads();
            const int64_t base = piece * PIECE;
            scores s;
            uint32_t packed[4][4];
            float most[2], part[2], of_old[2], of_next[2];
            score<DIM>(s, r, keys, lane);
            mask(s, base, q, first, last);
            weigh(s, most, part);
            pack_weights(packed, s);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                if (part[e] != 0.0f) {
                    merge_factors2(m[e], most[e], of_old[e], of_next[e]);
                    sum[e] = merged(sum[e], of_old[e], part[e], of_next[e]);
                }
            }
            /* The values of token `only`'s rows, or of all: few columns at a time, for the registers. */
            auto add_values = [&](int only) {
                constexpr int AT_ONCE = 4;
#pragma unroll
                for (int c = 0; c < TILES; c += AT_ONCE) {
                    float out[AT_ONCE][4];
                    weigh_values<CHUNKS, AT_ONCE>(out, packed, values, c, lane);
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        if (part[e] != 0.0f && (only < 0 || token[e] == only)) {
#pragma unroll
                            for (int n = 0; n < AT_ONCE; n++) {
                                float &low = value[c + n][2 * e], &high = value[c + n][2 * e + 1];
                                low = merged(low, of_old[e], out[n][2 * e], of_next[e]);
                                high = merged(high, of_old[e], out[n][2 * e + 1], of_next[e]);
                            }
                        }
                    }
                }
            };
            /* A value that some rows of the run do not see is weighed with 0 there, which a NaN or infinity would
             * survive: then each token has the values to itself. */
            int only = -1;
            if (base < first_seen(p, highest) || base + PIECE - 1 > positions[begin]) {
                bool bad = false;
                for (int i = threadIdx.x; i < PIECE * CHUNKS; i += THREADS) {
                    bad |= has_no_end(values[i]);
                }
                only = __syncthreads_or(bad) ? begin : -1;
            }
#pragma unroll 1
            do {
                if (only >= 0) {
                    const int64_t seen = first_seen(p, positions[only]);
                    __syncthreads();
                    for (int i = threadIdx.x; i < PIECE * CHUNKS; i += THREADS) {
                        const int row = i / CHUNKS, chunk = i % CHUNKS;
                        const int64_t at = base + row;
                        const bool is_there = at >= seen && at <= positions[only];
                        values[place<CHUNKS>(row, chunk)] =
                            is_there ? *(const uint4 *)((const uint16_t *)p.cache + row_offset(p, blocks, at) +
                                                        p.value_at + kv_head * DIM + chunk * 8)
                                     : make_uint4(0, 0, 0, 0);
                    }
                    __syncthreads();
                }
                add_values(only);
            } while (only >= 0 && ++only < end);
            __syncthreads(); /* before this stage is overwritten */
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (is_mine[e]) {
                float *to_row = p.out + ((t0 + token[e]) * p.num_heads + head[e]) * DIM;
                const float part_of_all = __frcp_rn(sum[e]);
#pragma unroll
                for (int n = 0; n < TILES; n++) {
                    *(float2 *)(to_row + n * 8 + 2 * q) =
                        make_float2(__fmul_rn(value[n][2 * e], part_of_all),
                                    __fmul_rn(value[n][2 * e + 1], part_of_all));
                }
            }
        }
    }
}

template <int DIM> int launch_decode(const mf_cuda_attention &p, cudaStream_t stream)
{
    constexpr int BYTES = 2 * PIECE * DIM * 2;
    const int group = p.num_heads / p.num_kv_heads;
    const dim3 grid((unsigned)p.num_tokens, (unsigned)(p.num_kv_heads * ((group + 15) / 16)), (unsigned)p.num_splits);
    const cudaError_t error =
        cudaFuncSetAttribute(decode_kernel<DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error != cudaSuccess) {
        return (int)error;
    }
    want_all_shared(decode_kernel<DIM>);
    return launch_early(decode_kernel<DIM>, grid, 32u * DECODE_WARPS, (size_t)BYTES, stream, p);
}

template <int DIM> int launch_prefill(const mf_cuda_attention &p, cudaStream_t stream)
{
    constexpr int BYTES = 2 * 2 * PIECE * DIM * 2;
    const int each = PREFILL_ROWS / (p.num_heads / p.num_kv_heads);
    const dim3 grid((unsigned)((p.num_tokens + each - 1) / each), (unsigned)p.num_kv_heads);
    const cudaError_t error =
        cudaFuncSetAttribute(prefill_kernel<DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error != cudaSuccess) {
        return (int)error;
    }
    return launch_early(prefill_kernel<DIM>, grid, 32u * PREFILL_WARPS, (size_t)BYTES, stream, p);
}

} // namespace

int mf_cuda_launch_attention_merge_pieces(const mf_cuda_attention *call, void *stream)
{
    want_all_shared(merge_kernel);
    return launch_early(merge_kernel,
                        dim3((unsigned)call->num_tokens, (unsigned)call->num_heads,
                             (unsigned)((call->v_dim + MERGE_THREADS - 1) / MERGE_THREADS)),
                        MERGE_THREADS, (size_t)0, stream, *call);
}

int mf_cuda_launch_attention_decode(const mf_cuda_attention *call, void *stream)
{
    mf_cuda_attention p = *call;
    p.scale = (float)((double)p.scale * 1.4426950408889634); /* scores in units of log2 */
    const int code =
        p.head_dim == 64 ? launch_decode<64>(p, (cudaStream_t)stream) : launch_decode<128>(p, (cudaStream_t)stream);
    return code != 0 ? code : mf_cuda_launch_attention_merge_pieces(&p, stream);
}

int mf_cuda_launch_attention_prefill(const mf_cuda_attention *call, void *stream)
{
    mf_cuda_attention p = *call;
    p.scale = (float)((double)p.scale * 1.4426950408889634);
    return p.head_dim == 64 ? launch_prefill<64>(p, (cudaStream_t)stream)
                            : launch_prefill<128>(p, (cudaStream_t)stream);
}
