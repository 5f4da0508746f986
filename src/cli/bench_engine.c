/* bench_engine.c - what the modes that run a model share: flags, opening, random prompts, stepping, JSON.  See
 * bench_modes.h. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/random.h"
#include "base/sys.h"
#include "cli/about.h"
#include "cli/bench_modes.h"
#include "engine/engine.h"
#include "model/config.h"

static volatile sig_atomic_t interrupts;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupts = 1;
}

void mf_bench_catch_interrupt(void)
{
    signal(SIGINT, on_interrupt);
}

bool mf_bench_interrupted(void)
{
    return interrupts != 0;
}

void mf_bench_common_fill(mf_bench_common *v, mf_flag *rows)
{
    const mf_flag table[] = {
        { "load", "--input-len", NULL, MF_FLAG_INT, &v->input_len, .min = 1, .max = 1 << 20, .argument = "N",
          .help = "tokens of a prompt, drawn from the whole vocabulary by --seed" },
        { "load", "--output-len", NULL, MF_FLAG_INT, &v->output_len, .min = 1, .max = 1 << 20, .argument = "N",
          .help = "tokens made by each sequence; the end-of-sentence token does not end it" },
        { "load", "--temperature", NULL, MF_FLAG_REAL, &v->temperature, .min = 0, .max = 2, .argument = "X",
          .help = "0 = greedy (0)" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &v->json, .help = "one JSON document on stdout, with vLLM's keys" },
        { "output", "--output-json", NULL, MF_FLAG_TEXT, &v->output_json, .argument = "FILE",
          .help = "also write that document to FILE" },
    };
    memcpy(rows, table, sizeof table);
    mf_model_flags_fill(&v->model, rows + sizeof table / sizeof *table);
}

static mf_status settle(mf_bench_common *v, const char *const *positionals, int32_t num_positionals, mf_error *err)
{
    MF_TRY(mf_model_flags_start_log(&v->model, err));
    MF_TRY(mf_model_flags_settle(&v->model, positionals, num_positionals, err));
    if (v->model.chat_template) {
        mf_log(MF_LOG_WARN, "--chat-template has no effect: bench draws token ids");
    }
    if (mf_model_config_is_file(v->model.model) && strcmp(v->model.load_format, "dummy") != 0) {
        mf_log(MF_LOG_INFO, "%.512s has no weights beside it: --load-format dummy", v->model.model);
        v->model.load_format = "dummy";
    }
    int64_t length = v->input_len + v->output_len;
    if (v->model.max_model_len && v->model.max_model_len < length) {
        return mf_fail(err, MF_ERR_INVALID,
                       "--max-model-len: expected at least --input-len + --output-len = %lld; got %lld",
                       (long long)length, (long long)v->model.max_model_len);
    }
    return MF_OK;
}

mf_status mf_bench_open(mf_bench_common *v, const char *const *positionals, int32_t num_positionals, int64_t num_seqs,
                        mf_session *session, int *exit_code, mf_error *err)
{
    *exit_code = MF_EXIT_USAGE;
    MF_TRY(settle(v, positionals, num_positionals, err));
    *exit_code = MF_EXIT_MODEL;
    mf_model_config *config = NULL;
    mf_status status = mf_model_config_load(v->model.model, &config, err);
    if (status != MF_OK) {
        *exit_code = mf_exit_code(status);
        return status;
    }
    int64_t most = config->max_position_embeddings, length = v->input_len + v->output_len;
    mf_model_config_close(&config);
    if (length > most) {
        *exit_code = MF_EXIT_USAGE;
        return mf_fail(err, MF_ERR_INVALID, "--input-len + --output-len: the model takes at most %lld tokens; got %lld",
                       (long long)most, (long long)length);
    }
    /* The cache and the tables are sized for what is asked, not for the model's longest context. */
    v->model.max_model_len = v->model.max_model_len ? v->model.max_model_len : length;
    v->model.max_num_seqs = num_seqs < v->model.max_num_seqs ? num_seqs : v->model.max_num_seqs;
    status = mf_session_open_without_text(&v->model, NULL, session, err);
    if (status != MF_OK) {
        *exit_code = mf_exit_code(status);
        return status;
    }
    if (mf_engine_max_model_len(session->engine) < length) {
        status = mf_fail(err, MF_ERR_NOMEM,
                         "the KV cache has room for sequences of %lld tokens; --input-len + --output-len "
                         "need %lld",
                         (long long)mf_engine_max_model_len(session->engine), (long long)length);
        mf_session_close(session);
        *exit_code = MF_EXIT_RESOURCE;
        return status;
    }
    mf_session_print_plan(session, stderr);
    mf_bench_catch_interrupt();
    *exit_code = MF_EXIT_OK;
    return MF_OK;
}

/* ---- requests ---- */

static void draw_prompt(mf_bench_requests *r)
{
    uint64_t vocabulary = (uint64_t)mf_engine_vocab_size(r->session->engine);
    for (int64_t i = 0; i < r->common->input_len; i++) {
        r->prompt[i] = (int32_t)mf_random_below(&r->seed, vocabulary);
    }
}

mf_status mf_bench_requests_open(const mf_session *session, const mf_bench_common *common, mf_bench_requests *out,
                                 mf_error *err)
{
    *out = (mf_bench_requests){ .session = session, .common = common, .seed = (uint64_t)common->model.seed };
    out->max_events = mf_engine_max_events(session->engine);
    out->prompt = mf_alloc_array((size_t)common->input_len, sizeof *out->prompt);
    out->events = mf_alloc_array((size_t)out->max_events, sizeof *out->events);
    if (!out->prompt || !out->events) {
        mf_bench_requests_close(out);
        return mf_fail(err, MF_ERR_NOMEM, "bench: out of memory for prompts");
    }
    draw_prompt(out);
    return MF_OK;
}

void mf_bench_requests_close(mf_bench_requests *requests)
{
    mf_free(requests->prompt);
    mf_free(requests->events);
    *requests = (mf_bench_requests){ 0 };
}

mf_status mf_bench_submit_next(mf_bench_requests *r, mf_error *err)
{
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = r->prompt;
    request.num_prompt_tokens = (int32_t)r->common->input_len;
    request.sampling.max_tokens = (int32_t)r->common->output_len;
    request.sampling.temperature = r->common->temperature;
    request.sampling.ignore_eos = 1;
    uint64_t id;
    MF_TRY(mf_engine_submit(r->session->engine, &request, &id, err));
    draw_prompt(r);
    return MF_OK;
}

mf_status mf_bench_step(mf_bench_requests *r, mf_bench_tally *tally, mf_error *err)
{
    int32_t n = 0;
    const int64_t first_tokens_before = tally->first_tokens;
    MF_TRY(mf_engine_step(r->session->engine, r->events, r->max_events, &n, err));
    for (int32_t i = 0; i < n; i++) {
        const mf_event *e = &r->events[i];
        if (e->type == MF_EVENT_TOKEN) {
            tally->tokens++;
            tally->first_tokens += e->position == r->common->input_len;
        } else if (e->type == MF_EVENT_FINISHED) {
            if (e->finish_reason == MF_FINISH_ERROR) {
                return mf_fail(err, MF_ERR_INTERNAL,
                               "the model's logits are not finite: a weight holds NaN or infinity");
            }
            tally->finished++;
            tally->prompt_tokens += e->prompt_tokens;
        }
    }
    if (tally->first_tokens > first_tokens_before) { /* all tokens of a step come at its end */
        tally->last_first_token_s = mf_now_s();
        tally->tokens_at_last_first = tally->tokens;
    }
    return MF_OK;
}

/* ---- JSON ---- */

json_t *mf_bench_about(const mf_session *session, const mf_bench_common *common)
{
    const mf_plan *plan = mf_model_get_plan(session->model);
    json_t *about = mf_about_build();
    json_t *rest = json_pack(
        "{s:s, s:{s:i, s:i, s:i, s:i}, s:{s:I, s:I, s:f, s:s, s:s, s:s, s:s, s:I, s:I, s:b, s:b}}", "device",
        mf_device_description(mf_model_get_device(session->model)), "fusion", "slot", (int)plan->num_slot, "overlap",
        (int)plan->num_overlap, "serial", (int)plan->num_serial, "fused_gate", (int)plan->num_fused_gate, "flags", "input_len",
        (json_int_t)common->input_len, "output_len", (json_int_t)common->output_len, "temperature", common->temperature, "dtype",
        common->model.dtype, "quantization", common->model.quantization, "act_quant", common->model.act_quant, "load_format",
        common->model.load_format, "threads", (json_int_t)common->model.threads, "seed", (json_int_t)common->model.seed,
        "disable_shared_experts_fusion", common->model.disable_shared_experts_fusion, "disable_fused_gate",
        common->model.disable_fused_gate);
    json_object_update(about, rest);
    json_decref(rest);
    return about;
}

mf_status mf_bench_write_json(const mf_bench_common *common, json_t *document, mf_error *err)
{
    mf_status status = document ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "bench: out of memory for the JSON document");
    if (document && common->output_json &&
        json_dump_file(document, common->output_json, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) != 0) {
        status = mf_fail(err, MF_ERR_IO, "--output-json %.512s: %s", common->output_json, strerror(errno));
    }
    if (common->json) {
        mf_console_json(document, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    } else {
        json_decref(document);
    }
    return status;
}
