/* bench_latency.c - `moefuse bench latency`: a batch of sequences from prompt to last token, again and again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "cli/bench_profile.h"

typedef struct latency_flags {
    mf_bench_common common;
    int64_t batch_size, num_iters, num_iters_warmup;
    bool profile;
} latency_flags;

/* One iteration's times.  Prefill ends when the last sequence has its first token; what is made after that is decoding.
 */
typedef struct iteration {
    double total_s, prefill_s, decode_s;
    double decode_tokens;
} iteration;

static const int percents[] = { 10, 25, 50, 75, 90, 99 };
enum { NUM_PERCENTS = sizeof percents / sizeof *percents };

static mf_status run_batch(const latency_flags *f, mf_bench_requests *requests, iteration *out, mf_error *err)
{
    mf_bench_tally tally = { 0 };
    mf_engine_reset_prefix_cache(requests->session->engine);
    double start = mf_now_s();
    for (int64_t i = 0; i < f->batch_size; i++) {
        MF_TRY(mf_bench_submit_next(requests, err));
    }
    while (tally.finished < f->batch_size) {
        MF_TRY(mf_bench_step(requests, &tally, err));
        if (mf_bench_interrupted()) {
            return mf_fail(err, MF_ERR_CANCELLED, "interrupted");
        }
    }
    double end = mf_now_s();
    out->total_s = end - start;
    out->prefill_s = tally.last_first_token_s - start;
    out->decode_s = end - tally.last_first_token_s;
    out->decode_tokens = (double)(tally.tokens - tally.tokens_at_last_first);
    return MF_OK;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Between the two nearest values, as numpy does it. */
static double percentile(const double *sorted, int64_t count, int percent)
{
    double place = (double)(count - 1) * percent / 100;
    int64_t below = (int64_t)place;
    double next = sorted[below + 1 < count ? below + 1 : below];
    return sorted[below] + (next - sorted[below]) * (place - (double)below);
}

static double median_of(double *values, int64_t count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return percentile(values, count, 50);
}

typedef struct figures {
    double average, percentile[NUM_PERCENTS], prefill_rate, decode_rate; /* tok/s, medians; decode 0: one token each */
} figures;

static mf_status evaluate(const latency_flags *f, const iteration *all, figures *out, mf_error *err)
{
    const int64_t n = f->num_iters;
    double *values = mf_alloc_array((size_t)n, sizeof *values);
    if (!values) {
        return mf_fail(err, MF_ERR_NOMEM, "bench: out of memory");
    }
    *out = (figures){ 0 };
    for (int64_t i = 0; i < n; i++) {
        values[i] = all[i].total_s;
        out->average += all[i].total_s / (double)n;
    }
    qsort(values, (size_t)n, sizeof *values, compare);
    for (int p = 0; p < NUM_PERCENTS; p++) {
        out->percentile[p] = percentile(values, n, percents[p]);
    }
    for (int64_t i = 0; i < n; i++) {
        values[i] = (double)(f->batch_size * f->common.input_len) / all[i].prefill_s;
    }
    out->prefill_rate = median_of(values, n);
    for (int64_t i = 0; i < n; i++) {
        values[i] = all[i].decode_tokens > 0 ? all[i].decode_tokens / all[i].decode_s : 0;
    }
    out->decode_rate = median_of(values, n);
    mf_free(values);
    return MF_OK;
}

static json_t *latency_json(const latency_flags *f, const mf_session *session, const iteration *all, const figures *r)
{
    json_t *latencies = json_array(), *by_percent = json_object();
    for (int64_t i = 0; i < f->num_iters; i++) {
        json_array_append_new(latencies, json_real(all[i].total_s));
    }
    for (int p = 0; p < NUM_PERCENTS; p++) {
        char key[8];
        snprintf(key, sizeof key, "%d", percents[p]);
        json_object_set_new(by_percent, key, json_real(r->percentile[p]));
    }
    json_t *about = mf_bench_about(session, &f->common);
    if (about) {
        json_object_set_new(json_object_get(about, "flags"), "batch_size", json_integer(f->batch_size));
        json_object_set_new(json_object_get(about, "flags"), "num_iters", json_integer(f->num_iters));
    }
    return json_pack("{s:s, s:f, s:o, s:o, s:f, s:f, s:o}", "model_id", f->common.model.model, "avg_latency",
                     r->average, "latencies", latencies, "percentiles", by_percent, "prefill_tokens_per_second",
                     r->prefill_rate, "decode_tokens_per_second", r->decode_rate, "moefuse", about);
}

static void print_figures(const latency_flags *f, const mf_session *session, const figures *r)
{
    printf("Avg latency: %g seconds\n", r->average);
    for (int p = 0; p < NUM_PERCENTS; p++) {
        printf("%d%% percentile latency: %g seconds\n", percents[p], r->percentile[p]);
    }
    printf("Prefill: %.1f tok/s (%lld sequences x %lld tokens, to the last first token)\n", r->prefill_rate,
           (long long)f->batch_size, (long long)f->common.input_len);
    if (r->decode_rate > 0) {
        printf("Decode: %.1f tok/s (after that)\n", r->decode_rate);
    }
    const int64_t launches = mf_model_step_launches(session->model), layers = session->config->num_layers;
    if (launches > 0) {
        printf("Launches: %lld per decode step, %.1f per layer\n", (long long)launches, (double)launches / (double)layers);
    }
}

static mf_status run(const latency_flags *f, mf_session *session, mf_error *err)
{
    mf_bench_requests requests;
    MF_TRY(mf_bench_requests_open(session, &f->common, &requests, err));
    iteration *all = mf_alloc_array((size_t)f->num_iters, sizeof *all);
    mf_status status = all ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "bench: out of memory");
    double told = mf_now_s();
    for (int64_t i = -f->num_iters_warmup; status == MF_OK && i < f->num_iters; i++) {
        iteration one = { 0 };
        status = run_batch(f, &requests, &one, err);
        if (status == MF_OK && i >= 0) {
            all[i] = one;
        }
        if (status == MF_OK && !f->common.model.no_progress && (mf_now_s() - told > 2 || i + 1 == f->num_iters)) {
            told = mf_now_s();
            fprintf(stderr, "%s %lld/%lld: %.3f s\n", i < 0 ? "warm-up" : "iteration",
                    (long long)(i < 0 ? i + f->num_iters_warmup + 1 : i + 1),
                    (long long)(i < 0 ? f->num_iters_warmup : f->num_iters), one.total_s);
        }
    }
    figures result = { 0 };
    mf_bench_profile profile = { 0 };
    if (status == MF_OK) {
        status = evaluate(f, all, &result, err);
    }
    if (status == MF_OK && f->profile) {
        status = mf_bench_profile_batch(&requests, f->batch_size, &profile, err);
    }
    if (status == MF_OK && !f->common.json) {
        print_figures(f, session, &result);
        if (f->profile) {
            mf_bench_profile_print(session, &profile);
        }
    }
    if (status == MF_OK && (f->common.json || f->common.output_json)) {
        json_t *document = latency_json(f, session, all, &result);
        if (document && f->profile) {
            json_object_set_new(document, "profile", mf_bench_profile_json(&profile));
        }
        status = mf_bench_write_json(&f->common, document, err);
    }
    mf_free(all);
    mf_bench_requests_close(&requests);
    return status;
}

int mf_bench_mode_latency(int argc, char **argv)
{
    latency_flags f = {
        .common = { .input_len = 32, .output_len = 128 }, .batch_size = 8, .num_iters = 30, .num_iters_warmup = 10
    };
    mf_flag rows[4 + MF_NUM_BENCH_COMMON_FLAGS] = {
        { "load", "--batch-size", NULL, MF_FLAG_INT, &f.batch_size, .min = 1, .max = 1024, .argument = "N",
          .help = "sequences that start together (8)" },
        { "load", "--num-iters", NULL, MF_FLAG_INT, &f.num_iters, .min = 1, .max = 100000, .argument = "N",
          .help = "batches that count (30)" },
        { "load", "--num-iters-warmup", NULL, MF_FLAG_INT, &f.num_iters_warmup, .min = 0, .max = 100000,
          .argument = "N", .help = "batches before them (10)" },
        { "output", "--profile", NULL, MF_FLAG_BOOL, &f.profile,
          .help = "one more batch, with the time of attention, gate, experts and the rest" },
    };
    const size_t num_rows = sizeof rows / sizeof *rows;
    mf_bench_common_fill(&f.common, rows + 4);
    const char *positionals[1];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, positionals, 1, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.common.model.help) {
        printf("usage: moefuse bench latency [MODEL] [flags]\n\nTimes a batch of sequences (--input-len 32, "
               "--output-len 128) from "
               "prompt to last token.  MODEL may be\na config.json alone, under any name: weights are then random.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    mf_session session;
    int exit_code;
    mf_status status = mf_bench_open(&f.common, positionals, num_positionals, f.batch_size, &session, &exit_code, &err);
    if (status != MF_OK) {
        mf_console_error(&err);
        return exit_code;
    }
    status = run(&f, &session, &err);
    mf_session_close(&session);
    if (status != MF_OK) {
        mf_console_error(&err);
        return status == MF_ERR_CANCELLED ? MF_EXIT_INTERRUPTED : MF_EXIT_FAILED;
    }
    return MF_EXIT_OK;
}
