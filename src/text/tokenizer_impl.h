/* tokenizer_impl.h - what an open tokenizer holds; tokenizer_load.c or tiktoken.c fills it, tokenizer.c and stream.c
 * use it. */
#ifndef MF_TEXT_TOKENIZER_IMPL_H
#define MF_TEXT_TOKENIZER_IMPL_H

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/bpe_chars.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

enum { MF_TEMPLATE_SEQUENCE = -1, MF_TEMPLATE_MAX_PIECES = 64 };

struct mf_tokenizer {
    mf_vocab vocab;
    mf_bpe bpe;
    mf_added_tokens added;
    uint8_t *flags; /* [vocab.size], MF_TOKEN_* */
    mf_normalizer normalizer;
    mf_pretokenizer pre;
    bool by_chars; /* a word begins as characters and not as bytes */
    mf_bpe_chars chars;
    mf_decoder decoder;
    int32_t template_ids[MF_TEMPLATE_MAX_PIECES]; /* what surrounds a text; MF_TEMPLATE_SEQUENCE, once, is the text */
    size_t template_size;                         /* 0: no template */
};

enum { MF_TOKEN_ADDED = 1, MF_TOKEN_SPECIAL = 2 };

#endif
