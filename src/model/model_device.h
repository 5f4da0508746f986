/* model_device.h - a model on a device with memory of its own: a step's small arrays go there in one copy, counters and
 * logits come back, and steps that only decode are noted as graphs and replayed. */
#ifndef MF_MODEL_MODEL_DEVICE_H
#define MF_MODEL_MODEL_DEVICE_H

#include "model/model_impl.h"

/* Where the walk finds a step's inputs and leaves its counts: the batch's own arrays, or their copies on the device. */
typedef struct mf_step {
    int64_t num_tokens;
    const int32_t *token_ids, *position, *sequence, *block_table;
    int64_t max_blocks; /* between rows of block_table */
    int64_t max_context;
    mf_state_view states;
    int32_t *load, *bad_rows; /* optional */
    const mf_pick *picks;     /* the batch's, where the device is to choose */
    mf_pick_change *changes;
} mf_step;

/* Only for devices with memory of their own; after the scratch.  close accepts NULL. */
mf_status mf_model_device_open(mf_model *model, mf_error *err);
void mf_model_device_close(mf_model *model);

/* The walk up to the last layer's output, and the head of logit rows [first, first + count) into logits [count, vocab].
 */
typedef mf_status (*mf_walk_fn)(mf_model *model, mf_kv_store *store, const mf_batch *batch, const mf_step *step,
                                mf_error *err);
typedef void (*mf_head_fn)(mf_model *model, const mf_batch *batch, int32_t first, int32_t count, float *logits);

/* Runs a checked step there; `step` has the host's arrays. */
mf_status mf_model_device_run(mf_model *model, mf_kv_store *store, const mf_batch *batch, const mf_step *step,
                              mf_walk_fn walk, mf_head_fn head, float *logits, mf_error *err);

/* A store is going: graphs that write to it do, too. */
void mf_model_device_forget(mf_model *model);

/* What the plan's line says; MF_OK and nothing written for the host's memory. */
mf_status mf_model_device_print(const mf_model *model, mf_buffer *out);

#endif
