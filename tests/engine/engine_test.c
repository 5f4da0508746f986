/* engine_test.c - what a request answers does not depend on anything around it, and how it ends. */
#include "jobs.h"

#include <math.h>
#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"

enum { MAX_LEN = 48 };

static mf_engine_options small_options(void)
{
    mf_engine_options o = MF_ENGINE_OPTIONS_INIT;
    o.block_size = 4;
    o.max_num_seqs = 4;
    o.max_num_batched_tokens = 16;
    o.max_num_queued_tokens = 10000;
    o.num_sampled_ids = FAKE_SAMPLED;
    return o;
}

/* An engine over a fake model, and what the plain loop needs. */
typedef struct setup {
    fake_model fake;
    mf_engine *engine;
    mf_sampler *sampler;
} setup;

static void open_setup(setup *s, const mf_engine_options *o, int32_t num_blocks)
{
    mf_error err = { 0 };
    fake_model_init(&s->fake, 64);
    s->engine = open_fake_engine(&s->fake, o, MAX_LEN, num_blocks);
    CHECK_OK(mf_sampler_open(FAKE_VOCAB, FAKE_SAMPLED, &s->sampler, &err), err);
}

static void close_setup(setup *s)
{
    mf_engine_close(&s->engine);
    mf_sampler_close(&s->sampler);
    CHECK_EQ(s->fake.num_open, 0);
    CHECK_EQ(s->fake.num_closed, 1);
}

static mf_engine_stats stats_of(const mf_engine *engine)
{
    mf_engine_stats stats;
    mf_engine_get_stats(engine, &stats);
    return stats;
}

static void step(mf_engine *engine)
{
    mf_event events[64];
    int32_t n;
    mf_error err = { 0 };
    CHECK_OK(mf_engine_step(engine, events, 64, &n, &err), err);
    CHECK_OK(mf_engine_check(engine, &err), err);
    jobs_take(events, n);
}

/* Tokens 0..n-1 of a fixed text without EOS. */
static void job_text(job *j, uint64_t text, int32_t num_prompt, int32_t max_tokens)
{
    int32_t prompt[JOB_MAX_TOKENS];
    for (int32_t i = 0; i < num_prompt; i++) {
        prompt[i] = 6 + (int32_t)(mf_random_mix(text * 100 + (uint64_t)i) % 30);
    }
    job_init(j, prompt, num_prompt, max_tokens);
    j->request.sampling.ignore_eos = 1;
}

/* ---- equal answers ------------------------------------------------------------------------------------------------ */

static void run_mix(const mf_engine_options *o, int32_t num_blocks, uint64_t seed, int32_t num_jobs, mf_engine_stats *stats)
{
    setup s;
    job *jobs = calloc((size_t)num_jobs, sizeof *jobs);
    open_setup(&s, o, num_blocks);
    for (int32_t i = 0; i < num_jobs; i++) {
        job_random(&jobs[i], &seed, MAX_LEN);
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    engine_run(s.engine);
    for (int32_t i = 0; i < num_jobs; i++) {
        job_compare(&jobs[i]);
    }
    *stats = stats_of(s.engine);
    CHECK_EQ(stats->num_invariant_violations, 0);
    CHECK_EQ(stats->kv_blocks_used, 0);
    CHECK(s.fake.largest_batch <= o->max_num_batched_tokens);
    CHECK(s.fake.largest_num_sequences <= o->max_num_seqs);
    close_setup(&s);
    free(jobs);
}

TEST(answers_equal_a_plain_loop_for_any_batching)
{
    static const int32_t seqs[] = { 1, 2, 5, 16 };
    static const int32_t chunks[] = { 1, 3, 7, 64 };
    static const int32_t sizes[] = { 1, 2, 4, 16 };
    int64_t num_preemptions = 0;
    int64_t num_hits = 0;
    for (int32_t i = 0; i < 4 * 4 * 4 * 2 * 2; i++) {
        mf_engine_options o = small_options();
        o.max_num_seqs = seqs[i % 4];
        o.max_num_batched_tokens = chunks[i / 4 % 4];
        o.block_size = sizes[i / 16 % 4];
        o.enable_prefix_caching = i / 64 % 2;
        int32_t least = (MAX_LEN + o.block_size - 1) / o.block_size;
        mf_engine_stats stats;
        run_mix(&o, i / 128 % 2 ? 16 * least : least, (uint64_t)i + 1, 24, &stats);
        num_preemptions += stats.num_preemptions;
        num_hits += stats.prefix_cache_hits;
        CHECK(o.enable_prefix_caching || stats.prefix_cache_hits == 0);
        CHECK(i / 128 % 2 == 0 || stats.num_preemptions == 0); /* room for all */
    }
    CHECK(num_preemptions > 100);
    CHECK(num_hits > 1000);
}

TEST(a_tiny_pool_preempts_and_recomputes_to_the_same_answer)
{
    mf_engine_options o = small_options();
    setup s;
    job jobs[4];
    open_setup(&s, &o, MAX_LEN / 4); /* one sequence at full length */
    for (int i = 0; i < 4; i++) {
        job_text(&jobs[i], (uint64_t)i, 8, 40);
        jobs[i].request.sampling.logprobs = 2;
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    engine_run(s.engine);
    for (int i = 0; i < 4; i++) {
        job_compare(&jobs[i]);
        CHECK_EQ(jobs[i].end.finish_reason, MF_FINISH_LENGTH);
    }
    CHECK(stats_of(s.engine).num_preemptions >= 3);
    close_setup(&s);
}

TEST(one_event_at_a_time_gives_the_same_events)
{
    mf_engine_options o = small_options();
    setup s;
    uint64_t seed = 99;
    job *jobs = calloc(12, sizeof *jobs);
    open_setup(&s, &o, 40);
    for (int i = 0; i < 12; i++) {
        job_random(&jobs[i], &seed, MAX_LEN);
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    while (mf_engine_has_work(s.engine)) {
        mf_event event;
        int32_t n;
        mf_error err = { 0 };
        CHECK_OK(mf_engine_step(s.engine, &event, 1, &n, &err), err);
        jobs_take(&event, n);
    }
    for (int i = 0; i < 12; i++) {
        job_compare(&jobs[i]);
    }
    close_setup(&s);
    free(jobs);
}

TEST(prompt_logprobs_come_in_chunks_of_rows_when_the_vocabulary_is_large)
{
    /* 600,000 ids: 16 rows of logits a step, fewer than the 64 tokens a step may take. */
    setup s = { 0 };
    mf_error err = { 0 };
    mf_engine_options o = small_options();
    o.max_num_batched_tokens = 64;
    fake_model_init(&s.fake, 64);
    s.fake.vocab_size = 600000;
    s.engine = open_fake_engine(&s.fake, &o, MAX_LEN, 40);
    CHECK_OK(mf_sampler_open(600000, FAKE_SAMPLED, &s.sampler, &err), err);
    job jobs[2];
    for (int i = 0; i < 2; i++) {
        job_text(&jobs[i], (uint64_t)i, 40, 2);
        jobs[i].request.sampling.prompt_logprobs = i == 0 ? 2 : -1;
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    engine_run(s.engine);
    job_compare(&jobs[0]);
    job_compare(&jobs[1]);
    CHECK_EQ(jobs[0].got.num_prompt_logprobs, 39);
    CHECK_EQ(s.fake.largest_num_logit_rows, 16 + 1);
    CHECK_EQ(s.fake.num_forwards, 4); /* rows 0-15, 16-31, 32-38 and the first token, the second token */
    close_setup(&s);
}

/* ---- prefix cache ------------------------------------------------------------------------------------------------- */

TEST(a_second_request_computes_only_what_is_new)
{
    mf_engine_options o = small_options();
    setup s;
    job first, second;
    open_setup(&s, &o, 40);
    job_text(&first, 1, 16, 5);
    job_text(&second, 1, 16, 5);
    job_expect(&second, &s.fake, s.sampler, MAX_LEN);
    job_submit(&first, s.engine);
    engine_run(s.engine);
    int64_t computed = stats_of(s.engine).computed_tokens;
    CHECK_EQ(computed, 16 + 4); /* the fifth token is never run */
    job_submit(&second, s.engine);
    engine_run(s.engine);
    job_compare(&second);
    CHECK_EQ(first.end.cached_tokens, 0);
    CHECK_EQ(second.end.cached_tokens, 12); /* 16 would leave nothing to run */
    CHECK_EQ(stats_of(s.engine).computed_tokens - computed, 4 + 4);
    CHECK_EQ(stats_of(s.engine).prefix_cache_hits, 12);
    CHECK_EQ(stats_of(s.engine).prefix_cache_queries, 32);
    close_setup(&s);
}

TEST(a_second_turn_reuses_the_answer_too)
{
    mf_engine_options o = small_options();
    setup s;
    job first, second;
    open_setup(&s, &o, 40);
    job_text(&first, 1, 10, 7);
    job_submit(&first, s.engine);
    engine_run(s.engine);
    int32_t chat[20];
    memcpy(chat, first.prompt, 10 * sizeof *chat);
    memcpy(chat + 10, first.got.tokens, 7 * sizeof *chat);
    chat[17] = chat[18] = chat[19] = 9;
    job_init(&second, chat, 20, 4);
    job_expect(&second, &s.fake, s.sampler, MAX_LEN);
    job_submit(&second, s.engine);
    engine_run(s.engine);
    job_compare(&second);
    CHECK_EQ(second.end.cached_tokens, 16); /* 16 of the 17 tokens were computed: four full blocks */
    close_setup(&s);
}

TEST(prompt_logprobs_read_no_cached_prefix)
{
    mf_engine_options o = small_options();
    setup s;
    job plain, with;
    open_setup(&s, &o, 40);
    job_text(&plain, 1, 20, 2);
    job_text(&with, 1, 20, 2);
    with.request.sampling.prompt_logprobs = 1;
    job_expect(&with, &s.fake, s.sampler, MAX_LEN);
    job_submit(&plain, s.engine);
    engine_run(s.engine);
    job_submit(&with, s.engine);
    engine_run(s.engine);
    job_compare(&with);
    CHECK_EQ(with.end.cached_tokens, 0);
    CHECK_EQ(with.got.num_prompt_logprobs, 19);
    close_setup(&s);
}

TEST(a_reset_cache_is_empty)
{
    mf_engine_options o = small_options();
    setup s;
    job first, second;
    open_setup(&s, &o, 40);
    job_text(&first, 1, 16, 2);
    job_text(&second, 1, 16, 2);
    job_submit(&first, s.engine);
    engine_run(s.engine);
    CHECK_EQ(stats_of(s.engine).kv_blocks_cached, 4);
    mf_engine_reset_prefix_cache(s.engine);
    CHECK_EQ(stats_of(s.engine).kv_blocks_cached, 0);
    job_submit(&second, s.engine);
    engine_run(s.engine);
    CHECK_EQ(second.end.cached_tokens, 0);
    close_setup(&s);
}

/* ---- ends --------------------------------------------------------------------------------------------------------- */

/* The greedy answer without any stop, to choose stops from. */
static void greedy_answer(setup *s, job *j, int32_t max_tokens)
{
    job_text(j, 3, 6, max_tokens);
    job_expect(j, &s->fake, s->sampler, MAX_LEN);
}

TEST(eos_ends_with_stop_and_no_stop_id)
{
    mf_engine_options o = small_options();
    setup s;
    job j;
    open_setup(&s, &o, 40);
    job_text(&j, 3, 6, 30);
    mf_logit_bias bias = { FAKE_EOS, 100.0f };
    j.request.sampling.ignore_eos = 0;
    j.bias[0] = bias;
    j.request.sampling.num_logit_bias = 1;
    j.request.sampling.min_tokens = 3;
    job_submit(&j, s.engine);
    engine_run(s.engine);
    CHECK_EQ(j.end.finish_reason, MF_FINISH_STOP);
    CHECK_EQ(j.end.stop_token_id, -1);
    CHECK_EQ(j.end.completion_tokens, 4); /* EOS counts, and comes right after the third */
    CHECK_EQ(j.got.tokens[3], FAKE_EOS);
    close_setup(&s);
}

TEST(a_stop_id_ends_with_stop_and_is_named)
{
    mf_engine_options o = small_options();
    setup s;
    job whole, j;
    open_setup(&s, &o, 40);
    greedy_answer(&s, &whole, 10);
    greedy_answer(&s, &j, 10);
    j.stop_ids[0] = 39;
    j.stop_ids[1] = whole.expected.tokens[5];
    j.request.sampling.num_stop_token_ids = 2;
    int32_t first = 0;
    while (whole.expected.tokens[first] != whole.expected.tokens[5]) {
        first++;
    }
    job_submit(&j, s.engine);
    engine_run(s.engine);
    CHECK_EQ(j.end.finish_reason, MF_FINISH_STOP);
    CHECK_EQ(j.end.stop_token_id, whole.expected.tokens[5]);
    CHECK_EQ(j.end.completion_tokens, first + 1);
    close_setup(&s);
}

TEST(max_tokens_ends_with_length)
{
    mf_engine_options o = small_options();
    setup s;
    open_setup(&s, &o, 40);
    for (int32_t n = 0; n <= 3; n++) {
        job j;
        greedy_answer(&s, &j, n);
        job_submit(&j, s.engine);
        engine_run(s.engine);
        job_compare(&j);
        CHECK_EQ(j.end.finish_reason, MF_FINISH_LENGTH);
        CHECK_EQ(j.end.completion_tokens, n);
    }
    job j;
    greedy_answer(&s, &j, -1);
    job_submit(&j, s.engine);
    engine_run(s.engine);
    job_compare(&j);
    CHECK_EQ(j.end.completion_tokens, MAX_LEN - 6);
    close_setup(&s);
}

TEST(nan_logits_end_that_request_alone)
{
    mf_engine_options o = small_options();
    setup s;
    job jobs[4];
    open_setup(&s, &o, 60);
    s.fake.poison_token = 2;
    for (int i = 0; i < 4; i++) {
        job_text(&jobs[i], 7, 20, 12); /* the same text, so that prefixes are shared */
        jobs[i].prompt[19] = 6 + i;
    }
    jobs[1].prompt[9] = 2;
    for (int i = 0; i < 4; i++) {
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    engine_run(s.engine);
    for (int i = 0; i < 4; i++) {
        job_compare(&jobs[i]);
        CHECK_EQ(jobs[i].end.finish_reason == MF_FINISH_ERROR, i == 1);
    }
    /* Nothing of it may be found by another one, not even what was computed before the NaN. */
    job again;
    job_init(&again, jobs[1].prompt, 20, 2);
    s.fake.poison_token = -1;
    job_expect(&again, &s.fake, s.sampler, MAX_LEN);
    job_submit(&again, s.engine);
    engine_run(s.engine);
    job_compare(&again);
    CHECK(again.end.cached_tokens <= 8);
    close_setup(&s);
}

/* Greedy requests alone are the model's to choose; one that wants more beside them brings the logits back. */
TEST(the_models_own_choice_is_the_samplers)
{
    mf_engine_options o = small_options();
    for (int mixed = 0; mixed < 2; mixed++) {
        setup s;
        job jobs[5];
        mf_error err = { 0 };
        fake_model_init(&s.fake, 64);
        s.fake.picks_best = true;
        s.fake.poison_token = 2;
        s.engine = open_fake_engine(&s.fake, &o, MAX_LEN, 60);
        CHECK_OK(mf_sampler_open(FAKE_VOCAB, FAKE_SAMPLED, &s.sampler, &err), err);
        for (int i = 0; i < 5; i++) {
            job_text(&jobs[i], 9 + (uint64_t)i, 10, 20);
            for (int k = 0; k < 10; k++) {
                jobs[i].prompt[k] = jobs[i].prompt[k] == 2 ? 3 : jobs[i].prompt[k];
            }
        }
        jobs[3].prompt[4] = 2; /* NaN */
        if (mixed) {
            jobs[1].request.sampling.logprobs = 2;
        }
        for (int i = 0; i < 5; i++) {
            job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
            job_submit(&jobs[i], s.engine);
        }
        engine_run(s.engine);
        for (int i = 0; i < 5; i++) {
            job_compare(&jobs[i]);
        }
        CHECK(s.fake.num_picks > 0);
        CHECK(mixed ? s.fake.num_picks < s.fake.num_forwards : s.fake.num_picks + 1 >= s.fake.num_forwards / 2);
        close_setup(&s);
    }
}

/* Whatever the fields ask for: with a model that answers most rows itself, the answers stay those of the sampler. */
TEST(what_the_model_picks_is_what_the_sampler_picks)
{
    enum { JOBS = 24 };
    int64_t num_picked = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        mf_engine_options o = small_options();
        mf_sampler *of_model;
        static job jobs[JOBS];
        setup s;
        mf_error err = { 0 };
        uint64_t random = seed;
        fake_model_init(&s.fake, 64);
        CHECK_OK(mf_sampler_open(FAKE_VOCAB, FAKE_SAMPLED, &of_model, &err), err);
        CHECK_OK(mf_sampler_open(FAKE_VOCAB, FAKE_SAMPLED, &s.sampler, &err), err);
        s.fake.picks = of_model;
        s.fake.picks_best = seed % 2 == 0;
        s.fake.poison_token = seed % 3 == 0 ? 2 : -1;
        s.engine = open_fake_engine(&s.fake, &o, MAX_LEN, 60);
        for (int i = 0; i < JOBS; i++) {
            job_random(&jobs[i], &random, MAX_LEN);
            job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
            job_submit(&jobs[i], s.engine);
        }
        engine_run(s.engine);
        for (int i = 0; i < JOBS; i++) {
            job_compare(&jobs[i]);
        }
        num_picked += s.fake.num_picked;
        close_setup(&s);
        mf_sampler_close(&of_model);
    }
    CHECK(num_picked > 1000);
}

TEST(a_failing_device_ends_its_batch_and_not_the_engine)
{
    mf_engine_options o = small_options();
    setup s;
    job jobs[3];
    open_setup(&s, &o, 40);
    for (int i = 0; i < 3; i++) {
        job_text(&jobs[i], (uint64_t)i, 5, 8);
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
    }
    job_submit(&jobs[0], s.engine);
    job_submit(&jobs[1], s.engine);
    step(s.engine);
    s.fake.fail_countdown = 1;
    mf_event events[16];
    int32_t n;
    mf_error err = { 0 };
    CHECK_EQ(mf_engine_step(s.engine, events, 16, &n, &err), MF_ERR_DEVICE);
    CHECK_HAS(err.message, "the device is gone");
    CHECK_EQ(n, 2);
    jobs_take(events, n);
    CHECK_EQ(jobs[0].end.finish_reason, MF_FINISH_ERROR);
    CHECK_EQ(jobs[1].end.finish_reason, MF_FINISH_ERROR);
    CHECK_EQ(stats_of(s.engine).kv_blocks_free, 40);
    job_submit(&jobs[2], s.engine);
    engine_run(s.engine);
    job_compare(&jobs[2]);
    close_setup(&s);
}

/* ---- cancel, pause, deadline -------------------------------------------------------------------------------------- */

TEST(a_cancel_frees_blocks_at_once_wherever_the_request_is)
{
    mf_engine_options o = small_options();
    o.max_num_seqs = 2;
    o.max_num_batched_tokens = 8;
    setup s;
    job jobs[3];
    open_setup(&s, &o, 40);
    job_text(&jobs[0], 0, 4, 20);
    job_text(&jobs[1], 1, 30, 4);
    job_text(&jobs[2], 2, 4, 4);
    for (int i = 0; i < 3; i++) {
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    step(s.engine);
    step(s.engine); /* 0 decodes, 1 is in its prompt, 2 waits */
    CHECK_EQ(stats_of(s.engine).num_running, 2);
    CHECK_EQ(stats_of(s.engine).num_waiting, 1);
    for (int i = 0; i < 3; i++) {
        mf_engine_cancel(s.engine, jobs[i].id);
        jobs[i].is_cancelled = true;
    }
    mf_engine_stats stats = stats_of(s.engine);
    CHECK_EQ(stats.kv_blocks_used, 0);
    CHECK_EQ(stats.num_running + stats.num_waiting, 0);
    CHECK_EQ(stats.num_waiting_tokens, 0);
    CHECK(mf_engine_has_work(s.engine)); /* their events */
    engine_run(s.engine);
    for (int i = 0; i < 3; i++) {
        job_compare(&jobs[i]);
        CHECK_EQ(jobs[i].end.finish_reason, MF_FINISH_CANCELLED);
    }
    CHECK_EQ(jobs[0].end.completion_tokens, 2);
    CHECK_EQ(jobs[2].end.completion_tokens, 0);
    CHECK(!mf_engine_has_work(s.engine));
    close_setup(&s);
}

TEST(late_and_unknown_cancels_are_counted_and_hit_nobody)
{
    mf_engine_options o = small_options();
    setup s;
    job first, second;
    open_setup(&s, &o, 40);
    greedy_answer(&s, &first, 2);
    greedy_answer(&s, &second, 5);
    job_submit(&first, s.engine);
    engine_run(s.engine);
    job_submit(&second, s.engine); /* takes the first one's slot */
    CHECK(second.id != first.id);
    uint64_t ids[] = { first.id, 0, UINT64_MAX, second.id + (1u << 20), second.id + 1 };
    for (int i = 0; i < 5; i++) {
        mf_engine_cancel(s.engine, ids[i]);
        mf_engine_pause(s.engine, ids[i], 1);
    }
    CHECK_EQ(stats_of(s.engine).num_late_events, 10);
    engine_run(s.engine);
    job_compare(&second);
    CHECK_EQ(second.end.finish_reason, MF_FINISH_LENGTH);
    mf_engine_cancel(s.engine, second.id);
    mf_engine_cancel(s.engine, second.id);
    CHECK_EQ(stats_of(s.engine).num_late_events, 12);
    CHECK_EQ(stats_of(s.engine).num_finished[MF_FINISH_CANCELLED], 0);
    close_setup(&s);
}

TEST(ids_are_never_used_again)
{
    mf_engine_options o = small_options();
    setup s;
    uint64_t last = 0;
    open_setup(&s, &o, 40);
    for (int i = 0; i < 50; i++) {
        job j;
        greedy_answer(&s, &j, 1);
        job_submit(&j, s.engine);
        CHECK(j.id > last); /* serials only grow, and stand in the high bits */
        last = j.id;
        engine_run(s.engine);
    }
    close_setup(&s);
}

TEST(a_paused_request_makes_no_tokens_and_lets_others_run)
{
    mf_engine_options o = small_options();
    setup s;
    job jobs[2];
    open_setup(&s, &o, 40);
    for (int i = 0; i < 2; i++) {
        job_text(&jobs[i], (uint64_t)i, 5, 10);
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    step(s.engine);
    mf_engine_pause(s.engine, jobs[0].id, 1);
    CHECK_EQ(stats_of(s.engine).num_paused, 1);
    engine_run(s.engine);
    CHECK(jobs[1].is_done && !jobs[0].is_done);
    CHECK_EQ(jobs[0].got.num_tokens, 1);
    CHECK(!mf_engine_has_work(s.engine)); /* nothing to do until it is resumed */
    mf_engine_pause(s.engine, jobs[0].id, 0);
    CHECK(mf_engine_has_work(s.engine));
    engine_run(s.engine);
    job_compare(&jobs[0]);
    job_compare(&jobs[1]);
    CHECK_EQ(stats_of(s.engine).num_paused, 0);
    close_setup(&s);
}

TEST(a_paused_request_yields_its_place_to_one_that_waits)
{
    mf_engine_options o = small_options();
    setup s;
    job jobs[5];
    o.max_num_seqs = 2;
    open_setup(&s, &o, 40);
    for (int i = 0; i < 5; i++) {
        job_text(&jobs[i], (uint64_t)i, 5, 10);
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    step(s.engine);
    CHECK_EQ(stats_of(s.engine).num_running, 2);
    mf_engine_pause(s.engine, jobs[0].id, 1); /* both places are taken by who is paused */
    mf_engine_pause(s.engine, jobs[1].id, 1);
    engine_run(s.engine);
    CHECK(jobs[2].is_done && jobs[3].is_done && jobs[4].is_done && !jobs[0].is_done && !jobs[1].is_done);
    CHECK(!mf_engine_has_work(s.engine));
    mf_engine_pause(s.engine, jobs[0].id, 0);
    mf_engine_pause(s.engine, jobs[1].id, 0);
    engine_run(s.engine);
    for (int i = 0; i < 5; i++) {
        job_compare(&jobs[i]);
    }
    close_setup(&s);
}

TEST(a_paused_request_yields_its_blocks_to_one_that_waits)
{
    mf_engine_options o = small_options();
    setup s;
    job jobs[2];
    open_setup(&s, &o, 8); /* of 4 tokens: room for one of them at a time */
    for (int i = 0; i < 2; i++) {
        job_text(&jobs[i], (uint64_t)i, 20, 8);
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    step(s.engine);
    CHECK_EQ(stats_of(s.engine).num_running, 1);
    mf_engine_pause(s.engine, jobs[0].id, 1);
    engine_run(s.engine);
    CHECK(jobs[1].is_done && !jobs[0].is_done);
    mf_engine_pause(s.engine, jobs[0].id, 0);
    engine_run(s.engine);
    job_compare(&jobs[0]);
    job_compare(&jobs[1]);
    close_setup(&s);
}

static int64_t fake_now_ns = 1000;

static int64_t fake_clock(void)
{
    return fake_now_ns;
}

TEST(a_deadline_passed_in_the_queue_never_starts)
{
    mf_sys saved = mf_sys_table;
    mf_sys_table.now_ns = fake_clock;
    mf_engine_options o = small_options();
    o.max_num_seqs = 1;
    setup s;
    job running, queued;
    open_setup(&s, &o, 40);
    job_text(&running, 0, 5, 10);
    job_text(&queued, 1, 5, 10);
    running.request.deadline_ns = 5000;
    queued.request.deadline_ns = 3000;
    job_submit(&running, s.engine);
    job_submit(&queued, s.engine);
    step(s.engine);
    fake_now_ns = 2999;
    step(s.engine);
    CHECK(!queued.is_done);
    fake_now_ns = 3000;
    step(s.engine);
    CHECK_EQ(queued.end.finish_reason, MF_FINISH_DEADLINE);
    CHECK_EQ(stats_of(s.engine).prompt_tokens, 5); /* the other one's */
    CHECK(queued.end.queue_s == 2000 * 1e-9);
    CHECK(queued.end.ttft_s == 0.0);
    CHECK_EQ(running.got.num_tokens, 3);
    fake_now_ns = 5000;
    step(s.engine);
    CHECK_EQ(running.end.finish_reason, MF_FINISH_DEADLINE);
    CHECK_EQ(running.end.completion_tokens, 3);
    CHECK(!mf_engine_has_work(s.engine));
    close_setup(&s);
    mf_sys_table = saved;
    fake_now_ns = 1000;
}

TEST(times_of_a_request_add_up)
{
    mf_sys saved = mf_sys_table;
    mf_sys_table.now_ns = fake_clock;
    mf_engine_options o = small_options();
    o.max_num_batched_tokens = 8;
    setup s;
    job j;
    open_setup(&s, &o, 40);
    job_text(&j, 0, 12, 3); /* two chunks and two decodes */
    job_submit(&j, s.engine);
    for (int i = 0; i < 4; i++) {
        fake_now_ns += 1000;
        step(s.engine);
    }
    CHECK(j.is_done);
    CHECK(j.end.queue_s == 1000 * 1e-9);
    CHECK(j.end.prefill_s == 1000 * 1e-9);
    CHECK(j.end.ttft_s == 2000 * 1e-9);
    CHECK(j.end.decode_s == 2000 * 1e-9);
    close_setup(&s);
    mf_sys_table = saved;
    fake_now_ns = 1000;
}

/* ---- order -------------------------------------------------------------------------------------------------------- */

TEST(requests_start_in_the_order_they_came)
{
    mf_engine_options o = small_options();
    o.max_num_seqs = 1;
    setup s;
    job jobs[5];
    open_setup(&s, &o, 40);
    for (int i = 0; i < 5; i++) {
        job_text(&jobs[i], (uint64_t)i, 5, 3);
        job_submit(&jobs[i], s.engine);
    }
    for (int i = 0; i < 5; i++) {
        CHECK(!jobs[i].is_done);
        for (int t = 0; t < 3; t++) {
            step(s.engine);
        }
        CHECK(jobs[i].is_done);
    }
    close_setup(&s);
}

TEST(a_preempted_request_comes_back_before_those_that_wait)
{
    mf_engine_options o = small_options();
    o.max_num_seqs = 2;
    setup s;
    job jobs[3];
    open_setup(&s, &o, MAX_LEN / 4);
    for (int i = 0; i < 3; i++) {
        job_text(&jobs[i], (uint64_t)i, 8, i == 0 ? 38 : 20);
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    while (stats_of(s.engine).num_preemptions == 0) { /* 0 needs all blocks in the end, so 1 has to go */
        step(s.engine);
    }
    const mf_request_list *queue = &mf_engine_get_scheduler(s.engine)->queue;
    CHECK_EQ(queue->count, 2);
    CHECK_EQ(queue->head->id, jobs[1].id);
    CHECK_EQ(queue->tail->id, jobs[2].id);
    engine_run(s.engine);
    for (int i = 0; i < 3; i++) {
        job_compare(&jobs[i]);
    }
    close_setup(&s);
}

TEST(the_lower_priority_starts_first_and_equal_ones_in_the_order_they_came)
{
    mf_engine_options o = small_options();
    o.max_num_seqs = 1;
    setup s;
    job jobs[6];
    static const int32_t priorities[6] = { 0, 3, 0, -1, 3, -1 };
    static const int order[6] = { 3, 5, 0, 2, 1, 4 };
    open_setup(&s, &o, 40);
    for (int i = 0; i < 6; i++) {
        job_text(&jobs[i], (uint64_t)i, 5, 3);
        jobs[i].request.priority = priorities[i];
        job_submit(&jobs[i], s.engine);
    }
    for (int i = 0; i < 6; i++) {
        CHECK(!jobs[order[i]].is_done);
        for (int t = 0; t < 3; t++) {
            step(s.engine);
        }
        CHECK(jobs[order[i]].is_done);
    }
    close_setup(&s);
}

TEST(of_running_requests_the_last_in_priority_is_preempted)
{
    mf_engine_options o = small_options();
    o.max_num_seqs = 2;
    setup s;
    job jobs[3];
    static const int32_t priorities[3] = { 5, 2, 5 };
    open_setup(&s, &o, MAX_LEN / 4);
    for (int i = 0; i < 3; i++) {
        job_text(&jobs[i], (uint64_t)i, 8, i == 1 ? 38 : 20);
        jobs[i].request.priority = priorities[i];
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
        if (i == 0) {
            step(s.engine); /* 0 starts first, and still is the one to go */
        }
    }
    while (stats_of(s.engine).num_preemptions == 0) {
        step(s.engine);
    }
    const mf_request_list *queue = &mf_engine_get_scheduler(s.engine)->queue;
    CHECK_EQ(queue->count, 2);
    CHECK_EQ(queue->head->id, jobs[0].id); /* in front of its equals */
    CHECK_EQ(queue->tail->id, jobs[2].id);
    engine_run(s.engine);
    for (int i = 0; i < 3; i++) {
        job_compare(&jobs[i]);
    }
    close_setup(&s);
}

TEST(a_start_leaves_a_block_for_each_running_request)
{
    for (int32_t extra = 0; extra < 2; extra++) {
        mf_engine_options o = small_options();
        o.max_num_batched_tokens = 64;
        setup s;
        job small, large;
        open_setup(&s, &o, MAX_LEN / 4); /* 12 blocks */
        job_text(&small, 0, 7, 4);
        job_text(&large, 1, extra ? 37 : 33, 4); /* 10 or 9 blocks */
        job_submit(&small, s.engine);
        step(s.engine); /* takes 2 blocks, and will take a third soon */
        job_submit(&large, s.engine);
        step(s.engine);
        CHECK_EQ(stats_of(s.engine).num_running, extra ? 1 : 2);
        engine_run(s.engine);
        CHECK(small.is_done && large.is_done);
        CHECK_EQ(stats_of(s.engine).num_preemptions, 0);
        close_setup(&s);
    }
}

TEST(a_long_prompt_does_not_hold_up_decodes)
{
    mf_engine_options o = small_options();
    o.max_num_batched_tokens = 5;
    setup s;
    job decode, prompt;
    open_setup(&s, &o, 40);
    job_text(&decode, 0, 2, 20);
    job_text(&prompt, 1, 40, 2);
    job_submit(&decode, s.engine);
    step(s.engine);
    job_submit(&prompt, s.engine);
    for (int i = 0; i < 10; i++) { /* 1 decode + 4 of the 40 tokens in each */
        CHECK_EQ(prompt.got.num_tokens, 0);
        int32_t before = decode.got.num_tokens;
        step(s.engine);
        CHECK_EQ(decode.got.num_tokens, before + 1);
        CHECK_EQ(stats_of(s.engine).last_step_decode_tokens, 1);
        CHECK_EQ(stats_of(s.engine).last_step_prefill_tokens, 4);
    }
    CHECK_EQ(prompt.got.num_tokens, 1);
    close_setup(&s);
}

/* ---- violations --------------------------------------------------------------------------------------------------- */

TEST(a_violated_pool_is_counted_rebuilt_and_changes_no_answer)
{
    mf_engine_options o = small_options();
    setup s;
    job jobs[4];
    int32_t stray_blocks[3];
    mf_kv_sequence stray = { .blocks = stray_blocks, .capacity = 3 };
    open_setup(&s, &o, 24);
    for (int i = 0; i < 4; i++) {
        job_text(&jobs[i], 5, 10, 12);
        jobs[i].prompt[9] = 6 + i;
        job_expect(&jobs[i], &s.fake, s.sampler, MAX_LEN);
        job_submit(&jobs[i], s.engine);
    }
    step(s.engine);
    step(s.engine);
    CHECK(mf_kv_reserve(mf_engine_get_scheduler(s.engine)->kv, &stray, 12)); /* three blocks with no owner we know */
    mf_error err = { 0 };
    CHECK_EQ(mf_engine_check(s.engine, &err), MF_ERR_INTERNAL);
    while (mf_engine_has_work(s.engine)) {
        mf_event events[64];
        int32_t n;
        CHECK_OK(mf_engine_step(s.engine, events, 64, &n, &err), err);
        jobs_take(events, n);
    }
    CHECK_EQ(stats_of(s.engine).num_invariant_violations, 1);
    CHECK_OK(mf_engine_check(s.engine, &err), err);
    CHECK_EQ(stats_of(s.engine).kv_blocks_used, 0);
    for (int i = 0; i < 4; i++) {
        job_compare(&jobs[i]);
    }
    close_setup(&s);
}

TEST(wrong_counts_of_queue_and_running_are_noticed)
{
    mf_engine_options o = small_options();
    o.max_num_seqs = 1;
    setup s;
    job jobs[2];
    mf_error err = { 0 };
    open_setup(&s, &o, 40);
    for (int i = 0; i < 2; i++) {
        job_text(&jobs[i], (uint64_t)i, 8, 4);
        job_submit(&jobs[i], s.engine);
    }
    step(s.engine);
    mf_scheduler *scheduler = mf_engine_get_scheduler(s.engine);
    mf_live_request *running = scheduler->running[0];
    mf_live_request *queued = scheduler->queue.head;
    int32_t *const fields[] = { &scheduler->queue.count, &running->num_computed, &running->num_tokens, &queued->num_computed,
                                &queued->kv.num_blocks, &scheduler->num_free_slots, &running->kv.num_blocks,
                                (int32_t *)&scheduler->num_queued_tokens, &running->slot };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        int32_t saved = *fields[i];
        *fields[i] = saved + 40;
        CHECK_EQ(mf_engine_check(s.engine, &err), MF_ERR_INTERNAL);
        *fields[i] = saved;
        CHECK_OK(mf_engine_check(s.engine, &err), err);
    }
    running->state = MF_REQUEST_WAITING;
    CHECK_EQ(mf_engine_check(s.engine, &err), MF_ERR_INTERNAL);
    running->state = MF_REQUEST_RUNNING;
    engine_run(s.engine);
    close_setup(&s);
}

TEST(state_changes_outside_the_table_are_refused_and_noticed)
{
    CHECK_EQ(mf_request_transition(MF_REQUEST_FINISHED, MF_REQUEST_RUNNING), 0);
    CHECK_EQ(mf_request_transition(MF_REQUEST_NEW, MF_REQUEST_RUNNING), 0);
    CHECK_EQ(mf_request_transition(MF_REQUEST_WAITING, MF_REQUEST_PREEMPTED), 0);
    for (int from = 0; from < MF_REQUEST_NUM_STATES; from++) { /* who leaves RUNNING gives its blocks, and nobody else does */
        for (int to = 0; to < MF_REQUEST_NUM_STATES; to++) {
            uint32_t what = mf_request_transition((mf_request_state)from, (mf_request_state)to);
            CHECK_EQ((what & MF_GIVE_BLOCKS) != 0, (what & MF_LEAVE_RUNNING) != 0);
            CHECK_EQ((what & MF_LEAVE_RUNNING) != 0, what != 0 && from == MF_REQUEST_RUNNING);
        }
    }
    mf_engine_options o = small_options();
    setup s;
    job j;
    open_setup(&s, &o, 40);
    greedy_answer(&s, &j, 2);
    job_submit(&j, s.engine);
    mf_scheduler *scheduler = mf_engine_get_scheduler(s.engine);
    mf_live_request *r = mf_scheduler_find(scheduler, j.id);
    mf_scheduler_finish(scheduler, r, MF_FINISH_CANCELLED, false, 1);
    mf_scheduler_finish(scheduler, r, MF_FINISH_LENGTH, false, 2); /* twice */
    mf_error err = { 0 };
    CHECK_EQ(mf_engine_check(s.engine, &err), MF_ERR_INTERNAL);
    CHECK_HAS(err.message, "1 state changes");
    CHECK_OK(mf_engine_check(s.engine, &err), err);
    engine_run(s.engine);
    CHECK_EQ(j.end.finish_reason, MF_FINISH_CANCELLED);
    close_setup(&s);
}
