/* amx_product.h - how a product walks its matrix in tiles, for bf16 and for int8; the files that include it decode.
 *
 * 32 rows at a time, their columns in chunks.  A chunk's codes become tiles of 16 rows in a buffer in L1, and then the
 * chunk before it is multiplied: no tile is loaded from a store that is still on its way.  Rows that are tiles as they
 * lie (bf16, and int8 times int8) are loaded from where they are, every two panels anew: from the second-level cache
 * that is faster than a copy.  Every pair of 16 rows by every pair of 16 tokens is four sums in tile registers.  The
 * stored rows are the left factor and the panels of tokens the right one as they are, so a tile of sums is [row][token]
 * and is turned round at the end.  amx_lines.h, amx_panels.h and amx_many.h have other loops for most calls, with the
 * same sums.
 *
 * Order of sums for one (row, token): tile products, k ascending, each as the instruction sums inside; where scales are
 * finer than a row, a segment of columns under one scale (at most a chunk) is summed so and enters the f32 total by
 * fma, segments ascending.  Chunks and segments follow from the matrix alone. */
#ifndef MF_KERNELS_CPU_AMX_PRODUCT_H
#define MF_KERNELS_CPU_AMX_PRODUCT_H

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/avx512.h"

enum {
    AMX_ROW_TILES = 2,
    AMX_ROWS = AMX_ROW_TILES * AMX_SIDE,
    AMX_TOKEN_TILES = MF_CPU_MOST_TILE_TOKENS / MF_CPU_PANEL,
    AMX_STEPS = 8,    /* most tiles of a chunk along k: 16 KiB for 32 rows */
    AMX_SEGMENTS = 8, /* scales of a row in a chunk */
    AMX_STREAMS = 4,  /* of addresses in which memory is asked for rows that are tiles as they lie */
    AMX_AHEAD = 256   /* bytes of a row that memory is asked for before they are decoded */
};

/* What is known when the compiler unfolds a product. */
typedef struct amx_kind {
    mf_format format;
    bool int8;   /* int8 times int8 to i32, not bf16 times bf16 to f32 */
    bool scaled; /* scales finer than a row */
    bool direct; /* stored rows are tiles as they lie */
    int width;   /* columns of a tile: 32 of bf16, 32 or 64 of int8 */
    int steps;   /* most tiles of a chunk along k */
} amx_kind;

/* Columns [first, first + count) of the matrix. */
typedef struct amx_chunk {
    int64_t first, count;
    int64_t base, steps;           /* the first tile along k, and how many */
    int64_t segments, group_steps; /* of each segment but the last, which ends with the chunk */
} amx_chunk;

/* Codes of a row from column `first` on, at p. */
typedef struct amx_codes {
    const mf_matrix *w;
    const uint8_t *p;
    int64_t row, first;
} amx_codes;

/* `count` codes to 64 bytes of a tile every AMX_TILE_BYTES, zero behind them. */
typedef void (*amx_decode_fn)(const amx_codes *codes, int64_t count, uint8_t *out);

/* A chunk of a block of rows on its way into a buffer. */
typedef struct amx_feed {
    const mf_matrix *w;
    amx_chunk chunk;
    int64_t first_row, num_rows;
    int64_t number;        /* of the chunk, which chooses its buffer */
    const uint8_t *p;      /* codes of the first row */
    int64_t stride, ahead; /* bytes from row to row; from a row's codes to those that memory is asked for */
    const uint8_t *scale;  /* the first row's, of the chunk's first segment */
    int64_t scale_stride;  /* bytes */
} amx_feed;

/* Products of a pair of tiles that have yet to go through their scales. */
typedef struct amx_pending {
    amx_chunk chunk;
    int64_t rows, panel, panels; /* rows 0: none */
    int64_t chunk_number;
} amx_pending;

typedef struct amx_work {
    _Alignas(64) uint8_t left[2][AMX_ROW_TILES][AMX_STEPS][AMX_TILE_BYTES];
    _Alignas(64) uint8_t sums[AMX_TOKEN_TILES][AMX_ROW_TILES][AMX_TILE_BYTES]; /* f32, or i32 of int8 without scales */
    _Alignas(64) uint8_t parts[AMX_SEGMENTS][4][AMX_TILE_BYTES];               /* a segment's sums, before its scale */
    _Alignas(64) uint8_t spare[AMX_TILE_BYTES];
    _Alignas(64) float scale[4][AMX_ROW_TILES][AMX_SEGMENTS][AMX_SIDE];
    _Alignas(64) int32_t zero[4][AMX_ROW_TILES][AMX_SEGMENTS][AMX_SIDE];
    _Alignas(64) int32_t row_of[AMX_SIDE][AMX_SIDE], token_of[AMX_SIDE][AMX_SIDE]; /* of a lane of a tile of sums */
    const mf_cpu_tile *tile;
    int64_t num_panels, columns; /* columns of the padded panel */
    int64_t side;                /* tokens of a tile of sums: 16, or fewer where they are all */
    /* Behind several panels, one of fewer tokens has rows shorter than a tile's, which then reads on into the next row:
     * sums nobody looks at.  In the last step that would pass the panel's end, so the step is read from `spare`. */
    int64_t spare_offset;
    int64_t first_row, num_rows; /* of the block at hand */
    int64_t number;              /* of the chunk at hand */
    amx_feed feed;               /* the chunk after it */
    amx_pending pending;
} amx_work;

/* Decodes the feed's rows; each format has its own. */
typedef void (*amx_feed_fn)(amx_work *work);

static inline int64_t amx_tokens(const amx_work *work, int64_t panel)
{
    const int64_t left = work->tile->num_tokens - panel * MF_CPU_PANEL;
    return left < MF_CPU_PANEL ? left : MF_CPU_PANEL;
}

INLINE void amx_begin(const amx_kind kind, amx_work *work, const mf_cpu_tile *tile)
{
    work->tile = tile;
    work->num_panels = (tile->num_tokens + MF_CPU_PANEL - 1) / MF_CPU_PANEL;
    work->columns = mf_cpu_round_columns(tile->w->k);
    work->side = work->num_panels == 1 ? tile->num_tokens : AMX_SIDE;
    work->number = 0;
    work->pending.rows = 0;
    work->spare_offset = -1;
    const int64_t last = work->num_panels - 1;
    const int64_t row_bytes = 4 * amx_tokens(work, last);
    if (row_bytes < 4 * work->side) {
        const int depth = kind.int8 ? kind.width / 4 : kind.width / 2;
        const int64_t words = kind.int8 ? work->columns / 4 : work->columns / 2;
        work->spare_offset = (words - depth) * row_bytes;
        const uint8_t *from = (const uint8_t *)tile->x[last] + work->spare_offset;
        memset(work->spare, 0, sizeof work->spare);
        for (int i = 0; i < depth; i++) {
            memcpy(work->spare + i * AMX_ROW_BYTES, from + i * row_bytes, (size_t)row_bytes);
        }
    }
    for (int v = 0; kind.scaled && v < work->side; v++) { /* side < 2^7: exact */
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(v * AMX_SIDE));
        const __m512i inverse = _mm512_set1_epi32(65536 / (int)work->side + 1);
        const __m512i row = _mm512_srli_epi32(_mm512_mullo_epi32(at, inverse), 16);
        const __m512i token = _mm512_sub_epi32(at, _mm512_mullo_epi32(row, _mm512_set1_epi32((int)work->side)));
        _mm512_store_si512(work->row_of[v], row);
        _mm512_store_si512(work->token_of[v], token);
    }
}

/* ---- tile products ---- */

typedef struct amx_right {
    const uint8_t *data;
    int64_t stride;
} amx_right;

INLINE amx_right amx_right_at(const amx_kind kind, const amx_work *work, int64_t panel, int64_t step)
{
    const int64_t row_bytes = 4 * amx_tokens(work, panel);
    const int64_t offset = step * (kind.int8 ? kind.width / 4 : kind.width / 2) * row_bytes;
    if (panel == work->num_panels - 1 && offset == work->spare_offset) {
        return (amx_right){ work->spare, AMX_ROW_BYTES };
    }
    return (amx_right){ (const uint8_t *)work->tile->x[panel] + offset, row_bytes };
}

#define AMX_PRODUCT(kind, sums, left, right)                                                                           \
    do {                                                                                                               \
        if ((kind).int8) {                                                                                             \
            AMX_INT8(sums, left, right);                                                                               \
        } else {                                                                                                       \
            AMX_BF16(sums, left, right);                                                                               \
        }                                                                                                              \
    } while (0)

/* Tiles 2 * r + t of sums += rows of tile r times tokens of panel t of the pair, steps [first, end) of the chunk, which
 * starts at step `base` of the matrix.  One panel may have its sums in the other's tiles. */
INLINE void amx_multiply(const amx_kind kind, const int rows, const int panels, const bool other_tiles, amx_work *work,
                         int64_t panel, int64_t base, int64_t first, int64_t end)
{
    const uint8_t *left0 = work->left[work->number & 1][0][first];
    const uint8_t *left1 = work->left[work->number & 1][1][first];
    for (int64_t s = first; s < end; s++, left0 += AMX_TILE_BYTES, left1 += AMX_TILE_BYTES) {
        const amx_right right = amx_right_at(kind, work, panel, base + s);
        if (panels == 1 && other_tiles) {
            AMX_LOAD(7, right.data, right.stride);
            AMX_LOAD(4, left0, AMX_ROW_BYTES);
            AMX_PRODUCT(kind, 1, 4, 7);
            if (rows == 2) {
                AMX_LOAD(5, left1, AMX_ROW_BYTES);
                AMX_PRODUCT(kind, 3, 5, 7);
            }
            continue;
        }
        AMX_LOAD(6, right.data, right.stride);
        AMX_LOAD(4, left0, AMX_ROW_BYTES);
        AMX_PRODUCT(kind, 0, 4, 6);
        if (panels == 2) {
            const amx_right other = amx_right_at(kind, work, panel + 1, base + s);
            AMX_LOAD(7, other.data, other.stride);
            AMX_PRODUCT(kind, 1, 4, 7);
        }
        if (rows == 2) {
            AMX_LOAD(5, left1, AMX_ROW_BYTES);
            AMX_PRODUCT(kind, 2, 5, 6);
            if (panels == 2) {
                AMX_PRODUCT(kind, 3, 5, 7);
            }
        }
    }
}

INLINE void amx_zero_sums(const int rows, const int panels, const bool other_tiles)
{
    const bool first = panels == 2 || !other_tiles, second = panels == 2 || other_tiles;
    if (first) {
        AMX_ZERO(0);
    }
    if (second) {
        AMX_ZERO(1);
    }
    if (rows == 2 && first) {
        AMX_ZERO(2);
    }
    if (rows == 2 && second) {
        AMX_ZERO(3);
    }
}

INLINE void amx_load_sums(const int rows, const int panels, const amx_work *work, int64_t panel)
{
    const int64_t stride = 4 * work->side;
    AMX_LOAD(0, work->sums[panel][0], stride);
    if (panels == 2) {
        AMX_LOAD(1, work->sums[panel + 1][0], stride);
    }
    if (rows == 2) {
        AMX_LOAD(2, work->sums[panel][1], stride);
        if (panels == 2) {
            AMX_LOAD(3, work->sums[panel + 1][1], stride);
        }
    }
}

INLINE void amx_store_sums(const int rows, const int panels, int64_t stride, uint8_t *t0, uint8_t *t1, uint8_t *t2,
                           uint8_t *t3)
{
    AMX_STORE(0, t0, stride);
    if (panels == 2) {
        AMX_STORE(1, t1, stride);
    }
    if (rows == 2) {
        AMX_STORE(2, t2, stride);
        if (panels == 2) {
            AMX_STORE(3, t3, stride);
        }
    }
}

INLINE void amx_keep_sums(const int rows, const int panels, amx_work *work, int64_t panel)
{
    const int64_t other = panel + panels - 1;
    amx_store_sums(rows, panels, 4 * work->side, work->sums[panel][0], work->sums[other][0], work->sums[panel][1],
                   work->sums[other][1]);
}

/* One scale per row or none: sums go on from chunk to chunk, in the tiles where nothing else needs them. */
INLINE bool amx_sums_stay(const amx_work *work)
{
    return work->num_panels <= 2;
}

INLINE void amx_resume_sums(const int rows, const int panels, const amx_work *work, int64_t panel,
                            const amx_chunk *chunk)
{
    if (chunk->base == 0) {
        amx_zero_sums(rows, panels, false);
    } else if (!amx_sums_stay(work)) {
        amx_load_sums(rows, panels, work, panel);
    }
}

INLINE void amx_leave_sums(const int rows, const int panels, amx_work *work, int64_t panel, const amx_chunk *chunk)
{
    if (!amx_sums_stay(work) || chunk->first + chunk->count == work->tile->w->k) {
        amx_keep_sums(rows, panels, work, panel);
    }
}

INLINE void amx_pair_plain(const amx_kind kind, const int rows, const int panels, amx_work *work, int64_t panel,
                           const amx_chunk *chunk)
{
    amx_resume_sums(rows, panels, work, panel, chunk);
    amx_multiply(kind, rows, panels, false, work, panel, chunk->base, 0, chunk->steps);
    amx_leave_sums(rows, panels, work, panel, chunk);
}

/* ---- segments with scales of their own ---- */

/* The tokens' sums of codes in the chunk's segment g, which a zero point multiplies. */
INLINE __m512i amx_code_sum(const amx_kind kind, const amx_work *work, const amx_chunk *chunk, int64_t g, int64_t panel)
{
    const int64_t tokens = amx_tokens(work, panel), columns = chunk->group_steps * kind.width;
    const uint8_t *sums = (const uint8_t *)work->tile->x[panel] + work->columns * tokens;
    const int64_t first = chunk->first + g * columns, end = chunk->first + chunk->count;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = first; k < first + columns && k < end; k += 32) {
        sum = _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(mask16(tokens), sums + k / 32 * tokens * 4));
    }
    return sum;
}

/* total = fma(scale, segment's sum, total) for one tile, segments ascending.  A vector is a row of 16 tokens (is_wide),
 * or some rows of fewer. */
INLINE void amx_add_tile(const amx_kind kind, const int segments, const bool is_wide, const bool has_zeros,
                         amx_work *work, const amx_pending *p, const __m512i *x_sum, int64_t row_tile, int64_t panel,
                         int part)
{
    float *total = (float *)(void *)work->sums[panel][row_tile];
    const bool is_first = p->chunk.base == 0;
    const float(*scale)[AMX_SIDE] = (const float(*)[AMX_SIDE])work->scale[p->chunk_number & 3][row_tile];
    const int32_t(*zero)[AMX_SIDE] = (const int32_t(*)[AMX_SIDE])work->zero[p->chunk_number & 3][row_tile];
    const int64_t side = is_wide ? AMX_SIDE : work->side;
    for (int64_t v = 0; v < side; v++, total += AMX_SIDE) {
        __m512 sum = is_first ? _mm512_setzero_ps() : _mm512_load_ps(total);
        const __m512i row_of = is_wide ? _mm512_setzero_si512() : _mm512_load_si512(work->row_of[v]);
        UNROLL(8) for (int g = 0; g < segments; g++)
        {
            __m512 value = _mm512_load_ps(work->parts[g][part] + v * AMX_ROW_BYTES);
            if (kind.int8) {
                __m512i dot = _mm512_castps_si512(value);
                if (has_zeros && is_wide) {
                    dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(_mm512_set1_epi32(zero[g][v]), x_sum[g]));
                } else if (has_zeros) {
                    const __m512i zeros = _mm512_permutexvar_epi32(row_of, _mm512_load_si512(zero[g]));
                    const __m512i of = _mm512_permutexvar_epi32(_mm512_load_si512(work->token_of[v]), x_sum[g]);
                    dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(zeros, of));
                }
                value = _mm512_cvtepi32_ps(dot);
            }
            const __m512 factor =
                is_wide ? _mm512_set1_ps(scale[g][v]) : _mm512_permutexvar_ps(row_of, _mm512_load_ps(scale[g]));
            sum = _mm512_fmadd_ps(factor, value, sum);
        }
        _mm512_store_ps(total, sum);
    }
}

INLINE void amx_add_segments(const amx_kind kind, const int segments, const bool is_wide, const bool has_zeros,
                             amx_work *work)
{
    const amx_pending *p = &work->pending;
    __m512i x_sum[2][AMX_SEGMENTS];
    for (int64_t t = 0; has_zeros && t < p->panels; t++) {
        for (int64_t g = 0; g < p->chunk.segments; g++) {
            x_sum[t][g] = amx_code_sum(kind, work, &p->chunk, g, p->panel + t);
        }
    }
    for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t t = 0; t < p->panels; t++) {
            amx_add_tile(kind, segments, is_wide, has_zeros, work, p, x_sum[t], r, p->panel + t, (int)(2 * r + t));
        }
    }
}

INLINE void amx_add_pending(const amx_kind kind, const bool is_wide, const bool has_zeros, amx_work *work)
{
    switch (work->pending.chunk.segments) {
    case 1:
        amx_add_segments(kind, 1, is_wide, has_zeros, work);
        break;
    case 2:
        amx_add_segments(kind, 2, is_wide, has_zeros, work);
        break;
    case 8:
        amx_add_segments(kind, 8, is_wide, has_zeros, work);
        break;
    default:
        amx_add_segments(kind, (int)work->pending.chunk.segments, is_wide, has_zeros, work);
        break;
    }
}

/* What was multiplied goes through its scales into the totals. */
INLINE void amx_flush(const amx_kind kind, amx_work *work)
{
    if (!kind.scaled || work->pending.rows == 0) {
        return;
    }
    const bool has_zeros = kind.int8 && work->tile->w->zero;
    if (has_zeros && work->side == AMX_SIDE) {
        amx_add_pending(kind, true, true, work);
    } else if (has_zeros) {
        amx_add_pending(kind, false, true, work);
    } else if (work->side == AMX_SIDE) {
        amx_add_pending(kind, true, false, work);
    } else {
        amx_add_pending(kind, false, false, work);
    }
    work->pending.rows = 0;
}

/* The pair's parts wait until the next chunk is decoded, where there is one pair: vector loads wait until a tile's
 * store has left for L1. */
INLINE void amx_pair_scaled(const amx_kind kind, const int rows, const int panels, amx_work *work, int64_t panel,
                            const amx_chunk *chunk)
{
    amx_flush(kind, work);
    for (int64_t g = 0; g < chunk->segments; g++) {
        const int64_t first = g * chunk->group_steps;
        const int64_t end = g + 1 == chunk->segments ? chunk->steps : first + chunk->group_steps;
        uint8_t(*parts)[AMX_TILE_BYTES] = work->parts[g];
        if (panels == 1 && g % 2 == 1) { /* needs not wait until the sums before it are stored */
            amx_zero_sums(rows, 1, true);
            amx_multiply(kind, rows, 1, true, work, panel, chunk->base, first, end);
            AMX_STORE(1, parts[0], 4 * work->side);
            if (rows == 2) {
                AMX_STORE(3, parts[2], 4 * work->side);
            }
        } else {
            amx_zero_sums(rows, panels, false);
            amx_multiply(kind, rows, panels, false, work, panel, chunk->base, first, end);
            amx_store_sums(rows, panels, 4 * work->side, parts[0], parts[1], parts[2], parts[3]);
        }
    }
    work->pending =
        (amx_pending){ .chunk = *chunk, .rows = rows, .panel = panel, .panels = panels, .chunk_number = work->number };
}

INLINE void amx_pair_of(const amx_kind kind, const int rows, const int panels, amx_work *work, int64_t panel,
                        const amx_chunk *chunk)
{
    if (kind.scaled) {
        amx_pair_scaled(kind, rows, panels, work, panel, chunk);
    } else {
        amx_pair_plain(kind, rows, panels, work, panel, chunk);
    }
}

/* f with constants for one or two tiles of rows and one or two panels. */
#define AMX_BY_SIZE(f, kind, rows, panels, ...)                                                                        \
    do {                                                                                                               \
        if ((rows) == 2 && (panels) == 2) {                                                                            \
            f(kind, 2, 2, __VA_ARGS__);                                                                                \
        } else if ((rows) == 2) {                                                                                      \
            f(kind, 2, 1, __VA_ARGS__);                                                                                \
        } else if ((panels) == 2) {                                                                                    \
            f(kind, 1, 2, __VA_ARGS__);                                                                                \
        } else {                                                                                                       \
            f(kind, 1, 1, __VA_ARGS__);                                                                                \
        }                                                                                                              \
    } while (0)

/* ---- blocks of rows ---- */

INLINE amx_chunk amx_chunk_at(const amx_kind kind, const mf_matrix *w, int64_t first)
{
    const int64_t most = kind.steps * kind.width;
    amx_chunk chunk = { .first = first,
                        .count = w->k - first < most ? w->k - first : most,
                        .base = first / kind.width };
    int64_t group = kind.scaled ? mf_matrix_group(w) : 0;
    if (kind.scaled && group < most && group < w->k) {
        const int64_t whole = most / group * group;
        chunk.count = w->k - first < whole ? w->k - first : whole;
    } else if (kind.scaled) {
        const int64_t left = group - first % group;
        chunk.count = left < chunk.count ? left : chunk.count;
        group = most; /* one segment */
    }
    chunk.steps = (chunk.count + kind.width - 1) / kind.width;
    chunk.group_steps = kind.scaled ? group / kind.width : chunk.steps;
    chunk.segments = (chunk.steps + chunk.group_steps - 1) / chunk.group_steps;
    return chunk;
}

/* n <= 4 stored scales at p, as f32; zeros behind them. */
INLINE __m128 amx_scales(mf_dtype dtype, const uint8_t *p, int64_t n)
{
    const __mmask8 mask = (__mmask8)((1u << n) - 1);
    __m128i v;
    switch (dtype) {
    case MF_F8_E8M0: {
        v = _mm_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p));
        const __mmask8 nan = _mm_cmpeq_epi32_mask(v, _mm_set1_epi32(255));
        const __mmask8 least = _mm_mask_testn_epi32_mask(mask, v, v);
        v = _mm_mask_mov_epi32(_mm_slli_epi32(v, 23), nan, _mm_set1_epi32(0x7fc00000));
        return _mm_castsi128_ps(_mm_mask_mov_epi32(v, least, _mm_set1_epi32(0x00400000)));
    }
    case MF_BF16:
        v = _mm_maskz_loadu_epi16(mask, p);
        return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(v), 16));
    case MF_F16:
        return _mm_cvtph_ps(_mm_maskz_loadu_epi16(mask, p));
    default:
        return _mm_maskz_loadu_ps(mask, p);
    }
}

/* out[t][r] = in[r][t] for four tokens from `in` on: a lane takes rows 4l to 4l + 3. */
INLINE void amx_turn4(const float *in, __m512 out[4])
{
    __m512 q[4];
    UNROLL(4) for (int j = 0; j < 4; j++)
    {
        q[j] = _mm512_castps128_ps512(_mm_load_ps(in + j * AMX_SIDE));
        q[j] = _mm512_insertf32x4(q[j], _mm_load_ps(in + (j + 4) * AMX_SIDE), 1);
        q[j] = _mm512_insertf32x4(q[j], _mm_load_ps(in + (j + 8) * AMX_SIDE), 2);
        q[j] = _mm512_insertf32x4(q[j], _mm_load_ps(in + (j + 12) * AMX_SIDE), 3);
    }
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(q[0], q[1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(q[2], q[3]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(q[0], q[1]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(q[2], q[3]));
    out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
}

/* Row r of a tile to lane r of a vector of each segment. */
INLINE void amx_load_scales_of(const amx_kind kind, const mf_dtype dtype, amx_work *work, int64_t tile)
{
    const amx_feed *feed = &work->feed;
    const int64_t first = tile * AMX_SIDE;
    const int64_t rows = feed->num_rows - first < AMX_SIDE ? feed->num_rows - first : AMX_SIDE;
    const int64_t segments = feed->chunk.segments;
    float(*out)[AMX_SIDE] = work->scale[feed->number & 3][tile];
    if (kind.format == MF_FORMAT_FP8_BLOCK) { /* rows of a block share theirs */
        for (int64_t r = 0; r < rows;) {
            const int64_t row = feed->first_row + first + r;
            const int64_t left = MF_FP8_BLOCK_SIZE - row % MF_FP8_BLOCK_SIZE;
            const int64_t count = left < rows - r ? left : rows - r;
            const uint8_t *p =
                feed->scale + (row / MF_FP8_BLOCK_SIZE - feed->first_row / MF_FP8_BLOCK_SIZE) * feed->scale_stride;
            for (int64_t g = 0; g < segments; g++) {
                const __m128 one = amx_scales(dtype, p + g * (int64_t)mf_dtype_size(dtype), 1);
                _mm512_mask_storeu_ps(out[g] + r, mask16(count), _mm512_broadcastss_ps(one));
            }
            r += count;
        }
        return;
    }
    _Alignas(64) float scale[AMX_SIDE][AMX_SIDE];               /* eight of each row are used */
    if (segments == 8 && dtype == MF_F16 && rows == AMX_SIDE) { /* int4 in groups of 32, as it mostly comes */
        const uint8_t *p = feed->scale + first * feed->scale_stride;
        for (int64_t r = 0; r < AMX_SIDE; r++, p += feed->scale_stride) {
            _mm256_store_ps(scale[r], _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)));
            __builtin_prefetch(p + AMX_ROWS * feed->scale_stride, 0, 3);
        }
        UNROLL(2) for (int64_t g = 0; g < 8; g += 4)
        {
            __m512 turned[4];
            amx_turn4(scale[0] + g, turned);
            UNROLL(4) for (int i = 0; i < 4; i++)
            {
                _mm512_store_ps(out[g + i], turned[i]);
            }
        }
    }
    for (int64_t g = segments == 8 && dtype == MF_F16 && rows == AMX_SIDE ? segments : 0; g < segments; g += 4) {
        const uint8_t *p = feed->scale + first * feed->scale_stride + g * (int64_t)mf_dtype_size(dtype);
        for (int64_t r = 0; r < AMX_SIDE; r++, p += feed->scale_stride) {
            _mm_store_ps(scale[r],
                         r < rows ? amx_scales(dtype, p, segments - g < 4 ? segments - g : 4) : _mm_setzero_ps());
            __builtin_prefetch(p + AMX_ROWS * feed->scale_stride, 0, 3);
        }
        __m512 turned[4];
        amx_turn4(scale[0], turned);
        UNROLL(4) for (int i = 0; i < 4; i++)
        {
            _mm512_store_ps(out[g + i], turned[i]);
        }
    }
    if (kind.int8 && feed->w->zero) {
        for (int64_t r = 0; r < rows; r++) {
            const uint8_t *p = feed->w->zero + mf_matrix_scale_row(feed->w, feed->first_row + first + r) +
                               feed->chunk.first / mf_matrix_group(feed->w);
            for (int64_t g = 0; g < segments; g++) {
                work->zero[feed->number & 3][tile][g][r] = p[g];
            }
        }
    }
}

INLINE void amx_load_scales(const amx_kind kind, amx_work *work, int64_t tile)
{
    switch (work->feed.w->scale_dtype) {
    case MF_F8_E8M0:
        amx_load_scales_of(kind, MF_F8_E8M0, work, tile);
        break;
    case MF_BF16:
        amx_load_scales_of(kind, MF_BF16, work, tile);
        break;
    case MF_F16:
        amx_load_scales_of(kind, MF_F16, work, tile);
        break;
    default:
        amx_load_scales_of(kind, MF_F32, work, tile);
        break;
    }
}

INLINE void amx_feed_rows(const amx_kind kind, amx_decode_fn decode, amx_work *work)
{
    enum { LINE = 64 };
    amx_feed *feed = &work->feed;
    const int64_t end = feed->num_rows, ahead = feed->ahead, stride = feed->stride;
    const int64_t whole = kind.steps * kind.width;
    uint8_t *left = work->left[feed->number & 1][0][0];
    amx_codes codes = { .w = feed->w, .p = feed->p, .row = feed->first_row, .first = feed->chunk.first };
    for (uint64_t r = 0; r < (uint64_t)end; r++, codes.p += stride, codes.row++) {
        uint8_t *to = left + r / AMX_SIDE * (AMX_STEPS * AMX_TILE_BYTES) + r % AMX_SIDE * AMX_ROW_BYTES;
        if (feed->chunk.count == whole) { /* unfolds */
            for (int64_t i = 0; i < whole * mf_format_bits(kind.format) / 8; i += LINE) {
                __builtin_prefetch(codes.p + ahead + i, 0, 2); /* into L1 is 7 % slower */
            }
            decode(&codes, whole, to);
        } else {
            decode(&codes, feed->chunk.count, to);
        }
    }
    for (int64_t tile = 0; kind.scaled && tile * AMX_SIDE < end; tile++) {
        amx_load_scales(kind, work, tile);
    }
}

/* The chunk from column `first` of a block's rows on is the next to be decoded. */
INLINE void amx_begin_feed(const amx_kind kind, amx_work *work, int64_t first_row, int64_t first)
{
    const mf_matrix *w = work->tile->w;
    const int64_t left = work->tile->first_row + work->tile->num_rows - first_row;
    amx_feed *feed = &work->feed;
    feed->w = w;
    feed->number++;
    feed->first_row = first_row;
    feed->num_rows = left < AMX_ROWS ? left < 0 ? 0 : left : AMX_ROWS;
    if (feed->num_rows == 0) {
        return;
    }
    const int64_t bits = mf_format_bits(kind.format);
    const int64_t at = first * bits / 8, row_bytes = w->k * bits / 8;
    feed->chunk = amx_chunk_at(kind, w, first);
    feed->stride = w->row_stride * bits / 8;
    feed->p = mf_matrix_row(w, first_row) + at;
    /* past its end, the row that takes its place in the next block */
    feed->ahead = at + AMX_AHEAD < row_bytes ? AMX_AHEAD
                  : left > AMX_ROWS          ? AMX_AHEAD - row_bytes + AMX_ROWS * feed->stride
                                             : 0;
    if (kind.scaled) {
        const int64_t size = (int64_t)mf_dtype_size(w->scale_dtype);
        feed->scale =
            (const uint8_t *)w->scale + (mf_matrix_scale_row(w, first_row) + first / mf_matrix_group(w)) * size;
        feed->scale_stride = w->scale_row_stride * size;
    }
    for (int64_t r = feed->num_rows; r % AMX_SIDE != 0; r++) { /* rows that fill a tile up */
        for (int64_t s = 0; s < feed->chunk.steps; s++) {
            memset(work->left[feed->number & 1][r / AMX_SIDE][s] + r % AMX_SIDE * AMX_ROW_BYTES, 0, AMX_ROW_BYTES);
        }
    }
}

/* The block's sums with what is left to multiply, to where the caller wants them. */
INLINE void amx_finish(const amx_kind kind, const amx_work *work)
{
    const mf_cpu_tile *tile = work->tile;
    const mf_matrix *w = tile->w;
    const bool row_scales = !kind.scaled && w->format >= MF_FORMAT_FP8_BLOCK && w->format != MF_FORMAT_MXFP4;
    for (int64_t first = 0; first < work->num_rows; first += AMX_SIDE) {
        const __mmask16 mask = mask16(work->num_rows - first);
        float scale[AMX_SIDE];
        for (int64_t r = 0; r < AMX_SIDE; r++) {
            const int64_t row = work->first_row + first + r;
            const bool used = row_scales && first + r < work->num_rows;
            scale[r] = used ? mf_matrix_scale_at(w, mf_matrix_scale_row(w, row)) : 1.0f;
        }
        const __m512 row_scale = _mm512_loadu_ps(scale);
        _Alignas(64) float wide[AMX_SIDE][AMX_SIDE];
        for (int64_t r = 0; work->side < AMX_SIDE && r < AMX_SIDE; r++) {
            const uint8_t *narrow = work->sums[0][first / AMX_SIDE] + r * 4 * work->side;
            _mm512_store_ps(wide[r], _mm512_maskz_loadu_ps(mask16(work->side), narrow));
        }
        for (int64_t t = 0; t < tile->num_tokens; t += 4) {
            const uint8_t *sums =
                work->side < AMX_SIDE ? (const uint8_t *)wide : work->sums[t / AMX_SIDE][first / AMX_SIDE];
            __m512 turned[4];
            amx_turn4((const float *)(const void *)sums + t % AMX_SIDE, turned);
            for (int64_t i = 0; i < 4 && t + i < tile->num_tokens; i++) {
                __m512 v = turned[i];
                if (kind.int8) {
                    v = kind.scaled ? v : _mm512_cvtepi32_ps(_mm512_castps_si512(v));
                    v = _mm512_mul_ps(v, _mm512_set1_ps(tile->x_scale[t + i]));
                }
                v = row_scales ? _mm512_mul_ps(v, row_scale) : v;
                float *to = tile->out + (t + i) * tile->out_stride + work->first_row - tile->first_row + first;
                _mm512_mask_storeu_ps(to, mask, v);
            }
        }
    }
}

/* Whether scales change between tiles only.  A group that ends with the row may end anywhere: the panel is zero from
 * there on. */
INLINE bool amx_groups_fit(const amx_kind kind, const mf_matrix *w)
{
    return !kind.scaled || mf_matrix_group(w) % kind.width == 0 || mf_matrix_group(w) >= w->k;
}

/* Groups that no tile fits, in plain C: columns ascending inside a group, groups ascending. */
static inline void amx_any_group(const amx_kind kind, const mf_cpu_tile *tile)
{
    enum { CHUNK = 128 };
    const mf_matrix *w = tile->w;
    for (int64_t r = 0; r < tile->num_rows; r++) {
        const int64_t row = tile->first_row + r;
        const int64_t scale_row = mf_matrix_scale_row(w, row);
        for (int64_t t = 0; t < tile->num_tokens; t++) {
            const int64_t first_token = t / MF_CPU_PANEL * MF_CPU_PANEL;
            const int64_t left = tile->num_tokens - first_token;
            const int64_t tokens = left < MF_CPU_PANEL ? left : MF_CPU_PANEL;
            const uint8_t *panel = tile->x[t / MF_CPU_PANEL];
            float total = 0.0f;
            for (int64_t g = 0; g * w->group_size < w->k; g++) {
                const int64_t last = (g + 1) * w->group_size;
                const int64_t end = last < w->k ? last : w->k;
                float sum = 0.0f;
                int32_t dot = 0;
                for (int64_t first = g * w->group_size; first < end; first += CHUNK) {
                    float codes[CHUNK];
                    const int64_t count = end - first < CHUNK ? end - first : CHUNK;
                    mf_matrix_decode_codes(w, row, first, count, codes);
                    for (int64_t i = 0; i < count; i++) {
                        const int64_t k = first + i;
                        uint16_t h;
                        if (kind.int8) {
                            dot += (int32_t)codes[i] * (int8_t)panel[(k / 4 * tokens + t - first_token) * 4 + k % 4];
                        } else {
                            memcpy(&h, panel + ((k / 2 * tokens + t - first_token) * 2 + k % 2) * 2, 2);
                            sum += codes[i] * mf_bf16_to_f32(h);
                        }
                    }
                }
                total = fmaf(mf_matrix_scale_at(w, scale_row + g), kind.int8 ? (float)dot : sum, total);
            }
            tile->out[t * tile->out_stride + r] = kind.int8 ? total * tile->x_scale[t] : total;
        }
    }
}

/* Lines that memory is asked for, so many in each step: what comes after the rows at hand.  `span` bytes apart are the
 * starts of AMX_STREAMS streams of addresses, whose pages end at different times; 0: there is one. */
typedef struct amx_ahead {
    const uint8_t *p, *end;
    int64_t span, lines;
} amx_ahead;

INLINE void amx_ask(amx_ahead *ahead)
{
    for (int64_t i = 0; i < ahead->lines && ahead->p < ahead->end; i++, ahead->p += AMX_ROW_BYTES) {
        if (ahead->span == 0) {
            __builtin_prefetch(ahead->p, 0, 2);
            continue;
        }
        UNROLL(4) for (int s = 0; s < AMX_STREAMS; s++)
        {
            __builtin_prefetch(ahead->p + s * ahead->span, 0, 3);
        }
    }
}

/* The block's rows, which are tiles as they lie, times one or two panels, to sums.  What a row holds behind its last
 * whole tile is decoded, that is copied and filled up. */
INLINE void amx_direct_tiles(const amx_kind kind, const int rows, const int panels, amx_decode_fn decode,
                             amx_work *work, int64_t panel, amx_ahead *ahead)
{
    const mf_matrix *w = work->tile->w;
    const int64_t whole = w->k / kind.width;
    const int64_t stride = w->row_stride * mf_format_bits(kind.format) / 8;
    const uint8_t *left0 = mf_matrix_row(w, work->first_row), *left1 = left0 + AMX_SIDE * stride;
    amx_zero_sums(rows, panels, false);
    for (int64_t s = 0; s * kind.width < w->k; s++, left0 += AMX_ROW_BYTES, left1 += AMX_ROW_BYTES) {
        int64_t step = stride;
        if (s == whole) {
            for (int64_t r = 0; r < rows * AMX_SIDE; r++) {
                const amx_codes codes = { .w = w,
                                          .p = mf_matrix_row(w, work->first_row + r) + s * AMX_ROW_BYTES,
                                          .row = work->first_row + r,
                                          .first = s * kind.width };
                decode(&codes, w->k - s * kind.width, work->left[0][r / AMX_SIDE][0] + r % AMX_SIDE * AMX_ROW_BYTES);
            }
            left0 = work->left[0][0][0];
            left1 = work->left[0][1][0];
            step = AMX_ROW_BYTES;
        }
        const amx_right right = amx_right_at(kind, work, panel, s);
        AMX_LOAD(6, right.data, right.stride);
        AMX_LOAD(4, left0, step);
        AMX_PRODUCT(kind, 0, 4, 6);
        if (panels == 2) {
            const amx_right other = amx_right_at(kind, work, panel + 1, s);
            AMX_LOAD(7, other.data, other.stride);
            AMX_PRODUCT(kind, 1, 4, 7);
        }
        if (rows == 2) {
            AMX_LOAD(5, left1, step);
            AMX_PRODUCT(kind, 2, 5, 6);
            if (panels == 2) {
                AMX_PRODUCT(kind, 3, 5, 7);
            }
        }
        amx_ask(ahead);
    }
    amx_keep_sums(rows, panels, work, panel);
}

/* Whole tiles of rows; returns how many rows are done.  The first panels wait for memory: those after them find the
 * block in a cache and ask for the next one. */
INLINE int64_t amx_direct(const amx_kind kind, amx_decode_fn decode, amx_work *work)
{
    const mf_cpu_tile *tile = work->tile;
    const mf_matrix *w = tile->w;
    const int64_t stride = w->row_stride * mf_format_bits(kind.format) / 8;
    const int64_t pairs = (work->num_panels + 1) / 2, steps = (w->k + kind.width - 1) / kind.width;
    int64_t first = 0;
    while (tile->num_rows - first >= AMX_SIDE) {
        const int64_t rows = work->num_panels > 1 && tile->num_rows - first >= 2 * AMX_SIDE ? 2 : 1;
        amx_ahead ahead = { 0 };
        work->first_row = tile->first_row + first;
        work->num_rows = rows * AMX_SIDE;
        first += work->num_rows;
        if (pairs == 1) { /* the sixteen rows that follow */
            ahead.p = first < tile->num_rows ? mf_matrix_row(w, tile->first_row + first)
                      : tile->next           ? mf_matrix_row(tile->next, tile->next_row)
                                             : NULL;
            ahead.span = work->num_rows * stride / AMX_STREAMS;
            ahead.end = ahead.p ? ahead.p + ahead.span : NULL;
        } else {
            const int64_t left = tile->num_rows - first < AMX_ROWS ? tile->num_rows - first : AMX_ROWS;
            ahead.p = left > 0     ? mf_matrix_row(w, tile->first_row + first)
                      : tile->next ? mf_matrix_row(tile->next, tile->next_row)
                                   : NULL;
            ahead.end = left > 0 ? ahead.p + left * stride : ahead.p ? ahead.p + AMX_ROWS * stride : NULL;
        }
        for (int64_t t = 0; t < work->num_panels; t += 2) {
            const int64_t panels = t + 1 < work->num_panels ? 2 : 1;
            ahead.lines = pairs == 1 ? work->num_rows / AMX_STREAMS
                          : t == 0   ? 0
                                     : AMX_ROWS * stride / AMX_ROW_BYTES / ((pairs - 1) * steps) + 1;
            AMX_BY_SIZE(amx_direct_tiles, kind, rows, panels, decode, work, t, &ahead);
        }
        amx_finish(kind, work);
    }
    return first;
}

/* The chunks of the blocks from row `first` of the tile on, each decoded before the one that precedes it is multiplied.
 */
INLINE void amx_blocks(const amx_kind kind, amx_feed_fn feed, amx_work *work, int64_t first)
{
    const mf_cpu_tile *tile = work->tile;
    work->feed.number = -1;
    amx_begin_feed(kind, work, tile->first_row + first, 0);
    feed(work);
    while (work->feed.num_rows > 0) {
        const amx_chunk chunk = work->feed.chunk;
        const bool is_last = chunk.first + chunk.count == tile->w->k;
        work->first_row = work->feed.first_row;
        work->num_rows = work->feed.num_rows;
        work->number = work->feed.number;
        amx_begin_feed(kind, work, is_last ? work->first_row + AMX_ROWS : work->first_row,
                       is_last ? 0 : chunk.first + chunk.count);
        if (work->feed.num_rows > 0) {
            feed(work);
        }
        const int64_t row_tiles = (work->num_rows + AMX_SIDE - 1) / AMX_SIDE;
        for (int64_t t = 0; t < work->num_panels; t += 2) {
            const int64_t panels = t + 1 < work->num_panels ? 2 : 1;
            AMX_BY_SIZE(amx_pair_of, kind, row_tiles, panels, work, t, &chunk);
        }
        if (is_last) {
            amx_flush(kind, work);
            amx_finish(kind, work);
        }
    }
}

INLINE void amx_product(const amx_kind kind, amx_decode_fn decode, amx_feed_fn feed, const mf_cpu_tile *tile)
{
    if (!amx_groups_fit(kind, tile->w)) {
        amx_any_group(kind, tile);
        return;
    }
    amx_work work;
    amx_begin(kind, &work, tile);
    const amx_config config = amx_config_of((int)work.side, kind.int8 ? kind.width / 4 : kind.width / 2);
    AMX_CONFIGURE(&config);
    const int64_t done = kind.direct ? amx_direct(kind, decode, &work) : 0;
    if (done < tile->num_rows) {
        amx_blocks(kind, feed, &work, done);
    }
    AMX_RELEASE();
}

/* ---- which loops ---- */

/* How many of its first rows such a function has multiplied. */
typedef int64_t (*rows_fn)(const mf_cpu_tile *tile);

/* As many rows as `first` takes, the others by `rest`. */
static inline void rest_by_tiles(rows_fn first, mf_cpu_tile_fn rest, mf_cpu_tile tile)
{
    const int64_t done = first(&tile);
    tile.first_row += done;
    tile.num_rows -= done;
    tile.out += done;
    if (tile.num_rows > 0) {
        rest(&tile);
    }
}

/* Of int4 by the size of groups, as far as loops are made for it. */
static inline int64_t by_group(const mf_cpu_tile *tile, rows_fn of_32, rows_fn of_64, rows_fn of_128)
{
    const mf_matrix *w = tile->w;
    if (w->zero || w->scale_dtype == MF_F8_E8M0) {
        return 0;
    }
    switch (w->group_size) {
    case 32:
        return of_32(tile);
    case 64:
        return of_64(tile);
    case 128:
        return of_128(tile);
    default:
        return 0;
    }
}

/* The entry `name` of a kind, with what decodes its rows. */
#define AMX_TILE(name, kind, decode)                                                                                   \
    static __attribute__((noinline)) void name##_feed(amx_work *work)                                                  \
    {                                                                                                                  \
        amx_feed_rows(kind, decode, work);                                                                             \
    }                                                                                                                  \
    static void name(const mf_cpu_tile *tile)                                                                          \
    {                                                                                                                  \
        amx_product(kind, decode, name##_feed, tile);                                                                  \
    }

#endif
