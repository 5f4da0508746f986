/* token_logprobs.h - the `logprobs` objects of answers, grown token by token as JSON text.
 *
 * Each log-probability is printed by one function from one float, so equal values are equal text: a client may ask
 * whether token_logprobs[i] is the largest of top_logprobs[i]. */
#ifndef MF_SERVER_TOKEN_LOGPROBS_H
#define MF_SERVER_TOKEN_LOGPROBS_H

#include "moefuse_engine.h"
#include "server/json_out.h"
#include "text/tokenizer.h"

/* How tokens are shown. */
typedef struct mf_token_names {
    const mf_tokenizer *tokenizer; /* NULL: ids only */
    bool as_ids;                   /* return_tokens_as_token_ids: "token_id:17" */
    bool skip_special;             /* special tokens take no room in the text */
} mf_token_names;

/* A token's text; "bytes:\xe2\x9c" when its bytes are no UTF-8; "token_id:17" when it has none or ids are wanted.
 * Appends without quotes, escaped for JSON. */
void mf_token_name_write(const mf_token_names *names, int32_t id, mf_json_out *out);

/* Completions: {tokens, token_logprobs, top_logprobs, text_offset}.  Chat: {content: [...]}. */
typedef struct mf_logprob_lists {
    bool is_chat;
    int32_t num_top;  /* shown per token */
    int32_t count;    /* entries */
    int64_t offset;   /* characters of text before the next token */
    mf_buffer tokens; /* chat: the content entries */
    mf_buffer values, tops, offsets;
    mf_buffer scratch; /* keys of one entry */
} mf_logprob_lists;

/* NaN: the value is null, and so is its top_logprobs entry: the first token of a prompt. */
mf_status mf_logprob_lists_add(mf_logprob_lists *lists, const mf_token_names *names, int32_t id, float logprob,
                               const mf_logprob *top, int32_t num_top);
void mf_logprob_lists_write(const mf_logprob_lists *lists, mf_json_out *out);
void mf_logprob_lists_clear(mf_logprob_lists *lists); /* the next entries go on at the same offset */
void mf_logprob_lists_close(mf_logprob_lists *lists);

/* One entry of vLLM's prompt_logprobs: {"17": {"logprob": -1.5, "rank": 1, "decoded_token": " a"}, ...}; also for a
 * token that is not among the best; rank is its own. */
void mf_prompt_logprob_write(const mf_token_names *names, int32_t id, float logprob, int32_t rank,
                             const mf_logprob *top, int32_t num_top, mf_json_out *out);

#endif
