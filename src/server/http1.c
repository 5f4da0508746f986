/* http1.c - the request parser: see http1.h.  One state per place in the grammar and one byte at a time, so that no cut
 * of the input can change the result; a body's bytes are handed out in place and not copied. */
#include "server/http1.h"

#include <string.h>
#include <strings.h>

#include "base/hex.h"
#include "base/sys.h"

enum state {
    AT_START = 0, /* before the request line; one empty line is let pass */
    START_LF,
    METHOD,
    TARGET,
    VERSION,
    LINE_LF,
    FIELD_START,
    NAME,
    VALUE_START, /* blanks after the colon */
    VALUE,
    FIELD_LF,
    END_LF,
    BODY_FIXED,
    CHUNK_SIZE,
    CHUNK_EXTENSION,
    CHUNK_LF,
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    TRAILER_START,
    TRAILER_NAME,
    TRAILER_VALUE,
    TRAILER_LF,
    TRAILER_END_LF,
    FINISHED,
    BROKEN
};

enum { MAX_METHOD = 32, MAX_SIZE_DIGITS = 15 };

/* Fields that mean nothing certain when they stand twice. */
enum {
    SEEN_LENGTH = 1,
    SEEN_CODING = 2,
    SEEN_HOST = 4,
    SEEN_EXPECT = 8,
    SEEN_AUTHORIZATION = 16,
    SEEN_ORIGIN = 32,
    SEEN_TYPE = 64
};

void mf_http1_init(mf_http1 *parser, const mf_http1_limits *limits)
{
    *parser = (mf_http1){ .limits = *limits };
    mf_http1_reset(parser);
}

void mf_http1_reset(mf_http1 *parser)
{
    mf_http1 clean = { .limits = parser->limits,
                       .head = parser->head,
                       .fields = parser->fields,
                       .fields_capacity = parser->fields_capacity,
                       .content_length = -1,
                       .minor = 1,
                       .problem = "" };
    *parser = clean;
    mf_buffer_clear(&parser->head);
}

void mf_http1_close(mf_http1 *parser)
{
    mf_buffer_close(&parser->head);
    mf_free(parser->fields);
    parser->fields = NULL;
    parser->fields_capacity = parser->num_fields = 0;
}

const char *mf_http1_text(const mf_http1 *parser, uint32_t offset)
{
    return offset < parser->head.size ? parser->head.data + offset : "";
}

const char *mf_http1_find(const mf_http1 *parser, const char *name)
{
    for (int32_t i = 0; i < parser->num_fields; i++) {
        if (strcasecmp(parser->head.data + parser->fields[i].name, name) == 0) {
            return parser->head.data + parser->fields[i].value;
        }
    }
    return NULL;
}

const char *mf_http1_host(const mf_http1 *parser)
{
    return parser->host ? mf_http1_text(parser, parser->host) : "";
}

/* ---- failing ---- */

static bool fail(mf_http1 *parser, int status, const char *problem)
{
    parser->status = status;
    parser->problem = problem;
    parser->state = BROKEN;
    return false;
}

static bool bad(mf_http1 *parser, const char *problem)
{
    return fail(parser, 400, problem);
}

/* ---- texts of the head ---- */

static bool put(mf_http1 *parser, char c)
{
    /* Room was reserved for the piece that is being read; a text's NULs take the places of ':' and CR. */
    return mf_buffer_append(&parser->head, &c, 1) == MF_OK || fail(parser, 503, "no memory for the request's head");
}

/* Ends the text that began at `mark`; the next one begins behind it. */
static bool end_text(mf_http1 *parser, uint32_t *offset)
{
    *offset = (uint32_t)parser->mark;
    if (!put(parser, '\0')) {
        return false;
    }
    parser->mark = parser->head.size;
    return true;
}

static bool is_token_byte(unsigned char c)
{
    static const char specials[] = "!#$%&'*+-.^_`|~";
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr(specials, c));
}

static bool is_value_byte(unsigned char c)
{
    return c == '\t' || (c >= 0x20 && c != 0x7f);
}

/* ---- the request line ---- */

static bool take_target(mf_http1 *parser)
{
    const char *method = mf_http1_text(parser, parser->method);
    uint32_t start;
    if (!end_text(parser, &start)) {
        return false;
    }
    char *target = parser->head.data + start;
    if (strcmp(target, "*") == 0) {
        if (strcmp(method, "OPTIONS") != 0) {
            return bad(parser, "the target * goes with OPTIONS only");
        }
        parser->is_asterisk = true;
        parser->path = start;
        parser->query = start + 1; /* its NUL */
        return true;
    }
    if (strncasecmp(target, "http://", 7) == 0 || strncasecmp(target, "https://", 8) == 0) {
        char *authority = strchr(target, ':') + 3;
        char *path = authority + strcspn(authority, "/?");
        if (*path != '/') {
            return bad(parser, "an absolute request target needs a path");
        }
        /* One byte to the left makes room for the authority's NUL; the scheme is of no more use. */
        memmove(authority - 1, authority, (size_t)(path - authority));
        path[-1] = '\0';
        if (!mf_http1_is_authority(authority - 1)) {
            return bad(parser, "the request target's host is malformed");
        }
        parser->authority = (uint32_t)(authority - 1 - parser->head.data);
        target = path;
    }
    if (*target != '/') {
        return bad(parser, "the request target must begin with /");
    }
    if (strchr(target, '#')) {
        return bad(parser, "the request target holds a fragment");
    }
    char *query = strchr(target, '?');
    parser->path = (uint32_t)(target - parser->head.data);
    parser->query = (uint32_t)(target - parser->head.data + (ptrdiff_t)strlen(target));
    if (query) {
        *query++ = '\0';
        parser->query = (uint32_t)(query - parser->head.data);
        if (!mf_http1_query_is_clean(query)) {
            return bad(parser, "the query holds a broken escape, a control byte or a byte beyond ASCII");
        }
    }
    if (!mf_http1_decode_path(target)) {
        return bad(parser, "the path holds a broken escape, %2f, %00, a dot segment or a byte beyond ASCII");
    }
    return true;
}

static bool take_version(mf_http1 *parser)
{
    uint32_t start;
    if (!end_text(parser, &start)) {
        return false;
    }
    const char *version = mf_http1_text(parser, start);
    if (strncmp(version, "HTTP/1.", 7) != 0 || version[7] < '0' || version[7] > '9' || version[8]) {
        return bad(parser, "the request line must end in HTTP/1.1 or HTTP/1.0");
    }
    parser->minor = version[7] == '0' ? 0 : 1; /* a later 1.x is read as 1.1 */
    return true;
}

static bool request_line_byte(mf_http1 *parser, unsigned char c)
{
    switch (parser->state) {
    case AT_START:
        if (c == '\r' && !parser->empty_line) {
            parser->empty_line = true;
            parser->state = START_LF;
            return true;
        }
        parser->started = true;
        parser->state = METHOD;
        /* fall through */
    case METHOD:
        if (c == ' ') {
            if (parser->head.size == parser->mark) {
                return bad(parser, "the request line begins with a blank");
            }
            parser->state = TARGET;
            return end_text(parser, &parser->method);
        }
        if (!is_token_byte(c) || parser->head.size - parser->mark >= MAX_METHOD) {
            return bad(parser, "the request line must begin with a method");
        }
        return put(parser, (char)c);
    case TARGET:
        if (c == ' ') {
            if (parser->head.size == parser->mark) {
                return bad(parser, "two blanks in the request line");
            }
            parser->state = VERSION;
            return take_target(parser);
        }
        if (c <= 0x20 || c >= 0x7f) {
            return bad(parser,
                       "the request target holds a control byte or a byte beyond ASCII, or no version follows it");
        }
        if (parser->head.size - parser->mark >= parser->limits.url_bytes) {
            return fail(parser, 414, "the request target is too long");
        }
        return put(parser, (char)c);
    case VERSION:
        if (c == '\r') {
            parser->state = LINE_LF;
            return take_version(parser);
        }
        if (c <= 0x20 || c >= 0x7f || parser->head.size - parser->mark >= 8) {
            return bad(parser, "the request line must end in HTTP/1.1 or HTTP/1.0 and CRLF");
        }
        return put(parser, (char)c);
    default: /* START_LF, LINE_LF */
        if (c != '\n') {
            return bad(parser, "a CR without its LF");
        }
        parser->state = parser->state == START_LF ? AT_START : FIELD_START;
        return true;
    }
}

/* ---- fields ---- */

static bool once(mf_http1 *parser, uint32_t bit, const char *problem)
{
    if (parser->seen & bit) {
        return bad(parser, problem);
    }
    parser->seen |= bit;
    return true;
}

static bool take_length(mf_http1 *parser, const char *value)
{
    if (!once(parser, SEEN_LENGTH, "more than one Content-Length")) {
        return false;
    }
    int64_t length = 0;
    size_t n = 0;
    for (; value[n] >= '0' && value[n] <= '9'; n++) {
        length = length > (INT64_MAX - 9) / 10 ? INT64_MAX : length * 10 + (value[n] - '0');
    }
    if (n == 0 || value[n]) {
        return bad(parser, "Content-Length is not a number of digits alone");
    }
    parser->content_length = length;
    return true;
}

/* "close, Upgrade": a list of tokens. */
static void take_connection(mf_http1 *parser, const char *value)
{
    while (*value) {
        value += strspn(value, ", \t");
        size_t n = strcspn(value, ", \t");
        parser->asks_close |= n == 5 && strncasecmp(value, "close", 5) == 0;
        parser->asks_keep_alive |= n == 10 && strncasecmp(value, "keep-alive", 10) == 0;
        value += n;
    }
}

static bool take_field(mf_http1 *parser)
{
    /* Blanks behind a value are none of it; the state VALUE_START skipped those before. */
    while (parser->head.size > parser->mark &&
           (parser->head.data[parser->head.size - 1] == ' ' || parser->head.data[parser->head.size - 1] == '\t')) {
        parser->head.size--;
    }
    mf_http1_field *field = &parser->fields[parser->num_fields];
    if (!end_text(parser, &field->value)) {
        return false;
    }
    parser->num_fields++;
    const char *name = parser->head.data + field->name, *value = parser->head.data + field->value;
    switch (name[0]) {
    case 'a':
        return strcmp(name, "authorization") != 0 || once(parser, SEEN_AUTHORIZATION, "more than one Authorization");
    case 'c':
        if (strcmp(name, "connection") == 0) {
            take_connection(parser, value);
            return true;
        }
        if (strcmp(name, "content-type") == 0) {
            return once(parser, SEEN_TYPE, "more than one Content-Type");
        }
        return strcmp(name, "content-length") != 0 || take_length(parser, value);
    case 'e':
        if (strcmp(name, "expect") != 0 || parser->minor == 0) {
            return true;
        }
        if (!once(parser, SEEN_EXPECT, "more than one Expect")) {
            return false;
        }
        parser->expects_continue = true;
        return strcasecmp(value, "100-continue") == 0 ||
               fail(parser, 417, "Expect holds something other than 100-continue");
    case 'h':
        if (strcmp(name, "host") != 0) {
            return true;
        }
        parser->host = field->value;
        if (!once(parser, SEEN_HOST, "more than one Host")) {
            return false;
        }
        return mf_http1_is_authority(value) || bad(parser, "Host is malformed");
    case 'o':
        return strcmp(name, "origin") != 0 || once(parser, SEEN_ORIGIN, "more than one Origin");
    case 't':
        if (strcmp(name, "transfer-encoding") != 0) {
            return true;
        }
        if (!once(parser, SEEN_CODING, "more than one Transfer-Encoding")) {
            return false;
        }
        parser->chunked = true;
        return strcasecmp(value, "chunked") == 0 || bad(parser, "Transfer-Encoding is something other than chunked");
    default:
        return true;
    }
}

static bool begin_field(mf_http1 *parser)
{
    if (parser->num_fields >= parser->limits.num_fields) {
        return fail(parser, 431, "the request has too many header fields");
    }
    if (parser->num_fields == parser->fields_capacity) {
        int32_t capacity = parser->fields_capacity ? parser->fields_capacity * 2 : 16;
        mf_http1_field *fields = mf_resize_array(parser->fields, (size_t)capacity, sizeof *fields);
        if (!fields) {
            return fail(parser, 503, "no memory for the request's head");
        }
        parser->fields = fields;
        parser->fields_capacity = capacity;
    }
    return true;
}

/* What single fields cannot tell. */
static bool take_head(mf_http1 *parser)
{
    if (parser->minor >= 1 && !(parser->seen & SEEN_HOST)) {
        return bad(parser, "an HTTP/1.1 request needs a Host");
    }
    if (parser->authority && (parser->seen & SEEN_HOST) &&
        strcasecmp(mf_http1_text(parser, parser->authority), mf_http1_text(parser, parser->host)) != 0) {
        return bad(parser, "Host differs from the request target's host");
    }
    if (parser->chunked && (parser->seen & SEEN_LENGTH)) {
        return bad(parser, "both Content-Length and Transfer-Encoding");
    }
    if (parser->chunked && parser->minor == 0) {
        return bad(parser, "Transfer-Encoding in an HTTP/1.0 request");
    }
    parser->keep_alive = !parser->asks_close && (parser->minor >= 1 || parser->asks_keep_alive);
    parser->state = parser->chunked ? CHUNK_SIZE : BODY_FIXED;
    parser->remaining = parser->content_length > 0 ? (uint64_t)parser->content_length : 0;
    parser->expects_continue &= parser->chunked || parser->remaining > 0;
    return true;
}

static bool field_byte(mf_http1 *parser, unsigned char c)
{
    switch (parser->state) {
    case FIELD_START:
        if (c == '\r') {
            parser->state = END_LF;
            return true;
        }
        if (c == ' ' || c == '\t') {
            return bad(parser, "a folded header line");
        }
        if (c == ':') {
            return bad(parser, "a header field without a name");
        }
        if (!begin_field(parser)) {
            return false;
        }
        parser->state = NAME;
        /* fall through */
    case NAME:
        if (c == ':') {
            parser->state = VALUE_START;
            return end_text(parser, &parser->fields[parser->num_fields].name);
        }
        if (!is_token_byte(c)) {
            return bad(parser, c == ' ' || c == '\t' ? "a blank in a header field's name or before its colon"
                               : c == '\n'           ? "a bare LF"
                                                     : "a header field's name holds a byte that is not allowed");
        }
        return put(parser, (char)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c));
    case VALUE_START:
        if (c == ' ' || c == '\t') {
            return true;
        }
        parser->state = VALUE;
        /* fall through */
    case VALUE:
        if (c == '\r') {
            parser->state = FIELD_LF;
            return take_field(parser);
        }
        if (!is_value_byte(c)) {
            return bad(parser, c == '\n' ? "a bare LF" : "a header field's value holds a control byte");
        }
        return put(parser, (char)c);
    default: /* FIELD_LF, END_LF */
        if (c != '\n') {
            return bad(parser, "a CR without its LF");
        }
        if (parser->state == END_LF) {
            return take_head(parser);
        }
        parser->state = FIELD_START;
        return true;
    }
}

static bool head_byte(mf_http1 *parser, unsigned char c)
{
    /* A target beyond its own limit is 414 even where it would break the head's. */
    if (parser->head_size >= parser->limits.head_bytes && parser->state != TARGET) {
        return fail(parser, 431, "the request's head is too long");
    }
    parser->head_size++;
    return parser->state <= LINE_LF ? request_line_byte(parser, c) : field_byte(parser, c);
}

/* ---- chunked bodies ---- */

static bool count_overhead(mf_http1 *parser)
{
    return ++parser->overhead <= parser->limits.head_bytes ||
           fail(parser, 431, "chunk extensions or trailers are too long");
}

static bool take_chunk_size(mf_http1 *parser)
{
    if (parser->remaining > parser->limits.body_bytes - parser->body_size) {
        return fail(parser, 413, "the request's body is too large");
    }
    parser->num_digits = 0;
    parser->state = parser->remaining ? CHUNK_DATA : TRAILER_START;
    return true;
}

static bool chunk_byte(mf_http1 *parser, unsigned char c)
{
    switch (parser->state) {
    case CHUNK_SIZE: {
        int digit = mf_hex_digit((char)c);
        if (digit >= 0) {
            if (++parser->num_digits > MAX_SIZE_DIGITS) {
                return bad(parser, "a chunk size of more than 15 digits");
            }
            parser->remaining = parser->remaining * 16 + (uint64_t)digit;
            return true;
        }
        if (!parser->num_digits || (c != ';' && c != '\r')) {
            return bad(parser, "a chunk size is not hexadecimal");
        }
        parser->state = c == ';' ? CHUNK_EXTENSION : CHUNK_LF;
        return true;
    }
    case CHUNK_EXTENSION:
        if (c == '\r') {
            parser->state = CHUNK_LF;
            return true;
        }
        return is_value_byte(c) ? count_overhead(parser) : bad(parser, "a chunk extension holds a control byte");
    case CHUNK_LF:
        return c == '\n' ? take_chunk_size(parser) : bad(parser, "a CR without its LF");
    case CHUNK_DATA_CR:
        parser->state = CHUNK_DATA_LF;
        return c == '\r' || bad(parser, "a chunk is longer than its size");
    default: /* CHUNK_DATA_LF */
        parser->state = CHUNK_SIZE;
        return c == '\n' || bad(parser, "a CR without its LF");
    }
}

/* Trailers obey the rules of fields and are dropped: nobody may rely on what comes after the body was judged. */
static bool trailer_byte(mf_http1 *parser, unsigned char c)
{
    if (parser->state != TRAILER_END_LF && !(parser->state == TRAILER_START && c == '\r') && !count_overhead(parser)) {
        return false;
    }
    switch (parser->state) {
    case TRAILER_START:
        if (c == '\r') {
            parser->state = TRAILER_END_LF;
            return true;
        }
        if (++parser->num_trailers > parser->limits.num_fields) {
            return fail(parser, 431, "the request has too many trailers");
        }
        parser->state = TRAILER_NAME;
        return is_token_byte(c) || bad(parser, "a trailer's name holds a byte that is not allowed");
    case TRAILER_NAME:
        if (c == ':') {
            parser->state = TRAILER_VALUE;
            return true;
        }
        return is_token_byte(c) || bad(parser, "a trailer's name holds a byte that is not allowed");
    case TRAILER_VALUE:
        if (c == '\r') {
            parser->state = TRAILER_LF;
            return true;
        }
        return is_value_byte(c) || bad(parser, "a trailer's value holds a control byte");
    default: /* TRAILER_LF, TRAILER_END_LF */
        if (c != '\n') {
            return bad(parser, "a CR without its LF");
        }
        parser->state = parser->state == TRAILER_LF ? TRAILER_START : FINISHED;
        return true;
    }
}

/* ---- feeding ---- */

/* Body bytes from data: all that belong to the present piece. */
static size_t take_body(mf_http1 *parser, size_t size)
{
    size_t n = parser->remaining < size ? (size_t)parser->remaining : size;
    parser->remaining -= n;
    if (parser->state == CHUNK_DATA) {
        parser->body_size += n;
        if (!parser->remaining) {
            parser->state = CHUNK_DATA_CR;
        }
    }
    return n;
}

mf_http1_event mf_http1_feed(mf_http1 *parser, const void *data, size_t size, size_t *used, const void **body,
                             size_t *body_size)
{
    const unsigned char *bytes = data;
    size_t i = 0;
    *used = 0;
    *body = NULL;
    *body_size = 0;
    while (parser->state != FINISHED && parser->state != BROKEN) {
        if (parser->state == BODY_FIXED && !parser->remaining) {
            parser->state = FINISHED;
            break;
        }
        if (i == size) {
            *used = i;
            return MF_HTTP1_MORE;
        }
        if (parser->state == BODY_FIXED || parser->state == CHUNK_DATA) {
            *body = bytes + i;
            *body_size = take_body(parser, size - i);
            *used = i + *body_size;
            return MF_HTTP1_BODY;
        }
        unsigned char c = bytes[i++];
        if (parser->state < BODY_FIXED) {
            if (head_byte(parser, c) && parser->state >= BODY_FIXED) {
                *used = i;
                return MF_HTTP1_HEAD;
            }
        } else if (parser->state < TRAILER_START) {
            chunk_byte(parser, c);
        } else {
            trailer_byte(parser, c);
        }
    }
    *used = i;
    return parser->state == FINISHED ? MF_HTTP1_DONE : MF_HTTP1_FAILED;
}
