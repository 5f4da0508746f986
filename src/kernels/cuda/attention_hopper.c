/* attention_hopper.c - the host's side of attention_wgmma.cu: the tensor maps of a call. */
#include <cuda_runtime_api.h>

#include "kernels/cuda/attention_wgmma.h"
#include "kernels/cuda/tensor_maps.h"

/* The cache; how many rows it has is not known here, and need not be: block tables name those that there are, and
 * negative rows arrive as zeros. */
static int encode(mf_cuda_encode_fn make, const mf_cuda_attention *p, int32_t rows, int32_t lines, CUtensorMap *out)
{
    const CUresult made = mf_cuda_encode_lines(make, p->cache, false, (int64_t)1 << 30, p->row_size, p->row_size * 2,
                                               (uint32_t)rows, (uint32_t)lines, out);
    return made == CUDA_SUCCESS ? 0 : (int)cudaErrorInvalidValue;
}

float mf_cuda_attention_scale(float scale)
{
    return (float)((double)scale * 1.4426950408889634);
}

/* A call with its maps: whole boxes are `rows` rows of `lines` lines. */
static int prepare_call(const mf_cuda_attention *call, int32_t rows, int32_t lines, mf_cuda_attention_maps *out)
{
    mf_cuda_encode_fn make = NULL;
    int code = mf_cuda_find_encode(&make);
    if (code != 0) {
        return code;
    }
    out->p = *call;
    out->p.scale = mf_cuda_attention_scale(call->scale);
    code = encode(make, call, rows, lines, &out->whole);
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
