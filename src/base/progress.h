/* progress.h - a callback for long work.  The caller draws; the work only counts. */
#ifndef MF_BASE_PROGRESS_H
#define MF_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct mf_progress_info {
    const char *what;            /* "loading" */
    int32_t files_done, files_total;
    int64_t bytes_done, bytes_total;
    double seconds;              /* since the work began */
} mf_progress_info;

/* Returns false to cancel: the work then ends with MF_ERR_CANCELLED and leaves nothing behind. */
typedef bool (*mf_progress_fn)(void *context, const mf_progress_info *info);

typedef struct mf_progress {
    mf_progress_fn fn; /* NULL = nobody watches */
    void *context;
} mf_progress;

#endif
