/* eval_run.h - who answers an evaluation's requests: an engine in this process, or a server. */
#ifndef MF_CLI_EVAL_RUN_H
#define MF_CLI_EVAL_RUN_H

#include "cli/eval_items.h"
#include "cli/http_client.h"
#include "moefuse_engine.h"

typedef struct mf_eval_run {
    int64_t max_tokens, max_concurrency;
    const char *const *stops;
    int32_t num_stops;
    /* Told about ten times a second; false stops: MF_ERR_CANCELLED. */
    bool (*progress)(void *context, int64_t done, int64_t tokens, double seconds);
    void *context;
    /* results */
    double seconds;
    int64_t num_tokens;
} mf_eval_run;

/* Greedy.  The units hold ids and log-probabilities afterwards. */
mf_status mf_eval_run_engine(mf_eval_run *run, mf_engine *engine, const mf_tokenizer *tok, mf_eval_set *set,
                             mf_error *err);

/* Greedy, not streamed.  A request that fails is sent again three times (429 and 503 after their Retry-After); then the
 * evaluation fails: an accuracy without some answers is none. */
mf_status mf_eval_run_server(mf_eval_run *run, const mf_http_target *target, const char *model, const char *api_key,
                             mf_eval_set *set, mf_error *err);

#endif
