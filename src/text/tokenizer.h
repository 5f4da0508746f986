/* tokenizer.h - text to token ids and back, from a Hugging Face tokenizer.json: byte-pair encoding that begins with
 * bytes or, as SentencePiece's does, with characters; or from a tiktoken file (tiktoken.h).
 *
 * The ids equal those of Hugging Face `tokenizers` for every text.  What a file asks for that this does not do is
 * refused when the file is opened, by name; truncation and padding in the file are ignored, as transformers ignores
 * them.  An open tokenizer is read-only: any number of threads may use it at once. */
#ifndef MF_TEXT_TOKENIZER_H
#define MF_TEXT_TOKENIZER_H

#include <stdbool.h>

#include "base/buffer.h"

typedef struct mf_tokenizer mf_tokenizer;

enum {
    MF_TOKENIZER_MAX_FILE_BYTES = 128 << 20,
    MF_TOKENIZER_MAX_TEXT_BYTES = 256 << 20 /* of one mf_tokenizer_encode */
};

/* Opens the file `path` (a tokenizer.json). */
mf_status mf_tokenizer_open(const char *path, mf_tokenizer **out, mf_error *err);

/* The same from memory; `name` stands for the file in messages.  The bytes are not kept. */
mf_status mf_tokenizer_parse(const char *json, size_t size, const char *name, mf_tokenizer **out, mf_error *err);

void mf_tokenizer_close(mf_tokenizer **tok);

typedef struct mf_ids {
    int32_t *data; /* owned */
    size_t size, capacity;
} mf_ids;

void mf_ids_close(mf_ids *ids); /* a zeroed one is fine */

enum {
    MF_ENCODE_ADD_SPECIAL = 1, /* run the post-processor, which adds tokens such as the one that begins a sequence */
    MF_ENCODE_NO_SPECIAL_TOKENS = 2, /* the text of special tokens is plain text (tokenizers' encode_special_tokens) */
    MF_ENCODE_NO_ADDED_TOKENS = 4    /* the text of any added token is plain text: for what a user wrote */
};

/* Appends the ids of `text`, which must be valid UTF-8 (MF_ERR_INVALID names the first wrong byte).  On failure *ids is
 * as it was.  Time is linear in size but for a logarithm. */
mf_status mf_tokenizer_encode(const mf_tokenizer *tok, const char *text, size_t size, unsigned flags, mf_ids *ids,
                              mf_error *err);

/* The same where the special tokens' texts that begin at plain_at[num_plain], ascending byte offsets, are plain text: what a
 * user wrote, between what a template wrote. */
mf_status mf_tokenizer_encode_mixed(const mf_tokenizer *tok, const char *text, size_t size, unsigned flags, const size_t *plain_at,
                                    size_t num_plain, mf_ids *ids, mf_error *err);
bool mf_tokenizer_special_begins(const mf_tokenizer *tok, const char *text, size_t size, size_t at); /* at text[at] */

/* Appends the text of ids, always valid UTF-8: of bytes that are none, each maximal run that could begin a character
 * becomes one U+FFFD (where tokenizers makes one of each byte of a run of <0xXX> tokens that is not valid as a whole).
 * They are taken as a whole text: where the file's decoder strips a blank from its beginning, that is gone; a stream
 * (stream.h) keeps it. Special tokens are left out with skip_special whatever their normal form.  An id outside the
 * vocabulary is MF_ERR_INVALID.  On failure *out is as it was. */
mf_status mf_tokenizer_decode(const mf_tokenizer *tok, const int32_t *ids, size_t n, bool skip_special, mf_buffer *out,
                              mf_error *err);

int32_t mf_tokenizer_vocab_size(const mf_tokenizer *tok); /* highest id + 1; every id below has a token */
int32_t mf_tokenizer_token_id(const mf_tokenizer *tok,
                              const char *text); /* of a vocabulary string; -1 when there is none */

/* The token as the vocabulary writes it, NUL-terminated, and the bytes it decodes to behind others, which may be none.
 * Both live as long as the tokenizer; NULL for an id outside the vocabulary. */
const char *mf_tokenizer_token_text(const mf_tokenizer *tok, int32_t id);
const char *mf_tokenizer_token_bytes(const mf_tokenizer *tok, int32_t id, size_t *size);

bool mf_tokenizer_is_special(const mf_tokenizer *tok, int32_t id); /* false outside the vocabulary */
bool mf_tokenizer_is_added(const mf_tokenizer *tok, int32_t id);   /* an added token, special or not */

#endif
