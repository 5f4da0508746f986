/* amx_product.h - how a product walks its matrix in tiles, for bf16 and for int8; the files that include it decode.
 *
 * 64 rows at a time, their columns in chunks: the chunk's codes become tiles of 16 rows in a buffer in L1 (bf16 weights are
 * copied: rows that lie a power of two apart would share few sets of L1 when loaded from where they are), then every pair
 * of 16 rows by every pair of 16 tokens is four sums in tile registers.  Sums wait in memory between chunks.  The stored
 * rows are the left factor and the panels of tokens the right one as they are, so a tile of sums is [row][token] and is
 * turned round at the end.
 *
 * Order of sums for one (row, token): tile products, k ascending, each as the instruction sums inside; where scales are
 * finer than a row, a segment of columns under one scale (at most a chunk) is summed so and enters the f32 total by fma,
 * segments ascending.  Chunks and segments follow from the matrix alone. */
#ifndef MF_KERNELS_CPU_AMX_PRODUCT_H
#define MF_KERNELS_CPU_AMX_PRODUCT_H

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/avx512.h"

enum {
    AMX_ROW_TILES = 4,
    AMX_TOKEN_TILES = MF_CPU_MOST_TILE_TOKENS / MF_CPU_PANEL,
    AMX_STEPS = 8,    /* tiles of a chunk along k: 32 KiB for 64 rows */
    AMX_SEGMENTS = 4, /* scales of a row in a chunk */
    AMX_LANES = AMX_SIDE * AMX_SIDE
};

/* What is known when the compiler unfolds a product. */
typedef struct amx_kind {
    mf_format format;
    bool int8;   /* int8 times int8 to i32, not bf16 times bf16 to f32 */
    bool scaled; /* scales finer than a row */
    int width;   /* columns of a tile: 32 of bf16, 32 or 64 of int8 */
    int steps;   /* most tiles of a chunk along k */
} amx_kind;

/* Columns [first, first + count) of the matrix. */
typedef struct amx_chunk {
    int64_t first, count;
    int64_t base, steps;           /* the first tile along k, and how many */
    int64_t segments, group_steps; /* of each segment but the last, which ends with the chunk */
} amx_chunk;

/* Codes of one row, columns [first, first + count), to 64 bytes of a tile every AMX_TILE_BYTES, zero behind count. */
typedef void (*amx_decode_fn)(const mf_matrix *w, int64_t row, int64_t first, int64_t count, uint8_t *out);

typedef struct amx_work {
    _Alignas(64) uint8_t left[AMX_ROW_TILES][AMX_STEPS][AMX_TILE_BYTES];
    _Alignas(64) uint8_t sums[AMX_TOKEN_TILES][AMX_ROW_TILES][AMX_TILE_BYTES]; /* f32, or i32 of int8 without scales */
    _Alignas(64) uint8_t parts[AMX_SEGMENTS][4][AMX_TILE_BYTES];              /* a segment's sums, before its scale */
    _Alignas(64) uint8_t spare[AMX_TILE_BYTES];
    _Alignas(16) float scale[AMX_ROW_TILES * AMX_SIDE][AMX_SEGMENTS];
    _Alignas(16) int32_t zero[AMX_ROW_TILES * AMX_SIDE][AMX_SEGMENTS];
    const mf_cpu_tile *tile;
    int64_t num_panels, columns; /* columns of the padded panel */
    /* A panel of few tokens has rows shorter than a tile's, which then reads on into the next row: sums nobody looks at.
     * In the last step that would pass the panel's end, so the step is read from `spare`. */
    int64_t spare_offset;
    int64_t first_row, num_rows; /* of the block at hand */
} amx_work;

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
    work->spare_offset = -1;
    const int64_t last = work->num_panels - 1;
    const int64_t row_bytes = 4 * amx_tokens(work, last);
    if (row_bytes < AMX_ROW_BYTES) {
        const int depth = kind.int8 ? kind.width / 4 : kind.width / 2;
        const int64_t words = kind.int8 ? work->columns / 4 : work->columns / 2;
        work->spare_offset = (words - depth) * row_bytes;
        const uint8_t *from = (const uint8_t *)tile->x[last] + work->spare_offset;
        memset(work->spare, 0, sizeof work->spare);
        for (int i = 0; i < depth; i++) {
            memcpy(work->spare + i * AMX_ROW_BYTES, from + i * row_bytes, (size_t)row_bytes);
        }
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

#define AMX_PRODUCT(kind, sums, left, right) \
    do {                                     \
        if ((kind).int8) {                   \
            AMX_INT8(sums, left, right);     \
        } else {                             \
            AMX_BF16(sums, left, right);     \
        }                                    \
    } while (0)

/* Tiles 2 * r + t of sums += rows of tile r of the pair times tokens of panel t of the pair, steps [first, end) of the
 * chunk, which starts at step `base` of the matrix. */
INLINE void amx_multiply(const amx_kind kind, const int rows, const int panels, const amx_work *work, int64_t row_tile,
                         int64_t panel, int64_t base, int64_t first, int64_t end)
{
    const uint8_t *left0 = work->left[row_tile][first];
    const uint8_t *left1 = rows == 2 ? work->left[row_tile + 1][first] : NULL;
    for (int64_t s = first; s < end; s++, left0 += AMX_TILE_BYTES) {
        const amx_right right = amx_right_at(kind, work, panel, base + s);
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
            left1 += AMX_TILE_BYTES;
        }
    }
}

INLINE void amx_zero_sums(const int rows, const int panels)
{
    AMX_ZERO(0);
    if (panels == 2) {
        AMX_ZERO(1);
    }
    if (rows == 2) {
        AMX_ZERO(2);
        if (panels == 2) {
            AMX_ZERO(3);
        }
    }
}

INLINE void amx_store_sums(const int rows, const int panels, uint8_t *t0, uint8_t *t1, uint8_t *t2, uint8_t *t3)
{
    AMX_STORE(0, t0, AMX_ROW_BYTES);
    if (panels == 2) {
        AMX_STORE(1, t1, AMX_ROW_BYTES);
    }
    if (rows == 2) {
        AMX_STORE(2, t2, AMX_ROW_BYTES);
        if (panels == 2) {
            AMX_STORE(3, t3, AMX_ROW_BYTES);
        }
    }
}

/* One scale per row or none: sums go on from chunk to chunk in the tiles. */
INLINE void amx_pair_plain(const amx_kind kind, const int rows, const int panels, amx_work *work, int64_t row_tile,
                           int64_t panel, const amx_chunk *chunk)
{
    uint8_t *t0 = work->sums[panel][row_tile];
    uint8_t *t1 = panels == 2 ? work->sums[panel + 1][row_tile] : NULL;
    uint8_t *t2 = rows == 2 ? work->sums[panel][row_tile + 1] : NULL;
    uint8_t *t3 = rows == 2 && panels == 2 ? work->sums[panel + 1][row_tile + 1] : NULL;
    if (chunk->base == 0) {
        amx_zero_sums(rows, panels);
    } else {
        AMX_LOAD(0, t0, AMX_ROW_BYTES);
        if (panels == 2) {
            AMX_LOAD(1, t1, AMX_ROW_BYTES);
        }
        if (rows == 2) {
            AMX_LOAD(2, t2, AMX_ROW_BYTES);
            if (panels == 2) {
                AMX_LOAD(3, t3, AMX_ROW_BYTES);
            }
        }
    }
    amx_multiply(kind, rows, panels, work, row_tile, panel, chunk->base, 0, chunk->steps);
    amx_store_sums(rows, panels, t0, t1, t2, t3);
}

/* Of each of the chunk's segments: the tokens' sums of codes, which zero points multiply. */
INLINE void amx_code_sums(const amx_kind kind, const amx_work *work, const amx_chunk *chunk, int64_t panel, __m512i *x_sum)
{
    const int64_t tokens = amx_tokens(work, panel);
    const uint8_t *sums = (const uint8_t *)work->tile->x[panel] + work->columns * tokens;
    const int64_t end = chunk->first + chunk->count;
    for (int64_t g = 0; g < chunk->segments; g++) {
        x_sum[g] = _mm512_setzero_si512();
        const int64_t first = chunk->first + g * chunk->group_steps * kind.width;
        for (int64_t k = first; k < first + chunk->group_steps * kind.width && k < end; k += 32) {
            const __m512i part = _mm512_maskz_loadu_epi32(mask16(tokens), sums + k / 32 * tokens * 4);
            x_sum[g] = _mm512_add_epi32(x_sum[g], part);
        }
    }
}

/* total = fma(scale, segment's sum, total) for one tile, segments ascending. */
INLINE void amx_add_parts_of(const amx_kind kind, const int segments, const bool is_first, const bool has_zeros,
                             amx_work *work, const __m512i *x_sum, int64_t row_tile, int64_t panel, int part)
{
    float *total = (float *)(void *)work->sums[panel][row_tile];
    for (int64_t r = 0; r < AMX_SIDE; r++, total += AMX_SIDE) {
        const int64_t row = row_tile * AMX_SIDE + r;
        __m512 sum = is_first ? _mm512_setzero_ps() : _mm512_load_ps(total);
        UNROLL(4) for (int g = 0; g < segments; g++) {
            const uint8_t *p = work->parts[g][part] + r * AMX_ROW_BYTES;
            __m512 v = _mm512_load_ps(p);
            if (kind.int8) {
                __m512i dot = _mm512_castps_si512(v);
                if (has_zeros) {
                    dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(_mm512_set1_epi32(work->zero[row][g]), x_sum[g]));
                }
                v = _mm512_cvtepi32_ps(dot);
            }
            sum = _mm512_fmadd_ps(_mm512_set1_ps(work->scale[row][g]), v, sum);
        }
        _mm512_store_ps(total, sum);
    }
}

INLINE void amx_add_parts(const amx_kind kind, const bool is_first, const bool has_zeros, amx_work *work,
                          const amx_chunk *chunk, int64_t row_tile, int64_t panel, int part)
{
    __m512i x_sum[AMX_SEGMENTS];
    if (has_zeros) {
        amx_code_sums(kind, work, chunk, panel, x_sum);
    }
    switch (chunk->segments) {
    case 1:
        amx_add_parts_of(kind, 1, is_first, has_zeros, work, x_sum, row_tile, panel, part);
        break;
    case 2:
        amx_add_parts_of(kind, 2, is_first, has_zeros, work, x_sum, row_tile, panel, part);
        break;
    case 3:
        amx_add_parts_of(kind, 3, is_first, has_zeros, work, x_sum, row_tile, panel, part);
        break;
    default:
        amx_add_parts_of(kind, 4, is_first, has_zeros, work, x_sum, row_tile, panel, part);
        break;
    }
}

/* All segments are multiplied before the first is added: vector loads wait until a tile's store has left for L1. */
INLINE void amx_pair_scaled(const amx_kind kind, const int rows, const int panels, amx_work *work, int64_t row_tile,
                            int64_t panel, const amx_chunk *chunk)
{
    for (int64_t g = 0; g < chunk->segments; g++) {
        const int64_t first = g * chunk->group_steps;
        const int64_t end = g + 1 == chunk->segments ? chunk->steps : first + chunk->group_steps;
        amx_zero_sums(rows, panels);
        amx_multiply(kind, rows, panels, work, row_tile, panel, chunk->base, first, end);
        amx_store_sums(rows, panels, work->parts[g][0], work->parts[g][1], work->parts[g][2], work->parts[g][3]);
    }
}

/* Of each tile of the pair. */
INLINE void amx_add_pair(const amx_kind kind, const bool is_first, const bool has_zeros, amx_work *work,
                         const amx_chunk *chunk, int64_t row_tile, int64_t rows, int64_t panel, int64_t panels)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t t = 0; t < panels; t++) {
            amx_add_parts(kind, is_first, has_zeros, work, chunk, row_tile + r, panel + t, (int)(2 * r + t));
        }
    }
}

INLINE void amx_pair_multiply(const amx_kind kind, const int rows, const int panels, amx_work *work, int64_t row_tile,
                              int64_t panel, const amx_chunk *chunk)
{
    if (kind.scaled) {
        amx_pair_scaled(kind, rows, panels, work, row_tile, panel, chunk);
    } else {
        amx_pair_plain(kind, rows, panels, work, row_tile, panel, chunk);
    }
}

/* One or two tiles of rows by one or two panels. */
INLINE void amx_pair(const amx_kind kind, amx_work *work, int64_t row_tile, int64_t rows, int64_t panel, int64_t panels,
                     const amx_chunk *chunk)
{
    if (rows == 2 && panels == 2) {
        amx_pair_multiply(kind, 2, 2, work, row_tile, panel, chunk);
    } else if (rows == 2) {
        amx_pair_multiply(kind, 2, 1, work, row_tile, panel, chunk);
    } else if (panels == 2) {
        amx_pair_multiply(kind, 1, 2, work, row_tile, panel, chunk);
    } else {
        amx_pair_multiply(kind, 1, 1, work, row_tile, panel, chunk);
    }
    if (!kind.scaled) {
        return;
    }
    if (kind.int8 && work->tile->w->zero) {
        amx_add_pair(kind, chunk->base == 0, true, work, chunk, row_tile, rows, panel, panels);
    } else if (chunk->base == 0) {
        amx_add_pair(kind, true, false, work, chunk, row_tile, rows, panel, panels);
    } else {
        amx_add_pair(kind, false, false, work, chunk, row_tile, rows, panel, panels);
    }
}

/* ---- blocks of rows ---- */

INLINE amx_chunk amx_chunk_at(const amx_kind kind, const mf_matrix *w, int64_t first)
{
    const int64_t most = kind.steps * kind.width;
    amx_chunk chunk = { .first = first, .count = w->k - first < most ? w->k - first : most, .base = first / kind.width };
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

/* Asks for what a row needs next, or the row that takes its place in the next block: into L2, where rows a power of two
 * apart do not push each other out. */
INLINE void amx_ask_ahead(const amx_kind kind, const amx_work *work, int64_t r, const amx_chunk *chunk)
{
    enum { LINE = 64, AHEAD = 512 };
    const mf_cpu_tile *tile = work->tile;
    const int64_t bits = mf_format_bits(kind.format);
    const int64_t row_bytes = tile->w->k * bits / 8;
    const int64_t first = chunk->first * bits / 8 + AHEAD;
    const uint8_t *p = mf_matrix_row(tile->w, work->first_row + r) + first;
    if (first >= row_bytes) {
        if (work->first_row + r + AMX_ROW_TILES * AMX_SIDE >= tile->first_row + tile->num_rows) {
            return;
        }
        p = mf_matrix_row(tile->w, work->first_row + r + AMX_ROW_TILES * AMX_SIDE) + first - row_bytes;
    }
    for (int64_t i = 0; i < kind.steps * kind.width * bits / 8; i += LINE) {
        __builtin_prefetch(p + i, 0, 2);
    }
}

/* n <= 4 stored scales from `at` on, as f32; zeros behind them. */
INLINE __m128 amx_scales(mf_dtype dtype, const mf_matrix *w, int64_t at, int64_t n)
{
    const __mmask8 mask = (__mmask8)((1u << n) - 1);
    const uint8_t *p = (const uint8_t *)w->scale;
    __m128i v;
    switch (dtype) {
    case MF_F8_E8M0: {
        v = _mm_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p + at));
        const __mmask8 nan = _mm_cmpeq_epi32_mask(v, _mm_set1_epi32(255));
        const __mmask8 least = _mm_mask_testn_epi32_mask(mask, v, v);
        v = _mm_mask_mov_epi32(_mm_slli_epi32(v, 23), nan, _mm_set1_epi32(0x7fc00000));
        return _mm_castsi128_ps(_mm_mask_mov_epi32(v, least, _mm_set1_epi32(0x00400000)));
    }
    case MF_BF16:
        v = _mm_maskz_loadu_epi16(mask, p + 2 * at);
        return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(v), 16));
    case MF_F16:
        return _mm_cvtph_ps(_mm_maskz_loadu_epi16(mask, p + 2 * at));
    default:
        return _mm_maskz_loadu_ps(mask, p + 4 * at);
    }
}

INLINE void amx_load_scales_of(const amx_kind kind, const mf_dtype dtype, amx_work *work, const amx_chunk *chunk)
{
    const mf_matrix *w = work->tile->w;
    const int64_t group = chunk->first / mf_matrix_group(w);
    int64_t known = -1; /* FP8_BLOCK's rows share theirs */
    __m128 scale = _mm_setzero_ps();
    for (int64_t r = 0; r < work->num_rows; r++) {
        const int64_t at = mf_matrix_scale_row(w, work->first_row + r) + group;
        scale = at == known ? scale : amx_scales(dtype, w, at, chunk->segments);
        known = at;
        _mm_store_ps(work->scale[r], scale);
        if (kind.int8 && w->zero) {
            const __m128i zeros = _mm_maskz_loadu_epi8((__mmask16)((1u << chunk->segments) - 1), w->zero + at);
            _mm_store_si128((__m128i *)(void *)work->zero[r], _mm_cvtepu8_epi32(zeros));
        }
    }
}

INLINE void amx_load_scales(const amx_kind kind, amx_work *work, const amx_chunk *chunk)
{
    switch (work->tile->w->scale_dtype) {
    case MF_F8_E8M0:
        amx_load_scales_of(kind, MF_F8_E8M0, work, chunk);
        break;
    case MF_BF16:
        amx_load_scales_of(kind, MF_BF16, work, chunk);
        break;
    case MF_F16:
        amx_load_scales_of(kind, MF_F16, work, chunk);
        break;
    default:
        amx_load_scales_of(kind, MF_F32, work, chunk);
        break;
    }
}

INLINE void amx_decode_chunk(const amx_kind kind, amx_decode_fn decode, amx_work *work, const amx_chunk *chunk)
{
    const mf_matrix *w = work->tile->w;
    if (chunk->count == kind.steps * kind.width) { /* unfolds */
        for (int64_t r = 0; r < work->num_rows; r++) {
            amx_ask_ahead(kind, work, r, chunk);
            decode(w, work->first_row + r, chunk->first, kind.steps * kind.width,
                   work->left[r / AMX_SIDE][0] + r % AMX_SIDE * AMX_ROW_BYTES);
        }
    } else {
        for (int64_t r = 0; r < work->num_rows; r++) {
            decode(w, work->first_row + r, chunk->first, chunk->count,
                   work->left[r / AMX_SIDE][0] + r % AMX_SIDE * AMX_ROW_BYTES);
        }
    }
    if (kind.scaled) {
        amx_load_scales(kind, work, chunk);
    }
    for (int64_t r = work->num_rows; r % AMX_SIDE != 0; r++) { /* rows that fill a tile up */
        for (int64_t s = 0; s < chunk->steps; s++) {
            memset(work->left[r / AMX_SIDE][s] + r % AMX_SIDE * AMX_ROW_BYTES, 0, AMX_ROW_BYTES);
        }
        memset(work->scale[r], 0, sizeof work->scale[r]);
        memset(work->zero[r], 0, sizeof work->zero[r]);
    }
}

/* out[t][r] = in[r][t] for four tokens from `in` on: a lane takes rows 4l to 4l + 3. */
INLINE void amx_turn4(const float *in, __m512 out[4])
{
    __m512 q[4];
    UNROLL(4) for (int j = 0; j < 4; j++) {
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
        for (int64_t t = 0; t < tile->num_tokens; t += 4) {
            const uint8_t *sums = work->sums[t / AMX_SIDE][first / AMX_SIDE];
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

INLINE void amx_product(const amx_kind kind, amx_decode_fn decode, const mf_cpu_tile *tile)
{
    /* A group that ends with the row may end anywhere: the panel is zero from there on. */
    if (kind.scaled && mf_matrix_group(tile->w) % kind.width != 0 && mf_matrix_group(tile->w) < tile->w->k) {
        amx_any_group(kind, tile);
        return;
    }
    amx_work work;
    amx_begin(kind, &work, tile);
    const amx_config config = amx_config_of_depth(kind.int8 ? kind.width / 4 : kind.width / 2);
    AMX_CONFIGURE(&config);
    for (int64_t first = 0; first < tile->num_rows; first += AMX_ROW_TILES * AMX_SIDE) {
        const int64_t left = tile->num_rows - first;
        work.first_row = tile->first_row + first;
        work.num_rows = left < AMX_ROW_TILES * AMX_SIDE ? left : AMX_ROW_TILES * AMX_SIDE;
        const int64_t row_tiles = (work.num_rows + AMX_SIDE - 1) / AMX_SIDE;
        for (int64_t k = 0; k < tile->w->k;) {
            const amx_chunk chunk = amx_chunk_at(kind, tile->w, k);
            amx_decode_chunk(kind, decode, &work, &chunk);
            for (int64_t t = 0; t < work.num_panels; t += 2) {
                for (int64_t r = 0; r < row_tiles; r += 2) {
                    amx_pair(kind, &work, r, r + 1 < row_tiles ? 2 : 1, t, t + 1 < work.num_panels ? 2 : 1, &chunk);
                }
            }
            k += chunk.count;
        }
        amx_finish(kind, &work);
    }
    AMX_RELEASE();
}

#endif
