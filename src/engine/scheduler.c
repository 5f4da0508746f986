/* scheduler.c - see scheduler.h.  Every state change goes through move(), which does what the table in request.c says. */
#include "engine/scheduler.h"

#include "base/sys.h"

/* An id is serial * 2^SLOT_BITS + slot: the serial is never given twice. */
enum { SLOT_BITS = 20 };

/* ---- lists and moves ---------------------------------------------------------------------------------------------- */

static void list_insert(mf_request_list *list, mf_live_request *r, mf_live_request *before)
{
    r->next = before;
    r->previous = before ? before->previous : list->tail;
    *(r->previous ? &r->previous->next : &list->head) = r;
    *(before ? &before->previous : &list->tail) = r;
    list->count++;
}

static void list_remove(mf_request_list *list, mf_live_request *r)
{
    *(r->previous ? &r->previous->next : &list->head) = r->next;
    *(r->next ? &r->next->previous : &list->tail) = r->previous;
    r->previous = NULL;
    r->next = NULL;
    list->count--;
}

/* The place in the queue: behind its equals in priority, or in front of them.  Looked for from that end, so that without
 * priorities it is found at once. */
static mf_live_request *place_in_queue(const mf_request_list *queue, const mf_live_request *r, bool in_front)
{
    if (in_front) {
        mf_live_request *before = queue->head;
        while (before && before->priority < r->priority) {
            before = before->next;
        }
        return before;
    }
    mf_live_request *after = queue->tail;
    while (after && after->priority > r->priority) {
        after = after->previous;
    }
    return after ? after->next : queue->head;
}

static void add_running(mf_scheduler *s, mf_live_request *r)
{
    int32_t i = s->num_running++;
    for (; i > 0 && s->running[i - 1]->priority > r->priority; i--) {
        s->running[i] = s->running[i - 1];
    }
    s->running[i] = r;
}

static void remove_running(mf_scheduler *s, const mf_live_request *r)
{
    int32_t i = 0;
    while (i < s->num_running && s->running[i] != r) {
        i++;
    }
    for (; i + 1 < s->num_running; i++) {
        s->running[i] = s->running[i + 1];
    }
    s->num_running--;
}

static bool move(mf_scheduler *s, mf_live_request *r, mf_request_state to, bool forget)
{
    uint32_t what = mf_request_transition(r->state, to);
    if (!what) {
        s->num_illegal_transitions++;
        return false;
    }
    r->state = to;
    if (what & MF_LEAVE_QUEUE) {
        list_remove(&s->queue, r);
        s->num_queued_tokens -= r->num_prompt_tokens;
    }
    if (what & MF_LEAVE_RUNNING) {
        remove_running(s, r);
    }
    if (what & MF_GIVE_BLOCKS) {
        mf_kv_release(s->kv, &r->kv, forget);
        r->num_computed = 0;
        r->num_scheduled = 0;
        s->free_states[s->num_free_states++] = r->state_slot;
        r->state_slot = -1;
    }
    if (what & (MF_JOIN_QUEUE_BACK | MF_JOIN_QUEUE_FRONT)) {
        list_insert(&s->queue, r, place_in_queue(&s->queue, r, (what & MF_JOIN_QUEUE_FRONT) != 0));
        s->num_queued_tokens += r->num_prompt_tokens;
    }
    if (what & MF_JOIN_RUNNING) {
        r->state_slot = s->free_states[--s->num_free_states]; /* one for each that may run */
        add_running(s, r);
    }
    if (what & MF_JOIN_FINISHED) {
        list_insert(&s->finished, r, NULL);
        s->num_deadlines -= r->deadline_ns != 0;
        s->num_paused -= r->paused;
    }
    if (what & MF_RELEASE_GUIDE) {
        mf_live_request_release_guide(r);
    }
    if (what & MF_LEAVE_FINISHED) {
        list_remove(&s->finished, r);
    }
    if (what & MF_FREE_SLOT) {
        s->slots[r->slot] = NULL;
        s->free_slots[s->num_free_slots++] = r->slot;
        mf_live_request_free(&r);
    }
    return true;
}

/* ---- open, close -------------------------------------------------------------------------------------------------- */

mf_status mf_scheduler_open(const mf_scheduler_limits *limits, mf_kv_cache *kv, mf_scheduler *s, mf_error *err)
{
    *s = (mf_scheduler){ .limits = *limits, .kv = kv };
    /* Ended requests keep their slot until their event has been read, so a caller that never reads stops being served. */
    int64_t num_slots = (int64_t)limits->max_num_queued_reqs + limits->max_num_seqs;
    if (limits->max_num_seqs < 1 || limits->max_num_batched_tokens < limits->max_num_seqs ||
        limits->max_num_queued_reqs < 1 || num_slots > 1 << SLOT_BITS) {
        return mf_fail(err, MF_ERR_INVALID, "max_num_queued_reqs: expected 1 to %d; got %d",
                       (1 << SLOT_BITS) - limits->max_num_seqs, limits->max_num_queued_reqs);
    }
    s->num_slots = (int32_t)num_slots;
    size_t num_seqs = (size_t)limits->max_num_seqs;
    s->slots = mf_alloc_array((size_t)num_slots, sizeof *s->slots);
    s->free_slots = mf_alloc_array((size_t)num_slots, sizeof *s->free_slots);
    s->running = mf_alloc_array(num_seqs, sizeof *s->running);
    s->planned = mf_alloc_array(num_seqs, sizeof *s->planned);
    s->free_states = mf_alloc_array(num_seqs, sizeof *s->free_states);
    s->check_sequences = mf_alloc_array(num_seqs, sizeof *s->check_sequences);
    s->check_tokens = mf_alloc_array(num_seqs, sizeof *s->check_tokens);
    if (!s->slots || !s->free_slots || !s->running || !s->planned || !s->free_states || !s->check_sequences || !s->check_tokens) {
        mf_scheduler_close(s);
        return mf_fail(err, MF_ERR_NOMEM, "scheduler: out of memory for %d requests", (int)num_slots);
    }
    for (int32_t i = s->num_slots; i-- > 0;) {
        s->free_slots[s->num_free_slots++] = i;
    }
    for (int32_t i = limits->max_num_seqs; i-- > 0;) {
        s->free_states[s->num_free_states++] = i;
    }
    return MF_OK;
}

void mf_scheduler_close(mf_scheduler *s)
{
    for (int32_t i = 0; s->slots && i < s->num_slots; i++) {
        mf_live_request_free(&s->slots[i]);
    }
    mf_free(s->slots);
    mf_free(s->free_slots);
    mf_free(s->running);
    mf_free(s->planned);
    mf_free(s->free_states);
    mf_free(s->check_sequences);
    mf_free(s->check_tokens);
    *s = (mf_scheduler){ 0 };
}

/* ---- coming and going --------------------------------------------------------------------------------------------- */

mf_status mf_scheduler_add(mf_scheduler *s, mf_live_request *r, mf_error *err)
{
    if (s->queue.count >= s->limits.max_num_queued_reqs || s->num_free_slots == 0) {
        return mf_fail(err, MF_ERR_BUSY, "the queue is full: %d requests of at most %d", s->queue.count,
                       s->limits.max_num_queued_reqs);
    }
    /* A prompt longer than the limit is taken when nothing else waits, or it could never be. */
    if (s->queue.count > 0 && s->num_queued_tokens + r->num_prompt_tokens > s->limits.max_num_queued_tokens) {
        return mf_fail(err, MF_ERR_BUSY, "the queue is full: %lld prompt tokens and %d more of at most %lld",
                       (long long)s->num_queued_tokens, r->num_prompt_tokens, (long long)s->limits.max_num_queued_tokens);
    }
    r->slot = s->free_slots[--s->num_free_slots];
    r->id = ++s->last_serial << SLOT_BITS | (uint32_t)r->slot;
    s->slots[r->slot] = r;
    s->num_deadlines += r->deadline_ns != 0;
    move(s, r, MF_REQUEST_WAITING, false);
    return MF_OK;
}

mf_live_request *mf_scheduler_find(const mf_scheduler *s, uint64_t id)
{
    uint64_t slot = id & ((1u << SLOT_BITS) - 1);
    mf_live_request *r = slot < (uint64_t)s->num_slots ? s->slots[slot] : NULL;
    return r && r->id == id && r->state != MF_REQUEST_FINISHED ? r : NULL;
}

void mf_scheduler_finish(mf_scheduler *s, mf_live_request *r, mf_finish_reason reason, bool forget, int64_t now_ns)
{
    if (move(s, r, MF_REQUEST_FINISHED, forget)) {
        r->finish_reason = reason;
        r->finished_ns = now_ns;
    }
}

void mf_scheduler_drop_finished(mf_scheduler *s)
{
    if (s->finished.head) {
        move(s, s->finished.head, MF_REQUEST_NEW, false);
    }
}

static bool is_expired(const mf_live_request *r, int64_t now_ns)
{
    return r->deadline_ns != 0 && now_ns >= r->deadline_ns;
}

void mf_scheduler_expire(mf_scheduler *s, int64_t now_ns)
{
    if (s->num_deadlines == 0) {
        return;
    }
    for (mf_live_request *r = s->queue.head, *next; r; r = next) {
        next = r->next;
        if (is_expired(r, now_ns)) {
            mf_scheduler_finish(s, r, MF_FINISH_DEADLINE, false, now_ns);
        }
    }
    for (int32_t i = s->num_running; i-- > 0;) {
        if (is_expired(s->running[i], now_ns)) {
            mf_scheduler_finish(s, s->running[i], MF_FINISH_DEADLINE, false, now_ns);
        }
    }
}

void mf_scheduler_set_paused(mf_scheduler *s, mf_live_request *r, bool paused)
{
    s->num_paused += (int32_t)paused - (int32_t)r->paused;
    r->paused = paused;
}

/* ---- the plan ----------------------------------------------------------------------------------------------------- */

static int32_t num_left(const mf_live_request *r)
{
    return r->num_tokens - r->num_computed;
}

/* As many tokens as fit the budget and, for prompt logprobs, the rows of logits. */
static int32_t chunk_for(const mf_scheduler *s, const mf_live_request *r)
{
    int32_t n = num_left(r) < s->budget ? num_left(r) : s->budget;
    if (r->sampling.prompt_logprobs < 0) {
        return n;
    }
    int32_t rows = 0;
    for (int32_t i = 0; i < n; i++) {
        rows += mf_live_request_wants_prompt_row(r, r->num_computed + i);
        if (rows > s->prompt_rows) {
            return i;
        }
    }
    return n;
}

static void plan_tokens(mf_scheduler *s, mf_live_request *r, int32_t n)
{
    for (int32_t i = 0; i < n && r->sampling.prompt_logprobs >= 0; i++) {
        s->prompt_rows -= mf_live_request_wants_prompt_row(r, r->num_computed + i);
    }
    r->num_scheduled = n;
    s->budget -= n;
    s->num_planned_tokens += n;
    s->planned[s->num_planned++] = r;
}

/* false: r itself was the last one and had to go. */
static bool reserve_or_preempt(mf_scheduler *s, mf_live_request *r)
{
    while (!mf_kv_reserve(s->kv, &r->kv, r->num_tokens)) {
        mf_live_request *victim = s->running[s->num_running - 1];
        s->num_preemptions++;
        move(s, victim, MF_REQUEST_PREEMPTED, false);
        if (victim == r) {
            return false;
        }
    }
    return true;
}

/* Victims start after r in `running`, so none of them is planned yet. */
static void plan_decodes(mf_scheduler *s)
{
    for (int32_t i = 0; i < s->num_running; i++) {
        mf_live_request *r = s->running[i];
        if (!r->paused && num_left(r) == 1 && reserve_or_preempt(s, r)) {
            plan_tokens(s, r, 1);
        }
    }
    s->num_planned_decodes = s->num_planned;
}

static void plan_chunks(mf_scheduler *s)
{
    for (int32_t i = 0; i < s->num_running && s->budget > 0; i++) {
        mf_live_request *r = s->running[i];
        int32_t n = r->paused || r->num_scheduled > 0 ? 0 : chunk_for(s, r);
        if (n > 0) {
            plan_tokens(s, r, n);
        }
    }
}

/* Blocks for all its tokens, some from the cache, and one more for each running one: otherwise the next few tokens of
 * those would throw it out again, and one that was thrown out just now would come back at once. */
static bool start(mf_scheduler *s, mf_live_request *r, int64_t now_ns)
{
    int32_t num_cached = r->sampling.prompt_logprobs >= 0 ? 0 : mf_kv_match(s->kv, &r->kv, r->tokens, r->num_tokens);
    mf_kv_counts counts = mf_kv_cache_counts(s->kv);
    int32_t need = mf_kv_blocks_for(s->kv, r->num_tokens) - r->kv.num_blocks + s->num_running;
    r->num_computed = num_cached;
    if (need > counts.free + counts.cached || chunk_for(s, r) < 1 || !mf_kv_reserve(s->kv, &r->kv, r->num_tokens)) {
        mf_kv_release(s->kv, &r->kv, false);
        r->num_computed = 0;
        return false;
    }
    s->prefix_queries += r->num_tokens;
    s->prefix_hits += num_cached;
    if (r->state == MF_REQUEST_WAITING) {
        r->started_ns = now_ns;
        r->num_cached = num_cached;
        s->num_prompt_tokens += r->num_prompt_tokens;
    }
    move(s, r, MF_REQUEST_RUNNING, false);
    plan_tokens(s, r, chunk_for(s, r));
    return true;
}

/* Who is paused for a client that does not read holds no place and no blocks that somebody else waits for: it goes back
 * to the queue, keeps what it has made, and goes on from there once it is resumed.  false: nobody is. */
static bool yield_paused(mf_scheduler *s)
{
    for (int32_t i = s->num_running; s->num_paused > 0 && i-- > 0;) {
        if (s->running[i]->paused && s->running[i]->num_scheduled == 0) {
            s->num_preemptions++;
            return move(s, s->running[i], MF_REQUEST_PREEMPTED, false);
        }
    }
    return false;
}

static bool start_or_take_a_place(mf_scheduler *s, mf_live_request *r, int64_t now_ns)
{
    do {
        if (s->num_running < s->limits.max_num_seqs && start(s, r, now_ns)) {
            return true;
        }
    } while (yield_paused(s));
    return false;
}

void mf_scheduler_plan(mf_scheduler *s, int64_t now_ns)
{
    s->num_planned = 0;
    s->num_planned_tokens = 0;
    s->budget = s->limits.max_num_batched_tokens;
    s->prompt_rows = s->limits.max_prompt_rows;
    for (int32_t i = 0; i < s->num_running; i++) {
        s->running[i]->num_scheduled = 0;
    }
    plan_decodes(s);
    plan_chunks(s);
    mf_live_request *r = s->queue.head;
    while (r && s->budget > 0) {
        mf_live_request *next = r->next; /* stays behind r: what yields joins at the front */
        if (!r->paused && !start_or_take_a_place(s, r, now_ns)) {
            break;
        }
        r = next;
    }
}

/* ---- invariants --------------------------------------------------------------------------------------------------- */

static mf_status check_running(const mf_scheduler *s, mf_error *err)
{
    for (int32_t i = 0; i < s->num_running; i++) {
        const mf_live_request *r = s->running[i];
        for (int32_t j = 0; j < i; j++) {
            if (s->running[j]->state_slot == r->state_slot) {
                return mf_fail(err, MF_ERR_INTERNAL, "scheduler: two running requests have state %d", (int)r->state_slot);
            }
        }
        if (r->state != MF_REQUEST_RUNNING || s->slots[r->slot] != r || r->num_computed >= r->num_tokens ||
            r->num_tokens > r->num_prompt_tokens + r->sampling.max_tokens ||
            mf_kv_blocks_for(s->kv, r->num_computed) > r->kv.num_blocks ||
            r->state_slot < 0 || r->state_slot >= s->limits.max_num_seqs ||
            (i > 0 && s->running[i - 1]->priority > r->priority)) {
            return mf_fail(err, MF_ERR_INTERNAL, "scheduler: running request %llu has state %d, %d of %d tokens, %d blocks",
                           (unsigned long long)r->id, r->state, r->num_computed, r->num_tokens, r->kv.num_blocks);
        }
        s->check_sequences[i] = &r->kv;
        s->check_tokens[i] = r->tokens;
    }
    return MF_OK;
}

static mf_status check_queue(const mf_scheduler *s, mf_error *err)
{
    int32_t count = 0;
    int64_t num_tokens = 0;
    for (const mf_live_request *r = s->queue.head; r; r = r->next) {
        if ((r->state != MF_REQUEST_WAITING && r->state != MF_REQUEST_PREEMPTED) || r->kv.num_blocks != 0 ||
            r->num_computed != 0 || (r->previous && r->previous->priority > r->priority) || ++count > s->num_slots) {
            return mf_fail(err, MF_ERR_INTERNAL, "scheduler: queued request %llu has state %d and %d blocks",
                           (unsigned long long)r->id, r->state, r->kv.num_blocks);
        }
        num_tokens += r->num_prompt_tokens;
    }
    return count == s->queue.count && num_tokens == s->num_queued_tokens
               ? MF_OK
               : mf_fail(err, MF_ERR_INTERNAL, "scheduler: the queue counts %d requests, %lld tokens; it has %d, %lld",
                         s->queue.count, (long long)s->num_queued_tokens, count, (long long)num_tokens);
}

mf_status mf_scheduler_check(mf_scheduler *s, mf_error *err)
{
    if (s->num_illegal_transitions > 0) {
        int64_t n = s->num_illegal_transitions;
        s->num_illegal_transitions = 0;
        return mf_fail(err, MF_ERR_INTERNAL, "scheduler: %lld state changes that the table does not allow", (long long)n);
    }
    MF_TRY(check_queue(s, err));
    MF_TRY(check_running(s, err));
    int32_t num_in_slots = s->num_slots - s->num_free_slots;
    if (num_in_slots != s->queue.count + s->num_running + s->finished.count || s->num_running > s->limits.max_num_seqs ||
        s->num_running + s->num_free_states != s->limits.max_num_seqs) {
        return mf_fail(err, MF_ERR_INTERNAL, "scheduler: %d slots taken by %d queued, %d running, %d finished", num_in_slots,
                       s->queue.count, s->num_running, s->finished.count);
    }
    return mf_kv_check(s->kv, s->check_sequences, s->check_tokens, s->num_running, err);
}

void mf_scheduler_rebuild(mf_scheduler *s)
{
    s->num_free_states = 0;
    while (s->num_running > 0) {
        mf_live_request *r = s->running[s->num_running - 1];
        r->kv.num_blocks = 0; /* the pool is about to forget them; giving them back could trip over its broken lists */
        r->kv.num_keyed = 0;
        r->kv.serial = r->kv.root;
        if (!move(s, r, MF_REQUEST_PREEMPTED, false)) {
            s->num_running--;
        }
    }
    for (s->num_free_states = 0; s->num_free_states < s->limits.max_num_seqs; s->num_free_states++) {
        s->free_states[s->num_free_states] = s->num_free_states;
    }
    mf_kv_reset(s->kv);
}
