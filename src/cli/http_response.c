/* http_response.c - see http_response.h. */
#include "cli/http_response.h"

#include <string.h>
#include <strings.h>

#include "base/hex.h"

static bool parse_decimal(const char *text, size_t n, uint64_t *out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9' || value > (UINT64_MAX - 9) / 10) {
            return false;
        }
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    *out = value;
    return n > 0;
}

static mf_status read_status_line(mf_http_response *r, const char *line, size_t n, mf_error *err)
{
    uint64_t status = 0;
    if (n < 12 || memcmp(line, "HTTP/1.", 7) != 0 || (line[7] != '0' && line[7] != '1') || line[8] != ' ' ||
        !parse_decimal(line + 9, 3, &status) || (n > 12 && line[12] != ' ') || status < 100) {
        return mf_fail(err, MF_ERR_FORMAT, "answer: expected an HTTP/1.x status line; got \"%.*s\"",
                       (int)(n < 64 ? n : 64), line);
    }
    r->status = (int)status;
    r->keep_alive = line[7] == '1';
    r->part = MF_HTTP_HEADERS;
    return MF_OK;
}

static bool holds_word(const char *text, size_t n, const char *word)
{
    size_t len = strlen(word);
    for (size_t i = 0; i + len <= n; i++) {
        if (strncasecmp(text + i, word, len) == 0) {
            return true;
        }
    }
    return false;
}

static mf_status read_header(mf_http_response *r, const char *line, size_t n, mf_error *err)
{
    const char *colon = memchr(line, ':', n);
    if (!colon) {
        return mf_fail(err, MF_ERR_FORMAT, "answer: a header line without a colon: \"%.*s\"", (int)(n < 64 ? n : 64),
                       line);
    }
    size_t name = (size_t)(colon - line);
    const char *value = colon + 1, *end = line + n;
    while (value < end && (*value == ' ' || *value == '\t')) {
        value++;
    }
    while (end > value && (end[-1] == ' ' || end[-1] == '\t')) {
        end--;
    }
    size_t size = (size_t)(end - value);
#define NAMED(text) (name == sizeof(text) - 1 && strncasecmp(line, text, name) == 0)
    uint64_t number = 0;
    if (NAMED("Content-Length")) {
        if (!parse_decimal(value, size, &number) || (r->has_length && number != r->left)) {
            return mf_fail(err, MF_ERR_FORMAT, "answer: Content-Length: expected one number; got \"%.*s\"",
                           (int)(size < 32 ? size : 32), value);
        }
        r->has_length = true;
        r->left = number;
    } else if (NAMED("Transfer-Encoding")) {
        if (size != 7 || strncasecmp(value, "chunked", 7) != 0) {
            return mf_fail(err, MF_ERR_UNSUPPORTED, "answer: Transfer-Encoding: expected chunked; got \"%.*s\"",
                           (int)(size < 32 ? size : 32), value);
        }
        r->chunked = true;
    } else if (NAMED("Connection")) {
        r->keep_alive = holds_word(value, size, "close")        ? false
                        : holds_word(value, size, "keep-alive") ? true
                                                                : r->keep_alive;
    } else if (NAMED("Content-Type")) {
        r->is_event_stream = size >= 17 && strncasecmp(value, "text/event-stream", 17) == 0;
    } else if (NAMED("Retry-After") &&
               parse_decimal(value, size, &number)) { /* the other form, a date, is not waited for */
        r->retry_after_s = number < 86400 ? (int)number : 86400;
    }
#undef NAMED
    return MF_OK;
}

static void end_head(mf_http_response *r)
{
    if (r->status < 200) { /* 100 Continue: the real answer follows */
        *r = (mf_http_response){ .line = r->line, .head_bytes = r->head_bytes, .retry_after_s = -1 };
    } else if (r->status == 204 || r->status == 304) {
        r->part = MF_HTTP_DONE;
    } else if (r->chunked) {
        r->part = MF_HTTP_CHUNK_SIZE;
    } else if (r->has_length) {
        r->part = r->left ? MF_HTTP_BODY_LENGTH : MF_HTTP_DONE;
    } else {
        r->part = MF_HTTP_BODY_UNTIL_CLOSE;
        r->keep_alive = false;
    }
}

static mf_status read_chunk_size(mf_http_response *r, const char *line, size_t n, mf_error *err)
{
    uint64_t size = 0;
    size_t digits = 0;
    for (; digits < n && digits < 16; digits++) {
        int value = mf_hex_digit(line[digits]);
        if (value < 0) {
            break;
        }
        size = size * 16 + (uint64_t)value;
    }
    if (digits == 0 || digits > 15 || (digits < n && line[digits] != ';' && line[digits] != ' ')) {
        return mf_fail(err, MF_ERR_FORMAT, "answer: expected a chunk size; got \"%.*s\"", (int)(n < 32 ? n : 32), line);
    }
    r->left = size;
    r->part = size ? MF_HTTP_CHUNK_DATA : MF_HTTP_TRAILERS;
    return MF_OK;
}

static mf_status read_line(mf_http_response *r, mf_error *err)
{
    const char *line = mf_buffer_text(&r->line);
    size_t n = r->line.size;
    n -= n > 0 && line[n - 1] == '\r';
    switch (r->part) {
    case MF_HTTP_STATUS_LINE:
        return read_status_line(r, line, n, err);
    case MF_HTTP_HEADERS:
        if (n == 0) {
            end_head(r);
            return MF_OK;
        }
        return read_header(r, line, n, err);
    case MF_HTTP_CHUNK_SIZE:
        return read_chunk_size(r, line, n, err);
    case MF_HTTP_CHUNK_END:
        if (n != 0) {
            return mf_fail(err, MF_ERR_FORMAT, "answer: a chunk is longer than its size says");
        }
        r->part = MF_HTTP_CHUNK_SIZE;
        return MF_OK;
    default:
        r->part = n == 0 ? MF_HTTP_DONE : MF_HTTP_TRAILERS;
        return MF_OK;
    }
}

static bool in_lines(const mf_http_response *r)
{
    return r->part == MF_HTTP_STATUS_LINE || r->part == MF_HTTP_HEADERS || r->part == MF_HTTP_CHUNK_SIZE ||
           r->part == MF_HTTP_CHUNK_END || r->part == MF_HTTP_TRAILERS;
}

static mf_status feed_line(mf_http_response *r, const char *bytes, size_t size, size_t *used, mf_error *err)
{
    const char *end = memchr(bytes, '\n', size);
    size_t n = end ? (size_t)(end - bytes) : size;
    r->head_bytes += n + 1;
    /* Chunk heads come without end in a long stream: only one head at a time is bounded. */
    r->line.limit = MF_HTTP_MAX_HEAD_BYTES;
    mf_status status =
        (r->part == MF_HTTP_HEADERS || r->part == MF_HTTP_TRAILERS) && r->head_bytes > MF_HTTP_MAX_HEAD_BYTES
            ? MF_ERR_LIMIT
            : mf_buffer_append(&r->line, bytes, n);
    if (status != MF_OK) {
        return mf_fail(err, status, "answer: a head of more than %d bytes", MF_HTTP_MAX_HEAD_BYTES);
    }
    *used = n;
    if (end) {
        *used = n + 1;
        mf_http_part before = r->part;
        MF_TRY(read_line(r, err));
        mf_buffer_clear(&r->line);
        if (before == MF_HTTP_CHUNK_SIZE || before == MF_HTTP_CHUNK_END) {
            r->head_bytes = 0;
        }
    }
    return MF_OK;
}

mf_status mf_http_response_feed(mf_http_response *r, const char *bytes, size_t size, size_t *used, mf_http_body_fn fn,
                                void *context, mf_error *err)
{
    size_t at = 0;
    if (r->part == MF_HTTP_STATUS_LINE && r->line.size == 0 && r->head_bytes == 0) {
        r->retry_after_s = -1;
    }
    while (at < size && r->part != MF_HTTP_DONE) {
        size_t n = 0;
        if (in_lines(r)) {
            MF_TRY(feed_line(r, bytes + at, size - at, &n, err));
        } else {
            n = size - at;
            n = r->part != MF_HTTP_BODY_UNTIL_CLOSE && n > r->left ? (size_t)r->left : n;
            MF_TRY(fn(context, bytes + at, n, err));
            if (r->part != MF_HTTP_BODY_UNTIL_CLOSE) {
                r->left -= n;
                r->part = r->left ? r->part : r->part == MF_HTTP_CHUNK_DATA ? MF_HTTP_CHUNK_END : MF_HTTP_DONE;
            }
        }
        at += n;
    }
    *used = at;
    return MF_OK;
}

mf_status mf_http_response_end(mf_http_response *r, mf_error *err)
{
    if (r->part == MF_HTTP_BODY_UNTIL_CLOSE) {
        r->part = MF_HTTP_DONE;
    }
    if (r->part == MF_HTTP_DONE) {
        return MF_OK;
    }
    return mf_fail(err, MF_ERR_IO,
                   r->status ? "the connection closed in the middle of an answer"
                             : "the connection closed without an answer");
}

void mf_http_response_reset(mf_http_response *r)
{
    mf_buffer_clear(&r->line);
    *r = (mf_http_response){ .line = r->line, .retry_after_s = -1 };
}

void mf_http_response_close(mf_http_response *r)
{
    mf_buffer_close(&r->line);
    *r = (mf_http_response){ 0 };
}
