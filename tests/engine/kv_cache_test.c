/* kv_cache_test.c - blocks are conserved, shared by exact content only, and evicted oldest first. */
#include "test.h"

#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"
#include "engine/kv_cache.h"

enum { MAX_BLOCKS = 64 };

typedef struct owner {
    int32_t storage[MAX_BLOCKS];
    mf_kv_sequence kv;
} owner;

static void owner_init(owner *o)
{
    memset(o, 0, sizeof *o);
    o->kv.blocks = o->storage;
    o->kv.capacity = MAX_BLOCKS;
}

static mf_kv_cache *open_cache(int32_t num_blocks, int32_t block_size, bool caching)
{
    mf_kv_cache *cache;
    mf_error err = { 0 };
    CHECK_OK(mf_kv_cache_open(num_blocks, block_size, caching, &cache, &err), err);
    return cache;
}

static void check_counts(const mf_kv_cache *cache, int32_t free, int32_t used, int32_t cached)
{
    mf_kv_counts n = mf_kv_cache_counts(cache);
    CHECK_EQ(n.free, free);
    CHECK_EQ(n.used, used);
    CHECK_EQ(n.cached, cached);
    CHECK_EQ(n.total, free + used + cached);
}

static void check(mf_kv_cache *cache, const owner *owners, int32_t n)
{
    const mf_kv_sequence *sequences[8];
    for (int32_t i = 0; i < n; i++) {
        sequences[i] = &owners[i].kv;
    }
    mf_error err = { 0 };
    CHECK_OK(mf_kv_check(cache, sequences, NULL, n, &err), err);
}

/* Reserves and commits all n tokens, as a prefill does. */
static void fill(mf_kv_cache *cache, owner *o, const int32_t *tokens, int32_t n)
{
    CHECK(mf_kv_reserve(cache, &o->kv, n));
    mf_kv_commit(cache, &o->kv, tokens, n);
}

TEST(blocks_are_reserved_as_tokens_need_them)
{
    mf_kv_cache *cache = open_cache(4, 4, true);
    owner a;
    owner_init(&a);
    CHECK(mf_kv_reserve(cache, &a.kv, 1));
    CHECK_EQ(a.kv.num_blocks, 1);
    CHECK(mf_kv_reserve(cache, &a.kv, 4));
    CHECK_EQ(a.kv.num_blocks, 1);
    CHECK(mf_kv_reserve(cache, &a.kv, 5));
    CHECK_EQ(a.kv.num_blocks, 2);
    CHECK(a.storage[0] != a.storage[1]);
    check_counts(cache, 2, 2, 0);
    check(cache, &a, 1);
    mf_kv_release(cache, &a.kv, false);
    check_counts(cache, 4, 0, 0);
    mf_kv_cache_close(&cache);
}

TEST(a_reservation_that_does_not_fit_changes_nothing)
{
    mf_kv_cache *cache = open_cache(4, 4, true);
    owner o[2];
    owner_init(&o[0]);
    owner_init(&o[1]);
    CHECK(mf_kv_reserve(cache, &o[0].kv, 8));
    CHECK(mf_kv_reserve(cache, &o[1].kv, 8) == true);
    CHECK(!mf_kv_reserve(cache, &o[0].kv, 9));
    CHECK_EQ(o[0].kv.num_blocks, 2);
    check(cache, o, 2);
    check_counts(cache, 0, 4, 0);
    mf_kv_cache_close(&cache);
}

TEST(a_prefix_is_shared_by_full_blocks_and_leaves_one_token)
{
    mf_kv_cache *cache = open_cache(8, 2, true);
    int32_t tokens[7] = { 1, 2, 3, 4, 5, 6, 7 };
    owner o[3];
    for (int i = 0; i < 3; i++) {
        owner_init(&o[i]);
    }
    fill(cache, &o[0], tokens, 6);
    /* Six equal tokens are three full blocks, but the last token has to run: two blocks. */
    CHECK_EQ(mf_kv_match(cache, &o[1].kv, tokens, 6), 4);
    CHECK_EQ(o[1].storage[0], o[0].storage[0]);
    CHECK_EQ(o[1].storage[1], o[0].storage[1]);
    /* With a seventh all three. */
    CHECK_EQ(mf_kv_match(cache, &o[2].kv, tokens, 7), 6);
    check(cache, o, 3);
    check_counts(cache, 5, 3, 0);
    mf_kv_release(cache, &o[0].kv, false);
    check_counts(cache, 5, 3, 0);
    mf_kv_release(cache, &o[1].kv, false);
    mf_kv_release(cache, &o[2].kv, false);
    check(cache, o, 3);
    check_counts(cache, 5, 0, 3);
    mf_kv_cache_close(&cache);
}

TEST(the_same_tokens_after_another_prefix_do_not_match)
{
    mf_kv_cache *cache = open_cache(8, 2, true);
    int32_t first[5] = { 1, 2, 3, 4, 0 };
    int32_t other[5] = { 9, 2, 3, 4, 0 };
    int32_t moved[3] = { 3, 4, 0 };
    owner a, b;
    owner_init(&a);
    owner_init(&b);
    fill(cache, &a, first, 4);
    CHECK_EQ(mf_kv_match(cache, &b.kv, other, 5), 0);
    CHECK_EQ(mf_kv_match(cache, &b.kv, moved, 3), 0);
    CHECK_EQ(mf_kv_match(cache, &b.kv, first, 5), 4);
    mf_kv_cache_close(&cache);
}

TEST(sequences_of_different_salts_share_nothing)
{
    static const int32_t tokens[9] = { 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    mf_kv_cache *cache = open_cache(8, 4, true);
    owner o[4];
    const uint64_t salts[4] = { 0, 7, 7, 8 };
    const int32_t matched[4] = { 0, 0, 8, 0 }; /* only the second of salt 7 finds anything */
    for (int i = 0; i < 4; i++) {
        owner_init(&o[i]);
        o[i].kv.root = o[i].kv.serial = mf_kv_root(salts[i]);
        CHECK_EQ(mf_kv_match(cache, &o[i].kv, tokens, 9), matched[i]);
        if (i < 2) {
            fill(cache, &o[i], tokens, 8);
        }
    }
    check(cache, o, 4);
    mf_kv_release(cache, &o[1].kv, false);
    CHECK_EQ(mf_kv_match(cache, &o[1].kv, tokens, 9), 8); /* a sequence keeps its salt when it is preempted */
    check(cache, o, 4);
    for (int i = 0; i < 4; i++) {
        mf_kv_release(cache, &o[i].kv, false);
    }
    check_counts(cache, 4, 0, 4);
    mf_kv_cache_close(&cache);
}

TEST(an_unfinished_block_is_not_shared)
{
    mf_kv_cache *cache = open_cache(8, 4, true);
    int32_t tokens[9] = { 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    owner a, b;
    owner_init(&a);
    owner_init(&b);
    CHECK(mf_kv_reserve(cache, &a.kv, 9));
    mf_kv_commit(cache, &a.kv, tokens, 7); /* the eighth token's keys and values are not there yet */
    CHECK_EQ(mf_kv_match(cache, &b.kv, tokens, 9), 4);
    mf_kv_cache_close(&cache);
}

TEST(cached_blocks_are_evicted_oldest_first_and_from_the_tail_of_a_prefix)
{
    mf_kv_cache *cache = open_cache(4, 2, true);
    int32_t old[5] = { 1, 2, 3, 4, 0 };
    int32_t young[5] = { 5, 6, 7, 8, 0 };
    owner o;
    owner_init(&o);
    fill(cache, &o, old, 4);
    mf_kv_release(cache, &o.kv, false);
    fill(cache, &o, young, 4);
    mf_kv_release(cache, &o.kv, false);
    check_counts(cache, 0, 0, 4);
    owner taker;
    owner_init(&taker);
    CHECK(mf_kv_reserve(cache, &taker.kv, 2)); /* takes the second block of `old` */
    CHECK_EQ(mf_kv_match(cache, &o.kv, old, 5), 2);
    mf_kv_release(cache, &o.kv, false); /* `old`'s first block is now the youngest */
    CHECK(mf_kv_reserve(cache, &taker.kv, 6)); /* both of `young` go */
    CHECK_EQ(mf_kv_match(cache, &o.kv, young, 5), 0);
    CHECK_EQ(mf_kv_match(cache, &o.kv, old, 5), 2);
    check_counts(cache, 0, 4, 0);
    mf_kv_cache_close(&cache);
}

TEST(a_cached_block_in_use_again_is_not_evicted)
{
    mf_kv_cache *cache = open_cache(2, 2, true);
    int32_t tokens[3] = { 1, 2, 3 };
    owner a, b;
    owner_init(&a);
    owner_init(&b);
    fill(cache, &a, tokens, 2);
    mf_kv_release(cache, &a.kv, false);
    CHECK_EQ(mf_kv_match(cache, &a.kv, tokens, 3), 2);
    CHECK(mf_kv_reserve(cache, &b.kv, 2));
    CHECK(!mf_kv_reserve(cache, &b.kv, 3));
    CHECK(a.storage[0] != b.storage[0]);
    mf_kv_cache_close(&cache);
}

TEST(two_that_computed_the_same_block_keep_their_own_and_share_what_follows)
{
    mf_kv_cache *cache = open_cache(8, 2, true);
    int32_t tokens[7] = { 1, 2, 3, 4, 5, 6, 0 };
    owner o[3];
    for (int i = 0; i < 3; i++) {
        owner_init(&o[i]);
    }
    CHECK(mf_kv_reserve(cache, &o[0].kv, 6));
    CHECK(mf_kv_reserve(cache, &o[1].kv, 6));
    mf_kv_commit(cache, &o[0].kv, tokens, 2);
    mf_kv_commit(cache, &o[1].kv, tokens, 6); /* its first block has a twin; its later ones are keyed behind the twin */
    mf_kv_commit(cache, &o[0].kv, tokens, 6);
    CHECK_EQ(mf_kv_match(cache, &o[2].kv, tokens, 7), 6);
    CHECK_EQ(o[2].storage[0], o[0].storage[0]);
    CHECK_EQ(o[2].storage[1], o[1].storage[1]);
    CHECK_EQ(o[2].storage[2], o[1].storage[2]);
    check(cache, o, 3);
    for (int i = 0; i < 3; i++) {
        mf_kv_release(cache, &o[i].kv, false);
    }
    check(cache, o, 3);
    check_counts(cache, 5, 0, 3);
    mf_kv_cache_close(&cache);
}

TEST(forgotten_blocks_are_not_found_even_while_others_own_them)
{
    mf_kv_cache *cache = open_cache(8, 2, true);
    int32_t tokens[5] = { 1, 2, 3, 4, 0 };
    owner o[3];
    for (int i = 0; i < 3; i++) {
        owner_init(&o[i]);
    }
    fill(cache, &o[0], tokens, 4);
    CHECK_EQ(mf_kv_match(cache, &o[1].kv, tokens, 5), 4);
    mf_kv_release(cache, &o[0].kv, true);
    check(cache, o, 2);
    CHECK_EQ(mf_kv_match(cache, &o[2].kv, tokens, 5), 0);
    mf_kv_release(cache, &o[1].kv, false);
    check_counts(cache, 8, 0, 0);
    mf_kv_cache_close(&cache);
}

TEST(without_prefix_caching_nothing_is_cached)
{
    mf_kv_cache *cache = open_cache(4, 2, false);
    int32_t tokens[5] = { 1, 2, 3, 4, 0 };
    owner o;
    owner_init(&o);
    fill(cache, &o, tokens, 4);
    mf_kv_release(cache, &o.kv, false);
    check_counts(cache, 4, 0, 0);
    CHECK_EQ(mf_kv_match(cache, &o.kv, tokens, 5), 0);
    mf_kv_cache_close(&cache);
}

TEST(dropping_the_cache_frees_cached_blocks_only)
{
    mf_kv_cache *cache = open_cache(4, 2, true);
    int32_t tokens[5] = { 1, 2, 3, 4, 0 };
    owner o[2];
    owner_init(&o[0]);
    owner_init(&o[1]);
    fill(cache, &o[0], tokens, 4);
    mf_kv_release(cache, &o[0].kv, false);
    CHECK_EQ(mf_kv_match(cache, &o[1].kv, tokens, 3), 2);
    mf_kv_drop_cached(cache);
    check(cache, o, 2);
    check_counts(cache, 3, 1, 0);
    CHECK_EQ(mf_kv_match(cache, &o[0].kv, tokens, 5), 2);
    mf_kv_cache_close(&cache);
}

TEST(the_check_notices_a_lost_block_a_foreign_block_and_foreign_tokens)
{
    mf_kv_cache *cache = open_cache(4, 2, true);
    int32_t tokens[5] = { 1, 2, 3, 4, 0 };
    int32_t others[5] = { 1, 2, 3, 5, 0 };
    owner a;
    owner_init(&a);
    fill(cache, &a, tokens, 4);
    const mf_kv_sequence *sequences[2] = { &a.kv, &a.kv };
    const int32_t *texts[1] = { others };
    mf_error err = { 0 };
    CHECK_EQ(mf_kv_check(cache, sequences, NULL, 0, &err), MF_ERR_INTERNAL);
    CHECK_HAS(err.message, "counts 1 owners and has 0");
    CHECK_EQ(mf_kv_check(cache, sequences, NULL, 2, &err), MF_ERR_INTERNAL);
    CHECK_HAS(err.message, "counts 1 owners and has 2");
    CHECK_EQ(mf_kv_check(cache, sequences, texts, 1, &err), MF_ERR_INTERNAL);
    CHECK_HAS(err.message, "other tokens");
    texts[0] = tokens;
    CHECK_OK(mf_kv_check(cache, sequences, texts, 1, &err), err);
    a.storage[1] = 17;
    CHECK_EQ(mf_kv_check(cache, sequences, NULL, 1, &err), MF_ERR_INTERNAL);
    mf_kv_cache_close(&cache);
}

TEST(sizes_out_of_range_are_refused)
{
    mf_kv_cache *cache;
    mf_error err = { 0 };
    CHECK_EQ(mf_kv_cache_open(0, 16, true, &cache, &err), MF_ERR_INVALID);
    CHECK_EQ(mf_kv_cache_open(16, 0, true, &cache, &err), MF_ERR_INVALID);
    CHECK_EQ(mf_kv_cache_open(INT32_MAX, 16, true, &cache, &err), MF_ERR_INVALID);
    CHECK(cache == NULL);
    mf_kv_cache_close(&cache);
}

/* Random life of eight sequences over few distinct tokens, so that prefixes collide all the time.  A shadow array plays the
 * store: a matched block must hold what its owner's tokens say, whoever wrote it. */
TEST(random_sharing_never_mixes_contents)
{
    enum { BLOCKS = 12, SIZE = 2, OWNERS = 8, LENGTH = 12 };
    int32_t store[BLOCKS][SIZE];
    uint64_t seed = 7;
    mf_kv_cache *cache = open_cache(BLOCKS, SIZE, true);
    owner o[OWNERS];
    int32_t tokens[OWNERS][LENGTH];
    int32_t computed[OWNERS] = { 0 };
    bool lives[OWNERS] = { false };
    int64_t num_hits = 0;
    for (int i = 0; i < OWNERS; i++) {
        owner_init(&o[i]);
    }
    for (int turn = 0; turn < 100000; turn++) {
        int i = (int)mf_random_below(&seed, OWNERS);
        if (!lives[i]) {
            lives[i] = true;
            for (int t = 0; t < LENGTH; t++) {
                tokens[i][t] = (int32_t)mf_random_below(&seed, 2);
            }
            computed[i] = mf_kv_match(cache, &o[i].kv, tokens[i], LENGTH);
            num_hits += computed[i];
            for (int t = 0; t < computed[i]; t++) {
                CHECK_EQ(store[o[i].storage[t / SIZE]][t % SIZE], tokens[i][t]);
            }
        } else if (mf_random_below(&seed, 5) == 0 || computed[i] == LENGTH) {
            mf_kv_release(cache, &o[i].kv, mf_random_below(&seed, 10) == 0);
            lives[i] = false;
        } else if (mf_kv_reserve(cache, &o[i].kv, computed[i] + 1)) {
            int t = computed[i]++;
            store[o[i].storage[t / SIZE]][t % SIZE] = tokens[i][t];
            mf_kv_commit(cache, &o[i].kv, tokens[i], computed[i]);
        }
        check(cache, o, OWNERS);
    }
    CHECK(num_hits > 1000);
    mf_kv_cache_close(&cache);
}

static int64_t allocations_left;

static void *failing_alloc(size_t bytes)
{
    return allocations_left-- > 0 ? malloc(bytes) : NULL;
}

TEST(a_failed_allocation_leaves_nothing)
{
    mf_sys saved = mf_sys_table;
    mf_sys_table.alloc = failing_alloc;
    mf_status status = MF_ERR_NOMEM;
    int64_t k = 0;
    for (; status != MF_OK && k < 100; k++) {
        mf_kv_cache *cache;
        mf_error err = { 0 };
        allocations_left = k;
        status = mf_kv_cache_open(8, 4, true, &cache, &err);
        CHECK(status == MF_OK || (status == MF_ERR_NOMEM && cache == NULL && err.message[0]));
        mf_kv_cache_close(&cache);
    }
    mf_sys_table = saved;
    CHECK_EQ(k, 6);
}
