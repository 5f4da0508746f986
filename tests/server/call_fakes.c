/* call_fakes.c - see call_fakes.h. */
#include "call_fakes.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/sys.h"
#include "text/guide.h"

/* ---- the exchange -------------------------------------------------------------------------------------------------
 */

void fake_exchange_init(mf_exchange *e, const char *body)
{
    *e = (mf_exchange){ .body = body, .received_ns = mf_now_ns() };
}

void fake_exchange_close(mf_exchange *e)
{
    mf_buffer_close(&e->written);
}

void fake_exchange_go(mf_exchange *e, const char *cause)
{
    e->has_ended = true;
    e->events->gone(e->data, e, cause);
}

const char *mf_exchange_body(const mf_exchange *e, size_t *size)
{
    *size = strlen(e->body);
    return e->body;
}

void mf_exchange_drop_body(mf_exchange *e)
{
    (void)e;
}

const char *mf_exchange_header(const mf_exchange *e, const char *name)
{
    return strcasecmp(name, "X-Request-Timeout") == 0 ? e->timeout_header : NULL;
}

const char *mf_exchange_request_id(const mf_exchange *e)
{
    (void)e;
    return "req-1";
}

int64_t mf_exchange_received_ns(const mf_exchange *e)
{
    return e->received_ns;
}

void mf_exchange_attach(mf_exchange *e, const mf_exchange_events *events, void *data)
{
    e->events = events;
    e->data = data;
}

void mf_exchange_reply(mf_exchange *e, int status, const char *content_type, const void *body, size_t size)
{
    e->status = status;
    snprintf(e->content_type, sizeof e->content_type, "%s", content_type);
    mf_buffer_append(&e->written, body, size);
    e->has_ended = true;
}

void mf_exchange_reply_error(mf_exchange *e, const mf_api_error *error)
{
    e->status = error->status;
    e->error = *error;
    e->is_error = true;
    e->has_ended = true;
}

void mf_exchange_begin(mf_exchange *e, int status, const char *content_type)
{
    e->status = status;
    snprintf(e->content_type, sizeof e->content_type, "%s", content_type);
    e->has_begun = true;
}

bool mf_exchange_write(mf_exchange *e, const void *data, size_t size)
{
    mf_buffer_append(&e->written, data, size);
    e->num_writes++;
    return !(e->writes_until_full > 0 && --e->writes_until_full == 0);
}

void mf_exchange_end(mf_exchange *e, bool close)
{
    e->has_ended = true;
    e->has_closed = close;
}

/* ---- the service --------------------------------------------------------------------------------------------------
 */

bool mf_service_has_room(mf_service *s, mf_service_full *full)
{
    *full = s->ahead;
    return s->ahead == MF_SERVICE_NOT_FULL;
}

mf_status mf_service_submit_all(mf_service *s, const mf_request *requests, int32_t n, uint64_t *serials,
                                mf_service_full *full, mf_error *err)
{
    if (s->full != MF_SERVICE_NOT_FULL) {
        *full = s->full;
        return mf_fail(err, MF_ERR_BUSY, "the queue is full");
    }
    for (int32_t i = 0; i < n; i++) {
        fake_submitted *r = &s->requests[s->num_requests];
        *r = (fake_submitted){ .serial = (uint64_t)++s->num_requests,
                               .user_data = requests[i].user_data,
                               .sampling = requests[i].sampling,
                               .num_prompt = requests[i].num_prompt_tokens,
                               .deadline_ns = requests[i].deadline_ns,
                               .priority = requests[i].priority,
                               .guide = requests[i].guide };
        memcpy(r->prompt, requests[i].prompt_token_ids,
               (size_t)(r->num_prompt < 256 ? r->num_prompt : 256) * sizeof *r->prompt);
        serials[i] = r->serial;
    }
    return MF_OK;
}

void mf_service_cancel(mf_service *s, uint64_t serial)
{
    s->requests[serial - 1].is_cancelled = true;
}

void mf_service_pause(mf_service *s, uint64_t serial, bool paused)
{
    s->requests[serial - 1].is_paused = paused;
    s->requests[serial - 1].num_pauses++;
}

int32_t mf_service_poll(mf_service *s, mf_service_event *events, int32_t capacity)
{
    int32_t n = 0;
    while (n < capacity && s->num_read < s->num_events) {
        events[n++] = s->events[s->num_read++];
    }
    if (n == 0) {
        s->num_events = 0;
        s->num_read = 0;
    }
    return n;
}

static mf_service_event *add_event(mf_service *s, int32_t request, mf_service_event_type type)
{
    mf_service_event *e = &s->events[s->num_events++];
    fake_submitted *r = &s->requests[request];
    s->now_ns = mf_now_ns();
    *e = (mf_service_event){ .type = type,
                             .serial = r->serial,
                             .user_data = r->user_data,
                             .step_ns = s->now_ns,
                             .event = {
                                 .user_data = r->user_data, .token_id = -1, .stop_token_id = -1, .logprob = NAN } };
    return e;
}

static void set_top(mf_service *s, mf_service_event *e, const mf_logprob *top, int32_t n)
{
    mf_logprob *copy = s->tops[e - s->events];
    if (n > 0) {
        memcpy(copy, top, (size_t)n * sizeof *copy);
        e->event.top_logprobs = copy;
    }
    e->event.num_top_logprobs = n;
}

void fake_token_with_top(mf_service *s, int32_t request, int32_t token_id, float logprob, const mf_logprob *top,
                         int32_t n)
{
    fake_submitted *r = &s->requests[request];
    mf_service_event *e = add_event(s, request, MF_SERVICE_TOKEN);
    e->event.token_id = token_id;
    e->event.logprob = r->sampling.logprobs >= 0 ? logprob : NAN;
    e->event.position = r->num_prompt + r->num_made++;
    set_top(s, e, top, n);
}

void fake_token(mf_service *s, int32_t request, int32_t token_id, float logprob)
{
    fake_token_with_top(s, request, token_id, logprob, NULL, 0);
}

void fake_prompt_logprob(mf_service *s, int32_t request, int32_t position, float logprob, int32_t rank,
                         const mf_logprob *top, int32_t n)
{
    mf_service_event *e = add_event(s, request, MF_SERVICE_PROMPT_LOGPROB);
    e->event.token_id = s->requests[request].prompt[position];
    e->event.position = position;
    e->event.logprob = logprob;
    e->event.rank = rank;
    set_top(s, e, top, n);
}

void fake_end(mf_service *s, int32_t request, mf_finish_reason reason, int32_t stop_token_id)
{
    fake_submitted *r = &s->requests[request];
    mf_service_event *e = add_event(s, request, MF_SERVICE_FINISHED);
    r->has_ended = true;
    e->event.type = MF_EVENT_FINISHED;
    e->event.finish_reason = reason;
    e->event.stop_token_id = stop_token_id;
    e->event.prompt_tokens = r->num_prompt;
    e->event.completion_tokens = r->num_made;
    e->event.queue_s = 0.001;
    e->event.prefill_s = 0.01;
    if (r->guide.release) {
        r->guide.release(r->guide.context);
        r->guide.release = NULL;
    }
}

void fake_end_in_queue(mf_service *s, int32_t request)
{
    fake_end(s, request, MF_FINISH_DEADLINE, -1);
    s->events[s->num_events - 1].event.prefill_s = 0;
}

void fake_refuse(mf_service *s, int32_t request, mf_status status, const char *message)
{
    mf_service_event *e = add_event(s, request, MF_SERVICE_REFUSED);
    e->status = status;
    e->message = message;
    s->requests[request].has_ended = true;
}

/* ---- guides: fake_guide.c compiles them, nobody walks them here
 * ------------------------------------------------------ */

mf_status mf_guide_state_open(mf_guide_program *program, mf_guide_state **out, mf_error *err)
{
    (void)program;
    (void)err;
    *out = mf_alloc_zero(1);
    return MF_OK;
}

void mf_guide_state_close(mf_guide_state **state)
{
    mf_free(*state);
    *state = NULL;
}

void mf_guide_state_fill(mf_guide_state *state, uint32_t *mask, int32_t vocab_size)
{
    (void)state;
    (void)mask;
    (void)vocab_size;
}

void mf_guide_state_accept(mf_guide_state *state, int32_t token_id)
{
    (void)state;
    (void)token_id;
}
