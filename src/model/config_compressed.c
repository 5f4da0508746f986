/* config_compressed.c - quantization_config of compressed-tensors: groups of modules, each with the way its weights are
 * stored.
 *
 * A module belongs to the group that names it, else to the first whose pattern matches, else to the one for every
 * linear layer, unless "ignore" leaves it out. */
#include "model/config_quant.h"

#include <string.h>

#include "base/json.h"

enum { MAX_GROUPS = 16 };

static const char *const argument_keys[] = { "num_bits",    "type",       "strategy",        "symmetric",
                                             "dynamic",     "group_size", "actorder",        "observer",
                                             "scale_dtype", "zp_dtype",   "observer_kwargs", "block_structure",
                                             NULL };

static mf_status text_is(const mf_reader *reader, const char *key, bool required, const char *wanted, bool *is)
{
    const char *text;
    MF_TRY(mf_read_text(reader, key, required, &text));
    *is = text && strcmp(text, wanted) == 0;
    return MF_OK;
}

/* Inputs may be declared as quantised, at run time or by stored scales: products are weight-only all the same, which is
 * nearer to the weights that were meant. */
static mf_status read_inputs(const mf_reader *group, mf_model_config *config)
{
    mf_reader inputs;
    char scope[192];
    bool found, is_static;
    MF_TRY(mf_read_object(group, "input_activations", &inputs, scope, sizeof scope, &found));
    if (!found) {
        return MF_OK;
    }
    MF_TRY(mf_config_only_keys(&inputs, argument_keys, "is not a quantisation argument that is known here"));
    int64_t bits;
    MF_TRY(mf_read_int(&inputs, "num_bits", 1, 64, NULL, &bits));
    if (bits != 8) {
        return mf_read_unexpected(&inputs, MF_ERR_UNSUPPORTED, "num_bits", "8");
    }
    is_static = !json_is_true(mf_read_value(&inputs, "dynamic"));
    config->quant.static_inputs |= is_static;
    return MF_OK;
}

/* The strategies of eight bits.  method is that of a scale per row; the next one has one scale per tensor. */
static mf_status read_eight_bits(const mf_reader *weights, mf_quant_method by_row, mf_quant_scheme *scheme)
{
    const char *strategy;
    MF_TRY(mf_read_text(weights, "strategy", true, &strategy));
    scheme->block_k = MF_QUANT_WHOLE_ROW;
    if (strcmp(strategy, "channel") == 0) {
        scheme->method = by_row;
        scheme->block_n = 1;
        return MF_OK;
    }
    if (strcmp(strategy, "tensor") == 0) {
        scheme->method = (mf_quant_method)(by_row + 1);
        scheme->block_n = MF_QUANT_WHOLE_ROW;
        return MF_OK;
    }
    if (by_row != MF_QUANT_FP8_CHANNEL || strcmp(strategy, "block") != 0) {
        return mf_read_unexpected(weights, MF_ERR_UNSUPPORTED, "strategy",
                                  by_row == MF_QUANT_FP8_CHANNEL ? "\"channel\", \"tensor\" or \"block\""
                                                                 : "\"channel\" or \"tensor\"");
    }
    scheme->method = MF_QUANT_FP8_BLOCK;
    scheme->block_n = scheme->block_k = 128;
    return mf_config_only_square_blocks(weights, "block_structure");
}

static mf_status read_four_bits(const mf_reader *weights, mf_quant_scheme *scheme)
{
    const char *strategy, *order;
    int64_t group;
    MF_TRY(mf_read_text(weights, "strategy", true, &strategy));
    scheme->method = MF_QUANT_INT4_PACKED;
    scheme->block_n = 1;
    scheme->block_k = MF_QUANT_WHOLE_ROW;
    if (strcmp(strategy, "group") == 0) {
        MF_TRY(mf_read_int(weights, "group_size", 2, 1 << 20, NULL, &group));
        if (group % 2 != 0) {
            return mf_read_unexpected(weights, MF_ERR_UNSUPPORTED, "group_size", "an even number");
        }
        scheme->block_k = group;
    } else if (strcmp(strategy, "channel") != 0) {
        return mf_read_unexpected(weights, MF_ERR_UNSUPPORTED, "strategy", "\"group\" or \"channel\"");
    }
    MF_TRY(
        mf_read_text(weights, "actorder", false, &order)); /* "static" or "weight": the columns stay where they are */
    if (order && strcmp(order, "static") != 0 && strcmp(order, "weight") != 0) {
        return mf_read_unexpected(weights, MF_ERR_UNSUPPORTED, "actorder",
                                  "null, \"static\" or \"weight\": groups of scattered columns are not supported");
    }
    return MF_OK;
}

static mf_status read_weights(const mf_reader *weights, const char *format, mf_quant_scheme *scheme)
{
    static const bool yes = true;
    bool symmetric, is_float;
    int64_t bits;
    MF_TRY(mf_config_only_keys(weights, argument_keys, "is not a quantisation argument that is known here"));
    MF_TRY(mf_config_refuse_true(weights, "dynamic", "weights have stored scales"));
    MF_TRY(mf_read_int(weights, "num_bits", 1, 64, NULL, &bits));
    MF_TRY(text_is(weights, "type", true, "float", &is_float));
    if (!is_float) {
        MF_TRY(mf_config_only_text(weights, "type", "int", NULL));
    }
    MF_TRY(mf_read_bool(weights, "symmetric", &yes, &symmetric));
    const bool packed = strcmp(format, "pack-quantized") == 0;
    if (bits != (packed ? 4 : 8)) {
        return mf_read_unexpected(weights, MF_ERR_UNSUPPORTED, "num_bits",
                                  packed ? "4 (format \"pack-quantized\")" : "8 (but for format \"pack-quantized\")");
    }
    if (is_float != (strcmp(format, "float-quantized") == 0)) {
        return mf_read_fail(weights, MF_ERR_UNSUPPORTED, "type", "%s codes in format \"%s\"",
                            is_float ? "float" : "int", format);
    }
    if (is_float && !symmetric) {
        return mf_read_unexpected(weights, MF_ERR_UNSUPPORTED, "symmetric", "true");
    }
    scheme->has_zeros = !symmetric;
    scheme->scale_suffix = "_scale";
    if (packed) {
        return read_four_bits(weights, scheme);
    }
    return read_eight_bits(weights, is_float ? MF_QUANT_FP8_CHANNEL : MF_QUANT_INT8_CHANNEL, scheme);
}

static mf_status read_format(const mf_reader *reader, const char *key, bool may_be_mixed, const char **format)
{
    MF_TRY(mf_read_text(reader, key, false, format));
    if (*format && strcmp(*format, "float-quantized") != 0 && strcmp(*format, "int-quantized") != 0 &&
        strcmp(*format, "pack-quantized") != 0 && (!may_be_mixed || strcmp(*format, "mixed-precision") != 0)) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, key,
                                  "\"float-quantized\", \"int-quantized\" or \"pack-quantized\"");
    }
    return MF_OK;
}

static mf_status read_group(const mf_reader *group, const char *outer_format, mf_model_config *config,
                            mf_quant_scheme *scheme)
{
    static const char *const known[] = {
        "weights", "input_activations", "output_activations", "targets", "format", NULL
    };
    MF_TRY(mf_config_only_keys(group, known, "is not a key of a group that is known here"));
    const char *format;
    MF_TRY(read_format(group, "format", false, &format));
    format = format ? format : outer_format;
    if (!format || strcmp(format, "mixed-precision") == 0) {
        return mf_read_unexpected(group, MF_ERR_INVALID, "format", "the group's format");
    }
    if (mf_read_value(group, "output_activations")) {
        return mf_read_unexpected(group, MF_ERR_UNSUPPORTED, "output_activations", "null");
    }
    MF_TRY(mf_config_read_modules(group, "targets", "Linear", &scheme->every_linear, config, &scheme->targets));
    if (!scheme->every_linear && scheme->targets.num_names + scheme->targets.num_patterns == 0) {
        return mf_read_unexpected(group, MF_ERR_INVALID, "targets", "\"Linear\" or modules");
    }
    mf_reader weights;
    char scope[192];
    bool found;
    MF_TRY(mf_read_object(group, "weights", &weights, scope, sizeof scope, &found));
    if (!found) {
        return mf_read_unexpected(group, MF_ERR_INVALID, "weights", "an object");
    }
    MF_TRY(read_weights(&weights, format, scheme));
    return read_inputs(group, config);
}

mf_status mf_config_read_compressed(const mf_reader *quant, mf_model_config *config)
{
    static const char *const known[] = { "quant_method",
                                         "format",
                                         "quantization_status",
                                         "config_groups",
                                         "ignore",
                                         "global_compression_ratio",
                                         "kv_cache_scheme",
                                         "sparsity_config",
                                         "transform_config",
                                         "version",
                                         NULL };
    MF_TRY(mf_config_only_keys(quant, known, "is not a key of quant_method \"compressed-tensors\" that is known here"));
    MF_TRY(mf_config_only_text(quant, "quantization_status", "compressed", NULL));
    static const char *const empty[] = { "kv_cache_scheme", "sparsity_config", "transform_config" };
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        const json_t *value = mf_read_value(quant, empty[i]);
        if (value && (!json_is_object(value) || json_object_size(value) > 0)) {
            return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, empty[i], "nothing");
        }
    }
    const char *format, *name;
    MF_TRY(read_format(quant, "format", true, &format));
    mf_reader groups;
    char scope[128];
    bool found;
    MF_TRY(mf_read_object(quant, "config_groups", &groups, scope, sizeof scope, &found));
    if (!found || json_object_size(groups.object) < 1 || json_object_size(groups.object) > MAX_GROUPS) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "config_groups", "an object with 1 to 16 groups");
    }
    mf_quant_scheme *schemes;
    MF_TRY(mf_config_make_schemes(quant, (int64_t)json_object_size(groups.object), config, &schemes));
    const json_t *unused;
    size_t i = 0;
    int everything = 0;
    json_object_foreach((json_t *)(uintptr_t)groups.object, name, unused)
    {
        (void)unused;
        mf_reader group;
        char group_scope[160];
        MF_TRY(mf_read_object(&groups, name, &group, group_scope, sizeof group_scope, &found));
        if (!found) {
            return mf_read_unexpected(&groups, MF_ERR_INVALID, name, "an object");
        }
        MF_TRY(read_group(&group, format, config, &schemes[i]));
        everything += schemes[i++].every_linear;
    }
    if (everything > 1) {
        return mf_read_fail(quant, MF_ERR_INVALID, "config_groups", "%d groups have the target \"Linear\"", everything);
    }
    config->quant.head_too = true;
    bool linear_ignored = false;
    MF_TRY(mf_config_read_modules(quant, "ignore", "Linear", &linear_ignored, config, &config->quant.excluded));
    if (linear_ignored) {
        return mf_read_fail(quant, MF_ERR_INVALID, "ignore", "\"Linear\" leaves out every layer");
    }
    return MF_OK;
}
