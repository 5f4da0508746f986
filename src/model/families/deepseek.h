/* deepseek.h - what the DeepSeek families share: tensor names, and the keys of layers and gates, which GLM-4.5 took over. */
#ifndef MF_MODEL_FAMILIES_DEEPSEEK_H
#define MF_MODEL_FAMILIES_DEEPSEEK_H

#include "model/family.h"

extern const char *const mf_deepseek_names[MF_ROLE_COUNT];

/* transformers' re-saved form; the same names in most families. */
#define MF_DEEPSEEK_STACKED_GATE_UP "model.layers.{l}.mlp.experts.gate_up_proj"
#define MF_DEEPSEEK_STACKED_DOWN "model.layers.{l}.mlp.experts.down_proj"

/* Layers, experts, shared experts and the factor; config->gate holds num_experts, top_k and routed_scaling_factor after. */
mf_status mf_deepseek_read_layers(const mf_reader *reader, const char *experts_alias, mf_model_config *config);

/* n_group and topk_group, checked against the experts. */
mf_status mf_deepseek_read_groups(const mf_reader *reader, mf_model_config *config);

/* The sigmoid gate with a correction bias ("noaux_tc") and its groups, and the draft layers behind the last one. */
mf_status mf_deepseek_read_noaux_gate(const mf_reader *reader, mf_model_config *config);
/* Its second half, for families that spell the first one otherwise. */
mf_status mf_deepseek_read_sigmoid_gate(const mf_reader *reader, mf_model_config *config);

#endif
