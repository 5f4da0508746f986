/* metrics_write.c - the text exposition, format 0.0.4: one block per metric, HELP and TYPE before its series. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "server/metrics.h"
#include "server/metrics_impl.h"

/* The labels of every metric of the engine and the server. */
#define COMMON "model_name=\"%s\",engine=\"0\""

typedef struct writer {
    const mf_metrics *m;
    mf_buffer *out;
    mf_status status; /* the first failure: later writes do nothing */
} writer;

static void keep(writer *w, mf_status status)
{
    w->status = w->status == MF_OK ? status : w->status;
}

#define WRITE(w, ...)                                                                                                  \
    do {                                                                                                               \
        if ((w)->status == MF_OK) {                                                                                    \
            keep((w), mf_buffer_printf((w)->out, __VA_ARGS__));                                                        \
        }                                                                                                              \
    } while (0)

/* The shortest text that reads back as the same number; whole numbers with ".0", as the usual client libraries write
 * bounds. */
static const char *number_text(double value, char *out, size_t size)
{
    if (isnan(value) || isinf(value)) {
        snprintf(out, size, "%s", isnan(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf");
        return out;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, size, "%.*g", digits, value);
        if (strtod(out, NULL) == value) {
            break;
        }
    }
    if (!strpbrk(out, ".e")) {
        size_t n = strlen(out);
        snprintf(out + n, size - n, ".0");
    }
    return out;
}

static void block(writer *w, const char *name, const char *type, const char *help)
{
    WRITE(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void whole(writer *w, const char *name, const char *type, const char *help, int64_t value)
{
    block(w, name, type, help);
    WRITE(w, "%s{" COMMON "} %" PRId64 "\n", name, w->m->is.model_name, value);
}

static void real(writer *w, const char *name, const char *type, const char *help, double value)
{
    char text[40];
    block(w, name, type, help);
    WRITE(w, "%s{" COMMON "} %s\n", name, w->m->is.model_name, number_text(value, text, sizeof text));
}

static void labelled(writer *w, const char *name, const char *help, const char *label, const char *const *values,
                     const int64_t *counts, int32_t n)
{
    block(w, name, "counter", help);
    for (int32_t i = 0; i < n; i++) {
        WRITE(w, "%s{" COMMON ",%s=\"%s\"} %" PRId64 "\n", name, w->m->is.model_name, label, values[i], counts[i]);
    }
}

static void histogram(writer *w, mf_histogram_id id)
{
    const mf_histogram *h = &w->m->histograms[id];
    const char *name = mf_histogram_names[id].name;
    char text[40];
    int64_t count = 0;
    block(w, name, "histogram", mf_histogram_names[id].help);
    for (int32_t i = 0; i <= h->num_bounds; i++) {
        count += h->counts[i];
        number_text(i < h->num_bounds ? h->bounds[i] : INFINITY, text, sizeof text);
        WRITE(w, "%s_bucket{" COMMON ",le=\"%s\"} %" PRId64 "\n", name, w->m->is.model_name, text, count);
    }
    WRITE(w, "%s_sum{" COMMON "} %s\n", name, w->m->is.model_name, number_text(h->sum, text, sizeof text));
    WRITE(w, "%s_count{" COMMON "} %" PRId64 "\n", name, w->m->is.model_name, count);
}

static void requests(writer *w, const mf_metrics_now *now)
{
    static const mf_service_snapshot nothing;
    const mf_service_snapshot *snapshot = now->snapshot ? now->snapshot : &nothing;
    const mf_engine_stats *s = &snapshot->stats;
    double usage = s->kv_blocks_total > 0 ? (double)s->kv_blocks_used / s->kv_blocks_total : 0;
    whole(w, "vllm:num_requests_running", "gauge", "Requests in the engine's batches.", s->num_running);
    whole(w, "vllm:num_requests_waiting", "gauge", "Requests that wait to be processed.", snapshot->queued_reqs);
    real(w, "vllm:kv_cache_usage_perc", "gauge", "Share of KV blocks in use; 1 is all.", usage);
    whole(w, "vllm:prompt_tokens_total", "counter", "Prompt tokens of requests that began.", s->prompt_tokens);
    whole(w, "vllm:prompt_tokens_cached_total", "counter", "Prompt tokens taken from the prefix cache.",
          s->prefix_cache_hits);
    whole(w, "vllm:generation_tokens_total", "counter", "Tokens made.", s->generation_tokens);
    whole(w, "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
          s->prefix_cache_queries);
    whole(w, "vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
          s->prefix_cache_hits);
    whole(w, "vllm:num_preemptions_total", "counter", "Requests sent back to the queue for want of KV blocks.",
          s->num_preemptions);
    labelled(w, "vllm:request_success_total", "Requests that ended, by reason.", "finished_reason",
             mf_finished_reason_labels, w->m->finished, MF_NUM_FINISHED_REASONS);
    labelled(w, "vllm:admission_rejections_total", "Requests that were not taken, by reason.", "reason",
             mf_reject_labels, w->m->rejected, MF_NUM_REJECTS);
    for (int id = 0; id < MF_NUM_HISTOGRAMS; id++) {
        histogram(w, (mf_histogram_id)id);
    }

    const int64_t blocks[] = { s->kv_blocks_free, s->kv_blocks_used, s->kv_blocks_cached };
    static const char *const states[] = { "free", "used", "cached" };
    block(w, "moefuse:kv_blocks", "gauge", "KV blocks by state; their sum is constant.");
    for (int i = 0; i < 3; i++) {
        WRITE(w, "moefuse:kv_blocks{" COMMON ",state=\"%s\"} %" PRId64 "\n", w->m->is.model_name, states[i], blocks[i]);
    }
    whole(w, "moefuse:kv_invariant_violations_total", "counter", "Times that the KV blocks did not add up.",
          s->num_invariant_violations);
    labelled(w, "moefuse:requests_cancelled_total", "Requests that were cancelled, by cause.", "cause",
             mf_cancel_labels, w->m->cancelled, MF_NUM_CANCELS);
    whole(w, "moefuse:late_events_total", "counter", "Cancels of requests that had ended already.", s->num_late_events);
    whole(w, "moefuse:sequences_paused", "gauge", "Sequences that wait for a slow reader.", now->sequences_paused);
    real(w, "moefuse:heartbeat_age_seconds", "gauge", "Time since the engine's thread last went round its loop.",
         now->heartbeat_age_s);
}

static void expert_tokens(writer *w, const mf_engine_stats *stats)
{
    const mf_metrics *m = w->m;
    static const char name[] = "moefuse:expert_tokens_total";
    const mf_load_window all = { .slot = -1 };
    block(w, name, "counter", "Tokens sent to experts: routed ones by the gate, shared ones always.");
    for (int32_t row = 0; row < m->is.load.num_rows; row++) {
        int32_t layer = m->is.layer_ids[m->is.load.layer_rows[row]];
        int64_t sum = mf_expert_load_row(&m->is.load, stats, &all, row, m->is.row_counts);
        int64_t shared = stats ? stats->computed_tokens : 0;
        if (!m->is.per_expert) {
            WRITE(w, "%s{" COMMON ",layer=\"%d\",kind=\"routed\"} %" PRId64 "\n", name, m->is.model_name, layer, sum);
            WRITE(w, "%s{" COMMON ",layer=\"%d\",kind=\"shared\"} %" PRId64 "\n", name, m->is.model_name, layer,
                  shared * m->is.num_shared);
            continue;
        }
        /* In place of the sums, so that adding up a layer gives the same number either way. */
        for (int32_t e = 0; e < m->is.load.num_experts; e++) {
            WRITE(w, "%s{" COMMON ",layer=\"%d\",kind=\"routed\",expert=\"%d\"} %" PRId64 "\n", name, m->is.model_name,
                  layer, e, m->is.row_counts[e]);
        }
        for (int32_t e = 0; e < m->is.num_shared; e++) {
            WRITE(w, "%s{" COMMON ",layer=\"%d\",kind=\"shared\",expert=\"%d\"} %" PRId64 "\n", name, m->is.model_name,
                  layer, e, shared);
        }
    }
}

static void expert_ratio(writer *w, const mf_engine_stats *stats, const mf_load_window *window, const char *name,
                         const char *help, double (*ratio)(const int64_t *counts, int32_t num_experts))
{
    const mf_metrics *m = w->m;
    char text[40];
    block(w, name, "gauge", help);
    for (int32_t row = 0; row < m->is.load.num_rows; row++) {
        mf_expert_load_row(&m->is.load, stats, window, row, m->is.row_counts);
        WRITE(w, "%s{" COMMON ",layer=\"%d\"} %s\n", name, m->is.model_name,
              m->is.layer_ids[m->is.load.layer_rows[row]],
              number_text(ratio(m->is.row_counts, m->is.load.num_experts), text, sizeof text));
    }
}

static void experts(writer *w, const mf_engine_stats *stats)
{
    const mf_metrics *m = w->m;
    expert_tokens(w, stats);
    mf_load_window window = mf_expert_load_window(&m->is.load, stats, MF_EXPERT_LOAD_WINDOW_S, mf_now_ns());
    expert_ratio(w, stats, &window, "moefuse:expert_load_jain",
                 "Evenness of the last 60 s: 1 is even, 1 over the number of experts is all on one.", mf_load_jain);
    expert_ratio(w, stats, &window, "moefuse:expert_load_max_over_mean",
                 "The busiest expert's tokens over the mean of all, last 60 s.", mf_load_max_over_mean);
    block(w, "moefuse:bad_rows_total", "counter",
          "Rows whose router saw a NaN; the engine counts all layers together.");
    WRITE(w, "moefuse:bad_rows_total{" COMMON ",layer=\"all\"} %" PRId64 "\n", m->is.model_name,
          stats ? stats->num_bad_rows : 0);
    block(w, "moefuse:layer_mode", "gauge", "How the layer runs its shared expert.");
    for (int32_t row = 0; row < m->is.load.num_rows; row++) {
        int32_t layer = m->is.load.layer_rows[row];
        WRITE(w, "moefuse:layer_mode{" COMMON ",layer=\"%d\",mode=\"%s\"} 1\n", m->is.model_name,
              m->is.layer_ids[layer], m->is.layer_modes[layer]);
    }
}

static void server(writer *w, const mf_metrics_now *now)
{
    const mf_metrics *m = w->m;
    whole(w, "moefuse:log_lines_dropped_total", "counter", "Log lines that could not be written.",
          now->log_lines_dropped);
    whole(w, "moefuse:http_connections", "gauge", "Open connections.", now->http_connections);
    block(w, "moefuse:http_responses_total", "counter", "Answers by status.");
    for (int code = 0; code < MF_MAX_HTTP_STATUS; code++) {
        if (m->answered[code]) {
            WRITE(w, "moefuse:http_responses_total{" COMMON ",code=\"%d\"} %" PRId64 "\n", m->is.model_name, code,
                  m->answered[code]);
        }
    }
    block(w, "moefuse:build_info", "gauge", "What is running.");
    WRITE(w, "moefuse:build_info{" COMMON ",version=\"%s\",commit=\"%s\",isa=\"%s\",device=\"%s\"} 1\n",
          m->is.model_name, m->is.version, m->is.commit, m->is.isa, m->is.device);
}

/* The usual names bear no labels. */
static void process(writer *w)
{
    mf_process_numbers p;
    mf_process_stats_read(&w->m->process, &p);
    const struct {
        const char *name, *type, *help;
        double value;
        bool known;
    } rows[] = {
        { "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", (double)p.virtual_bytes,
          p.virtual_bytes >= 0 },
        { "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", (double)p.resident_bytes,
          p.resident_bytes >= 0 },
        { "process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", p.start_s,
          !isnan(p.start_s) },
        { "process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", p.cpu_s,
          !isnan(p.cpu_s) },
        { "process_open_fds", "gauge", "Number of open file descriptors.", (double)p.open_fds, p.open_fds >= 0 },
        { "process_max_fds", "gauge", "Maximum number of open file descriptors.", (double)p.max_fds, p.max_fds >= 0 },
    };
    char text[40];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        block(w, rows[i].name, rows[i].type, rows[i].help);
        if (rows[i].known) {
            WRITE(w, "%s %s\n", rows[i].name, number_text(rows[i].value, text, sizeof text));
        }
    }
}

mf_status mf_metrics_write(const mf_metrics *metrics, const mf_metrics_now *now, mf_buffer *out)
{
    writer w = { .m = metrics, .out = out };
    requests(&w, now);
    experts(&w, now->snapshot ? &now->snapshot->stats : NULL);
    server(&w, now);
    process(&w);
    return w.status;
}
