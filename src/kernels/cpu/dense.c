/* dense.c - the dense operations of the forward walk on the CPU. */
#include "kernels/cpu/cpu_ops.h"

enum { LINEAR_ROWS = 64, LINEAR_TOKENS = 24 };

typedef struct linear_call {
    const mf_cpu_kernels *kernels;
    const mf_matrix *w;
    const float *bias;
    const float *x;
    int64_t x_stride, num_tokens;
    float *out;
    int64_t out_stride;
} linear_call;

static void run_linear(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const linear_call *call = context;
    const int64_t first = task * LINEAR_ROWS;
    const int64_t rows = call->w->n - first < LINEAR_ROWS ? call->w->n - first : LINEAR_ROWS;
    for (int64_t t = 0; t < call->num_tokens; t += LINEAR_TOKENS) {
        const void *x[LINEAR_TOKENS];
        const int64_t n = call->num_tokens - t < LINEAR_TOKENS ? call->num_tokens - t : LINEAR_TOKENS;
        for (int64_t j = 0; j < n; j++) {
            x[j] = call->x + (t + j) * call->x_stride;
        }
        mf_cpu_tile tile = { .w = call->w,
                             .first_row = first,
                             .num_rows = rows,
                             .num_tokens = n,
                             .x = x,
                             .out = call->out + t * call->out_stride + first,
                             .out_stride = call->out_stride };
        call->kernels->tile[call->w->format](&tile);
        for (int64_t j = 0; call->bias && j < n; j++) {
            for (int64_t r = 0; r < rows; r++) {
                tile.out[j * call->out_stride + r] += call->bias[first + r];
            }
        }
    }
}

void mf_cpu_linear(mf_device *device, const mf_matrix *w, const float *bias, const float *x, int64_t x_stride,
                   int64_t num_tokens, float *out, int64_t out_stride)
{
    linear_call call = { .kernels = mf_cpu_kernels_of(device),
                         .w = w,
                         .bias = bias,
                         .x = x,
                         .x_stride = x_stride,
                         .num_tokens = num_tokens,
                         .out = out,
                         .out_stride = out_stride };
    double work = (double)w->n * (double)w->k * (double)num_tokens;
    mf_cpu_run(device, work, (w->n + LINEAR_ROWS - 1) / LINEAR_ROWS, run_linear, &call);
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
