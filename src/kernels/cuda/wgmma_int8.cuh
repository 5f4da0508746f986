/* wgmma_int8.cuh - Hopper's products of a warpgroup on int8 codes, with s32 sums: exact up to k of 132,000. */
#ifndef MF_KERNELS_CUDA_WGMMA_INT8_CUH
#define MF_KERNELS_CUDA_WGMMA_INT8_CUH

#include "kernels/cuda/wgmma.cuh"

/* pin of sums that are integers. */
template <int COUNT> static __device__ __forceinline__ void pin(int32_t (&sums)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+r"(sums[i])::"memory");
    }
}

/* One instruction: sums (=, or += with `add`) rows x tokens over 32 bytes of K. */
template <int N> struct integer_products;

#define MF_INTEGERS4(i) "+r"(sums[i]), "+r"(sums[i + 1]), "+r"(sums[i + 2]), "+r"(sums[i + 3])
#define MF_INTEGERS8(i) MF_INTEGERS4(i), MF_INTEGERS4(i + 4)
#define MF_INTEGERS_8 MF_INTEGERS4(0)
#define MF_INTEGERS_16 MF_INTEGERS8(0)
#define MF_INTEGERS_32 MF_INTEGERS_16, MF_INTEGERS8(8)
#define MF_INTEGERS_48 MF_INTEGERS_32, MF_INTEGERS8(16)
#define MF_INTEGERS_64 MF_INTEGERS_48, MF_INTEGERS8(24)
#define MF_INTEGERS_80 MF_INTEGERS_64, MF_INTEGERS8(32)
#define MF_INTEGERS_96 MF_INTEGERS_80, MF_INTEGERS8(40)
#define MF_INTEGERS_112 MF_INTEGERS_96, MF_INTEGERS8(48)
#define MF_INTEGERS_128 MF_INTEGERS_112, MF_INTEGERS8(56)

#if MF_HAS_WGMMA
#define MF_INTEGER_BODY(N, ROWS, TOKENS, ADD)                                                                          \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #ADD ", 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" MF_SUMS_##N "}, %" #ROWS ", %" #TOKENS       \
                                                                                      ", p; }"                         \
                 : MF_INTEGERS_##N                                                                                     \
                 : "l"(rows), "l"(tokens), "r"(add));
#else
#define MF_INTEGER_BODY(N, ROWS, TOKENS, ADD)
#endif

#define MF_INTEGER_PRODUCTS(N, ROWS, TOKENS, ADD)                                                                      \
    template <> struct integer_products<N> {                                                                           \
        static __device__ __forceinline__ void s8(int32_t (&sums)[N / 2], uint64_t rows, uint64_t tokens, int add)     \
        {                                                                                                              \
            MF_INTEGER_BODY(N, ROWS, TOKENS, ADD)                                                                      \
        }                                                                                                              \
    };

MF_INTEGER_PRODUCTS(8, 4, 5, 6)
MF_INTEGER_PRODUCTS(16, 8, 9, 10)
MF_INTEGER_PRODUCTS(32, 16, 17, 18)
MF_INTEGER_PRODUCTS(48, 24, 25, 26)
MF_INTEGER_PRODUCTS(64, 32, 33, 34)
MF_INTEGER_PRODUCTS(80, 40, 41, 42)
MF_INTEGER_PRODUCTS(96, 48, 49, 50)
MF_INTEGER_PRODUCTS(112, 56, 57, 58)
MF_INTEGER_PRODUCTS(128, 64, 65, 66)

#endif
