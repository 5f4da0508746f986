/* api_error.c - errors as clients see them: their types by status, filling one, and its JSON. */
#include "server/api_error.h"

#include <stdio.h>
#include <string.h>

mf_status mf_api_fail(mf_api_error *error, int status, const char *param, const char *fmt, ...)
{
    *error = (mf_api_error){ .status = status };
    snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(error->message, sizeof error->message, fmt, args);
    va_end(args);
    if (n >= (int)sizeof error->message) {
        /* No half of a character at the cut. */
        size_t end = sizeof error->message - 1;
        while (end > 0 && ((unsigned char)error->message[end - 1] & 0xc0) == 0x80) {
            end--;
        }
        if (end > 0 && (unsigned char)error->message[end - 1] >= 0xc0) {
            end--;
        }
        error->message[end] = '\0';
    }
    if (status == 429 || status == 503) {
        error->retry_after_s = 1;
        return MF_ERR_BUSY;
    }
    return status < 500 ? MF_ERR_INVALID : status == 501 ? MF_ERR_UNSUPPORTED : MF_ERR_INTERNAL;
}

const char *mf_api_error_type(int status)
{
    switch (status) {
    case 400:
        return "BadRequestError";
    case 401:
        return "AuthenticationError";
    case 403:
        return "PermissionDeniedError";
    case 404:
        return "NotFoundError";
    case 405:
        return "MethodNotAllowedError";
    case 408:
        return "RequestTimeoutError";
    case 413:
        return "RequestTooLargeError";
    case 414:
        return "UriTooLongError";
    case 415:
        return "UnsupportedMediaTypeError";
    case 417:
        return "ExpectationFailedError";
    case 429:
        return "RateLimitError";
    case 431:
        return "RequestHeaderFieldsTooLargeError";
    case 501:
        return "NotImplementedError";
    case 503:
        return "ServiceUnavailableError";
    case 504:
        return "TimeoutError";
    default:
        return status >= 500 ? "InternalServerError" : "BadRequestError";
    }
}

/* How many bytes the well-formed character at p takes; 0: none does. */
static size_t character_size(const unsigned char *p)
{
    size_t n = p[0] < 0x80                   ? 1
               : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
               : p[0] >= 0xe0 && p[0] < 0xf0 ? 3
               : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                             : 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] >= 0x90)) {
        return 0;
    }
    return n;
}

static mf_status write_string(mf_buffer *out, const char *text)
{
    MF_TRY(mf_buffer_append(out, "\"", 1));
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        size_t n = character_size(p);
        if (n == 0) {
            MF_TRY(mf_buffer_append(out, "\xef\xbf\xbd", 3)); /* U+FFFD */
            n = 1;
        } else if (*p == '"' || *p == '\\') {
            MF_TRY(mf_buffer_printf(out, "\\%c", *p));
        } else if (*p < 0x20 || *p == 0x7f) {
            MF_TRY(mf_buffer_printf(out, "\\u%04x", *p));
        } else {
            MF_TRY(mf_buffer_append(out, p, n));
        }
        p += n;
    }
    return mf_buffer_append(out, "\"", 1);
}

mf_status mf_api_error_write(const mf_api_error *error, mf_buffer *out)
{
    MF_TRY(mf_buffer_append_text(out, "{\"error\": {\"message\": "));
    MF_TRY(write_string(out, error->message));
    MF_TRY(mf_buffer_printf(out, ", \"type\": \"%s\", \"param\": ", mf_api_error_type(error->status)));
    if (error->param[0]) {
        MF_TRY(write_string(out, error->param));
    } else {
        MF_TRY(mf_buffer_append_text(out, "null"));
    }
    return mf_buffer_printf(out, ", \"code\": %d}}", error->status);
}
