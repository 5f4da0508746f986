/* config_quant.h - what the readers of quantization_config share: config_quant.c (fp8, gptq, awq, the choice) and
 * config_compressed.c (compressed-tensors). */
#ifndef MF_MODEL_CONFIG_QUANT_H
#define MF_MODEL_CONFIG_QUANT_H

#include "model/config_parts.h"

/* The list under key: names of modules and, behind "re:", patterns.  class_name (or NULL) is the entry that stands for
 * every linear layer: *every_linear is set and it is left out.  Absent: empty. */
mf_status mf_config_read_modules(const mf_reader *quant, const char *key, const char *class_name, bool *every_linear,
                                 mf_model_config *config, mf_module_list *list);

/* The names of an object's keys that start with mark, without it, as patterns; any other key is refused. */
mf_status mf_config_read_pattern_keys(const mf_reader *quant, const char *key, const char *mark,
                                      mf_model_config *config, mf_module_list *list);

/* Room for n schemes, empty. */
mf_status mf_config_make_schemes(const mf_reader *quant, int64_t n, mf_model_config *config, mf_quant_scheme **schemes);

mf_status mf_config_only_square_blocks(const mf_reader *reader, const char *key);

mf_status mf_config_read_compressed(const mf_reader *quant, mf_model_config *config);

#endif
