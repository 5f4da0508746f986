/* service_thread.c - the engine thread's half of the service: opens the model, then goes round: commands, a step,
 * events.
 *
 * Each round takes all marks at once, so a command is seen before the next step.  A step makes no more events than the
 * ring has room for; without room the engine waits for the reader, and commands are still seen. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sys.h"
#include "engine/engine.h"
#include "server/service_impl.h"

enum {
    NS_PER_MS = 1000000,
    NAP_MS = 100,      /* with live requests that cannot run: deadlines are seen this often */
    IDLE_NAP_MS = 500, /* without: the heartbeat's pace */
    LOAD_COPY_MS = 100,
    MAX_FAILED_STEPS = 8 /* in a row: the device is gone, not one request bad */
};

void mf_service_signal(mf_service *s)
{
    if (!atomic_exchange(&s->is_signalled, true)) {
        uint64_t one = 1;
        (void)!write(s->wake_fd, &one, sizeof one);
    }
}

static void set_state(mf_service *s, mf_service_state state)
{
    atomic_store(&s->state, (int)state);
    mf_service_signal(s);
}

static void fail(mf_service *s, mf_status status, const char *message)
{
    s->failure_status = status;
    snprintf(s->failure, sizeof s->failure, "%s", message);
    set_state(s, MF_SERVICE_FAILED);
}

/* ---- the ring -----------------------------------------------------------------------------------------------------
 */

static uint32_t room(const mf_service *s)
{
    return s->num_ring - (uint32_t)(atomic_load_explicit(&s->tail, memory_order_relaxed) - atomic_load(&s->head));
}

static mf_ring_event *place(mf_service *s, uint64_t ahead)
{
    return &s->ring[(atomic_load_explicit(&s->tail, memory_order_relaxed) + ahead) % s->num_ring];
}

static void publish(mf_service *s, uint64_t n)
{
    if (n > 0) {
        atomic_store(&s->tail, atomic_load_explicit(&s->tail, memory_order_relaxed) + n);
        mf_service_signal(s);
    }
}

/* Ends that no engine told of: refused, or cancelled before the engine saw them. */
static void queue_end(mf_service *s, int32_t index, uint64_t serial, mf_status status, const char *message)
{
    mf_service_slot *slot = &s->slots[index];
    slot->engine_serial = serial;
    slot->engine_id = 0;
    slot->status = status;
    snprintf(slot->message, sizeof slot->message, "%.230s", message);
    slot->next_end = -1;
    *(s->last_end >= 0 ? &s->slots[s->last_end].next_end : &s->first_end) = index;
    s->last_end = index;
}

static void publish_ends(mf_service *s)
{
    uint32_t free_places = room(s), n = 0;
    while (s->first_end >= 0 && n < free_places) {
        int32_t index = s->first_end;
        const mf_service_slot *slot = &s->slots[index];
        bool refused = slot->status != MF_ERR_CANCELLED;
        *place(s, n++) = (mf_ring_event){
            .type = refused ? MF_SERVICE_REFUSED : MF_SERVICE_FINISHED,
            .slot = index,
            .serial = slot->engine_serial,
            .step_ns = mf_now_ns(),
            .step_tokens = 0,
            .event = { .type = MF_EVENT_FINISHED,
                       .finish_reason = refused ? MF_FINISH_NONE : MF_FINISH_CANCELLED,
                       .token_id = -1,
                       .stop_token_id = -1 },
        };
        s->first_end = slot->next_end;
        if (s->first_end < 0) {
            s->last_end = -1;
        }
    }
    publish(s, n);
}

/* ---- commands -----------------------------------------------------------------------------------------------------
 */

/* lock is held */
static int32_t take_commands(mf_service *s)
{
    int32_t n = 0;
    while (s->first_listed >= 0) {
        int32_t index = s->first_listed;
        mf_service_slot *slot = &s->slots[index];
        s->first_listed = slot->next_listed;
        slot->is_listed = false;
        if (slot->marks != 0) {
            s->commands[n++] = (mf_service_command){ index, slot->marks, slot->serial,
                                                     slot->marks & MF_MARK_SUBMIT ? slot->request : NULL };
            slot->request = NULL;
            slot->marks = 0;
        }
    }
    s->last_listed = -1;
    return n;
}

static void submit(mf_service *s, const mf_service_command *c)
{
    mf_service_slot *slot = &s->slots[c->slot];
    if (c->marks & MF_MARK_CANCEL) {
        mf_service_drop_request(c->request);
        queue_end(s, c->slot, c->serial, MF_ERR_CANCELLED, "");
        return;
    }
    if (s->is_dead) {
        mf_service_drop_request(c->request);
        queue_end(s, c->slot, c->serial, MF_ERR_DEVICE, "the engine has failed");
        return;
    }
    mf_error err = { 0 };
    uint64_t id;
    c->request->user_data = slot;
    mf_status status = mf_engine_submit(s->engine, c->request, &id, &err);
    if (status != MF_OK) {
        mf_service_drop_request(c->request);
        queue_end(s, c->slot, c->serial, status, err.message);
        return;
    }
    mf_free(c->request); /* the guide is the engine's now */
    slot->engine_serial = c->serial;
    slot->engine_id = id;
    if (c->marks & MF_MARK_PAUSE) {
        mf_engine_pause(s->engine, id, 1);
    }
}

/* Ended serials are counted by the engine, or here when the slot stands for another one by now. */
static int64_t obey(mf_service *s, const mf_service_command *c)
{
    const mf_service_slot *slot = &s->slots[c->slot];
    if (c->marks & MF_MARK_SUBMIT) {
        submit(s, c);
        return 0;
    }
    if (slot->engine_serial != c->serial || slot->engine_id == 0) {
        return 1;
    }
    if (c->marks & MF_MARK_CANCEL) {
        mf_engine_cancel(s->engine, slot->engine_id);
    } else if (c->marks & (MF_MARK_PAUSE | MF_MARK_RESUME)) {
        mf_engine_pause(s->engine, slot->engine_id, (c->marks & MF_MARK_PAUSE) != 0);
    }
    return 0;
}

/* ---- steps --------------------------------------------------------------------------------------------------------
 */

/* Rows of the step just made; 0 when it only handed out what an earlier one had left. */
static int32_t take_step_size(mf_service *s)
{
    mf_engine_stats stats;
    mf_engine_get_stats(s->engine, &stats);
    if (stats.num_steps == s->num_told_steps) {
        return 0;
    }
    s->num_told_steps = stats.num_steps;
    return stats.last_step_prefill_tokens + stats.last_step_decode_tokens;
}

static void publish_events(mf_service *s, int32_t n, int64_t step_ns)
{
    int32_t step_tokens = take_step_size(s);
    if (n == 0 && step_tokens > 0) { /* there is room for one: a step is made with room only */
        *place(s, 0) =
            (mf_ring_event){ .type = MF_SERVICE_STEP, .slot = -1, .step_ns = step_ns, .step_tokens = step_tokens };
        publish(s, 1);
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        const mf_event *e = &s->events[i];
        mf_service_slot *slot = e->user_data;
        mf_ring_event *to = place(s, (uint64_t)i);
        to->type = e->type == MF_EVENT_TOKEN      ? MF_SERVICE_TOKEN
                   : e->type == MF_EVENT_FINISHED ? MF_SERVICE_FINISHED
                                                  : MF_SERVICE_PROMPT_LOGPROB;
        to->slot = (int32_t)(slot - s->slots);
        to->serial = slot->engine_serial;
        to->step_ns = step_ns;
        to->step_tokens = i == 0 ? step_tokens : 0;
        to->event = *e;
        if (e->num_top_logprobs > 0) {
            memcpy(to->top, e->top_logprobs, (size_t)e->num_top_logprobs * sizeof *to->top);
        }
        if (e->type == MF_EVENT_FINISHED) {
            slot->engine_id = 0;
        }
    }
    publish(s, (uint64_t)n);
}

/* After too many failed steps in a row: what is left ends, what comes is refused. */
static void die(mf_service *s, const char *message)
{
    s->is_dead = true;
    for (int32_t i = 0; i < s->num_slots; i++) {
        if (s->slots[i].engine_id != 0) {
            mf_engine_cancel(s->engine, s->slots[i].engine_id);
        }
    }
    fail(s, MF_ERR_DEVICE, message);
}

static void step(mf_service *s)
{
    uint32_t free_places = room(s);
    if (free_places == 0) {
        return;
    }
    int32_t capacity = free_places < (uint32_t)s->num_events ? (int32_t)free_places : s->num_events;
    int32_t n = 0;
    mf_error err = { 0 };
    mf_status status = mf_engine_step(s->engine, s->events, capacity, &n, &err);
    publish_events(s, n, mf_now_ns());
    if (status == MF_OK) {
        s->num_failed_steps = 0;
        return;
    }
    mf_log(MF_LOG_ERROR, "a step failed: %.800s", err.message);
    if (++s->num_failed_steps == MAX_FAILED_STEPS) {
        die(s, err.message);
    }
}

static bool is_busy(const mf_service *s)
{
    return (mf_engine_has_work(s->engine) || s->first_end >= 0) && room(s) > 0;
}

/* lock is held; true when woken for work, false after a nap */
static bool wait(mf_service *s, bool has_live)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = (int64_t)until.tv_nsec + (int64_t)(has_live ? NAP_MS : IDLE_NAP_MS) * NS_PER_MS;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    s->sleeps = true;
    int failed = 0;
    while (!s->stop && !s->reset && s->first_listed < 0 && !is_busy(s) && failed == 0) {
        failed = pthread_cond_timedwait(&s->come, &s->lock, &until);
    }
    s->sleeps = false;
    return failed == 0;
}

/* ---- the rounds ---------------------------------------------------------------------------------------------------
 */

static void publish_numbers(mf_service *s, const mf_engine_stats *stats, int32_t taken_reqs, int64_t taken_tokens,
                            int64_t num_late)
{
    pthread_mutex_lock(&s->lock);
    s->stats = *stats;
    s->sent_reqs -= taken_reqs;
    s->sent_tokens -= taken_tokens;
    s->num_late += num_late;
    pthread_mutex_unlock(&s->lock);
    int64_t now_ns = mf_now_ns();
    bool is_idle = stats->num_running + stats->num_waiting == 0;
    if (s->load && (is_idle || now_ns - s->load_ns >= (int64_t)LOAD_COPY_MS * NS_PER_MS)) {
        pthread_mutex_lock(&s->load_lock);
        memcpy(s->load, stats->expert_load, s->load_size * sizeof *s->load);
        pthread_mutex_unlock(&s->load_lock);
        s->load_ns = now_ns;
    }
}

static void run(mf_service *s)
{
    bool has_live = false;
    for (;;) {
        pthread_mutex_lock(&s->lock);
        bool is_timeout = false;
        if (!s->stop && !s->reset && s->first_listed < 0 && !is_busy(s)) {
            atomic_store(&s->waits_for_room, true);
            is_timeout = !wait(s, has_live);
            atomic_store(&s->waits_for_room, false);
        }
        bool stop = s->stop, reset = s->reset;
        s->reset = false;
        int32_t n = take_commands(s);
        pthread_mutex_unlock(&s->lock);
        if (stop) {
            for (int32_t i = 0; i < n; i++) {
                mf_service_drop_request(s->commands[i].request);
            }
            return;
        }
        atomic_store(&s->heartbeat_ns, mf_now_ns());
        if (reset) {
            mf_engine_reset_prefix_cache(s->engine);
        }
        int32_t taken_reqs = 0;
        int64_t taken_tokens = 0, num_late = 0;
        for (int32_t i = 0; i < n; i++) {
            const mf_service_command *c = &s->commands[i];
            if (c->request) {
                taken_reqs++;
                taken_tokens += c->request->num_prompt_tokens > 0 ? c->request->num_prompt_tokens : 0;
            }
            num_late += obey(s, c);
        }
        publish_ends(s);
        if (mf_engine_has_work(s->engine)) {
            atomic_store(&s->has_work, true);
            step(s);
        } else if (is_timeout && has_live) {
            step(s); /* a paused one may be past its deadline */
        }
        mf_engine_stats stats;
        mf_engine_get_stats(s->engine, &stats);
        has_live = stats.num_running + stats.num_waiting > 0;
        atomic_store(&s->has_work, mf_engine_has_work(s->engine) != 0);
        publish_numbers(s, &stats, taken_reqs, taken_tokens, num_late);
    }
}

static void beat(void *context)
{
    mf_service *s = context;
    atomic_store(&s->heartbeat_ns, mf_now_ns());
}

static mf_status make_ready(mf_service *s, mf_error *err)
{
    MF_TRY(s->options.open(s->options.context, &s->engine, err));
    mf_engine_set_beat(s->engine, beat, s);
    s->num_events = mf_engine_max_events(s->engine);
    s->events = mf_alloc_array((size_t)s->num_events, sizeof *s->events);
    mf_engine_stats stats;
    mf_engine_get_stats(s->engine, &stats);
    size_t load_size = stats.expert_load ? (size_t)stats.num_layers * (size_t)stats.num_experts : 0;
    int64_t *load = load_size > 0 ? mf_alloc_array(load_size, sizeof *load) : NULL;
    if (!s->events || (load_size > 0 && !load)) {
        mf_free(load);
        return mf_fail(err, MF_ERR_NOMEM, "service: out of memory for events and counts");
    }
    s->num_told_steps = stats.num_steps; /* what `open` ran to warm up is nobody's */
    pthread_mutex_lock(&s->load_lock);
    s->load = load;
    s->load_size = load_size;
    pthread_mutex_unlock(&s->load_lock);
    publish_numbers(s, &stats, 0, 0, 0);
    return MF_OK;
}

void *mf_service_thread(void *context)
{
    mf_service *s = context;
    mf_error err = { 0 };
    mf_status status = make_ready(s, &err);
    if (status == MF_OK) {
        atomic_store(&s->heartbeat_ns, mf_now_ns());
        set_state(s, MF_SERVICE_READY);
        run(s);
    } else {
        fail(s, status, err.message[0] ? err.message : mf_status_name(status));
    }
    mf_engine_close(&s->engine);
    return NULL;
}
