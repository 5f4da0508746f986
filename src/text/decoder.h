/* decoder.h - what the tokens' texts stand for: the bytes of each, and how a whole text is joined from them. */
#ifndef MF_TEXT_DECODER_H
#define MF_TEXT_DECODER_H

#include <stdbool.h>

#include "text/normalizer.h"
#include "text/vocab.h"

enum { MF_DECODER_MAX_REPLACEMENTS = 8, MF_DECODER_MAX_GROWTH = 4 };

typedef struct mf_decoder {
    bool byte_level;    /* each character of a token stands for a byte */
    int32_t plain_from; /* with byte_level: ids from this one on stand for their own text */
    mf_replacement replacements[MF_DECODER_MAX_REPLACEMENTS]; /* in each token, one after the other */
    size_t num_replacements;
    bool drops_in_first; /* Metaspace: in the first token of a whole text replacements[0] leaves nothing */
    bool byte_fallback;  /* the token <0x0A> stands for that byte */
    char strip[4];       /* a character that is taken off the beginning of a whole text, up to strip_count times */
    size_t strip_size, strip_count;
} mf_decoder;

/* Fills in the bytes of all tokens.  MF_ERR_INVALID: those of *id are more than MF_VOCAB_MAX_TOKEN_BYTES; MF_ERR_LIMIT:
 * all together are more than MF_DECODER_MAX_GROWTH times what the vocabulary's texts have. */
mf_status mf_decoder_make_bytes(const mf_decoder *decoder, mf_vocab *vocab, int32_t *id);

/* The same for one token whose text is another one. */
mf_status mf_decoder_set_bytes(const mf_decoder *decoder, mf_vocab *vocab, int32_t id, const char *text, size_t size);

/* Appends the bytes of a token that begins a whole text. */
mf_status mf_decoder_first(const mf_decoder *decoder, const char *text, size_t size, mf_buffer *out);
/* How many bytes of a whole text's beginning are taken off. */
size_t mf_decoder_num_stripped(const mf_decoder *decoder, const char *text, size_t size);
void mf_decoder_close(mf_decoder *decoder);

#endif
