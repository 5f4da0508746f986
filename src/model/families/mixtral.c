/* mixtral.c - Mixtral 8x7B and 8x22B: every layer MoE, a softmax gate whose chosen weights are always renormalised. */
#include <string.h>

#include "model/config_parts.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = { MF_GQA_BASE_NAMES, MF_SPARSE_BLOCK_NAMES };

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mf_config_read_gqa(reader, &(mf_gqa_defaults){ .rope_theta = 1e6 }, config));
    MF_TRY(mf_config_refuse_true(reader, "attention_bias", "this family has no biases"));
    memset(config->layer_is_local, 1, (size_t)config->num_layers);
    MF_TRY(mf_config_read_window(reader, NULL, config));
    MF_TRY(mf_config_read_experts(reader, "num_local_experts", "num_experts", "num_experts_per_tok", config));
    config->moe_intermediate_size = config->intermediate_size;
    config->gate.scoring = MF_SCORING_SOFTMAX;
    config->gate.bias_domain = MF_BIAS_NONE;
    config->gate.renorm = MF_RENORM_SUM;
    return mf_config_read_layer_list(reader, NULL, 0, config);
}

const mf_family mf_family_mixtral = {
    .name = "Mixtral",
    .architecture = "MixtralForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP, /* as transformers saves it again */
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "mixtral", NULL },
    .read = read_config,
};
