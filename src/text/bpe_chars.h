/* bpe_chars.h - byte-pair merging of characters: how SentencePiece's vocabularies begin a word.
 *
 * A character that is a token is a symbol; any other is the tokens <0xXX> of its bytes, or else the unknown token. */
#ifndef MF_TEXT_BPE_CHARS_H
#define MF_TEXT_BPE_CHARS_H

#include "text/bpe.h"

typedef struct mf_bpe_chars {
    int32_t ascii[128];    /* -1: not a token */
    int32_t byte_ids[256]; /* of <0xXX> */
    bool byte_fallback;    /* use them */
    int32_t unk_id;        /* -1: what is unknown vanishes */
    bool fuse_unk;         /* one for a run of unknown characters */
    int32_t cut_id;        /* no merge joins this symbol to another one before it: a word may be cut there; -1 = none */
} mf_bpe_chars;

/* Fills in what the vocabulary says, once the merges are there; byte_fallback, unk_id and fuse_unk are the caller's. */
void mf_bpe_chars_prepare(mf_bpe_chars *chars, const mf_bpe *bpe, const mf_vocab *vocab);

/* Appends the ids of a word, valid UTF-8 and not empty. */
mf_status mf_bpe_encode_chars(const mf_bpe_chars *chars, const mf_bpe *bpe, const mf_vocab *vocab, const char *text,
                              size_t size, mf_bpe_work *work, mf_ids *ids);

#endif
