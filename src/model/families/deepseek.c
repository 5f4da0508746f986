/* deepseek.c - names and keys that DeepSeek-V2, V3 and Kimi-K2 share, keys also with GLM-4.5: see deepseek.h. */
#include "model/families/deepseek.h"

#include <string.h>

#include "model/config_parts.h"

#define L "model.layers.{l}."

const char *const mf_deepseek_names[MF_ROLE_COUNT] = {
    [MF_ROLE_EMBED] = "model.embed_tokens.weight",
    [MF_ROLE_NORM] = "model.norm.weight",
    [MF_ROLE_LM_HEAD] = "lm_head.weight",
    [MF_ROLE_INPUT_NORM] = L "input_layernorm.weight",
    [MF_ROLE_POST_ATTENTION_NORM] = L "post_attention_layernorm.weight",
    [MF_ROLE_Q_PROJ] = L "self_attn.q_proj.weight",
    [MF_ROLE_Q_A_PROJ] = L "self_attn.q_a_proj.weight",
    [MF_ROLE_Q_A_BIAS] = L "self_attn.q_a_proj.bias",
    [MF_ROLE_Q_A_NORM] = L "self_attn.q_a_layernorm.weight",
    [MF_ROLE_Q_B_PROJ] = L "self_attn.q_b_proj.weight",
    [MF_ROLE_KV_A_PROJ] = L "self_attn.kv_a_proj_with_mqa.weight",
    [MF_ROLE_KV_A_BIAS] = L "self_attn.kv_a_proj_with_mqa.bias",
    [MF_ROLE_KV_A_NORM] = L "self_attn.kv_a_layernorm.weight",
    [MF_ROLE_KV_B_PROJ] = L "self_attn.kv_b_proj.weight",
    [MF_ROLE_O_PROJ] = L "self_attn.o_proj.weight",
    [MF_ROLE_O_BIAS] = L "self_attn.o_proj.bias",
    [MF_ROLE_DENSE_GATE] = L "mlp.gate_proj.weight",
    [MF_ROLE_DENSE_UP] = L "mlp.up_proj.weight",
    [MF_ROLE_DENSE_DOWN] = L "mlp.down_proj.weight",
    [MF_ROLE_ROUTER] = L "mlp.gate.weight",
    [MF_ROLE_CORRECTION_BIAS] = L "mlp.gate.e_score_correction_bias",
    [MF_ROLE_EXPERT_GATE] = L "mlp.experts.{e}.gate_proj.weight",
    [MF_ROLE_EXPERT_UP] = L "mlp.experts.{e}.up_proj.weight",
    [MF_ROLE_EXPERT_DOWN] = L "mlp.experts.{e}.down_proj.weight",
    [MF_ROLE_SHARED_GATE] = L "mlp.shared_experts.gate_proj.weight",
    [MF_ROLE_SHARED_UP] = L "mlp.shared_experts.up_proj.weight",
    [MF_ROLE_SHARED_DOWN] = L "mlp.shared_experts.down_proj.weight",
};

mf_status mf_deepseek_read_layers(const mf_reader *reader, const char *experts_alias, mf_model_config *config)
{
    struct {
        int64_t experts, top_k, first_dense, layer_freq;
    } v;
    const mf_int_key keys[] = {
        { "n_routed_experts", experts_alias, 1, 4096, MF_KEY_REQUIRED, 0 },
        { "num_experts_per_tok", NULL, 1, 64, MF_KEY_REQUIRED, 8 },
        { "first_k_dense_replace", NULL, 0, config->num_layers, MF_KEY_REQUIRED, 16 },
        { "moe_layer_freq", NULL, 1, MF_MAX_LAYERS, 1, 24 },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], &v));
    static const mf_int_key sizes[] = {
        { "moe_intermediate_size", NULL, 1, MF_MAX_SIZE, MF_KEY_REQUIRED,
          offsetof(mf_model_config, moe_intermediate_size) },
        { "n_shared_experts", NULL, 0, 16, 0, offsetof(mf_model_config, num_shared_experts) },
    };
    MF_TRY(mf_read_int_keys(reader, sizes, sizeof sizes / sizeof sizes[0], config));
    config->shared_intermediate_size = config->num_shared_experts * config->moe_intermediate_size;
    if (v.layer_freq != 1) { /* implementations disagree on what it means */
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "moe_layer_freq", "1");
    }
    if (v.top_k > v.experts) {
        return mf_read_fail(reader, MF_ERR_INVALID, "num_experts_per_tok",
                            "expected at most n_routed_experts %lld; got %lld", (long long)v.experts,
                            (long long)v.top_k);
    }
    for (int64_t layer = v.first_dense; layer < config->num_layers; layer++) {
        config->layer_is_moe[layer] = 1;
        config->num_moe_layers++;
    }
    MF_TRY(mf_config_refuse_true(reader, "mlp_bias", "biases of MLPs are not supported"));
    mf_gate_config gate = MF_GATE_CONFIG_INIT;
    gate.num_experts = (int32_t)v.experts;
    gate.top_k = (int32_t)v.top_k;
    MF_TRY(mf_read_number(reader, "routed_scaling_factor", 1e-6, 1e6, NULL, &gate.routed_scaling_factor));
    config->gate = gate;
    return MF_OK;
}

mf_status mf_deepseek_read_groups(const mf_reader *reader, mf_model_config *config)
{
    struct {
        int64_t n_group, topk_group;
    } v;
    static const mf_int_key keys[] = {
        { "n_group", NULL, 1, 4096, MF_KEY_REQUIRED, 0 },
        { "topk_group", NULL, 1, 4096, MF_KEY_REQUIRED, 8 },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], &v));
    int64_t experts = config->gate.num_experts;
    if (experts % v.n_group != 0) {
        return mf_read_fail(reader, MF_ERR_INVALID, "n_group", "%lld does not divide n_routed_experts %lld",
                            (long long)v.n_group, (long long)experts);
    }
    if (v.topk_group > v.n_group) {
        return mf_read_fail(reader, MF_ERR_INVALID, "topk_group", "expected at most n_group %lld; got %lld",
                            (long long)v.n_group, (long long)v.topk_group);
    }
    if (v.topk_group * (experts / v.n_group) < config->gate.top_k) {
        return mf_read_fail(reader, MF_ERR_INVALID, "topk_group",
                            "%lld x %lld experts cannot give num_experts_per_tok %d", (long long)v.topk_group,
                            (long long)(experts / v.n_group), (int)config->gate.top_k);
    }
    config->gate.n_group = (int32_t)v.n_group;
    config->gate.topk_group = (int32_t)v.topk_group;
    return MF_OK;
}

mf_status mf_deepseek_read_noaux_gate(const mf_reader *reader, mf_model_config *config)
{
    static const mf_int_key keys[] = {
        { "num_nextn_predict_layers", "num_mtp_layers", 0, 64, 0, offsetof(mf_model_config, num_nextn_layers) },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], config));
    MF_TRY(mf_config_only_text(reader, "scoring_func", "sigmoid", "the only scoring of this family"));
    MF_TRY(mf_config_only_text(reader, "topk_method", "noaux_tc", "the only choice of this family"));
    return mf_deepseek_read_sigmoid_gate(reader, config);
}

mf_status mf_deepseek_read_sigmoid_gate(const mf_reader *reader, mf_model_config *config)
{
    bool renormalise;
    MF_TRY(mf_read_bool(reader, "norm_topk_prob", NULL, &renormalise));
    MF_TRY(mf_deepseek_read_groups(reader, config));
    config->gate.scoring = MF_SCORING_SIGMOID;
    config->gate.bias_domain = MF_BIAS_SCORE;
    config->gate.group_score = config->gate.n_group > 1 ? MF_GROUP_SCORE_TOP2_SUM : MF_GROUP_SCORE_UNSET;
    config->gate.renorm = renormalise ? MF_RENORM_SUM_EPS : MF_RENORM_NONE;
    config->gate.renorm_eps = renormalise ? 1e-20 : __builtin_nan("");
    config->gate.fold_scale = 1;
    config->has_correction_bias = true;
    return MF_OK;
}
