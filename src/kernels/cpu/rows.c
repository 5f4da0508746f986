/* rows.c - what the forward walk does to rows besides products: embedding, rotary embedding, cache writes, sums.  Each row
 * of a long prompt is a task's own; the bits are those of ref/dense.c. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/format.h"
#include "kernels/ref/ref_ops.h"

enum { TASK_FLOATS = 16384 };

/* Rows of one task, of row_floats each. */
static int64_t rows_per_task(int64_t row_floats)
{
    return row_floats >= TASK_FLOATS || row_floats < 1 ? 1 : TASK_FLOATS / row_floats;
}

typedef struct row_range {
    int64_t first, end;
} row_range;

static row_range range_of(int64_t task, int64_t per_task, int64_t num_rows)
{
    const int64_t first = task * per_task;
    return (row_range){ first, num_rows - first < per_task ? num_rows : first + per_task };
}

static void run_rows(mf_device *device, int64_t num_rows, int64_t row_floats, mf_task_fn fn, void *context)
{
    const int64_t per_task = rows_per_task(row_floats);
    mf_cpu_run(device, (double)num_rows * (double)row_floats, (num_rows + per_task - 1) / per_task, fn, context);
}

/* ---- embedding ---- */

typedef struct embed_call {
    const mf_cpu_kernels *kernels;
    const mf_matrix *table;
    const int32_t *ids;
    int64_t num_tokens;
    float *out;
    int64_t out_stride;
} embed_call;

static void run_embed(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const embed_call *call = context;
    const mf_matrix *table = call->table;
    const row_range range = range_of(task, rows_per_task(table->k), call->num_tokens);
    for (int64_t t = range.first; t < range.end; t++) {
        float *out = call->out + t * call->out_stride;
        if (table->format <= MF_FORMAT_F16) {
            const mf_dtype dtype = (const mf_dtype[]){ MF_F32, MF_BF16, MF_F16 }[table->format];
            call->kernels->load_row(mf_matrix_row(table, call->ids[t]), dtype, table->k, out);
        } else {
            mf_matrix_decode_row(table, call->ids[t], 0, table->k, out);
        }
    }
}

void mf_cpu_embed(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride)
{
    embed_call call = { .kernels = mf_cpu_kernels_of(device),
                        .table = table,
                        .ids = ids,
                        .num_tokens = num_tokens,
                        .out = out,
                        .out_stride = out_stride };
    run_rows(device, num_tokens, table->k, run_embed, &call);
}

/* ---- rotary embedding ---- */

typedef struct rope_call {
    const mf_cpu_kernels *kernels;
    float *x;
    int64_t row_stride, num_vectors, vector_stride, dim;
    bool pair;
    const float *cos_sin;
    const int32_t *position;
    int64_t num_tokens;
} rope_call;

static void run_rope(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const rope_call *call = context;
    const row_range range = range_of(task, rows_per_task(call->num_vectors * call->dim), call->num_tokens);
    for (int64_t t = range.first; t < range.end; t++) {
        call->kernels->rope(call->x + t * call->row_stride, call->num_vectors, call->vector_stride, call->dim, call->pair,
                            call->cos_sin + (int64_t)call->position[t] * call->dim);
    }
}

void mf_cpu_rope(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride, int64_t dim,
                 bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens)
{
    rope_call call = { .kernels = mf_cpu_kernels_of(device),
                       .x = x,
                       .row_stride = row_stride,
                       .num_vectors = num_vectors,
                       .vector_stride = vector_stride,
                       .dim = dim,
                       .pair = pair,
                       .cos_sin = cos_sin,
                       .position = position,
                       .num_tokens = num_tokens };
    run_rows(device, num_tokens, num_vectors * dim, run_rope, &call);
}

/* ---- cache writes ---- */

typedef struct write_call {
    const mf_cpu_kernels *kernels;
    const mf_kv_view *kv;
    const float *rows;
    int64_t rows_stride, num_tokens;
} write_call;

static void run_write(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const write_call *call = context;
    const mf_kv_view *kv = call->kv;
    const row_range range = range_of(task, rows_per_task(kv->row_size), call->num_tokens);
    for (int64_t t = range.first; t < range.end; t++) {
        const float *row = call->rows + t * call->rows_stride;
        if (kv->dtype == MF_F32) {
            memcpy(mf_kv_row(kv, t, kv->position[t]), row, (size_t)kv->row_size * sizeof *row);
        } else {
            call->kernels->store_row(row, kv->row_size, kv->dtype, mf_kv_row(kv, t, kv->position[t]));
        }
    }
}

void mf_cpu_kv_write(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride, int64_t num_tokens)
{
    write_call call = { .kernels = mf_cpu_kernels_of(device),
                        .kv = kv,
                        .rows = rows,
                        .rows_stride = rows_stride,
                        .num_tokens = num_tokens };
    run_rows(device, num_tokens, kv->row_size, run_write, &call);
}

/* ---- sums ---- */

typedef struct add_call {
    const mf_cpu_kernels *kernels;
    float *acc;
    const float *x;
    int64_t n;
} add_call;

static void run_add(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const add_call *call = context;
    const row_range range = range_of(task, TASK_FLOATS, call->n);
    call->kernels->add(call->acc + range.first, call->x + range.first, range.end - range.first);
}

void mf_cpu_add(mf_device *device, float *acc, const float *x, int64_t n)
{
    add_call call = { .kernels = mf_cpu_kernels_of(device), .acc = acc, .x = x, .n = n };
    mf_cpu_run(device, (double)n, (n + TASK_FLOATS - 1) / TASK_FLOATS, run_add, &call);
}

typedef struct clip_call {
    float *x;
    int64_t n;
    float limit;
} clip_call;

static void run_clip(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const clip_call *call = context;
    const row_range range = range_of(task, TASK_FLOATS, call->n);
    for (int64_t i = range.first; i < range.end; i++) {
        const float v = call->x[i];
        call->x[i] = v > call->limit ? call->limit : v < -call->limit ? -call->limit : v;
    }
}

void mf_cpu_clip(mf_device *device, float *x, int64_t n, float limit)
{
    clip_call call = { .x = x, .n = n, .limit = limit };
    mf_cpu_run(device, (double)n, (n + TASK_FLOATS - 1) / TASK_FLOATS, run_clip, &call);
}

typedef struct scale_call {
    float *x;
    int64_t n, num_tokens;
    const float *factors;
    const int32_t *position;
} scale_call;

static void run_scale(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const scale_call *call = context;
    const row_range range = range_of(task, rows_per_task(call->n), call->num_tokens);
    for (int64_t t = range.first; t < range.end; t++) {
        const float factor = call->factors[call->position[t]];
        for (int64_t i = 0; i < call->n; i++) {
            call->x[t * call->n + i] *= factor;
        }
    }
}

void mf_cpu_scale_rows(mf_device *device, float *x, int64_t n, const float *factors, const int32_t *position,
                       int64_t num_tokens)
{
    scale_call call = { .x = x, .n = n, .num_tokens = num_tokens, .factors = factors, .position = position };
    run_rows(device, num_tokens, n, run_scale, &call);
}
