/* placement_test.c - where threads and memory go: topology from made-up /sys trees, pinned pools, large blocks.
 *
 * The trees stand for machines that no test has: several memory nodes are held to the arguments of the system's calls. */
#include "test.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/sys.h"
#include "base/threads.h"
#include "base/topology.h"

/* ---- trees ---- */

static char root[256];

static void begin_tree(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/moefuse-sys-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    CHECK(mkdtemp(root) != NULL);
}

static void end_tree(void)
{
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    CHECK_EQ(system(command), 0);
}

static void put_bytes(const char *text, size_t size, const char *path)
{
    char full[1024];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; *p; p++) {
        if (*p == '/') {
            *p = '\0';
            CHECK(mkdir(full, 0700) == 0 || errno == EEXIST);
            *p = '/';
        }
    }
    FILE *f = fopen(full, "wb");
    CHECK(f != NULL);
    CHECK_EQ(fwrite(text, 1, size, f), size);
    fclose(f);
}

static void put(const char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(const char *text, const char *format, ...)
{
    char path[512];
    va_list args;
    va_start(args, format);
    vsnprintf(path, sizeof path, format, args);
    va_end(args);
    put_bytes(text, strlen(text), path);
}

/* 2 packages and nodes of 2 cores with 2 siblings each; siblings are n and n + 4, as many machines number them. */
static void put_two_nodes(void)
{
    put("0-7\n", "/sys/devices/system/cpu/online");
    put("0-1\n", "/sys/devices/system/node/online");
    for (int cpu = 0; cpu < 8; cpu++) {
        char text[32];
        snprintf(text, sizeof text, "%d,%d\n", cpu % 4, cpu % 4 + 4);
        put(text, "/sys/devices/system/cpu/cpu%d/topology/core_cpus_list", cpu);
        put(cpu % 4 < 2 ? "0\n" : "1\n", "/sys/devices/system/cpu/cpu%d/topology/physical_package_id", cpu);
    }
    put("0-1,4-5\n", "/sys/devices/system/node/node0/cpulist");
    put("2-3,6-7\n", "/sys/devices/system/node/node1/cpulist");
    put("Node 0 MemTotal:  1000 kB\nNode 0 MemFree:  400 kB\n", "/sys/devices/system/node/node0/meminfo");
    put("Node 1 MemTotal:  2000 kB\nNode 1 MemFree:  500 kB\n", "/sys/devices/system/node/node1/meminfo");
    put("1\n", "/sys/devices/system/cpu/cpu0/cache/index0/level");
    put("Data\n", "/sys/devices/system/cpu/cpu0/cache/index0/type");
    put("48K\n", "/sys/devices/system/cpu/cpu0/cache/index0/size");
    put("64\n", "/sys/devices/system/cpu/cpu0/cache/index0/coherency_line_size");
    put("0,4\n", "/sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list");
    put("3\n", "/sys/devices/system/cpu/cpu0/cache/index1/level");
    put("Unified\n", "/sys/devices/system/cpu/cpu0/cache/index1/type");
    put("32M\n", "/sys/devices/system/cpu/cpu0/cache/index1/size");
    put("0-1,4-5\n", "/sys/devices/system/cpu/cpu0/cache/index1/shared_cpu_list");
    put("always [madvise] never\n", "/sys/kernel/mm/transparent_hugepage/enabled");
    put("2097152\n", "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    put("12\n", "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    put("5\n", "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
}

static void check_order(const mf_topology *t, bool spread, int n, const int32_t *expected)
{
    int32_t cpus[16];
    mf_topology_order(t, spread, n, cpus);
    for (int i = 0; i < n; i++) {
        CHECK_EQ(cpus[i], expected[i]);
    }
}

TEST(topology_of_two_nodes_with_siblings_is_read_as_it_stands)
{
    static mf_topology t;
    begin_tree();
    put_two_nodes();
    mf_topology_read(root, &t);
    end_tree();
    CHECK_EQ(t.num_cpus, 8);
    CHECK_EQ(t.num_cores, 4);
    CHECK_EQ(t.num_packages, 2);
    CHECK_EQ(t.num_nodes, 2);
    CHECK_EQ(t.cpus[6].core, 2);
    CHECK_EQ(t.cpus[6].node, 1);
    CHECK_EQ(t.cpus[6].package, 1);
    CHECK_EQ(t.nodes[1].num_cpus, 4);
    CHECK_EQ(t.nodes[1].memory_bytes, 2000 * 1024);
    CHECK_EQ(t.nodes[0].free_bytes, 400 * 1024);
    CHECK_EQ(t.num_caches, 2);
    CHECK_EQ(t.caches[0].bytes, 48 << 10);
    CHECK_EQ(t.caches[0].line_bytes, 64);
    CHECK_EQ(t.caches[0].num_cpus, 2);
    CHECK_EQ(t.caches[0].type, 'd');
    CHECK_EQ(t.caches[1].level, 3);
    CHECK_EQ(t.caches[1].bytes, 32 << 20);
    CHECK_EQ(t.caches[1].num_cpus, 4);
    CHECK_EQ(t.thp, MF_THP_MADVISE);
    CHECK_EQ(t.huge_page_bytes, 2 << 20);
    CHECK_EQ(t.num_page_pools, 1);
    CHECK_EQ(t.page_pools[0].num_free, 5);
}

TEST(threads_take_one_core_each_before_any_sibling)
{
    static mf_topology t;
    begin_tree();
    put_two_nodes();
    mf_topology_read(root, &t);
    end_tree();
    check_order(&t, false, 10, (const int32_t[]){ 0, 1, 2, 3, 4, 5, 6, 7, 0, 1 });
    check_order(&t, true, 10, (const int32_t[]){ 0, 2, 1, 3, 4, 6, 5, 7, 0, 2 });
    check_order(&t, true, 2, (const int32_t[]){ 0, 2 });
    check_order(&t, false, 2, (const int32_t[]){ 0, 1 });
}

TEST(nodes_without_cpus_and_gaps_in_numbers_are_kept_apart)
{
    static mf_topology t;
    begin_tree();
    put("1,3\n", "/sys/devices/system/cpu/online");
    put("0,4,9\n", "/sys/devices/system/node/online");
    put("3\n", "/sys/devices/system/node/node4/cpulist");
    put("\n", "/sys/devices/system/node/node9/cpulist"); /* memory alone */
    put("1,3\n", "/sys/devices/system/cpu/cpu3/topology/thread_siblings_list"); /* the older name */
    mf_topology_read(root, &t);
    end_tree();
    CHECK_EQ(t.num_cpus, 2);
    CHECK_EQ(t.num_cores, 1);
    CHECK_EQ(t.num_nodes, 3);
    CHECK_EQ(t.nodes[1].id, 4);
    CHECK_EQ(t.nodes[1].num_cpus, 1);
    CHECK_EQ(t.nodes[2].id, 9);
    CHECK_EQ(t.nodes[2].num_cpus, 0);
    CHECK_EQ(t.cpus[1].node, 1);
    CHECK_EQ(t.thp, MF_THP_UNKNOWN);
}

/* What must hold whatever the files say. */
static void check_sane(const mf_topology *t)
{
    int32_t cpus[64], sum = 0;
    CHECK(t->num_cpus >= 1 && t->num_cpus <= MF_MAX_CPUS);
    CHECK(t->num_nodes >= 1 && t->num_nodes <= MF_MAX_NODES);
    CHECK(t->num_cores >= 1 && t->num_cores <= t->num_cpus);
    CHECK(t->num_caches <= MF_MAX_CACHES);
    for (int32_t i = 0; i < t->num_cpus; i++) {
        CHECK(t->cpus[i].cpu >= 0 && t->cpus[i].cpu < MF_MAX_CPUS);
        CHECK(t->cpus[i].core >= 0 && t->cpus[i].core <= t->cpus[i].cpu);
        CHECK(t->cpus[i].node >= 0 && t->cpus[i].node < t->num_nodes);
    }
    for (int32_t i = 0; i < t->num_nodes; i++) {
        CHECK(t->nodes[i].id >= 0 && t->nodes[i].id < MF_MAX_CPUS);
        CHECK(t->nodes[i].memory_bytes >= 0);
        sum += t->nodes[i].num_cpus;
    }
    CHECK_EQ(sum, t->num_cpus);
    mf_topology_order(t, true, 64, cpus);
}

TEST(files_that_lie_leave_a_machine_that_makes_sense)
{
    static const char *const lies[] = {
        "", "\n", "0-", "-3", "7-2", "0-99999999999999999999", "99999999999999999999", "0,,1", "0-1-2", "a", "0;1",
        "0-4294967295", "1023-1024", "4096", "0-3,0-3,0-3", "\xff\xfe", "0 1 2", "-1", "18446744073709551616K", "9223372036854775807G",
    };
    static const char *const files[] = {
        "/sys/devices/system/cpu/online",
        "/sys/devices/system/node/online",
        "/sys/devices/system/node/node0/cpulist",
        "/sys/devices/system/node/node0/meminfo",
        "/sys/devices/system/cpu/cpu0/topology/core_cpus_list",
        "/sys/devices/system/cpu/cpu4/topology/core_cpus_list",
        "/sys/devices/system/cpu/cpu0/topology/physical_package_id",
        "/sys/devices/system/cpu/cpu0/cache/index0/size",
        "/sys/devices/system/cpu/cpu0/cache/index0/level",
        "/sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    };
    static mf_topology t;
    static char large[100000];
    begin_tree();
    mf_topology_read(root, &t); /* nothing at all */
    check_sane(&t);
    CHECK_EQ(t.num_cpus, 1);
    put_two_nodes();
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
            put(lies[i], "%s", files[f]);
            mf_topology_read(root, &t);
            check_sane(&t);
        }
        memset(large, '0', sizeof large);
        put_bytes(large, sizeof large, files[f]);
        mf_topology_read(root, &t);
        check_sane(&t);
        put_two_nodes();
    }
    end_tree();
}

TEST(this_machine_has_the_cpus_that_the_process_may_use)
{
    cpu_set_t set;
    const mf_topology *t = mf_topology_get();
    check_sane(t);
    CHECK_EQ(sched_getaffinity(0, sizeof set, &set), 0);
    for (int32_t i = 0; i < t->num_cpus; i++) {
        CHECK(CPU_ISSET((size_t)t->cpus[i].cpu, &set));
    }
}

/* ---- threads ---- */

typedef struct seen_cpus {
    atomic_int calls;
    atomic_int wrong; /* a pinned thread somewhere else */
    const int32_t *cpus;
} seen_cpus;

static void look(void *context, int64_t task, int32_t thread)
{
    (void)task;
    seen_cpus *seen = context;
    atomic_fetch_add(&seen->calls, 1);
    if (seen->cpus && sched_getcpu() != seen->cpus[thread]) {
        atomic_fetch_add(&seen->wrong, 1);
    }
    for (volatile int i = 0; i < 2000; i++) {
    }
}

TEST(pinned_threads_stay_and_the_caller_gets_its_places_back)
{
    enum { THREADS = 4 };
    cpu_set_t before, within, after;
    int32_t cpus[THREADS];
    mf_error err = { 0 };
    mf_pool *pool = NULL, *other = NULL;
    CHECK_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    mf_topology_order(mf_topology_get(), false, THREADS, cpus);
    const mf_pool_options options = { .num_threads = THREADS, .cpus = cpus };
    CHECK_OK(mf_pool_open_with(&options, &pool, &err), err);
    CHECK_EQ(mf_pool_num_pinned(pool), THREADS);
    CHECK_EQ(sched_getaffinity(0, sizeof within, &within), 0);
    CHECK_EQ(CPU_COUNT(&within), 1);
    seen_cpus seen = { .cpus = cpus };
    for (int i = 0; i < 50; i++) {
        mf_pool_run(pool, 16, look, &seen);
    }
    CHECK_EQ(seen.calls, 50 * 16);
    CHECK_EQ(seen.wrong, 0);
    /* a pool that asks for nothing is not caught on the caller's CPU */
    CHECK_OK(mf_pool_open(2, &other, &err), err);
    CHECK_EQ(mf_pool_num_pinned(other), 0);
    mf_pool_run(other, 16, look, &(seen_cpus){ 0 });
    mf_pool_close(&other);
    CHECK_EQ(sched_getaffinity(0, sizeof within, &within), 0);
    CHECK_EQ(CPU_COUNT(&within), 1);
    mf_pool_close(&pool);
    CHECK_EQ(sched_getaffinity(0, sizeof after, &after), 0);
    CHECK(CPU_EQUAL(&before, &after));
}

static void note_places(void *context, int64_t task, int32_t thread)
{
    (void)task;
    cpu_set_t set;
    if (thread == 1 && sched_getaffinity(0, sizeof set, &set) == 0) {
        atomic_store((atomic_int *)context, CPU_COUNT(&set));
    }
    for (volatile int i = 0; i < 20000; i++) {
    }
}

TEST(a_pool_opened_by_a_pinned_thread_may_run_where_that_thread_could_before)
{
    cpu_set_t before;
    int32_t cpu;
    mf_error err = { 0 };
    mf_pool *pool = NULL, *other = NULL;
    CHECK_EQ(sched_getaffinity(0, sizeof before, &before), 0);
    mf_topology_order(mf_topology_get(), false, 1, &cpu);
    const mf_pool_options options = { .num_threads = 1, .cpus = &cpu };
    CHECK_OK(mf_pool_open_with(&options, &pool, &err), err);
    CHECK_OK(mf_pool_open(2, &other, &err), err);
    atomic_int places = 0;
    for (int i = 0; i < 2000 && atomic_load(&places) == 0; i++) {
        mf_pool_run(other, 64, note_places, &places);
    }
    CHECK_EQ(places, CPU_COUNT(&before));
    mf_pool_close(&other);
    mf_pool_close(&pool);
}

TEST(threads_that_cannot_be_pinned_run_where_they_may)
{
    const int32_t cpus[3] = { MF_MAX_CPUS - 1, MF_MAX_CPUS - 1, -5 };
    mf_error err = { 0 };
    mf_pool *pool = NULL;
    const mf_pool_options options = { .num_threads = 3, .cpus = cpus };
    CHECK_OK(mf_pool_open_with(&options, &pool, &err), err);
    CHECK_EQ(mf_pool_num_pinned(pool), 0);
    seen_cpus seen = { 0 };
    mf_pool_run(pool, 100, look, &seen);
    CHECK_EQ(seen.calls, 100);
    mf_pool_close(&pool);
}

TEST(every_task_runs_once_whatever_the_spin_time)
{
    static const int64_t spins[] = { -1, 0, 1, 1000, 5000000 };
    mf_error err = { 0 };
    for (size_t s = 0; s < sizeof spins / sizeof *spins; s++) {
        mf_pool *pool = NULL;
        const mf_pool_options options = { .num_threads = 3, .spin_ns = spins[s] };
        CHECK_OK(mf_pool_open_with(&options, &pool, &err), err);
        seen_cpus seen = { 0 };
        for (int i = 0; i < 200; i++) {
            mf_pool_run(pool, 7, look, &seen);
            if (i % 50 == 0) {
                usleep(300); /* long enough to fall asleep */
            }
        }
        CHECK_EQ(seen.calls, 200 * 7);
        mf_pool_close(&pool);
    }
}

/* ---- large blocks ---- */

static struct {
    int calls, mode;
    void *start;
    size_t bytes;
    unsigned long nodes[MF_MAX_CPUS / (8 * sizeof(unsigned long))], num_bits;
} bound;

static long watch_bind(void *start, size_t bytes, int mode, const unsigned long *nodes, unsigned long num_bits)
{
    bound.calls++;
    bound.mode = mode;
    bound.start = start;
    bound.bytes = bytes;
    bound.num_bits = num_bits;
    memcpy(bound.nodes, nodes, sizeof bound.nodes);
    return bound.calls == 2 ? -1 : 0; /* the second time the system refuses */
}

TEST(interleaved_blocks_are_bound_to_all_nodes_and_others_to_none)
{
    static mf_topology two = { .num_nodes = 2, .nodes = { { .id = 0 }, { .id = 65 } } }, one = { .num_nodes = 1 };
    const size_t bytes = 5 << 20;
    mf_sys saved = mf_sys_table;
    mf_sys_table.bind = watch_bind;
    memset(&bound, 0, sizeof bound);
    void *a = mf_alloc_huge_over(bytes, MF_NUMA_INTERLEAVE, &two);
    CHECK(a != NULL);
    CHECK_EQ(bound.calls, 1);
    CHECK_EQ(bound.mode, 3); /* MPOL_INTERLEAVE */
    CHECK(bound.start == a);
    CHECK(bound.bytes >= bytes);
    CHECK_EQ(bound.bytes % 4096, 0);
    CHECK_EQ(bound.nodes[0], 1);
    CHECK_EQ(bound.nodes[1], 2); /* node 65 */
    CHECK_EQ(bound.num_bits, MF_MAX_CPUS + 1);
    void *b = mf_alloc_huge_over(bytes, MF_NUMA_INTERLEAVE, &two); /* refused: a block all the same */
    CHECK(b != NULL);
    CHECK_EQ(bound.calls, 2);
    void *c = mf_alloc_huge_over(bytes, MF_NUMA_FIRST_TOUCH, &two);
    void *d = mf_alloc_huge_over(bytes, MF_NUMA_INTERLEAVE, &one);
    void *e = mf_alloc_huge_over(1000, MF_NUMA_INTERLEAVE, &two); /* too small to spread */
    CHECK(c && d && e);
    CHECK_EQ(bound.calls, 2);
    mf_sys_table = saved;
    mf_free_huge(a);
    mf_free_huge(b);
    mf_free_huge(c);
    mf_free_huge(d);
    mf_free_huge(e);
    mf_free_huge(NULL);
}

TEST(large_blocks_are_zero_aligned_and_whole)
{
    static const size_t sizes[] = { 0, 1, 63, 4096, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9000001 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *block = mf_alloc_huge(sizes[i], MF_NUMA_INTERLEAVE);
        CHECK(block != NULL);
        CHECK_EQ((uintptr_t)block % 64, 0);
        for (size_t at = 0; at < sizes[i]; at += 509) {
            CHECK_EQ(block[at], 0);
        }
        memset(block, 0xa5, sizes[i]);
        mf_free_huge(block);
    }
    CHECK(mf_alloc_huge(SIZE_MAX, MF_NUMA_FIRST_TOUCH) == NULL);
    CHECK(mf_alloc_huge(SIZE_MAX - (2 << 20), MF_NUMA_FIRST_TOUCH) == NULL);
    CHECK(mf_alloc_huge(SIZE_MAX / 2, MF_NUMA_FIRST_TOUCH) == NULL);
}

static void *no_pages(size_t bytes)
{
    (void)bytes;
    return NULL;
}

TEST(a_large_block_that_cannot_be_had_is_null)
{
    mf_sys saved = mf_sys_table;
    mf_sys_table.map = no_pages;
    CHECK(mf_alloc_huge(64 << 20, MF_NUMA_FIRST_TOUCH) == NULL);
    mf_sys_table = saved;
}

/* ---- files that are read ---- */

typedef struct reading {
    int64_t bytes;
    int calls, most;
} reading;

static bool count_reading(void *context, int64_t bytes)
{
    reading *r = context;
    r->bytes += bytes;
    return ++r->calls < r->most;
}

TEST(a_file_that_is_read_tells_how_far_it_is_and_can_be_cancelled)
{
    enum { BYTES = 40 << 20 };
    char path[300];
    mf_error err = { 0 };
    mf_file file;
    begin_tree();
    snprintf(path, sizeof path, "%s/weights", root);
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    CHECK_EQ(ftruncate(fileno(f), BYTES), 0);
    fseek(f, BYTES - 3, SEEK_SET);
    fputs("end", f);
    fclose(f);
    reading all = { .most = 1000 }, first = { .most = 1 };
    mf_file_options options = { .was_read = count_reading, .context = &all };
    CHECK_OK(mf_file_open_with(path, &options, &file, &err), err);
    CHECK_EQ(all.bytes, BYTES);
    CHECK(all.calls >= 3);
    CHECK_EQ(file.size, BYTES);
    CHECK(!file.mapped);
    CHECK_MEM(file.data + BYTES - 3, "end", 3);
    mf_file_close(&file);
    options.context = &first;
    CHECK_EQ(mf_file_open_with(path, &options, &file, &err), MF_ERR_CANCELLED);
    CHECK_HAS(err.message, "cancelled");
    CHECK(file.data == NULL);
    end_tree();
}
