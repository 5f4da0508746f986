/* picks.c - see picks.h. */
#include "engine/picks.h"

#include <math.h>
#include <string.h>

#include "base/sys.h"

enum { MOST_CHANGES = 1 << 18 };

mf_status mf_picks_open(mf_picks *p, int32_t vocab_size, int32_t num_ids, int32_t most, mf_error *err)
{
    *p = (mf_picks){ .vocab_size = vocab_size, .num_ids = num_ids, .most = most, .most_changes = MOST_CHANGES };
    p->list = mf_alloc_array((size_t)most, sizeof *p->list);
    p->picked = mf_alloc_array((size_t)most, sizeof *p->picked);
    p->changes = mf_alloc(MOST_CHANGES * sizeof *p->changes); /* untouched pages cost nothing */
    p->places = mf_alloc_array((size_t)vocab_size, sizeof *p->places);
    return p->list && p->picked && p->changes && p->places
               ? MF_OK
               : mf_fail(err, MF_ERR_NOMEM, "engine: out of memory for %d picks", most);
}

void mf_picks_close(mf_picks *p)
{
    mf_free(p->list);
    mf_free(p->picked);
    mf_free(p->changes);
    mf_free(p->places);
    *p = (mf_picks){ 0 };
}

/* ---- changes of a row ---- */

static mf_pick_change *change_of(mf_picks *p, int32_t first, int32_t id)
{
    if (p->places[id] == 0) {
        if (p->num_changes == p->most_changes) {
            return NULL;
        }
        p->changes[p->num_changes++] = (mf_pick_change){ .token_id = id };
        p->places[id] = p->num_changes - first;
    }
    return &p->changes[first + p->places[id] - 1];
}

static bool forbid(mf_picks *p, int32_t first, const int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        mf_pick_change *change = change_of(p, first, ids[i]);
        if (!change) {
            return false;
        }
        change->is_forbidden = 1;
    }
    return true;
}

static bool add_biases(mf_picks *p, int32_t first, const mf_sampling_params *params)
{
    for (int32_t i = 0; i < params->num_logit_bias; i++) {
        mf_pick_change *change = change_of(p, first, params->logit_bias[i].token_id);
        if (!change || change->bias != 0.0f) {
            return false; /* a sum of biases would round differently */
        }
        change->bias = params->logit_bias[i].bias;
    }
    return true;
}

static bool add_seen(mf_picks *p, int32_t first, const mf_sample_context *c)
{
    for (int32_t i = 0; i < c->num_tokens; i++) {
        mf_pick_change *change = change_of(p, first, c->tokens[i]);
        if (!change) {
            return false;
        }
        change->is_seen = 1;
        change->count += i >= c->num_prompt_tokens;
    }
    return true;
}

static bool add_changes(mf_picks *p, int32_t first, const mf_sample_context *c)
{
    const mf_sampling_params *params = c->params;
    int32_t word = 0;
    for (int32_t i = 0; i < params->num_bad_words; i++) {
        const int32_t *ids = params->bad_words + word, last = params->bad_word_lengths[i] - 1;
        if (mf_sampler_ends_with(c, ids, last) && !forbid(p, first, ids + last, 1)) {
            return false;
        }
        word += last + 1;
    }
    if (c->num_tokens - c->num_prompt_tokens < params->min_tokens &&
        !(forbid(p, first, c->eos_token_ids, c->num_eos_token_ids) &&
          forbid(p, first, params->stop_token_ids, params->num_stop_token_ids))) {
        return false;
    }
    const bool penalises =
        params->repetition_penalty != 1.0 || params->presence_penalty != 0.0 || params->frequency_penalty != 0.0;
    return add_biases(p, first, params) && (!penalises || add_seen(p, first, c));
}

/* ---- rows ---- */

void mf_picks_add_sample(mf_picks *p, const mf_sample_context *c)
{
    const mf_sampling_params *params = c->params;
    const int32_t first = p->num_changes;
    const bool is_greedy = params->temperature < MF_SAMPLER_GREEDY_BELOW;
    bool fits = !c->guide && params->num_allowed_token_ids == 0 &&
                (is_greedy || params->min_p == 0.0 || params->top_k <= MF_PICK_FEW || params->top_k >= p->num_ids);
    fits = fits && add_changes(p, first, c);
    for (int32_t i = first; i < p->num_changes; i++) {
        p->places[p->changes[i].token_id] = 0;
    }
    p->num_changes = fits ? p->num_changes : first;
    p->list[p->num++] = (mf_pick){ .kind = fits ? MF_PICK_CHOOSE : MF_PICK_LOGITS,
                                   .temperature = is_greedy ? 0.0 : params->temperature,
                                   .top_p = params->top_p,
                                   .top_k = params->top_k,
                                   .min_p = (float)params->min_p,
                                   .seed = c->seed,
                                   .position = c->num_tokens,
                                   .repetition_penalty = (float)params->repetition_penalty,
                                   .frequency_penalty = (float)params->frequency_penalty,
                                   .presence_penalty = (float)params->presence_penalty,
                                   .num_top = params->logprobs,
                                   .first_change = first,
                                   .num_changes = p->num_changes - first };
}

void mf_picks_add_logprobs(mf_picks *p, int32_t token_id, int32_t num_top)
{
    p->list[p->num++] = (mf_pick){ .kind = MF_PICK_DESCRIBE, .token_id = token_id, .num_top = num_top };
}

bool mf_picks_take(const mf_picks *p, int32_t i, mf_sample *sample, mf_logprob *top)
{
    const mf_picked *picked = &p->picked[i];
    const bool describes = p->list[i].num_top >= 0;
    if (picked->state != MF_PICKED) {
        return false;
    }
    *sample = (mf_sample){ .token_id = picked->token_id,
                           .logprob = describes ? picked->logprob : NAN,
                           .rank = picked->rank,
                           .num_top = picked->num_top };
    for (int32_t k = 0; k < picked->num_top; k++) {
        top[k] = (mf_logprob){ .token_id = picked->top_ids[k], .logprob = picked->top_logprobs[k] };
    }
    return true;
}
