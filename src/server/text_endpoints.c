/* text_endpoints.c - see text_endpoints.h. */
#include "server/text_endpoints.h"

#include <string.h>

#include "base/sys.h"
#include "server/api_messages.h"
#include "server/tool_json.h"
#include "text/conversation.h"

static bool bool_or(const mf_field_value *value, bool otherwise)
{
    return value->json ? value->integer != 0 : otherwise;
}

static mf_status read_body(const mf_serve_model *model, const char *body, size_t size, unsigned where,
                           json_t **document, mf_field_value *values, mf_api_error *error)
{
    MF_TRY(mf_body_parse(body, size, document, error));
    MF_TRY(mf_fields_read(*document, where, model->vocab_size, values, error));
    const json_t *name = values[MF_FIELD_ID_MODEL].json;
    return name ? mf_api_check_model(model, json_string_value(name), error) : MF_OK;
}

/* ---- /tokenize ------------------------------------------------------------------------------------------------------
 */

static mf_status encode_chat(const mf_serve_model *model, const mf_field_value *values, mf_ids *ids,
                             mf_api_error *error)
{
    /* As a chat request is read and prepared, so that the two never differ. */
    mf_api_request q = { .kind = MF_API_CHAT };
    mf_field_value chat[MF_NUM_FIELDS];
    memcpy(chat, values, sizeof chat);
    mf_chat_template *own = NULL;
    mf_error err = { 0 };
    mf_status status = mf_api_read_chat(&q, model, chat, error);
    if (status == MF_OK && q.chat_template &&
        mf_chat_template_parse(q.chat_template, strlen(q.chat_template), "chat_template", &own, &err) != MF_OK) {
        status = mf_api_fail_with(error, "chat_template", &err);
    }
    mf_conversation conversation = { .messages = q.messages,
                                     .tools = q.tools,
                                     .variables = q.chat_template_kwargs,
                                     .chat_template = own,
                                     .add_generation_prompt = q.add_generation_prompt,
                                     .continue_final_message = q.continue_final_message,
                                     .add_special_tokens =
                                         bool_or(&values[MF_FIELD_ID_TOKENIZE_ADD_SPECIAL_TOKENS], false) };
    if (status == MF_OK && mf_conversation_encode(model->prompt, &conversation, ids, &err) != MF_OK) {
        status = mf_api_fail_with(error, "messages", &err);
    }
    mf_chat_template_close(&own);
    return status;
}

static mf_status encode_prompt(const mf_serve_model *model, const mf_field_value *values, mf_ids *ids,
                               mf_api_error *error)
{
    const json_t *prompt = values[MF_FIELD_ID_TOKENIZE_PROMPT].json;
    mf_error err = { 0 };
    unsigned flags = bool_or(&values[MF_FIELD_ID_TOKENIZE_ADD_SPECIAL_TOKENS], true) ? MF_ENCODE_ADD_SPECIAL : 0;
    if (mf_tokenizer_encode(model->prompt->tokenizer, json_string_value(prompt), json_string_length(prompt), flags, ids,
                            &err) != MF_OK) {
        return mf_api_fail_with(error, "prompt", &err);
    }
    return MF_OK;
}

static mf_status write_tokens(const mf_serve_model *model, const mf_ids *ids, bool with_text, mf_buffer *out)
{
    MF_TRY(mf_buffer_printf(out, "{\"count\": %zu, \"max_model_len\": %lld, \"tokens\": [", ids->size,
                            (long long)model->max_model_len));
    for (size_t i = 0; i < ids->size; i++) {
        MF_TRY(mf_buffer_printf(out, i ? ", %d" : "%d", ids->data[i]));
    }
    MF_TRY(mf_buffer_append_text(out, with_text ? "], \"token_strs\": [" : "], \"token_strs\": null}"));
    for (size_t i = 0; with_text && i < ids->size; i++) {
        const char *text = mf_tokenizer_token_text(model->prompt->tokenizer, ids->data[i]);
        MF_TRY(mf_buffer_append_text(out, i ? ", " : ""));
        MF_TRY(mf_json_write_string(text ? text : "", text ? strlen(text) : 0, out));
    }
    return with_text ? mf_buffer_append_text(out, "]}") : MF_OK;
}

mf_status mf_text_tokenize(const mf_serve_model *model, const char *body, size_t size, mf_buffer *out,
                           mf_api_error *error)
{
    mf_field_value values[MF_NUM_FIELDS];
    json_t *document = NULL;
    mf_ids ids = { 0 };
    mf_status status;
    MF_TRY_GOTO(read_body(model, body, size, MF_IN_TOKENIZE, &document, values, error), done);
    bool chat = values[MF_FIELD_ID_MESSAGES].json != NULL, text = values[MF_FIELD_ID_TOKENIZE_PROMPT].json != NULL;
    if (chat == text) {
        status = mf_api_fail(error, 400, chat ? "messages" : "prompt",
                             "Either prompt or messages must be given, got %s.", chat ? "both" : "neither");
        goto done;
    }
    MF_TRY_GOTO(chat ? encode_chat(model, values, &ids, error) : encode_prompt(model, values, &ids, error), done);
    if (write_tokens(model, &ids, bool_or(&values[MF_FIELD_ID_RETURN_TOKEN_STRS], false), out) != MF_OK) {
        status = mf_api_no_memory(error);
    }
done:
    mf_ids_close(&ids);
    json_decref(document);
    return status;
}

/* ---- /detokenize ----------------------------------------------------------------------------------------------------
 */

mf_status mf_text_detokenize(const mf_serve_model *model, const char *body, size_t size, mf_buffer *out,
                             mf_api_error *error)
{
    mf_field_value values[MF_NUM_FIELDS];
    json_t *document = NULL;
    mf_ids ids = { 0 };
    mf_buffer text = { 0 };
    mf_error err = { 0 };
    mf_status status;
    MF_TRY_GOTO(read_body(model, body, size, MF_IN_DETOKENIZE, &document, values, error), done);
    const json_t *tokens = values[MF_FIELD_ID_DETOKENIZE_TOKENS].json;
    ids.size = json_array_size(tokens);
    ids.data = mf_alloc_array(ids.size, sizeof *ids.data);
    if (!ids.data) {
        status = mf_api_no_memory(error);
        goto done;
    }
    for (size_t i = 0; i < ids.size; i++) {
        int64_t id = 0;
        mf_json_to_integer(json_array_get(tokens, i), &id);
        ids.data[i] = (int32_t)id;
    }
    if (mf_tokenizer_decode(model->prompt->tokenizer, ids.data, ids.size, false, &text, &err) != MF_OK) {
        status = mf_api_fail_with(error, "tokens", &err);
    } else if (mf_buffer_append_text(out, "{\"prompt\": ") != MF_OK ||
               mf_json_write_string(mf_buffer_text(&text), text.size, out) != MF_OK ||
               mf_buffer_append_text(out, "}") != MF_OK) {
        status = mf_api_no_memory(error);
    }
done:
    mf_buffer_close(&text);
    mf_ids_close(&ids);
    json_decref(document);
    return status;
}

/* ---- /tokenizer_info ------------------------------------------------------------------------------------------------
 */

static mf_status write_member(mf_buffer *out, const char *name, const char *text, size_t size)
{
    MF_TRY(mf_buffer_printf(out, "\"%s\": ", name));
    MF_TRY(text ? mf_json_write_string(text, size, out) : mf_buffer_append_text(out, "null"));
    return mf_buffer_append_text(out, ", ");
}

static mf_status write_info(const mf_serve_model *model, mf_buffer *out)
{
    static const char *const tokens[] = { "bos_token", "eos_token", "pad_token", "unk_token" };
    const mf_prompt *prompt = model->prompt;
    size_t size = 0;
    MF_TRY(mf_buffer_append_text(out, "{"));
    const char *name = prompt->tokenizer_class;
    MF_TRY(write_member(out, "tokenizer_class", name, name ? strlen(name) : 0));
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        const json_t *token = json_object_get(prompt->special_tokens, tokens[i]);
        MF_TRY(write_member(out, tokens[i], json_string_value(token), json_string_length(token)));
    }
    const char *source = prompt->chat_template ? mf_chat_template_source(prompt->chat_template, &size) : NULL;
    MF_TRY(write_member(out, "chat_template", source, size));
    return mf_buffer_printf(out, "\"vocab_size\": %d, \"model_max_length\": %lld}",
                            mf_tokenizer_vocab_size(prompt->tokenizer), (long long)model->max_model_len);
}

mf_status mf_text_tokenizer_info(const mf_serve_model *model, mf_buffer *out, mf_api_error *error)
{
    return write_info(model, out) == MF_OK ? MF_OK : mf_api_no_memory(error);
}
