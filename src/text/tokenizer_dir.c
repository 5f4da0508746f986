/* tokenizer_dir.c - which of a folder's files is its tokenizer: see tokenizer_dir.h. */
#include "text/tokenizer_dir.h"

#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "text/tiktoken.h"

enum { MAX_CONFIG_BYTES = 64 << 20 };

static mf_status no_memory(mf_error *err)
{
    return mf_fail(err, MF_ERR_NOMEM, "out of memory");
}

static bool has_file(const char *dir, const char *name)
{
    char *path = mf_path_join(dir, name);
    bool has = path && mf_path_exists(path);
    mf_free(path);
    return has;
}

bool mf_tokenizer_in_dir(const char *dir)
{
    bool has = has_file(dir, "tokenizer.json");
    for (size_t i = 0; !has && mf_tiktoken_get_class(i); i++) {
        has = has_file(dir, mf_tiktoken_get_class(i)->file);
    }
    return has;
}

static mf_status fail_unknown(const char *dir, const char *name, mf_error *err)
{
    mf_buffer known = { 0 };
    mf_status status = MF_OK;
    for (size_t i = 0; status == MF_OK && mf_tiktoken_get_class(i); i++) {
        const mf_tiktoken_class *class = mf_tiktoken_get_class(i);
        status = mf_buffer_printf(&known, "%s%s (%s)", i ? ", " : "", class->name, class->file);
    }
    if (status == MF_OK) {
        status = mf_fail(err, MF_ERR_UNSUPPORTED,
                         "%.400s: no tokenizer.json, and tokenizer_config.json's tokenizer_class %s%.100s%s is none of "
                         "those that go "
                         "without: %s",
                         dir, name ? "\"" : "", name ? name : "(missing)", name ? "\"" : "", mf_buffer_text(&known));
    } else {
        status = no_memory(err);
    }
    mf_buffer_close(&known);
    return status;
}

static mf_status open_tiktoken(const char *dir, const json_t *config, const char *config_path, mf_tokenizer **out,
                               mf_error *err)
{
    const char *name = json_string_value(json_object_get(config, "tokenizer_class"));
    const mf_tiktoken_class *class = name ? mf_tiktoken_find_class(name) : NULL;
    if (!class) {
        return fail_unknown(dir, name, err);
    }
    char *path = mf_path_join(dir, class->file);
    if (!path) {
        return no_memory(err);
    }
    mf_file file = { 0 };
    mf_status status = mf_file_open(path, false, MF_TOKENIZER_MAX_FILE_BYTES, &file, err);
    if (status == MF_OK) {
        status = mf_tiktoken_parse(class, (const char *)file.data, file.size, path, config, config_path, out, err);
        mf_file_close(&file);
    }
    mf_free(path);
    return status;
}

mf_status mf_tokenizer_open_dir(const char *dir, mf_tokenizer **out, mf_error *err)
{
    *out = NULL;
    char *path = mf_path_join(dir, "tokenizer.json"), *config_path = mf_path_join(dir, "tokenizer_config.json");
    mf_status status = MF_OK;
    if (!path || !config_path) {
        status = no_memory(err);
    } else if (mf_path_exists(path) || (!mf_path_exists(config_path) && !mf_tokenizer_in_dir(dir))) {
        /* With none of them, the message is about the file that nearly all models have. */
        status = mf_tokenizer_open(path, out, err);
    } else {
        json_t *config = NULL;
        status = mf_json_load(config_path, MAX_CONFIG_BYTES, NULL, &config, err);
        if (status == MF_OK) {
            status = open_tiktoken(dir, config, config_path, out, err);
        }
        json_decref(config);
    }
    mf_free(path);
    mf_free(config_path);
    return status;
}
