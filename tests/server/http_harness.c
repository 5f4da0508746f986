/* http_harness.c - see http_harness.h. */
#include "http_harness.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/sys.h"

static void gone(void *data, mf_exchange *exchange, const char *cause)
{
    harness *h = data;
    h->num_gone++;
    snprintf(h->gone_cause, sizeof h->gone_cause, "%s", cause);
    for (int i = 0; i < h->num_held; i++) {
        h->held[i] = h->held[i] == exchange ? NULL : h->held[i];
    }
}

static void drained(void *data, mf_exchange *exchange)
{
    harness *h = data;
    (void)exchange;
    h->num_drained++;
}

static const mf_exchange_events events = { gone, drained };

static void handle_echo(void *context, mf_exchange *exchange)
{
    harness *h = context;
    size_t size;
    const char *body = mf_exchange_body(exchange, &size);
    h->num_handled++;
    h->last_body_size = size;
    snprintf(h->last_body, sizeof h->last_body, "%s", body);
    snprintf(h->last_tail, sizeof h->last_tail, "%s", mf_exchange_tail(exchange));
    snprintf(h->last_id, sizeof h->last_id, "%s", mf_exchange_request_id(exchange));
    if (!mf_exchange_query(exchange, "window", h->last_query, sizeof h->last_query)) {
        strcpy(h->last_query, "(none)");
    }
    mf_exchange_reply(exchange, 200, "application/json", body, size);
}

static void handle_hello(void *context, mf_exchange *exchange)
{
    harness *h = context;
    h->num_handled++;
    mf_exchange_reply(exchange, 200, "text/plain", mf_exchange_path(exchange), strlen(mf_exchange_path(exchange)));
}

static void handle_hold(void *context, mf_exchange *exchange)
{
    harness *h = context;
    h->num_handled++;
    mf_exchange_attach(exchange, &events, h);
    if (h->num_held < MAX_HELD) {
        h->held[h->num_held++] = exchange;
    }
}

static void handle_stream(void *context, mf_exchange *exchange)
{
    harness *h = context;
    handle_hold(h, exchange);
    mf_exchange_begin(exchange, 200, "text/event-stream; charset=utf-8");
}

static void handle_forget(void *context, mf_exchange *exchange)
{
    (void)context;
    (void)exchange;
}

static void handle_error(void *context, mf_exchange *exchange)
{
    mf_api_error error;
    (void)context;
    mf_api_fail(&error, 429, "n", "too \"many\"\n");
    error.retry_after_s = 7;
    mf_exchange_reply_error(exchange, &error);
}

static const mf_route routes[] = {
    { "GET", "/hello", handle_hello, NULL, false },     { "GET", "/health", handle_hello, NULL, true },
    { "POST", "/echo", handle_echo, NULL, false },      { "GET", "/query", handle_echo, NULL, false },
    { "GET", "/v1/models", handle_hello, NULL, false }, { "GET", "/v1/models/*", handle_echo, NULL, false },
    { "POST", "/hold", handle_hold, NULL, false },      { "GET", "/hold", handle_hold, NULL, false },
    { "POST", "/stream", handle_stream, NULL, false },  { "GET", "/stream", handle_stream, NULL, false },
    { "GET", "/forget", handle_forget, NULL, false },   { "GET", "/error", handle_error, NULL, false },
};

static bool refuse(void *context, mf_api_error *error)
{
    harness *h = context;
    if (h->refuses) {
        mf_api_fail(error, 503, NULL, "loading");
        error->retry_after_s = 3;
    }
    return h->refuses;
}

static void answered(void *context, const mf_exchange *exchange, int status)
{
    harness *h = context;
    (void)mf_exchange_method(exchange);
    (void)mf_exchange_path(exchange);
    h->answered[h->num_answered++ % 16] = status;
}

void harness_init(harness *h)
{
    *h = (harness){ .limits = mf_http_default_limits };
    h->options = (mf_http_options){ .routes = routes,
                                    .num_routes = sizeof routes / sizeof *routes,
                                    .context = h,
                                    .refuse = refuse,
                                    .answered = answered,
                                    .max_connections = 12000,
                                    .server_name = "moefuse/test" };
}

void harness_open(harness *h)
{
    mf_error err = { 0 };
    h->options.limits = &h->limits;
    h->base = event_base_new();
    CHECK(h->base != NULL);
    CHECK_OK(mf_http_server_open(h->base, &h->options, &h->server, &err), err);
}

void harness_close(harness *h)
{
    mf_http_server_close(&h->server);
    CHECK(h->server == NULL);
    event_base_free(h->base);
}

void turn_for(harness *h, int ms)
{
    int64_t until = mf_now_ns() + (int64_t)ms * 1000000;
    do {
        event_base_loop(h->base, EVLOOP_NONBLOCK);
        if (ms > 0) {
            nanosleep(&(struct timespec){ 0, 100000 }, NULL);
        }
    } while (mf_now_ns() < until);
}

int dial_with(harness *h, int receive_bytes)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)mf_http_server_port(h->server)),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    CHECK(fd >= 0);
    if (receive_bytes) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

int dial(harness *h)
{
    return dial_with(h, 0);
}

void say_bytes(harness *h, int fd, const void *bytes, size_t n)
{
    const char *p = bytes;
    int64_t until = mf_now_ns() + INT64_C(5000000000);
    while (n > 0 && mf_now_ns() < until) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            p += sent;
            n -= (size_t)sent;
        } else if (errno != EAGAIN) {
            return; /* the server closed: what it said before is the test's matter */
        }
        turn_for(h, 0);
    }
}

void say(harness *h, int fd, const char *text)
{
    say_bytes(h, fd, text, strlen(text));
}

void hang_up(int fd)
{
    close(fd);
}

void reset(int fd)
{
    struct linger now = { 1, 0 };
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

static char heard[1 << 22];
static size_t num_heard;

size_t heard_size(void)
{
    return num_heard;
}

/* -1: ended by a reset, 0: open, 1: ended */
static int listen_once(int fd)
{
    while (num_heard < sizeof heard - 1) {
        ssize_t n = recv(fd, heard + num_heard, sizeof heard - 1 - num_heard, MSG_DONTWAIT);
        if (n > 0) {
            num_heard += (size_t)n;
            heard[num_heard] = '\0';
            continue;
        }
        return n == 0 ? 1 : errno == EAGAIN ? 0 : -1;
    }
    return 0;
}

const char *hear(harness *h, int fd, const char *mark, int ms)
{
    int64_t until = mf_now_ns() + (int64_t)ms * 1000000;
    num_heard = 0;
    heard[0] = '\0';
    do {
        turn_for(h, 0);
        int ended = listen_once(fd);
        if (ended != 0 || (mark && strstr(heard, mark))) {
            break;
        }
        nanosleep(&(struct timespec){ 0, 50000 }, NULL);
    } while (mf_now_ns() < until);
    return heard;
}

bool hear_end(harness *h, int fd, int ms)
{
    int64_t until = mf_now_ns() + (int64_t)ms * 1000000;
    num_heard = 0;
    do {
        turn_for(h, 1);
        int ended = listen_once(fd);
        if (ended != 0) {
            return ended > 0;
        }
    } while (mf_now_ns() < until);
    return false;
}

const char *hear_answer(harness *h, int fd)
{
    int64_t until = mf_now_ns() + INT64_C(3000000000);
    num_heard = 0;
    heard[0] = '\0';
    do {
        turn_for(h, 0);
        int ended = listen_once(fd);
        const char *body = strstr(heard, "\r\n\r\n"), *length = strstr(heard, "Content-Length: ");
        if (ended != 0 || (body && length && length < body &&
                           num_heard >= (size_t)(body + 4 - heard) + strtoul(length + 16, NULL, 10))) {
            break;
        }
    } while (mf_now_ns() < until);
    return heard;
}

const char *ask(harness *h, const char *request)
{
    int fd = dial(h);
    say(h, fd, request);
    const char *answer = hear(h, fd, NULL, 3000);
    close(fd);
    return answer;
}

int status_of(const char *answer)
{
    return strncmp(answer, "HTTP/1.1 ", 9) == 0 ? (int)strtol(answer + 9, NULL, 10) : -1;
}

int num_descriptors(void)
{
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (dir && readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

long resident_kib(void)
{
    long total = 0, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f) {
        if (fscanf(f, "%ld %ld", &total, &pages) != 2) {
            pages = 0;
        }
        fclose(f);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}
