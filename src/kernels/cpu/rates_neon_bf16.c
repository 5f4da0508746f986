/* rates_neon_bf16.c - BFMMLA, 2 x 4 by 4 x 2 a time: see kernels/bench/rates.h. */
#include <arm_neon.h>

#include "kernels/bench/rates.h"
#include "kernels/cpu/unroll.h"

static double rate_bf16(int64_t rounds)
{
    enum { CHAINS = 24 };
    float32x4_t acc[CHAINS];
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = vdupq_n_f32((float)i);
    }
    const bfloat16x8_t a = vreinterpretq_bf16_u16(vdupq_n_u16(0x3c00)), b = vreinterpretq_bf16_u16(vdupq_n_u16(0x3b00));
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL(24)
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = vbfmmlaq_f32(acc[i], a, b);
        }
    }
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"w"(acc[i]));
    }
    return (double)rounds * CHAINS * (2 * 2 * 4 * 2);
}

const mf_rates mf_rates_neon_bf16 = { "neon_bf16", { [MF_RATE_BF16] = rate_bf16 }, NULL };
