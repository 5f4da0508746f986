/* guide_dump.c - guides behind a pipe, for guide_oracle.py.
 *
 * A request is a byte (operation), a byte (argument), a 32-bit size and that many bytes; an answer a 32-bit status, a 32-bit size
 * and that many bytes (a message when the status is not 0).  Numbers are little-endian.
 *   C kind source    compiles: s schema, o any object, r regex, g grammar, c choices (each ends with a zero byte)
 *   M text           the guide after the text, byte by byte: 0 dead, 1 alive, 2 may end
 *   G seed (8 bytes) a text of random tokens that the masks allow; status 9 when it did not end within 4,000 */
#include "guide_vocabulary.h"

#include <stdlib.h>

#include "base/random.h"

enum { MAX_STEPS = 4000, HURRY = 60 };

static mf_tokenizer *tok;
static mf_guide_vocab *vocab;
static mf_guide_program *program;

static void die(const char *message)
{
    fprintf(stderr, "guide_dump: %s\n", message);
    exit(2);
}

static void answer(mf_status status, const void *data, size_t size)
{
    uint32_t head[2] = { (uint32_t)status, (uint32_t)size };
    if (fwrite(head, sizeof head, 1, stdout) != 1 || (size > 0 && fwrite(data, 1, size, stdout) != size) || fflush(stdout) != 0) {
        die("cannot write");
    }
}

static mf_status compile(char kind, const char *source, size_t size, mf_error *err)
{
    mf_guide_program_close(&program);
    switch (kind) {
    case 's':
        return mf_guide_compile_json_schema(vocab, source, size, NULL, &program, err);
    case 'o':
        return mf_guide_compile_json_object(vocab, &program, err);
    case 'r':
        return mf_guide_compile_regex(vocab, source, size, NULL, &program, err);
    case 'g':
        return mf_guide_compile_grammar(vocab, source, size, NULL, &program, err);
    default: {
        const char *choices[256];
        size_t n = 0;
        for (size_t at = 0; at < size && n < 256; at += strlen(source + at) + 1) {
            choices[n++] = source + at;
        }
        return mf_guide_compile_choice(vocab, choices, n, NULL, &program, err);
    }
    }
}

static mf_guide_state *open_state(void)
{
    mf_error err = { 0 };
    mf_guide_state *state;
    if (!program || mf_guide_state_open(program, &state, &err) != MF_OK) {
        die("no program");
    }
    return state;
}

enum { WORDS = GUIDE_EOS / 32 + 1 };

static char match(const char *text, size_t size)
{
    mf_guide_state *state = open_state();
    uint32_t mask[WORDS];
    bool alive = true;
    for (size_t i = 0; i < size && alive; i++) {
        mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
        uint8_t byte = (uint8_t)text[i];
        alive = mask[byte / 32] >> byte % 32 & 1;
        mf_guide_state_accept(state, byte);
    }
    mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
    bool any = false;
    for (int i = 0; i < WORDS; i++) {
        any = any || mask[i];
    }
    char result = !alive || !any ? 0 : mf_guide_state_may_end(state) ? 2 : 1;
    mf_guide_state_close(&state);
    return result;
}

/* A random token; when the text gets long, one that closes something if there is one. */
static int32_t choose(const uint32_t *mask, uint64_t *random, bool hurries)
{
    int32_t ids[GUIDE_EOS + 1], closers[GUIDE_EOS + 1];
    int32_t n = 0, num_closers = 0;
    for (int32_t id = 0; id <= GUIDE_EOS; id++) {
        if (mask[id / 32] >> id % 32 & 1) {
            size_t size;
            const char *bytes = mf_tokenizer_token_bytes(tok, id, &size);
            ids[n++] = id;
            if (id == GUIDE_EOS || (size == 1 && strchr("\"}])", bytes[0]))) {
                closers[num_closers++] = id;
            }
        }
    }
    if (n == 0) {
        return -1;
    }
    if (hurries && num_closers > 0) {
        return mask[GUIDE_EOS / 32] >> GUIDE_EOS % 32 & 1 ? GUIDE_EOS : closers[mf_random_below(random, (uint64_t)num_closers)];
    }
    return ids[mf_random_below(random, (uint64_t)n)];
}

static mf_status generate(uint64_t seed, mf_buffer *out)
{
    mf_guide_state *state = open_state();
    uint64_t random = seed;
    mf_status status = MF_ERR_CANCELLED;
    for (int32_t i = 0; i < MAX_STEPS && status == MF_ERR_CANCELLED; i++) {
        uint32_t mask[WORDS];
        mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
        int32_t id = choose(mask, &random, i > (int32_t)(seed % HURRY));
        if (id < 0) {
            status = MF_ERR_INTERNAL;
            mf_buffer_printf(out, " <- a dead end");
        } else if (id == GUIDE_EOS) {
            status = MF_OK;
        } else {
            size_t size;
            const char *bytes = mf_tokenizer_token_bytes(tok, id, &size);
            mf_buffer_append(out, bytes, size);
            mf_guide_state_accept(state, id);
        }
    }
    mf_guide_state_close(&state);
    return status;
}

int main(void)
{
    tok = guide_tokenizer();
    vocab = guide_vocabulary(tok);
    uint8_t head[6];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        uint32_t size;
        memcpy(&size, head + 2, sizeof size);
        char *data = malloc((size_t)size + 1);
        if (!data || (size > 0 && fread(data, size, 1, stdin) != 1)) {
            die("cannot read");
        }
        data[size] = '\0';
        mf_error err = { 0 };
        if (head[0] == 'C') {
            mf_status status = compile((char)head[1], data, size, &err);
            answer(status, err.message, status == MF_OK ? 0 : strlen(err.message));
        } else if (head[0] == 'M') {
            char result = match(data, size);
            answer(MF_OK, &result, 1);
        } else {
            uint64_t seed;
            memcpy(&seed, data, sizeof seed);
            mf_buffer out = { 0 };
            mf_status status = generate(seed, &out);
            answer(status, out.data, out.size);
            mf_buffer_close(&out);
        }
        free(data);
    }
    mf_guide_program_close(&program);
    mf_guide_vocab_close(&vocab);
    mf_tokenizer_close(&tok);
    return 0;
}
