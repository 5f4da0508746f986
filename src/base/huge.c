/* huge.c - large blocks on huge pages, over NUMA nodes as asked: see sys.h. */
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sys.h"
#include "base/topology.h"

enum { HUGE_PAGE = 2 << 20, LEAST_BYTES = 2 * HUGE_PAGE };

#if !defined(MADV_HUGEPAGE)
#define MADV_HUGEPAGE 14
#endif
enum { INTERLEAVE = 3 }; /* MPOL_INTERLEAVE of <numaif.h>, which is libnuma's */

/* Stands just below every block. */
typedef struct header {
    void *start;  /* of the mapping, or of what mf_alloc gave */
    size_t bytes; /* of the mapping; 0: from mf_alloc */
} header;

_Static_assert(sizeof(header) <= 64, "fits below an address that is a multiple of 64");

void *mf_sys_map(size_t bytes)
{
    void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return start == MAP_FAILED ? NULL : start;
}

void mf_sys_unmap(void *start, size_t bytes)
{
    munmap(start, bytes);
}

long mf_sys_bind(void *start, size_t bytes, int mode, const unsigned long *nodes, unsigned long num_bits)
{
#if defined(SYS_mbind)
    return syscall(SYS_mbind, start, bytes, mode, nodes, num_bits, 0u);
#else
    return -1;
#endif
}

/* Pages in turn over all nodes.  A system that refuses leaves the block as it is: slower, not wrong. */
static void interleave(void *start, size_t bytes, const mf_topology *t)
{
    enum { BITS = 8 * sizeof(unsigned long) };
    static atomic_bool told;
    unsigned long nodes[MF_MAX_CPUS / BITS] = { 0 };
    for (int32_t i = 0; i < t->num_nodes; i++) {
        nodes[t->nodes[i].id / BITS] |= 1ul << (t->nodes[i].id % BITS);
    }
    /* The kernel reads one bit less than it is told. */
    if (mf_sys_table.bind(start, bytes, INTERLEAVE, nodes, MF_MAX_CPUS + 1) != 0 && !atomic_exchange(&told, true)) {
        mf_log(MF_LOG_WARN, "memory cannot be interleaved over %d NUMA nodes: the system refused", (int)t->num_nodes);
    }
}

static void *align_up(void *p, uintptr_t to)
{
    return (void *)(((uintptr_t)p + to - 1) & ~(to - 1));
}

static void *small_block(size_t bytes)
{
    header h = { .start = mf_alloc_zero(bytes + 2 * 64) };
    if (!h.start) {
        return NULL;
    }
    char *block = align_up((char *)h.start + 64, 64);
    memcpy(block - sizeof h, &h, sizeof h);
    return block;
}

void *mf_alloc_huge_over(size_t bytes, mf_numa numa, const mf_topology *topology)
{
    if (bytes < LEAST_BYTES) {
        return small_block(bytes);
    }
    header h = { 0 };
    size_t rounded;
    if (!mf_add_ok(bytes, (size_t)HUGE_PAGE - 1, &rounded) ||
        !mf_add_ok(rounded / HUGE_PAGE * HUGE_PAGE, (size_t)HUGE_PAGE, &h.bytes)) {
        return NULL;
    }
    h.start = mf_sys_table.map(h.bytes);
    if (!h.start) {
        return NULL;
    }
    char *block = align_up((char *)h.start + sizeof h, HUGE_PAGE);
    const size_t behind = (size_t)((char *)h.start + h.bytes - block); /* whole pages, at least `bytes` */
    (void)madvise(block, behind, MADV_HUGEPAGE); /* where the system has none, small pages do */
    if (numa == MF_NUMA_INTERLEAVE && topology->num_nodes > 1) {
        interleave(block, behind, topology);
    }
    memcpy(block - sizeof h, &h, sizeof h);
    return block;
}

void *mf_alloc_huge(size_t bytes, mf_numa numa)
{
    return mf_alloc_huge_over(bytes, numa, mf_topology_get());
}

void mf_free_huge(void *block)
{
    if (!block) {
        return;
    }
    header h;
    memcpy(&h, (char *)block - sizeof h, sizeof h);
    if (h.bytes) {
        mf_sys_table.unmap(h.start, h.bytes);
    } else {
        mf_free(h.start);
    }
}
