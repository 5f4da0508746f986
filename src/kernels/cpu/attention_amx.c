/* attention_amx.c - attention over a cache of bf16 with AMX's tiles: see mf_cpu_attention_tiles.
 *
 * Sums of 32 products enter a tile's f32 sums one after the other, so a score is one chain over steps of 32 columns and
 * a weighted sum one chain over steps of 32 rows: neither depends on the other queries of the tile. */
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/avx512.h"

enum {
    SIDE = AMX_SIDE,
    TILE = AMX_TILE_BYTES,
    STEP = MF_CPU_TILE_COLUMNS, /* columns of keys, or rows of values, of a tile */
    MOST_GROUPS = MF_CPU_QUERIES / SIDE,
    MOST_STEPS = MF_CPU_KV_ROWS / STEP,
    LINE_FLOATS = 16,
    LINES_PER_STEP = 5 /* of four products: about what memory delivers meanwhile */
};

/* Each tile in any role: 16 rows of 64 bytes. */
static amx_config whole_tiles(void)
{
    amx_config config = { .palette = 1 };
    for (int i = 0; i < AMX_TILES; i++) {
        config.row_bytes[i] = AMX_ROW_BYTES;
        config.rows[i] = SIDE;
    }
    return config;
}

/* ---- memory that will be wanted: it need only reach the second level ---- */

INLINE void ask_ahead(mf_cpu_asker *a, int lines)
{
    for (int i = 0; i < lines && a->row < a->rows.num_rows; i++) {
        __builtin_prefetch(a->rows.rows[a->row] + a->column, 0, 2);
        a->column += LINE_FLOATS;
        if (a->column >= a->rows.floats) {
            a->column = 0;
            a->row++;
        }
    }
}

/* Lines for each of `turns`, such that three quarters are asked for: the rest is left to the calls that follow. */
INLINE int lines_per_turn(const mf_cpu_ahead *rows, int64_t turns)
{
    const int64_t lines = rows->num_rows * ((rows->floats + LINE_FLOATS - 1) / LINE_FLOATS);
    return (int)((lines * 3 / 4 + turns - 1) / turns);
}

#define LANE_WORDS                                                                                                     \
    _mm512_setr_epi32(0, 0x10001, 0x20002, 0x30003, 0x40004, 0x50005, 0x60006, 0x70007, 0x80008, 0x90009, 0xa000a,     \
                      0xb000b, 0xc000c, 0xd000d, 0xe000e, 0xf000f)

/* ---- 16 vectors of 16 words, rows and columns exchanged ---- */

INLINE void transpose16(__m512i r[16])
{
    __m512i a[16], b[16];
    UNROLL(8) for (int i = 0; i < 16; i += 2)
    {
        a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL(4) for (int i = 0; i < 16; i += 4)
    {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    /* b[4 g + j]: in each 128-bit lane l column 4 l + j of rows 4 g to 4 g + 3 */
    UNROLL(4) for (int j = 0; j < 4; j++)
    {
        const __m512i low01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88),
                      high01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        const __m512i low23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        const __m512i high23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        r[j] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        r[4 + j] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        r[12 + j] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
}

/* Words of two bf16: the even one low.  The instruction takes subnormals as zero, and so do the tiles that its results
 * go to. */
INLINE __m512i pairs_of(__m512 even, __m512 odd)
{
#if defined(MF_AMX_EMULATE)
    return _mm512_or_si512(bf16_words16(even), _mm512_slli_epi32(bf16_words16(odd), 16));
#else
    const __m512i order = _mm512_add_epi16(LANE_WORDS, _mm512_set1_epi32(16 << 16)); /* 0, 16, 1, 17, ... */
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
#endif
}

/* ---- queries: tiles [stride / 16][columns / 32] of [16 pairs of columns][16 queries] ---- */

static void pack_queries(const float *const *queries, int64_t num_queries, int64_t dim, void *panel, int64_t stride)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    uint8_t *out = panel;
    for (int64_t q = 0; q < stride; q += SIDE) {
        for (int64_t d = 0; d < dim; d += STEP, out += TILE) {
            __m512i r[SIDE];
            for (int i = 0; i < SIDE; i++) {
                const bool is_query = q + i < num_queries;
                const __mmask16 m0 = is_query ? mask16(dim - d) : 0, m1 = is_query ? mask16(dim - d - 16) : 0;
                const float *x = is_query ? queries[q + i] + d : NULL;
                const __m512 a = _mm512_maskz_loadu_ps(m0, x), b = _mm512_maskz_loadu_ps(m1, m1 ? x + 16 : x);
                r[i] = pairs_of(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
            }
            transpose16(r);
            for (int i = 0; i < SIDE; i++) {
                _mm512_storeu_si512(out + i * AMX_ROW_BYTES, r[i]);
            }
        }
    }
}

/* ---- scores: tiles of [16 rows][16 queries] ---- */

static int64_t most_rows(const int32_t *limits, int64_t n)
{
    return _mm512_reduce_max_epi32(n > 16
                                       ? _mm512_max_epi32(_mm512_loadu_si512(limits), _mm512_loadu_si512(limits + 16))
                                       : _mm512_loadu_si512(limits));
}

/* Two groups of rows with two of queries. */
INLINE void scores_2x2(const mf_cpu_tile_scores *a, int64_t g, int64_t q, bool two_rows)
{
    const int64_t tiles = a->dim / STEP;
    const uint8_t *x0 = (const uint8_t *)a->queries + q / SIDE * tiles * TILE, *x1 = x0 + tiles * TILE;
    const uint8_t *r0 = a->groups[g], *r1 = two_rows ? a->groups[g + 1] : r0;
    float *out = a->out + g * SIDE * a->stride + q;
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    for (int64_t k = 0; k < tiles; k++) {
        ask_ahead(a->ahead, LINES_PER_STEP);
        AMX_LOAD(4, r0 + k * 2 * STEP, a->key_stride);
        AMX_LOAD(6, x0 + k * TILE, AMX_ROW_BYTES);
        AMX_LOAD(7, x1 + k * TILE, AMX_ROW_BYTES);
        AMX_BF16(0, 4, 6);
        AMX_BF16(1, 4, 7);
        if (two_rows) {
            AMX_LOAD(5, r1 + k * 2 * STEP, a->key_stride);
            AMX_BF16(2, 5, 6);
            AMX_BF16(3, 5, 7);
        }
    }
    AMX_STORE(0, out, a->stride * 4);
    AMX_STORE(1, out + SIDE, a->stride * 4);
    if (two_rows) {
        out += SIDE * a->stride;
        AMX_STORE(2, out, a->stride * 4);
        AMX_STORE(3, out + SIDE, a->stride * 4);
    }
}

/* Up to four groups of rows with one of queries. */
INLINE void scores_4x1(const mf_cpu_tile_scores *a, int64_t g, int64_t q, const int NG)
{
    const int64_t tiles = a->dim / STEP;
    const uint8_t *x = (const uint8_t *)a->queries + q / SIDE * tiles * TILE;
    const uint8_t *r0 = a->groups[g], *r1 = NG > 1 ? a->groups[g + 1] : r0;
    const uint8_t *r2 = NG > 2 ? a->groups[g + 2] : r0, *r3 = NG > 2 ? a->groups[g + 3] : r0;
    const int64_t stride = a->stride * 4;
    uint8_t *out = (uint8_t *)(a->out + g * SIDE * a->stride + q);
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    for (int64_t k = 0; k < tiles; k++) {
        ask_ahead(a->ahead, LINES_PER_STEP);
        AMX_LOAD(6, x + k * TILE, AMX_ROW_BYTES);
        AMX_LOAD(4, r0 + k * 2 * STEP, a->key_stride);
        AMX_BF16(0, 4, 6);
        if (NG > 1) {
            AMX_LOAD(5, r1 + k * 2 * STEP, a->key_stride);
            AMX_BF16(1, 5, 6);
        }
        if (NG > 2) {
            AMX_LOAD(4, r2 + k * 2 * STEP, a->key_stride);
            AMX_BF16(2, 4, 6);
            AMX_LOAD(5, r3 + k * 2 * STEP, a->key_stride);
            AMX_BF16(3, 5, 6);
        }
    }
    AMX_STORE(0, out, stride);
    if (NG > 1) {
        AMX_STORE(1, out + SIDE * stride, stride);
    }
    if (NG > 2) {
        AMX_STORE(2, out + 2 * SIDE * stride, stride);
        AMX_STORE(3, out + 3 * SIDE * stride, stride);
    }
}

static void scores_of(const mf_cpu_tile_scores *a)
{
    const amx_config config = whole_tiles();
    AMX_CONFIGURE(&config);
    int64_t q = a->first_query / SIDE * SIDE;
    for (; q + 2 * SIDE <= a->stride; q += 2 * SIDE) {
        const int64_t groups = (most_rows(a->limits + q, 2 * SIDE) + SIDE - 1) / SIDE;
        int64_t g = a->first_row / SIDE;
        for (; g + 2 <= groups; g += 2) {
            scores_2x2(a, g, q, true);
        }
        if (g < groups) {
            scores_2x2(a, g, q, false);
        }
    }
    if (q < a->stride) {
        const int64_t groups = (most_rows(a->limits + q, SIDE) + SIDE - 1) / SIDE;
        int64_t g = a->first_row / SIDE;
        for (; g + 4 <= groups; g += 4) {
            scores_4x1(a, g, q, 4);
        }
        for (; g + 2 <= groups; g += 2) {
            scores_4x1(a, g, q, 2);
        }
        if (g < groups) {
            scores_4x1(a, g, q, 1);
        }
    }
    AMX_RELEASE();
}

/* ---- rows of values: tiles [rows / 32][columns / 32][even, odd columns] of [16 pairs of rows][16 columns] ---- */

static bool pack_rows(const void *const *rows, int64_t num_rows, int64_t dim, mf_cpu_asker *ahead, void *out)
{
    const int lines = lines_per_turn(&ahead->rows, (num_rows + 1) / 2 * ((dim + STEP - 1) / STEP));
    const int64_t columns = mf_cpu_tile_columns(dim);
    const __m512i low = _mm512_set1_epi32(0xffff), exponent = _mm512_set1_epi16(0x7f80);
    __m512i worst = _mm512_setzero_si512();
    for (int64_t s = 0; s < num_rows; s += STEP) {
        for (int64_t p = 0; p < SIDE; p++) {
            uint8_t *to = (uint8_t *)out + s * columns * 2 + p * AMX_ROW_BYTES;
            const int64_t even = s + 2 * p, odd = even + 1;
            const uint8_t *x = even < num_rows ? rows[even] : NULL, *y = odd < num_rows ? rows[odd] : NULL;
            for (int64_t i = 0; i < dim; i += STEP, to += 2 * TILE) {
                ask_ahead(ahead, lines);
                const __mmask32 mask = dim - i >= STEP ? 0xffffffffu : (1u << (dim - i)) - 1;
                const __m512i a = x ? _mm512_maskz_loadu_epi16(mask, x + 2 * i) : _mm512_setzero_si512();
                const __m512i b = y ? _mm512_maskz_loadu_epi16(mask, y + 2 * i) : _mm512_setzero_si512();
                worst = _mm512_max_epu16(worst, _mm512_and_si512(a, exponent));
                worst = _mm512_max_epu16(worst, _mm512_and_si512(b, exponent));
                /* (low & a) | (~low & b), bit by bit */
                _mm512_storeu_si512(to, _mm512_ternarylogic_epi32(low, a, _mm512_slli_epi32(b, 16), 0xca));
                _mm512_storeu_si512(to + TILE, _mm512_ternarylogic_epi32(low, _mm512_srli_epi32(a, 16), b, 0xca));
            }
        }
    }
    return _mm512_cmpeq_epi16_mask(worst, exponent) == 0;
}

/* ---- weighted sums: tiles of [16 queries][16 even or odd columns] ---- */

_Static_assert(MOST_GROUPS * MOST_STEPS * TILE == MF_CPU_TILE_WEIGHTS_BYTES, "weights of a panel and a block");

/* Weights of 16 queries as tiles [16 queries][32 rows], 0 before a query's begin and from its limit on. */
static void pack_weights(const mf_cpu_tile_weights *a, int64_t q, uint8_t (*tiles)[TILE])
{
    const __m512i limits = _mm512_loadu_si512(a->limits + q);
    const __m512i begins = a->begins ? _mm512_loadu_si512(a->begins + q) : _mm512_setzero_si512();
    const float *weights = a->weights + q;
    const int64_t skipped = a->first_row / STEP;
    tiles += skipped;
    for (int64_t s = skipped * STEP; s < a->num_rows; s += STEP, tiles++) {
        __m512i r[SIDE];
        for (int i = 0; i < SIDE; i++) {
            const int row = (int)s + 2 * i;
            ask_ahead(a->ahead, 1);
            const __m512i even = _mm512_set1_epi32(row), odd = _mm512_set1_epi32(row + 1);
            const __mmask16 m0 = _mm512_cmpgt_epi32_mask(limits, even) & _mm512_cmple_epi32_mask(begins, even);
            const __mmask16 m1 = _mm512_cmpgt_epi32_mask(limits, odd) & _mm512_cmple_epi32_mask(begins, odd);
            r[i] = m0 | m1 ? pairs_of(_mm512_maskz_loadu_ps(m0, weights + row * a->stride),
                                      _mm512_maskz_loadu_ps(m1, weights + (row + (m1 != 0)) * a->stride))
                           : _mm512_setzero_si512();
        }
        transpose16(r);
        for (int i = 0; i < SIDE; i++) {
            _mm512_storeu_si512((*tiles) + i * AMX_ROW_BYTES, r[i]);
        }
    }
}

static void weigh(const mf_cpu_tile_weights *a, void *out)
{
    uint8_t(*weights)[MOST_STEPS][TILE] = out;
    for (int64_t q = a->first_query / SIDE * SIDE; q < a->num_queries; q += SIDE) {
        pack_weights(a, q, weights[q / SIDE]);
    }
}

/* Sums of even and odd columns of 16 queries from q on to columns [i, i + 32) of their rows. */
INLINE void put_sums(const mf_cpu_tile_blend *a, const mf_cpu_tile_sums *to, const float *sums, int64_t q, int64_t i)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __mmask16 m0 = mask16(to->n - i), m1 = mask16(to->n - i - 16);
    const int64_t first = q < a->first_query ? a->first_query : q;
    const int64_t end = q + SIDE < to->num_queries ? q + SIDE : to->num_queries;
    for (int64_t j = first; j < end; j++) {
        const __m512 even = _mm512_loadu_ps(sums + (j - q) * SIDE), odd = _mm512_loadu_ps(sums + (j - q + SIDE) * SIDE);
        __m512 x = _mm512_permutex2var_ps(even, low, odd), y = _mm512_permutex2var_ps(even, high, odd);
        float *acc = to->acc + j * to->acc_stride + i;
        if (a->alpha) {
            const __m512 alpha = _mm512_set1_ps(a->alpha[j]), beta = _mm512_set1_ps(a->beta[j]);
            x = _mm512_fmadd_ps(x, beta, _mm512_mul_ps(_mm512_maskz_loadu_ps(m0, acc), alpha));
            y = _mm512_fmadd_ps(y, beta, _mm512_mul_ps(_mm512_maskz_loadu_ps(m1, acc + 16), alpha));
        }
        _mm512_mask_storeu_ps(acc, m0, x);
        _mm512_mask_storeu_ps(acc + 16, m1, y);
    }
}

/* 32 columns of one group of queries, or of two. */
INLINE void blend_32(const mf_cpu_tile_blend *a, const mf_cpu_tile_sums *to, int64_t q, int64_t i, bool two)
{
    _Alignas(64) float sums[4][SIDE * SIDE];
    const uint8_t(*weights)[MOST_STEPS][TILE] = a->weights;
    const int64_t columns = mf_cpu_tile_columns(to->n), steps = (a->num_rows + STEP - 1) / STEP;
    const int64_t g = q / SIDE, skipped = a->first_row / STEP;
    const uint8_t *rows = (const uint8_t *)a->rows + i / STEP * 2 * TILE + skipped * STEP * columns * 2;
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    for (int64_t k = skipped; k < steps; k++, rows += STEP * columns * 2) {
        ask_ahead(a->ahead, LINES_PER_STEP / 2);
        AMX_LOAD(4, weights[g][k], AMX_ROW_BYTES);
        AMX_LOAD(6, rows, AMX_ROW_BYTES);
        AMX_LOAD(7, rows + TILE, AMX_ROW_BYTES);
        AMX_BF16(0, 4, 6);
        AMX_BF16(1, 4, 7);
        if (two) {
            AMX_LOAD(5, weights[g + 1][k], AMX_ROW_BYTES);
            AMX_BF16(2, 5, 6);
            AMX_BF16(3, 5, 7);
        }
    }
    AMX_STORE(0, sums[0], AMX_ROW_BYTES);
    AMX_STORE(1, sums[1], AMX_ROW_BYTES);
    if (two) {
        AMX_STORE(2, sums[2], AMX_ROW_BYTES);
        AMX_STORE(3, sums[3], AMX_ROW_BYTES);
    }
    put_sums(a, to, sums[0], q, i);
    if (two) {
        put_sums(a, to, sums[2], q + SIDE, i);
    }
}

/* Sums of 32 columns stay near while part after part is added. */
static void blend_of(const mf_cpu_tile_blend *parts, int64_t count, const mf_cpu_tile_sums *to)
{
    const amx_config config = whole_tiles();
    AMX_CONFIGURE(&config);
    for (int64_t i = 0; i < to->n; i += STEP) {
        for (int64_t q = 0; q < to->num_queries; q += 2 * SIDE) {
            for (const mf_cpu_tile_blend *a = parts; a < parts + count; a++) {
                const bool low = q + SIDE > a->first_query;
                const bool high = q + SIDE < to->num_queries && q + 2 * SIDE > a->first_query;
                if (low && high) {
                    blend_32(a, to, q, i, true);
                } else if (low || high) {
                    blend_32(a, to, low ? q : q + SIDE, i, false);
                }
            }
        }
    }
    AMX_RELEASE();
}

#if defined(MF_AMX_EMULATE)
#define FILL mf_cpu_attention_fill_amx_emulated
#else
#define FILL mf_cpu_attention_fill_amx
#endif

void FILL(mf_cpu_kernels *k)
{
    static const mf_cpu_attention_tiles tiles = {
        .pack = pack_queries, .scores = scores_of, .pack_rows = pack_rows, .weigh = weigh, .blend = blend_of
    };
    k->attention.tiles = &tiles;
}
