/* eval_items.h - the questions of an evaluation, the prompts made of them, and what came of each. */
#ifndef MF_CLI_EVAL_ITEMS_H
#define MF_CLI_EVAL_ITEMS_H

#include "text/prompt.h"

typedef enum mf_eval_task { MF_EVAL_GENERATE = 0, MF_EVAL_CHOICE } mf_eval_task;

enum { MF_EVAL_MAX_CHOICES = 64 };

/* One request: a generate item's, or one choice of a choice item. */
typedef struct mf_eval_unit {
    int32_t item, choice;
    char *text;          /* the prompt as text; NULL in a chat over HTTP */
    json_t *messages;    /* a chat over HTTP */
    mf_ids ids;          /* the prompt; a choice's continuation included; empty where the server encodes */
    int32_t context_len; /* choice: ids before the continuation */
    /* results */
    mf_buffer output; /* generated text */
    int32_t *out_ids; /* generated, or the continuation's */
    float *logprobs;  /* of out_ids; in-process only */
    int32_t num_out, out_room;
    double loglikelihood; /* choice */
    int64_t num_tokens;   /* made (generate) or scored (choice) */
    bool done;
} mf_eval_unit;

typedef struct mf_eval_item {
    const json_t *entry;           /* of the file */
    const char *question, *answer; /* generate */
    int32_t num_choices, gold;     /* choice */
    int32_t first_unit;
    bool correct[3]; /* generate: strict, flexible; choice: acc, acc_norm (per character), acc_bytes */
    int32_t picked[3];
} mf_eval_item;

typedef struct mf_eval_options {
    mf_eval_task task;
    bool task_given;
    const char *data, *fewshot; /* files */
    int64_t num_shots, limit;   /* limit 0 = all */
    bool chat;
    const char *prompt_format; /* with {question}; NULL: "Question: {question}\nAnswer:", in a chat "{question}" */
    bool add_special_tokens;   /* before a prompt that is no chat */
} mf_eval_options;

typedef struct mf_eval_set {
    mf_eval_task task;
    json_t *entries, *shots;
    mf_eval_item *items;
    int32_t num_items;
    mf_eval_unit *units;
    int32_t num_units;
} mf_eval_set;

/* Reads the file; the task is that of its first line unless given. */
mf_status mf_eval_set_load(const mf_eval_options *options, mf_eval_set *out, mf_error *err);
/* Makes each unit's prompt: ids where `prompt` is given (tokenizer, template), else text or messages for a server to
 * encode. A choice is scored by ids and needs the tokenizer. */
mf_status mf_eval_set_prompts(const mf_eval_options *options, const mf_prompt *prompt, mf_eval_set *set, mf_error *err);
/* Judges every item by its units' results. */
mf_status mf_eval_set_judge(mf_eval_set *set, mf_error *err);
void mf_eval_set_forget(mf_eval_set *set); /* results only: for a second run */
void mf_eval_set_close(mf_eval_set *set);

int32_t mf_eval_num_measures(const mf_eval_set *set);
const char *mf_eval_measure_name(const mf_eval_set *set, int32_t measure); /* "strict", "flexible", "acc", ... */
int32_t mf_eval_num_correct(const mf_eval_set *set, int32_t measure);

/* Room for one more generated token; MF_ERR_NOMEM. */
mf_status mf_eval_unit_push(mf_eval_unit *unit, int32_t id, float logprob, mf_error *err);

/* The first unit whose ids or log-probability bits are not those of its like in b; -1 for none.  *position within
 * out_ids (or the length of the shorter); *num_differing counts all. */
int32_t mf_eval_first_difference(const mf_eval_set *a, const mf_eval_set *b, int32_t *position, int32_t *num_differing);

#endif
