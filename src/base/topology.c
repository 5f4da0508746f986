/* topology.c - reads /sys: see topology.h. */
#include "base/topology.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEXT = 8192, PATH = 512 };

typedef struct cpu_set {
    bool has[MF_MAX_CPUS];
} cpu_set;

/* ---- small files ---- */

/* The start of a file under root as text; false when there is none. */
static bool read_text(const char *root, const char *path, char text[TEXT])
{
    char full[PATH * 2];
    size_t size = 0;
    ssize_t n = 1;
    if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full) {
        return false;
    }
    const int fd = open(full, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        return false;
    }
    while (n > 0 && size < TEXT - 1) {
        n = read(fd, text + size, TEXT - 1 - size);
        size += n > 0 ? (size_t)n : 0;
    }
    close(fd);
    text[size] = '\0';
    return size > 0;
}

/* Digits at *p, which moves behind them; -1 when there are none or they pass `most`. */
static int64_t parse_digits(const char **p, int64_t most)
{
    int64_t value = 0;
    if (**p < '0' || **p > '9') {
        return -1;
    }
    for (; **p >= '0' && **p <= '9'; (*p)++) {
        value = value < 0 || value > (most - (**p - '0')) / 10 ? -1 : value * 10 + (**p - '0');
    }
    return value;
}

/* A number with an optional K, M or G behind it; `missing` when there is none. */
static int64_t parse_size(const char *text, int64_t missing)
{
    const char *p = text;
    while (*p == ' ' || *p == '\t') {
        p++;
    }
    const int64_t value = parse_digits(&p, INT64_MAX >> 30);
    const int shift = *p == 'K' || *p == 'k' ? 10 : *p == 'M' ? 20 : *p == 'G' ? 30 : 0;
    return value < 0 ? missing : value << shift;
}

static int64_t read_number(const char *root, const char *path, int64_t missing)
{
    char text[TEXT];
    return read_text(root, path, text) ? parse_size(text, missing) : missing;
}

/* "0-3,8": what is out of range or out of order is left out, and what is no list ends it. */
static int32_t parse_list(const char *text, cpu_set *set)
{
    int32_t count = 0;
    memset(set, 0, sizeof *set);
    for (const char *p = text; *p >= '0' && *p <= '9'; p++) {
        const int64_t first = parse_digits(&p, INT32_MAX);
        int64_t last = first;
        if (*p == '-') {
            p++;
            last = parse_digits(&p, INT32_MAX);
        }
        for (int64_t i = first; first >= 0 && i <= last && i < MF_MAX_CPUS; i++) {
            count += !set->has[i];
            set->has[i] = true;
        }
        if (*p != ',') {
            break;
        }
    }
    return count;
}

static bool read_list(const char *root, const char *path, cpu_set *set)
{
    char text[TEXT];
    return read_text(root, path, text) && parse_list(text, set) > 0;
}

/* ---- CPUs ---- */

/* Those this process may run on; false where the system does not say. */
static bool allowed_cpus(cpu_set *set)
{
    cpu_set_t mask;
    memset(set, 0, sizeof *set);
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) {
        return false;
    }
    for (int32_t i = 0; i < MF_MAX_CPUS && i < CPU_SETSIZE; i++) {
        set->has[i] = CPU_ISSET((size_t)i, &mask);
    }
    return true;
}

static void read_cpus(const char *root, bool own, mf_topology *t)
{
    cpu_set online, allowed, siblings;
    char path[PATH];
    if (!read_list(root, "/sys/devices/system/cpu/online", &online)) {
        memset(&online, 0, sizeof online);
        const long count = own ? sysconf(_SC_NPROCESSORS_ONLN) : 1;
        for (long i = 0; i < (count < 1 ? 1 : count) && i < MF_MAX_CPUS; i++) {
            online.has[i] = true;
        }
    }
    if (own && allowed_cpus(&allowed)) {
        online = allowed;
    }
    for (int32_t cpu = 0; cpu < MF_MAX_CPUS; cpu++) {
        if (!online.has[cpu]) {
            continue;
        }
        mf_cpu_place *place = &t->cpus[t->num_cpus++];
        *place = (mf_cpu_place){ .cpu = cpu, .core = cpu };
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/core_cpus_list", (int)cpu);
        bool found = read_list(root, path, &siblings);
        if (!found) { /* the name before Linux 5.3 */
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", (int)cpu);
            found = read_list(root, path, &siblings);
        }
        for (int32_t i = 0; found && siblings.has[cpu] && i < cpu; i++) {
            if (siblings.has[i]) {
                place->core = i;
                break;
            }
        }
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/physical_package_id", (int)cpu);
        place->package = (int32_t)(read_number(root, path, 0) & INT32_MAX);
    }
}

/* Distinct values of a field over the CPUs. */
static void count_parts(mf_topology *t)
{
    for (int32_t i = 0; i < t->num_cpus; i++) {
        bool new_core = true, new_package = true;
        for (int32_t j = 0; j < i; j++) {
            new_core = new_core && t->cpus[j].core != t->cpus[i].core;
            new_package = new_package && t->cpus[j].package != t->cpus[i].package;
        }
        t->num_cores += new_core;
        t->num_packages += new_package;
    }
}

static void read_caches(const char *root, mf_topology *t)
{
    char path[PATH], text[TEXT];
    cpu_set set;
    for (int32_t i = 0; t->num_cpus > 0 && i < MF_MAX_CACHES; i++) {
        const int cpu = t->cpus[0].cpu;
        mf_cache_info *c = &t->caches[t->num_caches];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cache/index%d/level", cpu, (int)i);
        const int64_t level = read_number(root, path, 0);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cache/index%d/size", cpu, (int)i);
        const int64_t bytes = read_number(root, path, 0);
        if (level < 1 || level > 8 || bytes < 1) {
            continue;
        }
        *c = (mf_cache_info){ .level = (int32_t)level, .type = 'u', .bytes = bytes, .num_cpus = 1 };
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cache/index%d/type", cpu, (int)i);
        if (read_text(root, path, text)) {
            c->type = text[0] == 'D' ? 'd' : text[0] == 'I' ? 'i' : 'u';
        }
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cache/index%d/coherency_line_size", cpu, (int)i);
        c->line_bytes = read_number(root, path, 0);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cache/index%d/shared_cpu_list", cpu, (int)i);
        if (read_text(root, path, text)) {
            const int32_t count = parse_list(text, &set);
            c->num_cpus = count > 0 ? count : 1;
        }
        t->num_caches++;
    }
}

/* ---- memory ---- */

/* kB behind "Node 0 <key>:", in bytes. */
static int64_t node_bytes(const char *text, const char *key)
{
    const char *p = strstr(text, key);
    const int64_t kib = p ? parse_size(p + strlen(key), 0) : 0;
    return kib > INT64_MAX >> 10 ? 0 : kib << 10;
}

static void read_nodes(const char *root, mf_topology *t)
{
    cpu_set online, cpus;
    char path[PATH], text[TEXT];
    if (!read_list(root, "/sys/devices/system/node/online", &online)) {
        memset(&online, 0, sizeof online);
    }
    for (int32_t id = 0; id < MF_MAX_CPUS && t->num_nodes < MF_MAX_NODES; id++) {
        if (!online.has[id]) {
            continue;
        }
        mf_numa_node *node = &t->nodes[t->num_nodes];
        *node = (mf_numa_node){ .id = id };
        snprintf(path, sizeof path, "/sys/devices/system/node/node%d/cpulist", (int)id);
        const bool has_cpus = read_list(root, path, &cpus);
        for (int32_t i = 0; has_cpus && i < t->num_cpus; i++) {
            if (cpus.has[t->cpus[i].cpu]) {
                t->cpus[i].node = t->num_nodes;
            }
        }
        snprintf(path, sizeof path, "/sys/devices/system/node/node%d/meminfo", (int)id);
        if (read_text(root, path, text)) {
            node->memory_bytes = node_bytes(text, "MemTotal:");
            node->free_bytes = node_bytes(text, "MemFree:");
        }
        t->num_nodes++;
    }
    t->num_nodes = t->num_nodes < 1 ? 1 : t->num_nodes;
    for (int32_t i = 0; i < t->num_cpus; i++) {
        t->nodes[t->cpus[i].node].num_cpus++;
    }
}

static void read_page_sizes(const char *root, mf_topology *t)
{
    char path[PATH], text[TEXT];
    if (read_text(root, "/sys/kernel/mm/transparent_hugepage/enabled", text)) {
        t->thp = strstr(text, "[always]")    ? MF_THP_ALWAYS
                 : strstr(text, "[madvise]") ? MF_THP_MADVISE
                 : strstr(text, "[never]")   ? MF_THP_NEVER
                                             : MF_THP_UNKNOWN;
    }
    t->huge_page_bytes = read_number(root, "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", 0);
    static const int64_t kib[] = { 64, 2048, 32768, 1048576 };
    for (size_t i = 0; i < sizeof kib / sizeof *kib && t->num_page_pools < MF_MAX_PAGE_SIZES; i++) {
        snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-%lldkB/nr_hugepages", (long long)kib[i]);
        const int64_t pages = read_number(root, path, -1);
        if (pages >= 0) {
            snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-%lldkB/free_hugepages", (long long)kib[i]);
            t->page_pools[t->num_page_pools++] = (mf_page_pool){ .page_bytes = kib[i] << 10,
                                                                 .num_pages = pages,
                                                                 .num_free = read_number(root, path, 0) };
        }
    }
}

void mf_topology_read(const char *root, mf_topology *topology)
{
    memset(topology, 0, sizeof *topology);
    read_cpus(root ? root : "", !root, topology);
    count_parts(topology);
    read_caches(root ? root : "", topology);
    read_nodes(root ? root : "", topology);
    read_page_sizes(root ? root : "", topology);
}

static mf_topology machine;
static pthread_once_t machine_once = PTHREAD_ONCE_INIT;

static void read_machine(void)
{
    mf_topology_read(NULL, &machine);
}

const mf_topology *mf_topology_get(void)
{
    pthread_once(&machine_once, read_machine);
    return &machine;
}

/* ---- order ---- */

/* A CPU's place in the order: how many of its core, and of its node, come before it. */
typedef struct ranked {
    int32_t cpu, sibling, in_node, node;
    bool spread;
} ranked;

static int compare_ranks(const void *left, const void *right)
{
    const ranked *a = left, *b = right;
    if (a->sibling != b->sibling) {
        return a->sibling - b->sibling;
    }
    if (a->spread && a->in_node != b->in_node) {
        return a->in_node - b->in_node;
    }
    if (a->node != b->node) {
        return a->node - b->node;
    }
    return a->cpu - b->cpu;
}

void mf_topology_order(const mf_topology *t, bool spread, int32_t n, int32_t *cpus)
{
    ranked order[MF_MAX_CPUS];
    for (int32_t i = 0; i < t->num_cpus; i++) {
        order[i] = (ranked){ .cpu = t->cpus[i].cpu, .node = t->cpus[i].node, .spread = spread };
        for (int32_t j = 0; j < i; j++) {
            order[i].sibling += t->cpus[j].core == t->cpus[i].core;
        }
        for (int32_t j = 0; j < i; j++) { /* of the same rank among siblings, so that cores take turns */
            order[i].in_node += t->cpus[j].node == t->cpus[i].node && order[j].sibling == order[i].sibling;
        }
    }
    qsort(order, (size_t)t->num_cpus, sizeof *order, compare_ranks);
    for (int32_t i = 0; i < n; i++) {
        cpus[i] = t->num_cpus > 0 ? order[i % t->num_cpus].cpu : 0;
    }
}
