/* grouped_blocks.cu - grouped products of FP8 blocks and activations of bf16: see grouped_packed.cuh. */
#include "kernels/cuda/grouped_packed.cuh"

int mf_cuda_launch_grouped_blocks(const mf_cuda_grouped *call, void *stream)
{
    return launch_kind<MF_CUDA_PACKED_FP8_BLOCK>(call, (cudaStream_t)stream);
}
