/* figures_test.c - statistics, and the serving figures made from records: values worked out by hand or by numpy. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

#include "base/sys.h"
#include "cli/bench_load.h"
#include "cli/bench_result.h"
#include "cli/stats.h"

#define CHECK_NEAR(a, b, tolerance)                                                                                    \
    do {                                                                                                               \
        double x_ = (a), y_ = (b);                                                                                     \
        if (!(fabs(x_ - y_) <= (tolerance))) {                                                                         \
            fail_msg("%s: %.12g is not %.12g", #a, x_, y_);                                                            \
        }                                                                                                              \
    } while (0)

TEST(percentiles_are_numpys)
{
    /* numpy.percentile([3, 1, 4, 1, 5, 9, 2, 6], [0, 25, 50, 90, 99, 100]) */
    double v[] = { 3, 1, 4, 1, 5, 9, 2, 6 };
    mf_sort_doubles(v, 8);
    const double percents[] = { 0, 25, 50, 90, 99, 100 }, expected[] = { 1, 1.75, 3.5, 6.9, 8.79, 9 };
    for (int i = 0; i < 6; i++) {
        CHECK_NEAR(mf_percentile(v, 8, percents[i]), expected[i], 1e-12);
    }
    CHECK_NEAR(mf_percentile(v, 1, 99), 1, 0);
    CHECK_NEAR(mf_percentile(v, 0, 50), 0, 0);
    CHECK_NEAR(mf_std(v, 8), 2.5708704751503918, 1e-12); /* numpy.std */
    CHECK_NEAR(mf_mean(v, 8), 3.875, 1e-12);
}

TEST(t_quantiles_are_those_of_the_tables)
{
    /* A table of the distribution; 31 and 60 by integrating its density. */
    const double degrees[] = { 1, 2, 4, 10, 30, 31, 60, 1000 },
                 expected[] = { 12.706205, 4.302653, 2.776445, 2.228139, 2.042272, 2.039513, 2.000298, 1.962339 };
    for (int i = 0; i < 8; i++) {
        CHECK_NEAR(mf_t_quantile(degrees[i]), expected[i], 3e-5);
    }
    CHECK_NEAR(mf_t_quantile(2.9), 4.302653, 1e-6); /* rounded down: the wider interval */
    CHECK(isinf(mf_t_quantile(0.5)));
}

TEST(welchs_interval_is_that_of_two_equal_variances)
{
    /* Means 2 and 4, variances 1 and 1, three each: 4 degrees, 2 -+ 2.776445 * sqrt(2 / 3). */
    const double a[] = { 1, 2, 3 }, b[] = { 3, 4, 5 };
    mf_interval i;
    CHECK(mf_difference_interval(a, 3, b, 3, &i));
    CHECK_NEAR(i.low, 2 - 2.2669579, 1e-5);
    CHECK_NEAR(i.high, 2 + 2.2669579, 1e-5);
    CHECK(!mf_difference_interval(a, 1, b, 3, &i));
    const double same[] = { 7, 7 };
    CHECK(mf_difference_interval(same, 2, same, 2, &i) && i.low == 0 && i.high == 0);
}

TEST(wilsons_interval_solves_its_equation)
{
    /* The roots of (share - p)^2 = z^2 p (1 - p) / n, found by bisection. */
    mf_interval i = mf_wilson(0.985, 1000);
    CHECK_NEAR(i.low, 0.975399, 1e-6);
    CHECK_NEAR(i.high, 0.990889, 1e-6);
    i = mf_wilson(1, 60);
    CHECK_NEAR(i.low, 0.939828, 1e-6);
    CHECK_NEAR(i.high, 1, 1e-9);
    i = mf_wilson(0, 10);
    CHECK_NEAR(i.low, 0, 1e-9);
    CHECK_NEAR(i.high, 0.277533, 1e-5);
}

TEST(arrivals_have_the_asked_rate_and_burstiness)
{
    enum { N = 20000 };
    static double at[N];
    static const double shapes[] = { 0.25, 1, 4, 100 };
    for (int s = 0; s < 4; s++) {
        mf_load_arrivals(at, N, 50, shapes[s], 7);
        double mean = 0, squares = 0;
        CHECK(at[0] == 0);
        for (int i = 1; i < N; i++) {
            double gap = at[i] - at[i - 1];
            CHECK(gap >= 0);
            mean += gap / (N - 1);
            squares += gap * gap / (N - 1);
        }
        CHECK_NEAR(mean, 1.0 / 50, 1e-4);
        /* A gamma distribution's variance over its mean squared is 1 / shape; 20,000 draws give it within some per
         * cent. */
        double ratio = (squares - mean * mean) / (mean * mean) * shapes[s];
        CHECK_NEAR(ratio, 1, 0.1);
    }
    static double again[N];
    mf_load_arrivals(again, N, 50, 100, 7);
    CHECK_MEM(at, again, sizeof at);
}

/* ---- from records to figures ---- */

static void make_record(mf_bench_record *r, double start, double ttft, double gap, int pieces, int64_t output_len)
{
    *r = (mf_bench_record){ .ok = true, .start_s = start, .ttft_s = ttft, .prompt_len = 10, .output_len = output_len };
    r->itls_s = mf_alloc_array((size_t)pieces, sizeof *r->itls_s);
    for (int i = 1; i < pieces; i++) {
        r->itls_s[r->num_itls++] = gap;
    }
    r->latency_s = ttft + gap * (pieces - 1);
}

TEST(figures_are_vllms)
{
    mf_bench_record r[4];
    make_record(&r[0], 1000, 0.5, 0.25, 5, 5);   /* 1.5 s */
    make_record(&r[1], 1000.5, 0.25, 0.5, 4, 4); /* 1.75 s */
    make_record(&r[2], 1001, 0.125, 0, 1, 1);    /* one token: no TPOT */
    r[3] = (mf_bench_record){ .start_s = 1001, .prompt_len = 10, .output_len = -1, .error = "down" };
    mf_bench_metrics_options o = { 0 };
    mf_error err = { 0 };
    CHECK_OK(mf_parse_percentile_metrics("ttft,e2el", &o, &err), err);
    CHECK_OK(mf_parse_percentiles("25,99.9", &o, &err), err);
    CHECK_OK(mf_parse_goodput("ttft:400,tpot:600", &o, &err), err);
    mf_bench_metrics m;
    CHECK_OK(mf_bench_metrics_make(r, 4, 2.5, NULL, &o, &m, &err), err);
    CHECK_EQ(m.completed, 3);
    CHECK_EQ(m.failed, 1);
    CHECK_EQ(m.total_input, 30);
    CHECK_EQ(m.total_output, 10);
    CHECK_NEAR(m.request_throughput, 3 / 2.5, 1e-12);
    CHECK_NEAR(m.request_goodput, 2 / 2.5, 1e-12); /* the first one's TTFT is 500 ms */
    CHECK_NEAR(m.output_throughput, 4, 1e-12);
    CHECK_NEAR(m.total_throughput, 16, 1e-12);
    CHECK_NEAR(m.latency_ms[MF_LATENCY_TTFT].median, 250, 1e-9);
    CHECK_NEAR(m.latency_ms[MF_LATENCY_TTFT].percentile[0], 187.5, 1e-9);
    CHECK_NEAR(m.latency_ms[MF_LATENCY_TPOT].mean, (250.0 + 500) / 2, 1e-9);
    CHECK_NEAR(m.latency_ms[MF_LATENCY_ITL].mean, (4 * 250.0 + 3 * 500) / 7, 1e-9);
    CHECK_NEAR(m.latency_ms[MF_LATENCY_E2EL].mean, (1500 + 1750 + 125) / 3.0, 1e-9);
    /* Pieces at 0.5 0.75 1 1.25 1.5, at 0.75 1.25 1.75 2.25, at 1.125: three, six and one in seconds 0, 1, 2. */
    CHECK_NEAR(m.max_output_tokens_per_s, 6, 0);
    CHECK_EQ(m.max_concurrent_requests, 3);
    for (int i = 0; i < 4; i++) {
        mf_bench_record_close(&r[i]);
    }
}

TEST(figures_of_nothing_are_zero)
{
    mf_bench_record r = { .error = "down" };
    mf_bench_metrics_options o = { .shown = { true, true, true, true } };
    mf_bench_metrics m;
    mf_error err = { 0 };
    CHECK_OK(mf_bench_metrics_make(&r, 1, 1, NULL, &o, &m, &err), err);
    CHECK_EQ(m.completed, 0);
    CHECK_NEAR(m.latency_ms[MF_LATENCY_TTFT].p99, 0, 0);
}

TEST(the_table_is_fifty_wide_with_vllms_rows)
{
    mf_bench_metrics m = { .completed = 20,
                           .failed = 1,
                           .total_input = 1280,
                           .total_output = 320,
                           .duration_s = 3.14159,
                           .request_throughput = 6.366,
                           .output_throughput = 101.86,
                           .total_throughput = 509.3,
                           .max_output_tokens_per_s = 120,
                           .max_concurrent_requests = 8 };
    mf_bench_metrics_options o = { .shown = { [MF_LATENCY_TPOT] = true },
                                   .percentiles = { 99, 99.9 },
                                   .num_percentiles = 2 };
    mf_bench_setting s = { .max_concurrency = 4, .request_rate = INFINITY };
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    mf_bench_table_print(out, &m, &s, &o);
    fclose(out);
    CHECK_STR(text, "============ Serving Benchmark Result ============\n"
                    "Successful requests:                     20        \n"
                    "Failed requests:                         1         \n"
                    "Maximum request concurrency:             4         \n"
                    "Benchmark duration (s):                  3.14      \n"
                    "Total input tokens:                      1280      \n"
                    "Total generated tokens:                  320       \n"
                    "Request throughput (req/s):              6.37      \n"
                    "Output token throughput (tok/s):         101.86    \n"
                    "Peak output token throughput (tok/s):    120.00    \n"
                    "Peak concurrent requests:                8.00      \n"
                    "Total token throughput (tok/s):          509.30    \n"
                    "-----Time per Output Token (excl. 1st token)------\n"
                    "Mean TPOT (ms):                          0.00      \n"
                    "Median TPOT (ms):                        0.00      \n"
                    "P99 TPOT (ms):                           0.00      \n"
                    "P99.9 TPOT (ms):                         0.00      \n"
                    "==================================================\n");
    free(text);
}

TEST(lists_in_flags_are_read_whole_or_refused)
{
    mf_bench_metrics_options o;
    mf_error err = { 0 };
    static const char *const metrics[] = { "", "ttft,", "ttft,x", "TTFT" },
                             *const percents[] = { "", "50,", "101", "-1", "x", "50 99" },
                             *const goodput[] = {
                                 "", "ttft", "ttft:", "ttft:0", "itl:5", "ttft:5,", "ttft:inf", "e2e:5"
                             };
    for (size_t i = 0; i < sizeof metrics / sizeof *metrics; i++) {
        CHECK(mf_parse_percentile_metrics(metrics[i], &o, &err) == MF_ERR_INVALID);
    }
    for (size_t i = 0; i < sizeof percents / sizeof *percents; i++) {
        CHECK(mf_parse_percentiles(percents[i], &o, &err) == MF_ERR_INVALID);
    }
    for (size_t i = 0; i < sizeof goodput / sizeof *goodput; i++) {
        CHECK(mf_parse_goodput(goodput[i], &o, &err) == MF_ERR_INVALID);
    }
    CHECK_HAS(err.message, "--goodput");
}
