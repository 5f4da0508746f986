/* calls_test.c - calls over a made-up engine and a made-up client: what goes in, what comes out, and who is told when.
 */
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "api_support.h"
#include "base/random.h"
#include "base/sys.h"
#include "call_fakes.h"
#include "fake_guide.h"
#include "server/calls.h"
#include "test.h"

typedef struct desk {
    mf_service service;
    mf_text_worker *text;
    mf_calls *calls;
    mf_serve_model model;
} desk;

static desk *open_desk(void)
{
    desk *d = calloc(1, sizeof *d);
    mf_error err = { 0 };
    d->model = *api_model();
    d->model.guide_vocab = fake_guide_vocab();
    CHECK_OK(mf_text_worker_open(64, 1 << 20, &d->text, &err), err);
    mf_calls_options o = { .service = &d->service, .text = d->text, .model = &d->model };
    CHECK_OK(mf_calls_open(&o, &d->calls, &err), err);
    return d;
}

static void close_desk(desk *d)
{
    CHECK_EQ(mf_calls_num_live(d->calls), 0);
    CHECK_EQ(mf_calls_num_paused(d->calls), 0);
    mf_text_worker_close(&d->text);
    mf_calls_close(&d->calls);
    free(d);
}

static void finish_reading(desk *d)
{
    struct pollfd fd = { .fd = mf_text_worker_wake_fd(d->text), .events = POLLIN };
    CHECK_EQ(poll(&fd, 1, 10000), 1);
    mf_text_worker_pump(d->text);
}

static mf_exchange *call(desk *d, mf_api_kind kind, const char *body)
{
    mf_exchange *e = calloc(1, sizeof *e);
    fake_exchange_init(e, body);
    mf_calls_handle(d->calls, kind, e);
    return e;
}

static void hang_up(mf_exchange *e)
{
    fake_exchange_close(e);
    free(e);
}

static mf_ids ids_of(const char *text)
{
    mf_ids ids = { 0 };
    mf_error err = { 0 };
    CHECK_OK(mf_tokenizer_encode(api_model()->prompt->tokenizer, text, strlen(text), 0, &ids, &err), err);
    return ids;
}

static void say(desk *d, int32_t request, const char *text)
{
    mf_ids ids = ids_of(text);
    for (size_t i = 0; i < ids.size; i++) {
        fake_token(&d->service, request, ids.data[i], -0.5f - (float)i);
    }
    mf_ids_close(&ids);
}

static void pump(desk *d)
{
    mf_calls_pump(d->calls);
}

static json_t *body_of(const mf_exchange *e)
{
    json_error_t error;
    json_t *body = json_loadb(e->written.data, e->written.size, JSON_REJECT_DUPLICATES, &error);
    if (!body) {
        fail_msg("%s: %.*s", error.text, (int)e->written.size, e->written.data);
    }
    return body;
}

/* data: lines of a stream as a list; [DONE] must end it. */
static json_t *events_of(const mf_exchange *e)
{
    json_t *events = json_array();
    const char *p = mf_buffer_text(&e->written), *end = p + e->written.size;
    bool is_done = false;
    while (p < end) {
        const char *stop = strstr(p, "\n\n");
        CHECK(stop && strncmp(p, "data: ", 6) == 0 && !is_done);
        p += 6;
        if (stop - p == 6 && memcmp(p, "[DONE]", 6) == 0) {
            is_done = true;
        } else {
            json_t *event = json_loadb(p, (size_t)(stop - p), JSON_REJECT_DUPLICATES, NULL);
            CHECK(event);
            json_array_append_new(events, event);
        }
        p = stop + 2;
    }
    CHECK(is_done);
    return events;
}

static const json_t *choice_of(const json_t *body, size_t i)
{
    const json_t *choice = json_array_get(json_object_get(body, "choices"), i);
    CHECK(choice);
    return choice;
}

static const char *text_of(const json_t *choice)
{
    const json_t *message = json_object_get(choice, "message");
    return json_string_value(message ? json_object_get(message, "content") : json_object_get(choice, "text"));
}

static const char *reason_of(const json_t *choice)
{
    const char *reason = json_string_value(json_object_get(choice, "finish_reason"));
    return reason ? reason : "null";
}

static int64_t usage_of(const json_t *body, const char *key)
{
    return json_integer_value(json_object_get(json_object_get(body, "usage"), key));
}

/* ---- whole answers ------------------------------------------------------------------------------------------------
 */

TEST(a_completion_is_answered_in_the_documented_order)
{
    desk *d = open_desk();
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": \"One two\", \"max_tokens\": 5}");
    say(d, 0, " three \"4\"");
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    pump(d);
    CHECK_EQ(e->status, 200);
    CHECK_STR(e->content_type, "application/json");
    const char *text = mf_buffer_text(&e->written);
    CHECK(strncmp(text, "{\"id\":\"cmpl-req-1\",\"object\":\"text_completion\",\"created\":", 54) == 0);
    CHECK_HAS(text,
              ",\"model\":\"word-problems\",\"choices\":[{\"index\":0,\"text\":\" three \\\"4\\\"\",\"logprobs\":null,"
              "\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":");
    CHECK_HAS(text, "\"prompt_tokens_details\":{\"cached_tokens\":0}},\"system_fingerprint\":\"moefuse-");
    CHECK_HAS(text, "\",\"timings\":{\"queue_ms\":");
    json_t *body = body_of(e);
    CHECK_EQ(usage_of(body, "prompt_tokens"), d->service.requests[0].num_prompt);
    CHECK_EQ(usage_of(body, "completion_tokens"), d->service.requests[0].num_made);
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(a_chat_is_answered_in_the_documented_order)
{
    desk *d = open_desk();
    mf_exchange *e = call(d, MF_API_CHAT, CHAT(", \"max_tokens\": 5"));
    say(d, 0, "Hello");
    fake_token(&d->service, 0, 1, -1); /* the end token is no text, but counts */
    fake_end(&d->service, 0, MF_FINISH_STOP, -1);
    pump(d);
    const char *text = mf_buffer_text(&e->written);
    CHECK(strncmp(text, "{\"id\":\"chatcmpl-req-1\",\"object\":\"chat.completion\",\"created\":", 58) == 0);
    CHECK_HAS(text,
              "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello\"},\"logprobs\":null,"
              "\"finish_reason\":\"stop\",\"stop_reason\":null}]");
    json_t *body = body_of(e);
    CHECK_EQ(usage_of(body, "completion_tokens"), d->service.requests[0].num_made);
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(a_stop_id_is_named_and_leaves_no_text)
{
    desk *d = open_desk();
    mf_ids ids = ids_of("x");
    char body_text[128];
    snprintf(body_text, sizeof body_text, "{\"prompt\": \"a\", \"stop_token_ids\": [%d]}", ids.data[0]);
    mf_exchange *e = call(d, MF_API_COMPLETION, body_text);
    say(d, 0, "ab");
    fake_token(&d->service, 0, ids.data[0], -1);
    fake_end(&d->service, 0, MF_FINISH_STOP, ids.data[0]);
    pump(d);
    json_t *body = body_of(e);
    CHECK_STR(text_of(choice_of(body, 0)), "ab");
    CHECK_EQ(json_integer_value(json_object_get(choice_of(body, 0), "stop_reason")), ids.data[0]);
    mf_ids_close(&ids);
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(a_stop_string_cancels_the_sequence_and_what_comes_later_is_not_counted)
{
    desk *d = open_desk();
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\", \"stop\": [\"zz\", \"END\"], \"max_tokens\": 50}");
    say(d, 0, "one END");
    int32_t num_before = d->service.requests[0].num_made;
    say(d, 0, " two three");
    pump(d);
    CHECK(d->service.requests[0].is_cancelled);
    CHECK(!e->has_ended);
    fake_end(&d->service, 0, MF_FINISH_CANCELLED, -1);
    pump(d);
    json_t *body = body_of(e);
    CHECK_STR(text_of(choice_of(body, 0)), "one ");
    CHECK_STR(reason_of(choice_of(body, 0)), "stop");
    CHECK_STR(json_string_value(json_object_get(choice_of(body, 0), "stop_reason")), "END");
    CHECK(usage_of(body, "completion_tokens") <= num_before);
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(no_stop_string_ends_a_text_before_min_tokens)
{
    desk *d = open_desk();
    mf_exchange *e =
        call(d, MF_API_COMPLETION, "{\"prompt\": \"a\", \"stop\": \"END\", \"min_tokens\": 3, \"max_tokens\": 50}");
    say(d, 0, "END two three four END"); /* the first one within three ids, however it is cut */
    pump(d);
    CHECK(d->service.requests[0].is_cancelled);
    fake_end(&d->service, 0, MF_FINISH_CANCELLED, -1);
    pump(d);
    json_t *body = body_of(e);
    CHECK_STR(text_of(choice_of(body, 0)), "END two three four ");
    CHECK_STR(reason_of(choice_of(body, 0)), "stop");
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(a_requests_priority_reaches_the_engine)
{
    desk *d = open_desk();
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\", \"priority\": -7, \"n\": 2}");
    CHECK_EQ(d->service.requests[0].priority, -7);
    CHECK_EQ(d->service.requests[1].priority, -7);
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    fake_end(&d->service, 1, MF_FINISH_LENGTH, -1);
    pump(d);
    hang_up(e);
    close_desk(d);
}

TEST(choices_of_several_prompts_are_numbered_prompt_by_prompt_and_their_seeds_count_on)
{
    desk *d = open_desk();
    mf_exchange *e =
        call(d, MF_API_COMPLETION, "{\"prompt\": [\"a\", \"b\"], \"n\": 2, \"seed\": -1, \"max_tokens\": 9}");
    CHECK_EQ(d->service.num_requests, 4);
    CHECK_EQ(d->service.requests[0].sampling.seed, -1);
    CHECK_EQ(d->service.requests[1].sampling.seed, 0);
    CHECK_EQ(d->service.requests[2].sampling.seed, -1);
    static const char *const texts[] = { "zero", "one", "two", "three" };
    for (int32_t i = 4; i-- > 0;) {
        say(d, i, texts[i]);
        fake_end(&d->service, i, MF_FINISH_LENGTH, -1);
    }
    pump(d);
    json_t *body = body_of(e);
    for (size_t i = 0; i < 4; i++) {
        CHECK_EQ(json_integer_value(json_object_get(choice_of(body, i), "index")), i);
        CHECK_STR(text_of(choice_of(body, i)), texts[i]);
    }
    int64_t prompts = d->service.requests[0].num_prompt + d->service.requests[2].num_prompt;
    CHECK_EQ(usage_of(body, "prompt_tokens"), prompts); /* once per prompt */
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(best_of_gives_the_sequences_of_the_highest_mean_logprob_best_first)
{
    desk *d = open_desk();
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\", \"n\": 2, \"best_of\": 4, \"max_tokens\": 9}");
    CHECK_EQ(d->service.num_requests, 4);
    static const float logprobs[] = { -3, -1, -2, -4 };
    static const char *const texts[] = { "a", "b", "c", "d" };
    for (int32_t i = 0; i < 4; i++) {
        CHECK_EQ(d->service.requests[i].sampling.logprobs, 0); /* the engine must tell */
        mf_ids ids = ids_of(texts[i]);
        fake_token(&d->service, i, ids.data[0], logprobs[i]);
        fake_token(&d->service, i, 1, logprobs[i]);
        fake_end(&d->service, i, MF_FINISH_STOP, -1);
        mf_ids_close(&ids);
    }
    pump(d);
    json_t *body = body_of(e);
    CHECK_EQ(json_array_size(json_object_get(body, "choices")), 2);
    CHECK_STR(text_of(choice_of(body, 0)), "b");
    CHECK_STR(text_of(choice_of(body, 1)), "c");
    CHECK_EQ(usage_of(body, "completion_tokens"), 4);
    CHECK(json_is_null(json_object_get(choice_of(body, 0), "logprobs")));
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

/* ---- logprobs -----------------------------------------------------------------------------------------------------
 */

TEST(echo_with_one_token_has_exactly_prompt_plus_one_entries_also_when_it_is_the_end)
{
    desk *d = open_desk();
    mf_exchange *e =
        call(d, MF_API_COMPLETION,
             "{\"prompt\": [[5, 6, 7, 8]], \"echo\": true, \"max_tokens\": 1, \"logprobs\": 1, \"temperature\": 0, "
             "\"stop\": []}");
    CHECK_EQ(d->service.requests[0].sampling.prompt_logprobs, 1);
    for (int32_t p = 1; p < 4; p++) {
        mf_logprob top[] = { { 100 + p, -0.25f }, { 9, -9 } };
        fake_prompt_logprob(&d->service, 0, p, -1.5f, 2, top, 2);
    }
    mf_logprob top[] = { { 1, -0.125f } };
    fake_token_with_top(&d->service, 0, 1, -0.125f, top, 1);
    fake_end(&d->service, 0, MF_FINISH_STOP, -1);
    pump(d);
    json_t *body = body_of(e);
    const json_t *l = json_object_get(choice_of(body, 0), "logprobs");
    static const char *const lists[] = { "tokens", "token_logprobs", "top_logprobs", "text_offset" };
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(json_array_size(json_object_get(l, lists[i])), 5);
    }
    CHECK(json_is_null(json_array_get(json_object_get(l, "token_logprobs"), 0)));
    CHECK(json_is_null(json_array_get(json_object_get(l, "top_logprobs"), 0)));
    /* The chosen token is among the keys: k + 1 of them when it is not one of the k best. */
    CHECK_EQ(json_object_size(json_array_get(json_object_get(l, "top_logprobs"), 1)), 2);
    CHECK_EQ(json_object_size(json_array_get(json_object_get(l, "top_logprobs"), 4)), 1);
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(equal_logprobs_are_equal_text_and_minus_infinity_has_a_number)
{
    desk *d = open_desk();
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\", \"logprobs\": 2, \"max_tokens\": 3}");
    mf_logprob top[] = { { 50, -0.1f }, { 51, -INFINITY } };
    fake_token_with_top(&d->service, 0, 50, -0.1f, top, 2);
    mf_logprob certain[] = { { 50, 0.0f } };
    fake_token_with_top(&d->service, 0, 50, 0.0f, certain, 1);
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    pump(d);
    const char *text = mf_buffer_text(&e->written);
    CHECK_HAS(text, "\"token_logprobs\":[-0.100000001,0.0]");
    CHECK_HAS(text, "\":-0.100000001,");
    CHECK_HAS(text, "\":-9999.0}");
    hang_up(e);
    close_desk(d);
}

TEST(bytes_that_are_no_text_have_a_name_and_equal_texts_do_not_collapse)
{
    desk *d = open_desk();
    mf_ids ids = ids_of("\u2713"); /* several tokens of raw bytes, or one */
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\", \"logprobs\": 2, \"max_tokens\": 9}");
    for (size_t i = 0; i < ids.size; i++) {
        mf_logprob top[] = { { ids.data[i], -0.5f }, { ids.data[i], -1.0f } }; /* as if two ids had one text */
        fake_token_with_top(&d->service, 0, ids.data[i], -0.5f, top, 2);
    }
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    pump(d);
    json_t *body = body_of(e); /* refuses duplicate keys */
    CHECK_STR(text_of(choice_of(body, 0)), "\u2713");
    const json_t *l = json_object_get(choice_of(body, 0), "logprobs");
    if (ids.size > 1) {
        CHECK_HAS(json_string_value(json_array_get(json_object_get(l, "tokens"), 0)), "bytes:\\x");
    }
    CHECK_EQ(json_object_size(json_array_get(json_object_get(l, "top_logprobs"), 0)), 2);
    char key[32];
    snprintf(key, sizeof key, "token_id:%d", ids.data[0]);
    CHECK(json_object_get(json_array_get(json_object_get(l, "top_logprobs"), 0), key));
    mf_ids_close(&ids);
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(prompt_logprobs_are_told_per_token_with_ranks)
{
    desk *d = open_desk();
    mf_exchange *e =
        call(d, MF_API_COMPLETION,
             "{\"prompt\": [5, 6, 7], \"max_tokens\": 1, \"prompt_logprobs\": 1, \"return_token_ids\": true}");
    mf_logprob top[] = { { 6, -0.25f } };
    fake_prompt_logprob(&d->service, 0, 1, -0.25f, 1, top, 1);
    mf_logprob other[] = { { 99, -0.25f } };
    fake_prompt_logprob(&d->service, 0, 2, -3.0f, 17, other, 1);
    fake_token(&d->service, 0, 40, -1);
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    pump(d);
    json_t *body = body_of(e);
    const json_t *list = json_object_get(choice_of(body, 0), "prompt_logprobs");
    CHECK_EQ(json_array_size(list), 3);
    CHECK(json_is_null(json_array_get(list, 0)));
    CHECK_EQ(json_integer_value(json_object_get(json_object_get(json_array_get(list, 1), "6"), "rank")), 1);
    CHECK_EQ(json_integer_value(json_object_get(json_object_get(json_array_get(list, 2), "7"), "rank")), 17);
    CHECK_EQ(json_integer_value(json_array_get(json_object_get(choice_of(body, 0), "token_ids"), 0)), 40);
    CHECK_EQ(json_array_size(json_object_get(choice_of(body, 0), "prompt_token_ids")), 3);
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

TEST(of_special_tokens_a_chat_with_tools_shows_none)
{
    desk *d = open_desk();
    mf_exchange *e =
        call(d, MF_API_CHAT,
             CHAT(", \"ignore_eos\": true, \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"add\"}}]"));
    finish_reading(d);
    say(d, 0, "one");
    fake_token(&d->service, 0, 0, -1); /* begin of text */
    fake_token(&d->service, 0, 1, -1); /* end of text, ignored */
    say(d, 0,
        " two<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function<"
        "\uff5ctool\u2581sep\uff5c>add\n```json\n{\"a\": "
        "1}\n```<\uff5ctool\u2581call\u2581end\uff5c><\uff5ctool\u2581calls\u2581end\uff5c>");
    fake_end(&d->service, 0, MF_FINISH_STOP, -1);
    pump(d);
    json_t *body = body_of(e);
    const json_t *message = json_object_get(choice_of(body, 0), "message");
    CHECK_STR(json_string_value(json_object_get(message, "content")), "one two");
    CHECK_EQ(json_array_size(json_object_get(message, "tool_calls")), 1);
    json_decref(body);
    hang_up(e);
    close_desk(d);
}

/* ---- streams ------------------------------------------------------------------------------------------------------
 */

TEST(a_stream_of_a_chat_has_roles_steps_an_end_usage_and_done)
{
    desk *d = open_desk();
    mf_exchange *e =
        call(d, MF_API_CHAT, CHAT(", \"stream\": true, \"n\": 2, \"stream_options\": {\"include_usage\": true}"));
    CHECK(!e->has_begun); /* until there is something to say: errors still have a status */
    mf_ids ids = ids_of("Hi");
    fake_token(&d->service, 1, ids.data[0], -1);
    pump(d);
    CHECK(e->has_begun);
    CHECK_STR(e->content_type, "text/event-stream; charset=utf-8");
    CHECK_EQ(e->num_writes, 3);
    fake_end(&d->service, 1, MF_FINISH_LENGTH, -1);
    fake_token(&d->service, 0, 1, -1);
    fake_end(&d->service, 0, MF_FINISH_STOP, -1);
    pump(d);
    CHECK(e->has_ended && !e->has_closed);
    json_t *events = events_of(e);
    CHECK_EQ(json_array_size(events), 7);
    for (size_t i = 0; i < 6; i++) {
        const json_t *event = json_array_get(events, i);
        CHECK_STR(json_string_value(json_object_get(event, "object")), "chat.completion.chunk");
        CHECK(json_is_null(json_object_get(event, "usage")));
    }
    CHECK_STR(
        json_string_value(json_object_get(json_object_get(choice_of(json_array_get(events, 0), 0), "delta"), "role")),
        "assistant");
    CHECK_EQ(json_integer_value(json_object_get(choice_of(json_array_get(events, 1), 0), "index")), 1);
    const json_t *last = json_array_get(events, 3);
    CHECK_STR(reason_of(choice_of(last, 0)), "length");
    CHECK(json_object_get(last, "timings"));
    CHECK_EQ(json_object_size(json_object_get(choice_of(last, 0), "delta")), 0);
    CHECK_STR(json_string_value(
                  json_object_get(json_object_get(choice_of(json_array_get(events, 4), 0), "delta"), "content")),
              "");
    CHECK_EQ(usage_of(json_array_get(events, 6), "completion_tokens"), 2);
    CHECK_EQ(json_array_size(json_object_get(json_array_get(events, 6), "choices")), 0);
    CHECK_EQ(e->num_writes, 8); /* one event, one write */
    mf_ids_close(&ids);
    json_decref(events);
    hang_up(e);
    close_desk(d);
}

/* What a stream said, put together. */
typedef struct joined {
    mf_buffer text, logprobs;
    char reason[32];
} joined;

static void join(const json_t *events, joined *out)
{
    static const char *const lists[] = { "tokens", "token_logprobs", "top_logprobs", "text_offset" };
    *out = (joined){ 0 };
    json_t *all = json_object();
    for (int k = 0; k < 4; k++) {
        json_object_set_new(all, lists[k], json_array());
    }
    size_t i;
    json_t *event;
    json_array_foreach(events, i, event)
    {
        const json_t *choice = choice_of(event, 0);
        mf_buffer_append_text(&out->text, text_of(choice));
        snprintf(out->reason, sizeof out->reason, "%s", reason_of(choice));
        const json_t *l = json_object_get(choice, "logprobs");
        for (int k = 0; json_is_object(l) && k < 4; k++) {
            json_array_extend(json_object_get(all, lists[k]), json_object_get(l, lists[k]));
        }
    }
    char *text = json_dumps(all, JSON_REAL_PRECISION(9));
    mf_buffer_append_text(&out->logprobs, text);
    free(text);
    json_decref(all);
}

static void give_tokens(desk *d, const int32_t *ids, int32_t n, mf_finish_reason reason)
{
    for (int32_t i = 0; i < n; i++) {
        if (d->service.requests[0].is_cancelled) {
            break;
        }
        mf_logprob top[] = { { ids[i], -0.1f * (float)i }, { 400 + (ids[i] * 7 + 3) % 500, -5 } };
        fake_token_with_top(&d->service, 0, ids[i], -0.1f * (float)i, top, 2);
        pump(d);
    }
    fake_end(&d->service, 0, d->service.requests[0].is_cancelled ? MF_FINISH_CANCELLED : reason, -1);
    pump(d);
}

TEST(a_streams_concatenation_is_the_whole_answer_however_the_text_is_cut)
{
    static const char *const texts[] = { "caf\u00e9 \u2713 \U0001f600 END of it", "EN EN END", "plain",
                                         "\u00e9\u00e9\u00e9EN", "a\"b\\c\n\t\x01" };
    uint64_t random = 3;
    for (int round = 0; round < 200; round++) {
        mf_ids ids = ids_of(texts[round % 5]);
        for (size_t k = 0; round >= 5 && k < ids.size; k++) { /* random bytes of tokens, cut characters */
            if (mf_random_below(&random, 3) == 0) {
                int32_t id = (int32_t)(3 + mf_random_below(&random, 300));
                size_t size;
                const char *bytes = mf_tokenizer_token_bytes(api_model()->prompt->tokenizer, id, &size);
                ids.data[k] = size > 0 && bytes[0] != '\0' ? id : ids.data[k]; /* jansson reads no key with a NUL */
            }
        }
        static const char body[] =
            "{\"prompt\": \"ab\", \"logprobs\": 2, \"echo\": %s, \"stop\": [\"END\", \"of\"], \"stream\": %s, "
            "\"include_stop_str_in_output\": %s}";
        char text[256];
        const char *echo = round % 2 ? "true" : "false", *include = round % 3 ? "true" : "false";
        desk *whole = open_desk(), *pieces = open_desk();
        snprintf(text, sizeof text, body, echo, "false", include);
        mf_exchange *a = call(whole, MF_API_COMPLETION, text);
        give_tokens(whole, ids.data, (int32_t)ids.size, MF_FINISH_LENGTH);
        char text2[256];
        snprintf(text2, sizeof text2, body, echo, "true", include);
        mf_exchange *b = call(pieces, MF_API_COMPLETION, text2);
        give_tokens(pieces, ids.data, (int32_t)ids.size, MF_FINISH_LENGTH);
        json_t *answer = body_of(a), *events = events_of(b);
        joined j;
        join(events, &j);
        CHECK_STR(text_of(choice_of(answer, 0)), mf_buffer_text(&j.text));
        CHECK_STR(reason_of(choice_of(answer, 0)), j.reason);
        char *l = json_dumps(json_object_get(choice_of(answer, 0), "logprobs"), JSON_REAL_PRECISION(9));
        CHECK_STR(l, mf_buffer_text(&j.logprobs));
        free(l);
        mf_buffer_close(&j.text);
        mf_buffer_close(&j.logprobs);
        json_decref(answer);
        json_decref(events);
        hang_up(a);
        hang_up(b);
        close_desk(whole);
        close_desk(pieces);
        mf_ids_close(&ids);
    }
}

TEST(a_full_backlog_pauses_the_sequences_until_it_has_drained)
{
    desk *d = open_desk();
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": [\"a\", \"b\"], \"stream\": true}");
    e->writes_until_full = 2;
    say(d, 0, "x");
    pump(d);
    CHECK(!d->service.requests[0].is_paused);
    say(d, 1, "y");
    pump(d);
    CHECK(d->service.requests[0].is_paused && d->service.requests[1].is_paused);
    CHECK_EQ(mf_calls_num_paused(d->calls), 2);
    e->events->drained(e->data, e);
    CHECK(!d->service.requests[0].is_paused && !d->service.requests[1].is_paused);
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    fake_end(&d->service, 1, MF_FINISH_LENGTH, -1);
    pump(d);
    CHECK(e->has_ended);
    hang_up(e);
    close_desk(d);
}

TEST(a_client_that_goes_has_all_its_sequences_cancelled_and_is_not_written_to)
{
    desk *d = open_desk();
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": [\"a\", \"b\"], \"stream\": true}");
    say(d, 0, "x");
    pump(d);
    int32_t num_writes = e->num_writes;
    fake_exchange_go(e, "reset");
    CHECK(d->service.requests[0].is_cancelled && d->service.requests[1].is_cancelled);
    CHECK_EQ(mf_calls_num_live(d->calls), 0);
    say(d, 0, "late");
    fake_end(&d->service, 1, MF_FINISH_CANCELLED, -1);
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    pump(d);
    CHECK_EQ(e->num_writes, num_writes);
    hang_up(e);
    close_desk(d);
}

/* ---- tools --------------------------------------------------------------------------------------------------------
 */

#define TOOLS                                                                                                          \
    ", \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"add\", \"parameters\": {\"type\": "             \
    "\"object\"}}}], "                                                                                                 \
    "\"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"add\"}}"

TEST(a_named_tool_is_called_in_a_whole_answer_and_in_pieces)
{
    static const char arguments[] = "{\"a\": [1, \"\u00e9\\n\"], \"b\": true}";
    desk *d = open_desk();
    mf_exchange *a = call(d, MF_API_CHAT, CHAT(TOOLS));
    finish_reading(d); /* with tools there is a grammar to compile */
    mf_exchange *b = call(d, MF_API_CHAT, CHAT(TOOLS ", \"stream\": true"));
    finish_reading(d);
    CHECK(d->service.requests[0].guide.fill && d->service.requests[1].guide.fill);
    for (int32_t i = 0; i < 2; i++) {
        say(d, i, arguments);
        fake_token(&d->service, i, 1, -1);
        fake_end(&d->service, i, MF_FINISH_STOP, -1);
    }
    pump(d);
    json_t *body = body_of(a);
    const json_t *message = json_object_get(choice_of(body, 0), "message");
    const json_t *one = json_array_get(json_object_get(message, "tool_calls"), 0);
    CHECK(json_is_null(json_object_get(message, "content")));
    CHECK_STR(json_string_value(json_object_get(one, "type")), "function");
    CHECK_STR(json_string_value(json_object_get(json_object_get(one, "function"), "name")), "add");
    CHECK_STR(json_string_value(json_object_get(json_object_get(one, "function"), "arguments")), arguments);
    CHECK(!json_object_get(one, "index"));
    CHECK_STR(reason_of(choice_of(body, 0)), "tool_calls");
    json_t *events = events_of(b);
    mf_buffer pieces = { 0 };
    size_t i, k;
    json_t *event, *piece;
    json_array_foreach(events, i, event)
    {
        json_array_foreach(json_object_get(json_object_get(choice_of(event, 0), "delta"), "tool_calls"), k, piece)
        {
            CHECK_EQ(json_integer_value(json_object_get(piece, "index")), 0);
            mf_buffer_append_text(&pieces,
                                  json_string_value(json_object_get(json_object_get(piece, "function"), "arguments")));
        }
    }
    CHECK_STR(mf_buffer_text(&pieces), arguments);
    CHECK_STR(reason_of(choice_of(json_array_get(events, json_array_size(events) - 1), 0)), "tool_calls");
    mf_buffer_close(&pieces);
    json_decref(events);
    json_decref(body);
    hang_up(a);
    hang_up(b);
    close_desk(d);
}

TEST(a_silent_stream_is_kept_alive_when_asked)
{
    desk *d = open_desk();
    mf_calls_close(&d->calls);
    mf_error err = { 0 };
    mf_calls_options o = { .service = &d->service, .text = d->text, .model = &d->model, .keep_alive_s = 0.5 };
    CHECK_OK(mf_calls_open(&o, &d->calls, &err), err);
    mf_exchange *e = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\", \"stream\": true}");
    mf_exchange *whole = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\"}");
    mf_calls_tick(d->calls, mf_now_ns());
    CHECK(!e->has_begun);
    mf_calls_tick(d->calls, mf_now_ns() + 1000000000);
    CHECK_STR(mf_buffer_text(&e->written), ": ping\n\n");
    CHECK_EQ(whole->num_writes, 0);
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    fake_end(&d->service, 1, MF_FINISH_LENGTH, -1);
    pump(d);
    hang_up(e);
    hang_up(whole);
    close_desk(d);
}

/* ---- errors -------------------------------------------------------------------------------------------------------
 */

TEST(what_is_not_finite_fails_that_request_alone)
{
    desk *d = open_desk();
    mf_exchange *a = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\"}");
    mf_exchange *b = call(d, MF_API_COMPLETION, "{\"prompt\": \"b\", \"stream\": true}");
    mf_exchange *c = call(d, MF_API_COMPLETION, "{\"prompt\": \"c\"}");
    say(d, 1, "x");
    fake_end(&d->service, 0, MF_FINISH_ERROR, -1);
    fake_end(&d->service, 1, MF_FINISH_ERROR, -1);
    say(d, 2, "fine");
    fake_end(&d->service, 2, MF_FINISH_LENGTH, -1);
    pump(d);
    CHECK_EQ(a->status, 500);
    CHECK_HAS(a->error.message, "req-1");
    CHECK(b->has_closed);
    CHECK_HAS(mf_buffer_text(&b->written), "data: {\"error\"");
    CHECK_HAS(mf_buffer_text(&b->written), "\"code\": 500");
    CHECK_HAS(mf_buffer_text(&b->written), "data: [DONE]\n\n");
    CHECK_EQ(c->status, 200);
    hang_up(a);
    hang_up(b);
    hang_up(c);
    close_desk(d);
}

TEST(a_deadline_in_the_queue_is_504_and_later_it_is_a_length)
{
    desk *d = open_desk();
    mf_exchange *a = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\", \"timeout\": 10}");
    mf_exchange *b = call(d, MF_API_COMPLETION, "{\"prompt\": \"b\", \"timeout\": 10}");
    CHECK_EQ(d->service.requests[0].deadline_ns, a->received_ns + 10000000000);
    fake_end_in_queue(&d->service, 0);
    say(d, 1, "half");
    fake_end(&d->service, 1, MF_FINISH_DEADLINE, -1);
    pump(d);
    CHECK_EQ(a->status, 504);
    json_t *body = body_of(b);
    CHECK_STR(reason_of(choice_of(body, 0)), "length");
    CHECK_STR(json_string_value(json_object_get(choice_of(body, 0), "stop_reason")), "deadline");
    json_decref(body);
    hang_up(a);
    hang_up(b);
    close_desk(d);
}

TEST(a_stream_that_expires_in_the_queue_is_504_too)
{
    desk *d = open_desk();
    mf_exchange *a = call(d, MF_API_COMPLETION, "{\"prompt\": [\"a\", \"b\"], \"timeout\": 10, \"stream\": true}");
    mf_exchange *b = call(d, MF_API_COMPLETION, "{\"prompt\": [\"a\", \"b\"], \"timeout\": 10, \"stream\": true}");
    fake_end_in_queue(&d->service, 0);
    fake_end_in_queue(&d->service, 1);
    fake_end_in_queue(&d->service, 2); /* one expires, the other runs: both are told of */
    say(d, 3, "x");
    fake_end(&d->service, 3, MF_FINISH_LENGTH, -1);
    pump(d);
    CHECK(a->is_error);
    CHECK_EQ(a->status, 504);
    json_t *events = events_of(b);
    CHECK_EQ(json_array_size(events), 3);
    json_decref(events);
    hang_up(a);
    hang_up(b);
    close_desk(d);
}

TEST(a_full_queue_refuses_without_reading)
{
    desk *d = open_desk();
    d->service.ahead = MF_SERVICE_FULL_REQUESTS;
    mf_exchange *a = call(d, MF_API_COMPLETION, "{\"prompt\": ");
    CHECK_EQ(a->status, 429);
    CHECK_EQ(a->error.retry_after_s, 1);
    CHECK_EQ(d->service.num_requests, 0);
    d->service.ahead = MF_SERVICE_NOT_FULL;
    mf_exchange *b = call(d, MF_API_COMPLETION, "{\"prompt\": ");
    CHECK_EQ(b->status, 400);
    hang_up(a);
    hang_up(b);
    close_desk(d);
}

TEST(a_full_queue_is_429_with_retry_after_and_a_refusal_400)
{
    desk *d = open_desk();
    d->service.full = MF_SERVICE_FULL_TOKENS;
    mf_exchange *a = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\"}");
    CHECK_EQ(a->status, 429);
    CHECK_EQ(a->error.retry_after_s, 1);
    d->service.full = MF_SERVICE_NOT_FULL;
    mf_exchange *b = call(d, MF_API_COMPLETION, "{\"prompt\": [\"a\", \"b\"]}");
    fake_refuse(&d->service, 0, MF_ERR_INVALID, "something is wrong");
    pump(d);
    CHECK_EQ(b->status, 400);
    CHECK_HAS(b->error.message, "something is wrong");
    CHECK(d->service.requests[1].is_cancelled);
    fake_end(&d->service, 1, MF_FINISH_CANCELLED, -1);
    pump(d);
    mf_exchange *c = call(d, MF_API_COMPLETION, "{\"prompt\": ");
    CHECK_EQ(c->status, 400);
    hang_up(a);
    hang_up(b);
    hang_up(c);
    close_desk(d);
}

TEST(the_servers_end_is_told_to_everybody)
{
    desk *d = open_desk();
    mf_exchange *a = call(d, MF_API_COMPLETION, "{\"prompt\": \"a\"}");
    mf_exchange *b = call(d, MF_API_COMPLETION, "{\"prompt\": \"b\", \"stream\": true}");
    say(d, 1, "x");
    pump(d);
    mf_calls_abort(d->calls);
    CHECK_EQ(a->status, 503);
    CHECK(b->has_closed);
    CHECK_HAS(mf_buffer_text(&b->written), "\"code\": 503");
    fake_end(&d->service, 0, MF_FINISH_CANCELLED, -1);
    fake_end(&d->service, 1, MF_FINISH_CANCELLED, -1);
    pump(d);
    hang_up(a);
    hang_up(b);
    close_desk(d);
}

/* ---- long bodies --------------------------------------------------------------------------------------------------
 */

static char *long_body(void)
{
    size_t n = 40000;
    char *body = malloc(n + 64);
    int at = snprintf(body, 64, "{\"truncate_prompt_tokens\": 20, \"prompt\": \"");
    for (size_t i = (size_t)at; i < n; i++) {
        body[i] = i % 6 ? 'a' : ' ';
    }
    memcpy(body + n, "\"}", 3);
    return body;
}

TEST(a_long_body_is_read_beside_the_loop)
{
    desk *d = open_desk();
    char *text = long_body();
    mf_exchange *e = call(d, MF_API_COMPLETION, text);
    CHECK_EQ(d->service.num_requests, 0);
    finish_reading(d);
    CHECK_EQ(d->service.num_requests, 1);
    CHECK_EQ(d->service.requests[0].num_prompt, 20);
    fake_end(&d->service, 0, MF_FINISH_LENGTH, -1);
    pump(d);
    CHECK_EQ(e->status, 200);
    hang_up(e);
    free(text);
    close_desk(d);
}

TEST(a_client_that_goes_while_its_body_is_read_leaves_nothing)
{
    desk *d = open_desk();
    char *text = long_body();
    mf_exchange *e = call(d, MF_API_COMPLETION, text);
    fake_exchange_go(e, "closed");
    finish_reading(d);
    CHECK_EQ(d->service.num_requests, 0);
    hang_up(e);
    e = call(d, MF_API_COMPLETION, text);
    fake_exchange_go(e, "closed");
    hang_up(e);
    free(text);
    close_desk(d); /* the worker may never have got to it */
}
