/* prompt.c - see prompt.h. */
#include "text/prompt.h"

#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "text/conversation.h"
#include "text/tokenizer_dir.h"

enum { MAX_TEMPLATE_BYTES = 1 << 20, MAX_CONFIG_BYTES = 64 << 20 };

static mf_status open_template(const char *dir, const char *template_file, mf_prompt *prompt, mf_error *err)
{
    MF_TRY(mf_chat_template_load(dir, &prompt->chat_template, &prompt->special_tokens, err));
    if (!template_file) {
        return MF_OK;
    }
    mf_chat_template_close(&prompt->chat_template);
    mf_file file;
    MF_TRY(mf_file_open(template_file, false, MAX_TEMPLATE_BYTES, &file, err));
    mf_status status =
        mf_chat_template_parse((const char *)file.data, file.size, template_file, &prompt->chat_template, err);
    mf_file_close(&file);
    return status;
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

mf_status mf_prompt_open(const char *dir, const char *template_file, int64_t max_model_len, mf_prompt *prompt, mf_error *err)
{
    *prompt = (mf_prompt){ .max_text_bytes = 4 * (size_t)max_model_len + 65536 };
    mf_status status = mf_tokenizer_open_dir(dir, &prompt->tokenizer, err);
    if (status == MF_OK) {
        status = open_template(dir, template_file, prompt, err);
    }
    if (status == MF_OK) {
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
        return mf_fail(err, MF_ERR_INVALID, "the model has no chat template; use --raw, or --chat-template FILE");
    }
    mf_conversation conversation = { .messages = messages, .add_generation_prompt = true };
    return mf_conversation_encode(prompt, &conversation, ids, err);
}

mf_status mf_prompt_encode_raw(const mf_prompt *prompt, const char *text, size_t size, mf_ids *ids, mf_error *err)
{
    return mf_tokenizer_encode(prompt->tokenizer, text, size, MF_ENCODE_ADD_SPECIAL, ids, err);
}
