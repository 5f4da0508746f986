/* model_flags.h - the flags that every verb that loads a model shares, and what they become. */
#ifndef MF_CLI_MODEL_FLAGS_H
#define MF_CLI_MODEL_FLAGS_H

#include "cli/flags.h"

typedef struct mf_model_flags {
    const char *model; /* --model, or the first positional */
    const char *device, *dtype, *act_quant, *quantization, *kv_cache_dtype, *load_format;
    int64_t threads;
    const char *weights_memory, *numa;
    bool no_mmap, pin_threads;
    int64_t max_model_len, max_num_seqs, max_num_batched_tokens, block_size, kv_cache_memory_bytes;
    double gpu_memory_utilization;
    bool no_enable_prefix_caching;
    int64_t tensor_parallel_size;
    bool enable_expert_parallel;
    bool disable_shared_experts_fusion, disable_fused_gate, disable_fusion_bands;
    int64_t num_shared_expert_replicas;
    bool replicas_given;
    bool no_batch_invariant;
    const char *chat_template, *generation_config, *override_generation_config;
    int64_t seed;
    bool no_progress;
    const char *log_level, *log_format, *log_file;
    bool help;
} mf_model_flags;

enum { MF_NUM_MODEL_FLAGS = 35 };

/* Sets the defaults and writes MF_NUM_MODEL_FLAGS rows that point into *values. */
void mf_model_flags_fill(mf_model_flags *values, mf_flag *rows);

/* Settles MODEL (positional against --model, the shipped one when neither is given) and warns about flags that cannot take
 * effect here. */
mf_status mf_model_flags_settle(mf_model_flags *values, const char *const *positionals, int32_t num_positionals,
                                mf_error *err);

/* Opens --log-file and installs the log's sink. */
mf_status mf_model_flags_start_log(const mf_model_flags *values, mf_error *err);

/* MODEL is a folder, or a message that says what is there instead. */
mf_status mf_model_dir_check(const char *dir, mf_error *err);

#endif
