/* verb_eval.c - `moefuse eval`: accuracy on a file of questions, on an engine in this process or against a server. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "cli/about.h"
#include "cli/bench_modes.h"
#include "cli/cli.h"
#include "cli/eval_run.h"
#include "cli/progress_line.h"
#include "cli/session.h"
#include "cli/stats.h"
#include "text/stream.h"
#include "text/tokenizer_dir.h"

enum { NUM_OWN_FLAGS = 20, MAX_RUNS = 2 };

typedef struct eval_flags {
    mf_model_flags model;
    mf_eval_options options;
    const char *task, *base_url, *served_model_name, *api_key, *tokenizer, *fusion, *output;
    mf_flag_list stop;
    int64_t max_tokens, max_concurrency;
    double min_accuracy;
    bool max_concurrency_given, max_num_seqs_given, json;
} eval_flags;

static void fill_flags(eval_flags *v, mf_flag *rows)
{
    *v = (eval_flags){ .max_tokens = 512, .task = "auto", .fusion = "on", .min_accuracy = -1 };
    mf_eval_options *o = &v->options;
    const mf_flag table[NUM_OWN_FLAGS] = {
        { "questions", "--data", NULL, MF_FLAG_TEXT, &o->data, .argument = "FILE",
          .help = "JSON lines {\"question\", \"answer\": \"... #### 42\"} or {\"question\", \"choices\", \"answer\"}" },
        { "questions", "--task", NULL, MF_FLAG_TEXT, &v->task, .choices = "auto|generate|choice", .argument = "T",
          .help = "auto: what the first line is (auto)" },
        { "questions", "--limit", NULL, MF_FLAG_INT, &o->limit, .min = 0, .max = 1 << 30, .argument = "N",
          .help = "the first N questions; 0: all (0)" },
        { "questions", "--num-shots", NULL, MF_FLAG_INT, &o->num_shots, .min = 0, .max = 1024, .argument = "N",
          .help = "worked examples before each question: the first N of --fewshot (0)" },
        { "questions", "--fewshot", NULL, MF_FLAG_TEXT, &o->fewshot, .argument = "FILE",
          .help = "examples, in the format of --data" },
        { "questions", "--prompt-format", NULL, MF_FLAG_TEXT, &o->prompt_format, .argument = "TEXT",
          .help = "with {question} (\"Question: {question}\\nAnswer:\"; with --chat \"{question}\")" },
        { "questions", "--chat", NULL, MF_FLAG_BOOL, &o->chat,
          .help = "each question is a user's message; examples are turns before it" },
        { "questions", "--add-special-tokens", NULL, MF_FLAG_BOOL, &o->add_special_tokens,
          .help = "begin a prompt as the tokenizer does; without --chat only (off, as lm-eval's API models)" },
        { "answers", "--max-tokens", NULL, MF_FLAG_INT, &v->max_tokens, .min = 1, .max = 1 << 20, .argument = "N",
          .help = "tokens of an answer (512)" },
        { "answers", "--stop", NULL, MF_FLAG_LIST, &v->stop, .argument = "TEXT",
          .help = "ends an answer; repeated for several (\"Question:\", \"</s>\", \"<|im_end|>\"; with --chat none)" },
        { "server", "--base-url", NULL, MF_FLAG_TEXT, &v->base_url, .argument = "URL",
          .help = "of any OpenAI-compatible server; left out, MODEL runs in this process" },
        { "server", "--served-model-name", NULL, MF_FLAG_TEXT, &v->served_model_name, .argument = "NAME",
          .help = "what requests call the model (the server's first)" },
        { "server", "--api-key", NULL, MF_FLAG_TEXT, &v->api_key, .argument = "KEY",
          .help = "sent as bearer token (none)" },
        { "server", "--tokenizer", NULL, MF_FLAG_TEXT, &v->tokenizer, .argument = "DIR",
          .help = "a folder with a tokenizer: prompts are then sent as ids; choices need it (MODEL)" },
        { "server", "--max-concurrency", NULL, MF_FLAG_INT, &v->max_concurrency, &v->max_concurrency_given, 1, 4096,
          .argument = "N", .help = "questions at once (64; with --base-url 16)" },
        { "fusion", "--fusion", NULL, MF_FLAG_TEXT, &v->fusion, .choices = "on|off|both", .argument = "F",
          .help = "both: once fused and once with experts and gate separate; one differing transcript is exit 3 (on)" },
        { "output", "--output", "-o", MF_FLAG_TEXT, &v->output, .argument = "FILE",
          .help = "every prompt, output and verdict as JSON" },
        { "output", "--min-accuracy", NULL, MF_FLAG_REAL, &v->min_accuracy, .min = 0, .max = 1, .argument = "X",
          .help = "exit 3 when the first measure (strict, acc) is below" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &v->json,
          .help = "one JSON document on stdout instead of the table" },
        { NULL },
    };
    memcpy(rows, table, (NUM_OWN_FLAGS - 1) * sizeof *rows);
    mf_model_flags_fill(&v->model, rows + NUM_OWN_FLAGS - 1);
}

/* ---- what came of a run ---- */

typedef struct result {
    const char *variant; /* "" */
    mf_eval_set set;
    double seconds;
    int64_t num_tokens;
} result;

static void name_of_task(const mf_eval_options *o, char *out, size_t size)
{
    const char *slash = strrchr(o->data, '/');
    snprintf(out, size, "%s", slash ? slash + 1 : o->data);
    char *point = strrchr(out, '.');
    if (point && point != out) {
        *point = '\0';
    }
}

static double stderr_of(double share, double n)
{
    return n > 1 ? sqrt(share * (1 - share) / (n - 1)) : 0; /* lm-eval: the sample's deviation over sqrt(n) */
}

static void print_table(const eval_flags *f, const result *results, int32_t count)
{
    char task[24];
    name_of_task(&f->options, task, sizeof task);
    printf("%-24s %-10s %6s %8s %8s   %-16s %9s %9s\n", "task", "measure", "n", "acc", "stderr", "95 % interval",
           "tok/s", "wall");
    for (int32_t r = 0; r < count; r++) {
        const mf_eval_set *set = &results[r].set;
        for (int32_t m = 0; m < mf_eval_num_measures(set); m++) {
            double n = set->num_items, share = mf_eval_num_correct(set, m) / n;
            mf_interval interval = mf_wilson(share, n);
            char name[64];
            snprintf(name, sizeof name, "%s%s%s", task, *results[r].variant ? ", " : "", results[r].variant);
            printf("%-24s %-10s %6d %8.4f %8.4f   %.4f .. %.4f %9.1f %7.1f s\n", name, mf_eval_measure_name(set, m),
                   set->num_items, share, stderr_of(share, n), interval.low, interval.high,
                   results[r].seconds > 0 ? (double)results[r].num_tokens / results[r].seconds : 0, results[r].seconds);
        }
    }
}

static json_t *unit_json(const mf_eval_set *set, const mf_eval_item *item, bool with_ids)
{
    const mf_eval_unit *u = &set->units[item->first_unit];
    json_t *out = json_object();
    json_object_set_new(out, "question", json_string(item->question));
    json_object_set_new(out, "prompt", u->text ? json_string(u->text) : json_incref(u->messages));
    if (set->task == MF_EVAL_CHOICE) {
        json_t *lls = json_array();
        for (int32_t c = 0; c < item->num_choices; c++) {
            json_array_append_new(lls, json_real(set->units[item->first_unit + c].loglikelihood));
        }
        json_object_set(out, "choices", json_object_get(item->entry, "choices"));
        json_object_set_new(out, "gold", json_integer(item->gold));
        json_object_set_new(out, "loglikelihoods", lls);
    } else {
        json_t *text = json_stringn(mf_buffer_text(&u->output), u->output.size);
        json_object_set_new(out, "gold", json_string(item->answer));
        json_object_set_new(out, "output", text ? text : json_string(""));
        json_t *ids = with_ids && u->num_out ? json_array() : NULL;
        for (int32_t i = 0; ids && i < u->num_out; i++) {
            json_array_append_new(ids, json_integer(u->out_ids[i]));
        }
        if (ids) {
            json_object_set_new(out, "token_ids", ids);
        }
    }
    for (int32_t m = 0; m < mf_eval_num_measures(set); m++) {
        json_object_set_new(out, mf_eval_measure_name(set, m), json_boolean(item->correct[m]));
    }
    return out;
}

static json_t *result_json(const eval_flags *f, const result *r, bool with_items)
{
    json_t *measures = json_object(), *out = json_object();
    for (int32_t m = 0; m < mf_eval_num_measures(&r->set); m++) {
        double n = r->set.num_items, share = mf_eval_num_correct(&r->set, m) / n;
        mf_interval interval = mf_wilson(share, n);
        json_object_set_new(measures, mf_eval_measure_name(&r->set, m),
                            json_pack("{s:f, s:f, s:[f,f]}", "value", share, "stderr", stderr_of(share, n), "wilson",
                                      interval.low, interval.high));
    }
    if (*r->variant) {
        json_object_set_new(out, "variant", json_string(r->variant));
    }
    json_object_set_new(out, "n", json_integer(r->set.num_items));
    json_object_set_new(out, "measures", measures);
    json_object_set_new(out, "tokens", json_integer(r->num_tokens));
    json_object_set_new(out, "seconds", json_real(r->seconds));
    if (with_items) {
        json_t *items = json_array();
        for (int32_t i = 0; i < r->set.num_items; i++) {
            json_array_append_new(items, unit_json(&r->set, &r->set.items[i], f->output != NULL));
        }
        json_object_set_new(out, "items", items);
    }
    return out;
}

static json_t *document_json(const eval_flags *f, const result *results, int32_t count, int32_t num_differing,
                             bool with_items)
{
    char task[64];
    name_of_task(&f->options, task, sizeof task);
    json_t *list = json_array();
    for (int32_t r = 0; r < count; r++) {
        json_array_append_new(list, result_json(f, &results[r], with_items));
    }
    json_t *out = json_pack("{s:s, s:s, s:s, s:o, s:o}", "task", task, "type",
                            results[0].set.task == MF_EVAL_CHOICE ? "choice" : "generate", "model",
                            f->base_url && f->served_model_name ? f->served_model_name
                            : f->model.model                    ? f->model.model
                                                                : "",
                            "results", list, "moefuse", mf_about_build());
    if (count == 2) {
        json_object_set_new(out, "differing_transcripts", json_integer(num_differing));
    }
    return out;
}

static mf_status save_output(const eval_flags *f, const result *results, int32_t count, int32_t num_differing,
                             mf_error *err)
{
    json_t *document = document_json(f, results, count, num_differing, true);
    mf_status status = document ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "eval: out of memory for --output");
    if (document && json_dump_file(document, f->output, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) != 0) {
        status = mf_fail(err, MF_ERR_IO, "--output %.512s: %s", f->output, strerror(errno));
    }
    json_decref(document);
    return status;
}

/* ---- runs ---- */

typedef struct tick {
    mf_progress_line line;
} tick;

static bool on_progress(void *context, int64_t done, int64_t tokens, double seconds)
{
    tick *t = context;
    mf_progress_line_draw(&t->line, done, tokens, seconds, "");
    return !mf_bench_interrupted();
}

static mf_status prepare_run(const eval_flags *f, mf_eval_run *run, tick *t, result *r, mf_error *err)
{
    static const char *const stops[] = { "Question:", "</s>", "<|im_end|>" }; /* lm-eval's gsm8k */
    MF_TRY(mf_eval_set_load(&f->options, &r->set, err));
    if (f->options.chat && r->set.task == MF_EVAL_CHOICE) {
        mf_log(MF_LOG_WARN, "--chat has no effect: choices are scored as continuations of the plain prompt");
    }
    bool usual = f->stop.count == 0 && !f->options.chat;
    *run = (mf_eval_run){ .max_tokens = f->max_tokens,
                          .max_concurrency = f->max_concurrency,
                          .stops = usual ? stops : f->stop.items,
                          .num_stops = usual ? 3 : f->stop.count,
                          .progress = on_progress,
                          .context = t };
    mf_progress_line_start(&t->line, *r->variant ? r->variant : "questions", r->set.num_units, f->model.no_progress);
    return MF_OK;
}

static mf_status finish_run(const mf_eval_run *run, tick *t, mf_status status, result *r, mf_error *err)
{
    mf_progress_line_end(&t->line);
    r->seconds = run->seconds;
    r->num_tokens = run->num_tokens;
    return status == MF_OK ? mf_eval_set_judge(&r->set, err) : status;
}

static mf_status run_here(const eval_flags *f, bool separate, bool shows_plan, result *r, int *exit_code, mf_error *err)
{
    mf_eval_run run;
    tick t;
    *exit_code = MF_EXIT_FAILED;
    MF_TRY(prepare_run(f, &run, &t, r, err));
    mf_model_flags model = f->model;
    if (!f->max_num_seqs_given) {
        model.max_num_seqs = f->max_concurrency;
    }
    if (separate) {
        model.disable_shared_experts_fusion = model.disable_fused_gate = true;
    }
    mf_session session;
    mf_status status = mf_session_open(&model, &session, err);
    if (status != MF_OK) {
        *exit_code = mf_exit_code(status);
        return status;
    }
    if (shows_plan) {
        mf_session_print_plan(&session, stderr);
    }
    mf_bench_catch_interrupt();
    if (f->options.chat && r->set.task == MF_EVAL_GENERATE && !session.prompt.chat_template) {
        *exit_code = MF_EXIT_USAGE;
        status =
            mf_fail(err, MF_ERR_INVALID, "--chat: expected a model with a chat template; %.400s has none", model.model);
    } else {
        status = mf_eval_set_prompts(&f->options, &session.prompt, &r->set, err);
    }
    if (status == MF_OK) {
        status = mf_eval_run_engine(&run, session.engine, session.prompt.tokenizer, &r->set, err);
    }
    mf_session_close(&session);
    return finish_run(&run, &t, status, r, err);
}

/* The server's first model, unless a name was given. */
static mf_status find_model(const eval_flags *f, const mf_http_target *target, char *name, size_t size, mf_error *err)
{
    snprintf(name, size, "%s", f->served_model_name ? f->served_model_name : "");
    if (name[0]) {
        return MF_OK;
    }
    mf_buffer body = { .limit = 16 << 20 };
    int http_status = 0;
    json_t *document = NULL;
    mf_http_request request = { .method = "GET", .path = "/v1/models", .api_key = f->api_key, .silence_s = 30 };
    mf_status status = mf_http_fetch(target, &request, &http_status, &body, err);
    if (status == MF_OK && http_status == 200) {
        mf_json_parse(mf_buffer_text(&body), body.size, "/v1/models", NULL, &document, NULL);
    }
    const char *id = json_string_value(json_object_get(json_array_get(json_object_get(document, "data"), 0), "id"));
    if (status == MF_OK && !id) {
        status = mf_fail(err, MF_ERR_IO, "GET /v1/models names no model (HTTP %d); --served-model-name gives one",
                         http_status);
    }
    snprintf(name, size, "%s", id ? id : "");
    json_decref(document);
    mf_buffer_close(&body);
    return status;
}

static mf_status run_server(const eval_flags *f, result *r, int *exit_code, mf_error *err)
{
    mf_eval_run run;
    tick t;
    mf_http_target target;
    char name[257];
    *exit_code = MF_EXIT_USAGE;
    MF_TRY(mf_http_target_open(f->base_url, &target, err));
    *exit_code = MF_EXIT_FAILED;
    MF_TRY(prepare_run(f, &run, &t, r, err));
    MF_TRY(find_model(f, &target, name, sizeof name, err));
    const char *dir = f->tokenizer                                       ? f->tokenizer
                      : f->model.model && mf_path_is_dir(f->model.model) ? f->model.model
                                                                         : NULL;
    bool by_ids = dir && (!f->options.chat || r->set.task == MF_EVAL_CHOICE); /* a chat's template is the server's */
    if (r->set.task == MF_EVAL_CHOICE && !dir) {
        *exit_code = MF_EXIT_USAGE;
        return mf_fail(err, MF_ERR_INVALID,
                       "--task choice: expected --tokenizer DIR, or MODEL as a folder; got neither");
    }
    mf_prompt prompt = { 0 };
    if (by_ids) {
        *exit_code = MF_EXIT_MODEL;
        MF_TRY(mf_tokenizer_open_dir(dir, &prompt.tokenizer, err));
        *exit_code = MF_EXIT_FAILED;
    }
    mf_bench_catch_interrupt();
    signal(SIGPIPE, SIG_IGN);
    mf_status status = mf_eval_set_prompts(&f->options, by_ids ? &prompt : NULL, &r->set, err);
    if (status == MF_OK) {
        status = mf_eval_run_server(&run, &target, name, f->api_key, &r->set, err);
    }
    mf_tokenizer_close(&prompt.tokenizer);
    return finish_run(&run, &t, status, r, err);
}

/* ---- verdict ---- */

static const char *token_text(const mf_tokenizer *tok, int32_t id)
{
    const char *text = tok ? mf_tokenizer_token_text(tok, id) : NULL;
    return text ? text : "?";
}

static void report_difference(const eval_flags *f, const result *a, const result *b, int32_t unit, int32_t position,
                              int32_t num_differing)
{
    const mf_eval_unit *x = &a->set.units[unit], *y = &b->set.units[unit];
    char made[2][160];
    mf_tokenizer *tok = NULL;
    mf_tokenizer_open_dir(f->model.model, &tok, NULL);
    for (int i = 0; i < 2; i++) {
        const mf_eval_unit *u = i ? y : x;
        if (position < u->num_out) {
            snprintf(made[i], sizeof made[i], "%d \"%.64s\" (%.9g)", u->out_ids[position],
                     token_text(tok, u->out_ids[position]), (double)u->logprobs[position]);
        } else {
            snprintf(made[i], sizeof made[i], "the end");
        }
    }
    mf_tokenizer_close(&tok);
    fflush(stdout);
    fprintf(stderr,
            "moefuse: error: fused and separate answers differ in %d of %d transcripts: item %d, choice %d, position "
            "%d: fused %s, "
            "separate %s\n",
            num_differing, a->set.num_units, x->item + 1, x->choice + 1, position, made[0], made[1]);
}

static int conclude(const eval_flags *f, result *results, int32_t count)
{
    int32_t unit = -1, position = 0, num_differing = 0;
    int exit_code = MF_EXIT_OK;
    mf_error err = { 0 };
    if (count == 2) {
        unit = mf_eval_first_difference(&results[0].set, &results[1].set, &position, &num_differing);
    }
    if (f->json) {
        mf_console_json(document_json(f, results, count, num_differing, false),
                        JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    } else {
        print_table(f, results, count);
        if (count == 2) {
            printf("transcripts that differ in a token or in a log-probability's bits: %d of %d\n", num_differing,
                   results[0].set.num_units);
        }
    }
    if (f->output && save_output(f, results, count, num_differing, &err) != MF_OK) {
        mf_console_error(&err);
        exit_code = MF_EXIT_FAILED;
    }
    if (unit >= 0) {
        report_difference(f, &results[0], &results[1], unit, position, num_differing);
        exit_code = MF_EXIT_WORSE;
    }
    double accuracy = (double)mf_eval_num_correct(&results[0].set, 0) / results[0].set.num_items;
    if (f->min_accuracy >= 0 && accuracy < f->min_accuracy) {
        fflush(stdout);
        fprintf(stderr, "moefuse: error: accuracy (--min-accuracy): expected at least %g; got %.4f\n", f->min_accuracy,
                accuracy);
        exit_code = MF_EXIT_WORSE;
    }
    return exit_code;
}

static mf_status settle(eval_flags *f, const char *const *positionals, int32_t num_positionals, mf_error *err)
{
    MF_TRY(mf_model_flags_start_log(&f->model, err));
    f->options.task_given = strcmp(f->task, "auto") != 0;
    f->options.task = strcmp(f->task, "choice") == 0 ? MF_EVAL_CHOICE : MF_EVAL_GENERATE;
    if (!f->options.data) {
        return mf_fail(err, MF_ERR_INVALID, "--data: expected a file of questions; got none");
    }
    if (f->options.prompt_format && !strstr(f->options.prompt_format, "{question}")) {
        return mf_fail(err, MF_ERR_INVALID, "--prompt-format: expected {question} in it; got \"%.128s\"",
                       f->options.prompt_format);
    }
    if (f->options.chat && f->options.add_special_tokens) {
        mf_log(MF_LOG_WARN, "--add-special-tokens has no effect: the chat template begins the prompt");
    }
    if (!f->max_concurrency_given) {
        f->max_concurrency = f->base_url ? 16 : 64;
    }
    if (!f->base_url) {
        MF_TRY(mf_model_flags_settle(&f->model, positionals, num_positionals, err));
        return mf_model_dir_check(f->model.model, err);
    }
    if (strcmp(f->fusion, "on") != 0) {
        return mf_fail(err, MF_ERR_INVALID, "--fusion %s: expected no --base-url: what the server does is settled",
                       f->fusion);
    }
    f->model.model = f->model.model ? f->model.model : num_positionals ? positionals[0] : NULL;
    if (f->model.model && !mf_path_is_dir(f->model.model) && !f->served_model_name) {
        f->served_model_name = f->model.model;
    }
    return MF_OK;
}

int mf_verb_eval(int argc, char **argv)
{
    eval_flags f;
    mf_flag rows[NUM_OWN_FLAGS - 1 + MF_NUM_MODEL_FLAGS];
    const size_t num_rows = sizeof rows / sizeof *rows;
    fill_flags(&f, rows);
    for (size_t i = 0; i < num_rows; i++) {
        if (strcmp(rows[i].name, "--max-num-seqs") == 0) {
            rows[i].given = &f.max_num_seqs_given;
        }
    }
    const char *positionals[1];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, positionals, 1, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.model.help) {
        printf("usage: moefuse eval [MODEL] --data FILE.jsonl [flags]\n\n"
               "Greedy accuracy.  Answers that are generated are matched as lm-eval's gsm8k task does (strict: the "
               "first \"#### N\";\n"
               "flexible: the last number); choices are ranked by log-likelihood (acc), per character (acc_norm) and "
               "per byte.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    if (settle(&f, positionals, num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    const bool both = strcmp(f.fusion, "both") == 0;
    result results[MAX_RUNS] = { { .variant = both ? "fused" : "" }, { .variant = "separate" } };
    int exit_code = MF_EXIT_FAILED;
    mf_status status = MF_OK;
    int32_t count = both ? 2 : 1;
    for (int32_t i = 0; i < count && status == MF_OK; i++) {
        bool separate = i == 1 || strcmp(f.fusion, "off") == 0;
        status = f.base_url ? run_server(&f, &results[i], &exit_code, &err)
                            : run_here(&f, separate, i == 0, &results[i], &exit_code, &err);
    }
    if (status == MF_OK) {
        exit_code = conclude(&f, results, count);
    } else {
        mf_console_error(&err);
        exit_code = status == MF_ERR_CANCELLED ? MF_EXIT_INTERRUPTED : exit_code;
    }
    for (int32_t i = 0; i < MAX_RUNS; i++) {
        mf_eval_set_close(&results[i].set);
    }
    return exit_code;
}
