/* verb_check.c - `moefuse check`: every file of a model validated as untrusted input, without running it unless asked. */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/sys.h"
#include "cli/cli.h"
#include "cli/session.h"
#include "model/family.h"
#include "model/weights.h"
#include "text/prompt.h"

enum { MAX_FINDINGS = 20 };

typedef struct check_flags {
    mf_model_flags model;
    bool json, deep;
    int64_t generate;
} check_flags;

typedef struct findings {
    bool json;
    json_t *list;
    int32_t count;
} findings;

static void add_finding(void *context, const char *text)
{
    findings *found = context;
    found->count++;
    if (found->json) {
        json_array_append_new(found->list, json_string(text));
    } else {
        printf("%s\n", text);
    }
}

/* Makes tokens from the model: an accepted file is one that can be used. */
static mf_status try_generate(const check_flags *f, mf_error *err)
{
    mf_session session;
    mf_model_flags flags = f->model;
    flags.no_progress = true;
    MF_TRY(mf_session_open(&flags, &session, err));
    int32_t prompt[1] = { session.config->bos_token_id >= 0 ? session.config->bos_token_id : 0 };
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = prompt;
    request.num_prompt_tokens = 1;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = 1;
    request.sampling.max_tokens = (int32_t)f->generate;
    uint64_t id;
    mf_event events[8];
    bool finished = false;
    mf_status status = mf_engine_submit(session.engine, &request, &id, err);
    while (status == MF_OK && !finished) {
        int32_t n = 0;
        status = mf_engine_step(session.engine, events, 8, &n, err);
        for (int32_t i = 0; i < n; i++) {
            if (events[i].type != MF_EVENT_FINISHED) {
                continue;
            }
            finished = true;
            if (events[i].finish_reason == MF_FINISH_ERROR && status == MF_OK) {
                status = mf_fail(err, MF_ERR_FORMAT, "%.512s: the model's logits are not finite: a weight holds NaN or infinity",
                                 f->model.model);
            } else if (events[i].completion_tokens != f->generate && status == MF_OK) {
                status = mf_fail(err, MF_ERR_INTERNAL, "%.512s: expected %lld tokens; got %d", f->model.model,
                                 (long long)f->generate, events[i].completion_tokens);
            }
        }
    }
    mf_session_close(&session);
    return status;
}

static mf_status check_all(const check_flags *f, findings *found, mf_error *err)
{
    const char *dir = f->model.model;
    MF_TRY(mf_model_dir_check(dir, err));
    mf_model_config *config = NULL;
    MF_TRY(mf_model_config_load(dir, &config, err));
    mf_prompt prompt;
    mf_error text_err = { 0 };
    if (mf_prompt_open(dir, f->model.chat_template, config->family->chat_templates, config->max_position_embeddings,
                       &prompt, &text_err) == MF_OK) {
        if (mf_tokenizer_vocab_size(prompt.tokenizer) > config->vocab_size) {
            add_finding(found, "the tokenizer has more tokens than config.json's \"vocab_size\"");
        }
        mf_prompt_close(&prompt);
    } else {
        add_finding(found, text_err.message);
    }
    mf_status status = MF_OK;
    if (strcmp(f->model.load_format, "dummy") != 0) {
        int32_t count = 0;
        status = mf_weights_check(dir, config, f->deep, MAX_FINDINGS - found->count, add_finding, found, &count, err);
    }
    mf_model_config_close(&config);
    if (status == MF_OK && f->generate > 0 && found->count == 0) {
        status = try_generate(f, err);
    }
    return status;
}

int mf_verb_check(int argc, char **argv)
{
    check_flags f = { 0 };
    mf_flag rows[4 + MF_NUM_MODEL_FLAGS] = {
        { "check", "--deep", NULL, MF_FLAG_BOOL, &f.deep, .help = "also read every byte: NaN or infinite scales, norms, biases" },
        { "check", "--generate", NULL, MF_FLAG_INT, &f.generate, .max = 1 << 20, .argument = "N",
          .help = "also load the model and make N tokens (0)" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &f.json, .help = "one JSON document on stdout" },
    };
    mf_model_flags_fill(&f.model, rows + 3);
    const char *positionals[1];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, 3 + MF_NUM_MODEL_FLAGS, argc, argv, positionals, 1, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.model.help) {
        printf("usage: moefuse check [MODEL] [flags]\n\nValidates config, tokenizer, template and weights without running the model.\n"
               "Prints `ok`, or up to %d findings, and exits with 4 when there is one.\n", MAX_FINDINGS);
        mf_flags_help(rows, 3 + MF_NUM_MODEL_FLAGS, stdout);
        return MF_EXIT_OK;
    }
    if (mf_model_flags_start_log(&f.model, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (mf_model_flags_settle(&f.model, positionals, num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    findings found = { .json = f.json, .list = json_array() };
    mf_status status = check_all(&f, &found, &err);
    if (status != MF_OK && f.json) {
        add_finding(&found, err.message);
    } else if (status != MF_OK) {
        mf_console_error(&err);
    }
    if (f.json) {
        mf_console_json(json_pack("{s:b, s:O}", "ok", status == MF_OK && found.count == 0, "findings", found.list),
                        JSON_INDENT(2));
    } else if (status == MF_OK && found.count == 0) {
        printf("ok\n");
    }
    json_decref(found.list);
    return status != MF_OK ? mf_exit_code(status) : found.count ? MF_EXIT_MODEL : MF_EXIT_OK;
}
