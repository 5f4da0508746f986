/* sys.c - the system table and checked allocation: see sys.h. */
#include "base/sys.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static int64_t monotonic_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

mf_sys mf_sys_table = { .alloc = malloc,
                        .resize = realloc,
                        .release = free,
                        .now_ns = monotonic_ns,
                        .map = mf_sys_map,
                        .unmap = mf_sys_unmap,
                        .bind = mf_sys_bind };

void *mf_alloc(size_t bytes)
{
    return mf_sys_table.alloc(bytes ? bytes : 1);
}

void *mf_alloc_zero(size_t bytes)
{
    void *block = mf_alloc(bytes);
    if (block) {
        memset(block, 0, bytes ? bytes : 1);
    }
    return block;
}

void *mf_alloc_array(size_t count, size_t size)
{
    size_t bytes;
    return mf_mul_ok(count, size, &bytes) ? mf_alloc_zero(bytes) : NULL;
}

void *mf_resize_array(void *block, size_t count, size_t size)
{
    size_t bytes;
    if (!mf_mul_ok(count, size, &bytes)) {
        return NULL;
    }
    return mf_sys_table.resize(block, bytes ? bytes : 1);
}

/* The block's own start is kept just below the aligned address. */
void *mf_alloc_aligned(size_t bytes)
{
    size_t total;
    if (!mf_add_ok(bytes, (size_t)64 + sizeof(void *), &total)) {
        return NULL;
    }
    char *raw = mf_alloc(total);
    if (!raw) {
        return NULL;
    }
    uintptr_t start = ((uintptr_t)raw + sizeof(void *) + 63) & ~(uintptr_t)63;
    memcpy((char *)start - sizeof(void *), &raw, sizeof raw);
    memset((void *)start, 0, bytes);
    return (void *)start;
}

void mf_free_aligned(void *block)
{
    if (block) {
        void *raw;
        memcpy(&raw, (char *)block - sizeof(void *), sizeof raw);
        mf_free(raw);
    }
}

void mf_free(void *block)
{
    mf_sys_table.release(block);
}

char *mf_strndup(const char *text, size_t n)
{
    char *copy = mf_alloc(n + 1);
    if (copy) {
        memcpy(copy, text, n);
        copy[n] = '\0';
    }
    return copy;
}

char *mf_strdup(const char *text)
{
    return mf_strndup(text, strlen(text));
}

int64_t mf_now_ns(void)
{
    return mf_sys_table.now_ns();
}

double mf_now_s(void)
{
    return (double)mf_now_ns() * 1e-9;
}
