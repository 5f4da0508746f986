/* topology.h - which CPUs this process may use, how they share cores and caches, where memory is, and its page sizes.
 *
 * Read from /sys, which a container may fill as it likes: what is missing or makes no sense becomes one node, or a core per
 * CPU, or 0.  Nothing here fails. */
#ifndef MF_BASE_TOPOLOGY_H
#define MF_BASE_TOPOLOGY_H

#include <stdbool.h>
#include <stdint.h>

enum { MF_MAX_CPUS = 1024, MF_MAX_NODES = 64, MF_MAX_CACHES = 8, MF_MAX_PAGE_SIZES = 4 };

typedef struct mf_cpu_place {
    int32_t cpu;     /* the system's number */
    int32_t core;    /* the lowest CPU of its core: equal for SMT siblings */
    int32_t package;
    int32_t node;    /* index in mf_topology.nodes */
} mf_cpu_place;

typedef struct mf_cache_info {
    int32_t level;
    char type; /* 'd' data, 'i' instructions, 'u' both */
    int64_t bytes, line_bytes;
    int32_t num_cpus; /* that share one */
} mf_cache_info;

typedef struct mf_numa_node {
    int32_t id;       /* the system's number */
    int32_t num_cpus; /* of those this process may use */
    int64_t memory_bytes, free_bytes; /* 0 = not known */
} mf_numa_node;

/* A pool of huge pages that an administrator set aside. */
typedef struct mf_page_pool {
    int64_t page_bytes, num_pages, num_free;
} mf_page_pool;

typedef enum mf_thp { MF_THP_UNKNOWN = 0, MF_THP_NEVER, MF_THP_MADVISE, MF_THP_ALWAYS } mf_thp;

typedef struct mf_topology {
    int32_t num_cpus, num_cores, num_packages, num_nodes, num_caches, num_page_pools;
    mf_cpu_place cpus[MF_MAX_CPUS];       /* ascending */
    mf_numa_node nodes[MF_MAX_NODES];     /* at least one */
    mf_cache_info caches[MF_MAX_CACHES];  /* of the first CPU */
    mf_page_pool page_pools[MF_MAX_PAGE_SIZES];
    mf_thp thp;               /* transparent huge pages for anonymous memory */
    int64_t huge_page_bytes;  /* of those; 0 = none */
} mf_topology;

/* root: the folder that holds sys/, for tests; NULL: this machine, reduced to the CPUs that this process may run on. */
void mf_topology_read(const char *root, mf_topology *topology);

/* This machine, read once. */
const mf_topology *mf_topology_get(void);

/* CPUs for threads 0..n-1: one per core before any core's sibling; `spread`: node after node in turn, else one node's cores
 * before the next one's.  More threads than CPUs start over. */
void mf_topology_order(const mf_topology *topology, bool spread, int32_t n, int32_t *cpus);

#endif
