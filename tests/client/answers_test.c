/* answers_test.c - the filters of lm-eval's gsm8k task.  client_test.py compares random texts with Python's own regular
 * expressions; here are the odd ones. */
#include "test.h"

#include "cli/eval_answer.h"
#include "cli/eval_items.h"

static void check(mf_status (*filter)(const char *, size_t, mf_buffer *), const char *text, const char *expected)
{
    mf_buffer out = { 0 };
    CHECK_EQ(filter(text, strlen(text), &out), MF_OK);
    CHECK_STR(mf_buffer_text(&out), expected);
    mf_buffer_close(&out);
}

TEST(strict_takes_the_first_number_after_four_marks)
{
    check(mf_answer_strict, "so\n#### 1,234.\nthen #### 5", "1,234.");
    check(mf_answer_strict, "#### x #### -7 ", "-7");
    check(mf_answer_strict, "####7", "[invalid]");
    check(mf_answer_strict, "#### -", "[invalid]");
    check(mf_answer_strict, "#### $5", "[invalid]");
    check(mf_answer_strict, "#####  #### 3", "3");
    check(mf_answer_strict, "", "[invalid]");
}

TEST(flexible_takes_the_last_number)
{
    check(mf_answer_flexible, "1 and $2,000.50 and", "$2,000.50");
    check(mf_answer_flexible, "it is -5", "-5");
    check(mf_answer_flexible, "it is 5.", "5.");
    check(mf_answer_flexible, "7 ..", "..");
    check(mf_answer_flexible, "a - b", "[invalid]");
    check(mf_answer_flexible, "x--12", "-12");
}

TEST(normalising_leaves_the_bare_number)
{
    check(mf_answer_normalise, "$1,234.", "1234");
    check(mf_answer_normalise, "a #### b #### 42", "42");
    check(mf_answer_normalise, "Forty.\n", "forty\n");
    check(mf_answer_normalise, "..", ".");
    check(mf_answer_normalise, ".", "");
    check(mf_answer_normalise, "4.0", "4.0");
}

TEST(answers_match_when_both_normalise_alike)
{
    bool matches = false;
    static const char gold[] = "3 * 9 = 27\n#### 1,027";
    CHECK_EQ(mf_answer_matches("$1027.", 6, gold, sizeof gold - 1, &matches), MF_OK);
    CHECK(matches);
    CHECK_EQ(mf_answer_matches("1027.0", 6, gold, sizeof gold - 1, &matches), MF_OK);
    CHECK(!matches);
}

TEST(transcripts_differ_by_token_by_bits_or_by_length)
{
    int32_t ids[2][3] = { { 1, 2, 3 }, { 1, 2, 3 } };
    float logprobs[2][3] = { { -1, 0, -3 }, { -1, -0.0f, -3 } };
    mf_eval_unit a = { .out_ids = ids[0], .logprobs = logprobs[0], .num_out = 3 },
                 b = { .out_ids = ids[1], .logprobs = logprobs[1], .num_out = 3 };
    mf_eval_set x = { .units = &a, .num_units = 1 }, y = { .units = &b, .num_units = 1 };
    int32_t position = -1, count = 0;
    CHECK_EQ(mf_eval_first_difference(&x, &y, &position, &count), 0); /* -0 equals 0 but is not its bits */
    CHECK_EQ(position, 1);
    CHECK_EQ(count, 1);
    logprobs[1][1] = 0;
    CHECK_EQ(mf_eval_first_difference(&x, &y, &position, &count), -1);
    CHECK_EQ(count, 0);
    b.num_out = 2;
    CHECK_EQ(mf_eval_first_difference(&x, &y, &position, &count), 0);
    CHECK_EQ(position, 2);
    ids[1][0] = 9;
    CHECK_EQ(mf_eval_first_difference(&x, &y, &position, &count), 0);
    CHECK_EQ(position, 0);
}
