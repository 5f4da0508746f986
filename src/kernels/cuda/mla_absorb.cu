/* mla_absorb.cu - MLA's way into the latent space and out of it through the tensor cores, around attention_mla.cu: bf16
 * rows of kv_b.
 *
 * In: queries count as two bf16 numbers each, 16 bits of them.  The j are cut into quarters, steps of 16 in each: high
 * parts, then low ones, into one sum; quarters are added in order.  Few rows and many share this, so a row's bits do
 * not depend on the batch.  Out, one row: its pieces are merged on the way to the product. */
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/heads.cuh"

namespace
{

constexpr int QUARTERS = 4, COLUMNS = 64;

/* A pair of a query's elements as what bf16 holds of them and of the rest. */
MF_DEV void split_pair(float2 v, uint32_t &high, uint32_t &low)
{
    high = pack_bf16(v.x, v.y);
    low = pack_bf16(__fsub_rn(v.x, __uint_as_float(high << 16)), __fsub_rn(v.y, __uint_as_float(high & 0xffff0000u)));
}

MF_DEV void store_pair(const mf_cuda_absorb &p, int64_t at, float low, float high)
{
    *(uint32_t *)(p.rounded + at) = pack_query(low, high, p.scale);
}

/* ---- few rows ---- */

constexpr int FEW_TOKENS = 8;

/* A token's tail of one head, by a warp: rotated, where it is not yet. */
struct query_tail {
    int64_t t;
    float2 angle;
};

MF_DEV void find_tail(query_tail &tail, const mf_cuda_mla_prepare &r, int64_t t, int lane)
{
    tail.t = t;
    tail.angle = r.cos_sin ? *(const float2 *)(r.cos_sin + (int64_t)r.position[t] * MF_CUDA_MLA_TAIL + 2 * lane)
                           : make_float2(1.0f, 0.0f);
}

MF_DEV void store_tail(const query_tail &tail, const mf_cuda_absorb &p, const mf_cuda_mla_prepare &r, int head,
                       int lane)
{
    const float *from = p.q + tail.t * p.q_stride + head * p.q_head_stride + p.nope;
    uint16_t *to = p.rounded + (tail.t * p.num_heads + head) * (p.rank + p.tail) + p.rank;
    const int first = r.rope_pair ? 2 * lane : lane, second = r.rope_pair ? first + 1 : first + MF_CUDA_MLA_TAIL / 2;
    float2 v = make_float2(from[first], from[second]);
    v = r.cos_sin ? rotated(v.x, v.y, tail.angle) : v;
    const uint32_t both = pack_query(v.x, v.y, p.scale);
    to[first] = (uint16_t)both;
    to[second] = (uint16_t)(both >> 16);
}

/* A block takes a head, eight rows and 64 columns, a warp a quarter of the j.  Weights are the 16-row operand as they
 * come from memory: 16 bytes of a lane are eight columns, in four products.  Where there are tails, a block has that of
 * one of its rows, too.  r: cos_sin is NULL where rows are prepared already; else the blocks behind the last head make
 * the rows' latents. */
template <int STEPS>
__global__ void __launch_bounds__(32 * QUARTERS)
    few_kernel(const __grid_constant__ mf_cuda_absorb p, const __grid_constant__ mf_cuda_mla_prepare r)
{
    __shared__ float sums[QUARTERS][FEW_TOKENS][COLUMNS + 4];
    let_next_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, head = blockIdx.y;
    const int64_t t0 = (int64_t)blockIdx.x * FEW_TOKENS, t = t0 + g, own = t0 + blockIdx.z;
    if (head == p.num_heads) {
        if (warp == 0 && own < p.num_tokens) {
            cache_latent<true>(r, own, lane);
        }
        return;
    }
    const int j0 = warp * STEPS * 16;
    const bool has_tail = p.tail > 0 && warp == QUARTERS - 1 && own < p.num_tokens;
    query_tail tail;
    if (has_tail) {
        find_tail(tail, r, own, lane);
    }
    const uint16_t *from = (const uint16_t *)p.kv_b.data +
                           ((int64_t)head * (p.nope + p.v_dim) + j0 + 2 * q) * p.kv_b.row_stride +
                           blockIdx.z * COLUMNS + 8 * g;
    uint4 rows[STEPS][4];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            rows[s][i] = load_stream(from + (s * 16 + i / 2 * 8 + i % 2) * p.kv_b.row_stride);
        }
    }
    wait_for_previous();
    const float *query = p.q + (t < p.num_tokens ? t : t0) * p.q_stride + head * p.q_head_stride + j0 + 2 * q;
    float acc[4][4] = {};
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        uint32_t high[2], low[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            split_pair(*(const float2 *)(query + s * 16 + i * 8), high[i], low[i]);
        }
#pragma unroll
        for (int w = 0; w < 4; w++) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[i] = __byte_perm(word_of(rows[s][i / 2 * 2], w), word_of(rows[s][i / 2 * 2 + 1], w),
                                   i % 2 ? 0x7632 : 0x5410);
            }
            mma_bf16(acc[w], a[0], a[1], a[2], a[3], high[0], high[1]);
            mma_bf16(acc[w], a[0], a[1], a[2], a[3], low[0], low[1]);
        }
    }
#pragma unroll
    for (int w = 0; w < 4; w++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            *(float2 *)&sums[warp][2 * q + i][8 * g + 2 * w] = make_float2(acc[w][i], acc[w][2 + i]);
        }
    }
    if (has_tail) {
        store_tail(tail, p, r, head, lane);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < FEW_TOKENS * COLUMNS / 2 / (32 * QUARTERS); i++) {
        const int at = i * 32 * QUARTERS + threadIdx.x, token = at / (COLUMNS / 2), column = at % (COLUMNS / 2) * 2;
        float2 v = *(const float2 *)&sums[0][token][column];
#pragma unroll
        for (int w = 1; w < QUARTERS; w++) {
            const float2 next = *(const float2 *)&sums[w][token][column];
            v = make_float2(__fadd_rn(v.x, next.x), __fadd_rn(v.y, next.y));
        }
        if (t0 + token < p.num_tokens) {
            store_pair(p, ((t0 + token) * p.num_heads + head) * (p.rank + p.tail) + blockIdx.z * COLUMNS + column, v.x,
                       v.y);
        }
    }
}

/* ---- many rows ---- */

constexpr int WARPS = 8, MANY_TOKENS = 16 * WARPS;

/* A block takes a head and 128 rows, which are the 16-row operand: a warp's 16 stay in registers while columns of
 * weights pass, 64 at a time. */
template <int STEPS> __global__ void __launch_bounds__(32 * WARPS) many_kernel(const __grid_constant__ mf_cuda_absorb p)
{
    constexpr int NOPE = STEPS * 16 * QUARTERS, CHUNKS = COLUMNS / 8;
    extern __shared__ __align__(128) uint4 weights[]; /* 2 x [NOPE][CHUNKS] */
    begin_early();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, head = blockIdx.y;
    const int64_t t0 = (int64_t)blockIdx.x * MANY_TOKENS + warp * 16;
    const uint16_t *from = (const uint16_t *)p.kv_b.data + (int64_t)head * (p.nope + p.v_dim) * p.kv_b.row_stride;
    auto copy = [&](int c) {
        uint4 *to = weights + c % 2 * NOPE * CHUNKS;
#pragma unroll
        for (int i = 0; i < NOPE * CHUNKS / (32 * WARPS); i++) {
            const int at = i * 32 * WARPS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
            copy_async(to + place<CHUNKS>(row, chunk), from + row * p.kv_b.row_stride + c * COLUMNS + chunk * 8, true);
        }
        copy_commit();
    };
    copy(0);
    uint32_t high[STEPS * QUARTERS][4], low[STEPS * QUARTERS][4];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int64_t t = t0 + g + 8 * e;
        const float *query = p.q + (t < p.num_tokens ? t : 0) * p.q_stride + head * p.q_head_stride + 2 * q;
#pragma unroll
        for (int s = 0; s < STEPS * QUARTERS; s++) {
            split_pair(*(const float2 *)(query + s * 16), high[s][e], low[s][e]);
            split_pair(*(const float2 *)(query + s * 16 + 8), high[s][2 + e], low[s][2 + e]);
        }
    }
    const int columns = p.rank / COLUMNS;
#pragma unroll 1
    for (int c = 0; c < columns; c++) {
        if (c + 1 < columns) {
            copy(c + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        const uint4 *rows = weights + c % 2 * NOPE * CHUNKS;
#pragma unroll 1
        for (int n = 0; n < CHUNKS; n += 2) {
            float total[2][4];
#pragma unroll
            for (int w = 0; w < QUARTERS; w++) {
                float acc[2][4] = {};
#pragma unroll
                for (int i = 0; i < STEPS; i++) {
                    const int s = w * STEPS + i;
                    uint32_t b[4];
                    load_transposed(b, rows + place<CHUNKS>(s * 16 + (lane & 15), n + (lane >> 4)));
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        mma_bf16(acc[k], high[s][0], high[s][1], high[s][2], high[s][3], b[2 * k], b[2 * k + 1]);
                        mma_bf16(acc[k], low[s][0], low[s][1], low[s][2], low[s][3], b[2 * k], b[2 * k + 1]);
                    }
                }
#pragma unroll
                for (int k = 0; k < 2; k++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        total[k][i] = w == 0 ? acc[k][i] : __fadd_rn(total[k][i], acc[k][i]);
                    }
                }
            }
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int64_t t = t0 + g + 8 * e;
                if (t < p.num_tokens) {
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        store_pair(p, (t * p.num_heads + head) * p.rank + c * COLUMNS + (n + k) * 8 + 2 * q,
                                   total[k][2 * e], total[k][2 * e + 1]);
                    }
                }
            }
        }
        __syncthreads(); /* before this half is overwritten */
    }
}

template <int STEPS> int launch(const mf_cuda_absorb &p, const mf_cuda_mla_prepare *prepare, void *stream)
{
    const unsigned tokens = (unsigned)p.num_tokens, heads = (unsigned)p.num_heads;
    if (p.num_tokens <= MF_CUDA_MLA_FEW) {
        static const mf_cuda_mla_prepare none = {};
        want_all_shared(few_kernel<STEPS>);
        return launch_early(
            few_kernel<STEPS>,
            dim3((tokens + FEW_TOKENS - 1) / FEW_TOKENS, heads + (prepare ? 1 : 0), (unsigned)(p.rank / COLUMNS)),
            32 * QUARTERS, (size_t)0, stream, p, prepare ? *prepare : none);
    }
    constexpr size_t BYTES = 2 * (size_t)STEPS * 16 * QUARTERS * COLUMNS * 2;
    return launch_shared(mf_cuda_starts_early != 0, many_kernel<STEPS>,
                         dim3((tokens + MANY_TOKENS - 1) / MANY_TOKENS, heads), 32 * WARPS, BYTES, stream, p);
}

/* ---- results of one token ---- */

constexpr int RUNS = 8, RANK = 512, PIECE_SIZE = RANK + 2, STEPS_OF_RUN = RANK / RUNS / 16, OUT_THREADS = 32 * RUNS;
constexpr int TILES = 2, OUT_ROWS = 16 * TILES; /* of a block */
constexpr int EARLY_PIECES = 12;                /* whose values are asked for beside the factors */

/* What a lane holds of the token's merged latent: two neighbouring columns. */
struct merging {
    float m, sum;
    float2 value;
};

/* Up to 32 more pieces, in attention_mma.cu's merge_kernel's arithmetic: a lane finds the factors of a piece, each then
 * adds its own columns. */
MF_DEV void merge_pieces(merging &s, const float *pieces, int column, int count, int lane)
{
    const float *values = pieces + 2 + column;
    const float2 nothing = make_float2(0.0f, 0.0f);
    const float2 head = lane < count ? __ldcg((const float2 *)(pieces + lane * PIECE_SIZE)) : nothing;
    float2 early[EARLY_PIECES];
#pragma unroll
    for (int i = 0; i < EARLY_PIECES; i++) {
        early[i] = i < count ? __ldcg((const float2 *)(values + i * PIECE_SIZE)) : nothing;
    }
    float m = s.m, old = 1.0f, next = 0.0f;
#pragma unroll 4
    for (int i = 0; i < count; i++) {
        const float most = __shfl_sync(MF_FULL_WARP, head.x, i), sum = __shfl_sync(MF_FULL_WARP, head.y, i);
        m = i < lane && sum != 0.0f ? next_maximum2(m, most) : m;
    }
    if (lane < count && head.y != 0.0f) {
        merge_factors2(m, head.x, old, next);
    }
    s.m = __shfl_sync(MF_FULL_WARP, m, count - 1);
    auto add = [&](int i, float2 v) {
        const float sum = __shfl_sync(MF_FULL_WARP, head.y, i), of_old = __shfl_sync(MF_FULL_WARP, old, i),
                    of_next = __shfl_sync(MF_FULL_WARP, next, i);
        const bool counts = sum != 0.0f; /* nothing does behind the last piece */
        s.sum = counts ? merged(s.sum, of_old, sum, of_next) : s.sum;
        s.value.x = counts ? merged(s.value.x, of_old, v.x, of_next) : s.value.x;
        s.value.y = counts ? merged(s.value.y, of_old, v.y, of_next) : s.value.y;
    };
#pragma unroll
    for (int i = 0; i < EARLY_PIECES; i++) {
        add(i, early[i]);
    }
#pragma unroll 4
    for (int i = EARLY_PIECES; i < count; i++) {
        add(i, __ldcg((const float2 *)(values + i * PIECE_SIZE)));
    }
}

/* Place of a chunk of 16 bytes in 16 rows of a warp's run of k, 64 columns. */
MF_DEV int value_place(int row, int chunk)
{
    return row * 8 + (chunk ^ (row & 7));
}

/* A block takes a head and 32 of its rows of W_UV; a warp a run of k, of which a lane merges two columns.  Runs and
 * their sums are those of linear.cu's products of 512 columns. */
__global__ void __launch_bounds__(OUT_THREADS)
    values_kernel(const __grid_constant__ mf_cuda_attention p, const __grid_constant__ mf_cuda_mla_values v)
{
    __shared__ uint4 rows[RUNS][TILES][16 * 8];
    __shared__ float sums[RUNS][OUT_ROWS];
    let_next_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, head = blockIdx.y,
              row0 = blockIdx.x * OUT_ROWS;
    const uint16_t *from = (const uint16_t *)v.kv_b.data +
                           ((int64_t)head * (v.nope + v.v_dim) + v.nope + row0) * v.kv_b.row_stride + warp * 64;
#pragma unroll
    for (int i = 0; i < OUT_ROWS / 4; i++) {
        const int row = i % 4 * 4 + (lane >> 3), chunk = lane & 7;
        copy_async(&rows[warp][i / 4][value_place(row, chunk)],
                   from + (i / 4 * 16 + row) * v.kv_b.row_stride + chunk * 8, true);
    }
    copy_commit();
    const int64_t position = p.position[0];
    const int start = (int)(first_seen(p, position) / PIECE), end = (int)(position / PIECE) + 1;
    wait_for_previous();
    merging s = { minus_infinity(), 0.0f, make_float2(0.0f, 0.0f) };
#pragma unroll 1
    for (int base = start; base < end; base += 32) {
        merge_pieces(s, piece_of(p, 0, head, base), warp * 64 + 2 * lane, min(end - base, 32), lane);
    }
    const float part_of_all = __frcp_rn(s.sum);
    const uint32_t both = pack_bf16(__fmul_rn(s.value.x, part_of_all), __fmul_rn(s.value.y, part_of_all));
    copy_wait<0>();
    __syncwarp();
    float acc[TILES][4] = {};
#pragma unroll
    for (int k = 0; k < STEPS_OF_RUN; k++) { /* the token is the operand's first column */
        const uint32_t low = __shfl_sync(MF_FULL_WARP, both, k * 8 + q),
                       high = __shfl_sync(MF_FULL_WARP, both, k * 8 + 4 + q);
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            uint32_t a[4];
            load_tiles(a, &rows[warp][i][value_place(lane & 15, k * 2 + (lane >> 4))]);
            mma_bf16(acc[i], a[0], a[1], a[2], a[3], g == 0 ? low : 0u, g == 0 ? high : 0u);
        }
    }
    if (q == 0) {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            sums[warp][i * 16 + g] = acc[i][0];
            sums[warp][i * 16 + 8 + g] = acc[i][2];
        }
    }
    __syncthreads();
    if (threadIdx.x < OUT_ROWS) {
        float sum = 0.0f;
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            sum = __fadd_rn(sum, sums[run][threadIdx.x]);
        }
        const int at = head * v.v_dim + row0 + threadIdx.x;
        if (v.rounded) {
            v.rounded[at] = f32_to_bf16(sum);
        } else {
            v.out[at] = sum;
        }
    }
}

} // namespace

int mf_cuda_launch_absorb_mma(const mf_cuda_absorb *call, const mf_cuda_mla_prepare *prepare, void *stream)
{
    switch (call->nope) {
    case 64:
        return launch<1>(*call, prepare, stream);
    case 128:
        return launch<2>(*call, prepare, stream);
    default:
        return launch<3>(*call, prepare, stream);
    }
}

int mf_cuda_launch_mla_values(const mf_cuda_attention *call, const mf_cuda_mla_values *values, void *stream)
{
    want_all_shared(values_kernel);
    return launch_early(values_kernel, dim3((unsigned)(values->v_dim / OUT_ROWS), (unsigned)call->num_heads),
                        OUT_THREADS, (size_t)0, stream, *call, *values);
}
