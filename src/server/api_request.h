/* api_request.h - a completion or chat request after the field table has read it: every value of its type and in its range,
 * combinations checked.  No handler reads raw JSON. */
#ifndef MF_SERVER_API_REQUEST_H
#define MF_SERVER_API_REQUEST_H

#include <jansson.h>
#include <stdbool.h>

#include "base/arena.h"
#include "server/api_error.h"
#include "server/serve_model.h"

typedef enum mf_api_kind { MF_API_COMPLETION = 0, MF_API_CHAT } mf_api_kind;

/* What constrains the answer's text. */
typedef enum mf_constraint_kind {
    MF_CONSTRAINT_NONE = 0,
    MF_CONSTRAINT_JSON_OBJECT, /* any JSON object */
    MF_CONSTRAINT_JSON_SCHEMA, /* text: the schema */
    MF_CONSTRAINT_REGEX,
    MF_CONSTRAINT_CHOICE,      /* text: a JSON list of strings */
    MF_CONSTRAINT_GRAMMAR      /* text: EBNF */
} mf_constraint_kind;

typedef enum mf_tool_choice { MF_TOOLS_NONE = 0, MF_TOOLS_AUTO, MF_TOOLS_REQUIRED, MF_TOOLS_NAMED } mf_tool_choice;

/* One of a completion's prompts: text, or ids. */
typedef struct mf_api_prompt {
    const char *text; /* NULL: ids */
    size_t text_size;
    const int32_t *ids;
    int32_t num_ids;
} mf_api_prompt;

typedef struct mf_api_request {
    mf_arena arena;   /* everything below that is not the document's */
    json_t *document; /* the body; messages and tools are borrowed from it */
    mf_api_kind kind;
    const char *model; /* as the request named it, or the first served name */

    mf_api_prompt *prompts; /* completions: [num_prompts] */
    int32_t num_prompts;    /* chat: 1 */
    /* Chat; NULL = absent.  A message's content is a string or null (text parts are joined by line breaks), a tool call's
     * arguments are an object, as templates expect them. */
    json_t *messages, *tools, *chat_template_kwargs;
    const char *chat_template;                       /* given with the request; NULL = the model's */
    bool add_generation_prompt, continue_final_message, add_special_tokens;
    int32_t truncate_prompt_tokens; /* 0 = no, -1 = to fit */

    int32_t n, best_of;
    int32_t max_tokens; /* -1: chat's rest of the context */
    /* Sampling as asked, or the generation config's, or the general default.  Arrays are the arena's; bad_words are text until
     * prepared; logprobs is what the engine must give (-1 none), wants_logprobs below what the answer shows. */
    mf_sampling_params sampling;
    const char **bad_words;
    int32_t num_bad_words;
    const char **stops; /* 1..256 bytes each; they may hold no NUL */
    int32_t num_stops;
    bool include_stop_str_in_output, skip_special_tokens;

    bool echo, wants_logprobs, return_tokens_as_token_ids, return_token_ids;
    int32_t prompt_logprobs; /* -1 none */
    bool stream, include_usage, continuous_usage_stats;

    mf_constraint_kind constraint;
    const char *constraint_text;
    mf_tool_choice tool_choice;
    const char *tool_name; /* NAMED */
    bool parallel_tool_calls;

    double timeout_s; /* 0 = none */
    int32_t priority;
    const char *user, *request_id, *cache_salt;
    const char *reasoning_effort; /* a variable of the template; NULL = absent */
} mf_api_request;

/* Reads and checks a body.  On failure *error has the status (400, 404 for an unknown model, 501, ...) and the field.
 * timeout_header: the value of X-Request-Timeout, or NULL. */
mf_status mf_api_request_parse(mf_api_kind kind, const mf_serve_model *model, const char *body, size_t size,
                               const char *timeout_header, mf_api_request **out, mf_api_error *error);
void mf_api_request_close(mf_api_request **request);

#endif
