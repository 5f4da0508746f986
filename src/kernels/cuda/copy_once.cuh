/* copy_once.cuh - wgmma.cuh's copy_box of experts' weights, which a launch reads once or a few times close together:
 * they leave the second-level cache before what the kernels of a step share - their code, tables, activations - which a
 * layer's experts would push out. */
#ifndef MF_KERNELS_CUDA_COPY_ONCE_CUH
#define MF_KERNELS_CUDA_COPY_ONCE_CUH

#include "kernels/cuda/wgmma.cuh"

MF_PTX void copy_box_once(void *shared, const CUtensorMap *map, int row, int line, uint64_t *barrier)
{
#if MF_HAS_WGMMA
    constexpr uint64_t EVICT_FIRST = 0x12f0000000000000; /* as createpolicy.fractional.L2::evict_first makes it */
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1, {%3, %4, "
                 "%5}], [%2], %6;" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(line), "l"(EVICT_FIRST)
                 : "memory");
#endif
}

#endif
