/* sampler.h - one row of logits to one token id, and log-probabilities.
 *
 * Order of steps as in vLLM: the guide's mask, allowed ids, bad words, min_tokens, logit bias, penalties, temperature, min_p, top_k, top_p.
 * Everything is summed in a fixed order and exp and log are our own, so a row gives the same id on every machine. */
#ifndef MF_ENGINE_SAMPLER_H
#define MF_ENGINE_SAMPLER_H

#include <stdbool.h>

#include "base/error.h"
#include "moefuse_engine.h"

#define MF_SAMPLER_GREEDY_BELOW 1e-5 /* temperatures under it, as in vLLM */

typedef struct mf_sampler mf_sampler; /* scratch memory for one thread */

/* Ids in [num_sampled_ids, vocab_size) take part in log-probabilities' sums and are otherwise ignored. */
mf_status mf_sampler_open(int32_t vocab_size, int32_t num_sampled_ids, mf_sampler **sampler, mf_error *err);
void mf_sampler_close(mf_sampler **sampler);

typedef struct mf_sample_context {
    const mf_sampling_params *params;
    const int32_t *tokens; /* prompt, then what was made so far */
    int32_t num_prompt_tokens, num_tokens;
    const int32_t *eos_token_ids;
    int32_t num_eos_token_ids;
    uint64_t seed;         /* with the position it gives the random number */
    const mf_guide *guide; /* asked which ids may come; NULL = all.  accept is the caller's to call */
} mf_sample_context;

/* What mf_sampler_sample and mf_sampler_logprobs tell of a token. */
typedef struct mf_sample {
    int32_t token_id;
    float logprob;      /* NaN when not asked for */
    int32_t rank;       /* 1 = the best; 0 = not asked for */
    int32_t num_top;
} mf_sample;

/* Chooses a token from a row `logits` [vocab_size].  With params->logprobs >= 0 fills logprob and top[0..logprobs).
 * false: the row holds a NaN or +infinity, or no id is left to choose. */
bool mf_sampler_sample(mf_sampler *sampler, const float *logits, const mf_sample_context *context, mf_sample *sample,
                       mf_logprob *top);

/* Whether that is the lowest id of the largest logit, and nothing else is asked for. */
bool mf_sampler_is_largest(const mf_sample_context *context);

/* The log-probability and rank of token_id, and the num_top best ids.  false as above. */
bool mf_sampler_logprobs(const mf_sampler *sampler, const float *logits, int32_t token_id, int32_t num_top, mf_sample *sample,
                         mf_logprob *top);

/* Whether the completion ends with these tokens. */
bool mf_sampler_ends_with(const mf_sample_context *context, const int32_t *ids, int32_t n);

/* Uniform in [0, 1): depends on seed and position alone. */
double mf_sampler_uniform(uint64_t seed, int64_t position);

#endif
