/* http1.h - a strict, incremental parser of HTTP/1.1 and HTTP/1.0 requests.  Pure: no socket, no clock, no policy.
 *
 * Bytes go in as they come, in pieces of any size; what comes out does not depend on the cuts.  Everything that two
 * parsers on one path could read in two ways is refused (RFC 9112, and stricter where it lets a recipient choose): one
 * Content-Length of digits alone or one `Transfer-Encoding: chunked`, never both; CRLF at each line's end; no folded
 * line; no blank before a colon; exactly one Host in 1.1. */
#ifndef MF_SERVER_HTTP1_H
#define MF_SERVER_HTTP1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"

typedef struct mf_http1_limits {
    size_t
        head_bytes;   /* request line and fields with all their CRLFs; also chunk extensions and trailers of one body */
    size_t url_bytes; /* the request target */
    size_t body_bytes; /* of a chunked body, whose size nobody says beforehand; a Content-Length is the caller's to
                          judge */
    int32_t num_fields;
} mf_http1_limits;

typedef struct mf_http1_field {
    uint32_t name, value; /* offsets into `head`; each text ends in NUL; the name is in lower case, the value trimmed */
} mf_http1_field;

typedef enum mf_http1_event {
    MF_HTTP1_MORE = 0, /* all bytes were used and more are needed */
    MF_HTTP1_HEAD,     /* the head is complete: its fields below are valid */
    MF_HTTP1_BODY,     /* *body, *body_size: the next bytes of the body, inside the caller's data */
    MF_HTTP1_DONE,     /* the request is complete; mf_http1_reset before the next */
    MF_HTTP1_FAILED    /* `status` and `problem` say why; the connection cannot go on */
} mf_http1_event;

typedef struct mf_http1 {
    mf_http1_limits limits;
    /* Valid from MF_HTTP1_HEAD on; method also after a failure behind it. */
    uint32_t method, path, query; /* offsets into `head`; path is decoded, query is not and has no '?' */
    int minor;                    /* 1 or 0 */
    bool keep_alive;              /* what version and Connection ask for */
    bool chunked;
    bool expects_continue;
    bool is_asterisk;       /* the target is "*" (only for OPTIONS); path is "*" */
    int64_t content_length; /* -1: none said; INT64_MAX: more digits than 18 */
    mf_http1_field *fields;
    int32_t num_fields;
    int status;          /* of a failure: 400, 414, 417, 431, 413, 503 (no memory) */
    const char *problem; /* one line, static */
    bool started;        /* a byte of this request was seen, an empty line before it apart */

    /* the parser's own */
    mf_buffer head;
    size_t head_size; /* raw bytes so far */
    size_t overhead;  /* raw bytes of chunk extensions and trailers */
    size_t mark;      /* where in `head` the present text began */
    int32_t fields_capacity, num_trailers;
    uint64_t remaining; /* of the body or chunk */
    uint64_t body_size; /* so far, of a chunked one */
    int num_digits;
    int state;
    uint32_t host, authority; /* 0: none */
    uint32_t seen;            /* bits of fields that may stand only once */
    bool asks_close, asks_keep_alive, empty_line;
} mf_http1;

void mf_http1_init(mf_http1 *parser, const mf_http1_limits *limits);
void mf_http1_reset(mf_http1 *parser); /* for the next request; keeps memory */
void mf_http1_close(mf_http1 *parser); /* frees it; a zeroed one is fine */

/* Reads up to the next event; *used bytes were taken.  After MF_HTTP1_HEAD and MF_HTTP1_BODY call it again, also with
 * no byte left: the end of a request may need none. */
mf_http1_event mf_http1_feed(mf_http1 *parser, const void *data, size_t size, size_t *used, const void **body,
                             size_t *body_size);

const char *mf_http1_text(const mf_http1 *parser, uint32_t offset);
const char *mf_http1_find(const mf_http1 *parser, const char *name); /* a field's value; NULL: absent.  Any case */
const char *mf_http1_host(const mf_http1 *parser);                   /* "" in 1.0 without one */

/* ---- pieces with rules of their own ---- */

bool mf_http1_is_token(const char *text);
/* "name", "name:80", "1.2.3.4", "[::1]:80": letters, digits, '.', '-', '_' and an address in brackets. */
bool mf_http1_is_authority(const char *text);
/* Undoes %xx in place.  False: a broken escape, NUL, a control byte, a byte beyond ASCII; in a path also %2f and a
 * segment of one or two dots. */
bool mf_http1_decode_path(char *path);
bool mf_http1_query_is_clean(const char *query);
/* The decoded value of a parameter; false: absent, or longer than size - 1. */
bool mf_http1_query_value(const char *query, const char *name, char *out, size_t size);

#endif
