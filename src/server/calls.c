/* calls.c - the table of calls and their HTTP side: see calls.h. */
#include "server/calls.h"

#include <sodium.h>
#include <string.h>

#include "base/sys.h"
#include "server/calls_impl.h"

enum { NUM_EVENTS = 256, INLINE_BYTES = 8192 };

mf_status mf_calls_open(const mf_calls_options *options, mf_calls **out, mf_error *err)
{
    mf_calls *calls = mf_alloc_zero(sizeof *calls);
    mf_service_event *events = mf_alloc_array(NUM_EVENTS, sizeof *events);
    if (!calls || !events) {
        mf_free(calls);
        mf_free(events);
        *out = NULL;
        return mf_fail(err, MF_ERR_NOMEM, "calls: out of memory");
    }
    calls->options = *options;
    calls->options.stream_interval = options->stream_interval > 0 ? options->stream_interval : 1;
    calls->options.inline_bytes = options->inline_bytes > 0 ? options->inline_bytes : INLINE_BYTES;
    calls->events = events;
    if (sodium_init() < 0) {
        mf_calls_close(&calls);
        *out = NULL;
        return mf_fail(err, MF_ERR_INTERNAL, "libsodium could not be set up: the system gave no random bytes");
    }
    crypto_shorthash_keygen(calls->salt_key);
    *out = calls;
    return MF_OK;
}

void mf_calls_set_metrics(mf_calls *calls, mf_metrics *metrics)
{
    calls->options.metrics = metrics;
}

/* ---- a call's life ------------------------------------------------------------------------------------------------
 */

static void free_sequence(mf_sequence *s)
{
    mf_stream_close(&s->stream);
    mf_buffer_close(&s->text);
    mf_answer_parser_close(&s->parser);
    mf_buffer_close(&s->raw);
    mf_buffer_close(&s->reasoning);
    mf_buffer_close(&s->calls);
    mf_logprob_lists_close(&s->logprobs);
    mf_buffer_close(&s->prompt_logprobs);
    mf_ids_close(&s->token_ids);
}

/* A long body's tree of values takes the loop's time to free as well: the worker does that too. */
typedef struct leftovers {
    mf_api_request *request;
    mf_prepared *prepared;
} leftovers;

static void close_leftovers(void *data)
{
    leftovers *l = data;
    mf_prepared_close(&l->prepared);
    mf_api_request_close(&l->request);
}

static void free_leftovers(void *data)
{
    close_leftovers(data); /* unless the worker has */
    mf_free(data);
}

static void close_beside_the_loop(mf_call *call)
{
    leftovers *l = call->calls->options.text ? mf_alloc_zero(sizeof *l) : NULL;
    if (l) {
        *l = (leftovers){ call->request, call->prepared };
        mf_text_job job = { close_leftovers, free_leftovers, l, 0 };
        if (mf_text_worker_submit(call->calls->options.text, &job, NULL) != MF_OK) {
            free_leftovers(l);
        }
        call->request = NULL;
        call->prepared = NULL;
    }
}

static void free_call(mf_call *call)
{
    mf_calls *calls = call->calls;
    *(call->previous ? &call->previous->next : &calls->first) = call->next;
    if (call->next) {
        call->next->previous = call->previous;
    }
    for (int32_t i = 0; i < call->num_sequences; i++) {
        free_sequence(&call->sequences[i]);
    }
    mf_free(call->sequences);
    mf_free(call->body);
    mf_buffer_close(&call->head);
    if (call->body_size > calls->options.inline_bytes) {
        close_beside_the_loop(call);
    }
    mf_prepared_close(&call->prepared);
    mf_api_request_close(&call->request);
    mf_free(call);
}

void mf_call_release(mf_call *call)
{
    if (call->stage != MF_CALL_ENDED || call->is_reading) {
        return;
    }
    for (int32_t i = 0; i < call->num_sequences; i++) {
        if (call->sequences[i].serial) {
            return;
        }
    }
    free_call(call);
}

void mf_call_end(mf_call *call)
{
    if (call->stage != MF_CALL_ENDED) {
        mf_call_pause(call, false); /* only to count: what is left is cancelled or done */
        call->stage = MF_CALL_ENDED;
        call->calls->num_live--;
    }
    call->exchange = NULL;
    mf_call_release(call);
}

void mf_call_cancel_sequences(mf_call *call)
{
    for (int32_t i = 0; i < call->num_sequences; i++) {
        if (call->sequences[i].serial) {
            mf_service_cancel(call->calls->options.service, call->sequences[i].serial);
        }
    }
}

void mf_call_pause(mf_call *call, bool paused)
{
    if (call->is_paused == paused) {
        return;
    }
    call->is_paused = paused;
    call->calls->num_paused += paused ? call->num_sequences : -call->num_sequences;
    for (int32_t i = 0; i < call->num_sequences; i++) {
        if (call->sequences[i].serial) {
            mf_service_pause(call->calls->options.service, call->sequences[i].serial, paused);
        }
    }
}

/* ---- what HTTP tells ----------------------------------------------------------------------------------------------
 */

static mf_cancel_cause cause_named(const char *name)
{
    return strcmp(name, "stalled") == 0    ? MF_CANCEL_SLOW_READER
           : strcmp(name, "shutdown") == 0 ? MF_CANCEL_SHUTDOWN
                                           : MF_CANCEL_DISCONNECT;
}

static void on_gone(void *data, mf_exchange *exchange, const char *cause)
{
    (void)exchange;
    mf_call *call = data;
    mf_metrics *metrics = call->calls->options.metrics;
    call->exchange = NULL;
    for (int32_t i = 0; metrics && i < call->num_sequences; i++) {
        if (call->sequences[i].serial) {
            mf_metrics_cancelled(metrics, cause_named(cause));
        }
    }
    mf_call_cancel_sequences(call);
    mf_call_end(call);
}

static void on_drained(void *data, mf_exchange *exchange)
{
    (void)exchange;
    mf_call_pause(data, false);
}

static const mf_exchange_events events_of_calls = { .gone = on_gone, .drained = on_drained };

static bool copy_body(mf_call *call)
{
    const char *body = mf_exchange_body(call->exchange, &call->body_size);
    call->body = mf_alloc(call->body_size + 1);
    if (!call->body) {
        return false;
    }
    memcpy(call->body, body, call->body_size);
    call->body[call->body_size] = '\0';
    return true;
}

void mf_calls_handle(mf_calls *calls, mf_api_kind kind, mf_exchange *exchange)
{
    mf_call *call = mf_alloc_zero(sizeof *call);
    mf_api_error error = { 0 };
    if (!call) {
        mf_api_fail(&error, 503, NULL, "The server is out of memory.");
        error.retry_after_s = 1;
        mf_exchange_reply_error(exchange, &error);
        return;
    }
    call->calls = calls;
    call->kind = kind;
    call->exchange = exchange;
    call->received_ns = mf_exchange_received_ns(exchange);
    call->next = calls->first;
    if (calls->first) {
        calls->first->previous = call;
    }
    calls->first = call;
    calls->num_live++;
    calls->total.calls++;
    const char *timeout = mf_exchange_header(exchange, "X-Request-Timeout");
    if (timeout) {
        call->has_timeout_header = true;
        strncpy(call->timeout_header, timeout, sizeof call->timeout_header - 1);
    }
    strncpy(call->request_id, mf_exchange_request_id(exchange), sizeof call->request_id - 1);
    mf_exchange_attach(exchange, &events_of_calls, call);
    if (!copy_body(call)) {
        mf_api_fail(&error, 503, NULL, "The server is out of memory.");
        error.retry_after_s = 1;
        mf_call_fail(call, &error);
        return;
    }
    mf_exchange_drop_body(exchange);
    mf_call_start(call);
}

/* ---- what the service tells ---------------------------------------------------------------------------------------
 */

void mf_calls_pump(mf_calls *calls)
{
    int32_t n;
    while ((n = mf_service_poll(calls->options.service, calls->events, NUM_EVENTS)) > 0) {
        for (int32_t i = 0; i < n; i++) {
            mf_sequence *sequence = calls->events[i].user_data;
            if (calls->events[i].step_tokens > 0 && calls->options.metrics) {
                mf_metrics_observe(calls->options.metrics, MF_HIST_ITERATION_TOKENS, calls->events[i].step_tokens);
            }
            if (sequence) {
                mf_call_take_event(sequence->call, sequence, &calls->events[i]);
            }
        }
    }
}

void mf_calls_tick(mf_calls *calls, int64_t now_ns)
{
    int64_t interval_ns = (int64_t)(calls->options.keep_alive_s * 1e9);
    if (interval_ns <= 0) {
        return;
    }
    for (mf_call *call = calls->first, *next; call; call = next) {
        next = call->next;
        if (call->stage == MF_CALL_RUNNING && call->request->stream && !call->is_paused &&
            now_ns - call->last_write_ns >= interval_ns) {
            mf_call_send_ping(call);
        }
    }
}

void mf_calls_abort(mf_calls *calls)
{
    mf_api_error error = { 0 };
    mf_api_fail(&error, 503, NULL, "The server is shutting down.");
    error.retry_after_s = 1;
    for (mf_call *call = calls->first, *next; call; call = next) {
        next = call->next;
        if (call->exchange) {
            for (int32_t i = 0; calls->options.metrics && i < call->num_sequences; i++) {
                if (call->sequences[i].serial) {
                    mf_metrics_cancelled(calls->options.metrics, MF_CANCEL_SHUTDOWN);
                }
            }
            mf_call_fail(call, &error);
        }
    }
}

int32_t mf_calls_num_live(const mf_calls *calls)
{
    return calls->num_live;
}

int32_t mf_calls_num_paused(const mf_calls *calls)
{
    return calls->num_paused;
}

mf_calls_rates mf_calls_total(const mf_calls *calls)
{
    return calls->total;
}

void mf_calls_close(mf_calls **out)
{
    mf_calls *calls = *out;
    if (!calls) {
        return;
    }
    calls->options.text = NULL; /* closed by now */
    while (calls->first) {
        free_call(calls->first);
    }
    mf_buffer_close(&calls->out);
    mf_free(calls->events);
    mf_free(calls);
    *out = NULL;
}
