/* http_response.h - an HTTP/1.x answer from bytes as they arrive, cut anywhere: status, the few headers a client needs,
 * and the body without its framing (Content-Length, chunked, or until the connection closes). */
#ifndef MF_CLI_HTTP_RESPONSE_H
#define MF_CLI_HTTP_RESPONSE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"

enum { MF_HTTP_MAX_HEAD_BYTES = 64 << 10 };

typedef enum mf_http_part {
    MF_HTTP_STATUS_LINE = 0,
    MF_HTTP_HEADERS,
    MF_HTTP_BODY_LENGTH,
    MF_HTTP_BODY_UNTIL_CLOSE,
    MF_HTTP_CHUNK_SIZE,
    MF_HTTP_CHUNK_DATA,
    MF_HTTP_CHUNK_END,
    MF_HTTP_TRAILERS,
    MF_HTTP_DONE
} mf_http_part;

typedef struct mf_http_response {
    mf_http_part part;
    int status;           /* 0 until the status line is there */
    bool keep_alive;      /* the connection may carry another request */
    bool is_event_stream; /* Content-Type: text/event-stream */
    int retry_after_s;    /* -1: none */
    bool has_length, chunked;
    uint64_t left; /* bytes of the body or of this chunk */
    mf_buffer line;
    size_t head_bytes;
} mf_http_response; /* starts zeroed */

typedef mf_status (*mf_http_body_fn)(void *context, const char *bytes, size_t size, mf_error *err);

/* Reads on; body bytes go to fn (not NULL).  *used < size only when the answer is complete (part MF_HTTP_DONE). */
mf_status mf_http_response_feed(mf_http_response *response, const char *bytes, size_t size, size_t *used,
                                mf_http_body_fn fn, void *context, mf_error *err);
/* The connection closed: complete for a body that lasts until then, else an error that says what is missing. */
mf_status mf_http_response_end(mf_http_response *response, mf_error *err);
void mf_http_response_reset(mf_http_response *response); /* for the next answer; keeps the memory */
void mf_http_response_close(mf_http_response *response);

#endif
