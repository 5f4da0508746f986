/* one_plan.c - which calls grouped_one.cu takes, how it lays out a block's shared memory, and which slots share a
 * tensor map. */
#include "kernels/cuda/plan.h"
#include "kernels/format.h"

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
        const int64_t row = first->row_stride * mf_format_bits((mf_format)first->format) / 8;
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

/* Where the next part of shared memory begins: 1,024 bytes apart, as swizzled rows want it. */
static int32_t place(size_t *total, int64_t bytes)
{
    const size_t at = *total;
    *total += (size_t)mf_cuda_round_up(bytes, 1024);
    return (int32_t)at;
}

void mf_cuda_plan_one(const mf_cuda_gpu *gpu, const mf_cuda_paths *paths, mf_cuda_grouped *g)
{
    enum { LINE = 128, UP_ROWS = 8, PARTS_LINES = 16, LEAST_STAGES = 6, GROUPS_BYTES = 20 * 1024 };
    const bool by_row = g->codes > MF_CUDA_CODES_FP8_BLOCK;
    const int64_t tokens = g->e.num_tokens, pairs = g->e.num_pairs, hidden = g->e.hidden_size, width = g->width;
    if (tokens > MF_CUDA_ONE_TOKENS || pairs > MF_CUDA_ONE_PAIRS || width <= 0 || pairs * width > MF_CUDA_ONE_VALUES ||
        g->blocks > MF_CUDA_ONE_BLOCKS || (by_row && width > 128 * MF_CUDA_ONE_ROW_LINES)) {
        return;
    }
    const int64_t size = g->codes ? 1 : 2, columns = tokens <= 2 && pairs <= 32 ? 2 : 4, /* 2: a lane a pair */
        tiles = pairs < g->e.num_slots ? pairs : g->e.num_slots;
    /* Of weights, up to where it is quicker than grouped_few.cu (H200): bf16 of one token and two at 312 MB, of four
     * not at 282 and 550 MB; FP8 of four at 198 MB. */
    const int64_t most_bytes = g->codes ? 200000000 : tokens <= 2 ? 320000000 : 160000000;
    if (tiles * 3 * hidden * width * size > most_bytes) {
        return;
    }
    /* A block hands a unit that it has begun to the next one, so each must have a stage of w13, though all pairs name
     * one slot. */
    const int64_t up_stages = (hidden + 8 * LINE - 1) / (8 * LINE);
    if (g->codes && up_stages > 1 && width / UP_ROWS * up_stages < g->blocks) {
        return;
    }
    const int64_t x_lines = hidden * size / LINE, down_rows = mf_cuda_box_rows(g->codes, hidden, g->blocks),
                  box = mf_cuda_box_lines((int32_t)down_rows, width * size);
    const int64_t h_lines = mf_cuda_round_up(width * size / LINE, box), padded = mf_cuda_round_up(x_lines, 8);
    mf_cuda_one one = { .tokens = (int32_t)columns,
                        .x_lines = (int32_t)x_lines,
                        .h_lines = (int32_t)h_lines,
                        .box_lines = (int32_t)box,
                        .even = paths->even,
                        .most_tiles = (int32_t)tiles,
                        .most_units = (int32_t)(tiles * (width / UP_ROWS) / g->blocks + 3) };
    const int64_t groups = hidden / down_rows / g->blocks + 2; /* two: what a block with fewer units gets on top */
    int64_t floats = 0, up_parts = 0;
    if (g->codes) {
        up_parts = 2 * 2 * PARTS_LINES * UP_ROWS * columns;
        floats = x_lines * columns + tiles * h_lines * columns +
                 (by_row ? one.most_units * 2 * UP_ROWS + groups * tiles * down_rows
                         : one.most_units * 2 * x_lines + groups * 2 * tiles * h_lines);
    }
    const int64_t sums = tiles * down_rows * (g->codes ? columns : MF_CUDA_ONE_TOKENS), fit = GROUPS_BYTES / (sums * 4);
    one.down_rows = (int32_t)down_rows;
    one.groups = (int32_t)(g->codes || fit < 1 ? 1 : fit < groups ? fit : groups);
    size_t up = 0, down = 0;
    /* FP8: h comes over x while parts of w13 may still be added; bf16: other warps still multiply x. */
    const int64_t x_bytes = g->codes ? padded * columns * LINE : tokens * hidden * 2,
                  h_bytes = g->codes ? tiles * h_lines * 8 * LINE : pairs * width * 2;
    one.x_at = place(&up, g->codes && x_bytes < h_bytes ? h_bytes : x_bytes);
    one.up_parts_at = place(&up, up_parts * 4);
    if (g->codes) {
        one.h_at = place(&down, x_bytes > h_bytes ? x_bytes : h_bytes);
    } else {
        down = up;
        one.h_at = place(&down, h_bytes);
    }
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
    int32_t *const places[] = { &one.x_at, &one.up_parts_at, &one.h_at, &one.sums_at, &one.floats_at, &one.state_at };
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        *places[i] += ring;
    }
    one.bytes = ring + (int32_t)total;
    g->one = one;
}

bool mf_cuda_one_combines(const mf_cuda_grouped *call, const mf_cuda_sum *sum)
{
    return call->one.tokens && sum->ids == call->e.ids && sum->ids_stride == call->e.ids_stride && !sum->identity &&
           !sum->num_addends && !sum->num_valid && !sum->row_valid;
}
