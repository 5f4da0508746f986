/* amx_panels.h - products of many tokens in tiles: the bits of amx_product.h, other loops.
 *
 * 32 rows at a time, four tiles of columns of each: a chunk, whose codes become eight tiles in a buffer while the chunk
 * before it is multiplied by all pairs of panels, a row between two tile products.  Sums leave their tile register
 * three products after the last one that changed them, just before the next pair or segment needs it, and segments with
 * scales of their own enter the totals some products later still: nothing waits for a store that is on its way.  Panels
 * are loaded past L1, which holds two chunks, the sums and a segment. */
#ifndef MF_KERNELS_CPU_AMX_PANELS_H
#define MF_KERNELS_CPU_AMX_PANELS_H

#include "kernels/cpu/amx_lines.h"

enum {
    PANELS_STEPS = 4,   /* tiles of columns of a chunk */
    PANELS_STREAMS = 4, /* of addresses in which memory is asked for */
    PANELS_TILES = 4    /* of sums: 2 * (tile of rows) + panel of the pair */
};

/* What is known when the compiler unfolds a product. */
typedef struct panels_kind {
    mf_format format;
    bool int8;       /* int8 times int8 to i32, not bf16 times bf16 to f32 */
    int width;       /* columns of a tile */
    int group_steps; /* tiles of columns under one scale; 0: none finer than a row */
} panels_kind;

/* Rows on their way into a buffer. */
typedef struct panels_feed {
    const uint8_t *codes, *scales; /* of the next row; scales: of mxfp4 */
    uint8_t *left;
    int64_t row; /* of the block; AMX_ROWS: all are there */
} panels_feed;

/* What has been multiplied and is still in tile registers, or waits for its scales. */
typedef struct panels_pending {
    uint8_t *sums[PANELS_TILES]; /* where the registers go */
    float *total;                /* of the pair, [panel][tile of rows]; NULL: nothing waits */
    const float *scale;          /* of its first segment, of a row after another; fp8 has one for all rows */
    float same;
    bool is_first, has_two; /* the rows' first segment; two panels */
} panels_pending;

typedef struct panels_work {
    _Alignas(64) uint8_t left[2][AMX_ROW_TILES][PANELS_STEPS][AMX_TILE_BYTES];
    _Alignas(64) uint8_t parts[2][PANELS_TILES][AMX_TILE_BYTES]; /* of a segment, of two where each tile is one */
    _Alignas(64) float scale[AMX_ROW_TILES][SPAN_STEPS + LANES][LANES];
    amx_work work; /* sums, the spare tile, and where rows are when they are finished */
} panels_work;

/* Where memory is asked for the rows after the block. */
typedef struct panels_ahead {
    const uint8_t *codes, *end; /* of the first stream */
    const uint8_t *scales, *scales_end;
    int64_t span, lines; /* from stream to stream; in a step */
} panels_ahead;

/* ---- decoding ---- */

INLINE uint8_t *panels_row(const panels_feed *feed)
{
    const uint64_t row = (uint64_t)feed->row;
    return feed->left + row / AMX_SIDE * (PANELS_STEPS * AMX_TILE_BYTES) + row % AMX_SIDE * AMX_ROW_BYTES;
}

INLINE int panels_step_bytes(const panels_kind kind) /* of codes */
{
    return kind.width * (int)mf_format_bits(kind.format) / 8;
}

INLINE int panels_depth(const panels_kind kind) /* words of four bytes of a tile's row */
{
    return kind.int8 ? kind.width / 4 : kind.width / 2;
}

/* Where rows of tiles are half a line, two tiles share lines. */
INLINE bool panels_are_halves(const panels_kind kind)
{
    return panels_depth(kind) < AMX_SIDE;
}

INLINE __m512i panels_table(const panels_kind kind)
{
    return kind.int8 ? _mm512_set1_epi8(8) : lines_table((lines_kind){ .format = kind.format });
}

/* int4 codes of 64 columns less 8: a byte becomes a word, its upper nibble the upper byte. */
INLINE __m512i panels_nibbles(__m256i pairs, __m512i eight)
{
    const __m512i words = _mm512_cvtepu8_epi16(pairs);
    const __m512i low = _mm512_set1_epi8(15);
    return _mm512_sub_epi8(_mm512_ternarylogic_epi32(words, _mm512_slli_epi16(words, 4), low, 0xa8), eight);
}

/* `steps` tiles of a row, four or one; scales: of mxfp4, one a tile. */
INLINE void panels_decode_steps(const panels_kind kind, const int steps, __m512i table, const uint8_t *scales,
                                const uint8_t *p, uint8_t *out)
{
    const lines_kind lines = { .format = kind.format };
    if (!kind.int8) {
        const int at_once = steps == 1 ? 1 : lines_tiles(lines);
        UNROLL(2) for (int i = 0; i < steps; i += at_once)
        {
            lines_decode(lines, at_once, table, scales + i, p + i * panels_step_bytes(kind), out + i * AMX_TILE_BYTES);
        }
    } else if (kind.format == MF_FORMAT_INT8_CHANNEL) {
        UNROLL(4) for (int i = 0; i < steps; i++)
        {
            _mm512_store_si512(out + i * AMX_TILE_BYTES, _mm512_loadu_si512(p + i * AMX_ROW_BYTES));
        }
    } else if (panels_are_halves(kind) && steps == 1) {
        const __m256i pairs = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p));
        _mm256_store_si256((__m256i *)(void *)out, _mm512_castsi512_si256(panels_nibbles(pairs, table)));
    } else {
        const int tiles = panels_are_halves(kind) ? steps / 2 : steps;
        UNROLL(4) for (int i = 0; i < tiles; i++)
        {
            const __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)(p + i * AMX_ROW_BYTES / 2));
            _mm512_store_si512(out + i * AMX_TILE_BYTES, panels_nibbles(pairs, table));
        }
    }
}

INLINE void panels_decode_row(const panels_kind kind, __m512i table, int64_t stride, int64_t scale_stride,
                              panels_feed *feed)
{
    panels_decode_steps(kind, PANELS_STEPS, table, feed->scales, feed->codes, panels_row(feed));
    feed->codes += stride;
    feed->scales += scale_stride;
    feed->row++;
}

/* All rows of a chunk, which may be the last of its rows and short. */
INLINE void panels_decode(const panels_kind kind, __m512i table, int64_t stride, int64_t scale_stride, int64_t steps,
                          panels_feed *feed)
{
    while (feed->row < AMX_ROWS) {
        if (steps == PANELS_STEPS) {
            panels_decode_row(kind, table, stride, scale_stride, feed);
            continue;
        }
        uint8_t *out = panels_row(feed);
        for (int64_t i = 0; i < steps; i++) {
            uint8_t *to = panels_are_halves(kind) ? out + i / 2 * AMX_TILE_BYTES + i % 2 * (AMX_ROW_BYTES / 2)
                                                  : out + i * AMX_TILE_BYTES;
            panels_decode_steps(kind, 1, table, feed->scales + i, feed->codes + i * panels_step_bytes(kind), to);
        }
        feed->codes += stride;
        feed->scales += scale_stride;
        feed->row++;
    }
}

/* ---- scales ---- */

INLINE int panels_segments(const panels_kind kind) /* that are added at a time */
{
    return kind.group_steps == 1 ? 2 : 1;
}

/* total = fma(scale, segment's sum, total) for one tile, segments ascending. */
INLINE void panels_add_tile(const panels_kind kind, const int segments, const int tile,
                            uint8_t (*parts)[PANELS_TILES][AMX_TILE_BYTES], const panels_pending *p)
{
    float *total = p->total + (tile % 2 * AMX_ROW_TILES + tile / 2) * (AMX_TILE_BYTES / 4);
    const float *scale = p->scale + tile / 2 * (SPAN_STEPS + LANES) * LANES;
    const __m512 same = _mm512_set1_ps(p->same);
    const __mmask16 before = p->is_first ? 0 : 0xffff;
    UNROLL(16) for (int v = 0; v < AMX_SIDE; v++)
    {
        __m512 sum = _mm512_maskz_load_ps(before, total + v * AMX_SIDE);
        UNROLL(2) for (int g = 0; g < segments; g++)
        {
            const uint8_t *part = parts[g][tile] + v * AMX_ROW_BYTES;
            const __m512 value = kind.int8 ? _mm512_cvtepi32_ps(_mm512_load_si512(part)) : _mm512_load_ps(part);
            const __m512 factor = kind.format == MF_FORMAT_FP8_BLOCK ? same : _mm512_set1_ps(scale[g * LANES + v]);
            sum = _mm512_fmadd_ps(factor, value, sum);
        }
        _mm512_store_ps(total + v * AMX_SIDE, sum);
    }
}

/* What is in the registers and what waits, before anything else is multiplied. */
INLINE void panels_drain(const panels_kind kind, const int segments, panels_work *work, panels_pending *p)
{
    if (!p->total) {
        return;
    }
    AMX_STORE(0, p->sums[0], AMX_ROW_BYTES);
    AMX_STORE(1, p->sums[1], AMX_ROW_BYTES);
    AMX_STORE(2, p->sums[2], AMX_ROW_BYTES);
    AMX_STORE(3, p->sums[3], AMX_ROW_BYTES);
    UNROLL(4) for (int tile = 0; tile < PANELS_TILES; tile++)
    {
        if (!kind.group_steps) {
            break;
        }
        if (tile % 2 == 0 || p->has_two) {
            panels_add_tile(kind, segments, tile, work->parts, p);
        }
    }
    p->total = NULL;
}

/* ---- products ---- */

/* What the steps of a pair share. */
typedef struct panels_step {
    const uint8_t *left0, *left1;
    const uint8_t *right0, *right1, *spare, *spare_tile;
    int64_t step_left;                  /* bytes to the next tile of the rows */
    int64_t step0, step1, stride1;      /* the same of the panels; from row to row of the second */
    int64_t stride, scale_stride, rows; /* of codes; of scales; decoded in a step */
    __m512i table;
    panels_feed feed;
    panels_ahead ahead;
} panels_step;

/* Once between two products, as far as a step's lines go. */
INLINE void panels_ask(panels_ahead *a, const int slot)
{
    for (int64_t i = slot; i < a->lines && a->codes < a->end; i += PANELS_TILES, a->codes += 64) {
        UNROLL(4) for (int s = 0; s < PANELS_STREAMS; s++)
        {
            __builtin_prefetch(a->codes + s * a->span, 0, 2);
        }
    }
    if (slot == 0 && a->scales < a->scales_end) {
        __builtin_prefetch(a->scales, 0, 2);
        a->scales += 64;
    }
}

/* A tile of sums leaves its register, where others begin in it, and has one more product. */
#define PANELS_SLOT(i, left_tile, right_tile)                                                                          \
    do {                                                                                                               \
        if (adds && p->total && ((i) % 2 == 0 || p->has_two)) {                                                        \
            panels_add_tile(kind, panels_segments(kind), i, parts, p);                                                 \
        }                                                                                                              \
        if (begins) {                                                                                                  \
            AMX_STORE(i, to[i], AMX_ROW_BYTES);                                                                        \
            if (panels == 2 || (i) % 2 == 0) {                                                                         \
                if (from) {                                                                                            \
                    AMX_LOAD(i, from + ((i) % 2 * AMX_ROW_TILES + (i) / 2) * AMX_TILE_BYTES, AMX_ROW_BYTES);           \
                } else {                                                                                               \
                    AMX_ZERO(i);                                                                                       \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        if (panels == 2 || (i) % 2 == 0) {                                                                             \
            AMX_PRODUCT(kind, i, left_tile, right_tile);                                                               \
        }                                                                                                              \
        panels_ask(&s->ahead, i);                                                                                      \
        if (s->feed.row < AMX_ROWS && (i) < s->rows) {                                                                 \
            panels_decode_row(kind, s->table, s->stride, s->scale_stride, &s->feed);                                   \
            if (s->rows > PANELS_TILES) { /* one pair of panels */                                                     \
                panels_decode_row(kind, s->table, s->stride, s->scale_stride, &s->feed);                               \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

/* One tile of columns.  begins: a segment, or the pair's, whose sums go on from `from` (NULL: from zero), while those
 * before them go to `to`.  adds: what waits goes through its scales. */
INLINE void panels_one_step(const panels_kind kind, const int panels, const bool begins, const bool adds,
                            panels_step *s, uint8_t *const *to, const uint8_t *from,
                            uint8_t (*parts)[PANELS_TILES][AMX_TILE_BYTES], const panels_pending *p)
{
    const uint8_t *right0 = s->right0, *right1 = s->right1;
    int64_t stride0 = AMX_ROW_BYTES, stride1 = s->stride1;
    if (panels == 1) {
        stride0 = stride1;
        right0 = right1;
    }
    if (right1 == s->spare) {
        right1 = s->spare_tile;
        stride1 = AMX_ROW_BYTES;
        right0 = panels == 1 ? right1 : right0;
        stride0 = AMX_ROW_BYTES;
    }
    AMX_LOAD_ONCE(6, right0, stride0);
    AMX_LOAD(4, s->left0, AMX_ROW_BYTES);
    PANELS_SLOT(0, 4, 6);
    if (panels == 2) {
        AMX_LOAD_ONCE(7, right1, stride1);
    }
    PANELS_SLOT(1, 4, 7);
    AMX_LOAD(5, s->left1, AMX_ROW_BYTES);
    PANELS_SLOT(2, 5, 6);
    PANELS_SLOT(3, 5, 7);
    s->left0 += s->step_left;
    s->left1 += s->step_left;
    s->step_left = panels_are_halves(kind) ? AMX_TILE_BYTES - s->step_left : AMX_TILE_BYTES;
    s->right0 += s->step0;
    s->right1 += s->step1;
}

/* A pair's steps of one chunk. */
typedef struct panels_pair {
    int64_t panel, step, steps;
    int64_t segment; /* number of the first in the span of scales */
    bool stays;      /* its sums are in the registers */
    float same;
} panels_pair;

INLINE void panels_multiply(const panels_kind kind, const int panels, panels_work *work, panels_step *s,
                            panels_pending *p, const panels_pair *pair)
{
    uint8_t *sums = work->work.sums[pair->panel][0];
    uint8_t(*parts)[PANELS_TILES][AMX_TILE_BYTES] = work->parts;
    if (!kind.group_steps) {
        const uint8_t *from = pair->step == 0 ? NULL : sums;
        if (!pair->stays) {
            panels_one_step(kind, panels, true, false, s, p->sums, from, parts, p);
        }
        for (int64_t i = pair->stays ? 0 : 1; i < pair->steps; i++) {
            panels_one_step(kind, panels, false, false, s, p->sums, NULL, parts, p);
        }
        for (int i = 0; i < PANELS_TILES; i++) {
            p->sums[i] = sums + (i % 2 * AMX_ROW_TILES + i / 2) * AMX_TILE_BYTES;
        }
        p->total = (float *)(void *)sums;
        return;
    }
    const int unit = kind.group_steps == 4 ? 4 : 2; /* steps whose segments are added together */
    for (int64_t first = 0; first < pair->steps; first += unit) {
        const bool whole = pair->steps - first >= unit;
        uint8_t *to0[PANELS_TILES] = { parts[0][0], parts[0][1], parts[0][2], parts[0][3] };
        uint8_t *to1[PANELS_TILES] = { parts[1][0], parts[1][1], parts[1][2], parts[1][3] };
        uint8_t **last = kind.group_steps == 1 && whole ? to1 : to0;
        if (!whole) { /* a row's end */
            panels_drain(kind, panels_segments(kind), work, p);
        }
        panels_one_step(kind, panels, true, false, s, p->sums, NULL, parts, p);
        if (whole && unit == 2) {
            panels_one_step(kind, panels, kind.group_steps == 1, true, s, to0, NULL, parts, p);
        } else if (whole) {
            panels_one_step(kind, panels, false, false, s, to0, NULL, parts, p);
            panels_one_step(kind, panels, false, true, s, to0, NULL, parts, p);
            panels_one_step(kind, panels, false, false, s, to0, NULL, parts, p);
        } else {
            for (int64_t i = 1; i < pair->steps - first; i++) {
                panels_one_step(kind, panels, false, false, s, to0, NULL, parts, p);
            }
        }
        const int64_t segment = first / kind.group_steps;
        p->total = (float *)(void *)sums;
        p->scale = work->scale[0][pair->segment + segment];
        p->same = pair->same;
        p->is_first = pair->step + first == 0;
        p->has_two = panels == 2;
        for (int i = 0; i < PANELS_TILES; i++) {
            p->sums[i] = last[i];
        }
        if (!whole) {
            panels_drain(kind, 1, work, p);
        }
    }
}

/* ---- blocks of rows ---- */

/* The rows after the block at hand, in `steps` steps. */
INLINE panels_ahead panels_ahead_at(const panels_kind kind, const amx_work *work, int64_t steps)
{
    const mf_cpu_tile *tile = work->tile;
    const int64_t after = work->first_row + AMX_ROWS, left = tile->first_row + tile->num_rows - after;
    const mf_matrix *w = left > 0 ? tile->w : tile->next;
    if (!w || w->format != tile->w->format) {
        return (panels_ahead){ 0 };
    }
    const int64_t row = left > 0 ? after : tile->next_row;
    const int64_t bytes = AMX_ROWS / PANELS_STREAMS * w->row_stride * mf_format_bits(kind.format) / 8;
    panels_ahead a = { .codes = mf_matrix_row(w, row), .span = bytes };
    a.end = a.codes + bytes;
    a.lines = (bytes / AMX_ROW_BYTES + steps - 1) / steps;
    if (mf_format_is_4bit(kind.format)) {
        const int64_t row_bytes = w->scale_row_stride * (int64_t)mf_dtype_size(w->scale_dtype);
        a.scales = (const uint8_t *)w->scale + row * row_bytes;
        a.scales_end = a.scales + AMX_ROWS * row_bytes;
    }
    return a;
}

INLINE panels_feed panels_feed_at(const panels_kind kind, const mf_matrix *w, int64_t stride, int64_t row, int64_t step,
                                  uint8_t *left)
{
    panels_feed feed = { .codes = (const uint8_t *)w->data + row * stride + step * panels_step_bytes(kind),
                         .scales = (const uint8_t *)w->scale + row * w->scale_row_stride + step,
                         .left = left };
    return feed;
}

static void panels_load_scales(panels_work *work, int64_t tile, int64_t row, int64_t first, int64_t count)
{
    const mf_matrix *w = work->work.tile->w;
    count = count < SPAN_STEPS ? count : SPAN_STEPS;
    switch (w->scale_dtype) {
    case MF_F16:
        load_scales(w, MF_F16, row, first, count, work->scale[tile]);
        break;
    case MF_BF16:
        load_scales(w, MF_BF16, row, first, count, work->scale[tile]);
        break;
    default:
        load_scales(w, MF_F32, row, first, count, work->scale[tile]);
        break;
    }
}

INLINE void panels_blocks(const panels_kind kind, panels_work *work, int64_t rows)
{
    amx_work *amx = &work->work;
    const mf_cpu_tile *tile = amx->tile;
    const mf_matrix *w = tile->w;
    const int64_t all = w->k / kind.width, panels = amx->num_panels, pairs = (panels + 1) / 2;
    const int64_t stride = w->row_stride * mf_format_bits(kind.format) / 8;
    const int64_t end = tile->first_row + rows;
    const int64_t tokens = amx_tokens(amx, panels - 1); /* of the last panel */
    const int64_t groups = kind.group_steps ? (all + kind.group_steps - 1) / kind.group_steps : 0;
    const bool rows_have_scales = kind.group_steps && kind.format != MF_FORMAT_FP8_BLOCK;
    panels_pending pending = { 0 };
    for (int i = 0; i < PANELS_TILES; i++) {
        pending.sums[i] = work->parts[0][i];
    }
    panels_step s = { .stride = stride, .scale_stride = w->scale_row_stride, .table = panels_table(kind) };
    const int64_t of_chunk = pairs * PANELS_STEPS;
    s.rows = (AMX_ROWS + of_chunk - 1) / of_chunk;
    s.spare_tile = amx->spare;
    s.feed = panels_feed_at(kind, w, stride, tile->first_row, 0, work->left[0][0][0]);
    panels_decode(kind, s.table, stride, s.scale_stride, all < PANELS_STEPS ? all : PANELS_STEPS, &s.feed);
    int64_t number = 0;
    for (int64_t row = tile->first_row; row < end; row += AMX_ROWS) {
        amx->first_row = row;
        amx->num_rows = AMX_ROWS;
        s.ahead = panels_ahead_at(kind, amx, pairs * all);
        for (int64_t step = 0; step < all; step += PANELS_STEPS, number++) {
            const int64_t steps = all - step < PANELS_STEPS ? all - step : PANELS_STEPS;
            /* the chunk after it */
            const bool is_last = step + steps == all;
            const int64_t next_row = is_last ? row + AMX_ROWS : row, next = is_last ? 0 : step + PANELS_STEPS;
            s.feed = panels_feed_at(kind, w, stride, next_row, next, work->left[(number + 1) & 1][0][0]);
            const int64_t next_steps = all - next < PANELS_STEPS ? all - next : PANELS_STEPS;
            if (next_row >= end) {
                s.feed.row = AMX_ROWS;
            } else if (next_steps < PANELS_STEPS) {
                panels_decode(kind, s.table, stride, s.scale_stride, next_steps, &s.feed);
            }
            panels_pair pair = { .step = step, .steps = steps, .stays = pairs == 1 && step > 0 };
            if (rows_have_scales) {
                const int64_t first = step / kind.group_steps;
                pair.segment = first % SPAN_STEPS;
                if (pair.segment == 0) {
                    panels_drain(kind, panels_segments(kind), work, &pending);
                    panels_load_scales(work, 0, row, first, groups - first);
                    panels_load_scales(work, 1, row + AMX_SIDE, first, groups - first);
                }
            } else if (kind.group_steps) {
                pair.same = mf_matrix_scale_at(w, mf_matrix_scale_row(w, row) + step / kind.group_steps);
            }
            for (int64_t t = 0; t < panels; t += 2) {
                const int64_t other = t + 1 < panels ? t + 1 : t;
                const bool ends = other == panels - 1;
                pair.panel = t;
                s.left0 = work->left[number & 1][0][0];
                s.left1 = work->left[number & 1][1][0];
                s.stride1 = ends ? 4 * tokens : AMX_ROW_BYTES;
                s.step_left = panels_are_halves(kind) ? AMX_ROW_BYTES / 2 : AMX_TILE_BYTES;
                s.step0 = panels_depth(kind) * AMX_ROW_BYTES;
                s.step1 = panels_depth(kind) * s.stride1;
                s.right0 = (const uint8_t *)tile->x[t] + step * s.step0;
                s.right1 = (const uint8_t *)tile->x[other] + step * s.step1;
                s.spare = ends && amx->spare_offset >= 0 ? (const uint8_t *)tile->x[other] + amx->spare_offset : NULL;
                if (other > t) {
                    panels_multiply(kind, 2, work, &s, &pending, &pair);
                } else {
                    panels_multiply(kind, 1, work, &s, &pending, &pair);
                }
            }
            while (s.feed.row < AMX_ROWS) {
                panels_decode_row(kind, s.table, stride, s.scale_stride, &s.feed);
            }
        }
        panels_drain(kind, panels_segments(kind), work, &pending);
        amx_finish((amx_kind){ .format = kind.format, .int8 = kind.int8, .scaled = kind.group_steps != 0 }, amx);
    }
}

/* How many rows, in 32s, it has multiplied: what it leaves is left to other loops. */
INLINE int64_t panels_product(const panels_kind kind, const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    const int64_t rows = tile->num_rows / AMX_ROWS * AMX_ROWS;
    if (rows == 0 || w->k % kind.width != 0 ||
        (kind.format == MF_FORMAT_FP8_BLOCK && tile->first_row % AMX_ROWS != 0)) {
        return 0;
    }
    panels_work work;
    amx_begin((amx_kind){ .format = kind.format, .int8 = kind.int8, .width = kind.width }, &work.work, tile);
    amx_config config = amx_config_of(AMX_SIDE, panels_depth(kind));
    if (work.work.num_panels == 2) { /* the second one's tiles are as wide as it */
        config.row_bytes[1] = config.row_bytes[3] = config.row_bytes[7] =
            (uint16_t)(4 * (tile->num_tokens - MF_CPU_PANEL));
        work.work.spare_offset = -1;
        memset(work.parts, 0, sizeof work.parts);
    }
    if (work.work.num_panels == 1) { /* so are the only one's, but not the rows of its sums */
        config.row_bytes[0] = config.row_bytes[2] = config.row_bytes[6] = (uint16_t)(4 * tile->num_tokens);
        work.work.side = AMX_SIDE;
        memset(work.parts, 0, sizeof work.parts);
    }
    AMX_CONFIGURE(&config);
    panels_blocks(kind, &work, rows);
    AMX_RELEASE();
    return rows;
}

#endif
