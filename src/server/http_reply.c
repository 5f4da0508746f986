/* http_reply.c - answers: heads, whole bodies, pieces, errors. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "server/http_impl.h"

static const char *reason(int status)
{
    switch (status) {
    case 200:
        return "OK";
    case 204:
        return "No Content";
    case 304:
        return "Not Modified";
    case 400:
        return "Bad Request";
    case 401:
        return "Unauthorized";
    case 403:
        return "Forbidden";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 413:
        return "Content Too Large";
    case 414:
        return "URI Too Long";
    case 415:
        return "Unsupported Media Type";
    case 417:
        return "Expectation Failed";
    case 422:
        return "Unprocessable Content";
    case 429:
        return "Too Many Requests";
    case 431:
        return "Request Header Fields Too Large";
    case 500:
        return "Internal Server Error";
    case 501:
        return "Not Implemented";
    case 503:
        return "Service Unavailable";
    case 504:
        return "Gateway Timeout";
    default:
        return status < 300 ? "OK" : status < 500 ? "Error" : "Server Error";
    }
}

/* Made once a second. */
static const char *date_of(mf_http_server *server)
{
    time_t now = time(NULL);
    if ((int64_t)now != server->date_s || !server->date[0]) {
        static const char days[7][4] = { "Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat" };
        static const char months[12][4] = { "Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" };
        struct tm t = { 0 };
        gmtime_r(&now, &t);
        snprintf(server->date, sizeof server->date, "%s, %02d %s %04d %02d:%02d:%02d GMT", days[t.tm_wday % 7],
                 t.tm_mday % 100, months[t.tm_mon % 12], (t.tm_year + 1900) % 10000, t.tm_hour % 100, t.tm_min % 100,
                 t.tm_sec % 100);
        server->date_s = (int64_t)now;
    }
    return server->date;
}

void mf_exchange_add_header(mf_exchange *exchange, const char *name, const char *value)
{
    for (const char *p = value; *p; p++) {
        if (((unsigned char)*p < 0x20 && *p != '\t') || *p == 0x7f) {
            mf_log(MF_LOG_ERROR, "BUG: the answer's header %s holds a control byte and is left out", name);
            return;
        }
    }
    if (mf_http1_is_token(name)) {
        mf_buffer_printf(&exchange->extra, "%s: %s\r\n", name, value);
    }
}

static bool is_head_request(const mf_exchange *exchange)
{
    return strcmp(mf_exchange_method(exchange), "HEAD") == 0;
}

static mf_status write_cors(mf_exchange *exchange, mf_buffer *out)
{
    const mf_http_options *options = &exchange->connection->server->options;
    if (exchange->cors) {
        bool all = options->num_allowed_origins == 1 && strcmp(options->allowed_origins[0], "*") == 0;
        const char *origin = mf_http1_find(&exchange->parser, "origin");
        MF_TRY(mf_buffer_printf(
            out, "Access-Control-Allow-Origin: %s\r\nAccess-Control-Expose-Headers: X-Request-Id, Retry-After\r\n",
            all || !origin ? "*" : origin));
    }
    return options->num_allowed_origins ? mf_buffer_append_text(out, "Vary: Origin\r\n") : MF_OK;
}

/* size -1: not known, the answer comes in pieces. */
static mf_status write_head(mf_exchange *exchange, int status, const char *content_type, int64_t size, mf_buffer *out)
{
    mf_http_server *server = exchange->connection->server;
    mf_buffer_clear(out);
    MF_TRY(mf_buffer_printf(out, "HTTP/1.1 %d %s\r\nServer: %s\r\nDate: %s\r\nX-Request-Id: %s\r\n", status,
                            reason(status), server->options.server_name, date_of(server), exchange->request_id));
    if (content_type) {
        MF_TRY(mf_buffer_printf(out, "Content-Type: %s\r\n", content_type));
    }
    if (content_type && strncmp(content_type, "text/event-stream", 17) == 0) {
        MF_TRY(mf_buffer_append_text(out, "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"));
    }
    if (size >= 0 && status != 204 && status != 304) {
        MF_TRY(mf_buffer_printf(out, "Content-Length: %lld\r\n", (long long)size));
    } else if (exchange->chunked) {
        MF_TRY(mf_buffer_append_text(out, "Transfer-Encoding: chunked\r\n"));
    }
    if (exchange->close) {
        MF_TRY(mf_buffer_append_text(out, "Connection: close\r\n"));
    } else if (exchange->parser.minor == 0) {
        MF_TRY(mf_buffer_append_text(out, "Connection: keep-alive\r\n"));
    }
    MF_TRY(write_cors(exchange, out));
    MF_TRY(mf_buffer_append(out, mf_buffer_text(&exchange->extra), exchange->extra.size));
    return mf_buffer_append(out, "\r\n", 2);
}

/* The head into the server's scratch buffer; false: there can be no answer. */
static bool make_head(mf_exchange *exchange, int status, const char *content_type, int64_t size)
{
    mf_connection *connection = exchange->connection;
    mf_http_server *server = connection->server;
    if (exchange->begun || exchange->ended || connection->phase == MF_PHASE_DEAD) {
        return false;
    }
    exchange->begun = true;
    exchange->status = status;
    exchange->close |= !exchange->parser.keep_alive || server->draining;
    if (write_head(exchange, status, content_type, size, &server->head) != MF_OK) {
        connection->broken = connection->broken ? connection->broken : "out of memory";
        mf_connection_poke(connection);
    }
    mf_buffer_close(&exchange->extra);
    if (server->options.answered) {
        server->options.answered(server->options.context, exchange, status);
    }
    return true;
}

static void end(mf_exchange *exchange)
{
    exchange->ended = true;
    mf_connection_poke(exchange->connection);
}

void mf_exchange_reply(mf_exchange *exchange, int status, const char *content_type, const void *body, size_t size)
{
    mf_http_server *server = exchange->connection->server;
    if (!make_head(exchange, status, content_type, (int64_t)size)) {
        return;
    }
    bool has_body = size > 0 && status != 204 && status != 304 && !is_head_request(exchange);
    struct iovec pieces[2] = { { server->head.data, server->head.size }, { (void *)(uintptr_t)body, size } };
    mf_output_send(exchange->connection, pieces, has_body ? 2 : 1);
    end(exchange);
}

void mf_exchange_reply_error(mf_exchange *exchange, const mf_api_error *error)
{
    mf_buffer body = { 0 };
    if (error->retry_after_s > 0 && !exchange->begun) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", error->retry_after_s);
        mf_exchange_add_header(exchange, "Retry-After", seconds);
    }
    if (mf_api_error_write(error, &body) != MF_OK) {
        mf_buffer_clear(&body);
    }
    mf_exchange_reply(exchange, error->status, "application/json", mf_buffer_text(&body), body.size);
    mf_buffer_close(&body);
}

void mf_exchange_begin(mf_exchange *exchange, int status, const char *content_type)
{
    mf_http_server *server = exchange->connection->server;
    exchange->chunked = exchange->parser.minor >= 1;
    exchange->close |= exchange->parser.minor == 0;
    if (make_head(exchange, status, content_type, -1)) {
        mf_output_send(exchange->connection, &(struct iovec){ server->head.data, server->head.size }, 1);
    }
}

bool mf_exchange_write(mf_exchange *exchange, const void *data, size_t size)
{
    mf_connection *connection = exchange->connection;
    if (!exchange->begun || exchange->ended || connection->broken) {
        return false;
    }
    if (size > 0 && !is_head_request(exchange)) {
        char line[24];
        int n = snprintf(line, sizeof line, "%zx\r\n", size);
        struct iovec pieces[MF_OUTPUT_PIECES] = { { line, (size_t)n },
                                                  { (void *)(uintptr_t)data, size },
                                                  { (char[]){ '\r', '\n' }, 2 } };
        mf_output_send(connection, exchange->chunked ? pieces : pieces + 1, exchange->chunked ? 3 : 1);
    }
    exchange->full |= mf_output_pending(connection) >= connection->server->limits.backlog_bytes;
    return !exchange->full && !connection->broken;
}

size_t mf_exchange_backlog(const mf_exchange *exchange)
{
    return mf_output_pending(exchange->connection);
}

void mf_exchange_end(mf_exchange *exchange, bool close)
{
    if (!exchange->begun || exchange->ended) {
        return;
    }
    exchange->close |= close;
    if (exchange->chunked && !is_head_request(exchange)) {
        mf_output_send(exchange->connection, &(struct iovec){ (char[]){ '0', '\r', '\n', '\r', '\n' }, 5 }, 1);
    }
    end(exchange);
}
