/* sum_reduce.cuh - one element of the combine: the fixed chain of ref/sum_reduce.c, for the kernels that end with it. */
#ifndef MF_KERNELS_CUDA_SUM_REDUCE_CUH
#define MF_KERNELS_CUDA_SUM_REDUCE_CUH

#include "kernels/cuda/numbers.cuh"

MF_DEV bool sum_row_valid(const mf_cuda_sum &p, int64_t t)
{
    return t < num_valid_rows(p.num_valid, p.num_tokens, p.bytewise) && (!p.row_valid || p.row_valid[t] != 0);
}

MF_DEV float sum_weight(const mf_cuda_sum &p, int64_t t, int c)
{
    return p.weights ? load_at<float>(p.weights, t * p.weights_stride + c, p.bytewise) : 1.0f;
}

MF_DEV float addend_weight(const mf_cuda_sum &p, int64_t t, int a)
{
    return p.addend_weights ? load_at<float>(p.addend_weights, t * p.addend_weights_stride + a, p.bytewise) : 1.0f;
}

#endif
