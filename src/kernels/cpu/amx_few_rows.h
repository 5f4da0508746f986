/* amx_few_rows.h - sixteen rows at a time, for the products of few tokens on the amx rung: their next 64 bytes turned
 * round, their scales as lanes of vectors, and what memory is asked for meanwhile. */
#ifndef MF_KERNELS_CPU_AMX_FEW_ROWS_H
#define MF_KERNELS_CPU_AMX_FEW_ROWS_H

#include "kernels/cpu/avx512.h"

enum {
    LANES = 16,
    SIDE = 16,       /* vectors of a block: 64 bytes of sixteen rows */
    STEP = 32,       /* columns of a tile */
    SPAN_STEPS = 64, /* whose scales are converted at a time */
    STREAMS = 4,     /* of addresses in which memory is asked for what comes next */
    AHEAD_ROWS = 16, /* so far ahead is that, or so many bytes where rows are short, but no further than 64 rows */
    AHEAD_BYTES = 8192,
    SHORT_ROWS = 512 /* bytes; what most products ask for in one stream */
};

/* ---- blocks ---- */

/* `bytes` <= 64 at p of each of sixteen rows, turned round; zeros behind them. */
INLINE void load_block(const uint8_t *p, int64_t stride, int64_t bytes, __m512i v[SIDE])
{
    if (bytes >= 64) {
        UNROLL(16) for (int r = 0; r < LANES; r++, p += stride)
        {
            v[r] = _mm512_loadu_si512(p);
        }
    } else {
        const __mmask64 mask = ((__mmask64)1 << bytes) - 1;
        UNROLL(16) for (int r = 0; r < LANES; r++, p += stride)
        {
            v[r] = _mm512_maskz_loadu_epi8(mask, p);
        }
    }
    turn16(v);
}

/* ---- what comes next ---- */

/* Where memory is asked for sixteen rows that come sixteen or more rows later: their codes in STREAMS streams of
 * addresses, whose pages end at different times, and their scales. */
typedef struct few_ahead {
    const uint8_t *codes, *scales;
    int64_t span, step, scale_bytes; /* from stream to stream; from line to line; of scales with each block */
} few_ahead;

/* Rows of up to short_rows bytes are one stream; `blocks` blocks of 64 bytes are all of a row.  Where nobody knows what
 * comes next, the rows at hand serve: they are there. */
INLINE few_ahead ahead_at(const mf_cpu_tile *tile, int64_t row, int64_t short_rows, int64_t blocks)
{
    const mf_matrix *w = tile->w;
    const int64_t stride = w->row_stride * (int64_t)mf_format_bits(w->format) / 8;
    int64_t rows = AHEAD_ROWS;
    while (rows * stride < AHEAD_BYTES && rows < 4 * AHEAD_ROWS) {
        rows *= 2;
    }
    int64_t next = row + rows;
    const int64_t past = next - tile->first_row - tile->num_rows;
    if (past >= 0) {
        const bool known = tile->next && tile->next->format == w->format;
        next = known ? tile->next_row + past : row;
        w = known ? tile->next : w;
    }
    few_ahead a = { .codes = (const uint8_t *)w->data + next * stride, .span = LANES / STREAMS * stride, .step = 64 };
    if (stride <= short_rows) {
        a.span = 64;
        a.step = STREAMS * 64;
    }
    if (mf_format_is_4bit(w->format)) {
        const int64_t row_bytes = w->scale_row_stride * (int64_t)mf_dtype_size(w->scale_dtype);
        a.scales = (const uint8_t *)w->scale + next * row_bytes;
        a.scale_bytes = (LANES * row_bytes + blocks - 1) / blocks;
    }
    return a;
}

/* So many lines of each stream, into the first-level cache or, far, into the second. */
INLINE void ask_codes(const bool is_far, few_ahead *a, int lines)
{
    UNROLL(4) for (int i = 0; i < lines; i++)
    {
        UNROLL(4) for (int s = 0; s < STREAMS; s++)
        {
            if (is_far) {
                __builtin_prefetch(a->codes + s * a->span + i * a->step, 0, 2);
            } else {
                __builtin_prefetch(a->codes + s * a->span + i * a->step, 0, 3);
            }
        }
    }
    a->codes += lines * a->step;
}

INLINE void ask_scales(few_ahead *a)
{
    for (int64_t i = 0; i < a->scale_bytes; i += 64) {
        __builtin_prefetch(a->scales + i, 0, 3);
    }
    a->scales += a->scale_bytes;
}

/* ---- scales ---- */

/* `count` <= SPAN_STEPS scales from number `first` on of each of sixteen rows. */
INLINE void load_scales(const mf_matrix *w, const mf_dtype dtype, int64_t row, int64_t first, int64_t count,
                        float (*scale)[LANES])
{
    const int size = dtype == MF_F32 ? 4 : 2;
    const int per_block = 64 / size;
    const uint8_t *p = (const uint8_t *)w->scale + (row * w->scale_row_stride + first) * size;
    for (int64_t g = 0; g < count; g += per_block, p += 64) {
        __m512i v[SIDE];
        load_block(p, w->scale_row_stride * size, (count - g) * size, v);
        const int64_t left = count - g < per_block ? count - g : per_block;
        UNROLL(16) for (int j = 0; j < SIDE; j++)
        {
            if (j * (4 / size) >= left) {
                break;
            }
            float(*out)[LANES] = scale + g + j * (4 / size);
            switch (dtype) {
            case MF_BF16:
                _mm512_store_si512(out[0], _mm512_slli_epi32(v[j], 16));
                _mm512_store_si512(out[1], _mm512_and_si512(v[j], _mm512_set1_epi32((int)0xffff0000u)));
                break;
            case MF_F16:
                _mm512_store_ps(out[0], _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v[j])));
                _mm512_store_ps(out[1], _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v[j], 16))));
                break;
            default:
                _mm512_store_si512(out[0], v[j]);
                break;
            }
        }
    }
}

#endif
