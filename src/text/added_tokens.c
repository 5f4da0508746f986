/* added_tokens.c - finding added tokens in a text: see added_tokens.h. */
#include "text/added_tokens.h"

#include <string.h>

#include "base/sys.h"
#include "text/unicode.h"
#include "text/utf8.h"

mf_status mf_added_trie_open(mf_added_trie *trie, size_t max_bytes)
{
    trie->capacity = max_bytes + 1;
    trie->tokens = mf_alloc_array(trie->capacity, sizeof *trie->tokens);
    if (!trie->tokens) {
        return MF_ERR_NOMEM;
    }
    trie->tokens[0] = -1;
    trie->num_nodes = 1;
    return mf_idmap_open(&trie->children, max_bytes);
}

mf_status mf_added_trie_add(mf_added_trie *trie, const char *text, size_t size, int32_t token)
{
    uint64_t node = 0;
    for (size_t i = 0; i < size; i++) {
        uint64_t key = node << 8 | (uint8_t)text[i];
        if (!mf_idmap_get(&trie->children, key, &node)) {
            node = trie->num_nodes;
            if (trie->num_nodes == trie->capacity) {
                return MF_ERR_INTERNAL;
            }
            trie->tokens[trie->num_nodes++] = -1;
            MF_TRY(mf_idmap_put(&trie->children, key, node));
        }
    }
    if (size > 0 && trie->tokens[node] < 0) {
        trie->tokens[node] = token;
        trie->begins[(uint8_t)text[0]] = true;
    }
    return MF_OK;
}

static void close_trie(mf_added_trie *trie)
{
    mf_idmap_close(&trie->children);
    mf_free(trie->tokens);
    trie->tokens = NULL;
}

void mf_added_tokens_close(mf_added_tokens *added)
{
    for (size_t i = 0; i < added->size; i++) {
        mf_free(added->tokens[i].content);
        mf_free(added->tokens[i].normal);
    }
    mf_free(added->tokens);
    close_trie(&added->raw);
    close_trie(&added->normalized);
    close_trie(&added->written);
    *added = (mf_added_tokens){ 0 };
}

/* The longest token that begins at `at`; -1 when none does. */
static int32_t longest_at(const mf_added_scan *scan, size_t at, size_t *end)
{
    int32_t token = -1;
    uint64_t node = 0;
    for (size_t i = at; i < scan->size; i++) {
        if (!mf_idmap_get(&scan->trie->children, node << 8 | (uint8_t)scan->text[i], &node)) {
            break;
        }
        if (scan->trie->tokens[node] >= 0) {
            token = scan->trie->tokens[node];
            *end = i + 1;
        }
    }
    return token;
}

static uint32_t char_before(const char *text, size_t at, size_t *start)
{
    size_t i = at - 1;
    while (((uint8_t)text[i] & 0xc0) == 0x80) {
        i--;
    }
    *start = i;
    return mf_utf8_next(text, &i);
}

static bool touches_a_word(const mf_added_scan *scan, size_t start, size_t end)
{
    size_t at = end;
    return (start > 0 && mf_unicode_is_neighbour_word(char_before(scan->text, start, &at))) ||
           (end < scan->size && (at = end, mf_unicode_is_neighbour_word(mf_utf8_next(scan->text, &at))));
}

/* White space is taken along, but not what an earlier token has. */
static void widen(const mf_added_scan *scan, const mf_added_token *token, size_t *start, size_t *end)
{
    if (token->lstrip) {
        size_t before;
        while (*start > scan->done && mf_unicode_is_space(char_before(scan->text, *start, &before))) {
            *start = before;
        }
        *start = *start > scan->done ? *start : scan->done;
    }
    if (token->rstrip) {
        size_t at = *end;
        while (*end < scan->size && mf_unicode_is_space(mf_utf8_next(scan->text, &at))) {
            *end = at;
        }
    }
}

static bool is_plain(mf_added_scan *scan, size_t start)
{
    size_t at = scan->base + start;
    while (scan->next_plain < scan->num_plain && scan->plain_at[scan->next_plain] < at) {
        scan->next_plain++;
    }
    return scan->next_plain < scan->num_plain && scan->plain_at[scan->next_plain] == at;
}

static bool special_in(const mf_added_tokens *added, const mf_added_trie *trie, const char *text, size_t size, size_t at)
{
    uint64_t node = 0;
    if (trie->num_nodes <= 1 || !trie->begins[(uint8_t)text[at]]) {
        return false;
    }
    for (size_t i = at; i < size && mf_idmap_get(&trie->children, node << 8 | (uint8_t)text[i], &node); i++) {
        if (trie->tokens[node] >= 0 && added->tokens[trie->tokens[node]].special) {
            return true;
        }
    }
    return false;
}

bool mf_added_special_begins(const mf_added_tokens *added, const char *text, size_t size, size_t at)
{
    return special_in(added, &added->raw, text, size, at) || special_in(added, &added->written, text, size, at);
}

bool mf_added_scan_next(mf_added_scan *scan, mf_added_part *part)
{
    if (scan->has_pending) {
        scan->has_pending = false;
        *part = scan->pending;
        return true;
    }
    bool any = scan->trie->num_nodes > 1 && !scan->skip_all;
    while (any && scan->search < scan->size) {
        size_t start = scan->search, end = 0;
        int32_t index = scan->trie->begins[(uint8_t)scan->text[start]] ? longest_at(scan, start, &end) : -1;
        if (index < 0) {
            scan->search++;
            continue;
        }
        const mf_added_token *token = &scan->added->tokens[index];
        if (token->special && is_plain(scan, start)) {
            scan->search++;
            continue;
        }
        scan->search = end;
        if ((scan->skip_special && token->special) || (token->single_word && touches_a_word(scan, start, end))) {
            continue;
        }
        widen(scan, token, &start, &end);
        mf_added_part text = { -1, scan->done, start };
        scan->pending = (mf_added_part){ token->id, start, end };
        /* White space that one token took along may hold another: both count, as they do in tokenizers. */
        scan->has_pending = text.start < text.end;
        *part = scan->has_pending ? text : scan->pending;
        scan->done = end;
        if (part->start < part->end) {
            return true;
        }
    }
    if (scan->done < scan->size) {
        *part = (mf_added_part){ -1, scan->done, scan->size };
        scan->done = scan->size;
        return true;
    }
    return false;
}
