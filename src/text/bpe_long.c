/* bpe_long.c - byte-pair merging of long pre-tokens, in n log n; see bpe.h.
 *
 * Which ids come out is fixed by the symbols at hand: the lowest rank is merged, the leftmost of equals, until no pair
 * has a rank.  So one way of choosing pairs may hand over to another at any point.
 *
 * Long words keep their pairs in a heap.  Huge ones, such as a hundred thousand equal characters, have few ranks and
 * many pairs of each: they keep a queue for each rank and merge a whole queue from left to right.  That order is right
 * as long as no merge gives rise to a pair of lower rank (a trained vocabulary has few such cases); when one does, the
 * heap takes over.  Several pairs may share a rank where they make the same token: a merge then gives rise to none of
 * its own rank, for what it makes is shorter than any token it is part of. */
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "text/bpe.h"

enum { HUGE_WORD = 1024 };

static mf_status reserve(mf_bpe_work *work, size_t n)
{
    if (n <= work->symbols_capacity) {
        return MF_OK;
    }
    mf_bpe_symbol *symbols = mf_resize_array(work->symbols, n, sizeof *symbols);
    work->symbols = symbols ? symbols : work->symbols;
    int32_t *batch = mf_resize_array(work->batch, n, sizeof *batch);
    work->batch = batch ? batch : work->batch;
    if (!symbols || !batch) {
        return MF_ERR_NOMEM;
    }
    work->symbols_capacity = n;
    return MF_OK;
}

/* ---- the heap: four children a node, smallest first ----------------------------------------------------------------
 */

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

static mf_status heap_push(mf_bpe_work *work, uint64_t value)
{
    if (work->heap_size == work->heap_capacity) {
        size_t capacity = work->heap_capacity ? work->heap_capacity * 2 : 256;
        uint64_t *heap = mf_resize_array(work->heap, capacity, sizeof *heap);
        if (!heap) {
            return MF_ERR_NOMEM;
        }
        work->heap = heap;
        work->heap_capacity = capacity;
    }
    size_t at = work->heap_size++;
    while (at > 0 && work->heap[(at - 1) / 4] > value) {
        work->heap[at] = work->heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    work->heap[at] = value;
    return MF_OK;
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

/* ---- long words ----------------------------------------------------------------------------------------------------
 */

static int32_t pair_rank(const mf_bpe *bpe, const mf_bpe_symbol *s, int32_t left)
{
    return left < 0 || s[left].next < 0 ? MF_BPE_NO_RANK : mf_bpe_find_rank(bpe, s[left].id, s[s[left].next].id);
}

static void merge(const mf_bpe *bpe, mf_bpe_symbol *s, int32_t left, int32_t rank)
{
    int32_t right = s[left].next;
    s[left].id = bpe->rank_ids[rank];
    s[left].next = s[right].next;
    s[right].id = -1;
    if (s[left].next >= 0) {
        s[s[left].next].previous = left;
    }
}

static mf_status push_pair(const mf_bpe *bpe, mf_bpe_work *work, int32_t left)
{
    int32_t rank = pair_rank(bpe, work->symbols, left);
    return rank == MF_BPE_NO_RANK ? MF_OK : heap_push(work, (uint64_t)rank << 32 | (uint32_t)left);
}

/* Symbol 0 is always the first: merges keep the left one. */
static mf_status merge_by_heap(const mf_bpe *bpe, mf_bpe_work *work)
{
    mf_bpe_symbol *s = work->symbols;
    work->heap_size = 0;
    for (int32_t i = 0; i >= 0; i = s[i].next) {
        MF_TRY(push_pair(bpe, work, i));
    }
    while (work->heap_size > 0) {
        uint64_t top = heap_pop(work);
        int32_t left = (int32_t)(top & 0xffffffffu), rank = (int32_t)(top >> 32);
        /* A pair that has changed since it was pushed has another rank now. */
        if (s[left].id < 0 || pair_rank(bpe, s, left) != rank) {
            continue;
        }
        merge(bpe, s, left, rank);
        MF_TRY(push_pair(bpe, work, s[left].previous));
        MF_TRY(push_pair(bpe, work, left));
    }
    return MF_OK;
}

/* ---- huge words ----------------------------------------------------------------------------------------------------
 */

static mf_status open_queues(const mf_bpe *bpe, mf_bpe_work *work)
{
    if (!work->queue_of_rank) {
        work->queue_of_rank = mf_alloc_array(bpe->num_ranks, sizeof *work->queue_of_rank);
        if (!work->queue_of_rank) {
            return MF_ERR_NOMEM;
        }
        memset(work->queue_of_rank, 0xff, bpe->num_ranks * sizeof *work->queue_of_rank);
    }
    work->num_queues = 0;
    work->heap_size = 0;
    return MF_OK;
}

static void close_queues(mf_bpe_work *work)
{
    for (size_t i = 0; i < work->num_queues; i++) {
        work->queue_of_rank[work->queues[i].rank] = -1;
    }
    work->num_queues = 0;
}

static void leave_queue(mf_bpe_work *work, int32_t left)
{
    mf_bpe_symbol *s = work->symbols;
    if (left < 0 || s[left].rank == MF_BPE_NO_RANK) {
        return;
    }
    mf_bpe_queue *q = &work->queues[work->queue_of_rank[s[left].rank]];
    int32_t next = s[left].queue_next, previous = s[left].queue_previous;
    *(previous < 0 ? &q->first : &s[previous].queue_next) = next;
    *(next < 0 ? &q->last : &s[next].queue_previous) = previous;
    s[left].rank = MF_BPE_NO_RANK;
}

static mf_status find_queue(mf_bpe_work *work, int32_t rank, mf_bpe_queue **out)
{
    int32_t index = work->queue_of_rank[rank];
    if (index < 0) {
        if (work->num_queues == work->queues_capacity) {
            size_t capacity = work->queues_capacity ? work->queues_capacity * 2 : 64;
            mf_bpe_queue *queues = mf_resize_array(work->queues, capacity, sizeof *queues);
            if (!queues) {
                return MF_ERR_NOMEM;
            }
            work->queues = queues;
            work->queues_capacity = capacity;
        }
        index = (int32_t)work->num_queues++;
        work->queues[index] = (mf_bpe_queue){ .rank = rank, .first = -1, .last = -1 };
        work->queue_of_rank[rank] = index;
    }
    *out = &work->queues[index];
    return MF_OK;
}

/* Puts the pair that begins at `left` into the queue of the rank it has now. */
static mf_status enter_queue(const mf_bpe *bpe, mf_bpe_work *work, int32_t left, int32_t *lowest)
{
    mf_bpe_symbol *s = work->symbols;
    int32_t rank = pair_rank(bpe, s, left);
    if (rank == MF_BPE_NO_RANK) {
        return MF_OK;
    }
    mf_bpe_queue *q = NULL;
    MF_TRY(find_queue(work, rank, &q));
    if (q->first < 0) {
        MF_TRY(heap_push(work, (uint64_t)rank << 32));
    }
    s[left].rank = rank;
    s[left].queue_next = -1;
    s[left].queue_previous = q->last;
    *(q->last < 0 ? &q->first : &s[q->last].queue_next) = left;
    q->last = left;
    *lowest = rank < *lowest ? rank : *lowest;
    return MF_OK;
}

static int compare_positions(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Empties a queue into work->batch, from left to right. */
static size_t take_batch(mf_bpe_work *work, mf_bpe_queue *q)
{
    mf_bpe_symbol *s = work->symbols;
    size_t n = 0;
    bool in_order = true;
    for (int32_t i = q->first; i >= 0; i = s[i].queue_next) {
        in_order = in_order && (n == 0 || work->batch[n - 1] < i);
        work->batch[n++] = i;
        s[i].rank = MF_BPE_NO_RANK;
    }
    q->first = q->last = -1;
    if (!in_order) {
        qsort(work->batch, n, sizeof *work->batch, compare_positions);
    }
    return n;
}

/* *done is false when a pair of lower rank came up: the rest is for merge_by_heap. */
static mf_status merge_by_queues(const mf_bpe *bpe, mf_bpe_work *work, bool *done)
{
    mf_bpe_symbol *s = work->symbols;
    int32_t lowest = MF_BPE_NO_RANK;
    *done = false;
    for (int32_t i = 0; i >= 0; i = s[i].next) {
        s[i].rank = MF_BPE_NO_RANK;
        MF_TRY(enter_queue(bpe, work, i, &lowest));
    }
    while (work->heap_size > 0) {
        int32_t rank = (int32_t)(heap_pop(work) >> 32);
        size_t n = take_batch(work, &work->queues[work->queue_of_rank[rank]]);
        lowest = MF_BPE_NO_RANK;
        for (size_t i = 0; i < n; i++) {
            int32_t left = work->batch[i];
            if (s[left].id < 0 || pair_rank(bpe, s, left) != rank) {
                continue;
            }
            leave_queue(work, s[left].next);
            leave_queue(work, s[left].previous);
            merge(bpe, s, left, rank);
            MF_TRY(enter_queue(bpe, work, s[left].previous, &lowest));
            MF_TRY(enter_queue(bpe, work, left, &lowest));
            if (lowest < rank) {
                return MF_OK;
            }
        }
    }
    *done = true;
    return MF_OK;
}

mf_status mf_bpe_merge_long(const mf_bpe *bpe, const int32_t *symbols, size_t n, mf_bpe_work *work, mf_ids *ids)
{
    if (n >= INT32_MAX / 2) {
        return MF_ERR_LIMIT;
    }
    MF_TRY(reserve(work, n));
    mf_bpe_symbol *s = work->symbols;
    int32_t count = (int32_t)n;
    for (int32_t i = 0; i < count; i++) {
        s[i] = (mf_bpe_symbol){ .id = symbols[i], .next = i + 1, .previous = i - 1 };
    }
    if (count == 0) {
        return MF_OK;
    }
    s[count - 1].next = -1;
    bool done = false;
    if (count > HUGE_WORD) {
        MF_TRY(open_queues(bpe, work));
        mf_status status = merge_by_queues(bpe, work, &done);
        close_queues(work);
        MF_TRY(status);
    }
    if (!done) {
        MF_TRY(merge_by_heap(bpe, work));
    }
    for (int32_t i = 0; i >= 0; i = s[i].next) {
        MF_TRY(mf_ids_append(ids, s[i].id));
    }
    return MF_OK;
}
