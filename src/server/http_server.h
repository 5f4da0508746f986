/* http_server.h - an HTTP/1.1 server on libevent's loop: connections, framing, limits, keys, origins, routes by table.
 *
 * Everything here runs on the thread that runs the event base (the I/O thread).  A handler sees a request only after head,
 * framing, key, origin, content type and the whole body have been checked; it answers at once, or later, or as a stream. */
#ifndef MF_SERVER_HTTP_SERVER_H
#define MF_SERVER_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "server/api_error.h"

struct event_base;

typedef struct mf_http_server mf_http_server;
/* One request and its answer.  It is the connection's; a handler may use it until it has ended the answer, or until `gone`. */
typedef struct mf_exchange mf_exchange;

/* ---- routes ---- */

typedef struct mf_route {
    const char *method; /* "GET" (HEAD goes with it), "POST" */
    const char *path;   /* exact; "/v1/models/" followed by a star takes the rest of the path as mf_exchange_tail */
    void (*handle)(void *context, mf_exchange *exchange);
    const char *summary; /* for the OpenAPI file; NULL = left out of it */
    bool before_ready;   /* answers while the model loads and while draining; others get 503 with Retry-After */
} mf_route;

/* ---- the server ---- */

typedef struct mf_http_options {
    const char *host;     /* NULL: 127.0.0.1 */
    int32_t port;         /* 0: a free one */
    const char *uds_path; /* a UNIX socket instead of host and port */
    int listen_fd;        /* > 0: this listening socket instead (taken over, or handed by systemd); the server's from then on */

    const mf_route *routes;
    size_t num_routes;
    void *context; /* of the routes' handlers and of `refuse` */
    /* Why no work is taken now (loading, draining, dead): fills *error with 503 and returns true.  NULL: never. */
    bool (*refuse)(void *context, mf_api_error *error);
    /* Told of every answer, when its head is sent: for metrics and the access log.  NULL: nobody. */
    void (*answered)(void *context, const mf_exchange *exchange, int status);

    const char *const *api_keys; /* copied as digests */
    size_t num_api_keys;
    const char *const *public_paths; /* need no key */
    size_t num_public_paths;
    const char *const *allowed_origins; /* exact, or one "*" */
    size_t num_allowed_origins;

    int32_t max_connections, max_connections_per_ip; /* 0: 16384, less where the system allows fewer files; 0 per ip: off */
    const char *server_name;                         /* the Server header: "moefuse/0.1.0" */
    const struct mf_http_limits *limits;             /* NULL: the defaults of spec 5.2; tests make times short */
} mf_http_options;

/* One table of every limit; the documentation is made from it. */
typedef struct mf_http_limits {
    size_t head_bytes, url_bytes, body_bytes, all_bodies_bytes, backlog_bytes; /* 32 KiB, 8 KiB, 8 MiB, 64 MiB, 64 KiB */
    int32_t num_fields;                                                        /* 100 */
    int64_t first_byte_ns, head_ns, idle_ns, body_grace_ns, write_stall_ns;    /* 30 s, 10 s, 75 s, 10 s, 30 s */
    int64_t body_bytes_per_s;                                                  /* 1 KiB/s after body_grace_ns */
} mf_http_limits;

extern const mf_http_limits mf_http_default_limits;

mf_status mf_http_server_open(struct event_base *base, const mf_http_options *options, mf_http_server **server, mf_error *err);
/* Closes every connection at once (their exchanges are told `gone`).  Not from inside a handler or an event of an exchange.
 * NULL is fine; sets *server to NULL. */
void mf_http_server_close(mf_http_server **server);

int32_t mf_http_server_port(const mf_http_server *server); /* the real one; 0 for a UNIX socket */
int mf_http_server_listen_fd(const mf_http_server *server); /* for a takeover; still the server's */
/* Each open connection closes after its present answer ("Connection: close"), idle ones within a second.  New ones are still
 * heard - clients then read why (`refuse`) instead of a reset - and close after one answer. */
void mf_http_server_drain(mf_http_server *server);
/* Another process has the listening socket: stops listening without touching a UNIX socket's path, and drains;
 * idle connections have five seconds, since their clients know of no change. */
void mf_http_server_hand_over(mf_http_server *server);
int32_t mf_http_server_num_connections(const mf_http_server *server);
int64_t mf_http_server_body_bytes(const mf_http_server *server); /* of bodies present now */

/* ---- a request ---- */

const char *mf_exchange_method(const mf_exchange *exchange);
const char *mf_exchange_path(const mf_exchange *exchange); /* decoded, without the query */
const char *mf_exchange_tail(const mf_exchange *exchange); /* what the route's star stands for; "" else */
/* The decoded value of a query parameter into out[size]; false when it is absent or longer. */
bool mf_exchange_query(const mf_exchange *exchange, const char *name, char *out, size_t size);
const char *mf_exchange_header(const mf_exchange *exchange, const char *name); /* NULL when absent; case-insensitive */
const char *mf_exchange_body(const mf_exchange *exchange, size_t *size);       /* NUL behind it; valid until the answer ends */
void mf_exchange_drop_body(mf_exchange *exchange); /* its memory is free again: for calls that live long */
const char *mf_exchange_request_id(const mf_exchange *exchange); /* the client's X-Request-Id, or a new one */
const char *mf_exchange_peer(const mf_exchange *exchange);       /* "127.0.0.1:50112", "unix" */
int64_t mf_exchange_received_ns(const mf_exchange *exchange);    /* when its head was complete */

/* ---- its answer ---- */

typedef struct mf_exchange_events {
    /* The client went, stalled too long, or the server closes: the exchange is dead after this call.  Nothing of the
     * server may be called for it from here on.  A client that only half-closes has gone, too. */
    void (*gone)(void *data, mf_exchange *exchange, const char *cause); /* "closed", "reset", "stalled", "shutdown",
                                                                              "out of memory" */
    /* The backlog fell to half of backlog_bytes after mf_exchange_write had returned false. */
    void (*drained)(void *data, mf_exchange *exchange);
} mf_exchange_events;

/* For an answer that comes later: who is told what happens meanwhile. */
void mf_exchange_attach(mf_exchange *exchange, const mf_exchange_events *events, void *data);
void *mf_exchange_data(const mf_exchange *exchange);

/* One more header line of the answer, before it begins: name and value are copied and must hold no control byte. */
void mf_exchange_add_header(mf_exchange *exchange, const char *name, const char *value);

/* A whole answer.  Ends the exchange. */
void mf_exchange_reply(mf_exchange *exchange, int status, const char *content_type, const void *body, size_t size);
void mf_exchange_reply_error(mf_exchange *exchange, const mf_api_error *error);

/* An answer in pieces (chunked; for HTTP/1.0 until the connection closes). */
void mf_exchange_begin(mf_exchange *exchange, int status, const char *content_type);
/* One piece, sent with one write where the socket takes it.  false: the backlog is full - the piece is kept all the same -
 * and no more should be written until `drained`; or the client has left, which `gone` will say on the loop's next turn. */
bool mf_exchange_write(mf_exchange *exchange, const void *data, size_t size);
size_t mf_exchange_backlog(const mf_exchange *exchange); /* bytes that the client has not taken yet */
/* Ends the exchange; close: the connection too. */
void mf_exchange_end(mf_exchange *exchange, bool close);

#endif
