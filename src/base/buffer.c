/* buffer.c - the capped byte buffer: see buffer.h. */
#include "base/buffer.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/sys.h"

mf_status mf_buffer_reserve(mf_buffer *buffer, size_t n)
{
    size_t need;
    if (!mf_add_ok(buffer->size, n, &need) || need == SIZE_MAX || (buffer->limit && need > buffer->limit)) {
        return MF_ERR_LIMIT;
    }
    need += 1;
    if (need <= buffer->capacity) {
        return MF_OK;
    }
    size_t capacity = buffer->capacity < 128 ? 128 : buffer->capacity;
    while (capacity < need) {
        capacity = capacity > SIZE_MAX / 2 ? need : capacity * 2;
    }
    char *data = mf_resize_array(buffer->data, capacity, 1);
    if (!data) {
        return MF_ERR_NOMEM;
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return MF_OK;
}

mf_status mf_buffer_append(mf_buffer *buffer, const void *bytes, size_t n)
{
    MF_TRY(mf_buffer_reserve(buffer, n));
    if (n) {
        memcpy(buffer->data + buffer->size, bytes, n);
    }
    buffer->size += n;
    buffer->data[buffer->size] = '\0';
    return MF_OK;
}

mf_status mf_buffer_append_text(mf_buffer *buffer, const char *text)
{
    return mf_buffer_append(buffer, text, strlen(text));
}

mf_status mf_buffer_printf(mf_buffer *buffer, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0) {
        return MF_ERR_INTERNAL;
    }
    MF_TRY(mf_buffer_reserve(buffer, (size_t)n));
    va_start(args, fmt);
    vsnprintf(buffer->data + buffer->size, (size_t)n + 1, fmt, args);
    va_end(args);
    buffer->size += (size_t)n;
    return MF_OK;
}

const char *mf_buffer_text(const mf_buffer *buffer)
{
    return buffer->data ? buffer->data : "";
}

void mf_buffer_clear(mf_buffer *buffer)
{
    buffer->size = 0;
    if (buffer->data) {
        buffer->data[0] = '\0';
    }
}

void mf_buffer_close(mf_buffer *buffer)
{
    mf_free(buffer->data);
    *buffer = (mf_buffer){ .limit = buffer->limit };
}
