/* answer.c - see answer.h. */
#include "server/answer.h"

/* ---- parts --------------------------------------------------------------------------------------------------------
 */

static const char *object_name(mf_api_kind kind, bool stream)
{
    return kind == MF_API_COMPLETION ? "text_completion" : stream ? "chat.completion.chunk" : "chat.completion";
}

mf_status mf_answer_write_head(mf_api_kind kind, bool stream, const char *request_id, int64_t created,
                               const char *model, mf_buffer *head)
{
    mf_json_out out = { .buffer = head };
    mf_json_lit(&out, "{\"id\":\"");
    if (kind == MF_API_COMPLETION) {
        mf_json_lit(&out, "cmpl-");
    } else {
        mf_json_lit(&out, "chatcmpl-");
    }
    mf_json_escaped(&out, request_id, strlen(request_id));
    mf_json_lit(&out, "\",\"object\":");
    mf_json_cstr(&out, object_name(kind, stream));
    mf_json_lit(&out, ",\"created\":");
    mf_json_int(&out, created);
    mf_json_lit(&out, ",\"model\":");
    mf_json_cstr(&out, model);
    return out.status;
}

static void write_logprobs(const mf_answer_choice *c, mf_json_out *out)
{
    mf_json_lit(out, ",\"logprobs\":");
    if (c->logprobs) {
        mf_logprob_lists_write(c->logprobs, out);
    } else {
        mf_json_lit(out, "null");
    }
}

static void write_reasons(const mf_answer_choice *c, mf_json_out *out)
{
    mf_json_lit(out, ",\"finish_reason\":");
    mf_json_cstr(out, c->finish_reason);
    mf_json_lit(out, ",\"stop_reason\":");
    switch (c->stop_kind) {
    case MF_STOP_TEXT:
        mf_json_cstr(out, c->stop_text);
        break;
    case MF_STOP_ID:
        mf_json_int(out, c->stop_id);
        break;
    case MF_STOP_NULL:
        mf_json_lit(out, "null");
        break;
    }
}

static void write_list_of(const mf_buffer *entries, mf_json_out *out)
{
    mf_json_lit(out, "[");
    mf_json_raw(out, mf_buffer_text(entries), entries->size);
    mf_json_lit(out, "]");
}

static void write_extras(const mf_answer_choice *c, mf_json_out *out)
{
    if (c->prompt_logprobs) {
        mf_json_lit(out, ",\"prompt_logprobs\":");
        write_list_of(c->prompt_logprobs, out);
    }
    if (c->has_token_ids) {
        mf_json_lit(out, ",\"token_ids\":");
        mf_json_ids(out, c->token_ids, c->num_token_ids);
    }
    if (c->prompt_token_ids) {
        mf_json_lit(out, ",\"prompt_token_ids\":");
        mf_json_ids(out, c->prompt_token_ids, c->num_prompt_token_ids);
    }
}

static void write_usage(const mf_answer_usage *u, mf_json_out *out)
{
    mf_json_lit(out, "{\"prompt_tokens\":");
    mf_json_int(out, u->prompt_tokens);
    mf_json_lit(out, ",\"completion_tokens\":");
    mf_json_int(out, u->completion_tokens);
    mf_json_lit(out, ",\"total_tokens\":");
    mf_json_int(out, u->prompt_tokens + u->completion_tokens);
    mf_json_lit(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    mf_json_int(out, u->cached_tokens);
    mf_json_lit(out, "}}");
}

static void write_timings(const mf_answer_timings *t, mf_json_out *out)
{
    mf_json_lit(out, ",\"timings\":{\"queue_ms\":");
    mf_json_fixed(out, t->queue_ms);
    mf_json_lit(out, ",\"ttft_ms\":");
    mf_json_fixed(out, t->ttft_ms);
    mf_json_lit(out, ",\"prompt_n\":");
    mf_json_int(out, t->prompt_n);
    mf_json_lit(out, ",\"prompt_ms\":");
    mf_json_fixed(out, t->prompt_ms);
    mf_json_lit(out, ",\"prompt_per_second\":");
    mf_json_fixed(out, t->prompt_per_second);
    mf_json_lit(out, ",\"cached_n\":");
    mf_json_int(out, t->cached_n);
    mf_json_lit(out, ",\"predicted_n\":");
    mf_json_int(out, t->predicted_n);
    mf_json_lit(out, ",\"predicted_ms\":");
    mf_json_fixed(out, t->predicted_ms);
    mf_json_lit(out, ",\"predicted_per_second\":");
    mf_json_fixed(out, t->predicted_per_second);
    mf_json_lit(out, "}");
}

/* ---- whole bodies -------------------------------------------------------------------------------------------------
 */

void mf_answer_begin(const mf_buffer *head, mf_json_out *out)
{
    mf_json_raw(out, mf_buffer_text(head), head->size);
    mf_json_lit(out, ",\"choices\":[");
}

static void write_reasoning_and_calls(const mf_answer_choice *c, bool follows, mf_json_out *out)
{
    if (c->reasoning) {
        if (follows) {
            mf_json_lit(out, ",");
        }
        mf_json_lit(out, "\"reasoning\":");
        mf_json_text(out, mf_buffer_text(c->reasoning), c->reasoning->size);
        follows = true;
    }
    if (c->tool_calls) {
        if (follows) {
            mf_json_lit(out, ",");
        }
        mf_json_lit(out, "\"tool_calls\":");
        write_list_of(c->tool_calls, out);
    }
}

static void write_message(const mf_answer_choice *c, mf_json_out *out)
{
    mf_json_lit(out, ",\"message\":{\"role\":\"assistant\",\"content\":");
    if (c->text_size == 0 && (c->tool_calls || c->reasoning)) {
        mf_json_lit(out, "null");
    } else {
        mf_json_text(out, c->text, c->text_size);
    }
    write_reasoning_and_calls(c, true, out);
    mf_json_lit(out, "}");
}

void mf_answer_write_choice(mf_api_kind kind, const mf_answer_choice *c, bool is_first, mf_json_out *out)
{
    if (!is_first) {
        mf_json_lit(out, ",");
    }
    mf_json_lit(out, "{\"index\":");
    mf_json_int(out, c->index);
    if (kind == MF_API_COMPLETION) {
        mf_json_lit(out, ",\"text\":");
        mf_json_text(out, c->text, c->text_size);
    } else {
        write_message(c, out);
    }
    write_logprobs(c, out);
    write_reasons(c, out);
    write_extras(c, out);
    mf_json_lit(out, "}");
}

void mf_answer_end(const mf_answer_end_parts *parts, mf_json_out *out)
{
    mf_json_lit(out, "],\"usage\":");
    write_usage(&parts->usage, out);
    if (parts->prompt_logprobs) {
        mf_json_lit(out, ",\"prompt_logprobs\":");
        write_list_of(parts->prompt_logprobs, out);
    }
    if (parts->prompt_token_ids) {
        mf_json_lit(out, ",\"prompt_token_ids\":");
        mf_json_ids(out, parts->prompt_token_ids, parts->num_prompt_token_ids);
    }
    mf_json_lit(out, ",\"system_fingerprint\":\"moefuse-" MF_VERSION_STRING "\"");
    write_timings(&parts->timings, out);
    mf_json_lit(out, "}");
}

/* ---- events -------------------------------------------------------------------------------------------------------
 */

static void begin_event(const mf_answer_event *e, mf_json_out *out)
{
    mf_json_lit(out, "data: ");
    mf_json_raw(out, mf_buffer_text(e->head), e->head->size);
    mf_json_lit(out, ",\"choices\":[");
}

static void end_event(const mf_answer_event *e, const mf_answer_timings *timings, mf_json_out *out)
{
    mf_json_lit(out, "]");
    if (e->usage_field == MF_USAGE_NULL) {
        mf_json_lit(out, ",\"usage\":null");
    } else if (e->usage_field == MF_USAGE_RUNNING) {
        mf_json_lit(out, ",\"usage\":");
        write_usage(&e->usage, out);
    }
    if (timings) {
        write_timings(timings, out);
    }
    mf_json_lit(out, "}\n\n");
}

void mf_answer_event_role(const mf_answer_event *e, int32_t index, const int32_t *prompt_token_ids, size_t num_ids,
                          mf_json_out *out)
{
    begin_event(e, out);
    mf_json_lit(out, "{\"index\":");
    mf_json_int(out, index);
    mf_json_lit(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null");
    if (prompt_token_ids) {
        mf_json_lit(out, ",\"prompt_token_ids\":");
        mf_json_ids(out, prompt_token_ids, num_ids);
    }
    mf_json_lit(out, "}");
    end_event(e, NULL, out);
}

/* What is new; `needs_content`: an empty one when there is nothing. */
static void write_news(const mf_answer_event *e, const mf_answer_choice *c, bool needs_content, mf_json_out *out)
{
    if (e->kind == MF_API_COMPLETION) {
        mf_json_lit(out, ",\"text\":");
        mf_json_text(out, c->text, c->text_size);
        return;
    }
    bool has_content = c->text_size > 0 || (needs_content && !c->reasoning && !c->tool_calls);
    mf_json_lit(out, ",\"delta\":{");
    if (has_content) {
        mf_json_lit(out, "\"content\":");
        mf_json_text(out, c->text, c->text_size);
    }
    write_reasoning_and_calls(c, has_content, out);
    mf_json_lit(out, "}");
}

static void write_event(const mf_answer_event *e, const mf_answer_choice *c, const mf_answer_timings *timings,
                        mf_json_out *out)
{
    begin_event(e, out);
    mf_json_lit(out, "{\"index\":");
    mf_json_int(out, c->index);
    write_news(e, c, timings == NULL, out);
    write_logprobs(c, out);
    write_reasons(c, out);
    write_extras(c, out);
    mf_json_lit(out, "}");
    end_event(e, timings, out);
}

void mf_answer_event_text(const mf_answer_event *e, const mf_answer_choice *c, mf_json_out *out)
{
    write_event(e, c, NULL, out);
}

void mf_answer_event_last(const mf_answer_event *e, const mf_answer_choice *c, const mf_answer_timings *timings,
                          mf_json_out *out)
{
    write_event(e, c, timings, out);
}

void mf_answer_event_usage(const mf_answer_event *e, mf_json_out *out)
{
    mf_answer_event with = *e;
    with.usage_field = MF_USAGE_RUNNING;
    begin_event(&with, out);
    end_event(&with, NULL, out);
}

void mf_answer_event_done(mf_json_out *out)
{
    mf_json_lit(out, "data: [DONE]\n\n");
}

void mf_answer_event_error(const mf_api_error *error, mf_json_out *out)
{
    mf_json_lit(out, "data: ");
    mf_status status = mf_api_error_write(error, out->buffer);
    out->status = out->status == MF_OK ? status : out->status;
    mf_json_lit(out, "\n\n");
}
