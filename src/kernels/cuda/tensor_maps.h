/* tensor_maps.h - how the copy engine of Hopper reads boxes of a matrix: the driver's encoder, and the map that
 * products read rows through. */
#ifndef MF_KERNELS_CUDA_TENSOR_MAPS_H
#define MF_KERNELS_CUDA_TENSOR_MAPS_H

#include <cuda.h>
#include <stdbool.h>
#include <stdint.h>

typedef CUresult (*mf_cuda_encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                      const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                      CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* 0, or a cudaError_t: a driver before CUDA 12.0 has none. */
int mf_cuda_find_encode(mf_cuda_encode_fn *out);

/* A matrix of n rows of k columns of bf16, or of bytes, as lines of 128 bytes: [line][row][128 bytes]; boxes of `lines`
 * lines by `rows` rows, swizzled as products read them.  What lies past the last row or line arrives as zeros. */
CUresult mf_cuda_encode_lines(mf_cuda_encode_fn make, const void *data, bool bytes, int64_t n, int64_t k,
                              int64_t row_bytes, uint32_t rows, uint32_t lines, CUtensorMap *out);

#endif
