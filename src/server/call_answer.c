/* call_answer.c - what the client of a call gets: events as the tokens come, or one body at the end, or an error. */
#include <string.h>

#include "base/log.h"
#include "base/sys.h"
#include "server/calls_impl.h"

/* ---- numbers ------------------------------------------------------------------------------------------------------
 */

static double milliseconds(int64_t from_ns, int64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-6 : 0;
}

static double per_second(double count, double ms)
{
    return ms > 0 ? count * 1e3 / ms : 0;
}

static void fill_rates(mf_answer_timings *t, double decoded)
{
    t->prompt_per_second = per_second((double)(t->prompt_n - t->cached_n), t->prompt_ms);
    t->predicted_per_second = per_second(decoded, t->predicted_ms);
}

/* The first token belongs to the prefill. */
static double num_decoded(const mf_sequence *s)
{
    return s->num_tokens > 1 ? s->num_tokens - 1 : 0;
}

static mf_answer_timings timings_of(const mf_call *call, const mf_sequence *s)
{
    mf_answer_timings t = {
        .ttft_ms = s->first_ns ? milliseconds(call->received_ns, s->first_ns) : 0,
        .prompt_ms = s->prefill_s * 1e3,
        .predicted_ms = s->first_ns ? milliseconds(s->first_ns, s->last_ns) : 0,
        .prompt_n = (int64_t)call->prepared->prompts[s->prompt].ids.size,
        .cached_n = s->cached_tokens,
        .predicted_n = s->num_tokens,
    };
    double until_ms = s->first_ns ? t.ttft_ms : milliseconds(call->received_ns, mf_now_ns());
    t.queue_ms = until_ms > t.prompt_ms ? until_ms - t.prompt_ms : 0;
    fill_rates(&t, num_decoded(s));
    return t;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* Of all sequences: they run side by side, so times are the longest one's and counts are sums. */
static mf_answer_timings timings_of_all(const mf_call *call)
{
    mf_answer_timings all = { 0 };
    double decoded = 0;
    for (int32_t i = 0; i < call->num_sequences; i++) {
        const mf_sequence *s = &call->sequences[i];
        mf_answer_timings t = timings_of(call, s);
        bool is_first_of_prompt = i % call->per_prompt == 0;
        all.queue_ms = larger(all.queue_ms, t.queue_ms);
        all.ttft_ms = larger(all.ttft_ms, t.ttft_ms);
        all.prompt_ms = larger(all.prompt_ms, t.prompt_ms);
        all.predicted_ms = larger(all.predicted_ms, t.predicted_ms);
        all.prompt_n += is_first_of_prompt ? t.prompt_n : 0;
        all.cached_n += is_first_of_prompt ? t.cached_n : 0;
        all.predicted_n += t.predicted_n;
        decoded += num_decoded(s);
    }
    fill_rates(&all, decoded);
    return all;
}

static mf_answer_usage usage_of(const mf_call *call)
{
    mf_answer_usage u = { 0 };
    for (int32_t i = 0; i < call->num_sequences; i++) {
        const mf_sequence *s = &call->sequences[i];
        if (i % call->per_prompt == 0) {
            u.prompt_tokens += (int64_t)call->prepared->prompts[s->prompt].ids.size;
            u.cached_tokens += s->cached_tokens;
        }
        u.completion_tokens += s->index >= 0 ? s->num_tokens : 0;
    }
    return u;
}

/* ---- choices ------------------------------------------------------------------------------------------------------
 */

static mf_answer_choice choice_of(const mf_call *call, mf_sequence *s)
{
    mf_sequence_close_call(s);
    const mf_api_request *r = call->request;
    const mf_ids *prompt = &call->prepared->prompts[s->prompt].ids;
    bool is_chat = call->kind == MF_API_CHAT;
    mf_answer_choice c = {
        .index = s->index,
        .text = mf_buffer_text(&s->text),
        .text_size = s->text.size,
        .logprobs = r->wants_logprobs ? &s->logprobs : NULL,
        .prompt_logprobs = r->prompt_logprobs >= 0 && !is_chat ? &s->prompt_logprobs : NULL,
        .reasoning = s->reasoning.size > 0 ? &s->reasoning : NULL,
        .tool_calls = s->calls.size > 0 ? &s->calls : NULL,
        .token_ids = s->token_ids.data,
        .num_token_ids = s->token_ids.size,
        .has_token_ids = r->return_token_ids,
    };
    if (r->return_token_ids && !is_chat && (!r->stream || s->num_tokens == s->num_unsent)) {
        c.prompt_token_ids = prompt->data;
        c.num_prompt_token_ids = prompt->size;
    }
    return c;
}

static void add_reason(const mf_call *call, const mf_sequence *s, mf_answer_choice *c)
{
    c->finish_reason = s->finish_reason;
    c->stop_kind = s->stop_kind;
    c->stop_id = s->stop_id;
    c->stop_text = s->stop_string >= 0 ? call->request->stops[s->stop_string] : "deadline";
}

static bool is_better(const mf_sequence *a, const mf_sequence *b)
{
    double x = a->num_tokens > 0 ? a->sum_logprob / a->num_tokens : 0;
    double y = b->num_tokens > 0 ? b->sum_logprob / b->num_tokens : 0;
    return x > y; /* the earlier one wins a tie */
}

/* best_of above n: the n sequences with the highest mean log-probability become choices, best first. */
static void choose_best(mf_call *call)
{
    int32_t n = call->request->n;
    for (int32_t first = 0; first < call->num_sequences; first += call->per_prompt) {
        mf_sequence *group = &call->sequences[first];
        for (int32_t i = 0; i < call->per_prompt; i++) {
            group[i].index = -1;
        }
        for (int32_t rank = 0; rank < n; rank++) {
            mf_sequence *best = NULL;
            for (int32_t i = 0; i < call->per_prompt; i++) {
                if (group[i].index < 0 && (!best || is_better(&group[i], best))) {
                    best = &group[i];
                }
            }
            best->index = group->prompt * n + rank;
        }
    }
}

static mf_sequence *sequence_with_index(const mf_call *call, int32_t index)
{
    for (int32_t i = 0; i < call->num_sequences; i++) {
        if (call->sequences[i].index == index) {
            return &call->sequences[i];
        }
    }
    return NULL;
}

/* ---- a whole answer -----------------------------------------------------------------------------------------------
 */

static bool all_never_ran(const mf_call *call)
{
    for (int32_t i = 0; i < call->num_sequences; i++) {
        if (!call->sequences[i].never_ran) {
            return false;
        }
    }
    return true;
}

/* What can only be told as an error.  false: there is an answer. */
static bool fails_instead(mf_call *call)
{
    mf_api_error error = { 0 };
    const mf_sequence *s = &call->sequences[0];
    if (call->num_sequences == 1 && s->engine_reason == MF_FINISH_ERROR) {
        mf_api_fail(&error, 500, NULL, "The model's output for this request was not finite (request %s)",
                    call->request_id);
    } else if (call->num_sequences == 1 && s->engine_reason == MF_FINISH_CANCELLED && !s->is_stopped) {
        mf_api_fail(&error, 503, NULL, "The engine stopped before the request was done.");
        error.retry_after_s = 1;
    } else if (!call->has_begun && call->num_unfinished == 0 && all_never_ran(call)) {
        mf_api_fail(&error, 504, NULL, "The deadline passed before the request could start.");
    } else {
        return false;
    }
    mf_call_fail(call, &error);
    return true;
}

static void send_whole(mf_call *call)
{
    const mf_api_request *r = call->request;
    mf_buffer *buffer = &call->calls->out;
    mf_json_out out = { .buffer = buffer };
    mf_buffer_clear(buffer);
    if (call->per_prompt > r->n) {
        choose_best(call);
    }
    mf_answer_begin(&call->head, &out);
    int32_t num_choices = call->prepared->num_prompts * r->n;
    for (int32_t i = 0; i < num_choices; i++) {
        mf_sequence *s = sequence_with_index(call, i);
        if (s) {
            mf_answer_choice choice = choice_of(call, s);
            add_reason(call, s, &choice);
            mf_answer_write_choice(call->kind, &choice, i == 0, &out);
        }
    }
    mf_answer_end_parts end = { .usage = usage_of(call), .timings = timings_of_all(call) };
    if (call->kind == MF_API_CHAT) {
        const mf_ids *prompt = &call->prepared->prompts[0].ids;
        end.prompt_logprobs = r->prompt_logprobs >= 0 ? &call->sequences[0].prompt_logprobs : NULL;
        end.prompt_token_ids = r->return_token_ids ? prompt->data : NULL;
        end.num_prompt_token_ids = prompt->size;
    }
    mf_answer_end(&end, &out);
    if (out.status != MF_OK) {
        mf_api_error error = { 0 };
        mf_api_fail(&error, 500, NULL, "The server ran out of memory (request %s)", call->request_id);
        mf_call_fail(call, &error);
        return;
    }
    mf_exchange_reply(call->exchange, 200, "application/json", buffer->data, buffer->size);
    mf_call_end(call);
}

/* ---- a stream -----------------------------------------------------------------------------------------------------
 */

static mf_answer_event event_of(const mf_call *call)
{
    const mf_api_request *r = call->request;
    mf_answer_event event = { .kind = call->kind, .head = &call->head };
    if (r->include_usage || r->continuous_usage_stats) {
        event.usage_field = r->continuous_usage_stats ? MF_USAGE_RUNNING : MF_USAGE_NULL;
        if (r->continuous_usage_stats) {
            event.usage = usage_of(call);
        }
    }
    return event;
}

/* One event, one write.  What does not fit the client's backlog pauses the sequences. */
static void write_out(mf_call *call, const mf_json_out *out)
{
    if (out->status != MF_OK) {
        mf_log(MF_LOG_ERROR, "out of memory for an event of request %s", call->request_id);
        return;
    }
    call->last_write_ns = mf_now_ns();
    if (!mf_exchange_write(call->exchange, out->buffer->data, out->buffer->size)) {
        mf_call_pause(call, true);
    }
}

static void begin_stream(mf_call *call)
{
    if (call->has_begun) {
        return;
    }
    call->has_begun = true;
    mf_exchange_begin(call->exchange, 200, "text/event-stream; charset=utf-8");
    if (call->kind != MF_API_CHAT) {
        return;
    }
    mf_answer_event event = event_of(call);
    const mf_ids *prompt = &call->prepared->prompts[0].ids;
    for (int32_t i = 0; i < call->num_sequences; i++) {
        mf_json_out out = { .buffer = &call->calls->out };
        mf_buffer_clear(out.buffer);
        mf_answer_event_role(&event, i, call->request->return_token_ids ? prompt->data : NULL, prompt->size, &out);
        write_out(call, &out);
    }
}

static void forget_sent(mf_sequence *s)
{
    mf_buffer_clear(&s->text);
    mf_buffer_clear(&s->reasoning);
    mf_buffer_clear(&s->calls);
    mf_logprob_lists_clear(&s->logprobs);
    s->token_ids.size = 0;
    s->num_unsent = 0;
}

void mf_call_send_step(mf_call *call, mf_sequence *s)
{
    if (!call->request->stream) {
        return;
    }
    begin_stream(call);
    if (s->num_tokens > 1 && s->num_unsent < call->calls->options.stream_interval && !s->is_stopped) {
        return;
    }
    mf_json_out out = { .buffer = &call->calls->out };
    mf_buffer_clear(out.buffer);
    mf_answer_event event = event_of(call);
    mf_answer_choice choice = choice_of(call, s);
    mf_answer_event_text(&event, &choice, &out);
    write_out(call, &out);
    forget_sent(s);
}

static void send_last_event(mf_call *call, mf_sequence *s)
{
    begin_stream(call);
    mf_json_out out = { .buffer = &call->calls->out };
    mf_buffer_clear(out.buffer);
    mf_answer_event event = event_of(call);
    mf_answer_choice choice = choice_of(call, s);
    mf_answer_timings timings = timings_of(call, s);
    if (s->logprobs.count == 0) {
        choice.logprobs = NULL;
    }
    choice.has_token_ids = choice.num_token_ids > 0;
    add_reason(call, s, &choice);
    mf_answer_event_last(&event, &choice, &timings, &out);
    write_out(call, &out);
    s->is_told = true;
    forget_sent(s);
}

static void end_stream(mf_call *call)
{
    mf_json_out out = { .buffer = &call->calls->out };
    if (call->request->include_usage) {
        mf_answer_event event = event_of(call);
        event.usage = usage_of(call);
        mf_buffer_clear(out.buffer);
        mf_answer_event_usage(&event, &out);
        write_out(call, &out);
    }
    mf_buffer_clear(out.buffer);
    mf_answer_event_done(&out);
    write_out(call, &out);
    mf_exchange_end(call->exchange, false);
    mf_call_end(call);
}

void mf_call_send_end(mf_call *call, mf_sequence *s)
{
    if (call->request->stream) {
        if (fails_instead(call)) {
            return;
        }
        if (!call->has_begun && s->never_ran && call->num_unfinished > 0) {
            return; /* perhaps all of them expire: told when that is known */
        }
        for (int32_t i = 0; i < call->num_sequences; i++) {
            if (call->sequences[i].is_finished && !call->sequences[i].is_told) {
                send_last_event(call, &call->sequences[i]);
            }
        }
        if (call->num_unfinished == 0) {
            end_stream(call);
        }
    } else if (call->num_unfinished == 0 && !fails_instead(call)) {
        send_whole(call);
    }
}

void mf_call_send_ping(mf_call *call)
{
    begin_stream(call);
    mf_json_out out = { .buffer = &call->calls->out };
    mf_buffer_clear(out.buffer);
    mf_json_lit(&out, ": ping\n\n");
    write_out(call, &out);
}

void mf_call_fail(mf_call *call, const mf_api_error *error)
{
    if (call->exchange && call->has_begun) {
        mf_json_out out = { .buffer = &call->calls->out };
        mf_buffer_clear(out.buffer);
        mf_answer_event_error(error, &out);
        mf_answer_event_done(&out);
        if (out.status == MF_OK) {
            mf_exchange_write(call->exchange, out.buffer->data, out.buffer->size);
        }
        mf_exchange_end(call->exchange, true);
    } else if (call->exchange) {
        mf_exchange_reply_error(call->exchange, error);
    }
    mf_call_cancel_sequences(call);
    mf_call_end(call);
}
