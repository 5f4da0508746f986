/* sys.h - the few things moefuse asks of the system: memory and time, through one table.
 *
 * Tests replace entries to fail the k-th allocation or to own the clock; the shipped code is what runs under them. */
#ifndef MF_BASE_SYS_H
#define MF_BASE_SYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moefuse.h"

struct mf_topology;

typedef struct mf_sys {
    void *(*alloc)(size_t bytes);               /* like malloc */
    void *(*resize)(void *block, size_t bytes); /* like realloc */
    void (*release)(void *block);               /* like free */
    int64_t (*now_ns)(void);                    /* monotonic */
    void *(*map)(size_t bytes);                 /* zeroed pages, or NULL */
    void (*unmap)(void *start, size_t bytes);
    long (*bind)(void *start, size_t bytes, int mode, const unsigned long *nodes, unsigned long num_bits); /* like mbind */
} mf_sys;

/* The table in use.  Replace entries only while no other thread runs moefuse code. */
extern mf_sys mf_sys_table;

/* NULL when memory is out or bytes would overflow; bytes = 0 gives a valid block. */
void *mf_alloc(size_t bytes);
void *mf_alloc_zero(size_t bytes);
void *mf_alloc_array(size_t count, size_t size); /* zeroed, checked product */
void *mf_resize_array(void *block, size_t count, size_t size);
void *mf_alloc_aligned(size_t bytes); /* 64-byte aligned, zeroed; release with mf_free_aligned */
void mf_free(void *block);
void mf_free_aligned(void *block);
/* For blocks that are read or written whole: zeroed, 64-byte aligned, on huge pages where the system has them and the block
 * is large.  Pages are taken when they are first touched: near the thread that does, or, interleaved, in turn over all NUMA
 * nodes.  Release with mf_free_huge. */
void *mf_alloc_huge(size_t bytes, mf_numa numa);
void *mf_alloc_huge_over(size_t bytes, mf_numa numa, const struct mf_topology *topology); /* the nodes of another machine */
void mf_free_huge(void *block);
char *mf_strdup(const char *text);
char *mf_strndup(const char *text, size_t n);

/* Bytes that this process could still take without swapping: the system's, or less where a control group says so.
 * 0 = not known. */
int64_t mf_available_memory(void);

int64_t mf_now_ns(void);
double mf_now_s(void);

/* What the table holds at first. */
void *mf_sys_map(size_t bytes);
void mf_sys_unmap(void *start, size_t bytes);
long mf_sys_bind(void *start, size_t bytes, int mode, const unsigned long *nodes, unsigned long num_bits);

/* *out = a op b; false when it does not fit. */
#define mf_mul_ok(a, b, out) (!__builtin_mul_overflow((a), (b), (out)))
#define mf_add_ok(a, b, out) (!__builtin_add_overflow((a), (b), (out)))

#endif
