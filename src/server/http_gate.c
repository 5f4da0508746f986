/* http_gate.c - whether a request may pass, judged from its head alone: origin, key, route, type, readiness, size.  A
 * handler sees only what went through here, and a key is asked for before anything tells which paths exist. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "server/http_impl.h"

/* A refused request's body of at most this size is read and dropped, so that the connection can go on. */
enum { SKIP_BYTES = 65536 };

static bool answer(mf_exchange *exchange, const mf_api_error *error)
{
    const mf_http1 *parser = &exchange->parser;
    exchange->close |= parser->chunked || parser->content_length > SKIP_BYTES || parser->expects_continue;
    mf_exchange_reply_error(exchange, error);
    return false;
}

static bool is_public(const mf_http_server *server, const char *path)
{
    for (size_t i = 0; i < server->options.num_public_paths; i++) {
        if (strcmp(server->options.public_paths[i], path) == 0) {
            return true;
        }
    }
    return false;
}

/* application/json with any parameters. */
static bool is_json(const char *type)
{
    size_t n = strcspn(type, "; \t");
    return n == 16 && strncasecmp(type, "application/json", 16) == 0;
}

static bool answer_preflight(mf_exchange *exchange)
{
    mf_exchange_add_header(exchange, "Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS");
    mf_exchange_add_header(exchange, "Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id");
    mf_exchange_add_header(exchange, "Access-Control-Max-Age", "600");
    mf_exchange_reply(exchange, 204, NULL, "", 0);
    return false;
}

static bool answer_options(mf_exchange *exchange, const char *allow)
{
    mf_exchange_add_header(exchange, "Allow", allow);
    mf_exchange_reply(exchange, 204, NULL, "", 0);
    return false;
}

/* What is at the path; false: nothing that this method can have, and it has been answered. */
static bool find_route(mf_exchange *exchange)
{
    const mf_http_options *options = &exchange->connection->server->options;
    const char *method = mf_exchange_method(exchange), *path = mf_exchange_path(exchange);
    bool asks_options = strcmp(method, "OPTIONS") == 0;
    mf_api_error error;
    char allow[128];
    if (exchange->parser.is_asterisk) {
        return answer_options(exchange, "GET, HEAD, POST, OPTIONS");
    }
    exchange->route = mf_route_find(options->routes, options->num_routes, method, path, &exchange->tail);
    if (exchange->route) {
        return true;
    }
    mf_route_allow(options->routes, options->num_routes, path, allow, sizeof allow);
    if (!allow[0]) {
        mf_api_fail(&error, 404, NULL, "there is nothing at %.128s", path);
        return answer(exchange, &error);
    }
    if (asks_options) {
        return answer_options(exchange, allow);
    }
    mf_exchange_add_header(exchange, "Allow", allow);
    mf_api_fail(&error, 405, NULL, "%.128s takes %s; got %s", path, allow, method);
    return answer(exchange, &error);
}

bool mf_http_gate(mf_exchange *exchange)
{
    mf_http_server *server = exchange->connection->server;
    const mf_http1 *parser = &exchange->parser;
    mf_api_error error;

    const char *origin = mf_http1_find(parser, "origin");
    if (origin && !mf_origin_is_own(server, origin, mf_http1_host(parser))) {
        if (!mf_origin_is_allowed(server, origin)) {
            mf_api_fail(&error, 403, NULL,
                        "pages of this origin may not call the server; --allowed-origins names those that may");
            return answer(exchange, &error);
        }
        exchange->cors = true;
        if (strcmp(mf_exchange_method(exchange), "OPTIONS") == 0 &&
            mf_http1_find(parser, "access-control-request-method")) {
            return answer_preflight(exchange);
        }
    }
    if (!is_public(server, mf_exchange_path(exchange)) &&
        !mf_api_keys_allow(&server->keys, mf_http1_find(parser, "authorization"))) {
        mf_exchange_add_header(exchange, "WWW-Authenticate", "Bearer");
        mf_api_fail(&error, 401, NULL, "the server needs an API key: Authorization: Bearer KEY");
        return answer(exchange, &error);
    }
    if (!find_route(exchange)) {
        return false;
    }
    if (strcmp(exchange->route->method, "POST") == 0) {
        const char *type = mf_http1_find(parser, "content-type"), *coding = mf_http1_find(parser, "content-encoding");
        if (type && !is_json(type)) {
            mf_api_fail(&error, 415, NULL, "Content-Type must be application/json");
            return answer(exchange, &error);
        }
        if (coding && strcasecmp(coding, "identity") != 0) {
            mf_api_fail(&error, 415, NULL, "a request's body may have no Content-Encoding");
            return answer(exchange, &error);
        }
    }
    if (!exchange->route->before_ready && server->options.refuse) {
        mf_api_fail(&error, 503, NULL, "the server takes no work now");
        if (server->options.refuse(server->options.context, &error)) {
            return answer(exchange, &error);
        }
    }
    if (parser->content_length > 0 && (uint64_t)parser->content_length > server->limits.body_bytes) {
        mf_api_fail(&error, 413, NULL, "the request's body is too large: at most %zu bytes", server->limits.body_bytes);
        return answer(exchange, &error);
    }
    return true;
}
