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
static CUresult encode(encode_fn make, const void *data, bool fp8, int64_t n, int64_t k, int64_t row_bytes,
                       uint32_t rows, uint32_t lines, CUtensorMap *out)
{
    const cuuint64_t columns = fp8 ? 128 : 64;
    const cuuint64_t sizes[3] = { columns, (cuuint64_t)n, (cuuint64_t)k / columns };
    const cuuint64_t pitch[2] = { (cuuint64_t)row_bytes, 128 };
    const cuuint32_t box[3] = { (cuuint32_t)columns, rows, lines }, every[3] = { 1, 1, 1 };
    return make(out, fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)data, sizes,
                pitch, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

size_t mf_cuda_grouped_maps_bytes(int64_t num_slots)
{
    return (size_t)num_slots * 3 * MF_CUDA_BOXES * sizeof(CUtensorMap);
}

static mf_status find_encode(encode_fn *out, mf_error *err)
{
    void *found = NULL;
    enum cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || !found) {
        return mf_fail(err, MF_ERR_DEVICE,
                       "the NVIDIA driver has no cuTensorMapEncodeTiled: expected one for CUDA 12.0 or later");
    }
    memcpy(out, &found, sizeof *out); /* no cast from data to code */
    return MF_OK;
}

mf_status mf_cuda_grouped_row_maps(const mf_cuda_grouped *call, mf_cuda_row_maps *out, mf_error *err)
{
    encode_fn make = NULL;
    MF_TRY(find_encode(&make, err));
    const bool fp8 = call->fp8 != 0;
    for (int i = 0; i < MF_CUDA_ROW_BOXES; i++) {
        CUresult made = encode(make, call->h_bytes, fp8, call->e.num_pairs, call->e.h_stride, call->h_pitch, 128u >> i,
                               1, (CUtensorMap *)out->h[i]);
        if (made == CUDA_SUCCESS && call->x_in_order) {
            made = encode(make, call->x_sorted, fp8, call->e.num_pairs, call->e.hidden_size, call->e.hidden_size * 2,
                          128u >> i, 1, (CUtensorMap *)out->x[i]);
        }
        if (made != CUDA_SUCCESS) {
            return mf_fail(err, MF_ERR_DEVICE, "experts: the driver makes no tensor map of %lld rows (error %d)",
                           (long long)call->e.num_pairs, (int)made);
        }
    }
    return MF_OK;
}

mf_status mf_cuda_grouped_maps(const mf_cuda_slot *slots, int64_t num_slots, void *maps, mf_error *err)
{
    encode_fn make = NULL;
    MF_TRY(find_encode(&make, err));
    CUtensorMap *out = maps;
    for (int64_t s = 0; s < num_slots; s++) {
        const mf_cuda_matrix *of[3] = { &slots[s].gate, &slots[s].up, &slots[s].down };
        for (int i = 0; i < 3; i++) {
            for (int k = 0; k < MF_CUDA_BOXES; k++, out++) {
                const uint32_t rows = k == MF_CUDA_BOX_32 ? 32 : 64, lines = k == MF_CUDA_BOX_LONG ? 1 : 128 / rows;
                const bool fp8 = of[i]->format == MF_FORMAT_FP8_BLOCK;
                const CUresult made = encode(make, of[i]->data, fp8, of[i]->n, of[i]->k,
                                             of[i]->row_stride * (fp8 ? 1 : 2), rows, lines, out);
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
