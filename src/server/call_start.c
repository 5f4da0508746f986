/* call_start.c - from a body to sequences at the service: reading, preparing, admission.  See calls_impl.h.
 *
 * Short bodies are read and prepared on the I/O thread: handing one over costs more than the work.  Long ones, and
 * those that ask for a grammar, go to the text worker. */
#include <assert.h>
#include <sodium.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/sys.h"
#include "server/calls_impl.h"

/* ---- reading ------------------------------------------------------------------------------------------------------
 */

/* Without a tokenizer (a config.json alone) only ids go in, and no text comes out. */
static bool needs_tokenizer(const mf_api_request *r)
{
    bool has_text =
        r->kind == MF_API_CHAT || r->num_stops > 0 || r->num_bad_words > 0 || r->constraint != MF_CONSTRAINT_NONE;
    for (int32_t i = 0; i < r->num_prompts; i++) {
        has_text = has_text || r->prompts[i].text;
    }
    return has_text;
}

static void read_request(mf_call *call)
{
    const mf_serve_model *model = call->calls->options.model;
    call->read_status =
        mf_api_request_parse(call->kind, model, call->body, call->body_size,
                             call->has_timeout_header ? call->timeout_header : NULL, &call->request, &call->error);
    if (call->read_status == MF_OK && !model->prompt->tokenizer && needs_tokenizer(call->request)) {
        call->read_status = mf_api_fail(
            &call->error, 501, NULL, "The model was started without a tokenizer: prompts are lists of token ids only.");
    }
}

static void prepare(mf_call *call)
{
    call->read_status = mf_prepare(call->calls->options.model, call->request, &call->prepared, &call->error);
}

/* On the worker's thread: nobody else touches the call's reading parts meanwhile. */
static void run_on_worker(void *data)
{
    mf_call *call = data;
    if (!call->request) {
        read_request(call);
    }
    if (call->read_status == MF_OK) {
        prepare(call);
    }
}

/* ---- sequences ----------------------------------------------------------------------------------------------------
 */

static void fail_with_request(mf_call *call, int status, const char *message)
{
    mf_api_error error = { 0 };
    mf_api_fail(&error, status, NULL, "%s", message);
    if (status == 503) {
        error.retry_after_s = 1;
    }
    mf_call_fail(call, &error);
}

static mf_status open_sequence(mf_call *call, mf_sequence *s, int32_t i, mf_error *err)
{
    const mf_api_request *r = call->request;
    const mf_tokenizer *tokenizer = call->names.tokenizer;
    s->call = call;
    s->prompt = i / call->per_prompt;
    s->index = s->prompt * r->n + i % call->per_prompt;
    s->stop_string = -1;
    s->stop_id = -1;
    s->logprobs = (mf_logprob_lists){ .is_chat = call->kind == MF_API_CHAT,
                                      .num_top = r->wants_logprobs ? r->sampling.logprobs : 0 };
    const mf_prepared_prompt *prompt = &call->prepared->prompts[s->prompt];
    if (r->echo && prompt->echo_text) {
        MF_TRY(mf_buffer_append(&s->text, prompt->echo_text, prompt->echo_size));
    }
    MF_TRY(mf_sequence_open_parser(call, s));
    if (!tokenizer) {
        return MF_OK;
    }
    mf_stop_string stops[MF_STREAM_MAX_STOPS];
    for (int32_t k = 0; k < r->num_stops && k < MF_STREAM_MAX_STOPS; k++) {
        stops[k] = (mf_stop_string){ r->stops[k], strlen(r->stops[k]) };
    }
    mf_stream_options options = { .stops = stops,
                                  .num_stops = (size_t)r->num_stops,
                                  .include_stop = r->include_stop_str_in_output,
                                  .skip_special = r->skip_special_tokens && !s->specials,
                                  .min_ids = r->sampling.min_tokens };
    return mf_stream_open(tokenizer, &options, &s->stream, err);
}

static void release_guide(void *context)
{
    mf_guide_state *state = context;
    mf_guide_state_close(&state);
}

static void fill_guide(void *context, uint32_t *mask, int32_t vocab_size)
{
    mf_guide_state_fill(context, mask, vocab_size);
}

static void accept_guide(void *context, int32_t token_id)
{
    mf_guide_state_accept(context, token_id);
}

static uint64_t salt_number(const mf_calls *calls, const char *salt)
{
    uint64_t number;
    static_assert(sizeof number == crypto_shorthash_BYTES, "a salt is a 64-bit number to the engine");
    crypto_shorthash((unsigned char *)&number, (const unsigned char *)salt, strlen(salt), calls->salt_key);
    return number | 1; /* 0 is none */
}

/* What the engine has to make for one sequence. */
static mf_status fill_request(const mf_call *call, const mf_sequence *s, int32_t i, mf_request *out, mf_error *err)
{
    const mf_api_request *r = call->request;
    const mf_prepared_prompt *prompt = &call->prepared->prompts[s->prompt];
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = prompt->ids.data;
    request.num_prompt_tokens = (int32_t)prompt->ids.size;
    request.sampling = call->prepared->sampling;
    request.sampling.max_tokens = prompt->max_tokens;
    if (request.sampling.min_tokens > prompt->max_tokens) {
        request.sampling.min_tokens = prompt->max_tokens;
    }
    /* The sequences of one prompt would be equal under one seed: each counts on from it. */
    request.sampling.has_seed = r->sampling.has_seed;
    request.sampling.seed = (int64_t)((uint64_t)r->sampling.seed + (uint64_t)(i % call->per_prompt));
    if (call->per_prompt > r->n && request.sampling.logprobs < 0) {
        request.sampling.logprobs = 0; /* the best are chosen by them */
    }
    request.sampling.prompt_logprobs = r->prompt_logprobs;
    if (r->echo && r->wants_logprobs && request.sampling.prompt_logprobs < r->sampling.logprobs) {
        request.sampling.prompt_logprobs = r->sampling.logprobs;
    }
    request.deadline_ns = call->deadline_ns;
    if (r->cache_salt && r->cache_salt[0]) {
        request.cache_salt = salt_number(call->calls, r->cache_salt);
    }
    request.priority = r->priority;
    request.user_data = (void *)s;
    if (call->prepared->guide) {
        mf_guide_state *state;
        MF_TRY(mf_guide_state_open(call->prepared->guide, &state, err));
        request.guide = (mf_guide){ state, fill_guide, accept_guide, release_guide };
    }
    *out = request;
    return MF_OK;
}

static mf_status open_sequences(mf_call *call, mf_request *requests, int32_t *num_filled, mf_error *err)
{
    for (int32_t i = 0; i < call->num_sequences; i++) {
        mf_sequence *s = &call->sequences[i];
        MF_TRY(open_sequence(call, s, i, err));
        MF_TRY(fill_request(call, s, i, &requests[i], err));
        *num_filled = i + 1;
    }
    return MF_OK;
}

static void refuse_busy(mf_call *call, mf_service_full full, const mf_error *err)
{
    if (call->calls->options.metrics) {
        mf_metrics_rejected(call->calls->options.metrics,
                            full == MF_SERVICE_FULL_TOKENS ? MF_REJECT_TOKENS : MF_REJECT_QUEUE_FULL);
    }
    mf_api_error error = { 0 };
    mf_api_fail(&error, 429, NULL, "The server is overloaded: %.200s. Try again later.", err->message);
    error.retry_after_s = 1;
    mf_call_fail(call, &error);
}

static void submit(mf_call *call)
{
    mf_calls *calls = call->calls;
    int32_t n = call->num_sequences, num_filled = 0;
    mf_request *requests = mf_alloc_array((size_t)n, sizeof *requests);
    uint64_t *serials = mf_alloc_array((size_t)n, sizeof *serials);
    mf_error err = { 0 };
    mf_service_full full = MF_SERVICE_NOT_FULL;
    mf_status status = requests && serials ? open_sequences(call, requests, &num_filled, &err) : MF_ERR_NOMEM;
    if (status == MF_OK) {
        status = mf_service_submit_all(calls->options.service, requests, n, serials, &full, &err);
    }
    if (status == MF_OK) {
        call->stage = MF_CALL_RUNNING;
        call->num_unfinished = n;
        call->submitted_ns = mf_now_ns();
        call->last_write_ns = call->submitted_ns;
        for (int32_t i = 0; i < n; i++) {
            call->sequences[i].serial = serials[i];
        }
    } else {
        for (int32_t i = 0; i < num_filled; i++) {
            if (requests[i].guide.release) {
                requests[i].guide.release(requests[i].guide.context);
            }
        }
    }
    mf_free(requests);
    mf_free(serials);
    if (status == MF_ERR_BUSY) {
        refuse_busy(call, full, &err);
    } else if (status == MF_ERR_INVALID) {
        fail_with_request(call, 400, err.message);
    } else if (status != MF_OK) {
        fail_with_request(call, 503,
                          status == MF_ERR_NOMEM ? "The server is out of memory." : "The engine is not running.");
    }
}

static void observe_params(const mf_call *call)
{
    mf_metrics *metrics = call->calls->options.metrics;
    if (metrics) {
        mf_metrics_observe(metrics, MF_HIST_PARAMS_N, call->request->n);
        for (int32_t i = 0; i < call->prepared->num_prompts; i++) {
            mf_metrics_observe(metrics, MF_HIST_PARAMS_MAX_TOKENS, call->prepared->prompts[i].max_tokens);
        }
    }
}

/* The request is prepared: on the I/O thread again. */
static void run_prepared(mf_call *call)
{
    const mf_api_request *r = call->request;
    mf_free(call->body);
    call->body = NULL;
    if (r->timeout_s > 0) {
        call->deadline_ns = call->received_ns + (int64_t)(r->timeout_s * 1e9);
        if (mf_now_ns() >= call->deadline_ns) {
            fail_with_request(call, 504, "The deadline passed before the request could start.");
            return;
        }
    }
    call->per_prompt = r->best_of > r->n ? r->best_of : r->n;
    int32_t n = call->prepared->num_prompts * call->per_prompt;
    call->names = (mf_token_names){ call->calls->options.model->prompt->tokenizer, r->return_tokens_as_token_ids,
                                    r->skip_special_tokens };
    call->sequences = mf_alloc_array((size_t)n, sizeof *call->sequences);
    if (!call->sequences || mf_answer_write_head(call->kind, r->stream, call->request_id, (int64_t)time(NULL), r->model,
                                                 &call->head) != MF_OK) {
        fail_with_request(call, 503, "The server is out of memory.");
        return;
    }
    call->num_sequences = n;
    observe_params(call);
    submit(call);
}

static void go_on(mf_call *call)
{
    if (call->stage == MF_CALL_ENDED) {
        mf_call_release(call); /* the client went meanwhile */
    } else if (call->read_status != MF_OK) {
        mf_call_fail(call, &call->error);
    } else {
        run_prepared(call);
    }
}

static void done_on_worker(void *data)
{
    mf_call *call = data;
    call->is_reading = false;
    go_on(call);
}

static void hand_over(mf_call *call)
{
    mf_text_job job = { run_on_worker, done_on_worker, call, call->body_size };
    mf_error err = { 0 };
    call->is_reading = true;
    if (mf_text_worker_submit(call->calls->options.text, &job, &err) != MF_OK) {
        call->is_reading = false;
        refuse_busy(call, MF_SERVICE_FULL_TOKENS, &err);
    }
}

/* A server with more to do than it can spends nothing on what it will refuse. */
static bool refuses_unread(mf_call *call)
{
    mf_service_full full;
    mf_error err = { 0 };
    if (mf_service_has_room(call->calls->options.service, &full)) {
        return false;
    }
    mf_fail(&err, MF_ERR_BUSY, "the queue is full");
    refuse_busy(call, full, &err);
    return true;
}

void mf_call_start(mf_call *call)
{
    if (refuses_unread(call)) {
        return;
    }
    if (call->body_size > call->calls->options.inline_bytes) {
        hand_over(call);
        return;
    }
    read_request(call);
    if (call->read_status == MF_OK) {
        /* A grammar may take 100 ms to compile. */
        if (call->request->constraint != MF_CONSTRAINT_NONE || call->request->tools) {
            hand_over(call);
            return;
        }
        prepare(call);
    }
    go_on(call);
}
