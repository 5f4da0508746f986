/* eval_run_engine.c - an evaluation on an engine in this process: see eval_run.h. */
#include <string.h>

#include "base/log.h"
#include "base/sys.h"
#include "cli/eval_run.h"
#include "text/stream.h"

typedef struct slot {
    mf_eval_unit *unit; /* NULL: free */
    mf_stream *stream;
    uint64_t request_id;
    bool stopped; /* by a stop string: what follows is not the answer's */
} slot;

typedef struct evaluation {
    mf_eval_run *run;
    mf_engine *engine;
    const mf_tokenizer *tok;
    mf_eval_set *set;
    slot *slots;
    int32_t num_slots, next, num_done;
} evaluation;

static mf_status open_stream(const evaluation *e, slot *s, mf_error *err)
{
    mf_stop_string stops[MF_STREAM_MAX_STOPS];
    for (int32_t i = 0; i < e->run->num_stops; i++) {
        stops[i] = (mf_stop_string){ e->run->stops[i], strlen(e->run->stops[i]) };
    }
    mf_stream_options options = { .stops = stops, .num_stops = (size_t)e->run->num_stops, .skip_special = true };
    return mf_stream_open(e->tok, &options, &s->stream, err);
}

/* A prompt that is too long loses its beginning, as with lm-eval. */
static void fit(const evaluation *e, mf_eval_unit *u, int64_t *max_tokens)
{
    int64_t room = mf_engine_max_model_len(e->engine), least = e->set->task == MF_EVAL_CHOICE ? 0 : 1;
    int64_t excess = (int64_t)u->ids.size + least - room;
    if (excess > 0) {
        mf_log(MF_LOG_WARN, "item %d: %lld tokens are too many by %lld; the beginning is cut", u->item + 1,
               (long long)u->ids.size, (long long)excess);
        u->ids.size -= (size_t)excess;
        memmove(u->ids.data, u->ids.data + excess, u->ids.size * sizeof *u->ids.data);
        u->context_len = u->context_len > excess ? u->context_len - (int32_t)excess : 1;
    }
    *max_tokens = *max_tokens < room - (int64_t)u->ids.size ? *max_tokens : room - (int64_t)u->ids.size;
}

static mf_status start(evaluation *e, slot *s, mf_eval_unit *u, mf_error *err)
{
    const bool choice = e->set->task == MF_EVAL_CHOICE;
    int64_t max_tokens = choice ? 0 : e->run->max_tokens;
    fit(e, u, &max_tokens);
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = u->ids.data;
    request.num_prompt_tokens = (int32_t)u->ids.size;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = (int32_t)max_tokens;
    request.sampling.logprobs = choice ? -1 : 0;
    request.sampling.prompt_logprobs = choice ? 0 : -1;
    request.user_data = s;
    MF_TRY(mf_engine_submit(e->engine, &request, &s->request_id, err));
    s->unit = u;
    s->stopped = false;
    return choice ? MF_OK : open_stream(e, s, err);
}

static mf_status on_token(evaluation *e, slot *s, const mf_event *event, mf_error *err)
{
    if (s->stopped) {
        return MF_OK;
    }
    int32_t stop = -1;
    MF_TRY(mf_eval_unit_push(s->unit, event->token_id, event->logprob, err));
    MF_TRY(mf_stream_push(s->stream, event->token_id, &s->unit->output, &stop, err));
    s->unit->num_tokens++;
    e->run->num_tokens++;
    if (stop >= 0) {
        s->stopped = true;
        mf_engine_cancel(e->engine, s->request_id);
    }
    return MF_OK;
}

static mf_status on_event(evaluation *e, const mf_event *event, mf_error *err)
{
    slot *s = event->user_data;
    mf_eval_unit *u = s->unit;
    if (event->type == MF_EVENT_TOKEN) {
        return on_token(e, s, event, err);
    }
    if (event->type == MF_EVENT_PROMPT_LOGPROB) {
        if (event->position >= u->context_len) {
            MF_TRY(mf_eval_unit_push(u, event->token_id, event->logprob, err));
            u->loglikelihood += (double)event->logprob;
            u->num_tokens++;
            e->run->num_tokens++;
        }
        return MF_OK;
    }
    if (event->finish_reason == MF_FINISH_ERROR) {
        return mf_fail(err, MF_ERR_INTERNAL,
                       "item %d: the model's logits are not finite: a weight holds NaN or infinity", u->item + 1);
    }
    int32_t stop = -1;
    mf_status status = s->stream && !s->stopped ? mf_stream_finish(s->stream, &u->output, &stop, err) : MF_OK;
    mf_stream_close(&s->stream);
    u->done = true;
    s->unit = NULL;
    e->num_done++;
    return status;
}

static mf_status submit_more(evaluation *e, mf_error *err)
{
    for (int32_t i = 0; i < e->num_slots && e->next < e->set->num_units; i++) {
        if (e->slots[i].unit) {
            continue;
        }
        mf_status status = start(e, &e->slots[i], &e->set->units[e->next], err);
        if (status == MF_ERR_BUSY && e->num_done < e->next) {
            return MF_OK; /* a step makes room */
        }
        MF_TRY(status);
        e->next++;
    }
    return MF_OK;
}

mf_status mf_eval_run_engine(mf_eval_run *run, mf_engine *engine, const mf_tokenizer *tok, mf_eval_set *set,
                             mf_error *err)
{
    evaluation e = { .run = run, .engine = engine, .tok = tok, .set = set, .num_slots = (int32_t)run->max_concurrency };
    const int32_t capacity = mf_engine_max_events(engine);
    mf_event *events = mf_alloc_array((size_t)capacity, sizeof *events);
    e.slots = mf_alloc_array((size_t)e.num_slots, sizeof *e.slots);
    mf_status status = events && e.slots ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "eval: out of memory");
    double started = mf_now_s(), told = 0;
    run->num_tokens = 0;
    while (status == MF_OK && e.num_done < set->num_units) {
        status = submit_more(&e, err);
        int32_t n = 0;
        if (status == MF_OK) {
            status = mf_engine_step(engine, events, capacity, &n, err);
        }
        for (int32_t i = 0; i < n && status == MF_OK; i++) {
            status = on_event(&e, &events[i], err);
        }
        double now = mf_now_s();
        if (status == MF_OK && now - told >= 0.1) {
            told = now;
            if (!run->progress(run->context, e.num_done, run->num_tokens, now - started)) {
                status = mf_fail(err, MF_ERR_CANCELLED, "interrupted");
            }
        }
    }
    run->seconds = mf_now_s() - started;
    for (int32_t i = 0; e.slots && i < e.num_slots; i++) {
        mf_stream_close(&e.slots[i].stream);
    }
    mf_free(e.slots);
    mf_free(events);
    return status;
}
