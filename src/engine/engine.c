/* engine.c - the engine over any model: open, submit, cancel, pause, statistics.  All memory of a step is made at open. */
#include "engine/engine_impl.h"

#include <string.h>

#include "base/random.h"
#include "base/sys.h"

/* Logits for prompt logprobs are made in chunks of at most this many bytes, and at least MIN_PROMPT_ROWS rows. */
enum { PROMPT_LOGITS_BYTES = 32 * 1024 * 1024, MIN_PROMPT_ROWS = 16 };

/* ---- open, close -------------------------------------------------------------------------------------------------- */

typedef struct option_range {
    const char *name;
    int64_t value, min, max;
} option_range;

mf_status mf_engine_options_check(const mf_engine_options *o, mf_error *err)
{
    if (!o || o->struct_size != sizeof *o) {
        return mf_fail(err, MF_ERR_INVALID, "options: expected struct_size %zu, as set by MF_ENGINE_OPTIONS_INIT; got %zu",
                       sizeof *o, o ? o->struct_size : 0);
    }
    const option_range ranges[] = {
        { "threads", o->num_threads, 0, 256 },
        { "max_model_len", o->max_model_len, 0, 1 << 28 },
        { "max_num_seqs", o->max_num_seqs, 1, 4096 },
        { "max_num_batched_tokens", o->max_num_batched_tokens, 1, 1 << 20 },
        { "block_size", o->block_size, 1, 1024 },
        { "kv_cache_memory_bytes", o->kv_cache_memory_bytes, 0, (int64_t)1 << 50 },
        { "max_num_queued_reqs", o->max_num_queued_reqs, 1, 1 << 19 },
        { "max_num_queued_tokens", o->max_num_queued_tokens, 0, (int64_t)1 << 40 },
        { "num_sampled_ids", o->num_sampled_ids, 0, INT32_MAX },
        { "num_shared_expert_replicas", o->num_shared_expert_replicas, 1, 64 },
        { "num_stop_token_ids", o->num_stop_token_ids, 0, MF_MAX_STOP_IDS },
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max) {
            return mf_fail(err, MF_ERR_INVALID, "%s: expected %lld to %lld; got %lld", ranges[i].name,
                           (long long)ranges[i].min, (long long)ranges[i].max, (long long)ranges[i].value);
        }
    }
    if (!(o->gpu_memory_utilization >= 0.0 && o->gpu_memory_utilization <= 1.0)) {
        return mf_fail(err, MF_ERR_INVALID, "gpu_memory_utilization: expected 0 (0.9) to 1; got %g", o->gpu_memory_utilization);
    }
    if (o->num_stop_token_ids > 0 && !o->stop_token_ids) {
        return mf_fail(err, MF_ERR_INVALID, "stop_token_ids: expected %d ids; got NULL", o->num_stop_token_ids);
    }
    for (int32_t i = 0; i < o->num_stop_token_ids; i++) {
        if (o->stop_token_ids[i] < 0) {
            return mf_fail(err, MF_ERR_INVALID, "stop_token_ids[%d]: expected 0 or more; got %d", i, o->stop_token_ids[i]);
        }
    }
    return MF_OK;
}

/* max_model_len: as asked, or the model's; both within what all blocks together hold. */
static mf_status choose_max_model_len(const mf_engine_model *model, const mf_engine_options *o, int32_t num_kv_blocks,
                                      int32_t *max_model_len, mf_error *err)
{
    int64_t fits = (int64_t)num_kv_blocks * o->block_size;
    int64_t wanted = o->max_model_len ? o->max_model_len : model->max_model_len < fits ? model->max_model_len : fits;
    if (wanted < 2 || wanted > model->max_model_len || wanted > 1 << 28) {
        return mf_fail(err, MF_ERR_INVALID, "max_model_len: expected 2 to the model's %lld; got %lld",
                       (long long)model->max_model_len, (long long)wanted);
    }
    if (wanted > fits) {
        return mf_fail(err, MF_ERR_NOMEM, "max_model_len: the KV cache has room for %lld tokens (%d blocks of %d); got %lld",
                       (long long)fits, num_kv_blocks, o->block_size, (long long)wanted);
    }
    *max_model_len = (int32_t)wanted;
    return MF_OK;
}

static void *array_untouched(size_t count, size_t size)
{
    size_t bytes;
    return mf_mul_ok(count, size, &bytes) ? mf_alloc(bytes) : NULL;
}

static mf_status open_buffers(mf_engine *e, const mf_scheduler_limits *limits, mf_error *err)
{
    size_t num_tokens = (size_t)limits->max_num_batched_tokens;
    size_t num_blocks = (size_t)mf_kv_blocks_for(e->kv, e->limits.max_model_len);
    e->max_rows = limits->max_num_seqs + limits->max_prompt_rows;
    size_t rows = (size_t)e->max_rows;
    e->token_ids = mf_alloc_array(num_tokens, sizeof *e->token_ids);
    e->positions = mf_alloc_array(num_tokens, sizeof *e->positions);
    e->sequences = mf_alloc_array(num_tokens, sizeof *e->sequences);
    e->state_slots = mf_alloc_array((size_t)limits->max_num_seqs, sizeof *e->state_slots);
    e->logit_rows = mf_alloc_array(rows, sizeof *e->logit_rows);
    e->uses = mf_alloc_array(rows, sizeof *e->uses);
    e->top = mf_alloc_array(rows * MF_MAX_LOGPROBS, sizeof *e->top);
    e->events = mf_alloc_array(rows, sizeof *e->events);
    /* Sized for the worst, written only as far as used: untouched pages cost nothing. */
    e->block_table = array_untouched((size_t)limits->max_num_seqs * num_blocks, sizeof *e->block_table);
    size_t bytes;
    if (e->model.alloc_logits && mf_mul_ok(rows, (size_t)e->model.vocab_size * sizeof *e->logits, &bytes)) {
        e->logits = e->model.alloc_logits(e->model.context, bytes);
        e->has_model_logits = e->logits != NULL;
    }
    if (!e->logits) {
        e->logits = array_untouched(rows * (size_t)e->model.vocab_size, sizeof *e->logits);
    }
    e->best = mf_alloc_array(rows, sizeof *e->best);
    if (!e->token_ids || !e->positions || !e->sequences || !e->state_slots || !e->logit_rows || !e->uses || !e->top || !e->events ||
        !e->block_table || !e->logits || !e->best) {
        return mf_fail(err, MF_ERR_NOMEM, "engine: out of memory for %d sequences and %d rows of %d logits",
                       limits->max_num_seqs, e->max_rows, e->model.vocab_size);
    }
    return e->model.picks ? mf_picks_open(&e->picks, e->model.vocab_size, e->num_sampled_ids, e->max_rows, err) : MF_OK;
}

static int32_t choose_prompt_rows(int32_t vocab_size, int32_t max_num_batched_tokens)
{
    int64_t rows = PROMPT_LOGITS_BYTES / ((int64_t)vocab_size * (int64_t)sizeof(float));
    rows = rows > MIN_PROMPT_ROWS ? rows : MIN_PROMPT_ROWS;
    return rows < max_num_batched_tokens ? (int32_t)rows : max_num_batched_tokens;
}

static mf_status open_samplers(mf_engine *e, int32_t num_sampled_ids, mf_error *err)
{
    int32_t n = mf_pool_num_threads(e->model.pool);
    e->samplers = mf_alloc_array((size_t)n, sizeof *e->samplers);
    if (!e->samplers) {
        return mf_fail(err, MF_ERR_NOMEM, "engine: out of memory for %d samplers", n);
    }
    e->num_samplers = n;
    e->num_sampled_ids = num_sampled_ids;
    for (int32_t i = 0; i < n; i++) {
        MF_TRY(mf_sampler_open(e->model.vocab_size, num_sampled_ids, &e->samplers[i], err));
    }
    return MF_OK;
}

static mf_status open_parts(mf_engine *e, const mf_engine_options *o, int32_t num_kv_blocks, mf_error *err)
{
    int32_t num_tokens = o->max_num_batched_tokens < e->model.max_batch_tokens ? o->max_num_batched_tokens
                                                                                : e->model.max_batch_tokens;
    mf_scheduler_limits limits = {
        .max_num_seqs = o->max_num_seqs < num_tokens ? o->max_num_seqs : num_tokens, /* every decode fits a step */
        .max_num_batched_tokens = num_tokens,
        .max_prompt_rows = choose_prompt_rows(e->model.vocab_size, num_tokens),
        .max_num_queued_reqs = o->max_num_queued_reqs,
        .max_num_queued_tokens = o->max_num_queued_tokens ? o->max_num_queued_tokens : (int64_t)64 * num_tokens,
    };
    e->limits = (mf_request_limits){ .vocab_size = e->model.vocab_size, .block_size = o->block_size };
    MF_TRY(choose_max_model_len(&e->model, o, num_kv_blocks, &e->limits.max_model_len, err));
    MF_TRY(open_samplers(e, o->num_sampled_ids ? o->num_sampled_ids : e->model.vocab_size, err));
    const bool shares_prefixes = o->enable_prefix_caching != 0 && !e->model.has_states;
    MF_TRY(mf_kv_cache_open(num_kv_blocks, o->block_size, shares_prefixes, &e->kv, err));
    MF_TRY(mf_scheduler_open(&limits, e->kv, &e->scheduler, err));
    MF_TRY(open_buffers(e, &limits, err));
    MF_TRY(e->model.kv_open(e->model.context, num_kv_blocks, o->block_size, limits.max_num_seqs, err));
    e->has_store = true;
    return MF_OK;
}

static void close_parts(mf_engine *e)
{
    if (e->has_store) {
        e->model.kv_close(e->model.context);
    }
    mf_scheduler_close(&e->scheduler);
    mf_kv_cache_close(&e->kv);
    for (int32_t i = 0; i < e->num_samplers; i++) {
        mf_sampler_close(&e->samplers[i]);
    }
    mf_free(e->samplers);
    mf_free(e->token_ids);
    mf_free(e->positions);
    mf_free(e->sequences);
    mf_free(e->block_table);
    mf_free(e->state_slots);
    mf_free(e->logit_rows);
    mf_free(e->uses);
    if (e->has_model_logits) {
        e->model.free_logits(e->model.context, e->logits);
    } else {
        mf_free(e->logits);
    }
    mf_picks_close(&e->picks);
    mf_free(e->best);
    mf_free(e->top);
    mf_free(e->events);
    mf_free(e);
}

mf_status mf_engine_open_model(const mf_engine_model *model, const mf_engine_options *options, int32_t num_kv_blocks,
                               mf_engine **out, mf_error *err)
{
    *out = NULL;
    MF_TRY(mf_engine_options_check(options, err));
    mf_engine *e = mf_alloc_zero(sizeof *e);
    if (!e) {
        return mf_fail(err, MF_ERR_NOMEM, "engine: out of memory");
    }
    e->model = *model;
    e->seed = options->seed;
    e->is_stalled = true;
    e->was_idle = true;
    mf_status status = open_parts(e, options, num_kv_blocks, err);
    if (status != MF_OK) {
        close_parts(e);
        return status;
    }
    *out = e;
    return MF_OK;
}

void mf_engine_close(mf_engine **out)
{
    mf_engine *e = *out;
    if (e) {
        mf_engine_model model = e->model;
        close_parts(e);
        if (model.close) {
            model.close(model.context);
        }
        *out = NULL;
    }
}

/* ---- requests ----------------------------------------------------------------------------------------------------- */

mf_status mf_engine_submit(mf_engine *e, const mf_request *request, uint64_t *request_id, mf_error *err)
{
    *request_id = 0;
    mf_live_request *r;
    mf_status status = mf_live_request_make(request, &e->limits, &r, err);
    if (status != MF_OK) {
        e->num_refused_invalid += status == MF_ERR_INVALID;
        return status;
    }
    r->submitted_ns = mf_now_ns();
    status = mf_scheduler_add(&e->scheduler, r, err);
    if (status != MF_OK) {
        e->num_refused_busy++;
        mf_live_request_free(&r);
        return status;
    }
    /* Without a seed of its own: the engine's, and a count, so that a run of the program can be repeated. */
    r->seed = r->sampling.has_seed ? (uint64_t)r->sampling.seed
                                   : mf_random_mix(e->seed + 0x9e3779b97f4a7c15u * (uint64_t)(e->num_submitted + 1));
    r->guide = request->guide;
    e->num_submitted++;
    e->is_stalled = false;
    e->was_idle = false;
    *request_id = r->id;
    return MF_OK;
}

void mf_engine_cancel(mf_engine *e, uint64_t request_id)
{
    mf_live_request *r = mf_scheduler_find(&e->scheduler, request_id);
    if (!r) {
        e->num_late++;
        return;
    }
    mf_scheduler_finish(&e->scheduler, r, MF_FINISH_CANCELLED, false, mf_now_ns()); /* the event keeps has_work true */
}

void mf_engine_pause(mf_engine *e, uint64_t request_id, int32_t paused)
{
    mf_live_request *r = mf_scheduler_find(&e->scheduler, request_id);
    if (!r) {
        e->num_late++;
        return;
    }
    mf_scheduler_set_paused(&e->scheduler, r, paused != 0);
    e->is_stalled = false;
}

/* ---- telling ------------------------------------------------------------------------------------------------------ */

int32_t mf_engine_vocab_size(const mf_engine *e)
{
    return e->model.vocab_size;
}

int64_t mf_engine_max_model_len(const mf_engine *e)
{
    return e->limits.max_model_len;
}

int32_t mf_engine_num_eos_token_ids(const mf_engine *e)
{
    return e->model.num_eos_token_ids;
}

const int32_t *mf_engine_eos_token_ids(const mf_engine *e)
{
    return e->model.eos_token_ids;
}

int32_t mf_engine_max_events(const mf_engine *e)
{
    return e->max_rows + e->scheduler.num_slots;
}

const mf_model *mf_engine_get_model(const mf_engine *e)
{
    return e->real_model;
}

void mf_engine_set_model(mf_engine *e, const mf_model *model)
{
    e->real_model = model;
}

void mf_engine_set_beat(mf_engine *e, void (*beat)(void *context), void *context)
{
    e->beat = beat;
    e->beat_context = context;
}

int32_t mf_engine_max_num_seqs(const mf_engine *e)
{
    return e->scheduler.limits.max_num_seqs;
}

int32_t mf_engine_num_kv_blocks(const mf_engine *e)
{
    return mf_kv_cache_counts(e->kv).total;
}

mf_scheduler *mf_engine_get_scheduler(mf_engine *e)
{
    return &e->scheduler;
}

const char *mf_finish_reason_name(mf_finish_reason reason)
{
    static const char *const names[] = { "none", "stop", "length", "abort", "deadline", "error" };
    return (unsigned)reason < sizeof names / sizeof names[0] ? names[reason] : "unknown";
}

void mf_engine_get_stats(const mf_engine *e, mf_engine_stats *stats)
{
    const mf_scheduler *s = &e->scheduler;
    mf_kv_counts kv = mf_kv_cache_counts(e->kv);
    *stats = (mf_engine_stats){
        .num_running = s->num_running, .num_waiting = s->queue.count, .num_paused = s->num_paused,
        .num_waiting_tokens = s->num_queued_tokens,
        .kv_block_size = mf_kv_cache_block_size(e->kv), .kv_blocks_total = kv.total, .kv_blocks_free = kv.free,
        .kv_blocks_used = kv.used, .kv_blocks_cached = kv.cached,
        .num_steps = e->num_steps, .num_submitted = e->num_submitted, .num_refused_busy = e->num_refused_busy,
        .num_refused_invalid = e->num_refused_invalid, .prompt_tokens = s->num_prompt_tokens,
        .generation_tokens = e->generation_tokens, .computed_tokens = e->computed_tokens,
        .prefix_cache_queries = s->prefix_queries, .prefix_cache_hits = s->prefix_hits,
        .num_preemptions = s->num_preemptions, .num_late_events = e->num_late,
        .num_invariant_violations = e->num_violations, .last_step_prefill_tokens = e->last_prefill_tokens,
        .last_step_decode_tokens = e->last_decode_tokens, .expert_load = e->model.expert_load,
        .num_layers = e->model.num_layers, .num_experts = e->model.num_experts,
        .num_bad_rows = e->model.num_bad_rows ? *e->model.num_bad_rows : 0,
    };
    memcpy(stats->num_finished, e->num_finished, sizeof stats->num_finished);
}
