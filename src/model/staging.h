/* staging.h - many pieces of the host's memory to one block of a device, at the speed of the link.
 *
 * The block's image is made a range at a time in page-locked memory, by all threads of the device's pool; while one range
 * travels the next is made.  Pieces that lie in mapped files come from the disk there: each thread asks for its pages, and for
 * those of the range after. */
#ifndef MF_MODEL_STAGING_H
#define MF_MODEL_STAGING_H

#include "base/error.h"
#include "base/progress.h"
#include "moefuse.h"

typedef struct mf_staging {
    struct mf_staged *pieces;
    size_t num, capacity;
} mf_staging;

void mf_staging_close(mf_staging *staging);

/* num_rows rows of row_bytes, `stride` bytes apart, to the block's bytes from `at` on, without gaps; in ascending order. */
mf_status mf_staging_add(mf_staging *staging, size_t at, const void *from, size_t stride, size_t row_bytes, size_t num_rows,
                         mf_error *err);

/* Sends everything; `block` has total_bytes. */
mf_status mf_staging_run(const mf_staging *staging, mf_device *device, void *block, size_t total_bytes,
                         const mf_progress *progress, mf_error *err);

#endif
