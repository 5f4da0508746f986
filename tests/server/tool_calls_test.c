/* tool_calls_test.c - answers' texts to reasoning, content and calls, whole and in pieces. */
#include "test.h"

#include <stdlib.h>

#include "answer_checks.h"
#include "api_support.h"

static const char *const template_of[] = { "<tool_call> </think>", "<arg_key> </think>",
                                           "<｜tool▁calls▁begin｜> </think>", "<|tool_calls_section_begin|>" };
enum { HERMES, GLM, DEEPSEEK, KIMI };

static mf_answer_options options_of(int format)
{
    const char *source = template_of[format];
    return (mf_answer_options){
        .format = mf_tool_format_find(NULL, source, strlen(source)), .calls = true, .reasoning = true, .id_seed = 7
    };
}

/* ---- formats --------------------------------------------------------------------------------------------------------
 */

TEST(special_tokens_that_write_calls_are_told_from_others)
{
    const mf_tool_format *kimi = mf_tool_format_find("kimi_k2", NULL, 0);
    const mf_tool_format *hermes = mf_tool_format_find("qwen3_moe", NULL, 0);
    CHECK(mf_tool_format_is_marker(kimi, "<|tool_call_begin|>", 19));
    CHECK(mf_tool_format_is_marker(kimi, "<|tool_calls_section_end|>", 26));
    CHECK(!mf_tool_format_is_marker(kimi, "<|im_end|>", 10));
    CHECK(!mf_tool_format_is_marker(kimi, "<|tool_call_begin|", 18));
    CHECK(mf_tool_format_is_marker(hermes, "</think>", 8));
}

TEST(hermes_calls_are_read)
{
    mf_answer_options o = options_of(HERMES);
    json_t *m = answer_message(&o, "Let me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": "
                                   "\"Z\xc3\xbcrich <b>\", \"n\": [1, {}]}}\n"
                                   "</tool_call>\n<tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>\n");
    answer_text_is(m, "content", "Let me look.\n");
    CHECK_EQ(answer_num_calls(m), 2);
    answer_call_is(m, 0, "get_weather", "{\"city\": \"Z\xc3\xbcrich <b>\", \"n\": [1, {}]}");
    answer_call_is(m, 1, "b", "{}");
    json_decref(m);
    m = answer_message(&o, "<tool_call>{\"name\":\"a\",\"parameters\":{\"x\":\"}</tool_call>\"}}</tool_call>");
    answer_text_is(m, "content", NULL);
    answer_call_is(m, 0, "a", "{\"x\":\"}</tool_call>\"}");
    json_decref(m);
}

TEST(hermes_calls_with_members_in_another_order_are_read_when_whole)
{
    mf_answer_options o = options_of(HERMES);
    json_t *m = answer_message(
        &o, "<tool_call>{\"arguments\": {\"a\": 0.1}, \"name\": \"f\"}</tool_call> then <tool_call>{\"id\": "
            "1, \"name\": \"g\","
            " \"arguments\": \"{\\\"b\\\": 2}\"}</tool_call><tool_call>{\"name\": \"h\"}</tool_call>");
    CHECK_EQ(answer_num_calls(m), 3);
    answer_call_is(m, 0, "f", "{\"a\": 0.1}");
    answer_call_is(m, 1, "g", "{\"b\": 2}");
    answer_call_is(m, 2, "h", "{}");
    answer_text_is(m, "content", " then ");
    json_decref(m);
}

TEST(deepseek_calls_are_read_with_and_without_fences)
{
    mf_answer_options o = options_of(DEEPSEEK);
    json_t *m = answer_message(
        &o, "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": "
            "\"```\"}\n"
            "```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n{}\n```<｜tool▁call▁end｜>"
            "<｜tool▁calls▁end｜>");
    answer_text_is(m, "content", "I look.");
    CHECK_EQ(answer_num_calls(m), 2);
    answer_call_is(m, 0, "get_weather", "{\"city\": \"```\"}");
    answer_call_is(m, 1, "b", "{}");
    json_decref(m);
    m = answer_message(
        &o,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Bonn\"}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>none<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜> done");
    answer_text_is(m, "content", " done");
    CHECK_EQ(answer_num_calls(m), 2);
    answer_call_is(m, 0, "get_weather", "{\"city\": \"Bonn\"}");
    answer_call_is(m, 1, "none", "{}");
    json_decref(m);
}

TEST(kimi_calls_keep_their_ids)
{
    mf_answer_options o = options_of(KIMI);
    json_t *m = answer_message(
        &o, "ok <|tool_calls_section_begin|> "
            "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"a\": 1}"
            "<|tool_call_end|><|tool_call_begin|> plain <|tool_call_argument_begin|> {} <|tool_call_end|>"
            "<|tool_calls_section_end|>");
    answer_text_is(m, "content", "ok ");
    CHECK_EQ(answer_num_calls(m), 2);
    answer_call_is(m, 0, "get_weather", "{\"a\": 1}");
    answer_text_is(json_array_get(json_object_get(m, "tool_calls"), 0), "id", "functions.get_weather:0");
    answer_call_is(m, 1, "plain", "{}");
    json_decref(m);
}

TEST(glm_arguments_become_json_by_the_tools_types)
{
    mf_answer_options o = options_of(GLM);
    json_t *tools = json_loads("[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": "
                               "\"object\", \"properties\":"
                               " {\"zip\": {\"type\": \"string\"}}}}}]",
                               0, NULL);
    o.tools = tools;
    json_t *m = answer_message(
        &o,
        "\n<tool_call>f\n<arg_key>zip</arg_key>\n<arg_value>04109</arg_value>\n<arg_key>n</arg_key>\n<arg_value>3</"
        "arg_value>\n"
        "<arg_key>l</arg_key><arg_value>[\"<a>\"]</arg_value><arg_key>t</arg_key>\n<arg_value>a \"b\"\nc</arg_value>\n"
        "</tool_call>\n<tool_call>g</tool_call>");
    CHECK_EQ(answer_num_calls(m), 2);
    answer_call_is(m, 0, "f", "{\"zip\": \"04109\", \"n\": 3, \"l\": [\"<a>\"], \"t\": \"a \\\"b\\\"\\nc\"}");
    answer_call_is(m, 1, "g", "{}");
    answer_text_is(m, "content", "\n");
    json_decref(m);
    json_decref(tools);
}

/* ---- reasoning ------------------------------------------------------------------------------------------------------
 */

TEST(reasoning_is_what_stands_between_the_tags_at_the_beginning)
{
    mf_answer_options o = options_of(HERMES);
    json_t *m = answer_message(&o, "\n<think>\nI should <tool_call>\n</think>\n\nHello<think>x</think>");
    answer_text_is(m, "reasoning", "\nI should <tool_call>\n");
    answer_text_is(m, "content", "\n\nHello<think>x</think>");
    json_decref(m);
    m = answer_message(&o, "<think>cut off </thin");
    answer_text_is(m, "reasoning", "cut off </thin");
    answer_text_is(m, "content", NULL);
    json_decref(m);
    m = answer_message(&o, " <thinner> text");
    answer_text_is(m, "content", " <thinner> text");
    answer_text_is(m, "reasoning", NULL);
    json_decref(m);
    o.opens_reasoning = true;
    m = answer_message(&o, "because</think>so<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>");
    answer_text_is(m, "reasoning", "because");
    answer_text_is(m, "content", "so");
    answer_call_is(m, 0, "f", "{}");
    json_decref(m);
    o = options_of(HERMES);
    o.reasoning = false;
    m = answer_message(&o, "<think>x</think>y");
    answer_text_is(m, "content", "<think>x</think>y");
    json_decref(m);
}

/* ---- what is no call ------------------------------------------------------------------------------------------------
 */

TEST(what_only_looks_like_a_call_stays_content)
{
    static const struct {
        int format;
        const char *text;
    } malformed[] = {
        { HERMES, "<tool_call>" },
        { HERMES, "a <tool_call>hello</tool_call> b" },
        { HERMES, "<tool_call>{\"name\": \"f\"" },
        { HERMES, "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>" },
        { HERMES, "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>" },
        { HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>" },
        { HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": \"x\"}</tool_call>" },
        { HERMES, "<tool_call>{bad}</tool_call>x" },
        { HERMES, "<tool_call><tool_call><tool_call>" },
        { HERMES, "</tool_call> <tool_cal" },
        { HERMES, "{\"name\": \"f\", \"arguments\": {}}" },
        { DEEPSEEK, "<｜tool▁calls▁begin｜>nothing" },
        { DEEPSEEK, "<｜tool▁calls▁begin｜> <｜tool▁call▁begin｜>function<｜tool▁sep｜>f```" },
        { DEEPSEEK, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n[]```<｜tool▁call▁end｜>" },
        { DEEPSEEK, "<｜tool▁call▁begin｜>a b<｜tool▁sep｜>{}" },
        { DEEPSEEK, "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>" },
        { DEEPSEEK, "<｜tool▁call▁begin｜><｜tool▁call▁end｜><｜tool" },
        { KIMI, "<|tool_calls_section_begin|><|tool_call_begin|>functions.:0<|tool_call_argument_begin|>{}" },
        { KIMI, "<|tool_calls_section_begin|><|tool_call_begin|>f<|tool_call_end|>" },
        { GLM, "<tool_call>" },
        { GLM, "<tool_call>some text</tool_call>" },
        { GLM, "<tool_call>f <arg_value>1</arg_value>" },
        { GLM, "<tool_call>f" },
    };
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        mf_answer_options o = options_of(malformed[i].format);
        json_t *m = answer_message(&o, malformed[i].text);
        CHECK_EQ(answer_num_calls(m), 0);
        answer_text_is(m, "content", malformed[i].text);
        json_decref(m);
    }
}

TEST(text_behind_a_broken_call_is_content)
{
    mf_answer_options o = options_of(HERMES);
    json_t *m = answer_message(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1} oops}</tool_call>");
    answer_call_is(m, 0, "f", "{\"a\": 1}");
    answer_text_is(m, "content", " oops}</tool_call>");
    json_decref(m);
    m = answer_message(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1</tool_call>after");
    answer_call_is(m, 0, "f", "{\"a\": 1");
    answer_text_is(m, "content", "after");
    json_decref(m);
    m = answer_message(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"cut");
    answer_call_is(m, 0, "f", "{\"a\": \"cut");
    answer_text_is(m, "content", NULL);
    json_decref(m);
    m = answer_message(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {}}\n</tool_c");
    answer_call_is(m, 0, "f", "{}");
    answer_text_is(m, "content", NULL);
    json_decref(m);
    o = options_of(GLM);
    m = answer_message(&o, "<tool_call>f\n<arg_key>a</arg_key><arg_value>cut");
    answer_call_is(m, 0, "f", "{\"a\": \"cut\"");
    json_decref(m);
    m = answer_message(&o, "<tool_call>f\n<arg_key>a</arg_key>junk");
    answer_call_is(m, 0, "f", "{}");
    answer_text_is(m, "content", "<arg_key>a</arg_key>junk");
    json_decref(m);
}

TEST(without_tools_calls_are_content)
{
    mf_answer_options o = options_of(HERMES);
    o.calls = false;
    const char *text = "<think>r</think><tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    json_t *m = answer_message(&o, text);
    CHECK_EQ(answer_num_calls(m), 0);
    answer_text_is(m, "content", text + 16);
    json_decref(m);
}

/* ---- forced calls ---------------------------------------------------------------------------------------------------
 */

TEST(a_named_call_is_all_arguments)
{
    mf_answer_options o = options_of(HERMES);
    o.choice = MF_TOOLS_NAMED;
    o.tool_name = "get";
    json_t *m = answer_message(&o, "{\"a\": \"<tool_call>\"}");
    answer_call_is(m, 0, "get", "{\"a\": \"<tool_call>\"}");
    answer_text_is(m, "content", NULL);
    json_decref(m);
}

TEST(required_calls_are_a_list)
{
    mf_answer_options o = options_of(HERMES);
    o.choice = MF_TOOLS_REQUIRED;
    json_t *m = answer_message(
        &o, " [ {\"name\": \"f\", \"parameters\": {\"a\": [{}]}} , {\"name\": \"g\", \"parameters\": {}} ]\n");
    CHECK_EQ(answer_num_calls(m), 2);
    answer_call_is(m, 0, "f", "{\"a\": [{}]}");
    answer_call_is(m, 1, "g", "{}");
    answer_text_is(m, "content", NULL);
    json_decref(m);
    m = answer_message(&o, "[{\"parameters\": {\"a\": 1}, \"name\": \"f\"}, {\"name\": \"g\", \"parameters\": {}}] x");
    CHECK_EQ(answer_num_calls(m), 2);
    answer_call_is(m, 0, "f", "{\"a\": 1}");
    answer_call_is(m, 1, "g", "{}");
    answer_text_is(m, "content", " x");
    json_decref(m);
    m = answer_message(&o, "[{\"name\": \"f\", \"parameters\": {\"a\": 1");
    answer_call_is(m, 0, "f", "{\"a\": 1");
    json_decref(m);
    static const char *const none[] = { "hello", "[5]", "[", "{}", "[{\"name\": \"f\"" };
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        m = answer_message(&o, none[i]);
        CHECK_EQ(answer_num_calls(m), 0);
        answer_text_is(m, "content", none[i]);
        json_decref(m);
    }
}

/* ---- streams --------------------------------------------------------------------------------------------------------
 */

typedef struct seen {
    int calls, arguments;
    size_t bytes_when_called;
    size_t pushed;
} seen;

static mf_status note(void *context, const mf_answer_piece *piece)
{
    seen *s = context;
    if (piece->kind == MF_ANSWER_CALL) {
        s->calls++;
        s->bytes_when_called = s->pushed;
        CHECK_STR(piece->name, "f");
    }
    s->arguments += piece->kind == MF_ANSWER_ARGUMENTS;
    return MF_OK;
}

TEST(arguments_are_given_out_while_they_are_written)
{
    mf_answer_options o = options_of(HERMES);
    seen s = { 0 };
    mf_answer_parser *parser = NULL;
    const char *text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"text\": \"a long text that is written word by "
                       "word\"}}\n</tool_call>";
    CHECK_EQ(mf_answer_parser_open(&o, note, &s, &parser), MF_OK);
    for (; text[s.pushed]; s.pushed++) {
        CHECK_EQ(mf_answer_parser_push(parser, text + s.pushed, 1), MF_OK);
    }
    CHECK_EQ(mf_answer_parser_finish(parser), MF_OK);
    CHECK_EQ(s.calls, 1);
    CHECK(s.bytes_when_called < 50);
    CHECK(s.arguments > 40);
    CHECK_EQ(mf_answer_parser_num_calls(parser), 1);
    mf_answer_parser_close(&parser);
}

static mf_status refuse(void *context, const mf_answer_piece *piece)
{
    (void)context;
    (void)piece;
    return MF_ERR_NOMEM;
}

TEST(what_emit_answers_ends_the_parse)
{
    mf_answer_options o = options_of(HERMES);
    mf_answer_parser *parser = NULL;
    CHECK_EQ(mf_answer_parser_open(&o, refuse, NULL, &parser), MF_OK);
    CHECK_EQ(mf_answer_parser_push(parser, "text", 4), MF_ERR_NOMEM);
    CHECK_EQ(mf_answer_parser_finish(parser), MF_ERR_NOMEM);
    mf_answer_parser_close(&parser);
}

TEST(random_mixtures_of_markers_do_not_depend_on_cuts)
{
    static const char *const parts[] = { "<tool_call>",
                                         "</tool_call>",
                                         "{\"name\": \"f\", \"arguments\": {",
                                         "}",
                                         "\"",
                                         "\\",
                                         "<think>",
                                         "</think>",
                                         "<arg_key>",
                                         "</arg_key>",
                                         "<arg_value>",
                                         "</arg_value>",
                                         "f\n",
                                         " ",
                                         "<",
                                         "<｜tool▁calls▁begin｜>",
                                         "<｜tool▁call▁begin｜>",
                                         "<｜tool▁sep｜>",
                                         "<｜tool▁call▁end｜>",
                                         "<｜tool▁calls▁end｜>",
                                         "function",
                                         "```json\n",
                                         "```",
                                         "[",
                                         "]",
                                         ",",
                                         "<|tool_calls_section_begin|>",
                                         "<|tool_call_begin|>",
                                         "<|tool_call_argument_begin|>",
                                         "<|tool_call_end|>",
                                         "<|tool_calls_section_end|>",
                                         "functions.f:0" };
    uint32_t random = 12345;
    for (int round = 0; round < 300; round++) {
        char text[600] = "";
        for (int i = 0; i < 12; i++) {
            random = random * 1664525u + 1013904223u;
            strcat(text, parts[(random >> 16) % (sizeof parts / sizeof *parts)]);
        }
        mf_answer_options o = options_of(round % 4);
        o.choice = round % 5 == 4 ? MF_TOOLS_REQUIRED : MF_TOOLS_AUTO;
        free(answer_every_way(&o, text));
    }
}

TEST(a_family_is_found_by_its_template_and_then_by_its_name)
{
    const char *kimi = template_of[KIMI];
    CHECK_STR(mf_tool_format_find("deepseek_v3", kimi, strlen(kimi))->name, "kimi_k2");
    CHECK_STR(mf_tool_format_find("deepseek_v3", NULL, 0)->name, "deepseek_v3");
    CHECK_STR(mf_tool_format_find("glm4_moe", "", 0)->name, "glm45");
    CHECK_STR(mf_tool_format_find("qwen3_moe", "", 0)->name, "hermes");
    CHECK_STR(mf_tool_format_find("mixtral", "", 0)->name, "hermes");
}
