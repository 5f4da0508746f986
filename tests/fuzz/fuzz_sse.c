/* fuzz_sse.c - an event stream cut at a place of the input's choosing gives the events of the whole one.
 *
 * Input: two bytes that say where to cut; the stream. */
#include <stdlib.h>
#include <string.h>

#include "cli/bench_record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool keep(void *context, const char *data, size_t size)
{
    mf_buffer *all = context;
    if (data[size] != '\0') {
        abort();
    }
    mf_buffer_append(all, data, size);
    mf_buffer_append(all, "\0", 1);
    mf_bench_record record = { .output_len = -1 };
    bool goes_on = mf_bench_record_event(&record, data, size, 1);
    mf_bench_record_end(&record, !goes_on);
    if (record.ok && record.error[0]) {
        abort();
    }
    mf_bench_record_close(&record);
    return size < 6 || memcmp(data, "[DONE]", 6) != 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    const char *text = (const char *)data + 2;
    size_t n = size - 2, cut = (size_t)(data[0] | data[1] << 8) % (n + 1);
    mf_buffer whole = { 0 }, parts = { 0 };
    mf_sse a = { 0 }, b = { 0 };
    mf_error err = { 0 };
    mf_status whole_status = mf_sse_feed(&a, text, n, keep, &whole, &err);
    mf_status status = mf_sse_feed(&b, text, cut, keep, &parts, &err);
    if (status == MF_OK) {
        status = mf_sse_feed(&b, text + cut, n - cut, keep, &parts, &err);
    }
    if (status != whole_status || whole.size != parts.size ||
        memcmp(mf_buffer_text(&whole), mf_buffer_text(&parts), whole.size) != 0) {
        abort();
    }
    mf_buffer_close(&whole);
    mf_buffer_close(&parts);
    mf_sse_close(&a);
    mf_sse_close(&b);
    return 0;
}
