/* bpe.h - byte-pair merging: the bytes of one pre-token into token ids. */
#ifndef MF_TEXT_BPE_H
#define MF_TEXT_BPE_H

#include <stdbool.h>

#include "text/idmap.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

enum { MF_BPE_MAX_MERGES = 1 << 22 };

typedef struct mf_bpe {
    int32_t byte_ids[256]; /* -1: the vocabulary lacks this byte; such bytes vanish, as they do in tokenizers */
    mf_idmap merges;       /* left id << 32 | right id -> rank << 32 | merged id */
    int32_t *rank_ids;     /* [num_merges]: the merged id of each rank */
    size_t num_merges;
    bool whole_words; /* ignore_merges: a pre-token that is in the vocabulary is taken as it is */
} mf_bpe;

typedef struct mf_bpe_symbol {
    int32_t id, next, previous; /* id -1: merged into its left neighbour */
} mf_bpe_symbol;

/* Working memory, reused from one pre-token to the next.  Zeroed at first. */
typedef struct mf_bpe_work {
    mf_bpe_symbol *symbols;
    size_t symbols_capacity;
    uint64_t *heap; /* rank << 32 | position of the left symbol */
    size_t heap_size, heap_capacity;
    mf_buffer text;
} mf_bpe_work;

/* Appends the ids of `bytes`. */
mf_status mf_bpe_encode(const mf_bpe *bpe, const mf_vocab *vocab, const uint8_t *bytes, size_t n, mf_bpe_work *work,
                        mf_ids *ids);
void mf_bpe_work_close(mf_bpe_work *work);
void mf_bpe_close(mf_bpe *bpe);

mf_status mf_ids_append(mf_ids *ids, int32_t id);

#endif
