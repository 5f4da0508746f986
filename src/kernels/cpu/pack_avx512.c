/* pack_avx512.c - inputs of products into their forms, 64 columns at a time: the bits of mf_cpu_pack_c.  The split form's
 * block is that of two vectors of 16. */
#include "kernels/cpu/avx512.h"

enum { SPLIT = 32, BLOCK = MF_CPU_COLUMNS };

/* The even (odd = 0) or odd columns of 32. */
INLINE __m512 every_other(__m512 a, __m512 b, int odd)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(odd)), b);
}

INLINE void store_codes(uint8_t *to, __m512 v)
{
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

/* Columns k to k + 31, whole numbers. */
INLINE int32_t sum_of_codes(__m512 a, __m512 b)
{
    return _mm512_reduce_add_epi32(_mm512_cvtps_epi32(_mm512_add_ps(a, b)));
}

/* count words of this token, one every num_tokens words. */
INLINE void spread(const mf_cpu_pack *p, int64_t first_word, const uint32_t *words, int count)
{
    uint8_t *to = (uint8_t *)p->row + (first_word * p->num_tokens + p->token) * 4;
    for (int i = 0; i < count; i++) {
        memcpy(to + i * p->num_tokens * 4, &words[i], 4);
    }
}

/* 64 columns as bf16, the first or second half of 128: pairs of their two 32s side by side, every 16 bytes. */
INLINE void put_quads(uint8_t *to, int64_t half, const __m512 v[4])
{
    const __mmask16 mask = half ? 0xcccc : 0x3333;
    __m512i pairs[2]; /* sixteen of 32 columns */
    UNROLL(2) for (int j = 0; j < 2; j++) {
        const __m512i words =
            _mm512_inserti64x4(_mm512_castsi256_si512(bf16x16_from_f32(v[2 * j])), bf16x16_from_f32(v[2 * j + 1]), 1);
        pairs[j] = _mm512_unpacklo_epi16(words, _mm512_bsrli_epi128(words, 8)); /* 0 and 4, 1 and 5, ... of each 8 */
    }
    UNROLL(4) for (int j = 0; j < 4; j++) {
        const __m512i first = _mm512_setr_epi32(0, 16, 0, 16, 1, 17, 1, 17, 2, 18, 2, 18, 3, 19, 3, 19);
        const __m512i index = _mm512_add_epi32(first, _mm512_set1_epi32(4 * j));
        _mm512_mask_storeu_epi32(to + 64 * j, mask, _mm512_permutex2var_epi32(pairs[0], index, pairs[1]));
    }
}

INLINE void put_block(const mf_cpu_pack *p, mf_cpu_form form, int64_t columns, int64_t k, const __m512 v[4])
{
    uint8_t *row = p->row;
    uint32_t words[BLOCK / 2];
    const int64_t apart = k / MF_CPU_INTERLEAVED * MF_CPU_INTERLEAVED, half = k / BLOCK % 2;
    if (form == MF_CPU_FORM_BF16_QUADS) {
        put_quads(row + 2 * apart, half, v);
    }
    UNROLL(4) for (int j = 0; j < 4; j++) {
        switch (form) {
        case MF_CPU_FORM_F32:
            _mm512_storeu_ps(row + 4 * (k + 16 * j), v[j]);
            break;
        case MF_CPU_FORM_F32_SPLIT:
            _mm512_storeu_ps(row + 4 * (k + 16 * j), every_other(v[j / 2 * 2], v[j / 2 * 2 + 1], j % 2));
            break;
        case MF_CPU_FORM_BF16:
            _mm256_storeu_si256((__m256i *)(void *)(row + 2 * (k + 16 * j)), bf16x16_from_f32(v[j]));
            break;
        case MF_CPU_FORM_I8:
            store_codes(row + k + 16 * j, v[j]);
            break;
        case MF_CPU_FORM_I8_SPLIT:
            store_codes(row + k + 16 * j, every_other(v[j / 2 * 2], v[j / 2 * 2 + 1], j % 2));
            break;
        case MF_CPU_FORM_I8_HALVES:
            store_codes(row + apart + 64 * (j % 2) + 32 * half + 16 * (j / 2),
                        every_other(v[j / 2 * 2], v[j / 2 * 2 + 1], j % 2));
            break;
        case MF_CPU_FORM_BF16_QUADS:
            break;
        case MF_CPU_FORM_BF16_PANEL:
            _mm256_storeu_si256((__m256i *)(void *)(words + 8 * j), bf16x16_from_f32(v[j]));
            break;
        default:
            store_codes((uint8_t *)words + 16 * j, v[j]);
            break;
        }
    }
    if (form == MF_CPU_FORM_BF16_PANEL) {
        spread(p, k / 2, words, BLOCK / 2);
    } else if (form == MF_CPU_FORM_I8_PANEL) {
        spread(p, k / 4, words, BLOCK / 4);
    }
    if (form == MF_CPU_FORM_I8 || form == MF_CPU_FORM_I8_SPLIT || form == MF_CPU_FORM_I8_HALVES ||
        form == MF_CPU_FORM_I8_PANEL) {
        const int32_t sums[2] = { sum_of_codes(v[0], v[1]), sum_of_codes(v[2], v[3]) };
        memcpy(words, sums, sizeof sums);
        if (form == MF_CPU_FORM_I8_PANEL) {
            spread(p, columns / 4 + k / 32, words, 2);
        } else {
            memcpy(row + columns + 4 * (k / 32), words, 8);
        }
    }
}

INLINE void pack_as(const mf_cpu_pack *p, mf_cpu_form form, const float *x, int64_t first, int64_t n)
{
    const int64_t columns = mf_cpu_form_columns(form, p->k);
    int64_t whole = n / BLOCK * BLOCK;
    __m512 v[4];
    for (int64_t i = 0; i < whole; i += BLOCK) {
        UNROLL(4) for (int j = 0; j < 4; j++) {
            v[j] = _mm512_loadu_ps(x + i + 16 * j);
        }
        put_block(p, form, columns, first + i, v);
    }
    if (whole < n && first + n == p->k) {
        UNROLL(4) for (int j = 0; j < 4; j++) {
            v[j] = _mm512_maskz_loadu_ps(mask16(n - whole - 16 * j), x + whole + 16 * j);
        }
        put_block(p, form, columns, first + whole, v);
        whole += BLOCK;
    } else if (whole < n) { /* no block: what follows it is not known yet */
        mf_cpu_pack_c(p, SPLIT, x + whole, first + whole, n - whole);
    }
    if (first + n == p->k && first + whole < columns) { /* the other half of an interleaved block */
        UNROLL(4) for (int j = 0; j < 4; j++) {
            v[j] = _mm512_setzero_ps();
        }
        put_block(p, form, columns, first + whole, v);
    }
}

static void pack_avx512(const mf_cpu_pack *p, const float *x, int64_t first, int64_t n)
{
    switch (p->form) { /* constants, so that the loops hold no test */
    case MF_CPU_FORM_F32:
        pack_as(p, MF_CPU_FORM_F32, x, first, n);
        break;
    case MF_CPU_FORM_F32_SPLIT:
        pack_as(p, MF_CPU_FORM_F32_SPLIT, x, first, n);
        break;
    case MF_CPU_FORM_F32_BYTES: /* no product of these rungs asks for it */
        mf_cpu_pack_c(p, 32, x, first, n);
        break;
    case MF_CPU_FORM_BF16:
        pack_as(p, MF_CPU_FORM_BF16, x, first, n);
        break;
    case MF_CPU_FORM_BF16_QUADS:
        pack_as(p, MF_CPU_FORM_BF16_QUADS, x, first, n);
        break;
    case MF_CPU_FORM_I8:
        pack_as(p, MF_CPU_FORM_I8, x, first, n);
        break;
    case MF_CPU_FORM_I8_SPLIT:
        pack_as(p, MF_CPU_FORM_I8_SPLIT, x, first, n);
        break;
    case MF_CPU_FORM_I8_HALVES:
        pack_as(p, MF_CPU_FORM_I8_HALVES, x, first, n);
        break;
    case MF_CPU_FORM_BF16_PANEL:
        pack_as(p, MF_CPU_FORM_BF16_PANEL, x, first, n);
        break;
    default:
        pack_as(p, MF_CPU_FORM_I8_PANEL, x, first, n);
        break;
    }
}

static void turn_panel_avx512(const uint16_t *const rows[MF_CPU_PANEL], int64_t n, void *panel)
{
    enum { COLUMNS = 32 };
    const int64_t all = mf_cpu_round_columns(n);
    uint8_t *to = panel;
    __m512i v[MF_CPU_PANEL];
    for (int64_t k = 0; k < all; k += COLUMNS, to += sizeof v) {
        if (k + COLUMNS <= n) {
            UNROLL(16) for (int r = 0; r < MF_CPU_PANEL; r++)
            {
                v[r] = _mm512_loadu_si512(rows[r] + k);
            }
        } else {
            const __mmask32 mask = k < n ? (1u << (n - k)) - 1 : 0;
            UNROLL(16) for (int r = 0; r < MF_CPU_PANEL; r++)
            {
                v[r] = _mm512_maskz_loadu_epi16(mask, rows[r] + k);
            }
        }
        turn16(v);
        UNROLL(16) for (int i = 0; i < MF_CPU_PANEL; i++)
        {
            _mm512_storeu_si512(to + i * (int64_t)sizeof v[0], v[i]);
        }
    }
}

void mf_cpu_pack_fill_avx512(mf_cpu_kernels *kernels)
{
    kernels->split = SPLIT;
    kernels->pack = pack_avx512;
    kernels->turn_panel = turn_panel_avx512;
}
