/* engine_open.c - an engine over a model directory: opens model/, sizes the KV cache, fills the table of engine_model.h. */
#include <string.h>

#include "base/log.h"
#include "base/sys.h"
#include "engine/engine.h"
#include "engine/host_memory.h"
#include "kernels/ops.h"

/* What the callbacks need. */
typedef struct model_context {
    mf_model *model;
    int32_t eos_token_ids[MF_MAX_EOS_IDS + MF_MAX_STOP_IDS]; /* the model's, then those of the options */
    int32_t num_eos_token_ids;
    mf_kv_store *store;
    int32_t *step_load;   /* [num_layers, num_experts] of one forward */
    int64_t *expert_load; /* the same since open */
    size_t load_size;
    int64_t num_bad_rows;
    int32_t (*progress)(void *context, const mf_engine_progress *info);
    void *progress_context;
} model_context;

static mf_status kv_open(void *context, int32_t num_blocks, int32_t block_size, int32_t num_states, mf_error *err)
{
    model_context *c = context;
    return mf_kv_store_open(c->model, num_blocks, block_size, num_states, &c->store, err);
}

static void kv_close(void *context)
{
    model_context *c = context;
    mf_kv_store_close(&c->store);
}

static mf_status forward(void *context, const mf_batch *batch, float *logits, mf_error *err)
{
    model_context *c = context;
    int32_t num_bad_rows = 0;
    memset(c->step_load, 0, c->load_size * sizeof *c->step_load);
    MF_TRY(mf_model_forward(c->model, c->store, batch, logits, c->step_load, &num_bad_rows, err));
    for (size_t i = 0; i < c->load_size; i++) {
        c->expert_load[i] += c->step_load[i];
    }
    c->num_bad_rows += num_bad_rows;
    return MF_OK;
}

static void *alloc_logits(void *context, size_t bytes)
{
    return mf_model_alloc_logits(((model_context *)context)->model, bytes);
}

static void free_logits(void *context, void *logits)
{
    mf_model_free_logits(((model_context *)context)->model, logits);
}

static void close_context(void *context)
{
    model_context *c = context;
    mf_model_close(&c->model);
    mf_free(c->step_load);
    mf_free(c->expert_load);
    mf_free(c);
}

static bool forward_progress(void *context, const mf_progress_info *info)
{
    const model_context *c = context;
    mf_engine_progress told = { .what = info->what, .files_done = info->files_done, .files_total = info->files_total,
                                .bytes_done = info->bytes_done, .bytes_total = info->bytes_total, .seconds = info->seconds };
    return c->progress(c->progress_context, &told) != 0;
}

static mf_status open_model(model_context *c, const mf_engine_options *o, mf_error *err)
{
    c->progress = o->progress;
    c->progress_context = o->progress_context;
    mf_model_options options = {
        .device = o->device ? o->device : "cpu",
        .num_threads = o->num_threads,
        .pin_threads = o->pin_threads != 0,
        .numa = o->numa,
        .dummy = o->load_format_dummy != 0,
        .seed = o->seed,
        .use_map = !o->no_mmap,
        .touch = true,
        .act_dtype = o->act_dtype,
        .kv_dtype = o->kv_cache_dtype,
        .auto_act_dtype = o->auto_dtype != 0,
        .auto_kv_dtype = o->auto_kv_cache_dtype != 0,
        .act_quant = o->act_quant,
        .max_batch_tokens = o->max_num_batched_tokens,
        .max_model_len = o->max_model_len,
        .memory_utilization = o->gpu_memory_utilization,
        .plan = { .disable_shared_experts_fusion = o->disable_shared_experts_fusion != 0,
                  .disable_fused_gate = o->disable_fused_gate != 0,
                  .disable_fusion_bands = o->disable_fusion_bands != 0,
                  .num_shared_expert_replicas = o->num_shared_expert_replicas },
        .progress = { .fn = o->progress ? forward_progress : NULL, .context = c },
    };
    MF_TRY(mf_quantization_parse(o->quantization, &options.quantization, err));
    MF_TRY(mf_model_open(o->model_dir, &options, &c->model, err));
    const mf_model_config *config = mf_model_get_config(c->model);
    if (config->vocab_size < 1 || config->vocab_size > INT32_MAX) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "vocab_size: expected 1 to %d; got %lld", INT32_MAX,
                       (long long)config->vocab_size);
    }
    size_t num_experts = config->num_moe_layers > 0 ? (size_t)config->gate.num_experts : 0;
    if (!mf_mul_ok((size_t)config->num_layers, num_experts, &c->load_size)) {
        return mf_fail(err, MF_ERR_INVALID, "num_experts: %zu is too many", num_experts);
    }
    c->step_load = mf_alloc_array(c->load_size, sizeof *c->step_load);
    c->expert_load = mf_alloc_array(c->load_size, sizeof *c->expert_load);
    return c->step_load && c->expert_load ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "engine: out of memory for expert counts");
}

/* No more than all sequences at full length can use, with their states. */
static int64_t useful_kv_bytes(const mf_model *model, const mf_engine_options *o, int64_t block_bytes, int64_t state_bytes)
{
    int64_t blocks = (mf_model_max_len(model) + o->block_size - 1) / o->block_size;
    int64_t most;
    return mf_mul_ok(blocks, block_bytes, &most) && mf_add_ok(most, state_bytes, &most) &&
                   mf_mul_ok(most, (int64_t)o->max_num_seqs, &most)
               ? most
               : INT64_MAX;
}

/* Half of what is free after the weights, and no more than all sequences at full length can use, with their states.  Mapped weights are page
 * cache, which the system calls available; they are wanted in memory, so they are not. */
static int64_t automatic_kv_bytes(const mf_model *model, const mf_engine_options *o, int64_t block_bytes, int64_t state_bytes)
{
    const mf_weights *weights = mf_model_get_weights(model);
    int64_t mapped = weights->checkpoint && !o->no_mmap ? weights->stats.bytes_total - weights->stats.bytes_converted : 0;
    int64_t available = mf_host_memory_available();
    int64_t free_bytes = available > mapped ? available - mapped : 0;
    int64_t most = useful_kv_bytes(model, o, block_bytes, state_bytes);
    return free_bytes / 2 < most ? free_bytes / 2 : most;
}

/* A device's own memory is there for this: all that is left, and a figure that was asked for must fit. */
static mf_status device_kv_bytes(const mf_model *model, const mf_engine_options *o, int64_t budget, int64_t useful, int64_t *bytes,
                                 mf_error *err)
{
    enum { KEPT_FREE = 64 << 20 }; /* graphs, inputs of longer tables */
    const int64_t left = budget > KEPT_FREE ? budget - KEPT_FREE : 0;
    if (o->kv_cache_memory_bytes > left) {
        mf_status status = mf_fail(err, MF_ERR_NOMEM, "kv_cache_memory_bytes: %lld; weights and scratch memory leave %lld of device %s",
                                   (long long)o->kv_cache_memory_bytes, (long long)left, mf_device_name(mf_model_get_device(model)));
        mf_error_advise(err, "--gpu-memory-utilization allows more, --max-num-batched-tokens makes scratch memory smaller");
        return status;
    }
    *bytes = o->kv_cache_memory_bytes ? o->kv_cache_memory_bytes : left < useful ? left : useful;
    return MF_OK;
}

/* A state is as large as the keys and values of thousands of tokens, so fewer sequences may run than were asked for: states
 * take at most half of the memory, or what whole sequences leave them (length_bytes: keys and values of the longest).  Their
 * bytes go off *bytes. */
static mf_status choose_num_states(int64_t state_bytes, int64_t length_bytes, mf_engine_options *o, int64_t *bytes, mf_error *err)
{
    int64_t whole;
    if (state_bytes == 0) {
        return MF_OK;
    }
    int64_t fit = *bytes / 2 / state_bytes;
    if (mf_add_ok(state_bytes, length_bytes, &whole) && *bytes / whole > fit) {
        fit = *bytes / whole;
    }
    if (fit < 1) {
        return mf_fail(err, MF_ERR_NOMEM,
                       "kv_cache_memory_bytes: expected at least %lld, for the state of one sequence and as much for its keys and values; got %lld",
                       (long long)(2 * state_bytes), (long long)*bytes);
    }
    if (fit < o->max_num_seqs) {
        mf_log(MF_LOG_WARN, "max-num-seqs reduced from %d to %lld: linear layers keep %.1f MB per sequence", (int)o->max_num_seqs,
               (long long)fit, (double)state_bytes * 1e-6);
        o->max_num_seqs = (int32_t)fit;
    }
    *bytes -= o->max_num_seqs * state_bytes;
    return MF_OK;
}

/* May lower o->max_num_seqs. */
static mf_status choose_num_blocks(const mf_model *model, mf_engine_options *o, int32_t *num_blocks, mf_error *err)
{
    const int64_t state_bytes = mf_kv_store_state_bytes(model);
    int64_t block_bytes = mf_kv_store_block_bytes(model, o->block_size);
    if (block_bytes < 1) {
        return mf_fail(err, MF_ERR_INTERNAL, "KV cache: a block of %d tokens has %lld bytes", o->block_size,
                       (long long)block_bytes);
    }
    int64_t bytes, budget;
    if (mf_model_device_budget(model, &budget)) {
        MF_TRY(device_kv_bytes(model, o, budget, useful_kv_bytes(model, o, block_bytes, state_bytes), &bytes, err));
    } else {
        bytes = o->kv_cache_memory_bytes ? o->kv_cache_memory_bytes : automatic_kv_bytes(model, o, block_bytes, state_bytes);
    }
    int64_t length_bytes = (mf_model_max_len(model) + o->block_size - 1) / o->block_size;
    length_bytes = mf_mul_ok(length_bytes, block_bytes, &length_bytes) ? length_bytes : INT64_MAX;
    MF_TRY(choose_num_states(state_bytes, length_bytes, o, &bytes, err));
    int64_t n = bytes / block_bytes;
    if (n < 1) {
        return mf_fail(err, MF_ERR_NOMEM, "kv_cache_memory_bytes: expected at least %lld for one block of %d tokens; got %lld",
                       (long long)block_bytes, o->block_size, (long long)bytes);
    }
    *num_blocks = n < 1 << 28 ? (int32_t)n : 1 << 28;
    return MF_OK;
}

static void add_eos(model_context *c, const int32_t *ids, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        int32_t k = 0;
        while (k < c->num_eos_token_ids && c->eos_token_ids[k] != ids[i]) {
            k++;
        }
        if (k == c->num_eos_token_ids) {
            c->eos_token_ids[c->num_eos_token_ids++] = ids[i];
        }
    }
}

static mf_status open_engine(model_context *c, const mf_engine_options *options, mf_engine **engine, mf_error *err)
{
    mf_engine_options settled = *options, *o = &settled;
    MF_TRY(open_model(c, o, err));
    int32_t num_blocks = 0;
    MF_TRY(choose_num_blocks(c->model, o, &num_blocks, err));
    const mf_model_config *config = mf_model_get_config(c->model);
    add_eos(c, config->eos_token_ids, config->num_eos_token_ids);
    add_eos(c, o->stop_token_ids, o->num_stop_token_ids);
    mf_engine_model table = {
        .context = c,
        .vocab_size = (int32_t)config->vocab_size,
        .max_model_len = mf_model_max_len(c->model),
        .max_batch_tokens = o->max_num_batched_tokens,
        .eos_token_ids = c->eos_token_ids,
        .num_eos_token_ids = c->num_eos_token_ids,
        .pool = mf_model_get_device(c->model)->pool,
        .has_states = mf_kv_store_state_bytes(c->model) > 0,
        .kv_open = kv_open,
        .kv_close = kv_close,
        .forward = forward,
        .picks_best = mf_model_picks_best(c->model),
        .picks = mf_model_picks(c->model),
        .alloc_logits = alloc_logits,
        .free_logits = free_logits,
        .expert_load = c->load_size ? c->expert_load : NULL,
        .num_bad_rows = &c->num_bad_rows,
        .num_layers = c->load_size ? (int32_t)config->num_layers : 0,
        .num_experts = c->load_size ? (int32_t)config->gate.num_experts : 0,
        .close = close_context,
    };
    if (table.has_states && o->enable_prefix_caching) {
        mf_log(MF_LOG_INFO, "prefix caching is off: linear layers keep a state per sequence, which no other sequence can take up");
    }
    MF_TRY(mf_engine_open_model(&table, o, num_blocks, engine, err));
    mf_engine_set_model(*engine, c->model);
    return MF_OK;
}

mf_status mf_engine_open(const mf_engine_options *options, mf_engine **engine, mf_error *err)
{
    *engine = NULL;
    MF_TRY(mf_engine_options_check(options, err));
    if (!options->model_dir) {
        return mf_fail(err, MF_ERR_INVALID, "model_dir: expected a directory; got NULL");
    }
    model_context *c = mf_alloc_zero(sizeof *c);
    if (!c) {
        return mf_fail(err, MF_ERR_NOMEM, "engine: out of memory");
    }
    mf_status status = open_engine(c, options, engine, err);
    if (status != MF_OK) {
        close_context(c);
        return status;
    }
    if (!options->max_model_len && mf_engine_max_model_len(*engine) < mf_model_max_len(c->model)) {
        mf_log(MF_LOG_WARN, "max-model-len reduced from %lld to %lld to fit the KV cache", (long long)mf_model_max_len(c->model),
               (long long)mf_engine_max_model_len(*engine));
    }
    return MF_OK;
}
