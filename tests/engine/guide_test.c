/* guide_test.c - a request's guide: what it allows is what comes, and it is released once however the request ends. */
#include "jobs.h"

#include <math.h>

#include "base/random.h"
#include "base/sys.h"

enum { MAX_LEN = 48 };

/* Allows the ids of one mask per step, the last one for ever. */
typedef struct script {
    uint64_t masks[4];
    int32_t num_masks, at;
    int32_t tokens[MAX_LEN];
    int32_t num_releases;
} script;

static void script_fill(void *context, uint32_t *mask, int32_t vocab_size)
{
    const script *s = context;
    CHECK_EQ(vocab_size, FAKE_VOCAB);
    uint64_t bits = s->masks[s->at < s->num_masks ? s->at : s->num_masks - 1];
    mask[0] = (uint32_t)bits;
    mask[1] = (uint32_t)(bits >> 32);
}

static void script_accept(void *context, int32_t token_id)
{
    script *s = context;
    s->tokens[s->at++] = token_id;
}

static void script_release(void *context)
{
    ((script *)context)->num_releases++;
}

typedef struct setup {
    fake_model fake;
    mf_engine *engine;
    script script;
    job job;
} setup;

/* An engine for two requests at once, and a job of 8 tokens under a script that allows ids 10 to 19. */
static void open_setup(setup *s)
{
    static const int32_t prompt[] = { 7, 8, 9, 10 };
    memset(s, 0, sizeof *s);
    fake_model_init(&s->fake, 64);
    mf_engine_options o = MF_ENGINE_OPTIONS_INIT;
    o.block_size = 4;
    o.max_num_seqs = 2;
    o.max_num_batched_tokens = 16;
    o.max_num_queued_reqs = 2;
    o.num_sampled_ids = FAKE_SAMPLED;
    s->engine = open_fake_engine(&s->fake, &o, MAX_LEN, 24);
    s->script = (script){ .masks = { 0x3ffull << 10 }, .num_masks = 1 };
    job_init(&s->job, prompt, 4, 8);
    s->job.request.guide = (mf_guide){ &s->script, script_fill, script_accept, script_release };
}

static void run_setup(setup *s)
{
    job_submit(&s->job, s->engine);
    engine_run(s->engine);
    CHECK(s->job.is_done);
    CHECK_EQ(s->script.num_releases, 1);
    CHECK_MEM(s->script.tokens, s->job.got.tokens, (size_t)s->job.got.num_tokens * sizeof(int32_t));
}

static void close_setup(setup *s)
{
    mf_engine_close(&s->engine);
    CHECK_EQ(s->script.num_releases, 1);
}

static void step_once(setup *s, mf_status expected)
{
    mf_event events[16];
    int32_t n;
    mf_error err = { 0 };
    CHECK_EQ(mf_engine_step(s->engine, events, 16, &n, &err), expected);
    jobs_take(events, n);
}

TEST(only_what_the_guide_allows_comes_and_it_hears_of_each_token)
{
    for (int temperature = 0; temperature < 3; temperature++) {
        setup s;
        open_setup(&s);
        s.script.masks[0] = 1ull << 33 | 1ull << 3;
        s.script.masks[1] = 1ull << 12;
        s.script.masks[2] = 0x3ffull << 20 | 1ull << 38; /* 38 is padding */
        s.script.num_masks = 3;
        s.job.request.sampling.temperature = temperature;
        run_setup(&s);
        CHECK_EQ(s.job.end.finish_reason, MF_FINISH_LENGTH);
        CHECK_EQ(s.script.at, 8);
        for (int32_t i = 0; i < 8; i++) {
            CHECK(s.script.masks[i < 2 ? i : 2] >> s.job.got.tokens[i] & 1);
            CHECK(s.job.got.tokens[i] < FAKE_SAMPLED);
        }
        close_setup(&s);
    }
}

TEST(log_probabilities_stay_the_models_own)
{
    setup s;
    open_setup(&s);
    s.job.request.sampling.logprobs = 3;
    run_setup(&s);
    float logits[FAKE_VOCAB];
    fake_logits(&s.fake, s.job.prompt, 4, logits);
    mf_sampler *sampler;
    mf_error err = { 0 };
    CHECK_OK(mf_sampler_open(FAKE_VOCAB, FAKE_SAMPLED, &sampler, &err), err);
    mf_sample sample;
    mf_logprob top[MF_MAX_LOGPROBS];
    CHECK(mf_sampler_logprobs(sampler, logits, s.job.got.tokens[0], 3, &sample, top));
    CHECK_MEM(&s.job.got.logprobs[0], &sample.logprob, sizeof(float));
    CHECK_MEM(s.job.got.top[0], top, 3 * sizeof *top);
    mf_sampler_close(&sampler);
    close_setup(&s);
}

TEST(an_empty_mask_ends_with_error)
{
    setup s;
    open_setup(&s);
    s.script.masks[1] = 7ull << 37; /* ids that are padding are none */
    s.script.num_masks = 2;
    run_setup(&s);
    CHECK_EQ(s.job.end.finish_reason, MF_FINISH_ERROR);
    CHECK_EQ(s.job.end.completion_tokens, 1);
    CHECK_EQ(s.script.at, 1);
    close_setup(&s);
}

TEST(eos_alone_beats_min_tokens_and_a_choice_does_not)
{
    setup s;
    open_setup(&s);
    s.script.masks[0] = 1ull << 9 | 1ull << FAKE_EOS;
    s.script.masks[1] = 1ull << FAKE_EOS | 1ull << 39; /* padding is no choice */
    s.script.num_masks = 2;
    s.job.request.sampling.min_tokens = 6;
    run_setup(&s);
    CHECK_EQ(s.job.end.finish_reason, MF_FINISH_STOP);
    CHECK_EQ(s.job.end.completion_tokens, 2);
    CHECK_EQ(s.job.got.tokens[0], 9);
    CHECK_EQ(s.job.got.tokens[1], FAKE_EOS);
    close_setup(&s);
}

TEST(with_ignore_eos_the_guide_is_asked_on_behind_eos)
{
    setup s;
    open_setup(&s);
    s.script.masks[0] = 1ull << FAKE_EOS;
    s.job.request.sampling.ignore_eos = 1;
    run_setup(&s);
    CHECK_EQ(s.job.end.finish_reason, MF_FINISH_LENGTH);
    CHECK_EQ(s.script.at, 8);
    CHECK_EQ(s.script.tokens[7], FAKE_EOS);
    close_setup(&s);
}

TEST(a_guide_is_released_by_cancel_and_deadline_wherever_the_request_is)
{
    for (int how = 0; how < 5; how++) {
        setup s;
        open_setup(&s);
        s.job.request.deadline_ns = how == 3 ? mf_now_ns() : how == 4 ? mf_now_ns() + 3000000 : 0;
        job_submit(&s.job, s.engine);
        if (how == 1 || how == 4) {
            step_once(&s, MF_OK);
        }
        if (how < 2) {
            mf_engine_cancel(s.engine, s.job.id); /* waiting, running */
            CHECK_EQ(s.script.num_releases, 1);
            mf_engine_cancel(s.engine, s.job.id); /* late */
        } else if (how == 2) {
            mf_engine_pause(s.engine, s.job.id, 1);
            mf_engine_cancel(s.engine, s.job.id);
        }
        while (how == 4 && mf_now_ns() < s.job.request.deadline_ns) {
        }
        engine_run(s.engine);
        CHECK(s.job.is_done);
        CHECK_EQ(s.job.end.finish_reason, how < 3 ? MF_FINISH_CANCELLED : MF_FINISH_DEADLINE);
        CHECK_EQ(s.script.num_releases, 1);
        close_setup(&s);
    }
}

TEST(a_guide_is_released_when_the_device_fails_and_when_nothing_is_to_be_made)
{
    setup s;
    open_setup(&s);
    job_submit(&s.job, s.engine);
    step_once(&s, MF_OK);
    s.fake.fail_countdown = 1;
    step_once(&s, MF_ERR_DEVICE);
    CHECK_EQ(s.job.end.finish_reason, MF_FINISH_ERROR);
    CHECK_EQ(s.script.num_releases, 1);
    close_setup(&s);

    open_setup(&s);
    s.job.request.sampling.max_tokens = 0;
    run_setup(&s);
    CHECK_EQ(s.script.at, 0);
    close_setup(&s);
}

TEST(closing_the_engine_releases_guides_of_all_states)
{
    for (int how = 0; how < 3; how++) {
        setup s;
        open_setup(&s);
        job_submit(&s.job, s.engine);
        if (how > 0) {
            step_once(&s, MF_OK);
        }
        if (how == 2) {
            mf_engine_cancel(s.engine, s.job.id); /* its event is never read */
        }
        close_setup(&s);
    }
}

TEST(a_refused_request_leaves_its_guide_to_the_caller)
{
    setup s;
    mf_error err = { 0 };
    open_setup(&s);
    job full[2];
    for (int i = 0; i < 2; i++) {
        job_init(&full[i], s.job.prompt, 4, 2);
        job_submit(&full[i], s.engine);
    }
    CHECK_EQ(mf_engine_submit(s.engine, &s.job.request, &s.job.id, &err), MF_ERR_BUSY);
    CHECK_EQ(s.script.num_releases, 0);
    engine_run(s.engine);
    s.job.request.sampling.top_p = 0.0;
    CHECK_EQ(mf_engine_submit(s.engine, &s.job.request, &s.job.id, &err), MF_ERR_INVALID);
    s.job.request.sampling.top_p = 1.0;
    s.job.request.guide.release = NULL;
    CHECK_EQ(mf_engine_submit(s.engine, &s.job.request, &s.job.id, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "guide: ");
    CHECK_EQ(s.script.num_releases, 0);
    s.job.request.guide.release = script_release;
    run_setup(&s);
    close_setup(&s);
}

/* One sequence's worth of blocks for four: they are thrown out and computed again, and no guide hears a token twice. */
TEST(preemption_accepts_no_token_twice)
{
    fake_model fake;
    mf_sampler *sampler;
    mf_error err = { 0 };
    mf_engine_options o = MF_ENGINE_OPTIONS_INIT;
    fake_model_init(&fake, 64);
    o.block_size = 4;
    o.max_num_seqs = 4;
    o.max_num_batched_tokens = 16;
    o.num_sampled_ids = FAKE_SAMPLED;
    mf_engine *engine = open_fake_engine(&fake, &o, MAX_LEN, MAX_LEN / 4);
    CHECK_OK(mf_sampler_open(FAKE_VOCAB, FAKE_SAMPLED, &sampler, &err), err);
    script scripts[4];
    job jobs[4];
    for (int i = 0; i < 4; i++) {
        const int32_t prompt[] = { 7, 8, 9, 10 + i };
        job_init(&jobs[i], prompt, 4, 40);
        scripts[i] = (script){ .masks = { 0x3ffull << (10 + i), 0x3ffull << 20, 0xffffull << 8 }, .num_masks = 3 };
        jobs[i].request.guide = (mf_guide){ &scripts[i], script_fill, script_accept, script_release };
        jobs[i].request.sampling.temperature = 1.0;
        job_submit(&jobs[i], engine);
    }
    engine_run(engine);
    mf_engine_stats stats;
    mf_engine_get_stats(engine, &stats);
    CHECK(stats.num_preemptions >= 3);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(scripts[i].at, 40);
        CHECK_MEM(scripts[i].tokens, jobs[i].got.tokens, 40 * sizeof(int32_t));
        CHECK_EQ(scripts[i].num_releases, 1);
    }
    mf_engine_close(&engine);
    mf_sampler_close(&sampler);
}
