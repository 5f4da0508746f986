/* bpe.h - byte-pair merging: one pre-token into token ids.  It begins as symbols, one for each byte, or one for each
 * character (bpe_chars.h). */
#ifndef MF_TEXT_BPE_H
#define MF_TEXT_BPE_H

#include <assert.h>
#include <stdbool.h>

#include "text/idmap.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

enum { MF_BPE_MAX_MERGES = 1 << 22 };

typedef struct mf_bpe {
    int32_t byte_ids[256]; /* -1: the vocabulary lacks this byte; such bytes vanish, as they do in tokenizers */
    uint64_t *merges;      /* hash table of left id << 44 | right id << 24 | rank; UINT64_MAX = free */
    uint64_t merges_mask;
    int32_t *rank_ids; /* [num_ranks]: the merged id of each rank */
    size_t num_ranks;
    int32_t num_ids;  /* of the model's own tokens; added ones have higher ids and are no words */
    bool whole_words; /* ignore_merges: a pre-token that is in the vocabulary is taken as it is */
} mf_bpe;

typedef struct mf_bpe_symbol {
    int32_t id;             /* -1: merged into its left neighbour */
    int32_t next, previous; /* symbols still there; -1 = none */
    int32_t rank;           /* of the pair with `next`, while it waits in a queue */
    int32_t queue_next, queue_previous;
} mf_bpe_symbol;

/* Pairs of one rank that wait. */
typedef struct mf_bpe_queue {
    int32_t rank, first, last;
} mf_bpe_queue;

/* Working memory, reused from one pre-token to the next.  Zeroed at first. */
typedef struct mf_bpe_work {
    mf_bpe_symbol *symbols;
    size_t symbols_capacity;
    uint64_t *heap; /* long words: rank << 32 | position of the left symbol; huge ones: rank << 32 | queue */
    size_t heap_size, heap_capacity;
    int32_t *queue_of_rank; /* [num_ranks] */
    mf_bpe_queue *queues;
    size_t num_queues, queues_capacity;
    int32_t *batch;   /* [symbols_capacity] */
    int32_t *initial; /* what a word begins as */
    size_t initial_capacity;
    mf_buffer text;
} mf_bpe_work;

/* Appends the ids of `bytes`. */
mf_status mf_bpe_encode_bytes(const mf_bpe *bpe, const mf_vocab *vocab, const uint8_t *bytes, size_t n,
                              mf_bpe_work *work, mf_ids *ids);
/* Appends what symbols[n], ids of the vocabulary, merge to; they may be overwritten. */
mf_status mf_bpe_merge(const mf_bpe *bpe, int32_t *symbols, size_t n, mf_bpe_work *work, mf_ids *ids);
/* The same for words past the first lengths, in bpe_long.c. */
mf_status mf_bpe_merge_long(const mf_bpe *bpe, const int32_t *symbols, size_t n, mf_bpe_work *work, mf_ids *ids);

/* The id of a pre-token that is a token as it stands, where the model looks for such; else -1. */
int32_t mf_bpe_find_whole(const mf_bpe *bpe, const mf_vocab *vocab, const char *text, size_t size);
mf_status mf_bpe_reserve_initial(mf_bpe_work *work, size_t n);

void mf_bpe_work_close(mf_bpe_work *work);
void mf_bpe_close(mf_bpe *bpe);

mf_status mf_ids_append(mf_ids *ids, int32_t id);

enum { MF_BPE_NO_RANK = INT32_MAX };

enum { MF_BPE_RANK_BITS = 24 };
static_assert(MF_VOCAB_MAX_IDS <= 1 << 20 && MF_BPE_MAX_MERGES < 1 << MF_BPE_RANK_BITS,
              "two ids and a rank fit one word");

static inline int32_t mf_bpe_find_rank(const mf_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 20 | (uint32_t)right;
    for (uint64_t i = mf_idmap_hash(key) & bpe->merges_mask;; i = (i + 1) & bpe->merges_mask) {
        uint64_t slot = bpe->merges[i];
        if (slot >> MF_BPE_RANK_BITS == key) {
            return (int32_t)(slot & ((1u << MF_BPE_RANK_BITS) - 1));
        }
        if (slot == UINT64_MAX) {
            return MF_BPE_NO_RANK;
        }
    }
}

/* Makes the table from keys[i] = left id << 20 | right id with ranks[i], which is i where `ranks` is NULL; several keys
 * may have one rank.  Of two equal keys the later one counts.  MF_ERR_LIMIT when the keys crowd. */
mf_status mf_bpe_set_merges(mf_bpe *bpe, const uint64_t *keys, const int32_t *ranks, size_t num_merges);

#endif
