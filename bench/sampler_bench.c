/* sampler_bench.c - times the choice of a token from one row of logits, on one thread.
 *
 *   moefuse_bench_sampler [VOCAB]
 *
 * Two kinds of rows: normal logits of deviation 3, as a trained model's in the main, and of deviation 0.5, where a nucleus
 * holds most of the vocabulary.  Microseconds, medians. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/number.h"
#include "base/random.h"
#include "base/sys.h"
#include "engine/sampler.h"

enum { ROWS = 16, REPEATS = 96, TOP = 20 };

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    const int32_t n = argc > 1 ? (int32_t)strtol(argv[1], NULL, 10) : 151936;
    mf_sampler *sampler = NULL;
    mf_error err = { 0 };
    float *rows = mf_alloc_array((size_t)ROWS * (size_t)(n > 0 ? n : 1), sizeof *rows);
    if (!rows || mf_sampler_open(n, n, &sampler, &err) != MF_OK) {
        fprintf(stderr, "moefuse_bench_sampler: %s\n", err.message);
        return 1;
    }
    const struct { const char *name; double temperature, top_p, min_p; int32_t top_k, logprobs; } ways[] = {
        { "greedy", 0, 1, 0, 0, -1 },          { "greedy, 5 logprobs", 0, 1, 0, 0, 5 },
        { "temperature 1", 1, 1, 0, 0, -1 },   { "top-k 50", 1, 1, 0, 50, -1 },
        { "top-k 50, top-p 0.9", 1, 0.9, 0, 50, -1 }, { "top-p 0.9", 1, 0.9, 0, 0, -1 },
        { "top-p 0.99", 1, 0.99, 0, 0, -1 },   { "min-p 0.05", 1, 1, 0.05, 0, -1 },
        { "top-p 0.9, 5 logprobs", 1, 0.9, 0, 0, 5 },
    };
    static const double deviations[] = { 3.0, 0.5 };
    for (int d = 0; d < 2; d++) {
        uint64_t seed = 1;
        for (int64_t i = 0; i < (int64_t)ROWS * n; i++) {
            const double u = 1.0 - mf_random_unit(&seed), v = mf_random_unit(&seed);
            rows[i] = (float)(deviations[d] * sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
        }
        for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
            mf_sampling_params p = MF_SAMPLING_PARAMS_INIT;
            double times[REPEATS];
            int64_t sum = 0;
            p.temperature = ways[w].temperature;
            p.top_p = ways[w].top_p;
            p.min_p = ways[w].min_p;
            p.top_k = ways[w].top_k;
            p.logprobs = ways[w].logprobs;
            for (int i = 0; i < REPEATS; i++) {
                const mf_sample_context c = { .params = &p, .seed = (uint64_t)i };
                mf_sample sample;
                mf_logprob top[TOP];
                const double start = mf_now_s();
                sum += mf_sampler_sample(sampler, rows + (int64_t)(i % ROWS) * n, &c, &sample, top) ? sample.token_id : 0;
                times[i] = (mf_now_s() - start) * 1e6;
            }
            qsort(times, REPEATS, sizeof *times, compare);
            printf("%d ids, deviation %.1f, %-24s %8.1f us   (ids add up to %lld)\n", (int)n, deviations[d], ways[w].name,
                   times[REPEATS / 2], (long long)sum);
        }
    }
    mf_sampler_close(&sampler);
    mf_free(rows);
    return 0;
}
