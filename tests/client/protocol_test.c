/* protocol_test.c - what the client reads from a socket: HTTP answers and event streams, cut anywhere; URLs; one
 * request's record. */
#include "test.h"

#include <math.h>

#include "cli/bench_record.h"
#include "cli/http_client.h"
#include "cli/sse.h"

/* ---- event streams ---- */

typedef struct events {
    mf_buffer text; /* each event's data and a | */
    int count, stop_after;
} events;

static bool keep_event(void *context, const char *data, size_t size)
{
    events *e = context;
    CHECK(data[size] == '\0');
    mf_buffer_append(&e->text, data, size);
    mf_buffer_append_text(&e->text, "|");
    return ++e->count != e->stop_after;
}

/* Feeds `text` in pieces that end at the two cuts. */
static void feed(const char *text, size_t first, size_t second, events *out)
{
    mf_sse sse = { 0 };
    mf_error err = { 0 };
    size_t n = strlen(text), from = 0;
    const size_t ends[] = { first < n ? first : n, second < n ? second : n, n };
    for (int i = 0; i < 3; i++) {
        if (ends[i] >= from) {
            CHECK_OK(mf_sse_feed(&sse, text + from, ends[i] - from, keep_event, out, &err), err);
            from = ends[i];
        }
    }
    mf_sse_close(&sse);
}

static void check_events(const char *text, const char *expected)
{
    size_t n = strlen(text);
    for (size_t a = 0; a <= n; a++) {
        for (size_t b = a; b <= n; b++) {
            events e = { 0 };
            feed(text, a, b, &e);
            CHECK_STR(mf_buffer_text(&e.text), expected);
            mf_buffer_close(&e.text);
        }
    }
}

TEST(sse_gives_the_same_events_for_any_two_cuts)
{
    check_events("data: {\"a\":1}\n\n: ping\n\ndata:two\r\n\r\ndata: x\rdata: y\r\rdata: [DONE]\n\n",
                 "{\"a\":1}|two|x\ny|[DONE]|");
}

TEST(sse_skips_comments_and_other_fields_and_keeps_inner_spaces)
{
    check_events(":c\nevent: e\nid: 3\ndata:  two blanks\nretry: 1\n\nevent: none\n\ndata\n\n", " two blanks||");
}

TEST(sse_gives_no_event_that_its_empty_line_does_not_end)
{
    check_events("data: whole\n\ndata: half\n", "whole|");
}

TEST(sse_forgets_a_byte_order_mark_at_the_start_alone)
{
    check_events("\xef\xbb\xbf"
                 "data: a\n\n",
                 "a|");
}

TEST(sse_reads_nothing_after_its_reader_had_enough)
{
    events e = { .stop_after = 1 };
    feed("data: a\n\ndata: b\n\n", 3, 9, &e);
    CHECK_STR(mf_buffer_text(&e.text), "a|");
    mf_buffer_close(&e.text);
}

TEST(sse_refuses_an_event_without_end)
{
    mf_sse sse = { 0 };
    mf_error err = { 0 };
    events e = { 0 };
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    mf_status status = MF_OK;
    for (int i = 0; i < 17 && status == MF_OK; i++) {
        status = mf_sse_feed(&sse, block, sizeof block, keep_event, &e, &err);
    }
    CHECK_EQ(status, MF_ERR_LIMIT);
    CHECK_HAS(err.message, "16777216");
    mf_sse_close(&sse);
}

/* ---- HTTP answers ---- */

static mf_status keep_body(void *context, const char *bytes, size_t size, mf_error *err)
{
    (void)err;
    return mf_buffer_append(context, bytes, size);
}

typedef struct answer {
    mf_http_response head;
    mf_buffer body;
    mf_status status;
    size_t used;
    mf_error err;
} answer;

static void read_answer(const char *text, size_t cut, bool ends, answer *out)
{
    *out = (answer){ 0 };
    size_t n = strlen(text), at = 0;
    cut = cut < n ? cut : n;
    const size_t ends_at[] = { cut, n };
    for (int i = 0; i < 2 && out->status == MF_OK && out->head.part != MF_HTTP_DONE; i++) {
        size_t used = 0;
        out->status =
            mf_http_response_feed(&out->head, text + at, ends_at[i] - at, &used, keep_body, &out->body, &out->err);
        at += used;
    }
    out->used = at;
    if (out->status == MF_OK && ends) {
        out->status = mf_http_response_end(&out->head, &out->err);
    }
}

static void close_answer(answer *a)
{
    mf_http_response_close(&a->head);
    mf_buffer_close(&a->body);
}

static void check_body(const char *text, int status, const char *body, size_t left_over)
{
    for (size_t cut = 0; cut <= strlen(text); cut++) {
        answer a;
        read_answer(text, cut, false, &a);
        CHECK_OK(a.status, a.err);
        CHECK_EQ(a.head.part, MF_HTTP_DONE);
        CHECK_EQ(a.head.status, status);
        CHECK_STR(mf_buffer_text(&a.body), body);
        if (a.used != strlen(text) - left_over && cut >= strlen(text) - left_over) {
            CHECK_EQ(a.used, strlen(text) - left_over);
        }
        close_answer(&a);
    }
}

TEST(http_reads_a_body_by_its_length_wherever_it_is_cut)
{
    check_body("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello", 200, "hello", 0);
}

TEST(http_reads_chunks_with_extensions_and_trailers)
{
    check_body(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
        200, "abc0123456789", 0);
}

TEST(http_leaves_the_bytes_of_the_next_answer)
{
    check_body("HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\n", 204, "", 17);
}

TEST(http_passes_over_100_continue)
{
    check_body("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\nno", 404, "no", 0);
}

TEST(http_reads_until_the_connection_closes_where_nothing_says_the_length)
{
    answer a;
    read_answer("HTTP/1.0 200 OK\nContent-Type: text/event-stream; charset=utf-8\n\nabc", 20, true, &a);
    CHECK_OK(a.status, a.err);
    CHECK_STR(mf_buffer_text(&a.body), "abc");
    CHECK(a.head.is_event_stream && !a.head.keep_alive);
    close_answer(&a);
}

TEST(http_knows_when_a_connection_may_be_used_again)
{
    static const struct {
        const char *head;
        bool kept;
    } cases[] = { { "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true },
                  { "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", false },
                  { "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false },
                  { "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", true } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        answer a;
        read_answer(cases[i].head, 0, false, &a);
        CHECK_EQ(a.head.keep_alive, cases[i].kept);
        close_answer(&a);
    }
}

TEST(http_tells_retry_after_in_seconds)
{
    answer a;
    read_answer("HTTP/1.1 429 Busy\r\nretry-after: 7\r\nContent-Length: 0\r\n\r\n", 0, false, &a);
    CHECK_EQ(a.head.retry_after_s, 7);
    close_answer(&a);
    read_answer("HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n", 0, false, &a);
    CHECK_EQ(a.head.retry_after_s, -1);
    close_answer(&a);
}

TEST(http_refuses_what_is_no_answer)
{
    static const char *const wrong[] = {
        "SSH-2.0-OpenSSH_9\r\n",
        "HTTP/2 200\r\n",
        "HTTP/1.1 20 OK\r\n",
        "HTTP/1.1 099 X\r\n",
        "HTTP/1.1 200OK\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1234567890123456\r\n",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        for (size_t cut = 0; cut <= strlen(wrong[i]); cut++) {
            answer a;
            read_answer(wrong[i], cut, false, &a);
            if (a.status == MF_OK) {
                fail_msg("accepted: %s", wrong[i]);
            }
            close_answer(&a);
        }
    }
}

TEST(http_says_that_an_answer_was_cut)
{
    answer a;
    read_answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", 0, true, &a);
    CHECK_EQ(a.status, MF_ERR_IO);
    CHECK_HAS(a.err.message, "in the middle");
    close_answer(&a);
    read_answer("", 0, true, &a);
    CHECK_HAS(a.err.message, "without an answer");
    close_answer(&a);
}

/* ---- URLs ---- */

TEST(a_url_is_host_port_and_prefix)
{
    mf_http_target t;
    mf_error err = { 0 };
    CHECK_OK(mf_http_target_open("http://127.0.0.1:8123", &t, &err), err);
    CHECK_STR(t.host, "127.0.0.1:8123");
    CHECK_STR(t.prefix, "");
    CHECK_OK(mf_http_target_open("http://127.0.0.1/deep/er/v1/", &t, &err), err);
    CHECK_STR(t.host, "127.0.0.1");
    CHECK_STR(t.prefix, "/deep/er");
    CHECK_OK(mf_http_target_open("HTTP://[::1]:9/v1", &t, &err), err);
    CHECK_STR(t.host, "[::1]:9");
    CHECK_STR(t.prefix, "");
}

TEST(a_url_that_cannot_be_used_is_refused)
{
    static const char *const wrong[] = { "",
                                         "127.0.0.1:80",
                                         "https://127.0.0.1",
                                         "http://",
                                         "http://:80",
                                         "http://a b/",
                                         "http://127.0.0.1:",
                                         "http://127.0.0.1:123456",
                                         "http://u@127.0.0.1",
                                         "http://127.0.0.1?x",
                                         "http://127.0.0.1/a?x",
                                         "http://[::1",
                                         "http://127.0.0.1:port" };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mf_http_target t;
        mf_error err = { 0 };
        if (mf_http_target_open(wrong[i], &t, &err) == MF_OK) {
            fail_msg("accepted: %s", wrong[i]);
        }
    }
}

/* ---- records ---- */

static bool tell(mf_bench_record *r, const char *data, double now)
{
    return mf_bench_record_event(r, data, strlen(data), now);
}

TEST(a_record_counts_every_event_with_a_choice_as_a_piece)
{
    mf_bench_record r = { .start_s = 100, .output_len = -1 };
    CHECK(tell(&r, "{\"choices\":[{\"text\":\"a\",\"finish_reason\":null}],\"usage\":null}", 100.5));
    CHECK(tell(&r, "{\"choices\":[{\"text\":\"\",\"finish_reason\":null}]}", 100.75));
    CHECK(tell(&r, "{\"choices\":[{\"text\":\"b\",\"finish_reason\":\"length\"}]}", 101));
    CHECK(tell(&r, "{\"choices\":[],\"usage\":{\"completion_tokens\":3}}", 102));
    CHECK(!tell(&r, "[DONE]", 102));
    mf_bench_record_end(&r, true);
    CHECK(r.ok);
    CHECK(fabs(r.ttft_s - 0.5) < 1e-9 && r.num_itls == 2 && fabs(r.itls_s[0] - 0.25) < 1e-9 &&
          fabs(r.latency_s - 1) < 1e-9);
    CHECK_EQ(r.output_len, 3);
    CHECK_STR(mf_buffer_text(&r.text), "ab");
    mf_bench_record_close(&r);
}

TEST(a_chat_record_does_not_take_the_role_for_a_token)
{
    mf_bench_record r = { .start_s = 0, .output_len = -1 };
    CHECK(tell(&r, "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}", 1));
    CHECK(tell(&r, "{\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":null}]}", 2));
    mf_bench_record_end(&r, true);
    CHECK(r.ok && fabs(r.ttft_s - 2) < 1e-9 && r.num_itls == 0);
    mf_bench_record_close(&r);
}

TEST(a_record_without_its_end_or_with_an_error_is_a_failure)
{
    mf_bench_record r = { .output_len = -1 };
    CHECK(tell(&r, "{\"choices\":[{\"text\":\"a\"}]}", 1));
    mf_bench_record_end(&r, false);
    CHECK(!r.ok);
    CHECK_HAS(r.error, "before [DONE], after 1 pieces");
    mf_bench_record_close(&r);
    CHECK(!tell(&r, "{\"error\":{\"message\":\"engine\\ndown\",\"code\":500}}", 1));
    mf_bench_record_end(&r, true);
    CHECK(!r.ok);
    CHECK_STR(r.error, "engine down");
    mf_bench_record_close(&r);
    CHECK(!tell(&r, "{\"choices\":", 1));
    mf_bench_record_end(&r, true);
    CHECK(!r.ok);
    mf_bench_record_close(&r);
    mf_bench_record_end(&r, true);
    CHECK_HAS(r.error, "no piece");
    mf_bench_record_close(&r);
}

TEST(a_refused_record_says_status_and_message)
{
    static const struct {
        const char *body, *error;
    } cases[] = { { "{\"error\":{\"message\":\"too long\",\"code\":400}}", "HTTP 400: too long" },
                  { "{\"error\":\"plain\"}", "HTTP 400: plain" },
                  { "{\"object\":\"error\",\"message\":\"old\"}", "HTTP 400: old" },
                  { "{\"detail\":\"fast\"}", "HTTP 400: fast" },
                  { "<html>no</html>", "HTTP 400: <html>no</html>" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mf_bench_record r = { 0 };
        mf_bench_record_refused(&r, 400, cases[i].body, strlen(cases[i].body));
        CHECK_STR(r.error, cases[i].error);
    }
}
