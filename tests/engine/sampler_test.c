/* sampler_test.c - the sampler against distributions computed by hand. */
#include "test.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"
#include "base/fixed_math.h"
#include "engine/sampler.h"

static mf_sampler *open_sampler(int32_t vocab_size, int32_t num_sampled_ids)
{
    mf_sampler *s;
    mf_error err = { 0 };
    CHECK_OK(mf_sampler_open(vocab_size, num_sampled_ids, &s, &err), err);
    return s;
}

static mf_sampling_params params_random(void)
{
    return (mf_sampling_params)MF_SAMPLING_PARAMS_INIT;
}

static mf_sampling_params params_greedy(void)
{
    mf_sampling_params p = MF_SAMPLING_PARAMS_INIT;
    p.temperature = 0.0;
    return p;
}

static int32_t sample_at(mf_sampler *s, const float *logits, const mf_sampling_params *p, uint64_t seed, int32_t position)
{
    static int32_t tokens[1 << 17];
    mf_sample_context c = { .params = p, .tokens = tokens, .num_prompt_tokens = position, .num_tokens = position,
                            .seed = seed };
    mf_sample sample;
    mf_logprob top[MF_MAX_LOGPROBS];
    CHECK(mf_sampler_sample(s, logits, &c, &sample, top));
    return sample.token_id;
}

/* One id after the given tokens. */
static int32_t sample_after(mf_sampler *s, const float *logits, const mf_sampling_params *p, const int32_t *tokens,
                            int32_t num_prompt, int32_t num_tokens)
{
    static const int32_t eos[] = { 0 };
    mf_sample_context c = { .params = p, .tokens = tokens, .num_prompt_tokens = num_prompt, .num_tokens = num_tokens,
                            .eos_token_ids = eos, .num_eos_token_ids = 1 };
    mf_sample sample;
    CHECK(mf_sampler_sample(s, logits, &c, &sample, NULL));
    return sample.token_id;
}

/* Probabilities 0.4, 0.3, 0.2, 0.1. */
static void four_logits(float *logits)
{
    for (int i = 0; i < 4; i++) {
        logits[i] = (float)log(0.4 - 0.1 * i);
    }
}

/* Which of the first 8 ids come up in 4,000 draws, as bits.  An id of probability 0.05 stays away with chance 1e-89. */
static uint32_t drawn_set(mf_sampler *s, const float *logits, const mf_sampling_params *p)
{
    uint32_t set = 0;
    for (int32_t i = 0; i < 4000; i++) {
        set |= 1u << sample_at(s, logits, p, 11, i);
    }
    return set;
}

static int64_t ulps(double a, double b)
{
    int64_t x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    return x > y ? x - y : y - x;
}

TEST(exp_and_log_are_within_two_ulps_of_libm)
{
    uint64_t random = 1;
    for (int i = 0; i < 1000000; i++) {
        float x = (float)(-86.9 * mf_random_unit(&random) * mf_random_unit(&random));
        double exact = exp((double)x);
        CHECK(fabs((double)mf_fixed_exp(x) - exact) <= 2 * 0x1p-23 * exact);
        double y = exp(45.0 * mf_random_unit(&random));
        CHECK(ulps(mf_fixed_log(y), log(y)) <= 2);
    }
    CHECK(mf_fixed_exp(0.0f) == 1.0f);
    CHECK(mf_fixed_log(1.0) == 0.0);
    CHECK(mf_fixed_exp(-INFINITY) == 0.0f);
    CHECK(mf_fixed_exp(-FLT_MAX) == 0.0f);
}

TEST(greedy_takes_the_best_and_ties_go_to_the_lower_id)
{
    mf_sampler *s = open_sampler(6, 6);
    float logits[6] = { 1.0f, 3.0f, -2.0f, 3.0f, 3.0f, 0.0f };
    mf_sampling_params p = params_greedy();
    CHECK_EQ(sample_at(s, logits, &p, 0, 1), 1);
    logits[5] = 3.5f;
    CHECK_EQ(sample_at(s, logits, &p, 0, 1), 5);
    p.temperature = 0.9e-5; /* still greedy, as in vLLM */
    CHECK_EQ(sample_at(s, logits, &p, 0, 1), 5);
    mf_sampler_close(&s);
}

TEST(logprobs_are_natural_logs_of_the_models_own_distribution)
{
    mf_sampler *s = open_sampler(4, 4);
    float logits[4];
    four_logits(logits);
    for (int i = 0; i < 4; i++) {
        logits[i] += 7.0f; /* a constant changes nothing */
    }
    mf_sample sample;
    mf_logprob top[MF_MAX_LOGPROBS];
    CHECK(mf_sampler_logprobs(s, logits, 2, 3, &sample, top));
    CHECK(fabs(sample.logprob - log(0.2)) < 1e-6);
    CHECK_EQ(sample.num_top, 3);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(top[i].token_id, i);
        CHECK(fabs(top[i].logprob - log(0.4 - 0.1 * i)) < 1e-6);
    }
    CHECK(sample.logprob == top[2].logprob); /* one computation */
    /* Temperature, bias and top_k do not enter. */
    mf_logit_bias bias = { 3, 50.0f };
    mf_sampling_params p = params_random();
    p.temperature = 0.5;
    p.top_k = 1;
    p.logprobs = 1;
    p.logit_bias = &bias;
    p.num_logit_bias = 1;
    mf_sample_context c = { .params = &p };
    CHECK(mf_sampler_sample(s, logits, &c, &sample, top));
    CHECK_EQ(sample.token_id, 3);
    CHECK(fabs(sample.logprob - log(0.1)) < 1e-6);
    CHECK_EQ(top[0].token_id, 0);
    mf_sampler_close(&s);
}

TEST(logprobs_of_a_large_row_sum_to_one)
{
    enum { V = 5003 };
    static float logits[V];
    uint64_t random = 3;
    for (int i = 0; i < V; i++) {
        logits[i] = (float)(30.0 * mf_random_unit(&random) - 15.0);
    }
    mf_sampler *s = open_sampler(V, V);
    double sum = 0.0;
    for (int i = 0; i < V; i++) {
        mf_sample sample;
        CHECK(mf_sampler_logprobs(s, logits, i, 0, &sample, NULL));
        sum += exp((double)sample.logprob);
    }
    CHECK(fabs(sum - 1.0) < 1e-6); /* f32 rounding of each of the logs, at most 20 in size: 2^-20 each, signs mixed */
    mf_sampler_close(&s);
}

TEST(top_logprobs_are_sorted_and_ties_go_to_the_lower_id)
{
    mf_sampler *s = open_sampler(8, 7);
    float logits[8] = { 0, 2, 1, 2, 5, 2, 1, 9 }; /* id 7 is padding */
    mf_sample sample;
    mf_logprob top[MF_MAX_LOGPROBS];
    static const int32_t order[7] = { 4, 1, 3, 5, 2, 6, 0 };
    CHECK(mf_sampler_logprobs(s, logits, 0, 20, &sample, top));
    CHECK_EQ(sample.num_top, 7);
    for (int i = 0; i < 7; i++) {
        CHECK_EQ(top[i].token_id, order[i]);
    }
    for (int n = 0; n <= 7; n++) { /* a short list cuts between equals */
        CHECK(mf_sampler_logprobs(s, logits, 0, n, &sample, top));
        CHECK_EQ(sample.num_top, n);
        for (int i = 0; i < n; i++) {
            CHECK_EQ(top[i].token_id, order[i]);
        }
    }
    mf_sampler_close(&s);
}

TEST(a_rank_counts_better_ids_and_equal_ones_before_it)
{
    mf_sampler *s = open_sampler(8, 7);
    float logits[8] = { 0, 2, 1, 2, 5, 2, 1, 9 }; /* id 7 is padding */
    static const int32_t ranks[7] = { 7, 2, 5, 3, 1, 4, 6 };
    for (int32_t id = 0; id < 7; id++) {
        mf_sample sample;
        mf_logprob top[MF_MAX_LOGPROBS];
        CHECK(mf_sampler_logprobs(s, logits, id, 7, &sample, top));
        CHECK_EQ(sample.rank, ranks[id]);
        CHECK_EQ(top[sample.rank - 1].token_id, id);
        CHECK(mf_sampler_logprobs(s, logits, id, 0, &sample, top));
        CHECK_EQ(sample.rank, ranks[id]);
    }
    mf_sampler_close(&s);
}

TEST(padding_ids_weigh_in_logprobs_and_are_never_chosen)
{
    mf_sampler *s = open_sampler(4, 3);
    float logits[4] = { 0.0f, 0.0f, 0.0f, 5.0f };
    mf_sampling_params p = params_random();
    CHECK_EQ(drawn_set(s, logits, &p), 7);
    p.top_k = 3;
    CHECK_EQ(drawn_set(s, logits, &p), 7);
    p = params_greedy();
    CHECK_EQ(sample_at(s, logits, &p, 0, 0), 0);
    int32_t allowed[] = { 3, 1 };
    p.allowed_token_ids = allowed;
    p.num_allowed_token_ids = 2;
    CHECK_EQ(sample_at(s, logits, &p, 0, 0), 1);
    mf_sample sample;
    CHECK(mf_sampler_logprobs(s, logits, 0, 0, &sample, NULL));
    CHECK(fabs(sample.logprob + log(3.0 + exp(5.0))) < 1e-6);
    mf_sampler_close(&s);
}

TEST(rows_with_nan_or_infinity_are_refused)
{
    mf_sampler *s = open_sampler(4, 3);
    static const float bad[] = { NAN, -NAN, INFINITY };
    mf_sampling_params p = params_random();
    mf_sample_context c = { .params = &p };
    mf_sample sample;
    for (size_t b = 0; b < 3; b++) {
        for (int i = 0; i < 4; i++) { /* in the padding too */
            float logits[4] = { 0, 1, 2, 3 };
            logits[i] = bad[b];
            CHECK(!mf_sampler_sample(s, logits, &c, &sample, NULL));
            CHECK(!mf_sampler_logprobs(s, logits, 0, 0, &sample, NULL));
        }
    }
    float none[4] = { -INFINITY, -INFINITY, -INFINITY, 1.0f };
    CHECK(!mf_sampler_sample(s, none, &c, &sample, NULL));
    float one[4] = { -INFINITY, -3.0f, -INFINITY, -INFINITY };
    CHECK_EQ(drawn_set(s, one, &p), 2);
    mf_sampler_close(&s);
}

TEST(top_k_keeps_exactly_k_and_ties_go_to_the_lower_id)
{
    mf_sampler *s = open_sampler(6, 6);
    float logits[6] = { 1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 0.5f };
    mf_sampling_params p = params_random();
    static const uint32_t sets[7] = { 0x3f, 0x02, 0x0a, 0x0b, 0x0f, 0x1f, 0x3f };
    for (int k = 0; k <= 6; k++) {
        p.top_k = k;
        CHECK_EQ(drawn_set(s, logits, &p), sets[k]);
    }
    p.top_k = -1;
    CHECK_EQ(drawn_set(s, logits, &p), 0x3f);
    p.top_k = INT32_MAX;
    CHECK_EQ(drawn_set(s, logits, &p), 0x3f);
    float zeros[6] = { -1.0f, -0.0f, 0.0f, -1.0f, -1.0f, -1.0f }; /* the two zeros are a tie */
    p.top_k = 1;
    CHECK_EQ(drawn_set(s, zeros, &p), 2);
    mf_sampler_close(&s);
}

TEST(top_p_keeps_ids_until_those_before_weigh_p)
{
    mf_sampler *s = open_sampler(4, 4);
    float logits[4];
    four_logits(logits);
    mf_sampling_params p = params_random();
    /* Before id 1 stand 0.4, before id 2 0.7, before id 3 0.9. */
    static const struct { double p; uint32_t set; } cases[] = {
        { 1e-9, 1 }, { 0.39, 1 }, { 0.41, 3 }, { 0.69, 3 }, { 0.71, 7 }, { 0.89, 7 }, { 0.91, 15 }, { 1.0, 15 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        p.top_p = cases[i].p;
        CHECK_EQ(drawn_set(s, logits, &p), cases[i].set);
    }
    float even[4] = { 0 }; /* 0.25 each, exactly: before id 2 stands 0.5, which is not below 0.5 */
    for (int32_t k = 1; k <= 4; k++) {
        p.top_p = 0.25 * k;
        CHECK_EQ(drawn_set(s, even, &p), (1u << k) - 1);
    }
    mf_sampler_close(&s);
}

TEST(min_p_keeps_ids_above_a_share_of_the_best)
{
    mf_sampler *s = open_sampler(4, 4);
    float logits[4];
    four_logits(logits);
    mf_sampling_params p = params_random();
    /* Shares of the best: 1, 0.75, 0.5, 0.25. */
    static const struct { double p; uint32_t set; } cases[] = {
        { 0.0, 15 }, { 0.24, 15 }, { 0.26, 7 }, { 0.49, 7 }, { 0.51, 3 }, { 0.76, 1 }, { 1.0, 1 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        p.min_p = cases[i].p;
        CHECK_EQ(drawn_set(s, logits, &p), cases[i].set);
    }
    mf_sampler_close(&s);
}

TEST(temperature_comes_before_top_p_and_min_p)
{
    mf_sampler *s = open_sampler(4, 4);
    float logits[4];
    four_logits(logits);
    mf_sampling_params p = params_random();
    /* At temperature 2 the weights are square roots: 0.325, 0.282, 0.230, 0.163.  0.35 keeps one id at 1 and two at 2. */
    p.top_p = 0.35;
    CHECK_EQ(drawn_set(s, logits, &p), 1);
    p.temperature = 2.0;
    CHECK_EQ(drawn_set(s, logits, &p), 3);
    p.top_p = 1.0;
    p.min_p = 0.45; /* sqrt(0.25) = 0.5 stays, 0.25 would not */
    CHECK_EQ(drawn_set(s, logits, &p), 15);
    p.temperature = 1.0;
    CHECK_EQ(drawn_set(s, logits, &p), 7);
    mf_sampler_close(&s);
}

TEST(top_p_works_on_what_top_k_and_min_p_left)
{
    mf_sampler *s = open_sampler(4, 4);
    float logits[4];
    four_logits(logits);
    mf_sampling_params p = params_random();
    /* Of two ids the first weighs 4/7 = 0.571: 0.56 keeps it alone, 0.45 of all four would keep two. */
    p.top_p = 0.56;
    CHECK_EQ(drawn_set(s, logits, &p), 3);
    p.top_k = 2;
    CHECK_EQ(drawn_set(s, logits, &p), 1);
    p.top_k = 0;
    p.min_p = 0.7; /* the same two ids */
    CHECK_EQ(drawn_set(s, logits, &p), 1);
    mf_sampler_close(&s);
}

/* Sum of (seen - expected)^2 / expected. */
static double chi_square(const int64_t *seen, const double *probabilities, int n, int64_t total)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        double expected = probabilities[i] * (double)total;
        sum += ((double)seen[i] - expected) * ((double)seen[i] - expected) / expected;
    }
    return sum;
}

TEST(frequencies_follow_the_distribution)
{
    mf_sampler *s = open_sampler(4, 4);
    float logits[4];
    four_logits(logits);
    static const double plain[] = { 0.4, 0.3, 0.2, 0.1 };
    static const double cut[] = { 4.0 / 9, 3.0 / 9, 2.0 / 9 };
    double hot[4];
    double hot_sum = sqrt(0.4) + sqrt(0.3) + sqrt(0.2) + sqrt(0.1);
    for (int i = 0; i < 4; i++) {
        hot[i] = sqrt(plain[i]) / hot_sum;
    }
    const struct { double temperature; int32_t top_k; const double *probabilities; int n; double bound; } cases[] = {
        /* Bounds: the 0.999 quantile of chi-square with 3 and 2 degrees of freedom. */
        { 1.0, 0, plain, 4, 16.27 }, { 2.0, 0, hot, 4, 16.27 }, { 1.0, 3, cut, 3, 13.82 },
    };
    for (size_t i = 0; i < 3; i++) {
        mf_sampling_params p = params_random();
        p.temperature = cases[i].temperature;
        p.top_k = cases[i].top_k;
        int64_t by_position[4] = { 0 };
        int64_t by_seed[4] = { 0 };
        for (int32_t n = 0; n < 100000; n++) {
            by_position[sample_at(s, logits, &p, 42, n)]++;
            by_seed[sample_at(s, logits, &p, (uint64_t)n, 17)]++;
        }
        CHECK(chi_square(by_position, cases[i].probabilities, cases[i].n, 100000) < cases[i].bound);
        CHECK(chi_square(by_seed, cases[i].probabilities, cases[i].n, 100000) < cases[i].bound);
    }
    mf_sampler_close(&s);
}

TEST(neighbouring_positions_and_seeds_draw_independently)
{
    /* Pairs of successive draws over a 10 x 10 grid; 0.999 quantile of chi-square with 99 degrees of freedom: 148.2. */
    int64_t along_positions[100] = { 0 };
    int64_t along_seeds[100] = { 0 };
    double even[100];
    for (int i = 0; i < 100; i++) {
        even[i] = 0.01;
    }
    for (int i = 0; i < 100000; i++) {
        int a = (int)(10.0 * mf_sampler_uniform(5, i));
        int b = (int)(10.0 * mf_sampler_uniform(5, i + 1));
        int c = (int)(10.0 * mf_sampler_uniform((uint64_t)i, 9));
        int d = (int)(10.0 * mf_sampler_uniform((uint64_t)i + 1, 9));
        along_positions[10 * a + b]++;
        along_seeds[10 * c + d]++;
    }
    CHECK(chi_square(along_positions, even, 100, 100000) < 148.2);
    CHECK(chi_square(along_seeds, even, 100, 100000) < 148.2);
}

/* Greedy picks id 1 when its changed logit is above the rival's: so the value is caught between two rivals. */
static void check_value(const mf_sampling_params *p, const float *logits, const int32_t *tokens, int32_t num_prompt,
                        int32_t num_tokens, float value)
{
    mf_sampler *s = open_sampler(4, 4);
    float row[4] = { -50.0f, logits[1], -50.0f, value - 1e-3f }; /* id 3 is the rival */
    CHECK_EQ(sample_after(s, row, p, tokens, num_prompt, num_tokens), 1);
    row[3] = value + 1e-3f;
    CHECK_EQ(sample_after(s, row, p, tokens, num_prompt, num_tokens), 3);
    mf_sampler_close(&s);
}

TEST(penalties_change_a_logit_as_computed_by_hand)
{
    const int32_t tokens[5] = { 1, 2, 1, 2, 1 }; /* two of the prompt, three made: id 1 twice in the completion */
    mf_sampling_params p = params_greedy();
    float positive[2] = { 0.0f, 3.0f };
    float negative[2] = { 0.0f, -3.0f };
    p.repetition_penalty = 1.5;
    check_value(&p, positive, tokens, 2, 5, 2.0f);  /* 3 / 1.5 */
    check_value(&p, negative, tokens, 2, 5, -4.5f); /* -3 * 1.5 */
    check_value(&p, positive, tokens, 2, 2, 2.0f);  /* the prompt alone counts too */
    p.repetition_penalty = 1.0;
    p.frequency_penalty = 0.25;
    check_value(&p, positive, tokens, 2, 5, 2.5f);  /* 3 - 2 * 0.25 */
    check_value(&p, positive, tokens, 2, 2, 3.0f);  /* the prompt does not count */
    p.presence_penalty = 0.75;
    check_value(&p, positive, tokens, 2, 5, 1.75f); /* 3 - 2 * 0.25 - 0.75 */
    p.repetition_penalty = 1.5;
    check_value(&p, positive, tokens, 2, 5, 0.75f); /* 3 / 1.5 - 0.5 - 0.75: repetition first */
    p.frequency_penalty = -0.5;
    p.presence_penalty = 0.0;
    check_value(&p, positive, tokens, 2, 5, 3.0f);  /* 2 + 1 */
}

TEST(logit_bias_is_added_before_penalties)
{
    const int32_t tokens[1] = { 1 };
    mf_logit_bias bias[2] = { { 1, 3.0f }, { 1, 2.0f } };
    mf_sampling_params p = params_greedy();
    p.logit_bias = bias;
    p.num_logit_bias = 2;
    float logits[2] = { 0.0f, -1.0f };
    check_value(&p, logits, tokens, 1, 1, 4.0f); /* -1 + 3 + 2 */
    p.repetition_penalty = 2.0;
    check_value(&p, logits, tokens, 1, 1, 2.0f); /* (-1 + 5) / 2, not -1 * 2 + 5 = 3 */
}

TEST(extreme_penalties_end_no_row)
{
    mf_sampler *s = open_sampler(4, 4);
    const int32_t tokens[2] = { 1, 2 };
    float logits[4] = { 0.0f, 3e38f, -INFINITY, -3e38f };
    mf_sampling_params p = params_greedy();
    p.repetition_penalty = 1e-300; /* rounds to 0 in f32 */
    CHECK_EQ(sample_after(s, logits, &p, tokens, 1, 2), 1);
    p.repetition_penalty = 10.0;
    CHECK_EQ(sample_after(s, logits, &p, tokens, 1, 2), 1);
    mf_sampler_close(&s);
}

TEST(min_tokens_forbids_eos_and_stop_ids_until_it_is_reached)
{
    mf_sampler *s = open_sampler(4, 4);
    const int32_t tokens[4] = { 3, 3, 3, 3 };
    const int32_t stops[1] = { 2 };
    float logits[4] = { 9.0f, 1.0f, 8.0f, 0.0f }; /* id 0 is EOS */
    mf_sampling_params p = params_greedy();
    p.stop_token_ids = stops;
    p.num_stop_token_ids = 1;
    p.min_tokens = 2;
    CHECK_EQ(sample_after(s, logits, &p, tokens, 2, 2), 1);
    CHECK_EQ(sample_after(s, logits, &p, tokens, 2, 3), 1);
    CHECK_EQ(sample_after(s, logits, &p, tokens, 2, 4), 0);
    mf_sampler_close(&s);
}

TEST(a_bad_word_is_forbidden_at_its_last_token)
{
    mf_sampler *s = open_sampler(5, 5);
    const int32_t tokens[4] = { 1, 2, 1, 2 };
    const int32_t words[4] = { 4, 1, 2, 3 }; /* "4" and "1 2 3" */
    const int32_t lengths[2] = { 1, 3 };
    float logits[5] = { 0.0f, 0.5f, 0.6f, 7.0f, 9.0f };
    mf_sampling_params p = params_greedy();
    CHECK_EQ(sample_after(s, logits, &p, tokens, 1, 4), 4);
    p.bad_words = words;
    p.bad_word_lengths = lengths;
    p.num_bad_words = 2;
    CHECK_EQ(sample_after(s, logits, &p, tokens, 2, 4), 2); /* made: 1 2; 3 is forbidden */
    CHECK_EQ(sample_after(s, logits, &p, tokens, 2, 3), 3); /* made: 1 */
    CHECK_EQ(sample_after(s, logits, &p, tokens, 3, 4), 3); /* the 1 before is the prompt's: words are of the completion */
    mf_sampler_close(&s);
}

TEST(only_allowed_ids_are_chosen)
{
    mf_sampler *s = open_sampler(6, 6);
    const int32_t allowed[3] = { 4, 2, 2 };
    float logits[6] = { 5, 5, 0, 5, 0, 5 };
    mf_sampling_params p = params_random();
    p.allowed_token_ids = allowed;
    p.num_allowed_token_ids = 3;
    CHECK_EQ(drawn_set(s, logits, &p), 1u << 4 | 1u << 2);
    p.num_allowed_token_ids = 0; /* the marks are gone again */
    CHECK_EQ(drawn_set(s, logits, &p), 0x3f);
    mf_sampler_close(&s);
}

TEST(a_draw_depends_on_seed_and_position_alone)
{
    enum { V = 100 };
    float rows[8][V];
    int32_t first[8];
    uint64_t random = 9;
    mf_sampler *s = open_sampler(V, V);
    mf_sampler *other = open_sampler(V, V);
    mf_sampling_params p = params_random();
    p.top_p = 0.9;
    for (int i = 0; i < 8; i++) {
        for (int v = 0; v < V; v++) {
            rows[i][v] = (float)(4.0 * mf_random_unit(&random));
        }
        first[i] = sample_at(s, rows[i], &p, 77, 10 + i);
    }
    int differ = 0;
    for (int i = 8; i-- > 0;) {
        CHECK_EQ(sample_at(other, rows[i], &p, 77, 10 + i), first[i]);
        differ += sample_at(other, rows[i], &p, 78, 10 + i) != first[i];
    }
    CHECK(differ > 4);
    mf_sampler_close(&s);
    mf_sampler_close(&other);
}

/* ---- against the plainest sampler --------------------------------------------------------------------------------- */

typedef struct candidate {
    float logit;
    int32_t id;
    double weight;
} candidate;

static int by_logit_then_id(const void *a, const void *b)
{
    const candidate *x = a;
    const candidate *y = b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : x->id - y->id;
}

/* Sorts everything, cuts, draws: the definition. */
static int32_t plain_sample(const float *logits, int n, const mf_sampling_params *p, double u)
{
    candidate *c = malloc((size_t)n * sizeof *c);
    for (int i = 0; i < n; i++) {
        c[i] = (candidate){ logits[i], i, 0.0 };
    }
    qsort(c, (size_t)n, sizeof *c, by_logit_then_id);
    int kept = 0;
    for (int i = 0; i < n; i++) {
        c[i].weight = (double)mf_fixed_exp((c[i].logit - c[0].logit) * (float)(1.0 / p->temperature));
        kept += c[i].weight >= (double)(float)p->min_p;
    }
    kept = p->top_k > 0 && p->top_k < kept ? p->top_k : kept;
    double total = 0.0;
    for (int i = 0; i < kept; i++) {
        total += c[i].weight;
    }
    double before = 0.0;
    int nucleus = 0;
    while (nucleus < kept && (nucleus == 0 || before < p->top_p * total)) {
        before += c[nucleus++].weight;
    }
    double sum = 0.0;
    int i = 0;
    while (i < nucleus - 1 && (sum += c[i].weight) <= u * before) {
        i++;
    }
    int32_t id = c[i].id;
    free(c);
    return id;
}

TEST(cut_draws_equal_sorting_everything)
{
    enum { V = 3000 };
    static float logits[V];
    mf_sampler *s = open_sampler(V, V);
    uint64_t random = 2024;
    for (int turn = 0; turn < 1500; turn++) {
        double spread = turn % 3 == 0 ? 1.0 : 12.0;
        for (int v = 0; v < V; v++) {
            logits[v] = (float)(spread * (mf_random_unit(&random) - 0.6));
            if (turn % 5 == 0) {
                logits[v] = floorf(logits[v]); /* ties by the hundred */
            }
        }
        mf_sampling_params p = params_random();
        p.temperature = 0.2 + 1.8 * mf_random_unit(&random);
        p.top_k = turn % 2 ? 1 + (int32_t)mf_random_below(&random, turn % 4 == 1 ? 40 : V) : 0;
        p.top_p = turn % 3 ? 0.02 + 0.97 * mf_random_unit(&random) : 1.0 - 1e-9;
        p.min_p = turn % 7 == 0 ? mf_random_unit(&random) : 0.0;
        CHECK_EQ(sample_at(s, logits, &p, (uint64_t)turn, 3), plain_sample(logits, V, &p, mf_sampler_uniform((uint64_t)turn, 3)));
    }
    mf_sampler_close(&s);
}

TEST(sampler_sizes_are_checked)
{
    mf_sampler *s;
    mf_error err = { 0 };
    CHECK_EQ(mf_sampler_open(10, 11, &s, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "num_sampled_ids: expected 1 to the vocabulary's 10; got 11");
    CHECK_EQ(mf_sampler_open(10, 0, &s, &err), MF_ERR_INVALID);
    CHECK_EQ(mf_sampler_open(0, 0, &s, &err), MF_ERR_INVALID);
}
