/* rope.h - the table of rotary cosines and sines of a model, with yarn, linear and llama3's scaling, and what
 * takes its place in layers without rope. */
#ifndef MF_MODEL_ROPE_H
#define MF_MODEL_ROPE_H

#include "base/error.h"
#include "model/config.h"

/* Factor on cos and sin: attention_factor if given, else m(factor, mscale) / m(factor, mscale_all_dim) when both are set, else
 * m(factor, 1), with m(s, k) = s <= 1 ? 1 : 0.1 k ln s + 1; 1 without yarn. */
double mf_rope_attention_factor(const mf_rope_config *rope);

/* inv_freq [dim / 2]: radians per position of each pair. */
void mf_rope_inv_freq(const mf_rope_config *rope, float *inv_freq);

/* What queries of layers without rope are multiplied by (mf_model_config's query_floor and query_scale), each step in
 * f32: a new table [num_positions]; release with mf_free_aligned. */
mf_status mf_rope_query_scales_make(int64_t query_floor, double query_scale, int64_t num_positions, float **table,
                                    mf_error *err);

/* A new table [num_positions][dim / 2][2] of (cos, sin); release with mf_free_aligned. */
mf_status mf_rope_table_make(const mf_rope_config *rope, int64_t num_positions, float **table, mf_error *err);

#endif
