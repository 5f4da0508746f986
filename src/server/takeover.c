/* takeover.c - see takeover.h.  On the wire: one byte 'L' with the descriptor, then 'C' from the new process, then 'A'.
 */
#include "server/takeover.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sys.h"

enum { MAX_ASKING = 4 };

typedef struct asking {
    mf_takeover *offer;
    struct event io;
    int fd; /* -1: free */
} asking;

struct mf_takeover {
    struct event_base *base;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    int listen_fd; /* the server's */
    int fd;        /* the offer's own listener */
    struct event accept_event;
    bool has_event, is_claimed;
    asking asking[MAX_ASKING];
    void (*taken)(void *context);
    void *context;
};

static mf_status make_address(const char *path, struct sockaddr_un *address, mf_error *err)
{
    *address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (!path[0] || strlen(path) >= sizeof address->sun_path) {
        return mf_fail(err, MF_ERR_INVALID, "%s (--takeover): expected a path of 1 to %zu bytes; got %zu", path,
                       sizeof address->sun_path - 1, strlen(path));
    }
    memcpy(address->sun_path, path, strlen(path) + 1);
    return MF_OK;
}

/* Only a process of the same user, or root, may have the socket. */
static bool may_ask(int fd)
{
    struct ucred who;
    socklen_t size = sizeof who;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && (who.uid == geteuid() || who.uid == 0);
}

static bool send_descriptor(int fd, int passed)
{
    char byte = 'L';
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct iovec piece = { &byte, 1 };
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof passed);
    memcpy(CMSG_DATA(header), &passed, sizeof passed);
    return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
}

/* ---- the old process ---- */

static void forget(asking *one)
{
    if (one->fd >= 0) {
        event_del(&one->io);
        close(one->fd);
        one->fd = -1;
    }
}

static void on_asking(evutil_socket_t fd, short what, void *data)
{
    asking *one = data;
    mf_takeover *offer = one->offer;
    char byte = 0;
    ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);
    (void)what;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n != 1 || byte != 'C' || offer->is_claimed) {
        forget(one);
        return;
    }
    offer->is_claimed = true;
    unlink(offer->path);
    if (send(fd, "A", 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1) {
        mf_log(MF_LOG_WARN, "takeover: the new process claimed the listener and went away");
    }
    forget(one);
    event_del(&offer->accept_event);
    offer->taken(offer->context); /* may close the offer */
}

static void on_accept(evutil_socket_t listen_fd, short what, void *data)
{
    mf_takeover *offer = data;
    asking *one = NULL;
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    (void)what;
    for (int i = 0; i < MAX_ASKING && !one; i++) {
        one = offer->asking[i].fd < 0 ? &offer->asking[i] : NULL;
    }
    if (fd < 0) {
        return;
    }
    if (!one || !may_ask(fd) || !send_descriptor(fd, offer->listen_fd)) {
        close(fd);
        return;
    }
    one->fd = fd;
    event_assign(&one->io, offer->base, fd, EV_READ | EV_PERSIST, on_asking, one);
    if (event_add(&one->io, NULL) != 0) {
        close(fd);
        one->fd = -1;
    }
}

mf_status mf_takeover_offer(struct event_base *base, const char *path, int listen_fd, void (*taken)(void *context),
                            void *context, mf_takeover **out, mf_error *err)
{
    struct sockaddr_un address;
    struct stat st;
    *out = NULL;
    MF_TRY(make_address(path, &address, err));
    mf_takeover *offer = mf_alloc_zero(sizeof *offer);
    if (!offer) {
        return mf_fail(err, MF_ERR_NOMEM, "no memory for the offer of the listening socket");
    }
    offer->base = base;
    offer->listen_fd = listen_fd;
    offer->taken = taken;
    offer->context = context;
    memcpy(offer->path, address.sun_path, sizeof offer->path);
    for (int i = 0; i < MAX_ASKING; i++) {
        offer->asking[i] = (asking){ .offer = offer, .fd = -1 };
    }
    /* A socket left behind by a process that is gone; whoever lives there was asked before (mf_takeover_receive). */
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        unlink(path);
    }
    offer->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The socket's mode becomes its file's; umask would be every thread's. */
    bool is_bound = offer->fd >= 0 && fchmod(offer->fd, 0600) == 0 &&
                    bind(offer->fd, (const struct sockaddr *)&address, sizeof address) == 0;
    if (!is_bound || listen(offer->fd, MAX_ASKING) != 0) {
        mf_fail(err, MF_ERR_IO, "cannot listen on %s (--takeover): %s", path, strerror(errno));
        offer->is_claimed = !is_bound;
        mf_takeover_close(&offer);
        return MF_ERR_IO;
    }
    event_assign(&offer->accept_event, base, offer->fd, EV_READ | EV_PERSIST, on_accept, offer);
    offer->has_event = true;
    if (event_add(&offer->accept_event, NULL) != 0) {
        mf_takeover_close(&offer);
        return mf_fail(err, MF_ERR_NOMEM, "the socket %s could not be watched", path);
    }
    *out = offer;
    return MF_OK;
}

void mf_takeover_close(mf_takeover **out)
{
    mf_takeover *offer = *out;
    if (!offer) {
        return;
    }
    *out = NULL;
    for (int i = 0; i < MAX_ASKING; i++) {
        forget(&offer->asking[i]);
    }
    if (offer->has_event) {
        event_del(&offer->accept_event);
    }
    if (offer->fd >= 0) {
        close(offer->fd);
    }
    if (!offer->is_claimed) {
        unlink(offer->path);
    }
    mf_free(offer);
}

/* ---- the new process ---- */

static bool wait_readable(int fd, int timeout_ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    int64_t until = mf_now_ns() + (int64_t)timeout_ms * 1000000;
    for (;;) {
        int64_t left = (until - mf_now_ns()) / 1000000;
        int n = poll(&p, 1, left > 0 ? (int)left : 0);
        if (n > 0 || (n < 0 && errno != EINTR) || left <= 0) {
            return n > 0;
        }
    }
}

static int receive_descriptor(int fd)
{
    char byte = 0;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct iovec piece = { &byte, 1 };
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space
    };
    if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) != 1 || byte != 'L') {
        return -1;
    }
    int passed = -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof passed)) {
        memcpy(&passed, CMSG_DATA(header), sizeof passed);
    }
    return passed;
}

static bool is_listening(int fd)
{
    int accepts = 0;
    socklen_t size = sizeof accepts;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &size) == 0 && accepts;
}

mf_status mf_takeover_receive(const char *path, int timeout_ms, int *listen_fd, int *control_fd, mf_error *err)
{
    struct sockaddr_un address;
    *listen_fd = *control_fd = -1;
    MF_TRY(make_address(path, &address, err));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return mf_fail(err, MF_ERR_IO, "%s (--takeover): %s", path, strerror(errno));
    }
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        int cause = errno;
        close(fd);
        if (cause == ENOENT || cause == ECONNREFUSED) {
            return MF_OK;
        }
        return mf_fail(err, MF_ERR_IO, "%s (--takeover): %s", path, strerror(cause));
    }
    int passed = wait_readable(fd, timeout_ms) ? receive_descriptor(fd) : -1;
    if (passed < 0 || !is_listening(passed)) {
        if (passed >= 0) {
            close(passed);
        }
        close(fd);
        return mf_fail(err, MF_ERR_IO, "%s (--takeover): the running server handed over no listening socket", path);
    }
    *listen_fd = passed;
    *control_fd = fd;
    return MF_OK;
}

mf_status mf_takeover_claim(int control_fd, int timeout_ms, mf_error *err)
{
    char byte = 0;
    bool done = send(control_fd, "C", 1, MSG_NOSIGNAL) == 1 && wait_readable(control_fd, timeout_ms) &&
                recv(control_fd, &byte, 1, 0) == 1 && byte == 'A';
    close(control_fd);
    return done ? MF_OK
                : mf_fail(err, MF_ERR_IO, "the running server did not give up the listening socket (--takeover)");
}
