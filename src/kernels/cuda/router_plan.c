/* router_plan.c - which calls router_gate.cu takes. */
#include "kernels/cuda/router_gate.h"

bool mf_cuda_is_router(const mf_cuda_gpu *gpu, const mf_cuda_linear *product)
{
    enum { STATIC = 16 * 1024, MOST_RUNS = 2 }; /* shared memory that the kernel declares, runs of a block: at most */
    const mf_cuda_matrix *w = &product->w[0];
    return gpu->capability == 90 && product->num == 1 && product->num_tokens == 1 && product->num_batches == 0 &&
           product->parts == 3 && product->norm_weight && product->norm_add && (w->n == 64 || w->n == 128) &&
           w->k == MF_CUDA_ROUTER_UNITS * 64 * product->runs &&
           mf_cuda_router_shared(w->n, MOST_RUNS) + STATIC <= gpu->shared_bytes;
}

bool mf_cuda_router_chooses(const mf_cuda_linear *product, const mf_cuda_gate *gate, const mf_cuda_grid *grid)
{
    const bool is_alone = grid->rows_width == product->w[0].n && grid->rows == 0 && gate->num_tokens == 1;
    return is_alone && gate->logits == product->out[0] && gate->logits_dtype == MF_F32 && gate->n_group <= 1 &&
           !gate->histogram && !gate->num_valid && !gate->row_valid;
}
