/* request_fields.c - the table of a request's fields with their ranges, and the one place that checks them. */
#include <stddef.h>
#include <stdio.h>

#include "engine/request.h"

typedef enum field_type { FIELD_INT, FIELD_NUMBER } field_type;

typedef struct field {
    const char *name;
    field_type type;
    size_t offset; /* in mf_sampling_params */
    double min, max;
    bool min_excluded;
} field;

#define INT_FIELD(name, min, max) { #name, FIELD_INT, offsetof(mf_sampling_params, name), min, max, false }
#define NUMBER_FIELD(name, min, max) { #name, FIELD_NUMBER, offsetof(mf_sampling_params, name), min, max, false }
#define NUMBER_FIELD_ABOVE(name, min, max) { #name, FIELD_NUMBER, offsetof(mf_sampling_params, name), min, max, true }

static const field fields[] = {
    INT_FIELD(max_tokens, -1, INT32_MAX),
    INT_FIELD(min_tokens, 0, INT32_MAX),
    NUMBER_FIELD(temperature, 0, 2),
    INT_FIELD(top_k, -1, INT32_MAX),
    NUMBER_FIELD_ABOVE(top_p, 0, 1),
    NUMBER_FIELD(min_p, 0, 1),
    NUMBER_FIELD_ABOVE(repetition_penalty, 0, 10),
    NUMBER_FIELD(presence_penalty, -2, 2),
    NUMBER_FIELD(frequency_penalty, -2, 2),
    INT_FIELD(has_seed, 0, 1),
    INT_FIELD(ignore_eos, 0, 1),
    INT_FIELD(logprobs, -1, MF_MAX_LOGPROBS),
    INT_FIELD(prompt_logprobs, -1, MF_MAX_LOGPROBS),
    INT_FIELD(num_stop_token_ids, 0, MF_MAX_STOP_TOKEN_IDS),
    INT_FIELD(num_allowed_token_ids, 0, MF_MAX_STOP_TOKEN_IDS),
    INT_FIELD(num_logit_bias, 0, MF_MAX_LOGIT_BIAS),
    INT_FIELD(num_bad_words, 0, MF_MAX_BAD_WORDS),
};

static mf_status check_field(const field *f, const mf_sampling_params *params, mf_error *err)
{
    const char *at = (const char *)params + f->offset;
    if (f->type == FIELD_INT) {
        int32_t value = *(const int32_t *)(const void *)at;
        if (value >= f->min && value <= f->max) {
            return MF_OK;
        }
        return mf_fail(err, MF_ERR_INVALID, "%s: expected %.0f to %.0f; got %d", f->name, f->min, f->max, value);
    }
    double value = *(const double *)(const void *)at;
    /* A NaN fails both comparisons. */
    if ((f->min_excluded ? value > f->min : value >= f->min) && value <= f->max) {
        return MF_OK;
    }
    return mf_fail(err, MF_ERR_INVALID, "%s: expected %s%g to %g; got %g", f->name, f->min_excluded ? "above " : "", f->min,
                   f->max, value);
}

static mf_status check_ids(const char *name, const int32_t *ids, size_t n, int32_t vocab_size, mf_error *err)
{
    if (n > 0 && !ids) {
        return mf_fail(err, MF_ERR_INVALID, "%s: expected %zu ids; got NULL", name, n);
    }
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= vocab_size) {
            return mf_fail(err, MF_ERR_INVALID, "%s[%zu]: expected 0 to %d; got %d", name, i, vocab_size - 1, ids[i]);
        }
    }
    return MF_OK;
}

static mf_status check_logit_bias(const mf_sampling_params *p, int32_t vocab_size, mf_error *err)
{
    if (p->num_logit_bias > 0 && !p->logit_bias) {
        return mf_fail(err, MF_ERR_INVALID, "logit_bias: expected %d entries; got NULL", p->num_logit_bias);
    }
    for (int32_t i = 0; i < p->num_logit_bias; i++) {
        const mf_logit_bias *b = &p->logit_bias[i];
        if (b->token_id < 0 || b->token_id >= vocab_size) {
            return mf_fail(err, MF_ERR_INVALID, "logit_bias[%d]: expected a token id of 0 to %d; got %d", i, vocab_size - 1,
                           b->token_id);
        }
        if (!(b->bias >= -100.0f && b->bias <= 100.0f)) {
            return mf_fail(err, MF_ERR_INVALID, "logit_bias[%d]: expected a bias of -100 to 100; got %g", i, (double)b->bias);
        }
    }
    return MF_OK;
}

static mf_status check_bad_words(const mf_sampling_params *p, int32_t vocab_size, mf_error *err)
{
    if (p->num_bad_words > 0 && !p->bad_word_lengths) {
        return mf_fail(err, MF_ERR_INVALID, "bad_word_lengths: expected %d lengths; got NULL", p->num_bad_words);
    }
    size_t total = 0;
    for (int32_t i = 0; i < p->num_bad_words; i++) {
        int32_t n = p->bad_word_lengths[i];
        if (n < 1 || n > MF_MAX_BAD_WORD_TOKENS) {
            return mf_fail(err, MF_ERR_INVALID, "bad_word_lengths[%d]: expected 1 to %d; got %d", i, MF_MAX_BAD_WORD_TOKENS,
                           n);
        }
        total += (size_t)n;
    }
    return check_ids("bad_words", p->bad_words, total, vocab_size, err);
}

/* The prompt and what is asked for must fit the context. */
static mf_status check_lengths(const mf_request *request, const mf_request_limits *limits, int32_t *max_tokens,
                               mf_error *err)
{
    const mf_sampling_params *p = &request->sampling;
    int32_t context = limits->max_model_len;
    int32_t num_prompt = request->num_prompt_tokens;
    if (num_prompt < 1) {
        return mf_fail(err, MF_ERR_INVALID, "num_prompt_tokens: expected 1 to %d; got %d", context, num_prompt);
    }
    int32_t wanted = p->max_tokens >= 0 ? p->max_tokens : context > num_prompt ? context - num_prompt : 1;
    int64_t sum = (int64_t)num_prompt + wanted;
    if (sum > context) {
        return mf_fail(err, MF_ERR_INVALID,
                       "max_tokens: This model's maximum context length is %d tokens. However, you requested %lld tokens "
                       "(%d in the prompt, %d in the completion)",
                       context, (long long)sum, num_prompt, wanted);
    }
    if (p->min_tokens > wanted) {
        return mf_fail(err, MF_ERR_INVALID, "min_tokens: expected 0 to max_tokens, which is %d; got %d", wanted,
                       p->min_tokens);
    }
    *max_tokens = wanted;
    return MF_OK;
}

mf_status mf_request_validate(const mf_request *request, const mf_request_limits *limits, int32_t *max_tokens, mf_error *err)
{
    if (!request || request->struct_size != sizeof *request) {
        return mf_fail(err, MF_ERR_INVALID, "request: expected struct_size %zu, as set by MF_REQUEST_INIT; got %zu",
                       sizeof *request, request ? request->struct_size : 0);
    }
    if (request->guide.fill && (!request->guide.accept || !request->guide.release)) {
        return mf_fail(err, MF_ERR_INVALID, "guide: expected fill with accept and release; got NULL");
    }
    const mf_sampling_params *p = &request->sampling;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        MF_TRY(check_field(&fields[i], p, err));
    }
    MF_TRY(check_lengths(request, limits, max_tokens, err));
    MF_TRY(check_ids("prompt_token_ids", request->prompt_token_ids, (size_t)request->num_prompt_tokens, limits->vocab_size,
                     err));
    MF_TRY(check_ids("stop_token_ids", p->stop_token_ids, (size_t)p->num_stop_token_ids, limits->vocab_size, err));
    MF_TRY(check_ids("allowed_token_ids", p->allowed_token_ids, (size_t)p->num_allowed_token_ids, limits->vocab_size, err));
    MF_TRY(check_logit_bias(p, limits->vocab_size, err));
    return check_bad_words(p, limits->vocab_size, err);
}
