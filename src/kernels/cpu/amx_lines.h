/* amx_lines.h - products of one or two panels of tokens in tiles: the bits of amx_product.h, for memory's sake other
 * loops.
 *
 * Sixteen rows at a time, one line of 64 bytes of each: a block, whose codes become two or four tiles in a buffer while
 * the block before it is multiplied, and what that gave goes through its scales another block later.  Everything at
 * hand stays in L1, nothing waits for a store that is still on its way, and memory is asked for rows far ahead. */
#ifndef MF_KERNELS_CPU_AMX_LINES_H
#define MF_KERNELS_CPU_AMX_LINES_H

#include "kernels/cpu/amx_codes.h"

enum {
    LINES_TILES = 4, /* most tiles of a block */
    LINES_PANELS = 2 /* most panels */
};

/* What is known when the compiler unfolds a product. */
typedef struct lines_kind {
    mf_format format;
    int panels;      /* of tokens, one or two */
    int group_steps; /* tiles of columns under one scale; 0: none finer than a row */
} lines_kind;

/* A block of a tile's rows. */
typedef struct lines_block {
    int64_t row;         /* the first of sixteen; < 0: no block */
    int64_t step, steps; /* its first tile of columns, and how many */
    bool is_last;        /* of its rows */
} lines_block;

typedef struct lines_work {
    _Alignas(64) uint8_t left[2][LINES_TILES][AMX_TILE_BYTES];
    /* of each panel: sums of segments, or of whole rows, [16][side] */
    _Alignas(64) uint8_t parts[2][LINES_TILES][LINES_PANELS][AMX_TILE_BYTES];
    _Alignas(64) float total[LINES_PANELS][AMX_SIDE * AMX_SIDE];
    _Alignas(64) float scale[SPAN_STEPS + LANES][LANES];
    _Alignas(64) int32_t row_of[AMX_SIDE][AMX_SIDE]; /* of a lane of the last panel's sums */
    const mf_cpu_tile *tile;
    int64_t side, stride; /* tokens of the last panel; bytes from row to row */
    int64_t end, all;     /* past the last row; tiles of columns of a row */
} lines_work;

INLINE int lines_tiles(const lines_kind kind)
{
    return mf_format_is_4bit(kind.format) ? 4 : 2;
}

INLINE int lines_step_bytes(const lines_kind kind)
{
    return AMX_ROW_BYTES / lines_tiles(kind);
}

/* ---- decoding ---- */

INLINE __m512i lines_table(const lines_kind kind)
{
    return kind.format == MF_FORMAT_INT4_GROUP
               ? four_bit_table(_mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7))
               : _mm512_setzero_si512();
}

/* `steps` tiles of a row; scales: of mxfp4, one a tile. */
INLINE void lines_decode(const lines_kind kind, const int steps, __m512i table, const uint8_t *scales, const uint8_t *p,
                         uint8_t *out)
{
    if (mf_format_is_4bit(kind.format)) {
        UNROLL(4) for (int i = 0; i < steps; i++)
        {
            const __m512i values = kind.format == MF_FORMAT_MXFP4 ? _mm512_load_si512(mxfp4_table[scales[i]]) : table;
            const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i));
            _mm512_store_si512(out + i * AMX_TILE_BYTES, four_bit_values(values, bytes));
        }
    } else if (kind.format == MF_FORMAT_INT8_CHANNEL) {
        UNROLL(2) for (int i = 0; i < steps; i++)
        {
            const __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32 * i));
            _mm512_store_si512(out + i * AMX_TILE_BYTES, int8_values(codes));
        }
    } else {
        const bool is_half = steps == 1;
        put_fp8(is_half ? _mm512_maskz_loadu_epi8(0xffffffffu, p) : _mm512_loadu_si512(p), 0, is_half, out);
    }
}

/* The block after `block`. */
INLINE lines_block lines_after(const lines_kind kind, const lines_work *work, lines_block block)
{
    const int tiles = lines_tiles(kind);
    block.step += tiles;
    if (block.is_last) {
        block.step = 0;
        block.row = block.row + 2 * AMX_SIDE > work->end ? -1 : block.row + AMX_SIDE;
    }
    block.steps = work->all - block.step < tiles ? work->all - block.step : tiles;
    block.is_last = block.step + tiles >= work->all;
    return block;
}

INLINE const uint8_t *lines_codes(const lines_kind kind, const lines_work *work, const lines_block *block)
{
    return (const uint8_t *)work->tile->w->data + block->row * work->stride + block->step * lines_step_bytes(kind);
}

/* Of mxfp4: the first row's scale of the block's first tile. */
INLINE const uint8_t *lines_scales(const lines_work *work, const lines_block *block)
{
    const mf_matrix *w = work->tile->w;
    return (const uint8_t *)w->scale + block->row * w->scale_row_stride + block->step;
}

/* ---- products ---- */

/* Where the panels' tiles are, and the bytes of their rows. */
typedef struct lines_right {
    const uint8_t *p[LINES_PANELS];
    int64_t row_bytes[LINES_PANELS];
} lines_right;

INLINE lines_right lines_right_at(const lines_kind kind, const lines_work *work, int64_t step)
{
    lines_right right;
    UNROLL(2) for (int t = 0; t < kind.panels; t++)
    {
        right.row_bytes[t] = t + 1 < kind.panels ? AMX_ROW_BYTES : 4 * work->side;
        right.p[t] = (const uint8_t *)work->tile->x[t] + step * (STEP / 2) * right.row_bytes[t];
    }
    return right;
}

INLINE void lines_advance(const lines_kind kind, lines_right *right)
{
    UNROLL(2) for (int t = 0; t < kind.panels; t++)
    {
        right->p[t] += STEP / 2 * right->row_bytes[t];
    }
}

/* Sums of the panels in tiles a and b += a tile of the block times theirs. */
#define LINES_PRODUCT(kind, a, b, left, right)                                                                         \
    do {                                                                                                               \
        AMX_LOAD(6, (right)->p[0], (right)->row_bytes[0]);                                                             \
        AMX_LOAD(4, left, AMX_ROW_BYTES);                                                                              \
        AMX_BF16(a, 4, 6);                                                                                             \
        if ((kind).panels == 2) {                                                                                      \
            AMX_LOAD(7, (right)->p[1], (right)->row_bytes[1]);                                                         \
            AMX_BF16(b, 4, 7);                                                                                         \
        }                                                                                                              \
    } while (0)
#define LINES_ZERO(kind, a, b)                                                                                         \
    do {                                                                                                               \
        AMX_ZERO(a);                                                                                                   \
        if ((kind).panels == 2) {                                                                                      \
            AMX_ZERO(b);                                                                                               \
        }                                                                                                              \
    } while (0)
#define LINES_STORE(kind, a, b, parts, right)                                                                          \
    do {                                                                                                               \
        AMX_STORE(a, (parts)[0], (right)->row_bytes[0]);                                                               \
        if ((kind).panels == 2) {                                                                                      \
            AMX_STORE(b, (parts)[1], (right)->row_bytes[1]);                                                           \
        }                                                                                                              \
    } while (0)

/* Where each tile of a block has a scale of its own, it has tiles of sums of its own, which are stored when others have
 * been multiplied: a store that waits for its product holds up everything behind it.  One panel's wait until the next
 * block needs their tile; two panels' until the next tile of the block. */
INLINE bool lines_are_late(const lines_kind kind)
{
    return kind.group_steps == 1 && kind.panels == 1;
}

#define LINES_LATE(i, left, right, before)                                                                             \
    do {                                                                                                               \
        AMX_STORE(i, (before)[i][0], (right)->row_bytes[0]);                                                           \
        AMX_ZERO(i);                                                                                                   \
        AMX_LOAD(6, (right)->p[0], (right)->row_bytes[0]);                                                             \
        AMX_LOAD(4, left, AMX_ROW_BYTES);                                                                              \
        AMX_BF16(i, 4, 6);                                                                                             \
    } while (0)

INLINE void lines_multiply_late(const int i, const uint8_t *left, const lines_right *right,
                                uint8_t (*before)[LINES_PANELS][AMX_TILE_BYTES])
{
    switch (i) {
    case 0:
        LINES_LATE(0, left, right, before);
        break;
    case 1:
        LINES_LATE(1, left, right, before);
        break;
    case 2:
        LINES_LATE(2, left, right, before);
        break;
    default:
        LINES_LATE(3, left, right, before);
        break;
    }
}

/* Of the block before one that the loops below take apart, or of the last one. */
INLINE void lines_store_late(lines_work *work, int64_t number)
{
    uint8_t(*parts)[LINES_PANELS][AMX_TILE_BYTES] = work->parts[number & 1];
    const int64_t row_bytes = 4 * work->side;
    AMX_STORE(0, parts[0][0], row_bytes);
    AMX_STORE(1, parts[1][0], row_bytes);
    AMX_STORE(2, parts[2][0], row_bytes);
    AMX_STORE(3, parts[3][0], row_bytes);
}

INLINE void lines_store_pair(const int i, uint8_t (*parts)[LINES_PANELS][AMX_TILE_BYTES], const lines_right *right)
{
    if (i % 2 == 0) {
        AMX_STORE(0, parts[i][0], right->row_bytes[0]);
        AMX_STORE(1, parts[i][1], right->row_bytes[1]);
    } else {
        AMX_STORE(2, parts[i][0], right->row_bytes[0]);
        AMX_STORE(3, parts[i][1], right->row_bytes[1]);
    }
}

INLINE void lines_multiply_pair(const lines_kind kind, const int i, const uint8_t *left, const lines_right *right,
                                uint8_t (*parts)[LINES_PANELS][AMX_TILE_BYTES])
{
    if (i % 2 == 0) {
        LINES_ZERO(kind, 0, 1);
        LINES_PRODUCT(kind, 0, 1, left, right);
    } else {
        LINES_ZERO(kind, 2, 3);
        LINES_PRODUCT(kind, 2, 3, left, right);
    }
    if (i > 0) {
        lines_store_pair(i - 1, parts, right);
    }
}

/* A tile that begins a segment or not, and ends it or not: its sums are stored then. */
INLINE void lines_multiply(const lines_kind kind, const bool begins, const bool ends, const uint8_t *left,
                           const lines_right *right, uint8_t (*part)[AMX_TILE_BYTES])
{
    if (begins) {
        LINES_ZERO(kind, 0, 1);
    }
    LINES_PRODUCT(kind, 0, 1, left, right);
    if (ends) {
        LINES_STORE(kind, 0, 1, part, right);
    }
}

INLINE bool lines_begins(const lines_kind kind, int64_t step)
{
    return kind.group_steps == 0 ? step == 0 : step % kind.group_steps == 0;
}

INLINE bool lines_ends(const lines_kind kind, const lines_work *work, int64_t step)
{
    return step + 1 == work->all || (kind.group_steps != 0 && step % kind.group_steps == kind.group_steps - 1);
}

/* A whole block, and the decoding of another one between its tiles. */
INLINE void lines_mixed(const lines_kind kind, lines_work *work, const lines_block *block, const lines_block *feed,
                        int64_t number, __m512i table, few_ahead *next)
{
    const int tiles = lines_tiles(kind), rows = AMX_SIDE / tiles, lines = AMX_SIDE / STREAMS / tiles;
    const int64_t stride = work->stride;
    const uint8_t *p = lines_codes(kind, work, feed);
    lines_right right = lines_right_at(kind, work, block->step);
    const uint8_t *left = work->left[number & 1][0];
    const uint8_t *scales = lines_scales(work, feed);
    const int64_t scale_stride = work->tile->w->scale_row_stride;
    uint8_t *out = work->left[(number + 1) & 1][0];
    uint8_t(*parts)[LINES_PANELS][AMX_TILE_BYTES] = work->parts[number & 1];
    const bool first = lines_begins(kind, block->step), last = lines_ends(kind, work, block->step + tiles - 1);
    UNROLL(4) for (int i = 0; i < tiles; i++)
    {
        UNROLL(8) for (int r = 0; r < rows; r++, p += stride, out += AMX_ROW_BYTES, scales += scale_stride)
        {
            lines_decode(kind, tiles, table, scales, p, out);
        }
        ask_codes(true, next, lines);
        if (lines_are_late(kind)) {
            lines_multiply_late(i, left + i * AMX_TILE_BYTES, &right, work->parts[(number + 1) & 1]);
        } else if (kind.group_steps == 1) {
            lines_multiply_pair(kind, i, left + i * AMX_TILE_BYTES, &right, parts);
        } else {
            const bool inside = kind.group_steps != 0 && kind.group_steps < tiles;
            const bool begins = i == 0 ? first : inside && i % kind.group_steps == 0;
            const bool ends = i == tiles - 1 ? last : inside && i % kind.group_steps == kind.group_steps - 1;
            lines_multiply(kind, begins, ends, left + i * AMX_TILE_BYTES, &right, parts[kind.group_steps ? i : 0]);
        }
        lines_advance(kind, &right);
    }
    if (kind.group_steps == 1 && !lines_are_late(kind)) {
        lines_store_pair(tiles - 1, parts, &right);
    }
}

/* The same where rows end. */
INLINE void lines_decode_block(const lines_kind kind, lines_work *work, const lines_block *feed, int64_t number,
                               __m512i table)
{
    const int64_t scale_stride = work->tile->w->scale_row_stride;
    const uint8_t *p = lines_codes(kind, work, feed), *scales = lines_scales(work, feed);
    uint8_t *out = work->left[number & 1][0];
    for (int64_t r = 0; r < AMX_SIDE; r++, p += work->stride, out += AMX_ROW_BYTES, scales += scale_stride) {
        for (int64_t i = 0; i < feed->steps; i++) {
            lines_decode(kind, 1, table, scales + i, p + i * lines_step_bytes(kind), out + i * AMX_TILE_BYTES);
        }
    }
}

INLINE void lines_multiply_block(const lines_kind kind, lines_work *work, const lines_block *block, int64_t number)
{
    uint8_t(*parts)[LINES_PANELS][AMX_TILE_BYTES] = work->parts[number & 1];
    lines_right right = lines_right_at(kind, work, block->step);
    if (lines_are_late(kind)) {
        lines_store_late(work, number - 1);
    }
    UNROLL(4) for (int i = 0; i < lines_tiles(kind); i++)
    {
        const int64_t step = block->step + i;
        if (i >= block->steps) {
            break;
        }
        if (lines_are_late(kind)) {
            lines_multiply_late(i, work->left[number & 1][i], &right, work->parts[(number + 1) & 1]);
        } else if (kind.group_steps == 1) {
            lines_multiply_pair(kind, i, work->left[number & 1][i], &right, parts);
            if (i + 1 == block->steps) {
                lines_store_pair(i, parts, &right);
            }
        } else {
            lines_multiply(kind, lines_begins(kind, step), lines_ends(kind, work, step), work->left[number & 1][i],
                           &right, parts[kind.group_steps ? i : 0]);
        }
        lines_advance(kind, &right);
    }
}

/* ---- scales ---- */

static void lines_load_scales(lines_work *work, int64_t row, int64_t first, int64_t count)
{
    const mf_matrix *w = work->tile->w;
    count = count < SPAN_STEPS ? count : SPAN_STEPS;
    switch (w->scale_dtype) {
    case MF_F16:
        load_scales(w, MF_F16, row, first, count, work->scale);
        break;
    case MF_BF16:
        load_scales(w, MF_BF16, row, first, count, work->scale);
        break;
    default:
        load_scales(w, MF_F32, row, first, count, work->scale);
        break;
    }
}

/* total = fma(scale, segment's sum, total), segments ascending, `count` of them that end with tiles first, first +
 * every and so on of the block. */
INLINE void lines_add(const lines_kind kind, const bool is_wide, lines_work *work, const lines_block *block,
                      int64_t number, const int panel, const int count, const int first, const int every)
{
    const uint8_t *parts = work->parts[number & 1][first][panel];
    const int64_t side = is_wide ? AMX_SIDE : work->side;
    const int64_t group = block->step / kind.group_steps;
    const float(*scale)[LANES] = (const float(*)[LANES])work->scale[group % SPAN_STEPS];
    __m512 same = _mm512_setzero_ps();
    if (kind.format == MF_FORMAT_FP8_BLOCK) { /* sixteen rows of a block of fp8 share theirs */
        const mf_matrix *w = work->tile->w;
        same = _mm512_set1_ps(mf_matrix_scale_at(w, mf_matrix_scale_row(w, block->row) + group));
    }
    for (int64_t v = 0; v < side; v++) {
        float *total = work->total[panel] + v * AMX_SIDE;
        __m512 sum = group == 0 ? _mm512_setzero_ps() : _mm512_load_ps(total);
        const __m512i row_of = is_wide ? _mm512_setzero_si512() : _mm512_load_si512(work->row_of[v]);
        UNROLL(4) for (int g = 0; g < count; g++)
        {
            const __m512 value = _mm512_load_ps(parts + g * every * LINES_PANELS * AMX_TILE_BYTES + v * AMX_ROW_BYTES);
            const __m512 factor = kind.format == MF_FORMAT_FP8_BLOCK ? same
                                  : is_wide                          ? _mm512_set1_ps(scale[g][v])
                                            : _mm512_permutexvar_ps(row_of, _mm512_load_ps(scale[g]));
            sum = _mm512_fmadd_ps(factor, value, sum);
        }
        _mm512_store_ps(total, sum);
    }
}

INLINE void lines_scale(const lines_kind kind, const bool is_wide, lines_work *work, const lines_block *block,
                        int64_t number, const int panel)
{
    const int tiles = lines_tiles(kind), groups = kind.group_steps >= tiles ? 1 : tiles / kind.group_steps;
    if (kind.format == MF_FORMAT_FP8_BLOCK) { /* two blocks are a segment */
        if (block->step % kind.group_steps + block->steps == kind.group_steps || block->is_last) {
            lines_add(kind, is_wide, work, block, number, panel, 1, (int)block->steps - 1, 1);
        }
        return;
    }
    const int64_t first = block->step / kind.group_steps;
    if (panel == 0 && first % SPAN_STEPS == 0) {
        const int64_t all = (work->all + kind.group_steps - 1) / kind.group_steps;
        lines_load_scales(work, block->row, first, all - first);
    }
    if (block->steps == tiles) {
        lines_add(kind, is_wide, work, block, number, panel, groups, kind.group_steps - 1, kind.group_steps);
        return;
    }
    lines_block part = *block; /* the end of a row, segment by segment */
    for (int64_t i = 0; i < block->steps; i += kind.group_steps) {
        const int64_t left = block->steps - i < kind.group_steps ? block->steps - i : kind.group_steps;
        part.step = block->step + i;
        lines_add(kind, is_wide, work, &part, number, panel, 1, (int)(i + left - 1), 1);
    }
}

/* Sums of sixteen rows to where the caller wants them. */
INLINE void lines_finish(const lines_kind kind, const bool is_wide, const lines_work *work, int64_t row, int64_t number,
                         const int panel)
{
    const mf_cpu_tile *tile = work->tile;
    const mf_matrix *w = tile->w;
    const uint8_t *sums = kind.group_steps ? (const uint8_t *)work->total[panel] : work->parts[number & 1][0][panel];
    const int64_t side = is_wide ? AMX_SIDE : work->side;
    const bool has_scales = kind.format == MF_FORMAT_FP8_CHANNEL || kind.format == MF_FORMAT_INT8_CHANNEL;
    __m512 scale = _mm512_set1_ps(1.0f);
    if (has_scales && w->scale_dtype == MF_F32 && w->scale_row_stride == 1) {
        scale = _mm512_loadu_ps((const float *)w->scale + row);
    } else if (has_scales) {
        float of_row[AMX_SIDE];
        for (int64_t r = 0; r < AMX_SIDE; r++) {
            of_row[r] = mf_matrix_scale_at(w, mf_matrix_scale_row(w, row + r));
        }
        scale = _mm512_loadu_ps(of_row);
    }
    float *out = tile->out + panel * AMX_SIDE * tile->out_stride + row - tile->first_row;
    if (side == 1) {
        const __m512 v = _mm512_load_ps(sums);
        _mm512_storeu_ps(out, has_scales ? _mm512_mul_ps(v, scale) : v);
        return;
    }
    _Alignas(64) float wide[AMX_SIDE][AMX_SIDE];
    if (side < AMX_SIDE) {
        const __mmask16 mask = mask16(side);
        for (int64_t r = 0; r < AMX_SIDE; r++) {
            _mm512_store_ps(wide[r], _mm512_maskz_loadu_ps(mask, sums + r * 4 * side));
        }
        sums = (const uint8_t *)wide;
    }
    for (int64_t t = 0; t < side; t += 4) {
        __m512 turned[4];
        amx_turn4((const float *)(const void *)sums + t, turned);
        for (int64_t i = 0; i < 4 && t + i < side; i++) {
            const __m512 v = has_scales ? _mm512_mul_ps(turned[i], scale) : turned[i];
            _mm512_storeu_ps(out + (t + i) * tile->out_stride, v);
        }
    }
}

/* What block number `number` left goes on its way. */
INLINE void lines_settle(const lines_kind kind, const bool is_wide, lines_work *work, const lines_block *block,
                         int64_t number)
{
    UNROLL(2) for (int t = 0; t < kind.panels; t++)
    {
        const bool is_full = is_wide || t + 1 < kind.panels;
        if (kind.group_steps) {
            lines_scale(kind, is_full, work, block, number, t);
        }
        if (block->is_last) {
            lines_finish(kind, is_full, work, block->row, number, t);
        }
    }
}

/* ---- all blocks ---- */

INLINE void lines_blocks(const lines_kind kind, const bool is_wide, lines_work *work)
{
    const int tiles = lines_tiles(kind);
    const __m512i table = lines_table(kind);
    /* the block at hand, the one after it, those before it; blocks settle when their sums have been stored */
    lines_block block, feed = { .row = work->tile->first_row - AMX_SIDE, .is_last = true };
    lines_block before = { .row = -1 }, two_before = { .row = -1 };
    few_ahead next = ahead_at(work->tile, work->tile->first_row, SHORT_ROWS, (work->all + 3) / 4);
    int64_t number = 0;
    feed = lines_after(kind, work, feed);
    lines_decode_block(kind, work, &feed, 0, table);
    for (; feed.row >= 0; number++) {
        block = feed;
        feed = lines_after(kind, work, block);
        if (block.step == 0) {
            next = ahead_at(work->tile, block.row, SHORT_ROWS, (work->all + 3) / 4);
        }
        if (mf_format_is_4bit(kind.format)) {
            ask_scales(&next);
        }
        if (block.steps == tiles && feed.steps == tiles && feed.row >= 0) {
            lines_mixed(kind, work, &block, &feed, number, table, &next);
        } else {
            if (feed.row >= 0) {
                lines_decode_block(kind, work, &feed, number + 1, table);
            }
            ask_codes(true, &next, AMX_SIDE / STREAMS);
            lines_multiply_block(kind, work, &block, number);
        }
        const lines_block *ready = lines_are_late(kind) ? &two_before : &before;
        if (ready->row >= 0) {
            lines_settle(kind, is_wide, work, ready, lines_are_late(kind) ? number - 2 : number - 1);
        }
        two_before = before;
        before = block;
    }
    if (lines_are_late(kind)) {
        if (two_before.row >= 0) {
            lines_settle(kind, is_wide, work, &two_before, number - 2);
        }
        lines_store_late(work, number - 1);
    }
    lines_settle(kind, is_wide, work, &before, number - 1);
}

/* How many rows, in sixteens, it has multiplied: what it leaves is left to other loops. */
INLINE int64_t lines_product(const lines_kind kind, const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    if (tile->num_rows < AMX_SIDE || w->k % STEP != 0 ||
        (kind.format == MF_FORMAT_FP8_BLOCK && tile->first_row % AMX_SIDE != 0)) {
        return 0;
    }
    lines_work work;
    work.tile = tile;
    work.side = tile->num_tokens - (kind.panels - 1) * MF_CPU_PANEL;
    work.stride = w->row_stride * mf_format_bits(kind.format) / 8;
    work.end = tile->first_row + tile->num_rows;
    work.all = w->k / STEP;
    for (int v = 0; kind.group_steps && v < work.side; v++) { /* side < 2^7: exact */
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(v * AMX_SIDE));
        const __m512i inverse = _mm512_set1_epi32(65536 / (int)work.side + 1);
        _mm512_store_si512(work.row_of[v], _mm512_srli_epi32(_mm512_mullo_epi32(at, inverse), 16));
    }
    amx_config config = amx_config_of((int)work.side, STEP / 2);
    if (kind.panels == 2) { /* the first panel's tiles are full */
        config.row_bytes[0] = config.row_bytes[2] = config.row_bytes[6] = AMX_ROW_BYTES;
    }
    AMX_CONFIGURE(&config);
    if (work.side == AMX_SIDE) {
        lines_blocks(kind, true, &work);
    } else {
        lines_blocks(kind, false, &work);
    }
    AMX_RELEASE();
    return tile->num_rows / AMX_SIDE * AMX_SIDE;
}

#endif
