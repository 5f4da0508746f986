/* attention_mma.cuh - attention through the tensor cores, what grouped queries and MLA share.
 *
 * Positions are cut into pieces of 64.  A piece's scores are bf16 products with f32 sums (queries times the scale, in
 * units of log2, rounded to bf16), its weights exp2 of what they lie below the piece's maximum, rounded to bf16 for the
 * values' product and summed unrounded.  Pieces are merged in ascending order, in registers or by a kernel of its own,
 * so a row's bits depend on its position, window and chunk alone.
 *
 * Rows of a piece lie in shared memory with their chunks swapped so that ldmatrix meets no bank twice. */
#ifndef MF_KERNELS_CUDA_ATTENTION_MMA_CUH
#define MF_KERNELS_CUDA_ATTENTION_MMA_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/product.cuh"

constexpr int PIECE = MF_CUDA_PIECE;
constexpr float LOG2_E = 0x1.715476p+0f;

/* Place of a 16-byte chunk of a row of CHUNKS (a multiple of 8). */
template <int CHUNKS> MF_DEV int place(int row, int chunk)
{
    return row * CHUNKS + (chunk ^ (((row & 1) << 2) | ((row >> 1) & 3)));
}

/* A pair of a query's columns as the scores' products take it. */
MF_DEV uint32_t pack_query(float low, float high, float scale)
{
    return pack_bf16(__fmul_rn(low, scale), __fmul_rn(high, scale));
}

/* Eight columns of a row on 16 bytes. */
MF_DEV uint4 pack_chunk(const float *x, float scale)
{
    const float4 a = *(const float4 *)x, b = *(const float4 *)(x + 4);
    return make_uint4(pack_query(a.x, a.y, scale), pack_query(a.z, a.w, scale), pack_query(b.x, b.y, scale),
                      pack_query(b.z, b.w, scale));
}

/* The maximum that weights are counted from when `next` joins.  It stays while no weight exceeds 2^SLACK: what is
 * summed so far seldom has to be scaled. */
constexpr float SLACK = 8.0f;
MF_DEV float next_maximum2(float m, float next)
{
    return next > __fadd_rn(m, SLACK) || is_nan(m) ? next : m;
}

/* Factors in units of log2, as merge_factors. */
MF_DEV void merge_factors2(float &m, float next, float &of_old, float &of_next)
{
    const float most = next_maximum2(m, next);
    of_old = m == minus_infinity() ? 0.0f : exp2_fast(__fsub_rn(m, most));
    of_next = next == minus_infinity() ? 0.0f : exp2_fast(__fsub_rn(next, most));
    m = most;
}

MF_DEV float start_maximum2(const mf_cuda_attention &p, int head)
{
    return p.sinks ? __fmul_rn(p.sinks[head], LOG2_E) : minus_infinity();
}

/* What one thread holds of 16 rows by 64 positions: rows g and g + 8, columns 2q and 2q + 1 of each eight. */
struct scores {
    float v[8][4];
};

/* Weights of the scores in place; the piece's maxima of rows g and g + 8, and what this thread's weights sum to. */
MF_DEV void weigh_own(scores &s, float (&most)[2], float (&sum)[2])
{
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float m = fmaxf(s.v[0][2 * e], s.v[0][2 * e + 1]), other = fmaxf(s.v[1][2 * e], s.v[1][2 * e + 1]);
#pragma unroll
        for (int n = 2; n < 8; n += 2) {
            m = fmaxf(m, fmaxf(s.v[n][2 * e], s.v[n][2 * e + 1]));
            other = fmaxf(other, fmaxf(s.v[n + 1][2 * e], s.v[n + 1][2 * e + 1]));
        }
        m = fmaxf(m, other);
        m = fmaxf(m, __shfl_xor_sync(MF_FULL_WARP, m, 1));
        most[e] = fmaxf(m, __shfl_xor_sync(MF_FULL_WARP, m, 2));
    }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const float below = most[e] == minus_infinity() ? 0.0f : most[e]; /* where nothing is seen, every weight is 0 */
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float &v = s.v[n][2 * e + k];
                v = exp2_fast(__fsub_rn(v, below)); /* of the largest exactly 1 */
                total = n + k == 0 ? v : __fadd_rn(total, v);
            }
        }
        sum[e] = total;
    }
}

/* A row's four threads' sums together. */
MF_DEV void sum_threads(float (&sum)[2])
{
#pragma unroll
    for (int e = 0; e < 2; e++) {
        sum[e] = __fadd_rn(sum[e], __shfl_xor_sync(MF_FULL_WARP, sum[e], 1));
        sum[e] = __fadd_rn(sum[e], __shfl_xor_sync(MF_FULL_WARP, sum[e], 2));
    }
}

MF_DEV void weigh(scores &s, float (&most)[2], float (&sum)[2])
{
    weigh_own(s, most, sum);
    sum_threads(sum);
}

/* Weights rounded, as operands of four steps over positions. */
MF_DEV void pack_weights(uint32_t (&packed)[4][4], const scores &s)
{
#pragma unroll
    for (int step = 0; step < 4; step++) {
        packed[step][0] = pack_bf16(s.v[2 * step][0], s.v[2 * step][1]);
        packed[step][1] = pack_bf16(s.v[2 * step][2], s.v[2 * step][3]);
        packed[step][2] = pack_bf16(s.v[2 * step + 1][0], s.v[2 * step + 1][1]);
        packed[step][3] = pack_bf16(s.v[2 * step + 1][2], s.v[2 * step + 1][3]);
    }
}

/* out[TILES][4] of columns [8 * (chunk0 + n), ..) of the values: weights [16, 64] times rows [64] of CHUNKS chunks. */
template <int CHUNKS, int TILES>
MF_DEV void weigh_values(float (&out)[TILES][4], const uint32_t (&packed)[4][4], const uint4 *rows, int chunk0,
                         int lane)
{
    static_assert(TILES % 2 == 0, "ldmatrix brings two tiles of columns");
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < 4; step++) {
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {
            uint32_t b[4];
            const int row = step * 16 + (lane & 15), chunk = chunk0 + n + (lane >> 4);
            load_transposed(b, rows + place<CHUNKS>(row, chunk));
            mma_bf16(out[n], packed[step][0], packed[step][1], packed[step][2], packed[step][3], b[0], b[1]);
            mma_bf16(out[n + 1], packed[step][0], packed[step][1], packed[step][2], packed[step][3], b[2], b[3]);
        }
    }
}

/* Minus infinity where a row does not see a position; seen: [first, last] of rows g and g + 8. */
template <typename I> MF_DEV void mask(scores &s, I base, int q, const I (&first)[2], const I (&last)[2])
{
    int low[2], high[2]; /* seen positions of the piece, less this thread's first column */
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const I from = first[e] - base, to = last[e] - base;
        low[e] = (from < 0 ? 0 : from > PIECE ? PIECE : (int)from) - 2 * q;
        high[e] = (to < 0 ? -1 : to >= PIECE ? 2 * PIECE : (int)to) - 2 * q;
    }
    const bool sees_all = low[0] <= 0 && low[1] <= 0 && high[0] >= PIECE && high[1] >= PIECE;
    if (__all_sync(MF_FULL_WARP, sees_all)) {
        return;
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int at = n * 8 + (k & 1);
            s.v[n][k] = at >= low[k >> 1] && at <= high[k >> 1] ? s.v[n][k] : minus_infinity();
        }
    }
}

/* Whether a chunk holds an infinity or a NaN. */
MF_DEV bool has_no_end(const uint4 &v)
{
    const uint32_t w[4] = { v.x, v.y, v.z, v.w };
    bool bad = false;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bad |= (w[i] & 0x7f80u) == 0x7f80u || (w[i] & 0x7f800000u) == 0x7f800000u;
    }
    return bad;
}

/* Where the rows of a piece lie, by 64 threads: -1 outside [first, last]. */
MF_DEV void find_rows(int32_t *row_of, const mf_cuda_attention &p, const int32_t *blocks, int64_t base, int64_t first,
                      int64_t last)
{
    if (threadIdx.x < PIECE) {
        const int64_t position = base + threadIdx.x;
        const uint32_t size = (uint32_t)p.block_size, at = (uint32_t)position;
        row_of[threadIdx.x] =
            position >= first && position <= last ? (int32_t)((uint32_t)blocks[at / size] * size + at % size) : -1;
    }
}

/* Whether no other row of the batch (of at most as many as the block has threads) is of row t's sequence: what lies
 * before its position was then cached by earlier steps, and the kernels in front do not touch it. */
MF_DEV bool is_alone(const mf_cuda_attention &p, int64_t t)
{
    const int other = threadIdx.x;
    return !__syncthreads_or(other < p.num_tokens && other != t && p.sequence[other] == p.sequence[t]);
}

#endif
