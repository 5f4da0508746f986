/* amx_emulation.c - the plain-C tiles against Intel's description, by hand-made cases, and against the instructions where
 * this machine has them. */
#define MF_AMX_EMULATE
#include "kernels/cpu/amx_tiles.h"

#include <float.h>

#include "amx_hardware.h"
#include "base/cpu_features.h"
#include "base/number.h"
#include "conf.h"

enum { SIDE = AMX_SIDE, PAIRS = 16 };

typedef struct tiles {
    uint16_t left[SIDE][2 * PAIRS];  /* [row][k] */
    uint16_t right[PAIRS][SIDE][2];  /* [k / 2][column][k % 2] */
    float sums[SIDE][SIDE];
} tiles;

static void put(tiles *t, int row, int column, int k, float w, float x)
{
    t->left[row][k] = mf_f32_to_bf16(w);
    t->right[k / 2][column][k % 2] = mf_f32_to_bf16(x);
}

static void multiply(tiles *t)
{
    const amx_config config = amx_config_of(AMX_SIDE, PAIRS);
    AMX_CONFIGURE(&config);
    AMX_LOAD(0, t->sums, 64);
    AMX_LOAD(4, t->left, 64);
    AMX_LOAD(6, t->right, 64);
    AMX_BF16(0, 4, 6);
    AMX_STORE(0, t->sums, 64);
    AMX_RELEASE();
}

TEST(bf16_even_and_odd_products_are_summed_apart)
{
    tiles t = { 0 };
    /* Even chain: 2^24 + 1 is 2^24 to nearest even, - 2^24 leaves 0.  Odd chain: 1 + 2.  In one chain of ascending k the
     * odd 1 would be lost too. */
    put(&t, 3, 5, 0, 4096.0f, 4096.0f);
    put(&t, 3, 5, 1, 1.0f, 1.0f);
    put(&t, 3, 5, 2, 1.0f, 1.0f);
    put(&t, 3, 5, 3, 2.0f, 1.0f);
    put(&t, 3, 5, 4, -4096.0f, 4096.0f);
    t.sums[3][5] = 0.5f;
    t.sums[2][5] = 7.0f;
    multiply(&t);
    CHECK(t.sums[3][5] == 3.5f);
    CHECK(t.sums[2][5] == 7.0f);
}

TEST(bf16_chains_are_added_before_the_tile)
{
    tiles t = { 0 };
    /* 2^24 + (1 + 1) is 2^24 + 2; one after the other each 1 would be lost. */
    put(&t, 0, 0, 0, 1.0f, 1.0f);
    put(&t, 0, 0, 1, 1.0f, 1.0f);
    t.sums[0][0] = 0x1p24f;
    multiply(&t);
    CHECK(t.sums[0][0] == 0x1p24f + 2.0f);
}

TEST(bf16_subnormals_are_zero_in_every_place)
{
    tiles t = { 0 };
    put(&t, 0, 0, 0, 0x1p-127f, 0x1p100f); /* a subnormal factor */
    put(&t, 1, 1, 0, 0x1p-100f, 0x1p-30f); /* a subnormal product */
    t.sums[2][2] = 0x1p-130f;              /* a subnormal sum before */
    put(&t, 3, 3, 0, 0x1p-126f, 1.5f);     /* a subnormal sum after */
    t.sums[3][3] = -0x1p-126f;
    put(&t, 4, 4, 0, 0x1p-126f, 1.0f);     /* the least normal one stays */
    multiply(&t);
    for (int i = 0; i < 4; i++) {
        CHECK(t.sums[i][i] == 0.0f);
    }
    CHECK(t.sums[4][4] == FLT_MIN);
}

TEST(bf16_inf_and_nan_reach_their_own_sum_alone)
{
    tiles t = { 0 };
    put(&t, 0, 0, 0, INFINITY, 2.0f);
    put(&t, 5, 1, 2, NAN, 2.0f);
    put(&t, 6, 2, 4, 1.0f, 1.0f);
    multiply(&t);
    CHECK(t.sums[0][0] == INFINITY);
    CHECK(t.sums[5][1] != t.sums[5][1]);
    CHECK(t.sums[6][2] == 1.0f);
    CHECK(t.sums[0][2] != t.sums[0][2]); /* inf * 0: a column of zeros is no exception */
    CHECK(t.sums[6][3] == 0.0f);
}

TEST(int8_products_are_exact_and_wrap)
{
    static int8_t left[SIDE][64], right[SIDE][64];
    static int32_t sums[SIDE][SIDE];
    memset(left, -128, sizeof left);
    memset(right, -128, sizeof right);
    for (int i = 0; i < 64; i++) {
        left[1][i] = 127;
    }
    sums[2][3] = INT32_MAX;
    const amx_config config = amx_config_of(AMX_SIDE, 16);
    AMX_CONFIGURE(&config);
    AMX_LOAD(1, sums, 64);
    AMX_LOAD(5, left, 64);
    AMX_LOAD(7, right, 64);
    AMX_INT8(1, 5, 7);
    AMX_STORE(1, sums, 64);
    AMX_RELEASE();
    CHECK_EQ(sums[0][0], 64 * 16384);
    CHECK_EQ(sums[1][9], 64 * 127 * -128);
    CHECK_EQ(sums[2][3], (int32_t)(2147483647u + 64u * 16384u));
}

TEST(tiles_of_less_depth_read_and_multiply_that_much)
{
    int8_t left[16][32], right[8][64];
    int32_t sums[SIDE][SIDE] = { { 0 } };
    memset(left, 1, sizeof left);
    memset(right, 2, sizeof right);
    const amx_config config = amx_config_of(AMX_SIDE, 8);
    AMX_CONFIGURE(&config);
    AMX_ZERO(0);
    AMX_LOAD(4, left, 32);
    AMX_LOAD(6, right, 64);
    AMX_INT8(0, 4, 6);
    AMX_STORE(0, sums, 64);
    AMX_RELEASE();
    for (int i = 0; i < SIDE * SIDE; i++) {
        CHECK_EQ(sums[i / SIDE][i % SIDE], 64);
    }
}

/* Exponents close together and far apart, and a few values that are no numbers. */
static uint16_t random_bf16(uint64_t *seed, int kind)
{
    const uint16_t bits = (uint16_t)mf_random_next(seed);
    if (kind == 0) {
        return bits;
    }
    const uint16_t exponent = (uint16_t)(kind == 1 ? 124 + mf_random_below(seed, 8) : 40 + mf_random_below(seed, 60));
    return (uint16_t)((bits & 0x807f) | exponent << 7);
}

TEST(hardware_gives_the_bits_of_the_emulation)
{
    if (mf_cpu_amx_refusal()) {
        print_message("no hardware to compare with: %s\n", mf_cpu_amx_refusal());
        skip();
    }
    uint64_t seed = 11;
    for (int round = 0; round < 3000; round++) {
        tiles emulated;
        for (int i = 0; i < SIDE; i++) {
            for (int j = 0; j < 2 * PAIRS; j++) {
                emulated.left[i][j] = random_bf16(&seed, round % 3);
                emulated.right[i][j / 2][j % 2] = random_bf16(&seed, round % 3);
            }
            for (int j = 0; j < SIDE; j++) {
                emulated.sums[i][j] = mf_f32_from_bits((uint32_t)random_bf16(&seed, round % 3) << 16 | (uint32_t)(mf_random_next(&seed) & 0xffff));
            }
        }
        tiles hardware = emulated;
        multiply(&emulated);
        amx_hardware_product(false, PAIRS, hardware.left, hardware.right, hardware.sums);
        const int64_t at = conf_difference(emulated.sums, hardware.sums, MF_F32, SIDE * SIDE);
        if (at >= 0) {
            fail_msg("round %d, element %lld: %a by emulation, %a by hardware", round, (long long)at,
                     (double)(&emulated.sums[0][0])[at], (double)(&hardware.sums[0][0])[at]);
        }
    }
    for (int round = 0; round < 500; round++) {
        uint8_t left[1024], right[1024];
        int32_t a[SIDE * SIDE], b[SIDE * SIDE];
        for (int i = 0; i < 1024; i++) {
            left[i] = (uint8_t)mf_random_next(&seed);
            right[i] = (uint8_t)mf_random_next(&seed);
        }
        for (int i = 0; i < SIDE * SIDE; i++) {
            a[i] = b[i] = (int32_t)mf_random_next(&seed);
        }
        const int depth = round % 2 ? 16 : 8;
        const amx_config config = amx_config_of(AMX_SIDE, depth);
        AMX_CONFIGURE(&config);
        AMX_LOAD(0, a, 64);
        AMX_LOAD(4, left, 64);
        AMX_LOAD(6, right, 64);
        AMX_INT8(0, 4, 6);
        AMX_STORE(0, a, 64);
        AMX_RELEASE();
        amx_hardware_product(true, depth, left, right, b);
        CHECK_MEM(a, b, sizeof a);
    }
}
