/* grouped_plan.c - which tables grouped.cu computes, and how a call of them is cut into tiles: see plan.h. */
#include "kernels/carve.h"
#include "kernels/cuda/plan.h"

enum { MANY_PER_SLOT = 48, TOKENS_FEW = 64, TOKENS_MANY_BF16 = 160, TOKENS_MANY_FP8 = 128, MOST_STAGES = 6 };
enum { UNIT_LINES = 8, SHORT_PAIRS = 16, FEW_UNIT_BYTES = 32768 };
enum { UP_ROWS = 128, DOWN_ROWS = 256, FIXED_BYTES = 14 * 1024 }; /* of shared memory: staging, barriers, units */

static bool is_swiglu(int32_t activation)
{
    return activation == MF_ACT_SILU || activation == MF_ACT_SILU_CLAMP || activation == MF_ACT_SILU_CLAMP_AFTER ||
           activation == MF_ACT_SWIGLU_OAI;
}

static bool has_f32_scales(const mf_cuda_matrix *m)
{
    return m->scale_dtype == MF_F32 && !m->reserved;
}

static int64_t stages_of(const mf_cuda_gpu *gpu, const mf_experts *experts, bool fp8, int32_t max_tokens)
{
    const int64_t room = gpu->shared_bytes - FIXED_BYTES - 8 * (experts->num_slots + 1);
    const int64_t stages = room / mf_cuda_grouped_stage_bytes(fp8, max_tokens);
    return stages < MOST_STAGES ? stages : MOST_STAGES;
}

bool mf_cuda_is_grouped(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_cuda_slot *slots)
{
    if (gpu->capability != 90 || experts->act_dtype != MF_BF16 || experts->num_slots > MF_CUDA_GROUPED_SLOTS) {
        return false;
    }
    const int32_t path = slots[0].path13;
    const bool fp8 = path == MF_CUDA_PATH_FP8;
    for (int64_t s = 0; s < experts->num_slots; s++) {
        const mf_cuda_slot *slot = &slots[s];
        if (slot->path13 != path || slot->path2 != path || !slot->gate.data || !is_swiglu(slot->activation) ||
            (fp8 && !(has_f32_scales(&slot->gate) && has_f32_scales(&slot->up) && has_f32_scales(&slot->down)))) {
            return false;
        }
    }
    return (path == MF_CUDA_PATH_BF16 || fp8) && stages_of(gpu, experts, fp8, TOKENS_FEW) >= 3 &&
           stages_of(gpu, experts, fp8, fp8 ? TOKENS_MANY_FP8 : TOKENS_MANY_BF16) >= 3;
}

static const mf_cuda_matrix *matrix_of(const mf_cuda_slot *slot, int i)
{
    return i == 0 ? &slot->gate : i == 1 ? &slot->up : &slot->down;
}

mf_cuda_even mf_cuda_even_slots(const mf_cuda_slot *slots, int64_t num_slots)
{
    mf_cuda_even even = { .slots = 0 };
    int64_t step[3] = { 0, 0, 0 }, count = num_slots < 2 ? 0 : num_slots;
    for (int i = 0; i < 3 && count > 0; i++) {
        const mf_cuda_matrix *first = matrix_of(&slots[0], i), *second = matrix_of(&slots[1], i);
        const int64_t row = first->row_stride * (first->format == MF_FORMAT_FP8_BLOCK ? 1 : 2);
        step[i] = (int64_t)((intptr_t)second->data - (intptr_t)first->data);
        if (step[i] <= 0 || row <= 0 || step[i] % row != 0 || step[i] / row * num_slots > INT32_MAX) {
            return even;
        }
        even.rows[i] = (int32_t)(step[i] / row);
        int64_t n = 1;
        while (n < count) {
            const mf_cuda_matrix *m = matrix_of(&slots[n], i);
            if ((intptr_t)m->data != (intptr_t)first->data + n * step[i] || m->n != first->n || m->k != first->k ||
                m->row_stride != first->row_stride) {
                break;
            }
            n++;
        }
        count = n;
    }
    even.slots = count < 2 ? 0 : (int32_t)count;
    return even;
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
    if (paths->w13 == 1u << MF_CUDA_PATH_FP8) {
        g->x_codes = mf_carve(base, &total, mf_carve_count(num_tokens, hidden, 1), 1);
        g->x_scales_out = mf_carve(base, &total, mf_carve_count(num_tokens, hidden / 128, 1), 4);
        g->h_codes = mf_carve(base, &total, mf_carve_count(pairs, stride, 1), 1);
        g->h_scales = mf_carve(base, &total, mf_carve_count(pairs, stride / 128, 1), 4);
        /* grouped_few.cu's, before they are codes */
        const int64_t few = pairs < MF_CUDA_FEW_GROUPED_PAIRS ? pairs : MF_CUDA_FEW_GROUPED_PAIRS;
        g->e.h = mf_carve(base, &total, mf_carve_count(few, stride, 1), 2);
    } else {
        g->e.h = mf_carve(base, &total, mf_carve_count(pairs, stride, 1), 2);
        plan->x_copy =
            mf_carve(base, &total, mf_carve_count(num_tokens, hidden, 1), 2); /* for an x that is not aligned */
    }
    if (with_y) {
        plan->y = mf_carve(base, &total, mf_carve_count(pairs, hidden, 1), mf_dtype_size(y_dtype));
    }
    return total;
}

/* Where the next part of shared memory begins: 1,024 bytes apart, as swizzled rows want it. */
static int32_t place(size_t *total, int64_t bytes)
{
    const size_t at = *total;
    *total += (size_t)mf_cuda_round_up(bytes, 1024);
    return (int32_t)at;
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
    const int64_t row_bytes = width * (g->fp8 ? 1 : 2), unit_bytes = row_bytes * 2 * rows;
    int64_t steps = unit_bytes >= FEW_UNIT_BYTES ? 1 : FEW_UNIT_BYTES / (unit_bytes < 1 ? 1 : unit_bytes);
    steps = steps > g->down_tiles ? g->down_tiles : steps;
    g->down_steps = (int32_t)steps;
    g->down_units = (int32_t)((g->down_tiles + steps - 1) / steps);
    const int64_t stages = (gpu->shared_bytes - 20 * 1024) / mf_cuda_few_stage_bytes(rows);
    g->stages = (int32_t)(stages < MOST_STAGES ? stages : MOST_STAGES);
}

/* Up to four tokens whose tiles a warp can list, slots of one width: grouped_one.cu, if its stages are enough to stream. */
static void plan_one(const mf_cuda_gpu *gpu, mf_cuda_grouped *g)
{
    enum { LINE = 128, UP_ROWS = 8, LEAST_STAGES = 6, GROUPS_BYTES = 20 * 1024 };
    const int64_t down_rows = g->fp8 ? 16 : 8;
    const int64_t tokens = g->e.num_tokens, pairs = g->e.num_pairs, hidden = g->e.hidden_size, width = g->width;
    if (tokens > MF_CUDA_ONE_TOKENS || pairs > MF_CUDA_ONE_PAIRS || width <= 0) {
        return;
    }
    const int64_t size = g->fp8 ? 1 : 2, columns = tokens <= 2 ? 2 : 4, tiles = pairs < g->e.num_slots ? pairs : g->e.num_slots;
    const int64_t x_lines = hidden * size / LINE, box = mf_cuda_box_lines(g->fp8, width * size);
    const int64_t h_lines = mf_cuda_round_up(width * size / LINE, box), padded = mf_cuda_round_up(x_lines, 8);
    const int64_t all_h_lines = mf_cuda_round_up(tiles * h_lines, 4);
    mf_cuda_one one = { .tokens = (int32_t)columns,
                        .x_lines = (int32_t)x_lines,
                        .h_lines = (int32_t)h_lines,
                        .box_lines = (int32_t)box,
                        .even = g->one.even,
                        .most_tiles = (int32_t)tiles,
                        .most_units = (int32_t)(tiles * (width / UP_ROWS) / g->blocks + 1) };
    const int64_t groups = hidden / down_rows / g->blocks + 2; /* two: what a block with fewer units gets on top */
    int64_t floats = 0, up_parts = 0;
    if (g->fp8) {
        up_parts = 2 * 2 * padded * UP_ROWS * columns;
        one.down_parts = (int32_t)(all_h_lines * down_rows * columns);
        floats = x_lines * columns + tiles * h_lines * columns + one.most_units * 2 * x_lines + groups * tiles * h_lines + x_lines + h_lines;
    }
    const int64_t sums = tiles * down_rows * MF_CUDA_ONE_TOKENS, fit = GROUPS_BYTES / ((sums + one.down_parts) * 4);
    one.groups = (int32_t)(fit < 1 ? 1 : fit < groups ? fit : groups);
    size_t up = 0, down = 0;
    one.x_at = place(&up, g->fp8 ? padded * columns * LINE : tokens * hidden * 2);
    one.up_parts_at = place(&up, up_parts * 4);
    one.h_at = place(&down, g->fp8 ? all_h_lines * columns * LINE : pairs * width * 2);
    one.down_parts_at = place(&down, (int64_t)one.groups * one.down_parts * 4);
    one.sums_at = place(&down, one.groups * sums * 4);
    size_t total = up > down ? up : down;
    one.floats_at = place(&total, floats * 4);
    one.state_at = place(&total, MF_CUDA_ONE_STATE);
    const int64_t stages = (gpu->shared_bytes - (int64_t)total) / (2 * MF_CUDA_ONE_HALF);
    if (stages < LEAST_STAGES) {
        return;
    }
    one.stages = (int32_t)(stages < MF_CUDA_ONE_STAGES ? stages : MF_CUDA_ONE_STAGES);
    const int32_t ring = one.stages * 2 * MF_CUDA_ONE_HALF; /* in front of everything: it begins at a swizzle atom */
    int32_t *const places[] = { &one.x_at,   &one.up_parts_at, &one.h_at,    &one.down_parts_at,
                                &one.sums_at, &one.floats_at,   &one.state_at };
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        *places[i] += ring;
    }
    one.bytes = ring + (int32_t)total;
    g->one = one;
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
    const bool fp8 = paths->w13 == 1u << MF_CUDA_PATH_FP8, many = used > 0 && pairs / used >= MANY_PER_SLOT;
    g->maps = paths->maps;
    g->fp8 = fp8;
    g->max_tokens = !many ? TOKENS_FEW : fp8 ? TOKENS_MANY_FP8 : TOKENS_MANY_BF16;
    g->stages = (int32_t)stages_of(gpu, experts, fp8, g->max_tokens);
    g->up_tiles = (int32_t)((width + UP_ROWS - 1) / UP_ROWS);
    g->down_tiles = (int32_t)((experts->hidden_size + DOWN_ROWS - 1) / DOWN_ROWS);
    /* Short products of w2 are taken several at a time: what a unit costs beside its products is paid once. */
    const int64_t lines = width * (fp8 ? 1 : 2) / 128;
    g->down_steps = (int32_t)(lines >= UNIT_LINES ? 1 : UNIT_LINES / (lines < 1 ? 1 : lines));
    g->down_units = (g->down_tiles + g->down_steps - 1) / g->down_steps;
    g->width = paths->width;
    g->blocks = gpu->num_multiprocessors;
    g->clears_counts = pairs > MF_CUDA_PREPARE_PAIRS;
    g->e.h_stride = stride;
    g->h_groups = stride / 128;
    g->x_groups = experts->hidden_size / 128;
    if (pairs / g->max_tokens + g->e.num_slots > MF_CUDA_GROUPED_TILES) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "experts: %lld token-expert pairs in one call; device cuda takes %lld",
                       (long long)pairs, (long long)g->max_tokens * (MF_CUDA_GROUPED_TILES - g->e.num_slots));
    }
    if (fp8) {
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
    plan->is_grouped = true;
    plan_few(gpu, experts, g);
    g->one.even = paths->even;
    plan_one(gpu, g);
    return MF_OK;
}

bool mf_cuda_one_combines(const mf_cuda_grouped *call, const mf_cuda_sum *sum)
{
    return call->one.tokens && sum->ids == call->e.ids && sum->ids_stride == call->e.ids_stride && !sum->identity &&
           !sum->num_addends && !sum->num_valid && !sum->row_valid;
}
