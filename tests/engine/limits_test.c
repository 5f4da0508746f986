/* limits_test.c - fields and queues at limit - 1, limit, limit + 1; memory that cannot be had. */
#include "jobs.h"

#include <math.h>
#include <stdlib.h>

#include "base/sys.h"

enum { MAX_LEN = 48 };

static mf_engine_options small_options(void)
{
    mf_engine_options o = MF_ENGINE_OPTIONS_INIT;
    o.block_size = 4;
    o.max_num_seqs = 4;
    o.max_num_batched_tokens = 16;
    o.num_sampled_ids = FAKE_SAMPLED;
    return o;
}

static mf_engine *open_small(fake_model *fake, const mf_engine_options *o)
{
    fake_model_init(fake, 64);
    return open_fake_engine(fake, o, MAX_LEN, 24);
}

static const int32_t short_prompt[] = { 6, 7, 8, 9 };

/* Submits and wants MF_OK (part NULL), or MF_ERR_INVALID with `part` in the message. */
static void expect_submit(mf_engine *engine, const mf_request *request, const char *part)
{
    uint64_t id;
    mf_error err = { 0 };
    mf_status status = mf_engine_submit(engine, request, &id, &err);
    if (part) {
        CHECK_EQ(status, MF_ERR_INVALID);
        CHECK_EQ(id, 0);
        CHECK_HAS(err.message, part);
        return;
    }
    CHECK_OK(status, err);
    mf_engine_cancel(engine, id);
    mf_event event;
    int32_t n;
    CHECK_OK(mf_engine_step(engine, &event, 1, &n, &err), err);
    CHECK_EQ(n, 1);
}

TEST(integer_fields_are_refused_just_outside_their_range)
{
    static const struct {
        const char *name;
        size_t offset;
        int32_t min, max;
    } rows[] = {
        { "max_tokens", offsetof(mf_sampling_params, max_tokens), -1, MAX_LEN - 4 },
        { "min_tokens", offsetof(mf_sampling_params, min_tokens), 0, 16 }, /* max_tokens is 16 */
        { "top_k", offsetof(mf_sampling_params, top_k), -1, INT32_MAX },
        { "has_seed", offsetof(mf_sampling_params, has_seed), 0, 1 },
        { "ignore_eos", offsetof(mf_sampling_params, ignore_eos), 0, 1 },
        { "logprobs", offsetof(mf_sampling_params, logprobs), -1, 20 },
        { "prompt_logprobs", offsetof(mf_sampling_params, prompt_logprobs), -1, 20 },
    };
    fake_model fake;
    mf_engine_options o = small_options();
    mf_engine *engine = open_small(&fake, &o);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        job j;
        job_init(&j, short_prompt, 4, 16);
        int32_t *field = (int32_t *)(void *)((char *)&j.request.sampling + rows[i].offset);
        for (int32_t d = 0; d < 2; d++) {
            *field = rows[i].min + d;
            expect_submit(engine, &j.request, NULL);
            *field = rows[i].max - d;
            expect_submit(engine, &j.request, NULL);
        }
        *field = rows[i].min - 1;
        expect_submit(engine, &j.request, rows[i].name);
        if (rows[i].max < INT32_MAX) {
            *field = rows[i].max + 1;
            expect_submit(engine, &j.request, rows[i].name);
        }
    }
    mf_engine_close(&engine);
}

TEST(number_fields_are_refused_just_outside_their_range)
{
    static const struct {
        const char *name;
        size_t offset;
        double min, max;
        bool min_excluded;
    } rows[] = {
        { "temperature", offsetof(mf_sampling_params, temperature), 0, 2, false },
        { "top_p", offsetof(mf_sampling_params, top_p), 0, 1, true },
        { "min_p", offsetof(mf_sampling_params, min_p), 0, 1, false },
        { "repetition_penalty", offsetof(mf_sampling_params, repetition_penalty), 0, 10, true },
        { "presence_penalty", offsetof(mf_sampling_params, presence_penalty), -2, 2, false },
        { "frequency_penalty", offsetof(mf_sampling_params, frequency_penalty), -2, 2, false },
    };
    fake_model fake;
    mf_engine_options o = small_options();
    mf_engine *engine = open_small(&fake, &o);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        job j;
        job_init(&j, short_prompt, 4, 16);
        double *field = (double *)(void *)((char *)&j.request.sampling + rows[i].offset);
        *field = rows[i].max;
        expect_submit(engine, &j.request, NULL);
        *field = nextafter(rows[i].max, -INFINITY);
        expect_submit(engine, &j.request, NULL);
        *field = nextafter(rows[i].min, INFINITY);
        expect_submit(engine, &j.request, NULL);
        *field = rows[i].min;
        expect_submit(engine, &j.request, rows[i].min_excluded ? rows[i].name : NULL);
        double bad[] = { nextafter(rows[i].min, -INFINITY), nextafter(rows[i].max, INFINITY), NAN, INFINITY, -INFINITY };
        for (size_t b = 0; b < 5; b++) {
            *field = bad[b];
            expect_submit(engine, &j.request, rows[i].name);
        }
    }
    mf_engine_close(&engine);
}

TEST(messages_name_field_value_and_range)
{
    fake_model fake;
    mf_engine_options o = small_options();
    mf_engine *engine = open_small(&fake, &o);
    job j;
    job_init(&j, short_prompt, 4, 16);
    j.request.sampling.temperature = 2.5;
    expect_submit(engine, &j.request, "temperature: expected 0 to 2; got 2.5");
    j.request.sampling.temperature = 0;
    j.request.sampling.top_p = 0;
    expect_submit(engine, &j.request, "top_p: expected above 0 to 1; got 0");
    j.request.sampling.top_p = 1;
    j.request.sampling.logprobs = 21;
    expect_submit(engine, &j.request, "logprobs: expected -1 to 20; got 21");
    j.request.sampling.logprobs = -1;
    j.request.sampling.max_tokens = 60;
    expect_submit(engine, &j.request, "This model's maximum context length is 48 tokens. However, you requested 64 tokens (4 in "
                                      "the prompt, 60 in the completion)");
    j.request.struct_size = 8;
    expect_submit(engine, &j.request, "struct_size");
    mf_engine_stats stats;
    mf_engine_get_stats(engine, &stats);
    CHECK_EQ(stats.num_refused_invalid, 5);
    mf_engine_close(&engine);
}

TEST(every_id_is_checked_against_the_vocabulary)
{
    fake_model fake;
    mf_engine_options o = small_options();
    mf_engine *engine = open_small(&fake, &o);
    job j;
    job_init(&j, short_prompt, 4, 4);
    mf_sampling_params *p = &j.request.sampling;
    p->num_stop_token_ids = 2;
    p->num_allowed_token_ids = 2;
    p->num_logit_bias = 2;
    p->num_bad_words = 2;
    j.allowed_ids[0] = 9;
    j.bad_word_lengths[0] = 1;
    j.bad_word_lengths[1] = 3;
    const struct { int32_t *id; const char *name; } ids[] = {
        { &j.prompt[3], "prompt_token_ids[3]" }, { &j.stop_ids[1], "stop_token_ids[1]" },
        { &j.allowed_ids[1], "allowed_token_ids[1]" }, { &j.bias[1].token_id, "logit_bias[1]" },
        { &j.bad_words[3], "bad_words[3]" },
    };
    for (size_t i = 0; i < 5; i++) {
        static const int32_t good[] = { 0, 1, FAKE_VOCAB - 1 };
        static const int32_t bad[] = { -1, FAKE_VOCAB, INT32_MAX, INT32_MIN };
        for (size_t k = 0; k < 4; k++) {
            *ids[i].id = bad[k];
            expect_submit(engine, &j.request, ids[i].name);
        }
        for (size_t k = 0; k < 3; k++) {
            *ids[i].id = good[k];
            expect_submit(engine, &j.request, NULL);
        }
    }
    j.bias[0].bias = 100.5f;
    expect_submit(engine, &j.request, "logit_bias[0]: expected a bias of -100 to 100; got 100.5");
    j.bias[0].bias = NAN;
    expect_submit(engine, &j.request, "logit_bias[0]");
    j.bias[0].bias = -100.0f;
    j.bad_word_lengths[0] = 0;
    expect_submit(engine, &j.request, "bad_word_lengths[0]: expected 1 to 256; got 0");
    j.bad_word_lengths[0] = 257;
    expect_submit(engine, &j.request, "bad_word_lengths[0]: expected 1 to 256; got 257");
    mf_engine_close(&engine);
}

TEST(arrays_are_refused_when_too_long_or_absent)
{
    static int32_t ids[MF_MAX_STOP_TOKEN_IDS + 1];
    static mf_logit_bias bias[MF_MAX_LOGIT_BIAS + 1];
    static int32_t lengths[MF_MAX_BAD_WORDS + 1];
    fake_model fake;
    mf_engine_options o = small_options();
    mf_engine *engine = open_small(&fake, &o);
    for (int i = 0; i <= MF_MAX_BAD_WORDS; i++) {
        lengths[i] = 1;
    }
    for (int which = 0; which < 4; which++) {
        static const char *const names[] = { "num_stop_token_ids", "num_allowed_token_ids", "num_logit_bias", "num_bad_words" };
        job j;
        job_init(&j, short_prompt, 4, 4);
        mf_sampling_params *p = &j.request.sampling;
        int32_t *counts[] = { &p->num_stop_token_ids, &p->num_allowed_token_ids, &p->num_logit_bias, &p->num_bad_words };
        int32_t limit = which == 3 ? MF_MAX_BAD_WORDS : which == 2 ? MF_MAX_LOGIT_BIAS : MF_MAX_STOP_TOKEN_IDS;
        p->stop_token_ids = ids;
        p->allowed_token_ids = ids;
        p->logit_bias = bias;
        p->bad_words = ids;
        p->bad_word_lengths = lengths;
        *counts[which] = limit - 1;
        expect_submit(engine, &j.request, NULL);
        *counts[which] = limit;
        expect_submit(engine, &j.request, NULL);
        *counts[which] = limit + 1;
        expect_submit(engine, &j.request, names[which]);
        *counts[which] = -1;
        expect_submit(engine, &j.request, names[which]);
        *counts[which] = 1;
        p->stop_token_ids = NULL;
        p->allowed_token_ids = NULL;
        p->logit_bias = NULL;
        p->bad_words = NULL;
        expect_submit(engine, &j.request, "got NULL");
    }
    mf_engine_close(&engine);
}

TEST(prompt_and_completion_fit_the_context_exactly)
{
    int32_t prompt[MAX_LEN + 1];
    fake_model fake;
    mf_engine_options o = small_options();
    mf_engine *engine = open_small(&fake, &o);
    for (int i = 0; i <= MAX_LEN; i++) {
        prompt[i] = 6;
    }
    static const struct { int32_t num_prompt, max_tokens; bool fits; } rows[] = {
        { 1, MAX_LEN - 2, true }, { 1, MAX_LEN - 1, true }, { 1, MAX_LEN, false },
        { MAX_LEN - 1, 1, true }, { MAX_LEN - 1, 2, false }, { MAX_LEN, 0, true }, { MAX_LEN, 1, false },
        { MAX_LEN - 1, -1, true }, { MAX_LEN, -1, false }, { MAX_LEN + 1, 0, false }, { MAX_LEN + 1, -1, false },
        { 1, INT32_MAX, false }, { 0, 1, false }, { -1, 1, false },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mf_request request = MF_REQUEST_INIT;
        request.prompt_token_ids = prompt;
        request.num_prompt_tokens = rows[i].num_prompt;
        request.sampling.max_tokens = rows[i].max_tokens;
        const char *part = rows[i].num_prompt < 1 ? "num_prompt_tokens: expected 1 to 48" : "maximum context length is 48";
        expect_submit(engine, &request, rows[i].fits ? NULL : part);
    }
    mf_engine_close(&engine);
}

TEST(the_longest_request_runs_to_its_end)
{
    int32_t prompt[MAX_LEN];
    fake_model fake;
    mf_engine_options o = small_options();
    fake_model_init(&fake, 64);
    mf_engine *engine = open_fake_engine(&fake, &o, MAX_LEN, MAX_LEN / 4); /* not one block more than it needs */
    for (int i = 0; i < MAX_LEN; i++) {
        prompt[i] = 6;
    }
    for (int32_t n = 1; n <= MAX_LEN; n += MAX_LEN - 1) {
        job j;
        job_init(&j, prompt, n, MAX_LEN - n);
        j.request.sampling.ignore_eos = 1;
        job_submit(&j, engine);
        engine_run(engine);
        CHECK_EQ(j.end.completion_tokens, MAX_LEN - n);
        CHECK_EQ(j.end.finish_reason, MF_FINISH_LENGTH);
    }
    mf_engine_close(&engine);
}

/* ---- the queue ---------------------------------------------------------------------------------------------------- */

TEST(the_queue_is_full_by_requests)
{
    fake_model fake;
    mf_engine_options o = small_options();
    o.max_num_queued_reqs = 3;
    o.max_num_seqs = 1;
    mf_engine *engine = open_small(&fake, &o);
    job jobs[5];
    mf_error err = { 0 };
    for (int i = 0; i < 5; i++) {
        job_init(&jobs[i], short_prompt, 4, 4);
    }
    for (int i = 0; i < 3; i++) {
        job_submit(&jobs[i], engine);
    }
    CHECK_EQ(mf_engine_submit(engine, &jobs[3].request, &jobs[3].id, &err), MF_ERR_BUSY);
    CHECK_HAS(err.message, "3 requests of at most 3");
    CHECK_EQ(jobs[3].id, 0);
    mf_event events[8];
    int32_t n;
    CHECK_OK(mf_engine_step(engine, events, 8, &n, &err), err); /* one starts */
    jobs_take(events, n);
    job_submit(&jobs[3], engine);
    CHECK_EQ(mf_engine_submit(engine, &jobs[4].request, &jobs[4].id, &err), MF_ERR_BUSY);
    mf_engine_stats stats;
    mf_engine_get_stats(engine, &stats);
    CHECK_EQ(stats.num_refused_busy, 2);
    engine_run(engine);
    job_submit(&jobs[4], engine);
    engine_run(engine);
    for (int i = 0; i < 5; i++) {
        CHECK(jobs[i].is_done);
    }
    mf_engine_close(&engine);
}

TEST(the_queue_is_full_by_tokens)
{
    fake_model fake;
    mf_engine_options o = small_options();
    o.max_num_queued_tokens = 10;
    mf_engine *engine = open_small(&fake, &o);
    int32_t prompt[12] = { 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6 };
    job jobs[4];
    mf_error err = { 0 };
    static const int32_t sizes[] = { 4, 5, 2, 1 };
    for (int i = 0; i < 4; i++) {
        job_init(&jobs[i], prompt, sizes[i], 2);
    }
    job_submit(&jobs[0], engine);
    job_submit(&jobs[1], engine); /* 9 */
    CHECK_EQ(mf_engine_submit(engine, &jobs[2].request, &jobs[2].id, &err), MF_ERR_BUSY); /* 11 */
    CHECK_HAS(err.message, "9 prompt tokens and 2 more of at most 10");
    job_submit(&jobs[3], engine); /* 10 */
    engine_run(engine);
    job big;
    job_init(&big, prompt, 12, 2); /* alone it may be longer, or it could never run */
    job_submit(&big, engine);
    CHECK_EQ(mf_engine_submit(engine, &jobs[2].request, &jobs[2].id, &err), MF_ERR_BUSY);
    engine_run(engine);
    CHECK(big.is_done);
    mf_engine_close(&engine);
}

TEST(unread_ends_bound_what_is_taken)
{
    /* Submitted and cancelled without ever reading an event: memory stays bounded by the slots. */
    fake_model fake;
    mf_engine_options o = small_options();
    o.max_num_queued_reqs = 5;
    mf_engine *engine = open_small(&fake, &o);
    job j;
    mf_error err = { 0 };
    job_init(&j, short_prompt, 4, 4);
    int32_t taken = 0;
    while (taken < 100 && mf_engine_submit(engine, &j.request, &j.id, &err) == MF_OK) {
        mf_engine_cancel(engine, j.id);
        taken++;
    }
    CHECK_EQ(taken, 5 + 4);
    mf_event events[64];
    int32_t n;
    CHECK_OK(mf_engine_step(engine, events, 64, &n, &err), err);
    CHECK_EQ(n, taken);
    CHECK(n <= mf_engine_max_events(engine));
    CHECK_OK(mf_engine_submit(engine, &j.request, &j.id, &err), err);
    mf_engine_close(&engine);
    CHECK_EQ(fake.num_open, 0);
}

/* ---- open --------------------------------------------------------------------------------------------------------- */

static mf_status try_open(const mf_engine_options *o, int64_t model_len, int32_t num_blocks, int64_t *max_len, mf_error *err)
{
    fake_model fake;
    fake_model_init(&fake, 64);
    mf_engine_model table = fake_model_table(&fake, model_len);
    mf_engine *engine;
    mf_status status = mf_engine_open_model(&table, o, num_blocks, &engine, err);
    CHECK_EQ(status == MF_OK, engine != NULL);
    if (engine) {
        *max_len = mf_engine_max_model_len(engine);
    }
    mf_engine_close(&engine);
    CHECK_EQ(fake.num_open, 0);
    return status;
}

TEST(max_model_len_is_reduced_when_not_given_and_refused_when_given)
{
    mf_engine_options o = small_options();
    mf_error err = { 0 };
    int64_t len = 0;
    CHECK_OK(try_open(&o, 1000, 10, &len, &err), err);
    CHECK_EQ(len, 40);
    CHECK_OK(try_open(&o, 1000, 1000, &len, &err), err);
    CHECK_EQ(len, 1000);
    o.max_model_len = 40;
    CHECK_OK(try_open(&o, 1000, 10, &len, &err), err);
    CHECK_EQ(len, 40);
    o.max_model_len = 41;
    CHECK_EQ(try_open(&o, 1000, 10, &len, &err), MF_ERR_NOMEM);
    CHECK_HAS(err.message, "room for 40 tokens (10 blocks of 4); got 41");
    o.max_model_len = 1000;
    CHECK_OK(try_open(&o, 1000, 250, &len, &err), err);
    o.max_model_len = 1001;
    CHECK_EQ(try_open(&o, 1000, 1000, &len, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "max_model_len: expected 2 to the model's 1000; got 1001");
}

TEST(options_are_refused_just_outside_their_range)
{
    mf_engine_options o;
    const struct { int32_t *field; int32_t min, max; const char *name; } rows[] = {
        { &o.num_threads, 0, 256, "threads" }, { &o.max_num_seqs, 1, 4096, "max_num_seqs" },
        { &o.max_num_batched_tokens, 1, 1 << 20, "max_num_batched_tokens" }, { &o.block_size, 1, 1024, "block_size" },
        { &o.max_num_queued_reqs, 1, 1 << 19, "max_num_queued_reqs" },
        { &o.num_sampled_ids, 0, FAKE_VOCAB, "num_sampled_ids" },
        { &o.num_shared_expert_replicas, 1, 64, "num_shared_expert_replicas" },
        { &o.num_stop_token_ids, 0, 16, "num_stop_token_ids" },
    };
    static const int32_t stops[17] = { 0 };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const int64_t values[] = { rows[i].min - 1, rows[i].min, rows[i].max, rows[i].max + 1 };
        for (int k = 0; k < 4; k++) {
            mf_error err = { 0 };
            int64_t len;
            o = small_options();
            o.stop_token_ids = stops;
            *rows[i].field = (int32_t)values[k];
            mf_status status = try_open(&o, 4096, 4096, &len, &err);
            if (k == 1 || k == 2) {
                CHECK_OK(status, err);
            } else {
                CHECK_EQ(status, MF_ERR_INVALID);
                CHECK_HAS(err.message, rows[i].name);
            }
        }
    }
}

TEST(stop_token_ids_of_the_options_are_ids)
{
    static const int32_t ids[] = { 3, -1 };
    mf_error err = { 0 };
    int64_t len;
    mf_engine_options o = small_options();
    o.num_stop_token_ids = 2;
    CHECK_EQ(try_open(&o, 4096, 4096, &len, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "stop_token_ids: expected 2 ids; got NULL");
    o.stop_token_ids = ids;
    CHECK_EQ(try_open(&o, 4096, 4096, &len, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "stop_token_ids[1]: expected 0 or more; got -1");
}

TEST(a_step_takes_no_more_tokens_than_the_model_can)
{
    int32_t prompt[MAX_LEN] = { 0 };
    fake_model fake;
    mf_engine_options o = small_options();
    o.max_num_seqs = 100;
    o.max_num_batched_tokens = 100;
    fake_model_init(&fake, 10);
    mf_engine *engine = open_fake_engine(&fake, &o, MAX_LEN, 400);
    static job jobs[20];
    for (int i = 0; i < 20; i++) {
        job_init(&jobs[i], prompt, 30, 4);
        jobs[i].request.sampling.ignore_eos = 1;
        job_submit(&jobs[i], engine);
    }
    engine_run(engine); /* the fake fails a batch of more than 10 */
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(jobs[i].end.completion_tokens, 4);
    }
    CHECK_EQ(fake.largest_batch, 10);
    mf_engine_close(&engine);
}

TEST(a_step_wants_room_for_an_event)
{
    fake_model fake;
    mf_engine_options o = small_options();
    mf_engine *engine = open_small(&fake, &o);
    mf_event event;
    int32_t n = 5;
    mf_error err = { 0 };
    CHECK_EQ(mf_engine_step(engine, &event, 0, &n, &err), MF_ERR_INVALID);
    CHECK_EQ(n, 0);
    CHECK_EQ(mf_engine_step(engine, NULL, 1, &n, &err), MF_ERR_INVALID);
    CHECK_OK(mf_engine_step(engine, &event, 1, &n, &err), err); /* nothing to do is fine */
    CHECK_EQ(n, 0);
    mf_engine_close(&engine);
    mf_engine_close(&engine);
}

/* ---- memory ------------------------------------------------------------------------------------------------------- */

static int64_t num_allocations, fail_at, num_live;
static bool fail_ever_after;

static void *counting_alloc(size_t bytes)
{
    num_allocations++;
    if (num_allocations == fail_at || (fail_ever_after && num_allocations > fail_at && fail_at > 0)) {
        return NULL;
    }
    num_live++;
    return malloc(bytes);
}

static void counting_release(void *block)
{
    num_live -= block != NULL;
    free(block);
}

static void count_allocations(mf_sys *saved)
{
    *saved = mf_sys_table;
    mf_sys_table.alloc = counting_alloc;
    mf_sys_table.release = counting_release;
    num_allocations = 0;
    num_live = 0;
    fail_at = 0;
}

TEST(a_step_allocates_nothing)
{
    mf_sys saved;
    count_allocations(&saved);
    fake_model fake;
    mf_engine_options o = small_options();
    mf_engine *engine = open_small(&fake, &o);
    job jobs[8];
    for (int i = 0; i < 8; i++) {
        job_init(&jobs[i], short_prompt, 4, 30);
        jobs[i].request.sampling.temperature = i % 2 ? 1.0 : 0.0;
        jobs[i].request.sampling.top_p = 0.9;
        jobs[i].request.sampling.logprobs = 3;
        jobs[i].request.sampling.prompt_logprobs = i % 3 ? 2 : -1;
        jobs[i].request.sampling.repetition_penalty = 1.1;
        jobs[i].request.sampling.ignore_eos = 1;
        jobs[i].guide_seed = i == 4 ? 1 : 0;
        job_submit(&jobs[i], engine);
    }
    CHECK_EQ(num_allocations - 8, num_live - 8);
    int64_t before = num_allocations;
    engine_run(engine);
    CHECK_EQ(num_allocations, before);
    CHECK(jobs[7].is_done);
    mf_engine_close(&engine);
    CHECK_EQ(num_live, 0);
    mf_sys_table = saved;
}

/* Open, submit, run, close; true when nothing failed. */
static bool whole_life(void)
{
    fake_model fake;
    mf_engine_options o = small_options();
    fake_model_init(&fake, 64);
    mf_engine_model table = fake_model_table(&fake, MAX_LEN);
    mf_engine *engine;
    mf_error err = { 0 };
    mf_status status = mf_engine_open_model(&table, &o, 24, &engine, &err);
    if (status != MF_OK) {
        CHECK_EQ(status, MF_ERR_NOMEM);
        CHECK(engine == NULL && err.message[0] != '\0');
        CHECK_EQ(fake.num_open, 0);
        return false;
    }
    bool all = true;
    for (int i = 0; i < 3; i++) {
        job j;
        job_init(&j, short_prompt, 4, 6);
        status = mf_engine_submit(engine, &j.request, &j.id, &err);
        all = all && status == MF_OK;
        CHECK(status == MF_OK || (status == MF_ERR_NOMEM && j.id == 0));
        engine_run(engine);
        CHECK_EQ(j.is_done, status == MF_OK);
    }
    mf_engine_close(&engine);
    return all;
}

TEST(any_failed_allocation_is_a_clean_error)
{
    mf_sys saved;
    for (int mode = 0; mode < 2; mode++) {
        fail_ever_after = mode == 1;
        bool done = false;
        int64_t k = 1;
        for (; !done; k++) {
            CHECK(k < 200);
            count_allocations(&saved);
            fail_at = k;
            done = whole_life();
            mf_sys_table = saved;
            CHECK_EQ(num_live, 0);
        }
        CHECK(k > 25); /* the sweep went through all of open and submit */
    }
    fail_ever_after = false;
}
