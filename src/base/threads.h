/* threads.h - a persistent pool for parallel loops.  Workers spin briefly for the next loop, then sleep; they may each be
 * kept on a CPU.
 *
 * Which thread runs which task is not fixed; kernels therefore write disjoint outputs whose values depend on the task
 * index alone, and results do not depend on the number of threads. */
#ifndef MF_BASE_THREADS_H
#define MF_BASE_THREADS_H

#include <pthread.h>
#include <stdint.h>

#include "base/error.h"

/* Of every thread that the libraries start: products of many tokens keep some 250 KiB beside them, and nothing recurses on input. */
enum { MF_THREAD_STACK_BYTES = 512 << 10 };

/* A thread with a stack of that size (tests under a sanitizer: what that needs); 0 or an errno value.  name: at most 15 bytes,
 * what `top -H` shows; a system that gives no names changes nothing else. */
int mf_thread_start(pthread_t *thread, const char *name, void *(*run)(void *context), void *context);

typedef struct mf_pool mf_pool;

typedef void (*mf_task_fn)(void *context, int64_t task, int32_t thread); /* thread in [0, num_threads) */

typedef struct mf_pool_options {
    int32_t num_threads; /* the caller, who is thread 0, included */
    const int32_t *cpus; /* [num_threads]: where each thread stays; NULL: where the system puts it.  The caller is moved too,
                            and released by mf_pool_close when it is the one who closes */
    int64_t spin_ns;     /* that a worker waits awake for the next loop; 0 = 50 us: longer than the gap between two ops of a
                            decode step, shorter than a scheduler's slice; negative = not at all */
} mf_pool_options;

mf_status mf_pool_open_with(const mf_pool_options *options, mf_pool **pool, mf_error *err);
mf_status mf_pool_open(int32_t num_threads, mf_pool **pool, mf_error *err); /* threads anywhere, spinning as said above */
void mf_pool_close(mf_pool **pool);
int32_t mf_pool_num_threads(const mf_pool *pool); /* 1 for NULL */
int32_t mf_pool_num_pinned(const mf_pool *pool);  /* threads that the system agreed to keep where they were asked to be */

/* Runs fn for task 0..num_tasks-1 and returns when all are done.  Not reentrant.  pool NULL: a plain loop. */
void mf_pool_run(mf_pool *pool, int64_t num_tasks, mf_task_fn fn, void *context);

#endif
