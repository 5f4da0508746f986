/* app_impl.h - the server's state, shared by app.c (life), routes.c (the table), handlers_*.c (answers). */
#ifndef MF_SERVER_APP_IMPL_H
#define MF_SERVER_APP_IMPL_H

#include <stdatomic.h>

#include "server/app.h"
#include "server/calls.h"
#include "server/metrics.h"
#include "server/page.h"
#include "server/service.h"
#include "server/takeover.h"
#include "server/text_worker.h"

struct event;
struct event_base;

struct mf_app {
    const mf_app_options *options;
    struct event_base *base;
    mf_http_server *http;
    mf_service *service;
    mf_text_worker *text;
    mf_calls *calls;
    mf_metrics *metrics;
    mf_takeover *takeover;    /* our offer to a successor */
    int taken_fd, control_fd; /* from the server we succeed, until claimed; -1 = none */
    mf_app_model model;       /* complete once is_ready */
    mf_page page;
    mf_service_snapshot snapshot;
    struct event *service_event, *text_event, *tick_event, *term_event, *int_event, *end_event;

    bool is_ready, is_draining, is_forced;
    bool is_succeeded; /* draining, because another process has the listening socket */
    mf_app_end end;
    mf_error *err;
    int64_t opened_ns, ready_ns, drain_ns;
    int64_t created; /* wall clock, for /v1/models */
    _Atomic int progress_ppm;
    _Atomic bool stop_loading;

    /* of the log line */
    int64_t told_ns;
    mf_calls_rates told;
    int64_t told_prompt_tokens, told_queries, told_hits;
    int64_t num_answers;
};

typedef enum mf_health {
    MF_HEALTH_OK = 0,
    MF_HEALTH_LOADING,
    MF_HEALTH_DRAINING,
    MF_HEALTH_STALLED,
    MF_HEALTH_DEAD
} mf_health;
mf_health mf_app_health(mf_app *app);
const char *mf_health_name(mf_health health);
/* The engine's numbers now; the app's own memory. */
const mf_service_snapshot *mf_app_snapshot(mf_app *app);

/* routes.c */
extern const size_t mf_app_num_routes;     /* without the dev endpoints */
extern const mf_route mf_app_dev_routes[]; /* all, those last */
extern const size_t mf_app_num_dev_routes;

/* handlers_status.c, handlers_model.c, handlers_text.c */
void mf_handle_completions(void *app, mf_exchange *exchange);
void mf_handle_chat(void *app, mf_exchange *exchange);
void mf_handle_tokenize(void *app, mf_exchange *exchange);
void mf_handle_detokenize(void *app, mf_exchange *exchange);
void mf_handle_tokenizer_info(void *app, mf_exchange *exchange);
void mf_handle_models(void *app, mf_exchange *exchange);
void mf_handle_model(void *app, mf_exchange *exchange);
void mf_handle_health(void *app, mf_exchange *exchange);
void mf_handle_ready(void *app, mf_exchange *exchange);
void mf_handle_live(void *app, mf_exchange *exchange);
void mf_handle_metrics(void *app, mf_exchange *exchange);
void mf_handle_version(void *app, mf_exchange *exchange);
void mf_handle_load(void *app, mf_exchange *exchange);
void mf_handle_server_info(void *app, mf_exchange *exchange);
void mf_handle_expert_load(void *app, mf_exchange *exchange);
void mf_handle_reset_prefix_cache(void *app, mf_exchange *exchange);
void mf_handle_page(void *app, mf_exchange *exchange);
void mf_handle_openapi(void *app, mf_exchange *exchange);

/* Ends the exchange with what was written, or with 500. */
struct mf_json_out;
void mf_app_reply(mf_exchange *exchange, int status, mf_buffer *body, mf_status written);

#endif
