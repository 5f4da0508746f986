/* metrics.h - counters, gauges and histograms under vLLM's names, and their text exposition.  Plain data of the I/O thread:
 * scraping asks nobody. */
#ifndef MF_SERVER_METRICS_H
#define MF_SERVER_METRICS_H

#include "base/buffer.h"
#include "server/service.h"

typedef struct mf_metrics mf_metrics;

typedef enum mf_histogram_id {
    MF_HIST_TTFT = 0, /* seconds */
    MF_HIST_INTER_TOKEN_LATENCY,
    MF_HIST_TIME_PER_OUTPUT_TOKEN, /* request_time_per_output_token_seconds */
    MF_HIST_E2E_LATENCY,
    MF_HIST_QUEUE_TIME,
    MF_HIST_INFERENCE_TIME,
    MF_HIST_PREFILL_TIME,
    MF_HIST_DECODE_TIME,
    MF_HIST_ITERATION_TOKENS,
    MF_HIST_PROMPT_TOKENS,
    MF_HIST_GENERATION_TOKENS,
    MF_HIST_PARAMS_MAX_TOKENS,
    MF_HIST_PARAMS_N,
    MF_NUM_HISTOGRAMS
} mf_histogram_id;

typedef enum mf_reject_reason { MF_REJECT_QUEUE_FULL = 0, MF_REJECT_TOKENS, MF_REJECT_DRAINING, MF_REJECT_LOADING, MF_NUM_REJECTS } mf_reject_reason;
typedef enum mf_cancel_cause { MF_CANCEL_DISCONNECT = 0, MF_CANCEL_SLOW_READER, MF_CANCEL_DEADLINE, MF_CANCEL_STOP, MF_CANCEL_SHUTDOWN, MF_NUM_CANCELS } mf_cancel_cause;

typedef struct mf_metrics_options {
    const char *model_name, *version, *commit, *isa, *device;
    int64_t max_model_len;   /* the last bucket of token counts */
    int32_t num_layers, num_experts, num_shared; /* of the expert counters; 0 = no MoE layer */
    const char *const *layer_modes; /* [num_layers] "slot", "overlap", "serial"; NULL for a dense layer */
    const int32_t *layer_ids;       /* [num_layers] */
    bool per_expert;
} mf_metrics_options;

/* Strings and arrays are copied.  Memory is taken here and bounded: see expert_load.h. */
mf_status mf_metrics_open(const mf_metrics_options *options, mf_metrics **out, mf_error *err);
void mf_metrics_close(mf_metrics **metrics);
/* What is only known once the model is loaded, for metrics that were opened before that.  Counters and latencies stay; the
 * histograms of token counts begin anew, since their buckets follow max_model_len.  On failure nothing has changed. */
mf_status mf_metrics_describe(mf_metrics *metrics, const mf_metrics_options *options, mf_error *err);

void mf_metrics_observe(mf_metrics *metrics, mf_histogram_id id, double value);
void mf_metrics_finished(mf_metrics *metrics, const char *finished_reason); /* "stop", "length", "abort", ... */
void mf_metrics_rejected(mf_metrics *metrics, mf_reject_reason reason);
void mf_metrics_cancelled(mf_metrics *metrics, mf_cancel_cause cause);
void mf_metrics_answered(mf_metrics *metrics, int http_status);

/* What changes from one scrape to the next and is not counted here. */
typedef struct mf_metrics_now {
    const mf_service_snapshot *snapshot; /* NULL while loading */
    int32_t http_connections, sequences_paused;
    int64_t log_lines_dropped;
    double heartbeat_age_s;
} mf_metrics_now;

/* Keeps a minute of expert counts, for the loads of the last 60 s; call it about once a second. */
void mf_metrics_tick(mf_metrics *metrics, const mf_service_snapshot *snapshot, int64_t now_ns);
/* Prometheus text 0.0.4. */
mf_status mf_metrics_write(const mf_metrics *metrics, const mf_metrics_now *now, mf_buffer *out);
/* The body of GET /v1/moe/expert-load for the last window_s seconds (at most 60; 0 = since the start); layer -1 = all.
 * MF_ERR_INVALID: `layer` is no MoE layer.  In the answer `window_s` is the window's real length, `shared` has one count per
 * shared expert (every token goes through each), and ratios are null while there is no load. */
mf_status mf_metrics_write_expert_load(const mf_metrics *metrics, const mf_service_snapshot *snapshot, int32_t window_s,
                                       int32_t layer, mf_buffer *out);

#endif
