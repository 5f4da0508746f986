/* model_flags.c - see model_flags.h. */
#include "cli/model_flags.h"

#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/log_output.h"

#define ROW(group_, name_, type_, field, ...) \
    { .group = group_, .name = name_, .type = type_, .value = &v->field, __VA_ARGS__ }

void mf_model_flags_fill(mf_model_flags *v, mf_flag *rows)
{
    *v = (mf_model_flags){
        .device = "cpu",
        .dtype = "auto",
        .act_quant = "none",
        .quantization = "none",
        .kv_cache_dtype = "auto",
        .load_format = "auto",
        .weights_memory = "map",
        .numa = "first-touch",
        .max_num_seqs = 128,
        .max_num_batched_tokens = 2048,
        .block_size = 16,
        .tensor_parallel_size = 1,
        .num_shared_expert_replicas = 1,
        .gpu_memory_utilization = 0.9,
        .generation_config = "auto",
        .log_level = "info",
        .log_format = "text",
    };
    const double any = 9.2e18;
    const mf_flag table[] = {
        ROW("model", "--model", MF_FLAG_TEXT, model, .argument = "DIR", .help = "the model's folder, as the positional MODEL"),
        ROW("model", "--load-format", MF_FLAG_TEXT, load_format, .choices = "auto|dummy", .argument = "F",
            .help = "dummy: seeded random weights from config.json alone (auto)"),
        ROW("model", "--weights-memory", MF_FLAG_TEXT, weights_memory, .choices = "map|copy", .argument = "M",
            .help = "copy: read the weights into huge pages; slower to start, faster to read (map)"),
        ROW("model", "--no-mmap", MF_FLAG_BOOL, no_mmap, .help = "as --weights-memory copy"),
        ROW("model", "--chat-template", MF_FLAG_TEXT, chat_template, .argument = "T",
            .help = "a Jinja file, or a built-in template's name, instead of the model's own"),
        ROW("model", "--generation-config", MF_FLAG_TEXT, generation_config, .argument = "G",
            .help = "sampling defaults: auto, the model's; none, temperature 1; or a file or folder with them (auto)"),
        ROW("model", "--override-generation-config", MF_FLAG_TEXT, override_generation_config, .argument = "JSON",
            .help = "on top of those: temperature, top_p, min_p, top_k, repetition_penalty, max_new_tokens"),
        ROW("model", "--seed", MF_FLAG_INT, seed, .min = -any, .max = any, .argument = "N",
            .help = "of sampling, and of dummy weights (0)"),
        ROW("device", "--device", MF_FLAG_TEXT, device, .choices = "cpu|cuda|cuda:N|ref", .argument = "D",
            .help = "cpu; cuda: the first NVIDIA GPU of CUDA_VISIBLE_DEVICES, cuda:1 the second; ref: the specification in "
                    "plain C, slow (cpu)"),
        ROW("device", "--threads", MF_FLAG_INT, threads, .alias = "-t", .min = 0, .max = 256, .argument = "N",
            .help = "threads of the CPU pool; 0: one per core (0)"),
        ROW("device", "--pin-threads", MF_FLAG_BOOL, pin_threads, .help = "keep each thread on a CPU of its own"),
        ROW("device", "--numa", MF_FLAG_TEXT, numa, .choices = "first-touch|interleave", .argument = "P",
            .help = "where KV cache, scratch memory and unmapped weights lie on several memory nodes (first-touch)"),
        ROW("device", "--dtype", MF_FLAG_TEXT, dtype, .choices = "auto|float32|bfloat16", .argument = "T",
            .help = "what enters linear layers and experts is rounded to; auto: bfloat16 for a bf16 checkpoint "
                    "where it is faster, else float32 (auto)"),
        ROW("model", "--quantization", MF_FLAG_TEXT, quantization, .choices = "none|int8|int4|fp8", .argument = "Q",
            .help = "quantise weights stored as bf16, f16 or f32 while loading (none)"),
        ROW("device", "--act-quant", MF_FLAG_TEXT, act_quant, .choices = "none|int8|w8a8", .argument = "Q",
            .help = "int8: experts with int8 or int4 weights take int8 inputs, one scale per token; w8a8: those with FP8 or int8 "
                    "weights take FP8 or int8 inputs (none)"),
        ROW("device", "--kv-cache-dtype", MF_FLAG_TEXT, kv_cache_dtype, .choices = "auto|float32|bfloat16",
            .argument = "T", .help = "of the KV cache; auto: as --dtype (auto)"),
        ROW("device", "--tensor-parallel-size", MF_FLAG_INT, tensor_parallel_size, .alias = "-tp", .min = 1, .max = 1024,
            .argument = "N", .help = "more than one device: not in this build, warned about (1)"),
        ROW("device", "--enable-expert-parallel", MF_FLAG_BOOL, enable_expert_parallel,
            .help = "more than one device: not in this build, warned about"),
        ROW("fusion", "--disable-shared-experts-fusion", MF_FLAG_BOOL, disable_shared_experts_fusion,
            .help = "run every shared expert as its own product; same bits"),
        ROW("fusion", "--disable-fused-gate", MF_FLAG_BOOL, disable_fused_gate,
            .help = "run the gate as separate steps; same bits"),
        ROW("fusion", "--disable-fusion-bands", MF_FLAG_BOOL, disable_fusion_bands,
            .help = "on a GPU: shared experts in slots at any number of tokens, whatever was measured to be faster; same bits"),
        ROW("fusion", "--num-shared-expert-replicas", MF_FLAG_INT, num_shared_expert_replicas, .given = &v->replicas_given,
            .min = 1, .max = 64, .argument = "N", .help = "slot ids per shared chunk, one copy of the bytes (1)"),
        ROW("fusion", "--no-batch-invariant", MF_FLAG_BOOL, no_batch_invariant,
            .help = "accepted and warned about: results never depend on the batch, and that costs nothing here"),
        ROW("limits", "--max-model-len", MF_FLAG_INT, max_model_len, .min = 1, .max = 1 << 24, .argument = "N",
            .help = "tokens per sequence (the model's, reduced to fit memory)"),
        ROW("limits", "--max-num-seqs", MF_FLAG_INT, max_num_seqs, .min = 1, .max = 4096, .argument = "N",
            .help = "sequences per step (128)"),
        ROW("limits", "--max-num-batched-tokens", MF_FLAG_INT, max_num_batched_tokens, .min = 1, .max = 65536,
            .argument = "N", .help = "tokens per step; longer prompts are cut into chunks (2048)"),
        ROW("limits", "--block-size", MF_FLAG_INT, block_size, .min = 1, .max = 1024, .argument = "N",
            .help = "tokens per KV block (16)"),
        ROW("limits", "--kv-cache-memory-bytes", MF_FLAG_INT, kv_cache_memory_bytes, .min = 0, .max = any, .argument = "N",
            .help = "memory for the KV cache; 0: as much as is useful, at most half of what is free (0)"),
        ROW("limits", "--gpu-memory-utilization", MF_FLAG_REAL, gpu_memory_utilization, .min = 0.05, .max = 1.0, .argument = "X",
            .help = "the part of a GPU's memory that weights, KV cache and scratch memory may take (0.9)"),
        ROW("limits", "--no-enable-prefix-caching", MF_FLAG_BOOL, no_enable_prefix_caching,
            .help = "do not reuse the KV blocks of equal prefixes"),
        ROW("output", "--no-progress", MF_FLAG_BOOL, no_progress, .help = "no progress while loading"),
        ROW("output", "--log-level", MF_FLAG_TEXT, log_level, .choices = "debug|info|warn|error", .argument = "L",
            .help = "debug prints the plan of every layer (info)"),
        ROW("output", "--log-format", MF_FLAG_TEXT, log_format, .choices = "text|json", .argument = "F",
            .help = "json: an object per line, with its time (text)"),
        ROW("output", "--log-file", MF_FLAG_TEXT, log_file, .argument = "FILE",
            .help = "append the log to FILE, with times (stderr)"),
        ROW("output", "--help", MF_FLAG_BOOL, help, .alias = "-h", .help = "this text"),
    };
    _Static_assert(sizeof table / sizeof *table == MF_NUM_MODEL_FLAGS, "keep the count in step");
    memcpy(rows, table, sizeof table);
}

mf_status mf_model_flags_settle(mf_model_flags *v, const char *const *positionals, int32_t num_positionals, mf_error *err)
{
    if (num_positionals > 0) {
        if (v->model) {
            return mf_fail(err, MF_ERR_INVALID, "the model is given twice: \"%.128s\" and --model \"%.128s\"", positionals[0],
                           v->model);
        }
        v->model = positionals[0];
    }
    if (!v->model) {
        v->model = mf_default_model_dir();
        if (!v->model) {
            return mf_fail(err, MF_ERR_INVALID, "no MODEL given, and the shipped model is not beside this program");
        }
    }
    if (v->tensor_parallel_size > 1) {
        mf_log(MF_LOG_WARN, "--tensor-parallel-size %lld has no effect: this build has no transport between devices",
               (long long)v->tensor_parallel_size);
    }
    if (v->enable_expert_parallel) {
        mf_log(MF_LOG_WARN, "--enable-expert-parallel has no effect: this build has no transport between devices");
    }
    if (v->no_batch_invariant) {
        mf_log(MF_LOG_WARN, "--no-batch-invariant has no effect: no kernel depends on the batch, at no cost");
    }
    return MF_OK;
}

mf_status mf_model_flags_start_log(const mf_model_flags *v, mf_error *err)
{
    return mf_log_output_start(&(mf_log_output_options){ .level = v->log_level, .format = v->log_format, .file = v->log_file },
                               err);
}

mf_status mf_model_dir_check(const char *dir, mf_error *err)
{
    if (mf_path_is_dir(dir)) {
        return MF_OK;
    }
    return mf_fail(err, MF_ERR_IO, "%.512s: expected a model directory; got %s", dir,
                   mf_path_is_file(dir) ? "a file" : "nothing of that name");
}
