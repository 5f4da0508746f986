/* verb_run.c - `moefuse run`: one prompt, a pipe, or a chat on a terminal; text on stdout, everything else on stderr. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "cli/cli.h"
#include "text/prompt.h"
#include "cli/sampling_defaults.h"
#include "cli/session.h"
#include "engine/engine.h"
#include "model/model.h"
#include "text/stream.h"

enum { MAX_PROMPT_BYTES = 8 << 20 };

typedef struct run_flags {
    mf_model_flags model;
    const char *prompt, *file, *system;
    bool chat, raw, json, expert_map, ignore_eos;
    mf_flag_list stop;
    int64_t max_tokens, top_k;
    double temperature, top_p, min_p, repetition_penalty;
    bool temperature_given, top_p_given, top_k_given, repetition_given, min_p_given, seed_given;
} run_flags;

static volatile sig_atomic_t interrupts;

/* The first Ctrl-C ends the answer and prints its line; the second leaves at once. */
static void on_interrupt(int signal_number)
{
    (void)signal_number;
    if (++interrupts > 1) {
        _exit(MF_EXIT_INTERRUPTED);
    }
}

static size_t fill_flags(run_flags *v, mf_flag *rows)
{
    const mf_flag table[] = {
        { "prompt", "--prompt", "-p", MF_FLAG_TEXT, &v->prompt, .argument = "TEXT", .help = "the prompt; else -f, a pipe, or a chat" },
        { "prompt", "--file", "-f", MF_FLAG_TEXT, &v->file, .argument = "FILE", .help = "read the prompt from a file" },
        { "prompt", "--system", NULL, MF_FLAG_TEXT, &v->system, .argument = "TEXT", .help = "a system message before the chat" },
        { "prompt", "--chat", NULL, MF_FLAG_BOOL, &v->chat, .help = "use the chat template (the default when there is one)" },
        { "prompt", "--raw", NULL, MF_FLAG_BOOL, &v->raw, .help = "continue the prompt as it stands" },
        { "sampling", "--max-tokens", "-n", MF_FLAG_INT, &v->max_tokens, .min = 0, .max = 1 << 24, .argument = "N",
          .help = "tokens to make at most (the rest of the context)" },
        { "sampling", "--temperature", NULL, MF_FLAG_REAL, &v->temperature, &v->temperature_given, 0, 2, .argument = "X",
          .help = "0 = greedy (the model's default, else 1)" },
        { "sampling", "--top-p", NULL, MF_FLAG_REAL, &v->top_p, &v->top_p_given, 1e-9, 1, .argument = "X",
          .help = "(the model's default, else 1)" },
        { "sampling", "--top-k", NULL, MF_FLAG_INT, &v->top_k, &v->top_k_given, -1, 2147483647, .argument = "N",
          .help = "0 = off (the model's default, else off)" },
        { "sampling", "--min-p", NULL, MF_FLAG_REAL, &v->min_p, &v->min_p_given, 0, 1, .argument = "X", .help = "(0)" },
        { "sampling", "--repetition-penalty", NULL, MF_FLAG_REAL, &v->repetition_penalty, &v->repetition_given, 1e-3, 10,
          .argument = "X", .help = "(the model's default, else 1)" },
        { "sampling", "--stop", NULL, MF_FLAG_LIST, &v->stop, .argument = "TEXT", .help = "end before this text; up to 16 times" },
        { "sampling", "--ignore-eos", NULL, MF_FLAG_BOOL, &v->ignore_eos, .help = "go on past the end-of-sentence token" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &v->json, .help = "JSON lines on stdout: one per token, then the statistics" },
        { "output", "--expert-map", NULL, MF_FLAG_BOOL, &v->expert_map, .help = "show which experts were used, layer by layer" },
    };
    *v = (run_flags){ .max_tokens = -1, .temperature = 1, .top_p = 1, .repetition_penalty = 1 };
    mf_model_flags_fill(&v->model, rows + sizeof table / sizeof *table);
    memcpy(rows, table, sizeof table);
    return sizeof table / sizeof *table + MF_NUM_MODEL_FLAGS;
}

static void set_sampling(const run_flags *f, const mf_sampling_defaults *d, mf_sampling_params *s)
{
    s->max_tokens = (int32_t)f->max_tokens;
    s->max_tokens = f->max_tokens < 0 ? d->max_new_tokens : s->max_tokens;
    s->temperature = f->temperature_given || isnan(d->temperature) ? f->temperature : d->temperature;
    s->top_p = f->top_p_given || isnan(d->top_p) ? f->top_p : d->top_p;
    s->top_k = (int32_t)(f->top_k_given || d->top_k < 0 ? f->top_k : d->top_k);
    s->min_p = f->min_p_given || isnan(d->min_p) ? f->min_p : d->min_p;
    s->repetition_penalty =
        f->repetition_given || isnan(d->repetition_penalty) ? f->repetition_penalty : d->repetition_penalty;
    s->ignore_eos = f->ignore_eos;
    s->has_seed = 1;
    s->seed = f->model.seed;
}

/* One answer: its text goes to stdout as it comes and, when `answer` is not NULL, into it. */
typedef struct answer_stats {
    mf_event last; /* the FINISHED event */
    double total_s;
    bool stopped; /* by a stop string */
    int32_t stop_index;
} answer_stats;

static void print_json_token(const char *text, size_t size, int32_t id)
{
    json_t *line = json_pack("{s:s, s:o, s:i}", "type", "token", "text", json_stringn(text, size), "id", (int)id);
    mf_console_json(line, JSON_COMPACT);
}

static void emit(const run_flags *f, const mf_buffer *text, int32_t id, mf_buffer *answer)
{
    if (f->json) {
        print_json_token(mf_buffer_text(text), text->size, id);
    } else if (text->size) {
        fwrite(text->data, 1, text->size, stdout);
        fflush(stdout);
    }
    if (answer) {
        mf_buffer_append(answer, mf_buffer_text(text), text->size);
    }
}

static mf_status generate(mf_session *session, const run_flags *f, const mf_ids *ids, mf_buffer *answer, answer_stats *stats,
                          mf_error *err)
{
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = ids->data;
    request.num_prompt_tokens = (int32_t)ids->size;
    mf_sampling_defaults defaults;
    MF_TRY(mf_sampling_defaults_read(&f->model, session->config, &defaults, err));
    set_sampling(f, &defaults, &request.sampling);

    *stats = (answer_stats){ .stop_index = -1 };
    double started = mf_now_s();
    mf_stream *stream = NULL;
    mf_buffer text = { 0 };
    uint64_t id = 0;
    mf_event events[8];
    bool finished = false;
    mf_stop_string stops[MF_STREAM_MAX_STOPS];
    _Static_assert(MF_FLAG_LIST_MAX <= (int)MF_STREAM_MAX_STOPS, "every --stop has a place");
    for (int32_t i = 0; i < f->stop.count; i++) {
        stops[i] = (mf_stop_string){ f->stop.items[i], strlen(f->stop.items[i]) };
    }
    mf_stream_options stream_options = { .stops = stops, .num_stops = (size_t)f->stop.count, .skip_special = true };
    mf_status status = mf_stream_open(session->prompt.tokenizer, &stream_options, &stream, err);
    if (status == MF_OK) {
        status = mf_engine_submit(session->engine, &request, &id, err);
    }
    while (status == MF_OK && !finished) {
        int32_t num_events = 0;
        status = mf_engine_step(session->engine, events, 8, &num_events, err);
        for (int32_t i = 0; i < num_events && status == MF_OK; i++) {
            const mf_event *event = &events[i];
            if (event->type == MF_EVENT_FINISHED) {
                stats->last = *event;
                finished = true;
            } else if (event->type == MF_EVENT_TOKEN && !stats->stopped) {
                mf_buffer_clear(&text);
                status = mf_stream_push(stream, event->token_id, &text, &stats->stop_index, err);
                emit(f, &text, event->token_id, answer);
                if (stats->stop_index >= 0) {
                    stats->stopped = true;
                    mf_engine_cancel(session->engine, id);
                }
            }
        }
        if (interrupts && !finished) {
            mf_engine_cancel(session->engine, id);
        }
    }
    if (status == MF_OK && !stats->stopped) {
        mf_buffer_clear(&text);
        status = mf_stream_finish(stream, &text, &stats->stop_index, err);
        if (text.size) {
            emit(f, &text, -1, answer);
        }
    }
    stats->total_s = mf_now_s() - started;
    mf_buffer_close(&text);
    mf_stream_close(&stream);
    return status;
}

static double per_second(int64_t count, double seconds)
{
    return seconds > 0 ? (double)count / seconds : 0;
}

static void print_stats(const mf_session *session, const run_flags *f, const answer_stats *stats)
{
    const mf_event *e = &stats->last;
    const mf_plan *plan = mf_model_get_plan(session->model);
    /* The first token belongs to the prefill. */
    int32_t decoded = e->completion_tokens > 1 ? e->completion_tokens - 1 : 0;
    double prompt_rate = per_second(e->prompt_tokens - e->cached_tokens, e->prefill_s);
    double decode_rate = per_second(decoded, e->decode_s);
    if (f->json) {
        const char *reason = stats->stopped ? "stop" : mf_finish_reason_name(e->finish_reason);
        json_t *line = json_pack("{s:s, s:s, s:f, s:f, s:i, s:f, s:f, s:i, s:i, s:f, s:f}", "type", "stats", "finish_reason",
                                 reason, "queue_ms", e->queue_s * 1e3, "ttft_ms", e->ttft_s * 1e3, "prompt_n",
                                 (int)e->prompt_tokens, "prompt_ms", e->prefill_s * 1e3, "prompt_per_second", prompt_rate,
                                 "cached_n", (int)e->cached_tokens, "predicted_n", (int)e->completion_tokens, "predicted_ms",
                                 e->decode_s * 1e3, "predicted_per_second", decode_rate);
        mf_console_json(line, JSON_COMPACT | JSON_REAL_PRECISION(9));
        return;
    }
    fflush(stdout);
    fprintf(stderr, "prompt %d tok %.1f tok/s | decode %d tok %.1f tok/s | TTFT %.3f s | total %.2f s | ", e->prompt_tokens,
            prompt_rate, e->completion_tokens, decode_rate, e->ttft_s, stats->total_s);
    fprintf(stderr, "shared experts in slots %d/%d layers\n", plan->num_slot, plan->num_moe);
}

/* One row per layer, one cell per expert, darker with more tokens. */
static void print_expert_map(const mf_session *session)
{
    static const char *const shades[] = { "\u00b7", "\u2591", "\u2592", "\u2593", "\u2588" };
    mf_engine_stats stats;
    mf_engine_get_stats(session->engine, &stats);
    if (!stats.expert_load || stats.num_experts == 0) {
        fprintf(stderr, "no expert load to show\n");
        return;
    }
    fprintf(stderr, "expert load, one row per MoE layer, experts 0..%d left to right, then the shared slots (S)\n",
            stats.num_experts - 1);
    const mf_plan *plan = mf_model_get_plan(session->model);
    for (int32_t layer = 0; layer < stats.num_layers; layer++) {
        if (!plan->layers[layer].is_moe) {
            continue;
        }
        const int64_t *load = stats.expert_load + (int64_t)layer * stats.num_experts;
        int64_t most = 1;
        for (int32_t e = 0; e < stats.num_experts; e++) {
            most = load[e] > most ? load[e] : most;
        }
        fprintf(stderr, "layer %3d |", layer);
        for (int32_t e = 0; e < stats.num_experts; e++) {
            fputs(shades[load[e] == 0 ? 0 : 1 + load[e] * 3 / most], stderr);
        }
        fputc('|', stderr);
        for (int32_t s = 0; plan->layers[layer].has_shared && s < plan->layers[layer].num_shared_chunks; s++) {
            fputc('S', stderr);
        }
        fprintf(stderr, " most %lld\n", (long long)most);
    }
}

static json_t *message(const char *role, const char *text, size_t size)
{
    return json_pack("{s:s, s:o}", "role", role, "content", json_stringn(text, size));
}

static mf_status answer_once(mf_session *session, const run_flags *f, bool chat, json_t *messages, const char *raw_text,
                             size_t raw_size, mf_buffer *answer, mf_error *err)
{
    mf_ids ids = { 0 };
    mf_status status = chat ? mf_prompt_encode_chat(&session->prompt, messages, &ids, err)
                            : mf_prompt_encode_raw(&session->prompt, raw_text, raw_size, &ids, err);
    answer_stats stats;
    if (status == MF_OK) {
        status = generate(session, f, &ids, answer, &stats, err);
    }
    if (status == MF_OK) {
        if (!f->json) {
            fputc('\n', stdout);
        }
        print_stats(session, f, &stats);
        if (stats.last.finish_reason == MF_FINISH_ERROR) {
            status = mf_fail(err, MF_ERR_INTERNAL, "the model's logits are not finite: a weight holds NaN or infinity");
        }
    }
    mf_ids_close(&ids);
    return status;
}

static mf_status read_stdin(mf_buffer *text, mf_error *err)
{
    char chunk[65536];
    size_t n;
    text->limit = MAX_PROMPT_BYTES;
    while ((n = fread(chunk, 1, sizeof chunk, stdin)) > 0) {
        mf_status status = mf_buffer_append(text, chunk, n);
        if (status != MF_OK) {
            return mf_fail(err, status, "standard input: expected at most %d bytes", MAX_PROMPT_BYTES);
        }
    }
    return MF_OK;
}

static mf_status one_prompt(mf_session *session, const run_flags *f, bool chat, mf_error *err)
{
    mf_buffer text = { 0 };
    mf_status status = MF_OK;
    if (f->prompt) {
        status = mf_buffer_append_text(&text, f->prompt);
    } else if (f->file) {
        mf_file file;
        status = mf_file_open(f->file, false, MAX_PROMPT_BYTES, &file, err);
        if (status == MF_OK) {
            status = mf_buffer_append(&text, file.data, file.size);
            mf_file_close(&file);
        }
    } else {
        status = read_stdin(&text, err);
    }
    size_t bad_at = 0;
    if (status == MF_OK && !mf_utf8_valid(mf_buffer_text(&text), text.size, &bad_at)) {
        status = mf_fail(err, MF_ERR_INVALID, "%s: the prompt is not valid UTF-8 at byte %zu",
                         f->prompt ? "--prompt" : f->file ? f->file : "standard input", bad_at);
    }
    json_t *messages = json_array();
    if (status == MF_OK && f->system) {
        json_array_append_new(messages, message("system", f->system, strlen(f->system)));
    }
    if (status == MF_OK) {
        json_array_append_new(messages, message("user", mf_buffer_text(&text), text.size));
        status = answer_once(session, f, chat, messages, mf_buffer_text(&text), text.size, NULL, err);
    }
    json_decref(messages);
    mf_buffer_close(&text);
    return status;
}

static mf_status chat_loop(mf_session *session, const run_flags *f, mf_error *err)
{
    fprintf(stderr, "Type a message; an empty line or Ctrl-D ends the chat, /new starts over, Ctrl-C ends an answer.\n");
    json_t *messages = json_array();
    char *line = NULL;
    size_t capacity = 0;
    mf_status status = MF_OK;
    if (f->system) {
        json_array_append_new(messages, message("system", f->system, strlen(f->system)));
    }
    for (;;) {
        fprintf(stderr, "> ");
        interrupts = 0;
        ssize_t n = getline(&line, &capacity, stdin);
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) {
            n--;
        }
        if (n <= 0) {
            break;
        }
        if (n == 4 && memcmp(line, "/new", 4) == 0) {
            json_array_clear(messages);
            continue;
        }
        if (!mf_utf8_valid(line, (size_t)n, NULL)) {
            fprintf(stderr, "moefuse: warning: that line is not valid UTF-8\n");
            continue;
        }
        json_array_append_new(messages, message("user", line, (size_t)n));
        mf_buffer answer = { .limit = MAX_PROMPT_BYTES };
        status = answer_once(session, f, true, messages, NULL, 0, &answer, err);
        if (status == MF_OK) {
            json_array_append_new(messages, message("assistant", mf_buffer_text(&answer), answer.size));
        } else if (status == MF_ERR_INVALID) {
            /* Too long, or a template's own complaint: the chat goes on without that message. */
            mf_console_error(err);
            json_array_remove(messages, json_array_size(messages) - 1);
            status = MF_OK;
        }
        mf_buffer_close(&answer);
        if (status != MF_OK) {
            break;
        }
    }
    free(line);
    json_decref(messages);
    return status;
}

int mf_verb_run(int argc, char **argv)
{
    run_flags f;
    mf_flag rows[32 + MF_NUM_MODEL_FLAGS];
    size_t num_rows = fill_flags(&f, rows);
    const char *positionals[1];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, positionals, 1, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.model.help) {
        printf("usage: moefuse run [MODEL] [flags]\n\nGenerates text from one prompt (-p, -f or a pipe) or chats on a terminal.\n"
               "The text goes to stdout; the plan, progress and the final line go to stderr.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    if (f.chat && f.raw) {
        mf_fail(&err, MF_ERR_INVALID, "--chat and --raw exclude each other");
        return mf_usage_error(&err);
    }
    if (f.prompt && f.file) {
        mf_fail(&err, MF_ERR_INVALID, "--prompt and --file exclude each other");
        return mf_usage_error(&err);
    }
    if (mf_model_flags_start_log(&f.model, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (mf_model_flags_settle(&f.model, positionals, num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    mf_session session;
    mf_status status = mf_session_open(&f.model, &session, &err);
    if (status != MF_OK) {
        mf_console_error(&err);
        return mf_exit_code(status);
    }
    mf_session_print_plan(&session, stderr);
    signal(SIGINT, on_interrupt);
    bool chat = !f.raw && (f.chat || (session.prompt.chat_template && !session.prompt.is_fallback));
    bool interactive = !f.prompt && !f.file && isatty(STDIN_FILENO);
    status = interactive && chat ? chat_loop(&session, &f, &err) : one_prompt(&session, &f, chat, &err);
    if (status == MF_OK && f.expert_map) {
        print_expert_map(&session);
    }
    mf_session_close(&session);
    if (status != MF_OK) {
        mf_console_error(&err);
        return MF_EXIT_FAILED;
    }
    return interrupts ? MF_EXIT_INTERRUPTED : MF_EXIT_OK;
}
