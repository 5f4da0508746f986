/* sum_reduce.c - the combine: one fixed chain of fused multiply-adds per output element.
 *
 *   r = routed columns, then the identity term; s = shared columns, then addends; out = round(fma(factor, r, s) + residual)
 *
 * Both sums start at +0 and skip columns whose id is negative: their memory may hold anything.  A row that is not valid
 * reads nothing but the residual.  f64 inputs take the same steps in f64. */
#include "kernels/ref/ref_gate.h"

#include <math.h>

#include "kernels/ref/views.h"

enum { CHUNK = 256 }; /* elements of a row that are summed together; no bit depends on it */

static double load_f64(const mf_tensor *t, int64_t i)
{
    double v;
    if (t->dtype != MF_F64) {
        return mf_load_f32(t, i);
    }
    memcpy(&v, (const char *)t->data + i * 8, 8);
    return v;
}

static void store(const mf_tensor *out, int64_t i, float v)
{
    uint16_t h;
    if (out->dtype == MF_F32) {
        mf_store_f32(out, i, v);
    } else {
        h = out->dtype == MF_BF16 ? mf_f32_to_bf16(v) : mf_f32_to_f16(v);
        memcpy((char *)out->data + i * 2, &h, 2);
    }
}

/* acc[0..n) = fma(w, v[first..first + n), acc) */
static void add_f32(float *acc, float w, const mf_tensor *v, int64_t first, int64_t n)
{
    for (int64_t h = 0; h < n; h++) {
        acc[h] = fmaf(w, mf_load_f32(v, first + h), acc[h]);
    }
}

static void add_f64(double *acc, float w, const mf_tensor *v, int64_t first, int64_t n)
{
    for (int64_t h = 0; h < n; h++) {
        acc[h] = fma((double)w, load_f64(v, first + h), acc[h]);
    }
}

typedef struct chunk_sums {
    bool f64;
    float r32[CHUNK], s32[CHUNK];
    double r64[CHUNK], s64[CHUNK];
} chunk_sums;

static void add(chunk_sums *sums, bool routed, float w, const mf_tensor *v, int64_t first, int64_t n)
{
    if (sums->f64) {
        add_f64(routed ? sums->r64 : sums->s64, w, v, first, n);
    } else {
        add_f32(routed ? sums->r32 : sums->s32, w, v, first, n);
    }
}

/* The terms of row t, columns [h0, h0 + n), in the contract's order. */
static void sum_row(const mf_sum_reduce_call *call, chunk_sums *sums, int64_t t, int64_t h0, int64_t n)
{
    const mf_sum_reduce_args *a = call->args;
    int64_t num_routed = call->num_columns - a->num_shared_columns;
    for (int64_t c = 0; c <= call->num_columns; c++) {
        if (c == num_routed && a->identity_weight.data) {
            add(sums, true, mf_load_f32(&a->identity_weight, t), &a->hidden, t * a->hidden.stride[0] + h0, n);
        }
        if (c == call->num_columns || (a->topk_ids.data && mf_load_i32(&a->topk_ids, t * a->topk_ids.stride[0] + c) < 0)) {
            continue;
        }
        float w = a->topk_weights.data ? mf_load_f32(&a->topk_weights, t * a->topk_weights.stride[0] + c) : 1.0f;
        add(sums, c < num_routed, w, &a->x, t * a->x.stride[0] + c * a->x.stride[1] + h0, n);
    }
    for (int32_t i = 0; i < a->num_addends; i++) {
        float w = a->addend_weights.data ? mf_load_f32(&a->addend_weights, t * a->addend_weights.stride[0] + i) : 1.0f;
        add(sums, false, w, &a->addends[i], t * a->addends[i].stride[0] + h0, n);
    }
}

static void finish_f64(const mf_sum_reduce_args *a, const chunk_sums *sums, int64_t t, int64_t h0, int64_t n)
{
    for (int64_t h = 0; h < n; h++) {
        double v = fma((double)a->routed_scaling_factor, sums->r64[h], sums->s64[h]);
        if (a->residual.data) {
            v = v + load_f64(&a->residual, t * a->residual.stride[0] + h0 + h);
        }
        memcpy((char *)a->out.data + (t * a->out.stride[0] + h0 + h) * 8, &v, 8);
    }
}

static void finish_f32(const mf_sum_reduce_args *a, const chunk_sums *sums, int64_t t, int64_t h0, int64_t n)
{
    for (int64_t h = 0; h < n; h++) {
        float v = fmaf(a->routed_scaling_factor, sums->r32[h], sums->s32[h]);
        if (a->residual.data) {
            v = v + mf_load_f32(&a->residual, t * a->residual.stride[0] + h0 + h);
        }
        store(&a->out, t * a->out.stride[0] + h0 + h, v);
    }
}

mf_status mf_ref_sum_reduce(mf_device *device, const mf_sum_reduce_call *call, mf_error *err)
{
    (void)device;
    (void)err;
    const mf_sum_reduce_args *a = call->args;
    chunk_sums sums;
    sums.f64 = a->x.dtype == MF_F64;
    for (int64_t t = 0; t < call->num_tokens; t++) {
        bool valid = mf_row_is_valid(&a->row_valid, call->num_valid_tokens, t);
        for (int64_t h0 = 0; h0 < call->hidden_size; h0 += CHUNK) {
            int64_t n = call->hidden_size - h0 < CHUNK ? call->hidden_size - h0 : CHUNK;
            for (int64_t h = 0; h < n; h++) {
                sums.r32[h] = sums.s32[h] = 0.0f;
                sums.r64[h] = sums.s64[h] = 0.0;
            }
            if (valid) {
                sum_row(call, &sums, t, h0, n);
            }
            if (sums.f64) {
                finish_f64(a, &sums, t, h0, n);
            } else {
                finish_f32(a, &sums, t, h0, n);
            }
        }
    }
    return MF_OK;
}
