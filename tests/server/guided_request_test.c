/* guided_request_test.c - requests with a constraint, over the real guide: what it lets through is what was asked for,
 * and a forced tool call is read back as one. */
#include "test.h"

#include "api_support.h"
#include "server/tool_calls.h"

static mf_guide_vocab *vocab;

static mf_serve_model guided_model(void)
{
    mf_serve_model model = api_model_copy();
    mf_error err = { 0 };
    if (!vocab) {
        CHECK_OK(
            mf_guide_vocab_open(model.prompt->tokenizer, model.eos_token_ids, model.num_eos_token_ids, &vocab, &err),
            err);
    }
    model.guide_vocab = vocab;
    return model;
}

/* Walks the text's own tokens: true when each may come next, and the end after them. */
static bool lets_through(mf_guide_program *program, const char *text)
{
    static uint32_t mask[1024 / 32];
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    mf_guide_state *state = NULL;
    CHECK_OK(mf_tokenizer_encode(api_model()->prompt->tokenizer, text, strlen(text), 0, &ids, &err), err);
    CHECK_OK(mf_guide_state_open(program, &state, &err), err);
    bool ok = true;
    for (size_t i = 0; ok && i < ids.size; i++) {
        memset(mask, 0, sizeof mask);
        mf_guide_state_fill(state, mask, 1024);
        ok = mask[ids.data[i] / 32] >> (ids.data[i] % 32) & 1;
        if (ok) {
            mf_guide_state_accept(state, ids.data[i]);
        }
    }
    ok = ok && mf_guide_state_may_end(state);
    mf_guide_state_close(&state);
    mf_ids_close(&ids);
    return ok;
}

static void check_walk(const char *fields, const char *const *good, const char *const *bad)
{
    mf_serve_model model = guided_model();
    char body[2000];
    snprintf(body, sizeof body, CHAT("%s"), fields);
    mf_api_request *q = api_parse_for(&model, MF_API_CHAT, body);
    mf_prepared *p = NULL;
    mf_api_error error = { 0 };
    if (mf_prepare(&model, q, &p, &error) != MF_OK) {
        fail_msg("%s: %d: %s", fields, error.status, error.message);
    }
    for (; *good; good++) {
        if (!lets_through(p->guide, *good)) {
            fail_msg("%s: expected to let through %s", fields, *good);
        }
    }
    for (; *bad; bad++) {
        if (lets_through(p->guide, *bad)) {
            fail_msg("%s: let through %s", fields, *bad);
        }
    }
    mf_prepared_close(&p);
    mf_api_request_close(&q);
}

#define LIST(...)                                                                                                      \
    (const char *const[])                                                                                              \
    {                                                                                                                  \
        __VA_ARGS__, NULL                                                                                              \
    }
#define TOOLS                                                                                                          \
    ", \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"add\", \"parameters\": {\"type\": \"object\", " \
    "\"properties\":"                                                                                                  \
    " {\"a\": {\"type\": \"integer\"}}, \"required\": [\"a\"], \"additionalProperties\": false}}}, {\"type\": "        \
    "\"function\", \"function\":"                                                                                      \
    " {\"name\": \"stop\"}}]"

TEST(each_kind_of_constraint_holds)
{
    check_walk(", \"response_format\": {\"type\": \"json_object\"}", LIST("{}", "{\"a\": [1, null]}"),
               LIST("[]", "{", "5"));
    check_walk(", \"structured_outputs\": {\"choice\": [\"yes\", \"no\"]}", LIST("yes", "no"),
               LIST("maybe", "ye", "yesno"));
    check_walk(", \"structured_outputs\": {\"regex\": \"[0-9]{2,3}\"}", LIST("12", "123"), LIST("1", "1234", "a"));
    check_walk(
        ", \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"n\", \"schema\": {\"type\": "
        "\"object\","
        " \"properties\": {\"n\": {\"type\": \"integer\"}}, \"required\": [\"n\"], \"additionalProperties\": false}}}",
        LIST("{\"n\": 5}"), LIST("{}", "{\"n\": \"x\"}"));
    check_walk(", \"structured_outputs\": {\"grammar\": \"root ::= \\\"ab\\\" | \\\"cd\\\"\"}", LIST("ab", "cd"),
               LIST("abcd", "a"));
}

TEST(a_named_tool_call_is_its_arguments)
{
    check_walk(TOOLS ", \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"add\"}}",
               LIST("{\"a\": 5}"), LIST("{}", "[{\"a\": 5}]"));
}

TEST(a_required_tool_call_is_a_list_that_reads_back)
{
    static const char one[] = "[{\"name\": \"add\", \"parameters\": {\"a\": 5}}]",
                      two[] =
                          "[{\"name\": \"add\", \"parameters\": {\"a\": 5}}, {\"name\": \"stop\", \"parameters\": {}}]";
    check_walk(TOOLS ", \"tool_choice\": \"required\"", LIST(one, two),
               LIST("[]", "[{\"name\": \"other\", \"parameters\": {}}]", "[{\"name\": \"add\", \"parameters\": {}}]"));
    check_walk(TOOLS ", \"tool_choice\": \"required\", \"parallel_tool_calls\": false", LIST(one), LIST(two));
    mf_answer_options options = { .format = mf_tool_format_find("qwen3_moe", NULL, 0), .choice = MF_TOOLS_REQUIRED };
    mf_answer_message message = { 0 };
    mf_answer_parser *parser = NULL;
    CHECK_EQ(mf_answer_parser_open(&options, mf_answer_message_add, &message, &parser), MF_OK);
    CHECK_EQ(mf_answer_parser_push(parser, two, strlen(two)), MF_OK);
    CHECK_EQ(mf_answer_parser_finish(parser), MF_OK);
    CHECK_EQ(json_array_size(message.calls), 2);
    CHECK_EQ(message.content.size, 0);
    mf_answer_message_close(&message);
    mf_answer_parser_close(&parser);
}

TEST(hostile_constraints_are_400)
{
    mf_serve_model model = guided_model();
    static const char *const hostile[] = {
        "\"structured_outputs\": {\"regex\": \"(((((a{1000}){1000}){1000}){1000}){1000})\"}",
        "\"structured_outputs\": {\"regex\": \"foo**(\"}",
        "\"structured_outputs\": {\"grammar\": \"root ::= root\"}",
        "\"structured_outputs\": {\"grammar\": \"((((\"}",
        "\"structured_outputs\": {\"json\": {\"type\": \"nonsense\"}}",
        "\"structured_outputs\": {\"json\": \"{\"}",
        "\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": {\"$ref\": \"http://x/y\"}}}"
    };
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        char body[400];
        mf_api_error error = { 0 };
        snprintf(body, sizeof body, "{\"prompt\": \"a\", %s}", hostile[i]);
        int status = api_prepare_status(&model, MF_API_COMPLETION, body, &error);
        if (status != 400) {
            fail_msg("%s: expected 400; got %d: %s", body, status, error.message);
        }
        CHECK(error.param[0] != '\0');
    }
    mf_guide_vocab_close(&vocab);
}
