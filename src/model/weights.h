/* weights.h - a model's weights as matrices: views into the checkpoint wherever the stored form can be used, else
 * converted copies in an arena (norms and small vectors become f32).
 *
 * The family expands to the full set of expected tensors first; each must arrive exactly once, each arriving one must be
 * expected or match an explicit skip rule. */
#ifndef MF_MODEL_WEIGHTS_H
#define MF_MODEL_WEIGHTS_H

#include "base/progress.h"
#include "model/config.h"
#include "model/safetensors.h"

/* One gate/up/down MLP of any width. */
typedef struct mf_mlp_weights {
    mf_matrix gate, up, down;
    const float *gate_bias, *up_bias, *down_bias; /* with expert_bias, else NULL */
} mf_mlp_weights;

typedef struct mf_layer_weights {
    const float *input_norm;          /* [H] */
    const float *post_attention_norm; /* [H] */
    mf_matrix q_proj;                 /* [heads * (nope + rope) or heads * head_dim, H]; absent when q_lora_rank > 0 */
    /* GQA */
    mf_matrix qkv_proj;               /* as stored in one, where the family has it so: q_proj, k_proj and v_proj are views */
    const float *qkv_bias;
    mf_matrix k_proj, v_proj;         /* [kv_heads * head_dim, H], [kv_heads * v, H] */
    const float *q_bias, *k_bias, *v_bias; /* with input_bias, else NULL */
    const float *sinks;               /* [heads] with has_sinks, else NULL */
    const float *q_norm, *k_norm;     /* [head_dim], or the whole projection's width; NULL without qk_norm */
    /* MLA */
    mf_matrix q_a_proj, q_b_proj;
    const float *q_a_bias;            /* with input_bias, else NULL */
    const float *q_a_norm;            /* [q_lora_rank] */
    mf_matrix kv_a_proj;              /* [kv_lora_rank + rope, H] */
    const float *kv_a_bias;
    const float *kv_a_norm;           /* [kv_lora_rank] */
    mf_matrix kv_b_proj;              /* [heads * (nope + v), kv_lora_rank] */
    /* both */
    mf_matrix o_proj;                 /* [H, heads * v] */
    const float *o_bias;              /* with output_bias, else NULL */
    /* Linear layers: see mf_delta_net_args */
    mf_matrix linear_qkvz, linear_ba; /* [key heads * ..., H] */
    const float *linear_conv;         /* [channels, conv_size] */
    const float *linear_a_log, *linear_dt_bias; /* [value heads] */
    const float *linear_norm;         /* [v_dim] */
    mf_matrix linear_out;             /* [H, value heads * v_dim] */
    /* MLP */
    mf_mlp_weights dense;             /* dense layers */
    mf_matrix router;                 /* [E, H] */
    const float *router_bias;         /* [E] with router_bias, else NULL */
    const float *e_score_correction_bias; /* [E] or NULL */
    mf_mlp_weights *experts;          /* [E] */
    mf_mlp_weights shared;            /* one MLP of S chunks; data NULL when there is none */
    mf_matrix shared_expert_gate;     /* [1, H] with has_shared_gate */
} mf_layer_weights;

typedef struct mf_weights_stats {
    int64_t bytes_total;              /* stored bytes of the weights in use */
    int64_t bytes_by_format[MF_FORMAT_COUNT];
    int64_t bytes_converted;          /* copied into memory of our own */
    int64_t num_skipped_tensors;      /* MTP layers, rotary inv_freq, ... */
    int32_t num_skipped_layers;       /* MTP layers */
    double seconds;
} mf_weights_stats;

typedef struct mf_weights {
    const mf_model_config *config;    /* borrowed */
    mf_matrix embed_tokens;           /* [vocab_rows, H] */
    mf_matrix lm_head;                /* [vocab_rows, H]; the embedding's view when tied */
    const float *norm;                /* [H] */
    mf_layer_weights *layers;         /* [num_layers] */
    mf_weights_stats stats;
    mf_checkpoint *checkpoint;        /* owned; NULL for dummy weights */
    void *arena;                      /* mf_arena *, owned: tables and converted weights */
    void *memory;                     /* owned: dummy weights */
    void *quantised;                  /* owned: weights quantised while loading */
    void *converted;                  /* owned: weights whose stored layout no kernel reads */
    struct mf_conversion *conversions; /* in the arena; those weights */
    mf_device *device;                /* borrowed: where the weights are, when it has memory of its own; else NULL */
    void *placed;                     /* owned: all of them, there */
} mf_weights;

/* Quantising while loading: weights stored as f32, bf16 or f16 become codes in memory (weights_quantise.c). */
typedef enum mf_quantization {
    MF_QUANTIZATION_NONE = 0,
    MF_QUANTIZATION_INT8, /* INT8_CHANNEL */
    MF_QUANTIZATION_INT4, /* INT4_GROUP of 32; the head INT8_CHANNEL */
    MF_QUANTIZATION_FP8   /* FP8_BLOCK; the head INT8_CHANNEL */
} mf_quantization;

const char *mf_quantization_name(mf_quantization quantization); /* "none", "int8", ... */
mf_status mf_quantization_parse(const char *name, mf_quantization *quantization, mf_error *err); /* NULL: none */

typedef struct mf_weights_options {
    mf_quantization quantization;
    bool dummy;        /* seeded random weights of the config's shapes and format; no files are read */
    uint64_t seed;
    bool headers_only; /* formats and sizes: weights that need a conversion stay unconverted and cannot be multiplied */
    bool use_map;
    mf_numa numa;      /* of weights in memory of our own: read, dummy or quantised */
    bool touch;        /* of mapped files: read every byte once, with progress, so that the first token does not wait for the disk */
    mf_device *device; /* with memory of its own: where the weights go; NULL = they stay the host's */
    int32_t num_threads; /* that make dummy weights; 0 = one per core; the bytes do not depend on it */
    mf_progress progress; /* at most ten calls a second */
} mf_weights_options;

mf_status mf_weights_load(const char *dir, const mf_model_config *config, const mf_weights_options *options,
                          mf_weights **weights, mf_error *err);
void mf_weights_close(mf_weights **weights);

/* Bytes that dummy weights of this config take. */
int64_t mf_weights_dummy_bytes(const mf_model_config *config);

/* Validates names, shapes, dtypes and files as mf_weights_load does but reports up to max_findings problems through `report`
 * instead of stopping at the first.  deep: also reads all bytes (NaN or infinite scales, norms, biases). */
typedef void (*mf_finding_fn)(void *context, const char *finding);
mf_status mf_weights_check(const char *dir, const mf_model_config *config, bool deep, int32_t max_findings,
                           mf_finding_fn report, void *context, int32_t *num_findings, mf_error *err);

#endif
