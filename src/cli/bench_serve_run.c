/* bench_serve_run.c - the runs of `moefuse bench serve`: rounds, fusion variants, levels of concurrency, and the server
 * that they need.  See bench_serve.h. */
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/sys.h"
#include "cli/about.h"
#include "cli/bench_modes.h"
#include "cli/bench_serve.h"
#include "cli/progress_line.h"
#include "cli/server_process.h"

enum { MAX_SMALL_ANSWER = 16 << 20 };

int32_t mf_serve_variants(const char *fusion, mf_serve_variant out[MF_MAX_VARIANTS])
{
    static const mf_serve_variant fused = { "fused", false, false },
                                  shared = { "shared experts separate", true, false },
                                  gate = { "gate separate", false, true };
    int32_t n = 0;
    if (strcmp(fusion, "off") == 0) {
        out[n++] = shared;
        return n;
    }
    out[n++] = fused;
    if (strcmp(fusion, "both") == 0 || strcmp(fusion, "all") == 0) {
        out[n++] = shared;
    }
    if (strcmp(fusion, "gate") == 0 || strcmp(fusion, "all") == 0) {
        out[n++] = gate;
    }
    return n;
}

/* ---- what the server says of itself ---- */

/* A GET's JSON object, or NULL when there is none. */
static json_t *get_json(const mf_serve_bench *b, const mf_http_target *target, const char *path, int *status,
                        mf_error *err)
{
    mf_buffer body = { .limit = MAX_SMALL_ANSWER };
    mf_http_request request = { .method = "GET", .path = path, .api_key = b->api_key, .silence_s = 30 };
    json_t *document = NULL;
    if (mf_http_fetch(target, &request, status, &body, err) == MF_OK && *status == 200) {
        mf_json_parse(mf_buffer_text(&body), body.size, path, &(mf_json_limits){ .top_is_object = true }, &document,
                      err);
    }
    mf_buffer_close(&body);
    return document;
}

/* The name to ask for and the longest sequence (0 = not told). */
static mf_status read_models(mf_serve_bench *b, const mf_http_target *target, int64_t *max_len, mf_error *err)
{
    int status = 0;
    mf_error why = { 0 };
    json_t *models = get_json(b, target, "/v1/models", &status, &why);
    const json_t *entry = json_array_get(json_object_get(models, "data"), 0);
    const char *id = json_string_value(json_object_get(entry, "id"));
    *max_len = json_integer_value(json_object_get(entry, "max_model_len"));
    mf_status result = MF_OK;
    if (!status) {
        result = mf_fail(err, MF_ERR_IO, "--base-url: %s", why.message);
    } else if (status == 401 || status == 403) {
        result = mf_fail(err, MF_ERR_INVALID, "--api-key: the server refuses it (HTTP %d)", status);
    } else if (!b->model_id[0] && !id) {
        result =
            mf_fail(err, MF_ERR_IO, "GET /v1/models names no model (HTTP %d); --served-model-name gives one", status);
    } else if (!b->model_id[0]) {
        snprintf(b->model_id, sizeof b->model_id, "%s", id);
    }
    json_decref(models);
    return result;
}

static mf_status check_lengths(const mf_serve_bench *b, int64_t max_len, mf_error *err)
{
    if (max_len <= 0 || strcmp(b->dataset_name, "random") != 0) {
        return MF_OK;
    }
    int64_t most = b->prefix_len + (int64_t)ceil((double)b->input_len * (1 + b->range_ratio)) +
                   (int64_t)ceil((double)b->output_len * (1 + b->range_ratio));
    if (most > max_len) {
        return mf_fail(err, MF_ERR_INVALID,
                       "--random-input-len + --random-output-len: the model takes at most %lld tokens; got %lld",
                       (long long)max_len, (long long)most);
    }
    return MF_OK;
}

/* ---- one run ---- */

typedef struct tick {
    mf_progress_line line;
    int64_t failed;
} tick;

static bool on_progress(void *context, int64_t finished, int64_t failed, int64_t tokens, double seconds)
{
    tick *t = context;
    char note[32] = "";
    if (failed) {
        snprintf(note, sizeof note, "  %lld failed", (long long)failed);
    }
    mf_progress_line_draw(&t->line, finished, tokens, seconds, note);
    return !mf_bench_interrupted();
}

static mf_status make_prompts(const mf_serve_bench *b, uint64_t seed, int64_t count, mf_bench_prompts *out,
                              mf_error *err)
{
    if (strcmp(b->dataset_name, "random") == 0) {
        mf_random_prompts o = { .count = count,
                                .input_len = b->input_len,
                                .output_len = b->output_len,
                                .prefix_len = b->prefix_len,
                                .range_ratio = b->range_ratio,
                                .seed = seed };
        return b->vocab_size > 0 ? mf_bench_prompts_random_ids(b->vocab_size, &o, out, err)
                                 : mf_bench_prompts_random(b->tok, &o, out, err);
    }
    return mf_bench_prompts_file(b->tok, b->dataset_path, strcmp(b->dataset_name, "sharegpt") == 0, count,
                                 b->file_output_len, seed, out, err);
}

typedef struct run_at {
    const mf_http_target *target;
    const mf_serve_variant *variant; /* NULL: a server that others started */
    int32_t round, level;            /* level: index in levels; -1 warms up */
    bool is_last;                    /* on this server: its expert load is kept */
} run_at;

static json_t *about_run(const mf_serve_bench *b, const run_at *at)
{
    json_t *about = mf_about_build();
    json_object_set(about, "flags", b->flags);
    json_object_set_new(about, "round", json_integer(at->round + 1));
    if (at->variant) {
        json_object_set_new(about, "fusion",
                            json_pack("{s:s, s:b, s:b}", "variant", at->variant->name, "shared_experts_fusion",
                                      !at->variant->separate_shared, "fused_gate", !at->variant->separate_gate));
    }
    int status;
    json_t *version = get_json(b, at->target, "/version", &status, NULL);
    if (version) {
        json_t *device = json_object_get(version, "device");
        json_object_set(about, "device", device ? device : json_null());
        json_object_set_new(about, "server", version);
    }
    if (at->is_last) {
        json_t *load = get_json(b, at->target, "/v1/moe/expert-load", &status, NULL);
        if (json_is_array(json_object_get(load, "layers"))) {
            json_object_set(about, "expert_load", load);
        }
        json_decref(load);
    }
    return about;
}

static mf_status keep_result(mf_serve_bench *b, const run_at *at, const mf_bench_prompts *prompts,
                             mf_bench_record *records, double duration_s, json_t *results, mf_error *err)
{
    mf_bench_metrics metrics;
    MF_TRY(mf_bench_metrics_make(records, prompts->count, duration_s, b->tok, &b->metrics, &metrics, err));
    mf_bench_setting setting = {
        .backend = b->backend,
        .endpoint_type = b->backend,
        .label = b->label,
        .model_id = b->model_id,
        .tokenizer_id = b->tokenizer_id,
        .num_prompts = prompts->count,
        .max_concurrency = b->levels[at->level],
        .request_rate = b->request_rate,
        .burstiness = b->burstiness,
    };
    json_t *result = mf_bench_result_json(&metrics, &setting, &b->metrics, records, b->save_detailed, b->date);
    if (!result) {
        return mf_fail(err, MF_ERR_NOMEM, "bench: out of memory for the result");
    }
    json_object_set_new(result, "moefuse", about_run(b, at));
    json_array_append_new(results, result);
    if (metrics.failed) {
        for (int64_t i = 0; i < prompts->count; i++) {
            if (!records[i].ok) {
                mf_log(MF_LOG_WARN, "%lld of %lld requests failed; the first: %s", (long long)metrics.failed,
                       (long long)prompts->count, records[i].error);
                break;
            }
        }
    }
    if (!b->json && b->num_levels * b->rounds == 1 && strcmp(b->fusion, "on") == 0) {
        mf_bench_table_print(stdout, &metrics, &setting, &b->metrics);
        fflush(stdout);
    }
    return MF_OK;
}

static mf_status run_level(mf_serve_bench *b, const run_at *at, json_t *results, mf_error *err)
{
    const bool warms_up = at->level < 0;
    int64_t count = warms_up ? b->num_warmups : b->num_prompts;
    /* Each level has prompts of its own, and each round where the server goes on, or the prefix cache would answer the
     * second one; each variant has the same. */
    uint64_t seed = (uint64_t)b->model.seed * 1000003u + (uint64_t)(at->level + 1) +
                    (at->variant ? 0 : 1000u * (uint64_t)at->round);
    mf_bench_prompts prompts;
    MF_TRY(make_prompts(b, seed, count, &prompts, err));
    if (prompts.num_inexact && !warms_up) {
        mf_log(MF_LOG_WARN, "%lld of %lld random prompts do not encode to the asked length",
               (long long)prompts.num_inexact, (long long)count);
    }
    char what[160];
    int64_t concurrency = warms_up ? b->num_warmups : b->levels[at->level];
    snprintf(what, sizeof what, "%s%s%s", at->variant && strcmp(b->fusion, "on") != 0 ? at->variant->name : "",
             at->variant && strcmp(b->fusion, "on") != 0 ? ", " : "", warms_up ? "warming up" : "");
    if (!warms_up) {
        size_t used = strlen(what);
        if (b->rounds > 1) {
            snprintf(what + used, sizeof what - used, "round %d/%lld, ", at->round + 1, (long long)b->rounds);
            used = strlen(what);
        }
        if (concurrency) {
            snprintf(what + used, sizeof what - used, "concurrency %lld:", (long long)concurrency);
        } else {
            snprintf(what + used, sizeof what - used, "requests");
        }
    }
    tick t = { 0 };
    mf_progress_line_start(&t.line, what, count, b->model.no_progress || warms_up);
    mf_load_options load = {
        .target = at->target,
        .api_key = b->api_key,
        .model = b->model_id,
        .chat = strcmp(b->backend, "openai-chat") == 0,
        .request_rate = warms_up ? INFINITY : b->request_rate,
        .burstiness = b->burstiness,
        .max_concurrency = concurrency,
        .ignore_eos = b->ignore_eos,
        .temperature = b->temperature,
        .seed = seed,
        .progress = on_progress,
        .context = &t,
    };
    mf_bench_record *records = mf_alloc_array((size_t)prompts.count, sizeof *records);
    double duration_s = 0;
    mf_status status = records ? mf_load_run(&load, &prompts, records, &duration_s, err)
                               : mf_fail(err, MF_ERR_NOMEM, "bench: out of memory");
    mf_progress_line_end(&t.line);
    if (status == MF_OK && !warms_up) {
        status = keep_result(b, at, &prompts, records, duration_s, results, err);
        const json_t *last = json_array_get(results, json_array_size(results) - 1);
        if (status == MF_OK && !b->model.no_progress && b->num_levels * b->rounds > 1) {
            fprintf(stderr, "%s %.1f s, %.1f tok/s, median TTFT %.1f ms, median TPOT %.2f ms\n", what, duration_s,
                    json_number_value(json_object_get(last, "output_throughput")),
                    json_number_value(json_object_get(last, "median_ttft_ms")),
                    json_number_value(json_object_get(last, "median_tpot_ms")));
        }
    }
    for (int64_t i = 0; records && i < prompts.count; i++) {
        mf_bench_record_close(&records[i]);
    }
    mf_free(records);
    mf_bench_prompts_close(&prompts);
    return status;
}

/* ---- all runs ---- */

static mf_status run_levels(mf_serve_bench *b, const mf_http_target *target, const mf_serve_variant *variant,
                            int32_t round, json_t *results, mf_error *err)
{
    int64_t max_len = 0;
    MF_TRY(read_models(b, target, &max_len, err));
    MF_TRY(check_lengths(b, max_len, err));
    run_at at = { .target = target, .variant = variant, .round = round, .level = -1 };
    if (b->num_warmups > 0) {
        MF_TRY(run_level(b, &at, results, err));
    }
    for (at.level = 0; at.level < b->num_levels; at.level++) {
        at.is_last = at.level + 1 == b->num_levels;
        MF_TRY(run_level(b, &at, results, err));
    }
    return MF_OK;
}

static mf_status run_own_server(mf_serve_bench *b, const mf_serve_variant *variant, int32_t round, bool show_log,
                                json_t *results, mf_error *err)
{
    mf_server_process *process = NULL;
    char url[128], name[300];
    snprintf(name, sizeof name, "--served-model-name=%s", b->model_id);
    const char *more[] = {
        variant->separate_shared ? "--disable-shared-experts-fusion=true" : "--disable-shared-experts-fusion=false",
        variant->separate_gate ? "--disable-fused-gate=true" : "--disable-fused-gate=false",
        b->model_id[0] ? name : NULL,
        NULL,
    };
    mf_server_options options = { .model = b->model.model,
                                  .model_rows = b->model_rows,
                                  .num_model_rows = MF_NUM_MODEL_FLAGS,
                                  .more = more,
                                  .show_log = show_log,
                                  .stop = mf_bench_interrupted };
    MF_TRY(mf_server_process_start(&options, &process, url, sizeof url, err));
    mf_http_target target;
    mf_status status = mf_http_target_open(url, &target, err);
    if (status == MF_OK) {
        status = run_levels(b, &target, variant, round, results, err);
    }
    if (status != MF_OK && status != MF_ERR_CANCELLED && !mf_server_process_runs(process)) {
        mf_error_advise(err, "the server ended in the middle of the run");
    }
    mf_server_process_stop(&process);
    return status;
}

mf_status mf_serve_bench_run(mf_serve_bench *b, json_t **results, mf_error *err)
{
    *results = json_array();
    if (!*results) {
        return mf_fail(err, MF_ERR_NOMEM, "bench: out of memory");
    }
    mf_serve_variant variants[MF_MAX_VARIANTS];
    int32_t num_variants = mf_serve_variants(b->fusion, variants);
    if (b->base_url) {
        mf_http_target target;
        MF_TRY(mf_http_target_open(b->base_url, &target, err));
        for (int32_t round = 0; round < b->rounds; round++) {
            MF_TRY(run_levels(b, &target, NULL, round, *results, err));
        }
        return MF_OK;
    }
    /* A B A B: what drifts over time meets all variants alike. */
    for (int32_t round = 0; round < b->rounds; round++) {
        for (int32_t v = 0; v < num_variants; v++) {
            MF_TRY(run_own_server(b, &variants[v], round, round == 0 && v == 0, *results, err));
        }
    }
    return MF_OK;
}
