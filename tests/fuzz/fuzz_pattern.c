/* fuzz_pattern.c - a pattern, a zero byte, a text: pieces are in order, and the work keeps its bound. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/pretokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size > 1 ? memchr(data + 1, 0, size - 1) : NULL;
    if (!zero) {
        return 0;
    }
    const char *pattern = (const char *)data + 1, *text = (const char *)zero + 1;
    size_t pattern_size = (size_t)(zero - data) - 1, text_size = size - (size_t)(zero + 1 - data);
    if (!mf_utf8_valid(pattern, pattern_size, NULL) || !mf_utf8_valid(text, text_size, NULL)) {
        return 0;
    }
    mf_error err = { 0 };
    mf_pretokenizer pre = { .num_steps = 1,
                            .steps[0] = { .behavior = (mf_split_behavior)(data[0] % 5), .invert = data[0] & 0x80 } };
    if (mf_pattern_compile(pattern, pattern_size, &pre.steps[0].pattern, &err) != MF_OK) {
        return 0;
    }
    mf_pretokens out = { 0 };
    if (mf_pretokenizer_run(&pre, text, text_size, true, &out) == MF_OK) {
        uint32_t at = 0;
        for (size_t i = 0; i < out.pieces.size; i++) {
            mf_piece piece = out.pieces.data[i];
            if (piece.start < at || piece.end <= piece.start || piece.end > out.num_points) {
                abort();
            }
            at = piece.end;
        }
        if (out.steps > mf_pattern_size(pre.steps[0].pattern) * (out.num_points + 1) * 4) {
            abort();
        }
    }
    mf_pretokens_close(&out);
    mf_pretokenizer_close(&pre);
    return 0;
}
