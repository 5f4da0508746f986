/* attention.cuh - what attention's kernels share: which positions a row sees, where they lie, how spans are merged.
 *
 * Positions are cut into spans of MF_CUDA_SPAN, counted from 0.  A span's softmax is a piece of its own: its maximum,
 * the sum of its weights, the weighed values.  Pieces are merged in ascending order, so a row's bits depend on its
 * position, window and chunk alone: not on who computed which span. */
#ifndef MF_KERNELS_CUDA_ATTENTION_CUH
#define MF_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/numbers.cuh"

constexpr int SPAN = MF_CUDA_SPAN;

MF_DEV float minus_infinity()
{
    return __uint_as_float(0xff800000u);
}

/* mf_gqa_first of ops.h */
MF_DEV int64_t first_seen(const mf_cuda_attention &p, int64_t position)
{
    const int64_t by_window = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
    const int64_t by_chunk = p.chunk > 0 ? position / p.chunk * p.chunk : 0;
    return by_window > by_chunk ? by_window : by_chunk;
}

/* First value of a position's row in the cache. */
MF_DEV int64_t row_offset(const mf_cuda_attention &p, const int32_t *blocks, int64_t position)
{
    const uint32_t size = (uint32_t)p.block_size, at = (uint32_t)position;
    return ((int64_t)blocks[at / size] * p.block_size + at % size) * p.row_size;
}

/* Factors of what there is so far and of the next piece; m becomes the larger maximum. */
MF_DEV void merge_factors(float &m, float next, float &of_old, float &of_next)
{
    const float most = next > m || is_nan(m) ? next : m;
    of_old = m == minus_infinity() ? 0.0f : expf(__fsub_rn(m, most));
    of_next = next == minus_infinity() ? 0.0f : expf(__fsub_rn(next, most));
    m = most;
}

MF_DEV float merged(float old, float of_old, float next, float of_next)
{
    return __fmaf_rn(next, of_next, __fmul_rn(old, of_old));
}

/* Before the first span: nothing, or the sink, which has a score and no value. */
MF_DEV float start_maximum(const mf_cuda_attention &p, int head)
{
    return p.sinks ? p.sinks[head] : minus_infinity();
}

MF_DEV float start_sum(const mf_cuda_attention &p)
{
    return p.sinks ? 1.0f : 0.0f;
}

/* A piece of row t, head h and a span: [0] maximum, [1] sum, [2..] values. */
MF_DEV float *piece_of(const mf_cuda_attention &p, int64_t t, int head, int64_t span)
{
    return p.partial + ((t * p.num_heads + head) * p.most_spans + span) * (p.v_dim + 2);
}

#endif
