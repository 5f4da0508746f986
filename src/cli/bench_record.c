/* bench_record.c - see bench_record.h. */
#include "cli/bench_record.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"

static bool add_itl(mf_bench_record *r, double seconds)
{
    if (r->num_itls == r->itl_room) {
        size_t room = r->itl_room ? r->itl_room * 2 : 64;
        double *more = mf_resize_array(r->itls_s, room, sizeof *more);
        if (!more) {
            return false;
        }
        r->itls_s = more;
        r->itl_room = room;
    }
    r->itls_s[r->num_itls++] = seconds;
    return true;
}

void mf_bench_record_fail(mf_bench_record *r, const char *fmt, ...)
{
    if (r->error[0]) { /* the first cause is the one to tell */
        return;
    }
    va_list args;
    va_start(args, fmt);
    vsnprintf(r->error, sizeof r->error, fmt, args);
    va_end(args);
    /* A cut in the middle of a character would make the result file's JSON refuse it. */
    for (size_t n = strlen(r->error); n > 0 && !mf_utf8_valid(r->error, n, NULL); n--) {
        r->error[n - 1] = '\0';
    }
    for (char *p = r->error; *p; p++) {
        *p = (unsigned char)*p < ' ' ? ' ' : *p;
    }
}

static const char *error_message(const json_t *document)
{
    const json_t *error = json_object_get(document, "error");
    const char *text =
        json_is_string(error) ? json_string_value(error) : json_string_value(json_object_get(error, "message"));
    if (!text) {
        text = json_string_value(json_object_get(document, "message"));
    }
    if (!text) {
        text = json_string_value(json_object_get(document, "detail"));
    }
    return text;
}

void mf_bench_record_refused(mf_bench_record *r, int status, const char *body, size_t size)
{
    json_t *document = NULL;
    const char *text = NULL;
    if (mf_json_parse(body, size, "answer", &(mf_json_limits){ .top_is_object = true, .allow_nul = true }, &document, NULL) == MF_OK) {
        text = error_message(document);
    }
    if (text) {
        mf_bench_record_fail(r, "HTTP %d: %s", status, text);
    } else {
        mf_bench_record_fail(r, "HTTP %d: %.*s", status, (int)(size < 160 ? size : 160), body);
    }
    json_decref(document);
}

/* "usage" may come beside choices in every event, or alone in the last one. */
static void take_usage(mf_bench_record *r, const json_t *document)
{
    const json_t *made = json_object_get(json_object_get(document, "usage"), "completion_tokens");
    if (json_is_integer(made) && json_integer_value(made) >= 0) {
        r->output_len = json_integer_value(made);
    }
}

/* A chat's first event carries the role and no token. */
static bool is_role_only(const json_t *choice)
{
    const json_t *delta = json_object_get(choice, "delta");
    const char *content = json_string_value(json_object_get(delta, "content"));
    return json_object_get(delta, "role") && (!content || !*content) &&
           !json_is_string(json_object_get(choice, "finish_reason"));
}

/* Where ids were asked for, they are the answer's text: numbers, each behind a blank. */
static void take_ids(mf_bench_record *r, const json_t *ids)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        if (mf_buffer_printf(&r->text, " %lld", (long long)json_integer_value(json_array_get(ids, i))) != MF_OK) {
            mf_bench_record_fail(r, "client: out of memory");
        }
    }
}

static void take_piece(mf_bench_record *r, const json_t *choice, double now_s)
{
    if (r->ttft_s == 0 && is_role_only(choice)) {
        return;
    }
    double since = now_s - r->start_s;
    if (r->ttft_s == 0) {
        r->ttft_s = since > 0 ? since : 1e-9;
    } else if (!add_itl(r, since - r->latency_s)) {
        mf_bench_record_fail(r, "client: out of memory");
    }
    r->latency_s = since;
    take_ids(r, json_object_get(choice, "token_ids"));
    const json_t *text = json_object_get(choice, "text");
    text = text ? text : json_object_get(json_object_get(choice, "delta"), "content");
    if (json_is_string(text) &&
        mf_buffer_append(&r->text, json_string_value(text), json_string_length(text)) != MF_OK) {
        mf_bench_record_fail(r, "client: out of memory");
    }
}

bool mf_bench_record_event(mf_bench_record *r, const char *data, size_t size, double now_s)
{
    if (size >= 6 && memcmp(data, "[DONE]", 6) == 0) {
        return false;
    }
    json_t *document = NULL;
    mf_error err = { 0 };
    if (mf_json_parse(data, size, "event", &(mf_json_limits){ .top_is_object = true, .allow_nul = true }, &document, &err) != MF_OK) {
        mf_bench_record_fail(r, "%s", err.message);
        return false;
    }
    bool goes_on = true;
    const json_t *choice = json_array_get(json_object_get(document, "choices"), 0);
    if (json_object_get(document, "error") && !json_is_null(json_object_get(document, "error"))) {
        const char *text = error_message(document);
        mf_bench_record_fail(r, "%s", text ? text : "an error event without a message");
        goes_on = false;
    } else if (choice) {
        take_piece(r, choice, now_s);
    }
    take_usage(r, document);
    json_decref(document);
    return goes_on && !r->error[0];
}

void mf_bench_record_end(mf_bench_record *r, bool done_seen)
{
    if (!done_seen) {
        mf_bench_record_fail(r, "the stream ended before [DONE], after %zu pieces", r->num_itls + (r->ttft_s > 0));
    } else if (r->ttft_s == 0) {
        mf_bench_record_fail(r, "the stream held no piece of an answer");
    }
    r->ok = !r->error[0];
}

void mf_bench_record_close(mf_bench_record *r)
{
    mf_free(r->itls_s);
    mf_buffer_close(&r->text);
    *r = (mf_bench_record){ 0 };
}
