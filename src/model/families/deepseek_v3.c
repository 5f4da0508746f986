/* deepseek_v3.c - DeepSeek-V3, R1, V3.1 and Kimi-K2 (same architecture string), and Kimi-K2.5's language model: sigmoid
 * gate with a correction bias that steers the choice and not the weights. */
#include <string.h>

#include "model/config_parts.h"
#include "model/families/deepseek.h"

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    static const bool interleave = true;
    MF_TRY(mf_config_read_mla(reader, &interleave, config));
    MF_TRY(mf_deepseek_read_layers(reader, "num_local_experts", config));
    return mf_deepseek_read_noaux_gate(reader, config);
}

/* Kimi-K2 has the same architecture; its tokens tell it apart. */
static const char *const templates[] = { "kimi-k2", "deepseek-v3", NULL };

const mf_family mf_family_deepseek_v3 = {
    .name = "DeepSeek-V3",
    .architecture = "DeepseekV3ForCausalLM",
    .prefix = "",
    .names = mf_deepseek_names,
    .stacked_gate_up = MF_DEEPSEEK_STACKED_GATE_UP,
    .stacked_down = MF_DEEPSEEK_STACKED_DOWN,
    .chat_templates = templates,
    .read = read_config,
};

static const char *const vision[] = { "vision_tower", "mm_projector", "multi_modal_projector", NULL };

const mf_family mf_family_kimi_k25 = {
    .name = "Kimi-K2.5",
    .architecture = "KimiK25ForConditionalGeneration",
    .config_key = "text_config",
    .prefix = "language_model.",
    .names = mf_deepseek_names,
    .stacked_gate_up = MF_DEEPSEEK_STACKED_GATE_UP,
    .stacked_down = MF_DEEPSEEK_STACKED_DOWN,
    .skip = vision,
    .chat_templates = templates,
    .read = read_config,
};
