/* bench_small.c - the layer's steps beside its products: gate, align, sum-reduce. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bench/bench_parts.h"

/* Times one call until it is told that this is enough.  Calls far below the clock's grain run several at a time. */
typedef mf_status (*small_op)(mf_device *device, const void *args, mf_error *err);

static mf_status time_op(mf_bench_run *run, mf_device *device, small_op op, const void *args, double seconds,
                         mf_error *err)
{
    double start = mf_now_s();
    MF_TRY(op(device, args, err));
    double once = mf_now_s() - start;
    int32_t batch = once < 20e-6 ? (int32_t)(20e-6 / (once > 1e-7 ? once : 1e-7)) + 1 : 1;
    run->num_times = 0;
    double started = 0;
    for (int32_t i = -MF_BENCH_WARM_UP; mf_bench_wants_more(run, i, started); i++) {
        started = i == 0 ? mf_now_s() : started;
        if (i >= 5 && run->options->repeats == 0 && mf_now_s() - started > seconds) {
            break;
        }
        start = mf_now_s();
        for (int32_t b = 0; b < batch; b++) {
            MF_TRY(op(device, args, err));
        }
        if (i >= 0) {
            mf_bench_add_time(run, (mf_now_s() - start) / batch);
        }
    }
    return MF_OK;
}

static double median_of_run(mf_bench_run *run)
{
    qsort(run->times, (size_t)run->num_times, sizeof *run->times, mf_bench_compare_doubles);
    return run->num_times ? run->times[run->num_times / 2] : 0;
}

/* ---- gate ---- */

static mf_status call_gate(mf_device *device, const void *args, mf_error *err)
{
    return mf_moe_fused_gate(device, args, err);
}

/* How much faster than the specification, one core each. */
static mf_status speed_up_over_ref(mf_bench_run *run, const mf_gate_args *args, double *ratio, mf_error *err)
{
    mf_device_options one = { .num_threads = 1 };
    mf_device *cpu = NULL, *ref = NULL;
    mf_status status;
    double fast = 0;
    MF_TRY_GOTO(mf_device_open("cpu", &one, &cpu, err), done);
    MF_TRY_GOTO(mf_device_open("ref", &one, &ref, err), done);
    MF_TRY_GOTO(time_op(run, cpu, call_gate, args, run->options->seconds / 4, err), done);
    fast = median_of_run(run);
    MF_TRY_GOTO(time_op(run, ref, call_gate, args, run->options->seconds / 4, err), done);
    *ratio = fast > 0 ? median_of_run(run) / fast : 0;
done:
    mf_device_close(&cpu);
    mf_device_close(&ref);
    return status;
}

mf_status mf_bench_gate(mf_bench_run *run, int64_t tokens, mf_error *err)
{
    const mf_bench_shape *s = run->shape;
    const int64_t columns = s->top_k + s->shared;
    mf_arena arena = { 0 };
    mf_gate_config config = mf_bench_gate_config(s, true);
    float *logits = mf_bench_take(&arena, (size_t)(tokens * s->experts) * sizeof *logits);
    float *bias = mf_bench_take(&arena, (size_t)s->experts * sizeof *bias);
    int32_t *ids = mf_bench_take(&arena, (size_t)(tokens * columns) * sizeof *ids);
    float *weights = mf_bench_take(&arena, (size_t)(tokens * columns) * sizeof *weights);
    int32_t *histogram = mf_bench_take(&arena, (size_t)(s->experts + s->shared) * sizeof *histogram);
    mf_status status = logits && bias && ids && weights && histogram ? MF_OK : mf_bench_out_of_memory(err);
    double ratio = 0;
    if (status == MF_OK) {
        mf_bench_fill_floats(-4, 4, tokens * s->experts, &run->seed, logits);
        mf_bench_fill_floats(-0.1f, 0.1f, s->experts, &run->seed, bias);
        mf_gate_args args = { .config = &config,
                              .router_logits = mf_tensor_2d(logits, MF_F32, tokens, s->experts),
                              .topk_ids = mf_tensor_2d(ids, MF_I32, tokens, columns),
                              .topk_weights = mf_tensor_2d(weights, MF_F32, tokens, columns),
                              .histogram = mf_tensor_1d(histogram, MF_I32, s->experts + s->shared) };
        if (config.bias_domain != MF_BIAS_NONE) {
            args.e_score_correction_bias = mf_tensor_1d(bias, MF_F32, s->experts);
        }
        status = speed_up_over_ref(run, &args, &ratio, err);
        if (status == MF_OK) {
            status = time_op(run, run->device, call_gate, &args, run->options->seconds, err);
        }
    }
    if (status == MF_OK) {
        mf_bench_row row = mf_bench_make_row(run, "gate", tokens, false);
        snprintf(row.dtype, sizeof row.dtype, "f32");
        row.gb_per_s = (double)(tokens * (s->experts + 2 * columns)) * 4 / (row.us * 1e3);
        row.ratio = ratio;
        row.ratio_of = "ref / cpu, one core";
        mf_bench_emit(run, &row);
    }
    mf_arena_clear(&arena);
    return status;
}

/* ---- align ---- */

typedef struct align_op {
    mf_align_args args;
    void *workspace;
    size_t workspace_bytes;
} align_op;

static mf_status call_align(mf_device *device, const void *args, mf_error *err)
{
    const align_op *op = args;
    return mf_moe_align_block_size(device, &op->args, op->workspace, op->workspace_bytes, err);
}

mf_status mf_bench_align(mf_bench_run *run, int64_t tokens, mf_error *err)
{
    const mf_bench_shape *s = run->shape;
    const int64_t columns = s->top_k + s->shared, slots = s->experts + s->shared, block = 16;
    const int64_t capacity = mf_moe_align_capacity(tokens, columns, block, slots);
    mf_arena arena = { 0 };
    int32_t *ids = mf_bench_take(&arena, (size_t)(tokens * columns) * sizeof *ids);
    uint8_t *used = mf_bench_take(&arena, (size_t)slots);
    int32_t *sorted = mf_bench_take(&arena, (size_t)(capacity > 0 ? capacity : 0) * sizeof *sorted);
    int32_t *experts = mf_bench_take(&arena, (size_t)(capacity > 0 ? capacity / block : 0) * sizeof *experts);
    int32_t *padded = mf_bench_take(&arena, sizeof *padded);
    mf_status status =
        ids && used && sorted && experts && padded && capacity >= 0 ? MF_OK : mf_bench_out_of_memory(err);
    double distinct = 0;
    if (status == MF_OK) {
        distinct = (double)mf_bench_draw_ids(run, tokens, ids, used);
        align_op op = { .args = { .topk_ids = mf_tensor_2d(ids, MF_I32, tokens, columns),
                                  .block_size = block,
                                  .num_slots = slots,
                                  .sorted_token_ids = mf_tensor_1d(sorted, MF_I32, capacity),
                                  .expert_ids = mf_tensor_1d(experts, MF_I32, capacity / block),
                                  .num_tokens_post_padded = mf_tensor_1d(padded, MF_I32, 1) } };
        op.workspace_bytes = mf_moe_align_workspace_bytes(&op.args);
        op.workspace = mf_bench_take(&arena, op.workspace_bytes);
        status = op.workspace ? time_op(run, run->device, call_align, &op, run->options->seconds, err)
                              : mf_bench_out_of_memory(err);
    }
    if (status == MF_OK) {
        mf_bench_row row = mf_bench_make_row(run, "align", tokens, false);
        snprintf(row.dtype, sizeof row.dtype, "i32");
        row.experts = distinct;
        mf_bench_emit(run, &row);
    }
    mf_arena_clear(&arena);
    return status;
}

/* ---- sum-reduce ---- */

static mf_status call_sum_reduce(mf_device *device, const void *args, mf_error *err)
{
    return mf_moe_sum_reduce(device, args, err);
}

mf_status mf_bench_sum_reduce(mf_bench_run *run, int64_t tokens, mf_error *err)
{
    const mf_bench_shape *s = run->shape;
    const int64_t columns = s->top_k + s->shared;
    const size_t size = mf_dtype_size(run->act_dtype);
    mf_arena arena = { 0 };
    mf_bench_block block = { 0 }; /* rows lie on pages like those of the ceiling */
    const size_t bytes = (size_t)(tokens * columns * s->hidden) * size;
    void *out = mf_bench_take(&arena, (size_t)(tokens * s->hidden) * size);
    float *weights = mf_bench_take(&arena, (size_t)(tokens * columns) * sizeof *weights);
    mf_status status = out && weights ? mf_bench_block_open(&block, run->device->pool, bytes + 64,
                                                            mf_bench_pages_of(run->options), err)
                                      : mf_bench_out_of_memory(err);
    if (status == MF_OK) {
        void *x = mf_bench_block_take(&block, bytes);
        mf_bench_fill_activations(run->act_dtype, tokens * columns * s->hidden, &run->seed, x);
        mf_bench_fill_floats(0, 1, tokens * columns, &run->seed, weights);
        mf_sum_reduce_args args = { .x = mf_tensor_3d(x, run->act_dtype, tokens, columns, s->hidden),
                                    .topk_weights = mf_tensor_2d(weights, MF_F32, tokens, columns),
                                    .routed_scaling_factor = 1,
                                    .num_shared_columns = (int32_t)s->shared,
                                    .out = mf_tensor_2d(out, run->act_dtype, tokens, s->hidden) };
        status = time_op(run, run->device, call_sum_reduce, &args, run->options->seconds, err);
    }
    if (status == MF_OK) {
        mf_bench_row row = mf_bench_make_row(run, "sum-reduce", tokens, false);
        row.gb_per_s = (double)(tokens * (columns + 1) * s->hidden) * (double)size / (row.us * 1e3);
        /* Rows that a cache holds are read faster than memory: no ceiling to speak of. */
        if (row.gb_per_s <= run->read_ceiling && (double)(tokens * columns * s->hidden) * (double)size > 256e6) {
            row.ceiling = run->read_ceiling;
            row.ceiling_unit = "GB/s";
            row.share = row.gb_per_s / run->read_ceiling;
        }
        mf_bench_emit(run, &row);
    }
    mf_bench_block_close(&block);
    mf_arena_clear(&arena);
    return status;
}
