/* ceilings.c - how fast this machine reads memory and multiplies: what the kernels' figures are shares of. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/topology.h"
#include "kernels/bench/bench_parts.h"

enum { CHUNK = 1 << 20, MAX_SAMPLES = 512 };

int mf_bench_compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int32_t count)
{
    if (count < 1) {
        return 0;
    }
    qsort(values, (size_t)count, sizeof *values, mf_bench_compare_doubles);
    return values[count / 2];
}

const char *mf_rate_kind_name(mf_rate_kind kind)
{
    static const char *const names[MF_RATE_COUNT] = { "f32 fma", "bf16 dot", "int8 dot" };
    return (unsigned)kind < MF_RATE_COUNT ? names[kind] : "?";
}

/* ---- memory ---- */

typedef struct fill_call {
    uint8_t *data;
    const uint8_t *pattern; /* [CHUNK] */
} fill_call;

static void fill_chunk(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const fill_call *call = context;
    size_t first = (size_t)task * CHUNK;
    memcpy(call->data + first, call->pattern, CHUNK);
}

/* Bytes that are harmless as codes of every format: no NaN, no value near the ends of f32, f16 or bf16. */
static void make_pattern(uint8_t *pattern)
{
    uint64_t seed = 1;
    for (size_t i = 0; i < CHUNK; i += 2) {
        uint64_t r = mf_random_next(&seed);
        pattern[i] = (uint8_t)(0x30 + r % 16);
        pattern[i + 1] = (uint8_t)(((r >> 8) & 0x80) | (0x38 + (r >> 16) % 8));
    }
}

mf_status mf_bench_block_open(mf_bench_block *block, mf_pool *pool, size_t bytes, mf_bench_pages pages, mf_error *err)
{
    *block = (mf_bench_block){ 0 };
    size_t rounded, total;
    if (!mf_add_ok(bytes, (size_t)CHUNK - 1, &rounded) || !mf_add_ok(rounded, (size_t)2 * CHUNK, &total)) {
        return mf_fail(err, MF_ERR_NOMEM, "bench: a block of %zu bytes does not fit in memory", bytes);
    }
    rounded -= rounded % CHUNK;
    int64_t available = mf_available_memory();
    if (available > 0 && rounded > (size_t)available) {
        return mf_fail(err, MF_ERR_NOMEM, "bench: the weights take %.1f GiB; %.1f GiB of memory are available",
                       (double)rounded * 0x1p-30, (double)available * 0x1p-30);
    }
    uint8_t *pattern = mf_alloc(CHUNK);
    if (pages == MF_BENCH_PAGES_SMALL) {
        block->small = mf_alloc(total);
        block->data = block->small ? (uint8_t *)(((uintptr_t)block->small + CHUNK - 1) / CHUNK * CHUNK) : NULL;
    } else {
        const bool interleave = pages == MF_BENCH_PAGES_INTERLEAVED;
        block->huge = mf_alloc_huge(rounded, interleave ? MF_NUMA_INTERLEAVE : MF_NUMA_FIRST_TOUCH);
        block->data = block->huge;
    }
    if (!pattern || !block->data) {
        mf_free(pattern);
        mf_bench_block_close(block);
        return mf_fail(err, MF_ERR_NOMEM, "bench: no memory for %.1f GiB", (double)total * 0x1p-30);
    }
    block->bytes = rounded;
    if (block->small) {
        madvise(block->data, block->bytes, MADV_NOHUGEPAGE); /* advice only */
    }
    make_pattern(pattern);
    fill_call call = { block->data, pattern };
    mf_pool_run(pool, (int64_t)(block->bytes / CHUNK), fill_chunk, &call);
    mf_free(pattern);
    return MF_OK;
}

void mf_bench_block_close(mf_bench_block *block)
{
    mf_free(block->small);
    mf_free_huge(block->huge);
    *block = (mf_bench_block){ 0 };
}

void *mf_bench_block_take(mf_bench_block *block, size_t bytes)
{
    size_t rounded = (bytes + 63) / 64 * 64;
    if (rounded > block->bytes - block->used) {
        return NULL;
    }
    void *p = block->data + block->used;
    block->used += rounded;
    return p;
}

/* Bytes of [from, from + bytes) in huge pages, as the system counts them; -1 when it does not say. */
static int64_t count_huge_bytes(const void *from, size_t bytes)
{
    FILE *f = fopen("/proc/self/smaps", "re");
    if (!f) {
        return -1;
    }
    char line[512];
    bool inside = false;
    int64_t sum = 0;
    while (fgets(line, sizeof line, f)) {
        unsigned long long first, end, kib;
        if (sscanf(line, "%llx-%llx ", &first, &end) == 2) {
            inside = first < (uintptr_t)from + bytes && end > (uintptr_t)from;
        } else if (inside && sscanf(line, "AnonHugePages: %llu kB", &kib) == 1) {
            sum += (int64_t)kib * 1024;
        }
    }
    fclose(f);
    return sum;
}

/* ---- reading ---- */

typedef struct read_call {
    const uint8_t *data;
    mf_read_fn read;
    size_t ahead;
    uint64_t sums[256];
} read_call;

static void read_chunk(void *context, int64_t task, int32_t thread)
{
    read_call *call = context;
    call->sums[thread % 256] ^= call->read(call->data + task * CHUNK, CHUNK, call->ahead);
}

static double read_pass(mf_pool *pool, read_call *call, int64_t chunks)
{
    double start = mf_now_s();
    mf_pool_run(pool, chunks, read_chunk, call);
    return (double)chunks * CHUNK / (mf_now_s() - start) * 1e-9;
}

double mf_bench_read_block(mf_pool *pool, const mf_bench_block *block, double seconds)
{
    static const size_t distances[] = { 0, 2048, 8192 };
    enum { NUM_DISTANCES = sizeof distances / sizeof distances[0], MAX_WAYS = MF_BENCH_MAX_LEVELS * NUM_DISTANCES };
    mf_bench_level levels[MF_BENCH_MAX_LEVELS];
    int32_t num_levels = mf_bench_levels(levels, MF_BENCH_MAX_LEVELS), num_ways = 0;
    read_call ways[MAX_WAYS];
    for (int32_t i = 0; i < num_levels; i++) {
        const mf_rates *rates = levels[i].is_available ? mf_bench_rates_of(levels[i].name) : NULL;
        for (size_t d = 0; rates && rates->read && d < NUM_DISTANCES; d++) {
            ways[num_ways++] = (read_call){ .data = block->data, .read = rates->read, .ahead = distances[d] };
        }
    }
    /* Passes over less than a cache could hold would not read memory: as much as there is, up to a gibibyte. */
    int64_t chunks = (int64_t)(block->bytes / CHUNK);
    chunks = chunks > 1024 ? 1024 : chunks;
    double best = 0, started = mf_now_s(), samples[MAX_SAMPLES];
    int32_t best_way = 0, count = 0;
    /* One short pass each finds the way that suits the machine. */
    for (int32_t w = 0; w < num_ways; w++) {
        double rate = read_pass(pool, &ways[w], chunks > 128 ? 128 : chunks);
        best_way = rate > best ? w : best_way;
        best = rate > best ? rate : best;
    }
    while (count < 5 || (count < MAX_SAMPLES && mf_now_s() - started < seconds)) {
        samples[count++] = read_pass(pool, &ways[best_way], chunks);
    }
    return median(samples, count);
}

/* Each thread on a CPU of its own, spread over the nodes: the machine's figure, not the scheduler's. */
static mf_status open_pinned(int32_t threads, mf_pool **pool, mf_error *err)
{
    int32_t cpus[MF_MAX_CPUS];
    mf_pool_options options = { .num_threads = threads };
    if (threads <= MF_MAX_CPUS) {
        mf_topology_order(mf_topology_get(), true, threads, cpus);
        options.cpus = cpus;
    }
    return mf_pool_open_with(&options, pool, err);
}

mf_status mf_bench_read_rates(const int32_t *threads, int32_t count, bool huge, int64_t bytes, double seconds_each,
                              double *gb_per_s, int64_t *huge_bytes, mf_error *err)
{
    int32_t most = 1;
    for (int32_t i = 0; i < count; i++) {
        most = threads[i] > most ? threads[i] : most;
    }
    mf_pool *pool = NULL;
    mf_bench_block block = { 0 };
    mf_status status;
    MF_TRY_GOTO(open_pinned(most, &pool, err), done);
    MF_TRY_GOTO(
        mf_bench_block_open(&block, pool, (size_t)bytes, huge ? MF_BENCH_PAGES_INTERLEAVED : MF_BENCH_PAGES_SMALL, err),
        done);
    *huge_bytes = count_huge_bytes(block.data, block.bytes);
    for (int32_t i = 0; i < count; i++) {
        mf_pool_close(&pool);
        MF_TRY_GOTO(open_pinned(threads[i], &pool, err), done);
        gb_per_s[i] = mf_bench_read_block(pool, &block, seconds_each);
    }
done:
    mf_bench_block_close(&block);
    mf_pool_close(&pool);
    return status;
}

/* ---- multiplying ---- */

typedef struct rate_call {
    mf_rate_fn fn;
    int64_t rounds;
    double operations[256];
} rate_call;

static void run_rate(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    rate_call *call = context;
    call->operations[task % 256] = call->fn(call->rounds);
}

/* All threads run the loop for about 8 ms a sample: long beside waking them, short beside a neighbour's time slice. */
static double measure(mf_pool *pool, mf_rate_fn fn, double seconds)
{
    const double burst_s = 0.008;
    int32_t threads = mf_pool_num_threads(pool) < 256 ? mf_pool_num_threads(pool) : 256;
    rate_call call = { .fn = fn, .rounds = 1000 };
    double took = 0, samples[MAX_SAMPLES];
    while (took < 1e-3 && call.rounds < (int64_t)1 << 40) {
        call.rounds *= 2;
        double start = mf_now_s();
        fn(call.rounds);
        took = mf_now_s() - start;
    }
    call.rounds = (int64_t)((double)call.rounds * burst_s / took) + 1;
    int32_t count = 0;
    double started = mf_now_s();
    while (count < 5 || (count < MAX_SAMPLES && mf_now_s() - started < seconds)) {
        double start = mf_now_s(), sum = 0;
        mf_pool_run(pool, threads, run_rate, &call);
        double elapsed = mf_now_s() - start;
        for (int32_t i = 0; i < threads; i++) {
            sum += call.operations[i];
        }
        samples[count++] = sum / elapsed * 1e-9;
    }
    return median(samples, count);
}

double mf_bench_pool_rate(mf_pool *pool, const char *level, bool or_lower, mf_rate_kind kind, double seconds)
{
    mf_bench_level levels[MF_BENCH_MAX_LEVELS];
    int32_t count = mf_bench_levels(levels, MF_BENCH_MAX_LEVELS);
    double best = 0;
    for (int32_t i = 0; i < count; i++) {
        bool is_it = strcmp(levels[i].name, level) == 0;
        const mf_rates *rates =
            levels[i].is_available && (is_it || or_lower) ? mf_bench_rates_of(levels[i].name) : NULL;
        if (rates && rates->rate[kind]) {
            double rate = measure(pool, rates->rate[kind], seconds);
            best = rate > best ? rate : best;
        }
        if (is_it) {
            break;
        }
    }
    return best;
}

mf_status mf_bench_rate(const char *level, bool or_lower, mf_rate_kind kind, int32_t threads, double seconds,
                        double *gops, mf_error *err)
{
    *gops = 0;
    mf_pool *pool = NULL;
    MF_TRY(open_pinned(threads, &pool, err));
    *gops = mf_bench_pool_rate(pool, level, or_lower, kind, seconds);
    mf_pool_close(&pool);
    return MF_OK;
}
