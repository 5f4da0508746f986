/* http_client.c - see http_client.h. */
#include "cli/http_client.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <strings.h>

#include "base/sys.h"

struct mf_http_connection {
    struct event_base *base;
    const mf_http_target *target;
    struct bufferevent *bev; /* NULL: not connected */
    mf_http_response response;
    mf_http_handler handler;
    mf_buffer request; /* kept for the second try */
    double silence_s;
    bool busy, connected, is_reused, got_bytes;
};

/* ---- the target ---- */

static mf_status split_url(const char *url, mf_http_target *out, char *name, size_t name_size, char *port,
                           size_t port_size, mf_error *err)
{
    if (strncasecmp(url, "https://", 8) == 0) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "%.256s: https is not spoken here; expected http://HOST[:PORT]", url);
    }
    if (strncasecmp(url, "http://", 7) != 0) {
        return mf_fail(err, MF_ERR_INVALID, "expected http://HOST[:PORT]; got \"%.256s\"", url);
    }
    const char *host = url + 7, *end = host + strcspn(host, "/?#");
    const char *host_end = end, *colon = NULL;
    if (*host == '[') { /* an IPv6 address */
        const char *bracket = memchr(host, ']', (size_t)(end - host));
        colon = bracket && bracket + 1 < end && bracket[1] == ':' ? bracket + 1 : NULL;
        host_end = bracket ? bracket + 1 : host;
    } else {
        colon = memchr(host, ':', (size_t)(end - host));
        host_end = colon ? colon : end;
    }
    bool v6 = *host == '[';
    size_t n = (size_t)(host_end - host);
    size_t port_n = colon ? (size_t)(end - colon - 1) : 2;
    bool clean = n > (v6 ? 2u : 0u) && n < name_size && port_n > 0 && port_n < port_size &&
                 (colon || host_end == end) && *end != '?' && *end != '#';
    for (const char *p = host; clean && p < end; p++) {
        clean = *p > ' ' && *p < 0x7f && *p != '@';
    }
    size_t prefix = strlen(end);
    while (prefix > 0 && end[prefix - 1] == '/') {
        prefix--;
    }
    if (prefix >= 3 && memcmp(end + prefix - 3, "/v1", 3) == 0) { /* as openai clients give it */
        prefix -= 3;
    }
    clean = clean && prefix < sizeof out->prefix;
    for (size_t i = 0; clean && i < prefix; i++) {
        clean = end[i] > ' ' && end[i] < 0x7f && end[i] != '?' && end[i] != '#';
    }
    if (!clean) {
        return mf_fail(err, MF_ERR_INVALID, "expected http://HOST[:PORT]; got \"%.256s\"", url);
    }
    snprintf(name, name_size, "%.*s", (int)(v6 ? n - 2 : n), v6 ? host + 1 : host);
    snprintf(port, port_size, "%.*s", (int)port_n, colon ? colon + 1 : "80");
    snprintf(out->host, sizeof out->host, "%.*s", (int)(end - host), host);
    snprintf(out->prefix, sizeof out->prefix, "%.*s", (int)prefix, end);
    return MF_OK;
}

mf_status mf_http_target_open(const char *url, mf_http_target *out, mf_error *err)
{
    char name[256], port[6];
    *out = (mf_http_target){ 0 };
    MF_TRY(split_url(url, out, name, sizeof name, port, sizeof port, err));
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_ADDRCONFIG }, *found = NULL;
    int problem = getaddrinfo(name, port, &hints, &found);
    if (problem == EAI_NONAME || problem == EAI_ADDRFAMILY) { /* loopback may be all there is */
        hints.ai_flags = AI_NUMERICSERV;
        problem = getaddrinfo(name, port, &hints, &found);
    }
    if (problem != 0) {
        return mf_fail(err, MF_ERR_INVALID, "%.256s: %s", url, gai_strerror(problem));
    }
    /* localhost may mean ::1 first, where few servers listen: an IPv4 address is preferred. */
    const struct addrinfo *best = found;
    for (const struct addrinfo *a = found; a; a = a->ai_next) {
        if (a->ai_family == AF_INET && best->ai_family != AF_INET) {
            best = a;
        }
    }
    memcpy(&out->address, best->ai_addr, best->ai_addrlen);
    out->address_size = best->ai_addrlen;
    freeaddrinfo(found);
    return MF_OK;
}

/* ---- a connection ---- */

static mf_status start(mf_http_connection *c, mf_error *err);

static void disconnect(mf_http_connection *c)
{
    if (c->bev) {
        bufferevent_free(c->bev);
    }
    c->bev = NULL;
    c->connected = false;
}

static void finish(mf_http_connection *c, const mf_error *failure)
{
    if (failure || !c->response.keep_alive) {
        disconnect(c);
    }
    c->busy = false;
    c->handler.done(c->handler.context, &c->response, failure);
}

static void on_read(struct bufferevent *bev, void *context)
{
    mf_http_connection *c = context;
    struct evbuffer *input = bufferevent_get_input(bev);
    while (c->busy && evbuffer_get_length(input) > 0) {
        struct evbuffer_iovec piece;
        evbuffer_peek(input, -1, NULL, &piece, 1);
        c->got_bytes = true;
        size_t used = 0;
        mf_error err = { 0 };
        mf_status status = mf_http_response_feed(&c->response, piece.iov_base, piece.iov_len, &used, c->handler.body,
                                                 c->handler.context, &err);
        if (status != MF_OK) {
            finish(c, &err);
            return;
        }
        evbuffer_drain(input, used);
        if (c->response.part == MF_HTTP_DONE) {
            if (evbuffer_get_length(input) > 0) {
                c->response.keep_alive = false; /* bytes that nobody asked for */
            }
            finish(c, NULL);
            return; /* the connection may be gone, or carry the next request */
        }
    }
    if (!c->busy) {
        disconnect(c);
    }
}

static void fail_or_retry(mf_http_connection *c, const mf_error *failure)
{
    if (!c->busy) { /* the server closed a kept connection that nobody uses now */
        disconnect(c);
        return;
    }
    if (c->is_reused && !c->got_bytes) { /* it had closed before this request came */
        disconnect(c);
        mf_error err = { 0 };
        if (start(c, &err) != MF_OK) {
            finish(c, &err);
        }
        return;
    }
    finish(c, failure);
}

static void on_event(struct bufferevent *bev, short what, void *context)
{
    mf_http_connection *c = context;
    mf_error err = { 0 };
    if (what & BEV_EVENT_CONNECTED) {
        c->connected = true;
        int one = 1;
        setsockopt(bufferevent_getfd(bev), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    } else if (what & BEV_EVENT_TIMEOUT) {
        mf_fail(&err, MF_ERR_IO, "%s: no byte for %g s", c->target->host, c->silence_s);
        c->is_reused = false;
        fail_or_retry(c, &err);
    } else if (what & BEV_EVENT_EOF) {
        if (c->busy && mf_http_response_end(&c->response, &err) == MF_OK) {
            c->response.keep_alive = false;
            finish(c, NULL);
        } else {
            fail_or_retry(c, &err);
        }
    } else if (what & BEV_EVENT_ERROR) {
        int code = EVUTIL_SOCKET_ERROR();
        mf_fail(&err, MF_ERR_IO, "%s%s: %s", c->connected ? "" : "cannot connect to ", c->target->host,
                evutil_socket_error_to_string(code));
        fail_or_retry(c, &err);
    }
}

mf_status mf_http_connection_open(struct event_base *base, const mf_http_target *target, mf_http_connection **out,
                                  mf_error *err)
{
    *out = mf_alloc_zero(sizeof **out);
    if (!*out) {
        return mf_fail(err, MF_ERR_NOMEM, "client: out of memory");
    }
    (*out)->base = base;
    (*out)->target = target;
    return MF_OK;
}

void mf_http_connection_close(mf_http_connection **connection)
{
    mf_http_connection *c = *connection;
    if (c) {
        disconnect(c);
        mf_http_response_close(&c->response);
        mf_buffer_close(&c->request);
        mf_free(c);
    }
    *connection = NULL;
}

const mf_http_response *mf_http_connection_response(const mf_http_connection *c)
{
    return &c->response;
}

static mf_status start(mf_http_connection *c, mf_error *err)
{
    c->is_reused = c->bev != NULL;
    c->got_bytes = false;
    mf_http_response_reset(&c->response);
    if (!c->bev) {
        c->bev = bufferevent_socket_new(c->base, -1, BEV_OPT_CLOSE_ON_FREE);
        if (!c->bev) {
            return mf_fail(err, MF_ERR_NOMEM, "client: out of memory");
        }
        bufferevent_setcb(c->bev, on_read, NULL, on_event, c);
        bufferevent_enable(c->bev, EV_READ | EV_WRITE);
    }
    struct timeval limit = { .tv_sec = (time_t)c->silence_s, .tv_usec = 0 };
    bufferevent_set_timeouts(c->bev, &limit, &limit);
    if (bufferevent_write(c->bev, c->request.data, c->request.size) != 0) {
        disconnect(c);
        return mf_fail(err, MF_ERR_NOMEM, "client: out of memory");
    }
    if (!c->is_reused && bufferevent_socket_connect(c->bev, (const struct sockaddr *)&c->target->address,
                                                    (int)c->target->address_size) != 0) {
        int code = errno;
        disconnect(c);
        return mf_fail(err, MF_ERR_IO, "cannot connect to %s: %s", c->target->host, strerror(code));
    }
    return MF_OK;
}

mf_status mf_http_connection_send(mf_http_connection *c, const mf_http_request *request, const mf_http_handler *handler,
                                  mf_error *err)
{
    mf_buffer *b = &c->request;
    mf_buffer_clear(b);
    mf_status status =
        mf_buffer_printf(b, "%s %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: moefuse/%s\r\nAccept: */*\r\n",
                         request->method, c->target->prefix, request->path, c->target->host, MF_VERSION_STRING);
    if (status == MF_OK && request->api_key && request->api_key[0]) {
        status = mf_buffer_printf(b, "Authorization: Bearer %s\r\n", request->api_key);
    }
    if (status == MF_OK && request->body) {
        status = mf_buffer_printf(b, "Content-Type: application/json\r\nContent-Length: %zu\r\n", request->body_size);
    }
    if (status == MF_OK) {
        status = mf_buffer_append_text(b, "\r\n");
    }
    if (status == MF_OK && request->body) {
        status = mf_buffer_append(b, request->body, request->body_size);
    }
    if (status != MF_OK) {
        return mf_fail(err, status, "client: out of memory");
    }
    c->handler = *handler;
    c->silence_s = request->silence_s > 0 ? request->silence_s : 600;
    c->busy = true;
    status = start(c, err);
    c->busy = status == MF_OK;
    return status;
}

/* ---- one request ---- */

typedef struct fetch {
    mf_buffer *body;
    int status;
    mf_error failure;
    bool failed, ended;
} fetch;

static mf_status on_fetch_body(void *context, const char *bytes, size_t size, mf_error *err)
{
    fetch *f = context;
    mf_status status = mf_buffer_append(f->body, bytes, size);
    return status == MF_OK ? MF_OK : mf_fail(err, status, "answer: longer than expected");
}

static void on_fetch_done(void *context, const mf_http_response *response, const mf_error *failure)
{
    fetch *f = context;
    f->status = response->status;
    f->failed = failure != NULL;
    if (failure) {
        f->failure = *failure;
    }
    f->ended = true;
}

mf_status mf_http_fetch(const mf_http_target *target, const mf_http_request *request, int *status, mf_buffer *body,
                        mf_error *err)
{
    fetch f = { .body = body };
    mf_http_handler handler = { &f, on_fetch_body, on_fetch_done };
    mf_http_connection *connection = NULL;
    struct event_base *base = event_base_new();
    mf_status result = base ? mf_http_connection_open(base, target, &connection, err)
                            : mf_fail(err, MF_ERR_NOMEM, "client: out of memory");
    if (result == MF_OK) {
        result = mf_http_connection_send(connection, request, &handler, err);
    }
    while (result == MF_OK && !f.ended) {
        if (event_base_loop(base, EVLOOP_ONCE) != 0 && !f.ended) {
            result = mf_fail(err, MF_ERR_INTERNAL, "client: the event loop ended");
        }
    }
    if (result == MF_OK && f.failed) {
        result = mf_fail(err, f.failure.status, "%s", f.failure.message);
    }
    *status = f.status;
    mf_http_connection_close(&connection);
    if (base) {
        event_base_free(base);
    }
    return result;
}
