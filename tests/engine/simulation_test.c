/* simulation_test.c - 100,000 random submits, cancels, pauses and steps per seed: blocks conserved after each, and every
 * answer equal to the plain loop's. */
#include "jobs.h"

#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"

enum { MAX_LIVE = 64, MAX_LEN = 48, NUM_OPERATIONS = 100000 };

typedef struct simulation {
    uint64_t random;
    fake_model fake;
    mf_engine *engine;
    mf_sampler *sampler;
    job *jobs[MAX_LIVE];
    uint64_t old_ids[64];
    int64_t num_finished[MF_FINISH_ERROR + 1];
    int64_t num_busy, num_late;
    bool has_faults; /* some forwards fail, and with them all requests in the batch */
} simulation;

static int32_t pick(simulation *s, int32_t n)
{
    return (int32_t)mf_random_below(&s->random, (uint64_t)n);
}

static void submit_one(simulation *s)
{
    int32_t place = pick(s, MAX_LIVE);
    if (s->jobs[place]) {
        return;
    }
    job *j = malloc(sizeof *j);
    job_random(j, &s->random, MAX_LEN);
    j->request.prompt_token_ids = j->prompt;
    mf_error err = { 0 };
    mf_status status = mf_engine_submit(s->engine, &j->request, &j->id, &err);
    if (status != MF_OK) {
        CHECK_EQ(status, MF_ERR_BUSY);
        CHECK_EQ(j->guide.num_releases, 0);
        s->num_busy++;
        free(j);
        return;
    }
    job_expect(j, &s->fake, s->sampler, MAX_LEN);
    s->jobs[place] = j;
}

static void cancel_one(simulation *s)
{
    job *j = s->jobs[pick(s, MAX_LIVE)];
    if (j && pick(s, 2) == 0) {
        j->is_cancelled = true;
        mf_engine_cancel(s->engine, j->id);
        if (pick(s, 2)) {
            mf_engine_cancel(s->engine, j->id); /* late by now */
            s->num_late++;
        }
    } else {
        mf_engine_cancel(s->engine, s->old_ids[pick(s, 64)]); /* ended, or never was */
        s->num_late++;
    }
}

static void pause_one(simulation *s, bool paused)
{
    job *j = s->jobs[pick(s, MAX_LIVE)];
    if (j && !j->is_done) {
        mf_engine_pause(s->engine, j->id, paused);
    }
}

static void step_one(simulation *s)
{
    mf_event events[16];
    int32_t n;
    mf_error err = { 0 };
    bool fails = s->has_faults && pick(s, 200) == 0;
    s->fake.fail_countdown = fails ? 1 : 0;
    mf_status status = mf_engine_step(s->engine, events, 1 + pick(s, 16), &n, &err);
    CHECK(status == MF_OK || (fails && status == MF_ERR_DEVICE));
    jobs_take(events, n);
    for (int32_t i = 0; i < MAX_LIVE; i++) {
        job *j = s->jobs[i];
        if (j && j->is_done) {
            j->is_cancelled = j->is_cancelled || (s->has_faults && j->got.reason == MF_FINISH_ERROR);
            job_compare(j);
            s->num_finished[j->got.reason]++;
            s->old_ids[pick(s, 64)] = j->id;
            free(j);
            s->jobs[i] = NULL;
        }
    }
}

static void resume_all(simulation *s)
{
    for (int32_t i = 0; i < MAX_LIVE; i++) {
        if (s->jobs[i]) {
            mf_engine_pause(s->engine, s->jobs[i]->id, 0);
        }
    }
}

static void operate(simulation *s)
{
    int32_t what = pick(s, 100);
    if (what < 24) {
        submit_one(s);
    } else if (what < 30) {
        cancel_one(s);
    } else if (what < 32) {
        pause_one(s, true);
    } else if (what < 36) {
        pause_one(s, false);
    } else if (what == 36 && pick(s, 20) == 0) {
        mf_engine_reset_prefix_cache(s->engine);
    } else {
        step_one(s);
    }
    mf_error err = { 0 };
    CHECK_OK(mf_engine_check(s->engine, &err), err);
}

static void simulate(uint64_t seed)
{
    simulation *s = calloc(1, sizeof *s);
    s->random = seed;
    s->has_faults = seed % 5 == 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    fake_model_init(&s->fake, 24);
    s->fake.poison_token = FAKE_VOCAB - 1; /* not sampled, but prompts hold it */
    s->fake.has_states = seed % 3 == 0;
    mf_engine_options o = MF_ENGINE_OPTIONS_INIT;
    o.block_size = 1 + pick(s, 6);
    o.max_num_seqs = 1 + pick(s, 8);
    o.max_num_batched_tokens = 1 + pick(s, 24);
    o.max_num_queued_reqs = 1 + pick(s, 12);
    o.max_num_queued_tokens = 100 + pick(s, 400);
    o.num_sampled_ids = FAKE_SAMPLED;
    o.enable_prefix_caching = pick(s, 4) > 0;
    int32_t least = (MAX_LEN + o.block_size - 1) / o.block_size;
    s->engine = open_fake_engine(&s->fake, &o, MAX_LEN, least + pick(s, least));
    mf_error err = { 0 };
    CHECK_OK(mf_sampler_open(FAKE_VOCAB, FAKE_SAMPLED, &s->sampler, &err), err);
    for (int32_t i = 0; i < NUM_OPERATIONS; i++) {
        operate(s);
    }
    resume_all(s);
    for (int32_t i = 0; mf_engine_has_work(s->engine); i++) {
        CHECK(i < 100000);
        step_one(s);
    }
    mf_engine_stats stats;
    mf_engine_get_stats(s->engine, &stats);
    CHECK_EQ(stats.num_running, 0);
    CHECK_EQ(stats.num_waiting, 0);
    CHECK_EQ(stats.num_paused, 0);
    CHECK_EQ(stats.num_waiting_tokens, 0);
    CHECK_EQ(stats.kv_blocks_used, 0);
    CHECK_EQ(stats.kv_blocks_free + stats.kv_blocks_cached, stats.kv_blocks_total);
    CHECK_EQ(stats.num_invariant_violations, 0);
    CHECK_EQ(stats.num_refused_busy, s->num_busy);
    CHECK(stats.num_late_events >= s->num_late);
    for (int reason = 0; reason <= MF_FINISH_ERROR; reason++) {
        CHECK_EQ(stats.num_finished[reason], s->num_finished[reason]);
    }
    print_message("  steps %lld, stop %lld, length %lld, cancelled %lld, error %lld, busy %lld, preempted %lld, hits %lld\n",
                  (long long)stats.num_steps, (long long)s->num_finished[MF_FINISH_STOP],
                  (long long)s->num_finished[MF_FINISH_LENGTH], (long long)s->num_finished[MF_FINISH_CANCELLED],
                  (long long)s->num_finished[MF_FINISH_ERROR], (long long)s->num_busy, (long long)stats.num_preemptions,
                  (long long)stats.prefix_cache_hits);
    CHECK(!s->fake.has_states || stats.prefix_cache_hits == 0);
    CHECK(s->num_finished[MF_FINISH_LENGTH] > 100 && s->num_finished[MF_FINISH_STOP] > 100);
    mf_engine_close(&s->engine);
    CHECK_EQ(s->fake.num_open, 0);
    CHECK_EQ(s->fake.num_closed, 1);
    mf_sampler_close(&s->sampler);
    free(s);
}

TEST(random_life_conserves_blocks_and_changes_no_answer)
{
    const char *count = getenv("MF_SIMULATION_SEEDS"); /* more of them for a long run */
    uint64_t n = count ? strtoull(count, NULL, 10) : 10;
    for (uint64_t seed = 1; seed <= n; seed++) {
        simulate(seed);
    }
}
