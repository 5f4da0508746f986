/* tokenizer_load.h - how the parts of opening a tokenizer.json, or a tiktoken file, fit together; for tokenizer_*.c and
 * tiktoken.c only. */
#ifndef MF_TEXT_TOKENIZER_LOAD_H
#define MF_TEXT_TOKENIZER_LOAD_H

#include "base/json.h"
#include "text/tokenizer_impl.h"

typedef struct mf_tokenizer_loader {
    mf_tokenizer *tok;
    const json_t *root; /* of a tokenizer.json */
    const char *name; /* of the file, for messages */
    mf_error *err;
} mf_tokenizer_loader;

/* "NAME: WHERE: expected WHAT; got ..." */
mf_status mf_load_mismatch(const mf_tokenizer_loader *l, const char *where, const char *what, const json_t *got);

/* A member that may be missing or null, which count as false. */
mf_status mf_load_bool(const mf_tokenizer_loader *l, const json_t *object, const char *where, const char *key,
                       bool *value);

/* The "type" of a component, of which `where` is the place.  The object must have it. */
mf_status mf_load_type(const mf_tokenizer_loader *l, const json_t *object, const char *where, const char **type);
mf_status mf_load_unsupported(const mf_tokenizer_loader *l, const char *where, const char *type);

mf_status mf_load_no_memory(const mf_tokenizer_loader *l);

/* Writes out the component `key`, which may be a Sequence (of Sequences, their parts under `list_key`), as a flat list;
 * none when it is missing or null. */
enum { MF_LOAD_MAX_COMPONENTS = 64 };
mf_status mf_load_flatten(const mf_tokenizer_loader *l, const char *key, const char *list_key, const json_t **out,
                          size_t *count);

/* In this order: each looks at what the ones before found. */
mf_status mf_load_normalizer(mf_tokenizer_loader *l);
mf_status mf_load_pre_tokenizer(mf_tokenizer_loader *l);
mf_status mf_load_decoder(mf_tokenizer_loader *l);
mf_status mf_load_added_tokens(mf_tokenizer_loader *l);
mf_status mf_load_post_processor(mf_tokenizer_loader *l);

/* Adds a token to the vocabulary; says what is wrong with it, and where, when it cannot be. */
mf_status mf_load_add_token(const mf_tokenizer_loader *l, const char *where, const char *text, size_t size, int64_t id);

/* Room for `count` added tokens behind the model's own; then each, which is in the vocabulary already; then the end. */
mf_status mf_load_begin_added(mf_tokenizer_loader *l, size_t count);
mf_status mf_load_put_added(mf_tokenizer_loader *l, const char *text, size_t size, int32_t id, mf_added_token **out);
mf_status mf_load_finish_added(mf_tokenizer_loader *l);

/* The merges' table from keys and ranks (see mf_bpe_set_merges). */
mf_status mf_load_set_merges(mf_tokenizer_loader *l, const char *where, const uint64_t *keys, const int32_t *ranks,
                             size_t count);

#endif
