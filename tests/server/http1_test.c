/* http1_test.c - the request parser against a table of bytes that other parsers take, and in every cut. */
#include "server/http1.h"

#include <stdlib.h>

#include "test.h"

static const mf_http1_limits limits = {
    .head_bytes = 32768, .url_bytes = 8192, .body_bytes = 8 << 20, .num_fields = 100
};

typedef struct outcome {
    mf_http1_event event; /* DONE, FAILED or MORE */
    int status;
    size_t used;
    char body[4096];
    size_t body_size;
    char path[256], query[256], method[40];
    bool keep_alive;
} outcome;

/* Feeds pieces of `step` bytes (0: all at once) up to the first request's end. */
static outcome parse_with(const mf_http1_limits *with, const char *bytes, size_t size, size_t step)
{
    outcome o = { 0 };
    mf_http1 parser;
    mf_http1_init(&parser, with);
    size_t end = step ? 0 : size;
    for (;;) {
        const void *body;
        size_t used, body_size;
        o.event = mf_http1_feed(&parser, bytes + o.used, end - o.used, &used, &body, &body_size);
        o.used += used;
        if (o.event == MF_HTTP1_BODY) {
            CHECK(o.body_size + body_size <= sizeof o.body);
            memcpy(o.body + o.body_size, body, body_size);
            o.body_size += body_size;
        } else if (o.event == MF_HTTP1_HEAD) {
            snprintf(o.method, sizeof o.method, "%s", mf_http1_text(&parser, parser.method));
            snprintf(o.path, sizeof o.path, "%s", mf_http1_text(&parser, parser.path));
            snprintf(o.query, sizeof o.query, "%s", mf_http1_text(&parser, parser.query));
            o.keep_alive = parser.keep_alive;
        } else if (o.event != MF_HTTP1_MORE || end == size) {
            break;
        } else {
            end = end + step < size ? end + step : size;
        }
    }
    o.status = parser.status;
    mf_http1_close(&parser);
    return o;
}

static outcome parse(const char *bytes, size_t size, size_t step)
{
    return parse_with(&limits, bytes, size, step);
}

typedef struct line {
    const char *what, *bytes;
    size_t size;
    int status; /* 0: a good request */
} line;

#define L(what, text, status)                                                                                          \
    {                                                                                                                  \
        what, text, sizeof text - 1, status                                                                            \
    }
#define R(fields, rest, status)                                                                                        \
    L(fields rest, "POST /v1/completions HTTP/1.1\r\nHost: h\r\n" fields "\r\n" rest, status)

static const line lines[] = {
    /* request lines */
    L("plain", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", 0),
    L("1.0 without Host", "GET / HTTP/1.0\r\n\r\n", 0),
    L("a later minor version", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", 0),
    L("one empty line before", "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 0),
    L("two empty lines before", "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("bare LF before", "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("two blanks before target", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("two blanks before version", "GET /  HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("blank after version", "GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400),
    L("blank before method", " GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("tab for blank", "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("no version (0.9)", "GET /\r\n\r\n", 400),
    L("bare LF in the request line", "GET / HTTP/1.1\nHost: h\r\n\r\n", 400),
    L("bare CR in the request line", "GET / HTTP/1.1\rHost: h\r\n\r\n", 400),
    L("version 2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    L("lower-case version", "GET / http/1.1\r\nHost: h\r\n\r\n", 400),
    L("version of two digits", "GET / HTTP/1.11\r\nHost: h\r\n\r\n", 400),
    L("version 1,1", "GET / HTTP/1,1\r\nHost: h\r\n\r\n", 400),
    L("a method of odd bytes", "G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("NUL in the method", "G\0T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("a method of 32 bytes", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF / HTTP/1.1\r\nHost: h\r\n\r\n", 0),
    L("a method of 33 bytes", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("a TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    /* targets */
    L("absolute form", "GET http://h/x?y=1 HTTP/1.1\r\nHost: h\r\n\r\n", 0),
    L("absolute form, other host", "GET http://i/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("absolute form, user", "GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("absolute form, no path", "GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("another scheme", "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("authority form", "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("asterisk with OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 0),
    L("asterisk with GET", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("relative target", "GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("fragment", "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("escaped slash", "GET /a%2fb HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("escaped slash, upper case", "GET /a%2Fb HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("escaped NUL", "GET /a%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("escaped LF", "GET /a%0a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("escape beyond ASCII", "GET /%c3%a4 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("raw byte beyond ASCII", "GET /\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("broken escape", "GET /a%2 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("escape of no hex", "GET /a%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("parent segment", "GET /a/../b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("parent segment at the end", "GET /a/.. HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("escaped parent segment", "GET /a/%2e%2E/b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("this segment", "GET /./a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("dots inside a name", "GET /a..b/...c HTTP/1.1\r\nHost: h\r\n\r\n", 0),
    L("NUL in a query", "GET /a?b=%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("broken escape in a query", "GET /a?b=% HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    L("slash in a query", "GET /a?b=%2f/.. HTTP/1.1\r\nHost: h\r\n\r\n", 0),
    /* Host */
    L("no Host in 1.1", "GET / HTTP/1.1\r\n\r\n", 400),
    L("two Hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400),
    L("two Hosts in 1.0", "GET / HTTP/1.0\r\nHost: h\r\nhost: h\r\n\r\n", 400),
    L("empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    L("Host with a path", "GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", 400),
    L("Host with a user", "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400),
    L("Host with a list", "GET / HTTP/1.1\r\nHost: h, i\r\n\r\n", 400),
    L("Host with a port", "GET / HTTP/1.1\r\nHost: h:8000\r\n\r\n", 0),
    L("Host with a bad port", "GET / HTTP/1.1\r\nHost: h:65536\r\n\r\n", 400),
    L("Host of IPv6", "GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", 0),
    L("Host of broken IPv6", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    /* fields */
    R("A: b\r\n", "", 0),
    R("A:b\r\n", "", 0),
    R("A:\r\n", "", 0),
    R("A: \t \r\n", "", 0),
    R("A: \xc3\xa4\r\n", "", 0),
    R("A : b\r\n", "", 400),
    R("A\t: b\r\n", "", 400),
    R(": b\r\n", "", 400),
    R("A b: c\r\n", "", 400),
    R("A\r\n", "", 400),
    R("A: b\r\n c\r\n", "", 400),
    R("A: b\r\n\tc\r\n", "", 400),
    R(" A: b\r\n", "", 400),
    R("A: b\n", "", 400),
    R("A: b\nC: d\r\n", "", 400),
    R("A: b\rC: d\r\n", "", 400),
    R("A: b\0c\r\n", "", 400),
    R("A: \x01\r\n", "", 400),
    R("A: \x7f\r\n", "", 400),
    R("A\0: b\r\n", "", 400),
    R("\xc3\xa4: b\r\n", "", 400),
    R("A(: b\r\n", "", 400),
    R("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", "", 400),
    R("Content-Type: application/json\r\nContent-Type: text/plain\r\n", "", 400),
    R("Origin: http://a\r\nOrigin: http://b\r\n", "", 400),
    R("Expect: 200-ok\r\n", "", 417),
    /* lengths */
    R("Content-Length: 3\r\n", "abc", 0),
    R("Content-Length: 003\r\n", "abc", 0),
    R("Content-Length: 3\r\nContent-Length: 3\r\n", "abc", 400),
    R("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd", 400),
    R("Content-Length: 3, 3\r\n", "abc", 400),
    R("Content-Length: +3\r\n", "abc", 400),
    R("Content-Length: -3\r\n", "abc", 400),
    R("Content-Length: 0x3\r\n", "abc", 400),
    R("Content-Length: 3 3\r\n", "abc", 400),
    R("Content-Length: 3.0\r\n", "abc", 400),
    R("Content-Length:\r\n", "abc", 400),
    R("Content-Length : 3\r\n", "abc", 400),
    R("Content-Length: \xd9\xa3\r\n", "abc", 400),
    /* codings */
    R("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n", 0),
    R("transfer-encoding:CHUNKED\r\n", "3\r\nabc\r\n0\r\n\r\n", 0),
    R("Transfer-Encoding: gzip\r\n", "", 400),
    R("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", 400),
    R("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n", 400),
    R("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", 400),
    R("Transfer-Encoding: identity\r\n", "", 400),
    R("Transfer-Encoding: \x0b"
      "chunked\r\n",
      "0\r\n\r\n", 400),
    R("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n", 400),
    R("Transfer-Encoding:\r\n", "0\r\n\r\n", 400),
    R("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n", 400),
    R("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", 400),
    L("chunked in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
/* chunks */
#define C(chunks, status) R("Transfer-Encoding: chunked\r\n", chunks, status)
    C("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", 0),
    C("00000000000003\r\nabc\r\n0\r\n\r\n", 0),
    C("000000000000003\r\nabc\r\n000\r\n\r\n", 0),
    C("0000000000000003\r\nabc\r\n0\r\n\r\n", 400), /* 16 digits */
    C("fffffffffffffff\r\n", 413),
    C("7fffffffffffffff\r\n", 400),
    C("3;name=value\r\nabc\r\n0;x\r\n\r\n", 0),
    C("3;\r\nabc\r\n0\r\n\r\n", 0),
    C("3 \r\nabc\r\n0\r\n\r\n", 400),
    C(" 3\r\nabc\r\n0\r\n\r\n", 400),
    C("0x3\r\nabc\r\n0\r\n\r\n", 400),
    C("+3\r\nabc\r\n0\r\n\r\n", 400),
    C("-3\r\nabc\r\n0\r\n\r\n", 400),
    C("g\r\nabc\r\n0\r\n\r\n", 400),
    C("\r\nabc\r\n0\r\n\r\n", 400),
    C(";x\r\nabc\r\n0\r\n\r\n", 400),
    C("3\nabc\r\n0\r\n\r\n", 400),
    C("3\rabc\r\n0\r\n\r\n", 400),
    C("3\r\nabcd\r\n0\r\n\r\n", 400),
    C("3\r\nabc\n0\r\n\r\n", 400),
    C("3\r\nabc0\r\n\r\n", 400),
    C("3\r\nabc\rx0\r\n\r\n", 400),
    C("3;a\nb\r\nabc\r\n0\r\n\r\n", 400),
    C("3;a\0b\r\nabc\r\n0\r\n\r\n", 400),
    C("0\r\nA: b\r\nC: d\r\n\r\n", 0),
    C("0\r\nA: b\n\r\n", 400),
    C("0\r\nA : b\r\n\r\n", 400),
    C("0\r\n A: b\r\n\r\n", 400),
    C("0\r\nA: \x01\r\n\r\n", 400),
    C("0\r\nA\r\n\r\n", 400),
    C("0\n\n", 400),
};

TEST(what_two_parsers_could_read_differently_is_refused)
{
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        const line *l = &lines[i];
        outcome o = parse(l->bytes, l->size, 0);
        if ((o.event == MF_HTTP1_DONE) != (l->status == 0) ||
            (l->status && (o.event != MF_HTTP1_FAILED || o.status != l->status))) {
            fail_msg("%s: event %d status %d after %zu of %zu bytes; expected status %d", l->what, o.event, o.status,
                     o.used, l->size, l->status);
        }
    }
}

TEST(cuts_change_nothing)
{
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        outcome whole = parse(lines[i].bytes, lines[i].size, 0);
        for (size_t step = 1; step < 8; step++) {
            outcome cut = parse(lines[i].bytes, lines[i].size, step);
            if (memcmp(&whole, &cut, sizeof cut) != 0) {
                fail_msg("%s: cut every %zu bytes it reads differently", lines[i].what, step);
            }
        }
    }
}

TEST(no_proper_beginning_of_a_request_is_an_answer)
{
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        outcome whole = parse(lines[i].bytes, lines[i].size, 0);
        for (size_t n = 0; n < whole.used; n++) {
            CHECK_EQ(parse(lines[i].bytes, n, 0).event, MF_HTTP1_MORE);
        }
    }
}

static void check_body(const char *fields, const char *rest, const char *body, size_t left)
{
    char text[1024];
    snprintf(text, sizeof text, "POST / HTTP/1.1\r\nHost: h\r\n%s\r\n%s", fields, rest);
    outcome o = parse(text, strlen(text), 0);
    CHECK_EQ(o.event, MF_HTTP1_DONE);
    CHECK_EQ(o.body_size, strlen(body));
    CHECK_MEM(o.body, body, o.body_size);
    CHECK_EQ(strlen(text) - o.used, left);
}

TEST(bodies_end_where_their_framing_says)
{
    check_body("Content-Length: 3\r\n", "abcGET", "abc", 3);
    check_body("Content-Length: 0\r\n", "GET", "", 3);
    check_body("", "GET", "", 3);
    check_body("Transfer-Encoding: chunked\r\n", "2\r\nab\r\nA;x=y\r\n0123456789\r\n0\r\nT: v\r\n\r\nGET",
               "ab0123456789", 3);
}

TEST(paths_are_decoded_once_and_queries_on_demand)
{
    static const char text[] = "GET /a%20b%2525/c?layer=3&window=a%26b+c&&empty=&flag HTTP/1.1\r\nHost: h\r\n\r\n";
    char value[16];
    outcome o = parse(text, sizeof text - 1, 0);
    CHECK_STR(o.path, "/a b%25/c");
    CHECK(mf_http1_query_value(o.query, "layer", value, sizeof value));
    CHECK_STR(value, "3");
    CHECK(mf_http1_query_value(o.query, "window", value, sizeof value));
    CHECK_STR(value, "a&b c");
    CHECK(mf_http1_query_value(o.query, "empty", value, sizeof value));
    CHECK_STR(value, "");
    CHECK(mf_http1_query_value(o.query, "flag", value, sizeof value));
    CHECK(!mf_http1_query_value(o.query, "lay", value, sizeof value));
    CHECK(mf_http1_query_value(o.query, "window", value, 6));
    CHECK(!mf_http1_query_value(o.query, "window", value, 5));
}

TEST(keep_alive_follows_version_and_connection)
{
    static const struct {
        const char *text;
        bool keep_alive;
    } cases[] = {
        { "GET / HTTP/1.1\r\nHost: h\r\n\r\n", true },
        { "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false },
        { "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade , CLOSE\r\n\r\n", false },
        { "GET / HTTP/1.1\r\nHost: h\r\nConnection: closed\r\n\r\n", true },
        { "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false },
        { "GET / HTTP/1.0\r\n\r\n", false },
        { "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_EQ(parse(cases[i].text, strlen(cases[i].text), 0).keep_alive, cases[i].keep_alive);
    }
}

/* "GET /aaa HTTP/1.1", Host, and one field that makes the head `head` bytes long. */
static size_t make_head(char *text, size_t url, size_t head)
{
    size_t n = (size_t)sprintf(text, "GET /");
    memset(text + n, 'a', url - 1);
    n += url - 1;
    n += (size_t)sprintf(text + n, " HTTP/1.1\r\nHost: h\r\n");
    if (head) {
        n += (size_t)sprintf(text + n, "A: ");
        size_t pad = head - n - 4;
        memset(text + n, 'b', pad);
        n += pad;
        n += (size_t)sprintf(text + n, "\r\n");
    }
    n += (size_t)sprintf(text + n, "\r\n");
    return n;
}

TEST(the_heads_limits_hold_to_the_byte)
{
    char *text = malloc(70000);
    for (int over = -1; over <= 1; over++) {
        size_t n = make_head(text, 1, (size_t)(32768 + over));
        CHECK_EQ(n, 32768 + over);
        outcome o = parse(text, n, 0);
        CHECK_EQ(o.status, over > 0 ? 431 : 0);
        n = make_head(text, (size_t)(8192 + over), 0);
        CHECK_EQ(parse(text, n, 0).status, over > 0 ? 414 : 0);
        n = make_head(text, (size_t)(8192 + over), 0);
        CHECK_EQ(parse(text, n, 1).status, over > 0 ? 414 : 0);
        n = (size_t)sprintf(text, "GET / HTTP/1.1\r\nHost: h\r\n");
        for (int i = 0; i < 99 + over; i++) {
            n += (size_t)sprintf(text + n, "A%d: b\r\n", i);
        }
        n += (size_t)sprintf(text + n, "\r\n");
        CHECK_EQ(parse(text, n, 0).status, over > 0 ? 431 : 0);
    }
    /* a target without an end is its own fault, not the head's */
    memset(text, 'a', 70000);
    memcpy(text, "GET /", 5);
    CHECK_EQ(parse(text, 70000, 0).status, 414);
    free(text);
}

TEST(a_chunked_bodys_limits_hold_to_the_byte)
{
    mf_http1_limits small = { .head_bytes = 256, .url_bytes = 100, .body_bytes = 10, .num_fields = 4 };
    static const char head[] = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    char text[2048];
    for (int over = -1; over <= 1; over++) {
        int n = sprintf(text, "%s4\r\naaaa\r\n%d\r\n%.*s\r\n0\r\n\r\n", head, 6 + over, 6 + over, "bbbbbbbbbb");
        CHECK_EQ(parse_with(&small, text, (size_t)n, 0).status, over > 0 ? 413 : 0);
        /* extensions of all chunks together */
        n = sprintf(text, "%s1;%0100d\r\na\r\n0;%0*d\r\n\r\n", head, 0, 156 + over, 0);
        CHECK_EQ(parse_with(&small, text, (size_t)n, 0).status, over > 0 ? 431 : 0);
        /* trailers: their lines count with their ends */
        n = sprintf(text, "%s0\r\nA:%0*d\r\n\r\n", head, 252 + over, 0);
        CHECK_EQ(parse_with(&small, text, (size_t)n, 0).status, over > 0 ? 431 : 0);
    }
    int n = sprintf(text, "%s0\r\na:\r\na:\r\na:\r\na:\r\n\r\n", head);
    CHECK_EQ(parse_with(&small, text, (size_t)n, 0).status, 0);
    n = sprintf(text, "%s0\r\na:\r\na:\r\na:\r\na:\r\na:\r\n\r\n", head);
    CHECK_EQ(parse_with(&small, text, (size_t)n, 0).status, 431);
}

TEST(lengths_too_large_for_an_integer_stay_large)
{
    mf_http1 parser;
    mf_http1_init(&parser, &limits);
    static const char text[] = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999999\r\n\r\n";
    const void *body;
    size_t used, body_size;
    CHECK_EQ(mf_http1_feed(&parser, text, sizeof text - 1, &used, &body, &body_size), MF_HTTP1_HEAD);
    CHECK(parser.content_length == INT64_MAX);
    mf_http1_close(&parser);
}
