/* codes_neon.h - int8 inputs times INT8_CHANNEL and INT4_GROUP codes on aarch64; the including file says how sixteen
 * products come together: int32x4_t dot_codes(int32x4_t acc, int8x16_t w, int8x16_t x).
 *
 * Integer sums are exact, so their order is free; what follows them are the plain C rung's steps, and so are the bits.
 */
#ifndef MF_KERNELS_CPU_CODES_NEON_H
#define MF_KERNELS_CPU_CODES_NEON_H

#include "kernels/cpu/neon.h"
#include "kernels/cpu/product_rare.h"

enum { CODE_ROWS = 4, CODE_TOKENS = 4 };

/* Four rows from tile row r on; past the tile's last row it is repeated. */
typedef struct code_rows {
    const uint8_t *codes[CODE_ROWS];
    int64_t scale[CODE_ROWS]; /* index of the row's first scale */
    int num_rows;
} code_rows;

INLINE code_rows code_rows_at(const mf_cpu_tile *tile, int64_t r)
{
    code_rows q = { .num_rows = tile->num_rows - r < CODE_ROWS ? (int)(tile->num_rows - r) : CODE_ROWS };
    for (int i = 0; i < CODE_ROWS; i++) {
        const int64_t row = tile->first_row + r + (i < q.num_rows ? i : q.num_rows - 1);
        q.codes[i] = mf_matrix_row(tile->w, row);
        q.scale[i] = mf_matrix_scale_row(tile->w, row);
    }
    return q;
}

/* The rows' sums of one token. */
INLINE int32x4_t sum_codes(const int32x4_t acc[CODE_ROWS])
{
    return vpaddq_s32(vpaddq_s32(acc[0], acc[1]), vpaddq_s32(acc[2], acc[3]));
}

INLINE void put_code_rows(const mf_cpu_tile *tile, const code_rows *q, int64_t r, int64_t t, float32x4_t v)
{
    float four[CODE_ROWS];
    vst1q_f32(four, v);
    for (int i = 0; i < q->num_rows; i++) {
        tile->out[t * tile->out_stride + r + i] = four[i];
    }
}

/* Codes at p, or a copy of the last n < 16 bytes with zeros behind them. */
INLINE uint8x16_t load_codes(const uint8_t *p, int64_t n)
{
    uint8_t padded[16] = { 0 };
    if (n >= 16) {
        return vld1q_u8(p);
    }
    memcpy(padded, p, (size_t)n);
    return vld1q_u8(padded);
}

INLINE void int8_step(int NT, const code_rows *q, const int8_t *const *x, int64_t k, int64_t n,
                      int32x4_t acc[CODE_TOKENS][CODE_ROWS])
{
    int8x16_t w[CODE_ROWS];
    UNROLL(4) for (int i = 0; i < CODE_ROWS; i++) {
        w[i] = vreinterpretq_s8_u8(load_codes(q->codes[i] + k, n));
    }
    UNROLL(4) for (int j = 0; j < NT; j++) {
        const int8x16_t xk = vld1q_s8(x[j] + k);
        UNROLL(4) for (int i = 0; i < CODE_ROWS; i++) {
            acc[j][i] = dot_codes(acc[j][i], w[i], xk);
        }
    }
}

INLINE void int8_rows(int NT, const mf_cpu_tile *tile, const code_rows *q, int64_t r, int64_t t)
{
    const int64_t size = tile->w->k;
    const int8_t *x[CODE_TOKENS];
    int32x4_t acc[CODE_TOKENS][CODE_ROWS];
    float scale[CODE_ROWS];
    UNROLL(4) for (int j = 0; j < NT; j++) {
        x[j] = tile->x[t + j];
        UNROLL(4) for (int i = 0; i < CODE_ROWS; i++) {
            acc[j][i] = vdupq_n_s32(0);
        }
    }
    int64_t k = 0;
    for (; k + 16 <= size; k += 16) {
        int8_step(NT, q, x, k, 16, acc);
    }
    if (k < size) {
        int8_step(NT, q, x, k, size - k, acc);
    }
    for (int i = 0; i < CODE_ROWS; i++) {
        scale[i] = mf_matrix_scale_at(tile->w, q->scale[i]);
    }
    UNROLL(4) for (int j = 0; j < NT; j++) {
        const float32x4_t sums = vcvtq_f32_s32(sum_codes(acc[j]));
        put_code_rows(tile, q, r, t + j, vmulq_f32(vmulq_n_f32(sums, tile->x_scale[t + j]), vld1q_f32(scale)));
    }
}

/* 32 columns from k on, n of them there: the even ones are the low nibbles and stand first in x. */
INLINE void int4_step(int NT, const code_rows *q, const int8_t *const *x, int64_t k, int64_t n,
                      int32x4_t acc[CODE_TOKENS][CODE_ROWS])
{
    int8x16_t even[CODE_TOKENS], odd[CODE_TOKENS];
    UNROLL(4) for (int j = 0; j < NT; j++) {
        even[j] = vld1q_s8(x[j] + k);
        odd[j] = vld1q_s8(x[j] + k + 16);
    }
    UNROLL(4) for (int i = 0; i < CODE_ROWS; i++) {
        const uint8x16_t pairs = load_codes(q->codes[i] + k / 2, (n + 1) / 2);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4));
        UNROLL(4) for (int j = 0; j < NT; j++) {
            acc[j][i] = dot_codes(dot_codes(acc[j][i], low, even[j]), high, odd[j]);
        }
    }
}

INLINE void int4_rows(int NT, const mf_cpu_tile *tile, const code_rows *q, int64_t r, int64_t t)
{
    const mf_matrix *w = tile->w;
    const int8_t *x[CODE_TOKENS];
    float32x4_t total[CODE_TOKENS];
    UNROLL(4) for (int j = 0; j < NT; j++) {
        x[j] = tile->x[t + j];
        total[j] = vdupq_n_f32(0.0f);
    }
    for (int64_t first = 0, g = 0; first < w->k; first += w->group_size, g++) {
        const int64_t end = w->k - first < w->group_size ? w->k : first + w->group_size;
        int32x4_t acc[CODE_TOKENS][CODE_ROWS];
        int32_t zero[CODE_ROWS];
        float scale[CODE_ROWS];
        UNROLL(4) for (int j = 0; j < NT; j++) {
            UNROLL(4) for (int i = 0; i < CODE_ROWS; i++) {
                acc[j][i] = vdupq_n_s32(0);
            }
        }
        int64_t k = first;
        for (; k + 32 <= end; k += 32) {
            int4_step(NT, q, x, k, 32, acc);
        }
        if (k < end) {
            int4_step(NT, q, x, k, end - k, acc);
        }
        for (int i = 0; i < CODE_ROWS; i++) {
            scale[i] = mf_matrix_scale_at(w, q->scale[i] + g);
            zero[i] = w->zero ? w->zero[q->scale[i] + g] : 8;
        }
        UNROLL(4) for (int j = 0; j < NT; j++) { /* dot of (code - zero) = dot of codes - zero * sum of x */
            const uint8_t *sums = (const uint8_t *)x[j] + mf_cpu_round_columns(w->k);
            int32_t sum = 0;
            for (int64_t block = first / 32; block * 32 < end; block++) {
                int32_t part;
                memcpy(&part, sums + 4 * block, sizeof part);
                sum += part;
            }
            const float32x4_t dot = vcvtq_f32_s32(vmlsq_n_s32(sum_codes(acc[j]), vld1q_s32(zero), sum));
            total[j] = vaddq_f32(total[j], vmulq_f32(vld1q_f32(scale), dot));
        }
    }
    UNROLL(4) for (int j = 0; j < NT; j++) {
        put_code_rows(tile, q, r, t + j, vmulq_n_f32(total[j], tile->x_scale[t + j]));
    }
}

INLINE void code_rows_times_tokens(mf_format format, int NT, const mf_cpu_tile *tile, const code_rows *q, int64_t r,
                                   int64_t t)
{
    if (format == MF_FORMAT_INT8_CHANNEL) {
        int8_rows(NT, tile, q, r, t);
    } else {
        int4_rows(NT, tile, q, r, t);
    }
}

INLINE void code_product(mf_format format, const mf_cpu_tile *tile)
{
    const int64_t n = tile->num_tokens;
    for (int64_t r = 0; r < tile->num_rows; r += CODE_ROWS) {
        const code_rows q = code_rows_at(tile, r);
        int64_t t = 0;
        for (; t + 4 <= n; t += 4) {
            code_rows_times_tokens(format, 4, tile, &q, r, t);
        }
        for (; t + 2 <= n; t += 2) {
            code_rows_times_tokens(format, 2, tile, &q, r, t);
        }
        if (t < n) {
            code_rows_times_tokens(format, 1, tile, &q, r, t);
        }
    }
}

static void int8_codes(const mf_cpu_tile *tile)
{
    code_product(MF_FORMAT_INT8_CHANNEL, tile);
}

static void int4_codes(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % 32 != 0 && tile->w->group_size < tile->w->k) { /* groups start inside vectors */
        mf_cpu_tile_rare(tile, MF_CPU_FORM_I8_SPLIT, 32);
        return;
    }
    code_product(MF_FORMAT_INT4_GROUP, tile);
}

static void fill_codes(mf_cpu_kernels *k)
{
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ int8_codes, MF_CPU_FORM_I8 };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] = (mf_cpu_product){ int4_codes, MF_CPU_FORM_I8_SPLIT };
}

#endif
