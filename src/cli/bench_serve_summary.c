/* bench_serve_summary.c - the summary of several serving runs: see bench_serve.h. */
#include <math.h>
#include <string.h>

#include "cli/bench_compare.h"
#include "cli/bench_serve.h"
#include "cli/stats.h"

static double median_of(const mf_result_group *group, const char *key)
{
    double values[MF_MAX_ROUNDS];
    const mf_metric metric = { .key = key };
    size_t n = mf_result_values(group, &metric, values, MF_MAX_ROUNDS);
    mf_sort_doubles(values, n);
    return mf_percentile(values, n, 50);
}

static void print_group(FILE *out, const mf_result_group *g)
{
    char concurrency[24] = "-";
    if (g->concurrency > 0) {
        snprintf(concurrency, sizeof concurrency, "%g", g->concurrency);
    }
    fprintf(out, "%-11s %-24s %9.2f %11.2f %11.2f %11.2f %11.2f %11.2f %11.2f\n", concurrency,
            *g->variant ? g->variant : "-", median_of(g, "request_throughput"), median_of(g, "output_throughput"),
            median_of(g, "median_ttft_ms"), median_of(g, "p99_ttft_ms"), median_of(g, "median_tpot_ms"),
            median_of(g, "median_itl_ms"), median_of(g, "p99_itl_ms"));
}

/* A change between the first variant and another, of the metrics that say most. */
static void print_changes(FILE *out, const mf_result_set *set)
{
    static const char *const keys[] = { "output_throughput", "median_ttft_ms", "median_tpot_ms" };
    size_t count;
    const mf_metric *table = mf_metrics_of(MF_RESULT_SERVE, &count);
    fprintf(out, "\n%-11s %-28s %-24s %10s  %-22s %s\n", "concurrency", "metric", "against fused", "change",
            "95 % interval", "");
    for (int32_t i = 0; i < set->num_groups; i++) {
        const mf_result_group *g = &set->groups[i];
        const mf_result_group *first = mf_result_set_find(set, set->variants[0], g->concurrency, g->rate);
        for (size_t k = 0; k < count && first && first != g; k++) {
            bool shown = false;
            for (size_t j = 0; j < sizeof keys / sizeof *keys; j++) {
                shown = shown || strcmp(table[k].key, keys[j]) == 0;
            }
            mf_compared c;
            if (!shown || !mf_compare_metric(first, g, &table[k], &c)) {
                continue;
            }
            char interval[40] = "-", concurrency[24] = "-";
            if (c.has_interval) {
                snprintf(interval, sizeof interval, "%+.1f .. %+.1f %%", c.low * 100, c.high * 100);
            }
            if (g->concurrency > 0) {
                snprintf(concurrency, sizeof concurrency, "%g", g->concurrency);
            }
            fprintf(out, "%-11s %-28s %-24s %+8.1f %%  %-22s %s\n", concurrency, c.metric->title, g->variant,
                    c.change * 100, interval, c.verdict);
        }
    }
}

void mf_serve_summary_print(FILE *out, const json_t *results)
{
    mf_result_set set;
    json_t *list = json_copy((json_t *)(uintptr_t)results);
    if (!list || mf_result_set_make(list, "results", &set, NULL) != MF_OK) {
        return;
    }
    fprintf(out, "%-11s %-24s %9s %11s %11s %11s %11s %11s %11s\n", "concurrency", "variant", "req/s", "out tok/s",
            "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "ITL p50 ms", "ITL p99 ms");
    for (int32_t i = 0; i < set.num_groups; i++) {
        print_group(out, &set.groups[i]);
    }
    if (set.num_variants > 1) {
        print_changes(out, &set);
    }
    mf_result_set_close(&set);
}
