/* grouped_wide.cu - grouped products of FP8 or int8 codes with a scale a row, or of F16, and activations of bf16: see
 * grouped_packed.cuh. */
#include "kernels/cuda/grouped_packed.cuh"

int mf_cuda_launch_grouped_wide(const mf_cuda_grouped *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    switch (call->packed) {
    case MF_CUDA_PACKED_FP8_CHANNEL:
        return launch_kind<MF_CUDA_PACKED_FP8_CHANNEL>(call, s);
    case MF_CUDA_PACKED_INT8:
        return launch_kind<MF_CUDA_PACKED_INT8>(call, s);
    default:
        return launch_kind<MF_CUDA_PACKED_F16>(call, s);
    }
}
