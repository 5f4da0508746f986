/* service.c - the I/O thread's half of the service: see service.h. */
#include "server/service.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/sys.h"
#include "base/threads.h"
#include "server/service_impl.h"

enum { DEFAULT_RING = 4096 };

/* ---- open, close --------------------------------------------------------------------------------------------------
 */

static mf_status open_memory(mf_service *s, mf_error *err)
{
    size_t n = (size_t)s->num_slots;
    s->slots = mf_alloc_array(n, sizeof *s->slots);
    s->free_slots = mf_alloc_array(n, sizeof *s->free_slots);
    s->to_free = mf_alloc_array(n, sizeof *s->to_free);
    s->commands = mf_alloc_array(n, sizeof *s->commands);
    s->ring = mf_alloc_array(s->num_ring, sizeof *s->ring);
    if (!s->slots || !s->free_slots || !s->to_free || !s->commands || !s->ring) {
        return mf_fail(err, MF_ERR_NOMEM, "service: out of memory for %d requests", s->num_slots);
    }
    for (int32_t i = s->num_slots; i-- > 0;) {
        s->free_slots[s->num_free_slots++] = i;
    }
    return MF_OK;
}

static mf_status open_thread(mf_service *s, mf_error *err)
{
    s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (s->wake_fd < 0) {
        return mf_fail(err, MF_ERR_IO, "eventfd: %s", strerror(errno));
    }
    int failed = mf_thread_start(&s->thread, "mf-engine", mf_service_thread, s);
    if (failed) {
        return mf_fail(err, MF_ERR_NOMEM, "the engine's thread: %s", strerror(failed));
    }
    s->has_thread = true;
    return MF_OK;
}

mf_status mf_service_open(const mf_service_options *options, mf_service **out, mf_error *err)
{
    *out = NULL;
    if (options->max_live_requests < 1 || options->max_live_requests > 1 << MF_SERVICE_SLOT_BITS ||
        options->max_num_queued_reqs < 1) {
        return mf_fail(err, MF_ERR_INVALID, "service: expected 1 to %d live requests; got %d",
                       1 << MF_SERVICE_SLOT_BITS, options->max_live_requests);
    }
    mf_service *s = mf_alloc_zero(sizeof *s);
    if (!s) {
        return mf_fail(err, MF_ERR_NOMEM, "service: out of memory");
    }
    s->options = *options;
    s->num_slots = options->max_live_requests;
    s->num_ring = options->num_ring_events > 0 ? (uint32_t)options->num_ring_events : DEFAULT_RING;
    s->wake_fd = -1;
    s->first_listed = s->last_listed = s->first_end = s->last_end = -1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->load_lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->come, &monotonic);
    pthread_condattr_destroy(&monotonic);
    atomic_store(&s->heartbeat_ns, mf_now_ns());
    mf_status status = open_memory(s, err);
    if (status == MF_OK) {
        status = open_thread(s, err);
    }
    if (status != MF_OK) {
        mf_service_close(&s);
        return status;
    }
    *out = s;
    return MF_OK;
}

void mf_service_close(mf_service **service)
{
    mf_service *s = *service;
    if (!s) {
        return;
    }
    if (s->has_thread) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->come);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    for (int32_t i = 0; s->slots && i < s->num_slots; i++) {
        mf_service_drop_request(s->slots[i].request);
    }
    if (s->wake_fd >= 0) {
        close(s->wake_fd);
    }
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->load_lock);
    pthread_cond_destroy(&s->come);
    mf_free(s->slots);
    mf_free(s->free_slots);
    mf_free(s->to_free);
    mf_free(s->commands);
    mf_free(s->ring);
    mf_free(s->events);
    mf_free(s->load);
    mf_free(s);
    *service = NULL;
}

mf_service_state mf_service_get_state(const mf_service *s)
{
    return (mf_service_state)atomic_load(&s->state);
}

const char *mf_service_failure(const mf_service *s)
{
    return mf_service_get_state(s) == MF_SERVICE_FAILED ? s->failure : "";
}

mf_status mf_service_failure_status(const mf_service *s)
{
    return mf_service_get_state(s) == MF_SERVICE_FAILED ? s->failure_status : MF_OK;
}

int mf_service_wake_fd(const mf_service *s)
{
    return s->wake_fd;
}

int32_t mf_service_num_live(const mf_service *s)
{
    return s->num_slots - s->num_free_slots - s->num_to_free;
}

/* ---- commands -----------------------------------------------------------------------------------------------------
 */

/* One block: the request, then copies of its arrays. */
typedef struct carver {
    char *base;
    size_t used;
} carver;

static const void *carve_copy(carver *c, const void *from, size_t count, size_t size)
{
    char *p = c->base ? c->base + c->used : NULL;
    c->used += (count * size + 7) & ~(size_t)7; /* counts are int32 and sizes below 16 */
    if (p && count > 0) {
        memcpy(p, from, count * size);
    }
    return count > 0 ? p : NULL;
}

static size_t count_of(int32_t n)
{
    return n > 0 ? (size_t)n : 0; /* a wrong count is for the engine to refuse */
}

static void lay_out(carver *c, const mf_request *from, mf_request *to)
{
    const mf_sampling_params *p = &from->sampling;
    mf_request head = *from;
    size_t num_bad = 0;
    for (size_t i = 0; i < count_of(p->num_bad_words); i++) {
        num_bad += count_of(p->bad_word_lengths[i]);
    }
    c->used = (sizeof *from + 7) & ~(size_t)7;
    head.prompt_token_ids = carve_copy(c, from->prompt_token_ids, count_of(from->num_prompt_tokens), sizeof(int32_t));
    head.sampling.stop_token_ids = carve_copy(c, p->stop_token_ids, count_of(p->num_stop_token_ids), sizeof(int32_t));
    head.sampling.allowed_token_ids =
        carve_copy(c, p->allowed_token_ids, count_of(p->num_allowed_token_ids), sizeof(int32_t));
    head.sampling.logit_bias = carve_copy(c, p->logit_bias, count_of(p->num_logit_bias), sizeof *p->logit_bias);
    head.sampling.bad_words = carve_copy(c, p->bad_words, num_bad, sizeof(int32_t));
    head.sampling.bad_word_lengths = carve_copy(c, p->bad_word_lengths, count_of(p->num_bad_words), sizeof(int32_t));
    if (to) {
        *to = head;
    }
}

static mf_request *copy_request(const mf_request *from)
{
    carver c = { 0 };
    lay_out(&c, from, NULL);
    mf_request *copy = mf_alloc(c.used);
    if (copy) {
        c.base = (char *)copy;
        lay_out(&c, from, copy);
    }
    return copy;
}

void mf_service_drop_request(mf_request *request)
{
    if (request && request->guide.release) {
        request->guide.release(request->guide.context);
    }
    mf_free(request);
}

/* lock is held */
static void mark(mf_service *s, int32_t index, uint32_t marks)
{
    mf_service_slot *slot = &s->slots[index];
    slot->marks |= marks;
    if (!slot->is_listed) {
        slot->is_listed = true;
        slot->next_listed = -1;
        *(s->last_listed >= 0 ? &s->slots[s->last_listed].next_listed : &s->first_listed) = index;
        s->last_listed = index;
    }
    if (s->sleeps) {
        pthread_cond_signal(&s->come);
    }
}

/* lock is held */
static mf_status check_room(const mf_service *s, int32_t num_requests, int64_t num_tokens, mf_service_full *full,
                            mf_error *err)
{
    int32_t waiting = s->sent_reqs + s->stats.num_waiting;
    int64_t waiting_tokens = s->sent_tokens + s->stats.num_waiting_tokens;
    *full = MF_SERVICE_NOT_FULL;
    if (num_requests > s->num_free_slots || (waiting > 0 && waiting + num_requests > s->options.max_num_queued_reqs)) {
        *full = MF_SERVICE_FULL_REQUESTS;
        return mf_fail(err, MF_ERR_BUSY, "the queue is full: %d requests wait of at most %d", waiting,
                       s->options.max_num_queued_reqs);
    }
    if (waiting > 0 && waiting_tokens + num_tokens > s->options.max_num_queued_tokens) {
        *full = MF_SERVICE_FULL_TOKENS;
        return mf_fail(err, MF_ERR_BUSY, "the queue is full: %lld prompt tokens wait of at most %lld",
                       (long long)waiting_tokens, (long long)s->options.max_num_queued_tokens);
    }
    return MF_OK;
}

mf_status mf_service_submit_all(mf_service *s, const mf_request *requests, int32_t num_requests, uint64_t *serials,
                                mf_service_full *full, mf_error *err)
{
    mf_service_full ignored;
    full = full ? full : &ignored;
    *full = MF_SERVICE_NOT_FULL;
    int64_t num_tokens = 0;
    for (int32_t i = 0; i < num_requests; i++) {
        serials[i] = 0;
        num_tokens += requests[i].num_prompt_tokens > 0 ? requests[i].num_prompt_tokens : 0;
    }
    if (mf_service_get_state(s) != MF_SERVICE_READY) {
        return mf_fail(err, MF_ERR_DEVICE, "the engine is not ready");
    }
    pthread_mutex_lock(&s->lock);
    mf_status status = check_room(s, num_requests, num_tokens, full, err);
    pthread_mutex_unlock(&s->lock);
    MF_TRY(status);
    /* Only this thread adds to what waits, so the room stays while the copies are made. */
    for (int32_t i = 0; i < num_requests; i++) {
        int32_t index = s->free_slots[s->num_free_slots - 1 - i];
        s->slots[index].request = copy_request(&requests[i]);
        if (!s->slots[index].request) {
            while (i-- > 0) { /* the guides stay the caller's: free the blocks alone */
                index = s->free_slots[s->num_free_slots - 1 - i];
                mf_free(s->slots[index].request);
                s->slots[index].request = NULL;
            }
            return mf_fail(err, MF_ERR_NOMEM, "out of memory for %d requests", num_requests);
        }
    }
    pthread_mutex_lock(&s->lock);
    for (int32_t i = 0; i < num_requests; i++) {
        int32_t index = s->free_slots[--s->num_free_slots];
        mf_service_slot *slot = &s->slots[index];
        slot->serial = ++s->last_count << MF_SERVICE_SLOT_BITS | (uint32_t)index;
        slot->user_data = requests[i].user_data;
        serials[i] = slot->serial;
        mark(s, index, MF_MARK_SUBMIT);
    }
    s->sent_reqs += num_requests;
    s->sent_tokens += num_tokens;
    pthread_mutex_unlock(&s->lock);
    return MF_OK;
}

mf_status mf_service_submit(mf_service *s, const mf_request *request, uint64_t *serial, mf_error *err)
{
    return mf_service_submit_all(s, request, 1, serial, NULL, err);
}

static void mark_serial(mf_service *s, uint64_t serial, uint32_t set, uint32_t clear)
{
    uint64_t index = serial & ((1u << MF_SERVICE_SLOT_BITS) - 1);
    pthread_mutex_lock(&s->lock);
    if (serial != 0 && index < (uint64_t)s->num_slots && s->slots[index].serial == serial) {
        s->slots[index].marks &= ~clear;
        mark(s, (int32_t)index, set);
    } else {
        s->num_late++;
    }
    pthread_mutex_unlock(&s->lock);
}

void mf_service_cancel(mf_service *s, uint64_t serial)
{
    mark_serial(s, serial, MF_MARK_CANCEL, 0);
}

void mf_service_pause(mf_service *s, uint64_t serial, bool paused)
{
    mark_serial(s, serial, paused ? MF_MARK_PAUSE : MF_MARK_RESUME, paused ? MF_MARK_RESUME : MF_MARK_PAUSE);
}

void mf_service_reset_prefix_cache(mf_service *s)
{
    pthread_mutex_lock(&s->lock);
    s->reset = true;
    pthread_cond_signal(&s->come);
    pthread_mutex_unlock(&s->lock);
}

bool mf_service_has_room(mf_service *s, mf_service_full *full)
{
    mf_service_full ignored;
    pthread_mutex_lock(&s->lock);
    bool has_room = check_room(s, 1, 1, full ? full : &ignored, NULL) == MF_OK;
    pthread_mutex_unlock(&s->lock);
    return has_room;
}

/* ---- events -------------------------------------------------------------------------------------------------------
 */

/* What the last poll gave out is the caller's no longer. */
static void give_places_back(mf_service *s)
{
    if (s->num_to_free > 0) {
        pthread_mutex_lock(&s->lock);
        for (int32_t i = 0; i < s->num_to_free; i++) {
            mf_service_slot *slot = &s->slots[s->to_free[i]];
            slot->serial = 0;
            slot->user_data = NULL;
            slot->marks = 0; /* a cancel that came too late is not the next one's */
            s->free_slots[s->num_free_slots++] = s->to_free[i];
        }
        pthread_mutex_unlock(&s->lock);
        s->num_to_free = 0;
    }
    if (atomic_load_explicit(&s->head, memory_order_relaxed) != s->read) {
        atomic_store(&s->head, s->read);
        if (atomic_load(&s->waits_for_room)) {
            pthread_mutex_lock(&s->lock);
            pthread_cond_signal(&s->come);
            pthread_mutex_unlock(&s->lock);
        }
    }
}

int32_t mf_service_poll(mf_service *s, mf_service_event *events, int32_t capacity)
{
    give_places_back(s);
    /* In this order: whoever publishes after the mark is cleared writes the eventfd again. */
    uint64_t count;
    (void)!read(s->wake_fd, &count, sizeof count);
    atomic_exchange(&s->is_signalled, false);
    uint64_t tail = atomic_load(&s->tail);
    int32_t n = 0;
    while (n < capacity && s->read < tail) {
        const mf_ring_event *from = &s->ring[s->read++ % s->num_ring];
        if (from->type == MF_SERVICE_STEP) {
            events[n++] =
                (mf_service_event){ .type = from->type, .step_ns = from->step_ns, .step_tokens = from->step_tokens };
            continue;
        }
        mf_service_slot *slot = &s->slots[from->slot];
        bool is_last = from->type == MF_SERVICE_FINISHED || from->type == MF_SERVICE_REFUSED;
        events[n] = (mf_service_event){ .type = from->type,
                                        .serial = from->serial,
                                        .user_data = slot->user_data,
                                        .event = from->event,
                                        .step_ns = from->step_ns,
                                        .step_tokens = from->step_tokens };
        events[n].event.user_data = slot->user_data;
        events[n].event.top_logprobs = from->event.num_top_logprobs > 0 ? from->top : NULL;
        if (from->type == MF_SERVICE_REFUSED) {
            events[n].status = slot->status;
            events[n].message = slot->message;
        }
        if (is_last) {
            s->to_free[s->num_to_free++] = from->slot;
        }
        n++;
    }
    return n;
}

/* ---- numbers ------------------------------------------------------------------------------------------------------
 */

mf_status mf_service_snapshot_take(mf_service *s, mf_service_snapshot *snapshot, mf_error *err)
{
    int64_t *load = snapshot->expert_load;
    pthread_mutex_lock(&s->lock);
    mf_service_snapshot now = { .stats = s->stats,
                                .num_late = s->num_late + s->stats.num_late_events,
                                .queued_reqs = s->sent_reqs + s->stats.num_waiting,
                                .queued_tokens = s->sent_tokens + s->stats.num_waiting_tokens };
    now.has_work = atomic_load(&s->has_work) || s->first_listed >= 0;
    pthread_mutex_unlock(&s->lock);
    now.heartbeat_ns = atomic_load(&s->heartbeat_ns);
    now.stats.expert_load = NULL;
    mf_status status = MF_OK;
    pthread_mutex_lock(&s->load_lock);
    if (s->load && !load) {
        load = mf_alloc_array(s->load_size, sizeof *load);
        status = load ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "out of memory for the experts' counts");
    }
    if (s->load && load) {
        memcpy(load, s->load, s->load_size * sizeof *load);
        now.stats.expert_load = load;
    }
    pthread_mutex_unlock(&s->load_lock);
    now.expert_load = load;
    *snapshot = now;
    return status;
}

void mf_service_snapshot_close(mf_service_snapshot *snapshot)
{
    mf_free(snapshot->expert_load);
    *snapshot = (mf_service_snapshot){ 0 };
}
