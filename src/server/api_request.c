/* api_request.c - a body to an mf_api_request: fields by the table, then what depends on more than one of them. */
#include "server/api_request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "server/api_messages.h"
#include "server/fields.h"

enum { ARENA_LIMIT = 64 << 20 };

/* What is at hand while one body is read. */
typedef struct reader {
    const mf_serve_model *model;
    mf_api_request *request;
    const mf_field_value *values; /* [MF_NUM_FIELDS] */
    mf_api_error *error;
} reader;

static const mf_field_value *value_of(const reader *r, mf_field_id id)
{
    return &r->values[id];
}

static bool has(const reader *r, mf_field_id id)
{
    return r->values[id].json != NULL;
}

static bool bool_or(const reader *r, mf_field_id id, bool otherwise)
{
    return has(r, id) ? value_of(r, id)->integer != 0 : otherwise;
}

static int32_t int_or(const reader *r, mf_field_id id, int32_t otherwise)
{
    return has(r, id) ? (int32_t)value_of(r, id)->integer : otherwise;
}

static double number_or(const reader *r, mf_field_id id, double otherwise)
{
    return has(r, id) ? value_of(r, id)->number : otherwise;
}

static const char *text_or_null(const reader *r, mf_field_id id)
{
    return has(r, id) ? json_string_value(value_of(r, id)->json) : NULL;
}

/* ---- lists ----------------------------------------------------------------------------------------------------------
 */

static mf_status copy_ids(const reader *r, const json_t *list, const int32_t **ids, int32_t *count)
{
    size_t n = json_array_size(list);
    int32_t *copy = mf_arena_array(&r->request->arena, n, sizeof *copy);
    if (!copy) {
        return mf_api_no_memory(r->error);
    }
    for (size_t i = 0; i < n; i++) {
        int64_t id = 0;
        mf_json_to_integer(json_array_get(list, i), &id); /* checked by the table's reader */
        copy[i] = (int32_t)id;
    }
    *ids = copy;
    *count = (int32_t)n;
    return MF_OK;
}

/* The strings stay the document's. */
static mf_status list_texts(const reader *r, const json_t *json, const char ***texts, int32_t *count)
{
    bool single = json_is_string(json);
    size_t n = single ? 1 : json_array_size(json);
    const char **list = mf_arena_array(&r->request->arena, n, sizeof *list);
    if (!list) {
        return mf_api_no_memory(r->error);
    }
    for (size_t i = 0; i < n; i++) {
        list[i] = json_string_value(single ? json : json_array_get(json, i));
    }
    *texts = list;
    *count = (int32_t)n;
    return MF_OK;
}

/* A key is an id in decimal, without sign or leading zero. */
static bool key_to_id(const char *key, int64_t *id)
{
    size_t size = strlen(key);
    if (size < 1 || size > 10 || (size > 1 && key[0] == '0')) {
        return false;
    }
    *id = 0;
    for (size_t i = 0; i < size; i++) {
        if (key[i] < '0' || key[i] > '9') {
            return false;
        }
        *id = 10 * *id + (key[i] - '0');
    }
    return true;
}

static mf_status read_logit_bias(const reader *r)
{
    const json_t *object = value_of(r, MF_FIELD_ID_LOGIT_BIAS)->json;
    char quote[MF_QUOTE_BYTES];
    const char *key;
    json_t *number;
    int32_t count = 0;
    mf_logit_bias *list = mf_arena_array(&r->request->arena, json_object_size(object), sizeof *list);
    if (!list) {
        return mf_api_no_memory(r->error);
    }
    json_object_foreach((json_t *)object, key, number)
    {
        int64_t id;
        if (!key_to_id(key, &id) || id >= r->model->vocab_size) {
            return mf_api_fail(r->error, 400, "logit_bias", "logit_bias: token id %s is out of vocabulary (0 to %d).",
                               mf_text_quote(key, strlen(key), quote), r->model->vocab_size - 1);
        }
        double bias = json_is_number(number) ? json_number_value(number) : NAN;
        if (!(bias >= -100 && bias <= 100)) {
            return mf_api_fail(r->error, 400, "logit_bias",
                               "logit_bias: a bias must be a number in [-100, 100], got %s for token id %lld.",
                               mf_json_quote(number, quote), (long long)id);
        }
        list[count++] = (mf_logit_bias){ (int32_t)id, (float)bias };
    }
    r->request->sampling.logit_bias = list;
    r->request->sampling.num_logit_bias = count;
    return MF_OK;
}

static mf_status read_lists(const reader *r)
{
    mf_api_request *q = r->request;
    if (has(r, MF_FIELD_ID_STOP)) {
        MF_TRY(list_texts(r, value_of(r, MF_FIELD_ID_STOP)->json, &q->stops, &q->num_stops));
    }
    if (has(r, MF_FIELD_ID_BAD_WORDS)) {
        MF_TRY(list_texts(r, value_of(r, MF_FIELD_ID_BAD_WORDS)->json, &q->bad_words, &q->num_bad_words));
    }
    if (has(r, MF_FIELD_ID_STOP_TOKEN_IDS)) {
        MF_TRY(copy_ids(r, value_of(r, MF_FIELD_ID_STOP_TOKEN_IDS)->json, &q->sampling.stop_token_ids,
                        &q->sampling.num_stop_token_ids));
    }
    if (has(r, MF_FIELD_ID_ALLOWED_TOKEN_IDS)) {
        MF_TRY(copy_ids(r, value_of(r, MF_FIELD_ID_ALLOWED_TOKEN_IDS)->json, &q->sampling.allowed_token_ids,
                        &q->sampling.num_allowed_token_ids));
    }
    return has(r, MF_FIELD_ID_LOGIT_BIAS) ? read_logit_bias(r) : MF_OK;
}

/* ---- model, counts --------------------------------------------------------------------------------------------------
 */

mf_status mf_api_check_model(const mf_serve_model *model, const char *name, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    for (int32_t i = 0; i < model->num_names; i++) {
        if (strcmp(name, model->names[i]) == 0) {
            return MF_OK;
        }
    }
    mf_text_quote(name, strlen(name), quote);
    quote[strlen(quote) - 1] = '\0';
    return mf_api_fail(error, 404, "model", "The model `%s` does not exist.", quote + 1);
}

static mf_status read_model(const reader *r)
{
    const char *name = text_or_null(r, MF_FIELD_ID_MODEL);
    r->request->model = name ? name : r->model->names[0];
    return name ? mf_api_check_model(r->model, name, r->error) : MF_OK;
}

static int32_t count_prompts(const reader *r)
{
    const json_t *prompt = value_of(r, MF_FIELD_ID_PROMPT)->json;
    bool several = json_is_array(prompt) && !json_is_number(json_array_get(prompt, 0));
    return several ? (int32_t)json_array_size(prompt) : 1;
}

/* Before anything is allocated for them. */
static mf_status read_counts(const reader *r)
{
    mf_api_request *q = r->request;
    q->num_prompts = count_prompts(r);
    q->n = int_or(r, MF_FIELD_ID_N, 1);
    q->best_of = int_or(r, MF_FIELD_ID_BEST_OF, q->n);
    if (q->best_of < q->n) {
        return mf_api_fail(r->error, 400, "best_of",
                           "best_of must be greater than or equal to n, got n=%d and best_of=%d.", q->n, q->best_of);
    }
    if (q->stream && q->best_of > q->n) {
        return mf_api_fail(r->error, 400, "best_of", "best_of must equal n when streaming, got n=%d and best_of=%d.",
                           q->n, q->best_of);
    }
    int32_t sequences = q->num_prompts * q->best_of;
    if (sequences > r->model->max_sequences_per_request) {
        return mf_api_fail(r->error, 400,
                           q->num_prompts > 1  ? "prompt"
                           : q->best_of > q->n ? "best_of"
                                               : "n",
                           "A request may have at most %d sequences (prompts x max(n, best_of)), got %d (%d x %d).",
                           r->model->max_sequences_per_request, sequences, q->num_prompts, q->best_of);
    }
    return MF_OK;
}

/* A prompt may hold NUL, so the length goes with it. */
static void set_text(mf_api_prompt *prompt, const json_t *text)
{
    prompt->text = json_string_value(text);
    prompt->text_size = json_string_length(text);
}

static mf_status read_prompts(const reader *r)
{
    mf_api_request *q = r->request;
    const json_t *json = value_of(r, MF_FIELD_ID_PROMPT)->json;
    q->prompts = mf_arena_array(&q->arena, (size_t)q->num_prompts, sizeof *q->prompts);
    if (!q->prompts) {
        return mf_api_no_memory(r->error);
    }
    if (json_is_string(json)) {
        set_text(&q->prompts[0], json);
        return MF_OK;
    }
    if (json_is_number(json_array_get(json, 0))) {
        return copy_ids(r, json, &q->prompts[0].ids, &q->prompts[0].num_ids);
    }
    for (int32_t i = 0; i < q->num_prompts; i++) {
        const json_t *entry = json_array_get(json, (size_t)i);
        if (json_is_string(entry)) {
            set_text(&q->prompts[i], entry);
        } else {
            MF_TRY(copy_ids(r, entry, &q->prompts[i].ids, &q->prompts[i].num_ids));
        }
    }
    return MF_OK;
}

/* ---- lengths, sampling ----------------------------------------------------------------------------------------------
 */

static mf_status read_max_tokens(const reader *r)
{
    mf_api_request *q = r->request;
    bool chat = q->kind == MF_API_CHAT;
    mf_field_id id = !chat                                       ? MF_FIELD_ID_MAX_TOKENS
                     : has(r, MF_FIELD_ID_MAX_COMPLETION_TOKENS) ? MF_FIELD_ID_MAX_COMPLETION_TOKENS
                                                                 : MF_FIELD_ID_CHAT_MAX_TOKENS;
    q->max_tokens = int_or(r, id, chat ? -1 : 16);
    if (q->max_tokens == 0 && !q->echo) {
        return mf_api_fail(r->error, 400, mf_fields[id].name, "%s must be at least 1 (0 only with echo), got 0.",
                           mf_fields[id].name);
    }
    q->sampling.min_tokens = int_or(r, MF_FIELD_ID_MIN_TOKENS, 0);
    if (q->max_tokens >= 0 && q->sampling.min_tokens > q->max_tokens) {
        return mf_api_fail(r->error, 400, "min_tokens",
                           "min_tokens must be less than or equal to max_tokens=%d, got %d.", q->max_tokens,
                           q->sampling.min_tokens);
    }
    q->truncate_prompt_tokens = int_or(r, MF_FIELD_ID_TRUNCATE_PROMPT_TOKENS, 0);
    if (has(r, MF_FIELD_ID_TRUNCATE_PROMPT_TOKENS) &&
        (q->truncate_prompt_tokens == 0 || q->truncate_prompt_tokens > r->model->max_model_len)) {
        return mf_api_fail(r->error, 400, "truncate_prompt_tokens",
                           "truncate_prompt_tokens must be -1 or in [1, %lld], got %d.",
                           (long long)r->model->max_model_len, q->truncate_prompt_tokens);
    }
    return MF_OK;
}

static double default_number(double configured, double otherwise)
{
    return isnan(configured) || configured < 0 ? otherwise : configured;
}

static void read_sampling(const reader *r)
{
    const mf_serve_model *m = r->model;
    mf_sampling_params *s = &r->request->sampling;
    s->max_tokens = r->request->max_tokens;
    s->temperature = number_or(r, MF_FIELD_ID_TEMPERATURE, default_number(m->default_temperature, 1.0));
    s->top_p = number_or(r, MF_FIELD_ID_TOP_P, default_number(m->default_top_p, 1.0));
    s->min_p = number_or(r, MF_FIELD_ID_MIN_P, default_number(m->default_min_p, 0.0));
    s->top_k = int_or(r, MF_FIELD_ID_TOP_K, m->default_top_k > 0 ? m->default_top_k : -1);
    s->repetition_penalty =
        number_or(r, MF_FIELD_ID_REPETITION_PENALTY, default_number(m->default_repetition_penalty, 1.0));
    s->presence_penalty = number_or(r, MF_FIELD_ID_PRESENCE_PENALTY, 0.0);
    s->frequency_penalty = number_or(r, MF_FIELD_ID_FREQUENCY_PENALTY, 0.0);
    s->ignore_eos = bool_or(r, MF_FIELD_ID_IGNORE_EOS, false);
    s->has_seed = has(r, MF_FIELD_ID_SEED);
    s->seed = s->has_seed ? value_of(r, MF_FIELD_ID_SEED)->integer : 0;
}

/* ---- log-probabilities ----------------------------------------------------------------------------------------------
 */

static mf_status check_logprobs(const reader *r, mf_field_id id)
{
    if (has(r, id) && value_of(r, id)->integer > r->model->max_logprobs) {
        return mf_api_fail(r->error, 400, mf_fields[id].name,
                           "Requested %s of %lld, which is greater than max allowed: %d.", mf_fields[id].name,
                           (long long)value_of(r, id)->integer, r->model->max_logprobs);
    }
    return MF_OK;
}

static mf_status read_logprobs(const reader *r)
{
    mf_api_request *q = r->request;
    mf_sampling_params *s = &q->sampling;
    s->logprobs = -1;
    MF_TRY(check_logprobs(r, MF_FIELD_ID_LOGPROBS));
    MF_TRY(check_logprobs(r, MF_FIELD_ID_TOP_LOGPROBS));
    MF_TRY(check_logprobs(r, MF_FIELD_ID_PROMPT_LOGPROBS));
    if (q->kind == MF_API_CHAT) {
        int32_t top = int_or(r, MF_FIELD_ID_TOP_LOGPROBS, 0);
        q->wants_logprobs = bool_or(r, MF_FIELD_ID_CHAT_LOGPROBS, false);
        if (top > 0 && !q->wants_logprobs) {
            return mf_api_fail(r->error, 400, "top_logprobs",
                               "when using top_logprobs, logprobs must be set to true, got top_logprobs=%d.", top);
        }
        s->logprobs = q->wants_logprobs ? top : -1;
    } else {
        q->wants_logprobs = has(r, MF_FIELD_ID_LOGPROBS);
        s->logprobs = int_or(r, MF_FIELD_ID_LOGPROBS, -1);
    }
    q->prompt_logprobs = int_or(r, MF_FIELD_ID_PROMPT_LOGPROBS, -1);
    if (q->stream && q->prompt_logprobs >= 0) {
        return mf_api_fail(r->error, 400, "prompt_logprobs",
                           "prompt_logprobs are not available when streaming, got prompt_logprobs=%d.",
                           q->prompt_logprobs);
    }
    s->prompt_logprobs = q->prompt_logprobs;
    if (q->kind == MF_API_COMPLETION && q->echo && s->logprobs > s->prompt_logprobs) {
        s->prompt_logprobs = s->logprobs; /* an echoed prompt shows its tokens' own */
    }
    if (q->best_of > q->n && s->logprobs < 0) {
        s->logprobs = 0; /* what the best are chosen by */
    }
    return MF_OK;
}

/* ---- streaming, deadlines -------------------------------------------------------------------------------------------
 */

static mf_status read_option(const reader *r, const json_t *options, const char *name, bool *value)
{
    const json_t *member = json_object_get(options, name);
    char quote[MF_QUOTE_BYTES];
    if (member && !json_is_boolean(member) && !json_is_null(member)) {
        return mf_api_fail(r->error, 400, "stream_options", "stream_options.%s must be true or false, got %s.", name,
                           mf_json_quote(member, quote));
    }
    *value = json_is_true(member);
    return MF_OK;
}

static mf_status read_stream(const reader *r)
{
    mf_api_request *q = r->request;
    q->stream = bool_or(r, MF_FIELD_ID_STREAM, false);
    if (!has(r, MF_FIELD_ID_STREAM_OPTIONS)) {
        return MF_OK;
    }
    const json_t *options = value_of(r, MF_FIELD_ID_STREAM_OPTIONS)->json;
    if (!q->stream) {
        return mf_api_fail(r->error, 400, "stream_options",
                           "Stream options can only be defined when `stream=True`, got stream=false.");
    }
    MF_TRY(read_option(r, options, "include_usage", &q->include_usage));
    return read_option(r, options, "continuous_usage_stats", &q->continuous_usage_stats);
}

/* Digits with at most one point; no sign, exponent or blank. */
static bool parse_seconds(const char *text, double *seconds)
{
    size_t size = strlen(text);
    if (size < 1 || size > 20 || strspn(text, "0123456789.") != size) {
        return false;
    }
    char *end;
    *seconds = strtod(text, &end);
    return *end == '\0';
}

static mf_status read_timeout(const reader *r, const char *header)
{
    const mf_field *f = &mf_fields[MF_FIELD_ID_TIMEOUT];
    mf_api_request *q = r->request;
    char quote[MF_QUOTE_BYTES];
    q->timeout_s = number_or(r, MF_FIELD_ID_TIMEOUT, 0.0);
    if (header) {
        double seconds;
        if (!parse_seconds(header, &seconds) || seconds < f->min || seconds > f->max) {
            bool valid = strlen(header) <= 128;
            return mf_api_fail(r->error, 400, "timeout", "X-Request-Timeout must be seconds in [%g, %g], got %s.",
                               f->min, f->max, mf_text_quote(header, valid ? strlen(header) : 128, quote));
        }
        q->timeout_s = q->timeout_s > 0 && q->timeout_s < seconds ? q->timeout_s : seconds;
    }
    /* The server's own is the most that a request gets. */
    if (r->model->request_timeout_s > 0 && (q->timeout_s == 0 || q->timeout_s > r->model->request_timeout_s)) {
        q->timeout_s = r->model->request_timeout_s;
    }
    return MF_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------
 */

static void read_switches(const reader *r)
{
    mf_api_request *q = r->request;
    bool chat = q->kind == MF_API_CHAT;
    q->echo = bool_or(r, MF_FIELD_ID_ECHO, false);
    q->include_stop_str_in_output = bool_or(r, MF_FIELD_ID_INCLUDE_STOP_STR_IN_OUTPUT, false);
    q->skip_special_tokens = bool_or(r, MF_FIELD_ID_SKIP_SPECIAL_TOKENS, true);
    q->add_special_tokens = chat ? bool_or(r, MF_FIELD_ID_CHAT_ADD_SPECIAL_TOKENS, false)
                                 : bool_or(r, MF_FIELD_ID_ADD_SPECIAL_TOKENS, true);
    q->return_tokens_as_token_ids = bool_or(r, MF_FIELD_ID_RETURN_TOKENS_AS_TOKEN_IDS, false);
    q->return_token_ids = bool_or(r, MF_FIELD_ID_RETURN_TOKEN_IDS, false);
    q->parallel_tool_calls = bool_or(r, MF_FIELD_ID_PARALLEL_TOOL_CALLS, true);
    q->priority = int_or(r, MF_FIELD_ID_PRIORITY, 0);
    q->user = text_or_null(r, MF_FIELD_ID_USER);
    q->request_id = text_or_null(r, MF_FIELD_ID_REQUEST_ID);
    q->cache_salt = text_or_null(r, MF_FIELD_ID_CACHE_SALT);
    q->reasoning_effort = text_or_null(r, MF_FIELD_ID_REASONING_EFFORT);
}

static mf_status read_all(const reader *r, const char *timeout_header)
{
    MF_TRY(read_model(r));
    read_switches(r);
    MF_TRY(read_stream(r));
    MF_TRY(read_counts(r));
    MF_TRY(read_max_tokens(r));
    read_sampling(r);
    MF_TRY(read_logprobs(r));
    MF_TRY(read_timeout(r, timeout_header));
    MF_TRY(read_lists(r));
    MF_TRY(r->request->kind == MF_API_CHAT ? mf_api_read_chat(r->request, r->model, r->values, r->error)
                                           : read_prompts(r));
    return mf_api_read_constraint(r->request, r->values, r->error);
}

mf_status mf_api_request_parse(mf_api_kind kind, const mf_serve_model *model, const char *body, size_t size,
                               const char *timeout_header, mf_api_request **out, mf_api_error *error)
{
    *out = NULL;
    mf_field_value values[MF_NUM_FIELDS];
    mf_api_request *request = mf_alloc_zero(sizeof *request);
    if (!request) {
        return mf_api_no_memory(error);
    }
    request->arena.limit_bytes = ARENA_LIMIT;
    request->kind = kind;
    mf_status status;
    MF_TRY_GOTO(mf_body_parse(body, size, &request->document, error), fail);
    MF_TRY_GOTO(mf_fields_read(request->document, kind == MF_API_CHAT ? MF_IN_CHAT : MF_IN_COMPLETION,
                               model->vocab_size, values, error),
                fail);
    reader r = { model, request, values, error };
    MF_TRY_GOTO(read_all(&r, timeout_header), fail);
    *out = request;
    return MF_OK;
fail:
    mf_api_request_close(&request);
    return status;
}

void mf_api_request_close(mf_api_request **request)
{
    mf_api_request *q = *request;
    if (q) {
        json_decref(q->document);
        mf_arena_clear(&q->arena);
        mf_free(q);
        *request = NULL;
    }
}
