/* packed_few4.h - what the plan of packed_few4.cu and its kernels agree on. */
#ifndef MF_KERNELS_CUDA_PACKED_FEW4_H
#define MF_KERNELS_CUDA_PACKED_FEW4_H

#include <stdint.h>

/* It takes at most; warps of a block; tokens that are multiplied together. */
enum { MF_CUDA_FEW4_TOKENS = 16, MF_CUDA_FEW4_PAIRS = 160, MF_CUDA_FEW4_WARPS = 16, MF_CUDA_FEW4_MOST = 8 };
/* Bytes of a slot in the list; of a token's 512 columns in a ring, and what rows of x have beside their columns: rows of 64
 * bytes that follow one another meet all banks. */
enum { MF_CUDA_FEW4_SLOT = 160, MF_CUDA_FEW4_TOKEN_BYTES = 1024 + 64, MF_CUDA_FEW4_PAD = 64 };
enum { MF_CUDA_FEW4_DEPTH = 4 }; /* stages of a ring, at most */

/* Of a warp's ring: 512 columns of 16 rows, their scales and zero points (any: of any dtype), and `most` tokens'. */
static inline int64_t mf_cuda_few4_stage_bytes(int is_mxfp4, int any, int most)
{
    return 16 * (256 + (is_mxfp4 ? 24 : any ? 68 + 24 : 40)) + most * MF_CUDA_FEW4_TOKEN_BYTES;
}

/* What a block has beside the rings: the slots in use and the pairs' ids; w13: rows of x. */
#define MF_CUDA_FEW4_LIST_BYTES(pairs) (((pairs) * MF_CUDA_FEW4_SLOT + (MF_CUDA_FEW4_PAIRS + 8) * 4 + 127) / 128 * 128)
#define MF_CUDA_FEW4_X_PITCH(hidden) (((hidden) + 127) / 128 * 256 + MF_CUDA_FEW4_PAD)

#endif
