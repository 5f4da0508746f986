/* products_amx_int8.c - products with AMX: int8 codes of inputs times INT8_CHANNEL's codes and INT4_GROUP's, exact in i32
 * under each scale (amx_product.h says how). */
#include "kernels/cpu/amx_product.h"

/* Columns of a tile: 64 bytes, or half of it so that a group of 32 codes is whole tiles. */
enum { STEP = 64, HALF = 32 };

INLINE __mmask64 mask64(int64_t left)
{
    return left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
}

INLINE void decode_int8(const mf_matrix *w, int64_t row, int64_t first, int64_t count, uint8_t *out)
{
    const uint8_t *p = mf_matrix_row(w, row) + first;
    for (int64_t i = 0; i < count; i += STEP) {
        _mm512_store_si512(out + i / STEP * AMX_TILE_BYTES, _mm512_maskz_loadu_epi8(mask64(count - i), p + i));
    }
}

/* code - 8, or the code alone where there are zero points: they may be too far away for int8 and are multiplied with the
 * inputs' sums instead. */
INLINE void decode_int4(const mf_matrix *w, int64_t row, int64_t first, int64_t count, uint8_t *out)
{
    const uint8_t *p = mf_matrix_row(w, row) + first / 2;
    const __m256i shift = _mm256_set1_epi8(w->zero ? 0 : 8);
    const __m256i nibble = _mm256_set1_epi8(15);
    const bool halves = w->group_size % STEP != 0 && w->group_size < w->k;
    for (int64_t i = 0; i < count; i += HALF) {
        const int64_t bytes = (count - i + 1) / 2;
        const __m128i pairs = bytes >= HALF / 2 ? _mm_loadu_si128((const __m128i *)(const void *)(p + i / 2))
                                                : _mm_maskz_loadu_epi8((__mmask16)((1u << bytes) - 1), p + i / 2);
        const __m256i words = _mm256_cvtepu8_epi16(pairs);
        const __m256i codes = _mm256_and_si256(_mm256_or_si256(words, _mm256_slli_epi16(words, 4)), nibble);
        const __mmask32 mask = (__mmask32)mask64(count - i);
        uint8_t *to = out + (halves ? i / HALF * AMX_TILE_BYTES : i / STEP * AMX_TILE_BYTES + i % STEP);
        _mm256_store_si256((__m256i *)(void *)to, _mm256_maskz_sub_epi8(mask, codes, shift));
        if (!halves && i % STEP == 0 && count - i <= HALF) {
            _mm256_store_si256((__m256i *)(void *)(to + HALF), _mm256_setzero_si256());
        }
    }
}

static void tile_int8(const mf_cpu_tile *tile)
{
    amx_product((amx_kind){ .format = MF_FORMAT_INT8_CHANNEL, .int8 = true, .width = STEP, .steps = 8 }, decode_int8, tile);
}

static void tile_int4_halves(const mf_cpu_tile *tile)
{
    amx_product((amx_kind){ .format = MF_FORMAT_INT4_GROUP, .int8 = true, .scaled = true, .width = HALF, .steps = 4 },
                decode_int4, tile);
}

static void tile_int4_whole(const mf_cpu_tile *tile)
{
    amx_product((amx_kind){ .format = MF_FORMAT_INT4_GROUP, .int8 = true, .scaled = true, .width = STEP, .steps = 4 },
                decode_int4, tile);
}

static void tile_int4(const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    if (w->group_size % STEP == 0 || w->group_size >= w->k) {
        tile_int4_whole(tile);
    } else {
        tile_int4_halves(tile);
    }
}

#if defined(MF_AMX_EMULATE)
#define FILL mf_cpu_products_fill_amx_int8_emulated
#else
#define FILL mf_cpu_products_fill_amx_int8
#endif

void FILL(mf_cpu_kernels *k)
{
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ tile_int8, MF_CPU_FORM_I8_PANEL };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] = (mf_cpu_product){ tile_int4, MF_CPU_FORM_I8_PANEL };
}
