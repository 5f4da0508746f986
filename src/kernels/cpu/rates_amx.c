/* rates_amx.c - what AMX tiles reach: see kernels/bench/rates.h.  The caller has made sure that this process may use
 * them. */
#include <immintrin.h>
#include <string.h>

#include "kernels/bench/rates.h"

/* Palette 1: eight tiles of 16 rows of 64 bytes. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;
_Static_assert(sizeof(tile_config) == 64, "the processor reads 64 bytes");

/* Four sums that do not wait for each other, from two tiles of each side: as a product's inner loop has them. */
static void load_tiles(const uint8_t *data)
{
    tile_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    /* Not every compiler's intrinsics say that they read memory. */
    __asm__ volatile("" ::"r"(&config), "r"(data) : "memory");
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, data, 64);
    _tile_loadd(5, data, 64);
    _tile_loadd(6, data, 64);
    _tile_loadd(7, data, 64);
}

static double rate_bf16(int64_t rounds)
{
    uint8_t data[1024];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = i % 2 ? 0x3c : 0; /* bf16 2^-7 */
    }
    load_tiles(data);
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (double)rounds * 4 * (16 * 16 * 32 * 2);
}

static double rate_int8(int64_t rounds)
{
    uint8_t data[1024];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = 3;
    }
    load_tiles(data);
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return (double)rounds * 4 * (16 * 16 * 64 * 2);
}

const mf_rates mf_rates_amx = { "amx", { [MF_RATE_BF16] = rate_bf16, [MF_RATE_INT8] = rate_int8 }, NULL };
