/* attention_wgmma.cu - prefill of grouped queries over a bf16 cache on Hopper, in attention_mma.cuh's arithmetic and
 * with its bits: wgmma sums as mma.sync does.
 *
 * A block takes 128 rows (heads of a kv head, of some tokens), 64 a warpgroup.  A third warpgroup gathers pieces of
 * keys and values; while a piece's values are summed the next one's scores are under way. */
#include <type_traits>

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace
{

constexpr int GATHERERS = 128, THREADS = GATHERERS + 256, ROWS = 128;
constexpr int LINE = 128, SUB = 64 * LINE; /* 64 columns of 64 rows */

/* sums (=, or += with `add`) 16 positions' weights in registers times their values, rows of which are positions. */
template <int DIM> struct value_products;
template <> struct value_products<128> {
    static __device__ __forceinline__ void add(float (&sums)[64], const uint32_t (&a)[4], uint64_t values, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MF_SUMS_128
                     "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
                     : MF_OPERANDS_128
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(values), "r"(add));
#endif
    }
};
template <> struct value_products<64> {
    static __device__ __forceinline__ void add(float (&sums)[32], const uint32_t (&a)[4], uint64_t values, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MF_SUMS_64
                     "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
                     : MF_OPERANDS_64
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(values), "r"(add));
#endif
    }
};

/* sums (=, or += with `add`) 16 columns of queries in registers times 64 positions' keys. */
MF_DEV void score_products(float (&sums)[32], const uint32_t (&a)[4], uint64_t keys, int add)
{
#if MF_HAS_WGMMA
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MF_SUMS_64
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
                 : MF_OPERANDS_64
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(keys), "r"(add));
#endif
}

/* Lines of 64 columns, rows of which are summed over: 8 rows on, and the next line. */
MF_DEV uint64_t value_operand(const void *shared)
{
    return (uint64_t)((shared_address(shared) & 0x3ffffu) >> 4) | (uint64_t)(SUB >> 4) << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

MF_DEV uint32_t swizzled(int row, int chunk)
{
    return (uint32_t)(row * LINE + ((chunk ^ (row & 7)) << 4));
}

template <int DIM> constexpr int PART = PIECE *DIM * 2; /* keys, or values, of a piece */
template <int DIM> constexpr int STAGES = DIM == 128 ? 5 : 6;
template <int DIM> constexpr int SHARED_BYTES = ROWS *DIM * 2 + STAGES<DIM> * 2 * PART<DIM>;

/* Tokens [begin, end) of a block that follow one another in a sequence. */
MF_DEV int run_end(const int32_t *sequences, const int32_t *positions, int begin, int tokens)
{
    int end = begin + 1;
    while (end < tokens && sequences[end] == sequences[begin] && positions[end] == positions[end - 1] + 1) {
        end++;
    }
    return end;
}

template <int STAGES> struct cursor {
    int stage;
    uint32_t parity;
    MF_DEV_MEMBER void next(cursor &c)
    {
        if (++c.stage == STAGES) {
            c.stage = 0;
            c.parity ^= 1;
        }
    }
};

/* A warp gathers 16 rows of each piece, whose places in the cache 16 of its lanes find, one piece ahead. */
template <int DIM>
MF_DEV void gather(const mf_cuda_attention &p, const int32_t *sequences, const int32_t *positions, int tokens,
                   uint8_t *stages, uint64_t *full, uint64_t *empty)
{
    constexpr int CHUNKS = DIM / 8, SIDE = 32 / CHUNKS, STEP = GATHERERS / CHUNKS, TURNS = PIECE / STEP;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, chunk = lane % CHUNKS,
              row0 = warp * SIDE + lane / CHUNKS;
    const int found_row = warp * SIDE + lane % 16 / SIDE * STEP + lane % SIDE;
    const uint16_t *cached = (const uint16_t *)p.cache + blockIdx.y * DIM + chunk * 8;
    const uint32_t at_row = chunk / 8 * SUB + swizzled(row0, chunk % 8), size = (uint32_t)p.block_size;
    const int row_size = (int)p.row_size;
    cursor<STAGES<DIM>> at = { 0, 1 };
    for (int begin = 0, end; begin < tokens; begin = end) {
        end = run_end(sequences, positions, begin, tokens);
        const int32_t *blocks = p.block_table + (int64_t)sequences[begin] * p.max_blocks;
        const int lowest = (int)first_seen(p, positions[begin]), highest = positions[end - 1], last = highest / PIECE;
        auto find = [&](int piece) { /* a row of the cache, -1: none */
                                     const int position = piece * PIECE + found_row;
                                     return position >= lowest && position <= highest
                                                ? (int)(blocks[(uint32_t)position / size] * size +
                                                        (uint32_t)position % size)
                                                : -1;
        };
        int found = find(lowest / PIECE);
        for (int piece = lowest / PIECE; piece <= last; piece++) {
            const int rows = found;
            if (piece < last) {
                found = find(piece + 1);
            }
            uint8_t *keys = stages + at.stage * 2 * PART<DIM> + at_row;
            barrier_wait(&empty[at.stage], at.parity);
#pragma unroll
            for (int i = 0; i < TURNS; i++) {
                const int row = __shfl_sync(MF_FULL_WARP, rows, i * SIDE + lane / CHUNKS);
                const uint16_t *from = cached + (int64_t)(row < 0 ? 0 : row) * row_size;
                copy_async(keys + i * STEP * LINE, from, row >= 0);
                copy_async(keys + PART<DIM> + i * STEP * LINE, from + p.value_at, row >= 0);
            }
            barrier_arrive_after_copies(&full[at.stage]);
            cursor<STAGES<DIM>>::next(at);
        }
    }
    copy_commit();
    copy_wait<0>();
}

/* One warp's 16 rows by columns [8n, 8n + 8) of a piece's values as token `only` sees them: elsewhere zeros. */
template <int DIM>
MF_DEV void weigh_seen(float (&out)[4], const uint32_t (&packed)[4][4], const uint8_t *values, int n, int from, int to)
{
    const int lane = threadIdx.x & 31, column = n * 8 + (lane >> 2), q = lane & 3;
    auto value = [&](int row) {
        const uint8_t *at = values + column / 64 * SUB + swizzled(row, column % 64 / 8) + column % 8 * 2;
        return row >= from && row <= to ? (uint32_t) * (const uint16_t *)at : 0u;
    };
    out[0] = out[1] = out[2] = out[3] = 0.0f;
#pragma unroll 1
    for (int step = 0; step < 4; step++) {
        const int row = step * 16 + 2 * q;
        uint32_t w[4]; /* selected, not indexed: registers */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = step == 0 ? packed[0][i] : step == 1 ? packed[1][i] : step == 2 ? packed[2][i] : packed[3][i];
        }
        mma_bf16(out, w[0], w[1], w[2], w[3], value(row) | value(row + 1) << 16, value(row + 8) | value(row + 9) << 16);
    }
}

/* A warp's 16 rows of queries from what the projection left: norm, rope, bf16. */
template <int DIM>
MF_DEV void make_queries(const mf_cuda_attention &p, const mf_cuda_gqa_prepare &r, const int32_t *positions, int64_t t0,
                         int tokens, int row0, uint8_t *queries, float *room)
{
    constexpr int KEPT = DIM / 32, AT_ONCE = 4;
    const int lane = threadIdx.x & 31, group = p.num_heads / p.num_kv_heads;
    float v[AT_ONCE][KEPT];
    head_maker<KEPT> maker[AT_ONCE];
#pragma unroll 1
    for (int i = 0; i < 16; i += AT_ONCE) {
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            const int row = row0 + i + n, token = row / group < tokens ? row / group : 0;
            const float *from =
                p.q + (t0 + token) * p.q_stride + (int64_t)(blockIdx.y * group + row % group) * p.q_head_stride;
            if (r.rope_dim > 0) {
                load_angles(maker[n].angle, r.rope_dim, r.rope_pair, r.cos_sin + (int64_t)positions[token] * r.rope_dim,
                            lane);
            }
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                v[n][k] = from[k * 32 + lane];
                maker[n].weight[k] = r.q_norm ? r.q_norm[k * 32 + lane] : 0.0f;
            }
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            const int row = row0 + i + n;
            make_head(v[n], r, r.q_norm, maker[n], room, lane);
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                const int e = k * 32 + lane;
                *(uint16_t *)(queries + e / 64 * SUB + swizzled(row % 64, e % 64 / 8) + e % 8 * 2) =
                    row / group < tokens ? f32_to_bf16(v[n][k]) : (uint16_t)0;
            }
        }
    }
}

template <int DIM, bool MAKES>
MF_DEV void attend(const mf_cuda_attention &p, const mf_cuda_gqa_prepare &r, float *rooms, const int32_t *sequences,
                   const int32_t *positions, int64_t t0, int tokens, uint8_t *shared, uint64_t *full, uint64_t *empty)
{
    constexpr int CHUNKS = DIM / 8;
    const int tid = threadIdx.x - GATHERERS, own = tid >> 7, in_group = tid & 127, warp = in_group >> 5,
              lane = tid & 31, g = lane >> 2, q = lane & 3;
    const int group = p.num_heads / p.num_kv_heads, kv_head = blockIdx.y;
    uint8_t *queries = shared + own * 64 * DIM * 2, *stages = shared + ROWS * DIM * 2;
    if constexpr (MAKES) {
        make_queries<DIM>(p, r, positions, t0, tokens, own * 64 + warp * 16, queries, rooms + (tid >> 5) * DIM);
    }
#pragma unroll 4
    for (int i = 0; i < (MAKES ? 0 : 64 * CHUNKS / 128); i++) {
        const int at = i * 128 + in_group, row = at / CHUNKS, chunk = at % CHUNKS, all = own * 64 + row;
        const bool is_there = all / group < tokens;
        const float *from = p.q + (t0 + all / group) * p.q_stride + (kv_head * group + all % group) * p.q_head_stride;
        *(uint4 *)(queries + chunk / 8 * SUB + swizzled(row, chunk % 8)) =
            is_there ? pack_chunk(from + chunk * 8) : make_uint4(0, 0, 0, 0);
    }
    sync_threads(1 + own, 128);
    uint32_t query[DIM / 16][4]; /* in registers: shared memory has enough to do with keys and values */
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        load_tiles(query[k], queries + k / 4 * SUB + swizzled(warp * 16 + (lane & 15), k % 4 * 2 + (lane >> 4)));
    }
    int token[2], head[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int row = own * 64 + warp * 16 + g + 8 * e;
        token[e] = row / group;
        head[e] = kv_head * group + row % group;
    }
    float products_of[32], value[DIM / 2], out[DIM / 2];
    auto begin_scores = [&](int stage) {
        const uint8_t *keys = stages + stage * 2 * PART<DIM>;
        pin(products_of);
        products_begin();
#pragma unroll
        for (int k = 0; k < DIM / 16; k++) {
            score_products(products_of, query[k], product_operand(keys + k / 4 * SUB) + 2 * (k % 4), k > 0);
        }
        products_commit();
    };
    cursor<STAGES<DIM>> at = { 0, 0 };
    for (int begin = 0, end; begin < tokens; begin = end) {
        end = run_end(sequences, positions, begin, tokens);
        const int lowest = (int)first_seen(p, positions[begin]), highest = positions[end - 1],
                  last_first = (int)first_seen(p, highest), from = lowest / PIECE, to = highest / PIECE;
        int first[2], last[2];
        float m[2], sum[2];
        bool is_mine[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            is_mine[e] = token[e] >= begin && token[e] < end;
            last[e] = is_mine[e] ? positions[token[e]] : -1;
            first[e] = is_mine[e] ? (int)first_seen(p, last[e]) : 0;
            m[e] = is_mine[e] ? start_maximum2(p, head[e]) : minus_infinity();
            sum[e] = start_sum(p);
        }
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) {
            value[i] = 0.0f;
        }
        barrier_wait(&full[at.stage], at.parity);
        fence_shared_for_products();
        begin_scores(at.stage);
        products_wait<0>();
        auto take_piece = [&](int piece, auto has_next) {
            constexpr bool HAS_NEXT = decltype(has_next)::value;
            pin(products_of);
            scores s;
#pragma unroll
            for (int i = 0; i < 32; i++) {
                s.v[i / 4][i % 4] = products_of[i];
            }
            const int base = piece * PIECE, stage = at.stage;
            const uint8_t *values = stages + stage * 2 * PART<DIM> + PART<DIM>;
            uint32_t packed[4][4];
            float most[2], part[2], of_old[2], of_next[2];
            mask(s, base, q, first, last);
            weigh(s, p.scale, packed, most, part);
            pin(out);
            products_begin();
#pragma unroll
            for (int step = 0; step < 4; step++) {
                value_products<DIM>::add(out, packed[step], value_operand(values + step * 16 * LINE), step > 0);
            }
            products_commit();
            cursor<STAGES<DIM>>::next(at);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                of_old[e] = 1.0f;
                of_next[e] = 0.0f;
                if (part[e] != 0.0f) {
                    merge_factors2(m[e], most[e], of_old[e], of_next[e]);
                    sum[e] = merged(sum[e], of_old[e], part[e], of_next[e]);
                }
            }
            products_wait<0>();
            pin(out);
            /* A value that some rows of the run do not see is weighed with 0 there, which a NaN or infinity would
             * survive: then each token has the values to itself. */
            bool is_bad = false;
            if (base < last_first || base + PIECE - 1 > positions[begin]) {
                for (int i = in_group; i < PIECE * CHUNKS; i += 128) {
                    is_bad |= has_no_end(((const uint4 *)values)[i]);
                }
                is_bad = sync_threads_or(1 + own, 128, is_bad);
            }
            if (is_bad) {
#pragma unroll 1
                for (int only = begin; only < end; only++) {
                    const int seen = (int)first_seen(p, positions[only]);
#pragma unroll
                    for (int n = 0; n < DIM / 8; n++) {
                        float alone[4];
                        weigh_seen<DIM>(alone, packed, values, n, seen - base, positions[only] - base);
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            const int e = k / 2;
                            out[4 * n + k] = token[e] == only ? alone[k] : out[4 * n + k];
                        }
                    }
                }
            }
            const bool keeps = part[0] != 0.0f && part[1] != 0.0f && of_old[0] == 1.0f && of_old[1] == 1.0f;
            if (__all_sync(MF_FULL_WARP, keeps)) { /* times 1 changes nothing */
#pragma unroll
                for (int i = 0; i < DIM / 2; i++) {
                    value[i] = __fmaf_rn(out[i], of_next[i / 2 % 2], value[i]);
                }
            } else {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (part[e] != 0.0f) {
#pragma unroll
                        for (int n = 0; n < DIM / 8; n++) {
                            float &low = value[4 * n + 2 * e], &high = value[4 * n + 2 * e + 1];
                            low = merged(low, of_old[e], out[4 * n + 2 * e], of_next[e]);
                            high = merged(high, of_old[e], out[4 * n + 2 * e + 1], of_next[e]);
                        }
                    }
                }
            }
            __syncwarp();
            if (lane == 0) {
                barrier_arrive(&empty[stage]);
            }
            if constexpr (HAS_NEXT) {
                barrier_wait(&full[at.stage], at.parity);
                fence_shared_for_products();
                begin_scores(at.stage);
                products_wait<0>();
            }
        };
        for (int piece = from; piece < to; piece++) {
            take_piece(piece, std::true_type());
        }
        take_piece(to, std::false_type());
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (is_mine[e]) {
                const int64_t row = ((t0 + token[e]) * p.num_heads + head[e]) * DIM + 2 * q;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
                    const float low = __fdiv_rn(value[4 * n + 2 * e], sum[e]),
                                high = __fdiv_rn(value[4 * n + 2 * e + 1], sum[e]);
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

/* MAKES: the queries, too, from what the projection left. */
template <int DIM, bool MAKES>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_kernel(const __grid_constant__ mf_cuda_attention p, const __grid_constant__ mf_cuda_gqa_prepare r)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t shared[];
    __shared__ int32_t sequences[ROWS], positions[ROWS];
    __shared__ float rooms[MAKES ? 8 * DIM : 1];
    __shared__ uint64_t full[STAGES<DIM>], empty[STAGES<DIM>];
    let_next_start();
    const int each = ROWS / (p.num_heads / p.num_kv_heads);
    const int64_t t0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * each; /* the longest contexts first */
    const int tokens = p.num_tokens - t0 < each ? (int)(p.num_tokens - t0) : each;
    if (threadIdx.x < tokens) { /* no kernel's work: no need to wait */
        sequences[threadIdx.x] = p.sequence[t0 + threadIdx.x];
        positions[threadIdx.x] = p.position[t0 + threadIdx.x];
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES<DIM>; i++) {
            barrier_init(&full[i], GATHERERS);
            barrier_init(&empty[i], 8);
        }
        barrier_init_fence();
    }
    __syncthreads();
    wait_for_previous();
    if (threadIdx.x < GATHERERS) {
        give_registers<40>();
        gather<DIM>(p, sequences, positions, tokens, shared + ROWS * DIM * 2, full, empty);
    } else {
        take_registers<232>();
        attend<DIM, MAKES>(p, r, rooms, sequences, positions, t0, tokens, shared, full, empty);
    }
}

template <int DIM> int launch(const mf_cuda_attention &p, const mf_cuda_gqa_prepare *prepare, cudaStream_t stream)
{
    const int each = ROWS / (p.num_heads / p.num_kv_heads);
    const dim3 grid((unsigned)((p.num_tokens + each - 1) / each), (unsigned)p.num_kv_heads);
    const mf_cuda_gqa_prepare r = prepare ? *prepare : mf_cuda_gqa_prepare{};
    return prepare
               ? launch_shared(true, prefill_kernel<DIM, true>, grid, THREADS, (size_t)SHARED_BYTES<DIM>, stream, p, r)
               : launch_shared(true, prefill_kernel<DIM, false>, grid, THREADS, (size_t)SHARED_BYTES<DIM>, stream, p,
                               r);
}

} // namespace

int mf_cuda_launch_attention_hopper(const mf_cuda_attention *call, const mf_cuda_gqa_prepare *prepare, void *stream)
{
    mf_cuda_attention p = *call;
    p.scale = (float)((double)p.scale * 1.4426950408889634); /* scores in units of log2 */
    return p.head_dim == 64 ? launch<64>(p, prepare, (cudaStream_t)stream)
                            : launch<128>(p, prepare, (cudaStream_t)stream);
}
