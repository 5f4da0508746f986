/* http_listen.c - listening sockets, and how many descriptors the process may have. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "server/http_impl.h"

enum { BACKLOG = 4096 };

/* A socket file that nobody listens on any more may be replaced; anything else at the path stays. */
static bool is_abandoned(const struct sockaddr_un *address)
{
    struct stat st;
    if (lstat(address->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return false;
    }
    bool refused = connect(fd, (const struct sockaddr *)address, sizeof *address) != 0 && errno == ECONNREFUSED;
    close(fd);
    return refused;
}

static mf_status listen_on_path(const char *path, int *out, mf_error *err)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof address.sun_path) {
        return mf_fail(err, MF_ERR_INVALID, "the socket's path %s (--uds): expected at most %zu bytes; got %zu", path,
                       sizeof address.sun_path - 1, strlen(path));
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    if (is_abandoned(&address)) {
        unlink(path);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof address) != 0 || listen(fd, BACKLOG) != 0) {
        mf_fail(err, MF_ERR_IO, "cannot listen on %s (--uds): %s", path, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return MF_ERR_IO;
    }
    *out = fd;
    return MF_OK;
}

mf_status mf_http_listen(const mf_http_options *options, int *out, mf_error *err)
{
    if (options->uds_path) {
        return listen_on_path(options->uds_path, out, err);
    }
    const char *host = options->host ? options->host : "127.0.0.1";
    struct addrinfo hints = { .ai_family = AF_UNSPEC,
                              .ai_socktype = SOCK_STREAM,
                              .ai_flags = AI_PASSIVE | AI_NUMERICSERV };
    struct addrinfo *list = NULL;
    char service[16];
    if (options->port < 0 || options->port > 65535) {
        return mf_fail(err, MF_ERR_INVALID, "the port (--port): expected 0 to 65535; got %d", options->port);
    }
    snprintf(service, sizeof service, "%d", options->port);
    int problem = getaddrinfo(host, service, &hints, &list);
    if (problem != 0) {
        return mf_fail(err, MF_ERR_IO, "cannot listen on %s (--host): %s", host, gai_strerror(problem));
    }
    int fd = -1, cause = 0, one = 1;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            cause = errno;
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
            cause = errno;
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd < 0) {
        return mf_fail(err, MF_ERR_IO, "cannot listen on %s port %d (--host, --port): %s", host, options->port,
                       strerror(cause));
    }
    *out = fd;
    return MF_OK;
}

int32_t mf_http_bound_port(int fd)
{
    struct sockaddr_storage address = { 0 };
    socklen_t size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
        return 0;
    }
    if (address.ss_family == AF_INET) {
        return ntohs(((struct sockaddr_in *)(void *)&address)->sin_port);
    }
    return address.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)(void *)&address)->sin6_port) : 0;
}

int64_t mf_http_raise_descriptors(int64_t wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return wanted;
    }
    if (limit.rlim_cur != RLIM_INFINITY && (int64_t)limit.rlim_cur < wanted) {
        struct rlimit raised = { .rlim_cur = (rlim_t)wanted, .rlim_max = limit.rlim_max };
        if (limit.rlim_max != RLIM_INFINITY && raised.rlim_cur > limit.rlim_max) {
            raised.rlim_cur = limit.rlim_max;
        }
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0) {
            limit = raised;
        }
    }
    return limit.rlim_cur == RLIM_INFINITY ? wanted : (int64_t)limit.rlim_cur;
}

void mf_http_format_peer(const struct sockaddr *from, char *out, size_t size)
{
    char address[INET6_ADDRSTRLEN] = "";
    if (from->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)from;
        inet_ntop(AF_INET, &in->sin_addr, address, sizeof address);
        snprintf(out, size, "%s:%d", address, ntohs(in->sin_port));
    } else if (from->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)(const void *)from;
        inet_ntop(AF_INET6, &in->sin6_addr, address, sizeof address);
        snprintf(out, size, "[%s]:%d", address, ntohs(in->sin6_port));
    } else {
        snprintf(out, size, "unix");
    }
}
