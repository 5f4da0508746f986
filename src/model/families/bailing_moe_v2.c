/* bailing_moe_v2.c - Ling and Ring 2.0 (Bailing-MoE V2): one fused projection of queries, keys and values, norms on
 * every head, part of a head rotated, DeepSeek-V3's gate under other names.
 *
 * Where the released code and other engines read a key differently, only the value that all agree on is taken. */
#include "model/config_parts.h"
#include "model/families/deepseek.h"
#include "model/families/gqa_names.h"

#define ATTENTION MF_GQA_LAYER "attention."

static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_EXPERT_NAMES,
    [MF_ROLE_EMBED] = "model.word_embeddings.weight",
    [MF_ROLE_NORM] = "model.norm.weight",
    [MF_ROLE_LM_HEAD] = "lm_head.weight",
    [MF_ROLE_INPUT_NORM] = MF_GQA_LAYER "input_layernorm.weight",
    [MF_ROLE_POST_ATTENTION_NORM] = MF_GQA_LAYER "post_attention_layernorm.weight",
    [MF_ROLE_QKV_PROJ] = ATTENTION "query_key_value.weight",
    [MF_ROLE_QKV_BIAS] = ATTENTION "query_key_value.bias",
    [MF_ROLE_Q_NORM] = ATTENTION "query_layernorm.weight",
    [MF_ROLE_K_NORM] = ATTENTION "key_layernorm.weight",
    [MF_ROLE_O_PROJ] = ATTENTION "dense.weight",
    [MF_ROLE_DENSE_GATE] = MF_GQA_LAYER "mlp.gate_proj.weight",
    [MF_ROLE_DENSE_UP] = MF_GQA_LAYER "mlp.up_proj.weight",
    [MF_ROLE_DENSE_DOWN] = MF_GQA_LAYER "mlp.down_proj.weight",
    [MF_ROLE_ROUTER] = MF_GQA_LAYER "mlp.gate.weight",
    [MF_ROLE_CORRECTION_BIAS] = MF_GQA_LAYER "mlp.gate.expert_bias",
    [MF_ROLE_SHARED_GATE] = MF_GQA_LAYER "mlp.shared_experts.gate_proj.weight",
    [MF_ROLE_SHARED_UP] = MF_GQA_LAYER "mlp.shared_experts.up_proj.weight",
    [MF_ROLE_SHARED_DOWN] = MF_GQA_LAYER "mlp.shared_experts.down_proj.weight",
};

/* A boolean key that must be true; absent means so. */
static mf_status only_true(const mf_reader *reader, const char *key, const char *expected)
{
    static const bool yes = true;
    bool value;
    MF_TRY(mf_read_bool(reader, key, &yes, &value));
    return value ? MF_OK : mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, key, expected);
}

static mf_status read_attention(const mf_reader *reader, mf_model_config *config)
{
    static const double whole = 1.0;
    mf_gqa_defaults defaults = { .partial = &whole, .rope_theta = 6e5, .bias_key = "use_qkv_bias" };
    double partial = 1.0;
    if (mf_read_value(reader, "rotary_dim")) {
        int64_t head_dim, rotary_dim;
        MF_TRY(mf_read_int(reader, "head_dim", 2, 4096, NULL, &head_dim));
        MF_TRY(mf_read_int(reader, "rotary_dim", 2, head_dim, NULL, &rotary_dim));
        partial = (double)rotary_dim / (double)head_dim;
        defaults.partial = &partial;
        MF_TRY(mf_read_number(reader, "partial_rotary_factor", 0, 1, &partial, &partial));
        if ((int64_t)(partial * (double)head_dim) != rotary_dim) {
            return mf_read_fail(reader, MF_ERR_INVALID, "rotary_dim",
                                "%lld differs from partial_rotary_factor %g of head_dim %lld", (long long)rotary_dim,
                                partial, (long long)head_dim);
        }
    } else if (!mf_read_value(reader, "partial_rotary_factor")) { /* 0.5 to some, 1 to others */
        return mf_read_unexpected(reader, MF_ERR_INVALID, "partial_rotary_factor", "a number, or \"rotary_dim\"");
    }
    MF_TRY(mf_config_read_gqa(reader, &defaults, config));
    MF_TRY(mf_config_refuse_true(reader, "use_bias", "whether it biases the MLPs too differs between implementations"));
    MF_TRY(mf_config_refuse_true(reader, "use_sliding_window", "every layer attends to the whole context here"));
    MF_TRY(mf_config_read_optional_window(reader, config));
    static const bool yes = true;
    bool has_norms;
    MF_TRY(mf_read_bool(reader, "use_qk_norm", &yes, &has_norms));
    config->qk_norm = has_norms ? MF_QK_NORM_HEAD : MF_QK_NORM_NONE;
    return MF_OK;
}

static mf_status read_experts(const mf_reader *reader, mf_model_config *config)
{
    int64_t first_dense, num_shared, shared_width;
    static const int64_t none = 0;
    static const double one = 1.0;
    MF_TRY(mf_config_read_experts(reader, "num_experts", NULL, "num_experts_per_tok", config));
    MF_TRY(mf_read_int(reader, "moe_intermediate_size", 1, MF_MAX_SIZE, NULL, &config->moe_intermediate_size));
    MF_TRY(mf_read_int(reader, "num_shared_experts", 0, 16, &none, &num_shared));
    MF_TRY(mf_read_int(reader, "moe_shared_expert_intermediate_size", 1, MF_MAX_SIZE, &config->moe_intermediate_size,
                       &shared_width));
    if (shared_width != config->moe_intermediate_size) { /* the released code does not read it */
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "moe_shared_expert_intermediate_size",
                                  "moe_intermediate_size");
    }
    MF_TRY(mf_config_set_shared(reader, "num_shared_experts", num_shared * shared_width, config));
    MF_TRY(mf_read_int(reader, "first_k_dense_replace", 0, config->num_layers, &none, &first_dense));
    MF_TRY(mf_config_read_layer_list(reader, NULL, first_dense, config));
    return mf_read_number(reader, "routed_scaling_factor", 1e-6, 1e6, &one, &config->gate.routed_scaling_factor);
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(read_attention(reader, config));
    MF_TRY(read_experts(reader, config));
    MF_TRY(mf_config_only_text(reader, "score_function", "sigmoid", "the only scoring of this family"));
    MF_TRY(mf_config_only_text(reader, "router_dtype", "fp32", "the released code widens the router to it"));
    MF_TRY(only_true(reader, "moe_router_enable_expert_bias", "true: the released code always has expert_bias"));
    MF_TRY(only_true(reader, "norm_topk_prob", "true: the released code always renormalises"));
    MF_TRY(only_true(reader, "use_rmsnorm", "true"));
    MF_TRY(mf_config_refuse_true(reader, "norm_head", "a normalised output head is not supported"));
    MF_TRY(mf_config_refuse_true(reader, "norm_softmax", "a normalised softmax is not supported"));
    return mf_deepseek_read_noaux_gate(reader, config); /* groups, draft layers */
}

const mf_family mf_family_bailing_moe_v2 = {
    .name = "Ling-2.0",
    .architecture = "BailingMoeV2ForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "ling", NULL },
    .read = read_config,
};
