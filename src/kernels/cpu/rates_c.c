/* rates_c.c - what plain C reaches: see kernels/bench/rates.h. */
#include <string.h>

#include "kernels/bench/rates.h"

enum { CHAINS = 32 };

static volatile float float_sink;
static volatile int32_t int_sink;

/* Independent chains, so that latency does not count.  Product and sum are rounded apart, as everywhere in this rung.
 */
static double rate_f32(int64_t rounds)
{
    float acc[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        acc[i] = (float)i * 1e-3f;
    }
    for (int64_t r = 0; r < rounds; r++) {
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = acc[i] * 0.999f + 1e-5f;
        }
    }
    float sum = 0;
    for (int i = 0; i < CHAINS; i++) {
        sum += acc[i];
    }
    float_sink = sum;
    return (double)rounds * CHAINS * 2;
}

static double rate_int8(int64_t rounds)
{
    enum { CODES = 256 };
    static const int8_t step[4] = { 3, -5, 7, -2 };
    int8_t a[CODES], b[CODES];
    for (int i = 0; i < CODES; i++) {
        a[i] = (int8_t)(i - 128);
        b[i] = (int8_t)(step[i & 3] * i);
    }
    int32_t sum = 0;
    for (int64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" ::"r"(a), "r"(b)
                         : "memory"); /* the codes may have changed: nothing is summed once for all */
        int32_t dot = 0;
        for (int i = 0; i < CODES; i++) {
            dot += a[i] * b[i];
        }
        sum ^= dot;
    }
    int_sink = sum;
    return (double)rounds * CODES * 2;
}

static uint64_t read_words(const void *data, size_t bytes, size_t ahead)
{
    const char *p = data;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i < bytes; i += 64) {
        uint64_t w[8];
        if (ahead) {
            __builtin_prefetch(p + i + ahead);
        }
        memcpy(w, p + i, sizeof w);
        a += w[0] ^ w[4];
        b ^= w[1] + w[5];
        c += w[2] ^ w[6];
        d ^= w[3] + w[7];
    }
    return a + b + c + d;
}

const mf_rates mf_rates_c = { "c", { [MF_RATE_F32] = rate_f32, [MF_RATE_INT8] = rate_int8 }, read_words };
