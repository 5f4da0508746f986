/* kernels_avx2.c - AVX2, FMA and F16C.
 *
 * Products stream weights in their stored form: eight codes become eight floats in registers and meet 1 to 3 tokens.  Order of
 * sums for one (row, token), whatever the tile: lane k % 8 of a scale's group ascending by fma, groups ascending by fma with
 * their scale, then the eight lanes in a tree.  Rows go four at a time because one token gives one chain of fma per row and a
 * chain alone waits for its latency. */
#include <immintrin.h>

#include "kernels/activation.h"
#include "kernels/cpu/cpu_kernels.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL(n) _Pragma("clang loop unroll(full)")
#else
#define UNROLL_TEXT(text) _Pragma(#text)
#define UNROLL(n) UNROLL_TEXT(GCC unroll n)
#endif

enum { ROWS = 4, TOKENS = 3 };

/* Four short rows at a time are no pattern that hardware prefetchers follow, so the code asks: this far ahead in each row,
 * and past a row's end in the row that comes next.  Streaming bf16 from memory: 2 to 3 times as fast. */
enum { LINE = 64, AHEAD = 2048 };

/* ---- eight stored codes as floats ---- */

INLINE __m256 f32_from_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}

/* e4m3's bits moved up are the f16 of value * 2^-8, subnormals included: the exponent bias differs by 8.  NaN codes come out
 * as 480: see has_nan_code. */
INLINE __m256 f32_from_e4m3_scaled(const void *p)
{
    __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(p));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16((short)0xbfff)));
}
#define E4M3_SCALE 256.0f

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
        return f32_from_e4m3_scaled(p + k);
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

/* ((0+4) + (2+6)) + ((1+5) + (3+7)) */
INLINE float sum_lanes(__m256 v)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE __m256 load_tail(const float *x, int64_t n)
{
    float padded[8] = { 0 };
    memcpy(padded, x, (size_t)n * sizeof(float));
    return _mm256_loadu_ps(padded);
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

/* ---- the product's inner block ---- */

/* NR rows from r times NT tokens from t: compile-time constants once inlined.  For the first tokens it also asks for the
 * rows' continuation and, with fp8, returns whether a NaN code may be among the codes. */
INLINE bool block(mf_format format, bool quantised, int NR, int NT, const mf_cpu_tile *tile, int64_t r, int64_t t)
{
    const mf_matrix *w = tile->w;
    const bool is_fp8 = format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_FP8_CHANNEL;
    const bool grouped = format == MF_FORMAT_FP8_BLOCK || mf_format_is_4bit(format);
    const int64_t bits = mf_format_bits(format);
    const int64_t group = format == MF_FORMAT_INT4_GROUP ? w->group_size
                          : format == MF_FORMAT_MXFP4    ? MF_MXFP4_GROUP
                          : grouped                      ? MF_FP8_BLOCK_SIZE
                                                         : w->k;
    const int64_t codes_per_line = LINE * 8 / bits;
    const int64_t row_bytes = w->k * bits / 8;
    const int64_t next_rows = NR * w->row_stride * bits / 8 - row_bytes;
    const uint8_t *row[ROWS];
    int64_t scale_row[ROWS];
    const float *x[TOKENS];
    __m256 acc[ROWS][TOKENS];
    __m256 total[ROWS][TOKENS];
    __m256i max = _mm256_setzero_si256();
    UNROLL(4) for (int i = 0; i < NR; i++) {
        row[i] = mf_matrix_row(w, tile->first_row + r + i);
        scale_row[i] = mf_matrix_scale_row(w, tile->first_row + r + i);
        UNROLL(3) for (int j = 0; j < NT; j++) {
            acc[i][j] = _mm256_setzero_ps();
            total[i][j] = _mm256_setzero_ps();
        }
    }
    UNROLL(3) for (int j = 0; j < NT; j++) {
        x[j] = tile->x[t + j];
    }
    for (int64_t first = 0, g = 0; first < w->k; first += group, g++) {
        const int64_t end = w->k - first < group ? w->k : first + group;
        const int64_t main_end = first + (end - first) / 8 * 8;
        __m256i zero[ROWS];
        UNROLL(4) for (int i = 0; i < NR; i++) {
            zero[i] = _mm256_set1_epi32(format == MF_FORMAT_INT4_GROUP && w->zero ? w->zero[scale_row[i] + g] : 8);
        }
        for (int64_t k = first; k < main_end;) {
            const int64_t line_end = main_end - k < codes_per_line ? main_end : k + codes_per_line;
            if (t == 0) {
                const int64_t ahead = k * bits / 8 + AHEAD;
                UNROLL(4) for (int i = 0; i < NR; i++) {
                    _mm_prefetch((const char *)row[i] + ahead + (ahead < row_bytes ? 0 : next_rows), _MM_HINT_T0);
                    if (is_fp8) {
                        max = line_end - k == LINE ? max_magnitude(max, row[i] + k)
                                                   : max_magnitude_short(max, row[i] + k, line_end - k);
                    }
                }
            }
            for (; k < line_end; k += 8) {
                __m256 xk[TOKENS];
                UNROLL(3) for (int j = 0; j < NT; j++) {
                    xk[j] = _mm256_loadu_ps(x[j] + k);
                }
                UNROLL(4) for (int i = 0; i < NR; i++) {
                    __m256 codes = load_codes(format, row[i], k, zero[i]);
                    UNROLL(3) for (int j = 0; j < NT; j++) {
                        acc[i][j] = _mm256_fmadd_ps(codes, xk[j], acc[i][j]);
                    }
                }
            }
        }
        if (main_end < end) {
            __m256 xk[TOKENS];
            UNROLL(3) for (int j = 0; j < NT; j++) {
                xk[j] = load_tail(x[j] + main_end, end - main_end);
            }
            UNROLL(4) for (int i = 0; i < NR; i++) {
                uint8_t padded[32] = { 0 };
                memcpy(padded, row[i] + main_end * bits / 8, (size_t)(((end - main_end) * bits + 7) / 8));
                if (is_fp8) {
                    max = max_magnitude_short(max, padded, 8);
                }
                __m256 codes = load_codes(format, padded, 0, zero[i]);
                UNROLL(3) for (int j = 0; j < NT; j++) {
                    acc[i][j] = _mm256_fmadd_ps(codes, xk[j], acc[i][j]);
                }
            }
        }
        if (grouped) {
            UNROLL(4) for (int i = 0; i < NR; i++) {
                float scale_w = mf_matrix_scale_at(w, scale_row[i] + g);
                UNROLL(3) for (int j = 0; j < NT; j++) {
                    float scale = quantised ? tile->x_scale[t + j][g] * scale_w : scale_w;
                    total[i][j] = _mm256_fmadd_ps(acc[i][j], _mm256_set1_ps(scale), total[i][j]);
                    acc[i][j] = _mm256_setzero_ps();
                }
            }
        }
    }
    const bool is_channel = format == MF_FORMAT_FP8_CHANNEL || format == MF_FORMAT_INT8_CHANNEL;
    UNROLL(4) for (int i = 0; i < NR; i++) {
        UNROLL(3) for (int j = 0; j < NT; j++) {
            float sum = sum_lanes(grouped ? total[i][j] : acc[i][j]);
            if (is_fp8) {
                sum *= E4M3_SCALE;
            }
            if (is_channel) {
                float scale_w = mf_matrix_scale_at(w, scale_row[i]);
                sum *= quantised ? tile->x_scale[t + j][0] * scale_w : scale_w;
            }
            tile->out[(t + j) * tile->out_stride + r + i] = sum;
        }
    }
    return is_fp8 && max_is_nan_code(max);
}

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
    int64_t r = 0;
    for (; r + ROWS <= tile->num_rows; r += ROWS) {
        bool may_be_nan = false;
        int64_t t = 0;
        for (; t + 3 <= tile->num_tokens; t += 3) {
            may_be_nan |= block(format, quantised, ROWS, 3, tile, r, t);
        }
        if (t + 2 == tile->num_tokens) {
            may_be_nan |= block(format, quantised, ROWS, 2, tile, r, t);
        } else if (t < tile->num_tokens) {
            may_be_nan |= block(format, quantised, ROWS, 1, tile, r, t);
        }
        if (may_be_nan) {
            spread_nan_codes(tile, r, ROWS);
        }
    }
    for (; r < tile->num_rows; r++) {
        bool may_be_nan = false;
        for (int64_t t = 0; t < tile->num_tokens; t++) {
            may_be_nan |= block(format, quantised, 1, 1, tile, r, t);
        }
        if (may_be_nan) {
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
    if (tile->w->group_size % 8 != 0) {
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

/* ---- elementwise ---- */

/* exp(x) within 2 ulp; +0 below -87, the largest float's neighbourhood above 88; NaN stays. */
INLINE __m256 exp8(__m256 x)
{
    __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f), _mm256_min_ps(_mm256_set1_ps(88.0f), x)); /* the second operand when NaN */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e400p-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(0x1.a01a02p-13f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.6c16c2p-10f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.111112p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555556p-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555556p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), keep);
}

INLINE __m256 sigmoid8(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(one, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

/* x > limit ? limit : x, so NaN stays: the comparison's second operand is what a NaN selects */
INLINE __m256 min8(__m256 x, float limit)
{
    return _mm256_min_ps(_mm256_set1_ps(limit), x);
}

INLINE __m256 clamp8(__m256 x, float limit)
{
    return _mm256_max_ps(_mm256_set1_ps(-limit), min8(x, limit));
}

INLINE __m128i bf16_from_f32(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

INLINE __m128i f16_from_f32(__m256 x)
{
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
}

INLINE __m256 round8(__m256 x, mf_dtype dtype)
{
    if (dtype == MF_BF16) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16_from_f32(x)), 16));
    }
    return dtype == MF_F16 ? _mm256_cvtph_ps(f16_from_f32(x)) : x;
}

INLINE __m256 activate8(const mf_slot *slot, __m256 g, __m256 u)
{
    switch (slot->activation) {
    case MF_ACT_SILU:
        return _mm256_mul_ps(_mm256_mul_ps(g, sigmoid8(g)), u);
    case MF_ACT_SILU_CLAMP:
        g = min8(g, slot->limit);
        return _mm256_mul_ps(_mm256_mul_ps(g, sigmoid8(g)), clamp8(u, slot->limit));
    case MF_ACT_SILU_CLAMP_AFTER:
        return _mm256_mul_ps(min8(_mm256_mul_ps(g, sigmoid8(g)), slot->limit), clamp8(u, slot->limit));
    default: /* SWIGLU_OAI */
        g = min8(g, slot->limit);
        u = clamp8(u, slot->limit);
        return _mm256_mul_ps(_mm256_mul_ps(g, sigmoid8(_mm256_mul_ps(_mm256_set1_ps(slot->alpha), g))),
                             _mm256_add_ps(u, _mm256_set1_ps(1.0f)));
    }
}

static void activate_avx2(const mf_slot *slot, mf_dtype dtype, const float *g, const float *u, int64_t n, float *h)
{
    if (slot->activation > MF_ACT_SWIGLU_OAI) {
        for (int64_t i = 0; i < n; i++) {
            h[i] = mf_round_to_dtype(mf_activate(slot, g[i], u[i]), dtype);
        }
        return;
    }
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(h + i, round8(activate8(slot, _mm256_loadu_ps(g + i), _mm256_loadu_ps(u + i)), dtype));
    }
    if (i < n) {
        float last[8];
        _mm256_storeu_ps(last, round8(activate8(slot, load_tail(g + i, n - i), load_tail(u + i, n - i)), dtype));
        memcpy(h + i, last, (size_t)(n - i) * sizeof(float));
    }
}

static void load_row_avx2(const void *data, mf_dtype dtype, int64_t n, float *out)
{
    const uint8_t *p = data;
    int64_t i = 0;
    if (dtype == MF_BF16) {
        for (; i + 8 <= n; i += 8) {
            _mm256_storeu_ps(out + i, f32_from_bf16(p + 2 * i));
        }
    } else if (dtype == MF_F16) {
        for (; i + 8 <= n; i += 8) {
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i))));
        }
    }
    mf_load_row(p + i * (dtype == MF_F32 ? 4 : 2), dtype, n - i, out + i);
}

static void store_row_avx2(const float *x, int64_t n, mf_dtype dtype, void *data)
{
    uint8_t *p = data;
    int64_t i = 0;
    if (dtype != MF_F32) {
        for (; i + 8 <= n; i += 8) {
            __m256 v = _mm256_loadu_ps(x + i);
            _mm_storeu_si128((__m128i *)(void *)(p + 2 * i), dtype == MF_BF16 ? bf16_from_f32(v) : f16_from_f32(v));
        }
    }
    mf_store_row(x + i, n - i, dtype, p + i * (dtype == MF_F32 ? 4 : 2));
}

/* v to the nearest e4m3 value, saturating; NaN stays. */
INLINE __m256 round_e4m3(__m256 v)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f);
    __m256 sign = _mm256_and_ps(v, sign_bit);
    __m256 mag = _mm256_min_ps(_mm256_set1_ps(448.0f), _mm256_andnot_ps(sign_bit, v));
    /* below 2^-6 the steps are 2^-9, the ulp of [2^14, 2^15) */
    const __m256 magic = _mm256_set1_ps(16384.0f);
    __m256 small = _mm256_sub_ps(_mm256_add_ps(mag, magic), magic);
    __m256i bits = _mm256_castps_si256(mag);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
    bits = _mm256_and_si256(bits, _mm256_set1_epi32((int)0xfff00000u));
    __m256 rounded = _mm256_blendv_ps(_mm256_castsi256_ps(bits), small, _mm256_cmp_ps(mag, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ));
    rounded = _mm256_blendv_ps(rounded, v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_or_ps(rounded, sign);
}

/* codes may lie over x. */
static void quantise_avx2(mf_quant quant, float static_scale, bool e8m0, const float *x, int64_t n, void *codes, float *scales)
{
    const int64_t group = mf_quant_group(quant, n);
    for (int64_t first = 0, g = 0; first < n; first += group, g++) {
        const int64_t end = n - first < group ? n : first + group;
        float scale = mf_quant_scale(quant, static_scale, e8m0, x + first, end - first);
        const __m256 divisor = _mm256_set1_ps(scale);
        int64_t i = first;
        for (; i + 8 <= end; i += 8) {
            __m256 v = _mm256_div_ps(_mm256_loadu_ps(x + i), divisor);
            if (quant != MF_QUANT_INT8_TOKEN) {
                _mm256_storeu_ps((float *)codes + i, round_e4m3(v));
                continue;
            }
            v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
            v = clamp8(_mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 127.0f);
            __m256i words = _mm256_cvtps_epi32(v);
            _mm_storeu_si128((__m128i *)(void *)((uint8_t *)codes + 2 * i),
                             _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
        }
        for (; i < end; i++) {
            float code = mf_quant_code(quant, x[i], scale);
            if (quant == MF_QUANT_INT8_TOKEN) {
                int16_t narrow = (int16_t)code;
                memcpy((uint8_t *)codes + 2 * i, &narrow, 2);
            } else {
                ((float *)codes)[i] = code;
            }
        }
        scales[g] = scale;
    }
}

static float dot_avx2(const float *a, const float *b, int64_t n)
{
    __m256 acc[4];
    UNROLL(4) for (int j = 0; j < 4; j++) {
        acc[j] = _mm256_setzero_ps();
    }
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        UNROLL(4) for (int j = 0; j < 4; j++) {
            acc[j] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j), acc[j]);
        }
    }
    for (; i + 8 <= n; i += 8) {
        acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), acc[0]);
    }
    if (i < n) {
        acc[1] = _mm256_fmadd_ps(load_tail(a + i, n - i), load_tail(b + i, n - i), acc[1]);
    }
    return sum_lanes(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
}

static void axpy_avx2(float *acc, float a, const float *x, int64_t n)
{
    const __m256 factor = _mm256_set1_ps(a);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(acc + i, _mm256_fmadd_ps(factor, _mm256_loadu_ps(x + i), _mm256_loadu_ps(acc + i)));
    }
    for (; i < n; i++) {
        acc[i] = fmaf(a, x[i], acc[i]);
    }
}

static float exp_sum_avx2(float *x, int64_t n, float max)
{
    const __m256 shift = _mm256_set1_ps(max);
    __m256 sum = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), shift));
        _mm256_storeu_ps(x + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    if (i < n) {
        float last[8] = { 0 };
        _mm256_storeu_ps(last, exp8(_mm256_sub_ps(load_tail(x + i, n - i), shift)));
        memcpy(x + i, last, (size_t)(n - i) * sizeof(float));
        sum = _mm256_add_ps(sum, load_tail(last, n - i));
    }
    return sum_lanes(sum);
}

static void rms_norm_avx2(const float *x, const float *weight, int64_t n, float eps, float *out)
{
    float scale = 1.0f / sqrtf(dot_avx2(x, x, n) / (float)n + eps);
    const __m256 factor = _mm256_set1_ps(scale);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor), _mm256_loadu_ps(weight + i)));
    }
    for (; i < n; i++) {
        out[i] = x[i] * scale * weight[i];
    }
}

void mf_cpu_kernels_fill_avx2(mf_cpu_kernels *k)
{
    k->isa = "avx2+fma+f16c";
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
    k->activate = activate_avx2;
    k->load_row = load_row_avx2;
    k->store_row = store_row_avx2;
    k->quantise = quantise_avx2;
    k->dot = dot_avx2;
    k->axpy = axpy_avx2;
    k->exp_sum = exp_sum_avx2;
    k->rms_norm = rms_norm_avx2;
}
