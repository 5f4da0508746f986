/* mutants_test.c - 1,000 seeded mutants of the shipped checkpoint: each is refused with a message that names a file, or is
 * used: four tokens come out of it. */
#include "test.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/sys.h"
#include "model/mutate.h"
#include "moefuse_engine.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

static const char *const sources[] = { MF_SOURCE_DIR "/models/word-problems/fp8", MF_SOURCE_DIR "/models/word-problems" };

static mf_status encode_prompt(const char *dir, mf_ids *ids, mf_error *err)
{
    char path[512];
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    mf_tokenizer *tokenizer = NULL;
    mf_chat_template *chat = NULL;
    json_t *special = NULL;
    mf_buffer text = { .limit = 1 << 20 };
    mf_status status;
    MF_TRY_GOTO(mf_tokenizer_open(path, &tokenizer, err), done);
    MF_TRY_GOTO(mf_chat_template_load(dir, &chat, &special, err), done);
    if (chat) {
        json_t *variables = special ? json_copy(special) : json_object();
        json_object_set_new(variables, "messages", json_pack("[{s:s, s:s}]", "role", "user", "content", "What is 2 + 3?"));
        json_object_set_new(variables, "add_generation_prompt", json_true());
        status = mf_chat_template_render(chat, variables, NULL, &text, err);
        json_decref(variables);
        if (status != MF_OK) {
            mf_fail_context(err, status, "chat template of tokenizer_config.json");
            goto done;
        }
    } else {
        mf_buffer_append_text(&text, "2 + 3 =");
    }
    status = mf_tokenizer_encode(tokenizer, mf_buffer_text(&text), text.size, MF_ENCODE_ADD_SPECIAL, ids, err);
done:
    mf_buffer_close(&text);
    json_decref(special);
    mf_chat_template_close(&chat);
    mf_tokenizer_close(&tokenizer);
    return status;
}

/* Ids past a mutant's vocabulary are the submit's to refuse: that message names the field, not a file. */
static mf_status generate(const char *dir, const mf_ids *prompt, int32_t *num_missing, bool *odd_logits,
                          mf_error *err)
{
    mf_engine *engine = NULL;
    mf_engine_options options = MF_ENGINE_OPTIONS_INIT;
    options.model_dir = dir;
    options.num_threads = 1;
    options.max_num_seqs = 2;
    options.max_num_batched_tokens = 64;
    options.kv_cache_memory_bytes = 8 << 20;
    MF_TRY(mf_engine_open(&options, &engine, err));
    mf_request request = MF_REQUEST_INIT;
    int32_t fallback[1] = { 0 };
    bool usable = prompt->size > 0 && (int64_t)prompt->size + 4 <= mf_engine_max_model_len(engine);
    for (size_t i = 0; usable && i < prompt->size; i++) {
        usable = prompt->data[i] < mf_engine_vocab_size(engine);
    }
    request.prompt_token_ids = usable ? prompt->data : fallback;
    request.num_prompt_tokens = usable ? (int32_t)prompt->size : 1;
    request.sampling.max_tokens = mf_engine_max_model_len(engine) >= 5 || usable ? 4 : 1;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = 1;
    *num_missing = request.sampling.max_tokens;
    uint64_t id;
    mf_event events[16];
    bool finished = false;
    mf_status status = mf_engine_submit(engine, &request, &id, err);
    while (status == MF_OK && !finished) {
        int32_t n = 0;
        status = mf_engine_step(engine, events, 16, &n, err);
        for (int32_t i = 0; i < n; i++) {
            *num_missing -= events[i].type == MF_EVENT_TOKEN;
            if (events[i].type == MF_EVENT_FINISHED) {
                finished = true;
                *odd_logits = events[i].finish_reason == MF_FINISH_ERROR;
            }
        }
    }
    mf_engine_close(&engine);
    return status;
}

static bool names_a_file(const char *message)
{
    return strstr(message, ".json") || strstr(message, ".safetensors") || strstr(message, ".jinja");
}

static void try_mutants(uint64_t first, uint64_t count)
{
    char dir[] = "/tmp/moefuse-mutant-XXXXXX";
    CHECK(mkdtemp(dir) != NULL);
    int accepted = 0, refused = 0;
    for (uint64_t seed = first; seed < first + count; seed++) {
        char what[256];
        mf_error err = { 0 };
        mf_ids ids = { 0 };
        int32_t num_missing = 0;
        bool odd_logits = false;
        mutate_directory(sources[seed % 2], dir, seed, what, sizeof what);
        mf_status status = encode_prompt(dir, &ids, &err);
        if (status == MF_OK) {
            status = generate(dir, &ids, &num_missing, &odd_logits, &err);
        }
        if (status != MF_OK) {
            refused++;
            if (!names_a_file(err.message)) {
                fail_msg("mutant %llu (%s): the message names no file: %s", (unsigned long long)seed, what, err.message);
            }
        } else {
            accepted++;
            /* Weights that overflow are answered by ending that request, not by tokens. */
            if (!odd_logits && num_missing != 0) {
                fail_msg("mutant %llu (%s): accepted, but %d of its tokens are missing", (unsigned long long)seed, what,
                         num_missing);
            }
        }
        mf_ids_close(&ids);
    }
    /* Both kinds must occur, or the test shows nothing. */
    CHECK(accepted > (int)count / 20 && refused > (int)count / 20);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK_EQ(system(command), 0);
}

TEST(mutants_0_to_499_are_refused_by_name_or_used)
{
    try_mutants(0, 500);
}

TEST(mutants_500_to_999_are_refused_by_name_or_used)
{
    try_mutants(500, 500);
}
