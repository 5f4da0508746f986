/* text_worker.c - see text_worker.h.  One ring of jobs: [first, ran) have run and wait for the pump, [ran, last) wait
 * to run. */
#include "server/text_worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/sys.h"
#include "base/threads.h"

struct mf_text_worker {
    pthread_t thread;
    bool has_thread;
    int wake_fd;
    pthread_mutex_t lock;
    pthread_cond_t come;
    /* guarded by lock */
    mf_text_job *jobs; /* [max_jobs] */
    size_t max_jobs, max_bytes;
    size_t first, ran, last; /* counts since open */
    size_t bytes;
    bool stop;
};

static void *work(void *context)
{
    mf_text_worker *w = context;
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        if (w->ran == w->last) {
            pthread_cond_wait(&w->come, &w->lock);
            continue;
        }
        mf_text_job job = w->jobs[w->ran % w->max_jobs];
        pthread_mutex_unlock(&w->lock);
        job.run(job.data);
        pthread_mutex_lock(&w->lock);
        w->ran++;
        uint64_t one = 1;
        (void)!write(w->wake_fd, &one, sizeof one);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

mf_status mf_text_worker_open(int32_t max_jobs, size_t max_bytes, mf_text_worker **out, mf_error *err)
{
    *out = NULL;
    mf_text_worker *w = mf_alloc_zero(sizeof *w);
    mf_text_job *jobs = mf_alloc_array((size_t)max_jobs, sizeof *jobs);
    if (!w || !jobs) {
        mf_free(w);
        mf_free(jobs);
        return mf_fail(err, MF_ERR_NOMEM, "text worker: out of memory");
    }
    w->jobs = jobs;
    w->max_jobs = (size_t)max_jobs;
    w->max_bytes = max_bytes;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->come, NULL);
    w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int failed = w->wake_fd < 0 ? errno : mf_thread_start(&w->thread, "mf-text", work, w);
    if (failed) {
        mf_text_worker_close(&w);
        return mf_fail(err, MF_ERR_IO, "text worker: %s", strerror(failed));
    }
    w->has_thread = true;
    *out = w;
    return MF_OK;
}

void mf_text_worker_close(mf_text_worker **worker)
{
    mf_text_worker *w = *worker;
    if (!w) {
        return;
    }
    if (w->has_thread) {
        pthread_mutex_lock(&w->lock);
        w->stop = true;
        pthread_cond_signal(&w->come);
        pthread_mutex_unlock(&w->lock);
        pthread_join(w->thread, NULL);
    }
    for (; w->first < w->last; w->first++) {
        const mf_text_job *job = &w->jobs[w->first % w->max_jobs];
        job->done(job->data);
    }
    if (w->wake_fd >= 0) {
        close(w->wake_fd);
    }
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->come);
    mf_free(w->jobs);
    mf_free(w);
    *worker = NULL;
}

mf_status mf_text_worker_submit(mf_text_worker *w, const mf_text_job *job, mf_error *err)
{
    pthread_mutex_lock(&w->lock);
    bool is_full = w->last - w->first == w->max_jobs || (w->last > w->first && job->bytes > w->max_bytes - w->bytes);
    if (!is_full) {
        w->jobs[w->last++ % w->max_jobs] = *job;
        w->bytes = w->bytes + job->bytes < w->max_bytes ? w->bytes + job->bytes : w->max_bytes;
        pthread_cond_signal(&w->come);
    }
    pthread_mutex_unlock(&w->lock);
    return is_full ? mf_fail(err, MF_ERR_BUSY, "too many requests wait to be read") : MF_OK;
}

int mf_text_worker_wake_fd(const mf_text_worker *w)
{
    return w->wake_fd;
}

void mf_text_worker_pump(mf_text_worker *w)
{
    uint64_t count;
    (void)!read(w->wake_fd, &count, sizeof count);
    for (;;) {
        pthread_mutex_lock(&w->lock);
        bool has_job = w->first < w->ran;
        mf_text_job job = { 0 };
        if (has_job) {
            job = w->jobs[w->first++ % w->max_jobs];
            w->bytes = w->first == w->last ? 0 : w->bytes > job.bytes ? w->bytes - job.bytes : 0;
        }
        pthread_mutex_unlock(&w->lock);
        if (!has_job) {
            return;
        }
        job.done(job.data);
    }
}
