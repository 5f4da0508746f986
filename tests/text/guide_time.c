/* guide_time.c - what a step of a guide costs on a large vocabulary.
 *
 *     guide_time TOKENIZER.JSON
 *
 * For each kind of guide: compile, then steps over random allowed tokens; the first fill in a state that was not met before is
 * cold, another in the same state warm.  Prints medians and maxima in microseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "base/sys.h"
#include "text/guide.h"

enum { MAX_STEPS = 400 };

typedef struct times {
    double values[MAX_STEPS * 8];
    int32_t count;
} times;

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void show(const char *name, times *t)
{
    qsort(t->values, (size_t)t->count, sizeof(double), compare);
    if (t->count > 0) {
        printf("  %-6s n %5d  median %8.1f  p90 %8.1f  p99 %8.1f  max %8.1f us\n", name, t->count, t->values[t->count / 2],
               t->values[t->count * 9 / 10], t->values[t->count * 99 / 100], t->values[t->count - 1]);
    }
}

static int32_t choose(const mf_tokenizer *tok, const uint32_t *mask, int32_t vocab, uint64_t *random)
{
    int32_t n = 0, chosen = -1;
    bool wants_short = mf_random_below(random, 3) == 0; /* else random tokens never close a string */
    for (int pass = 0; pass < 2 && chosen < 0; pass++) {
        n = 0;
        for (int32_t i = 0; i < vocab; i++) {
            size_t size = 0;
            if (mask[i / 32] >> i % 32 & 1) {
                const char *bytes = mf_tokenizer_token_bytes(tok, i, &size);
                bool is_closer = size > 0 && bytes && memchr("\"},]", bytes[0], 4);
                if ((!wants_short || pass || is_closer) && mf_random_below(random, (uint64_t)++n) == 0) {
                    chosen = i;
                }
            }
        }
    }
    return chosen;
}

static void run(const mf_tokenizer *tok, const mf_guide_vocab *vocab, const char *name, mf_guide_program *program, int32_t eos)
{
    static times cold, first, warm, accept;
    int32_t vocab_size = mf_tokenizer_vocab_size(tok) > eos + 1 ? mf_tokenizer_vocab_size(tok) : eos + 1;
    uint32_t *mask = calloc((size_t)vocab_size / 32 + 1, sizeof *mask);
    mf_error err = { 0 };
    (void)vocab;
    cold.count = first.count = warm.count = accept.count = 0;
    for (int round = 0; round < 8; round++) {
        uint64_t random = (uint64_t)round;
        mf_guide_state *state;
        if (mf_guide_state_open(program, &state, &err) != MF_OK) {
            exit(1);
        }
        for (int i = 0; i < MAX_STEPS; i++) {
            int64_t t0 = mf_now_ns();
            mf_guide_state_fill(state, mask, vocab_size);
            int64_t t1 = mf_now_ns();
            mf_guide_state_fill(state, mask, vocab_size);
            int64_t t2 = mf_now_ns();
            times *t = round == 0 ? &cold : &first;
            t->values[t->count++] = (double)(t1 - t0) * 1e-3;
            warm.values[warm.count++] = (double)(t2 - t1) * 1e-3;
            int32_t id = choose(tok, mask, vocab_size, &random);
            if (id < 0 || id == eos) {
                break;
            }
            t0 = mf_now_ns();
            mf_guide_state_accept(state, id);
            accept.values[accept.count++] = (double)(mf_now_ns() - t0) * 1e-3;
        }
        mf_guide_state_close(&state);
    }
    printf("%s\n", name);
    show("first", &cold);
    show("later", &first);
    show("again", &warm);
    show("accept", &accept);
    free(mask);
}

int main(int argc, char **argv)
{
    static const char *const schemas[][2] = {
        { "schema: person", "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\"},\"mail\":{\"type\":"
          "\"string\",\"format\":\"email\"},\"tags\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}}},\"required\":[\"name\",\"age\",\"tags\"]}" },
        { "schema: maxLength 200", "{\"type\":\"object\",\"properties\":{\"text\":{\"type\":\"string\",\"maxLength\":200}},\"required\":[\"text\"]}" },
        { "schema: recursive", "{\"$ref\":\"#/$defs/n\",\"$defs\":{\"n\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"string\"},\"kids\":{\"type\":"
          "\"array\",\"items\":{\"$ref\":\"#/$defs/n\"}}},\"required\":[\"v\",\"kids\"]}}}" },
    };
    static const char *const regexes[][2] = { { "regex: phone", "\\+?\\d{1,3}-\\d{3}-\\d{4}" }, { "regex: words", "[A-Za-z ,.]{1,100}" },
                                              { "regex: text", "(.|\\n)*END" } };
    static const char *const grammars[][2] = {
        { "grammar: sql", "root ::= \"SELECT \" name (\", \" name)* \" FROM \" name\nname ::= [a-z_] [a-z0-9_]*" },
    };
    mf_error err = { 0 };
    mf_tokenizer *tok;
    mf_guide_vocab *vocab;
    if (argc != 2 || mf_tokenizer_open(argv[1], &tok, &err) != MF_OK) {
        fprintf(stderr, "guide_time TOKENIZER.JSON %s\n", err.message);
        return 2;
    }
    int32_t eos = mf_tokenizer_vocab_size(tok) - 1;
    int64_t t0 = mf_now_ns();
    if (mf_guide_vocab_open(tok, &eos, 1, &vocab, &err) != MF_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    printf("vocabulary %d, trie made in %.1f ms\n", eos + 1, (double)(mf_now_ns() - t0) * 1e-6);
    for (int kind = 0; kind < 8; kind++) {
        mf_guide_program *program;
        const char *const *one = kind < 3 ? schemas[kind] : kind < 6 ? regexes[kind - 3] : grammars[0];
        t0 = mf_now_ns();
        mf_status status = kind < 3   ? mf_guide_compile_json_schema(vocab, one[1], strlen(one[1]), NULL, &program, &err)
                           : kind < 6 ? mf_guide_compile_regex(vocab, one[1], strlen(one[1]), NULL, &program, &err)
                           : kind < 7 ? mf_guide_compile_grammar(vocab, one[1], strlen(one[1]), NULL, &program, &err)
                                      : mf_guide_compile_json_object(vocab, &program, &err);
        if (status != MF_OK) {
            fprintf(stderr, "%s: %s\n", one[0], err.message);
            return 1;
        }
        char name[80];
        snprintf(name, sizeof name, "%s, compiled in %.2f ms", kind < 7 ? one[0] : "any object", (double)(mf_now_ns() - t0) * 1e-6);
        run(tok, vocab, name, program, eos);
        mf_guide_program_close(&program);
    }
    mf_guide_vocab_close(&vocab);
    mf_tokenizer_close(&tok);
    return 0;
}
