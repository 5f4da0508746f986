/* products_avx512.c - products of f32 inputs with AVX-512 F, BW, VL and DQ.
 *
 * Inputs lie in steps of 32 columns.  bf16 and 4-bit codes come out of one vector as even and odd columns, so their
 * products ask for the split form; the others for ascending columns. */
#include "kernels/cpu/products_avx512.h"

#define COLUMN_BYTES 4
#define TOKENS_IN_REGISTERS 6
#define HAS_FLUSHED_FORMATS 0
/* As in products_avx2.c. */
#define BLOCK 1
#define CHUNK_VECTORS 64
#define NEAR_INPUTS ((int64_t)1 << 20)
enum { TOKENS = 6 };

INLINE int step_columns(mf_format format)
{
    (void)format;
    return 32;
}

INLINE int stream_tokens(mf_format format)
{
    (void)format;
    return 4;
}

INLINE bool is_flushed(mf_format format)
{
    (void)format;
    return false;
}

INLINE int stream_passes(mf_format format)
{
    return format <= MF_FORMAT_F16 || format == MF_FORMAT_INT8_CHANNEL ? 4 : 2;
}

INLINE vec multiply_add(vec w, vec x, vec acc)
{
    return _mm512_fmadd_ps(w, x, acc);
}

/* Zen 5 hands instructions to its pipes by their place in the stream; without this the two that multiply are not kept
 * equally busy: 190 instead of 243 GFLOP/s per core from the first-level cache.  Others do not notice. */
INLINE void pace(void)
{
    __asm__ volatile("nop");
}

INLINE vec flush(vec acc, float scale, vec total)
{
    (void)scale;
    (void)acc;
    return total;
}

/* ---- codes as values ---- */

/* FP8_BLOCK: the scale times 2^8; INT4, MXFP4: the sixteen values. */
typedef struct decoder {
    __m512 v;
} decoder;

INLINE decoder decoder_for(mf_format format, float scale, float zero)
{
    if (format == MF_FORMAT_FP8_BLOCK) {
        return (decoder){ _mm512_set1_ps(scale * 256.0f) };
    }
    if (format == MF_FORMAT_INT4_GROUP) {
        const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return (decoder){ _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(zero)), _mm512_set1_ps(scale)) };
    }
    if (format == MF_FORMAT_MXFP4) {
        const __m512 codes = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f,
                                            -2.0f, -3.0f, -4.0f, -6.0f);
        return (decoder){ _mm512_mul_ps(codes, _mm512_set1_ps(scale)) };
    }
    return (decoder){ _mm512_setzero_ps() };
}

/* The larger magnitude bits of fp8 codes: 0x7f anywhere says that a row may hold a NaN code. */
typedef __m256i seen_codes;

INLINE seen_codes seen_none(void)
{
    return _mm256_setzero_si256();
}

INLINE bool has_seen_nan(seen_codes seen)
{
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(seen, _mm256_set1_epi8(0x7f))) != 0;
}

/* n: 32, or fewer at a row's end. */
INLINE void load_values(mf_format format, const uint8_t *p, int64_t n, const decoder *d, seen_codes *seen,
                        vec values[2])
{
    switch (format) {
    case MF_FORMAT_F32:
        values[0] = n >= 32 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first16(n), p);
        values[1] = n >= 32 ? _mm512_loadu_ps(p + 64) : _mm512_maskz_loadu_ps(first16(n - 16), p + 64);
        return;
    case MF_FORMAT_BF16: {
        const __m512i words = load_words(p, n);
        values[0] = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
        values[1] = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000u)));
        return;
    }
    case MF_FORMAT_F16: {
        const __m512i words = load_words(p, n);
        values[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
        values[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
        return;
    }
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL: {
        /* e4m3's bits moved up are the half of code * 2^-8, subnormals included: only the exponent's bias differs.  NaN
         * codes come out as 480: see seen_codes. */
        const __m256i codes = load_bytes(p, n);
        *seen = _mm256_max_epu8(*seen, _mm256_and_si256(codes, _mm256_set1_epi8(0x7f)));
        const __m512i halves =
            _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7), _mm512_set1_epi16((short)0xbf80));
        values[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
        values[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
        if (format == MF_FORMAT_FP8_BLOCK) {
            values[0] = _mm512_mul_ps(values[0], d->v);
            values[1] = _mm512_mul_ps(values[1], d->v);
        }
        return;
    }
    case MF_FORMAT_INT8_CHANNEL: {
        if (n >= 32) {
            values[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
            values[1] =
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p + 16))));
            return;
        }
        values[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first16(n), p)));
        values[1] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first16(n - 16), p + 16)));
        return;
    }
    default: { /* the permutation looks at the low four bits of a lane */
        const __m512i codes = _mm512_cvtepu8_epi32(load_pairs(p, n));
        values[0] = _mm512_permutexvar_ps(codes, d->v);
        values[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), d->v);
        return;
    }
    }
}

/* Of fp8's halves. */
INLINE float row_factor(mf_format format)
{
    return format == MF_FORMAT_FP8_CHANNEL ? 256.0f : 1.0f;
}

INLINE void load_scales_of(mf_format format, mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    (void)format;
    load_scales(dtype, p, n, out);
}

#include "kernels/cpu/product_loops.h"

PRODUCT(f32_avx512, MF_FORMAT_F32)
PRODUCT(bf16_avx512, MF_FORMAT_BF16)
PRODUCT(f16_avx512, MF_FORMAT_F16)
PRODUCT(fp8_channel_avx512, MF_FORMAT_FP8_CHANNEL)
PRODUCT(int8_avx512, MF_FORMAT_INT8_CHANNEL)
PRODUCT(mxfp4_avx512, MF_FORMAT_MXFP4)

static void fp8_block_avx512(const mf_cpu_tile *tile)
{
    product(MF_FORMAT_FP8_BLOCK, tile);
    mf_cpu_redo_huge_scales(tile, MF_CPU_FORM_F32, 0x1p120f); /* 2^8 would make them infinite */
}

static void int4_avx512(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % 32 != 0 && tile->w->group_size < tile->w->k) { /* groups start inside vectors */
        mf_cpu_tile_rare(tile, MF_CPU_FORM_F32_SPLIT, 32);
        return;
    }
    product(MF_FORMAT_INT4_GROUP, tile);
}

void mf_cpu_products_fill_avx512(mf_cpu_kernels *k)
{
    static const mf_cpu_product products[MF_FORMAT_COUNT] = {
        [MF_FORMAT_F32] = { f32_avx512, MF_CPU_FORM_F32 },
        [MF_FORMAT_BF16] = { bf16_avx512, MF_CPU_FORM_F32_SPLIT },
        [MF_FORMAT_F16] = { f16_avx512, MF_CPU_FORM_F32 },
        [MF_FORMAT_FP8_BLOCK] = { fp8_block_avx512, MF_CPU_FORM_F32 },
        [MF_FORMAT_FP8_CHANNEL] = { fp8_channel_avx512, MF_CPU_FORM_F32 },
        [MF_FORMAT_INT8_CHANNEL] = { int8_avx512, MF_CPU_FORM_F32 },
        [MF_FORMAT_INT4_GROUP] = { int4_avx512, MF_CPU_FORM_F32_SPLIT },
        [MF_FORMAT_MXFP4] = { mxfp4_avx512, MF_CPU_FORM_F32_SPLIT },
    };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        k->product[f][MF_CPU_INPUT_F32] = products[f];
        k->product[f][MF_CPU_INPUT_BF16] = products[f];
    }
    k->split = 32;
    k->tile_tokens = 96;
}
