/* quads_avx512_bf16.c - codes under scales of 32 columns or more times few bf16 inputs, with VDPBF16PS.
 *
 * Words of 32 bits change places within a row and between rows, so that lane 4r + q holds the same columns of unit q of
 * row r.  A unit's sum is a chain over its sixteen pairs of columns: 0 and 4, 1 and 5, 2 and 6, 3 and 7 of each eight.
 */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/products_avx512.h"
#include "kernels/cpu/values_avx512_bf16.h"

enum { ROWS_FIRST = 1, ZERO_LANES = 0x10001, X_BYTES = 256 };

typedef struct quads_kind {
    mf_format format;
    bool has_zero;
} quads_kind;

#include "kernels/cpu/quads_avx512.h"

INLINE int lines_of(const quads_kind kind)
{
    return kind.format == MF_FORMAT_FP8_BLOCK ? 2 : 1;
}

/* ---- values ---- */

/* What the low five bits of a word stand for, as bf16.  Without zero points the highest of them is the next code's;
 * with them the five are a code less its zero point. */
#define BF16_INT(i) ((i) < 0 ? 0x8000 | BF16_SIZE(-(i)) : (i) > 0 ? BF16_SIZE(i) : 0)
#define BF16_SIZE(n)                                                                                                   \
    ((n) >= 16  ? 0x4180                                                                                               \
     : (n) >= 8 ? 0x4100 + ((n)-8) * 16                                                                                \
     : (n) >= 4 ? 0x4080 + ((n)-4) * 32                                                                                \
     : (n) >= 2 ? 0x4000 + ((n)-2) * 64                                                                                \
                : 0x3f80)
#define INTS4(i) BF16_INT(i), BF16_INT((i) + 1), BF16_INT((i) + 2), BF16_INT((i) + 3)
#define INTS16(i) INTS4(i), INTS4((i) + 4), INTS4((i) + 8), INTS4((i) + 12)
#define E2M1                                                                                                           \
    0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040,    \
        0xc080, 0xc0c0
static _Alignas(64) const uint16_t less_8[32] = { INTS16(-8), INTS16(-8) };
static _Alignas(64) const uint16_t less_zero[32] = { INTS16(0), INTS16(-16) };
static _Alignas(64) const uint16_t e2m1[32] = { E2M1, E2M1 };

/* Words m, of 32 bits, of the units of four rows: v holds lines_of() lines of each row. */
INLINE void turn_quad(const quads_kind kind, const __m512i v[4][2], __m512i words[8])
{
    __m512i a[4], b[4];
    if (kind.format == MF_FORMAT_FP8_BLOCK) {
        /* of each eight bytes two pairs of the four units, then the next two: unpacking makes two steps of columns of
         * that */
#define PAIR(k) (k), (k) + 4, (k) + 32, (k) + 36, (k) + 64, (k) + 68, (k) + 96, (k) + 100
#define EIGHT(k) PAIR(k), PAIR((k) + 1), PAIR((k) + 2), PAIR((k) + 3)
        static _Alignas(64) const uint8_t pick[2][64] = { { EIGHT(0), EIGHT(8) }, { EIGHT(16), EIGHT(24) } };
        UNROLL(2) for (int h = 0; h < 2; h++)
        {
            UNROLL(4) for (int r = 0; r < 4; r++)
            {
                a[r] = _mm512_permutex2var_epi8(v[r][0], _mm512_load_si512(pick[h]), v[r][1]);
            }
            b[0] = _mm512_shuffle_i32x4(a[0], a[1], 0x44);
            b[1] = _mm512_shuffle_i32x4(a[0], a[1], 0xee);
            b[2] = _mm512_shuffle_i32x4(a[2], a[3], 0x44);
            b[3] = _mm512_shuffle_i32x4(a[2], a[3], 0xee);
            words[4 * h] = _mm512_shuffle_i32x4(b[0], b[2], 0x88);
            words[4 * h + 1] = _mm512_shuffle_i32x4(b[0], b[2], 0xdd);
            words[4 * h + 2] = _mm512_shuffle_i32x4(b[1], b[3], 0x88);
            words[4 * h + 3] = _mm512_shuffle_i32x4(b[1], b[3], 0xdd);
        }
        return;
    }
    const __m512i pick = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i pick2 = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
    UNROLL(2) for (int r = 0; r < 2; r++)
    {
        a[r] = _mm512_permutex2var_epi32(v[2 * r][0], pick, v[2 * r + 1][0]);
        b[r] = _mm512_permutex2var_epi32(v[2 * r][0], pick2, v[2 * r + 1][0]);
    }
    words[0] = _mm512_shuffle_i32x4(a[0], a[1], 0x44);
    words[1] = _mm512_shuffle_i32x4(a[0], a[1], 0xee);
    words[2] = _mm512_shuffle_i32x4(b[0], b[1], 0x44);
    words[3] = _mm512_shuffle_i32x4(b[0], b[1], 0xee);
}

/* Steps, of two columns per lane, that a word is. */
INLINE int steps_of(const quads_kind kind)
{
    return kind.format == MF_FORMAT_FP8_BLOCK ? 2 : 4;
}

INLINE void expand(const quads_kind kind, __m512i word, __m512i table, __m512i zeros, __m512i steps[4])
{
    if (kind.format == MF_FORMAT_FP8_BLOCK) {
        e4m3_values(word, &steps[0], &steps[1]);
        return;
    }
    UNROLL(4) for (int i = 0; i < 4; i++)
    {
        __m512i codes = i ? _mm512_srli_epi16(word, 4 * i) : word; /* i and 4 + i, in the low bits of words */
        if (kind.has_zero) {
            codes = _mm512_sub_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(15)), zeros);
        }
        steps[i] = _mm512_permutexvar_epi16(codes, table);
    }
}

INLINE __m512i table_of(const quads_kind kind)
{
    return _mm512_load_si512(kind.format == MF_FORMAT_MXFP4 ? e2m1 : kind.has_zero ? less_zero : less_8);
}

/* ---- products ---- */

typedef __m512i turned_words[8][MOST_QUADS * MOST_BLOCKS];
typedef vec unit_sums[MOST_QUADS][MOST_BLOCKS][MOST];

/* 8 bits decode for so long that the lines of a step, asked for at once, would leave the memory idle afterwards: they
 * are asked for one by one between the products.  4 bits gain nothing by that. */
INLINE bool asks_between(const quads_kind kind)
{
    return kind.format == MF_FORMAT_FP8_BLOCK;
}

INLINE void ask_line(cursor *ahead)
{
    __builtin_prefetch(ahead->codes, 0, 3);
    ahead->codes += ahead->codes_step;
}

/* The words of block `at`, the g'th of G, of Q quads of rows; `left` of its columns are there. */
INLINE void turn_block(const quads_kind kind, int Q, int G, const uint8_t *const *codes, cursor *ahead, int64_t at,
                       int64_t left, int g, turned_words words)
{
    const int lines = lines_of(kind);
    __builtin_prefetch(ahead->scales, 0, 3);
    ahead->scales += ahead->scales_step;
    UNROLL(2) for (int q = 0; q < Q; q++)
    {
        __m512i v[4][2], turned[8];
        UNROLL(4) for (int r = 0; r < 4; r++)
        {
            UNROLL(2) for (int l = 0; l < lines; l++)
            {
                const uint8_t *p = codes[4 * q + r] + (at * lines + l) * LINE;
                if (left >= COLUMNS) {
                    v[r][l] = _mm512_loadu_si512(p);
                } else {
                    const int64_t bytes = lines == 2 ? left - l * LINE : (left + 1) / 2;
                    const __mmask64 mask = bytes >= LINE ? ~0ull : bytes > 0 ? ~0ull >> (LINE - bytes) : 0;
                    v[r][l] = _mm512_maskz_loadu_epi8(mask, p);
                }
                if (!asks_between(kind)) {
                    ask_line(ahead);
                }
            }
        }
        turn_quad(kind, (const __m512i(*)[2])v, turned);
        UNROLL(8) for (int m = 0; m < 4 * lines; m++)
        {
            words[m][q * G + g] = turned[m];
        }
    }
}

/* Word number m of the blocks, a line of codes for each vector of it; x: the inputs that meet it in the first. */
INLINE void add_word(const quads_kind kind, int Q, int G, int NT, const __m512i *word, __m512i table, const spans *s,
                     int64_t b, const uint8_t *const *x, cursor *ahead, unit_sums sums)
{
    const int steps = steps_of(kind);
    UNROLL(8) for (int g = 0; g < G; g++)
    {
        __m512i step[MOST_QUADS][4];
        UNROLL(2) for (int q = 0; q < Q; q++)
        {
            const __m512i zeros = kind.has_zero ? _mm512_load_si512(s->zero[q][b + g]) : table;
            if (asks_between(kind)) {
                ask_line(ahead);
            }
            expand(kind, word[q * G + g], table, zeros, step[q]);
        }
        UNROLL(4) for (int i = 0; i < steps; i++)
        {
            UNROLL(4) for (int j = 0; j < NT; j++)
            {
                const __m128i *four = (const __m128i *)(const void *)(x[j] + g * X_BYTES + i * 16);
                const __m512bh pairs = (__m512bh)_mm512_broadcast_i32x4(_mm_load_si128(four));
                UNROLL(2) for (int q = 0; q < Q; q++)
                {
                    sums[q][g][j] = _mm512_dpbf16_ps(sums[q][g][j], (__m512bh)step[q][i], pairs);
                }
            }
        }
    }
}

/* First all words change places, then their products are added: chains of Q * G * NT units side by side, or each would
 * wait for itself. */
INLINE void quads_step(const quads_kind kind, int Q, int G, int NT, const quads_work *work, const uint8_t *const *codes,
                       cursor *ahead, int64_t at, int64_t b, int64_t left, const uint8_t *const *x, __m512i table,
                       vec total[MOST_QUADS][MOST])
{
    const spans *s = work->spans;
    const bool is_short = lines_of(kind) == 1; /* words stay in registers when the loops are lines */
    const int words_of_unit = 4 * lines_of(kind), word_bytes = steps_of(kind) * 16;
    turned_words words;
    unit_sums sums;
    const uint8_t *xs[MOST];
    UNROLL(8) for (int g = 0; is_short && g < G; g++)
    {
        turn_block(kind, Q, G, codes, ahead, at + g, left, g, words);
    }
    for (int g = 0; !is_short && g < G; g++) {
        turn_block(kind, Q, G, codes, ahead, at + g, left, g, words);
    }
    UNROLL(4) for (int j = 0; j < NT; j++)
    {
        xs[j] = x[j] + at * X_BYTES;
        UNROLL(8) for (int g = 0; g < G; g++)
        {
            UNROLL(2) for (int q = 0; q < Q; q++)
            {
                sums[q][g][j] = vec_zero();
            }
        }
    }
    UNROLL(4) for (int m = 0; is_short && m < 4; m++)
    {
        add_word(kind, Q, G, NT, words[m], table, s, b, xs, ahead, sums);
        UNROLL(4) for (int j = 0; j < NT; j++)
        {
            xs[j] += word_bytes;
        }
    }
    for (int m = 0; !is_short && m < words_of_unit; m++) {
        add_word(kind, Q, G, NT, words[m], table, s, b, xs, ahead, sums);
        UNROLL(4) for (int j = 0; j < NT; j++)
        {
            xs[j] += word_bytes;
        }
    }
    UNROLL(8) for (int g = 0; g < G; g++)
    {
        UNROLL(2) for (int q = 0; q < Q; q++)
        {
            const vec scale = _mm512_load_ps(s->scale[q][b + g]);
            UNROLL(4) for (int j = 0; j < NT; j++)
            {
                total[q][j] = _mm512_fmadd_ps(sums[q][g][j], scale, total[q][j]);
            }
        }
    }
}

INLINE __m128 sum_units(const mf_cpu_tile *tile, int64_t t, vec total)
{
    (void)tile;
    (void)t;
    total = _mm512_add_ps(total, _mm512_permute_ps(total, 0x4e));
    total = _mm512_add_ps(total, _mm512_permute_ps(total, 0xb1));
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(first, total));
}

/* Quads of rows and blocks of columns at a time, for 1 to 4 tokens: chains enough, and rows few enough for the memory.
 */
#define QUADS_KIND(name, format_, zero, G1, Q2, G2)                                                                    \
    QUADS_ROWS(name, format_, zero, 1, G1, 1)                                                                          \
    QUADS_ROWS(name, format_, zero, Q2, G2, 2)                                                                         \
    QUADS_ROWS(name, format_, zero, 2, 2, 3)                                                                           \
    QUADS_ROWS(name, format_, zero, 2, 2, 4)                                                                           \
    static const rows_fn name[MOST] = { name##_1, name##_2, name##_3, name##_4 };
QUADS_KIND(int4, MF_FORMAT_INT4_GROUP, false, 4, 1, 4)
QUADS_KIND(int4_zeros, MF_FORMAT_INT4_GROUP, true, 4, 1, 4)
QUADS_KIND(mxfp4, MF_FORMAT_MXFP4, false, 4, 1, 4)
QUADS_KIND(fp8, MF_FORMAT_FP8_BLOCK, false, 4, 2, 2)

static void int4_quads(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % UNIT != 0 && tile->w->group_size < tile->w->k) { /* groups start inside units */
        mf_cpu_tile_rare(tile, MF_CPU_FORM_BF16_QUADS, 1);
    } else if (tile->w->zero) {
        quads_tile(tile, int4_zeros, mf_cpu_lanes_int4_bf16);
        redo_far_zeros(tile, MF_CPU_FORM_BF16_QUADS);
    } else {
        quads_tile(tile, int4, mf_cpu_lanes_int4_bf16);
    }
}

static void mxfp4_quads(const mf_cpu_tile *tile)
{
    quads_tile(tile, mxfp4, mf_cpu_lanes_mxfp4_bf16);
}

static void fp8_block_quads(const mf_cpu_tile *tile)
{
    quads_tile(tile, fp8, mf_cpu_lanes_fp8_block_bf16);
}

void mf_cpu_quads_fill_avx512_bf16(mf_cpu_kernels *k)
{
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_BF16] = (mf_cpu_product){ int4_quads, MF_CPU_FORM_BF16_QUADS };
    k->product[MF_FORMAT_MXFP4][MF_CPU_INPUT_BF16] = (mf_cpu_product){ mxfp4_quads, MF_CPU_FORM_BF16_QUADS };
    k->product[MF_FORMAT_FP8_BLOCK][MF_CPU_INPUT_BF16] = (mf_cpu_product){ fp8_block_quads, MF_CPU_FORM_BF16_QUADS };
}
