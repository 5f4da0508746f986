/* products_avx512_bf16.c - products of bf16 inputs with VDPBF16PS: two columns per lane and instruction.
 *
 * bf16 weights are used as they lie; codes of fp8 and int8 are exact in bf16.  Codes under scales of blocks and groups have
 * a file of their own (quads_avx512_bf16.c).
 *
 * The instruction takes subnormal inputs as zero and gives zero for subnormal sums, whatever the environment says:
 * weights and products below 2^-126 are lost here and kept on other rungs. */
#include "kernels/cpu/products_avx512.h"
#include "kernels/cpu/values_avx512_bf16.h"

#define COLUMN_BYTES 2
#define TOKENS_IN_REGISTERS 6
#define HAS_FLUSHED_FORMATS 0
/* Prefetchers of AMD's cores follow what the code asks for when it is one stream, and then run ahead of it. */
#define ONE_STREAM(format) ((format) != MF_FORMAT_BF16)
#define STREAM_AHEAD(format) ((format) == MF_FORMAT_INT8_CHANNEL ? 12288 : 6144)
enum { TOKENS = 6 };

INLINE bool is_flushed(mf_format format)
{
    (void)format;
    return false;
}

INLINE int step_columns(mf_format format)
{
    return format == MF_FORMAT_FP8_CHANNEL ? 64 : 32;
}

INLINE int stream_tokens(mf_format format)
{
    return step_columns(format) == 32 ? 6 : 4;
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
    (void)scale;
    (void)acc;
    return total;
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

typedef struct decoder {
    char none;
} decoder;

INLINE decoder decoder_for(mf_format format, float scale, float zero)
{
    (void)format;
    (void)scale;
    (void)zero;
    return (decoder){ 0 };
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
    (void)d;
    switch (format) {
    case MF_FORMAT_FP8_CHANNEL: {
        __m512i codes = n >= 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((1ull << n) - 1u, p);
        /* so that pairs of bytes come out in the order of columns */
        codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
        __m512i first, second;
        e4m3_values(codes, &first, &second);
        values[0] = _mm512_castsi512_ps(first);
        values[1] = _mm512_castsi512_ps(second);
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
    default:
        values[0] = _mm512_castsi512_ps(load_words(p, n));
        return;
    }
}

INLINE void load_scales_of(mf_format format, mf_dtype dtype, const uint8_t *p, int64_t n, float *out)
{
    (void)format;
    load_scales(dtype, p, n, out);
}

#include "kernels/cpu/product_loops.h"
#include "kernels/cpu/bf16_rows.h"

/* Nothing is gained by a copy of rows that need no decoding, as long as a second-level cache holds the inputs. */
static void bf16_avx512_bf16(const mf_cpu_tile *tile)
{
    enum { INPUT_BYTES = 512 << 10 };
    if (bf16_rows(tile)) {
        return;
    }
    if (tile->num_tokens * tile->w->k * COLUMN_BYTES <= INPUT_BYTES) {
        stream_rows(MF_FORMAT_BF16, 0, tile);
    } else {
        product(MF_FORMAT_BF16, tile);
    }
}

PRODUCT(fp8_channel_avx512_bf16, MF_FORMAT_FP8_CHANNEL)
PRODUCT(int8_avx512_bf16, MF_FORMAT_INT8_CHANNEL)

/* F16 and F32 weights are not exact in bf16: they stay with f32 inputs. */
void mf_cpu_products_fill_avx512_bf16(mf_cpu_kernels *k)
{
    static const mf_cpu_tile_fn products[MF_FORMAT_COUNT] = {
        [MF_FORMAT_BF16] = bf16_avx512_bf16,
        [MF_FORMAT_FP8_CHANNEL] = fp8_channel_avx512_bf16,
        [MF_FORMAT_INT8_CHANNEL] = int8_avx512_bf16,
    };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        if (products[f]) {
            k->product[f][MF_CPU_INPUT_BF16] = (mf_cpu_product){ products[f], MF_CPU_FORM_BF16 };
        }
    }
    mf_cpu_quads_fill_avx512_bf16(k);
    k->isa = "avx512_bf16";
}
