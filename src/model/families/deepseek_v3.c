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
    static const mf_int_key keys[] = {
        { "num_nextn_predict_layers", "num_mtp_layers", 0, 64, 0, offsetof(mf_model_config, num_nextn_layers) },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], config));
    MF_TRY(mf_config_only_text(reader, "scoring_func", "sigmoid", "the only scoring of this family"));
    MF_TRY(mf_config_only_text(reader, "topk_method", "noaux_tc", "the only choice of this family"));
    bool renormalise;
    MF_TRY(mf_read_bool(reader, "norm_topk_prob", NULL, &renormalise));
    MF_TRY(mf_deepseek_read_groups(reader, config));
    config->gate.scoring = MF_SCORING_SIGMOID;
    config->gate.bias_domain = MF_BIAS_SCORE;
    config->gate.group_score = config->gate.n_group > 1 ? MF_GROUP_SCORE_TOP2_SUM : MF_GROUP_SCORE_UNSET;
    config->gate.renorm = renormalise ? MF_RENORM_SUM_EPS : MF_RENORM_NONE;
    config->gate.renorm_eps = renormalise ? 1e-20 : __builtin_nan("");
    config->gate.fold_scale = 1;
    config->has_correction_bias = true;
    return MF_OK;
}

const mf_family mf_family_deepseek_v3 = {
    .name = "DeepSeek-V3",
    .architecture = "DeepseekV3ForCausalLM",
    .prefix = "",
    .names = mf_deepseek_names,
    .stacked_gate_up = MF_DEEPSEEK_STACKED_GATE_UP,
    .stacked_down = MF_DEEPSEEK_STACKED_DOWN,
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
    .read = read_config,
};
