/* attention_wgmma.h - prefill of grouped queries on Hopper: a call with its tensor maps, from attention_hopper.c to
 * attention_wgmma.cu. */
#ifndef MF_KERNELS_CUDA_ATTENTION_WGMMA_H
#define MF_KERNELS_CUDA_ATTENTION_WGMMA_H

#include <cuda.h>

#include "kernels/cuda/dense_calls.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Positions that a tensor copy of part of a piece brings: they lie behind one another in the cache. */
enum { MF_CUDA_ATTENTION_BOX = 16 };
enum { MF_CUDA_MLA_ROWS = 64 }; /* of a block: heads of a token, or of several */

/* The cache as lines of 64 columns: [line][row][64]; boxes of two pieces of one kv head's keys or values, or of a piece
 * of one line of MLA's, and of MF_CUDA_ATTENTION_BOX rows of one line. */
typedef struct mf_cuda_attention_maps {
    CUtensorMap whole, part;
    mf_cuda_attention p;
    mf_cuda_gqa_prepare r; /* with `makes_queries`: q is what the projection left */
    int32_t makes_queries;
} mf_cuda_attention_maps;

/* A softmax's scale in units of log2. */
float mf_cuda_attention_scale(float scale);

/* With a scale in units of log2. */
int mf_cuda_launch_attention_mla_wgmma(const mf_cuda_attention_maps *call, void *stream);
int mf_cuda_launch_attention_wgmma(const mf_cuda_attention_maps *call, void *stream);

#ifdef __cplusplus
}
#endif
#endif
