/* tokenizer_load.h - how the parts of opening a tokenizer.json fit together; for tokenizer_*.c only. */
#ifndef MF_TEXT_TOKENIZER_LOAD_H
#define MF_TEXT_TOKENIZER_LOAD_H

#include "base/json.h"
#include "text/tokenizer_impl.h"

typedef struct mf_tokenizer_loader {
    mf_tokenizer *tok;
    const json_t *root;
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

mf_status mf_load_normalizer(mf_tokenizer_loader *l);
mf_status mf_load_pre_tokenizer(mf_tokenizer_loader *l);
mf_status mf_load_post_processor(mf_tokenizer_loader *l);
mf_status mf_load_decoder(mf_tokenizer_loader *l);

#endif
