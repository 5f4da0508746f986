/* format.h - stored weight formats, element by element: what backends share beyond ops.h. */
#ifndef MF_KERNELS_FORMAT_H
#define MF_KERNELS_FORMAT_H

#include "base/number.h"
#include "kernels/ops.h"

enum {
    MF_FP8_BLOCK_SIZE = 128, /* rows and columns under one scale of FP8_BLOCK */
    MF_MXFP4_GROUP = 32,
    MF_MAX_K_INT8 = 131072 /* 128 * 127 * k stays below 2^31 */
};

extern const float mf_e4m3_values[256];

/* Columns under one scale: 128, 32, group_size, or 0 where a scale covers a row (or there is none). */
static inline int64_t mf_matrix_group(const mf_matrix *m)
{
    switch (m->format) {
    case MF_FORMAT_FP8_BLOCK:
        return MF_FP8_BLOCK_SIZE;
    case MF_FORMAT_INT4_GROUP:
        return m->group_size;
    case MF_FORMAT_MXFP4:
        return MF_MXFP4_GROUP;
    default:
        return 0;
    }
}

static inline bool mf_format_is_4bit(mf_format format)
{
    return format == MF_FORMAT_INT4_GROUP || format == MF_FORMAT_MXFP4;
}

/* Bits of one stored code. */
static inline int64_t mf_format_bits(mf_format format)
{
    return format == MF_FORMAT_F32                               ? 32
           : format == MF_FORMAT_BF16 || format == MF_FORMAT_F16 ? 16
           : mf_format_is_4bit(format)                           ? 4
                                                                 : 8;
}

/* First byte of row r's codes. */
static inline const uint8_t *mf_matrix_row(const mf_matrix *m, int64_t r)
{
    return (const uint8_t *)m->data + r * m->row_stride * mf_format_bits(m->format) / 8;
}

/* Element i of the scale grid as f32. */
static inline float mf_matrix_scale_at(const mf_matrix *m, int64_t i)
{
    uint16_t h;
    float f;
    switch (m->scale_dtype) {
    case MF_F8_E8M0:
        return mf_e8m0_to_f32(((const uint8_t *)m->scale)[i]);
    case MF_BF16:
        memcpy(&h, (const uint8_t *)m->scale + 2 * i, 2);
        return mf_bf16_to_f32(h);
    case MF_F16:
        memcpy(&h, (const uint8_t *)m->scale + 2 * i, 2);
        return mf_f16_to_f32(h);
    default:
        memcpy(&f, (const uint8_t *)m->scale + 4 * i, 4);
        return f;
    }
}

/* Index in the scale grid of row r's first scale. */
static inline int64_t mf_matrix_scale_row(const mf_matrix *m, int64_t r)
{
    return (m->format == MF_FORMAT_FP8_BLOCK ? r / MF_FP8_BLOCK_SIZE : r) * m->scale_row_stride;
}

/* Codes of row r, columns [first, first + count), as f32 without their scales (INT4: minus the zero point): exact. */
void mf_matrix_decode_codes(const mf_matrix *m, int64_t r, int64_t first, int64_t count, float *out);

#endif
