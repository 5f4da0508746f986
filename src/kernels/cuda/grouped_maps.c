/* grouped_maps.c - tensor maps of a table's matrices: how the copy engine of Hopper reads boxes of their rows. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/grouped_maps.h"

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
                              const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* Boxes of `rows` rows by 128 bytes, swizzled as the products read them. */
static CUresult encode(encode_fn make, const mf_cuda_matrix *m, uint32_t rows, CUtensorMap *out)
{
    const bool fp8 = m->format == MF_FORMAT_FP8_BLOCK;
    const cuuint64_t size = fp8 ? 1 : 2, sizes[2] = { (cuuint64_t)m->k, (cuuint64_t)m->n };
    const cuuint64_t pitch[1] = { (cuuint64_t)m->row_stride * size };
    const cuuint32_t box[2] = { (cuuint32_t)(128 / size), rows }, every[2] = { 1, 1 };
    return make(out, fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)m->data, sizes, pitch, box,
                every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

size_t mf_cuda_grouped_maps_bytes(int64_t num_slots)
{
    return (size_t)num_slots * 3 * 2 * sizeof(CUtensorMap);
}

mf_status mf_cuda_grouped_maps(const mf_cuda_slot *slots, int64_t num_slots, void *maps, mf_error *err)
{
    void *found = NULL;
    enum cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || !found) {
        return mf_fail(err, MF_ERR_DEVICE, "the NVIDIA driver has no cuTensorMapEncodeTiled: expected one for CUDA 12.0 or later");
    }
    encode_fn make = NULL;
    memcpy(&make, &found, sizeof make); /* no cast from data to code */
    CUtensorMap *out = maps;
    for (int64_t s = 0; s < num_slots; s++) {
        const mf_cuda_matrix *of[3] = { &slots[s].gate, &slots[s].up, &slots[s].down };
        for (int i = 0; i < 3; i++, out += 2) {
            const CUresult long_result = encode(make, of[i], 64, &out[0]), short_result = encode(make, of[i], 16, &out[1]);
            if (long_result != CUDA_SUCCESS || short_result != CUDA_SUCCESS) {
                static const char *const names[3] = { "gate", "up", "down" };
                return mf_fail(err, MF_ERR_DEVICE, "slot %lld, %s [%lld, %lld]: the driver makes no tensor map (error %d)",
                               (long long)s, names[i], (long long)of[i]->n, (long long)of[i]->k,
                               (int)(long_result != CUDA_SUCCESS ? long_result : short_result));
            }
        }
    }
    return MF_OK;
}
