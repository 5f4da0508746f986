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
            const int16_t *x = tile->x[t];
            int32_t sum = 0;
            for (int64_t k = 0; k < w->k; k++) {
                sum += codes[k] * x[k];
            }
            tile->out[t * tile->out_stride + r] = (float)sum * tile->x_scale[t] * scale;
        }
    }
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
        for (int64_t i = 0; i < n; i++) { /* narrower than what is read, so codes stay behind the reads */
            int16_t code = (int16_t)mf_quant_code(quant, x[i], *scale);
            memcpy((uint8_t *)x + 2 * i, &code, 2);
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

static void mix_c(const mf_cpu_mix *m)
{
    for (int64_t h = 0; h < m->num_heads; h++) {
        float *acc = m->acc + h * m->acc_stride;
        for (int64_t s = 0; s < m->num_rows; s++) {
            const float weight = m->weights[h * m->weight_stride + s];
            const float *row = m->rows + s * m->row_stride;
            for (int64_t i = 0; i < m->n; i++) {
                acc[i] += weight * row[i];
            }
        }
    }
}

static float exp_sum_c(float *x, int64_t n, float max)
{
    lanes acc = { 0 };
    for (int64_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        acc.v[i % LANES] += x[i];
    }
    return sum_lanes(&acc);
}

static void rms_norm_c(const float *x, const float *weight, int64_t n, float eps, float *out)
{
    float scale = 1.0f / sqrtf(dot_c(x, x, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) {
        out[i] = x[i] * scale * weight[i];
    }
}

void mf_cpu_kernels_fill_c(mf_cpu_kernels *k)
{
    *k = (mf_cpu_kernels){ .isa = "c",
                           .activate = activate_c,
                           .load_row = load_row_c,
                           .store_row = store_row_c,
                           .quantise = quantise_c,
                           .mix = mix_c,
                           .exp_sum = exp_sum_c,
                           .rms_norm = rms_norm_c };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        k->tile[f] = mf_cpu_tile_c;
    }
    k->tile_int8_codes = tile_int8_codes_c;
    k->gate_steps = &mf_ref_gate_steps;
    mf_cpu_sum_reduce_fill_c(k);
}
