/* engine.c - the engine over any model: submit, step, cancel, statistics.
 *
 * A step: plan a batch, run it, give each sequence its row of logits, sample, finish, hand out events.  All memory of a step
 * is made at open. */
#include "engine/engine.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/random.h"
#include "base/sys.h"
#include "engine/sampler.h"

#ifdef MF_ENGINE_CHECKS
static const bool check_each_step = true;
#else
static const bool check_each_step = false;
#endif

/* Logits for prompt logprobs are made in chunks of at most this many bytes, and at least MIN_PROMPT_ROWS rows. */
enum { PROMPT_LOGITS_BYTES = 32 * 1024 * 1024, MIN_PROMPT_ROWS = 16 };

/* What a row of logits is for. */
typedef struct logit_use {
    mf_live_request *request;
    int32_t position; /* the row's; it tells of the token after it */
    bool samples;
} logit_use;

struct mf_engine {
    mf_engine_model model;
    const mf_model *real_model; /* NULL under tests */
    bool has_store;
    mf_request_limits limits;
    mf_kv_cache *kv;
    mf_sampler *sampler;
    mf_scheduler scheduler;
    uint64_t seed;

    /* The batch */
    int32_t *token_ids, *positions, *sequences; /* [max_num_batched_tokens] */
    int32_t *block_table;                       /* [max_num_seqs, blocks of max_model_len] */
    int32_t max_rows;
    int32_t *logit_rows;                        /* [max_rows] */
    logit_use *uses;                            /* [max_rows] */
    float *logits;                              /* [max_rows, vocab_size] */
    mf_logprob *top;                            /* [max_rows, MF_MAX_LOGPROBS] */
    mf_event *events;                           /* [max_rows]: token events of the last step */
    int32_t num_events, num_events_read;

    bool is_stalled; /* the last plan was empty, and nothing has changed since */
    bool was_idle;
    int64_t num_steps, num_submitted, num_refused_busy, num_refused_invalid, num_late, num_violations;
    int64_t num_finished[MF_FINISH_ERROR + 1];
    int64_t generation_tokens, computed_tokens;
    int32_t last_prefill_tokens, last_decode_tokens;
};

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
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max) {
            return mf_fail(err, MF_ERR_INVALID, "%s: expected %lld to %lld; got %lld", ranges[i].name,
                           (long long)ranges[i].min, (long long)ranges[i].max, (long long)ranges[i].value);
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
    e->logit_rows = mf_alloc_array(rows, sizeof *e->logit_rows);
    e->uses = mf_alloc_array(rows, sizeof *e->uses);
    e->top = mf_alloc_array(rows * MF_MAX_LOGPROBS, sizeof *e->top);
    e->events = mf_alloc_array(rows, sizeof *e->events);
    /* Sized for the worst, written only as far as used: untouched pages cost nothing. */
    e->block_table = array_untouched((size_t)limits->max_num_seqs * num_blocks, sizeof *e->block_table);
    e->logits = array_untouched(rows * (size_t)e->model.vocab_size, sizeof *e->logits);
    if (!e->token_ids || !e->positions || !e->sequences || !e->logit_rows || !e->uses || !e->top || !e->events ||
        !e->block_table || !e->logits) {
        return mf_fail(err, MF_ERR_NOMEM, "engine: out of memory for %d sequences and %d rows of %d logits",
                       limits->max_num_seqs, e->max_rows, e->model.vocab_size);
    }
    return MF_OK;
}

static int32_t choose_prompt_rows(int32_t vocab_size, int32_t max_num_batched_tokens)
{
    int64_t rows = PROMPT_LOGITS_BYTES / ((int64_t)vocab_size * (int64_t)sizeof(float));
    rows = rows > MIN_PROMPT_ROWS ? rows : MIN_PROMPT_ROWS;
    return rows < max_num_batched_tokens ? (int32_t)rows : max_num_batched_tokens;
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
    MF_TRY(mf_sampler_open(e->model.vocab_size, o->num_sampled_ids ? o->num_sampled_ids : e->model.vocab_size, &e->sampler,
                           err));
    MF_TRY(mf_kv_cache_open(num_kv_blocks, o->block_size, o->enable_prefix_caching != 0, &e->kv, err));
    MF_TRY(mf_scheduler_open(&limits, e->kv, &e->scheduler, err));
    MF_TRY(open_buffers(e, &limits, err));
    MF_TRY(e->model.kv_open(e->model.context, num_kv_blocks, o->block_size, err));
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
    mf_sampler_close(&e->sampler);
    mf_free(e->token_ids);
    mf_free(e->positions);
    mf_free(e->sequences);
    mf_free(e->block_table);
    mf_free(e->logit_rows);
    mf_free(e->uses);
    mf_free(e->logits);
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

/* ---- a step ------------------------------------------------------------------------------------------------------- */

static int32_t add_rows(mf_engine *e, mf_live_request *r, int32_t sequence, int32_t first_row, int32_t *num_uses)
{
    for (int32_t i = 0; i < r->num_scheduled; i++) {
        int32_t row = first_row + i;
        int32_t position = r->num_computed + i;
        e->token_ids[row] = r->tokens[position];
        e->positions[row] = position;
        e->sequences[row] = sequence;
        bool samples = position + 1 == r->num_tokens;
        if (samples || mf_live_request_wants_prompt_row(r, position)) {
            e->logit_rows[*num_uses] = row;
            e->uses[*num_uses] = (logit_use){ .request = r, .position = position, .samples = samples };
            (*num_uses)++;
        }
    }
    return first_row + r->num_scheduled;
}

static int32_t make_batch(mf_engine *e, mf_batch *batch)
{
    const mf_scheduler *s = &e->scheduler;
    int32_t max_blocks = 1;
    int32_t num_rows = 0;
    int32_t num_uses = 0;
    for (int32_t i = 0; i < s->num_planned; i++) {
        max_blocks = s->planned[i]->kv.num_blocks > max_blocks ? s->planned[i]->kv.num_blocks : max_blocks;
    }
    for (int32_t i = 0; i < s->num_planned; i++) {
        mf_live_request *r = s->planned[i];
        int32_t *table = e->block_table + (size_t)i * (size_t)max_blocks;
        memcpy(table, r->kv.blocks, (size_t)r->kv.num_blocks * sizeof *table);
        for (int32_t j = r->kv.num_blocks; j < max_blocks; j++) {
            table[j] = 0; /* behind the sequence's end; never read, but a valid block */
        }
        num_rows = add_rows(e, r, i, num_rows, &num_uses);
    }
    *batch = (mf_batch){
        .num_tokens = num_rows, .token_ids = e->token_ids, .position = e->positions, .sequence = e->sequences,
        .block_table = e->block_table, .num_sequences = s->num_planned, .max_blocks = max_blocks,
        .num_logit_rows = num_uses, .logit_rows = e->logit_rows,
    };
    return num_uses;
}

static void finish(mf_engine *e, mf_live_request *r, mf_finish_reason reason, int64_t now_ns)
{
    /* What went wrong may stand in the KV store: nobody else may find it. */
    mf_scheduler_finish(&e->scheduler, r, reason, reason == MF_FINISH_ERROR, now_ns);
}

static void add_token_event(mf_engine *e, const mf_live_request *r, mf_event_type type, int32_t position,
                            const mf_sample *sample, const mf_logprob *top)
{
    e->events[e->num_events++] = (mf_event){
        .type = type, .request_id = r->id, .user_data = r->user_data, .token_id = sample->token_id, .position = position,
        .logprob = sample->logprob, .num_top_logprobs = sample->num_top, .top_logprobs = sample->num_top ? top : NULL,
        .stop_token_id = -1,
    };
}

static bool has_id(const int32_t *ids, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

static void finish_if_done(mf_engine *e, mf_live_request *r, int64_t now_ns)
{
    const mf_sampling_params *p = &r->sampling;
    int32_t num_made = mf_live_request_num_made(r);
    int32_t last = r->tokens[r->num_tokens - 1];
    if (num_made > 0 && !p->ignore_eos && has_id(e->model.eos_token_ids, e->model.num_eos_token_ids, last)) {
        finish(e, r, MF_FINISH_STOP, now_ns);
    } else if (num_made > 0 && has_id(p->stop_token_ids, p->num_stop_token_ids, last)) {
        r->stop_token_id = last;
        finish(e, r, MF_FINISH_STOP, now_ns);
    } else if (num_made >= p->max_tokens) {
        finish(e, r, MF_FINISH_LENGTH, now_ns);
    }
}

static void sample_token(mf_engine *e, mf_live_request *r, const float *logits, mf_logprob *top, int64_t now_ns)
{
    if (r->sampling.max_tokens == 0) {
        finish_if_done(e, r, now_ns);
        return;
    }
    mf_sample_context context = {
        .params = &r->sampling, .tokens = r->tokens, .num_prompt_tokens = r->num_prompt_tokens, .num_tokens = r->num_tokens,
        .eos_token_ids = e->model.eos_token_ids, .num_eos_token_ids = e->model.num_eos_token_ids, .seed = r->seed,
    };
    mf_sample sample;
    if (!mf_sampler_sample(e->sampler, logits, &context, &sample, top)) {
        finish(e, r, MF_FINISH_ERROR, now_ns);
        return;
    }
    if (r->first_token_ns == 0) {
        r->first_token_ns = now_ns;
    }
    r->last_token_ns = now_ns;
    add_token_event(e, r, MF_EVENT_TOKEN, r->num_tokens, &sample, top);
    r->tokens[r->num_tokens++] = sample.token_id;
    e->generation_tokens++;
    finish_if_done(e, r, now_ns);
}

static void tell_prompt_row(mf_engine *e, mf_live_request *r, int32_t position, const float *logits, mf_logprob *top,
                            int64_t now_ns)
{
    mf_sample sample;
    if (!mf_sampler_logprobs(e->sampler, logits, r->tokens[position + 1], r->sampling.prompt_logprobs, &sample, top)) {
        finish(e, r, MF_FINISH_ERROR, now_ns);
        return;
    }
    add_token_event(e, r, MF_EVENT_PROMPT_LOGPROB, position + 1, &sample, top);
    r->num_prompt_rows = position + 1;
}

static void use_rows(mf_engine *e, int32_t num_uses)
{
    int64_t now_ns = mf_now_ns();
    const mf_scheduler *s = &e->scheduler;
    for (int32_t i = 0; i < s->num_planned; i++) {
        mf_live_request *r = s->planned[i];
        r->num_computed += r->num_scheduled;
        mf_kv_commit(e->kv, &r->kv, r->tokens, r->num_computed);
    }
    for (int32_t i = 0; i < num_uses; i++) {
        mf_live_request *r = e->uses[i].request;
        if (r->state != MF_REQUEST_RUNNING) {
            continue; /* ended by an earlier row of this step */
        }
        const float *logits = e->logits + (size_t)i * (size_t)e->model.vocab_size;
        mf_logprob *top = e->top + (size_t)i * MF_MAX_LOGPROBS;
        if (e->uses[i].samples) {
            sample_token(e, r, logits, top, now_ns);
        } else {
            tell_prompt_row(e, r, e->uses[i].position, logits, top, now_ns);
        }
    }
}

static mf_status run_batch(mf_engine *e, mf_error *err)
{
    mf_scheduler *s = &e->scheduler;
    mf_batch batch;
    int32_t num_uses = make_batch(e, &batch);
    e->num_steps++;
    e->computed_tokens += batch.num_tokens;
    e->last_decode_tokens = s->num_planned_decodes;
    e->last_prefill_tokens = batch.num_tokens - s->num_planned_decodes;
    mf_status status = e->model.forward(e->model.context, &batch, e->logits, err);
    if (status != MF_OK) {
        int64_t now_ns = mf_now_ns();
        for (int32_t i = 0; i < s->num_planned; i++) {
            finish(e, s->planned[i], MF_FINISH_ERROR, now_ns);
        }
        return status;
    }
    use_rows(e, num_uses);
    return MF_OK;
}

/* ---- events ------------------------------------------------------------------------------------------------------- */

static double seconds(int64_t from_ns, int64_t to_ns)
{
    return from_ns != 0 && to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0.0;
}

static mf_event finished_event(const mf_live_request *r)
{
    bool has_token = r->first_token_ns != 0;
    return (mf_event){
        .type = MF_EVENT_FINISHED, .finish_reason = r->finish_reason, .request_id = r->id, .user_data = r->user_data,
        .token_id = -1, .position = r->num_tokens, .logprob = NAN, .stop_token_id = r->stop_token_id,
        .prompt_tokens = r->num_prompt_tokens, .cached_tokens = r->num_cached,
        .completion_tokens = mf_live_request_num_made(r),
        .queue_s = seconds(r->submitted_ns, r->started_ns ? r->started_ns : r->finished_ns),
        .prefill_s = seconds(r->started_ns, has_token ? r->first_token_ns : r->finished_ns),
        .ttft_s = has_token ? seconds(r->submitted_ns, r->first_token_ns) : 0.0,
        .decode_s = seconds(r->first_token_ns, r->last_token_ns),
    };
}

/* A request's tokens always come before its end: ends are handed out once no token waits. */
static void hand_out(mf_engine *e, mf_event *events, int32_t capacity, int32_t *num_events)
{
    int32_t n = 0;
    while (n < capacity && e->num_events_read < e->num_events) {
        events[n++] = e->events[e->num_events_read++];
    }
    while (n < capacity && e->scheduler.finished.head) {
        const mf_live_request *r = e->scheduler.finished.head;
        e->num_finished[r->finish_reason]++;
        events[n++] = finished_event(r);
        mf_scheduler_drop_finished(&e->scheduler);
    }
    *num_events = n;
}

/* ---- checks ------------------------------------------------------------------------------------------------------- */

mf_status mf_engine_check(mf_engine *e, mf_error *err)
{
    return mf_scheduler_check(&e->scheduler, err);
}

/* After each step in builds that check; else when the last request has ended.  A violation costs recomputation, never the
 * process. */
static void check_and_repair(mf_engine *e)
{
    bool is_idle = e->scheduler.num_running == 0 && e->scheduler.queue.count == 0;
    bool just_idle = is_idle && !e->was_idle;
    e->was_idle = is_idle;
    if (!check_each_step && !just_idle) {
        return;
    }
    mf_error violation = { 0 };
    if (mf_engine_check(e, &violation) != MF_OK) {
        e->num_violations++;
        mf_log(MF_LOG_ERROR, "invariant violated, KV pool rebuilt: %s", violation.message);
        mf_scheduler_rebuild(&e->scheduler);
    }
}

mf_status mf_engine_step(mf_engine *e, mf_event *events, int32_t capacity, int32_t *num_events, mf_error *err)
{
    *num_events = 0;
    if (capacity < 1 || !events) {
        return mf_fail(err, MF_ERR_INVALID, "events: expected room for 1 or more; got %d", capacity);
    }
    mf_status status = MF_OK;
    if (e->num_events_read == e->num_events) {
        e->num_events = 0;
        e->num_events_read = 0;
        int64_t now_ns = mf_now_ns();
        mf_scheduler_expire(&e->scheduler, now_ns);
        mf_scheduler_plan(&e->scheduler, now_ns);
        e->is_stalled = e->scheduler.num_planned == 0;
        if (!e->is_stalled) {
            status = run_batch(e, err);
        }
        check_and_repair(e);
    }
    hand_out(e, events, capacity, num_events);
    return status;
}

int32_t mf_engine_has_work(const mf_engine *e)
{
    const mf_scheduler *s = &e->scheduler;
    return e->num_events_read < e->num_events || s->finished.count > 0 ||
           (!e->is_stalled && s->num_running + s->queue.count > 0);
}

void mf_engine_reset_prefix_cache(mf_engine *e)
{
    mf_kv_drop_cached(e->kv);
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
