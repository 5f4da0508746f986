/* ernie4_5_moe.c - Ernie-4.5-MoE: rope by neighbouring pairs, a softmax gate with a bias that steers the choice only
 * and a floor under the sum of the chosen weights, tied embeddings unless the config says otherwise. */
#include "model/config_parts.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_NAMES,
    [MF_ROLE_CORRECTION_BIAS] = MF_GQA_LAYER "mlp.moe_statics.e_score_correction_bias",
    [MF_ROLE_SHARED_GATE] = MF_GQA_LAYER "mlp.shared_experts.gate_proj.weight",
    [MF_ROLE_SHARED_UP] = MF_GQA_LAYER "mlp.shared_experts.up_proj.weight",
    [MF_ROLE_SHARED_DOWN] = MF_GQA_LAYER "mlp.shared_experts.down_proj.weight",
};

/* Layer i is MoE when (i + 1) is a multiple of the interval and start <= i <= end (-1: the last). */
static mf_status read_layers(const mf_reader *reader, mf_model_config *config)
{
    struct {
        int64_t start, end, interval;
    } v;
    const int64_t last = config->num_layers - 1;
    const mf_int_key keys[] = {
        { "moe_layer_start_index", NULL, 0, MF_MAX_LAYERS, 1, 0 },
        { "moe_layer_end_index", NULL, -1, MF_MAX_LAYERS, -1, 8 },
        { "moe_layer_interval", NULL, 1, MF_MAX_LAYERS, 1, 16 },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], &v));
    v.end = v.end < 0 || v.end > last ? last : v.end;
    for (int64_t layer = v.start; layer <= v.end; layer++) {
        config->layer_is_moe[layer] = (layer + 1) % v.interval == 0;
        config->num_moe_layers += config->layer_is_moe[layer];
    }
    return MF_OK;
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    static const bool tied = true; /* the class default */
    MF_TRY(mf_read_bool(reader, "tie_word_embeddings", &tied, &config->tie_word_embeddings));
    MF_TRY(mf_config_read_gqa(
        reader, &(mf_gqa_defaults){ .rope_theta = 500000, .pair = true, .kv_heads_optional = true }, config));
    MF_TRY(mf_config_refuse_true(reader, "use_bias", "biases of this family's MLPs are not supported"));
    MF_TRY(mf_config_refuse_true(reader, "attention_bias", "this family's key is use_bias"));
    MF_TRY(mf_config_read_experts(reader, "moe_num_experts", "num_experts", "moe_k", config));
    MF_TRY(mf_read_int(reader, "moe_intermediate_size", 1, MF_MAX_SIZE, NULL, &config->moe_intermediate_size));
    static const int64_t two = 2;
    int64_t shared;
    MF_TRY(mf_read_int(reader, "moe_num_shared_experts", 0, 16, &two, &shared));
    MF_TRY(mf_config_set_shared(reader, "moe_num_shared_experts", shared * config->moe_intermediate_size, config));
    MF_TRY(read_layers(reader, config));
    static const double least = 1e-12;
    MF_TRY(mf_read_number(reader, "moe_norm_min", 1e-37, 1, &least, &config->gate.renorm_eps));
    config->gate.scoring = MF_SCORING_SOFTMAX;
    config->gate.bias_domain = MF_BIAS_SCORE;
    config->gate.renorm = MF_RENORM_SUM_FLOOR;
    config->has_correction_bias = true;
    return MF_OK;
}

const mf_family mf_family_ernie4_5_moe = {
    .name = "Ernie-4.5-MoE",
    .architecture = "Ernie4_5_MoeForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .correction_bias_is_row = true,
    .chat_templates = (const char *const[]){ "ernie-4.5", NULL },
    .read = read_config,
};
