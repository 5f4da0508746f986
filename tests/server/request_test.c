/* request_test.c - bodies to requests: defaults, combinations of fields, what recorded clients send. */
#include "test.h"

#include "api_support.h"

/* ---- defaults -------------------------------------------------------------------------------------------------------
 */

TEST(a_completion_has_the_documented_defaults)
{
    mf_api_request *q = api_parse(MF_API_COMPLETION, COMPLETION(""));
    CHECK_STR(q->model, "word-problems");
    CHECK_EQ(q->num_prompts, 1);
    CHECK_STR(q->prompts[0].text, "hi");
    CHECK_EQ(q->max_tokens, 16);
    CHECK_EQ(q->n, 1);
    CHECK_EQ(q->best_of, 1);
    CHECK_EQ(q->sampling.logprobs, -1);
    CHECK_EQ(q->sampling.prompt_logprobs, -1);
    CHECK_EQ(q->sampling.top_k, -1);
    CHECK_EQ(q->sampling.has_seed, 0);
    CHECK(q->sampling.temperature == 1.0 && q->sampling.top_p == 1.0 && q->sampling.repetition_penalty == 1.0);
    CHECK(q->add_special_tokens && q->skip_special_tokens && !q->stream && !q->echo && !q->wants_logprobs);
    CHECK(q->timeout_s == 0.0 && !q->user && q->constraint == MF_CONSTRAINT_NONE);
    mf_api_request_close(&q);
}

TEST(a_chat_has_the_documented_defaults)
{
    mf_api_request *q = api_parse(MF_API_CHAT, CHAT(""));
    CHECK_EQ(q->num_prompts, 1);
    CHECK_EQ(json_array_size(q->messages), 1);
    CHECK_EQ(q->max_tokens, -1);
    CHECK(!q->add_special_tokens && q->add_generation_prompt && !q->continue_final_message);
    CHECK(q->tool_choice == MF_TOOLS_NONE && q->parallel_tool_calls && !q->tools);
    CHECK_EQ(q->sampling.logprobs, -1);
    mf_api_request_close(&q);
}

TEST(the_generation_config_gives_what_a_request_leaves_out)
{
    mf_serve_model model = api_model_copy();
    model.default_temperature = 0.6;
    model.default_top_p = 0.95;
    model.default_top_k = 20;
    model.default_repetition_penalty = 1.05;
    mf_api_request *q = api_parse_for(&model, MF_API_CHAT, CHAT(""));
    CHECK(q->sampling.temperature == 0.6 && q->sampling.top_p == 0.95 && q->sampling.repetition_penalty == 1.05);
    CHECK_EQ(q->sampling.top_k, 20);
    mf_api_request_close(&q);
    q = api_parse_for(&model, MF_API_CHAT,
                      CHAT(", \"temperature\": 0, \"top_k\": 0, \"top_p\": 1, \"repetition_penalty\": null"));
    CHECK(q->sampling.temperature == 0.0 && q->sampling.top_p == 1.0 && q->sampling.repetition_penalty == 1.05);
    CHECK_EQ(q->sampling.top_k, 0);
    mf_api_request_close(&q);
}

/* ---- bodies ---------------------------------------------------------------------------------------------------------
 */

TEST(what_is_no_json_object_is_400_without_a_field)
{
    static const char *const bodies[] = { "",
                                          "[]",
                                          "5",
                                          "null",
                                          "{",
                                          "{}x",
                                          "{\"prompt\": \"a\"} {}",
                                          "{\"prompt\": \"a\", \"prompt\": \"b\"}",
                                          "{\"prompt\": \"\\ud800\"}",
                                          "{\"prompt\": \"\xff\"}",
                                          "\xef\xbb\xbf{\"prompt\": \"a\"}",
                                          "{\"prompt\": \"a\", \"temperature\": NaN}",
                                          "{\"prompt\": \"a\", \"temperature\": Infinity}",
                                          "{\"prompt\": \"a\", \"temperature\": 1e999}",
                                          "{\"prompt\": \"a\", \"seed\": 9223372036854775808}",
                                          "{\"prompt\": \"a\",}",
                                          "{'prompt': 'a'}" };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        CHECK_REFUSED(MF_API_COMPLETION, bodies[i], 400, "", "request body");
    }
}

TEST(nul_is_text_where_text_is_the_users_own)
{
    mf_api_request *q = api_parse(MF_API_COMPLETION, "{\"prompt\": [\"a\\u0000b\", \"\\u0000\"]}");
    CHECK_EQ(q->prompts[0].text_size, 3);
    CHECK(memcmp(q->prompts[0].text, "a\0b", 4) == 0);
    CHECK_EQ(q->prompts[1].text_size, 1);
    mf_api_request_close(&q);
    q = api_parse(
        MF_API_CHAT,
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"x\\u0000\"}]}, "
        "{\"role\": \"assistant\", \"content\": null, \"reasoning\": \"\\u0000\", \"tool_calls\": [{\"id\": \"1\", "
        "\"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"\\\\u0000\\\"}\"}}]}, "
        "{\"role\": \"tool\", \"content\": \"y\\u0000z\"}]}");
    CHECK_EQ(json_string_length(json_object_get(json_array_get(q->messages, 0), "content")), 2);
    CHECK_EQ(json_string_length(json_object_get(json_array_get(q->messages, 2), "content")), 3);
    mf_api_request_close(&q);
}

TEST(nul_is_400_in_every_other_string_by_name)
{
    static const struct {
        mf_api_kind kind;
        const char *body, *param, *place;
    } cases[] = {
        { MF_API_COMPLETION, COMPLETION(", \"model\": \"word-problems\\u0000\""), "model", "model cannot hold a NUL" },
        { MF_API_COMPLETION, COMPLETION(", \"stop\": [\"a\", \"\\u0000\"]"), "stop", "stop[1] cannot" },
        { MF_API_COMPLETION, COMPLETION(", \"bad_words\": [\"\\u0000\"]"), "bad_words", "bad_words[0] cannot" },
        { MF_API_COMPLETION, COMPLETION(", \"unknown\": {\"x\": [\"\\u0000\"]}"), "unknown", "unknown.x[0] cannot" },
        { MF_API_COMPLETION, COMPLETION(", \"structured_outputs\": {\"regex\": \"a\\u0000\"}"), "structured_outputs",
          "regex cannot" },
        { MF_API_CHAT, "{\"messages\": [{\"role\": \"user\\u0000\", \"content\": \"a\"}]}", "messages",
          "messages[0].role cannot" },
        { MF_API_CHAT, "{\"messages\": [{\"role\": \"user\", \"name\": \"\\u0000\", \"content\": \"a\"}]}", "messages",
          "messages[0].name cannot" },
        { MF_API_CHAT,
          "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\\u0000\", \"text\": \"a\"}]}]}",
          "messages", "messages[0].content[0].type cannot" },
        { MF_API_CHAT, CHAT(", \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\\u0000\"}}]"), "tools",
          "tools[0].function.name cannot" },
        { MF_API_CHAT, CHAT(", \"chat_template_kwargs\": {\"x\": \"\\u0000\"}"), "chat_template_kwargs",
          "chat_template_kwargs.x cannot" },
        { MF_API_CHAT, CHAT(", \"response_format\": {\"type\": \"text\\u0000\"}"), "response_format",
          "response_format.type cannot" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_REFUSED(cases[i].kind, cases[i].body, 400, cases[i].param, cases[i].place);
    }
}

TEST(depth_64_is_taken_and_65_is_400)
{
    for (int depth = 63; depth <= 65; depth++) {
        char body[400] = "{\"prompt\": \"a\", \"extra\": ";
        size_t n = strlen(body);
        memset(body + n, '[', (size_t)depth - 1);
        memset(body + n + depth - 1, ']', (size_t)depth - 1);
        body[n + 2 * ((size_t)depth - 1)] = '}';
        mf_api_error error = { 0 };
        CHECK_EQ(api_status(MF_API_COMPLETION, body, &error), depth <= 64 ? 200 : 400);
    }
}

static int status_of_values(size_t count)
{
    /* The object, two keys, "a", the list and its entries. */
    mf_buffer body = { 0 };
    mf_buffer_append_text(&body, "{\"prompt\": \"a\", \"x\": [1");
    for (size_t i = 6; i < count; i++) {
        mf_buffer_append_text(&body, ",1");
    }
    mf_buffer_append_text(&body, "]}");
    mf_api_error error = { 0 };
    int status = api_status(MF_API_COMPLETION, mf_buffer_text(&body), &error);
    mf_buffer_close(&body);
    return status;
}

TEST(a_body_has_at_most_1048576_values)
{
    CHECK_EQ(status_of_values(1048576), 200);
    CHECK_EQ(status_of_values(1048577), 400);
}

/* ---- models, counts -------------------------------------------------------------------------------------------------
 */

TEST(a_served_name_is_taken_and_another_is_404)
{
    mf_api_request *q = api_parse(MF_API_COMPLETION, COMPLETION(", \"model\": \"second-name\""));
    CHECK_STR(q->model, "second-name");
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"model\": \"gpt-4\""), 404, "model",
                  "The model `gpt-4` does not exist.");
}

TEST(prompts_times_sequences_is_capped_before_anything_is_made)
{
    mf_serve_model model = api_model_copy();
    model.max_sequences_per_request = 32;
    mf_api_error error = { 0 };
    mf_api_request *q = api_parse_for(&model, MF_API_COMPLETION, "{\"prompt\": [\"a\", \"b\"], \"n\": 16}");
    CHECK_EQ(q->num_prompts, 2);
    mf_api_request_close(&q);
    const char *body = "{\"prompt\": [\"a\", \"b\", \"c\"], \"n\": 8, \"best_of\": 11}";
    CHECK(mf_api_request_parse(MF_API_COMPLETION, &model, body, strlen(body), NULL, &q, &error) == MF_ERR_INVALID);
    CHECK_STR(error.param, "prompt");
    CHECK_HAS(error.message, "at most 32 sequences (prompts x max(n, best_of)), got 33 (3 x 11)");
}

TEST(best_of_is_n_or_more_and_n_when_streaming)
{
    mf_api_request *q = api_parse(MF_API_COMPLETION, COMPLETION(", \"n\": 2, \"best_of\": 4"));
    CHECK_EQ(q->best_of, 4);
    CHECK_EQ(q->sampling.logprobs, 0);
    CHECK(!q->wants_logprobs);
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"n\": 3, \"best_of\": 2"), 400, "best_of",
                  "greater than or equal to n");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"best_of\": 2, \"stream\": true"), 400, "best_of", "streaming");
}

/* ---- prompts --------------------------------------------------------------------------------------------------------
 */

TEST(a_prompt_is_text_or_ids_one_or_several)
{
    mf_api_request *q = api_parse(MF_API_COMPLETION, "{\"prompt\": [\"a\", \"b\\u00e9\"]}");
    CHECK_EQ(q->num_prompts, 2);
    CHECK_STR(q->prompts[1].text, "b\xc3\xa9");
    CHECK_EQ(q->prompts[1].text_size, 3);
    mf_api_request_close(&q);
    q = api_parse(MF_API_COMPLETION, "{\"prompt\": [5, 6.0, 7]}");
    CHECK_EQ(q->num_prompts, 1);
    CHECK(!q->prompts[0].text);
    CHECK_EQ(q->prompts[0].num_ids, 3);
    CHECK_EQ(q->prompts[0].ids[1], 6);
    mf_api_request_close(&q);
    q = api_parse(MF_API_COMPLETION, "{\"prompt\": [[5], [6, 7]]}");
    CHECK_EQ(q->num_prompts, 2);
    CHECK_EQ(q->prompts[1].ids[1], 7);
    mf_api_request_close(&q);
}

TEST(prompts_are_not_mixed_and_none_is_empty)
{
    static const char *const bodies[] = { "{}",
                                          "{\"prompt\": null}",
                                          "{\"prompt\": \"\"}",
                                          "{\"prompt\": []}",
                                          "{\"prompt\": [\"\"]}",
                                          "{\"prompt\": [[]]}",
                                          "{\"prompt\": [\"a\", 1]}",
                                          "{\"prompt\": [1, \"a\"]}",
                                          "{\"prompt\": [[1], \"a\"]}",
                                          "{\"prompt\": [[1], 1]}",
                                          "{\"prompt\": [1, [1]]}",
                                          "{\"prompt\": [[[1]]]}",
                                          "{\"prompt\": [null]}",
                                          "{\"prompt\": [true]}",
                                          "{\"prompt\": {}}",
                                          "{\"prompt\": [1.5]}",
                                          "{\"prompt\": [[\"a\"]]}" };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        CHECK_REFUSED(MF_API_COMPLETION, bodies[i], 400, "prompt", "prompt");
    }
}

/* ---- combinations ---------------------------------------------------------------------------------------------------
 */

TEST(max_tokens_0_needs_echo)
{
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"max_tokens\": 0"), 400, "max_tokens", "must be at least 1");
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"max_completion_tokens\": 0"), 400, "max_completion_tokens",
                  "must be at least 1");
    mf_api_request *q =
        api_parse(MF_API_COMPLETION, COMPLETION(", \"max_tokens\": 0, \"echo\": true, \"logprobs\": 1"));
    CHECK_EQ(q->max_tokens, 0);
    mf_api_request_close(&q);
}

TEST(max_completion_tokens_overrides_max_tokens)
{
    mf_api_request *q = api_parse(MF_API_CHAT, CHAT(", \"max_tokens\": 5, \"max_completion_tokens\": 7"));
    CHECK_EQ(q->max_tokens, 7);
    mf_api_request_close(&q);
}

TEST(min_tokens_is_at_most_max_tokens)
{
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"min_tokens\": 17"), 400, "min_tokens", "max_tokens=16, got 17");
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"min_tokens\": 3, \"max_tokens\": 2"), 400, "min_tokens",
                  "max_tokens=2, got 3");
}

TEST(logprobs_follow_each_kinds_rules)
{
    mf_api_request *q = api_parse(MF_API_COMPLETION, COMPLETION(", \"logprobs\": 0"));
    CHECK(q->wants_logprobs);
    CHECK_EQ(q->sampling.logprobs, 0);
    mf_api_request_close(&q);
    q = api_parse(MF_API_COMPLETION, COMPLETION(", \"logprobs\": 3, \"echo\": true, \"stream\": true"));
    CHECK_EQ(q->sampling.prompt_logprobs, 3);
    CHECK_EQ(q->prompt_logprobs, -1);
    mf_api_request_close(&q);
    q = api_parse(MF_API_COMPLETION, COMPLETION(", \"prompt_logprobs\": 2"));
    CHECK_EQ(q->prompt_logprobs, 2);
    CHECK_EQ(q->sampling.prompt_logprobs, 2);
    CHECK_EQ(q->sampling.logprobs, -1);
    mf_api_request_close(&q);
    q = api_parse(MF_API_CHAT, CHAT(", \"logprobs\": true, \"top_logprobs\": 4"));
    CHECK(q->wants_logprobs);
    CHECK_EQ(q->sampling.logprobs, 4);
    mf_api_request_close(&q);
    q = api_parse(MF_API_CHAT, CHAT(", \"logprobs\": false, \"top_logprobs\": 0"));
    CHECK(!q->wants_logprobs);
    CHECK_EQ(q->sampling.logprobs, -1);
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"top_logprobs\": 1"), 400, "top_logprobs", "logprobs must be set to true");
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"logprobs\": 1"), 400, "logprobs", "true or false, got 1");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"logprobs\": true"), 400, "logprobs", "an integer, got true");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"prompt_logprobs\": 1, \"stream\": true"), 400, "prompt_logprobs",
                  "streaming");
}

TEST(the_servers_own_limit_of_logprobs_holds)
{
    mf_serve_model model = api_model_copy();
    model.max_logprobs = 3;
    mf_api_error error = { 0 };
    mf_api_request *q = api_parse_for(&model, MF_API_COMPLETION, COMPLETION(", \"logprobs\": 3"));
    mf_api_request_close(&q);
    const char *body = COMPLETION(", \"logprobs\": 4");
    CHECK(mf_api_request_parse(MF_API_COMPLETION, &model, body, strlen(body), NULL, &q, &error) == MF_ERR_INVALID);
    CHECK_HAS(error.message, "Requested logprobs of 4, which is greater than max allowed: 3");
}

TEST(stream_options_only_with_stream)
{
    mf_api_request *q =
        api_parse(MF_API_CHAT, CHAT(", \"stream\": true, \"stream_options\": {\"include_usage\": true, \"x\": 1}"));
    CHECK(q->stream && q->include_usage && !q->continuous_usage_stats);
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"stream_options\": {\"include_usage\": true}"), 400, "stream_options",
                  "stream=True");
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"stream\": true, \"stream_options\": {\"include_usage\": 1}"), 400,
                  "stream_options", "include_usage must be true or false, got 1");
}

static mf_api_request *with_header(const mf_serve_model *model, const char *body, const char *header,
                                   mf_api_error *error)
{
    mf_api_request *q = NULL;
    mf_api_request_parse(MF_API_COMPLETION, model, body, strlen(body), header, &q, error);
    return q;
}

TEST(a_deadline_is_the_least_of_field_header_and_server)
{
    mf_serve_model model = api_model_copy();
    mf_api_error error = { 0 };
    static const struct {
        const char *fields, *header;
        double server, want;
    } cases[] = { { "", NULL, 0, 0 },
                  { "", "2.5", 0, 2.5 },
                  { ", \"timeout\": 3", "2.5", 0, 2.5 },
                  { ", \"timeout\": 1.5", "2.5", 0, 1.5 },
                  { ", \"timeout\": 30", "60", 20, 20 },
                  { ", \"timeout\": 3", NULL, 20, 3 },
                  { "", NULL, 20, 20 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[200];
        snprintf(body, sizeof body, COMPLETION("%s"), cases[i].fields);
        model.request_timeout_s = cases[i].server;
        mf_api_request *q = with_header(&model, body, cases[i].header, &error);
        CHECK(q && q->timeout_s == cases[i].want);
        mf_api_request_close(&q);
    }
    static const char *const bad[] = {
        "", "-1", "0", "0.0001", "86401", "1e3", "nan", "inf", "1 ", "1.2.3", ".", "0x10", "123456789012345678901"
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(!with_header(&model, COMPLETION(""), bad[i], &error));
        CHECK_EQ(error.status, 400);
        CHECK_STR(error.param, "timeout");
    }
}

/* ---- recorded clients -----------------------------------------------------------------------------------------------
 */

TEST(recorded_client_bodies_are_taken)
{
    static const struct {
        mf_api_kind kind;
        const char *body;
    } recorded[] = {
        /* vllm bench serve, openai backend */
        { MF_API_COMPLETION, "{\"model\": \"word-problems\", \"prompt\": \"Tom has\", \"max_tokens\": 16, "
                             "\"logprobs\": null, \"stream\": true,"
                             " \"stream_options\": {\"include_usage\": true}, \"repetition_penalty\": 1.0, "
                             "\"ignore_eos\": true, \"temperature\": 0.0}" },
        /* vllm bench serve, openai-chat */
        { MF_API_CHAT,
          "{\"model\": \"word-problems\", \"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", "
          "\"text\": \"Tom\"}]}],"
          " \"max_completion_tokens\": 16, \"stream\": true, \"stream_options\": {\"include_usage\": true}}" },
        /* SGLang's bench_serving, sglang-oai */
        { MF_API_COMPLETION,
          "{\"model\": \"word-problems\", \"prompt\": \"Tom has\", \"temperature\": 0.0, \"best_of\": 1, "
          "\"max_tokens\": 16,"
          " \"stream\": true, \"ignore_eos\": true, \"stream_options\": {\"include_usage\": true}}" },
        /* lm-eval local-completions: log-likelihood, then generation */
        { MF_API_COMPLETION, "{\"model\": \"word-problems\", \"prompt\": [[0, 5, 6, 7]], \"temperature\": 0, "
                             "\"max_tokens\": 1, \"logprobs\": 1,"
                             " \"seed\": 1234, \"echo\": true}" },
        { MF_API_COMPLETION, "{\"prompt\": [[0, 5, 6, 7]], \"model\": \"word-problems\", \"max_tokens\": 256, "
                             "\"temperature\": 0, \"stop\": [],"
                             " \"seed\": 1234}" },
        /* lm-eval local-chat-completions */
        { MF_API_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"Q\", \"type\": \"text\"}], \"model\": "
                       "\"word-problems\", \"max_tokens\": 256,"
                       " \"temperature\": 0, \"stop\": [\"Q:\"], \"seed\": 1234}" },
        /* openai 1.x and 2.x: extra_body is merged; NOT_GIVEN fields are absent */
        { MF_API_CHAT, "{\"messages\": [{\"role\": \"developer\", \"content\": \"be brief\"}, {\"role\": \"user\", "
                       "\"content\": \"hi\"}],"
                       " \"model\": \"word-problems\", \"max_tokens\": 8, \"n\": 2, \"stream\": false, \"top_k\": 1, "
                       "\"ignore_eos\": true}" },
        { MF_API_COMPLETION,
          "{\"model\": \"word-problems\", \"prompt\": [1, 2, 3], \"logprobs\": 5, \"max_tokens\": 4}" },
        /* a legacy body with every optional field null */
        { MF_API_COMPLETION,
          "{\"model\": \"word-problems\", \"prompt\": \"a\", \"suffix\": null, \"max_tokens\": null, \"temperature\": "
          "null,"
          " \"top_p\": null, \"n\": null, \"stream\": null, \"logprobs\": null, \"echo\": null, \"stop\": null,"
          " \"presence_penalty\": null, \"frequency_penalty\": null, \"best_of\": null, \"logit_bias\": null, "
          "\"user\": null}" },
    };
    for (size_t i = 0; i < sizeof recorded / sizeof *recorded; i++) {
        mf_api_error error = { 0 };
        mf_api_request *q = api_parse(recorded[i].kind, recorded[i].body);
        mf_prepared *prepared = NULL;
        if (mf_prepare(api_model(), q, &prepared, &error) != MF_OK) {
            fail_msg("%s: %d: %s", recorded[i].body, error.status, error.message);
        }
        mf_prepared_close(&prepared);
        mf_api_request_close(&q);
    }
}
