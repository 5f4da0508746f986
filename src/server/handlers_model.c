/* handlers_model.c - what the server says about itself and its model: names, limits, the plan, the page, the API's
 * file. */
#include <string.h>

#include "base/sys.h"
#include "engine/engine.h"
#include "server/app_impl.h"
#include "server/json_out.h"

void mf_handle_completions(void *context, mf_exchange *exchange)
{
    mf_calls_handle(((mf_app *)context)->calls, MF_API_COMPLETION, exchange);
}

void mf_handle_chat(void *context, mf_exchange *exchange)
{
    mf_calls_handle(((mf_app *)context)->calls, MF_API_CHAT, exchange);
}

/* ---- models -------------------------------------------------------------------------------------------------------
 */

static void write_model(const mf_app *app, const char *name, mf_json_out *out)
{
    mf_json_lit(out, "{\"id\":");
    mf_json_cstr(out, name);
    mf_json_lit(out, ",\"object\":\"model\",\"created\":");
    mf_json_int(out, app->created);
    mf_json_lit(out, ",\"owned_by\":\"moefuse\",\"root\":");
    mf_json_cstr(out, app->options->served_names[0]);
    mf_json_lit(out, ",\"parent\":null,\"max_model_len\":");
    mf_json_int(out, app->model.serve.max_model_len);
    mf_json_lit(out, ",\"permission\":[]}");
}

void mf_handle_models(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    mf_buffer body = { 0 };
    mf_json_out out = { .buffer = &body };
    mf_json_lit(&out, "{\"object\":\"list\",\"data\":[");
    for (int32_t i = 0; i < app->options->num_served_names; i++) {
        if (i > 0) {
            mf_json_lit(&out, ",");
        }
        write_model(app, app->options->served_names[i], &out);
    }
    mf_json_lit(&out, "]}");
    mf_app_reply(exchange, 200, &body, out.status);
}

void mf_handle_model(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    const char *name = mf_exchange_tail(exchange);
    for (int32_t i = 0; i < app->options->num_served_names; i++) {
        if (strcmp(app->options->served_names[i], name) == 0) {
            mf_buffer body = { 0 };
            mf_json_out out = { .buffer = &body };
            write_model(app, name, &out);
            mf_app_reply(exchange, 200, &body, out.status);
            return;
        }
    }
    mf_api_error error = { 0 };
    mf_api_fail(&error, 404, "model", "The model `%.128s` does not exist.", name);
    mf_exchange_reply_error(exchange, &error);
}

/* ---- server info --------------------------------------------------------------------------------------------------
 */

static void write_names(const mf_app *app, mf_json_out *out)
{
    mf_json_lit(out, ",\"served_model_names\":[");
    for (int32_t i = 0; i < app->options->num_served_names; i++) {
        if (i > 0) {
            mf_json_lit(out, ",");
        }
        mf_json_cstr(out, app->options->served_names[i]);
    }
    mf_json_lit(out, "]");
}

static void write_limits(const mf_app *app, mf_json_out *out)
{
    const mf_app_options *o = app->options;
    mf_json_lit(out, ",\"limits\":{\"max_model_len\":");
    mf_json_int(out, app->model.serve.max_model_len);
    mf_json_lit(out, ",\"max_num_seqs\":");
    mf_json_int(out, o->max_num_seqs);
    mf_json_lit(out, ",\"max_num_queued_reqs\":");
    mf_json_int(out, o->max_num_queued_reqs);
    mf_json_lit(out, ",\"max_num_queued_tokens\":");
    mf_json_int(out, o->max_num_queued_tokens);
    mf_json_lit(out, ",\"max_sequences_per_request\":");
    mf_json_int(out, o->max_sequences_per_request);
    mf_json_lit(out, ",\"max_logprobs\":");
    mf_json_int(out, o->max_logprobs);
    mf_json_lit(out, "}");
}

/* Per layer what the page and tests want to know; the printed plan has the reasons. */
static void write_fusion(const mf_app *app, mf_json_out *out)
{
    static const char *const names[] = {
        [MF_MODE_SLOT] = "slot", [MF_MODE_OVERLAP] = "overlap", [MF_MODE_SERIAL] = "serial"
    };
    const mf_model *model = mf_engine_get_model(app->model.engine);
    const mf_plan *plan = model ? mf_model_get_plan(model) : NULL;
    if (!plan) {
        return;
    }
    const mf_model_config *c = plan->config;
    mf_json_lit(out, ",\"model_type\":");
    mf_json_cstr(out, c->model_type);
    mf_json_lit(out, ",\"num_experts\":");
    mf_json_int(out, c->num_moe_layers > 0 ? c->gate.num_experts : 0);
    mf_json_lit(out, ",\"num_experts_per_tok\":");
    mf_json_int(out, c->num_moe_layers > 0 ? c->gate.top_k : 0);
    mf_json_lit(out, ",\"num_shared_experts\":");
    mf_json_int(out, c->num_shared_experts);
    mf_json_lit(out, ",\"fusion\":{\"moe_layers\":");
    mf_json_int(out, plan->num_moe);
    mf_json_lit(out, ",\"slot\":");
    mf_json_int(out, plan->num_slot);
    mf_json_lit(out, ",\"overlap\":");
    mf_json_int(out, plan->num_overlap);
    mf_json_lit(out, ",\"serial\":");
    mf_json_int(out, plan->num_serial);
    mf_json_lit(out, ",\"fused_gate\":");
    mf_json_int(out, plan->num_fused_gate);
    mf_json_lit(out, ",\"layers\":[");
    for (int64_t i = 0; i < c->num_layers; i++) {
        if (i > 0) {
            mf_json_lit(out, ",");
        }
        mf_json_cstr(out, plan->layers[i].is_moe ? names[plan->layers[i].mode] : NULL);
    }
    mf_json_lit(out, "]}");
}

void mf_handle_server_info(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    mf_buffer body = { 0 };
    mf_json_out out = { .buffer = &body };
    const char *name = app->options->served_names[0];
    mf_json_lit(&out, "{\"version\":\"" MF_VERSION_STRING "\",\"model_path\":");
    mf_json_cstr(&out, name);
    mf_json_lit(&out, ",\"tokenizer_path\":");
    mf_json_cstr(&out, name);
    mf_json_lit(&out, ",\"served_model_name\":");
    mf_json_cstr(&out, name);
    mf_json_lit(&out, ",\"is_generation\":true,\"internal_states\":[{}],\"device\":");
    mf_json_cstr(&out, app->model.device);
    mf_json_lit(&out, ",\"isa\":");
    mf_json_cstr(&out, app->model.isa);
    write_names(app, &out);
    write_limits(app, &out);
    write_fusion(app, &out);
    mf_json_lit(&out, ",\"plan\":");
    mf_json_cstr(&out, app->model.plan);
    mf_json_lit(&out, "}");
    mf_app_reply(exchange, 200, &body, out.status);
}

/* ---- the page -----------------------------------------------------------------------------------------------------
 */

void mf_handle_page(void *context, mf_exchange *exchange)
{
    mf_app *app = context;
    const mf_page *page = &app->page;
    mf_exchange_add_header(exchange, "ETag", page->etag);
    mf_exchange_add_header(exchange, "Cache-Control", "no-cache");
    mf_exchange_add_header(exchange, "Content-Security-Policy", page->content_security_policy);
    mf_exchange_add_header(exchange, "X-Content-Type-Options", "nosniff");
    mf_exchange_add_header(exchange, "Referrer-Policy", "no-referrer");
    if (mf_page_matches(page, mf_exchange_header(exchange, "If-None-Match"))) {
        mf_exchange_reply(exchange, 304, "text/html; charset=utf-8", NULL, 0);
    } else {
        mf_exchange_reply(exchange, 200, "text/html; charset=utf-8", page->html, page->size);
    }
}
