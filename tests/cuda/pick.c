/* pick.c - tokens chosen on the GPU against engine/sampler.c: the same token, ranks and log-probabilities to the bit, for
 * rows of every kind.  What the device leaves to the host is counted, and must be rare.
 *
 * Needs a GPU; tests/cuda/run.sh runs it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"
#include "engine/picks.h"
#include "kernels/ops.h"
#include "test.h"

enum { ROWS = 24, MOST_HISTORY = 600, MOST_VOCAB = 201088 };

static mf_error err;

typedef struct bench {
    mf_device *device;
    int32_t vocab, num_ids;
    mf_sampler *sampler;
    mf_picks picks;
    float *host, *back, *logits; /* [ROWS, vocab]: here, and on the device */
    mf_pick *list;
    mf_pick_change *changes;
    mf_picked *picked;
    void *workspace;
} bench;

typedef struct wish {
    mf_sampling_params params;
    mf_sample_context context;
    int32_t history[MOST_HISTORY], stop[2], words[3], lengths[2];
    mf_logit_bias bias[3];
    int32_t describes; /* a token, or -1 */
} wish;

static void *on_device(mf_device *device, size_t bytes)
{
    void *block;
    CHECK_OK(mf_device_malloc(device, bytes, &block, &err), err);
    return block;
}

static void open_bench(bench *b, int32_t vocab, int32_t num_ids)
{
    const size_t rows = (size_t)ROWS * (size_t)vocab * sizeof(float);
    *b = (bench){ .vocab = vocab, .num_ids = num_ids, .host = malloc(rows), .back = malloc(rows) };
    CHECK_OK(mf_device_open("cuda", NULL, &b->device, &err), err);
    CHECK_OK(mf_sampler_open(vocab, num_ids, &b->sampler, &err), err);
    CHECK_OK(mf_picks_open(&b->picks, vocab, num_ids, ROWS, &err), err);
    b->logits = on_device(b->device, rows);
    b->list = on_device(b->device, ROWS * sizeof *b->list);
    b->changes = on_device(b->device, (size_t)b->picks.most_changes * sizeof *b->changes);
    b->picked = on_device(b->device, ROWS * sizeof *b->picked);
    const mf_picked nothing[ROWS] = { { 0 } }; /* a row writes what it has; all of it is fetched */
    CHECK_OK(mf_device_copy(b->device, b->picked, nothing, sizeof nothing, &err), err);
    b->workspace = on_device(b->device, b->device->ops->pick_bytes(b->device, ROWS, vocab));
}

static void close_bench(bench *b)
{
    mf_device_free(b->device, b->logits);
    mf_device_free(b->device, b->list);
    mf_device_free(b->device, b->changes);
    mf_device_free(b->device, b->picked);
    mf_device_free(b->device, b->workspace);
    mf_device_close(&b->device);
    mf_sampler_close(&b->sampler);
    mf_picks_close(&b->picks);
    free(b->host);
    free(b->back);
}

static double normal(uint64_t *random)
{
    double sum = -6.0;
    for (int i = 0; i < 12; i++) {
        sum += mf_random_unit(random);
    }
    return sum;
}

enum { KIND_USUAL, KIND_TIES, KIND_FLAT, KIND_STEEP, KIND_INFINITE, KIND_EQUAL, KIND_ZEROS, KIND_NAN, KIND_PLUS, KIND_NOTHING, KINDS };

static void fill_row(float *row, int32_t n, int kind, uint64_t *random)
{
    const double width = kind == KIND_FLAT ? 0.1 : kind == KIND_STEEP ? 12.0 : 1.0 + 3.0 * mf_random_unit(random);
    for (int32_t i = 0; i < n; i++) {
        const double x = normal(random) * width;
        row[i] = kind == KIND_TIES                                              ? (float)(round(x * 16.0) / 16.0)
                 : kind == KIND_INFINITE && mf_random_below(random, 50) != 0    ? -INFINITY
                 : kind == KIND_NOTHING                                         ? -INFINITY
                 : kind == KIND_EQUAL                                           ? 1.5f
                 : kind == KIND_ZEROS ? (mf_random_below(random, 2) ? 0.0f : -0.0f) - (float)(mf_random_below(random, 3) != 0)
                                      : (float)x;
    }
    if (kind == KIND_NAN || kind == KIND_PLUS) {
        row[mf_random_below(random, (uint64_t)n)] = kind == KIND_NAN ? NAN : INFINITY;
    }
}

static double one_of(const double *values, int n, uint64_t *random)
{
    return values[mf_random_below(random, (uint64_t)n)];
}
#define ONE_OF(random, ...) one_of((const double[]){ __VA_ARGS__ }, (int)(sizeof((const double[]){ __VA_ARGS__ }) / sizeof(double)), random)

static void make_wish(wish *w, const bench *b, uint64_t *random)
{
    const uint64_t vocab = (uint64_t)b->vocab;
    const int32_t num = 1 + (int32_t)mf_random_below(random, MOST_HISTORY - 1);
    for (int32_t i = 0; i < num; i++) {
        w->history[i] = (int32_t)mf_random_below(random, mf_random_below(random, 2) ? vocab : 50);
    }
    for (int i = 0; i < 3; i++) {
        w->bias[i] = (mf_logit_bias){ .token_id = (int32_t)mf_random_below(random, vocab), .bias = (float)(normal(random) * 10.0) };
    }
    w->stop[0] = (int32_t)mf_random_below(random, vocab);
    w->stop[1] = w->history[0];
    w->words[0] = (int32_t)mf_random_below(random, vocab);
    w->words[1] = w->history[num - 1];
    w->words[2] = (int32_t)mf_random_below(random, vocab);
    w->lengths[0] = 1;
    w->lengths[1] = 2;
    const bool changes = mf_random_below(random, 2) != 0;
    w->params = (mf_sampling_params){ .max_tokens = 10,
                                      .temperature = ONE_OF(random, 0.0, 0.3, 0.7, 1.0, 1.0, 2.0),
                                      .top_k = (int32_t)ONE_OF(random, -1, -1, -1, 1, 5, 50, 128, 129, 300),
                                      .top_p = ONE_OF(random, 1.0, 1.0, 0.99, 0.95, 0.5, 0.01),
                                      .min_p = ONE_OF(random, 0.0, 0.0, 0.05, 0.5),
                                      .repetition_penalty = changes ? ONE_OF(random, 1.0, 1.1, 0.8) : 1.0,
                                      .presence_penalty = changes ? ONE_OF(random, 0.0, 0.5, -1.0) : 0.0,
                                      .frequency_penalty = changes ? ONE_OF(random, 0.0, 0.3) : 0.0,
                                      .min_tokens = changes ? MOST_HISTORY : 0,
                                      .logprobs = (int32_t)ONE_OF(random, -1, -1, 0, 1, 5, 20),
                                      .logit_bias = w->bias,
                                      .num_logit_bias = changes ? 3 : 0,
                                      .stop_token_ids = w->stop,
                                      .num_stop_token_ids = 2,
                                      .bad_words = w->words,
                                      .bad_word_lengths = w->lengths,
                                      .num_bad_words = changes ? 2 : 0 };
    w->context = (mf_sample_context){ .params = &w->params,
                                      .tokens = w->history,
                                      .num_tokens = num,
                                      .num_prompt_tokens = (int32_t)mf_random_below(random, (uint64_t)num),
                                      .seed = mf_random_next(random) };
    w->describes = mf_random_below(random, 8) == 0 ? (int32_t)mf_random_below(random, (uint64_t)b->num_ids) : -1;
}

static void run_picks(bench *b, int32_t rows)
{
    const mf_pick_call call = { .logits = b->logits, .num_rows = rows, .n = b->vocab, .num_ids = b->num_ids, .picks = b->list,
                                .changes = b->changes, .picked = b->picked, .workspace = b->workspace };
    b->device->ops->pick(b->device, &call);
}

static void send_picks(bench *b)
{
    const mf_picks *p = &b->picks;
    CHECK_OK(mf_device_copy(b->device, b->list, p->list, (size_t)p->num * sizeof *p->list, &err), err);
    CHECK_OK(mf_device_copy(b->device, b->changes, p->changes, (size_t)p->num_changes * sizeof *p->changes, &err), err);
}

static void check_row(const bench *b, const wish *w, int32_t i, int kind, int64_t *num_left)
{
    mf_sample want = { 0 }, got = { 0 };
    mf_logprob want_top[MF_MAX_LOGPROBS], got_top[MF_MAX_LOGPROBS];
    const float *row = b->host + (int64_t)i * b->vocab;
    const bool is_good = w->describes >= 0 ? mf_sampler_logprobs(b->sampler, row, w->describes, 3, &want, want_top)
                                           : mf_sampler_sample(b->sampler, row, &w->context, &want, want_top);
    if (b->picks.picked[i].state == MF_PICKED_LOGITS) {
        ++*num_left;
        return;
    }
    const bool is_same = mf_picks_take(&b->picks, i, &got, got_top) == is_good &&
                         (!is_good || (got.token_id == want.token_id && got.num_top == want.num_top && got.rank == want.rank &&
                                       (isnan(want.logprob) ? isnan(got.logprob) : got.logprob == want.logprob)));
    if (!is_same) {
        fail_msg("vocab %d of %d, row %d of kind %d: got %d (%.9g), rank %d, top %d; expected %s %d (%.9g), rank %d, top %d; temperature %g "
                 "top_k %d top_p %g min_p %g changes %d describes %d", b->num_ids, b->vocab, i, kind, got.token_id, (double)got.logprob,
                 got.rank, got.num_top, is_good ? "" : "nothing", want.token_id, (double)want.logprob, want.rank, want.num_top,
                 w->params.temperature, w->params.top_k, w->params.top_p, w->params.min_p, b->picks.list[i].num_changes, w->describes);
    }
    for (int32_t k = 0; is_good && k < want.num_top; k++) {
        if (got_top[k].token_id != want_top[k].token_id || got_top[k].logprob != want_top[k].logprob) {
            fail_msg("vocab %d, row %d of kind %d: best %d is %d (%.9g); expected %d (%.9g)", b->vocab, i, kind, k, got_top[k].token_id,
                     (double)got_top[k].logprob, want_top[k].token_id, (double)want_top[k].logprob);
        }
    }
}

static int64_t check_vocab(int32_t vocab, int32_t num_ids, int rounds, uint64_t seed, const int *kinds, int num_kinds)
{
    static wish wishes[ROWS];
    bench b;
    int64_t num_left = 0;
    open_bench(&b, vocab, num_ids);
    for (int round = 0; round < rounds; round++) {
        int row_kinds[ROWS];
        b.picks.num = b.picks.num_changes = 0;
        for (int32_t i = 0; i < ROWS; i++) {
            row_kinds[i] = kinds[mf_random_below(&seed, (uint64_t)num_kinds)];
            fill_row(b.host + (int64_t)i * vocab, vocab, row_kinds[i], &seed);
            make_wish(&wishes[i], &b, &seed);
            if (wishes[i].describes >= 0) {
                mf_picks_add_logprobs(&b.picks, wishes[i].describes, 3);
            } else {
                mf_picks_add_sample(&b.picks, &wishes[i].context);
            }
        }
        const size_t bytes = (size_t)ROWS * (size_t)vocab * sizeof(float);
        CHECK_OK(mf_device_copy(b.device, b.logits, b.host, bytes, &err), err);
        send_picks(&b);
        run_picks(&b, ROWS);
        CHECK_OK(mf_device_copy(b.device, b.picks.picked, b.picked, ROWS * sizeof *b.picked, &err), err);
        CHECK_OK(mf_device_copy(b.device, b.back, b.logits, bytes, &err), err);
        CHECK_MEM(b.back, b.host, bytes);
        for (int32_t i = 0; i < ROWS; i++) {
            check_row(&b, &wishes[i], i, row_kinds[i], &num_left);
        }
    }
    close_bench(&b);
    return num_left;
}

static const int32_t vocabs[] = { 32000, 50304, 102400, 129280, 151936, 200064, 201088 };
enum { NUM_VOCABS = sizeof vocabs / sizeof *vocabs };

static int rounds(void)
{
    const char *v = getenv("MOEFUSE_CUDA_ROUNDS");
    return v ? (int)strtol(v, NULL, 10) : 6;
}

TEST(usual_rows_are_chosen_from_as_the_sampler_does_and_few_are_left_to_it)
{
    static const int kinds[] = { KIND_USUAL, KIND_STEEP };
    int64_t num_left = 0;
    for (int i = 0; i < NUM_VOCABS; i++) {
        num_left += check_vocab(vocabs[i], vocabs[i], rounds(), 11 + (uint64_t)i, kinds, 2);
    }
    printf("# %lld of %d rows left to the host\n", (long long)num_left, NUM_VOCABS * rounds() * ROWS);
    CHECK(num_left * 8 < NUM_VOCABS * rounds() * ROWS); /* a top_k of 129 and more with min_p */
}

TEST(odd_rows_are_chosen_from_as_the_sampler_does)
{
    static const int kinds[] = { KIND_TIES, KIND_FLAT, KIND_INFINITE, KIND_EQUAL, KIND_ZEROS, KIND_NAN, KIND_PLUS, KIND_NOTHING };
    int64_t num_left = 0;
    for (int i = 0; i < NUM_VOCABS; i++) {
        num_left += check_vocab(vocabs[i], vocabs[i] - 7 * (i % 3), rounds(), 31 + (uint64_t)i, kinds, 8);
    }
    printf("# %lld of %d rows left to the host\n", (long long)num_left, NUM_VOCABS * rounds() * ROWS);
}

TEST(small_vocabularies_are_chosen_from_as_the_sampler_does)
{
    static const int kinds[] = { KIND_USUAL, KIND_TIES, KIND_FLAT, KIND_INFINITE, KIND_ZEROS };
    static const int32_t small[] = { 51, 64, 65, 511, 513, 1000, 4096, 4097, 8193 };
    for (size_t i = 0; i < sizeof small / sizeof *small; i += rounds() > 1 ? 1 : 4) {
        check_vocab(small[i], small[i] - (int32_t)(i % 4), rounds(), 51 + i, kinds, 5);
    }
}

/* Not a claim: how long it takes. */
TEST(time_of_a_choice)
{
    if (!getenv("MOEFUSE_CUDA_TIMES")) {
        return;
    }
    static const struct { const char *name; mf_sampling_params params; } wishes[] = {
        { "temperature 1", { .temperature = 1.0, .top_p = 1.0, .repetition_penalty = 1.0, .logprobs = -1 } },
        { "top_p 0.95", { .temperature = 1.0, .top_p = 0.95, .repetition_penalty = 1.0, .logprobs = -1 } },
        { "top_k 50, top_p 0.95", { .temperature = 1.0, .top_k = 50, .top_p = 0.95, .repetition_penalty = 1.0, .logprobs = -1 } },
        { "greedy, 20 logprobs", { .temperature = 0.0, .top_p = 1.0, .repetition_penalty = 1.0, .logprobs = 20 } },
        { "penalties, top_p 0.95", { .temperature = 1.0, .top_p = 0.95, .repetition_penalty = 1.1, .logprobs = -1 } },
    };
    static int32_t history[500];
    uint64_t seed = 3;
    bench b;
    open_bench(&b, 151936, 151936);
    for (int32_t i = 0; i < ROWS; i++) {
        fill_row(b.host + (int64_t)i * b.vocab, b.vocab, KIND_USUAL, &seed);
    }
    for (int32_t i = 0; i < 500; i++) {
        history[i] = (int32_t)mf_random_below(&seed, 151936);
    }
    CHECK_OK(mf_device_copy(b.device, b.logits, b.host, (size_t)ROWS * (size_t)b.vocab * 4, &err), err);
    for (size_t k = 0; k < sizeof wishes / sizeof *wishes; k++) {
        printf("# %-24s", wishes[k].name);
        for (int32_t rows = 1; rows <= ROWS; rows += ROWS - 1) {
            b.picks.num = b.picks.num_changes = 0;
            for (int32_t i = 0; i < rows; i++) {
                const mf_sample_context c = { .params = &wishes[k].params, .tokens = history, .num_tokens = 500, .seed = (uint64_t)i };
                mf_picks_add_sample(&b.picks, &c);
            }
            send_picks(&b);
            double start = 0.0;
            for (int i = 0; i < 220; i++) {
                if (i == 20) {
                    CHECK_OK(mf_device_synchronize(b.device, &err), err);
                    start = mf_now_s();
                }
                run_picks(&b, rows);
            }
            CHECK_OK(mf_device_synchronize(b.device, &err), err);
            const double device_us = (mf_now_s() - start) / 200 * 1e6;
            CHECK_OK(mf_device_copy(b.device, b.picks.picked, b.picked, (size_t)rows * sizeof *b.picked, &err), err);
            int left = 0;
            for (int32_t i = 0; i < rows; i++) {
                left += b.picks.picked[i].state == MF_PICKED_LOGITS;
            }
            start = mf_now_s();
            for (int32_t i = 0; i < rows; i++) {
                const mf_sample_context c = { .params = &wishes[k].params, .tokens = history, .num_tokens = 500, .seed = (uint64_t)i };
                mf_sample sample;
                mf_logprob top[MF_MAX_LOGPROBS];
                CHECK(mf_sampler_sample(b.sampler, b.host + (int64_t)i * b.vocab, &c, &sample, top));
            }
            printf("  rows %2d: %6.1f us (CPU, one thread %6.0f us), %d left", rows, device_us, (mf_now_s() - start) * 1e6, left);
        }
        printf("\n");
    }
    close_bench(&b);
}
