/* decoder.c - the bytes that tokens stand for: see decoder.h. */
#include "text/decoder.h"

#include <string.h>

#include "text/utf8.h"

static int32_t hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The byte that "<0x0A>" names; -1: the text has another form. */
static int32_t named_byte(const char *text, size_t size)
{
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
        return -1;
    }
    int32_t high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static mf_status append_byte_level(const char *text, size_t size, mf_buffer *out)
{
    size_t before = out->size;
    MF_TRY(mf_buffer_reserve(out, size));
    for (size_t at = 0; at < size;) {
        int32_t byte = mf_byte_from_char(mf_utf8_next(text, &at));
        if (byte < 0) {
            /* A token with any other character stands for its own text. */
            out->size = before;
            return mf_buffer_append(out, text, size);
        }
        out->data[out->size++] = (char)byte;
    }
    return MF_OK;
}

static mf_status append_token(const mf_decoder *decoder, const char *text, size_t size, bool first, mf_buffer work[2],
                              mf_buffer *out)
{
    size_t next = 0;
    for (size_t i = 0; i < decoder->num_replacements; i++) {
        mf_replacement replacement = decoder->replacements[i];
        mf_buffer *to = &work[next];
        next = 1 - next;
        if (first && i == 0 && decoder->drops_in_first) {
            replacement.content_size = 0;
        }
        mf_buffer_clear(to);
        MF_TRY(mf_replacement_run(&replacement, text, size, to));
        text = mf_buffer_text(to);
        size = to->size;
        if (size > MF_VOCAB_MAX_TOKEN_BYTES) {
            return MF_ERR_INVALID;
        }
    }
    int32_t byte = decoder->byte_fallback ? named_byte(text, size) : -1;
    char c = (char)byte;
    return byte >= 0 ? mf_buffer_append(out, &c, 1) : mf_buffer_append(out, text, size);
}

static mf_status set_bytes(const mf_decoder *decoder, mf_vocab *vocab, int32_t id, const char *text, size_t size,
                           mf_buffer work[2])
{
    mf_buffer *bytes = &vocab->bytes;
    size_t begin = bytes->size;
    if (!decoder->byte_level) {
        MF_TRY(append_token(decoder, text, size, false, work, bytes));
    } else if (id < decoder->plain_from) {
        MF_TRY(append_byte_level(text, size, bytes));
    } else {
        MF_TRY(mf_buffer_append(bytes, text, size));
    }
    if (bytes->size - begin > MF_VOCAB_MAX_TOKEN_BYTES) {
        return MF_ERR_INVALID;
    }
    if (bytes->size > UINT32_MAX) {
        return MF_ERR_LIMIT;
    }
    vocab->entries[id].bytes_at = (uint32_t)begin;
    vocab->entries[id].bytes_size = (uint32_t)(bytes->size - begin);
    /* A token may stand for nothing, but it has a place. */
    return mf_buffer_append(bytes, "", 0);
}

mf_status mf_decoder_make_bytes(const mf_decoder *decoder, mf_vocab *vocab, int32_t *id)
{
    mf_buffer work[2] = { { 0 }, { 0 } };
    vocab->bytes.limit = MF_DECODER_MAX_GROWTH * vocab->text.size + MF_VOCAB_MAX_TOKEN_BYTES;
    mf_status status = mf_buffer_reserve(&vocab->bytes, vocab->text.size);
    for (*id = 0; (size_t)*id < vocab->size && status == MF_OK; *id += status == MF_OK) {
        size_t size;
        const char *text = mf_vocab_text(vocab, *id, &size);
        status = set_bytes(decoder, vocab, *id, text, size, work);
    }
    mf_buffer_close(&work[0]);
    mf_buffer_close(&work[1]);
    return status;
}

mf_status mf_decoder_set_bytes(const mf_decoder *decoder, mf_vocab *vocab, int32_t id, const char *text, size_t size)
{
    mf_buffer work[2] = { { 0 }, { 0 } };
    mf_status status = set_bytes(decoder, vocab, id, text, size, work);
    mf_buffer_close(&work[0]);
    mf_buffer_close(&work[1]);
    return status;
}

mf_status mf_decoder_first(const mf_decoder *decoder, const char *text, size_t size, mf_buffer *out)
{
    mf_buffer work[2] = { { 0 }, { 0 } };
    mf_status status = append_token(decoder, text, size, true, work, out);
    mf_buffer_close(&work[0]);
    mf_buffer_close(&work[1]);
    return status;
}

size_t mf_decoder_num_stripped(const mf_decoder *decoder, const char *text, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < decoder->strip_count && size - n >= decoder->strip_size; i++) {
        if (memcmp(text + n, decoder->strip, decoder->strip_size) != 0) {
            break;
        }
        n += decoder->strip_size;
    }
    return n;
}

void mf_decoder_close(mf_decoder *decoder)
{
    for (size_t i = 0; i < decoder->num_replacements; i++) {
        mf_replacement_close(&decoder->replacements[i]);
    }
    decoder->num_replacements = 0;
}
