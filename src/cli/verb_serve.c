/* verb_serve.c - `moefuse serve`: flags, keys, and how a model is opened for the server; the server itself is
 * src/server. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "cli/cli.h"
#include "cli/log_output.h"
#include "cli/sampling_defaults.h"
#include "cli/session.h"
#include "kernels/bench/bench.h"
#include "server/app.h"

enum { MAX_KEYS = 256, MAX_KEY_FILE_BYTES = 64 << 10, MAX_NAMES = MF_FLAG_LIST_MAX, MAX_ITEMS = 64 };

typedef struct serve_flags {
    mf_model_flags model;
    const char *host, *uds, *tokenizer, *api_key_file, *takeover;
    int64_t port, max_num_queued_reqs, max_num_queued_tokens, max_sequences, max_logprobs, stream_interval;
    int64_t max_connections, max_connections_per_ip;
    double request_timeout, shutdown_timeout, keep_alive;
    mf_flag_list names, keys, public_paths, origins;
    bool log_requests, metrics_per_expert, dev_endpoints, trust_template, no_sandbox, queued_tokens_given;
} serve_flags;

static size_t fill_flags(serve_flags *v, mf_flag *rows)
{
    const mf_flag table[] = {
        { "server", "--host", NULL, MF_FLAG_TEXT, &v->host, .argument = "ADDRESS", .help = "to listen on (127.0.0.1)" },
        { "server", "--port", NULL, MF_FLAG_INT, &v->port, .min = 0, .max = 65535, .argument = "N",
          .help = "0: a free one, printed (8000)" },
        { "server", "--uds", NULL, MF_FLAG_TEXT, &v->uds, .argument = "PATH",
          .help = "a UNIX socket instead of host and port" },
        { "server", "--served-model-name", NULL, MF_FLAG_LIST, &v->names, .argument = "NAME",
          .help = "what requests call the model; repeated for several, the first is reported (last part of MODEL)" },
        { "server", "--tokenizer", NULL, MF_FLAG_TEXT, &v->tokenizer, .argument = "DIR",
          .help = "folder of tokenizer and chat template (MODEL; without one prompts are ids only)" },
        { "server", "--takeover", NULL, MF_FLAG_TEXT, &v->takeover, .argument = "PATH",
          .help = "take the listening socket from a server that runs with the same PATH, and offer it there" },
        { "access", "--api-key", NULL, MF_FLAG_LIST, &v->keys, .argument = "KEY",
          .help = "requests must bring one; repeated for several; better in a file or MOEFUSE_API_KEY" },
        { "access", "--api-key-file", NULL, MF_FLAG_TEXT, &v->api_key_file, .argument = "FILE",
          .help = "one key per line" },
        { "access", "--public-paths", NULL, MF_FLAG_LIST, &v->public_paths, .argument = "LIST",
          .help = "of /health /ready /live /metrics /: these need no key (/health)" },
        { "access", "--allowed-origins", NULL, MF_FLAG_LIST, &v->origins, .argument = "LIST",
          .help = "pages of these origins may call (none)" },
        { "access", "--trust-request-chat-template", NULL, MF_FLAG_BOOL, &v->trust_template,
          .help = "requests may bring a chat template" },
        { "access", "--no-sandbox", NULL, MF_FLAG_BOOL, &v->no_sandbox,
          .help = "do not narrow what the process may do after loading" },
        { "admission", "--max-num-queued-reqs", NULL, MF_FLAG_INT, &v->max_num_queued_reqs, .min = 1, .max = 1 << 18,
          .argument = "N", .help = "sequences that wait; beyond: 429 (1024)" },
        { "admission", "--max-num-queued-tokens", NULL, MF_FLAG_INT, &v->max_num_queued_tokens, &v->queued_tokens_given,
          1, 1e12, .argument = "N", .help = "prompt tokens that wait (64 x --max-num-batched-tokens)" },
        { "admission", "--max-sequences-per-request", NULL, MF_FLAG_INT, &v->max_sequences, .min = 1, .max = 1024,
          .argument = "N", .help = "prompts x n of one request (128)" },
        { "admission", "--request-timeout", NULL, MF_FLAG_REAL, &v->request_timeout, .min = 0, .max = 86400,
          .argument = "S", .help = "deadline of every request; a request may ask for less; 0 = none (0)" },
        { "admission", "--max-connections", NULL, MF_FLAG_INT, &v->max_connections, .min = 1, .max = 1 << 20,
          .argument = "N", .help = "open at once; beyond: 503 and close (16384)" },
        { "admission", "--max-connections-per-ip", NULL, MF_FLAG_INT, &v->max_connections_per_ip, .min = 0,
          .max = 1 << 20, .argument = "N", .help = "of one client; 0 = off (0)" },
        { "answers", "--max-logprobs", NULL, MF_FLAG_INT, &v->max_logprobs, .min = 0, .max = MF_MAX_LOGPROBS,
          .argument = "N", .help = "that a request may ask for (20)" },
        { "answers", "--stream-interval", NULL, MF_FLAG_INT, &v->stream_interval, .min = 1, .max = 1024,
          .argument = "N", .help = "tokens per event of a stream (1)" },
        { "answers", "--sse-keep-alive-interval", NULL, MF_FLAG_REAL, &v->keep_alive, .min = 0, .max = 3600,
          .argument = "S", .help = "between comments on a silent stream; 0 = none (0)" },
        { "output", "--shutdown-timeout", NULL, MF_FLAG_REAL, &v->shutdown_timeout, .min = 0, .max = 86400,
          .argument = "S", .help = "for running requests after SIGTERM (30)" },
        { "output", "--enable-log-requests", NULL, MF_FLAG_BOOL, &v->log_requests,
          .help = "a line per answer; never prompts" },
        { "output", "--metrics-per-expert", NULL, MF_FLAG_BOOL, &v->metrics_per_expert,
          .help = "a counter per layer and expert" },
        { "output", "--enable-dev-endpoints", NULL, MF_FLAG_BOOL, &v->dev_endpoints,
          .help = "POST /reset_prefix_cache" },
    };
    *v = (serve_flags){ .port = 8000,
                        .max_num_queued_reqs = 1024,
                        .max_sequences = 128,
                        .max_logprobs = 20,
                        .stream_interval = 1,
                        .shutdown_timeout = 30,
                        .max_connections = 16384 };
    mf_model_flags_fill(&v->model, rows + sizeof table / sizeof *table);
    memcpy(rows, table, sizeof table);
    return sizeof table / sizeof *table + MF_NUM_MODEL_FLAGS;
}

enum { NUM_SERVE_FLAGS = 25 };

/* ---- lists, names, keys -------------------------------------------------------------------------------------------
 */

/* Items of a list flag, each of which may hold several, separated by commas or blanks. */
typedef struct item_list {
    char *text; /* owned */
    const char *items[MAX_ITEMS];
    size_t count;
} item_list;

static mf_status split_items(const mf_flag_list *flag, const char *name, item_list *out, mf_error *err)
{
    *out = (item_list){ 0 };
    size_t size = 1;
    for (int32_t i = 0; i < flag->count; i++) {
        size += strlen(flag->items[i]) + 1;
    }
    out->text = mf_alloc_zero(size);
    if (!out->text) {
        return mf_fail(err, MF_ERR_NOMEM, "out of memory");
    }
    char *p = out->text;
    for (int32_t i = 0; i < flag->count; i++) {
        const char *from = flag->items[i];
        while (*from) {
            size_t n = strcspn(from, ", ");
            if (n > 0) {
                if (out->count == MAX_ITEMS) {
                    return mf_fail(err, MF_ERR_INVALID, "%s: expected at most %d items", name, MAX_ITEMS);
                }
                memcpy(p, from, n);
                out->items[out->count++] = p;
                p += n + 1;
            }
            from += n + (from[n] != '\0');
        }
    }
    return MF_OK;
}

static mf_status check_public_paths(const item_list *list, mf_error *err)
{
    static const char *const allowed[] = { "/health", "/ready", "/live", "/metrics", "/" };
    for (size_t i = 0; i < list->count; i++) {
        bool known = false;
        for (size_t k = 0; k < sizeof allowed / sizeof *allowed; k++) {
            known = known || strcmp(list->items[i], allowed[k]) == 0;
        }
        if (!known) {
            return mf_fail(err, MF_ERR_INVALID,
                           "--public-paths: expected some of /health /ready /live /metrics /; got \"%.64s\"",
                           list->items[i]);
        }
    }
    return MF_OK;
}

/* "word-problems" of "models/word-problems/"; a file's name without .json. */
static const char *name_of_model(const char *path, char *out, size_t size)
{
    char resolved[4096];
    if (realpath(path, resolved)) {
        path = resolved;
    }
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') {
        begin--;
    }
    if (end - begin > 5 && strncmp(path + end - 5, ".json", 5) == 0) {
        end -= 5;
    }
    snprintf(out, size, "%.*s", (int)(end - begin), path + begin);
    return out;
}

typedef struct key_list {
    char *items[MAX_KEYS]; /* owned */
    size_t count;
} key_list;

/* `from` names where it stands; the key itself is in no message. */
static mf_status add_key(key_list *keys, const char *key, const char *from, mf_error *err)
{
    if (key[0] == '\0') {
        return MF_OK;
    }
    for (const char *c = key; *c; c++) {
        if (*c <= ' ' || *c > '~') {
            return mf_fail(err, MF_ERR_INVALID,
                           "%.400s: expected keys of printable ASCII without blanks; got another byte in key %zu", from,
                           keys->count + 1);
        }
    }
    if (keys->count == MAX_KEYS) {
        return mf_fail(err, MF_ERR_INVALID, "--api-key: expected at most %d keys", MAX_KEYS);
    }
    keys->items[keys->count] = mf_strdup(key);
    if (!keys->items[keys->count]) {
        return mf_fail(err, MF_ERR_NOMEM, "out of memory");
    }
    keys->count++;
    return MF_OK;
}

static void close_keys(key_list *keys)
{
    for (size_t i = 0; i < keys->count; i++) {
        memset(keys->items[i], 0, strlen(keys->items[i]));
        mf_free(keys->items[i]);
    }
}

static mf_status read_keys(const serve_flags *f, key_list *keys, mf_error *err)
{
    for (int32_t i = 0; i < f->keys.count; i++) {
        MF_TRY(add_key(keys, f->keys.items[i], "--api-key", err));
    }
    if (!f->api_key_file) {
        return MF_OK;
    }
    mf_file file;
    MF_TRY(mf_file_open(f->api_key_file, false, MAX_KEY_FILE_BYTES, &file, err));
    char *text = mf_strndup((const char *)file.data, file.size);
    mf_file_close(&file);
    if (!text) {
        return mf_fail(err, MF_ERR_NOMEM, "out of memory");
    }
    size_t before = keys->count;
    char *next = NULL;
    mf_status status = MF_OK;
    for (char *line = strtok_r(text, "\r\n", &next); line && status == MF_OK; line = strtok_r(NULL, "\r\n", &next)) {
        line += strspn(line, " \t");
        size_t size = strlen(line);
        while (size > 0 && (line[size - 1] == ' ' || line[size - 1] == '\t')) {
            line[--size] = '\0';
        }
        status = add_key(keys, line, f->api_key_file, err);
    }
    mf_free(text);
    MF_TRY(status);
    return keys->count > before ? MF_OK
                                : mf_fail(err, MF_ERR_INVALID,
                                          "--api-key-file %.400s: expected a key on a line; got none", f->api_key_file);
}

/* What stands in argv can be read by every user of the machine. */
static void wipe_keys(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        char *value = NULL;
        if (strcmp(argv[i], "--api-key") == 0 && i + 1 < argc) {
            value = argv[++i];
        } else if (strncmp(argv[i], "--api-key=", 10) == 0) {
            value = argv[i] + 10;
        }
        if (value) {
            memset(value, '*', strlen(value));
        }
    }
}

/* ---- opening ------------------------------------------------------------------------------------------------------
 */

typedef struct server_model {
    const serve_flags *flags;
    mf_session session;
    mf_guide_vocab *guide_vocab;
    mf_buffer plan;
    mf_app *app;
} server_model;

static bool tell_app(void *context, double share)
{
    return mf_app_progress(context, share);
}

static const char *highest_level(void)
{
    static mf_bench_level levels[MF_BENCH_MAX_LEVELS];
    int32_t count = mf_bench_levels(levels, MF_BENCH_MAX_LEVELS);
    const char *name = "c";
    for (int32_t i = 0; i < count; i++) {
        name = levels[i].is_used ? levels[i].name : name;
    }
    return name;
}

static mf_status fill_defaults(const server_model *s, mf_serve_model *m, mf_error *err)
{
    mf_sampling_defaults d;
    MF_TRY(mf_sampling_defaults_read(&s->flags->model, s->session.config, &d, err));
    m->default_temperature = d.temperature;
    m->default_top_p = d.top_p;
    m->default_min_p = d.min_p;
    m->default_repetition_penalty = d.repetition_penalty;
    m->default_top_k = d.top_k;
    m->default_max_tokens = d.max_new_tokens;
    return MF_OK;
}

static mf_status open_model(void *context, mf_app *app, mf_app_model *out, mf_error *err)
{
    server_model *s = context;
    const serve_flags *f = s->flags;
    mf_session_options options = {
        .tokenizer_dir = f->tokenizer,
        .text_is_optional = true,
        /* The service counts; the engine's own limits only have to be wide enough. */
        .max_num_queued_reqs = (int32_t)(f->max_num_queued_reqs + f->max_sequences + f->model.max_num_seqs),
        .max_num_queued_tokens = (int64_t)1 << 40,
        .progress = tell_app,
        .progress_context = app,
    };
    MF_TRY(mf_session_open_with(&f->model, &options, &s->session, err));
    *out = (mf_app_model){ 0 };
    MF_TRY(fill_defaults(s, &out->serve, err));
    MF_TRY(mf_session_write_plan(&s->session, &s->plan));
    if (mf_log_output_takes_all()) {
        mf_log_lines(MF_LOG_INFO, mf_buffer_text(&s->plan));
    } else {
        fputs(mf_buffer_text(&s->plan), stderr);
    }
    const mf_tokenizer *tokenizer = s->session.prompt.tokenizer;
    mf_engine *engine = s->session.engine;
    if (tokenizer) {
        MF_TRY(mf_guide_vocab_open(tokenizer, mf_engine_eos_token_ids(engine), mf_engine_num_eos_token_ids(engine),
                                   &s->guide_vocab, err));
    }
    s->session.engine = NULL; /* the service's from here on */
    out->engine = engine;
    out->plan = mf_buffer_text(&s->plan);
    out->isa = highest_level();
    out->device = mf_device_description(mf_model_get_device(s->session.model));
    out->serve.prompt = &s->session.prompt;
    out->serve.guide_vocab = s->guide_vocab;
    out->serve.family = s->session.config->model_type;
    out->serve.vocab_size = tokenizer ? mf_tokenizer_vocab_size(tokenizer) : mf_engine_vocab_size(engine);
    return MF_OK;
}

static void close_model(void *context)
{
    server_model *s = context;
    mf_guide_vocab_close(&s->guide_vocab);
    mf_session_close(&s->session);
    mf_buffer_close(&s->plan);
}

/* ---- the verb -----------------------------------------------------------------------------------------------------
 */

static bool is_loopback(const char *host)
{
    return !host || strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 || strcmp(host, "localhost") == 0;
}

static int exit_code_of(mf_app_end end, const mf_error *err)
{
    switch (end) {
    case MF_APP_DRAINED:
        return MF_EXIT_OK;
    case MF_APP_FORCED:
        return MF_EXIT_FAILED;
    case MF_APP_CANNOT_BIND:
        return MF_EXIT_CANNOT_BIND;
    case MF_APP_NO_MODEL:
        return mf_exit_code(err->status);
    case MF_APP_FAILED:
        break;
    }
    return MF_EXIT_FAILED;
}

static int serve(const serve_flags *f, const key_list *keys, const item_list *paths, const item_list *origins)
{
    char name[256];
    const char *names[MAX_NAMES] = { name_of_model(f->model.model, name, sizeof name) };
    int32_t num_names = 1;
    if (f->names.count > 0) {
        memcpy(names, f->names.items, (size_t)f->names.count * sizeof *names);
        num_names = f->names.count;
    }
    static const char *const default_paths[] = { "/health" };
    server_model model = { .flags = f };
    mf_app_options options = {
        .open = open_model,
        .close = close_model,
        .context = &model,
        .http = { .host = f->host,
                  .port = (int32_t)f->port,
                  .uds_path = f->uds,
                  .listen_fd = -1,
                  .api_keys = (const char *const *)keys->items,
                  .num_api_keys = keys->count,
                  .public_paths = paths->count > 0 ? paths->items : default_paths,
                  .num_public_paths = paths->count > 0 ? paths->count : 1,
                  .allowed_origins = origins->items,
                  .num_allowed_origins = origins->count,
                  .max_connections = (int32_t)f->max_connections,
                  .max_connections_per_ip = (int32_t)f->max_connections_per_ip },
        .takeover_path = f->takeover,
        .served_names = names,
        .num_served_names = num_names,
        .max_num_seqs = (int32_t)f->model.max_num_seqs,
        .max_num_queued_reqs = (int32_t)f->max_num_queued_reqs,
        .max_sequences_per_request = (int32_t)f->max_sequences,
        .max_logprobs = (int32_t)f->max_logprobs,
        .max_num_queued_tokens =
            f->queued_tokens_given ? f->max_num_queued_tokens : 64 * f->model.max_num_batched_tokens,
        .request_timeout_s = f->request_timeout,
        .shutdown_timeout_s = f->shutdown_timeout,
        .sse_keep_alive_s = f->keep_alive,
        .stream_interval = (int32_t)f->stream_interval,
        .log_requests = f->log_requests,
        .metrics_per_expert = f->metrics_per_expert,
        .dev_endpoints = f->dev_endpoints,
        .trust_request_chat_template = f->trust_template,
        .sandbox = !f->no_sandbox,
        .driver_makes_calls = strncmp(f->model.device, "cuda", 4) == 0,
        .model_dir = f->model.model,
    };
    mf_error err = { 0 };
    mf_app_end end = mf_app_run(&options, &err);
    if (err.status != MF_OK) {
        mf_console_error(&err);
    }
    return exit_code_of(end, &err);
}

int mf_verb_serve(int argc, char **argv)
{
    serve_flags f;
    mf_flag rows[NUM_SERVE_FLAGS + MF_NUM_MODEL_FLAGS];
    size_t num_rows = fill_flags(&f, rows);
    const char *positionals[1];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, positionals, 1, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.model.help) {
        printf("usage: moefuse serve [MODEL] [flags]\n\nServes the OpenAI API and a chat page.  The log goes to "
               "stderr.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    if (mf_model_flags_start_log(&f.model, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    key_list keys = { 0 };
    item_list paths = { 0 }, origins = { 0 };
    mf_status status = mf_model_flags_settle(&f.model, positionals, num_positionals, &err);
    if (status == MF_OK) {
        status = read_keys(&f, &keys, &err);
    }
    if (status == MF_OK) {
        status = split_items(&f.public_paths, "--public-paths", &paths, &err);
    }
    if (status == MF_OK) {
        status = check_public_paths(&paths, &err);
    }
    if (status == MF_OK) {
        status = split_items(&f.origins, "--allowed-origins", &origins, &err);
    }
    int code;
    if (status != MF_OK) {
        code = mf_usage_error(&err);
    } else if (!mf_path_is_file(f.model.model) && mf_model_dir_check(f.model.model, &err) != MF_OK) {
        mf_console_error(&err); /* before anything listens */
        code = MF_EXIT_MODEL;
    } else {
        if (!is_loopback(f.host) && !f.uds && keys.count == 0) {
            mf_log(MF_LOG_WARN, "--host %.100s without --api-key: everybody who reaches it may use it", f.host);
        }
        wipe_keys(argc, argv);
        code = serve(&f, &keys, &paths, &origins);
    }
    close_keys(&keys);
    mf_free(paths.text);
    mf_free(origins.text);
    return code;
}
