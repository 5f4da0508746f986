/* quads_avx512_vnni.c - int4 codes times few int8 inputs with VPDPBUSD: bytes of two codes, which are unsigned as they
 * are.
 *
 * Lane 4q + w of a row's sums is part of unit q; the four parts of four rows are added crosswise, so that lane 4q + r
 * is unit q of row r.  A unit's sum is an integer and exact. */
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/products_avx512.h"

enum { ROWS_FIRST = 0, ZERO_LANES = 1, X_BYTES = 128 };

typedef struct quads_kind {
    mf_format format;
    bool has_zero;
} quads_kind;

#include "kernels/cpu/quads_avx512.h"

INLINE int lines_of(const quads_kind kind)
{
    (void)kind;
    return 1;
}

INLINE __m512i table_of(const quads_kind kind)
{
    (void)kind;
    return _mm512_setzero_si512();
}

/* What the zero points of the units take off: times the sums of their inputs, which stand behind the codes. */
INLINE __m512i less_zeros(const quads_kind kind, const mf_cpu_tile *tile, const uint8_t *x, int64_t at,
                          const int32_t *zeros)
{
    const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const uint8_t *p = x + mf_cpu_form_columns(MF_CPU_FORM_I8_HALVES, tile->w->k) + at * 16;
    const __m512i four = _mm512_castsi128_si512(_mm_load_si128((const __m128i *)(const void *)p));
    const __m512i sums = _mm512_permutexvar_epi32(each, four);
    return kind.has_zero ? _mm512_mullo_epi32(sums, _mm512_load_si512(zeros)) : _mm512_slli_epi32(sums, 3);
}

INLINE void quads_step(const quads_kind kind, int Q, int G, int NT, const quads_work *work, const uint8_t *const *codes,
                       cursor *ahead, int64_t at, int64_t b, int64_t left, const uint8_t *const *x, __m512i table,
                       vec total[MOST_QUADS][MOST])
{
    const spans *s = work->spans;
    const __m512i mask = _mm512_set1_epi8(15);
    (void)table;
    UNROLL(8) for (int g = 0; g < G; g++)
    {
        __builtin_prefetch(ahead->scales, 0, 3);
        ahead->scales += ahead->scales_step;
        UNROLL(2) for (int q = 0; q < Q; q++)
        {
            __m512i dots[4][MOST];
            UNROLL(4) for (int r = 0; r < 4; r++)
            {
                const uint8_t *p = codes[4 * q + r] + (at + g) * LINE;
                const __m512i v = left >= COLUMNS ? _mm512_loadu_si512(p)
                                                  : _mm512_maskz_loadu_epi8(~0ull >> (LINE - (left + 1) / 2), p);
                const __m512i low = _mm512_and_si512(v, mask), high = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
                __builtin_prefetch(ahead->codes, 0, 3);
                ahead->codes += ahead->codes_step;
                UNROLL(4) for (int j = 0; j < NT; j++)
                {
                    const uint8_t *xk = x[j] + (at + g) * X_BYTES;
                    const __m512i even = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_load_si512(xk));
                    dots[r][j] = _mm512_dpbusd_epi32(even, high, _mm512_load_si512(xk + 64));
                }
            }
            const vec scale = _mm512_load_ps(s->scale[q][b + g]);
            UNROLL(4) for (int j = 0; j < NT; j++)
            {
                const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(dots[0][j], dots[1][j]),
                                                    _mm512_unpackhi_epi32(dots[0][j], dots[1][j]));
                const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(dots[2][j], dots[3][j]),
                                                    _mm512_unpackhi_epi32(dots[2][j], dots[3][j]));
                const __m512i sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
                const __m512i zeros = less_zeros(kind, work->tile, x[j], at + g, s->zero[q][b + g]);
                total[q][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums, zeros)), scale, total[q][j]);
            }
        }
    }
}

INLINE __m128 sum_units(const mf_cpu_tile *tile, int64_t t, vec total)
{
    const __m128 even = _mm_add_ps(_mm512_castps512_ps128(total), _mm512_extractf32x4_ps(total, 2));
    const __m128 odd = _mm_add_ps(_mm512_extractf32x4_ps(total, 1), _mm512_extractf32x4_ps(total, 3));
    return _mm_mul_ps(_mm_add_ps(even, odd), _mm_set1_ps(tile->x_scale[t]));
}

#define QUADS_KIND(name, zero)                                                                                         \
    QUADS_ROWS(name, MF_FORMAT_INT4_GROUP, zero, 1, 1, 1)                                                              \
    QUADS_ROWS(name, MF_FORMAT_INT4_GROUP, zero, 1, 1, 2)                                                              \
    QUADS_ROWS(name, MF_FORMAT_INT4_GROUP, zero, 1, 1, 3)                                                              \
    QUADS_ROWS(name, MF_FORMAT_INT4_GROUP, zero, 1, 1, 4)                                                              \
    static const rows_fn name[MOST] = { name##_1, name##_2, name##_3, name##_4 };
QUADS_KIND(int4, false)
QUADS_KIND(int4_zeros, true)

static void int4_quads(const mf_cpu_tile *tile)
{
    if (tile->w->group_size % UNIT != 0 && tile->w->group_size < tile->w->k) { /* groups start inside units */
        mf_cpu_tile_rare(tile, MF_CPU_FORM_I8_HALVES, 1);
    } else if (tile->w->zero) {
        quads_tile(tile, int4_zeros, mf_cpu_lanes_int4_codes);
        redo_far_zeros(tile, MF_CPU_FORM_I8_HALVES);
    } else {
        quads_tile(tile, int4, mf_cpu_lanes_int4_codes);
    }
}

void mf_cpu_quads_fill_avx512_vnni(mf_cpu_kernels *k)
{
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] = (mf_cpu_product){ int4_quads, MF_CPU_FORM_I8_HALVES };
}
