/* sse.h - server-sent events from bytes as they arrive, cut anywhere.
 *
 * Lines end with LF, CR or CR LF; `data:` lines of one event are joined by LF; comments and other fields are skipped;
 * an empty line ends the event.  An event that holds no data is none. */
#ifndef MF_CLI_SSE_H
#define MF_CLI_SSE_H

#include <stdbool.h>

#include "base/buffer.h"

enum { MF_SSE_MAX_EVENT_BYTES = 16 << 20 };

/* data has a NUL behind it.  Returns false to end the stream: nothing more is read. */
typedef bool (*mf_sse_fn)(void *context, const char *data, size_t size);

typedef struct mf_sse {
    mf_buffer line, data;
    bool has_data, after_cr, begun, ended;
} mf_sse; /* starts zeroed */

/* MF_ERR_LIMIT: an event is longer than MF_SSE_MAX_EVENT_BYTES. */
mf_status mf_sse_feed(mf_sse *sse, const char *bytes, size_t size, mf_sse_fn fn, void *context, mf_error *err);
void mf_sse_reset(mf_sse *sse); /* for the next stream; keeps the memory */
void mf_sse_close(mf_sse *sse);

#endif
