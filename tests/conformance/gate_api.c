/* gate_api.c - what the gate refuses: every row of the table of parameters, with status and text, on every device and
 * through both entries; nothing is written on refusal. */
#include <math.h>

#include "gate_case.h"

typedef struct fixture {
    gate_case c;
    gate_outputs o;
    mf_gate_config *cfg; /* of the case: may be changed after the inputs were made */
    mf_gate_args *args;  /* of the outputs */
} fixture;

static void open_spec(fixture *f, const gate_spec *s)
{
    gate_case_open(&f->c, s);
    gate_outputs_open(&f->o, &f->c);
    f->cfg = &f->c.spec.cfg;
    f->args = &f->o.args;
    f->args->config = f->cfg;
}

static void open_default(fixture *f)
{
    gate_spec s = gate_spec_default();
    open_spec(f, &s);
}

static void close_fixture(fixture *f)
{
    gate_outputs_close(&f->o);
    gate_case_close(&f->c);
}

/* Refused everywhere with this status and a message that holds the text; the ids are still poison. */
static void refuses(fixture *f, mf_status status, const char *text)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < 2 * count; i++) {
        f->o.err.message[0] = '\0';
        gate_run(&f->o, devices[i / 2].device, i % 2);
        if (f->o.status != status) {
            fail_msg("status %d (%s); expected %d with \"%s\"", f->o.status, f->o.err.message, status, text);
        }
        CHECK_EQ(f->o.err.status, status);
        CHECK_HAS(f->o.err.message, text);
        mf_status quiet = mf_moe_fused_gate(devices[i / 2].device, f->args, NULL);
        CHECK_EQ(quiet, status);
    }
    for (int64_t i = 0; i < f->c.spec.T * f->o.row * 4; i++) {
        CHECK_EQ(((unsigned char *)f->o.ids)[i], CONF_POISON);
    }
    close_fixture(f);
}

static void accepts(fixture *f)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < 2 * count; i++) {
        gate_run(&f->o, devices[i / 2].device, i % 2);
        CHECK_OK(f->o.status, f->o.err);
    }
    close_fixture(f);
}

/* One claim: the default problem with these statements applied to cfg and args. */
#define REFUSES(status, text, ...)  \
    do {                            \
        fixture fix;                \
        open_default(&fix);         \
        mf_gate_config *cfg = fix.cfg; \
        mf_gate_args *args = fix.args; \
        (void)args;                 \
        (void)cfg;                  \
        __VA_ARGS__;                \
        refuses(&fix, status, text); \
    } while (0)
#define ACCEPTS(...)                \
    do {                            \
        fixture fix;                \
        open_default(&fix);         \
        mf_gate_config *cfg = fix.cfg; \
        mf_gate_args *args = fix.args; \
        (void)args;                 \
        (void)cfg;                  \
        __VA_ARGS__;                \
        accepts(&fix);              \
    } while (0)
#define INVALID(text, ...) REFUSES(MF_ERR_INVALID, text, __VA_ARGS__)
#define UNSUPPORTED(text, ...) REFUSES(MF_ERR_UNSUPPORTED, text, __VA_ARGS__)

TEST(counts_out_of_range_are_named_with_their_values)
{
    INVALID("num_experts 0", cfg->num_experts = 0);
    INVALID("num_experts -5", cfg->num_experts = -5);
    INVALID("top_k 0", cfg->top_k = 0);
    INVALID("top_k 9 exceeds num_experts 8", cfg->top_k = 9);
    INVALID("top_k 9 exceeds num_experts 6 + num_zero_experts 2", cfg->num_experts = 6; cfg->num_zero_experts = 2;
            cfg->top_k = 9);
    INVALID("num_shared_slots -1", cfg->num_shared_slots = -1);
    INVALID("num_replicas 0", cfg->num_replicas = 0);
    INVALID("num_zero_experts -1", cfg->num_zero_experts = -1);
    INVALID("top_k 2147483647", cfg->top_k = INT32_MAX);
}

TEST(groups_must_divide_and_hold_enough_experts)
{
    INVALID("n_group 8 does not divide num_experts 60", cfg->num_experts = 60; cfg->n_group = 8; cfg->topk_group = 4;
            cfg->group_score = MF_GROUP_SCORE_MAX);
    INVALID("topk_group 1 x 16 experts cannot give top_k 24", cfg->num_experts = 128; cfg->n_group = 8; cfg->top_k = 24;
            cfg->group_score = MF_GROUP_SCORE_MAX);
    INVALID("topk_group 0", cfg->topk_group = 0);
    INVALID("topk_group 2 exceeds n_group 1", cfg->topk_group = 2);
    INVALID("n_group 0", cfg->n_group = 0);
    INVALID("n_group -4", cfg->n_group = -4);
    INVALID("n_group 2 with num_zero_experts 2", cfg->num_experts = 6; cfg->num_zero_experts = 2; cfg->n_group = 2;
            cfg->group_score = MF_GROUP_SCORE_MAX);
    INVALID("n_group 2 cannot be combined with TOPK_SOFTMAX", cfg->n_group = 2; cfg->scoring = MF_SCORING_TOPK_SOFTMAX;
            cfg->renorm = MF_RENORM_NONE; cfg->group_score = MF_GROUP_SCORE_MAX);
    INVALID("n_group 2 cannot be combined with hash", cfg->n_group = 2; cfg->hash = 1;
            cfg->group_score = MF_GROUP_SCORE_MAX);
    INVALID("group_score is not set", cfg->n_group = 2);
}

TEST(a_bias_and_its_domain_come_together)
{
    static const float zeros[8];
    INVALID("bias_domain SCORE needs e_score_correction_bias", cfg->bias_domain = MF_BIAS_SCORE);
    INVALID("bias_domain LOGIT needs e_score_correction_bias", cfg->bias_domain = MF_BIAS_LOGIT);
    INVALID("bias_domain NONE with e_score_correction_bias",
            args->e_score_correction_bias = mf_tensor_1d(zeros, MF_F32, 8));
    INVALID("bias_domain NONE with bias_alt", args->bias_alt = mf_tensor_1d(zeros, MF_F32, 8));
    INVALID("bias_alt needs row_is_alt", cfg->bias_domain = MF_BIAS_SCORE;
            args->e_score_correction_bias = mf_tensor_1d(zeros, MF_F32, 8); args->bias_alt = mf_tensor_1d(zeros, MF_F32, 8));
    INVALID("bias_domain SCORE cannot be combined with scoring TOPK_SOFTMAX", cfg->bias_domain = MF_BIAS_SCORE;
            cfg->scoring = MF_SCORING_TOPK_SOFTMAX; cfg->renorm = MF_RENORM_NONE;
            args->e_score_correction_bias = mf_tensor_1d(zeros, MF_F32, 8));
    ACCEPTS(cfg->bias_domain = MF_BIAS_SCORE; args->e_score_correction_bias = mf_tensor_2d(zeros, MF_F32, 1, 8));
    INVALID("e_score_correction_bias: shape [8, 1]", cfg->bias_domain = MF_BIAS_SCORE;
            args->e_score_correction_bias = mf_tensor_2d(zeros, MF_F32, 8, 1));
    INVALID("e_score_correction_bias: shape [7]", cfg->bias_domain = MF_BIAS_SCORE;
            args->e_score_correction_bias = mf_tensor_1d(zeros, MF_F32, 7));
}

TEST(required_choices_have_no_default)
{
    INVALID("scoring is not set", cfg->scoring = MF_SCORING_UNSET);
    INVALID("bias_domain is not set", cfg->bias_domain = MF_BIAS_UNSET);
    INVALID("renorm is not set", cfg->renorm = MF_RENORM_UNSET);
    INVALID("scoring 7", cfg->scoring = (mf_scoring)7);
    INVALID("scoring -1", cfg->scoring = (mf_scoring)-1);
    INVALID("bias_domain 4", cfg->bias_domain = (mf_bias_domain)4);
    INVALID("renorm 5", cfg->renorm = (mf_renorm)5);
    INVALID("shared_weight 3", cfg->shared_weight = (mf_shared_weight)3);
    INVALID("out_order 2", cfg->out_order = (mf_out_order)2);
    INVALID("group_score 3", cfg->group_score = (mf_group_score)3);
}

TEST(topk_scorings_are_not_renormalised_and_llama_is_not_folded)
{
    INVALID("scoring TOPK_SOFTMAX", cfg->scoring = MF_SCORING_TOPK_SOFTMAX);
    INVALID("scoring TOPK_SIGMOID", cfg->scoring = MF_SCORING_TOPK_SIGMOID);
    INVALID("fold_scale 1 with scoring TOPK_SIGMOID", cfg->scoring = MF_SCORING_TOPK_SIGMOID; cfg->renorm = MF_RENORM_NONE);
    ACCEPTS(cfg->scoring = MF_SCORING_TOPK_SIGMOID; cfg->renorm = MF_RENORM_NONE; cfg->fold_scale = 0);
    ACCEPTS(cfg->scoring = MF_SCORING_TOPK_SIGMOID; cfg->renorm = MF_RENORM_NONE; cfg->routed_scaling_factor = 1.0);
}

TEST(hash_takes_no_ranking_inputs_and_needs_its_table)
{
    static const float zeros[8];
    static const uint8_t mask[8];
    static const int32_t table[6], tokens[5];
    INVALID("hash needs hash_table", cfg->hash = 1);
    INVALID("hash needs token_ids", cfg->hash = 1; args->hash_table = mf_tensor_2d(table, MF_I32, 3, 2));
    INVALID("hash cannot be combined with scoring SOFTMAX", cfg->hash = 1; cfg->scoring = MF_SCORING_SOFTMAX);
    INVALID("hash cannot be combined with scoring TOPK_SIGMOID", cfg->hash = 1; cfg->scoring = MF_SCORING_TOPK_SIGMOID);
    INVALID("hash cannot be combined with a bias_domain", cfg->hash = 1; cfg->bias_domain = MF_BIAS_LOGIT);
    INVALID("hash cannot be combined with e_score_correction_bias", cfg->hash = 1; cfg->bias_domain = MF_BIAS_SCORE;
            args->e_score_correction_bias = mf_tensor_1d(zeros, MF_F32, 8));
    INVALID("hash cannot be combined with bias_alt", cfg->hash = 1; args->bias_alt = mf_tensor_1d(zeros, MF_F32, 8));
    INVALID("hash cannot be combined with expert_mask", cfg->hash = 1; args->expert_mask = mf_tensor_1d(mask, MF_U8, 8));
    INVALID("hash_table: shape [2, 3]", cfg->hash = 1; args->hash_table = mf_tensor_2d(table, MF_I32, 2, 3);
            args->token_ids = mf_tensor_1d(tokens, MF_I32, 5));
    INVALID("token_ids: dtype u8", cfg->hash = 1; args->hash_table = mf_tensor_2d(table, MF_I32, 3, 2);
            args->token_ids = mf_tensor_1d(tokens, MF_U8, 5));
    ACCEPTS(cfg->hash = 1; args->hash_table = mf_tensor_2d(table, MF_I32, 3, 2);
            args->token_ids = mf_tensor_1d(tokens, MF_I32, 5));
}

TEST(the_scaling_factor_must_be_said_and_be_a_normal_f32)
{
    INVALID("routed_scaling_factor is not set", cfg->routed_scaling_factor = NAN);
    INVALID("routed_scaling_factor 1e+39", cfg->routed_scaling_factor = 1e39); /* a fine double, an infinite f32 */
    INVALID("routed_scaling_factor inf", cfg->routed_scaling_factor = INFINITY);
    INVALID("routed_scaling_factor 0", cfg->routed_scaling_factor = 0.0);
    INVALID("routed_scaling_factor -2.5", cfg->routed_scaling_factor = -2.5);
    INVALID("routed_scaling_factor 1e-38", cfg->routed_scaling_factor = 1e-38);
    INVALID("renorm_eps is not set", cfg->renorm = MF_RENORM_SUM_FLOOR);
    INVALID("renorm_eps 1e-39", cfg->renorm = MF_RENORM_SUM_FLOOR; cfg->renorm_eps = 1e-39);
    INVALID("renorm_eps 0", cfg->renorm = MF_RENORM_SUM_EPS; cfg->renorm_eps = 0.0);
    INVALID("renorm_eps inf", cfg->renorm = MF_RENORM_SUM_EPS; cfg->renorm_eps = INFINITY);
    ACCEPTS(cfg->renorm = MF_RENORM_SUM_EPS);
    ACCEPTS(cfg->routed_scaling_factor = 0x1p-126);
    ACCEPTS(cfg->routed_scaling_factor = 0x1.fffffffp-127); /* rounds up to 2^-126 */
}

TEST(shared_weights_need_what_they_are_made_of)
{
    static const float gate[5];
    INVALID("shared_weight PER_TOKEN needs shared_gate", cfg->shared_weight = MF_SHARED_PER_TOKEN);
    INVALID("shared_weight RECIPROCAL with fold_scale 1", cfg->shared_weight = MF_SHARED_RECIPROCAL);
    INVALID("num_shared_slots is 0", args->shared_gate = mf_tensor_1d(gate, MF_F32, 5));
    INVALID("num_shared_slots is 0", args->shared_gate = mf_tensor_1d(gate, MF_F32, 5);
            cfg->shared_weight = MF_SHARED_PER_TOKEN);
}

TEST(shared_ids_must_not_collide_or_overflow)
{
    INVALID("shared_base 7 is less than num_physical_experts 8", cfg->shared_base = 7);
    INVALID("shared_stride 1 is less than num_replicas 2", cfg->num_shared_slots = 2; cfg->num_replicas = 2;
            cfg->shared_stride = 1);
    INVALID("shared_base 2147483647", cfg->num_shared_slots = 2; cfg->shared_base = INT32_MAX);
    INVALID("exceeds 2147483647", cfg->num_shared_slots = 16; cfg->num_replicas = INT32_MAX);
    INVALID("pack with num_slots 32769", cfg->pack = 1; cfg->num_slots = 32769;
            args->histogram = (mf_tensor){ 0 });
    INVALID("ep_size 3 does not divide num_physical_experts 8", cfg->ep_size = 3);
    INVALID("ep_size -1", cfg->ep_size = -1);
    INVALID("ep_rank 4", cfg->ep_size = 4; cfg->ep_rank = 4);
    INVALID("ep_rank -2", cfg->ep_size = 4; cfg->ep_rank = -2);
    INVALID("num_slots 0", cfg->num_slots = 0);
    INVALID("num_physical_experts 0", cfg->num_physical_experts = 0);
    INVALID("num_physical_experts 4 is less than num_experts 8", cfg->num_physical_experts = 4);
    INVALID("window_count -2", cfg->window_count = -2);
    INVALID("window_first -1", cfg->window_count = 4; cfg->window_first = -1);
    INVALID("row_base -1", args->row_base = -1);
    INVALID("row_base 9223372036854775807", args->row_base = INT64_MAX);
    INVALID("exceed 2147483647", cfg->num_physical_experts = INT32_MAX; cfg->ep_size = INT32_MAX; cfg->num_shared_slots = 1;
            cfg->num_slots = 8; cfg->shared_base = INT32_MAX);
}

TEST(what_this_build_cannot_do_is_unsupported)
{
    UNSUPPORTED("num_experts 4097", cfg->num_experts = 4097);
    UNSUPPORTED("num_experts 4000 + num_zero_experts 97", cfg->num_experts = 4000; cfg->num_zero_experts = 97);
    UNSUPPORTED("top_k 65", cfg->num_experts = 128; cfg->top_k = 65);
    UNSUPPORTED("num_shared_slots 17", cfg->num_shared_slots = 17);
    UNSUPPORTED("soft-capping", cfg->softcap_given = 1);
    UNSUPPORTED("jitter", cfg->jitter_given = 1);
    UNSUPPORTED("TOPK_SIGMOID with top_k above 1", cfg->scoring = MF_SCORING_TOPK_SIGMOID; cfg->renorm = MF_RENORM_NONE;
                cfg->fold_scale = 0; cfg->input_scale_supported = 0);
    static const float gate[5];
    UNSUPPORTED("TOPK_SIGMOID with shared_weight PER_TOKEN", cfg->scoring = MF_SCORING_TOPK_SIGMOID;
                cfg->renorm = MF_RENORM_NONE; cfg->fold_scale = 0; cfg->input_scale_supported = 0; cfg->top_k = 1;
                cfg->num_shared_slots = 1; cfg->shared_weight = MF_SHARED_PER_TOKEN;
                args->shared_gate = mf_tensor_1d(gate, MF_F32, 5));
}

TEST(a_wrong_dtype_is_refused_and_never_reinterpreted)
{
    INVALID("router_logits: dtype i32; expected f32, bf16 or f16", args->router_logits.dtype = MF_I32);
    INVALID("router_logits: dtype f64", args->router_logits.dtype = MF_F64);
    INVALID("router_logits: dtype ?", args->router_logits.dtype = (mf_dtype)99);
    INVALID("topk_ids: dtype i64; expected i32", args->topk_ids.dtype = MF_I64);
    INVALID("topk_weights: dtype bf16; expected f32", args->topk_weights.dtype = MF_BF16);
    INVALID("histogram: dtype i64", args->histogram.dtype = MF_I64);
    INVALID("load: dtype f32", args->load.dtype = MF_F32);
    INVALID("bad_rows: dtype u8", args->bad_rows.dtype = MF_U8);
    INVALID("error_count: dtype u8", args->error_count.dtype = MF_U8);
    INVALID("identity_weight: dtype bf16", args->identity_weight.dtype = MF_BF16);
}

TEST(wrong_shapes_and_strides_are_refused)
{
    INVALID("router_logits is missing", args->router_logits = (mf_tensor){ 0 });
    INVALID("router_logits: shape [5, 7]; expected [any, 8]", args->router_logits.shape[1] = 7);
    INVALID("router_logits: shape [-1, 8]", args->router_logits.shape[0] = -1);
    INVALID("router_logits: data is NULL", args->router_logits.data = NULL);
    INVALID("router_logits: ndim 5", args->router_logits.ndim = 5);
    INVALID("router_logits: ndim -1", args->router_logits.ndim = -1);
    INVALID("router_logits: shape [5]", args->router_logits.ndim = 1);
    INVALID("router_logits: stride [7, 1]", args->router_logits.stride[0] = 7);
    INVALID("router_logits: stride [8, 2]", args->router_logits.stride[1] = 2);
    INVALID("router_logits: stride [-8, 1]", args->router_logits.stride[0] = -8);
    INVALID("63 bits", args->router_logits.stride[0] = INT64_MAX / 2);
    INVALID("do not fit in memory", args->router_logits.stride[0] = INT64_MAX / 8);
    INVALID("topk_ids: shape [4, 2]; expected [5, 2]", args->topk_ids.shape[0] = 4);
    INVALID("topk_ids: shape [5, 3]; expected [5, 2]", args->topk_ids.shape[1] = 3);
    INVALID("topk_ids is missing", args->topk_ids = (mf_tensor){ 0 });
    INVALID("topk_weights is missing", args->topk_weights = (mf_tensor){ 0 });
    INVALID("histogram: shape [7]; expected [8]", args->histogram.shape[0] = 7);
    INVALID("histogram: stride [2]", args->histogram.stride[0] = 2);
    INVALID("load: shape [9]", args->load.shape[0] = 9);
    INVALID("bad_rows: shape [2]", args->bad_rows.shape[0] = 2);
    INVALID("packed is missing", cfg->pack = 1);
    INVALID("needs identity_weight", cfg->num_experts = 6; cfg->num_zero_experts = 2; args->load = (mf_tensor){ 0 };
            args->histogram = (mf_tensor){ 0 }; args->identity_weight = (mf_tensor){ 0 });
    static const uint8_t flags[8];
    static const int32_t map[24];
    static const float scale[8];
    INVALID("expert_mask: shape [7]", args->expert_mask = mf_tensor_1d(flags, MF_U8, 7));
    INVALID("row_valid: shape [4]", args->row_valid = mf_tensor_1d(flags, MF_U8, 4));
    INVALID("num_valid_tokens: shape [2]", args->num_valid_tokens = mf_tensor_1d(map, MF_I32, 2));
    INVALID("num_valid_tokens: dtype i64", args->num_valid_tokens = mf_tensor_1d(map, MF_I64, 1));
    INVALID("per_expert_scale: shape [5]", args->per_expert_scale = mf_tensor_1d(scale, MF_F32, 5));
    INVALID("expert_map: shape [7]; expected [8]", args->expert_map = mf_tensor_1d(map, MF_I32, 7));
    INVALID("expert_copies is missing", args->expert_map = mf_tensor_2d(map, MF_I32, 8, 3));
    INVALID("expert_map: 0 copies", args->expert_map = mf_tensor_2d(map, MF_I32, 8, 0));
}

TEST(null_arguments_and_small_workspaces_are_refused)
{
    mf_error err;
    fixture f;
    open_default(&f);
    CHECK_EQ(mf_moe_fused_gate(NULL, f.args, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "device is NULL");
    CHECK_EQ(mf_moe_fused_gate(conf_ref(), NULL, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "args is NULL");
    CHECK_EQ(mf_moe_gate_unfused(conf_ref(), f.args, NULL, 0, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "workspace: 0 bytes");
    size_t bytes = mf_moe_gate_workspace_bytes(f.args);
    char *workspace = conf_alloc(bytes + 64);
    CHECK_EQ(mf_moe_gate_unfused(conf_ref(), f.args, workspace, bytes - 1, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "expected at least");
    CHECK_EQ(mf_moe_gate_unfused(conf_ref(), f.args, workspace + 4, bytes, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "64-byte aligned");
    CHECK_EQ(mf_moe_gate_unfused(conf_ref(), f.args, NULL, bytes, &err), MF_ERR_INVALID);
    conf_free(workspace);
    f.args->config = NULL;
    CHECK_EQ(mf_moe_fused_gate(conf_ref(), f.args, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "config is NULL");
    CHECK_EQ(mf_moe_gate_workspace_bytes(f.args), 0);
    CHECK_EQ(mf_moe_gate_workspace_bytes(NULL), 0);
    close_fixture(&f);
}

/* ---- robustness: whatever integers stand in the fields, the call returns and stays inside its buffers ---- */

static int32_t odd_int(uint64_t *seed, int32_t now)
{
    return (int32_t)CONF_PICK(seed, 0, 1, 2, 3, 4, 7, 8, 16, 64, 65, -1, -2, INT32_MAX, INT32_MIN, now + 1, now - 1,
                              4096, 32768, 65536);
}

static void damage_config(mf_gate_config *g, uint64_t *seed)
{
    int32_t *const fields[] = { &g->num_experts, &g->top_k, &g->num_zero_experts, &g->num_shared_slots, &g->num_replicas,
                                &g->num_physical_experts, &g->num_slots, &g->n_group, &g->topk_group, &g->fold_scale,
                                &g->shared_base, &g->shared_stride, &g->ep_size, &g->ep_rank, &g->pack, &g->hash,
                                &g->input_scale_supported, (int32_t *)&g->scoring, (int32_t *)&g->bias_domain,
                                (int32_t *)&g->renorm, (int32_t *)&g->group_score, (int32_t *)&g->shared_weight,
                                (int32_t *)&g->out_order };
    int32_t *field = fields[conf_below(seed, sizeof fields / sizeof fields[0])];
    *field = odd_int(seed, *field);
    if (conf_below(seed, 4) == 0) {
        static const int64_t wide[] = { -1, 0, 1, 5, INT64_MAX, INT64_MIN, 1LL << 33 };
        *(conf_below(seed, 2) ? &g->window_first : &g->window_count) = wide[conf_below(seed, 7)];
    }
    if (conf_below(seed, 6) == 0) {
        static const double reals[] = { NAN, INFINITY, -1.0, 0.0, 1e-300, 1e300, 1.0 };
        *(conf_below(seed, 2) ? &g->renorm_eps : &g->routed_scaling_factor) = reals[conf_below(seed, 7)];
    }
}

static void damage_tensor(mf_gate_args *a, uint64_t *seed)
{
    mf_tensor *const tensors[] = { &a->router_logits, &a->e_score_correction_bias, &a->bias_alt, &a->row_is_alt,
                                   &a->per_expert_scale, &a->shared_gate, &a->expert_mask, &a->hash_table, &a->token_ids,
                                   &a->expert_map, &a->expert_copies, &a->num_valid_tokens, &a->row_valid, &a->topk_ids,
                                   &a->topk_weights, &a->identity_weight, &a->packed, &a->histogram, &a->load,
                                   &a->bad_rows, &a->error_count };
    mf_tensor *t = tensors[conf_below(seed, sizeof tensors / sizeof tensors[0])];
    int axis = (int)conf_below(seed, MF_MAX_DIMS);
    switch (conf_below(seed, 6)) {
    case 0:
        t->data = NULL;
        break;
    case 1: /* only to wider or foreign dtypes would be legal nowhere; a same-size one may be legal */
        t->dtype = (mf_dtype)conf_below(seed, MF_DTYPE_COUNT + 3);
        if (mf_dtype_size(t->dtype) > 1) {
            *t = (mf_tensor){ .data = t->data, .dtype = t->dtype, .ndim = 7 };
        }
        break;
    case 2: /* never larger than it is */
        t->shape[axis] = CONF_PICK(seed, 0, -1, INT64_MIN, t->shape[axis] - 1);
        break;
    case 3:
        t->stride[axis] = CONF_PICK(seed, 0, -1, INT64_MAX, INT64_MIN, 1, t->stride[axis] - 1);
        break;
    case 4:
        t->ndim = (int32_t)CONF_PICK(seed, 0, 1, 2, 3, 4, 5, -1, INT32_MAX, INT32_MIN);
        break;
    default:
        *t = (mf_tensor){ 0 };
        break;
    }
}

TEST(damaged_problems_are_refused_or_run_and_never_leave_their_buffers)
{
    uint64_t seed = 99;
    int64_t accepted = 0, refused = 0;
    for (int i = 0; i < (conf_full() ? 200000 : 6000); i++) {
        gate_spec s = gate_spec_random(&seed, 400);
        fixture f;
        open_spec(&f, &s);
        for (int64_t n = 1 + conf_below(&seed, 2); n > 0; n--) {
            if (conf_below(&seed, 2)) {
                damage_config(f.cfg, &seed);
            } else {
                damage_tensor(f.args, &seed);
            }
        }
        int count;
        const conf_device *devices = conf_devices(&count);
        mf_status first = MF_OK;
        for (int d = 0; d < 2 * count; d++) {
            memset(&f.o.err, 0, sizeof f.o.err);
            gate_run(&f.o, devices[d / 2].device, d % 2);
            first = d == 0 ? f.o.status : first;
            CHECK_EQ(f.o.status, first); /* one validation for all devices */
            CHECK(f.o.status == MF_OK || f.o.err.message[0] != '\0');
        }
        accepted += first == MF_OK;
        refused += first != MF_OK;
        close_fixture(&f); /* checks the guard bytes */
    }
    CHECK(accepted > refused / 20 && refused > accepted / 20);
}
