/* app.h - the whole server: HTTP in front, calls, the engine's service behind; loading, health, signals, drain.
 *
 * mf_app_run is the I/O thread.  It listens at once, answers honestly while the model loads on the engine's thread,
 * serves, and comes back when it has drained. */
#ifndef MF_SERVER_APP_H
#define MF_SERVER_APP_H

#include "server/http_server.h"
#include "server/serve_model.h"

typedef struct mf_app mf_app;

/* What opening a model leaves for the server.  All pointers live until `close`. */
typedef struct mf_app_model {
    mf_engine *engine;
    mf_serve_model serve;     /* names and limits of the command line are filled in by the app */
    const char *plan;         /* the start-up plan, as printed */
    const char *isa, *device; /* for /version and metrics */
} mf_app_model;

typedef struct mf_app_options {
    /* Runs on the engine's thread.  It tells mf_app_progress how far it is. */
    mf_status (*open)(void *context, mf_app *app, mf_app_model *model, mf_error *err);
    /* After the engine was closed. */
    void (*close)(void *context);
    void *context;

    mf_http_options http;      /* routes, context and callbacks are the app's */
    const char *takeover_path; /* NULL = none */

    const char *const *served_names;
    int32_t num_served_names;
    int32_t max_num_seqs, max_num_queued_reqs, max_sequences_per_request, max_logprobs;
    int64_t max_num_queued_tokens;
    double request_timeout_s, shutdown_timeout_s, sse_keep_alive_s;
    int32_t stream_interval;
    bool log_requests, metrics_per_expert, dev_endpoints, trust_request_chat_template, sandbox;
    bool driver_makes_calls; /* the device's, of its own and at any time: the sandbox then keeps files only */
    const char *model_dir; /* for the sandbox, and never shown */
} mf_app_options;

typedef enum mf_app_end {
    MF_APP_DRAINED = 0,
    MF_APP_FORCED,      /* a second signal */
    MF_APP_CANNOT_BIND, /* *err says why */
    MF_APP_NO_MODEL,    /* *err says why, status included */
    MF_APP_FAILED
} mf_app_end;

mf_app_end mf_app_run(const mf_app_options *options, mf_error *err);

/* From `open`: 0..1, and a false return when loading is to stop. */
bool mf_app_progress(mf_app *app, double share);

#endif
