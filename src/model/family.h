/* family.h - what one model family is: an architecture string, the names of its tensors and one function that reads its
 * part of config.json.  Data only; forward.c and the loader never ask which family they serve. */
#ifndef MF_MODEL_FAMILY_H
#define MF_MODEL_FAMILY_H

#include "model/config.h"
#include "model/config_read.h"

/* Every kind of tensor that a family can own.  tensor_map.c knows where each lives in mf_weights and its shape. */
typedef enum mf_role {
    MF_ROLE_EMBED = 0,
    MF_ROLE_NORM,
    MF_ROLE_LM_HEAD,
    MF_ROLE_INPUT_NORM,
    MF_ROLE_POST_ATTENTION_NORM,
    MF_ROLE_Q_PROJ,
    MF_ROLE_Q_A_PROJ,
    MF_ROLE_Q_A_BIAS,
    MF_ROLE_Q_A_NORM,
    MF_ROLE_Q_B_PROJ,
    MF_ROLE_KV_A_PROJ,
    MF_ROLE_KV_A_BIAS,
    MF_ROLE_KV_A_NORM,
    MF_ROLE_KV_B_PROJ,
    MF_ROLE_QKV_PROJ, /* queries, keys and values in one, instead of the next */
    MF_ROLE_QKV_BIAS,
    MF_ROLE_Q_BIAS,
    MF_ROLE_K_PROJ,
    MF_ROLE_K_BIAS,
    MF_ROLE_V_PROJ,
    MF_ROLE_V_BIAS,
    MF_ROLE_Q_NORM,
    MF_ROLE_K_NORM,
    MF_ROLE_SINKS,
    MF_ROLE_O_PROJ,
    MF_ROLE_O_BIAS,
    MF_ROLE_LINEAR_QKVZ, /* linear layers: the projections, [q, k, v.., z..] and [b.., a..] per key head */
    MF_ROLE_LINEAR_BA,
    MF_ROLE_LINEAR_CONV, /* [channels, 1, taps] */
    MF_ROLE_LINEAR_A_LOG,
    MF_ROLE_LINEAR_DT_BIAS,
    MF_ROLE_LINEAR_NORM,
    MF_ROLE_LINEAR_OUT,
    MF_ROLE_DENSE_GATE,
    MF_ROLE_DENSE_UP,
    MF_ROLE_DENSE_DOWN,
    MF_ROLE_ROUTER,
    MF_ROLE_ROUTER_BIAS,
    MF_ROLE_CORRECTION_BIAS,
    MF_ROLE_EXPERT_GATE,
    MF_ROLE_EXPERT_UP,
    MF_ROLE_EXPERT_DOWN,
    MF_ROLE_EXPERT_GATE_BIAS,
    MF_ROLE_EXPERT_UP_BIAS,
    MF_ROLE_EXPERT_DOWN_BIAS,
    MF_ROLE_SHARED_EXPERT_GATE, /* [1, H]: one logit per token */
    MF_ROLE_SHARED_GATE,
    MF_ROLE_SHARED_UP,
    MF_ROLE_SHARED_DOWN,
    MF_ROLE_COUNT
} mf_role;

struct mf_family {
    const char *name;         /* "DeepSeek-V3", for messages */
    const char *architecture; /* architectures[0] */
    const char *config_key;   /* the object inside config.json that describes the language model; NULL: the whole file */
    const char *prefix;       /* before every tensor name: "" or "language_model." */
    const char *const *names; /* [MF_ROLE_COUNT] templates: {l} layer, {e} expert; NULL: the family has no such tensor */
    const char *stacked_gate_up; /* the re-saved form, [E, 2I, H], gate rows first; biases behind it in NAME_bias [E, 2I] */
    const char *stacked_down;    /* [E, H, I] */
    bool stacked_rows_alternate; /* gate and up rows in turn, as gpt-oss has them */
    bool stacked_columns;        /* unquantised stacks hold the transposed matrices: [E, H, 2I] and [E, I, H] */
    bool stacked_only;           /* no release has tensors of single experts: their names stand in messages only */
    bool norms_add_one;          /* block norms and those of q and k multiply by 1 + weight */
    bool correction_bias_is_row; /* stored as [1, E] */
    const char *const *chat_templates; /* built-in ones, for a checkpoint without its own; NULL-terminated; may be NULL */
    const char *const *skip;  /* NULL-terminated first components of other modalities' tensors; may be NULL */
    mf_status (*read)(const mf_reader *reader, mf_model_config *config);
};

/* The table of families, NULL-terminated. */
extern const mf_family *const mf_families[];

/* NULL when unknown. */
const mf_family *mf_family_find(const char *architecture);
/* "A, B, C" into out, for messages. */
void mf_family_list(char *out, size_t size);

extern const mf_family mf_family_deepseek_v2;
extern const mf_family mf_family_deepseek_v3;
extern const mf_family mf_family_kimi_k25;
extern const mf_family mf_family_qwen3_moe;
extern const mf_family mf_family_qwen3_next;
extern const mf_family mf_family_glm4_moe;
extern const mf_family mf_family_glm4_moe_lite;
extern const mf_family mf_family_bailing_moe_v2;
extern const mf_family mf_family_qwen2_moe;
extern const mf_family mf_family_mixtral;
extern const mf_family mf_family_olmoe;
extern const mf_family mf_family_ernie4_5_moe;
extern const mf_family mf_family_minimax_m2;
extern const mf_family mf_family_dots1;
extern const mf_family mf_family_hunyuan_moe;
extern const mf_family mf_family_gpt_oss;
extern const mf_family mf_family_llama4;
extern const mf_family mf_family_llama4_conditional;

#endif
