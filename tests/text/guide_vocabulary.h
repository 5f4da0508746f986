/* guide_vocabulary.h - a small vocabulary that is hard on guides: all bytes, tokens that span parts of JSON, parts of characters,
 * two tokens of the same bytes cannot be in one file, so none is. */
#ifndef GUIDE_VOCABULARY_H
#define GUIDE_VOCABULARY_H

#include "test.h"

#include "text/guide.h"
#include "tiny_tokenizer.h"

/* Written in the alphabet of byte-level BPE: \u0120 is a blank, \u010a a line end. */
static const char *const guide_pieces[] = {
    "\\\"}", "},{", "\\\"},{\\\"", "\\\":", "\\\",", "\\\",\\\"", ",\\\"", "{\\\"", "[{\\\"", "[[", "]]", "]}", "}}", "]}]", "\\u0120\\\"",
    "\\u010a\\u0120", "\\u0120\\u0120", "\\u0120\\u0120\\u0120\\u0120", "\\\":\\u0120", "\\\":\\u0120\\\"", ",\\u0120\\\"", ",\\u010a", "true", "false", "null",
    "tr", "ue", "nu", "ll", "ab", "abc", "name", "age\\\"", "na", "me\\\":", "10", "12", "123", "00", "0.", ".5", "-1", "-",
    "e1", "1e", "\\\\\\\\", "\\\\\\\"", "\\\\u", "\\\\u00", "\\\\n", "d8", "\\\\ud83d\\\\ude00", "aa", "bb", "aab", "ba", "\\u00e4\\u00b8", "\\u00c3\\u00a9",
    "\\u00c3", "\\u00e4\\u00b8\\u0143", "a\\u00c3", "\\u00a9b", "2024-", "-02-", "T12:", ":00", "Z\\\"", "x@y", ".com", "\\\\\\\"a", "\\\"\\\"", "{}", "[]", ":{\\\"", "\\\":{",
    "\\\":[", "\\\":[{\\\"", "\\\":\\\"", "],\\\"", "\\u0120}", "\\u0120]", "{\\u0120", "+", "1+1", "(1", ")*", "((", "if", "else", "\\u0120if",
};

enum { GUIDE_EOS = 256 + (int)(sizeof guide_pieces / sizeof *guide_pieces) };

static inline mf_tokenizer *guide_tokenizer(void)
{
    mf_buffer more = { 0 };
    mf_buffer added = { 0 };
    int32_t id = 256;
    for (size_t i = 0; i < sizeof guide_pieces / sizeof *guide_pieces; i++) {
        if (strlen(guide_pieces[i]) > 1 && strcmp(guide_pieces[i], "\\u00c3") != 0) {
            mf_buffer_printf(&more, ",\"%s\":%d", guide_pieces[i], id++);
        } else {
            mf_buffer_printf(&more, ",\"filler%d\":%d", id, id);
            id++;
        }
    }
    mf_buffer_printf(&added, "[{\"id\":%d,\"content\":\"<eos>\",\"special\":true,\"lstrip\":false,\"rstrip\":false,\"single_word\":false,"
                             "\"normalized\":false}]", id);
    mf_tokenizer *tok = tiny_open(&(tiny_parts){ .more_vocab = mf_buffer_text(&more), .added_tokens = mf_buffer_text(&added) });
    mf_buffer_close(&more);
    mf_buffer_close(&added);
    return tok;
}

static inline mf_guide_vocab *guide_vocabulary(mf_tokenizer *tok)
{
    mf_guide_vocab *vocab = NULL;
    mf_error err = { 0 };
    const int32_t eos[] = { GUIDE_EOS };
    CHECK_OK(mf_guide_vocab_open(tok, eos, 1, &vocab, &err), err);
    return vocab;
}

#endif
