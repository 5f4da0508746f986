/* guide.h - constrained decoding: a JSON schema, a regular expression, a list of choices or a grammar, compiled once, says at
 * each step which token ids may come next.
 *
 * A program may be used by any threads at once (counted references): what it was compiled to does not change, and a mutex guards
 * the states and masks that it makes as they are met; a call on one of its states holds it for some microseconds.  A state belongs
 * to one sequence.  Compiling is bounded in nodes, depth and time and never recurses on input; a step is bounded in work: a guide
 * that would need more than some 0.2 s, or more than 512 readings of one text, allows nothing from then on, which ends the request.
 *
 * JSON: properties in the schema's order; an object with `properties` has no others unless additionalProperties says so; between
 * tokens stand nothing, one blank, or a line end with up to 32 blanks or tabs; numbers have up to 18 digits and exponents two.
 * oneOf is read as anyOf.  Regular expressions, `pattern` too, match whole texts; \d \w \s are ASCII, \D \W \S what is neither
 * that nor Unicode's.  Grammars are EBNF (`root ::= ...`, as vLLM and llama.cpp take it), without left recursion.  A text nests up
 * to 400 calls deep (for JSON: 400 arrays or objects); what could not be ended within that is not begun. */
#ifndef MF_TEXT_GUIDE_H
#define MF_TEXT_GUIDE_H

#include "text/tokenizer.h"

typedef struct mf_guide_program mf_guide_program;
typedef struct mf_guide_state mf_guide_state;

/* The vocabulary as a trie of bytes, made once per tokenizer (about 100 ms for 150,000 tokens) and shared by all programs, which
 * it must outlive; the tokenizer may go.
 * Special and added tokens are not part of it: only eos_token_ids end a text. */
typedef struct mf_guide_vocab mf_guide_vocab;
mf_status mf_guide_vocab_open(const mf_tokenizer *tok, const int32_t *eos_token_ids, int32_t num_eos_token_ids,
                              mf_guide_vocab **out, mf_error *err);
void mf_guide_vocab_close(mf_guide_vocab **vocab);

typedef struct mf_guide_limits {
    size_t source_bytes;  /* 0 = 64 KiB */
    int32_t depth;        /* 0 = 64 */
    int32_t states;       /* 0 = 100,000 */
    int64_t compile_ns;   /* 0 = 100 ms */
} mf_guide_limits;

/* MF_ERR_INVALID or MF_ERR_UNSUPPORTED names the keyword or the byte; MF_ERR_LIMIT the limit.  limits may be NULL. */
mf_status mf_guide_compile_json_schema(const mf_guide_vocab *vocab, const char *schema, size_t size,
                                       const mf_guide_limits *limits, mf_guide_program **out, mf_error *err);
mf_status mf_guide_compile_json_object(const mf_guide_vocab *vocab, mf_guide_program **out, mf_error *err);
mf_status mf_guide_compile_regex(const mf_guide_vocab *vocab, const char *pattern, size_t size, const mf_guide_limits *limits,
                                 mf_guide_program **out, mf_error *err);
mf_status mf_guide_compile_choice(const mf_guide_vocab *vocab, const char *const *choices, size_t num_choices,
                                  const mf_guide_limits *limits, mf_guide_program **out, mf_error *err);
mf_status mf_guide_compile_grammar(const mf_guide_vocab *vocab, const char *ebnf, size_t size, const mf_guide_limits *limits,
                                   mf_guide_program **out, mf_error *err);
mf_guide_program *mf_guide_program_ref(mf_guide_program *program);
void mf_guide_program_close(mf_guide_program **program); /* gives one reference back */

mf_status mf_guide_state_open(mf_guide_program *program, mf_guide_state **out, mf_error *err); /* holds a reference */
void mf_guide_state_close(mf_guide_state **state);
/* mask [(vocab_size + 31) / 32]: bit i = id i may come next; ids past the tokenizer's are 0.  Allocates nothing. */
void mf_guide_state_fill(mf_guide_state *state, uint32_t *mask, int32_t vocab_size);
void mf_guide_state_accept(mf_guide_state *state, int32_t token_id);
bool mf_guide_state_may_end(const mf_guide_state *state); /* what was accepted so far is a whole text */

#endif
