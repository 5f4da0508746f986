/* config_quant.c - quantization_config of config.json: the formats that checkpoints are loaded in, everything else
 * refused by key.  compressed-tensors has a file of its own. */
#include "model/config_quant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/json.h"
#include "model/name_pattern.h"

enum { MAX_QUANT_MODULES = 65536, MAX_QUANT_PATTERNS = 256 };

/* ---- lists of modules ---- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static mf_status out_of_memory(const mf_reader *reader)
{
    return mf_fail(reader->err, MF_ERR_NOMEM, "%s: out of memory", reader->file);
}

static mf_status add_pattern(const mf_reader *quant, const char *key, const char *text, mf_model_config *config,
                             mf_module_list *list)
{
    const char *why;
    if (list->num_patterns == MAX_QUANT_PATTERNS) {
        return mf_read_fail(quant, MF_ERR_UNSUPPORTED, key, "more than %d patterns", MAX_QUANT_PATTERNS);
    }
    if (!list->patterns) {
        list->patterns = mf_arena_array(config->arena, MAX_QUANT_PATTERNS, sizeof *list->patterns);
        list->pattern_texts = mf_arena_array(config->arena, MAX_QUANT_PATTERNS, sizeof *list->pattern_texts);
    }
    char *copy = mf_arena_strdup(config->arena, text);
    if (!list->patterns || !list->pattern_texts || !copy) {
        return out_of_memory(quant);
    }
    list->pattern_texts[list->num_patterns] = copy;
    mf_status status = mf_name_pattern_compile(text, config->arena, &list->patterns[list->num_patterns], &why);
    if (status != MF_OK) {
        return why ? mf_read_fail(quant, status, key, "pattern \"%.80s\" %s", text, why) : out_of_memory(quant);
    }
    list->num_patterns++;
    return MF_OK;
}

mf_status mf_config_read_modules(const mf_reader *quant, const char *key, const char *class_name, bool *every_linear,
                                 mf_model_config *config, mf_module_list *list)
{
    const json_t *value = mf_read_value(quant, key);
    if (!value) {
        return MF_OK;
    }
    if (!json_is_array(value) || json_array_size(value) > MAX_QUANT_MODULES) {
        return mf_read_unexpected(quant, MF_ERR_INVALID, key, "a list of at most 65536 module names");
    }
    size_t n = json_array_size(value);
    const char **names = mf_arena_array(config->arena, n + 1, sizeof *names);
    if (!names) {
        return out_of_memory(quant);
    }
    size_t num_names = 0;
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_array_get(value, i));
        if (!text || !*text) {
            return mf_read_fail(quant, MF_ERR_INVALID, key, "entry %zu: expected a module's name; got %s", i,
                                text ? "an empty string" : mf_json_type_name(json_array_get(value, i)));
        }
        if (class_name && strcmp(text, class_name) == 0) {
            *every_linear = true;
            continue;
        }
        if (strncmp(text, "re:", 3) == 0) {
            MF_TRY(add_pattern(quant, key, text + 3, config, list));
            continue;
        }
        if (strpbrk(text, "*?[](){}|^$+\\")) {
            return mf_read_fail(quant, MF_ERR_UNSUPPORTED, key,
                                "\"%.80s\" is a pattern: expected a module's name, or \"re:\" before a pattern", text);
        }
        names[num_names] = mf_arena_strdup(config->arena, text);
        if (!names[num_names++]) {
            return out_of_memory(quant);
        }
    }
    qsort(names, num_names, sizeof *names, compare_names);
    size_t kept = 0;
    for (size_t i = 0; i < num_names; i++) {
        if (kept == 0 || strcmp(names[i], names[kept - 1]) != 0) {
            names[kept++] = names[i];
        }
    }
    names[kept] = NULL;
    list->names = names;
    list->num_names = (int64_t)kept;
    return MF_OK;
}

mf_status mf_config_read_pattern_keys(const mf_reader *quant, const char *key, const char *mark,
                                      mf_model_config *config, mf_module_list *list)
{
    const json_t *object = mf_read_value(quant, key);
    if (!object) {
        return MF_OK;
    }
    if (!json_is_object(object)) {
        return mf_read_unexpected(quant, MF_ERR_INVALID, key, "an object");
    }
    const char *name;
    const json_t *unused;
    json_object_foreach((json_t *)(uintptr_t)object, name, unused)
    {
        (void)unused;
        if (strncmp(name, mark, strlen(mark)) != 0) {
            return mf_read_fail(quant, MF_ERR_UNSUPPORTED, key,
                                "\"%.80s\": expected only modules that are left out (\"%s...\")", name, mark);
        }
        MF_TRY(add_pattern(quant, key, name + strlen(mark), config, list));
    }
    return MF_OK;
}

mf_status mf_config_make_schemes(const mf_reader *quant, int64_t n, mf_model_config *config, mf_quant_scheme **schemes)
{
    *schemes = mf_arena_array(config->arena, (size_t)n, sizeof **schemes);
    if (!*schemes) {
        return out_of_memory(quant);
    }
    config->quant.schemes = *schemes;
    config->quant.num_schemes = n;
    return MF_OK;
}

/* ---- fp8 ---- */

mf_status mf_config_only_square_blocks(const mf_reader *reader, const char *key)
{
    const json_t *block = mf_read_value(reader, key);
    if (!json_is_array(block) || json_array_size(block) != 2 || json_integer_value(json_array_get(block, 0)) != 128 ||
        json_integer_value(json_array_get(block, 1)) != 128) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, key, "[128, 128] (one scale per 128 x 128 block)");
    }
    return MF_OK;
}

static mf_status read_fp8(const mf_reader *quant, mf_model_config *config)
{
    static const char *const known[] = {
        "quant_method",           "activation_scheme", "fmt",       "weight_block_size",
        "modules_to_not_convert", "ignored_layers",    "scale_fmt", "dequantize",
        "modules_to_convert",     "expert_dtype",      NULL
    };
    MF_TRY(mf_config_only_keys(quant, known, "is not a key of quant_method \"fp8\" that is known here"));
    const bool by_block = mf_read_value(quant, "weight_block_size") != NULL;
    const char *scheme_name, *scale_fmt;
    MF_TRY(mf_read_text(quant, "activation_scheme", false, &scheme_name));
    config->quant.static_inputs = scheme_name && strcmp(scheme_name, "static") == 0;
    if (config->quant.static_inputs && by_block) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "activation_scheme",
                                  "\"dynamic\" beside weight_block_size");
    }
    if (!config->quant.static_inputs && scheme_name && strcmp(scheme_name, "dynamic") != 0) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "activation_scheme", "\"dynamic\" or \"static\"");
    }
    MF_TRY(mf_config_only_text(quant, "fmt", "e4m3", NULL));
    MF_TRY(mf_config_only_text(quant, "expert_dtype", "fp8", NULL));
    const json_t *convert = mf_read_value(quant, "modules_to_convert");
    if (convert && json_array_size(convert) > 0) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "modules_to_convert", "nothing");
    }
    MF_TRY(mf_read_text(quant, "scale_fmt", false, &scale_fmt));
    if (scale_fmt && strcmp(scale_fmt, "ue8m0") != 0 && strcmp(scale_fmt, "float") != 0) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "scale_fmt", "\"ue8m0\" or \"float\"");
    }
    mf_quant_scheme *scheme;
    MF_TRY(mf_config_make_schemes(quant, 1, config, &scheme));
    *scheme = (mf_quant_scheme){ .method = MF_QUANT_FP8_TENSOR,
                                 .block_n = MF_QUANT_WHOLE_ROW,
                                 .block_k = MF_QUANT_WHOLE_ROW,
                                 .scale_suffix = "_scale_inv",
                                 .every_linear = true };
    if (by_block) {
        MF_TRY(mf_config_only_square_blocks(quant, "weight_block_size"));
        scheme->method = MF_QUANT_FP8_BLOCK;
        scheme->block_n = scheme->block_k = 128;
        scheme->ue8m0_scales = scale_fmt && strcmp(scale_fmt, "ue8m0") == 0;
    }
    const json_t *list = mf_read_value(quant, "modules_to_not_convert"),
                 *other = mf_read_value(quant, "ignored_layers");
    if (list && other && !json_equal(list, other)) {
        return mf_read_fail(quant, MF_ERR_INVALID, "modules_to_not_convert",
                            "differs from \"ignored_layers\", which means the same");
    }
    return mf_config_read_modules(quant, list ? "modules_to_not_convert" : "ignored_layers", NULL, NULL, config,
                                  &config->quant.excluded);
}

/* ---- four bits: gptq and awq ---- */

static mf_status read_four_bits(const mf_reader *quant, mf_quant_scheme *scheme)
{
    int64_t bits, group;
    MF_TRY(mf_read_int(quant, "bits", 1, 64, NULL, &bits));
    if (bits != 4) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "bits", "4");
    }
    MF_TRY(mf_read_int(quant, "group_size", -1, 1 << 20, NULL, &group));
    if (group != -1 && (group < 2 || group % 2 != 0)) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "group_size", "-1 or an even number");
    }
    scheme->block_n = 1;
    scheme->block_k = group == -1 ? MF_QUANT_WHOLE_ROW : group;
    scheme->has_zeros = true;
    scheme->every_linear = true;
    return MF_OK;
}

static mf_status read_gptq(const mf_reader *quant, mf_model_config *config)
{
    /* How the codes were found, or how other engines multiply: neither changes a value. */
    static const char *const known[] = { "quant_method",
                                         "bits",
                                         "group_size",
                                         "desc_act",
                                         "sym",
                                         "checkpoint_format",
                                         "dynamic",
                                         "lm_head",
                                         "pack_dtype",
                                         "damp_percent",
                                         "true_sequential",
                                         "static_groups",
                                         "model_name_or_path",
                                         "model_file_base_name",
                                         "quantizer",
                                         "meta",
                                         "dataset",
                                         "tokenizer",
                                         "batch_size",
                                         "model_seqlen",
                                         "max_input_length",
                                         "use_cuda_fp16",
                                         "use_exllama",
                                         "disable_exllama",
                                         "exllama_config",
                                         "cache_block_outputs",
                                         "pad_token_id",
                                         "backend",
                                         "is_marlin_format",
                                         "modules_in_block_to_quantize",
                                         "block_name_to_quantize",
                                         "module_name_preceding_first_block",
                                         NULL };
    static const bool no = false, yes = true;
    bool reorders, head, unused;
    MF_TRY(mf_config_only_keys(quant, known, "is not a key of quant_method \"gptq\" that is known here"));
    mf_quant_scheme *scheme;
    MF_TRY(mf_config_make_schemes(quant, 1, config, &scheme));
    scheme->method = MF_QUANT_INT4_GPTQ;
    MF_TRY(read_four_bits(quant, scheme));
    MF_TRY(mf_read_bool(quant, "desc_act", &no, &reorders));
    MF_TRY(mf_read_bool(quant, "sym", &yes, &unused)); /* the zero points are stored either way */
    MF_TRY(mf_read_bool(quant, "lm_head", &no, &head));
    if (reorders) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "desc_act",
                                  "false: columns in the order of their activations are not supported");
    }
    if (head) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "lm_head", "false: a quantised head is not supported");
    }
    MF_TRY(mf_config_refuse_true(quant, "is_marlin_format", "only the gptq layouts are loaded"));
    MF_TRY(mf_config_only_text(quant, "pack_dtype", "int32", NULL));
    const char *format;
    MF_TRY(mf_read_text(quant, "checkpoint_format", false, &format));
    if (format && strcmp(format, "gptq") != 0 && strcmp(format, "gptq_v2") != 0) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "checkpoint_format", "\"gptq\" or \"gptq_v2\"");
    }
    scheme->zero_plus = !format || strcmp(format, "gptq") == 0;
    scheme->has_group_index = true;
    return mf_config_read_pattern_keys(quant, "dynamic", "-:", config, &config->quant.excluded);
}

static mf_status read_awq(const mf_reader *quant, mf_model_config *config)
{
    static const char *const known[] = { "quant_method",     "bits",
                                         "group_size",       "zero_point",
                                         "version",          "backend",
                                         "do_fuse",          "modules_to_not_convert",
                                         "exllama_config",   "modules_to_fuse",
                                         "fuse_max_seq_len", "w_bit",
                                         "q_group_size",     NULL };
    static const bool yes = true;
    bool unused;
    MF_TRY(mf_config_only_keys(quant, known, "is not a key of quant_method \"awq\" that is known here"));
    mf_quant_scheme *scheme;
    MF_TRY(mf_config_make_schemes(quant, 1, config, &scheme));
    scheme->method = MF_QUANT_INT4_AWQ;
    MF_TRY(read_four_bits(quant, scheme));
    MF_TRY(mf_read_bool(quant, "zero_point", &yes, &unused)); /* stored either way */
    const char *version;
    MF_TRY(mf_read_text(quant, "version", false, &version));
    if (version && strcmp(version, "gemm") != 0 && strcmp(version, "GEMM") != 0) {
        return mf_read_unexpected(quant, MF_ERR_UNSUPPORTED, "version", "\"gemm\"");
    }
    config->quant.excluded_by_part = true;
    return mf_config_read_modules(quant, "modules_to_not_convert", NULL, NULL, config, &config->quant.excluded);
}

/* ---- mxfp4 ---- */

/* "model.layers.*.self_attn": a star stands for any run of characters. */
static mf_status add_glob(const mf_reader *quant, const char *key, const char *text, mf_model_config *config,
                          mf_module_list *list)
{
    char pattern[512];
    size_t n = 0;
    for (const char *p = text; *p; p++) {
        const bool plain =
            (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || *p == '_' || *p == '-';
        if (n + 3 >= sizeof pattern || (!plain && *p != '.' && *p != '*')) {
            return mf_read_fail(quant, MF_ERR_UNSUPPORTED, key,
                                "\"%.80s\": expected a module's name, in which * may stand for a part", text);
        }
        if (!plain) {
            pattern[n++] = *p == '*' ? '.' : '\\';
        }
        pattern[n++] = *p;
    }
    pattern[n] = '\0';
    return add_pattern(quant, key, pattern, config, list);
}

/* Routed experts only, as gpt-oss has it; the list names what is none. */
static mf_status read_mxfp4(const mf_reader *quant, mf_model_config *config)
{
    static const char *const known[] = { "quant_method", "modules_to_not_convert", "dequantize", NULL };
    static const char key[] = "modules_to_not_convert";
    MF_TRY(mf_config_only_keys(quant, known, "is not a key of quant_method \"mxfp4\" that is known here"));
    mf_quant_scheme *scheme;
    MF_TRY(mf_config_make_schemes(quant, 1, config, &scheme));
    *scheme = (mf_quant_scheme){ .method = MF_QUANT_MXFP4, .block_n = 1, .block_k = 32 };
    MF_TRY(add_pattern(quant, key, ".*experts\\.\\d+\\..*", config, &scheme->targets));
    const json_t *list = mf_read_value(quant, key);
    if (list && (!json_is_array(list) || json_array_size(list) > MAX_QUANT_PATTERNS)) {
        return mf_read_unexpected(quant, MF_ERR_INVALID, key, "a list of module names");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (!text || !*text) {
            return mf_read_fail(quant, MF_ERR_INVALID, key, "entry %zu: expected a module's name", i);
        }
        MF_TRY(add_glob(quant, key, text, config, &config->quant.excluded));
    }
    return MF_OK;
}

/* ---- the choice ---- */

mf_status mf_config_read_quant(const mf_reader *reader, const mf_reader *outer, mf_model_config *config)
{
    const mf_reader *holder = mf_read_value(reader, "quantization_config") ? reader : outer;
    const char *key = "quantization_config";
    if (!mf_read_value(holder, key)) { /* compressed-tensors' older name */
        holder = mf_read_value(reader, "compression_config") ? reader : outer;
        key = "compression_config";
    } else if (mf_read_value(reader, "compression_config") || mf_read_value(outer, "compression_config")) {
        return mf_fail(reader->err, MF_ERR_INVALID, "%s: both \"quantization_config\" and \"compression_config\"",
                       reader->file);
    }
    mf_reader quant;
    char scope[128];
    bool found;
    MF_TRY(mf_read_object(holder, key, &quant, scope, sizeof scope, &found));
    if (!found) {
        return MF_OK;
    }
    const char *method;
    MF_TRY(mf_read_text(&quant, "quant_method", true, &method));
    if (strcmp(method, "compressed-tensors") == 0) {
        return mf_config_read_compressed(&quant, config);
    }
    if (strcmp(method, "gptq") == 0) {
        return read_gptq(&quant, config);
    }
    if (strcmp(method, "awq") == 0) {
        return read_awq(&quant, config);
    }
    if (strcmp(method, "mxfp4") == 0) {
        return read_mxfp4(&quant, config);
    }
    if (strcmp(method, "fp8") != 0) {
        return mf_read_unexpected(&quant, MF_ERR_UNSUPPORTED, "quant_method",
                                  "\"fp8\", \"compressed-tensors\", \"gptq\", \"awq\", \"mxfp4\", or no quantisation");
    }
    return read_fp8(&quant, config);
}
