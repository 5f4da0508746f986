/* http_server.c - opening the server, accepting, draining, closing. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sodium.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sys.h"
#include "server/http_impl.h"

enum {
    ACCEPTS_PER_TURN = 64,
    RESERVED_DESCRIPTORS = 64, /* for everything that is not a connection */
    REFUSED_AT_ONCE = 64,      /* connections past the limit that are told so; more are closed without a word */
    UNSENT_BYTES = 65536,      /* that the system may hold for a client before the backlog begins */
    RESUME_MS = 100,
    DRAIN_IDLE_MS = 1000, /* a connection idle for so long is closed while draining: its client is not about to send */
    HAND_OVER_IDLE_MS = 5000
};

const mf_http_limits mf_http_default_limits = {
    .head_bytes = 32 << 10,
    .url_bytes = 8 << 10,
    .body_bytes = 8 << 20,
    .all_bodies_bytes = 64 << 20,
    .backlog_bytes = 64 << 10,
    .num_fields = 100,
    .first_byte_ns = INT64_C(30000000000),
    .head_ns = INT64_C(10000000000),
    .idle_ns = INT64_C(75000000000),
    .body_grace_ns = INT64_C(10000000000),
    .write_stall_ns = INT64_C(30000000000),
    .body_bytes_per_s = 1024,
};

/* ---- accepting ---- */

static void pause_accepting(mf_http_server *server)
{
    struct timeval wait = { 0, RESUME_MS * 1000 };
    event_del(&server->accept_event);
    event_add(&server->resume_event, &wait);
}

static void on_resume(evutil_socket_t fd, short what, void *data)
{
    mf_http_server *server = data;
    (void)fd;
    (void)what;
    if (server->listen_fd >= 0) {
        event_add(&server->accept_event, NULL);
    }
}

/* A copy of the listener: unlike opening a file it works in a sandbox, too. */
static int take_spare(const mf_http_server *server)
{
    return fcntl(server->listen_fd, F_DUPFD_CLOEXEC, 0);
}

/* No descriptor is left: the spare one lets one client at a time be told so, instead of waiting unheard. */
static void refuse_with_spare(mf_http_server *server)
{
    static const char answer[] =
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
    if (server->spare_fd >= 0) {
        close(server->spare_fd);
        int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            if (send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL | MSG_DONTWAIT) > 0) {
                shutdown(fd, SHUT_WR);
            }
            close(fd);
        }
        server->spare_fd = take_spare(server);
    }
    pause_accepting(server);
}

static void welcome(mf_http_server *server, int fd, const struct sockaddr *from)
{
    const mf_http_options *options = &server->options;
    unsigned char address[16];
    bool is_full = server->num_connections >= options->max_connections;
    bool is_counted = options->max_connections_per_ip > 0 && mf_peer_address(from, address);
    bool may_count =
        !is_full && is_counted && mf_peer_table_add(&server->peers, address, options->max_connections_per_ip);
    bool refused = is_full || (is_counted && !may_count);
    int one = 1, unsent = UNSENT_BYTES;
    if (refused && server->num_refused >= REFUSED_AT_ONCE) {
        close(fd);
        return;
    }
    if (from->sa_family != AF_UNIX) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
    }
    mf_connection *connection = mf_connection_open(server, fd, from);
    if (!connection) {
        close(fd);
        if (may_count) {
            mf_peer_table_remove(&server->peers, address);
        }
        return;
    }
    connection->is_counted = may_count;
    if (may_count) {
        memcpy(connection->address, address, sizeof address);
    }
    if (refused) {
        mf_connection_refuse(connection);
    }
}

static void on_accept(evutil_socket_t listen_fd, short what, void *data)
{
    mf_http_server *server = data;
    (void)what;
    for (int i = 0; i < ACCEPTS_PER_TURN && server->listen_fd >= 0; i++) {
        struct sockaddr_storage from = { 0 };
        socklen_t size = sizeof from;
        int fd = accept4(listen_fd, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            welcome(server, fd, (const struct sockaddr *)&from);
        } else if (errno == EMFILE || errno == ENFILE) {
            refuse_with_spare(server);
            return;
        } else if (errno == ENOBUFS || errno == ENOMEM) {
            pause_accepting(server);
            return;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } /* else this client is gone already */
    }
}

static void on_reap(evutil_socket_t fd, short what, void *data)
{
    mf_http_server *server = data;
    (void)fd;
    (void)what;
    while (server->doomed) {
        mf_connection *connection = server->doomed;
        server->doomed = connection->next;
        mf_connection_free(connection);
    }
}

/* ---- opening ---- */

static mf_status copy_list(mf_arena *arena, const char *const **list, size_t n, mf_error *err)
{
    const char **copy = mf_arena_array(arena, n ? n : 1, sizeof *copy);
    for (size_t i = 0; copy && i < n; i++) {
        copy[i] = mf_arena_strdup(arena, (*list)[i]);
        if (!copy[i]) {
            copy = NULL;
        }
    }
    if (!copy) {
        return mf_fail(err, MF_ERR_NOMEM, "no memory for the server's options");
    }
    *list = copy;
    return MF_OK;
}

static mf_status copy_options(mf_http_server *server, const mf_http_options *options, mf_error *err)
{
    mf_http_options *own = &server->options;
    *own = *options;
    server->limits = options->limits ? *options->limits : mf_http_default_limits;
    own->limits = NULL;
    own->server_name =
        mf_arena_strdup(&server->arena, options->server_name ? options->server_name : "moefuse/" MF_VERSION_STRING);
    own->host = mf_arena_strdup(&server->arena, options->host ? options->host : "127.0.0.1");
    own->uds_path = options->uds_path ? mf_arena_strdup(&server->arena, options->uds_path) : NULL;
    if (!own->server_name || !own->host || (options->uds_path && !own->uds_path)) {
        return mf_fail(err, MF_ERR_NOMEM, "no memory for the server's options");
    }
    MF_TRY(copy_list(&server->arena, &own->public_paths, own->num_public_paths, err));
    MF_TRY(copy_list(&server->arena, &own->allowed_origins, own->num_allowed_origins, err));
    for (size_t i = 0; i < own->num_allowed_origins; i++) {
        if (strcmp(own->allowed_origins[i], "*") == 0 && own->num_allowed_origins > 1) {
            return mf_fail(err, MF_ERR_INVALID, "--allowed-origins: expected a list of origins or * alone; got both");
        }
    }
    MF_TRY(mf_api_keys_open(options->api_keys, options->num_api_keys, &server->keys, err));
    own->api_keys = NULL;
    own->num_api_keys = 0;
    if (gethostname(server->host_name, sizeof server->host_name - 1) != 0) {
        server->host_name[0] = '\0';
    }
    return MF_OK;
}

static void limit_connections(mf_http_server *server)
{
    mf_http_options *options = &server->options;
    if (options->max_connections <= 0) {
        options->max_connections = 16384;
    }
    int64_t wanted = (int64_t)options->max_connections + REFUSED_AT_ONCE + RESERVED_DESCRIPTORS;
    int64_t allowed = mf_http_raise_descriptors(wanted);
    if (allowed < wanted) {
        int64_t most = allowed - REFUSED_AT_ONCE - RESERVED_DESCRIPTORS;
        most = most < 16 ? 16 : most;
        mf_log(MF_LOG_WARN, "at most %lld connections instead of %d: the system allows %lld open files (ulimit -n)",
               (long long)most, options->max_connections, (long long)allowed);
        options->max_connections = (int32_t)most;
    }
}

mf_status mf_http_server_open(struct event_base *base, const mf_http_options *options, mf_http_server **out,
                              mf_error *err)
{
    mf_status status;
    const int needed = EV_FEATURE_ET | EV_FEATURE_EARLY_CLOSE;
    *out = NULL;
    if (sodium_init() < 0) {
        return mf_fail(err, MF_ERR_INTERNAL, "libsodium could not be set up: the system gave no random bytes");
    }
    if ((event_base_get_features(base) & needed) != needed) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "libevent's method %s has no edge-triggered events: expected epoll",
                       event_base_get_method(base));
    }
    mf_http_server *server = mf_alloc_zero(sizeof *server);
    if (!server) {
        return mf_fail(err, MF_ERR_NOMEM, "no memory for the server");
    }
    server->base = base;
    server->listen_fd = server->spare_fd = -1;
    mf_peer_table_init(&server->peers);
    MF_TRY_GOTO(copy_options(server, options, err), fail);
    limit_connections(server);
    if (options->listen_fd > 0) {
        server->listen_fd = options->listen_fd;
        evutil_make_socket_nonblocking(server->listen_fd);
        evutil_make_socket_closeonexec(server->listen_fd);
    } else {
        MF_TRY_GOTO(mf_http_listen(&server->options, &server->listen_fd, err), fail);
    }
    server->owns_uds_path =
        options->uds_path != NULL; /* also of a socket that was taken over: it goes with its last server */
    server->port = mf_http_bound_port(server->listen_fd);
    server->spare_fd = take_spare(server);
    event_assign(&server->accept_event, base, server->listen_fd, EV_READ | EV_PERSIST, on_accept, server);
    event_assign(&server->reap_event, base, -1, 0, on_reap, server);
    event_assign(&server->resume_event, base, -1, 0, on_resume, server);
    server->has_events = true;
    if (event_add(&server->accept_event, NULL) != 0) {
        status = mf_fail(err, MF_ERR_NOMEM, "the listening socket could not be watched");
        goto fail;
    }
    *out = server;
    return MF_OK;
fail:
    mf_http_server_close(&server);
    return status;
}

/* ---- leaving ---- */

static void stop_listening(mf_http_server *server)
{
    if (server->listen_fd < 0) {
        return;
    }
    if (server->has_events) {
        event_del(&server->accept_event);
        event_del(&server->resume_event);
    }
    close(server->listen_fd);
    server->listen_fd = -1;
    if (server->spare_fd >= 0) {
        close(server->spare_fd);
        server->spare_fd = -1;
    }
    if (server->owns_uds_path) {
        unlink(server->options.uds_path);
        server->owns_uds_path = false;
    }
}

static void drain(mf_http_server *server, int64_t idle_ms)
{
    server->draining = true;
    server->drain_idle_ms = idle_ms;
    for (mf_connection *c = server->connections; c; c = c->next) {
        mf_connection_drain(c, idle_ms);
    }
}

void mf_http_server_drain(mf_http_server *server)
{
    drain(server, DRAIN_IDLE_MS);
}

void mf_http_server_hand_over(mf_http_server *server)
{
    server->owns_uds_path = false; /* the path is the other process's now, as the socket is */
    stop_listening(server);
    drain(server, HAND_OVER_IDLE_MS);
}

void mf_http_server_close(mf_http_server **out)
{
    mf_http_server *server = *out;
    if (!server) {
        return;
    }
    *out = NULL;
    stop_listening(server);
    while (server->connections) {
        mf_connection_die(server->connections, "shutdown");
    }
    on_reap(-1, 0, server);
    if (server->has_events) {
        event_del(&server->reap_event);
    }
    mf_api_keys_close(&server->keys);
    mf_peer_table_close(&server->peers);
    mf_buffer_close(&server->head);
    mf_arena_clear(&server->arena);
    mf_free(server);
}

int32_t mf_http_server_port(const mf_http_server *server)
{
    return server->port;
}

int mf_http_server_listen_fd(const mf_http_server *server)
{
    return server->listen_fd;
}

int32_t mf_http_server_num_connections(const mf_http_server *server)
{
    return server->num_connections;
}

int64_t mf_http_server_body_bytes(const mf_http_server *server)
{
    return server->body_bytes;
}
