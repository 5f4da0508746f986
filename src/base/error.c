/* error.c - error values: see error.h. */
#include "base/error.h"

#include <stdio.h>
#include <string.h>

static void scrub(char *text)
{
    for (unsigned char *p = (unsigned char *)text; *p; p++) {
        if ((*p < 0x20 && *p != '\n') || *p == 0x7f) {
            *p = '?';
        }
    }
}

mf_status mf_fail(mf_error *err, mf_status status, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        scrub(err->message);
        err->status = status;
    }
    return status;
}

mf_status mf_fail_context(mf_error *err, mf_status status, const char *fmt, ...)
{
    if (!err) {
        return status;
    }
    char tail[sizeof err->message];
    memcpy(tail, err->message, sizeof tail);
    tail[sizeof tail - 1] = '\0';
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof err->message - 1) {
        n = (int)sizeof err->message - 1;
    }
    snprintf(err->message + n, sizeof err->message - (size_t)n, ": %s", tail);
    scrub(err->message);
    if (err->status == MF_OK) {
        err->status = status;
    }
    return err->status;
}

void mf_error_advise(mf_error *err, const char *fmt, ...)
{
    if (!err) {
        return;
    }
    size_t n = strlen(err->message);
    if (n + 2 >= sizeof err->message) {
        return;
    }
    err->message[n++] = '\n';
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->message + n, sizeof err->message - n, fmt, args);
    va_end(args);
    scrub(err->message + n);
}

void mf_error_clear(mf_error *err)
{
    if (err) {
        err->status = MF_OK;
        err->message[0] = '\0';
    }
}

const char *mf_status_name(mf_status status)
{
    switch (status) {
    case MF_OK: return "ok";
    case MF_ERR_INVALID: return "invalid argument";
    case MF_ERR_UNSUPPORTED: return "unsupported";
    case MF_ERR_NOMEM: return "out of memory";
    case MF_ERR_IO: return "input/output error";
    case MF_ERR_FORMAT: return "malformed file";
    case MF_ERR_DEVICE: return "device error";
    case MF_ERR_BUSY: return "busy";
    case MF_ERR_LIMIT: return "limit reached";
    case MF_ERR_CANCELLED: return "cancelled";
    case MF_ERR_INTERNAL: return "internal error";
    }
    return "unknown status";
}

const char *mf_version(void)
{
    return MF_VERSION_STRING;
}
