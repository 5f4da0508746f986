/* product_lanes.h - weights times inputs of many tokens with sixteen rows as the lanes of a vector: the loops; an ISA's
 * file includes it after its primitives.
 *
 * A step is one vector of weights, 32 bits of each of sixteen rows, and the 32 bits of an input that meet all of them,
 * broadcast.  Codes of sixteen rows are turned round and expanded into steps once for all tokens of a call, so that no
 * sum runs over lanes and the scales of sixteen rows take one fma.
 *
 * Order of sums for one (row, token), whatever else a call carries: a chain over the steps of a unit, ascending; unit
 * u's sum goes through lanes_flush() into total u % 4, u ascending; then (0 + 2) + (1 + 3).  Scales per row come last.
 *
 * The including file defines, before:
 *   STEP_COLUMNS            columns of a step
 *   STEP_STRIDE             bytes from one of four adjacent steps' input to the next
 *   lanes_kind              constants of a product, with .format
 *   word_steps(kind)        steps that 32 bits of codes become
 *   step_place(kind, word, step)     where a step of a line's word stands among the line's steps
 *   unit_columns(kind)      columns under one chain: a multiple of 32, a part of a group
 *   unit_offset(kind, u)    bytes from an input's start to unit u's first step
 *   four_stride(kind)       bytes from four steps to the next four, inside a unit
 *   group_of(kind, w)       columns of a scale, 0: none finer than a row
 *   arrange(kind, line)     64 bytes of a row, changed before rows are turned round
 *   expand(kind, v, offset, steps)   32 bits of codes of each row as steps; offset: what has_offset(kind) asks for
 *   has_offset(kind), load_offsets(w, at, n)         n <= 16 values, as 32 bits each, added to a row's codes
 *   load_scales_of(format, dtype, p, n, out)         n <= 16 stored scales
 *   acc_type, acc_zero()    an accumulator; totals are kept as 16 times 32 bits of any kind
 *   HAS_STARTS              whether chains start from other than 0: chain_starts(kind, x, w, first, end, out) for the
 * units of some columns, and vec_of(start) dot(acc, w, x), lanes_flush(kind, acc, scale, total), add_totals(kind, a, b)
 *   input_term(kind, x, k)  what finish() asks for of an input
 *   finish(kind, tile, r, t, rows, total, row_scales, term)   totals of 16 rows of token t become outputs */
#ifndef MF_KERNELS_CPU_PRODUCT_LANES_H
#define MF_KERNELS_CPU_PRODUCT_LANES_H

#include "kernels/cpu/avx512.h"

enum {
    LANES = 16,
    SIDES = 4, /* sixteens of rows that meet a token together */
    LANE_ROWS = LANES * SIDES,
    CHUNK_STEPS = 256, /* expanded at a time: 64 KiB of SIDES, read from the second-level cache */
    MOST_UNITS = CHUNK_STEPS / 8,
    LANE_TOKENS = 96, /* whose totals are kept */
    TOTALS = 4,       /* of each (row, token) */
    LANE_LINE = 64
};

/* Steps of some columns of LANE_ROWS rows, and the totals they add to. */
typedef struct lanes_block {
    _Alignas(64) __m512i step[SIDES][CHUNK_STEPS];
    _Alignas(64) float scale[MOST_UNITS][SIDES][LANES];
    _Alignas(64) int32_t offset[MOST_UNITS][LANES]; /* of one side */
    _Alignas(64) float total[LANE_TOKENS][TOTALS][LANE_ROWS];
#if HAS_STARTS
    int32_t start[LANE_TOKENS][MOST_UNITS];
#endif
    int32_t term[LANE_TOKENS];
} lanes_block;

/* Lines that memory is asked for while something else is computed: parts of rows that follow one another. */
typedef struct lanes_ahead {
    const uint8_t *p, *end; /* of the part at hand */
    int64_t part, stride;
    int64_t per_line; /* that is expanded meanwhile; then */
    int64_t per_turn; /* of four steps that are multiplied */
} lanes_ahead;

/* What one call of an inner kernel multiplies. */
typedef struct lanes_run {
    const __m512i *step;
    int64_t num_steps, unit_steps;
    const uint8_t *const *x;
    int64_t first_unit; /* counted from the row's start */
    lanes_kind kind;
    const int32_t *start; /* [tokens][MOST_UNITS] */
    const float *scale;   /* [units][SIDES][LANES] */
    float *total;         /* [tokens][TOTALS][LANE_ROWS] */
    lanes_ahead *ahead;
} lanes_run;

INLINE void ask(lanes_ahead *a, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        __builtin_prefetch(a->p, 0, 2);
        a->p += LANE_LINE;
        if (a->p >= a->end) {
            a->p = a->end - a->part + a->stride;
            a->end += a->stride;
        }
    }
}

/* Units one after another, each a chain of its own, times N tokens of V sixteens of rows. */
INLINE void multiply_lanes(int V, int N, const lanes_run *run)
{
    lanes_ahead ahead = *run->ahead;
    const __m512i *w = run->step;
    const float *scale = run->scale;
    const int64_t stride = four_stride(run->kind);
    int64_t unit = run->first_unit;
    const uint8_t *xs[8];
    UNROLL(8) for (int j = 0; j < N; j++)
    {
        xs[j] = run->x[j];
    }
    for (int64_t left = run->num_steps, u = 0; left > 0; left -= run->unit_steps, u++, unit++) {
        const int64_t count = left < run->unit_steps ? left : run->unit_steps;
        int64_t at = unit_offset(run->kind, unit); /* one for all inputs: their pointers stay where they are */
        acc_type acc[8][4];
        UNROLL(8) for (int j = 0; j < N; j++)
        {
#if HAS_STARTS
            const acc_type start = vec_of(run->start[j * MOST_UNITS + u]);
#else
            const acc_type start = acc_zero();
#endif
            UNROLL(4) for (int i = 0; i < V; i++)
            {
                acc[j][i] = start;
            }
        }
        for (int64_t s = 0; s < count; s += 4) {
            UNROLL(4) for (int q = 0; q < 4; q++)
            {
                __m512i v[4];
                UNROLL(4) for (int i = 0; i < V; i++)
                {
                    v[i] = _mm512_load_si512(&w[i * CHUNK_STEPS + q]);
                }
                UNROLL(8) for (int j = 0; j < N; j++)
                {
                    int32_t x;
                    memcpy(&x, xs[j] + at + STEP_STRIDE * q, 4);
                    UNROLL(4) for (int i = 0; i < V; i++)
                    {
                        acc[j][i] = dot(acc[j][i], v[i], _mm512_set1_epi32(x));
                    }
                }
            }
            ask(&ahead, ahead.per_turn);
            w += 4;
            at += stride;
            __asm__("" : "+r"(at));
        }
        float *total = run->total + (unit & (TOTALS - 1)) * LANE_ROWS;
        __asm__ volatile("" ::: "memory"); /* totals stay in memory: there are no registers left for them */
        UNROLL(4) for (int i = 0; i < V; i++)
        {
            const __m512 factor = _mm512_load_ps(scale + i * LANES);
            UNROLL(8) for (int j = 0; j < N; j++)
            {
                float *t = total + j * TOTALS * LANE_ROWS + i * LANES;
                _mm512_store_ps(t, lanes_flush(run->kind, acc[j][i], factor, _mm512_load_ps(t)));
            }
        }
        scale += LANE_ROWS;
    }
    *run->ahead = ahead;
}

typedef void (*lanes_fn)(const lanes_run *run);

#define LANES_KERNEL(V, N)                                                                                             \
    static void lanes_##V##_##N(const lanes_run *run)                                                                  \
    {                                                                                                                  \
        multiply_lanes(V, N, run);                                                                                     \
    }
LANES_KERNEL(4, 1)
LANES_KERNEL(4, 2)
LANES_KERNEL(4, 3)
LANES_KERNEL(4, 4)
LANES_KERNEL(4, 5)
LANES_KERNEL(4, 6)
LANES_KERNEL(2, 1)
LANES_KERNEL(2, 2)
LANES_KERNEL(2, 3)
LANES_KERNEL(2, 4)
LANES_KERNEL(2, 5)
LANES_KERNEL(2, 6)
LANES_KERNEL(2, 7)
LANES_KERNEL(2, 8)
LANES_KERNEL(1, 1)
LANES_KERNEL(1, 2)
LANES_KERNEL(1, 3)
LANES_KERNEL(1, 4)
LANES_KERNEL(1, 5)
LANES_KERNEL(1, 6)
LANES_KERNEL(1, 7)
LANES_KERNEL(1, 8)

static const lanes_fn lanes_of_4[] = { lanes_4_1, lanes_4_2, lanes_4_3, lanes_4_4, lanes_4_5, lanes_4_6 };
static const lanes_fn lanes_of_2[] = { lanes_2_1, lanes_2_2, lanes_2_3, lanes_2_4,
                                       lanes_2_5, lanes_2_6, lanes_2_7, lanes_2_8 };
static const lanes_fn lanes_of_1[] = { lanes_1_1, lanes_1_2, lanes_1_3, lanes_1_4,
                                       lanes_1_5, lanes_1_6, lanes_1_7, lanes_1_8 };

/* ---- codes into steps ---- */

INLINE int64_t bytes_of_columns(mf_format format, int64_t n)
{
    return (n * mf_format_bits(format) + 7) / 8;
}

/* Row r of the tile, or its last one. */
INLINE int64_t lane_row(const mf_cpu_tile *tile, int64_t r)
{
    return tile->first_row + (r < tile->num_rows ? r : tile->num_rows - 1);
}

/* 64 bytes of sixteen rows: 32 bits of each of them; where a byte is a column, in the order that unpacking of bytes
 * makes two steps of: of each four rows two bytes, then the next two. */
INLINE void turn(const lanes_kind kind, __m512i v[LANES])
{
    if (mf_format_bits(kind.format) != 8 || STEP_COLUMNS != 2) {
        turn16(v);
        return;
    }
    __m512i a[LANES], b[LANES];
    UNROLL(16) for (int i = 0; i < LANES; i += 2)
    {
        a[i] = _mm512_unpacklo_epi16(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi16(v[i], v[i + 1]);
    }
    UNROLL(16) for (int i = 0; i < LANES; i += 4)
    {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi32(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi32(a[i + 1], a[i + 3]);
    }
    turn_lanes16(b, v);
}

/* Of formats that have one scale per row. */
INLINE __m512 row_scales(const lanes_kind kind, const mf_cpu_tile *tile, int64_t r)
{
    float scale[LANES];
    if (kind.format != MF_FORMAT_INT8_CHANNEL) {
        return _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < LANES; i++) {
        scale[i] = mf_matrix_scale_at(tile->w, mf_matrix_scale_row(tile->w, lane_row(tile, r + i)));
    }
    return _mm512_loadu_ps(scale);
}

/* Values of the groups from number `from` on, `at` the first row's index of the first of them, for each unit of the
 * columns. */
INLINE void spread_to_units(const lanes_kind kind, bool is_offset, const mf_cpu_tile *tile, int64_t r, int64_t first,
                            int64_t end, float *to, int64_t stride)
{
    const mf_matrix *w = tile->w;
    const int64_t group = group_of(kind, w), from = first / group, count = (end - 1) / group - from + 1;
    const int64_t size = (int64_t)mf_dtype_size(w->scale_dtype);
    int64_t left = group - first % group; /* columns of the group at hand */
    int64_t j = 0, k = first;
    for (int64_t g = 0; g < count; g += LANES, j = 0) {
        const int64_t n = count - g < LANES ? count - g : LANES;
        __m512i v[LANES];
        _Alignas(64) __m512i turned[LANES];
        UNROLL(16) for (int i = 0; i < LANES; i++)
        {
            const int64_t at = mf_matrix_scale_row(w, lane_row(tile, r + i)) + from + g;
            if (is_offset) {
                v[i] = load_offsets(w, at, n);
            } else {
                float stored[LANES];
                load_scales_of(kind.format, w->scale_dtype, (const uint8_t *)w->scale + at * size, n, stored);
                v[i] = _mm512_loadu_si512(stored);
            }
        }
        turn16(v);
        UNROLL(16) for (int i = 0; i < LANES; i++)
        {
            turned[i] = v[i];
        }
        for (; k < end && j < n; k += unit_columns(kind), to += stride) {
            _mm512_store_si512(to, turned[j]);
            left -= unit_columns(kind);
            if (left <= 0) {
                left += group;
                j++;
            }
        }
    }
}

/* Scales, and offsets, of columns [first, end) of sixteen rows, one per unit. */
INLINE void lane_scales(const lanes_kind kind, const mf_cpu_tile *tile, int64_t r, int64_t first, int64_t end,
                        lanes_block *block, int side)
{
    if (group_of(kind, tile->w)) {
        spread_to_units(kind, false, tile, r, first, end, block->scale[0][side], SIDES * LANES);
    }
    if (has_offset(kind)) {
        spread_to_units(kind, true, tile, r, first, end, (float *)block->offset[0], LANES);
    }
}

/* Word j of a line becomes steps. */
INLINE void put_word(const lanes_kind kind, __m512i v, __m512i offset, int j, __m512i *line)
{
    __m512i step[4];
    expand(kind, v, offset, step);
    UNROLL(4) for (int i = 0; i < word_steps(kind); i++)
    {
        _mm512_store_si512(&line[step_place(kind, j, i)], step[i]);
    }
}

/* Columns [first, end) of sixteen rows from tile row r on. */
INLINE void lane_steps(const lanes_kind kind, const mf_cpu_tile *tile, int64_t r, int64_t first, int64_t end,
                       lanes_block *block, int side, lanes_ahead *ahead)
{
    const mf_matrix *w = tile->w;
    const int64_t line = LANE_LINE * 8 / (int64_t)mf_format_bits(kind.format);
    const int64_t unit = unit_columns(kind);
    const int64_t offset = bytes_of_columns(kind.format, first);
    const uint8_t *p[LANES];
    __m512i *to = block->step[side];
    UNROLL(16) for (int i = 0; i < LANES; i++)
    {
        p[i] = mf_matrix_row(w, lane_row(tile, r + i)) + offset;
    }
    for (int64_t k = 0; k < end - first; k += line, to += LANES * word_steps(kind)) {
        ask(ahead, ahead->per_line);
        const int64_t at = bytes_of_columns(kind.format, k);
        __m512i v[LANES];
        if (k + line <= end - first) {
            UNROLL(16) for (int i = 0; i < LANES; i++)
            {
                v[i] = _mm512_loadu_si512(p[i] + at);
            }
        } else {
            const __mmask64 mask = ~(__mmask64)0 >> (LANE_LINE - bytes_of_columns(kind.format, end - first - k));
            UNROLL(16) for (int i = 0; i < LANES; i++)
            {
                v[i] = _mm512_maskz_loadu_epi8(mask, p[i] + at);
            }
        }
        UNROLL(16) for (int i = 0; i < LANES; i++)
        {
            v[i] = arrange(kind, v[i]);
        }
        turn(kind, v);
        if (!has_offset(kind)) {
            UNROLL(16) for (int j = 0; j < LANES; j++)
            {
                put_word(kind, v[j], v[j], j, to);
            }
            continue;
        }
        for (int j = 0; j < LANES; j++) {
            const int64_t column = k + j * word_steps(kind) * STEP_COLUMNS;
            put_word(kind, v[j], _mm512_load_si512(block->offset[column / unit]), j, to);
        }
    }
}

/* ---- a tile ---- */

/* Columns of one chunk: as equal parts as whole units and lines allow. */
INLINE int64_t lane_chunk(const lanes_kind kind, const mf_matrix *w)
{
    const int64_t whole = unit_columns(kind) > 128 ? unit_columns(kind) : 128;
    const int64_t most = CHUNK_STEPS * STEP_COLUMNS;
    const int64_t num = (w->k + most - 1) / most;
    return ((w->k + num - 1) / num + whole - 1) / whole * whole;
}

/* What is expanded next, from column `first` on: of these rows or, where it is 0, of those that follow.  Its scales are
 * asked for at once, its codes by ask(), evenly over the time that this chunk takes. */
INLINE lanes_ahead ask_for_chunk(const lanes_kind kind, const mf_cpu_tile *tile, int64_t r, int64_t first,
                                 int64_t chunk, int64_t num_tokens)
{
    enum { EXPANSION = 7 }; /* tokens that take as long to multiply */
    const mf_matrix *w = tile->w;
    const int64_t num_rows = tile->num_rows - r < LANE_ROWS ? tile->num_rows - r : LANE_ROWS;
    int64_t row = tile->first_row + r;
    if (first == 0) {
        row += LANE_ROWS;
        if (r + LANE_ROWS >= tile->num_rows) {
            w = tile->next;
            row = tile->next_row;
        }
        if (!w) {
            return (lanes_ahead){ 0 };
        }
    }
    const int64_t columns = w->k - first < chunk ? w->k - first : chunk;
    const int64_t group = group_of(kind, w), size = (int64_t)mf_dtype_size(w->scale_dtype);
    for (int64_t i = 0; group && kind.format != MF_FORMAT_FP8_BLOCK && i < num_rows; i++) {
        const int64_t at = mf_matrix_scale_row(w, row + i) + first / group;
        __builtin_prefetch((const uint8_t *)w->scale + at * size, 0, 2);
        __builtin_prefetch((const uint8_t *)w->scale + (at + (columns - 1) / group) * size, 0, 2);
    }
    const int64_t stride = bytes_of_columns(kind.format, w->row_stride);
    const uint8_t *p = mf_matrix_row(w, row) + bytes_of_columns(kind.format, first);
    const int64_t bytes = bytes_of_columns(kind.format, columns);
    const bool is_aligned = stride % LANE_LINE == 0 && (uintptr_t)p % LANE_LINE == 0;
    const int64_t part = is_aligned ? bytes : bytes + LANE_LINE - 1; /* may begin within a line */
    const int64_t lines = num_rows * ((part + LANE_LINE - 1) / LANE_LINE);
    const int64_t expanded = (num_rows + LANES - 1) / LANES * ((bytes + LANE_LINE - 1) / LANE_LINE);
    const int64_t per_line = (lines * EXPANSION / (EXPANSION + num_tokens) + expanded - 1) / expanded;
    const int64_t turns = (num_tokens + 3) / 4 * (chunk / STEP_COLUMNS / 4);
    const int64_t left = lines - per_line * expanded > 0 ? lines - per_line * expanded : 0;
    return (lanes_ahead){ .p = p,
                          .end = p + part,
                          .part = part,
                          .stride = stride,
                          .per_line = per_line,
                          .per_turn = (left + turns - 1) / turns };
}

/* (0 + 2) + (1 + 3) of tokens from t0 on become outputs. */
INLINE void put_totals(const lanes_kind kind, const mf_cpu_tile *tile, int64_t r, int64_t num_rows, int64_t t0,
                       int64_t num_tokens, const lanes_block *block)
{
    for (int64_t i = 0; i < num_rows; i += LANES) {
        const __m512 factors = row_scales(kind, tile, r + i);
        for (int64_t t = 0; t < num_tokens; t++) {
            __m512 v[TOTALS];
            UNROLL(4) for (int q = 0; q < TOTALS; q++)
            {
                v[q] = _mm512_load_ps(&block->total[t][q][i]);
            }
            const __m512 total = add_totals(kind, add_totals(kind, v[0], v[2]), add_totals(kind, v[1], v[3]));
            finish(kind, tile, r + i, t0 + t, num_rows - i, total, factors, block->term[t]);
        }
    }
}

INLINE void lanes_many(const lanes_kind kind, const mf_cpu_tile *tile)
{
    lanes_block block;
    const mf_matrix *w = tile->w;
    const int64_t chunk = lane_chunk(kind, w);
    for (int64_t r = 0; r < tile->num_rows; r += LANE_ROWS) {
        const int64_t num_rows = tile->num_rows - r < LANE_ROWS ? tile->num_rows - r : LANE_ROWS;
        const int sides = num_rows > 2 * LANES ? 4 : num_rows > LANES ? 2 : 1;
        const int64_t at_once = sides == 4 ? 6 : 8, best = sides == 4 ? 4 : 8;
        const lanes_fn *fns = sides == 4 ? lanes_of_4 : sides == 2 ? lanes_of_2 : lanes_of_1;
        for (int64_t t0 = 0; t0 < tile->num_tokens; t0 += LANE_TOKENS) {
            const int64_t num_tokens = tile->num_tokens - t0 < LANE_TOKENS ? tile->num_tokens - t0 : LANE_TOKENS;
            const int64_t least_runs =
                (num_tokens + at_once - 1) / at_once; /* sums of 4 and 5 tokens stay in registers */
            const int64_t num_runs = num_tokens / best > least_runs ? num_tokens / best : least_runs;
            memset(block.total, 0, (size_t)num_tokens * sizeof block.total[0]);
            for (int64_t t = 0; t < num_tokens; t++) {
                block.term[t] = input_term(kind, tile->x[t0 + t], w->k);
            }
            for (int64_t first = 0, end; first < w->k; first = end) {
                end = w->k - first < chunk ? w->k : first + chunk;
                lanes_ahead ahead = ask_for_chunk(kind, tile, r, end == w->k ? 0 : end, chunk, num_tokens);
                for (int side = 0; side < sides; side++) {
                    lane_scales(kind, tile, r + side * LANES, first, end, &block, side);
                    lane_steps(kind, tile, r + side * LANES, first, end, &block, side, &ahead);
                }
#if HAS_STARTS
                for (int64_t t = 0; t < num_tokens; t++) {
                    chain_starts(kind, tile->x[t0 + t], w, first, end, block.start[t]);
                }
#endif
                const int64_t num_steps =
                    (end - first + 31) / 32 * (32 / STEP_COLUMNS); /* inputs are padded that far */
                for (int64_t run = 0; run < num_runs; run++) {     /* as equal as possible */
                    const int64_t t = num_tokens * run / num_runs;
                    const int64_t n = num_tokens * (run + 1) / num_runs - t;
                    const lanes_run call = {
                        .step = block.step[0],
                        .num_steps = num_steps,
                        .unit_steps = unit_columns(kind) / STEP_COLUMNS,
                        .x = (const uint8_t *const *)tile->x + t0 + t,
                        .first_unit = first / unit_columns(kind),
                        .kind = kind,
#if HAS_STARTS
                        .start = block.start[t],
#endif
                        .scale = block.scale[0][0],
                        .total = block.total[t][0],
                        .ahead = &ahead
                    };
                    fns[n - 1](&call);
                }
            }
            put_totals(kind, tile, r, num_rows, t0, num_tokens, &block);
        }
    }
}

#endif
