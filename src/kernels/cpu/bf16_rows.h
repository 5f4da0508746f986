/* bf16_rows.h - bf16 weights times bf16 inputs of few tokens with VDPBF16PS, called by products_avx512_bf16.c.
 *
 * lines(): one row after another, which is one stream of addresses, what memory likes best; the tokens' inputs stay in
 * the first-level cache.  pieces(): where they do not fit, a piece of the columns at a time of 64 rows, two rows side
 * by side; the inputs' piece is copied to lie together, since rows whose distance is a multiple of 4 KiB push each
 * other out.
 *
 * Order of sums for one (row, token): product_loops.h's.  Between pieces a sum waits in memory. */
#ifndef MF_KERNELS_CPU_BF16_ROWS_H
#define MF_KERNELS_CPU_BF16_ROWS_H

#include "kernels/cpu/products_avx512.h"
#include "kernels/cpu/rows_ahead.h"

enum {
    BF16_COLUMNS = 32, /* of a vector */
    BF16_LINE = 64,
    BF16_INPUT_BYTES = 24 << 10, /* that stay in the first-level cache: all inputs, or a piece of them */
    LINE_TOKENS = 6,
    LINE_AHEAD = 4096, /* bytes between what is read and what memory is asked for */
    PIECE_ROWS = 64,
    PIECE_SIDES = 2, /* rows side by side */
    PIECE_TOKENS = 24,
    PIECE_AT_ONCE = 12, /* tokens whose sums stay in registers */
    PIECE_TURN = 4,     /* vectors between two asks */
    PIECE_AHEAD = 4096
};

/* Bytes between the tile's rows. */
INLINE int64_t bf16_row_bytes(const mf_cpu_tile *tile)
{
    return tile->w->row_stride * 2;
}

/* Where the row stands that is `ahead` rows behind row r; that row where nobody knows. */
INLINE const uint8_t *bf16_row_ahead(const mf_cpu_tile *tile, int64_t r, int64_t ahead)
{
    mf_cpu_rows_ahead next = mf_cpu_rows_ahead_of(tile, r, ahead);
    if (!next.w) {
        next = (mf_cpu_rows_ahead){ tile->w, tile->first_row + r };
    }
    return mf_matrix_row(next.w, next.row);
}

/* Sums of four rows from r on become outputs of token t. */
INLINE void bf16_put(const mf_cpu_tile *tile, int64_t r, int64_t t, vec a, vec b, vec c, vec d)
{
    float four[ROWS], *out = tile->out + t * tile->out_stride + r;
    const int64_t left = tile->num_rows - r;
    sum_four(a, b, c, d, four);
    memcpy(out, four, (size_t)(left < ROWS ? left : ROWS) * sizeof *four);
}

/* ---- one row after another ---- */

/* Columns from k on, `left` of them, times NT tokens. */
INLINE void line_step(int NT, const uint8_t *row, const uint8_t *const *x, int64_t k, int64_t left,
                      vec acc[LINE_TOKENS])
{
    const __m512i w = load_words(row + 2 * k, left);
    UNROLL(6) for (int j = 0; j < NT; j++)
    {
        acc[j] = _mm512_dpbf16_ps(acc[j], (__m512bh)w, (__m512bh)vec_load(x[j] + 2 * k));
    }
}

INLINE void lines(int NT, const mf_cpu_tile *tile)
{
    const int64_t size = tile->w->k, whole = size / BF16_COLUMNS * BF16_COLUMNS;
    const int64_t later = LINE_AHEAD / (bf16_row_bytes(tile) + 1) + 1;
    const uint8_t *x[LINE_TOKENS];
    UNROLL(6) for (int j = 0; j < NT; j++)
    {
        x[j] = tile->x[j];
    }
    for (int64_t r = 0; r < tile->num_rows; r += ROWS) {
        vec acc[ROWS][LINE_TOKENS];
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            const int64_t at = r + i < tile->num_rows ? r + i : r; /* past the last row: a row again */
            const uint8_t *row = mf_matrix_row(tile->w, tile->first_row + at);
            const uint8_t *ask = bf16_row_ahead(tile, at, later);
            UNROLL(6) for (int j = 0; j < NT; j++)
            {
                acc[i][j] = vec_zero();
            }
            for (int64_t k = 0; k < whole; k += BF16_COLUMNS) {
                __builtin_prefetch(ask + 2 * k, 0, 3);
                line_step(NT, row, x, k, BF16_COLUMNS, acc[i]);
            }
            if (whole < size) {
                line_step(NT, row, x, whole, size - whole, acc[i]);
            }
        }
        UNROLL(6) for (int j = 0; j < NT; j++)
        {
            bf16_put(tile, r, j, acc[0][j], acc[1][j], acc[2][j], acc[3][j]);
        }
    }
}

/* ---- pieces of two rows ---- */

/* R rows from w on, `steps` vectors of each, `left` columns in the last, times NT tokens. */
typedef struct piece_run {
    const uint8_t *w, *ask; /* rows, and those that memory is asked for, `asks` of them */
    int64_t row_bytes, asks;
    int64_t steps, left;
    const uint8_t *x; /* [steps][NT] vectors */
    vec *sums;        /* [R][PIECE_TOKENS] */
    bool is_first;
} piece_run;

INLINE void piece_step(int R, int NT, const uint8_t *const *w, const uint8_t *x, int64_t at, int64_t left,
                       vec acc[PIECE_SIDES][PIECE_AT_ONCE])
{
    __m512i v[PIECE_SIDES];
    UNROLL(2) for (int i = 0; i < R; i++)
    {
        v[i] = load_words(w[i] + at, left);
    }
    UNROLL(12) for (int j = 0; j < NT; j++)
    {
        const __m512bh pairs = (__m512bh)vec_load(x + j * BF16_LINE);
        UNROLL(2) for (int i = 0; i < R; i++)
        {
            acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh)v[i], pairs);
        }
    }
}

INLINE void multiply_piece(int R, int NT, const piece_run *run)
{
    const uint8_t *w[PIECE_SIDES], *x = run->x;
    vec acc[PIECE_SIDES][PIECE_AT_ONCE];
    UNROLL(2) for (int i = 0; i < R; i++)
    {
        w[i] = run->w + i * run->row_bytes;
        UNROLL(12) for (int j = 0; j < NT; j++)
        {
            acc[i][j] = run->is_first ? vec_zero() : run->sums[i * PIECE_TOKENS + j];
        }
    }
    const int64_t whole = run->left == BF16_COLUMNS ? run->steps : run->steps - 1;
    int64_t s = 0;
    for (; s + PIECE_TURN <= whole; s += PIECE_TURN) {
        const uint8_t *ask = run->ask + s * BF16_LINE;
        for (int64_t i = 0; i < run->asks; i++, ask += run->row_bytes) {
            UNROLL(4) for (int u = 0; u < PIECE_TURN; u++)
            {
                __builtin_prefetch(ask + u * BF16_LINE, 0, 3);
            }
        }
        UNROLL(4) for (int u = 0; u < PIECE_TURN; u++)
        {
            piece_step(R, NT, w, x, (s + u) * BF16_LINE, BF16_COLUMNS, acc);
            x += NT * BF16_LINE;
        }
    }
    for (; s < run->steps; s++) {
        piece_step(R, NT, w, x, s * BF16_LINE, s < whole ? BF16_COLUMNS : run->left, acc);
        x += NT * BF16_LINE;
    }
    UNROLL(12) for (int j = 0; j < NT; j++)
    {
        UNROLL(2) for (int i = 0; i < R; i++)
        {
            run->sums[i * PIECE_TOKENS + j] = acc[i][j];
        }
    }
}

typedef void (*piece_fn)(const piece_run *run);

#define PIECE(NT)                                                                                                      \
    static void pieces_1_##NT(const piece_run *run)                                                                    \
    {                                                                                                                  \
        multiply_piece(1, NT, run);                                                                                    \
    }                                                                                                                  \
    static void pieces_2_##NT(const piece_run *run)                                                                    \
    {                                                                                                                  \
        multiply_piece(2, NT, run);                                                                                    \
    }
PIECE(1)
PIECE(2)
PIECE(3)
PIECE(4)
PIECE(5)
PIECE(6)
PIECE(7)
PIECE(8)
PIECE(9)
PIECE(10)
PIECE(11)
PIECE(12)
static const piece_fn pieces_of_1[] = { pieces_1_1, pieces_1_2, pieces_1_3, pieces_1_4,  pieces_1_5,  pieces_1_6,
                                        pieces_1_7, pieces_1_8, pieces_1_9, pieces_1_10, pieces_1_11, pieces_1_12 };
static const piece_fn pieces_of_2[] = { pieces_2_1, pieces_2_2, pieces_2_3, pieces_2_4,  pieces_2_5,  pieces_2_6,
                                        pieces_2_7, pieces_2_8, pieces_2_9, pieces_2_10, pieces_2_11, pieces_2_12 };

/* Columns of a piece: as equal as whole turns allow. */
static int64_t piece_columns(int64_t k, int64_t num_tokens)
{
    enum { TURN = BF16_COLUMNS * PIECE_TURN };
    const int64_t most = BF16_INPUT_BYTES / 2 / num_tokens / TURN * TURN, num = (k + most - 1) / most;
    return ((k + num - 1) / num + TURN - 1) / TURN * TURN;
}

/* Some of the tokens, whose sums stay in registers. */
typedef struct piece_pass {
    int64_t token, num_tokens;
    int64_t from, asks; /* its share of the rows that memory is asked for */
} piece_pass;

/* Rows [first, first + num_rows) of the tile, at most PIECE_ROWS, times all tokens, at most PIECE_TOKENS. */
static void piece_rows(const mf_cpu_tile *tile, int64_t first, int64_t num_rows)
{
    enum { MOST_PASSES = PIECE_TOKENS / PIECE_AT_ONCE };
    _Alignas(64) vec sums[PIECE_ROWS][PIECE_TOKENS];
    _Alignas(64) uint8_t copy[BF16_INPUT_BYTES];
    piece_pass passes[MOST_PASSES];
    const int64_t size = tile->w->k, num_tokens = tile->num_tokens, row_bytes = bf16_row_bytes(tile);
    const int64_t columns = piece_columns(size, num_tokens);
    const int64_t later = (PIECE_AHEAD / (2 * columns) + PIECE_SIDES) / PIECE_SIDES * PIECE_SIDES;
    const int64_t num_passes = (num_tokens + PIECE_AT_ONCE - 1) / PIECE_AT_ONCE;
    const uint8_t *start = mf_matrix_row(tile->w, tile->first_row + first);
    for (int64_t p = 0; p < num_passes; p++) { /* as equal as possible */
        const int64_t t = num_tokens * p / num_passes, from = PIECE_SIDES * p / num_passes;
        passes[p] = (piece_pass){ .token = t,
                                  .num_tokens = num_tokens * (p + 1) / num_passes - t,
                                  .from = from,
                                  .asks = PIECE_SIDES * (p + 1) / num_passes - from };
    }
    for (int64_t k = 0; k < size; k += columns) {
        const int64_t end = size - k < columns ? size : k + columns;
        const int64_t steps = (end - k + BF16_COLUMNS - 1) / BF16_COLUMNS;
        piece_run run = {
            .row_bytes = row_bytes, .steps = steps, .left = end - k - (steps - 1) * BF16_COLUMNS, .is_first = k == 0
        };
        for (int64_t p = 0; p < num_passes; p++) {
            const piece_pass *pass = &passes[p];
            uint8_t *to = copy + pass->token * steps * BF16_LINE;
            for (int64_t j = 0; j < pass->num_tokens; j++) {
                const uint8_t *x = (const uint8_t *)tile->x[pass->token + j] + 2 * k;
                for (int64_t s = 0; s < steps; s++) {
                    _mm512_store_si512(to + (s * pass->num_tokens + j) * BF16_LINE,
                                       _mm512_load_si512(x + s * BF16_LINE));
                }
            }
        }
        for (int64_t r = 0; r < num_rows; r += PIECE_SIDES) {
            const int64_t past = r + later - num_rows;
            const piece_fn *fns = num_rows - r < PIECE_SIDES ? pieces_of_1 : pieces_of_2;
            run.w = start + r * row_bytes + 2 * k;
            const uint8_t *ask = past < 0     ? run.w + later * row_bytes
                                 : end < size ? start + past * row_bytes + 2 * end
                                              : bf16_row_ahead(tile, first, num_rows + past);
            for (int64_t p = 0; p < num_passes; p++) {
                const piece_pass *pass = &passes[p];
                run.x = copy + pass->token * steps * BF16_LINE;
                run.sums = &sums[r][pass->token];
                run.ask = ask + pass->from * row_bytes;
                run.asks = pass->asks;
                fns[pass->num_tokens - 1](&run);
            }
        }
    }
    for (int64_t r = 0; r < num_rows; r += ROWS) {
        const int64_t last = num_rows - 1;
        const vec *row[ROWS];
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            row[i] = sums[r + i < last ? r + i : last];
        }
        for (int64_t t = 0; t < num_tokens; t++) {
            bf16_put(tile, first + r, t, row[0][t], row[1][t], row[2][t], row[3][t]);
        }
    }
}

/* ---- a tile ---- */

/* False: more tokens, or shorter rows, than these loops are good for. */
static bool bf16_rows(const mf_cpu_tile *tile)
{
    enum { LEAST_COLUMNS = 2048 }; /* of pieces: below, going over a few rows again and again costs less than copies */
    if (tile->num_tokens <= LINE_TOKENS && tile->num_tokens * tile->w->k * 2 <= BF16_INPUT_BYTES) {
        switch (tile->num_tokens) {
        case 1:
            lines(1, tile);
            return true;
        case 2:
            lines(2, tile);
            return true;
        case 3:
            lines(3, tile);
            return true;
        case 4:
            lines(4, tile);
            return true;
        case 5:
            lines(5, tile);
            return true;
        default:
            lines(6, tile);
            return true;
        }
    }
    if (tile->num_tokens > PIECE_TOKENS || tile->w->k < LEAST_COLUMNS) {
        return false;
    }
    for (int64_t r = 0; r < tile->num_rows; r += PIECE_ROWS) {
        piece_rows(tile, r, tile->num_rows - r < PIECE_ROWS ? tile->num_rows - r : PIECE_ROWS);
    }
    return true;
}

#endif
