/* tokenizer_test.c - claims about encoding, decoding and above all about what is refused.  That ids are right for real
 * tokenizers is for tokenizer_oracle.py to say. */
#include "test.h"

#include <dirent.h>
#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"
#include "text/nfc.h"
#include "text/tokenizer.h"
#include "tiny_tokenizer.h"

#define ADDED(id, content, flags) "{\"id\":" #id ",\"content\":\"" content "\"" flags "}"

static void check_ids(const mf_tokenizer *tok, const char *text, unsigned flags, const int32_t *expected, size_t n)
{
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    CHECK_OK(mf_tokenizer_encode(tok, text, strlen(text), flags, &ids, &err), err);
    CHECK_EQ(ids.size, n);
    for (size_t i = 0; i < n; i++) {
        CHECK_EQ(ids.data[i], expected[i]);
    }
    mf_ids_close(&ids);
}

#define CHECK_IDS(tok, text, flags, ...)                                                                               \
    check_ids(tok, text, flags, (const int32_t[]){ __VA_ARGS__ },                                                      \
              sizeof((const int32_t[]){ __VA_ARGS__ }) / sizeof(int32_t))

static void check_refused(const tiny_parts *parts, mf_status status, const char *part)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    CHECK_EQ(tiny_parse(parts, &tok, &err), status);
    CHECK(tok == NULL);
    CHECK_HAS(err.message, part);
    CHECK_HAS(err.message, "tiny.json");
}

static void check_file_refused(const char *json, mf_status status, const char *part)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    CHECK_EQ(mf_tokenizer_parse(json, strlen(json), "t.json", &tok, &err), status);
    CHECK(tok == NULL);
    CHECK_HAS(err.message, part);
}

TEST(bytes_and_the_alphabet_of_byte_level_are_one_to_one)
{
    for (int b = 0; b < 256; b++) {
        CHECK_EQ(mf_byte_from_char(mf_byte_to_char((uint8_t)b)), b);
    }
    CHECK_EQ(mf_byte_to_char(' '), 0x120);
    CHECK_EQ(mf_byte_to_char('\n'), 0x10a);
    CHECK_EQ(mf_byte_to_char(0xad), 0x143);
    CHECK_EQ(mf_byte_from_char(0x144), -1);
    CHECK_EQ(mf_byte_from_char(' '), -1);
}

TEST(the_lowest_rank_merges_first_and_of_equals_the_leftmost)
{
    /* b+c (0) before a+b (1): "abc" is a, bc; then a+bc (2) is one token. */
    mf_tokenizer *tok = tiny_open(&(tiny_parts){ .more_vocab = ",\"bc\":256,\"ab\":257,\"abc\":258,\"aa\":259",
                                                 .merges = "[\"b c\",\"a b\",\"a bc\",\"a a\"]" });
    CHECK_IDS(tok, "abc", 0, 258);
    CHECK_IDS(tok, "ab", 0, 257);
    CHECK_IDS(tok, "aaa", 0, 259, 'a');
    CHECK_IDS(tok, "abcab", 0, 258, 257);
    mf_tokenizer_close(&tok);
}

/* Plain loops: the rule itself. */
static size_t merge_plainly(const mf_tokenizer *tok, const char *const *merges, size_t num_merges, int32_t *ids,
                            size_t n)
{
    for (;;) {
        size_t best = n, best_rank = num_merges;
        for (size_t i = 0; i + 1 < n; i++) {
            char pair[600];
            snprintf(pair, sizeof pair, "%s %s", mf_tokenizer_token_text(tok, ids[i]),
                     mf_tokenizer_token_text(tok, ids[i + 1]));
            for (size_t r = 0; r < best_rank; r++) {
                if (strcmp(pair, merges[r]) == 0) {
                    best = i;
                    best_rank = r;
                }
            }
        }
        if (best == n) {
            return n;
        }
        char joined[600];
        snprintf(joined, sizeof joined, "%s%s", mf_tokenizer_token_text(tok, ids[best]),
                 mf_tokenizer_token_text(tok, ids[best + 1]));
        ids[best] = mf_tokenizer_token_id(tok, joined);
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        n--;
    }
}

TEST(short_long_and_huge_words_merge_by_the_same_rule)
{
    /* The second list has merges whose result begins a pair of lower rank, which queues alone would get wrong. */
    static const char *const lists[2][8] = { { "a b", "b a", "a a", "ab ab", "aa b", "ab a", "abab abab", "b b" },
                                             { "abab a", "ab ab", "aa b", "a aa", "a b", "a a", "b ab", "b b" } };
    uint64_t seed = 99;
    for (int l = 0; l < 2; l++) {
        mf_buffer vocab = { 0 }, merges = { 0 };
        CHECK_EQ(mf_buffer_append_text(&merges, "["), MF_OK);
        for (int i = 0; i < 8; i++) {
            char joined[64];
            const char *space = strchr(lists[l][i], ' ');
            snprintf(joined, sizeof joined, "%.*s%s", (int)(space - lists[l][i]), lists[l][i], space + 1);
            mf_buffer_printf(&vocab, ",\"%s\":%d", joined, 256 + i);
            mf_buffer_printf(&merges, "%s\"%s\"", i ? "," : "", lists[l][i]);
        }
        CHECK_EQ(mf_buffer_append_text(&merges, "]"), MF_OK);
        mf_tokenizer *tok =
            tiny_open(&(tiny_parts){ .more_vocab = mf_buffer_text(&vocab), .merges = mf_buffer_text(&merges) });
        for (int round = 0; round < 60; round++) {
            size_t n = round < 40 ? 1 + (size_t)round * 3 : 1100 + (size_t)round;
            char *text = malloc(n);
            int32_t *expected = malloc(n * sizeof *expected);
            for (size_t i = 0; i < n; i++) {
                text[i] = mf_random_below(&seed, 4) == 0 ? 'b' : 'a';
                expected[i] = (uint8_t)text[i];
            }
            mf_error err = { 0 };
            mf_ids ids = { 0 };
            CHECK_OK(mf_tokenizer_encode(tok, text, n, 0, &ids, &err), err);
            CHECK_EQ(ids.size, merge_plainly(tok, lists[l], 8, expected, n));
            CHECK_MEM(ids.data, expected, ids.size * sizeof *expected);
            mf_ids_close(&ids);
            free(text);
            free(expected);
        }
        mf_tokenizer_close(&tok);
        mf_buffer_close(&vocab);
        mf_buffer_close(&merges);
    }
}

TEST(whole_words_are_taken_when_merges_are_ignored)
{
    tiny_parts parts = { .more_vocab = ",\"abc\":256", .model = "\"ignore_merges\":true," };
    mf_tokenizer *tok = tiny_open(&parts);
    CHECK_IDS(tok, "abc", 0, 256);
    CHECK_IDS(tok, "abcd", 0, 'a', 'b', 'c', 'd');
    mf_tokenizer_close(&tok);
    parts.model = NULL;
    tok = tiny_open(&parts);
    CHECK_IDS(tok, "abc", 0, 'a', 'b', 'c');
    mf_tokenizer_close(&tok);
}

TEST(added_tokens_are_cut_out_first_and_the_longest_wins)
{
    mf_tokenizer *tok = tiny_open(&(tiny_parts){
        .added_tokens = "[" ADDED(256, "<x>", ",\"special\":true") "," ADDED(257, "<x><", "") "," ADDED(
            258, "<w>", ",\"lstrip\":true,\"rstrip\":true") "," ADDED(259, "cat", ",\"single_word\":true") "]" });
    CHECK_IDS(tok, "a<x>b", 0, 'a', 256, 'b');
    CHECK_IDS(tok, "<x><x>", 0, 257, 'x', '>');
    CHECK_IDS(tok, "a \n<w>  b", 0, 'a', 258, 'b');
    CHECK_IDS(tok, "cat cats", 0, 259, ' ', 'c', 'a', 't', 's');
    CHECK_IDS(tok, "<x>", MF_ENCODE_NO_SPECIAL_TOKENS, '<', 'x', '>');
    CHECK_IDS(tok, "<w>", MF_ENCODE_NO_SPECIAL_TOKENS, 258);
    CHECK_IDS(tok, "<w>", MF_ENCODE_NO_ADDED_TOKENS, '<', 'w', '>');
    CHECK(mf_tokenizer_is_special(tok, 256) && mf_tokenizer_is_added(tok, 256));
    CHECK(!mf_tokenizer_is_special(tok, 257) && mf_tokenizer_is_added(tok, 257));
    CHECK(!mf_tokenizer_is_added(tok, 255) && !mf_tokenizer_is_special(tok, -1) && !mf_tokenizer_is_special(tok, 9999));
    mf_tokenizer_close(&tok);
}

TEST(the_template_surrounds_a_text_only_when_asked)
{
    mf_tokenizer *tok = tiny_open(&(tiny_parts){
        .added_tokens = "[" ADDED(256, "<s>", ",\"special\":true") "," ADDED(257, "</s>", ",\"special\":true") "]",
        .post_processor = "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"B\",\"type_id\":0}}"
                          ",{\"Sequence\":"
                          "{\"id\":\"A\",\"type_id\":0}},{\"SpecialToken\":{\"id\":\"E\",\"type_id\":0}}],\"pair\":[],"
                          "\"special_tokens\":{\"B\":{\"id\":\"B\",\"ids\":[256],\"tokens\":[\"<s>\"]},\"E\":{\"id\":"
                          "\"E\",\"ids\":[257,256],"
                          "\"tokens\":[\"</s>\",\"<s>\"]}}}" });
    CHECK_IDS(tok, "a", 0, 'a');
    CHECK_IDS(tok, "a", MF_ENCODE_ADD_SPECIAL, 256, 'a', 257, 256);
    CHECK_IDS(tok, "", MF_ENCODE_ADD_SPECIAL, 256, 257, 256);
    mf_tokenizer_close(&tok);
}

TEST(ids_are_appended_and_stay_as_they_were_on_failure)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    CHECK_OK(mf_tokenizer_encode(tok, "a", 1, 0, &ids, &err), err);
    CHECK_OK(mf_tokenizer_encode(tok, "b", 1, 0, &ids, &err), err);
    CHECK_EQ(mf_tokenizer_encode(tok, "c\xff", 2, 0, &ids, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "not valid UTF-8 at byte 1");
    CHECK_EQ(ids.size, 2);
    CHECK_EQ(ids.data[1], 'b');
    mf_ids_close(&ids);
    mf_tokenizer_close(&tok);
}

TEST(a_text_of_no_bytes_has_no_ids)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    CHECK_OK(mf_tokenizer_encode(tok, "", 0, 0, &ids, &err), err);
    CHECK_EQ(ids.size, 0);
    mf_ids_close(&ids);
    mf_tokenizer_close(&tok);
}

TEST(decoding_repairs_bytes_that_are_no_characters)
{
    static const struct {
        int32_t ids[6];
        size_t n;
        const char *text;
    } cases[] = {
        { { 0xc3, 0xa9 }, 2, "\xc3\xa9" },
        { { 0xc3 }, 1, "\xef\xbf\xbd" },
        { { 0xe4, 0xb8 }, 2, "\xef\xbf\xbd" },                               /* one for a cut character */
        { { 0xe0, 0x80, 0x80 }, 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" }, /* 0x80 cannot follow 0xe0 */
        { { 0xed, 0xa0, 'a' },
          3,
          "\xef\xbf\xbd\xef\xbf\xbd"
          "a" },                                                             /* a surrogate */
        { { 0xf4, 0x90, 0x80 }, 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" }, /* past U+10FFFF */
        { { 258, 259 },
          2,
          "\xe4\xb8\xad"
          "a" },
        { { 'a', 260, 'b' }, 3, "a<s>b" },
    };
    mf_tokenizer *tok = tiny_tokenizer();
    mf_error err = { 0 };
    mf_buffer text = { 0 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mf_buffer_clear(&text);
        CHECK_OK(mf_tokenizer_decode(tok, cases[i].ids, cases[i].n, false, &text, &err), err);
        CHECK_STR(mf_buffer_text(&text), cases[i].text);
    }
    mf_buffer_clear(&text);
    CHECK_OK(mf_tokenizer_decode(tok, (const int32_t[]){ 'a', 260, 'b' }, 3, true, &text, &err), err);
    CHECK_STR(mf_buffer_text(&text), "ab");
    CHECK_EQ(mf_tokenizer_decode(tok, (const int32_t[]){ 'c', 261 }, 2, true, &text, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "token id 261 at place 1: expected 0 to 260");
    CHECK_STR(mf_buffer_text(&text), "ab");
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(tokens_are_found_by_text_and_by_id)
{
    mf_tokenizer *tok = tiny_tokenizer();
    size_t size;
    CHECK_EQ(mf_tokenizer_vocab_size(tok), 261);
    CHECK_EQ(mf_tokenizer_token_id(tok, "aba"), 257);
    CHECK_EQ(mf_tokenizer_token_id(tok, "<s>"), 260);
    CHECK_EQ(mf_tokenizer_token_id(tok, "nothing"), -1);
    CHECK_EQ(mf_tokenizer_token_id(tok, ""), -1);
    CHECK_STR(mf_tokenizer_token_text(tok, ' '), "\xc4\xa0");
    CHECK_MEM(mf_tokenizer_token_bytes(tok, ' ', &size), " ", 1);
    CHECK_EQ(size, 1);
    CHECK_MEM(mf_tokenizer_token_bytes(tok, 258, &size), "\xe4\xb8", 2);
    CHECK_EQ(size, 2);
    CHECK(mf_tokenizer_token_text(tok, 261) == NULL && mf_tokenizer_token_text(tok, -1) == NULL);
    CHECK(mf_tokenizer_token_bytes(tok, INT32_MAX, &size) == NULL);
    mf_tokenizer_close(&tok);
}

TEST(what_is_not_supported_is_refused_by_name)
{
#define UNSUPPORTED(part, text) check_refused(&(tiny_parts){ part }, MF_ERR_UNSUPPORTED, text)
    UNSUPPORTED(.normalizer = "{\"type\":\"NFKC\"}", "normalizer \"NFKC\" is not supported");
    UNSUPPORTED(.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\"}]}",
                "normalizer \"Lowercase\"");
    UNSUPPORTED(.pre_tokenizer = "{\"type\":\"Whitespace\"}", "pre_tokenizer \"Whitespace\"");
    UNSUPPORTED(.pre_tokenizer = "null", "decoder \"ByteLevel without a pre_tokenizer ByteLevel\"");
    UNSUPPORTED(.pre_tokenizer =
                    "{\"type\":\"Sequence\",\"pretokenizers\":[" TINY_BYTE_LEVEL ",{\"type\":\"Digits\"}]}",
                "pre_tokenizer \"Digits\" after ByteLevel");
    UNSUPPORTED(.pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?>a)\"},\"behavior\":\"Isolated\"}",
                "pre_tokenizer: pattern \"(?>a)\": byte 0: this kind of group");
    UNSUPPORTED(.pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Doubled\"}",
                "Split.behavior \"Doubled\"");
    UNSUPPORTED(.post_processor = "{\"type\":\"BertProcessing\"}", "post_processor \"BertProcessing\"");
    UNSUPPORTED(.post_processor = "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},{"
                                  "\"Sequence\":{\"id\":\"A\"}}]}",
                "without exactly one sequence A");
    UNSUPPORTED(.decoder = "{\"type\":\"WordPiece\"}", "decoder \"WordPiece\"");
    UNSUPPORTED(.decoder = "null", "decoder \"null\"");
    UNSUPPORTED(.model = "\"byte_fallback\":true,", "model \"byte_fallback behind a pre_tokenizer ByteLevel\"");
    UNSUPPORTED(.model = "\"dropout\":0.1,", "model \"dropout\"");
    UNSUPPORTED(.model = "\"continuing_subword_prefix\":\"##\",", "model \"continuing_subword_prefix\"");
    UNSUPPORTED(.model = "\"end_of_word_suffix\":\"</w>\",", "model \"end_of_word_suffix\"");
#undef UNSUPPORTED
    check_file_refused("{\"pre_tokenizer\":" TINY_BYTE_LEVEL ",\"decoder\":" TINY_BYTE_LEVEL
                       ",\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}",
                       MF_ERR_UNSUPPORTED, "model \"Unigram\"");
    check_file_refused("{\"pre_tokenizer\":" TINY_BYTE_LEVEL ",\"decoder\":" TINY_BYTE_LEVEL
                       ",\"model\":{\"unk_token\":\"a\",\"vocab\":{\"a\":0},\"merges\":[]}}",
                       MF_ERR_UNSUPPORTED, "model.unk_token is not supported where model.vocab lacks a byte");
}

TEST(a_setting_that_changes_nothing_is_accepted)
{
    mf_tokenizer *tok = tiny_open(
        &(tiny_parts){ .model = "\"dropout\":null,\"unk_token\":\"a\",\"byte_fallback\":false,\"fuse_unk\":true,"
                                "\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":null," });
    CHECK_IDS(tok, "b", 0, 'b');
    mf_tokenizer_close(&tok);
}

TEST(malformed_vocabularies_are_refused)
{
#define MALFORMED(part, text) check_refused(&(tiny_parts){ part }, MF_ERR_FORMAT, text)
    MALFORMED(.more_vocab = ",\"ab\":300", "expected ids without gaps; got 257 tokens with ids up to 300");
    MALFORMED(.more_vocab = ",\"ab\":7", "token \"ab\": id 7 is taken by");
    MALFORMED(.more_vocab = ",\"a\":256", "token \"a\" occurs twice");
    MALFORMED(.more_vocab = ",\"\\u0061\":256", "token \"a\" occurs twice");
    MALFORMED(.more_vocab = ",\"ab\":-1", "expected an integer");
    MALFORMED(.more_vocab = ",\"ab\":256.0", "expected an integer");
    MALFORMED(.more_vocab = ",\"ab\":0256", "expected an integer");
    MALFORMED(.more_vocab = ",\"ab\":\"256\"", "expected an integer");
    MALFORMED(.more_vocab = ",\"ab\":1048576", "expected an id from 0 to 1048575");
    MALFORMED(.more_vocab = ",\"ab\":99999999999999999999", "expected an integer");
    MALFORMED(.more_vocab = ",\"\":256", "expected 1 to 4096 bytes");
    MALFORMED(.more_vocab = ",\"a\\u0000\":256", "a NUL in a string");
    MALFORMED(.more_vocab = ",\"\\ud800\":256", "half of a surrogate pair");
    MALFORMED(.more_vocab = ",\"\\udc00\":256", "half of a surrogate pair");
    MALFORMED(.more_vocab = ",\"a\\x\":256", "unknown escape");
    MALFORMED(.more_vocab = ",\"a\nb\":256", "a control character");
    MALFORMED(.more_vocab = ",\"ab\":256,", "expected a string");
    MALFORMED(.more_vocab = ",\"ab\" 256", "expected ':'");
    MALFORMED(.more_vocab = " \"ab\":256", "expected ',' or the closing bracket");
#undef MALFORMED
    static const char head[] = "{\"pre_tokenizer\":" TINY_BYTE_LEVEL ",\"decoder\":" TINY_BYTE_LEVEL ",\"model\":";
    char json[1024];
    static const struct {
        const char *model, *message;
    } cases[] = {
        { "{\"vocab\":[],\"merges\":[]}}", "model.vocab: expected an object; got a list" },
        { "{\"merges\":[]}}", "model.vocab: expected an object; got nothing" },
        { "{\"vocab\":{},\"merges\":[]}}", "model.vocab: expected tokens; got none" },
        { "{\"vocab\":{\"a\":0},\"merges\":{}}}", "model.merges: expected a list; got an object" },
        { "{\"vocab\":{\"a\":0}}}", "model.merges: expected a list; got nothing" },
        { "{\"vocab\":{\"a\":0},\"vocab\":{\"a\":0},\"merges\":[]}}", "duplicate object key" },
        { "{\"vocab\":{\"a\":0]},\"merges\":[]}}", "not valid JSON" },
        { "{\"vocab\":{\"a\":0],\"merges\":[]}}", "model.vocab: byte" },
        { "{\"vocab\":{\"a\":0},\"merges\":[}}}", "model.merges: byte" },
        { "[]}", "model: expected an object; got a list" },
        { "{\"vocab\":{\"a\":0},\"merges\":[]}", "not valid JSON" },
        { "{\"type\":7,\"vocab\":{\"a\":0},\"merges\":[]}}", "model.type: expected a string; got an integer" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(json, sizeof json, "%s%s", head, cases[i].model);
        check_file_refused(json, MF_ERR_FORMAT, cases[i].message);
    }
    check_file_refused("", MF_ERR_FORMAT, "t.json");
    check_file_refused("[]", MF_ERR_FORMAT, "t.json");
    check_file_refused("{\"\xff\":0}", MF_ERR_FORMAT, "not valid UTF-8 at byte 2");
}

TEST(malformed_merges_are_refused)
{
#define MALFORMED(text, message)                                                                                       \
    check_refused(&(tiny_parts){ .more_vocab = ",\"ab\":256", .merges = text }, MF_ERR_FORMAT, message)
    MALFORMED("[\"ab\"]", "\"ab\": expected two tokens with one space between them");
    MALFORMED("[\"a b c\"]", "expected two tokens with one space between them");
    MALFORMED("[\"a c\"]", "\"a\" + \"c\": expected tokens of model.vocab, joined and apart");
    MALFORMED("[\"a \"]", "expected tokens of model.vocab");
    MALFORMED("[[\"a\"]]", "expected a merge of two strings");
    MALFORMED("[[\"a\",\"b\",\"c\"]]", "expected a merge of two strings");
    MALFORMED("[7]", "expected a string");
    MALFORMED("[[]]", "expected a string");
#undef MALFORMED
}

TEST(malformed_added_tokens_are_refused)
{
#define MALFORMED(list, message) check_refused(&(tiny_parts){ .added_tokens = list }, MF_ERR_FORMAT, message)
    MALFORMED("[" ADDED(300, "<x>", "") "]", "\"<x>\": expected id 256; got 300");
    MALFORMED("[" ADDED(256, "a", "") "]", "\"a\": expected id 97; got 256");
    MALFORMED("[" ADDED(256, "<x>", "") "," ADDED(256, "<y>", "") "]", "\"<y>\": expected id 257; got 256");
    MALFORMED("[" ADDED(256, "<x>", "") "," ADDED(257, "<x>", "") "]", "\"<x>\" occurs twice");
    MALFORMED("[" ADDED(256, "", "") "]", "expected a content of 1 to 512 bytes; got 0");
    MALFORMED("[{\"id\":256}]", "objects with a string \"content\" and an integer \"id\"");
    MALFORMED("[7]", "added_tokens: expected objects");
    MALFORMED("{}", "added_tokens: expected a list; got an object");
    MALFORMED("[" ADDED(256, "<x>", ",\"special\":1") "]",
              "added_tokens.special: expected true or false; got an integer");
#undef MALFORMED
    check_refused(&(tiny_parts){ .post_processor =
                                     "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"B\"}}],"
                                     "\"special_tokens\":{\"B\":{\"ids\":[256]}}}" },
                  MF_ERR_FORMAT, "expected token ids below 256; got 256");
}

TEST(a_file_that_is_not_there_is_an_io_error)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    CHECK_EQ(mf_tokenizer_open("/nonexistent/tokenizer.json", &tok, &err), MF_ERR_IO);
    CHECK(tok == NULL);
    mf_tokenizer_close(&tok);
}

TEST(the_corpus_is_what_its_names_say)
{
    static const char folder[] = MF_SOURCE_DIR "/tests/fuzz/corpus/tokenizer";
    DIR *dir = opendir(folder);
    CHECK(dir != NULL);
    int num_valid = 0, num_invalid = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        char path[512];
        mf_error err = { 0 };
        mf_tokenizer *tok = NULL;
        bool valid = strncmp(e->d_name, "valid_", 6) == 0;
        if (!valid && strncmp(e->d_name, "invalid_", 8) != 0) {
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        mf_status status = mf_tokenizer_open(path, &tok, &err);
        if ((status == MF_OK) != valid) {
            fail_msg("%s: %s: %s", e->d_name, mf_status_name(status), err.message);
        }
        num_valid += valid;
        num_invalid += !valid;
        mf_tokenizer_close(&tok);
    }
    closedir(dir);
    CHECK(num_valid >= 10 && num_invalid >= 10);
}

TEST(the_shape_of_a_file_does_not_matter)
{
    /* White space, members in another order, a "vocab" elsewhere, escapes. */
    static const char json[] = " {\n\"model\" : { \"merges\" : [ [ \"a\" , \"b\" ] ] , \"vocab\" : { \"a\" : 0 , \"b\" "
                               ": 1 , \"\\u0061\\u0062\" : 2 } } ,\n"
                               "\"vocab\":{\"z\":[{\"model\":{\"vocab\":{\"q\":9}}}]}, \"note\":\"\\\"model\\\":{\",\n"
                               "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" TINY_BYTE_LEVEL
                               ",{\"type\":\"Fuse\"}]},\"pre_tokenizer\":" TINY_BYTE_LEVEL "}\n";
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    CHECK_OK(mf_tokenizer_parse(json, strlen(json), "t.json", &tok, &err), err);
    CHECK_IDS(tok, "aba", 0, 2, 0);
    mf_tokenizer_close(&tok);
}

TEST(long_runs_of_combining_marks_are_normalised_in_linear_time)
{
    /* 200,000 marks that all have to move past each other: an insertion sort would take 10^10 steps. */
    enum { PAIRS = 100000 };
    mf_buffer text = { 0 }, out = { 0 };
    CHECK_EQ(mf_buffer_append_text(&text, "a"), MF_OK);
    for (int i = 0; i < PAIRS; i++) {
        CHECK_EQ(mf_buffer_append_text(&text, "\xcc\x81\xcc\xa7"), MF_OK); /* U+0301 (230), U+0327 (202) */
    }
    CHECK_EQ(mf_nfc(text.data, text.size, &out), MF_OK);
    /* All U+0327 first; a and U+0327 do not compose, so "a" + 100,000 x U+0327, then U+0301 composes with the a. */
    CHECK_EQ(out.size, 2 + (2 * PAIRS - 1) * 2);
    CHECK_MEM(out.data, "\xc3\xa1\xcc\xa7", 4);
    CHECK_MEM(out.data + out.size - 2, "\xcc\x81", 2);
    mf_buffer_close(&text);
    mf_buffer_close(&out);
}

TEST(huge_words_are_encoded_in_bounded_time)
{
    mf_tokenizer *tok = tiny_tokenizer();
    static const char *const units[] = { "a", "ab", "aab", " ", "1", "\n", "\xe4\xb8\xad", "<", "\xcc\x81\xcc\xa7" };
    mf_error err = { 0 };
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        mf_buffer text = { 0 };
        while (text.size < 131072) {
            CHECK_EQ(mf_buffer_append_text(&text, units[u]), MF_OK);
        }
        mf_ids ids = { 0 };
        CHECK_OK(mf_tokenizer_encode(tok, text.data, text.size, 0, &ids, &err), err);
        mf_buffer back = { 0 };
        CHECK_OK(mf_tokenizer_decode(tok, ids.data, ids.size, false, &back, &err), err);
        CHECK_EQ(back.size, text.size);
        CHECK_MEM(back.data, text.data, text.size);
        mf_buffer_close(&back);
        mf_ids_close(&ids);
        mf_buffer_close(&text);
    }
    mf_tokenizer_close(&tok);
}

/* ---- failing allocations ------------------------------------------------------------------------------------------
 */

static mf_sys real_sys;
static long allocations_left;

static void *failing_alloc(size_t bytes)
{
    return allocations_left-- > 0 ? real_sys.alloc(bytes) : NULL;
}

static void *failing_resize(void *block, size_t bytes)
{
    return allocations_left-- > 0 ? real_sys.resize(block, bytes) : NULL;
}

/* Opens, encodes, decodes; any failure must be a clean one. */
static mf_status exercise(const mf_buffer *json, const char *text)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    mf_ids ids = { 0 };
    mf_buffer out = { 0 };
    mf_status status = mf_tokenizer_parse(json->data, json->size, "tiny.json", &tok, &err);
    if (status == MF_OK) {
        status = mf_tokenizer_encode(tok, text, strlen(text), MF_ENCODE_ADD_SPECIAL, &ids, &err);
        CHECK(status == MF_OK || ids.size == 0);
    }
    if (status == MF_OK) {
        status = mf_tokenizer_decode(tok, ids.data, ids.size, false, &out, &err);
        CHECK(status == MF_OK || out.size == 0);
    }
    CHECK(status == MF_OK || err.message[0] != '\0');
    mf_buffer_close(&out);
    mf_ids_close(&ids);
    mf_tokenizer_close(&tok);
    return status;
}

TEST(each_failing_allocation_is_reported_and_leaks_nothing)
{
    mf_buffer json = { 0 }, text = { 0 };
    tiny_json(
        &(tiny_parts){
            .more_vocab = ",\"ab\":256",
            .merges = "[\"a b\"]",
            .normalizer = "{\"type\":\"NFC\"}",
            .pre_tokenizer =
                "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},"
                "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s+(?!\\\\S)|[\\\\w&&[^b]]+?b|a\"},\"behavior\":"
                "\"MergedWithNext\"},{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":false}]}",
            .added_tokens =
                "[" ADDED(257, "<x>", ",\"special\":true") "," ADDED(258, "e\xcc\x81", ",\"normalized\":true") "]" },
        &json);
    mf_buffer_append_text(&text, "ab<x> 12e\xcc\x81 caf\xcc\x83  \n");
    for (int i = 0; i < 1500; i++) {
        mf_buffer_append_text(&text, "ab");
    }
    real_sys = mf_sys_table;
    mf_status status = MF_ERR_NOMEM;
    long k = 0;
    for (; status != MF_OK && k < 5000; k++) {
        allocations_left = k;
        mf_sys_table.alloc = failing_alloc;
        mf_sys_table.resize = failing_resize;
        status = exercise(&json, text.data);
        mf_sys_table = real_sys;
        CHECK(status == MF_OK || status == MF_ERR_NOMEM);
    }
    CHECK_EQ(status, MF_OK);
    CHECK(k > 50);
    mf_buffer_close(&json);
    mf_buffer_close(&text);
}
