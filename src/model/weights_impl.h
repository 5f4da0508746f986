/* weights_impl.h - what weights.c (placing), weights_check.c and weights_dummy.c share. */
#ifndef MF_MODEL_WEIGHTS_IMPL_H
#define MF_MODEL_WEIGHTS_IMPL_H

#include "base/arena.h"
#include "model/checkpoint.h"
#include "model/tensor_map.h"
#include "model/weights.h"

/* mf_weights with its layers and experts, targets empty.  arena_limit: see mf_arena. */
mf_status mf_weights_alloc(const mf_model_config *config, size_t arena_limit, mf_weights **weights, mf_error *err);

/* A config that asks for far more than the files hold must not cost memory or time before it is refused.  One that is
 * only somewhat off passes, so that the missing tensors can be named. */
mf_status mf_weights_plausible(const char *dir, const mf_model_config *config, const mf_checkpoint *checkpoint,
                               mf_error *err);

/* What an arena for this checkpoint may take: bounded by the files, so that a small file cannot ask for much. */
size_t mf_weights_arena_limit(const mf_checkpoint *checkpoint, bool mapped);

/* Where problems go while a checkpoint is compared with its config.  report NULL: the first one ends the work. */
typedef struct mf_match_options {
    const char *dir; /* for messages */
    bool deep;       /* read every value */
    mf_finding_fn report;
    void *context;
    int32_t max_findings;
} mf_match_options;

/* Fills weights from their checkpoint: every wanted tensor once, every tensor wanted or skipped by rule. */
mf_status mf_weights_match(mf_weights *weights, const mf_match_options *options, int32_t *num_findings, mf_error *err);

mf_status mf_weights_make_dummy(const mf_model_config *config, const mf_weights_options *options, mf_weights **weights,
                                mf_error *err);

/* Whether a linear layer's matrix may become codes of `format`. */
bool mf_weights_may_quantise(const mf_model_config *config, const mf_wanted *wanted, mf_format format);

/* Replaces what options->quantization chooses; the checkpoint's pages that are then unused are given back. */
mf_status mf_weights_quantise(mf_weights *weights, const mf_weights_options *options, mf_error *err);

/* A matrix whose stored layout is not what kernels read: converted, value by value exactly, after everything is
 * matched. */
typedef enum mf_conversion_kind {
    MF_CONVERT_GPTQ,
    MF_CONVERT_AWQ,
    MF_CONVERT_INT8_ZEROS,
    MF_CONVERT_COLUMNS /* unquantised and transposed: row r of the target is column r * column_step of `codes` */
} mf_conversion_kind;

typedef struct mf_conversion {
    struct mf_conversion *next;
    mf_conversion_kind kind;
    const char *name;  /* of the codes' tensor */
    mf_matrix *target; /* until then: the right shape, format and sizes, with pointers at what is stored */
    const uint8_t *codes, *scales;
    const uint8_t *zeros; /* NULL: all are what their absence means */
    uint8_t zero_plus;
    int64_t column_step, stored_columns; /* COLUMNS */
    const uint8_t *done_with;            /* COLUMNS: what nobody reads after this */
    size_t done_bytes;
    int64_t first_task;
    size_t codes_at, scales_at, zeros_at; /* in the block */
} mf_conversion;

/* Copies all weights to the device, rows without gaps, and lets the host's go. */
mf_status mf_weights_place(mf_weights *weights, const mf_weights_options *options, mf_error *err);

/* Runs weights->conversions into memory of their own. */
mf_status mf_weights_convert(mf_weights *weights, const mf_weights_options *options, mf_error *err);

static inline mf_format mf_quant_format(mf_quant_method method)
{
    return method == MF_QUANT_MXFP4                                            ? MF_FORMAT_MXFP4
           : method == MF_QUANT_FP8_BLOCK                                      ? MF_FORMAT_FP8_BLOCK
           : method == MF_QUANT_FP8_CHANNEL || method == MF_QUANT_FP8_TENSOR   ? MF_FORMAT_FP8_CHANNEL
           : method == MF_QUANT_INT8_CHANNEL || method == MF_QUANT_INT8_TENSOR ? MF_FORMAT_INT8_CHANNEL
                                                                               : MF_FORMAT_INT4_GROUP;
}

static inline int64_t mf_div_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

#endif
