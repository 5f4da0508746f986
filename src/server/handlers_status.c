/* handlers_status.c - what monitors ask: health, metrics, load, the experts' load. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/sys.h"
#include "server/app_impl.h"
#include "server/json_out.h"

void mf_app_reply(mf_exchange *exchange, int status, mf_buffer *body, mf_status written)
{
    if (written == MF_OK) {
        mf_exchange_reply(exchange, status, "application/json", mf_buffer_text(body), body->size);
    } else {
        mf_api_error error = { 0 };
        mf_api_fail(&error, 500, NULL, "The answer could not be made (request %s)", mf_exchange_request_id(exchange));
        mf_exchange_reply_error(exchange, &error);
    }
    mf_buffer_close(body);
}

static void reply_health(mf_app *app, mf_exchange *exchange, mf_health health, const char *reason)
{
    mf_buffer body = { 0 };
    mf_json_out out = { .buffer = &body };
    mf_json_lit(&out, "{\"status\":");
    mf_json_cstr(&out, reason ? reason : mf_health_name(health));
    if (health == MF_HEALTH_LOADING) {
        mf_json_lit(&out, ",\"progress\":");
        mf_json_fixed(&out, atomic_load(&app->progress_ppm) * 1e-6);
    }
    mf_json_lit(&out, "}");
    bool is_ok = health == MF_HEALTH_OK && !reason;
    if (!is_ok) {
        mf_exchange_add_header(exchange, "Retry-After", health == MF_HEALTH_LOADING ? "2" : "5");
    }
    mf_app_reply(exchange, is_ok ? 200 : 503, &body, out.status);
}

void mf_handle_health(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    reply_health(app, exchange, mf_app_health(app), NULL);
}

void mf_handle_ready(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    mf_health health = mf_app_health(app);
    bool is_full = health == MF_HEALTH_OK && !mf_service_has_room(app->service, NULL);
    reply_health(app, exchange, health, is_full ? "queue full" : NULL);
}

void mf_handle_live(void *context, mf_exchange *exchange)
{
    (void)context;
    static const char body[] = "{\"status\":\"live\"}";
    mf_exchange_reply(exchange, 200, "application/json", body, sizeof body - 1);
}

void mf_handle_metrics(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    mf_metrics_now now = {
        .http_connections = mf_http_server_num_connections(app->http),
        .sequences_paused = mf_calls_num_paused(app->calls),
        .log_lines_dropped = mf_log_num_dropped(),
    };
    if (app->is_ready) {
        now.snapshot = mf_app_snapshot(app);
        now.heartbeat_age_s = (double)(mf_now_ns() - now.snapshot->heartbeat_ns) * 1e-9;
    }
    mf_buffer body = { 0 };
    if (mf_metrics_write(app->metrics, &now, &body) == MF_OK) {
        mf_exchange_reply(exchange, 200, "text/plain; version=0.0.4; charset=utf-8", mf_buffer_text(&body), body.size);
        mf_buffer_close(&body);
    } else {
        mf_app_reply(exchange, 500, &body, MF_ERR_NOMEM);
    }
}

void mf_handle_version(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    mf_buffer body = { 0 };
    mf_json_out out = { .buffer = &body };
    mf_json_lit(&out, "{\"version\":\"" MF_VERSION_STRING "\",\"commit\":\"" MF_COMMIT "\",\"isa\":");
    mf_json_cstr(&out, app->is_ready ? app->model.isa : NULL);
    mf_json_lit(&out, ",\"device\":");
    mf_json_cstr(&out, app->is_ready ? app->model.device : NULL);
    mf_json_lit(&out, "}");
    mf_app_reply(exchange, 200, &body, out.status);
}

void mf_handle_load(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    const mf_service_snapshot *s = mf_app_snapshot(app);
    mf_buffer body = { 0 };
    mf_json_out out = { .buffer = &body };
    mf_json_lit(&out, "{\"server_load\":");
    mf_json_int(&out, s->stats.num_running + s->queued_reqs);
    mf_json_lit(&out, "}");
    mf_app_reply(exchange, 200, &body, out.status);
}

/* A query parameter as a whole number; `absent` when it is not there, false when it is no number in range. */
static bool query_int(const mf_exchange *exchange, const char *name, int32_t absent, int32_t min, int32_t max,
                      int32_t *out)
{
    char text[16];
    *out = absent;
    if (!mf_exchange_query(exchange, name, text, sizeof text)) {
        return true;
    }
    char *end;
    long value = strtol(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || value < min || value > max) {
        return false;
    }
    *out = (int32_t)value;
    return true;
}

void mf_handle_expert_load(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    const mf_service_snapshot *s = mf_app_snapshot(app);
    mf_api_error error = { 0 };
    int32_t window, layer;
    if (!query_int(exchange, "window", 0, 0, 60, &window)) {
        mf_api_fail(&error, 400, "window", "window: expected 0 to 60 seconds (0: since the start).");
    } else if (!query_int(exchange, "layer", -1, 0, s->stats.num_layers - 1, &layer)) {
        mf_api_fail(&error, 400, "layer", "layer: expected 0 to %d.", s->stats.num_layers - 1);
    }
    mf_buffer body = { 0 };
    mf_status status = MF_OK;
    if (error.status == 0) {
        status = mf_metrics_write_expert_load(app->metrics, s, window, layer, &body);
        if (status == MF_ERR_INVALID) {
            mf_api_fail(&error, 400, "layer", "layer: %d has no experts.", layer);
        }
    }
    if (error.status != 0) {
        mf_buffer_close(&body);
        mf_exchange_reply_error(exchange, &error);
        return;
    }
    mf_app_reply(exchange, 200, &body, status);
}

void mf_handle_reset_prefix_cache(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    mf_service_reset_prefix_cache(app->service);
    mf_exchange_reply(exchange, 200, "application/json", "{}", 2);
}
