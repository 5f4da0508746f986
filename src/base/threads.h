/* threads.h - a persistent pool for parallel loops.  Workers spin briefly for the next loop, then sleep.
 *
 * Which thread runs which task is not fixed; kernels therefore write disjoint outputs whose values depend on the task
 * index alone, and results do not depend on the number of threads. */
#ifndef MF_BASE_THREADS_H
#define MF_BASE_THREADS_H

#include <stdint.h>

#include "base/error.h"

typedef struct mf_pool mf_pool;

typedef void (*mf_task_fn)(void *context, int64_t task, int32_t thread); /* thread in [0, num_threads) */

mf_status mf_pool_open(int32_t num_threads, mf_pool **pool, mf_error *err); /* the caller is thread 0 */
void mf_pool_close(mf_pool **pool);
int32_t mf_pool_num_threads(const mf_pool *pool); /* 1 for NULL */

/* Runs fn for task 0..num_tasks-1 and returns when all are done.  Not reentrant.  pool NULL: a plain loop. */
void mf_pool_run(mf_pool *pool, int64_t num_tasks, mf_task_fn fn, void *context);

#endif
