/* amx_tiles.h - the AMX instructions that products use: eight tiles of up to 16 rows of 64 bytes.
 *
 * Written as assembly, since compilers differ in whether their intrinsics count as reading and writing memory.  Tile
 * numbers are literals: AMX_LOAD(6, p, 64).  With MF_AMX_EMULATE they are plain C with the documented arithmetic (Intel
 * SDM), so that layouts and bits are tested where there is no AMX; the library is never built that way. */
#ifndef MF_KERNELS_CPU_AMX_TILES_H
#define MF_KERNELS_CPU_AMX_TILES_H

#include <stdint.h>
#include <string.h>

enum { AMX_TILES = 8, AMX_SIDE = 16, AMX_ROW_BYTES = 64, AMX_TILE_BYTES = 1024 };

/* Palette 1, as LDTILECFG reads it. */
typedef struct amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} amx_config;
_Static_assert(sizeof(amx_config) == 64, "the processor reads 64 bytes");

/* Tiles 0 to 3 hold sums [16][side]; 4 and 5 the left factor [16][depth]; 6 and 7 the right one [depth][side], where
 * depth is in words of four bytes: two bf16 or four int8. */
static inline amx_config amx_config_of(int side, int depth)
{
    amx_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < AMX_TILES; i++) {
        config.row_bytes[i] = (uint16_t)(4 * (i == 4 || i == 5 ? depth : side));
        config.rows[i] = (uint8_t)(i >= 6 ? depth : AMX_SIDE);
    }
    return config;
}

#if !defined(MF_AMX_EMULATE)

#define AMX_CONFIGURE(config) __asm__ volatile("ldtilecfg (%0)" ::"r"(config) : "memory")
#define AMX_RELEASE() __asm__ volatile("tilerelease" ::: "memory")
#define AMX_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define AMX_LOAD(t, p, stride)                                                                                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"((const void *)(p)), "r"((int64_t)(stride)) : "memory")
/* The same for what is not soon used again: it leaves the first-level cache to others. */
#define AMX_LOAD_ONCE(t, p, stride)                                                                                    \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #t ::"r"((const void *)(p)), "r"((int64_t)(stride)) : "memory")
#define AMX_STORE(t, p, stride)                                                                                        \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"((void *)(p)), "r"((int64_t)(stride)) : "memory")
/* sums += left * right, of bf16; of int8 */
#define AMX_BF16(sums, left, right) __asm__ volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sums ::)
#define AMX_INT8(sums, left, right) __asm__ volatile("tdpbssd %%tmm" #right ", %%tmm" #left ", %%tmm" #sums ::)

#else

#include <assert.h>
#include <math.h>
#include <xmmintrin.h>

/* The registers of one thread.  Each file has its own: no tile outlives a call of a product. */
static _Thread_local struct amx_state {
    amx_config config; /* palette 0: released */
    uint8_t tile[AMX_TILES][AMX_SIDE][AMX_ROW_BYTES];
} amx_state;

#define AMX_EMULATED static __attribute__((unused, noinline)) void

AMX_EMULATED amx_configure(const amx_config *config)
{
    assert(config->palette == 1 && config->start_row == 0);
    for (int i = 0; i < 16; i++) {
        assert(i < AMX_TILES ? config->rows[i] >= 1 && config->rows[i] <= AMX_SIDE : !config->rows[i]);
        assert(i < AMX_TILES ? config->row_bytes[i] >= 1 && config->row_bytes[i] <= AMX_ROW_BYTES
                             : !config->row_bytes[i]);
    }
    memset(&amx_state, 0, sizeof amx_state);
    amx_state.config = *config;
}

AMX_EMULATED amx_release(void)
{
    memset(&amx_state, 0, sizeof amx_state);
}

AMX_EMULATED amx_zero(int t)
{
    assert(amx_state.config.palette == 1);
    memset(amx_state.tile[t], 0, AMX_TILE_BYTES);
}

AMX_EMULATED amx_load(int t, const void *p, int64_t stride)
{
    assert(amx_state.config.palette == 1);
    memset(amx_state.tile[t], 0, AMX_TILE_BYTES); /* rows and bytes past the tile's shape read as zero */
    for (int r = 0; r < amx_state.config.rows[t]; r++) {
        memcpy(amx_state.tile[t][r], (const uint8_t *)p + r * stride, amx_state.config.row_bytes[t]);
    }
}

AMX_EMULATED amx_store(int t, void *p, int64_t stride)
{
    assert(amx_state.config.palette == 1);
    for (int r = 0; r < amx_state.config.rows[t]; r++) {
        memcpy((uint8_t *)p + r * stride, amx_state.tile[t][r], amx_state.config.row_bytes[t]);
    }
}

/* The shapes that fault otherwise. */
static inline void amx_check(int sums, int left, int right)
{
    const amx_config *c = &amx_state.config;
    assert(c->palette == 1 && sums != left && sums != right && left != right);
    assert(c->row_bytes[sums] % 4 == 0 && c->row_bytes[left] % 4 == 0);
    assert(c->rows[sums] == c->rows[left] && c->row_bytes[sums] == c->row_bytes[right]);
    assert(c->row_bytes[left] / 4 == c->rows[right]);
    (void)c, (void)sums, (void)left, (void)right;
}

typedef struct amx_floats {
    float even[AMX_SIDE][AMX_SIDE], odd[AMX_SIDE][AMX_SIDE];
} amx_floats;

static inline float amx_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline void amx_widen(amx_floats *f, int t)
{
    for (int i = 0; i < AMX_SIDE; i++) {
        uint32_t words[AMX_SIDE];
        memcpy(words, amx_state.tile[t][i], sizeof words);
        for (int j = 0; j < AMX_SIDE; j++) {
            f->even[i][j] = amx_float(words[j] << 16);
            f->odd[i][j] = amx_float(words[j] & 0xffff0000u);
        }
    }
}

/* Even and odd products in chains of fma of their own, then their sum, then the sum with the tile; to nearest even,
 * with subnormals taken and given as zero, which the caller has switched on. */
AMX_EMULATED amx_bf16_rows(int sums, const amx_floats *a, const amx_floats *b)
{
    const int depth = amx_state.config.rows[6]; /* rows past it are zero on both sides, but 0 + -0 is 0 */
    for (int m = 0; m < amx_state.config.rows[sums]; m++) {
        float even[AMX_SIDE] = { 0 }, odd[AMX_SIDE] = { 0 }, c[AMX_SIDE];
        for (int k = 0; k < depth; k++) {
            for (int n = 0; n < AMX_SIDE; n++) {
                even[n] = __builtin_fmaf(a->even[m][k], b->even[k][n], even[n]);
                odd[n] = __builtin_fmaf(a->odd[m][k], b->odd[k][n], odd[n]);
            }
        }
        memcpy(c, amx_state.tile[sums][m], sizeof c);
        for (int n = 0; n < AMX_SIDE; n++) {
            c[n] += even[n] + odd[n];
        }
        memcpy(amx_state.tile[sums][m], c, amx_state.config.row_bytes[sums]);
    }
}

AMX_EMULATED amx_bf16(int sums, int left, int right)
{
    amx_floats a, b;
    amx_check(sums, left, right);
    amx_widen(&a, left);
    amx_widen(&b, right);
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1f80u | 0x8040u);
    amx_bf16_rows(sums, &a, &b);
    _mm_setcsr(saved);
}

AMX_EMULATED amx_int8(int sums, int left, int right)
{
    amx_check(sums, left, right);
    for (int m = 0; m < amx_state.config.rows[sums]; m++) {
        uint32_t c[AMX_SIDE]; /* wraps */
        memcpy(c, amx_state.tile[sums][m], sizeof c);
        for (int k = 0; k < amx_state.config.rows[right]; k++) {
            for (int n = 0; n < AMX_SIDE; n++) {
                for (int i = 0; i < 4; i++) {
                    c[n] += (uint32_t)((int8_t)amx_state.tile[left][m][4 * k + i] *
                                       (int8_t)amx_state.tile[right][k][4 * n + i]);
                }
            }
        }
        memcpy(amx_state.tile[sums][m], c, amx_state.config.row_bytes[sums]);
    }
}

#define AMX_CONFIGURE(config) amx_configure(config)
#define AMX_RELEASE() amx_release()
#define AMX_ZERO(t) amx_zero(t)
#define AMX_LOAD(t, p, stride) amx_load(t, p, stride)
#define AMX_LOAD_ONCE(t, p, stride) amx_load(t, p, stride)
#define AMX_STORE(t, p, stride) amx_store(t, p, stride)
#define AMX_BF16(sums, left, right) amx_bf16(sums, left, right)
#define AMX_INT8(sums, left, right) amx_int8(sums, left, right)

#endif
#endif
