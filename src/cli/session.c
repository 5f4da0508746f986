/* session.c - see session.h. */
#include "cli/session.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "cli/console.h"
#include "engine/engine.h"
#include "model/family.h"
#include "text/tokenizer_dir.h"

/* A weights file that shrinks, or whose disk fails, faults on the next read of its mapping: nothing to go on with. */
static void on_bus_error(int signal_number, siginfo_t *info, void *context)
{
    (void)signal_number;
    (void)context;
    const char *path = "a mapped file";
    uint64_t offset = 0;
    mf_file_find_mapped(info->si_addr, &path, &offset);
    char digits[24];
    int first = (int)sizeof digits;
    do {
        digits[--first] = (char)('0' + offset % 10);
        offset /= 10;
    } while (offset);
    const char *const parts[] = { "\nmoefuse: error: ", path, ": weights unreadable at byte " };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        (void)!write(STDERR_FILENO, parts[i], strlen(parts[i]));
    }
    static const char advice[] = ": the file shrank or its disk failed after it was mapped\n"
                                 "start again with the whole file; --no-mmap reads it into memory first\n";
    (void)!write(STDERR_FILENO, digits + first, sizeof digits - (size_t)first);
    (void)!write(STDERR_FILENO, advice, sizeof advice - 1);
    _exit(MF_EXIT_UNREADABLE);
}

typedef struct progress_state {
    mf_console_progress console;
    const mf_session_options *options;
} progress_state;

static int32_t tell_progress(void *context, const mf_engine_progress *info)
{
    progress_state *state = context;
    mf_progress_info copy = { info->what,       info->files_done,  info->files_total,
                              info->bytes_done, info->bytes_total, info->seconds };
    double share = info->bytes_total > 0 ? (double)info->bytes_done / (double)info->bytes_total : 0;
    if (state->options->progress && !state->options->progress(state->options->progress_context, share)) {
        return 0;
    }
    return mf_console_progress_draw(&state->console, &copy);
}

/* Warns about fusion flags that cannot take effect; *out is the caller's. */
static mf_status load_config(const mf_model_flags *flags, mf_model_config **out, mf_error *err)
{
    MF_TRY(mf_model_config_load(flags->model, out, err));
    bool has_shared = (*out)->num_shared_experts > 0, has_moe = (*out)->num_moe_layers > 0;
    if (!has_moe && (flags->disable_shared_experts_fusion || flags->disable_fused_gate || flags->replicas_given)) {
        mf_log(MF_LOG_WARN, "the fusion flags have no effect: the model has no MoE layer");
    } else if (!has_shared && flags->disable_shared_experts_fusion) {
        mf_log(MF_LOG_WARN, "--disable-shared-experts-fusion has no effect: the model has no shared expert");
    }
    return MF_OK;
}

static mf_status open_engine(const mf_model_flags *flags, const mf_session_options *more, int32_t num_sampled_ids,
                             mf_session *session, mf_error *err)
{
    struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO };
    sigaction(SIGBUS, &action, NULL);
    progress_state progress = { .options = more };
    mf_console_progress_start(&progress.console, flags->no_progress);
    mf_engine_options options = MF_ENGINE_OPTIONS_INIT;
    options.model_dir = flags->model;
    options.device = flags->device;
    options.num_threads = (int32_t)flags->threads;
    options.load_format_dummy = strcmp(flags->load_format, "dummy") == 0;
    options.act_dtype = strcmp(flags->dtype, "bfloat16") == 0 ? MF_BF16 : MF_F32;
    options.auto_dtype = strcmp(flags->dtype, "auto") == 0;
    options.kv_cache_dtype = strcmp(flags->kv_cache_dtype, "bfloat16") == 0 ? MF_BF16 : MF_F32;
    options.auto_kv_cache_dtype = strcmp(flags->kv_cache_dtype, "auto") == 0;
    options.quantization = flags->quantization;
    options.act_quant = strcmp(flags->act_quant, "int8") == 0   ? MF_ACT_QUANT_INT8
                        : strcmp(flags->act_quant, "w8a8") == 0 ? MF_ACT_QUANT_W8A8
                                                                : MF_ACT_QUANT_NONE;
    options.no_mmap = flags->no_mmap || strcmp(flags->weights_memory, "copy") == 0;
    options.pin_threads = flags->pin_threads;
    options.numa = strcmp(flags->numa, "interleave") == 0 ? MF_NUMA_INTERLEAVE : MF_NUMA_FIRST_TOUCH;
    options.seed = (uint64_t)flags->seed;
    options.max_model_len = flags->max_model_len;
    options.max_num_seqs = (int32_t)flags->max_num_seqs;
    options.max_num_batched_tokens = (int32_t)flags->max_num_batched_tokens;
    options.block_size = (int32_t)flags->block_size;
    options.kv_cache_memory_bytes = flags->kv_cache_memory_bytes;
    options.gpu_memory_utilization = flags->gpu_memory_utilization;
    options.enable_prefix_caching = !flags->no_enable_prefix_caching;
    options.num_sampled_ids = num_sampled_ids;
    options.stop_token_ids = session->prompt.stop_token_ids;
    options.num_stop_token_ids = session->prompt.num_stop_token_ids;
    options.disable_shared_experts_fusion = flags->disable_shared_experts_fusion;
    options.disable_fused_gate = flags->disable_fused_gate;
    options.disable_fusion_bands = flags->disable_fusion_bands;
    options.num_shared_expert_replicas = (int32_t)flags->num_shared_expert_replicas;
    if (more->max_num_queued_reqs > 0) {
        options.max_num_queued_reqs = more->max_num_queued_reqs;
    }
    options.max_num_queued_tokens = more->max_num_queued_tokens;
    options.progress = tell_progress;
    options.progress_context = &progress;
    mf_status status = mf_engine_open(&options, &session->engine, err);
    mf_console_progress_end(&progress.console);
    if (status != MF_OK) {
        mf_session_close(session);
        return status;
    }
    session->model = mf_engine_get_model(session->engine);
    session->config = mf_model_get_config(session->model);
    session->all_layers = strcmp(flags->log_level, "debug") == 0;
    session->max_len_given = flags->max_model_len > 0;
    session->max_num_seqs = flags->max_num_seqs;
    session->max_num_batched_tokens = flags->max_num_batched_tokens;
    return MF_OK;
}

static bool has_file(const char *dir, const char *name)
{
    char *path = mf_path_join(dir, name);
    bool has = path && mf_path_exists(path);
    mf_free(path);
    return has;
}

mf_status mf_session_open_with(const mf_model_flags *flags, const mf_session_options *more, mf_session *session,
                               mf_error *err)
{
    *session = (mf_session){ 0 };
    const char *text_dir = more->tokenizer_dir ? more->tokenizer_dir : flags->model;
    if (more->text_is_optional && !more->tokenizer_dir && !mf_tokenizer_in_dir(text_dir)) {
        /* A folder without a model is told as such, not for what else it lacks. */
        bool is_model = mf_path_is_file(flags->model) || has_file(flags->model, "config.json");
        mf_log(is_model ? MF_LOG_WARN : MF_LOG_DEBUG,
               "%.400s has no tokenizer: prompts are lists of token ids, answers have no text (--tokenizer DIR)",
               flags->model);
        return mf_session_open_without_text(flags, more, session, err);
    }
    if (!more->text_is_optional) {
        MF_TRY(mf_model_dir_check(flags->model, err));
    }
    mf_model_config *config = NULL;
    MF_TRY(load_config(flags, &config, err));
    int64_t max_len = config->max_position_embeddings;
    int64_t vocab_size = config->vocab_size;
    const char *const *fallbacks = config->family->chat_templates;
    mf_model_config_close(&config);
    MF_TRY(mf_prompt_open(text_dir, flags->chat_template, fallbacks, max_len, &session->prompt, err));
    int32_t tokenizer_size = mf_tokenizer_vocab_size(session->prompt.tokenizer);
    if (tokenizer_size > vocab_size) {
        mf_status status = mf_fail(
            err, MF_ERR_FORMAT, "%.400s: the tokenizer has %d tokens; config.json: key \"vocab_size\" gives %lld rows",
            text_dir, tokenizer_size, (long long)vocab_size);
        mf_session_close(session);
        return status;
    }
    return open_engine(flags, more, tokenizer_size, session, err);
}

static const mf_session_options no_more = { 0 };

mf_status mf_session_open(const mf_model_flags *flags, mf_session *session, mf_error *err)
{
    return mf_session_open_with(flags, &no_more, session, err);
}

mf_status mf_session_open_without_text(const mf_model_flags *flags, const mf_session_options *more, mf_session *session,
                                       mf_error *err)
{
    *session = (mf_session){ 0 };
    mf_model_config *config = NULL;
    MF_TRY(load_config(flags, &config, err));
    mf_model_config_close(&config);
    return open_engine(flags, more ? more : &no_more, 0, session, err);
}

void mf_session_close(mf_session *session)
{
    mf_engine_close(&session->engine);
    mf_prompt_close(&session->prompt);
    *session = (mf_session){ 0 };
}

void mf_session_print_plan(const mf_session *session, FILE *out)
{
    mf_buffer text = { 0 };
    if (mf_session_write_plan(session, &text) == MF_OK) {
        fputs(mf_buffer_text(&text), out);
    }
    mf_buffer_close(&text);
}

mf_status mf_session_write_plan(const mf_session *session, mf_buffer *out)
{
    MF_TRY(mf_model_print_plan(session->model, session->all_layers, out));
    if (session->prompt.builtin) {
        MF_TRY(mf_buffer_printf(out, "text    chat template %s, built in%s\n", session->prompt.builtin->name,
                                session->prompt.is_fallback ? ": the checkpoint has none" : ""));
    }
    mf_engine_stats stats;
    mf_engine_get_stats(session->engine, &stats);
    int64_t tokens = (int64_t)stats.kv_blocks_total * stats.kv_block_size;
    int64_t length = mf_engine_max_model_len(session->engine);
    char blocks[32], bytes[32], len[32], model_len[32];
    mf_format_count(stats.kv_blocks_total, blocks, sizeof blocks);
    mf_format_bytes((int64_t)stats.kv_blocks_total * mf_kv_store_block_bytes(session->model, stats.kv_block_size),
                    bytes, sizeof bytes);
    mf_format_count(length, len, sizeof len);
    mf_format_count(session->config->max_position_embeddings, model_len, sizeof model_len);
    MF_TRY(mf_buffer_printf(out, "cache   KV %s = %s blocks x %d tokens (%lld seqs at %s)", bytes, blocks,
                            stats.kv_block_size, (long long)(length ? tokens / length : 0), len));
    const int64_t state_bytes = mf_kv_store_state_bytes(session->model), num_states = mf_engine_max_num_seqs(session->engine);
    if (state_bytes) {
        char all[32], each[32];
        mf_format_bytes(num_states * state_bytes, all, sizeof all);
        mf_format_bytes(state_bytes, each, sizeof each);
        MF_TRY(mf_buffer_printf(out, " | states %s = %lld seqs x %s", all, (long long)num_states, each));
    }
    MF_TRY(mf_buffer_append_text(out, "\n"));
    MF_TRY(mf_buffer_printf(out, "limits  max-model-len %s", len));
    if (length < session->config->max_position_embeddings) {
        MF_TRY(mf_buffer_printf(out, " (model %s, %s)", model_len,
                                session->max_len_given ? "as asked" : "reduced: memory"));
    }
    return mf_buffer_printf(out, " | seqs %lld | batched tokens %lld\n",
                            (long long)(state_bytes ? num_states : session->max_num_seqs),
                            (long long)session->max_num_batched_tokens);
}
