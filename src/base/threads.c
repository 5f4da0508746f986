/* threads.c - the pool: see threads.h.
 *
 * One word holds the loop's number, whether it may still be joined, and how many workers are in it.  The caller publishes a
 * loop, works through it itself, closes it, and waits only for workers that had joined: one that slept or lost its core
 * costs nothing. */
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "base/sys.h"

#if defined(__x86_64__)
#define CPU_RELAX() __builtin_ia32_pause()
#else
#define CPU_RELAX() ((void)0)
#endif

/* The clock is asked once per TURNS; the caller, who waits for tasks in progress, yields after CALLER_TURNS. */
enum { TURNS = 64, CALLER_TURNS = 4000, MAX_THREADS = 256, DEFAULT_SPIN_NS = 50000 };

#define LOOP_OPEN 0x80000000u
#define LOOP_ACTIVE 0x7fffffffu
#define LOOP_NUMBER_SHIFT 32

/* Sanitizers keep data of their own on the stack, and make frames several times larger. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STACK_BYTES = 4 * MF_THREAD_STACK_BYTES };
#else
enum { STACK_BYTES = MF_THREAD_STACK_BYTES };
#endif

typedef struct mf_worker {
    mf_pool *pool;
    pthread_t thread;
    int32_t index;
} mf_worker;

struct mf_pool {
    int32_t num_threads;
    int32_t num_started;
    int32_t num_pinned;
    int64_t spin_ns;
    pthread_t owner; /* who opened it */
    bool owner_is_moved;
    mf_worker *workers; /* [num_threads - 1] */

    /* The loop in progress; written by the caller while no worker can be in it. */
    mf_task_fn fn;
    void *context;
    int64_t num_tasks;
    _Alignas(64) atomic_uint_least64_t loop; /* number << 32 | LOOP_OPEN | active workers */
    _Alignas(64) atomic_int_fast64_t next_task;
    atomic_int_fast32_t num_sleeping;
    atomic_bool quit;
    pthread_mutex_t mutex; /* guards sleeping on `wake` only */
    pthread_cond_t wake;
};

static void run_tasks(mf_pool *pool, int32_t thread)
{
    for (;;) {
        int64_t task = atomic_fetch_add_explicit(&pool->next_task, 1, memory_order_relaxed);
        if (task >= pool->num_tasks) {
            return;
        }
        pool->fn(pool->context, task, thread);
    }
}

/* Not mf_now_ns: that clock may be a test's, which stands still. */
static int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Returns the loop word once its number differs from `seen`. */
static uint64_t wait_for_loop(mf_pool *pool, uint64_t seen)
{
    const int64_t end = pool->spin_ns > 0 ? clock_ns() + pool->spin_ns : 0;
    do {
        for (int turn = 0; turn < TURNS; turn++) {
            uint64_t loop = atomic_load_explicit(&pool->loop, memory_order_acquire);
            if (loop >> LOOP_NUMBER_SHIFT != seen) {
                return loop;
            }
            CPU_RELAX();
        }
    } while (end > 0 && clock_ns() < end);
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->num_sleeping, 1);
    uint64_t loop;
    while ((loop = atomic_load(&pool->loop)) >> LOOP_NUMBER_SHIFT == seen) {
        pthread_cond_wait(&pool->wake, &pool->mutex);
    }
    atomic_fetch_sub(&pool->num_sleeping, 1);
    pthread_mutex_unlock(&pool->mutex);
    return loop;
}

static void *worker_main(void *argument)
{
    mf_worker *worker = argument;
    mf_pool *pool = worker->pool;
    uint64_t seen = 0;
    for (;;) {
        uint64_t loop = wait_for_loop(pool, seen);
        if (atomic_load(&pool->quit)) {
            return NULL;
        }
        seen = loop >> LOOP_NUMBER_SHIFT;
        bool joined = false;
        while ((loop & LOOP_OPEN) && loop >> LOOP_NUMBER_SHIFT == seen && !joined) {
            joined = atomic_compare_exchange_weak(&pool->loop, &loop, loop + 1);
        }
        if (joined) {
            run_tasks(pool, worker->index);
            atomic_fetch_sub_explicit(&pool->loop, 1, memory_order_release);
        }
    }
}

/* The next loop's number with the given flags; wakes whoever sleeps. */
static void publish(mf_pool *pool, uint64_t flags)
{
    uint64_t number = ((atomic_load_explicit(&pool->loop, memory_order_relaxed) >> LOOP_NUMBER_SHIFT) + 1) & 0xffffffffu;
    atomic_store(&pool->loop, number << LOOP_NUMBER_SHIFT | flags); /* seq_cst: ordered before the look at num_sleeping */
    if (atomic_load(&pool->num_sleeping) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static bool one_cpu(int32_t cpu, cpu_set_t *set)
{
    CPU_ZERO(set);
    if (cpu < 0 || cpu >= CPU_SETSIZE) {
        return false;
    }
    CPU_SET((size_t)cpu, set);
    return true;
}

/* Where this thread could run before a pool moved it; pools that it opens meanwhile start their threads there. */
static _Thread_local bool is_moved;
static _Thread_local cpu_set_t places_before;

/* A system that refuses leaves the caller where it is. */
static void move_owner(mf_pool *pool, int32_t cpu)
{
    cpu_set_t set;
    if (!is_moved && pthread_getaffinity_np(pool->owner, sizeof places_before, &places_before) != 0) {
        return;
    }
    pool->owner_is_moved = one_cpu(cpu, &set) && pthread_setaffinity_np(pool->owner, sizeof set, &set) == 0;
    pool->num_pinned += pool->owner_is_moved;
    is_moved = is_moved || pool->owner_is_moved;
}

static void release_owner(mf_pool *pool)
{
    if (pool->owner_is_moved && pthread_equal(pool->owner, pthread_self())) {
        pthread_setaffinity_np(pool->owner, sizeof places_before, &places_before);
        is_moved = false;
    }
}

static int attributes_init(pthread_attr_t *attributes)
{
    int failed = pthread_attr_init(attributes);
    if (!failed) {
        failed = pthread_attr_setstacksize(attributes, STACK_BYTES);
        if (failed) {
            pthread_attr_destroy(attributes);
        }
    }
    return failed;
}

/* places: where it runs from its first instruction on, so that its stack lies near it; NULL: anywhere. */
static int start_thread(pthread_t *thread, const char *name, const cpu_set_t *places, void *(*run)(void *context),
                        void *context)
{
    pthread_attr_t attributes;
    int failed = attributes_init(&attributes);
    if (!failed) {
        failed = places ? pthread_attr_setaffinity_np(&attributes, sizeof *places, places) : 0;
        failed = failed ? failed : pthread_create(thread, &attributes, run, context);
        pthread_attr_destroy(&attributes);
    }
    if (!failed) {
        pthread_setname_np(*thread, name);
    }
    return failed;
}

int mf_thread_start(pthread_t *thread, const char *name, void *(*run)(void *context), void *context)
{
    return start_thread(thread, name, NULL, run, context);
}

static bool start_worker(mf_pool *pool, mf_worker *worker, const int32_t *cpu)
{
    static const char name[] = "mf-worker";
    cpu_set_t set;
    const cpu_set_t *places = cpu && one_cpu(*cpu, &set) ? &set : is_moved ? &places_before : NULL;
    const bool started = places && start_thread(&worker->thread, name, places, worker_main, worker) == 0;
    pool->num_pinned += started && places == &set;
    return started || start_thread(&worker->thread, name, NULL, worker_main, worker) == 0;
}

mf_status mf_pool_open_with(const mf_pool_options *options, mf_pool **out, mf_error *err)
{
    const int32_t num_threads = options->num_threads;
    *out = NULL;
    if (num_threads < 1 || num_threads > MAX_THREADS) {
        return mf_fail(err, MF_ERR_INVALID, "threads: expected 1 to %d; got %d", MAX_THREADS, num_threads);
    }
    mf_pool *pool = mf_alloc_aligned(sizeof *pool);
    if (!pool) {
        return mf_fail(err, MF_ERR_NOMEM, "threads: out of memory");
    }
    pool->num_threads = num_threads;
    pool->spin_ns = options->spin_ns ? options->spin_ns : DEFAULT_SPIN_NS;
    pool->owner = pthread_self();
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->workers = mf_alloc_array((size_t)num_threads, sizeof *pool->workers);
    if (!pool->workers) {
        mf_pool_close(&pool);
        return mf_fail(err, MF_ERR_NOMEM, "threads: out of memory");
    }
    for (int32_t i = 1; i < num_threads; i++) {
        mf_worker *worker = &pool->workers[i - 1];
        worker->pool = pool;
        worker->index = i;
        if (!start_worker(pool, worker, options->cpus ? &options->cpus[i] : NULL)) {
            mf_pool_close(&pool);
            return mf_fail(err, MF_ERR_NOMEM, "threads: cannot start thread %d of %d", i + 1, num_threads);
        }
        pool->num_started++;
    }
    if (options->cpus) { /* last: a worker that cannot be kept on its CPU inherits the caller's places */
        move_owner(pool, options->cpus[0]);
    }
    *out = pool;
    return MF_OK;
}

mf_status mf_pool_open(int32_t num_threads, mf_pool **out, mf_error *err)
{
    const mf_pool_options options = { .num_threads = num_threads };
    return mf_pool_open_with(&options, out, err);
}

void mf_pool_close(mf_pool **out)
{
    mf_pool *pool = *out;
    if (!pool) {
        return;
    }
    atomic_store(&pool->quit, true);
    publish(pool, 0);
    for (int32_t i = 0; i < pool->num_started; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    release_owner(pool);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    mf_free(pool->workers);
    mf_free_aligned(pool);
    *out = NULL;
}

int32_t mf_pool_num_threads(const mf_pool *pool)
{
    return pool ? pool->num_threads : 1;
}

int32_t mf_pool_num_pinned(const mf_pool *pool)
{
    return pool ? pool->num_pinned : 0;
}

void mf_pool_run(mf_pool *pool, int64_t num_tasks, mf_task_fn fn, void *context)
{
    if (!pool || pool->num_threads == 1 || num_tasks <= 1) {
        for (int64_t task = 0; task < num_tasks; task++) {
            fn(context, task, 0);
        }
        return;
    }
    pool->fn = fn;
    pool->context = context;
    pool->num_tasks = num_tasks;
    atomic_store_explicit(&pool->next_task, 0, memory_order_relaxed);
    publish(pool, LOOP_OPEN);
    run_tasks(pool, 0);
    uint64_t loop = atomic_fetch_and(&pool->loop, ~(uint64_t)LOOP_OPEN);
    for (int turn = 0; loop & LOOP_ACTIVE; turn++) {
        if (turn < CALLER_TURNS) {
            CPU_RELAX();
        } else {
            sched_yield();
        }
        loop = atomic_load_explicit(&pool->loop, memory_order_acquire);
    }
}
