/* grouped.cu - experts on Hopper: both grouped products in one launch, tiles of 256 weight rows by up to 160 tokens of
 * one slot.
 *
 * Weights are the products' 64-row operand, so that a tile's tokens are its columns and may be few: copies of the
 * tensor copy engine bring 256 rows by 128 bytes a stage, 96 threads gather the tokens' rows, two warpgroups multiply.
 * bf16 weights and many tokens a slot are grouped_pairs.cu's.
 * Work is units (slot, tokens, rows), w13's before w2's, claimed one after the other from a counter; a unit of w2 waits
 * until w13's of its tokens have been written, while its weights are on the way already.  As units are claimed in order
 * and those of w13 wait for nothing, any number of resident blocks comes to an end. */
#include "kernels/cuda/row_codes.cuh"

namespace
{

constexpr int STAGE_ROWS = 4 * SUBTILE;
constexpr int WIDE_PITCH = 136; /* of staged tokens with 128 rows: rows of 16 bytes meet all banks */
constexpr int GATHERING_REGISTERS = 56,
              MULTIPLYING_REGISTERS = 224; /* a gathering thread holds the places of 14 rows */
/* Up to so many tokens bf16's products of a line end before the next ones begin: such tiles wait for weights, and with
 * its stage given back a line earlier there are more of them on their way. */
constexpr int LONE_TOKENS = 112;
/* Tiles of at most so many tokens wait for memory.  Two lines of the same weight rows are asked for together, for it
 * gives 256 bytes of a row, one half right behind the other, quicker than twice 128 apart; x and the intermediate stay
 * in the second-level cache while weights pass through.  Larger tiles give stages back late, and have four of them. */
constexpr int SMALL_TOKENS = 80;
constexpr int KEPT_PAIRS = 1280; /* of so many y stays there, too, for the combine */
constexpr int STAGING = 9216;    /* results on their way out: see write_up, write_down */

template <int CODES, int MAX> __host__ __device__ constexpr int stage_bytes()
{
    return STAGE_ROWS + MAX * LINE + (BY_ROW<CODES> ? 2 * SCALE_BYTES : CODES ? SCALE_BYTES : 0);
}

/* ---- what goes out ---- */

/* A unit of w13 is written, or this warpgroup has no rows of it.  Where scales are rows', the last of a tile's units
 * makes the tile's codes, which counts once more. */
template <int CODES> MF_DEV void end_up(const mf_cuda_grouped &p, unit_ref u)
{
    named_barrier<BARRIER_BOTH, 256>();
    if constexpr (BY_ROW<CODES>) {
        bool is_last = false;
        if (threadIdx.x == PRODUCERS) {
            is_last = add_acquire_release(p.work + MF_CUDA_WORK_TILES + u->tile, 1) + 2 == (uint32_t)u->need;
        }
        if (!sync_threads_or(BARRIER_BOTH, 256, is_last)) {
            return;
        }
        quantise_intermediate<CODES, 4>(p, u->first, u->count, (int)p.e.slots[u->slot].up.n,
                                        (threadIdx.x - PRODUCERS) >> 5, 8);
        named_barrier<BARRIER_BOTH, 256>();
    }
    if (threadIdx.x == PRODUCERS) { /* released for all: the barrier put their stores before it */
        add_release(p.work + MF_CUDA_WORK_TILES + u->tile, 1);
    }
}

/* 64 rows of the intermediate by N tokens: activation, bf16, and for FP8 blocks codes and a scale per token and 128
 * rows. */
template <int CODES, int N>
MF_DEV void write_up(const mf_cuda_grouped &p, unit_ref u, float (&gate)[N / 2], float (&up)[N / 2], uint8_t *staging)
{
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, own = tid & 127, warp = own >> 5, lane = tid & 31;
    const int row = u->row + 64 * group; /* this warpgroup's */
    constexpr int CHUNK = N % 32 ? 16 : 32;
    const bool is_there = CODES || row < slot.up.n;
    const swiglu act = swiglu_of(slot);
    float gb[2] = { 0.0f, 0.0f }, ub[2] = { 0.0f, 0.0f };
    const bool has_bias = slot.gate_bias || slot.up_bias;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = row + warp * 16 + (lane >> 2) + 8 * i;
        gb[i] = slot.gate_bias && r < slot.up.n ? slot.gate_bias[r] : 0.0f;
        ub[i] = slot.up_bias && r < slot.up.n ? slot.up_bias[r] : 0.0f;
    }
    /* Two tokens' results for one row: sums i and i + 1. */
    auto value = [&](int i) {
        const int half = i >> 1 & 1;
        return two_results(act, has_bias, gate[i], gate[i + 1], up[i], up[i + 1], gb[half], ub[half]);
    };
    if constexpr (CODES == MF_CUDA_CODES_FP8_BLOCK) {
#pragma unroll
        for (int c = 0; c < N / CHUNK; c++) {
            if (c * CHUNK >= u->count) {
                break;
            }
#pragma unroll
            for (int pair = 0; pair < CHUNK / 16; pair++) {
                uint32_t v[4];
#pragma unroll
                for (int k = 0; k < 4; k++) { /* eight tokens by rows 0-7, by rows 8-15, the next eight tokens */
                    v[k] = value(4 * (c * (CHUNK / 8) + 2 * pair + k / 2) + 2 * (k & 1));
                }
                const int m = lane >> 3, token = pair * 16 + (m >> 1) * 8 + (lane & 7);
                store_transposed(staging + (token * WIDE_PITCH + (group * 8 + warp * 2 + (m & 1)) * 8) * 2, v[0], v[1],
                                 v[2], v[3]);
            }
            named_barrier<BARRIER_BOTH, 256>();
            const int token = tid >> 3, at = (tid & 7) * 16, t = c * CHUNK + token;
            if (token < CHUNK) { /* whole warps */
                const uint4 *from = (const uint4 *)(staging + (token * WIDE_PITCH + at) * 2);
                const uint4 raw[2] = { from[0], from[1] };
                float scale;
                const uint4 codes = quantise_16<false>(raw, p.e.e8m0, scale);
                if (t < u->count) {
                    const int64_t pos = u->first + t;
                    *(uint4 *)(p.h_codes + pos * p.e.h_stride + u->row + at) = codes;
                    if ((tid & 7) == 0) {
                        p.h_scales[pos * p.h_groups + u->row / 128] = scale;
                    }
                }
            }
            named_barrier<BARRIER_BOTH, 256>();
        }
    } else {
        constexpr int OWN_PITCH = 72; /* 32 tokens by the warpgroup's 64 rows at a time */
        uint8_t *place = staging + group * (STAGING / 2);
#pragma unroll
        for (int c = 0; c < N / CHUNK; c++) {
            if (c * CHUNK >= u->count) {
                break;
            }
            own_barrier(group);
#pragma unroll
            for (int pair = 0; pair < CHUNK / 16; pair++) {
                uint32_t v[4];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    v[k] = value(4 * (c * (CHUNK / 8) + 2 * pair + k / 2) + 2 * (k & 1));
                }
                const int token = pair * 16 + (lane >> 4) * 8 + (lane & 7), chunk = warp * 2 + (lane >> 3 & 1);
                store_transposed(place + (token * OWN_PITCH + chunk * 8) * 2, v[0], v[1], v[2], v[3]);
            }
            own_barrier(group);
#pragma unroll
            for (int i = 0; i < CHUNK / 16; i++) {
                const int token = (own >> 3) + 16 * i, t = c * CHUNK + token;
                if (t < u->count && is_there) {
                    *(uint4 *)((uint16_t *)p.e.h + (int64_t)(u->first + t) * p.e.h_stride + row + (own & 7) * 8) =
                        *(const uint4 *)(place + (token * OWN_PITCH + (own & 7) * 8) * 2);
                }
            }
        }
    }
    end_up<CODES>(p, u);
}

/* 128 rows of the output by N tokens. */
template <int N>
MF_DEV void write_down(const mf_cuda_grouped &p, unit_ref u, int first_row, float (&low)[N / 2], float (&high)[N / 2],
                       uint8_t *staging, const int64_t *places)
{
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, own = tid & 127, warp = own >> 5, lane = tid & 31;
    const int row = first_row + 128 * group, hidden = (int)p.e.hidden_size;
    uint8_t *place = staging + (group * 4 + warp) * (STAGING / 8);
    if (slot.down_bias) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int r = row + warp * 16 + (lane >> 2) + 8 * (k & 1) + 64 * (k >> 1);
            const float b = r < hidden ? slot.down_bias[r] : 0.0f;
#pragma unroll
            for (int i = 0; i < N / 8; i++) {
                float(&s)[N / 2] = k >> 1 ? high : low;
                s[4 * i + 2 * (k & 1)] = __fadd_rn(s[4 * i + 2 * (k & 1)], b);
                s[4 * i + 2 * (k & 1) + 1] = __fadd_rn(s[4 * i + 2 * (k & 1) + 1], b);
            }
        }
    }
    /* The warpgroup turns 16 tokens by 128 rows over at a time, so that a token's rows go out 256 bytes in one piece.
     */
    const int at = row + warp * 16;
    if (p.e.y_dtype == MF_BF16 && p.e.y_is_wide) {
        uint8_t *whole = staging + group * (STAGING / 2);
        const uint64_t policy = p.e.num_pairs <= KEPT_PAIRS ? EVICT_LAST : EVICT_NORMAL;
#pragma unroll
        for (int c = 0; c < N / 16; c++) {
            if (c * 16 >= u->count) {
                break;
            }
            own_barrier(group);
#pragma unroll
            for (int t = 0; t < 2; t++) {
                float(&v)[N / 2] = t ? high : low;
                const int token = (lane >> 4) * 8 + (lane & 7), chunk = t * 8 + warp * 2 + (lane >> 3 & 1);
                store_transposed(whole + (token * WIDE_PITCH + chunk * 8) * 2, pack_bf16(v[8 * c], v[8 * c + 1]),
                                 pack_bf16(v[8 * c + 2], v[8 * c + 3]), pack_bf16(v[8 * c + 4], v[8 * c + 5]),
                                 pack_bf16(v[8 * c + 6], v[8 * c + 7]));
            }
            own_barrier(group);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int token = (own >> 4) + 8 * i, t = c * 16 + token, r = row + (own & 15) * 8;
                if (t < u->count && r < hidden) {
                    uint16_t *to = (uint16_t *)p.e.y + places[t] + r;
                    const uint4 v = *(const uint4 *)(whole + (token * WIDE_PITCH + (own & 15) * 8) * 2);
                    if (N <= 64) {
                        store_by(to, v, policy);
                    } else {
                        *(uint4 *)to = v;
                    }
                }
            }
        }
        own_barrier(group);
        return;
    }
    /* Any dtype and place: eight tokens of f32 at a time. */
    own_barrier(group);
#pragma unroll
    for (int c = 0; c < N / 8; c++) {
        if (c * 8 >= u->count) {
            break;
        }
        float *to = (float *)place; /* [8][33] */
        const int q = lane & 3, g = lane >> 2;
        __syncwarp();
#pragma unroll
        for (int k = 0; k < 4; k++) {
            to[(2 * q + (k & 1)) * 33 + g + 8 * (k >> 1)] = low[4 * c + k];
            to[(2 * q + (k & 1)) * 33 + 16 + g + 8 * (k >> 1)] = high[4 * c + k];
        }
        __syncwarp();
        const int r = at + (lane >> 4) * 64 + (lane & 15);
#pragma unroll 1
        for (int token = 0; token < 8 && c * 8 + token < u->count; token++) {
            if (r < hidden) {
                store_float(p.e.y, p.e.y_dtype, places[c * 8 + token] + r, to[token * 33 + lane], p.e.bytewise);
            }
        }
    }
    own_barrier(group);
}

/* ---- the two warpgroups that multiply ---- */

/* Sums times their tokens' scales, MAX of them, and their rows', 256 behind. */
template <int CODES, int MAX, int N>
MF_DEV void scale_sums(const mf_cuda_slot &slot, const float *scales, bool is_down, int row0,
                       const sum_type<CODES> (&acc)[2][N / 2], float (&sums)[2][N / 2])
{
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, r = (tid >> 5 & 3) * 16 + (tid >> 2 & 7), q = tid & 3;
    float of[2][2];
#pragma unroll
    for (int t = 0; t < 2; t++) {
        const float *rows = scales + MAX + (is_down ? 128 * group + 64 * t : 64 * group + 128 * t) + r;
        const scale_reader reader = reader_of(is_down ? slot.down : t ? slot.up : slot.gate, row0);
        of[t][0] = read_scale(reader, r & 1, rows[0]);
        of[t][1] = read_scale(reader, r & 1, rows[8]);
    }
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        const float2 token = *(const float2 *)(scales + 8 * i + 2 * q);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int t = k >> 2, at = 4 * i + (k & 3);
            sums[t][at] = scaled_sum<CODES>(acc[t][at], k & 1 ? token.y : token.x, of[t][k >> 1 & 1]);
        }
    }
}

template <int CODES, int MAX, int N>
MF_DEV void multiply(const mf_cuda_grouped &p, unit_ref u, uint8_t *stages, shared_state *s, stage_cursor &cursor,
                     uint8_t *staging)
{
    constexpr int STAGE = stage_bytes<CODES, MAX>();
    const int group = (threadIdx.x - PRODUCERS) >> 7, lane = threadIdx.x & 31;
    const int lines = u->lines, steps = u->steps;
    int64_t *places = (int64_t *)(staging + STAGING) + group * MAX; /* where the tokens' rows of y begin */
    constexpr int OWN = (N + 127) / 128;
    const int own = (threadIdx.x - PRODUCERS) & 127;
    int32_t pairs[OWN] = {}; /* asked for here, written where they are needed */
#pragma unroll
    for (int k = 0; k < OWN; k++) {
        if (u->is_down && own + 128 * k < u->count) {
            pairs[k] = load_early(p.sorted + u->first + own + 128 * k);
        }
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        sum_type<CODES> acc[2][N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            acc[0][i] = acc[1][i] = 0;
        }
        int previous = -1;
#pragma unroll 1
        for (int line = 0; line < lines; line++) {
            const uint8_t *stage = stages + cursor.stage * STAGE;
            barrier_wait(&s->full[cursor.stage], cursor.parity);
            fence_shared_for_products();
            const uint64_t rows = product_operand(stage + 2 * group * SUBTILE),
                           tokens = product_operand(stage + STAGE_ROWS);
            if constexpr (IS_FP8<CODES>) {
                const float *token_scales = (const float *)(stage + STAGE_ROWS + MAX * LINE);
#pragma unroll
                for (int t = 0; t < 2; t++) {
                    float part[N / 2];
                    products_begin();
                    add_line<true, N>(part, rows + t * (SUBTILE >> 4), tokens, false);
                    products_commit();
                    products_wait<0>();
                    pin(part);
                    if constexpr (BY_ROW<CODES>) {
                        add_part<N>(acc[t], part);
                    } else {
                        promote<N>(acc[t], part, token_scales, token_scales[MAX + 2 * group + t]);
                    }
                }
                if (!BY_ROW<CODES>) {
                    barrier_arrive(&s->empty[cursor.stage]); /* all lanes: each for the scales that it has read */
                } else if (line + 1 < lines) {               /* the last one has scales */
                    barrier_arrive(&s->empty[cursor.stage]);
                }
                previous = cursor.stage;
            } else {
                pin(acc[0]);
                pin(acc[1]);
                products_begin();
                if constexpr (IS_INT8<CODES>) {
                    add_line<N>(acc[0], rows, tokens, true);
                    add_line<N>(acc[1], rows + (SUBTILE >> 4), tokens, true);
                } else {
                    add_line<false, N>(acc[0], rows, tokens, true);
                    add_line<false, N>(acc[1], rows + (SUBTILE >> 4), tokens, true);
                }
                products_commit();
                if (N <= LONE_TOKENS) {
                    products_wait<0>();
                    if (CODES ? line + 1 < lines : lane == 0) {
                        barrier_arrive(&s->empty[cursor.stage]);
                    }
                    previous = cursor.stage;
                } else {
                    products_wait<1>();
                    if (previous >= 0 && (CODES || lane == 0)) {
                        barrier_arrive(&s->empty[previous]);
                    }
                    previous = cursor.stage;
                }
            }
            stage_cursor::next(cursor);
        }
        if (!IS_FP8<CODES>) {
            products_wait<0>();
            pin(acc[0]);
            pin(acc[1]);
        }
        auto write = [&](float(&low)[N / 2], float(&high)[N / 2]) {
            if (u->is_down) {
                if (step == 0) { /* their last readers have passed a barrier since, the next ones pass one first */
#pragma unroll
                    for (int k = 0; k < OWN; k++) {
                        if (own + 128 * k < u->count) {
                            places[own + 128 * k] = y_offset(p.e, pairs[k]);
                        }
                    }
                }
                write_down<N>(p, u, u->row + 256 * step, low, high, staging, places);
            } else {
                write_up<CODES, N>(p, u, low, high, staging);
            }
        };
        if constexpr (BY_ROW<CODES>) {
            float sums[2][N / 2];
            scale_sums<CODES, MAX, N>(p.e.slots[u->slot],
                                      (const float *)(stages + previous * STAGE + STAGE_ROWS + MAX * LINE), u->is_down,
                                      u->row, acc, sums);
            barrier_arrive(&s->empty[previous]); /* all lanes: each for the scales that it has read */
            write(sums[0], sums[1]);
        } else {
            if (!CODES && N > LONE_TOKENS && lane == 0) {
                barrier_arrive(&s->empty[previous]);
            }
            write(acc[0], acc[1]);
        }
    }
}

template <int MAX, int N> constexpr int at_most = N < MAX ? N : MAX;

template <int CODES, int MAX>
MF_DEV void consume(const mf_cuda_grouped &p, int tiles, uint8_t *stages, shared_state *s, uint8_t *staging)
{
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int i = 0;; i++) {
        unit_ref u = announced_unit(s, i);
        if (u->slot < 0) {
            leave_counters(p, tiles);
            return;
        }
        if (u->count <= 16) {
            multiply<CODES, MAX, at_most<MAX, 16>>(p, u, stages, s, cursor, staging);
        } else if (u->count <= 32) {
            multiply<CODES, MAX, at_most<MAX, 32>>(p, u, stages, s, cursor, staging);
        } else if (u->count <= 48) {
            multiply<CODES, MAX, at_most<MAX, 48>>(p, u, stages, s, cursor, staging);
        } else if ((MAX > 64 ? u->count <= 64 : true)) {
            multiply<CODES, MAX, at_most<MAX, 64>>(p, u, stages, s, cursor, staging);
        } else if ((MAX > 80 ? u->count <= 80 : true)) {
            multiply<CODES, MAX, at_most<MAX, 80>>(p, u, stages, s, cursor, staging);
        } else if ((MAX > 96 ? u->count <= 96 : true)) {
            multiply<CODES, MAX, at_most<MAX, 96>>(p, u, stages, s, cursor, staging);
        } else if ((MAX > 112 ? u->count <= 112 : true)) {
            multiply<CODES, MAX, at_most<MAX, 112>>(p, u, stages, s, cursor, staging);
        } else if ((MAX > 128 ? u->count <= 128 : true)) {
            multiply<CODES, MAX, at_most<MAX, 128>>(p, u, stages, s, cursor, staging);
        } else if ((MAX > 144 ? u->count <= 144 : true)) {
            multiply<CODES, MAX, at_most<MAX, 144>>(p, u, stages, s, cursor, staging);
        } else {
            multiply<CODES, MAX, at_most<MAX, 160>>(p, u, stages, s, cursor, staging);
        }
    }
}

/* ---- the order of work ---- */

/* A slot of so many tiles asks memory for its weights once and the L2 cache for the rest.  Were such slots the last
 * ones of w13 and of w2, as shared experts are by their numbers, memory would idle there: they come first.  (Dealt out
 * among the others they cost more than that at some sizes: lab/cuda/034.) */
constexpr int TALL_TILES = 4;

/* As scan_tiles, of slots in the order of work: prefix[i] of slot order[i]. */
MF_DEV void scan_order(const mf_cuda_grouped &p, int most, int32_t *offsets, int32_t *prefix, uint16_t *order,
                       int32_t *sums)
{
    constexpr int COUNT = 17, TILES = (1 << COUNT) - 1; /* of tall slots: how many, above the number of their tiles */
    static_assert(MF_CUDA_GROUPED_TILES <= TILES && MF_CUDA_GROUPED_SLOTS < 1 << (31 - COUNT), "both fit");
    const int slots = (int)p.e.num_slots, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    for (int i = tid; i <= slots; i += THREADS) {
        offsets[i] = p.offsets[i];
    }
    __syncthreads();
    const int each = (slots + THREADS - 1) / THREADS, from = tid * each, to = min(slots, from + each);
    auto tiles_at = [&](int i) { return tiles_of(offsets[i + 1] - offsets[i], most); };
    auto tall_at = [&](int i) {
        const int tiles = tiles_at(i);
        return tiles >= TALL_TILES ? 1 << COUNT | tiles : 0;
    };
    int32_t mine = 0, tall = 0;
    for (int i = from; i < to; i++) {
        mine += tiles_at(i);
        tall += tall_at(i);
    }
    const bool has_tall = __syncthreads_or(tall);
    int32_t before = sum_before(mine, lane, warp, sums), tall_before = 0, all_tall = 0;
    if (has_tall) {
        __syncthreads();
        tall_before = sum_before(tall, lane, warp, sums);
        __syncthreads();
        if (tid == THREADS - 1) {
            sums[0] = tall_before + tall;
        }
        __syncthreads();
        all_tall = sums[0];
    }
    for (int i = from; i < to; i++) {
        const int is_tall = tall_at(i), count = tall_before >> COUNT, tiles = tall_before & TILES;
        const int place = is_tall ? count : (all_tall >> COUNT) + i - count;
        prefix[place] = is_tall ? tiles : (all_tall & TILES) + before - tiles;
        order[place] = (uint16_t)i;
        before += tiles_at(i);
        tall_before += is_tall;
    }
    if (tid == THREADS - 1) {
        prefix[slots] = before;
    }
    __syncthreads();
}

/* ---- the warp that brings weights, and gives out work ---- */

template <int CODES, int MAX>
MF_DEV void bring_weights(const mf_cuda_grouped &p, const int32_t *offsets, const int32_t *prefix,
                          const uint16_t *order, uint32_t first_unit, uint8_t *stages, shared_state *s)
{
    constexpr int STAGE = stage_bytes<CODES, MAX>(), COLUMNS = CODES ? 128 : 64;
    const int slots = (int)p.e.num_slots;
    const uint32_t tiles = (uint32_t)prefix[slots], ups = tiles * (uint32_t)p.up_tiles,
                   units = ups + tiles * (uint32_t)p.down_units;
    stage_cursor cursor = { 0, p.stages, 1 };
    uint32_t next = first_unit;
    int made = 0;
    while (next < units) {
        const uint32_t claimed = claim_unit(p);
        const bool is_down = next >= ups;
        const uint32_t local = is_down ? next - ups : next, row_tiles = (uint32_t)(is_down ? p.down_units : p.up_tiles);
        const int at = slot_of(prefix, slots, (int)(local / row_tiles)), low = order[at];
        const uint32_t slot_tiles = (uint32_t)(prefix[at + 1] - prefix[at]),
                       inside = local - (uint32_t)prefix[at] * row_tiles;
        const int row_tile = (int)(inside / slot_tiles), tile = (int)(inside % slot_tiles);
        const int begin = offsets[low], count = offsets[low + 1] - begin, size = tile_size(count, (int)slot_tiles);
        const mf_cuda_slot &slot = p.e.slots[low];
        unit u;
        u.slot = low;
        u.is_down = is_down;
        u.first = begin + tile * size;
        u.count = min(size, count - tile * size);
        const int width = p.width > 0 ? p.width : (int)slot.up.n;
        u.steps = is_down ? min(p.down_steps, p.down_tiles - row_tile * p.down_steps) : 1;
        u.row = row_tile * (is_down ? 256 * p.down_steps : 128);
        u.lines = (is_down ? width : (int)p.e.hidden_size) / COLUMNS;
        u.tile = prefix[at] + tile;
        u.need = (width + 127) / 128 + BY_ROW<CODES>;
        if (u.count > 0 && (is_down || u.row < width)) {
            const CUtensorMap *m0 = map_of(p, low, is_down ? 2 : 0, MF_CUDA_BOX_LONG),
                              *m1 = map_of(p, low, is_down ? 2 : 1, MF_CUDA_BOX_LONG);
            /* Nobody else reads them: what tokens and results are read again from stays in the cache. */
            const bool once = slot_tiles == 1 && (!CODES || p.e.num_pairs <= MF_CUDA_PREPARE_PAIRS);
            const uint64_t policy = once ? EVICT_FIRST : EVICT_NORMAL;
            int line = 0, first = u.row;
            auto begin = [&]() {
                barrier_wait(&s->empty[cursor.stage], cursor.parity);
                barrier_expect(&s->full[cursor.stage], STAGE_ROWS);
                const int stage = cursor.stage;
                stage_cursor::next(cursor);
                return stage;
            };
            auto bring = [&](int stage, int k, int line_of) {
                uint8_t *to = stages + stage * STAGE + k * SUBTILE;
                const CUtensorMap *map = k & 1 ? m1 : m0;
                const int row = first + 64 * (is_down ? k : k >> 1);
                if (MAX <= SMALL_TOKENS) {
                    copy_box_by(to, map, row, line_of, &s->full[stage], policy);
                } else if (once) {
                    copy_box_once(to, map, row, line_of, &s->full[stage]);
                } else {
                    copy_box(to, map, row, line_of, &s->full[stage]);
                }
            };
            barrier_wait(&s->empty[cursor.stage], cursor.parity);
            announce(s, made++, u);
            for (int left = u.steps * u.lines; left > 0;) {
                const int stage = begin();
                if (MAX <= SMALL_TOKENS && line + 1 < u.lines) {
                    const int other = begin();
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        bring(stage, k, line);
                        bring(other, k, line + 1);
                    }
                    line++;
                    left--;
                } else {
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        bring(stage, k, line);
                    }
                }
                left--;
                if (++line == u.lines) {
                    line = 0;
                    first += 256;
                }
            }
        }
        next = claimed;
    }
    barrier_wait(&s->empty[cursor.stage], cursor.parity);
    announce_end(s, made);
    barrier_arrive(&s->full[cursor.stage]);
}

/* ---- the warps that gather tokens ---- */

/* Scales of a warpgroup's rows: of gate and up, or of w2's, one per line; NULL: rows past the last. */
MF_DEV const float *weight_scales(const mf_cuda_grouped &p, unit_ref u, int step, int group, int half)
{
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const mf_cuda_matrix &m = u->is_down ? slot.down : half ? slot.up : slot.gate;
    const int64_t row = u->is_down ? u->row + 256 * step + 128 * group : u->row;
    return row < m.n ? (const float *)m.scale + row / 128 * m.scale_row_stride : nullptr;
}

template <int CODES, int MAX> MF_DEV void gather(const mf_cuda_grouped &p, uint8_t *stages, shared_state *s)
{
    constexpr int STAGE = stage_bytes<CODES, MAX>(), APART = GATHERERS / 8, EACH = (MAX + APART - 1) / APART;
    static_assert(APART == 12, "every other row of a thread's is swizzled alike");
    const int tid = threadIdx.x - 32, chunk = tid & 7, first_row = tid >> 3;
    const uint32_t tokens = shared_address(stages + STAGE_ROWS),
                   own[2] = { tokens + swizzled(first_row, chunk), tokens + (swizzled(first_row, chunk) ^ 64) };
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int n = 0;; n++) {
        unit_ref u = announced_unit(s, n);
        if (u->slot < 0) {
            barrier_arrive(&s->full[cursor.stage]);
            return;
        }
        const bool is_down = u->is_down != 0;
        const int first = u->first, count = u->count, lines = u->lines, steps = u->steps;
        auto row_of = [&](int t) {
            return is_down ? (uint32_t)(first + t) : (uint32_t)__ldg(p.sorted + first + t) / (uint32_t)p.e.num_columns;
        };
        const uint32_t pitch = (uint32_t)((is_down ? p.h_pitch : p.x_pitch) / 16);
        uint32_t
            at[EACH]; /* where this thread's rows begin, in 16 bytes: in registers, lest every copy wait for a table */
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int t = first_row + APART * k;
            at[k] = t < count ? row_of(t) * pitch : 0;
        }
        constexpr int SCALES = (MAX + GATHERERS - 1) / GATHERERS;
        uint32_t scale_at[SCALES];
#pragma unroll
        for (int k = 0; CODES && k < SCALES; k++) {
            const int t = tid + GATHERERS * k;
            const uint32_t groups = BY_ROW<CODES> ? 1u : (uint32_t)(is_down ? p.h_groups : p.x_groups);
            scale_at[k] = t < count ? row_of(t) * groups : 0;
        }
        const int row0 = u->row;
        if (is_down) {
            while (load_acquire(p.work + MF_CUDA_WORK_TILES + u->tile) < (uint32_t)u->need) {
            }
        }
        for (int step = 0; step < steps; step++) {
            if (BY_ROW<CODES>) {
                prefetch_scale_rows(p.e.slots[u->slot], is_down, row0 + 256 * step, tid);
            }
            const float *weight_scale =
                CODES == MF_CUDA_CODES_FP8_BLOCK && tid < 4 ? weight_scales(p, u, step, tid >> 1, tid & 1) : nullptr;
            for (int line = 0; line < lines; line++) {
                if (step + line > 0) {
                    barrier_wait(&s->empty[cursor.stage], cursor.parity ^ 1);
                }
                const uint8_t *from = (is_down ? p.h_bytes : p.x_bytes) + chunk * 16 + line * LINE;
                const uint32_t to[2] = { own[0] + cursor.stage * STAGE, own[1] + cursor.stage * STAGE };
#pragma unroll
                for (int k = 0; k < EACH; k++) {
                    if (first_row + APART * k < count) {
                        if (MAX <= SMALL_TOKENS) {
                            copy_async_kept_at(to[k & 1] + APART * k * LINE, from + (uint64_t)at[k] * 16);
                        } else {
                            copy_async_at(to[k & 1] + APART * k * LINE, from + (uint64_t)at[k] * 16, 16);
                        }
                    }
                }
                if (BY_ROW<CODES> ? line + 1 == lines : CODES != MF_CUDA_CODES_NONE) {
                    const float *scales_from = (is_down ? p.h_scales : p.x_scales) + (BY_ROW<CODES> ? 0 : line);
                    const uint32_t scales = tokens + cursor.stage * STAGE + MAX * LINE + tid * 4;
#pragma unroll
                    for (int k = 0; k < SCALES; k++) {
                        if (tid + GATHERERS * k < count) {
                            copy_word_async_at(scales + GATHERERS * k * 4, scales_from + scale_at[k]);
                        }
                    }
                    if (weight_scale) {
                        copy_word_async_at(scales + MAX * 4, weight_scale + line);
                    }
                    if (BY_ROW<CODES>) {
                        copy_scale_rows<GATHERERS>(p.e.slots[u->slot], is_down, row0 + 256 * step, tid,
                                                   scales - tid * 4 + MAX * 4);
                    }
                }
                barrier_arrive_after_copies(&s->full[cursor.stage]);
                stage_cursor::next(cursor);
            }
        }
    }
}

template <int CODES, int MAX>
__global__ void __launch_bounds__(THREADS, 1) grouped_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[]; /* no other shared memory: it begins at a swizzle atom */
    uint8_t *staging = stages + p.stages * stage_bytes<CODES, MAX>();
    shared_state *s = (shared_state *)(staging + STAGING + 2 * MAX * 8);
    int32_t *offsets = (int32_t *)(s + 1), *prefix = offsets + p.e.num_slots + 1;
    uint16_t *order = (uint16_t *)(prefix + p.e.num_slots + 1);
    if (threadIdx.x == 0) {
        init_state(s, p.stages, CODES ? 256 : 8);
    }
    wait_for_previous();
    let_next_start(); /* after the wait: who starts now may read what was written before this launch */
    uint32_t first = threadIdx.x == 0 ? claim_unit(p) : 0;
    scan_order(p, MAX, offsets, prefix, order, s->sums);
    if (threadIdx.x < PRODUCERS) {
        give_registers<GATHERING_REGISTERS>();
        if (threadIdx.x < 32) {
            first = __shfl_sync(MF_FULL_WARP, first, 0); /* whichever lane is elected */
            if (is_elected()) {
                bring_weights<CODES, MAX>(p, offsets, prefix, order, first, stages, s);
            }
        } else {
            gather<CODES, MAX>(p, stages, s);
        }
    } else {
        take_registers<MULTIPLYING_REGISTERS>();
        zero_strangers(p);
        consume<CODES, MAX>(p, prefix[p.e.num_slots], stages, s, staging);
    }
}

template <int CODES, int MAX> int launch(const mf_cuda_grouped *call, cudaStream_t stream)
{
    const auto kernel = grouped_kernel<CODES, MAX>;
    const size_t bytes = (size_t)call->stages * stage_bytes<CODES, MAX>() + STAGING + 2 * MAX * 8 +
                         sizeof(shared_state) + ((size_t)call->e.num_slots + 1) * 10;
    return launch_shared(true, kernel, dim3((unsigned)call->blocks), THREADS, bytes, stream, *call);
}

template <int CODES, int MOST> int launch_most(const mf_cuda_grouped *call, cudaStream_t stream)
{
    return call->max_tokens == 64 ? launch<CODES, 64>(call, stream) : launch<CODES, MOST>(call, stream);
}

} // namespace

int mf_cuda_launch_grouped(const mf_cuda_grouped *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    switch (call->codes) {
    case MF_CUDA_CODES_NONE:
        return call->max_tokens == MF_CUDA_GROUPED_SOME ? launch<MF_CUDA_CODES_NONE, MF_CUDA_GROUPED_SOME>(call, s)
                                                        : launch_most<MF_CUDA_CODES_NONE, 160>(call, s);
    case MF_CUDA_CODES_FP8_BLOCK:
        return launch_most<MF_CUDA_CODES_FP8_BLOCK, 128>(call, s);
    case MF_CUDA_CODES_FP8_ROW:
        return launch_most<MF_CUDA_CODES_FP8_ROW, 128>(call, s);
    default:
        return launch_most<MF_CUDA_CODES_INT8_ROW, 128>(call, s);
    }
}
