/* api_error.h - an error as clients see it: {"error": {"message", "type", "param", "code"}}. */
#ifndef MF_SERVER_API_ERROR_H
#define MF_SERVER_API_ERROR_H

#include "base/buffer.h"

typedef struct mf_api_error {
    int status;         /* HTTP status, also "code"; 0 = none.  "type" follows from it */
    char param[64];     /* the field at fault; "" = null */
    char message[1024]; /* one line of UTF-8; quotes at most 128 bytes of input, escaped */
    int retry_after_s;  /* > 0: a Retry-After header; mf_api_fail sets 1 with 429 and 503 */
} mf_api_error;

/* Fills *error and returns MF_ERR_INVALID (4xx), MF_ERR_BUSY (429, 503) or MF_ERR_INTERNAL, so that a caller may return it. */
mf_status mf_api_fail(mf_api_error *error, int status, const char *param, const char *fmt, ...) MF_PRINTF(4, 5);

/* "BadRequestError" for 400, ... */
const char *mf_api_error_type(int status);

/* Appends {"error": {...}} on one line: a body, or what follows "data: " in a stream. */
mf_status mf_api_error_write(const mf_api_error *error, mf_buffer *out);

#endif
