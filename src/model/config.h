/* config.h - config.json read into one normalised description that every family shares.
 *
 * A family (one file in families/) is data plus one reading function; forward.c and the loader look at nothing but this struct.
 * Every integer has a range, every combination is cross-checked, before anything is allocated from it. */
#ifndef MF_MODEL_CONFIG_H
#define MF_MODEL_CONFIG_H

#include <jansson.h>
#include <stdbool.h>

#include "moefuse.h"

enum { MF_MAX_EOS_IDS = 16, MF_MAX_LAYERS = 1024 };

typedef enum mf_rope_type { MF_ROPE_DEFAULT = 0, MF_ROPE_YARN, MF_ROPE_LINEAR, MF_ROPE_LLAMA3 } mf_rope_type;

typedef struct mf_rope_config {
    mf_rope_type type;
    double theta;
    int64_t dim;        /* rotated dimensions of a head */
    bool pair;          /* (2i, 2i+1), else (i, i + dim/2) */
    double factor;      /* yarn, linear, llama3 */
    int64_t original_max_position_embeddings;
    double beta_fast, beta_slow;
    double mscale, mscale_all_dim;   /* 0 = not set */
    double attention_factor;         /* 0 = not set */
    bool truncate;                   /* yarn: floor and ceil the ramp's ends */
    double low_freq_factor, high_freq_factor; /* llama3: turns within the original context */
} mf_rope_config;

typedef enum mf_quant_method {
    MF_QUANT_NONE = 0,
    MF_QUANT_FP8_BLOCK,
    MF_QUANT_FP8_CHANNEL, /* a scale per row */
    MF_QUANT_FP8_TENSOR,  /* one scale */
    MF_QUANT_INT8_CHANNEL,
    MF_QUANT_INT8_TENSOR,
    MF_QUANT_INT4_PACKED, /* compressed-tensors: weight_packed [n, k/8], codes along k, which is INT4_GROUP's layout */
    MF_QUANT_INT4_GPTQ,   /* qweight [k/8, n], codes along k */
    MF_QUANT_INT4_AWQ,    /* qweight [k, n/8], codes along n in AWQ's order */
    MF_QUANT_MXFP4        /* gpt-oss: the experts of a layer in one tensor of blocks and one of scales */
} mf_quant_method;

enum { MF_QUANT_WHOLE_ROW = 1 << 30 }; /* more columns than any matrix has */

typedef struct mf_name_pattern mf_name_pattern;

/* Modules by name or by pattern; everything in the config's arena. */
typedef struct mf_module_list {
    const char **names; /* NULL-terminated, sorted; whole dotted components */
    int64_t num_names;
    const mf_name_pattern **patterns;
    const char **pattern_texts;
    int64_t num_patterns;
} mf_module_list;

/* How a group of modules is stored. */
typedef struct mf_quant_scheme {
    mf_quant_method method;
    int64_t block_n, block_k; /* rows and columns that share a scale: 128, 128; by channel 1, MF_QUANT_WHOLE_ROW; 1, group size */
    const char *scale_suffix; /* of a scale's name behind its weight's: "_scale_inv", "_scale" */
    bool ue8m0_scales;
    bool has_zeros;           /* integers: zero points are stored; else 8 for four bits, 0 for eight */
    uint8_t zero_plus;        /* GPTQ's first version stores them less one */
    bool has_group_index;     /* GPTQ: g_idx is stored; it must be what its absence means */
    bool every_linear;        /* else what the targets name */
    mf_module_list targets;
} mf_quant_scheme;

typedef struct mf_quant_config {
    const mf_quant_scheme *schemes; /* empty: nothing is quantised */
    int64_t num_schemes;
    mf_module_list excluded;  /* modules_to_not_convert, ignored_layers, ignore */
    bool excluded_by_part;    /* AWQ: an entry also matches inside a component */
    bool head_too;            /* the output head is one of the linear layers */
    bool static_inputs;       /* scales of activations are stored; products are weight-only and skip them */
} mf_quant_config;

typedef struct mf_family mf_family;

typedef enum mf_attention_kind { MF_ATTENTION_MLA = 0, MF_ATTENTION_GQA } mf_attention_kind;

/* RMS norms of queries and keys: none, over each head, or over the whole projection before it is cut into heads. */
typedef enum mf_qk_norm { MF_QK_NORM_NONE = 0, MF_QK_NORM_HEAD, MF_QK_NORM_WHOLE } mf_qk_norm;

typedef struct mf_model_config {
    const mf_family *family;
    char architecture[64];
    char model_type[64];
    int64_t vocab_size, hidden_size, num_layers;
    int64_t num_nextn_layers;         /* MTP layers after the last one: recognised and skipped */
    int64_t max_position_embeddings;
    double rms_norm_eps;
    bool tie_word_embeddings;
    mf_dtype torch_dtype;             /* MF_BF16, MF_F16 or MF_F32 */

    mf_attention_kind attention;
    int64_t num_heads, v_head_dim;
    /* MLA */
    int64_t q_lora_rank;              /* 0: one q_proj */
    int64_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim;
    double latent_norm_eps;           /* 1e-6 for MLA whatever rms_norm_eps says */
    /* GQA */
    int64_t num_kv_heads, head_dim;   /* head_dim: of queries and keys */
    mf_qk_norm qk_norm;
    bool qk_norm_after_rope;          /* else before it; then layers without rope have none */
    bool qk_norm_unweighted;          /* by head, without weights */
    int64_t window, chunk;            /* local layers see positions > position - window, of the same chunk; 0 = all */
    uint8_t layer_is_local[MF_MAX_LAYERS];
    bool has_attention_gate;          /* q_proj gives per head [q, gate]; what comes out of a head is times sigmoid(gate) */
    double qkv_clip;                  /* q, k and v are cut to +-this, after the norms and before rope; 0 = not */
    /* both */
    bool input_bias;                  /* of q_a_proj and kv_a_proj_with_mqa (MLA), of q, k and v (GQA) */
    bool output_bias;                 /* of o_proj */
    uint8_t layer_has_no_rope[MF_MAX_LAYERS]; /* GQA */
    /* Queries of layers without rope are multiplied by log1p(floor((position + 1) / query_floor)) * query_scale + 1; floor 0: not. */
    int64_t query_floor;
    double query_scale;
    bool has_sinks;                   /* GQA: one more logit per head in the softmax, without a value */
    double softmax_scale;             /* MLA: with yarn's mscale in it */
    mf_rope_config rope;

    /* Layers with a gated delta net in place of attention: a state per sequence, no keys and values */
    uint8_t layer_is_linear[MF_MAX_LAYERS];
    int64_t num_linear_layers;
    int64_t linear_num_k_heads, linear_num_v_heads, linear_k_dim, linear_v_dim, linear_conv_size;

    int64_t intermediate_size;        /* dense layers */
    uint8_t layer_is_moe[MF_MAX_LAYERS];
    int64_t num_moe_layers;
    int64_t moe_intermediate_size;    /* I */
    int64_t num_shared_experts;       /* S chunks of width I in one shared MLP; 0 = none */
    int64_t shared_intermediate_size; /* width of that MLP: S * I, or less when the last chunk is narrower */
    bool has_shared_gate;             /* its output is weighed by the sigmoid of one logit per token */
    mf_gate_config gate;              /* without shared slots and replicas: the plan adds them */
    bool has_correction_bias;
    bool router_bias, expert_bias;    /* of the router's logits; of every routed expert's gate, up and down */
    mf_activation activation;
    double activation_limit, activation_alpha; /* as mf_slot has them */

    mf_quant_config quant;

    int32_t bos_token_id;             /* -1 = none */
    int32_t eos_token_ids[MF_MAX_EOS_IDS];
    int32_t num_eos_token_ids;
    /* generation_config.json's sampling defaults; NaN or -1 = not given */
    double default_temperature, default_top_p, default_repetition_penalty;
    int64_t default_top_k;

    void *arena;                      /* mf_arena *, owned: strings above */
} mf_model_config;

/* Reads DIR/config.json (and DIR/generation_config.json when there is one); or a file FILE.json, which is enough for dummy
 * weights.  Errors name file and key; an unknown
 * architecture lists the known ones. */
mf_status mf_model_config_load(const char *dir, mf_model_config **config, mf_error *err);
/* Whether `path` is such a file. */
bool mf_model_config_is_file(const char *path);
/* The same from config.json's text: `name` stands for the file in messages.  No generation config is read. */
mf_status mf_model_config_parse(const char *text, size_t size, const char *name, mf_model_config **config, mf_error *err);
/* Adds generation_config.json's text: more end tokens and the sampling defaults. */
mf_status mf_model_config_parse_generation(mf_model_config *config, const char *text, size_t size, const char *name,
                                           mf_error *err);
void mf_model_config_close(mf_model_config **config);

/* Floats that a token's query takes, and its row of the KV cache: MLA the latent and the rotated key, GQA the keys of all
 * kv heads and then their values. */
int64_t mf_model_config_q_size(const mf_model_config *config);
int64_t mf_model_config_kv_size(const mf_model_config *config);
/* Of linear layers, per token: q, k, v and z of all heads; channels of the convolution; values of all heads. */
int64_t mf_model_config_qkvz_size(const mf_model_config *config);
int64_t mf_model_config_conv_channels(const mf_model_config *config);
int64_t mf_model_config_linear_v_size(const mf_model_config *config);

/* Parameters by kind, from the config alone. */
typedef struct mf_model_size {
    int64_t total_params, active_params; /* active: per token */
} mf_model_size;
mf_model_size mf_model_config_size(const mf_model_config *config);

#endif
