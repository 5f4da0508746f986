/* fuzz_guide.c - the first byte picks the kind (schema, regex, grammar, choices), the second a walk, the rest is the source:
 * refused with a message, or compiled, and then texts of allowed tokens never meet a dead end that is not a stated limit. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/random.h"
#include "text/guide_impl.h"
#include "text/utf8.h"
#include "text/vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { EOS = 288, WORDS = EOS / 32 + 1 };

/* All bytes, and tokens that span several parts. */
static mf_guide_vocab *make_vocab(void)
{
    static const char *const more[] = { "\\\"}", "},{", "\\\":", "\\\",\\\"", "[[", "]]", "aa", "ab", "10", "\\\\u00", "\\u00e4\\u00b8", "true" };
    mf_buffer json = { 0 };
    mf_buffer_printf(&json, "{\"added_tokens\":[{\"id\":%d,\"content\":\"<eos>\",\"special\":true}],\"pre_tokenizer\":{\"type\":\"ByteLevel\","
                            "\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},\"decoder\":{\"type\":\"ByteLevel\"},"
                            "\"model\":{\"type\":\"BPE\",\"vocab\":{", EOS);
    for (int b = 0; b < 256; b++) {
        char text[5] = { 0 };
        mf_utf8_put(mf_byte_to_char((uint8_t)b), text);
        mf_buffer_printf(&json, "\"%s%s\":%d,", b == '"' || b == '\\' ? "\\" : "", text, b);
    }
    for (int i = 256; i < EOS; i++) {
        if (i - 256 < (int)(sizeof more / sizeof *more)) {
            mf_buffer_printf(&json, "\"%s\":%d,", more[i - 256], i);
        } else {
            mf_buffer_printf(&json, "\"filler%d\":%d%s", i, i, i + 1 < EOS ? "," : "");
        }
    }
    mf_buffer_append_text(&json, "},\"merges\":[]}}");
    mf_tokenizer *tok = NULL;
    mf_guide_vocab *vocab = NULL;
    mf_error err = { 0 };
    const int32_t eos = EOS;
    if (mf_tokenizer_parse(json.data, json.size, "fuzz", &tok, &err) != MF_OK ||
        mf_guide_vocab_open(tok, &eos, 1, &vocab, &err) != MF_OK) {
        abort();
    }
    mf_tokenizer_close(&tok);
    mf_buffer_close(&json);
    return vocab;
}

static mf_status compile(const mf_guide_vocab *vocab, int kind, const char *source, size_t size, mf_guide_program **out,
                         mf_error *err)
{
    /* Sanitizers are slow; the other limits are the ones under test. */
    const mf_guide_limits limits = { .states = 5000, .compile_ns = 5000000000 };
    const char *choices[64];
    char *copy;
    mf_status status;
    size_t n = 0;
    switch (kind) {
    case 0:
        return mf_guide_compile_json_schema(vocab, source, size, &limits, out, err);
    case 1:
        return mf_guide_compile_regex(vocab, source, size, &limits, out, err);
    case 2:
        return mf_guide_compile_grammar(vocab, source, size, &limits, out, err);
    default:
        copy = malloc(size + 1);
        memcpy(copy, source, size);
        copy[size] = '\0';
        for (size_t at = 0; at < size && n < 64; at += strlen(copy + at) + 1) {
            choices[n++] = copy + at;
        }
        status = mf_guide_compile_choice(vocab, choices, n, &limits, out, err);
        free(copy);
        return status;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static mf_guide_vocab *vocab;
    mf_guide_program *program = NULL;
    mf_guide_state *state = NULL;
    mf_error err = { 0 };
    vocab = vocab ? vocab : make_vocab();
    if (size < 2) {
        return 0;
    }
    if (compile(vocab, data[0] & 3, (const char *)data + 2, size - 2, &program, &err) != MF_OK) {
        if (!err.message[0] || program) {
            abort();
        }
        return 0;
    }
    if (mf_guide_state_open(program, &state, &err) != MF_OK) {
        abort();
    }
    uint64_t random = data[1];
    for (int step = 0; step < 24; step++) {
        uint32_t mask[WORDS];
        int32_t n = 0, chosen = -1;
        mf_guide_state_fill(state, mask, EOS + 1);
        for (int32_t id = 0; id <= EOS; id++) {
            if (mask[id / 32] >> id % 32 & 1 && mf_random_below(&random, (uint64_t)++n) == 0) {
                chosen = id;
            }
        }
        /* An ambiguity or a work too large ends it; a walk that did not fail goes on. */
        if (chosen < 0 && !state->has_failed) {
            abort();
        }
        if (chosen < 0 || chosen == EOS) {
            break;
        }
        mf_guide_state_accept(state, chosen);
    }
    mf_guide_state_close(&state);
    mf_guide_program_close(&program);
    return 0;
}
