/* olmoe.c - OLMoE: norms over the whole query and key projections, an optional clip of q, k and v, a plain softmax
 * gate. */
#include "model/config_parts.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = { MF_GQA_NAMES };

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mf_config_read_gqa(reader, &(mf_gqa_defaults){ .kv_heads_optional = true }, config));
    config->qk_norm = MF_QK_NORM_WHOLE;
    config->output_bias = config->input_bias;
    static const double off = 0.0;
    MF_TRY(mf_read_number(reader, "clip_qkv", 0, 1e30, &off, &config->qkv_clip));
    MF_TRY(mf_config_read_experts(reader, "num_experts", "num_local_experts", "num_experts_per_tok", config));
    config->moe_intermediate_size = config->intermediate_size;
    MF_TRY(mf_config_read_layer_list(reader, NULL, 0, config));
    return mf_config_read_softmax_gate(reader, config);
}

const mf_family mf_family_olmoe = {
    .name = "OLMoE",
    .architecture = "OlmoeForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "olmoe", NULL },
    .read = read_config,
};
