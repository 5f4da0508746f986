/* engine_impl.h - the engine's state, shared by engine.c (life, requests, telling) and step.c (one step). */
#ifndef MF_ENGINE_ENGINE_IMPL_H
#define MF_ENGINE_ENGINE_IMPL_H

#include "engine/engine.h"
#include "engine/picks.h"
#include "engine/sampler.h"

/* What a row of logits is for. */
typedef struct logit_use {
    mf_live_request *request;
    int32_t position; /* the row's; it tells of the token after it */
    bool samples;     /* else it is a prompt row */
    bool is_good;     /* no NaN, no infinity */
    mf_sample sample;
} logit_use;

struct mf_engine {
    mf_engine_model model;
    const mf_model *real_model; /* NULL under tests */
    bool has_store;
    mf_request_limits limits;
    mf_kv_cache *kv;
    mf_sampler **samplers; /* [num_samplers], one per thread of the model's pool */
    int32_t num_samplers;
    mf_scheduler scheduler;
    uint64_t seed;
    void (*beat)(void *context); /* see mf_engine_set_beat */
    void *beat_context;

    /* The batch */
    int32_t *token_ids, *positions, *sequences; /* [max_num_batched_tokens] */
    int32_t *block_table;                       /* [max_num_seqs, blocks of max_model_len] */
    int32_t *state_slots;                       /* [max_num_seqs] */
    int32_t max_rows;
    int32_t *logit_rows;                        /* [max_rows] */
    logit_use *uses;                            /* [max_rows] */
    float *logits;                              /* [max_rows, vocab_size] */
    bool has_model_logits;                      /* from the model's alloc_logits */
    int32_t *best;                              /* [max_rows]: of steps whose rows only want the largest logit */
    bool is_best;                               /* the step at hand is one */
    mf_picks picks;                             /* of steps whose rows want more, where the model's device chooses */
    int32_t num_sampled_ids;
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

#endif
