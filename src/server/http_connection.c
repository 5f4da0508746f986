/* http_connection.c - one connection's life: reading, deadlines, requests in order, closing.
 *
 * The socket is watched edge-triggered for reading, writing and the client's leaving, once and for good: no system call
 * changes that later.  While a handler works nothing is read (what is pipelined waits in the socket), but a FIN or RST
 * is still seen at once.  `take_turn` goes as far as it can without waiting; every event ends there. */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/sys.h"
#include "server/http_impl.h"

enum {
    REQUESTS_PER_TURN = 16, /* pipelined; then others have their turn */
    READS_PER_TURN = 64,
    LINGER_MS = 2000,
    LINGER_BYTES = 1 << 26,
};

static void take_turn(mf_connection *connection);

/* ---- deadlines ---- */

/* from_now_ns -1: none.  The timer is moved only to go off earlier; going off too early it looks again. */
void mf_connection_set_deadline(mf_connection *connection, int64_t from_now_ns)
{
    int64_t now = mf_now_ns();
    connection->deadline_ns = from_now_ns < 0 ? INT64_MAX : now + from_now_ns;
    if (connection->deadline_ns >= connection->armed_ns || connection->phase == MF_PHASE_DEAD) {
        return;
    }
    int64_t us = (from_now_ns + 999) / 1000;
    struct timeval wait = { (time_t)(us / 1000000), (suseconds_t)(us % 1000000) };
    connection->armed_ns = connection->deadline_ns;
    if (event_add(&connection->timer, &wait) != 0) {
        connection->broken = "out of memory";
        mf_connection_poke(connection);
    }
}

void mf_connection_poke(mf_connection *connection)
{
    if (!connection->in_turn && connection->phase != MF_PHASE_DEAD) {
        event_active(&connection->io, EV_TIMEOUT, 0);
    }
}

/* ---- leaving ---- */

static void free_exchange(mf_connection *connection)
{
    mf_exchange *exchange = connection->exchange;
    if (exchange) {
        mf_exchange_release_body(exchange);
        mf_buffer_close(&exchange->extra);
        mf_http1_close(&exchange->parser);
        mf_free(exchange);
        connection->exchange = NULL;
    }
}

void mf_connection_free(mf_connection *connection)
{
    free_exchange(connection);
    mf_buffer_close(&connection->in);
    mf_buffer_close(&connection->out);
    mf_free(connection);
}

void mf_connection_die(mf_connection *connection, const char *cause)
{
    mf_http_server *server = connection->server;
    mf_exchange *exchange = connection->exchange;
    if (connection->phase == MF_PHASE_DEAD) {
        return;
    }
    bool is_handlers = connection->phase == MF_PHASE_WORKING && exchange && !exchange->ended;
    connection->phase = MF_PHASE_DEAD;
    if (is_handlers) {
        exchange->ended = true;
        if (exchange->events && exchange->events->gone) {
            exchange->events->gone(exchange->data, exchange, cause);
        }
    }
    event_del(&connection->io);
    event_del(&connection->timer);
    close(connection->fd);
    connection->fd = -1;
    *(connection->previous ? &connection->previous->next : &server->connections) = connection->next;
    if (connection->next) {
        connection->next->previous = connection->previous;
    }
    if (connection->is_refused) {
        server->num_refused--;
    } else {
        server->num_connections--;
    }
    if (connection->is_counted) {
        mf_peer_table_remove(&server->peers, connection->address);
    }
    if (exchange) {
        mf_exchange_release_body(exchange);
    }
    connection->previous = NULL;
    connection->next = server->doomed;
    server->doomed = connection;
    if (server->has_events) {
        event_active(&server->reap_event, EV_TIMEOUT, 0);
    }
}

/* All is sent and the connection ends.  Closing a socket with unread bytes makes the system send a reset, which may
 * overtake the answer: so the client is told the end first, and what it still sends is dropped. */
static void leave(mf_connection *connection)
{
    char byte;
    bool has_unread = connection->unread || connection->in_offset < connection->in.size ||
                      (connection->readable && recv(connection->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0);
    if (!has_unread || shutdown(connection->fd, SHUT_WR) != 0) {
        mf_connection_die(connection, "closed");
        return;
    }
    connection->phase = MF_PHASE_LINGER;
    connection->window_bytes = 0;
    connection->readable = true;
    mf_buffer_close(&connection->in);
    connection->in_offset = 0;
    free_exchange(connection);
    mf_connection_set_deadline(connection, LINGER_MS * INT64_C(1000000));
}

static void linger(mf_connection *connection)
{
    for (int i = 0; i < READS_PER_TURN; i++) {
        ssize_t n = recv(connection->fd, connection->server->scratch, sizeof connection->server->scratch, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            connection->readable = false;
            return;
        }
        connection->window_bytes += n;
        if (n <= 0 || connection->window_bytes > LINGER_BYTES) {
            mf_connection_die(connection, "closed");
            return;
        }
    }
    event_active(&connection->io, EV_TIMEOUT, 0);
}

/* ---- a request's parts ---- */

static mf_exchange *open_exchange(mf_connection *connection)
{
    mf_http_server *server = connection->server;
    mf_exchange *exchange = mf_alloc_zero(sizeof *exchange);
    if (exchange) {
        mf_http1_limits limits = { .head_bytes = server->limits.head_bytes,
                                   .url_bytes = server->limits.url_bytes,
                                   .body_bytes = server->limits.body_bytes,
                                   .num_fields = server->limits.num_fields };
        exchange->connection = connection;
        mf_http1_init(&exchange->parser, &limits);
    }
    connection->exchange = exchange;
    return exchange;
}

/* The same memory for the next request of a pipeline. */
static void reuse_exchange(mf_exchange *exchange)
{
    mf_exchange_release_body(exchange);
    mf_buffer_close(&exchange->extra);
    mf_http1_reset(&exchange->parser);
    *exchange = (mf_exchange){ .connection = exchange->connection, .parser = exchange->parser };
}

/* The client's own where it is harmless in logs and headers, else 128 random bits. */
static void name_request(mf_exchange *exchange)
{
    const char *wanted = mf_http1_find(&exchange->parser, "x-request-id");
    size_t n = wanted ? strspn(wanted, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") : 0;
    if (n > 0 && n < sizeof exchange->request_id && !wanted[n]) {
        memcpy(exchange->request_id, wanted, n + 1);
        return;
    }
    unsigned char bytes[16];
    randombytes_buf(bytes, sizeof bytes);
    sodium_bin2hex(exchange->request_id, sizeof exchange->request_id, bytes, sizeof bytes);
}

/* From here on only the answer counts. */
static void enter_working(mf_connection *connection)
{
    connection->phase = MF_PHASE_WORKING;
    mf_connection_set_deadline(connection,
                               mf_output_pending(connection) ? connection->server->limits.write_stall_ns : -1);
}

/* An answer of the server's own to what cannot go on; the connection ends with it. */
static void refuse(mf_connection *connection, int status, const char *message)
{
    mf_exchange *exchange = connection->exchange;
    mf_api_error error;
    mf_api_fail(&error, status, NULL, "%s", message);
    exchange->close = true;
    connection->closing = connection->unread = true;
    if (!exchange->request_id[0]) {
        name_request(exchange);
        exchange->received_ns = mf_now_ns();
    }
    enter_working(connection);
    if (exchange->begun) {
        exchange->ended = true; /* it was answered before its body came */
    } else {
        mf_exchange_reply_error(exchange, &error);
    }
}

static void on_head(mf_connection *connection, mf_exchange *exchange, bool body_waits)
{
    exchange->received_ns = mf_now_ns();
    name_request(exchange);
    if (!mf_http_gate(exchange)) {
        exchange->skips_body = true;
        if (exchange->close && (exchange->parser.chunked || exchange->parser.content_length > 0)) {
            connection->unread = true;
            enter_working(connection);
            return;
        }
    }
    connection->phase = MF_PHASE_BODY;
    connection->window_bytes = 0;
    if (exchange->parser.chunked || exchange->parser.content_length > 0) {
        mf_connection_set_deadline(connection, connection->server->limits.body_grace_ns);
    }
    if (exchange->parser.expects_continue && !exchange->skips_body && !body_waits) {
        static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
        mf_output_send(connection, &(struct iovec){ (void *)(uintptr_t)go_on, sizeof go_on - 1 }, 1);
    }
}

static void on_body(mf_connection *connection, mf_exchange *exchange, const void *bytes, size_t size)
{
    mf_http_server *server = connection->server;
    connection->window_bytes += (int64_t)size;
    if (exchange->skips_body) {
        return;
    }
    if ((uint64_t)server->body_bytes + size > server->limits.all_bodies_bytes ||
        mf_buffer_append(&exchange->body, bytes, size) != MF_OK) {
        mf_exchange_release_body(exchange);
        refuse(connection, 503, "the server holds too many request bodies at this moment");
        return;
    }
    exchange->body_counted += size;
    server->body_bytes += (int64_t)size;
}

static void on_request(mf_connection *connection, mf_exchange *exchange)
{
    mf_http_server *server = connection->server;
    enter_working(connection);
    if (exchange->skips_body) {
        return;
    }
    exchange->route->handle(server->options.context, exchange);
    if (!exchange->begun && !exchange->events && connection->phase == MF_PHASE_WORKING) {
        mf_api_error error;
        mf_api_fail(&error, 500, NULL, "the request %s was left without an answer", exchange->request_id);
        mf_exchange_reply_error(exchange, &error);
    }
}

/* Parses until a request is complete or the bytes are used up; returns how many were used. */
static size_t consume(mf_connection *connection, const char *data, size_t size)
{
    size_t total = 0;
    while (connection->phase <= MF_PHASE_BODY) {
        mf_exchange *exchange = connection->exchange;
        if (!exchange) {
            exchange = open_exchange(connection);
            if (!exchange) {
                mf_connection_die(connection, "out of memory");
                break;
            }
        }
        const void *body;
        size_t used, body_size;
        mf_http1_event event = mf_http1_feed(&exchange->parser, data + total, size - total, &used, &body, &body_size);
        total += used;
        if (event == MF_HTTP1_MORE) {
            if (connection->phase == MF_PHASE_HEAD && connection->is_idle && exchange->parser.started) {
                connection->is_idle = false;
                mf_connection_set_deadline(connection, connection->server->limits.head_ns);
            }
            break;
        }
        connection->is_idle = false;
        switch (event) {
        case MF_HTTP1_HEAD:
            on_head(connection, exchange, total < size);
            break;
        case MF_HTTP1_BODY:
            on_body(connection, exchange, body, body_size);
            break;
        case MF_HTTP1_DONE:
            on_request(connection, exchange);
            break;
        default:
            refuse(connection, exchange->parser.status, exchange->parser.problem);
            break;
        }
    }
    return total;
}

/* ---- a turn ---- */

/* False: nothing more can be read now. */
static bool read_some(mf_connection *connection)
{
    mf_http_server *server = connection->server;
    if (connection->in_offset < connection->in.size) {
        connection->in_offset += consume(connection, connection->in.data + connection->in_offset,
                                         connection->in.size - connection->in_offset);
        if (connection->in_offset >= connection->in.size) {
            mf_buffer_close(&connection->in);
            connection->in_offset = 0;
        }
        return true;
    }
    if (!connection->readable) {
        return false;
    }
    ssize_t n = recv(connection->fd, server->scratch, sizeof server->scratch, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) {
        return true;
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        connection->readable = false;
        return false;
    }
    if (n <= 0) {
        mf_connection_die(connection, n == 0 ? "closed" : "reset");
        return false;
    }
    size_t used = consume(connection, server->scratch, (size_t)n);
    if (used < (size_t)n && connection->phase != MF_PHASE_DEAD &&
        mf_buffer_append(&connection->in, server->scratch + used, (size_t)n - used) != MF_OK) {
        mf_connection_die(connection, "out of memory");
        return false;
    }
    return true;
}

/* The answer is with the client: what is next? */
static void go_on(mf_connection *connection)
{
    connection->phase = MF_PHASE_HEAD;
    if (connection->in_offset < connection->in.size) {
        reuse_exchange(connection->exchange);
        connection->is_idle = false;
        mf_connection_set_deadline(connection, connection->server->limits.head_ns);
        return;
    }
    free_exchange(connection);
    connection->is_idle = true;
    mf_connection_set_deadline(connection, connection->server->limits.idle_ns);
    if (connection->server->draining) {
        mf_connection_drain(connection, connection->server->drain_idle_ms);
    }
}

/* The client is not there any more, as far as the socket tells without being read. */
static const char *find_gone(mf_connection *connection)
{
    int problem = 0;
    socklen_t size = sizeof problem;
    char byte;
    if (getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &problem, &size) == 0 && problem) {
        return problem == EPIPE ? "closed" : "reset";
    }
    if (connection->peer_closed) {
        return "closed";
    }
    ssize_t n = connection->readable ? recv(connection->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) : 1;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        connection->readable = false;
        return NULL;
    }
    return n == 0 ? "closed" : n < 0 && errno != EINTR ? "reset" : NULL;
}

static void tell_drained(mf_connection *connection)
{
    mf_exchange *exchange = connection->exchange;
    if (exchange && exchange->full && !exchange->ended && connection->phase == MF_PHASE_WORKING &&
        mf_output_pending(connection) <= connection->server->limits.backlog_bytes / 2) {
        exchange->full = false;
        if (exchange->events && exchange->events->drained) {
            exchange->events->drained(exchange->data, exchange);
        }
    }
}

/* One step; false: wait for an event. */
static bool step(mf_connection *connection, int *num_requests)
{
    mf_exchange *exchange = connection->exchange;
    const char *cause;
    if (connection->broken && connection->phase != MF_PHASE_DEAD) {
        mf_connection_die(connection, connection->broken);
    }
    switch (connection->phase) {
    case MF_PHASE_HEAD:
    case MF_PHASE_BODY:
        return read_some(connection);
    case MF_PHASE_WORKING:
        if (!exchange->ended) {
            cause = connection->readable || connection->peer_closed ? find_gone(connection) : NULL;
            if (cause) {
                mf_connection_die(connection, cause);
            }
            return false;
        }
        /* Only where the head said so: a client that was not told sends its next request here. */
        connection->closing |= exchange->close;
        mf_exchange_release_body(exchange);
        connection->phase = MF_PHASE_FLUSH;
        return true;
    case MF_PHASE_FLUSH:
        if (mf_output_pending(connection)) {
            if (connection->deadline_ns == INT64_MAX) {
                mf_connection_set_deadline(connection, connection->server->limits.write_stall_ns);
            }
            return false;
        }
        if (connection->closing) {
            leave(connection);
            return connection->phase == MF_PHASE_LINGER;
        }
        go_on(connection);
        ++*num_requests;
        return true;
    case MF_PHASE_LINGER:
        if (connection->readable) {
            linger(connection);
        }
        return false;
    default:
        return false;
    }
}

static void take_turn(mf_connection *connection)
{
    int num_requests = 0, num_steps = 0;
    connection->in_turn = true;
    mf_output_flush(connection);
    tell_drained(connection);
    while (step(connection, &num_requests)) {
        if (num_requests >= REQUESTS_PER_TURN || ++num_steps >= 4 * REQUESTS_PER_TURN + READS_PER_TURN) {
            event_active(&connection->io, EV_TIMEOUT, 0);
            break;
        }
    }
    connection->in_turn = false;
}

static void on_io(evutil_socket_t fd, short what, void *data)
{
    mf_connection *connection = data;
    (void)fd;
    connection->readable |= (what & (EV_READ | EV_CLOSED)) != 0;
    connection->peer_closed |= (what & EV_CLOSED) != 0;
    if (connection->phase != MF_PHASE_DEAD) {
        take_turn(connection);
    }
}

static void on_timer(evutil_socket_t fd, short what, void *data)
{
    mf_connection *connection = data;
    const mf_http_limits *limits = &connection->server->limits;
    int64_t left = connection->deadline_ns - mf_now_ns();
    (void)fd;
    (void)what;
    connection->armed_ns = INT64_MAX;
    if (connection->deadline_ns == INT64_MAX || connection->phase == MF_PHASE_DEAD) {
        return;
    }
    if (left > 0) {
        mf_connection_set_deadline(connection, left);
        return;
    }
    connection->in_turn = true;
    switch (connection->phase) {
    case MF_PHASE_HEAD:
        if (connection->exchange && connection->exchange->parser.started) {
            refuse(connection, 408, "the request's head took too long");
        } else {
            mf_connection_die(connection, "idle");
        }
        break;
    case MF_PHASE_BODY:
        /* Each window must bring its share: what came earlier buys no time later. */
        if ((double)connection->window_bytes >=
            (double)limits->body_bytes_per_s * (double)limits->body_grace_ns * 1e-9) {
            connection->window_bytes = 0;
            mf_connection_set_deadline(connection, limits->body_grace_ns);
        } else {
            refuse(connection, 408, "the request's body came too slowly");
        }
        break;
    default:
        mf_connection_die(connection, connection->phase == MF_PHASE_LINGER ? "closed" : "stalled");
        break;
    }
    connection->in_turn = false;
    if (connection->phase != MF_PHASE_DEAD) {
        take_turn(connection);
    }
}

/* ---- coming ---- */

mf_connection *mf_connection_open(mf_http_server *server, int fd, const struct sockaddr *from)
{
    mf_connection *connection = mf_alloc_zero(sizeof *connection);
    if (!connection) {
        return NULL;
    }
    connection->server = server;
    connection->fd = fd;
    connection->is_idle = true;
    connection->armed_ns = connection->deadline_ns = INT64_MAX;
    mf_http_format_peer(from, connection->peer, sizeof connection->peer);
    if (event_assign(&connection->io, server->base, fd, EV_READ | EV_WRITE | EV_CLOSED | EV_ET | EV_PERSIST, on_io,
                     connection) != 0 ||
        event_assign(&connection->timer, server->base, -1, 0, on_timer, connection) != 0 ||
        event_add(&connection->io, NULL) != 0) {
        mf_free(connection);
        return NULL;
    }
    connection->next = server->connections;
    if (connection->next) {
        connection->next->previous = connection;
    }
    server->connections = connection;
    server->num_connections++;
    mf_connection_set_deadline(connection, server->limits.first_byte_ns);
    return connection;
}

void mf_connection_refuse(mf_connection *connection)
{
    connection->is_refused = true;
    connection->server->num_connections--;
    connection->server->num_refused++;
    if (connection->exchange || open_exchange(connection)) {
        refuse(connection, 503, "the server has too many connections");
        mf_connection_poke(connection);
    } else {
        mf_connection_die(connection, "out of memory");
    }
}

void mf_connection_drain(mf_connection *connection, int64_t idle_ms)
{
    int64_t left = connection->deadline_ns - mf_now_ns();
    if (connection->phase == MF_PHASE_HEAD && connection->is_idle && left > idle_ms * INT64_C(1000000)) {
        mf_connection_set_deadline(connection, idle_ms * INT64_C(1000000));
    }
}
