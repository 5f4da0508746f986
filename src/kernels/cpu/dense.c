/* dense.c - the dense operations of the forward walk on the CPU. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/inputs.h"
#include "kernels/ref/ref_ops.h"

enum { LINEAR_ROWS = 64, COLUMNS = 1024 };
_Static_assert(COLUMNS % MF_CPU_COLUMNS == 0, "parts of a row are packed on their own");

typedef struct linear_call {
    const mf_cpu_kernels *kernels;
    const mf_matrix *w;
    const float *bias;
    mf_cpu_source source;
    mf_dtype act_dtype;
    const float *x;
    int64_t x_stride, num_tokens;
    int64_t num_threads;
    uint8_t *rows; /* packed */
    int64_t row_bytes;
    float *out;
    int64_t out_stride;
} linear_call;

static void pack_token(const linear_call *call, int64_t t)
{
    const int64_t k = call->w->k;
    const mf_cpu_pack pack = mf_cpu_pack_at(call->source.form, k, call->rows, call->row_bytes, t, call->num_tokens);
    const float *x = call->x + t * call->x_stride;
    if (call->act_dtype == MF_F32) {
        call->kernels->pack(&pack, x, 0, k);
        return;
    }
    for (int64_t first = 0; first < k; first += COLUMNS) {
        float rounded[COLUMNS];
        uint16_t stored[COLUMNS];
        const int64_t n = k - first < COLUMNS ? k - first : COLUMNS;
        call->kernels->store_row(x + first, n, call->act_dtype, stored);
        call->kernels->load_row(stored, call->act_dtype, n, rounded);
        call->kernels->pack(&pack, rounded, first, n);
    }
}

/* One token, or one panel's tokens. */
static void run_pack(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const linear_call *call = context;
    const int64_t step = mf_cpu_form_is_panel(call->source.form) ? MF_CPU_PANEL : 1;
    for (int64_t t = task * step; t < (task + 1) * step && t < call->num_tokens; t++) {
        pack_token(call, t);
    }
}

static void run_linear(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const linear_call *call = context;
    const int64_t first = task * LINEAR_ROWS;
    const int64_t rows = call->w->n - first < LINEAR_ROWS ? call->w->n - first : LINEAR_ROWS;
    const int64_t next = first + call->num_threads * LINEAR_ROWS; /* of this thread when all are equally fast */
    for (int64_t t = 0, n; t < call->num_tokens; t += n) {
        const void *x[MF_CPU_MOST_TILE_TOKENS];
        n = mf_cpu_tile_share(call->kernels, call->num_tokens - t);
        mf_cpu_point(call->source.form, call->rows, call->row_bytes, t, n, x);
        mf_cpu_tile tile = { .w = call->w,
                             .first_row = first,
                             .num_rows = rows,
                             .num_tokens = n,
                             .x = x,
                             .out = call->out + t * call->out_stride + first,
                             .out_stride = call->out_stride,
                             .next = t + n == call->num_tokens && next < call->w->n ? call->w : NULL,
                             .next_row = next };
        call->source.fn(&tile);
        for (int64_t j = 0; call->bias && j < n; j++) {
            for (int64_t r = 0; r < rows; r++) {
                tile.out[j * call->out_stride + r] += call->bias[first + r];
            }
        }
    }
}

/* Tokens in portions whose packed inputs fit the device's scratch memory. */
void mf_cpu_linear(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride)
{
    linear_call call = { .kernels = mf_cpu_kernels_of(device),
                         .w = w,
                         .bias = bias,
                         .act_dtype = act_dtype,
                         .x_stride = x_stride,
                         .num_threads = mf_pool_num_threads(device->pool),
                         .rows = (uint8_t *)(((uintptr_t)device->scratch + 63) & ~(uintptr_t)63),
                         .out_stride = out_stride };
    call.source = mf_cpu_source_for(call.kernels, w->format, act_dtype, MF_QUANT_NONE);
    call.row_bytes = mf_cpu_row_bytes(call.source.form, w->k);
    int64_t step = (int64_t)device->scratch_bytes / call.row_bytes / MF_CPU_PANEL * MF_CPU_PANEL;
    if (step == 0) { /* rows of 16 KiB x 16 columns: no model has them */
        mf_ref_linear(device, w, bias, act_dtype, x, x_stride, num_tokens, out, out_stride);
        return;
    }
    for (int64_t t = 0; t < num_tokens; t += step) {
        call.num_tokens = num_tokens - t < step ? num_tokens - t : step;
        call.x = x + t * x_stride;
        call.out = out + t * out_stride;
        const int64_t per_task = mf_cpu_form_is_panel(call.source.form) ? MF_CPU_PANEL : 1;
        mf_cpu_run(device, (double)call.num_tokens * (double)w->k, (call.num_tokens + per_task - 1) / per_task, run_pack,
                   &call);
        const double work = (double)w->n * (double)w->k * (double)call.num_tokens;
        mf_cpu_run(device, work, (w->n + LINEAR_ROWS - 1) / LINEAR_ROWS, run_linear, &call);
    }
}

typedef struct convert_call {
    const mf_cpu_kernels *kernels;
    const float *x;
    int64_t n;
    mf_dtype dtype;
    uint8_t *out;
} convert_call;

static void run_convert(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const convert_call *call = context;
    const int64_t first = task * COLUMNS;
    const int64_t n = call->n - first < COLUMNS ? call->n - first : COLUMNS;
    call->kernels->store_row(call->x + first, n, call->dtype, call->out + first * (int64_t)sizeof(uint16_t));
}

void mf_cpu_convert(mf_device *device, const float *x, int64_t n, mf_dtype dtype, void *out)
{
    convert_call call = { .kernels = mf_cpu_kernels_of(device), .x = x, .n = n, .dtype = dtype, .out = out };
    mf_cpu_run(device, (double)n, (n + COLUMNS - 1) / COLUMNS, run_convert, &call);
}

typedef struct norm_call {
    const mf_cpu_kernels *kernels;
    const float *x;
    int64_t x_stride, n;
    const float *weight;
    float eps;
    float *out;
    int64_t out_stride;
} norm_call;

static void run_norm(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const norm_call *call = context;
    call->kernels->rms_norm(call->x + task * call->x_stride, call->weight, call->n, call->eps,
                            call->out + task * call->out_stride);
}

void mf_cpu_rms_norm(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride)
{
    norm_call call = { .kernels = mf_cpu_kernels_of(device),
                       .x = x,
                       .x_stride = x_stride,
                       .n = n,
                       .weight = weight,
                       .eps = eps,
                       .out = out,
                       .out_stride = out_stride };
    mf_cpu_run(device, (double)num_tokens * (double)n, num_tokens, run_norm, &call);
}
