/* grouped_one.cu - grouped.cu's products for a few tokens, the combine behind them: the same sums in one launch that
 * streams weights without a gap.
 *
 * All tokens of the call (at most four) are the products' columns for every slot that one of them chose.  Work is dealt
 * out by block before anything runs: units of 8 gate and 8 up rows, then groups of 16 rows of w2 of all slots, so that
 * a block has every addend of its output rows.  One thread asks for the block's weights from the first to the last, as
 * far ahead as shared memory goes; those of w2 land while other blocks still multiply w13.
 *
 * bf16: a warp has a unit's rows, or a slot's rows of w2, by mma.sync, whose sums are wgmma's to the bit.  FP8: a
 * product's 64 rows are 8 lines of 8 rows (w2: 4 of 16) and its columns the tokens' codes of as many lines: a line's
 * part is where its line meets itself; parts go to shared memory, from where three warps add them in the order of
 * lines. */
#include "kernels/cuda/copy_once.cuh"
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/sum_reduce.cuh"

namespace
{

constexpr int PAIRS = MF_CUDA_ONE_PAIRS, TOKENS = MF_CUDA_ONE_TOKENS, HALF = MF_CUDA_ONE_HALF, STAGE = 2 * HALF;
constexpr int UP_ROWS = 8, UP_LINES = 8, DOWN_LINES = 4; /* of half a stage; w2 of bf16: rows of two slots */
template <bool FP8> constexpr int DOWN_ROWS = FP8 ? 16 : 8;
constexpr int HELPERS = 96, CONSUMERS = 256, WARPS = CONSUMERS / 32;
static_assert(UP_ROWS * UP_LINES * LINE == HALF && 16 * DOWN_LINES * LINE == HALF && PAIRS == 32,
              "half a stage; a lane a pair");

/* Stages that are asked for and not there yet.  More would bring no byte sooner, and let every other load wait behind
 * them; w2's are not urgent while other blocks still need w13's. */
constexpr int UP_AHEAD = 4, DOWN_AHEAD = 2;

/* Units whose stages come in turn: as many as work on units at a time. */
template <bool FP8> constexpr int SIDE_BY_SIDE = FP8 ? 1 : WARPS;

/* Named barriers; two of a kind take turns. */
enum { LISTS = 1, HELPERS_LISTS, READY, STAGED, OWN, PARTS, PARTS_FREE = PARTS + 2 };

/* What ends a tile's products. */
struct tile_end {
    swiglu act;
    const float *gate_bias, *up_bias, *down_bias, *gate_scale, *up_scale, *down_scale;
    int32_t gate_stride, up_stride, down_stride;
};

struct one_state {
    uint64_t full[MF_CUDA_ONE_STAGES], empty[MF_CUDA_ONE_STAGES], ends; /* ends: `end` has been read */
    int32_t num_tiles;                                                  /* slots in use */
    int32_t slot[PAIRS];
    uint32_t uses[PAIRS];                    /* a tile's tokens, as bits */
    alignas(16) int32_t row[PAIRS * TOKENS]; /* of h, by tile and token */
    int32_t tile[PAIRS];                     /* of pairs; -1: a negative id, -2: one past the last slot */
    float weight[PAIRS];                     /* of pairs */
    tile_end end[PAIRS];
};
static_assert(sizeof(one_state) <= MF_CUDA_ONE_STATE, "calls.h");

/* Of a pair of barriers: the one whose turn it is. */
template <int ID, int COUNT> MF_DEV void arrive_in_turn(int turn)
{
    if (turn & 1) {
        named_arrive<ID + 1, COUNT>();
    } else {
        named_arrive<ID, COUNT>();
    }
}

template <int ID, int COUNT> MF_DEV void sync_in_turn(int turn)
{
    if (turn & 1) {
        named_barrier<ID + 1, COUNT>();
    } else {
        named_barrier<ID, COUNT>();
    }
}

/* ---- who does what ---- */

/* A block's part of the work. */
struct share {
    int tiles, units, own_units, first_group, groups, up_stages, down_halves, down_stages;
};

MF_DEV int up_units_of(const mf_cuda_grouped &p)
{
    return p.width / UP_ROWS;
}

/* Units go round the blocks; the blocks with one less get so many more groups of w2 that all have as many bytes. */
template <bool FP8> MF_DEV share share_of(const mf_cuda_grouped &p, int tiles)
{
    share s;
    const int blocks = gridDim.x, block = blockIdx.x, groups = (int)p.e.hidden_size / DOWN_ROWS<FP8>;
    s.tiles = tiles;
    s.units = tiles * up_units_of(p);
    const int each = s.units / blocks, heavy = s.units - each * blocks, light = blocks - heavy;
    s.own_units = each + (block < heavy);
    int light_groups = groups;
    if (heavy > 0) { /* in lines of 8 rows */
        const int unit = 2 * p.one.x_lines, group = DOWN_ROWS<FP8> / 8 * tiles * p.one.h_lines;
        const int fair = (s.units * unit + groups * group) / blocks, left = fair - each * unit;
        const int most = left > 0 ? (left + group / 2) / group * light : 0;
        light_groups = most < groups ? most : groups;
    }
    const int of = block < heavy ? groups - light_groups : light_groups, parts = block < heavy ? heavy : light;
    const int mine = block < heavy ? block : block - heavy;
    const int from = (int)((int64_t)of * mine / parts), to = (int)((int64_t)of * (mine + 1) / parts);
    s.first_group = (block < heavy ? light_groups : 0) + from;
    s.groups = to - from;
    s.up_stages = (p.one.x_lines + UP_LINES - 1) / UP_LINES;
    s.down_halves =
        FP8 ? (tiles * p.one.h_lines + DOWN_LINES - 1) / DOWN_LINES : (tiles + 1) / 2 * (p.one.h_lines / DOWN_LINES);
    s.down_stages = (s.down_halves + 1) / 2;
    return s;
}

/* Slots in use, by one warp, a lane a pair. */
MF_DEV void make_lists(const mf_cuda_grouped &p, one_state *s)
{
    const int lane = threadIdx.x, columns = (int)p.e.num_columns;
    const int32_t id = lane < p.e.num_pairs ? pair_id(p.e, lane) : -1;
    const bool is_there = id >= 0 && id < p.e.num_slots;
    const uint32_t same = __match_any_sync(MF_FULL_WARP, is_there ? id : -1 - lane);
    const int first = __ffs(same) - 1;
    const bool leads = is_there && first == lane;
    const uint32_t leaders = __ballot_sync(MF_FULL_WARP, leads);
    const int tile = __popc(leaders & ((1u << first) - 1u)), token = lane / columns;
    s->uses[lane] = 0;
    *(int4 *)&s->row[lane * TOKENS] = make_int4(0, 0, 0, 0); /* of nobody: any row will do */
    __syncwarp();
    if (leads) {
        s->slot[tile] = id;
    }
    if (is_there) {
        atomicOr(&s->uses[tile], 1u << token);
        const uint32_t of_token = (columns < 32 ? (1u << columns) - 1u : MF_FULL_WARP) << (token * columns);
        if (__ffs(same & of_token) - 1 == lane) { /* a token may name a slot twice */
            s->row[tile * TOKENS + token] = lane;
        }
    }
    s->tile[lane] = is_there ? tile : id < 0 ? -1 : -2;
    if (lane == 0) {
        s->num_tiles = __popc(leaders);
    }
    __syncwarp();
}

/* ---- weights ---- */

/* The stages in the order in which they are asked for. */
struct asking {
    stage_cursor now, landed;
    int ahead;
    /* The next stage's place, once it is free and no more than `most` are on their way. */
    MF_DEV_MEMBER uint8_t *begin(asking &a, one_state *s, uint8_t *stages, int most, uint32_t bytes)
    {
        while (a.ahead >= most) {
            barrier_wait(&s->full[a.landed.stage], a.landed.parity);
            stage_cursor::next(a.landed);
            a.ahead--;
        }
        barrier_wait(&s->empty[a.now.stage], a.now.parity);
        barrier_expect(&s->full[a.now.stage], bytes);
        return stages + a.now.stage * STAGE;
    }
    MF_DEV_MEMBER void end(asking &a)
    {
        stage_cursor::next(a.now);
        a.ahead++;
    }
};

/* The halves of a group of w2 in bf16: of as many pairs of slots as there are warps, part by part. */
struct down_order {
    int first, end, pair, part;
};

MF_DEV down_order first_of(const share &w)
{
    return { 0, min(WARPS, (w.tiles + 1) / 2), 0, 0 };
}

MF_DEV down_order next_of(const share &w, down_order o, int parts)
{
    if (++o.pair < o.end) {
        return o;
    }
    o.pair = o.first;
    if (++o.part == parts) {
        o.part = 0;
        o.first = o.pair = o.end;
        o.end = min(o.end + WARPS, (w.tiles + 1) / 2);
    }
    return o;
}

/* A box of a slot's rows.  The copy engine has few maps at hand, and one that it must fetch holds up all orders behind
 * it: slots that lie evenly share one. */
MF_DEV void copy_rows(const mf_cuda_grouped &p, void *to, int slot, int matrix, int row, int line, uint64_t *full)
{
    if (slot < p.one.even.slots) {
        copy_box_once(to, map_of(p, (int)p.e.num_slots, 0, matrix), slot * p.one.even.rows[matrix] + row, line, full);
    } else {
        copy_box_once(to, map_of(p, slot, matrix, matrix == 2 ? MF_CUDA_BOX_DOWN : MF_CUDA_BOX_UP), row, line, full);
    }
}

template <bool FP8> MF_DEV void bring_weights(const mf_cuda_grouped &p, one_state *s, uint8_t *stages, const share &w)
{
    asking a = { { 0, p.one.stages, 1 }, { 0, p.one.stages, 0 }, 0 };
    const int per_slot = up_units_of(p);
    for (int first = 0; first < w.own_units; first += SIDE_BY_SIDE<FP8>) {
        const int end = min(first + SIDE_BY_SIDE<FP8>, w.own_units);
        for (int k = 0; k < w.up_stages; k++) {
            for (int n = first; n < end; n++) {
                const int unit = blockIdx.x + n * gridDim.x, tile = unit / per_slot,
                          row = (unit - tile * per_slot) * UP_ROWS;
                uint8_t *to = asking::begin(a, s, stages, UP_AHEAD, STAGE);
                copy_rows(p, to, s->slot[tile], 0, row, k * UP_LINES, &s->full[a.now.stage]);
                copy_rows(p, to + HALF, s->slot[tile], 1, row, k * UP_LINES, &s->full[a.now.stage]);
                asking::end(a);
            }
        }
    }
    const int boxes_a_tile = p.one.h_lines / p.one.box_lines, box_bytes = DOWN_ROWS<FP8> * LINE * p.one.box_lines;
    const int a_stage = STAGE / box_bytes, boxes = FP8 ? w.tiles * boxes_a_tile : 2 * w.down_halves;
    for (int group = w.first_group; group < w.first_group + w.groups; group++) {
        down_order o = first_of(w);
        int tile = 0, of_tile = 0;
        for (int box = 0; box < boxes; box += a_stage) {
            const int here = min(a_stage, boxes - box);
            uint8_t *to = asking::begin(a, s, stages, DOWN_AHEAD, (uint32_t)(here * box_bytes));
            for (int k = 0; k < here; k++) {
                if (!FP8) { /* a half holds rows of two slots; the last slot may stand in for one that there is not */
                    tile = min(2 * o.pair + (k & 1), w.tiles - 1);
                    of_tile = o.part;
                }
                copy_rows(p, to + k * box_bytes, s->slot[tile], 2, group * DOWN_ROWS<FP8>, of_tile * p.one.box_lines,
                          &s->full[a.now.stage]);
                if (FP8 && ++of_tile == boxes_a_tile) {
                    of_tile = 0;
                    tile++;
                } else if (!FP8 && (k & 1)) {
                    o = next_of(w, o, boxes_a_tile);
                }
            }
            asking::end(a);
        }
    }
}

/* ---- tokens in shared memory ---- */

/* bf16 rows, chunks of 16 bytes changed about by row so that the rows of a column meet different banks. */
MF_DEV uint32_t row_chunk(int row, int chunk)
{
    return (uint32_t)((chunk ^ (row & 7)) << 4);
}

template <bool FP8, int T> MF_DEV void stage_x(const mf_cuda_grouped &p, uint8_t *x, float *scales)
{
    const int tid = threadIdx.x - PRODUCERS;
    if constexpr (FP8) { /* eight threads for 128 columns */
        const int groups = (int)p.x_groups, all = groups * (int)p.e.num_tokens, at = tid & 7;
        for (int i = tid >> 3; i < all; i += CONSUMERS / 8) {
            const int t = i / groups, line = i - t * groups, row = line * T + t;
            uint4 raw[2];
            load_group(p, i, at * 16, raw);
            float scale;
            *(uint4 *)(x + row * LINE + row_chunk(row, at)) = quantise_16<true>(raw, p.e.e8m0, scale);
            if (at == 0) {
                scales[row] = scale;
            }
        }
        fence_shared_for_products();
    } else {
        const int chunks = (int)p.e.hidden_size / 8;
        for (int t = 0; t < p.e.num_tokens; t++) {
            for (int c = tid; c < chunks; c += CONSUMERS) {
                copy_async(x + t * chunks * 16 + row_chunk(t, c), p.x_bytes + t * p.x_pitch + c * 16, true);
            }
        }
        copy_commit();
        copy_wait<0>();
    }
    named_barrier<STAGED, CONSUMERS>();
}

template <bool FP8, int T>
MF_DEV void stage_h(const mf_cuda_grouped &p, const one_state *s, const share &w, uint8_t *h, float *scales)
{
    const int tid = threadIdx.x - PRODUCERS, tokens = (int)p.e.num_tokens;
    if constexpr (FP8) {
        const int groups = p.width / 128, all = w.tiles * tokens * groups, at = tid & 7;
        for (int i = tid >> 3; i < all; i += CONSUMERS / 8) {
            const int of = i / groups, line = i - of * groups, tile = tokens == 1 ? of : of / tokens,
                      t = of - tile * tokens;
            if (!(s->uses[tile] >> t & 1)) {
                continue;
            }
            const int row = (tile * p.one.h_lines + line) * T + t;
            const uint16_t *from =
                (const uint16_t *)p.e.h + (int64_t)s->row[tile * TOKENS + t] * p.e.h_stride + line * 128 + at * 16;
            const uint4 raw[2] = { load_fresh(from), load_fresh(from + 8) };
            float scale;
            *(uint4 *)(h + row * LINE + row_chunk(row, at)) = quantise_16<true>(raw, p.e.e8m0, scale);
            if (at == 0) {
                scales[row] = scale;
            }
        }
        fence_shared_for_products();
    } else {
        const int chunks = p.width / 8, all = (int)p.e.num_pairs * chunks;
        for (int i = tid; i < all; i += CONSUMERS) {
            const int row = i / chunks, c = i - row * chunks;
            const int tile = s->tile[row];
            if (tile >= 0 && s->row[tile * TOKENS + row / (int)p.e.num_columns] == row) {
                copy_async(h + row * chunks * 16 + row_chunk(row, c),
                           (const uint16_t *)p.e.h + (int64_t)row * p.e.h_stride + c * 8, true);
            }
        }
        copy_commit();
        copy_wait<0>();
    }
    named_barrier<STAGED, CONSUMERS>();
}

/* ---- what ends a group of w2's rows ---- */

/* A tile's sums of a group: [rows][TOKENS]. */
template <bool FP8> MF_DEV float *sums_of(const mf_cuda_grouped &p, float *sums, int n, int tile)
{
    return sums + (n % p.one.groups * p.one.most_tiles + tile) * (DOWN_ROWS<FP8> * TOKENS);
}

/* Whether group n is the last of those that are ended together. */
MF_DEV bool ends_here(const mf_cuda_grouped &p, const share &w, int n)
{
    return (n + 1) % p.one.groups == 0 || n + 1 == w.groups;
}

MF_DEV float as_stored(float v, int dtype)
{
    return dtype == MF_BF16 ? bf16_to_f32((uint16_t)pack_bf16(v, 0.0f)) : v;
}

/* Element `row` of a group's rows of out, for a token: the chain of ref/sum_reduce.c over the columns. */
template <bool FP8>
MF_DEV void combine(const mf_cuda_grouped &p, const mf_cuda_sum &sum, const one_state *s, int64_t at, int row, int t,
                    const float *sums)
{
    const int columns = (int)p.e.num_columns, routed = columns - sum.num_shared;
    const int32_t *tiles = s->tile + t * columns;
    const float *weights = s->weight + t * columns;
    float r = 0.0f, shared = 0.0f;
#pragma unroll 4
    for (int c = 0; c < columns; c++) {
        const int tile = tiles[c];
        const float v = tile < 0 ? 0.0f : as_stored(sums[(tile * DOWN_ROWS<FP8> + row) * TOKENS + t], p.e.y_dtype);
        const float next = __fmaf_rn(weights[c], v, c < routed ? r : shared);
        r = c < routed && tile != -1 ? next : r;
        shared = c >= routed && tile != -1 ? next : shared;
    }
    float out = __fmaf_rn(sum.factor, r, shared);
    if (sum.residual) {
        out = __fadd_rn(out, load_float(sum.residual, sum.out_dtype, t * sum.residual_stride + at, sum.bytewise));
    }
    store_float(sum.out, sum.out_dtype, t * sum.out_stride + at, out, sum.bytewise);
}

/* After group n's sums: where enough groups have come together, their rows of out, or of y. */
template <bool FP8>
MF_DEV void end_groups(const mf_cuda_grouped &p, const mf_cuda_sum &sum, const one_state *s, const share &w, int n,
                       float *sums)
{
    constexpr int ROWS = DOWN_ROWS<FP8>;
    if (!ends_here(p, w, n)) {
        return;
    }
    const int tid = threadIdx.x - PRODUCERS, row = tid % ROWS, from = n - n % p.one.groups;
    const int each = (int)(p.one.combines ? p.e.num_tokens : p.e.num_pairs);
    named_barrier<STAGED, CONSUMERS>();
    for (int i = tid / ROWS; i < (n + 1 - from) * each; i += CONSUMERS / ROWS) {
        const int group = from + (each == 1 ? i : i / each), of = i - (group - from) * each;
        const int64_t at = (int64_t)(w.first_group + group) * ROWS + row;
        const float *own = sums_of<FP8>(p, sums, group, 0);
        if (p.one.combines) {
            combine<FP8>(p, sum, s, at, row, of, own);
        } else if (s->tile[of] != -1) {
            const float v =
                s->tile[of] < 0 ? 0.0f : own[(s->tile[of] * ROWS + row) * TOKENS + of / (int)p.e.num_columns];
            store_float(p.e.y, p.e.y_dtype, y_offset(p.e, of) + at, v, p.e.bytewise);
        }
    }
    named_barrier<STAGED, CONSUMERS>();
}

/* ---- bf16: a warp's products ---- */

/* What a warp multiplies of a line: four tiles of weights and of tokens. */
struct line_tiles {
    uint32_t a[4][4], b[2][4];
};

MF_DEV void load_line(line_tiles &t, uint32_t rows, int row, uint32_t tokens, int token, int line)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        load_tiles(t.b[k], tokens + row_chunk(token, line * 8 + k * 4 + (lane >> 3)));
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        load_tiles(t.a[k], rows + line * (8 * LINE) + row_chunk(row, k * 2 + (lane >> 4)));
    }
}

MF_DEV void add_line_tiles(float (&acc)[4], const line_tiles &t)
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
        mma_bf16(acc, t.a[k][0], t.a[k][1], t.a[k][2], t.a[k][3], t.b[k / 2][2 * (k & 1)], t.b[k / 2][2 * (k & 1) + 1]);
    }
}

/* Lines of two boxes of 8 rows by the tokens' rows; a lane names one row of each.  A line is loaded while the one
 * before is multiplied. */
MF_DEV void add_lines(float (&acc)[4], uint32_t rows, int row, uint32_t tokens, int token, int lines)
{
    line_tiles even, odd;
    load_line(even, rows, row, tokens, token, 0);
    for (int line = 0; line < lines; line += 2) {
        load_line(odd, rows, row, tokens, token, min(line + 1, lines - 1));
        add_line_tiles(acc, even);
        if (line + 1 < lines) {
            load_line(even, rows, row, tokens, token, min(line + 2, lines - 1));
            add_line_tiles(acc, odd);
        }
    }
}

MF_DEV void multiply_bf16(const mf_cuda_grouped &p, const mf_cuda_sum &sum, one_state *s, uint8_t *stages,
                          const share &w, const uint8_t *x, uint8_t *h, float *sums)
{
    const int warp = (threadIdx.x - PRODUCERS) >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3,
              row = lane & 7;
    const int tokens = (int)p.e.num_tokens, token = min(row, tokens - 1), per_slot = up_units_of(p);
    const uint32_t base = shared_address(stages), x_row = shared_address(x) + token * (uint32_t)(p.e.hidden_size * 2);
    stage_cursor r = { 0, p.one.stages, 0 };
    bool knows_ends = false;
    for (int first = 0; first < w.own_units; first += WARPS) { /* a warp a unit */
        const int end = min(first + WARPS, w.own_units), mine = first + warp;
        const int unit = blockIdx.x + mine * gridDim.x, tile = unit / per_slot,
                  first_row = (unit - tile * per_slot) * UP_ROWS;
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        for (int k = 0; k < w.up_stages; k++) {
            for (int n = first; n < end; n++) { /* all see every stage, or they would miss its turns */
                barrier_wait(&s->full[r.stage], r.parity);
                if (n == mine) { /* lanes 8-15 and 24-31 name up's rows */
                    add_lines(acc, base + r.stage * STAGE + (lane >> 3 & 1) * HALF + row * LINE, row,
                              x_row + k * UP_LINES * LINE, token, min(UP_LINES, p.one.x_lines - k * UP_LINES));
                }
                __syncwarp();
                if (lane == 0) {
                    barrier_arrive(&s->empty[r.stage]);
                }
                stage_cursor::next(r);
            }
        }
        if (mine >= end) {
            continue;
        }
        if (!knows_ends) {
            barrier_wait(&s->ends, 0);
            knows_ends = true;
        }
        const tile_end &slot = s->end[tile];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int t = 2 * q + e, at = first_row + g;
            if (t < tokens && (s->uses[tile] >> t & 1)) {
                float a = acc[e], b = acc[2 + e];
                if (slot.gate_bias || slot.up_bias) {
                    a = __fadd_rn(a, slot.gate_bias ? slot.gate_bias[at] : 0.0f);
                    b = __fadd_rn(b, slot.up_bias ? slot.up_bias[at] : 0.0f);
                }
                ((uint16_t *)p.e.h)[(int64_t)s->row[tile * TOKENS + t] * p.e.h_stride + at] =
                    (uint16_t)pack_bf16(apply(slot.act, a, b), 0.0f);
            }
        }
        __syncwarp();
        if (lane == 0) {
            add_release(p.work + MF_CUDA_WORK_TILES, 1);
        }
    }
    named_barrier<READY, CONSUMERS + 32>();
    stage_h<false, 1>(p, s, w, h, nullptr);
    const int row_bytes = p.width * 2, lines = p.width / 64, parts = p.one.h_lines / DOWN_LINES,
              pairs = (w.tiles + 1) / 2;
    for (int n = 0; n < w.groups; n++) {
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        down_order o = first_of(w);
        for (int i = 0; i < w.down_halves; i++) {
            if (!(i & 1)) {
                barrier_wait(&s->full[r.stage], r.parity);
            }
            if ((n * pairs + o.pair) % WARPS ==
                warp) { /* columns 0 to 3 are the first slot's tokens, 4 to 7 the second's */
                const int of = min(2 * o.pair + (row >> 2), w.tiles - 1),
                          h_row = s->row[of * TOKENS + min(row & 3, tokens - 1)];
                add_lines(acc, base + r.stage * STAGE + (i & 1) * HALF + (lane >> 3 & 1) * (HALF / 2) + row * LINE, row,
                          shared_address(h) + h_row * row_bytes + o.part * DOWN_LINES * LINE, h_row,
                          min(DOWN_LINES, lines - o.part * DOWN_LINES));
                if (o.part + 1 == parts) {
                    const int tile = 2 * o.pair + (q >> 1);
                    if (tile < w.tiles) {
                        const float *bias = s->end[tile].down_bias;
                        float *to = sums_of<false>(p, sums, n, tile) + g * TOKENS + 2 * (q & 1);
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            const float v = q >> 1 ? acc[2 + e] : acc[e];
                            to[e] = bias ? __fadd_rn(v, bias[(w.first_group + n) * DOWN_ROWS<false> + g]) : v;
                        }
                    }
                    acc[0] = acc[1] = acc[2] = acc[3] = 0.0f;
                }
            }
            o = next_of(w, o, parts);
            if ((i & 1) || i + 1 == w.down_halves) {
                __syncwarp();
                if (lane == 0) {
                    barrier_arrive(&s->empty[r.stage]);
                }
                stage_cursor::next(r);
            }
        }
        end_groups<false>(p, sum, s, w, n, sums);
    }
}

/* ---- FP8: a warpgroup's products; parts go to shared memory ---- */

/* w13: [warpgroup: gate, up][line][8 rows][T] */
template <int T> MF_DEV void put_up_parts(const float (&acc)[4 * T], float *parts, int line)
{
    const int warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) { /* the eight columns where the warp's two lines meet themselves */
        v[i] = T == 2 ? (warp < 2 ? acc[i] : acc[(4 + i) % (4 * T)])
                      : (warp == 0   ? acc[i]
                         : warp == 1 ? acc[4 + i]
                         : warp == 2 ? acc[(8 + i) % (4 * T)]
                                     : acc[(12 + i) % (4 * T)]);
    }
    if (T == 2) {
        if (q >> 1 == (warp & 1)) {
            *(float2 *)(parts + ((line + 2 * warp + (q & 1)) * UP_ROWS + g) * T) =
                q & 1 ? make_float2(v[2], v[3]) : make_float2(v[0], v[1]);
        }
    } else {
        *(float2 *)(parts + ((line + 2 * warp + (q >> 1)) * UP_ROWS + g) * T + 2 * (q & 1)) =
            q >> 1 ? make_float2(v[2], v[3]) : make_float2(v[0], v[1]);
    }
}

/* w2: [line][16 rows][T] */
template <int T> MF_DEV void put_down_parts(const float (&acc)[2 * T], float *parts, int line)
{
    const int warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = T == 2 || warp < 2 ? acc[i] : acc[(4 + i) % (2 * T)];
    }
    const bool is_mine = T == 2 ? q == warp : q >> 1 == (warp & 1);
    if (is_mine) {
        float *to = parts + ((line + warp) * DOWN_ROWS<true> + g) * T + (T == 2 ? 0 : 2 * (q & 1));
        *(float2 *)to = make_float2(v[0], v[1]);
        *(float2 *)(to + 8 * T) = make_float2(v[2], v[3]);
    }
}

/* COUNT stages' products of this warpgroup's half: N columns of tokens, one block of them a stage. */
template <int T, bool IS_UP, int COUNT>
MF_DEV void multiply_stages(one_state *s, const uint8_t *stages, stage_cursor &r, const uint8_t *tokens, int step,
                            float *parts, int first, int ends)
{
    constexpr int N = (IS_UP ? UP_LINES : DOWN_LINES) * T, BLOCK = N * LINE;
    const int lane = threadIdx.x & 31;
    float acc[COUNT][N / 2];
    uint64_t *empty[COUNT], rows[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        barrier_wait(&s->full[r.stage], r.parity);
        rows[i] = product_operand(stages + r.stage * STAGE);
        empty[i] = &s->empty[r.stage];
        stage_cursor::next(r);
#pragma unroll
        for (int k = 0; k < N / 2; k++) {
            acc[i][k] = 0.0f;
        }
        pin(acc[i]);
    }
    products_begin();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        add_line<true, N>(acc[i], rows[i], product_operand(tokens + (first + i * step) * BLOCK), false);
    }
    products_commit();
    products_wait<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        pin(acc[i]);
        if (lane == 0) {
            barrier_arrive(empty[i]);
        }
        if constexpr (IS_UP) {
            put_up_parts<T>(acc[i], parts, (first + i) * UP_LINES);
        } else if (first + i * step < ends) {
            put_down_parts<T>(acc[i], parts, (first + i * step) * DOWN_LINES);
        }
    }
}

template <int T, bool IS_UP>
MF_DEV void multiply_all(one_state *s, const uint8_t *stages, stage_cursor &r, const uint8_t *tokens, int step,
                         float *parts, int first, int count, int ends)
{
    for (; count >= 3; count -= 3, first += 3 * step) {
        multiply_stages<T, IS_UP, 3>(s, stages, r, tokens, step, parts, first, ends);
    }
    if (count == 2) {
        multiply_stages<T, IS_UP, 2>(s, stages, r, tokens, step, parts, first, ends);
    } else if (count == 1) {
        multiply_stages<T, IS_UP, 1>(s, stages, r, tokens, step, parts, first, ends);
    }
}

/* w2's parts of the groups that end with n, added in the order of lines. */
template <int T>
MF_DEV void add_down_parts(const mf_cuda_grouped &p, const one_state *s, const share &w, int n, const float *down_parts,
                           const float *h_scales, const float *scales, float *sums)
{
    constexpr int ROWS = DOWN_ROWS<true>;
    const int lines = p.one.h_lines, real = p.width / 128, tokens = (int)p.e.num_tokens, from = n - n % p.one.groups;
    const int row = threadIdx.x % ROWS, of_first = (threadIdx.x - PRODUCERS) / ROWS;
    for (int group = from; group <= n; group++) {
        const float *parts = down_parts + (group - from) * p.one.down_parts + row * T;
        for (int of = of_first; of < w.tiles * tokens; of += CONSUMERS / ROWS) {
            const int tile = tokens == 1 ? of : of / tokens, t = of - tile * tokens;
            const float *part = parts + tile * lines * (ROWS * T) + t, *token = h_scales + tile * lines * T + t;
            const float *weight = scales + (group * w.tiles + tile) * lines, *bias = s->end[tile].down_bias;
            float acc = 0.0f;
#pragma unroll 4
            for (int k = 0; k < real; k++) {
                acc = __fmaf_rn(part[k * (ROWS * T)], __fmul_rn(token[k * T], weight[k]), acc);
            }
            sums_of<true>(p, sums, group, tile)[row * TOKENS + t] =
                bias ? __fadd_rn(acc, bias[(int64_t)(w.first_group + group) * ROWS + row]) : acc;
        }
    }
}

template <int T>
MF_DEV void multiply_fp8(const mf_cuda_grouped &p, const mf_cuda_sum &sum, one_state *s, uint8_t *stages,
                         const share &w, const uint8_t *x, uint8_t *h, float *h_scales, const float *down_scales,
                         float *up_parts, float *down_parts, float *sums)
{
    const int group = (threadIdx.x - PRODUCERS) >> 7, lines = w.up_stages * UP_LINES;
    stage_cursor r = { 0, p.one.stages, 0 };
    for (int n = 0; n < w.own_units; n++) {
        if (n >= 2) {
            sync_in_turn<PARTS_FREE, CONSUMERS + HELPERS>(n);
        }
        float *parts = up_parts + ((n & 1) * 2 + group) * lines * (UP_ROWS * T);
        multiply_all<T, true>(s, stages + group * HALF, r, x, 1, parts, 0, w.up_stages, w.up_stages);
        arrive_in_turn<PARTS, CONSUMERS + HELPERS>(n);
    }
    named_barrier<READY, CONSUMERS + 32>();
    stage_h<true, T>(p, s, w, h, h_scales);
    for (int n = 0; n < w.groups; n++) {
        /* the last stage may have no second half: what stands there is multiplied, and not looked at */
        multiply_all<T, false>(s, stages + group * HALF, r, h, 2, down_parts + n % p.one.groups * p.one.down_parts,
                               group, w.down_stages, w.down_halves);
        if (ends_here(p, w, n)) {
            named_barrier<STAGED, CONSUMERS>();
            add_down_parts<T>(p, s, w, n, down_parts, h_scales, down_scales, sums);
        }
        end_groups<true>(p, sum, s, w, n, sums);
    }
}

/* ---- the helpers: three warps ---- */

MF_DEV void read_ends(const mf_cuda_grouped &p, one_state *s, const mf_cuda_sum &sum, bool combines, int tid)
{
    if (tid < s->num_tiles) {
        const mf_cuda_slot &slot = p.e.slots[s->slot[tid]];
        tile_end &end = s->end[tid];
        end.act = swiglu_of(slot.activation, slot.limit, slot.alpha); /* every load before the first use */
        end.gate_bias = slot.gate_bias;
        end.up_bias = slot.up_bias;
        end.down_bias = slot.down_bias;
        end.gate_scale = (const float *)slot.gate.scale;
        end.up_scale = (const float *)slot.up.scale;
        end.down_scale = (const float *)slot.down.scale;
        end.gate_stride = (int32_t)slot.gate.scale_row_stride;
        end.up_stride = (int32_t)slot.up.scale_row_stride;
        end.down_stride = (int32_t)slot.down.scale_row_stride;
    }
    if (combines && tid < p.e.num_pairs) {
        const int t = tid / (int)p.e.num_columns;
        s->weight[tid] = sum_weight(sum, t, tid - t * (int)p.e.num_columns);
    }
}

/* Of all units: [unit][gate, up][x_lines]. */
MF_DEV void read_up_scales(const mf_cuda_grouped &p, const one_state *s, const share &w, float *to, int tid)
{
    const int per_slot = up_units_of(p), lines = p.one.x_lines, each = 2 * lines;
    for (int i = tid; i < w.own_units * each; i += HELPERS) {
        const int n = i / each, of = i - n * each, line = of < lines ? of : of - lines;
        const int unit = blockIdx.x + n * gridDim.x, tile = unit / per_slot;
        const int64_t block = (unit - tile * per_slot) * UP_ROWS / 128;
        const tile_end &end = s->end[tile];
        copy_word_async(to + i,
                        of < lines ? end.gate_scale + block * end.gate_stride + line
                                   : end.up_scale + block * end.up_stride + line,
                        true);
    }
}

/* Of all groups: [group][tile][h_lines]. */
MF_DEV void read_down_scales(const mf_cuda_grouped &p, const one_state *s, const share &w, float *to, int tid)
{
    const int lines = p.one.h_lines, real = p.width / 128, each = w.tiles * lines;
    for (int i = tid; i < w.groups * each; i += HELPERS) {
        const int n = i / each, of = i - n * each, tile = of / lines, line = of - tile * lines;
        const tile_end &end = s->end[tile];
        const int64_t block = (w.first_group + n) * DOWN_ROWS<true> / 128;
        copy_word_async(to + i, end.down_scale + block * end.down_stride + min(line, real - 1), true);
    }
}

/* A unit's parts added in the order of lines, and its rows of h.  Lanes: [token][gate, up][row]; two tokens a warp. */
template <int T>
MF_DEV void end_unit(const mf_cuda_grouped &p, one_state *s, const share &w, int n, const float *up_parts,
                     const float *x_scales, const float *scales, int warp)
{
    if (warp >= T / 2) {
        return;
    }
    const int unit = blockIdx.x + n * gridDim.x, per_slot = up_units_of(p), tile = unit / per_slot,
              lane = threadIdx.x & 31;
    const int t = warp * 2 + (lane >> 4), half = lane >> 3 & 1, row = lane & 7, lines = p.one.x_lines;
    const float *parts = up_parts + ((n & 1) * 2 + half) * (w.up_stages * UP_LINES) * (UP_ROWS * T) + row * T + t;
    float acc = 0.0f;
#pragma unroll 8
    for (int line = 0; line < lines; line++) {
        acc =
            __fmaf_rn(parts[line * (UP_ROWS * T)], __fmul_rn(x_scales[line * T + t], scales[half * lines + line]), acc);
    }
    float up = __shfl_xor_sync(MF_FULL_WARP, acc, 8);
    if (half == 0 && (s->uses[tile] >> t & 1)) {
        const tile_end &end = s->end[tile];
        const int r = (unit - tile * per_slot) * UP_ROWS + row;
        if (end.gate_bias || end.up_bias) {
            acc = __fadd_rn(acc, end.gate_bias ? end.gate_bias[r] : 0.0f);
            up = __fadd_rn(up, end.up_bias ? end.up_bias[r] : 0.0f);
        }
        ((uint16_t *)p.e.h)[(int64_t)s->row[tile * TOKENS + t] * p.e.h_stride + r] =
            (uint16_t)pack_bf16(apply(end.act, acc, up), 0.0f);
    }
    __syncwarp();
    if (lane == 0) {
        add_release(p.work + MF_CUDA_WORK_TILES, 1);
    }
}

template <bool FP8, int T>
MF_DEV void help(const mf_cuda_grouped &p, const mf_cuda_sum &sum, one_state *s, const share &w, const float *x_scales,
                 const float *up_parts, float *up_scales, float *down_scales)
{
    const int tid = threadIdx.x - 32, warp = tid >> 5;
    read_ends(p, s, sum, p.one.combines, tid);
    named_barrier<OWN, HELPERS>();
    if constexpr (FP8) {
        read_up_scales(p, s, w, up_scales, tid);
        read_down_scales(p, s, w, down_scales, tid);
        copy_commit();
        copy_wait<0>();
        named_barrier<OWN, HELPERS>();
        for (int n = 0; n < w.own_units; n++) {
            sync_in_turn<PARTS, CONSUMERS + HELPERS>(n);
            end_unit<T>(p, s, w, n, up_parts, x_scales, up_scales + n * 2 * p.one.x_lines, warp);
            if (n + 2 < w.own_units) {
                arrive_in_turn<PARTS_FREE, CONSUMERS + HELPERS>(n);
            }
        }
    } else if (tid == 0) {
        barrier_arrive(&s->ends);
    }
    if (warp > 0) {
        return;
    }
    if (tid == 0) {
        const uint32_t need = (uint32_t)w.units * (FP8 ? T / 2 : 1);
        while (load_acquire(p.work + MF_CUDA_WORK_TILES) < need) {
        }
    }
    __syncwarp();
    named_arrive<READY, CONSUMERS + 32>();
    if (tid == 0) { /* the last block leaves the counters as it found them: all have seen what they waited for */
        __threadfence();
        if (atomicAdd(p.work + MF_CUDA_WORK_DONE, 1u) == gridDim.x - 1) {
            p.work[MF_CUDA_WORK_TILES] = p.work[MF_CUDA_WORK_DONE] = 0;
        }
    }
}

template <bool FP8, int T>
__global__ void __launch_bounds__(THREADS, 1)
    one_kernel(const __grid_constant__ mf_cuda_grouped p, const __grid_constant__ mf_cuda_sum sum)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[];
    const mf_cuda_one &one = p.one;
    one_state *s = (one_state *)(stages + one.state_at);
    uint8_t *x = stages + one.x_at, *h = stages + one.h_at;
    float *sums = (float *)(stages + one.sums_at), *floats = (float *)(stages + one.floats_at);
    /* FP8 only: scales of x, of h, of units' rows, of w2's rows; parts of w13, twice, and of groups of w2.  What w2
     * needs lies where x and w13's parts were. */
    float *x_scales = floats, *h_scales = x_scales + one.x_lines * T,
          *up_scales = h_scales + one.most_tiles * one.h_lines * T;
    float *down_scales = up_scales + one.most_units * 2 * one.x_lines;
    float *up_parts = (float *)(stages + one.up_parts_at), *down_parts = (float *)(stages + one.down_parts_at);
    if (threadIdx.x == 0) {
        for (int i = 0; i < one.stages; i++) {
            barrier_init(&s->full[i], 1);
            barrier_init(&s->empty[i], WARPS);
        }
        barrier_init(&s->ends, 1);
        for (int i = 0; i < 3 && one.even.slots > 0; i++) { /* maps never change: no need to wait for anybody */
            prefetch_map(map_of(p, (int)p.e.num_slots, 0, i));
        }
        barrier_init_fence();
    }
    __syncthreads();
    let_next_start();
    wait_for_previous();
    if (threadIdx.x < 32) {
        make_lists(p, s);
        named_arrive<HELPERS_LISTS, HELPERS + 32>();
        named_arrive<LISTS, CONSUMERS + 32>();
        const share w = share_of<FP8>(p, s->num_tiles);
        if (threadIdx.x == 0) {
            bring_weights<FP8>(p, s, stages, w);
        }
    } else if (threadIdx.x < PRODUCERS) {
        named_barrier<HELPERS_LISTS, HELPERS + 32>();
        help<FP8, T>(p, sum, s, share_of<FP8>(p, s->num_tiles), x_scales, up_parts, up_scales, down_scales);
    } else {
        stage_x<FP8, T>(p, x, x_scales);
        named_barrier<LISTS, CONSUMERS + 32>();
        const share w = share_of<FP8>(p, s->num_tiles);
        if constexpr (FP8) {
            multiply_fp8<T>(p, sum, s, stages, w, x, h, h_scales, down_scales, up_parts, down_parts, sums);
        } else {
            multiply_bf16(p, sum, s, stages, w, x, h, sums);
        }
    }
}

template <bool FP8, int T> int launch(const mf_cuda_grouped *call, const mf_cuda_sum *sum, cudaStream_t stream)
{
    return launch_shared(true, one_kernel<FP8, T>, dim3((unsigned)call->blocks), THREADS, (size_t)call->one.bytes,
                         stream, *call, *sum);
}

} // namespace

int mf_cuda_launch_grouped_one(const mf_cuda_grouped *call, const mf_cuda_sum *sum, void *stream)
{
    static const mf_cuda_sum none = {};
    cudaStream_t s = (cudaStream_t)stream;
    sum = sum ? sum : &none;
    if (call->fp8) {
        return call->one.tokens == 2 ? launch<true, 2>(call, sum, s) : launch<true, 4>(call, sum, s);
    }
    return launch<false, 4>(call, sum, s);
}
