/* guide_vocab.c - a tokenizer's tokens as a trie of bytes in preorder, so that a walk that prunes reads memory forwards. */
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "text/guide_impl.h"

typedef struct sort_key {
    uint64_t prefix; /* first eight bytes, big end first */
    const uint8_t *bytes;
    uint32_t size;
    int32_t id;
} sort_key;

static int compare_keys(const void *a, const void *b)
{
    const sort_key *x = a, *y = b;
    if (x->prefix != y->prefix) {
        return x->prefix < y->prefix ? -1 : 1;
    }
    uint32_t n = x->size < y->size ? x->size : y->size;
    int order = memcmp(x->bytes, y->bytes, n);
    if (order == 0) {
        order = (x->size > y->size) - (x->size < y->size);
    }
    return order ? order : (x->id > y->id) - (x->id < y->id);
}

static bool is_eos(const mf_guide_vocab *v, int32_t id)
{
    for (int32_t i = 0; i < v->num_eos; i++) {
        if (v->eos_ids[i] == id) {
            return true;
        }
    }
    return false;
}

static bool is_usable(const mf_guide_vocab *v, const mf_tokenizer *tok, int32_t id)
{
    return !mf_tokenizer_is_added(tok, id) && !mf_tokenizer_is_special(tok, id) && !is_eos(v, id);
}

/* Copies the bytes of all tokens, and counts them. */
static mf_status copy_bytes(mf_guide_vocab *v, const mf_tokenizer *tok, mf_error *err)
{
    size_t total = 0;
    for (int32_t id = 0; id < v->num_ids; id++) {
        size_t n = 0;
        total += is_usable(v, tok, id) && mf_tokenizer_token_bytes(tok, id, &n) ? n : 0;
    }
    v->bytes_at = mf_alloc_array((size_t)v->num_ids + 1, sizeof *v->bytes_at);
    v->bytes = mf_alloc_array(total + 1, 1);
    v->next_same = mf_alloc_array((size_t)v->num_ids + 1, sizeof *v->next_same);
    if (!v->bytes_at || !v->bytes || !v->next_same || total > UINT32_MAX / 2) {
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for a vocabulary of %d", v->num_ids);
    }
    uint32_t at = 0;
    for (int32_t id = 0; id < v->num_ids; id++) {
        size_t n = 0;
        const char *bytes = is_usable(v, tok, id) ? mf_tokenizer_token_bytes(tok, id, &n) : NULL;
        v->bytes_at[id] = at;
        if (bytes && n > 0) {
            memcpy(v->bytes + at, bytes, n);
            at += (uint32_t)n;
        }
    }
    v->bytes_at[v->num_ids] = at;
    return MF_OK;
}

static size_t sort_tokens(const mf_guide_vocab *v, sort_key *keys)
{
    size_t count = 0;
    for (int32_t id = 0; id < v->num_ids; id++) {
        uint32_t size = v->bytes_at[id + 1] - v->bytes_at[id];
        if (size == 0) {
            continue;
        }
        sort_key key = { .bytes = v->bytes + v->bytes_at[id], .size = size, .id = id };
        for (uint32_t i = 0; i < 8; i++) {
            key.prefix = key.prefix << 8 | (i < size ? key.bytes[i] : 0);
        }
        keys[count++] = key;
    }
    qsort(keys, count, sizeof *keys, compare_keys);
    return count;
}

static uint32_t common_prefix(const sort_key *a, const sort_key *b)
{
    uint32_t n = 0;
    while (n < a->size && n < b->size && a->bytes[n] == b->bytes[n]) {
        n++;
    }
    return n;
}

/* Nodes from sorted tokens: each adds what it does not share with the one before.  `open` holds the path of the last one. */
static void build_trie(mf_guide_vocab *v, const sort_key *keys, size_t count, uint32_t *open)
{
    uint32_t depth = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t shared = i > 0 ? common_prefix(&keys[i - 1], &keys[i]) : 0;
        for (; depth > shared; depth--) {
            v->nodes[open[depth - 1]].end = v->num_nodes;
        }
        if (shared == keys[i].size) { /* the same bytes as the one before: a chain behind the node's first */
            mf_guide_trie_node *node = &v->nodes[open[depth - 1]];
            v->next_same[keys[i].id] = node->token_id;
            node->token_id = keys[i].id;
            node->has_same = true;
            continue;
        }
        for (; depth < keys[i].size; depth++) {
            open[depth] = v->num_nodes;
            v->nodes[v->num_nodes++] =
                (mf_guide_trie_node){ .token_id = -1, .depth = (uint16_t)(depth + 1), .byte = keys[i].bytes[depth] };
        }
        v->nodes[open[depth - 1]].token_id = keys[i].id;
        v->max_depth = (int32_t)depth > v->max_depth ? (int32_t)depth : v->max_depth;
    }
    for (; depth > 0; depth--) {
        v->nodes[open[depth - 1]].end = v->num_nodes;
    }
}

static mf_status make_trie(mf_guide_vocab *v, mf_error *err)
{
    mf_status status = MF_OK;
    sort_key *keys = mf_alloc_array((size_t)v->num_ids + 1, sizeof *keys);
    uint32_t *open = NULL;
    if (!keys) {
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for a vocabulary of %d", v->num_ids);
    }
    size_t count = sort_tokens(v, keys);
    size_t num_nodes = 0;
    uint32_t longest = 0;
    for (size_t i = 0; i < count; i++) {
        num_nodes += keys[i].size - (i > 0 ? common_prefix(&keys[i - 1], &keys[i]) : 0);
        longest = keys[i].size > longest ? keys[i].size : longest;
    }
    open = mf_alloc_array((size_t)longest + 1, sizeof *open);
    v->nodes = mf_alloc_array(num_nodes + 1, sizeof *v->nodes);
    if (!open || !v->nodes || longest > UINT16_MAX) {
        status = mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for a vocabulary of %d", v->num_ids);
    } else {
        for (int32_t id = 0; id < v->num_ids; id++) {
            v->next_same[id] = -1;
        }
        build_trie(v, keys, count, open);
    }
    mf_free(open);
    mf_free(keys);
    return status;
}

mf_status mf_guide_vocab_open(const mf_tokenizer *tok, const int32_t *eos_token_ids, int32_t num_eos_token_ids,
                              mf_guide_vocab **out, mf_error *err)
{
    *out = NULL;
    mf_guide_vocab *v = mf_alloc_zero(sizeof *v);
    if (!v) {
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory");
    }
    mf_status status = MF_OK;
    v->num_ids = mf_tokenizer_vocab_size(tok);
    v->num_words = ((size_t)v->num_ids + 31) / 32;
    v->eos_ids = mf_alloc_array((size_t)(num_eos_token_ids > 0 ? num_eos_token_ids : 0) + 1, sizeof *v->eos_ids);
    if (!v->eos_ids) {
        status = mf_fail(err, MF_ERR_NOMEM, "guide: out of memory");
        goto fail;
    }
    for (int32_t i = 0; i < num_eos_token_ids; i++) {
        if (eos_token_ids[i] < 0) {
            status = mf_fail(err, MF_ERR_INVALID, "eos_token_ids[%d]: expected 0 or more; got %d", i, eos_token_ids[i]);
            goto fail;
        }
        v->eos_ids[v->num_eos++] = eos_token_ids[i];
    }
    MF_TRY_GOTO(copy_bytes(v, tok, err), fail);
    MF_TRY_GOTO(make_trie(v, err), fail);
    MF_TRY_GOTO(mf_guide_vocab_share_strings(v, err), fail);
    *out = v;
    return MF_OK;
fail:
    mf_guide_vocab_close(&v);
    return status;
}

void mf_guide_vocab_close(mf_guide_vocab **out)
{
    mf_guide_vocab *v = *out;
    if (v) {
        mf_free(v->nodes);
        mf_free(v->next_same);
        mf_free(v->bytes_at);
        mf_free(v->bytes);
        mf_free(v->eos_ids);
        mf_arena_clear(&v->arena);
        mf_free(v);
        *out = NULL;
    }
}
