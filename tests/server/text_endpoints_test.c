/* text_endpoints_test.c - /tokenize, /detokenize, /tokenizer_info as pure functions. */
#include "test.h"

#include "api_support.h"
#include "server/text_endpoints.h"

typedef mf_status (*endpoint)(const mf_serve_model *model, const char *body, size_t size, mf_buffer *out,
                              mf_api_error *error);

static json_t *answer(endpoint call, const char *body)
{
    mf_buffer out = { 0 };
    mf_api_error error = { 0 };
    if (call(api_model(), body, strlen(body), &out, &error) != MF_OK) {
        fail_msg("%s: %d: %s", body, error.status, error.message);
    }
    json_t *json = json_loadb(mf_buffer_text(&out), out.size, JSON_REJECT_DUPLICATES, NULL);
    CHECK(json != NULL);
    mf_buffer_close(&out);
    return json;
}

static void check_refused(endpoint call, const char *body, int status, const char *param)
{
    mf_buffer out = { 0 };
    mf_api_error error = { 0 };
    CHECK(call(api_model(), body, strlen(body), &out, &error) != MF_OK);
    if (error.status != status || strcmp(error.param, param) != 0 || out.size != 0) {
        fail_msg("%s: expected %d, %s; got %d, %s: %s", body, status, param, error.status, error.param, error.message);
    }
    mf_buffer_close(&out);
}

static int64_t number(const json_t *json, const char *key)
{
    return json_integer_value(json_object_get(json, key));
}

static void check_tokens(const json_t *json, const mf_ids *want)
{
    const json_t *tokens = json_object_get(json, "tokens");
    CHECK_EQ(number(json, "count"), (int64_t)want->size);
    CHECK_EQ(json_array_size(tokens), want->size);
    for (size_t i = 0; i < want->size; i++) {
        CHECK_EQ(json_integer_value(json_array_get(tokens, i)), want->data[i]);
    }
}

TEST(a_prompt_is_tokenized_with_the_special_tokens_unless_told_not_to)
{
    mf_error err = { 0 };
    mf_ids want = { 0 };
    CHECK_OK(mf_prompt_encode_raw(api_model()->prompt, "Tom has", 7, &want, &err), err);
    json_t *json = answer(mf_text_tokenize, "{\"model\": \"word-problems\", \"prompt\": \"Tom has\"}");
    check_tokens(json, &want);
    CHECK_EQ(number(json, "max_model_len"), 1024);
    CHECK(json_is_null(json_object_get(json, "token_strs")));
    json_decref(json);
    json = answer(mf_text_tokenize,
                  "{\"prompt\": \"Tom has\", \"add_special_tokens\": false, \"return_token_strs\": true}");
    CHECK_EQ(number(json, "count"), (int64_t)want.size - 1);
    const json_t *texts = json_object_get(json, "token_strs");
    CHECK_EQ(json_array_size(texts), want.size - 1);
    CHECK_STR(json_string_value(json_array_get(texts, 0)),
              mf_tokenizer_token_text(api_model()->prompt->tokenizer, want.data[1]));
    json_decref(json);
    mf_ids_close(&want);
    json = answer(mf_text_tokenize, "{\"prompt\": \"\", \"add_special_tokens\": false}");
    CHECK_EQ(number(json, "count"), 0);
    json_decref(json);
}

TEST(messages_are_tokenized_as_a_chat_request_is)
{
    mf_error err = { 0 };
    mf_ids want = { 0 };
    json_t *messages = json_loads("[{\"role\": \"user\", \"content\": \"Tom\\nhas\"}]", 0, NULL);
    CHECK_OK(mf_prompt_encode_chat(api_model()->prompt, messages, &want, &err), err);
    json_decref(messages);
    json_t *json = answer(mf_text_tokenize, "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", "
                                            "\"text\": \"Tom\"}, {\"type\": \"text\","
                                            " \"text\": \"has\"}]}], \"chat_template_kwargs\": {\"a\": 1}}");
    check_tokens(json, &want);
    json_decref(json);
    json =
        answer(mf_text_tokenize,
               "{\"messages\": [{\"role\": \"user\", \"content\": \"Tom\\nhas\"}], \"add_generation_prompt\": false}");
    CHECK_EQ(number(json, "count"), (int64_t)want.size - 1);
    json_decref(json);
    mf_ids_close(&want);
}

TEST(tokenize_wants_a_prompt_or_messages)
{
    check_refused(mf_text_tokenize, "{}", 400, "prompt");
    check_refused(mf_text_tokenize, "{\"prompt\": null}", 400, "prompt");
    check_refused(mf_text_tokenize, "{\"prompt\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
                  400, "messages");
    check_refused(mf_text_tokenize, "{\"prompt\": [1]}", 400, "prompt");
    check_refused(mf_text_tokenize, "{\"prompt\": \"a\", \"model\": \"x\"}", 404, "model");
    check_refused(mf_text_tokenize, "{\"prompt\": \"a\", \"return_token_strs\": 1}", 400, "return_token_strs");
    check_refused(mf_text_tokenize, "{\"messages\": [{\"role\": \"x\", \"content\": \"a\"}]}", 400, "messages");
    check_refused(mf_text_tokenize, "{\"messages\": []}", 400, "messages");
    check_refused(mf_text_tokenize,
                  "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"chat_template\": \"x\"}", 400,
                  "chat_template");
    check_refused(mf_text_tokenize, "[", 400, "");
}

TEST(detokenize_gives_the_text_back)
{
    json_t *json = answer(mf_text_detokenize, "{\"model\": \"word-problems\", \"tokens\": []}");
    CHECK_STR(json_string_value(json_object_get(json, "prompt")), "");
    json_decref(json);
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    const char *text = "Tom \"has\"\n3 \xc3\xa9 apples\t";
    CHECK_OK(mf_tokenizer_encode(api_model()->prompt->tokenizer, text, strlen(text), 0, &ids, &err), err);
    mf_buffer body = { 0 };
    mf_buffer_append_text(&body, "{\"tokens\": [0");
    for (size_t i = 0; i < ids.size; i++) {
        mf_buffer_printf(&body, ", %d", ids.data[i]);
    }
    mf_buffer_append_text(&body, "]}");
    json = answer(mf_text_detokenize, mf_buffer_text(&body));
    const char *got = json_string_value(json_object_get(json, "prompt"));
    CHECK_STR(got + strlen(got) - strlen(text), text);
    CHECK_HAS(got, "begin"); /* special tokens stay */
    json_decref(json);
    mf_buffer_close(&body);
    mf_ids_close(&ids);
}

TEST(detokenize_wants_ids_of_the_vocabulary)
{
    check_refused(mf_text_detokenize, "{}", 400, "tokens");
    check_refused(mf_text_detokenize, "{\"tokens\": [1024]}", 400, "tokens");
    check_refused(mf_text_detokenize, "{\"tokens\": [-1]}", 400, "tokens");
    check_refused(mf_text_detokenize, "{\"tokens\": \"a\"}", 400, "tokens");
    check_refused(mf_text_detokenize, "{\"tokens\": [\"a\"]}", 400, "tokens");
    check_refused(mf_text_detokenize, "{\"tokens\": [1], \"model\": \"x\"}", 404, "model");
}

TEST(tokenizer_info_names_tokens_template_and_sizes)
{
    mf_buffer out = { 0 };
    mf_api_error error = { 0 };
    CHECK(mf_text_tokenizer_info(api_model(), &out, &error) == MF_OK);
    json_t *json = json_loadb(mf_buffer_text(&out), out.size, JSON_REJECT_DUPLICATES, NULL);
    CHECK(json != NULL);
    CHECK_EQ(json_object_size(json), 8);
    CHECK_STR(json_string_value(json_object_get(json, "tokenizer_class")), "PreTrainedTokenizerFast");
    CHECK_HAS(json_string_value(json_object_get(json, "eos_token")), "end");
    CHECK(json_is_null(json_object_get(json, "unk_token")));
    CHECK_HAS(json_string_value(json_object_get(json, "chat_template")), "{% if add_generation_prompt %}");
    CHECK_EQ(number(json, "vocab_size"), 1024);
    CHECK_EQ(number(json, "model_max_length"), 1024);
    json_decref(json);
    mf_buffer_close(&out);
}
