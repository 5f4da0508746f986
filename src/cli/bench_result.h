/* bench_result.h - from requests' records to the figures, table and JSON that vLLM's client prints and saves. */
#ifndef MF_CLI_BENCH_RESULT_H
#define MF_CLI_BENCH_RESULT_H

#include <jansson.h>
#include <stdio.h>

#include "cli/bench_record.h"
#include "text/tokenizer.h"

typedef enum mf_latency_id {
    MF_LATENCY_TTFT = 0,
    MF_LATENCY_TPOT,
    MF_LATENCY_ITL,
    MF_LATENCY_E2EL,
    MF_NUM_LATENCIES
} mf_latency_id;

extern const char *const mf_latency_keys[MF_NUM_LATENCIES]; /* "ttft", ... */

enum { MF_MAX_PERCENTILES = 16 };

typedef struct mf_bench_metrics_options {
    bool shown[MF_NUM_LATENCIES]; /* in the table */
    double percentiles[MF_MAX_PERCENTILES];
    int32_t num_percentiles;
    double goodput_ms[MF_NUM_LATENCIES]; /* the most a good request may take; 0 = no limit */
    bool has_goodput;
} mf_bench_metrics_options;

/* "ttft,tpot" and "50,99.9" and "ttft:200" into *options; the messages name the flag. */
mf_status mf_parse_percentile_metrics(const char *text, mf_bench_metrics_options *options, mf_error *err);
mf_status mf_parse_percentiles(const char *text, mf_bench_metrics_options *options, mf_error *err);
mf_status mf_parse_goodput(const char *text, mf_bench_metrics_options *options, mf_error *err);

typedef struct mf_bench_metrics {
    int64_t completed, failed, total_input, total_output;
    double duration_s, request_throughput, request_goodput, output_throughput, total_throughput;
    double max_output_tokens_per_s;  /* pieces in the fullest second, from the first start on */
    int64_t max_concurrent_requests; /* requests in the second that touches most */
    struct {
        double mean, median, std, percentile[MF_MAX_PERCENTILES], p99;
    } latency_ms[MF_NUM_LATENCIES];
} mf_bench_metrics;

/* Where the server did not say how many tokens it made, they are counted in the text (tok NULL: by pieces); the records
 * then hold the number. */
mf_status mf_bench_metrics_make(mf_bench_record *records, int64_t count, double duration_s, const mf_tokenizer *tok,
                                const mf_bench_metrics_options *options, mf_bench_metrics *out, mf_error *err);

/* What was asked, for table and JSON. */
typedef struct mf_bench_setting {
    const char *backend, *endpoint_type, *label, *model_id, *tokenizer_id; /* label and tokenizer_id may be NULL */
    int64_t num_prompts, max_concurrency;                                  /* 0 = not set */
    double request_rate, burstiness;
} mf_bench_setting;

void mf_bench_table_print(FILE *out, const mf_bench_metrics *metrics, const mf_bench_setting *setting,
                          const mf_bench_metrics_options *options);
/* A new object with vLLM's keys in vLLM's order; with_details: its arrays too.  date: "20261129-104512". */
json_t *mf_bench_result_json(const mf_bench_metrics *metrics, const mf_bench_setting *setting,
                             const mf_bench_metrics_options *options, const mf_bench_record *records, bool with_details,
                             const char *date);

#endif
