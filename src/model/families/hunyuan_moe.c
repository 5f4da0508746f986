/* hunyuan_moe.c - Hunyuan-A13B: norms on every head after rope, a base of rope that alpha enlarges, a softmax gate, a
 * shared MLP; every layer MoE. */
#include <stdio.h>

#include "model/config_parts.h"
#include "model/families/gqa_names.h"

static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_BASE_NAMES,
    MF_GQA_EXPERT_NAMES,
    [MF_ROLE_Q_NORM] = MF_GQA_LAYER "self_attn.query_layernorm.weight",
    [MF_ROLE_K_NORM] = MF_GQA_LAYER "self_attn.key_layernorm.weight",
    [MF_ROLE_ROUTER] = MF_GQA_LAYER "mlp.gate.wg.weight",
    [MF_ROLE_SHARED_GATE] = MF_GQA_LAYER "mlp.shared_mlp.gate_proj.weight",
    [MF_ROLE_SHARED_UP] = MF_GQA_LAYER "mlp.shared_mlp.up_proj.weight",
    [MF_ROLE_SHARED_DOWN] = MF_GQA_LAYER "mlp.shared_mlp.down_proj.weight",
};

/* An integer, or a list of num_hidden_layers times the same one: other numbers per layer are not supported. */
static mf_status read_per_layer(const mf_reader *reader, const char *key, int64_t max, const int64_t *fallback,
                                const mf_model_config *config, int64_t *out)
{
    const json_t *list = mf_read_value(reader, key);
    if (!json_is_array(list)) {
        return mf_read_int(reader, key, 1, max, fallback, out);
    }
    char expected[96];
    snprintf(expected, sizeof expected, "one integer in 1..%lld, or %lld times the same", (long long)max,
             (long long)config->num_layers);
    *out = json_integer_value(json_array_get(list, 0));
    bool fits = (int64_t)json_array_size(list) == config->num_layers && *out >= 1 && *out <= max;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        fits = fits && json_is_integer(entry) && json_integer_value(entry) == *out;
    }
    return fits ? MF_OK : mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, key, expected);
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mf_config_read_gqa(reader, &(mf_gqa_defaults){ .kv_heads_optional = true }, config));
    config->output_bias = config->input_bias;
    static const bool yes = true;
    bool has_norms;
    MF_TRY(mf_read_bool(reader, "use_qk_norm", &yes, &has_norms));
    config->qk_norm = has_norms ? MF_QK_NORM_HEAD : MF_QK_NORM_NONE;
    config->qk_norm_after_rope = true;
    MF_TRY(mf_config_refuse_true(reader, "use_cla", "layers that share keys and values are not supported"));
    MF_TRY(mf_config_refuse_true(reader, "mlp_bias", "biases of MLPs are not supported"));
    static const bool mixed = true;
    bool both;
    MF_TRY(mf_read_bool(reader, "use_mixed_mlp_moe", &mixed, &both)); /* a shared MLP beside the experts */
    int64_t experts, top_k, width, shared = 1;
    static const int64_t one = 1;
    MF_TRY(mf_read_int(reader, "num_experts", 1, 4096, NULL, &experts)); /* a list is refused: E is one number */
    MF_TRY(read_per_layer(reader, "moe_topk", experts < 64 ? experts : 64, NULL, config, &top_k));
    MF_TRY(read_per_layer(reader, "moe_intermediate_size", MF_MAX_SIZE, &config->intermediate_size, config, &width));
    MF_TRY(read_per_layer(reader, "num_shared_expert", 16, &one, config, &shared));
    config->moe_intermediate_size = width;
    MF_TRY(mf_config_set_shared(reader, "num_shared_expert", both ? shared * width : 0, config));
    mf_gate_config gate = MF_GATE_CONFIG_INIT;
    gate.num_experts = (int32_t)experts;
    gate.top_k = (int32_t)top_k;
    gate.scoring = MF_SCORING_SOFTMAX;
    gate.bias_domain = MF_BIAS_NONE;
    gate.renorm = MF_RENORM_SUM;
    gate.routed_scaling_factor = 1.0;
    config->gate = gate;
    return mf_config_read_layer_list(reader, NULL, 0, config);
}

const mf_family mf_family_hunyuan_moe = {
    .name = "Hunyuan-A13B",
    .architecture = "HunYuanMoEV1ForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = MF_GQA_STACKED_GATE_UP,
    .stacked_down = MF_GQA_STACKED_DOWN,
    .chat_templates = (const char *const[]){ "hunyuan", NULL },
    .read = read_config,
};
