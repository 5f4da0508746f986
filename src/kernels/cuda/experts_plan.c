/* experts_plan.c - which kernel computes a slot, and what a call of the experts launches: see plan.h. */
#include <string.h>

#include "kernels/align_chunks.h"
#include "kernels/carve.h"
#include "kernels/cuda/plan.h"
#include "kernels/format.h"
#include "kernels/quantise.h"

enum { OWN_QUANT_MAX_WIDTH = 1024, OWN_QUANT_MAX_HIDDEN = 24576 };
enum { TILE_FEW = 32, TILE_SOME = 64, TILE_MANY = 128, SOME_PER_SLOT = 28, MANY_PER_SLOT = 96 };

/* experts.cuh repeats the numbers. */
_Static_assert(MF_QUANT_FP8_GROUP == 1 && MF_QUANT_FP8_TOKEN == 2 && MF_QUANT_FP8_STATIC == 3 && MF_QUANT_INT8_TOKEN == 4,
               "kernels/cuda/experts.cuh");

mf_cuda_matrix mf_cuda_plan_matrix(const mf_matrix *m, int32_t quant)
{
    mf_cuda_matrix out = { .data = m->data,
                           .scale = m->scale,
                           .zero = m->zero,
                           .row_stride = m->row_stride,
                           .scale_row_stride = m->scale_row_stride,
                           .group_size = m->group_size,
                           .n = m->n,
                           .k = m->k,
                           .format = (int32_t)m->format,
                           .scale_dtype = (int32_t)m->scale_dtype,
                           .quant = quant };
    const int64_t bits = mf_format_bits(m->format);
    const size_t scale_size = m->scale ? mf_dtype_size(m->scale_dtype) : 1;
    out.reserved = (bits > 8 && (uintptr_t)m->data % (size_t)(bits / 8) != 0) || (uintptr_t)m->scale % scale_size != 0;
    return out;
}

/* Rows that can be read 16 bytes at a time, in whole units of the tensor cores' order (product.cuh). */
static bool has_units(const mf_matrix *m, int64_t size, int64_t unit)
{
    return m->k % unit == 0 && m->n % 16 == 0 && (uintptr_t)m->data % 16 == 0 && m->row_stride * size % 16 == 0;
}

static mf_cuda_path path_of(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_matrix *m, const mf_matrix *gate,
                            mf_quant quant, int64_t width)
{
    bool bf16 = m->format == MF_FORMAT_BF16 && experts->act_dtype == MF_BF16 && quant == MF_QUANT_NONE;
    bool fp8 = m->format == MF_FORMAT_FP8_BLOCK && quant == MF_QUANT_FP8_GROUP && gpu->capability >= 89;
    const int64_t size = bf16 ? 2 : 1, unit = bf16 ? 64 : 128;
    bool fits = width % unit == 0 && experts->hidden_size % unit == 0 && has_units(m, size, unit) &&
                (!gate || has_units(gate, size, unit));
    return fits && bf16 ? MF_CUDA_PATH_BF16 : fits && fp8 ? MF_CUDA_PATH_FP8 : MF_CUDA_PATH_PLAIN;
}

void mf_cuda_plan_slot(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_slot *slot, mf_cuda_slot *out)
{
    const mf_quant quant13 = mf_quant_for(experts->act_quant, slot->up.format, slot->input_scale13);
    const mf_quant quant2 = mf_quant_for(experts->act_quant, slot->down.format, slot->input_scale2);
    const bool gated = slot->gate.data != NULL;
    *out = (mf_cuda_slot){ .up = mf_cuda_plan_matrix(&slot->up, quant13),
                           .down = mf_cuda_plan_matrix(&slot->down, quant2),
                           .gate_bias = slot->gate_bias,
                           .up_bias = slot->up_bias,
                           .down_bias = slot->down_bias,
                           .limit = slot->limit,
                           .alpha = slot->alpha,
                           .beta = slot->beta,
                           .lbeta = slot->lbeta,
                           .input_scale13 = slot->input_scale13,
                           .input_scale2 = slot->input_scale2,
                           .activation = (int32_t)slot->activation };
    if (gated) {
        out->gate = mf_cuda_plan_matrix(&slot->gate, quant13);
    }
    const int64_t width = slot->up.n;
    out->path13 = (int32_t)path_of(gpu, experts, &slot->up, gated ? &slot->gate : NULL, quant13, width);
    out->path2 = (int32_t)path_of(gpu, experts, &slot->down, NULL, quant2, width);
}

/* ---- workspace ---- */

static bool takes(uint32_t set, mf_cuda_path path)
{
    return (set >> path & 1) != 0;
}

static bool is_few(int64_t num_pairs)
{
    return num_pairs <= MF_CUDA_FEW_PAIRS;
}

/* w2 of all slots on one path, so that one launch sees every column of a token. */
static bool one_path(const mf_cuda_paths *paths)
{
    return paths->w2 == 1u << MF_CUDA_PATH_BF16 || paths->w2 == 1u << MF_CUDA_PATH_FP8;
}

/* Lays the buffers over base (NULL: counts bytes only). */
static size_t lay_out(const mf_experts *experts, const mf_cuda_paths *paths, int64_t num_tokens, int64_t num_columns,
                      mf_dtype y_dtype, bool with_y, uint8_t *base, mf_cuda_experts_plan *plan)
{
    size_t total = 0;
    mf_cuda_experts *call = &plan->call;
    const int64_t hidden = experts->hidden_size, width = experts->max_intermediate_size;
    const int64_t pairs = mf_carve_count(num_tokens, num_columns, 1), tensor = paths->w13 | paths->w2;
    call->h_stride = mf_cuda_round_up(width, 128);
    call->h = mf_carve(base, &total, mf_carve_count(pairs, call->h_stride, 1), mf_dtype_size(experts->act_dtype));
    if (takes(paths->w13, MF_CUDA_PATH_FP8)) {
        call->x_codes = mf_carve(base, &total, mf_carve_count(num_tokens, hidden, 1), 2);
        call->x_scales = mf_carve(base, &total, mf_carve_count(num_tokens, (hidden + 127) / 128, 1), 4);
    }
    if (takes(paths->w13, MF_CUDA_PATH_BF16)) { /* for an x that is not aligned */
        plan->x_copy = mf_carve(base, &total, mf_carve_count(num_tokens, hidden, 1), mf_dtype_size(experts->act_dtype));
    }
    if (takes(paths->w2, MF_CUDA_PATH_FP8)) {
        call->h_codes = mf_carve(base, &total, mf_carve_count(pairs, call->h_stride, 1), 2);
        call->h_scales = mf_carve(base, &total, mf_carve_count(pairs, (width + 127) / 128, 1), 4);
    }
    if (!is_few(pairs) && (tensor & ~(int64_t)(1u << MF_CUDA_PATH_PLAIN))) {
        const int64_t slots = pairs < experts->num_slots ? pairs : experts->num_slots;
        const int64_t per_slot = pairs / slots;
        call->tile_tokens = per_slot >= MANY_PER_SLOT ? TILE_MANY : per_slot >= SOME_PER_SLOT ? TILE_SOME : TILE_FEW;
        /* Room for either tile, so that fewer tokens never need more. */
        const int64_t padded = pairs + slots * (TILE_MANY - 1);
        call->sorted = mf_carve(base, &total, padded, 4);
        call->block_slots = mf_carve(base, &total, padded / TILE_FEW + 1, 4);
        call->total = mf_carve(base, &total, 1, 4);
        plan->align.counts = mf_carve(base, &total, experts->num_slots * mf_align_chunks(pairs, experts->num_slots), 4);
    }
    if (with_y) {
        plan->y = mf_carve(base, &total, mf_carve_count(pairs, hidden, 1), mf_dtype_size(y_dtype));
    }
    return total;
}

/* A call with input_scale does not go through grouped.cu, so a table that does needs room for either way. */
static size_t room_for(const mf_experts *experts, const mf_cuda_paths *paths, int64_t num_tokens, int64_t num_columns,
                       mf_dtype y_dtype, bool with_y, bool grouped_with_y)
{
    mf_cuda_experts_plan plan;
    memset(&plan, 0, sizeof plan);
    const size_t one = lay_out(experts, paths, num_tokens, num_columns, y_dtype, with_y, NULL, &plan);
    const size_t other = !paths->maps ? 0
                                      : mf_cuda_grouped_lay_out(experts, paths, num_tokens, num_columns, y_dtype, grouped_with_y,
                                                                NULL, &plan);
    return one > other ? one : other;
}

size_t mf_cuda_experts_bytes(const mf_experts *experts, const mf_cuda_paths *paths, int64_t num_tokens, int64_t num_columns)
{
    return room_for(experts, paths, num_tokens, num_columns, MF_F32, false, false);
}

size_t mf_cuda_experts_combine_bytes(const mf_experts *experts, const mf_cuda_paths *paths, int64_t num_tokens,
                                     int64_t num_columns, mf_dtype y_dtype)
{
    const int64_t pairs = mf_carve_count(num_tokens, num_columns, 1);
    return room_for(experts, paths, num_tokens, num_columns, y_dtype, !(is_few(pairs) && one_path(paths)), true);
}

/* ---- the call ---- */

static bool is_odd(const mf_tensor *t)
{
    return t->data && (uintptr_t)t->data % mf_dtype_size(t->dtype) != 0;
}

mf_status mf_cuda_plan_experts(const mf_cuda_gpu *gpu, const mf_experts_call *call, const mf_cuda_slot *slots,
                               const mf_cuda_paths *paths, bool combine, mf_dtype y_dtype, mf_cuda_experts_plan *out,
                               mf_error *err)
{
    const mf_experts *experts = call->experts;
    const mf_experts_args *a = call->args;
    const int64_t pairs = call->num_tokens * call->num_columns;
    const int64_t widest = experts->hidden_size > experts->max_intermediate_size ? experts->hidden_size
                                                                                 : experts->max_intermediate_size;
    memset(out, 0, sizeof *out);
    const bool grouped = paths->maps && !a->input_scale.data;
    if (!grouped && (takes(paths->w13, MF_CUDA_PATH_PLAIN) || takes(paths->w2, MF_CUDA_PATH_PLAIN)) &&
        mf_cuda_round_up(widest, 128) / 128 * 129 * 4 + 1024 > gpu->shared_bytes) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "experts: %lld columns; device cuda's plain products take rows of %lld",
                       (long long)widest, (long long)((gpu->shared_bytes - 1024) / 516 * 128));
    }
    if (a->input_scale.data && takes(paths->w13, MF_CUDA_PATH_FP8)) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "input_scale: device cuda has no FP8_BLOCK product that scales its input");
    }
    out->is_few = is_few(pairs);
    out->is_combined = !grouped && combine && out->is_few && one_path(paths);
    if (grouped) {
        mf_cuda_grouped_lay_out(experts, paths, call->num_tokens, call->num_columns, y_dtype, combine, call->workspace, out);
    } else {
        lay_out(experts, paths, call->num_tokens, call->num_columns, y_dtype, combine && !out->is_combined, call->workspace, out);
    }
    mf_cuda_experts *e = &out->call;
    e->slots = slots;
    e->num_slots = experts->num_slots;
    e->hidden_size = experts->hidden_size;
    e->max_width = experts->max_intermediate_size;
    e->num_tokens = call->num_tokens;
    e->num_columns = call->num_columns;
    e->num_pairs = pairs;
    e->x = a->x.data;
    e->x_stride = a->x.stride[0];
    e->ids = a->topk_ids.data;
    e->ids_stride = a->topk_ids.stride[0];
    e->input_scale = a->input_scale.data;
    e->input_scale_stride = a->input_scale.stride[0];
    e->starts_early = gpu->capability >= 90;
    e->act_dtype = (int32_t)experts->act_dtype;
    e->y_dtype = (int32_t)y_dtype;
    e->e8m0 = experts->act_quant == MF_ACT_QUANT_W8A8_E8M0;
    if (combine) {
        e->y = out->y;
        e->y_stride = call->num_columns * experts->hidden_size;
        e->y_column_stride = experts->hidden_size;
    } else {
        e->y = a->y.data;
        e->y_stride = a->y.stride[0];
        e->y_column_stride = a->y.stride[1];
    }
    const int64_t y_size = (int64_t)mf_dtype_size(y_dtype);
    e->y_is_wide = (uintptr_t)e->y % 16 == 0 && e->y_stride * y_size % 16 == 0 && e->y_column_stride * y_size % 16 == 0;
    e->bytewise = is_odd(&a->x) || is_odd(&a->topk_ids) || is_odd(&a->input_scale) || (!combine && is_odd(&a->y));
    if (grouped) {
        return mf_cuda_plan_grouped(gpu, call, paths, out, err);
    }
    e->quantises_itself = out->is_combined && call->num_tokens == 1 && e->max_width <= OWN_QUANT_MAX_WIDTH &&
                          e->hidden_size <= OWN_QUANT_MAX_HIDDEN && paths->w13 == 1u << MF_CUDA_PATH_FP8;
    out->copies_x = takes(paths->w13, MF_CUDA_PATH_BF16) &&
                    ((uintptr_t)e->x % 16 != 0 || (call->num_tokens > 1 && e->x_stride % 8 != 0));
    out->sorts = e->sorted != NULL;
    if (e->input_scale) {
        e->tile_tokens = TILE_FEW; /* the one tile that scales its input; the bits are those of all */
    }
    if (out->sorts) {
        const int64_t used = pairs < e->num_slots ? pairs : e->num_slots;
        const int64_t capacity = (pairs + used * (e->tile_tokens - 1)) / e->tile_tokens * e->tile_tokens;
        e->num_blocks = capacity / e->tile_tokens;
        const mf_align_args args = { .topk_ids = a->topk_ids,
                                     .sorted_token_ids = mf_tensor_1d(e->sorted, MF_I32, capacity),
                                     .expert_ids = mf_tensor_1d(e->block_slots, MF_I32, e->num_blocks),
                                     .num_tokens_post_padded = mf_tensor_1d(e->total, MF_I32, 1) };
        const mf_align_call align = { .args = &args,
                                      .num_tokens = call->num_tokens,
                                      .num_columns = call->num_columns,
                                      .block_size = e->tile_tokens,
                                      .num_slots = e->num_slots,
                                      .capacity = capacity,
                                      .workspace = out->align.counts };
        MF_TRY(mf_cuda_plan_align(gpu, &align, &out->align, err));
    }
    return MF_OK;
}
