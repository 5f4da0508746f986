/* added_tokens.h - tokens that are cut out of a text before anything else happens to it. */
#ifndef MF_TEXT_ADDED_TOKENS_H
#define MF_TEXT_ADDED_TOKENS_H

#include <stdbool.h>

#include "base/buffer.h"
#include "text/idmap.h"

enum { MF_ADDED_MAX_BYTES = 512 }; /* bounds the work per byte of text */

typedef struct mf_added_token {
    int32_t id;
    bool special;
    bool normalized;     /* looked for in the normalised text, in its normal form */
    bool lstrip, rstrip; /* takes the white space before, behind it along */
    bool single_word;    /* only where no word character touches it */
    char *content;       /* owned */
    size_t size;
    char *normal; /* owned; its normal form, which is looked for and decoded to; NULL: the content */
    size_t normal_size;
} mf_added_token;

/* A prefix tree over some of the tokens. */
typedef struct mf_added_trie {
    mf_idmap children; /* node << 8 | byte -> child */
    int32_t *tokens;   /* [num_nodes]: index of the token that ends here, or -1 */
    size_t num_nodes, capacity;
    bool begins[256]; /* bytes that begin a token */
} mf_added_trie;

typedef struct mf_added_tokens {
    mf_added_token *tokens;
    size_t size;
    mf_added_trie raw, normalized;
    mf_added_trie written; /* the special ones of `normalized` as they are written */
} mf_added_tokens;

/* A part of a text: a token, or text between tokens (id -1). */
typedef struct mf_added_part {
    int32_t id;
    size_t start, end;
} mf_added_part;

/* Finds the next part from *state on: leftmost token, longest of those.  A zeroed scan begins a text. */
typedef struct mf_added_scan {
    const mf_added_tokens *added;
    const mf_added_trie *trie;
    const char *text;
    size_t size;
    bool skip_special, skip_all; /* special tokens, all tokens are plain text */
    const size_t *plain_at;      /* ascending; a special token that begins at one of them is plain text */
    size_t num_plain, next_plain;
    size_t base;                 /* what plain_at counts from lies this far before `text` */
    size_t search;               /* where to look for the next token */
    size_t done;                 /* everything before is given out */
    mf_added_part pending;       /* a token, when the text before it was given out first */
    bool has_pending;
} mf_added_scan;

bool mf_added_scan_next(mf_added_scan *scan, mf_added_part *part);

/* true when a special token's text begins at text[at]. */
bool mf_added_special_begins(const mf_added_tokens *added, const char *text, size_t size, size_t at);

/* Builds a trie with room for all tokens' bytes, then adds tokens; of two with the same text the first stays. */
mf_status mf_added_trie_open(mf_added_trie *trie, size_t max_bytes);
mf_status mf_added_trie_add(mf_added_trie *trie, const char *text, size_t size, int32_t token);
void mf_added_tokens_close(mf_added_tokens *added);

#endif
