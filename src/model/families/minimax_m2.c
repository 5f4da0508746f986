/* minimax_m2.c - MiniMax-M2: norms over the whole query and key projections, rope over the first rotary_dim of a head,
 * a sigmoid gate with a bias that steers the choice only; every layer MoE, no shared expert. */
#include "model/config_parts.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_BASE_NAMES,
    MF_GQA_QK_NORM_NAMES,
    MF_SPARSE_BLOCK_NAMES,
    [MF_ROLE_CORRECTION_BIAS] = MF_GQA_LAYER "block_sparse_moe.e_score_correction_bias",
};

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    static const int64_t default_dim = 128;
    int64_t head_dim, rotary_dim;
    MF_TRY(mf_read_int(reader, "head_dim", 2, 4096, &default_dim, &head_dim));
    MF_TRY(mf_read_int(reader, "rotary_dim", 2, head_dim, &head_dim, &rotary_dim));
    const double partial = (double)rotary_dim / (double)head_dim;
    MF_TRY(mf_config_read_gqa(reader, &(mf_gqa_defaults){ .partial = &partial, .rope_theta = 5e6 }, config));
    MF_TRY(mf_config_refuse_true(reader, "attention_bias", "this family has no biases"));
    config->qk_norm = MF_QK_NORM_WHOLE;
    static const bool yes = true;
    bool has_norms;
    MF_TRY(mf_read_bool(reader, "use_qk_norm", &yes, &has_norms));
    if (!has_norms) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "use_qk_norm", "true");
    }
    MF_TRY(mf_config_only_text(reader, "qk_norm_type", "per_layer", "norms over the whole projection"));
    MF_TRY(mf_config_only_text(reader, "scoring_func", "sigmoid", "the only scoring of this family"));
    MF_TRY(mf_config_read_experts(reader, "num_local_experts", "num_experts", "num_experts_per_tok", config));
    static const int64_t none = 0;
    int64_t shared;
    MF_TRY(mf_read_int(reader, "shared_intermediate_size", 0, MF_MAX_SIZE, &none, &shared));
    if (shared > 0) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "shared_intermediate_size",
                                  "0 (this family has no shared expert)");
    }
    config->moe_intermediate_size = config->intermediate_size;
    config->gate.scoring = MF_SCORING_SIGMOID;
    config->gate.bias_domain = MF_BIAS_SCORE;
    config->gate.renorm = MF_RENORM_SUM;
    config->has_correction_bias = true;
    return mf_config_read_layer_list(reader, NULL, 0, config);
}

const mf_family mf_family_minimax_m2 = {
    .name = "MiniMax-M2",
    .architecture = "MiniMaxM2ForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP, /* as transformers saves it again */
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "minimax-m2", NULL },
    .read = read_config,
};
