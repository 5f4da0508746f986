/* grouped_few.cu - grouped.cu's products for few tokens: the same sums, cut so that all multiprocessors stream weights.
 *
 * A tile holds at most eight tokens of a slot, a unit 2 x ROWS weight rows: w13's gate rows for one warpgroup and the
 * matching up rows for the other, or w2's rows side by side.  The products' 64-row operand is filled up with whatever
 * lies behind the rows; nobody reads those sums.  There is no launch before it: every block sorts the pairs and makes
 * all tokens' codes, where it multiplies codes, while its first weights are on the way.  All write the same codes to
 * the same place. */
#include "kernels/cuda/row_codes.cuh"

namespace
{

constexpr int TOKENS = 8, PAIRS = MF_CUDA_FEW_GROUPED_PAIRS;
static_assert(PAIRS == PRODUCERS, "make_lists: a thread a pair");
constexpr int TOKEN_LINE = TOKENS * LINE;

template <int ROWS> constexpr int LINES = 128 / ROWS; /* of K in a stage */
template <int ROWS> constexpr int ROW_LINE = ROWS *LINE;
template <int ROWS> constexpr int BOX = ROWS == 32 ? MF_CUDA_BOX_32 : MF_CUDA_BOX_64;
constexpr int BOX_BYTES = 128 * LINE; /* whatever its ROWS and LINES are */

/* Of a stage: weights [warpgroup][line][ROWS], tokens [line][8], token scales [line][8], weight scales
 * [warpgroup][line]. */
constexpr int STAGE_WEIGHTS = 2 * 128 * LINE;
template <int ROWS> __host__ __device__ constexpr int scales_at()
{
    return STAGE_WEIGHTS + 128 / ROWS * TOKEN_LINE;
}
template <int ROWS> __host__ __device__ constexpr int few_stage_bytes()
{
    return scales_at<ROWS>() + SCALE_BYTES;
}
constexpr int BEHIND = 64 * LINE; /* the last rows' operand reads on */

struct few_lists {
    int32_t num_tiles;
    int32_t slot[PAIRS], first[PAIRS + 1]; /* of tiles */
    int32_t pair[PAIRS], token[PAIRS];     /* sorted by slot */
    int32_t ids[PAIRS];
    int64_t y[PAIRS];            /* where a sorted pair's row of y begins */
    uint32_t starts[PAIRS / 32]; /* sorted places where a tile begins */
    int32_t valid[PAIRS / 32];   /* pairs with a slot, by warp */
    float up[2][64 * TOKENS];
    uint32_t amax[TOKENS]; /* of x's rows, where scales are theirs */
    int32_t is_last;
};

/* Pairs in the order (slot, pair), cut into tiles; by the producers, while the others make codes. */
MF_DEV void make_lists(const mf_cuda_grouped &p, few_lists *l)
{
    const int tid = threadIdx.x, pairs = (int)p.e.num_pairs, slots = (int)p.e.num_slots, warp = tid >> 5,
              lane = tid & 31;
    const int32_t given = tid < pairs ? pair_id(p.e, tid) : -1, id = given >= 0 && given < slots ? given : -1;
    l->ids[tid] = id;
    const uint32_t there = __ballot_sync(MF_FULL_WARP, id >= 0);
    if (lane == 0) {
        l->starts[warp] = 0;
        l->valid[warp] = __popc(there);
    }
    named_barrier<BARRIER_PRODUCERS, PRODUCERS>();
    if (id >= 0) {
        int place = 0, same = 0;
        for (int j = 0; j < pairs; j++) {
            const int32_t other = l->ids[j];
            same += other == id && j < tid;
            place += other >= 0 && (other < id || (other == id && j < tid));
        }
        l->pair[place] = tid;
        l->token[place] = tid / (int)p.e.num_columns;
        l->y[place] = y_offset(p.e, tid);
        if (same % TOKENS == 0) {
            atomicOr(&l->starts[place >> 5], 1u << (place & 31));
            for (int i = 0; i < (int)sizeof(mf_cuda_slot); i += 128) { /* who works on it will ask for it next */
                prefetch_line((const uint8_t *)(p.e.slots + id) + i);
            }
        }
    }
    named_barrier<BARRIER_PRODUCERS, PRODUCERS>();
    int before = 0;
    for (int w = 0; w < warp; w++) {
        before += __popc(l->starts[w]);
    }
    const uint32_t word = l->starts[warp];
    const int tile = before + __popc(word & ((1u << lane) - 1u));
    if (word >> lane & 1) {
        l->first[tile] = tid;
        l->slot[tile] = l->ids[l->pair[tid]];
    }
    if (tid == PRODUCERS - 1) {
        const int tiles = before + __popc(word);
        l->num_tiles = tiles;
        l->first[tiles] = l->valid[0] + l->valid[1] + l->valid[2] + l->valid[3];
    }
    named_barrier<BARRIER_PRODUCERS, PRODUCERS>();
}

/* ---- weights ---- */

template <int CODES, int ROWS>
MF_DEV void bring_weights(const mf_cuda_grouped &p, const few_lists *l, uint32_t first, uint8_t *stages,
                          shared_state *s)
{
    constexpr int COLUMNS = CODES ? 128 : 64, STAGE = few_stage_bytes<ROWS>();
    const int tiles = l->num_tiles, ups = tiles * p.up_tiles, units = ups + tiles * p.down_units;
    stage_cursor cursor = { 0, p.stages, 1 };
    int made = 0;
    for (int next = (int)first; next < units;) {
        const uint32_t claimed = claim_unit(p);
        const bool is_down = next >= ups;
        const int local = is_down ? next - ups : next, row_units = is_down ? p.down_units : p.up_tiles;
        const int tile = local / row_units, row_unit = local % row_units;
        const int slot_id = l->slot[tile];
        const int width = p.width > 0 ? p.width : (int)p.e.slots[slot_id].up.n;
        unit u;
        u.slot = slot_id;
        u.is_down = is_down;
        u.first = l->first[tile];
        u.count = l->first[tile + 1] - u.first;
        u.steps = is_down ? min(p.down_steps, p.down_tiles - row_unit * p.down_steps) : 1;
        u.row = row_unit * (is_down ? 2 * ROWS * p.down_steps : ROWS);
        u.lines = (is_down ? width : (int)p.e.hidden_size) / COLUMNS;
        u.tile = tile;
        u.need = (width + ROWS - 1) / ROWS;
        if (is_down || u.row < width) {
            const CUtensorMap *m0 = map_of(p, slot_id, is_down ? 2 : 0, BOX<ROWS>),
                              *m1 = map_of(p, slot_id, is_down ? 2 : 1, BOX<ROWS>);
            for (int step = 0; step < u.steps; step++) {
                const int row0 = u.row + step * 2 * ROWS, row1 = is_down ? row0 + ROWS : row0;
                for (int line = 0; line < u.lines; line += LINES<ROWS>) {
                    barrier_wait(&s->empty[cursor.stage], cursor.parity);
                    if (step == 0 && line == 0) {
                        announce(s, made++, u);
                    }
                    uint64_t *full = &s->full[cursor.stage];
                    uint8_t *to = stages + cursor.stage * STAGE;
                    barrier_expect(full, 2 * BOX_BYTES);
                    copy_box_once(to, m0, row0, line, full);
                    copy_box_once(to + BOX_BYTES, m1, row1, line, full);
                    stage_cursor::next(cursor);
                }
            }
        }
        next = (int)claimed;
    }
    barrier_wait(&s->empty[cursor.stage], cursor.parity);
    announce_end(s, made);
    barrier_arrive(&s->full[cursor.stage]);
}

/* ---- tokens ---- */

template <int CODES, int ROWS>
MF_DEV void gather(const mf_cuda_grouped &p, const few_lists *l, uint8_t *stages, shared_state *s)
{
    constexpr int STAGE = few_stage_bytes<ROWS>(), TEAMS = GATHERERS / 8;
    const int tid = threadIdx.x - 32, chunk = tid & 7, team = tid >> 3;
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int n = 0;; n++) {
        const unit u = *(const unit *)announced_unit(s, n);
        if (u.slot < 0) {
            barrier_arrive(&s->full[cursor.stage]);
            return;
        }
        if (u.is_down) {
            while (load_acquire(p.work + MF_CUDA_WORK_TILES + u.tile) <
                   (uint32_t)u.need + (CODES != MF_CUDA_CODES_NONE)) {
            }
        }
        const uint8_t *rows_from = (u.is_down ? p.h_bytes : p.x_bytes) + chunk * 16;
        const float *scales_from = u.is_down ? p.h_scales : p.x_scales;
        const int64_t pitch = u.is_down ? p.h_pitch : p.x_pitch, groups = BY_ROW<CODES> ? 1
                                                                          : u.is_down   ? p.h_groups
                                                                                        : p.x_groups;
        const mf_cuda_slot &slot = p.e.slots[u.slot];
        bool is_first = true;
        for (int step = 0; step < u.steps; step++) {
            /* One thread a weight scale: lines of warpgroup 0, then of 1. */
            const float *weight_scale = nullptr;
            const int scale_group = tid / LINES<ROWS>, scale_line = tid % LINES<ROWS>;
            if (CODES == MF_CUDA_CODES_FP8_BLOCK && tid < 2 * LINES<ROWS>) {
                const mf_cuda_matrix &m = u.is_down ? slot.down : scale_group ? slot.up : slot.gate;
                const int64_t row = u.row + (u.is_down ? step * 2 * ROWS + scale_group * ROWS : 0);
                weight_scale =
                    row < m.n ? (const float *)m.scale + row / 128 * m.scale_row_stride + scale_line : nullptr;
            }
            for (int line = 0; line < u.lines; line += LINES<ROWS>) {
                if (!is_first) {
                    barrier_wait(&s->empty[cursor.stage], cursor.parity ^ 1);
                }
                is_first = false;
                const int lines = min(LINES<ROWS>, u.lines - line);
                uint8_t *stage = stages + cursor.stage * STAGE, *to = stage + STAGE_WEIGHTS;
                float *scales = (float *)(stage + scales_at<ROWS>());
                for (int task = team; task < lines * u.count; task += TEAMS) {
                    const int k = task / u.count, t = task - k * u.count;
                    uint8_t *place = to + k * TOKEN_LINE + swizzled(t, chunk);
                    const int64_t row = u.is_down ? u.first + t : l->token[u.first + t];
                    copy_async(place, rows_from + row * pitch + (line + k) * LINE, true);
                    if (CODES == MF_CUDA_CODES_FP8_BLOCK && chunk == 0) {
                        copy_word_async(scales + k * TOKENS + t, scales_from + row * groups + line + k, true);
                    }
                }
                if (BY_ROW<CODES> && line + LINES<ROWS> >= u.lines && tid < u.count) { /* for the end of the step */
                    copy_word_async(scales + tid, scales_from + (u.is_down ? u.first + tid : l->token[u.first + tid]),
                                    true);
                }
                if (weight_scale && scale_line < lines) {
                    copy_word_async(scales + LINES<ROWS> * TOKENS + tid, weight_scale + line, true);
                }
                barrier_arrive_after_copies(&s->full[cursor.stage]);
                stage_cursor::next(cursor);
            }
        }
    }
}

/* ---- products ---- */

/* What ends a slot's products, read before they begin. */
struct slot_end {
    swiglu act;
    const float *gate_bias, *up_bias, *down_bias;
    int width;
};

/* w13: one warpgroup has the gates' sums, the other the ups'. */
template <int CODES, int ROWS>
MF_DEV void write_up(const mf_cuda_grouped &p, const unit &u, const slot_end &end, const float (&acc)[4], few_lists *l,
                     int turn)
{
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3;
    float *up = l->up[turn & 1];
    if (group == 1 && warp * 16 < ROWS) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            up[(warp * 16 + g + 8 * (k >> 1)) * TOKENS + 2 * q + (k & 1)] = acc[k];
        }
    }
    named_barrier<BARRIER_BOTH, 256>(); /* the buffer's last reader was there one turn ago */
    if (group == 1) {
        return;
    }
    if (warp * 16 < ROWS) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int r = warp * 16 + g + 8 * (k >> 1), t = 2 * q + (k & 1), row = u.row + r;
            if (t < u.count && row < end.width) {
                float a = acc[k], b = up[r * TOKENS + t];
                if (end.gate_bias || end.up_bias) {
                    a = __fadd_rn(a, end.gate_bias ? end.gate_bias[row] : 0.0f);
                    b = __fadd_rn(b, end.up_bias ? end.up_bias[row] : 0.0f);
                }
                ((uint16_t *)p.e.h)[(int64_t)(u.first + t) * p.e.h_stride + row] =
                    (uint16_t)pack_bf16(apply(end.act, a, b), 0.0f);
            }
        }
    }
    named_barrier<BARRIER_OWN, 128>();
    uint32_t *counter = p.work + MF_CUDA_WORK_TILES + u.tile;
    if (!CODES) {
        if (tid == 0) { /* released for all: the barrier put their stores before it */
            add_release(counter, 1);
        }
        return;
    }
    /* The last of a tile's units makes its codes: groups of 128, and rows, cross units. */
    if (tid == 0) {
        l->is_last = add_acquire_release(counter, 1) + 1 == (uint32_t)u.need;
    }
    named_barrier<BARRIER_OWN, 128>();
    if (!l->is_last) {
        return;
    }
    if constexpr (BY_ROW<CODES>) {
        quantise_intermediate<CODES, 2>(p, u.first, u.count, end.width, warp, 4);
    } else {
        const int groups = end.width / 128;
        for (int i = tid >> 3; i < u.count * groups; i += 16) {
            const int t = i / groups, group_of = i - t * groups;
            const int64_t place = (int64_t)(u.first + t) * p.e.h_stride + group_of * 128 + (tid & 7) * 16;
            const uint16_t *from = (const uint16_t *)p.e.h + place;
            const uint4 raw[2] = { load_fresh(from), load_fresh(from + 8) };
            float scale;
            *(uint4 *)(p.h_codes + place) = quantise_16<true>(raw, p.e.e8m0, scale);
            if ((tid & 7) == 0) {
                p.h_scales[(int64_t)(u.first + t) * p.h_groups + group_of] = scale;
            }
        }
    }
    named_barrier<BARRIER_OWN, 128>();
    if (tid == 0) {
        add_release(counter, 1);
    }
}

template <int ROWS>
MF_DEV void write_down(const mf_cuda_grouped &p, const unit &u, const float *bias, int first_row, const float (&acc)[4],
                       const few_lists *l)
{
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3;
    if (warp * 16 >= ROWS) {
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int row = first_row + group * ROWS + warp * 16 + g + 8 * (k >> 1), t = 2 * q + (k & 1);
        if (t < u.count && row < p.e.hidden_size) {
            const int64_t at = l->y[u.first + t] + row;
            const float v = bias ? __fadd_rn(acc[k], bias[row]) : acc[k];
            if (p.e.y_dtype == MF_BF16) {
                store_at<uint16_t>(p.e.y, at, (uint16_t)pack_bf16(v, 0.0f), p.e.bytewise);
            } else {
                store_float(p.e.y, p.e.y_dtype, at, v, p.e.bytewise);
            }
        }
    }
}

/* COUNT lines of each of STAGES stages. */
template <int CODES, int ROWS, int STAGES, int COUNT>
MF_DEV void multiply(const uint8_t *const (&stage)[STAGES], sum_type<CODES> (&acc)[4])
{
    const int group = (threadIdx.x - PRODUCERS) >> 7, q = threadIdx.x & 3;
    auto rows = [&](int i) {
        return product_operand(stage[i / COUNT] + group * BOX_BYTES + i % COUNT * ROW_LINE<ROWS>);
    };
    auto tokens = [&](int i) { return product_operand(stage[i / COUNT] + STAGE_WEIGHTS + i % COUNT * TOKEN_LINE); };
    if constexpr (!IS_FP8<CODES>) {
        pin(acc);
        products_begin();
#pragma unroll
        for (int i = 0; i < STAGES * COUNT; i++) {
            if constexpr (IS_INT8<CODES>) {
                add_line<TOKENS>(acc, rows(i), tokens(i), true);
            } else {
                add_line<false, TOKENS>(acc, rows(i), tokens(i), true);
            }
        }
        products_commit();
        products_wait<0>();
        pin(acc);
    } else {
        float part[STAGES * COUNT][4];
#pragma unroll
        for (int i = 0; i < STAGES * COUNT; i++) {
            part[i][0] = part[i][1] = part[i][2] = part[i][3] = 0.0f;
            pin(part[i]);
        }
        products_begin();
#pragma unroll
        for (int i = 0; i < STAGES * COUNT; i++) {
            add_line<true, TOKENS>(part[i], rows(i), tokens(i), false);
        }
        products_commit();
        products_wait<0>();
#pragma unroll
        for (int i = 0; i < STAGES * COUNT; i++) {
            pin(part[i]);
            if constexpr (BY_ROW<CODES>) {
                add_part<TOKENS>(acc, part[i]);
                continue;
            }
            const float *scales = (const float *)(stage[i / COUNT] + scales_at<ROWS>());
            const int k = i % COUNT;
            const float2 t = *(const float2 *)(scales + k * TOKENS + 2 * q);
            const float w = scales[LINES<ROWS> * TOKENS + group * LINES<ROWS> + k];
            const float low = __fmul_rn(t.x, w), high = __fmul_rn(t.y, w);
            acc[0] = __fmaf_rn(part[i][0], low, acc[0]);
            acc[1] = __fmaf_rn(part[i][1], high, acc[1]);
            acc[2] = __fmaf_rn(part[i][2], low, acc[2]);
            acc[3] = __fmaf_rn(part[i][3], high, acc[3]);
        }
    }
}

/* The next STAGES stages of COUNT lines each; token_scales: what the last of them holds of a lane's two tokens. */
template <int CODES, int ROWS, int STAGES, int COUNT>
MF_DEV void multiply_stages(uint8_t *stages, shared_state *s, stage_cursor &cursor, sum_type<CODES> (&acc)[4],
                            float2 &token_scales)
{
    const uint8_t *stage[STAGES];
    uint64_t *empty[STAGES];
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        stage[i] = stages + cursor.stage * few_stage_bytes<ROWS>();
        empty[i] = &s->empty[cursor.stage];
        barrier_wait(&s->full[cursor.stage], cursor.parity);
        stage_cursor::next(cursor);
    }
    fence_shared_for_products();
    multiply<CODES, ROWS, STAGES, COUNT>(stage, acc);
    if (BY_ROW<CODES>) {
        token_scales = *(const float2 *)(stage[STAGES - 1] + scales_at<ROWS>() + 8 * (threadIdx.x & 3));
    }
    if (!CODES) {
        __syncwarp();
    }
    if (CODES || (threadIdx.x & 31) == 0) { /* codes: all lanes, each for the scales that it has read */
#pragma unroll
        for (int i = 0; i < STAGES; i++) {
            barrier_arrive(empty[i]);
        }
    }
}

/* Scales of a lane's two rows, asked for before they are multiplied. */
template <int CODES, int ROWS> MF_DEV float2 scales_of_rows(const mf_cuda_slot &slot, const unit &u, int step)
{
    if constexpr (BY_ROW<CODES>) {
        const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, r = (tid >> 5 & 3) * 16 + (tid >> 2 & 7);
        if (r < ROWS) {
            const mf_cuda_matrix &m = u.is_down ? slot.down : group ? slot.up : slot.gate;
            const int row = u.row + r + (u.is_down ? (2 * step + group) * ROWS : 0);
            return make_float2(weight_scale_of(m, row), weight_scale_of(m, row + 8));
        }
    }
    return make_float2(0.0f, 0.0f);
}

/* All tokens' codes of a scale a row, by the warpgroups that multiply: every block writes the same to the same place.
 */
template <int CODES> MF_DEV void quantise_tokens(const mf_cuda_grouped &p, few_lists *l)
{
    const int tid = threadIdx.x - PRODUCERS, at = (tid & 7) * 16, groups = (int)(p.e.num_tokens * p.x_groups),
              per_row = (int)p.x_groups;
    if (tid < TOKENS) {
        l->amax[tid] = 0;
    }
    named_barrier<BARRIER_BOTH, 256>();
    const bool once = groups <= 32; /* then they stay in registers */
    uint4 raw[2] = {};
    for (int i = tid >> 3; i < groups; i += 32) { /* eight threads each */
        load_group(p, i, at, raw);
        const uint32_t amax = larger_magnitude(larger_magnitude(0, raw[0]), raw[1]);
        atomicMax(&l->amax[i / per_row], __reduce_max_sync(0xffu << (threadIdx.x & 24), amax));
    }
    named_barrier<BARRIER_BOTH, 256>();
    for (int i = tid >> 3; i < groups; i += 32) {
        if (!once) {
            load_group(p, i, at, raw);
        }
        const int token = i / per_row;
        const float scale = row_code_scale<CODES>(l->amax[token]);
        const divisor d = divisor_of(scale);
        const uint2 low = eight_codes<CODES>(raw[0], d), high = eight_codes<CODES>(raw[1], d);
        *(uint4 *)(p.x_codes + (int64_t)i * 128 + at) = make_uint4(low.x, low.y, high.x, high.y);
        if (at == 0 && i % per_row == 0) {
            p.x_scales_out[token] = scale;
        }
    }
}

template <int CODES, int ROWS>
MF_DEV void consume(const mf_cuda_grouped &p, few_lists *l, uint8_t *stages, shared_state *s)
{
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int n = 0;; n++) {
        const unit u = *(const unit *)announced_unit(s, n);
        if (u.slot < 0) {
            leave_counters(p, l->num_tiles);
            return;
        }
        const mf_cuda_slot &slot = p.e.slots[u.slot];
        const slot_end end = { swiglu_of(slot), slot.gate_bias, slot.up_bias, slot.down_bias, (int)slot.up.n };
#pragma unroll 1
        for (int step = 0; step < u.steps; step++) {
            sum_type<CODES> acc[4] = { 0, 0, 0, 0 };
            float2 token_scales;
            const float2 row_scales = scales_of_rows<CODES, ROWS>(slot, u, step);
            int line = 0;
#pragma unroll 1
            for (; line + 2 * LINES<ROWS> <= u.lines; line += 2 * LINES<ROWS>) {
                multiply_stages<CODES, ROWS, 2, LINES<ROWS>>(stages, s, cursor, acc, token_scales);
            }
            if (line + LINES<ROWS> <= u.lines) {
                multiply_stages<CODES, ROWS, 1, LINES<ROWS>>(stages, s, cursor, acc, token_scales);
                line += LINES<ROWS>;
            }
            if (line + 3 == u.lines) {
                multiply_stages<CODES, ROWS, 1, 3>(stages, s, cursor, acc, token_scales);
            } else if (line + 2 == u.lines) {
                multiply_stages<CODES, ROWS, 1, 2>(stages, s, cursor, acc, token_scales);
            } else if (line + 1 == u.lines) {
                multiply_stages<CODES, ROWS, 1, 1>(stages, s, cursor, acc, token_scales);
            }
            float sums[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if constexpr (BY_ROW<CODES>) {
                    sums[k] = scaled_sum<CODES>(acc[k], k & 1 ? token_scales.y : token_scales.x,
                                                k & 2 ? row_scales.y : row_scales.x);
                } else {
                    sums[k] = acc[k];
                }
            }
            if (u.is_down) {
                write_down<ROWS>(p, u, end.down_bias, u.row + 2 * ROWS * step, sums, l);
            } else {
                write_up<CODES, ROWS>(p, u, end, sums, l, n);
            }
        }
    }
}

template <int CODES, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) few_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[];
    shared_state *s = (shared_state *)(stages + p.stages * few_stage_bytes<ROWS>() + BEHIND);
    few_lists *l = (few_lists *)(s + 1);
    if (threadIdx.x == 0) {
        init_state(s, p.stages, CODES ? 256 : 8);
    }
    __syncthreads();
    wait_for_previous();
    let_next_start(); /* after the wait: who starts now may read what was written before this launch */
    if (threadIdx.x < PRODUCERS) {
        const uint32_t first = threadIdx.x == 0 ? claim_unit(p) : 0;
        make_lists(p, l);
        named_arrive<BARRIER_LISTS, THREADS>();
        if (CODES && threadIdx.x < 32) { /* waits for no codes, but a barrier is of all of a block's warps */
            named_arrive<BARRIER_CODES, THREADS>();
        }
        if (threadIdx.x == 0) {
            bring_weights<CODES, ROWS>(p, l, first, stages, s);
        } else if (threadIdx.x >= 32) {
            if (CODES) {
                named_barrier<BARRIER_CODES, THREADS>();
            }
            gather<CODES, ROWS>(p, l, stages, s);
        }
    } else {
        if constexpr (BY_ROW<CODES>) {
            quantise_tokens<CODES>(p, l);
        } else if constexpr (CODES) {
            const int tid = threadIdx.x - PRODUCERS; /* four threads for 128 columns */
            quantise_groups(p, tid >> 2, 64, p.e.num_tokens * p.x_groups);
        }
        if (CODES) {
            named_arrive<BARRIER_CODES, THREADS>();
        }
        zero_strangers(p);
        named_barrier<BARRIER_LISTS, THREADS>();
        consume<CODES, ROWS>(p, l, stages, s);
    }
}

template <int CODES, int ROWS> int launch(const mf_cuda_grouped *call, cudaStream_t stream)
{
    const auto kernel = few_kernel<CODES, ROWS>;
    static_assert(few_stage_bytes<ROWS>() == 32768 + 128 / ROWS * 1024 + 1024, "mf_cuda_few_stage_bytes");
    const size_t bytes =
        (size_t)call->stages * few_stage_bytes<ROWS>() + BEHIND + sizeof(shared_state) + sizeof(few_lists);
    return launch_shared(true, kernel, dim3((unsigned)call->blocks), THREADS, bytes, stream, *call);
}

template <int CODES> int launch_rows(const mf_cuda_grouped *call, cudaStream_t stream)
{
    return call->few_rows == 32 ? launch<CODES, 32>(call, stream) : launch<CODES, 64>(call, stream);
}

} // namespace

int mf_cuda_launch_grouped_few(const mf_cuda_grouped *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    switch (call->codes) {
    case MF_CUDA_CODES_NONE:
        return launch_rows<MF_CUDA_CODES_NONE>(call, s);
    case MF_CUDA_CODES_FP8_BLOCK:
        return launch_rows<MF_CUDA_CODES_FP8_BLOCK>(call, s);
    case MF_CUDA_CODES_FP8_ROW:
        return launch_rows<MF_CUDA_CODES_FP8_ROW>(call, s);
    default:
        return launch_rows<MF_CUDA_CODES_INT8_ROW>(call, s);
    }
}
