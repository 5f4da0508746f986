/* call_message.c - a chat's text split into content, reasoning and tool calls as it comes: tool_calls.h's pieces into
 * the sequence's buffers.
 *
 * A stream's entries carry the call's index and may be pieces of it; a whole answer's are whole. */
#include "base/random.h"
#include "base/sys.h"
#include "server/calls_impl.h"

void mf_sequence_close_call(mf_sequence *s)
{
    if (s->open_call >= 0) {
        mf_json_out out = { .buffer = &s->calls };
        mf_json_lit(&out, "\"}}");
        s->open_call = -1;
    }
}

static mf_status begin_entry(mf_sequence *s, const mf_answer_piece *piece)
{
    mf_sequence_close_call(s);
    mf_json_out out = { .buffer = &s->calls };
    if (s->calls.size > 0) {
        mf_json_lit(&out, ",");
    }
    mf_json_lit(&out, "{");
    if (s->call->request->stream) {
        mf_json_lit(&out, "\"index\":");
        mf_json_int(&out, piece->index);
        mf_json_lit(&out, ",");
    }
    if (piece->kind == MF_ANSWER_CALL) {
        mf_json_lit(&out, "\"id\":");
        mf_json_cstr(&out, piece->id);
        mf_json_lit(&out, ",\"type\":\"function\",\"function\":{\"name\":");
        mf_json_cstr(&out, piece->name);
        mf_json_lit(&out, ",\"arguments\":\"");
    } else {
        mf_json_lit(&out, "\"function\":{\"arguments\":\"");
    }
    s->open_call = piece->index;
    return out.status;
}

static mf_status take_piece(void *context, const mf_answer_piece *piece)
{
    mf_sequence *s = context;
    mf_json_out calls = { .buffer = &s->calls };
    switch (piece->kind) {
    case MF_ANSWER_CONTENT:
        return mf_buffer_append(&s->text, piece->text, piece->size);
    case MF_ANSWER_REASONING:
        return mf_buffer_append(&s->reasoning, piece->text, piece->size);
    case MF_ANSWER_CALL:
        return begin_entry(s, piece);
    case MF_ANSWER_ARGUMENTS:
        if (s->open_call != piece->index) {
            MF_TRY(begin_entry(s, piece));
        }
        mf_json_escaped(&calls, piece->text, piece->size);
        return calls.status;
    }
    return MF_ERR_INTERNAL;
}

mf_status mf_sequence_open_parser(mf_call *call, mf_sequence *s)
{
    s->open_call = -1;
    if (call->kind != MF_API_CHAT) {
        return MF_OK;
    }
    uint64_t seed = mf_random_mix((uint64_t)mf_now_ns() + (uint64_t)s->index * 0x9e3779b97f4a7c15u);
    mf_answer_options o =
        mf_answer_options_for(call->calls->options.model, call->request, &call->prepared->prompts[s->prompt], seed);
    bool forced = o.choice == MF_TOOLS_REQUIRED || o.choice == MF_TOOLS_NAMED;
    if (!o.calls && !o.reasoning && !forced) {
        return MF_OK;
    }
    bool reads_marks = o.format->syntax == MF_CALL_CHANNELS ? o.reasoning : o.calls;
    s->specials = reads_marks && o.format->written_by_specials ? o.format : NULL;
    return mf_answer_parser_open(&o, take_piece, s, &s->parser);
}

mf_status mf_sequence_take_text(mf_sequence *s)
{
    if (!s->parser) {
        return MF_OK;
    }
    mf_status status = mf_answer_parser_push(s->parser, mf_buffer_text(&s->raw), s->raw.size);
    mf_buffer_clear(&s->raw);
    return status;
}

mf_status mf_sequence_end_text(mf_sequence *s)
{
    if (!s->parser) {
        return MF_OK;
    }
    MF_TRY(mf_sequence_take_text(s));
    return mf_answer_parser_finish(s->parser);
}
