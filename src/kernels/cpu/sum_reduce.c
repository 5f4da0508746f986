/* sum_reduce.c - the combine on a CPU: rows and parts of rows go to the pool, sums to the table's kernels.
 *
 * The chain of one output element is that of ref/sum_reduce.c: columns ascending, one fused multiply-add each.  Cutting a
 * row into parts changes no chain. */
#include <math.h>

#include "kernels/activation.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_gate.h"
#include "kernels/ref/views.h"

/* PART: two rows of sums that stay in the first-level cache; TERMS: pointers collected before a kernel is called; FEW_ROWS:
 * below, the parts of a row are tasks of their own. */
enum { PART = 1024, TERMS = 96, TASK_ELEMENTS = 32768, FEW_ROWS = 64 };

/* ---- scalar kernels ---- */

static void sum_rows_c(const mf_cpu_terms *terms, int64_t first, int64_t n, float *acc)
{
    for (int32_t k = 0; k < terms->count; k++) {
        mf_tensor row = { .data = (void *)terms->row[k], .dtype = terms->dtype };
        for (int64_t h = 0; h < n; h++) {
            acc[h] = fmaf(terms->weight[k], mf_load_f32(&row, first + h), acc[h]);
        }
    }
}

static void scale_add_c(float factor, const float *r, const float *residual, int64_t n, float *s)
{
    for (int64_t h = 0; h < n; h++) {
        s[h] = fmaf(factor, r[h], s[h]);
        if (residual) {
            s[h] = s[h] + residual[h];
        }
    }
}

void mf_cpu_sum_reduce_fill_c(mf_cpu_kernels *kernels)
{
    kernels->sum_rows = sum_rows_c;
    kernels->scale_add = scale_add_c;
}

/* ---- loops ---- */

/* What one sum reads: the call, and the kernels that add. */
typedef struct sum_context {
    const mf_sum_reduce_call *call;
    const mf_cpu_kernels *kernels;
} sum_context;

typedef struct sum_task {
    sum_context sum;
    int64_t rows_per_task, parts; /* a task is rows_per_task rows, or one of `parts` parts of a row */
} sum_task;

/* One of the two sums of a part: terms are collected and added by the kernel in batches, which keeps their order. */
typedef struct pending {
    mf_cpu_terms terms;
    const void *row[TERMS];
    float weight[TERMS];
    bool overflowed; /* a batch has been added to acc already */
    int64_t first, n;
    float *acc; /* [n] */
} pending;

static void begin(const sum_context *sum, pending *p, int64_t first, int64_t n, float *acc)
{
    p->terms = (mf_cpu_terms){ .dtype = sum->call->args->x.dtype, .row = p->row, .weight = p->weight };
    p->overflowed = false;
    p->first = first;
    p->n = n;
    p->acc = acc;
}

/* What is still pending, into acc. */
static void flush(const sum_context *sum, pending *p)
{
    if (!p->overflowed) {
        memset(p->acc, 0, (size_t)p->n * sizeof *p->acc);
    }
    sum->kernels->sum_rows(&p->terms, p->first, p->n, p->acc);
    p->terms.count = 0;
    p->overflowed = true;
}

static void push(const sum_context *sum, pending *p, float w, const mf_tensor *t, int64_t offset)
{
    if (p->terms.count == TERMS) {
        flush(sum, p);
    }
    p->row[p->terms.count] = (const char *)t->data + offset * (int64_t)mf_dtype_size(t->dtype);
    p->weight[p->terms.count++] = w;
}

static void push_columns(const sum_context *sum, pending *p, int64_t t, int64_t from, int64_t to)
{
    const mf_sum_reduce_args *a = sum->call->args;
    for (int64_t c = from; c < to; c++) {
        if (a->topk_ids.data && mf_load_i32(&a->topk_ids, t * a->topk_ids.stride[0] + c) < 0) {
            continue;
        }
        float w = a->topk_weights.data ? mf_load_f32(&a->topk_weights, t * a->topk_weights.stride[0] + c) : 1.0f;
        push(sum, p, w, &a->x, t * a->x.stride[0] + c * a->x.stride[1]);
    }
}

static void push_terms(const sum_context *sum, pending *routed, pending *shared, int64_t t)
{
    const mf_sum_reduce_args *a = sum->call->args;
    const int64_t num_columns = sum->call->num_columns;
    const int64_t num_routed = num_columns - a->num_shared_columns;
    push_columns(sum, routed, t, 0, num_routed);
    if (a->identity_weight.data) {
        push(sum, routed, mf_load_f32(&a->identity_weight, t), &a->hidden, t * a->hidden.stride[0]);
    }
    push_columns(sum, shared, t, num_routed, num_columns);
    for (int32_t i = 0; i < a->num_addends; i++) {
        float w = a->addend_weights.data ? mf_load_f32(&a->addend_weights, t * a->addend_weights.stride[0] + i) : 1.0f;
        push(sum, shared, w, &a->addends[i], t * a->addends[i].stride[0]);
    }
}

/* Row t of out, and of the residual if there is one. */
static char *out_row(const mf_sum_reduce_args *a, int64_t t)
{
    return (char *)a->out.data + t * a->out.stride[0] * (int64_t)mf_dtype_size(a->out.dtype);
}

static const char *residual_row(const mf_sum_reduce_args *a, int64_t t)
{
    return a->residual.data
               ? (const char *)a->residual.data + t * a->residual.stride[0] * (int64_t)mf_dtype_size(a->residual.dtype)
               : NULL;
}

/* All terms of a row fit in two lists: the kernel keeps an element in registers until it is stored. */
static void sum_at_once(const sum_context *sum, int64_t t, int64_t first, int64_t n)
{
    const mf_sum_reduce_args *a = sum->call->args;
    pending routed, shared;
    begin(sum, &routed, first, n, NULL);
    begin(sum, &shared, first, n, NULL);
    if (mf_row_is_valid(&a->row_valid, sum->call->num_valid_tokens, t)) {
        push_terms(sum, &routed, &shared, t);
    }
    const mf_cpu_combine combine = { .routed = routed.terms,
                                     .shared = shared.terms,
                                     .factor = a->routed_scaling_factor,
                                     .dtype = a->out.dtype,
                                     .residual = residual_row(a, t),
                                     .out = out_row(a, t) };
    sum->kernels->combine(&combine, first, n);
}

/* At most PART elements. */
static void sum_in_steps(const sum_context *sum, int64_t t, int64_t first, int64_t n)
{
    const mf_sum_reduce_args *a = sum->call->args;
    const mf_cpu_kernels *kernels = sum->kernels;
    float r[PART], s[PART], extra[PART];
    pending routed, shared;
    begin(sum, &routed, first, n, r);
    begin(sum, &shared, first, n, s);
    if (mf_row_is_valid(&a->row_valid, sum->call->num_valid_tokens, t)) {
        push_terms(sum, &routed, &shared, t);
    }
    flush(sum, &routed);
    flush(sum, &shared);
    const int64_t offset = first * (int64_t)mf_dtype_size(a->out.dtype);
    const char *residual = residual_row(a, t);
    if (residual) {
        kernels->load_row(residual + offset, a->out.dtype, n, extra);
    }
    kernels->scale_add(a->routed_scaling_factor, r, residual ? extra : NULL, n, s);
    kernels->store_row(s, n, a->out.dtype, out_row(a, t) + offset);
}

/* Any number of elements. */
static void sum_part(const sum_context *sum, int64_t t, int64_t first, int64_t n)
{
    const mf_sum_reduce_args *a = sum->call->args;
    if (sum->kernels->combine && sum->call->num_columns + 1 <= TERMS && a->num_shared_columns + a->num_addends <= TERMS) {
        sum_at_once(sum, t, first, n);
        return;
    }
    for (int64_t i = 0; i < n; i += PART) {
        sum_in_steps(sum, t, first + i, n - i < PART ? n - i : PART);
    }
}

void mf_cpu_sum_part(const mf_cpu_kernels *kernels, const mf_sum_reduce_call *call, int64_t t, int64_t first, int64_t n)
{
    const sum_context sum = { .call = call, .kernels = kernels };
    sum_part(&sum, t, first, n);
}

static void run_task(void *context, int64_t index, int32_t thread)
{
    (void)thread;
    const sum_task *task = context;
    const int64_t hidden = task->sum.call->hidden_size;
    const int64_t size = task->parts > 1 ? PART : hidden;
    const int64_t first = index % task->parts * size;
    int64_t t = index / task->parts * task->rows_per_task;
    int64_t end = t + task->rows_per_task;
    end = end < task->sum.call->num_tokens ? end : task->sum.call->num_tokens;
    for (; t < end; t++) {
        sum_part(&task->sum, t, first, hidden - first < size ? hidden - first : size);
    }
}

mf_status mf_cpu_sum_reduce(mf_device *device, const mf_sum_reduce_call *call, mf_error *err)
{
    if (call->args->x.dtype == MF_F64) { /* for checking other results: not worth kernels */
        return mf_ref_sum_reduce(device, call, err);
    }
    if (call->hidden_size == 0) {
        return MF_OK;
    }
    const int64_t terms = call->num_columns + call->args->num_addends + 2;
    sum_task task = { .sum = { .call = call, .kernels = mf_cpu_kernels_of(device) } };
    task.rows_per_task = TASK_ELEMENTS / (call->hidden_size < TASK_ELEMENTS ? call->hidden_size : TASK_ELEMENTS) / terms;
    task.parts = 1;
    if (task.rows_per_task < 1) {
        task.rows_per_task = 1;
        task.parts = call->num_tokens < FEW_ROWS ? (call->hidden_size + PART - 1) / PART : 1;
    }
    double work = (double)call->num_tokens * (double)terms * (double)call->hidden_size;
    int64_t num_tasks = (call->num_tokens + task.rows_per_task - 1) / task.rows_per_task * task.parts;
    mf_cpu_run(device, work, num_tasks, run_task, &task);
    return MF_OK;
}
