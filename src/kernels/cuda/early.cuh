/* early.cuh - launches that may begin before the kernel in front of them has ended (sm_90): the dense operations'
 * kernels let the next one start at once and wait for what they read, so that launches and first loads of weights
 * overlap. */
#ifndef MF_KERNELS_CUDA_EARLY_CUH
#define MF_KERNELS_CUDA_EARLY_CUH

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sm90.cuh"

/* Every kernel that is launched so calls this before it reads or writes what others do, too. */
static __device__ __forceinline__ void begin_early()
{
    let_next_start();
    wait_for_previous();
}

template <typename... Params, typename... Args>
static int launch_early(void (*kernel)(Params...), dim3 grid, unsigned threads, size_t shared_bytes, void *stream,
                        Args... args)
{
    return launch_kernel(mf_cuda_starts_early != 0, kernel, grid, threads, shared_bytes, stream, args...);
}

#endif
