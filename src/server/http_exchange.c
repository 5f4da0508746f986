/* http_exchange.c - what a handler may ask of a request. */
#include <string.h>

#include "server/http_impl.h"

const char *mf_exchange_method(const mf_exchange *exchange)
{
    return mf_http1_text(&exchange->parser, exchange->parser.method);
}

const char *mf_exchange_path(const mf_exchange *exchange)
{
    /* No offset of a path is 0, where the method stands. */
    return exchange->parser.path ? mf_http1_text(&exchange->parser, exchange->parser.path) : "";
}

const char *mf_exchange_tail(const mf_exchange *exchange)
{
    return exchange->tail ? exchange->tail : "";
}

bool mf_exchange_query(const mf_exchange *exchange, const char *name, char *out, size_t size)
{
    return exchange->parser.query && size > 0 &&
           mf_http1_query_value(mf_http1_text(&exchange->parser, exchange->parser.query), name, out, size);
}

const char *mf_exchange_header(const mf_exchange *exchange, const char *name)
{
    return mf_http1_find(&exchange->parser, name);
}

const char *mf_exchange_body(const mf_exchange *exchange, size_t *size)
{
    *size = exchange->body.size;
    return mf_buffer_text(&exchange->body);
}

void mf_exchange_release_body(mf_exchange *exchange)
{
    exchange->connection->server->body_bytes -= (int64_t)exchange->body_counted;
    exchange->body_counted = 0;
    mf_buffer_close(&exchange->body);
}

void mf_exchange_drop_body(mf_exchange *exchange)
{
    mf_exchange_release_body(exchange);
}

const char *mf_exchange_request_id(const mf_exchange *exchange)
{
    return exchange->request_id;
}

const char *mf_exchange_peer(const mf_exchange *exchange)
{
    return exchange->connection->peer;
}

int64_t mf_exchange_received_ns(const mf_exchange *exchange)
{
    return exchange->received_ns;
}

void mf_exchange_attach(mf_exchange *exchange, const mf_exchange_events *events, void *data)
{
    exchange->events = events;
    exchange->data = data;
}

void *mf_exchange_data(const mf_exchange *exchange)
{
    return exchange->data;
}
