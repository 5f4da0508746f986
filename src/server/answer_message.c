/* answer_message.c - pieces of an answer to one message: see tool_calls.h. */
#include "server/tool_calls.h"

static mf_status set_arguments(mf_answer_message *m)
{
    size_t n = json_array_size(m->calls);
    if (n == 0) {
        return MF_OK;
    }
    json_t *function = json_object_get(json_array_get(m->calls, n - 1), "function");
    json_t *text = json_stringn(mf_buffer_text(&m->arguments), m->arguments.size);
    return text && json_object_set_new(function, "arguments", text) == 0 ? MF_OK : MF_ERR_NOMEM;
}

static mf_status begin_call(mf_answer_message *m, const mf_answer_piece *piece)
{
    MF_TRY(set_arguments(m));
    mf_buffer_clear(&m->arguments);
    if (!m->calls && !(m->calls = json_array())) {
        return MF_ERR_NOMEM;
    }
    json_t *call = json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", piece->id, "type", "function", "function", "name",
                             piece->name, "arguments", "");
    return call && json_array_append_new(m->calls, call) == 0 ? MF_OK : MF_ERR_NOMEM;
}

mf_status mf_answer_message_add(void *message, const mf_answer_piece *piece)
{
    mf_answer_message *m = message;
    switch (piece->kind) {
    case MF_ANSWER_CONTENT:
        return mf_buffer_append(&m->content, piece->text, piece->size);
    case MF_ANSWER_REASONING:
        return mf_buffer_append(&m->reasoning, piece->text, piece->size);
    case MF_ANSWER_ARGUMENTS:
        return mf_buffer_append(&m->arguments, piece->text, piece->size);
    case MF_ANSWER_CALL:
        return begin_call(m, piece);
    }
    return MF_ERR_INTERNAL;
}

json_t *mf_answer_message_json(mf_answer_message *m)
{
    bool no_content = m->content.size == 0 && (m->calls || m->reasoning.size > 0);
    json_t *content = no_content ? json_null() : json_stringn(mf_buffer_text(&m->content), m->content.size);
    json_t *message = json_pack("{s:s, s:o}", "role", "assistant", "content", content);
    bool ok = message && set_arguments(m) == MF_OK;
    if (ok && m->reasoning.size > 0) {
        ok = json_object_set_new(message, "reasoning", json_stringn(m->reasoning.data, m->reasoning.size)) == 0;
    }
    if (ok && m->calls) {
        ok = json_object_set(message, "tool_calls", m->calls) == 0;
    }
    if (!ok) {
        json_decref(message);
        return NULL;
    }
    return message;
}

void mf_answer_message_close(mf_answer_message *m)
{
    mf_buffer_close(&m->content);
    mf_buffer_close(&m->reasoning);
    mf_buffer_close(&m->arguments);
    json_decref(m->calls);
    *m = (mf_answer_message){ .calls = NULL };
}
