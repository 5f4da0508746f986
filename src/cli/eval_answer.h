/* eval_answer.h - what a text answers: the filters and the exact match of lm-eval's gsm8k task. */
#ifndef MF_CLI_EVAL_ANSWER_H
#define MF_CLI_EVAL_ANSWER_H

#include <stdbool.h>

#include "base/buffer.h"

/* The first match of `#### (-?[0-9.,]+)`; "[invalid]" when there is none.  Appends to *out. */
mf_status mf_answer_strict(const char *text, size_t size, mf_buffer *out);
/* The last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)`: the last number. */
mf_status mf_answer_flexible(const char *text, size_t size, mf_buffer *out);
/* Commas and $ go, all up to the last "#### ", and a final point; ASCII letters become small.  Appends to *out. */
mf_status mf_answer_normalise(const char *text, size_t size, mf_buffer *out);
/* Both normalised and equal. */
mf_status mf_answer_matches(const char *answer, size_t answer_size, const char *gold, size_t gold_size, bool *matches);

#endif
