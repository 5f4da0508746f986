/* products_avx512_bf16.c - products of bf16 inputs with VDPBF16PS: two columns per lane and instruction.
 *
 * bf16 weights are used as they lie.  Codes of fp8, int8 and mxfp4 (with its scales, powers of two) are exact in bf16,
 * and so are int4 codes less their zero point; the scales of fp8 blocks and int4 groups come after a group's sum.
 *
 * The instruction takes subnormal inputs as zero and gives zero for subnormal sums, whatever the environment says:
 * weights and products below 2^-126 are lost here and kept on other rungs. */
#include "kernels/cpu/products_avx512.h"

#define COLUMN_BYTES 2
#define TOKENS_IN_REGISTERS 6
#define HAS_FLUSHED_FORMATS 1
#define HAS_ONE_DECODER 1
enum { TOKENS = 6, FLUSH_TOKENS = 3 };

INLINE bool is_flushed(mf_format format)
{
    return format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_INT4_GROUP;
}

/* Scales come after a group's sum, so only zero points tell int4 groups apart. */
INLINE bool has_one_decoder(mf_format format, const mf_matrix *w)
{
    return format == MF_FORMAT_INT4_GROUP && !w->zero;
}

INLINE int step_columns(mf_format format)
{
    return format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_FP8_CHANNEL ? 64 : 32;
}

INLINE int stream_tokens(mf_format format)
{
    return is_flushed(format) ? 2 : step_columns(format) == 32 ? 6 : 4;
}

INLINE int stream_passes(mf_format format)
{
    return format == MF_FORMAT_BF16 ? 3 : 2;
}

INLINE vec multiply_add(vec w, vec x, vec acc)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}

INLINE vec flush(vec acc, float scale, vec total)
{
    return _mm512_fmadd_ps(acc, _mm512_set1_ps(scale), total);
}

INLINE void pace(void)
{
}

INLINE float row_factor(mf_format format)
{
    (void)format;
    return 1.0f;
}

/* ---- codes as values ---- */

/* The low and high bytes of an e4m3 magnitude as bf16; 0x7f is a NaN. */
#define LOW(m) ((m) == 0x7f ? 0xc0 : (m) >= 8 ? ((m) << 4) & 0xff : ((SMALL(m)) & 0xff))
#define HIGH(m) ((m) == 0x7f ? 0x7f : (m) >= 8 ? (((m) + (120 << 3)) >> 4) & 0xff : ((SMALL(m)) >> 8))
/* m * 2^-9 for m < 8: exponent of the leading bit, then what stands behind it */
#define SMALL(m) ((m) == 0 ? 0 : (m) == 1 ? 118 << 7 : (m) < 4 ? 119 << 7 | ((m)&1) << 6 : 120 << 7 | ((m)&3) << 5)
#define BYTES4(f, m) (char)f(m), (char)f((m) + 1), (char)f((m) + 2), (char)f((m) + 3)
#define BYTES16(f, m) BYTES4(f, m), BYTES4(f, (m) + 4), BYTES4(f, (m) + 8), BYTES4(f, (m) + 12)
#define BYTES64(f, m) BYTES16(f, m), BYTES16(f, (m) + 16), BYTES16(f, (m) + 32), BYTES16(f, (m) + 48)
static _Alignas(64) const char e4m3_low[128] = { BYTES64(LOW, 0), BYTES64(LOW, 64) };
static _Alignas(64) const char e4m3_high[128] = { BYTES64(HIGH, 0), BYTES64(HIGH, 64) };

/* INT4, MXFP4: the sixteen values, twice. */
typedef struct decoder {
    __m512i words;
} decoder;

/* The upper halves of sixteen f32, twice. */
INLINE __m512i words_of(__m512 v)
{
    const __m512i odd = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 31, 29, 27, 25, 23,
                                         21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutexvar_epi16(odd, _mm512_castps_si512(v));
}

INLINE decoder decoder_for(mf_format format, float scale, float zero)
{
    if (format == MF_FORMAT_INT4_GROUP) {
        const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return (decoder){ words_of(_mm512_sub_ps(codes, _mm512_set1_ps(zero))) };
    }
    if (format == MF_FORMAT_MXFP4) { /* scale: what is added to a word's exponent, for both words of a lane */
        const __m512i codes =
            _mm512_set_epi16(-0x3f40, -0x3f80, -0x3fc0, -0x4000, -0x4040, -0x4080, -0x4100, -0x8000, 0x40c0, 0x4080,
                             0x4040, 0x4000, 0x3fc0, 0x3f80, 0x3f00, 0, -0x3f40, -0x3f80, -0x3fc0, -0x4000, -0x4040,
                             -0x4080, -0x4100, -0x8000, 0x40c0, 0x4080, 0x4040, 0x4000, 0x3fc0, 0x3f80, 0x3f00, 0);
        return (decoder){ _mm512_mask_add_epi16(codes, 0xfefefefe, codes, _mm512_castps_si512(_mm512_set1_ps(scale))) };
    }
    return (decoder){ _mm512_setzero_si512() };
}

/* fp8's NaN codes become NaN values: nothing to ask later. */
typedef bool seen_codes;

INLINE seen_codes seen_none(void)
{
    return false;
}

INLINE bool has_seen_nan(seen_codes seen)
{
    return seen;
}

INLINE void load_values(mf_format format, const uint8_t *p, int64_t n, const decoder *d, seen_codes *seen, vec *values)
{
    (void)seen;
    switch (format) {
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL: {
        const __m512i low0 = _mm512_load_si512(e4m3_low), low1 = _mm512_load_si512(e4m3_low + 64);
        const __m512i high0 = _mm512_load_si512(e4m3_high), high1 = _mm512_load_si512(e4m3_high + 64);
        __m512i codes = n >= 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((1ull << n) - 1u, p);
        /* so that pairs of bytes come out in the order of columns */
        codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
        const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1); /* looks at seven bits */
        __m512i high = _mm512_permutex2var_epi8(high0, codes, high1);
        high = _mm512_ternarylogic_epi64(high, codes, _mm512_set1_epi8((char)0x80), 0xf8); /* high | (codes & 0x80) */
        values[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi8(low, high));
        values[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi8(low, high));
        return;
    }
    case MF_FORMAT_INT8_CHANNEL: {
        const __m128i first =
            n >= 32 ? _mm_loadu_si128((const __m128i *)(const void *)p) : _mm_maskz_loadu_epi8(first16(n), p);
        const __m128i second = n >= 32 ? _mm_loadu_si128((const __m128i *)(const void *)(p + 16))
                                       : _mm_maskz_loadu_epi8(first16(n - 16), p + 16);
        values[0] = (__m512)_mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(second)),
                                                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first)));
        return;
    }
    case MF_FORMAT_INT4_GROUP:
    case MF_FORMAT_MXFP4: { /* four codes in each 64 bits, then each in the low bits of its word */
        const __m512i shifts = _mm512_set1_epi64(0x0c0c080804040000);
        const __m512i codes = _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu16_epi64(load_pairs(p, n)));
        /* the permutation looks at five bits, the table holds the values twice */
        values[0] = _mm512_castsi512_ps(_mm512_permutexvar_epi16(codes, d->words));
        return;
    }
    default:
        values[0] = _mm512_castsi512_ps(load_words(p, n));
        return;
    }
}

/* Scales as decoder_for takes them: of mxfp4, (byte - 127) << 7 in both halves of 32 bits. */
INLINE void load_scales_of(mf_format format, mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    if (format != MF_FORMAT_MXFP4) {
        load_scales(dtype, p, n, out);
        return;
    }
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first16(n), p));
    const __m512i word = _mm512_slli_epi32(_mm512_sub_epi32(codes, _mm512_set1_epi32(127)), 7);
    const __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, word, _mm512_slli_epi32(word, 16));
    _mm512_storeu_ps(out, _mm512_castsi512_ps(both));
}

#include "kernels/cpu/product_loops.h"

PRODUCT(bf16_avx512_bf16, MF_FORMAT_BF16)
PRODUCT(fp8_block_avx512_bf16, MF_FORMAT_FP8_BLOCK)
PRODUCT(fp8_channel_avx512_bf16, MF_FORMAT_FP8_CHANNEL)
PRODUCT(int8_avx512_bf16, MF_FORMAT_INT8_CHANNEL)

/* Rows again that have a scale with which some code's value is not a normal bf16. */
static void redo_extreme_scales(const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    const int64_t count = (w->k + MF_MXFP4_GROUP - 1) / MF_MXFP4_GROUP;
    for (int64_t r = 0; r < tile->num_rows; r++) {
        const uint8_t *p = (const uint8_t *)w->scale + mf_matrix_scale_row(w, tile->first_row + r);
        __mmask64 extreme = 0;
        for (int64_t g = 0; g < count; g += 64) {
            const __mmask64 valid = count - g >= 64 ? ~0ull : (1ull << (count - g)) - 1u;
            const __m512i scales_less_2 = _mm512_sub_epi8(_mm512_maskz_loadu_epi8(valid, p + g), _mm512_set1_epi8(2));
            extreme |= _mm512_mask_cmpgt_epu8_mask(valid, scales_less_2, _mm512_set1_epi8((char)250));
        }
        if (extreme) {
            mf_cpu_tile one = *tile;
            one.first_row += r;
            one.num_rows = 1;
            one.out += r;
            mf_cpu_tile_rare(&one, MF_CPU_FORM_BF16, 1);
        }
    }
}

static void mxfp4_avx512_bf16(const mf_cpu_tile *tile)
{
    product(MF_FORMAT_MXFP4, tile);
    redo_extreme_scales(tile);
}

static void int4_avx512_bf16(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % 32 != 0 || tile->w->group_size > CHUNK_COLUMNS) {
        mf_cpu_tile_rare(tile, MF_CPU_FORM_BF16, 1);
        return;
    }
    product(MF_FORMAT_INT4_GROUP, tile);
}

/* F16 and F32 weights are not exact in bf16: they stay with f32 inputs. */
void mf_cpu_products_fill_avx512_bf16(mf_cpu_kernels *k)
{
    static const mf_cpu_tile_fn products[MF_FORMAT_COUNT] = {
        [MF_FORMAT_BF16] = bf16_avx512_bf16,
        [MF_FORMAT_FP8_BLOCK] = fp8_block_avx512_bf16,
        [MF_FORMAT_FP8_CHANNEL] = fp8_channel_avx512_bf16,
        [MF_FORMAT_INT8_CHANNEL] = int8_avx512_bf16,
        [MF_FORMAT_INT4_GROUP] = int4_avx512_bf16,
        [MF_FORMAT_MXFP4] = mxfp4_avx512_bf16,
    };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        if (products[f]) {
            k->product[f][MF_CPU_INPUT_BF16] = (mf_cpu_product){ products[f], MF_CPU_FORM_BF16 };
        }
    }
    k->isa = "avx512_bf16";
}
