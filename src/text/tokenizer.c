/* tokenizer.c - encoding and decoding with an open tokenizer: see tokenizer.h. */
#include "text/tokenizer.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "text/nfc.h"
#include "text/tokenizer_impl.h"
#include "text/utf8.h"

typedef struct encoder {
    const mf_tokenizer *tok;
    unsigned flags;
    mf_ids *ids;
    const size_t *plain_at; /* see mf_tokenizer_encode_mixed */
    size_t num_plain, next_plain;
    const char *whole; /* what plain_at counts from */
    mf_pretokens pretokens;
    mf_bpe_work bpe;
    mf_buffer normal; /* the part of the text at hand, normalised */
    mf_buffer bytes;  /* the pre-token at hand */
} encoder;

static void close_encoder(encoder *e)
{
    mf_pretokens_close(&e->pretokens);
    mf_bpe_work_close(&e->bpe);
    mf_buffer_close(&e->normal);
    mf_buffer_close(&e->bytes);
}

static mf_status encode_plain(encoder *e, const char *text, size_t size)
{
    MF_TRY(mf_pretokenizer_run(&e->tok->pre, text, size, &e->pretokens));
    const mf_pretokens *pre = &e->pretokens;
    for (size_t i = 0; i < pre->pieces.size; i++) {
        mf_piece piece = pre->pieces.data[i];
        mf_buffer_clear(&e->bytes);
        MF_TRY(mf_buffer_reserve(&e->bytes, (size_t)(piece.end - piece.start) * 4));
        for (uint32_t p = piece.start; p < piece.end; p++) {
            e->bytes.size += mf_utf8_put(pre->points[p], e->bytes.data + e->bytes.size);
        }
        MF_TRY(mf_bpe_encode(&e->tok->bpe, &e->tok->vocab, (const uint8_t *)e->bytes.data, e->bytes.size, &e->bpe,
                             e->ids));
    }
    return MF_OK;
}

static mf_added_scan begin_scan(const encoder *e, const mf_added_trie *trie, const char *text, size_t size)
{
    return (mf_added_scan){ .added = &e->tok->added,
                            .trie = trie,
                            .text = text,
                            .size = size,
                            .skip_special = e->flags & MF_ENCODE_NO_SPECIAL_TOKENS,
                            .skip_all = e->flags & MF_ENCODE_NO_ADDED_TOKENS };
}

/* Text between the added tokens that are looked for before normalisation. */
static mf_status encode_between(encoder *e, const char *text, size_t size)
{
    size_t base = (size_t)(text - e->whole);
    while (e->next_plain < e->num_plain && e->plain_at[e->next_plain] < base) {
        e->next_plain++;
    }
    bool any_plain = e->next_plain < e->num_plain && e->plain_at[e->next_plain] < base + size, same_text = true;
    if (e->tok->nfc && !mf_nfc_is_plain(text, size)) {
        mf_buffer_clear(&e->normal);
        MF_TRY(mf_nfc(text, size, &e->normal));
        text = mf_buffer_text(&e->normal);
        size = e->normal.size;
        same_text = false;
    }
    mf_added_scan scan = begin_scan(e, &e->tok->added.normalized, text, size);
    if (any_plain && same_text) {
        scan.plain_at = e->plain_at + e->next_plain;
        scan.num_plain = e->num_plain - e->next_plain;
        scan.base = base;
    }
    /* The places are lost in a text that normalising changed: no special token is looked for in this part. */
    scan.skip_special |= any_plain && !same_text;
    mf_added_part part;
    while (mf_added_scan_next(&scan, &part)) {
        MF_TRY(part.id >= 0 ? mf_ids_append(e->ids, part.id)
                            : encode_plain(e, text + part.start, part.end - part.start));
    }
    return MF_OK;
}

static mf_status encode_text(encoder *e, const char *text, size_t size)
{
    mf_added_scan scan = begin_scan(e, &e->tok->added.raw, text, size);
    scan.plain_at = e->plain_at;
    scan.num_plain = e->num_plain;
    mf_added_part part;
    while (mf_added_scan_next(&scan, &part)) {
        MF_TRY(part.id >= 0 ? mf_ids_append(e->ids, part.id)
                            : encode_between(e, text + part.start, part.end - part.start));
    }
    return MF_OK;
}

static mf_status encode_template(encoder *e, const char *text, size_t size)
{
    for (size_t i = 0; i < e->tok->template_size; i++) {
        int32_t id = e->tok->template_ids[i];
        MF_TRY(id == MF_TEMPLATE_SEQUENCE ? encode_text(e, text, size) : mf_ids_append(e->ids, id));
    }
    return MF_OK;
}

mf_status mf_tokenizer_encode(const mf_tokenizer *tok, const char *text, size_t size, unsigned flags, mf_ids *ids,
                              mf_error *err)
{
    return mf_tokenizer_encode_mixed(tok, text, size, flags, NULL, 0, ids, err);
}

bool mf_tokenizer_special_begins(const mf_tokenizer *tok, const char *text, size_t size, size_t at)
{
    return mf_added_special_begins(&tok->added, text, size, at);
}

mf_status mf_tokenizer_encode_mixed(const mf_tokenizer *tok, const char *text, size_t size, unsigned flags, const size_t *plain_at,
                                    size_t num_plain, mf_ids *ids, mf_error *err)
{
    size_t bad_at = 0, before = ids->size;
    if (size > MF_TOKENIZER_MAX_TEXT_BYTES) {
        return mf_fail(err, MF_ERR_LIMIT, "a text to encode: expected at most %d bytes; got %zu",
                       MF_TOKENIZER_MAX_TEXT_BYTES, size);
    }
    if (!mf_utf8_valid(text, size, &bad_at)) {
        return mf_fail(err, MF_ERR_INVALID, "a text to encode is not valid UTF-8 at byte %zu", bad_at);
    }
    encoder e = { .tok = tok, .flags = flags, .ids = ids, .plain_at = plain_at, .num_plain = num_plain, .whole = text };
    bool templated = (flags & MF_ENCODE_ADD_SPECIAL) && tok->template_size > 0;
    mf_status status = templated ? encode_template(&e, text, size) : encode_text(&e, text, size);
    close_encoder(&e);
    if (status != MF_OK) {
        ids->size = before;
        return mf_fail(err, status, "cannot encode a text of %zu bytes: %s", size, mf_status_name(status));
    }
    return MF_OK;
}

static void cut_back(mf_buffer *buffer, size_t size)
{
    buffer->size = size;
    if (buffer->data) {
        buffer->data[size] = '\0';
    }
}

mf_status mf_tokenizer_decode(const mf_tokenizer *tok, const int32_t *ids, size_t n, bool skip_special, mf_buffer *out,
                              mf_error *err)
{
    size_t before = out->size;
    mf_utf8_repair repair = { 0 };
    mf_status status = MF_OK;
    for (size_t i = 0; i < n && status == MF_OK; i++) {
        size_t size;
        const char *bytes = mf_tokenizer_token_bytes(tok, ids[i], &size);
        if (!bytes) {
            cut_back(out, before);
            return mf_fail(err, MF_ERR_INVALID, "token id %d at place %zu: expected 0 to %d", ids[i], i,
                           mf_tokenizer_vocab_size(tok) - 1);
        }
        if (!(skip_special && mf_tokenizer_is_special(tok, ids[i]))) {
            status = mf_utf8_repair_push(&repair, bytes, size, out);
        }
    }
    if (status == MF_OK) {
        status = mf_utf8_repair_finish(&repair, out);
    }
    if (status != MF_OK) {
        cut_back(out, before);
        return mf_fail(err, status, "cannot decode %zu token ids: %s", n, mf_status_name(status));
    }
    return MF_OK;
}

void mf_ids_close(mf_ids *ids)
{
    mf_free(ids->data);
    *ids = (mf_ids){ 0 };
}

static bool is_token(const mf_tokenizer *tok, int32_t id)
{
    return id >= 0 && (size_t)id < tok->vocab.size;
}

int32_t mf_tokenizer_vocab_size(const mf_tokenizer *tok)
{
    return (int32_t)tok->vocab.size;
}

int32_t mf_tokenizer_token_id(const mf_tokenizer *tok, const char *text)
{
    return mf_vocab_find(&tok->vocab, text, strlen(text));
}

const char *mf_tokenizer_token_text(const mf_tokenizer *tok, int32_t id)
{
    return is_token(tok, id) ? tok->vocab.text.data + tok->vocab.entries[id].text_at : NULL;
}

const char *mf_tokenizer_token_bytes(const mf_tokenizer *tok, int32_t id, size_t *size)
{
    *size = is_token(tok, id) ? tok->vocab.entries[id].bytes_size : 0;
    return is_token(tok, id) ? tok->vocab.bytes.data + tok->vocab.entries[id].bytes_at : NULL;
}

bool mf_tokenizer_is_special(const mf_tokenizer *tok, int32_t id)
{
    return is_token(tok, id) && (tok->flags[id] & MF_TOKEN_SPECIAL);
}

bool mf_tokenizer_is_added(const mf_tokenizer *tok, int32_t id)
{
    return is_token(tok, id) && (tok->flags[id] & MF_TOKEN_ADDED);
}
