/* config.c - config.json and generation_config.json into one mf_model_config: see config.h.
 *
 * Common keys are read here by a range table, the rest by the family.  Nothing is allocated from a value before its
 * range and the product of all sizes have been checked. */
#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "model/config_parts.h"
#include "model/family.h"
#include "model/tensor_map.h"

enum { MAX_CONFIG_BYTES = 8 << 20, MAX_CONFIG_VALUES = 200000 };

static const mf_json_limits json_limits = { .max_depth = 32, .max_values = MAX_CONFIG_VALUES, .top_is_object = true };

static mf_status find_family(const mf_reader *root, mf_model_config *config)
{
    const json_t *list = mf_read_value(root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name) {
        return mf_read_unexpected(root, MF_ERR_INVALID, "architectures", "a list whose first entry is a name");
    }
    config->family = mf_family_find(name);
    if (!config->family) {
        char known[512];
        mf_family_list(known, sizeof known);
        return mf_read_fail(root, MF_ERR_UNSUPPORTED, "architectures", "unknown architecture \"%.80s\"; known are %s",
                            name, known);
    }
    snprintf(config->architecture, sizeof config->architecture, "%s", name);
    return MF_OK;
}

static mf_status read_dtype(const mf_reader *reader, mf_model_config *config)
{
    const char *old, *fresh;
    MF_TRY(mf_read_text(reader, "torch_dtype", false, &old));
    MF_TRY(mf_read_text(reader, "dtype", false, &fresh));
    if (old && fresh && strcmp(old, fresh) != 0) {
        return mf_read_fail(reader, MF_ERR_INVALID, "dtype",
                            "is \"%.40s\" and \"torch_dtype\" is \"%.40s\": expected the same", fresh, old);
    }
    const char *key = fresh ? "dtype" : "torch_dtype";
    const char *text = fresh ? fresh : old;
    config->torch_dtype = MF_BF16; /* stored tensors carry their own; this is what dummy weights are made of */
    if (!text) {
        return MF_OK;
    }
    if (strncmp(text, "torch.", 6) == 0) {
        text += 6;
    }
    if (strcmp(text, "float16") == 0) {
        config->torch_dtype = MF_F16;
    } else if (strcmp(text, "float32") == 0) {
        config->torch_dtype = MF_F32;
    } else if (strcmp(text, "bfloat16") != 0) {
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, key, "\"bfloat16\", \"float16\" or \"float32\"");
    }
    return MF_OK;
}

static mf_status read_common(const mf_reader *reader, mf_model_config *config)
{
    static const mf_int_key keys[] = {
        { "vocab_size", NULL, 1, 1 << 24, MF_KEY_REQUIRED, offsetof(mf_model_config, vocab_size) },
        { "hidden_size", NULL, 1, MF_MAX_SIZE, MF_KEY_REQUIRED, offsetof(mf_model_config, hidden_size) },
        { "num_hidden_layers", NULL, 1, MF_MAX_LAYERS, MF_KEY_REQUIRED, offsetof(mf_model_config, num_layers) },
        { "intermediate_size", NULL, 1, MF_MAX_SIZE, MF_KEY_REQUIRED, offsetof(mf_model_config, intermediate_size) },
        { "max_position_embeddings", NULL, 1, 1 << 30, MF_KEY_REQUIRED,
          offsetof(mf_model_config, max_position_embeddings) },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], config));
    MF_TRY(mf_read_number(reader, "rms_norm_eps", 1e-30, 1, NULL, &config->rms_norm_eps));
    static const bool untied = false; /* the class default of every family here */
    MF_TRY(mf_read_bool(reader, "tie_word_embeddings", &untied, &config->tie_word_embeddings));
    MF_TRY(mf_config_only_text(reader, "hidden_act", "silu", NULL));
    config->activation = MF_ACT_SILU;
    const char *type;
    MF_TRY(mf_read_text(reader, "model_type", false, &type));
    if (type && strlen(type) >= sizeof config->model_type) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, "model_type", "at most 63 bytes");
    }
    snprintf(config->model_type, sizeof config->model_type, "%s", type ? type : "");
    return read_dtype(reader, config);
}

/* Both texts may stand at the top beside a nested text_config; inner ones count first. */
static mf_status read_all(const mf_reader *root, mf_model_config *config)
{
    MF_TRY(find_family(root, config));
    mf_reader reader = *root;
    char scope[80];
    if (config->family->config_key) {
        bool found;
        MF_TRY(mf_read_object(root, config->family->config_key, &reader, scope, sizeof scope, &found));
        if (!found) {
            return mf_read_unexpected(root, MF_ERR_INVALID, config->family->config_key, "an object");
        }
    }
    MF_TRY(read_common(&reader, config));
    MF_TRY(config->family->read(&reader, config));
    MF_TRY(mf_config_read_quant(&reader, root, config));
    MF_TRY(mf_config_read_tokens(&reader, config));
    if (reader.object != root->object) {
        MF_TRY(mf_config_read_tokens(root, config));
    }
    if (config->num_layers + config->num_nextn_layers > MF_MAX_LAYERS) {
        return mf_read_fail(&reader, MF_ERR_INVALID, "num_hidden_layers",
                            "expected at most %d layers with the draft layers; got %lld", MF_MAX_LAYERS,
                            (long long)(config->num_layers + config->num_nextn_layers));
    }
    /* Far above any model and far below overflow of any product that is made from these sizes. */
    int64_t most = (int64_t)1 << 50;
    if (mf_model_config_size(config).total_params > most) {
        return mf_fail(root->err, MF_ERR_INVALID, "%s: the sizes give more than 2^50 parameters", root->file);
    }
    return MF_OK;
}

mf_status mf_model_config_parse(const char *text, size_t size, const char *name, mf_model_config **out, mf_error *err)
{
    *out = NULL;
    json_t *json = NULL;
    MF_TRY(mf_json_parse(text, size, name, &json_limits, &json, err));
    mf_model_config *config = mf_alloc_zero(sizeof *config);
    mf_arena *arena = mf_alloc_zero(sizeof *arena);
    if (!config || !arena) {
        mf_free(config);
        mf_free(arena);
        json_decref(json);
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", name);
    }
    config->arena = arena;
    config->bos_token_id = -1;
    config->default_temperature = config->default_top_p = config->default_repetition_penalty = __builtin_nan("");
    config->default_top_k = -1;
    mf_reader root = { .file = name, .scope = "", .object = json, .err = err };
    mf_status status = read_all(&root, config);
    json_decref(json);
    if (status != MF_OK) {
        mf_model_config_close(&config);
    }
    *out = config;
    return status;
}

mf_status mf_model_config_parse_generation(mf_model_config *config, const char *text, size_t size, const char *name,
                                           mf_error *err)
{
    json_t *json = NULL;
    MF_TRY(mf_json_parse(text, size, name, &json_limits, &json, err));
    mf_reader reader = { .file = name, .scope = "", .object = json, .err = err };
    double none = __builtin_nan("");
    int64_t no_top_k = -1;
    mf_status status;
    MF_TRY_GOTO(mf_config_read_tokens(&reader, config), done);
    MF_TRY_GOTO(mf_read_number(&reader, "temperature", 0, 100, &none, &config->default_temperature), done);
    MF_TRY_GOTO(mf_read_number(&reader, "top_p", 0, 1, &none, &config->default_top_p), done);
    MF_TRY_GOTO(mf_read_number(&reader, "repetition_penalty", 0.01, 100, &none, &config->default_repetition_penalty),
                done);
    MF_TRY_GOTO(mf_read_int(&reader, "top_k", -1, INT32_MAX, &no_top_k, &config->default_top_k), done);
done:
    json_decref(json);
    return status;
}

int64_t mf_model_config_q_size(const mf_model_config *c)
{
    return c->num_heads * (c->attention == MF_ATTENTION_GQA ? c->head_dim : c->qk_nope_head_dim + c->qk_rope_head_dim);
}

int64_t mf_model_config_kv_size(const mf_model_config *c)
{
    return c->attention == MF_ATTENTION_GQA ? c->num_kv_heads * (c->head_dim + c->v_head_dim)
                                            : c->kv_lora_rank + c->qk_rope_head_dim;
}

int64_t mf_model_config_linear_v_size(const mf_model_config *c)
{
    return c->linear_num_v_heads * c->linear_v_dim;
}

int64_t mf_model_config_conv_channels(const mf_model_config *c)
{
    return 2 * c->linear_num_k_heads * c->linear_k_dim + mf_model_config_linear_v_size(c);
}

int64_t mf_model_config_qkvz_size(const mf_model_config *c)
{
    return mf_model_config_conv_channels(c) + mf_model_config_linear_v_size(c);
}

/* Reads DIR/NAME whole; *found false when there is no such file. */
static mf_status open_in(const char *dir, const char *name, mf_file *file, bool *found, mf_error *err)
{
    *file = (mf_file){ 0 };
    char *path = mf_path_join(dir, name);
    if (!path) {
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", dir);
    }
    mf_status status = MF_OK;
    *found = mf_path_exists(path);
    if (*found) {
        status = mf_file_open(path, false, MAX_CONFIG_BYTES, file, err);
    }
    mf_free(path);
    return status;
}

/* A config.json alone, under any name that ends so: enough for dummy weights. */
static mf_status load_file(const char *path, mf_model_config **out, mf_error *err)
{
    mf_file file;
    MF_TRY(mf_file_open(path, false, MAX_CONFIG_BYTES, &file, err));
    mf_status status = mf_model_config_parse((const char *)file.data, file.size, file.path, out, err);
    mf_file_close(&file);
    return status;
}

bool mf_model_config_is_file(const char *path)
{
    size_t length = strlen(path);
    return length > 5 && strcmp(path + length - 5, ".json") == 0 && mf_path_is_file(path);
}

mf_status mf_model_config_load(const char *dir, mf_model_config **out, mf_error *err)
{
    *out = NULL;
    if (mf_model_config_is_file(dir)) {
        return load_file(dir, out, err);
    }
    if (!mf_path_is_dir(dir)) {
        return mf_fail(err, MF_ERR_IO, "%s: %s; expected a model's directory", dir,
                       mf_path_exists(dir) ? "not a directory" : "no such directory");
    }
    mf_file file;
    bool found = false;
    MF_TRY(open_in(dir, "config.json", &file, &found, err));
    if (!found) {
        return mf_fail(err, MF_ERR_IO,
                       "%s: holds no config.json; expected a model's directory in the Hugging Face layout", dir);
    }
    mf_model_config *config = NULL;
    mf_status status = mf_model_config_parse((const char *)file.data, file.size, file.path, &config, err);
    mf_file_close(&file);
    MF_TRY(status);
    status = open_in(dir, "generation_config.json", &file, &found, err);
    if (status == MF_OK && found) {
        status = mf_model_config_parse_generation(config, (const char *)file.data, file.size, file.path, err);
        mf_file_close(&file);
    }
    if (status != MF_OK) {
        mf_model_config_close(&config);
    }
    *out = config;
    return status;
}

void mf_model_config_close(mf_model_config **config)
{
    if (*config) {
        mf_arena_clear((*config)->arena);
        mf_free((*config)->arena);
        mf_free(*config);
        *config = NULL;
    }
}
