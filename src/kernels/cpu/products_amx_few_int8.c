/* products_amx_few_int8.c - int8 codes of few tokens times int4 and int8 codes with VPDPBUSD, in place of tiles.
 *
 * Sums under one scale are whole numbers and exact in any order.  int4: sixteen rows are the lanes of a vector
 * (amx_few_rows.h), whose words are eight codes: the even ones and the odd ones are four unsigned bytes each; what a
 * zero point takes off is known before, since inputs come with their sums.  Segments' sums enter the totals as the tile
 * product lets them (amx_product.h).  int8: int8_rows.h. */
#include "kernels/cpu/amx_few.h"
#include "kernels/cpu/amx_few_rows.h"
#include "kernels/cpu/int8_rows.h"

enum {
    MOST_TOKENS = MF_CPU_PANEL,
    AT_ONCE = 8,        /* tokens whose sums are in registers */
    MOST_WORDS = 14336, /* of inputs of one parity: eight columns are one of each */
    BLOCK_STEPS = 4,    /* of 32 columns: 64 bytes of codes */
    SHORTEST = 256      /* bytes of rows that are asked for in one stream */
};

/* ---- int4 ---- */

typedef struct int4_work {
    _Alignas(64) uint32_t block[SIDE][LANES];
    _Alignas(64) float scale[SPAN_STEPS + LANES][LANES];
    _Alignas(64) int32_t zero[SPAN_STEPS + LANES][LANES];
    _Alignas(64) float total[MOST_TOKENS][LANES];
    _Alignas(64) __m512i part[MOST_TOKENS];
    _Alignas(64) int32_t even[MOST_WORDS + LANES], odd[MOST_WORDS + LANES]; /* [k / 8][tokens]: four codes */
    _Alignas(64) int32_t less[MOST_WORDS / 4 + LANES]; /* [k / 32][tokens]: what enters the sums for a zero point of 1,
                                                          or with all of 8 */
    const mf_cpu_tile *tile;
    int64_t tokens, row;
    int group_shift; /* a group is 2^group_shift times 32 columns */
} int4_work;

/* A panel's words of four codes, two for each eight columns, to the even codes of both and the odd ones. */
static void part_inputs(int4_work *work, int64_t columns)
{
    const int64_t n = work->tokens, at_once = n <= 8 ? 8 / n : 1; /* times eight columns */
    const uint8_t *p = work->tile->x[0];
    _Alignas(64) uint8_t pick[64];
    for (int64_t i = 0; i < 64; i++) { /* byte i of the even words; past 64: of the second vector */
        const int64_t word = i / 4, j = word / n, t = word % n;
        pick[i] = (uint8_t)(((2 * j + i % 4 / 2) * n + t) * 4 + i % 2 * 2);
        if (n > 8) {
            pick[i] = (uint8_t)(i % 4 / 2 * 64 + word * 4 + i % 2 * 2);
        }
    }
    const __m512i even = _mm512_load_si512(pick), odd = _mm512_or_si512(even, _mm512_set1_epi8(1));
    const __mmask16 first = n <= 8 ? 0xffff : mask16(n);
    for (int64_t j = 0; j < columns / 8; j += at_once, p += at_once * 8 * n) {
        const int64_t left = columns / 8 - j < at_once ? columns / 8 - j : at_once;
        const __m512i v = _mm512_maskz_loadu_epi32(n <= 8 ? mask16(left * 2 * n) : first, p);
        const __m512i u = n <= 8 ? v : _mm512_maskz_loadu_epi32(first, p + 4 * n);
        _mm512_storeu_si512(work->even + j * n, _mm512_permutex2var_epi8(v, even, u));
        _mm512_storeu_si512(work->odd + j * n, _mm512_permutex2var_epi8(v, odd, u));
    }
    const uint8_t *sums = (const uint8_t *)work->tile->x[0] + mf_cpu_round_columns(columns) * n;
    const __m512i factor = _mm512_set1_epi32(work->tile->w->zero ? -1 : -8);
    for (int64_t i = 0; i < columns / STEP * n; i += LANES) {
        const __m512i v = _mm512_maskz_loadu_epi32(mask16(columns / STEP * n - i), sums + 4 * i);
        _mm512_store_si512(work->less + i, _mm512_mullo_epi32(v, factor));
    }
}

/* Zero points of groups [first, first + count) of sixteen rows. */
static void load_zeros(int4_work *work, int64_t first, int64_t count)
{
    const mf_matrix *w = work->tile->w;
    const uint8_t *p = w->zero + mf_matrix_scale_row(w, work->row) + first;
    __m512i v[SIDE];
    load_block(p, w->scale_row_stride, count, v);
    for (int64_t g = 0; g < count; g++) {
        const __m512i zero = _mm512_srlv_epi32(v[g / 4], _mm512_set1_epi32((int)(8 * (g % 4))));
        _mm512_store_si512(work->zero[g], _mm512_and_si512(zero, _mm512_set1_epi32(255)));
    }
}

static void load_span(int4_work *work, int64_t first, int64_t count)
{
    const mf_matrix *w = work->tile->w;
    switch (w->scale_dtype) {
    case MF_F16:
        load_scales(w, MF_F16, work->row, first, count, work->scale);
        break;
    case MF_BF16:
        load_scales(w, MF_BF16, work->row, first, count, work->scale);
        break;
    default:
        load_scales(w, MF_F32, work->row, first, count, work->scale);
        break;
    }
    if (w->zero) {
        load_zeros(work, first, count);
    }
}

/* `steps` times 32 columns of the block, the first of them number `step` of the row, times `count` tokens from t0 on.
 */
INLINE void multiply_block(const int count, const bool has_zeros, int4_work *work, int64_t step, int64_t steps,
                           int64_t t0)
{
    const int64_t n = work->tokens, mask = ((int64_t)1 << work->group_shift) - 1;
    const int64_t last = work->tile->w->k / STEP - 1;
    const __m512i nibble = _mm512_set1_epi8(15);
    const uint32_t(*words)[LANES] = (const uint32_t(*)[LANES])work->block;
    const int32_t *even = work->even + step * 4 * n + t0, *odd = work->odd + step * 4 * n + t0;
    const int32_t *less = work->less + step * n + t0;
    __m512 total[AT_ONCE];
    UNROLL(8) for (int t = 0; t < count; t++)
    {
        total[t] = _mm512_load_ps(work->total[t0 + t]);
    }
    for (int64_t s = step; s < step + steps; s++, words += 4, less += n) {
        const int64_t group = s >> work->group_shift & (SPAN_STEPS - 1);
        __m512i dot[AT_ONCE], other[AT_ONCE];
        UNROLL(8) for (int t = 0; t < count; t++)
        {
            other[t] = _mm512_setzero_si512();
            dot[t] = _mm512_set1_epi32(less[t]);
            if (has_zeros) { /* both fit 16 bits */
                dot[t] = _mm512_madd_epi16(_mm512_load_si512(work->zero[group]), dot[t]);
            }
        }
        UNROLL(4) for (int i = 0; i < 4; i++, even += n, odd += n)
        {
            const __m512i word = _mm512_load_si512(words[i]);
            const __m512i low = _mm512_and_si512(word, nibble);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(word, 4), nibble);
            UNROLL(8) for (int t = 0; t < count; t++)
            {
                dot[t] = _mm512_dpbusd_epi32(dot[t], low, _mm512_set1_epi32(even[t]));
                other[t] = _mm512_dpbusd_epi32(other[t], high, _mm512_set1_epi32(odd[t]));
            }
        }
        const bool is_first = (s & mask) == 0, is_last = (s & mask) == mask || s == last;
        const __m512 scale = _mm512_load_ps(work->scale[group]);
        UNROLL(8) for (int t = 0; t < count; t++)
        {
            __m512i sum = _mm512_add_epi32(dot[t], other[t]);
            if (!is_first) {
                sum = _mm512_add_epi32(sum, work->part[t0 + t]);
            }
            if (is_last) {
                total[t] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), total[t]);
            } else {
                work->part[t0 + t] = sum;
            }
        }
    }
    UNROLL(8) for (int t = 0; t < count; t++)
    {
        _mm512_store_ps(work->total[t0 + t], total[t]);
    }
}

/* Sixteen rows times `low` tokens, and `high` after them. */
INLINE void multiply_int4_rows(const int low, const int high, const bool has_zeros, int4_work *work)
{
    const mf_cpu_tile *tile = work->tile;
    const mf_matrix *w = tile->w;
    const int64_t all = w->k / STEP, span = (int64_t)SPAN_STEPS << work->group_shift;
    const uint8_t *p = mf_matrix_row(w, work->row);
    few_ahead next = ahead_at(tile, work->row, SHORTEST, (all + BLOCK_STEPS - 1) / BLOCK_STEPS);
    memset(work->total, 0, sizeof work->total[0] * (size_t)(low + high));
    for (int64_t step = 0; step < all; step += BLOCK_STEPS, p += 64) {
        const int64_t steps = all - step < BLOCK_STEPS ? all - step : BLOCK_STEPS;
        __m512i v[SIDE];
        if (step % span == 0) {
            const int64_t first_group = step >> work->group_shift;
            const int64_t groups = ((all - 1) >> work->group_shift) + 1 - first_group;
            load_span(work, first_group, groups < SPAN_STEPS ? groups : SPAN_STEPS);
        }
        ask_scales(&next);
        ask_codes(false, &next, SIDE / STREAMS);
        load_block(p, w->row_stride / 2, steps * STEP / 2, v);
        UNROLL(16) for (int j = 0; j < SIDE; j++)
        {
            _mm512_store_si512(work->block[j], v[j]);
        }
        multiply_block(low, has_zeros, work, step, steps, 0);
        if (high > 0) {
            multiply_block(high, has_zeros, work, step, steps, low);
        }
    }
    float *out = tile->out + (work->row - tile->first_row);
    for (int t = 0; t < low + high; t++) {
        const __m512 total = _mm512_load_ps(work->total[t]);
        _mm512_storeu_ps(out + t * tile->out_stride, _mm512_mul_ps(total, _mm512_set1_ps(tile->x_scale[t])));
    }
}

typedef void (*rows_fn)(int4_work *work);

#define ROWS(low, high)                                                                                                \
    static void rows_##low##_##high(int4_work *work)                                                                   \
    {                                                                                                                  \
        multiply_int4_rows(low, high, false, work);                                                                    \
    }                                                                                                                  \
    static void zeros_##low##_##high(int4_work *work)                                                                  \
    {                                                                                                                  \
        multiply_int4_rows(low, high, true, work);                                                                     \
    }
#define ALL(F)                                                                                                         \
    F(1, 0)                                                                                                            \
    F(2, 0) F(3, 0) F(4, 0) F(5, 0) F(6, 0) F(7, 0) F(8, 0) F(8, 1) F(8, 2) F(8, 3) F(8, 4) F(8, 5) F(8, 6) F(8, 7)    \
        F(8, 8)
#define NAME(low, high) rows_##low##_##high,
#define NAME_OF_ZEROS(low, high) zeros_##low##_##high,
ALL(ROWS)
static const rows_fn rows_fns[2][MOST_TOKENS] = { { ALL(NAME) }, { ALL(NAME_OF_ZEROS) } };

static int64_t multiply_int4(const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    const int64_t columns = mf_cpu_round_columns(w->k), group = w->group_size;
    const bool whole = group == 32 || group == 64 || group == 128;
    if (!whole || w->k % STEP != 0 || columns / 8 * tile->num_tokens > MOST_WORDS || w->scale_dtype == MF_F8_E8M0) {
        return 0;
    }
    int4_work work;
    work.tile = tile;
    work.tokens = tile->num_tokens;
    work.group_shift = group == 32 ? 0 : group == 64 ? 1 : 2;
    part_inputs(&work, w->k);
    int64_t done = 0;
    for (; tile->num_rows - done >= LANES; done += LANES) {
        work.row = tile->first_row + done;
        rows_fns[w->zero ? 1 : 0][work.tokens - 1](&work);
    }
    return done;
}

/* ---- int8 ---- */

enum { MOST_BYTES = 65536 }; /* of the inputs of a call */

typedef struct int8_work {
    int8_rows_work rows;
    _Alignas(64) uint8_t inputs[MOST_BYTES + INT8_FEW * INT8_LINE]; /* [tokens][columns], of several tokens */
} int8_work;

/* A panel's rows one by one, and what 128 more in each code adds. */
static void take_inputs(int8_work *work, int64_t columns, int64_t n)
{
    const mf_cpu_tile *tile = work->rows.tile;
    const uint8_t *p = tile->x[0];
    const int64_t at_once = 16 / n; /* words of four codes of each token in a vector */
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i order = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)n));
    for (int64_t q = 0; n > 1 && q < columns / 4; q += at_once) {
        const int64_t left = columns / 4 - q < at_once ? columns / 4 - q : at_once;
        const __m512i v = _mm512_maskz_loadu_epi32(mask16(left * n), p + q * n * 4);
        for (int64_t t = 0; t < n; t++) {
            const __m512i pick = _mm512_add_epi32(order, _mm512_set1_epi32((int)t));
            _mm512_mask_storeu_epi32(work->inputs + t * columns + q * 4, mask16(left),
                                     _mm512_permutexvar_epi32(pick, v));
        }
    }
    const int32_t *sums = (const int32_t *)(const void *)(p + columns * n);
    for (int64_t t = 0; t < n; t++) {
        uint32_t sum = 0; /* wraps, as the sums of the product do */
        for (int64_t i = 0; i < (tile->w->k + 31) / 32; i++) {
            sum += (uint32_t)sums[i * n + t];
        }
        work->rows.x[t] = n == 1 ? p : work->inputs + t * columns;
        work->rows.bias[t] = (int32_t)(sum * 128u);
    }
}

static int64_t multiply_int8(const mf_cpu_tile *tile)
{
    const int64_t n = tile->num_tokens, columns = mf_cpu_round_columns(tile->w->k);
    int8_work work;
    if (n > INT8_FEW || (n > 1 && columns * n > MOST_BYTES)) {
        return 0;
    }
    work.rows.tile = tile;
    take_inputs(&work, columns, n);
    return multiply_int8_tile(&work.rows);
}

int64_t mf_cpu_amx_few_int8(const mf_cpu_tile *tile)
{
    if (tile->num_tokens > MOST_TOKENS || tile->num_rows < LANES) {
        return 0;
    }
    return tile->w->format == MF_FORMAT_INT4_GROUP ? multiply_int4(tile) : multiply_int8(tile);
}
