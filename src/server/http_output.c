/* http_output.c - bytes on their way to a client: straight into the socket while it takes them, else into the
 * connection's buffer until it does again. */
#include <errno.h>
#include <sys/socket.h>

#include "base/sys.h"
#include "server/http_impl.h"

/* A long answer's taken part is moved out of the buffer at this size. */
enum { COMPACT_BYTES = 65536 };

size_t mf_output_pending(const mf_connection *connection)
{
    return connection->out.size - connection->out_offset;
}

static void mark_broken(mf_connection *connection, const char *cause)
{
    if (!connection->broken) {
        connection->broken = cause;
    }
    mf_connection_poke(connection);
}

/* How many bytes the socket took; -1: it is broken. */
static ssize_t send_some(mf_connection *connection, struct iovec *pieces, int num_pieces)
{
    struct msghdr message = { .msg_iov = pieces, .msg_iovlen = (size_t)num_pieces };
    ssize_t n;
    do {
        n = sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        return 0;
    }
    if (n < 0) {
        mark_broken(connection, errno == EPIPE ? "closed" : "reset");
    }
    return n;
}

void mf_output_send(mf_connection *connection, const struct iovec *pieces, int num_pieces)
{
    if (connection->broken || connection->phase == MF_PHASE_DEAD) {
        return;
    }
    struct iovec rest[MF_OUTPUT_PIECES];
    int first = 0;
    for (int i = 0; i < num_pieces; i++) {
        rest[i] = pieces[i];
    }
    /* Until the socket says that it is full: only then will it tell when it is not. */
    while (mf_output_pending(connection) == 0 && first < num_pieces) {
        ssize_t n = send_some(connection, rest + first, num_pieces - first);
        if (n < 0) {
            return;
        }
        if (n == 0) {
            break;
        }
        for (; first < num_pieces && (size_t)n >= rest[first].iov_len; first++) {
            n -= (ssize_t)rest[first].iov_len;
        }
        if (first < num_pieces) {
            rest[first].iov_base = (char *)rest[first].iov_base + n;
            rest[first].iov_len -= (size_t)n;
        }
        while (first < num_pieces && rest[first].iov_len == 0) {
            first++;
        }
    }
    bool was_empty = mf_output_pending(connection) == 0;
    for (; first < num_pieces; first++) {
        if (mf_buffer_append(&connection->out, rest[first].iov_base, rest[first].iov_len) != MF_OK) {
            mark_broken(connection, "out of memory");
            return;
        }
    }
    if (was_empty && mf_output_pending(connection) && connection->phase >= MF_PHASE_WORKING) {
        mf_connection_set_deadline(connection, connection->server->limits.write_stall_ns);
    }
}

void mf_output_flush(mf_connection *connection)
{
    if (connection->broken) {
        return;
    }
    bool progress = false;
    while (mf_output_pending(connection)) {
        struct iovec piece = { connection->out.data + connection->out_offset, mf_output_pending(connection) };
        ssize_t n = send_some(connection, &piece, 1);
        if (n <= 0) {
            break;
        }
        connection->out_offset += (size_t)n;
        progress = true;
    }
    if (mf_output_pending(connection) == 0) {
        mf_buffer_close(&connection->out);
        connection->out_offset = 0;
    } else if (connection->out_offset >= COMPACT_BYTES) {
        mf_buffer rest = { 0 };
        if (mf_buffer_append(&rest, connection->out.data + connection->out_offset, mf_output_pending(connection)) ==
            MF_OK) {
            mf_buffer_close(&connection->out);
            connection->out = rest;
            connection->out_offset = 0;
        }
    }
    if (progress && connection->phase >= MF_PHASE_WORKING && connection->phase <= MF_PHASE_FLUSH) {
        mf_connection_set_deadline(connection,
                                   mf_output_pending(connection) ? connection->server->limits.write_stall_ns : -1);
    }
}
