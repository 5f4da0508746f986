/* bench_experts.c - the experts op, and the whole layer with its shared expert in slots and apart. */
#include <stdlib.h>
#include <string.h>

#include "kernels/bench/bench_parts.h"

static double product_operations(const mf_bench_shape *s, int64_t tokens)
{
    return 2.0 * (double)(tokens * (s->top_k + s->shared)) * 3.0 * (double)s->hidden * (double)s->width;
}

mf_status mf_bench_experts(mf_bench_run *run, const mf_bench_layers *layers, int64_t tokens, mf_error *err)
{
    const mf_bench_shape *s = run->shape;
    const int64_t columns = s->top_k + s->shared;
    const size_t size = mf_dtype_size(run->act_dtype);
    mf_arena arena = { 0 };
    size_t workspace_bytes = mf_fused_experts_workspace_bytes(layers->all[0], tokens, columns);
    void *workspace = mf_bench_take(&arena, workspace_bytes);
    void *x = mf_bench_take(&arena, (size_t)(tokens * s->hidden) * size);
    void *y = mf_bench_take(&arena, (size_t)(tokens * columns * s->hidden) * size);
    int32_t *ids = mf_bench_take(&arena, (size_t)(tokens * columns) * sizeof *ids);
    uint8_t *used = mf_bench_take(&arena, (size_t)(s->experts + s->shared));
    mf_status status = workspace && x && y && ids && used ? MF_OK : mf_bench_out_of_memory(err);
    double distinct = 0, started = 0;
    if (status == MF_OK) {
        mf_bench_fill_activations(run->act_dtype, tokens * s->hidden, &run->seed, x);
    }
    run->num_times = 0;
    for (int32_t i = -MF_BENCH_WARM_UP; status == MF_OK && mf_bench_wants_more(run, i, started); i++) {
        started = i == 0 ? mf_now_s() : started;
        int64_t touched = mf_bench_draw_ids(run, tokens, ids, used);
        mf_experts_args args = { .experts = layers->all[(i + MF_BENCH_WARM_UP) % layers->count],
                                 .x = mf_tensor_2d(x, run->act_dtype, tokens, s->hidden),
                                 .topk_ids = mf_tensor_2d(ids, MF_I32, tokens, columns),
                                 .y = mf_tensor_3d(y, run->act_dtype, tokens, columns, s->hidden) };
        double start = mf_now_s();
        status = mf_fused_experts(run->device, &args, workspace, workspace_bytes, err);
        if (i >= 0) {
            mf_bench_add_time(run, mf_now_s() - start);
            distinct += (double)touched;
        }
    }
    if (status == MF_OK) {
        mf_bench_row row = mf_bench_make_row(run, "experts", tokens, true);
        row.experts = distinct / run->num_times;
        mf_bench_set_rates(run, &row, row.experts * layers->slot_bytes, product_operations(s, tokens),
                           mf_bench_product_kind(run));
        mf_bench_emit(run, &row);
    }
    mf_arena_clear(&arena);
    return status;
}

/* ---- the layer ---- */

typedef struct layer_point {
    mf_gate_config config[2]; /* SLOT, SERIAL */
    mf_gate_args gate[2];
    mf_layer_args args[2];
    void *workspace;
    size_t workspace_bytes;
    float *logits, *bias;
    int32_t *ids;
    uint8_t *used;
} layer_point;

static void set_layer(layer_point *p, const mf_bench_layers *layers, int32_t l)
{
    p->args[0].experts = layers->all[l];
    p->args[1].experts = layers->routed[l];
    p->args[1].shared = layers->shared[l];
}

static mf_status open_layer(mf_bench_run *run, const mf_bench_layers *layers, int64_t tokens, mf_arena *arena,
                            layer_point *p, mf_error *err)
{
    const mf_bench_shape *s = run->shape;
    const size_t size = mf_dtype_size(run->act_dtype);
    void *x = mf_bench_take(arena, (size_t)(tokens * s->hidden) * size),
         *out = mf_bench_take(arena, (size_t)(tokens * s->hidden) * size);
    p->logits = mf_bench_take(arena, (size_t)(tokens * s->experts) * sizeof *p->logits);
    p->bias = mf_bench_take(arena, (size_t)s->experts * sizeof *p->bias);
    p->ids = mf_bench_take(arena, (size_t)(tokens * (s->top_k + s->shared)) * sizeof *p->ids);
    p->used = mf_bench_take(arena, (size_t)(s->experts + s->shared));
    if (!x || !out || !p->logits || !p->bias || !p->ids || !p->used) {
        return mf_bench_out_of_memory(err);
    }
    mf_bench_fill_activations(run->act_dtype, tokens * s->hidden, &run->seed, x);
    for (int m = 0; m < 2; m++) {
        p->config[m] = mf_bench_gate_config(s, m == 0);
        p->gate[m] = (mf_gate_args){ .config = &p->config[m],
                                     .router_logits = mf_tensor_2d(p->logits, MF_F32, tokens, s->experts) };
        if (p->config[m].bias_domain != MF_BIAS_NONE) {
            p->gate[m].e_score_correction_bias = mf_tensor_1d(p->bias, MF_F32, s->experts);
        }
        p->args[m] = (mf_layer_args){ .gate = &p->gate[m],
                                      .mode = m == 0 ? MF_MODE_SLOT : MF_MODE_SERIAL,
                                      .y_dtype = run->act_dtype,
                                      .x = mf_tensor_2d(x, run->act_dtype, tokens, s->hidden),
                                      .out = mf_tensor_2d(out, run->act_dtype, tokens, s->hidden) };
    }
    set_layer(p, layers, 0);
    for (int m = 0; m < 2; m++) {
        size_t bytes = mf_moe_layer_workspace_bytes(&p->args[m]);
        p->workspace_bytes = bytes > p->workspace_bytes ? bytes : p->workspace_bytes;
    }
    p->workspace = mf_bench_take(arena, p->workspace_bytes);
    return p->workspace ? MF_OK : mf_bench_out_of_memory(err);
}

/* Logits that lead the gate to the ids that the routing drew: the layer then touches what the experts op would. */
static int64_t draw_logits(mf_bench_run *run, layer_point *p, int64_t tokens)
{
    const mf_bench_shape *s = run->shape;
    int64_t distinct = mf_bench_draw_ids(run, tokens, p->ids, p->used);
    mf_bench_fill_floats(-2, 0, tokens * s->experts, &run->seed, p->logits);
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t k = 0; k < s->top_k; k++) {
            p->logits[t * s->experts + p->ids[t * (s->top_k + s->shared) + k]] += 4.0f;
        }
    }
    return distinct;
}

static void emit_layer(mf_bench_run *run, const mf_bench_layers *layers, int64_t tokens, double distinct,
                       const char *op, double ratio)
{
    mf_bench_row row = mf_bench_make_row(run, op, tokens, true);
    row.experts = distinct / run->num_times;
    mf_bench_set_rates(run, &row, row.experts * layers->slot_bytes, product_operations(run->shape, tokens),
                       mf_bench_product_kind(run));
    row.ratio = ratio;
    row.ratio_of = ratio > 0 ? "SERIAL / SLOT" : NULL;
    mf_bench_emit(run, &row);
}

mf_status mf_bench_layer(mf_bench_run *run, const mf_bench_layers *layers, int64_t tokens, mf_error *err)
{
    mf_arena arena = { 0 };
    layer_point p = { 0 };
    const int num_modes = run->shape->shared ? 2 : 1;
    mf_status status = open_layer(run, layers, tokens, &arena, &p, err);
    double *serial = mf_bench_take(&arena, MF_BENCH_MAX_REPEATS * sizeof *serial);
    double *ratios = mf_bench_take(&arena, MF_BENCH_MAX_REPEATS * sizeof *ratios);
    if (status == MF_OK && (!serial || !ratios)) {
        status = mf_bench_out_of_memory(err);
    }
    double distinct = 0, started = 0;
    run->num_times = 0;
    for (int32_t i = -MF_BENCH_WARM_UP; status == MF_OK && mf_bench_wants_more(run, i, started); i++) {
        started = i == 0 ? mf_now_s() : started;
        int64_t touched = draw_logits(run, &p, tokens);
        double took[2] = { 0, 0 };
        /* Both read the same experts of different layers of weights, and take turns in going first. */
        for (int turn = 0; status == MF_OK && turn < num_modes; turn++) {
            int m = num_modes == 2 ? (turn + i + MF_BENCH_WARM_UP) % 2 : 0;
            set_layer(&p, layers, ((i + MF_BENCH_WARM_UP) * num_modes + turn) % layers->count);
            double start = mf_now_s();
            status = mf_moe_layer(run->device, &p.args[m], p.workspace, p.workspace_bytes, err);
            took[m] = mf_now_s() - start;
        }
        if (i >= 0) {
            serial[run->num_times] = took[1];
            ratios[run->num_times] = took[0] > 0 ? took[1] / took[0] : 0;
            mf_bench_add_time(run, took[0]);
            distinct += (double)touched;
        }
    }
    if (status == MF_OK) {
        const int32_t n = run->num_times;
        qsort(ratios, (size_t)n, sizeof *ratios, mf_bench_compare_doubles);
        emit_layer(run, layers, tokens, distinct, "layer SLOT", num_modes == 2 ? ratios[n / 2] : 0);
        if (num_modes == 2) {
            memcpy(run->times, serial, (size_t)n * sizeof *serial);
            emit_layer(run, layers, tokens, distinct, "layer SERIAL", 0);
        }
    }
    mf_arena_clear(&arena);
    return status;
}
