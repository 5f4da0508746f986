/* glm4_moe_lite.c - GLM-4.7-Flash: DeepSeek-V3's attention and gate; dense and MoE layers by a list. */
#include "model/config_parts.h"
#include "model/families/deepseek.h"

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    static const bool interleave = true;
    MF_TRY(mf_config_read_mla(reader, &interleave, config));
    MF_TRY(mf_config_read_experts(reader, "n_routed_experts", "num_local_experts", "num_experts_per_tok", config));
    MF_TRY(mf_read_int(reader, "moe_intermediate_size", 1, MF_MAX_SIZE, NULL, &config->moe_intermediate_size));
    static const int64_t one = 1;
    int64_t shared;
    MF_TRY(mf_read_int(reader, "n_shared_experts", 0, 16, &one, &shared));
    MF_TRY(mf_config_set_shared(reader, "n_shared_experts", shared * config->moe_intermediate_size, config));
    MF_TRY(mf_read_number(reader, "routed_scaling_factor", 1e-6, 1e6, NULL, &config->gate.routed_scaling_factor));
    MF_TRY(mf_config_read_layer_list(reader, "mlp_layer_types", 1, config)); /* first_k_dense_replace is not read */
    return mf_deepseek_read_noaux_gate(reader, config);
}

const mf_family mf_family_glm4_moe_lite = {
    .name = "GLM-4.7-Flash",
    .architecture = "Glm4MoeLiteForCausalLM",
    .prefix = "",
    .names = mf_deepseek_names,
    .stacked_gate_up = MF_DEEPSEEK_STACKED_GATE_UP,
    .stacked_down = MF_DEEPSEEK_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "glm-4.5", NULL },
    .read = read_config,
};
