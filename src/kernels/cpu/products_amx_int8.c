/* products_amx_int8.c - products with AMX: int8 codes of inputs times INT8_CHANNEL's codes and INT4_GROUP's, exact in
 * i32 under each scale (amx_product.h says how). */
#include "base/cpu_features.h"
#include "kernels/cpu/amx_few.h"
#include "kernels/cpu/amx_many.h"

/* Columns of a tile: 64 bytes, or half of it so that a group of 32 codes is whole tiles. */
enum { STEP = 64, HALF = 32 };

INLINE __mmask64 mask64(int64_t left)
{
    return left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
}

INLINE void decode_int8(const amx_codes *codes, int64_t count, uint8_t *out)
{
    const uint8_t *p = codes->p;
    int64_t i = 0;
    UNROLL(8) for (; i + STEP <= count; i += STEP, out += AMX_TILE_BYTES)
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
INLINE void decode_int4(int width, const amx_codes *row, int64_t count, uint8_t *out)
{
    const uint8_t *p = row->p;
    const __m512i shift = _mm512_set1_epi8(row->w->zero ? 0 : 8);
    int64_t i = 0;
    UNROLL(8) for (; i + STEP <= count; i += STEP)
    {
        const __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)(p + i / 2));
        const __m512i codes = _mm512_sub_epi8(nibbles(pairs), shift);
        if (width == STEP) {
            _mm512_store_si512(out + i / STEP * AMX_TILE_BYTES, codes);
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
        if (width == STEP) {
            _mm512_store_si512(to, codes);
        } else {
            _mm256_store_si256((__m256i *)(void *)to, _mm512_castsi512_si256(codes));
            if (count - i > HALF) {
                _mm256_store_si256((__m256i *)(void *)(to + AMX_TILE_BYTES), _mm512_extracti64x4_epi64(codes, 1));
            }
        }
    }
}

INLINE void decode_int4_halves(const amx_codes *codes, int64_t count, uint8_t *out)
{
    decode_int4(HALF, codes, count, out);
}

INLINE void decode_int4_whole(const amx_codes *codes, int64_t count, uint8_t *out)
{
    decode_int4(STEP, codes, count, out);
}

#define KIND(...) ((amx_kind){ .int8 = true, .steps = 8, __VA_ARGS__ })
#define INT4(width_) KIND(.format = MF_FORMAT_INT4_GROUP, .scaled = true, .width = width_)
AMX_TILE(tile_int8, KIND(.format = MF_FORMAT_INT8_CHANNEL, .direct = true, .width = STEP), decode_int8)
AMX_TILE(tile_int4_halves, INT4(HALF), decode_int4_halves)
AMX_TILE(tile_int4_whole, INT4(STEP), decode_int4_whole)
AMX_MANY(many_int4_halves, INT4(HALF), tile_int4_halves)
AMX_MANY(many_int4_whole, INT4(STEP), tile_int4_whole)

static void tile_int4(const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    const bool is_many = tile->num_tokens > MF_CPU_PANEL;
    if (w->group_size % STEP == 0 || w->group_size >= w->k) {
        (is_many ? many_int4_whole : tile_int4_whole)(tile);
    } else {
        (is_many ? many_int4_halves : tile_int4_halves)(tile);
    }
}

/* Vectors as far as they reach, the rows they leave by tiles. */
static void few_then(mf_cpu_tile_fn tiles, mf_cpu_tile tile)
{
    const int64_t done = mf_cpu_amx_few_int8(&tile);
    tile.first_row += done;
    tile.num_rows -= done;
    tile.out += done;
    if (tile.num_rows > 0) {
        tiles(&tile);
    }
}

static void few_int8(const mf_cpu_tile *tile)
{
    few_then(tile_int8, *tile);
}

static void few_int4(const mf_cpu_tile *tile)
{
    few_then(tile_int4, *tile);
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
        (mf_cpu_product){ few ? few_int8 : tile_int8, MF_CPU_FORM_I8_PANEL };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] =
        (mf_cpu_product){ few ? few_int4 : tile_int4, MF_CPU_FORM_I8_PANEL };
}
