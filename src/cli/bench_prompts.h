/* bench_prompts.h - what the serving bench asks: random prompts as vLLM makes them, or prompts from a file. */
#ifndef MF_CLI_BENCH_PROMPTS_H
#define MF_CLI_BENCH_PROMPTS_H

#include "text/tokenizer.h"

typedef struct mf_bench_prompt {
    char *text; /* UTF-8, owned; NULL: ids */
    size_t size;
    int32_t *ids;       /* [prompt_len], owned; NULL: text */
    int64_t prompt_len; /* tokens */
    int64_t output_len; /* tokens to ask for */
} mf_bench_prompt;

typedef struct mf_bench_prompts {
    mf_bench_prompt *items;
    int64_t count;
    int64_t num_inexact; /* random ones whose text does not encode to the drawn length */
} mf_bench_prompts;

/* Random: lengths uniform in [len * (1 - ratio), len * (1 + ratio)]; ids that follow each other from a random one on,
 * without the special ones and those that are no text alone; text and ids are adjusted until the text encodes to the
 * drawn number of tokens.  Of an input length the tokens that the server adds (the one that begins a sequence) are
 * taken off first, as vLLM's client does. */
typedef struct mf_random_prompts {
    int64_t count, input_len, output_len, prefix_len; /* prefix: the same first tokens for all */
    double range_ratio;
    uint64_t seed;
} mf_random_prompts;

mf_status mf_bench_prompts_random(const mf_tokenizer *tok, const mf_random_prompts *options, mf_bench_prompts *out,
                                  mf_error *err);

/* The same as lists of ids below vocab_size, for a server without a tokenizer: lengths are exact. */
mf_status mf_bench_prompts_random_ids(int64_t vocab_size, const mf_random_prompts *options, mf_bench_prompts *out,
                                      mf_error *err);

/* custom: JSON lines {"prompt" (or "question"), "output_tokens"?}; fewer lines than `count`: they are asked again, in
 * order. sharegpt: a JSON list of {"conversations": [{"value"}, {"value"}, ...]}: the first turn asks, the second one's
 * length is asked for; in an order drawn by seed.  output_len > 0 replaces the file's; a custom line without one takes
 * 256. tok NULL: prompt lengths are not known, 0, and sharegpt needs an output_len. */
mf_status mf_bench_prompts_file(const mf_tokenizer *tok, const char *path, bool sharegpt, int64_t count,
                                int64_t output_len, uint64_t seed, mf_bench_prompts *out, mf_error *err);

void mf_bench_prompts_close(mf_bench_prompts *prompts);

#endif
