/* glm4_moe.c - GLM-4.5, GLM-4.5-Air, 4.6 and 4.7: grouped-query attention that rotates half of a head, and
 * DeepSeek-V3's gate and layer keys. */
#include "model/config_parts.h"
#include "model/families/deepseek.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_NAMES,
    [MF_ROLE_CORRECTION_BIAS] = MF_GQA_LAYER "mlp.gate.e_score_correction_bias",
    [MF_ROLE_SHARED_GATE] = MF_GQA_LAYER "mlp.shared_experts.gate_proj.weight",
    [MF_ROLE_SHARED_UP] = MF_GQA_LAYER "mlp.shared_experts.up_proj.weight",
    [MF_ROLE_SHARED_DOWN] = MF_GQA_LAYER "mlp.shared_experts.down_proj.weight",
};

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    static const double half = 0.5; /* the class default of partial_rotary_factor */
    static const bool off = false;
    bool has_norms;
    MF_TRY(mf_config_read_gqa(reader, &(mf_gqa_defaults){ .partial = &half }, config)); /* no bias on o_proj, ever */
    MF_TRY(mf_read_bool(reader, "use_qk_norm", &off, &has_norms));
    config->qk_norm = has_norms ? MF_QK_NORM_HEAD : MF_QK_NORM_NONE;
    MF_TRY(mf_config_refuse_true(reader, "use_sliding_window", "every layer attends to the whole context here"));
    MF_TRY(mf_config_read_optional_window(reader, config));
    MF_TRY(mf_deepseek_read_layers(reader, "num_local_experts", config));
    return mf_deepseek_read_noaux_gate(reader, config);
}

const mf_family mf_family_glm4_moe = {
    .name = "GLM-4.5",
    .architecture = "Glm4MoeForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "glm-4.5", NULL },
    .read = read_config,
};
