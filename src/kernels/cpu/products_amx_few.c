/* products_amx_few.c - bf16 inputs of few tokens times fp8, int8 and 4-bit codes with vectors: the bits of tiles.
 *
 * For few tokens a tile of sums costs as much as for sixteen, and so do the codes on their way into it.  Here sixteen
 * rows are the lanes of a vector: their next 64 bytes are turned round, so that a vector holds the same columns of
 * each, and each code becomes a float that meets its input, broadcast.
 *
 * A lane's sums are those of the tile product (amx_tiles.h): the even columns of 32 in one chain of fma and the odd
 * ones in another, both added, then added to the sum before them, or, where a scale ends there, through it to the
 * total.  What the tile product does to subnormals does not arise: inputs outside [2^-80, 2^80), other than zero, and
 * scales of mxfp4 outside [2^-37, 2^37] are left to tiles.  So are groups and rows that do not fit. */
#include "kernels/cpu/amx_few.h"
#include "kernels/cpu/amx_few_rows.h"

enum {
    MOST_INPUTS = 16384, /* floats */
    MOST_STEPS = 2       /* tiles of columns side by side */
};

/* What is known when the compiler unfolds a product. */
typedef struct few_kind {
    mf_format format;
    int tokens;
    int group_steps; /* tiles under one scale; 0: none finer than a row */
    mf_dtype scale_dtype;
} few_kind;

typedef struct few_work {
    _Alignas(64) uint32_t block[SIDE][LANES];
    _Alignas(64) float scale[SPAN_STEPS + LANES][LANES];
    _Alignas(64) float even[MOST_INPUTS / 2], odd[MOST_INPUTS / 2]; /* [k / 2][tokens] */
    float block_scale[MOST_INPUTS / MF_FP8_BLOCK_SIZE];             /* of a row of fp8 blocks */
    const mf_cpu_tile *tile;
    int64_t row; /* the first of sixteen */
} few_work;

INLINE bool is_fp8(mf_format format)
{
    return format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_FP8_CHANNEL;
}

INLINE bool has_row_scale(mf_format format)
{
    return format == MF_FORMAT_FP8_CHANNEL || format == MF_FORMAT_INT8_CHANNEL;
}

INLINE int block_columns(mf_format format)
{
    return mf_format_is_4bit(format) ? 128 : 64;
}

/* Tiles of columns whose chains run side by side, where registers suffice and decoding leaves room for more. */
INLINE int steps_at_once(const few_kind kind)
{
    return !mf_format_is_4bit(kind.format) && kind.tokens <= 2 ? MOST_STEPS : 1;
}

/* Streams of addresses in which memory is asked for what comes next. */
INLINE int streams_of(mf_format format)
{
    return mf_format_is_4bit(format) ? 2 : 4;
}

/* ---- inputs ---- */

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

/* ---- codes as floats ---- */

/* How much too large, as a power of two, what code_at gives is. */
INLINE int shift_of(mf_format format)
{
    return format == MF_FORMAT_INT8_CHANNEL ? 24 : is_fp8(format) ? 8 : 0;
}

/* Whether all of 1024 e4m3 codes are numbers with a leading one; the sign is shifted out. */
INLINE bool are_normal(const __m512i v[SIDE])
{
    enum { LEAST = 8 };
    __m512i least = _mm512_set1_epi8(127);
    UNROLL(16) for (int r = 0; r < LANES; r++) /* NaN, 127, becomes 0 */
    {
        const __m512i next = _mm512_and_si512(_mm512_add_epi8(v[r], _mm512_set1_epi8(1)), _mm512_set1_epi8(127));
        least = _mm512_min_epu8(least, next);
    }
    return _mm512_cmple_epu8_mask(least, _mm512_set1_epi8(LEAST)) == 0;
}

/* An e4m3 code in the upper half of each word of 32 bits, spread so that its exponent's place is a float's (bias 120 -
 * 128) and nothing below it: a float times 2^8.  Where not all are_normal(), that is mended. */
INLINE __m512 fp8_value(__m512i bits, bool normal)
{
    __m512 v = _mm512_castsi512_ps(bits);
    if (!normal) {
        const __mmask16 small = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x07800000));
        const __mmask16 nan = _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)),
                                                      _mm512_set1_epi32(0x47f00000));
        /* 4 with the sign */
        const __m512i one =
            _mm512_or_si512(_mm512_and_si512(bits, _mm512_set1_epi32((int)0x80000000u)), _mm512_set1_epi32(0x40800000));
        v = _mm512_mask_sub_ps(v, small, _mm512_add_ps(v, v), _mm512_castsi512_ps(one));
        v = _mm512_mask_mov_ps(v, nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
    }
    return v;
}

/* Codes i (0 or 2) and i + 1 of each lane's word. */
INLINE void fp8_pair(__m512i word, int i, bool normal, __m512 *a, __m512 *b)
{
    const __m512i fields = _mm512_set1_epi16((short)0x87f0), bias = _mm512_set1_epi16(0x4000);
    /* bytes 0 and 2, then 1 and 3, as words */
    const __m512i even =
        _mm512_ternarylogic_epi32(_mm512_srai_epi16(_mm512_slli_epi16(word, 8), 4), fields, bias, 0xea);
    const __m512i odd = _mm512_ternarylogic_epi32(_mm512_srai_epi16(word, 4), fields, bias, 0xea); /* a & b | c */
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    *a = fp8_value(i == 0 ? _mm512_slli_epi32(even, 16) : _mm512_and_si512(even, high), normal);
    *b = fp8_value(i == 0 ? _mm512_slli_epi32(odd, 16) : _mm512_and_si512(odd, high), normal);
}

INLINE __m512 four_bit_table(mf_format format)
{
    return format == MF_FORMAT_MXFP4 ? _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                                      -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f)
                                     : _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
}

/* Code i of each lane's word, not of fp8. */
INLINE __m512 code_at(mf_format format, __m512i word, int i, __m512 table)
{
    if (mf_format_is_4bit(format)) { /* the permutation looks at four bits */
        return _mm512_permutexvar_ps(i == 0 ? word : _mm512_srli_epi32(word, (unsigned)(4 * i)), table);
    }
    switch (i) { /* shifts and shuffles have a port each */
    case 0:
        return _mm512_cvtepi32_ps(_mm512_slli_epi32(word, 24));
    case 3:
        return _mm512_cvtepi32_ps(_mm512_and_si512(word, _mm512_set1_epi32((int)0xff000000u)));
    default: {
        const int byte = i; /* zero where the high bit is set */
        const __m128i order = _mm_setr_epi8(-1, -1, -1, (char)byte, -1, -1, -1, (char)(4 + byte), -1, -1, -1,
                                            (char)(8 + byte), -1, -1, -1, (char)(12 + byte));
        return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(word, _mm512_broadcast_i32x4(order)));
    }
    }
}

/* ---- products ---- */

typedef __m512 step_sums[MOST_STEPS][MF_CPU_AMX_FEW];

/* The columns of `count` tiles from k on, their codes in words from `block` on: chains enough that none waits for itself.
 */
INLINE void multiply_steps(const few_kind kind, const int count, const bool normal, const few_work *work,
                           const uint32_t (*block)[LANES], int64_t k, __m512 table, step_sums sums)
{
    const int per_word = mf_format_is_4bit(kind.format) ? 8 : 4;
    const float *even_x = work->even + k / 2 * kind.tokens, *odd_x = work->odd + k / 2 * kind.tokens;
    __m512 even[MOST_STEPS][MF_CPU_AMX_FEW], odd[MOST_STEPS][MF_CPU_AMX_FEW];
    UNROLL(16) for (int i = 0; i < STEP; i += 2)
    {
        UNROLL(4) for (int s = 0; s < count; s++)
        {
            const __m512i word = _mm512_load_si512(block[(s * STEP + i) / per_word]);
            const int at = (s * STEP + i) / 2 * kind.tokens;
            __m512 a, b;
            if (is_fp8(kind.format)) {
                fp8_pair(word, i % per_word, normal, &a, &b);
            } else {
                a = code_at(kind.format, word, i % per_word, table);
                b = code_at(kind.format, word, i % per_word + 1, table);
            }
            UNROLL(4) for (int t = 0; t < kind.tokens; t++)
            {
                const __m512 x = _mm512_set1_ps(even_x[at + t]);
                const __m512 y = _mm512_set1_ps(odd_x[at + t]);
                even[s][t] = i == 0 ? _mm512_mul_ps(a, x) : _mm512_fmadd_ps(a, x, even[s][t]);
                odd[s][t] = i == 0 ? _mm512_mul_ps(b, y) : _mm512_fmadd_ps(b, y, odd[s][t]);
            }
        }
    }
    UNROLL(4) for (int s = 0; s < count; s++)
    {
        UNROLL(4) for (int t = 0; t < kind.tokens; t++)
        {
            sums[s][t] = _mm512_add_ps(even[s][t], odd[s][t]);
        }
    }
}

typedef struct few_sums {
    __m512 total[MF_CPU_AMX_FEW], part[MF_CPU_AMX_FEW];
} few_sums;

INLINE __m512 true_size(mf_format format, __m512 v)
{
    return _mm512_mul_ps(v, _mm512_set1_ps(1.0f / (float)(1 << shift_of(format))));
}

/* Of group g: sixteen rows of a block of fp8 share theirs. */
INLINE __m512 scale_at(const few_kind kind, const few_work *work, int64_t g)
{
    if (kind.format == MF_FORMAT_FP8_BLOCK) {
        return _mm512_set1_ps(work->block_scale[g]);
    }
    return _mm512_load_ps(work->scale[g % SPAN_STEPS]);
}

/* What tile number `step` of the rows sums up to enters the totals. */
INLINE void add_step(const few_kind kind, const few_work *work, int64_t step, const __m512 *sums, few_sums *s)
{
    UNROLL(4) for (int t = 0; t < kind.tokens; t++)
    {
        if (kind.group_steps == 0) {
            s->total[t] = _mm512_add_ps(s->total[t], sums[t]);
        } else if (kind.group_steps == 1) {
            const __m512 scale = _mm512_load_ps(work->scale[step % SPAN_STEPS]);
            s->total[t] = _mm512_fmadd_ps(scale, sums[t], s->total[t]);
        } else {
            s->part[t] = step % kind.group_steps == 0 ? sums[t] : _mm512_add_ps(s->part[t], sums[t]);
        }
    }
    if (kind.group_steps > 1 &&
        (step % kind.group_steps == kind.group_steps - 1 || (step + 1) * STEP == work->tile->w->k)) {
        const __m512 scale = scale_at(kind, work, step / kind.group_steps);
        UNROLL(4) for (int t = 0; t < kind.tokens; t++)
        {
            const __m512 part = kind.format == MF_FORMAT_FP8_BLOCK ? true_size(kind.format, s->part[t]) : s->part[t];
            s->total[t] = _mm512_fmadd_ps(scale, part, s->total[t]);
        }
    }
}

/* `steps` tiles of a block, the first of them number `step` of the row. */
INLINE void multiply_block(const few_kind kind, const bool normal, const few_work *work, int64_t step, int64_t steps,
                           __m512 table, few_sums *s, ahead *next)
{
    const int words = SIDE * STEP / block_columns(kind.format), streams = streams_of(kind.format);
    const int count = steps_at_once(kind), lines = SIDE * STEP / block_columns(kind.format) / streams;
    ask_scales(next);
    int64_t i = 0;
    for (; i + count <= steps; i += count) {
        step_sums sums;
        ask_codes(next, streams, count * lines);
        multiply_steps(kind, count, normal, work, work->block + i * words, (step + i) * STEP, table, sums);
        UNROLL(4) for (int j = 0; j < count; j++)
        {
            add_step(kind, work, step + i + j, sums[j], s);
        }
    }
    for (; count > 1 && i < steps; i++) {
        step_sums sums;
        ask_codes(next, streams, lines);
        multiply_steps(kind, 1, normal, work, work->block + i * words, (step + i) * STEP, table, sums);
        add_step(kind, work, step + i, sums[0], s);
    }
}

/* Sixteen rows; false: left to tiles. */
INLINE bool multiply_rows(const few_kind kind, few_work *work)
{
    const mf_matrix *w = work->tile->w;
    const int64_t bits = mf_format_bits(kind.format), stride = w->row_stride * bits / 8;
    const int64_t block_steps = block_columns(kind.format) / STEP, all = w->k / STEP;
    const int64_t span = kind.group_steps ? SPAN_STEPS * kind.group_steps : all;
    const uint8_t *p = mf_matrix_row(w, work->row);
    const __m512 table = four_bit_table(kind.format);
    ahead next = ahead_at(work->tile, work->row, streams_of(kind.format), (all + block_steps - 1) / block_steps);
    if (kind.group_steps && kind.format == MF_FORMAT_FP8_BLOCK) {
        if (work->row / MF_FP8_BLOCK_SIZE != (work->row + LANES - 1) / MF_FP8_BLOCK_SIZE) {
            return false; /* rows of two blocks */
        }
        const int64_t first = mf_matrix_scale_row(w, work->row);
        for (int64_t g = 0; g * MF_FP8_BLOCK_SIZE < w->k; g++) {
            work->block_scale[g] = mf_matrix_scale_at(w, first + g);
        }
    }
    few_sums s;
    UNROLL(4) for (int t = 0; t < kind.tokens; t++)
    {
        s.total[t] = s.part[t] = _mm512_setzero_ps();
    }
    for (int64_t step = 0; step < all; step += block_steps, p += 64) {
        const int64_t steps = all - step < block_steps ? all - step : block_steps;
        __m512i v[SIDE];
        if (kind.group_steps && kind.format != MF_FORMAT_FP8_BLOCK && step % span == 0) {
            const int64_t groups = (all - step + kind.group_steps - 1) / kind.group_steps;
            if (!load_scales(w, kind.scale_dtype, work->row, step / kind.group_steps,
                             groups < SPAN_STEPS ? groups : SPAN_STEPS, work->scale)) {
                return false;
            }
        }
        load_block(p, stride, steps * STEP * bits / 8, v);
        const bool normal = !is_fp8(kind.format) || are_normal(v);
        UNROLL(16) for (int j = 0; j < SIDE; j++)
        {
            _mm512_store_si512(work->block[j], v[j]);
        }
        if (steps == block_steps && normal) {
            multiply_block(kind, true, work, step, block_steps, table, &s, &next);
        } else {
            multiply_block(kind, false, work, step, steps, table, &s, &next);
        }
    }
    __m512 row_scale = _mm512_set1_ps(1.0f);
    if (has_row_scale(kind.format)) {
        float scale[LANES];
        for (int r = 0; r < LANES; r++) {
            scale[r] = mf_matrix_scale_at(w, mf_matrix_scale_row(w, work->row + r));
        }
        row_scale = _mm512_loadu_ps(scale);
    }
    float *out = work->tile->out + (work->row - work->tile->first_row);
    UNROLL(4) for (int t = 0; t < kind.tokens; t++, out += work->tile->out_stride)
    {
        __m512 v = s.total[t];
        if (has_row_scale(kind.format)) {
            v = _mm512_mul_ps(true_size(kind.format, v), row_scale);
        }
        _mm512_storeu_ps(out, v);
    }
    return true;
}

INLINE int64_t multiply_tile(const few_kind kind, few_work *work)
{
    int64_t done = 0;
    while (work->tile->num_rows - done >= LANES) {
        work->row = work->tile->first_row + done;
        if (!multiply_rows(kind, work)) {
            break;
        }
        done += LANES;
    }
    return done;
}

typedef int64_t (*few_fn)(few_work *work);

#define ONE(name, n, ...)                                                                                              \
    static int64_t name##_##n(few_work *work)                                                                          \
    {                                                                                                                  \
        return multiply_tile((few_kind){ .tokens = n, __VA_ARGS__ }, work);                                            \
    }
#define FEW(name, ...)                                                                                                 \
    ONE(name, 1, __VA_ARGS__)                                                                                          \
    ONE(name, 2, __VA_ARGS__)                                                                                          \
    ONE(name, 3, __VA_ARGS__)                                                                                          \
    ONE(name, 4, __VA_ARGS__)                                                                                          \
    static const few_fn name[MF_CPU_AMX_FEW] = { name##_1, name##_2, name##_3, name##_4 };

FEW(int8, .format = MF_FORMAT_INT8_CHANNEL)
FEW(fp8_channel, .format = MF_FORMAT_FP8_CHANNEL)
FEW(fp8_block, .format = MF_FORMAT_FP8_BLOCK, .group_steps = 4)
FEW(mxfp4, .format = MF_FORMAT_MXFP4, .group_steps = 1, .scale_dtype = MF_F8_E8M0)
FEW(int4_32_f16, .format = MF_FORMAT_INT4_GROUP, .group_steps = 1, .scale_dtype = MF_F16)
FEW(int4_32_bf16, .format = MF_FORMAT_INT4_GROUP, .group_steps = 1, .scale_dtype = MF_BF16)
FEW(int4_128_f16, .format = MF_FORMAT_INT4_GROUP, .group_steps = 4, .scale_dtype = MF_F16)
FEW(int4_128_bf16, .format = MF_FORMAT_INT4_GROUP, .group_steps = 4, .scale_dtype = MF_BF16)

static const few_fn *few_for(const mf_matrix *w)
{
    if (w->format == MF_FORMAT_INT8_CHANNEL) {
        return int8;
    }
    if (w->format == MF_FORMAT_MXFP4) {
        return mxfp4;
    }
    if (is_fp8(w->format)) {
        return w->format == MF_FORMAT_FP8_CHANNEL ? fp8_channel : fp8_block;
    }
    if (w->format != MF_FORMAT_INT4_GROUP || w->zero || (w->group_size != 32 && w->group_size != 128)) {
        return NULL;
    }
    return w->scale_dtype == MF_F16    ? w->group_size == 32 ? int4_32_f16 : int4_128_f16
           : w->scale_dtype == MF_BF16 ? w->group_size == 32 ? int4_32_bf16 : int4_128_bf16
                                       : NULL;
}

int64_t mf_cpu_amx_few(const mf_cpu_tile *tile, bool *rest)
{
    const mf_matrix *w = tile->w;
    const few_fn *fns = few_for(w);
    *rest = true;
    if (!fns || tile->num_tokens > MF_CPU_AMX_FEW || tile->num_rows < LANES || w->k % STEP != 0 ||
        mf_cpu_round_columns(w->k) * tile->num_tokens > MOST_INPUTS) {
        return 0;
    }
    few_work work;
    work.tile = tile;
    if (!widen_inputs(&work, mf_cpu_round_columns(w->k) / 2 * tile->num_tokens)) {
        return 0;
    }
    const int64_t done = fns[tile->num_tokens - 1](&work);
    *rest = tile->num_rows - done < LANES;
    return done;
}
