/* sse.c - see sse.h. */
#include "cli/sse.h"

#include <string.h>

static bool end_event(mf_sse *sse, mf_sse_fn fn, void *context)
{
    bool goes_on = true;
    if (sse->has_data) {
        goes_on = fn(context, mf_buffer_text(&sse->data), sse->data.size);
    }
    mf_buffer_clear(&sse->data);
    sse->has_data = false;
    return goes_on;
}

static mf_status end_line(mf_sse *sse, mf_sse_fn fn, void *context, mf_error *err)
{
    const char *line = mf_buffer_text(&sse->line);
    size_t n = sse->line.size;
    if (!sse->begun && n >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark before the first line */
        line += 3;
        n -= 3;
    }
    sse->begun = true;
    mf_status status = MF_OK;
    if (n == 0) {
        sse->ended = !end_event(sse, fn, context);
    } else if (n >= 4 && memcmp(line, "data", 4) == 0 && (n == 4 || line[4] == ':')) {
        size_t skip = n == 4 ? 4 : n > 5 && line[5] == ' ' ? 6 : 5;
        if (sse->has_data) {
            status = mf_buffer_append(&sse->data, "\n", 1);
        }
        if (status == MF_OK) {
            status = mf_buffer_append(&sse->data, line + skip, n - skip);
        }
        sse->has_data = true;
    }
    mf_buffer_clear(&sse->line);
    return status == MF_OK ? MF_OK
                           : mf_fail(err, status, "stream: an event of more than %d bytes", MF_SSE_MAX_EVENT_BYTES);
}

mf_status mf_sse_feed(mf_sse *sse, const char *bytes, size_t size, mf_sse_fn fn, void *context, mf_error *err)
{
    sse->line.limit = sse->data.limit = MF_SSE_MAX_EVENT_BYTES;
    size_t at = 0;
    while (at < size && !sse->ended) {
        if (sse->after_cr && bytes[at] == '\n') { /* the second half of CR LF */
            sse->after_cr = false;
            at++;
            continue;
        }
        sse->after_cr = false;
        size_t end = at;
        while (end < size && bytes[end] != '\n' && bytes[end] != '\r') {
            end++;
        }
        mf_status status = mf_buffer_append(&sse->line, bytes + at, end - at);
        if (status != MF_OK) {
            return mf_fail(err, status, "stream: a line of more than %d bytes", MF_SSE_MAX_EVENT_BYTES);
        }
        at = end;
        if (end < size) {
            sse->after_cr = bytes[end] == '\r';
            at++;
            MF_TRY(end_line(sse, fn, context, err));
        }
    }
    return MF_OK;
}

void mf_sse_reset(mf_sse *sse)
{
    mf_buffer line = sse->line, data = sse->data;
    mf_buffer_clear(&line);
    mf_buffer_clear(&data);
    *sse = (mf_sse){ .line = line, .data = data };
}

void mf_sse_close(mf_sse *sse)
{
    mf_buffer_close(&sse->line);
    mf_buffer_close(&sse->data);
    *sse = (mf_sse){ 0 };
}
