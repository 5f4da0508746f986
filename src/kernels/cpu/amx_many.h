/* amx_many.h - products of more than one panel of tokens in tiles that amx_panels.h does not take: the bits of
 * amx_product.h, other loops.
 *
 * What costs time here is L1: a store that misses it holds up the tile loads behind it, and panels that stream through
 * it push everything else out.  So there is one buffer of decoded rows and not two, panels are loaded past L1, and
 * where segments have scales of their own, their sums stay in a small ring, added to the totals while the next ones are
 * multiplied. */
#ifndef MF_KERNELS_CPU_AMX_MANY_H
#define MF_KERNELS_CPU_AMX_MANY_H

#include "kernels/cpu/amx_product.h"

enum { MANY_GROUP = 2 }; /* segments that are added at a time */

/* Segments [first, first + count) of a chunk that have been multiplied and wait in a half of the ring. */
typedef struct many_pending {
    amx_chunk chunk;
    int64_t rows, panel, panels;
    int64_t first, count; /* count 0: nothing waits */
    int64_t number;       /* of the chunk, which chooses its scales */
    int64_t half;
} many_pending;

typedef struct many_work {
    amx_work work; /* of its buffers of rows the first is used */
    _Alignas(64) uint8_t ring[2][MANY_GROUP][4][AMX_TILE_BYTES];
    amx_ahead ahead;
    many_pending pending;
} many_work;

/* Every fourth line of what comes after the block: the prefetchers of the second-level cache bring the rest, and each
 * line asked for here occupies a buffer that tile loads need. */
INLINE void many_ask(amx_ahead *ahead)
{
    if (ahead->p < ahead->end) {
        __builtin_prefetch(ahead->p, 0, 2);
        ahead->p += ahead->lines * AMX_ROW_BYTES;
    }
}

/* ---- tile products ---- */

/* A panel's next tile, bytes to the tile after it and from row to row. */
typedef struct many_right {
    const uint8_t *p;
    int64_t step, stride;
} many_right;

INLINE many_right many_panel(const amx_kind kind, const amx_work *work, int64_t panel, int64_t step)
{
    const int64_t row_bytes = 4 * amx_tokens(work, panel);
    const int64_t bytes = (kind.int8 ? kind.width / 4 : kind.width / 2) * row_bytes;
    return (many_right){ (const uint8_t *)work->tile->x[panel] + step * bytes, bytes, row_bytes };
}

/* As amx_multiply, of the first buffer of rows. */
INLINE void many_multiply(const amx_kind kind, const int rows, const int panels, many_work *many, int64_t panel,
                          int64_t base, int64_t first, int64_t end)
{
    const amx_work *work = &many->work;
    const int64_t last = panel + panels - 1;
    many_right right0 = many_panel(kind, work, panel, base + first);
    many_right right1 = many_panel(kind, work, last, base + first);
    const bool has_spare = last == work->num_panels - 1 && work->spare_offset >= 0;
    const uint8_t *spare = has_spare ? (const uint8_t *)work->tile->x[last] + work->spare_offset : NULL;
    const uint8_t *left0 = work->left[0][0][first], *left1 = work->left[0][1][first];
    for (int64_t s = first; s < end; s++, left0 += AMX_TILE_BYTES, left1 += AMX_TILE_BYTES) {
        if (right1.p == spare) {
            right1.p = work->spare;
            right1.stride = AMX_ROW_BYTES;
            right0 = panels == 1 ? right1 : right0;
        }
        AMX_LOAD_ONCE(6, right0.p, right0.stride);
        AMX_LOAD(4, left0, AMX_ROW_BYTES);
        AMX_PRODUCT(kind, 0, 4, 6);
        if (panels == 2) {
            AMX_LOAD_ONCE(7, right1.p, right1.stride);
            AMX_PRODUCT(kind, 1, 4, 7);
        }
        if (rows == 2) {
            AMX_LOAD(5, left1, AMX_ROW_BYTES);
            AMX_PRODUCT(kind, 2, 5, 6);
            if (panels == 2) {
                AMX_PRODUCT(kind, 3, 5, 7);
            }
        }
        many_ask(&many->ahead);
        right0.p += right0.step;
        right1.p += right1.step;
    }
}

INLINE void many_pair_plain(const amx_kind kind, const int rows, const int panels, many_work *many, int64_t panel,
                            const amx_chunk *chunk)
{
    amx_resume_sums(rows, panels, &many->work, panel, chunk);
    many_multiply(kind, rows, panels, many, panel, chunk->base, 0, chunk->steps);
    amx_leave_sums(rows, panels, &many->work, panel, chunk);
}

/* ---- segments with scales of their own ---- */

/* total = fma(scale, segment's sum, total) for one tile, segments ascending. */
INLINE void many_add_tile(const amx_kind kind, const int count, const bool has_zeros, many_work *many, int64_t row_tile,
                          int64_t t)
{
    const many_pending *p = &many->pending;
    amx_work *work = &many->work;
    float *total = (float *)(void *)work->sums[p->panel + t][row_tile];
    const bool is_first = p->chunk.base == 0 && p->first == 0;
    const float(*scale)[AMX_SIDE] = (const float(*)[AMX_SIDE])work->scale[p->number & 3][row_tile] + p->first;
    const int32_t(*zero)[AMX_SIDE] = (const int32_t(*)[AMX_SIDE])work->zero[p->number & 3][row_tile] + p->first;
    const uint8_t *parts = many->ring[p->half][0][2 * row_tile + t];
    __m512i x_sum[MANY_GROUP];
    for (int g = 0; has_zeros && g < count; g++) {
        x_sum[g] = amx_code_sum(kind, work, &p->chunk, p->first + g, p->panel + t);
    }
    UNROLL(16) for (int v = 0; v < AMX_SIDE; v++)
    {
        __m512 sum = is_first ? _mm512_setzero_ps() : _mm512_load_ps(total + v * AMX_SIDE);
        UNROLL(2) for (int g = 0; g < count; g++)
        {
            __m512 value = _mm512_load_ps(parts + g * 4 * AMX_TILE_BYTES + v * AMX_ROW_BYTES);
            if (kind.int8) {
                __m512i dot = _mm512_castps_si512(value);
                if (has_zeros) {
                    dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(_mm512_set1_epi32(zero[g][v]), x_sum[g]));
                }
                value = _mm512_cvtepi32_ps(dot);
            }
            sum = _mm512_fmadd_ps(_mm512_set1_ps(scale[g][v]), value, sum);
        }
        _mm512_store_ps(total + v * AMX_SIDE, sum);
    }
}

INLINE void many_add_tiles(const amx_kind kind, const int count, const bool has_zeros, many_work *many)
{
    for (int64_t r = 0; r < many->pending.rows; r++) {
        for (int64_t t = 0; t < many->pending.panels; t++) {
            many_add_tile(kind, count, has_zeros, many, r, t);
        }
    }
}

/* What waits in the ring goes through its scales into the totals. */
INLINE void many_flush(const amx_kind kind, many_work *many)
{
    const bool has_zeros = kind.int8 && many->work.tile->w->zero;
    const int64_t count = many->pending.count;
    many->pending.count = 0;
    if (count == MANY_GROUP && has_zeros) {
        many_add_tiles(kind, MANY_GROUP, true, many);
    } else if (count == MANY_GROUP) {
        many_add_tiles(kind, MANY_GROUP, false, many);
    } else if (count == 1 && has_zeros) {
        many_add_tiles(kind, 1, true, many);
    } else if (count == 1) {
        many_add_tiles(kind, 1, false, many);
    }
}

INLINE void many_pair_scaled(const amx_kind kind, const int rows, const int panels, many_work *many, int64_t panel,
                             const amx_chunk *chunk)
{
    const amx_work *work = &many->work;
    for (int64_t g = 0; g < chunk->segments;) {
        const int64_t most = chunk->group_steps == 1 ? MANY_GROUP : 1;
        const int64_t count = chunk->segments - g < most ? chunk->segments - g : most;
        many_pending next = { .chunk = *chunk,
                              .rows = rows,
                              .panel = panel,
                              .panels = panels,
                              .first = g,
                              .count = count,
                              .number = work->feed.number,
                              .half = 1 - many->pending.half };
        for (int64_t i = 0; i < count; i++, g++) {
            const int64_t first = g * chunk->group_steps;
            const int64_t end = g + 1 == chunk->segments ? chunk->steps : first + chunk->group_steps;
            uint8_t(*parts)[AMX_TILE_BYTES] = many->ring[next.half][i];
            amx_zero_sums(rows, panels, false);
            many_multiply(kind, rows, panels, many, panel, chunk->base, first, end);
            amx_store_sums(rows, panels, AMX_ROW_BYTES, parts[0], parts[1], parts[2], parts[3]);
        }
        many_flush(kind, many); /* of those before, which have left for L1 by now */
        many->pending = next;
    }
}

INLINE void many_pair_of(const amx_kind kind, const int rows, const int panels, many_work *many, int64_t panel,
                         const amx_chunk *chunk)
{
    if (kind.scaled) {
        many_pair_scaled(kind, rows, panels, many, panel, chunk);
    } else {
        many_pair_plain(kind, rows, panels, many, panel, chunk);
    }
}

INLINE void many_pairs(const amx_kind kind, many_work *many, const amx_chunk *chunk)
{
    const amx_work *work = &many->work;
    const int64_t row_tiles = work->num_rows > AMX_SIDE ? 2 : 1;
    for (int64_t t = 0; t < work->num_panels; t += 2) {
        const int64_t panels = t + 1 < work->num_panels ? 2 : 1;
        AMX_BY_SIZE(many_pair_of, kind, row_tiles, panels, many, t, chunk);
    }
}

/* ---- blocks of rows ---- */

/* What memory is asked for in `steps` steps of a block: the rows after it. */
INLINE amx_ahead many_ahead(const amx_kind kind, const amx_work *work, int64_t steps)
{
    enum { EVERY = 4 };
    const mf_cpu_tile *tile = work->tile;
    const int64_t after = work->first_row + AMX_ROWS, left = tile->first_row + tile->num_rows - after;
    const mf_matrix *w = left > 0 ? tile->w : tile->next;
    if (!w || work->num_panels <= 2) { /* too few steps for it to pay */
        return (amx_ahead){ 0 };
    }
    const uint8_t *p = mf_matrix_row(w, left > 0 ? after : tile->next_row);
    const int64_t rows = left > 0 && left < AMX_ROWS ? left : AMX_ROWS;
    const int64_t bytes = rows * w->row_stride * mf_format_bits(kind.format) / 8;
    const int64_t lines = bytes / AMX_ROW_BYTES / steps;
    return (amx_ahead){ p, p + bytes, lines < EVERY ? EVERY : lines };
}

INLINE void many_product(const amx_kind kind, amx_feed_fn feed, const mf_cpu_tile *tile)
{
    many_work many;
    amx_work *work = &many.work;
    const mf_matrix *w = tile->w;
    const int64_t steps = (w->k + kind.width - 1) / kind.width;
    amx_begin(kind, work, tile);
    many.pending = (many_pending){ 0 };
    work->feed.number = -1;
    const amx_config config = amx_config_of(AMX_SIDE, kind.int8 ? kind.width / 4 : kind.width / 2);
    AMX_CONFIGURE(&config);
    for (int64_t first = 0; first < tile->num_rows; first += AMX_ROWS) {
        const int64_t left = tile->num_rows - first;
        work->first_row = tile->first_row + first;
        work->num_rows = left < AMX_ROWS ? left : AMX_ROWS;
        many.ahead = many_ahead(kind, work, (work->num_panels + 1) / 2 * steps);
        for (int64_t k = 0; k < w->k; k += work->feed.chunk.count) {
            work->feed.number += work->feed.number >= 0; /* even: the first buffer */
            amx_begin_feed(kind, work, work->first_row, k);
            feed(work);
            const amx_chunk chunk = work->feed.chunk;
            many_pairs(kind, &many, &chunk);
        }
        if (kind.scaled) {
            many_flush(kind, &many);
        }
        amx_finish(kind, work);
    }
    AMX_RELEASE();
}

/* The entry `name` of a kind that has an AMX_TILE of the name `few`. */
#define AMX_MANY(name, kind, few)                                                                                      \
    static void name(const mf_cpu_tile *tile)                                                                          \
    {                                                                                                                  \
        if (!amx_groups_fit(kind, tile->w)) {                                                                          \
            few(tile);                                                                                                 \
        } else {                                                                                                       \
            many_product(kind, few##_feed, tile);                                                                      \
        }                                                                                                              \
    }

#endif
