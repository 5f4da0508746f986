/* config_linear.c - layers with a gated delta net in place of attention, as config.json describes them: see
 * config_parts.h. */
#include <stdio.h>
#include <string.h>

#include "model/config_parts.h"

static mf_status read_sizes(const mf_reader *reader, mf_model_config *config)
{
    /* Absent: the class defaults of transformers.  16 taps are what the kernels take. */
    static const mf_int_key keys[] = {
        { "linear_num_key_heads", NULL, 1, 4096, 16, offsetof(mf_model_config, linear_num_k_heads) },
        { "linear_num_value_heads", NULL, 1, 4096, 32, offsetof(mf_model_config, linear_num_v_heads) },
        { "linear_key_head_dim", NULL, 1, 1024, 128, offsetof(mf_model_config, linear_k_dim) },
        { "linear_value_head_dim", NULL, 1, 1024, 128, offsetof(mf_model_config, linear_v_dim) },
        { "linear_conv_kernel_dim", NULL, 1, 16, 4, offsetof(mf_model_config, linear_conv_size) },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], config));
    if (config->linear_num_v_heads % config->linear_num_k_heads != 0) {
        return mf_read_fail(reader, MF_ERR_INVALID, "linear_num_key_heads",
                            "%lld does not divide linear_num_value_heads %lld", (long long)config->linear_num_k_heads,
                            (long long)config->linear_num_v_heads);
    }
    return MF_OK;
}

mf_status mf_config_read_linear_layers(const mf_reader *reader, mf_model_config *config)
{
    static const int64_t fourth = 4;
    int64_t interval;
    MF_TRY(read_sizes(reader, config));
    MF_TRY(mf_read_int(reader, "full_attention_interval", 1, MF_MAX_LAYERS, &fourth, &interval));
    const bool has_interval = mf_read_value(reader, "full_attention_interval") != NULL;
    const json_t *types = mf_read_value(reader, "layer_types");
    if (types && (!json_is_array(types) || (int64_t)json_array_size(types) != config->num_layers)) {
        char expected[96];
        snprintf(expected, sizeof expected, "a list of %lld times \"linear_attention\" or \"full_attention\"",
                 (long long)config->num_layers);
        return mf_read_unexpected(reader, MF_ERR_INVALID, "layer_types", expected);
    }
    config->num_linear_layers = 0;
    for (int64_t l = 0; l < config->num_layers; l++) {
        const char *type = types ? json_string_value(json_array_get(types, (size_t)l)) : NULL;
        const bool by_interval = (l + 1) % interval != 0;
        const bool is_linear = types ? type && strcmp(type, "linear_attention") == 0 : by_interval;
        if (types && !is_linear && (!type || strcmp(type, "full_attention") != 0)) {
            return mf_read_fail(reader, MF_ERR_UNSUPPORTED, "layer_types",
                                "entry %lld: expected \"linear_attention\" or \"full_attention\"", (long long)l);
        }
        if (types && has_interval && is_linear != by_interval) {
            return mf_read_fail(reader, MF_ERR_INVALID, "full_attention_interval",
                                "%lld differs from layer_types in layer %lld", (long long)interval, (long long)l);
        }
        config->layer_is_linear[l] = is_linear;
        config->num_linear_layers += is_linear;
    }
    if (config->num_linear_layers == config->num_layers) {
        return mf_read_fail(reader, MF_ERR_UNSUPPORTED, types ? "layer_types" : "full_attention_interval",
                            "expected at least one layer of full attention among %lld", (long long)config->num_layers);
    }
    return MF_OK;
}
