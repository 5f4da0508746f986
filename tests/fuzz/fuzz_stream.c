/* fuzz_stream.c - stop strings and token ids from bytes: a stream gives the whole decode's text up to the stop string
 * that ends first.
 *
 * Input: flags; up to three stop strings, each a length and bytes; then ids, one byte each, 0xf8..0xff standing for the
 * tokens past the bytes. */
#include <stdlib.h>
#include <string.h>

#define CHECK_OK(call, err)                                                                                            \
    do {                                                                                                               \
        (void)(err);                                                                                                   \
        if ((call) != MF_OK) {                                                                                         \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)
#include "../text/tiny_tokenizer.h"
#include "text/stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static mf_tokenizer *tok;
    if (!tok) {
        tok = tiny_tokenizer();
    }
    if (size < 1) {
        return 0;
    }
    mf_stop_string stops[3];
    mf_stream_options options = { .stops = stops, .include_stop = data[0] & 1, .skip_special = data[0] & 2 };
    size_t at = 1;
    while (options.num_stops < (data[0] >> 2 & 3) && at < size && data[at] > 0 && data[at] <= size - at - 1) {
        stops[options.num_stops++] = (mf_stop_string){ (const char *)data + at + 1, data[at] };
        at += 1 + data[at];
    }
    mf_error err = { 0 };
    mf_stream *stream = NULL;
    if (mf_stream_open(tok, &options, &stream, &err) != MF_OK) {
        return 0; /* a stop string that is not UTF-8 */
    }
    mf_ids ids = { .size = size - at };
    ids.data = malloc((ids.size + 1) * sizeof *ids.data);
    for (size_t i = 0; i < ids.size; i++) {
        ids.data[i] = data[at + i] >= 0xf8 && data[at + i] - 0xf8 < 5 ? 256 + data[at + i] - 0xf8 : data[at + i];
    }
    mf_buffer whole = { 0 }, text = { 0 };
    int32_t hit = -1;
    CHECK_OK(mf_tokenizer_decode(tok, ids.data, ids.size, options.skip_special, &whole, &err), err);
    for (size_t i = 0; i < ids.size && hit < 0; i++) {
        CHECK_OK(mf_stream_push(stream, ids.data[i], &text, &hit, &err), err);
        if (!mf_utf8_valid(mf_buffer_text(&text), text.size, NULL)) {
            abort();
        }
    }
    if (hit < 0) {
        CHECK_OK(mf_stream_finish(stream, &text, &hit, &err), err);
    }
    size_t end = whole.size;
    bool found = false;
    for (size_t e = 1; e <= whole.size && !found; e++) {
        size_t longest = 0;
        for (size_t i = 0; i < options.num_stops; i++) {
            if (stops[i].size <= e && stops[i].size > longest &&
                memcmp(whole.data + e - stops[i].size, stops[i].text, stops[i].size) == 0) {
                longest = stops[i].size;
            }
        }
        found = longest > 0;
        end = found ? (options.include_stop ? e : e - longest) : end;
    }
    if (found != (hit >= 0) || text.size != end || memcmp(mf_buffer_text(&text), mf_buffer_text(&whole), end) != 0) {
        abort();
    }
    mf_stream_close(&stream);
    mf_buffer_close(&whole);
    mf_buffer_close(&text);
    free(ids.data);
    return 0;
}
