/* kv_cache.c - blocks, owners, keys: see kv_cache.h.
 *
 * Free and cached blocks each stand in one doubly linked list; keyed blocks also in a chained hash table.  Everything is
 * allocated at open. */
#include "engine/kv_cache.h"

#include <string.h>

#include "base/random.h"
#include "base/sys.h"

enum { NONE = -1 };

typedef enum block_state { BLOCK_FREE = 0, BLOCK_USED, BLOCK_CACHED } block_state;

typedef struct block {
    int32_t num_owners;
    int32_t previous, next; /* in the free or cached list */
    int32_t chain_next;     /* in the hash table */
    uint64_t serial;        /* of its content; 0 = not keyed */
    uint64_t parent_serial; /* of the content before */
    uint64_t hash;
    uint8_t state;
} block;

typedef struct block_list {
    int32_t head, tail, count;
} block_list;

struct mf_kv_cache {
    int32_t num_blocks, block_size;
    bool enable_prefix_caching;
    block *blocks;
    int32_t *tokens;   /* [num_blocks, block_size] of keyed blocks */
    int32_t *buckets;  /* [num_buckets] */
    uint32_t num_buckets; /* a power of two */
    block_list free_list, cached_list; /* the cached list's head goes first */
    int32_t num_used, num_keyed;
    uint64_t last_serial;
    int32_t *scratch;  /* [num_blocks], for mf_kv_check */
};

/* ---- lists -------------------------------------------------------------------------------------------------------- */

static void list_append(mf_kv_cache *cache, block_list *list, int32_t id)
{
    block *b = &cache->blocks[id];
    b->previous = list->tail;
    b->next = NONE;
    if (list->tail == NONE) {
        list->head = id;
    } else {
        cache->blocks[list->tail].next = id;
    }
    list->tail = id;
    list->count++;
}

static void list_remove(mf_kv_cache *cache, block_list *list, int32_t id)
{
    block *b = &cache->blocks[id];
    if (b->previous == NONE) {
        list->head = b->next;
    } else {
        cache->blocks[b->previous].next = b->next;
    }
    if (b->next == NONE) {
        list->tail = b->previous;
    } else {
        cache->blocks[b->next].previous = b->previous;
    }
    list->count--;
}

/* ---- keys --------------------------------------------------------------------------------------------------------- */

static uint64_t key_hash(uint64_t parent_serial, const int32_t *tokens, int32_t n)
{
    uint64_t h = mf_random_mix(parent_serial + 0x9e3779b97f4a7c15u);
    for (int32_t i = 0; i < n; i++) {
        h = mf_random_mix(h ^ (uint32_t)tokens[i]) + 0x9e3779b97f4a7c15u;
    }
    return h;
}

static const int32_t *block_tokens(const mf_kv_cache *cache, int32_t id)
{
    return cache->tokens + (size_t)id * (size_t)cache->block_size;
}

static int32_t key_find(const mf_kv_cache *cache, uint64_t hash, uint64_t parent_serial, const int32_t *tokens)
{
    for (int32_t id = cache->buckets[hash & (cache->num_buckets - 1)]; id != NONE; id = cache->blocks[id].chain_next) {
        const block *b = &cache->blocks[id];
        if (b->hash == hash && b->parent_serial == parent_serial &&
            memcmp(block_tokens(cache, id), tokens, (size_t)cache->block_size * sizeof *tokens) == 0) {
            return id;
        }
    }
    return NONE;
}

static void key_add(mf_kv_cache *cache, int32_t id, uint64_t hash, uint64_t parent_serial, const int32_t *tokens)
{
    block *b = &cache->blocks[id];
    int32_t *bucket = &cache->buckets[hash & (cache->num_buckets - 1)];
    memcpy(cache->tokens + (size_t)id * (size_t)cache->block_size, tokens, (size_t)cache->block_size * sizeof *tokens);
    b->hash = hash;
    b->parent_serial = parent_serial;
    b->serial = ++cache->last_serial;
    b->chain_next = *bucket;
    *bucket = id;
    cache->num_keyed++;
}

static void key_remove(mf_kv_cache *cache, int32_t id)
{
    block *b = &cache->blocks[id];
    int32_t *link = &cache->buckets[b->hash & (cache->num_buckets - 1)];
    while (*link != NONE && *link != id) {
        link = &cache->blocks[*link].chain_next;
    }
    if (*link == id) {
        *link = b->chain_next;
    }
    b->chain_next = NONE;
    b->serial = 0;
    cache->num_keyed--;
}

/* ---- open, close -------------------------------------------------------------------------------------------------- */

void mf_kv_reset(mf_kv_cache *cache)
{
    cache->free_list = (block_list){ NONE, NONE, 0 };
    cache->cached_list = (block_list){ NONE, NONE, 0 };
    cache->num_used = 0;
    cache->num_keyed = 0;
    memset(cache->buckets, 0xff, (size_t)cache->num_buckets * sizeof *cache->buckets);
    for (int32_t id = 0; id < cache->num_blocks; id++) {
        cache->blocks[id] = (block){ .chain_next = NONE, .state = BLOCK_FREE };
        list_append(cache, &cache->free_list, id);
    }
}

mf_status mf_kv_cache_open(int32_t num_blocks, int32_t block_size, bool enable_prefix_caching, mf_kv_cache **out,
                           mf_error *err)
{
    *out = NULL;
    size_t num_tokens;
    if (num_blocks < 1 || num_blocks > 1 << 28 || block_size < 1 || block_size > 1 << 16 ||
        !mf_mul_ok((size_t)num_blocks, (size_t)block_size, &num_tokens)) {
        return mf_fail(err, MF_ERR_INVALID, "KV cache: expected 1 to 2^28 blocks of 1 to 65536 tokens; got %d of %d",
                       num_blocks, block_size);
    }
    mf_kv_cache *cache = mf_alloc_zero(sizeof *cache);
    if (!cache) {
        return mf_fail(err, MF_ERR_NOMEM, "KV cache: out of memory");
    }
    cache->num_blocks = num_blocks;
    cache->block_size = block_size;
    cache->enable_prefix_caching = enable_prefix_caching;
    cache->num_buckets = 16;
    while (cache->num_buckets < (uint32_t)num_blocks) {
        cache->num_buckets *= 2;
    }
    cache->blocks = mf_alloc_array((size_t)num_blocks, sizeof *cache->blocks);
    cache->buckets = mf_alloc_array(cache->num_buckets, sizeof *cache->buckets);
    cache->scratch = mf_alloc_array((size_t)num_blocks, sizeof *cache->scratch);
    cache->tokens = mf_alloc_array(enable_prefix_caching ? num_tokens : 1, sizeof *cache->tokens);
    if (!cache->blocks || !cache->buckets || !cache->scratch || !cache->tokens) {
        mf_kv_cache_close(&cache);
        return mf_fail(err, MF_ERR_NOMEM, "KV cache: out of memory for the bookkeeping of %d blocks", num_blocks);
    }
    mf_kv_reset(cache);
    *out = cache;
    return MF_OK;
}

void mf_kv_cache_close(mf_kv_cache **out)
{
    mf_kv_cache *cache = *out;
    if (cache) {
        mf_free(cache->blocks);
        mf_free(cache->buckets);
        mf_free(cache->scratch);
        mf_free(cache->tokens);
        mf_free(cache);
        *out = NULL;
    }
}

int32_t mf_kv_cache_block_size(const mf_kv_cache *cache)
{
    return cache->block_size;
}

mf_kv_counts mf_kv_cache_counts(const mf_kv_cache *cache)
{
    return (mf_kv_counts){ .total = cache->num_blocks, .free = cache->free_list.count, .used = cache->num_used,
                           .cached = cache->cached_list.count };
}

int32_t mf_kv_blocks_for(const mf_kv_cache *cache, int64_t num_tokens)
{
    int64_t n = (num_tokens + cache->block_size - 1) / cache->block_size;
    return n > INT32_MAX ? INT32_MAX : (int32_t)n;
}

/* ---- owning ------------------------------------------------------------------------------------------------------- */

static void block_join(mf_kv_cache *cache, int32_t id)
{
    block *b = &cache->blocks[id];
    if (b->state == BLOCK_CACHED) {
        list_remove(cache, &cache->cached_list, id);
        b->state = BLOCK_USED;
        cache->num_used++;
    }
    b->num_owners++;
}

/* A free block, else the cached one that was released longest ago; the caller has made sure that there is one. */
static int32_t block_take(mf_kv_cache *cache)
{
    int32_t id = cache->free_list.head;
    if (id != NONE) {
        list_remove(cache, &cache->free_list, id);
    } else {
        id = cache->cached_list.head;
        list_remove(cache, &cache->cached_list, id);
        key_remove(cache, id);
    }
    cache->blocks[id].state = BLOCK_USED;
    cache->blocks[id].num_owners = 1;
    cache->num_used++;
    return id;
}

static void block_leave(mf_kv_cache *cache, int32_t id, bool forget)
{
    block *b = &cache->blocks[id];
    if (forget && b->serial) {
        key_remove(cache, id);
    }
    if (--b->num_owners > 0) {
        return;
    }
    cache->num_used--;
    if (b->serial) {
        b->state = BLOCK_CACHED;
        list_append(cache, &cache->cached_list, id);
    } else {
        b->state = BLOCK_FREE;
        list_append(cache, &cache->free_list, id);
    }
}

int32_t mf_kv_match(mf_kv_cache *cache, mf_kv_sequence *sequence, const int32_t *tokens, int32_t num_tokens)
{
    if (!cache->enable_prefix_caching || sequence->num_blocks != 0 || num_tokens < 1) {
        return 0;
    }
    /* The last token must run, or there would be no logits to sample from. */
    int32_t limit = (num_tokens - 1) / cache->block_size;
    limit = limit < sequence->capacity ? limit : sequence->capacity;
    while (sequence->num_blocks < limit) {
        const int32_t *part = tokens + (size_t)sequence->num_blocks * (size_t)cache->block_size;
        uint64_t hash = key_hash(sequence->serial, part, cache->block_size);
        int32_t id = key_find(cache, hash, sequence->serial, part);
        if (id == NONE) {
            break;
        }
        block_join(cache, id);
        sequence->blocks[sequence->num_blocks++] = id;
        sequence->num_keyed = sequence->num_blocks;
        sequence->serial = cache->blocks[id].serial;
    }
    return sequence->num_blocks * cache->block_size;
}

bool mf_kv_reserve(mf_kv_cache *cache, mf_kv_sequence *sequence, int64_t num_tokens)
{
    int32_t need = mf_kv_blocks_for(cache, num_tokens);
    if (need > sequence->capacity ||
        need - sequence->num_blocks > cache->free_list.count + cache->cached_list.count) {
        return false;
    }
    while (sequence->num_blocks < need) {
        sequence->blocks[sequence->num_blocks++] = block_take(cache);
    }
    return true;
}

void mf_kv_commit(mf_kv_cache *cache, mf_kv_sequence *sequence, const int32_t *tokens, int32_t num_computed)
{
    if (!cache->enable_prefix_caching) {
        return;
    }
    int32_t num_full = num_computed / cache->block_size;
    while (sequence->num_keyed < num_full && sequence->num_keyed < sequence->num_blocks) {
        int32_t id = sequence->blocks[sequence->num_keyed];
        const int32_t *part = tokens + (size_t)sequence->num_keyed * (size_t)cache->block_size;
        uint64_t hash = key_hash(sequence->serial, part, cache->block_size);
        int32_t twin = key_find(cache, hash, sequence->serial, part);
        if (twin == NONE) {
            key_add(cache, id, hash, sequence->serial, part);
            twin = id;
        }
        /* When two sequences computed the same block side by side, the first one's stays keyed and the later blocks of
         * both hang off its serial. */
        sequence->serial = cache->blocks[twin].serial;
        sequence->num_keyed++;
    }
}

void mf_kv_release(mf_kv_cache *cache, mf_kv_sequence *sequence, bool forget)
{
    /* From the end, so that a prefix is evicted after what continues it. */
    while (sequence->num_blocks > 0) {
        block_leave(cache, sequence->blocks[--sequence->num_blocks], forget);
    }
    sequence->num_keyed = 0;
    sequence->serial = sequence->root;
}

void mf_kv_drop_cached(mf_kv_cache *cache)
{
    while (cache->cached_list.head != NONE) {
        int32_t id = cache->cached_list.head;
        list_remove(cache, &cache->cached_list, id);
        key_remove(cache, id);
        cache->blocks[id].state = BLOCK_FREE;
        list_append(cache, &cache->free_list, id);
    }
}

/* ---- checking ----------------------------------------------------------------------------------------------------- */

static mf_status check_list(const mf_kv_cache *cache, const block_list *list, block_state state, const char *name,
                            mf_error *err)
{
    int32_t count = 0;
    int32_t previous = NONE;
    for (int32_t id = list->head; id != NONE; id = cache->blocks[id].next) {
        if (id < 0 || id >= cache->num_blocks || count >= cache->num_blocks) {
            return mf_fail(err, MF_ERR_INTERNAL, "KV cache: the %s list is broken at block %d", name, id);
        }
        if (cache->blocks[id].state != state || cache->blocks[id].previous != previous) {
            return mf_fail(err, MF_ERR_INTERNAL, "KV cache: block %d does not belong into the %s list", id, name);
        }
        previous = id;
        count++;
    }
    if (count != list->count || list->tail != previous) {
        return mf_fail(err, MF_ERR_INTERNAL, "KV cache: the %s list counts %d blocks and has %d", name, list->count, count);
    }
    return MF_OK;
}

static mf_status check_keys(const mf_kv_cache *cache, mf_error *err)
{
    int32_t count = 0;
    for (uint32_t i = 0; i < cache->num_buckets; i++) {
        for (int32_t id = cache->buckets[i]; id != NONE; id = cache->blocks[id].chain_next) {
            if (id < 0 || id >= cache->num_blocks || ++count > cache->num_blocks) {
                return mf_fail(err, MF_ERR_INTERNAL, "KV cache: hash chain %u is broken", i);
            }
            const block *b = &cache->blocks[id];
            if (!b->serial || b->serial > cache->last_serial || (b->parent_serial >= b->serial && !(b->parent_serial >> 63)) ||
                (b->hash & (cache->num_buckets - 1)) != i ||
                b->hash != key_hash(b->parent_serial, block_tokens(cache, id), cache->block_size)) {
                return mf_fail(err, MF_ERR_INTERNAL, "KV cache: block %d has a wrong key", id);
            }
        }
    }
    return count == cache->num_keyed
               ? MF_OK
               : mf_fail(err, MF_ERR_INTERNAL, "KV cache: %d keyed blocks counted, %d found", cache->num_keyed, count);
}

static mf_status check_owner(mf_kv_cache *cache, const mf_kv_sequence *s, const int32_t *tokens, mf_error *err)
{
    if (s->num_blocks < 0 || s->num_blocks > s->capacity || s->num_keyed > s->num_blocks) {
        return mf_fail(err, MF_ERR_INTERNAL, "KV cache: a sequence has %d blocks, %d keyed, of at most %d", s->num_blocks,
                       s->num_keyed, s->capacity);
    }
    for (int32_t i = 0; i < s->num_blocks; i++) {
        int32_t id = s->blocks[i];
        if (id < 0 || id >= cache->num_blocks) {
            return mf_fail(err, MF_ERR_INTERNAL, "KV cache: a sequence owns block %d of %d", id, cache->num_blocks);
        }
        cache->scratch[id]++;
        if (tokens && cache->blocks[id].serial &&
            memcmp(block_tokens(cache, id), tokens + (size_t)i * (size_t)cache->block_size,
                   (size_t)cache->block_size * sizeof *tokens) != 0) {
            return mf_fail(err, MF_ERR_INTERNAL, "KV cache: block %d holds other tokens than its owner's", id);
        }
    }
    return MF_OK;
}

mf_status mf_kv_check(mf_kv_cache *cache, const mf_kv_sequence *const *sequences, const int32_t *const *tokens,
                      int32_t num_sequences, mf_error *err)
{
    mf_kv_counts n = mf_kv_cache_counts(cache);
    if (n.free + n.used + n.cached != n.total) {
        return mf_fail(err, MF_ERR_INTERNAL, "KV cache: %d free + %d used + %d cached is not %d", n.free, n.used, n.cached,
                       n.total);
    }
    MF_TRY(check_list(cache, &cache->free_list, BLOCK_FREE, "free", err));
    MF_TRY(check_list(cache, &cache->cached_list, BLOCK_CACHED, "cached", err));
    MF_TRY(check_keys(cache, err));
    memset(cache->scratch, 0, (size_t)cache->num_blocks * sizeof *cache->scratch);
    for (int32_t i = 0; i < num_sequences; i++) {
        MF_TRY(check_owner(cache, sequences[i], tokens ? tokens[i] : NULL, err));
    }
    int32_t num_used = 0;
    for (int32_t id = 0; id < cache->num_blocks; id++) {
        const block *b = &cache->blocks[id];
        num_used += b->state == BLOCK_USED;
        if (b->num_owners != cache->scratch[id]) {
            return mf_fail(err, MF_ERR_INTERNAL, "KV cache: block %d counts %d owners and has %d", id, b->num_owners,
                           cache->scratch[id]);
        }
        if ((b->state == BLOCK_USED) != (b->num_owners > 0) || (b->state == BLOCK_FREE && b->serial) ||
            (b->state == BLOCK_CACHED && !b->serial)) {
            return mf_fail(err, MF_ERR_INTERNAL, "KV cache: block %d has state %d with %d owners", id, b->state,
                           b->num_owners);
        }
    }
    return num_used == cache->num_used
               ? MF_OK
               : mf_fail(err, MF_ERR_INTERNAL, "KV cache: %d used blocks counted, %d found", cache->num_used, num_used);
}
