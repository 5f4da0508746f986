/* linear_lines.cuh - what dense products on Hopper share: sums over lines of 64 columns of bf16. */
#ifndef MF_KERNELS_CUDA_LINEAR_LINES_CUH
#define MF_KERNELS_CUDA_LINEAR_LINES_CUH

#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/wgmma.cuh"

#define MF_SUMS_192                                                                                                    \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                 \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

#define MF_OPERANDS_192                                                                                                \
    MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28), MF_SUM4(32),  \
        MF_SUM4(36), MF_SUM4(40), MF_SUM4(44), MF_SUM4(48), MF_SUM4(52), MF_SUM4(56), MF_SUM4(60), MF_SUM4(64),        \
        MF_SUM4(68), MF_SUM4(72), MF_SUM4(76), MF_SUM4(80), MF_SUM4(84), MF_SUM4(88), MF_SUM4(92)

template <> struct products<192> {
    static __device__ __forceinline__ void bf16(float (&sums)[96], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %98, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" MF_SUMS_192
                     "}, %96, %97, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_192
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

constexpr int LINE = 128;      /* bytes of k in a stage's rows: 64 columns */
constexpr int SUB = 64 * LINE; /* 64 rows of a line */

/* sums += one line of 64 rows by N. */
template <int N> MF_DEV void add_line(float (&sums)[N / 2], uint64_t rows, uint64_t columns, bool add)
{
#pragma unroll
    for (int k = 0; k < 4; k++) { /* 32 bytes of k each */
        products<N>::bf16(sums, rows + 2 * k, columns + 2 * k, add || k > 0);
    }
}

#endif
