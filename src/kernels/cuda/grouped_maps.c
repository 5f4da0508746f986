/* grouped_maps.c - tensor maps of a table's matrices: how the copy engine of Hopper reads boxes of their rows. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/grouped_maps.h"

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                              const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* A matrix as lines of 128 bytes: [line][row][128 bytes]; boxes of `lines` lines by `rows` rows, swizzled as the
 * products read them.  What lies past the last row or line arrives as zeros. */
static CUresult encode(encode_fn make, const mf_cuda_matrix *m, uint32_t rows, uint32_t lines, CUtensorMap *out)
{
    const bool fp8 = m->format == MF_FORMAT_FP8_BLOCK;
    const cuuint64_t size = fp8 ? 1 : 2, columns = 128 / size;
    const cuuint64_t sizes[3] = { columns, (cuuint64_t)m->n, (cuuint64_t)m->k / columns };
    const cuuint64_t pitch[2] = { (cuuint64_t)m->row_stride * size, 128 };
    const cuuint32_t box[3] = { (cuuint32_t)columns, rows, lines }, every[3] = { 1, 1, 1 };
    return make(out, fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)m->data, sizes,
                pitch, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* A matrix of 4-bit codes as rows of bytes; boxes of 64 rows by 128 bytes, swizzled, zeros past its end. */
static CUresult encode_packed(encode_fn make, const mf_cuda_matrix *m, CUtensorMap *out)
{
    const cuuint64_t sizes[2] = { (cuuint64_t)m->k / 2, (cuuint64_t)m->n }, pitch = (cuuint64_t)m->row_stride / 2;
    const cuuint32_t box[2] = { 128, 64 }, every[2] = { 1, 1 };
    return make(out, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)m->data, sizes, &pitch, box, every,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static size_t boxes_of(bool packed)
{
    return packed ? 1 : MF_CUDA_BOXES;
}

size_t mf_cuda_grouped_maps_bytes(int64_t num_slots, bool packed)
{
    return (size_t)num_slots * 3 * boxes_of(packed) * sizeof(CUtensorMap);
}

mf_status mf_cuda_grouped_maps(const mf_cuda_slot *slots, int64_t num_slots, bool packed, void *maps, mf_error *err)
{
    void *found = NULL;
    enum cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || !found) {
        return mf_fail(err, MF_ERR_DEVICE,
                       "the NVIDIA driver has no cuTensorMapEncodeTiled: expected one for CUDA 12.0 or later");
    }
    encode_fn make = NULL;
    memcpy(&make, &found, sizeof make); /* no cast from data to code */
    CUtensorMap *out = maps;
    for (int64_t s = 0; s < num_slots; s++) {
        const mf_cuda_matrix *of[3] = { &slots[s].gate, &slots[s].up, &slots[s].down };
        for (int i = 0; i < 3; i++) {
            for (size_t k = 0; k < boxes_of(packed); k++, out++) {
                const uint32_t rows = k == MF_CUDA_BOX_32 ? 32 : 64, lines = k == MF_CUDA_BOX_LONG ? 1 : 128 / rows;
                const CUresult made = packed ? encode_packed(make, of[i], out) : encode(make, of[i], rows, lines, out);
                if (made != CUDA_SUCCESS) {
                    static const char *const names[3] = { "gate", "up", "down" };
                    return mf_fail(err, MF_ERR_DEVICE,
                                   "slot %lld, %s [%lld, %lld]: the driver makes no tensor map (error %d)",
                                   (long long)s, names[i], (long long)of[i]->n, (long long)of[i]->k, (int)made);
                }
            }
        }
    }
    return MF_OK;
}
