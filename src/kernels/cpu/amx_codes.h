/* amx_codes.h - codes of one row as bf16, in the left factor's tiles. */
#ifndef MF_KERNELS_CPU_AMX_CODES_H
#define MF_KERNELS_CPU_AMX_CODES_H

#include "kernels/cpu/amx_few_rows.h"
#include "kernels/cpu/amx_product.h"

INLINE void put_step(uint8_t *out, int64_t i, __m512i values)
{
    _mm512_store_si512(out + i / STEP * AMX_TILE_BYTES, values);
}

INLINE __mmask32 mask32(int64_t left)
{
    return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}

INLINE __mmask64 mask64(int64_t left)
{
    return left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
}

INLINE void decode_bf16(const amx_codes *codes, int64_t count, uint8_t *out)
{
    const uint8_t *p = codes->p;
    int64_t i = 0;
    UNROLL(8) for (; i + STEP <= count; i += STEP)
    {
        put_step(out, i, _mm512_loadu_si512(p + 2 * i));
    }
    if (i < count) {
        put_step(out, i, _mm512_maskz_loadu_epi16(mask32(count - i), p + 2 * i));
    }
}

/* bf16 of the e4m3 code c < 128; code 127 is a NaN. */
#define BITS(c)                                                                                                        \
    ((c) == 0     ? 0                                                                                                  \
     : (c) == 127 ? 0x7fc0                                                                                             \
     : (c) >= 8   ? 0x3c00 + ((c) << 4)                                                                                \
     : (c) >= 4   ? 0x3c00 + (((c)-4) << 5)                                                                            \
     : (c) >= 2   ? 0x3b80 + (((c)-2) << 6)                                                                            \
                  : 0x3b00)
#define LOW(c) (BITS(c) & 255)
#define HIGH(c) (BITS(c) >> 8)
#define FOUR(f, c) f(c), f((c) + 1), f((c) + 2), f((c) + 3)
#define SIXTEEN(f, c) FOUR(f, c), FOUR(f, (c) + 4), FOUR(f, (c) + 8), FOUR(f, (c) + 12)
#define SIXTY_FOUR(f, c) SIXTEEN(f, c), SIXTEEN(f, (c) + 16), SIXTEEN(f, (c) + 32), SIXTEEN(f, (c) + 48)

static const _Alignas(64) uint8_t e4m3_low[128] = { SIXTY_FOUR(LOW, 0), SIXTY_FOUR(LOW, 64) };
static const _Alignas(64) uint8_t e4m3_high[128] = { SIXTY_FOUR(HIGH, 0), SIXTY_FOUR(HIGH, 64) };

/* 64 codes at a time: their low and high bytes by table, zipped. */
INLINE void put_fp8(__m512i codes, int64_t i, bool is_half, uint8_t *out)
{
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); /* zipping works inside lanes of 16 bytes */
    codes = _mm512_permutexvar_epi64(order, codes);
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(e4m3_low), codes, _mm512_load_si512(e4m3_low + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(e4m3_high), codes, _mm512_load_si512(e4m3_high + 64));
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8((char)0x80), 0xf8); /* high | (codes & 0x80) */
    put_step(out, i, _mm512_unpacklo_epi8(low, high));
    if (!is_half) {
        put_step(out, i + STEP, _mm512_unpackhi_epi8(low, high));
    }
}

INLINE void decode_fp8(const amx_codes *codes, int64_t count, uint8_t *out)
{
    const uint8_t *p = codes->p;
    int64_t i = 0;
    UNROLL(4) for (; i + 2 * STEP <= count; i += 2 * STEP)
    {
        put_fp8(_mm512_loadu_si512(p + i), i, false, out);
    }
    if (i < count) {
        put_fp8(_mm512_maskz_loadu_epi8(mask64(count - i), p + i), i, count - i <= STEP, out);
    }
}

#if defined(__AVX512FP16__)
/* As f16, whose exponent and the seven bits behind it are then moved to where bf16 has them: a code fits in seven.  The
 * exponents' biases differ by 112; zero has none. */
INLINE __m512i int8_values(__m256i codes)
{
    const __m512i half = _mm512_castph_si512(_mm512_cvtepi16_ph(_mm512_cvtepi8_epi16(codes)));
    const __mmask32 some = _mm512_test_epi16_mask(half, half);
    const __m512i moved = _mm512_and_si512(_mm512_srai_epi16(half, 3), _mm512_set1_epi16((short)0x8fff));
    return _mm512_mask_add_epi16(moved, some, moved, _mm512_set1_epi16(112 << 7));
}
#else /* emulated, on a machine without it: the same bits */
/* A code goes to the top of a word of 32 bits, and down again with its sign, and becomes a float whose lower half is
 * zero. */
INLINE __m512i int8_values(__m256i codes)
{
    const __mmask64 tops = 0x8888888888888888u;
    const __m512i even =
        _mm512_setr_epi32(0, 2 << 24, 4 << 24, 6 << 24, 8 << 24, 10 << 24, 12 << 24, 14 << 24, 16 << 24, 18 << 24,
                          20 << 24, 22 << 24, 24 << 24, 26 << 24, 28 << 24, 30 << 24);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1 << 24));
    const __m512i wide = _mm512_castsi256_si512(codes);
    const __m512i a = _mm512_srai_epi32(_mm512_maskz_permutexvar_epi8(tops, even, wide), 24);
    const __m512i b = _mm512_srai_epi32(_mm512_maskz_permutexvar_epi8(tops, odd, wide), 24);
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(a)), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_castps_si512(_mm512_cvtepi32_ps(b)));
}
#endif

INLINE void decode_int8(const amx_codes *codes, int64_t count, uint8_t *out)
{
    const uint8_t *p = codes->p;
    int64_t i = 0;
    UNROLL(8) for (; i + STEP <= count; i += STEP)
    {
        put_step(out, i, int8_values(_mm256_loadu_si256((const __m256i *)(const void *)(p + i))));
    }
    if (i < count) {
        put_step(out, i, int8_values(_mm256_maskz_loadu_epi8(mask32(count - i), p + i)));
    }
}

/* 32 codes of four bits by a table of 16 words, twice.  The 16 bytes stand in each lane; there a word takes the two
 * bytes that hold its code, and moves the code to its lowest bits. */
INLINE __m512i four_bit_values(__m512i table, __m128i bytes)
{
    const __m512i order = _mm512_set_epi8(15, 14, 15, 14, 15, 14, 15, 14, 13, 12, 13, 12, 13, 12, 13, 12, 11, 10, 11,
                                          10, 11, 10, 11, 10, 9, 8, 9, 8, 9, 8, 9, 8, 7, 6, 7, 6, 7, 6, 7, 6, 5, 4, 5,
                                          4, 5, 4, 5, 4, 3, 2, 3, 2, 3, 2, 3, 2, 1, 0, 1, 0, 1, 0, 1, 0);
    const __m512i words = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), order);
    /* the permutation looks at five bits */
    return _mm512_permutexvar_epi16(_mm512_srlv_epi16(words, _mm512_set1_epi64(0x000c000800040000)), table);
}

/* The upper halves of sixteen floats, twice. */
INLINE __m512i four_bit_table(__m512 values)
{
    const __m512i odd = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 31, 29, 27, 25, 23,
                                         21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutexvar_epi16(odd, _mm512_castps_si512(values));
}

/* Columns i to count of a row, i being a multiple of STEP. */
INLINE void put_four_bit(__m512i table, const uint8_t *p, int64_t i, int64_t count, uint8_t *out)
{
    if (count - i >= STEP) {
        put_step(out, i, four_bit_values(table, _mm_loadu_si128((const __m128i *)(const void *)(p + i / 2))));
    } else {
        const __m128i bytes = _mm_maskz_loadu_epi8((__mmask16)mask32((count - i + 1) / 2), p + i / 2);
        put_step(out, i, _mm512_maskz_mov_epi16(mask32(count - i), four_bit_values(table, bytes)));
    }
}

INLINE void decode_int4(const amx_codes *row, int64_t count, uint8_t *out)
{
    const mf_matrix *w = row->w;
    const uint8_t *p = row->p;
    const __m512i codes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (!w->zero) {
        const __m512i table = four_bit_table(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(8))));
        UNROLL(8) for (int64_t i = 0; i < count; i += STEP)
        {
            put_four_bit(table, p, i, count, out);
        }
        return;
    }
    const uint8_t *zero = w->zero + mf_matrix_scale_row(w, row->row);
    const int64_t group = w->group_size;
    int64_t next = row->first / group;
    __m512i table = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += STEP) {
        if (i == 0 || row->first + i == next * group) { /* at most 255 away: bf16 holds it */
            table = four_bit_table(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(zero[next++]))));
        }
        put_four_bit(table, p, i, count, out);
    }
}

/* The scale is a power of two, so the value is as exact as the code, and no scale is left for the sums.  What is below
 * 2^-126 the tile product takes as zero.  Sixteen codes as bf16, twice, for every scale: x is an exponent, m the bit
 * behind the leading one. */
#define MXFP4_BITS(x, m)                                                                                               \
    ((x) >= 255 ? 0x7f80 : (x) >= 1 ? (x) * 128 + (m) * 64 : (x) == 0 ? 64 + (m) * 32 : 32 + (m) * 16)
#define MXFP4_EIGHT(e, sign)                                                                                           \
    (sign), (sign) + MXFP4_BITS((e)-1, 0), (sign) + MXFP4_BITS(e, 0), (sign) + MXFP4_BITS(e, 1),                       \
        (sign) + MXFP4_BITS((e) + 1, 0), (sign) + MXFP4_BITS((e) + 1, 1), (sign) + MXFP4_BITS((e) + 2, 0),             \
        (sign) + MXFP4_BITS((e) + 2, 1)
#define NANS 0x7fc0, 0x7fc0, 0x7fc0, 0x7fc0, 0x7fc0, 0x7fc0, 0x7fc0, 0x7fc0
#define MXFP4_ROW(e) { MXFP4_EIGHT(e, 0), MXFP4_EIGHT(e, 0x8000), MXFP4_EIGHT(e, 0), MXFP4_EIGHT(e, 0x8000) }
static const _Alignas(64) uint16_t mxfp4_table[256][32] = {
    SIXTY_FOUR(MXFP4_ROW, 0), SIXTY_FOUR(MXFP4_ROW, 64), SIXTY_FOUR(MXFP4_ROW, 128), SIXTEEN(MXFP4_ROW, 192),
    SIXTEEN(MXFP4_ROW, 208), SIXTEEN(MXFP4_ROW, 224), FOUR(MXFP4_ROW, 240), FOUR(MXFP4_ROW, 244), FOUR(MXFP4_ROW, 248),
    MXFP4_ROW(252), MXFP4_ROW(253), MXFP4_ROW(254), { NANS, NANS, NANS, NANS }
};

INLINE void decode_mxfp4(const amx_codes *codes, int64_t count, uint8_t *out)
{
    const mf_matrix *w = codes->w;
    const uint8_t *scales =
        (const uint8_t *)w->scale + codes->row * w->scale_row_stride + codes->first / MF_MXFP4_GROUP;
    __builtin_prefetch(scales + AMX_ROWS * w->scale_row_stride, 0, 3);
    UNROLL(8) for (int64_t i = 0; i < count; i += STEP)
    {
        put_four_bit(_mm512_load_si512(mxfp4_table[scales[i / STEP]]), codes->p, i, count, out);
    }
}

#endif
