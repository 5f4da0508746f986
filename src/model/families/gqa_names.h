/* gqa_names.h - tensor names of families with grouped-query attention and experts under mlp.experts: rows of a name table.
 * A shared expert's names differ between families and are not among them. */
#ifndef MF_MODEL_FAMILIES_GQA_NAMES_H
#define MF_MODEL_FAMILIES_GQA_NAMES_H

#include "model/family.h"

#define MF_GQA_LAYER "model.layers.{l}."

/* clang-format off */
#define MF_GQA_OUTER_NAMES                                                        \
    [MF_ROLE_EMBED] = "model.embed_tokens.weight",                                \
    [MF_ROLE_NORM] = "model.norm.weight",                                         \
    [MF_ROLE_LM_HEAD] = "lm_head.weight",                                         \
    [MF_ROLE_INPUT_NORM] = MF_GQA_LAYER "input_layernorm.weight",                 \
    [MF_ROLE_POST_ATTENTION_NORM] = MF_GQA_LAYER "post_attention_layernorm.weight", \
    [MF_ROLE_Q_PROJ] = MF_GQA_LAYER "self_attn.q_proj.weight",                    \
    [MF_ROLE_Q_BIAS] = MF_GQA_LAYER "self_attn.q_proj.bias",                      \
    [MF_ROLE_K_PROJ] = MF_GQA_LAYER "self_attn.k_proj.weight",                    \
    [MF_ROLE_K_BIAS] = MF_GQA_LAYER "self_attn.k_proj.bias",                      \
    [MF_ROLE_V_PROJ] = MF_GQA_LAYER "self_attn.v_proj.weight",                    \
    [MF_ROLE_V_BIAS] = MF_GQA_LAYER "self_attn.v_proj.bias",                      \
    [MF_ROLE_O_PROJ] = MF_GQA_LAYER "self_attn.o_proj.weight",                    \
    [MF_ROLE_O_BIAS] = MF_GQA_LAYER "self_attn.o_proj.bias"

#define MF_GQA_BASE_NAMES MF_GQA_OUTER_NAMES,                                     \
    [MF_ROLE_DENSE_GATE] = MF_GQA_LAYER "mlp.gate_proj.weight",                   \
    [MF_ROLE_DENSE_UP] = MF_GQA_LAYER "mlp.up_proj.weight",                       \
    [MF_ROLE_DENSE_DOWN] = MF_GQA_LAYER "mlp.down_proj.weight"

#define MF_GQA_QK_NORM_NAMES                                                      \
    [MF_ROLE_Q_NORM] = MF_GQA_LAYER "self_attn.q_norm.weight",                    \
    [MF_ROLE_K_NORM] = MF_GQA_LAYER "self_attn.k_norm.weight"

#define MF_GQA_EXPERT_NAMES                                                       \
    [MF_ROLE_EXPERT_GATE] = MF_GQA_LAYER "mlp.experts.{e}.gate_proj.weight",      \
    [MF_ROLE_EXPERT_UP] = MF_GQA_LAYER "mlp.experts.{e}.up_proj.weight",          \
    [MF_ROLE_EXPERT_DOWN] = MF_GQA_LAYER "mlp.experts.{e}.down_proj.weight"

/* Mixtral's spelling. */
#define MF_SPARSE_BLOCK_NAMES                                                     \
    [MF_ROLE_ROUTER] = MF_GQA_LAYER "block_sparse_moe.gate.weight",               \
    [MF_ROLE_EXPERT_GATE] = MF_GQA_LAYER "block_sparse_moe.experts.{e}.w1.weight", \
    [MF_ROLE_EXPERT_UP] = MF_GQA_LAYER "block_sparse_moe.experts.{e}.w3.weight",  \
    [MF_ROLE_EXPERT_DOWN] = MF_GQA_LAYER "block_sparse_moe.experts.{e}.w2.weight"

#define MF_GQA_NAMES MF_GQA_BASE_NAMES, MF_GQA_QK_NORM_NAMES, MF_GQA_EXPERT_NAMES, \
    [MF_ROLE_ROUTER] = MF_GQA_LAYER "mlp.gate.weight"
/* clang-format on */

/* The re-saved form. */
#define MF_GQA_STACKED_GATE_UP MF_GQA_LAYER "mlp.experts.gate_up_proj"
#define MF_GQA_STACKED_DOWN MF_GQA_LAYER "mlp.experts.down_proj"

#endif
