/* attention_hopper.c - the host's side of attention_wgmma.cu: the tensor maps of a call. */
#include <cuda_runtime_api.h>
#include <string.h>

#include "kernels/cuda/attention_wgmma.h"

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                              const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The cache as [line of 64 columns][row][64], swizzled as products read it.  How many rows it has is not known here,
 * and need not be: block tables name those that there are, and negative rows arrive as zeros. */
static int encode(encode_fn make, const mf_cuda_attention *p, int32_t rows, int32_t lines, CUtensorMap *out)
{
    const cuuint64_t sizes[3] = { 64, (cuuint64_t)1 << 30, (cuuint64_t)p->row_size / 64 };
    const cuuint64_t pitch[2] = { (cuuint64_t)p->row_size * 2, 128 };
    const cuuint32_t boxes[3] = { 64, (cuuint32_t)rows, (cuuint32_t)lines }, every[3] = { 1, 1, 1 };
    const CUresult made = make(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)(uintptr_t)p->cache, sizes, pitch,
                               boxes, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return made == CUDA_SUCCESS ? 0 : (int)cudaErrorInvalidValue;
}

/* A call with its maps: whole boxes are `rows` rows of `lines` lines. */
static int prepare_call(const mf_cuda_attention *call, int32_t rows, int32_t lines, mf_cuda_attention_maps *out)
{
    void *found = NULL;
    encode_fn make = NULL;
    enum cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || !found) {
        return error != cudaSuccess ? (int)error : (int)cudaErrorNotSupported;
    }
    memcpy(&make, &found, sizeof make); /* no cast from data to code */
    out->p = *call;
    out->p.scale = (float)((double)call->scale * 1.4426950408889634); /* scores in units of log2 */
    const int code = encode(make, call, rows, lines, &out->whole);
    return code != 0 ? code : encode(make, call, MF_CUDA_ATTENTION_BOX, 1, &out->part);
}

int mf_cuda_launch_attention_hopper(const mf_cuda_attention *call, const mf_cuda_gqa_prepare *prepare, void *stream)
{
    mf_cuda_attention_maps maps = { .makes_queries = prepare != NULL };
    if (prepare) {
        maps.r = *prepare;
    }
    const int code = prepare_call(call, 2 * MF_CUDA_PIECE, call->head_dim / 64, &maps);
    return code != 0 ? code : mf_cuda_launch_attention_wgmma(&maps, stream);
}

int mf_cuda_launch_attention_mla_hopper(const mf_cuda_attention *call, void *stream)
{
    mf_cuda_attention_maps maps = { .makes_queries = 0 };
    const int code = prepare_call(call, MF_CUDA_PIECE, 1, &maps);
    return code != 0 ? code : mf_cuda_launch_attention_mla_wgmma(&maps, stream);
}
