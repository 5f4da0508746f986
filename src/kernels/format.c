/* format.c - weight matrices of any stored format: checks, views, decoding. */
#include "kernels/format.h"

#include "base/sys.h"

#define MAGNITUDE(c) (((c)&0x78) ? (float)(8 + ((c)&7)) * (float)(1 << ((c) >> 3)) / 1024.0f : (float)((c)&7) / 512.0f)
#define V1(c) (((c)&0x7f) == 0x7f ? __builtin_nanf("") : ((c)&0x80) ? -MAGNITUDE((c)&0x7f) : MAGNITUDE(c))
#define V4(c) V1(c), V1((c) + 1), V1((c) + 2), V1((c) + 3)
#define V16(c) V4(c), V4((c) + 4), V4((c) + 8), V4((c) + 12)
#define V64(c) V16(c), V16((c) + 16), V16((c) + 32), V16((c) + 48)

const float mf_e4m3_values[256] = { V64(0), V64(64), V64(128), V64(192) };

static const float e2m1_values[16] = { 0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                       -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f };

/* Rows and columns of the scale grid. */
static void scale_grid(const mf_matrix *m, int64_t *rows, int64_t *columns)
{
    int64_t group = mf_matrix_group(m);
    *rows = m->format == MF_FORMAT_FP8_BLOCK ? (m->n - 1) / MF_FP8_BLOCK_SIZE + 1 : m->n;
    *columns = group ? (m->k - 1) / group + 1 : 1;
}

static mf_status check_scale(const mf_matrix *m, const char *what, mf_error *err)
{
    bool block = m->format == MF_FORMAT_FP8_BLOCK;
    bool channel = m->format == MF_FORMAT_FP8_CHANNEL || m->format == MF_FORMAT_INT8_CHANNEL;
    if (!m->scale) {
        return mf_fail(err, MF_ERR_INVALID, "%s: format %s needs a scale", what, mf_format_name(m->format));
    }
    bool is_float = m->scale_dtype == MF_F32 || m->scale_dtype == MF_BF16 || m->scale_dtype == MF_F16;
    bool is_e8m0 = m->scale_dtype == MF_F8_E8M0;
    if (m->format == MF_FORMAT_MXFP4 ? !is_e8m0 : !(is_float || (block && is_e8m0))) {
        return mf_fail(err, MF_ERR_INVALID, "%s: scale dtype %s; expected %s for format %s", what,
                       mf_dtype_name(m->scale_dtype),
                       m->format == MF_FORMAT_MXFP4 ? "f8_e8m0"
                       : block                      ? "f32, bf16, f16 or f8_e8m0"
                                                    : "f32, bf16 or f16",
                       mf_format_name(m->format));
    }
    if (m->format == MF_FORMAT_INT4_GROUP && (m->group_size < 2 || m->group_size % 2 != 0)) {
        return mf_fail(err, MF_ERR_INVALID, "%s: group_size %lld; expected an even number >= 2", what,
                       (long long)m->group_size);
    }
    int64_t rows, columns, extent;
    scale_grid(m, &rows, &columns);
    bool enough = channel ? m->scale_row_stride >= 0 : rows == 1 || m->scale_row_stride >= columns;
    if (!enough) {
        return mf_fail(err, MF_ERR_INVALID, "%s: scale_row_stride %lld; expected at least %lld", what,
                       (long long)m->scale_row_stride, (long long)(channel ? 0 : columns));
    }
    if (!mf_mul_ok(rows, m->scale_row_stride, &extent) || extent > PTRDIFF_MAX / 8 - columns) {
        return mf_fail(err, MF_ERR_INVALID, "%s: scale_row_stride %lld times %lld rows does not fit in memory", what,
                       (long long)m->scale_row_stride, (long long)rows);
    }
    return MF_OK;
}

mf_status mf_matrix_check(const mf_matrix *m, const char *what, mf_error *err)
{
    if ((unsigned)m->format >= MF_FORMAT_COUNT) {
        return mf_fail(err, MF_ERR_INVALID, "%s: format %d; expected 0 to %d", what, (int)m->format,
                       MF_FORMAT_COUNT - 1);
    }
    if (!m->data) {
        return mf_fail(err, MF_ERR_INVALID, "%s: weights are missing", what);
    }
    if (m->n < 1 || m->k < 1) {
        return mf_fail(err, MF_ERR_INVALID, "%s: shape [%lld, %lld]; expected at least [1, 1]", what, (long long)m->n,
                       (long long)m->k);
    }
    bool four = mf_format_is_4bit(m->format);
    if (m->row_stride < m->k || (four && m->row_stride % 2 != 0)) {
        return mf_fail(err, MF_ERR_INVALID, "%s: row_stride %lld; expected %s%lld or more", what,
                       (long long)m->row_stride, four ? "an even number, " : "", (long long)m->k);
    }
    int64_t extent;
    if (!mf_mul_ok(m->n, m->row_stride, &extent) || extent > PTRDIFF_MAX / 8) {
        return mf_fail(err, MF_ERR_INVALID, "%s: %lld rows of stride %lld do not fit in memory", what, (long long)m->n,
                       (long long)m->row_stride);
    }
    if (m->format >= MF_FORMAT_FP8_BLOCK) {
        MF_TRY(check_scale(m, what, err));
    }
    return MF_OK;
}

void mf_matrix_decode_codes(const mf_matrix *m, int64_t r, int64_t first, int64_t count, float *out)
{
    const uint8_t *row = mf_matrix_row(m, r);
    uint16_t h;
    switch (m->format) {
    case MF_FORMAT_F32:
        memcpy(out, row + 4 * first, (size_t)count * 4);
        return;
    case MF_FORMAT_BF16:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&h, row + 2 * (first + i), 2);
            out[i] = mf_bf16_to_f32(h);
        }
        return;
    case MF_FORMAT_F16:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&h, row + 2 * (first + i), 2);
            out[i] = mf_f16_to_f32(h);
        }
        return;
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL:
        for (int64_t i = 0; i < count; i++) {
            out[i] = mf_e4m3_values[row[first + i]];
        }
        return;
    case MF_FORMAT_INT8_CHANNEL:
        for (int64_t i = 0; i < count; i++) {
            out[i] = (float)(int8_t)row[first + i];
        }
        return;
    case MF_FORMAT_INT4_GROUP:
        for (int64_t i = 0; i < count; i++) {
            int64_t k = first + i;
            int code = (row[k / 2] >> (4 * (k & 1))) & 15;
            int zero = m->zero ? m->zero[mf_matrix_scale_row(m, r) + k / m->group_size] : 8;
            out[i] = (float)(code - zero);
        }
        return;
    case MF_FORMAT_MXFP4:
        for (int64_t i = 0; i < count; i++) {
            int64_t k = first + i;
            out[i] = e2m1_values[(row[k / 2] >> (4 * (k & 1))) & 15];
        }
        return;
    case MF_FORMAT_COUNT:
        return;
    }
}

void mf_matrix_decode_row(const mf_matrix *m, int64_t r, int64_t first, int64_t count, float *out)
{
    mf_matrix_decode_codes(m, r, first, count, out);
    if (m->format < MF_FORMAT_FP8_BLOCK) {
        return;
    }
    int64_t group = mf_matrix_group(m);
    int64_t base = mf_matrix_scale_row(m, r);
    for (int64_t i = 0; i < count;) {
        int64_t g = group ? (first + i) / group : 0;
        int64_t end = group && (g + 1) * group - first < count ? (g + 1) * group - first : count;
        float scale = mf_matrix_scale_at(m, base + g);
        for (; i < end; i++) {
            out[i] *= scale;
        }
    }
}

mf_matrix mf_matrix_rows(const mf_matrix *m, int64_t first, int64_t count)
{
    mf_matrix view = *m;
    view.data = mf_matrix_row(m, first);
    view.n = count;
    if (m->format >= MF_FORMAT_FP8_BLOCK) {
        int64_t offset = mf_matrix_scale_row(m, first);
        view.scale = (const uint8_t *)m->scale + offset * (int64_t)mf_dtype_size(m->scale_dtype);
        view.zero = m->zero ? m->zero + offset : NULL;
    }
    return view;
}

mf_matrix mf_matrix_columns(const mf_matrix *m, int64_t first, int64_t count)
{
    mf_matrix view = *m;
    int64_t group = mf_matrix_group(m);
    view.data = (const uint8_t *)m->data + first * mf_format_bits(m->format) / 8;
    view.k = count;
    if (group) {
        int64_t offset = first / group;
        view.scale = (const uint8_t *)m->scale + offset * (int64_t)mf_dtype_size(m->scale_dtype);
        view.zero = m->zero ? m->zero + offset : NULL;
    }
    return view;
}

int64_t mf_matrix_bytes(const mf_matrix *m)
{
    int64_t codes = m->n * ((m->k * mf_format_bits(m->format) + 7) / 8);
    if (m->format < MF_FORMAT_FP8_BLOCK) {
        return codes;
    }
    int64_t rows, columns;
    scale_grid(m, &rows, &columns);
    if (m->scale_row_stride == 0) {
        rows = 1;
    }
    return codes + rows * columns * ((int64_t)mf_dtype_size(m->scale_dtype) + (m->zero ? 1 : 0));
}
