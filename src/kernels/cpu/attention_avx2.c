/* attention_avx2.c - attention's inner kernels with AVX2, FMA and F16C: eight queries a vector; decoded rows of
 * weights. */
#include "kernels/cpu/avx2.h"

typedef __m256 vec;
enum { LANES = 8, SCORE_VECTORS = 2, BLEND_QUERIES = 6 };
#define SCORE_ROWS(vectors) ((vectors) == 2 ? 6 : 12)

#define v_zero() _mm256_setzero_ps()
#define v_set(x) _mm256_set1_ps(x)
#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, v) _mm256_storeu_ps(p, v)
#define v_add(a, b) _mm256_add_ps(a, b)
#define v_sub(a, b) _mm256_sub_ps(a, b)
#define v_mul(a, b) _mm256_mul_ps(a, b)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_max(a, b) _mm256_max_ps(a, b)

static inline __attribute__((always_inline)) __m256i lanes_below(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline __attribute__((always_inline)) vec v_load_part(const float *p, int64_t n)
{
    return _mm256_maskload_ps(p, lanes_below(n));
}

static inline __attribute__((always_inline)) void v_store_part(float *p, vec v, int64_t n)
{
    _mm256_maskstore_ps(p, lanes_below(n), v);
}

static inline __attribute__((always_inline)) vec v_keep_below(int64_t s, const int32_t *limits, vec x)
{
    const __m256i limit = _mm256_loadu_si256((const __m256i *)(const void *)limits);
    const __m256 below = _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, _mm256_set1_epi32((int)s)));
    return _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), x, below);
}

static inline __attribute__((always_inline)) vec v_keep_from(int64_t s, const int32_t *begins, vec x)
{
    const __m256i begin = _mm256_loadu_si256((const __m256i *)(const void *)begins);
    const __m256 before = _mm256_castsi256_ps(_mm256_cmpgt_epi32(begin, _mm256_set1_epi32((int)s)));
    return _mm256_blendv_ps(x, _mm256_set1_ps(-INFINITY), before);
}

/* +0 below -87, -infinity included; NaN stays */
static inline __attribute__((always_inline)) vec v_exp(vec x)
{
    const __m256 least = _mm256_set1_ps(-87.0f);
    const __m256 keep = _mm256_cmp_ps(x, least, _CMP_NLT_UQ);
    x = _mm256_max_ps(least, x); /* the second operand when NaN */
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_and_ps(exp_reduced8(x, n), keep);
}

#include "kernels/cpu/attention_tiles.h"

/* ---- panels ---- */

INLINE void transpose8(__m256 r[8])
{
    __m256 a[8], b[8];
    UNROLL(4) for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    UNROLL(2) for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    UNROLL(4) for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

static void pack_avx2(const float *const *queries, int64_t num_queries, int64_t dim, float *panel, int64_t stride)
{
    for (int64_t q = 0; q < stride; q += 8) {
        for (int64_t d = 0; d < dim; d += 8) {
            const int64_t n = dim - d < 8 ? dim - d : 8;
            __m256 r[8];
            UNROLL(8) for (int i = 0; i < 8; i++) {
                r[i] = q + i >= num_queries ? v_zero()
                       : n == 8             ? v_load(queries[q + i] + d)
                                            : v_load_part(queries[q + i] + d, n);
            }
            transpose8(r);
            float *out = panel + d * stride + q;
            UNROLL(8) for (int i = 0; i < 8; i++) {
                if (i < n) {
                    v_store(out + i * stride, r[i]);
                }
            }
        }
    }
}

/* ---- weights ---- */

/* Eight codes from column k on, k even for 4-bit formats, as mf_matrix_decode_codes has them; zero: INT4's zero point.
 */
INLINE __m256 codes8(mf_format format, const uint8_t *row, int64_t k, __m256 zero)
{
    if (format == MF_FORMAT_INT8_CHANNEL) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(row + k))));
    }
    if (!mf_format_is_4bit(format)) {
        /* e4m3's bits moved up are the float of value * 2^-120, subnormals included */
        const __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(row + k)));
        const __m256i bits = _mm256_and_si256(_mm256_slli_epi32(codes, 20), _mm256_set1_epi32((int)0x87f00000u));
        const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi32(0x7f));
        const __m256i nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
        const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p120f));
        return _mm256_or_ps(value, _mm256_and_ps(_mm256_castsi256_ps(nan), _mm256_set1_ps(__builtin_nanf(""))));
    }
    int32_t word;
    memcpy(&word, row + k / 2, 4);
    const __m256i shifted = _mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    if (format == MF_FORMAT_INT4_GROUP) {
        return _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15))), zero);
    }
    const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(shifted, 28), _mm256_set1_epi32((int)0x80000000u));
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, shifted), _mm256_castsi256_ps(sign));
}

/* Columns [first, first + count) of one scale, a multiple of eight. */
INLINE void decode_scaled(mf_format format, const uint8_t *row, int64_t first, int64_t count, float scale, float zero,
                          float *out)
{
    for (int64_t i = 0; i < count; i += 8) {
        v_store(out + i, v_mul(codes8(format, row, first + i, v_set(zero)), v_set(scale)));
    }
}

static int64_t decode_floats(const mf_matrix *m, const uint8_t *row, int64_t first, int64_t count, float *out)
{
    int64_t i = 0;
    for (; m->format == MF_FORMAT_BF16 && i + 8 <= count; i += 8) {
        v_store(out + i, f32_from_bf16(row + 2 * (first + i)));
    }
    for (; m->format == MF_FORMAT_F16 && i + 8 <= count; i += 8) {
        v_store(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * (first + i)))));
    }
    return i;
}

static void decode_row_avx2(const mf_matrix *m, int64_t r, int64_t first, int64_t count, float *out)
{
    const uint8_t *row = mf_matrix_row(m, r);
    const int64_t group = mf_matrix_group(m), base = mf_matrix_scale_row(m, r);
    if (m->format < MF_FORMAT_FP8_BLOCK) {
        const int64_t done = decode_floats(m, row, first, count, out);
        mf_matrix_decode_row(m, r, first + done, count - done, out + done);
        return;
    }
    for (int64_t i = 0; i < count;) {
        const int64_t k = first + i, g = group ? k / group : 0;
        const int64_t end = group && (g + 1) * group - first < count ? (g + 1) * group - first : count;
        const float scale = mf_matrix_scale_at(m, base + g);
        const int64_t whole = mf_format_is_4bit(m->format) && k % 2 ? 0 : (end - i) / 8 * 8;
        switch (m->format) {
        case MF_FORMAT_INT8_CHANNEL:
            decode_scaled(MF_FORMAT_INT8_CHANNEL, row, k, whole, scale, 0.0f, out + i);
            break;
        case MF_FORMAT_INT4_GROUP:
            decode_scaled(MF_FORMAT_INT4_GROUP, row, k, whole, scale, m->zero ? (float)m->zero[base + g] : 8.0f,
                          out + i);
            break;
        case MF_FORMAT_MXFP4:
            decode_scaled(MF_FORMAT_MXFP4, row, k, whole, scale, 0.0f, out + i);
            break;
        default:
            decode_scaled(MF_FORMAT_FP8_BLOCK, row, k, whole, scale, 0.0f, out + i);
            break;
        }
        mf_matrix_decode_row(m, r, k + whole, end - i - whole, out + i + whole);
        i = end;
    }
}

void mf_cpu_attention_fill_avx2(mf_cpu_kernels *k)
{
    k->attention = (mf_cpu_attention_kernels){ .pack = pack_avx2,
                                               .scores = scores_of,
                                               .softmax = softmax_of,
                                               .merge = merge_of,
                                               .blend = blend_of,
                                               .combine = combine_of,
                                               .scale = scale_of,
                                               .decode_row = decode_row_avx2 };
}
