/* calls.h - completion and chat calls from body to last byte: read, prepare, submit, follow the tokens, answer.
 *
 * A call is one HTTP exchange and prompts x max(n, best_of) sequences in the engine.  All of it runs on the I/O thread,
 * except that long bodies are read and prepared on the text worker.  A client that goes, or reads too slowly, has its
 * sequences cancelled; a full backlog pauses them. */
#ifndef MF_SERVER_CALLS_H
#define MF_SERVER_CALLS_H

#include "server/api_request.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/serve_model.h"
#include "server/service.h"
#include "server/text_worker.h"

typedef struct mf_calls mf_calls;

typedef struct mf_calls_options {
    mf_service *service;
    mf_text_worker *text;
    const mf_serve_model *model; /* complete once the service is ready; no call may be handled before */
    mf_metrics *metrics;         /* NULL: nobody counts */
    int32_t stream_interval;     /* tokens per event; 1 */
    double keep_alive_s;         /* between comments on a silent stream; 0 = none */
    size_t inline_bytes;         /* bodies up to this are read on the I/O thread; 0 = 8 KiB */
} mf_calls_options;

mf_status mf_calls_open(const mf_calls_options *options, mf_calls **calls, mf_error *err);
/* Close HTTP server, text worker and service before: nothing may tell of a call afterwards. */
void mf_calls_close(mf_calls **calls);
void mf_calls_set_metrics(mf_calls *calls, mf_metrics *metrics);

/* A route's handler. */
void mf_calls_handle(mf_calls *calls, mf_api_kind kind, mf_exchange *exchange);
/* The service's wake_fd is readable: takes its events. */
void mf_calls_pump(mf_calls *calls);
/* About once a second: keep-alives. */
void mf_calls_tick(mf_calls *calls, int64_t now_ns);
/* Ends every call with an error: the server is shutting down. */
void mf_calls_abort(mf_calls *calls);

int32_t mf_calls_num_live(const mf_calls *calls);   /* not yet answered to the end */
int32_t mf_calls_num_paused(const mf_calls *calls); /* sequences */

/* What went through since the last look: for the log line. */
typedef struct mf_calls_rates {
    int64_t calls, tokens;
} mf_calls_rates;
mf_calls_rates mf_calls_total(const mf_calls *calls);

#endif
