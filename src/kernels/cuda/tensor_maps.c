/* tensor_maps.c - see tensor_maps.h. */
#include "kernels/cuda/tensor_maps.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <string.h>

int mf_cuda_find_encode(mf_cuda_encode_fn *out)
{
    static _Atomic(mf_cuda_encode_fn) known; /* whoever comes first looks; two find the same */
    *out = atomic_load_explicit(&known, memory_order_relaxed);
    if (*out) {
        return 0;
    }
    void *found = NULL;
    enum cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || !found) {
        return error != cudaSuccess ? (int)error : (int)cudaErrorNotSupported;
    }
    memcpy(out, &found, sizeof *out); /* no cast from data to code */
    atomic_store_explicit(&known, *out, memory_order_relaxed);
    return 0;
}

CUresult mf_cuda_encode_lines(mf_cuda_encode_fn make, const void *data, bool bytes, int64_t n, int64_t k,
                              int64_t row_bytes, uint32_t rows, uint32_t lines, CUtensorMap *out)
{
    const cuuint64_t columns = bytes ? 128 : 64;
    const cuuint64_t sizes[3] = { columns, (cuuint64_t)n, (cuuint64_t)k / columns };
    const cuuint64_t pitch[2] = { (cuuint64_t)row_bytes, 128 };
    const cuuint32_t box[3] = { (cuuint32_t)columns, rows, lines }, every[3] = { 1, 1, 1 };
    return make(out, bytes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
                (void *)(uintptr_t)data, sizes, pitch, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}
