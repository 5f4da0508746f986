/* http_server_test.c - a real server over loopback, driven by raw sockets: requests in order, streams, keys, origins,
 * leaving. */
#include "http_harness.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
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

TEST(a_client_that_half_closes_gets_what_is_answered_at_once_and_has_left_otherwise)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd,
        "GET /hello HTTP/1.1\r\n" HOST "\r\nGET /query HTTP/1.1\r\n" HOST "\r\nGET /hello HTTP/1.1\r\n" HOST "\r\n");
    shutdown(fd, SHUT_WR);
    const char *answer = hear(&h, fd, NULL, 2000);
    for (int i = 0; i < 3; i++) {
        answer = strstr(answer, "HTTP/1.1 200 OK\r\n");
        CHECK(answer != NULL);
        answer++;
    }
    hang_up(fd);
    fd = dial(&h);
    say(&h, fd, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    shutdown(fd, SHUT_WR);
    TURN_UNTIL(&h, h.num_gone == 1, 100);
    CHECK_STR(h.gone_cause, "closed");
    hang_up(fd);
    harness_close(&h);
}

TEST(waiting_costs_no_time_of_the_processor)
{
    harness h;
    char piece[1000] = "";
    harness_init(&h);
    harness_open(&h);
    int pipelined = dial(&h), stalled = dial_with(&h, 4096), lingering = dial(&h), half = dial(&h);
    say(&h, pipelined, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 1, 1000);
    say(&h, pipelined, "GET /hello HTTP/1.1\r\n" HOST "\r\n"); /* stays in the socket */
    say(&h, stalled, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    TURN_UNTIL(&h, h.num_held == 2, 1000);
    while (mf_exchange_write(h.held[1], piece, sizeof piece)) {
    }
    say(&h, lingering, "nonsense\r\n"); /* answered, and the client does not leave */
    say(&h, half, "GET /hel");
    turn_for(&h, 20);
    CHECK_EQ(mf_http_server_num_connections(h.server), 4);
    clock_t start = clock();
    event_base_loopexit(h.base, &(struct timeval){ 0, 200000 });
    event_base_dispatch(h.base);
    CHECK((double)(clock() - start) / CLOCKS_PER_SEC < 0.02);
    hang_up(pipelined);
    hang_up(stalled);
    hang_up(lingering);
    hang_up(half);
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

/* ---- what is refused before a handler sees it ---- */

TEST(framing_faults_are_400_in_the_error_shape_and_close)
{
    static const char *const faults[] = {
        "GET /hello HTTP/1.1\nHost: h\r\n\r\n",
        "GET /hello HTTP/1.1\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        "\x16\x03\x01\x02",
        "GET /a/../hello HTTP/1.1\r\n" HOST "\r\n",
    };
    harness h;
    harness_init(&h);
    harness_open(&h);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        const char *answer = ask(&h, faults[i]);
        CHECK_EQ(status_of(answer), 400);
        CHECK_HAS(answer, "Connection: close\r\n");
        CHECK_HAS(answer, "Content-Type: application/json\r\n");
        CHECK_HAS(answer, "{\"error\": {\"message\": \"");
        CHECK_HAS(answer, "\"type\": \"BadRequestError\", \"param\": null, \"code\": 400}}");
    }
    CHECK_EQ(h.num_handled, 0);
    /* What stands behind a fault is never read as a request. */
    const char *answer =
        ask(&h, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: x\r\n\r\nGET /hello HTTP/1.1\r\n" HOST "\r\n");
    CHECK_EQ(status_of(answer), 400);
    CHECK(!strstr(answer + 1, "HTTP/1.1 "));
    CHECK_EQ(h.num_handled, 0);
    harness_close(&h);
}

TEST(an_unknown_path_is_404_and_a_wrong_method_405_with_allow)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd, "GET /nowhere HTTP/1.1\r\n" HOST "\r\n");
    const char *answer = hear_answer(&h, fd);
    CHECK_EQ(status_of(answer), 404);
    CHECK_HAS(answer, "\"type\": \"NotFoundError\"");
    say(&h, fd, "DELETE /hold HTTP/1.1\r\n" HOST "\r\n"); /* the same connection goes on */
    answer = hear_answer(&h, fd);
    CHECK_EQ(status_of(answer), 405);
    CHECK_HAS(answer, "\r\nAllow: POST, GET, HEAD, OPTIONS\r\n");
    CHECK_HAS(answer, "\"type\": \"MethodNotAllowedError\"");
    say(&h, fd, "HEAD /echo HTTP/1.1\r\n" HOST "\r\n");
    answer = hear(&h, fd, "\r\n\r\n", 1000);
    CHECK_EQ(status_of(answer), 405);
    CHECK_HAS(answer, "\r\nAllow: POST, OPTIONS\r\n");
    say(&h, fd, "OPTIONS /echo HTTP/1.1\r\n" HOST "\r\n");
    answer = hear(&h, fd, "\r\n\r\n", 1000);
    CHECK_EQ(status_of(answer), 204);
    CHECK_HAS(answer, "\r\nAllow: POST, OPTIONS\r\n");
    CHECK(!strstr(answer, "Content-Length"));
    say(&h, fd, "OPTIONS * HTTP/1.1\r\n" HOST "\r\n");
    CHECK_EQ(status_of(hear(&h, fd, "\r\n\r\n", 1000)), 204);
    say(&h, fd,
        "POST /nowhere HTTP/1.1\r\n" HOST
        "Content-Length: 4\r\n\r\n"); /* its body is dropped, also when it comes later */
    CHECK_EQ(status_of(hear_answer(&h, fd)), 404);
    say(&h, fd, "GET GET /hello HTTP/1.1\r\n" HOST "\r\n"); /* four bytes of body, then a request */
    CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
    hang_up(fd);
    harness_close(&h);
}

TEST(a_star_takes_the_rest_of_a_path)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    CHECK_EQ(status_of(ask(&h, "GET /v1/models/org/name HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n")), 200);
    CHECK_STR(h.last_tail, "org/name");
    CHECK_EQ(status_of(ask(&h, "GET /v1/models/ HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n")), 404);
    CHECK_EQ(status_of(ask(&h, "GET /v1/models HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n")), 200);
    CHECK_EQ(status_of(ask(&h, "GET /query?layer=1&window=6%30 HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n")), 200);
    CHECK_STR(h.last_query, "60");
    harness_close(&h);
}

TEST(a_post_must_be_json_or_say_nothing)
{
    static const struct {
        const char *fields;
        int status;
    } cases[] = {
        { "", 200 },
        { "Content-Type: application/json\r\n", 200 },
        { "Content-Type: Application/JSON;charset=utf-8\r\n", 200 },
        { "Content-Type: application/json2\r\n", 415 },
        { "Content-Type: text/plain\r\n", 415 },
        { "Content-Type: application/x-www-form-urlencoded\r\n", 415 },
        { "Content-Type:\r\n", 415 },
        { "Content-Encoding: gzip\r\n", 415 },
        { "Content-Encoding: identity\r\n", 200 },
    };
    harness h;
    harness_init(&h);
    harness_open(&h);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char request[512];
        snprintf(request, sizeof request,
                 "POST /echo HTTP/1.1\r\n" HOST "Connection: close\r\nContent-Length: 2\r\n%s\r\n{}", cases[i].fields);
        const char *answer = ask(&h, request);
        CHECK_EQ(status_of(answer), cases[i].status);
        if (cases[i].status == 415) {
            CHECK_HAS(answer, "UnsupportedMediaTypeError");
        }
    }
    harness_close(&h);
}

TEST(errors_of_handlers_keep_their_field_and_retry_after)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    const char *answer = ask(&h, "GET /error HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    CHECK_EQ(status_of(answer), 429);
    CHECK_HAS(answer, "\r\nRetry-After: 7\r\n");
    CHECK_HAS(answer, "\r\n\r\n{\"error\": {\"message\": \"too \\\"many\\\"\\u000a\", \"type\": \"RateLimitError\", "
                      "\"param\": \"n\", \"code\": 429}}");
    harness_close(&h);
}

TEST(error_messages_are_always_valid_utf8_json)
{
    mf_api_error error;
    mf_buffer out = { 0 };
    CHECK_EQ(mf_api_fail(&error, 400, "p\"", "bad \xff\xc3 \xed\xa0\x80 \xf0\x9f\x98\x80 \x7f"), MF_ERR_INVALID);
    CHECK_EQ(mf_api_error_write(&error, &out), MF_OK);
    CHECK_STR(out.data, "{\"error\": {\"message\": \"bad \xef\xbf\xbd\xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd "
                        "\xf0\x9f\x98\x80 \\u007f\", "
                        "\"type\": \"BadRequestError\", \"param\": \"p\\\"\", \"code\": 400}}");
    mf_buffer_close(&out);
    char wide[1100];
    memset(wide, 'x', sizeof wide);
    memcpy(wide + 1021, "\xf0\x9f\x98\x80", 5);
    CHECK_EQ(mf_api_fail(&error, 503, NULL, "%s", wide), MF_ERR_BUSY);
    CHECK_EQ(strlen(error.message), 1021); /* no half of a character */
}

TEST(not_ready_is_503_with_retry_after_but_some_routes_answer)
{
    harness h;
    harness_init(&h);
    h.refuses = true;
    harness_open(&h);
    int fd = dial(&h);
    say(&h, fd, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\n{}");
    const char *answer = hear_answer(&h, fd);
    CHECK_EQ(status_of(answer), 503);
    CHECK_HAS(answer, "\r\nRetry-After: 3\r\n");
    CHECK_HAS(answer, "ServiceUnavailableError");
    say(&h, fd, "GET /health HTTP/1.1\r\n" HOST "\r\n");
    CHECK_EQ(status_of(hear_answer(&h, fd)), 200);
    CHECK_EQ(h.num_handled, 1);
    hang_up(fd);
    harness_close(&h);
}

/* ---- keys ---- */

TEST(every_route_known_or_not_needs_the_key)
{
    static const char *const keys[] = { "sk-first", "sk-second" };
    static const char *const public_paths[] = { "/health" };
    static const char *const paths[] = { "GET /hello",       "POST /echo",   "GET /query",    "GET /v1/models",
                                         "GET /v1/models/x", "POST /hold",   "GET /hold",     "POST /stream",
                                         "GET /stream",      "GET /forget",  "GET /error",    "GET /nowhere",
                                         "DELETE /hello",    "GET /health/", "GET //health",  "GET /HEALTH",
                                         "OPTIONS /hello",   "OPTIONS *",    "TRACE /nowhere" };
    static const char *const wrong[] = { "",
                                         "Authorization: Bearer\r\n",
                                         "Authorization: Bearer sk-firs\r\n",
                                         "Authorization: Bearer sk-firstt\r\n",
                                         "Authorization: Bearer SK-FIRST\r\n",
                                         "Authorization: Basic sk-first\r\n",
                                         "Authorization: sk-first\r\n",
                                         "X-Api-Key: sk-first\r\n",
                                         "Authorization: Bearer sk-first,sk-second\r\n" };
    harness h;
    harness_init(&h);
    h.options.api_keys = keys;
    h.options.num_api_keys = 2;
    h.options.public_paths = public_paths;
    h.options.num_public_paths = 1;
    harness_open(&h);
    for (size_t p = 0; p < sizeof paths / sizeof *paths; p++) {
        for (size_t w = 0; w < sizeof wrong / sizeof *wrong; w++) {
            char request[512];
            snprintf(request, sizeof request, "%s HTTP/1.1\r\n" HOST "Connection: close\r\n%s\r\n", paths[p], wrong[w]);
            const char *answer = ask(&h, request);
            CHECK_EQ(status_of(answer), 401);
            CHECK_HAS(answer, "\r\nWWW-Authenticate: Bearer\r\n");
            if (strncmp(paths[p], "HEAD", 4) != 0) {
                CHECK_HAS(answer, "AuthenticationError");
            }
        }
    }
    CHECK_EQ(h.num_handled, 0);
    CHECK_EQ(status_of(
                 ask(&h, "GET /hello HTTP/1.1\r\n" HOST "Connection: close\r\nAuthorization: Bearer sk-first\r\n\r\n")),
             200);
    CHECK_EQ(status_of(ask(&h, "GET /hello HTTP/1.1\r\n" HOST
                               "Connection: close\r\nAuthorization: bearer  sk-second\r\n\r\n")),
             200);
    CHECK_EQ(status_of(ask(&h, "GET /nowhere HTTP/1.1\r\n" HOST
                               "Connection: close\r\nAuthorization: Bearer sk-second\r\n\r\n")),
             404);
    CHECK_EQ(status_of(ask(&h, "GET /health HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n")), 200);
    CHECK_EQ(
        status_of(ask(&h, "GET /health HTTP/1.1\r\n" HOST
                          "Connection: close\r\nAuthorization: Bearer x\r\nAuthorization: Bearer sk-first\r\n\r\n")),
        400);
    /* a body that nobody may send is not waited for */
    CHECK_EQ(status_of(ask(&h, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 8000000\r\n\r\n")), 401);
    /* a key of 4 MB is a head beyond its limit */
    int fd = dial(&h);
    char *key = malloc(4 << 20);
    memset(key, 'k', 4 << 20);
    say(&h, fd, "GET /hello HTTP/1.1\r\n" HOST "Authorization: Bearer ");
    say_bytes(&h, fd, key, 4 << 20);
    CHECK_EQ(status_of(hear(&h, fd, NULL, 3000)), 431);
    free(key);
    hang_up(fd);
    harness_close(&h);
}

TEST(unusable_keys_are_refused_at_the_start_and_no_key_asks_for_none)
{
    static const char *const bad[] = { "", "a b", "a\n", "\xc3\xa4" };
    for (size_t i = 0; i < 4; i++) {
        mf_error err = { 0 };
        mf_http_server *server;
        struct event_base *base = event_base_new();
        mf_http_options options = { .api_keys = &bad[i], .num_api_keys = 1 };
        CHECK_EQ(mf_http_server_open(base, &options, &server, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, "API key 1");
        event_base_free(base);
    }
    harness h;
    harness_init(&h);
    harness_open(&h);
    CHECK_EQ(status_of(ask(&h, "GET /hello HTTP/1.1\r\n" HOST "Connection: close\r\nAuthorization: Bearer \r\n\r\n")),
             200);
    harness_close(&h);
}

/* ---- browsers ---- */

static int status_with_origin(harness *h, const char *host, const char *origin)
{
    char request[512];
    snprintf(request, sizeof request,
             "POST /echo HTTP/1.1\r\nHost: %s\r\nOrigin: %s\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", host,
             origin);
    return status_of(ask(h, request));
}

TEST(pages_of_other_origins_are_refused_before_the_body)
{
    harness h;
    harness_init(&h);
    harness_open(&h);
    CHECK_EQ(status_with_origin(&h, "localhost:8000", "http://localhost:8000"), 200);
    CHECK_EQ(status_with_origin(&h, "127.0.0.1:8000", "http://127.0.0.1:8000"), 200);
    CHECK_EQ(status_with_origin(&h, "[::1]:8000", "http://[::1]:8000"), 200);
    CHECK_EQ(status_with_origin(&h, "localhost:8000", "http://localhost:8001"), 403);
    CHECK_EQ(status_with_origin(&h, "localhost:8000", "http://evil.example"), 403);
    CHECK_EQ(status_with_origin(&h, "localhost:8000", "null"), 403);
    CHECK_EQ(status_with_origin(&h, "localhost:8000", "localhost:8000"), 403);
    CHECK_EQ(status_with_origin(&h, "localhost:8000", "file://localhost:8000"), 403);
    /* a name that somebody else can make resolve to this machine */
    CHECK_EQ(status_with_origin(&h, "evil.example:8000", "http://evil.example:8000"), 403);
    CHECK_EQ(status_with_origin(&h, "127.0.0.1.evil.example", "http://127.0.0.1.evil.example"), 403);
    CHECK_EQ(h.num_handled, 3);
    const char *answer =
        ask(&h, "POST /echo HTTP/1.1\r\n" HOST "Origin: http://evil.example\r\nContent-Length: 8000000\r\n\r\n");
    CHECK_EQ(status_of(answer), 403);
    CHECK_HAS(answer, "PermissionDeniedError");
    CHECK(!strstr(answer, "Access-Control"));
    answer = ask(&h, "OPTIONS /echo HTTP/1.1\r\n" HOST
                     "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\nConnection: close\r\n\r\n");
    CHECK_EQ(status_of(answer), 403);
    CHECK(!strstr(answer, "Access-Control"));
    harness_close(&h);
}

TEST(allowed_origins_get_their_preflight_without_a_key)
{
    static const char *const origins[] = { "https://chat.example", "http://localhost:3000" };
    static const char *const keys[] = { "k" };
    harness h;
    harness_init(&h);
    h.options.allowed_origins = origins;
    h.options.num_allowed_origins = 2;
    h.options.api_keys = keys;
    h.options.num_api_keys = 1;
    harness_open(&h);
    const char *answer = ask(&h, "OPTIONS /echo HTTP/1.1\r\n" HOST
                                 "Origin: https://chat.example\r\nAccess-Control-Request-Method: POST\r\n"
                                 "Access-Control-Request-Headers: authorization\r\nConnection: close\r\n\r\n");
    CHECK_EQ(status_of(answer), 204);
    CHECK_HAS(answer, "\r\nAccess-Control-Allow-Origin: https://chat.example\r\n");
    CHECK_HAS(answer, "\r\nAccess-Control-Allow-Headers: Authorization, Content-Type, X-Request-Id\r\n");
    CHECK_HAS(answer, "\r\nAccess-Control-Allow-Methods: GET, HEAD, POST, OPTIONS\r\n");
    CHECK_HAS(answer, "\r\nAccess-Control-Max-Age: 600\r\n");
    CHECK_HAS(answer, "\r\nVary: Origin\r\n");
    CHECK_EQ(status_with_origin(&h, "h", "https://chat.example"), 401);
    CHECK_EQ(status_with_origin(&h, "h", "https://chat.example.evil"), 403);
    answer = ask(
        &h,
        "POST /echo HTTP/1.1\r\n" HOST
        "Origin: http://localhost:3000\r\nAuthorization: Bearer k\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}");
    CHECK_EQ(status_of(answer), 200);
    CHECK_HAS(answer, "\r\nAccess-Control-Allow-Origin: http://localhost:3000\r\n");
    harness_close(&h);

    static const char *const all[] = { "*" };
    harness_init(&h);
    h.options.allowed_origins = all;
    h.options.num_allowed_origins = 1;
    harness_open(&h);
    answer = ask(&h, "GET /hello HTTP/1.1\r\n" HOST "Origin: http://any.example\r\nConnection: close\r\n\r\n");
    CHECK_EQ(status_of(answer), 200);
    CHECK_HAS(answer, "\r\nAccess-Control-Allow-Origin: *\r\n");
    CHECK(!strstr(answer, "Credentials"));
    harness_close(&h);
}
