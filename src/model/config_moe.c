/* config_moe.c - experts and the layers that have them, as several families spell them: see config_parts.h. */
#include <stdio.h>
#include <string.h>

#include "model/config_parts.h"

mf_status mf_config_read_experts(const mf_reader *reader, const char *experts_key, const char *experts_alias,
                                 const char *top_k_key, mf_model_config *config)
{
    struct {
        int64_t experts, top_k;
    } v;
    const mf_int_key keys[] = {
        { experts_key, experts_alias, 1, 4096, MF_KEY_REQUIRED, 0 },
        { top_k_key, NULL, 1, 64, MF_KEY_REQUIRED, 8 },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], &v));
    if (v.top_k > v.experts) {
        return mf_read_fail(reader, MF_ERR_INVALID, top_k_key, "expected at most %s %lld; got %lld", experts_key,
                            (long long)v.experts, (long long)v.top_k);
    }
    mf_gate_config gate = MF_GATE_CONFIG_INIT;
    gate.num_experts = (int32_t)v.experts;
    gate.top_k = (int32_t)v.top_k;
    gate.routed_scaling_factor = 1.0;
    gate.fold_scale = 1;
    config->gate = gate;
    return MF_OK;
}

mf_status mf_config_read_softmax_gate(const mf_reader *reader, mf_model_config *config)
{
    static const bool off = false; /* the class default of every family that has the key */
    bool renormalise;
    MF_TRY(mf_read_bool(reader, "norm_topk_prob", &off, &renormalise));
    config->gate.scoring = MF_SCORING_SOFTMAX;
    config->gate.bias_domain = MF_BIAS_NONE;
    config->gate.renorm = renormalise ? MF_RENORM_SUM : MF_RENORM_NONE;
    return MF_OK;
}

mf_status mf_config_set_shared(const mf_reader *reader, const char *key, int64_t width, mf_model_config *config)
{
    if (width > MF_MAX_SIZE) {
        return mf_read_fail(reader, MF_ERR_INVALID, key, "gives a shared expert of width %lld; expected at most %d",
                            (long long)width, MF_MAX_SIZE);
    }
    config->shared_intermediate_size = width;
    config->num_shared_experts = (width + config->moe_intermediate_size - 1) / config->moe_intermediate_size;
    return MF_OK;
}

static void count_moe_layers(mf_model_config *config)
{
    config->num_moe_layers = 0;
    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        config->num_moe_layers += config->layer_is_moe[layer];
    }
}

mf_status mf_config_read_layer_list(const mf_reader *reader, const char *key, int64_t first_sparse, mf_model_config *config)
{
    const json_t *list = key ? mf_read_value(reader, key) : NULL;
    if (list && (!json_is_array(list) || (int64_t)json_array_size(list) != config->num_layers)) {
        char expected[80];
        snprintf(expected, sizeof expected, "a list of %lld times \"dense\" or \"sparse\"", (long long)config->num_layers);
        return mf_read_unexpected(reader, MF_ERR_INVALID, key, expected);
    }
    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        const char *kind = list ? json_string_value(json_array_get(list, (size_t)layer)) : NULL;
        if (list && (!kind || (strcmp(kind, "dense") != 0 && strcmp(kind, "sparse") != 0))) {
            return mf_read_fail(reader, MF_ERR_INVALID, key, "entry %lld: expected \"dense\" or \"sparse\"", (long long)layer);
        }
        config->layer_is_moe[layer] = list ? strcmp(kind, "sparse") == 0 : layer >= first_sparse;
    }
    count_moe_layers(config);
    return MF_OK;
}

/* Marks the layers that a list of numbers names. */
static mf_status mark_layers(const mf_reader *reader, const char *key, uint8_t is_moe, mf_model_config *config)
{
    const json_t *list = mf_read_value(reader, key);
    if (list && !json_is_array(list)) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, key, "a list of layers");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        if (!json_is_integer(entry) || json_integer_value(entry) < 0 || json_integer_value(entry) >= config->num_layers) {
            return mf_read_fail(reader, MF_ERR_INVALID, key, "entry %zu: expected a layer in 0..%lld", i,
                                (long long)config->num_layers - 1);
        }
        config->layer_is_moe[json_integer_value(entry)] = is_moe;
    }
    count_moe_layers(config);
    return MF_OK;
}

static mf_status mark_steps(const mf_reader *reader, const char *key, mf_model_config *config)
{
    static const int64_t each = 1;
    int64_t step;
    MF_TRY(mf_read_int(reader, key, 1, MF_MAX_LAYERS, &each, &step));
    for (int64_t layer = step - 1; layer < config->num_layers; layer += step) {
        config->layer_is_moe[layer] = 1;
    }
    count_moe_layers(config);
    return MF_OK;
}

mf_status mf_config_read_sparse_step(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(mark_steps(reader, "decoder_sparse_step", config));
    return mark_layers(reader, "mlp_only_layers", 0, config);
}

mf_status mf_config_read_moe_layers(const mf_reader *reader, const char *list_key, const char *step_key,
                                    mf_model_config *config)
{
    return mf_read_value(reader, list_key) ? mark_layers(reader, list_key, 1, config) : mark_steps(reader, step_key, config);
}
