/* bench_result.c - see bench_result.h. */
#include "cli/bench_result.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "cli/stats.h"

const char *const mf_latency_keys[MF_NUM_LATENCIES] = { "ttft", "tpot", "itl", "e2el" };
static const char *const names[MF_NUM_LATENCIES] = { "TTFT", "TPOT", "ITL", "E2EL" };
static const char *const headings[MF_NUM_LATENCIES] = { "Time to First Token",
                                                        "Time per Output Token (excl. 1st token)",
                                                        "Inter-token Latency", "End-to-end Latency" };

/* ---- flags' texts ---- */

static int find_latency(const char *text, size_t n)
{
    for (int i = 0; i < MF_NUM_LATENCIES; i++) {
        if (strlen(mf_latency_keys[i]) == n && memcmp(mf_latency_keys[i], text, n) == 0) {
            return i;
        }
    }
    return -1;
}

mf_status mf_parse_percentile_metrics(const char *text, mf_bench_metrics_options *o, mf_error *err)
{
    memset(o->shown, 0, sizeof o->shown);
    for (const char *p = text;; p++) {
        size_t n = strcspn(p, ",");
        int found = find_latency(p, n);
        if (found < 0) {
            return mf_fail(err, MF_ERR_INVALID, "--percentile-metrics: expected ttft, tpot, itl, e2el; got \"%.64s\"",
                           text);
        }
        o->shown[found] = true;
        p += n;
        if (!*p) {
            return MF_OK;
        }
    }
}

mf_status mf_parse_percentiles(const char *text, mf_bench_metrics_options *o, mf_error *err)
{
    o->num_percentiles = 0;
    for (const char *p = text;; p++) {
        char *end = NULL;
        double value = strtod(p, &end);
        if (end == p || (*end && *end != ',') || !(value >= 0 && value <= 100) ||
            o->num_percentiles == MF_MAX_PERCENTILES) {
            return mf_fail(err, MF_ERR_INVALID,
                           "--metric-percentiles: expected up to %d numbers in 0..100, as 50,99; got \"%.64s\"",
                           MF_MAX_PERCENTILES, text);
        }
        o->percentiles[o->num_percentiles++] = value;
        p = end;
        if (!*p) {
            return MF_OK;
        }
    }
}

mf_status mf_parse_goodput(const char *text, mf_bench_metrics_options *o, mf_error *err)
{
    for (const char *p = text;; p++) {
        size_t n = strcspn(p, ":");
        int found = find_latency(p, n);
        char *end = NULL;
        double value = p[n] ? strtod(p + n + 1, &end) : 0;
        if (found < 0 || found == MF_LATENCY_ITL || !p[n] || end == p + n + 1 || (*end && *end != ',') ||
            !(value > 0) || isinf(value)) {
            return mf_fail(err, MF_ERR_INVALID, "--goodput: expected ttft:MS, tpot:MS or e2el:MS; got \"%.64s\"", text);
        }
        o->goodput_ms[found] = value;
        o->has_goodput = true;
        p = end;
        if (!*p) {
            return MF_OK;
        }
    }
}

/* ---- figures ---- */

static mf_status settle_output_len(mf_bench_record *r, const mf_tokenizer *tok, mf_error *err)
{
    if (!r->ok || r->output_len >= 0) {
        return MF_OK;
    }
    r->output_len = (int64_t)r->num_itls + 1;
    if (tok) {
        mf_ids ids = { 0 };
        MF_TRY(mf_tokenizer_encode(tok, mf_buffer_text(&r->text), r->text.size, 0, &ids, err));
        r->output_len = (int64_t)ids.size;
        mf_ids_close(&ids);
    }
    return MF_OK;
}

/* Seconds are counted from the first start.  A request is in every second that it touches, as vLLM's client has it. */
static mf_status count_peaks(const mf_bench_record *records, int64_t count, mf_bench_metrics *m, mf_error *err)
{
    double first = INFINITY, last = 0;
    for (int64_t i = 0; i < count; i++) {
        const mf_bench_record *r = &records[i];
        if (r->ok) {
            first = r->start_s < first ? r->start_s : first;
            last = r->start_s + r->latency_s > last ? r->start_s + r->latency_s : last;
        }
    }
    if (!isfinite(first)) {
        return MF_OK;
    }
    size_t seconds = (size_t)ceil(last - first) + 1;
    int64_t *tokens = mf_alloc_array(seconds, sizeof *tokens), *active = mf_alloc_array(seconds, sizeof *active);
    if (!tokens || !active) {
        mf_free(tokens);
        mf_free(active);
        return mf_fail(err, MF_ERR_NOMEM, "bench: out of memory");
    }
    for (int64_t i = 0; i < count; i++) {
        const mf_bench_record *r = &records[i];
        if (!r->ok) {
            continue;
        }
        double at = r->start_s - first + r->ttft_s;
        for (size_t j = 0; j <= r->num_itls; j++) {
            size_t second = (size_t)at;
            tokens[second < seconds ? second : seconds - 1]++;
            at += j < r->num_itls ? r->itls_s[j] : 0;
        }
        size_t end = (size_t)(r->start_s - first + r->latency_s);
        for (size_t s = (size_t)(r->start_s - first); s <= end && s < seconds; s++) {
            active[s]++;
        }
    }
    for (size_t s = 0; s < seconds; s++) {
        m->max_output_tokens_per_s =
            (double)tokens[s] > m->max_output_tokens_per_s ? (double)tokens[s] : m->max_output_tokens_per_s;
        m->max_concurrent_requests = active[s] > m->max_concurrent_requests ? active[s] : m->max_concurrent_requests;
    }
    mf_free(tokens);
    mf_free(active);
    return MF_OK;
}

static double tpot_of(const mf_bench_record *r)
{
    return r->output_len > 1 ? (r->latency_s - r->ttft_s) / (double)(r->output_len - 1) : 0;
}

static bool is_good(const mf_bench_record *r, const mf_bench_metrics_options *o)
{
    const double values[MF_NUM_LATENCIES] = { r->ttft_s, tpot_of(r), 0, r->latency_s };
    for (int i = 0; i < MF_NUM_LATENCIES; i++) {
        if (o->goodput_ms[i] > 0 && values[i] * 1e3 > o->goodput_ms[i]) {
            return false;
        }
    }
    return r->ok;
}

/* values has room for every piece; returns how many it then holds. */
static size_t collect(const mf_bench_record *records, int64_t count, int which, double *values)
{
    size_t n = 0;
    for (int64_t i = 0; i < count; i++) {
        const mf_bench_record *r = &records[i];
        if (!r->ok) {
            continue;
        }
        if (which == MF_LATENCY_TTFT) {
            values[n++] = r->ttft_s * 1e3;
        } else if (which == MF_LATENCY_E2EL) {
            values[n++] = r->latency_s * 1e3;
        } else if (which == MF_LATENCY_TPOT && r->output_len > 1) {
            values[n++] = tpot_of(r) * 1e3;
        }
        for (size_t j = 0; which == MF_LATENCY_ITL && j < r->num_itls; j++) {
            values[n++] = r->itls_s[j] * 1e3;
        }
    }
    return n;
}

mf_status mf_bench_metrics_make(mf_bench_record *records, int64_t count, double duration_s, const mf_tokenizer *tok,
                                const mf_bench_metrics_options *o, mf_bench_metrics *m, mf_error *err)
{
    *m = (mf_bench_metrics){ .duration_s = duration_s };
    size_t room = (size_t)count;
    int64_t good = 0;
    for (int64_t i = 0; i < count; i++) {
        mf_bench_record *r = &records[i];
        MF_TRY(settle_output_len(r, tok, err));
        m->completed += r->ok;
        m->failed += !r->ok;
        m->total_input += r->ok ? r->prompt_len : 0;
        m->total_output += r->ok ? r->output_len : 0;
        good += is_good(r, o);
        room += r->num_itls;
    }
    double duration = duration_s > 0 ? duration_s : 1e-9;
    m->request_throughput = (double)m->completed / duration;
    m->request_goodput = (double)good / duration;
    m->output_throughput = (double)m->total_output / duration;
    m->total_throughput = (double)(m->total_input + m->total_output) / duration;
    MF_TRY(count_peaks(records, count, m, err));
    double *values = mf_alloc_array(room, sizeof *values);
    if (!values) {
        return mf_fail(err, MF_ERR_NOMEM, "bench: out of memory");
    }
    for (int which = 0; which < MF_NUM_LATENCIES; which++) {
        size_t n = collect(records, count, which, values);
        m->latency_ms[which].mean = mf_mean(values, n);
        m->latency_ms[which].std = mf_std(values, n);
        mf_sort_doubles(values, n);
        m->latency_ms[which].median = mf_percentile(values, n, 50);
        m->latency_ms[which].p99 = mf_percentile(values, n, 99);
        for (int32_t p = 0; p < o->num_percentiles; p++) {
            m->latency_ms[which].percentile[p] = mf_percentile(values, n, o->percentiles[p]);
        }
    }
    mf_free(values);
    return MF_OK;
}

/* ---- table ---- */

enum { TABLE_WIDTH = 50 };

static void heading(FILE *out, const char *text, char fill)
{
    char line[TABLE_WIDTH + 1];
    size_t n = strlen(text),
           left = n < TABLE_WIDTH ? (TABLE_WIDTH - n) / 2 : 0; /* Python's center() puts the odd one right */
    memset(line, fill, TABLE_WIDTH);
    line[TABLE_WIDTH] = '\0';
    memcpy(line + left, text, n < TABLE_WIDTH ? n : TABLE_WIDTH);
    fprintf(out, "%s\n", line);
}

static void row_count(FILE *out, const char *name, int64_t value)
{
    fprintf(out, "%-40s %-10lld\n", name, (long long)value);
}

static void row(FILE *out, const char *name, double value)
{
    fprintf(out, "%-40s %-10.2f\n", name, value);
}

void mf_bench_table_print(FILE *out, const mf_bench_metrics *m, const mf_bench_setting *s,
                          const mf_bench_metrics_options *o)
{
    heading(out, " Serving Benchmark Result ", '=');
    row_count(out, "Successful requests:", m->completed);
    row_count(out, "Failed requests:", m->failed);
    if (s->max_concurrency > 0) {
        row_count(out, "Maximum request concurrency:", s->max_concurrency);
    }
    if (isfinite(s->request_rate)) {
        row(out, "Request rate configured (RPS):", s->request_rate);
    }
    row(out, "Benchmark duration (s):", m->duration_s);
    row_count(out, "Total input tokens:", m->total_input);
    row_count(out, "Total generated tokens:", m->total_output);
    row(out, "Request throughput (req/s):", m->request_throughput);
    if (o->has_goodput) {
        row(out, "Request goodput (req/s):", m->request_goodput);
    }
    row(out, "Output token throughput (tok/s):", m->output_throughput);
    row(out, "Peak output token throughput (tok/s):", m->max_output_tokens_per_s);
    row(out, "Peak concurrent requests:", (double)m->max_concurrent_requests);
    row(out, "Total token throughput (tok/s):", m->total_throughput);
    for (int i = 0; i < MF_NUM_LATENCIES; i++) {
        if (!o->shown[i]) {
            continue;
        }
        char name[64];
        heading(out, headings[i], '-');
        snprintf(name, sizeof name, "Mean %s (ms):", names[i]);
        row(out, name, m->latency_ms[i].mean);
        snprintf(name, sizeof name, "Median %s (ms):", names[i]);
        row(out, name, m->latency_ms[i].median);
        for (int32_t p = 0; p < o->num_percentiles; p++) {
            snprintf(name, sizeof name, "P%g %s (ms):", o->percentiles[p], names[i]);
            row(out, name, m->latency_ms[i].percentile[p]);
        }
    }
    for (int i = 0; i < TABLE_WIDTH; i++) {
        fputc('=', out);
    }
    fputc('\n', out);
}

/* ---- JSON ---- */

static void set(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value);
}

static void set_latencies(json_t *d, const mf_bench_metrics *m, const mf_bench_metrics_options *o)
{
    char key[64];
    for (int i = 0; i < MF_NUM_LATENCIES; i++) {
        const char *name = mf_latency_keys[i];
        snprintf(key, sizeof key, "mean_%s_ms", name);
        set(d, key, json_real(m->latency_ms[i].mean));
        snprintf(key, sizeof key, "median_%s_ms", name);
        set(d, key, json_real(m->latency_ms[i].median));
        snprintf(key, sizeof key, "std_%s_ms", name);
        set(d, key, json_real(m->latency_ms[i].std));
        for (int32_t p = 0; p < o->num_percentiles; p++) {
            snprintf(key, sizeof key, "p%g_%s_ms", o->percentiles[p], name);
            set(d, key, json_real(m->latency_ms[i].percentile[p]));
        }
        snprintf(key, sizeof key, "p99_%s_ms", name); /* reports draw it, asked for or not */
        set(d, key, json_real(m->latency_ms[i].p99));
    }
}

static void set_details(json_t *d, const mf_bench_record *records, int64_t count)
{
    json_t *inputs = json_array(), *outputs = json_array(), *ttfts = json_array(), *itls = json_array(),
           *starts = json_array(), *texts = json_array(), *errors = json_array();
    for (int64_t i = 0; i < count; i++) {
        const mf_bench_record *r = &records[i];
        json_t *gaps = json_array();
        for (size_t j = 0; j < r->num_itls; j++) {
            json_array_append_new(gaps, json_real(r->itls_s[j]));
        }
        json_array_append_new(inputs, json_integer(r->prompt_len));
        json_array_append_new(outputs, json_integer(r->ok ? r->output_len : 0));
        json_array_append_new(ttfts, json_real(r->ttft_s));
        json_array_append_new(itls, gaps);
        json_array_append_new(starts, json_real(r->start_s));
        json_t *text = json_stringn(mf_buffer_text(&r->text), r->text.size);
        json_array_append_new(texts, text ? text : json_string(""));
        json_array_append_new(errors, json_string(r->error));
    }
    set(d, "input_lens", inputs);
    set(d, "output_lens", outputs);
    set(d, "ttfts", ttfts);
    set(d, "itls", itls);
    set(d, "start_times", starts);
    set(d, "generated_texts", texts);
    set(d, "errors", errors);
}

json_t *mf_bench_result_json(const mf_bench_metrics *m, const mf_bench_setting *s, const mf_bench_metrics_options *o,
                             const mf_bench_record *records, bool with_details, const char *date)
{
    json_t *d = json_object();
    if (!d) {
        return NULL;
    }
    set(d, "date", json_string(date));
    set(d, "endpoint_type", json_string(s->endpoint_type));
    set(d, "backend", json_string(s->backend));
    set(d, "label", s->label ? json_string(s->label) : json_null());
    set(d, "model_id", json_string(s->model_id));
    set(d, "tokenizer_id", s->tokenizer_id ? json_string(s->tokenizer_id) : json_null());
    set(d, "num_prompts", json_integer(s->num_prompts));
    set(d, "request_rate", isfinite(s->request_rate) ? json_real(s->request_rate) : json_string("inf"));
    set(d, "burstiness", json_real(s->burstiness));
    set(d, "max_concurrency", s->max_concurrency > 0 ? json_integer(s->max_concurrency) : json_null());
    set(d, "duration", json_real(m->duration_s));
    set(d, "completed", json_integer(m->completed));
    set(d, "failed", json_integer(m->failed));
    set(d, "total_input_tokens", json_integer(m->total_input));
    set(d, "total_output_tokens", json_integer(m->total_output));
    set(d, "request_throughput", json_real(m->request_throughput));
    set(d, "request_goodput", o->has_goodput ? json_real(m->request_goodput) : json_null());
    set(d, "output_throughput", json_real(m->output_throughput));
    set(d, "total_token_throughput", json_real(m->total_throughput));
    set(d, "max_output_tokens_per_s", json_real(m->max_output_tokens_per_s));
    set(d, "max_concurrent_requests", json_integer(m->max_concurrent_requests));
    set_latencies(d, m, o);
    if (with_details) {
        set_details(d, records, s->num_prompts);
    }
    return d;
}
