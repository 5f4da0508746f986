/* rates_neon.c - what aarch64's 128-bit registers reach: see kernels/bench/rates.h. */
#include <arm_neon.h>

#include "kernels/bench/rates.h"
#include "kernels/cpu/unroll.h"

static double rate_f32(int64_t rounds)
{
    enum { CHAINS = 24 };
    float32x4_t acc[CHAINS];
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = vdupq_n_f32((float)i * 1e-3f);
    }
    const float32x4_t factor = vdupq_n_f32(0.999f), addend = vdupq_n_f32(1e-5f);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL(24)
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = vfmaq_f32(addend, acc[i], factor);
        }
    }
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"w"(acc[i]));
    }
    return (double)rounds * CHAINS * 4 * 2;
}

static uint64_t read_vectors(const void *data, size_t bytes, size_t ahead)
{
    const uint8_t *p = data;
    uint8x16_t a = vdupq_n_u8(0), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 128) {
        if (ahead) {
            __builtin_prefetch(p + i + ahead);
            __builtin_prefetch(p + i + ahead + 64);
        }
        a = veorq_u8(a, veorq_u8(vld1q_u8(p + i), vld1q_u8(p + i + 16)));
        b = veorq_u8(b, veorq_u8(vld1q_u8(p + i + 32), vld1q_u8(p + i + 48)));
        c = veorq_u8(c, veorq_u8(vld1q_u8(p + i + 64), vld1q_u8(p + i + 80)));
        d = veorq_u8(d, veorq_u8(vld1q_u8(p + i + 96), vld1q_u8(p + i + 112)));
    }
    a = veorq_u8(veorq_u8(a, b), veorq_u8(c, d));
    return vgetq_lane_u64(vreinterpretq_u64_u8(a), 0);
}

const mf_rates mf_rates_neon = { "neon", { [MF_RATE_F32] = rate_f32 }, read_vectors };
