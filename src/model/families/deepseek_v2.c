/* deepseek_v2.c - DeepSeek-V2, V2-Lite and Coder-V2: softmax gate, weights of the chosen are not renormalised. */
#include <string.h>

#include "model/config_parts.h"
#include "model/families/deepseek.h"

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mf_config_read_mla(reader, NULL, config));
    MF_TRY(mf_deepseek_read_layers(reader, "num_experts", config));
    MF_TRY(mf_config_only_text(reader, "scoring_func", "softmax", "the only scoring of this family"));
    /* The first implementation renormalised and then left out the factor, later ones ignore the key: no released
     * checkpoint sets it, so there is nothing to agree with. */
    MF_TRY(mf_config_refuse_true(
        reader, "norm_topk_prob",
        "implementations of DeepSeek-V2 disagree on its meaning (renormalise without factor, or ignore)"));
    config->gate.scoring = MF_SCORING_SOFTMAX;
    config->gate.bias_domain = MF_BIAS_NONE;
    config->gate.renorm = MF_RENORM_NONE;
    config->gate.fold_scale = 1;

    const char *method;
    MF_TRY(mf_read_text(reader, "topk_method", false, &method));
    if (!method || strcmp(method, "greedy") == 0) { /* n_group and topk_group may stand there; greedy ignores them */
        return MF_OK;
    }
    if (strcmp(method, "group_limited_greedy") != 0) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "topk_method", "\"greedy\" or \"group_limited_greedy\"");
    }
    MF_TRY(mf_deepseek_read_groups(reader, config));
    config->gate.group_score = MF_GROUP_SCORE_MAX;
    return MF_OK;
}

const mf_family mf_family_deepseek_v2 = {
    .name = "DeepSeek-V2",
    .architecture = "DeepseekV2ForCausalLM",
    .prefix = "",
    .names = mf_deepseek_names,
    .stacked_gate_up = MF_DEEPSEEK_STACKED_GATE_UP,
    .stacked_down = MF_DEEPSEEK_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "deepseek-v2", NULL },
    .read = read_config,
};
