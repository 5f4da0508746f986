/* tokenizer_json.h - the two large members of a tokenizer.json, read without building a tree.
 *
 * "model.vocab" and "model.merges" hold nearly all of the file, half a million values and more.  As a JSON tree they
 * would take ten times the file's size; here they are read in place, strictly, and the rest of the file goes to
 * mf_json_parse. */
#ifndef MF_TEXT_TOKENIZER_JSON_H
#define MF_TEXT_TOKENIZER_JSON_H

#include "base/buffer.h"
#include "base/json.h"

typedef struct mf_json_span {
    size_t start, end; /* bytes of the value; 0, 0 = absent */
} mf_json_span;

/* Parses the file with vocab and merges emptied ({} and []); their values' places are returned. */
mf_status mf_tokenizer_json_parse(const char *json, size_t size, const char *name, json_t **root, mf_json_span *vocab,
                                  mf_json_span *merges, mf_error *err);

/* A cursor over one of the spans. */
typedef struct mf_json_cursor {
    const char *json; /* the whole file, valid UTF-8 */
    size_t at, end;
    const char *name, *member; /* for messages */
    mf_buffer text;            /* the last string */
    mf_buffer second;          /* the second of a pair */
    bool begun;
    mf_error *err;
} mf_json_cursor;

/* Next "token": id.  *more is false at the end of the object.  The token is in cursor->text. */
mf_status mf_json_next_token(mf_json_cursor *cursor, bool *more, int64_t *id);

/* Next merge: ["a", "b"] into cursor->text and cursor->second, or "a b" into cursor->text alone (*pair is false). */
mf_status mf_json_next_merge(mf_json_cursor *cursor, bool *more, bool *pair);

void mf_json_cursor_close(mf_json_cursor *cursor);

#endif
