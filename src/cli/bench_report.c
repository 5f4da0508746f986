/* bench_report.c - what the report says: see bench_report.h.  The drawing is report_chart.c's, the frame
 * report_html.c's. */
#include "cli/bench_report.h"

#include <math.h>
#include <string.h>

#include "base/sys.h"
#include "cli/bench_compare.h"
#include "cli/report_chart.h"
#include "cli/stats.h"

enum { MAX_X = 64, MAX_ROUNDS_READ = 256, MAX_SERIES = 32 };

typedef struct report {
    mf_html html;
    const mf_result_set *set;
    double x[MAX_X];
    int32_t num_x;
    mf_chart_point *points; /* [num_groups] for one chart's series after the other */
} report;

static const json_t *about_of(const mf_result_group *g)
{
    return json_object_get(g->runs[0], "moefuse");
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static const char *variant_name(const char *variant)
{
    return *variant ? variant : "all runs";
}

/* ---- gathering ---- */

static bool x_before(double a, double b) /* "no limit" comes last */
{
    return (a > 0 ? a : INFINITY) < (b > 0 ? b : INFINITY);
}

static void gather_x(report *r)
{
    for (int32_t i = 0; i < r->set->num_groups; i++) {
        const mf_result_group *g = &r->set->groups[i];
        if (g->kind != MF_RESULT_SERVE) {
            continue;
        }
        int32_t at = 0;
        while (at < r->num_x && x_before(r->x[at], g->concurrency)) {
            at++;
        }
        if ((at < r->num_x && r->x[at] == g->concurrency) || r->num_x == MAX_X) {
            continue;
        }
        memmove(&r->x[at + 1], &r->x[at], (size_t)(r->num_x - at) * sizeof *r->x);
        r->x[at] = g->concurrency;
        r->num_x++;
    }
}

static bool point_of(const mf_result_group *g, const char *key, const char *other_key, mf_chart_point *out)
{
    double values[MAX_ROUNDS_READ];
    const mf_metric metric = { .key = key, .other_key = other_key };
    size_t n = mf_result_values(g, &metric, values, MAX_ROUNDS_READ);
    mf_sort_doubles(values, n);
    *out = (mf_chart_point){ .x = g->concurrency, .y = mf_percentile(values, n, 50) };
    out->low = n ? values[0] : 0;
    out->high = n ? values[n - 1] : 0;
    return n > 0;
}

/* Points of one variant, in order of x; the first rate of each concurrency. */
static int32_t points_of(const report *r, const char *variant, const char *key, const char *other_key,
                         mf_chart_point *points)
{
    int32_t n = 0;
    for (int32_t x = 0; x < r->num_x; x++) {
        for (int32_t i = 0; i < r->set->num_groups; i++) {
            const mf_result_group *g = &r->set->groups[i];
            if (g->kind == MF_RESULT_SERVE && g->concurrency == r->x[x] && strcmp(g->variant, variant) == 0) {
                n += point_of(g, key, other_key, &points[n]);
                break;
            }
        }
    }
    return n;
}

/* ---- parts ---- */

/* "20261129-104512" as a person writes it; anything else as it is. */
static void write_date(mf_html *h, const char *date)
{
    bool known = strlen(date) == 15 && date[8] == '-';
    for (int i = 0; known && i < 15; i++) {
        known = i == 8 || (date[i] >= '0' && date[i] <= '9');
    }
    if (known) {
        mf_html_raw(h, "%.4s-%.2s-%.2s %.2s:%.2s", date, date + 4, date + 6, date + 9, date + 11);
    } else {
        mf_html_text(h, date);
    }
}

static bool has_rounds(const report *r)
{
    for (int32_t i = 0; i < r->set->num_groups; i++) {
        if (r->set->groups[i].num_runs > 1) {
            return true;
        }
    }
    return false;
}

static void write_head(report *r, const char *title)
{
    mf_html *h = &r->html;
    const mf_result_group *g = &r->set->groups[0];
    const json_t *run = g->runs[0], *about = about_of(g);
    mf_html_begin(h, title);
    mf_html_raw(h, "<h1>");
    mf_html_text(h, title);
    mf_html_raw(h, "</h1>\n<p class=\"soft\">Serving benchmark");
    if (*text_of(run, "date")) {
        mf_html_raw(h, ", ");
        write_date(h, text_of(run, "date"));
    }
    if (*text_of(about, "cpu")) {
        mf_html_raw(h, "; ");
        mf_html_text(h, text_of(about, "cpu"));
        mf_html_raw(h, ", %lld cores, ", (long long)json_integer_value(json_object_get(about, "cores")));
        mf_html_text(h, text_of(about, "isa"));
    }
    if (*text_of(about, "version")) {
        mf_html_raw(h, "; moefuse ");
        mf_html_text(h, text_of(about, "version"));
        mf_html_raw(h, " at ");
        mf_html_text(h, text_of(about, "commit"));
    }
    mf_html_raw(h, ".</p>\n");
}

static void tile(mf_html *h, double value, const char *unit, const char *what, double x)
{
    mf_html_raw(h, "<div class=\"tile\"><b>");
    mf_html_number(h, value);
    mf_html_raw(h, " <small>%s</small></b><span>%s", unit, what);
    if (x > 0) {
        mf_html_raw(h, ", %g at once", x);
    }
    mf_html_raw(h, "</span></div>\n");
}

/* The first variant's best figures, and where they were met. */
static void write_tiles(report *r)
{
    static const struct {
        const char *key, *unit, *what;
        bool most;
    } shown[] = { { "output_throughput", "tok/s", "most output", true },
                  { "request_throughput", "req/s", "most requests", true },
                  { "median_ttft_ms", "ms", "least median TTFT", false },
                  { "median_itl_ms", "ms", "least median ITL", false } };
    mf_html_raw(&r->html, "<div class=\"tiles\">\n");
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        int32_t n = points_of(r, r->set->variants[0], shown[i].key, NULL, r->points), best = 0;
        for (int32_t p = 1; p < n; p++) {
            bool better = shown[i].most ? r->points[p].y > r->points[best].y : r->points[p].y < r->points[best].y;
            best = better ? p : best;
        }
        if (n > 0) {
            tile(&r->html, r->points[best].y, shown[i].unit, shown[i].what, r->points[best].x);
        }
    }
    mf_html_raw(&r->html, "</div>\n");
}

static void write_legend(report *r)
{
    mf_html *h = &r->html;
    mf_html_raw(h, "<ul class=\"legend\">\n");
    for (int32_t v = 0; v < r->set->num_variants; v++) {
        mf_html_raw(h, "<li>");
        mf_chart_key(h, v % MF_CHART_COLORS, false);
        mf_html_text(h, variant_name(r->set->variants[v]));
        mf_html_raw(h, ", median</li>\n<li>");
        mf_chart_key(h, v % MF_CHART_COLORS, true);
        mf_html_raw(h, "P99</li>\n");
    }
    mf_html_raw(h, "</ul>\n");
}

static void write_line_chart(report *r, const char *title, const char *unit, const char *note,
                             const char *const keys[2], const char *const other_keys[2])
{
    mf_chart_series series[MAX_SERIES];
    char names[MAX_SERIES][96];
    int32_t num_series = 0, used = 0;
    for (int32_t v = 0; v < r->set->num_variants; v++) {
        for (int k = 0; k < 2 && keys[k] && num_series < MAX_SERIES; k++) {
            int32_t n = points_of(r, r->set->variants[v], keys[k], other_keys[k], r->points + used);
            if (n == 0) {
                continue;
            }
            snprintf(names[num_series], sizeof names[num_series], "%.64s%s", variant_name(r->set->variants[v]),
                     !keys[1] ? ""
                     : k      ? ", P99"
                              : ", median");
            series[num_series] = (mf_chart_series){ .name = names[num_series],
                                                    .color = v % MF_CHART_COLORS,
                                                    .dashed = k == 1,
                                                    .points = r->points + used,
                                                    .num_points = n };
            num_series++;
            used += n;
        }
    }
    if (num_series > 0) {
        mf_line_chart chart = { .title = title,
                                .unit = unit,
                                .note = note,
                                .x_values = r->x,
                                .num_x = r->num_x,
                                .series = series,
                                .num_series = num_series };
        mf_chart_lines(&r->html, &chart);
    }
}

static const mf_metric *metric_named(const char *key)
{
    size_t count;
    const mf_metric *table = mf_metrics_of(MF_RESULT_SERVE, &count);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(table[i].key, key) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

static mf_status write_changes(report *r, const char *title, const char *key, mf_error *err)
{
    mf_change *changes = mf_alloc_array((size_t)r->set->num_groups, sizeof *changes);
    if (!changes) {
        return mf_fail(err, MF_ERR_NOMEM, "report: out of memory");
    }
    int32_t n = 0;
    for (int32_t x = 0; x < r->num_x; x++) {
        for (int32_t i = 0; i < r->set->num_groups; i++) {
            const mf_result_group *g = &r->set->groups[i];
            const mf_result_group *first = mf_result_set_find(r->set, r->set->variants[0], g->concurrency, g->rate);
            mf_compared c;
            if (g->concurrency != r->x[x] || !first || first == g ||
                !mf_compare_metric(first, g, metric_named(key), &c)) {
                continue;
            }
            int32_t color = 0;
            while (strcmp(r->set->variants[color], g->variant) != 0) {
                color++;
            }
            changes[n++] = (mf_change){ .x = g->concurrency,
                                        .change = c.change,
                                        .low = c.low,
                                        .high = c.high,
                                        .has_interval = c.has_interval,
                                        .color = color % MF_CHART_COLORS,
                                        .name = g->variant };
        }
    }
    if (n > 0) {
        char note[160];
        snprintf(note, sizeof note, "against %.64s; bars are 95 %% intervals over rounds",
                 variant_name(r->set->variants[0]));
        mf_chart_changes(&r->html, title, note, changes, n);
    }
    mf_free(changes);
    return MF_OK;
}

static void cell(mf_html *h, const mf_result_group *g, const char *key, const char *other_key)
{
    mf_chart_point p;
    mf_html_raw(h, "<td>");
    if (point_of(g, key, other_key, &p)) {
        mf_html_number(h, p.y);
    } else {
        mf_html_raw(h, "-");
    }
    mf_html_raw(h, "</td>");
}

static double failed_of(const mf_result_group *g)
{
    double sum = 0;
    for (int32_t i = 0; i < g->num_runs; i++) {
        double failed = mf_result_number(g->runs[i], "failed", NULL);
        sum += isnan(failed) ? 0 : failed;
    }
    return sum;
}

static void row_start(mf_html *h, const mf_result_group *g, bool first)
{
    char at[32] = "no limit";
    if (g->concurrency > 0) {
        snprintf(at, sizeof at, "%g", g->concurrency);
    }
    mf_html_raw(h, "<tr%s><td>%s</td><td class=\"t\">", first ? " class=\"first\"" : "", at);
    mf_html_text(h, variant_name(g->variant));
    mf_html_raw(h, "</td>");
}

static void write_table(report *r)
{
    static const struct {
        const char *key, *other_key, *title;
    } columns[] = { { "request_throughput", NULL, "req/s" },
                    { "output_throughput", NULL, "output<br>tok/s" },
                    { "median_ttft_ms", NULL, "TTFT<br>median" },
                    { "p99_ttft_ms", NULL, "TTFT<br>P99" },
                    { "median_tpot_ms", NULL, "TPOT<br>median" },
                    { "p99_tpot_ms", NULL, "TPOT<br>P99" },
                    { "median_itl_ms", NULL, "ITL<br>median" },
                    { "p99_itl_ms", NULL, "ITL<br>P99" },
                    { "median_e2el_ms", "median_e2e_latency_ms", "E2EL<br>median" } };
    mf_html *h = &r->html;
    mf_html_raw(h, "<h2>Figures</h2>\n<p class=\"soft\">Medians over rounds; latencies in milliseconds.</p>\n<div "
                   "class=\"scroll\"><table>"
                   "<thead><tr><th>at once</th><th class=\"t\">variant</th><th>rounds</th>");
    for (size_t c = 0; c < sizeof columns / sizeof *columns; c++) {
        mf_html_raw(h, "<th>%s</th>", columns[c].title);
    }
    mf_html_raw(h, "<th>failed</th></tr></thead><tbody>\n");
    for (int32_t x = 0; x < r->num_x; x++) {
        bool first = true;
        for (int32_t i = 0; i < r->set->num_groups; i++) {
            const mf_result_group *g = &r->set->groups[i];
            if (g->kind != MF_RESULT_SERVE || g->concurrency != r->x[x]) {
                continue;
            }
            row_start(h, g, first && x > 0);
            mf_html_raw(h, "<td>%d</td>", g->num_runs);
            for (size_t c = 0; c < sizeof columns / sizeof *columns; c++) {
                cell(h, g, columns[c].key, columns[c].other_key);
            }
            mf_html_raw(h, "<td>%.0f</td></tr>\n", failed_of(g));
            first = false;
        }
    }
    mf_html_raw(h, "</tbody></table></div>\n");
}

static void write_change_table(report *r)
{
    static const char *const keys[] = { "output_throughput", "median_ttft_ms", "median_tpot_ms", "median_itl_ms" };
    mf_html *h = &r->html;
    mf_html_raw(h, "<h2>Against ");
    mf_html_text(h, variant_name(r->set->variants[0]));
    mf_html_raw(h, "</h2>\n<p class=\"soft\">Change of the mean over rounds with its 95 %% interval (Welch). Better "
                   "and worse are said where the "
                   "interval excludes zero.</p>\n<div class=\"scroll\"><table><thead><tr><th>at once</th><th "
                   "class=\"t\">variant</th>"
                   "<th class=\"t\">metric</th><th>");
    mf_html_text(h, variant_name(r->set->variants[0]));
    mf_html_raw(h, "</th><th>variant</th><th>change</th><th>95 %% interval</th><th "
                   "class=\"t\">verdict</th></tr>"
                   "</thead><tbody>\n");
    for (int32_t x = 0; x < r->num_x; x++) {
        bool first_row = true;
        for (int32_t i = 0; i < r->set->num_groups; i++) {
            const mf_result_group *g = &r->set->groups[i];
            const mf_result_group *first = mf_result_set_find(r->set, r->set->variants[0], g->concurrency, g->rate);
            for (size_t k = 0; k < 4 && g->concurrency == r->x[x] && first && first != g; k++) {
                mf_compared c;
                if (!mf_compare_metric(first, g, metric_named(keys[k]), &c)) {
                    continue;
                }
                row_start(h, g, first_row && x > 0);
                first_row = false;
                mf_html_raw(h, "<td class=\"t\">");
                mf_html_text(h, c.metric->title);
                mf_html_raw(h, "</td><td>");
                mf_html_number(h, c.a);
                mf_html_raw(h, "</td><td>");
                mf_html_number(h, c.b);
                mf_html_raw(h, "</td><td>%+.1f %%</td><td>", c.change * 100);
                if (c.has_interval) {
                    mf_html_raw(h, "%+.1f .. %+.1f %%", c.low * 100, c.high * 100);
                } else {
                    mf_html_raw(h, "-");
                }
                mf_html_raw(h, "</td><td class=\"t %s\">%s</td></tr>\n", c.verdict, c.verdict);
            }
        }
    }
    mf_html_raw(h, "</tbody></table></div>\n");
}

/* ---- expert load ---- */

static double *counts_of(const json_t *list)
{
    size_t n = json_array_size(list);
    double *out = mf_alloc_array(n + 1, sizeof *out);
    for (size_t i = 0; out && i < n; i++) {
        out[i] = json_number_value(json_array_get(list, i));
    }
    return out;
}

static const json_t *find_load(const report *r, const char **variant)
{
    for (int32_t i = 0; i < r->set->num_groups; i++) {
        const mf_result_group *g = &r->set->groups[i];
        for (int32_t n = g->num_runs; n-- > 0;) {
            const json_t *load = json_object_get(json_object_get(g->runs[n], "moefuse"), "expert_load");
            if (json_array_size(json_object_get(load, "layers")) > 0) {
                *variant = g->variant;
                return load;
            }
        }
    }
    return NULL;
}

static mf_status write_load(report *r, mf_error *err)
{
    const char *variant = "";
    const json_t *load = find_load(r, &variant), *layers = json_object_get(load, "layers");
    size_t n = json_array_size(layers);
    if (n == 0 || n > 4096) {
        return MF_OK;
    }
    mf_heat_row *rows = mf_alloc_array(n, sizeof *rows);
    mf_status status = rows ? MF_OK : MF_ERR_NOMEM;
    for (size_t i = 0; i < n && status == MF_OK; i++) {
        const json_t *layer = json_array_get(layers, i), *routed = json_object_get(layer, "routed"),
                     *shared = json_object_get(layer, "shared");
        size_t num_routed = json_array_size(routed), num_shared = json_array_size(shared);
        rows[i] = (mf_heat_row){ .layer = json_integer_value(json_object_get(layer, "layer")),
                                 .mode = text_of(layer, "mode"),
                                 .routed = counts_of(routed),
                                 .shared = counts_of(shared),
                                 .num_routed = (int32_t)(num_routed < 4096 ? num_routed : 4096),
                                 .num_shared = (int32_t)(num_shared < 256 ? num_shared : 256),
                                 .jain = json_number_value(json_object_get(layer, "jain")) };
        status = rows[i].routed && rows[i].shared ? MF_OK : MF_ERR_NOMEM;
    }
    if (status == MF_OK) {
        mf_html *h = &r->html;
        mf_html_raw(h, "<h2>Expert load</h2>\n<p class=\"soft\">Tokens that each routed expert of each MoE layer took, "
                       "as the server counted them");
        if (*variant) {
            mf_html_raw(h, " (");
            mf_html_text(h, variant);
            mf_html_raw(h, ")");
        }
        mf_html_raw(h, ". Jain's index is 1 for an even load.</p>\n");
        mf_chart_heat(h, rows, (int32_t)n);
    }
    for (size_t i = 0; rows && i < n; i++) {
        mf_free((double *)(uintptr_t)rows[i].routed);
        mf_free((double *)(uintptr_t)rows[i].shared);
    }
    mf_free(rows);
    return status == MF_OK ? MF_OK : mf_fail(err, status, "report: out of memory");
}

/* ---- machine and flags ---- */

static void key_value(mf_html *h, const char *key, const json_t *value)
{
    if (!value || json_is_null(value) || json_is_object(value) || json_is_array(value)) {
        return;
    }
    mf_html_raw(h, "<tr><th>");
    mf_html_text(h, key);
    mf_html_raw(h, "</th><td>");
    if (json_is_string(value)) {
        mf_html_text(h, json_string_value(value));
    } else if (json_is_integer(value)) {
        mf_html_raw(h, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        mf_html_raw(h, "%.10g", json_real_value(value));
    } else {
        mf_html_raw(h, "%s", json_is_true(value) ? "yes" : "no");
    }
    mf_html_raw(h, "</td></tr>\n");
}

static void write_setting(report *r)
{
    static const char *const of_run[] = {
        "date",       "model_id",           "tokenizer_id",       "backend", "label", "num_prompts", "request_rate",
        "burstiness", "total_input_tokens", "total_output_tokens"
    };
    static const char *const of_build[] = { "version", "commit", "machine", "cpu", "cores", "isa", "device" };
    mf_html *h = &r->html;
    const json_t *run = r->set->groups[0].runs[0], *about = json_object_get(run, "moefuse");
    mf_html_raw(h, "<h2>Machine and flags</h2>\n<p class=\"soft\">Of the first run.</p>\n<div class=\"scroll\"><table "
                   "class=\"kv\"><tbody>\n");
    for (size_t i = 0; i < sizeof of_build / sizeof *of_build; i++) {
        key_value(h, of_build[i], json_object_get(about, of_build[i]));
    }
    for (size_t i = 0; i < sizeof of_run / sizeof *of_run; i++) {
        key_value(h, of_run[i], json_object_get(run, of_run[i]));
    }
    const char *key;
    json_t *value, *flags = json_object_get(about, "flags");
    json_object_foreach(flags, key, value)
    {
        key_value(h, key, value);
    }
    mf_html_raw(h, "</tbody></table></div>\n");
}

static mf_status write_charts(report *r, mf_error *err)
{
    static const char *const none[2] = { NULL, NULL };
    static const char *const e2el_other[2] = { "median_e2e_latency_ms", "p99_e2e_latency_ms" };
    static const char *const ttft[2] = { "median_ttft_ms", "p99_ttft_ms" },
                             *const itl[2] = { "median_itl_ms", "p99_itl_ms" },
                             *const e2el[2] = { "median_e2el_ms", "p99_e2el_ms" },
                             *const output[2] = { "output_throughput", NULL };
    const char *note = has_rounds(r) ? "bars span the rounds" : NULL;
    mf_html_raw(&r->html, "<h2>Against concurrency</h2>\n");
    write_legend(r);
    mf_html_raw(&r->html, "<div class=\"grid\">\n");
    write_line_chart(r, "Time to first token", "ms", note, ttft, none);
    write_line_chart(r, "Inter-token latency", "ms", note, itl, none);
    write_line_chart(r, "Output throughput", "tok/s", note, output, none);
    write_line_chart(r, "End-to-end latency", "ms", note, e2el, e2el_other);
    if (r->set->num_variants > 1) {
        MF_TRY(write_changes(r, "Change of output throughput", "output_throughput", err));
        MF_TRY(write_changes(r, "Change of median inter-token latency", "median_itl_ms", err));
    }
    mf_html_raw(&r->html, "</div>\n");
    return MF_OK;
}

mf_status mf_report_make(const mf_result_set *set, const char *title, mf_buffer *out, mf_error *err)
{
    report r = { .html = { .out = out }, .set = set };
    gather_x(&r);
    if (r.num_x == 0) {
        return mf_fail(err, MF_ERR_INVALID,
                       "report: expected results of a serving benchmark; got those of latency or throughput");
    }
    r.points = mf_alloc_array((size_t)set->num_groups * 2 + 2, sizeof *r.points);
    if (!r.points) {
        return mf_fail(err, MF_ERR_NOMEM, "report: out of memory");
    }
    char heading[320];
    const char *model = text_of(set->groups[0].runs[0], "model_id"), *slash = strrchr(model, '/');
    snprintf(heading, sizeof heading, "%.300s",
             title               ? title
             : slash && slash[1] ? slash + 1
             : *model            ? model
                                 : "Serving benchmark");
    write_head(&r, heading);
    write_tiles(&r);
    mf_status status = write_charts(&r, err);
    if (status == MF_OK) {
        status = write_load(&r, err);
    }
    if (status == MF_OK) {
        write_table(&r);
        if (set->num_variants > 1) {
            write_change_table(&r);
        }
        write_setting(&r);
        mf_html_end(&r.html);
        status = r.html.status == MF_OK ? MF_OK : mf_fail(err, r.html.status, "report: out of memory");
    }
    mf_free(r.points);
    return status;
}
