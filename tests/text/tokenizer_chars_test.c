/* tokenizer_chars_test.c - claims about tokenizers that begin with characters, as SentencePiece's do.  That ids are
 * right for any text is for tokenizer_chars_oracle.py to say. */
#include "test.h"

#include <time.h>

#include "base/sys.h"
#include "text/guide.h"
#include "text/stream.h"
#include "text/tokenizer_impl.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOWER = 20 };
#else
enum { SLOWER = 1 };
#endif

#define B "\xe2\x96\x81" /* U+2581, the sign for a blank */
#define MIXTRAL_NORMALIZER                                                                                             \
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" B "\"},"                            \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" B "\"}]}"
#define MIXTRAL_DECODER                                                                                                \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" B                          \
    "\"},\"content\":\" \"},"                                                                                          \
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"
#define METASPACE "{\"type\":\"Metaspace\",\"replacement\":\"" B "\",\"prepend_scheme\":\"first\",\"split\":false}"

typedef struct parts {
    const char *normalizer, *pre_tokenizer, *decoder; /* NULL: Mixtral's */
    const char *more_vocab, *more_merges;             /* NULL: none; ids from NUM_IDS on */
    const char *more_added;
} parts;

/* 0 <unk>, 1 <s>, 2 </s>, 3.. the bytes, then these. */
enum { BYTE = 3, BLANK = 259, A, B_, BLANK_A, AB, BLANK_AB, BLANK_2, QUOTE, BRACE, NUM_IDS };

static void make_json(const parts *p, mf_buffer *json)
{
    mf_buffer_printf(
        json,
        "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},{\"id\":1,\"content\":\"<s>\","
        "\"special\":true},{\"id\":2,\"content\":\"</s>\",\"special\":true}%s],",
        p->more_added ? p->more_added : "");
    mf_buffer_printf(json, "\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":null,\"decoder\":%s,",
                     p->normalizer ? p->normalizer : MIXTRAL_NORMALIZER, p->pre_tokenizer ? p->pre_tokenizer : "null",
                     p->decoder ? p->decoder : MIXTRAL_DECODER);
    mf_buffer_append_text(
        json, "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,"
              "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2");
    for (int b = 0; b < 256; b++) {
        mf_buffer_printf(json, ",\"<0x%02X>\":%d", b, BYTE + b);
    }
    mf_buffer_printf(json,
                     ",\"" B "\":259,\"a\":260,\"b\":261,\"" B "a\":262,\"ab\":263,\"" B "ab\":264,\"" B B
                     "\":265,\"\\\"\":266,\"{\":267%s},\"merges\":[[\"a\",\"b\"],[\"" B "\",\"ab\"],[\"" B
                     "\",\"a\"],[\"" B "\",\"" B "\"]%s]}}",
                     p->more_vocab ? p->more_vocab : "", p->more_merges ? p->more_merges : "");
}

static mf_tokenizer *open_parts(const parts *p)
{
    mf_buffer json = { 0 };
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    make_json(p, &json);
    CHECK_OK(mf_tokenizer_parse(mf_buffer_text(&json), json.size, "chars.json", &tok, &err), err);
    mf_buffer_close(&json);
    return tok;
}

static mf_tokenizer *mixtral(void)
{
    return open_parts(&(parts){ 0 });
}

static void check_ids(const mf_tokenizer *tok, const char *text, const int32_t *expected, size_t n)
{
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    CHECK_OK(mf_tokenizer_encode(tok, text, strlen(text), 0, &ids, &err), err);
    CHECK_EQ(ids.size, n);
    for (size_t i = 0; i < n; i++) {
        CHECK_EQ(ids.data[i], expected[i]);
    }
    mf_ids_close(&ids);
}

#define IDS(...) (const int32_t[]){ __VA_ARGS__ }, sizeof((const int32_t[]){ __VA_ARGS__ }) / sizeof(int32_t)

static void check_text(const mf_tokenizer *tok, const char *expected, const int32_t *ids, size_t n)
{
    mf_error err = { 0 };
    mf_buffer text = { 0 };
    CHECK_OK(mf_tokenizer_decode(tok, ids, n, false, &text, &err), err);
    CHECK_STR(mf_buffer_text(&text), expected);
    mf_buffer_close(&text);
}

TEST(prepend_puts_a_blank_before_each_part_between_added_tokens)
{
    mf_tokenizer *tok = mixtral();
    check_ids(tok, "ab", IDS(BLANK_AB));
    check_ids(tok, " ab", IDS(BLANK, BLANK_AB));
    check_ids(tok, "a</s>ab a", IDS(BLANK_A, 2, BLANK_AB, BLANK_A));
    check_ids(tok, "</s> a", IDS(2, BLANK, BLANK_A));
    check_ids(tok, "", NULL, 0);
    mf_tokenizer_close(&tok);
}

TEST(metaspace_puts_a_blank_before_what_does_not_begin_with_one)
{
    mf_tokenizer *first = open_parts(&(parts){ .normalizer = "null", .pre_tokenizer = METASPACE });
    check_ids(first, "ab", IDS(BLANK_AB));
    check_ids(first, " ab", IDS(BLANK_AB));
    check_ids(first, "a</s>ab a", IDS(BLANK_A, 2, AB, BLANK_A));
    check_ids(first, "</s>a", IDS(2, A));
    mf_tokenizer_close(&first);
    /* Older files have only a switch; by its default pieces are split, which no merge can see here. */
    mf_tokenizer *old = open_parts(
        &(parts){ .normalizer = "null",
                  .pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"" B "\",\"add_prefix_space\":true}" });
    check_ids(old, "a</s>ab a", IDS(BLANK_A, 2, BLANK_AB, BLANK_A));
    mf_tokenizer_close(&old);
}

TEST(a_character_that_is_no_token_is_its_bytes)
{
    mf_tokenizer *tok = mixtral();
    check_ids(tok, "a\n", IDS(BLANK_A, BYTE + '\n'));
    check_ids(tok, "\xc3\xa9", IDS(BLANK, BYTE + 0xc3, BYTE + 0xa9));
    check_text(tok, "\xc3\xa9\na", IDS(BLANK, BYTE + 0xc3, BYTE + 0xa9, BYTE + '\n', A));
    mf_tokenizer_close(&tok);
}

TEST(a_whole_text_loses_one_blank_and_a_stream_none)
{
    mf_tokenizer *tok = mixtral();
    check_text(tok, "ab ab", IDS(BLANK_AB, BLANK_AB));
    check_text(tok, " ab", IDS(BLANK, BLANK_AB));
    check_text(tok, "<s> ab", IDS(1, BLANK_AB));
    check_text(tok, "", IDS(BLANK));
    mf_error err = { 0 };
    mf_buffer text = { 0 };
    mf_stream *stream = NULL;
    int32_t stop = -1;
    CHECK_OK(mf_stream_open(tok, NULL, &stream, &err), err);
    CHECK_OK(mf_stream_push(stream, BLANK_AB, &text, &stop, &err), err);
    CHECK_OK(mf_stream_push(stream, BLANK_A, &text, &stop, &err), err);
    CHECK_OK(mf_stream_finish(stream, &text, &stop, &err), err);
    CHECK_STR(mf_buffer_text(&text), " ab a");
    mf_stream_close(&stream);
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(a_stop_string_is_found_in_blanks_and_bytes)
{
    mf_tokenizer *tok = mixtral();
    mf_error err = { 0 };
    mf_buffer text = { 0 };
    mf_stream *stream = NULL;
    int32_t stop = -1;
    const mf_stop_string stops[] = { { "\n a", 3 } };
    const int32_t ids[] = { AB, BYTE + '\n', BLANK_AB };
    CHECK_OK(mf_stream_open(tok, &(mf_stream_options){ .stops = stops, .num_stops = 1 }, &stream, &err), err);
    for (size_t i = 0; i < 3; i++) {
        CHECK_EQ(stop, -1);
        CHECK_OK(mf_stream_push(stream, ids[i], &text, &stop, &err), err);
    }
    CHECK_EQ(stop, 0);
    CHECK_STR(mf_buffer_text(&text), "ab");
    mf_stream_close(&stream);
    mf_buffer_close(&text);
    mf_tokenizer_close(&tok);
}

TEST(a_guide_sees_blanks_and_bytes)
{
    mf_tokenizer *tok = mixtral();
    mf_error err = { 0 };
    mf_guide_vocab *vocab = NULL;
    mf_guide_program *program = NULL;
    mf_guide_state *state = NULL;
    uint32_t mask[(NUM_IDS + 31) / 32];
    const int32_t eos = 2;
    const char pattern[] = "\n ab?";
    CHECK_OK(mf_guide_vocab_open(tok, &eos, 1, &vocab, &err), err);
    CHECK_OK(mf_guide_compile_regex(vocab, pattern, strlen(pattern), NULL, &program, &err), err);
    CHECK_OK(mf_guide_state_open(program, &state, &err), err);
#define MAY(id) ((mask[(id) / 32] >> ((id) % 32)) & 1)
    mf_guide_state_fill(state, mask, NUM_IDS);
    CHECK(MAY(BYTE + '\n') && !MAY(BYTE + ' ') && !MAY(BLANK_A) && !MAY(A) && !MAY(0));
    mf_guide_state_accept(state, BYTE + '\n');
    mf_guide_state_fill(state, mask, NUM_IDS);
    CHECK(MAY(BLANK) && MAY(BYTE + ' ') && MAY(BLANK_A) && MAY(BLANK_AB) && !MAY(BLANK_2) && !MAY(A));
    mf_guide_state_accept(state, BLANK_AB);
    CHECK(mf_guide_state_may_end(state));
#undef MAY
    mf_guide_state_close(&state);
    mf_guide_program_close(&program);
    mf_guide_vocab_close(&vocab);
    mf_tokenizer_close(&tok);
}

TEST(a_special_token_that_a_user_wrote_is_plain_text)
{
    /* "<n>" is looked for in the normalised text, where it is "_<n>": behind a blank, or where a part begins. */
    mf_tokenizer *tok =
        open_parts(&(parts){ .more_added = ",{\"id\":268,\"content\":\"<n>\",\"special\":true,\"normalized\":true}" });
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    const char text[] = "</s>a <n>a</s>";
    const size_t plain_at[] = { 6, 10 };
    check_ids(tok, text, IDS(2, BLANK_A, 268, A, 2));
    CHECK(mf_tokenizer_special_begins(tok, text, strlen(text), 0));
    CHECK(mf_tokenizer_special_begins(tok, text, strlen(text), 6));
    CHECK(!mf_tokenizer_special_begins(tok, text, strlen(text), 5));
    CHECK_OK(mf_tokenizer_encode_mixed(tok, text, strlen(text), 0, plain_at, 2, &ids, &err), err);
    CHECK_EQ(ids.data[0], 2);
    for (size_t i = 1; i < ids.size; i++) {
        CHECK(!mf_tokenizer_is_special(tok, ids.data[i]));
    }
    mf_ids_close(&ids);
    mf_tokenizer_close(&tok);
}

static double seconds_for(const mf_tokenizer *tok, const char *unit, size_t size)
{
    mf_error err = { 0 };
    mf_buffer text = { 0 };
    mf_ids ids = { 0 };
    struct timespec begin, end;
    while (text.size < size) {
        mf_buffer_append_text(&text, unit);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    CHECK_OK(mf_tokenizer_encode(tok, text.data, text.size, 0, &ids, &err), err);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    mf_ids_close(&ids);
    mf_buffer_close(&text);
    return (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
}

TEST(a_megabyte_is_one_word_and_takes_no_minute)
{
    /* A quadratic merge would take hours.  With a token that holds a blank behind a letter no place is safe to cut at.
     */
    mf_tokenizer *cut = mixtral();
    mf_tokenizer *whole = open_parts(&(parts){ .more_vocab = ",\"b" B "\":268", .more_merges = ",[\"b\",\"" B "\"]" });
    CHECK_EQ(cut->chars.cut_id, BLANK);
    CHECK_EQ(whole->chars.cut_id, -1);
    static const char *const units[] = { "ab ", "a", " ", "ba  \n", "\xc3\xa9 aab" };
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        CHECK(seconds_for(cut, units[i], 1 << 20) < 2.0 * SLOWER);
        CHECK(seconds_for(whole, units[i], 1 << 20) < 2.0 * SLOWER);
    }
    mf_tokenizer_close(&cut);
    mf_tokenizer_close(&whole);
}

TEST(what_is_not_supported_is_refused_by_name)
{
    static const struct {
        parts parts;
        mf_status status;
        const char *message;
    } cases[] = {
        { { .normalizer = "{\"type\":\"Lowercase\"}" }, MF_ERR_UNSUPPORTED, "normalizer \"Lowercase\"" },
        { { .normalizer = "{\"type\":\"Prepend\"}" }, MF_ERR_FORMAT, "normalizer Prepend.prepend: expected a string" },
        { { .normalizer = "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" \"},\"content\":\"\"}" },
          MF_ERR_UNSUPPORTED,
          "normalizer \"Replace with a Regex\"" },
        { { .normalizer = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}" },
          MF_ERR_UNSUPPORTED,
          "normalizer \"Replace of an empty String\"" },
        { { .normalizer = "{\"type\":\"Replace\",\"pattern\":\" \",\"content\":\"\"}" },
          MF_ERR_FORMAT,
          "normalizer Replace.pattern: expected an object" },
        { { .pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}" },
          MF_ERR_FORMAT,
          "Metaspace.replacement: expected one character" },
        { { .pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}" },
          MF_ERR_UNSUPPORTED,
          "prepend_scheme \"last\"" },
        { { .pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"add_prefix_"
                             "space\":false}" },
          MF_ERR_FORMAT,
          "contradicts prepend_scheme" },
        { { .decoder = "null" }, MF_ERR_UNSUPPORTED, "decoder \"null\"" },
        { { .decoder = "{\"type\":\"WordPiece\"}" }, MF_ERR_UNSUPPORTED, "decoder \"WordPiece\"" },
        { { .decoder = "{\"type\":\"ByteLevel\"}" },
          MF_ERR_UNSUPPORTED,
          "ByteLevel without a pre_tokenizer ByteLevel" },
        { { .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \","
                       "\"start\":1,\"stop\":1}]}" },
          MF_ERR_UNSUPPORTED,
          "Strip at a text's end" },
        { { .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]}" },
          MF_ERR_UNSUPPORTED,
          "decoder \"ByteFallback\"" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mf_buffer json = { 0 };
        mf_error err = { 0 };
        mf_tokenizer *tok = NULL;
        make_json(&cases[i].parts, &json);
        CHECK_EQ(mf_tokenizer_parse(mf_buffer_text(&json), json.size, "chars.json", &tok, &err), cases[i].status);
        CHECK(tok == NULL);
        CHECK_HAS(err.message, cases[i].message);
        CHECK_HAS(err.message, "chars.json");
        mf_buffer_close(&json);
    }
}

TEST(a_text_that_grows_without_end_is_refused)
{
    /* Eight times 64 times as long. */
    mf_buffer normalizer = { 0 };
    mf_buffer_append_text(&normalizer, "{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 8; i++) {
        mf_buffer_append_text(&normalizer, i ? "," : "");
        mf_buffer_append_text(&normalizer, "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"");
        for (int k = 0; k < 64; k++) {
            mf_buffer_append_text(&normalizer, "a");
        }
        mf_buffer_append_text(&normalizer, "\"}");
    }
    mf_buffer_append_text(&normalizer, "]}");
    mf_tokenizer *tok = open_parts(&(parts){ .normalizer = mf_buffer_text(&normalizer) });
    mf_error err = { 0 };
    mf_ids ids = { 0 };
    CHECK_EQ(mf_tokenizer_encode(tok, "aaaaaaaa", 8, 0, &ids, &err), MF_ERR_LIMIT);
    CHECK_EQ(ids.size, 0);
    mf_ids_close(&ids);
    mf_tokenizer_close(&tok);
    /* So are tokens: the added ones through the normalizer, all of them through the decoder. */
    static const char replace[] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"<\"},\"content\":"
                                  "\"0123456789012345678901234567890123456789\"}";
    mf_buffer decoder = { 0 }, json = { 0 };
    mf_buffer_printf(&decoder, "{\"type\":\"Sequence\",\"decoders\":[%s,{\"type\":\"Fuse\"}]}", replace);
    make_json(&(parts){ .decoder = mf_buffer_text(&decoder) }, &json);
    CHECK_EQ(mf_tokenizer_parse(json.data, json.size, "chars.json", &tok, &err), MF_ERR_LIMIT);
    CHECK_HAS(err.message, "chars.json: decoder: expected tokens' texts of at most 4 times");
    mf_buffer_clear(&json);
    make_json(&(parts){ .normalizer = mf_buffer_text(&normalizer),
                        .more_added = ",{\"id\":268,\"content\":\"aa\",\"normalized\":true}" },
              &json);
    CHECK_EQ(mf_tokenizer_parse(json.data, json.size, "chars.json", &tok, &err), MF_ERR_LIMIT);
    CHECK_HAS(err.message, "chars.json: normalizer: expected an added token's text");
    mf_buffer_close(&json);
    mf_buffer_close(&decoder);
    mf_buffer_close(&normalizer);
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

static mf_status exercise(const mf_buffer *json)
{
    static const char text[] = "ab <n>a</s>a\xc3\xa9\n aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    mf_ids ids = { 0 };
    mf_buffer out = { 0 };
    mf_status status = mf_tokenizer_parse(json->data, json->size, "chars.json", &tok, &err);
    if (status == MF_OK) {
        status = mf_tokenizer_encode(tok, text, strlen(text), 0, &ids, &err);
    }
    if (status == MF_OK) {
        status = mf_tokenizer_decode(tok, ids.data, ids.size, false, &out, &err);
    }
    mf_ids_close(&ids);
    mf_buffer_close(&out);
    mf_tokenizer_close(&tok);
    return status;
}

TEST(each_failing_allocation_is_reported_and_leaks_nothing)
{
    static const parts all[] = {
        { .more_added = ",{\"id\":268,\"content\":\"<n>\",\"special\":true,\"normalized\":true}" },
        { .normalizer = "null", .pre_tokenizer = METASPACE, .decoder = METASPACE },
    };
    for (size_t i = 0; i < 2; i++) {
        mf_buffer json = { 0 };
        make_json(&all[i], &json);
        real_sys = mf_sys_table;
        mf_status status = MF_ERR_NOMEM;
        long k = 0;
        for (; status != MF_OK && k < 5000; k++) {
            allocations_left = k;
            mf_sys_table.alloc = failing_alloc;
            mf_sys_table.resize = failing_resize;
            status = exercise(&json);
            mf_sys_table = real_sys;
            CHECK(status == MF_OK || status == MF_ERR_NOMEM);
        }
        CHECK_EQ(status, MF_OK);
        CHECK(k > 30);
        mf_buffer_close(&json);
    }
}
