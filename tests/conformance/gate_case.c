/* gate_case.c - gate problems: see gate_case.h. */
#include "gate_case.h"

#include <float.h>
#include <math.h>

gate_spec gate_spec_default(void)
{
    mf_gate_config cfg = MF_GATE_CONFIG_INIT;
    cfg.num_experts = 8;
    cfg.top_k = 2;
    cfg.scoring = MF_SCORING_SIGMOID;
    cfg.bias_domain = MF_BIAS_NONE;
    cfg.renorm = MF_RENORM_SUM;
    cfg.routed_scaling_factor = 2.5;
    cfg.input_scale_supported = 1;
    return (gate_spec){ .cfg = cfg, .T = 5, .seed = 1, .logits_dtype = MF_F32, .bias_dtype = MF_F32,
                        .shared_gate_dtype = MF_F32, .token_dtype = MF_I32, .histogram = true, .load = true,
                        .counters = true };
}

static double special(uint64_t *seed)
{
    static const double list[] = { NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, -0.0, 0.0, 0x1p-126, -0x1p-126, 0x1p-127,
                                   -0x1p-149, 0x1.8p-126, 87.0, -87.0, -87.5, 88.5, 20.0, 0x1.400002p4 };
    return list[conf_below(seed, sizeof list / sizeof list[0])];
}

static double value(uint64_t *seed, value_kind kind, int64_t i, int64_t chosen)
{
    switch (kind) {
    case VALUES_TIES:
        return (double)(conf_below(seed, 17) - 8) / 4.0;
    case VALUES_NEGATIVE:
        return -5.0 + 4.0 * mf_random_unit(seed);
    case VALUES_WIDE:
        return 40.0 * conf_normal(seed);
    case VALUES_TINY: {
        double v = ldexp(1.0 + mf_random_unit(seed), -(int)conf_below(seed, 30) - 115);
        return conf_below(seed, 8) == 0 ? -0.0 : conf_below(seed, 2) ? v : -v;
    }
    case VALUES_SPECIAL:
        return conf_below(seed, 6) == 0 ? special(seed) : 3.0 * conf_normal(seed);
    case VALUES_ALL_MINUS_INF:
        return -INFINITY;
    case VALUES_ONE_PLUS_INF:
        return i == chosen ? INFINITY : conf_normal(seed);
    case VALUES_ALL_NAN:
        return NAN;
    case VALUES_ZERO:
        return 0.0;
    default:
        return 2.0 * conf_normal(seed);
    }
}

static void *input(gate_case *c, size_t bytes)
{
    assert_true(c->num_inputs < GATE_NUM_INPUTS);
    return c->inputs[c->num_inputs++] = conf_alloc(bytes);
}

static mf_tensor make_logits(gate_case *c, uint64_t *seed)
{
    const gate_spec *s = &c->spec;
    int64_t size = (int64_t)mf_dtype_size(s->logits_dtype);
    int64_t stride = c->N + (s->layout == LAYOUT_STRIDED ? 5 : 0);
    int64_t shift = s->layout == LAYOUT_OFFSET ? size : s->layout == LAYOUT_ODD_BYTE ? 1 : 0;
    int64_t count = s->T > 0 ? (s->T - 1) * stride + c->N : 0; /* no slack behind the last row */
    char *data = input(c, (size_t)(count * size + shift));
    mf_tensor t = mf_tensor_2d(data + shift, s->logits_dtype, s->T, c->N);
    t.stride[0] = stride;
    for (int64_t r = 0; r < s->T; r++) {
        int64_t chosen = conf_below(seed, c->N);
        for (int64_t i = 0; i < c->N; i++) {
            conf_put(t.data, s->logits_dtype, r * stride + i, value(seed, s->values, i, chosen));
        }
    }
    return t;
}

static mf_tensor make_bias(gate_case *c, uint64_t *seed)
{
    mf_dtype dtype = c->spec.bias_dtype;
    char *data = input(c, (size_t)c->N * mf_dtype_size(dtype));
    for (int64_t i = 0; i < c->N; i++) {
        double v = value(seed, c->spec.bias_values, i, 0);
        conf_put(data, dtype, i, c->spec.bias_values == VALUES_NEGATIVE ? v / 4.0 - 2.75 : v);
    }
    return c->spec.bias_2d ? mf_tensor_2d(data, dtype, 1, c->N) : mf_tensor_1d(data, dtype, c->N);
}

static mf_tensor make_flags(gate_case *c, uint64_t *seed, int64_t n, int64_t one_in)
{
    uint8_t *data = input(c, (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        data[i] = conf_below(seed, one_in) == 0 ? 0 : (uint8_t)(1 + conf_below(seed, 255));
    }
    return mf_tensor_1d(data, MF_U8, n);
}

static void make_hash(gate_case *c, uint64_t *seed)
{
    const gate_spec *s = &c->spec;
    int64_t rows = 37, k = s->cfg.top_k;
    int32_t *table = input(c, (size_t)(rows * k) * 4);
    for (int64_t i = 0; i < rows * k; i++) {
        table[i] = (int32_t)conf_below(seed, s->cfg.num_experts);
        if (s->bad_hash && conf_below(seed, 9) == 0) {
            table[i] = (int32_t)CONF_PICK(seed, -1, INT32_MIN, s->cfg.num_experts, INT32_MAX);
        }
    }
    c->args.hash_table = mf_tensor_2d(table, MF_I32, rows, k);
    char *tokens = input(c, (size_t)s->T * mf_dtype_size(s->token_dtype));
    for (int64_t t = 0; t < s->T; t++) {
        int64_t token = conf_below(seed, rows);
        if (s->bad_hash && conf_below(seed, 7) == 0) {
            token = CONF_PICK(seed, -1, rows, INT32_MAX, INT32_MIN);
            token = s->token_dtype == MF_I64 && conf_below(seed, 2) ? (1LL << 32) + 1 : token; /* row 1 if cut to 32 bits */
        }
        int32_t narrow = (int32_t)token;
        memcpy(tokens + t * (int64_t)mf_dtype_size(s->token_dtype), s->token_dtype == MF_I64 ? (void *)&token : &narrow,
               mf_dtype_size(s->token_dtype));
    }
    c->args.token_ids = mf_tensor_1d(tokens, s->token_dtype, s->T);
}

/* Physical ids in [0, Ep), one in nine -1. */
static void make_map(gate_case *c, uint64_t *seed)
{
    const gate_spec *s = &c->spec;
    int64_t copies = s->map == MAP_COPIES ? 3 : 1;
    int64_t physical = s->cfg.num_physical_experts < 0 ? s->cfg.num_experts : s->cfg.num_physical_experts;
    int32_t *map = input(c, (size_t)(s->cfg.num_experts * copies) * 4);
    int32_t *count = input(c, (size_t)s->cfg.num_experts * 4);
    for (int64_t i = 0; i < s->cfg.num_experts * copies; i++) {
        map[i] = conf_below(seed, 9) == 0 ? -1 : (int32_t)conf_below(seed, physical);
    }
    for (int64_t i = 0; i < s->cfg.num_experts; i++) {
        count[i] = 1 + (int32_t)conf_below(seed, copies);
    }
    if (s->map == MAP_COPIES) {
        c->args.expert_map = mf_tensor_2d(map, MF_I32, s->cfg.num_experts, copies);
        c->args.expert_copies = mf_tensor_1d(count, MF_I32, s->cfg.num_experts);
    } else {
        c->args.expert_map = mf_tensor_1d(map, MF_I32, s->cfg.num_experts);
    }
}

static void make_padding(gate_case *c, uint64_t *seed)
{
    const gate_spec *s = &c->spec;
    if (s->padding != PAD_NONE && s->padding != PAD_ROWS) {
        int32_t *n = input(c, 4);
        *n = (int32_t)(s->padding == PAD_ALL ? 0 : s->padding == PAD_ONE ? s->T - 1 : s->T / 2);
        c->args.num_valid_tokens = mf_tensor_1d(n, MF_I32, 1);
    }
    if (s->padding == PAD_ROWS || s->padding == PAD_BOTH) {
        c->args.row_valid = make_flags(c, seed, s->T, 3);
    }
}

void gate_case_open(gate_case *c, const gate_spec *spec)
{
    memset(c, 0, sizeof *c);
    c->spec = *spec;
    uint64_t seed = spec->seed;
    const mf_gate_config *cfg = &c->spec.cfg;
    c->N = cfg->num_experts + cfg->num_zero_experts;
    c->C = cfg->top_k + cfg->num_shared_slots;
    int64_t physical = cfg->num_physical_experts < 0 ? cfg->num_experts : cfg->num_physical_experts;
    c->P = cfg->num_slots < 0 ? physical + (int64_t)cfg->num_shared_slots * cfg->num_replicas : cfg->num_slots;
    c->args.config = cfg;
    c->args.row_base = spec->row_base;
    c->args.router_logits = make_logits(c, &seed);
    if (cfg->bias_domain == MF_BIAS_SCORE || cfg->bias_domain == MF_BIAS_LOGIT) {
        c->args.e_score_correction_bias = make_bias(c, &seed);
        if (spec->bias_alt) {
            c->args.bias_alt = make_bias(c, &seed);
            c->args.row_is_alt = make_flags(c, &seed, spec->T, 2);
        }
    }
    if (spec->scale) {
        float *scale = input(c, (size_t)c->N * 4);
        for (int64_t i = 0; i < c->N; i++) {
            scale[i] = (float)CONF_PICK(&seed, 0, 1, 2, 3) * 0.37f + (conf_below(&seed, 20) == 0 ? 0x1p-127f : 0.0f);
        }
        c->args.per_expert_scale = mf_tensor_1d(scale, MF_F32, c->N);
    }
    if (cfg->shared_weight == MF_SHARED_PER_TOKEN) {
        char *gate = input(c, (size_t)spec->T * mf_dtype_size(spec->shared_gate_dtype));
        for (int64_t t = 0; t < spec->T; t++) {
            conf_put(gate, spec->shared_gate_dtype, t, value(&seed, spec->values, t, 0));
        }
        c->args.shared_gate = mf_tensor_1d(gate, spec->shared_gate_dtype, spec->T);
    }
    if (spec->mask) {
        c->args.expert_mask = make_flags(c, &seed, c->N, 3);
    }
    if (cfg->hash) {
        make_hash(c, &seed);
    }
    if (spec->map != MAP_NONE) {
        make_map(c, &seed);
    }
    make_padding(c, &seed);
}

void gate_case_close(gate_case *c)
{
    for (int i = 0; i < c->num_inputs; i++) {
        conf_free(c->inputs[i]);
    }
    memset(c, 0, sizeof *c);
}

static mf_tensor output_rows(void *data, mf_dtype dtype, const gate_case *c, int64_t row)
{
    mf_tensor t = mf_tensor_2d(data, dtype, c->spec.T, c->C);
    t.stride[0] = row;
    return t;
}

void gate_outputs_open(gate_outputs *o, const gate_case *c)
{
    const gate_spec *s = &c->spec;
    memset(o, 0, sizeof *o);
    o->args = c->args;
    o->row = c->C + s->out_slack;
    size_t bytes = (size_t)(s->T * o->row) * 4;
    o->ids = conf_alloc(bytes);
    o->weights = conf_alloc(bytes);
    o->args.topk_ids = output_rows(o->ids, MF_I32, c, o->row);
    o->args.topk_weights = output_rows(o->weights, MF_F32, c, o->row);
    o->identity = conf_alloc((size_t)s->T * 4);
    if (s->cfg.num_zero_experts > 0 || s->counters) {
        o->args.identity_weight = mf_tensor_1d(o->identity, MF_F32, s->T);
    }
    o->packed = conf_alloc(bytes);
    if (s->cfg.pack) {
        o->args.packed = output_rows(o->packed, MF_I32, c, o->row);
    }
    o->histogram = conf_alloc((size_t)c->P * 4);
    if (s->histogram) {
        o->args.histogram = mf_tensor_1d(o->histogram, MF_I32, c->P);
    }
    o->load = conf_alloc((size_t)s->cfg.num_experts * 4);
    for (int32_t e = 0; e < s->cfg.num_experts; e++) {
        o->load[e] = 100 + e;
    }
    if (s->load) {
        o->args.load = mf_tensor_1d(o->load, MF_I32, s->cfg.num_experts);
    }
    o->bad_rows = conf_alloc(4);
    o->error_count = conf_alloc(4);
    *o->bad_rows = 1000;
    *o->error_count = 2000;
    if (s->counters) {
        o->args.bad_rows = mf_tensor_1d(o->bad_rows, MF_I32, 1);
        o->args.error_count = mf_tensor_1d(o->error_count, MF_I32, 1);
    }
}

void gate_outputs_close(gate_outputs *o)
{
    void *const blocks[] = { o->ids, o->weights, o->identity, o->packed, o->histogram, o->load, o->bad_rows, o->error_count };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        conf_free(blocks[i]);
    }
    memset(o, 0, sizeof *o);
}

void gate_run(gate_outputs *o, mf_device *device, bool unfused)
{
    if (!unfused) {
        o->status = mf_moe_fused_gate(device, &o->args, &o->err);
        return;
    }
    size_t bytes = mf_moe_gate_workspace_bytes(&o->args);
    bytes = bytes < (size_t)1 << 30 ? bytes : 0; /* only a damaged configuration wants more: it is refused anyway */
    void *workspace = conf_alloc(bytes);
    o->status = mf_moe_gate_unfused(device, &o->args, workspace, bytes, &o->err);
    conf_free(workspace);
}

static void expect_array(const gate_case *c, const char *label, const char *name, const void *a, const void *b,
                         mf_dtype dtype, int64_t n, int64_t row)
{
    int64_t at = conf_difference(a, b, dtype, n);
    if (at >= 0) {
        uint32_t va, vb;
        memcpy(&va, (const char *)a + at * 4, 4);
        memcpy(&vb, (const char *)b + at * 4, 4);
        fail_msg("%s: %s[%lld, %lld] is 0x%08x, expected 0x%08x\n  %s", label, name, (long long)(at / row),
                 (long long)(at % row), vb, va, gate_case_text(c));
    }
}

void gate_expect_equal(const gate_case *c, const gate_outputs *a, const gate_outputs *b, const char *label)
{
    if (a->status != MF_OK || b->status != MF_OK) {
        fail_msg("%s: %s%s\n  %s", label, a->err.message, b->err.message, gate_case_text(c));
    }
    int64_t n = c->spec.T * a->row;
    expect_array(c, label, "topk_ids", a->ids, b->ids, MF_I32, n, a->row);
    expect_array(c, label, "topk_weights", a->weights, b->weights, MF_F32, n, a->row);
    expect_array(c, label, "packed", a->packed, b->packed, MF_I32, n, a->row);
    expect_array(c, label, "identity_weight", a->identity, b->identity, MF_F32, c->spec.T, 1);
    expect_array(c, label, "histogram", a->histogram, b->histogram, MF_I32, c->P, 1);
    expect_array(c, label, "load", a->load, b->load, MF_I32, c->spec.cfg.num_experts, 1);
    expect_array(c, label, "bad_rows", a->bad_rows, b->bad_rows, MF_I32, 1, 1);
    expect_array(c, label, "error_count", a->error_count, b->error_count, MF_I32, 1, 1);
}

const char *gate_case_text(const gate_case *c)
{
    static char text[1024];
    const gate_spec *s = &c->spec;
    const mf_gate_config *g = &s->cfg;
    snprintf(text, sizeof text,
             "seed %llu T %lld E %d Z %d K %d S %d R %d Ep %d P %d scoring %d bias %d/%s/%d alt %d renorm %d eps %g G %d L %d gs %d "
             "factor %g fold %d shared %d base %d stride %d ep %d/%d window %lld+%lld order %d pack %d hash %d logits %s values "
             "%d layout %d padding %d map %d scale %d mask %d row_base %lld",
             (unsigned long long)s->seed, (long long)s->T, g->num_experts, g->num_zero_experts, g->top_k,
             g->num_shared_slots, g->num_replicas, g->num_physical_experts, g->num_slots, g->scoring, g->bias_domain,
             mf_dtype_name(s->bias_dtype), s->bias_values, s->bias_alt, g->renorm, g->renorm_eps, g->n_group, g->topk_group,
             g->group_score, g->routed_scaling_factor, g->fold_scale, g->shared_weight, g->shared_base, g->shared_stride,
             g->ep_size, g->ep_rank, (long long)g->window_first, (long long)g->window_count, g->out_order, g->pack, g->hash,
             mf_dtype_name(s->logits_dtype), s->values, s->layout, s->padding, s->map, s->scale, s->mask,
             (long long)s->row_base);
    return text;
}
