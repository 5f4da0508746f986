/* http_limits_test.c - every limit of the HTTP layer at its edge, slow and leaving clients, crowds, draining, handing
 * over.  Times are shortened through mf_http_limits. */
#include "http_harness.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sys.h"
#include "server/takeover.h"

#define HOST "Host: localhost\r\n"
#define MS INT64_C(1000000)
#define GET_HELLO "GET /hello HTTP/1.1\r\n" HOST "\r\n"

static double ms_since(int64_t start)
{
    return (double)(mf_now_ns() - start) / 1e6;
}

/* ---- sizes ---- */

TEST(a_body_at_its_limit_is_taken_and_one_byte_more_is_413)
{
    harness h;
    char *body = calloc(1, 2000);
    memset(body, 'x', 1001);
    harness_init(&h);
    h.limits.body_bytes = 1000;
    harness_open(&h);
    for (int size = 999; size <= 1001; size++) {
        char request[3000];
        snprintf(request, sizeof request,
                 "POST /echo HTTP/1.1\r\n" HOST "Connection: close\r\nContent-Length: %d\r\n\r\n%.*s", size, size,
                 body);
        const char *answer = ask(&h, request);
        CHECK_EQ(status_of(answer), size > 1000 ? 413 : 200);
        if (size > 1000) {
            CHECK_HAS(answer, "RequestTooLargeError");
        } else {
            CHECK_EQ(h.last_body_size, size);
        }
        snprintf(request, sizeof request,
                 "POST /echo HTTP/1.1\r\n" HOST
                 "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxxx\r\n%x\r\n%.*s\r\n0\r\n\r\n",
                 size - 3, size - 3, body);
        CHECK_EQ(status_of(ask(&h, request)), size > 1000 ? 413 : 200);
        if (size <= 1000) {
            CHECK_EQ(h.last_body_size, size);
        }
    }
    CHECK_EQ(status_of(ask(&h, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 99999999999999999999\r\n\r\n")), 413);
    CHECK_EQ(mf_http_server_body_bytes(h.server), 0);
    free(body);
    harness_close(&h);
}

TEST(heads_and_urls_at_their_limits)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    char *request = calloc(1, 40000);
    for (int over = -1; over <= 1; over++) {
        int n = sprintf(request, "GET /hello HTTP/1.1\r\n" HOST "Connection: close\r\nA: ");
        memset(request + n, 'b', (size_t)(32768 + over - n - 4));
        strcpy(request + 32768 + over - 4, "\r\n\r\n");
        const char *answer = ask(&h, request);
        CHECK_EQ(status_of(answer), over > 0 ? 431 : 200);
        n = sprintf(request, "GET /");
        memset(request + n, 'b', (size_t)(8191 + over));
        strcpy(request + n + 8191 + over, " HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
        CHECK_EQ(status_of(ask(&h, request)), over > 0 ? 414 : 404);
        n = sprintf(request, "GET /hello HTTP/1.1\r\n" HOST "Connection: close\r\n");
        for (int i = 0; i < 98 + over; i++) {
            n += sprintf(request + n, "A: b\r\n");
        }
        strcpy(request + n, "\r\n");
        CHECK_EQ(status_of(ask(&h, request)), over > 0 ? 431 : 200);
    }
    free(request);
    harness_close(&h);
}

TEST(all_bodies_share_one_budget)
{
    static const char begin[] = "POST /hold HTTP/1.1\r\n" HOST "Content-Length: 100\r\n\r\n";
    char body[101] = "";
    memset(body, 'x', 100);
    for (int over = -1; over <= 1; over++) {
        harness h;
        harness_init(&h);
        h.limits.all_bodies_bytes = 250;
        harness_open(&h);
        int fds[3];
        for (int i = 0; i < 3; i++) {
            fds[i] = dial(&h);
            say(&h, fds[i], begin);
            say_bytes(&h, fds[i], body, i < 2 ? 100 : (size_t)(50 + over));
            turn_for(&h, 5);
        }
        CHECK_EQ(h.num_handled, 2);
        CHECK_EQ(mf_http_server_body_bytes(h.server), over > 0 ? 200 : 250 + over);
        if (over > 0) {
            const char *answer = hear(&h, fds[2], NULL, 2000);
            CHECK_EQ(status_of(answer), 503);
            CHECK_HAS(answer, "\r\nRetry-After: 1\r\n");
        } else {
            /* a handler that lives long makes room */
            mf_exchange_drop_body(h.held[0]);
            say_bytes(&h, fds[2], body, (size_t)(50 - over));
            TURN_UNTIL(&h, h.num_handled == 3, 1000);
            CHECK_EQ(mf_http_server_body_bytes(h.server), 200);
        }
        for (int i = 0; i < 3; i++) {
            hang_up(fds[i]);
        }
        TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 1000);
        CHECK_EQ(mf_http_server_body_bytes(h.server), 0);
        harness_close(&h);
    }
}

/* ---- times ---- */

TEST(a_silent_connection_is_closed_without_a_word)
{
    harness h;
    for (int answered = 0; answered < 2;
         answered++) { /* before the first byte, and after an answer: each has its time */
        harness_init(&h);
        h.limits.first_byte_ns = answered ? 60000 * MS : 60 * MS;
        h.limits.idle_ns = answered ? 60 * MS : 60000 * MS;
        harness_open(&h);
        int fd = dial(&h);
        int64_t start = mf_now_ns();
        if (answered) {
            say(&h, fd, GET_HELLO);
            CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
        }
        CHECK(hear_end(&h, fd, 5000));
        CHECK_EQ(heard_size(), 0);
        CHECK(ms_since(start) >= 55);
        hang_up(fd);
        harness_close(&h);
    }
}

TEST(a_head_that_trickles_is_408)
{
    harness h;
    harness_init(&h);
    h.limits.head_ns = 100 * MS;
    harness_open(&h);
    int fd = dial(&h), byte = 0;
    int64_t start = mf_now_ns();
    static const char head[] = "GET /hello HTTP/1.1\r\n" HOST "A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const char *answer = "";
    while (ms_since(start) < 5000 && !answer[0]) {
        say_bytes(&h, fd, &head[byte < 40 ? byte++ : 40], 1); /* each byte in time, the whole not */
        answer = hear(&h, fd, NULL, 5);
    }
    CHECK(ms_since(start) >= 95);
    CHECK_EQ(status_of(answer), 408);
    CHECK_HAS(answer, "\r\nConnection: close\r\n");
    CHECK_HAS(answer, "RequestTimeoutError");
    hang_up(fd);
    CHECK_EQ(h.num_handled, 0);
    harness_close(&h);
}

TEST(a_body_below_its_rate_is_408_and_one_above_it_passes)
{
    for (int fast = 0; fast < 2; fast++) {
        harness h;
        harness_init(&h);
        h.limits.body_grace_ns = 100 * MS;
        h.limits.body_bytes_per_s = 1000; /* 100 bytes in each 100 ms */
        harness_open(&h);
        int fd = dial(&h);
        int64_t start = mf_now_ns();
        char piece[60];
        int step = fast ? 60 : 1; /* every 10 ms: 600 in a window of which 100 would do, or 10 */
        memset(piece, 'x', sizeof piece);
        say(&h, fd, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 2400\r\n\r\n");
        const char *answer = "";
        for (int sent = 0; sent < 2400 && !answer[0]; sent += step) {
            answer = hear(&h, fd, NULL, 10);
            say_bytes(&h, fd, piece, (size_t)step);
        }
        if (!answer[0]) {
            answer = hear_answer(&h, fd);
        }
        CHECK_EQ(status_of(answer), fast ? 200 : 408);
        CHECK(fast || ms_since(start) >= 95);
        CHECK_EQ(h.num_handled, fast);
        hang_up(fd);
        harness_close(&h);
    }
}

/* ---- 100-continue ---- */

TEST(continue_is_said_only_after_head_key_and_length_pass)
{
    static const char *const keys[] = { "k" };
    harness h;
    harness_init(&h);
    h.options.api_keys = keys;
    h.options.num_api_keys = 1;
    h.limits.body_bytes = 100;
    harness_open(&h);
#define EXPECTING(fields, n)                                                                                           \
    "POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\n" fields "Content-Length: " n "\r\n\r\n"
    CHECK_EQ(status_of(ask(&h, EXPECTING("", "2"))), 401);
    CHECK_EQ(status_of(ask(&h, EXPECTING("Authorization: Bearer k\r\n", "101"))), 413);
    CHECK_EQ(status_of(ask(&h, EXPECTING("Authorization: Bearer k\r\nContent-Type: text/plain\r\n", "2"))), 415);
    CHECK_EQ(status_of(ask(&h, "POST /echo HTTP/1.1\r\n" HOST "Expect: later\r\nContent-Length: 2\r\n\r\n")), 417);
    int fd = dial(&h);
    say(&h, fd, EXPECTING("Authorization: Bearer k\r\n", "2"));
    CHECK_STR(hear(&h, fd, "\r\n\r\n", 1000), "HTTP/1.1 100 Continue\r\n\r\n");
    CHECK_EQ(h.num_handled, 0);
    say(&h, fd, "{}");
    CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
    /* who does not wait needs no go-ahead */
    say(&h, fd, EXPECTING("Authorization: Bearer k\r\n", "2") "{}");
    CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
    hang_up(fd);
    /* 1.0 has no such thing */
    const char *answer = ask(
        &h, "POST /echo HTTP/1.0\r\nAuthorization: Bearer k\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}");
    CHECK_EQ(status_of(answer), 200);
    harness_close(&h);
}

/* ---- slow readers ---- */

TEST(a_slow_reader_fills_the_backlog_and_drains_it)
{
    harness h;
    char piece[1000];
    memset(piece, 'x', sizeof piece);
    harness_init(&h);
    h.limits.backlog_bytes = 20000;
    harness_open(&h);
    int fd = dial_with(&h, 4096);
    say(&h, fd, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 1, 1000);
    size_t num_written = 0;
    while (num_written < 100000 && mf_exchange_write(h.held[0], piece, sizeof piece)) {
        num_written++;
        turn_for(&h, 0);
    }
    num_written++; /* the last one was kept, too */
    CHECK(num_written < 10000);
    CHECK(mf_exchange_backlog(h.held[0]) >= 20000 && mf_exchange_backlog(h.held[0]) < 20000 + 2 * sizeof piece);
    turn_for(&h, 50);
    CHECK_EQ(h.num_drained, 0);
    size_t got = 0;
    int64_t until = mf_now_ns() + 3000 * MS;
    while (h.num_drained == 0 && mf_now_ns() < until) {
        hear(&h, fd, NULL, 1);
        got += heard_size();
    }
    CHECK_EQ(h.num_drained, 1);
    CHECK(mf_exchange_backlog(h.held[0]) <= 10000);
    mf_exchange_end(h.held[0], true);
    hear(&h, fd, NULL, 3000);
    got += heard_size();
    /* nothing was lost: the head, each piece with its frame, the end */
    CHECK(got > num_written * (sizeof piece + 7) + 5);
    CHECK(got < num_written * (sizeof piece + 7) + 5 + 400);
    hang_up(fd);
    CHECK_EQ(h.num_gone, 0);
    harness_close(&h);
}

TEST(a_reader_without_progress_is_cut_as_stalled)
{
    harness h;
    char piece[1000];
    memset(piece, 'x', sizeof piece);
    harness_init(&h);
    h.limits.write_stall_ns = 100 * MS;
    harness_open(&h);
    int fd = dial_with(&h, 4096);
    say(&h, fd, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 1, 1000);
    while (mf_exchange_write(h.held[0], piece, sizeof piece)) {
        turn_for(&h, 0);
    }
    int64_t start = mf_now_ns();
    TURN_UNTIL(&h, h.num_gone == 1, 5000);
    CHECK_STR(h.gone_cause, "stalled");
    CHECK(ms_since(start) >= 60);
    hang_up(fd);
    /* the same for a whole answer that is complete on the server's side */
    fd = dial_with(&h, 4096);
    char *body = calloc(1, 4 << 20);
    say(&h, fd, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 2, 1000);
    mf_exchange_reply(h.held[1], 200, "text/plain", body, 4 << 20);
    CHECK_EQ(mf_http_server_num_connections(h.server), 1);
    TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 1000);
    CHECK_EQ(h.num_gone, 1); /* its exchange had ended */
    free(body);
    hang_up(fd);
    harness_close(&h);
}

TEST(a_reader_that_is_slow_but_reads_is_kept)
{
    harness h;
    harness_init(&h);
    h.limits.write_stall_ns = 300 * MS;
    harness_open(&h);
    int fd = dial_with(&h, 4096);
    char *body = calloc(1, 1 << 20), piece[4096];
    say(&h, fd, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 1, 1000);
    mf_exchange_reply(h.held[0], 200, "text/plain", body, 1 << 20);
    size_t got = 0;
    for (int i = 0; i < 60; i++) { /* 600 ms, twice the stall */
        ssize_t n = recv(fd, piece, sizeof piece, MSG_DONTWAIT);
        got += n > 0 ? (size_t)n : 0;
        turn_for(&h, 10);
    }
    CHECK_EQ(mf_http_server_num_connections(h.server), 1);
    for (int i = 0; i < 1000 && got <= 1 << 20; i++) { /* then quickly: all of it comes */
        hear(&h, fd, NULL, 5);
        got += heard_size();
    }
    CHECK(got > 1 << 20);
    free(body);
    hang_up(fd);
    harness_close(&h);
}

TEST(a_write_to_a_client_that_left_tells_gone_later_not_inside)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 1, 1000);
    reset(fd);
    mf_exchange *exchange = h.held[0];
    for (int i = 0; i < 5; i++) {
        CHECK(!mf_exchange_write(exchange, "data: x\n\n", 9));
        CHECK_EQ(h.num_gone, 0);
    }
    TURN_UNTIL(&h, h.num_gone == 1, 100);
    CHECK_STR(h.gone_cause, "reset");
    harness_close(&h);
}

TEST(closing_the_server_tells_shutdown)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h), other = dial(&h);
    say(&h, fd, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    say(&h, other, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 2, 1000);
    harness_close(&h);
    CHECK_EQ(h.num_gone, 2);
    CHECK_STR(h.gone_cause, "shutdown");
    hang_up(fd);
    hang_up(other);
}

/* ---- crowds ---- */

TEST(readers_that_never_read_cost_their_backlog_and_little_more)
{
    enum { READERS = 200 };
    harness h;
    int fds[READERS];
    char piece[200];
    memset(piece, 'x', sizeof piece);
    harness_init(&h);
    harness_open(&h);
    long resident = resident_kib();
    size_t backlog = 0;
    for (int i = 0; i < READERS; i++) {
        fds[i] = dial_with(&h, 4096);
        h.num_held = 0;
        say(&h, fds[i], "GET /stream HTTP/1.1\r\n" HOST "\r\n");
        TURN_UNTIL(&h, h.num_held == 1, 1000);
        while (mf_exchange_write(h.held[0], piece, sizeof piece)) {
        }
        backlog += mf_exchange_backlog(h.held[0]);
    }
    CHECK(backlog / READERS < h.limits.backlog_bytes + 1000);
#ifndef __SANITIZE_ADDRESS__
    CHECK((double)(resident_kib() - resident) / READERS < 64 + 16);
#endif
    (void)resident;
    /* a good client beside them */
    int fd = dial(&h);
    say(&h, fd, GET_HELLO);
    CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
    hang_up(fd);
    for (int i = 0; i < READERS; i++) {
        hang_up(fds[i]);
    }
    TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 3000);
    CHECK_EQ(h.num_gone, READERS);
    harness_close(&h);
}

TEST(connections_past_the_limit_read_503)
{
    harness h;
    harness_init(&h);
    h.options.max_connections = 3;
    harness_open(&h);
    int fds[4];
    for (int i = 0; i < 4; i++) {
        fds[i] = dial(&h);
        turn_for(&h, 2);
    }
    CHECK_EQ(mf_http_server_num_connections(h.server), 3);
    say(&h, fds[3], GET_HELLO);
    const char *answer = hear(&h, fds[3], NULL, 1000);
    CHECK_EQ(status_of(answer), 503);
    CHECK_HAS(answer, "\r\nRetry-After: 1\r\n");
    say(&h, fds[2], GET_HELLO);
    CHECK_EQ(status_of(hear_answer(&h, fds[2])), 200);
    for (int i = 0; i < 4; i++) {
        hang_up(fds[i]);
    }
    TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 1000);
    CHECK_EQ(status_of(ask(&h, "GET /hello HTTP/1.0\r\n\r\n")), 200);
    harness_close(&h);
}

TEST(one_address_has_its_own_limit)
{
    harness h;
    harness_init(&h);
    h.options.max_connections_per_ip = 2;
    harness_open(&h);
    int fds[3];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 3; i++) {
            fds[i] = dial(&h);
            turn_for(&h, 2);
        }
        CHECK_EQ(status_of(hear(&h, fds[2], NULL, 1000)), 503);
        for (int i = 0; i < 3; i++) {
            hang_up(fds[i]);
        }
        TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 1000);
    }
    harness_close(&h);
}

TEST(out_of_descriptors_clients_are_told_and_the_server_recovers)
{
    harness h;
    struct rlimit old, low;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd, GET_HELLO);
    CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
    int refused = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    getrlimit(RLIMIT_NOFILE, &old);
    low = old;
    low.rlim_cur = (rlim_t)refused + 1;
    setrlimit(RLIMIT_NOFILE, &low);
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)mf_http_server_port(h.server)),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    CHECK_EQ(connect(refused, (struct sockaddr *)&address, sizeof address), 0);
    fcntl(refused, F_SETFL, O_NONBLOCK);
    CHECK_EQ(status_of(hear(&h, refused, NULL, 1000)), 503);
    setrlimit(RLIMIT_NOFILE, &old);
    hang_up(refused);
    say(&h, fd, GET_HELLO);
    CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
    hang_up(fd);
    CHECK_EQ(status_of(ask(&h, "GET /hello HTTP/1.0\r\n\r\n")), 200);
    harness_close(&h);
}

TEST(ten_thousand_connections_come_and_go_and_leave_nothing)
{
    enum { BATCH = 250, BATCHES = 40 };
    static const char *const texts[] = { "",
                                         GET_HELLO,
                                         "GET /hold HTTP/1.1\r\n" HOST "\r\n",
                                         "\x16\x03\x01garbage\r\n",
                                         "GET /stream HTTP/1.1\r\n" HOST "\r\n",
                                         "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 100\r\n\r\nhalf",
                                         "GET /hel" };
    harness h;
    int fds[BATCH];
    harness_init(&h);
    harness_open(&h);
    int descriptors = num_descriptors();
    long resident = 0;
    for (int b = 0; b < BATCHES; b++) {
        for (int i = 0; i < BATCH; i++) {
            fds[i] = dial(&h);
            turn_for(&h, 0);
            say(&h, fds[i], texts[(b + i) % 7]);
        }
        h.num_held = 0; /* more than the harness keeps */
        for (int i = 0; i < BATCH; i++) {
            if (i % 2) {
                reset(fds[i]);
            } else {
                hang_up(fds[i]);
            }
        }
        TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 3000);
        if (b == 3) {
            resident = resident_kib();
        }
    }
    CHECK_EQ(num_descriptors(), descriptors);
    CHECK_EQ(mf_http_server_body_bytes(h.server), 0);
    (void)resident;
#ifndef __SANITIZE_ADDRESS__ /* which keeps freed blocks for a while */
    CHECK(resident_kib() - resident < 4096);
#endif
    CHECK_EQ(status_of(ask(&h, "GET /hello HTTP/1.0\r\n\r\n")), 200);
    harness_close(&h);
}

TEST(idle_connections_are_cheap_and_slow_nobody_down)
{
    enum { IDLE = 5000 };
    harness h;
    int *fds = calloc(IDLE, sizeof *fds), n = 0;
    struct rlimit limit;
    harness_init(&h);
    harness_open(&h);
    getrlimit(RLIMIT_NOFILE, &limit);
    int wanted = limit.rlim_cur < 2 * IDLE + 100 ? (int)(limit.rlim_cur - 100) / 2 : IDLE;
    long resident = resident_kib();
    for (; n < wanted; n++) {
        fds[n] = dial(&h);
        say(&h, fds[n], GET_HELLO);
    }
    TURN_UNTIL(&h, h.num_handled == n, 3000);
    turn_for(&h, 5);
    CHECK_EQ(mf_http_server_num_connections(h.server), n);
#ifndef __SANITIZE_ADDRESS__
    CHECK((resident_kib() - resident) / (double)n < 3.0); /* KiB each */
#endif
    int num_slow = 0;
    int fd = dial(&h);
    for (int i = 0; i < 200; i++) {
        int64_t start = mf_now_ns();
        say(&h, fd, GET_HELLO);
        CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
        num_slow += ms_since(start) > 50;
    }
    CHECK(num_slow <= 2); /* the 99th percentile is within 50 ms */
    hang_up(fd);
    for (int i = 0; i < n; i++) {
        hang_up(fds[i]);
    }
    TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 3000);
    (void)resident;
    free(fds);
    harness_close(&h);
}

/* ---- memory running out ---- */

static int allocations_left; /* until one fails; -1: none does */
static bool stays_out;

static bool may_allocate(void)
{
    if (allocations_left != 0) {
        allocations_left -= allocations_left > 0;
        return true;
    }
    allocations_left = stays_out ? 0 : -1;
    return false;
}

static void *poor_alloc(size_t bytes)
{
    return may_allocate() ? malloc(bytes) : NULL;
}

static void *poor_resize(void *block, size_t bytes)
{
    return may_allocate() ? realloc(block, bytes) : NULL;
}

TEST(any_allocation_may_fail_and_the_server_goes_on)
{
    static const char *const talks[] = {
        GET_HELLO GET_HELLO "GET /hello HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST
        "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        "GET /nowhere HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n",
        "GET /error HTTP/1.0\r\n\r\n",
        "nonsense\r\n",
    };
    mf_sys sys = mf_sys_table;
    harness h;
    harness_init(&h);
    h.options.max_connections_per_ip = 100;
    harness_open(&h);
    mf_sys_table.alloc = poor_alloc;
    mf_sys_table.resize = poor_resize;
    for (int out = 0; out < 2; out++) {
        stays_out = out;
        for (size_t t = 0; t < sizeof talks / sizeof *talks; t++) {
            for (int k = 0; k < 25; k++) {
                allocations_left = k;
                ask(&h, talks[t]);
                allocations_left = -1;
                CHECK_EQ(status_of(ask(&h, "GET /hello HTTP/1.0\r\n\r\n")), 200);
            }
        }
        for (int k = 0; k < 20; k++) { /* a stream whose backlog finds no memory */
            int fd = dial_with(&h, 4096);
            char piece[8192] = "";
            h.num_held = 0;
            allocations_left = k;
            say(&h, fd, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
            turn_for(&h, 2);
            for (int i = 0; i < 100 && h.num_held && h.held[0] && mf_exchange_write(h.held[0], piece, sizeof piece);
                 i++) {
            }
            turn_for(&h, 1);
            allocations_left = -1;
            hang_up(fd);
            TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 1000);
        }
    }
    harness_close(&h);
    bool is_open = false;
    for (int k = 0; !is_open; k++) {
        static const char *const keys[] = { "a", "b" };
        mf_error err = { 0 };
        harness_init(&h);
        h.options.api_keys = keys;
        h.options.num_api_keys = 2;
        h.base = event_base_new();
        stays_out = false;
        allocations_left = k;
        is_open = mf_http_server_open(h.base, &h.options, &h.server, &err) == MF_OK;
        allocations_left = -1;
        CHECK(is_open || (err.status == MF_ERR_NOMEM && err.message[0] && !h.server));
        CHECK(k < 100);
        mf_http_server_close(&h.server);
        event_base_free(h.base);
    }
    mf_sys_table = sys;
}

/* ---- sockets of other kinds ---- */

TEST(a_unix_socket_serves_and_goes_with_the_server)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/mf-http-test-%d", (int)getpid());
    for (int round = 0; round < 2; round++) {
        harness h;
        harness_init(&h);
        h.options.uds_path = path;
        if (round == 1) { /* one that was left behind is replaced */
            struct sockaddr_un stale = { .sun_family = AF_UNIX };
            snprintf(stale.sun_path, sizeof stale.sun_path, "%s", path);
            int fd = socket(AF_UNIX, SOCK_STREAM, 0);
            CHECK_EQ(bind(fd, (struct sockaddr *)&stale, sizeof stale), 0);
            close(fd);
        }
        harness_open(&h);
        CHECK_EQ(mf_http_server_port(h.server), 0);
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        say(&h, fd, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
        TURN_UNTIL(&h, h.num_held == 1, 1000);
        CHECK_STR(mf_exchange_peer(h.held[0]), "unix");
        mf_exchange_reply(h.held[0], 200, "text/plain", "x", 1);
        CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
        say(&h, fd, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
        TURN_UNTIL(&h, h.num_held == 2, 1000);
        hang_up(fd);
        TURN_UNTIL(&h, h.num_gone == 1, 100);
        harness_close(&h);
        CHECK(access(path, F_OK) != 0);
    }
}

TEST(a_socket_that_cannot_be_had_is_an_error_with_its_flag)
{
    harness h;
    mf_error err = { 0 };
    mf_http_server *second;
    harness_init(&h);
    harness_open(&h);
    mf_http_options options = h.options;
    options.port = mf_http_server_port(h.server);
    CHECK_EQ(mf_http_server_open(h.base, &options, &second, &err), MF_ERR_IO);
    CHECK_HAS(err.message, "--port");
    CHECK_HAS(err.message, "in use");
    options.port = 65536;
    CHECK_EQ(mf_http_server_open(h.base, &options, &second, &err), MF_ERR_INVALID);
    options.port = 0;
    options.host = "999.1.1.1";
    CHECK_EQ(mf_http_server_open(h.base, &options, &second, &err), MF_ERR_IO);
    CHECK_HAS(err.message, "--host");
    char path[200];
    memset(path, 'p', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    options.uds_path = path;
    CHECK_EQ(mf_http_server_open(h.base, &options, &second, &err), MF_ERR_INVALID);
    options.uds_path = "/dev/null"; /* no socket: stays as it is */
    CHECK_EQ(mf_http_server_open(h.base, &options, &second, &err), MF_ERR_IO);
    CHECK_EQ(access("/dev/null", F_OK), 0);
    harness_close(&h);
}

/* ---- leaving ---- */

TEST(draining_ends_streams_unharmed_and_closes_behind_each_answer)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int stream = dial(&h), idle = dial(&h), busy = dial(&h);
    say(&h, stream, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    say(&h, idle, GET_HELLO);
    CHECK_EQ(status_of(hear_answer(&h, idle)), 200);
    say(&h, busy, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 2, 1000);
    mf_http_server_drain(h.server);
    h.refuses = true;
    /* a new client reads why */
    const char *answer = ask(&h, GET_HELLO);
    CHECK_EQ(status_of(answer), 503);
    CHECK_HAS(answer, "\r\nConnection: close\r\n");
    mf_exchange_write(h.held[0], "data: 1\n\n", 9);
    mf_exchange_end(h.held[0], false);
    answer = hear(&h, stream, NULL, 1000);
    CHECK_HAS(answer, "data: 1\n\n\r\n0\r\n\r\n");
    mf_exchange_reply(h.held[1], 200, "text/plain", "x", 1);
    answer = hear(&h, busy, NULL, 1000);
    CHECK_EQ(status_of(answer), 200);
    CHECK_HAS(answer, "\r\nConnection: close\r\n");
    CHECK(hear_end(&h, idle, 2000));
    TURN_UNTIL(&h, mf_http_server_num_connections(h.server) == 0, 1000);
    CHECK_EQ(h.num_gone, 0);
    hang_up(stream);
    hang_up(idle);
    hang_up(busy);
    harness_close(&h);
}

static void note_taken(void *context)
{
    ++*(int *)context;
}

TEST(a_new_server_takes_the_listener_and_no_connection_is_refused)
{
    char path[64];
    int num_taken = 0, listen_fd, control_fd;
    harness old, new;
    mf_takeover *offer;
    mf_error err = { 0 };
    snprintf(path, sizeof path, "/tmp/mf-takeover-test-%d", (int)getpid());
    CHECK_OK(mf_takeover_receive(path, 1000, &listen_fd, &control_fd, &err), err);
    CHECK_EQ(listen_fd, -1); /* nobody offers */
    harness_init(&old);
    harness_open(&old);
    CHECK_OK(
        mf_takeover_offer(old.base, path, mf_http_server_listen_fd(old.server), note_taken, &num_taken, &offer, &err),
        err);
    struct stat st;
    CHECK_EQ(stat(path, &st), 0);
    CHECK_EQ(st.st_mode & 0777, 0600);
    int before = dial(&old);
    say(&old, before, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&old, old.num_held == 1, 1000);

    /* The other process, as a child would be: it asks and gets the socket while the old one's loop turns. */
    int ready[2];
    CHECK_EQ(pipe2(ready, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        char go;
        if (mf_takeover_receive(path, 3000, &listen_fd, &control_fd, &err) != MF_OK || listen_fd < 0 ||
            read(ready[0], &go, 1) != 1 || mf_takeover_claim(control_fd, 3000, &err) != MF_OK) {
            _exit(1);
        }
        harness_init(&new);
        new.options.listen_fd = listen_fd;
        harness_open(&new);
        int64_t until = mf_now_ns() + 5000 * MS;
        while (new.num_handled < 20 && mf_now_ns() < until) {
            turn_for(&new, 1);
        }
        turn_for(&new, 50);
        _exit(new.num_handled == 20 ? 0 : 2);
    }
    turn_for(&old, 50);
    CHECK_EQ(num_taken, 0); /* it has the socket but is not ready: the old one serves */
    CHECK_EQ(status_of(ask(&old, "GET /hello HTTP/1.0\r\n\r\n")), 200);
    CHECK_EQ(write(ready[1], "x", 1), 1);
    TURN_UNTIL(&old, num_taken == 1, 3000);
    int32_t port = mf_http_server_port(old.server);
    mf_http_server_hand_over(old.server);
    mf_takeover_close(&offer);
    CHECK(access(path, F_OK) != 0);
    for (int i = 0; i < 20; i++) {
        struct sockaddr_in address = { .sin_family = AF_INET,
                                       .sin_port = htons((uint16_t)port),
                                       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        say(&old, fd, "GET /hello HTTP/1.0\r\n\r\n");
        CHECK_EQ(status_of(hear(&old, fd, NULL, 3000)), 200);
        hang_up(fd);
    }
    /* what the old one had begun it ends */
    mf_exchange_reply(old.held[0], 200, "text/plain", "x", 1);
    CHECK_EQ(status_of(hear(&old, before, NULL, 1000)), 200);
    hang_up(before);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    close(ready[0]);
    close(ready[1]);
    harness_close(&old);
}
