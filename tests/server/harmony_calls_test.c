/* harmony_calls_test.c - chats with a model that writes harmony, its markers being special tokens: what the client
 * gets. */
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "api_support.h"
#include "base/json.h"
#include "call_fakes.h"
#include "server/calls.h"
#include "test.h"

/* Behind the vocabulary of the model whose tokenizer this is. */
static const char *const markers[] = { "<|start|>",     "<|end|>",    "<|message|>", "<|channel|>",
                                       "<|constrain|>", "<|return|>", "<|call|>",    "<|endoftext|>" };
enum { NUM_MARKERS = 8, FIRST_MARKER = 1024, RETURN = FIRST_MARKER + 5, CALL, END_OF_TEXT };

typedef struct desk {
    mf_service service;
    mf_text_worker *text;
    mf_calls *calls;
    mf_serve_model model;
    mf_prompt prompt;
    char dir[32];
} desk;

static void write_file(const desk *d, const char *name, json_t *json)
{
    char path[96];
    snprintf(path, sizeof path, "%s/%s", d->dir, name);
    CHECK_EQ(json_dump_file(json, path, 0), 0);
    json_decref(json);
}

static void remove_file(const desk *d, const char *name)
{
    char path[96];
    snprintf(path, sizeof path, "%s/%s", d->dir, name);
    unlink(path);
}

static void open_prompt(desk *d)
{
    mf_error err = { 0 };
    json_t *tokenizer = json_load_file(MF_SOURCE_DIR "/models/word-problems/tokenizer.json", 0, NULL);
    json_t *added = json_object_get(tokenizer, "added_tokens");
    for (int i = 0; i < NUM_MARKERS; i++) {
        json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", FIRST_MARKER + i, "content",
                                               markers[i], "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                                               "special", 1));
    }
    snprintf(d->dir, sizeof d->dir, "/tmp/harmony_XXXXXX");
    CHECK(mkdtemp(d->dir) != NULL);
    write_file(d, "tokenizer.json", tokenizer);
    write_file(d, "tokenizer_config.json", json_pack("{s:s}", "tokenizer_class", "PreTrainedTokenizerFast"));
    CHECK_OK(mf_prompt_open(d->dir, MF_SOURCE_DIR "/tests/text/templates/gpt_oss_harmony.jinja", NULL, 1024, &d->prompt,
                            &err),
             err);
    remove_file(d, "tokenizer.json");
    remove_file(d, "tokenizer_config.json");
    rmdir(d->dir);
}

static desk *open_desk(void)
{
    static const int32_t ends[] = { RETURN, CALL };
    desk *d = calloc(1, sizeof *d);
    mf_error err = { 0 };
    open_prompt(d);
    d->model = *api_model();
    d->model.prompt = &d->prompt;
    d->model.family = "gpt_oss";
    d->model.vocab_size = mf_tokenizer_vocab_size(d->prompt.tokenizer);
    d->model.eos_token_ids = ends;
    d->model.num_eos_token_ids = 2;
    CHECK_OK(mf_text_worker_open(64, 1 << 20, &d->text, &err), err);
    mf_calls_options o = { .service = &d->service, .text = d->text, .model = &d->model };
    CHECK_OK(mf_calls_open(&o, &d->calls, &err), err);
    return d;
}

static void close_desk(desk *d)
{
    CHECK_EQ(mf_calls_num_live(d->calls), 0);
    mf_text_worker_close(&d->text);
    mf_calls_close(&d->calls);
    mf_prompt_close(&d->prompt);
    free(d);
}

#define TOOLS ", \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"add\", \"description\": \"a + b\"}}]"
#define THINKS "<|channel|>analysis<|message|>I think.<|endoftext|><|end|><|start|>assistant"
#define CALLS THINKS "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{\"a\": 2}"
#define ANSWERS THINKS "<|channel|>final<|message|>Four."

/* Answers one call with the text's tokens and then the end. */
static mf_exchange *answer(desk *d, const char *body, const char *text, int32_t end)
{
    mf_exchange *e = calloc(1, sizeof *e);
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    int32_t request = d->service.num_requests;
    fake_exchange_init(e, body);
    mf_calls_handle(d->calls, MF_API_CHAT, e);
    while (d->service.num_requests == request) {
        struct pollfd fd = { .fd = mf_text_worker_wake_fd(d->text), .events = POLLIN };
        CHECK_EQ(poll(&fd, 1, 10000), 1);
        mf_text_worker_pump(d->text);
        if (e->is_error) {
            fail_msg("%s: %s", body, e->error.message);
        }
    }
    CHECK_OK(mf_tokenizer_encode(d->prompt.tokenizer, text, strlen(text), 0, &ids, &err), err);
    CHECK(ids.data[ids.size - 1] < FIRST_MARKER && strstr(text, "<|channel|>"));
    bool is_special = false;
    for (size_t i = 0; i < ids.size; i++) {
        is_special |= ids.data[i] == FIRST_MARKER + 3;
    }
    CHECK(is_special);
    for (size_t i = 0; i < ids.size; i++) {
        fake_token(&d->service, request, ids.data[i], -0.5f);
    }
    fake_token(&d->service, request, end, -0.5f);
    fake_end(&d->service, request, MF_FINISH_STOP, end);
    mf_calls_pump(d->calls);
    mf_ids_close(&ids);
    return e;
}

static void hang_up(mf_exchange *e)
{
    fake_exchange_close(e);
    free(e);
}

static void text_is(const json_t *object, const char *key, const char *want)
{
    const char *text = json_string_value(json_object_get(object, key));
    CHECK_STR(text ? text : "(none)", want);
}

/* The only choice of a whole answer. */
static void whole(desk *d, const char *body, const char *text, int32_t end, const char *content, const char *reasoning,
                  const char *arguments, const char *reason)
{
    mf_exchange *e = answer(d, body, text, end);
    json_t *json = json_loadb(e->written.data, e->written.size, 0, NULL);
    const json_t *choice = json_array_get(json_object_get(json, "choices"), 0),
                 *message = json_object_get(choice, "message"),
                 *function = json_object_get(json_array_get(json_object_get(message, "tool_calls"), 0), "function");
    text_is(message, "content", content);
    text_is(message, "reasoning", reasoning);
    text_is(function, "arguments", arguments);
    text_is(choice, "finish_reason", reason);
    json_decref(json);
    hang_up(e);
}

TEST(a_chat_in_harmony_has_content_and_reasoning_without_markers)
{
    desk *d = open_desk();
    whole(d, CHAT(""), ANSWERS, RETURN, "Four.", "I think.", "(none)", "stop");
    whole(d, CHAT(TOOLS), ANSWERS, RETURN, "Four.", "I think.", "(none)", "stop");
    whole(d, CHAT(", \"include_stop_str_in_output\": true"), ANSWERS, RETURN, "Four.", "I think.", "(none)", "stop");
    whole(d, CHAT(", \"skip_special_tokens\": false"), ANSWERS, RETURN, "Four.", "I think.<|endoftext|>", "(none)",
          "stop");
    close_desk(d);
}

TEST(a_harmony_prompt_that_opens_the_analysis_is_seen)
{
    desk *d = open_desk();
    d->model.trust_request_chat_template = true;
    whole(d, CHAT(", \"chat_template\": \"<|start|>assistant<|channel|>analysis<|message|>\""),
          "because<|end|><|start|>assistant<|channel|>final<|message|>Four.", RETURN, "Four.", "because", "(none)",
          "stop");
    close_desk(d);
}

TEST(a_call_in_harmony_ends_with_tool_calls)
{
    desk *d = open_desk();
    whole(d, CHAT(TOOLS), CALLS, CALL, "(none)", "I think.", "{\"a\": 2}", "tool_calls");
    whole(d, CHAT(TOOLS ", \"tool_choice\": \"none\""), CALLS, CALL, "{\"a\": 2}", "I think.", "(none)", "stop");
    close_desk(d);
}

TEST(a_stream_in_harmony_tells_each_piece_in_its_field)
{
    desk *d = open_desk();
    mf_exchange *e = answer(d, CHAT(TOOLS ", \"stream\": true"), CALLS, CALL);
    mf_buffer reasoning = { 0 }, arguments = { 0 };
    int calls = 0;
    const char *reason = NULL;
    json_t *last = NULL;
    for (const char *p = mf_buffer_text(&e->written); (p = strstr(p, "data: {"));) {
        p += 6;
        json_decref(last);
        last = json_loadb(p, (size_t)(strstr(p, "\n\n") - p), 0, NULL);
        const json_t *choice = json_array_get(json_object_get(last, "choices"), 0),
                     *delta = json_object_get(choice, "delta"),
                     *call = json_array_get(json_object_get(delta, "tool_calls"), 0),
                     *function = json_object_get(call, "function");
        const char *content = json_string_value(json_object_get(delta, "content")),
                   *thought = json_string_value(json_object_get(delta, "reasoning")),
                   *piece = json_string_value(json_object_get(function, "arguments"));
        CHECK(!content || !*content);
        mf_buffer_append_text(&reasoning, thought ? thought : "");
        mf_buffer_append_text(&arguments, piece ? piece : "");
        if (json_object_get(call, "id")) {
            calls++;
            text_is(function, "name", "add");
        }
        reason = json_string_value(json_object_get(choice, "finish_reason"));
    }
    CHECK_STR(mf_buffer_text(&reasoning), "I think.");
    CHECK_STR(mf_buffer_text(&arguments), "{\"a\": 2}");
    CHECK_EQ(calls, 1);
    CHECK_STR(reason ? reason : "(none)", "tool_calls");
    json_decref(last);
    mf_buffer_close(&reasoning);
    mf_buffer_close(&arguments);
    hang_up(e);
    close_desk(d);
}
