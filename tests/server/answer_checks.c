/* answer_checks.c - see answer_checks.h. */
#include "answer_checks.h"

#include <stdlib.h>

#include "test.h"

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

char *answer_every_way(const mf_answer_options *options, const char *text)
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

json_t *answer_message(const mf_answer_options *options, const char *text)
{
    char *dump = answer_every_way(options, text);
    json_t *message = json_loads(dump, 0, NULL);
    CHECK(message != NULL);
    free(dump);
    return message;
}

void answer_text_is(const json_t *message, const char *key, const char *want)
{
    const json_t *value = json_object_get(message, key);
    if (!want ? !(value == NULL || json_is_null(value))
              : !json_is_string(value) || strcmp(json_string_value(value), want) != 0) {
        fail_msg("%s: expected %s; got %s", key, want ? want : "nothing",
                 json_string_value(value) ? json_string_value(value) : "nothing");
    }
}

void answer_call_is(const json_t *message, size_t index, const char *name, const char *arguments)
{
    const json_t *call = json_array_get(json_object_get(message, "tool_calls"), index),
                 *function = json_object_get(call, "function");
    answer_text_is(function, "name", name);
    answer_text_is(function, "arguments", arguments);
    CHECK(json_string_length(json_object_get(call, "id")) > 5);
    answer_text_is(call, "type", "function");
}

size_t answer_num_calls(const json_t *message)
{
    return json_array_size(json_object_get(message, "tool_calls"));
}
