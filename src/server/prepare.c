/* prepare.c - from a checked request to ids, limits and a guide: see prepare.h. */
#include "server/prepare.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "server/fields.h"
#include "server/tool_schema.h"
#include "text/conversation.h"
#include "text/jinja_text.h"

typedef struct preparation {
    const mf_serve_model *model;
    const mf_api_request *request;
    mf_prepared *prepared;
    mf_api_error *error;
} preparation;

static const char *prompt_param(const preparation *p)
{
    return p->request->kind == MF_API_CHAT ? "messages" : "prompt";
}

static mf_status forward(const preparation *p, const char *param, const mf_error *err)
{
    return mf_api_fail_with(p->error, param, err);
}

/* ---- prompts to ids -------------------------------------------------------------------------------------------------
 */

static mf_status too_long(const preparation *p, const char *at_least, int64_t in_prompt, int64_t in_completion)
{
    return mf_api_fail(p->error, 400, prompt_param(p),
                       "This model's maximum context length is %lld tokens. However, you requested %s%lld tokens "
                       "(%s%lld in the prompt, "
                       "%lld in the completion).",
                       (long long)p->model->max_model_len, at_least, (long long)(in_prompt + in_completion), at_least,
                       (long long)in_prompt, (long long)in_completion);
}

static int64_t longest_token(const mf_tokenizer *tok)
{
    int64_t longest = 1;
    for (int32_t id = 0; id < mf_tokenizer_vocab_size(tok); id++) {
        size_t size;
        mf_tokenizer_token_bytes(tok, id, &size);
        longest = (int64_t)size > longest ? (int64_t)size : longest;
    }
    return longest;
}

/* A text that cannot fit, whatever its tokens are, is refused before the work of finding them: normalising makes a text
 * at most three times shorter. */
static mf_status check_text_size(const preparation *p, size_t size)
{
    if (p->request->truncate_prompt_tokens != 0 || size <= p->model->prompt->max_text_bytes) {
        return MF_OK;
    }
    int64_t least = (int64_t)size / (3 * longest_token(p->model->prompt->tokenizer));
    int64_t completion = p->request->max_tokens >= 0 ? p->request->max_tokens : 1;
    return least + completion > p->model->max_model_len ? too_long(p, "at least ", least, completion) : MF_OK;
}

static mf_status encode_text(const preparation *p, const mf_api_prompt *prompt, mf_ids *ids)
{
    mf_error err = { 0 };
    MF_TRY(check_text_size(p, prompt->text_size));
    unsigned flags = p->request->add_special_tokens ? MF_ENCODE_ADD_SPECIAL : 0;
    if (mf_tokenizer_encode(p->model->prompt->tokenizer, prompt->text, prompt->text_size, flags, ids, &err) != MF_OK) {
        return forward(p, "prompt", &err);
    }
    return MF_OK;
}

static mf_status copy_ids(const preparation *p, const mf_api_prompt *prompt, mf_ids *ids)
{
    ids->data = mf_alloc_array((size_t)prompt->num_ids, sizeof *ids->data);
    if (!ids->data) {
        return mf_api_no_memory(p->error);
    }
    memcpy(ids->data, prompt->ids, (size_t)prompt->num_ids * sizeof *ids->data);
    ids->size = ids->capacity = (size_t)prompt->num_ids;
    return MF_OK;
}

/* The template's variables beside messages and tools; *out is a new reference or NULL. */
static mf_status make_variables(const preparation *p, json_t **out)
{
    const mf_api_request *q = p->request;
    *out = q->chat_template_kwargs ? json_incref(q->chat_template_kwargs) : NULL;
    if (q->reasoning_effort) {
        json_t *copy = *out ? mf_json_copy(*out) : json_object();
        json_decref(*out);
        *out = copy;
        if (!copy || json_object_set_new(copy, "reasoning_effort", json_string(q->reasoning_effort)) != 0) {
            json_decref(copy);
            *out = NULL;
            return mf_api_no_memory(p->error);
        }
    }
    return MF_OK;
}

static mf_status encode_chat(const preparation *p, mf_ids *ids)
{
    const mf_api_request *q = p->request;
    mf_error err = { 0 };
    mf_chat_template *own = NULL;
    json_t *variables = NULL;
    mf_status status = make_variables(p, &variables);
    if (status == MF_OK && q->chat_template &&
        mf_chat_template_parse(q->chat_template, strlen(q->chat_template), "chat_template", &own, &err) != MF_OK) {
        status = forward(p, "chat_template", &err);
    }
    mf_conversation conversation = { .messages = q->messages,
                                     .tools = q->tools,
                                     .variables = variables,
                                     .chat_template = own,
                                     .add_generation_prompt = q->add_generation_prompt,
                                     .continue_final_message = q->continue_final_message,
                                     .add_special_tokens = q->add_special_tokens };
    if (status == MF_OK && mf_conversation_encode(p->model->prompt, &conversation, ids, &err) != MF_OK) {
        status = forward(p, own ? "chat_template" : "messages", &err);
    }
    json_decref(variables);
    mf_chat_template_close(&own);
    return status;
}

/* ---- lengths --------------------------------------------------------------------------------------------------------
 */

static void truncate(const preparation *p, mf_ids *ids)
{
    int64_t keep = p->request->truncate_prompt_tokens;
    if (keep < 0) {
        keep = p->model->max_model_len - (p->request->max_tokens >= 0 ? p->request->max_tokens : 1);
    }
    if (keep > 0 && (int64_t)ids->size > keep) {
        memmove(ids->data, ids->data + ids->size - (size_t)keep, (size_t)keep * sizeof *ids->data);
        ids->size = (size_t)keep;
    }
}

static mf_status resolve_max_tokens(const preparation *p, int64_t num_prompt, int32_t *max_tokens)
{
    int64_t room = p->model->max_model_len - num_prompt;
    int64_t wanted = p->request->max_tokens;
    if (num_prompt < 1) {
        return mf_api_fail(p->error, 400, prompt_param(p), "%s: the prompt has no tokens, expected 1 or more.",
                           prompt_param(p));
    }
    if (wanted < 0) {
        wanted = room < 1 ? 1 : room;
        if (p->model->default_max_tokens > 0 && p->model->default_max_tokens < wanted) {
            wanted = p->model->default_max_tokens;
        }
    }
    if (wanted > room) {
        return too_long(p, "", num_prompt, wanted);
    }
    if (p->request->sampling.min_tokens > wanted) {
        return mf_api_fail(p->error, 400, "min_tokens",
                           "min_tokens must be less than or equal to max_tokens=%lld, got %d.", (long long)wanted,
                           p->request->sampling.min_tokens);
    }
    *max_tokens = (int32_t)wanted;
    return MF_OK;
}

/* ---- echo -----------------------------------------------------------------------------------------------------------
 */

/* Chat's echo is the last message, when it is of the role that answers. */
static const json_t *chat_echo(const mf_api_request *q)
{
    const json_t *last = json_array_get(q->messages, json_array_size(q->messages) - 1);
    const char *role = json_string_value(json_object_get(last, "role"));
    bool same = role && (!q->add_generation_prompt || strcmp(role, "assistant") == 0);
    return same ? json_object_get(last, "content") : NULL;
}

static mf_status make_echo(const preparation *p, int32_t index, bool cut)
{
    const mf_api_request *q = p->request;
    mf_prepared_prompt *out = &p->prepared->prompts[index];
    mf_buffer text = { 0 };
    mf_error err = { 0 };
    mf_status status = MF_OK;
    if (q->kind == MF_API_CHAT) {
        const json_t *content = chat_echo(q);
        status = mf_buffer_append(&text, content ? json_string_value(content) : "", json_string_length(content));
    } else if (q->prompts[index].text && !cut) {
        status = mf_buffer_append(&text, q->prompts[index].text, q->prompts[index].text_size);
    } else if (mf_tokenizer_decode(p->model->prompt->tokenizer, out->ids.data, out->ids.size, false, &text, &err) !=
               MF_OK) {
        mf_buffer_close(&text);
        return forward(p, "prompt", &err);
    }
    if (status == MF_OK) {
        status = mf_buffer_append(&text, "", 0);
        out->echo_text = text.data ? text.data : mf_strdup("");
        out->echo_size = text.size;
    }
    if (status != MF_OK || !out->echo_text) {
        if (!out->echo_text) {
            mf_buffer_close(&text);
        }
        return mf_api_no_memory(p->error);
    }
    return MF_OK;
}

/* A template that opens the reasoning leaves its tag, and at most some white space, at the end. */
static mf_status look_for_reasoning(const preparation *p, mf_prepared_prompt *out)
{
    static const char *const tags[] = { "<think>", "<|channel|>analysis<|message|>" };
    size_t n = out->ids.size < 16 ? out->ids.size : 16;
    mf_buffer tail = { 0 };
    mf_error err = { 0 };
    mf_status status =
        mf_tokenizer_decode(p->model->prompt->tokenizer, out->ids.data + out->ids.size - n, n, false, &tail, &err);
    if (status == MF_OK) {
        size_t end = tail.size;
        while (end > 0 && tail.data[end - 1] && strchr(" \t\r\n", tail.data[end - 1])) {
            end--;
        }
        for (size_t i = 0; i < 2; i++) {
            size_t size = strlen(tags[i]);
            out->opens_reasoning |= end >= size && memcmp(tail.data + end - size, tags[i], size) == 0;
        }
    }
    mf_buffer_close(&tail);
    return status == MF_OK ? MF_OK : forward(p, "messages", &err);
}

static mf_status prepare_prompt(const preparation *p, int32_t index)
{
    const mf_api_request *q = p->request;
    mf_prepared_prompt *out = &p->prepared->prompts[index];
    const mf_api_prompt *prompt = q->kind == MF_API_CHAT ? NULL : &q->prompts[index];
    MF_TRY(!prompt        ? encode_chat(p, &out->ids)
           : prompt->text ? encode_text(p, prompt, &out->ids)
                          : copy_ids(p, prompt, &out->ids));
    size_t whole = out->ids.size;
    truncate(p, &out->ids);
    MF_TRY(resolve_max_tokens(p, (int64_t)out->ids.size, &out->max_tokens));
    if (!prompt && q->add_generation_prompt) {
        MF_TRY(look_for_reasoning(p, out));
    }
    return q->echo ? make_echo(p, index, out->ids.size < whole) : MF_OK;
}

/* ---- bad words ------------------------------------------------------------------------------------------------------
 */

static const char *strip_left(const char *text)
{
    size_t size = strlen(text), at = 0;
    while (at < size) {
        size_t next = at;
        if (!jinja_is_space(jinja_next_char(text, size, &next))) {
            break;
        }
        at = next;
    }
    return text + at;
}

/* vLLM's rule: a word is forbidden as it begins a text, and as it follows a space where that is as many tokens and
 * another first one. */
static mf_status add_bad_word(const preparation *p, const char *word, mf_ids *all)
{
    mf_prepared *out = p->prepared;
    mf_error err = { 0 };
    char spaced[MF_FIELD_MAX_STRING + 2] = " ";
    word = strip_left(word);
    size_t size = strlen(word), before = all->size;
    if (size == 0) {
        return mf_api_fail(p->error, 400, "bad_words", "bad_words cannot contain a blank string, got one.");
    }
    memcpy(spaced + 1, word, size + 1);
    if (mf_tokenizer_encode(p->model->prompt->tokenizer, word, size, 0, all, &err) != MF_OK) {
        return forward(p, "bad_words", &err);
    }
    size_t length = all->size - before;
    if (length == 0) {
        return mf_api_fail(p->error, 400, "bad_words", "bad_words: a word has no tokens.");
    }
    out->bad_word_lengths[out->sampling.num_bad_words++] = (int32_t)length;
    if (mf_tokenizer_encode(p->model->prompt->tokenizer, spaced, size + 1, 0, all, &err) != MF_OK) {
        return forward(p, "bad_words", &err);
    }
    if (all->size - before - length == length && all->data[before] != all->data[before + length]) {
        out->bad_word_lengths[out->sampling.num_bad_words++] = (int32_t)length;
    } else {
        all->size = before + length;
    }
    return MF_OK;
}

static mf_status prepare_bad_words(const preparation *p)
{
    mf_prepared *out = p->prepared;
    const mf_api_request *q = p->request;
    if (q->num_bad_words == 0) {
        return MF_OK;
    }
    mf_ids all = { 0 };
    mf_status status = MF_OK;
    out->bad_word_lengths = mf_alloc_array(2 * (size_t)q->num_bad_words, sizeof *out->bad_word_lengths);
    if (!out->bad_word_lengths) {
        return mf_api_no_memory(p->error);
    }
    for (int32_t i = 0; i < q->num_bad_words && status == MF_OK; i++) {
        status = add_bad_word(p, q->bad_words[i], &all);
    }
    out->bad_word_ids = all.data;
    out->sampling.bad_words = all.data;
    out->sampling.bad_word_lengths = out->bad_word_lengths;
    return status;
}

/* ---- constraints ----------------------------------------------------------------------------------------------------
 */

static mf_status compile_choice(const preparation *p, mf_error *err)
{
    json_t *list = NULL;
    MF_TRY(mf_json_parse(p->request->constraint_text, strlen(p->request->constraint_text), "choice", NULL, &list, err));
    size_t n = json_array_size(list);
    const char **choices = mf_alloc_array(n, sizeof *choices);
    mf_status status = choices ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "out of memory");
    for (size_t i = 0; choices && i < n; i++) {
        choices[i] = json_string_value(json_array_get(list, i));
    }
    if (choices) {
        status = mf_guide_compile_choice(p->model->guide_vocab, choices, n, NULL, &p->prepared->guide, err);
    }
    mf_free(choices);
    json_decref(list);
    return status;
}

static mf_status compile_tools(const preparation *p, mf_error *err)
{
    const mf_api_request *q = p->request;
    mf_buffer schema = { .limit = 4 << 20 };
    mf_guide_limits limits = { .source_bytes = 1 << 20, .depth = 80 };
    const char *name = q->tool_choice == MF_TOOLS_NAMED ? q->tool_name : NULL;
    mf_status status = mf_tool_schema_write(q->tools, name, q->parallel_tool_calls, &schema, err);
    if (status == MF_OK) {
        status = mf_guide_compile_json_schema(p->model->guide_vocab, mf_buffer_text(&schema), schema.size, &limits,
                                              &p->prepared->guide, err);
    }
    mf_buffer_close(&schema);
    return status;
}

static mf_status prepare_guide(const preparation *p)
{
    const mf_api_request *q = p->request;
    const mf_guide_vocab *vocab = p->model->guide_vocab;
    mf_guide_program **guide = &p->prepared->guide;
    mf_error err = { 0 };
    mf_status status = MF_OK;
    bool tools = q->tool_choice == MF_TOOLS_REQUIRED || q->tool_choice == MF_TOOLS_NAMED;
    const char *param = tools                                                                ? "tools"
                        : json_is_object(json_object_get(q->document, "structured_outputs")) ? "structured_outputs"
                                                                                             : "response_format";
    if (!tools && q->constraint == MF_CONSTRAINT_NONE) {
        return MF_OK;
    }
    if (!vocab) {
        return mf_api_fail(p->error, 501, param, "%s: this server cannot constrain what this model writes.", param);
    }
    const char *text = q->constraint_text;
    size_t size = text ? strlen(text) : 0;
    if (tools) {
        status = compile_tools(p, &err);
    } else {
        switch (q->constraint) {
        case MF_CONSTRAINT_NONE:
            break;
        case MF_CONSTRAINT_JSON_OBJECT:
            status = mf_guide_compile_json_object(vocab, guide, &err);
            break;
        case MF_CONSTRAINT_JSON_SCHEMA:
            status = mf_guide_compile_json_schema(vocab, text, size, NULL, guide, &err);
            break;
        case MF_CONSTRAINT_REGEX:
            status = mf_guide_compile_regex(vocab, text, size, NULL, guide, &err);
            break;
        case MF_CONSTRAINT_CHOICE:
            status = compile_choice(p, &err);
            break;
        case MF_CONSTRAINT_GRAMMAR:
            status = mf_guide_compile_grammar(vocab, text, size, NULL, guide, &err);
            break;
        }
    }
    return status == MF_OK ? MF_OK : forward(p, param, &err);
}

/* ---- the whole ------------------------------------------------------------------------------------------------------
 */

static mf_status prepare_all(const preparation *p)
{
    mf_prepared *out = p->prepared;
    out->prompts = mf_alloc_array((size_t)p->request->num_prompts, sizeof *out->prompts);
    if (!out->prompts) {
        return mf_api_no_memory(p->error);
    }
    out->num_prompts = p->request->num_prompts;
    for (int32_t i = 0; i < out->num_prompts; i++) {
        MF_TRY(prepare_prompt(p, i));
    }
    MF_TRY(prepare_bad_words(p));
    return prepare_guide(p);
}

mf_status mf_prepare(const mf_serve_model *model, const mf_api_request *request, mf_prepared **out, mf_api_error *error)
{
    *out = NULL;
    mf_prepared *prepared = mf_alloc_zero(sizeof *prepared);
    if (!prepared) {
        return mf_api_no_memory(error);
    }
    prepared->sampling = request->sampling;
    preparation p = { model, request, prepared, error };
    mf_status status = prepare_all(&p);
    if (status != MF_OK) {
        mf_prepared_close(&prepared);
        return status;
    }
    *out = prepared;
    return MF_OK;
}

void mf_prepared_close(mf_prepared **prepared)
{
    mf_prepared *p = *prepared;
    if (!p) {
        return;
    }
    for (int32_t i = 0; i < p->num_prompts; i++) {
        mf_ids_close(&p->prompts[i].ids);
        mf_free(p->prompts[i].echo_text);
    }
    if (p->guide) {
        mf_guide_program_close(&p->guide);
    }
    mf_free(p->prompts);
    mf_free(p->bad_word_ids);
    mf_free(p->bad_word_lengths);
    mf_free(p);
    *prepared = NULL;
}
