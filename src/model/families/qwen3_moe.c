/* qwen3_moe.c - Qwen3-30B-A3B, Qwen3-235B-A22B and Qwen3-Coder: grouped-query attention with norms on every head, a softmax
 * gate without groups or bias, no shared expert. */
#include <string.h>

#include "model/config_parts.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = { MF_GQA_NAMES };

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mf_config_read_gqa(reader, NULL, config));
    config->qk_norm = MF_QK_NORM_HEAD;
    config->output_bias = config->input_bias;
    memset(config->layer_is_local, 1, (size_t)config->num_layers);
    MF_TRY(mf_config_read_optional_window(reader, config));
    MF_TRY(mf_config_read_experts(reader, "num_experts", "num_local_experts", "num_experts_per_tok", config));
    MF_TRY(mf_read_int(reader, "moe_intermediate_size", 1, MF_MAX_SIZE, NULL, &config->moe_intermediate_size));
    static const int64_t none = 0;
    int64_t shared;
    MF_TRY(mf_read_int(reader, "shared_expert_intermediate_size", 0, MF_MAX_SIZE, &none, &shared));
    if (shared > 0) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "shared_expert_intermediate_size",
                                  "0 (this family has none)");
    }
    if (mf_read_value(reader, "dual_chunk_attention_config")) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "dual_chunk_attention_config", "null");
    }
    MF_TRY(mf_config_refuse_true(reader, "mlp_bias", "biases of MLPs are not supported"));
    MF_TRY(mf_config_read_sparse_step(reader, config));
    return mf_config_read_softmax_gate(reader, config);
}

const mf_family mf_family_qwen3_moe = {
    .name = "Qwen3-MoE",
    .architecture = "Qwen3MoeForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "chatml", NULL },
    .read = read_config,
};
