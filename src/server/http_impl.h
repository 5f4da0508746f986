/* http_impl.h - what the files of the HTTP server share: the structures, and who does what.
 *
 *   http_server.c      open, accept, drain, close
 *   http_listen.c      listening sockets, descriptors
 *   http_connection.c  one connection's life: reading, deadlines, closing
 *   http_output.c      bytes on their way to the client
 *   http_gate.c        whether a request may pass: origin, key, route, type, size
 *   http_reply.c       answers
 *   http_exchange.c    what a handler may ask of a request
 *
 * A connection is touched by its own turn (an event on its socket, its timer) and by handlers through mf_exchange_...
 * The latter only write and mark; ending, closing and freeing are the turn's, so nothing vanishes under a caller. */
#ifndef MF_SERVER_HTTP_IMPL_H
#define MF_SERVER_HTTP_IMPL_H

#include <event2/event.h>
#include <event2/event_struct.h>
#include <sys/uio.h>

#include "base/arena.h"
#include "server/api_keys.h"
#include "server/http1.h"
#include "server/http_server.h"
#include "server/peer_table.h"

typedef struct mf_connection mf_connection;

typedef enum mf_phase {
    MF_PHASE_HEAD = 0, /* idle, or a head is coming */
    MF_PHASE_BODY,
    MF_PHASE_WORKING, /* the request is complete and a handler's, until it is `ended` */
    MF_PHASE_FLUSH,   /* the answer is complete and on its way */
    MF_PHASE_LINGER,  /* all is sent; what the client still sends is dropped, so that no reset overtakes the answer */
    MF_PHASE_DEAD     /* closed; freed at the server's next turn */
} mf_phase;

struct mf_exchange {
    mf_connection *connection;
    mf_http1 parser;
    mf_buffer body;
    size_t body_counted; /* of the budget over all connections */
    mf_buffer extra;     /* header lines of the answer */
    const mf_route *route;
    const char *tail;
    char request_id[129];
    int64_t received_ns;
    const mf_exchange_events *events;
    void *data;
    int status;          /* of the answer, once its head is made */
    bool skips_body;     /* answered already: the body is read and dropped */
    bool cors;           /* its origin is an allowed one */
    bool begun, ended;   /* the answer */
    bool chunked, close; /* of the answer: how it is framed; that the connection ends with it */
    bool full;           /* mf_exchange_write said false, and `drained` was not told yet */
};

struct mf_connection {
    mf_http_server *server;
    mf_connection *next, *previous;
    struct event io, timer;
    int fd;
    mf_phase phase;
    int64_t deadline_ns, armed_ns; /* when the phase ends; when the timer goes off: never later */
    mf_exchange *exchange;         /* NULL while idle */
    mf_buffer in, out;             /* read and not parsed yet; not taken by the socket yet */
    size_t in_offset, out_offset;
    int64_t window_bytes; /* of the body in the present rate window; what was dropped while lingering */
    const char *broken;   /* why it cannot go on, found while a handler was writing */
    bool readable;        /* a read may bring something */
    bool peer_closed, in_turn, closing, unread, is_idle, is_counted, is_refused;
    char peer[56];
    unsigned char address[16];
};

struct mf_http_server {
    struct event_base *base;
    mf_http_options options; /* its lists are the arena's copies */
    mf_http_limits limits;
    mf_arena arena;
    mf_api_keys keys;
    char host_name[256]; /* of this machine */

    int listen_fd, spare_fd;
    bool owns_uds_path;
    int32_t port;
    struct event accept_event, reap_event, resume_event;
    bool has_events;

    mf_connection *connections, *doomed;
    int32_t num_connections, num_refused;
    mf_peer_table peers;
    int64_t body_bytes;
    bool draining;
    int64_t drain_idle_ms; /* set with draining */

    char date[40];
    int64_t date_s;
    mf_buffer head; /* scratch of one answer's head */
    char scratch[16384];
};

/* http_listen.c */
mf_status mf_http_listen(const mf_http_options *options, int *fd, mf_error *err);
int32_t mf_http_bound_port(int fd);
/* Raises the soft limit of descriptors towards `wanted`; returns what it is then. */
int64_t mf_http_raise_descriptors(int64_t wanted);
void mf_http_format_peer(const struct sockaddr *from, char *out, size_t size);

/* http_connection.c */
mf_connection *mf_connection_open(mf_http_server *server, int fd, const struct sockaddr *from);
void mf_connection_refuse(mf_connection *connection); /* says 503 and closes: there are too many */
void mf_connection_die(mf_connection *connection, const char *cause);
void mf_connection_free(mf_connection *connection); /* of a dead one */
void mf_connection_set_deadline(mf_connection *connection, int64_t from_now_ns);
void mf_connection_drain(mf_connection *connection, int64_t idle_ms); /* closed when idle for so long */
void mf_connection_poke(mf_connection *connection); /* its turn comes soon */
void mf_exchange_release_body(mf_exchange *exchange);

/* http_output.c */
enum { MF_OUTPUT_PIECES = 3 };
void mf_output_send(mf_connection *connection, const struct iovec *pieces, int num_pieces);
void mf_output_flush(mf_connection *connection);
size_t mf_output_pending(const mf_connection *connection);

/* http_gate.c: true - the request goes on; false - it has been answered. */
bool mf_http_gate(mf_exchange *exchange);

/* http_route.c */
const mf_route *mf_route_find(const mf_route *routes, size_t num_routes, const char *method, const char *path,
                              const char **tail);
/* "GET, HEAD, OPTIONS"; "" when nothing is at the path. */
void mf_route_allow(const mf_route *routes, size_t num_routes, const char *path, char *out, size_t size);

/* http_origin.c */
bool mf_origin_is_own(const mf_http_server *server, const char *origin, const char *host);
bool mf_origin_is_allowed(const mf_http_server *server, const char *origin);

#endif
