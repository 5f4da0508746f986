/* bench_compare.c - see bench_compare.h. */
#include "cli/bench_compare.h"

#include <math.h>
#include <string.h>

#include "cli/stats.h"

enum { MAX_VALUES = 4096 };

bool mf_compare_metric(const mf_result_group *ga, const mf_result_group *gb, const mf_metric *metric, mf_compared *out)
{
    static double a[MAX_VALUES], b[MAX_VALUES];
    size_t na = mf_result_values(ga, metric, a, MAX_VALUES), nb = mf_result_values(gb, metric, b, MAX_VALUES);
    if (na == 0 || nb == 0) {
        return false;
    }
    *out = (mf_compared){ .metric = metric, .a = mf_mean(a, na), .b = mf_mean(b, nb), .verdict = "same" };
    out->change = out->a != 0 ? (out->b - out->a) / fabs(out->a) : out->b == 0 ? 0 : out->b > 0 ? INFINITY : -INFINITY;
    mf_interval interval;
    out->has_interval = out->a != 0 && mf_difference_interval(a, na, b, nb, &interval);
    bool differs = fabs(out->change) >= MF_COMPARE_NOTHING;
    if (out->has_interval) {
        out->low = interval.low / fabs(out->a);
        out->high = interval.high / fabs(out->a);
        differs = out->low > 0 || out->high < 0;
    }
    if (differs) {
        out->verdict = (out->change > 0) == metric->more_is_better ? "better" : "worse";
    }
    return true;
}

static bool is_worse_than(const mf_compared *c, double threshold)
{
    return !isnan(threshold) && strcmp(c->verdict, "worse") == 0 && fabs(c->change) > threshold;
}

static json_t *compared_json(const mf_compared *c)
{
    json_t *change = isfinite(c->change) ? json_real(c->change) : json_null();
    return json_pack("{s:s, s:f, s:f, s:o, s:o, s:o, s:s}", "metric", c->metric->key, "a", c->a, "b", c->b, "change",
                     change, "low", c->has_interval ? json_real(c->low) : json_null(), "high",
                     c->has_interval ? json_real(c->high) : json_null(), "verdict", c->verdict);
}

static void print_compared(FILE *out, const mf_compared *c)
{
    char interval[40] = "-";
    if (c->has_interval) {
        snprintf(interval, sizeof interval, "%+.1f .. %+.1f %%", c->low * 100, c->high * 100);
    }
    fprintf(out, "%-28s %12.2f %12.2f %+9.1f %%  %-20s %s\n", c->metric->title, c->a, c->b, c->change * 100, interval,
            c->verdict);
}

static void print_heading(FILE *out, const mf_result_group *a, const mf_result_group *b, const mf_compare_options *o)
{
    if (a->kind == MF_RESULT_SERVE) {
        if (a->concurrency > 0) {
            fprintf(out, "concurrency %g, ", a->concurrency);
        }
        if (isfinite(a->rate)) {
            fprintf(out, "%g requests/s, ", a->rate);
        }
    }
    fprintf(out, "rounds %d and %d: A = %s%s%s, B = %s%s%s\n", a->num_runs, b->num_runs, o->name_a,
            *a->variant ? " " : "", a->variant, o->name_b, *b->variant ? " " : "", b->variant);
    fprintf(out, "%-28s %12s %12s %11s  %-20s\n", "metric", "A", "B", "change", "95 % interval");
}

static mf_status compare_groups(const mf_result_group *a, const mf_result_group *b, const mf_compare_options *o,
                                FILE *out, json_t *list, bool *worse, mf_error *err)
{
    char why[160];
    if (!o->force && mf_result_workloads_differ(a, b, why, sizeof why)) {
        mf_status status = mf_fail(err, MF_ERR_INVALID, "the workloads differ: %s", why);
        mf_error_advise(err, "--force compares them all the same");
        return status;
    }
    json_t *metrics = list ? json_array() : NULL;
    if (!list) {
        print_heading(out, a, b, o);
    }
    size_t count;
    const mf_metric *table = mf_metrics_of(a->kind, &count);
    for (size_t i = 0; i < count; i++) {
        mf_compared c;
        if (!mf_compare_metric(a, b, &table[i], &c)) {
            continue;
        }
        *worse = *worse || is_worse_than(&c, o->threshold);
        if (list) {
            json_array_append_new(metrics, compared_json(&c));
        } else {
            print_compared(out, &c);
        }
    }
    if (list) {
        json_array_append_new(list,
                              json_pack("{s:o, s:o, s:s, s:s, s:i, s:i, s:o}", "max_concurrency",
                                        a->concurrency > 0 ? json_real(a->concurrency) : json_null(), "request_rate",
                                        isfinite(a->rate) ? json_real(a->rate) : json_string("inf"), "variant_a",
                                        a->variant, "variant_b", b->variant, "rounds_a", a->num_runs, "rounds_b",
                                        b->num_runs, "metrics", metrics));
    } else {
        fputc('\n', out);
    }
    return MF_OK;
}

mf_status mf_compare(const mf_result_set *a, const mf_result_set *b, const mf_compare_options *o, FILE *out,
                     json_t *document, bool *worse, mf_error *err)
{
    json_t *list = document ? json_array() : NULL;
    int32_t num_compared = 0;
    *worse = false;
    mf_status status = MF_OK;
    for (int32_t i = 0; i < a->num_groups && status == MF_OK; i++) {
        const mf_result_group *g = &a->groups[i];
        if (b) {
            /* A name of a variant matters when both files have several. */
            bool named = a->num_variants > 1 && b->num_variants > 1;
            const mf_result_group *like = mf_result_set_find(b, named ? g->variant : NULL, g->concurrency, g->rate);
            bool takes_part = named || strcmp(g->variant, a->variants[0]) == 0;
            if (like && takes_part) {
                num_compared++;
                status = compare_groups(g, like, o, out, list, worse, err);
            }
            continue;
        }
        for (int32_t v = 1; v < a->num_variants && strcmp(g->variant, a->variants[0]) == 0 && status == MF_OK; v++) {
            const mf_result_group *like = mf_result_set_find(a, a->variants[v], g->concurrency, g->rate);
            if (like) {
                num_compared++;
                status = compare_groups(g, like, o, out, list, worse, err);
            }
        }
    }
    if (status == MF_OK && num_compared == 0) {
        status = mf_fail(err, MF_ERR_INVALID,
                         b ? "the two have no concurrency and rate in common"
                           : "expected two files, or one with several variants");
    }
    if (status == MF_OK && document) {
        json_object_set_new(document, "a", json_string(o->name_a));
        json_object_set_new(document, "b", json_string(o->name_b));
        json_object_set_new(document, "threshold", isnan(o->threshold) ? json_null() : json_real(o->threshold));
        json_object_set_new(document, "worse", json_boolean(*worse));
        json_object_set(document, "groups", list);
    }
    json_decref(list);
    return status;
}
