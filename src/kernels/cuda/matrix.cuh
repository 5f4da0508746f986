/* matrix.cuh - values of a stored matrix of any format, as kernels/format.c decodes them. */
#ifndef MF_KERNELS_CUDA_MATRIX_CUH
#define MF_KERNELS_CUDA_MATRIX_CUH

#include <type_traits>

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/numbers.cuh"

template <int FORMAT> struct format_of {
    static constexpr int BITS = FORMAT == MF_FORMAT_F32                                       ? 32
                                : FORMAT == MF_FORMAT_BF16 || FORMAT == MF_FORMAT_F16         ? 16
                                : FORMAT == MF_FORMAT_INT4_GROUP || FORMAT == MF_FORMAT_MXFP4 ? 4
                                                                                              : 8;
    static constexpr bool SCALED = FORMAT >= MF_FORMAT_FP8_BLOCK;
};

template <int FORMAT> MF_DEV const uint8_t *matrix_row(const mf_cuda_matrix &m, int64_t r)
{
    return m.data + r * m.row_stride * format_of<FORMAT>::BITS / 8;
}

/* Index of row r's first scale. */
template <int FORMAT> MF_DEV int64_t matrix_scale_row(const mf_cuda_matrix &m, int64_t r)
{
    return (FORMAT == MF_FORMAT_FP8_BLOCK ? r / 128 : r) * m.scale_row_stride;
}

template <int FORMAT> MF_DEV int64_t scale_column(const mf_cuda_matrix &m, int64_t k)
{
    return FORMAT == MF_FORMAT_FP8_BLOCK    ? k / 128
           : FORMAT == MF_FORMAT_INT4_GROUP ? (int64_t)((uint32_t)k / (uint32_t)m.group_size)
           : FORMAT == MF_FORMAT_MXFP4      ? k / 32
                                            : 0;
}

/* Code of column k of a row, without its scale. */
template <int FORMAT>
MF_DEV float matrix_code(const mf_cuda_matrix &m, const uint8_t *row, int64_t scale_row, int64_t k)
{
    switch (FORMAT) {
    case MF_FORMAT_F32:
        return load_at<float>(row, k, m.reserved);
    case MF_FORMAT_BF16:
        return bf16_to_f32(load_at<uint16_t>(row, k, m.reserved));
    case MF_FORMAT_F16:
        return f16_to_f32(load_at<uint16_t>(row, k, m.reserved));
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL:
        return e4m3_to_f32(row[k]);
    case MF_FORMAT_INT8_CHANNEL:
        return (float)(int8_t)row[k];
    case MF_FORMAT_INT4_GROUP: {
        const int c = (row[k / 2] >> (4 * (k & 1))) & 15;
        return (float)(c - (m.zero ? m.zero[scale_row + scale_column<FORMAT>(m, k)] : 8));
    }
    default:
        return e2m1_to_f32((row[k / 2] >> (4 * (k & 1))) & 15);
    }
}

template <int FORMAT> MF_DEV float matrix_value(const mf_cuda_matrix &m, int64_t r, int64_t k)
{
    const int64_t scale_row = matrix_scale_row<FORMAT>(m, r);
    const float code = matrix_code<FORMAT>(m, matrix_row<FORMAT>(m, r), scale_row, k);
    return format_of<FORMAT>::SCALED ? __fmul_rn(code, scale_at(m, scale_row + scale_column<FORMAT>(m, k))) : code;
}

/* Columns [k, k + 8) of a row, those at or past m.k as zeros; is_wide: the eight codes can be read at once. */
template <int FORMAT>
MF_DEV void matrix_values8(const mf_cuda_matrix &m, const uint8_t *row, int64_t scale_row, int64_t k, bool is_wide,
                           float (&v)[8])
{
    if (is_wide && k + 8 <= m.k) {
        if (FORMAT == MF_FORMAT_F32) {
            const float4 a = *(const float4 *)(row + 4 * k), b = *(const float4 *)(row + 4 * k + 16);
            v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        } else if (format_of<FORMAT>::BITS == 16) {
            const uint4 a = *(const uint4 *)(row + 2 * k);
            const uint32_t w[4] = { a.x, a.y, a.z, a.w };
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const uint16_t h = (uint16_t)(w[i / 2] >> (16 * (i & 1)));
                v[i] = FORMAT == MF_FORMAT_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
            }
        } else if (format_of<FORMAT>::BITS == 8) {
            const uint2 a = *(const uint2 *)(row + k);
            const uint32_t w[2] = { a.x, a.y };
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const uint8_t b = (uint8_t)(w[i / 4] >> (8 * (i & 3)));
                v[i] = FORMAT == MF_FORMAT_INT8_CHANNEL ? (float)(int8_t)b : e4m3_to_f32(b);
            }
        } else {
            const uint32_t a = *(const uint32_t *)(row + k / 2);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int c = (int)(a >> (4 * i)) & 15;
                v[i] = FORMAT == MF_FORMAT_MXFP4
                           ? e2m1_to_f32(c)
                           : (float)(c - (m.zero ? m.zero[scale_row + scale_column<FORMAT>(m, k + i)] : 8));
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = k + i < m.k ? matrix_code<FORMAT>(m, row, scale_row, k + i) : 0.0f;
        }
    }
    if (format_of<FORMAT>::SCALED) {
        float scale = 0.0f;
        int64_t column = -1;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (k + i < m.k) {
                const int64_t c = scale_column<FORMAT>(m, k + i);
                if (c != column) {
                    column = c;
                    scale = scale_at(m, scale_row + c);
                }
                v[i] = __fmul_rn(v[i], scale);
            }
        }
    }
}

/* Calls f with the format as a constant. */
template <typename F> static int with_format(int format, F f)
{
    switch (format) {
    case MF_FORMAT_F32:
        return f(std::integral_constant<int, MF_FORMAT_F32>());
    case MF_FORMAT_BF16:
        return f(std::integral_constant<int, MF_FORMAT_BF16>());
    case MF_FORMAT_F16:
        return f(std::integral_constant<int, MF_FORMAT_F16>());
    case MF_FORMAT_FP8_BLOCK:
        return f(std::integral_constant<int, MF_FORMAT_FP8_BLOCK>());
    case MF_FORMAT_FP8_CHANNEL:
        return f(std::integral_constant<int, MF_FORMAT_FP8_CHANNEL>());
    case MF_FORMAT_INT8_CHANNEL:
        return f(std::integral_constant<int, MF_FORMAT_INT8_CHANNEL>());
    case MF_FORMAT_INT4_GROUP:
        return f(std::integral_constant<int, MF_FORMAT_INT4_GROUP>());
    default:
        return f(std::integral_constant<int, MF_FORMAT_MXFP4>());
    }
}

#endif
