/* dense.c - the dense operations in their plainest form: linear, norm, rotary embedding, cache writes. */
#include <math.h>
#include <string.h>

#include "kernels/activation.h"
#include "kernels/format.h"
#include "kernels/ref/ref_ops.h"

enum { GROUP = 128 };

/* mf_ref_dot with x rounded to act_dtype on the way. */
static float rounded_dot(const mf_matrix *w, int64_t row, mf_dtype act_dtype, const float *x)
{
    float values[GROUP];
    float total = 0.0f;
    for (int64_t first = 0; first < w->k; first += GROUP) {
        int64_t count = w->k - first < GROUP ? w->k - first : GROUP;
        mf_matrix_decode_row(w, row, first, count, values);
        float sum = 0.0f;
        for (int64_t i = 0; i < count; i++) {
            sum += values[i] * mf_round_to_dtype(x[first + i], act_dtype);
        }
        total += sum;
    }
    return total;
}

float mf_ref_dot(const mf_matrix *w, int64_t row, const float *x)
{
    return rounded_dot(w, row, MF_F32, x);
}

void mf_ref_linear(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride)
{
    (void)device;
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t r = 0; r < w->n; r++) {
            float v = rounded_dot(w, r, act_dtype, x + t * x_stride);
            out[t * out_stride + r] = bias ? v + bias[r] : v;
        }
    }
}

void mf_ref_embed(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride)
{
    (void)device;
    for (int64_t t = 0; t < num_tokens; t++) {
        mf_matrix_decode_row(table, ids[t], 0, table->k, out + t * out_stride);
    }
}

void mf_ref_rms_norm(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride)
{
    (void)device;
    for (int64_t t = 0; t < num_tokens; t++) {
        const float *row = x + t * x_stride;
        double sum = 0.0;
        for (int64_t i = 0; i < n; i++) {
            sum += (double)row[i] * row[i];
        }
        float scale = (float)(1.0 / sqrt(sum / (double)n + eps));
        for (int64_t i = 0; i < n; i++) {
            out[t * out_stride + i] = row[i] * scale * weight[i];
        }
    }
}

void mf_ref_rope(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride,
                 int64_t dim, bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens)
{
    (void)device;
    int64_t half = dim / 2;
    for (int64_t t = 0; t < num_tokens; t++) {
        const float *table = cos_sin + (int64_t)position[t] * dim;
        for (int64_t v = 0; v < num_vectors; v++) {
            float *vector = x + t * row_stride + v * vector_stride;
            for (int64_t i = 0; i < half; i++) {
                float *a = pair ? vector + 2 * i : vector + i;
                float *b = pair ? vector + 2 * i + 1 : vector + i + half;
                float c = table[2 * i];
                float s = table[2 * i + 1];
                float a0 = *a;
                float b0 = *b;
                *a = a0 * c - b0 * s;
                *b = b0 * c + a0 * s;
            }
        }
    }
}

void mf_ref_kv_write(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride,
                     int64_t num_tokens)
{
    for (int64_t t = 0; t < num_tokens; t++) {
        uint8_t *to = mf_kv_row(kv, t, kv->position[t]);
        const float *row = rows + t * rows_stride;
        if (kv->dtype == MF_F32) {
            memcpy(to, row, (size_t)kv->row_size * sizeof *row);
        } else {
            mf_ref_convert(device, row, kv->row_size, kv->dtype, to);
        }
    }
}

void mf_ref_convert(mf_device *device, const float *x, int64_t n, mf_dtype dtype, void *out)
{
    (void)device;
    uint16_t *to = out;
    for (int64_t i = 0; i < n; i++) {
        to[i] = dtype == MF_BF16 ? mf_f32_to_bf16(x[i]) : mf_f32_to_f16(x[i]);
    }
}

void mf_ref_add(mf_device *device, float *acc, const float *x, int64_t n)
{
    (void)device;
    for (int64_t i = 0; i < n; i++) {
        acc[i] += x[i];
    }
}

void mf_ref_clip(mf_device *device, float *x, int64_t n, float limit)
{
    (void)device;
    for (int64_t i = 0; i < n; i++) {
        x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
    }
}

void mf_ref_scale_rows(mf_device *device, float *x, int64_t n, const float *factors, const int32_t *position,
                       int64_t num_tokens)
{
    (void)device;
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t i = 0; i < n; i++) {
            x[t * n + i] *= factors[position[t]];
        }
    }
}
