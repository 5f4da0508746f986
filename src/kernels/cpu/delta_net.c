/* delta_net.c - the gated delta net on the CPU: loops once, over the kernels of the device's table; see
 * mf_delta_net_args.
 *
 * Four phases, each parallel: the convolution and norms of all rows at once, since only raw inputs of earlier rows
 * enter; the inputs that the next batch's convolution needs; the recurrence, a task per sequence, value head and a few
 * columns of S, which never meet; norm and gate of all rows.  No sum depends on how the rows were cut into batches. */
#include <math.h>
#include <string.h>

#include "kernels/activation.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/unroll.h"

enum {
    MOST_TAPS = 16,         /* conv_size: the model's config is held to it */
    RESIDENT_FLOATS = 8192, /* of S, kept in a buffer of its own over a run of rows */
    RESIDENT_ROWS = 4,      /* from which on the copy pays */
    TASK_FLOATS = 8192
};

typedef struct delta_call {
    const mf_delta_net_args *args;
    const mf_cpu_kernels *kernels;
    int64_t keys, channels, ratio, section; /* floats of all key heads' q; channels; value heads per key head; floats of
                                               a key head's part of a row */
    float *ones, *query_scale, *key_scale;  /* [widest part], [k_dim], [k_dim] */
    float *mixed;          /* [T, channels] in the order of view->rows: convolved; q and k of length one */
    float *factors;        /* [T, num_v_heads, 2] decay, beta */
    const int32_t *run_of; /* of each place in view->rows */
    int64_t rows_per_task;
} delta_call;

static int64_t widest_part(const mf_delta_net_args *args)
{
    const int64_t values = args->num_v_heads / args->num_k_heads * args->v_dim;
    return values > args->k_dim ? values : args->k_dim;
}

size_t mf_cpu_delta_net_scratch_floats(const mf_device *device, const mf_delta_net_args *args)
{
    (void)device;
    return (size_t)(widest_part(args) + 2 * args->k_dim +
                    args->num_tokens * (mf_delta_net_channels(args) + 2 * args->num_v_heads + 1));
}

static int32_t *lay_out(delta_call *call)
{
    const mf_delta_net_args *args = call->args;
    call->ones = args->scratch;
    call->query_scale = call->ones + widest_part(args);
    call->key_scale = call->query_scale + args->k_dim;
    call->mixed = call->key_scale + args->k_dim;
    call->factors = call->mixed + args->num_tokens * call->channels;
    for (int64_t i = 0; i < widest_part(args); i++) {
        call->ones[i] = 1.0f;
    }
    /* x / sqrt(sum + e) = x / sqrt(sum / n + e / n) / sqrt(n): an rms norm with these weights */
    for (int64_t i = 0; i < args->k_dim; i++) {
        call->query_scale[i] = 1.0f / (float)args->k_dim;
        call->key_scale[i] = 1.0f / sqrtf((float)args->k_dim);
    }
    return (int32_t *)(void *)(call->factors + args->num_tokens * args->num_v_heads * 2);
}

static float *slot_of(const mf_state_view *view, int64_t run)
{
    return view->states + view->slot[run] * view->slot_floats;
}

/* ---- convolution ---- */

/* n channels of a row: `offset` floats into a row of qkvz, `channel` in the order of the slot. */
static void convolve(const delta_call *call, int64_t place, int64_t offset, int64_t channel, int64_t n, float *out)
{
    const mf_delta_net_args *args = call->args;
    const mf_state_view *view = &args->state;
    const int64_t run = call->run_of[place], taps = args->conv_size, width = args->num_k_heads * call->section;
    const float *past = slot_of(view, run) + mf_delta_net_matrix_floats(args);
    const float *x[MOST_TAPS];
    int64_t first = 0; /* taps before it reach behind a new sequence's beginning */
    for (int64_t j = 0; j < taps; j++) {
        const int64_t at = place - (taps - 1) + j, before = at - view->start[run];
        if (before >= 0) {
            x[j] = args->qkvz + view->rows[at] * width + offset;
        } else if (view->is_new[run]) {
            first = j + 1;
        } else {
            x[j] = past + (taps - 1 + before) * call->channels + channel;
        }
    }
    const float *w = args->conv + channel * taps;
    if (taps == 4 && first == 0) {
        for (int64_t i = 0; i < n; i++) {
            out[i] =
                0.0f + w[4 * i] * x[0][i] + w[4 * i + 1] * x[1][i] + w[4 * i + 2] * x[2][i] + w[4 * i + 3] * x[3][i];
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            float sum = 0.0f;
            for (int64_t j = first; j < taps; j++) {
                sum += w[i * taps + j] * x[j][i];
            }
            out[i] = sum;
        }
    }
    static const mf_slot silu = { .activation = MF_ACT_SILU };
    call->kernels->activate(&silu, MF_F32, out, call->ones, n, out);
}

static float softplus(float x)
{
    return x > 20.0f ? x : log1pf(expf(x));
}

static void prepare_row(const delta_call *call, int64_t place)
{
    const mf_delta_net_args *args = call->args;
    const int64_t row = args->state.rows[place], k_dim = args->k_dim, values = call->ratio * args->v_dim;
    float *mixed = call->mixed + place * call->channels, *factors = call->factors + place * args->num_v_heads * 2;
    const float eps = 1e-6f / (float)k_dim;
    for (int64_t h = 0; h < args->num_k_heads; h++) {
        float *q = mixed + h * k_dim, *k = q + call->keys;
        convolve(call, place, h * call->section, h * k_dim, k_dim, q);
        convolve(call, place, h * call->section + k_dim, call->keys + h * k_dim, k_dim, k);
        convolve(call, place, h * call->section + 2 * k_dim, 2 * call->keys + h * values, values,
                 mixed + 2 * call->keys + h * values);
        call->kernels->rms_norm(q, call->query_scale, k_dim, eps, q);
        call->kernels->rms_norm(k, call->key_scale, k_dim, eps, k);
        const float *b = args->ba + (row * args->num_k_heads + h) * 2 * call->ratio, *a = b + call->ratio;
        for (int64_t i = 0; i < call->ratio; i++) {
            const int64_t head = h * call->ratio + i;
            factors[2 * head] = expf(-expf(args->a_log[head]) * softplus(a[i] + args->dt_bias[head]));
            factors[2 * head + 1] = mf_act_sigmoid(b[i]);
        }
    }
}

static void run_prepare(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const delta_call *call = context;
    const int64_t first = task * call->rows_per_task, left = call->args->num_tokens - first;
    for (int64_t i = 0; i < (left < call->rows_per_task ? left : call->rows_per_task); i++) {
        prepare_row(call, first + i);
    }
}

/* The raw inputs of a run's last rows, for the batch that goes on from here. */
static void run_keep_inputs(void *context, int64_t run, int32_t thread)
{
    (void)thread;
    const delta_call *call = context;
    const mf_delta_net_args *args = call->args;
    const mf_state_view *view = &args->state;
    const int64_t num_past = args->conv_size - 1, num_rows = view->start[run + 1] - view->start[run];
    const int64_t k_dim = args->k_dim, values = call->ratio * args->v_dim;
    float *past = slot_of(view, run) + mf_delta_net_matrix_floats(args);
    for (int64_t i = 0; i < num_past; i++) {
        float *to = past + i * call->channels;
        const int64_t from = i + num_rows - num_past; /* a row of the run, or one before it */
        if (from < 0 && view->is_new[run]) {
            memset(to, 0, (size_t)call->channels * sizeof *to);
        } else if (from < 0) {
            memcpy(to, past + (i + num_rows) * call->channels, (size_t)call->channels * sizeof *to);
        } else {
            const float *x = args->qkvz + view->rows[view->start[run] + from] * args->num_k_heads * call->section;
            for (int64_t h = 0; h < args->num_k_heads; h++, x += call->section) {
                memcpy(to + h * k_dim, x, (size_t)k_dim * sizeof *to);
                memcpy(to + call->keys + h * k_dim, x + k_dim, (size_t)k_dim * sizeof *to);
                memcpy(to + 2 * call->keys + h * values, x + 2 * k_dim, (size_t)values * sizeof *to);
            }
        }
    }
}

/* ---- recurrence ---- */

/* n is a constant where this is inlined, so that compilers make vectors of it. */
INLINE void delta_step(const mf_cpu_delta *step, int64_t n)
{
    float sums[MF_CPU_DELTA_COLUMNS] = { 0 }, out[MF_CPU_DELTA_COLUMNS] = { 0 };
    const float *restrict q = step->q, *restrict k = step->k;
    float *restrict state = step->state;
    const int64_t k_dim = step->k_dim, stride = step->state_stride;
    const float decay = step->decay, beta = step->beta;
    for (int64_t i = 0; i < k_dim; i++) {
        for (int64_t j = 0; j < n; j++) {
            sums[j] += k[i] * (decay * state[i * stride + j]);
        }
    }
    for (int64_t j = 0; j < n; j++) {
        sums[j] = beta * (step->v[j] - sums[j]);
    }
    for (int64_t i = 0; i < k_dim; i++) {
        for (int64_t j = 0; j < n; j++) {
            state[i * stride + j] = decay * state[i * stride + j] + k[i] * sums[j];
            out[j] += q[i] * state[i * stride + j];
        }
    }
    memcpy(step->out, out, (size_t)n * sizeof *out);
}

void mf_cpu_delta_step_c(const mf_cpu_delta *step)
{
    if (step->num_columns == 32) {
        delta_step(step, 32);
    } else {
        delta_step(step, step->num_columns);
    }
}

static void copy_rows(float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t rows, int64_t n)
{
    for (int64_t i = 0; i < rows; i++) {
        memcpy(to + i * to_stride, from + i * from_stride, (size_t)n * sizeof *to);
    }
}

/* All rows of a run, a few columns of one head's S. */
static void run_recurrence(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const delta_call *call = context;
    const mf_delta_net_args *args = call->args;
    const mf_state_view *view = &args->state;
    const int64_t k_dim = args->k_dim, v_dim = args->v_dim;
    const int64_t columns = call->kernels->delta_columns, parts = (v_dim + columns - 1) / columns;
    const int64_t first = task % parts * columns, head = task / parts % args->num_v_heads;
    const int64_t run = task / parts / args->num_v_heads;
    const int64_t n = v_dim - first < columns ? v_dim - first : columns;
    float *state = slot_of(view, run) + head * k_dim * v_dim + first;
    float resident[RESIDENT_FLOATS]; /* rows of S lie a power of two apart: in place they would share few cache sets */
    const bool copies = view->start[run + 1] - view->start[run] >= RESIDENT_ROWS && k_dim * n <= RESIDENT_FLOATS;
    mf_cpu_delta step = {
        .state = copies ? resident : state, .state_stride = copies ? n : v_dim, .k_dim = k_dim, .num_columns = n
    };
    if (view->is_new[run]) {
        for (int64_t i = 0; i < k_dim; i++) {
            memset(step.state + i * step.state_stride, 0, (size_t)n * sizeof *state);
        }
    } else if (copies) {
        copy_rows(resident, n, state, v_dim, k_dim, n);
    }
    for (int32_t place = view->start[run]; place < view->start[run + 1]; place++) {
        const float *mixed = call->mixed + place * call->channels;
        const float *factors = call->factors + (place * args->num_v_heads + head) * 2;
        step.decay = factors[0];
        step.beta = factors[1];
        step.q = mixed + head / call->ratio * k_dim;
        step.k = step.q + call->keys;
        step.v = mixed + 2 * call->keys + head * v_dim + first;
        step.out = args->out + (view->rows[place] * args->num_v_heads + head) * v_dim + first;
        call->kernels->delta_step(&step);
    }
    if (copies) {
        copy_rows(state, v_dim, resident, n, k_dim, n);
    }
}

/* ---- norm and gate ---- */

static void run_finish(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const delta_call *call = context;
    const mf_delta_net_args *args = call->args;
    const int64_t v_dim = args->v_dim, first = task * call->rows_per_task, left = args->num_tokens - first;
    static const mf_slot silu = { .activation = MF_ACT_SILU };
    for (int64_t i = 0; i < (left < call->rows_per_task ? left : call->rows_per_task); i++) {
        const int64_t row = first + i;
        for (int64_t head = 0; head < args->num_v_heads; head++) {
            const float *z = args->qkvz + (row * args->num_k_heads + head / call->ratio) * call->section +
                             2 * args->k_dim + (call->ratio + head % call->ratio) * v_dim;
            float *out = args->out + (row * args->num_v_heads + head) * v_dim;
            call->kernels->rms_norm(out, args->norm, v_dim, args->norm_eps, out);
            call->kernels->activate(&silu, MF_F32, z, out, v_dim, out);
        }
    }
}

void mf_cpu_delta_net(mf_device *device, const mf_delta_net_args *args)
{
    const mf_state_view *view = &args->state;
    delta_call call = { .args = args,
                        .kernels = mf_cpu_kernels_of(device),
                        .keys = args->num_k_heads * args->k_dim,
                        .channels = mf_delta_net_channels(args),
                        .ratio = args->num_v_heads / args->num_k_heads };
    call.section = 2 * (args->k_dim + call.ratio * args->v_dim);
    int32_t *run_of = lay_out(&call);
    for (int64_t run = 0; run < view->num_runs; run++) {
        for (int32_t i = view->start[run]; i < view->start[run + 1]; i++) {
            run_of[i] = (int32_t)run;
        }
    }
    call.run_of = run_of;
    const double rows = (double)args->num_tokens, channels = (double)call.channels;
    call.rows_per_task = call.channels >= TASK_FLOATS ? 1 : TASK_FLOATS / call.channels;
    const int64_t row_tasks = (args->num_tokens + call.rows_per_task - 1) / call.rows_per_task;
    mf_cpu_run(device, rows * channels * (double)(args->conv_size + 8), row_tasks, run_prepare, &call);
    mf_cpu_run(device, (double)view->num_runs * channels * (double)args->conv_size, view->num_runs, run_keep_inputs,
               &call);
    const int64_t columns = call.kernels->delta_columns, parts = (args->v_dim + columns - 1) / columns;
    mf_cpu_run(device, rows * 4.0 * (double)mf_delta_net_matrix_floats(args),
               view->num_runs * args->num_v_heads * parts, run_recurrence, &call);
    mf_cpu_run(device, rows * channels * 8.0, row_tasks, run_finish, &call);
}

/* ---- the sigmoid gate of attention ---- */

typedef struct gate_call {
    const mf_cpu_kernels *kernels;
    float *x;
    const float *gate;
    int64_t x_stride, gate_stride, num_rows, n, rows_per_task;
} gate_call;

static void run_gate(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const gate_call *call = context;
    const int64_t first = task * call->rows_per_task, left = call->num_rows - first;
    for (int64_t i = 0; i < (left < call->rows_per_task ? left : call->rows_per_task); i++) {
        call->kernels->sigmoid_gate(call->x + (first + i) * call->x_stride,
                                    call->gate + (first + i) * call->gate_stride, call->n);
    }
}

void mf_cpu_sigmoid_gate(mf_device *device, float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                         int64_t num_rows, int64_t n)
{
    gate_call call = { .kernels = mf_cpu_kernels_of(device),
                       .x = x,
                       .gate = gate,
                       .x_stride = x_stride,
                       .gate_stride = gate_stride,
                       .num_rows = num_rows,
                       .n = n,
                       .rows_per_task = n >= TASK_FLOATS ? 1 : TASK_FLOATS / n };
    mf_cpu_run(device, (double)num_rows * (double)n * 16.0, (num_rows + call.rows_per_task - 1) / call.rows_per_task,
               run_gate, &call);
}
