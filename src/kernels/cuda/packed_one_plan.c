/* packed_one_plan.c - which calls packed_one.cu takes, and how it lays out a block's shared memory. */
#include "kernels/cuda/packed_one.h"
#include "kernels/cuda/plan.h"
#include "kernels/format.h"

static const mf_cuda_matrix *matrix_of(const mf_cuda_slot *slot, int i)
{
    return i == 0 ? &slot->gate : i == 1 ? &slot->up : &slot->down;
}

/* Whether two matrices differ in their addresses alone. */
static bool is_alike(const mf_cuda_matrix *a, const mf_cuda_matrix *b)
{
    return a->n == b->n && a->k == b->k && a->row_stride == b->row_stride && a->scale_row_stride == b->scale_row_stride &&
           a->group_size == b->group_size && a->format == b->format && a->scale_dtype == b->scale_dtype && !a->zero == !b->zero;
}

void mf_cuda_alike_slots(const mf_cuda_slot *slots, int64_t num_slots, mf_cuda_alike *out)
{
    *out = (mf_cuda_alike){ .is = is_alike(&slots[0].gate, &slots[0].up),
                            .activation = slots[0].activation,
                            .limit = slots[0].limit,
                            .alpha = slots[0].alpha };
    for (int64_t s = 0; s < num_slots; s++) {
        const mf_cuda_slot *slot = &slots[s];
        out->has_biases = out->has_biases || slot->gate_bias || slot->up_bias || slot->down_bias;
        out->is = out->is && slot->activation == out->activation &&
                  (out->activation == MF_ACT_SILU || (slot->limit == out->limit && slot->alpha == out->alpha));
        for (int m = 0; m < 3; m++) {
            out->is = out->is && is_alike(matrix_of(&slots[0], m), matrix_of(slot, m));
        }
    }
    for (int m = 1; m < 3; m++) {
        const mf_cuda_matrix *of = matrix_of(&slots[0], m);
        const int64_t bits = mf_format_bits((mf_format)of->format), row_bytes = of->row_stride * bits / 8;
        int32_t shift = 5;
        while (of->format == MF_FORMAT_INT4_GROUP && shift < 30 && (int64_t)1 << shift < of->group_size) {
            shift++;
        }
        out->is = out->is && row_bytes >= 0 && row_bytes <= INT32_MAX / 8 && of->scale_row_stride >= 0 &&
                  of->scale_row_stride <= INT32_MAX / 8 &&
                  (bits == 8 || of->scale_row_stride == (of->k + ((int64_t)1 << shift) - 1) >> shift); /* no gaps */
        *(m == 1 ? &out->up : &out->down) =
            (mf_cuda_alike_matrix){ .row_bytes = (int32_t)row_bytes,
                                    .scale_stride = (int32_t)of->scale_row_stride,
                                    .group_shift = shift,
                                    .scale_size = of->scale_dtype == MF_F32 ? 4 : of->scale_dtype == MF_F8_E8M0 ? 1 : 2,
                                    .scale_dtype = of->scale_dtype,
                                    .has_zeros = of->zero != NULL };
    }
}

/* Units of which a warp has a stage at a time. */
static int32_t turns_of(int64_t depth, int64_t stages)
{
    return (int32_t)((depth + stages - 1) / stages + 1);
}

static int64_t ring_bytes(const mf_cuda_packed_one_launch *o, int64_t unit_bytes, int64_t depth, int64_t stages)
{
    return depth * o->stage_bytes + turns_of(depth, stages) * unit_bytes;
}

/* A launch's warps, each with as many of a block's units as can be, and stages that they have room for. */
static mf_cuda_packed_one_launch plan_launch(const mf_cuda_grouped *g, const mf_cuda_alike_matrix *m, bool down, int64_t units,
                                             int64_t columns, int64_t room)
{
    enum { LEAST_WARPS = 4, MOST_WARPS_UP = 12, MOST_WARPS_DOWN = 16 };
    const bool wide = g->packed >= MF_CUDA_PACKED_FP8_BLOCK;
    const int32_t stage_columns = wide ? MF_CUDA_PACKED_ONE_BYTES : 2 * MF_CUDA_PACKED_ONE_BYTES;
    mf_cuda_packed_one_launch o = {
        .stage_bytes = MF_CUDA_PACKED_ONE_ROWS * MF_CUDA_PACKED_ONE_BYTES + (down ? 2 * stage_columns : 0)
    };
    if (!wide) { /* whole 16 bytes that hold them, wherever they begin */
        const int64_t count = (down ? 8 : 4) * m->scale_stride;
        o.scale_bytes = (int32_t)mf_cuda_round_up(count * m->scale_size + 15, 16);
        o.zero_bytes = m->has_zeros ? (int32_t)mf_cuda_round_up(count + 15, 16) : 0;
    }
    const int64_t unit_bytes = (down ? 1 : 2) * (o.scale_bytes + o.zero_bytes), stages = (columns + stage_columns - 1) / stage_columns,
                  most = down ? MOST_WARPS_DOWN : MOST_WARPS_UP, rounds = (units + most - 1) / most;
    int64_t warps = (units + rounds - 1) / rounds, depth = 2;
    warps = warps < LEAST_WARPS ? LEAST_WARPS : warps;
    while (warps > LEAST_WARPS && warps * ring_bytes(&o, unit_bytes, depth, stages) > room) {
        warps--;
    }
    const int64_t own_stages = stages * ((units + warps - 1) / warps);
    while (depth < MF_CUDA_PACKED_ONE_DEPTH && depth < own_stages &&
           warps * ring_bytes(&o, unit_bytes, depth + 1, stages) <= room) {
        depth++;
    }
    const int64_t bytes = warps * ring_bytes(&o, unit_bytes, depth, stages);
    o.depth = (int32_t)depth;
    o.turns = turns_of(depth, stages);
    o.warps = bytes <= room ? (int32_t)warps : 0;
    o.bytes = o.warps ? (int32_t)bytes : 0;
    return o;
}

static bool is_taken(int32_t packed)
{
    return packed == MF_CUDA_PACKED_INT4 || packed == MF_CUDA_PACKED_INT4_ANY || packed == MF_CUDA_PACKED_FP8_CHANNEL ||
           packed == MF_CUDA_PACKED_INT8;
}

/* Up to where it was faster (H200); of 4 bits packed_few4.cu takes the others. */
static bool is_worth_it(const mf_cuda_grouped *g)
{
    enum { FEW_WEIGHTS = 64 * 1000 * 1000, FEW_WIDE = 200 * 1000 * 1000, TOKENS_WIDE = 2 };
    const bool wide = g->packed >= MF_CUDA_PACKED_FP8_BLOCK;
    const mf_cuda_experts *e = &g->e;
    return e->num_tokens <= (wide ? TOKENS_WIDE : 1) &&
           e->num_pairs * 3 * e->hidden_size * g->width <= (wide ? FEW_WIDE : FEW_WEIGHTS);
}

void mf_cuda_plan_packed_one(const mf_cuda_gpu *gpu, const mf_cuda_paths *paths, mf_cuda_experts_plan *plan)
{
    enum { UP_PART = 54 }; /* of shared memory, in hundredths */
    mf_cuda_grouped *g = &plan->grouped;
    mf_cuda_packed_one *one = &plan->packed_one;
    const mf_cuda_experts *e = &g->e;
    const bool many = e->num_tokens > 1;
    const int64_t pairs = e->num_pairs, hidden = e->hidden_size, width = g->width, blocks = gpu->num_multiprocessors;
    if (!is_taken(g->packed) || g->quant || !paths->alike.is ||
        width == 0 || pairs > MF_CUDA_PACKED_ONE_PAIRS || !is_worth_it(g) || e->bytewise || (uintptr_t)e->x % 16 != 0 ||
        (many && (e->x_stride % 8 != 0 || e->ids_stride != e->num_columns))) {
        return;
    }
    const int64_t up_tiles = width / (MF_CUDA_PACKED_ONE_ROWS / 2), tiles = hidden / MF_CUDA_PACKED_ONE_ROWS,
                  own_tiles = (tiles + blocks - 1) / blocks, most_tiles = up_tiles > tiles ? up_tiles : tiles;
    if ((pairs * most_tiles + 32 * blocks) * most_tiles > UINT32_MAX) { /* a unit is divided by a product of 64 bits */
        return;
    }
    const int64_t x_bytes = e->num_tokens * MF_CUDA_PACKED_ONE_X_PITCH(hidden),
                  beside2 = 4 * (mf_cuda_round_up(pairs, 32) * 2 + own_tiles * pairs * MF_CUDA_PACKED_ONE_ROWS);
    /* A block of w2 has room beside one of w13, so that its first weights are on their way. */
    const int64_t all = gpu->shared_bytes - 1024, room = all * UP_PART / 100;
    one->alike = paths->alike;
    one->of[0] = plan_launch(g, &one->alike.up, false, (pairs * up_tiles + blocks - 1) / blocks, hidden, room - x_bytes);
    one->of[1] = plan_launch(g, &one->alike.down, true, own_tiles * pairs, width, all - room - beside2);
    if (!one->of[0].warps || !one->of[1].warps) {
        one->of[0].warps = 0;
        return;
    }
    one->of[0].bytes += (int32_t)x_bytes;
    one->of[1].bytes += (int32_t)beside2;
    g->few_combines = 1;
    g->few_blocks = (int32_t)blocks;
}
