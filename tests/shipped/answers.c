/* answers.c - see answers.h. */
#include "answers.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/sys.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

static void copy_number(const char *from, char *to, size_t size)
{
    size_t n = 0;
    while (*from == ' ') {
        from++;
    }
    for (; *from && *from != '\n' && n + 1 < size; from++) {
        if (*from != ',' && *from != '$' && *from != ' ') {
            to[n++] = *from;
        }
    }
    while (n > 0 && to[n - 1] == '.') {
        n--;
    }
    to[n] = '\0';
}

static bool is_correct(const char *text, const char *expected)
{
    char a[64] = "", b[64];
    const char *mark = strstr(text, "####");
    if (mark) {
        copy_number(mark + 4, a, sizeof a);
    }
    copy_number(expected, b, sizeof b);
    return a[0] && strcmp(a, b) == 0;
}

static mf_status read_questions(const answer_options *o, answers *out, mf_error *err)
{
    FILE *f = fopen(o->questions, "r");
    if (!f) {
        return mf_fail(err, MF_ERR_IO, "%s: cannot open", o->questions);
    }
    char *line = NULL;
    size_t capacity = 0;
    int32_t room = 0;
    while ((o->limit == 0 || out->count < o->limit) && getline(&line, &capacity, f) > 0) {
        json_t *entry = json_loads(line, 0, NULL);
        const char *question = json_string_value(json_object_get(entry, "question"));
        const char *text = json_string_value(json_object_get(entry, "answer"));
        const char *mark = text ? strstr(text, "####") : NULL;
        if (out->count == room) {
            room = room ? room * 2 : 64;
            out->items = mf_resize_array(out->items, (size_t)room, sizeof *out->items);
        }
        if (question) {
            out->items[out->count++] =
                (answer){ .question = mf_strdup(question), .expected = mf_strdup(mark ? mark + 4 : "") };
        }
        json_decref(entry);
    }
    free(line);
    fclose(f);
    return out->count ? MF_OK : mf_fail(err, MF_ERR_FORMAT, "%s: no questions", o->questions);
}

static mf_status encode_question(const mf_tokenizer *tokenizer, const mf_chat_template *chat, const json_t *special,
                                 const char *question, mf_ids *ids, mf_error *err)
{
    json_t *variables = json_copy((json_t *)(uintptr_t)special);
    json_object_set_new(variables, "messages", json_pack("[{s:s, s:s}]", "role", "user", "content", question));
    json_object_set_new(variables, "add_generation_prompt", json_true());
    mf_buffer text = { 0 };
    mf_status status = mf_chat_template_render(chat, variables, NULL, &text, err);
    if (status == MF_OK) {
        status = mf_tokenizer_encode(tokenizer, mf_buffer_text(&text), text.size, 0, ids, err);
    }
    mf_buffer_close(&text);
    json_decref(variables);
    return status;
}

static mf_status run_all(mf_engine *engine, const answer_options *o, const mf_ids *prompts, answers *out, mf_error *err)
{
    int32_t submitted = 0, finished = 0;
    int32_t capacity = mf_engine_max_events(engine);
    mf_event *events = mf_alloc_array((size_t)capacity, sizeof *events);
    mf_status status = MF_OK;
    double started = mf_now_s();
    while (status == MF_OK && finished < out->count) {
        while (submitted < out->count) {
            answer *a = &out->items[submitted];
            mf_request request = MF_REQUEST_INIT;
            request.prompt_token_ids = prompts[submitted].data;
            request.num_prompt_tokens = (int32_t)prompts[submitted].size;
            request.sampling.temperature = 0;
            request.sampling.max_tokens = o->max_tokens;
            request.sampling.logprobs = 0;
            request.user_data = a;
            uint64_t id;
            a->ids = mf_alloc_array((size_t)o->max_tokens, sizeof *a->ids);
            a->logprobs = mf_alloc_array((size_t)o->max_tokens, sizeof *a->logprobs);
            status = mf_engine_submit(engine, &request, &id, err);
            if (status != MF_OK) {
                mf_free(a->ids);
                mf_free(a->logprobs);
                a->ids = NULL;
                a->logprobs = NULL;
                if (status == MF_ERR_BUSY) {
                    status = MF_OK;
                }
                break;
            }
            submitted++;
        }
        int32_t n = 0;
        if (status == MF_OK) {
            status = mf_engine_step(engine, events, capacity, &n, err);
        }
        for (int32_t i = 0; i < n; i++) {
            answer *a = events[i].user_data;
            if (events[i].type == MF_EVENT_TOKEN) {
                a->ids[a->num_ids] = events[i].token_id;
                a->logprobs[a->num_ids++] = events[i].logprob;
                out->num_tokens++;
            } else if (events[i].type == MF_EVENT_FINISHED) {
                finished++;
            }
        }
    }
    out->seconds = mf_now_s() - started;
    mf_free(events);
    return status;
}

mf_status answers_make(const answer_options *o, answers *out, mf_error *err)
{
    *out = (answers){ 0 };
    mf_tokenizer *tokenizer = NULL;
    mf_chat_template *chat = NULL;
    json_t *special = NULL;
    mf_engine *engine = NULL;
    mf_ids *prompts = NULL;
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenizer.json", o->model_dir);
    mf_status status;
    MF_TRY_GOTO(read_questions(o, out, err), done);
    MF_TRY_GOTO(mf_tokenizer_open(path, &tokenizer, err), done);
    MF_TRY_GOTO(mf_chat_template_load(o->model_dir, &chat, &special, err), done);
    mf_engine_options options = MF_ENGINE_OPTIONS_INIT;
    options.model_dir = o->model_dir;
    options.num_threads = o->threads;
    options.max_num_seqs = o->max_num_seqs ? o->max_num_seqs : 64;
    options.disable_shared_experts_fusion = o->disable_fusion;
    options.disable_fused_gate = o->disable_fused_gate;
    options.num_shared_expert_replicas = o->replicas ? o->replicas : 1;
    options.kv_cache_memory_bytes = 256 << 20;
    options.auto_dtype = options.auto_kv_cache_dtype = o->auto_dtype;
    MF_TRY_GOTO(mf_engine_open(&options, &engine, err), done);
    prompts = mf_alloc_array((size_t)out->count, sizeof *prompts);
    for (int32_t i = 0; i < out->count; i++) {
        MF_TRY_GOTO(encode_question(tokenizer, chat, special, out->items[i].question, &prompts[i], err), done);
    }
    MF_TRY_GOTO(run_all(engine, o, prompts, out, err), done);
    for (int32_t i = 0; i < out->count; i++) {
        mf_buffer text = { 0 };
        MF_TRY_GOTO(mf_tokenizer_decode(tokenizer, out->items[i].ids, (size_t)out->items[i].num_ids, true, &text, err), done);
        out->items[i].text = mf_strdup(mf_buffer_text(&text));
        mf_buffer_close(&text);
        out->items[i].correct = is_correct(out->items[i].text, out->items[i].expected);
        out->num_correct += out->items[i].correct;
    }
done:
    for (int32_t i = 0; prompts && i < out->count; i++) {
        mf_ids_close(&prompts[i]);
    }
    mf_free(prompts);
    mf_engine_close(&engine);
    json_decref(special);
    mf_chat_template_close(&chat);
    mf_tokenizer_close(&tokenizer);
    return status;
}

void answers_free(answers *a)
{
    for (int32_t i = 0; i < a->count; i++) {
        mf_free(a->items[i].question);
        mf_free(a->items[i].expected);
        mf_free(a->items[i].ids);
        mf_free(a->items[i].logprobs);
        mf_free(a->items[i].text);
    }
    mf_free(a->items);
    *a = (answers){ 0 };
}
