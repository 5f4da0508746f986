/* grouped_rows.cu - experts of 8-bit codes on Hopper where slots have many tokens: both grouped products in one launch,
 * tiles of 128 tokens by 256 weight rows of one slot.
 *
 * Tokens are the products' 64-row operand, a warpgroup's 64 of the tile, and weights its columns: a thread then meets
 * two tokens' scales and one of the weights a part, where grouped.cu's meets the scales of all tokens; a thread's rows
 * hold whole groups of 128 columns of the intermediate together with three neighbours, so that a warpgroup quantises
 * alone; and a warp writes its own tokens' rows of the output.  The tensor cores give the same bits in either role.
 * Where a token's scale is that of its whole row, the intermediate is written as bf16, and the warpgroup that comes
 * last with its 64 tokens of a tile makes codes of them (row_codes.cuh).
 *
 * Units (slot, tokens, rows) are claimed one after the other from a counter.  Tiles go in groups, w2's units of a group
 * behind w13's of the next one: when they are claimed, what they wait for is done or nearly so, and the stores of the
 * output are spread over the whole launch.  A unit waits only for units claimed before it, so any number of resident
 * blocks ends. */
#include "kernels/cuda/row_codes.cuh"

namespace
{

constexpr int TILE = MF_CUDA_ROWS_TOKENS, ROWS = 256, STAGE_TOKENS = ROWS * LINE;
constexpr int STAGE_SCALES = STAGE_TOKENS + TILE * LINE; /* a token's each, then weights': two, or a row's each */
template <int CODES> constexpr int STAGE = STAGE_SCALES + (BY_ROW<CODES> ? 2 : 1) * SCALE_BYTES;
constexpr int RING = 2 * TILE * 16; /* tokens' scales of blocks, two times four lines' */
static_assert(TILE * 4 + ROWS * 4 <= 2 * SCALE_BYTES, "row scales fit");

/* A block's first warp brings weights, the second says what has landed, two gather tokens. */
constexpr int RELAY = 32, FIRST_GATHERER = 64, NUM_GATHERERS = 64;
constexpr int OTHERS_REGISTERS = 72, MULTIPLIERS_REGISTERS = 216; /* a gathering thread holds the places of 16 rows */
constexpr int APART = NUM_GATHERERS / 8;                          /* rows that a gathering thread has a part of */

struct rows_state : shared_state {
    uint64_t landed[STAGES_AT_MOST]; /* tokens and scales */
    int32_t is_last[2];              /* a warpgroup's: end_up */
};

/* An operand of products from the lower half of its descriptor: what a warp's lanes have in common, so that it is made
 * where the instruction wants it. */
MF_DEV uint32_t operand_place(uint32_t shared)
{
    return __reduce_or_sync(MF_FULL_WARP, (shared & 0x3ffffu) >> 4 | 1u << 16);
}

/* A tile's counter: units of w13 that the first warpgroup has written, in its upper half those of the second one; with
 * row scales one more when the codes are made. */
constexpr uint32_t SECOND_GROUP = 1u << 16, BOTH_GROUPS = 1 + SECOND_GROUP;

constexpr uint32_t NOWHERE = 0xffffffff;

MF_DEV float load_shared(uint32_t at)
{
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
    return v;
}

MF_DEV uint64_t operand_at(uint32_t place)
{
    return product_operand(nullptr) >> 32 << 32 | place;
}

/* ---- units ---- */

/* w2's units of the last group have few steps: with seven of them blocks end up to 20 us after one another. */
constexpr int LAST_STEPS = 2;

/* What the n-th claim is: w13's first group of tiles, then by turns w13 of a group and w2 of the one before.  Full
 * groups come last; of the first one tiles are missing, they are below 0. */
struct place_in_order {
    bool is_down;
    int64_t tile;
    int row_tile, steps; /* w2: in units of so many row tiles */
};

struct order {
    int64_t group, up_tiles, down_units, missing;
    int64_t last, units; /* claims before w2 of the last group, and of all */
    int down_steps, last_steps;
};

MF_DEV order order_of(const mf_cuda_grouped &p, int tiles)
{
    order o;
    o.group = p.rows_group;
    o.up_tiles = p.up_tiles;
    o.down_units = p.down_units;
    o.down_steps = p.down_steps;
    o.last_steps = min(LAST_STEPS, p.down_steps);
    const int64_t groups = (max(tiles, 1) + o.group - 1) / o.group;
    o.missing = groups * o.group - tiles;
    o.last = o.group * (o.up_tiles + (groups - 1) * (o.up_tiles + o.down_units));
    o.units = o.last + o.group * ((p.down_tiles + o.last_steps - 1) / o.last_steps);
    return o;
}

MF_DEV place_in_order place_of(const order &o, int64_t n)
{
    const int64_t ups = o.group * o.up_tiles, both = ups + o.group * o.down_units;
    int64_t at = 0;
    place_in_order r;
    r.is_down = n >= ups;
    r.steps = o.down_steps;
    if (n >= o.last) {
        at = (o.last - ups) / both;
        n -= o.last;
        r.steps = o.last_steps;
    } else if (n >= ups) {
        at = (n - ups) / both;
        n = (n - ups) % both;
        r.is_down = n >= ups;
        n -= r.is_down ? ups : 0;
        at += r.is_down ? 0 : 1;
    }
    r.tile = at * o.group + n % o.group - o.missing;
    r.row_tile = (int)(n / o.group);
    return r;
}

/* ---- the warp that brings weights, and gives out work ---- */

template <int CODES>
MF_DEV void bring_weights(const mf_cuda_grouped &p, const int32_t *offsets, const int32_t *prefix, uint32_t first,
                          uint8_t *stages, shared_state *s)
{
    const int slots = (int)p.e.num_slots, tiles = prefix[slots];
    const order o = order_of(p, tiles);
    stage_cursor cursor = { 0, p.stages, 1 };
    int64_t next = first;
    int made = 0;
    while (next < o.units) {
        const uint32_t claimed = claim_unit(p);
        const place_in_order at = place_of(o, next);
        next = claimed;
        if (at.tile < 0) {
            continue;
        }
        const int low = slot_of(prefix, slots, at.tile);
        const int inside = (int)at.tile - prefix[low], count = offsets[low + 1] - offsets[low];
        const int width = p.width > 0 ? p.width : (int)p.e.slots[low].up.n;
        unit u;
        u.slot = low;
        u.is_down = at.is_down;
        u.first = offsets[low] + inside * TILE;
        u.count = min(TILE, count - inside * TILE);
        u.steps = at.is_down ? min(at.steps, p.down_tiles - at.row_tile * at.steps) : 1;
        u.row = at.row_tile * (at.is_down ? ROWS * at.steps : ROWS / 2);
        u.lines = (at.is_down ? width : (int)p.e.hidden_size) / LINE;
        u.tile = (int)at.tile;
        u.need = ((width + 127) / 128 + BY_ROW<CODES>)*BOTH_GROUPS;
        if (!at.is_down && u.row >= width) {
            continue;
        }
        const CUtensorMap *m0 = map_of(p, low, at.is_down ? 2 : 0, MF_CUDA_BOX_TURNED),
                          *m1 = map_of(p, low, at.is_down ? 2 : 1, MF_CUDA_BOX_TURNED);
        const int stages_used = u.steps * u.lines, second = at.is_down ? 128 : 0;
        for (int i = 0, line = 0, first = u.row; i < stages_used; i++) {
            barrier_wait(&s->empty[cursor.stage], cursor.parity);
            if (i == 0) {
                announce(s, made++, u);
            }
            uint64_t *full = &s->full[cursor.stage];
            uint8_t *to = stages + cursor.stage * STAGE<CODES>;
            barrier_expect(full, STAGE_TOKENS);
            copy_turned_box(to, m0, first / 32, line * LINE, full);
            copy_turned_box(to + 2 * SUBTILE, m1, (first + second) / 32, line * LINE, full);
            stage_cursor::next(cursor);
            if (++line == u.lines) {
                line = 0;
                first += ROWS;
            }
        }
    }
    barrier_wait(&s->empty[cursor.stage], cursor.parity);
    announce_end(s, made);
    barrier_arrive(&s->full[cursor.stage]);
}

/* ---- the warps that gather tokens ---- */

/* Scales of x four lines at a time, in one piece of 16 bytes a token. */
MF_DEV bool has_wide_scales(const mf_cuda_grouped &p)
{
    return p.x_groups % 4 == 0;
}

/* 16 bytes each to places APART rows apart; zeros, which cost less power than what was there, where `there` has no bit.
 * A thread has sixteen of these copies a line: with few registers, and its place worked out anew for each, they take
 * longer than the line's products. */
MF_PTX void copy_four(uint32_t to, const uint8_t *const (&from)[4], uint32_t there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %5;\n"
                 "cp.async.cg.shared.global [%0 + %9], [%2], 16, %6;\n"
                 "cp.async.cg.shared.global [%0 + %10], [%3], 16, %7;\n"
                 "cp.async.cg.shared.global [%0 + %11], [%4], 16, %8;" ::"r"(to),
                 "l"(from[0]), "l"(from[1]), "l"(from[2]), "l"(from[3]), "r"(there & 1 ? 16 : 0),
                 "r"(there & 2 ? 16 : 0), "r"(there & 4 ? 16 : 0), "r"(there & 8 ? 16 : 0), "n"(APART * LINE),
                 "n"(2 * APART * LINE), "n"(3 * APART * LINE)
                 : "memory");
}

template <int CODES> MF_DEV void gather(const mf_cuda_grouped &p, uint8_t *ring, uint8_t *stages, rows_state *s)
{
    constexpr int EACH = TILE / APART; /* rows of a line, from first_row on */
    const int tid = threadIdx.x - FIRST_GATHERER, chunk = tid & 7, first_row = tid >> 3;
    const uint32_t own = shared_address(stages + STAGE_TOKENS) + swizzled(first_row, chunk);
    const uint32_t own_scales = shared_address(stages + STAGE_SCALES) + tid * 4,
                   own_ring = shared_address(ring) + tid * 16;
    stage_cursor cursor = { 0, p.stages, 0 };
    int half = 0; /* of the ring */
    for (int n = 0;; n++) {
        unit_ref u = announced_unit(s, n);
        if (u->slot < 0) {
            barrier_arrive(&s->landed[cursor.stage]);
            return;
        }
        const bool is_down = u->is_down != 0, wide = !BY_ROW<CODES> && !is_down && has_wide_scales(p);
        const uint32_t pitch = (uint32_t)(is_down ? p.h_pitch : p.x_pitch);
        const int count = u->count, first = u->first;
        auto row_of = [&](int t) {
            const int pos = first + min(t, count - 1);
            return is_down ? (uint32_t)pos : (uint32_t)p.sorted[pos] / (uint32_t)p.e.num_columns;
        };
        uint32_t at[EACH], there = 0; /* where this thread's pieces of the rows begin */
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            at[k] = row_of(first_row + APART * k) * pitch + chunk * 16;
            there |= (first_row + APART * k < count ? 1u : 0u) << k;
        }
        const uint32_t per_row = BY_ROW<CODES> ? 1u : (uint32_t)(is_down ? p.h_groups : p.x_groups);
        const uint32_t scales_at[2] = { row_of(tid) * per_row, row_of(tid + NUM_GATHERERS) * per_row };
        const int row0 = u->row;
        if (is_down) {
            while (load_acquire(p.work + MF_CUDA_WORK_TILES + u->tile) != (uint32_t)u->need) {
            }
        }
        const int lines = u->lines, total = u->steps * lines;
        /* Where lines divide stages a stage meets the same line of the same tokens in each step: they stay there. */
        const int copied = p.stages % lines == 0 ? min(total, p.stages) : total;
        const float *weight_scales = nullptr; /* of two threads */
        for (int i = 0, line = 0; i < total; i++) {
            if (i > 0) {
                barrier_wait(&s->empty[cursor.stage], cursor.parity ^ 1);
            }
            const uint32_t to = own + cursor.stage * STAGE<CODES>;
            if (i < copied) {
                const uint8_t *from = (is_down ? p.h_bytes : p.x_bytes) + line * LINE;
#pragma unroll
                for (int k = 0; k < EACH; k += 4) { /* the half that nobody multiplies stays what it was */
                    const uint8_t *const rows[4] = { from + at[k], from + at[k + 1], from + at[k + 2],
                                                     from + at[k + 3] };
                    if (APART * k < 64 || count > 64) {
                        copy_four(to + APART * k * LINE, rows, there >> k);
                    }
                }
            }
            const float *scales_from = (is_down ? p.h_scales : p.x_scales) + (BY_ROW<CODES> ? 0 : line);
            const uint32_t stage_scales = own_scales + cursor.stage * STAGE<CODES>;
            if (BY_ROW<CODES>) { /* for the end of the step */
                const int rows_at = row0 + i / lines * ROWS;
                if (line == 0) {
                    prefetch_scale_rows(p.e.slots[u->slot], is_down, rows_at, tid);
                }
                if (line + 1 == lines) {
                    copy_word_async_at(stage_scales, scales_from + scales_at[0]);
                    copy_word_async_at(stage_scales + NUM_GATHERERS * 4, scales_from + scales_at[1]);
                    copy_scale_rows<NUM_GATHERERS>(p.e.slots[u->slot], is_down, rows_at, tid,
                                                   stage_scales - tid * 4 + TILE * 4);
                }
            } else if (wide && (line & 3) == 0) { /* four lines'; with four stages nobody reads what this half held */
                copy_async_at(own_ring + half, scales_from + scales_at[0], 16);
                copy_async_at(own_ring + half + NUM_GATHERERS * 16, scales_from + scales_at[1], 16);
                half ^= TILE * 16;
            } else if (!wide && i < copied) {
                copy_word_async_at(stage_scales, scales_from + scales_at[0]);
                copy_word_async_at(stage_scales + NUM_GATHERERS * 4, scales_from + scales_at[1]);
            }
            if (!BY_ROW<CODES> && tid < 2) {
                if (line == 0) {
                    const mf_cuda_slot &slot = p.e.slots[u->slot];
                    const mf_cuda_matrix &weights = is_down ? slot.down : tid == 0 ? slot.gate : slot.up;
                    const int block = u->row / 128 + (is_down ? 2 * (i / lines) + tid : 0),
                              last = (int)(weights.n - 1) / 128;
                    weight_scales =
                        (const float *)weights.scale +
                        (int64_t)min(block, last) * weights.scale_row_stride; /* rows past the last one: any */
                }
                copy_word_async_at(stage_scales + TILE * 4, weight_scales + line);
            }
            barrier_arrive_after_copies(&s->landed[cursor.stage]);
            stage_cursor::next(cursor);
            line = line + 1 == lines ? 0 : line + 1;
        }
    }
}

/* One thread: what cp.async has brought to a stage is the products', too.  It has no copies under way itself, for which
 * the fence would wait, and the multiplying warps need none. */
MF_DEV void relay(rows_state *s, int stages)
{
    stage_cursor cursor = { 0, stages, 0 };
    for (int n = 0;; n++) {
        unit_ref u = announced_unit(s, n);
        const bool is_last = u->slot < 0;
        const int total = is_last ? 1 : u->steps * u->lines;
        for (int i = 0; i < total; i++) {
            barrier_wait(&s->landed[cursor.stage], cursor.parity);
            fence_shared_for_products();
            barrier_arrive(&s->full[cursor.stage]);
            stage_cursor::next(cursor);
        }
        if (is_last) {
            return;
        }
    }
}

/* ---- the two warpgroups that multiply ---- */

/* Of 128 rows of weights, those whose sums a lane has at 4 i, 4 i + 1 (its first token) and 4 i + 2, 4 i + 3 (its
 * second one): this and the next.  The tensor map has turned them, so that four i are eight rows in one piece. */
MF_DEV int column_of(int i, int q)
{
    return (i >> 2) * 32 + 8 * q + (i & 3) * 2;
}

/* 64 tokens by 128 rows of the intermediate: activation, bf16 and, of blocks, codes and a scale per token.  A token's
 * columns are four lanes'.  PLAIN: SiLU without biases, which is less code. */
template <int CODES, bool PLAIN>
MF_DEV void write_up(const mf_cuda_grouped &p, unit_ref u, const mf_cuda_slot &slot, float (&gate)[64], float (&up)[64])
{
    const int tid = threadIdx.x - PRODUCERS, lane = tid & 31, q = lane & 3;
    const int token = (tid >> 5) * 16 + (lane >> 2), row = u->row;
    const swiglu act = PLAIN ? swiglu_of(MF_ACT_SILU, 0.0f, 1.0f) : swiglu_of(slot);
    if (!PLAIN && (slot.gate_bias || slot.up_bias)) {
#pragma unroll
        for (int i = 0; i < 16; i++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int r = row + column_of(i, q) + e;
                const float gb = slot.gate_bias ? slot.gate_bias[r] : 0.0f, ub = slot.up_bias ? slot.up_bias[r] : 0.0f;
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    gate[4 * i + 2 * k + e] = __fadd_rn(gate[4 * i + 2 * k + e], gb);
                    up[4 * i + 2 * k + e] = __fadd_rn(up[4 * i + 2 * k + e], ub);
                }
            }
        }
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {        /* tokens `token` and token + 8 */
        uint32_t pairs[16], largest = 0; /* two at a time, as 16 bits each */
        const int64_t pos = u->first + token + 8 * k;
        const bool is_there = token + 8 * k < u->count;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int at = 4 * i + 2 * k;
            pairs[i] = pack_bf16(apply(act, gate[at], up[at]), apply(act, gate[at + 1], up[at + 1]));
            largest = __vmaxu2(largest, pairs[i] & 0x7fff7fffu);
        }
        if constexpr (BY_ROW<CODES>) {
            uint16_t *to = (uint16_t *)p.e.h + pos * p.e.h_stride + row + 8 * q;
#pragma unroll
            for (int m = 0; m < 4; m++) {
                if (is_there) {
                    *(uint4 *)(to + 32 * m) =
                        make_uint4(pairs[4 * m], pairs[4 * m + 1], pairs[4 * m + 2], pairs[4 * m + 3]);
                }
            }
            continue;
        }
        largest = __vmaxu2(largest, __shfl_xor_sync(MF_FULL_WARP, largest, 1));
        largest = __vmaxu2(largest, __shfl_xor_sync(MF_FULL_WARP, largest, 2));
        const float scale =
            quant_scale(QUANT_FP8_GROUP, 0.0f, p.e.e8m0, __uint_as_float(max(largest << 16, largest & 0xffff0000u)));
        auto codes = [&](auto divide) {
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const float a = __uint_as_float(pairs[i] << 16), b = __uint_as_float(pairs[i] & 0xffff0000u);
                pairs[i] = __nv_cvt_float2_to_fp8x2(make_float2(divide(a), divide(b)), __NV_SATFINITE, __NV_E4M3);
            }
        };
        if (scale < __uint_as_float(0x7f800000u)) {
            const float r = __frcp_rn(scale);
            codes([&](float x) { return divided(x, scale, r); });
        } else {
            codes([&](float x) { return __fdividef(x, scale); }); /* finite / inf, or NaN */
        }
        uint8_t *to = p.h_codes + pos * p.e.h_stride + row + 8 * q;
#pragma unroll
        for (int m = 0; m < 4; m++) {
            if (is_there) {
                *(uint2 *)(to + 32 * m) =
                    make_uint2(pairs[4 * m] | pairs[4 * m + 1] << 16, pairs[4 * m + 2] | pairs[4 * m + 3] << 16);
            }
        }
        if (is_there && q == 0) {
            p.h_scales[pos * p.h_groups + row / 128] = scale;
        }
    }
}

/* This warpgroup has written its part of a unit of w13, or has none.  is_last: a word of its own in shared memory. */
template <int CODES> MF_DEV void end_up(const mf_cuda_grouped &p, unit_ref u, int group, volatile int32_t *is_last)
{
    uint32_t *counter = p.work + MF_CUDA_WORK_TILES + u->tile;
    const uint32_t one = group ? SECOND_GROUP : 1;
    own_barrier(group);
    if constexpr (BY_ROW<CODES>) {
        if ((threadIdx.x & 127) == 0) {
            *is_last = add_acquire_release(counter, one) / one % SECOND_GROUP + 2 == (uint32_t)u->need % SECOND_GROUP;
        }
        own_barrier(group);
        if (!*is_last) {
            return;
        }
        quantise_intermediate<CODES, 4>(p, u->first + 64 * group, min(64, u->count - 64 * group),
                                        (int)p.e.slots[u->slot].up.n, threadIdx.x >> 5 & 3, 4);
        own_barrier(group);
    }
    if ((threadIdx.x & 127) == 0) { /* released for all: the barrier put their stores before it */
        add_release(counter, one);
    }
}

/* 16 tokens by 256 columns of the output, a warp's: 64 bytes of a token in one piece, four lanes' 16. */
MF_DEV void write_down(const mf_cuda_grouped &p, const float *bias, int row, float (&low)[64], float (&high)[64],
                       const uint32_t (&to)[2])
{
    const int q = threadIdx.x & 3, hidden = (int)p.e.hidden_size;
    if (bias) {
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float(&v)[64] = i < 16 ? low : high;
            const int column = row + 128 * (i >> 4) + column_of(i & 15, q), at = 4 * (i & 15);
            const float b0 = column < hidden ? bias[column] : 0.0f, b1 = column < hidden ? bias[column + 1] : 0.0f;
            v[at] = __fadd_rn(v[at], b0);
            v[at + 1] = __fadd_rn(v[at + 1], b1);
            v[at + 2] = __fadd_rn(v[at + 2], b0);
            v[at + 3] = __fadd_rn(v[at + 3], b1);
        }
    }
#pragma unroll
    for (int t = 0; t < 2; t++) {
        float(&v)[64] = t ? high : low;
        if (row + 128 * t >= hidden) {
            break;
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            if (to[k] != NOWHERE) {
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    const int at = 16 * m + 2 * k;
                    *((uint4 *)p.e.y + to[k] + (row + 128 * t + 32 * m) / 8) =
                        make_uint4(pack_bf16(v[at], v[at + 1]), pack_bf16(v[at + 4], v[at + 5]),
                                   pack_bf16(v[at + 8], v[at + 9]), pack_bf16(v[at + 12], v[at + 13]));
                }
            }
        }
    }
}

/* acc += part * (token scale * weight scale), for a lane's two tokens. */
MF_DEV void promote_rows(float (&acc)[64], const float (&part)[64], float low, float high)
{
#pragma unroll
    for (int i = 0; i < 16; i++) {
        acc[4 * i] = __fmaf_rn(part[4 * i], low, acc[4 * i]);
        acc[4 * i + 1] = __fmaf_rn(part[4 * i + 1], low, acc[4 * i + 1]);
        acc[4 * i + 2] = __fmaf_rn(part[4 * i + 2], high, acc[4 * i + 2]);
        acc[4 * i + 3] = __fmaf_rn(part[4 * i + 3], high, acc[4 * i + 3]);
    }
}

/* Sums of two times 128 rows of weights times their scales and those of a lane's two tokens. */
template <int CODES>
MF_DEV void scale_sums(const mf_cuda_slot &slot, bool is_down, int row0, uint32_t scales, int token,
                       const sum_type<CODES> (&acc)[2][64], float (&sums)[2][64])
{
    const int q = threadIdx.x & 3;
    const float low = load_shared(scales + token * 4), high = load_shared(scales + (token + 8) * 4);
    const scale_reader readers[2] = { reader_of(is_down ? slot.down : slot.gate, row0),
                                      reader_of(is_down ? slot.down : slot.up, row0) };
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int t = i >> 5, at = i >> 1 & 15, e = i & 1; /* sums 4 at + e and 4 at + 2 + e */
        const float w = read_scale(readers[t], e, load_shared(scales + (TILE + 128 * t + column_of(at, q) + e) * 4));
        sums[t][4 * at + e] = scaled_sum<CODES>(acc[t][4 * at + e], low, w);
        sums[t][4 * at + 2 + e] = scaled_sum<CODES>(acc[t][4 * at + 2 + e], high, w);
    }
}

template <int CODES>
MF_DEV void consume(const mf_cuda_grouped &p, int tiles, uint8_t *stages, rows_state *s, const uint8_t *ring)
{
    stage_cursor cursor = { 0, p.stages, 0 };
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, lane = tid & 31, token = (tid >> 5) * 16 + (lane >> 2);
    const bool arrives = BY_ROW<CODES> || lane == 0; /* all lanes: each for the scales that it has read */
    int half = 0;                                    /* of the ring */
    const uint32_t first_stage = shared_address(stages), ring_token = shared_address(ring) + token * 16;
    for (int n = 0;; n++) {
        barrier_wait(&s->full[cursor.stage], cursor.parity);
        unit_ref u = &s->units[n % UNITS];
        if (u->slot < 0) {
            leave_counters(p, tiles);
            return;
        }
        const bool is_down = u->is_down != 0;
        const int lines = u->lines, steps = u->steps, count = u->count;
        const bool wide = !BY_ROW<CODES> && !is_down && has_wide_scales(p);
        if (64 * group >= count) {
#pragma unroll 1
            for (int i = 0; i < lines * steps; i++) {
                barrier_wait(&s->full[cursor.stage], cursor.parity);
                if (arrives) {
                    barrier_arrive(&s->empty[cursor.stage]);
                }
                stage_cursor::next(cursor);
            }
            if (wide) {
                half ^= lines / 4 % 2 * TILE * 16;
            }
            if (!is_down) {
                end_up<CODES>(p, u, group, &s->is_last[group]);
            }
            continue;
        }
        const uint32_t scales_at = wide ? ring_token : token * 4 + STAGE_SCALES;
        const uint32_t second = wide ? 8 * 16 : 8 * 4;
        uint32_t to[2]; /* in 16 bytes of y */
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int t = token + 8 * k;
            to[k] = is_down && t < count ? (uint32_t)(y_offset(p.e, __ldg(p.sorted + u->first + t)) / 8) + (lane & 3)
                                         : NOWHERE;
        }
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            sum_type<CODES> acc[2][64];
            int last = 0; /* stage of the step */
#pragma unroll
            for (int i = 0; i < 64; i++) {
                acc[0][i] = acc[1][i] = 0;
            }
#pragma unroll 1
            for (int line = 0; line < lines; line++) {
                const uint32_t stage = first_stage + cursor.stage * STAGE<CODES>;
                const uint32_t rows = operand_place(stage);
                const uint32_t tokens = operand_place(stage + STAGE_TOKENS + group * SUBTILE);
                barrier_wait(&s->full[cursor.stage], cursor.parity);
                if constexpr (IS_INT8<CODES>) {
                    pin(acc[0]);
                    pin(acc[1]);
                    products_begin();
#pragma unroll
                    for (int t = 0; t < 2; t++) {
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            integer_products<128>::s8(acc[t], operand_at(tokens + 2 * k),
                                                      operand_at(rows + t * (2 * SUBTILE >> 4) + 2 * k), true);
                        }
                    }
                    products_commit();
                    products_wait<1>();
                    if (line > 0) { /* its products have been waited for */
                        barrier_arrive(&s->empty[last]);
                    }
                    last = cursor.stage;
                    stage_cursor::next(cursor);
                } else {
                    float low, high, weight[2];
#pragma unroll
                    for (int t = 0; t < 2; t++) {
                        float part[64];
                        products_begin();
#pragma unroll
                        for (int k = 0; k < 4; k++) { /* 32 bytes of K each */
                            products<128>::e4m3(part, operand_at(tokens + 2 * k),
                                                operand_at(rows + t * (2 * SUBTILE >> 4) + 2 * k), k > 0);
                        }
                        products_commit();
                        if (!BY_ROW<CODES> && t == 0) { /* here nothing waits for them */
                            const uint32_t own = scales_at + (wide ? half + (line & 3) * 4 : stage);
                            low = load_shared(own);
                            high = load_shared(own + second);
                            weight[0] = load_shared(stage + STAGE_SCALES + TILE * 4);
                            weight[1] = load_shared(stage + STAGE_SCALES + TILE * 4 + 4);
                        }
                        products_wait<0>();
                        pin(part);
                        if constexpr (BY_ROW<CODES>) {
                            add_part<128>(acc[t], part);
                        } else {
                            promote_rows(acc[t], part, __fmul_rn(low, weight[t]), __fmul_rn(high, weight[t]));
                        }
                    }
                    if (arrives && (!BY_ROW<CODES> || line + 1 < lines)) {
                        barrier_arrive(&s->empty[cursor.stage]);
                    }
                    last = cursor.stage;
                    stage_cursor::next(cursor);
                    half ^= wide && (line & 3) == 3 ? TILE * 16 : 0;
                }
            }
            auto write = [&](float(&first)[64], float(&second)[64]) {
                const mf_cuda_slot &slot = p.e.slots[u->slot];
                if (is_down) {
                    write_down(p, slot.down_bias, u->row + ROWS * step, first, second, to);
                    return;
                }
                if (slot.activation == MF_ACT_SILU && !slot.gate_bias && !slot.up_bias) {
                    write_up<CODES, true>(p, u, slot, first, second);
                } else {
                    write_up<CODES, false>(p, u, slot, first, second);
                }
                end_up<CODES>(p, u, group, &s->is_last[group]);
            };
            if constexpr (BY_ROW<CODES>) {
                float sums[2][64];
                if constexpr (IS_INT8<CODES>) {
                    products_wait<0>();
                    pin(acc[0]);
                    pin(acc[1]);
                }
                scale_sums<CODES>(p.e.slots[u->slot], is_down, u->row, first_stage + last * STAGE<CODES> + STAGE_SCALES,
                                  token, acc, sums);
                barrier_arrive(&s->empty[last]);
                write(sums[0], sums[1]);
            } else {
                write(acc[0], acc[1]);
            }
        }
    }
}

template <int CODES>
__global__ void __launch_bounds__(THREADS, 1) rows_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[]; /* no other shared memory: it begins at a swizzle atom */
    uint8_t *ring = stages + p.stages * STAGE<CODES>;
    rows_state *s = (rows_state *)(ring + RING);
    int32_t *offsets = (int32_t *)(s + 1), *prefix = offsets + p.e.num_slots + 1;
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.stages; i++) {
            barrier_init(&s->full[i], 2);
            barrier_init(&s->landed[i], NUM_GATHERERS);
            barrier_init(&s->empty[i], BY_ROW<CODES> ? 256 : 8);
        }
        init_announcements(s);
        barrier_init_fence();
    }
    wait_for_previous();
    const uint32_t first = threadIdx.x == 0 ? claim_unit(p) : 0;
    scan_tiles(p, TILE, offsets, prefix, s->sums);
    if (threadIdx.x < PRODUCERS) {
        give_registers<OTHERS_REGISTERS>();
        if (threadIdx.x == 0) {
            bring_weights<CODES>(p, offsets, prefix, first, stages, s);
        } else if (threadIdx.x == RELAY) {
            relay(s, p.stages);
        } else if (threadIdx.x >= FIRST_GATHERER) {
            gather<CODES>(p, ring, stages, s);
        }
    } else {
        take_registers<MULTIPLIERS_REGISTERS>();
        zero_strangers(p);
        consume<CODES>(p, prefix[p.e.num_slots], stages, s, ring);
    }
}

} // namespace

template <int CODES> static int launch(const mf_cuda_grouped *call, void *stream)
{
    const size_t bytes =
        (size_t)call->stages * STAGE<CODES> + RING + sizeof(rows_state) + ((size_t)call->e.num_slots + 1) * 8;
    const auto kernel = rows_kernel<CODES>;
    return launch_shared(true, kernel, dim3((unsigned)call->blocks), THREADS, bytes, stream, *call);
}

int mf_cuda_launch_grouped_rows(const mf_cuda_grouped *call, void *stream)
{
    return call->codes == MF_CUDA_CODES_FP8_BLOCK ? launch<MF_CUDA_CODES_FP8_BLOCK>(call, stream)
           : call->codes == MF_CUDA_CODES_FP8_ROW ? launch<MF_CUDA_CODES_FP8_ROW>(call, stream)
                                                  : launch<MF_CUDA_CODES_INT8_ROW>(call, stream);
}
