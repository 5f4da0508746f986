/* gpt_oss.c - gpt-oss 20b and 120b: windows in every other layer, a sink per head in the softmax, biases everywhere, a
 * softmax over the chosen logits, a clamped SwiGLU; experts in one tensor per layer, MXFP4 or bf16 by columns. */
#include "model/config_parts.h"
#include "model/families/gqa_names.h"

/* Experts have no tensors of their own: their names stand for them in messages. */
static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_BASE_NAMES,
    MF_GQA_EXPERT_NAMES,
    [MF_ROLE_SINKS] = MF_GQA_LAYER "self_attn.sinks",
    [MF_ROLE_ROUTER] = MF_GQA_LAYER "mlp.router.weight",
    [MF_ROLE_ROUTER_BIAS] = MF_GQA_LAYER "mlp.router.bias",
    [MF_ROLE_EXPERT_GATE_BIAS] = MF_GQA_LAYER "mlp.experts.{e}.gate_proj.bias",
    [MF_ROLE_EXPERT_UP_BIAS] = MF_GQA_LAYER "mlp.experts.{e}.up_proj.bias",
    [MF_ROLE_EXPERT_DOWN_BIAS] = MF_GQA_LAYER "mlp.experts.{e}.down_proj.bias",
};

static mf_status read_attention(const mf_reader *reader, mf_model_config *config)
{
    static const mf_gqa_defaults defaults = { .rope_theta = 150000.0, .bias = true, .head_dim = 64 };
    static const int64_t window = 128;
    if (!mf_read_value(reader, "rope_parameters") && !mf_read_value(reader, "rope_scaling")) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "rope_parameters",
                                  "an object (as rope_scaling in older files)");
    }
    MF_TRY(mf_config_read_gqa(reader, &defaults, config));
    config->output_bias = config->input_bias;
    config->has_sinks = true;
    for (int64_t l = 0; l < config->num_layers; l += 2) {
        config->layer_is_local[l] = 1;
    }
    return mf_config_read_window(reader, &window, config);
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    static const double limit = 7.0, alpha = 1.702;
    MF_TRY(read_attention(reader, config));
    MF_TRY(mf_config_read_experts(reader, "num_local_experts", "num_experts", "num_experts_per_tok", config));
    MF_TRY(mf_read_number(reader, "swiglu_limit", 1e-3, 1e6, &limit, &config->activation_limit));
    MF_TRY(mf_read_number(reader, "swiglu_alpha", 1e-3, 1e3, &alpha, &config->activation_alpha));
    config->activation = MF_ACT_SWIGLU_OAI;
    config->moe_intermediate_size = config->intermediate_size;
    config->gate.scoring = MF_SCORING_TOPK_SOFTMAX;
    config->gate.bias_domain = MF_BIAS_NONE;
    config->gate.renorm = MF_RENORM_NONE;
    config->router_bias = true;
    config->expert_bias = true;
    return mf_config_read_layer_list(reader, NULL, 0, config);
}

const mf_family mf_family_gpt_oss = {
    .name = "gpt-oss",
    .architecture = "GptOssForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .stacked_rows_alternate = true,
    .stacked_columns = true,
    .stacked_only = true,
    .chat_templates = (const char *const[]){ "gpt-oss", NULL },
    .read = read_config,
};
