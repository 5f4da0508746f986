/* grouped_packed.cu - grouped products of codes of 4 bits and activations of bf16: see grouped_packed.cuh. */
#include "kernels/cuda/grouped_packed.cuh"

int mf_cuda_launch_grouped_packed(const mf_cuda_grouped *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    switch (call->packed) {
    case MF_CUDA_PACKED_MXFP4:
        return launch_kind<MF_CUDA_PACKED_MXFP4>(call, s);
    case MF_CUDA_PACKED_INT4:
        return launch_kind<MF_CUDA_PACKED_INT4>(call, s);
    case MF_CUDA_PACKED_INT4_ANY:
        return launch_kind<MF_CUDA_PACKED_INT4_ANY>(call, s);
    case MF_CUDA_PACKED_FP8_BLOCK:
        return mf_cuda_launch_grouped_blocks(call, stream);
    default:
        return mf_cuda_launch_grouped_wide(call, stream);
    }
}
