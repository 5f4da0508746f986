/* bpe.c - byte-pair merging: see bpe.h.
 *
 * The pair with the lowest rank is merged first, the leftmost of equals.  Here are short pre-tokens, nearly all there
 * are, which look for it by a scan. */
#include "text/bpe.h"

#include <string.h>

#include "base/sys.h"
#include "text/utf8.h"

enum { SHORT_WORD = 40 };

mf_status mf_ids_append(mf_ids *ids, int32_t id)
{
    if (ids->size == ids->capacity) {
        size_t capacity = ids->capacity ? ids->capacity * 2 : 64;
        int32_t *data = mf_resize_array(ids->data, capacity, sizeof *data);
        if (!data) {
            return MF_ERR_NOMEM;
        }
        ids->data = data;
        ids->capacity = capacity;
    }
    ids->data[ids->size++] = id;
    return MF_OK;
}

mf_status mf_bpe_set_merges(mf_bpe *bpe, const uint64_t *keys, const int32_t *ranks, size_t num_merges)
{
    size_t size = 16;
    while (size / 2 < num_merges) {
        size *= 2;
    }
    bpe->merges = mf_alloc_array(size, sizeof *bpe->merges);
    if (!bpe->merges) {
        return MF_ERR_NOMEM;
    }
    memset(bpe->merges, 0xff, size * sizeof *bpe->merges);
    bpe->merges_mask = size - 1;
    for (size_t k = 0; k < num_merges; k++) {
        uint64_t i = mf_idmap_hash(keys[k]) & bpe->merges_mask;
        int probes = 0;
        while (bpe->merges[i] != UINT64_MAX && bpe->merges[i] >> MF_BPE_RANK_BITS != keys[k]) {
            i = (i + 1) & bpe->merges_mask;
            if (++probes == MF_HASH_MAX_PROBES) {
                return MF_ERR_LIMIT;
            }
        }
        bpe->merges[i] = keys[k] << MF_BPE_RANK_BITS | (ranks ? (uint64_t)ranks[k] : k);
    }
    return MF_OK;
}

static mf_status merge_short(const mf_bpe *bpe, int32_t *symbols, size_t count, mf_ids *ids)
{
    int32_t ranks[SHORT_WORD]; /* [i]: of the pair i, i + 1 */
    for (size_t i = 0; i + 1 < count; i++) {
        ranks[i] = mf_bpe_find_rank(bpe, symbols[i], symbols[i + 1]);
    }
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++) {
            best = ranks[i] < ranks[best] ? i : best;
        }
        if (ranks[best] == MF_BPE_NO_RANK) {
            break;
        }
        symbols[best] = bpe->rank_ids[ranks[best]];
        memmove(symbols + best + 1, symbols + best + 2, (count - best - 2) * sizeof *symbols);
        memmove(ranks + best, ranks + best + 1, (count - best - 2) * sizeof *ranks);
        count--;
        if (best + 1 < count) {
            ranks[best] = mf_bpe_find_rank(bpe, symbols[best], symbols[best + 1]);
        }
        if (best > 0) {
            ranks[best - 1] = mf_bpe_find_rank(bpe, symbols[best - 1], symbols[best]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        MF_TRY(mf_ids_append(ids, symbols[i]));
    }
    return MF_OK;
}

mf_status mf_bpe_merge(const mf_bpe *bpe, int32_t *symbols, size_t n, mf_bpe_work *work, mf_ids *ids)
{
    return n <= SHORT_WORD ? merge_short(bpe, symbols, n, ids) : mf_bpe_merge_long(bpe, symbols, n, work, ids);
}

int32_t mf_bpe_find_whole(const mf_bpe *bpe, const mf_vocab *vocab, const char *text, size_t size)
{
    int32_t id = bpe->whole_words && size <= MF_VOCAB_MAX_TOKEN_BYTES ? mf_vocab_find(vocab, text, size) : -1;
    return id < bpe->num_ids ? id : -1;
}

mf_status mf_bpe_reserve_initial(mf_bpe_work *work, size_t n)
{
    if (n > work->initial_capacity) {
        int32_t *initial = mf_resize_array(work->initial, n, sizeof *initial);
        if (!initial) {
            return MF_ERR_NOMEM;
        }
        work->initial = initial;
        work->initial_capacity = n;
    }
    return MF_OK;
}

mf_status mf_bpe_encode_bytes(const mf_bpe *bpe, const mf_vocab *vocab, const uint8_t *bytes, size_t n,
                              mf_bpe_work *work, mf_ids *ids)
{
    if (n == 1) {
        int32_t id = bpe->byte_ids[bytes[0]];
        return id >= 0 ? mf_ids_append(ids, id) : MF_OK;
    }
    if (bpe->whole_words && n <= MF_VOCAB_MAX_TOKEN_BYTES) {
        mf_buffer_clear(&work->text);
        MF_TRY(mf_buffer_reserve(&work->text, 2 * n));
        for (size_t i = 0; i < n; i++) {
            work->text.size += mf_utf8_put(mf_byte_to_char(bytes[i]), work->text.data + work->text.size);
        }
        int32_t id = mf_bpe_find_whole(bpe, vocab, work->text.data, work->text.size);
        if (id >= 0) {
            return mf_ids_append(ids, id);
        }
    }
    int32_t few[SHORT_WORD], *symbols = few;
    if (n > SHORT_WORD) {
        MF_TRY(mf_bpe_reserve_initial(work, n));
        symbols = work->initial;
    }
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (bpe->byte_ids[bytes[i]] >= 0) {
            symbols[count++] = bpe->byte_ids[bytes[i]];
        }
    }
    return mf_bpe_merge(bpe, symbols, count, work, ids);
}

void mf_bpe_work_close(mf_bpe_work *work)
{
    mf_free(work->symbols);
    mf_free(work->heap);
    mf_free(work->queue_of_rank);
    mf_free(work->queues);
    mf_free(work->batch);
    mf_free(work->initial);
    mf_buffer_close(&work->text);
    *work = (mf_bpe_work){ 0 };
}

void mf_bpe_close(mf_bpe *bpe)
{
    mf_free(bpe->merges);
    mf_free(bpe->rank_ids);
    bpe->merges = NULL;
    bpe->rank_ids = NULL;
}
