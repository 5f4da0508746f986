/* int8_rows.h - int8 codes of few tokens times int8 codes with VPDPBUSD: rows are read as they lie, two at a time and
 * far apart, which memory likes best, and asked for well before they are.
 *
 * A row's sum is a whole number and exact in any order.  Codes become unsigned by adding 128, which the sums of the
 * inputs take back. */
#ifndef MF_KERNELS_CPU_INT8_ROWS_H
#define MF_KERNELS_CPU_INT8_ROWS_H

#include "kernels/cpu/avx512.h"
#include "kernels/cpu/cpu_kernels.h"

enum {
    INT8_LINE = 64,
    INT8_LANES = 16,
    INT8_MOST_ROWS = 64,    /* of a pass */
    INT8_FEW = 8,           /* tokens whose sums are in registers */
    INT8_MOST_TOKENS = 24,  /* of a call */
    INT8_AHEAD_BYTES = 2048 /* at least so far ahead are the rows that memory is asked for */
};

typedef struct int8_rows_work {
    _Alignas(64) int32_t dots[INT8_FEW][INT8_MOST_ROWS][INT8_LANES]; /* parts of a row's sums */
    const mf_cpu_tile *tile;
    const uint8_t *x[INT8_MOST_TOKENS]; /* each of whole lines, zeros behind the last column */
    int32_t bias[INT8_MOST_TOKENS];     /* 128 times the sum of a token's codes */
} int8_rows_work;

/* Rows [first, first + num_rows) of the tile, those of both halves side by side: two streams of addresses. */
INLINE void multiply_int8_rows(const int tokens, int8_rows_work *work, const uint8_t *const *x, int64_t first,
                               int64_t num_rows)
{
    const mf_cpu_tile *tile = work->tile;
    const mf_matrix *w = tile->w, *next = tile->next && tile->next->format == w->format ? tile->next : NULL;
    const int64_t half = num_rows / 2, whole = w->k / INT8_LINE * INT8_LINE;
    const int64_t later = INT8_AHEAD_BYTES / w->row_stride + 1;
    const __m512i high = _mm512_set1_epi8((char)0x80);
    const __mmask64 tail = ((__mmask64)1 << (w->k - whole)) - 1;
    for (int64_t r = 0; r < half; r++) {
        const uint8_t *p[2], *ask[2];
        __m512i dot[2][INT8_FEW];
        UNROLL(2) for (int s = 0; s < 2; s++)
        {
            const int64_t row = first + s * half + r, past = row + later - (s + 1) * half - first;
            p[s] = mf_matrix_row(w, tile->first_row + row);
            if (past < 0) {
                ask[s] = mf_matrix_row(w, tile->first_row + row + later);
            } else if (first + num_rows < tile->num_rows) { /* the next pass is as large, or almost */
                ask[s] = mf_matrix_row(w, tile->first_row + first + num_rows + s * half + past);
            } else {
                ask[s] = next ? mf_matrix_row(next, tile->next_row + s * half + past) : p[s];
            }
            UNROLL(8) for (int t = 0; t < tokens; t++)
            {
                dot[s][t] = _mm512_setzero_si512();
            }
        }
        for (int64_t k = 0; k < whole; k += INT8_LINE) {
            UNROLL(2) for (int s = 0; s < 2; s++)
            {
                __builtin_prefetch(ask[s] + k, 0, 2);
                const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(p[s] + k), high);
                UNROLL(8) for (int t = 0; t < tokens; t++)
                {
                    dot[s][t] = _mm512_dpbusd_epi32(dot[s][t], v, _mm512_loadu_si512(x[t] + k));
                }
            }
        }
        UNROLL(2) for (int s = 0; s < 2; s++)
        {
            const __m512i v = _mm512_xor_si512(_mm512_maskz_loadu_epi8(tail, p[s] + whole), high);
            UNROLL(8) for (int t = 0; t < tokens; t++)
            {
                if (tail) { /* inputs are zero behind the last column */
                    dot[s][t] = _mm512_dpbusd_epi32(dot[s][t], v, _mm512_loadu_si512(x[t] + whole));
                }
                _mm512_store_si512(work->dots[t][s * half + r], dot[s][t]);
            }
        }
    }
}

static void store_int8_rows(const int8_rows_work *work, int64_t first_token, int64_t tokens, int64_t first,
                            int64_t num_rows)
{
    const mf_cpu_tile *tile = work->tile;
    const mf_matrix *w = tile->w;
    for (int64_t r = 0; r < num_rows; r += INT8_LANES) {
        float scale[INT8_LANES];
        for (int64_t i = 0; i < INT8_LANES; i++) {
            scale[i] = mf_matrix_scale_at(w, mf_matrix_scale_row(w, tile->first_row + first + r + i));
        }
        for (int64_t t = 0; t < tokens; t++) {
            const int64_t token = first_token + t;
            __m512i v[INT8_LANES];
            UNROLL(16) for (int i = 0; i < INT8_LANES; i++)
            {
                v[i] = _mm512_load_si512(work->dots[t][r + i]);
            }
            turn16(v);
            __m512i sum = _mm512_sub_epi32(v[0], _mm512_set1_epi32(work->bias[token]));
            UNROLL(16) for (int i = 1; i < INT8_LANES; i++)
            {
                sum = _mm512_add_epi32(sum, v[i]);
            }
            const __m512 out = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(tile->x_scale[token]));
            _mm512_storeu_ps(tile->out + token * tile->out_stride + first + r,
                             _mm512_mul_ps(out, _mm512_loadu_ps(scale)));
        }
    }
}

typedef void (*int8_fn)(int8_rows_work *work, const uint8_t *const *x, int64_t first, int64_t num_rows);

#define INT8_ROWS(n)                                                                                                   \
    static void int8_rows_##n(int8_rows_work *work, const uint8_t *const *x, int64_t first, int64_t num_rows)          \
    {                                                                                                                  \
        multiply_int8_rows(n, work, x, first, num_rows);                                                               \
    }
INT8_ROWS(1)
INT8_ROWS(2)
INT8_ROWS(3)
INT8_ROWS(4)
INT8_ROWS(5)
INT8_ROWS(6)
INT8_ROWS(7)
INT8_ROWS(8)
static const int8_fn int8_fns[INT8_FEW] = { int8_rows_1, int8_rows_2, int8_rows_3, int8_rows_4,
                                            int8_rows_5, int8_rows_6, int8_rows_7, int8_rows_8 };

/* Whole sixteens of the tile's rows; returns how many rows. */
static int64_t multiply_int8_tile(int8_rows_work *work)
{
    const int64_t done = work->tile->num_rows / INT8_LANES * INT8_LANES, all = work->tile->num_tokens;
    for (int64_t first = 0, rows; first < done; first += rows) {
        rows = done - first < INT8_MOST_ROWS ? done - first : INT8_MOST_ROWS;
        for (int64_t t = 0, n; t < all; t += n) {
            n = all - t < INT8_FEW ? all - t : INT8_FEW;
            int8_fns[n - 1](work, work->x + t, first, rows);
            store_int8_rows(work, t, n, first, rows);
        }
    }
    return done;
}

#endif
