/* tiles_avx2.c - products with AVX2, FMA and F16C.
 *
 * Weights are read in their stored form: eight codes become eight values and meet 1 to 3 tokens.  With few tokens they
 * stay in registers, with many they are decoded once into a small buffer.  Order of sums for one (row, token), either
 * way: lane k % 8, k ascending, by fma, then the eight lanes in a tree; a scale per row comes last, finer scales are in
 * the values.  Rows go four at a time because one token gives one chain of fma per row, and a chain alone waits for its
 * latency. */
#include "kernels/cpu/avx2.h"

enum {
    ROWS = 4,
    TOKENS = 3,
    LEAST_GEMM = 6, /* tokens from which decoding fp8 and 4-bit rows once pays */
    MANY = 24,      /* tokens whose sums are kept beside decoded rows */
    CHUNK = 512     /* columns decoded at a time */
};

/* Four short rows at a time are no pattern that hardware prefetchers follow, so the code asks: this far ahead in each
 * row, and past a row's end in the row that comes next.  Streaming bf16 from memory: 2 to 3 times as fast. */
enum { LINE = 64, AHEAD = 2048 };

/* ---- eight stored codes as values ---- */

/* What turns codes into values for the columns under one scale. */
typedef struct decoder {
    __m256 scale; /* FP8: times 2^120; INT4: the scale; MXFP4: the eight magnitudes times the scale */
    __m256 shift; /* INT4: -(zero * scale) */
} decoder;

/* Eight nibbles, the low one first, each in the low bits of its lane. */
INLINE __m256i nibbles(const void *p)
{
    int32_t word;
    memcpy(&word, p, 4);
    return _mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
}

INLINE decoder decoder_for(mf_format format, const mf_matrix *w, int64_t scale_index)
{
    decoder d = { _mm256_setzero_ps(), _mm256_setzero_ps() };
    if (format == MF_FORMAT_FP8_CHANNEL) {
        d.scale = _mm256_set1_ps(0x1p120f);
    } else if (format == MF_FORMAT_FP8_BLOCK) {
        d.scale = _mm256_set1_ps(mf_matrix_scale_at(w, scale_index) * 0x1p120f);
    } else if (format == MF_FORMAT_INT4_GROUP) {
        float scale = mf_matrix_scale_at(w, scale_index);
        d.scale = _mm256_set1_ps(scale);
        d.shift = _mm256_set1_ps(-((w->zero ? (float)w->zero[scale_index] : 8.0f) * scale));
    } else if (format == MF_FORMAT_MXFP4) {
        const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
        d.scale = _mm256_mul_ps(magnitudes, _mm256_set1_ps(mf_e8m0_to_f32(((const uint8_t *)w->scale)[scale_index])));
    }
    return d;
}

/* p: the row's first byte, or a copy of its tail; k: column, a multiple of 8. */
INLINE __m256 load_values(mf_format format, const uint8_t *p, int64_t k, const decoder *d)
{
    switch (format) {
    case MF_FORMAT_F32:
        return _mm256_loadu_ps((const float *)(const void *)(p + 4 * k));
    case MF_FORMAT_BF16:
        return f32_from_bf16(p + 2 * k);
    case MF_FORMAT_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * k)));
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL: {
        /* e4m3's bits moved up are the float of code * 2^-120, subnormals included: only the exponent's bias differs.
         * Some CPUs are slow at multiplying a subnormal, but codes below 2^-6 are rare where scales bring a block's
         * largest to 448.  NaN codes come out as 480: see has_nan_code. */
        __m256i bits =
            _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + k))), 20);
        bits = _mm256_and_si256(bits, _mm256_set1_epi32((int)0x87f00000u));
        return _mm256_mul_ps(_mm256_castsi256_ps(bits), d->scale);
    }
    case MF_FORMAT_INT8_CHANNEL:
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + k))));
    case MF_FORMAT_INT4_GROUP: {
        __m256i codes = _mm256_and_si256(nibbles(p + k / 2), _mm256_set1_epi32(15));
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), d->scale, d->shift);
    }
    default: {
        __m256i codes = nibbles(p + k / 2);
        __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28), _mm256_set1_epi32((int)0x80000000u));
        return _mm256_xor_ps(_mm256_permutevar8x32_ps(d->scale, codes), _mm256_castsi256_ps(sign));
    }
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

/* The stored rows at hand.  `format`, NR and NT below are compile-time constants once inlined. */
typedef struct rows {
    const uint8_t *codes[ROWS];
    int64_t scale[ROWS];   /* index of the row's first scale */
    int64_t bytes;         /* of one row */
    int64_t next_rows;     /* from a row's end to the row that takes its place in the next block */
    int64_t group;         /* columns under one decoder */
    __m256i max_magnitude; /* fp8: of the codes seen */
} rows;

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

/* Fewer than eight values from column k on; whatever stands behind them meets the zeros behind x. */
INLINE __m256 load_last_values(mf_format format, const uint8_t *codes, int64_t k, int64_t n, const decoder *d)
{
    const int64_t bits = mf_format_bits(format);
    uint8_t padded[32] = { 0 };
    memcpy(padded, codes + k * bits / 8, (size_t)((n * bits + 7) / 8));
    return load_values(format, padded, 0, d);
}

/* One row's sum becomes its output. */
INLINE void finish(mf_format format, const mf_cpu_tile *tile, const rows *q, int i, int64_t r, int64_t t, __m256 acc)
{
    float sum = sum_lanes(acc);
    if (format == MF_FORMAT_FP8_CHANNEL || format == MF_FORMAT_INT8_CHANNEL) {
        sum *= mf_matrix_scale_at(tile->w, q->scale[i]);
    }
    tile->out[t * tile->out_stride + r + i] = sum;
}

/* NR rows times NT tokens from t, codes straight from memory into the products. */
INLINE void stream(mf_format format, int NR, int NT, const mf_cpu_tile *tile, rows *q, int64_t r, int64_t t)
{
    const int64_t size = tile->w->k;
    const int64_t codes_per_line = LINE * 8 / mf_format_bits(format);
    const float *x[TOKENS];
    __m256 acc[ROWS][TOKENS];
    UNROLL(3) for (int j = 0; j < NT; j++) {
        x[j] = tile->x[t + j];
        UNROLL(4) for (int i = 0; i < NR; i++) {
            acc[i][j] = _mm256_setzero_ps();
        }
    }
    for (int64_t first = 0, g = 0; first < size; first += q->group, g++) {
        const int64_t end = size - first < q->group ? size : first + q->group;
        const int64_t main_end = first + (end - first) / 8 * 8;
        decoder d[ROWS];
        UNROLL(4) for (int i = 0; i < NR; i++) {
            d[i] = decoder_for(format, tile->w, q->scale[i] + g);
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
                    __m256 values = load_values(format, q->codes[i], k, &d[i]);
                    UNROLL(3) for (int j = 0; j < NT; j++) {
                        acc[i][j] = _mm256_fmadd_ps(values, xk[j], acc[i][j]);
                    }
                }
            }
        }
        if (main_end < end) {
            arrive(format, NR, q, main_end, end);
            UNROLL(4) for (int i = 0; i < NR; i++) {
                __m256 values = load_last_values(format, q->codes[i], main_end, end - main_end, &d[i]);
                UNROLL(3) for (int j = 0; j < NT; j++) {
                    acc[i][j] = _mm256_fmadd_ps(values, load_tail(x[j] + main_end, end - main_end), acc[i][j]);
                }
            }
        }
    }
    UNROLL(4) for (int i = 0; i < NR; i++) {
        UNROLL(3) for (int j = 0; j < NT; j++) {
            finish(format, tile, q, i, r, t + j, acc[i][j]);
        }
    }
}

/* ---- four rows and many tokens ---- */

/* Columns [first, end) of the rows as floats, to a multiple of eight; first is a multiple of the group. */
INLINE void decode(mf_format format, const mf_cpu_tile *tile, rows *q, bool is_first, int64_t first, int64_t end,
                   float values[ROWS][CHUNK])
{
    const int64_t codes_per_line = LINE * 8 / mf_format_bits(format);
    for (int64_t line = first; is_first && line < end; line += codes_per_line) {
        arrive(format, ROWS, q, line, end - line < codes_per_line ? end : line + codes_per_line);
    }
    for (int64_t start = first; start < end; start += q->group) {
        const int64_t stop = end - start < q->group ? end : start + q->group;
        UNROLL(4) for (int i = 0; i < ROWS; i++) {
            const decoder d = decoder_for(format, tile->w, q->scale[i] + start / q->group);
            int64_t k = start;
            for (; k + 8 <= stop; k += 8) {
                _mm256_store_ps(&values[i][k - first], load_values(format, q->codes[i], k, &d));
            }
            if (k < stop) {
                _mm256_store_ps(&values[i][k - first], load_last_values(format, q->codes[i], k, stop - k, &d));
            }
        }
    }
}

/* ROWS rows of decoded columns [first, end) times three tokens, added to their sums. */
INLINE void multiply(float values[ROWS][CHUNK], const float *const *x, int64_t first, int64_t end,
                     __m256 sums[ROWS][TOKENS])
{
    __m256 acc[ROWS][TOKENS];
    UNROLL(4) for (int i = 0; i < ROWS; i++) {
        UNROLL(3) for (int j = 0; j < TOKENS; j++) {
            acc[i][j] = sums[i][j];
        }
    }
    int64_t k = first;
    for (; k + 8 <= end; k += 8) {
        __m256 xk[TOKENS];
        UNROLL(3) for (int j = 0; j < TOKENS; j++) {
            xk[j] = _mm256_loadu_ps(x[j] + k);
        }
        UNROLL(4) for (int i = 0; i < ROWS; i++) {
            __m256 eight = _mm256_load_ps(&values[i][k - first]);
            UNROLL(3) for (int j = 0; j < TOKENS; j++) {
                acc[i][j] = _mm256_fmadd_ps(eight, xk[j], acc[i][j]);
            }
        }
    }
    if (k < end) {
        UNROLL(4) for (int i = 0; i < ROWS; i++) {
            __m256 eight = _mm256_load_ps(&values[i][k - first]);
            UNROLL(3) for (int j = 0; j < TOKENS; j++) {
                acc[i][j] = _mm256_fmadd_ps(eight, load_tail(x[j] + k, end - k), acc[i][j]);
            }
        }
    }
    UNROLL(4) for (int i = 0; i < ROWS; i++) {
        UNROLL(3) for (int j = 0; j < TOKENS; j++) {
            sums[i][j] = acc[i][j];
        }
    }
}

/* ROWS rows times all tokens: codes become floats once, a chunk of columns at a time.  The chains are those of
 * stream(). */
INLINE void gemm(mf_format format, const mf_cpu_tile *tile, rows *q, int64_t r)
{
    _Alignas(32) float values[ROWS][CHUNK];
    __m256 sums[MANY / TOKENS][ROWS][TOKENS];
    const int64_t size = tile->w->k;
    const int64_t chunk = is_grouped(format) ? CHUNK / q->group * q->group : CHUNK;
    for (int64_t t0 = 0; t0 < tile->num_tokens; t0 += MANY) {
        const int64_t num_tokens = tile->num_tokens - t0 < MANY ? tile->num_tokens - t0 : MANY;
        memset(sums, 0, sizeof sums);
        for (int64_t first = 0; first < size; first += chunk) {
            const int64_t end = size - first < chunk ? size : first + chunk;
            decode(format, tile, q, t0 == 0, first, end, values);
            for (int64_t t = 0; t < num_tokens; t += TOKENS) {
                const float *x[TOKENS];
                for (int64_t j = 0; j < TOKENS; j++) { /* past the end: the last token again */
                    x[j] = tile->x[t0 + (t + j < num_tokens ? t + j : num_tokens - 1)];
                }
                multiply(values, x, first, end, sums[t / TOKENS]);
            }
        }
        for (int64_t t = 0; t < num_tokens; t++) {
            for (int i = 0; i < ROWS; i++) {
                finish(format, tile, q, i, r, t0 + t, sums[t / TOKENS][i][t % TOKENS]);
            }
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
INLINE void tile_of(mf_format format, const mf_cpu_tile *tile)
{
    const int64_t n = tile->num_tokens;
    int64_t r = 0;
    for (; r + ROWS <= tile->num_rows; r += ROWS) {
        rows q = rows_at(format, ROWS, tile, r);
        if ((is_fp8(format) || mf_format_is_4bit(format)) && n >= LEAST_GEMM &&
            (!is_grouped(format) || q.group <= CHUNK)) {
            gemm(format, tile, &q, r);
        } else {
            int64_t t = 0;
            for (; t + 3 <= n; t += 3) {
                stream(format, ROWS, 3, tile, &q, r, t);
            }
            if (t + 2 == n) {
                stream(format, ROWS, 2, tile, &q, r, t);
            } else if (t < n) {
                stream(format, ROWS, 1, tile, &q, r, t);
            }
        }
        if (is_fp8(format) && max_is_nan_code(q.max_magnitude)) {
            spread_nan_codes(tile, r, ROWS);
        }
    }
    for (; r < tile->num_rows; r++) {
        rows q = rows_at(format, 1, tile, r);
        for (int64_t t = 0; t < n; t++) {
            stream(format, 1, 1, tile, &q, r, t);
        }
        if (is_fp8(format) && max_is_nan_code(q.max_magnitude)) {
            spread_nan_codes(tile, r, 1);
        }
    }
}

#define TILE(name, format)                                                                                             \
    static void name(const mf_cpu_tile *tile)                                                                          \
    {                                                                                                                  \
        tile_of(format, tile);                                                                                         \
    }
TILE(tile_f32_avx2, MF_FORMAT_F32)
TILE(tile_bf16_avx2, MF_FORMAT_BF16)
TILE(tile_f16_avx2, MF_FORMAT_F16)
TILE(tile_fp8_channel_avx2, MF_FORMAT_FP8_CHANNEL)
TILE(tile_int8_avx2, MF_FORMAT_INT8_CHANNEL)
TILE(tile_mxfp4_avx2, MF_FORMAT_MXFP4)

/* Whether a row has a scale that 2^120 would make infinite. */
static bool has_huge_scale(const mf_matrix *w, int64_t row)
{
    const int64_t columns = (w->k + MF_FP8_BLOCK_SIZE - 1) / MF_FP8_BLOCK_SIZE;
    const int64_t first = mf_matrix_scale_row(w, row);
    bool found = false;
    for (int64_t g = 0; g < columns; g++) {
        found |= fabsf(mf_matrix_scale_at(w, first + g)) >= 0x1p8f;
    }
    return found;
}

static void tile_fp8_block_avx2(const mf_cpu_tile *tile)
{
    tile_of(MF_FORMAT_FP8_BLOCK, tile);
    int64_t known = -1; /* rows of one block have the same scales */
    bool is_huge = false;
    for (int64_t r = 0; r < tile->num_rows; r++) {
        if ((tile->first_row + r) / MF_FP8_BLOCK_SIZE != known) {
            known = (tile->first_row + r) / MF_FP8_BLOCK_SIZE;
            is_huge = has_huge_scale(tile->w, tile->first_row + r);
        }
        if (is_huge) {
            mf_cpu_tile one = *tile;
            one.first_row += r;
            one.num_rows = 1;
            one.out += r;
            mf_cpu_tile_c(&one);
        }
    }
}

static void tile_int4_avx2(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % 8 != 0) { /* groups would not start at whole vectors */
        mf_cpu_tile_c(tile);
        return;
    }
    tile_of(MF_FORMAT_INT4_GROUP, tile);
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
            __m256i xk = _mm256_cvtepi8_epi16(
                _mm_loadu_si128((const __m128i *)(const void *)((const int8_t *)tile->x[t + j] + k)));
            acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(wide, xk));
        }
    }
    UNROLL(4) for (int j = 0; j < NT; j++) {
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(acc[j]), _mm256_extracti128_si256(acc[j], 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
        for (int64_t i = k; i < w->k; i++) {
            sum += codes[i] * ((const int8_t *)tile->x[t + j])[i];
        }
        tile->out[(t + j) * tile->out_stride + r] = (float)sum * tile->x_scale[t + j] * scale;
    }
}

static void tile_int8_codes_avx2(const mf_cpu_tile *tile)
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
    static const mf_cpu_tile_fn tiles[MF_FORMAT_COUNT] = {
        [MF_FORMAT_F32] = tile_f32_avx2,
        [MF_FORMAT_BF16] = tile_bf16_avx2,
        [MF_FORMAT_F16] = tile_f16_avx2,
        [MF_FORMAT_FP8_BLOCK] = tile_fp8_block_avx2,
        [MF_FORMAT_FP8_CHANNEL] = tile_fp8_channel_avx2,
        [MF_FORMAT_INT8_CHANNEL] = tile_int8_avx2,
        [MF_FORMAT_INT4_GROUP] = tile_int4_avx2,
        [MF_FORMAT_MXFP4] = tile_mxfp4_avx2,
    };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        k->product[f][MF_CPU_INPUT_F32] = (mf_cpu_product){ tiles[f], MF_CPU_FORM_F32 };
        k->product[f][MF_CPU_INPUT_BF16] = k->product[f][MF_CPU_INPUT_F32];
    }
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ tile_int8_codes_avx2, MF_CPU_FORM_I8 };
}
