/* kv_cache.h - which block of the KV store belongs to whom: fixed-size blocks, counted owners, shared prefixes.
 *
 * A pure data structure: it knows token ids and block numbers, neither threads nor requests nor the store's bytes.  Every
 * block is in exactly one state:
 *   free    nobody owns it and it holds nothing of use
 *   used    it has num_owners > 0 sequences; a full one may be keyed, so that others can join
 *   cached  nobody owns it, but it is keyed; least recently released goes first when blocks run out
 * A key is (content of the block before, the block's own tokens).  The content before is named by a serial number that is
 * given to a block when it is keyed and never given again; a match compares tokens and serial, so a collision of hashes can
 * never hand out a wrong block. */
#ifndef MF_ENGINE_KV_CACHE_H
#define MF_ENGINE_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef struct mf_kv_cache mf_kv_cache;

/* One sequence's blocks, in order.  The owner lends the array. */
typedef struct mf_kv_sequence {
    int32_t *blocks;    /* [capacity] */
    int32_t capacity;
    int32_t num_blocks;
    int32_t num_keyed;  /* leading full blocks whose content has a serial */
    uint64_t serial;    /* of the last of them; root while there is none */
    uint64_t root;      /* where its chain of keys begins: sequences of different roots share nothing */
} mf_kv_sequence;

/* The root of a salt; 0 for 0.  No serial ever reaches the others. */
static inline uint64_t mf_kv_root(uint64_t salt)
{
    return salt ? salt | UINT64_C(1) << 63 : 0;
}

typedef struct mf_kv_counts {
    int32_t total, free, used, cached;
} mf_kv_counts;

mf_status mf_kv_cache_open(int32_t num_blocks, int32_t block_size, bool enable_prefix_caching, mf_kv_cache **cache,
                           mf_error *err);
void mf_kv_cache_close(mf_kv_cache **cache);

int32_t mf_kv_cache_block_size(const mf_kv_cache *cache);
mf_kv_counts mf_kv_cache_counts(const mf_kv_cache *cache);
int32_t mf_kv_blocks_for(const mf_kv_cache *cache, int64_t num_tokens);

/* Gives an empty sequence the longest keyed prefix of tokens[0..num_tokens) that leaves at least one token to compute.
 * Returns the number of tokens it covers. */
int32_t mf_kv_match(mf_kv_cache *cache, mf_kv_sequence *sequence, const int32_t *tokens, int32_t num_tokens);

/* Makes room for num_tokens tokens; false, with nothing changed, when there are not enough free and cached blocks. */
bool mf_kv_reserve(mf_kv_cache *cache, mf_kv_sequence *sequence, int64_t num_tokens);

/* Keys the blocks that num_computed tokens have filled.  Call it once their keys and values are in the store. */
void mf_kv_commit(mf_kv_cache *cache, mf_kv_sequence *sequence, const int32_t *tokens, int32_t num_computed);

/* Gives all blocks back.  Keyed ones become cached; with `forget` they lose their keys, for contents that went wrong. */
void mf_kv_release(mf_kv_cache *cache, mf_kv_sequence *sequence, bool forget);

/* Turns cached blocks into free ones. */
void mf_kv_drop_cached(mf_kv_cache *cache);

/* Everything free again, whatever state it was in.  The sequences that owned blocks must be emptied by their owner. */
void mf_kv_reset(mf_kv_cache *cache);

/* free + used + cached == total, every count of owners equals the owners in `sequences`, lists and keys are consistent, and
 * a keyed block's tokens are those of its owner (tokens[i] may be NULL: not compared).  MF_ERR_INTERNAL names the block. */
mf_status mf_kv_check(mf_kv_cache *cache, const mf_kv_sequence *const *sequences, const int32_t *const *tokens,
                      int32_t num_sequences, mf_error *err);

#endif
