/* answers.h - asks the shipped model a list of questions, many at a time, greedily, and keeps ids, text and log-probabilities. */
#ifndef MF_TESTS_SHIPPED_ANSWERS_H
#define MF_TESTS_SHIPPED_ANSWERS_H

#include <stdbool.h>
#include <stdint.h>

#include "moefuse_engine.h"

typedef struct answer {
    char *question;
    char *expected;    /* the reference answer's text after "####" */
    int32_t *ids;      /* made tokens */
    float *logprobs;
    int32_t num_ids;
    char *text;
    bool correct;      /* first "#### N" of the text equals `expected`, commas, $ and a final point removed */
} answer;

typedef struct answers {
    answer *items;
    int32_t count;
    int32_t num_correct;
    int64_t num_tokens;
    double seconds;
} answers;

typedef struct answer_options {
    const char *model_dir, *questions; /* folder; JSONL of {"question", "answer"} */
    int32_t limit, max_tokens, threads, max_num_seqs;
    bool disable_fusion, disable_fused_gate;
    int32_t replicas;
    bool auto_dtype; /* activations and KV cache as the program chooses them by default; else f32 */
} answer_options;

mf_status answers_make(const answer_options *options, answers *out, mf_error *err);
void answers_free(answers *a);

#endif
