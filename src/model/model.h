/* model.h - a loaded model on a device: open, run a batch of token rows, close. */
#ifndef MF_MODEL_MODEL_H
#define MF_MODEL_MODEL_H

#include "kernels/part.h"
#include "kernels/pick.h"
#include "model/config.h"
#include "model/plan.h"
#include "model/weights.h"

typedef struct mf_model_options {
    const char *device;          /* "cpu", "ref", "cuda" */
    int32_t num_threads;         /* 0 = all */
    bool pin_threads;            /* as in mf_device_options */
    mf_numa numa;                /* of the KV cache, the scratch memory, and weights that are not mapped */
    bool dummy;                  /* --load-format dummy */
    uint64_t seed;               /* of dummy weights */
    bool use_map;
    bool touch;
    mf_dtype act_dtype;          /* MF_F32 (0, the default) or MF_BF16: what enters linear layers and experts is rounded to it;
                                    the residual stream, norms and routers stay f32 */
    mf_dtype kv_dtype;           /* of the KV cache: MF_F32 (0, the default) or MF_BF16; see mf_kv_view */
    bool auto_act_dtype;         /* instead of act_dtype: bf16 if the checkpoint is of bf16 (its config's torch_dtype) and the
                                    device multiplies that faster than f32 */
    bool auto_kv_dtype;          /* instead of kv_dtype: as act_dtype */
    mf_quantization quantization; /* of weights, while loading */
    mf_act_quant act_quant;      /* of the experts: MF_ACT_QUANT_NONE (0, the default), _INT8 or _W8A8 */
    int64_t max_batch_tokens;    /* rows per forward: sizes the scratch memory */
    int64_t max_model_len;       /* 0 = the model's; positions per sequence: sizes the rope table and score rows */
    double memory_utilization;   /* of a device with memory of its own: the part that weights, scratch memory and KV cache may
                                    take, beside what others have; 0 = MF_MEMORY_UTILIZATION */
    mf_plan_options plan;
    mf_progress progress;
} mf_model_options;

#define MF_MEMORY_UTILIZATION 0.9

typedef struct mf_model mf_model;

mf_status mf_model_open(const char *dir, const mf_model_options *options, mf_model **model, mf_error *err);
void mf_model_close(mf_model **model);

const mf_model_config *mf_model_get_config(const mf_model *model);
const mf_weights *mf_model_get_weights(const mf_model *model);
const mf_plan *mf_model_get_plan(const mf_model *model);
const mf_device *mf_model_get_device(const mf_model *model);
int64_t mf_model_max_len(const mf_model *model);
int64_t mf_model_workspace_bytes(const mf_model *model);

/* What a device with memory of its own has and a model wants there, in bytes. */
typedef struct mf_memory_plan {
    int64_t total, available, weights, activations;
    double utilization;
} mf_memory_plan;

/* MF_ERR_NOMEM with the figures where it does not fit. */
mf_status mf_model_check_memory(const mf_memory_plan *plan, const char *device, mf_error *err);
/* Bytes of the device's own memory that are left to the KV cache; false: the device works in the host's memory. */
bool mf_model_device_budget(const mf_model *model, int64_t *bytes);

/* The paged store of keys and values: per layer of attention `num_blocks` blocks of `block_size` tokens; a block id names one
 * block of every layer.  Beside it, for models with linear layers, `num_states` states: what those layers keep of a whole
 * sequence, whatever its length.  A state begins as zeros with the row of position 0 and can only go on from where it is. */
typedef struct mf_kv_store mf_kv_store;
int64_t mf_kv_store_block_bytes(const mf_model *model, int32_t block_size);
int64_t mf_kv_store_state_bytes(const mf_model *model); /* of one sequence; 0: the model has no linear layers */
mf_status mf_kv_store_open(const mf_model *model, int32_t num_blocks, int32_t block_size, int32_t num_states, mf_kv_store **store,
                           mf_error *err);
void mf_kv_store_close(mf_kv_store **store);

typedef struct mf_batch {
    int32_t num_tokens;          /* rows, <= max_batch_tokens */
    const int32_t *token_ids;    /* [num_tokens], each in [0, vocab_size) */
    const int32_t *position;     /* [num_tokens]; rows of one sequence in ascending positions, all earlier ones cached or in
                                    this batch */
    const int32_t *sequence;     /* [num_tokens]: row of block_table */
    const int32_t *block_table;  /* [num_sequences, max_blocks] */
    int32_t num_sequences, max_blocks;
    const int32_t *state_slot;   /* [num_sequences], each another one of the store's states; NULL: the sequence's own number.
                                    With linear layers each sequence's positions go on from its state's, or begin at 0 */
    int32_t num_logit_rows;      /* rows whose logits are wanted */
    const int32_t *logit_rows;   /* [num_logit_rows], ascending */
    int32_t *best;               /* optional, where mf_model_picks_best: instead of logits, of each wanted row the id of the largest
                                    among ids below num_best_ids, the lowest of equals; -1: a NaN, an infinity */
    int32_t num_best_ids;
    /* Optional, where mf_model_picks and without best: what is wanted of each row, by ids below num_best_ids.  Logits come of
     * those rows alone whose answer is MF_PICKED_LOGITS. */
    const mf_pick *picks;            /* [num_logit_rows] */
    const mf_pick_change *changes;
    int32_t num_changes;
    mf_picked *picked;               /* [num_logit_rows] */
    void (*beat)(void *context); /* optional: called twice a layer, so that a long forward is seen to go on */
    void *beat_context;
} mf_batch;

/* Whether the model's device finds the largest logits itself. */
bool mf_model_picks_best(const mf_model *model);

/* Whether it chooses tokens in other ways, too. */
bool mf_model_picks(const mf_model *model);

/* Launches of a step that only decodes, on a device that notes such steps; 0: none was noted. */
int64_t mf_model_step_launches(const mf_model *model);

/* Where the time of steps goes: between begin and end, on a model that nobody runs meanwhile, steps note their parts (and are
 * not replayed as graphs); take adds each part's seconds since the last take. */
mf_status mf_model_profile_begin(const mf_model *model, mf_error *err);
mf_status mf_model_profile_take(const mf_model *model, double seconds[MF_NUM_PARTS], mf_error *err);
void mf_model_profile_end(const mf_model *model);

/* Memory for logits that come from the model's device fastest; NULL: there is none. */
void *mf_model_alloc_logits(const mf_model *model, size_t bytes);
void mf_model_free_logits(const mf_model *model, void *logits);

/* Writes logits [num_logit_rows, vocab_size] f32.  Allocates nothing.  expert_load (optional) int32 [num_layers, E]
 * accumulates logical routed counts; bad_rows (optional) counts rows whose router logits hold a NaN. */
mf_status mf_model_forward(mf_model *model, mf_kv_store *store, const mf_batch *batch, float *logits, int32_t *expert_load,
                           int32_t *bad_rows, mf_error *err);

/* The start-up plan's lines "model", "device", "memory"(weights), "fusion" for people; see also mf_plan_print. */
mf_status mf_model_print_plan(const mf_model *model, bool all_layers, mf_buffer *out);

#endif
