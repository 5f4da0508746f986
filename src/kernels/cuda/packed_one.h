/* packed_one.h - what the plan of packed_one.cu and its kernels agree on. */
#ifndef MF_KERNELS_CUDA_PACKED_ONE_H
#define MF_KERNELS_CUDA_PACKED_ONE_H

#include "kernels/cuda/calls.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Pairs it takes at most; rows of a unit; stages of a ring; bytes of a row of codes in a stage: 512 columns of 4 bits, 256 of
 * 8. */
enum { MF_CUDA_PACKED_ONE_PAIRS = 64, MF_CUDA_PACKED_ONE_ROWS = 8, MF_CUDA_PACKED_ONE_DEPTH = 6, MF_CUDA_PACKED_ONE_BYTES = 256 };

/* What matrices of a table have in common where they differ in their addresses alone. */
typedef struct mf_cuda_alike_matrix {
    int32_t row_bytes, scale_stride; /* from row to row: bytes, elements */
    int32_t group_shift, scale_size, scale_dtype, has_zeros;
} mf_cuda_alike_matrix;

typedef struct mf_cuda_alike {
    int32_t is, has_biases, activation;
    float limit, alpha;
    mf_cuda_alike_matrix up, down; /* up: gate's, too */
} mf_cuda_alike;

/* Of w13 or of w2: warps of a block, stages of a warp's ring and their bytes; units whose scales and zero points a warp has at a
 * time, and bytes of a half of them (w2: of all); of a block. */
typedef struct mf_cuda_packed_one_launch {
    int32_t warps, depth, stage_bytes, turns, scale_bytes, zero_bytes, bytes;
} mf_cuda_packed_one_launch;

typedef struct mf_cuda_packed_one {
    mf_cuda_packed_one_launch of[2]; /* w13, w2; warps 0: another kernel takes the call */
    mf_cuda_alike alike;
} mf_cuda_packed_one;

/* Bytes of a row of x. */
#define MF_CUDA_PACKED_ONE_X_PITCH(hidden) (((hidden) + 127) / 128 * 256)

/* sum: read if call->few_combines; nothing is sorted before. */
int mf_cuda_launch_packed_one(const mf_cuda_grouped *call, const mf_cuda_packed_one *one, const mf_cuda_sum *sum, void *stream);

#ifdef __cplusplus
}
#endif
#endif
