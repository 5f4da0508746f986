/* codes_loops.h - int8 inputs times INT8_CHANNEL codes (w8a8) and INT4_GROUP codes (w4a8), the loops written once for x86.
 *
 * Sums inside a vector's lane of four products are integers and exact.  INT8: so is the whole row's.  INT4: a lane's sum of
 * (code - zero) * x times the group's scale is added to that lane's f32, columns ascending, and the lanes in a tree at the
 * end: one order for any number of tokens and rows.
 *
 * The including file defines, before:
 *   ivec, fvec, CODES               vectors of i32 and f32; bytes of one
 *   INT8_TOKENS, INT4_TOKENS        most tokens beside ROWS rows whose sums stay in registers
 *   int_zero(), float_zero(), load_x(p)
 *   weights, load_int8(p, n), dot_int8(acc, w, x)   n <= CODES codes; whatever stands behind them is not read and meets 0
 *   load_int4(p, n)                 n <= CODES codes as bytes 0..15; of each 32 the even columns first
 *   dot_int4(acc, codes, x), lane_sums(x)           i32 sums of 4 products; of 4 inputs
 *   times_minus_8(sums), times_minus(sums, zeros)
 *   scale_add(scale, sums, acc)     f32
 *   each_32(p), each_32_int(p)      CODES / 32 values from p, each for its 32 columns
 *   sum_four_int(a, b, c, d, out), sum_four_float(a, b, c, d, out)
 *   INT8_BIAS                       what load_int8 adds to each code
 *   load_scales(dtype, p, n, out)   n scales of a stored dtype as f32 */
#ifndef MF_KERNELS_CPU_CODES_LOOPS_H
#define MF_KERNELS_CPU_CODES_LOOPS_H

#include "kernels/cpu/product_rare.h"
#include "kernels/cpu/unroll.h"

enum {
    ROWS = 4,
    SPAN = 2048,       /* columns whose scales are converted at a time */
    BLOCKS = SPAN / 32,
    AHEAD = 6144,      /* bytes that the memory is asked for in advance: see product_loops.h */
    ROWS_AHEAD = 12,   /* the same for rows' scales: without it int4 streams at less than half the speed */
    LINE = 64
};

/* Four rows from tile row r on; past the tile's last row it is repeated. */
typedef struct code_rows {
    const uint8_t *codes[ROWS];
    int64_t scale[ROWS]; /* index of the row's first scale */
    int64_t bytes;       /* of one row */
    int64_t next_rows;   /* from a row's end to the row that takes its place */
    int num_rows;
} code_rows;

INLINE code_rows code_rows_at(const mf_cpu_tile *tile, int64_t r)
{
    const mf_matrix *w = tile->w;
    const int64_t bits = mf_format_bits(w->format);
    code_rows q = { .bytes = (w->k * bits + 7) / 8,
                    .num_rows = tile->num_rows - r < ROWS ? (int)(tile->num_rows - r) : ROWS };
    q.next_rows = ROWS * (w->row_stride * bits / 8) - q.bytes;
    for (int i = 0; i < ROWS; i++) {
        const int64_t row = tile->first_row + r + (i < q.num_rows ? i : q.num_rows - 1);
        q.codes[i] = mf_matrix_row(w, row);
        q.scale[i] = mf_matrix_scale_row(w, row);
    }
    return q;
}

/* A line in each row, before byte `at` is read for the first time. */
INLINE void ask_ahead(const code_rows *q, int64_t at)
{
    const int64_t ahead = at + AHEAD;
    const int64_t offset = ahead + (ahead < q->bytes ? 0 : q->next_rows);
    UNROLL(4) for (int i = 0; i < ROWS; i++) {
        __builtin_prefetch(q->codes[i] + offset, 0, 3);
    }
}

/* Sum of a token's codes, from the sums of 32 behind them. */
INLINE int32_t sum_of_input(const int8_t *x, int64_t k)
{
    const int64_t columns = mf_cpu_round_columns(k);
    int32_t total = 0;
    for (int64_t g = 0; g < columns / 32; g++) {
        int32_t sum;
        memcpy(&sum, x + columns + 4 * g, 4);
        total += sum;
    }
    return total;
}

/* ---- INT8_CHANNEL ---- */

INLINE void int8_step(int NT, const code_rows *q, const int8_t *const *x, int64_t k, int64_t n, ivec acc[ROWS][INT8_TOKENS])
{
    weights w[ROWS];
    UNROLL(4) for (int i = 0; i < ROWS; i++) {
        w[i] = load_int8(q->codes[i] + k, n);
    }
    UNROLL(8) for (int j = 0; j < NT; j++) {
        const ivec xk = load_x(x[j] + k);
        UNROLL(4) for (int i = 0; i < ROWS; i++) {
            acc[i][j] = dot_int8(acc[i][j], w[i], xk);
        }
    }
}

INLINE void int8_rows(int NT, const mf_cpu_tile *tile, const code_rows *q, int64_t r, int64_t t, const int32_t *x_sums)
{
    const int64_t size = tile->w->k;
    const int8_t *x[INT8_TOKENS];
    ivec acc[ROWS][INT8_TOKENS];
    UNROLL(8) for (int j = 0; j < NT; j++) {
        x[j] = tile->x[t + j];
        UNROLL(4) for (int i = 0; i < ROWS; i++) {
            acc[i][j] = int_zero();
        }
    }
    if (t == 0) { /* one line holds the scales of 16 rows */
        __builtin_prefetch((const uint8_t *)tile->w->scale + (q->scale[0] + 4 * ROWS_AHEAD) * 4, 0, 3);
    }
    int64_t k = 0;
    for (; k + CODES <= size; k += CODES) {
        if (t == 0 && k % LINE == 0) {
            ask_ahead(q, k);
        }
        int8_step(NT, q, x, k, CODES, acc);
    }
    if (k < size) {
        int8_step(NT, q, x, k, size - k, acc);
    }
    UNROLL(8) for (int j = 0; j < NT; j++) {
        int32_t sums[ROWS];
        sum_four_int(acc[0][j], acc[1][j], acc[2][j], acc[3][j], sums);
        for (int i = 0; i < q->num_rows; i++) {
            /* the bias wraps around and back: integers modulo 2^32 */
            const int32_t sum = (int32_t)((uint32_t)sums[i] - (uint32_t)INT8_BIAS * (uint32_t)x_sums[t + j]);
            tile->out[(t + j) * tile->out_stride + r + i] =
                (float)sum * tile->x_scale[t + j] * mf_matrix_scale_at(tile->w, q->scale[i]);
        }
    }
}

static void int8_codes(const mf_cpu_tile *tile)
{
    int32_t x_sums[MF_CPU_MOST_TILE_TOKENS];
    for (int64_t t = 0; t < tile->num_tokens; t++) {
        x_sums[t] = INT8_BIAS ? sum_of_input(tile->x[t], tile->w->k) : 0;
    }
    for (int64_t r = 0; r < tile->num_rows; r += ROWS) {
        const code_rows q = code_rows_at(tile, r);
        int64_t t = 0;
        for (; t + INT8_TOKENS <= tile->num_tokens; t += INT8_TOKENS) {
            int8_rows(INT8_TOKENS, tile, &q, r, t, x_sums);
        }
        for (; t + 2 <= tile->num_tokens; t += 2) {
            int8_rows(2, tile, &q, r, t, x_sums);
        }
        if (t < tile->num_tokens) {
            int8_rows(1, tile, &q, r, t, x_sums);
        }
    }
}

/* ---- INT4_GROUP ---- */

/* Scales and zero points of one span, one per 32 columns; 0 past the row's end. */
typedef struct span_scales {
    float scale[ROWS][BLOCKS + 2];
    int32_t zero[ROWS][BLOCKS + 2];
} span_scales;

INLINE void scales_of(bool has_zero, bool is_first, const mf_matrix *w, const code_rows *q, int64_t first, span_scales *s)
{
    const int64_t left = w->k - first < SPAN ? w->k - first : SPAN;
    const int64_t blocks = (left + 31) / 32;
    const int64_t per_group = w->group_size / 32;
    const int64_t g0 = first / w->group_size, g1 = (first + left - 1) / w->group_size;
    const int64_t size = (int64_t)mf_dtype_size(w->scale_dtype);
    for (int i = 0; i < ROWS; i++) {
        float *out = s->scale[i];
        const uint8_t *scales = (const uint8_t *)w->scale + (q->scale[i] + g0) * size;
        for (int64_t line = 0; is_first && line < (g1 - g0 + 1) * size; line += LINE) {
            __builtin_prefetch(scales + ROWS_AHEAD * w->scale_row_stride * size + line, 0, 3);
        }
        load_scales(w->scale_dtype, scales, g1 - g0 + 1, out);
        for (int64_t b = blocks - 1; per_group > 1 && b > 0; b--) { /* from the back: sources are read before written over */
            out[b] = out[(first / 32 + b) / per_group - g0];
        }
        out[blocks] = out[blocks + 1] = 0.0f;
        for (int64_t b = 0; has_zero && b < blocks + 2; b++) {
            s->zero[i][b] = b < blocks ? w->zero[q->scale[i] + (first / 32 + b) / per_group] : 0;
        }
    }
}

INLINE void int4_step(bool has_zero, int NT, const code_rows *q, const int8_t *const *x, int64_t k, int64_t n, int64_t b,
                      const span_scales *s, fvec acc[ROWS][INT4_TOKENS])
{
    ivec xk[INT4_TOKENS], start[INT4_TOKENS];
    UNROLL(8) for (int j = 0; j < NT; j++) {
        xk[j] = load_x(x[j] + k);
        start[j] = lane_sums(xk[j]);
        start[j] = has_zero ? start[j] : times_minus_8(start[j]);
    }
    UNROLL(4) for (int i = 0; i < ROWS; i++) {
        const ivec codes = load_int4(q->codes[i] + k / 2, n);
        const fvec scale = each_32(&s->scale[i][b]);
        UNROLL(8) for (int j = 0; j < NT; j++) {
            const ivec first = has_zero ? times_minus(start[j], each_32_int(&s->zero[i][b])) : start[j];
            acc[i][j] = scale_add(scale, dot_int4(first, codes, xk[j]), acc[i][j]);
        }
    }
}

INLINE void int4_rows(bool has_zero, int NT, const mf_cpu_tile *tile, const code_rows *q, int64_t r, int64_t t)
{
    const int64_t size = tile->w->k;
    const int8_t *x[INT4_TOKENS];
    fvec acc[ROWS][INT4_TOKENS];
    UNROLL(8) for (int j = 0; j < NT; j++) {
        x[j] = tile->x[t + j];
        UNROLL(4) for (int i = 0; i < ROWS; i++) {
            acc[i][j] = float_zero();
        }
    }
    for (int64_t first = 0; first < size; first += SPAN) {
        const int64_t end = size - first < SPAN ? size : first + SPAN;
        span_scales s;
        scales_of(has_zero, t == 0, tile->w, q, first, &s);
        int64_t k = first;
        for (; k + CODES <= end; k += CODES) {
            if (t == 0 && k % (2 * LINE) == 0) {
                ask_ahead(q, k / 2);
            }
            int4_step(has_zero, NT, q, x, k, CODES, (k - first) / 32, &s, acc);
        }
        if (k < end) {
            int4_step(has_zero, NT, q, x, k, end - k, (k - first) / 32, &s, acc);
        }
    }
    UNROLL(8) for (int j = 0; j < NT; j++) {
        float sums[ROWS];
        sum_four_float(acc[0][j], acc[1][j], acc[2][j], acc[3][j], sums);
        for (int i = 0; i < q->num_rows; i++) {
            tile->out[(t + j) * tile->out_stride + r + i] = sums[i] * tile->x_scale[t + j];
        }
    }
}

INLINE void int4_tile(bool has_zero, const mf_cpu_tile *tile)
{
    for (int64_t r = 0; r < tile->num_rows; r += ROWS) {
        const code_rows q = code_rows_at(tile, r);
        int64_t t = 0;
        for (; t + INT4_TOKENS <= tile->num_tokens; t += INT4_TOKENS) {
            int4_rows(has_zero, INT4_TOKENS, tile, &q, r, t);
        }
        for (; t < tile->num_tokens; t++) {
            int4_rows(has_zero, 1, tile, &q, r, t);
        }
    }
}

static void int4_codes(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % 32 != 0) {
        mf_cpu_tile_rare(tile, MF_CPU_FORM_I8_SPLIT, 32);
    } else if (tile->w->zero) {
        int4_tile(true, tile);
    } else {
        int4_tile(false, tile);
    }
}

#endif
