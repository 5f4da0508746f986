/* pattern_test.c - the regular expressions of pre-tokenizers.  Expected pieces are worked out by hand from the rule
 * "leftmost match, first alternative first"; tokenizer_oracle.py compares random patterns with Oniguruma. */
#include "test.h"

#include <stdlib.h>

#include "base/sys.h"
#include "text/pretokenizer.h"
#include "text/utf8.h"

static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char cl100k[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char cl100k_possessive[] =
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|"
    "\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s";
static const char o200k[] = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+("
                            "?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                            "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*("
                            "?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                            "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char kimi[] =
    "[\\p{Han}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&"
    "[^\\p{Han}]]+"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+"
    "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char qwen[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char deepseek[] =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
static const char digit_groups[] = "\\p{N}{1,3}(?=(?:\\p{N}{3})*(?:\\P{N}|$))";

static mf_pattern *compiled(const char *pattern)
{
    mf_error err = { 0 };
    mf_pattern *out = NULL;
    CHECK_OK(mf_pattern_compile(pattern, strlen(pattern), &out, &err), err);
    return out;
}

/* Pieces of the text, each behind a '|'. */
static void check_split_with(mf_pretokenizer_step step, const char *text, const char *expected)
{
    mf_pretokenizer pre = { .num_steps = 1, .steps[0] = step };
    mf_pretokens out = { 0 };
    CHECK_EQ(mf_pretokenizer_run(&pre, text, strlen(text), true, &out), MF_OK);
    char got[1024];
    size_t n = 0;
    for (size_t i = 0; i < out.pieces.size; i++) {
        got[n++] = '|';
        for (uint32_t p = out.pieces.data[i].start; p < out.pieces.data[i].end; p++) {
            n += mf_utf8_put(out.points[p], got + n);
        }
    }
    got[n] = '\0';
    CHECK_STR(got, expected);
    mf_pretokens_close(&out);
    mf_pretokenizer_close(&pre);
}

static void check_split(const char *pattern, const char *text, const char *expected)
{
    check_split_with((mf_pretokenizer_step){ .pattern = compiled(pattern) }, text, expected);
}

static void check_refused(const char *pattern, mf_status status, const char *part)
{
    mf_error err = { 0 };
    mf_pattern *out = NULL;
    CHECK_EQ(mf_pattern_compile(pattern, strlen(pattern), &out, &err), status);
    CHECK(out == NULL);
    CHECK_HAS(err.message, part);
}

TEST(alternatives_are_tried_in_order)
{
    check_split("a|ab", "abab", "|a|b|a|b");
    check_split("ab|a", "abab", "|ab|ab");
    check_split("(?:a|ab)(?:c|bcd)", "abcd", "|abcd");
}

TEST(repeats_are_greedy_lazy_or_possessive)
{
    check_split("a+b", "aaab", "|aaab");
    check_split("a+?", "aaa", "|a|a|a");
    check_split("a{2,3}", "aaaaaaa", "|aaa|aaa|a");
    check_split("a{2,3}?", "aaaaa", "|aa|aa|a");
    check_split("a++ab|b", "aaab", "|aaa|b");
    check_split("a?+ab|b", "aab", "|aab");
    check_split("a?+ab|b", "ab", "|a|b");
    /* In this flavour a plus behind an interval repeats it. */
    check_split("a{2}+", "aaaaa", "|aaaa|a");
}

TEST(lookarounds_consume_nothing)
{
    check_split("\\s+(?!\\S)|\\s+", "a   b", "|a|  | |b");
    check_split("a(?=b)|b", "aab", "|a|a|b");
    check_split("(?<=a)b|(?<!a)c", "abcacc", "|a|b|c|ac|c");
    check_split(digit_groups, "1234567", "|1|234|567");
    check_split("a(?=(?:bc|b)(?!c))", "abbcab", "|a|bbc|a|b");
}

TEST(anchors_hold_at_lines_words_and_ends)
{
    check_split("^a", "aa\naa", "|a|a\n|a|a");
    check_split("a$", "aa\naa", "|a|a|\na|a");
    check_split("\\Aa|a\\z", "aaa", "|a|a|a");
    check_split("a\\Z", "a\naa\n", "|a\na|a|\n");
    check_split("\\bfoo\\b", "foo foobar", "|foo| foobar");
    check_split("o\\B", "fooo", "|f|o|o|o");
}

TEST(classes_invert_nest_and_intersect)
{
    check_split("[^a-c]+", "abcxyz", "|abc|xyz");
    check_split("[a-z&&[^aeiou]]+", "hello", "|h|e|ll|o");
    check_split("[[ab]c-]+", "a-cd", "|a-c|d");
    check_split("[\\p{L}&&[^\\p{Han}]]+", "ab\xe4\xb8\xad", "|ab|\xe4\xb8\xad");
    check_split("\\p{^L}+", "a12b", "|a|12|b");
    check_split(".+", "a\nb", "|a|\n|b");
}

TEST(ignoring_case_reaches_the_long_s_and_the_kelvin_sign)
{
    check_split("(?i:'s)+",
                "'S's'\xc5\xbf"
                "x",
                "|'S's'\xc5\xbf|x");
    check_split("(?i:[k])+",
                "kK\xe2\x84\xaa"
                "x",
                "|kK\xe2\x84\xaa|x");
    check_split("a(?i:b)c", "aBcABC", "|aBc|ABC");
}

TEST(empty_matches_cut_but_leave_no_piece)
{
    check_split("(?=b)", "abab", "|a|ba|b");
    check_split("x*", "axb", "|a|x|b");
}

TEST(splits_have_five_behaviours)
{
    static const char *const expected[5] = { "|x|a|a|y|a", "|x|y", "|x|aa|y|a", "|xa|a|ya", "|x|a|ay|a" };
    for (int b = 0; b < 5; b++) {
        check_split_with((mf_pretokenizer_step){ .pattern = compiled("a"), .behavior = (mf_split_behavior)b }, "xaaya",
                         expected[b]);
    }
    check_split_with((mf_pretokenizer_step){ .pattern = compiled("a"), .behavior = MF_SPLIT_REMOVED, .invert = true },
                     "xaaya", "|a|a|a");
    mf_pattern *literal = NULL;
    CHECK_EQ(mf_pattern_compile_literal(".+", 2, &literal, NULL), MF_OK);
    check_split_with((mf_pretokenizer_step){ .pattern = literal }, "a.+b", "|a|.+|b");
}

TEST(published_patterns_compile_and_split)
{
    check_split(gpt2, "I'll pay 100$  now", "|I|'ll| pay| 100|$| | now");
    check_split(cl100k, "HE'LL pay 12345\n\n x", "|HE|'LL| pay| |123|45|\n\n| x");
    check_split(cl100k_possessive, "HE'LL pay 12345\n\n x", "|HE|'LL| pay| |12345|\n\n| x");
    check_split(o200k, "camelCase HTTPServer's a/b/\n", "|camel|Case| HTTPServer's| a|/b|/\n");
    check_split(kimi,
                "abc\xe4\xb8\xad\xe6\x96\x87"
                "D",
                "|abc|\xe4\xb8\xad\xe6\x96\x87|D");
    check_split(qwen, "e\xcc\x81t\xc3\xa9 42", "|e\xcc\x81t\xc3\xa9| |4|2");
    check_split(deepseek, "f(x)=_y+1;\r\n", "|f|(x|)=_|y|+|1|;\r\n");
}

TEST(a_pattern_that_is_not_known_is_refused_with_its_text)
{
    check_refused("(a)\\1", MF_ERR_UNSUPPORTED, "pattern \"(a)\\1\": byte 3: this escape is not known");
    check_refused("(?>a)", MF_ERR_UNSUPPORTED, "this kind of group");
    check_refused("(?:a*)*", MF_ERR_UNSUPPORTED, "a repeat of something that can be empty");
    check_refused("(?:a*){3}", MF_ERR_UNSUPPORTED, "a repeat of something that can be empty");
    check_refused("(?:ab)++", MF_ERR_UNSUPPORTED, "a possessive repeat");
    check_refused("(?<=ab)", MF_ERR_UNSUPPORTED, "a lookbehind");
    check_refused("[[:alpha:]]", MF_ERR_UNSUPPORTED, "POSIX bracket");
    check_refused("\\p{Klingon}", MF_ERR_UNSUPPORTED, "unknown property name");
    check_refused("(?i:\\p{Lu})", MF_ERR_UNSUPPORTED, "where case is ignored");
    check_refused("(?i:stra\xc3\x9f"
                  "e)",
                  MF_ERR_UNSUPPORTED, "where case is ignored");
    check_refused("[a&&b]", MF_ERR_UNSUPPORTED, "a class that no character is in");
    check_refused("a**", MF_ERR_UNSUPPORTED, "two repeats in a row");
    check_refused("*a", MF_ERR_UNSUPPORTED, "a repeat of nothing");
    check_refused("(?=a)*", MF_ERR_UNSUPPORTED, "a repeat of an assertion");
    check_refused("a{9999}", MF_ERR_UNSUPPORTED, "a repeat count this large");
    check_refused("(?:a{1000}b{1000}){1000}", MF_ERR_UNSUPPORTED, "too large");
    check_refused("", MF_ERR_UNSUPPORTED, "an empty pattern");
    check_refused("(a", MF_ERR_FORMAT, "'(' without ')'");
    check_refused("a)", MF_ERR_FORMAT, "')' without '('");
    check_refused("[a", MF_ERR_FORMAT, "'[' without ']'");
    check_refused("[z-a]", MF_ERR_FORMAT, "whose end comes before its start");
    check_refused("a\\", MF_ERR_FORMAT, "ends with a backslash");
    check_refused("\\x{110000}", MF_ERR_FORMAT, "not a Unicode character");
    check_refused("(\n", MF_ERR_FORMAT, "pattern \"(\\n\"");
}

TEST(deep_nesting_is_refused_not_followed)
{
    char text[512];
    memset(text, '(', 200);
    text[200] = '\0';
    check_refused(text, MF_ERR_UNSUPPORTED, "nested too deeply");
    memset(text, '[', 200);
    check_refused(text, MF_ERR_UNSUPPORTED, "nested too deeply");
}

/* Work of one pattern over a text made of `unit`, then `tail`. */
static uint64_t steps_for(const char *pattern, const char *unit, const char *tail, size_t size)
{
    mf_pretokenizer pre = { .num_steps = 1, .steps[0] = { .pattern = compiled(pattern) } };
    mf_pretokens out = { 0 };
    size_t n = strlen(unit), used = 0;
    char *text = malloc(size + 64);
    for (; used + n <= size; used += n) {
        memcpy(text + used, unit, n);
    }
    memcpy(text + used, tail, strlen(tail));
    used += strlen(tail);
    CHECK_EQ(mf_pretokenizer_run(&pre, text, used, true, &out), MF_OK);
    CHECK(out.steps <= mf_pattern_size(pre.steps[0].pattern) * (used + 1) * 4);
    uint64_t steps = out.steps;
    free(text);
    mf_pretokens_close(&out);
    mf_pretokenizer_close(&pre);
    return steps;
}

TEST(work_is_linear_for_adversarial_texts)
{
    static const char *const patterns[] = {
        gpt2, cl100k, cl100k_possessive, o200k, kimi, qwen, deepseek, digit_groups,
        /* Each of these takes quadratic or worse time when failures are forgotten. */
        "a+b", "a*b|a", "(?:a|a)+b", "(?:a+)+b", "a(?=a*b)|a", "a*a*a*a*b", "(?:a?){1}a*c", "\\s+x|(?:\\s\\s?)+y",
        "a++b", "(?:aa|a)+(?!a)b", "(?:[ab]*?x)|[ab]"
    };
    static const char *const units[] = {
        "a",         " ",   "1",  "\n", ".",   "A",  "ab", "\xe4\xb8\xad", "\xf0\x9f\x98\x80",
        "e\xcc\x81", " \n", "'s", "a ", "aA1", "<|", "\r", "\t ",          "/\n"
    };
    static const char *const tails[] = { "", "b", "x", " ", "\n" };
    for (size_t p = 0; p < sizeof patterns / sizeof *patterns; p++) {
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            for (size_t t = 0; t < sizeof tails / sizeof *tails; t++) {
                uint64_t one = steps_for(patterns[p], units[u], tails[t], 3072);
                uint64_t two = steps_for(patterns[p], units[u], tails[t], 6144);
                /* Twice the text: at most twice the work, give or take the tail. */
                if (two > 2 * one + 512) {
                    fail_msg("%s over %s..%s: %llu steps, then %llu", patterns[p], units[u], tails[t],
                             (unsigned long long)one, (unsigned long long)two);
                }
            }
        }
    }
}

TEST(work_is_linear_up_to_a_megabyte)
{
    CHECK(steps_for(cl100k, " ", "a", 1 << 20) <= 12ull << 20);
    CHECK(steps_for("a+b", "a", "", 1 << 20) <= 12ull << 20);
    CHECK(steps_for("(?:a+)+b", "a", "", 1 << 20) <= 16ull << 20);
}

TEST(pieces_end_where_the_text_ends_for_the_pattern)
{
    /* The first step makes two pieces; "end of text" holds at the end of each, "no white space ahead" too. */
    mf_pretokenizer pre = { .num_steps = 2,
                            .steps = { { .pattern = compiled("1") }, { .pattern = compiled("\\s+(?!\\S)|a\\z") } } };
    mf_pretokens out = { 0 };
    CHECK_EQ(mf_pretokenizer_run(&pre, "ba  1ba1", 8, true, &out), MF_OK);
    /* "ba  " -> "ba", "  "; "1"; "ba" -> "b", "a"; "1" */
    static const uint32_t ends[] = { 2, 4, 5, 6, 7, 8 };
    CHECK_EQ(out.pieces.size, 6);
    for (size_t i = 0; i < 6; i++) {
        CHECK_EQ(out.pieces.data[i].end, ends[i]);
    }
    mf_pretokens_close(&out);
    mf_pretokenizer_close(&pre);
}
