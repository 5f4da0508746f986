/* weights_convert.c - GPTQ's and AWQ's codes into the rows that kernels read (INT4_GROUP), int8 codes without their
 * zero points, and experts stored by columns: exact, in parallel, into one block, with progress.  The stored pages are
 * given back behind it.
 *
 * GPTQ holds a word of eight columns' codes per row [k/8, n]: a row's words only have to be gathered.  AWQ holds a word
 * of eight rows' codes per column [k, n/8], row r of the eight in nibble (0 4 1 5 2 6 3 7)[r].  Zero points and scales
 * are [groups, n] in both and become [n, groups]; zero points one byte each. */
#include <string.h>
#include <sys/mman.h>

#include "base/cpu_features.h"
#include "base/sys.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "model/weights_impl.h"

enum { TASK_ROWS = 64, TASKS_PER_RUN = 4096, PAGE = 4096 };

static const uint8_t awq_nibbles[8] = { 0, 4, 1, 5, 2, 6, 3, 7 };

typedef struct converter {
    mf_conversion **jobs;
    int64_t num_jobs, num_tasks, window_first;
    uint8_t *block;
    size_t bytes;
    int64_t overflowed; /* of a job whose result does not fit; -1: none */
} converter;

static uint32_t word_at(const uint8_t *words, int64_t i)
{
    uint32_t w;
    memcpy(&w, words + 4 * i, 4);
    return w;
}

static int64_t row_bytes(const mf_matrix *m)
{
    return m->row_stride / 2;
}

static void gather_gptq(const mf_conversion *job, uint8_t *codes, int64_t first, int64_t count)
{
    const mf_matrix *m = job->target;
    for (int64_t w = 0; w < m->k / 8; w++) {
        for (int64_t r = first; r < first + count; r++) {
            const uint32_t word = word_at(job->codes, w * m->n + r);
            memcpy(codes + r * row_bytes(m) + 4 * w, &word, 4);
        }
    }
}

/* first and count are multiples of eight. */
static void transpose_awq(const mf_conversion *job, uint8_t *codes, int64_t first, int64_t count)
{
    const mf_matrix *m = job->target;
    for (int64_t k = 0; k < m->k; k += 2) {
        for (int64_t r = first; r < first + count; r += 8) {
            const uint32_t even = word_at(job->codes, k * (m->n / 8) + r / 8);
            const uint32_t odd = word_at(job->codes, (k + 1) * (m->n / 8) + r / 8);
            for (int i = 0; i < 8; i++) {
                const int shift = 4 * awq_nibbles[i];
                codes[(r + i) * row_bytes(m) + k / 2] = (uint8_t)((even >> shift & 15) | (odd >> shift & 15) << 4);
            }
        }
    }
}

static void transpose_grid(const mf_conversion *job, uint8_t *block, int64_t first, int64_t count)
{
    const mf_matrix *m = job->target;
    const int64_t columns = m->scale_row_stride;
    const size_t size = mf_dtype_size(m->scale_dtype);
    for (int64_t r = first; r < first + count; r++) {
        const int shift = 4 * (job->kind == MF_CONVERT_AWQ ? awq_nibbles[r % 8] : (int)(r % 8));
        for (int64_t g = 0; g < columns; g++) {
            memcpy(block + job->scales_at + (size_t)(r * columns + g) * size,
                   job->scales + (size_t)(g * m->n + r) * size, size);
            if (job->zeros) {
                const uint32_t word = word_at(job->zeros, g * (m->n / 8) + r / 8);
                block[job->zeros_at + (size_t)(r * columns + g)] = (uint8_t)((word >> shift & 15) + job->zero_plus);
            }
        }
    }
}

/* false: a code less its zero point is no int8. */
static bool take_off_zeros(const mf_conversion *job, uint8_t *codes, int64_t first, int64_t count)
{
    const mf_matrix *m = job->target;
    bool fits = true;
    for (int64_t r = first; r < first + count; r++) {
        const int zero = (int8_t)job->zeros[m->scale_row_stride ? r : 0];
        for (int64_t k = 0; k < m->k; k++) {
            const int code = (int8_t)job->codes[r * m->k + k] - zero;
            fits &= code >= -128 && code <= 127;
            codes[r * m->k + k] = (uint8_t)code;
        }
    }
    return fits;
}

static int64_t element_bytes(const mf_matrix *m)
{
    return m->format == MF_FORMAT_F32 ? 4 : 2;
}

static void transpose_columns(const mf_conversion *job, uint8_t *rows, int64_t first, int64_t count)
{
    const mf_matrix *m = job->target;
    const int64_t size = element_bytes(m), step = job->column_step;
    for (int64_t k = 0; k < m->k; k++) {
        const uint8_t *from = job->codes + k * job->stored_columns * size;
        uint8_t *to = rows + k * size;
        for (int64_t r = first; size == 2 && r < first + count; r++) {
            memcpy(to + r * m->k * 2, from + r * step * 2, 2);
        }
        for (int64_t r = first; size == 4 && r < first + count; r++) {
            memcpy(to + r * m->k * 4, from + r * step * 4, 4);
        }
    }
}

static void run_task(void *context, int64_t task, int32_t thread)
{
    converter *c = context;
    (void)thread;
    task += c->window_first;
    int64_t low = 0, high = c->num_jobs - 1; /* the last job whose first task is <= task */
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (c->jobs[middle]->first_task <= task) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    const mf_conversion *job = c->jobs[low];
    const int64_t first = (task - job->first_task) * TASK_ROWS;
    const int64_t count = job->target->n - first < TASK_ROWS ? job->target->n - first : TASK_ROWS;
    uint8_t *codes = c->block + job->codes_at;
    if (job->kind == MF_CONVERT_INT8_ZEROS) {
        if (!take_off_zeros(job, codes, first, count)) {
            __atomic_store_n(&c->overflowed, low, __ATOMIC_RELAXED);
        }
        return;
    }
    if (job->kind == MF_CONVERT_COLUMNS) {
        transpose_columns(job, codes, first, count);
        return;
    }
    if (job->kind == MF_CONVERT_GPTQ) {
        gather_gptq(job, codes, first, count);
    } else {
        transpose_awq(job, codes, first, count);
    }
    transpose_grid(job, c->block, first, count);
}

static size_t take(converter *c, int64_t count, size_t size)
{
    const size_t place = c->bytes;
    c->bytes += ((size_t)count * size + 63) & ~(size_t)63;
    return place;
}

static void lay_out(converter *c, mf_conversion *job)
{
    const mf_matrix *m = job->target;
    job->first_task = c->num_tasks;
    c->num_tasks += mf_div_up(m->n, TASK_ROWS);
    if (job->kind == MF_CONVERT_INT8_ZEROS) {
        job->codes_at = take(c, m->n * m->k, 1);
        return;
    }
    if (job->kind == MF_CONVERT_COLUMNS) {
        job->codes_at = take(c, m->n * m->k, (size_t)element_bytes(m));
        return;
    }
    job->codes_at = take(c, m->n * row_bytes(m), 1);
    job->scales_at = take(c, m->n * m->scale_row_stride, mf_dtype_size(m->scale_dtype));
    job->zeros_at = job->zeros ? take(c, m->n * m->scale_row_stride, 1) : 0;
}

/* Pages of the checkpoint whose codes have been read and are not needed again. */
static void drop_source(const mf_conversion *job)
{
    const mf_matrix *m = job->target;
    const bool by_columns = job->kind == MF_CONVERT_COLUMNS;
    const size_t codes = (size_t)m->n * (size_t)(job->kind == MF_CONVERT_INT8_ZEROS ? m->k : m->k / 2);
    const uintptr_t first = (uintptr_t)(by_columns ? job->done_with : job->codes);
    const uintptr_t begin = (first + PAGE - 1) / PAGE * PAGE,
                    end = (first + (by_columns ? job->done_bytes : codes)) / PAGE * PAGE;
    if (end > begin) {
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
}

static mf_status run_jobs(converter *c, const mf_weights_options *options, mf_error *err)
{
    const int32_t threads = options->num_threads > 0 ? options->num_threads : mf_cpu_features_get()->num_cores;
    const mf_progress *progress = &options->progress;
    mf_pool *pool = NULL;
    MF_TRY(mf_pool_open(threads, &pool, err));
    mf_status status = MF_OK;
    const int64_t start = mf_now_ns();
    int64_t last = start - 1000000000, dropped = 0;
    for (int64_t done = 0; done < c->num_tasks && status == MF_OK;) {
        const int64_t n = c->num_tasks - done < TASKS_PER_RUN ? c->num_tasks - done : TASKS_PER_RUN;
        c->window_first = done;
        mf_pool_run(pool, n, run_task, c);
        done += n;
        while (options->use_map && dropped < c->num_jobs &&
               (dropped + 1 < c->num_jobs ? c->jobs[dropped + 1]->first_task : c->num_tasks) <= done) {
            drop_source(c->jobs[dropped++]);
        }
        const int64_t now = mf_now_ns();
        if (c->overflowed >= 0) {
            status = mf_fail(err, MF_ERR_UNSUPPORTED,
                             "tensor \"%.256s\": codes less their zero points do not fit in eight bits",
                             c->jobs[c->overflowed]->name);
        } else if (progress->fn && (now - last >= 100000000 || done == c->num_tasks)) {
            last = now;
            mf_progress_info info = { .what = "converting",
                                      .bytes_total = (int64_t)c->bytes,
                                      .bytes_done = (int64_t)((double)c->bytes * (double)done / (double)c->num_tasks),
                                      .seconds = (double)(now - start) * 1e-9 };
            if (!progress->fn(progress->context, &info)) {
                status = mf_fail(err, MF_ERR_CANCELLED, "converting was cancelled");
            }
        }
    }
    mf_pool_close(&pool);
    return status;
}

mf_status mf_weights_convert(mf_weights *weights, const mf_weights_options *options, mf_error *err)
{
    converter c = { .overflowed = -1 };
    for (const mf_conversion *job = weights->conversions; job; job = job->next) {
        c.num_jobs++;
    }
    if (c.num_jobs == 0) {
        return MF_OK;
    }
    c.jobs = mf_alloc_array((size_t)c.num_jobs, sizeof *c.jobs);
    if (!c.jobs) {
        return mf_fail(err, MF_ERR_NOMEM, "converting weights: out of memory");
    }
    int64_t at = c.num_jobs; /* the list is last first; the files are read forwards */
    for (mf_conversion *job = weights->conversions; job; job = job->next) {
        c.jobs[--at] = job;
    }
    for (int64_t i = 0; i < c.num_jobs; i++) {
        lay_out(&c, c.jobs[i]);
    }
    mf_status status = MF_OK;
    const int64_t available = mf_available_memory();
    if (available > 0 && c.bytes > (uint64_t)available) {
        status = mf_fail(err, MF_ERR_NOMEM, "converting weights takes %.1f GiB; %.1f GiB of memory are available",
                         (double)c.bytes * 0x1p-30, (double)available * 0x1p-30);
        goto done;
    }
    weights->converted = mf_alloc_huge(c.bytes, options->numa);
    c.block = weights->converted;
    if (!c.block) {
        status =
            mf_fail(err, MF_ERR_NOMEM, "converting weights: out of memory for %.1f GiB", (double)c.bytes * 0x1p-30);
        goto done;
    }
    MF_TRY_GOTO(run_jobs(&c, options, err), done);
    for (int64_t i = 0; i < c.num_jobs; i++) {
        mf_matrix *m = c.jobs[i]->target;
        m->data = c.block + c.jobs[i]->codes_at;
        if (c.jobs[i]->kind != MF_CONVERT_INT8_ZEROS && c.jobs[i]->kind != MF_CONVERT_COLUMNS) {
            m->scale = c.block + c.jobs[i]->scales_at;
            m->zero = c.jobs[i]->zeros ? c.block + c.jobs[i]->zeros_at : NULL;
        }
    }
done:
    mf_free(c.jobs);
    return status;
}
