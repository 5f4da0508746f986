/* app.c - the server's life: see app.h.  Everything here but open_on_engine_thread runs on the I/O thread. */
#include "server/app.h"

#include <event2/event.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sys.h"
#include "engine/engine.h"
#include "server/app_impl.h"
#include "server/expert_load.h"
#include "server/sandbox.h"
#include "server/warm_up.h"

enum {
    TICK_MS = 1000,
    LOG_LINE_S = 10,
    STALL_S = 5,
    MAX_TEXT_JOBS = 4096,
    FORCED_END_MS = 300,  /* for error events to leave after a second signal */
    LAST_BYTES_MS = 2000, /* for answers that are written and not yet sent */
    TAKEOVER_MS = 5000
};
static const size_t max_text_bytes = (size_t)64 << 20;

/* ---- health -------------------------------------------------------------------------------------------------------
 */

const mf_service_snapshot *mf_app_snapshot(mf_app *app)
{
    mf_service_snapshot_take(app->service, &app->snapshot, NULL);
    return &app->snapshot;
}

/* Without the look at the engine's heart: asked for each request. */
static mf_health health_of_life(const mf_app *app)
{
    if (mf_service_get_state(app->service) == MF_SERVICE_FAILED) {
        return MF_HEALTH_DEAD;
    }
    /* Who still talks to a process that was succeeded does not know of it, and is served until it goes. */
    bool refuses = app->is_draining && !app->is_succeeded;
    return !app->is_ready ? MF_HEALTH_LOADING : refuses ? MF_HEALTH_DRAINING : MF_HEALTH_OK;
}

mf_health mf_app_health(mf_app *app)
{
    mf_health health = health_of_life(app);
    if (health != MF_HEALTH_OK) {
        return health;
    }
    const mf_service_snapshot *s = mf_app_snapshot(app);
    bool is_stale = mf_now_ns() - s->heartbeat_ns > (int64_t)STALL_S * 1000000000;
    return is_stale && s->has_work ? MF_HEALTH_STALLED : MF_HEALTH_OK;
}

const char *mf_health_name(mf_health health)
{
    static const char *const names[] = { "ok", "loading", "draining", "stalled", "dead" };
    return names[health];
}

/* Asked by the HTTP layer before work is taken. */
static bool refuse(void *context, mf_api_error *error)
{
    mf_app *app = context;
    mf_health health = health_of_life(app);
    if (health == MF_HEALTH_OK) {
        return false;
    }
    if (health == MF_HEALTH_LOADING) {
        mf_api_fail(error, 503, NULL, "The model is loading: %d %%.", atomic_load(&app->progress_ppm) / 10000);
        mf_metrics_rejected(app->metrics, MF_REJECT_LOADING);
    } else if (health == MF_HEALTH_DRAINING) {
        mf_api_fail(error, 503, NULL, "The server is shutting down.");
        mf_metrics_rejected(app->metrics, MF_REJECT_DRAINING);
    } else {
        mf_api_fail(error, 503, NULL, "The engine has failed.");
    }
    error->retry_after_s = health == MF_HEALTH_LOADING ? 2 : 5;
    return true;
}

static void answered(void *context, const mf_exchange *exchange, int status)
{
    mf_app *app = context;
    app->num_answers++;
    mf_metrics_answered(app->metrics, status);
    if (app->options->log_requests) {
        double ms = (double)(mf_now_ns() - mf_exchange_received_ns(exchange)) * 1e-6;
        mf_log(MF_LOG_INFO, "%s \"%s %.256s\" %d %.1f ms id %s", mf_exchange_peer(exchange),
               mf_exchange_method(exchange), mf_exchange_path(exchange), status, ms, mf_exchange_request_id(exchange));
    }
}

/* ---- loading ------------------------------------------------------------------------------------------------------
 */

bool mf_app_progress(mf_app *app, double share)
{
    atomic_store(&app->progress_ppm, (int)(share * 1e6));
    return !atomic_load(&app->stop_loading);
}

static mf_status open_on_engine_thread(void *context, mf_engine **engine, mf_error *err)
{
    mf_app *app = context;
    MF_TRY(app->options->open(app->options->context, app, &app->model, err));
    const mf_app_options *o = app->options;
    mf_serve_model *m = &app->model.serve;
    m->names = o->served_names;
    m->num_names = o->num_served_names;
    m->max_model_len = mf_engine_max_model_len(app->model.engine);
    m->eos_token_ids = mf_engine_eos_token_ids(app->model.engine);
    m->num_eos_token_ids = mf_engine_num_eos_token_ids(app->model.engine);
    m->max_logprobs = o->max_logprobs;
    m->max_sequences_per_request = o->max_sequences_per_request;
    m->trust_request_chat_template = o->trust_request_chat_template;
    m->request_timeout_s = o->request_timeout_s;
    mf_status status = mf_warm_up(app->model.engine, m->vocab_size, err);
    if (status != MF_OK) {
        mf_engine_close(&app->model.engine);
        return status;
    }
    *engine = app->model.engine;
    return MF_OK;
}

/* Metrics that need the model: layers, modes, the longest context. */
static void describe_metrics(mf_app *app)
{
    const mf_app_model *m = &app->model;
    mf_metrics_options o = {
        .model_name = app->options->served_names[0],
        .version = MF_VERSION_STRING,
        .commit = MF_COMMIT,
        .isa = m->isa,
        .device = m->device,
        .max_model_len = m->serve.max_model_len,
        .per_expert = app->options->metrics_per_expert,
    };
    const mf_model *model = mf_engine_get_model(m->engine);
    const mf_plan *plan = model ? mf_model_get_plan(model) : NULL;
    const mf_service_snapshot *s = mf_app_snapshot(app);
    const char **modes = NULL;
    int32_t *ids = NULL;
    if (plan && s->stats.num_layers > 0) {
        static const char *const names[] = {
            [MF_MODE_SLOT] = "slot", [MF_MODE_OVERLAP] = "overlap", [MF_MODE_SERIAL] = "serial"
        };
        o.num_layers = s->stats.num_layers;
        o.num_experts = s->stats.num_experts;
        o.num_shared = (int32_t)plan->config->num_shared_experts;
        modes = mf_alloc_array((size_t)o.num_layers, sizeof *modes);
        ids = mf_alloc_array((size_t)o.num_layers, sizeof *ids);
        for (int32_t i = 0; modes && ids && i < o.num_layers; i++) {
            ids[i] = i;
            modes[i] = plan->layers[i].is_moe ? names[plan->layers[i].mode] : NULL;
        }
        o.layer_modes = modes;
        o.layer_ids = ids;
    }
    mf_error err = { 0 };
    if ((o.num_layers > 0 && (!modes || !ids)) || mf_metrics_describe(app->metrics, &o, &err) != MF_OK) {
        mf_log(MF_LOG_WARN, "metrics: %.400s", err.message);
    }
    mf_free(modes);
    mf_free(ids);
}

static const char *address(const mf_app *app, char *out, size_t size)
{
    const mf_http_options *h = &app->options->http;
    if (h->uds_path) {
        snprintf(out, size, "unix:%.200s", h->uds_path);
    } else {
        const char *host = h->host ? h->host : "127.0.0.1";
        bool is_v6 = strchr(host, ':') != NULL;
        snprintf(out, size, "http://%s%.100s%s:%d", is_v6 ? "[" : "", host, is_v6 ? "]" : "",
                 mf_http_server_port(app->http));
    }
    return out;
}

static mf_status open_http(mf_app *app, mf_error *err)
{
    mf_http_options http = app->options->http;
    bool dev = app->options->dev_endpoints;
    http.routes = mf_app_dev_routes;
    http.num_routes = dev ? mf_app_num_dev_routes : mf_app_num_routes;
    http.context = app;
    http.refuse = refuse;
    http.answered = answered;
    http.server_name = "moefuse/" MF_VERSION_STRING;
    if (app->taken_fd >= 0) {
        http.listen_fd = app->taken_fd;
        app->taken_fd = -1; /* the HTTP server's */
    }
    return mf_http_server_open(app->base, &http, &app->http, err);
}

static void on_taken_over(void *context);

/* The successor of a running server has the listening socket since its start, and listens from now on. */
static mf_status take_over(mf_app *app, mf_error *err)
{
    MF_TRY(open_http(app, err));
    int control = app->control_fd;
    app->control_fd = -1;
    MF_TRY(mf_takeover_claim(control, TAKEOVER_MS, err));
    mf_log(MF_LOG_INFO, "took the listening socket over");
    return MF_OK;
}

static mf_status offer_takeover(mf_app *app, mf_error *err)
{
    if (!app->options->takeover_path) {
        return MF_OK;
    }
    return mf_takeover_offer(app->base, app->options->takeover_path, mf_http_server_listen_fd(app->http), on_taken_over,
                             app, &app->takeover, err);
}

static mf_status enter_sandbox(mf_app *app, mf_error *err)
{
    const mf_app_options *o = app->options;
    if (!o->sandbox) {
        return MF_OK;
    }
    const char *const sockets[] = { o->http.uds_path, o->takeover_path };
    mf_sandbox_options sandbox = { .model_dir = o->model_dir, .removable = sockets, .num_removable = 2,
                                   .landlock_only = o->driver_makes_calls };
    return mf_sandbox_enter(&sandbox, NULL, err);
}

static void become_ready(mf_app *app)
{
    char where[256];
    app->ready_ns = mf_now_ns();
    app->told_ns = app->ready_ns;
    describe_metrics(app);
    app->is_ready = true;
    if ((app->control_fd >= 0 && take_over(app, app->err) != MF_OK) || offer_takeover(app, app->err) != MF_OK) {
        app->end = MF_APP_CANNOT_BIND;
        event_base_loopbreak(app->base);
        return;
    }
    if (enter_sandbox(app, app->err) != MF_OK) {
        app->end = MF_APP_FAILED;
        event_base_loopbreak(app->base);
        return;
    }
    mf_log(MF_LOG_INFO, "ready on %s in %.1f s", address(app, where, sizeof where),
           (double)(app->ready_ns - app->opened_ns) * 1e-9);
}

/* ---- the log line -------------------------------------------------------------------------------------------------
 */

static double rate(int64_t count, double seconds)
{
    return seconds > 0 ? (double)count / seconds : 0;
}

/* Over the layers that have experts, since the start; 0 = no load yet. */
static double mean_jain(const mf_service_snapshot *s)
{
    double sum = 0;
    int32_t n = 0;
    for (int32_t i = 0; s->expert_load && i < s->stats.num_layers; i++) {
        double jain = mf_load_jain(s->expert_load + (size_t)i * (size_t)s->stats.num_experts, s->stats.num_experts);
        if (!isnan(jain)) {
            sum += jain;
            n++;
        }
    }
    return n > 0 ? sum / n : 0;
}

static void log_line(mf_app *app, int64_t now_ns)
{
    const mf_service_snapshot *s = mf_app_snapshot(app);
    const mf_engine_stats *e = &s->stats;
    mf_calls_rates total = mf_calls_total(app->calls);
    double seconds = (double)(now_ns - app->told_ns) * 1e-9;
    bool had_work = total.tokens != app->told.tokens || e->num_running + s->queued_reqs > 0;
    if (had_work) {
        int64_t queries = e->prefix_cache_queries - app->told_queries, hits = e->prefix_cache_hits - app->told_hits;
        char experts[64] = "";
        double jain = mean_jain(s);
        if (jain > 0) {
            snprintf(experts, sizeof experts, " | expert load Jain %.2f", jain);
        }
        mf_log(MF_LOG_INFO,
               "running %d waiting %d | prefill %.1f tok/s decode %.1f tok/s | KV %.0f %% | prefix hits %.0f %%%s",
               e->num_running, s->queued_reqs, rate(e->prompt_tokens - app->told_prompt_tokens, seconds),
               rate(total.tokens - app->told.tokens, seconds),
               e->kv_blocks_total ? 100.0 * e->kv_blocks_used / e->kv_blocks_total : 0,
               queries > 0 ? 100.0 * (double)hits / (double)queries : 0, experts);
    }
    app->told_ns = now_ns;
    app->told = total;
    app->told_prompt_tokens = e->prompt_tokens;
    app->told_queries = e->prefix_cache_queries;
    app->told_hits = e->prefix_cache_hits;
}

/* ---- the end ------------------------------------------------------------------------------------------------------
 */

static void end_after(mf_app *app, int ms)
{
    struct timeval t = { ms / 1000, (ms % 1000) * 1000 };
    event_add(app->end_event, &t);
}

static bool is_past_timeout(const mf_app *app)
{
    return (double)(mf_now_ns() - app->drain_ns) * 1e-9 >= app->options->shutdown_timeout_s;
}

/* Nothing runs any more: the last bytes leave, then the loop ends.  A process that was succeeded waits for its last
 * connection: each one closes with its next answer, or once it has been idle. */
static void end_if_drained(mf_app *app)
{
    if (app->is_draining && mf_calls_num_live(app->calls) == 0) {
        if (mf_http_server_num_connections(app->http) == 0) {
            event_base_loopbreak(app->base);
        } else if ((!app->is_succeeded || app->is_forced || is_past_timeout(app)) &&
                   !event_pending(app->end_event, EV_TIMEOUT, NULL)) {
            end_after(app, LAST_BYTES_MS);
        }
    }
}

static void drain(mf_app *app)
{
    if (!app->is_draining) {
        app->is_draining = true;
        app->drain_ns = mf_now_ns();
        int32_t live = mf_calls_num_live(app->calls);
        if (live > 0) {
            mf_log(MF_LOG_INFO, "shutting down: %d request%s may finish within %g s; a second signal ends at once",
                   live, live == 1 ? "" : "s", app->options->shutdown_timeout_s);
        } else {
            mf_log(MF_LOG_INFO, "shutting down: no request is running");
        }
        if (!app->is_succeeded) {
            mf_http_server_drain(app->http);
        }
        end_if_drained(app);
    }
}

static void on_signal(int fd, short what, void *context)
{
    (void)fd;
    (void)what;
    mf_app *app = context;
    if (!app->is_ready) { /* nothing to drain */
        atomic_store(&app->stop_loading, true);
        event_base_loopbreak(app->base);
        return;
    }
    if (app->is_draining) {
        app->is_forced = true;
        mf_log(MF_LOG_WARN, "a second signal: what still runs is cut");
        mf_calls_abort(app->calls);
        end_after(app, FORCED_END_MS);
        return;
    }
    drain(app);
}

static void on_end(int fd, short what, void *context)
{
    (void)fd;
    (void)what;
    event_base_loopbreak(((mf_app *)context)->base);
}

static void on_taken_over(void *context)
{
    mf_app *app = context;
    mf_log(MF_LOG_INFO, "another process has taken the listening socket");
    app->is_succeeded = true;
    mf_http_server_hand_over(app->http);
    drain(app);
}

/* ---- events of the loop -------------------------------------------------------------------------------------------
 */

static void on_service(int fd, short what, void *context)
{
    (void)fd;
    (void)what;
    mf_app *app = context;
    mf_calls_pump(app->calls);
    mf_service_state state = mf_service_get_state(app->service);
    if (state == MF_SERVICE_READY && !app->is_ready) {
        become_ready(app);
    } else if (state == MF_SERVICE_FAILED && !app->is_ready) {
        app->end = MF_APP_NO_MODEL;
        mf_fail(app->err, mf_service_failure_status(app->service), "%s", mf_service_failure(app->service));
        event_base_loopbreak(app->base);
    }
    end_if_drained(app);
}

static void on_text(int fd, short what, void *context)
{
    (void)fd;
    (void)what;
    mf_app *app = context;
    mf_text_worker_pump(app->text);
    end_if_drained(app);
}

static void on_tick(int fd, short what, void *context)
{
    (void)fd;
    (void)what;
    mf_app *app = context;
    int64_t now_ns = mf_now_ns();
    if (app->is_ready) {
        mf_metrics_tick(app->metrics, mf_app_snapshot(app), now_ns);
        if (now_ns - app->told_ns >= (int64_t)LOG_LINE_S * 1000000000) {
            log_line(app, now_ns);
        }
    }
    mf_calls_tick(app->calls, now_ns);
    if (app->is_draining && !app->is_forced && is_past_timeout(app) && mf_calls_num_live(app->calls) > 0) {
        app->is_succeeded = false; /* what comes now is refused */
        mf_log(MF_LOG_WARN, "running requests that did not finish in time: %d", mf_calls_num_live(app->calls));
        mf_calls_abort(app->calls);
    }
    end_if_drained(app);
}

/* ---- open, run, close ---------------------------------------------------------------------------------------------
 */

static struct event *add_event(mf_app *app, int fd, short what, event_callback_fn call, const struct timeval *interval)
{
    struct event *event = event_new(app->base, fd, what, call, app);
    if (event && (interval || fd >= 0) && event_add(event, interval) != 0) {
        event_free(event);
        return NULL;
    }
    return event;
}

static mf_status open_events(mf_app *app, mf_error *err)
{
    const struct timeval second = { TICK_MS / 1000, 0 };
    app->service_event = add_event(app, mf_service_wake_fd(app->service), EV_READ | EV_PERSIST, on_service, NULL);
    app->text_event = add_event(app, mf_text_worker_wake_fd(app->text), EV_READ | EV_PERSIST, on_text, NULL);
    app->tick_event = add_event(app, -1, EV_PERSIST, on_tick, &second);
    app->term_event = add_event(app, SIGTERM, EV_SIGNAL | EV_PERSIST, on_signal, NULL);
    app->int_event = add_event(app, SIGINT, EV_SIGNAL | EV_PERSIST, on_signal, NULL);
    app->end_event = add_event(app, -1, 0, on_end, NULL);
    return app->service_event && app->text_event && app->tick_event && app->term_event && app->int_event &&
                   app->end_event
               ? MF_OK
               : mf_fail(err, MF_ERR_NOMEM, "event loop: out of memory");
}

static mf_status open_parts(mf_app *app, mf_error *err)
{
    const mf_app_options *o = app->options;
    mf_metrics_options metrics = {
        .model_name = o->served_names[0], .version = MF_VERSION_STRING, .commit = MF_COMMIT, .isa = "", .device = ""
    };
    MF_TRY(mf_page_open(&app->page, err));
    MF_TRY(mf_metrics_open(&metrics, &app->metrics, err));
    MF_TRY(mf_text_worker_open(MAX_TEXT_JOBS, max_text_bytes, &app->text, err));
    mf_service_options service = {
        .open = open_on_engine_thread,
        .context = app,
        .max_num_queued_reqs = o->max_num_queued_reqs,
        .max_num_queued_tokens = o->max_num_queued_tokens,
        .max_live_requests = o->max_num_seqs + o->max_num_queued_reqs + o->max_sequences_per_request,
    };
    MF_TRY(mf_service_open(&service, &app->service, err));
    mf_calls_options calls = { .service = app->service,
                               .text = app->text,
                               .model = &app->model.serve,
                               .metrics = app->metrics,
                               .stream_interval = o->stream_interval,
                               .keep_alive_s = o->sse_keep_alive_s };
    MF_TRY(mf_calls_open(&calls, &app->calls, err));
    return open_events(app, err);
}

static void free_event(struct event **event)
{
    if (*event) {
        event_free(*event);
        *event = NULL;
    }
}

static void close_parts(mf_app *app)
{
    atomic_store(&app->stop_loading, true);
    mf_takeover_close(&app->takeover);
    if (app->control_fd >= 0) {
        close(app->control_fd); /* the other server keeps all */
    }
    if (app->taken_fd >= 0) {
        close(app->taken_fd);
    }
    mf_http_server_close(&app->http);
    mf_text_worker_close(&app->text);
    mf_service_close(&app->service);
    mf_calls_close(&app->calls);
    mf_metrics_close(&app->metrics);
    mf_service_snapshot_close(&app->snapshot);
    free_event(&app->service_event);
    free_event(&app->text_event);
    free_event(&app->tick_event);
    free_event(&app->term_event);
    free_event(&app->int_event);
    free_event(&app->end_event);
    if (app->base) {
        event_base_free(app->base);
    }
    app->options->close(app->options->context);
}

/* Listens, or has the socket of the server that is to be succeeded: then nothing is accepted here until the model is
 * loaded. */
static mf_status listen_or_receive(mf_app *app, mf_error *err)
{
    char where[256];
    if (app->options->takeover_path) {
        MF_TRY(mf_takeover_receive(app->options->takeover_path, TAKEOVER_MS, &app->taken_fd, &app->control_fd, err));
    }
    if (app->control_fd >= 0) {
        mf_log(MF_LOG_INFO, "a server runs: its listening socket is taken over once the model is loaded");
        return MF_OK;
    }
    MF_TRY(open_http(app, err));
    mf_log(MF_LOG_INFO, "listening on %s; the model loads", address(app, where, sizeof where));
    return MF_OK;
}

mf_app_end mf_app_run(const mf_app_options *options, mf_error *err)
{
    mf_app *app = mf_alloc_zero(sizeof *app);
    if (!app) {
        mf_fail(err, MF_ERR_NOMEM, "out of memory");
        return MF_APP_FAILED;
    }
    app->options = options;
    app->err = err;
    app->opened_ns = mf_now_ns();
    app->created = (int64_t)time(NULL);
    signal(SIGPIPE, SIG_IGN);
    mf_app_end end = MF_APP_FAILED;
    app->base = event_base_new();
    app->taken_fd = app->control_fd = -1;
    if (!app->base) {
        mf_fail(err, MF_ERR_NOMEM, "event loop: out of memory");
    } else if (listen_or_receive(app, err) != MF_OK) {
        end = MF_APP_CANNOT_BIND;
    } else if (open_parts(app, err) == MF_OK) {
        app->end = MF_APP_DRAINED;
        event_base_dispatch(app->base);
        if (app->is_ready && app->end == MF_APP_DRAINED) {
            mf_log(MF_LOG_INFO, "stopped after %.0f s and %lld answers", (double)(mf_now_ns() - app->ready_ns) * 1e-9,
                   (long long)app->num_answers);
        }
        end = app->is_forced ? MF_APP_FORCED : app->end;
    }
    close_parts(app);
    mf_free(app);
    return end;
}
