/* weights.c - layers of experts of any stored format, in huge pages: enough of them that no cache holds the next
 * call's. */
#include <string.h>

#include "base/number.h"
#include "kernels/bench/bench_parts.h"
#include "kernels/format.h"

/* Columns under one scale. */
static int64_t group_of(mf_format format, int64_t int4_group)
{
    return format == MF_FORMAT_INT4_GROUP ? int4_group : format == MF_FORMAT_MXFP4 ? MF_MXFP4_GROUP : 0;
}

/* Bytes that calls run through before one layer comes again, where memory allows. */
#define ROTATED_BYTES ((size_t)1 << 30)

int64_t mf_bench_code_bits(mf_format format)
{
    static const int64_t bits[MF_FORMAT_COUNT] = { 32, 16, 16, 8, 8, 8, 4, 4 };
    return bits[format];
}

typedef struct scale_grid {
    int64_t rows, columns;
    mf_dtype dtype;
} scale_grid;

static scale_grid scales_of(mf_format format, int64_t int4_group, int64_t n, int64_t k)
{
    switch (format) {
    case MF_FORMAT_FP8_BLOCK:
        return (scale_grid){ (n + MF_FP8_BLOCK_SIZE - 1) / MF_FP8_BLOCK_SIZE,
                             (k + MF_FP8_BLOCK_SIZE - 1) / MF_FP8_BLOCK_SIZE, MF_F32 };
    case MF_FORMAT_FP8_CHANNEL:
    case MF_FORMAT_INT8_CHANNEL:
        return (scale_grid){ n, 1, MF_F32 };
    case MF_FORMAT_INT4_GROUP:
        return (scale_grid){ n, (k + int4_group - 1) / int4_group, MF_F16 };
    case MF_FORMAT_MXFP4:
        return (scale_grid){ n, (k + 31) / 32, MF_F8_E8M0 };
    default:
        return (scale_grid){ 0, 0, MF_F32 };
    }
}

size_t mf_bench_matrix_room(mf_format format, int64_t int4_group, int64_t n, int64_t k)
{
    scale_grid grid = scales_of(format, int4_group, n, k);
    size_t codes = (size_t)(n * k * mf_bench_code_bits(format) / 8);
    return codes + (size_t)(grid.rows * grid.columns) * mf_dtype_size(grid.dtype) + 128;
}

/* Small powers of two: values stay far from both ends of every format. */
static void fill_scales(void *scales, mf_dtype dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const float value = 1.0f / (float)(64 << (i & 3));
        if (dtype == MF_F32) {
            ((float *)scales)[i] = value;
        } else if (dtype == MF_F16) {
            ((uint16_t *)scales)[i] = mf_f32_to_f16(value);
        } else {
            ((uint8_t *)scales)[i] = (uint8_t)(127 - 6 - (i & 3)); /* e8m0: the exponent */
        }
    }
}

mf_status mf_bench_make_matrix(mf_bench_block *block, mf_format format, int64_t int4_group, int64_t n, int64_t k,
                               mf_matrix *out, mf_error *err)
{
    scale_grid grid = scales_of(format, int4_group, n, k);
    mf_matrix m = { .n = n, .k = k, .row_stride = k, .format = format };
    m.data = mf_bench_block_take(block, (size_t)(n * k * mf_bench_code_bits(format) / 8));
    if (grid.rows) {
        void *scales = mf_bench_block_take(block, (size_t)(grid.rows * grid.columns) * mf_dtype_size(grid.dtype));
        if (scales) {
            fill_scales(scales, grid.dtype, grid.rows * grid.columns);
        }
        m.scale = scales;
        m.scale_dtype = grid.dtype;
        m.scale_row_stride = grid.columns;
        m.group_size = group_of(format, int4_group);
    }
    if (!m.data || (grid.rows && !m.scale)) {
        return mf_fail(err, MF_ERR_INTERNAL, "bench: the weights do not fit in what was reserved for them");
    }
    *out = m;
    return MF_OK;
}

static mf_status make_slot(mf_bench_run *run, mf_bench_block *block, mf_slot *slot, mf_error *err)
{
    const int64_t width = run->shape->width, hidden = run->shape->hidden, group = run->options->group_size;
    *slot = (mf_slot){ .activation = MF_ACT_SILU };
    MF_TRY(mf_bench_make_matrix(block, run->format, group, width, hidden, &slot->gate, err));
    MF_TRY(mf_bench_make_matrix(block, run->format, group, width, hidden, &slot->up, err));
    return mf_bench_make_matrix(block, run->format, group, hidden, width, &slot->down, err);
}

static mf_status make_experts(mf_bench_run *run, const mf_slot *slots, int64_t count, mf_experts **out, mf_error *err)
{
    mf_experts_desc desc = { .num_slots = count,
                             .hidden_size = run->shape->hidden,
                             .slots = slots,
                             .act_dtype = run->act_dtype,
                             .act_quant = run->act_quant };
    return mf_experts_create(run->device, &desc, out, err);
}

static mf_status make_layer(mf_bench_run *run, mf_bench_layers *layers, int32_t l, mf_slot *slots, mf_error *err)
{
    const int64_t experts = run->shape->experts, shared = run->shape->shared;
    for (int64_t i = 0; i < experts + shared; i++) {
        MF_TRY(make_slot(run, &layers->block, &slots[i], err));
    }
    MF_TRY(make_experts(run, slots, experts + shared, &layers->all[l], err));
    MF_TRY(make_experts(run, slots, experts, &layers->routed[l], err));
    return shared ? make_experts(run, slots + experts, shared, &layers->shared[l], err) : MF_OK;
}

mf_status mf_bench_layers_open(mf_bench_run *run, mf_bench_layers *layers, mf_error *err)
{
    *layers = (mf_bench_layers){ 0 };
    const mf_bench_shape *s = run->shape;
    const int64_t num_slots = s->experts + s->shared;
    const int64_t group = run->options->group_size;
    size_t layer_bytes = (size_t)num_slots * (2 * mf_bench_matrix_room(run->format, group, s->width, s->hidden) +
                                              mf_bench_matrix_room(run->format, group, s->hidden, s->width));
    size_t wanted = ROTATED_BYTES / layer_bytes + 1;
    layers->count = wanted < 2 ? 2 : wanted > MF_BENCH_MAX_LAYERS ? MF_BENCH_MAX_LAYERS : (int32_t)wanted;
    mf_slot *slots = mf_alloc_array((size_t)num_slots, sizeof *slots);
    mf_status status = slots ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "bench: out of memory");
    if (status == MF_OK) {
        status = mf_bench_block_open(&layers->block, run->device->pool, (size_t)layers->count * layer_bytes,
                                     mf_bench_pages_of(run->options), err);
    }
    for (int32_t l = 0; status == MF_OK && l < layers->count; l++) {
        status = make_layer(run, layers, l, slots, err);
    }
    if (status == MF_OK) {
        layers->slot_bytes =
            (double)(mf_matrix_bytes(&slots[0].gate) + mf_matrix_bytes(&slots[0].up) + mf_matrix_bytes(&slots[0].down));
    }
    mf_free(slots);
    return status;
}

void mf_bench_layers_close(mf_bench_layers *layers)
{
    for (int32_t l = 0; l < layers->count; l++) {
        mf_experts_destroy(&layers->all[l]);
        mf_experts_destroy(&layers->routed[l]);
        mf_experts_destroy(&layers->shared[l]);
    }
    mf_bench_block_close(&layers->block);
    *layers = (mf_bench_layers){ 0 };
}
