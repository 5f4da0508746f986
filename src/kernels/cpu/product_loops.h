/* product_loops.h - weights times inputs, the loops written once; each ISA's file includes it after its primitives.
 *
 * Order of sums for one (row, token), whatever else a call carries: lane l of one accumulator takes the columns that
 * meet lane l, k ascending; the lanes are added in a tree, lane l and l + half first; a scale per row comes last. Finer
 * scales are in the values, or, where the values are codes (is_flushed), a group's sum times its scale is added to a
 * second accumulator, groups ascending.
 *
 * Two ways through the weights give these sums.  stream(): few tokens, codes go from memory through registers into the
 * products, once.  gemm(): many tokens, codes of a few rows become values in a buffer that stays in the first-level
 * cache.
 *
 * The including file defines, before:
 *   vec, COLUMN_BYTES       an accumulator or a vector of values or inputs; bytes of one input
 *   TOKENS, FLUSH_TOKENS    most tokens whose sums stay in registers beside ROWS rows; the same when groups are flushed
 *   step_columns(format)    columns that load_values takes at once: one or two vectors of them
 *   stream_tokens(format)   most tokens of stream()
 *   stream_passes(format)   how often stream() may go over its rows before gemm() is faster
 *   is_flushed(format)      values are codes, their groups' scales come after the products
 *   decoder, decoder_for(format, scale, zero)   what turns codes under one scale into values
 *   load_values(format, p, n, d, seen, values)  n <= step_columns(format) codes at p; whatever stands behind them is
 * not read and counts as 0; `seen` collects what has_nan_code asks seen_codes, seen_none(), has_seen_nan(seen)
 *   HAS_HALVES              then is_halved(format): a step's first and second half of columns lie in the halves of its
 * vectors, each under a scale of its own.  load_codes(p, n) become two vectors at a time by load_part(format, codes, d,
 * part, values), part ascending, with halves_for(format, scales, zeros, g, h), the decoder of groups g and h
 *   multiply_add(w, x, acc), flush(acc, scale, total), vec_zero(), vec_load(p)
 *   pace()                  stands after the products of one token in gemm()'s innermost loop
 *   sum_four(a, b, c, d)    the lanes' sums of four accumulators
 *   row_factor(format)      a power of two that the values of a format with a scale per row lack
 *   load_scales_of(format, dtype, p, n, out)  n <= SCALES_AT_ONCE stored scales as decoder_for and flush take them
 */
#ifndef MF_KERNELS_CPU_PRODUCT_LOOPS_H
#define MF_KERNELS_CPU_PRODUCT_LOOPS_H

#include "kernels/cpu/product_rare.h"
#include "kernels/cpu/rows_ahead.h"
#include "kernels/cpu/unroll.h"

/* BLOCK times ROWS rows are decoded together, so many vectors of each: by default what fits in a first-level cache of
 * 48 KiB beside TOKENS inputs of 64-byte vectors. */
#ifndef BLOCK
#define BLOCK 4
#endif
#ifndef CHUNK_VECTORS
#define CHUNK_VECTORS 32
#endif

/* More bytes of inputs than these are multiplied in parts: each block of rows goes through all of them, and from beyond
 * the second-level cache they come too slowly where a block is few rows. */
#ifndef NEAR_INPUTS
#define NEAR_INPUTS INT64_MAX
#endif

/* Of these stream() asks for one stream of addresses and into the first-level cache.  4 bits take longer to decode than to
 * read: they gain from that cache and lose by a second stream. */
#ifndef ONE_STREAM
#define ONE_STREAM(format) mf_format_is_4bit(format)
#endif
#ifndef STREAM_AHEAD
#define STREAM_AHEAD(format) 6144
#endif

enum {
    SCALES = 64, /* of one row, converted at a time */
    CHUNK_COLUMNS = CHUNK_VECTORS * (int)sizeof(vec) / COLUMN_BYTES,
    GEMM_TOKENS = 96 /* tokens whose sums are kept beside decoded rows */
};
_Static_assert((int)CHUNK_COLUMNS / 32 < (int)SCALES, "the scales of a chunk, and of a group that it begins inside");

/* A few short rows at a time are no pattern that hardware prefetchers follow, so the code asks.  stream() asks for the
 * rows that come next, in two streams of addresses, at least STREAM_AHEAD bytes ahead and into the second-level cache:
 * memory gives 20 % more than when it asks for one stream, or into the first level beside the rows at hand.  gemm()
 * asks for its next chunk while it multiplies. */
enum { LINE = 64 };

/* ROWS stored rows; rows past the tile's last one repeat it.  `format` and NT below are compile-time constants once
 * inlined. */
typedef struct rows {
    const uint8_t *codes[ROWS];
    int64_t scale[ROWS]; /* index of the row's first scale */
    int64_t bytes;       /* of one row */
    int64_t next_rows;   /* from a row's end to the row that takes its place in the next block */
    mf_cpu_rows_ahead next; /* ROWS rows that stream() asks for meanwhile; w NULL: nobody knows them */
    const uint8_t *ahead;   /* their codes; or the rows' own, which are there */
    int num_rows;        /* that are not repeated */
    seen_codes seen;
} rows;

/* Scales and zero points of some columns of ROWS rows. */
typedef struct scales {
    _Alignas(64) float scale[ROWS][SCALES];
    float zero[ROWS][SCALES];
} scales;

#if !HAS_HALVES
INLINE bool is_halved(mf_format format)
{
    (void)format;
    return false;
}
#endif

INLINE bool is_fp8(mf_format format)
{
    return format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_FP8_CHANNEL;
}

INLINE bool is_grouped(mf_format format)
{
    return format == MF_FORMAT_FP8_BLOCK || mf_format_is_4bit(format);
}

/* Columns under one decoder, and for flushed formats under one sum. */
INLINE int64_t group_columns(mf_format format, const mf_matrix *w)
{
    if (!is_grouped(format)) {
        return INT64_MAX / 2;
    }
    return format == MF_FORMAT_INT4_GROUP  ? w->group_size
           : format == MF_FORMAT_FP8_BLOCK ? MF_FP8_BLOCK_SIZE
                                           : MF_MXFP4_GROUP;
}

/* Columns whose scales fit in `scales`. */
INLINE int64_t span_columns(mf_format format, const mf_matrix *w)
{
    const int64_t group = group_columns(format, w);
    return is_grouped(format) && group < w->k ? group * SCALES : w->k;
}

/* Bytes before column k of a row. */
INLINE int64_t offset_of(mf_format format, int64_t k)
{
    return (int64_t)((uint64_t)k * (uint64_t)mf_format_bits(format) / 8);
}

/* Filled where it stands: a copy would wait for its own stores. */
INLINE void set_rows(mf_format format, const mf_cpu_tile *tile, int64_t r, rows *q)
{
    const mf_matrix *w = tile->w;
    const int64_t row_bytes = w->row_stride * mf_format_bits(format) / 8, block = ROWS * row_bytes;
    q->bytes = (w->k * mf_format_bits(format) + 7) / 8;
    q->next_rows = block - q->bytes;
    q->num_rows = tile->num_rows - r < ROWS ? (int)(tile->num_rows - r) : ROWS;
    q->seen = seen_none();
    UNROLL(4) for (int i = 0; i < ROWS; i++)
    {
        const int64_t row = tile->first_row + r + (i < q->num_rows ? i : q->num_rows - 1);
        q->codes[i] = (const uint8_t *)w->data + row * row_bytes;
        q->scale[i] = (format == MF_FORMAT_FP8_BLOCK ? row / MF_FP8_BLOCK_SIZE : row) * w->scale_row_stride;
    }
    const int64_t ahead = STREAM_AHEAD(format), blocks = block > ahead ? 1 : ahead / (block + 1) + 1;
    q->next = mf_cpu_rows_ahead_of(tile, r, blocks * ROWS);
    q->ahead = q->next.w ? (const uint8_t *)q->next.w->data + q->next.row * row_bytes : q->codes[0];
}

/* n columns from `first` on. */
INLINE void scales_of(mf_format format, const mf_matrix *w, const rows *q, int64_t first, int64_t n, scales *s)
{
    if (!is_grouped(format)) {
        return;
    }
    const int64_t group = group_columns(format, w);
    const int64_t num_scales = (first + n - 1) / group - first / group + 1;
    const int64_t size = (int64_t)mf_dtype_size(w->scale_dtype);
    for (int i = 0; i < ROWS; i++) {
        const int64_t at = q->scale[i] + first / group;
        for (int64_t g = 0; g < num_scales; g += SCALES_AT_ONCE) {
            const int64_t count = num_scales - g < SCALES_AT_ONCE ? num_scales - g : SCALES_AT_ONCE;
            load_scales_of(format, w->scale_dtype, (const uint8_t *)w->scale + (at + g) * size, count, &s->scale[i][g]);
        }
        for (int64_t g = 0; format == MF_FORMAT_INT4_GROUP && w->zero && g < num_scales; g++) {
            s->zero[i][g] = (float)w->zero[at + g];
        }
        if (format == MF_FORMAT_INT4_GROUP && is_halved(format) && !w->zero) {
            static const float eights[16] = { 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8 };
            for (int64_t g = 0; g < num_scales; g += 16) {
                memcpy(&s->zero[i][g], eights, sizeof eights);
            }
        }
    }
}

INLINE decoder decoder_at(mf_format format, const mf_matrix *w, const scales *s, int i, int64_t g)
{
    return is_grouped(format)
               ? decoder_for(format, s->scale[i][g], format == MF_FORMAT_INT4_GROUP && w->zero ? s->zero[i][g] : 8.0f)
               : decoder_for(format, 1.0f, 0.0f);
}

#if HAS_HALVES
/* Of the step at k, of columns [first, end) whose scales are in s. */
INLINE decoder halves_at(mf_format format, const scales *s, int i, int64_t group, int64_t first, int64_t k, int64_t end)
{
    const int64_t half = k + step_columns(format) / 2, from = first / group;
    const int64_t g = k / group - from, h = half < end ? half / group - from : g;
    return halves_for(format, s->scale[i], s->zero[i], g, h);
}
#endif

/* A step that is longer than a line asks for two. */
INLINE int lines_of_step(mf_format format)
{
    return step_columns(format) * (int)mf_format_bits(format) / 8 > LINE ? 2 : 1;
}

/* Before the codes from column k on, a line of each row or a longer step, are read by stream(): the same share of two
 * streams of addresses, the first and the second half of the next rows, or of one. */
INLINE void prefetch_next(mf_format format, const rows *q, int64_t k)
{
    const int64_t half = ROWS / 2 * (q->bytes + q->next_rows) / ROWS;
    const int lines = ROWS / 2 * lines_of_step(format);
    const uint8_t *p = q->ahead + ROWS / 2 * offset_of(format, k);
    if (ONE_STREAM(format)) {
        p = q->ahead + ROWS * offset_of(format, k);
        UNROLL(8) for (int i = 0; i < 2 * lines; i++)
        {
            __builtin_prefetch(p + i * LINE, 0, 3);
        }
        return;
    }
    UNROLL(4) for (int i = 0; i < lines; i++)
    {
        __builtin_prefetch(p + i * LINE, 0, 2);
        __builtin_prefetch(p + half + i * LINE, 0, 2);
    }
}

/* A share of what gemm() decodes next: lines [line, end) of each row, `offset` bytes from where its codes start; one of
 * each row every `every` vectors. */
typedef struct asked {
    const rows *q;
    int64_t offset, line, end, every;
} asked;

/* The part'th of num_parts equal shares of `bytes` of each row, for a run of n vectors. */
INLINE asked asked_of(const rows *q, int64_t offset, int64_t bytes, int64_t part, int64_t num_parts, int64_t n)
{
    const int64_t lines = (bytes + LINE - 1) / LINE;
    asked a = { .q = q, .offset = offset, .line = lines * part / num_parts, .end = lines * (part + 1) / num_parts };
    const int64_t count = a.end - a.line;
    a.every = count > 1 ? n / count + 1 : n;
    return a;
}

INLINE void ask(asked *a)
{
    if (a->line < a->end) {
        UNROLL(4) for (int row = 0; row < ROWS; row++)
        {
            __builtin_prefetch(a->q->codes[row] + a->offset + a->line * LINE, 0, 2);
        }
        a->line++;
    }
}

/* Scales and zero points of the rows that prefetch_next asks for. */
INLINE void prefetch_scales(mf_format format, const rows *q)
{
    const mf_matrix *w = q->next.w;
    if (!w || format < MF_FORMAT_FP8_BLOCK || (format == MF_FORMAT_FP8_BLOCK && q->next.row % MF_FP8_BLOCK_SIZE != 0)) {
        return;
    }
    const int64_t at = mf_matrix_scale_row(w, q->next.row);
    const int64_t count = (format == MF_FORMAT_FP8_BLOCK ? 1 : ROWS) * w->scale_row_stride;
    const int64_t size = (int64_t)mf_dtype_size(w->scale_dtype);
    const uint8_t *p = (const uint8_t *)w->scale + at * size;
    for (int64_t i = 0; i < count * size; i += LINE) {
        __builtin_prefetch(p + i, 0, 3);
    }
    for (int64_t i = 0; w->zero && i < count; i += LINE) {
        __builtin_prefetch(w->zero + at + i, 0, 3);
    }
}

/* Four sums of token t, from row r on, become outputs. */
INLINE void put_four(mf_format format, const mf_cpu_tile *tile, const rows *q, int64_t r, int64_t t, vec a, vec b,
                     vec c, vec d)
{
    float *out = tile->out + t * tile->out_stride + r;
    float four[ROWS];
    sum_four(a, b, c, d, four);
    if (format == MF_FORMAT_FP8_CHANNEL || format == MF_FORMAT_INT8_CHANNEL) {
        for (int i = 0; i < ROWS; i++) {
            four[i] = four[i] * row_factor(format) * mf_matrix_scale_at(tile->w, q->scale[i]);
        }
    }
    if (q->num_rows == ROWS) {
        memcpy(out, four, sizeof four);
        return;
    }
    for (int i = 0; i < q->num_rows; i++) {
        out[i] = four[i];
    }
}

/* ---- few tokens: from memory through registers ---- */

INLINE void step(mf_format format, int NT, rows *q, const uint8_t *const *x, int64_t k, int64_t n, const decoder *d,
                 vec acc[ROWS][TOKENS])
{
    const int vectors = step_columns(format) * COLUMN_BYTES / (int)sizeof(vec);
#if HAS_HALVES
    if (is_halved(format)) {
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            const half_codes codes = load_codes(q->codes[i] + offset_of(format, k), n);
            UNROLL(4) for (int part = 0; part < vectors / 2; part++)
            {
                vec values[2];
                load_part(format, codes, &d[i], part, values);
                UNROLL(8) for (int j = 0; j < NT; j++)
                {
                    const uint8_t *xk = x[j] + k * COLUMN_BYTES + 2 * part * (int64_t)sizeof(vec);
                    acc[i][j] = multiply_add(values[0], vec_load(xk), acc[i][j]);
                    acc[i][j] = multiply_add(values[1], vec_load(xk + sizeof(vec)), acc[i][j]);
                }
            }
        }
        return;
    }
#endif
    if (vectors == 1) {
        vec values[ROWS];
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            load_values(format, q->codes[i] + offset_of(format, k), n, &d[i], &q->seen, &values[i]);
        }
        UNROLL(8) for (int j = 0; j < NT; j++)
        {
            const vec xk = vec_load(x[j] + k * COLUMN_BYTES);
            UNROLL(4) for (int i = 0; i < ROWS; i++)
            {
                acc[i][j] = multiply_add(values[i], xk, acc[i][j]);
            }
        }
        return;
    }
    UNROLL(4) for (int i = 0; i < ROWS; i++)
    {
        vec values[2];
        load_values(format, q->codes[i] + offset_of(format, k), n, &d[i], &q->seen, values);
        UNROLL(8) for (int j = 0; j < NT; j++)
        {
            acc[i][j] = multiply_add(values[0], vec_load(x[j] + k * COLUMN_BYTES), acc[i][j]);
            acc[i][j] = multiply_add(values[1], vec_load(x[j] + k * COLUMN_BYTES + sizeof(vec)), acc[i][j]);
        }
    }
}

/* A group's sums go through its scales into the totals. */
INLINE void flush_parts(int NT, const scales *s, int64_t g, vec part[ROWS][TOKENS], vec total[ROWS][TOKENS])
{
    UNROLL(4) for (int i = 0; i < ROWS; i++)
    {
        UNROLL(8) for (int j = 0; j < NT; j++)
        {
            total[i][j] = flush(part[i][j], s->scale[i][g], total[i][j]);
            part[i][j] = vec_zero();
        }
    }
}

/* ROWS rows times NT tokens from t on.  GROUP is the columns of a group where they are known when compiling and divide
 * a line of codes or are a multiple of it, else 0. */
INLINE void stream(mf_format format, int GROUP, int NT, const mf_cpu_tile *tile, rows *q, int64_t r, int64_t t,
                   int64_t pass, int64_t num_passes)
{
    const int columns = step_columns(format);
    const int line =
        LINE * 8 / (int)mf_format_bits(format) > columns ? LINE * 8 / (int)mf_format_bits(format) : columns;
    const mf_matrix *w = tile->w;
    const int64_t group = GROUP ? GROUP : group_columns(format, w);
    const int64_t span = span_columns(format, w);
    const bool is_lined = GROUP || !is_grouped(format);
    const uint8_t *x[TOKENS];
    vec acc[ROWS][TOKENS], part[ROWS][TOKENS];
    scales s;
    int64_t asks = pass; /* lines until memory is asked again: each pass has its share of them */
    if (t == 0) {
        prefetch_scales(format, q);
    }
    UNROLL(8) for (int j = 0; j < NT; j++)
    {
        x[j] = tile->x[t + j];
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            acc[i][j] = vec_zero();
            part[i][j] = vec_zero();
        }
    }
    for (int64_t first = 0; first < w->k; first += span) {
        const int64_t end = w->k - first < span ? w->k : first + span;
        decoder d[ROWS];
        int64_t k = first;
        scales_of(format, w, q, first, end - first, &s);
#if HAS_HALVES
        for (; is_halved(format) && k < end; k += columns) {
            if (k % line == 0 && asks-- == 0) {
                prefetch_next(format, q, k);
                asks = num_passes - 1;
            }
            UNROLL(4) for (int i = 0; i < ROWS; i++)
            {
                d[i] = halves_at(format, &s, i, group, first, k, end);
            }
            if (k + columns <= end) {
                step(format, NT, q, x, k, columns, d, acc);
            } else {
                step(format, NT, q, x, k, end - k, d, acc);
            }
        }
        if (is_halved(format)) {
            continue;
        }
#endif
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            d[i] = decoder_at(format, w, &s, i, 0);
        }
        const int64_t lined_end =
            GROUP > line ? first + (end - first) / (GROUP ? GROUP : 1) * GROUP : end; /* no group is cut */
        for (; is_lined && k + line <= lined_end; k += line) {
            if (asks-- == 0) {
                prefetch_next(format, q, k);
                asks = num_passes - 1;
            }
            UNROLL(4) for (int u = 0; u < line / columns; u++)
            {
                const int64_t at = k + u * columns;
                if (GROUP &&
                    (GROUP < line ? u * columns % (GROUP ? GROUP : 1) == 0 : u == 0 && at % (GROUP ? GROUP : 1) == 0)) {
                    UNROLL(4) for (int i = 0; i < ROWS; i++)
                    {
                        d[i] = decoder_at(format, w, &s, i, (at - first) / (GROUP ? GROUP : 1));
                    }
                }
                step(format, NT, q, x, at, columns, d, is_flushed(format) ? part : acc);
                if (is_flushed(format) && GROUP && (at + columns) % (GROUP ? GROUP : 1) == 0) {
                    flush_parts(NT, &s, (at - first) / (GROUP ? GROUP : 1), part, acc);
                }
            }
        }
        while (k < end) {
            const int64_t g = is_grouped(format) ? (k - first) / group : 0;
            const int64_t stop = is_grouped(format) && first + (g + 1) * group < end ? first + (g + 1) * group : end;
            UNROLL(4) for (int i = 0; i < ROWS; i++)
            {
                d[i] = decoder_at(format, w, &s, i, g);
            }
            for (; k + columns <= stop; k += columns) {
                if (k % line == 0 && asks-- == 0) {
                    prefetch_next(format, q, k);
                    asks = num_passes - 1;
                }
                step(format, NT, q, x, k, columns, d, is_flushed(format) ? part : acc);
            }
            if (k < stop) {
                step(format, NT, q, x, k, stop - k, d, is_flushed(format) ? part : acc);
                k = stop;
            }
            if (is_flushed(format)) {
                flush_parts(NT, &s, g, part, acc);
            }
        }
    }
    UNROLL(8) for (int j = 0; j < NT; j++)
    {
        put_four(format, tile, q, r, t + j, acc[0][j], acc[1][j], acc[2][j], acc[3][j]);
    }
}

/* ---- many tokens: values in a buffer ---- */

/* Columns [first, end) of the rows; first is a multiple of the group, or of the chunk where the group is longer. */
INLINE void decode(mf_format format, const mf_matrix *w, rows *q, const scales *s, int64_t first, int64_t end,
                   vec values[ROWS][CHUNK_VECTORS])
{
    const int columns = step_columns(format);
    const int vectors = columns * COLUMN_BYTES / (int)sizeof(vec);
    const int64_t group = group_columns(format, w);
    int64_t at = 0;
#if HAS_HALVES
    for (int64_t k = first; is_halved(format) && k < end; k += columns, at += vectors) {
        const int64_t n = end - k < columns ? end - k : columns;
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            const decoder d = halves_at(format, s, i, group, first, k, end);
            const half_codes codes = load_codes(q->codes[i] + offset_of(format, k), n);
            UNROLL(4) for (int part = 0; part < vectors / 2; part++)
            {
                load_part(format, codes, &d, part, &values[i][at + 2 * part]);
            }
        }
    }
    if (is_halved(format)) {
        return;
    }
#endif
    for (int64_t start = first, g = 0; start < end; start += group, g++) {
        const int64_t stop = end - start < group ? end : start + group;
        decoder d[ROWS];
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            d[i] = decoder_at(format, w, s, i, g);
        }
        for (int64_t k = start; k < stop; k += columns, at += vectors) {
            const bool is_whole = k + columns <= stop;
            UNROLL(4) for (int i = 0; i < ROWS; i++)
            {
                const uint8_t *p = q->codes[i] + offset_of(format, k);
                if (is_whole) {
                    load_values(format, p, columns, &d[i], &q->seen, &values[i][at]);
                } else {
                    load_values(format, p, stop - k, &d[i], &q->seen, &values[i][at]);
                }
            }
        }
    }
}

/* Vectors [v, end) of a chunk times NT tokens. */
INLINE void multiply_some(int NT, const vec values[ROWS][CHUNK_VECTORS], int64_t v, int64_t end,
                          const uint8_t *const *xs, vec acc[TOKENS][ROWS])
{
    for (; (int)TOKENS < (int)ROWS && v < end; v++) { /* the smaller side stays in registers */
        vec xv[TOKENS];
        UNROLL(8) for (int j = 0; j < NT; j++)
        {
            xv[j] = vec_load(xs[j] + v * (int64_t)sizeof(vec));
        }
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            const vec w = values[i][v];
            UNROLL(8) for (int j = 0; j < NT; j++)
            {
                acc[j][i] = multiply_add(w, xv[j], acc[j][i]);
            }
            pace();
        }
    }
    for (; (int)TOKENS >= (int)ROWS && v < end; v++) {
        vec w[ROWS];
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            w[i] = values[i][v];
        }
        UNROLL(8) for (int j = 0; j < NT; j++)
        {
            const vec xv = vec_load(xs[j] + v * (int64_t)sizeof(vec));
            UNROLL(4) for (int i = 0; i < ROWS; i++)
            {
                acc[j][i] = multiply_add(w[i], xv, acc[j][i]);
            }
            pace();
        }
    }
}

/* The n vectors of a chunk times NT tokens, added to their sums. */
INLINE void multiply(int NT, const vec values[ROWS][CHUNK_VECTORS], int64_t n, const uint8_t *const *x, int64_t offset,
                     vec sums[][ROWS], asked *a)
{
    const uint8_t *xs[TOKENS];
    vec acc[TOKENS][ROWS];
    UNROLL(8) for (int j = 0; j < NT; j++)
    {
        xs[j] = x[j] + offset;
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            acc[j][i] = sums[j][i];
        }
    }
    while (BLOCK > 1 && a->line < a->end) { /* runs are short */
        ask(a);
    }
    const int64_t every = BLOCK > 1 ? n : a->every;
    for (int64_t v = 0; v < n; v += every) {
        ask(a);
        multiply_some(NT, values, v, n - v < every ? n : v + every, xs, acc);
    }
    UNROLL(8) for (int j = 0; j < NT; j++)
    {
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            sums[j][i] = acc[j][i];
        }
    }
}

/* The same for codes: after each `group` vectors their sums go through the scale into the totals. */
INLINE void multiply_groups(int NT, const vec values[ROWS][CHUNK_VECTORS], int64_t n, int64_t group, const scales *s,
                            const uint8_t *const *x, int64_t offset, vec sums[][ROWS])
{
    vec total[TOKENS][ROWS];
    UNROLL(8) for (int j = 0; j < NT; j++)
    {
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            total[j][i] = sums[j][i];
        }
    }
    for (int64_t start = 0, g = 0; start < n; start += group, g++) {
        const int64_t stop = n - start < group ? n : start + group;
        vec acc[TOKENS][ROWS];
        UNROLL(8) for (int j = 0; j < NT; j++)
        {
            UNROLL(4) for (int i = 0; i < ROWS; i++)
            {
                acc[j][i] = vec_zero();
            }
        }
        for (int64_t v = start; v < stop; v++) {
            UNROLL(8) for (int j = 0; j < NT; j++)
            {
                const vec xv = vec_load(x[j] + offset + v * (int64_t)sizeof(vec));
                UNROLL(4) for (int i = 0; i < ROWS; i++)
                {
                    acc[j][i] = multiply_add(values[i][v], xv, acc[j][i]);
                }
            }
        }
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            UNROLL(8) for (int j = 0; j < NT; j++)
            {
                total[j][i] = flush(acc[j][i], s->scale[i][g], total[j][i]);
            }
        }
    }
    UNROLL(8) for (int j = 0; j < NT; j++)
    {
        UNROLL(4) for (int i = 0; i < ROWS; i++)
        {
            sums[j][i] = total[j][i];
        }
    }
}

typedef void (*multiply_fn)(const vec values[ROWS][CHUNK_VECTORS], int64_t n, int64_t group, const scales *s,
                            const uint8_t *const *x, int64_t offset, vec sums[][ROWS], asked *a);

#define MULTIPLY(NT)                                                                                                   \
    static void multiply_##NT(const vec values[ROWS][CHUNK_VECTORS], int64_t n, int64_t group, const scales *s,        \
                              const uint8_t *const *x, int64_t offset, vec sums[][ROWS], asked *a)                      \
    {                                                                                                                  \
        (void)group;                                                                                                   \
        (void)s;                                                                                                       \
        multiply(NT, values, n, x, offset, sums, a);                                                                   \
    }
#define MULTIPLY_GROUPS(NT)                                                                                            \
    static void multiply_groups_##NT(const vec values[ROWS][CHUNK_VECTORS], int64_t n, int64_t group, const scales *s, \
                                     const uint8_t *const *x, int64_t offset, vec sums[][ROWS], asked *a)               \
    {                                                                                                                  \
        while (a->line < a->end) {                                                                                     \
            ask(a);                                                                                                    \
        }                                                                                                              \
        multiply_groups(NT, values, n, group, s, x, offset, sums);                                                     \
    }
MULTIPLY(1)
MULTIPLY(2)
MULTIPLY(3)
#if TOKENS_IN_REGISTERS >= 6
MULTIPLY(4)
MULTIPLY(5)
MULTIPLY(6)
#endif
#if HAS_FLUSHED_FORMATS
MULTIPLY_GROUPS(1)
MULTIPLY_GROUPS(2)
MULTIPLY_GROUPS(3)
#endif

/* All rows times all tokens: codes become values once per GEMM_TOKENS tokens. */
INLINE void gemm(mf_format format, const mf_cpu_tile *tile)
{
#if TOKENS_IN_REGISTERS >= 6
    static const multiply_fn plain[] = { multiply_1, multiply_2, multiply_3, multiply_4, multiply_5, multiply_6 };
#else
    static const multiply_fn plain[] = { multiply_1, multiply_2, multiply_3 };
#endif
#if HAS_FLUSHED_FORMATS
    static const multiply_fn flushed[] = { multiply_groups_1, multiply_groups_2, multiply_groups_3 };
    const multiply_fn *multiplies = is_flushed(format) ? flushed : plain;
    const int64_t at_once = is_flushed(format) ? FLUSH_TOKENS : TOKENS;
#else
    const multiply_fn *multiplies = plain;
    const int64_t at_once = TOKENS;
#endif
    _Alignas(64) vec values[BLOCK][ROWS][CHUNK_VECTORS];
    _Alignas(64) vec sums[BLOCK][GEMM_TOKENS][ROWS];
    scales s[BLOCK];
    rows q[BLOCK];
    const mf_matrix *w = tile->w;
    const int64_t group = group_columns(format, w);
    int64_t chunk = group < CHUNK_COLUMNS && !is_halved(format) ? CHUNK_COLUMNS / group * group : CHUNK_COLUMNS;
    if (BLOCK == 1 && !is_grouped(format)) { /* as equal as possible; scales are converted by eights */
        const int64_t num_chunks = (w->k + chunk - 1) / chunk, equal = (w->k + num_chunks - 1) / num_chunks;
        chunk = (equal + step_columns(format) - 1) / step_columns(format) * step_columns(format);
    }
    const int64_t group_vectors = is_flushed(format) ? group * COLUMN_BYTES / (int64_t)sizeof(vec) : 0;
    for (int64_t r = 0; r < tile->num_rows; r += BLOCK * ROWS) {
        int num_blocks = 0;
        for (; num_blocks < BLOCK && r + num_blocks * ROWS < tile->num_rows; num_blocks++) {
            set_rows(format, tile, r + num_blocks * ROWS, &q[num_blocks]);
        }
        for (int64_t t0 = 0; t0 < tile->num_tokens; t0 += GEMM_TOKENS) {
            const int64_t num_tokens = tile->num_tokens - t0 < GEMM_TOKENS ? tile->num_tokens - t0 : GEMM_TOKENS;
            const int64_t num_runs = (num_tokens + at_once - 1) / at_once;
            for (int b = 0; b < num_blocks; b++) {
                memset(sums[b], 0, (size_t)num_tokens * sizeof sums[b][0]);
            }
            for (int64_t first = 0, end; first < w->k; first = end) {
                end = w->k - first < chunk ? w->k : first + chunk;
                if (is_grouped(format) && !is_halved(format) && chunk < group && end > (first / group + 1) * group) {
                    end = (first / group + 1) * group;
                }
                const int64_t step_size = step_columns(format);
                const int64_t n =
                    (end - first + step_size - 1) / step_size * step_size * COLUMN_BYTES / (int64_t)sizeof(vec);
                for (int b = 0; b < num_blocks; b++) {
                    scales_of(format, w, &q[b], first, end - first, &s[b]);
                    decode(format, w, &q[b], &s[b], first, end, values[b]);
                }
                const bool is_last = end == w->k;
                const int64_t next = is_last ? BLOCK * (q[0].bytes + q[0].next_rows) : offset_of(format, end);
                const int64_t next_bytes = offset_of(format, is_last || w->k - end > chunk ? chunk : w->k - end);
                for (int64_t run = 0; run < num_runs; run++) { /* as equal as possible */
                    const int64_t t = num_tokens * run / num_runs;
                    const int64_t count = num_tokens * (run + 1) / num_runs - t;
                    for (int b = 0; b < num_blocks; b++) {
                        asked a = asked_of(&q[b], next, t0 == 0 ? next_bytes : 0, run, num_runs, n);
                        multiplies[count - 1]((const vec(*)[CHUNK_VECTORS])values[b], n, group_vectors, &s[b],
                                              (const uint8_t *const *)tile->x + t0 + t, first * COLUMN_BYTES,
                                              &sums[b][t], &a);
                    }
                }
            }
            for (int b = 0; b < num_blocks; b++) {
                for (int64_t t = 0; t < num_tokens; t++) {
                    const vec *v = sums[b][t];
                    put_four(format, tile, &q[b], r + b * ROWS, t0 + t, v[0], v[1], v[2], v[3]);
                }
            }
        }
        for (int b = 0; b < num_blocks; b++) {
            if (is_fp8(format) && has_seen_nan(q[b].seen)) {
                mf_cpu_spread_nan_codes(tile, r + b * ROWS, q[b].num_rows);
            }
        }
    }
}

/* ---- a tile ---- */

INLINE void stream_some(mf_format format, int GROUP, int n, const mf_cpu_tile *tile, rows *q, int64_t r, int64_t t,
                        int64_t pass, int64_t num_passes)
{
    const int most = stream_tokens(format);
    if (n == 1) {
        stream(format, GROUP, 1, tile, q, r, t, pass, num_passes);
    } else if (most >= 2 && n == 2) {
        stream(format, GROUP, 2, tile, q, r, t, pass, num_passes);
    } else if (most >= 3 && n == 3) {
        stream(format, GROUP, 3, tile, q, r, t, pass, num_passes);
#if TOKENS_IN_REGISTERS >= 6
    } else if (most >= 4 && n == 4) {
        stream(format, GROUP, 4, tile, q, r, t, pass, num_passes);
    } else if (most >= 5 && n == 5) {
        stream(format, GROUP, 5, tile, q, r, t, pass, num_passes);
    } else if (most >= 6 && n == 6) {
        stream(format, GROUP, 6, tile, q, r, t, pass, num_passes);
#endif
    }
}

/* Passes after the first find the rows in a cache. */
INLINE void stream_rows(mf_format format, int GROUP, const mf_cpu_tile *tile)
{
    const int64_t num_passes = (tile->num_tokens + stream_tokens(format) - 1) / stream_tokens(format);
    for (int64_t r = 0; r < tile->num_rows; r += ROWS) {
        rows q;
        set_rows(format, tile, r, &q);
        for (int64_t pass = 0; pass < num_passes; pass++) { /* as equal as possible */
            const int64_t t = tile->num_tokens * pass / num_passes;
            stream_some(format, GROUP, (int)(tile->num_tokens * (pass + 1) / num_passes - t), tile, &q, r, t, pass,
                        num_passes);
        }
        if (is_fp8(format) && has_seen_nan(q.seen)) {
            mf_cpu_spread_nan_codes(tile, r, q.num_rows);
        }
    }
}

/* Every block of rows goes through all inputs: as many at a time as stay near. */
INLINE void gemm_parts(mf_format format, const mf_cpu_tile *tile)
{
    const int64_t fit = NEAR_INPUTS / (tile->w->k * COLUMN_BYTES), most = fit < TOKENS ? TOKENS : fit;
    const int64_t num_parts = (tile->num_tokens + most - 1) / most;
    for (int64_t part = 0; part < num_parts; part++) { /* as equal as possible */
        mf_cpu_tile some = *tile;
        const int64_t t = tile->num_tokens * part / num_parts;
        some.num_tokens = tile->num_tokens * (part + 1) / num_parts - t;
        some.x += t;
        some.out += t * tile->out_stride;
        gemm(format, &some);
    }
}

INLINE void product(mf_format format, const mf_cpu_tile *tile)
{
    if (tile->num_tokens > stream_tokens(format) * stream_passes(format)) {
        gemm_parts(format, tile);
    } else if (format == MF_FORMAT_INT4_GROUP && tile->w->group_size == 32) {
        stream_rows(format, 32, tile);
    } else if (format == MF_FORMAT_INT4_GROUP && tile->w->group_size == 128) {
        stream_rows(format, 128, tile);
    } else {
        stream_rows(format, format == MF_FORMAT_FP8_BLOCK ? 128 : format == MF_FORMAT_MXFP4 ? 32 : 0, tile);
    }
}

#define PRODUCT(name, format)                                                                                          \
    static void name(const mf_cpu_tile *tile)                                                                          \
    {                                                                                                                  \
        product(format, tile);                                                                                         \
    }

#endif
