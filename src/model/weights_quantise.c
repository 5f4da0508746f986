/* weights_quantise.c - weights quantised while loading: linear layers, experts and the output head, stored unquantised in
 * the checkpoint, become INT8_CHANNEL, INT4_GROUP (groups of 32) or FP8_BLOCK in memory of our own, by quantise_rows.c.
 *
 * The head is int8 with int4 too: its error reaches every token's choice directly. */
#include <string.h>
#include <sys/mman.h>

#include "base/cpu_features.h"
#include "base/sys.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "model/quantise_rows.h"
#include "model/weights_impl.h"

enum { INT4_GROUP = 32, TASK_ROWS = MF_QUANTISE_ROWS, TASKS_PER_RUN = 4096, PAGE = 4096 };

typedef struct job {
    mf_matrix from, to;
    mf_matrix *target;
    int64_t first_task;
} job;

typedef struct quantiser {
    mf_weights *weights;
    mf_quantization quantization;
    uint8_t *block; /* NULL: counting */
    size_t bytes;
    job *jobs;
    int64_t num_jobs, num_tasks;
    int64_t window_first; /* first task of the run at hand */
} quantiser;

const char *mf_quantization_name(mf_quantization quantization)
{
    static const char *const names[] = { "none", "int8", "int4", "fp8" };
    return (unsigned)quantization < sizeof names / sizeof *names ? names[quantization] : "?";
}

mf_status mf_quantization_parse(const char *name, mf_quantization *quantization, mf_error *err)
{
    for (int i = MF_QUANTIZATION_NONE; i <= MF_QUANTIZATION_FP8; i++) {
        if (!name || strcmp(name, mf_quantization_name((mf_quantization)i)) == 0) {
            *quantization = (mf_quantization)i;
            return MF_OK;
        }
    }
    return mf_fail(err, MF_ERR_INVALID, "quantization \"%.20s\": expected none, int8, int4 or fp8", name);
}

static mf_format format_for(mf_quantization quantization, const mf_wanted *x)
{
    if (quantization == MF_QUANTIZATION_INT8 || x->role == MF_ROLE_LM_HEAD) {
        return MF_FORMAT_INT8_CHANNEL;
    }
    return quantization == MF_QUANTIZATION_INT4 ? MF_FORMAT_INT4_GROUP : MF_FORMAT_FP8_BLOCK;
}

/* Not kv_b (attention takes it apart), not decay and learning rate of linear layers' heads (a few rows, and sensitive), not
 * fused queries, keys and values whose parts do not begin where a block of scales does. */
bool mf_weights_may_quantise(const mf_model_config *config, const mf_wanted *x, mf_format format)
{
    const int64_t kv_rows = config->num_kv_heads * config->head_dim;
    const bool cuts_blocks = x->role == MF_ROLE_QKV_PROJ && format == MF_FORMAT_FP8_BLOCK &&
                             (mf_model_config_q_size(config) % 128 != 0 || kv_rows % 128 != 0);
    return x->kind == MF_WANT_LINEAR && x->role != MF_ROLE_KV_B_PROJ && x->role != MF_ROLE_LINEAR_BA && !cuts_blocks;
}

/* What becomes codes: not the embedding (rows are read one by one), not the router (it chooses), not what is quantised
 * already. */
static bool is_chosen(const quantiser *q, const mf_wanted *x)
{
    const bool tied = x->role == MF_ROLE_LM_HEAD && x->matrix->data == q->weights->embed_tokens.data;
    const bool linear = mf_weights_may_quantise(q->weights->config, x, format_for(q->quantization, x));
    return (linear || x->role == MF_ROLE_LM_HEAD) && !tied && x->matrix->data && x->matrix->format <= MF_FORMAT_F16;
}

static uint8_t *take(quantiser *q, int64_t count, size_t size)
{
    uint8_t *place = q->block ? q->block + q->bytes : NULL;
    q->bytes += ((size_t)count * size + 63) & ~(size_t)63;
    return place;
}

static mf_status add_job(void *context, const mf_wanted *x)
{
    quantiser *q = context;
    if (x->kind == MF_WANT_VECTOR || !is_chosen(q, x)) {
        return MF_OK;
    }
    const mf_matrix *from = x->matrix;
    mf_matrix to;
    int64_t code_bytes, scale_bytes;
    mf_quantise_layout(format_for(q->quantization, x), from->n, from->k, INT4_GROUP, 2, &to, &code_bytes, &scale_bytes);
    uint8_t *codes = take(q, code_bytes, 1);
    uint8_t *scales = take(q, scale_bytes, 1);
    if (!q->block) {
        q->num_jobs++;
        return MF_OK;
    }
    to.data = codes;
    to.scale = scales;
    q->jobs[q->num_jobs++] = (job){ .from = *from, .to = to, .target = x->matrix, .first_task = q->num_tasks };
    q->num_tasks += mf_div_up(from->n, TASK_ROWS);
    return MF_OK;
}

typedef struct run_context {
    const quantiser *q;
    float *rows; /* [threads][TASK_ROWS * most columns] */
    int64_t row_floats;
} run_context;

static void run_task(void *context, int64_t task, int32_t thread)
{
    const run_context *run = context;
    const quantiser *q = run->q;
    task += q->window_first;
    int64_t low = 0, high = q->num_jobs - 1; /* the last job whose first task is <= task */
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (q->jobs[middle].first_task <= task) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    const job *j = &q->jobs[low];
    const int64_t first = (task - j->first_task) * TASK_ROWS;
    const int64_t count = j->to.n - first < TASK_ROWS ? j->to.n - first : TASK_ROWS;
    mf_quantise_rows(&j->from, &j->to, first, count, run->rows + thread * run->row_floats);
}

static void *page_after(const void *p)
{
    return (void *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE);
}

/* Pages of the checkpoint that have been read and are not needed again. */
static void drop_source(const job *j)
{
    const uintptr_t begin = (uintptr_t)page_after(j->from.data);
    const uintptr_t end = ((uintptr_t)j->from.data + (uintptr_t)(j->from.n * j->from.row_stride *
                                                                 (j->from.format == MF_FORMAT_F32 ? 4 : 2))) / PAGE * PAGE;
    if (end > begin) {
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
}

static mf_status run_jobs(quantiser *q, const mf_weights_options *options, mf_error *err)
{
    const int32_t threads = options->num_threads > 0 ? options->num_threads : mf_cpu_features_get()->num_cores;
    const bool is_mapped = q->weights->checkpoint && options->use_map;
    const mf_progress *progress = &options->progress;
    run_context run = { .q = q };
    for (int64_t i = 0; i < q->num_jobs; i++) {
        const int64_t floats = mf_quantise_scratch(&q->jobs[i].to);
        run.row_floats = floats > run.row_floats ? floats : run.row_floats;
    }
    mf_pool *pool = NULL;
    MF_TRY(mf_pool_open(threads, &pool, err));
    mf_status status = MF_OK;
    run.rows = mf_alloc_array((size_t)threads, (size_t)run.row_floats * sizeof(float));
    if (!run.rows) {
        status = mf_fail(err, MF_ERR_NOMEM, "--quantization: out of memory");
    }
    const int64_t start = mf_now_ns();
    int64_t last = start - 1000000000, dropped = 0;
    for (int64_t done = 0; done < q->num_tasks && status == MF_OK;) {
        const int64_t n = q->num_tasks - done < TASKS_PER_RUN ? q->num_tasks - done : TASKS_PER_RUN;
        q->window_first = done;
        mf_pool_run(pool, n, run_task, &run);
        done += n;
        while (is_mapped && dropped < q->num_jobs &&
               (dropped + 1 < q->num_jobs ? q->jobs[dropped + 1].first_task : q->num_tasks) <= done) {
            drop_source(&q->jobs[dropped++]);
        }
        const int64_t now = mf_now_ns();
        if (progress->fn && (now - last >= 100000000 || done == q->num_tasks)) {
            last = now;
            mf_progress_info info = { .what = "quantising",
                                      .bytes_total = (int64_t)q->bytes,
                                      .bytes_done = (int64_t)((double)q->bytes * (double)done / (double)q->num_tasks),
                                      .seconds = (double)(now - start) * 1e-9 };
            if (!progress->fn(progress->context, &info)) {
                status = mf_fail(err, MF_ERR_CANCELLED, "quantising was cancelled");
            }
        }
    }
    mf_free(run.rows);
    mf_pool_close(&pool);
    return status;
}

/* The jobs' results take their places, in the matrices and in the counts. */
static void place_results(quantiser *q)
{
    mf_weights_stats *stats = &q->weights->stats;
    for (int64_t i = 0; i < q->num_jobs; i++) {
        const job *j = &q->jobs[i];
        const int64_t before = mf_matrix_bytes(&j->from);
        const int64_t after = mf_matrix_bytes(&j->to);
        stats->bytes_by_format[j->from.format] -= before;
        stats->bytes_by_format[j->to.format] += after;
        stats->bytes_total += after - before;
        stats->bytes_converted += after;
        *j->target = j->to;
    }
}

mf_status mf_weights_quantise(mf_weights *weights, const mf_weights_options *options, mf_error *err)
{
    quantiser q = { .weights = weights, .quantization = options->quantization };
    MF_TRY(mf_tensor_map_walk(weights->config, weights, add_job, &q));
    if (q.num_jobs == 0) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "--quantization %s: the checkpoint's linear layers are quantised already",
                       mf_quantization_name(options->quantization));
    }
    const int64_t available = mf_available_memory();
    if (available > 0 && q.bytes > (uint64_t)available) {
        return mf_fail(err, MF_ERR_NOMEM, "--quantization %s: the weights take %.1f GiB; %.1f GiB of memory are available",
                       mf_quantization_name(options->quantization), (double)q.bytes * 0x1p-30, (double)available * 0x1p-30);
    }
    q.jobs = mf_alloc_array((size_t)q.num_jobs, sizeof *q.jobs);
    weights->quantised = mf_alloc_huge(q.bytes + 64, options->numa);
    if (!q.jobs || !weights->quantised) {
        mf_free(q.jobs);
        return mf_fail(err, MF_ERR_NOMEM, "--quantization %s: out of memory for %.1f GiB of weights",
                       mf_quantization_name(options->quantization), (double)q.bytes * 0x1p-30);
    }
    q.block = (uint8_t *)(((uintptr_t)weights->quantised + 63) & ~(uintptr_t)63);
    q.num_jobs = 0;
    q.bytes = 0;
    mf_status status = mf_tensor_map_walk(weights->config, weights, add_job, &q);
    if (status == MF_OK) {
        status = run_jobs(&q, options, err);
    }
    if (status == MF_OK) {
        place_results(&q);
    }
    mf_free(q.jobs);
    return status;
}
