/* kv_check_test.c - mf_kv_check notices every single damaged field.  Includes the source to reach inside. */
#include "test.h"

#include "engine/kv_cache.c"

enum { BLOCKS = 8, SIZE = 2 };

typedef struct pool {
    mf_kv_cache *cache;
    int32_t storage[BLOCKS];
    mf_kv_sequence owner;
} pool;

/* Blocks of all kinds: used and keyed, used and not keyed, cached, free. */
static void pool_open(pool *p)
{
    static const int32_t first[6] = { 1, 2, 3, 4, 5, 6 };
    static const int32_t second[5] = { 7, 8, 9, 1, 2 };
    mf_error err = { 0 };
    *p = (pool){ .owner = { .blocks = p->storage, .capacity = BLOCKS } };
    CHECK_OK(mf_kv_cache_open(BLOCKS, SIZE, true, &p->cache, &err), err);
    CHECK(mf_kv_reserve(p->cache, &p->owner, 6));
    mf_kv_commit(p->cache, &p->owner, first, 6);
    mf_kv_release(p->cache, &p->owner, false);
    CHECK(mf_kv_reserve(p->cache, &p->owner, 5));
    mf_kv_commit(p->cache, &p->owner, second, 5);
}

static mf_status check(pool *p)
{
    const mf_kv_sequence *owners[] = { &p->owner };
    mf_error err = { 0 };
    return mf_kv_check(p->cache, owners, NULL, 1, &err);
}

static void expect_damage(pool *p, int32_t *field, int32_t value)
{
    int32_t saved = *field;
    if (value == saved) {
        return;
    }
    *field = value;
    CHECK_EQ(check(p), MF_ERR_INTERNAL);
    *field = saved;
    CHECK_EQ(check(p), MF_OK);
}

TEST(an_intact_pool_passes)
{
    pool p;
    pool_open(&p);
    mf_kv_counts n = mf_kv_cache_counts(p.cache);
    CHECK_EQ(n.used, 3);
    CHECK_EQ(n.cached, 3);
    CHECK_EQ(n.free, 2);
    CHECK_EQ(p.cache->num_keyed, 5);
    CHECK_EQ(check(&p), MF_OK);
    mf_kv_cache_close(&p.cache);
}

TEST(damaged_counts_and_lists_are_noticed)
{
    pool p;
    pool_open(&p);
    mf_kv_cache *c = p.cache;
    int32_t *fields[] = { &c->free_list.count, &c->free_list.head, &c->free_list.tail, &c->cached_list.count,
                          &c->cached_list.head, &c->cached_list.tail, &c->num_used, &c->num_keyed };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        for (int32_t value = -1; value <= BLOCKS + 1; value++) {
            expect_damage(&p, fields[i], value);
        }
    }
    for (int32_t id = 0; id < BLOCKS; id++) {
        block *b = &c->blocks[id];
        for (int32_t value = -1; value <= BLOCKS + 1; value++) {
            expect_damage(&p, &b->num_owners, value);
            if (b->state != BLOCK_USED) { /* used ones are in no list */
                expect_damage(&p, &b->previous, value);
                expect_damage(&p, &b->next, value);
            }
            if (b->serial) {
                expect_damage(&p, &b->chain_next, value);
            }
        }
        for (uint8_t state = 0; state < 3; state++) {
            uint8_t saved = b->state;
            b->state = state;
            CHECK_EQ(check(&p), state == saved ? MF_OK : MF_ERR_INTERNAL);
            b->state = saved;
        }
    }
    mf_kv_cache_close(&p.cache);
}

TEST(damaged_keys_are_noticed)
{
    pool p;
    pool_open(&p);
    mf_kv_cache *c = p.cache;
    for (uint32_t i = 0; i < c->num_buckets; i++) {
        for (int32_t value = -1; value <= BLOCKS; value++) {
            expect_damage(&p, &c->buckets[i], value);
        }
    }
    for (int32_t id = 0; id < BLOCKS; id++) {
        block *b = &c->blocks[id];
        if (!b->serial) {
            continue;
        }
        uint64_t *const fields[] = { &b->hash, &b->parent_serial, &b->serial };
        for (size_t i = 0; i < 3; i++) {
            uint64_t saved = *fields[i];
            const uint64_t values[] = { saved + 100, saved ^ (1ull << 63), i == 2 ? 0 : saved + 1 };
            for (size_t k = 0; k < 3; k++) {
                *fields[i] = values[k];
                CHECK_EQ(check(&p), MF_ERR_INTERNAL);
                *fields[i] = saved;
            }
        }
        expect_damage(&p, &c->tokens[id * SIZE], 1000); /* the key is the tokens' hash */
    }
    mf_kv_cache_close(&p.cache);
}

TEST(damaged_sequences_are_noticed)
{
    pool p;
    pool_open(&p);
    for (int32_t value = -2; value <= BLOCKS + 2; value++) {
        expect_damage(&p, &p.owner.num_blocks, value);
        for (int32_t i = 0; i < 3; i++) {
            expect_damage(&p, &p.storage[i], value);
        }
    }
    expect_damage(&p, &p.owner.num_keyed, 4);
    mf_kv_cache_close(&p.cache);
}

/* With all keys in one chain and equal hashes, tokens and serials alone tell contents apart. */
TEST(equal_hashes_share_nothing_but_equal_contents)
{
    pool p;
    pool_open(&p);
    mf_kv_cache *c = p.cache;
    static const int32_t tokens[2] = { 1, 2 };
    static const int32_t others[2] = { 1, 3 };
    int32_t id = key_find(c, key_hash(0, tokens, SIZE), 0, tokens);
    CHECK(id != NONE);
    uint64_t hash = c->blocks[id].hash;
    CHECK_EQ(key_find(c, hash, 0, others), NONE);
    CHECK_EQ(key_find(c, hash, c->blocks[id].serial, tokens), NONE);
    CHECK_EQ(key_find(c, hash, 0, tokens), id);
    mf_kv_cache_close(&p.cache);
}
