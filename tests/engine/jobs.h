/* jobs.h - requests with their answers: what the engine said, and what a plain loop over one sequence says. */
#ifndef MF_TESTS_JOBS_H
#define MF_TESTS_JOBS_H

#include "engine/engine.h"
#include "engine/sampler.h"
#include "fake_model.h"
#include "test.h"

enum { JOB_MAX_TOKENS = 96, JOB_MAX_TOP = 4 };

typedef struct answer {
    int32_t tokens[JOB_MAX_TOKENS];
    float logprobs[JOB_MAX_TOKENS];
    mf_logprob top[JOB_MAX_TOKENS][JOB_MAX_TOP];
    int32_t num_top[JOB_MAX_TOKENS];
    int32_t num_tokens;
    float prompt_logprobs[JOB_MAX_TOKENS];
    mf_logprob prompt_top[JOB_MAX_TOKENS][JOB_MAX_TOP];
    int32_t num_prompt_logprobs;
    mf_finish_reason reason;
    int32_t stop_token_id;
} answer;

/* A guide whose mask is a hash of what it accepted; every few steps it allows EOS alone, or nothing. */
typedef struct fake_guide {
    uint64_t state;
    int32_t num_fills, num_accepts, num_releases;
    int32_t is_inside; /* no two calls at once */
} fake_guide;

mf_guide fake_guide_table(fake_guide *guide);

typedef struct job {
    mf_request request; /* its arrays point into this struct */
    int32_t prompt[JOB_MAX_TOKENS];
    int32_t stop_ids[4], allowed_ids[24], bad_words[4], bad_word_lengths[2];
    mf_logit_bias bias[4];
    uint64_t id;
    bool is_done;
    bool is_cancelled; /* or cut short by a failing device */
    mf_event end; /* FINISHED */
    answer got, expected;
    fake_guide guide;
    uint64_t guide_seed; /* 0 = no guide */
} job;

/* A greedy request for n tokens. */
void job_init(job *j, const int32_t *prompt, int32_t num_prompt, int32_t max_tokens);
/* Anything the fields allow, with a seed; prompts share prefixes.  prompt + max_tokens <= max_len. */
void job_random(job *j, uint64_t *random, int32_t max_len);

/* Fills expected: one sequence, no store, no engine. */
void job_expect(job *j, const fake_model *fake, mf_sampler *sampler, int32_t max_len);

/* Takes the events of one step; jobs are found by user_data. */
void jobs_take(const mf_event *events, int32_t n);

/* got equals expected, bit by bit; a cancelled job's is a beginning of it. */
void job_compare(const job *j);

/* Submits, must succeed. */
void job_submit(job *j, mf_engine *engine);
/* Steps, with an invariant check after each, until nothing is left to do. */
void engine_run(mf_engine *engine);

mf_engine *open_fake_engine(fake_model *fake, const mf_engine_options *options, int64_t max_model_len, int32_t num_blocks);

#endif
