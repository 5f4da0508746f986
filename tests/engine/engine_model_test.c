/* engine_model_test.c - the engine over real (tiny) checkpoints: transformers' tokens, and equal bits whatever runs beside a
 * request, in whatever chunks, on however many threads, cached or preempted, fused or not. */
#include "../model/golden_support.h"

#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"
#include "engine/engine.h"
#include "engine/host_memory.h"

enum { NUM_REQUESTS = 10, MAX_PROMPT = 40, MAX_MADE = 210, NUM_TOP = 3 };

typedef struct text {
    uint64_t id;
    int32_t prompt[MAX_PROMPT];
    int32_t num_prompt;
    int32_t num_made;
    int32_t tokens[MAX_MADE];
    float logprobs[MAX_MADE];
    mf_logprob top[MAX_MADE][NUM_TOP];
    float prompt_logprobs[MAX_PROMPT];
    int32_t num_prompt_logprobs;
    mf_event end;
} text;

static mf_engine_options options_for(const char *dir)
{
    mf_engine_options o = MF_ENGINE_OPTIONS_INIT;
    o.model_dir = dir;
    o.num_threads = 1;
    o.max_num_seqs = 8;
    o.max_num_batched_tokens = 64;
    o.kv_cache_memory_bytes = 4 << 20;
    o.max_model_len = 320;
    return o;
}

static mf_engine *open_engine(const mf_engine_options *o)
{
    mf_engine *engine;
    mf_error err = { 0 };
    CHECK_OK(mf_engine_open(o, &engine, &err), err);
    return engine;
}

/* Half of the prompts share their beginning; greedy and sampled, with and without prompt logprobs. */
static void make_texts(text *texts, int32_t vocab_size, int32_t num_made)
{
    uint64_t random = 12;
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        text *t = &texts[i];
        memset(t, 0, sizeof *t);
        t->num_prompt = 1 + (i * 17) % MAX_PROMPT;
        t->num_made = num_made;
        for (int32_t p = 0; p < t->num_prompt; p++) {
            int32_t shared = 2 + (p * 7) % (vocab_size - 2);
            t->prompt[p] = i % 2 && p < 24 ? shared : 2 + (int32_t)mf_random_below(&random, (uint64_t)vocab_size - 2);
        }
    }
}

static void submit(mf_engine *engine, text *t, int32_t i)
{
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = t->prompt;
    request.num_prompt_tokens = t->num_prompt;
    request.user_data = t;
    request.sampling.max_tokens = t->num_made;
    request.sampling.ignore_eos = 1;
    request.sampling.temperature = i % 3 == 0 ? 0.0 : 0.9;
    request.sampling.top_p = i % 3 == 1 ? 0.95 : 1.0;
    request.sampling.has_seed = 1;
    request.sampling.seed = 1000 + i;
    request.sampling.logprobs = NUM_TOP;
    request.sampling.prompt_logprobs = i % 5 == 4 ? 0 : -1;
    t->num_made = 0;
    mf_error err = { 0 };
    CHECK_OK(mf_engine_submit(engine, &request, &t->id, &err), err);
}

static void take(const mf_event *e)
{
    text *t = e->user_data;
    if (e->type == MF_EVENT_TOKEN) {
        t->tokens[t->num_made] = e->token_id;
        t->logprobs[t->num_made] = e->logprob;
        CHECK_EQ(e->num_top_logprobs, NUM_TOP);
        memcpy(t->top[t->num_made++], e->top_logprobs, sizeof t->top[0]);
    } else if (e->type == MF_EVENT_PROMPT_LOGPROB) {
        t->prompt_logprobs[t->num_prompt_logprobs++] = e->logprob;
    } else {
        t->end = *e;
    }
}

static void run_engine(mf_engine *engine)
{
    mf_event events[64];
    while (mf_engine_has_work(engine)) {
        int32_t n;
        mf_error err = { 0 };
        CHECK_OK(mf_engine_step(engine, events, 64, &n, &err), err);
        CHECK_OK(mf_engine_check(engine, &err), err);
        for (int32_t i = 0; i < n; i++) {
            take(&events[i]);
        }
    }
}

static void run_texts(const mf_engine_options *o, text *texts, int32_t num_made, mf_engine_stats *stats)
{
    mf_engine *engine = open_engine(o);
    make_texts(texts, mf_engine_vocab_size(engine), num_made);
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        submit(engine, &texts[i], i);
    }
    run_engine(engine);
    mf_engine_get_stats(engine, stats);
    CHECK_EQ(stats->num_finished[MF_FINISH_LENGTH], NUM_REQUESTS);
    CHECK_EQ(stats->num_invariant_violations, 0);
    CHECK_EQ(stats->kv_blocks_used, 0);
    mf_engine_close(&engine);
}

static void check_equal(const text *a, const text *b)
{
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        CHECK_EQ(a[i].num_made, b[i].num_made);
        CHECK_MEM(a[i].tokens, b[i].tokens, sizeof a[i].tokens);
        CHECK_MEM(a[i].logprobs, b[i].logprobs, sizeof a[i].logprobs);
        CHECK_MEM(a[i].top, b[i].top, sizeof a[i].top);
        CHECK_EQ(a[i].num_prompt_logprobs, b[i].num_prompt_logprobs);
        CHECK_MEM(a[i].prompt_logprobs, b[i].prompt_logprobs, sizeof a[i].prompt_logprobs);
    }
}

/* The reference of this file: one request at a time, one thread, nothing cached, fused. */
static void run_alone(const char *dir, text *texts, int32_t num_made)
{
    mf_engine_options o = options_for(dir);
    mf_engine_stats stats;
    o.max_num_seqs = 1;
    o.enable_prefix_caching = 0;
    run_texts(&o, texts, num_made, &stats);
    CHECK_EQ(stats.prefix_cache_hits, 0);
}

TEST(greedy_tokens_equal_transformers)
{
    for (int i = 0; golden_names[i]; i++) {
        golden g;
        golden_open(golden_names[i], &g);
        mf_engine_options o = options_for(g.dir);
        o.max_model_len = 0;
        mf_engine *engine = open_engine(&o);
        mf_request request = MF_REQUEST_INIT;
        static text t;
        memset(&t, 0, sizeof t);
        request.prompt_token_ids = g.ids;
        request.num_prompt_tokens = g.num_prompt;
        request.user_data = &t;
        request.sampling.temperature = 0.0;
        request.sampling.max_tokens = g.num_generated;
        request.sampling.ignore_eos = 1;
        request.sampling.logprobs = NUM_TOP;
        mf_error err = { 0 };
        CHECK_OK(mf_engine_submit(engine, &request, &t.id, &err), err);
        run_engine(engine);
        CHECK_EQ(t.num_made, g.num_generated);
        CHECK_MEM(t.tokens, g.ids + g.num_prompt, (size_t)g.num_generated * sizeof *g.ids);
        for (int32_t n = 0; n < t.num_made; n++) {
            CHECK(t.logprobs[n] == t.top[n][0].logprob); /* the client's test for greedy */
        }
        mf_engine_close(&engine);
        golden_close(&g);
    }
}

/* What a tokenizer or a built-in chat template ends its turns with counts as the config's own end does. */
TEST(stop_token_ids_of_the_options_end_a_sequence)
{
    golden g;
    golden_open("v3", &g);
    const int32_t *made = g.ids + g.num_prompt;
    int32_t num_before = 1; /* until a token that the text does not begin with */
    while (num_before < 9 && made[num_before] == made[0]) {
        num_before++;
    }
    const int32_t stop = made[num_before];
    CHECK(stop != made[0]);
    mf_engine_options o = options_for(g.dir);
    o.stop_token_ids = &stop;
    o.num_stop_token_ids = 1;
    mf_engine *engine = open_engine(&o);
    const int32_t num_eos = mf_engine_num_eos_token_ids(engine);
    CHECK_EQ(mf_engine_eos_token_ids(engine)[num_eos - 1], stop);
    static text t;
    memset(&t, 0, sizeof t);
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = g.ids;
    request.num_prompt_tokens = g.num_prompt;
    request.user_data = &t;
    request.sampling.temperature = 0.0;
    request.sampling.max_tokens = 10;
    request.sampling.logprobs = NUM_TOP;
    mf_error err = { 0 };
    CHECK_OK(mf_engine_submit(engine, &request, &t.id, &err), err);
    run_engine(engine);
    CHECK_EQ(t.end.finish_reason, MF_FINISH_STOP);
    CHECK_EQ(t.end.completion_tokens, num_before + 1);
    mf_engine_close(&engine);
    golden_close(&g);
}

TEST(answers_have_the_same_bits_in_any_company)
{
    static text alone[NUM_REQUESTS], other[NUM_REQUESTS];
    golden g;
    golden_open("v3", &g);
    run_alone(g.dir, alone, 60);
    const struct { int32_t seqs, chunk, block, threads, caching; } rows[] = {
        { 8, 64, 16, 1, 0 }, { 8, 64, 16, 1, 1 }, { 3, 5, 16, 1, 1 }, { 8, 64, 4, 2, 1 }, { 8, 9, 1, 2, 0 }, { 2, 64, 32, 3, 1 },
    };
    int64_t num_hits = 0;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mf_engine_options o = options_for(g.dir);
        mf_engine_stats stats;
        o.max_num_seqs = rows[i].seqs;
        o.max_num_batched_tokens = rows[i].chunk;
        o.block_size = rows[i].block;
        o.num_threads = rows[i].threads;
        o.enable_prefix_caching = rows[i].caching;
        o.max_num_queued_tokens = 4096;
        run_texts(&o, other, 60, &stats);
        check_equal(alone, other);
        num_hits += stats.prefix_cache_hits;
    }
    CHECK(num_hits > 0);
    golden_close(&g);
}

TEST(preemption_changes_no_bit)
{
    static text alone[NUM_REQUESTS], other[NUM_REQUESTS];
    golden g;
    golden_open("v3", &g);
    run_alone(g.dir, alone, 60);
    for (int32_t caching = 0; caching < 2; caching++) {
        mf_engine_options o = options_for(g.dir);
        mf_engine_stats stats;
        mf_engine *engine = open_engine(&o);
        const mf_model *model = mf_engine_get_model(engine);
        o.block_size = 4;
        o.max_model_len = 100; /* the longest has 40 + 60 */
        o.kv_cache_memory_bytes = 30 * mf_kv_store_block_bytes(model, 4);
        mf_engine_close(&engine);
        o.enable_prefix_caching = caching;
        run_texts(&o, other, 60, &stats);
        CHECK(stats.num_preemptions > 0);
        check_equal(alone, other);
    }
    golden_close(&g);
}

/* Linear layers keep a state per sequence: half of these prompts begin alike and each still computes its own; a preempted
 * one begins again from zeros, in whatever slot it then gets. */
TEST(states_of_linear_layers_belong_to_one_sequence_each)
{
    static text alone[NUM_REQUESTS], other[NUM_REQUESTS];
    golden g;
    golden_open("qwen3_next", &g);
    run_alone(g.dir, alone, 150);
    const struct { int32_t seqs, chunk, block, threads, is_short; } rows[] = {
        { 8, 64, 16, 1, 0 }, { 3, 5, 16, 1, 0 }, { 8, 9, 1, 2, 0 }, { 8, 64, 4, 1, 1 }, { 4, 7, 4, 2, 1 },
    };
    int64_t num_preemptions = 0;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mf_engine_options o = options_for(g.dir);
        mf_engine_stats stats;
        o.max_num_seqs = rows[i].seqs;
        o.max_num_batched_tokens = rows[i].chunk;
        o.block_size = rows[i].block;
        o.num_threads = rows[i].threads;
        if (rows[i].is_short) { /* states take half; the other half holds 96 tokens per sequence, the longest text has 190 */
            mf_engine *engine = open_engine(&o);
            o.kv_cache_memory_bytes = 2 * rows[i].seqs * mf_kv_store_state_bytes(mf_engine_get_model(engine));
            mf_engine_close(&engine);
            o.max_model_len = 190;
        }
        run_texts(&o, other, 150, &stats);
        check_equal(alone, other);
        CHECK_EQ(stats.prefix_cache_hits, 0);
        CHECK_EQ(stats.kv_blocks_cached, 0);
        num_preemptions += stats.num_preemptions;
    }
    CHECK(num_preemptions > 0);
    golden_close(&g);
}

TEST(states_count_as_cache_memory_and_bound_the_running_sequences)
{
    golden g;
    golden_open("qwen3_next", &g);
    mf_engine_options o = options_for(g.dir);
    mf_error err = { 0 };
    mf_engine *engine = open_engine(&o);
    const mf_model *model = mf_engine_get_model(engine);
    const mf_model_config *c = mf_model_get_config(model);
    /* 3 layers of S [4, 16, 24] and 3 inputs of 2 * 32 + 96 channels, in lines of 16 floats */
    const int64_t state = mf_kv_store_state_bytes(model), block = mf_kv_store_block_bytes(model, 16);
    CHECK_EQ(state, 3 * 4 * (4 * 16 * 24 + 3 * (2 * 32 + 96)));
    CHECK_EQ(block, 16 * 4 * 2 * 2 * c->head_dim); /* one layer of attention, not four */
    CHECK_EQ(mf_engine_num_kv_blocks(engine), ((4 << 20) - 8 * state) / block);
    mf_engine_close(&engine);

    o.max_model_len = 0;
    o.kv_cache_memory_bytes = 7 * state;
    engine = open_engine(&o); /* 3 states in half of that */
    CHECK_EQ(mf_engine_num_kv_blocks(engine), 4 * state / block);
    static text texts[NUM_REQUESTS];
    make_texts(texts, mf_engine_vocab_size(engine), 8);
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        submit(engine, &texts[i], i);
    }
    mf_event events[64];
    int32_t most = 0;
    while (mf_engine_has_work(engine)) {
        int32_t n;
        CHECK_OK(mf_engine_step(engine, events, 64, &n, &err), err);
        mf_engine_stats stats;
        mf_engine_get_stats(engine, &stats);
        most = stats.num_running > most ? stats.num_running : most;
    }
    CHECK_EQ(most, 3);
    mf_engine_close(&engine);

    o.kv_cache_memory_bytes = 2 * state - 1;
    CHECK_EQ(mf_engine_open(&o, &engine, &err), MF_ERR_NOMEM);
    CHECK_HAS(err.message, "the state of one sequence");
    golden_close(&g);
}

TEST(fused_and_unfused_have_the_same_bits_over_2000_tokens)
{
    static text fused[NUM_REQUESTS], other[NUM_REQUESTS];
    golden g;
    golden_open("v3", &g);
    mf_engine_options o = options_for(g.dir);
    mf_engine_stats stats;
    run_texts(&o, fused, 200, &stats);
    CHECK_EQ(stats.generation_tokens, 2000);
    for (int32_t way = 0; way < 4; way++) {
        o = options_for(g.dir);
        o.disable_shared_experts_fusion = way == 0 || way == 2;
        o.disable_fused_gate = way == 1 || way == 2;
        o.num_shared_expert_replicas = way == 3 ? 3 : 1;
        run_texts(&o, other, 200, &stats);
        CHECK_EQ(stats.generation_tokens, 2000);
        check_equal(fused, other);
    }
    golden_close(&g);
}

TEST(expert_load_counts_every_computed_row)
{
    static text texts[NUM_REQUESTS];
    golden g;
    golden_open("v3", &g);
    mf_engine_options o = options_for(g.dir);
    mf_engine *engine = open_engine(&o);
    make_texts(texts, mf_engine_vocab_size(engine), 20);
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        submit(engine, &texts[i], i);
    }
    run_engine(engine);
    mf_engine_stats stats;
    mf_engine_get_stats(engine, &stats);
    CHECK_EQ(stats.num_layers, 3);
    CHECK_EQ(stats.num_experts, 16);
    for (int32_t l = 0; l < 3; l++) {
        int64_t sum = 0;
        for (int32_t e = 0; e < 16; e++) {
            sum += stats.expert_load[l * 16 + e];
        }
        CHECK_EQ(sum, l == 0 ? 0 : 4 * stats.computed_tokens); /* layer 0 is dense, top-4 elsewhere */
    }
    CHECK_EQ(stats.num_bad_rows, 0);
    mf_engine_close(&engine);
    golden_close(&g);
}

TEST(dummy_weights_run_from_config_alone_and_depend_on_the_seed)
{
    static text a[NUM_REQUESTS], b[NUM_REQUESTS], c[NUM_REQUESTS];
    golden g;
    golden_open("v3", &g);
    mf_engine_options o = options_for(g.dir);
    mf_engine_stats stats;
    o.load_format_dummy = 1;
    o.seed = 5;
    run_texts(&o, a, 10, &stats);
    run_texts(&o, b, 10, &stats);
    o.seed = 6;
    run_texts(&o, c, 10, &stats);
    check_equal(a, b);
    CHECK(memcmp(a[0].logprobs, c[0].logprobs, 10 * sizeof(float)) != 0);
    golden_close(&g);
}

TEST(open_refuses_what_cannot_be)
{
    golden g;
    golden_open("v3", &g);
    mf_engine *engine;
    mf_error err = { 0 };
    mf_engine_options o = options_for(g.dir);
    o.max_model_len = 0;
    o.kv_cache_memory_bytes = 1;
    CHECK_EQ(mf_engine_open(&o, &engine, &err), MF_ERR_NOMEM);
    CHECK_HAS(err.message, "kv_cache_memory_bytes");
    o.kv_cache_memory_bytes = 64 * 1024;
    o.max_model_len = 600;
    CHECK_EQ(mf_engine_open(&o, &engine, &err), MF_ERR_NOMEM);
    CHECK_HAS(err.message, "room for");
    o = options_for("no/such/model");
    CHECK(mf_engine_open(&o, &engine, &err) != MF_OK);
    CHECK_HAS(err.message, "no/such/model");
    o.model_dir = NULL;
    CHECK_EQ(mf_engine_open(&o, &engine, &err), MF_ERR_INVALID);
    CHECK(engine == NULL);
    golden_close(&g);
}

TEST(automatic_kv_memory_holds_every_sequence_when_there_is_plenty)
{
    golden g;
    golden_open("v3", &g);
    mf_engine_options o = options_for(g.dir);
    o.kv_cache_memory_bytes = 0;
    o.max_num_seqs = 2;
    o.max_model_len = 0;
    mf_engine *engine = open_engine(&o);
    CHECK_EQ(mf_engine_max_model_len(engine), 640);
    CHECK_EQ(mf_engine_num_kv_blocks(engine), 2 * 640 / 16);
    mf_engine_close(&engine);
    golden_close(&g);
    CHECK(mf_host_memory_available() > 1 << 20);
    CHECK_EQ(mf_host_memory_find("MemTotal: 5 kB\nMemAvailable:   123 kB\n", "MemAvailable:"), 123);
    CHECK_EQ(mf_host_memory_find("MemTotal: 5 kB\n", "MemAvailable:"), -1);
    CHECK_EQ(mf_host_memory_find("file x", "file "), -1);
}

static int64_t num_allocations, fail_at, num_live;

static void *failing_alloc(size_t bytes)
{
    if (++num_allocations == fail_at) {
        return NULL;
    }
    num_live++;
    return malloc(bytes);
}

static void *failing_resize(void *block, size_t bytes)
{
    if (++num_allocations == fail_at) {
        return NULL;
    }
    num_live += block == NULL;
    return realloc(block, bytes);
}

static void counting_release(void *block)
{
    num_live -= block != NULL;
    free(block);
}

TEST(any_failed_allocation_of_open_is_a_clean_error)
{
    golden g;
    golden_open("v3", &g);
    mf_sys saved = mf_sys_table;
    mf_engine_options o = options_for(g.dir);
    mf_status status = MF_ERR_NOMEM;
    int64_t k = 1;
    for (; status != MF_OK; k++) {
        CHECK(k < 5000);
        mf_engine *engine;
        mf_error err = { 0 };
        mf_sys_table.alloc = failing_alloc;
        mf_sys_table.resize = failing_resize;
        mf_sys_table.release = counting_release;
        num_allocations = 0;
        num_live = 0;
        fail_at = k;
        status = mf_engine_open(&o, &engine, &err);
        mf_engine_close(&engine);
        mf_sys_table = saved;
        if (status != MF_OK && status != MF_ERR_NOMEM) {
            fail_msg("allocation %lld: %s", (long long)k, err.message);
        }
        CHECK_EQ(num_live, 0);
    }
    print_message("%lld allocations\n", (long long)k - 1);
    golden_close(&g);
}
