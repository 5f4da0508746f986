/* bench_load.h - drives a server: requests at a rate, at most so many at once, over kept connections; one record each.
 */
#ifndef MF_CLI_BENCH_LOAD_H
#define MF_CLI_BENCH_LOAD_H

#include "cli/bench_prompts.h"
#include "cli/bench_record.h"
#include "cli/http_client.h"

typedef struct mf_load_options {
    const mf_http_target *target;
    const char *api_key, *model;
    bool chat;               /* /v1/chat/completions instead of /v1/completions */
    double request_rate;     /* per second; infinite: all at once */
    double burstiness;       /* shape of the gamma distribution between arrivals; 1 = Poisson */
    int64_t max_concurrency; /* 0 = none */
    bool ignore_eos;
    double temperature; /* NaN: not sent */
    uint64_t seed;      /* of arrivals, and of requests with a temperature */
    /* Told about ten times a second; false stops: MF_ERR_CANCELLED.  May be NULL. */
    bool (*progress)(void *context, int64_t finished, int64_t failed, int64_t tokens, double seconds);
    void *context;
} mf_load_options;

/* records [prompts->count], zeroed; closed by the caller also after a failure.  *duration_s: from the first request to
 * the end of the last.  Requests that fail are records, not a failure of the run. */
mf_status mf_load_run(const mf_load_options *options, const mf_bench_prompts *prompts, mf_bench_record *records,
                      double *duration_s, mf_error *err);

/* Times of arrival in seconds, ascending from 0; scaled so that all of them arrive within count / rate as vLLM does. */
void mf_load_arrivals(double *times, int64_t count, double rate, double burstiness, uint64_t seed);

/* Raises the limit of open files where that is allowed; returns how many connections may be open. */
int64_t mf_load_max_connections(void);

#endif
