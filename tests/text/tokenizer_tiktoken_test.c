/* tokenizer_tiktoken_test.c - claims about tiktoken files and the folders they come in.  That ids are right for any
 * text is for tokenizer_tiktoken_oracle.py to say. */
#include "test.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "text/prompt.h"
#include "text/tiktoken.h"
#include "text/tokenizer_dir.h"
#include "text/tokenizer_impl.h"

static void append_line(mf_buffer *out, const char *token, size_t size, int rank)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        size_t n = size - i < 3 ? size - i : 3;
        uint32_t bits = 0;
        for (size_t k = 0; k < 3; k++) {
            bits = bits << 8 | (k < n ? (uint8_t)token[i + k] : 0);
        }
        char four[5] = "====";
        for (size_t k = 0; k <= n; k++) {
            four[k] = digits[bits >> (18 - 6 * k) & 63];
        }
        mf_buffer_append_text(out, four);
    }
    mf_buffer_printf(out, " %d\n", rank);
}

/* 0..255 are the bytes, then the words. */
static void make_ranks(const char *const *words, size_t num_words, mf_buffer *out)
{
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        append_line(out, &c, 1, b);
    }
    for (size_t i = 0; i < num_words; i++) {
        append_line(out, words[i], strlen(words[i]), 256 + (int)i);
    }
}

static mf_status parse(const char *class, const char *ranks, size_t size, const char *config, mf_tokenizer **out,
                       mf_error *err)
{
    json_t *json = json_loads(config, 0, NULL);
    CHECK(json != NULL);
    mf_status status =
        mf_tiktoken_parse(mf_tiktoken_find_class(class), ranks, size, "ranks.tiktoken", json, "config.json", out, err);
    json_decref(json);
    return status;
}

static mf_tokenizer *open_words(const char *class, const char *const *words, size_t num_words, const char *config)
{
    mf_buffer ranks = { 0 };
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    make_ranks(words, num_words, &ranks);
    CHECK_OK(parse(class, ranks.data, ranks.size, config, &tok, &err), err);
    mf_buffer_close(&ranks);
    return tok;
}

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

#define IDS(...) (const int32_t[]){ __VA_ARGS__ }, sizeof((const int32_t[]){ __VA_ARGS__ }) / sizeof(int32_t)

TEST(any_two_neighbours_that_make_a_token_merge_the_lowest_rank_first)
{
    /* "abc" can be made of "ab" and "c", or of "a" and "bc": whichever comes first. */
    static const char *const words[] = { "ab", "bc", "abc", "abcabc", "xy z" };
    mf_tokenizer *tok = open_words("TikTokenTokenizer", words, 5, "{}");
    check_ids(tok, "abc", 0, IDS(258));
    check_ids(tok, "bcabc", 0, IDS(257, 258));
    check_ids(tok, "abcabcab", 0, IDS(259, 256));
    mf_tokenizer_close(&tok);
    /* A token that no two others make is still one where it is the whole pre-token. */
    static const char *const lone[] = { "abcd" };
    tok = open_words("TikTokenTokenizer", lone, 1, "{}");
    check_ids(tok, "abcd", 0, IDS(256));
    check_ids(tok, "abcde", 0, IDS('a', 'b', 'c', 'd', 'e'));
    mf_tokenizer_close(&tok);
}

TEST(of_pairs_with_one_rank_the_leftmost_merges_first_however_long_the_word)
{
    /* "aaa" is "a" + "aa" and "aa" + "a".  Of n letters: pairs from the left, then triples of "aa" and "a" only where
     * an "a" is left over, at the end. */
    static const char *const words[] = { "aa", "aaa" };
    mf_tokenizer *tok = open_words("TikTokenTokenizer", words, 2, "{}");
    static const size_t lengths[] = { 5, 39, 41, 43, 999, 1025, 1101, 20001 };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        mf_error err = { 0 };
        mf_ids ids = { 0 };
        char *text = malloc(lengths[i]);
        memset(text, 'a', lengths[i]);
        CHECK_OK(mf_tokenizer_encode(tok, text, lengths[i], 0, &ids, &err), err);
        CHECK_EQ(ids.size, lengths[i] / 2);
        for (size_t k = 0; k + 1 < ids.size; k++) {
            CHECK_EQ(ids.data[k], 256);
        }
        CHECK_EQ(ids.data[ids.size - 1], 257);
        mf_ids_close(&ids);
        free(text);
    }
    mf_tokenizer_close(&tok);
}

TEST(kimis_words_end_where_han_begins)
{
    /* "a" and U+4E2D are two pre-tokens, so the token of both is never made; U+3007, a number of Han, goes with Han. */
    static const char *const words[] = {
        "\xe4\xb8", "\xe4\xb8\xad", "a\xe4\xb8\xad", "\xe3\x80\x87", "\xe4\xb8\xad\xe3\x80\x87", "Ab", "bC"
    };
    mf_tokenizer *tok = open_words("TikTokenTokenizer", words, 7, "{}");
    check_ids(tok, "a\xe4\xb8\xad", 0, IDS('a', 257));
    check_ids(tok, "\xe4\xb8\xad\xe3\x80\x87", 0, IDS(260));
    check_ids(tok, "AbC", 0, IDS(261, 'C'));
    mf_tokenizer_close(&tok);
}

TEST(kimis_slots_are_reserved_but_for_those_the_configuration_names)
{
    static const char *const words[] = { "ab" };
    mf_tokenizer *tok = open_words("TikTokenTokenizer", words, 1,
                                   "{\"added_tokens_decoder\":{\"257\":{\"content\":\"[BOS]\",\"special\":true},"
                                   "\"260\":{\"content\":\"<call>\",\"special\":false}}}");
    CHECK_EQ(mf_tokenizer_vocab_size(tok), 257 + 256);
    CHECK_EQ(mf_tokenizer_token_id(tok, "[BOS]"), 257);
    CHECK_EQ(mf_tokenizer_token_id(tok, "<|reserved_token_258|>"), 258);
    CHECK_EQ(mf_tokenizer_token_id(tok, "<|reserved_token_512|>"), 512);
    CHECK_EQ(mf_tokenizer_token_id(tok, "<|reserved_token_513|>"), -1);
    CHECK(mf_tokenizer_is_special(tok, 257) && mf_tokenizer_is_special(tok, 512) && mf_tokenizer_is_added(tok, 260));
    CHECK(!mf_tokenizer_is_special(tok, 260) && !mf_tokenizer_is_added(tok, 256));
    check_ids(tok, "[BOS]ab<call>ab", MF_ENCODE_ADD_SPECIAL, IDS(257, 256, 260, 256));
    check_ids(tok, "<call>", MF_ENCODE_NO_ADDED_TOKENS, IDS('<', 'c', 'a', 'l', 'l', '>'));
    mf_tokenizer_close(&tok);
}

TEST(a_pre_token_is_never_a_special_token)
{
    /* "abab" stands alone between blanks and is called like a special token; asked for plain text, it is letters. */
    mf_tokenizer *tok = open_words("TikTokenTokenizer", NULL, 0,
                                   "{\"added_tokens_decoder\":{\"256\":{\"content\":\"abab\",\"special\":true}}}");
    check_ids(tok, "abab", 0, IDS(256));
    check_ids(tok, "abab", MF_ENCODE_NO_SPECIAL_TOKENS, IDS('a', 'b', 'a', 'b'));
    mf_tokenizer_close(&tok);
}

TEST(hunyuan_counts_lines_and_composes_characters)
{
    /* The repeat of "ab" has no id; "e" with a mark is U+00E9. */
    static const char *const words[] = { "ab", "ab", "abab", "\xc3\xa9" };
    mf_tokenizer *tok = open_words("HYTokenizer", words, 4, "{}");
    check_ids(tok, "abab<|bos|>e\xcc\x81<|extra_204|>12", 0, IDS(257, 261, 258, 468, '1', '2'));
    CHECK_EQ(mf_tokenizer_vocab_size(tok), 259 + 210);
    CHECK_EQ(mf_tokenizer_token_id(tok, "<|endoftext|>"), 259);
    mf_tokenizer_close(&tok);
}

static void check_refused(const char *class, const char *ranks, const char *config, mf_status status,
                          const char *message)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    CHECK_EQ(parse(class, ranks, strlen(ranks), config, &tok, &err), status);
    CHECK(tok == NULL);
    CHECK_HAS(err.message, message);
}

TEST(malformed_files_are_refused_with_their_line)
{
    static const struct {
        const char *more;
        mf_status status;
        const char *message;
    } cases[] = {
        { "YWI=\n", MF_ERR_FORMAT, "ranks.tiktoken: line 257: expected a token in base64, a blank and a rank" },
        { "YWI= x\n", MF_ERR_FORMAT, "line 257: expected a rank" },
        { "YWI= 256 1\n", MF_ERR_FORMAT, "line 257: expected the line's end" },
        { "\n\nYWI 256\n", MF_ERR_FORMAT, "line 259: expected a token in base64" },
        { "Y 256\n", MF_ERR_FORMAT, "line 257: expected a token in base64" },
        { "YWI== 256\n", MF_ERR_FORMAT, "line 257: expected a token in base64" },
        { "Y?I= 256\n", MF_ERR_FORMAT, "line 257: expected a token in base64" },
        { " 256\n", MF_ERR_FORMAT, "line 257: expected a token in base64" },
        { "YWI= 7\n", MF_ERR_FORMAT, "line 257: token \"ab\": id 7 is taken" },
        { "YQ== 256\n", MF_ERR_FORMAT, "line 257: token \"a\" occurs twice" },
        { "YWI= 258\n", MF_ERR_FORMAT, "expected ranks without gaps; got 257 tokens with ranks up to 258" },
        { "YWI= 1048576\n", MF_ERR_LIMIT, "line 257: expected a rank from 0 to 1048575" },
        { "YWI= -1\n", MF_ERR_FORMAT, "line 257: expected a rank" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mf_buffer ranks = { 0 };
        make_ranks(NULL, 0, &ranks);
        mf_buffer_append_text(&ranks, cases[i].more);
        check_refused("TikTokenTokenizer", ranks.data, "{}", cases[i].status, cases[i].message);
        mf_buffer_close(&ranks);
    }
    check_refused("TikTokenTokenizer", "", "{}", MF_ERR_FORMAT,
                  "expected lines of a token in base64 and its rank; got none");
    check_refused("TikTokenTokenizer", "YQ== 0\r\nYg== 1", "{}", MF_ERR_FORMAT, "no token is the byte 0x00 alone");
}

TEST(malformed_special_tokens_are_refused)
{
    static const struct {
        const char *config, *message;
    } cases[] = {
        { "{\"added_tokens_decoder\":[]}", "config.json: added_tokens_decoder: expected an object; got a list" },
        { "{\"added_tokens_decoder\":{\"5\":{\"content\":\"x\"}}}", "\"5\": expected ids from 256 to 511" },
        { "{\"added_tokens_decoder\":{\"99999999999999999999\":{\"content\":\"x\"}}}", "expected ids from 256 to 511" },
        { "{\"added_tokens_decoder\":{\"25x\":{\"content\":\"x\"}}}", "\"25x\": expected ids" },
        { "{\"added_tokens_decoder\":{\"256\":{}}}", "objects with a string \"content\"" },
        { "{\"added_tokens_decoder\":{\"256\":\"x\"}}", "objects with a string \"content\"" },
        { "{\"added_tokens_decoder\":{\"256\":{\"content\":\"\"}}}",
          "id 256: expected a content of 1 to 512 bytes; got 0" },
        { "{\"added_tokens_decoder\":{\"256\":{\"content\":\"x\",\"special\":1}}}", "special: expected true or false" },
        { "{\"added_tokens_decoder\":{\"256\":{\"content\":\"<|reserved_token_257|>\"}}}", "occurs twice" },
        { "{\"added_tokens_decoder\":{\"256\":{\"content\":\"a\"}}}", "token \"a\" occurs twice" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mf_buffer ranks = { 0 };
        make_ranks(NULL, 0, &ranks);
        check_refused("TikTokenTokenizer", ranks.data, cases[i].config, MF_ERR_FORMAT, cases[i].message);
        mf_buffer_close(&ranks);
    }
}

TEST(files_that_would_take_long_are_refused)
{
    /* Tokens of 2,000 bytes: each could be cut in 1,999 places. */
    mf_buffer ranks = { 0 };
    char word[2001];
    memset(word, 'a', sizeof word);
    make_ranks(NULL, 0, &ranks);
    for (int i = 0; i < 100; i++) {
        snprintf(word, 8, "%07d", i);
        word[7] = 'a';
        append_line(&ranks, word, 2000, 256 + i);
    }
    check_refused("TikTokenTokenizer", ranks.data, "{}", MF_ERR_LIMIT, "ranks.tiktoken: too many long tokens");
    mf_buffer_clear(&ranks);
    for (int i = 0; i < 4000; i++) {
        mf_buffer_append_text(&ranks, "A");
    }
    mf_buffer_append_text(&ranks, " 0\n");
    check_refused("TikTokenTokenizer", ranks.data, "{}", MF_ERR_LIMIT, "line 1: a token of more than 2048 bytes");
    mf_buffer_close(&ranks);
}

static void write_file(const char *dir, const char *name, const char *text)
{
    char *path = mf_path_join(dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
    mf_free(path);
}

static void remove_file(const char *dir, const char *name)
{
    char *path = mf_path_join(dir, name);
    remove(path);
    mf_free(path);
}

TEST(a_folder_without_a_tokenizer_json_opens_by_its_class)
{
    char dir[] = "/tmp/moefuse_tiktoken_XXXXXX";
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    mf_prompt prompt;
    mf_buffer ranks = { 0 };
    CHECK(mkdtemp(dir) != NULL);
    CHECK(!mf_tokenizer_in_dir(dir));
    CHECK(mf_tokenizer_open_dir(dir, &tok, &err) != MF_OK);
    CHECK_HAS(err.message, "tokenizer.json");
    make_ranks(NULL, 0, &ranks);
    write_file(dir, "tiktoken.model", ranks.data);
    CHECK(mf_tokenizer_open_dir(dir, &tok, &err) != MF_OK);
    CHECK_HAS(err.message, "tokenizer_config.json");
    write_file(dir, "tokenizer_config.json", "{\"tokenizer_class\":\"BestTokenizer\"}");
    CHECK(mf_tokenizer_in_dir(dir));
    CHECK_EQ(mf_tokenizer_open_dir(dir, &tok, &err), MF_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "\"BestTokenizer\"");
    CHECK_HAS(err.message, "TikTokenTokenizer (tiktoken.model), HYTokenizer (hy.tiktoken)");
    write_file(dir, "tokenizer_config.json",
               "{\"tokenizer_class\":\"TikTokenTokenizer\",\"bos_token\":\"[BOS]\",\"chat_template\":\"{{ bos_token }}"
               "{% for m in messages %}{{ m.content }}{% endfor %}\","
               "\"added_tokens_decoder\":{\"256\":{\"content\":\"[BOS]\",\"special\":true}}}");
    CHECK_OK(mf_prompt_open(dir, NULL, NULL, 100, &prompt, &err), err);
    CHECK_STR(prompt.tokenizer_class, "TikTokenTokenizer");
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "a[BOS]");
    mf_ids ids = { 0 };
    CHECK_OK(mf_prompt_encode_chat(&prompt, messages, &ids, &err), err);
    /* What the user wrote is plain text. */
    CHECK_EQ(ids.size, 7);
    CHECK_EQ(ids.data[0], 256);
    CHECK_EQ(ids.data[1], 'a');
    CHECK_EQ(ids.data[2], '[');
    mf_ids_close(&ids);
    json_decref(messages);
    mf_prompt_close(&prompt);
    remove_file(dir, "tiktoken.model");
    remove_file(dir, "tokenizer_config.json");
    CHECK_EQ(rmdir(dir), 0);
    mf_buffer_close(&ranks);
}

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

TEST(each_failing_allocation_is_reported_and_leaks_nothing)
{
    static const char *const words[] = { "ab", "abab" };
    mf_buffer ranks = { 0 };
    make_ranks(words, 2, &ranks);
    real_sys = mf_sys_table;
    mf_status status = MF_ERR_NOMEM;
    long k = 0;
    for (; status != MF_OK && k < 5000; k++) {
        mf_error err = { 0 };
        mf_tokenizer *tok = NULL;
        json_t *config = json_object();
        allocations_left = k;
        mf_sys_table.alloc = failing_alloc;
        mf_sys_table.resize = failing_resize;
        status = mf_tiktoken_parse(mf_tiktoken_find_class("HYTokenizer"), ranks.data, ranks.size, "r", config, "c",
                                   &tok, &err);
        mf_tokenizer_close(&tok);
        mf_sys_table = real_sys;
        json_decref(config);
        CHECK(status == MF_OK || status == MF_ERR_NOMEM);
    }
    CHECK_EQ(status, MF_OK);
    CHECK(k > 100);
    mf_buffer_close(&ranks);
}
