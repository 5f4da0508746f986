/* chat_request_test.c - messages, tools, template variables, constraints of requests. */
#include "test.h"

#include "api_support.h"

#define ONE(message) "{\"messages\": [" message "]}"
#define USER "{\"role\": \"user\", \"content\": \"hi\"}"
#define TOOLS                                                                                                          \
    ", \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"parameters\": {\"type\": "     \
    "\"object\"}}},"                                                                                                   \
    " {\"type\": \"function\", \"function\": {\"name\": \"other\"}}]"

static const char *content_of(const mf_api_request *q, size_t i)
{
    return json_string_value(json_object_get(json_array_get(q->messages, i), "content"));
}

TEST(roles_are_the_five)
{
    mf_api_request *q = api_parse(
        MF_API_CHAT, ONE("{\"role\": \"system\", \"content\": \"a\"}, {\"role\": \"developer\", \"content\": \"\"},"
                         "{\"role\": \"user\", \"content\": \"c\", \"name\": \"tom\"},"
                         "{\"role\": \"assistant\", \"content\": \"d\"},"
                         "{\"role\": \"tool\", \"content\": \"e\", \"tool_call_id\": \"1\"}"));
    CHECK_EQ(json_array_size(q->messages), 5);
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"wizard\", \"content\": \"a\"}"), 400, "messages",
                  "messages[0].role must be system");
    CHECK_REFUSED(MF_API_CHAT, ONE(USER ", {\"content\": \"a\"}"), 400, "messages", "messages[1].role");
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": 5, \"content\": \"a\"}"), 400, "messages", "got 5");
    CHECK_REFUSED(MF_API_CHAT, ONE("\"hi\""), 400, "messages", "messages[0] must be an object");
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"user\", \"content\": \"a\", \"name\": 3}"), 400, "messages",
                  "messages[0].name");
}

TEST(text_parts_are_joined_by_line_breaks)
{
    mf_api_request *q =
        api_parse(MF_API_CHAT, ONE("{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"},"
                                   "{\"type\": \"text\", \"text\": \"b\"}]}, {\"role\": \"user\", \"content\": []}"));
    CHECK_STR(content_of(q, 0), "a\nb");
    CHECK_STR(content_of(q, 1), "");
    mf_api_request_close(&q);
    CHECK_REFUSED(
        MF_API_CHAT,
        ONE("{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", \"image_url\": {\"url\": \"http://x\"}}]}"),
        400, "messages", "only parts of type \"text\" are supported, got \"image_url\"");
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}"), 400, "messages",
                  "content[0].text");
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"user\", \"content\": [\"a\"]}"), 400, "messages", "content[0]");
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"user\", \"content\": 5}"), 400, "messages",
                  "content must be a string");
}

TEST(content_may_be_null_only_beside_tool_calls)
{
    mf_api_request *q = api_parse(
        MF_API_CHAT, ONE(USER ", {\"role\": \"assistant\", \"tool_calls\": [{\"id\": \"c1\", \"type\": \"function\","
                              "\"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": [1]}\"}},"
                              "{\"function\": {\"name\": \"g\", \"arguments\": \"\"}}]}"));
    json_t *message = json_array_get(q->messages, 1), *call = json_array_get(json_object_get(message, "tool_calls"), 0);
    CHECK(json_is_null(json_object_get(message, "content")));
    json_t *arguments = json_object_get(json_object_get(call, "function"), "arguments");
    CHECK(json_is_object(arguments) && json_array_size(json_object_get(arguments, "a")) == 1);
    call = json_array_get(json_object_get(message, "tool_calls"), 1);
    CHECK(json_is_object(json_object_get(json_object_get(call, "function"), "arguments")));
    CHECK_STR(json_string_value(json_object_get(call, "type")), "function");
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"user\", \"content\": null}"), 400, "messages",
                  "content must be a string");
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"assistant\"}"), 400, "messages", "content must be a string");
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"assistant\", \"content\": null, \"tool_calls\": []}"), 400, "messages",
                  "content");
    CHECK_REFUSED(MF_API_CHAT, ONE("{\"role\": \"user\", \"content\": \"a\", \"tool_calls\": [{}]}"), 400, "messages",
                  "of an assistant message");
}

TEST(tool_calls_of_earlier_turns_are_checked)
{
#define CALL(text) ONE("{\"role\": \"assistant\", \"content\": \"a\", \"tool_calls\": [" text "]}")
    CHECK_REFUSED(MF_API_CHAT, CALL("5"), 400, "messages", "tool_calls[0] must be");
    CHECK_REFUSED(MF_API_CHAT, CALL("{\"function\": {}}"), 400, "messages", "tool_calls[0] must be");
    CHECK_REFUSED(MF_API_CHAT, CALL("{\"type\": \"x\", \"function\": {\"name\": \"f\"}}"), 400, "messages",
                  "type must be \"function\"");
    CHECK_REFUSED(MF_API_CHAT, CALL("{\"id\": 5, \"function\": {\"name\": \"f\"}}"), 400, "messages",
                  "id must be a string");
    CHECK_REFUSED(MF_API_CHAT, CALL("{\"function\": {\"name\": \"f\", \"arguments\": \"[1]\"}}"), 400, "messages",
                  "arguments must be a JSON object");
    CHECK_REFUSED(MF_API_CHAT, CALL("{\"function\": {\"name\": \"f\", \"arguments\": \"{\"}}"), 400, "messages",
                  "arguments must be a JSON object");
    CHECK_REFUSED(MF_API_CHAT, CALL("{\"function\": {\"name\": \"f\", \"arguments\": 3}}"), 400, "messages",
                  "arguments must be a JSON object");
}

TEST(reasoning_goes_to_templates_under_both_names)
{
    mf_api_request *q = api_parse(
        MF_API_CHAT, ONE(USER ", {\"role\": \"assistant\", \"content\": \"x\", \"reasoning\": \"because\"}," USER));
    CHECK_STR(json_string_value(json_object_get(json_array_get(q->messages, 1), "reasoning_content")), "because");
    mf_api_request_close(&q);
}

TEST(tools_are_functions_with_plain_names)
{
    mf_api_request *q = api_parse(MF_API_CHAT, CHAT(TOOLS));
    CHECK_EQ(q->tool_choice, MF_TOOLS_AUTO);
    CHECK_EQ(json_array_size(q->tools), 2);
    mf_api_request_close(&q);
    q = api_parse(MF_API_CHAT, CHAT(", \"tools\": []"));
    CHECK(!q->tools && q->tool_choice == MF_TOOLS_NONE);
    mf_api_request_close(&q);
    static const char *const bad[] = { "5",
                                       "{}",
                                       "{\"type\": \"function\"}",
                                       "{\"type\": \"web\", \"function\": {\"name\": \"a\"}}",
                                       "{\"type\": \"function\", \"function\": {\"name\": \"\"}}",
                                       "{\"type\": \"function\", \"function\": {\"name\": \"a b\"}}",
                                       "{\"type\": \"function\", \"function\": {\"name\": \"a\", \"parameters\": 5}}",
                                       "{\"type\": \"function\", \"function\": {\"name\": \"a\", \"description\": 5}}",
                                       "{\"type\": \"function\", \"function\": {\"name\": "
                                       "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}}" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char body[400];
        snprintf(body, sizeof body, CHAT(", \"tools\": [%s]"), bad[i]);
        CHECK_REFUSED(MF_API_CHAT, body, 400, "tools", "tools[0]");
    }
}

TEST(tool_choice_is_none_auto_required_or_a_known_function)
{
    static const struct {
        const char *choice;
        mf_tool_choice want;
    } good[] = { { "\"none\"", MF_TOOLS_NONE },
                 { "\"auto\"", MF_TOOLS_AUTO },
                 { "\"required\"", MF_TOOLS_REQUIRED },
                 { "{\"type\": \"function\", \"function\": {\"name\": \"other\"}}", MF_TOOLS_NAMED } };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        char body[600];
        snprintf(body, sizeof body, CHAT(TOOLS ", \"tool_choice\": %s"), good[i].choice);
        mf_api_request *q = api_parse(MF_API_CHAT, body);
        CHECK_EQ(q->tool_choice, good[i].want);
        CHECK(good[i].want != MF_TOOLS_NAMED || strcmp(q->tool_name, "other") == 0);
        mf_api_request_close(&q);
    }
    mf_api_request *q = api_parse(MF_API_CHAT, CHAT(", \"tool_choice\": \"none\""));
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"tool_choice\": \"auto\""), 400, "tool_choice", "`tools` must be set");
    CHECK_REFUSED(MF_API_CHAT, CHAT(TOOLS ", \"tool_choice\": \"any\""), 400, "tool_choice", "got \"any\"");
    CHECK_REFUSED(MF_API_CHAT, CHAT(TOOLS ", \"tool_choice\": {\"function\": {\"name\": \"other\"}}"), 400,
                  "tool_choice", "got an object");
    CHECK_REFUSED(MF_API_CHAT,
                  CHAT(TOOLS ", \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"nope\"}}"), 400,
                  "tool_choice", "\"nope\"");
}

TEST(template_variables_are_few_shallow_and_not_the_servers)
{
    mf_api_request *q = api_parse(
        MF_API_CHAT, CHAT(", \"chat_template_kwargs\": {\"enable_thinking\": false, \"a\": {\"b\": {\"c\": [1]}}}"));
    CHECK(q->chat_template_kwargs);
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"chat_template_kwargs\": {\"a\": {\"b\": {\"c\": [[1]]}}}"), 400,
                  "chat_template_kwargs", "4 deep");
    static const char *const reserved[] = { "messages", "tools", "tokenize", "add_generation_prompt", "chat_template" };
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
        char body[200];
        snprintf(body, sizeof body, CHAT(", \"chat_template_kwargs\": {\"%s\": 1}"), reserved[i]);
        CHECK_REFUSED(MF_API_CHAT, body, 400, "chat_template_kwargs", "cannot set");
    }
}

TEST(a_template_in_the_request_needs_the_servers_trust)
{
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"chat_template\": \"x\""), 400, "chat_template",
                  "--trust-request-chat-template");
    mf_serve_model model = api_model_copy();
    model.trust_request_chat_template = true;
    mf_api_request *q = api_parse_for(&model, MF_API_CHAT, CHAT(", \"chat_template\": \"x\""));
    CHECK_STR(q->chat_template, "x");
    mf_api_request_close(&q);
}

TEST(generation_prompt_and_continuation_exclude_each_other)
{
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"continue_final_message\": true"), 400, "continue_final_message",
                  "Cannot set both");
}

TEST(one_constraint_at_most)
{
    static const struct {
        const char *fields;
        mf_constraint_kind want;
        const char *text;
    } good[] = {
        { ", \"response_format\": {\"type\": \"text\"}", MF_CONSTRAINT_NONE, NULL },
        { ", \"response_format\": {\"type\": \"json_object\"}", MF_CONSTRAINT_JSON_OBJECT, NULL },
        { ", \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"n\", \"schema\": "
          "{\"type\": \"object\", \"b\": 1, \"a\": 2}}}",
          MF_CONSTRAINT_JSON_SCHEMA, "{\"type\":\"object\",\"b\":1,\"a\":2}" },
        { ", \"structured_outputs\": {\"json\": {\"type\": \"string\"}, \"regex\": null}", MF_CONSTRAINT_JSON_SCHEMA,
          "{\"type\":\"string\"}" },
        { ", \"structured_outputs\": {\"json\": \"{}\"}", MF_CONSTRAINT_JSON_SCHEMA, "{}" },
        { ", \"structured_outputs\": {\"json_object\": true}", MF_CONSTRAINT_JSON_OBJECT, NULL },
        { ", \"structured_outputs\": {\"regex\": \"a+\", \"json_object\": false}", MF_CONSTRAINT_REGEX, "a+" },
        { ", \"structured_outputs\": {\"choice\": [\"a\", \"\\u00e9\"]}", MF_CONSTRAINT_CHOICE,
          "[\"a\",\"\xc3\xa9\"]" },
        { ", \"structured_outputs\": {\"grammar\": \"root ::= \\\"a\\\"\"}", MF_CONSTRAINT_GRAMMAR, "root ::= \"a\"" },
        { ", \"structured_outputs\": null, \"response_format\": null", MF_CONSTRAINT_NONE, NULL },
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        char body[600];
        snprintf(body, sizeof body, CHAT("%s"), good[i].fields);
        mf_api_request *q = api_parse(MF_API_CHAT, body);
        CHECK_EQ(q->constraint, good[i].want);
        CHECK(good[i].text ? strcmp(q->constraint_text, good[i].text) == 0 : !q->constraint_text);
        mf_api_request_close(&q);
        snprintf(body, sizeof body, COMPLETION("%s"), good[i].fields);
        q = api_parse(MF_API_COMPLETION, body);
        CHECK_EQ(q->constraint, good[i].want);
        mf_api_request_close(&q);
    }
    static const char *const bad_format[] = { "{}",
                                              "{\"type\": \"xml\"}",
                                              "{\"type\": 5}",
                                              "{\"type\": \"json_schema\"}",
                                              "{\"type\": \"json_schema\", \"json_schema\": {\"name\": \"n\"}}",
                                              "{\"type\": \"json_schema\", \"json_schema\": {\"schema\": \"{}\"}}" };
    for (size_t i = 0; i < sizeof bad_format / sizeof *bad_format; i++) {
        char body[300];
        snprintf(body, sizeof body, CHAT(", \"response_format\": %s"), bad_format[i]);
        CHECK_REFUSED(MF_API_CHAT, body, 400, "response_format", "response_format");
    }
    static const char *const bad_outputs[] = { "{}",
                                               "{\"regex\": 5}",
                                               "{\"regex\": \"\"}",
                                               "{\"json\": 5}",
                                               "{\"choice\": []}",
                                               "{\"choice\": [5]}",
                                               "{\"choice\": [\"\"]}",
                                               "{\"grammar\": {}}",
                                               "{\"json_object\": false}",
                                               "{\"regex\": \"a\", \"choice\": [\"a\"]}" };
    for (size_t i = 0; i < sizeof bad_outputs / sizeof *bad_outputs; i++) {
        char body[300];
        snprintf(body, sizeof body, CHAT(", \"structured_outputs\": %s"), bad_outputs[i]);
        CHECK_REFUSED(MF_API_CHAT, body, 400, "structured_outputs", "structured");
    }
    CHECK_REFUSED(MF_API_CHAT, CHAT(", \"structured_outputs\": {\"structural_tag\": {}}"), 501, "structured_outputs",
                  "structural_tag");
    CHECK_REFUSED(
        MF_API_CHAT,
        CHAT(", \"structured_outputs\": {\"regex\": \"a\"}, \"response_format\": {\"type\": \"json_object\"}"), 400,
        "structured_outputs", "cannot both");
    CHECK_REFUSED(MF_API_CHAT,
                  CHAT(TOOLS ", \"tool_choice\": \"required\", \"response_format\": {\"type\": \"json_object\"}"), 400,
                  "tool_choice", "cannot both");
}

TEST(a_schema_has_at_most_64_kib)
{
    for (int more = 0; more <= 1; more++) {
        mf_buffer body = { 0 };
        mf_buffer_append_text(&body, "{\"prompt\": \"a\", \"structured_outputs\": {\"regex\": \"");
        for (int i = 0; i < 65536 + more; i++) {
            mf_buffer_append_text(&body, "a");
        }
        mf_buffer_append_text(&body, "\"}}");
        mf_api_error error = { 0 };
        CHECK_EQ(api_status(MF_API_COMPLETION, mf_buffer_text(&body), &error), more ? 400 : 200);
        mf_buffer_close(&body);
    }
}
