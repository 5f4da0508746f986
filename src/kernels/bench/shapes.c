/* shapes.c - layer shapes that models have, what enters them, and the bookkeeping of a run's times. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "kernels/bench/bench_parts.h"

const mf_bench_shape mf_bench_shapes[] = {
    { .name = "v2-lite",
      .hidden = 2048,
      .width = 1408,
      .experts = 64,
      .top_k = 6,
      .shared = 2,
      .scoring = MF_SCORING_SOFTMAX,
      .n_group = 1,
      .topk_group = 1,
      .factor = 1,
      .heads = 16,
      .nope = 128,
      .rope = 64,
      .v_dim = 128,
      .kv_lora = 512 },
    { .name = "qwen3-30b",
      .hidden = 2048,
      .width = 768,
      .experts = 128,
      .top_k = 8,
      .scoring = MF_SCORING_SOFTMAX,
      .n_group = 1,
      .topk_group = 1,
      .factor = 1,
      .heads = 32,
      .kv_heads = 4,
      .head_dim = 128 },
    { .name = "v3-tp8",
      .hidden = 7168,
      .width = 256,
      .experts = 256,
      .top_k = 8,
      .shared = 1,
      .scoring = MF_SCORING_SIGMOID,
      .n_group = 8,
      .topk_group = 4,
      .factor = 2.5,
      .heads = 16,
      .nope = 128,
      .rope = 64,
      .v_dim = 128,
      .kv_lora = 512 },
    { .name = "glm-air-tp2",
      .hidden = 4096,
      .width = 704,
      .experts = 128,
      .top_k = 8,
      .shared = 1,
      .scoring = MF_SCORING_SIGMOID,
      .n_group = 1,
      .topk_group = 1,
      .factor = 1,
      .heads = 48,
      .kv_heads = 4,
      .head_dim = 128 },
    { .name = "kimi-k2-tp8",
      .hidden = 7168,
      .width = 256,
      .experts = 384,
      .top_k = 8,
      .shared = 1,
      .scoring = MF_SCORING_SIGMOID,
      .n_group = 1,
      .topk_group = 1,
      .factor = 2.827,
      .heads = 8,
      .nope = 128,
      .rope = 64,
      .v_dim = 128,
      .kv_lora = 512 },
    { .name = "tiny",
      .hidden = 256,
      .width = 64,
      .experts = 16,
      .top_k = 4,
      .shared = 1,
      .scoring = MF_SCORING_SIGMOID,
      .n_group = 1,
      .topk_group = 1,
      .factor = 1,
      .heads = 4,
      .nope = 32,
      .rope = 16,
      .v_dim = 32,
      .kv_lora = 64 },
};
const size_t mf_bench_num_shapes = sizeof mf_bench_shapes / sizeof mf_bench_shapes[0];

mf_gate_config mf_bench_gate_config(const mf_bench_shape *shape, bool with_shared_slots)
{
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    bool sigmoid = shape->scoring == MF_SCORING_SIGMOID;
    config.num_experts = (int32_t)shape->experts;
    config.top_k = (int32_t)shape->top_k;
    config.num_shared_slots = with_shared_slots ? (int32_t)shape->shared : 0;
    config.scoring = shape->scoring;
    config.bias_domain = sigmoid ? MF_BIAS_SCORE : MF_BIAS_NONE;
    config.renorm = sigmoid ? MF_RENORM_SUM_EPS : shape->shared ? MF_RENORM_NONE : MF_RENORM_SUM;
    config.n_group = shape->n_group;
    config.topk_group = shape->topk_group;
    config.group_score = shape->n_group > 1 ? MF_GROUP_SCORE_TOP2_SUM : MF_GROUP_SCORE_UNSET;
    config.routed_scaling_factor = shape->factor;
    return config;
}

/* ---- times and rows ---- */

bool mf_bench_wants_more(const mf_bench_run *run, int32_t index, double started)
{
    int32_t repeats = run->options->repeats;
    if (index < 1) {
        return true;
    }
    if (repeats > 0) {
        return index < repeats;
    }
    /* A call so slow that five take long past the time asked for is known well enough. */
    const double elapsed = mf_now_s() - started, seconds = run->options->seconds;
    return index < 5 ? elapsed < 10 * seconds + 0.1 : index < MF_BENCH_MAX_REPEATS && elapsed < seconds;
}

void mf_bench_add_time(mf_bench_run *run, double seconds)
{
    if (run->num_times < MF_BENCH_MAX_REPEATS) {
        run->times[run->num_times++] = seconds;
    }
}

mf_bench_row mf_bench_make_row(mf_bench_run *run, const char *op, int64_t tokens, bool has_weights)
{
    mf_bench_row row = { .shape = run->shape->name,
                         .act_dtype = mf_dtype_name(run->act_dtype),
                         .routing = run->options->routing,
                         .device = mf_device_description(run->device),
                         .level = run->level,
                         .threads = mf_device_num_threads(run->device),
                         .repeats = run->num_times,
                         .tokens = tokens };
    snprintf(row.op, sizeof row.op, "%s", op);
    const char *quant = run->act_quant == MF_ACT_QUANT_W8A8   ? "+w8a8"
                        : run->act_quant == MF_ACT_QUANT_INT8 ? "+int8"
                                                              : "";
    char group[24] = "";
    if (run->format == MF_FORMAT_INT4_GROUP && run->options->group_size != MF_BENCH_INT4_GROUP) {
        snprintf(group, sizeof group, "/%lld", (long long)run->options->group_size);
    }
    snprintf(row.dtype, sizeof row.dtype, "%s%s%s",
             has_weights ? mf_format_name(run->format) : mf_dtype_name(run->act_dtype), has_weights ? group : "",
             has_weights ? quant : "");
    int32_t n = run->num_times;
    qsort(run->times, (size_t)n, sizeof *run->times, mf_bench_compare_doubles);
    if (n > 0) {
        row.us = run->times[n / 2] * 1e6;
        row.us_min = run->times[0] * 1e6;
        row.us_p10 = run->times[n / 10] * 1e6;
        row.us_p90 = run->times[(n * 9) / 10 < n ? (n * 9) / 10 : n - 1] * 1e6;
    }
    return row;
}

mf_rate_kind mf_bench_product_kind(const mf_bench_run *run)
{
    bool int8_weights = run->format == MF_FORMAT_INT8_CHANNEL;
    bool fp8_weights = run->format == MF_FORMAT_FP8_BLOCK || run->format == MF_FORMAT_FP8_CHANNEL;
    if ((run->act_quant == MF_ACT_QUANT_INT8 && (int8_weights || run->format == MF_FORMAT_INT4_GROUP)) ||
        (run->act_quant == MF_ACT_QUANT_W8A8 && int8_weights)) {
        return MF_RATE_INT8;
    }
    bool quantised_to_f32 = run->act_quant == MF_ACT_QUANT_W8A8 && fp8_weights; /* code times scale is no bf16 */
    return run->act_dtype == MF_BF16 && !quantised_to_f32 ? MF_RATE_BF16 : MF_RATE_F32;
}

void mf_bench_set_rates(const mf_bench_run *run, mf_bench_row *row, double bytes, double operations, mf_rate_kind kind)
{
    const double ns = row->us * 1e3;
    if (ns <= 0) {
        return;
    }
    row->gb_per_s = bytes / ns;
    row->gflops = operations / ns;
    /* A level without an instruction for the kind computes with a lower kind's: f32 is always there. */
    double rate = run->rate[kind] > run->rate[MF_RATE_F32] ? run->rate[kind] : run->rate[MF_RATE_F32];
    double of_read = run->read_ceiling > 0 ? row->gb_per_s / run->read_ceiling : 0;
    double of_rate = rate > 0 && operations > 0 ? row->gflops / rate : 0;
    if (of_rate > of_read) {
        row->ceiling = rate;
        row->ceiling_unit = kind == MF_RATE_INT8 ? "GOP/s" : "GFLOP/s";
        row->share = of_rate;
    } else if (bytes > 0) {
        row->ceiling = run->read_ceiling;
        row->ceiling_unit = "GB/s";
        row->share = of_read;
    }
}

void mf_bench_emit(const mf_bench_run *run, const mf_bench_row *row)
{
    run->sink->row(run->sink->context, row);
}

/* ---- inputs ---- */

void *mf_bench_take(mf_arena *arena, size_t bytes)
{
    uint8_t *p = bytes < SIZE_MAX - 64 ? mf_arena_alloc(arena, bytes + 64) : NULL;
    return p ? (void *)(((uintptr_t)p + 63) / 64 * 64) : NULL;
}

mf_status mf_bench_out_of_memory(mf_error *err)
{
    return mf_fail(err, MF_ERR_NOMEM, "bench: out of memory for a call's tensors");
}

void mf_bench_fill_floats(float low, float high, int64_t count, uint64_t *seed, float *out)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] = low + (high - low) * (float)mf_random_unit(seed);
    }
}

void mf_bench_fill_activations(mf_dtype dtype, int64_t count, uint64_t *seed, void *out)
{
    for (int64_t i = 0; i < count; i++) {
        float x = (float)mf_random_unit(seed) * 2 - 1;
        if (dtype == MF_F32) {
            ((float *)out)[i] = x;
        } else {
            ((uint16_t *)out)[i] = mf_f32_to_bf16(x);
        }
    }
}

/* Skewed: expert i of a shuffled order is wanted in proportion to 1 / (i + 1). */
static int32_t draw_expert(mf_bench_run *run)
{
    const uint64_t experts = (uint64_t)run->shape->experts;
    if (strcmp(run->options->routing, "skewed") != 0) {
        return (int32_t)mf_random_below(&run->seed, experts);
    }
    double u = mf_random_unit(&run->seed);
    uint64_t rank = (uint64_t)(exp(u * log((double)experts + 1)) - 1);
    rank = rank < experts ? rank : experts - 1;
    return (int32_t)((rank * 97 + 13) % experts); /* 97 divides no number of experts above */
}

int64_t mf_bench_draw_ids(mf_bench_run *run, int64_t tokens, int32_t *ids, uint8_t *used)
{
    const mf_bench_shape *s = run->shape;
    const int64_t columns = s->top_k + s->shared;
    int64_t distinct = 0;
    memset(used, 0, (size_t)(s->experts + s->shared));
    for (int64_t t = 0; t < tokens; t++) {
        int32_t *row = ids + t * columns;
        for (int64_t c = 0; c < columns; c++) {
            bool again = true;
            while (again) {
                row[c] = c < s->top_k ? draw_expert(run) : (int32_t)(s->experts + c - s->top_k);
                again = false;
                for (int64_t k = 0; k < c; k++) {
                    again |= row[k] == row[c];
                }
            }
            distinct += !used[row[c]];
            used[row[c]] = 1;
        }
    }
    return distinct;
}
