/* bench_kernels.c - reads the options of `moefuse bench kernels` and walks ops, shapes, formats and token counts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bench/bench_parts.h"

enum { MAX_TOKEN_COUNTS = 32, MOST_TOKENS = 65536 };

typedef enum bench_op {
    OP_EXPERTS,
    OP_LAYER,
    OP_GATE,
    OP_ALIGN,
    OP_SUM_REDUCE,
    OP_LINEAR,
    OP_LM_HEAD,
    OP_ATTENTION,
    NUM_OPS
} bench_op;

static const char *const op_names[NUM_OPS] = {
    "experts", "layer", "gate", "align", "sum-reduce", "linear", "lm-head", "attention"
};

static const char *const default_tokens[NUM_OPS] = {
    "1,4,16,64,256,1024", "1,4,16,64,256,1024", "1,16,256,4096,65536", "1,16,256,4096",
    "1,64,256,1024,4096", "1,4,16,64,256,1024", "1,4,16,64",           "1,4,16,64,256",
};

typedef struct bench_plan {
    bool ops[NUM_OPS], formats[MF_FORMAT_COUNT];
    bool shapes[32];
    mf_act_quant act_quant;
    mf_dtype act_dtype;
    int64_t tokens[MAX_TOKEN_COUNTS];
    int32_t num_tokens; /* 0: each op's own */
} bench_plan;

/* ---- options ---- */

static const char *op_name(size_t i)
{
    return i < NUM_OPS ? op_names[i] : NULL;
}

static const char *shape_name(size_t i)
{
    return i < mf_bench_num_shapes ? mf_bench_shapes[i].name : NULL;
}

static const char *format_name(size_t i)
{
    return i < MF_FORMAT_COUNT ? mf_format_name((mf_format)i) : NULL;
}

static const char *join(const char *(*name_of)(size_t), char *out, size_t size)
{
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; name_of(i) && n < size; i++) {
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? "|" : "", name_of(i));
    }
    return out;
}

const char *mf_bench_op_names(void)
{
    static char text[128];
    return join(op_name, text, sizeof text);
}

const char *mf_bench_shape_names(void)
{
    static char text[256];
    return join(shape_name, text, sizeof text);
}

const char *mf_bench_format_names(void)
{
    static char text[160];
    return join(format_name, text, sizeof text);
}

/* Marks the names of a list with commas; "all" marks each. */
static mf_status read_names(const char *flag, const char *list, const char *(*name_of)(size_t), const char *known,
                            bool *chosen, mf_error *err)
{
    const char *p = list;
    do {
        size_t n = strcspn(p, ",");
        bool found = n == 3 && memcmp(p, "all", 3) == 0;
        for (size_t i = 0; name_of(i); i++) {
            bool is_it = strlen(name_of(i)) == n && memcmp(name_of(i), p, n) == 0;
            chosen[i] = chosen[i] || is_it || (n == 3 && memcmp(p, "all", 3) == 0);
            found = found || is_it;
        }
        if (!found) {
            return mf_fail(err, MF_ERR_INVALID, "%s: expected names of %s, with commas, or all; got \"%.*s\"", flag,
                           known, (int)(n < 64 ? n : 64), p);
        }
        p += n;
    } while (*p++ == ',');
    return MF_OK;
}

static mf_status read_tokens(const char *list, int64_t *counts, int32_t *num, mf_error *err)
{
    *num = 0;
    for (const char *p = list; p;) {
        char *end;
        long long value = strtoll(p, &end, 10);
        bool is_number = end != p && *p >= '0' && *p <= '9' && (*end == ',' || *end == '\0');
        if (!is_number || value < 1 || value > MOST_TOKENS) {
            return mf_fail(err, MF_ERR_INVALID, "--tokens: expected integers in 1..%d with commas; got \"%.64s\"",
                           MOST_TOKENS, p);
        }
        if (*num == MAX_TOKEN_COUNTS) {
            return mf_fail(err, MF_ERR_INVALID, "--tokens: expected at most %d numbers", MAX_TOKEN_COUNTS);
        }
        counts[(*num)++] = value;
        p = *end == ',' ? end + 1 : NULL;
    }
    return MF_OK;
}

static mf_status read_word(const char *flag, const char *word, const char *const *known, int32_t count, int32_t *index,
                           mf_error *err)
{
    char names[96] = "";
    for (int32_t i = 0; i < count; i++) {
        if (strcmp(word, known[i]) == 0) {
            *index = i;
            return MF_OK;
        }
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", i ? "|" : "", known[i]);
    }
    return mf_fail(err, MF_ERR_INVALID, "%s: expected one of %s; got \"%.64s\"", flag, names, word);
}

/* Whether a format's products take quantised activations: without that a row would say what was not measured. */
static bool quantises(mf_act_quant act_quant, mf_format format)
{
    if (act_quant == MF_ACT_QUANT_INT8) {
        return format == MF_FORMAT_INT8_CHANNEL || format == MF_FORMAT_INT4_GROUP;
    }
    return act_quant == MF_ACT_QUANT_NONE || format == MF_FORMAT_INT8_CHANNEL || format == MF_FORMAT_FP8_BLOCK ||
           format == MF_FORMAT_FP8_CHANNEL;
}

static mf_status read_plan(const mf_bench_options *o, bench_plan *plan, mf_error *err)
{
    static const char *const quants[] = { "none", "w8a8", "int8" }, *const dtypes[] = { "bf16", "f32" },
                             *const routings[] = { "uniform", "skewed" };
    static const mf_act_quant quant_of[] = { MF_ACT_QUANT_NONE, MF_ACT_QUANT_W8A8, MF_ACT_QUANT_INT8 };
    int32_t quant = 0, dtype = 0, routing = 0;
    *plan = (bench_plan){ 0 };
    MF_TRY(read_names("--op", o->ops, op_name, mf_bench_op_names(), plan->ops, err));
    MF_TRY(read_names("--shape", o->shapes, shape_name, mf_bench_shape_names(), plan->shapes, err));
    MF_TRY(read_names("--format", o->formats, format_name, mf_bench_format_names(), plan->formats, err));
    MF_TRY(read_word("--act-quant", o->act_quant, quants, 3, &quant, err));
    MF_TRY(read_word("--dtype", o->dtype, dtypes, 2, &dtype, err));
    MF_TRY(read_word("--routing", o->routing, routings, 2, &routing, err));
    if (o->tokens) {
        MF_TRY(read_tokens(o->tokens, plan->tokens, &plan->num_tokens, err));
    }
    if (o->group_size < 32 || o->group_size % 32 != 0) {
        return mf_fail(err, MF_ERR_INVALID, "--group-size: expected a multiple of 32; got %lld", (long long)o->group_size);
    }
    plan->act_quant = quant_of[quant];
    plan->act_dtype = dtype == 0 ? MF_BF16 : MF_F32;
    bool any = false;
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        plan->formats[f] = plan->formats[f] && quantises(plan->act_quant, (mf_format)f);
        any = any || plan->formats[f];
    }
    if (!any) {
        return mf_fail(err, MF_ERR_INVALID, "--act-quant %s has no effect on --format %.64s; it quantises for %s",
                       o->act_quant, o->formats,
                       quant == 2 ? "int8_channel and int4_group" : "fp8_block, fp8_channel and int8_channel");
    }
    return MF_OK;
}

/* ---- the walk ---- */

/* Ceilings of the run's threads.  Reading is measured over `block` where that is more than a cache can hold. */
static mf_status measure_ceilings(mf_bench_run *run, const mf_bench_block *block, mf_error *err)
{
    const size_t least = (size_t)512 << 20;
    mf_bench_block own = { 0 };
    bool use_own = !block || block->bytes < least;
    if (use_own) {
        MF_TRY(mf_bench_block_open(&own, run->device->pool, least, mf_bench_pages_of(run->options), err));
    }
    run->read_ceiling = mf_bench_read_block(run->device->pool, use_own ? &own : block, 0.2);
    mf_bench_block_close(&own);
    for (int kind = 0; kind < MF_RATE_COUNT; kind++) {
        run->rate[kind] = mf_bench_pool_rate(run->device->pool, run->level, true, (mf_rate_kind)kind, 0.1);
    }
    return MF_OK;
}

static mf_status note(const mf_bench_run *run, const char *op)
{
    char line[240];
    if (run->sink->note) {
        snprintf(line, sizeof line, "%s %s %s: read %.1f GB/s, f32 %.0f, bf16 %.0f GFLOP/s, int8 %.0f GOP/s", op,
                 run->shape->name, mf_format_name(run->format), run->read_ceiling, run->rate[MF_RATE_F32],
                 run->rate[MF_RATE_BF16], run->rate[MF_RATE_INT8]);
        run->sink->note(run->sink->context, line);
    }
    return MF_OK;
}

static mf_status run_point(mf_bench_run *run, bench_op op, const mf_bench_layers *layers, int64_t tokens, mf_error *err)
{
    switch (op) {
    case OP_EXPERTS:
        return mf_bench_experts(run, layers, tokens, err);
    case OP_LAYER:
        return mf_bench_layer(run, layers, tokens, err);
    case OP_GATE:
        return mf_bench_gate(run, tokens, err);
    case OP_ALIGN:
        return mf_bench_align(run, tokens, err);
    case OP_SUM_REDUCE:
        return mf_bench_sum_reduce(run, tokens, err);
    case OP_LINEAR:
        return mf_bench_linear(run, false, tokens, err);
    case OP_LM_HEAD:
        return mf_bench_linear(run, true, tokens, err);
    default:
        MF_TRY(mf_bench_attention(run, tokens, false, err));
        return mf_bench_attention(run, tokens, true, err);
    }
}

static mf_status run_tokens(mf_bench_run *run, const bench_plan *plan, bench_op op, const mf_bench_layers *layers,
                            mf_error *err)
{
    int64_t own[MAX_TOKEN_COUNTS];
    int32_t count = plan->num_tokens;
    const int64_t *tokens = plan->tokens;
    if (!count) {
        MF_TRY(read_tokens(default_tokens[op], own, &count, err));
        tokens = own;
    }
    for (int32_t i = 0; i < count; i++) {
        run->seed = run->options->seed + 7;
        MF_TRY(run_point(run, op, layers, tokens[i], err));
    }
    return MF_OK;
}

/* Ops that multiply by weights, once per format. */
static mf_status run_format(mf_bench_run *run, const bench_plan *plan, mf_error *err)
{
    mf_bench_layers layers = { 0 };
    mf_status status = MF_OK;
    if (plan->ops[OP_EXPERTS] || plan->ops[OP_LAYER]) {
        MF_TRY_GOTO(mf_bench_layers_open(run, &layers, err), done);
    }
    MF_TRY_GOTO(measure_ceilings(run, layers.count ? &layers.block : NULL, err), done);
    for (int op = OP_EXPERTS; op <= OP_LAYER; op++) {
        if (plan->ops[op]) {
            note(run, op_names[op]);
            MF_TRY_GOTO(run_tokens(run, plan, (bench_op)op, &layers, err), done);
        }
    }
    mf_bench_layers_close(&layers);
    if (plan->ops[OP_LINEAR] && plan->act_quant == MF_ACT_QUANT_NONE) {
        note(run, op_names[OP_LINEAR]);
        MF_TRY_GOTO(run_tokens(run, plan, OP_LINEAR, NULL, err), done);
    }
    if (plan->ops[OP_LM_HEAD] && plan->act_quant == MF_ACT_QUANT_NONE) {
        note(run, op_names[OP_LM_HEAD]);
        MF_TRY_GOTO(run_tokens(run, plan, OP_LM_HEAD, NULL, err), done);
    }
done:
    mf_bench_layers_close(&layers);
    return status;
}

static mf_status run_shape(mf_bench_run *run, const bench_plan *plan, mf_error *err)
{
    bool has_format_ops = plan->ops[OP_EXPERTS] || plan->ops[OP_LAYER] || plan->ops[OP_LINEAR] ||
                          plan->ops[OP_LM_HEAD];
    for (int f = 0; has_format_ops && f < MF_FORMAT_COUNT; f++) {
        if (plan->formats[f]) {
            run->format = (mf_format)f;
            MF_TRY(run_format(run, plan, err));
        }
    }
    static const bench_op others[] = { OP_GATE, OP_ALIGN, OP_SUM_REDUCE, OP_ATTENTION };
    bool measured = has_format_ops;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (!plan->ops[others[i]]) {
            continue;
        }
        if (!measured) {
            MF_TRY(measure_ceilings(run, NULL, err));
            measured = true;
        }
        run->format = MF_FORMAT_BF16;
        note(run, op_names[others[i]]);
        MF_TRY(run_tokens(run, plan, others[i], NULL, err));
    }
    return MF_OK;
}

static const char *highest_level(void)
{
    static char name[32];
    mf_bench_level levels[MF_BENCH_MAX_LEVELS];
    int32_t count = mf_bench_levels(levels, MF_BENCH_MAX_LEVELS);
    snprintf(name, sizeof name, "c");
    for (int32_t i = 0; i < count; i++) {
        if (levels[i].is_used) {
            snprintf(name, sizeof name, "%s", levels[i].name);
        }
    }
    return name;
}

mf_status mf_bench_kernels(const mf_bench_options *options, const mf_bench_sink *sink, mf_error *err)
{
    bench_plan plan;
    MF_TRY(read_plan(options, &plan, err));
    mf_bench_run *run = mf_alloc_zero(sizeof *run);
    if (!run) {
        return mf_bench_out_of_memory(err);
    }
    *run = (mf_bench_run){ .options = options, .sink = sink, .act_quant = plan.act_quant, .act_dtype = plan.act_dtype };
    mf_device_options device_options = { .num_threads = options->threads,
                                         .pin_threads = options->pin_threads,
                                         .numa = options->interleave ? MF_NUMA_INTERLEAVE : MF_NUMA_FIRST_TOUCH };
    mf_status status = mf_device_open("cpu", &device_options, &run->device, err);
    run->level = highest_level();
    for (size_t s = 0; status == MF_OK && s < mf_bench_num_shapes; s++) {
        if (plan.shapes[s]) {
            run->shape = &mf_bench_shapes[s];
            status = run_shape(run, &plan, err);
        }
    }
    mf_device_close(&run->device);
    mf_free(run);
    return status;
}
