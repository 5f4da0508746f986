/* qwen2_moe.c - Qwen1.5-MoE and Qwen2-MoE: biases on q, k and v, a softmax gate, and one wide shared expert whose
 * output is weighed by the sigmoid of a logit per token. */
#include "model/config_parts.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_NAMES,
    [MF_ROLE_SHARED_EXPERT_GATE] = MF_GQA_LAYER "mlp.shared_expert_gate.weight",
    [MF_ROLE_SHARED_GATE] = MF_GQA_LAYER "mlp.shared_expert.gate_proj.weight",
    [MF_ROLE_SHARED_UP] = MF_GQA_LAYER "mlp.shared_expert.up_proj.weight",
    [MF_ROLE_SHARED_DOWN] = MF_GQA_LAYER "mlp.shared_expert.down_proj.weight",
};

/* With use_sliding_window every other layer below max_window_layers slides, the first one included. */
static mf_status read_windows(const mf_reader *reader, mf_model_config *config)
{
    static const int64_t most = 28;
    int64_t end;
    MF_TRY(mf_read_int(reader, "max_window_layers", 0, 1 << 20, &most, &end));
    for (int64_t l = 0; l < config->num_layers; l++) {
        config->layer_is_local[l] = l % 2 == 0 && l < end;
    }
    return mf_config_read_optional_window(reader, config);
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    static const mf_gqa_defaults defaults = { .bias_key = "qkv_bias", .bias = true };
    MF_TRY(mf_config_read_gqa(reader, &defaults, config));
    MF_TRY(read_windows(reader, config));
    MF_TRY(mf_config_read_experts(reader, "num_experts", "num_local_experts", "num_experts_per_tok", config));
    MF_TRY(mf_read_int(reader, "moe_intermediate_size", 1, MF_MAX_SIZE, NULL, &config->moe_intermediate_size));
    int64_t shared;
    MF_TRY(mf_read_int(reader, "shared_expert_intermediate_size", 1, MF_MAX_SIZE, NULL, &shared));
    MF_TRY(mf_config_set_shared(reader, "shared_expert_intermediate_size", shared, config));
    config->has_shared_gate = true;
    MF_TRY(mf_config_read_sparse_step(reader, config));
    return mf_config_read_softmax_gate(reader, config);
}

const mf_family mf_family_qwen2_moe = {
    .name = "Qwen2-MoE",
    .architecture = "Qwen2MoeForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "chatml", NULL },
    .read = read_config,
};
