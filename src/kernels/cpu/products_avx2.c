/* products_avx2.c - products of f32 inputs with AVX2, FMA and F16C.
 *
 * Inputs lie in steps of 16 columns.  bf16 comes out of one vector as even and odd columns, so its product asks for the
 * split form; 4-bit codes come out of 32 bytes, 64 columns, by tables of bytes and have a form of their own; the others
 * ask for ascending columns. */
#include "kernels/cpu/avx2.h"

typedef __m256 vec;

#define COLUMN_BYTES 4
#define TOKENS_IN_REGISTERS 3
#define HAS_FLUSHED_FORMATS 0
#define HAS_HALVES 1
/* A run through a chunk costs some 40 cycles beside its products, so four rows have long ones. */
#define BLOCK 1
#define CHUNK_VECTORS 128
#define NEAR_INPUTS ((int64_t)1 << 20)
enum { ROWS = 4, TOKENS = 3, SCALES_AT_ONCE = 8, STEP = 16, BYTES_STEP = 64 };

INLINE bool is_halved(mf_format format)
{
    return mf_format_is_4bit(format);
}

INLINE int step_columns(mf_format format)
{
    return is_halved(format) ? BYTES_STEP : STEP;
}

INLINE int stream_tokens(mf_format format)
{
    (void)format;
    return 3;
}

INLINE bool is_flushed(mf_format format)
{
    (void)format;
    return false;
}

INLINE vec vec_zero(void)
{
    return _mm256_setzero_ps();
}

INLINE vec vec_load(const void *p)
{
    return _mm256_load_ps(p);
}

INLINE int stream_passes(mf_format format)
{
    return format <= MF_FORMAT_F16 || format == MF_FORMAT_INT8_CHANNEL ? 2 : 1;
}

INLINE vec multiply_add(vec w, vec x, vec acc)
{
    return _mm256_fmadd_ps(w, x, acc);
}

INLINE vec flush(vec acc, float scale, vec total)
{
    (void)scale;
    (void)acc;
    return total;
}

INLINE void pace(void)
{
}

/* Lane l and l + 4, then 2, 1. */
INLINE void sum_four(vec a, vec b, vec c, vec d, float out[4])
{
    const __m256 ac = _mm256_add_ps(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
    const __m256 bd = _mm256_add_ps(_mm256_permute2f128_ps(b, d, 0x20), _mm256_permute2f128_ps(b, d, 0x31));
    /* a0+a2 a1+a3 b0+b2 b1+b3, the same of c and d in the upper half */
    const __m256 v = _mm256_add_ps(_mm256_shuffle_ps(ac, bd, 0x44), _mm256_shuffle_ps(ac, bd, 0xee));
    const __m256 sums = _mm256_add_ps(v, _mm256_permute_ps(v, 0xb1));
    _mm_storeu_ps(out, _mm_shuffle_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1), 0x88));
}

/* ---- codes as values ---- */

/* FP8_BLOCK: the scale times 2^8; INT4: the scale, and what it makes of 8 less the zero point. */
typedef struct decoder {
    __m256 scale, shift;
} decoder;

INLINE decoder decoder_for(mf_format format, float scale, float zero)
{
    const __m256 s = _mm256_set1_ps(format == MF_FORMAT_FP8_BLOCK ? scale * 256.0f : scale);
    (void)zero;
    return (decoder){ s, s };
}

INLINE __m256 halves(const float *first, const float *second)
{
    return _mm256_blend_ps(_mm256_broadcast_ss(first), _mm256_broadcast_ss(second), 0xf0);
}

INLINE decoder halves_for(mf_format format, const float *scale, const float *zero, int64_t g, int64_t h)
{
    const __m256 s = halves(scale + g, scale + h);
    return (decoder){ s, format == MF_FORMAT_INT4_GROUP
                             ? _mm256_mul_ps(_mm256_sub_ps(_mm256_set1_ps(8.0f), halves(zero + g, zero + h)), s)
                             : s };
}

/* Of fp8's halves. */
INLINE float row_factor(mf_format format)
{
    return format == MF_FORMAT_FP8_CHANNEL ? 256.0f : 1.0f;
}

/* The larger magnitude bits of fp8 codes: 0x7f anywhere says that a row may hold a NaN code. */
typedef __m128i seen_codes;

INLINE seen_codes seen_none(void)
{
    return _mm_setzero_si128();
}

INLINE bool has_seen_nan(seen_codes seen)
{
    return _mm_movemask_epi8(_mm_cmpeq_epi8(seen, _mm_set1_epi8(0x7f))) != 0;
}

INLINE __m128i load16(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

INLINE __m128i load8(const uint8_t *p)
{
    return _mm_loadl_epi64((const __m128i *)(const void *)p);
}

INLINE void load_whole(mf_format format, const uint8_t *p, const decoder *d, seen_codes *seen, vec values[2])
{
    switch (format) {
    case MF_FORMAT_F32:
        values[0] = _mm256_loadu_ps((const float *)(const void *)p);
        values[1] = _mm256_loadu_ps((const float *)(const void *)(p + 32));
        return;
    case MF_FORMAT_BF16: {
        const __m256i words = _mm256_loadu_si256((const __m256i *)(const void *)p);
        values[0] = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
        values[1] = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32((int)0xffff0000u)));
        return;
    }
    case MF_FORMAT_F16:
        values[0] = _mm256_cvtph_ps(load16(p));
        values[1] = _mm256_cvtph_ps(load16(p + 16));
        return;
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL: {
        /* e4m3's bits moved up are the half of code * 2^-8, subnormals included: only the exponent's bias differs.  NaN
         * codes come out as 480: see seen_codes. */
        const __m128i codes = load16(p);
        *seen = _mm_max_epu8(*seen, _mm_and_si128(codes, _mm_set1_epi8(0x7f)));
        const __m256i halves =
            _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7), _mm256_set1_epi16((short)0xbf80));
        values[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        values[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
        if (format == MF_FORMAT_FP8_BLOCK) {
            values[0] = _mm256_mul_ps(values[0], d->scale);
            values[1] = _mm256_mul_ps(values[1], d->scale);
        }
        return;
    }
    default:
        values[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(p)));
        values[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(p + 8)));
        return;
    }
}

/* n: 16, or fewer at a row's end. */
INLINE void load_values(mf_format format, const uint8_t *p, int64_t n, const decoder *d, seen_codes *seen,
                        vec values[2])
{
    if (n >= STEP) {
        load_whole(format, p, d, seen, values);
        return;
    }
    uint8_t padded[64] = { 0 };
    memcpy(padded, p, (size_t)((n * mf_format_bits(format) + 7) / 8));
    load_whole(format, padded, d, seen, values);
}

/* What 4 bits stand for as bf16, which they are exactly: the low and the high byte. */
#define E2M1(f) f(0x0000), f(0x3f00), f(0x3f80), f(0x3fc0), f(0x4000), f(0x4040), f(0x4080), f(0x40c0), f(0x8000), \
        f(0xbf00), f(0xbf80), f(0xbfc0), f(0xc000), f(0xc040), f(0xc080), f(0xc0c0)
#define LESS_8(f) f(0xc100), f(0xc0e0), f(0xc0c0), f(0xc0a0), f(0xc080), f(0xc040), f(0xc000), f(0xbf80), f(0x0000), \
        f(0x3f80), f(0x4000), f(0x4040), f(0x4080), f(0x40a0), f(0x40c0), f(0x40e0)
#define LOW_BYTE(v) (char)((v)&0xff)
#define HIGH_BYTE(v) (char)((v) >> 8)

typedef __m256i half_codes;

/* n of 64 columns */
INLINE half_codes load_codes(const uint8_t *p, int64_t n)
{
    if (n >= BYTES_STEP) {
        return _mm256_loadu_si256((const __m256i *)(const void *)p);
    }
    uint8_t padded[BYTES_STEP / 2] = { 0 };
    memcpy(padded, p, (size_t)((n + 1) / 2));
    return _mm256_loadu_si256((const __m256i *)(const void *)padded);
}

/* Two of the eight vectors of 64 columns: of the low nibbles of 32 bytes, then the high ones; of each sixteen bytes the
 * first eight, then the others; of those the even bytes and the odd. */
INLINE void load_part(mf_format format, half_codes bytes, const decoder *d, int part, vec values[2])
{
    const __m256i codes = _mm256_and_si256(part < 2 ? bytes : _mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
    const bool is_int = format == MF_FORMAT_INT4_GROUP;
    const __m128i low_table = is_int ? _mm_setr_epi8(LESS_8(LOW_BYTE)) : _mm_setr_epi8(E2M1(LOW_BYTE));
    const __m128i high_table = is_int ? _mm_setr_epi8(LESS_8(HIGH_BYTE)) : _mm_setr_epi8(E2M1(HIGH_BYTE));
    const __m256i low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(low_table), codes);
    const __m256i high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(high_table), codes);
    const __m256i pairs = part % 2 ? _mm256_unpackhi_epi8(low, high) : _mm256_unpacklo_epi8(low, high);
    const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)));
    values[0] = is_int ? _mm256_fmadd_ps(even, d->scale, d->shift) : _mm256_mul_ps(even, d->scale);
    values[1] = is_int ? _mm256_fmadd_ps(odd, d->scale, d->shift) : _mm256_mul_ps(odd, d->scale);
}

/* Eight scales. */
INLINE __m256 scales_as_floats(mf_dtype dtype, const uint8_t *p)
{
    switch (dtype) {
    case MF_F8_E8M0: {
        const __m256i codes = _mm256_cvtepu8_epi32(load8(p));
        __m256i bits = _mm256_slli_epi32(codes, 23);
        bits =
            _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x00400000), _mm256_cmpeq_epi32(codes, _mm256_setzero_si256()));
        bits =
            _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc00000), _mm256_cmpeq_epi32(codes, _mm256_set1_epi32(255)));
        return _mm256_castsi256_ps(bits);
    }
    case MF_BF16:
        return f32_from_bf16(p);
    case MF_F16:
        return _mm256_cvtph_ps(load16(p));
    default:
        return _mm256_loadu_ps((const float *)(const void *)p);
    }
}

/* n <= 8 scales. */
INLINE void load_scales(mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    uint8_t padded[32] = { 0 };
    if (n < 8) { /* a copy of unknown length takes longer than all the rest */
        memcpy(padded, p, (size_t)n * mf_dtype_size(dtype));
        p = padded;
    }
    _mm256_storeu_ps(out, scales_as_floats(dtype, p));
}

INLINE void load_scales_of(mf_format format, mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    (void)format;
    load_scales(dtype, p, n, out);
}

#include "kernels/cpu/product_loops.h"

PRODUCT(f32_avx2, MF_FORMAT_F32)
PRODUCT(bf16_avx2, MF_FORMAT_BF16)
PRODUCT(f16_avx2, MF_FORMAT_F16)
PRODUCT(fp8_channel_avx2, MF_FORMAT_FP8_CHANNEL)
PRODUCT(int8_avx2, MF_FORMAT_INT8_CHANNEL)
PRODUCT(mxfp4_avx2, MF_FORMAT_MXFP4)

static void fp8_block_avx2(const mf_cpu_tile *tile)
{
    product(MF_FORMAT_FP8_BLOCK, tile);
    mf_cpu_redo_huge_scales(tile, MF_CPU_FORM_F32, 0x1p120f); /* 2^8 would make them infinite */
}

static void int4_avx2(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % (BYTES_STEP / 2) != 0 && tile->w->group_size < tile->w->k) { /* inside halves */
        mf_cpu_tile_rare(tile, MF_CPU_FORM_F32_BYTES, STEP);
        return;
    }
    product(MF_FORMAT_INT4_GROUP, tile);
}

void mf_cpu_products_fill_avx2(mf_cpu_kernels *k)
{
    static const mf_cpu_product products[MF_FORMAT_COUNT] = {
        [MF_FORMAT_F32] = { f32_avx2, MF_CPU_FORM_F32 },
        [MF_FORMAT_BF16] = { bf16_avx2, MF_CPU_FORM_F32_SPLIT },
        [MF_FORMAT_F16] = { f16_avx2, MF_CPU_FORM_F32 },
        [MF_FORMAT_FP8_BLOCK] = { fp8_block_avx2, MF_CPU_FORM_F32 },
        [MF_FORMAT_FP8_CHANNEL] = { fp8_channel_avx2, MF_CPU_FORM_F32 },
        [MF_FORMAT_INT8_CHANNEL] = { int8_avx2, MF_CPU_FORM_F32 },
        [MF_FORMAT_INT4_GROUP] = { int4_avx2, MF_CPU_FORM_F32_BYTES },
        [MF_FORMAT_MXFP4] = { mxfp4_avx2, MF_CPU_FORM_F32_BYTES },
    };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        k->product[f][MF_CPU_INPUT_F32] = products[f];
        k->product[f][MF_CPU_INPUT_BF16] = products[f];
    }
    k->split = STEP;
    k->tile_tokens = 96;
}
