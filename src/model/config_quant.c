/* config_quant.c - quantization_config of config.json: the formats that checkpoints are loaded in, everything else refused by
 * key. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/json.h"
#include "model/config_parts.h"

enum { MAX_QUANT_MODULES = 65536 };

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The list of unquantised modules under key; absent: none. */
static mf_status read_modules(const mf_reader *quant, const char *key, mf_model_config *config)
{
    const json_t *list = mf_read_value(quant, key);
    if (!list) {
        return MF_OK;
    }
    if (!json_is_array(list) || json_array_size(list) > MAX_QUANT_MODULES) {
        return mf_read_unexpected(quant, MF_ERR_INVALID, key, "a list of at most 65536 module names");
    }
    mf_arena *arena = config->arena;
    size_t n = json_array_size(list);
    const char **names = mf_arena_array(arena, n + 1, sizeof *names);
    if (!names) {
        return mf_fail(quant->err, MF_ERR_NOMEM, "%s: out of memory", quant->file);
    }
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (!text || !*text) {
            return mf_read_fail(quant, MF_ERR_INVALID, key, "entry %zu: expected a module's name; got %s", i,
                                text ? "an empty string" : mf_json_type_name(json_array_get(list, i)));
        }
        if (strncmp(text, "re:", 3) == 0 || strpbrk(text, "*?[](){}|^$+\\")) {
            return mf_read_fail(quant, MF_ERR_UNSUPPORTED, key, "\"%.80s\" is a pattern: expected whole module names",
                                text);
        }
        names[i] = mf_arena_strdup(arena, text);
        if (!names[i]) {
            return mf_fail(quant->err, MF_ERR_NOMEM, "%s: out of memory", quant->file);
        }
    }
    qsort(names, n, sizeof *names, compare_names);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || strcmp(names[i], names[kept - 1]) != 0) {
            names[kept++] = names[i];
        }
    }
    names[kept] = NULL;
    config->quant.modules_to_not_convert = names;
    config->quant.num_modules_to_not_convert = (int64_t)kept;
    return MF_OK;
}

static mf_status only_square_blocks(const mf_reader *reader, const char *key)
{
    const json_t *block = mf_read_value(reader, key);
    if (!json_is_array(block) || json_array_size(block) != 2 || json_integer_value(json_array_get(block, 0)) != 128 ||
        json_integer_value(json_array_get(block, 1)) != 128) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, key, "[128, 128] (one scale per 128 x 128 block)");
    }
    return MF_OK;
}

/* ---- fp8 ---- */

static mf_status read_fp8(const mf_reader *quant, mf_model_config *config)
{
    static const char *const known[] = {
        "quant_method",           "activation_scheme", "fmt",       "weight_block_size",
        "modules_to_not_convert", "ignored_layers",    "scale_fmt", "dequantize",
        "modules_to_convert",     "expert_dtype",      NULL
    };
    MF_TRY(mf_config_only_keys(quant, known, "is not a key of quant_method \"fp8\" that is known here"));
    MF_TRY(mf_config_only_text(quant, "activation_scheme", "dynamic", "static activation scales are not supported"));
    MF_TRY(mf_config_only_text(quant, "fmt", "e4m3", NULL));
    MF_TRY(mf_config_only_text(quant, "expert_dtype", "fp8", NULL));
    const json_t *convert = mf_read_value(quant, "modules_to_convert");
    if (convert && json_array_size(convert) > 0) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "modules_to_convert", "nothing");
    }
    MF_TRY(only_square_blocks(quant, "weight_block_size"));
    const char *scale_fmt;
    MF_TRY(mf_read_text(quant, "scale_fmt", false, &scale_fmt));
    if (scale_fmt && strcmp(scale_fmt, "ue8m0") != 0 && strcmp(scale_fmt, "float") != 0) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "scale_fmt", "\"ue8m0\" or \"float\"");
    }
    config->quant.method = MF_QUANT_FP8_BLOCK;
    config->quant.block_n = 128;
    config->quant.block_k = 128;
    config->quant.scale_suffix = "_scale_inv";
    config->quant.ue8m0_scales = scale_fmt && strcmp(scale_fmt, "ue8m0") == 0;
    const json_t *list = mf_read_value(quant, "modules_to_not_convert"), *other = mf_read_value(quant, "ignored_layers");
    if (list && other && !json_equal(list, other)) {
        return mf_read_fail(quant, MF_ERR_INVALID, "modules_to_not_convert",
                            "differs from \"ignored_layers\", which means the same");
    }
    return read_modules(quant, list ? "modules_to_not_convert" : "ignored_layers", config);
}

/* ---- compressed-tensors ---- */

/* One side of a group: 8 bit floats, symmetric. */
static mf_status read_float8(const mf_reader *args)
{
    static const char *const known[] = { "num_bits", "type",     "strategy", "symmetric",       "dynamic",         "group_size",
                                         "actorder", "observer", "block_structure", "observer_kwargs", "scale_dtype", "zp_dtype",
                                         NULL };
    static const bool yes = true;
    bool symmetric;
    MF_TRY(mf_config_only_keys(args, known, "is not a quantisation argument that is known here"));
    int64_t bits;
    MF_TRY(mf_read_int(args, "num_bits", 1, 64, NULL, &bits));
    if (bits != 8) {
        return mf_read_unexpected(args, MF_ERR_UNSUPPORTED, "num_bits", "8");
    }
    MF_TRY(mf_config_only_text(args, "type", "float", "integer codes are not loaded from checkpoints"));
    MF_TRY(mf_read_bool(args, "symmetric", &yes, &symmetric));
    return symmetric ? MF_OK : mf_read_unexpected(args, MF_ERR_UNSUPPORTED, "symmetric", "true");
}

/* Every linear layer in one group.  Inputs may be declared as quantised at run time: products are weight-only all the same,
 * which is nearer to the weights that were meant. */
static mf_status read_group(const mf_reader *group, mf_model_config *config)
{
    static const char *const known[] = { "weights", "input_activations", "output_activations", "targets", "format", NULL };
    MF_TRY(mf_config_only_keys(group, known, "is not a key of a group that is known here"));
    MF_TRY(mf_config_only_text(group, "format", "float-quantized", NULL));
    const json_t *targets = mf_read_value(group, "targets");
    const char *target = json_string_value(json_array_get(targets, 0));
    if (json_array_size(targets) != 1 || !target || strcmp(target, "Linear") != 0) {
        return mf_read_unexpected(group, MF_ERR_UNSUPPORTED, "targets", "[\"Linear\"]");
    }
    if (mf_read_value(group, "output_activations")) {
        return mf_read_unexpected(group, MF_ERR_UNSUPPORTED, "output_activations", "null");
    }
    mf_reader weights, inputs;
    char scope[192], inputs_scope[192];
    bool found, has_inputs, dynamic;
    MF_TRY(mf_read_object(group, "weights", &weights, scope, sizeof scope, &found));
    if (!found) {
        return mf_read_unexpected(group, MF_ERR_INVALID, "weights", "an object");
    }
    MF_TRY(read_float8(&weights));
    MF_TRY(mf_config_refuse_true(&weights, "dynamic", "weights have stored scales"));
    MF_TRY(mf_read_object(group, "input_activations", &inputs, inputs_scope, sizeof inputs_scope, &has_inputs));
    if (has_inputs) {
        MF_TRY(read_float8(&inputs));
        static const bool off = false;
        MF_TRY(mf_read_bool(&inputs, "dynamic", &off, &dynamic));
        if (!dynamic) {
            return mf_read_unexpected(&inputs, MF_ERR_UNSUPPORTED, "dynamic",
                                      "true: static activation scales are not supported");
        }
    }
    const char *strategy;
    MF_TRY(mf_read_text(&weights, "strategy", true, &strategy));
    mf_quant_config *quant = &config->quant;
    if (strcmp(strategy, "channel") == 0) {
        quant->method = MF_QUANT_FP8_CHANNEL;
        quant->block_n = 1;
        quant->block_k = MF_QUANT_WHOLE_ROW;
        return MF_OK;
    }
    if (strcmp(strategy, "block") != 0) {
        return mf_read_unexpected(&weights, MF_ERR_UNSUPPORTED, "strategy", "\"channel\" or \"block\"");
    }
    quant->method = MF_QUANT_FP8_BLOCK;
    quant->block_n = quant->block_k = 128;
    return only_square_blocks(&weights, "block_structure");
}

static mf_status read_compressed(const mf_reader *quant, mf_model_config *config)
{
    static const char *const known[] = { "quant_method",    "format",          "quantization_status",
                                         "config_groups",   "ignore",          "global_compression_ratio",
                                         "kv_cache_scheme", "sparsity_config", "transform_config",
                                         "version",         NULL };
    MF_TRY(mf_config_only_keys(quant, known,
                               "is not a key of quant_method \"compressed-tensors\" that is known here"));
    MF_TRY(mf_config_only_text(quant, "format", "float-quantized", NULL));
    MF_TRY(mf_config_only_text(quant, "quantization_status", "compressed", NULL));
    static const char *const empty[] = { "kv_cache_scheme", "sparsity_config", "transform_config" };
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        const json_t *value = mf_read_value(quant, empty[i]);
        if (value && (!json_is_object(value) || json_object_size(value) > 0)) {
            return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, empty[i], "nothing");
        }
    }
    mf_reader groups, group;
    char scope[128], group_scope[160];
    bool found;
    MF_TRY(mf_read_object(quant, "config_groups", &groups, scope, sizeof scope, &found));
    if (!found || json_object_size(groups.object) != 1) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "config_groups", "an object with one group");
    }
    const char *name = json_object_iter_key(json_object_iter((json_t *)(uintptr_t)groups.object));
    MF_TRY(mf_read_object(&groups, name, &group, group_scope, sizeof group_scope, &found));
    if (!found) {
        return mf_read_unexpected(&groups, MF_ERR_INVALID, name, "an object");
    }
    MF_TRY(read_group(&group, config));
    config->quant.scale_suffix = "_scale";
    return read_modules(quant, "ignore", config);
}

mf_status mf_config_read_quant(const mf_reader *reader, const mf_reader *outer, mf_model_config *config)
{
    const mf_reader *holder = mf_read_value(reader, "quantization_config") ? reader : outer;
    if (mf_read_value(reader, "compression_config") || mf_read_value(outer, "compression_config")) {
        return mf_fail(reader->err, MF_ERR_UNSUPPORTED,
                       "%s: key \"compression_config\": this weight format is not supported", reader->file);
    }
    mf_reader quant;
    char scope[128];
    bool found;
    MF_TRY(mf_read_object(holder, "quantization_config", &quant, scope, sizeof scope, &found));
    if (!found) {
        return MF_OK;
    }
    const char *method;
    MF_TRY(mf_read_text(&quant, "quant_method", true, &method));
    if (strcmp(method, "compressed-tensors") == 0) {
        return read_compressed(&quant, config);
    }
    if (strcmp(method, "fp8") != 0) {
        return mf_read_unexpected(&quant, MF_ERR_UNSUPPORTED, "quant_method",
                                  "\"fp8\" with 128 x 128 blocks, \"compressed-tensors\" with float-quantized weights, or no "
                                  "quantisation");
    }
    return read_fp8(&quant, config);
}
