/* golden_test.c - whole models against the logits of Hugging Face transformers, and against themselves run otherwise.
 *
 * transformers' numbers are the oracle of values; equality of bits between two of our own runs is the oracle of the promise
 * that batching, chunking, threads, fusion and replicas do not change a result. */
#include <math.h>
#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"
#include "golden_support.h"

/* Both sides compute in f32 from the same weights but add in different orders.  A product of k <= 256 terms is off by about
 * sqrt(k) / 2 roundings of 2^-24 and a text passes some thirty products and norms, whose errors add like random ones:
 * 8 * sqrt(30) * 2^-24 = 2.6e-6 of the largest logit is what rounding does (1.6e-6 was seen), and twice that the bound.
 * A wrong factor, a swapped expert or rope in another order is off by 1e-3 and more. */
#define LOGIT_BOUND 5e-6

typedef void (*device_fn)(const golden *g, const char *device);

static void for_each_golden(device_fn fn)
{
    for (int i = 0; golden_names[i]; i++) {
        golden g;
        golden_open(golden_names[i], &g);
        for (int d = 0; golden_devices[d]; d++) {
            if (golden_device_usable(golden_devices[d])) {
                fn(&g, golden_devices[d]);
            }
        }
        golden_close(&g);
    }
}

static void check_same(const golden *g, const char *device, const char *how, const float *a, const float *b, int32_t rows)
{
    for (int64_t i = 0; i < (int64_t)rows * g->vocab_size; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0) {
            fail_msg("%s on %s, %s: row %d, id %d: %a against %a", g->name, device, how, (int)(i / g->vocab_size),
                     (int)(i % g->vocab_size), (double)a[i], (double)b[i]);
        }
    }
}

/* Logits of the whole text in one batch under the options. */
static float *prefill(const golden *g, const mf_model_options *options)
{
    mf_model *model = golden_model(g, options);
    float *logits = golden_logits(g, g->num_tokens);
    golden_run(model, g->ids, g->num_tokens, g->num_tokens, logits, NULL, NULL);
    mf_model_close(&model);
    return logits;
}

/* ---- against transformers ---- */

static void compare_with_transformers(const golden *g, const char *device)
{
    mf_model_options options = golden_options(device);
    float *logits = prefill(g, &options);
    double worst = 0.0, largest = 0.0;
    for (int64_t i = 0; i < (int64_t)g->num_tokens * g->vocab_size; i++) {
        CHECK(isfinite(logits[i]));
        worst = fmax(worst, fabs((double)logits[i] - (double)g->logits[i]));
        largest = fmax(largest, fabs((double)g->logits[i]));
    }
    if (getenv("MOEFUSE_TEST_VERBOSE")) {
        printf("%-16s %-9s max |difference| %.3g, largest logit %.3g, relative %.3g\n", g->name, device, worst, largest,
               worst / largest);
    }
    if (worst > LOGIT_BOUND * largest) {
        fail_msg("%s on %s: differs by %g with a largest logit of %g", g->name, device, worst, largest);
    }
    for (int32_t t = g->num_prompt - 1; t + 1 < g->num_tokens; t++) {
        const float *row = logits + (int64_t)t * g->vocab_size;
        int32_t best = 0;
        for (int32_t v = 1; v < g->vocab_size; v++) {
            best = row[v] > row[best] ? v : best;
        }
        CHECK_EQ(best, g->ids[t + 1]);
    }
    mf_free(logits);
}

TEST(logits_and_greedy_tokens_agree_with_transformers)
{
    for_each_golden(compare_with_transformers);
}

/* ---- against itself ---- */

static void decode_step_by_step(const golden *g, const char *device)
{
    mf_model_options options = golden_options(device);
    mf_model *model = golden_model(g, &options);
    float *whole = golden_logits(g, g->num_tokens), *parts = golden_logits(g, g->num_tokens);
    golden_run(model, g->ids, g->num_tokens, g->num_tokens, whole, NULL, NULL);
    static const int32_t chunks[] = { 1, 2, 5, 7, 16 };
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        golden_run(model, g->ids, g->num_tokens, chunks[i], parts, NULL, NULL);
        check_same(g, device, "in chunks", whole, parts, g->num_tokens);
    }
    mf_free(whole);
    mf_free(parts);
    mf_model_close(&model);
}

TEST(decoding_and_chunked_prefill_give_the_bits_of_one_prefill)
{
    for_each_golden(decode_step_by_step);
}

/* Three texts, their rows interleaved and starting at different steps; text 1 is the golden's. */
static void run_among_others(const golden *g, const char *device)
{
    enum { BLOCK = 4, MAX_BLOCKS = 32, STEP = 5, EVERY = 3 * STEP };
    mf_error err;
    mf_model_options options = golden_options(device);
    mf_model *model = golden_model(g, &options);
    float *alone = golden_logits(g, g->num_tokens), *among = golden_logits(g, EVERY);
    golden_run(model, g->ids, g->num_tokens, g->num_tokens, alone, NULL, NULL);
    mf_kv_store *store = NULL;
    CHECK_OK(mf_kv_store_open(model, 3 * MAX_BLOCKS, BLOCK, 3, &store, &err), err);
    int32_t table[3 * MAX_BLOCKS], next[3] = { 0, 0, 0 };
    for (int32_t i = 0; i < 3 * MAX_BLOCKS; i++) {
        table[i] = (i * 5 + 7) % (3 * MAX_BLOCKS);
    }
    for (int32_t step = 0; next[1] < g->num_tokens; step++) {
        int32_t token[EVERY], position[EVERY], sequence[EVERY], rows[EVERY], n = 0, wanted = 0, first = next[1];
        for (int32_t i = 0; i < STEP; i++) {
            for (int32_t s = 0; s < 3; s++) {
                bool joined = step >= (s + 2) % 3; /* 1 joins first, so the longest text is neither first nor last in a batch */
                if (!joined || next[s] >= g->num_tokens) {
                    continue;
                }
                token[n] = s == 1 ? g->ids[next[s]] : (g->ids[next[s]] * 7 + s) % g->vocab_size;
                position[n] = next[s]++;
                sequence[n] = s;
                if (s == 1) {
                    rows[wanted++] = n;
                }
                n++;
            }
        }
        mf_batch batch = { .num_tokens = n,
                           .token_ids = token,
                           .position = position,
                           .sequence = sequence,
                           .block_table = table,
                           .num_sequences = 3,
                           .max_blocks = MAX_BLOCKS,
                           .num_logit_rows = wanted,
                           .logit_rows = rows };
        CHECK_OK(mf_model_forward(model, store, &batch, among, NULL, NULL, &err), err);
        check_same(g, device, "among others", alone + (int64_t)first * g->vocab_size, among, wanted);
    }
    mf_kv_store_close(&store);
    mf_free(alone);
    mf_free(among);
    mf_model_close(&model);
}

TEST(a_text_among_others_gives_the_bits_of_the_text_alone)
{
    for_each_golden(run_among_others);
}

static void vary_threads(const golden *g, const char *device)
{
    if (strcmp(device, "ref") == 0) {
        return; /* one thread by definition */
    }
    mf_model_options options = golden_options(device);
    float *one = prefill(g, &options);
    for (int32_t threads = 2; threads <= 3; threads++) {
        options.num_threads = threads;
        float *more = prefill(g, &options);
        check_same(g, device, "with more threads", one, more, g->num_tokens);
        mf_free(more);
    }
    mf_free(one);
}

TEST(the_number_of_threads_does_not_change_a_bit)
{
    for_each_golden(vary_threads);
}

static void vary_fusion(const golden *g, const char *device)
{
    mf_model_options options = golden_options(device);
    float *fused = prefill(g, &options);
    options.plan.disable_fused_gate = true;
    float *other = prefill(g, &options);
    check_same(g, device, "--disable-fused-gate", fused, other, g->num_tokens);
    mf_free(other);
    options.plan.disable_shared_experts_fusion = true;
    other = prefill(g, &options);
    check_same(g, device, "both off", fused, other, g->num_tokens);
    mf_free(other);
    options.plan.disable_fused_gate = false;
    other = prefill(g, &options);
    check_same(g, device, "--disable-shared-experts-fusion", fused, other, g->num_tokens);
    mf_free(other);
    mf_free(fused);
}

TEST(fused_and_unfused_give_the_same_bits)
{
    for_each_golden(vary_fusion);
}

/* A short text hides a small error of the shared expert's weight: what differs by an ulp once picks another token later. */
TEST(two_thousand_generated_tokens_have_the_same_bits_fused_and_unfused)
{
    static const char *const names[] = { "v3", "v2_lite", "v2", "v2_e60", "glm4", "qwen3_next" };
    enum { BLOCK = 16, MAX_BLOCKS = 40, RUNS = 4 };
    static const mf_plan_options plans[RUNS] = {
        { .num_shared_expert_replicas = 1 },
        { .disable_shared_experts_fusion = true, .num_shared_expert_replicas = 1 },
        { .disable_fused_gate = true, .num_shared_expert_replicas = 3 },
        { .disable_shared_experts_fusion = true, .disable_fused_gate = true, .num_shared_expert_replicas = 1 },
    };
    int32_t total = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        golden g;
        golden_open(names[i], &g);
        mf_error err;
        mf_model *models[RUNS];
        mf_kv_store *stores[RUNS];
        float *logits[RUNS];
        for (int r = 0; r < RUNS; r++) {
            mf_model_options options = golden_options("cpu");
            options.num_threads = 1 + r % 2;
            options.plan = plans[r];
            models[r] = golden_model(&g, &options);
            CHECK_OK(mf_kv_store_open(models[r], MAX_BLOCKS, BLOCK, 1, &stores[r], &err), err);
            logits[r] = golden_logits(&g, 1);
        }
        int32_t table[MAX_BLOCKS], token = g.ids[0], sequence = 0, row = 0;
        for (int32_t b = 0; b < MAX_BLOCKS; b++) {
            table[b] = MAX_BLOCKS - 1 - b;
        }
        uint64_t seed = 20260101 + i;
        for (int32_t position = 0; position < 600; position++) {
            mf_batch batch = { .num_tokens = 1,
                               .token_ids = &token,
                               .position = &position,
                               .sequence = &sequence,
                               .block_table = table,
                               .num_sequences = 1,
                               .max_blocks = MAX_BLOCKS,
                               .num_logit_rows = 1,
                               .logit_rows = &row };
            for (int r = 0; r < RUNS; r++) {
                CHECK_OK(mf_model_forward(models[r], stores[r], &batch, logits[r], NULL, NULL, &err), err);
                check_same(&g, "cpu", "while generating", logits[0], logits[r], 1);
            }
            double best = -INFINITY; /* noise keeps a random model from repeating itself */
            for (int32_t v = 0; v < g.vocab_size; v++) {
                double score = (double)logits[0][v] + 6.0 * mf_random_unit(&seed);
                if (score > best) {
                    best = score;
                    token = v;
                }
            }
            total++;
        }
        for (int r = 0; r < RUNS; r++) {
            mf_free(logits[r]);
            mf_kv_store_close(&stores[r]);
            mf_model_close(&models[r]);
        }
        golden_close(&g);
    }
    CHECK(total >= 2000);
}

static void vary_replicas(const golden *g, const char *device)
{
    static const int32_t replicas[] = { 2, 3, 8 };
    mf_model_options options = golden_options(device);
    float *one = prefill(g, &options);
    for (size_t i = 0; i < sizeof replicas / sizeof replicas[0]; i++) {
        options.plan.num_shared_expert_replicas = replicas[i];
        float *more = prefill(g, &options);
        check_same(g, device, "with replicas", one, more, g->num_tokens);
        mf_free(more);
    }
    mf_free(one);
}

TEST(replicas_of_the_shared_expert_do_not_change_a_bit)
{
    for_each_golden(vary_replicas);
}

/* The gate never counts shared columns, whatever the plan. */
static void count_experts(const golden *g, const char *device)
{
    mf_model_options options = golden_options(device);
    float *logits = golden_logits(g, g->num_tokens);
    int32_t *load[2];
    for (int separate = 0; separate < 2; separate++) {
        options.plan.disable_shared_experts_fusion = separate;
        mf_model *model = golden_model(g, &options);
        const mf_model_config *config = mf_model_get_config(model);
        int32_t experts = config->gate.num_experts, bad_rows = 0;
        load[separate] = mf_alloc_array((size_t)(config->num_layers * experts), sizeof **load);
        CHECK(load[separate] != NULL);
        golden_run(model, g->ids, g->num_tokens, 9, logits, load[separate], &bad_rows);
        CHECK_EQ(bad_rows, 0);
        for (int64_t l = 0; l < config->num_layers; l++) {
            int64_t sum = 0;
            for (int32_t e = 0; e < experts; e++) {
                sum += load[separate][l * experts + e];
            }
            CHECK_EQ(sum, config->layer_is_moe[l] ? g->num_tokens * config->gate.top_k : 0);
        }
        if (separate) {
            CHECK_MEM(load[0], load[1], (size_t)(config->num_layers * experts) * sizeof **load);
        }
        mf_model_close(&model);
    }
    mf_free(load[0]);
    mf_free(load[1]);
    mf_free(logits);
}

TEST(expert_load_counts_each_routed_choice_once)
{
    for_each_golden(count_experts);
}

/* A poisoned embedding row reaches only its own text. */
static void poison_a_row(const char *name)
{
    enum { BLOCK = 8, MAX_BLOCKS = 16, MAX_ROWS = BLOCK * MAX_BLOCKS };
    golden g;
    golden_open(name, &g);
    for (int d = 0; golden_devices[d]; d++) {
        if (!golden_device_usable(golden_devices[d])) {
            continue;
        }
        mf_error err;
        mf_model_options options = golden_options(golden_devices[d]);
        options.use_map = false; /* memory of our own, which can be poisoned */
        mf_model *model = golden_model(&g, &options);
        const mf_model_config *config = mf_model_get_config(model);
        float *alone = golden_logits(&g, g.num_tokens), *beside = golden_logits(&g, g.num_tokens);
        golden_run(model, g.ids, g.num_tokens, g.num_tokens, alone, NULL, NULL);

        int32_t poisoned = 0; /* an id that the text does not hold */
        for (int32_t t = 0; t < g.num_tokens; t++) {
            if (g.ids[t] == poisoned) {
                poisoned++;
                t = -1;
            }
        }
        const mf_matrix *embed = &mf_model_get_weights(model)->embed_tokens;
        CHECK_EQ(embed->format, MF_FORMAT_BF16);
        uint16_t *row = (uint16_t *)(uintptr_t)embed->data + poisoned * embed->row_stride;
        const uint16_t nan = 0x7fc0;
        for (int64_t i = 0; i < embed->k; i++) {
            CHECK_OK(mf_device_copy((mf_device *)(uintptr_t)mf_model_get_device(model), row + i, &nan, sizeof nan, &err), err);
        }
        mf_kv_store *store = NULL;
        CHECK_OK(mf_kv_store_open(model, 2 * MAX_BLOCKS, BLOCK, 2, &store, &err), err);
        int32_t table[2 * MAX_BLOCKS], token[MAX_ROWS], position[MAX_ROWS], sequence[MAX_ROWS], rows[MAX_ROWS], bad_rows = 0, n = 0;
        for (int32_t i = 0; i < 2 * MAX_BLOCKS; i++) {
            table[i] = i;
        }
        token[n] = poisoned;
        position[n] = 0;
        sequence[n++] = 1;
        for (int32_t t = 0; t < g.num_tokens; t++, n++) {
            token[n] = g.ids[t];
            position[n] = t;
            sequence[n] = 0;
            rows[t] = n;
        }
        mf_batch batch = { .num_tokens = n,
                           .token_ids = token,
                           .position = position,
                           .sequence = sequence,
                           .block_table = table,
                           .num_sequences = 2,
                           .max_blocks = MAX_BLOCKS,
                           .num_logit_rows = g.num_tokens,
                           .logit_rows = rows };
        CHECK_OK(mf_model_forward(model, store, &batch, beside, NULL, &bad_rows, &err), err);
        check_same(&g, golden_devices[d], "beside a row of NaN", alone, beside, g.num_tokens);
        CHECK_EQ(bad_rows, config->num_moe_layers);
        mf_kv_store_close(&store);
        mf_free(alone);
        mf_free(beside);
        mf_model_close(&model);
    }
    golden_close(&g);
}

TEST(a_row_of_nan_is_counted_and_leaves_its_neighbours_alone)
{
    poison_a_row("v3");
    poison_a_row("qwen3_next");
}

/* ---- what a forward call may not do ---- */

static int64_t num_allocations;
static int64_t failing_allocation; /* 1 = the next; 0 = none */

static void *counted_alloc(size_t bytes)
{
    num_allocations++;
    if (failing_allocation > 0 && --failing_allocation == 0) {
        return NULL;
    }
    return malloc(bytes);
}

static void *counted_resize(void *block, size_t bytes)
{
    num_allocations++;
    if (failing_allocation > 0 && --failing_allocation == 0) {
        return NULL;
    }
    return realloc(block, bytes);
}

TEST(a_forward_call_allocates_nothing)
{
    enum { BLOCK = 4, BLOCKS = 32, ROWS = BLOCK * BLOCKS };
    mf_sys saved = mf_sys_table;
    for (int i = 0; golden_names[i]; i++) {
        golden g;
        golden_open(golden_names[i], &g);
        for (int d = 0; golden_devices[d]; d++) {
            if (!golden_device_usable(golden_devices[d])) {
                continue;
            }
            mf_error err;
            mf_model_options options = golden_options(golden_devices[d]);
            mf_model *model = golden_model(&g, &options);
            mf_kv_store *store = NULL;
            CHECK_OK(mf_kv_store_open(model, BLOCKS, BLOCK, 1, &store, &err), err);
            float *logits = golden_logits(&g, g.num_tokens);
            int32_t table[BLOCKS], position[ROWS], sequence[ROWS] = { 0 }, rows[ROWS];
            CHECK(g.num_tokens <= ROWS);
            for (int32_t t = 0; t < ROWS; t++) {
                table[t % BLOCKS] = t % BLOCKS;
                position[t] = rows[t] = t;
            }
            mf_batch batch = { .num_tokens = g.num_tokens,
                               .token_ids = g.ids,
                               .position = position,
                               .sequence = sequence,
                               .block_table = table,
                               .num_sequences = 1,
                               .max_blocks = BLOCKS,
                               .num_logit_rows = g.num_tokens,
                               .logit_rows = rows };
            num_allocations = 0;
            mf_sys_table.alloc = counted_alloc;
            mf_sys_table.resize = counted_resize;
            mf_status status = mf_model_forward(model, store, &batch, logits, NULL, NULL, &err);
            mf_sys_table = saved;
            CHECK_OK(status, err);
            CHECK_EQ(num_allocations, 0);
            mf_free(logits);
            mf_kv_store_close(&store);
            mf_model_close(&model);
        }
        golden_close(&g);
    }
}

/* Leaks show under the address sanitizer. */
TEST(an_open_that_runs_out_of_memory_anywhere_fails_cleanly)
{
    static const char *const names[] = { "v2_lite", "v3_sharded", "glm4_air", "qwen3_next_odd" };
    mf_sys saved = mf_sys_table;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        golden g;
        golden_open(names[i], &g);
        mf_model_options options = golden_options("ref");
        options.max_batch_tokens = 4;
        options.max_model_len = 32;
        int64_t k = 1;
        for (bool opened = false; !opened; k++) {
            mf_error err = { .status = MF_OK };
            mf_model *model = NULL;
            failing_allocation = k;
            mf_sys_table.alloc = counted_alloc;
            mf_sys_table.resize = counted_resize;
            mf_status status = mf_model_open(g.dir, &options, &model, &err);
            mf_sys_table = saved;
            opened = failing_allocation > 0; /* there was no k-th allocation */
            failing_allocation = 0;
            if (opened) {
                CHECK_OK(status, err);
            } else if (status == MF_OK || model) {
                fail_msg("%s: open succeeded although allocation %lld failed", g.name, (long long)k);
            } else if (status != MF_ERR_NOMEM || err.message[0] == '\0') {
                fail_msg("%s: allocation %lld failed: %s: %s", g.name, (long long)k, mf_status_name(status), err.message);
            }
            mf_model_close(&model);
        }
        CHECK(k > 10);
        golden_close(&g);
    }
}

/* ---- refused ---- */

TEST(a_batch_outside_its_bounds_is_refused_by_name)
{
    golden g;
    golden_open("v2", &g);
    mf_error err;
    mf_model_options options = golden_options("ref");
    options.max_batch_tokens = 4;
    options.max_model_len = 20;
    mf_model *model = golden_model(&g, &options);
    mf_kv_store *store = NULL;
    CHECK_OK(mf_kv_store_open(model, 5, 4, 1, &store, &err), err);
    float *logits = golden_logits(&g, 4);
    struct {
        int32_t num_tokens, token, position, second_position, sequence, block, max_blocks, row;
        const char *message;
    } cases[] = {
        { 2, 3, 0, 1, 0, 2, 5, 0, NULL },
        { 5, 3, 0, 1, 0, 2, 5, 0, "batch: 5 rows; expected 0..4" },
        { -1, 3, 0, 1, 0, 2, 5, 0, "batch: -1 rows; expected 0..4" },
        { 2, -1, 0, 1, 0, 2, 5, 0, "batch row 0: token id -1; expected 0..79" },
        { 2, 80, 0, 1, 0, 2, 5, 0, "batch row 0: token id 80; expected 0..79" },
        { 2, 3, 20, 21, 0, 2, 5, 0, "batch row 0: position 20; expected 0..19" },
        { 2, 3, -1, 1, 0, 2, 5, 0, "batch row 0: position -1; expected 0..19" },
        { 2, 3, 1, 1, 0, 2, 5, 0, "batch row 1: position 1 follows 1; expected ascending positions" },
        { 2, 3, 0, 1, 1, 2, 5, 0, "batch row 0: sequence 1, position 0 lie outside a block table of [1, 5]" },
        { 2, 3, 15, 16, 0, 2, 4, 0, "batch row 1: sequence 0, position 16 lie outside a block table of [1, 4]" },
        { 2, 3, 0, 1, 0, 5, 5, 0, "sequence 0, block 0 of its table: 5; expected 0..4" },
        { 2, 3, 0, 1, 0, -1, 5, 0, "sequence 0, block 0 of its table: -1; expected 0..4" },
        { 2, 3, 0, 1, 0, 2, 5, 2, "batch: logit row 2 at place 0; expected ascending rows below 2" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t token[5] = { cases[i].token, 4, 5, 6, 7 }, position[5] = { cases[i].position, cases[i].second_position, 2, 3, 4 };
        int32_t sequence[5] = { cases[i].sequence, cases[i].sequence, 0, 0, 0 }, table[5] = { cases[i].block, 1, 3, 0, 4 };
        mf_batch batch = { .num_tokens = cases[i].num_tokens,
                           .token_ids = token,
                           .position = position,
                           .sequence = sequence,
                           .block_table = table,
                           .num_sequences = 1,
                           .max_blocks = cases[i].max_blocks,
                           .num_logit_rows = 1,
                           .logit_rows = &cases[i].row };
        mf_status status = mf_model_forward(model, store, &batch, logits, NULL, NULL, &err);
        if (!cases[i].message) {
            CHECK_OK(status, err);
            continue;
        }
        CHECK_EQ(status, MF_ERR_INVALID);
        CHECK_STR(err.message, cases[i].message);
    }
    mf_free(logits);
    mf_kv_store_close(&store);
    mf_model_close(&model);
    golden_close(&g);
}

TEST(options_out_of_range_are_refused_before_the_weights_are_read)
{
    golden g;
    golden_open("v3", &g);
    mf_error err;
    mf_model *model = NULL;
    mf_model_options options = golden_options("ref");
    options.max_model_len = 641;
    CHECK_EQ(mf_model_open(g.dir, &options, &model, &err), MF_ERR_INVALID);
    CHECK_STR(err.message, "--max-model-len: expected 1..640 (max_position_embeddings); got 641");
    options = golden_options("ref");
    options.max_batch_tokens = 0;
    CHECK_EQ(mf_model_open(g.dir, &options, &model, &err), MF_ERR_INVALID);
    CHECK_STR(err.message, "--max-num-batched-tokens: expected 1..1048576; got 0");
    options = golden_options("ref");
    options.device = "tpu";
    CHECK_EQ(mf_model_open(g.dir, &options, &model, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "tpu");
    CHECK(model == NULL);
    golden_close(&g);
}
