/* quantise_rows.c - floating-point rows into codes and scales: see quantise_rows.h. */
#include "model/quantise_rows.h"

#include <math.h>
#include <string.h>

#include "base/number.h"

enum { FP8_BLOCK = MF_QUANTISE_ROWS };

static int64_t div_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

void mf_quantise_layout(mf_format format, int64_t n, int64_t k, int64_t group, int64_t row_unit, mf_matrix *to,
                        int64_t *code_bytes, int64_t *scale_bytes)
{
    *to = (mf_matrix){ .n = n, .k = k, .row_stride = k, .format = format };
    int64_t rows = n, columns = 1;
    if (format == MF_FORMAT_INT4_GROUP) {
        to->group_size = group;
        to->row_stride = div_up(k, row_unit) * row_unit;
        columns = div_up(k, group);
    } else if (format == MF_FORMAT_FP8_BLOCK) {
        rows = div_up(n, FP8_BLOCK);
        columns = div_up(k, FP8_BLOCK);
    }
    to->scale_dtype = format == MF_FORMAT_INT4_GROUP ? MF_F16 : MF_F32;
    to->scale_row_stride = columns;
    *code_bytes = format == MF_FORMAT_INT4_GROUP ? n * (to->row_stride / 2) : n * k;
    *scale_bytes = rows * columns * (int64_t)mf_dtype_size(to->scale_dtype);
}

int64_t mf_quantise_scratch(const mf_matrix *to)
{
    return to->k * (to->format == MF_FORMAT_FP8_BLOCK ? FP8_BLOCK : 1);
}

static float largest(const float *w, int64_t n)
{
    float amax = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(w[i]);
        if (a != a) {
            return a;
        }
        amax = a > amax ? a : amax;
    }
    return amax;
}

/* 1 / scale for finite scales that are not 0; codes of an all-zero or NaN row are 0. */
static float inverse(float scale)
{
    return scale != 0.0f && isfinite(scale) ? 1.0f / scale : 0.0f;
}

static void quantise_int8(const mf_matrix *to, int64_t row, const float *w)
{
    const float scale = largest(w, to->k) / 127.0f;
    const float factor = inverse(scale);
    int8_t *codes = (int8_t *)(uintptr_t)to->data + row * to->row_stride;
    for (int64_t k = 0; k < to->k; k++) {
        float code = rintf(w[k] * factor);
        codes[k] = (int8_t)(code == code ? fminf(127.0f, fmaxf(-127.0f, code)) : 0.0f);
    }
    ((float *)(uintptr_t)to->scale)[row] = scale;
}

static void quantise_int4(const mf_matrix *to, int64_t row, const float *w)
{
    uint8_t *codes = (uint8_t *)(uintptr_t)to->data + row * (to->row_stride / 2);
    uint16_t *scales = (uint16_t *)(uintptr_t)to->scale + row * to->scale_row_stride;
    memset(codes, 0, (size_t)(to->row_stride / 2));
    for (int64_t first = 0, g = 0; first < to->k; first += to->group_size, g++) {
        const int64_t end = to->k - first < to->group_size ? to->k : first + to->group_size;
        const float amax = largest(w + first, end - first);
        float extreme = amax;
        for (int64_t k = first; k < end; k++) {
            extreme = w[k] == -amax ? -amax : extreme;
        }
        scales[g] = mf_f32_to_f16(extreme / -8.0f);
        const float factor = inverse(mf_f16_to_f32(scales[g]));
        for (int64_t k = first; k < end; k++) {
            const float code = rintf(w[k] * factor) + 8.0f;
            const unsigned nibble = (unsigned)(code == code ? fminf(15.0f, fmaxf(0.0f, code)) : 8.0f);
            codes[k / 2] = (uint8_t)(codes[k / 2] | nibble << (k % 2 * 4));
        }
    }
}

/* Rows [first, first + count) of one row of blocks; w holds them one behind the other. */
static void quantise_fp8(const mf_matrix *to, int64_t first, int64_t count, const float *w)
{
    const int64_t size = to->k;
    float *scales = (float *)(uintptr_t)to->scale + first / FP8_BLOCK * to->scale_row_stride;
    for (int64_t begin = 0, b = 0; begin < size; begin += FP8_BLOCK, b++) {
        const int64_t columns = size - begin < FP8_BLOCK ? size - begin : FP8_BLOCK;
        float amax = 0.0f;
        for (int64_t r = 0; r < count; r++) {
            const float a = largest(w + r * size + begin, columns);
            amax = a > amax || a != a ? a : amax;
        }
        scales[b] = amax > 0.0f || amax != amax ? amax / 448.0f : 1.0f;
        const float factor = inverse(scales[b]);
        for (int64_t r = 0; r < count; r++) {
            uint8_t *codes = (uint8_t *)(uintptr_t)to->data + (first + r) * to->row_stride + begin;
            for (int64_t k = 0; k < columns; k++) {
                codes[k] = mf_f32_to_e4m3(w[r * size + begin + k] * factor);
            }
        }
    }
}

void mf_quantise_rows(const mf_matrix *from, const mf_matrix *to, int64_t first, int64_t count, float *scratch)
{
    for (int64_t r = 0; r < count; r++) {
        float *row = scratch + (to->format == MF_FORMAT_FP8_BLOCK ? r * to->k : 0);
        mf_matrix_decode_row(from, first + r, 0, to->k, row);
        if (to->format == MF_FORMAT_INT8_CHANNEL) {
            quantise_int8(to, first + r, row);
        } else if (to->format == MF_FORMAT_INT4_GROUP) {
            quantise_int4(to, first + r, row);
        }
    }
    if (to->format == MF_FORMAT_FP8_BLOCK) {
        quantise_fp8(to, first, count, scratch);
    }
}
