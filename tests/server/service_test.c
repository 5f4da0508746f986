/* service_test.c - the engine's thread behind its queues: every serial ends once, cancels always have room, nobody
 * waits. */
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/random.h"
#include "base/sys.h"
#include "engine/fake_model.h"
#include "engine/jobs.h"
#include "server/service.h"

enum { MAX_LEN = 64 };

typedef struct fixture {
    fake_model fake;
    mf_engine_options engine;
    int32_t num_blocks;
    bool fails_to_open;
    _Atomic bool may_open;
    mf_service *service;
    mf_service_event events[64];
} fixture;

/* The fake model answers within a microsecond; where a test acts on a request that runs, each step takes its time. */
static mf_status (*fake_forward)(void *context, const mf_batch *batch, float *logits, mf_error *err);
static _Atomic int step_us;

static mf_status slow_forward(void *context, const mf_batch *batch, float *logits, mf_error *err)
{
    usleep((useconds_t)atomic_load(&step_us));
    return fake_forward(context, batch, logits, err);
}

static mf_status open_engine(void *context, mf_engine **engine, mf_error *err)
{
    fixture *f = context;
    while (!atomic_load(&f->may_open)) {
        usleep(1000);
    }
    if (f->fails_to_open) {
        return mf_fail(err, MF_ERR_FORMAT, "model.safetensors: it is broken");
    }
    mf_engine_model table = fake_model_table(&f->fake, MAX_LEN);
    fake_forward = table.forward;
    if (atomic_load(&step_us) > 0) {
        table.forward = slow_forward;
    }
    return mf_engine_open_model(&table, &f->engine, f->num_blocks, engine, err);
}

static fixture *make_fixture(void)
{
    atomic_store(&step_us, 0);
    fixture *f = calloc(1, sizeof *f);
    fake_model_init(&f->fake, 32);
    mf_engine_options o = MF_ENGINE_OPTIONS_INIT;
    f->engine = o;
    f->engine.block_size = 4;
    f->engine.max_num_seqs = 6;
    f->engine.max_num_batched_tokens = 32;
    f->engine.max_num_queued_reqs = 64;
    f->engine.max_num_queued_tokens = 100000;
    f->engine.num_sampled_ids = FAKE_SAMPLED;
    f->num_blocks = 48;
    atomic_store(&f->may_open, true);
    return f;
}

static mf_service_options default_options(fixture *f)
{
    return (mf_service_options){ .open = open_engine,
                                 .context = f,
                                 .max_num_queued_reqs = 8,
                                 .max_num_queued_tokens = 300,
                                 .max_live_requests = 32,
                                 .num_ring_events = 64 };
}

static void wait_for_state(fixture *f, mf_service_state state)
{
    for (int i = 0; i < 5000 && mf_service_get_state(f->service) != state; i++) {
        usleep(1000);
    }
    CHECK_EQ(mf_service_get_state(f->service), state);
}

static fixture *open_fixture(fixture *f, const mf_service_options *options)
{
    mf_error err = { 0 };
    CHECK_OK(mf_service_open(options, &f->service, &err), err);
    wait_for_state(f, MF_SERVICE_READY);
    return f;
}

static void close_fixture(fixture *f)
{
    mf_service_close(&f->service);
    CHECK_EQ(f->fake.num_open, 0);
    free(f);
}

static mf_request request_of(const int32_t *prompt, int32_t n, int32_t max_tokens)
{
    mf_request r = MF_REQUEST_INIT;
    r.prompt_token_ids = prompt;
    r.num_prompt_tokens = n;
    r.sampling.max_tokens = max_tokens;
    r.sampling.ignore_eos = 1;
    r.sampling.has_seed = 1;
    return r;
}

/* The next event, waiting for the wake-up as an event loop does; one at a time. */
static mf_service_event next_event(fixture *f)
{
    for (int i = 0; i < 50; i++) {
        while (mf_service_poll(f->service, f->events, 1) == 1) {
            if (f->events[0].type != MF_SERVICE_STEP) {
                return f->events[0];
            }
        }
        struct pollfd fd = { .fd = mf_service_wake_fd(f->service), .events = POLLIN };
        poll(&fd, 1, 200);
    }
    fail_msg("no event within 10 s");
    return f->events[0];
}

static mf_service_event last_event_of(fixture *f, uint64_t serial, int32_t *num_tokens)
{
    for (;;) {
        mf_service_event e = next_event(f);
        if (e.serial == serial && e.type == MF_SERVICE_TOKEN) {
            (*num_tokens)++;
        } else if (e.serial == serial && e.type != MF_SERVICE_PROMPT_LOGPROB) {
            return e;
        }
    }
}

static const int32_t some_prompt[] = { 1, 2, 3, 4, 6, 7, 8, 9, 10, 11 };

TEST(a_request_gives_its_tokens_and_one_end)
{
    fixture *f = make_fixture();
    mf_service_options o = default_options(f);
    open_fixture(f, &o);
    mf_request r = request_of(some_prompt, 5, 7);
    r.user_data = f;
    r.sampling.logprobs = 3;
    mf_error err = { 0 };
    uint64_t serial;
    CHECK_OK(mf_service_submit(f->service, &r, &serial, &err), err);
    CHECK(serial != 0);
    for (int i = 0; i < 7; i++) {
        mf_service_event e = next_event(f);
        CHECK_EQ(e.type, MF_SERVICE_TOKEN);
        CHECK_EQ(e.serial, serial);
        CHECK(e.user_data == f);
        CHECK_EQ(e.event.position, 5 + i);
        CHECK_EQ(e.event.num_top_logprobs, 3);
        CHECK(e.event.top_logprobs[0].logprob >= e.event.top_logprobs[1].logprob);
        CHECK(e.step_ns > 0);
    }
    mf_service_event e = next_event(f);
    CHECK_EQ(e.type, MF_SERVICE_FINISHED);
    CHECK_EQ(e.event.finish_reason, MF_FINISH_LENGTH);
    CHECK_EQ(e.event.completion_tokens, 7);
    CHECK_EQ(mf_service_poll(f->service, f->events, 4), 0);
    CHECK_EQ(mf_service_num_live(f->service), 0);
    close_fixture(f);
}

TEST(the_same_request_gives_the_same_tokens_alone_and_in_company)
{
    fixture *f = make_fixture();
    mf_service_options o = default_options(f);
    open_fixture(f, &o);
    mf_request r = request_of(some_prompt, 5, 20);
    r.sampling.seed = 7;
    int32_t first[20], n = 0;
    mf_error err = { 0 };
    uint64_t serial, others[5];
    CHECK_OK(mf_service_submit(f->service, &r, &serial, &err), err);
    for (mf_service_event e = next_event(f); e.type == MF_SERVICE_TOKEN; e = next_event(f)) {
        first[n++] = e.event.token_id;
    }
    CHECK_EQ(n, 20);
    for (int i = 0; i < 5; i++) {
        mf_request other = request_of(some_prompt + i, 4, 30);
        other.sampling.seed = i;
        CHECK_OK(mf_service_submit(f->service, &other, &others[i], &err), err);
    }
    CHECK_OK(mf_service_submit(f->service, &r, &serial, &err), err);
    n = 0;
    for (int ended = 0; ended < 6;) {
        mf_service_event e = next_event(f);
        ended += e.type == MF_SERVICE_FINISHED;
        if (e.serial == serial && e.type == MF_SERVICE_TOKEN) {
            CHECK_EQ(e.event.token_id, first[n++]);
        }
    }
    CHECK_EQ(n, 20);
    close_fixture(f);
}

TEST(the_heartbeat_goes_on_within_a_long_step)
{
    fixture *f = make_fixture();
    f->fake.num_beats = 40;
    f->fake.beat_ms = 10;
    mf_service_options o = default_options(f);
    open_fixture(f, &o);
    mf_request r = request_of(some_prompt, 10, 1);
    mf_service_snapshot now = { 0 };
    mf_error err = { 0 };
    uint64_t serial;
    int64_t oldest_ns = 0, started_ns = mf_now_ns();
    int32_t num_seen = 0, num_tokens = 0;
    CHECK_OK(mf_service_submit(f->service, &r, &serial, &err), err);
    while (mf_service_poll(f->service, f->events, 1) == 0 && mf_now_ns() - started_ns < 10000000000) {
        mf_service_snapshot_take(f->service, &now, NULL);
        int64_t age_ns = mf_now_ns() - now.heartbeat_ns;
        oldest_ns = age_ns > oldest_ns ? age_ns : oldest_ns;
        num_seen += now.has_work;
        usleep(2000);
    }
    CHECK(mf_now_ns() - started_ns >= 400000000); /* one step, and all of it */
    CHECK(num_seen > 0);
    CHECK(oldest_ns < 300000000);
    if (f->events[0].type == MF_SERVICE_TOKEN) {
        last_event_of(f, serial, &num_tokens);
    }
    mf_service_snapshot_close(&now);
    close_fixture(f);
}

TEST(a_cancel_ends_a_request_once_and_a_late_one_is_counted)
{
    fixture *f = make_fixture();
    mf_service_options o = default_options(f);
    atomic_store(&step_us, 20000);
    open_fixture(f, &o);
    mf_request r = request_of(some_prompt, 5, 50);
    mf_error err = { 0 };
    uint64_t serial;
    int32_t n = 0;
    CHECK_OK(mf_service_submit(f->service, &r, &serial, &err), err);
    mf_service_cancel(f->service, serial); /* perhaps before the engine has seen it */
    mf_service_event e = last_event_of(f, serial, &n);
    CHECK_EQ(e.type, MF_SERVICE_FINISHED);
    CHECK_EQ(e.event.finish_reason, MF_FINISH_CANCELLED);
    CHECK_EQ(mf_service_poll(f->service, f->events, 4), 0);
    mf_service_cancel(f->service, serial);
    mf_service_cancel(f->service, 0);
    mf_service_cancel(f->service, UINT64_MAX);
    mf_service_pause(f->service, serial, true);
    CHECK_EQ(mf_service_poll(f->service, f->events, 4), 0);
    mf_service_snapshot snapshot = { 0 };
    CHECK_OK(mf_service_snapshot_take(f->service, &snapshot, &err), err);
    CHECK(snapshot.num_late >= 4);
    mf_service_snapshot_close(&snapshot);
    close_fixture(f);
}

TEST(what_the_engine_does_not_take_is_told_with_its_reason)
{
    fixture *f = make_fixture();
    mf_service_options o = default_options(f);
    open_fixture(f, &o);
    const int32_t bad[] = { 1, FAKE_VOCAB };
    mf_request r = request_of(bad, 2, 5);
    mf_error err = { 0 };
    uint64_t serial;
    CHECK_OK(mf_service_submit(f->service, &r, &serial, &err), err);
    mf_service_event e = next_event(f);
    CHECK_EQ(e.type, MF_SERVICE_REFUSED);
    CHECK_EQ(e.serial, serial);
    CHECK_EQ(e.status, MF_ERR_INVALID);
    CHECK_HAS(e.message, "prompt_token_ids");
    CHECK_EQ(mf_service_poll(f->service, f->events, 4), 0);
    CHECK_EQ(mf_service_num_live(f->service), 0);
    close_fixture(f);
}

TEST(a_paused_request_waits_and_its_deadline_still_ends_it)
{
    fixture *f = make_fixture();
    mf_service_options o = default_options(f);
    atomic_store(&step_us, 20000);
    open_fixture(f, &o);
    mf_error err = { 0 };
    uint64_t a, b;
    int32_t n = 0;
    mf_request r = request_of(some_prompt, 5, 8);
    CHECK_OK(mf_service_submit(f->service, &r, &a, &err), err);
    mf_service_pause(f->service, a, true);
    r.deadline_ns = mf_now_ns() + 300000000;
    CHECK_OK(mf_service_submit(f->service, &r, &b, &err), err);
    mf_service_pause(f->service, b, true);
    mf_service_event e = last_event_of(f, b, &n);
    CHECK_EQ(e.event.finish_reason, MF_FINISH_DEADLINE);
    mf_service_pause(f->service, a, false);
    n = 0;
    e = last_event_of(f, a, &n);
    CHECK_EQ(e.event.finish_reason, MF_FINISH_LENGTH);
    close_fixture(f);
}

TEST(admission_counts_requests_and_tokens_with_commands_on_their_way)
{
    fixture *f = make_fixture();
    f->engine.max_num_seqs = 1;
    mf_service_options o = default_options(f);
    o.max_num_queued_reqs = 4;
    o.max_num_queued_tokens = 30;
    open_fixture(f, &o);
    mf_error err = { 0 };
    uint64_t serials[16];
    mf_service_full full;
    mf_request r = request_of(some_prompt, 10, 2);
    mf_request many[5] = { r, r, r, r, r };
    CHECK_OK(mf_service_submit_all(f->service, many, 5, serials, &full, &err), err); /* nothing waits: any size */
    CHECK(mf_service_num_live(f->service) == 5);
    int32_t ended = 0, refused = 0, live = 5;
    /* Submit as fast as can be: some must be refused, and never more than 4 wait. */
    for (int i = 0; i < 2000; i++) {
        mf_status status = mf_service_submit_all(f->service, &r, 1, serials, &full, &err);
        if (status == MF_OK) {
            live++;
        } else {
            CHECK_EQ(status, MF_ERR_BUSY);
            CHECK(full != MF_SERVICE_NOT_FULL);
            refused++;
        }
        mf_service_snapshot snapshot = { 0 };
        CHECK_OK(mf_service_snapshot_take(f->service, &snapshot, &err), err);
        CHECK(snapshot.queued_reqs <= 5);
        CHECK(snapshot.queued_tokens <= 50);
        mf_service_snapshot_close(&snapshot);
        int32_t got = mf_service_poll(f->service, f->events, 64);
        for (int32_t k = 0; k < got; k++) {
            ended += f->events[k].type == MF_SERVICE_FINISHED;
        }
    }
    CHECK(refused > 0);
    while (ended < live) {
        ended += next_event(f).type == MF_SERVICE_FINISHED;
    }
    CHECK(mf_service_has_room(f->service, NULL));
    close_fixture(f);
}

TEST(a_model_that_does_not_open_is_reported)
{
    fixture *f = make_fixture();
    f->fails_to_open = true;
    atomic_store(&f->may_open, false);
    mf_service_options o = default_options(f);
    mf_error err = { 0 };
    CHECK_OK(mf_service_open(&o, &f->service, &err), err);
    CHECK_EQ(mf_service_get_state(f->service), MF_SERVICE_LOADING);
    mf_request r = request_of(some_prompt, 10, 2);
    uint64_t serial;
    CHECK_EQ(mf_service_submit(f->service, &r, &serial, &err), MF_ERR_DEVICE);
    mf_service_snapshot snapshot = { 0 };
    CHECK_OK(mf_service_snapshot_take(f->service, &snapshot, &err), err);
    mf_service_snapshot_close(&snapshot);
    atomic_store(&f->may_open, true);
    struct pollfd fd = { .fd = mf_service_wake_fd(f->service), .events = POLLIN };
    CHECK_EQ(poll(&fd, 1, 5000), 1); /* the change of state wakes the loop */
    CHECK_EQ(mf_service_get_state(f->service), MF_SERVICE_FAILED);
    CHECK_HAS(mf_service_failure(f->service), "it is broken");
    CHECK_EQ(mf_service_failure_status(f->service), MF_ERR_FORMAT);
    close_fixture(f);
}

TEST(a_device_that_fails_step_after_step_ends_everything_and_is_told)
{
    fixture *f = make_fixture();
    mf_service_options o = default_options(f);
    open_fixture(f, &o);
    mf_error err = { 0 };
    int32_t n = 0;
    f->fake.max_batch_tokens = 0; /* every forward fails from here on; nothing runs yet */
    int32_t ended = 0, submitted = 0;
    for (int i = 0; i < 200 && mf_service_get_state(f->service) == MF_SERVICE_READY; i++) {
        mf_request r = request_of(some_prompt, 10, 20);
        uint64_t serial;
        if (mf_service_submit(f->service, &r, &serial, &err) == MF_OK) {
            submitted++;
            mf_service_event e = last_event_of(f, serial, &n);
            ended++;
            CHECK(e.type == MF_SERVICE_REFUSED || e.event.finish_reason == MF_FINISH_ERROR ||
                  e.event.finish_reason == MF_FINISH_CANCELLED);
        }
    }
    CHECK_EQ(mf_service_get_state(f->service), MF_SERVICE_FAILED);
    CHECK_EQ(ended, submitted);
    close_fixture(f);
}

/* ---- the soak -----------------------------------------------------------------------------------------------------
 */

enum { SOAK_SLOTS = 40, SOAK_OPS = 100000 };

typedef struct soak_call {
    uint64_t serial;
    int32_t num_tokens, guides_released;
    bool has_guide;
} soak_call;

static void guide_fill(void *context, uint32_t *mask, int32_t vocab_size)
{
    (void)context;
    memset(mask, 0xff, (size_t)(vocab_size + 31) / 32 * 4);
}

static void guide_accept(void *context, int32_t id)
{
    (void)context;
    (void)id;
}

static _Atomic int64_t num_released;

static void guide_release(void *context)
{
    (void)context;
    atomic_fetch_add(&num_released, 1);
}

typedef struct soak {
    fixture *f;
    uint64_t random;
    soak_call calls[SOAK_SLOTS];
    uint64_t old[64];
    int64_t num_submitted, num_finished, num_refused, num_busy, num_tokens, num_guides;
    int64_t num_rows; /* of steps, as told */
} soak;

static int32_t pick(soak *s, int32_t n)
{
    return (int32_t)mf_random_below(&s->random, (uint64_t)n);
}

static void soak_submit(soak *s)
{
    int32_t i = pick(s, SOAK_SLOTS);
    soak_call *c = &s->calls[i];
    if (c->serial) {
        return;
    }
    int32_t prompt[40];
    int32_t n = 1 + pick(s, 30);
    for (int32_t k = 0; k < n; k++) {
        prompt[k] = k < 12 ? 1 + k % 3 : pick(s, FAKE_SAMPLED);
    }
    if (pick(s, 50) == 0) {
        prompt[n - 1] = FAKE_VOCAB + 5; /* to be refused */
    }
    mf_request r = request_of(prompt, n, pick(s, 20));
    r.sampling.logprobs = pick(s, 4) - 1;
    r.sampling.prompt_logprobs = pick(s, 6) == 0 ? 2 : -1;
    r.sampling.ignore_eos = pick(s, 2);
    r.user_data = c;
    if (pick(s, 10) == 0) {
        r.deadline_ns = mf_now_ns() + pick(s, 2000000);
    }
    bool has_guide = pick(s, 5) == 0;
    if (has_guide) {
        r.guide = (mf_guide){ c, guide_fill, guide_accept, guide_release };
    }
    mf_error err = { 0 };
    mf_status status = mf_service_submit(s->f->service, &r, &c->serial, &err);
    if (status != MF_OK) {
        CHECK_EQ(status, MF_ERR_BUSY);
        CHECK_EQ(c->serial, 0);
        s->num_busy++;
        return;
    }
    c->num_tokens = 0;
    s->num_guides += has_guide;
    s->num_submitted++;
}

static void soak_poll(soak *s)
{
    int32_t n = mf_service_poll(s->f->service, s->f->events, 1 + pick(s, 64));
    for (int32_t i = 0; i < n; i++) {
        const mf_service_event *e = &s->f->events[i];
        s->num_rows += e->step_tokens;
        if (e->type == MF_SERVICE_STEP) {
            CHECK(e->serial == 0 && !e->user_data);
            continue;
        }
        soak_call *c = e->user_data;
        CHECK(c >= s->calls && c < s->calls + SOAK_SLOTS);
        CHECK_EQ(c->serial, e->serial); /* an event of a serial that has ended would not match */
        if (e->type == MF_SERVICE_TOKEN) {
            c->num_tokens++;
            s->num_tokens++;
        } else if (e->type == MF_SERVICE_FINISHED || e->type == MF_SERVICE_REFUSED) {
            if (e->type == MF_SERVICE_FINISHED) {
                CHECK_EQ(c->num_tokens, e->event.completion_tokens);
                s->num_finished++;
            } else {
                CHECK_EQ(e->status, MF_ERR_INVALID);
                s->num_refused++;
            }
            s->old[pick(s, 64)] = c->serial;
            c->serial = 0;
        }
    }
}

static void soak_operate(soak *s)
{
    int32_t what = pick(s, 100);
    soak_call *c = &s->calls[pick(s, SOAK_SLOTS)];
    if (what < 30) {
        soak_submit(s);
    } else if (what < 38) {
        mf_service_cancel(s->f->service, c->serial ? c->serial : s->old[pick(s, 64)]);
    } else if (what < 41) {
        mf_service_pause(s->f->service, c->serial, true);
    } else if (what < 47) {
        mf_service_pause(s->f->service, c->serial, false);
    } else if (what == 47 && pick(s, 20) == 0) {
        mf_service_reset_prefix_cache(s->f->service);
    } else {
        soak_poll(s);
    }
    if (pick(s, 64) == 0) {
        usleep(20); /* the engine's turn */
    }
}

TEST(random_life_ends_every_serial_exactly_once_and_conserves_blocks)
{
    soak *s = calloc(1, sizeof *s);
    s->random = 11;
    s->f = make_fixture();
    mf_service_options o = default_options(s->f);
    o.num_ring_events = 24; /* small: the engine has to wait for room often */
    o.max_live_requests = SOAK_SLOTS;
    open_fixture(s->f, &o);
    atomic_store(&num_released, 0);
    for (int i = 0; i < SOAK_OPS; i++) {
        soak_operate(s);
    }
    for (int i = 0; i < SOAK_SLOTS; i++) {
        if (s->calls[i].serial) {
            mf_service_pause(s->f->service, s->calls[i].serial, false);
        }
    }
    for (int i = 0; i < 20000 && s->num_finished + s->num_refused < s->num_submitted; i++) {
        soak_poll(s);
        usleep(500);
    }
    CHECK_EQ(s->num_finished + s->num_refused, s->num_submitted);
    soak_poll(s);
    CHECK_EQ(mf_service_num_live(s->f->service), 0);
    mf_service_snapshot snapshot = { 0 };
    mf_error err = { 0 };
    CHECK_OK(mf_service_snapshot_take(s->f->service, &snapshot, &err), err);
    for (int i = 0; i < 1000 && snapshot.stats.num_running + snapshot.stats.num_waiting > 0; i++) {
        usleep(1000);
        CHECK_OK(mf_service_snapshot_take(s->f->service, &snapshot, &err), err);
    }
    CHECK_EQ(snapshot.queued_reqs, 0);
    CHECK_EQ(snapshot.queued_tokens, 0);
    CHECK_EQ(snapshot.stats.computed_tokens, s->num_rows); /* each step's size was told once */
    CHECK_EQ(snapshot.stats.kv_blocks_used, 0);
    CHECK_EQ(snapshot.stats.kv_blocks_free + snapshot.stats.kv_blocks_cached, snapshot.stats.kv_blocks_total);
    CHECK_EQ(snapshot.stats.num_invariant_violations, 0);
    mf_service_snapshot_close(&snapshot);
    print_message("submitted %lld, finished %lld, refused %lld, busy %lld, tokens %lld, guides %lld\n",
                  (long long)s->num_submitted, (long long)s->num_finished, (long long)s->num_refused,
                  (long long)s->num_busy, (long long)s->num_tokens, (long long)s->num_guides);
    CHECK(s->num_submitted > 1000 && s->num_tokens > 1000 && s->num_refused > 10);
    close_fixture(s->f);
    CHECK_EQ(atomic_load(&num_released), s->num_guides);
    free(s);
}
