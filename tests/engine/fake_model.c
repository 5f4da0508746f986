/* fake_model.c - see fake_model.h. */
#include "fake_model.h"

#include <math.h>
#include <time.h>

#include "base/random.h"
#include "base/sys.h"

static const int32_t eos_ids[] = { FAKE_EOS };

void fake_model_init(fake_model *fake, int32_t max_batch_tokens)
{
    *fake = (fake_model){ .max_batch_tokens = max_batch_tokens, .vocab_size = FAKE_VOCAB, .poison_token = -1 };
}

static uint64_t chain_next(uint64_t chain, int32_t token)
{
    return mf_random_mix(chain * 31 + (uint64_t)token + 1);
}

static uint64_t digest_next(uint64_t digest, const fake_slot *slot)
{
    return mf_random_mix(digest ^ (slot->chain + (uint64_t)slot->token));
}

/* Values in (-4, 4) on a grid of 1/16, so that ties are common. */
static void logits_of(const fake_model *fake, uint64_t digest, bool poisoned, float *logits)
{
    for (int32_t v = 0; v < fake->vocab_size; v++) {
        logits[v] = (float)(mf_random_mix(digest + (uint64_t)v * 0x9e3779b97f4a7c15u) % 128) / 16.0f - 4.0f;
    }
    if (poisoned) {
        logits[3] = NAN;
    }
}

void fake_logits(const fake_model *fake, const int32_t *tokens, int32_t n, float *logits)
{
    uint64_t digest = 0;
    fake_slot slot = { 0 };
    bool poisoned = false;
    for (int32_t i = 0; i < n; i++) {
        slot.token = tokens[i];
        slot.chain = chain_next(slot.chain, tokens[i]);
        digest = digest_next(digest, &slot);
        poisoned = poisoned || tokens[i] == fake->poison_token;
    }
    logits_of(fake, digest, poisoned, logits);
}

static void kv_free(fake_model *fake)
{
    mf_free(fake->slots);
    mf_free(fake->states);
    fake->slots = NULL;
    fake->states = NULL;
}

static mf_status kv_open(void *context, int32_t num_blocks, int32_t block_size, int32_t num_states, mf_error *err)
{
    fake_model *fake = context;
    fake->num_states = num_states;
    fake->states = mf_alloc_array((size_t)num_states, sizeof *fake->states);
    fake->num_blocks = num_blocks;
    fake->block_size = block_size;
    fake->slots = mf_alloc_array((size_t)num_blocks * (size_t)block_size, sizeof *fake->slots);
    if (!fake->slots || !fake->states) {
        kv_free(fake);
        return mf_fail(err, MF_ERR_NOMEM, "fake store: out of memory");
    }
    fake->num_open++;
    return MF_OK;
}

static void kv_close(void *context)
{
    fake_model *fake = context;
    kv_free(fake);
    fake->num_open--;
}

static void close_model(void *context)
{
    fake_model *fake = context;
    fake->num_closed++;
}

static fake_slot *slot_at(const fake_model *fake, const mf_batch *batch, int32_t sequence, int32_t position)
{
    int32_t column = position / fake->block_size;
    int32_t block = column < batch->max_blocks ? batch->block_table[sequence * batch->max_blocks + column] : -1;
    return block >= 0 && block < fake->num_blocks ? &fake->slots[block * fake->block_size + position % fake->block_size]
                                                  : NULL;
}

static mf_status write_row(fake_model *fake, const mf_batch *batch, int32_t row, mf_error *err)
{
    int32_t sequence = batch->sequence[row];
    int32_t position = batch->position[row];
    int32_t token = batch->token_ids[row];
    if (sequence < 0 || sequence >= batch->num_sequences || position < 0 || token < 0 || token >= fake->vocab_size ||
        (row > 0 && batch->sequence[row - 1] == sequence && batch->position[row - 1] + 1 != position)) {
        return mf_fail(err, MF_ERR_INVALID, "row %d: token %d, position %d, sequence %d", row, token, position, sequence);
    }
    fake_slot *slot = slot_at(fake, batch, sequence, position);
    const fake_slot *before = position > 0 ? slot_at(fake, batch, sequence, position - 1) : NULL;
    if (!slot || (position > 0 && !before)) {
        return mf_fail(err, MF_ERR_INVALID, "row %d: position %d has no block", row, position);
    }
    uint64_t chain = before ? before->chain : 0;
    if (fake->has_states) {
        const int32_t state_slot = batch->state_slot[sequence];
        fake_state *state = state_slot >= 0 && state_slot < fake->num_states ? &fake->states[state_slot] : NULL;
        if (state && position == 0) {
            *state = (fake_state){ 0 };
        }
        if (!state || state->length != position) {
            return mf_fail(err, MF_ERR_INVALID, "row %d: position %d, but state %d has taken in %d tokens", row, position,
                           state_slot, state ? state->length : -1);
        }
        state->length++;
        state->chain = chain_next(state->chain, token);
        slot->token = token;
        slot->chain = state->chain;
        return MF_OK;
    }
    slot->token = token;
    slot->chain = chain_next(chain, token);
    return MF_OK;
}

/* The lowest id of the largest number; the logits are then not given. */
static void pick(const fake_model *fake, const mf_batch *batch, int32_t i, float *logits)
{
    int32_t best = 0;
    bool is_good = true;
    for (int32_t v = 0; v < fake->vocab_size; v++) {
        is_good = is_good && logits[v] < INFINITY;
        best = v < batch->num_best_ids && logits[v] > logits[best] ? v : best;
    }
    batch->best[i] = is_good ? best : -1;
    for (int32_t v = 0; v < fake->vocab_size; v++) {
        logits[v] = 0.0f;
    }
}

/* What a device does with a pick, by the sampler itself; the row's logits are then not given. */
static void answer_pick(fake_model *fake, const mf_batch *batch, int32_t i, float *logits)
{
    const mf_pick *p = &batch->picks[i];
    mf_picked *out = &batch->picked[i];
    mf_logprob top[MF_PICK_MOST_TOP];
    mf_sample sample;
    mf_sample described;
    *out = (mf_picked){ .state = MF_PICKED_LOGITS };
    if (p->kind == MF_PICK_LOGITS || (batch->position[batch->logit_rows[i]] + i) % 5 == 0) {
        return;
    }
    float row[FAKE_VOCAB];
    memcpy(row, logits, sizeof row);
    for (int32_t k = 0; k < p->num_changes; k++) {
        const mf_pick_change *change = &batch->changes[p->first_change + k];
        row[change->token_id] = mf_pick_changed(p, change, row[change->token_id]);
    }
    const mf_sampling_params params = { .temperature = p->temperature, .top_p = p->top_p, .top_k = p->top_k,
                                        .min_p = (double)p->min_p, .repetition_penalty = 1.0, .logprobs = -1 };
    const mf_sample_context context = { .params = &params, .num_tokens = (int32_t)p->position,
                                        .num_prompt_tokens = (int32_t)p->position, .seed = p->seed };
    sample.token_id = p->token_id;
    bool is_good = p->kind == MF_PICK_DESCRIBE || mf_sampler_sample(fake->picks, row, &context, &sample, NULL);
    is_good = is_good && mf_sampler_logprobs(fake->picks, logits, sample.token_id, p->num_top > 0 ? p->num_top : 0, &described, top);
    out->state = is_good ? MF_PICKED : MF_PICKED_NONE;
    if (is_good) {
        out->token_id = sample.token_id;
        out->logprob = described.logprob;
        out->rank = p->kind == MF_PICK_DESCRIBE ? described.rank : 0;
        out->num_top = described.num_top;
        for (int32_t k = 0; k < described.num_top; k++) {
            out->top_ids[k] = top[k].token_id;
            out->top_logprobs[k] = top[k].logprob;
        }
    }
    fake->num_picked++;
    memset(logits, 0, sizeof row);
}

static mf_status forward(void *context, const mf_batch *batch, float *logits, mf_error *err)
{
    fake_model *fake = context;
    fake->num_forwards++;
    for (int32_t i = 0; i < fake->num_beats; i++) {
        nanosleep(&(struct timespec){ .tv_nsec = fake->beat_ms * 1000000L }, NULL);
        if (batch->beat) {
            batch->beat(batch->beat_context);
        }
    }
    if (batch->num_tokens < 1 || batch->num_tokens > fake->max_batch_tokens) {
        return mf_fail(err, MF_ERR_INVALID, "%d rows of at most %d", batch->num_tokens, fake->max_batch_tokens);
    }
    if (fake->fail_countdown > 0 && --fake->fail_countdown == 0) {
        return mf_fail(err, MF_ERR_DEVICE, "the device is gone");
    }
    fake->largest_batch = batch->num_tokens > fake->largest_batch ? batch->num_tokens : fake->largest_batch;
    fake->largest_num_sequences =
        batch->num_sequences > fake->largest_num_sequences ? batch->num_sequences : fake->largest_num_sequences;
    fake->largest_num_logit_rows =
        batch->num_logit_rows > fake->largest_num_logit_rows ? batch->num_logit_rows : fake->largest_num_logit_rows;
    for (int32_t i = 0; i < batch->num_sequences * batch->max_blocks; i++) {
        if (batch->block_table[i] < 0 || batch->block_table[i] >= fake->num_blocks) {
            return mf_fail(err, MF_ERR_INVALID, "block_table[%d] is %d", i, batch->block_table[i]);
        }
    }
    for (int32_t row = 0; row < batch->num_tokens; row++) {
        MF_TRY(write_row(fake, batch, row, err));
    }
    for (int32_t i = 0; i < batch->num_logit_rows; i++) {
        int32_t row = batch->logit_rows[i];
        if (row < 0 || row >= batch->num_tokens || (i > 0 && row <= batch->logit_rows[i - 1])) {
            return mf_fail(err, MF_ERR_INVALID, "logit row %d out of order", row);
        }
        uint64_t digest = 0;
        bool poisoned = false;
        for (int32_t p = 0; p <= batch->position[row]; p++) {
            const fake_slot *slot = slot_at(fake, batch, batch->sequence[row], p);
            digest = digest_next(digest, slot);
            poisoned = poisoned || slot->token == fake->poison_token;
        }
        float *out = logits + (size_t)i * (size_t)fake->vocab_size;
        logits_of(fake, digest, poisoned, out);
        if (batch->best) {
            pick(fake, batch, i, out);
        } else if (batch->picks) {
            answer_pick(fake, batch, i, out);
        }
    }
    fake->num_picks += batch->best != NULL;
    return MF_OK;
}

mf_engine_model fake_model_table(fake_model *fake, int64_t max_model_len)
{
    return (mf_engine_model){
        .context = fake, .vocab_size = fake->vocab_size, .max_model_len = max_model_len,
        .max_batch_tokens = fake->max_batch_tokens, .eos_token_ids = eos_ids, .num_eos_token_ids = 1, .has_states = fake->has_states,
        .picks_best = fake->picks_best, .picks = fake->picks != NULL, .kv_open = kv_open,
        .kv_close = kv_close, .forward = forward, .close = close_model,
    };
}
