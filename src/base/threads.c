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

#include "base/sys.h"

#if defined(__x86_64__)
#define CPU_RELAX() __builtin_ia32_pause()
#else
#define CPU_RELAX() ((void)0)
#endif

/* About 20 to 50 us: longer than the gap between two ops of a decode step, shorter than a scheduler's slice. */
enum { SPIN_TURNS = 4000, MAX_THREADS = 256 };

#define LOOP_OPEN 0x80000000u
#define LOOP_ACTIVE 0x7fffffffu
#define LOOP_NUMBER_SHIFT 32

typedef struct mf_worker {
    mf_pool *pool;
    pthread_t thread;
    int32_t index;
} mf_worker;

struct mf_pool {
    int32_t num_threads;
    int32_t num_started;
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

/* Returns the loop word once its number differs from `seen`. */
static uint64_t wait_for_loop(mf_pool *pool, uint64_t seen)
{
    for (int turn = 0; turn < SPIN_TURNS; turn++) {
        uint64_t loop = atomic_load_explicit(&pool->loop, memory_order_acquire);
        if (loop >> LOOP_NUMBER_SHIFT != seen) {
            return loop;
        }
        CPU_RELAX();
    }
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

mf_status mf_pool_open(int32_t num_threads, mf_pool **out, mf_error *err)
{
    *out = NULL;
    if (num_threads < 1 || num_threads > MAX_THREADS) {
        return mf_fail(err, MF_ERR_INVALID, "threads: expected 1 to %d; got %d", MAX_THREADS, num_threads);
    }
    mf_pool *pool = mf_alloc_aligned(sizeof *pool);
    if (!pool) {
        return mf_fail(err, MF_ERR_NOMEM, "threads: out of memory");
    }
    pool->num_threads = num_threads;
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
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) {
            mf_pool_close(&pool);
            return mf_fail(err, MF_ERR_NOMEM, "threads: cannot start thread %d of %d", i + 1, num_threads);
        }
        pool->num_started++;
    }
    *out = pool;
    return MF_OK;
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
        if (turn < SPIN_TURNS) {
            CPU_RELAX();
        } else {
            sched_yield();
        }
        loop = atomic_load_explicit(&pool->loop, memory_order_acquire);
    }
}
