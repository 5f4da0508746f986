/* vocab.h - the tokens: id <-> string, and the bytes that each stands for (decoder.h fills them in).
 *
 * Strings are written in the alphabet of byte-level BPE or as plain text, as the tokenizer's file has them. */
#ifndef MF_TEXT_VOCAB_H
#define MF_TEXT_VOCAB_H

#include "base/buffer.h"

enum { MF_VOCAB_MAX_IDS = 1 << 20, MF_VOCAB_MAX_TOKEN_BYTES = 4096 };

typedef struct mf_vocab_entry {
    uint32_t text_at, text_size;
    uint32_t bytes_at, bytes_size;
} mf_vocab_entry;

typedef struct mf_vocab_slot {
    uint32_t hash;
    int32_t id; /* -1 = free */
} mf_vocab_slot;

typedef struct mf_vocab {
    mf_vocab_entry *entries; /* [capacity]; text_size 0 = this id has no token yet */
    size_t size;             /* highest id + 1 */
    size_t num_tokens;
    size_t capacity;
    mf_buffer text; /* each token is followed by a NUL */
    mf_buffer bytes;      /* after the last add: see mf_decoder_make_bytes */
    mf_vocab_slot *slots; /* hash table over the texts */
    size_t num_slots;
} mf_vocab;

/* The character that byte-level BPE writes for a byte, and back (-1: the character stands for no byte). */
uint32_t mf_byte_to_char(uint8_t byte);
int32_t mf_byte_from_char(uint32_t c);

/* MF_ERR_INVALID: the id is taken, too large, or the token empty or too long; MF_ERR_FORMAT: the text has an id
 * already; MF_ERR_LIMIT: a crowded hash table. */
mf_status mf_vocab_add(mf_vocab *vocab, const char *text, size_t size, int64_t id);
int32_t mf_vocab_find(const mf_vocab *vocab, const char *text, size_t size); /* -1 when absent */
void mf_vocab_close(mf_vocab *vocab);

static inline const char *mf_vocab_text(const mf_vocab *vocab, int32_t id, size_t *size)
{
    *size = vocab->entries[id].text_size;
    return vocab->text.data + vocab->entries[id].text_at;
}

#endif
