/* result_set.c - see result_set.h. */
#include "cli/result_set.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/sys.h"
#include "cli/jsonl.h"

static const mf_metric serve_metrics[] = {
    { "request_throughput", "Request throughput (req/s)", true, NULL },
    { "request_goodput", "Request goodput (req/s)", true, NULL },
    { "output_throughput", "Output throughput (tok/s)", true, NULL },
    { "total_token_throughput", "Total throughput (tok/s)", true, "total_throughput" },
    { "mean_ttft_ms", "Mean TTFT (ms)", false, NULL },
    { "median_ttft_ms", "Median TTFT (ms)", false, NULL },
    { "p99_ttft_ms", "P99 TTFT (ms)", false, NULL },
    { "mean_tpot_ms", "Mean TPOT (ms)", false, NULL },
    { "median_tpot_ms", "Median TPOT (ms)", false, NULL },
    { "p99_tpot_ms", "P99 TPOT (ms)", false, NULL },
    { "mean_itl_ms", "Mean ITL (ms)", false, NULL },
    { "median_itl_ms", "Median ITL (ms)", false, NULL },
    { "p99_itl_ms", "P99 ITL (ms)", false, NULL },
    { "mean_e2el_ms", "Mean E2EL (ms)", false, "mean_e2e_latency_ms" },
    { "median_e2el_ms", "Median E2EL (ms)", false, "median_e2e_latency_ms" },
    { "p99_e2el_ms", "P99 E2EL (ms)", false, "p99_e2e_latency_ms" },
};
static const mf_metric latency_metrics[] = {
    { "avg_latency", "Average latency (s)", false, NULL },
    { "prefill_tokens_per_second", "Prefill (tok/s)", true, NULL },
    { "decode_tokens_per_second", "Decode (tok/s)", true, NULL },
};
static const mf_metric throughput_metrics[] = {
    { "requests_per_second", "Requests (1/s)", true, NULL },
    { "tokens_per_second", "Total tokens (tok/s)", true, NULL },
    { "output_tokens_per_second", "Output tokens (tok/s)", true, NULL },
};

const mf_metric *mf_metrics_of(mf_result_kind kind, size_t *count)
{
    switch (kind) {
    case MF_RESULT_LATENCY:
        *count = sizeof latency_metrics / sizeof *latency_metrics;
        return latency_metrics;
    case MF_RESULT_THROUGHPUT:
        *count = sizeof throughput_metrics / sizeof *throughput_metrics;
        return throughput_metrics;
    default:
        *count = sizeof serve_metrics / sizeof *serve_metrics;
        return serve_metrics;
    }
}

double mf_result_number(const json_t *run, const char *key, const char *other_key)
{
    const json_t *value = json_object_get(run, key);
    if (!json_is_number(value) && other_key) {
        value = json_object_get(run, other_key);
    }
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static bool kind_of(const json_t *run, mf_result_kind *kind)
{
    if (json_is_number(json_object_get(run, "request_throughput"))) {
        *kind = MF_RESULT_SERVE;
    } else if (json_is_number(json_object_get(run, "avg_latency"))) {
        *kind = MF_RESULT_LATENCY;
    } else if (json_is_number(json_object_get(run, "requests_per_second"))) {
        *kind = MF_RESULT_THROUGHPUT;
    } else {
        return false;
    }
    return true;
}

static const char *variant_of(const json_t *run)
{
    const char *named = json_string_value(json_object_get(run, "_variant"));
    if (named) {
        return named;
    }
    const json_t *fusion = json_object_get(json_object_get(run, "moefuse"), "fusion");
    const char *name = json_string_value(json_object_get(fusion, "variant"));
    return name ? name : "";
}

static double rate_of(const json_t *run)
{
    double rate = mf_result_number(run, "request_rate", NULL);
    return isnan(rate) ? INFINITY : rate;
}

static double concurrency_of(const json_t *run)
{
    double most = mf_result_number(run, "max_concurrency", NULL);
    return isnan(most) ? 0 : most;
}

const mf_result_group *mf_result_set_find(const mf_result_set *set, const char *variant, double concurrency,
                                          double rate)
{
    for (int32_t i = 0; i < set->num_groups; i++) {
        const mf_result_group *g = &set->groups[i];
        if ((!variant || strcmp(g->variant, variant) == 0) && g->concurrency == concurrency && g->rate == rate) {
            return g;
        }
    }
    return NULL;
}

static int32_t variant_index(const mf_result_set *set, const char *name)
{
    for (int32_t i = 0; i < set->num_variants; i++) {
        if (strcmp(set->variants[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

/* Insertion keeps runs of one setting in the file's order: few groups, and the order is part of a report's bytes. */
static void sort_groups(mf_result_set *set)
{
    for (int32_t i = 1; i < set->num_groups; i++) {
        mf_result_group g = set->groups[i];
        int32_t place = i, v = variant_index(set, g.variant);
        for (; place > 0; place--) {
            const mf_result_group *before = &set->groups[place - 1];
            int32_t w = variant_index(set, before->variant);
            bool later = w > v || (w == v && (before->concurrency > g.concurrency ||
                                              (before->concurrency == g.concurrency && before->rate > g.rate)));
            if (!later) {
                break;
            }
            set->groups[place] = *before;
        }
        set->groups[place] = g;
    }
}

static mf_status add_run(mf_result_set *set, const json_t *run, size_t count, const char *name, mf_error *err)
{
    mf_result_kind kind;
    if (!kind_of(run, &kind)) {
        return mf_fail(err, MF_ERR_FORMAT, "%.400s: expected results of a serving, latency or throughput benchmark",
                       name);
    }
    const char *variant = variant_of(run);
    if (variant_index(set, variant) < 0) {
        if (set->num_variants == (int32_t)(sizeof set->variants / sizeof *set->variants)) {
            return mf_fail(err, MF_ERR_LIMIT, "%.400s: more than 16 variants", name);
        }
        set->variants[set->num_variants++] = variant;
    }
    mf_result_group *g = NULL;
    for (int32_t i = 0; i < set->num_groups && !g; i++) {
        mf_result_group *other = &set->groups[i];
        bool same = other->kind == kind && strcmp(other->variant, variant) == 0 &&
                    other->concurrency == concurrency_of(run) && other->rate == rate_of(run);
        g = same ? other : NULL;
    }
    if (!g) {
        g = &set->groups[set->num_groups++];
        *g = (mf_result_group){
            .kind = kind, .variant = variant, .concurrency = concurrency_of(run), .rate = rate_of(run)
        };
        g->runs = mf_alloc_array(count, sizeof *g->runs);
        if (!g->runs) {
            return mf_fail(err, MF_ERR_NOMEM, "results: out of memory");
        }
    }
    g->runs[g->num_runs++] = run;
    return MF_OK;
}

mf_status mf_result_set_make(json_t *documents, const char *name, mf_result_set *out, mf_error *err)
{
    *out = (mf_result_set){ .documents = documents };
    size_t count = json_array_size(documents);
    mf_status status = MF_OK;
    if (count == 0 || count > 10000) {
        status = mf_fail(err, MF_ERR_FORMAT, "%.400s: expected 1 to 10000 results; got %zu", name, count);
    } else {
        out->groups = mf_alloc_array(count, sizeof *out->groups);
        status = out->groups ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "results: out of memory");
    }
    for (size_t i = 0; status == MF_OK && i < count; i++) {
        status = add_run(out, json_array_get(documents, i), count, name, err);
    }
    if (status != MF_OK) {
        mf_result_set_close(out);
        return status;
    }
    sort_groups(out);
    return MF_OK;
}

/* Python writes numbers that JSON has not: outside strings, Infinity becomes "inf" and NaN becomes "". */
static void replace_python_numbers(char *text, size_t size)
{
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        if (in_string) {
            i += text[i] == '\\';
            in_string = i < size && text[i] != '"';
        } else if (text[i] == '"') {
            in_string = true;
        } else if (size - i >= 9 && memcmp(text + i, "-Infinity", 9) == 0) {
            memcpy(text + i, "\"-inf\"   ", 9);
            i += 8;
        } else if (size - i >= 8 && memcmp(text + i, "Infinity", 8) == 0) {
            memcpy(text + i, "\"inf\"   ", 8);
            i += 7;
        } else if (size - i >= 3 && memcmp(text + i, "NaN", 3) == 0) {
            memcpy(text + i, "\"\" ", 3);
            i += 2;
        }
    }
}

/* Results of several files are told apart by label, or by the file's name where they say nothing of themselves. */
static void name_variant(json_t *run, const char *path, bool alone)
{
    char name[160];
    const char *variant = variant_of(run), *label = json_string_value(json_object_get(run, "label"));
    const char *slash = strrchr(path, '/');
    if (label && *label) {
        snprintf(name, sizeof name, "%.64s%s%.80s", label, *variant ? ", " : "", variant);
    } else if (!*variant && !alone) {
        snprintf(name, sizeof name, "%.128s", slash ? slash + 1 : path);
    } else {
        return;
    }
    json_t *text = json_string(name);
    if (text) { /* NULL: a file's name that is not UTF-8, or cut within a character */
        json_object_set_new(run, "_variant", text);
    }
}

static mf_status load_documents(const char *path, bool alone, json_t *all, mf_error *err)
{
    mf_file file;
    MF_TRY(mf_file_open(path, false, MF_JSONL_MAX_BYTES, &file, err));
    char *text = mf_strndup((const char *)file.data, file.size);
    size_t size = file.size;
    mf_file_close(&file);
    if (!text) {
        return mf_fail(err, MF_ERR_NOMEM, "%.400s: out of memory", path);
    }
    replace_python_numbers(text, size);
    json_t *documents = NULL;
    mf_status status = mf_jsonl_parse(text, size, path, &documents, err);
    mf_free(text);
    mf_result_kind kind;
    for (size_t i = 0; status == MF_OK && i < json_array_size(documents); i++) {
        if (!kind_of(json_array_get(documents, i), &kind)) {
            status = mf_fail(err, MF_ERR_FORMAT,
                             "%.400s: entry %zu: expected results of a serving, latency or throughput benchmark", path,
                             i + 1);
        }
    }
    if (status == MF_OK && json_array_size(documents) == 0) {
        status = mf_fail(err, MF_ERR_FORMAT, "%.400s: expected benchmark results; got an empty file", path);
    }
    for (size_t i = 0; status == MF_OK && i < json_array_size(documents); i++) {
        name_variant(json_array_get(documents, i), path, alone);
    }
    if (status == MF_OK) {
        json_array_extend(all, documents);
    }
    json_decref(documents);
    return status;
}

mf_status mf_result_set_load(const char *const *paths, int32_t num_paths, mf_result_set *out, mf_error *err)
{
    *out = (mf_result_set){ 0 };
    json_t *all = json_array();
    if (!all) {
        return mf_fail(err, MF_ERR_NOMEM, "results: out of memory");
    }
    for (int32_t i = 0; i < num_paths; i++) {
        mf_status status = load_documents(paths[i], num_paths == 1, all, err);
        if (status != MF_OK) {
            json_decref(all);
            return status;
        }
    }
    return mf_result_set_make(all, num_paths == 1 ? paths[0] : "results", out, err);
}

void mf_result_set_close(mf_result_set *set)
{
    for (int32_t i = 0; set->groups && i < set->num_groups; i++) {
        mf_free(set->groups[i].runs);
    }
    mf_free(set->groups);
    json_decref(set->documents);
    *set = (mf_result_set){ 0 };
}

size_t mf_result_values(const mf_result_group *group, const mf_metric *metric, double *values, size_t capacity)
{
    size_t n = 0;
    for (int32_t i = 0; i < group->num_runs; i++) {
        const json_t *each =
            strcmp(metric->key, "avg_latency") == 0 ? json_object_get(group->runs[i], "latencies") : NULL;
        if (json_is_array(each) && json_array_size(each) > 0) {
            for (size_t j = 0; j < json_array_size(each) && n < capacity; j++) {
                values[n] = json_number_value(json_array_get(each, j));
                n++;
            }
            continue;
        }
        double value = mf_result_number(group->runs[i], metric->key, metric->other_key);
        if (!isnan(value) && n < capacity) {
            values[n++] = value;
        }
    }
    return n;
}

/* ---- workloads ---- */

static double prompts_of(const json_t *run)
{
    double n = mf_result_number(run, "num_prompts", NULL);
    double failed = mf_result_number(run, "failed", NULL);
    return !isnan(n) ? n : mf_result_number(run, "completed", "num_requests") + (isnan(failed) ? 0 : failed);
}

static bool apart(double a, double b, double tolerance)
{
    return !isnan(a) && !isnan(b) && fabs(a - b) > tolerance * fmax(fabs(a), fabs(b));
}

bool mf_result_workloads_differ(const mf_result_group *ga, const mf_result_group *gb, char *why, size_t size)
{
    const json_t *a = ga->runs[0], *b = gb->runs[0];
    if (ga->kind != gb->kind) {
        snprintf(why, size, "they come from different benchmarks");
        return true;
    }
    if (apart(prompts_of(a), prompts_of(b), 0)) {
        snprintf(why, size, "%g against %g prompts", prompts_of(a), prompts_of(b));
        return true;
    }
    /* Two tokenizers' copies, or answers that end by themselves, may differ a little; settings may not. */
    static const struct {
        const char *key, *name;
        double tolerance;
    } totals[] = { { "total_input_tokens", "input tokens", 0.01 },
                   { "total_output_tokens", "generated tokens", 0.05 },
                   { "total_num_tokens", "tokens", 0.01 } };
    for (size_t i = 0; i < sizeof totals / sizeof *totals; i++) {
        double x = mf_result_number(a, totals[i].key, NULL), y = mf_result_number(b, totals[i].key, NULL);
        if (apart(x, y, totals[i].tolerance)) {
            snprintf(why, size, "%.0f against %.0f %s", x, y, totals[i].name);
            return true;
        }
    }
    static const char *const flags[] = { "input_len", "output_len", "batch_size" };
    const json_t *fa = json_object_get(json_object_get(a, "moefuse"), "flags"),
                 *fb = json_object_get(json_object_get(b, "moefuse"), "flags");
    for (size_t i = 0; ga->kind == MF_RESULT_LATENCY && i < sizeof flags / sizeof *flags; i++) {
        double x = mf_result_number(fa, flags[i], NULL), y = mf_result_number(fb, flags[i], NULL);
        if (apart(x, y, 0)) {
            snprintf(why, size, "%s %g against %g", flags[i], x, y);
            return true;
        }
    }
    return false;
}
