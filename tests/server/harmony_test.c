/* harmony_test.c - answers in channels: analysis, commentary, final, and calls, whole and in pieces. */
#include "test.h"

#include <stdlib.h>

#include "answer_checks.h"

#define ANALYSIS "<|channel|>analysis<|message|>"
#define FINAL "<|channel|>final<|message|>"
#define NEXT "<|end|><|start|>assistant"
#define CALL_F "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"

static mf_answer_options options_of_harmony(void)
{
    return (mf_answer_options){
        .format = mf_tool_format_find("gpt_oss", NULL, 0), .calls = true, .reasoning = true, .id_seed = 7
    };
}

/* Text that becomes content and reasoning only; NULL: none. */
static void reads_as(const char *text, const char *content, const char *reasoning)
{
    mf_answer_options o = options_of_harmony();
    json_t *m = answer_message(&o, text);
    answer_text_is(m, "content", content);
    answer_text_is(m, "reasoning", reasoning);
    CHECK_EQ(answer_num_calls(m), 0);
    json_decref(m);
}

static json_t *calls_in(const char *text, size_t num_calls)
{
    mf_answer_options o = options_of_harmony();
    json_t *m = answer_message(&o, text);
    CHECK_EQ(answer_num_calls(m), num_calls);
    return m;
}

static void calls_f(const char *text, const char *arguments, const char *content)
{
    json_t *m = calls_in(text, 1);
    answer_call_is(m, 0, "f", arguments);
    answer_text_is(m, "content", content);
    json_decref(m);
}

TEST(harmony_is_found_by_its_template_and_then_by_the_family)
{
    static const char source[] = "{{ '<|start|>assistant<|channel|>final<|message|>' }}";
    CHECK_STR(mf_tool_format_find("mixtral", source, sizeof source - 1)->name, "harmony");
    CHECK_STR(mf_tool_format_find("gpt_oss", NULL, 0)->name, "harmony");
    CHECK_STR(mf_tool_format_find("gpt_oss", "<tool_call>", 11)->name, "hermes");
}

TEST(harmony_markers_are_told_from_other_special_tokens)
{
    static const char *const markers[] = { "<|start|>",     "<|end|>",    "<|message|>", "<|channel|>",
                                           "<|constrain|>", "<|return|>", "<|call|>" };
    const mf_tool_format *format = mf_tool_format_find("gpt_oss", NULL, 0);
    CHECK(format->written_by_specials);
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        CHECK(mf_tool_format_is_marker(format, markers[i], strlen(markers[i])));
    }
    CHECK(!mf_tool_format_is_marker(format, "<|endoftext|>", 13));
    CHECK(!mf_tool_format_is_marker(format, "<|startoftext|>", 15));
    CHECK(!mf_tool_format_is_marker(mf_tool_format_find("qwen3_moe", NULL, 0), "<|channel|>", 11));
}

TEST(harmony_analysis_is_reasoning_and_final_is_content)
{
    reads_as(ANALYSIS "They greet me.\n" NEXT FINAL " Hello <b>!\n<|return|>", " Hello <b>!\n", "They greet me.\n");
    reads_as(ANALYSIS "They greet me." NEXT FINAL "Hello", "Hello", "They greet me.");
    reads_as(FINAL "Hello", "Hello", NULL);
    reads_as("<|message|>Hello<|return|>", "Hello", NULL);
    reads_as("<|start|>assistant" FINAL "Hello<|return|>", "Hello", NULL);
    reads_as(ANALYSIS "still thinking", NULL, "still thinking");
    reads_as("", "", NULL);
}

TEST(harmony_messages_that_become_one_text_stand_in_lines)
{
    reads_as(ANALYSIS "one" NEXT ANALYSIS "two" NEXT "<|channel|>commentary<|message|>I look." NEXT FINAL
                      "Found.<|return|>",
             "I look.\nFound.", "one\ntwo");
    reads_as(FINAL NEXT FINAL "one" NEXT FINAL NEXT FINAL "two", "one\ntwo", NULL);
}

TEST(harmony_calls_are_commentary_to_functions)
{
    mf_answer_options o = options_of_harmony();
    json_t *m =
        answer_message(&o, ANALYSIS "I need the weather." NEXT "<|channel|>commentary<|message|>I look." NEXT
                                    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
                                    "{\"city\": \"Z\xc3\xbcrich <|end|>\", \"n\": [1, {}]}<|call|>");
    answer_text_is(m, "reasoning", "I need the weather.");
    answer_text_is(m, "content", "I look.");
    CHECK_EQ(answer_num_calls(m), 1);
    answer_call_is(m, 0, "get_weather", "{\"city\": \"Z\xc3\xbcrich <|end|>\", \"n\": [1, {}]}");
    json_decref(m);
}

TEST(a_harmony_recipient_may_stand_before_the_channel_or_in_any)
{
    calls_f(" to=functions.f<|channel|>commentary json<|message|>{\"a\": 1}", "{\"a\": 1}", NULL);
    calls_f(ANALYSIS "r" NEXT " to=functions.f<|channel|>commentary json<|message|>{\"a\": 1}<|call|>", "{\"a\": 1}",
            NULL);
    calls_f("<|channel|>analysis to=functions.f code<|message|>\n{\"a\": 1}\n<|call|>", "{\"a\": 1}", NULL);
    calls_f("<|channel|>commentary to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>", "{}",
            NULL);
    calls_f("<|start|>assistant to=functions.f<|message|>{}<|call|>", "{}", NULL);
    calls_f("<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>", "{}", NULL);
}

TEST(harmony_calls_follow_each_other)
{
    json_t *m = calls_in(CALL_F "{\"a\": 1}<|call|><|start|>assistant"
                                "<|channel|>commentary to=functions.g-2 json<|message|>{\"b\": 2}" NEXT FINAL "Done.",
                         2);
    answer_call_is(m, 0, "f", "{\"a\": 1}");
    answer_call_is(m, 1, "g-2", "{\"b\": 2}");
    answer_text_is(m, "content", "Done.");
    const char *ids[2];
    for (size_t i = 0; i < 2; i++) {
        ids[i] = json_string_value(json_object_get(json_array_get(json_object_get(m, "tool_calls"), i), "id"));
        CHECK(strncmp(ids[i], "call_", 5) == 0);
    }
    CHECK(strcmp(ids[0], ids[1]) != 0);
    json_decref(m);
}

TEST(harmony_arguments_are_the_body_whatever_it_is)
{
    calls_f(CALL_F "print(1)<|call|>", "print(1)", NULL);
    calls_f(CALL_F "[1, \"<|call|>\"]<|call|>", "[1, \"<|call|>\"]", NULL);
    calls_f(CALL_F "<|call|>", "{}", NULL);
    calls_f(CALL_F " \n", "{}", NULL);
    calls_f(CALL_F NEXT FINAL "x", "{}", "x");
    calls_f(CALL_F "{\"a\": 1} oops<|call|>", "{\"a\": 1}", " oops");
    calls_f(CALL_F "{\"a\": <|call|>", "{\"a\": ", NULL);
    calls_f(CALL_F "{\"a\": \"cut", "{\"a\": \"cut", NULL);
}

TEST(harmony_messages_to_others_than_functions_are_no_calls)
{
    reads_as("<|channel|>analysis to=python code<|message|>print(1)<|call|>", NULL, "print(1)");
    reads_as("<|channel|>commentary to=browser.search <|constrain|>json<|message|>{\"q\": 1}<|call|>", "{\"q\": 1}",
             NULL);
    reads_as("<|channel|>commentary to=functions. json<|message|>{}<|call|>", "{}", NULL);
    reads_as("<|channel|>commentary to=functions.a/b json<|message|>{}<|call|>", "{}", NULL);
}

TEST(without_tools_a_harmony_call_is_content)
{
    mf_answer_options o = options_of_harmony();
    o.calls = false;
    json_t *m = answer_message(&o, ANALYSIS "r" NEXT CALL_F "{\"a\": 1}<|call|>");
    CHECK_EQ(answer_num_calls(m), 0);
    answer_text_is(m, "reasoning", "r");
    answer_text_is(m, "content", "{\"a\": 1}");
    json_decref(m);
}

TEST(what_only_looks_like_harmony_stays_text)
{
    static const char *const plain[] = { "Hello",
                                         "  to=functions",
                                         " to=functions.f json {}",
                                         "a < b <| c <|chann",
                                         "`<|channel|>` names it",
                                         "<|channel|>bash<|message|>x",
                                         "<|channel|>final value of <|message|>",
                                         "<|channel|>final one two three<|message|>",
                                         "<|start|>user<|message|>hi",
                                         "<|constrain|" };
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        char text[200];
        snprintf(text, sizeof text, FINAL "%s<|return|>", plain[i]);
        reads_as(plain[i], plain[i], NULL);
        reads_as(text, plain[i], NULL);
    }
    reads_as(ANALYSIS "see <|start|>, <|channel|>!" NEXT FINAL "x", "x", "see <|start|>, <|channel|>!");
    reads_as("<|start|><|start|>assistant" FINAL "x", "<|start|>\nx", NULL);
    reads_as("<|start|>assistants" FINAL "x", "<|start|>assistants\nx", NULL);
}

TEST(text_between_harmony_messages_is_content)
{
    reads_as(ANALYSIS "r<|end|> \n<|start|>assistant" FINAL "x<|return|>\n", "x", "r");
    reads_as(ANALYSIS "r<|end|> stray" NEXT FINAL "x", " stray\nx", "r");
    reads_as("stray " FINAL "x<|end|><|end|> y", "stray \nx y", NULL);
    reads_as(ANALYSIS "r" FINAL "x", "x", "r"); /* the end and the start are missing */
    reads_as(ANALYSIS "r<|end|>" FINAL "x", "x", "r");
    reads_as(FINAL "x<|return|><|start|>user<|message|>y", "x<|start|>user<|message|>y", NULL);
}

TEST(a_harmony_header_that_was_cut_is_no_text)
{
    static const char *const cut[] = { "<|start|>",
                                       "<|start|>assis",
                                       "<|start|>assistant",
                                       "<|start|>assistant to=fun",
                                       "<|start|>assistant<|channel|>",
                                       "<|channel|>comm",
                                       "<|channel|>commentary to=functions.f <|constrain|>json" };
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        char text[200];
        snprintf(text, sizeof text, FINAL "x<|end|>%s", cut[i]);
        reads_as(text, "x", NULL);
        snprintf(text, sizeof text, FINAL "x%s", cut[i]);
        reads_as(text, "x", NULL);
        reads_as(cut[i], "", NULL);
    }
}

TEST(harmony_headers_and_blanks_are_bounded)
{
    char *text = malloc(4000), *want = malloc(4000);
    memset(want, ' ', 2000);
    strcpy(want + 2000, "x");
    snprintf(text, 4000, FINAL "%s", want);
    reads_as(text, want, NULL);
    snprintf(text, 4000, FINAL "<|end|>%s", want);
    reads_as(text, want, NULL);
    memcpy(want, "<|channel|>final", 16);
    strcpy(want + 2000, "<|message|>");
    reads_as(want, want, NULL);
    memset(want + 16, ' ', 1024 - 16);
    strcpy(want + 1024 - 11, "<|message|>");
    reads_as(want, "", NULL);
    want[1024 - 11] = ' ';
    strcpy(want + 1024 - 10, "<|message|>");
    reads_as(want, want, NULL);
    free(text);
    free(want);
}

TEST(a_harmony_prompt_may_open_the_reasoning)
{
    mf_answer_options o = options_of_harmony();
    o.opens_reasoning = true;
    json_t *m = answer_message(&o, "because" NEXT FINAL "so");
    answer_text_is(m, "reasoning", "because");
    answer_text_is(m, "content", "so");
    json_decref(m);
}

TEST(constrained_text_is_not_read_as_harmony)
{
    mf_answer_options o = options_of_harmony();
    o.reasoning = false;
    json_t *m = answer_message(&o, "{\"a\": \"" FINAL "\"}");
    answer_text_is(m, "content", "{\"a\": \"" FINAL "\"}");
    json_decref(m);
    o.choice = MF_TOOLS_REQUIRED;
    m = answer_message(&o, "[{\"name\": \"f\", \"parameters\": {\"a\": 1}}]");
    answer_call_is(m, 0, "f", "{\"a\": 1}");
    json_decref(m);
    o.choice = MF_TOOLS_NAMED;
    o.tool_name = "f";
    m = answer_message(&o, "{\"a\": \"" FINAL "\"}");
    answer_call_is(m, 0, "f", "{\"a\": \"" FINAL "\"}");
    json_decref(m);
}

/* ---- streams --------------------------------------------------------------------------------------------------------
 */

static mf_status count(void *context, const mf_answer_piece *piece)
{
    ((int *)context)[piece->kind]++;
    return MF_OK;
}

TEST(harmony_texts_and_arguments_are_given_out_while_they_are_written)
{
    mf_answer_options o = options_of_harmony();
    int pieces[4] = { 0 };
    mf_answer_parser *parser = NULL;
    const char *text = ANALYSIS "0123456789" NEXT FINAL "0123456789" NEXT CALL_F "{\"a\": \"0123456789\"}<|call|>";
    CHECK_EQ(mf_answer_parser_open(&o, count, pieces, &parser), MF_OK);
    for (const char *c = text; *c; c++) {
        CHECK_EQ(mf_answer_parser_push(parser, c, 1), MF_OK);
        CHECK(pieces[MF_ANSWER_CALL] == (c >= strstr(text, "json<|message|>") + 14));
    }
    CHECK_EQ(pieces[MF_ANSWER_REASONING], 10);
    CHECK_EQ(pieces[MF_ANSWER_CONTENT], 10);
    CHECK_EQ(pieces[MF_ANSWER_ARGUMENTS], 19);
    CHECK_EQ(mf_answer_parser_num_calls(parser), 1);
    mf_answer_parser_close(&parser);
}

TEST(random_mixtures_of_harmony_do_not_depend_on_cuts)
{
    static const char *const parts[] = { "<|start|>",  "<|end|>",  "<|message|>", "<|channel|>", "<|constrain|>",
                                         "<|return|>", "<|call|>", "assistant",   "analysis",    "commentary",
                                         "final",      "to=",      "functions.f", " ",           "json",
                                         "{",          "}",        "\"",          "<|",          "text\n",
                                         FINAL,        CALL_F,     NEXT,          ANALYSIS };
    uint32_t random = 54321;
    for (int round = 0; round < 400; round++) {
        char text[1200] = "";
        for (int i = 0; i < 12; i++) {
            random = random * 1664525u + 1013904223u;
            strcat(text, parts[(random >> 16) % (sizeof parts / sizeof *parts)]);
        }
        mf_answer_options o = options_of_harmony();
        o.opens_reasoning = round % 8 == 7;
        o.calls = round % 4 != 3;
        free(answer_every_way(&o, text));
    }
}
