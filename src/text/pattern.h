/* pattern.h - the regular expressions of pre-tokenizers, matched in linear time.
 *
 * A pattern is written in the flavour that Hugging Face `tokenizers` uses (Oniguruma's Ruby syntax; leftmost, first
 * alternative first).  Compiling turns each class into a set of code points and splits Unicode into the few groups that
 * the sets tell apart, one byte ("symbol") each; matching then walks bytes and knows nothing of Unicode.
 *
 * Matching backtracks, but remembers which program states have failed at which position, so each state is tried at most
 * once per position over a whole text, however often the search starts anew: the work is bounded by program length x
 * text length for every pattern that compiles, and the stack is on the heap.  What this would not cover
 * (back-references, atomic groups, repeats of something that can be empty) is refused by mf_pattern_compile, as is
 * anything it does not know. */
#ifndef MF_TEXT_PATTERN_H
#define MF_TEXT_PATTERN_H

#include "base/error.h"
#include "text/charset.h"

typedef struct mf_pattern mf_pattern;

/* MF_ERR_UNSUPPORTED or MF_ERR_FORMAT name the pattern's text, the byte and the construct.  `text` must be valid UTF-8.
 */
mf_status mf_pattern_compile(const char *text, size_t size, mf_pattern **out, mf_error *err);
mf_status mf_pattern_compile_literal(const char *text, size_t size, mf_pattern **out, mf_error *err);
mf_status mf_pattern_compile_set(const mf_charset *set, mf_pattern **out, mf_error *err); /* one character of the set */
void mf_pattern_close(mf_pattern **pattern);

/* symbols[i] = the group of code_points[i]. */
void mf_pattern_map(const mf_pattern *pattern, const uint32_t *code_points, size_t n, uint8_t *symbols);

/* Program states times positions bound the work: mf_matcher.steps never passes
 * mf_pattern_size(pattern) * (length + 1) * 4 for one text. */
size_t mf_pattern_size(const mf_pattern *pattern);

typedef struct mf_match_entry mf_match_entry;
typedef struct mf_match_mark mf_match_mark;

/* The working memory of matching; zeroed at first, reusable for any pattern and text.  One thread at a time. */
typedef struct mf_matcher {
    const mf_pattern *pattern;
    const uint8_t *symbols; /* borrowed */
    uint64_t *memo;         /* [(length + 1) * words of the pattern]: states that failed at a position */
    size_t memo_capacity;
    mf_match_entry *stack;
    size_t stack_size, stack_capacity, stack_limit;
    mf_match_mark *trail;
    size_t trail_size, trail_capacity;
    uint64_t steps; /* work done since the last begin */
} mf_matcher;

/* A new text of `length` symbols, which must stay in place while it is searched. */
mf_status mf_matcher_begin(mf_matcher *matcher, const mf_pattern *pattern, const uint8_t *symbols, size_t length);

/* Searches piece [low, high) of the text from position `from` on; the piece's ends are the text's ends to the pattern.
 * *found says whether *start and *end were set.  Within a piece `from` must not decrease; pieces come in ascending
 * order and do not overlap; mf_matcher_end_piece goes between two pieces. */
mf_status mf_matcher_find(mf_matcher *matcher, size_t low, size_t high, size_t from, bool *found, size_t *start,
                          size_t *end);
void mf_matcher_end_piece(mf_matcher *matcher, size_t high);
void mf_matcher_close(mf_matcher *matcher);

#endif
