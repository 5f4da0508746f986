/* metrics_names.c - the tables: see metrics_names.h. */
#include "server/metrics_names.h"

#include <string.h>

static const double ttft_buckets[] = { 0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                       1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560 };
static const double token_buckets[] = { 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                        0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80 };
static const double latency_buckets[] = { 0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                          30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680 };
static const double iteration_buckets[] = { 1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384 };
static const double n_buckets[] = { 1, 2, 5, 10, 20 };

#define BUCKETS(array) .buckets = (array), .num_buckets = sizeof(array) / sizeof *(array)

const mf_histogram_name mf_histogram_names[MF_NUM_HISTOGRAMS] = {
    [MF_HIST_TTFT] = { "vllm:time_to_first_token_seconds", "Time from arrival to the first token.",
                       BUCKETS(ttft_buckets) },
    [MF_HIST_INTER_TOKEN_LATENCY] = { "vllm:inter_token_latency_seconds",
                                      "Time between one token of a request and the next.", BUCKETS(token_buckets) },
    [MF_HIST_TIME_PER_OUTPUT_TOKEN] = { "vllm:request_time_per_output_token_seconds",
                                        "Mean time per output token after the first, one value per request.",
                                        BUCKETS(token_buckets) },
    [MF_HIST_E2E_LATENCY] = { "vllm:e2e_request_latency_seconds", "Time from arrival to the last token.",
                              BUCKETS(latency_buckets) },
    [MF_HIST_QUEUE_TIME] = { "vllm:request_queue_time_seconds", "Time in the WAITING phase.",
                             BUCKETS(latency_buckets) },
    [MF_HIST_INFERENCE_TIME] = { "vllm:request_inference_time_seconds", "Time in the RUNNING phase.",
                                 BUCKETS(latency_buckets) },
    [MF_HIST_PREFILL_TIME] = { "vllm:request_prefill_time_seconds", "Time in the PREFILL phase.",
                               BUCKETS(latency_buckets) },
    [MF_HIST_DECODE_TIME] = { "vllm:request_decode_time_seconds", "Time in the DECODE phase.",
                              BUCKETS(latency_buckets) },
    [MF_HIST_ITERATION_TOKENS] = { "vllm:iteration_tokens_total", "Tokens per engine step.",
                                   BUCKETS(iteration_buckets) },
    [MF_HIST_PROMPT_TOKENS] = { "vllm:request_prompt_tokens", "Prompt tokens per request.", NULL, 0 },
    [MF_HIST_GENERATION_TOKENS] = { "vllm:request_generation_tokens", "Tokens made per request.", NULL, 0 },
    [MF_HIST_PARAMS_MAX_TOKENS] = { "vllm:request_params_max_tokens", "The max_tokens that requests ask for.", NULL,
                                    0 },
    [MF_HIST_PARAMS_N] = { "vllm:request_params_n", "The n that requests ask for.", BUCKETS(n_buckets) },
};

int32_t mf_histogram_bounds(mf_histogram_id id, int64_t max_model_len, double *out)
{
    const mf_histogram_name *h = &mf_histogram_names[id];
    if (h->buckets) {
        memcpy(out, h->buckets, (size_t)h->num_buckets * sizeof *out);
        return h->num_buckets;
    }
    static const double steps[] = { 1, 2, 5 };
    int32_t n = 0;
    for (double decade = 1; n + 3 <= MF_MAX_BUCKETS; decade *= 10) {
        for (int i = 0; i < 3; i++) {
            double bound = steps[i] * decade;
            if (bound > (double)max_model_len) {
                return n;
            }
            out[n++] = bound;
        }
    }
    return n;
}

const char *const mf_finished_reason_labels[MF_NUM_FINISHED_REASONS] = { "stop",  "length",   "abort",
                                                                         "error", "deadline", "other" };

int32_t mf_finished_reason_index(const char *reason)
{
    /* A call of a tool ends the text as a stop does; vLLM counts it so. */
    if (strcmp(reason, "tool_calls") == 0) {
        return 0;
    }
    int32_t i = 0;
    while (i < MF_NUM_FINISHED_REASONS - 1 && strcmp(reason, mf_finished_reason_labels[i]) != 0) {
        i++;
    }
    return i;
}

const char *const mf_reject_labels[MF_NUM_REJECTS] = {
    [MF_REJECT_QUEUE_FULL] = "queue_full",
    [MF_REJECT_TOKENS] = "tokens",
    [MF_REJECT_DRAINING] = "draining",
    [MF_REJECT_LOADING] = "loading",
};

const char *const mf_cancel_labels[MF_NUM_CANCELS] = {
    [MF_CANCEL_DISCONNECT] = "disconnect", [MF_CANCEL_SLOW_READER] = "slow_reader",
    [MF_CANCEL_DEADLINE] = "deadline",     [MF_CANCEL_STOP] = "stop",
    [MF_CANCEL_SHUTDOWN] = "shutdown",
};
