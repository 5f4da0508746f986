/* fuzz_tiktoken.c - any bytes as a tiktoken file and its tokenizer_config.json; what is accepted is used.
 *
 * The first line is the configuration, whose tokenizer_class chooses the class; the rest are the ranks.  A first byte
 * '+' puts the 256 bytes before the ranks, so that a small input makes a whole tokenizer. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/tiktoken.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const texts[] = {
    "Hello, world! I'LL pay 12345 \xe2\x82\xac\n\n  x",
    "[BOS]a<|bos|> <|extra_3|>b<|reserved_token_260|>\n",
    "e\xcc\x81\xcc\xa7 \xe4\xb8\xad\xe6\x96\x87 \xe3\x80\x87 \xf0\x9f\x91\xa9\xe2\x80\x8d",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
    "abababababababababababababababababababababababababababababababababab",
    "    \t\r\n   ",
    "",
};

static void append_bytes(mf_buffer *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int b = 0; b < 256; b++) {
        mf_buffer_printf(out, "%c%c== %d\n", digits[b >> 2], digits[(b & 3) << 4], b);
    }
}

static void use(const mf_tokenizer *tok, const char *text, unsigned flags)
{
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    mf_buffer back = { 0 };
    if (mf_tokenizer_encode(tok, text, strlen(text), flags, &ids, &err) != MF_OK) {
        abort();
    }
    for (size_t i = 0; i < ids.size; i++) {
        if (!mf_tokenizer_token_text(tok, ids.data[i])) {
            abort();
        }
    }
    if (mf_tokenizer_decode(tok, ids.data, ids.size, false, &back, &err) != MF_OK) {
        abort();
    }
    /* All bytes are tokens, so nothing is lost where nothing is normalised. */
    bool composes = mf_tokenizer_token_id(tok, "<|extra_0|>") >= 0;
    if (!composes && strcmp(mf_buffer_text(&back), text) != 0) {
        abort();
    }
    mf_buffer_close(&back);
    mf_ids_close(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    mf_buffer ranks = { 0 };
    json_t *config = NULL;
    const char *text = (const char *)data;
    const char *line_end = memchr(text, '\n', size);
    if (!line_end || mf_json_parse(text, (size_t)(line_end - text), "config", NULL, &config, &err) != MF_OK) {
        return 0;
    }
    const char *rest = line_end + 1, *end = text + size;
    if (rest < end && *rest == '+') {
        append_bytes(&ranks);
        rest++;
    }
    mf_buffer_append(&ranks, rest, (size_t)(end - rest));
    const char *name = json_string_value(json_object_get(config, "tokenizer_class"));
    const mf_tiktoken_class *class = mf_tiktoken_find_class(name ? name : "");
    class = class ? class : mf_tiktoken_get_class(0);
    err = (mf_error){ 0 };
    if (mf_tiktoken_parse(class, mf_buffer_text(&ranks), ranks.size, "ranks", config, "config", &tok, &err) != MF_OK) {
        if (tok || err.message[0] == '\0') {
            abort();
        }
    } else {
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            use(tok, texts[i], (unsigned)i);
        }
    }
    mf_tokenizer_close(&tok);
    mf_buffer_close(&ranks);
    json_decref(config);
    return 0;
}
