/* tokenizer.c - encoding and decoding with an open tokenizer: see tokenizer.h. */
#include "text/tokenizer.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"
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
    mf_normalizer_work normal; /* the part of the text at hand, normalised */
    mf_buffer bytes;           /* the pre-token at hand */
} encoder;

static void close_encoder(encoder *e)
{
    mf_pretokens_close(&e->pretokens);
    mf_bpe_work_close(&e->bpe);
    mf_normalizer_work_close(&e->normal);
    mf_buffer_close(&e->bytes);
}

static mf_status encode_word(encoder *e, const char *text, size_t size)
{
    const mf_tokenizer *tok = e->tok;
    return tok->by_chars ? mf_bpe_encode_chars(&tok->chars, &tok->bpe, &tok->vocab, text, size, &e->bpe, e->ids)
                         : mf_bpe_encode_bytes(&tok->bpe, &tok->vocab, (const uint8_t *)text, size, &e->bpe, e->ids);
}

/* `begins`: nothing comes before in the whole text. */
static mf_status encode_plain(encoder *e, const char *text, size_t size, bool begins)
{
    if (e->tok->pre.num_steps == 0) {
        return encode_word(e, text, size);
    }
    MF_TRY(mf_pretokenizer_run(&e->tok->pre, text, size, begins, &e->pretokens));
    const mf_pretokens *pre = &e->pretokens;
    for (size_t i = 0; i < pre->pieces.size; i++) {
        mf_piece piece = pre->pieces.data[i];
        mf_buffer_clear(&e->bytes);
        MF_TRY(mf_buffer_reserve(&e->bytes, (size_t)(piece.end - piece.start) * 4));
        for (uint32_t p = piece.start; p < piece.end; p++) {
            e->bytes.size += mf_utf8_put(pre->points[p], e->bytes.data + e->bytes.size);
        }
        MF_TRY(encode_word(e, e->bytes.data, e->bytes.size));
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
    bool any_plain = e->next_plain < e->num_plain && e->plain_at[e->next_plain] < base + size;
    const char *written = text;
    MF_TRY(mf_normalizer_run(&e->tok->normalizer, text, size, &e->normal, &text, &size));
    bool same_text = text == written;
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
                            : encode_plain(e, text + part.start, part.end - part.start, base + part.start == 0));
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

static bool is_token(const mf_tokenizer *tok, int32_t id)
{
    return id >= 0 && (size_t)id < tok->vocab.size;
}

/* The first token that leaves text may stand for other bytes than in the middle: see decoder.h. */
static mf_status decode_token(const mf_tokenizer *tok, int32_t id, bool first, mf_utf8_repair *repair, mf_buffer *out)
{
    size_t size;
    const char *bytes = mf_tokenizer_token_bytes(tok, id, &size);
    if (!first || !tok->decoder.drops_in_first) {
        return mf_utf8_repair_push(repair, bytes, size, out);
    }
    mf_buffer own = { 0 };
    const char *text = mf_vocab_text(&tok->vocab, id, &size);
    for (size_t i = 0; mf_tokenizer_is_added(tok, id) && i < tok->added.size; i++) {
        if (tok->added.tokens[i].id == id && tok->added.tokens[i].normal) {
            text = tok->added.tokens[i].normal;
            size = tok->added.tokens[i].normal_size;
        }
    }
    mf_status status = mf_decoder_first(&tok->decoder, text, size, &own);
    if (status == MF_OK) {
        status = mf_utf8_repair_push(repair, mf_buffer_text(&own), own.size, out);
    }
    mf_buffer_close(&own);
    return status;
}

mf_status mf_tokenizer_decode(const mf_tokenizer *tok, const int32_t *ids, size_t n, bool skip_special, mf_buffer *out,
                              mf_error *err)
{
    size_t before = out->size;
    mf_utf8_repair repair = { 0 };
    mf_status status = MF_OK;
    bool first = true;
    for (size_t i = 0; i < n && status == MF_OK; i++) {
        if (!is_token(tok, ids[i])) {
            cut_back(out, before);
            return mf_fail(err, MF_ERR_INVALID, "token id %d at place %zu: expected 0 to %d", ids[i], i,
                           mf_tokenizer_vocab_size(tok) - 1);
        }
        if (!(skip_special && mf_tokenizer_is_special(tok, ids[i]))) {
            status = decode_token(tok, ids[i], first, &repair, out);
            first = false;
        }
    }
    if (status == MF_OK) {
        status = mf_utf8_repair_finish(&repair, out);
    }
    if (status != MF_OK) {
        cut_back(out, before);
        return mf_fail(err, status, "cannot decode %zu token ids: %s", n, mf_status_name(status));
    }
    if (tok->decoder.strip_count > 0 && out->size > before) {
        size_t stripped = mf_decoder_num_stripped(&tok->decoder, out->data + before, out->size - before);
        memmove(out->data + before, out->data + before + stripped, out->size - before - stripped);
        cut_back(out, out->size - stripped);
    }
    return MF_OK;
}

void mf_ids_close(mf_ids *ids)
{
    mf_free(ids->data);
    *ids = (mf_ids){ 0 };
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
