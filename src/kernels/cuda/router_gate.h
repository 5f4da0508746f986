/* router_gate.h - the norm, the router's product and the gate of one token in one launch: whether calls can be, and
 * that launch. */
#ifndef MF_KERNELS_CUDA_ROUTER_GATE_H
#define MF_KERNELS_CUDA_ROUTER_GATE_H

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Units of 64 columns of a run. */
enum { MF_CUDA_ROUTER_UNITS = 4 };

/* Shared memory of a block with so many runs: their weights, and eight tokens in three planes of bf16, one of which
 * there is. */
static inline int64_t mf_cuda_router_shared(int64_t experts, int64_t runs)
{
    return runs * MF_CUDA_ROUTER_UNITS * (experts + 3 * 8) * 128;
}

/* A product with a norm in front of it (RING) that this launch could take if the gate of its results comes next. */
bool mf_cuda_is_router(const mf_cuda_gpu *gpu, const mf_cuda_linear *product);
/* That gate is this one. */
bool mf_cuda_router_chooses(const mf_cuda_linear *product, const mf_cuda_gate *gate, const mf_cuda_grid *grid);
int mf_cuda_launch_router_gate(const mf_cuda_linear *product, const mf_cuda_gate *gate, const mf_cuda_grid *grid,
                               void *stream);

#ifdef __cplusplus
}
#endif
#endif
