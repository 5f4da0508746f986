/* attention_row.cu - decode of one row with grouped queries in one launch: norms, rope and the cache's row, attention
 * in attention_mma.cuh's arithmetic, the merge of its pieces.
 *
 * Between two launches lie half a microsecond, loads, and code that is met cold while weights stream past.  So there is
 * one launch, of little code, and pieces pass between blocks as words that say of which launch they are: neither a
 * fence nor a counter stands in front of reading them.  Blocks that merge come behind those that have pieces, so that
 * no block waits for one that may not run. */
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/heads.cuh"

namespace
{

constexpr int HEADS = MF_CUDA_ROW_HEADS;
constexpr int WORKERS = 32 * HEADS;   /* a warp for each head's query, then its weights, then 16 columns of values */
constexpr int THREADS = WORKERS + 64; /* and one for the row's key and value each */
constexpr int SCORE_PITCH = PIECE + 8;
constexpr int WEIGHT_PITCH = PIECE / 2 + 4;
constexpr int UNROLLED = 4;      /* pieces that are merged at once; behind the last one come such without weight */
constexpr float SKIPPED = -1.0f; /* no factor: a piece without weight changes nothing, not even a sign */

/* Words of 16 bytes in the exchange that a piece has: the heads' maxima and sums, then two heads' values of a column.
 */
template <int DIM> constexpr int WORDS = HEADS + HEADS / 2 * DIM;

template <int DIM, bool USUAL> struct row_room {
    uint4 queries[HEADS * DIM / 8]; /* as keys and values lie */
    float scores[HEADS][SCORE_PITCH];
    uint32_t weights[HEADS][WEIGHT_PITCH]; /* pairs of positions */
    float2 factors[MF_CUDA_ROW_FACTORS];
    float maxima[HEADS];
    int32_t row_of[PIECE];
    float partners[USUAL ? 1 : HEADS + 1][DIM];
};

/* What a block merges of a piece: `count` columns, of pairs of heads, from `begin` on, and the `heads` of these pairs,
 * from head 2 * pair0 of the unit on. */
struct share {
    int begin, count, pair0, heads, width; /* width: float2 of a piece in shared memory */
};

template <int DIM> MF_DEV share share_of(int unit_heads, int sharers, int which)
{
    const int all = (unit_heads + 1) / 2 * DIM, each = (all + sharers - 1) / sharers;
    share s;
    s.begin = which * each;
    s.count = max(min(all - s.begin, each), 0);
    s.pair0 = s.begin / DIM;
    s.heads = s.count > 0 ? ((s.begin + s.count - 1) / DIM - s.pair0 + 1) * 2 : 0;
    s.width = (s.heads + s.count + 1) & ~1;
    return s;
}

/* The number of this launch: until all that merge have counted themselves it is the same for everybody. */
MF_DEV uint32_t tag_of(const mf_cuda_row &p, int unit)
{
    return (uint32_t)(__ldcg(p.launches + unit) / MF_CUDA_ROW_MERGERS) | 0x80000000u; /* nobody has written 0 */
}

/* Of the smallest power of two that is not below n. */
MF_DEV int bits_of(int n)
{
    return n > 1 ? 32 - __clz(n - 1) : 0;
}

MF_DEV uint64_t tagged(float v, uint32_t tag)
{
    return (uint64_t)tag << 32 | __float_as_uint(v);
}

MF_DEV float untagged(uint64_t word)
{
    return __uint_as_float((uint32_t)word);
}

/* attention_mma.cuh's start_maximum2, also of heads that there are not. */
MF_DEV float sink_of(const mf_cuda_row &p, int head)
{
    return p.sinks ? __fmul_rn(p.sinks[min(head, p.num_kv_heads * p.group - 1)], LOG2_E) : minus_infinity();
}

/* mf_gqa_first of ops.h */
MF_DEV int first_of(const mf_cuda_row &p, int position)
{
    const int by_window = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
    const int by_chunk = p.chunk > 0 ? (int)((uint32_t)position / (uint32_t)p.chunk * (uint32_t)p.chunk) : 0;
    return max(by_window, by_chunk);
}

/* make_head where the norm comes first and the whole head turns, its first half with its second: both are this lane's.
 */
template <int KEPT>
MF_DEV void make_usual_head(float (&v)[KEPT], const mf_cuda_row &p, const float *norm, const head_maker<KEPT> &maker)
{
    if (norm) {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            sum = __fmaf_rn(v[k], v[k], sum);
        }
        /* norm_scale: a product with a power of two is the quotient, and a reciprocal is rounded as one's quotient is.
         */
        const float scale = __frcp_rn(__fsqrt_rn(__fadd_rn(__fmul_rn(sum_of(sum), 1.0f / (KEPT * 32)), p.eps)));
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            v[k] = __fmul_rn(__fmul_rn(v[k], scale), maker.weight[k]);
        }
    }
#pragma unroll
    for (int k = 0; k < KEPT / 2; k++) {
        const float2 turned = rotated(v[k], v[k + KEPT / 2], maker.angle[k]);
        v[k] = turned.x;
        v[k + KEPT / 2] = turned.y;
    }
}

/* Keys and values of the piece from `base` on, without `own_row`, which no cache holds yet. */
template <int DIM>
MF_DEV void ask_for_rows(uint4 *keys, uint4 *values, int32_t *row_of, const mf_cuda_row &p, const int32_t *blocks,
                         const uint16_t *cached, int base, int first, int position, int own_row)
{
    constexpr int CHUNKS = DIM / 8;
    const int tid = threadIdx.x, at = base + tid, chunk = tid % CHUNKS;
    if (tid < PIECE) {
        row_of[tid] = at >= first && at <= position
                          ? (blocks[at >> p.block_bits] << p.block_bits) + (at & ((1 << p.block_bits) - 1))
                          : -1;
    }
    __syncthreads();
    if (tid < WORKERS) {
#pragma unroll 1
        for (int row = tid / CHUNKS; row < PIECE; row += WORKERS / CHUNKS) {
            const int from = row_of[row], to = place<CHUNKS>(row, chunk);
            const uint16_t *key = cached + (int64_t)max(from, 0) * p.row_size + chunk * 8;
            if (row != own_row) {
                copy_async(keys + to, key, from >= 0);
                copy_async(values + to, key + p.value_at, from >= 0);
            }
        }
    }
    copy_commit();
}

/* Scores of 16 positions and all heads, from the piece's row `row0` on. */
template <int DIM>
MF_DEV void score_rows(float (*scores)[SCORE_PITCH], const uint4 *keys, const uint4 *queries, int row0, int base,
                       int first, int position, int lane)
{
    constexpr int CHUNKS = DIM / 8;
    float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll
    for (int s = 0; s < DIM / 16; s += 2) {
        uint32_t a[2][4], b[4];
        load_tiles(b, queries + place<CHUNKS>(lane & 7, s * 2 + (lane >> 3)));
        load_tiles(a[0], keys + place<CHUNKS>(row0 + (lane & 15), s * 2 + (lane >> 4)));
        load_tiles(a[1], keys + place<CHUNKS>(row0 + (lane & 15), s * 2 + 2 + (lane >> 4)));
        mma_bf16(acc, a[0][0], a[0][1], a[0][2], a[0][3], b[0], b[1]);
        mma_bf16(acc, a[1][0], a[1][1], a[1][2], a[1][3], b[2], b[3]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int row = row0 + (lane >> 2) + e / 2 * 8, at = base + row;
        scores[2 * (lane & 3) + e % 2][row] = at >= first && at <= position ? acc[e] : minus_infinity();
    }
}

/* A head's weights in place of its scores, and rounded; its maximum.  attention_mma.cuh's weigh, a warp a head. */
MF_DEV float weigh_head(float *scores, uint32_t *weights, int lane)
{
    const float2 s = *(const float2 *)(scores + 2 * lane);
    float most = fmaxf(s.x, s.y);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        most = fmaxf(most, __shfl_xor_sync(MF_FULL_WARP, most, step));
    }
    const float below = most == minus_infinity() ? 0.0f : most;
    const float2 w = make_float2(exp2_fast(__fsub_rn(s.x, below)), exp2_fast(__fsub_rn(s.y, below)));
    *(float2 *)(scores + 2 * lane) = w;
    weights[lane] = pack_bf16(w.x, w.y);
    return most;
}

/* Sums of the heads' weights, each head's four lanes the columns and the order that attention_mma.cuh's weigh gives
 * them. */
MF_DEV float sum_weights(const float (*scores)[SCORE_PITCH], int lane)
{
    const float2 *row = (const float2 *)&scores[lane >> 2][2 * (lane & 3)];
    float sum = __fadd_rn(row[0].x, row[0].y);
#pragma unroll
    for (int n = 1; n < 8; n++) {
        sum = __fadd_rn(sum, row[n * 4].x);
        sum = __fadd_rn(sum, row[n * 4].y);
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(MF_FULL_WARP, sum, 1));
    return __fadd_rn(sum, __shfl_xor_sync(MF_FULL_WARP, sum, 2));
}

/* The block's share of all pieces to shared memory, when they have come. */
template <int DIM> MF_DEV void gather(float2 *staged, const uint64_t *words, const share &s, int pieces, uint32_t tag)
{
    const int bits = bits_of(s.width), total = s.count > 0 ? pieces << bits : 0, in_piece = (1 << bits) - 1;
#pragma unroll 1
    for (int i0 = threadIdx.x; i0 < total; i0 += 2 * THREADS) {
        uint64_t word[2][2];
        bool is_there;
        do {
            is_there = true;
#pragma unroll
            for (int u = 0; u < 2; u++) {
                const int i = min(i0 + u * THREADS, total - 1), c = min(i & in_piece, s.heads + s.count - 1);
                load_16_relaxed(words + 2 * ((i >> bits) * WORDS<DIM> +
                                             (c < s.heads ? 2 * s.pair0 + c : HEADS + s.begin + c - s.heads)),
                                word[u][0], word[u][1]);
            }
#pragma unroll
            for (int u = 0; u < 2; u++) {
                is_there = is_there && word[u][0] >> 32 == tag && word[u][1] >> 32 == tag;
            }
        } while (!is_there);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const int i = i0 + u * THREADS, c = i & in_piece;
            if (i < total && c < s.width) {
                staged[(i >> bits) * s.width + c] = make_float2(untagged(word[u][0]), untagged(word[u][1]));
            }
        }
    }
}

/* Factors of pieces in ascending order, as merge_factors2 makes them one after the other.  Mostly no later piece's
 * maximum lies so far above the first one's that weights are counted from it: then no piece waits for another. */
MF_DEV void find_factors(float2 *factors, const float2 *staged, const mf_cuda_row &p, const share &s, int head0,
                         int pieces, int padded)
{
    const int bits = bits_of(s.heads);
    bool moves = false;
#pragma unroll 1
    for (int i = threadIdx.x; i < padded << bits; i += THREADS) {
        const int of = i >> bits, h = i & ((1 << bits) - 1);
        if (h < s.heads) {
            const float2 e0 = staged[h], e = staged[of * s.width + h]; /* maximum, sum */
            const float start = sink_of(p, head0 + h), m0 = next_maximum2(start, e0.x);
            float m = of == 0 ? start : m0, old = SKIPPED, next = 0.0f;
            if (of < pieces && e.y != 0.0f) {
                merge_factors2(m, e.x, old, next);
                moves = moves || is_nan(m0) || e0.y == 0.0f || (of > 0 && next_maximum2(m0, e.x) != m0);
            }
            factors[of * s.heads + h] = make_float2(old, next);
        }
    }
    if (!__syncthreads_or(moves)) {
        return;
    }
    if ((int)threadIdx.x < s.heads) {
        float m = sink_of(p, head0 + threadIdx.x);
#pragma unroll 1
        for (int k = 0; k < pieces; k++) {
            const float2 e = staged[k * s.width + threadIdx.x];
            if (e.y != 0.0f) {
                float old, next;
                merge_factors2(m, e.x, old, next);
                factors[k * s.heads + threadIdx.x] = make_float2(old, next);
            }
        }
    }
    __syncthreads();
}

/* A thread merges a column of a head. */
template <int DIM>
MF_DEV void merge(const mf_cuda_row &p, const float2 *staged, const float2 *factors, const share &s, int head0,
                  int end_head, int padded)
{
#pragma unroll 1
    for (int j = threadIdx.x; j < 2 * s.count; j += THREADS) {
        const int c = j / 2, e = j % 2, h = ((s.begin + c) / DIM - s.pair0) * 2 + e, head = head0 + h;
        float sum = p.sinks ? 1.0f : 0.0f, value = 0.0f;
#pragma unroll 1
        for (int k0 = 0; k0 < padded; k0 += UNROLLED) {
#pragma unroll
            for (int k = k0; k < k0 + UNROLLED; k++) {
                const float2 f = factors[k * s.heads + h];
                const float all = staged[k * s.width + h].y,
                            own = ((const float *)staged)[2 * (k * s.width + s.heads + c) + e];
                sum = f.x != SKIPPED ? merged(sum, f.x, all, f.y) : sum;
                value = f.x != SKIPPED ? merged(value, f.x, own, f.y) : value;
            }
        }
        if (head < end_head) {
            const float v = __fmul_rn(value, __frcp_rn(sum));
            const int64_t to = (int64_t)head * DIM + (s.begin + c) % DIM;
            if (p.rounded) {
                p.rounded[to] = (uint16_t)pack_bf16(v, 0.0f);
            } else {
                p.out[to] = v;
            }
        }
    }
}

/* A block's share of a unit's columns. */
template <int DIM>
MF_DEV void merge_unit(const mf_cuda_row &p, float2 *staged, float2 *factors, int unit, int which, int head0,
                       int end_head, int pieces)
{
    const share mine = share_of<DIM>(min(end_head - head0, HEADS), p.mergers, which);
    const uint64_t *words = p.words + unit * (int64_t)(2 * MF_CUDA_ROW_WORDS);
    const int first_head = head0 + 2 * mine.pair0, padded = (pieces + UNROLLED - 1) / UNROLLED * UNROLLED;
    wait_for_previous();
    gather<DIM>(staged, words, mine, pieces, tag_of(p, unit));
    __syncthreads();
    find_factors(factors, staged, p, mine, first_head, pieces, padded);
    merge<DIM>(p, staged, factors, mine, first_head, end_head, padded);
    if (threadIdx.x == 0) {
        add_8_relaxed(p.launches + unit, (uint64_t)(MF_CUDA_ROW_MERGERS / p.mergers));
    }
}

/* A block takes up to HEADS heads of a kv head, a unit, and of the pieces every splits-th, or a share of the merge. Who
 * has the row's own piece makes its key and value, which only it reads here.  Heads that there are not are computed,
 * too, of whatever lies there.  USUAL: the norm first, and the whole head turns in halves. */
template <int DIM, bool USUAL>
__global__ void __launch_bounds__(THREADS, 2) row_kernel(const __grid_constant__ mf_cuda_row p)
{
    constexpr int CHUNKS = DIM / 8, KEPT = DIM / 32;
    extern __shared__ __align__(128) uint4 shared[]; /* keys and values; then what is merged */
    __shared__ __align__(128) row_room<DIM, USUAL> room;
    let_next_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, unit = blockIdx.x + gridDim.x * blockIdx.z;
    const int kv_head = blockIdx.x, head0 = kv_head * p.group + blockIdx.z * HEADS, end_head = (kv_head + 1) * p.group;
    const int position = p.position[0], first = first_of(p, position);
    const int first_piece = first / PIECE, own_piece = position / PIECE, pieces = own_piece - first_piece + 1,
              start = first_piece + blockIdx.y;
    if ((int)blockIdx.y >= p.splits) {
        merge_unit<DIM>(p, (float2 *)shared, room.factors, unit, blockIdx.y - p.splits, head0, end_head, pieces);
        return;
    }
    if (start > own_piece) {
        return;
    }
    const int32_t *blocks = p.block_table + (int64_t)p.sequence[0] * p.max_blocks;
    uint4 *keys = shared, *values = keys + PIECE * CHUNKS;
    uint16_t *cached = p.cache + kv_head * DIM;
    uint64_t *words = p.words + unit * (int64_t)(2 * MF_CUDA_ROW_WORDS);

    const bool is_query = warp < HEADS, has_columns = warp < DIM / 16;
    const bool is_value = warp > HEADS;
    const float *raw = is_query ? p.q + min(head0 + warp, p.num_kv_heads * p.group - 1) * DIM
                                : p.rows + (kv_head + (is_value ? p.num_kv_heads : 0)) * DIM;
    const float *norm = is_value ? NULL : is_query ? p.q_norm : p.k_norm;
    head_maker<KEPT> maker;
    if (USUAL || p.rope_dim > 0) {
        const int dim = USUAL ? DIM : p.rope_dim;
        load_angles(maker.angle, dim, USUAL ? 0 : p.rope_pair, p.cos_sin + (int64_t)position * dim, lane);
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        maker.weight[k] = norm ? norm[k * 32 + lane] : 0.0f;
    }
    uint32_t tag = 0;
#pragma unroll 1
    for (int piece = start; piece <= own_piece; piece += p.splits) {
        const int base = piece * PIECE, own_row = piece == own_piece ? position % PIECE : -1;
        /* Earlier steps have cached them: no need to wait. */
        ask_for_rows<DIM>(keys, values, room.row_of, p, blocks, cached, base, first, position, own_row);
        if (piece == start) {
            wait_for_previous();
            tag = tag_of(p, unit);
        }
        if (is_query ? piece == start : own_row >= 0) {
            float v[KEPT];
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                v[k] = __ldcg(raw + k * 32 + lane);
            }
            if (USUAL && !is_value) {
                make_usual_head(v, p, norm, maker);
            } else if (!is_value) {
                make_head(v, p, norm, maker, room.partners[USUAL ? 0 : warp], lane);
            }
            const int row = is_query ? warp : own_row, at = is_query ? 0 : room.row_of[own_row];
            uint4 *rows = is_query ? room.queries : is_value ? values : keys;
            uint16_t *to = (uint16_t *)rows,
                     *own = cached + (int64_t)at * p.row_size + (is_value ? p.value_at : 0) + lane;
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                const uint16_t rounded = (uint16_t)pack_bf16(is_query ? __fmul_rn(v[k], p.scale) : v[k], 0.0f);
                to[place<CHUNKS>(row, k * 4 + lane / 8) * 8 + lane % 8] = rounded;
                if (!is_query && blockIdx.z == 0) {
                    own[k * 32] = rounded;
                }
            }
        }
        copy_wait<0>();
        __syncthreads();
        if (warp < PIECE / 16) {
            score_rows<DIM>(room.scores, keys, room.queries, warp * 16, base, first, position, lane);
        }
        __syncthreads();
        uint32_t columns[4][4];
        if (is_query) {
            const float most = weigh_head(room.scores[warp], room.weights[warp], lane);
            room.maxima[warp] = most;
            if (has_columns) {
#pragma unroll
                for (int step = 0; step < 4; step++) {
                    load_transposed(columns[step], values + place<CHUNKS>(step * 16 + (lane >> 4) * 8 + (lane & 7),
                                                                          warp * 2 + ((lane >> 3) & 1)));
                }
            }
        }
        __syncthreads();
        uint64_t *to = words + (piece - first_piece) * (2 * WORDS<DIM>);
        if (has_columns) {
            float out[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll
            for (int step = 0; step < 4; step += 2) {
                const uint32_t *low = columns[step], *high = columns[step + 1];
                uint32_t b[4];
                load_tiles(b, &room.weights[lane & 7][step * 8 + (lane >> 3) * 4]);
                mma_bf16(out, low[0], low[1], low[2], low[3], b[0], b[1]);
                mma_bf16(out, high[0], high[1], high[2], high[3], b[2], b[3]);
            }
            to += 2 * (HEADS + (lane & 3) * DIM + warp * 16 + (lane >> 2));
            store_16_relaxed(to, tagged(out[0], tag), tagged(out[1], tag));
            store_16_relaxed(to + 16, tagged(out[2], tag), tagged(out[3], tag));
        } else if (warp == HEADS) {
            const float sum = sum_weights(room.scores, lane);
            if (lane % 4 == 0) {
                store_16_relaxed(to + lane / 2, tagged(room.maxima[lane / 4], tag), tagged(sum, tag));
            }
        }
        __syncthreads(); /* keys and values have been read */
    }
}

template <int DIM, bool USUAL> int launch_of(const mf_cuda_row &p, cudaStream_t stream)
{
    constexpr int BYTES = 2 * PIECE * DIM * 2;
    static_assert(BYTES + sizeof(row_room<DIM, USUAL>) <= MF_CUDA_ROW_SHARED, "the plan counts blocks that find room");
    static_assert(WORDS<DIM> * MF_CUDA_ROW_PIECES <= MF_CUDA_ROW_WORDS, "pieces have room in a unit's exchange");
    const dim3 grid((unsigned)p.num_kv_heads, (unsigned)(p.splits + p.mergers),
                    (unsigned)((p.group + HEADS - 1) / HEADS));
    const cudaError_t error =
        cudaFuncSetAttribute(row_kernel<DIM, USUAL>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error != cudaSuccess) {
        return (int)error;
    }
    want_all_shared(row_kernel<DIM, USUAL>);
    return launch_early(row_kernel<DIM, USUAL>, grid, THREADS, (size_t)BYTES, stream, p);
}

template <int DIM> int launch(const mf_cuda_row &p, cudaStream_t stream)
{
    return p.rope_dim == DIM && !p.rope_pair && !p.norm_after_rope ? launch_of<DIM, true>(p, stream)
                                                                   : launch_of<DIM, false>(p, stream);
}

} // namespace

int mf_cuda_launch_attention_row(const mf_cuda_row *call, void *stream)
{
    mf_cuda_row p = *call;
    p.scale = (float)((double)p.scale * 1.4426950408889634); /* scores in units of log2 */
    return p.head_dim == 64 ? launch<64>(p, (cudaStream_t)stream) : launch<128>(p, (cudaStream_t)stream);
}
