/* combine_norm.h - the combine with the norm behind it: one launch. */
#ifndef MF_KERNELS_CUDA_COMBINE_NORM_H
#define MF_KERNELS_CUDA_COMBINE_NORM_H

#include "kernels/cuda/calls.h"
#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* More tokens than these: x is bf16, rows are multiples of 8 elements. */
enum { MF_CUDA_COMBINE_NORM_FEW = 64 };

/* f32 everywhere, but x may be bf16; rows on 16 bytes. */
typedef struct mf_cuda_combine_norm {
    const void *x;
    const float *weights, *residual; /* or NULL */
    const int32_t *ids;              /* or NULL */
    float *out;
    int64_t x_stride, column_stride, ids_stride, weights_stride, residual_stride, out_stride, num_tokens;
    int32_t hidden_size, num_columns, routed, x_is_bf16;
    float factor, norm_eps;
    const float *norm_weight;
    float *norm_out;        /* [T, hidden_size]; or NULL, of many tokens */
    uint16_t *norm_rounded; /* the same in bf16, or NULL */
} mf_cuda_combine_norm;

int mf_cuda_launch_combine_norm(const mf_cuda_combine_norm *call, int starts_early, void *stream);

#ifdef __cplusplus
}
#endif
#endif
