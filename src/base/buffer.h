/* buffer.h - a growing byte buffer with a cap.  Always NUL-terminated behind its bytes, so it can be printed. */
#ifndef MF_BASE_BUFFER_H
#define MF_BASE_BUFFER_H

#include <stddef.h>

#include "base/error.h"

typedef struct mf_buffer {
    char *data;  /* NULL while empty; owned */
    size_t size; /* bytes in use, without the NUL */
    size_t capacity;
    size_t limit; /* 0 = none; an append beyond it is MF_ERR_LIMIT and leaves the buffer as it was */
} mf_buffer;

mf_status mf_buffer_append(mf_buffer *buffer, const void *bytes, size_t n);
mf_status mf_buffer_append_text(mf_buffer *buffer, const char *text);
mf_status mf_buffer_printf(mf_buffer *buffer, const char *fmt, ...) MF_PRINTF(2, 3);
mf_status mf_buffer_reserve(mf_buffer *buffer, size_t n); /* room for n more bytes */
const char *mf_buffer_text(const mf_buffer *buffer);      /* "" while empty */
void mf_buffer_clear(mf_buffer *buffer);                  /* keeps the memory */
void mf_buffer_close(mf_buffer *buffer);                  /* frees it */

#endif
