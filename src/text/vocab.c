/* vocab.c - the tokens: see vocab.h. */
#include "text/vocab.h"

#include <string.h>

#include "base/random.h"
#include "base/sys.h"
#include "text/idmap.h"
#include "text/utf8.h"

/* Printable Latin-1 stands for itself; the other bytes, in order, for U+0100 and up. */
static bool stands_for_itself(uint32_t c)
{
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xff && c != 0xad);
}

uint32_t mf_byte_to_char(uint8_t byte)
{
    if (stands_for_itself(byte)) {
        return byte;
    }
    /* 0x00-0x20 are the first 33, then 0x7f-0xa0 (34), then 0xad. */
    return 0x100u + (byte <= 0x20 ? byte : byte == 0xad ? 67u : byte - 0x7fu + 33u);
}

int32_t mf_byte_from_char(uint32_t c)
{
    if (c < 0x100) {
        return stands_for_itself(c) ? (int32_t)c : -1;
    }
    uint32_t n = c - 0x100;
    return n <= 0x20 ? (int32_t)n : n < 67 ? (int32_t)(n - 33 + 0x7f) : n == 67 ? 0xad : -1;
}

static uint32_t hash_text(const char *text, size_t size)
{
    uint64_t h = 0xcbf29ce484222325u ^ size;
    for (size_t i = 0; i < size; i++) {
        h = (h ^ (uint8_t)text[i]) * 0x100000001b3u;
    }
    return (uint32_t)mf_random_mix(h);
}

static bool has_text(const mf_vocab *vocab, int32_t id, const char *text, size_t size)
{
    size_t n;
    const char *own = mf_vocab_text(vocab, id, &n);
    return n == size && memcmp(own, text, size) == 0;
}

static int32_t find(const mf_vocab *vocab, uint32_t hash, const char *text, size_t size)
{
    if (vocab->num_slots == 0) {
        return -1;
    }
    size_t mask = vocab->num_slots - 1;
    for (size_t i = hash & mask; vocab->slots[i].id >= 0; i = (i + 1) & mask) {
        if (vocab->slots[i].hash == hash && has_text(vocab, vocab->slots[i].id, text, size)) {
            return vocab->slots[i].id;
        }
    }
    return -1;
}

int32_t mf_vocab_find(const mf_vocab *vocab, const char *text, size_t size)
{
    return find(vocab, hash_text(text, size), text, size);
}

static mf_status place(mf_vocab *vocab, mf_vocab_slot slot)
{
    size_t mask = vocab->num_slots - 1, i = slot.hash & mask;
    for (int probes = 0; probes < MF_HASH_MAX_PROBES; probes++, i = (i + 1) & mask) {
        if (vocab->slots[i].id < 0) {
            vocab->slots[i] = slot;
            return MF_OK;
        }
    }
    return MF_ERR_LIMIT;
}

static mf_status grow_slots(mf_vocab *vocab)
{
    size_t old_size = vocab->num_slots, size = old_size ? old_size * 2 : 1024;
    mf_vocab_slot *old = vocab->slots, *slots = mf_alloc_array(size, sizeof *slots);
    if (!slots) {
        return MF_ERR_NOMEM;
    }
    memset(slots, 0xff, size * sizeof *slots);
    vocab->slots = slots;
    vocab->num_slots = size;
    mf_status status = MF_OK;
    for (size_t i = 0; i < old_size && status == MF_OK; i++) {
        status = old[i].id >= 0 ? place(vocab, old[i]) : MF_OK;
    }
    mf_free(old);
    return status;
}

mf_status mf_vocab_add(mf_vocab *vocab, const char *text, size_t size, int64_t id)
{
    if (id < 0 || id >= MF_VOCAB_MAX_IDS || size == 0 || size > MF_VOCAB_MAX_TOKEN_BYTES ||
        ((size_t)id < vocab->size && vocab->entries[id].text_size > 0)) {
        return MF_ERR_INVALID;
    }
    uint32_t hash = hash_text(text, size);
    if (find(vocab, hash, text, size) >= 0) {
        return MF_ERR_FORMAT;
    }
    if ((size_t)id >= vocab->capacity) {
        size_t capacity = vocab->capacity ? vocab->capacity : 1024;
        while (capacity <= (size_t)id) {
            capacity *= 2;
        }
        mf_vocab_entry *entries = mf_resize_array(vocab->entries, capacity, sizeof *entries);
        if (!entries) {
            return MF_ERR_NOMEM;
        }
        memset(entries + vocab->capacity, 0, (capacity - vocab->capacity) * sizeof *entries);
        vocab->entries = entries;
        vocab->capacity = capacity;
    }
    if (vocab->text.size > UINT32_MAX - size - 1) {
        return MF_ERR_LIMIT;
    }
    if ((vocab->num_tokens + 1) * 2 > vocab->num_slots) {
        MF_TRY(grow_slots(vocab));
    }
    uint32_t at = (uint32_t)vocab->text.size;
    MF_TRY(mf_buffer_reserve(&vocab->text, size + 1));
    MF_TRY(mf_buffer_append(&vocab->text, text, size));
    MF_TRY(mf_buffer_append(&vocab->text, "", 1));
    vocab->entries[id] = (mf_vocab_entry){ .text_at = at, .text_size = (uint32_t)size };
    vocab->size = (size_t)id >= vocab->size ? (size_t)id + 1 : vocab->size;
    vocab->num_tokens++;
    return place(vocab, (mf_vocab_slot){ hash, (int32_t)id });
}

void mf_vocab_close(mf_vocab *vocab)
{
    mf_free(vocab->entries);
    mf_free(vocab->slots);
    mf_buffer_close(&vocab->text);
    mf_buffer_close(&vocab->bytes);
    *vocab = (mf_vocab){ 0 };
}
