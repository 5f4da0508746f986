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

/* Layers from max_window_layers on slide, unless sliding_window is null. */
static mf_status read_windows(const mf_reader *reader, mf_model_config *config)
{
    static const int64_t all = 62, size = 4096;
    int64_t full;
    MF_TRY(mf_read_int(reader, "max_window_layers", 0, 1 << 20, &all, &full));
    for (int64_t l = 0; l < config->num_layers; l++) {
        config->layer_is_local[l] = l >= full;
    }
    return mf_config_read_window(reader, &size, config);
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mf_config_read_gqa(reader, &(mf_gqa_defaults){ .kv_heads_optional = true }, config));
    config->qk_norm = MF_QK_NORM_HEAD;
    config->output_bias = config->input_bias;
    MF_TRY(read_windows(reader, config));
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
