/* config_parts.h - the parts of config.json that several families share: attention sizes, rope, quantisation, tokens.
 */
#ifndef MF_MODEL_CONFIG_PARTS_H
#define MF_MODEL_CONFIG_PARTS_H

#include "model/config.h"
#include "model/config_read.h"

enum { MF_MAX_SIZE = 1 << 20 }; /* of hidden_size and every other width */

/* Multi-head latent attention: ranks, head sizes, biases, rope (with the given default for rope_interleave; NULL: the
 * family always pairs neighbours) and the softmax scale. */
mf_status mf_config_read_mla(const mf_reader *reader, const bool *rope_interleave_default, mf_model_config *config);

/* What a family takes for keys of grouped-query attention that are absent. */
typedef struct mf_gqa_defaults {
    const double *partial;  /* partial_rotary_factor; NULL: whole heads are rotated and nothing else is taken */
    double rope_theta;      /* 0 = 10000 */
    const char *bias_key;   /* of q, k and v; NULL = "attention_bias" */
    bool bias;
    int64_t head_dim;       /* 0 = hidden_size / num_attention_heads */
    bool kv_heads_optional; /* absent num_key_value_heads: as many as heads */
    bool pair;              /* rope pairs neighbours */
} mf_gqa_defaults;

/* Grouped-query attention: heads, kv heads, head_dim, biases of q, k and v, rope
 * over the first partial_rotary_factor of a head, and the softmax scale.  The family sets qk_norm and output_bias.
 * defaults may be NULL. */
mf_status mf_config_read_gqa(const mf_reader *reader, const mf_gqa_defaults *defaults, mf_model_config *config);

/* rope_parameters, or rope_theta (absent: config->rope.theta, else 10000) beside rope_scaling.  dim: dimensions of a head
 * that may be rotated; partial as above.  config->rope.pair stays. */
mf_status mf_config_read_rope(const mf_reader *reader, int64_t dim, const double *partial, mf_model_config *config);

/* num_experts and num_experts_per_tok under the given keys (alias may be NULL) into a gate without groups, bias and
 * factor: scoring and renorm are the family's. */
mf_status mf_config_read_experts(const mf_reader *reader, const char *experts_key, const char *experts_alias,
                                 const char *top_k_key, mf_model_config *config);

/* A softmax over all experts whose chosen weights are renormalised by norm_topk_prob (absent: not). */
mf_status mf_config_read_softmax_gate(const mf_reader *reader, mf_model_config *config);

/* A shared MLP of this width, in chunks of moe_intermediate_size. */
mf_status mf_config_set_shared(const mf_reader *reader, const char *key, int64_t width, mf_model_config *config);

/* Marks the MoE layers by a list of "dense" and "sparse" under `key`, or, when it is absent, all from first_sparse on. */
mf_status mf_config_read_layer_list(const mf_reader *reader, const char *key, int64_t first_sparse, mf_model_config *config);

/* MoE layers by a list of their numbers under list_key, or else every step_key-th one (absent: every one). */
mf_status mf_config_read_moe_layers(const mf_reader *reader, const char *list_key, const char *step_key,
                                    mf_model_config *config);

/* Layer i is MoE when (i + 1) is a multiple of decoder_sparse_step and mlp_only_layers does not name it. */
mf_status mf_config_read_sparse_step(const mf_reader *reader, mf_model_config *config);

/* sliding_window (absent: the fallback, NULL when there is none; null: no window) for the layers that layer_is_local marks,
 * or that layer_types calls "sliding_attention"; the others are full. */
mf_status mf_config_read_window(const mf_reader *reader, const int64_t *fallback, mf_model_config *config);

/* The same behind use_sliding_window (absent: false), absent a window of 4096. */
mf_status mf_config_read_optional_window(const mf_reader *reader, mf_model_config *config);

/* Marks layers by layer_types, a list of "full_attention" and `local`; absent: layer_is_local stays. */
mf_status mf_config_read_layer_types(const mf_reader *reader, const char *local, mf_model_config *config);

/* Linear layers: linear_num_*_heads, linear_*_head_dim, linear_conv_kernel_dim, and which layers they are by layer_types,
 * else all but every full_attention_interval-th. */
mf_status mf_config_read_linear_layers(const mf_reader *reader, mf_model_config *config);

/* quantization_config of `reader`'s object, else of `outer`'s (which may be the same). */
mf_status mf_config_read_quant(const mf_reader *reader, const mf_reader *outer, mf_model_config *config);

/* bos_token_id and eos_token_id: adds what is not known yet. */
mf_status mf_config_read_tokens(const mf_reader *reader, mf_model_config *config);

/* Refuses a boolean key that is true, or any value but the one given, saying why. */
mf_status mf_config_refuse_true(const mf_reader *reader, const char *key, const char *why);
/* Refuses every key that is not null and not in the NULL-terminated list. */
mf_status mf_config_only_keys(const mf_reader *reader, const char *const *known, const char *otherwise);
mf_status mf_config_only_text(const mf_reader *reader, const char *key, const char *only, const char *why);

/* yarn's magnitude: s <= 1 ? 1 : 0.1 k ln(s) + 1. */
double mf_yarn_mscale(double scale, double k);

#endif
