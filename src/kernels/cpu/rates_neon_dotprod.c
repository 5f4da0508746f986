/* rates_neon_dotprod.c - SDOT: see kernels/bench/rates.h. */
#include <arm_neon.h>

#include "kernels/bench/rates.h"
#include "kernels/cpu/unroll.h"

static double rate_int8(int64_t rounds)
{
    enum { CHAINS = 24 };
    int32x4_t acc[CHAINS];
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = vdupq_n_s32(i);
    }
    const int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(-5);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL(24)
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = vdotq_s32(acc[i], a, b);
        }
    }
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"w"(acc[i]));
    }
    return (double)rounds * CHAINS * 16 * 2;
}

const mf_rates mf_rates_neon_dotprod = { "neon_dotprod", { [MF_RATE_INT8] = rate_int8 }, NULL };
