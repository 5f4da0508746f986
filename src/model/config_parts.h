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

/* Grouped-query attention: heads, kv heads, head_dim (absent: hidden_size / num_attention_heads), attention_bias, rope in
 * halves over the first partial_rotary_factor of a head, and the softmax scale.  partial: the factor when the key is
 * absent; NULL: whole heads are rotated and nothing else is taken.  The family sets qk_norm and output_bias. */
mf_status mf_config_read_gqa(const mf_reader *reader, const double *partial, mf_model_config *config);

/* rope_parameters, or rope_theta beside rope_scaling.  dim: dimensions of a head that may be rotated; partial as above. */
mf_status mf_config_read_rope(const mf_reader *reader, int64_t dim, const double *partial, mf_model_config *config);

/* quantization_config of `reader`'s object, else of `outer`'s (which may be the same). */
mf_status mf_config_read_quant(const mf_reader *reader, const mf_reader *outer, mf_model_config *config);

/* bos_token_id and eos_token_id: adds what is not known yet. */
mf_status mf_config_read_tokens(const mf_reader *reader, mf_model_config *config);

/* Refuses use_sliding_window, and layer_types other than full attention. */
mf_status mf_config_refuse_sliding_window(const mf_reader *reader);

/* Refuses a boolean key that is true, or any value but the one given, saying why. */
mf_status mf_config_refuse_true(const mf_reader *reader, const char *key, const char *why);
/* Refuses every key that is not null and not in the NULL-terminated list. */
mf_status mf_config_only_keys(const mf_reader *reader, const char *const *known, const char *otherwise);
mf_status mf_config_only_text(const mf_reader *reader, const char *key, const char *only, const char *why);

/* yarn's magnitude: s <= 1 ? 1 : 0.1 k ln(s) + 1. */
double mf_yarn_mscale(double scale, double k);

#endif
