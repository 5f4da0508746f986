/* products_amx.c - products with AMX: bf16 inputs with weights whose codes bf16 holds exactly (amx_product.h says how).
 */
#include "base/cpu_features.h"
#include "kernels/cpu/amx_codes.h"
#include "kernels/cpu/amx_few.h"
#include "kernels/cpu/amx_lines.h"
#include "kernels/cpu/amx_many.h"
#include "kernels/cpu/amx_panels.h"

/* ---- the table's entries ---- */

#define KIND(...) ((amx_kind){ .width = STEP, .steps = 8, __VA_ARGS__ })
AMX_TILE(tile_bf16, KIND(.format = MF_FORMAT_BF16, .direct = true), decode_bf16)
AMX_TILE(tile_fp8_block, KIND(.format = MF_FORMAT_FP8_BLOCK, .scaled = true), decode_fp8)
AMX_TILE(tile_fp8_channel, KIND(.format = MF_FORMAT_FP8_CHANNEL), decode_fp8)
AMX_TILE(tile_int8, KIND(.format = MF_FORMAT_INT8_CHANNEL), decode_int8)
AMX_TILE(tile_int4, KIND(.format = MF_FORMAT_INT4_GROUP, .scaled = true), decode_int4)
AMX_TILE(tile_mxfp4, KIND(.format = MF_FORMAT_MXFP4), decode_mxfp4)
AMX_MANY(many_fp8_block, KIND(.format = MF_FORMAT_FP8_BLOCK, .scaled = true), tile_fp8_block)
AMX_MANY(many_fp8_channel, KIND(.format = MF_FORMAT_FP8_CHANNEL), tile_fp8_channel)
AMX_MANY(many_int8, KIND(.format = MF_FORMAT_INT8_CHANNEL), tile_int8)
AMX_MANY(many_int4, KIND(.format = MF_FORMAT_INT4_GROUP, .scaled = true), tile_int4)
AMX_MANY(many_mxfp4, KIND(.format = MF_FORMAT_MXFP4), tile_mxfp4)

/* ---- one or two panels, a line of each row at a time ---- */

#define LINES(name, ...)                                                                                               \
    static __attribute__((noinline)) int64_t name##_1(const mf_cpu_tile *tile)                                         \
    {                                                                                                                  \
        return lines_product((lines_kind){ .panels = 1, __VA_ARGS__ }, tile);                                          \
    }                                                                                                                  \
    static __attribute__((noinline)) int64_t name##_2(const mf_cpu_tile *tile)                                         \
    {                                                                                                                  \
        return lines_product((lines_kind){ .panels = 2, __VA_ARGS__ }, tile);                                          \
    }                                                                                                                  \
    static int64_t name(const mf_cpu_tile *tile)                                                                       \
    {                                                                                                                  \
        return tile->num_tokens <= MF_CPU_PANEL ? name##_1(tile) : name##_2(tile);                                     \
    }
LINES(lines_fp8_block, .format = MF_FORMAT_FP8_BLOCK, .group_steps = MF_FP8_BLOCK_SIZE / STEP)
LINES(lines_fp8_channel, .format = MF_FORMAT_FP8_CHANNEL)
LINES(lines_int8, .format = MF_FORMAT_INT8_CHANNEL)
LINES(lines_mxfp4, .format = MF_FORMAT_MXFP4)
LINES(lines_int4_32, .format = MF_FORMAT_INT4_GROUP, .group_steps = 1)
LINES(lines_int4_64, .format = MF_FORMAT_INT4_GROUP, .group_steps = 2)
LINES(lines_int4_128, .format = MF_FORMAT_INT4_GROUP, .group_steps = 4)

/* ---- more panels, 32 rows of 128 columns at a time ---- */

#define PANELS(name, ...)                                                                                              \
    static __attribute__((noinline)) int64_t name(const mf_cpu_tile *tile)                                             \
    {                                                                                                                  \
        return panels_product((panels_kind){ .width = STEP, __VA_ARGS__ }, tile);                                      \
    }
PANELS(panels_fp8_block, .format = MF_FORMAT_FP8_BLOCK, .group_steps = MF_FP8_BLOCK_SIZE / STEP)
PANELS(panels_fp8_channel, .format = MF_FORMAT_FP8_CHANNEL)
PANELS(panels_int8, .format = MF_FORMAT_INT8_CHANNEL)
PANELS(panels_mxfp4, .format = MF_FORMAT_MXFP4)
PANELS(panels_int4_32, .format = MF_FORMAT_INT4_GROUP, .group_steps = 1)
PANELS(panels_int4_64, .format = MF_FORMAT_INT4_GROUP, .group_steps = 2)
PANELS(panels_int4_128, .format = MF_FORMAT_INT4_GROUP, .group_steps = 4)

static int64_t lines_int4(const mf_cpu_tile *tile)
{
    return by_group(tile, lines_int4_32, lines_int4_64, lines_int4_128);
}

static int64_t panels_int4(const mf_cpu_tile *tile)
{
    return by_group(tile, panels_int4_32, panels_int4_64, panels_int4_128);
}

/* Tokens to the loops that are made for as many: lines of rows up to `few` tokens. */
#define BY_TOKENS(name, few, lines, tiles, panels, many)                                                               \
    static void name(const mf_cpu_tile *tile)                                                                          \
    {                                                                                                                  \
        if (tile->num_tokens <= (few)) {                                                                               \
            rest_by_tiles(lines, tiles, *tile);                                                                        \
        } else {                                                                                                       \
            rest_by_tiles(panels, tile->num_tokens <= LINES_PANELS * MF_CPU_PANEL ? tiles : many, *tile);              \
        }                                                                                                              \
    }
BY_TOKENS(any_fp8_block, 32, lines_fp8_block, tile_fp8_block, panels_fp8_block, many_fp8_block)
BY_TOKENS(any_fp8_channel, 32, lines_fp8_channel, tile_fp8_channel, panels_fp8_channel, many_fp8_channel)
BY_TOKENS(any_int8, 32, lines_int8, tile_int8, panels_int8, many_int8)
BY_TOKENS(some_int4, 22, lines_int4, tile_int4, panels_int4, many_int4)
BY_TOKENS(any_mxfp4, 26, lines_mxfp4, tile_mxfp4, panels_mxfp4, many_mxfp4)

/* One token by vectors: they need no tile of sums per scale. */
static void any_int4(const mf_cpu_tile *tile)
{
    if (tile->num_tokens == 1) {
        rest_by_tiles(mf_cpu_amx_few, some_int4, *tile);
    } else {
        some_int4(tile);
    }
}

#if defined(MF_AMX_EMULATE)
#define FILL mf_cpu_kernels_fill_amx_emulated
#define FILL_INT8 mf_cpu_products_fill_amx_int8_emulated
#define ISA "amx_emulated"
#else
#define FILL mf_cpu_kernels_fill_amx
#define FILL_INT8 mf_cpu_products_fill_amx_int8
#define ISA "amx"
#endif

void FILL(mf_cpu_kernels *k)
{
    static const mf_cpu_tile_fn tiles[MF_FORMAT_COUNT] = {
        [MF_FORMAT_BF16] = tile_bf16,
        [MF_FORMAT_FP8_BLOCK] = any_fp8_block,
        [MF_FORMAT_FP8_CHANNEL] = any_fp8_channel,
        [MF_FORMAT_INT8_CHANNEL] = any_int8,
        [MF_FORMAT_INT4_GROUP] = any_int4,
        [MF_FORMAT_MXFP4] = any_mxfp4,
    };
    k->isa = ISA;
    k->tile_tokens = MF_CPU_MOST_TILE_TOKENS; /* codes are decoded once for all of them */
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        if (tiles[f]) {
            k->product[f][MF_CPU_INPUT_BF16] = (mf_cpu_product){ tiles[f], MF_CPU_FORM_BF16_PANEL };
        }
    }
#if !defined(MF_AMX_EMULATE)
    if (!mf_cpu_features_get()->amx_int8) {
        return;
    }
#endif
    FILL_INT8(k);
}
