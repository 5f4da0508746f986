/* grouped_one.cuh - what grouped_one.cu's blocks share out and hand over: who does what, the order in which weights
 * come, the tokens and the intermediate in shared memory, and what ends rows of w2. */
#ifndef MF_KERNELS_CUDA_GROUPED_ONE_CUH
#define MF_KERNELS_CUDA_GROUPED_ONE_CUH

#include "kernels/cuda/row_codes.cuh"
#include "kernels/cuda/sum_reduce.cuh"

constexpr int PAIRS = MF_CUDA_ONE_PAIRS, TOKENS = MF_CUDA_ONE_TOKENS, HALF = MF_CUDA_ONE_HALF, STAGE = 2 * HALF;
constexpr int UP_ROWS = 8, UP_LINES = 8; /* of half a stage */
constexpr int DOWN_ROWS = 16;            /* bf16: of w2, as many as a product has */
constexpr int H_ROWS = 8;                /* FP8: of a line of h, as many columns as a product has at least */
constexpr int HELPERS = 96, CONSUMERS = 256, WARPS = CONSUMERS / 32;
static_assert(UP_ROWS * UP_LINES * LINE == HALF && PAIRS <= 64, "half a stage; a lane two pairs");

/* How a kernel's blocks go about it.  WARPWISE (bf16): a few units of w13 and a few slots of w2 at a time, from both
 * ends of their lists in turn, a warp asking for the intermediate of the slots that it multiplies: with several tokens,
 * or where shared slots' weights are in the second-level cache.  Else all side by side, the block asking for all of the
 * intermediate: one token without shared slots.
 * UP_AHEAD, down_ahead: stages that are asked for and not there yet.  More would bring no byte sooner, and let every
 * other load wait behind them; w2's are not urgent while other blocks still need w13's. */
template <bool FP8, bool WARPWISE> struct order {
    static constexpr int UP_AHEAD = FP8 ? 4 : 6;
    static constexpr int AT_ONCE = WARPWISE ? 4 : WARPS;
    MF_DEV_MEMBER int down_ahead(int64_t tokens)
    {
        return !FP8 ? 4 : tokens > 1 ? 3 : 2;
    }
};

/* Of shared slots' weights, what a block brings to the second-level cache before it knows the ids: about as much as
 * comes in until the kernel in front has ended and the ids are there. */
constexpr int HINT_BYTES = 96 * 1024;

/* Named barriers; two of a kind take turns. */
enum { LISTS = 1, HELPERS_LISTS, STAGED, OWN, PARTS, PARTS_FREE = PARTS + 2 };

constexpr int BATCH = 2, PARTS_LINES = BATCH * UP_LINES; /* stages of w13 whose parts are added together (FP8) */

/* What ends a tile's products. */
struct tile_end {
    swiglu act;
    const float *gate_bias, *up_bias, *down_bias, *gate_scale, *up_scale, *down_scale;
    int32_t gate_stride, up_stride, down_stride;
    bool gate_is_f32, up_is_f32, down_is_f32; /* of scales a row; else bf16 */
};

struct one_state {
    uint64_t full[MF_CUDA_ONE_STAGES], empty[MF_CUDA_ONE_STAGES], ends; /* ends: `end` and scales have been read */
    uint64_t decided, known;                                            /* `next` is there; is known to all */
    uint64_t together;                                                  /* all begin with another share */
    uint64_t added;                                                     /* FP8: w13's parts have been read */
    int32_t next;                                                       /* share of w13; -1: none any more */
    int32_t num_tiles;                                                  /* slots in use */
    uint32_t biased[2];                                                 /* tiles whose w2 has a bias, as bits */
    uint32_t tag;                                                       /* of this launch's words */
    int32_t slot[PAIRS];                                                /* of tiles */
    uint32_t uses[PAIRS];                                               /* a tile's tokens, as bits */
    alignas(8) int16_t row[PAIRS * TOKENS];                             /* of h, by tile and token */
    int16_t tile[PAIRS];    /* of pairs; -1: a negative id, -2: one past the last slot */
    float weight[PAIRS];    /* of pairs */
    int16_t by_tile[PAIRS]; /* FP8 blocks: tile * TOKENS + token of the intermediate's rows, `num_rows` */
    int32_t num_rows;
    tile_end end[PAIRS];
    float handed[MF_CUDA_ONE_HANDED]; /* sums of a unit that the block before has begun */
    uint32_t amax[TOKENS];            /* of x's rows, where scales are theirs */
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
    int block, tiles, units, up_stages;
    int own_units;                                    /* bf16: whole ones */
    int first_unit, segments, first_stage, end_stage; /* FP8: of the first unit and of the last one */
    int next_unit, unit_after, each; /* FP8: first units of the next block and of the one behind it; units of a block */
    int first_group, groups, down_boxes, down_stages; /* boxes: of a slot's rows */
};

MF_DEV int up_units_of(const mf_cuda_grouped &p)
{
    return p.width / UP_ROWS;
}

/* bf16: units go round the blocks; the blocks with one less get so many more groups of w2 that all have as many bytes.
 */
MF_DEV void deal_units(const mf_cuda_grouped &p, share &s, int block)
{
    const int blocks = gridDim.x, groups = (int)p.e.hidden_size / DOWN_ROWS;
    const int each = s.units / blocks, heavy = s.units - each * blocks, light = blocks - heavy;
    s.own_units = each + (block < heavy);
    int light_groups = groups;
    if (heavy > 0) { /* in lines of 8 rows */
        const int unit = 2 * p.one.x_lines, group = DOWN_ROWS / 8 * s.tiles * p.one.h_lines;
        const int fair = (s.units * unit + groups * group) / blocks, left = fair - each * unit;
        const int most = left > 0 ? (left + group / 2) / group * light : 0;
        light_groups = most < groups ? most : groups;
    }
    const int of = block < heavy ? groups - light_groups : light_groups, parts = block < heavy ? heavy : light;
    const int mine = block < heavy ? block : block - heavy;
    const int from = of * mine / parts, to = of * (mine + 1) / parts;
    s.first_group = (block < heavy ? light_groups : 0) + from;
    s.groups = to - from;
}

/* FP8: stages of w13 are dealt out evenly, wherever units begin and end: their parts do not depend on one another. */
MF_DEV void deal_stages(const mf_cuda_grouped &p, share &s, int block)
{
    const int blocks = gridDim.x, groups = ((int)p.e.hidden_size + p.one.down_rows - 1) / p.one.down_rows;
    const int all = s.units * s.up_stages, from = (int)((uint32_t)(all * block) / (uint32_t)blocks),
              to = (int)((uint32_t)(all * (block + 1)) / (uint32_t)blocks);
    const int last = to / s.up_stages, of_last = to - last * s.up_stages;
    s.first_unit = from / s.up_stages;
    s.next_unit = last;
    s.unit_after = (int)((uint32_t)(s.units * (block + 2)) / (uint32_t)blocks);
    s.each = s.units / blocks;
    s.first_stage = from - s.first_unit * s.up_stages;
    s.segments = from == to ? 0 : last - s.first_unit + (of_last > 0);
    s.end_stage = of_last > 0 ? of_last : s.up_stages;
    s.first_group = groups * block / blocks;
    s.groups = groups * (block + 1) / blocks - s.first_group;
}

template <bool FP8> MF_DEV share share_of(const mf_cuda_grouped &p, int tiles, int block)
{
    share s;
    s.block = block;
    s.tiles = tiles;
    s.units = tiles * up_units_of(p);
    s.up_stages = (p.one.x_lines + UP_LINES - 1) / UP_LINES;
    if (FP8) {
        deal_stages(p, s, block);
    } else {
        deal_units(p, s, block);
    }
    s.down_boxes = p.one.h_lines / p.one.box_lines;
    s.down_stages = tiles * s.down_boxes;
    return s;
}

/* FP8: a unit's stages that are a block's.  The last unit comes first: the next block goes on with its sums. */
struct segment {
    int unit, first, end;
};

/* The units are numbered as they end, first the first ones of all blocks, then the second ones: of the first tiles the
 * intermediate is there before the last units are, and their w2 need not wait for these. */
MF_DEV segment segment_of(const share &w, int i)
{
    const int place = w.first_unit + w.segments - 1 - i;
    const bool is_next = place >= w.next_unit; /* the next block ends it */
    const int owner = w.block + is_next, from = is_next ? w.next_unit : w.first_unit,
              turn = (is_next ? w.unit_after : w.next_unit) - 1 - place;
    const int blocks = gridDim.x;            /* some of them have one more than `each`: these come last */
    const int unit = w.each == 0     ? place /* it may be of several blocks */
                     : turn < w.each ? turn * blocks + owner
                                     : w.each * blocks + from - owner * w.each;
    return { unit, i == w.segments - 1 ? w.first_stage : 0, i == 0 ? w.end_stage : w.up_stages };
}

/* Slots in use, by one warp, a lane a pair; MANY: two pairs. */
template <bool MANY> MF_DEV void make_lists(const mf_cuda_grouped &p, one_state *s)
{
    const int lane = threadIdx.x, columns = (int)p.e.num_columns, pairs = (int)p.e.num_pairs;
    const uint32_t launches = load_relaxed(p.work + MF_CUDA_WORK_LAUNCHES);
    const int32_t id = lane < pairs ? pair_id(p.e, lane) : -1,
                  id2 = MANY && lane + 32 < pairs ? pair_id(p.e, lane + 32) : -1;
    const bool is_there = id >= 0 && id < p.e.num_slots, is_there2 = MANY && id2 >= 0 && id2 < p.e.num_slots;
    const int key = is_there ? id : -1 - lane, key2 = is_there2 ? id2 : -33 - lane;
    const uint32_t same = __match_any_sync(MF_FULL_WARP, key);
    const int first = __ffs(same) - 1;
    const bool leads = is_there && first == lane;
    const uint32_t leaders = __ballot_sync(MF_FULL_WARP, leads);
    const int tile = __popc(leaders & ((1u << first) - 1u)), token = lane / columns;
    int tiles = __popc(leaders), tile2 = 0;
    const int token2 = MANY ? (lane + 32) / columns : 0;
    bool leads2 = false;
    uint32_t before = 0, same2 = 0; /* who names the second pair's slot: first pairs, second ones */
    if (MANY) {
#pragma unroll 4
        for (int i = 0; i < 32; i++) {
            before |= __shfl_sync(MF_FULL_WARP, key, i) == key2 ? 1u << i : 0;
        }
        same2 = __match_any_sync(MF_FULL_WARP, key2);
        const int first2 = __ffs(same2) - 1, known = __shfl_sync(MF_FULL_WARP, tile, before ? __ffs(before) - 1 : 0);
        leads2 = is_there2 && !before && first2 == lane;
        const uint32_t leaders2 = __ballot_sync(MF_FULL_WARP, leads2);
        tile2 = before ? known : tiles + __popc(leaders2 & ((1u << first2) - 1u));
        tiles += __popc(leaders2);
    }
    if (leads) { /* tokens without the slot: any of its rows will do */
        s->slot[tile] = id;
        s->uses[tile] = 0;
        *(uint2 *)&s->row[tile * TOKENS] = make_uint2(lane * 0x10001u, lane * 0x10001u);
    }
    if (leads2) {
        s->slot[tile2] = id2;
        s->uses[tile2] = 0;
        *(uint2 *)&s->row[tile2 * TOKENS] = make_uint2((lane + 32) * 0x10001u, (lane + 32) * 0x10001u);
    }
    __syncwarp();
    if (is_there) {
        atomicOr(&s->uses[tile], 1u << token);
        const uint32_t of_token = (columns < 32 ? (1u << columns) - 1u : MF_FULL_WARP) << (token * columns);
        if (__ffs(same & of_token) - 1 == lane) { /* a token may name a slot twice */
            s->row[tile * TOKENS + token] = (int16_t)lane;
        }
    }
    s->tile[lane] = (int16_t)(is_there ? tile : id < 0 ? -1 : -2);
    if (MANY && lane + 32 < PAIRS) {
        if (is_there2) {
            atomicOr(&s->uses[tile2], 1u << token2);
            const uint64_t of_token = (((uint64_t)1 << columns) - 1) << (token2 * columns);
            if (!(before & (uint32_t)of_token) && __ffs(same2 & (uint32_t)(of_token >> 32)) - 1 == lane) {
                s->row[tile2 * TOKENS + token2] = (int16_t)(lane + 32);
            }
        }
        s->tile[lane + 32] = (int16_t)(is_there2 ? tile2 : id2 < 0 ? -1 : -2);
    }
    if (lane == 0) {
        s->num_tiles = tiles;
        const uint32_t tag =
            launches == 0xffffffffu ? 1 : launches + 1; /* not 0: that of words that nobody has written */
        s->tag = tag;
        store_relaxed(p.work + MF_CUDA_WORK_CLAIMED + blockIdx.x, tag);
        add_relaxed(p.work + MF_CUDA_WORK_STARTED, 1);
    }
    __syncwarp();
}

/* The i-th of n units or tiles.  WARPWISE: from both ends in turn, so that those of shared slots, whose weights may be
 * in the second-level cache already, come between others. */
template <bool WARPWISE> MF_DEV int in_turn(int i, int n)
{
    return !WARPWISE ? i : i & 1 ? n - 1 - (i >> 1) : i >> 1;
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

/* The stages of a group of w2.  bf16: of as many slots as are worked on at a time, part by part; FP8: slot by slot. */
struct down_order {
    int first, end, tile, part; /* tile: the how-manyeth in turn */
};

template <bool FP8, bool WARPWISE> MF_DEV down_order first_of(const share &w)
{
    return { 0, FP8 ? w.tiles : min(order<FP8, WARPWISE>::AT_ONCE, w.tiles), 0, 0 };
}

template <bool FP8, bool WARPWISE> MF_DEV down_order next_of(const share &w, down_order o)
{
    if (FP8) {
        if (++o.part == w.down_boxes) {
            o.part = 0;
            o.tile++;
        }
        return o;
    }
    if (++o.tile < o.end) {
        return o;
    }
    o.tile = o.first;
    if (++o.part == w.down_boxes) {
        o.part = 0;
        o.first = o.tile = o.end;
        o.end = min(o.end + order<FP8, WARPWISE>::AT_ONCE, w.tiles);
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

/* Somebody's share of w13 who does not run yet, and whom others may wait for: claimed in the order of blocks, so that
 * the block before it runs or is claimed.  One that starts meanwhile does the same work once more. */
static __device__ __noinline__ int claim_share(uint32_t *claimed, uint32_t tag)
{
    constexpr int AT_ONCE = 8;
    const int blocks = gridDim.x;
    for (int first = 0; first < blocks; first += AT_ONCE) {
        uint32_t of[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            of[i] = load_relaxed(claimed + min(first + i, blocks - 1));
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (first + i < blocks && of[i] != tag && atomicExch(claimed + first + i, tag) != tag) {
                return first + i;
            }
        }
    }
    return -1;
}

/* Waits for the n-th share of w13 that this block takes for another one.  Shared memory between the warps of all roles
 * is used from its beginning again. */
MF_DEV int next_share(one_state *s, int n)
{
    barrier_wait(&s->decided, n & 1);
    __syncwarp(); /* known: what this warp had to do with the share before is done */
    int next = 0;
    if ((threadIdx.x & 31) == 0) {
        next = s->next;
        barrier_arrive(&s->known);
    }
    next = __shfl_sync(MF_FULL_WARP, next, 0);
    if (next >= 0) {
        if ((threadIdx.x & 31) == 0) {
            barrier_arrive(&s->together);
        }
        barrier_wait(&s->together, n & 1);
    }
    return next;
}

template <bool FP8, bool WARPWISE>
MF_DEV void bring_w13(const mf_cuda_grouped &p, one_state *s, uint8_t *stages, const share &w, asking &a)
{
    const int per_slot = up_units_of(p);
    auto bring = [&](int unit, int k) {
        const int tile = unit / per_slot, row = (unit - tile * per_slot) * UP_ROWS;
        uint8_t *to = asking::begin(a, s, stages, order<FP8, WARPWISE>::UP_AHEAD, STAGE);
        copy_rows(p, to, s->slot[tile], 0, row, k * UP_LINES, &s->full[a.now.stage]);
        copy_rows(p, to + HALF, s->slot[tile], 1, row, k * UP_LINES, &s->full[a.now.stage]);
        asking::end(a);
    };
    if constexpr (FP8) {
        for (int i = 0; i < w.segments; i++) {
            const segment of = segment_of(w, i);
            for (int k = of.first; k < of.end; k++) {
                bring(of.unit, k);
            }
        }
    } else {
        constexpr int AT_ONCE = order<FP8, WARPWISE>::AT_ONCE;
        for (int first = 0; first < w.own_units; first += AT_ONCE) { /* as many in turn as are worked on at a time */
            const int end = min(first + AT_ONCE, w.own_units);
            for (int k = 0; k < w.up_stages; k++) {
                for (int n = first; n < end; n++) {
                    bring(w.block + in_turn<WARPWISE>(n, w.own_units) * gridDim.x, k);
                }
            }
        }
    }
}

template <bool FP8, bool WARPWISE>
MF_DEV void bring_weights(const mf_cuda_grouped &p, one_state *s, uint8_t *stages, const share &w)
{
    asking a = { { 0, p.one.stages, 1 }, { 0, p.one.stages, 0 }, 0 };
    bring_w13<FP8, WARPWISE>(p, s, stages, w, a);
    for (int n = 0;; n++) { /* what is on its way takes longer than to ask whether all blocks run */
        if (n > 0) {
            barrier_wait(&s->known, (n - 1) & 1);
        }
        const int next = load_relaxed(p.work + MF_CUDA_WORK_STARTED) == gridDim.x
                             ? -1
                             : claim_share(p.work + MF_CUDA_WORK_CLAIMED, s->tag);
        s->next = next;
        barrier_arrive(&s->decided);
        if (next < 0) {
            break;
        }
        bring_w13<FP8, WARPWISE>(p, s, stages, share_of<FP8>(p, w.tiles, next), a);
    }
    const uint32_t box_bytes = (uint32_t)(p.one.down_rows * p.one.box_lines * LINE);
    const int ahead = order<FP8, WARPWISE>::down_ahead(p.e.num_tokens);
    for (int group = w.first_group; group < w.first_group + w.groups; group++) {
        down_order o = first_of<FP8, WARPWISE>(w);
        for (int i = 0; i < w.down_stages; i++, o = next_of<FP8, WARPWISE>(w, o)) {
            uint8_t *to = asking::begin(a, s, stages, ahead, box_bytes);
            copy_rows(p, to, s->slot[in_turn<WARPWISE>(o.tile, w.tiles)], 2, group * p.one.down_rows,
                      o.part * p.one.box_lines, &s->full[a.now.stage]);
            asking::end(a);
        }
    }
}

/* By each warp that multiplies. */
MF_DEV void leave_stage(one_state *s, stage_cursor &r)
{
    __syncwarp();
    if ((threadIdx.x & 31) == 0) {
        barrier_arrive(&s->empty[r.stage]);
    }
    stage_cursor::next(r);
}

/* ---- tokens in shared memory ---- */

/* bf16 rows, chunks of 16 bytes changed about by row so that the rows of a column meet different banks. */
MF_DEV uint32_t row_chunk(int row, int chunk)
{
    return (uint32_t)((chunk ^ (row & 7)) << 4);
}

/* quantise_16 of eight lanes by themselves, with half as many instructions: a launch meets each of them but a few
 * times. */
MF_DEV uint4 quantise_alone(const uint4 (&v)[2], bool e8m0, float &scale)
{
    const uint32_t lanes = 0xffu << (threadIdx.x & 24),
                   words[8] = { v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w };
    float x[16];
    uint32_t amax = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        amax = max(amax, max(words[i] << 16 & 0x7fffffffu, words[i] & 0x7fff0000u));
    }
#pragma unroll
    for (int d = 1; d < 8; d *= 2) {
        amax = max(amax, __shfl_xor_sync(lanes, amax, d));
    }
    scale = quant_scale(QUANT_FP8_GROUP, 0.0f, e8m0, __uint_as_float(amax));
    if (scale < __uint_as_float(0x7f800000u)) {
        const float r = __frcp_rn(scale);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            x[i] = divided(x[i], scale, r);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 2; i++) { /* finite / inf, or NaN */
#pragma unroll
            for (int k = 0; k < 8; k++) {
                x[8 + k] = __fdividef(x[8 + k], scale);
            }
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float other = x[k];
                x[k] = x[8 + k];
                x[8 + k] = other;
            }
        }
    }
    return make_uint4(four_codes(x), four_codes(x + 4), four_codes(x + 8), four_codes(x + 12));
}

/* x as codes of a scale a token, eight threads for 128 columns; scales: of tokens. */
template <int CODES, int T> MF_DEV void stage_x_rows(const mf_cuda_grouped &p, one_state *s, uint8_t *x, float *scales)
{
    constexpr int KEPT = 2,
                  TEAMS = CONSUMERS / 8; /* groups of 128 that a thread holds a part of: others are read twice */
    const int tid = threadIdx.x - PRODUCERS, at = tid & 7, groups = (int)p.x_groups, all = groups * (int)p.e.num_tokens;
    uint4 raw[KEPT][2], other[2];
    auto see = [&](int i, const uint4(&v)[2]) {
        const uint32_t amax = larger_magnitude(larger_magnitude(0, v[0]), v[1]);
        atomicMax(&s->amax[i / groups], __reduce_max_sync(0xffu << (threadIdx.x & 24), amax));
    };
    auto put = [&](int i, const uint4(&v)[2]) {
        const int t = i / groups, line = i - t * groups, row = line * T + t;
        const float scale = row_code_scale<CODES>(s->amax[t]);
        const divisor d = divisor_of(scale);
        const uint2 low = eight_codes<CODES>(v[0], d), high = eight_codes<CODES>(v[1], d);
        *(uint4 *)(x + row * LINE + row_chunk(row, at)) = make_uint4(low.x, low.y, high.x, high.y);
        if (at == 0 && line == 0) {
            scales[t] = scale;
        }
    };
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if ((tid >> 3) + k * TEAMS < all) {
            load_group(p, (tid >> 3) + k * TEAMS, at * 16, raw[k]);
        }
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if ((tid >> 3) + k * TEAMS < all) {
            see((tid >> 3) + k * TEAMS, raw[k]);
        }
    }
    for (int i = (tid >> 3) + KEPT * TEAMS; i < all; i += TEAMS) {
        load_group(p, i, at * 16, other);
        see(i, other);
    }
    named_barrier<STAGED, CONSUMERS>();
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if ((tid >> 3) + k * TEAMS < all) {
            put((tid >> 3) + k * TEAMS, raw[k]);
        }
    }
    for (int i = (tid >> 3) + KEPT * TEAMS; i < all; i += TEAMS) {
        load_group(p, i, at * 16, other);
        put(i, other);
    }
}

template <int CODES, int T> MF_DEV void stage_x(const mf_cuda_grouped &p, one_state *s, uint8_t *x, float *scales)
{
    const int tid = threadIdx.x - PRODUCERS;
    if constexpr (BY_ROW<CODES>) {
        stage_x_rows<CODES, T>(p, s, x, scales);
        fence_shared_for_products();
    } else if constexpr (CODES) { /* eight threads for 128 columns, the next ones on their way; a line's tokens together
                                   */
        const bool one = p.e.num_tokens == 1; /* no thread waits for a token that is not there */
        const int team = tid >> 3, at = tid & 7, t = one ? 0 : team % T, step = one ? CONSUMERS / 8 : CONSUMERS / 8 / T;
        int line = one ? team : team / T;
        const int64_t token = t * p.e.x_stride + at * 16;
        const int lines = t < p.e.num_tokens ? (int)p.x_groups : 0;
        uint4 next[2] = {};
        if (line < lines) {
            load_columns(p, token + line * 128, next);
        }
        while (line < lines) {
            const uint4 raw[2] = { next[0], next[1] };
            const int row = line * T + t;
            line += step;
            if (line < lines) {
                load_columns(p, token + line * 128, next);
            }
            float scale;
            *(uint4 *)(x + row * LINE + row_chunk(row, at)) = quantise_alone(raw, p.e.e8m0, scale);
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

/* ---- words that blocks hand over: 4 bytes and this launch's tag, stored and loaded as one ---- */

static_assert(MF_CUDA_WORK_HANDED % 2 == 0 && MF_CUDA_WORK_VALUES % 4 == 0, "8 bytes; two of them");

MF_DEV uint64_t *values_of(const mf_cuda_grouped &p, int row, int column)
{
    return (uint64_t *)(p.work + MF_CUDA_WORK_VALUES) + ((row * p.width + column) >> 1);
}

MF_DEV uint64_t *handed_of(const mf_cuda_grouped &p, int block, int i)
{
    return (uint64_t *)(p.work + MF_CUDA_WORK_HANDED) + block * MF_CUDA_ONE_HANDED + i;
}

MF_DEV void put_word(uint64_t *at, uint32_t value, uint32_t tag)
{
    store_8_relaxed(at, (uint64_t)tag << 32 | value);
}

MF_DEV uint32_t take_word(const uint64_t *at, uint32_t tag)
{
    uint64_t v;
    do {
        v = load_8_relaxed(at);
    } while ((uint32_t)(v >> 32) != tag);
    return (uint32_t)v;
}

/* COUNT pieces of the intermediate, four values in two words each, as soon as they are there.  All are on their way
 * before the first is looked at, and only what is missing is asked for again: all blocks read the same few lines. */
template <int COUNT, typename PUT>
MF_DEV void take_values(const uint64_t *const (&from)[COUNT], uint32_t missing, uint32_t tag, PUT put)
{
    while (missing) {
        uint64_t v[COUNT][2];
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if (missing >> k & 1) {
                load_16_relaxed(from[k], v[k][0], v[k][1]);
            }
        }
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if ((missing >> k & 1) && (uint32_t)(v[k][0] >> 32) == tag && (uint32_t)(v[k][1] >> 32) == tag) {
                put(k, (uint32_t)v[k][0], (uint32_t)v[k][1]);
                missing &= ~(1u << k);
            }
        }
    }
}

/* The intermediate as codes of a scale a row, a warp a row: a lane has four columns of each line.  scales: by tile and
 * token. */
template <int CODES, int T>
MF_DEV void stage_h_rows(const mf_cuda_grouped &p, const one_state *s, const share &w, uint8_t *h, float *scales)
{
    constexpr int AT_ONCE = 8, BATCHES = MF_CUDA_ONE_ROW_LINES / AT_ONCE;
    const int warp = (threadIdx.x - PRODUCERS) >> 5, lane = threadIdx.x & 31, lines = p.width / 128;
    const int columns = (int)p.e.num_columns;
    for (int pair = warp; pair < p.e.num_pairs; pair += WARPS) {
        const int tile = s->tile[pair], t = pair / columns;
        if (tile < 0 || s->row[tile * TOKENS + t] != pair) {
            continue;
        }
        uint32_t words[MF_CUDA_ONE_ROW_LINES][2], amax = 0;
#pragma unroll
        for (int b = 0; b < BATCHES; b++) {
            const uint64_t *from[AT_ONCE];
            uint32_t missing = 0;
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                const int line = b * AT_ONCE + k;
                from[k] = values_of(p, pair, line * 128 + lane * 4);
                missing |= line < lines ? 1u << k : 0;
                words[line][0] = words[line][1] = 0;
            }
            take_values(from, missing, s->tag, [&](int k, uint32_t low, uint32_t high) {
                words[b * AT_ONCE + k][0] = low;
                words[b * AT_ONCE + k][1] = high;
            });
        }
#pragma unroll
        for (int line = 0; line < MF_CUDA_ONE_ROW_LINES; line++) {
            amax = larger_magnitude(larger_magnitude(amax, words[line][0]), words[line][1]);
        }
        const float scale = row_code_scale<CODES>(__reduce_max_sync(MF_FULL_WARP, amax));
        const divisor d = divisor_of(scale);
#pragma unroll
        for (int line = 0; line < MF_CUDA_ONE_ROW_LINES; line++) {
            if (line < lines) {
                *(uint32_t *)(h + ((tile * p.one.h_lines + line) * H_ROWS + t) * LINE + row_chunk(t, lane >> 2) +
                              (lane & 3) * 4) = four_codes_of<CODES>(words[line][0], words[line][1], d);
            }
        }
        if (lane == 0) {
            scales[tile * T + t] = scale;
        }
    }
}

/* The intermediate as codes of a scale per 128 columns, by the whole block, eight threads for as many: some lines at a
 * time, in the order of tiles, whose products follow.  It comes over x, which nobody multiplies any more. */
struct h_codes {
    int done, all, groups; /* lines of rows */
    bool one;              /* of one token: a row a tile */
    uint64_t v[4][2];      /* of the thread's next line four columns of every 32, as they were when it was asked for */
};

/* Line i's tile * TOKENS + token; line: of the row. */
MF_DEV int row_of_line(const one_state *s, const h_codes &a, int i, int &line)
{
    const int n = i / a.groups;
    line = i - n * a.groups;
    return a.one ? n * TOKENS : s->by_tile[n];
}

MF_DEV void ask_for_codes(const mf_cuda_grouped &p, const one_state *s, h_codes &a)
{
    const int i = a.done + ((threadIdx.x - PRODUCERS) >> 3);
    if (i < a.all) {
        int line;
        const int row = s->row[row_of_line(s, a, i, line)];
        const uint64_t *from = values_of(p, row, line * 128 + (threadIdx.x & 7) * 4);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            load_16_relaxed(from + 16 * k, a.v[k][0], a.v[k][1]);
        }
    }
}

/* The next `count` lines at most; returns how many tiles are there. */
template <int T>
MF_DEV int make_codes(const mf_cuda_grouped &p, const one_state *s, const share &w, uint8_t *h, float *scales,
                      int count, h_codes &a)
{
    const int team = (threadIdx.x - PRODUCERS) >> 3, at = threadIdx.x & 7, i = a.done + team;
    int line;
    if (team < count && i < a.all) {
        const int of = row_of_line(s, a, i, line), tile = of / TOKENS, t = of & (TOKENS - 1);
        const uint64_t *from = values_of(p, s->row[of], line * 128 + at * 4);
        const uint32_t tag = s->tag;
        bool again;
        do { /* only what was missing: all blocks read the same few lines */
            again = false;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if ((uint32_t)(a.v[k][0] >> 32) != tag || (uint32_t)(a.v[k][1] >> 32) != tag) {
                    load_16_relaxed(from + 16 * k, a.v[k][0], a.v[k][1]);
                    again = true;
                }
            }
        } while (again);
        uint32_t words[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            words[k] = (uint32_t)a.v[k >> 1][k & 1];
        }
        const uint4 raw[2] = { make_uint4(words[0], words[1], words[2], words[3]),
                               make_uint4(words[4], words[5], words[6], words[7]) };
        float scale;
        const uint4 q = quantise_alone(raw, p.e.e8m0, scale);
        const uint32_t codes[4] = { q.x, q.y, q.z, q.w };
        const int row = (tile * p.one.h_lines + line) * H_ROWS + t;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            *(uint32_t *)(h + row * LINE + row_chunk(row, 2 * k + (at >> 2)) + (at & 3) * 4) = codes[k];
        }
        if (at == 0) {
            scales[(tile * p.one.h_lines + line) * T + t] = scale;
        }
    }
    fence_shared_for_products();
    a.done = min(a.done + count, a.all);
    ask_for_codes(p, s, a); /* on their way while these are multiplied */
    named_barrier<STAGED, CONSUMERS>();
    return a.done == a.all ? w.tiles : row_of_line(s, a, a.done, line) / TOKENS;
}

/* The intermediate, by the whole block: bf16, or codes of a scale a row, which come over x. */
template <int CODES, int T>
MF_DEV void stage_h(const mf_cuda_grouped &p, one_state *s, const share &w, uint8_t *h, float *scales)
{
    const int tid = threadIdx.x - PRODUCERS;
    const uint32_t tag = s->tag;
    barrier_wait(&s->ends, 0); /* read next, behind the barrier below */
    named_barrier<STAGED, CONSUMERS>();
    if constexpr (BY_ROW<CODES>) {
        stage_h_rows<CODES, T>(p, s, w, h, scales);
        fence_shared_for_products();
    } else {
        constexpr int AT_ONCE = 6;
        const int pieces = p.width / 4, all = (int)p.e.num_pairs * pieces;
        for (int first = tid; first < all; first += AT_ONCE * CONSUMERS) {
            uint32_t missing = 0;
            const uint64_t *from[AT_ONCE];
            uint8_t *to[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                const int i = first + k * CONSUMERS, row = i / pieces, c = i - row * pieces,
                          tile = i < all ? s->tile[row] : -1;
                const bool is_mine = tile >= 0 && s->row[tile * TOKENS + row / (int)p.e.num_columns] == row;
                missing |= is_mine ? 1u << k : 0;
                from[k] = values_of(p, row, c * 4);
                to[k] = h + row * pieces * 8 + row_chunk(row, c >> 1) + (c & 1) * 8;
            }
            take_values(from, missing, tag,
                        [&](int k, uint32_t low, uint32_t high) { *(uint2 *)to[k] = make_uint2(low, high); });
        }
    }
    named_barrier<STAGED, CONSUMERS>();
}

/* WARPWISE: a warp brings the intermediate of the tiles whose rows of w2 it multiplies, row by row as they become
 * known. */
struct asking_h {
    int tile, row, chunk; /* the next: the tile in turn; its row of h, -1: none yet; piece */
    uint32_t missing, tokens;
};

constexpr int H_AT_ONCE = 6; /* pieces of a lane */

MF_DEV void next_row(const mf_cuda_grouped &p, const one_state *s, int tiles, asking_h &a)
{
    const int pieces = p.width / 4;
    a.chunk += 32 * H_AT_ONCE;
    if (a.row < 0 || a.chunk >= pieces) {
        a.chunk = 0;
        if (a.row >= 0 && !a.tokens) {
            a.tile += WARPS;
            a.row = -1;
        }
        if (a.tile >= tiles) {
            return;
        }
        const int tile = in_turn<true>(a.tile, tiles);
        if (a.row < 0) {
            a.tokens = s->uses[tile];
        }
        a.row = s->row[tile * TOKENS + __ffs(a.tokens) - 1];
        a.tokens &= a.tokens - 1;
    }
    a.missing = 0;
#pragma unroll
    for (int k = 0; k < H_AT_ONCE; k++) {
        a.missing |= a.chunk + 32 * k + (int)(threadIdx.x & 31) < pieces ? 1u << k : 0;
    }
}

/* Looks once at what is missing of a row's piece; all lanes. */
MF_DEV void ask_for_h(const mf_cuda_grouped &p, const one_state *s, int tiles, uint8_t *h, asking_h &a)
{
    const int pieces = p.width / 4, first = a.chunk + (threadIdx.x & 31);
    const uint32_t tag = s->tag;
    const uint64_t *from = values_of(p, a.row, first * 4);
    uint8_t *to = h + a.row * pieces * 8;
    uint64_t v[H_AT_ONCE][2];
#pragma unroll
    for (int k = 0; k < H_AT_ONCE; k++) {
        if (a.missing >> k & 1) {
            load_16_relaxed(from + 64 * k, v[k][0], v[k][1]);
        }
    }
#pragma unroll
    for (int k = 0; k < H_AT_ONCE; k++) {
        if ((a.missing >> k & 1) && (uint32_t)(v[k][0] >> 32) == tag && (uint32_t)(v[k][1] >> 32) == tag) {
            const int c = first + 32 * k;
            *(uint2 *)(to + row_chunk(a.row, c >> 1) + (c & 1) * 8) = make_uint2((uint32_t)v[k][0], (uint32_t)v[k][1]);
            a.missing &= ~(1u << k);
        }
    }
    if (!__any_sync(MF_FULL_WARP, a.missing)) {
        __syncwarp();
        next_row(p, s, tiles, a);
    }
}

/* ---- what ends groups of w2's rows ---- */

MF_DEV float as_stored(float v, int dtype)
{
    return dtype == MF_BF16 ? bf16_to_f32((uint16_t)pack_bf16(v, 0.0f)) : v;
}

/* What a column adds to a token's element; sums: of tile 0, `stride` floats from one to the next one's.  Few
 * instructions: nothing else of the GPU runs any more. */
MF_DEV float add_columns(const one_state *s, float acc, int first, int end, const float *sums, int stride)
{
#pragma unroll 4
    for (int i = first; i < end; i++) {
        const int tile = s->tile[i];
        const float v = tile < 0 ? 0.0f : sums[max(tile, 0) * stride], next = __fmaf_rn(s->weight[i], v, acc);
        acc = tile == -1 ? acc : next;
    }
    return acc;
}

/* Element `at` of out, for a token: the chain of ref/sum_reduce.c over the columns. */
MF_DEV void combine(const mf_cuda_grouped &p, const mf_cuda_sum &sum, const one_state *s, int64_t at, int t,
                    const float *sums, int stride)
{
    const int columns = (int)p.e.num_columns, first = t * columns, end = first + columns, shared = end - sum.num_shared;
    const float residual =
        sum.residual ? load_float(sum.residual, sum.out_dtype, t * sum.residual_stride + at, sum.bytewise) : 0.0f;
    const float routed = add_columns(s, 0.0f, first, shared, sums, stride);
    float out = __fmaf_rn(sum.factor, routed, add_columns(s, 0.0f, shared, end, sums, stride));
    if (sum.residual) {
        out = __fadd_rn(out, residual);
    }
    store_float(sum.out, sum.out_dtype, t * sum.out_stride + at, out, sum.bytewise);
}

/* A tile's sums of a group, as y would hold them: [row][T]. */
template <int T> MF_DEV float *sums_of(const mf_cuda_grouped &p, float *sums, int group, int tile, int row)
{
    return sums + ((group * p.one.most_tiles + tile) * p.one.down_rows + row) * T;
}

/* Which of a group's tokens, or of y's rows, a thread ends first; divided before anybody waits for it. */
MF_DEV uint32_t place_of(const mf_cuda_grouped &p)
{
    return (threadIdx.x - PRODUCERS) / (uint32_t)p.one.down_rows;
}

/* Rows of out, or of y, of `count` groups from group `first` of the block's. */
template <int T>
MF_DEV void end_groups(const mf_cuda_grouped &p, const mf_cuda_sum &sum, const one_state *s, const share &w, int first,
                       int count, float *sums, uint32_t place)
{
    const uint32_t tid = threadIdx.x - PRODUCERS, rows = (uint32_t)p.one.down_rows,
                   each = (uint32_t)(p.one.combines ? p.e.num_tokens : p.e.num_pairs);
    const int stride = (int)rows * T;
    for (uint32_t i = tid; i < (uint32_t)count * each * rows; i += CONSUMERS) {
        uint32_t rest = place;
        if (i != tid) {
            rest = i / rows;
        }
        const uint32_t row = i - rest * rows, group = each == 1 ? rest : rest / each, of = rest - group * each;
        const int64_t at = (int64_t)((w.first_group + first + (int)group) * (int)rows + (int)row);
        const float *own = sums_of<T>(p, sums, (int)group, 0, (int)row);
        if (at >= p.e.hidden_size) {
            continue;
        }
        if (p.one.combines) {
            combine(p, sum, s, at, (int)of, own + of, stride);
        } else if (s->tile[of] != -1) {
            const float v = s->tile[of] < 0 ? 0.0f : own[s->tile[of] * stride + of / (uint32_t)p.e.num_columns];
            store_float(p.e.y, p.e.y_dtype, y_offset(p.e, of) + at, v, p.e.bytewise);
        }
    }
}

#endif
