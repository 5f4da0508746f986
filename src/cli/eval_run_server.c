/* eval_run_server.c - an evaluation against an OpenAI-compatible server: see eval_run.h. */
#include <event2/event.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "cli/eval_run.h"

enum { MAX_TRIES = 4, MAX_ANSWER_BYTES = 64 << 20 };

typedef struct evaluation evaluation;

typedef struct worker {
    evaluation *owner;
    mf_http_connection *connection;
    mf_eval_unit *unit; /* NULL: idle */
    struct event *again;
    mf_buffer body;
    int32_t tries;
} worker;

struct evaluation {
    mf_eval_run *run;
    mf_eval_set *set;
    const char *model, *api_key;
    struct event_base *base;
    worker *workers;
    int32_t num_workers, next, num_done;
    double started_s;
    mf_status status;
    mf_error *err;
};

static void stop_with(evaluation *e, mf_status status)
{
    e->status = status;
    event_base_loopbreak(e->base);
}

/* ---- requests ---- */

static json_t *ids_json(const mf_ids *ids)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < ids->size; i++) {
        json_array_append_new(list, json_integer(ids->data[i]));
    }
    return list;
}

static json_t *make_body(const evaluation *e, const mf_eval_unit *u)
{
    const bool choice = e->set->task == MF_EVAL_CHOICE;
    json_t *body = json_pack("{s:s, s:i, s:I}", "model", e->model, "temperature", 0, "max_tokens",
                             (json_int_t)(choice ? 1 : e->run->max_tokens));
    if (!body) {
        return NULL;
    }
    if (u->messages) {
        json_object_set(body, "messages", u->messages);
    } else if (u->ids.size) {
        json_object_set_new(body, "prompt", ids_json(&u->ids));
    } else {
        json_object_set_new(body, "prompt", json_string(u->text));
    }
    if (choice) {
        json_object_set_new(body, "echo", json_true());
        json_object_set_new(body, "logprobs", json_integer(1));
    } else if (e->run->num_stops) {
        json_t *stops = json_array();
        for (int32_t i = 0; i < e->run->num_stops; i++) {
            json_array_append_new(stops, json_string(e->run->stops[i]));
        }
        json_object_set_new(body, "stop", stops);
    }
    return body;
}

/* ---- answers ---- */

static mf_status take_loglikelihood(mf_eval_unit *u, const json_t *choice, mf_error *err)
{
    const json_t *list = json_object_get(json_object_get(choice, "logprobs"), "token_logprobs");
    size_t n = json_array_size(list);
    if (n < u->ids.size || n > u->ids.size + 1) {
        return mf_fail(err, MF_ERR_FORMAT,
                       "expected log-probabilities of the prompt's %zu tokens and one more; got %zu", u->ids.size, n);
    }
    u->loglikelihood = 0;
    for (size_t i = (size_t)u->context_len; i < u->ids.size; i++) {
        const json_t *value = json_array_get(list, i);
        if (!json_is_number(value)) {
            return mf_fail(err, MF_ERR_FORMAT, "token_logprobs[%zu]: expected a number; got %s", i,
                           mf_json_type_name(value));
        }
        u->loglikelihood += json_number_value(value);
    }
    u->num_tokens = (int64_t)u->ids.size - u->context_len;
    return MF_OK;
}

static mf_status take_text(mf_eval_unit *u, const json_t *document, const json_t *choice, mf_error *err)
{
    const json_t *text =
        u->messages ? json_object_get(json_object_get(choice, "message"), "content") : json_object_get(choice, "text");
    if (!json_is_string(text) && !(json_is_null(text) && u->messages)) {
        return mf_fail(err, MF_ERR_FORMAT, "expected a text in choices[0]; got %s", mf_json_type_name(text));
    }
    const json_t *made = json_object_get(json_object_get(document, "usage"), "completion_tokens");
    u->num_tokens = json_is_integer(made) ? json_integer_value(made) : 0;
    if (json_is_string(text) &&
        mf_buffer_append(&u->output, json_string_value(text), json_string_length(text)) != MF_OK) {
        return mf_fail(err, MF_ERR_NOMEM, "eval: out of memory");
    }
    return MF_OK;
}

static mf_status take_answer(const evaluation *e, worker *w, int status, mf_error *err)
{
    json_t *document = NULL;
    mf_json_limits limits = { .max_values = 1 << 24, .top_is_object = true, .allow_nul = true };
    mf_status result = mf_json_parse(mf_buffer_text(&w->body), w->body.size, "answer", &limits, &document, err);
    const json_t *choice = json_array_get(json_object_get(document, "choices"), 0);
    const char *message = json_string_value(json_object_get(json_object_get(document, "error"), "message"));
    if (status != 200) {
        result = mf_fail(err, MF_ERR_IO, "HTTP %d: %.300s", status, message ? message : mf_buffer_text(&w->body));
    } else if (result == MF_OK) {
        result = e->set->task == MF_EVAL_CHOICE ? take_loglikelihood(w->unit, choice, err)
                                                : take_text(w->unit, document, choice, err);
    }
    json_decref(document);
    return result;
}

/* ---- the loop ---- */

static void send_unit(worker *w);

static void next_unit(worker *w)
{
    evaluation *e = w->owner;
    w->unit = NULL;
    if (e->num_done == e->set->num_units) {
        event_base_loopbreak(e->base);
    } else if (e->next < e->set->num_units) {
        w->unit = &e->set->units[e->next++];
        w->tries = 0;
        send_unit(w);
    }
}

static mf_status on_body(void *context, const char *bytes, size_t size, mf_error *err)
{
    worker *w = context;
    w->body.limit = MAX_ANSWER_BYTES;
    mf_status status = mf_buffer_append(&w->body, bytes, size);
    return status == MF_OK ? MF_OK : mf_fail(err, status, "answer: more than %d bytes", MAX_ANSWER_BYTES);
}

static void on_again(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    send_unit(context);
}

static void try_again(worker *w, int wait_s)
{
    wait_s = wait_s < 0 ? w->tries : wait_s > 60 ? 60 : wait_s;
    struct timeval delay = { wait_s, wait_s ? 0 : 50000 };
    event_add(w->again, &delay);
}

static void on_done(void *context, const mf_http_response *response, const mf_error *failure)
{
    worker *w = context;
    evaluation *e = w->owner;
    mf_error why = { 0 };
    mf_status status =
        failure ? mf_fail(&why, failure->status, "%s", failure->message) : take_answer(e, w, response->status, &why);
    if (status != MF_OK) {
        bool passing = failure || response->status == 408 || response->status == 429 || response->status >= 500;
        if (passing && w->tries < MAX_TRIES) {
            mf_buffer_clear(&w->unit->output);
            try_again(w, failure ? -1 : response->retry_after_s);
            return;
        }
        mf_fail(e->err, status, "item %d: %s (%d tries)", w->unit->item + 1, why.message, w->tries);
        stop_with(e, status);
        return;
    }
    w->unit->done = true;
    e->run->num_tokens += w->unit->num_tokens;
    e->num_done++;
    next_unit(w);
}

static void send_unit(worker *w)
{
    evaluation *e = w->owner;
    json_t *body = make_body(e, w->unit);
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    mf_buffer_clear(&w->body);
    w->tries++;
    mf_http_request request = { .method = "POST",
                                .path = w->unit->messages ? "/v1/chat/completions" : "/v1/completions",
                                .body = text,
                                .body_size = text ? strlen(text) : 0,
                                .api_key = e->api_key,
                                .silence_s = 3600 };
    mf_http_handler handler = { w, on_body, on_done };
    mf_status status = text ? mf_http_connection_send(w->connection, &request, &handler, e->err)
                            : mf_fail(e->err, MF_ERR_NOMEM, "eval: out of memory");
    mf_free(text);
    if (status != MF_OK) {
        stop_with(e, status);
    }
}

static void on_tick(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    evaluation *e = context;
    if (!e->run->progress(e->run->context, e->num_done, e->run->num_tokens, mf_now_s() - e->started_s)) {
        mf_fail(e->err, MF_ERR_CANCELLED, "interrupted");
        stop_with(e, MF_ERR_CANCELLED);
    }
}

static mf_status open_workers(evaluation *e, const mf_http_target *target, mf_error *err)
{
    int32_t wanted = (int32_t)e->run->max_concurrency;
    wanted = wanted < e->set->num_units ? wanted : e->set->num_units;
    e->workers = mf_alloc_array((size_t)wanted, sizeof *e->workers);
    if (!e->workers) {
        return mf_fail(err, MF_ERR_NOMEM, "eval: out of memory");
    }
    for (; e->num_workers < wanted; e->num_workers++) {
        worker *w = &e->workers[e->num_workers];
        w->owner = e;
        w->again = event_new(e->base, -1, 0, on_again, w);
        if (!w->again) {
            return mf_fail(err, MF_ERR_NOMEM, "eval: out of memory");
        }
        MF_TRY(mf_http_connection_open(e->base, target, &w->connection, err));
    }
    return MF_OK;
}

mf_status mf_eval_run_server(mf_eval_run *run, const mf_http_target *target, const char *model, const char *api_key,
                             mf_eval_set *set, mf_error *err)
{
    evaluation e = { .run = run, .set = set, .model = model, .api_key = api_key, .base = event_base_new(), .err = err };
    e.started_s = mf_now_s();
    struct event *tick = e.base ? event_new(e.base, -1, EV_PERSIST, on_tick, &e) : NULL;
    run->num_tokens = 0;
    e.status = tick ? open_workers(&e, target, err) : mf_fail(err, MF_ERR_NOMEM, "eval: out of memory");
    if (e.status == MF_OK) {
        const struct timeval tenth = { 0, 100000 };
        event_add(tick, &tenth);
        for (int32_t i = 0; i < e.num_workers && e.status == MF_OK; i++) {
            next_unit(&e.workers[i]);
        }
        while (e.status == MF_OK && e.num_done < set->num_units) {
            if (event_base_loop(e.base, EVLOOP_NO_EXIT_ON_EMPTY) < 0) {
                e.status = mf_fail(err, MF_ERR_INTERNAL, "eval: the event loop failed");
            }
        }
    }
    run->seconds = mf_now_s() - e.started_s;
    for (int32_t i = 0; i < e.num_workers; i++) {
        mf_http_connection_close(&e.workers[i].connection);
        mf_buffer_close(&e.workers[i].body);
        event_free(e.workers[i].again);
    }
    mf_free(e.workers);
    if (tick) {
        event_free(tick);
    }
    if (e.base) {
        event_base_free(e.base);
    }
    return e.status;
}
