/* products_neon.c - products of f32 inputs, and of int8 codes without SDOT, on any aarch64.  bf16 and 4-bit codes
 * become values eight at a time. */
#include "kernels/cpu/neon.h"

#define COLUMN_BYTES 4
#ifndef CHUNK_VECTORS
#define CHUNK_VECTORS 128
#endif

#include "kernels/cpu/products_neon.h"

INLINE int step_columns(mf_format format)
{
    (void)format;
    return 8;
}

INLINE vec multiply_add(vec w, vec x, vec acc)
{
    return vfmaq_f32(acc, w, x);
}

INLINE void load_values(mf_format format, const uint8_t *p, int64_t n, const decoder *d, seen_codes *seen,
                        vec values[2])
{
    uint8_t padded[32] = { 0 };
    if (n < 8) {
        memcpy(padded, p, (size_t)((n * mf_format_bits(format) + 7) / 8));
        p = padded;
    }
    switch (format) {
    case MF_FORMAT_F32:
        values[0] = vec_load(p);
        values[1] = vec_load(p + 16);
        return;
    case MF_FORMAT_BF16: {
        const uint16x8_t words = vreinterpretq_u16_u8(vld1q_u8(p));
        values[0] = f32_from_bf16_low(words);
        values[1] = f32_from_bf16_high(words);
        return;
    }
    case MF_FORMAT_F16: {
        const float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(p));
        values[0] = vcvt_f32_f16(vget_low_f16(halves));
        values[1] = vcvt_high_f32_f16(halves);
        return;
    }
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL:
        f32_from_e4m3(vld1_u8(p), seen, values);
        return;
    case MF_FORMAT_INT8_CHANNEL:
        f32_from_i8(vld1_u8(p), values);
        return;
    default: {
        uint32_t pairs;
        memcpy(&pairs, p, sizeof pairs);
        const uint8x16_t codes = nibbles(vreinterpret_u8_u32(vdup_n_u32(pairs)));
        const uint8x16_t words = vzip1q_u8(vqtbl1q_u8(d->low, codes), vqtbl1q_u8(d->high, codes));
        values[0] = f32_from_bf16_low(vreinterpretq_u16_u8(words));
        values[1] = f32_from_bf16_high(vreinterpretq_u16_u8(words));
        return;
    }
    }
}

#include "kernels/cpu/int4_neon.h"

PRODUCT(f32_neon, MF_FORMAT_F32)
PRODUCT(bf16_neon, MF_FORMAT_BF16)
PRODUCT(f16_neon, MF_FORMAT_F16)
PRODUCT(fp8_block_neon, MF_FORMAT_FP8_BLOCK)
PRODUCT(fp8_channel_neon, MF_FORMAT_FP8_CHANNEL)
PRODUCT(int8_neon, MF_FORMAT_INT8_CHANNEL)
PRODUCT(mxfp4_neon, MF_FORMAT_MXFP4)

static void int4_neon(const mf_cpu_tile *tile)
{
    int4_product(tile, 8, MF_CPU_FORM_F32);
}

/* Sixteen products in four lanes: two fit a 16-bit one, since inputs' codes are at least -127. */
INLINE int32x4_t dot_codes(int32x4_t acc, int8x16_t w, int8x16_t x)
{
    return vpadalq_s16(acc, vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x));
}

#include "kernels/cpu/codes_neon.h"

void mf_cpu_products_fill_neon(mf_cpu_kernels *k)
{
    static const mf_cpu_tile_fn products[MF_FORMAT_COUNT] = {
        [MF_FORMAT_F32] = f32_neon,
        [MF_FORMAT_BF16] = bf16_neon,
        [MF_FORMAT_F16] = f16_neon,
        [MF_FORMAT_FP8_BLOCK] = fp8_block_neon,
        [MF_FORMAT_FP8_CHANNEL] = fp8_channel_neon,
        [MF_FORMAT_INT8_CHANNEL] = int8_neon,
        [MF_FORMAT_INT4_GROUP] = int4_neon,
        [MF_FORMAT_MXFP4] = mxfp4_neon,
    };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        k->product[f][MF_CPU_INPUT_F32] = (mf_cpu_product){ products[f], MF_CPU_FORM_F32 };
        k->product[f][MF_CPU_INPUT_BF16] = k->product[f][MF_CPU_INPUT_F32];
    }
    fill_codes(k);
    k->tile_tokens = 96;
}
