/* grouped_pairs.cu - bf16 experts of many tokens on Hopper: both grouped products in one launch, as in grouped.cu, by
 * clusters of two blocks that share weights.
 *
 * The blocks of a cluster work on neighbouring tiles of a slot's tokens and on the same rows: each brings half of the
 * weights and the copy engine gives them to both, so that a third less comes from the L2 cache.  An odd tile is worked
 * on by both, on different rows.  A tile of 128 tokens, or nearly, has them as the products' 64-row operand and the
 * weights as 256 columns; any other has weights as rows and as many columns as tokens.  The bits are the same.  Two
 * warps of every block copy tokens into the slots' order meanwhile, ahead of the products, so that the copy engine
 * brings these, too; they claim rows in order, and a unit of w13 waits until its slot's rows are there.
 *
 * Units are claimed in order, by a cluster's first block for both.  What a unit waits for, rows or units of w13, is
 * claimed before and waits for nothing but rows, which wait for nothing: clusters come to an end. */
#include "kernels/cuda/grouped.cuh"

/* Tokens in steps of 8 where most tiles are. */
template <> struct products<120> {
    static __device__ __forceinline__ void bf16(float (&sums)[60], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %62, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n120k16.f32.bf16.bf16 {" MF_SUMS_112
                     ", %56, %57, %58, %59}, %60, %61, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_112, MF_SUM4(56)
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<136> {
    static __device__ __forceinline__ void bf16(float (&sums)[68], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %70, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n136k16.f32.bf16.bf16 {" MF_SUMS_128
                     ", %64, %65, %66, %67}, %68, %69, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_128, MF_SUM4(64)
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<152> {
    static __device__ __forceinline__ void bf16(float (&sums)[76], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %78, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n152k16.f32.bf16.bf16 {" MF_SUMS_144
                     ", %72, %73, %74, %75}, %76, %77, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_144, MF_SUM4(72)
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

/* 64 tokens by 256 rows, or by 128: the first 128 rows' sums, and the others'.  begin_*: from zero. */
#define MF_REST_128                                                                                                    \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                               \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                                 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                     \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MF_SIXTEEN(T, v, i)                                                                                            \
    T(v[i]), T(v[i + 1]), T(v[i + 2]), T(v[i + 3]), T(v[i + 4]), T(v[i + 5]), T(v[i + 6]), T(v[i + 7]), T(v[i + 8]),   \
        T(v[i + 9]), T(v[i + 10]), T(v[i + 11]), T(v[i + 12]), T(v[i + 13]), T(v[i + 14]), T(v[i + 15])
#define MF_SIXTY_FOUR(T, v) MF_SIXTEEN(T, v, 0), MF_SIXTEEN(T, v, 16), MF_SIXTEEN(T, v, 32), MF_SIXTEEN(T, v, 48)
#define MF_ADDS "+f"
#define MF_IS "=f"

static __device__ __forceinline__ void products_256(float (&low)[64], float (&high)[64], uint64_t tokens, uint64_t rows)
{
#if MF_HAS_WGMMA
    asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" MF_SUMS_128 MF_REST_128
                 "}, %128, %129, p, 1, 1, 0, 0; }"
                 : MF_SIXTY_FOUR(MF_ADDS, low), MF_SIXTY_FOUR(MF_ADDS, high)
                 : "l"(tokens), "l"(rows));
#endif
}

static __device__ __forceinline__ void begin_256(float (&low)[64], float (&high)[64], uint64_t tokens, uint64_t rows)
{
#if MF_HAS_WGMMA
    asm volatile("{ .reg .pred p; setp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" MF_SUMS_128 MF_REST_128
                 "}, %128, %129, p, 1, 1, 0, 0; }"
                 : MF_SIXTY_FOUR(MF_IS, low), MF_SIXTY_FOUR(MF_IS, high)
                 : "l"(tokens), "l"(rows));
#endif
}

static __device__ __forceinline__ void begin_128(float (&low)[64], uint64_t tokens, uint64_t rows)
{
#if MF_HAS_WGMMA
    asm volatile("{ .reg .pred p; setp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MF_SUMS_128 "}, %64, %65, p, 1, 1, 0, 0; }"
                 : MF_SIXTY_FOUR(MF_IS, low)
                 : "l"(tokens), "l"(rows));
#endif
}

namespace
{

constexpr int MAX = MF_CUDA_PAIR_TOKENS, STAGE_ROWS = 4 * SUBTILE, STAGE = STAGE_ROWS + MAX * LINE;
/* Results of a warpgroup on their way out: 32 tokens by 64 rows, or 16 by 128. */
constexpr int PIECE = MF_CUDA_PAIR_PIECE;
constexpr int CLAIMS = 8, ROWS_AT_A_TIME = 4;
constexpr int COPYING_REGISTERS = 56, MULTIPLYING_REGISTERS = 224;
static_assert(PIECE == 32 * 64 * 2 && PIECE == 16 * 128 * 2, "pieces are full");
static_assert(STAGE == 52 * 1024 && MAX % 16 == 0, "whole swizzle atoms, whole boxes");

struct pair_state {
    shared_state s;
    uint64_t claimed[CLAIMS]; /* of the second block: the claim is there */
    uint64_t copied;          /* this block claims no rows any more */
    uint32_t claims[CLAIMS];
};
static_assert(sizeof(pair_state) <= MF_CUDA_PAIR_STATE, "the plan knows how much");

/* ---- tiles ---- */

constexpr int FULL = 128;

/* A slot's tiles are in pairs: all of nearly the same size, at most MAX, if that makes an even number of them; else,
 * and where they are many, full ones, and a last one of up to MAX. */
MF_DEV bool has_full_tiles(int count)
{
    return count > MAX &&
           (count >= 8 * FULL || (tiles_of(count, MAX) % 2 == 1 && tiles_of(count - MAX, FULL) % 2 == 1));
}

MF_DEV int tiles_of_slot(int count)
{
    return has_full_tiles(count) ? 1 + tiles_of(count - MAX, FULL) : tiles_of(count, MAX);
}

/* Whether tokens are the products' 64-row operand: a tile of two warpgroups' 64, or nearly.  Then weights are 256
 * columns of one product, and shared memory is read a sixth less than for two products of 64 rows by 128 tokens. */
MF_DEV bool is_full(int count)
{
    return count > FULL - 16 && count <= FULL;
}

/* Of slots before one: pairs of tiles, and odd tiles. */
struct tiles_before {
    uint32_t packed;
    MF_DEV_MEMBER int pairs(tiles_before t)
    {
        return (int)(t.packed & 0xfffff);
    }
    MF_DEV_MEMBER int odd(tiles_before t)
    {
        return (int)(t.packed >> 20);
    }
    MF_DEV_MEMBER int tiles(tiles_before t)
    {
        return 2 * pairs(t) + odd(t);
    }
    /* Units, where a pair has `rows` row tiles. */
    MF_DEV_MEMBER int units(tiles_before t, int rows)
    {
        return pairs(t) * rows + odd(t) * ((rows + 1) / 2);
    }
};
static_assert(MF_CUDA_GROUPED_TILES < 1 << 20 && MF_CUDA_GROUPED_SLOTS < 1 << 12, "they fit");

/* Where each slot's pairs and tiles begin; by the whole block, before everything. */
MF_DEV void scan_pairs(const mf_cuda_grouped &p, int32_t *offsets, tiles_before *prefix, int32_t *sums)
{
    const int slots = (int)p.e.num_slots, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    for (int i = tid; i <= slots; i += THREADS) {
        offsets[i] = p.offsets[i];
    }
    __syncthreads();
    const int each = (slots + THREADS - 1) / THREADS, from = tid * each, to = min(slots, from + each);
    auto of = [&](int i) {
        const int tiles = tiles_of_slot(offsets[i + 1] - offsets[i]);
        return tiles >> 1 | (tiles & 1) << 20;
    };
    int32_t mine = 0;
    for (int i = from; i < to; i++) {
        mine += of(i);
    }
    int32_t before = sum_before(mine, lane, warp, sums);
    for (int i = from; i < to; i++) {
        prefix[i].packed = (uint32_t)before;
        before += of(i);
    }
    if (tid == THREADS - 1) {
        prefix[slots].packed = (uint32_t)before;
    }
    __syncthreads();
}

/* ---- what goes out ---- */

MF_DEV void own_barrier(int group)
{
    if (group == 0) {
        named_barrier<BARRIER_OWN, 128>();
    } else {
        named_barrier<BARRIER_OWN + 1, 128>();
    }
}

/* Rows of a piece without padding: 16-byte chunks are swapped so that eight rows meet all banks. */
MF_DEV int in_piece(int token, int chunk, int chunks)
{
    return (token * chunks + (chunk ^ (token & 7))) * 16;
}

/* 64 rows of the intermediate by N tokens.  PLAIN: SiLU without biases, half of the code's instructions.  The
 * warpgroup's pieces take turns, so that one barrier a piece does: who writes one again has passed the barrier behind
 * its last reads. */
template <int N, bool PLAIN>
MF_DEV void write_up(const mf_cuda_grouped &p, unit_ref u, const mf_cuda_slot &slot, float (&gate)[N / 2],
                     float (&up)[N / 2], uint8_t *pieces)
{
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, own = tid & 127, warp = own >> 5, lane = tid & 31;
    const int row = u->row + 64 * group; /* this warpgroup's */
    const swiglu act = PLAIN ? swiglu_of(MF_ACT_SILU, 0.0f, 1.0f) : swiglu_of(slot);
    float gb[2] = { 0.0f, 0.0f }, ub[2] = { 0.0f, 0.0f };
#pragma unroll
    for (int i = 0; i < 2 && !PLAIN; i++) {
        const int r = row + warp * 16 + (lane >> 2) + 8 * i;
        gb[i] = slot.gate_bias && r < slot.up.n ? slot.gate_bias[r] : 0.0f;
        ub[i] = slot.up_bias && r < slot.up.n ? slot.up_bias[r] : 0.0f;
    }
    const bool has_bias = !PLAIN && (slot.gate_bias || slot.up_bias);
    /* Two tokens' results for one row: sums i and i + 1. */
    auto value = [&](int i) {
        const int half = i >> 1 & 1;
        return two_results(act, has_bias, gate[i], gate[i + 1], up[i], up[i + 1], gb[half], ub[half]);
    };
    const int to = (lane >> 4) * 8 + (lane & 7), chunk = warp * 2 + (lane >> 3 & 1), from = own >> 3, count = u->count;
    uint16_t *h = (uint16_t *)p.e.h + (int64_t)(u->first + from) * p.e.h_stride + row + (own & 7) * 8;
#pragma unroll
    for (int c = 0; c * 32 < N; c++) {
        if (c * 32 >= count) {
            break;
        }
        uint8_t *piece = pieces + c % 2 * PIECE;
#pragma unroll
        for (int sixteen = 2 * c; sixteen < 2 * c + 2; sixteen++) {
            if (sixteen * 16 < N) {
                uint32_t v[4];
#pragma unroll
                for (int k = 0; k < 4; k++) { /* eight tokens by rows 0-7, by rows 8-15, the next eight tokens */
                    v[k] = sixteen * 16 + 8 * (k >> 1) < N ? value((8 * sixteen + 2 * k) % (N / 2)) : 0;
                }
                store_transposed(piece + in_piece((sixteen - 2 * c) * 16 + to, chunk, 8), v[0], v[1], v[2], v[3]);
            }
        }
        own_barrier(group);
        uint4 out[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            out[i] = *(const uint4 *)(piece + in_piece(from + 16 * i, own & 7, 8));
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (c * 32 + from + 16 * i < count) {
                *(uint4 *)(h + (int64_t)(c * 32 + 16 * i) * p.e.h_stride) = out[i];
            }
        }
    }
}

/* Where rows of y begin, in units of 8 elements, of the tokens that this warp stores: four of every sixteen, a lane
 * each. */
struct y_places {
    uint32_t of[(MAX + 127) / 128];
};

MF_DEV y_places find_places(const mf_cuda_grouped &p, unit_ref u)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    y_places places;
#pragma unroll
    for (int i = 0; i < (MAX + 127) / 128; i++) {
        const int t = 128 * i + (lane >> 2) * 16 + 2 * warp + (lane & 1) + 8 * (lane >> 1 & 1);
        places.of[i] = u->is_down && t < u->count ? (uint32_t)(y_offset(p.e, __ldg(p.sorted + u->first + t)) / 8) : 0;
    }
    return places;
}

/* 128 rows of the output by N tokens. */
template <int N>
MF_DEV void write_down(const mf_cuda_grouped &p, unit_ref u, int first_row, float (&low)[N / 2], float (&high)[N / 2],
                       uint8_t *pieces, const y_places &places)
{
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, own = tid & 127, warp = own >> 5, lane = tid & 31;
    const int row = first_row + 128 * group, hidden = (int)p.e.hidden_size;
    if (slot.down_bias) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int r = row + warp * 16 + (lane >> 2) + 8 * (k & 1) + 64 * (k >> 1);
            const float b = r < hidden ? slot.down_bias[r] : 0.0f;
#pragma unroll
            for (int i = 0; i < N / 8; i++) {
                float(&v)[N / 2] = k >> 1 ? high : low;
                v[4 * i + 2 * (k & 1)] = __fadd_rn(v[4 * i + 2 * (k & 1)], b);
                v[4 * i + 2 * (k & 1) + 1] = __fadd_rn(v[4 * i + 2 * (k & 1) + 1], b);
            }
        }
    }
    const int to = (lane >> 4) * 8 + (lane & 7), chunk = warp * 2 + (lane >> 3 & 1), from = own >> 4, count = u->count;
    const int r = row + (own & 15) * 8;
    uint16_t *y = (uint16_t *)p.e.y + r;
#pragma unroll
    for (int c = 0; c * 16 < N; c++) {
        if (c * 16 >= count) {
            break;
        }
        uint8_t *piece = pieces + c % 2 * PIECE;
#pragma unroll
        for (int t = 0; t < 2; t++) {
            float(&v)[N / 2] = t ? high : low;
            uint32_t w[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int i = 8 * c + 2 * k;
                w[k] = c * 16 + 8 * (k >> 1) < N ? pack_bf16(v[i % (N / 2)], v[(i + 1) % (N / 2)]) : 0;
            }
            store_transposed(piece + in_piece(to, t * 8 + chunk, 16), w[0], w[1], w[2], w[3]);
        }
        own_barrier(group);
        uint4 out[2];
        uint32_t place[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            out[i] = *(const uint4 *)(piece + in_piece(from + 8 * i, own & 15, 16));
            place[i] = __shfl_sync(MF_FULL_WARP, places.of[c >> 3], (c & 7) * 4 + (lane >> 4) + 2 * i);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (c * 16 + from + 8 * i < count && r < hidden) {
                *(uint4 *)(y + (int64_t)place[i] * 8) = out[i];
            }
        }
    }
}

/* This warpgroup's rows of a unit of w13 are written, or it has none. */
MF_DEV void end_up(const mf_cuda_grouped &p, unit_ref u, int group)
{
    fence_global_for_copies();
    own_barrier(group);
    if ((threadIdx.x & 127) == 0) { /* released for all: the barrier put their stores before it */
        add_release(p.work + MF_CUDA_WORK_TILES + u->tile, 1);
    }
}

/* ---- the two warpgroups that multiply ---- */

/* A stage of both blocks is this warp's no more. */
MF_DEV void give_back(uint64_t *empty)
{
    const int lane = threadIdx.x & 31;
    if (lane < 2) {
        arrive_at_block(empty, lane);
    }
}

template <int N>
MF_DEV void multiply(const mf_cuda_grouped &p, unit_ref u, uint8_t *stages, pair_state *s, stage_cursor &cursor,
                     uint8_t *staging)
{
    const int group = (threadIdx.x - PRODUCERS) >> 7, lines = u->lines, steps = u->steps;
    uint8_t *pieces = staging + group * 2 * PIECE;
    const y_places places = find_places(p, u); /* on their way while products run */
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        if (!u->is_down && u->row + 64 * group >= p.width) { /* others have the last rows */
#pragma unroll 1
            for (int line = 0; line < lines; line++) {
                barrier_wait(&s->s.full[cursor.stage], cursor.parity);
                give_back(&s->s.empty[cursor.stage]);
                stage_cursor::next(cursor);
            }
            end_up(p, u, group);
            continue;
        }
        float acc[2][N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            acc[0][i] = acc[1][i] = 0.0f;
        }
#pragma unroll 1
        for (int line = 0; line < lines; line++) {
            const uint8_t *stage = stages + cursor.stage * STAGE;
            barrier_wait(&s->s.full[cursor.stage], cursor.parity);
            const uint64_t rows = product_operand(stage + 2 * group * SUBTILE),
                           tokens = product_operand(stage + STAGE_ROWS);
            pin(acc[0]);
            pin(acc[1]);
            products_begin();
#pragma unroll
            for (int k = 0; k < 8; k++) { /* 32 bytes of K each */
                products<N>::bf16(acc[k >> 2], rows + (k >> 2) * (SUBTILE >> 4) + 2 * (k & 3), tokens + 2 * (k & 3),
                                  true);
            }
            products_commit();
            products_wait<0>(); /* the other warpgroup's go on; a stage more is on its way */
            give_back(&s->s.empty[cursor.stage]);
            stage_cursor::next(cursor);
        }
        products_wait<0>();
        pin(acc[0]);
        pin(acc[1]);
        own_barrier(group); /* nobody reads the pieces of what was written before */
        if (u->is_down) {
            write_down<N>(p, u, u->row + 256 * step, acc[0], acc[1], pieces, places);
            continue;
        }
        const mf_cuda_slot &slot = p.e.slots[u->slot];
        if (slot.activation == MF_ACT_SILU && !slot.gate_bias && !slot.up_bias) {
            write_up<N, true>(p, u, slot, acc[0], acc[1], pieces);
        } else {
            write_up<N, false>(p, u, slot, acc[0], acc[1], pieces);
        }
        end_up(p, u, group);
    }
}

template <int N, typename... Args> MF_DEV void multiply_up_to(int count, Args &...args)
{
    if constexpr (N >= MAX) {
        multiply<MAX>(args...);
    } else {
        if (count <= N) {
            multiply<N>(args...);
        } else {
            multiply_up_to<(N < 96 ? N + 32 : N < 112 ? N + 16 : N + 8)>(count, args...);
        }
    }
}

/* ---- full tiles ---- */

constexpr uint32_t NOWHERE = 0xffffffff;

/* Lane q of four has words 0 to 3 of columns 8 i + 2 q and the next; it gets columns 8 q to 8 q + 7 and stores them. */
MF_DEV void store_columns(uint4 *base, uint32_t to, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3)
{
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
    uint32_t a = __shfl_xor_sync(MF_FULL_WARP, odd ? w0 : w1, 1), b = __shfl_xor_sync(MF_FULL_WARP, odd ? w2 : w3, 1);
    w0 = odd ? a : w0;
    w1 = odd ? w1 : a;
    w2 = odd ? b : w2;
    w3 = odd ? w3 : b;
    a = __shfl_xor_sync(MF_FULL_WARP, high ? w0 : w2, 2);
    b = __shfl_xor_sync(MF_FULL_WARP, high ? w1 : w3, 2);
    w0 = high ? a : w0;
    w1 = high ? b : w1;
    w2 = high ? w2 : a;
    w3 = high ? w3 : b;
    if (to != NOWHERE) {
        base[to] = make_uint4(w0, w1, w2, w3);
    }
}

/* A line's products.  HALVES: of the 256 rows, that there are; FIRST: their sums begin. */
template <int HALVES, bool FIRST>
MF_DEV void add_full_line(const mf_cuda_grouped &p, float (&low)[64], float (&high)[64], uint8_t *stages, pair_state *s,
                          stage_cursor &cursor)
{
    const int group = (threadIdx.x - PRODUCERS) >> 7;
    const uint8_t *stage = stages + cursor.stage * STAGE;
    barrier_wait(&s->s.full[cursor.stage], cursor.parity);
    const uint64_t rows = product_operand(stage), tokens = product_operand(stage + STAGE_ROWS + group * SUBTILE);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint64_t a = tokens + 2 * k, b = rows + 2 * k;
        if (HALVES == 2) {
            if (FIRST && k == 0) {
                begin_256(low, high, a, b);
            } else {
                products_256(low, high, a, b);
            }
        } else if (FIRST && k == 0) {
            begin_128(low, a, b);
        } else {
            products<128>::bf16(low, a, b, true);
        }
    }
    products_commit();
    products_wait<0>(); /* the other warpgroup's go on */
    give_back(&s->s.empty[cursor.stage]);
    stage_cursor::next(cursor);
}

/* 64 tokens by 64 rows of the intermediate: gate's sums, then up's. */
template <bool PLAIN>
MF_DEV void write_full_up(const mf_cuda_grouped &p, const mf_cuda_slot &slot, int row, const float (&v)[64],
                          const uint32_t (&to)[2])
{
    const int q = threadIdx.x & 3;
    const swiglu act = PLAIN ? swiglu_of(MF_ACT_SILU, 0.0f, 1.0f) : swiglu_of(slot);
    const bool has_bias = !PLAIN && (slot.gate_bias || slot.up_bias);
#pragma unroll
    for (int m = 0; m < 2; m++) {
        uint32_t w[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = 16 * m + 4 * i, column = row + 32 * m + 8 * i + 2 * q;
            float gb[2] = { 0.0f, 0.0f }, ub[2] = { 0.0f, 0.0f };
            if (!PLAIN) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    gb[e] = slot.gate_bias ? slot.gate_bias[column + e] : 0.0f;
                    ub[e] = slot.up_bias ? slot.up_bias[column + e] : 0.0f;
                }
            }
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float g[2] = { v[at + 2 * k], v[at + 2 * k + 1] }, u[2] = { v[at + 32 + 2 * k], v[at + 33 + 2 * k] };
                if (has_bias) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        g[e] = __fadd_rn(g[e], gb[e]);
                        u[e] = __fadd_rn(u[e], ub[e]);
                    }
                }
                w[k][i] = pack_bf16(apply(act, g[0], u[0]), apply(act, g[1], u[1]));
            }
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            store_columns((uint4 *)p.e.h + row / 8 + 4 * m, to[k], w[k][0], w[k][1], w[k][2], w[k][3]);
        }
    }
}

/* 64 tokens by 128 rows of the output. */
MF_DEV void write_full_down(const mf_cuda_grouped &p, const float *bias, int row, float (&v)[64],
                            const uint32_t (&to)[2])
{
    const int q = threadIdx.x & 3, hidden = (int)p.e.hidden_size;
    if (bias) {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int column = row + 8 * i + 2 * q;
            const float b0 = column < hidden ? bias[column] : 0.0f, b1 = column < hidden ? bias[column + 1] : 0.0f;
            v[4 * i] = __fadd_rn(v[4 * i], b0);
            v[4 * i + 1] = __fadd_rn(v[4 * i + 1], b1);
            v[4 * i + 2] = __fadd_rn(v[4 * i + 2], b0);
            v[4 * i + 3] = __fadd_rn(v[4 * i + 3], b1);
        }
    }
#pragma unroll
    for (int m = 0; m < 4; m++) {
        if (row + 32 * m >= hidden) { /* whole 32 columns: H is a multiple of 64 */
            break;
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float *w = v + 16 * m + 2 * k;
            store_columns((uint4 *)p.e.y + (row + 32 * m) / 8, to[k], pack_bf16(w[0], w[1]), pack_bf16(w[4], w[5]),
                          pack_bf16(w[8], w[9]), pack_bf16(w[12], w[13]));
        }
    }
}

template <int HALVES>
MF_DEV void multiply_full(const mf_cuda_grouped &p, unit_ref u, uint8_t *stages, pair_state *s, stage_cursor &cursor)
{
    const int tid = threadIdx.x - PRODUCERS, lane = tid & 31, token = (tid >> 5) * 16 + (lane >> 2), q = lane & 3;
    const int lines = u->lines, steps = u->steps;
    const bool is_down = HALVES == 2 && u->is_down != 0;
    uint32_t to[2]; /* where a lane's first 16 bytes of two tokens belong, in 16 bytes of h or y */
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int pos = u->first + token + 8 * k;
        to[k] = token + 8 * k >= u->count ? NOWHERE
                : is_down                 ? (uint32_t)(y_offset(p.e, __ldg(p.sorted + pos)) / 8) + q
                                          : (uint32_t)((int64_t)pos * p.e.h_stride / 8) + q;
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        float low[64], high[64];
        add_full_line<HALVES, true>(p, low, high, stages, s, cursor);
#pragma unroll 1
        for (int line = 1; line < lines; line++) {
            add_full_line<HALVES, false>(p, low, high, stages, s, cursor);
        }
        pin(low);
        if (HALVES == 2) {
            pin(high);
        }
        const int row = u->row + 256 * step;
        const mf_cuda_slot &slot = p.e.slots[u->slot];
        if (is_down) {
            write_full_down(p, slot.down_bias, row, low, to);
            write_full_down(p, slot.down_bias, row + 128, high, to);
            continue;
        }
        if (slot.activation == MF_ACT_SILU && !slot.gate_bias && !slot.up_bias) {
            write_full_up<true>(p, slot, row, low, to);
            if (HALVES == 2) {
                write_full_up<true>(p, slot, row + 64, high, to);
            }
        } else {
            write_full_up<false>(p, slot, row, low, to);
            if (HALVES == 2) {
                write_full_up<false>(p, slot, row + 64, high, to);
            }
        }
        end_up(p, u, tid >> 7);
    }
}

MF_DEV void consume(const mf_cuda_grouped &p, int counters, uint8_t *stages, pair_state *s, uint8_t *staging)
{
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int n = 0;; n++) {
        unit_ref u = announced_unit(&s->s, n);
        if (u->slot < 0) {
            barrier_wait(&s->copied, 0);
            const bool is_last = leave_counters(p, counters);
            if (is_last && threadIdx.x == PRODUCERS) {
                p.work[MF_CUDA_WORK_COPIED] = 0;
            }
            return;
        }
        const bool has_rows = u->is_down || u->row < p.width;
        if (has_rows && is_full(u->count)) {
            if (!u->is_down && u->row + 64 >= p.width) {
                multiply_full<1>(p, u, stages, s, cursor);
            } else {
                multiply_full<2>(p, u, stages, s, cursor);
            }
        } else {
            multiply_up_to<32>(u->count, p, u, stages, s, cursor, staging);
        }
    }
}

/* ---- the warps that copy tokens into the slots' order ---- */

/* ready: rows of each slot that are there. */
MF_DEV void copy_rows(const mf_cuda_grouped &p, const int32_t *offsets, uint32_t *ready)
{
    const int lane = threadIdx.x & 31, slots = (int)p.e.num_slots, total = offsets[slots];
    const uint32_t per_row = (uint32_t)p.e.hidden_size / 8;
    int i = lane == 0 ? (int)atomicAdd(p.work + MF_CUDA_WORK_COPIED, (uint32_t)ROWS_AT_A_TIME) : 0, slot = 0;
    for (;;) {
        i = __shfl_sync(MF_FULL_WARP, i, 0);
        if (i >= total) {
            return;
        }
        const int rows = min(ROWS_AT_A_TIME, total - i);
        const uint32_t mine = lane < rows ? (uint32_t)p.sorted[i + lane] / (uint32_t)p.e.num_columns : 0;
        const int next = lane == 0 ? (int)atomicAdd(p.work + MF_CUDA_WORK_COPIED, (uint32_t)ROWS_AT_A_TIME) : 0;
        for (int r = 0; r < rows; r++) {
            const uint4 *from =
                (const uint4 *)(p.x_bytes + (uint64_t)__shfl_sync(MF_FULL_WARP, mine, r) * (uint64_t)p.x_pitch) + lane;
            uint4 *to = (uint4 *)(p.x_sorted + (uint64_t)(i + r) * (uint64_t)p.e.hidden_size * 2) + lane;
            uint32_t c = lane;
            for (; c + 224 < per_row; c += 256, from += 256, to += 256) {
                uint4 v[8];
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    v[k] = __ldg(from + 32 * k);
                }
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    to[32 * k] = v[k];
                }
            }
            for (; c < per_row; c += 32, from += 32, to += 32) {
                *to = __ldg(from);
            }
        }
        fence_global_for_copies();
        __syncwarp();
        if (lane == 0) {
            for (int r = 0; r < rows;) {
                while (offsets[slot + 1] <= i + r) {
                    slot++;
                }
                const int n = min(rows - r, offsets[slot + 1] - (i + r));
                add_release(ready + slot, (uint32_t)n);
                r += n;
            }
        }
        i = next;
    }
}

/* ---- the thread that brings weights, and gives out work ---- */

/* The second block's: the n-th claim of the first one. */
MF_DEV uint32_t take_claim(pair_state *s, int n)
{
    barrier_expect(&s->claimed[n % CLAIMS], 4);
    barrier_wait(&s->claimed[n % CLAIMS], n / CLAIMS & 1);
    return *(const volatile uint32_t *)&s->claims[n % CLAIMS];
}

MF_DEV void bring_weights(const mf_cuda_grouped &p, const int32_t *offsets, const tiles_before *prefix,
                          uint32_t first_unit, uint8_t *stages, pair_state *s, int rank)
{
    const int slots = (int)p.e.num_slots;
    const int64_t ups = tiles_before::units(prefix[slots], p.up_tiles),
                  units = ups + tiles_before::units(prefix[slots], p.down_units);
    stage_cursor cursor = { 0, p.stages, 1 };
    int64_t next = first_unit;
    if (rank == 0) {
        give_word(&s->claims[0], first_unit, &s->claimed[0], 1);
    } else {
        next = take_claim(s, 0);
    }
    int n = 0;
    for (; next < units; n++) {
        const uint32_t claimed = rank == 0 ? claim_unit(p) : 0;
        const bool is_down = next >= ups;
        const int local = (int)(is_down ? next - ups : next), row_tiles = is_down ? p.down_units : p.up_tiles;
        int low = 0, high = slots; /* units before `low` <= local < units before `high` */
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (tiles_before::units(prefix[middle], row_tiles) <= local) {
                low = middle;
            } else {
                high = middle;
            }
        }
        const int before = tiles_before::tiles(prefix[low]), tiles = tiles_before::tiles(prefix[low + 1]) - before,
                  pairs = tiles / 2;
        const int inside = local - tiles_before::units(prefix[low], row_tiles);
        const bool odd = inside >= pairs * row_tiles; /* both blocks have the slot's last tile */
        const int row_tile = odd ? 2 * (inside - pairs * row_tiles) : inside / pairs; /* the first block's */
        const int tile = odd ? tiles - 1 : 2 * (inside % pairs) + rank;
        const int begin = offsets[low], count = offsets[low + 1] - begin;
        unit u;
        u.slot = low;
        u.is_down = is_down;
        const int size = has_full_tiles(count) ? FULL : tile_size(count, tiles);
        u.first = begin + tile * size;
        u.count = tile == tiles - 1 ? count - tile * size : size;
        /* As many for both blocks, and so are stages. */
        u.steps = is_down ? min(p.down_steps, p.down_tiles - row_tile * p.down_steps) : 1;
        u.row = (row_tile + (odd ? rank : 0)) * (is_down ? 256 * p.down_steps : 128);
        u.lines = (is_down ? p.width : (int)p.e.hidden_size) / 64;
        u.tile = before + tile;
        u.need = 2 * (tile == tiles - 1 && tiles % 2 ? (p.up_tiles + 1) / 2 * 2 : p.up_tiles);
        const CUtensorMap *m0 = map_of(p, low, is_down ? 2 : 0, MF_CUDA_BOX_LONG),
                          *m1 = map_of(p, low, is_down ? 2 : 1, MF_CUDA_BOX_LONG);
        const int stages_used = u.steps * u.lines;
        for (int i = 0, line = 0, first = u.row; i < stages_used; i++) {
            barrier_wait(&s->s.empty[cursor.stage], cursor.parity);
            if (i == 0) {
                announce(&s->s, n, u);
            }
            uint64_t *full = &s->s.full[cursor.stage];
            uint8_t *to = stages + cursor.stage * STAGE;
            barrier_expect(full, STAGE_ROWS);
#pragma unroll
            for (int k = 0; k < 4; k++) { /* of two row tiles of w13, gate and up in turn */
                const CUtensorMap *map = k & 1 ? m1 : m0;
                const int row = first + 64 * (is_down ? k : k >> 1);
                if (odd) {
                    copy_box(to + k * SUBTILE, map, row, line, full);
                } else if (k >> 1 == rank) {
                    copy_box_to_both(to + k * SUBTILE, map, row, line, full);
                }
            }
            stage_cursor::next(cursor);
            if (++line == u.lines) {
                line = 0;
                first += 256;
            }
            /* The other block is at most as many stages behind as there are: it has read the word that was here. */
            if (rank == 0 && i == min(1, stages_used - 1)) {
                give_word(&s->claims[(n + 1) % CLAIMS], claimed, &s->claimed[(n + 1) % CLAIMS], 1);
            }
        }
        next = rank == 0 ? claimed : take_claim(s, n + 1);
    }
    barrier_wait(&s->s.empty[cursor.stage], cursor.parity);
    announce_end(&s->s, n);
    barrier_arrive(&s->s.full[cursor.stage]);
}

/* ---- the thread that brings tokens ---- */

/* Rows first .., `count` rounded up to whole boxes, over a line: boxes of 128, 64, 32 and 16. */
MF_DEV void copy_tokens(uint8_t *to, const CUtensorMap *maps, int first, int count, int line, uint64_t *full)
{
    const int rows = (count + 15) & ~15;
    barrier_expect(full, (uint32_t)(rows * LINE));
    for (int i = 0, done = 0; done < rows; i++) {
        const int box = 128 >> i;
        while (done + box <= rows) {
            copy_box(to + done * LINE, maps + i, first + done, line, full);
            done += box;
        }
    }
}

MF_DEV void wait_for_count(const uint32_t *counter, uint32_t n)
{
    while (load_acquire(counter) < n) {
    }
    fence_global_for_copies();
}

MF_DEV void bring_tokens(const mf_cuda_grouped &p, const mf_cuda_row_maps &maps, const int32_t *offsets,
                         const uint32_t *ready, uint8_t *stages, pair_state *s)
{
    stage_cursor cursor = { 0, p.stages, 0 };
    int known = -1; /* a slot whose tokens are there */
    for (int n = 0;; n++) {
        const unit u = *(const unit *)announced_unit(&s->s, n);
        if (u.slot < 0) {
            barrier_arrive(&s->s.full[cursor.stage]);
            return;
        }
        if (u.is_down) {
            wait_for_count(p.work + MF_CUDA_WORK_TILES + u.tile, (uint32_t)u.need);
        } else if (u.slot != known) {
            known = u.slot;
            wait_for_count(ready + known, (uint32_t)(offsets[known + 1] - offsets[known]));
        }
        const CUtensorMap *map = (const CUtensorMap *)(u.is_down ? maps.h : maps.x);
        for (int step = 0; step < u.steps; step++) {
            for (int line = 0; line < u.lines; line++) {
                if (step + line > 0) {
                    barrier_wait(&s->s.empty[cursor.stage], cursor.parity ^ 1);
                }
                copy_tokens(stages + cursor.stage * STAGE + STAGE_ROWS, map, u.first, u.count, line,
                            &s->s.full[cursor.stage]);
                stage_cursor::next(cursor);
            }
        }
    }
}

__global__ void __launch_bounds__(THREADS, 1)
    pairs_kernel(const __grid_constant__ mf_cuda_grouped p, const __grid_constant__ mf_cuda_row_maps maps)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[]; /* no other shared memory: it begins at a swizzle atom */
    uint8_t *staging = stages + p.stages * STAGE;
    pair_state *s = (pair_state *)(staging + 4 * PIECE);
    int32_t *offsets = (int32_t *)(s + 1);
    tiles_before *prefix = (tiles_before *)(offsets + p.e.num_slots + 1);
    const int rank = blockIdx.x & 1, warp = threadIdx.x >> 5;
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.stages; i++) {
            barrier_init(&s->s.full[i], 2);
            barrier_init(&s->s.empty[i], 16);
        }
        init_announcements(&s->s);
        for (int i = 0; i < CLAIMS; i++) {
            barrier_init(&s->claimed[i], 1);
        }
        barrier_init(&s->copied, 2);
        barrier_init_fence();
    }
    wait_for_previous();
    const uint32_t first = threadIdx.x == 0 && rank == 0 ? claim_unit(p) : 0;
    scan_pairs(p, offsets, prefix, s->s.sums);
    cluster_sync();
    const int tiles = tiles_before::tiles(prefix[p.e.num_slots]); /* their counters come first, then the slots' rows' */
    uint32_t *ready = p.work + MF_CUDA_WORK_TILES + tiles;
    if (threadIdx.x < PRODUCERS) {
        give_registers<COPYING_REGISTERS>();
        if (threadIdx.x == 0) {
            bring_weights(p, offsets, prefix, first, stages, s, rank);
        } else if (threadIdx.x == 32) {
            bring_tokens(p, maps, offsets, ready, stages, s);
        } else if (warp >= 2) {
            copy_rows(p, offsets, ready);
            if ((threadIdx.x & 31) == 0) {
                barrier_arrive(&s->copied);
            }
        }
    } else {
        take_registers<MULTIPLYING_REGISTERS>();
        zero_strangers(p);
        consume(p, tiles + (int)p.e.num_slots, stages, s, staging);
    }
    __syncwarp();
    cluster_end(); /* nobody leaves whom the other one still writes to */
}

} // namespace

int mf_cuda_launch_grouped_pairs(const mf_cuda_grouped *call, const mf_cuda_row_maps *maps, void *stream)
{
    const size_t bytes =
        (size_t)call->stages * STAGE + 4 * PIECE + sizeof(pair_state) + ((size_t)call->e.num_slots + 1) * 8;
    return launch_clusters(2, pairs_kernel, dim3((unsigned)call->blocks & ~1u), THREADS, bytes, stream, *call, *maps);
}
