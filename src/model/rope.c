/* rope.c - rotary tables: see rope.h.
 *
 * A model is trained with angles that were rounded to f32 (position * inv_freq, both f32), and at position 100,000 such an
 * angle is up to 0.004 rad away from the exact one.  Each step that transformers rounds to f32 is therefore rounded here too,
 * so long contexts see the angles of training; powers, cosines and sines themselves are evaluated in double and rounded once. */
#include "model/rope.h"

#include <math.h>

#include "base/sys.h"

static const double pi = 3.14159265358979323846;

static double mscale(double scale, double k)
{
    return scale <= 1.0 ? 1.0 : 0.1 * k * log(scale) + 1.0;
}

double mf_rope_attention_factor(const mf_rope_config *rope)
{
    if (rope->type != MF_ROPE_YARN) {
        return 1.0;
    }
    if (rope->attention_factor != 0.0) {
        return rope->attention_factor;
    }
    if (rope->mscale != 0.0 && rope->mscale_all_dim != 0.0) {
        return mscale(rope->factor, rope->mscale) / mscale(rope->factor, rope->mscale_all_dim);
    }
    return mscale(rope->factor, 1.0);
}

/* The dimension whose wave makes num_rotations turns within the original context. */
static double correction_dim(const mf_rope_config *rope, double num_rotations)
{
    double original = (double)rope->original_max_position_embeddings;
    return (double)rope->dim * log(original / (num_rotations * 2.0 * pi)) / (2.0 * log(rope->theta));
}

/* Fast waves stay, slow ones are stretched by factor, those between are mixed by how many turns they make within the
 * original context. */
static float llama3_frequency(const mf_rope_config *rope, float plain)
{
    const float factor = (float)rope->factor, wave = (float)(2.0 * pi) / plain;
    const double original = (double)rope->original_max_position_embeddings;
    const float longest = (float)(original / rope->low_freq_factor), shortest = (float)(original / rope->high_freq_factor);
    if (wave > longest) {
        return plain / factor;
    }
    if (wave < shortest || rope->high_freq_factor == rope->low_freq_factor) {
        return plain;
    }
    const float low = (float)rope->low_freq_factor, width = (float)(rope->high_freq_factor - rope->low_freq_factor);
    const float keep = ((float)original / wave - low) / width;
    return (1.0f - keep) * plain / factor + keep * plain;
}

void mf_rope_inv_freq(const mf_rope_config *rope, float *inv_freq)
{
    int64_t half = rope->dim / 2;
    float factor = (float)rope->factor;
    float first = 0.0f, width = 1.0f;
    if (rope->type == MF_ROPE_YARN) {
        double low = correction_dim(rope, rope->beta_fast);
        double high = correction_dim(rope, rope->beta_slow);
        if (rope->truncate) {
            low = floor(low);
            high = ceil(high);
        }
        low = fmax(low, 0.0);
        high = fmin(high, (double)(rope->dim - 1));
        if (low == high) {
            high += 0.001; /* no division by zero */
        }
        first = (float)low;
        width = (float)(high - low);
    }
    for (int64_t i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)rope->dim;
        float period = (float)pow(rope->theta, (double)exponent);
        float plain = 1.0f / period;
        if (rope->type == MF_ROPE_YARN) {
            float ramp = fminf(fmaxf(((float)i - first) / width, 0.0f), 1.0f);
            float keep = 1.0f - ramp; /* 1: a fast wave, left as trained; 0: a slow one, stretched by factor */
            float stretched = 1.0f / (factor * period);
            inv_freq[i] = stretched * (1.0f - keep) + plain * keep;
        } else if (rope->type == MF_ROPE_LLAMA3) {
            inv_freq[i] = llama3_frequency(rope, plain);
        } else {
            inv_freq[i] = rope->type == MF_ROPE_LINEAR ? plain / factor : plain;
        }
    }
}

mf_status mf_rope_table_make(const mf_rope_config *rope, int64_t num_positions, float **table, mf_error *err)
{
    *table = NULL;
    size_t count, bytes;
    if (num_positions < 0 || rope->dim < 2 || rope->dim % 2 != 0 ||
        !mf_mul_ok((size_t)num_positions, (size_t)rope->dim, &count) || !mf_mul_ok(count, sizeof(float), &bytes)) {
        return mf_fail(err, MF_ERR_INVALID, "rope table: expected an even dimension and a table that fits; got %lld positions x %lld",
                       (long long)num_positions, (long long)rope->dim);
    }
    int64_t half = rope->dim / 2;
    float *inv_freq = mf_alloc_array((size_t)half, sizeof *inv_freq);
    float *out = mf_alloc_aligned(bytes);
    if (!inv_freq || !out) {
        mf_free(inv_freq);
        mf_free_aligned(out);
        return mf_fail(err, MF_ERR_NOMEM, "rope table of %lld positions needs %zu bytes", (long long)num_positions, bytes);
    }
    mf_rope_inv_freq(rope, inv_freq);
    float scale = (float)mf_rope_attention_factor(rope);
    for (int64_t p = 0; p < num_positions; p++) {
        float *row = out + p * rope->dim;
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)p * inv_freq[i];
            row[2 * i] = (float)cos((double)angle) * scale;
            row[2 * i + 1] = (float)sin((double)angle) * scale;
        }
    }
    mf_free(inv_freq);
    *table = out;
    return MF_OK;
}

mf_status mf_rope_query_scales_make(int64_t query_floor, double query_scale, int64_t num_positions, float **table,
                                    mf_error *err)
{
    size_t bytes;
    *table = NULL;
    float *out = mf_mul_ok((size_t)num_positions, sizeof(float), &bytes) ? mf_alloc_aligned(bytes) : NULL;
    if (!out) {
        return mf_fail(err, MF_ERR_NOMEM, "no memory for the query scales of %lld positions", (long long)num_positions);
    }
    for (int64_t p = 0; p < num_positions; p++) {
        const float steps = floorf(((float)p + 1.0f) / (float)query_floor);
        out[p] = (float)log1p((double)steps) * (float)query_scale + 1.0f;
    }
    *table = out;
    return MF_OK;
}
