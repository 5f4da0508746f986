/* tiny_tokenizer.h - tokenizer.json files made on the spot: ids 0..255 are the bytes, then what a test asks for. */
#ifndef TINY_TOKENIZER_H
#define TINY_TOKENIZER_H

#include "base/json.h"
#include "text/tokenizer.h"
#include "text/utf8.h"
#include "text/vocab.h"

#define TINY_BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}"

/* The parts of a file; NULL takes the default behind it. */
typedef struct tiny_parts {
    const char *more_vocab;     /* ,"ab":256,... : "" */
    const char *merges;         /* "[]" */
    const char *added_tokens;   /* "[]" */
    const char *normalizer;     /* "null" */
    const char *pre_tokenizer;  /* TINY_BYTE_LEVEL */
    const char *post_processor; /* "null" */
    const char *decoder;        /* TINY_BYTE_LEVEL */
    const char *model;          /* more members of the model, with a comma behind: "" */
} tiny_parts;

static inline const char *tiny_or(const char *part, const char *otherwise)
{
    return part ? part : otherwise;
}

static inline void tiny_json(const tiny_parts *parts, mf_buffer *out)
{
    mf_buffer_printf(out,
                     "{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_"
                     "processor\":%s,\"decoder\":%s,",
                     tiny_or(parts->added_tokens, "[]"), tiny_or(parts->normalizer, "null"),
                     tiny_or(parts->pre_tokenizer, TINY_BYTE_LEVEL), tiny_or(parts->post_processor, "null"),
                     tiny_or(parts->decoder, TINY_BYTE_LEVEL));
    mf_buffer_printf(out, "\"model\":{\"type\":\"BPE\",%s\"vocab\":{", tiny_or(parts->model, ""));
    for (int b = 0; b < 256; b++) {
        char text[5] = { 0 };
        mf_utf8_put(mf_byte_to_char((uint8_t)b), text);
        mf_buffer_printf(out, "%s\"%s%s\":%d", b ? "," : "", b == '"' || b == '\\' ? "\\" : "", text, b);
    }
    mf_buffer_printf(out, "%s},\"merges\":%s}}", tiny_or(parts->more_vocab, ""), tiny_or(parts->merges, "[]"));
}

static inline mf_status tiny_parse(const tiny_parts *parts, mf_tokenizer **out, mf_error *err)
{
    mf_buffer json = { 0 };
    tiny_json(parts, &json);
    mf_status status = mf_tokenizer_parse(mf_buffer_text(&json), json.size, "tiny.json", out, err);
    mf_buffer_close(&json);
    return status;
}

static inline mf_tokenizer *tiny_open(const tiny_parts *parts)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    CHECK_OK(tiny_parse(parts, &tok, &err), err);
    return tok;
}

/* 256 "ab", 257 "aba", 258 the first two bytes of U+4E2D, 259 its last and an "a", 260 <s> (special). */
static inline mf_tokenizer *tiny_tokenizer(void)
{
    return tiny_open(&(tiny_parts){
        .more_vocab = ",\"ab\":256,\"aba\":257,\"\xc3\xa4\xc2\xb8\":258,\"\xc5\x83"
                      "a\":259",
        .merges = "[[\"a\",\"b\"],[\"ab\",\"a\"]]",
        .added_tokens =
            "[{\"id\":260,\"content\":\"<s>\",\"special\":true,\"lstrip\":false,\"rstrip\":false,\"single_word\":false,"
            "\"normalized\":false}]",
    });
}

#endif
