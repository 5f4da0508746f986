/* bench_serve.c - `moefuse bench serve`: flags, and what is done with the results.  The runs are bench_serve_run.c's.
 */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "cli/about.h"
#include "cli/bench_compare.h"
#include "cli/bench_modes.h"
#include "cli/bench_serve.h"
#include "model/config.h"
#include "text/tokenizer_dir.h"

enum { NUM_OWN_FLAGS = 32 };

typedef struct serve_flags {
    mf_serve_bench bench;
    const char *request_rate, *percentile_metrics, *metric_percentiles, *sweep, *result_dir, *result_filename;
    mf_flag_list goodput;
    int64_t max_concurrency;
    bool takes_ids; /* MODEL has no tokenizer */
    bool save_result, temperature_given, rounds_given, percentile_metrics_given;
} serve_flags;

static void fill_flags(serve_flags *v, mf_flag *rows)
{
    mf_serve_bench *b = &v->bench;
    *v = (serve_flags){ .request_rate = "inf", .percentile_metrics = "ttft,tpot,itl", .metric_percentiles = "99" };
    *b = (mf_serve_bench){ .backend = "openai",
                           .fusion = "on",
                           .dataset_name = "random",
                           .input_len = 1024,
                           .output_len = 128,
                           .num_prompts = 1000,
                           .num_warmups = -1,
                           .rounds = 1,
                           .burstiness = 1,
                           .temperature = 0 };
    const mf_flag table[] = {
        { "server", "--base-url", NULL, MF_FLAG_TEXT, &b->base_url, .argument = "URL",
          .help = "of any OpenAI-compatible server; left out, MODEL is served on a free port and stopped at the end" },
        { "server", "--backend", NULL, MF_FLAG_TEXT, &b->backend, .choices = "openai|openai-chat|vllm", .argument = "B",
          .help = "openai: /v1/completions; openai-chat: /v1/chat/completions (openai)" },
        { "server", "--served-model-name", NULL, MF_FLAG_TEXT, &b->served_model_name, .argument = "NAME",
          .help = "what requests call the model (the server's first)" },
        { "server", "--api-key", NULL, MF_FLAG_TEXT, &b->api_key, .argument = "KEY",
          .help = "sent as bearer token (none)" },
        { "server", "--tokenizer", NULL, MF_FLAG_TEXT, &b->tokenizer, .argument = "DIR",
          .help =
              "a folder with a tokenizer: makes random prompts and counts tokens (MODEL; where it has none, prompts "
              "are ids)" },
        { "load", "--dataset-name", NULL, MF_FLAG_TEXT, &b->dataset_name, .choices = "random|custom|sharegpt",
          .argument = "D",
          .help = "custom: JSON lines with \"prompt\"; sharegpt: a list of conversations; both read --dataset-path "
                  "(random)" },
        { "load", "--dataset-path", NULL, MF_FLAG_TEXT, &b->dataset_path, .argument = "FILE", .help = "of prompts" },
        { "load", "--random-input-len", "--input-len", MF_FLAG_INT, &b->input_len, .min = 1, .max = 1 << 20,
          .argument = "N", .help = "tokens of a prompt (1024)" },
        { "load", "--random-output-len", NULL, MF_FLAG_INT, &b->output_len, .min = 1, .max = 1 << 20, .argument = "N",
          .help = "tokens to ask for (128)" },
        { "load", "--random-range-ratio", NULL, MF_FLAG_REAL, &b->range_ratio, .min = 0, .max = 0.999999,
          .argument = "X", .help = "lengths are drawn from [len*(1-X), len*(1+X)] (0)" },
        { "load", "--random-prefix-len", NULL, MF_FLAG_INT, &b->prefix_len, .min = 0, .max = 1 << 20, .argument = "N",
          .help = "tokens that all prompts begin with, on top (0)" },
        { "load", "--output-len", "--custom-output-len", MF_FLAG_INT, &b->file_output_len, .min = 1, .max = 1 << 20,
          .argument = "N", .help = "tokens to ask for with prompts of a file (the file's, else 256)" },
        { "load", "--num-prompts", NULL, MF_FLAG_INT, &b->num_prompts, .min = 1, .max = 1 << 24, .argument = "N",
          .help = "requests per run (1000)" },
        { "load", "--request-rate", NULL, MF_FLAG_TEXT, &v->request_rate, .argument = "R",
          .help = "requests per second, or inf: all at once (inf)" },
        { "load", "--burstiness", NULL, MF_FLAG_REAL, &b->burstiness, .min = 1e-3, .max = 1e6, .argument = "X",
          .help = "1: Poisson arrivals; below: burstier, above: more even (1)" },
        { "load", "--max-concurrency", NULL, MF_FLAG_INT, &v->max_concurrency, .min = 1, .max = 65536, .argument = "N",
          .help = "requests at once (no limit)" },
        { "load", "--sweep-max-concurrency", NULL, MF_FLAG_TEXT, &v->sweep, .argument = "1,2,4",
          .help = "one run after the other with each of these" },
        { "load", "--ignore-eos", NULL, MF_FLAG_BOOL, &b->ignore_eos, .help = "each answer has its full length" },
        { "load", "--temperature", NULL, MF_FLAG_REAL, &b->temperature, &v->temperature_given, 0, 2, .argument = "X",
          .help = "sent with each request (not sent)" },
        { "load", "--num-warmups", NULL, MF_FLAG_INT, &b->num_warmups, .min = 0, .max = 10000, .argument = "N",
          .help = "requests before a run that do not count (0 with --base-url, else 4)" },
        { "fusion", "--fusion", NULL, MF_FLAG_TEXT, &b->fusion, .choices = "on|off|both|gate|all", .argument = "F",
          .help =
              "both: shared experts fused and separate in turn; gate: fused and separate gate; all: the three (on)" },
        { "fusion", "--rounds", NULL, MF_FLAG_INT, &b->rounds, &v->rounds_given, 1, MF_MAX_ROUNDS, .argument = "N",
          .help = "of everything; variants take turns within a round (1; with variants 3)" },
        { "figures", "--percentile-metrics", NULL, MF_FLAG_TEXT, &v->percentile_metrics, .argument = "LIST",
          .help = "of ttft, tpot, itl, e2el: shown in the table (ttft,tpot,itl)" },
        { "figures", "--metric-percentiles", NULL, MF_FLAG_TEXT, &v->metric_percentiles, .argument = "LIST",
          .help = "beside mean and median (99)" },
        { "figures", "--goodput", NULL, MF_FLAG_LIST, &v->goodput, .argument = "KEY:MS",
          .help = "what a good request stays within: ttft, tpot, e2el; several, or KEY:MS,KEY:MS" },
        { "output", "--save-result", NULL, MF_FLAG_BOOL, &v->save_result,
          .help = "write the results, a JSON object per run and line" },
        { "output", "--save-detailed", NULL, MF_FLAG_BOOL, &b->save_detailed,
          .help = "with each request's times, text and error" },
        { "output", "--result-dir", NULL, MF_FLAG_TEXT, &v->result_dir, .argument = "DIR", .help = "where (.)" },
        { "output", "--result-filename", NULL, MF_FLAG_TEXT, &v->result_filename, .argument = "FILE",
          .help = "under which name; implies --save-result (made of rate, concurrency, model and date)" },
        { "output", "--label", NULL, MF_FLAG_TEXT, &b->label, .argument = "TEXT", .help = "kept in the result" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &b->json,
          .help = "one JSON document on stdout instead of the table" },
    };
    _Static_assert(sizeof table / sizeof *table == NUM_OWN_FLAGS - 1, "keep the count in step");
    memcpy(rows, table, sizeof table);
    mf_model_flags_fill(&b->model, rows + sizeof table / sizeof *table);
    b->model_rows = rows + sizeof table / sizeof *table;
}

/* ---- settling ---- */

static mf_status parse_rate(const char *text, double *out, mf_error *err)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end || !(value > 0)) {
        return mf_fail(err, MF_ERR_INVALID, "--request-rate: expected a number above 0, or inf; got \"%.64s\"", text);
    }
    *out = value;
    return MF_OK;
}

static mf_status parse_sweep(serve_flags *f, mf_error *err)
{
    mf_serve_bench *b = &f->bench;
    if (!f->sweep) {
        b->levels[0] = f->max_concurrency;
        b->num_levels = 1;
        return MF_OK;
    }
    if (f->max_concurrency) {
        return mf_fail(err, MF_ERR_INVALID, "--max-concurrency and --sweep-max-concurrency exclude each other");
    }
    for (const char *p = f->sweep;; p++) {
        char *end = NULL;
        long value = strtol(p, &end, 10);
        if (end == p || (*end && *end != ',') || value < 1 || value > 65536 || b->num_levels == MF_MAX_SWEEP) {
            return mf_fail(err, MF_ERR_INVALID,
                           "--sweep-max-concurrency: expected up to %d numbers in 1..65536, as 1,2,4; got \"%.64s\"",
                           MF_MAX_SWEEP, f->sweep);
        }
        b->levels[b->num_levels++] = value;
        p = end;
        if (!*p) {
            return MF_OK;
        }
    }
}

static mf_status settle_figures(serve_flags *f, const char *const *positionals, int32_t *num_positionals, mf_error *err)
{
    mf_bench_metrics_options *m = &f->bench.metrics;
    MF_TRY(mf_parse_percentile_metrics(f->percentile_metrics, m, err));
    MF_TRY(mf_parse_percentiles(f->metric_percentiles, m, err));
    for (int32_t i = 0; i < f->goodput.count; i++) {
        MF_TRY(mf_parse_goodput(f->goodput.items[i], m, err));
    }
    /* vLLM's command line has several after one --goodput. */
    while (f->goodput.count > 0 && *num_positionals > 0 && strchr(positionals[*num_positionals - 1], ':')) {
        MF_TRY(mf_parse_goodput(positionals[--*num_positionals], m, err));
    }
    if (*num_positionals > 1) {
        return mf_fail(err, MF_ERR_INVALID, "unexpected argument \"%.128s\"", positionals[1]);
    }
    return MF_OK;
}

static void take_tokenizer_of_model(serve_flags *f, const char *model)
{
    mf_serve_bench *b = &f->bench;
    if (!b->tokenizer) {
        b->tokenizer = model;
        f->takes_ids = strcmp(b->dataset_name, "random") == 0 && (mf_model_config_is_file(model) || !mf_tokenizer_in_dir(model));
    }
}

/* Against a server that others started, MODEL is a name, or a folder with its tokenizer. */
static mf_status settle_base_url(serve_flags *f, const char *const *positionals, int32_t num_positionals, mf_error *err)
{
    mf_serve_bench *b = &f->bench;
    if (strcmp(b->fusion, "on") != 0) {
        return mf_fail(err, MF_ERR_INVALID, "--fusion %s: expected no --base-url: the server must be started both ways",
                       b->fusion);
    }
    const char *model = b->model.model ? b->model.model : num_positionals ? positionals[0] : NULL;
    const char *name = b->served_model_name;
    if (model && (mf_path_is_dir(model) || mf_model_config_is_file(model))) {
        take_tokenizer_of_model(f, model);
    } else if (model && !name) {
        name = model;
    }
    if (name && strlen(name) >= sizeof b->model_id) {
        return mf_fail(err, MF_ERR_INVALID, "--served-model-name: expected at most 256 bytes");
    }
    snprintf(b->model_id, sizeof b->model_id, "%s", name ? name : "");
    b->num_warmups = b->num_warmups < 0 ? 0 : b->num_warmups;
    return MF_OK;
}

static mf_status settle_own(serve_flags *f, const char *const *positionals, int32_t num_positionals, mf_error *err)
{
    mf_serve_bench *b = &f->bench;
    MF_TRY(mf_model_flags_settle(&b->model, positionals, num_positionals, err));
    if (!mf_model_config_is_file(b->model.model)) {
        MF_TRY(mf_model_dir_check(b->model.model, err));
    }
    take_tokenizer_of_model(f, b->model.model);
    if (b->served_model_name && strlen(b->served_model_name) >= sizeof b->model_id) {
        return mf_fail(err, MF_ERR_INVALID, "--served-model-name: expected at most 256 bytes");
    }
    snprintf(b->model_id, sizeof b->model_id, "%s", b->served_model_name ? b->served_model_name : "");
    b->num_warmups = b->num_warmups < 0 ? 4 : b->num_warmups;
    bool takes_turns = strcmp(b->fusion, "on") != 0 && strcmp(b->fusion, "off") != 0;
    if (takes_turns && f->rounds_given && b->rounds < 3) {
        return mf_fail(err, MF_ERR_INVALID, "--rounds: expected at least 3 with --fusion %s; got %lld", b->fusion,
                       (long long)b->rounds);
    }
    if (takes_turns && !f->rounds_given) {
        b->rounds = 3;
    }
    return MF_OK;
}

/* Prompts are lists of ids then, as the server wants them. */
static mf_status read_vocab_size(mf_serve_bench *b, mf_error *err)
{
    mf_model_config *config = NULL;
    if (strcmp(b->backend, "openai-chat") == 0) {
        return mf_fail(err, MF_ERR_INVALID, "--backend openai-chat: expected a tokenizer; %.400s has none",
                       b->tokenizer);
    }
    MF_TRY(mf_model_config_load(b->tokenizer, &config, err));
    b->vocab_size = config->vocab_size;
    mf_model_config_close(&config);
    return MF_OK;
}

static mf_status open_tokenizer(serve_flags *f, mf_error *err)
{
    mf_serve_bench *b = &f->bench;
    if (!b->tokenizer) {
        return strcmp(b->dataset_name, "random") != 0
                   ? MF_OK
                   : mf_fail(err, MF_ERR_INVALID,
                             "--dataset-name random: expected --tokenizer DIR, or MODEL as a folder; got neither");
    }
    if (f->takes_ids) {
        return read_vocab_size(b, err);
    }
    mf_status status = mf_path_is_file(b->tokenizer) ? mf_tokenizer_open(b->tokenizer, &b->tok, err)
                                                     : mf_tokenizer_open_dir(b->tokenizer, &b->tok, err);
    b->tokenizer_id = b->tokenizer;
    return status;
}

static mf_status settle(serve_flags *f, const char *const *positionals, int32_t num_positionals, mf_error *err)
{
    mf_serve_bench *b = &f->bench;
    b->temperature = f->temperature_given ? b->temperature : NAN;
    b->backend = strcmp(b->backend, "vllm") == 0 ? "openai" : b->backend;
    MF_TRY(parse_rate(f->request_rate, &b->request_rate, err));
    MF_TRY(parse_sweep(f, err));
    MF_TRY(settle_figures(f, positionals, &num_positionals, err));
    if (strcmp(b->dataset_name, "random") != 0 && !b->dataset_path) {
        return mf_fail(err, MF_ERR_INVALID, "--dataset-name %s: expected --dataset-path FILE; got none",
                       b->dataset_name);
    }
    if (strcmp(b->dataset_name, "random") == 0 && b->dataset_path) {
        mf_log(MF_LOG_WARN, "--dataset-path has no effect: --dataset-name random draws the prompts");
    }
    return b->base_url ? settle_base_url(f, positionals, num_positionals, err)
                       : settle_own(f, positionals, num_positionals, err);
}

static json_t *asked_flags(const serve_flags *f)
{
    static const char *const kept[] = { "--dataset-name",      "--dataset-path",       "--random-input-len",
                                        "--random-output-len", "--random-range-ratio", "--random-prefix-len",
                                        "--output-len",        "--num-warmups",        "--rounds",
                                        "--ignore-eos" };
    const mf_flag *own = f->bench.model_rows - (NUM_OWN_FLAGS - 1);
    json_t *flags = json_object();
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        bool of_random = strncmp(kept[i], "--random", 8) == 0;
        bool unset = strcmp(kept[i], "--output-len") == 0 && f->bench.file_output_len == 0;
        for (const mf_flag *row = own; row < f->bench.model_rows; row++) {
            if (strcmp(row->name, kept[i]) == 0 && !unset &&
                (!of_random || strcmp(f->bench.dataset_name, "random") == 0)) {
                json_t *one = mf_about_flags(row, 1);
                json_object_update(flags, one);
                json_decref(one);
            }
        }
    }
    if (!isnan(f->bench.temperature)) {
        json_object_set_new(flags, "temperature", json_real(f->bench.temperature));
    }
    json_object_set_new(flags, "seed", json_integer(f->bench.model.seed));
    if (!f->bench.base_url) { /* the model's own flags are the server's */
        static const char *const of_model[] = { "--load-format",
                                                "--weights-memory",
                                                "--device",
                                                "--threads",
                                                "--dtype",
                                                "--quantization",
                                                "--act-quant",
                                                "--kv-cache-dtype",
                                                "--max-model-len",
                                                "--max-num-seqs",
                                                "--max-num-batched-tokens",
                                                "--num-shared-expert-replicas" };
        for (size_t i = 0; i < sizeof of_model / sizeof *of_model; i++) {
            for (const mf_flag *row = f->bench.model_rows; row < f->bench.model_rows + MF_NUM_MODEL_FLAGS; row++) {
                if (strcmp(row->name, of_model[i]) == 0) {
                    json_t *one = mf_about_flags(row, 1);
                    json_object_update(flags, one);
                    json_decref(one);
                }
            }
        }
    }
    return flags;
}

/* ---- results ---- */

static mf_status result_path(const serve_flags *f, char *path, size_t size, mf_error *err)
{
    const mf_serve_bench *b = &f->bench;
    char name[512];
    if (f->result_filename) {
        snprintf(name, sizeof name, "%s", f->result_filename);
    } else {
        char concurrency[32] = "";
        const char *model = strrchr(b->model_id, '/');
        if (b->num_levels == 1 && b->levels[0]) {
            snprintf(concurrency, sizeof concurrency, "-concurrency%lld", (long long)b->levels[0]);
        }
        snprintf(name, sizeof name, "%s-%gqps%s-%s-%s.json", b->label ? b->label : b->backend, b->request_rate,
                 concurrency, model ? model + 1 : b->model_id, b->date);
    }
    int n = f->result_dir && name[0] != '/' ? snprintf(path, size, "%s/%s", f->result_dir, name)
                                            : snprintf(path, size, "%s", name);
    return n > 0 && (size_t)n < size ? MF_OK : mf_fail(err, MF_ERR_INVALID, "--result-filename: too long");
}

static mf_status save_results(const serve_flags *f, const json_t *results, mf_error *err)
{
    char path[2048];
    MF_TRY(result_path(f, path, sizeof path, err));
    FILE *out = fopen(path, "we");
    if (!out) {
        return mf_fail(err, MF_ERR_IO, "--result-filename %.512s: %s", path, strerror(errno));
    }
    bool written = true;
    for (size_t i = 0; i < json_array_size(results) && written; i++) {
        written = json_dumpf(json_array_get(results, i), out, JSON_COMPACT | JSON_REAL_PRECISION(12)) == 0 &&
                  fputc('\n', out) != EOF;
    }
    if (fclose(out) != 0 || !written) {
        return mf_fail(err, MF_ERR_IO, "--result-filename %.512s: %s", path, strerror(errno));
    }
    fprintf(stderr, "results in %s\n", path);
    return MF_OK;
}

static mf_status show_results(const serve_flags *f, const json_t *results, mf_error *err)
{
    const mf_serve_bench *b = &f->bench;
    mf_status status = MF_OK;
    if (f->save_result || f->result_filename || (b->save_detailed && !b->json)) {
        status = save_results(f, results, err);
    }
    if (b->json) {
        bool one = json_array_size(results) == 1;
        mf_console_json(json_incref(one ? json_array_get(results, 0) : (json_t *)(uintptr_t)results),
                        JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    } else if (json_array_size(results) > 1) {
        mf_serve_summary_print(stdout, results);
    }
    return status;
}

static bool any_failed(const json_t *results, bool *all)
{
    int64_t failed = 0, completed = 0;
    for (size_t i = 0; i < json_array_size(results); i++) {
        failed += json_integer_value(json_object_get(json_array_get(results, i), "failed"));
        completed += json_integer_value(json_object_get(json_array_get(results, i), "completed"));
    }
    *all = completed == 0;
    return failed > 0;
}

static int run(serve_flags *f, mf_error *err)
{
    mf_serve_bench *b = &f->bench;
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    strftime(b->date, sizeof b->date, "%Y%m%d-%H%M%S", &local);
    mf_bench_catch_interrupt();
    signal(SIGPIPE, SIG_IGN);
    json_t *results = NULL;
    b->flags = asked_flags(f);
    mf_status status = open_tokenizer(f, err);
    int exit_code = status == MF_ERR_INVALID ? MF_EXIT_USAGE : MF_EXIT_MODEL;
    if (status == MF_OK) {
        status = mf_serve_bench_run(b, &results, err);
        exit_code = status == MF_ERR_CANCELLED                                 ? MF_EXIT_INTERRUPTED
                    : status == MF_ERR_INVALID || status == MF_ERR_UNSUPPORTED ? MF_EXIT_USAGE
                                                                               : MF_EXIT_FAILED;
    }
    bool all_failed = false;
    if (json_array_size(results) > 0 &&
        (status == MF_OK || status == MF_ERR_CANCELLED)) { /* what was measured is not lost */
        mf_error why = { 0 };
        if (show_results(f, results, &why) != MF_OK && status == MF_OK) {
            status = why.status;
            *err = why;
        }
        if (status == MF_OK && any_failed(results, &all_failed) && all_failed) {
            status = mf_fail(err, MF_ERR_IO, "every request failed");
        }
    }
    mf_tokenizer_close(&b->tok);
    json_decref(b->flags);
    json_decref(results);
    if (status != MF_OK) {
        mf_console_error(err);
        return exit_code == MF_EXIT_OK || status == MF_ERR_IO ? MF_EXIT_FAILED : exit_code;
    }
    return MF_EXIT_OK;
}

int mf_bench_mode_serve(int argc, char **argv)
{
    serve_flags f;
    mf_flag rows[NUM_OWN_FLAGS - 1 + MF_NUM_MODEL_FLAGS];
    const size_t num_rows = sizeof rows / sizeof *rows;
    fill_flags(&f, rows);
    const char *positionals[4];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, positionals, 4, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.bench.model.help) {
        printf(
            "usage: moefuse bench serve [MODEL] [flags]\n\n"
            "Measures a server as its clients meet it: time to the first token, between tokens, and throughput, under "
            "a rate of\n"
            "requests or a fixed number at once.  Flags, table and JSON keys are those of `vllm bench serve`.  Without "
            "--base-url\n"
            "it serves MODEL itself.  Several runs (--sweep-max-concurrency, --fusion, --rounds) end in a summary.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    if (mf_model_flags_start_log(&f.bench.model, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (settle(&f, positionals, num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    return run(&f, &err);
}
