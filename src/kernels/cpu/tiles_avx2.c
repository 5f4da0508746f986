/* tiles_avx2.c - products with AVX2, FMA and F16C.
 *
 * Weights are read in their stored form: eight codes become eight floats and meet 1 to 3 tokens.  With few tokens they stay in
 * registers, with many they are decoded once into a small buffer.  Order of sums for one (row, token), either way: lane k % 8
 * of a scale's group ascending by fma, groups ascending by fma with their scale, then the eight lanes in a tree.  Rows go four
 * at a time because one token gives one chain of fma per row and a chain alone waits for its latency. */
#include "kernels/cpu/avx2.h"

enum {
    ROWS = 4,
    TOKENS = 3,
    LEAST_GEMM = 5, /* tokens from which decoding rows once pays */
    MANY = 24,      /* tokens whose sums are kept beside decoded rows */
    CHUNK = 256     /* columns decoded at a time */
};

/* Four short rows at a time are no pattern that hardware prefetchers follow, so the code asks: this far ahead in each row,
 * and past a row's end in the row that comes next.  Streaming bf16 from memory: 2 to 3 times as fast. */
enum { LINE = 64, AHEAD = 2048 };

/* ---- eight stored codes as floats ---- */

/* e4m3's bits moved up are the float of value * 2^-120, subnormals included: only the exponent's bias differs.  Some CPUs are
 * slow at the multiplication of a subnormal, but the codes below 2^-6 are rare when scales bring a block's largest to 448.
 * NaN codes come out as 480: see has_nan_code. */
INLINE __m256 f32_from_e4m3(const void *p)
{
    __m256i bits = _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)), 20);
    bits = _mm256_and_si256(bits, _mm256_set1_epi32((int)0x87f00000u));
    return _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p120f));
}

INLINE __m256i nibbles(const void *p)
{
    int32_t word;
    memcpy(&word, p, 4);
    return _mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
}

INLINE __m256 f32_from_e2m1(const void *p)
{
    const __m256 magnitude = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    __m256i codes = nibbles(p);
    __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28), _mm256_set1_epi32((int)0x80000000u));
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitude, codes), _mm256_castsi256_ps(sign));
}

/* p: the row's first byte, or a copy of its tail; k: column, a multiple of 8. */
INLINE __m256 load_codes(mf_format format, const uint8_t *p, int64_t k, __m256i zero)
{
    switch (format) {
    case MF_FORMAT_F32:
        return _mm256_loadu_ps((const float *)(const void *)(p + 4 * k));
    case MF_FORMAT_BF16:
        return f32_from_bf16(p + 2 * k);
    case MF_FORMAT_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * k)));
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL:
        return f32_from_e4m3(p + k);
    case MF_FORMAT_INT8_CHANNEL:
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + k))));
    case MF_FORMAT_INT4_GROUP: {
        __m256i codes = _mm256_and_si256(nibbles(p + k / 2), _mm256_set1_epi32(15));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero));
    }
    default:
        return f32_from_e2m1(p + k / 2);
    }
}

static bool has_nan_code(const uint8_t *codes, int64_t n)
{
    bool found = false;
    for (int64_t i = 0; i < n; i++) {
        found |= (codes[i] & 0x7f) == 0x7f;
    }
    return found;
}

/* The larger magnitude bits of `max` and of one line of codes: 0x7f anywhere says that a row may hold a NaN code. */
INLINE __m256i max_magnitude(__m256i max, const uint8_t *line)
{
    const __m256i mask = _mm256_set1_epi8(0x7f);
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)line);
    __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(line + 32));
    return _mm256_max_epu8(max, _mm256_max_epu8(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)));
}

/* The same for a line that is cut short. */
INLINE __m256i max_magnitude_short(__m256i max, const uint8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        max = _mm256_max_epu8(max, _mm256_set1_epi8((char)(codes[i] & 0x7f)));
    }
    return max;
}

INLINE bool max_is_nan_code(__m256i max)
{
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(max, _mm256_set1_epi8(0x7f))) != 0;
}

/* ---- four rows and a few tokens ---- */

/* The stored rows at hand.  `format`, `quantised`, NR and NT below are compile-time constants once inlined. */
typedef struct rows {
    const uint8_t *codes[ROWS];
    int64_t scale[ROWS];   /* index of the row's first scale */
    int64_t bytes;         /* of one row */
    int64_t next_rows;     /* from a row's end to the row that takes its place in the next block */
    int64_t group;         /* columns under one scale; all of them when scales belong to rows */
    __m256i max_magnitude; /* fp8: of the codes seen */
} rows;

/* One chain of fma per row and token: within a group, and of the groups so far. */
typedef struct sums {
    __m256 acc[ROWS][TOKENS], total[ROWS][TOKENS];
} sums;

INLINE bool is_fp8(mf_format format)
{
    return format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_FP8_CHANNEL;
}

INLINE bool is_grouped(mf_format format)
{
    return format == MF_FORMAT_FP8_BLOCK || mf_format_is_4bit(format);
}

INLINE rows rows_at(mf_format format, int NR, const mf_cpu_tile *tile, int64_t r)
{
    const mf_matrix *w = tile->w;
    rows q = { .bytes = w->k * mf_format_bits(format) / 8, .max_magnitude = _mm256_setzero_si256() };
    q.next_rows = NR * w->row_stride * mf_format_bits(format) / 8 - q.bytes;
    q.group = is_grouped(format) ? mf_matrix_group(w) : w->k;
    UNROLL(4) for (int i = 0; i < NR; i++) {
        q.codes[i] = mf_matrix_row(w, tile->first_row + r + i);
        q.scale[i] = mf_matrix_scale_row(w, tile->first_row + r + i);
    }
    return q;
}

/* Before the codes from column k to end, at most a line, are read for the first time. */
INLINE void arrive(mf_format format, int NR, rows *q, int64_t k, int64_t end)
{
    const int64_t ahead = k * mf_format_bits(format) / 8 + AHEAD;
    UNROLL(4) for (int i = 0; i < NR; i++) {
        _mm_prefetch((const char *)q->codes[i] + ahead + (ahead < q->bytes ? 0 : q->next_rows), _MM_HINT_T0);
        if (is_fp8(format)) {
            q->max_magnitude = end - k == LINE ? max_magnitude(q->max_magnitude, q->codes[i] + k)
                                               : max_magnitude_short(q->max_magnitude, q->codes[i] + k, end - k);
        }
    }
}

INLINE __m256i zero_point(mf_format format, const mf_cpu_tile *tile, const rows *q, int i, int64_t g)
{
    return _mm256_set1_epi32(format == MF_FORMAT_INT4_GROUP && tile->w->zero ? tile->w->zero[q->scale[i] + g] : 8);
}

/* Fewer than eight codes from column k on, zeros behind them: times the zeros behind x they add nothing. */
INLINE __m256 load_last_codes(mf_format format, const uint8_t *codes, int64_t k, int64_t n, __m256i zero)
{
    const int64_t bits = mf_format_bits(format);
    uint8_t padded[32] = { 0 };
    memcpy(padded, codes + k * bits / 8, (size_t)((n * bits + 7) / 8));
    return load_codes(format, padded, 0, zero);
}

INLINE void clear(int NR, int NT, sums *s)
{
    UNROLL(4) for (int i = 0; i < NR; i++) {
        UNROLL(3) for (int j = 0; j < NT; j++) {
            s->acc[i][j] = _mm256_setzero_ps();
            s->total[i][j] = _mm256_setzero_ps();
        }
    }
}

/* A group ends: its sum times its scale joins the total. */
INLINE void fold(bool quantised, int NR, int NT, const mf_cpu_tile *tile, const rows *q, const float *const *x_scale, int64_t g,
                 sums *s)
{
    UNROLL(4) for (int i = 0; i < NR; i++) {
        float scale_w = mf_matrix_scale_at(tile->w, q->scale[i] + g);
        UNROLL(3) for (int j = 0; j < NT; j++) {
            float scale = quantised ? x_scale[j][g] * scale_w : scale_w;
            s->total[i][j] = _mm256_fmadd_ps(s->acc[i][j], _mm256_set1_ps(scale), s->total[i][j]);
            s->acc[i][j] = _mm256_setzero_ps();
        }
    }
}

INLINE void finish(mf_format format, bool quantised, int NR, int NT, const mf_cpu_tile *tile, const rows *q, int64_t r, int64_t t,
                   int64_t num_tokens, const sums *s)
{
    const bool is_channel = format == MF_FORMAT_FP8_CHANNEL || format == MF_FORMAT_INT8_CHANNEL;
    UNROLL(4) for (int i = 0; i < NR; i++) {
        float scale_w = is_channel ? mf_matrix_scale_at(tile->w, q->scale[i]) : 1.0f;
        UNROLL(3) for (int j = 0; j < NT; j++) {
            if (j >= num_tokens) {
                continue; /* a copy of the last token */
            }
            float sum = sum_lanes(is_grouped(format) ? s->total[i][j] : s->acc[i][j]);
            if (is_channel) {
                sum *= quantised ? tile->x_scale[t + j][0] * scale_w : scale_w;
            }
            tile->out[(t + j) * tile->out_stride + r + i] = sum;
        }
    }
}

/* NR rows times NT tokens from t, codes straight from memory into the products. */
INLINE void stream(mf_format format, bool quantised, int NR, int NT, const mf_cpu_tile *tile, rows *q, int64_t r, int64_t t)
{
    const int64_t size = tile->w->k;
    const int64_t codes_per_line = LINE * 8 / mf_format_bits(format);
    const float *x[TOKENS];
    sums s;
    clear(NR, NT, &s);
    UNROLL(3) for (int j = 0; j < NT; j++) {
        x[j] = tile->x[t + j];
    }
    for (int64_t first = 0, g = 0; first < size; first += q->group, g++) {
        const int64_t end = size - first < q->group ? size : first + q->group;
        const int64_t main_end = first + (end - first) / 8 * 8;
        __m256i zero[ROWS];
        UNROLL(4) for (int i = 0; i < NR; i++) {
            zero[i] = zero_point(format, tile, q, i, g);
        }
        for (int64_t k = first; k < main_end;) {
            const int64_t line_end = main_end - k < codes_per_line ? main_end : k + codes_per_line;
            if (t == 0) {
                arrive(format, NR, q, k, line_end);
            }
            for (; k < line_end; k += 8) {
                __m256 xk[TOKENS];
                UNROLL(3) for (int j = 0; j < NT; j++) {
                    xk[j] = _mm256_loadu_ps(x[j] + k);
                }
                UNROLL(4) for (int i = 0; i < NR; i++) {
                    __m256 codes = load_codes(format, q->codes[i], k, zero[i]);
                    UNROLL(3) for (int j = 0; j < NT; j++) {
                        s.acc[i][j] = _mm256_fmadd_ps(codes, xk[j], s.acc[i][j]);
                    }
                }
            }
        }
        if (main_end < end) {
            arrive(format, NR, q, main_end, end);
            UNROLL(4) for (int i = 0; i < NR; i++) {
                __m256 codes = load_last_codes(format, q->codes[i], main_end, end - main_end, zero[i]);
                UNROLL(3) for (int j = 0; j < NT; j++) {
                    s.acc[i][j] = _mm256_fmadd_ps(codes, load_tail(x[j] + main_end, end - main_end), s.acc[i][j]);
                }
            }
        }
        if (is_grouped(format)) {
            fold(quantised, NR, NT, tile, q, tile->x_scale + t, g, &s);
        }
    }
    finish(format, quantised, NR, NT, tile, q, r, t, NT, &s);
}

/* ---- four rows and many tokens ---- */

/* Columns [first, end) of the rows as floats, to a multiple of eight. */
INLINE void decode(mf_format format, const mf_cpu_tile *tile, rows *q, bool is_first, int64_t first, int64_t end,
                   float codes[ROWS][CHUNK])
{
    const int64_t codes_per_line = LINE * 8 / mf_format_bits(format);
    for (int64_t line = first; line < end; line += codes_per_line) {
        const int64_t line_end = end - line < codes_per_line ? end : line + codes_per_line;
        if (is_first) {
            arrive(format, ROWS, q, line, line_end);
        }
        UNROLL(4) for (int i = 0; i < ROWS; i++) {
            int64_t k = line;
            for (; k + 8 <= line_end; k += 8) {
                __m256 values = load_codes(format, q->codes[i], k, zero_point(format, tile, q, i, k / q->group));
                _mm256_store_ps(&codes[i][k - first], values);
            }
            if (k < line_end) {
                __m256i zero = zero_point(format, tile, q, i, k / q->group);
                _mm256_store_ps(&codes[i][k - first], load_last_codes(format, q->codes[i], k, line_end - k, zero));
            }
        }
    }
}

/* ROWS rows times all tokens: codes become floats once, a chunk of columns at a time.  The chains are those of stream(). */
INLINE void gemm(mf_format format, bool quantised, const mf_cpu_tile *tile, rows *q, int64_t r)
{
    _Alignas(32) float codes[ROWS][CHUNK];
    sums all[MANY / TOKENS];
    const int64_t size = tile->w->k;
    const int64_t chunk = is_grouped(format) ? CHUNK / q->group * q->group : CHUNK;
    for (int64_t t0 = 0; t0 < tile->num_tokens; t0 += MANY) {
        const int64_t num_tokens = tile->num_tokens - t0 < MANY ? tile->num_tokens - t0 : MANY;
        for (int64_t b = 0; b * TOKENS < num_tokens; b++) {
            clear(ROWS, TOKENS, &all[b]);
        }
        for (int64_t start = 0; start < size; start += chunk) {
            const int64_t stop = size - start < chunk ? size : start + chunk;
            decode(format, tile, q, t0 == 0, start, stop, codes);
            for (int64_t b = 0; b * TOKENS < num_tokens; b++) {
                const float *x[TOKENS];
                const float *x_scale[TOKENS];
                UNROLL(3) for (int j = 0; j < TOKENS; j++) { /* past the end: the last token again */
                    int64_t t = b * TOKENS + j < num_tokens ? b * TOKENS + j : num_tokens - 1;
                    x[j] = tile->x[t0 + t];
                    x_scale[j] = quantised ? tile->x_scale[t0 + t] : NULL;
                }
                sums s = all[b];
                for (int64_t first = start; first < stop; first += q->group) {
                    const int64_t end = stop - first < q->group ? stop : first + q->group;
                    int64_t k = first;
                    for (; k + 8 <= end; k += 8) {
                        __m256 xk[TOKENS];
                        UNROLL(3) for (int j = 0; j < TOKENS; j++) {
                            xk[j] = _mm256_loadu_ps(x[j] + k);
                        }
                        UNROLL(4) for (int i = 0; i < ROWS; i++) {
                            __m256 values = _mm256_load_ps(&codes[i][k - start]);
                            UNROLL(3) for (int j = 0; j < TOKENS; j++) {
                                s.acc[i][j] = _mm256_fmadd_ps(values, xk[j], s.acc[i][j]);
                            }
                        }
                    }
                    if (k < end) {
                        UNROLL(4) for (int i = 0; i < ROWS; i++) {
                            __m256 values = _mm256_load_ps(&codes[i][k - start]);
                            UNROLL(3) for (int j = 0; j < TOKENS; j++) {
                                s.acc[i][j] = _mm256_fmadd_ps(values, load_tail(x[j] + k, end - k), s.acc[i][j]);
                            }
                        }
                    }
                    if (is_grouped(format)) {
                        fold(quantised, ROWS, TOKENS, tile, q, x_scale, first / q->group, &s);
                    }
                }
                all[b] = s;
            }
        }
        for (int64_t b = 0; b * TOKENS < num_tokens; b++) {
            finish(format, quantised, ROWS, TOKENS, tile, q, r, t0 + b * TOKENS, num_tokens - b * TOKENS, &all[b]);
        }
    }
}

/* ---- a tile ---- */

/* A NaN weight times anything is NaN, and so is the sum. */
static void spread_nan_codes(const mf_cpu_tile *tile, int64_t r, int64_t num_rows)
{
    for (int64_t i = r; i < r + num_rows; i++) {
        if (has_nan_code(mf_matrix_row(tile->w, tile->first_row + i), tile->w->k)) {
            for (int64_t t = 0; t < tile->num_tokens; t++) {
                tile->out[t * tile->out_stride + i] = __builtin_nanf("");
            }
        }
    }
}

/* All tokens against a few rows before the next rows: the rows then come from the first-level cache. */
INLINE void tile_of(mf_format format, bool quantised, const mf_cpu_tile *tile)
{
    const int64_t n = tile->num_tokens;
    int64_t r = 0;
    for (; r + ROWS <= tile->num_rows; r += ROWS) {
        rows q = rows_at(format, ROWS, tile, r);
        if (format != MF_FORMAT_F32 && n >= LEAST_GEMM && (!is_grouped(format) || q.group <= CHUNK)) {
            gemm(format, quantised, tile, &q, r);
        } else {
            int64_t t = 0;
            for (; t + 3 <= n; t += 3) {
                stream(format, quantised, ROWS, 3, tile, &q, r, t);
            }
            if (t + 2 == n) {
                stream(format, quantised, ROWS, 2, tile, &q, r, t);
            } else if (t < n) {
                stream(format, quantised, ROWS, 1, tile, &q, r, t);
            }
        }
        if (is_fp8(format) && max_is_nan_code(q.max_magnitude)) {
            spread_nan_codes(tile, r, ROWS);
        }
    }
    for (; r < tile->num_rows; r++) {
        rows q = rows_at(format, 1, tile, r);
        for (int64_t t = 0; t < n; t++) {
            stream(format, quantised, 1, 1, tile, &q, r, t);
        }
        if (is_fp8(format) && max_is_nan_code(q.max_magnitude)) {
            spread_nan_codes(tile, r, 1);
        }
    }
}

#define TILE(name, format, quantised)              \
    static void name(const mf_cpu_tile *tile)      \
    {                                              \
        tile_of(format, quantised, tile);          \
    }
TILE(tile_f32_avx2, MF_FORMAT_F32, false)
TILE(tile_bf16_avx2, MF_FORMAT_BF16, false)
TILE(tile_f16_avx2, MF_FORMAT_F16, false)
TILE(tile_fp8_block_avx2, MF_FORMAT_FP8_BLOCK, false)
TILE(tile_fp8_block_w8a8_avx2, MF_FORMAT_FP8_BLOCK, true)
TILE(tile_fp8_channel_avx2, MF_FORMAT_FP8_CHANNEL, false)
TILE(tile_fp8_channel_w8a8_avx2, MF_FORMAT_FP8_CHANNEL, true)
TILE(tile_int8_avx2, MF_FORMAT_INT8_CHANNEL, false)
TILE(tile_mxfp4_avx2, MF_FORMAT_MXFP4, false)

static void tile_int4_avx2(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % 8 != 0) { /* groups would not start at whole vectors */
        mf_cpu_tile_c(tile);
        return;
    }
    tile_of(MF_FORMAT_INT4_GROUP, false, tile);
}

/* Integer sums are exact, so their order is free: 16 codes a step, two products per 32-bit lane. */
INLINE void int8_row(const mf_cpu_tile *tile, int NT, int64_t r, int64_t t)
{
    const mf_matrix *w = tile->w;
    const int8_t *codes = (const int8_t *)mf_matrix_row(w, tile->first_row + r);
    const float scale = mf_matrix_scale_at(w, mf_matrix_scale_row(w, tile->first_row + r));
    __m256i acc[4];
    UNROLL(4) for (int j = 0; j < NT; j++) {
        acc[j] = _mm256_setzero_si256();
    }
    int64_t k = 0;
    for (; k + 16 <= w->k; k += 16) {
        __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(codes + k)));
        UNROLL(4) for (int j = 0; j < NT; j++) {
            __m256i xk = _mm256_loadu_si256((const __m256i *)(const void *)((const int16_t *)tile->x[t + j] + k));
            acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(wide, xk));
        }
    }
    UNROLL(4) for (int j = 0; j < NT; j++) {
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(acc[j]), _mm256_extracti128_si256(acc[j], 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
        for (int64_t i = k; i < w->k; i++) {
            sum += codes[i] * ((const int16_t *)tile->x[t + j])[i];
        }
        tile->out[(t + j) * tile->out_stride + r] = (float)sum * tile->x_scale[t + j][0] * scale;
    }
}

static void tile_int8_w8a8_avx2(const mf_cpu_tile *tile)
{
    for (int64_t r = 0; r < tile->num_rows; r++) {
        int64_t t = 0;
        for (; t + 4 <= tile->num_tokens; t += 4) {
            int8_row(tile, 4, r, t);
        }
        for (; t < tile->num_tokens; t++) {
            int8_row(tile, 1, r, t);
        }
    }
}

void mf_cpu_tiles_fill_avx2(mf_cpu_kernels *k)
{
    k->tile[MF_FORMAT_F32] = tile_f32_avx2;
    k->tile[MF_FORMAT_BF16] = tile_bf16_avx2;
    k->tile[MF_FORMAT_F16] = tile_f16_avx2;
    k->tile[MF_FORMAT_FP8_BLOCK] = tile_fp8_block_avx2;
    k->tile[MF_FORMAT_FP8_CHANNEL] = tile_fp8_channel_avx2;
    k->tile[MF_FORMAT_INT8_CHANNEL] = tile_int8_avx2;
    k->tile[MF_FORMAT_INT4_GROUP] = tile_int4_avx2;
    k->tile[MF_FORMAT_MXFP4] = tile_mxfp4_avx2;
    k->tile_w8a8[MF_FORMAT_FP8_BLOCK] = tile_fp8_block_w8a8_avx2;
    k->tile_w8a8[MF_FORMAT_FP8_CHANNEL] = tile_fp8_channel_w8a8_avx2;
    k->tile_w8a8[MF_FORMAT_INT8_CHANNEL] = tile_int8_w8a8_avx2;
}
