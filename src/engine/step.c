/* step.c - one step: plan a batch, run it, sample from each sequence's row of logits, end what is done, hand out events. */
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/sys.h"
#include "engine/engine_impl.h"

#ifdef MF_ENGINE_CHECKS
static const bool check_each_step = true;
#else
static const bool check_each_step = false;
#endif

/* ---- the batch ---------------------------------------------------------------------------------------------------- */

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
        e->state_slots[i] = r->state_slot;
        num_rows = add_rows(e, r, i, num_rows, &num_uses);
    }
    *batch = (mf_batch){
        .num_tokens = num_rows, .token_ids = e->token_ids, .position = e->positions, .sequence = e->sequences,
        .block_table = e->block_table, .num_sequences = s->num_planned, .max_blocks = max_blocks, .state_slot = e->state_slots,
        .num_logit_rows = num_uses, .logit_rows = e->logit_rows, .beat = e->beat, .beat_context = e->beat_context,
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
        .logprob = sample->logprob, .rank = sample->rank, .num_top_logprobs = sample->num_top,
        .top_logprobs = sample->num_top ? top : NULL,
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

static mf_sample_context context_of(const mf_engine *e, const mf_live_request *r)
{
    return (mf_sample_context){
        .params = &r->sampling, .tokens = r->tokens, .num_prompt_tokens = r->num_prompt_tokens,
        .num_tokens = r->num_tokens, .eos_token_ids = e->model.eos_token_ids,
        .num_eos_token_ids = e->model.num_eos_token_ids, .seed = r->seed, .guide = r->guide.fill ? &r->guide : NULL,
    };
}

/* Every row of the step wants the largest logit's id and no more: the model may find it. */
static bool wants_largest(const mf_engine *e, int32_t num_uses)
{
    for (int32_t i = 0; i < num_uses; i++) {
        const mf_live_request *r = e->uses[i].request;
        const mf_sample_context c = context_of(e, r);
        if (!e->uses[i].samples || (r->sampling.max_tokens > 0 && !mf_sampler_is_largest(&c))) {
            return false;
        }
    }
    return num_uses > 0;
}

/* What the model's device is to choose of the step's rows.  false: nothing. */
static bool ask_for_picks(mf_engine *e, int32_t num_uses)
{
    mf_picks *picks = &e->picks;
    bool asks = false;
    picks->num = picks->num_changes = 0;
    for (int32_t i = 0; i < num_uses; i++) {
        const mf_live_request *r = e->uses[i].request;
        if (e->uses[i].samples) {
            const mf_sample_context c = context_of(e, r);
            mf_picks_add_sample(picks, &c);
        } else {
            mf_picks_add_logprobs(picks, r->tokens[e->uses[i].position + 1], r->sampling.prompt_logprobs);
        }
        asks = asks || picks->list[i].kind != MF_PICK_LOGITS;
    }
    return asks;
}

/* Rows are sampled side by side: each looks at its own sequence only, which does not change meanwhile, and at its guide, which
 * no other row has.  A preempted request is sampled again only behind its last token, so no token is accepted twice. */
static void sample_row(void *context, int64_t row, int32_t thread)
{
    mf_engine *e = context;
    logit_use *use = &e->uses[row];
    const mf_live_request *r = use->request;
    const float *logits = e->logits + (size_t)row * (size_t)e->model.vocab_size;
    mf_logprob *top = e->top + (size_t)row * MF_MAX_LOGPROBS;
    if (row < e->picks.num && e->picks.picked[row].state != MF_PICKED_LOGITS) {
        use->is_good = mf_picks_take(&e->picks, (int32_t)row, &use->sample, top) ||
                       (use->samples && r->sampling.max_tokens == 0);
    } else if (!use->samples) {
        use->is_good = mf_sampler_logprobs(e->samplers[thread], logits, r->tokens[use->position + 1],
                                           r->sampling.prompt_logprobs, &use->sample, top);
    } else if (r->sampling.max_tokens > 0) {
        mf_sample_context c = context_of(e, r);
        use->is_good = mf_sampler_sample(e->samplers[thread], logits, &c, &use->sample, top);
        if (use->is_good && r->guide.fill) {
            r->guide.accept(r->guide.context, use->sample.token_id);
        }
    } else {
        use->is_good = true; /* the prompt was all */
    }
}

/* Whether a row is left to the samplers: answers alone are not worth waking threads for. */
static bool wants_pool(const mf_engine *e, int32_t num_uses)
{
    for (int32_t i = 0; i < num_uses; i++) {
        if (i >= e->picks.num || e->picks.picked[i].state == MF_PICKED_LOGITS) {
            return true;
        }
    }
    return false;
}

static void take_row(mf_engine *e, const logit_use *use, const mf_logprob *top, int64_t now_ns)
{
    mf_live_request *r = use->request;
    if (r->state != MF_REQUEST_RUNNING) {
        return; /* ended by an earlier row of this step */
    }
    if (!use->is_good) {
        finish(e, r, MF_FINISH_ERROR, now_ns);
    } else if (!use->samples) {
        add_token_event(e, r, MF_EVENT_PROMPT_LOGPROB, use->position + 1, &use->sample, top);
        r->num_prompt_rows = use->position + 1;
    } else {
        if (r->sampling.max_tokens > 0) {
            r->first_token_ns = r->first_token_ns ? r->first_token_ns : now_ns;
            r->last_token_ns = now_ns;
            add_token_event(e, r, MF_EVENT_TOKEN, r->num_tokens, &use->sample, top);
            r->tokens[r->num_tokens++] = use->sample.token_id;
            e->generation_tokens++;
        }
        finish_if_done(e, r, now_ns);
    }
}

static void use_rows(mf_engine *e, int32_t num_uses)
{
    const mf_scheduler *s = &e->scheduler;
    for (int32_t i = 0; i < s->num_planned; i++) {
        mf_live_request *r = s->planned[i];
        r->num_computed += r->num_scheduled;
        mf_kv_commit(e->kv, &r->kv, r->tokens, r->num_computed);
    }
    if (e->is_best) {
        for (int32_t i = 0; i < num_uses; i++) {
            e->uses[i].sample = (mf_sample){ .token_id = e->best[i], .logprob = NAN };
            e->uses[i].is_good = e->best[i] >= 0 || e->uses[i].request->sampling.max_tokens == 0;
        }
    } else {
        mf_pool_run(wants_pool(e, num_uses) ? e->model.pool : NULL, num_uses, sample_row, e);
    }
    int64_t now_ns = mf_now_ns();
    for (int32_t i = 0; i < num_uses; i++) {
        take_row(e, &e->uses[i], e->top + (size_t)i * MF_MAX_LOGPROBS, now_ns);
    }
}

static mf_status run_batch(mf_engine *e, mf_error *err)
{
    mf_scheduler *s = &e->scheduler;
    mf_batch batch;
    int32_t num_uses = make_batch(e, &batch);
    e->is_best = e->model.picks_best && wants_largest(e, num_uses);
    if (e->is_best) {
        batch.best = e->best;
        batch.num_best_ids = e->num_sampled_ids;
    }
    if (!e->is_best && e->model.picks && ask_for_picks(e, num_uses)) {
        batch.picks = e->picks.list;
        batch.changes = e->picks.changes;
        batch.num_changes = e->picks.num_changes;
        batch.picked = e->picks.picked;
        batch.num_best_ids = e->num_sampled_ids;
    } else {
        e->picks.num = 0;
    }
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
