/* call_tokens.c - the engine's events become text, logprobs and ends: see calls_impl.h.
 *
 * This is the path of every token.  It allocates only where a buffer grows. */
#include <math.h>
#include <string.h>

#include "base/sys.h"
#include "server/calls_impl.h"

static void fail_internally(mf_call *call, const char *what)
{
    mf_api_error error = { 0 };
    mf_api_fail(&error, 500, NULL, "%s (request %s)", what, call->request_id);
    mf_call_fail(call, &error);
}

/* ---- tokens -------------------------------------------------------------------------------------------------------
 */

static bool has_id(const int32_t *ids, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

/* A token that ends the sequence is no part of its text. */
static bool is_end_token(const mf_call *call, int32_t id)
{
    const mf_sampling_params *p = &call->prepared->sampling;
    const mf_serve_model *model = call->calls->options.model;
    return (!p->ignore_eos && has_id(model->eos_token_ids, model->num_eos_token_ids, id)) ||
           has_id(p->stop_token_ids, p->num_stop_token_ids, id);
}

/* Where marks of calls may be special tokens the stream keeps them all: the others are left out here. */
static bool is_skipped(const mf_call *call, const mf_sequence *s, int32_t id)
{
    const mf_tokenizer *tokenizer = call->names.tokenizer;
    if (!s->specials || !call->request->skip_special_tokens || !mf_tokenizer_is_special(tokenizer, id)) {
        return false;
    }
    size_t size = 0;
    const char *text = mf_tokenizer_token_bytes(tokenizer, id, &size);
    return text && !mf_tool_format_is_marker(s->specials, text, size);
}

static mf_status append_id(mf_ids *ids, int32_t id)
{
    if (ids->size == ids->capacity) {
        size_t capacity = ids->capacity ? 2 * ids->capacity : 16;
        int32_t *data = mf_resize_array(ids->data, capacity, sizeof *data);
        if (!data) {
            return MF_ERR_NOMEM;
        }
        ids->data = data;
        ids->capacity = capacity;
    }
    ids->data[ids->size++] = id;
    return MF_OK;
}

/* The prompt's tokens up to `end` (excluded) that nothing was said of: the first one has no probability. */
static mf_status add_first_prompt_token(mf_call *call, mf_sequence *s)
{
    const mf_api_request *r = call->request;
    const mf_ids *ids = &call->prepared->prompts[s->prompt].ids;
    if (s->next_prompt_token > 0 || ids->size == 0) {
        return MF_OK;
    }
    s->next_prompt_token = 1;
    if (r->echo && r->wants_logprobs) {
        MF_TRY(mf_logprob_lists_add(&s->logprobs, &call->names, ids->data[0], NAN, NULL, 0));
    }
    return r->prompt_logprobs >= 0 ? mf_buffer_append(&s->prompt_logprobs, "null", 4) : MF_OK;
}

static mf_status take_prompt_logprob(mf_call *call, mf_sequence *s, const mf_event *e)
{
    const mf_api_request *r = call->request;
    MF_TRY(add_first_prompt_token(call, s));
    s->next_prompt_token = e->position + 1;
    if (r->echo && r->wants_logprobs) {
        MF_TRY(mf_logprob_lists_add(&s->logprobs, &call->names, e->token_id, e->logprob, e->top_logprobs,
                                    e->num_top_logprobs));
    }
    if (r->prompt_logprobs < 0) {
        return MF_OK;
    }
    mf_json_out out = { .buffer = &s->prompt_logprobs };
    mf_json_lit(&out, ",");
    int32_t num_top = e->num_top_logprobs < r->prompt_logprobs ? e->num_top_logprobs : r->prompt_logprobs;
    mf_prompt_logprob_write(&call->names, e->token_id, e->logprob, e->rank, e->top_logprobs, num_top, &out);
    return out.status;
}

static mf_status take_token(mf_call *call, mf_sequence *s, const mf_event *e, mf_error *err)
{
    const mf_api_request *r = call->request;
    if (r->echo || r->prompt_logprobs >= 0) {
        MF_TRY(add_first_prompt_token(call, s));
    }
    bool has_text =
        (r->include_stop_str_in_output || !is_end_token(call, e->token_id)) && !is_skipped(call, s, e->token_id);
    if (has_text && s->stream) {
        int32_t stop = -1;
        MF_TRY(mf_stream_push(s->stream, e->token_id, s->parser ? &s->raw : &s->text, &stop, err));
        MF_TRY(mf_sequence_take_text(s));
        s->stop_string = stop;
        s->is_stopped = stop >= 0;
    }
    if (r->wants_logprobs) {
        MF_TRY(mf_logprob_lists_add(&s->logprobs, &call->names, e->token_id, e->logprob, e->top_logprobs,
                                    e->num_top_logprobs));
    }
    if (r->return_token_ids) {
        MF_TRY(append_id(&s->token_ids, e->token_id));
    }
    s->sum_logprob += isnan(e->logprob) ? 0 : (double)e->logprob;
    s->num_tokens++;
    s->num_unsent++;
    return MF_OK;
}

static void observe_token(mf_call *call, mf_sequence *s, int64_t step_ns)
{
    mf_metrics *metrics = call->calls->options.metrics;
    if (s->first_ns == 0) {
        s->first_ns = step_ns;
        if (metrics) {
            mf_metrics_observe(metrics, MF_HIST_TTFT, (double)(step_ns - call->received_ns) * 1e-9);
        }
    } else if (metrics) {
        mf_metrics_observe(metrics, MF_HIST_INTER_TOKEN_LATENCY, (double)(step_ns - s->last_ns) * 1e-9);
    }
    s->last_ns = step_ns;
    call->calls->total.tokens++;
}

/* ---- ends ---------------------------------------------------------------------------------------------------------
 */

static void set_reason(mf_sequence *s, const mf_event *e)
{
    bool has_calls = s->parser && mf_answer_parser_num_calls(s->parser) > 0;
    if (s->is_stopped) {
        s->finish_reason = has_calls ? "tool_calls" : "stop";
        s->stop_kind = MF_STOP_TEXT;
        return;
    }
    switch (e->finish_reason) {
    case MF_FINISH_STOP:
        s->finish_reason = has_calls ? "tool_calls" : "stop";
        s->stop_kind = e->stop_token_id >= 0 ? MF_STOP_ID : MF_STOP_NULL;
        s->stop_id = e->stop_token_id;
        break;
    case MF_FINISH_DEADLINE:
        s->finish_reason = "length";
        s->stop_kind = MF_STOP_TEXT; /* "deadline" */
        s->never_ran = e->completion_tokens == 0 && e->prefill_s <= 0;
        break;
    case MF_FINISH_LENGTH:
        s->finish_reason = "length";
        break;
    case MF_FINISH_ERROR:
        s->finish_reason = "error";
        break;
    default:
        s->finish_reason = "abort";
        break;
    }
}

static void observe_end(mf_call *call, const mf_sequence *s, const mf_event *e, int64_t step_ns)
{
    mf_metrics *m = call->calls->options.metrics;
    if (!m) {
        return;
    }
    mf_metrics_finished(m, s->finish_reason);
    if (e->finish_reason == MF_FINISH_DEADLINE) {
        mf_metrics_cancelled(m, MF_CANCEL_DEADLINE);
    } else if (s->is_stopped) {
        mf_metrics_cancelled(m, MF_CANCEL_STOP);
    }
    double decode_s = s->first_ns ? (double)(s->last_ns - s->first_ns) * 1e-9 : 0;
    mf_metrics_observe(m, MF_HIST_E2E_LATENCY, (double)(step_ns - call->received_ns) * 1e-9);
    mf_metrics_observe(m, MF_HIST_QUEUE_TIME, e->queue_s);
    mf_metrics_observe(m, MF_HIST_INFERENCE_TIME, e->prefill_s + decode_s);
    mf_metrics_observe(m, MF_HIST_PREFILL_TIME, e->prefill_s);
    mf_metrics_observe(m, MF_HIST_DECODE_TIME, decode_s);
    mf_metrics_observe(m, MF_HIST_PROMPT_TOKENS, (double)call->prepared->prompts[s->prompt].ids.size);
    mf_metrics_observe(m, MF_HIST_GENERATION_TOKENS, s->num_tokens);
    if (s->num_tokens > 1) {
        mf_metrics_observe(m, MF_HIST_TIME_PER_OUTPUT_TOKEN, decode_s / (s->num_tokens - 1));
    }
}

static mf_status take_end(mf_call *call, mf_sequence *s, const mf_service_event *event, mf_error *err)
{
    const mf_event *e = &event->event;
    if (call->request->echo || call->request->prompt_logprobs >= 0) {
        MF_TRY(add_first_prompt_token(call, s));
    }
    if (s->stream && !s->is_stopped) {
        /* A character that was cut becomes U+FFFD, which may complete a stop string. */
        int32_t stop = -1;
        MF_TRY(mf_stream_finish(s->stream, s->parser ? &s->raw : &s->text, &stop, err));
        s->stop_string = stop;
        s->is_stopped = stop >= 0;
    }
    MF_TRY(mf_sequence_end_text(s));
    set_reason(s, e);
    s->is_finished = true;
    s->engine_reason = e->finish_reason;
    s->cached_tokens = e->cached_tokens;
    s->prefill_s = e->prefill_s;
    call->num_unfinished--;
    observe_end(call, s, e, event->step_ns);
    return MF_OK;
}

static void take_refusal(mf_call *call, const mf_service_event *event)
{
    mf_api_error error = { 0 };
    int status = event->status == MF_ERR_INVALID ? 400 : event->status == MF_ERR_BUSY ? 429 : 503;
    mf_api_fail(&error, status, NULL, "%s", status == 503 ? "The engine could not take the request." : event->message);
    error.retry_after_s = status == 400 ? 0 : 1;
    mf_call_fail(call, &error);
}

/* ---- events -------------------------------------------------------------------------------------------------------
 */

void mf_call_take_event(mf_call *call, mf_sequence *s, const mf_service_event *event)
{
    bool is_last = event->type == MF_SERVICE_FINISHED || event->type == MF_SERVICE_REFUSED;
    if (is_last) {
        s->serial = 0;
    }
    if (call->stage == MF_CALL_ENDED) { /* late: counted nowhere but in the engine */
        mf_call_release(call);
        return;
    }
    mf_error err = { 0 };
    mf_status status = MF_OK;
    switch (event->type) {
    case MF_SERVICE_PROMPT_LOGPROB:
        status = take_prompt_logprob(call, s, &event->event);
        break;
    case MF_SERVICE_TOKEN:
        if (s->is_stopped) {
            return;
        }
        observe_token(call, s, event->step_ns);
        status = take_token(call, s, &event->event, &err);
        if (status == MF_OK) {
            if (s->is_stopped) {
                mf_service_cancel(call->calls->options.service, s->serial);
            }
            mf_call_send_step(call, s);
        }
        break;
    case MF_SERVICE_FINISHED:
        status = take_end(call, s, event, &err);
        if (status == MF_OK) {
            mf_call_send_end(call, s);
            return;
        }
        break;
    case MF_SERVICE_REFUSED:
        take_refusal(call, event);
        return;
    case MF_SERVICE_STEP:
        break; /* nobody's */
    }
    if (status != MF_OK) {
        fail_internally(call, status == MF_ERR_NOMEM ? "The server ran out of memory."
                                                     : "The answer's text could not be made.");
    }
}
