/* products_amx_few.c - one token of bf16 times int4 codes with vectors: the bits of tiles.
 *
 * For one token a tile of sums costs as much as for sixteen, and where scales are as fine as 32 columns its way through
 * memory is what takes the time.  Here sixteen rows are the lanes of a vector: their next 64 bytes are turned round, so
 * that a vector holds the same columns of each, and each code becomes a float that meets its input, broadcast.
 *
 * A lane's sums are those of the tile product (amx_tiles.h): the even columns of 32 in one chain of fma and the odd
 * ones in another, both added, then added to the sum before them, or, where a scale ends there, through it to the
 * total.  What the tile product does to subnormals does not arise: inputs outside [2^-80, 2^80), other than zero, are
 * left to tiles.  So are groups and rows that do not fit. */
#include "kernels/cpu/amx_few.h"
#include "kernels/cpu/amx_few_rows.h"

enum {
    MOST_INPUTS = 16384, /* floats */
    BLOCK_STEPS = 4,     /* tiles of columns in 64 bytes */
    STEP_WORDS = SIDE / BLOCK_STEPS
};

/* What is known when the compiler unfolds a product. */
typedef struct few_kind {
    int group_steps; /* tiles under one scale */
    mf_dtype scale_dtype;
} few_kind;

typedef struct few_work {
    _Alignas(64) uint32_t block[SIDE][LANES];
    _Alignas(64) float scale[SPAN_STEPS + LANES][LANES];
    _Alignas(64) float even[MOST_INPUTS / 2], odd[MOST_INPUTS / 2]; /* [k / 2] */
    const mf_cpu_tile *tile;
    int64_t row; /* the first of sixteen */
} few_work;

/* Panel words to floats; false: values that sums might lose. */
static bool widen_inputs(few_work *work, int64_t words)
{
    enum { LEAST = (127 - 80) << 7, END = (127 + 80) << 7 };
    const uint8_t *p = work->tile->x[0];
    __mmask32 fits = ~(__mmask32)0;
    for (int64_t i = 0; i < words; i += LANES) {
        const __m512i v = _mm512_loadu_si512(p + 4 * i);
        const __m512i size = _mm512_and_si512(v, _mm512_set1_epi16(0x7fff));
        const __mmask32 in = _mm512_cmplt_epu16_mask(_mm512_sub_epi16(size, _mm512_set1_epi16(LEAST)),
                                                     _mm512_set1_epi16((short)(END - LEAST)));
        fits &= in | _mm512_testn_epi16_mask(size, size);
        _mm512_store_si512(work->even + i, _mm512_slli_epi32(v, 16));
        _mm512_store_si512(work->odd + i, _mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000u)));
    }
    return fits == ~(__mmask32)0;
}

/* Code i of each lane's word. */
INLINE __m512 code_at(__m512i word, int i)
{
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    /* the permutation looks at four bits */
    return _mm512_permutexvar_ps(i == 0 ? word : _mm512_srli_epi32(word, (unsigned)(4 * i)), table);
}

/* 32 columns from k on, their codes in words from `block` on. */
INLINE __m512 multiply_step(const few_work *work, const uint32_t (*block)[LANES], int64_t k)
{
    enum { PER_WORD = 8 };
    const float *even_x = work->even + k / 2, *odd_x = work->odd + k / 2;
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    UNROLL(16) for (int i = 0; i < STEP; i += 2)
    {
        const __m512i word = _mm512_load_si512(block[i / PER_WORD]);
        const __m512 a = code_at(word, i % PER_WORD), x = _mm512_set1_ps(even_x[i / 2]);
        const __m512 b = code_at(word, i % PER_WORD + 1), y = _mm512_set1_ps(odd_x[i / 2]);
        even = i == 0 ? _mm512_mul_ps(a, x) : _mm512_fmadd_ps(a, x, even);
        odd = i == 0 ? _mm512_mul_ps(b, y) : _mm512_fmadd_ps(b, y, odd);
    }
    return _mm512_add_ps(even, odd);
}

typedef struct few_sums {
    __m512 total, part;
} few_sums;

/* What tile number `step` of the rows sums up to enters the totals. */
INLINE void add_step(const few_kind kind, const few_work *work, int64_t step, __m512 sum, few_sums *s)
{
    const bool is_first = step % kind.group_steps == 0;
    s->part = is_first ? sum : _mm512_add_ps(s->part, sum);
    if (step % kind.group_steps == kind.group_steps - 1 || (step + 1) * STEP == work->tile->w->k) {
        const __m512 scale = _mm512_load_ps(work->scale[step / kind.group_steps % SPAN_STEPS]);
        s->total = _mm512_fmadd_ps(scale, s->part, s->total);
    }
}

/* Sixteen rows. */
INLINE void multiply_rows(const few_kind kind, few_work *work)
{
    const mf_matrix *w = work->tile->w;
    const int64_t stride = w->row_stride / 2, all = w->k / STEP, span = SPAN_STEPS * kind.group_steps;
    const uint8_t *p = mf_matrix_row(w, work->row);
    few_ahead next = ahead_at(work->tile, work->row, SHORT_ROWS, (all + BLOCK_STEPS - 1) / BLOCK_STEPS);
    few_sums s = { _mm512_setzero_ps(), _mm512_setzero_ps() };
    for (int64_t step = 0; step < all; step += BLOCK_STEPS, p += 64) {
        const int64_t steps = all - step < BLOCK_STEPS ? all - step : BLOCK_STEPS;
        __m512i v[SIDE];
        if (step % span == 0) {
            const int64_t groups = (all - step + kind.group_steps - 1) / kind.group_steps;
            load_scales(w, kind.scale_dtype, work->row, step / kind.group_steps,
                        groups < SPAN_STEPS ? groups : SPAN_STEPS, work->scale);
        }
        load_block(p, stride, steps * STEP / 2, v);
        UNROLL(16) for (int j = 0; j < SIDE; j++)
        {
            _mm512_store_si512(work->block[j], v[j]);
        }
        ask_scales(&next);
        for (int64_t i = 0; i < steps; i++) {
            ask_codes(false, &next, SIDE / BLOCK_STEPS / STREAMS);
            const __m512 sum =
                multiply_step(work, (const uint32_t(*)[LANES])work->block + i * STEP_WORDS, (step + i) * STEP);
            add_step(kind, work, step + i, sum, &s);
        }
    }
    _mm512_storeu_ps(work->tile->out + (work->row - work->tile->first_row), s.total);
}

typedef void (*few_fn)(few_work *work);

#define FEW(name, ...)                                                                                                 \
    static void name(few_work *work)                                                                                   \
    {                                                                                                                  \
        multiply_rows((few_kind){ __VA_ARGS__ }, work);                                                                \
    }
FEW(int4_32_f16, .group_steps = 1, .scale_dtype = MF_F16)
FEW(int4_32_bf16, .group_steps = 1, .scale_dtype = MF_BF16)
FEW(int4_128_f16, .group_steps = 4, .scale_dtype = MF_F16)
FEW(int4_128_bf16, .group_steps = 4, .scale_dtype = MF_BF16)

static few_fn few_for(const mf_matrix *w)
{
    if (w->format != MF_FORMAT_INT4_GROUP || w->zero || (w->group_size != 32 && w->group_size != 128)) {
        return NULL;
    }
    return w->scale_dtype == MF_F16    ? w->group_size == 32 ? int4_32_f16 : int4_128_f16
           : w->scale_dtype == MF_BF16 ? w->group_size == 32 ? int4_32_bf16 : int4_128_bf16
                                       : NULL;
}

int64_t mf_cpu_amx_few(const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    const few_fn multiply = few_for(w);
    const int64_t columns = mf_cpu_round_columns(w->k);
    if (!multiply || tile->num_tokens != 1 || w->k % STEP != 0 || columns > MOST_INPUTS) {
        return 0;
    }
    few_work work;
    work.tile = tile;
    if (!widen_inputs(&work, columns / 2)) {
        return 0;
    }
    int64_t done = 0;
    for (; tile->num_rows - done >= LANES; done += LANES) {
        work.row = tile->first_row + done;
        multiply(&work);
    }
    return done;
}
