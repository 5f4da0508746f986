/* codes_loops.h - int8 inputs times INT8_CHANNEL codes (w8a8), the loops written once for x86.  A row's sum is an integer
 * and exact.
 *
 * The including file defines, before:
 *   ivec, CODES                     vectors of i32; bytes of one
 *   INT8_TOKENS                     most tokens beside ROWS rows whose sums stay in registers
 *   int_zero(), load_x(p)
 *   weights, load_int8(p, n), dot_int8(acc, w, x)   n <= CODES codes; whatever stands behind them is not read and meets 0
 *   sum_four_int(a, b, c, d, out)
 *   INT8_BIAS                       what load_int8 adds to each code */
#ifndef MF_KERNELS_CPU_CODES_LOOPS_H
#define MF_KERNELS_CPU_CODES_LOOPS_H

#include "kernels/cpu/product_rare.h"
#include "kernels/cpu/unroll.h"

enum {
    ROWS = 4,
    AHEAD = 6144,      /* bytes that the memory is asked for in advance: see product_loops.h */
    ROWS_AHEAD = 12,   /* the same for rows' scales */
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

#endif
