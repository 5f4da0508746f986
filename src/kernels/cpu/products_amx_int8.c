/* products_amx_int8.c - products with AMX: int8 codes of inputs times INT8_CHANNEL's codes and INT4_GROUP's, exact in
 * i32 under each scale (amx_product.h says how). */
#include "base/cpu_features.h"
#include "kernels/cpu/amx_few.h"
#include "kernels/cpu/amx_many.h"
#include "kernels/cpu/amx_panels.h"

/* Columns of a tile: 64 bytes, or half of it so that a group of 32 codes is whole tiles. */
enum { WHOLE = 64, HALF = 32 };

INLINE void copy_codes(const amx_codes *codes, int64_t count, uint8_t *out)
{
    const uint8_t *p = codes->p;
    int64_t i = 0;
    UNROLL(8) for (; i + WHOLE <= count; i += WHOLE, out += AMX_TILE_BYTES)
    {
        _mm512_store_si512(out, _mm512_loadu_si512(p + i));
    }
    if (i < count) {
        _mm512_store_si512(out, _mm512_maskz_loadu_epi8(mask64(count - i), p + i));
    }
}

/* n <= 64 codes: a byte becomes a word, its upper nibble the upper byte. */
INLINE __m512i nibbles(__m256i pairs)
{
    const __m512i words = _mm512_cvtepu8_epi16(pairs);
    return _mm512_and_si512(_mm512_or_si512(words, _mm512_slli_epi16(words, 4)), _mm512_set1_epi8(15));
}

/* code - 8, or the code alone where there are zero points: they may be too far away for int8 and are multiplied with
 * the inputs' sums instead. */
INLINE void take_int4(int width, const amx_codes *row, int64_t count, uint8_t *out)
{
    const uint8_t *p = row->p;
    const __m512i shift = _mm512_set1_epi8(row->w->zero ? 0 : 8);
    int64_t i = 0;
    UNROLL(8) for (; i + WHOLE <= count; i += WHOLE)
    {
        const __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)(p + i / 2));
        const __m512i codes = _mm512_sub_epi8(nibbles(pairs), shift);
        if (width == WHOLE) {
            _mm512_store_si512(out + i / WHOLE * AMX_TILE_BYTES, codes);
        } else {
            uint8_t *to = out + i / HALF * AMX_TILE_BYTES;
            _mm256_store_si256((__m256i *)(void *)to, _mm512_castsi512_si256(codes));
            _mm256_store_si256((__m256i *)(void *)(to + AMX_TILE_BYTES), _mm512_extracti64x4_epi64(codes, 1));
        }
    }
    if (i < count) {
        const __m256i pairs = _mm256_maskz_loadu_epi8((__mmask32)mask64((count - i + 1) / 2), p + i / 2);
        const __m512i codes = _mm512_maskz_sub_epi8(mask64(count - i), nibbles(pairs), shift);
        uint8_t *to = out + i / width * AMX_TILE_BYTES;
        if (width == WHOLE) {
            _mm512_store_si512(to, codes);
        } else {
            _mm256_store_si256((__m256i *)(void *)to, _mm512_castsi512_si256(codes));
            if (count - i > HALF) {
                _mm256_store_si256((__m256i *)(void *)(to + AMX_TILE_BYTES), _mm512_extracti64x4_epi64(codes, 1));
            }
        }
    }
}

INLINE void take_int4_halves(const amx_codes *codes, int64_t count, uint8_t *out)
{
    take_int4(HALF, codes, count, out);
}

INLINE void take_int4_whole(const amx_codes *codes, int64_t count, uint8_t *out)
{
    take_int4(WHOLE, codes, count, out);
}

#define KIND(...) ((amx_kind){ .int8 = true, .steps = 8, __VA_ARGS__ })
#define INT4(width_) KIND(.format = MF_FORMAT_INT4_GROUP, .scaled = true, .width = width_)
AMX_TILE(tile_int8, KIND(.format = MF_FORMAT_INT8_CHANNEL, .direct = true, .width = WHOLE), copy_codes)
AMX_TILE(tile_int4_halves, INT4(HALF), take_int4_halves)
AMX_TILE(tile_int4_whole, INT4(WHOLE), take_int4_whole)
AMX_MANY(many_int4_halves, INT4(HALF), tile_int4_halves)
AMX_MANY(many_int4_whole, INT4(WHOLE), tile_int4_whole)

#define PANELS(name, ...)                                                                                              \
    static __attribute__((noinline)) int64_t name(const mf_cpu_tile *tile)                                             \
    {                                                                                                                  \
        return panels_product((panels_kind){ .int8 = true, __VA_ARGS__ }, tile);                                       \
    }
PANELS(panels_int8, .format = MF_FORMAT_INT8_CHANNEL, .width = WHOLE)
PANELS(panels_int4_32, .format = MF_FORMAT_INT4_GROUP, .width = HALF, .group_steps = 1)
PANELS(panels_int4_64, .format = MF_FORMAT_INT4_GROUP, .width = WHOLE, .group_steps = 1)
PANELS(panels_int4_128, .format = MF_FORMAT_INT4_GROUP, .width = WHOLE, .group_steps = 2)

/* Tokens up to which vectors read as fast as tiles; tokens whose sums stay in tiles, so that rows are tiles as they lie
 * without being read twice. */
enum { VECTORS_OF_INT8 = 4, VECTORS_OF_INT4 = 7, DIRECT_OF_INT8 = 2 * MF_CPU_PANEL };

static int64_t panels_int4(const mf_cpu_tile *tile)
{
    return by_group(tile, panels_int4_32, panels_int4_64, panels_int4_128);
}

static void other_int4(const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    const bool is_many = tile->num_tokens > MF_CPU_PANEL;
    if (w->group_size % WHOLE == 0 || w->group_size >= w->k) {
        (is_many ? many_int4_whole : tile_int4_whole)(tile);
    } else {
        (is_many ? many_int4_halves : tile_int4_halves)(tile);
    }
}

static void tiles_int8(const mf_cpu_tile *tile)
{
    if (tile->num_tokens > DIRECT_OF_INT8) {
        rest_by_tiles(panels_int8, tile_int8, *tile);
    } else {
        tile_int8(tile);
    }
}

static void tiles_int4(const mf_cpu_tile *tile)
{
    rest_by_tiles(panels_int4, other_int4, *tile);
}

static void any_int8(const mf_cpu_tile *tile)
{
    if (tile->num_tokens <= VECTORS_OF_INT8) {
        rest_by_tiles(mf_cpu_amx_few_int8, tiles_int8, *tile);
    } else {
        tiles_int8(tile);
    }
}

/* With zero points vectors are faster as far as they go. */
static void any_int4(const mf_cpu_tile *tile)
{
    if (tile->num_tokens <= (tile->w->zero ? MF_CPU_PANEL : VECTORS_OF_INT4)) {
        rest_by_tiles(mf_cpu_amx_few_int8, tiles_int4, *tile);
    } else {
        tiles_int4(tile);
    }
}

#if defined(MF_AMX_EMULATE)
#define FILL mf_cpu_products_fill_amx_int8_emulated
#else
#define FILL mf_cpu_products_fill_amx_int8
#endif

void FILL(mf_cpu_kernels *k)
{
    const bool few = mf_cpu_features_get()->avx512_vnni;
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] =
        (mf_cpu_product){ few ? any_int8 : tiles_int8, MF_CPU_FORM_I8_PANEL };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] =
        (mf_cpu_product){ few ? any_int4 : tiles_int4, MF_CPU_FORM_I8_PANEL };
}
