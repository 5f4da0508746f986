/* picks.h - what the sampler would do with rows of logits, put so that the model's device can do it (kernels/pick.h). */
#ifndef MF_ENGINE_PICKS_H
#define MF_ENGINE_PICKS_H

#include "engine/sampler.h"
#include "kernels/pick.h"

typedef struct mf_picks {
    int32_t vocab_size, num_ids;
    int32_t num, most, num_changes, most_changes;
    mf_pick *list;           /* [most] */
    mf_picked *picked;       /* [most] */
    mf_pick_change *changes; /* [most_changes] */
    int32_t *places;         /* [vocab_size]: 1 + an id's place among a row's changes; zero between rows */
} mf_picks;

mf_status mf_picks_open(mf_picks *picks, int32_t vocab_size, int32_t num_ids, int32_t most, mf_error *err);
void mf_picks_close(mf_picks *picks);

/* The next row's wish: what mf_sampler_sample does with the context, or mf_sampler_logprobs with a token.  Rows with a
 * guide, allowed ids, a bias given twice, a large top_k with min_p or more changes than there is room for ask for their
 * logits. */
void mf_picks_add_sample(mf_picks *picks, const mf_sample_context *context);
void mf_picks_add_logprobs(mf_picks *picks, int32_t token_id, int32_t num_top);

/* The answer to row i as the sampler gives it.  false: no id is left, or the row holds a NaN or +infinity. */
bool mf_picks_take(const mf_picks *picks, int32_t i, mf_sample *sample, mf_logprob *top);

#endif
