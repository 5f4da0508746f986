/* bpe_chars.c - byte-pair merging of characters: see bpe_chars.h.
 *
 * Such tokenizers often have no pre-tokenizer, so that a whole text is one word.  Where no token holds the sign for a
 * blank behind another character, which is how SentencePiece trains, nothing merges across that place: there the word
 * is cut, and its parts stay in the cache. */
#include "text/bpe_chars.h"

#include <string.h>

#include "text/utf8.h"

static const char blank[] = "\xe2\x96\x81"; /* U+2581 */
enum { BLANK_SIZE = sizeof blank - 1 };

static int32_t find_own(const mf_bpe *bpe, const mf_vocab *vocab, const char *text, size_t size)
{
    int32_t id = mf_vocab_find(vocab, text, size);
    return id < bpe->num_ids ? id : -1;
}

/* Whether the text holds a blank right behind something else. */
static bool has_inner_blank(const char *text, size_t size)
{
    size_t at = 0;
    while (size - at >= BLANK_SIZE && memcmp(text + at, blank, BLANK_SIZE) == 0) {
        at += BLANK_SIZE;
    }
    return memmem(text + at, size - at, blank, BLANK_SIZE) != NULL;
}

static int32_t find_cut(const mf_bpe_chars *chars, const mf_bpe *bpe, const mf_vocab *vocab)
{
    size_t size;
    /* An unknown token that itself ends with a blank would hide what stands before. */
    if (chars->unk_id >= 0) {
        const char *unk = mf_vocab_text(vocab, chars->unk_id, &size);
        if (memmem(unk, size, blank, BLANK_SIZE)) {
            return -1;
        }
    }
    for (size_t rank = 0; rank < bpe->num_ranks; rank++) {
        const char *text = mf_vocab_text(vocab, bpe->rank_ids[rank], &size);
        if (has_inner_blank(text, size)) {
            return -1;
        }
    }
    return find_own(bpe, vocab, blank, BLANK_SIZE);
}

void mf_bpe_chars_prepare(mf_bpe_chars *chars, const mf_bpe *bpe, const mf_vocab *vocab)
{
    static const char hex[] = "0123456789ABCDEF";
    for (int c = 0; c < 128; c++) {
        char text = (char)c;
        chars->ascii[c] = find_own(bpe, vocab, &text, 1);
    }
    for (int b = 0; b < 256; b++) {
        const char name[] = { '<', '0', 'x', hex[b >> 4], hex[b & 15], '>' };
        chars->byte_ids[b] = find_own(bpe, vocab, name, sizeof name);
    }
    chars->cut_id = find_cut(chars, bpe, vocab);
}

static bool all_bytes_known(const mf_bpe_chars *chars, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (chars->byte_ids[(uint8_t)text[i]] < 0) {
            return false;
        }
    }
    return true;
}

/* Writes the symbols of a word, at most one for each byte.  As in tokenizers, a pending unknown token waits for the
 * next character that is a token, also behind bytes. */
static size_t read_symbols(const mf_bpe_chars *chars, const mf_bpe *bpe, const mf_vocab *vocab, const char *text,
                           size_t size, int32_t *symbols)
{
    size_t count = 0;
    bool pending = false;
    for (size_t at = 0; at < size;) {
        size_t begin = at;
        uint32_t c = mf_utf8_next(text, &at);
        int32_t id = c < 128 ? chars->ascii[c] : find_own(bpe, vocab, text + begin, at - begin);
        if (id >= 0) {
            if (pending) {
                symbols[count++] = chars->unk_id;
                pending = false;
            }
            symbols[count++] = id;
        } else if (chars->byte_fallback && all_bytes_known(chars, text + begin, at - begin)) {
            for (size_t i = begin; i < at; i++) {
                symbols[count++] = chars->byte_ids[(uint8_t)text[i]];
            }
        } else if (chars->unk_id >= 0) {
            if (pending && !chars->fuse_unk) {
                symbols[count++] = chars->unk_id;
            }
            pending = true;
        }
    }
    if (pending) {
        symbols[count++] = chars->unk_id;
    }
    return count;
}

mf_status mf_bpe_encode_chars(const mf_bpe_chars *chars, const mf_bpe *bpe, const mf_vocab *vocab, const char *text,
                              size_t size, mf_bpe_work *work, mf_ids *ids)
{
    int32_t whole = mf_bpe_find_whole(bpe, vocab, text, size);
    if (whole >= 0) {
        return mf_ids_append(ids, whole);
    }
    MF_TRY(mf_bpe_reserve_initial(work, size));
    int32_t *symbols = work->initial;
    size_t count = read_symbols(chars, bpe, vocab, text, size, symbols), begin = 0;
    for (size_t i = 1; i <= count; i++) {
        bool cut = i < count && chars->cut_id >= 0 && symbols[i] == chars->cut_id && symbols[i - 1] != chars->cut_id;
        if (cut || i == count) {
            MF_TRY(mf_bpe_merge(bpe, symbols + begin, i - begin, work, ids));
            begin = i;
        }
    }
    return MF_OK;
}
