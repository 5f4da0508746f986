/* answer.h - the JSON of answers: whole bodies, and the events of a stream.  Field names and order are the contract
 * with clients; nothing here knows how an answer came about. */
#ifndef MF_SERVER_ANSWER_H
#define MF_SERVER_ANSWER_H

#include "server/api_request.h"
#include "server/token_logprobs.h"

/* What stands first in each body and event of one call: {"id":...,"object":...,"created":...,"model":... */
mf_status mf_answer_write_head(mf_api_kind kind, bool stream, const char *request_id, int64_t created,
                               const char *model, mf_buffer *head);

typedef enum mf_stop_kind { MF_STOP_NULL = 0, MF_STOP_TEXT, MF_STOP_ID } mf_stop_kind;

typedef struct mf_answer_choice {
    int32_t index;
    const char *text;
    size_t text_size;
    const mf_logprob_lists *logprobs; /* NULL: null */
    const char *finish_reason;        /* NULL: null */
    mf_stop_kind stop_kind;
    const char *stop_text;
    int32_t stop_id;
    const mf_buffer *prompt_logprobs; /* the list's entries; NULL: the field is left out */
    const int32_t *token_ids;
    size_t num_token_ids;
    bool has_token_ids;
    const int32_t *prompt_token_ids; /* completions; NULL: left out */
    size_t num_prompt_token_ids;
    /* chat; NULL: left out.  tool_calls holds the list's entries */
    const mf_buffer *reasoning, *tool_calls;
} mf_answer_choice;

typedef struct mf_answer_usage {
    int64_t prompt_tokens, completion_tokens, cached_tokens;
} mf_answer_usage;

typedef struct mf_answer_timings {
    double queue_ms, ttft_ms, prompt_ms, prompt_per_second, predicted_ms, predicted_per_second;
    int64_t prompt_n, cached_n, predicted_n;
} mf_answer_timings;

/* A whole body is begin, one choice after the other, end. */
void mf_answer_begin(const mf_buffer *head, mf_json_out *out);
void mf_answer_write_choice(mf_api_kind kind, const mf_answer_choice *choice, bool is_first, mf_json_out *out);
typedef struct mf_answer_end_parts {
    mf_answer_usage usage;
    mf_answer_timings timings;
    const mf_buffer *prompt_logprobs; /* chat has it here */
    const int32_t *prompt_token_ids;  /* chat */
    size_t num_prompt_token_ids;
} mf_answer_end_parts;
void mf_answer_end(const mf_answer_end_parts *parts, mf_json_out *out);

/* ---- events: "data: {...}\n\n" ---- */

/* What an event says of usage: nothing, null (it comes at the end), or the count so far. */
typedef enum mf_usage_field { MF_USAGE_ABSENT = 0, MF_USAGE_NULL, MF_USAGE_RUNNING } mf_usage_field;

typedef struct mf_answer_event {
    mf_api_kind kind;
    const mf_buffer *head;
    mf_usage_field usage_field;
    mf_answer_usage usage;
} mf_answer_event;

/* Chat's first event of a choice. */
void mf_answer_event_role(const mf_answer_event *event, int32_t index, const int32_t *prompt_token_ids, size_t num_ids,
                          mf_json_out *out);
/* One step's text, also when there is none. */
void mf_answer_event_text(const mf_answer_event *event, const mf_answer_choice *choice, mf_json_out *out);
/* A choice's last event; what text is left goes with it. */
void mf_answer_event_last(const mf_answer_event *event, const mf_answer_choice *choice,
                          const mf_answer_timings *timings, mf_json_out *out);
void mf_answer_event_usage(const mf_answer_event *event, mf_json_out *out);
void mf_answer_event_done(mf_json_out *out);
void mf_answer_event_error(const mf_api_error *error, mf_json_out *out);

#endif
