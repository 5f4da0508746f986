/* arena.c - a bump allocator in blocks: see arena.h. */
#include "base/arena.h"

#include <stdint.h>
#include <string.h>

#include "base/sys.h"

struct mf_arena_block {
    mf_arena_block *next;
    size_t size, used;
    /* data follows, 16-byte aligned */
};

enum { HEADER_BYTES = (sizeof(mf_arena_block) + 15) & ~15u, BLOCK_BYTES = 64 * 1024 };

void *mf_arena_alloc(mf_arena *arena, size_t bytes)
{
    size_t rounded;
    if (!mf_add_ok(bytes, (size_t)15, &rounded)) {
        return NULL;
    }
    rounded &= ~(size_t)15;
    if (rounded == 0) {
        rounded = 16;
    }
    size_t total;
    if (!mf_add_ok(arena->used_bytes, rounded, &total) || (arena->limit_bytes && total > arena->limit_bytes)) {
        return NULL;
    }
    mf_arena_block *block = arena->blocks;
    if (!block || block->size - block->used < rounded) {
        size_t size = rounded > BLOCK_BYTES / 4 ? rounded : BLOCK_BYTES;
        size_t need;
        if (!mf_add_ok(size, (size_t)HEADER_BYTES, &need)) {
            return NULL;
        }
        mf_arena_block *fresh = mf_alloc(need);
        if (!fresh) {
            return NULL;
        }
        fresh->size = size;
        fresh->used = 0;
        /* A large one goes behind the current block, whose free space stays usable. */
        if (block && size == rounded) {
            fresh->next = block->next;
            block->next = fresh;
        } else {
            fresh->next = block;
            arena->blocks = fresh;
        }
        block = fresh;
    }
    void *data = (char *)block + HEADER_BYTES + block->used;
    block->used += rounded;
    arena->used_bytes = total;
    memset(data, 0, rounded);
    return data;
}

void *mf_arena_array(mf_arena *arena, size_t count, size_t size)
{
    size_t bytes;
    return mf_mul_ok(count, size, &bytes) ? mf_arena_alloc(arena, bytes) : NULL;
}

char *mf_arena_strndup(mf_arena *arena, const char *text, size_t n)
{
    char *copy = n < SIZE_MAX ? mf_arena_alloc(arena, n + 1) : NULL;
    if (copy) {
        memcpy(copy, text, n);
    }
    return copy;
}

char *mf_arena_strdup(mf_arena *arena, const char *text)
{
    return mf_arena_strndup(arena, text, strlen(text));
}

void mf_arena_clear(mf_arena *arena)
{
    mf_arena_block *block = arena->blocks;
    while (block) {
        mf_arena_block *next = block->next;
        mf_free(block);
        block = next;
    }
    arena->blocks = NULL;
    arena->used_bytes = 0;
}
