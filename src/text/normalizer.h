/* normalizer.h - what a tokenizer.json does to a text before cutting it: canonical composition, text put before, text
 * replaced.  Each part of a text between added tokens is normalised by itself. */
#ifndef MF_TEXT_NORMALIZER_H
#define MF_TEXT_NORMALIZER_H

#include <stdbool.h>

#include "base/buffer.h"

typedef enum mf_normalizer_kind {
    MF_NORMALIZER_NFC,
    MF_NORMALIZER_PREPEND, /* `content` before a text that is not empty */
    MF_NORMALIZER_REPLACE  /* each `pattern` by `content` */
} mf_normalizer_kind;

typedef struct mf_replacement {
    char *pattern, *content; /* owned; the pattern is not empty */
    size_t pattern_size, content_size;
} mf_replacement;

typedef struct mf_normalizer_step {
    mf_normalizer_kind kind;
    mf_replacement text;
} mf_normalizer_step;

enum {
    MF_NORMALIZER_MAX_STEPS = 16,
    MF_NORMALIZER_MAX_TEXT = 64,             /* bytes of a pattern or content */
    MF_NORMALIZER_MAX_GROWTH = 16,           /* a normalised text is at most so many times as long, and MAX_TEXT more */
    MF_NORMALIZER_MAX_BYTES = (1 << 29) - 1, /* nor longer than this, which is what the pre-tokenizer takes */
};

typedef struct mf_normalizer {
    mf_normalizer_step steps[MF_NORMALIZER_MAX_STEPS];
    size_t num_steps;
} mf_normalizer;

typedef struct mf_normalizer_work {
    mf_buffer buffers[2]; /* zeroed at first */
} mf_normalizer_work;

/* *out is the text itself where nothing had to be done, else it lies in *work until the next run.  MF_ERR_LIMIT: it
 * grew beyond MF_NORMALIZER_MAX_BYTES. */
mf_status mf_normalizer_run(const mf_normalizer *normalizer, const char *text, size_t size, mf_normalizer_work *work,
                            const char **out, size_t *out_size);
void mf_normalizer_work_close(mf_normalizer_work *work);
void mf_normalizer_close(mf_normalizer *normalizer);

/* Appends the text with each pattern, from left to right, replaced. */
mf_status mf_replacement_run(const mf_replacement *replacement, const char *text, size_t size, mf_buffer *out);
void mf_replacement_close(mf_replacement *replacement);

#endif
