/* prepare_test.c - checked requests to ids: templates, lengths, echo, bad words, guides. */
#include "test.h"

#include <stdlib.h>

#include "api_support.h"
#include "fake_guide.h"

static mf_prepared *prepare_for(const mf_serve_model *model, mf_api_request *q)
{
    mf_api_error error = { 0 };
    mf_prepared *prepared = NULL;
    if (mf_prepare(model, q, &prepared, &error) != MF_OK) {
        fail_msg("%d, %s: %s", error.status, error.param, error.message);
    }
    return prepared;
}

#define CHECK_NOT_PREPARED(model, kind, body, want_status, want_param, part)                                           \
    do {                                                                                                               \
        mf_api_error error_ = { 0 };                                                                                   \
        int got_ = api_prepare_status(model, kind, body, &error_);                                                     \
        if (got_ != (want_status) || strcmp(error_.param, want_param) != 0 || !strstr(error_.message, part)) {         \
            fail_msg("%s: expected %d, %s, \"%s\"; got %d, %s, \"%s\"", body, want_status, want_param, part, got_,     \
                     error_.param, error_.message);                                                                    \
        }                                                                                                              \
    } while (0)

static void check_ids(const mf_ids *got, const mf_ids *want)
{
    CHECK_EQ(got->size, want->size);
    CHECK_MEM(got->data, want->data, want->size * sizeof *want->data);
}

/* ---- prompts --------------------------------------------------------------------------------------------------------
 */

TEST(a_chat_has_the_ids_that_the_program_makes)
{
    static const char *const chats[] = {
        "[{\"role\": \"user\", \"content\": \"Tom has 3 apples.\"}]",
        "[{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": \"user\", \"content\": \"H\\u00e9 "
        "\\ud83d\\ude00\\n\"},"
        " {\"role\": \"assistant\", \"content\": \"4\"}, {\"role\": \"user\", \"content\": \"why?\"}]"
    };
    for (size_t i = 0; i < sizeof chats / sizeof *chats; i++) {
        mf_error err = { 0 };
        mf_ids want = { 0 };
        json_t *messages = json_loads(chats[i], 0, NULL);
        CHECK_OK(mf_prompt_encode_chat(api_model()->prompt, messages, &want, &err), err);
        json_decref(messages);
        char body[600];
        snprintf(body, sizeof body, "{\"messages\": %s}", chats[i]);
        mf_api_request *q = api_parse(MF_API_CHAT, body);
        mf_prepared *p = prepare_for(api_model(), q);
        check_ids(&p->prompts[0].ids, &want);
        CHECK_EQ(p->prompts[0].max_tokens, 1024 - (int32_t)want.size);
        mf_prepared_close(&p);
        mf_api_request_close(&q);
        mf_ids_close(&want);
    }
}

TEST(a_completion_has_the_ids_of_the_raw_text)
{
    mf_error err = { 0 };
    mf_ids want = { 0 };
    CHECK_OK(mf_prompt_encode_raw(api_model()->prompt, "Tom has", 7, &want, &err), err);
    mf_api_request *q = api_parse(MF_API_COMPLETION, "{\"prompt\": [\"Tom has\", \"a\"], \"max_tokens\": 3}");
    mf_prepared *p = prepare_for(api_model(), q);
    CHECK_EQ(p->num_prompts, 2);
    check_ids(&p->prompts[0].ids, &want);
    CHECK_EQ(p->prompts[1].max_tokens, 3);
    CHECK(!p->guide && !p->prompts[0].echo_text);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    mf_ids_close(&want);
    q = api_parse(MF_API_COMPLETION, "{\"prompt\": [[7, 8, 9]]}");
    p = prepare_for(api_model(), q);
    CHECK_EQ(p->prompts[0].ids.size, 3);
    CHECK_EQ(p->prompts[0].ids.data[2], 9);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
}

static char *text_of(const mf_prepared *p)
{
    mf_buffer text = { 0 };
    mf_error err = { 0 };
    CHECK_OK(mf_tokenizer_decode(api_model()->prompt->tokenizer, p->prompts[0].ids.data, p->prompts[0].ids.size, false,
                                 &text, &err),
             err);
    return text.data;
}

static void check_text(const mf_serve_model *model, const char *body, const char *want)
{
    mf_api_request *q = api_parse_for(model, MF_API_CHAT, body);
    mf_prepared *p = prepare_for(model, q);
    char *text = text_of(p);
    CHECK_STR(text, want);
    free(text);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
}

#define BOS                                                                                                            \
    "<\xef\xbd\x9c"                                                                                                    \
    "begin\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"
#define ASSISTANT                                                                                                      \
    "<\xef\xbd\x9c"                                                                                                    \
    "Assistant\xef\xbd\x9c>"
#define USER_TOKEN                                                                                                     \
    "<\xef\xbd\x9c"                                                                                                    \
    "User\xef\xbd\x9c>"

/* Byte 0 has a token of its own in a byte-level vocabulary; the text behind it is not lost. */
TEST(nul_reaches_the_tokenizer_through_prompt_and_template)
{
    static const struct {
        mf_api_kind kind;
        const char *body;
    } cases[] = { { MF_API_COMPLETION, "{\"prompt\": \"a\\u0000bc\"}" },
                  { MF_API_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\\u0000bc\"}]}" } };
    for (size_t i = 0; i < 2; i++) {
        mf_api_request *q = api_parse(cases[i].kind, cases[i].body);
        mf_prepared *prepared = NULL;
        mf_api_error error = { 0 };
        mf_error err = { 0 };
        mf_buffer text = { 0 };
        CHECK(mf_prepare(api_model(), q, &prepared, &error) == MF_OK);
        const mf_ids *ids = &prepared->prompts[0].ids;
        CHECK_OK(mf_tokenizer_decode(api_model()->prompt->tokenizer, ids->data, ids->size, false, &text, &err), err);
        CHECK(memmem(text.data, text.size, "a\0bc", 4) != NULL);
        mf_buffer_close(&text);
        mf_prepared_close(&prepared);
        mf_api_request_close(&q);
    }
}

TEST(the_generation_prompt_is_a_switch)
{
    check_text(api_model(), CHAT(""), BOS USER_TOKEN "hi" ASSISTANT);
    check_text(api_model(), CHAT(", \"add_generation_prompt\": false"), BOS USER_TOKEN "hi");
}

TEST(a_final_message_is_continued_where_it_ends)
{
    check_text(api_model(),
               "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": "
               "\"The answer \"}],"
               " \"add_generation_prompt\": false, \"continue_final_message\": true}",
               BOS USER_TOKEN "hi" ASSISTANT "The answer ");
    mf_serve_model model = api_model_copy();
    model.trust_request_chat_template = true;
    /* A template that trims contents: the text ends where the trimmed content does, as transformers has it. */
    check_text(&model,
               "{\"messages\": [{\"role\": \"assistant\", \"content\": \" a b \"}], \"add_generation_prompt\": false, "
               "\"continue_final_message\":"
               " true, \"chat_template\": \"[{{ messages[-1].content | trim }}]\"}",
               "[a b");
    CHECK_NOT_PREPARED(
        &model, MF_API_CHAT,
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}], \"add_generation_prompt\": false,"
        " \"continue_final_message\": true, \"chat_template\": \"nothing\"}",
        400, "chat_template", "final message does not appear");
}

TEST(template_variables_reach_the_template_and_absent_ones_are_none)
{
    mf_serve_model model = api_model_copy();
    model.trust_request_chat_template = true;
    check_text(&model,
               CHAT(", \"chat_template_kwargs\": {\"a\": [1, \"x\"]}, \"reasoning_effort\": \"low\", \"chat_template\":"
                    " \"{{ a[1] }}{{ reasoning_effort }}{{ tools is none }}{{ documents is none }}{{ b is defined }}{{ "
                    "messages | length }}\""),
               "xlowTrueTrueFalse1");
    check_text(&model,
               CHAT(", \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\"}}], \"chat_template\": \"{{ "
                    "tools[0] | tojson }}\""),
               "{\"type\": \"function\", \"function\": {\"name\": \"f\"}}");
}

TEST(what_a_template_refuses_is_400_with_its_text)
{
    mf_serve_model model = api_model_copy();
    model.trust_request_chat_template = true;
    CHECK_NOT_PREPARED(&model, MF_API_CHAT,
                       CHAT(", \"chat_template\": \"{{ raise_exception('roles must alternate') }}\""), 400,
                       "chat_template", "roles must alternate");
    CHECK_NOT_PREPARED(&model, MF_API_CHAT, CHAT(", \"chat_template\": \"{% if %}\""), 400, "chat_template", "line 1");
    CHECK_NOT_PREPARED(&model, MF_API_CHAT, CHAT(", \"chat_template\": \"{% for i in range(1000000) %}x{% endfor %}\""),
                       400, "chat_template", "range");
    CHECK_NOT_PREPARED(&model, MF_API_CHAT, CHAT(", \"chat_template\": \"{# nothing #}\""), 400, "messages",
                       "no tokens");
    mf_prompt bare = *model.prompt;
    bare.chat_template = NULL;
    model.prompt = &bare;
    CHECK_NOT_PREPARED(&model, MF_API_CHAT, CHAT(""), 400, "messages", "no chat template");
}

/* ---- lengths --------------------------------------------------------------------------------------------------------
 */

/* A body whose one prompt has n ids. */
static char *ids_body(int n, const char *fields)
{
    mf_buffer body = { 0 };
    mf_buffer_append_text(&body, "{\"prompt\": [7");
    for (int i = 1; i < n; i++) {
        mf_buffer_printf(&body, ",%d", 8 + i % 200);
    }
    mf_buffer_printf(&body, "]%s}", fields);
    return body.data;
}

TEST(prompt_and_completion_fit_the_context_or_400)
{
    char *body = ids_body(1008, "");
    mf_api_error error = { 0 };
    CHECK_EQ(api_prepare_status(api_model(), MF_API_COMPLETION, body, &error), 200);
    free(body);
    body = ids_body(1009, "");
    CHECK_NOT_PREPARED(api_model(), MF_API_COMPLETION, body, 400, "prompt",
                       "This model's maximum context length is 1024 tokens. However, you requested 1025 tokens (1009 "
                       "in the prompt, 16 in the "
                       "completion).");
    free(body);
    body = ids_body(1024, ", \"max_tokens\": 0, \"echo\": true");
    CHECK_EQ(api_prepare_status(api_model(), MF_API_COMPLETION, body, &error), 200);
    free(body);
    body = ids_body(3, ", \"max_tokens\": 2147483647");
    CHECK_NOT_PREPARED(api_model(), MF_API_COMPLETION, body, 400, "prompt",
                       "requested 2147483650 tokens (3 in the prompt, 2147483647 in the");
    free(body);
}

TEST(a_text_far_too_long_is_refused_without_encoding_it)
{
    mf_buffer body = { 0 };
    mf_buffer_append_text(&body, "{\"prompt\": \"");
    for (int i = 0; i < 100000; i++) {
        mf_buffer_append_text(&body, "word word word word word word word word word word ");
    }
    mf_buffer_append_text(&body, "\"}");
    CHECK_NOT_PREPARED(api_model(), MF_API_COMPLETION, mf_buffer_text(&body), 400, "prompt",
                       "However, you requested at least ");
    mf_buffer_close(&body);
}

TEST(a_chat_without_max_tokens_takes_the_rest_or_the_configs)
{
    mf_serve_model model = api_model_copy();
    model.default_max_tokens = 40;
    mf_api_request *q = api_parse_for(&model, MF_API_CHAT, CHAT(""));
    mf_prepared *p = prepare_for(&model, q);
    CHECK_EQ(p->prompts[0].max_tokens, 40);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    model.max_model_len = 10;
    q = api_parse_for(&model, MF_API_CHAT, CHAT(""));
    p = prepare_for(&model, q);
    CHECK_EQ(p->prompts[0].max_tokens + (int32_t)p->prompts[0].ids.size, 10);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    CHECK_NOT_PREPARED(&model, MF_API_CHAT, CHAT(", \"min_tokens\": 10"), 400, "min_tokens", "got 10");
    model.max_model_len = 2;
    CHECK_NOT_PREPARED(&model, MF_API_CHAT, CHAT(""), 400, "messages",
                       "This model's maximum context length is 2 tokens.");
}

TEST(truncation_keeps_the_end)
{
    char *body = ids_body(50, ", \"truncate_prompt_tokens\": 5");
    mf_api_request *q = api_parse(MF_API_COMPLETION, body);
    mf_prepared *p = prepare_for(api_model(), q);
    CHECK_EQ(p->prompts[0].ids.size, 5);
    CHECK_EQ(p->prompts[0].ids.data[4], 8 + 49);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    free(body);
    body = ids_body(5000, ", \"truncate_prompt_tokens\": -1, \"max_tokens\": 24");
    q = api_parse(MF_API_COMPLETION, body);
    p = prepare_for(api_model(), q);
    CHECK_EQ(p->prompts[0].ids.size, 1000);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    free(body);
}

/* ---- echo -----------------------------------------------------------------------------------------------------------
 */

static void check_echo(mf_api_kind kind, const char *body, const char *want)
{
    mf_api_request *q = api_parse(kind, body);
    mf_prepared *p = prepare_for(api_model(), q);
    CHECK_STR(p->prompts[0].echo_text, want);
    CHECK_EQ(p->prompts[0].echo_size, strlen(want));
    mf_prepared_close(&p);
    mf_api_request_close(&q);
}

TEST(echo_gives_the_text_of_the_prompt)
{
    check_echo(MF_API_COMPLETION, COMPLETION(", \"echo\": true"), "hi");
    mf_api_request *q = api_parse(MF_API_COMPLETION, COMPLETION(""));
    mf_prepared *p = prepare_for(api_model(), q);
    char body[200];
    CHECK_EQ(p->prompts[0].ids.data[0], 0); /* begin of sentence */
    snprintf(body, sizeof body, "{\"prompt\": [0, %d], \"echo\": true}", p->prompts[0].ids.data[1]);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    q = api_parse(MF_API_COMPLETION, body);
    p = prepare_for(api_model(), q);
    CHECK_HAS(p->prompts[0].echo_text, BOS);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    check_echo(MF_API_CHAT, CHAT(", \"echo\": true"), "");
    check_echo(MF_API_CHAT, CHAT(", \"echo\": true, \"add_generation_prompt\": false"), "hi");
}

/* ---- bad words ------------------------------------------------------------------------------------------------------
 */

TEST(a_bad_word_is_forbidden_alone_and_behind_a_space)
{
    mf_error err = { 0 };
    mf_ids alone = { 0 }, spaced = { 0 };
    const mf_tokenizer *tok = api_model()->prompt->tokenizer;
    CHECK_OK(mf_tokenizer_encode(tok, "apples", 6, 0, &alone, &err), err);
    CHECK_OK(mf_tokenizer_encode(tok, " apples", 7, 0, &spaced, &err), err);
    bool two = alone.size == spaced.size && alone.data[0] != spaced.data[0];
    mf_api_request *q = api_parse(MF_API_COMPLETION, COMPLETION(", \"bad_words\": [\"\\t apples\", \"!\"]"));
    mf_prepared *p = prepare_for(api_model(), q);
    CHECK(p->sampling.num_bad_words >= 2 + two);
    CHECK_EQ(p->sampling.bad_word_lengths[0], (int32_t)alone.size);
    CHECK_MEM(p->sampling.bad_words, alone.data, alone.size * sizeof *alone.data);
    if (two) {
        CHECK_MEM(p->sampling.bad_words + alone.size, spaced.data, spaced.size * sizeof *spaced.data);
    }
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    mf_ids_close(&alone);
    mf_ids_close(&spaced);
    CHECK_NOT_PREPARED(api_model(), MF_API_COMPLETION, COMPLETION(", \"bad_words\": [\" \\u00a0\"]"), 400, "bad_words",
                       "blank");
}

/* ---- guides ---------------------------------------------------------------------------------------------------------
 */

static void check_guide(const char *fields, const char *kind, const char *source)
{
    mf_serve_model model = api_model_copy();
    model.guide_vocab = fake_guide_vocab();
    char body[2000];
    snprintf(body, sizeof body, CHAT("%s"), fields);
    mf_api_request *q = api_parse_for(&model, MF_API_CHAT, body);
    mf_prepared *p = prepare_for(&model, q);
    CHECK(p->guide != NULL);
    CHECK_STR(fake_guide_last.kind, kind);
    CHECK_STR(fake_guide_last.source, source);
    mf_prepared_close(&p);
    mf_api_request_close(&q);
    CHECK_EQ(fake_guide_last.num_open, 0);
}

#define TOOL(name, rest) "{\"type\": \"function\", \"function\": {\"name\": \"" name "\"" rest "}}"
#define CALL_OF(name, parameters)                                                                                      \
    "{\"type\":\"object\",\"properties\":{\"name\":{\"const\":\"" name "\"},\"parameters\":" parameters                \
    "},\"required\":[\"name\",\"parameters\"],\"additionalProperties\":false}"

TEST(each_constraint_is_compiled_by_its_kind)
{
    check_guide(", \"response_format\": {\"type\": \"json_object\"}", "object", "");
    check_guide(", \"structured_outputs\": {\"json\": {\"type\": \"integer\"}}", "schema", "{\"type\":\"integer\"}");
    check_guide(", \"structured_outputs\": {\"regex\": \"[ab]+\"}", "regex", "[ab]+");
    check_guide(", \"structured_outputs\": {\"choice\": [\"yes\", \"no\"]}", "choice", "yes|no|");
    check_guide(", \"structured_outputs\": {\"grammar\": \"root ::= x\"}", "grammar", "root ::= x");
}

TEST(a_forced_tool_call_is_a_schema)
{
    check_guide(", \"tools\": [" TOOL(
                    "f", ", \"parameters\": {\"type\": \"object\", \"properties\": {\"q\": "
                         "{\"type\": \"string\"}}}") ", " TOOL("g", "") "], \"tool_choice\": {\"type\": \"function\", "
                                                                        "\"function\": {\"name\": \"f\"}}",
                "schema", "{\"type\":\"object\",\"properties\":{\"q\":{\"type\":\"string\"}}}");
    check_guide(", \"tools\": [" TOOL("g", "") "], \"tool_choice\": \"required\"", "schema",
                "{\"type\":\"array\",\"minItems\":1,\"items\":" CALL_OF("g", "{\"type\":\"object\"}") "}");
    check_guide(", \"tools\": [" TOOL("g", "") ", " TOOL(
                    "h", "") "], \"tool_choice\": \"required\", \"parallel_tool_calls\": false",
                "schema",
                "{\"type\":\"array\",\"minItems\":1,\"maxItems\":1,\"items\":{\"anyOf\":[" CALL_OF(
                    "g", "{\"type\":\"object\"}") "," CALL_OF("h", "{\"type\":\"object\"}") "]}}");
    /* Definitions move to the root, where references begin. */
    check_guide(", \"tools\": [" TOOL("g", ", \"parameters\": {\"$ref\": \"#/$defs/P\", \"$defs\": {\"P\": {\"type\": "
                                           "\"object\"}}}") "],"
                                                            " \"tool_choice\": \"required\"",
                "schema",
                "{\"type\":\"array\",\"minItems\":1,\"$defs\":{\"P\":{\"type\":\"object\"}},\"items\":" CALL_OF(
                    "g", "{\"$ref\":\"#/$defs/P\"}") "}");
}

TEST(a_constraint_that_does_not_compile_is_400)
{
    mf_serve_model model = api_model_copy();
    CHECK_NOT_PREPARED(&model, MF_API_CHAT, CHAT(", \"response_format\": {\"type\": \"json_object\"}"), 501,
                       "response_format", "cannot constrain");
    model.guide_vocab = fake_guide_vocab();
    static const mf_status statuses[] = { MF_ERR_INVALID, MF_ERR_UNSUPPORTED, MF_ERR_LIMIT };
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        fake_guide_last.fail = statuses[i];
        CHECK_NOT_PREPARED(&model, MF_API_CHAT,
                           CHAT(", \"response_format\": {\"type\": \"json_object\"}, \"structured_outputs\": null"),
                           400, "response_format", "keyword \"x\"");
        CHECK_NOT_PREPARED(&model, MF_API_CHAT, CHAT(", \"tools\": [" TOOL("g", "") "], \"tool_choice\": \"required\""),
                           400, "tools", "keyword \"x\"");
        CHECK_NOT_PREPARED(&model, MF_API_COMPLETION, COMPLETION(", \"structured_outputs\": {\"choice\": [\"a\"]}"),
                           400, "structured_outputs", "keyword \"x\"");
    }
    fake_guide_last.fail = MF_OK;
    CHECK_NOT_PREPARED(
        &model, MF_API_CHAT,
        CHAT(", \"tools\": [" TOOL("g", ", \"parameters\": {\"$defs\": {\"P\": {}}}") ", " TOOL(
            "h", ", \"parameters\": {\"$defs\": {\"P\": {\"type\": \"string\"}}}") "], \"tool_choice\": \"required\""),
        400, "tools", "differs from another function's");
    CHECK_NOT_PREPARED(
        &model, MF_API_CHAT,
        CHAT(", \"tools\": [" TOOL(
            "g", ", \"parameters\": {\"properties\": {\"x\": {\"$ref\": \"#\"}}}") "], \"tool_choice\": \"required\""),
        400, "tools", "only references into $defs");
}
