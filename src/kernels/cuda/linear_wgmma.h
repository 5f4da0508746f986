/* linear_wgmma.h - dense products on Hopper: a call with its tensor maps, from linear_hopper.c to linear_wgmma.cu. */
#ifndef MF_KERNELS_CUDA_LINEAR_WGMMA_H
#define MF_KERNELS_CUDA_LINEAR_WGMMA_H

#include <cuda.h>
#include <stdbool.h>

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MF_CUDA_STREAM_TOKENS = 128 };

typedef struct mf_cuda_linear_maps {
    CUtensorMap w[MF_CUDA_LINEAR_MOST], x; /* lines of 64 columns: [line][row][64]; x's planes follow one another */
    CUtensorMap rests;                     /* TILE: x's planes past the first */
    mf_cuda_linear p;
    int32_t w_rows, x_rows;   /* of a box */
    int32_t tile_rows;        /* TILE: of weights; two boxes where blocks are paired */
    int32_t is_paired;        /* TILE: clusters of two blocks share weights */
    int32_t is_double;        /* TILE of 128 rows: two sets of sums, runs of four lines */
    int32_t stages, x_stages; /* of rings; set by the launches of STREAM and WAVE */
    int32_t adds;             /* TILE with is_double: to what is in out */
    int32_t makes_heads;      /* TILE: the products are queries, keys and values, finished by `heads` */
    mf_cuda_gqa_prepare heads;
    float query_scale; /* queries become bf16 times this, in heads.q */
} mf_cuda_linear_maps;

/* Products with bf16 matrices whose k is a multiple of 64 and whose rows lie on 16 bytes; x as planes of bf16.  A
 * cudaError_t. */
int mf_cuda_linear_hopper(const mf_cuda_gpu *gpu, const mf_cuda_linear *call, void *stream);
/* The same of integer codes as they are, of up to MF_CUDA_CODES_TOKENS tokens. */
enum { MF_CUDA_CODES_TOKENS = 64 };
int mf_cuda_linear_hopper_codes(const mf_cuda_linear *call, int kind, void *stream);
/* The same of queries, keys and values with heads of 128, of more than MF_CUDA_STREAM_TOKENS tokens: norms, rope and
 * the bf16 cache's rows, too.  Halves of whole heads are rotated, or nothing is. */
int mf_cuda_linear_hopper_heads(const mf_cuda_gpu *gpu, const mf_cuda_linear *call, const mf_cuda_gqa_prepare *heads,
                                float query_scale, void *stream);

/* One product of more than MF_CUDA_STREAM_TOKENS tokens that is added to what is in out; whether a call can be that:
 * its tiles have two sets of sums. */
bool mf_cuda_linear_can_add(const mf_cuda_linear *call);
int mf_cuda_linear_hopper_add(const mf_cuda_gpu *gpu, const mf_cuda_linear *call, void *stream);

/* A norm (nothing added) and the product of its result, which counts as f32, with few rows: linear_router.cu. */
enum { MF_CUDA_ROUTER_ROWS = 128, MF_CUDA_ROUTER_TOKENS = 64 /* of a block */ };
typedef struct mf_cuda_router {
    CUtensorMap w;     /* lines of MF_CUDA_ROUTER_ROWS rows */
    mf_cuda_norm norm; /* as mf_cuda_launch_norm_rows has it, rows and weights on 16 bytes; rests is not written */
    const float *bias; /* or NULL */
    float *out;
    int64_t out_stride;
    int32_t rows, runs; /* of w; of k, as in mf_cuda_linear */
} mf_cuda_router;
/* Whether half of the multiprocessors get a block at least: with fewer tokens norm and product are quicker by
 * themselves. */
bool mf_cuda_linear_is_many(const mf_cuda_gpu *gpu, int64_t num_tokens);
int mf_cuda_linear_hopper_router(const mf_cuda_linear *call, const mf_cuda_norm *norm, void *stream);
int mf_cuda_launch_router(const mf_cuda_router *call, void *stream);

/* Matrices of so many rows that tiles of 128 are enough for every multiprocessor, and many times over. */
bool mf_cuda_linear_is_tall(const mf_cuda_linear *call);

int mf_cuda_launch_linear_stream(mf_cuda_linear_maps *call, void *stream);
/* Integer codes of a kind (mf_cuda_packed), up to MF_CUDA_CODES_TOKENS tokens; no map of w. */
int mf_cuda_launch_linear_codes_stream(mf_cuda_linear_maps *call, int kind, void *stream);
int mf_cuda_launch_linear_tiles(const mf_cuda_linear_maps *call, int multiprocessors, void *stream);

#ifdef __cplusplus
}
#endif
#endif
