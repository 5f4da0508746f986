/* staging.c - see staging.h. */
#include "model/staging.h"

#include <string.h>
#include <sys/mman.h>

#include "base/sys.h"
#include "kernels/ops.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; elsewhere refused, and the copy itself brings the pages */
#endif

enum { RANGE_BYTES = 64 << 20, TASK_BYTES = 1 << 20, PAGE = 4096 };

typedef struct mf_staged {
    size_t at, bytes; /* in the block */
    const uint8_t *from;
    size_t stride, row_bytes;
} mf_staged;

/* One range of the image. */
typedef struct range {
    const mf_staging *staging;
    uint8_t *room;
    size_t at, end, total;
} range;

void mf_staging_close(mf_staging *s)
{
    mf_free(s->pieces);
    *s = (mf_staging){ 0 };
}

mf_status mf_staging_add(mf_staging *s, size_t at, const void *from, size_t stride, size_t row_bytes, size_t num_rows,
                         mf_error *err)
{
    if (row_bytes == 0 || num_rows == 0) {
        return MF_OK;
    }
    if (s->num == s->capacity) {
        const size_t capacity = s->capacity ? s->capacity * 2 : 1024;
        mf_staged *pieces = mf_alloc_array(capacity, sizeof *pieces);
        if (!pieces) {
            return mf_fail(err, MF_ERR_NOMEM, "weights: out of memory for a list of %zu parts", capacity);
        }
        if (s->num > 0) {
            memcpy(pieces, s->pieces, s->num * sizeof *pieces);
        }
        mf_free(s->pieces);
        s->pieces = pieces;
        s->capacity = capacity;
    }
    const bool is_whole = num_rows == 1 || stride == row_bytes;
    s->pieces[s->num++] = (mf_staged){ .at = at,
                                       .bytes = row_bytes * num_rows,
                                       .from = from,
                                       .stride = is_whole ? row_bytes * num_rows : stride,
                                       .row_bytes = is_whole ? row_bytes * num_rows : row_bytes };
    return MF_OK;
}

/* ---- a range's image ---- */

/* The first piece that ends behind `at`. */
static size_t find_piece(const mf_staging *s, size_t at)
{
    size_t low = 0, high = s->num;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (s->pieces[middle].at + s->pieces[middle].bytes <= at) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static const uint8_t *source_of(const mf_staged *p, size_t offset)
{
    return p->from + offset / p->row_bytes * p->stride + offset % p->row_bytes;
}

/* A hint: what it cannot be given for is read all the same. */
static void advise(const uint8_t *from, size_t bytes, int advice)
{
    const uintptr_t start = (uintptr_t)from / PAGE * PAGE, end = ((uintptr_t)from + bytes + PAGE - 1) / PAGE * PAGE;
    (void)madvise((void *)start, end - start, advice);
}

/* For each run of the image's bytes [at, end) that lies together in the host's memory. */
static void each_run(const mf_staging *s, size_t at, size_t end,
                     void (*fn)(void *context, size_t at, const uint8_t *from, size_t bytes), void *context)
{
    for (size_t i = find_piece(s, at); i < s->num && s->pieces[i].at < end; i++) {
        const mf_staged *p = &s->pieces[i];
        size_t offset = at > p->at ? at - p->at : 0;
        const size_t stop = p->at + p->bytes < end ? p->bytes : end - p->at;
        while (offset < stop) {
            const size_t left = p->row_bytes - offset % p->row_bytes,
                         bytes = left < stop - offset ? left : stop - offset;
            fn(context, p->at + offset, source_of(p, offset), bytes);
            offset += bytes;
        }
    }
}

static void copy_run(void *context, size_t at, const uint8_t *from, size_t bytes)
{
    const range *r = context;
    if (bytes >= PAGE) {
        advise(from, bytes, MADV_POPULATE_READ);
    }
    memcpy(r->room + (at - r->at), from, bytes);
}

static void ask_for_run(void *context, size_t at, const uint8_t *from, size_t bytes)
{
    (void)context;
    (void)at;
    if (bytes >= PAGE) {
        advise(from, bytes, MADV_WILLNEED);
    }
}

static void fill_task(void *context, int64_t task, int32_t thread)
{
    range *r = context;
    const size_t at = r->at + (size_t)task * TASK_BYTES, end = at + TASK_BYTES < r->end ? at + TASK_BYTES : r->end;
    const size_t later = at + RANGE_BYTES, later_end = end + RANGE_BYTES < r->total ? end + RANGE_BYTES : r->total;
    (void)thread;
    if (later < later_end) {
        each_run(r->staging, later, later_end, ask_for_run, NULL);
    }
    each_run(r->staging, at, end, copy_run, r);
}

/* ---- all of it ---- */

static mf_status tell(const mf_progress *progress, size_t done, size_t total, int64_t start_ns, int64_t *last_ns,
                      mf_error *err)
{
    const int64_t now = mf_now_ns();
    if (!progress->fn || (now - *last_ns < 100000000 && done < total)) {
        return MF_OK;
    }
    *last_ns = now;
    const mf_progress_info info = { .what = "loading to the device",
                                    .bytes_done = (int64_t)done,
                                    .bytes_total = (int64_t)total,
                                    .seconds = (double)(now - start_ns) * 1e-9 };
    return progress->fn(progress->context, &info) ? MF_OK : mf_fail(err, MF_ERR_CANCELLED, "loading was cancelled");
}

mf_status mf_staging_run(const mf_staging *s, mf_device *device, void *block, size_t total, const mf_progress *progress,
                         mf_error *err)
{
    const mf_device_memory_ops *memory = device->ops->memory;
    const size_t room = total < RANGE_BYTES ? total : RANGE_BYTES;
    const int64_t start_ns = mf_now_ns();
    int64_t last_ns = 0;
    void *rooms[2] = { NULL, NULL };
    mf_status status = memory->alloc_host(device, room, &rooms[0], err);
    status = status == MF_OK ? memory->alloc_host(device, room, &rooms[1], err) : status;
    for (size_t at = 0, turn = 0; status == MF_OK && at < total; at += RANGE_BYTES, turn = 1 - turn) {
        range r = { .staging = s,
                    .room = rooms[turn],
                    .at = at,
                    .end = at + RANGE_BYTES < total ? at + RANGE_BYTES : total,
                    .total = total };
        mf_pool_run(device->pool, (int64_t)((r.end - at + TASK_BYTES - 1) / TASK_BYTES), fill_task, &r);
        status = mf_device_synchronize(device, err); /* the range before, which left while this one was made */
        status = status == MF_OK ? memory->copy_async(device, (uint8_t *)block + at, r.room, r.end - at, err) : status;
        status = status == MF_OK ? tell(progress, r.end, total, start_ns, &last_ns, err) : status;
    }
    mf_error ignored;
    const mf_status ended = mf_device_synchronize(device, status == MF_OK ? err : &ignored);
    memory->release_host(device, rooms[0]);
    memory->release_host(device, rooms[1]);
    return status == MF_OK ? ended : status;
}
