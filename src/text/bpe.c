/* bpe.c - byte-pair merging: see bpe.h.
 *
 * The pair with the lowest rank is merged first, the leftmost of equals.  Short pre-tokens, nearly all there are, look for
 * it by a scan; long ones keep the pairs in a heap, so the time is n log n.  Both give the same ids: a pair that was pushed
 * and has changed since can be told by its symbols, and ranks are unique. */
#include "text/bpe.h"

#include <string.h>

#include "base/sys.h"
#include "text/utf8.h"

enum { SHORT_WORD = 40, NO_RANK = INT32_MAX };

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

static int32_t find_rank(const mf_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t value;
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return mf_idmap_get(&bpe->merges, key, &value) ? (int32_t)(value >> 32) : NO_RANK;
}

static mf_status encode_short(const mf_bpe *bpe, const uint8_t *bytes, size_t n, mf_ids *ids)
{
    int32_t symbols[SHORT_WORD], ranks[SHORT_WORD]; /* ranks[i]: of the pair i, i + 1 */
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (bpe->byte_ids[bytes[i]] >= 0) {
            symbols[count++] = bpe->byte_ids[bytes[i]];
        }
    }
    for (size_t i = 0; i + 1 < count; i++) {
        ranks[i] = find_rank(bpe, symbols[i], symbols[i + 1]);
    }
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++) {
            best = ranks[i] < ranks[best] ? i : best;
        }
        if (ranks[best] == NO_RANK) {
            break;
        }
        symbols[best] = bpe->rank_ids[ranks[best]];
        memmove(symbols + best + 1, symbols + best + 2, (count - best - 2) * sizeof *symbols);
        memmove(ranks + best, ranks + best + 1, (count - best - 2) * sizeof *ranks);
        count--;
        if (best + 1 < count) {
            ranks[best] = find_rank(bpe, symbols[best], symbols[best + 1]);
        }
        if (best > 0) {
            ranks[best - 1] = find_rank(bpe, symbols[best - 1], symbols[best]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        MF_TRY(mf_ids_append(ids, symbols[i]));
    }
    return MF_OK;
}

/* ---- the heap: four children a node, smallest first ---------------------------------------------------------------- */

static void sift_down(uint64_t *heap, size_t size, size_t at)
{
    uint64_t value = heap[at];
    for (;;) {
        size_t child = at * 4 + 1;
        if (child >= size) {
            break;
        }
        size_t last = child + 4 < size ? child + 4 : size, least = child;
        for (size_t i = child + 1; i < last; i++) {
            least = heap[i] < heap[least] ? i : least;
        }
        if (heap[least] >= value) {
            break;
        }
        heap[at] = heap[least];
        at = least;
    }
    heap[at] = value;
}

static void heap_push(mf_bpe_work *work, uint64_t value)
{
    size_t at = work->heap_size++;
    while (at > 0 && work->heap[(at - 1) / 4] > value) {
        work->heap[at] = work->heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    work->heap[at] = value;
}

static uint64_t heap_pop(mf_bpe_work *work)
{
    uint64_t least = work->heap[0];
    work->heap[0] = work->heap[--work->heap_size];
    if (work->heap_size > 1) {
        sift_down(work->heap, work->heap_size, 0);
    }
    return least;
}

static void push_pair(const mf_bpe *bpe, mf_bpe_work *work, int32_t left)
{
    const mf_bpe_symbol *s = work->symbols;
    if (left < 0 || s[left].next < 0) {
        return;
    }
    int32_t rank = find_rank(bpe, s[left].id, s[s[left].next].id);
    if (rank != NO_RANK) {
        heap_push(work, (uint64_t)rank << 32 | (uint32_t)left);
    }
}

static mf_status reserve(mf_bpe_work *work, size_t n)
{
    if (n <= work->symbols_capacity) {
        return MF_OK;
    }
    mf_bpe_symbol *symbols = mf_resize_array(work->symbols, n, sizeof *symbols);
    if (!symbols) {
        return MF_ERR_NOMEM;
    }
    work->symbols = symbols;
    /* n - 1 pairs at first; each of at most n - 1 merges takes one out and puts at most two in. */
    uint64_t *heap = mf_resize_array(work->heap, 2 * n, sizeof *heap);
    if (!heap) {
        return MF_ERR_NOMEM;
    }
    work->heap = heap;
    work->symbols_capacity = n;
    return MF_OK;
}

static mf_status encode_long(const mf_bpe *bpe, const uint8_t *bytes, size_t n, mf_bpe_work *work, mf_ids *ids)
{
    if (n >= INT32_MAX / 2) {
        return MF_ERR_LIMIT;
    }
    MF_TRY(reserve(work, n));
    mf_bpe_symbol *s = work->symbols;
    int32_t count = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = bpe->byte_ids[bytes[i]];
        if (id >= 0) {
            s[count] = (mf_bpe_symbol){ .id = id, .next = count + 1, .previous = count - 1 };
            count++;
        }
    }
    if (count == 0) {
        return MF_OK;
    }
    s[count - 1].next = -1;
    work->heap_size = 0;
    for (int32_t i = 0; i + 1 < count; i++) {
        int32_t rank = find_rank(bpe, s[i].id, s[i + 1].id);
        if (rank != NO_RANK) {
            work->heap[work->heap_size++] = (uint64_t)rank << 32 | (uint32_t)i;
        }
    }
    for (size_t i = work->heap_size; i-- > 0;) {
        sift_down(work->heap, work->heap_size, i);
    }
    while (work->heap_size > 0) {
        uint64_t top = heap_pop(work);
        int32_t left = (int32_t)(top & 0xffffffffu), rank = (int32_t)(top >> 32);
        int32_t right = s[left].id < 0 ? -1 : s[left].next;
        if (right < 0 || find_rank(bpe, s[left].id, s[right].id) != rank) {
            continue;
        }
        s[left].id = bpe->rank_ids[rank];
        s[left].next = s[right].next;
        s[right].id = -1;
        if (s[left].next >= 0) {
            s[s[left].next].previous = left;
        }
        push_pair(bpe, work, s[left].previous);
        push_pair(bpe, work, left);
    }
    for (int32_t i = 0; i >= 0; i = s[i].next) {
        MF_TRY(mf_ids_append(ids, s[i].id));
    }
    return MF_OK;
}

mf_status mf_bpe_encode(const mf_bpe *bpe, const mf_vocab *vocab, const uint8_t *bytes, size_t n, mf_bpe_work *work, mf_ids *ids)
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
        int32_t id = mf_vocab_find(vocab, work->text.data, work->text.size);
        if (id >= 0) {
            return mf_ids_append(ids, id);
        }
    }
    return n <= SHORT_WORD ? encode_short(bpe, bytes, n, ids) : encode_long(bpe, bytes, n, work, ids);
}

void mf_bpe_work_close(mf_bpe_work *work)
{
    mf_free(work->symbols);
    mf_free(work->heap);
    mf_buffer_close(&work->text);
    *work = (mf_bpe_work){ 0 };
}

void mf_bpe_close(mf_bpe *bpe)
{
    mf_idmap_close(&bpe->merges);
    mf_free(bpe->rank_ids);
    bpe->rank_ids = NULL;
}
