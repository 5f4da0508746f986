/* serve_model.h - what the request side knows of the served model.  Read-only once the model is ready: any thread may use it. */
#ifndef MF_SERVER_SERVE_MODEL_H
#define MF_SERVER_SERVE_MODEL_H

#include "moefuse_engine.h"
#include "text/guide.h"
#include "text/prompt.h"

typedef struct mf_serve_model {
    const mf_prompt *prompt;  /* tokenizer and template */
    const mf_guide_vocab *guide_vocab; /* NULL: requests with a constraint get 501 */
    const char *const *names; /* [num_names] that a request may say; the first is reported */
    int32_t num_names;
    const char *family;       /* model_type of config.json: how it writes tool calls */
    int64_t max_model_len;
    int32_t vocab_size;       /* ids of requests are below it */
    const int32_t *eos_token_ids;
    int32_t num_eos_token_ids;
    /* From the generation config; NaN or -1 = it says nothing. */
    double default_temperature, default_top_p, default_min_p, default_repetition_penalty;
    int32_t default_top_k;
    int32_t default_max_tokens; /* -1: none */
    /* Limits of the command line */
    int32_t max_logprobs, max_sequences_per_request;
    bool trust_request_chat_template;
    double request_timeout_s; /* 0 = none */
} mf_serve_model;

#endif
