/* packed_few.h - what the plan of packed_few.cu and its kernels agree on. */
#ifndef MF_KERNELS_CUDA_PACKED_FEW_H
#define MF_KERNELS_CUDA_PACKED_FEW_H

#include <stdint.h>

enum { MF_CUDA_PACKED_FEW_TOKENS = 4, MF_CUDA_PACKED_FEW_PAIRS = 64 }; /* it takes */
/* Of a block; bytes of a slot in the list; scales of a unit that a thread has at most. */
enum { MF_CUDA_PACKED_FEW_WARPS = 8, MF_CUDA_PACKED_FEW_SLOT = 128, MF_CUDA_PACKED_FEW_SCALES = 4 };
/* Shared memory of a block where two or three are to share a multiprocessor. */
enum { MF_CUDA_PACKED_FEW_HALF = 112 * 1024, MF_CUDA_PACKED_FEW_THIRD = 75 * 1024 };

/* Lines of 128 columns in a warp's ring. */
#define MF_CUDA_PACKED_FEW_DEPTH(most) ((most) <= 2 ? 2 : 3)

/* Shared memory of a block: a ring for each warp, the slots in use and, twice for every team of `splits` warps, parts of `lines`
 * lines for up to `most` tokens (a team of one has none), scales and NaNs. */
static inline int64_t mf_cuda_packed_few_bytes(int64_t pairs, int most, int64_t lines, int splits)
{
    const int64_t ring = MF_CUDA_PACKED_FEW_DEPTH(most) * (16 * 128 + most * 256), teams = MF_CUDA_PACKED_FEW_WARPS / splits;
    return MF_CUDA_PACKED_FEW_WARPS * ring + pairs * MF_CUDA_PACKED_FEW_SLOT + (MF_CUDA_PACKED_FEW_PAIRS + 4) * 4 +
           teams * 8 * ((splits == 1 ? 0 : lines * most * 16) + 2 * lines + 16 * splits);
}

#endif
