/* qwen3_moe.c - Qwen3-30B-A3B, Qwen3-235B-A22B and Qwen3-Coder: grouped-query attention with norms on every head, a softmax
 * gate without groups or bias, no shared expert. */
#include "model/config_parts.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = { MF_GQA_NAMES };

/* Layer i is MoE when (i + 1) is a multiple of decoder_sparse_step and the list of dense layers does not name it. */
static mf_status read_layers(const mf_reader *reader, int64_t sparse_step, mf_model_config *config)
{
    for (int64_t layer = sparse_step - 1; layer < config->num_layers; layer += sparse_step) {
        config->layer_is_moe[layer] = 1;
    }
    const json_t *list = mf_read_value(reader, "mlp_only_layers");
    if (list && !json_is_array(list)) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, "mlp_only_layers", "a list of layers");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        if (!json_is_integer(entry) || json_integer_value(entry) < 0 || json_integer_value(entry) >= config->num_layers) {
            return mf_read_fail(reader, MF_ERR_INVALID, "mlp_only_layers", "entry %zu: expected a layer in 0..%lld", i,
                                (long long)config->num_layers - 1);
        }
        config->layer_is_moe[json_integer_value(entry)] = 0;
    }
    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        config->num_moe_layers += config->layer_is_moe[layer];
    }
    return MF_OK;
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mf_config_read_gqa(reader, NULL, config));
    config->qk_norm = true;
    config->output_bias = config->input_bias;
    MF_TRY(mf_config_refuse_sliding_window(reader));
    struct {
        int64_t experts, top_k, sparse_step, shared;
    } v;
    static const mf_int_key keys[] = {
        { "num_experts", "num_local_experts", 1, 4096, MF_KEY_REQUIRED, 0 },
        { "num_experts_per_tok", NULL, 1, 64, MF_KEY_REQUIRED, 8 },
        { "decoder_sparse_step", NULL, 1, MF_MAX_LAYERS, 1, 16 },
        { "shared_expert_intermediate_size", NULL, 0, MF_MAX_SIZE, 0, 24 },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], &v));
    MF_TRY(mf_read_int(reader, "moe_intermediate_size", 1, MF_MAX_SIZE, NULL, &config->moe_intermediate_size));
    if (v.top_k > v.experts) {
        return mf_read_fail(reader, MF_ERR_INVALID, "num_experts_per_tok", "expected at most num_experts %lld; got %lld",
                            (long long)v.experts, (long long)v.top_k);
    }
    if (v.shared > 0) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "shared_expert_intermediate_size", "0 (this family has none)");
    }
    if (mf_read_value(reader, "dual_chunk_attention_config")) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "dual_chunk_attention_config", "null");
    }
    MF_TRY(mf_config_refuse_true(reader, "mlp_bias", "biases of MLPs are not supported"));
    MF_TRY(read_layers(reader, v.sparse_step, config));
    static const bool off = false; /* the class default */
    bool renormalise;
    MF_TRY(mf_read_bool(reader, "norm_topk_prob", &off, &renormalise));
    mf_gate_config gate = MF_GATE_CONFIG_INIT;
    gate.num_experts = (int32_t)v.experts;
    gate.top_k = (int32_t)v.top_k;
    gate.scoring = MF_SCORING_SOFTMAX;
    gate.bias_domain = MF_BIAS_NONE;
    gate.renorm = renormalise ? MF_RENORM_SUM : MF_RENORM_NONE;
    gate.routed_scaling_factor = 1.0;
    config->gate = gate;
    return MF_OK;
}

const mf_family mf_family_qwen3_moe = {
    .name = "Qwen3-MoE",
    .architecture = "Qwen3MoeForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .read = read_config,
};
