/* fuzz_http_response.c - an HTTP answer cut at a place of the input's choosing is read as the whole one is.
 *
 * Input: two bytes that say where to cut; the answer's bytes. */
#include <stdlib.h>
#include <string.h>

#include "cli/http_response.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static mf_status keep(void *context, const char *bytes, size_t size, mf_error *err)
{
    (void)err;
    return mf_buffer_append(context, bytes, size);
}

typedef struct reading {
    mf_http_response head;
    mf_buffer body;
    mf_status status;
    size_t used;
} reading;

static void feed(reading *r, const char *text, size_t size)
{
    size_t used = 0;
    mf_error err = { 0 };
    if (r->status == MF_OK && r->head.part != MF_HTTP_DONE) {
        r->status = mf_http_response_feed(&r->head, text, size, &used, keep, &r->body, &err);
        if (r->status == MF_OK && (used > size || (used < size && r->head.part != MF_HTTP_DONE))) {
            abort();
        }
        r->used += used;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    const char *text = (const char *)data + 2;
    size_t n = size - 2, cut = (size_t)(data[0] | data[1] << 8) % (n + 1);
    reading whole = { 0 }, parts = { 0 };
    feed(&whole, text, n);
    feed(&parts, text, cut);
    feed(&parts, text + cut, n - cut);
    bool same = whole.status == parts.status;
    if (same && whole.status == MF_OK) {
        mf_error err = { 0 };
        same = whole.used == parts.used && whole.head.part == parts.head.part &&
               whole.head.status == parts.head.status && whole.head.keep_alive == parts.head.keep_alive &&
               whole.head.left == parts.head.left && whole.body.size == parts.body.size &&
               memcmp(mf_buffer_text(&whole.body), mf_buffer_text(&parts.body), whole.body.size) == 0;
        mf_http_response_end(&whole.head, &err);
    }
    if (!same) {
        abort();
    }
    mf_http_response_close(&whole.head);
    mf_http_response_close(&parts.head);
    mf_buffer_close(&whole.body);
    mf_buffer_close(&parts.body);
    return 0;
}
