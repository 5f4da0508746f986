/* products_neon_bf16.c - products of bf16 inputs with BFDOT: weights that bf16 holds exactly, as codes or as they are.
 *
 * BFDOT adds two products and then the sum to its lane, each rounded to odd, and takes subnormals as zero. */
#include "kernels/cpu/neon.h"

#define COLUMN_BYTES 2
#ifndef CHUNK_VECTORS
#define CHUNK_VECTORS 64
#endif

#include "kernels/cpu/products_neon.h"

INLINE int step_columns(mf_format format)
{
    return format == MF_FORMAT_BF16 ? 8 : 16;
}

INLINE vec multiply_add(vec w, vec x, vec acc)
{
    return vbfdotq_f32(acc, vreinterpretq_bf16_f32(w), vreinterpretq_bf16_f32(x));
}

/* The upper halves of eight floats that bf16 holds. */
INLINE vec halves_of(const float32x4_t v[2])
{
    return vreinterpretq_f32_u16(vuzp2q_u16(vreinterpretq_u16_f32(v[0]), vreinterpretq_u16_f32(v[1])));
}

INLINE void load_values(mf_format format, const uint8_t *p, int64_t n, const decoder *d, seen_codes *seen,
                        vec values[2])
{
    uint8_t padded[16] = { 0 };
    if (n < step_columns(format)) {
        memcpy(padded, p, (size_t)((n * mf_format_bits(format) + 7) / 8));
        p = padded;
    }
    float32x4_t four[2];
    switch (format) {
    case MF_FORMAT_BF16:
        values[0] = vec_load(p);
        return;
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL:
        UNROLL(2) for (int i = 0; i < 2; i++) {
            f32_from_e4m3(vld1_u8(p + 8 * i), seen, four);
            values[i] = halves_of(four);
        }
        return;
    case MF_FORMAT_INT8_CHANNEL:
        UNROLL(2) for (int i = 0; i < 2; i++) {
            f32_from_i8(vld1_u8(p + 8 * i), four);
            values[i] = halves_of(four);
        }
        return;
    default: {
        const uint8x16_t codes = nibbles(vld1_u8(p));
        const uint8x16_t low = vqtbl1q_u8(d->low, codes), high = vqtbl1q_u8(d->high, codes);
        values[0] = vreinterpretq_f32_u8(vzip1q_u8(low, high));
        values[1] = vreinterpretq_f32_u8(vzip2q_u8(low, high));
        return;
    }
    }
}

#include "kernels/cpu/int4_neon.h"

PRODUCT(bf16_neon_bf16, MF_FORMAT_BF16)
PRODUCT(fp8_block_neon_bf16, MF_FORMAT_FP8_BLOCK)
PRODUCT(fp8_channel_neon_bf16, MF_FORMAT_FP8_CHANNEL)
PRODUCT(int8_neon_bf16, MF_FORMAT_INT8_CHANNEL)
PRODUCT(mxfp4_neon_bf16, MF_FORMAT_MXFP4)

static void int4_neon_bf16(const mf_cpu_tile *tile)
{
    int4_product(tile, 16, MF_CPU_FORM_BF16);
}

void mf_cpu_kernels_fill_neon_bf16(mf_cpu_kernels *k)
{
    static const mf_cpu_tile_fn products[MF_FORMAT_COUNT] = {
        /* f16 and f32 weights do not fit bf16 */
        [MF_FORMAT_BF16] = bf16_neon_bf16,
        [MF_FORMAT_FP8_BLOCK] = fp8_block_neon_bf16,
        [MF_FORMAT_FP8_CHANNEL] = fp8_channel_neon_bf16,
        [MF_FORMAT_INT8_CHANNEL] = int8_neon_bf16,
        [MF_FORMAT_INT4_GROUP] = int4_neon_bf16,
        [MF_FORMAT_MXFP4] = mxfp4_neon_bf16,
    };
    k->isa = "neon_bf16";
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        if (products[f]) {
            k->product[f][MF_CPU_INPUT_BF16] = (mf_cpu_product){ products[f], MF_CPU_FORM_BF16 };
        }
    }
}
