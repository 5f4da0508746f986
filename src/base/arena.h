/* arena.h - memory for things that die together.  Blocks are zeroed; nothing is freed but the whole arena. */
#ifndef MF_BASE_ARENA_H
#define MF_BASE_ARENA_H

#include <stddef.h>

typedef struct mf_arena_block mf_arena_block;

typedef struct mf_arena {
    mf_arena_block *blocks;
    size_t used_bytes;  /* handed out so far */
    size_t limit_bytes; /* 0 = none; beyond it allocations return NULL */
} mf_arena;

void *mf_arena_alloc(mf_arena *arena, size_t bytes); /* 16-byte aligned, zeroed; NULL when out of memory or over the limit */
void *mf_arena_array(mf_arena *arena, size_t count, size_t size);
char *mf_arena_strndup(mf_arena *arena, const char *text, size_t n);
char *mf_arena_strdup(mf_arena *arena, const char *text);
void mf_arena_clear(mf_arena *arena); /* frees all; the arena can be used again */

#endif
