/* pretokenizer.h - cutting a text into pre-tokens by the steps that a tokenizer.json lists. */
#ifndef MF_TEXT_PRETOKENIZER_H
#define MF_TEXT_PRETOKENIZER_H

#include "text/pattern.h"

/* What becomes of the matches of a step's pattern. */
typedef enum mf_split_behavior {
    MF_SPLIT_ISOLATED, /* each is a piece of its own */
    MF_SPLIT_REMOVED,
    MF_SPLIT_CONTIGUOUS, /* neighbouring matches are one piece */
    MF_SPLIT_MERGED_WITH_PREVIOUS,
    MF_SPLIT_MERGED_WITH_NEXT
} mf_split_behavior;

/* Where a step first puts a blank before a piece that does not begin with one. */
typedef enum mf_prefix_place { MF_PREFIX_NEVER, MF_PREFIX_FIRST, MF_PREFIX_ALWAYS } mf_prefix_place;

typedef struct mf_pretokenizer_step {
    mf_pattern *pattern; /* owned; NULL: does not split */
    mf_split_behavior behavior;
    bool invert;       /* the text between matches is what counts as matched */
    mf_prefix_place prefix; /* FIRST: only before what begins the whole text */
    uint32_t blank;         /* what blanks are written as; 0: as a space */
} mf_pretokenizer_step;

enum { MF_PRETOKENIZER_MAX_STEPS = 16 };

typedef struct mf_pretokenizer {
    mf_pretokenizer_step steps[MF_PRETOKENIZER_MAX_STEPS];
    size_t num_steps;
} mf_pretokenizer;

typedef struct mf_piece {
    uint32_t start, end; /* in code points */
} mf_piece;

typedef struct mf_piece_list {
    mf_piece *data;
    size_t size, capacity;
} mf_piece_list;

/* Working memory and the result; zeroed at first, reused from text to text. */
typedef struct mf_pretokens {
    uint32_t *points; /* the text's code points, with the spaces that steps have put in */
    size_t num_points;
    mf_piece_list pieces; /* none is empty */
    uint64_t steps;       /* work of the patterns for this text: see pattern.h */

    uint32_t *other_points;
    uint8_t *symbols;
    size_t capacity;       /* of points and symbols */
    size_t other_capacity; /* of other_points */
    mf_piece_list next, cuts;
    mf_matcher matcher;
} mf_pretokens;

/* `begins`: this part of a text is its beginning. */
mf_status mf_pretokenizer_run(const mf_pretokenizer *pre, const char *text, size_t size, bool begins,
                              mf_pretokens *out);
void mf_pretokens_close(mf_pretokens *out);
void mf_pretokenizer_close(mf_pretokenizer *pre);

#endif
