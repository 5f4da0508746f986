/* qwen3_next.c - Qwen3-Next: three layers of four have a gated delta net in place of attention, the fourth gated
 * attention; norms that multiply by 1 + w; Qwen2-MoE's experts. */
#include "model/config_parts.h"
#include "model/families/gqa_names.h"

#define LINEAR MF_GQA_LAYER "linear_attn."

static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_NAMES,
    [MF_ROLE_LINEAR_QKVZ] = LINEAR "in_proj_qkvz.weight",
    [MF_ROLE_LINEAR_BA] = LINEAR "in_proj_ba.weight",
    [MF_ROLE_LINEAR_CONV] = LINEAR "conv1d.weight",
    [MF_ROLE_LINEAR_A_LOG] = LINEAR "A_log",
    [MF_ROLE_LINEAR_DT_BIAS] = LINEAR "dt_bias",
    [MF_ROLE_LINEAR_NORM] = LINEAR "norm.weight",
    [MF_ROLE_LINEAR_OUT] = LINEAR "out_proj.weight",
    [MF_ROLE_SHARED_EXPERT_GATE] = MF_GQA_LAYER "mlp.shared_expert_gate.weight",
    [MF_ROLE_SHARED_GATE] = MF_GQA_LAYER "mlp.shared_expert.gate_proj.weight",
    [MF_ROLE_SHARED_UP] = MF_GQA_LAYER "mlp.shared_expert.up_proj.weight",
    [MF_ROLE_SHARED_DOWN] = MF_GQA_LAYER "mlp.shared_expert.down_proj.weight",
};

static mf_status read_attention(const mf_reader *reader, mf_model_config *config)
{
    static const double quarter = 0.25;
    static const mf_gqa_defaults defaults = { .partial = &quarter, .head_dim = 256 };
    MF_TRY(mf_config_read_gqa(reader, &defaults, config));
    config->output_bias = config->input_bias;
    config->qk_norm = MF_QK_NORM_HEAD;
    config->has_attention_gate = true;
    MF_TRY(mf_config_refuse_true(reader, "use_sliding_window",
                                 "layers of full attention attend to the whole context here"));
    return mf_config_read_linear_layers(reader, config);
}

static mf_status read_experts(const mf_reader *reader, mf_model_config *config)
{
    int64_t shared;
    MF_TRY(mf_config_read_experts(reader, "num_experts", "num_local_experts", "num_experts_per_tok", config));
    MF_TRY(mf_read_int(reader, "moe_intermediate_size", 1, MF_MAX_SIZE, NULL, &config->moe_intermediate_size));
    MF_TRY(mf_read_int(reader, "shared_expert_intermediate_size", 1, MF_MAX_SIZE, NULL, &shared));
    MF_TRY(mf_config_set_shared(reader, "shared_expert_intermediate_size", shared, config));
    config->has_shared_gate = true;
    MF_TRY(mf_config_read_sparse_step(reader, config));
    MF_TRY(mf_config_read_softmax_gate(reader, config));
    if (!mf_read_value(reader, "norm_topk_prob")) { /* true by default in this class alone */
        config->gate.renorm = MF_RENORM_SUM;
    }
    return MF_OK;
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(read_attention(reader, config));
    return read_experts(reader, config);
}

/* Tensors named mtp.* are a draft layer, skipped as those of other families are (weights_rest.c). */
const mf_family mf_family_qwen3_next = {
    .name = "Qwen3-Next",
    .architecture = "Qwen3NextForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .norms_add_one = true,
    .chat_templates = (const char *const[]){ "chatml", NULL },
    .read = read_config,
};
