/* jobs.c - see jobs.h. */
#include "jobs.h"

#include <math.h>

#include "base/random.h"
#include "base/sys.h"

static void fake_guide_fill(void *context, uint32_t *mask, int32_t vocab_size)
{
    fake_guide *g = context;
    CHECK_EQ(__atomic_exchange_n(&g->is_inside, 1, __ATOMIC_SEQ_CST), 0);
    CHECK_EQ(g->num_releases, 0);
    uint64_t bits = mf_random_mix(g->state);
    for (int32_t i = 0; i < (vocab_size + 31) / 32; i++) {
        CHECK_EQ(mask[i], 0);
    }
    if (bits >> 40 & 15) {
        mask[0] = (uint32_t)bits;
        mask[1] = (uint32_t)(bits >> 32) & 255;
    } else if (bits >> 44 & 3) {
        mask[0] = 1u << FAKE_EOS;
    }
    g->num_fills++;
    __atomic_store_n(&g->is_inside, 0, __ATOMIC_SEQ_CST);
}

static void fake_guide_accept(void *context, int32_t token_id)
{
    fake_guide *g = context;
    CHECK_EQ(__atomic_exchange_n(&g->is_inside, 1, __ATOMIC_SEQ_CST), 0);
    CHECK_EQ(g->num_releases, 0);
    g->state = mf_random_mix(g->state + (uint64_t)token_id + 1);
    g->num_accepts++;
    __atomic_store_n(&g->is_inside, 0, __ATOMIC_SEQ_CST);
}

static void fake_guide_release(void *context)
{
    fake_guide *g = context;
    CHECK_EQ(g->is_inside, 0);
    g->num_releases++;
}

mf_guide fake_guide_table(fake_guide *guide)
{
    return (mf_guide){ guide, fake_guide_fill, fake_guide_accept, fake_guide_release };
}

static void point_inside(job *j)
{
    if (j->guide_seed) {
        j->request.guide = fake_guide_table(&j->guide);
        j->guide.state = j->guide_seed;
    }
    j->request.prompt_token_ids = j->prompt;
    j->request.user_data = j;
    j->request.sampling.stop_token_ids = j->stop_ids;
    j->request.sampling.allowed_token_ids = j->allowed_ids;
    j->request.sampling.bad_words = j->bad_words;
    j->request.sampling.bad_word_lengths = j->bad_word_lengths;
    j->request.sampling.logit_bias = j->bias;
}

void job_init(job *j, const int32_t *prompt, int32_t num_prompt, int32_t max_tokens)
{
    memset(j, 0, sizeof *j);
    j->request = (mf_request)MF_REQUEST_INIT;
    j->request.num_prompt_tokens = num_prompt;
    j->request.sampling.max_tokens = max_tokens;
    j->request.sampling.temperature = 0.0;
    memcpy(j->prompt, prompt, (size_t)num_prompt * sizeof *prompt);
    point_inside(j);
}

static bool one_in(uint64_t *random, uint64_t n)
{
    return mf_random_below(random, n) == 0;
}

static int32_t below(uint64_t *random, int32_t n)
{
    return (int32_t)mf_random_below(random, (uint64_t)n);
}

void job_random(job *j, uint64_t *random, int32_t max_len)
{
    int32_t prompt[JOB_MAX_TOKENS];
    int32_t num_prompt = 1 + below(random, max_len - 1);
    int32_t max_tokens = 1 + below(random, max_len - num_prompt);
    /* One of three texts up to some point, then something of its own. */
    uint64_t text = mf_random_below(random, 3);
    int32_t num_shared = below(random, num_prompt + 1);
    for (int32_t i = 0; i < num_prompt; i++) {
        prompt[i] = i < num_shared ? (int32_t)(mf_random_mix(text * 1000 + (uint64_t)i) % FAKE_VOCAB) : below(random, FAKE_VOCAB);
    }
    job_init(j, prompt, num_prompt, max_tokens);
    j->request.priority = one_in(random, 3) ? below(random, 5) - 2 : 0;
    mf_sampling_params *p = &j->request.sampling;
    p->has_seed = 1;
    p->seed = (int64_t)mf_random_next(random);
    p->temperature = one_in(random, 2) ? 0.0 : 0.1 + 1.9 * mf_random_unit(random);
    p->top_k = one_in(random, 3) ? 1 + below(random, 50) : 0;
    p->top_p = one_in(random, 3) ? 0.05 + 0.95 * mf_random_unit(random) : 1.0;
    p->min_p = one_in(random, 4) ? 0.3 * mf_random_unit(random) : 0.0;
    p->repetition_penalty = one_in(random, 4) ? 0.5 + mf_random_unit(random) : 1.0;
    p->presence_penalty = one_in(random, 4) ? 4.0 * mf_random_unit(random) - 2.0 : 0.0;
    p->frequency_penalty = one_in(random, 4) ? 4.0 * mf_random_unit(random) - 2.0 : 0.0;
    p->ignore_eos = one_in(random, 3);
    p->min_tokens = one_in(random, 3) ? below(random, max_tokens + 1) : 0;
    p->logprobs = one_in(random, 2) ? below(random, JOB_MAX_TOP + 1) : -1;
    p->prompt_logprobs = one_in(random, 6) ? below(random, JOB_MAX_TOP + 1) : -1;
    p->max_tokens = p->min_tokens == 0 && one_in(random, 12) ? 0 : p->max_tokens;
    p->num_stop_token_ids = one_in(random, 3) ? 1 + below(random, 4) : 0;
    p->num_allowed_token_ids = one_in(random, 8) ? 24 : 0;
    p->num_logit_bias = one_in(random, 5) ? 4 : 0;
    p->num_bad_words = one_in(random, 5) ? 2 : 0;
    for (int32_t i = 0; i < 24; i++) {
        j->allowed_ids[i] = below(random, FAKE_VOCAB);
        j->stop_ids[i % 4] = below(random, FAKE_VOCAB);
        j->bad_words[i % 4] = below(random, FAKE_SAMPLED);
        j->bias[i % 4] = (mf_logit_bias){ below(random, FAKE_VOCAB), (float)below(random, 9) - 4.0f };
    }
    j->bad_word_lengths[0] = 1 + below(random, 3);
    j->bad_word_lengths[1] = 4 - j->bad_word_lengths[0];
    j->guide_seed = one_in(random, 4) ? mf_random_next(random) | 1 : 0;
    point_inside(j);
}

/* ---- the plain loop ----------------------------------------------------------------------------------------------- */

static bool contains(const int32_t *ids, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

static void expect(job *j, const fake_model *fake, mf_sampler *sampler, int32_t max_len, float *logits)
{
    static const int32_t eos[] = { FAKE_EOS };
    const mf_sampling_params *p = &j->request.sampling;
    answer *a = &j->expected;
    int32_t tokens[JOB_MAX_TOKENS];
    mf_logprob top[MF_MAX_LOGPROBS];
    mf_sample sample;
    int32_t num_prompt = j->request.num_prompt_tokens;
    int32_t n = num_prompt;
    int32_t max_tokens = p->max_tokens < 0 ? max_len - num_prompt : p->max_tokens;
    memset(a, 0, sizeof *a);
    a->stop_token_id = -1;
    memcpy(tokens, j->prompt, (size_t)n * sizeof *tokens);
    for (int32_t i = 0; p->prompt_logprobs >= 0 && i + 1 < num_prompt; i++) {
        fake_logits(fake, tokens, i + 1, logits);
        if (!mf_sampler_logprobs(sampler, logits, tokens[i + 1], p->prompt_logprobs, &sample, top)) {
            a->reason = MF_FINISH_ERROR;
            return;
        }
        memcpy(a->prompt_top[i], top, (size_t)sample.num_top * sizeof *top);
        a->prompt_logprobs[i] = sample.logprob;
        a->num_prompt_logprobs++;
    }
    fake_guide guide = { .state = j->guide_seed };
    const mf_guide table = fake_guide_table(&guide);
    while (a->num_tokens < max_tokens) {
        fake_logits(fake, tokens, n, logits);
        mf_sample_context c = { .params = p, .tokens = tokens, .num_prompt_tokens = num_prompt, .num_tokens = n,
                                .eos_token_ids = eos, .num_eos_token_ids = 1, .seed = (uint64_t)p->seed,
                                .guide = j->guide_seed ? &table : NULL };
        if (!mf_sampler_sample(sampler, logits, &c, &sample, top)) {
            a->reason = MF_FINISH_ERROR;
            return;
        }
        table.accept(&guide, sample.token_id);
        int32_t i = a->num_tokens++;
        tokens[n++] = sample.token_id;
        a->tokens[i] = sample.token_id;
        a->logprobs[i] = sample.logprob;
        a->num_top[i] = sample.num_top;
        memcpy(a->top[i], top, (size_t)sample.num_top * sizeof *top);
        if (!p->ignore_eos && sample.token_id == FAKE_EOS) {
            a->reason = MF_FINISH_STOP;
            return;
        }
        if (contains(p->stop_token_ids, p->num_stop_token_ids, sample.token_id)) {
            a->reason = MF_FINISH_STOP;
            a->stop_token_id = sample.token_id;
            return;
        }
    }
    a->reason = MF_FINISH_LENGTH;
}

void job_expect(job *j, const fake_model *fake, mf_sampler *sampler, int32_t max_len)
{
    float *logits = mf_alloc_array((size_t)fake->vocab_size, sizeof *logits);
    CHECK(logits != NULL);
    expect(j, fake, sampler, max_len, logits);
    mf_free(logits);
}

/* ---- the engine's answers ----------------------------------------------------------------------------------------- */

static void copy_top(mf_logprob *to, const mf_event *e)
{
    CHECK(e->num_top_logprobs <= JOB_MAX_TOP);
    for (int32_t i = 0; i < e->num_top_logprobs; i++) {
        to[i] = e->top_logprobs[i];
    }
}

void jobs_take(const mf_event *events, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        const mf_event *e = &events[i];
        job *j = e->user_data;
        answer *a = &j->got;
        CHECK_EQ(e->request_id, j->id);
        CHECK(!j->is_done);
        switch (e->type) {
        case MF_EVENT_TOKEN:
            CHECK_EQ(e->position, j->request.num_prompt_tokens + a->num_tokens);
            copy_top(a->top[a->num_tokens], e);
            a->num_top[a->num_tokens] = e->num_top_logprobs;
            a->logprobs[a->num_tokens] = e->logprob;
            a->tokens[a->num_tokens++] = e->token_id;
            break;
        case MF_EVENT_PROMPT_LOGPROB:
            CHECK_EQ(a->num_tokens, 0);
            CHECK_EQ(e->position, a->num_prompt_logprobs + 1);
            CHECK_EQ(e->token_id, j->prompt[e->position]);
            copy_top(a->prompt_top[a->num_prompt_logprobs], e);
            a->prompt_logprobs[a->num_prompt_logprobs++] = e->logprob;
            break;
        case MF_EVENT_FINISHED:
            a->reason = e->finish_reason;
            a->stop_token_id = e->stop_token_id;
            j->is_done = true;
            j->end = *e;
            CHECK_EQ(e->prompt_tokens, j->request.num_prompt_tokens);
            CHECK_EQ(e->completion_tokens, a->num_tokens);
            CHECK(e->cached_tokens < e->prompt_tokens);
            break;
        }
    }
}

void job_compare(const job *j)
{
    const answer *g = &j->got;
    const answer *x = &j->expected;
    CHECK(j->is_done);
    if (j->guide_seed) {
        /* A prompt row that is bad ends a request in the step whose last row chose a token. */
        CHECK_EQ(j->guide.num_releases, 1);
        CHECK(j->guide.num_accepts == g->num_tokens || (g->reason == MF_FINISH_ERROR && j->guide.num_accepts == 1));
        CHECK(j->guide.num_fills == j->guide.num_accepts || (g->reason == MF_FINISH_ERROR && j->guide.num_fills == j->guide.num_accepts + 1));
    }
    CHECK(g->num_tokens <= x->num_tokens);
    CHECK_MEM(g->tokens, x->tokens, (size_t)g->num_tokens * sizeof *g->tokens);
    CHECK_MEM(g->logprobs, x->logprobs, (size_t)g->num_tokens * sizeof *g->logprobs);
    CHECK_MEM(g->num_top, x->num_top, (size_t)g->num_tokens * sizeof *g->num_top);
    CHECK_MEM(g->top, x->top, (size_t)g->num_tokens * sizeof *g->top);
    CHECK(g->num_prompt_logprobs <= x->num_prompt_logprobs);
    CHECK_MEM(g->prompt_logprobs, x->prompt_logprobs, (size_t)g->num_prompt_logprobs * sizeof *g->prompt_logprobs);
    CHECK_MEM(g->prompt_top, x->prompt_top, (size_t)g->num_prompt_logprobs * sizeof *g->prompt_top);
    if (!j->is_cancelled || g->reason == MF_FINISH_STOP || g->reason == MF_FINISH_LENGTH) {
        CHECK_EQ(g->reason, x->reason);
        CHECK_EQ(g->num_tokens, x->num_tokens);
        CHECK_EQ(g->num_prompt_logprobs, x->num_prompt_logprobs);
        CHECK_EQ(g->stop_token_id, x->stop_token_id);
    }
}

void job_submit(job *j, mf_engine *engine)
{
    mf_error err = { 0 };
    point_inside(j);
    CHECK_OK(mf_engine_submit(engine, &j->request, &j->id, &err), err);
    CHECK(j->id != 0);
}

void engine_run(mf_engine *engine)
{
    mf_event events[64];
    mf_error err = { 0 };
    for (int32_t step = 0; mf_engine_has_work(engine); step++) {
        int32_t n;
        CHECK(step < 1000000);
        CHECK_OK(mf_engine_step(engine, events, 64, &n, &err), err);
        CHECK_OK(mf_engine_check(engine, &err), err);
        jobs_take(events, n);
    }
}

mf_engine *open_fake_engine(fake_model *fake, const mf_engine_options *options, int64_t max_model_len, int32_t num_blocks)
{
    mf_engine_model table = fake_model_table(fake, max_model_len);
    mf_engine *engine;
    mf_error err = { 0 };
    CHECK_OK(mf_engine_open_model(&table, options, num_blocks, &engine, &err), err);
    return engine;
}
