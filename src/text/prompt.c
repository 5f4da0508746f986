/* prompt.c - see prompt.h. */
#include "text/prompt.h"

#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "text/conversation.h"
#include "text/tokenizer_dir.h"

enum { MAX_TEMPLATE_BYTES = 1 << 20, MAX_CONFIG_BYTES = 64 << 20 };

static mf_status open_template_file(const char *path, mf_prompt *prompt, mf_error *err)
{
    mf_file file;
    MF_TRY(mf_file_open(path, false, MAX_TEMPLATE_BYTES, &file, err));
    mf_status status = mf_chat_template_parse((const char *)file.data, file.size, path, &prompt->chat_template, err);
    mf_file_close(&file);
    return status;
}

/* A name without a folder that is no file is a built-in template's. */
static mf_status open_named(const char *name, mf_prompt *prompt, mf_error *err)
{
    prompt->builtin = mf_builtin_template_find(name);
    if (strchr(name, '/') || mf_path_exists(name)) {
        prompt->builtin = NULL;
        return open_template_file(name, prompt, err);
    }
    if (!prompt->builtin) {
        char known[512];
        mf_builtin_template_list(known, sizeof known);
        return mf_fail(err, MF_ERR_INVALID, "chat template %.200s: expected a file, or a built-in one (%s); got neither", name,
                       known);
    }
    return MF_OK;
}

static mf_status open_template(const char *dir, const char *name, const char *const *fallbacks, mf_prompt *prompt,
                               mf_error *err)
{
    MF_TRY(mf_chat_template_load(dir, &prompt->chat_template, &prompt->special_tokens, err));
    if (name) {
        mf_chat_template_close(&prompt->chat_template);
        MF_TRY(open_named(name, prompt, err));
    } else if (!prompt->chat_template) {
        prompt->builtin = mf_builtin_template_choose(fallbacks, prompt->tokenizer);
        prompt->is_fallback = prompt->builtin != NULL;
    }
    if (!prompt->builtin) {
        return MF_OK;
    }
    const char *source = prompt->builtin->source;
    return mf_chat_template_parse(source, strlen(source), prompt->builtin->name, &prompt->chat_template, err);
}

static void add_stop(mf_prompt *prompt, const char *token)
{
    const int32_t id = token ? mf_tokenizer_token_id(prompt->tokenizer, token) : -1;
    for (int32_t i = 0; i < prompt->num_stop_token_ids; i++) {
        if (prompt->stop_token_ids[i] == id) {
            return;
        }
    }
    if (id >= 0 && prompt->num_stop_token_ids < MF_PROMPT_MAX_STOPS) {
        prompt->stop_token_ids[prompt->num_stop_token_ids++] = id;
    }
}

/* config.json of many chat models names the base model's end alone; their tokenizer names the turn's. */
static void find_stops(mf_prompt *prompt)
{
    add_stop(prompt, json_string_value(json_object_get(prompt->special_tokens, "eos_token")));
    for (const char *const *stop = prompt->builtin ? prompt->builtin->stops : NULL; stop && *stop; stop++) {
        add_stop(prompt, *stop);
    }
}

static mf_status read_class(const char *dir, mf_prompt *prompt, mf_error *err)
{
    json_t *config = NULL;
    char *path = mf_path_join(dir, "tokenizer_config.json");
    mf_status status = path ? MF_OK : MF_ERR_NOMEM;
    if (path && mf_path_is_file(path)) {
        status = mf_json_load(path, MAX_CONFIG_BYTES, NULL, &config, err);
    }
    const char *name = json_string_value(json_object_get(config, "tokenizer_class"));
    if (status == MF_OK && name) {
        prompt->tokenizer_class = mf_strdup(name);
        status = prompt->tokenizer_class ? MF_OK : MF_ERR_NOMEM;
    }
    json_decref(config);
    mf_free(path);
    return status == MF_ERR_NOMEM ? mf_fail(err, status, "out of memory") : status;
}

mf_status mf_prompt_open(const char *dir, const char *chat_template, const char *const *fallbacks, int64_t max_model_len,
                         mf_prompt *prompt, mf_error *err)
{
    *prompt = (mf_prompt){ .max_text_bytes = 4 * (size_t)max_model_len + 65536 };
    mf_status status = mf_tokenizer_open_dir(dir, &prompt->tokenizer, err);
    if (status == MF_OK) {
        status = open_template(dir, chat_template, fallbacks, prompt, err);
    }
    if (status == MF_OK) {
        find_stops(prompt);
        status = read_class(dir, prompt, err);
    }
    if (status != MF_OK) {
        mf_prompt_close(prompt);
    }
    return status;
}

void mf_prompt_close(mf_prompt *prompt)
{
    mf_tokenizer_close(&prompt->tokenizer);
    mf_chat_template_close(&prompt->chat_template);
    json_decref(prompt->special_tokens);
    mf_free(prompt->tokenizer_class);
    *prompt = (mf_prompt){ 0 };
}

mf_status mf_prompt_encode_chat(const mf_prompt *prompt, json_t *messages, mf_ids *ids, mf_error *err)
{
    if (!prompt->chat_template) {
        return mf_fail(err, MF_ERR_INVALID, "the model has no chat template; use --raw, or --chat-template FILE|NAME");
    }
    mf_conversation conversation = { .messages = messages, .add_generation_prompt = true };
    return mf_conversation_encode(prompt, &conversation, ids, err);
}

mf_status mf_prompt_encode_raw(const mf_prompt *prompt, const char *text, size_t size, mf_ids *ids, mf_error *err)
{
    return mf_tokenizer_encode(prompt->tokenizer, text, size, MF_ENCODE_ADD_SPECIAL, ids, err);
}
