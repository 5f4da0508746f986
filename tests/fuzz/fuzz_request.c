/* fuzz_request.c - any bytes as the body of a completion and of a chat: refused with a status and a message, or taken
 * with every value in its range and prepared to ids that fit; twice the same. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "server/prepare.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK_OK(call, err)                                                                                            \
    do {                                                                                                               \
        if ((call) != MF_OK) {                                                                                         \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)
#include "../text/tiny_tokenizer.h"

enum { VOCAB = 258 };

static void check(int ok)
{
    if (!ok) {
        abort();
    }
}

static void check_ids(const int32_t *ids, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        check(ids[i] >= 0 && ids[i] < VOCAB);
    }
}

static void check_request(const mf_api_request *q)
{
    const mf_sampling_params *s = &q->sampling;
    check(q->model && q->n >= 1 && q->n <= 16 && q->best_of >= q->n && q->num_prompts >= 1 &&
          q->num_prompts * q->best_of <= 128);
    check(s->temperature >= 0 && s->temperature <= 2 && s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 &&
          s->min_p <= 1 && s->top_k >= -1);
    check(s->logprobs >= -1 && s->logprobs <= 20 && s->prompt_logprobs >= -1 && s->prompt_logprobs <= 20);
    check(q->max_tokens >= (q->kind == MF_API_CHAT ? -1 : 0) && s->min_tokens >= 0 && q->timeout_s >= 0 &&
          !isinf(q->timeout_s));
    check_ids(s->stop_token_ids, s->num_stop_token_ids);
    check_ids(s->allowed_token_ids, s->num_allowed_token_ids);
    for (int32_t i = 0; i < s->num_logit_bias; i++) {
        check_ids(&s->logit_bias[i].token_id, 1);
        check(s->logit_bias[i].bias >= -100 && s->logit_bias[i].bias <= 100);
    }
    for (int32_t i = 0; i < q->num_stops; i++) {
        check(strlen(q->stops[i]) >= 1 && strlen(q->stops[i]) <= 256);
    }
    for (int32_t i = 0; q->prompts && i < q->num_prompts; i++) {
        check(q->prompts[i].text ? q->prompts[i].text_size > 0 : q->prompts[i].num_ids > 0);
        check_ids(q->prompts[i].ids, q->prompts[i].num_ids);
    }
    check(q->kind == MF_API_COMPLETION ? q->prompts != NULL : json_array_size(q->messages) > 0);
    check(q->constraint < MF_CONSTRAINT_JSON_SCHEMA || q->constraint_text != NULL);
    check(q->tool_choice == MF_TOOLS_NONE || q->tools != NULL);
}

/* Templates have a time limit, so what comes out is looked at but not compared. */
static void check_prepared(const mf_serve_model *model, const mf_api_request *q)
{
    mf_api_error error = { 0 };
    mf_prepared *prepared = NULL;
    if (mf_prepare(model, q, &prepared, &error) != MF_OK) {
        check(!prepared && (error.status == 400 || error.status == 501) && error.param[0] && error.message[0]);
        return;
    }
    check(prepared->num_prompts == q->num_prompts);
    for (int32_t i = 0; i < prepared->num_prompts; i++) {
        const mf_prepared_prompt *p = &prepared->prompts[i];
        check(p->ids.size > 0 && p->max_tokens >= 0 && (int64_t)p->ids.size + p->max_tokens <= model->max_model_len);
        check_ids(p->ids.data, (int32_t)p->ids.size);
        check(!q->echo || p->echo_text);
    }
    const mf_sampling_params *s = &prepared->sampling;
    int32_t total = 0;
    for (int32_t i = 0; i < s->num_bad_words; i++) {
        check(s->bad_word_lengths[i] > 0 && s->bad_word_lengths[i] <= MF_MAX_BAD_WORD_TOKENS);
        total += s->bad_word_lengths[i];
    }
    check_ids(s->bad_words, total);
    mf_prepared_close(&prepared);
}

static int try_body(mf_api_kind kind, const mf_serve_model *model, const char *body, size_t size)
{
    mf_api_error error = { 0 };
    mf_api_request *q = NULL;
    mf_status status = mf_api_request_parse(kind, model, body, size, NULL, &q, &error);
    check((status == MF_OK) == (q != NULL));
    if (q) {
        check_request(q);
        check_prepared(model, q);
    } else {
        check(error.status == 400 || error.status == 404 || error.status == 501);
        check(error.message[0] && mf_utf8_valid(error.message, strlen(error.message), NULL));
    }
    mf_api_request_close(&q);
    return error.status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static mf_prompt prompt;
    static const char *const names[] = { "m" };
    if (!prompt.tokenizer) {
        static const char source[] =
            "{% for m in messages %}<b>{{ m.role }}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}<e>"
            "{% endfor %}{{ tools | tojson if tools }}{{ '<b>' if add_generation_prompt }}";
        mf_error err = { 0 };
        prompt.max_text_bytes = 65536;
        prompt.tokenizer =
            tiny_open(&(tiny_parts){ .added_tokens = "[{\"id\":256,\"content\":\"<b>\",\"special\":true},{\"id\":257,"
                                                     "\"content\":\"<e>\",\"special\":true}]" });
        CHECK_OK(mf_chat_template_parse(source, sizeof source - 1, "t", &prompt.chat_template, &err), err);
    }
    mf_serve_model model = { .prompt = &prompt,
                             .names = names,
                             .num_names = 1,
                             .family = "qwen3_moe",
                             .max_model_len = 4096,
                             .vocab_size = VOCAB,
                             .default_temperature = NAN,
                             .default_top_p = NAN,
                             .default_repetition_penalty = NAN,
                             .default_top_k = -1,
                             .default_max_tokens = -1,
                             .max_logprobs = 20,
                             .max_sequences_per_request = 128,
                             .trust_request_chat_template = size > 0 && (data[size - 1] & 1) };
    for (int kind = MF_API_COMPLETION; kind <= MF_API_CHAT; kind++) {
        int first = try_body(kind, &model, (const char *)data, size);
        check(try_body(kind, &model, (const char *)data, size) == first);
    }
    return 0;
}
