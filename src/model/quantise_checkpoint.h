/* quantise_checkpoint.h - a checkpoint written again with its linear layers quantised, in the layout that models are
 * released in: fp8 as DeepSeek's (weight_scale_inv per 128 x 128 block), int8 and int4 as compressed-tensors'.
 *
 * Codes and scales are the bits that loading with --quantization makes (int4: with groups of 32).  Left as they are:
 * the embedding, the output head, routers, norms, kv_b_proj (attention takes it apart), draft layers.  The output
 * appears under its name only when it is whole; the input is never touched. */
#ifndef MF_MODEL_QUANTISE_CHECKPOINT_H
#define MF_MODEL_QUANTISE_CHECKPOINT_H

#include <jansson.h>

#include "base/arena.h"
#include "base/progress.h"
#include "model/weights_parts.h"

typedef struct mf_quantise_options {
    mf_format format;    /* FP8_BLOCK, INT8_CHANNEL or INT4_GROUP */
    int64_t group;       /* INT4_GROUP: 32, 64 or 128 */
    int32_t num_threads; /* 0 = one per core */
    mf_progress progress;
} mf_quantise_options;

/* Sums of squares: relative RMS error = sqrt(error / weight). */
typedef struct mf_quantise_sums {
    double error, weight;
    int64_t num_matrices;
} mf_quantise_sums;

typedef struct mf_quantise_report {
    int64_t num_layers;
    mf_quantise_sums (*layers)[MF_PART_COUNT]; /* [num_layers], owned */
    int64_t bytes_in, bytes_out;               /* of tensor data */
    int64_t num_matrices;
    bool has_short_groups; /* some width is no multiple of the group: read here, perhaps not elsewhere */
} mf_quantise_report;

mf_status mf_checkpoint_quantise(const char *in, const char *out, const mf_quantise_options *options,
                                 mf_quantise_report *report, mf_error *err);
void mf_quantise_report_close(mf_quantise_report *report);

/* ---- shared by quantise_plan.c (what is written) and quantise_checkpoint.c (writing it) ---- */

/* One tensor that is copied, or one matrix that is quantised into two or three tensors. */
typedef struct mf_quantise_item {
    const uint8_t *source; /* the order within a shard */
    int32_t shard;
    const mf_st_tensor *tensor; /* copied; NULL: quantised */
    const char *module;         /* quantised: the name before ".weight" */
    mf_matrix from, to;
    int64_t code_bytes, scale_bytes;
    int64_t layer;
    mf_part part;
} mf_quantise_item;

typedef struct mf_quantise_plan {
    mf_model_config *config;
    mf_weights *weights;
    mf_arena *arena;         /* names */
    mf_quantise_item *items; /* by shard, then by source */
    int64_t num_items;
    json_t *quantization_config; /* of the output */
    bool has_short_groups;
} mf_quantise_plan;

mf_status mf_quantise_plan_make(const char *in, const mf_quantise_options *options, mf_quantise_plan *plan,
                                mf_error *err);
void mf_quantise_plan_close(mf_quantise_plan *plan);

#endif
