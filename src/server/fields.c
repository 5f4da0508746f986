/* fields.c - the table's rows and the reader: see fields.h. */
#include "server/fields.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "moefuse_engine.h"

#define C MF_IN_COMPLETION
#define H MF_IN_CHAT
#define T MF_IN_TOKENIZE
#define D MF_IN_DETOKENIZE
#define INT32_LAST 2147483647.0

const mf_field mf_fields[MF_NUM_FIELDS] = {
    [MF_FIELD_ID_MODEL] = { "model", C | H | T | D, MF_FIELD_STRING, 1, 256, "null",
                            "A served name; absent: the first" },
    [MF_FIELD_ID_PROMPT] = { "prompt", C, MF_FIELD_PROMPT, 1, 64, "null", "Text or token ids, one prompt or several",
                             .required = true },
    [MF_FIELD_ID_MESSAGES] = { "messages", H | T, MF_FIELD_LIST, 1, 2048, "null", "The conversation",
                               .required = true },
    [MF_FIELD_ID_MAX_TOKENS] = { "max_tokens", C, MF_FIELD_INT, 0, INT32_LAST, "16",
                                 "Most tokens of an answer; 0 only with echo" },
    [MF_FIELD_ID_CHAT_MAX_TOKENS] = { "max_tokens", H, MF_FIELD_INT, 0, INT32_LAST, "null",
                                      "Most tokens of an answer; absent: the rest of the context; 0 only with echo" },
    [MF_FIELD_ID_MAX_COMPLETION_TOKENS] = { "max_completion_tokens", H, MF_FIELD_INT, 0, INT32_LAST, "null",
                                            "The newer name of max_tokens, which it overrides" },
    [MF_FIELD_ID_MIN_TOKENS] = { "min_tokens", C | H, MF_FIELD_INT, 0, INT32_LAST, "0",
                                 "Until then no end-of-text or stop id is chosen and no stop text counts; at most "
                                 "max_tokens" },
    [MF_FIELD_ID_N] = { "n", C | H, MF_FIELD_INT, 1, 16, "1", "Answers per prompt" },
    [MF_FIELD_ID_BEST_OF] = { "best_of", C, MF_FIELD_INT, 1, 16, "null",
                              "Answers made, of which the n best are shown" },
    [MF_FIELD_ID_TEMPERATURE] = { "temperature", C | H, MF_FIELD_NUMBER, 0, 2, "null",
                                  "0: greedy; absent: the model's, else 1" },
    [MF_FIELD_ID_TOP_P] = { "top_p", C | H, MF_FIELD_NUMBER, 0, 1, "null", "Nucleus; absent: the model's, else 1",
                            .min_excluded = true },
    [MF_FIELD_ID_MIN_P] = { "min_p", C | H, MF_FIELD_NUMBER, 0, 1, "0",
                            "Least probability relative to the best token's" },
    [MF_FIELD_ID_TOP_K] = { "top_k", C | H, MF_FIELD_INT, -1, INT32_LAST, "null",
                            "-1 and 0: off; absent: the model's, else off" },
    [MF_FIELD_ID_PRESENCE_PENALTY] = { "presence_penalty", C | H, MF_FIELD_NUMBER, -2, 2, "0",
                                       "Over the answer's tokens" },
    [MF_FIELD_ID_FREQUENCY_PENALTY] = { "frequency_penalty", C | H, MF_FIELD_NUMBER, -2, 2, "0",
                                        "Over the answer's tokens" },
    [MF_FIELD_ID_REPETITION_PENALTY] = { "repetition_penalty", C | H, MF_FIELD_NUMBER, 0, 10, "null",
                                         "Over prompt and answer; absent: the model's, else 1", .min_excluded = true },
    [MF_FIELD_ID_SEED] = { "seed", C | H, MF_FIELD_INT, -9223372036854775808.0, 9223372036854775807.0, "null",
                           "Same seed, same answer; absent: the server's, counted on" },
    [MF_FIELD_ID_STOP] = { "stop", C | H, MF_FIELD_STRING_OR_STRINGS, 0, 16, "null", "Texts that end an answer" },
    [MF_FIELD_ID_STOP_TOKEN_IDS] = { "stop_token_ids", C | H, MF_FIELD_IDS, 0, MF_MAX_STOP_TOKEN_IDS, "null",
                                     "Token ids that end an answer" },
    [MF_FIELD_ID_ALLOWED_TOKEN_IDS] = { "allowed_token_ids", C | H, MF_FIELD_IDS, 1, MF_MAX_STOP_TOKEN_IDS, "null",
                                        "The only token ids that may be chosen" },
    [MF_FIELD_ID_BAD_WORDS] = { "bad_words", C | H, MF_FIELD_STRINGS, 0, 128, "null", "Words that are never written" },
    [MF_FIELD_ID_LOGIT_BIAS] = { "logit_bias", C | H, MF_FIELD_OBJECT, 0, MF_MAX_LOGIT_BIAS, "null",
                                 "Token id to a number of -100 to 100 that is added to its logit" },
    [MF_FIELD_ID_IGNORE_EOS] = { "ignore_eos", C | H, MF_FIELD_BOOL, 0, 1, "false", "Go on after end-of-text" },
    [MF_FIELD_ID_INCLUDE_STOP_STR_IN_OUTPUT] = { "include_stop_str_in_output", C | H, MF_FIELD_BOOL, 0, 1, "false",
                                                 "The text ends with the stop text" },
    [MF_FIELD_ID_SKIP_SPECIAL_TOKENS] = { "skip_special_tokens", C | H, MF_FIELD_BOOL, 0, 1, "true",
                                          "Special tokens leave no text" },
    [MF_FIELD_ID_SPACES_BETWEEN_SPECIAL_TOKENS] = { "spaces_between_special_tokens", C | H, MF_FIELD_BOOL, 0, 1, "true",
                                                    "true and false write the same: byte-level tokenizers put no "
                                                    "spaces" },
    [MF_FIELD_ID_ADD_SPECIAL_TOKENS] = { "add_special_tokens", C, MF_FIELD_BOOL, 0, 1, "true",
                                         "The tokenizer's own begin-of-text and the like" },
    [MF_FIELD_ID_CHAT_ADD_SPECIAL_TOKENS] = { "add_special_tokens", H, MF_FIELD_BOOL, 0, 1, "false",
                                              "On top of what the template writes" },
    [MF_FIELD_ID_TRUNCATE_PROMPT_TOKENS] = { "truncate_prompt_tokens", C | H, MF_FIELD_INT, -1, INT32_LAST, "null",
                                             "Keeps this many tokens at the prompt's end; -1: as many as fit" },
    [MF_FIELD_ID_ECHO] = { "echo", C | H, MF_FIELD_BOOL, 0, 1, "false", "The prompt comes first" },
    [MF_FIELD_ID_LOGPROBS] = { "logprobs", C, MF_FIELD_INT, 0, MF_MAX_LOGPROBS, "null",
                               "Log-probabilities of this many tokens" },
    [MF_FIELD_ID_CHAT_LOGPROBS] = { "logprobs", H, MF_FIELD_BOOL, 0, 1, "false",
                                    "Log-probabilities of the answer's tokens" },
    [MF_FIELD_ID_TOP_LOGPROBS] = { "top_logprobs", H, MF_FIELD_INT, 0, MF_MAX_LOGPROBS, "0",
                                   "And of this many others; needs logprobs" },
    [MF_FIELD_ID_PROMPT_LOGPROBS] = { "prompt_logprobs", C | H, MF_FIELD_INT, 0, 5, "null",
                                      "Log-probabilities of the prompt's tokens; not with stream" },
    [MF_FIELD_ID_RETURN_TOKENS_AS_TOKEN_IDS] = { "return_tokens_as_token_ids", C | H, MF_FIELD_BOOL, 0, 1, "false",
                                                 "Tokens in logprobs are written token_id:N" },
    [MF_FIELD_ID_RETURN_TOKEN_IDS] = { "return_token_ids", C | H, MF_FIELD_BOOL, 0, 1, "false",
                                       "Choices have token_ids" },
    [MF_FIELD_ID_STREAM] = { "stream", C | H, MF_FIELD_BOOL, 0, 1, "false", "Server-sent events" },
    [MF_FIELD_ID_STREAM_OPTIONS] = { "stream_options", C | H, MF_FIELD_OBJECT, 0, 64, "null",
                                     "include_usage, continuous_usage_stats; only with stream" },
    [MF_FIELD_ID_ADD_GENERATION_PROMPT] = { "add_generation_prompt", H | T, MF_FIELD_BOOL, 0, 1, "true",
                                            "The template opens the assistant's turn" },
    [MF_FIELD_ID_CONTINUE_FINAL_MESSAGE] = { "continue_final_message", H | T, MF_FIELD_BOOL, 0, 1, "false",
                                             "The answer goes on where the last message ends" },
    [MF_FIELD_ID_CHAT_TEMPLATE] = { "chat_template", H | T, MF_FIELD_STRING, 1, 65536, "null",
                                    "Only where the server trusts templates of requests" },
    [MF_FIELD_ID_CHAT_TEMPLATE_KWARGS] = { "chat_template_kwargs", H | T, MF_FIELD_OBJECT, 0, 32, "null",
                                           "More variables of the template" },
    [MF_FIELD_ID_TOOLS] = { "tools", H | T, MF_FIELD_LIST, 0, 128, "null", "Functions that the model may call" },
    [MF_FIELD_ID_TOOL_CHOICE] = { "tool_choice", H, MF_FIELD_STRING_OR_OBJECT, 0, 64, "null",
                                  "none, auto, required, or a function by name; absent: auto with tools" },
    [MF_FIELD_ID_PARALLEL_TOOL_CALLS] = { "parallel_tool_calls", H, MF_FIELD_BOOL, 0, 1, "true",
                                          "More than one call in an answer" },
    [MF_FIELD_ID_RESPONSE_FORMAT] = { "response_format", C | H, MF_FIELD_OBJECT, 0, 64, "null",
                                      "text, json_object or json_schema" },
    [MF_FIELD_ID_STRUCTURED_OUTPUTS] = { "structured_outputs", C | H, MF_FIELD_OBJECT, 0, 64, "null",
                                         "One of json, json_object, regex, choice, grammar" },
    [MF_FIELD_ID_TIMEOUT] = { "timeout", C | H, MF_FIELD_NUMBER, 0.001, 86400, "null",
                              "Seconds; X-Request-Timeout says the same" },
    [MF_FIELD_ID_PRIORITY] = { "priority", C | H, MF_FIELD_INT, -2147483648.0, INT32_LAST, "0",
                               "The lower starts first; equal ones in the order they came" },
    [MF_FIELD_ID_USER] = { "user", C | H, MF_FIELD_STRING, 0, 256, "null", "Accepted" },
    [MF_FIELD_ID_REQUEST_ID] = { "request_id", C | H, MF_FIELD_STRING, 0, 256, "null", "Accepted" },
    [MF_FIELD_ID_CACHE_SALT] = { "cache_salt", C | H, MF_FIELD_STRING, 0, 256, "null", "Keeps prefixes apart" },
    [MF_FIELD_ID_REASONING_EFFORT] = { "reasoning_effort", C | H, MF_FIELD_STRING, 0, 256, "null",
                                       "A variable of the template" },
    [MF_FIELD_ID_SUFFIX] = { "suffix", C | H, MF_FIELD_NEVER, 0, 0, "null", NULL },
    [MF_FIELD_ID_USE_BEAM_SEARCH] = { "use_beam_search", C | H, MF_FIELD_NEVER, 0, 0, "null", NULL },
    [MF_FIELD_ID_GUIDED_JSON] = { "guided_json", C | H, MF_FIELD_NEVER, 0, 0, "null",
                                  "structured_outputs.json does it" },
    [MF_FIELD_ID_GUIDED_REGEX] = { "guided_regex", C | H, MF_FIELD_NEVER, 0, 0, "null",
                                   "structured_outputs.regex does it" },
    [MF_FIELD_ID_GUIDED_CHOICE] = { "guided_choice", C | H, MF_FIELD_NEVER, 0, 0, "null",
                                    "structured_outputs.choice does it" },
    [MF_FIELD_ID_GUIDED_GRAMMAR] = { "guided_grammar", C | H, MF_FIELD_NEVER, 0, 0, "null",
                                     "structured_outputs.grammar does it" },
    [MF_FIELD_ID_FUNCTIONS] = { "functions", H, MF_FIELD_NEVER, 0, 0, "null", "tools does it" },
    [MF_FIELD_ID_FUNCTION_CALL] = { "function_call", H, MF_FIELD_NEVER, 0, 0, "null", "tool_choice does it" },
    [MF_FIELD_ID_AUDIO] = { "audio", H, MF_FIELD_NEVER, 0, 0, "null", NULL },
    [MF_FIELD_ID_WEB_SEARCH_OPTIONS] = { "web_search_options", H, MF_FIELD_NEVER, 0, 0, "null", NULL },
    [MF_FIELD_ID_LOGITS_PROCESSORS] = { "logits_processors", C | H, MF_FIELD_NEVER, 0, 0, "null", NULL },
    [MF_FIELD_ID_PROMPT_EMBEDS] = { "prompt_embeds", C, MF_FIELD_NEVER, 0, 0, "null", NULL },
    [MF_FIELD_ID_TOKENIZE_PROMPT] = { "prompt", T, MF_FIELD_STRING, 0, 8388608, "null", "Text; or give messages" },
    [MF_FIELD_ID_TOKENIZE_ADD_SPECIAL_TOKENS] = { "add_special_tokens", T, MF_FIELD_BOOL, 0, 1, "null",
                                                  "Absent: true with prompt, false with messages" },
    [MF_FIELD_ID_RETURN_TOKEN_STRS] = { "return_token_strs", T, MF_FIELD_BOOL, 0, 1, "false",
                                        "Tokens as the vocabulary writes them" },
    [MF_FIELD_ID_DETOKENIZE_TOKENS] = { "tokens", D, MF_FIELD_IDS, 0, MF_BODY_MAX_VALUES, "null", "Token ids",
                                        .required = true },
};

/* ---- messages -------------------------------------------------------------------------------------------------------
 */

mf_status mf_api_no_memory(mf_api_error *error)
{
    mf_status status = mf_api_fail(error, 503, NULL, "The server is out of memory for this request.");
    error->retry_after_s = 1;
    return status;
}

mf_status mf_api_fail_with(mf_api_error *error, const char *param, const mf_error *err)
{
    switch (err->status) {
    case MF_ERR_INVALID:
    case MF_ERR_UNSUPPORTED:
    case MF_ERR_FORMAT:
    case MF_ERR_LIMIT:
        return mf_api_fail(error, 400, param, "%s", err->message);
    case MF_ERR_NOMEM:
        return mf_api_no_memory(error);
    default:
        return mf_api_fail(error, 500, param, "%s", mf_status_name(err->status));
    }
}

/* 128 bytes at most, cut between characters; what a terminal or a log could take for more than text is escaped. */
static size_t put_escaped(const char *text, size_t size, char *out, size_t capacity)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;
    size_t i = 0;
    while (i < size) {
        uint8_t c = (uint8_t)text[i];
        size_t length = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
        bool control = c < 0x20 || c == 0x7f || (c == 0xc2 && i + 1 < size && (uint8_t)text[i + 1] < 0xa0);
        size_t need = control ? (length == 1 ? 4 : 8) : c == '"' || c == '\\' ? 2 : length;
        if (i + length > size || n + need > capacity) {
            break;
        }
        for (size_t k = 0; k < length; k++) {
            uint8_t b = (uint8_t)text[i + k];
            if (control) {
                out[n++] = '\\';
                out[n++] = 'x';
                out[n++] = hex[b >> 4];
                out[n++] = hex[b & 15];
            } else {
                if (b == '"' || b == '\\') {
                    out[n++] = '\\';
                }
                out[n++] = (char)b;
            }
        }
        i += length;
    }
    if (i < size) {
        memcpy(out + n, "...", 3);
        n += 3;
    }
    return n;
}

const char *mf_text_quote(const char *text, size_t size, char out[MF_QUOTE_BYTES])
{
    out[0] = '"';
    size_t n = 1 + put_escaped(text, size, out + 1, 128);
    out[n] = '"';
    out[n + 1] = '\0';
    return out;
}

const char *mf_json_quote(const json_t *value, char out[MF_QUOTE_BYTES])
{
    if (json_is_string(value)) {
        return mf_text_quote(json_string_value(value), json_string_length(value), out);
    }
    if (json_is_integer(value)) {
        snprintf(out, MF_QUOTE_BYTES, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        snprintf(out, MF_QUOTE_BYTES, "%.17g", json_real_value(value));
        double shorter = json_real_value(value);
        for (int digits = 1; digits < 17; digits++) {
            char text[40];
            snprintf(text, sizeof text, "%.*g", digits, shorter);
            if (strtod(text, NULL) == shorter) {
                snprintf(out, MF_QUOTE_BYTES, "%s", text);
                break;
            }
        }
    } else {
        snprintf(out, MF_QUOTE_BYTES, "%s", mf_json_type_name(value));
    }
    return out;
}

/* ---- the body -------------------------------------------------------------------------------------------------------
 */

mf_status mf_body_parse(const char *body, size_t size, json_t **document, mf_api_error *error)
{
    static const mf_json_limits limits = {
        .max_depth = MF_BODY_MAX_DEPTH, .max_values = MF_BODY_MAX_VALUES, .top_is_object = true, .allow_nul = true
    };
    mf_error err = { 0 };
    if (mf_json_parse(body, size, "request body", &limits, document, &err) != MF_OK) {
        return mf_api_fail_with(error, NULL, &err);
    }
    return memmem(body, size, "\\u0000", 6) ? mf_body_check_nul(*document, error) : MF_OK;
}

bool mf_json_to_integer(const json_t *value, int64_t *integer)
{
    if (json_is_integer(value)) {
        *integer = json_integer_value(value);
        return true;
    }
    double real = json_is_real(value) ? json_real_value(value) : 0.5;
    if (real != floor(real) || real < -9223372036854775808.0 || real >= 9223372036854775808.0) {
        return false;
    }
    *integer = (int64_t)real;
    return true;
}

/* ---- unknown names --------------------------------------------------------------------------------------------------
 */

enum { MAX_NAMES = 128, NAME_BYTES = 64, NAMES_PER_REQUEST = 16 };

static atomic_llong num_unknown;
static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER; /* guards the next two */
static char names_seen[MAX_NAMES][NAME_BYTES];
static int32_t num_names_seen;

int64_t mf_fields_num_unknown(void)
{
    return atomic_load(&num_unknown);
}

static bool is_new_name(const char *name)
{
    bool fresh = false;
    size_t size = strlen(name);
    pthread_mutex_lock(&names_lock);
    if (size < NAME_BYTES && num_names_seen < MAX_NAMES) {
        int32_t i = 0;
        while (i < num_names_seen && strcmp(names_seen[i], name) != 0) {
            i++;
        }
        fresh = i == num_names_seen;
        if (fresh) {
            memcpy(names_seen[num_names_seen++], name, size + 1);
        }
    }
    pthread_mutex_unlock(&names_lock);
    return fresh;
}

static bool is_field(const char *name, unsigned where)
{
    for (int i = 0; i < MF_NUM_FIELDS; i++) {
        if ((mf_fields[i].where & where) && strcmp(mf_fields[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

static void tell_unknown(const json_t *document, unsigned where, int64_t count)
{
    const char *name;
    json_t *value;
    int looked_at = 0;
    atomic_fetch_add(&num_unknown, count);
    json_object_foreach((json_t *)document, name, value)
    {
        if (is_field(name, where)) {
            continue;
        }
        if (++looked_at > NAMES_PER_REQUEST) {
            break;
        }
        if (is_new_name(name)) {
            char quote[MF_QUOTE_BYTES];
            mf_log(MF_LOG_DEBUG, "request field %s is not known and ignored", mf_text_quote(name, strlen(name), quote));
        }
    }
}

/* ---- the reader -----------------------------------------------------------------------------------------------------
 */

static const char *const type_names[] = {
    [MF_FIELD_BOOL] = "true or false",
    [MF_FIELD_INT] = "an integer",
    [MF_FIELD_NUMBER] = "a number",
    [MF_FIELD_STRING] = "a string",
    [MF_FIELD_STRINGS] = "a list of strings",
    [MF_FIELD_STRING_OR_STRINGS] = "a string or a list of strings",
    [MF_FIELD_IDS] = "a list of token ids",
    [MF_FIELD_LIST] = "a list",
    [MF_FIELD_OBJECT] = "an object",
    [MF_FIELD_STRING_OR_OBJECT] = "a string or an object",
    [MF_FIELD_PROMPT] = "a string, a list of strings, a list of token ids or a list of lists of token ids",
    [MF_FIELD_NEVER] = "null or false",
};

static mf_status wrong_type(const mf_field *f, const json_t *value, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    return mf_api_fail(error, 400, f->name, "%s must be %s, got %s.", f->name, type_names[f->type],
                       mf_json_quote(value, quote));
}

static mf_status wrong_number(const mf_field *f, const json_t *value, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    mf_json_quote(value, quote);
    if (f->max >= INT32_LAST && f->min > -2 && f->type == MF_FIELD_INT && json_is_integer(value) &&
        json_integer_value(value) < 0) {
        return mf_api_fail(error, 400, f->name, "%s must be at least %.0f, got %s.", f->name, f->min, quote);
    }
    return mf_api_fail(error, 400, f->name, "%s must be in %c%.10g, %.10g], got %s.", f->name,
                       f->min_excluded ? '(' : '[', f->min, f->max, quote);
}

static mf_status check_number(const mf_field *f, const json_t *json, mf_field_value *value, mf_api_error *error)
{
    if (f->type == MF_FIELD_INT) {
        if (!mf_json_to_integer(json, &value->integer)) {
            return wrong_type(f, json, error);
        }
        value->number = (double)value->integer;
    } else if (json_is_number(json)) {
        value->number = json_number_value(json);
    } else {
        return wrong_type(f, json, error);
    }
    bool ok = (f->min_excluded ? value->number > f->min : value->number >= f->min) && value->number <= f->max;
    return ok ? MF_OK : wrong_number(f, json, error);
}

static mf_status check_count(const mf_field *f, size_t count, const char *of, mf_api_error *error)
{
    if ((double)count < f->min || (double)count > f->max) {
        return mf_api_fail(error, 400, f->name, "%s must have %.0f to %.0f %s, got %zu.", f->name, f->min, f->max, of,
                           count);
    }
    return MF_OK;
}

static mf_status check_text(const mf_field *f, const json_t *text, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    if (!json_is_string(text)) {
        return wrong_type(f, text, error);
    }
    size_t size = json_string_length(text);
    if (size < 1 || size > MF_FIELD_MAX_STRING) {
        return mf_api_fail(error, 400, f->name,
                           size ? "%s: each string must have 1 to %d bytes, got %zu: %s."
                                : "%s cannot contain an empty string (1 to %d bytes), got %zu: %s.",
                           f->name, MF_FIELD_MAX_STRING, size, mf_json_quote(text, quote));
    }
    return MF_OK;
}

static mf_status check_texts(const mf_field *f, const json_t *json, mf_api_error *error)
{
    if (f->type == MF_FIELD_STRING_OR_STRINGS && json_is_string(json)) {
        return check_text(f, json, error);
    }
    if (!json_is_array(json)) {
        return wrong_type(f, json, error);
    }
    MF_TRY(check_count(f, json_array_size(json), "strings", error));
    for (size_t i = 0; i < json_array_size(json); i++) {
        MF_TRY(check_text(f, json_array_get(json, i), error));
    }
    return MF_OK;
}

static mf_status check_ids(const mf_field *f, const json_t *list, int32_t vocab_size, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        int64_t id;
        if (!mf_json_to_integer(entry, &id)) {
            return mf_api_fail(error, 400, f->name, "%s must be %s, got %s at place %zu.", f->name, type_names[f->type],
                               mf_json_quote(entry, quote), i);
        }
        if (id < 0 || id >= vocab_size) {
            return mf_api_fail(error, 400, f->name, "%s: token id %lld is out of vocabulary (0 to %d).", f->name,
                               (long long)id, vocab_size - 1);
        }
    }
    return MF_OK;
}

/* One kind, not mixed: the first entry says which. */
static mf_status check_prompt(const mf_field *f, const json_t *json, int32_t vocab_size, mf_api_error *error)
{
    if (json_is_string(json)) {
        return json_string_length(json) ? MF_OK
                                        : mf_api_fail(error, 400, f->name, "%s cannot be empty, got \"\".", f->name);
    }
    if (!json_is_array(json)) {
        return wrong_type(f, json, error);
    }
    size_t n = json_array_size(json);
    const json_t *first = json_array_get(json, 0);
    if (n == 0) {
        return mf_api_fail(error, 400, f->name, "%s cannot be empty, got [].", f->name);
    }
    if (json_is_number(first)) {
        return check_ids(f, json, vocab_size, error);
    }
    MF_TRY(check_count(f, n, "prompts", error));
    for (size_t i = 0; i < n; i++) {
        const json_t *entry = json_array_get(json, i);
        if (json_typeof(entry) != json_typeof(first) || (!json_is_string(entry) && !json_is_array(entry))) {
            return wrong_type(f, entry, error);
        }
        if (json_is_string(entry) ? json_string_length(entry) == 0 : json_array_size(entry) == 0) {
            return mf_api_fail(error, 400, f->name, "%s cannot hold an empty prompt, got one at place %zu.", f->name,
                               i);
        }
        if (json_is_array(entry)) {
            MF_TRY(check_ids(f, entry, vocab_size, error));
        }
    }
    return MF_OK;
}

static mf_status check_string(const mf_field *f, const json_t *json, mf_api_error *error)
{
    if (!json_is_string(json)) {
        return wrong_type(f, json, error);
    }
    return check_count(f, json_string_length(json), "bytes", error);
}

static mf_status check_value(const mf_field *f, const json_t *json, int32_t vocab_size, mf_field_value *value,
                             mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    switch (f->type) {
    case MF_FIELD_BOOL:
        value->integer = json_is_true(json);
        return json_is_boolean(json) ? MF_OK : wrong_type(f, json, error);
    case MF_FIELD_INT:
    case MF_FIELD_NUMBER:
        return check_number(f, json, value, error);
    case MF_FIELD_STRING:
        return check_string(f, json, error);
    case MF_FIELD_STRINGS:
    case MF_FIELD_STRING_OR_STRINGS:
        return check_texts(f, json, error);
    case MF_FIELD_IDS:
        MF_TRY(json_is_array(json) ? check_count(f, json_array_size(json), "token ids", error)
                                   : wrong_type(f, json, error));
        return check_ids(f, json, vocab_size, error);
    case MF_FIELD_LIST:
        return json_is_array(json) ? check_count(f, json_array_size(json), "entries", error)
                                   : wrong_type(f, json, error);
    case MF_FIELD_OBJECT:
        return json_is_object(json) ? check_count(f, json_object_size(json), "members", error)
                                    : wrong_type(f, json, error);
    case MF_FIELD_STRING_OR_OBJECT:
        if (json_is_string(json) && json_string_length(json) > MF_FIELD_MAX_STRING) {
            return mf_api_fail(error, 400, f->name, "%s must have at most %d bytes, got %zu.", f->name,
                               MF_FIELD_MAX_STRING, json_string_length(json));
        }
        if (json_is_object(json)) {
            return check_count(f, json_object_size(json), "members", error);
        }
        return json_is_string(json) ? MF_OK : wrong_type(f, json, error);
    case MF_FIELD_PROMPT:
        return check_prompt(f, json, vocab_size, error);
    case MF_FIELD_NEVER:
        value->json = NULL;
        return json_is_false(json)
                   ? MF_OK
                   : mf_api_fail(error, 501, f->name, "%s is not built into this server%s%s, got %s.", f->name,
                                 f->about ? "; " : "", f->about ? f->about : "", mf_json_quote(json, quote));
    }
    return mf_api_fail(error, 500, f->name, "unknown field type");
}

mf_status mf_fields_read(const json_t *document, unsigned where, int32_t vocab_size, mf_field_value *values,
                         mf_api_error *error)
{
    int64_t num_known = 0;
    for (int i = 0; i < MF_NUM_FIELDS; i++) {
        const mf_field *f = &mf_fields[i];
        values[i] = (mf_field_value){ .json = NULL };
        if (!(f->where & where)) {
            continue;
        }
        const json_t *json = json_object_get(document, f->name);
        num_known += json != NULL;
        if (json && !json_is_null(json)) {
            values[i].json = json;
            MF_TRY(check_value(f, json, vocab_size, &values[i], error));
        } else if (f->required && where != MF_IN_TOKENIZE) {
            return mf_api_fail(error, 400, f->name, "%s is required, got %s.", f->name, mf_json_type_name(json));
        }
    }
    int64_t unknown = (int64_t)json_object_size(document) - num_known;
    if (unknown > 0) {
        tell_unknown(document, where, unknown);
    }
    return MF_OK;
}
