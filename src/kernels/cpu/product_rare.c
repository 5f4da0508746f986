/* product_rare.c - see product_rare.h.  Order of sums: eight lanes, k ascending inside a lane, then a tree. */
#include "kernels/cpu/product_rare.h"

enum { LANES = 8, CHUNK = 128 }; /* a chunk is whole blocks of every split form */

static bool has_nan_code(const uint8_t *codes, int64_t n)
{
    bool found = false;
    for (int64_t i = 0; i < n; i++) {
        found |= (codes[i] & 0x7f) == 0x7f;
    }
    return found;
}

void mf_cpu_spread_nan_codes(const mf_cpu_tile *tile, int64_t r, int64_t num_rows)
{
    for (int64_t i = r; i < r + num_rows; i++) {
        if (has_nan_code(mf_matrix_row(tile->w, tile->first_row + i), tile->w->k)) {
            for (int64_t t = 0; t < tile->num_tokens; t++) {
                tile->out[t * tile->out_stride + i] = __builtin_nanf("");
            }
        }
    }
}

/* How a form takes columns apart. */
typedef struct order {
    mf_cpu_form form;
    int64_t block, parts;
} order;

static int64_t place(order o, int64_t k)
{
    return o.form == MF_CPU_FORM_BF16_QUADS  ? mf_cpu_place_in_quads(k)
           : o.form == MF_CPU_FORM_F32_BYTES ? mf_cpu_place_in_bytes(k)
                                             : mf_cpu_place_apart(k, o.block, o.parts);
}

static float input_at(mf_cpu_form form, const void *x, int64_t i)
{
    switch (form) {
    case MF_CPU_FORM_BF16:
    case MF_CPU_FORM_BF16_QUADS:
        return mf_bf16_to_f32(((const uint16_t *)x)[i]);
    case MF_CPU_FORM_I8:
    case MF_CPU_FORM_I8_SPLIT:
    case MF_CPU_FORM_I8_HALVES:
        return (float)((const int8_t *)x)[i];
    default:
        return ((const float *)x)[i];
    }
}

static float row_times_values(const mf_cpu_tile *tile, mf_cpu_form form, order o, int64_t r, const void *x)
{
    const mf_matrix *w = tile->w;
    float acc[LANES] = { 0 };
    for (int64_t first = 0; first < w->k; first += CHUNK) {
        float values[CHUNK];
        const int64_t count = w->k - first < CHUNK ? w->k - first : CHUNK;
        mf_matrix_decode_row(w, tile->first_row + r, first, count, values);
        for (int64_t i = 0; i < count; i++) {
            acc[i % LANES] += values[i] * input_at(form, x, place(o, first + i));
        }
    }
    return ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]));
}

/* Codes times codes: exact inside a group, the groups' sums in f32. */
static float row_times_codes(const mf_cpu_tile *tile, order o, int64_t r, const int8_t *x)
{
    const mf_matrix *w = tile->w;
    const int64_t row = tile->first_row + r;
    const int64_t scale_row = mf_matrix_scale_row(w, row);
    const int64_t group = mf_matrix_group(w) ? mf_matrix_group(w) : w->k;
    float total = 0.0f;
    for (int64_t start = 0, g = 0; start < w->k; start += group, g++) {
        const int64_t end = w->k - start < group ? w->k : start + group;
        int32_t sum = 0;
        for (int64_t k = start; k < end; k += CHUNK) {
            float codes[CHUNK];
            const int64_t count = end - k < CHUNK ? end - k : CHUNK;
            mf_matrix_decode_codes(w, row, k, count, codes);
            for (int64_t i = 0; i < count; i++) {
                sum += (int32_t)codes[i] * x[place(o, k + i)];
            }
        }
        total += mf_matrix_scale_at(w, scale_row + g) * (float)sum;
    }
    return total;
}

void mf_cpu_tile_rare(const mf_cpu_tile *tile, mf_cpu_form form, int64_t split)
{
    const bool is_codes = form == MF_CPU_FORM_I8 || form == MF_CPU_FORM_I8_SPLIT || form == MF_CPU_FORM_I8_HALVES;
    const order o = form == MF_CPU_FORM_F32_SPLIT  ? (order){ form, .block = split, .parts = 2 }
                    : form == MF_CPU_FORM_I8_SPLIT ? (order){ form, .block = 32, .parts = 2 }
                                                   : (order){ form, .block = MF_CPU_INTERLEAVED,
                                                              .parts = mf_cpu_form_parts(form) };
    for (int64_t r = 0; r < tile->num_rows; r++) {
        for (int64_t t = 0; t < tile->num_tokens; t++) {
            float *out = tile->out + t * tile->out_stride + r;
            *out = is_codes ? row_times_codes(tile, o, r, tile->x[t]) * tile->x_scale[t]
                            : row_times_values(tile, form, o, r, tile->x[t]);
        }
    }
}

static bool has_huge_scale(const mf_matrix *w, int64_t row, float limit)
{
    const int64_t columns = (w->k + MF_FP8_BLOCK_SIZE - 1) / MF_FP8_BLOCK_SIZE;
    const int64_t first = mf_matrix_scale_row(w, row);
    bool found = false;
    for (int64_t g = 0; g < columns; g++) {
        found |= !(fabsf(mf_matrix_scale_at(w, first + g)) < limit);
    }
    return found;
}

void mf_cpu_redo_huge_scales(const mf_cpu_tile *tile, mf_cpu_form form, float limit)
{
    int64_t known = -1; /* rows of one block have the same scales */
    bool is_huge = false;
    for (int64_t r = 0; r < tile->num_rows; r++) {
        const int64_t block = (tile->first_row + r) / MF_FP8_BLOCK_SIZE;
        if (block != known) {
            known = block;
            is_huge = has_huge_scale(tile->w, tile->first_row + r, limit);
        }
        if (is_huge) {
            mf_cpu_tile one = *tile;
            one.first_row += r;
            one.num_rows = 1;
            one.out += r;
            mf_cpu_tile_rare(&one, form, 1);
        }
    }
}
