/* http_chaos_test.c - random clients against random handlers, one seed one run: whatever they do, an exchange's life
 * has exactly one end and nothing is left behind. */
#include "http_harness.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/random.h"

enum { CLIENTS = 40, MAX_LIVE = 4 * CLIENTS };

typedef struct chaos {
    harness h;
    uint64_t seed;
    int fds[CLIENTS]; /* -1: not there */
    mf_exchange *live[MAX_LIVE];
    bool begun[MAX_LIVE];
    int num_live, num_handled, num_ended, num_gone, num_drained;
} chaos;

static int below(chaos *c, int n)
{
    return (int)mf_random_below(&c->seed, (uint64_t)n);
}

static void forget(chaos *c, int i)
{
    c->num_live--;
    c->live[i] = c->live[c->num_live];
    c->begun[i] = c->begun[c->num_live];
}

static int find_live(const chaos *c, const mf_exchange *exchange)
{
    for (int i = 0; i < c->num_live; i++) {
        if (c->live[i] == exchange) {
            return i;
        }
    }
    return -1;
}

static void on_gone(void *data, mf_exchange *exchange, const char *cause)
{
    chaos *c = data;
    int i = find_live(c, exchange);
    CHECK(i >= 0); /* neither ended before nor gone before */
    CHECK(cause[0] != '\0');
    c->num_gone++;
    forget(c, i);
}

/* One random thing that a handler may do; the exchange may be at its end behind it. */
static void work(chaos *c, int i)
{
    static char data[50000];
    mf_exchange *exchange = c->live[i];
    mf_api_error error;
    switch (c->begun[i] ? 4 + below(c, 20) : below(c, 12)) {
    case 0:
        mf_exchange_reply(exchange, 200, "text/plain", data, (size_t)below(c, sizeof data));
        break;
    case 1:
        mf_api_fail(&error, 429, "n", "busy");
        mf_exchange_reply_error(exchange, &error);
        break;
    case 2:
        mf_exchange_begin(exchange, 200, "text/event-stream; charset=utf-8");
        c->begun[i] = true;
        return;
    case 3:
        mf_exchange_add_header(exchange, "X-Some", "value");
        return;
    case 4:
        mf_exchange_drop_body(exchange);
        return;
    case 6:
        if (!c->begun[i]) {
            return;
        }
        mf_exchange_end(exchange, below(c, 2));
        break;
    default: /* also past a full backlog: it must be kept */
        if (!c->begun[i]) {
            return;
        }
        mf_exchange_write(exchange, data, below(c, 3) ? (size_t)below(c, 200) : (size_t)below(c, sizeof data));
        return;
    }
    c->num_ended++;
    forget(c, i);
}

static void on_drained(void *data, mf_exchange *exchange)
{
    chaos *c = data;
    int i = find_live(c, exchange);
    CHECK(i >= 0 && c->begun[i]);
    c->num_drained++;
    if (below(c, 2)) {
        work(c, i); /* inside the event, too */
    }
}

static const mf_exchange_events events = { on_gone, on_drained };

static void handle(void *context, mf_exchange *exchange)
{
    chaos *c = context;
    c->num_handled++;
    CHECK(c->num_live < MAX_LIVE && find_live(c, exchange) < 0);
    mf_exchange_attach(exchange, &events, c);
    c->live[c->num_live] = exchange;
    c->begun[c->num_live] = false;
    c->num_live++;
    for (int n = below(c, 4); n > 0 && c->num_live && c->live[c->num_live - 1] == exchange; n--) {
        work(c, c->num_live - 1);
    }
}

static const mf_route routes[] = { { "GET", "/a", handle, NULL, false }, { "POST", "/b", handle, NULL, false } };

/* A few requests, some of them broken, in random pieces: what is not sent now may never be. */
static void talk(chaos *c, int fd)
{
    static const char *const texts[] = {
        "GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a HTTP/1.0\r\n\r\n",
        "HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789",
        "POST /b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n0123456789",
        "POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n\r\n",
        "POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789",
        "GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        "GET /a HTTP/1.1\r\n\r\n",
        "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n",
        "POST /b HTTP/1.1\r\nHost: h\r\nOrigin: http://evil\r\nContent-Length: 3\r\n\r\n{}",
    };
    const char *text = texts[below(c, below(c, 4) ? 8 : 11)];
    size_t size = strlen(text), n = below(c, 4) ? size : (size_t)below(c, (int)size);
    send(fd, text, n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void act(chaos *c, int i)
{
    static char sink[65536];
    if (c->fds[i] < 0) {
        c->fds[i] = below(c, 2) ? dial(&c->h) : dial_with(&c->h, 4096);
        return;
    }
    switch (below(c, 12)) {
    case 0:
        hang_up(c->fds[i]);
        c->fds[i] = -1;
        return;
    case 1:
        reset(c->fds[i]);
        c->fds[i] = -1;
        return;
    case 2:
        if (!below(c, 4)) {
            shutdown(c->fds[i], SHUT_WR);
        }
        return;
    case 3:
    case 4:
    case 5:
        if (recv(c->fds[i], sink, (size_t)below(c, sizeof sink), MSG_DONTWAIT) == 0 && below(c, 2)) {
            hang_up(c->fds[i]);
            c->fds[i] = -1;
        }
        return;
    default:
        talk(c, c->fds[i]);
        return;
    }
}

static void run(uint64_t seed, int num_steps)
{
    static chaos c;
    c = (chaos){ .seed = seed };
    harness_init(&c.h);
    c.h.options.routes = routes;
    c.h.options.num_routes = 2;
    c.h.options.context = &c;
    c.h.options.refuse = NULL;
    c.h.options.answered = NULL;
    c.h.options.max_connections = CLIENTS - 5;
    c.h.limits.backlog_bytes = 20000;
    c.h.limits.all_bodies_bytes = 60;
    c.h.limits.write_stall_ns =
        20000000; /* times are part of it: what expires depends on the machine, the rules do not */
    c.h.limits.head_ns = c.h.limits.body_grace_ns = 10000000;
    harness_open(&c.h);
    memset(c.fds, -1, sizeof c.fds);
    for (int s = 0; s < num_steps; s++) {
        act(&c, below(&c, CLIENTS));
        for (int n = below(&c, 2) ? below(&c, 12) : 0, i = below(&c, CLIENTS); n > 0 && i < c.num_live; n--) {
            work(&c, i);
        }
        if (below(&c, 2)) {
            event_base_loop(c.h.base, EVLOOP_NONBLOCK);
        }
    }
    print_message("# seed %llu: %d handled, %d ended, %d gone, %d drained\n", (unsigned long long)seed, c.num_handled,
                  c.num_ended, c.num_gone, c.num_drained);
    CHECK(c.num_handled > num_steps / 50 && c.num_gone > 0 && c.num_ended > 0);
    if (seed % 2) { /* the clients leave, or the server */
        for (int i = 0; i < CLIENTS; i++) {
            if (c.fds[i] >= 0) {
                hang_up(c.fds[i]);
            }
        }
        TURN_UNTIL(&c.h, mf_http_server_num_connections(c.h.server) == 0, 3000);
        CHECK_EQ(mf_http_server_body_bytes(c.h.server), 0);
        CHECK_EQ(c.num_live, 0);
    }
    harness_close(&c.h);
    CHECK_EQ(c.num_live, 0);
    CHECK_EQ(c.num_handled, c.num_ended + c.num_gone);
    for (int i = 0; i < CLIENTS && seed % 2 == 0; i++) {
        if (c.fds[i] >= 0) {
            hang_up(c.fds[i]);
        }
    }
}

TEST(whatever_clients_and_handlers_do_each_exchange_ends_once)
{
    const char *steps = getenv("MF_CHAOS_STEPS"); /* more of it by hand */
    int before = num_descriptors();
    for (uint64_t seed = 1; seed <= 6; seed++) {
        run(seed, steps ? atoi(steps) : 10000);
        CHECK_EQ(num_descriptors(), before);
    }
}
