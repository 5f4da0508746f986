/* api_support.c - see api_support.h. */
#include "test.h"

#include "api_support.h"

#include <math.h>
#include <stdlib.h>

static mf_prompt prompt;
static const char *const names[] = { "word-problems", "second-name" };
static const int32_t eos[] = { 1 };
static mf_serve_model model;

static void close_model(void)
{
    mf_prompt_close(&prompt);
}

const mf_serve_model *api_model(void)
{
    if (!model.prompt) {
        mf_error err = { 0 };
        CHECK_OK(mf_prompt_open(MF_SOURCE_DIR "/models/word-problems", NULL, NULL, 1024, &prompt, &err), err);
        atexit(close_model);
        model = (mf_serve_model){ .prompt = &prompt,
                                  .names = names,
                                  .num_names = 2,
                                  .family = "deepseek_v3",
                                  .max_model_len = 1024,
                                  .vocab_size = mf_tokenizer_vocab_size(prompt.tokenizer),
                                  .eos_token_ids = eos,
                                  .num_eos_token_ids = 1,
                                  .default_temperature = NAN,
                                  .default_top_p = NAN,
                                  .default_repetition_penalty = NAN,
                                  .default_top_k = -1,
                                  .default_max_tokens = -1,
                                  .max_logprobs = 20,
                                  .max_sequences_per_request = 128 };
    }
    return &model;
}

mf_serve_model api_model_copy(void)
{
    return *api_model();
}

int api_status(mf_api_kind kind, const char *body, mf_api_error *error)
{
    mf_api_request *request = NULL;
    mf_status status = mf_api_request_parse(kind, api_model(), body, strlen(body), NULL, &request, error);
    assert_true((status == MF_OK) == (request != NULL) && (status == MF_OK) == (error->status == 0));
    mf_api_request_close(&request);
    return status == MF_OK ? 200 : error->status;
}

mf_api_request *api_parse_for(const mf_serve_model *served, mf_api_kind kind, const char *body)
{
    mf_api_error error = { 0 };
    mf_api_request *request = NULL;
    if (mf_api_request_parse(kind, served, body, strlen(body), NULL, &request, &error) != MF_OK) {
        fail_msg("%s: %d, %s: %s", body, error.status, error.param, error.message);
    }
    return request;
}

mf_api_request *api_parse(mf_api_kind kind, const char *body)
{
    return api_parse_for(api_model(), kind, body);
}

int api_prepare_status(const mf_serve_model *served, mf_api_kind kind, const char *body, mf_api_error *error)
{
    mf_api_request *request = api_parse_for(served, kind, body);
    mf_prepared *prepared = NULL;
    mf_status status = mf_prepare(served, request, &prepared, error);
    assert_true((status == MF_OK) == (prepared != NULL));
    mf_prepared_close(&prepared);
    mf_api_request_close(&request);
    return status == MF_OK ? 200 : error->status;
}
