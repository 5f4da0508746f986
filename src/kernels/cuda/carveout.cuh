/* carveout.cuh - kernels of a decode step ask for all shared memory that a multiprocessor has: it empties itself before
 * it changes how its memory is cut, and until then the next kernel's blocks cannot come to those of this one. */
#ifndef MF_KERNELS_CUDA_CARVEOUT_CUH
#define MF_KERNELS_CUDA_CARVEOUT_CUH

#include <cuda_runtime.h>

template <typename Kernel> static void want_all_shared(Kernel kernel)
{
    (void)cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

#endif
