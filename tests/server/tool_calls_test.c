/* tool_calls_test.c - answers' texts to reasoning, content and calls, whole and in pieces. */
#include "test.h"

#include <stdlib.h>

#include "api_support.h"
#include "server/tool_calls.h"

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

/* The message when the text comes in pieces that end at the given places. */
static char *parse_cut(const mf_answer_options *options, const char *text, const size_t *cuts, size_t num_cuts)
{
    mf_answer_parser *parser = NULL;
    mf_answer_message message = { 0 };
    CHECK_EQ(mf_answer_parser_open(options, mf_answer_message_add, &message, &parser), MF_OK);
    size_t at = 0, size = strlen(text);
    for (size_t i = 0; i <= num_cuts; i++) {
        size_t end = i < num_cuts ? cuts[i] : size;
        CHECK_EQ(mf_answer_parser_push(parser, text + at, end - at), MF_OK);
        at = end;
    }
    CHECK_EQ(mf_answer_parser_finish(parser), MF_OK);
    json_t *json = mf_answer_message_json(&message);
    char *dump = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    mf_answer_message_close(&message);
    mf_answer_parser_close(&parser);
    return dump;
}

/* Whole, byte by byte, at every single place, and at some pairs of places: always the same. */
static char *parse_every_way(const mf_answer_options *options, const char *text)
{
    size_t size = strlen(text);
    char *whole = parse_cut(options, text, NULL, 0);
    size_t *all = malloc((size + 1) * sizeof *all);
    for (size_t i = 0; i < size; i++) {
        all[i] = i + 1;
        size_t pair[] = { i, i + (i * 7) % (size - i) };
        for (size_t n = 1; n <= 2; n++) {
            char *cut = parse_cut(options, text, pair, n);
            if (strcmp(cut, whole) != 0) {
                fail_msg("%s\ncut at %zu, %zu:\n%s\nwhole:\n%s", text, pair[0], pair[1], cut, whole);
            }
            free(cut);
        }
    }
    char *bytes = parse_cut(options, text, all, size);
    CHECK_STR(bytes, whole);
    free(bytes);
    free(all);
    return whole;
}

static json_t *message_of(const mf_answer_options *options, const char *text)
{
    char *dump = parse_every_way(options, text);
    json_t *message = json_loads(dump, 0, NULL);
    CHECK(message != NULL);
    free(dump);
    return message;
}

static void check_text(const json_t *message, const char *key, const char *want)
{
    const json_t *value = json_object_get(message, key);
    if (!want ? !(value == NULL || json_is_null(value))
              : !json_is_string(value) || strcmp(json_string_value(value), want) != 0) {
        fail_msg("%s: expected %s; got %s", key, want ? want : "nothing",
                 json_string_value(value) ? json_string_value(value) : "nothing");
    }
}

static void check_call(const json_t *message, size_t index, const char *name, const char *arguments)
{
    const json_t *call = json_array_get(json_object_get(message, "tool_calls"), index),
                 *function = json_object_get(call, "function");
    check_text(function, "name", name);
    check_text(function, "arguments", arguments);
    CHECK(json_string_length(json_object_get(call, "id")) > 5);
    check_text(call, "type", "function");
}

static size_t num_calls(const json_t *message)
{
    return json_array_size(json_object_get(message, "tool_calls"));
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
    json_t *m = message_of(&o, "Let me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": "
                               "\"Z\xc3\xbcrich <b>\", \"n\": [1, {}]}}\n"
                               "</tool_call>\n<tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>\n");
    check_text(m, "content", "Let me look.\n");
    CHECK_EQ(num_calls(m), 2);
    check_call(m, 0, "get_weather", "{\"city\": \"Z\xc3\xbcrich <b>\", \"n\": [1, {}]}");
    check_call(m, 1, "b", "{}");
    json_decref(m);
    m = message_of(&o, "<tool_call>{\"name\":\"a\",\"parameters\":{\"x\":\"}</tool_call>\"}}</tool_call>");
    check_text(m, "content", NULL);
    check_call(m, 0, "a", "{\"x\":\"}</tool_call>\"}");
    json_decref(m);
}

TEST(hermes_calls_with_members_in_another_order_are_read_when_whole)
{
    mf_answer_options o = options_of(HERMES);
    json_t *m =
        message_of(&o, "<tool_call>{\"arguments\": {\"a\": 0.1}, \"name\": \"f\"}</tool_call> then <tool_call>{\"id\": "
                       "1, \"name\": \"g\","
                       " \"arguments\": \"{\\\"b\\\": 2}\"}</tool_call><tool_call>{\"name\": \"h\"}</tool_call>");
    CHECK_EQ(num_calls(m), 3);
    check_call(m, 0, "f", "{\"a\": 0.1}");
    check_call(m, 1, "g", "{\"b\": 2}");
    check_call(m, 2, "h", "{}");
    check_text(m, "content", " then ");
    json_decref(m);
}

TEST(deepseek_calls_are_read_with_and_without_fences)
{
    mf_answer_options o = options_of(DEEPSEEK);
    json_t *m = message_of(
        &o, "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": "
            "\"```\"}\n"
            "```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n{}\n```<｜tool▁call▁end｜>"
            "<｜tool▁calls▁end｜>");
    check_text(m, "content", "I look.");
    CHECK_EQ(num_calls(m), 2);
    check_call(m, 0, "get_weather", "{\"city\": \"```\"}");
    check_call(m, 1, "b", "{}");
    json_decref(m);
    m = message_of(
        &o,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Bonn\"}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>none<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜> done");
    check_text(m, "content", " done");
    CHECK_EQ(num_calls(m), 2);
    check_call(m, 0, "get_weather", "{\"city\": \"Bonn\"}");
    check_call(m, 1, "none", "{}");
    json_decref(m);
}

TEST(kimi_calls_keep_their_ids)
{
    mf_answer_options o = options_of(KIMI);
    json_t *m =
        message_of(&o, "ok <|tool_calls_section_begin|> "
                       "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"a\": 1}"
                       "<|tool_call_end|><|tool_call_begin|> plain <|tool_call_argument_begin|> {} <|tool_call_end|>"
                       "<|tool_calls_section_end|>");
    check_text(m, "content", "ok ");
    CHECK_EQ(num_calls(m), 2);
    check_call(m, 0, "get_weather", "{\"a\": 1}");
    check_text(json_array_get(json_object_get(m, "tool_calls"), 0), "id", "functions.get_weather:0");
    check_call(m, 1, "plain", "{}");
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
    json_t *m = message_of(
        &o,
        "\n<tool_call>f\n<arg_key>zip</arg_key>\n<arg_value>04109</arg_value>\n<arg_key>n</arg_key>\n<arg_value>3</"
        "arg_value>\n"
        "<arg_key>l</arg_key><arg_value>[\"<a>\"]</arg_value><arg_key>t</arg_key>\n<arg_value>a \"b\"\nc</arg_value>\n"
        "</tool_call>\n<tool_call>g</tool_call>");
    CHECK_EQ(num_calls(m), 2);
    check_call(m, 0, "f", "{\"zip\": \"04109\", \"n\": 3, \"l\": [\"<a>\"], \"t\": \"a \\\"b\\\"\\nc\"}");
    check_call(m, 1, "g", "{}");
    check_text(m, "content", "\n");
    json_decref(m);
    json_decref(tools);
}

/* ---- reasoning ------------------------------------------------------------------------------------------------------
 */

TEST(reasoning_is_what_stands_between_the_tags_at_the_beginning)
{
    mf_answer_options o = options_of(HERMES);
    json_t *m = message_of(&o, "\n<think>\nI should <tool_call>\n</think>\n\nHello<think>x</think>");
    check_text(m, "reasoning", "\nI should <tool_call>\n");
    check_text(m, "content", "\n\nHello<think>x</think>");
    json_decref(m);
    m = message_of(&o, "<think>cut off </thin");
    check_text(m, "reasoning", "cut off </thin");
    check_text(m, "content", NULL);
    json_decref(m);
    m = message_of(&o, " <thinner> text");
    check_text(m, "content", " <thinner> text");
    check_text(m, "reasoning", NULL);
    json_decref(m);
    o.opens_reasoning = true;
    m = message_of(&o, "because</think>so<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>");
    check_text(m, "reasoning", "because");
    check_text(m, "content", "so");
    check_call(m, 0, "f", "{}");
    json_decref(m);
    o = options_of(HERMES);
    o.reasoning = false;
    m = message_of(&o, "<think>x</think>y");
    check_text(m, "content", "<think>x</think>y");
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
        json_t *m = message_of(&o, malformed[i].text);
        CHECK_EQ(num_calls(m), 0);
        check_text(m, "content", malformed[i].text);
        json_decref(m);
    }
}

TEST(text_behind_a_broken_call_is_content)
{
    mf_answer_options o = options_of(HERMES);
    json_t *m = message_of(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1} oops}</tool_call>");
    check_call(m, 0, "f", "{\"a\": 1}");
    check_text(m, "content", " oops}</tool_call>");
    json_decref(m);
    m = message_of(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1</tool_call>after");
    check_call(m, 0, "f", "{\"a\": 1");
    check_text(m, "content", "after");
    json_decref(m);
    m = message_of(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"cut");
    check_call(m, 0, "f", "{\"a\": \"cut");
    check_text(m, "content", NULL);
    json_decref(m);
    m = message_of(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {}}\n</tool_c");
    check_call(m, 0, "f", "{}");
    check_text(m, "content", NULL);
    json_decref(m);
    o = options_of(GLM);
    m = message_of(&o, "<tool_call>f\n<arg_key>a</arg_key><arg_value>cut");
    check_call(m, 0, "f", "{\"a\": \"cut\"");
    json_decref(m);
    m = message_of(&o, "<tool_call>f\n<arg_key>a</arg_key>junk");
    check_call(m, 0, "f", "{}");
    check_text(m, "content", "<arg_key>a</arg_key>junk");
    json_decref(m);
}

TEST(without_tools_calls_are_content)
{
    mf_answer_options o = options_of(HERMES);
    o.calls = false;
    const char *text = "<think>r</think><tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    json_t *m = message_of(&o, text);
    CHECK_EQ(num_calls(m), 0);
    check_text(m, "content", text + 16);
    json_decref(m);
}

/* ---- forced calls ---------------------------------------------------------------------------------------------------
 */

TEST(a_named_call_is_all_arguments)
{
    mf_answer_options o = options_of(HERMES);
    o.choice = MF_TOOLS_NAMED;
    o.tool_name = "get";
    json_t *m = message_of(&o, "{\"a\": \"<tool_call>\"}");
    check_call(m, 0, "get", "{\"a\": \"<tool_call>\"}");
    check_text(m, "content", NULL);
    json_decref(m);
}

TEST(required_calls_are_a_list)
{
    mf_answer_options o = options_of(HERMES);
    o.choice = MF_TOOLS_REQUIRED;
    json_t *m = message_of(
        &o, " [ {\"name\": \"f\", \"parameters\": {\"a\": [{}]}} , {\"name\": \"g\", \"parameters\": {}} ]\n");
    CHECK_EQ(num_calls(m), 2);
    check_call(m, 0, "f", "{\"a\": [{}]}");
    check_call(m, 1, "g", "{}");
    check_text(m, "content", NULL);
    json_decref(m);
    m = message_of(&o, "[{\"parameters\": {\"a\": 1}, \"name\": \"f\"}, {\"name\": \"g\", \"parameters\": {}}] x");
    CHECK_EQ(num_calls(m), 2);
    check_call(m, 0, "f", "{\"a\": 1}");
    check_call(m, 1, "g", "{}");
    check_text(m, "content", " x");
    json_decref(m);
    m = message_of(&o, "[{\"name\": \"f\", \"parameters\": {\"a\": 1");
    check_call(m, 0, "f", "{\"a\": 1");
    json_decref(m);
    static const char *const none[] = { "hello", "[5]", "[", "{}", "[{\"name\": \"f\"" };
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        m = message_of(&o, none[i]);
        CHECK_EQ(num_calls(m), 0);
        check_text(m, "content", none[i]);
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
        free(parse_every_way(&o, text));
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
