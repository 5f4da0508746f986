/* unroll.h - INLINE and UNROLL for the ISA files: helpers must vanish into their loops, loops over registers into lines. */
#ifndef MF_KERNELS_CPU_UNROLL_H
#define MF_KERNELS_CPU_UNROLL_H

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL(n) _Pragma("clang loop unroll(full)")
#else
#define UNROLL_TEXT(text) _Pragma(#text)
#define UNROLL(n) UNROLL_TEXT(GCC unroll n)
#endif

#endif
