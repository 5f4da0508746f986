/* memory_test.c - each allocation of a request's way to ids, and of an answer's way to a message, fails once: 503,
 * nothing lost. */
#include "test.h"

#include <stdlib.h>

#include "api_support.h"
#include "base/sys.h"
#include "fake_guide.h"
#include "server/openapi.h"
#include "server/text_endpoints.h"
#include "server/tool_calls.h"

static int64_t countdown; /* 0 = never fails */
static bool failed;
static char last_message[1024];

static bool fails_now(void)
{
    if (countdown > 0 && --countdown == 0) {
        failed = true;
        return true;
    }
    return false;
}

static void *failing_alloc(size_t bytes)
{
    return fails_now() ? NULL : malloc(bytes);
}

static void *failing_resize(void *block, size_t bytes)
{
    return fails_now() ? NULL : realloc(block, bytes);
}

/* Runs `try` with the k-th allocation failing, for every stride-th k, until none fails.  `try` returns 200, or the
 * status of an error. */
static void sweep_by(int64_t stride, int (*try)(const char *body), const char *body)
{
    api_model();
    mf_sys kept = mf_sys_table;
    int status = 0;
    for (int64_t k = 1; k < 1000000; k += stride) {
        countdown = k;
        failed = false;
        mf_sys_table.alloc = failing_alloc;
        mf_sys_table.resize = failing_resize;
        status = try(body);
        mf_sys_table = kept;
        countdown = 0;
        if (!failed) {
            break;
        }
        if (status != 503 && status != 200) {
            fail_msg("%s: allocation %lld: expected 503; got %d: %s", body, (long long)k, status, last_message);
        }
    }
    CHECK(!failed);
    CHECK_EQ(status, 200);
}

static void sweep(int (*try)(const char *body), const char *body)
{
    sweep_by(1, try, body);
}

static int try_request(const char *body)
{
    mf_serve_model model = api_model_copy();
    model.guide_vocab = fake_guide_vocab();
    mf_api_error error = { .status = 200 };
    mf_api_request *q = NULL;
    mf_prepared *prepared = NULL;
    mf_api_kind kind = strstr(body, "\"messages\"") ? MF_API_CHAT : MF_API_COMPLETION;
    if (mf_api_request_parse(kind, &model, body, strlen(body), NULL, &q, &error) == MF_OK) {
        mf_prepare(&model, q, &prepared, &error);
    }
    snprintf(last_message, sizeof last_message, "%s", error.message);
    mf_prepared_close(&prepared);
    mf_api_request_close(&q);
    return error.status;
}

static int try_tokenize(const char *body)
{
    mf_buffer out = { 0 };
    mf_api_error error = { .status = 200 };
    bool ids = strstr(body, "\"tokens\"") != NULL;
    (ids ? mf_text_detokenize : mf_text_tokenize)(api_model(), body, strlen(body), &out, &error);
    mf_buffer_close(&out);
    return error.status;
}

static int try_answer(const char *text)
{
    const char *source = "<arg_key>";
    mf_answer_options options = { .format = mf_tool_format_find(NULL, source, strlen(source)),
                                  .calls = true,
                                  .reasoning = true };
    mf_answer_message message = { 0 };
    mf_answer_parser *parser = NULL;
    mf_status status = mf_answer_parser_open(&options, mf_answer_message_add, &message, &parser);
    if (status == MF_OK) {
        status = mf_answer_parser_push(parser, text, strlen(text));
        status = status == MF_OK ? mf_answer_parser_finish(parser) : status;
    }
    json_t *json = status == MF_OK ? mf_answer_message_json(&message) : NULL;
    json_decref(json);
    mf_answer_message_close(&message);
    mf_answer_parser_close(&parser);
    return json ? 200 : 503;
}

static int try_openapi(const char *unused)
{
    static const mf_route routes[] = { { "POST", "/tokenize", NULL, "Tokenize", false },
                                       { "GET", "/v1/models/*", NULL, "One", false } };
    (void)unused;
    mf_openapi_options options = { .routes = routes, .num_routes = 2, .version = "1" };
    mf_buffer out = { 0 };
    mf_error err = { 0 };
    mf_status status = mf_openapi_write(&options, &out, &err);
    mf_buffer_close(&out);
    return status == MF_OK ? 200 : status == MF_ERR_NOMEM ? 503 : 500;
}

#define TOOLS                                                                                                          \
    "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"$defs\": {\"P\": {}}}}}]"

TEST(requests_survive_each_failed_allocation)
{
    sweep(try_request, "{\"prompt\": [\"Tom\", \"b\"], \"stop\": [\"x\"], \"bad_words\": [\"a\"], \"logit_bias\": "
                       "{\"5\": 1}, \"stop_token_ids\": [3],"
                       " \"echo\": true, \"structured_outputs\": {\"choice\": [\"a\", \"b\"]}, \"unknown\": 1}");
    sweep(try_request,
          "{\"prompt\": [[1, 2], [3]], \"echo\": true, \"structured_outputs\": {\"json\": {\"type\": \"object\"}}}");
    sweep(try_request,
          "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, {\"type\": "
          "\"text\", \"text\":"
          " \"<\xef\xbd\x9cUser\xef\xbd\x9c>\"}]}, {\"role\": \"assistant\", \"content\": \"x\", \"reasoning\": \"r\", "
          "\"tool_calls\":"
          " [{\"function\": {\"name\": \"f\", \"arguments\": \"{}\"}}]}], \"reasoning_effort\": \"low\", "
          "\"chat_template_kwargs\": {\"a\": 1},"
          " \"add_generation_prompt\": false, \"continue_final_message\": true, \"echo\": true, " TOOLS "}");
    sweep(try_request,
          "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"tool_choice\": \"required\", " TOOLS "}");
}

TEST(text_endpoints_survive_each_failed_allocation)
{
    sweep(try_tokenize, "{\"prompt\": \"Tom has\", \"return_token_strs\": true}");
    sweep(try_tokenize, "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}");
    sweep(try_tokenize, "{\"tokens\": [5, 6, 7]}");
}

TEST(answers_survive_each_failed_allocation)
{
    sweep(try_answer, "<think>r</think>c<tool_call>f<arg_key>a</arg_key><arg_value>x</arg_value></tool_call>"
                      "<tool_call>{\"arguments\": {}, \"name\": \"g\"}</tool_call>");
}

TEST(the_openapi_document_survives_each_failed_allocation)
{
    sweep_by(23, try_openapi, ""); /* thousands of small ones, all alike */
}
