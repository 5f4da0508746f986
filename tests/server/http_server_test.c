/* http_server_test.c - a real server over loopback, driven by raw sockets: requests in order, streams, keys, origins,
 * leaving. */
#include "http_harness.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOST "Host: localhost\r\n"

TEST(a_request_gets_its_answer_with_the_promised_headers)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd, "GET /hello HTTP/1.1\r\n" HOST "X-Request-Id: abc-1.2_3\r\n\r\n");
    const char *answer = hear_answer(&h, fd);
    CHECK_EQ(status_of(answer), 200);
    CHECK_HAS(answer, "\r\nServer: moefuse/test\r\n");
    CHECK_HAS(answer, "\r\nDate: ");
    CHECK_HAS(answer, " GMT\r\n");
    CHECK_HAS(answer, "\r\nX-Request-Id: abc-1.2_3\r\n");
    CHECK_HAS(answer, "\r\nContent-Type: text/plain\r\n");
    CHECK_HAS(answer, "\r\n\r\n/hello");
    CHECK(!strstr(answer, "Connection: close"));
    CHECK_EQ(h.answered[0], 200);
    hang_up(fd);
    harness_close(&h);
}

TEST(an_unfit_request_id_is_replaced_by_a_new_one)
{
    static const char *const unfit[] = { "", "a b", "a/b", "x\xc3\xa4" };
    harness h;
    harness_init(&h);
    harness_open(&h);
    for (size_t i = 0; i < 5; i++) {
        char request[512], id[200] = "";
        if (i == 4) {
            memset(id, 'a', 129);
        } else {
            snprintf(id, sizeof id, "%s", unfit[i]);
        }
        snprintf(request, sizeof request,
                 "POST /echo HTTP/1.1\r\n" HOST "X-Request-Id: %s\r\nConnection: close\r\n\r\n", id);
        CHECK_EQ(status_of(ask(&h, request)), 200);
        CHECK_EQ(strlen(h.last_id), 32);
    }
    harness_close(&h);
}

TEST(pipelined_requests_are_answered_in_order_also_when_the_first_waits)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd,
        "GET /hold HTTP/1.1\r\n" HOST "\r\nPOST /echo HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\n\"b\""
        "GET /hello HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    turn_for(&h, 20);
    CHECK_EQ(h.num_handled, 1);
    mf_exchange_reply(h.held[0], 200, "text/plain", "first", 5);
    const char *answer = hear(&h, fd, NULL, 2000);
    const char *first = strstr(answer, "\r\n\r\nfirst"), *second = strstr(answer, "\r\n\r\n\"b\""),
               *third = strstr(answer, "\r\n\r\n/hello");
    CHECK(first && second && third && first < second && second < third);
    CHECK_EQ(h.num_handled, 3);
    hang_up(fd);
    harness_close(&h);
}

TEST(two_hundred_pipelined_requests_get_two_hundred_answers)
{
    static const char request[] = "GET /hello HTTP/1.1\r\n" HOST "\r\n";
    harness h;
    char *all = calloc(200, sizeof request);
    harness_init(&h);
    harness_open(&h);
    for (int i = 0; i < 200; i++) {
        strcat(all, request);
    }
    int fd = dial(&h), count = 0;
    say(&h, fd, all);
    TURN_UNTIL(&h, h.num_handled == 200, 2000);
    for (const char *p = hear(&h, fd, NULL, 100); (p = strstr(p, "\r\n\r\n/hello")); p++) {
        count++;
    }
    CHECK_EQ(count, 200);
    free(all);
    hang_up(fd);
    harness_close(&h);
}

TEST(a_stream_is_chunked_and_says_what_proxies_need)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd,
        "POST /stream HTTP/1.1\r\n" HOST
        "Content-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}");
    const char *answer = hear(&h, fd, "\r\n\r\n", 2000);
    CHECK_HAS(answer, "\r\nTransfer-Encoding: chunked\r\n");
    CHECK_HAS(answer, "\r\nContent-Type: text/event-stream; charset=utf-8\r\n");
    CHECK_HAS(answer, "\r\nCache-Control: no-cache\r\n");
    CHECK_HAS(answer, "\r\nX-Accel-Buffering: no\r\n");
    CHECK(mf_exchange_write(h.held[0], "data: 1\n\n", 9));
    CHECK_STR(hear(&h, fd, "\n\n\r\n", 1000), "9\r\ndata: 1\n\n\r\n");
    mf_exchange_end(h.held[0], false);
    CHECK_STR(hear(&h, fd, "0\r\n\r\n", 1000), "0\r\n\r\n");
    say(&h, fd, "GET /hello HTTP/1.1\r\n" HOST "\r\n"); /* and the connection goes on */
    CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
    hang_up(fd);
    harness_close(&h);
}

TEST(one_event_is_one_segment)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    char piece[256];
    say(&h, fd, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    hear(&h, fd, "\r\n\r\n", 2000);
    for (int i = 0; i < 50; i++) {
        mf_exchange_write(h.held[0], "data: x\n\n", 9);
        ssize_t n = recv(fd, piece, sizeof piece, 0); /* with no turn of the server between: it was written at once */
        CHECK_EQ(n, 14);
    }
    mf_exchange_end(h.held[0], true);
    CHECK_STR(hear(&h, fd, NULL, 1000), "0\r\n\r\n");
    hang_up(fd);
    harness_close(&h);
}

TEST(http_1_0_streams_until_the_connection_closes)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd, "GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    CHECK_HAS(hear(&h, fd, "\r\n\r\n", 2000), "\r\nConnection: close\r\n");
    mf_exchange_write(h.held[0], "data: 1\n\n", 9);
    mf_exchange_end(h.held[0], false);
    CHECK_STR(hear(&h, fd, NULL, 2000), "data: 1\n\n");
    hang_up(fd);
    fd = dial(&h);
    say(&h, fd, "GET /hello HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    CHECK_HAS(hear_answer(&h, fd), "\r\nConnection: keep-alive\r\n");
    say(&h, fd, "GET /hello HTTP/1.0\r\n\r\n");
    CHECK_HAS(hear(&h, fd, NULL, 2000), "\r\nConnection: close\r\n");
    hang_up(fd);
    harness_close(&h);
}

TEST(head_is_get_without_the_body)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    const char *answer = ask(&h, "HEAD /hello HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    CHECK_EQ(status_of(answer), 200);
    CHECK_HAS(answer, "\r\nContent-Length: 6\r\n");
    CHECK_STR(strstr(answer, "\r\n\r\n"), "\r\n\r\n");
    answer = ask(&h, "HEAD /nowhere HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    CHECK_EQ(status_of(answer), 404);
    CHECK_STR(strstr(answer, "\r\n\r\n"), "\r\n\r\n");
    harness_close(&h);
}

TEST(a_client_that_leaves_is_noticed_while_the_handler_works)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    for (int i = 0; i < 4; i++) {
        int fd = dial(&h);
        /* two of them with a pipelined request behind, which stays unread */
        say(&h, fd,
            i & 1 ? "GET /hold HTTP/1.1\r\n" HOST "\r\nGET /hello HTTP/1.1\r\n" HOST "\r\n"
                  : "GET /hold HTTP/1.1\r\n" HOST "\r\n");
        TURN_UNTIL(&h, h.num_handled == i + 1, 1000);
        if (i & 1) {
            say(&h, fd, "GET /hello HTTP/1.1\r\n" HOST "\r\n");
            turn_for(&h, 5);
        }
        CHECK_EQ(h.num_gone, i);
        if (i & 2) {
            reset(fd);
        } else {
            hang_up(fd);
        }
        TURN_UNTIL(&h, h.num_gone == i + 1, 50);
        /* a socket closed with unread bytes resets */
        CHECK_STR(h.gone_cause, i & 2 ? "reset" : "closed");
    }
    CHECK_EQ(mf_http_server_num_connections(h.server), 0);
    harness_close(&h);
}

TEST(a_handler_that_forgets_its_request_is_a_500)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    CHECK_EQ(status_of(ask(&h, "GET /forget HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n")), 500);
    harness_close(&h);
}
