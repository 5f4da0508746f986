/* stream_test.c - text from token ids as they come. */
#include "test.h"

#include "base/random.h"
#include "base/sys.h"
#include "text/stream.h"
#include "tiny_tokenizer.h"

/* Runs a stream over ids; the text and the index of the stop string that was hit. */
static int32_t run(const mf_tokenizer *tok, const mf_stream_options *options, const int32_t *ids, size_t n,
                   mf_buffer *text)
{
    mf_error err = { 0 };
    mf_stream *s = NULL;
    int32_t stop = -1;
    CHECK_OK(mf_stream_open(tok, options, &s, &err), err);
    for (size_t i = 0; i < n && stop < 0; i++) {
        size_t before = text->size;
        CHECK_OK(mf_stream_push(s, ids[i], text, &stop, &err), err);
        /* What has been given out is whole characters at any time. */
        CHECK(mf_utf8_valid(mf_buffer_text(text) + before, text->size - before, NULL));
    }
    if (stop < 0) {
        CHECK_OK(mf_stream_finish(s, text, &stop, &err), err);
    }
    mf_stream_close(&s);
    return stop;
}

static int32_t run_bytes(const mf_tokenizer *tok, const mf_stream_options *options, const char *bytes, mf_buffer *text)
{
    int32_t ids[256];
    size_t n = strlen(bytes);
    for (size_t i = 0; i < n; i++) {
        ids[i] = (uint8_t)bytes[i];
    }
    mf_buffer_clear(text);
    return run(tok, options, ids, n, text);
}

TEST(characters_come_out_whole)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_error err = { 0 };
    mf_stream *s = NULL;
    mf_buffer text = { 0 };
    int32_t stop;
    CHECK_OK(mf_stream_open(tok, NULL, &s, &err), err);
    static const uint8_t bytes[] = { 'a', 0xf0, 0x9f, 0x98, 0x80, 0xe4, 'b', 0xe4, 0xb8 };
    static const size_t sizes[] = { 1, 1, 1, 1, 5, 5, 9, 9, 9 }; /* the lone 0xe4 becomes U+FFFD once 'b' follows */
    for (size_t i = 0; i < sizeof bytes; i++) {
        CHECK_OK(mf_stream_push(s, bytes[i], &text, &stop, &err), err);
        CHECK_EQ(text.size, sizes[i]);
    }
    CHECK_EQ(mf_stream_held(s), 2);
    CHECK_OK(mf_stream_finish(s, &text, &stop, &err), err);
    CHECK_STR(mf_buffer_text(&text), "a\xf0\x9f\x98\x80\xef\xbf\xbd"
                                     "b\xef\xbf\xbd");
    mf_stream_close(&s);
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(a_stop_string_is_cut_off_unless_asked_for)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_buffer text = { 0 };
    const mf_stop_string stops[] = { { "END", 3 }, { "ab", 2 } };
    mf_stream_options options = { .stops = stops, .num_stops = 2 };
    CHECK_EQ(run_bytes(tok, &options, "xENxEND more", &text), 0);
    CHECK_STR(mf_buffer_text(&text), "xENx");
    CHECK_EQ(run_bytes(tok, &options, "xaab", &text), 1);
    CHECK_STR(mf_buffer_text(&text), "xa");
    CHECK_EQ(run_bytes(tok, &options, "no stop EN", &text), -1);
    CHECK_STR(mf_buffer_text(&text), "no stop EN");
    options.include_stop = true;
    CHECK_EQ(run_bytes(tok, &options, "xENxEND more", &text), 0);
    CHECK_STR(mf_buffer_text(&text), "xENxEND");
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(text_is_held_back_only_while_it_could_begin_a_stop_string)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_error err = { 0 };
    mf_buffer text = { 0 };
    const mf_stop_string stops[] = { { "aab", 3 } };
    mf_stream_options options = { .stops = stops, .num_stops = 1 };
    mf_stream *s = NULL;
    int32_t stop;
    CHECK_OK(mf_stream_open(tok, &options, &s, &err), err);
    static const char bytes[] = "xaaacaa";
    static const size_t given[] = { 1, 1, 1, 2, 5, 5, 5 };
    for (size_t i = 0; bytes[i]; i++) {
        CHECK_OK(mf_stream_push(s, bytes[i], &text, &stop, &err), err);
        CHECK_EQ(text.size, given[i]);
    }
    CHECK_OK(mf_stream_finish(s, &text, &stop, &err), err);
    CHECK_STR(mf_buffer_text(&text), bytes);
    /* It begins anew. */
    CHECK_OK(mf_stream_push(s, 'b', &text, &stop, &err), err);
    CHECK_EQ(stop, -1);
    mf_stream_close(&s);
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(the_stop_string_that_ends_first_wins_and_of_those_the_longest)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_buffer text = { 0 };
    const mf_stop_string stops[] = { { "abcd", 4 }, { "c", 1 }, { "bc", 2 } };
    mf_stream_options options = { .stops = stops, .num_stops = 3 };
    CHECK_EQ(run_bytes(tok, &options, "xabcd", &text), 2);
    CHECK_STR(mf_buffer_text(&text), "xa");
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(a_cut_character_at_the_end_can_complete_a_stop_string)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_buffer text = { 0 };
    const mf_stop_string stops[] = { { "\xef\xbf\xbd", 3 } };
    mf_stream_options options = { .stops = stops, .num_stops = 1 };
    CHECK_EQ(run_bytes(tok, &options, "ab\xe4\xb8", &text), 0);
    CHECK_STR(mf_buffer_text(&text), "ab");
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(a_stop_string_counts_only_when_it_ends_behind_the_first_ids)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_buffer text = { 0 };
    const mf_stop_string stops[] = { { "END", 3 }, { "aa", 2 } };
    mf_stream_options options = { .stops = stops, .num_stops = 2, .min_ids = 4 };
    CHECK_EQ(run_bytes(tok, &options, "xEND yEND more", &text), 0);
    CHECK_STR(mf_buffer_text(&text), "xEND y");
    CHECK_EQ(run_bytes(tok, &options, "xxEND", &text), 0); /* it begins before the fourth id and ends behind it */
    CHECK_STR(mf_buffer_text(&text), "xx");
    CHECK_EQ(run_bytes(tok, &options, "aaaab", &text), -1);
    CHECK_STR(mf_buffer_text(&text), "aaaab");
    CHECK_EQ(run_bytes(tok, &options, "aaaaab", &text), 1); /* the next one may lie over one that passed */
    CHECK_STR(mf_buffer_text(&text), "aaa");
    CHECK_EQ(run_bytes(tok, &options, "xEND", &text), -1);
    CHECK_STR(mf_buffer_text(&text), "xEND");
    options.include_stop = true;
    CHECK_EQ(run_bytes(tok, &options, "xEND yEND more", &text), 0);
    CHECK_STR(mf_buffer_text(&text), "xEND yEND");
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(special_tokens_leave_no_text_when_skipped)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_buffer text = { 0 };
    int32_t special = mf_tokenizer_token_id(tok, "<s>");
    const int32_t ids[] = { 'a', special, 'b' };
    mf_stream_options options = { .skip_special = true };
    CHECK_EQ(run(tok, &options, ids, 3, &text), -1);
    CHECK_STR(mf_buffer_text(&text), "ab");
    mf_buffer_clear(&text);
    CHECK_EQ(run(tok, NULL, ids, 3, &text), -1);
    CHECK_STR(mf_buffer_text(&text), "a<s>b");
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(wrong_stops_and_ids_are_refused)
{
    mf_tokenizer *tok = tiny_tokenizer();
    mf_error err = { 0 };
    mf_stream *s = NULL;
    mf_buffer text = { 0 };
    int32_t stop;
    char large[MF_STREAM_MAX_STOP_BYTES + 1];
    memset(large, 'a', sizeof large);
    const mf_stop_string wrong[] = { { "", 0 }, { "\xff", 1 }, { large, sizeof large } };
    for (size_t i = 0; i < 3; i++) {
        mf_stream_options options = { .stops = &wrong[i], .num_stops = 1 };
        CHECK_EQ(mf_stream_open(tok, &options, &s, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, "stop: string 0: expected 1 to 256 bytes");
    }
    mf_stop_string many[MF_STREAM_MAX_STOPS + 1];
    for (size_t i = 0; i < sizeof many / sizeof *many; i++) {
        many[i] = (mf_stop_string){ large, sizeof large - 1 };
    }
    mf_stream_options options = { .stops = many, .num_stops = MF_STREAM_MAX_STOPS + 1 };
    CHECK_EQ(mf_stream_open(tok, &options, &s, &err), MF_ERR_INVALID);
    options.num_stops--;
    CHECK_OK(mf_stream_open(tok, &options, &s, &err), err);
    CHECK_EQ(mf_stream_push(s, mf_tokenizer_vocab_size(tok), &text, &stop, &err), MF_ERR_INVALID);
    CHECK_EQ(mf_stream_push(s, -1, &text, &stop, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "token id -1: expected 0 to");
    mf_stream_close(&s);
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

/* The specification: the whole text, cut at the stop string that ends first. */
static int32_t cut_at_stop(char *text, const mf_stream_options *o)
{
    size_t best_end = SIZE_MAX, best_start = 0;
    int32_t hit = -1;
    for (size_t i = 0; i < o->num_stops; i++) {
        const char *at = strstr(text, o->stops[i].text);
        size_t start = at ? (size_t)(at - text) : 0, end = start + o->stops[i].size;
        if (at && (end < best_end || (end == best_end && start < best_start))) {
            best_end = end;
            best_start = start;
            hit = (int32_t)i;
        }
    }
    if (hit >= 0) {
        text[o->include_stop ? best_end : best_start] = '\0';
    }
    return hit;
}

TEST(any_cutting_of_a_text_gives_the_whole_decodes_text)
{
    /* Token 256 + k of the tiny tokenizer is a string of several bytes; random lists of ids cut texts anywhere, also
     * inside characters and stop strings. */
    mf_tokenizer *tok = tiny_tokenizer();
    mf_error err = { 0 };
    uint64_t seed = 20240607;
    static const mf_stop_string pool[] = { { "aba", 3 },
                                           { "ab", 2 },
                                           { "\xc3\xa9"
                                             "a",
                                             3 },
                                           { "b\xef\xbf\xbd", 4 },
                                           { "aaaa", 4 },
                                           { "\xe4\xb8\xad", 3 },
                                           { "bab\xc3\xa9", 5 },
                                           { "\xef\xbf\xbd\xef\xbf\xbd", 6 } };
    static const uint8_t alphabet[] = { 'a', 'b', 0xc3, 0xa9, 0xe4, 0xb8, 0xad };
    for (int round = 0; round < 20000; round++) {
        int32_t ids[24];
        mf_stop_string stops[3];
        size_t n = mf_random_below(&seed, 24);
        for (size_t i = 0; i < n; i++) {
            uint64_t pick = mf_random_below(&seed, 10);
            ids[i] = pick < 7 ? alphabet[pick]
                              : 256 + (int32_t)mf_random_below(&seed, (uint64_t)mf_tokenizer_vocab_size(tok) - 256);
        }
        mf_stream_options options = {
            .stops = stops, .num_stops = mf_random_below(&seed, 4), .include_stop = round & 1, .skip_special = round & 2
        };
        for (size_t i = 0; i < options.num_stops; i++) {
            stops[i] = pool[mf_random_below(&seed, sizeof pool / sizeof *pool)];
        }
        mf_buffer whole = { 0 }, text = { 0 };
        CHECK_OK(mf_tokenizer_decode(tok, ids, n, options.skip_special, &whole, &err), err);
        CHECK_OK(mf_buffer_append(&whole, "", 0), err);
        int32_t expected = cut_at_stop(whole.data, &options);
        int32_t got = run(tok, &options, ids, n, &text);
        CHECK_STR(mf_buffer_text(&text), whole.data);
        /* Two equal stop strings count as the first. */
        CHECK_EQ(got < 0, expected < 0);
        CHECK(got < 0 || strcmp(stops[got].text, stops[expected].text) == 0);
        mf_buffer_close(&whole);
        mf_buffer_close(&text);
    }
    mf_tokenizer_close(&tok);
}
