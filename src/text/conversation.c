/* conversation.c - see conversation.h. */
#include "text/conversation.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "text/conversation_plain.h"
#include "text/jinja_text.h"

/* Stands behind the last message's content while a text that is to be continued is rendered; its blank shows whether
 * the template trims contents.  transformers does the same. */
static const char continue_tag[] = "CONTINUE_FINAL_MESSAGE_TAG ";

static mf_status no_memory(mf_error *err)
{
    return mf_fail(err, MF_ERR_NOMEM, "out of memory");
}

/* transformers always defines these four, as none where nothing was given. */
static json_t *make_variables(const mf_prompt *prompt, const mf_conversation *c, json_t *messages)
{
    json_t *variables = prompt->special_tokens ? mf_json_copy(prompt->special_tokens) : json_object();
    if (!variables || (c->variables && json_object_update(variables, c->variables) != 0) ||
        json_object_set(variables, "messages", messages) != 0 ||
        json_object_set_new(variables, "tools", c->tools ? json_incref(c->tools) : json_null()) != 0 ||
        json_object_set_new(variables, "documents", json_null()) != 0 ||
        json_object_set_new(variables, "add_generation_prompt", json_boolean(c->add_generation_prompt)) != 0) {
        json_decref(variables);
        return NULL;
    }
    return variables;
}

static mf_status render(const mf_prompt *prompt, const mf_conversation *c, json_t *messages, mf_buffer *text,
                        mf_error *err)
{
    const mf_chat_template *chat_template = c->chat_template ? c->chat_template : prompt->chat_template;
    if (!chat_template) {
        return mf_fail(err, MF_ERR_INVALID, "the model has no chat template");
    }
    json_t *variables = make_variables(prompt, c, messages);
    if (!variables) {
        return no_memory(err);
    }
    mf_template_limits limits = { .output_bytes = prompt->max_text_bytes };
    mf_status status = mf_chat_template_render(chat_template, variables, &limits, text, err);
    json_decref(variables);
    return status;
}

/* The messages with the tag behind the last one's content; a new reference.  *content_size: of that content, stripped.
 */
static json_t *tagged_messages(json_t *messages)
{
    size_t last = json_array_size(messages);
    const json_t *final = json_array_get(messages, last - 1);
    const json_t *content = json_object_get(final, "content");
    mf_buffer text = { 0 };
    json_t *copy = mf_json_copy(messages), *message = mf_json_copy(final), *tagged = NULL;
    if (mf_buffer_append(&text, json_string_value(content), json_string_length(content)) == MF_OK &&
        mf_buffer_append_text(&text, continue_tag) == MF_OK) {
        tagged = json_stringn(mf_buffer_text(&text), text.size);
    }
    mf_buffer_close(&text);
    bool ok = copy && message && tagged && json_object_set(message, "content", tagged) == 0 &&
              json_array_set(copy, last - 1, message) == 0;
    json_decref(message);
    json_decref(tagged);
    if (!ok) {
        json_decref(copy);
        return NULL;
    }
    return copy;
}

static const char *find_last(const mf_buffer *text, size_t from, const char *part, size_t size)
{
    for (size_t at = text->size; at >= from + size; at--) {
        if (memcmp(text->data + at - size, part, size) == 0) {
            return text->data + at - size;
        }
    }
    return NULL;
}

/* Cuts the text where the tag begins; when the template took the tag's blank, it would have taken the content's too. */
static mf_status cut_at_tag(mf_buffer *text, size_t from, mf_error *err)
{
    size_t stripped = sizeof continue_tag - 2;
    const char *tag = find_last(text, from, continue_tag, stripped);
    if (!tag) {
        return mf_fail(err, MF_ERR_INVALID,
                       "continue_final_message is set but the final message does not appear in the chat after applying "
                       "the chat template");
    }
    size_t end = (size_t)(tag - text->data);
    bool trimmed = end + stripped >= text->size || text->data[end + stripped] != ' ';
    while (trimmed && end > from) {
        size_t before = end;
        if (!jinja_is_space(jinja_prev_char(text->data, &before))) {
            break;
        }
        end = before;
    }
    text->size = end;
    text->data[end] = '\0';
    return MF_OK;
}

mf_status mf_conversation_render(const mf_prompt *prompt, const mf_conversation *c, mf_buffer *text, mf_error *err)
{
    if (!c->continue_final_message) {
        return render(prompt, c, c->messages, text, err);
    }
    if (!json_is_string(json_object_get(json_array_get(c->messages, json_array_size(c->messages) - 1), "content"))) {
        return mf_fail(err, MF_ERR_INVALID, "continue_final_message needs a last message with text");
    }
    json_t *messages = tagged_messages(c->messages);
    if (!messages) {
        return no_memory(err);
    }
    size_t before = text->size;
    mf_status status = render(prompt, c, messages, text, err);
    json_decref(messages);
    if (status == MF_OK) {
        status = cut_at_tag(text, before, err);
    }
    if (status != MF_OK && text->data) {
        text->size = before;
        text->data[before] = '\0';
    }
    return status;
}

mf_status mf_conversation_encode(const mf_prompt *prompt, const mf_conversation *c, mf_ids *ids, mf_error *err)
{
    mf_buffer text = { .limit = prompt->max_text_bytes };
    mf_plain_places places = { 0 };
    mf_status status = mf_conversation_render(prompt, c, &text, err);
    if (status == MF_OK) {
        status = mf_conversation_find_plain(prompt, c, &text, &places, err);
    }
    if (status == MF_OK) {
        status = mf_tokenizer_encode_mixed(prompt->tokenizer, mf_buffer_text(&text), text.size,
                                           c->add_special_tokens ? MF_ENCODE_ADD_SPECIAL : 0, places.at, places.count,
                                           ids, err);
    }
    mf_free(places.at);
    mf_buffer_close(&text);
    return status;
}
