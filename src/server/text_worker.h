/* text_worker.h - a thread for what would hold up the I/O thread: parsing long bodies, templates, tokenizing, grammars.
 *
 * Jobs run one after the other and come back in order; the queue is bounded in jobs and in bytes of the bodies they
 * hold. */
#ifndef MF_SERVER_TEXT_WORKER_H
#define MF_SERVER_TEXT_WORKER_H

#include "base/error.h"

typedef struct mf_text_worker mf_text_worker;

typedef struct mf_text_job {
    void (*run)(void *data); /* on the worker's thread */
    void (*done)(
        void *data); /* on the thread that calls mf_text_worker_pump; also when the worker closes before it ran */
    void *data;
    size_t bytes; /* that it holds, for the limit */
} mf_text_job;

mf_status mf_text_worker_open(int32_t max_jobs, size_t max_bytes, mf_text_worker **worker, mf_error *err);
void mf_text_worker_close(mf_text_worker **worker);

/* MF_ERR_BUSY: as many jobs or bytes wait as may; `done` is then not called.  A job of any size is taken when none
 * waits. */
mf_status mf_text_worker_submit(mf_text_worker *worker, const mf_text_job *job, mf_error *err);
int mf_text_worker_wake_fd(const mf_text_worker *worker); /* readable when jobs are done */
void mf_text_worker_pump(mf_text_worker *worker);

#endif
