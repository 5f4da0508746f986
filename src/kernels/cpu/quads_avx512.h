/* quads_avx512.h - few tokens times codes under scales of 32 columns or more: four rows and four units of 32 columns
 * are the lanes of a vector; the loops, written once for two kinds of inputs.
 *
 * Four or eight rows are read side by side, which memory likes best.  Lanes change places so that each holds a unit's
 * sum of one row: no sum runs over lanes before the end, and one fma takes the scales of four units of four rows.
 *
 * Order of sums for one (row, token): a unit's sum, as the including file says, times its scale is added to the total
 * number u modulo 4 of four, u ascending; at last (t0 + t2) + (t1 + t3).
 *
 * The including file defines, before:
 *   quads_kind              constants of a product: .format, .has_zero (INT4 with zero points)
 *   ROWS_FIRST              lane 4r + q is unit q of row r, else lane 4q + r
 *   ZERO_LANES              what a zero point is multiplied by to stand in a lane
 *   X_BYTES                 of COLUMNS of an input
 * and after: lines_of(kind), table_of(kind), quads_step(...), sum_units(tile, t, total). */
#ifndef MF_KERNELS_CPU_QUADS_AVX512_H
#define MF_KERNELS_CPU_QUADS_AVX512_H

#include "kernels/cpu/product_rare.h"
#include "kernels/cpu/products_avx512.h"
#include "kernels/cpu/rows_ahead.h"

enum {
    COLUMNS = 128, /* four units */
    UNIT = 32,
    SPAN = 4096, /* columns whose scales are converted at a time */
    LINE = 64,
    AHEAD_BYTES = 6144, /* at least so much is asked for in advance */
    RUN_ROWS = 16,      /* rows that several passes over tokens find in a cache */
    MOST = 4,           /* tokens of a pass */
    FEW = 8,            /* of a call: more have sixteen rows as lanes */
    MOST_QUADS = 2,     /* of rows side by side */
    MOST_BLOCKS = 4,    /* of columns */
    MOST_ZERO = 16      /* the largest zero point; rows with larger ones go to plain C */
};

/* Of a span's blocks of four units: by lanes, the scale of each, and its zero point. */
typedef struct spans {
    _Alignas(64) float scale[MOST_QUADS][SPAN / COLUMNS + 4][16];
    _Alignas(64) int32_t zero[MOST_QUADS][SPAN / COLUMNS + 4][16];
} spans;

/* ---- scales ---- */

/* Sixteen units of four rows to their places, four blocks. */
INLINE void put_units(const __m512 rows[4], float (*out)[16])
{
    __m512 v[4] = { rows[0], rows[1], rows[2], rows[3] };
    if (!ROWS_FIRST) {
        const __m512 a = _mm512_unpacklo_ps(rows[0], rows[1]), b = _mm512_unpackhi_ps(rows[0], rows[1]);
        const __m512 c = _mm512_unpacklo_ps(rows[2], rows[3]), d = _mm512_unpackhi_ps(rows[2], rows[3]);
        v[0] = _mm512_shuffle_ps(a, c, 0x44);
        v[1] = _mm512_shuffle_ps(a, c, 0xee);
        v[2] = _mm512_shuffle_ps(b, d, 0x44);
        v[3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    const __m512 e = _mm512_shuffle_f32x4(v[0], v[1], 0x44), f = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
    const __m512 g = _mm512_shuffle_f32x4(v[2], v[3], 0x44), h = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
    _mm512_store_ps(out[0], _mm512_shuffle_f32x4(e, g, 0x88));
    _mm512_store_ps(out[1], _mm512_shuffle_f32x4(e, g, 0xdd));
    _mm512_store_ps(out[2], _mm512_shuffle_f32x4(f, h, 0x88));
    _mm512_store_ps(out[3], _mm512_shuffle_f32x4(f, h, 0xdd));
}

/* The dtype is looked at once per tile: a choice within the loops takes a sixth of a product's time. */
typedef struct scale_fns {
    void (*convert)(const uint8_t *p, int64_t count, float *out);                 /* of `count` groups of a row */
    void (*units)(const uint8_t *const rows[4], int64_t count, float (*out)[16]); /* of `count` units of four rows */
} scale_fns;

#define SCALES(name, dtype, size)                                                                                      \
    static void convert_##name(const uint8_t *p, int64_t count, float *out)                                            \
    {                                                                                                                  \
        for (int64_t g = 0; g < count; g += 16) {                                                                      \
            _mm512_storeu_ps(out + g, scales_as_floats(dtype, p + g * (size), first16(count - g)));                    \
        }                                                                                                              \
    }                                                                                                                  \
    static void units_##name(const uint8_t *const rows[4], int64_t count, float(*out)[16])                             \
    {                                                                                                                  \
        __m512 v[4];                                                                                                   \
        int64_t u = 0;                                                                                                 \
        for (; u + 16 <= count; u += 16) {                                                                             \
            UNROLL(4) for (int r = 0; r < 4; r++)                                                                      \
            {                                                                                                          \
                v[r] = scales_as_floats(dtype, rows[r] + u * (size), 0xffff);                                          \
            }                                                                                                          \
            put_units(v, &out[u / 4]);                                                                                 \
        }                                                                                                              \
        if (u < count) {                                                                                               \
            UNROLL(4) for (int r = 0; r < 4; r++)                                                                      \
            {                                                                                                          \
                v[r] = scales_as_floats(dtype, rows[r] + u * (size), first16(count - u));                              \
            }                                                                                                          \
            put_units(v, &out[u / 4]);                                                                                 \
        }                                                                                                              \
    }                                                                                                                  \
    static const scale_fns scales_##name = { convert_##name, units_##name };
SCALES(f32, MF_F32, 4)
SCALES(f16, MF_F16, 2)
SCALES(bf16, MF_BF16, 2)
SCALES(e8m0, MF_F8_E8M0, 1)

/* The lane of unit q of row r. */
INLINE int lane_of(int r, int q)
{
    return ROWS_FIRST ? 4 * r + q : 4 * q + r;
}

/* n columns from `first` on, whose values, from that of first's group on, are `stored`. */
INLINE void put_groups(const float *stored, int64_t group, int64_t first, int64_t n, int r, float (*out)[16])
{
    int64_t next = first - first % group + group, g = 0; /* where the next group starts */
    for (int64_t k = first; k < first + n; k += UNIT) {
        if (k == next) {
            g++;
            next += group;
        }
        out[(k - first) / COLUMNS][lane_of(r, (int)((k - first) / UNIT % 4))] = stored[g];
    }
    for (int64_t u = (n + UNIT - 1) / UNIT; u % 4; u++) {
        out[u / 4][lane_of(r, (int)(u % 4))] = 0.0f;
    }
}

/* What is the same for all rows of a tile. */
typedef struct quads_work {
    const mf_cpu_tile *tile;
    const scale_fns *scales;
    int64_t group, scale_size;
    int64_t ahead;       /* rows */
    int64_t scales_step; /* bytes of scales that are asked for with each block of columns of four rows */
    spans *spans;
} quads_work;

/* Columns [first, first + n) of a quad of rows whose scales start at `at`. */
INLINE void spread_scales(const quads_kind kind, const quads_work *work, const int64_t at[4], int64_t first, int64_t n,
                          float (*out)[16])
{
    const mf_matrix *w = work->tile->w;
    const uint8_t *scales = w->scale;
    const int64_t group = work->group, size = work->scale_size;
    float few[SPAN / UNIT + 16];
    if (kind.format == MF_FORMAT_FP8_BLOCK && at[0] == at[3]) {
        const int64_t from = first / COLUMNS, count = (n + COLUMNS - 1) / COLUMNS;
        work->scales->convert(scales + (at[0] + from) * size, count, few);
        for (int64_t b = 0; b < count; b++) {
            _mm512_store_ps(out[b], _mm512_set1_ps(few[b]));
        }
        return;
    }
    if (group == UNIT) {
        const uint8_t *rows[4];
        UNROLL(4) for (int r = 0; r < 4; r++)
        {
            rows[r] = scales + (at[r] + first / UNIT) * size;
        }
        work->scales->units(rows, (n + UNIT - 1) / UNIT, out);
        return;
    }
    const int64_t from = first / group;
    for (int r = 0; r < 4; r++) {
        work->scales->convert(scales + (at[r] + from) * size, (first + n - 1) / group - from + 1, few);
        put_groups(few, group, first, n, r, out);
    }
}

INLINE void spread_zeros(const quads_work *work, const int64_t at[4], int64_t first, int64_t n, int32_t (*out)[16])
{
    const mf_matrix *w = work->tile->w;
    const int64_t group = work->group, from = first / group, count = (first + n - 1) / group - from + 1;
    float few[SPAN / UNIT + 16];
    for (int r = 0; r < 4; r++) {
        for (int64_t g = 0; g < count; g += 16) {
            const __m128i bytes = _mm_maskz_loadu_epi8(first16(count - g), w->zero + at[r] + from + g);
            const __m512i words = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(ZERO_LANES));
            _mm512_storeu_ps(few + g, _mm512_castsi512_ps(words));
        }
        put_groups(few, group, first, n, r, (float(*)[16])out);
    }
}

/* ---- products ---- */

/* Where the memory is asked for lines, in the order of addresses. */
typedef struct cursor {
    const uint8_t *codes, *scales;
    int64_t codes_step, scales_step;
} cursor;

/* The rows that stand `ahead` rows behind row r; where nobody knows them, the rows at hand. */
INLINE cursor cursor_at(const quads_work *work, int64_t r, int64_t ahead)
{
    const mf_cpu_tile *tile = work->tile;
    mf_cpu_rows_ahead next = mf_cpu_rows_ahead_of(tile, r, ahead);
    const bool is_known = next.w != NULL;
    if (!is_known) {
        next = (mf_cpu_rows_ahead){ tile->w, tile->first_row + r };
    }
    return (cursor){ .codes = mf_matrix_row(next.w, next.row),
                     .scales =
                         (const uint8_t *)next.w->scale + mf_matrix_scale_row(next.w, next.row) * work->scale_size,
                     .codes_step = is_known ? LINE : 0,
                     .scales_step = is_known ? work->scales_step : 0 };
}

/* Lines of codes of a row that hold COLUMNS. */
INLINE int lines_of(const quads_kind kind);
/* Whatever a step looks values up in. */
INLINE __m512i table_of(const quads_kind kind);
/* G blocks of COLUMNS from number `at` on, number b of the span, of Q quads of rows times NT tokens; `left` columns of
 * the last are there. */
INLINE void quads_step(const quads_kind kind, int Q, int G, int NT, const quads_work *work, const uint8_t *const *codes,
                       cursor *ahead, int64_t at, int64_t b, int64_t left, const uint8_t *const *x, __m512i table,
                       vec total[MOST_QUADS][MOST]);
/* Token t's outputs of four rows. */
INLINE __m128 sum_units(const mf_cpu_tile *tile, int64_t t, vec total);

/* Rows [first, end) of the tile times NT tokens from t on. */
INLINE void quads_rows(const quads_kind kind, int Q, int G, int NT, const quads_work *work, int64_t first, int64_t end,
                       int64_t t)
{
    const mf_cpu_tile *tile = work->tile;
    const mf_matrix *w = tile->w;
    const int64_t size = w->k;
    const __m512i table = table_of(kind);
    const uint8_t *x[MOST];
    UNROLL(4) for (int j = 0; j < NT; j++)
    {
        x[j] = tile->x[t + j];
    }
    for (int64_t r = first; r < end; r += 4 * Q) {
        const int64_t num_rows = end - r < 4 * Q ? end - r : 4 * Q;
        const uint8_t *codes[4 * MOST_QUADS];
        int64_t scale[4 * MOST_QUADS];
        vec total[MOST_QUADS][MOST];
        UNROLL(8) for (int i = 0; i < 4 * Q; i++) /* past the last row it is repeated */
        {
            const int64_t row = tile->first_row + r + (i < num_rows ? i : num_rows - 1);
            codes[i] = mf_matrix_row(w, row);
            scale[i] = mf_matrix_scale_row(w, row);
        }
        UNROLL(2) for (int q = 0; q < Q; q++)
        {
            UNROLL(4) for (int j = 0; j < NT; j++)
            {
                total[q][j] = vec_zero();
            }
        }
        cursor ahead = cursor_at(work, r, t == 0 ? work->ahead : INT32_MAX);
        for (int64_t k = 0; k < size; k += SPAN) {
            const int64_t n = size - k < SPAN ? size - k : SPAN;
            UNROLL(2) for (int q = 0; q < Q; q++)
            {
                spread_scales(kind, work, scale + 4 * q, k, n, work->spans->scale[q]);
                if (kind.has_zero) {
                    spread_zeros(work, scale + 4 * q, k, n, work->spans->zero[q]);
                }
            }
            const int64_t whole = n / COLUMNS, block = k / COLUMNS;
            int64_t b = 0;
            for (; b + G <= whole; b += G) {
                quads_step(kind, Q, G, NT, work, codes, &ahead, block + b, b, COLUMNS, x, table, total);
            }
            for (; G > 2 && b + 2 <= whole; b += 2) {
                quads_step(kind, Q, G > 2 ? 2 : 1, NT, work, codes, &ahead, block + b, b, COLUMNS, x, table, total);
            }
            for (; G > 1 && b < whole; b++) {
                quads_step(kind, Q, 1, NT, work, codes, &ahead, block + b, b, COLUMNS, x, table, total);
            }
            if (n % COLUMNS) {
                quads_step(kind, Q, 1, NT, work, codes, &ahead, block + b, b, n % COLUMNS, x, table, total);
            }
        }
        UNROLL(2) for (int q = 0; q < Q; q++)
        {
            UNROLL(4) for (int j = 0; j < NT; j++)
            {
                float *out = tile->out + (t + j) * tile->out_stride + r + 4 * q;
                const __m128 four = sum_units(tile, t + j, total[q][j]);
                if (num_rows >= 4 * (q + 1)) {
                    _mm_storeu_ps(out, four);
                } else if (num_rows > 4 * q) {
                    _mm_mask_storeu_ps(out, (__mmask8)((1u << (num_rows - 4 * q)) - 1u), four);
                }
            }
        }
    }
}

typedef void (*rows_fn)(const quads_work *work, int64_t first, int64_t end, int64_t t);

#define QUADS_ROWS(name, format_, zero, Q, G, NT)                                                                      \
    static void name##_##NT(const quads_work *work, int64_t first, int64_t end, int64_t t)                             \
    {                                                                                                                  \
        quads_rows((quads_kind){ .format = format_, .has_zero = zero }, Q, G, NT, work, first, end, t);                \
    }

static void quads_tile(const mf_cpu_tile *tile, const rows_fn rows[MOST], mf_cpu_tile_fn many)
{
    const mf_matrix *w = tile->w;
    if (tile->num_tokens > FEW) {
        many(tile);
        return;
    }
    const int64_t passes = (tile->num_tokens + MOST - 1) / MOST;
    const int64_t run = passes == 1 ? tile->num_rows : RUN_ROWS;
    const int64_t row_bytes = w->row_stride * (int64_t)mf_format_bits(w->format) / 8,
                  blocks = (w->k + COLUMNS - 1) / COLUMNS;
    spans s;
    const quads_work work = {
        .tile = tile,
        .scales = w->scale_dtype == MF_F16       ? &scales_f16
                  : w->scale_dtype == MF_BF16    ? &scales_bf16
                  : w->scale_dtype == MF_F8_E8M0 ? &scales_e8m0
                                                 : &scales_f32,
        .group = mf_matrix_group(w),
        .scale_size = (int64_t)mf_dtype_size(w->scale_dtype),
        .ahead = (AHEAD_BYTES / (8 * row_bytes + 1) + 1) * 8,
        .scales_step = (8 * w->scale_row_stride * (int64_t)mf_dtype_size(w->scale_dtype) + blocks - 1) / blocks,
        .spans = &s
    };
    for (int64_t first = 0; first < tile->num_rows; first += run) {
        const int64_t end = tile->num_rows - first < run ? tile->num_rows : first + run;
        for (int64_t pass = 0; pass < passes; pass++) { /* as equal as possible */
            const int64_t t = tile->num_tokens * pass / passes;
            rows[tile->num_tokens * (pass + 1) / passes - t - 1](&work, first, end, t);
        }
    }
}

/* Rows again whose zero points are too large. */
static void redo_far_zeros(const mf_cpu_tile *tile, mf_cpu_form form)
{
    const mf_matrix *w = tile->w;
    const int64_t count = (w->k + w->group_size - 1) / w->group_size;
    for (int64_t r = 0; r < tile->num_rows; r++) {
        const uint8_t *p = w->zero + mf_matrix_scale_row(w, tile->first_row + r);
        __mmask64 far = 0;
        for (int64_t g = 0; g < count; g += 64) {
            const __mmask64 valid = count - g >= 64 ? ~0ull : (1ull << (count - g)) - 1u;
            far |= _mm512_cmpgt_epu8_mask(_mm512_maskz_loadu_epi8(valid, p + g), _mm512_set1_epi8(MOST_ZERO));
        }
        if (far) {
            mf_cpu_tile one = *tile;
            one.first_row += r;
            one.num_rows = 1;
            one.out += r;
            mf_cpu_tile_rare(&one, form, 1);
        }
    }
}

#endif
