/* sampling_defaults.h - what a request gets that says nothing: --generation-config and --override-generation-config. */
#ifndef MF_CLI_SAMPLING_DEFAULTS_H
#define MF_CLI_SAMPLING_DEFAULTS_H

#include "cli/model_flags.h"
#include "model/config.h"

typedef struct mf_sampling_defaults {
    double temperature, top_p, min_p, repetition_penalty; /* NaN: nothing is said */
    int32_t top_k, max_new_tokens;                        /* -1: nothing is said */
} mf_sampling_defaults;

/* auto: the model's own, from `config`; none: nothing; else the folder or file that is named.  Then the override's
 * keys on top.  Messages name flag and key. */
mf_status mf_sampling_defaults_read(const mf_model_flags *flags, const mf_model_config *config,
                                    mf_sampling_defaults *defaults, mf_error *err);

#endif
