/* fields_test.c - requests generated from the field table: each row just below, at, and just above its limits, with
 * wrong types, and null. */
#include "test.h"

#include <math.h>

#include "api_support.h"
#include "server/fields.h"

/* ---- bodies made from a row -----------------------------------------------------------------------------------------
 */

/* What else a body needs for the row to be looked at alone. */
static const char *companion(const mf_field *f)
{
    if (strcmp(f->name, "max_tokens") == 0 || strcmp(f->name, "max_completion_tokens") == 0) {
        return ", \"echo\": true";
    }
    if (strcmp(f->name, "min_tokens") == 0) {
        return ", \"max_tokens\": 2147483647";
    }
    if (strcmp(f->name, "top_logprobs") == 0) {
        return ", \"logprobs\": true";
    }
    if (strcmp(f->name, "stream_options") == 0) {
        return ", \"stream\": true";
    }
    if (strcmp(f->name, "continue_final_message") == 0) {
        return ", \"add_generation_prompt\": false";
    }
    return "";
}

static void put_entries(mf_buffer *out, const mf_field *f, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        mf_buffer_append_text(out, i ? ", " : "");
        if (f->type == MF_FIELD_IDS) {
            mf_buffer_printf(out, "%zu", i % 1024);
        } else if (strcmp(f->name, "messages") == 0) {
            mf_buffer_append_text(out, "{\"role\": \"user\", \"content\": \"x\"}");
        } else if (strcmp(f->name, "tools") == 0) {
            mf_buffer_printf(out, "{\"type\": \"function\", \"function\": {\"name\": \"t%zu\"}}", i);
        } else {
            mf_buffer_append_text(out, "\"word\"");
        }
    }
}

static void put_members(mf_buffer *out, const mf_field *f, size_t count)
{
    size_t i = 0;
    if (strcmp(f->name, "response_format") == 0 && count > 0) {
        mf_buffer_printf(out, "\"type\": \"text\"");
        i++;
    } else if (strcmp(f->name, "structured_outputs") == 0 && count > 0) {
        mf_buffer_printf(out, "\"regex\": \"a\"");
        i++;
    }
    for (; i < count; i++) {
        mf_buffer_printf(out, strcmp(f->name, "logit_bias") == 0 ? "%s\"%zu\": 1" : "%s\"key%zu\": 1", i ? ", " : "",
                         i);
    }
}

/* A value of the row's type: a number, or so many bytes, entries or members. */
static void put_value(mf_buffer *out, const mf_field *f, double size)
{
    size_t count = size > 0 ? (size_t)size : 0;
    switch (f->type) {
    case MF_FIELD_INT:
        mf_buffer_printf(out, "%.0f", size);
        break;
    case MF_FIELD_NUMBER:
        mf_buffer_printf(out, "%.17g", size);
        break;
    case MF_FIELD_STRING:
        mf_buffer_append_text(out, "\"");
        for (size_t i = 0; i < count; i++) {
            mf_buffer_append_text(out, "x");
        }
        mf_buffer_append_text(out, "\"");
        break;
    case MF_FIELD_OBJECT:
    case MF_FIELD_STRING_OR_OBJECT:
        mf_buffer_append_text(out, "{");
        put_members(out, f, count);
        mf_buffer_append_text(out, "}");
        break;
    default:
        mf_buffer_append_text(out, "[");
        put_entries(out, f, count);
        mf_buffer_append_text(out, "]");
        break;
    }
}

static int send(const mf_field *f, unsigned where, const char *value, mf_api_error *error)
{
    mf_buffer body = { 0 };
    bool chat = where == MF_IN_CHAT;
    const char *needed = strcmp(f->name, chat ? "messages" : "prompt") == 0 ? "\"user\": \"me\""
                         : chat ? "\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]"
                                : "\"prompt\": \"hi\"";
    mf_buffer_printf(&body, "{%s%s, \"%s\": ", needed, companion(f), f->name);
    mf_buffer_append_text(&body, value);
    mf_buffer_append_text(&body, "}");
    mf_serve_model model = api_model_copy();
    model.trust_request_chat_template = true;
    mf_api_request *request = NULL;
    mf_status status = mf_api_request_parse(chat ? MF_API_CHAT : MF_API_COMPLETION, &model, mf_buffer_text(&body),
                                            body.size, NULL, &request, error);
    mf_api_request_close(&request);
    mf_buffer_close(&body);
    return status == MF_OK ? 200 : error->status;
}

static void expect(const mf_field *f, unsigned where, const char *what, const char *value, int status)
{
    mf_api_error error = { 0 };
    int got = send(f, where, value, &error);
    if (got != status || (status != 200 && strcmp(error.param, f->name) != 0) || strlen(error.message) > 600) {
        fail_msg("%s, %s (%.60s): expected %d; got %d, %s: %s", f->name, what, value, status, got, error.param,
                 error.message);
    }
}

static void expect_size(const mf_field *f, unsigned where, const char *what, double size, int status)
{
    mf_buffer value = { 0 };
    put_value(&value, f, size);
    expect(f, where, what, mf_buffer_text(&value), status);
    mf_buffer_close(&value);
}

static bool is_sized(const mf_field *f)
{
    /* Two rows are switches; tool_choice's object must name a tool. */
    return f->type != MF_FIELD_BOOL && f->type != MF_FIELD_NEVER && f->type != MF_FIELD_STRING_OR_OBJECT;
}

static void check_limits(const mf_field *f, unsigned where)
{
    double step = f->type == MF_FIELD_NUMBER ? 1e-6 : 1, max = f->max, min = f->min;
    if (strcmp(f->name, "truncate_prompt_tokens") == 0) {
        max = 1024; /* the model's context */
        expect(f, where, "0", "0", 400);
    }
    if (strcmp(f->name, "model") == 0) {
        expect(f, where, "no name", "\"\"", 400);
        expect(f, where, "an unknown name", "\"nobody\"", 404);
        expect_size(f, where, "257 bytes", 257, 400);
        return;
    }
    if (strcmp(f->name, "structured_outputs") == 0) {
        min = 1;
    }
    if (strcmp(f->name, "response_format") == 0) {
        min = 1; /* {} has no type */
    }
    bool whole_int64 = max > 9e18;
    if (whole_int64) {
        /* JSON itself ends there, so the whole body is refused. */
        mf_api_error error = { 0 };
        CHECK_EQ(send(f, where, "-9223372036854775808", &error), 200);
        CHECK_EQ(send(f, where, "9223372036854775807", &error), 200);
        CHECK_EQ(send(f, where, "9223372036854775808", &error), 400);
        CHECK_EQ(send(f, where, "-9223372036854775809", &error), 400);
        return;
    }
    if (min > 0 || f->type == MF_FIELD_INT || f->type == MF_FIELD_NUMBER) {
        expect_size(f, where, "min - 1", min - step, 400);
    }
    expect_size(f, where, "min", min, f->min_excluded ? 400 : 200);
    expect_size(f, where, "min + 1", min + step, strcmp(f->name, "truncate_prompt_tokens") == 0 ? 400 : 200);
    expect_size(f, where, "max - 1", max - step, 200);
    expect_size(f, where, "max", max, 200);
    expect_size(f, where, "max + 1", max + step, 400);
}

static void check_types(const mf_field *f, unsigned where)
{
    bool text = f->type == MF_FIELD_STRING || f->type == MF_FIELD_STRING_OR_STRINGS ||
                f->type == MF_FIELD_STRING_OR_OBJECT || f->type == MF_FIELD_PROMPT;
    bool list = f->type == MF_FIELD_STRINGS || f->type == MF_FIELD_STRING_OR_STRINGS || f->type == MF_FIELD_IDS ||
                f->type == MF_FIELD_LIST || f->type == MF_FIELD_PROMPT;
    bool object = f->type == MF_FIELD_OBJECT || f->type == MF_FIELD_STRING_OR_OBJECT;
    if (!text) {
        expect(f, where, "a string", "\"5\"", 400);
    }
    if (!list) {
        expect(f, where, "a list", "[1]", 400);
    }
    if (!object) {
        expect(f, where, "an object", "{\"a\": 1}", 400);
    }
    if (f->type != MF_FIELD_BOOL) {
        expect(f, where, "true", "true", 400);
    }
    if (f->type != MF_FIELD_INT && f->type != MF_FIELD_NUMBER) {
        expect(f, where, "an integer", "1", 400);
    }
    if (f->type == MF_FIELD_INT) {
        expect(f, where, "half", "1.5", 400);
    }
    if (list) {
        expect(f, where, "a list of null", "[null]", 400);
        expect(f, where, "a list of objects", "[{}]", 400);
    }
    expect(f, where, "null", "null", f->required ? 400 : 200);
}

TEST(every_row_holds_its_limits_and_types_in_both_kinds)
{
    int rows = 0;
    for (int i = 0; i < MF_NUM_FIELDS; i++) {
        const mf_field *f = &mf_fields[i];
        for (unsigned where = MF_IN_COMPLETION; where <= MF_IN_CHAT; where <<= 1) {
            if (!(f->where & where)) {
                continue;
            }
            rows++;
            if (f->type == MF_FIELD_NEVER) {
                expect(f, where, "null", "null", 200);
                expect(f, where, "false", "false", 200);
                expect(f, where, "true", "true", 501);
                expect(f, where, "a string", "\"x\"", 501);
                expect(f, where, "an object", "{}", 501);
                continue;
            }
            if (is_sized(f)) {
                check_limits(f, where);
            }
            check_types(f, where);
            if (f->type == MF_FIELD_BOOL) {
                expect(f, where, "true", "true", 200);
                expect(f, where, "false", "false", 200);
            }
        }
    }
    CHECK(rows > 90);
}

TEST(a_whole_real_counts_as_an_integer)
{
    mf_api_request *q = api_parse(MF_API_COMPLETION, COMPLETION(", \"max_tokens\": 8.0, \"seed\": -3e2, \"n\": 2.0"));
    CHECK_EQ(q->max_tokens, 8);
    CHECK_EQ(q->n, 2);
    CHECK_EQ(q->sampling.seed, -300);
    mf_api_request_close(&q);
}

TEST(strings_in_lists_have_1_to_256_bytes)
{
    char body[1200], text[300];
    memset(text, 'x', sizeof text);
    text[256] = '\0';
    snprintf(body, sizeof body, COMPLETION(", \"stop\": [\"a\", \"%s\"], \"bad_words\": [\"%s\"]"), text, text);
    mf_api_request *q = api_parse(MF_API_COMPLETION, body);
    CHECK_EQ(q->num_stops, 2);
    CHECK_EQ(strlen(q->stops[1]), 256);
    CHECK_EQ(q->num_bad_words, 1);
    mf_api_request_close(&q);
    text[256] = 'x';
    text[257] = '\0';
    snprintf(body, sizeof body, COMPLETION(", \"stop\": \"%s\""), text);
    CHECK_REFUSED(MF_API_COMPLETION, body, 400, "stop", "1 to 256 bytes, got 257");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"stop\": \"\""), 400, "stop", "empty");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"bad_words\": [\"\"]"), 400, "bad_words", "empty");
}

TEST(ids_are_below_the_vocabulary)
{
    mf_api_request *q = api_parse(
        MF_API_COMPLETION,
        "{\"prompt\": [0, 1023], \"stop_token_ids\": [1023], \"logit_bias\": {\"1023\": -100, \"0\": 100.0}}");
    CHECK_EQ(q->prompts[0].num_ids, 2);
    CHECK_EQ(q->prompts[0].ids[1], 1023);
    CHECK_EQ(q->sampling.num_logit_bias, 2);
    CHECK_EQ(q->sampling.logit_bias[0].token_id, 1023);
    CHECK(q->sampling.logit_bias[1].bias == 100.0f);
    mf_api_request_close(&q);
    CHECK_REFUSED(MF_API_COMPLETION, "{\"prompt\": [1024]}", 400, "prompt",
                  "token id 1024 is out of vocabulary (0 to 1023)");
    CHECK_REFUSED(MF_API_COMPLETION, "{\"prompt\": [[1], [-1]]}", 400, "prompt", "token id -1 is out of vocabulary");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"stop_token_ids\": [9223372036854775807]"), 400, "stop_token_ids",
                  "out of vocabulary");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"allowed_token_ids\": [2, 4294967296]"), 400, "allowed_token_ids",
                  "out of vocabulary");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"allowed_token_ids\": []"), 400, "allowed_token_ids", "got 0");
    static const char *const keys[] = { "1024", "-1", "01", "", "1.0", "+1", " 1", "99999999999", "4294967296", "x" };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char body[200];
        snprintf(body, sizeof body, COMPLETION(", \"logit_bias\": {\"%s\": 1}"), keys[i]);
        CHECK_REFUSED(MF_API_COMPLETION, body, 400, "logit_bias", "out of vocabulary");
    }
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"logit_bias\": {\"1\": 100.5}"), 400, "logit_bias",
                  "[-100, 100], got 100.5");
    CHECK_REFUSED(MF_API_COMPLETION, COMPLETION(", \"logit_bias\": {\"1\": null}"), 400, "logit_bias", "got null");
}

TEST(unknown_fields_are_counted_and_ignored)
{
    int64_t before = mf_fields_num_unknown();
    mf_api_request *q =
        api_parse(MF_API_CHAT, CHAT(", \"store\": true, \"metadata\": {\"a\": [1]}, \"prompt\": 5, \"user\": null"));
    CHECK_EQ(mf_fields_num_unknown() - before, 3);
    mf_api_request_close(&q);
}

TEST(messages_quote_at_most_128_bytes_of_input_escaped)
{
    char body[2200], text[2000];
    memset(text, 'y', sizeof text);
    text[1999] = '\0';
    snprintf(body, sizeof body, COMPLETION(", \"temperature\": \"\\u001b[31m\\n%s\""), text);
    mf_api_error error = { 0 };
    CHECK_EQ(api_status(MF_API_COMPLETION, body, &error), 400);
    CHECK_HAS(error.message, "\"\\x1b[31m\\x0ayyy");
    CHECK_HAS(error.message, "...\"");
    CHECK(strlen(error.message) < 220);
    char quote[MF_QUOTE_BYTES];
    CHECK_STR(mf_text_quote("a\"\\\xc2\x85\x7f", 6, quote), "\"a\\\"\\\\\\xc2\\x85\\x7f\"");
}
