/* threads.c - the pool: see threads.h.
 *
 * A loop is published by bumping `epoch`; workers take task indices from a shared counter and count themselves out. */
#include "base/threads.h"

#include <pthread.h>
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

typedef struct mf_worker {
    mf_pool *pool;
    pthread_t thread;
    int32_t index;
} mf_worker;

struct mf_pool {
    int32_t num_threads;
    int32_t num_started;
    mf_worker *workers; /* [num_threads - 1] */

    /* The loop in progress; written by the caller before epoch moves. */
    mf_task_fn fn;
    void *context;
    int64_t num_tasks;
    _Alignas(64) atomic_uint_fast64_t epoch;
    _Alignas(64) atomic_int_fast64_t next_task;
    _Alignas(64) atomic_int_fast32_t num_busy; /* workers that have not left the current loop */
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

static uint64_t wait_for_epoch(mf_pool *pool, uint64_t seen)
{
    for (int turn = 0; turn < SPIN_TURNS; turn++) {
        uint64_t epoch = atomic_load_explicit(&pool->epoch, memory_order_acquire);
        if (epoch != seen) {
            return epoch;
        }
        CPU_RELAX();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->num_sleeping, 1);
    uint64_t epoch;
    while ((epoch = atomic_load(&pool->epoch)) == seen) {
        pthread_cond_wait(&pool->wake, &pool->mutex);
    }
    atomic_fetch_sub(&pool->num_sleeping, 1);
    pthread_mutex_unlock(&pool->mutex);
    return epoch;
}

static void *worker_main(void *argument)
{
    mf_worker *worker = argument;
    mf_pool *pool = worker->pool;
    uint64_t seen = 0;
    for (;;) {
        seen = wait_for_epoch(pool, seen);
        if (atomic_load(&pool->quit)) {
            return NULL;
        }
        run_tasks(pool, worker->index);
        atomic_fetch_sub_explicit(&pool->num_busy, 1, memory_order_release);
    }
}

static void publish(mf_pool *pool)
{
    atomic_fetch_add(&pool->epoch, 1); /* seq_cst: ordered before the look at num_sleeping */
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
    publish(pool);
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
    atomic_store_explicit(&pool->num_busy, pool->num_threads - 1, memory_order_relaxed);
    publish(pool);
    run_tasks(pool, 0);
    /* Workers that are late must leave before the next loop's fields are written. */
    for (int turn = 0; atomic_load_explicit(&pool->num_busy, memory_order_acquire) > 0; turn++) {
        if (turn < SPIN_TURNS) {
            CPU_RELAX();
        } else {
            sched_yield();
        }
    }
}
