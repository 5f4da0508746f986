/* guide_test.c - masks equal what stepping byte by byte says, nothing is a dead end, and hostile input costs little. */
#include "guide_vocabulary.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/random.h"
#include "base/sys.h"
#include "text/guide_impl.h"

enum { WORDS = GUIDE_EOS / 32 + 1 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOWER = 20 };
#else
enum { SLOWER = 1 };
#endif

typedef struct setup {
    mf_tokenizer *tok;
    mf_guide_vocab *vocab;
} setup;

static setup open_setup(void)
{
    setup s = { .tok = guide_tokenizer() };
    s.vocab = guide_vocabulary(s.tok);
    return s;
}

static void close_setup(setup *s)
{
    mf_guide_vocab_close(&s->vocab);
    mf_tokenizer_close(&s->tok);
}

typedef struct source {
    char kind; /* s schema, r regex, g grammar, c one choice, o any object */
    const char *text;
} source;

static mf_status compile(const mf_guide_vocab *vocab, const source *x, const mf_guide_limits *limits, mf_guide_program **out,
                         mf_error *err)
{
    size_t size = strlen(x->text);
    switch (x->kind) {
    case 's':
        return mf_guide_compile_json_schema(vocab, x->text, size, limits, out, err);
    case 'r':
        return mf_guide_compile_regex(vocab, x->text, size, limits, out, err);
    case 'g':
        return mf_guide_compile_grammar(vocab, x->text, size, limits, out, err);
    case 'c':
        return mf_guide_compile_choice(vocab, &x->text, 1, limits, out, err);
    default:
        return mf_guide_compile_json_object(vocab, out, err);
    }
}

static mf_guide_program *must_compile(const setup *s, source x)
{
    mf_guide_program *program = NULL;
    mf_error err = { 0 };
    if (compile(s->vocab, &x, NULL, &program, &err) != MF_OK) {
        fail_msg("%s: %s", x.text, err.message);
    }
    return program;
}

static mf_guide_state *open_state(mf_guide_program *program)
{
    mf_guide_state *state;
    mf_error err = { 0 };
    CHECK_OK(mf_guide_state_open(program, &state, &err), err);
    return state;
}

static bool has_bit(const uint32_t *mask, int32_t id)
{
    return mask[id / 32] >> id % 32 & 1;
}

static const source sources[] = {
    { 'o', "" },
    { 'r', "a+b*" },
    { 'r', "(ab|aab|ba)*c?[ab]{2,5}" },
    { 'r', "\\d{1,4}(\\.\\d+)?(e[+-]?1)?" },
    { 'r', "(\"|\\\\|[^\"]){0,7}" },
    { 'r', "[\\u00e0-\\u4fff]*x|.{3}" },
    { 'c', "name\": true, \"age\"" },
    { 'g', "root ::= e\ne ::= t (\"+\" t)*\nt ::= [0-9]+ | \"(\" e \")\" | t2\nt2 ::= \"if \" e \" else \" e" },
    { 'g', "root ::= a a?\na ::= \"a\" a \"b\" | \"\" | \"(\" a \")\"" },
    { 'g', "root ::= x | y\nx ::= \"aa\" x \"bb\" | \"ab\"\ny ::= \"aab\" y \"b\" | \"a\" [ab]" },
    { 's', "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":130},"
           "\"ab\":{\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"ab\",1,null,true]}}},\"required\":[\"age\"]}" },
    { 's', "{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"maxLength\":3}},\"required\":[\"a\"]}}" },
    { 's', "{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}" },
    { 's', "{\"type\":\"object\",\"properties\":{\"na\":{\"type\":\"integer\"},\"name\":{}},\"additionalProperties\":{\"type\":\"boolean\"}}" },
    { 's', "{\"type\":\"string\",\"minLength\":2,\"maxLength\":6}" },
    { 's', "{\"type\":\"array\",\"items\":{\"type\":\"string\",\"minLength\":3},\"minItems\":2}" },
    { 's', "{\"type\":\"array\",\"items\":{\"anyOf\":[{\"type\":\"string\",\"maxLength\":2},{\"type\":\"string\",\"minLength\":4,\"maxLength\":5}]}}" },
    { 's', "{\"type\":\"string\",\"pattern\":\"^(a|\\\"|\\\\\\\\)*$\"}" },
    { 's', "{\"anyOf\":[{\"type\":\"string\",\"format\":\"date\"},{\"type\":\"string\",\"enum\":[\"a\",\"2024-\"]},{\"type\":\"number\",\"minimum\":0.5,"
           "\"exclusiveMaximum\":12.25}]}" },
};

enum { NUM_SOURCES = sizeof sources / sizeof *sources };

/* ---- masks -------------------------------------------------------------------------------------------------------- */

/* Whether the token's bytes can be read one after another; the first wrong one leaves nothing that could follow. */
static bool bytes_live(const setup *s, const mf_guide_state *state, int32_t id, mf_guide_state *scratch)
{
    size_t size;
    const char *bytes = mf_tokenizer_token_bytes(s->tok, id, &size);
    memcpy(scratch, state, sizeof *scratch);
    for (size_t i = 0; i < size && !scratch->has_failed; i++) {
        mf_guide_state_accept(scratch, (uint8_t)bytes[i]); /* ids 0..255 are the bytes */
    }
    return size > 0 && !scratch->has_failed;
}

static void check_mask(const setup *s, const mf_guide_state *state, const uint32_t *mask, mf_guide_state *scratch)
{
    bool any = false;
    for (int32_t id = 0; id < GUIDE_EOS; id++) {
        bool allowed = has_bit(mask, id);
        any = any || allowed;
        if (allowed != bytes_live(s, state, id, scratch)) {
            fail_msg("token %d \"%s\": mask %d", id, mf_tokenizer_token_text(s->tok, id), allowed);
        }
    }
    CHECK_EQ(has_bit(mask, GUIDE_EOS), mf_guide_state_may_end(state));
    CHECK(any || has_bit(mask, GUIDE_EOS)); /* never a dead end */
}

static int32_t choose(const uint32_t *mask, uint64_t *random)
{
    int32_t n = 0, chosen = -1;
    for (int32_t id = 0; id <= GUIDE_EOS; id++) {
        if (has_bit(mask, id) && mf_random_below(random, (uint64_t)++n) == 0) {
            chosen = id;
        }
    }
    return chosen;
}

TEST(every_token_is_allowed_exactly_when_its_bytes_can_be_read_one_by_one)
{
    setup s = open_setup();
    mf_guide_state *scratch = malloc(sizeof *scratch);
    for (int i = 0; i < NUM_SOURCES; i++) {
        mf_guide_program *program = must_compile(&s, sources[i]);
        for (uint64_t seed = 0; seed < (SLOWER > 1 ? 2 : 8); seed++) {
            uint64_t random = seed;
            mf_guide_state *state = open_state(program);
            for (int step = 0; step < 30; step++) {
                uint32_t mask[WORDS];
                mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
                check_mask(&s, state, mask, scratch);
                int32_t id = choose(mask, &random);
                if (id == GUIDE_EOS) {
                    break;
                }
                mf_guide_state_accept(state, id);
            }
            mf_guide_state_close(&state);
        }
        mf_guide_program_close(&program);
    }
    free(scratch);
    close_setup(&s);
}

/* All strings over a small alphabet up to a length, and which begin a member: what the guide must say of each. */
TEST(small_languages_are_exactly_as_enumerated)
{
    static const struct {
        source x;
        const char *members[16]; /* all of them */
    } languages[] = {
        { { 'r', "a{2}b?|ba" }, { "aa", "aab", "ba" } },
        { { 'r', "(a|b){0,2}" }, { "", "a", "b", "aa", "ab", "ba", "bb" } },
        { { 'c', "abab" }, { "abab" } },
        { { 'g', "root ::= \"a\" r \"b\" | r\nr ::= \"a\"? [b]" }, { "abb", "aabb", "b", "ab" } },
        { { 'g', "root ::= x{1,2}\nx ::= \"ab\" | \"b\"" }, { "ab", "b", "abab", "abb", "bab", "bb" } },
    };
    setup s = open_setup();
    for (size_t l = 0; l < sizeof languages / sizeof *languages; l++) {
        mf_guide_program *program = must_compile(&s, languages[l].x);
        for (int length = 0; length <= 5; length++) {
            for (int word = 0; word < 1 << length; word++) {
                char text[8] = { 0 };
                bool begins = false, is_member = false;
                mf_guide_state *state = open_state(program);
                for (int i = 0; i < length; i++) {
                    text[i] = word >> i & 1 ? 'b' : 'a';
                    mf_guide_state_accept(state, text[i]);
                }
                for (int m = 0; m < 16 && languages[l].members[m]; m++) {
                    begins = begins || strncmp(languages[l].members[m], text, (size_t)length) == 0;
                    is_member = is_member || strcmp(languages[l].members[m], text) == 0;
                }
                uint32_t mask[WORDS];
                mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
                CHECK_EQ(choose(mask, &(uint64_t){ 1 }) >= 0, begins);
                CHECK_EQ(mf_guide_state_may_end(state), is_member);
                mf_guide_state_close(&state);
            }
        }
        mf_guide_program_close(&program);
    }
    close_setup(&s);
}

TEST(only_eos_follows_a_whole_text_and_stays)
{
    setup s = open_setup();
    mf_guide_program *program = must_compile(&s, (source){ 'c', "ab" });
    mf_guide_state *state = open_state(program);
    uint32_t mask[WORDS];
    CHECK(!mf_guide_state_may_end(state));
    mf_guide_state_accept(state, 'a');
    mf_guide_state_accept(state, 'b');
    CHECK(mf_guide_state_may_end(state));
    for (int round = 0; round < 2; round++) { /* with ignore_eos it is asked again */
        mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
        for (int32_t id = 0; id <= GUIDE_EOS; id++) {
            CHECK_EQ(has_bit(mask, id), id == GUIDE_EOS);
        }
        mf_guide_state_accept(state, GUIDE_EOS);
    }
    mf_guide_state_accept(state, 'a'); /* against the mask */
    mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
    CHECK_EQ(choose(mask, &(uint64_t){ 1 }), -1);
    CHECK(!mf_guide_state_may_end(state));
    mf_guide_state_close(&state);
    mf_guide_program_close(&program);
    close_setup(&s);
}

TEST(masks_fit_vocabularies_that_are_padded_or_cut)
{
    setup s = open_setup();
    mf_guide_program *program = must_compile(&s, (source){ 'r', "[a-z]*" });
    mf_guide_state *state = open_state(program);
    uint32_t whole[WORDS];
    mf_guide_state_fill(state, whole, GUIDE_EOS + 1);
    for (int32_t size = 0; size < 2 * GUIDE_EOS; size += 7) {
        uint32_t mask[2 * WORDS + 2];
        memset(mask, 0xff, sizeof mask);
        mf_guide_state_fill(state, mask, size);
        for (int32_t id = 0; id < (size + 31) / 32 * 32; id++) {
            CHECK_EQ(has_bit(mask, id), id < size && id <= GUIDE_EOS && has_bit(whole, id));
        }
        CHECK_EQ(mask[(size + 31) / 32], UINT32_MAX);
    }
    mf_guide_state_close(&state);
    mf_guide_program_close(&program);
    close_setup(&s);
}

/* ---- depth -------------------------------------------------------------------------------------------------------- */

TEST(nesting_stops_where_it_could_still_be_closed)
{
    setup s = open_setup();
    const source nested[] = { { 's', "{\"type\":\"array\",\"items\":{\"$ref\":\"#\"},\"minItems\":0}" }, { 'o', "" },
                              { 'g', "root ::= \"[\" a \"]\"\na ::= root a | root | \"1\"" } };
    for (int i = 0; i < 3; i++) {
        mf_guide_program *program = must_compile(&s, nested[i]);
        mf_guide_state *state = open_state(program);
        int32_t opened = 0, steps = 0;
        bool in_string = false, is_closing = false;
        for (; steps < 5000; steps++) { /* open as long as it is allowed, then close as soon as it is */
            static const char *const orders[] = { "[{\":1]}", "]}1[{\":", "\"" };
            const char *order = orders[in_string ? 2 : is_closing];
            uint32_t mask[WORDS];
            mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
            int32_t id = has_bit(mask, GUIDE_EOS) ? GUIDE_EOS : -1;
            for (size_t k = 0; order[k] && id < 0; k++) {
                id = has_bit(mask, (uint8_t)order[k]) ? (uint8_t)order[k] : -1;
            }
            CHECK(id >= 0);
            opened += id == '[' || id == '{';
            in_string = in_string != (id == '"');
            is_closing = is_closing || id == '1' || id == ']';
            if (id == GUIDE_EOS) {
                break;
            }
            mf_guide_state_accept(state, id);
        }
        CHECK(steps < 5000);
        CHECK(opened >= 100 && opened <= MF_GUIDE_MAX_STACK + 1);
        mf_guide_state_close(&state);
        mf_guide_program_close(&program);
    }
    close_setup(&s);
}

/* ---- hostile input ------------------------------------------------------------------------------------------------ */

static char *repeated(const char *head, const char *part, int32_t n, const char *tail)
{
    mf_buffer out = { 0 };
    mf_buffer_append_text(&out, head);
    for (int32_t i = 0; i < n; i++) {
        mf_buffer_append_text(&out, part);
    }
    mf_buffer_append_text(&out, tail);
    return out.data;
}

/* Of this thread: the machine may be busy with others. */
static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Refused, or compiled within the time and run for some steps within the work a step may cost. */
static void check_hostile(const setup *s, source x)
{
    mf_guide_program *program = NULL;
    mf_error err = { 0 };
    int64_t start = cpu_ns();
    mf_status status = compile(s->vocab, &x, NULL, &program, &err);
    double ms = (double)(cpu_ns() - start) * 1e-6;
    if (ms > 250.0 * SLOWER) {
        fail_msg("%c %.60s: compiling took %.0f ms", x.kind, x.text, ms);
    }
    if (status != MF_OK) {
        CHECK(status == MF_ERR_INVALID || status == MF_ERR_UNSUPPORTED || status == MF_ERR_LIMIT);
        CHECK(err.message[0] && !program);
        return;
    }
    mf_guide_state *state = open_state(program);
    uint64_t random = 1;
    for (int step = 0; step < 20; step++) {
        uint32_t mask[WORDS];
        start = cpu_ns();
        mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
        int32_t id = choose(mask, &random);
        if (id < 0 || id == GUIDE_EOS) {
            break;
        }
        mf_guide_state_accept(state, id);
        ms = (double)(cpu_ns() - start) * 1e-6;
        if (ms > 1000.0 * SLOWER) {
            fail_msg("%c %.60s: a step took %.0f ms", x.kind, x.text, ms);
        }
    }
    mf_guide_state_close(&state);
    mf_guide_program_close(&program);
}

TEST(hostile_input_is_refused_or_bounded_in_time)
{
    static const struct {
        char kind;
        const char *head, *part;
        int32_t n;
        const char *tail;
    } table[] = {
        { 'r', "foo", "*", 2, "" },
        { 'r', "", "(", 60000, "" },
        { 'r', "", "(", 60, "a" },
        { 'r', "", "(a|", 60, "b" },
        { 'r', "", "[", 60000, "" },
        { 'r', "", "(a*)*", 10000, "" },
        { 'r', "", "a?", 20000, "" },
        { 'r', "(a|b)*a", "(a|b)", 30, "" },
        { 'r', "(a|aa|aab|ab|b)*a", "[ab]", 200, "" },
        { 'r', "((((a{1,100}){1,100}){1,100}){1,100})", "", 0, "" },
        { 'r', "(", "a|", 30000, "b){1,50}" },
        { 'r', "(?:", "\\w|", 5000, "x){1000}" },
        { 'r', "", "\\w{1,100}", 20, "" },
        { 'r', "((((((){1000}){1000}){1000}){1000}){1000})", "", 0, "" },
        { 'r', "", "(|a)", 10000, "" },
        { 'r', ".*", ".*", 200, "x" },
        { 'g', "root ::= ", "(", 60000, "" },
        { 'g', "root ::= ", "\"a\"? ", 10000, "" },
        { 'g', "root ::= a a a a\na ::= b b b b\nb ::= c c c c\nc ::= d d d d\nd ::= e e e e\ne ::= f f f f\nf ::= g g g g\ng ::= \"x\"* \"y\"*", "", 0, "" },
        { 'g', "root ::= root root | \"a\"", "", 0, "" },
        { 'g', "root ::= \"a\" | \"a\" root root | \"a\" root root root", "", 0, "" },
        { 'g', "root ::= s\ns ::= \"(\" s s \")\" | \"(\" s s s \")\" | \"\"", "", 0, "" },
        { 'g', "root ::= \"a\" x\nx ::= ", "y | ", 5000, "\"b\"\ny ::= \"c\"" },
        { 'g', "root ::= x0\n", "x ::= x\n", 1000, "" },
        { 's', "", "{\"items\":", 5000, "" },
        { 's', "{\"anyOf\":[", "{\"type\":\"object\"},", 3000, "{}]}" },
        { 's', "{\"anyOf\":[", "{\"$ref\":\"#\"},", 3000, "{\"type\":\"null\"}]}" },
        { 's', "{\"type\":\"array\",\"items\":{\"anyOf\":[", "{\"$ref\":\"#\"},", 3000, "{\"type\":\"null\"}]}}" },
        { 's', "{\"allOf\":[", "{\"properties\":{\"a\":{\"$ref\":\"#\"}}},", 500, "{}]}" },
        { 's', "{\"properties\":{\"a\":{\"$ref\":\"#/$defs/b\"}},\"$defs\":{\"b\":{\"allOf\":[{\"$ref\":\"#\"},{\"properties\":{\"a\":{\"$ref\":\"#/$defs/c\"}}}]},"
               "\"c\":{\"allOf\":[{\"$ref\":\"#/$defs/b\"},{\"properties\":{\"a\":{\"$ref\":\"#\"}}}]}}}", "", 0, "" },
        { 's', "{\"enum\":[", "\"aaaaaaaa\",", 5000, "1]}" },
        { 's', "{\"enum\":[", "[[[[[[]]]]]],", 4000, "1]}" },
        { 's', "{\"type\":\"string\",\"pattern\":\"", "(a|b)*", 8000, "\"}" },
        { 's', "{\"type\":\"string\",\"minLength\":1000000}", "", 0, "" },
        { 's', "{\"type\":\"array\",\"items\":{\"type\":\"array\",\"items\":{\"type\":\"array\",\"maxItems\":1000},\"maxItems\":1000},\"maxItems\":1000}", "", 0, "" },
        { 's', "{\"required\":[", "\"a\",", 15000, "\"b\"]}" },
        { 's', "{\"$ref\":\"#", "/a", 30000, "\"}" },
        { 's', "{\"type\":\"number\",\"minimum\":1", "0", 3000, "}" },
        { 's', "{\"type\":\"number\",\"minimum\":1e-290,\"maximum\":2e-290}", "", 0, "" },
    };
    setup s = open_setup();
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char *text = repeated(table[i].head, table[i].part, table[i].n, table[i].tail);
        check_hostile(&s, (source){ table[i].kind, text });
        mf_buffer_close(&(mf_buffer){ .data = text });
    }
    close_setup(&s);
}

TEST(limits_hold_exactly)
{
    setup s = open_setup();
    mf_error err = { 0 };
    mf_guide_program *program;
    const source exact = { 'r', "abcdefgh" };
    CHECK_OK(compile(s.vocab, &exact, &(mf_guide_limits){ .source_bytes = 8 }, &program, &err), err);
    mf_guide_program_close(&program);
    CHECK_EQ(compile(s.vocab, &exact, &(mf_guide_limits){ .source_bytes = 7 }, &program, &err), MF_ERR_LIMIT);
    const source nested = { 'r', "(((a)))" };
    CHECK_OK(compile(s.vocab, &nested, &(mf_guide_limits){ .depth = 4 }, &program, &err), err);
    mf_guide_program_close(&program);
    CHECK_EQ(compile(s.vocab, &nested, &(mf_guide_limits){ .depth = 3 }, &program, &err), MF_ERR_LIMIT);
    CHECK_HAS(err.message, "deeply");
    const source long_one = { 'r', "a{100}" };
    CHECK_OK(compile(s.vocab, &long_one, &(mf_guide_limits){ .states = 102 }, &program, &err), err);
    mf_guide_program_close(&program);
    CHECK_EQ(compile(s.vocab, &long_one, &(mf_guide_limits){ .states = 101 }, &program, &err), MF_ERR_LIMIT);
    CHECK_HAS(err.message, "states");
    const source large = { 'r', "((a|b){300}){300}" };
    CHECK_EQ(compile(s.vocab, &large, &(mf_guide_limits){ .states = 1000000, .compile_ns = 1 }, &program, &err), MF_ERR_LIMIT);
    CHECK_HAS(err.message, "longer than");
    CHECK_EQ(mf_guide_compile_regex(s.vocab, "a\xff", 2, NULL, &program, &err), MF_ERR_INVALID);
    CHECK_EQ(mf_guide_compile_choice(s.vocab, NULL, 0, NULL, &program, &err), MF_ERR_INVALID);
    close_setup(&s);
}

/* ---- memory ------------------------------------------------------------------------------------------------------- */

static int64_t num_allocations, fail_at, num_live;

static void *counting_alloc(size_t bytes)
{
    if (++num_allocations == fail_at) {
        return NULL;
    }
    num_live++;
    return malloc(bytes);
}

static void *counting_resize(void *block, size_t bytes)
{
    if (++num_allocations == fail_at) {
        return NULL;
    }
    num_live += block == NULL;
    return realloc(block, bytes);
}

static void counting_release(void *block)
{
    num_live -= block != NULL;
    free(block);
}

static void count_from(int64_t fail)
{
    mf_sys_table.alloc = counting_alloc;
    mf_sys_table.resize = counting_resize;
    mf_sys_table.release = counting_release;
    num_allocations = 0;
    fail_at = fail;
}

TEST(a_step_allocates_nothing)
{
    setup s = open_setup();
    mf_sys saved = mf_sys_table;
    for (int i = 0; i < NUM_SOURCES; i++) {
        mf_guide_program *program = must_compile(&s, sources[i]);
        mf_guide_state *state = open_state(program);
        uint64_t random = 7;
        count_from(0);
        for (int step = 0; step < 50; step++) {
            uint32_t mask[WORDS];
            mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
            int32_t id = choose(mask, &random);
            if (id == GUIDE_EOS) {
                break;
            }
            mf_guide_state_accept(state, id);
        }
        CHECK_EQ(num_allocations, 0);
        mf_sys_table = saved;
        mf_guide_state_close(&state);
        mf_guide_program_close(&program);
    }
    close_setup(&s);
}

TEST(any_failed_allocation_is_a_clean_error)
{
    mf_tokenizer *tok = guide_tokenizer();
    mf_sys saved = mf_sys_table;
    for (int i = 0; i < NUM_SOURCES; i += SLOWER > 1 ? 5 : 2) {
        mf_status status = MF_ERR_NOMEM;
        for (int64_t k = 1; status != MF_OK; k++) {
            mf_guide_vocab *vocab = NULL;
            mf_guide_program *program = NULL;
            mf_guide_state *state = NULL;
            mf_error err = { 0 };
            const int32_t eos = GUIDE_EOS;
            num_live = 0;
            count_from(k);
            status = mf_guide_vocab_open(tok, &eos, 1, &vocab, &err);
            status = status == MF_OK ? compile(vocab, &sources[i], &(mf_guide_limits){ .compile_ns = 10000000000 }, &program, &err) : status;
            status = status == MF_OK ? mf_guide_state_open(program, &state, &err) : status;
            mf_guide_state_close(&state);
            mf_guide_program_close(&program);
            mf_guide_vocab_close(&vocab);
            mf_sys_table = saved;
            if (num_live != 0) {
                fail_msg("%s, allocation %lld: %lld left", sources[i].text, (long long)k, (long long)num_live);
            }
            CHECK(k < 10000);
            CHECK(status == MF_OK || err.message[0]);
            CHECK(status == MF_OK || status == MF_ERR_NOMEM || status == MF_ERR_LIMIT);
        }
    }
    mf_tokenizer_close(&tok);
}

TEST(masks_stay_right_when_the_cache_is_emptied)
{
    setup s = open_setup();
    mf_guide_state *scratch = malloc(sizeof *scratch);
    int num_emptied = 0;
    for (int i = 0; i < NUM_SOURCES; i++) {
        mf_guide_program *program = must_compile(&s, sources[i]);
        program->cache_size = 40; /* words: two masks or three */
        for (uint64_t seed = 0; seed < (SLOWER > 1 ? 2 : 6); seed++) {
            uint64_t random = seed;
            mf_guide_state *state = open_state(program);
            for (int step = 0; step < 12; step++) {
                uint32_t mask[WORDS];
                mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
                check_mask(&s, state, mask, scratch);
                int32_t id = choose(mask, &random);
                if (id == GUIDE_EOS) {
                    break;
                }
                mf_guide_state_accept(state, id);
            }
            mf_guide_state_close(&state);
        }
        num_emptied += program->cache_last_serial > 2;
        mf_guide_program_close(&program);
    }
    CHECK(num_emptied > 3);
    free(scratch);
    close_setup(&s);
}

/* ---- threads ------------------------------------------------------------------------------------------------------ */

typedef struct walker {
    mf_guide_program *program;
    uint64_t hash;
} walker;

static void *walk_alone(void *context)
{
    walker *w = context;
    for (uint64_t seed = 0; seed < 6; seed++) {
        uint64_t random = seed;
        mf_guide_state *state = open_state(w->program);
        for (int step = 0; step < 60; step++) {
            uint32_t mask[WORDS];
            mf_guide_state_fill(state, mask, GUIDE_EOS + 1);
            for (int i = 0; i < WORDS; i++) {
                w->hash = mf_random_mix(w->hash ^ mask[i]);
            }
            int32_t id = choose(mask, &random);
            if (id == GUIDE_EOS) {
                break;
            }
            mf_guide_state_accept(state, id);
        }
        mf_guide_state_close(&state);
    }
    mf_guide_program_close(&w->program);
    return NULL;
}

TEST(threads_that_share_a_program_see_the_masks_of_one_alone)
{
    setup s = open_setup();
    for (int i = 0; i < NUM_SOURCES; i += 3) {
        walker alone = { .program = must_compile(&s, sources[i]) };
        walk_alone(&alone);
        walker walkers[4];
        pthread_t threads[4];
        mf_guide_program *program = must_compile(&s, sources[i]);
        for (int t = 0; t < 4; t++) {
            walkers[t] = (walker){ .program = mf_guide_program_ref(program) };
            CHECK_EQ(pthread_create(&threads[t], NULL, walk_alone, &walkers[t]), 0);
        }
        mf_guide_program_close(&program);
        for (int t = 0; t < 4; t++) {
            pthread_join(threads[t], NULL);
            CHECK(walkers[t].hash == alone.hash);
        }
    }
    close_setup(&s);
}
