/* gate.c - the gate on a CPU: the reference's rows with the ISA's steps, shared out over the pool. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/views.h"

/* A task counts into arrays of its own and adds them up at its end, so that the threads do not pull the counters of the
 * shared experts, which every row increments, from each other's caches. */
enum { ROWS_PER_TASK = 128, MAX_OWN_SLOTS = 4352 };

typedef struct gate_task {
    const mf_gate_call *call;
    const mf_gate_steps *steps;
} gate_task;

static void run_rows(const mf_gate_call *call, const mf_gate_steps *steps, int64_t first, int64_t end)
{
    mf_gate_row row;
    for (row.t = first; row.t < end; row.t++) {
        mf_gate_run_row(call, steps, &row);
    }
}

static void add_counts(const mf_tensor *total, const int32_t *own, int64_t n)
{
    for (int64_t i = 0; total->data && i < n; i++) {
        if (own[i] != 0) {
            __atomic_fetch_add((int32_t *)total->data + i, own[i], __ATOMIC_RELAXED);
        }
    }
}

static void run_task(void *context, int64_t index, int32_t thread)
{
    (void)thread;
    const gate_task *task = context;
    const mf_gate_args *args = task->call->args;
    int32_t histogram[MAX_OWN_SLOTS], load[MF_GATE_MAX_WIDTH], bad_rows = 0, error_count = 0;
    mf_gate_args own = *args;
    mf_gate_call call = *task->call;
    call.args = &own;
    memset(histogram, 0, (size_t)call.cfg.num_slots * sizeof *histogram);
    memset(load, 0, (size_t)call.cfg.num_experts * sizeof *load);
    own.histogram.data = args->histogram.data ? histogram : NULL;
    own.load.data = args->load.data ? load : NULL;
    own.bad_rows.data = &bad_rows;
    own.error_count.data = &error_count;
    int64_t first = index * ROWS_PER_TASK, end = first + ROWS_PER_TASK;
    run_rows(&call, task->steps, first, end < call.num_tokens ? end : call.num_tokens);
    add_counts(&args->histogram, histogram, call.cfg.num_slots);
    add_counts(&args->load, load, call.cfg.num_experts);
    add_counts(&args->bad_rows, &bad_rows, 1);
    add_counts(&args->error_count, &error_count, 1);
}

static bool is_aligned(const mf_tensor *t)
{
    return (uintptr_t)t->data % sizeof(int32_t) == 0;
}

mf_status mf_cpu_gate(mf_device *device, const mf_gate_call *call, mf_error *err)
{
    (void)err;
    const mf_gate_args *a = call->args;
    gate_task task = { .call = call, .steps = mf_cpu_kernels_of(device)->gate_steps };
    mf_gate_clear_histogram(call);
    bool shareable = call->num_tokens > ROWS_PER_TASK && mf_pool_num_threads(device->pool) > 1 &&
                     call->cfg.num_slots <= MAX_OWN_SLOTS && is_aligned(&a->histogram) && is_aligned(&a->load) &&
                     is_aligned(&a->bad_rows) && is_aligned(&a->error_count);
    if (!shareable) {
        run_rows(call, task.steps, 0, call->num_tokens);
        return MF_OK;
    }
    double work = 16.0 * (double)call->num_tokens * (double)call->row_width; /* an exponential each, and the choice */
    mf_cpu_run(device, work, (call->num_tokens + ROWS_PER_TASK - 1) / ROWS_PER_TASK, run_task, &task);
    return MF_OK;
}
