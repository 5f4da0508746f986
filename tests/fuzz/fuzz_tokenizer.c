/* fuzz_tokenizer.c - any bytes as a tokenizer.json; one that is accepted is used. */
#include <stdlib.h>
#include <string.h>

#include "text/stream.h"
#include "text/tokenizer_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const texts[] = {
    "Hello, world! I'LL pay 12345 \xe2\x82\xac\n\n  x",
    "<s>a<x> <x>b</s>  <|im_start|>user\n",
    "e\xcc\x81\xcc\xa7 \xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8 \xf0\x9f\x91\xa9\xe2\x80\x8d",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
    "    \t\r\n   ",
    "\x01\x7f\xc2\xa0\xef\xbb\xbf",
    "",
};

static void use(const mf_tokenizer *tok, const char *text, size_t size, unsigned flags)
{
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    mf_buffer whole = { 0 }, streamed = { 0 };
    mf_stream *stream = NULL;
    int32_t stop;
    if (mf_tokenizer_encode(tok, text, size, flags, &ids, &err) == MF_OK) {
        for (size_t i = 0; i < ids.size; i++) {
            if (ids.data[i] < 0 || ids.data[i] >= mf_tokenizer_vocab_size(tok) ||
                !mf_tokenizer_token_text(tok, ids.data[i])) {
                abort();
            }
        }
        if (mf_tokenizer_decode(tok, ids.data, ids.size, flags & 1, &whole, &err) != MF_OK) {
            abort();
        }
        mf_stream_options options = { .skip_special = flags & 1 };
        if (mf_stream_open(tok, &options, &stream, &err) != MF_OK) {
            abort();
        }
        for (size_t i = 0; i < ids.size; i++) {
            if (mf_stream_push(stream, ids.data[i], &streamed, &stop, &err) != MF_OK) {
                abort();
            }
        }
        if (mf_stream_finish(stream, &streamed, &stop, &err) != MF_OK) {
            abort();
        }
        /* A whole text's beginning may be stripped. */
        bool strips = tok->decoder.drops_in_first || tok->decoder.strip_count > 0;
        if (strips ? whole.size > streamed.size && !tok->decoder.byte_fallback
                   : streamed.size != whole.size ||
                         memcmp(mf_buffer_text(&streamed), mf_buffer_text(&whole), whole.size) != 0) {
            abort();
        }
        mf_stream_close(&stream);
    }
    mf_buffer_close(&whole);
    mf_buffer_close(&streamed);
    mf_ids_close(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    if (mf_tokenizer_parse((const char *)data, size, "fuzz.json", &tok, &err) != MF_OK) {
        if (tok || err.message[0] == '\0') {
            abort();
        }
        return 0;
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        use(tok, texts[i], strlen(texts[i]), (unsigned)i);
    }
    /* The file itself, too: its tokens occur in it. */
    use(tok, (const char *)data, size < 4096 ? size : 4096, 0);
    for (int32_t id = -1; id <= mf_tokenizer_vocab_size(tok); id++) {
        size_t n;
        const char *text = mf_tokenizer_token_text(tok, id);
        if (text && (mf_tokenizer_token_id(tok, text) != id || !mf_tokenizer_token_bytes(tok, id, &n))) {
            abort();
        }
        (void)mf_tokenizer_is_special(tok, id);
    }
    mf_tokenizer_close(&tok);
    return 0;
}
