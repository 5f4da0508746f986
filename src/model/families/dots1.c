/* dots1.c - dots.llm1: multi-head attention with norms on every head, DeepSeek-V3's gate and layer keys. */
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

/* Layers from max_window_layers on slide when sliding_window is given: released checkpoints have none. */
static mf_status refuse_windows(const mf_reader *reader, const mf_model_config *config)
{
    static const int64_t all = 62;
    int64_t full;
    MF_TRY(mf_read_int(reader, "max_window_layers", 0, 1 << 20, &all, &full));
    MF_TRY(mf_config_refuse_sliding_window(reader));
    return full < config->num_layers && !mf_read_value(reader, "layer_types") ? mf_config_refuse_window_size(reader)
                                                                              : MF_OK;
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mf_config_read_gqa(reader, &(mf_gqa_defaults){ .kv_heads_optional = true }, config));
    config->qk_norm = MF_QK_NORM_HEAD;
    config->output_bias = config->input_bias;
    MF_TRY(refuse_windows(reader, config));
    MF_TRY(mf_deepseek_read_layers(reader, "num_local_experts", config));
    /* Released files say scoring_func "noaux_tc"; every implementation takes the sigmoid. */
    return mf_deepseek_read_sigmoid_gate(reader, config);
}

const mf_family mf_family_dots1 = {
    .name = "dots.llm1",
    .architecture = "Dots1ForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "dots1", NULL },
    .read = read_config,
};
