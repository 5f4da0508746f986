/* kernels_c.c - the ladder's first rung: plain C for any machine, and what other rungs fall back to.
 *
 * Order of sums: eight lanes, lane k % 8, k ascending; the lanes in a tree at the end. */
#include "kernels/activation.h"
#include "kernels/cpu/cpu_kernels.h"

enum { LANES = 8, TOKENS = 4, CHUNK = 128 };
_Static_assert(CHUNK % LANES == 0, "a chunk leaves the lanes where they were");

typedef struct lanes {
    float v[LANES];
} lanes;

static float sum_lanes(const lanes *a)
{
    return ((a->v[0] + a->v[4]) + (a->v[2] + a->v[6])) + ((a->v[1] + a->v[5]) + (a->v[3] + a->v[7]));
}

static void accumulate(lanes *acc, const float *w, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            acc->v[l] += w[i + l] * x[i + l];
        }
    }
    for (int l = 0; i < n; i++, l++) {
        acc->v[l] += w[i] * x[i];
    }
}

/* One row times up to TOKENS tokens, decoded once. */
static void row_times_tokens(const mf_cpu_tile *tile, int64_t r, int64_t t0, int64_t num_tokens)
{
    const mf_matrix *w = tile->w;
    lanes acc[TOKENS] = { 0 };
    for (int64_t k = 0; k < w->k; k += CHUNK) {
        float values[CHUNK];
        int64_t count = w->k - k < CHUNK ? w->k - k : CHUNK;
        mf_matrix_decode_row(w, tile->first_row + r, k, count, values);
        for (int64_t t = 0; t < num_tokens; t++) {
            accumulate(&acc[t], values, (const float *)tile->x[t0 + t] + k, count);
        }
    }
    for (int64_t t = 0; t < num_tokens; t++) {
        tile->out[(t0 + t) * tile->out_stride + r] = sum_lanes(&acc[t]);
    }
}

void mf_cpu_tile_c(const mf_cpu_tile *tile)
{
    for (int64_t r = 0; r < tile->num_rows; r++) {
        for (int64_t t = 0; t < tile->num_tokens; t += TOKENS) {
            row_times_tokens(tile, r, t, tile->num_tokens - t < TOKENS ? tile->num_tokens - t : TOKENS);
        }
    }
}

static void tile_int8_codes_c(const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    for (int64_t r = 0; r < tile->num_rows; r++) {
        const int8_t *codes = (const int8_t *)mf_matrix_row(w, tile->first_row + r);
        float scale = mf_matrix_scale_at(w, mf_matrix_scale_row(w, tile->first_row + r));
        for (int64_t t = 0; t < tile->num_tokens; t++) {
            const int8_t *x = tile->x[t];
            int32_t sum = 0;
            for (int64_t k = 0; k < w->k; k++) {
                sum += codes[k] * x[k];
            }
            tile->out[t * tile->out_stride + r] = (float)sum * tile->x_scale[t] * scale;
        }
    }
}

static void tile_int4_codes_c(const mf_cpu_tile *tile)
{
    const mf_matrix *w = tile->w;
    for (int64_t r = 0; r < tile->num_rows; r++) {
        const int64_t row = tile->first_row + r;
        const int64_t scale_row = mf_matrix_scale_row(w, row);
        for (int64_t t = 0; t < tile->num_tokens; t++) {
            const int8_t *x = tile->x[t];
            float total = 0.0f;
            for (int64_t first = 0, g = 0; first < w->k; first += w->group_size, g++) {
                const int64_t end = w->k - first < w->group_size ? w->k : first + w->group_size;
                int32_t sum = 0;
                for (int64_t k = first; k < end; k += CHUNK) {
                    float codes[CHUNK];
                    const int64_t count = end - k < CHUNK ? end - k : CHUNK;
                    mf_matrix_decode_codes(w, row, k, count, codes);
                    for (int64_t i = 0; i < count; i++) {
                        sum += (int32_t)codes[i] * x[k + i];
                    }
                }
                total += mf_matrix_scale_at(w, scale_row + g) * (float)sum;
            }
            tile->out[t * tile->out_stride + r] = total * tile->x_scale[t];
        }
    }
}

/* For the forms that are not panels. */
static int64_t place(mf_cpu_form form, int64_t split, int64_t k)
{
    return form == MF_CPU_FORM_F32_SPLIT    ? mf_cpu_place_apart(k, split, 2)
           : form == MF_CPU_FORM_I8_SPLIT   ? mf_cpu_place_apart(k, 32, 2)
           : form == MF_CPU_FORM_BF16_QUADS ? mf_cpu_place_in_quads(k)
           : form == MF_CPU_FORM_F32_BYTES  ? mf_cpu_place_in_bytes(k)
                                            : mf_cpu_place_apart(k, MF_CPU_INTERLEAVED, mf_cpu_form_parts(form));
}

int64_t mf_cpu_form_place(const mf_cpu_kernels *kernels, mf_cpu_form form, int64_t k)
{
    return place(form, kernels->split, k);
}

/* One value of a row or panel; the split forms' block is the table's. */
static void put(const mf_cpu_pack *p, int64_t split, int64_t k, float value)
{
    const uint16_t narrow = mf_f32_to_bf16(value);
    const int8_t code = (int8_t)value;
    uint8_t *row = p->row;
    switch (p->form) {
    case MF_CPU_FORM_F32:
    case MF_CPU_FORM_F32_SPLIT:
    case MF_CPU_FORM_F32_BYTES:
        memcpy(row + 4 * place(p->form, split, k), &value, 4);
        break;
    case MF_CPU_FORM_BF16:
    case MF_CPU_FORM_BF16_QUADS:
        memcpy(row + 2 * place(p->form, split, k), &narrow, 2);
        break;
    case MF_CPU_FORM_I8:
    case MF_CPU_FORM_I8_SPLIT:
    case MF_CPU_FORM_I8_HALVES:
        memcpy(row + place(p->form, split, k), &code, 1);
        break;
    case MF_CPU_FORM_BF16_PANEL:
        memcpy(row + ((k / 2 * p->num_tokens + p->token) * 2 + k % 2) * 2, &narrow, 2);
        break;
    default:
        memcpy(row + (k / 4 * p->num_tokens + p->token) * 4 + k % 4, &code, 1);
        break;
    }
}

void mf_cpu_pack_c(const mf_cpu_pack *p, int64_t split, const float *x, int64_t first, int64_t n)
{
    const int64_t columns = mf_cpu_form_columns(p->form, p->k);
    const int64_t end = first + n == p->k ? columns : first + n;
    const bool has_sums = p->form >= MF_CPU_FORM_I8 && p->form != MF_CPU_FORM_BF16_PANEL;
    int32_t sum = 0;
    for (int64_t k = first; k < end; k++) {
        const float value = k < first + n ? x[k - first] : 0.0f;
        put(p, split, k, value);
        sum += has_sums ? (int32_t)value : 0;
        if (has_sums && k % 32 == 31) {
            const bool panel = p->form == MF_CPU_FORM_I8_PANEL;
            uint8_t *sums = (uint8_t *)p->row + columns * (panel ? p->num_tokens : 1);
            memcpy(sums + 4 * (panel ? k / 32 * p->num_tokens + p->token : k / 32), &sum, 4);
            sum = 0;
        }
    }
}

static void pack_c(const mf_cpu_pack *pack, const float *x, int64_t first, int64_t n)
{
    mf_cpu_pack_c(pack, MF_CPU_COLUMNS, x, first, n);
}

static void activate_c(const mf_slot *slot, mf_dtype dtype, const float *g, const float *u, int64_t n, float *h)
{
    for (int64_t i = 0; i < n; i++) {
        h[i] = mf_round_to_dtype(mf_activate(slot, g[i], u[i]), dtype);
    }
}

static void load_row_c(const void *data, mf_dtype dtype, int64_t n, float *out)
{
    mf_load_row(data, dtype, n, out);
}

static void store_row_c(const float *x, int64_t n, mf_dtype dtype, void *data)
{
    mf_store_row(x, n, dtype, data);
}

static void quantise_c(mf_quant quant, float static_scale, bool e8m0, float *x, int64_t n, float *scale)
{
    if (quant == MF_QUANT_INT8_TOKEN) {
        *scale = mf_quant_scale(quant, static_scale, e8m0, x, n);
        for (int64_t i = 0; i < n; i++) {
            x[i] = mf_quant_code(quant, x[i], *scale);
        }
        return;
    }
    const int64_t group = mf_quant_group(quant, n);
    for (int64_t first = 0; first < n; first += group) {
        const int64_t end = n - first < group ? n : first + group;
        float s = mf_quant_scale(quant, static_scale, e8m0, x + first, end - first);
        for (int64_t i = first; i < end; i++) {
            x[i] = mf_quant_code(quant, x[i], s) * s;
        }
    }
}

static float dot_c(const float *a, const float *b, int64_t n)
{
    lanes acc = { 0 };
    accumulate(&acc, a, b, n);
    return sum_lanes(&acc);
}

static void rms_norm_c(const float *x, const float *weight, int64_t n, float eps, float *out)
{
    float scale = 1.0f / sqrtf(dot_c(x, x, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) {
        out[i] = x[i] * scale * weight[i];
    }
}

static void add_c(float *acc, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        acc[i] += x[i];
    }
}

static void sigmoid_gate_c(float *x, const float *gate, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] *= mf_act_sigmoid(gate[i]);
    }
}

static void rope_c(float *x, int64_t num_vectors, int64_t vector_stride, int64_t dim, bool pair, const float *cos_sin)
{
    const int64_t half = dim / 2;
    for (int64_t v = 0; v < num_vectors; v++) {
        for (int64_t i = 0; i < half; i++) {
            float *a = x + v * vector_stride + (pair ? 2 * i : i);
            float *b = a + (pair ? 1 : half);
            const float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
            const float a0 = *a, b0 = *b;
            *a = a0 * c - b0 * s;
            *b = b0 * c + a0 * s;
        }
    }
}

void mf_cpu_kernels_fill_c(mf_cpu_kernels *k)
{
    *k = (mf_cpu_kernels){ .isa = "c",
                           .activate = activate_c,
                           .load_row = load_row_c,
                           .store_row = store_row_c,
                           .quantise = quantise_c,
                           .rms_norm = rms_norm_c,
                           .delta_step = mf_cpu_delta_step_c,
                           .delta_columns = 32,
                           .sigmoid_gate = sigmoid_gate_c,
                           .add = add_c,
                           .rope = rope_c };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        k->product[f][MF_CPU_INPUT_F32] = (mf_cpu_product){ mf_cpu_tile_c, MF_CPU_FORM_F32 };
        k->product[f][MF_CPU_INPUT_BF16] = k->product[f][MF_CPU_INPUT_F32];
    }
    k->product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8] = (mf_cpu_product){ tile_int8_codes_c, MF_CPU_FORM_I8 };
    k->product[MF_FORMAT_INT4_GROUP][MF_CPU_INPUT_I8] = (mf_cpu_product){ tile_int4_codes_c, MF_CPU_FORM_I8 };
    k->split = MF_CPU_COLUMNS;
    k->tile_tokens = 32;
    k->pack = pack_c;
    k->gate_steps = &mf_ref_gate_steps;
    mf_cpu_attention_fill_c(k);
    mf_cpu_sum_reduce_fill_c(k);
}
