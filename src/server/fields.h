/* fields.h - the one table of what a JSON body may say: name, where, type, range, default; and the reader that goes by
 * it.
 *
 * Nothing else looks into a body: handlers get values of the right type, in range.  The OpenAPI file and the limit
 * tests are made from the same rows. */
#ifndef MF_SERVER_FIELDS_H
#define MF_SERVER_FIELDS_H

#include <jansson.h>
#include <stdbool.h>

#include "server/api_error.h"

/* The bodies that a field belongs to. */
enum { MF_IN_COMPLETION = 1, MF_IN_CHAT = 2, MF_IN_TOKENIZE = 4, MF_IN_DETOKENIZE = 8 };

typedef enum mf_field_type {
    MF_FIELD_BOOL = 0,
    MF_FIELD_INT,     /* min..max; 16.0 counts as 16 */
    MF_FIELD_NUMBER,  /* min..max */
    MF_FIELD_STRING,  /* min..max bytes */
    MF_FIELD_STRINGS, /* a list of min..max strings of 1..256 bytes each */
    MF_FIELD_STRING_OR_STRINGS,
    MF_FIELD_IDS,              /* a list of min..max token ids, each below the vocabulary's size */
    MF_FIELD_LIST,             /* min..max entries, which somebody else reads */
    MF_FIELD_OBJECT,           /* min..max members, which somebody else reads */
    MF_FIELD_STRING_OR_OBJECT, /* a string of at most 256 bytes, or at most max members */
    MF_FIELD_PROMPT,           /* a string, [string], [id] or [[id]]: min..max prompts */
    MF_FIELD_NEVER             /* known and not built: absent, null or false only, else 501 */
} mf_field_type;

/* Rows whose type or default differs from one body to another are there more than once: CHAT_... is chat's. */
typedef enum mf_field_id {
    MF_FIELD_ID_MODEL = 0,
    MF_FIELD_ID_PROMPT,
    MF_FIELD_ID_MESSAGES,
    MF_FIELD_ID_MAX_TOKENS,
    MF_FIELD_ID_CHAT_MAX_TOKENS,
    MF_FIELD_ID_MAX_COMPLETION_TOKENS,
    MF_FIELD_ID_MIN_TOKENS,
    MF_FIELD_ID_N,
    MF_FIELD_ID_BEST_OF,
    MF_FIELD_ID_TEMPERATURE,
    MF_FIELD_ID_TOP_P,
    MF_FIELD_ID_MIN_P,
    MF_FIELD_ID_TOP_K,
    MF_FIELD_ID_PRESENCE_PENALTY,
    MF_FIELD_ID_FREQUENCY_PENALTY,
    MF_FIELD_ID_REPETITION_PENALTY,
    MF_FIELD_ID_SEED,
    MF_FIELD_ID_STOP,
    MF_FIELD_ID_STOP_TOKEN_IDS,
    MF_FIELD_ID_ALLOWED_TOKEN_IDS,
    MF_FIELD_ID_BAD_WORDS,
    MF_FIELD_ID_LOGIT_BIAS,
    MF_FIELD_ID_IGNORE_EOS,
    MF_FIELD_ID_INCLUDE_STOP_STR_IN_OUTPUT,
    MF_FIELD_ID_SKIP_SPECIAL_TOKENS,
    MF_FIELD_ID_SPACES_BETWEEN_SPECIAL_TOKENS,
    MF_FIELD_ID_ADD_SPECIAL_TOKENS,
    MF_FIELD_ID_CHAT_ADD_SPECIAL_TOKENS,
    MF_FIELD_ID_TRUNCATE_PROMPT_TOKENS,
    MF_FIELD_ID_ECHO,
    MF_FIELD_ID_LOGPROBS,
    MF_FIELD_ID_CHAT_LOGPROBS,
    MF_FIELD_ID_TOP_LOGPROBS,
    MF_FIELD_ID_PROMPT_LOGPROBS,
    MF_FIELD_ID_RETURN_TOKENS_AS_TOKEN_IDS,
    MF_FIELD_ID_RETURN_TOKEN_IDS,
    MF_FIELD_ID_STREAM,
    MF_FIELD_ID_STREAM_OPTIONS,
    MF_FIELD_ID_ADD_GENERATION_PROMPT,
    MF_FIELD_ID_CONTINUE_FINAL_MESSAGE,
    MF_FIELD_ID_CHAT_TEMPLATE,
    MF_FIELD_ID_CHAT_TEMPLATE_KWARGS,
    MF_FIELD_ID_TOOLS,
    MF_FIELD_ID_TOOL_CHOICE,
    MF_FIELD_ID_PARALLEL_TOOL_CALLS,
    MF_FIELD_ID_RESPONSE_FORMAT,
    MF_FIELD_ID_STRUCTURED_OUTPUTS,
    MF_FIELD_ID_TIMEOUT,
    MF_FIELD_ID_PRIORITY,
    MF_FIELD_ID_USER,
    MF_FIELD_ID_REQUEST_ID,
    MF_FIELD_ID_CACHE_SALT,
    MF_FIELD_ID_REASONING_EFFORT,
    MF_FIELD_ID_SUFFIX,
    MF_FIELD_ID_USE_BEAM_SEARCH,
    MF_FIELD_ID_GUIDED_JSON,
    MF_FIELD_ID_GUIDED_REGEX,
    MF_FIELD_ID_GUIDED_CHOICE,
    MF_FIELD_ID_GUIDED_GRAMMAR,
    MF_FIELD_ID_FUNCTIONS,
    MF_FIELD_ID_FUNCTION_CALL,
    MF_FIELD_ID_AUDIO,
    MF_FIELD_ID_WEB_SEARCH_OPTIONS,
    MF_FIELD_ID_LOGITS_PROCESSORS,
    MF_FIELD_ID_PROMPT_EMBEDS,
    MF_FIELD_ID_TOKENIZE_PROMPT,
    MF_FIELD_ID_TOKENIZE_ADD_SPECIAL_TOKENS,
    MF_FIELD_ID_RETURN_TOKEN_STRS,
    MF_FIELD_ID_DETOKENIZE_TOKENS,
    MF_NUM_FIELDS
} mf_field_id;

typedef struct mf_field {
    const char *name;
    unsigned where; /* MF_IN_... */
    mf_field_type type;
    double min, max;          /* both included, but for min_excluded */
    const char *default_json; /* "null" where absence has a meaning of its own */
    const char *about;        /* one line for the OpenAPI file */
    bool min_excluded, required;
} mf_field;

extern const mf_field mf_fields[MF_NUM_FIELDS];

typedef struct mf_field_value {
    const json_t *json; /* the document's; NULL: absent or null */
    int64_t integer;    /* BOOL, INT */
    double number;      /* INT, NUMBER */
} mf_field_value;

/* JSON limits of a body. */
enum { MF_BODY_MAX_DEPTH = 64, MF_BODY_MAX_VALUES = 1048576, MF_FIELD_MAX_STRING = 256 };

/* Parses a body into *document (the caller's to json_decref, also when it fails) after the scan of base/json.h.  NUL is
 * refused in every string but the user's own text. */
mf_status mf_body_check_nul(const json_t *document, mf_api_error *error); /* fields_nul.c: that last part */
mf_status mf_body_parse(const char *body, size_t size, json_t **document, mf_api_error *error);

/* Reads every field that belongs to `where` into values[MF_NUM_FIELDS]; others of the table and unknown names are
 * ignored, counted, and logged once each at debug.  Ids are checked against vocab_size. */
mf_status mf_fields_read(const json_t *document, unsigned where, int32_t vocab_size, mf_field_value *values,
                         mf_api_error *error);
int64_t mf_fields_num_unknown(void); /* since the process began */

/* ---- for readers of what a LIST or an OBJECT holds: `param` names the place ---- */

/* A number without coercion: 16.0 is an integer, true is none. */
bool mf_json_to_integer(const json_t *value, int64_t *integer);

enum { MF_QUOTE_BYTES = 160 };
/* A value as a message may show it: at most 128 bytes of its JSON text, "a list" or "an object" for those. */
const char *mf_json_quote(const json_t *value, char out[MF_QUOTE_BYTES]);
const char *mf_text_quote(const char *text, size_t size, char out[MF_QUOTE_BYTES]); /* with quotation marks around it */

/* What a deeper layer said, as an answer: 400 for what the input caused, 503 for memory, else 500. */
mf_status mf_api_fail_with(mf_api_error *error, const char *param, const mf_error *err);
mf_status mf_api_no_memory(mf_api_error *error); /* 503 */

#endif
