/* model_impl.h - what model.c sets up and forward.c walks over. */
#ifndef MF_MODEL_MODEL_IMPL_H
#define MF_MODEL_MODEL_IMPL_H

#include "base/arena.h"
#include "kernels/ops.h"
#include "model/model.h"

typedef struct mf_model_layer {
    mf_experts *dense;   /* a dense layer's MLP: an expert that every token picks; else NULL */
    mf_experts *experts; /* a MoE layer's routed experts and, in SLOT mode, its shared chunks */
    mf_experts *routed;  /* without those, where the layer changes its mode; else NULL */
    mf_experts *shared;  /* the shared chunks of a separate shared expert; else NULL */
    mf_gate_config gate; /* with the plan's shared slots and replicas */
    mf_gate_config gate_apart; /* without, where the shared expert is separate */
} mf_model_layer;

/* Memory of one forward call, for max_batch_tokens rows.  Parts that never live at the same time share `workspace`. */
typedef struct mf_model_scratch {
    void *block;              /* owns all of them but the workspace */
    void *workspace_block;    /* owns the workspace */
    float *x;                 /* [T, H] the residual stream */
    float *h;                 /* [T, H] normed input, then output, of a block */
    float *q_a;               /* [T, q_lora_rank] */
    float *q;                 /* [T, mf_model_config_q_size] */
    float *kv;                /* [T, mf_model_config_kv_size], as a row of the cache */
    float *attention;         /* [T, heads * v], or of linear layers [T, value heads * v] */
    float *mixed;             /* [T, qkvz of a linear layer] or, with an attention gate, [T, heads, 2 * head_dim] q and gate */
    float *linear_ba;         /* [T, 2 * value heads] */
    void *host_block;         /* owns the next five, which are the host's on every device */
    int32_t *run_rows, *run_start, *run_slot; /* [T], [T + 1], [T]: mf_state_view of a batch */
    int32_t *run_cursor;      /* [T] */
    uint8_t *run_is_new;      /* [T] */
    void *mlp_in;             /* [T, H] h in act_dtype, for experts; h itself when that is f32 */
    float *mlp_out;           /* [T, H] a dense MLP's output */
    float *router_logits;     /* [T, E] */
    float *shared_gate;       /* [T] logits of the shared expert's gate */
    float *x_row; /* [MF_NORM_LINEAR_ROWS, H]: the residual stream between the two halves of a layer, where the device
                     norms inside its products */
    mf_add_norm_call deferred; /* what add_and_norm left to the products that come next; weight NULL: nothing */
    float *ones;              /* [head_dim]: the weights of norms without any */
    int32_t *zero_ids;        /* [T] zeros: what a dense layer's tokens pick */
    void *workspace;          /* of attention, dense experts and MoE layers, one after the other */
    size_t workspace_bytes;
    int64_t total_bytes;
} mf_model_scratch;

typedef struct mf_model_device mf_model_device;

struct mf_model {
    char *name;               /* last part of the directory */
    mf_model_config *config;
    mf_weights *weights;
    mf_plan *plan;
    mf_device *device;
    mf_model_layer *layers;   /* [num_layers] */
    float *rope_table;        /* [max_len][rope dim / 2][2] */
    float *query_scales;      /* [max_len]; NULL without query_floor */
    mf_model_scratch scratch;
    int64_t max_batch_tokens, max_len;
    mf_dtype act_dtype, kv_dtype;
    bool auto_act_dtype;
    mf_act_quant act_quant;
    bool dummy, use_map;
    mf_numa numa;
    double memory_utilization; /* of a device's own memory */
    mf_model_device *on_device; /* NULL: the device works in the host's memory */
};

struct mf_kv_store {
    mf_model *model;          /* whose device has the memory */
    void *block;              /* owns cache */
    uint8_t *cache;           /* [num_layers][num_blocks][block_size][row_size] of dtype */
    mf_dtype dtype;
    int64_t layer_bytes;      /* num_blocks * block_size * row_size values */
    int64_t row_size, num_layers; /* layers with keys and values */
    int32_t num_blocks, block_size;
    void *state_block;        /* owns states */
    float *states;            /* [num_linear_layers][num_states][slot_floats] */
    int64_t slot_floats;
    int32_t num_states;       /* 0: the model has no linear layers */
    int32_t *state_length;    /* [num_states] tokens that a state has taken in; -1: it broke off in the middle */
    int32_t *run_of_state;    /* [num_states] -1 between two forwards */
};

/* The arguments of one MoE layer for T rows; workspace sizes are asked with the same struct that runs. */
typedef struct mf_moe_call {
    mf_gate_args gate;
    mf_layer_args layer;
} mf_moe_call;

/* Rows of a dense MLP that go through three products together; 0: it runs as an expert that every token picks. */
int64_t mf_model_dense_rows(const mf_model *model, int64_t layer);

void mf_model_moe_call(const mf_model *model, int64_t layer, int64_t num_tokens, mf_moe_call *call);
mf_mla_args mf_model_mla_args(const mf_model *model, int64_t layer, int64_t num_tokens);
mf_delta_net_args mf_model_delta_net_args(const mf_model *model, int64_t layer, int64_t num_tokens);
mf_gqa_args mf_model_gqa_args(const mf_model *model, int64_t layer, int64_t num_tokens);

#endif
