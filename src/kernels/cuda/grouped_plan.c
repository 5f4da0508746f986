/* grouped_plan.c - which tables grouped.cu computes, and how a call of them is cut into tiles: see plan.h. */
#include "kernels/carve.h"
#include "kernels/cuda/packed_few.h"
#include "kernels/cuda/packed_few4.h"
#include "kernels/cuda/plan.h"
#include "kernels/format.h"
#include "kernels/quantise.h"

enum { MANY_PER_SLOT = 48, SOME_PER_SLOT = 66, MOST_STAGES = 6 };
enum { TOKENS_FEW = 64, TOKENS_MANY_BF16 = 160, TOKENS_MANY_FP8 = 128 };
enum { UNIT_LINES = 8, SHORT_PAIRS = 16, UNITS_EACH = 4, FEW_UNIT_BYTES = 32768 };
enum { FEW_PER_SLOT = 8, FEW_OF_WIDE = 4, SEVERAL_PER_SLOT = 20 }; /* grouped_packed.cuh's tiles */
enum { UP_ROWS = 128, DOWN_ROWS = 256, IN_ORDER_PER_SLOT = 192, PAIR_FULL_TOKENS = 128 };
/* grouped_rows.cu's: tokens a slot from which on it is taken, lines of w2 a unit. */
enum { ROWS_PER_SLOT = 64, ROWS_UNIT_LINES = 14, ROWS_FIXED_BYTES = 6144, ROWS_MOST_STAGES = 4 };
/* packed_few.cu: lines of a warp, at least, of w13 and of w2, for one token and for more. */
enum { FEW_LINES_UP_ONE = 4, FEW_LINES_UP = 7, FEW_LINES_DOWN_ONE = 2, FEW_LINES_DOWN = 4, FEW_BYTES = 400 * 1000 * 1000 };
enum { MOST_ROW_COLUMNS = 1 << 17 }; /* of int8, whose products a sum of 32 bits holds */
enum { FIXED_BYTES = 12 * 1024 + 512, PACKED_FIXED_BYTES = 6656 }; /* of shared memory: staging, barriers, units */

static bool is_swiglu(int32_t activation)
{
    return activation == MF_ACT_SILU || activation == MF_ACT_SILU_CLAMP || activation == MF_ACT_SILU_CLAMP_AFTER ||
           activation == MF_ACT_SWIGLU_OAI;
}

static bool has_f32_scales(const mf_cuda_matrix *m)
{
    return m->scale_dtype == MF_F32 && !m->reserved;
}

static int64_t stages_of(const mf_cuda_gpu *gpu, const mf_experts *experts, int32_t codes, int32_t max_tokens)
{
    const int64_t room = gpu->shared_bytes - FIXED_BYTES - 10 * (experts->num_slots + 1);
    const int64_t stages = room / mf_cuda_grouped_stage_bytes(codes, max_tokens);
    return stages < MOST_STAGES ? stages : MOST_STAGES;
}

/* The same of grouped_pairs.cu. */
static int64_t pair_stages(const mf_cuda_gpu *gpu, const mf_experts *experts)
{
    const int64_t room = gpu->shared_bytes - 4 * MF_CUDA_PAIR_PIECE - MF_CUDA_PAIR_STATE - 8 * (experts->num_slots + 1);
    const int64_t stages = room / mf_cuda_grouped_stage_bytes(false, MF_CUDA_PAIR_TOKENS);
    return stages < MOST_STAGES ? stages : MOST_STAGES;
}

static bool has_row_scales(const mf_cuda_matrix *m)
{
    return (m->scale_dtype == MF_F32 || m->scale_dtype == MF_BF16) && !m->reserved && m->scale_row_stride >= 0 &&
           m->scale_row_stride <= 1 << 16;
}

/* Codes of a scale a row that meet those of a scale a token, as the copy engine and the products take them. */
static mf_cuda_codes row_codes(const mf_cuda_matrix *m)
{
    if (!has_row_scales(m) || m->n % 128 != 0 || m->k % 128 != 0 || (uintptr_t)m->data % 16 != 0 || m->row_stride % 16 != 0 ||
        m->n > MOST_ROW_COLUMNS || m->k > MOST_ROW_COLUMNS) {
        return MF_CUDA_CODES_NONE;
    }
    return m->format == MF_FORMAT_FP8_CHANNEL && m->quant == MF_QUANT_FP8_TOKEN     ? MF_CUDA_CODES_FP8_ROW
           : m->format == MF_FORMAT_INT8_CHANNEL && m->quant == MF_QUANT_INT8_TOKEN ? MF_CUDA_CODES_INT8_ROW
                                                                                    : MF_CUDA_CODES_NONE;
}

/* What all matrices of a slot are; its paths say the same of bf16 and FP8 blocks. */
static bool slot_is(const mf_cuda_slot *slot, int32_t codes)
{
    const mf_cuda_matrix *of[3] = { &slot->gate, &slot->up, &slot->down };
    bool is = slot->gate.data && is_swiglu(slot->activation);
    for (int i = 0; i < 3 && is; i++) {
        is = codes == MF_CUDA_CODES_NONE || (codes == MF_CUDA_CODES_FP8_BLOCK ? has_f32_scales(of[i]) : row_codes(of[i]) == codes);
    }
    const int32_t path = codes == MF_CUDA_CODES_NONE        ? MF_CUDA_PATH_BF16
                         : codes == MF_CUDA_CODES_FP8_BLOCK ? MF_CUDA_PATH_FP8
                                                            : MF_CUDA_PATH_PLAIN;
    return is && slot->path13 == path && slot->path2 == path;
}

bool mf_cuda_is_grouped(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_cuda_slot *slots, int32_t *codes)
{
    *codes = MF_CUDA_CODES_NONE;
    if (gpu->capability != 90 || experts->act_dtype != MF_BF16 || experts->num_slots > MF_CUDA_GROUPED_SLOTS) {
        return false;
    }
    const int32_t path = slots[0].path13;
    if (path != MF_CUDA_PATH_BF16) {
        *codes = path == MF_CUDA_PATH_FP8 ? MF_CUDA_CODES_FP8_BLOCK : row_codes(&slots[0].up);
    }
    bool all = path == MF_CUDA_PATH_BF16 || *codes;
    for (int64_t s = 0; s < experts->num_slots && all; s++) {
        all = slot_is(&slots[s], *codes);
    }
    return all && stages_of(gpu, experts, *codes, TOKENS_FEW) >= 3 &&
           stages_of(gpu, experts, *codes, *codes ? TOKENS_MANY_FP8 : TOKENS_MANY_BF16) >= 3;
}

mf_cuda_packed mf_cuda_packed_matrix(const mf_cuda_matrix *m)
{
    const int64_t group = m->group_size, bits = mf_format_bits((mf_format)m->format), unit = bits == 4 ? 32 : 16;
    const bool by_token = (m->format == MF_FORMAT_FP8_CHANNEL && m->quant == MF_QUANT_FP8_TOKEN) ||
                          (m->format == MF_FORMAT_INT8_CHANNEL && m->quant == MF_QUANT_INT8_TOKEN);
    if ((m->quant != MF_QUANT_NONE && !by_token) || m->reserved || m->k % unit != 0 || (uintptr_t)m->data % 16 != 0 ||
        m->row_stride * bits % 128 != 0 || m->n > INT32_MAX / 2 || m->k > INT32_MAX / 2) {
        return MF_CUDA_PACKED_NONE;
    }
    const bool is_small = (m->n + 1) * (m->scale_row_stride + 1) <= INT32_MAX; /* places of scales are 32 bits */
    switch (m->format) {
    case MF_FORMAT_FP8_BLOCK:
        return MF_CUDA_PACKED_FP8_BLOCK;
    case MF_FORMAT_FP8_CHANNEL:
        return MF_CUDA_PACKED_FP8_CHANNEL;
    case MF_FORMAT_INT8_CHANNEL:
        return MF_CUDA_PACKED_INT8;
    case MF_FORMAT_F16:
        return MF_CUDA_PACKED_F16;
    case MF_FORMAT_INT4_GROUP:
        return !is_small || group < 32 || group > 1 << 30 || (group & (group - 1)) != 0 ? MF_CUDA_PACKED_NONE
               : m->scale_dtype == MF_BF16 && !m->zero                                  ? MF_CUDA_PACKED_INT4
                                                                                        : MF_CUDA_PACKED_INT4_ANY;
    case MF_FORMAT_MXFP4:
        return is_small ? MF_CUDA_PACKED_MXFP4 : MF_CUDA_PACKED_NONE;
    default:
        return MF_CUDA_PACKED_NONE;
    }
}

static int64_t packed_stages(const mf_cuda_gpu *gpu, const mf_experts *experts, int32_t packed, int32_t max_tokens)
{
    const int64_t shared =
        max_tokens <= MF_CUDA_PACKED_SEVERAL ? gpu->shared_bytes / 2 : gpu->shared_bytes; /* two blocks */
    const int64_t fixed = max_tokens == MF_CUDA_PACKED_MANY ? PACKED_FIXED_BYTES : PACKED_FIXED_BYTES / 3;
    const int64_t room = shared - fixed - 8 * (experts->num_slots + 1);
    const int64_t stages = room / mf_cuda_packed_stage_bytes(packed, max_tokens);
    return stages < MOST_STAGES ? stages : MOST_STAGES;
}

/* What both are, where one kernel takes both. */
static mf_cuda_packed both_packed(mf_cuda_packed a, mf_cuda_packed b)
{
    const bool int4 = (a == MF_CUDA_PACKED_INT4 || a == MF_CUDA_PACKED_INT4_ANY) &&
                      (b == MF_CUDA_PACKED_INT4 || b == MF_CUDA_PACKED_INT4_ANY);
    return a == b ? a : int4 ? MF_CUDA_PACKED_INT4_ANY : MF_CUDA_PACKED_NONE;
}

/* Gate and up are one unit, whose scales that come with its codes lie alike. */
static bool lie_alike(const mf_cuda_matrix *gate, const mf_cuda_matrix *up)
{
    return mf_format_bits((mf_format)gate->format) == 4
               ? gate->group_size == up->group_size && gate->scale_dtype == up->scale_dtype && !gate->zero == !up->zero
               : gate->format != MF_FORMAT_FP8_BLOCK || gate->scale_dtype == up->scale_dtype;
}

mf_cuda_packed mf_cuda_packed_of(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_cuda_slot *slots)
{
    if (gpu->capability != 90 || experts->act_dtype != MF_BF16 || experts->num_slots > MF_CUDA_GROUPED_SLOTS) {
        return MF_CUDA_PACKED_NONE;
    }
    mf_cuda_packed all = mf_cuda_packed_matrix(&slots[0].up);
    for (int64_t s = 0; s < experts->num_slots && all != MF_CUDA_PACKED_NONE; s++) {
        const mf_cuda_matrix *of[3] = { &slots[s].gate, &slots[s].up, &slots[s].down };
        if (!slots[s].gate.data || !is_swiglu(slots[s].activation) || !lie_alike(of[0], of[1])) {
            return MF_CUDA_PACKED_NONE;
        }
        for (int i = 0; i < 3; i++) {
            all = of[i]->quant != slots[0].up.quant
                      ? MF_CUDA_PACKED_NONE
                      : both_packed(all, mf_cuda_packed_matrix(of[i])); /* one matrix with zero points: all go that way */
        }
    }
    const bool fits = all != MF_CUDA_PACKED_NONE && packed_stages(gpu, experts, all, MF_CUDA_PACKED_SOME) >= 2;
    return fits ? all : MF_CUDA_PACKED_NONE;
}

/* Whether grouped_pairs.cu may take a call: slots of one width with many tokens; fewer than these are gathered faster. */
static bool copies_rows(const mf_experts *experts, const mf_cuda_paths *paths, int64_t pairs)
{
    return paths->w13 == 1u << MF_CUDA_PATH_BF16 && paths->width > 0 && pairs > MF_CUDA_PREPARE_PAIRS &&
           pairs / experts->num_slots >= IN_ORDER_PER_SLOT;
}

/* And does: it stores 16 bytes of y at a time, at places that it keeps in 32 bits. */
static bool takes_pairs(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_cuda_paths *paths, const mf_cuda_experts *e)
{
    return !paths->packed && copies_rows(experts, paths, e->num_pairs) && e->y_dtype == MF_BF16 && e->y_is_wide &&
           e->num_tokens * e->y_stride + e->num_columns * e->y_column_stride <= (int64_t)8 * UINT32_MAX &&
           gpu->num_multiprocessors > 1 && pair_stages(gpu, experts) >= 3;
}

size_t mf_cuda_grouped_lay_out(const mf_experts *experts, const mf_cuda_paths *paths, int64_t num_tokens,
                               int64_t num_columns, mf_dtype y_dtype, bool with_y, uint8_t *base,
                               mf_cuda_experts_plan *plan)
{
    size_t total = 0;
    mf_cuda_grouped *g = &plan->grouped;
    const int64_t hidden = experts->hidden_size, width = experts->max_intermediate_size;
    const int64_t pairs = mf_carve_count(num_tokens, num_columns, 1), stride = (width + 127) / 128 * 128;
    g->offsets = mf_carve(base, &total, experts->num_slots + 1, 4);
    g->sorted = mf_carve(base, &total, pairs, 4);
    if (paths->packed) { /* x with its columns in the products' order */
        g->x_codes = mf_carve(base, &total, mf_carve_count(num_tokens, (hidden + 127) / 128 * 128, 1), 2);
        g->e.h = mf_carve(base, &total, mf_carve_count(pairs, stride, 1), 2);
        if (paths->quant) {
            g->x_scales_out = mf_carve(base, &total, num_tokens, 4);
            g->h_scales = mf_carve(base, &total, pairs, 4);
        }
    } else if (paths->codes) {
        const bool by_row = paths->codes != MF_CUDA_CODES_FP8_BLOCK;
        g->x_codes = mf_carve(base, &total, mf_carve_count(num_tokens, hidden, 1), 1);
        g->x_scales_out = mf_carve(base, &total, mf_carve_count(num_tokens, by_row ? 1 : hidden / 128, 1), 4);
        g->h_codes = mf_carve(base, &total, mf_carve_count(pairs, stride, 1), 1);
        g->h_scales = mf_carve(base, &total, mf_carve_count(pairs, by_row ? 1 : stride / 128, 1), 4);
        /* Before they are codes: all whose scale is a row's; of blocks, grouped_few.cu's. */
        const int64_t few = by_row || pairs < MF_CUDA_FEW_GROUPED_PAIRS ? pairs : MF_CUDA_FEW_GROUPED_PAIRS;
        g->e.h = mf_carve(base, &total, mf_carve_count(few, stride, 1), 2);
    } else {
        g->e.h = mf_carve(base, &total, mf_carve_count(pairs, stride, 1), 2);
        if (copies_rows(experts, paths, pairs)) {
            g->x_sorted = mf_carve(base, &total, mf_carve_count(pairs, hidden, 1), 2);
        }
        plan->x_copy =
            mf_carve(base, &total, mf_carve_count(num_tokens, hidden, 1), 2); /* for an x that is not aligned */
    }
    if (with_y) {
        plan->y = mf_carve(base, &total, mf_carve_count(pairs, hidden, 1), mf_dtype_size(y_dtype));
    }
    return total;
}

/* Few tokens: short rows for a token or two, so that there are units for every multiprocessor. */
static void plan_few(const mf_cuda_gpu *gpu, const mf_experts *experts, mf_cuda_grouped *g)
{
    if (g->e.num_tokens > MF_CUDA_FEW_GROUPED_TOKENS || g->e.num_pairs > MF_CUDA_FEW_GROUPED_PAIRS) {
        return;
    }
    const int64_t width = experts->max_intermediate_size, hidden = experts->hidden_size;
    const int32_t rows = g->e.num_pairs <= SHORT_PAIRS ? 32 : 64;
    g->few_rows = rows;
    g->up_tiles = (int32_t)((width + rows - 1) / rows);
    g->down_tiles = (int32_t)((hidden + 2 * rows - 1) / (2 * rows));
    const int64_t row_bytes = width * (g->codes ? 1 : 2), unit_bytes = row_bytes * 2 * rows;
    int64_t steps = unit_bytes >= FEW_UNIT_BYTES ? 1 : FEW_UNIT_BYTES / (unit_bytes < 1 ? 1 : unit_bytes);
    steps = steps > g->down_tiles ? g->down_tiles : steps;
    g->down_steps = (int32_t)steps;
    g->down_units = (int32_t)((g->down_tiles + steps - 1) / steps);
    const int64_t stages = (gpu->shared_bytes - 20 * 1024) / mf_cuda_few_stage_bytes(rows);
    g->stages = (int32_t)(stages < MOST_STAGES ? stages : MOST_STAGES);
}

/* Warps that divide a tile's `lines` among them, so that each has at least so many; 0: they do not fit. */
static int32_t few_splits(const mf_cuda_gpu *gpu, const mf_cuda_experts *e, int64_t lines, int64_t at_least)
{
    const int most = e->num_tokens <= 2 ? (int)e->num_tokens : MF_CUDA_PACKED_FEW_TOKENS;
    int32_t splits = MF_CUDA_PACKED_FEW_WARPS;
    while (splits > 1 && lines / splits < at_least) {
        splits /= 2;
    }
    const bool fits = mf_cuda_packed_few_bytes(e->num_pairs, most, lines, splits) <= gpu->shared_bytes;
    return fits && 2 * lines <= 32 * MF_CUDA_PACKED_FEW_SCALES * splits ? splits : 0;
}

/* FP8 blocks and few tokens, whose rows can be copied 16 bytes at a time; past FEW_BYTES of weights the other kernel is faster. */
static void plan_packed_few(const mf_cuda_gpu *gpu, const mf_experts *experts, mf_cuda_grouped *g)
{
    const mf_cuda_experts *e = &g->e;
    const bool one = e->num_tokens <= 1;
    if (g->packed != MF_CUDA_PACKED_FP8_BLOCK || e->num_tokens > MF_CUDA_PACKED_FEW_TOKENS || e->num_pairs > MF_CUDA_PACKED_FEW_PAIRS ||
        g->width == 0 || (uintptr_t)e->x % 16 != 0 || (!one && e->x_stride % 8 != 0) ||
        e->num_pairs * 3 * experts->hidden_size * g->width > FEW_BYTES) {
        return;
    }
    g->few_splits = few_splits(gpu, e, (experts->hidden_size + 127) / 128, one ? FEW_LINES_UP_ONE : FEW_LINES_UP);
    g->few_splits2 = few_splits(gpu, e, (g->width + 127) / 128, one ? FEW_LINES_DOWN_ONE : FEW_LINES_DOWN);
    g->few_blocks = g->few_splits && g->few_splits2 ? gpu->num_multiprocessors : 0;
}

/* packed_few4.cu's rings: warps, at most `wanted`, and stages of which these have room; as many warps as can be with two
 * stages, then stages while a unit has a use for them. */
static bool few4_rings(int64_t wanted, int64_t least, int64_t stage_bytes, int64_t stages, int64_t room, int32_t *warps,
                       int32_t *depth)
{
    const int64_t fit = room > 0 ? room / (2 * stage_bytes) : 0;
    *warps = (int32_t)(wanted < fit ? wanted : fit);
    *depth = 2;
    while (*depth < MF_CUDA_FEW4_DEPTH && *depth < stages && *warps * (*depth + 1) * stage_bytes <= room) {
        ++*depth;
    }
    return *warps >= least;
}

/* Codes of 4 bits and few tokens: up to as many as were faster so (H200).  One token: both launches' blocks share a
 * multiprocessor if w13 has its warps then. */
static void plan_packed_few4(const mf_cuda_gpu *gpu, const mf_experts *experts, mf_cuda_grouped *g)
{
    enum { TOKENS_MXFP4 = 16, TOKENS_INT4 = 8, TOGETHER = 4, MOST_COLUMNS = 1 << 20 };
    const mf_cuda_experts *e = &g->e;
    const bool mxfp4 = g->packed == MF_CUDA_PACKED_MXFP4, any = g->packed == MF_CUDA_PACKED_INT4_ANY, one = e->num_tokens <= 1;
    const int64_t pairs = e->num_pairs, hidden = experts->hidden_size, width = g->width, blocks = gpu->num_multiprocessors;
    if (e->num_tokens > (mxfp4 ? TOKENS_MXFP4 : TOKENS_INT4) || pairs > MF_CUDA_FEW4_PAIRS || width == 0 ||
        hidden > MOST_COLUMNS || width > MOST_COLUMNS || (uintptr_t)e->x % 16 != 0 || (!one && e->x_stride % 8 != 0)) {
        return;
    }
    const int64_t slots = pairs < e->num_slots ? pairs : e->num_slots, tiles = hidden / 16, own_tiles = (tiles + blocks - 1) / blocks;
    /* With the combine a block has whole tiles: not where some have an eighth more than their share, but for one token. */
    g->few_combines = one || own_tiles * blocks * 8 <= tiles * 9;
    g->few_most = e->num_tokens <= 2 ? (int32_t)e->num_tokens : TOGETHER;
    const int64_t up = (slots * (width / 8) + blocks - 1) / blocks,
                  down = g->few_combines ? own_tiles * slots : (slots * tiles + blocks - 1) / blocks;
    const int64_t least = (pairs + 31) / 32 > 4 ? (pairs + 31) / 32 : 4; /* a thread a pair */
    const int64_t warps = up < least ? least : up > MF_CUDA_FEW4_WARPS ? MF_CUDA_FEW4_WARPS : up,
                  warps2 = down < least ? least : down > MF_CUDA_FEW4_WARPS ? MF_CUDA_FEW4_WARPS : down;
    const int64_t list = MF_CUDA_FEW4_LIST_BYTES(pairs), beside = list + e->num_tokens * MF_CUDA_FEW4_X_PITCH(hidden),
                  beside2 = list + 4 * ((pairs + 31) / 32 * 32 + own_tiles * pairs * 16);
    const int64_t stage = mf_cuda_few4_stage_bytes(mxfp4, any, 0), stage2 = mf_cuda_few4_stage_bytes(mxfp4, any, g->few_most);
    const int64_t half = gpu->shared_bytes / 2 - 1024,
                  room = one && beside + warps * 2 * stage <= half ? half : gpu->shared_bytes;
    if (!few4_rings(warps, least, stage, (hidden + 511) / 512, room - beside, &g->few_warps, &g->few_depth) ||
        !few4_rings(warps2, least, stage2, (width + 511) / 512, room - beside2, &g->few_warps2, &g->few_depth2)) {
        return;
    }
    g->few_bytes = (int32_t)(beside + g->few_warps * g->few_depth * stage);
    g->few_bytes2 = (int32_t)(beside2 + g->few_warps2 * g->few_depth2 * stage2);
    g->few_blocks = (int32_t)blocks;
}

bool mf_cuda_few4_combines(const mf_cuda_grouped *call, const mf_cuda_sum *sum)
{
    return call->few_combines && sum->ids == call->e.ids && sum->ids_stride == call->e.ids_stride && !sum->identity &&
           !sum->num_addends && !sum->num_valid && !sum->row_valid;
}

/* Tiles of 64 rows or of 128; rows of x and of the intermediate in whole 128 columns. */
static void plan_packed(const mf_cuda_gpu *gpu, const mf_experts *experts, int64_t per_slot, mf_cuda_grouped *g)
{
    const bool wide = g->packed >= MF_CUDA_PACKED_FP8_BLOCK;
    const bool has_two = wide && mf_cuda_packed_tiles(g->packed, MF_CUDA_PACKED_MANY) == 2;
    const bool many = per_slot >= (has_two ? SEVERAL_PER_SLOT + 1 : MANY_PER_SLOT) &&
                      packed_stages(gpu, experts, g->packed, MF_CUDA_PACKED_MANY) >= 2;
    const bool few = per_slot <= (wide ? FEW_OF_WIDE : FEW_PER_SLOT) &&
                     packed_stages(gpu, experts, g->packed, MF_CUDA_PACKED_FEW) >= 2;
    const bool several = !few && wide && per_slot <= SEVERAL_PER_SLOT &&
                         packed_stages(gpu, experts, g->packed, MF_CUDA_PACKED_SEVERAL) >= 2;
    const int64_t width = experts->max_intermediate_size, hidden = experts->hidden_size;
    g->max_tokens = many      ? MF_CUDA_PACKED_MANY
                    : few     ? MF_CUDA_PACKED_FEW
                    : several ? MF_CUDA_PACKED_SEVERAL
                              : MF_CUDA_PACKED_SOME;
    const int32_t tiles = mf_cuda_packed_tiles(g->packed, g->max_tokens);
    g->blocks *= few || several ? 2 : 1;
    g->stages = (int32_t)packed_stages(gpu, experts, g->packed, g->max_tokens);
    g->up_tiles = (int32_t)((width + 64 * tiles - 1) / (64 * tiles));
    g->down_tiles = (int32_t)((hidden + 128 * tiles - 1) / (128 * tiles));
    /* Several row tiles of w2 a unit, up to UNIT_LINES stages, while every multiprocessor has units to choose from. */
    const int64_t columns = g->packed < MF_CUDA_PACKED_FP8_BLOCK ? 256 : 128, lines = (width + columns - 1) / columns;
    const int64_t pairs = g->e.num_pairs, most_tiles = pairs / g->max_tokens + 1;
    const int64_t used = pairs < g->e.num_slots ? pairs : g->e.num_slots,
                  tiles_at_least = used > most_tiles ? used : most_tiles;
    int64_t steps = 1;
    while (2 * steps * lines <= 2 * UNIT_LINES &&
           tiles_at_least * g->down_tiles / (2 * steps) >= UNITS_EACH * g->blocks) {
        steps *= 2;
    }
    g->down_steps = (int32_t)steps;
    g->down_units = (g->down_tiles + g->down_steps - 1) / g->down_steps;
    g->x_groups = (hidden + 127) / 128;
    g->x_bytes = g->x_codes;
    g->x_pitch = g->x_groups * 256;
    g->h_bytes = g->e.h;
    g->h_pitch = g->e.h_stride * 2;
}

/* Many tokens of codes, whose output is bf16 in whole 16 bytes; places in 32 bits. */
static void plan_rows(const mf_cuda_gpu *gpu, const mf_experts *experts, int64_t per_slot, mf_cuda_grouped *g)
{
    const mf_cuda_experts *e = &g->e;
    const int64_t room = gpu->shared_bytes - ROWS_FIXED_BYTES - 8 * (experts->num_slots + 1),
                  stages = room / mf_cuda_rows_stage_bytes(g->codes);
    if (!g->codes || per_slot < ROWS_PER_SLOT || e->y_dtype != MF_BF16 || !e->y_is_wide || stages < 3 ||
        e->num_tokens * e->y_stride + e->num_columns * e->y_column_stride > (int64_t)8 * UINT32_MAX ||
        e->num_tokens * g->x_pitch > UINT32_MAX || e->num_pairs * g->h_pitch > UINT32_MAX) {
        return;
    }
    const int64_t lines = experts->max_intermediate_size / 128;
    g->max_tokens = MF_CUDA_ROWS_TOKENS;
    g->stages = (int32_t)(stages < ROWS_MOST_STAGES ? stages : ROWS_MOST_STAGES); /* its ring of scales holds eight lines */
    g->down_steps = (int32_t)(lines >= ROWS_UNIT_LINES ? 1 : ROWS_UNIT_LINES / lines);
    g->down_units = (g->down_tiles + g->down_steps - 1) / g->down_steps;
    /* A group of tiles is one unit of w13 for every block. */
    g->rows_group = g->blocks > g->up_tiles ? g->blocks / g->up_tiles : 1;
}

mf_status mf_cuda_plan_grouped(const mf_cuda_gpu *gpu, const mf_experts_call *call, const mf_cuda_paths *paths,
                               mf_cuda_experts_plan *plan, mf_error *err)
{
    const mf_experts *experts = call->experts;
    mf_cuda_grouped *g = &plan->grouped;
    void *h = g->e.h;
    g->e = plan->call;
    g->e.h = h;
    const int64_t pairs = g->e.num_pairs, width = experts->max_intermediate_size, stride = (width + 127) / 128 * 128;
    const int64_t used = pairs < g->e.num_slots ? pairs : g->e.num_slots;
    const bool many = used > 0 && pairs / used >= MANY_PER_SLOT;
    g->maps = paths->maps;
    g->codes = paths->codes;
    g->packed = paths->packed;
    g->quant = paths->quant;
    g->x_in_order = takes_pairs(gpu, experts, paths, &g->e);
    const bool some = used > 0 && pairs / used <= SOME_PER_SLOT;
    g->max_tokens = g->x_in_order ? MF_CUDA_PAIR_TOKENS
                    : !many       ? TOKENS_FEW
                    : g->codes    ? TOKENS_MANY_FP8
                    : some        ? MF_CUDA_GROUPED_SOME
                                  : TOKENS_MANY_BF16;
    g->stages = (int32_t)(g->x_in_order ? pair_stages(gpu, experts) : stages_of(gpu, experts, g->codes, g->max_tokens));
    g->up_tiles = (int32_t)((width + UP_ROWS - 1) / UP_ROWS);
    g->down_tiles = (int32_t)((experts->hidden_size + DOWN_ROWS - 1) / DOWN_ROWS);
    /* Short products of w2 are taken several at a time: what a unit costs beside its products is paid once. */
    const int64_t lines = width * (g->codes ? 1 : 2) / 128;
    g->down_steps = (int32_t)(lines >= UNIT_LINES ? 1 : UNIT_LINES / (lines < 1 ? 1 : lines));
    g->down_units = (g->down_tiles + g->down_steps - 1) / g->down_steps;
    g->width = paths->width;
    g->blocks = gpu->num_multiprocessors;
    g->clears_counts = pairs > MF_CUDA_SORTED_PAIRS;
    g->e.h_stride = stride;
    g->h_groups = stride / 128;
    g->x_groups = experts->hidden_size / 128;
    if (g->packed) {
        plan_packed(gpu, experts, used > 0 ? pairs / used : 0, g);
    }
    const int64_t counters = g->e.num_slots * (g->x_in_order ? 2 : 1); /* beside those of full tiles */
    const int64_t full = g->x_in_order ? PAIR_FULL_TOKENS : g->max_tokens;
    if (pairs / full + counters > MF_CUDA_GROUPED_TILES) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "experts: %lld token-expert pairs in one call; device cuda takes %lld",
                       (long long)pairs, (long long)full * (MF_CUDA_GROUPED_TILES - counters));
    }
    plan->is_grouped = true;
    if (g->packed) {
        if (g->packed < MF_CUDA_PACKED_FP8_BLOCK) {
            plan_packed_few4(gpu, experts, g);
        } else {
            plan_packed_few(gpu, experts, g);
        }
        mf_cuda_plan_packed_one(gpu, paths, plan);
        return MF_OK;
    }
    if (g->codes) {
        g->x_bytes = g->x_codes;
        g->x_pitch = experts->hidden_size;
        g->x_scales = g->x_scales_out;
        g->h_bytes = g->h_codes;
        g->h_pitch = stride;
        g->x_is_wide = (uintptr_t)g->e.x % 16 == 0 && (g->e.num_tokens <= 1 || g->e.x_stride % 8 == 0);
    } else {
        plan->copies_x = (uintptr_t)g->e.x % 16 != 0 || (g->e.num_tokens > 1 && g->e.x_stride % 8 != 0);
        g->x_bytes = plan->copies_x ? plan->x_copy : g->e.x;
        g->x_pitch = (plan->copies_x ? experts->hidden_size : g->e.x_stride) * 2;
        g->h_bytes = g->e.h;
        g->h_pitch = stride * 2;
    }
    plan_rows(gpu, experts, used > 0 ? pairs / used : 0, g);
    plan_few(gpu, experts, g);
    mf_cuda_plan_one(gpu, paths, g);
    return MF_OK;
}
