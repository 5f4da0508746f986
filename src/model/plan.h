/* plan.h - which shared experts become slots, layer by layer, and why not where not.
 *
 * Made once from config and weights, before the device sees them; immutable; printed at start.  spec: a shared MLP of width
 * S*I is cut into S views; slot ids are E..E+S*R-1, R replicas of a chunk being R slots with the same pointers. */
#ifndef MF_MODEL_PLAN_H
#define MF_MODEL_PLAN_H

#include "base/buffer.h"
#include "model/bands.h"
#include "model/weights.h"

typedef struct mf_plan_options {
    bool disable_shared_experts_fusion;
    bool disable_fused_gate;
    int32_t num_shared_expert_replicas; /* 1..64 */
    bool one_format_a_table; /* the device's kernels want that: see ops.h */
    bool has_second_stream;  /* a separate shared expert runs beside the routed ones */
    bool disable_fusion_bands; /* shared experts that may be in slots are, at any number of tokens */
    const char *gpu;           /* whose measurements decide (bands.h); NULL or "": none */
    bool warns_of_wide_inputs; /* FP8 experts would be much faster with FP8 inputs */
} mf_plan_options;

typedef struct mf_layer_plan {
    bool is_moe;
    mf_layer_mode mode;        /* of a few tokens; meaningful when has_shared */
    const mf_mode_band *bands; /* of others; NULL: the same.  They live as long as the program */
    const char *source;        /* who measured them; NULL: nobody */
    bool has_slots, is_apart;  /* some number of tokens has its shared expert in slots; some has it separate */
    bool has_shared;
    bool fused_gate;
    int32_t num_shared_chunks;  /* S: slots of the gate in SLOT mode, else slots of the separate product */
    int32_t num_replicas;       /* R; 1 unless SLOT */
    mf_format routed_format, shared_format;
    char reason[200];         /* why the shared expert is not in slots; "" when it is, or when there is none */
} mf_layer_plan;

typedef struct mf_plan {
    const mf_model_config *config; /* borrowed */
    mf_plan_options options;       /* replicas reduced to 1 when there is no shared expert */
    mf_layer_plan *layers;         /* [num_layers], owned */
    int32_t num_moe, num_slot, num_overlap, num_serial, num_fused_gate; /* counts over MoE layers */
    char warnings[4][240];
    int32_t num_warnings;
} mf_plan;

enum { MF_PLAN_MAX_SLOTS = 8192, MF_PLAN_MAX_SHARED_CHUNKS = 16, MF_PLAN_MAX_REPLICAS = 64 };

mf_status mf_plan_make(const mf_model_config *config, const mf_weights *weights, const mf_plan_options *options,
                       mf_plan **plan, mf_error *err);
void mf_plan_close(mf_plan **plan);

/* The slots of a MoE layer under the plan: routed experts, then the chunks' replicas in SLOT mode.  *slots is an array
 * of *num_slots in the arena; *shared / *num_shared are the chunks of the other modes (0 where there is none).  A layer
 * that changes its mode has both, over the same bytes, and *num_slots counts the shared ones. */
struct mf_arena;
mf_status mf_plan_layer_slots(const mf_plan *plan, const mf_weights *weights, int64_t layer, struct mf_arena *arena,
                              mf_slot **slots, int64_t *num_slots, mf_slot **shared, int64_t *num_shared, mf_error *err);

/* The mode of a layer with a shared expert at so many tokens. */
static inline mf_layer_mode mf_plan_mode(const mf_layer_plan *layer, int64_t num_tokens)
{
    return layer->bands ? mf_bands_mode(layer->bands, num_tokens) : layer->mode;
}

/* The `fusion` lines of the start-up plan; all_layers prints one line per layer, else only those that differ from most, and
 * one for all when most are not in slots.  device_name is for reasons that name a backend; NULL: not known. */
mf_status mf_plan_print(const mf_plan *plan, const char *device_name, bool all_layers, mf_buffer *out);

#endif
