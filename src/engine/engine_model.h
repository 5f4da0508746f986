/* engine_model.h - all that the engine knows of a model: a few numbers and callbacks.
 *
 * engine_open.c fills the table from model/model.h; tests fill it with a fake whose answers are known. */
#ifndef MF_ENGINE_ENGINE_MODEL_H
#define MF_ENGINE_ENGINE_MODEL_H

#include <stdbool.h>

#include "base/error.h"
#include "base/threads.h"
#include "model/model.h"

typedef struct mf_engine_model {
    void *context;
    int32_t vocab_size;       /* columns of a row of logits; prompt ids are below it */
    int64_t max_model_len;    /* positions per sequence that forward can take */
    int32_t max_batch_tokens; /* rows per forward */
    const int32_t *eos_token_ids;
    int32_t num_eos_token_ids;

    mf_pool *pool;            /* optional, lent: rows are sampled on it between forwards */

    /* The model keeps a state per sequence beside keys and values, which lives and dies with the sequence's run: a prefix that
     * another sequence has computed is then of no use to this one, and nothing is shared. */
    bool has_states;

    /* The one store of keys and values of this model, and of num_states states if it has them. */
    mf_status (*kv_open)(void *context, int32_t num_blocks, int32_t block_size, int32_t num_states, mf_error *err);
    void (*kv_close)(void *context);

    /* Writes logits [num_logit_rows, vocab_size].  Rows of different sequences do not influence each other's bits. */
    mf_status (*forward)(void *context, const mf_batch *batch, float *logits, mf_error *err);

    /* Optional: the model finds each row's largest logit itself (mf_batch.best), and has memory that logits come to fastest;
     * alloc_logits may give NULL. */
    bool picks_best;
    bool picks; /* and does what mf_batch.picks asks for */
    void *(*alloc_logits)(void *context, size_t bytes);
    void (*free_logits)(void *context, void *logits);

    /* Optional: logical expert counts since open, [num_layers, num_experts]. */
    const int64_t *expert_load;
    const int64_t *num_bad_rows;
    int32_t num_layers, num_experts;

    void (*close)(void *context); /* optional; called last by mf_engine_close */
} mf_engine_model;

#endif
