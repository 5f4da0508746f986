/* fp_env.h - the floating-point environment that the arithmetic is defined in: round to nearest even, subnormals kept, no
 * traps.  Callers may run with FTZ/DAZ or another rounding mode; public entry points switch and restore.  A pool's threads
 * inherit whatever was set when they started, so tasks that do float arithmetic switch for themselves. */
#ifndef MF_KERNELS_FP_ENV_H
#define MF_KERNELS_FP_ENV_H

#include <stdint.h>

typedef uint64_t mf_fp_env;

/* The function that computes must not be inlined into the one that switches: compilers may move plain arithmetic across
 * the switch. */
#define MF_NOINLINE __attribute__((noinline))

#if defined(__x86_64__)
#include <xmmintrin.h>

static inline mf_fp_env mf_fp_enter(void)
{
    mf_fp_env saved = _mm_getcsr();
    _mm_setcsr(0x1f80u); /* all exceptions masked, nearest even, FTZ and DAZ off */
    return saved;
}

static inline void mf_fp_leave(mf_fp_env saved)
{
    _mm_setcsr((unsigned)saved);
}

#elif defined(__aarch64__)

static inline mf_fp_env mf_fp_enter(void)
{
    uint64_t saved, clean = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved)::"memory");
    __asm__ volatile("msr fpcr, %0" ::"r"(clean) : "memory");
    return saved;
}

static inline void mf_fp_leave(mf_fp_env saved)
{
    __asm__ volatile("msr fpcr, %0" ::"r"(saved) : "memory");
}

#else

static inline mf_fp_env mf_fp_enter(void)
{
    return 0;
}

static inline void mf_fp_leave(mf_fp_env saved)
{
    (void)saved;
}

#endif
#endif
