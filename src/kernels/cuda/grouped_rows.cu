/* grouped_rows.cu - FP8 experts on Hopper where slots have many tokens: both grouped products in one launch, tiles of
 * 128 tokens by 256 weight rows of one slot.
 *
 * Tokens are the products' 64-row operand, a warpgroup's 64 of the tile, and weights its columns: a thread then meets
 * two tokens' scales and one of the weights a part, where grouped.cu's meets the scales of all tokens; a thread's rows
 * hold whole groups of 128 columns of the intermediate together with three neighbours, so that a warpgroup quantises
 * alone; and a warp writes its own tokens' rows of the output.  The tensor cores give the same bits in either role.
 *
 * Units (slot, tokens, rows) are claimed one after the other from a counter.  Tiles go in groups, w2's units of a group
 * behind w13's of the next one: when they are claimed, what they wait for is done or nearly so, and the stores of the
 * output are spread over the whole launch.  A unit waits only for units claimed before it, so any number of resident
 * blocks ends. */
#include "kernels/cuda/grouped.cuh"

namespace
{

constexpr int TILE = MF_CUDA_ROWS_TOKENS, ROWS = 256, STAGE_TOKENS = ROWS * LINE;
constexpr int STAGE_SCALES = STAGE_TOKENS + TILE * LINE,
              STAGE = STAGE_SCALES + SCALE_BYTES;                        /* a token's each, two of weights */
constexpr int RING = 2 * TILE * 16;                                      /* tokens' scales, two times four lines' */
constexpr int STAGING = MF_CUDA_ROWS_STAGING, OWN_STAGING = STAGING / 8; /* a warp's: 16 tokens by 64 columns */
static_assert(STAGE == MF_CUDA_ROWS_STAGE && OWN_STAGING == 16 * 128, "the plan counts with these");

/* A block's first warp brings weights, the second says what has landed, two gather tokens. */
constexpr int RELAY = 32, FIRST_GATHERER = 64, NUM_GATHERERS = 64;
constexpr int OTHERS_REGISTERS = 56, MULTIPLIERS_REGISTERS = 224; /* a gathering thread holds the places of 16 rows */

struct rows_state : shared_state {
    uint64_t landed[STAGES_AT_MOST]; /* tokens and scales */
};

/* An operand of products from the lower half of its descriptor: what a warp's lanes have in common, so that it is made
 * where the instruction wants it. */
MF_DEV uint32_t operand_place(const void *shared)
{
    return __reduce_or_sync(MF_FULL_WARP, (uint32_t)product_operand(shared));
}

MF_DEV uint64_t operand_at(uint32_t place)
{
    return product_operand(nullptr) >> 32 << 32 | place;
}

/* Of one warpgroup. */
MF_DEV void own_barrier(int group)
{
    if (group == 0) {
        named_barrier<BARRIER_OWN, 128>();
    } else {
        named_barrier<BARRIER_OWN + 1, 128>();
    }
}

/* ---- units ---- */

/* What the n-th claim is: w13's first group of tiles, then by turns w13 of a group and w2 of the one before. */
struct place_in_order {
    bool is_down;
    int64_t tile;
    int row_tile;
};

MF_DEV place_in_order place_of(const mf_cuda_grouped &p, int64_t n)
{
    const int64_t group = p.rows_group, ups = group * p.up_tiles, both = ups + group * p.down_units;
    int64_t at = 0;
    place_in_order r;
    r.is_down = false;
    if (n >= ups) {
        at = (n - ups) / both;
        n = (n - ups) % both;
        r.is_down = n >= ups;
        n -= r.is_down ? ups : 0;
        at += r.is_down ? 0 : 1;
    }
    r.tile = at * group + n % group;
    r.row_tile = (int)(n / group);
    return r;
}

/* ---- the warp that brings weights, and gives out work ---- */

MF_DEV void bring_weights(const mf_cuda_grouped &p, const int32_t *offsets, const int32_t *prefix, uint32_t first,
                          uint8_t *stages, shared_state *s)
{
    const int slots = (int)p.e.num_slots, tiles = prefix[slots];
    const int64_t groups = (tiles + p.rows_group - 1) / p.rows_group; /* behind the last one w13's turn is empty */
    const int64_t units = p.rows_group * (p.up_tiles + groups * (p.up_tiles + p.down_units));
    stage_cursor cursor = { 0, p.stages, 1 };
    int64_t next = first;
    int made = 0;
    while (next < units) {
        const uint32_t claimed = claim_unit(p);
        const place_in_order at = place_of(p, next);
        next = claimed;
        if (at.tile >= tiles) {
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
        u.steps = at.is_down ? min(p.down_steps, p.down_tiles - at.row_tile * p.down_steps) : 1;
        u.row = at.row_tile * (at.is_down ? ROWS * p.down_steps : ROWS / 2);
        u.lines = (at.is_down ? width : (int)p.e.hidden_size) / LINE;
        u.tile = (int)at.tile;
        u.need = (width + 127) / 128 * 2; /* warpgroups */
        if (!at.is_down && u.row >= width) {
            continue;
        }
        const CUtensorMap *m0 = map_of(p, low, at.is_down ? 2 : 0, MF_CUDA_BOX_LONG),
                          *m1 = map_of(p, low, at.is_down ? 2 : 1, MF_CUDA_BOX_LONG);
        const int stages_used = u.steps * u.lines, second = at.is_down ? 128 : 0;
        for (int i = 0, line = 0, first = u.row; i < stages_used; i++) {
            barrier_wait(&s->empty[cursor.stage], cursor.parity);
            if (i == 0) {
                announce(s, made++, u);
            }
            uint64_t *full = &s->full[cursor.stage];
            uint8_t *to = stages + cursor.stage * STAGE;
            barrier_expect(full, STAGE_TOKENS);
            copy_box(to, m0, first, line, full);
            copy_box(to + SUBTILE, m0, first + 64, line, full);
            copy_box(to + 2 * SUBTILE, m1, first + second, line, full);
            copy_box(to + 3 * SUBTILE, m1, first + second + 64, line, full);
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

MF_DEV void gather(const mf_cuda_grouped &p, uint8_t *ring, uint8_t *stages, rows_state *s)
{
    constexpr int EACH = TILE / (NUM_GATHERERS / 8); /* rows of a line: every eighth from first_row on */
    const int tid = threadIdx.x - FIRST_GATHERER, chunk = tid & 7, first_row = tid >> 3;
    stage_cursor cursor = { 0, p.stages, 0 };
    int half = 0; /* of the ring */
    for (int n = 0;; n++) {
        const unit u = *(const unit *)announced_unit(s, n);
        if (u.slot < 0) {
            barrier_arrive(&s->landed[cursor.stage]);
            return;
        }
        const bool wide = !u.is_down && has_wide_scales(p);
        const uint32_t pieces = (uint32_t)((u.is_down ? p.h_pitch : p.x_pitch) / 16);
        auto row_of = [&](int t) {
            const int pos = u.first + min(t, u.count - 1);
            return u.is_down ? (uint32_t)pos : (uint32_t)p.sorted[pos] / (uint32_t)p.e.num_columns;
        };
        uint32_t at[EACH]; /* of the rows, in pieces of 16 bytes */
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            at[k] = row_of(first_row + 8 * k) * pieces;
        }
        const uint32_t scale_rows[2] = { row_of(tid), row_of(tid + NUM_GATHERERS) };
        if (u.is_down) {
            while (load_acquire(p.work + MF_CUDA_WORK_TILES + u.tile) < (uint32_t)u.need) {
            }
        }
        const uint8_t *rows_from = (u.is_down ? p.h_bytes : p.x_bytes) + chunk * 16;
        const float *scales_from = u.is_down ? p.h_scales : p.x_scales, *weight_scales = nullptr;
        const uint32_t per_row = (uint32_t)(u.is_down ? p.h_groups : p.x_groups);
        const mf_cuda_slot &slot = p.e.slots[u.slot];
        const mf_cuda_matrix &weights = u.is_down ? slot.down : tid == 0 ? slot.gate : slot.up;
        const float *all_scales = (const float *)weights.scale;
        const int scales_stride = (int)weights.scale_row_stride, last = (int)(weights.n - 1) / 128;
        /* Where lines divide stages a stage meets the same line of the same tokens in each step: they stay there. */
        const int total = u.steps * u.lines, copied = p.stages % u.lines == 0 ? min(total, p.stages) : total;
        for (int i = 0, line = 0; i < total; i++) {
            if (i > 0) {
                barrier_wait(&s->empty[cursor.stage], cursor.parity ^ 1);
            }
            uint8_t *to = stages + cursor.stage * STAGE + STAGE_TOKENS;
            float *scales = (float *)(to + TILE * LINE);
            if (tid < 2) {
                if (line == 0) {
                    const int block = u.row / 128 + (u.is_down ? 2 * (i / u.lines) + tid : 0);
                    weight_scales =
                        all_scales + (int64_t)min(block, last) * scales_stride; /* rows past the last one: any */
                }
                copy_word_async(scales + TILE + tid, weight_scales + line, true);
            }
            if (wide && (line & 3) == 0) { /* four lines'; with four stages nobody reads what this half held */
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    copy_async(ring + half + (tid + k * NUM_GATHERERS) * 16,
                               scales_from + line + (uint64_t)scale_rows[k] * per_row, true);
                }
                half ^= TILE * 16;
            }
            if (i < copied) {
                const uint8_t *from = rows_from + line * LINE;
                to += swizzled(first_row, chunk);
#pragma unroll
                for (int k = 0; k < EACH; k++) {
                    const int t = first_row + 8 * k;
                    if (t < ((u.count + 63) & ~63)) { /* zeros cost less power than what was there */
                        copy_async(to + 8 * k * LINE, from + (uint64_t)at[k] * 16, t < u.count);
                    }
                }
                if (!wide) {
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        copy_word_async(scales + tid + k * NUM_GATHERERS,
                                        scales_from + line + (uint64_t)scale_rows[k] * per_row, true);
                    }
                }
            }
            barrier_arrive_after_copies(&s->landed[cursor.stage]);
            stage_cursor::next(cursor);
            line = line + 1 == u.lines ? 0 : line + 1;
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

/* 64 tokens by 128 rows of the intermediate: activation, bf16, codes and a scale per token.  A token's columns are four
 * lanes'.  PLAIN: SiLU without biases, which is less code. */
template <bool PLAIN>
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
                const int r = row + 8 * i + 2 * q + e;
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
    for (int k = 0; k < 2; k++) { /* tokens `token` and token + 8 */
        uint32_t pairs[16], amax = 0;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int at = 4 * i + 2 * k;
            pairs[i] = pack_bf16(apply(act, gate[at], up[at]), apply(act, gate[at + 1], up[at + 1]));
            amax = max(amax, max(pairs[i] << 16 & 0x7fffffffu, pairs[i] & 0x7fff0000u));
        }
        amax = max(amax, __shfl_xor_sync(MF_FULL_WARP, amax, 1));
        amax = max(amax, __shfl_xor_sync(MF_FULL_WARP, amax, 2));
        const float scale = quant_scale(QUANT_FP8_GROUP, 0.0f, p.e.e8m0, __uint_as_float(amax));
        uint32_t words[8]; /* codes: four lanes' pairs of two i become eight bytes of one i a lane, then eight of 32 */
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
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t other = __shfl_xor_sync(MF_FULL_WARP, q & 1 ? pairs[2 * j] : pairs[2 * j + 1], 1);
            words[j] = q & 1 ? other | pairs[2 * j + 1] << 16 : pairs[2 * j] | other << 16;
        }
        const int64_t pos = u->first + token + 8 * k;
        const bool is_there = token + 8 * k < u->count;
        uint8_t *to = p.h_codes + pos * p.e.h_stride + row + 8 * q;
#pragma unroll
        for (int m = 0; m < 4; m++) {
            const uint32_t other = __shfl_xor_sync(MF_FULL_WARP, q & 2 ? words[2 * m] : words[2 * m + 1], 2);
            if (is_there) {
                *(uint2 *)(to + 32 * m) = q & 2 ? make_uint2(other, words[2 * m + 1]) : make_uint2(words[2 * m], other);
            }
        }
        if (is_there && q == 0) {
            p.h_scales[pos * p.h_groups + row / 128] = scale;
        }
    }
}

/* This warpgroup has written its part of a unit of w13, or has none. */
MF_DEV void end_up(const mf_cuda_grouped &p, unit_ref u, int group)
{
    own_barrier(group);
    if ((threadIdx.x & 127) == 0) { /* released for all: the barrier put their stores before it */
        add_release(p.work + MF_CUDA_WORK_TILES + u->tile, 1);
    }
}

/* 16 tokens by 256 columns of the output: a warp's, 64 columns at a time, so that 128 bytes of a token go out in one
 * piece. */
MF_DEV void write_down(const mf_cuda_grouped &p, const float *bias, int row, float (&low)[64], float (&high)[64],
                       uint8_t *staging, uint16_t *const (&to)[4])
{
    const int lane = threadIdx.x & 31, hidden = (int)p.e.hidden_size;
    if (bias) {
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float(&v)[64] = i < 16 ? low : high;
            const int column = row + 8 * i + 2 * (lane & 3), at = 4 * (i & 15);
            const float b0 = column < hidden ? bias[column] : 0.0f, b1 = column < hidden ? bias[column + 1] : 0.0f;
            v[at] = __fadd_rn(v[at], b0);
            v[at + 1] = __fadd_rn(v[at + 1], b1);
            v[at + 2] = __fadd_rn(v[at + 2], b0);
            v[at + 3] = __fadd_rn(v[at + 3], b1);
        }
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
        float(&v)[64] = c < 2 ? low : high;
        __syncwarp(); /* what was here has been read */
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = 32 * (c & 1) + 8 * j;
            store_matrices(staging + swizzled(lane & 15, 2 * j + (lane >> 4)), pack_bf16(v[at], v[at + 1]),
                           pack_bf16(v[at + 2], v[at + 3]), pack_bf16(v[at + 4], v[at + 5]),
                           pack_bf16(v[at + 6], v[at + 7]));
        }
        __syncwarp();
        const int column = row + 64 * c;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint4 piece = *(const uint4 *)(staging + swizzled(4 * k + (lane >> 3), lane & 7));
            if (to[k] && column + (lane & 7) * 8 < hidden) {
                *(uint4 *)(to[k] + column) = piece;
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

MF_DEV void consume(const mf_cuda_grouped &p, int tiles, uint8_t *stages, rows_state *s, const uint8_t *ring,
                    uint8_t *staging)
{
    stage_cursor cursor = { 0, p.stages, 0 };
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, lane = tid & 31, token = (tid >> 5) * 16 + (lane >> 2);
    staging += (tid >> 5) * OWN_STAGING;
    int half = 0; /* of the ring */
    for (int n = 0;; n++) {
        barrier_wait(&s->full[cursor.stage], cursor.parity);
        unit_ref u = &s->units[n % UNITS];
        if (u->slot < 0) {
            leave_counters(p, tiles);
            return;
        }
        const bool is_down = u->is_down != 0;
        const int lines = u->lines, steps = u->steps, count = u->count;
        const bool wide = !is_down && has_wide_scales(p);
        if (64 * group >= count) {
#pragma unroll 1
            for (int i = 0; i < lines * steps; i++) {
                barrier_wait(&s->full[cursor.stage], cursor.parity);
                if (lane == 0) {
                    barrier_arrive(&s->empty[cursor.stage]);
                }
                stage_cursor::next(cursor);
            }
            if (wide) {
                half ^= lines / 4 % 2 * TILE * 16;
            }
            if (!is_down) {
                end_up(p, u, group);
            }
            continue;
        }
        const float *bias = p.e.slots[u->slot].down_bias;
        uint16_t *to[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int t = (tid >> 5) * 16 + 4 * k + (lane >> 3);
            to[k] = is_down && t < count ? (uint16_t *)p.e.y + y_offset(p.e, p.sorted[u->first + t]) + (lane & 7) * 8
                                         : nullptr;
        }
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            const int row = u->row + ROWS * step;
            float acc[2][64];
#pragma unroll
            for (int i = 0; i < 64; i++) {
                acc[0][i] = acc[1][i] = 0.0f;
            }
#pragma unroll 1
            for (int line = 0; line < lines; line++) {
                const uint8_t *stage = stages + cursor.stage * STAGE;
                const uint32_t rows = operand_place(stage),
                               tokens = operand_place(stage + STAGE_TOKENS + group * SUBTILE);
                const float *scales = (const float *)(stage + STAGE_SCALES);
                float low, high, weight[2];
                barrier_wait(&s->full[cursor.stage], cursor.parity);
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
                    if (t == 0) { /* here nothing waits for them */
                        const float *own =
                            wide ? (const float *)(ring + half + token * 16) + (line & 3) : scales + token;
                        low = own[0];
                        high = own[wide ? 32 : 8];
                        weight[0] = scales[TILE];
                        weight[1] = scales[TILE + 1];
                    }
                    products_wait<0>();
                    pin(part);
                    promote_rows(acc[t], part, __fmul_rn(low, weight[t]), __fmul_rn(high, weight[t]));
                }
                if (lane == 0) {
                    barrier_arrive(&s->empty[cursor.stage]);
                }
                stage_cursor::next(cursor);
                half ^= wide && (line & 3) == 3 ? TILE * 16 : 0;
            }
            if (is_down) {
                write_down(p, bias, row, acc[0], acc[1], staging, to);
            } else {
                const mf_cuda_slot &slot = p.e.slots[u->slot];
                if (slot.activation == MF_ACT_SILU && !slot.gate_bias && !slot.up_bias) {
                    write_up<true>(p, u, slot, acc[0], acc[1]);
                } else {
                    write_up<false>(p, u, slot, acc[0], acc[1]);
                }
                end_up(p, u, group);
            }
        }
    }
}

__global__ void __launch_bounds__(THREADS, 1) rows_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[]; /* no other shared memory: it begins at a swizzle atom */
    uint8_t *staging = stages + p.stages * STAGE;
    uint8_t *ring = staging + STAGING;
    rows_state *s = (rows_state *)(ring + RING);
    int32_t *offsets = (int32_t *)(s + 1), *prefix = offsets + p.e.num_slots + 1;
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.stages; i++) {
            barrier_init(&s->full[i], 2);
            barrier_init(&s->landed[i], NUM_GATHERERS);
            barrier_init(&s->empty[i], 8);
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
            bring_weights(p, offsets, prefix, first, stages, s);
        } else if (threadIdx.x == RELAY) {
            relay(s, p.stages);
        } else if (threadIdx.x >= FIRST_GATHERER) {
            gather(p, ring, stages, s);
        }
    } else {
        take_registers<MULTIPLIERS_REGISTERS>();
        zero_strangers(p);
        consume(p, prefix[p.e.num_slots], stages, s, ring, staging);
    }
}

} // namespace

int mf_cuda_launch_grouped_rows(const mf_cuda_grouped *call, void *stream)
{
    const size_t bytes =
        (size_t)call->stages * STAGE + STAGING + RING + sizeof(rows_state) + ((size_t)call->e.num_slots + 1) * 8;
    return launch_shared(true, rows_kernel, dim3((unsigned)call->blocks), THREADS, bytes, stream, *call);
}
