/* chat_template_test.c - limits, errors, loading and the promises of chat_template.h.  What templates mean is compared with
 * jinja2 by chat_template_oracle.py. */
#include "test.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/json.h"
#include "base/sys.h"
#include "text/chat_template.h"

static mf_error err;

static const mf_template_limits patient = { .time_ns = 60000000000 };

/* Parses and renders; the text or message stands in `out` or `err`. */
static mf_status run_with(const char *source, const char *variables, const mf_template_limits *limits, mf_buffer *out)
{
    mf_chat_template *t = NULL;
    json_t *v = NULL;
    err = (mf_error){ 0 };
    mf_status status = mf_json_parse(variables, strlen(variables), "variables", NULL, &v, &err);
    if (status == MF_OK) {
        status = mf_chat_template_parse(source, strlen(source), "t.jinja", &t, &err);
    }
    if (status == MF_OK) {
        status = mf_chat_template_render(t, v, limits, out, &err);
    }
    mf_chat_template_close(&t);
    json_decref(v);
    return status;
}

static void check_text(const char *source, const char *variables, const char *expected)
{
    mf_buffer out = { 0 };
    CHECK_OK(run_with(source, variables, &patient, &out), err);
    CHECK_STR(mf_buffer_text(&out), expected);
    mf_buffer_close(&out);
}

static void check_error(const char *source, mf_status expected, const char *part)
{
    mf_buffer out = { 0 };
    mf_status status = run_with(source, "{}", &patient, &out);
    if (status != expected) {
        fail_msg("%s: got %s (%s), expected %s", source, mf_status_name(status), err.message, mf_status_name(expected));
    }
    CHECK_EQ(err.status, expected);
    CHECK_HAS(err.message, part);
    CHECK_EQ(out.size, 0);
    mf_buffer_close(&out);
}

static void check_limit(const char *source, const mf_template_limits *limits, const char *part)
{
    mf_buffer out = { 0 };
    mf_status status = run_with(source, "{}", limits, &out);
    if (status != MF_ERR_LIMIT) {
        fail_msg("%s: got %s (%s)", source, mf_status_name(status), err.message);
    }
    CHECK_HAS(err.message, part);
    CHECK_EQ(out.size, 0);
    mf_buffer_close(&out);
}

/* head, then piece n times, then tail; free it. */
static char *repeated(const char *head, const char *piece, int n, const char *tail)
{
    size_t size = strlen(head) + strlen(piece) * (size_t)n + strlen(tail) + 1;
    char *text = malloc(size);
    assert_non_null(text);
    strcpy(text, head);
    char *p = text + strlen(head);
    for (int i = 0; i < n; i++) {
        p = stpcpy(p, piece);
    }
    strcpy(p, tail);
    return text;
}

/* ---- rendering ---------------------------------------------------------------------------------------------------- */

TEST(a_conversation_becomes_a_prompt)
{
    check_text("{% for m in messages %}\n"
               "    <|{{ m.role }}|>{{ m['content'] | trim }}\n"
               "{% endfor %}\n"
               "{% if add_generation_prompt %}<|assistant|>{% endif %}\n",
               "{\"messages\": [{\"role\": \"user\", \"content\": \" hi\\n\"}], \"add_generation_prompt\": true}",
               "    <|user|>hi\n<|assistant|>");
}

TEST(absent_variables_are_undefined_and_null_is_none)
{
    check_text("{{ a is undefined }} {{ b is none }} {{ b is defined }} [{{ a }}] {{ b }}", "{\"b\": null}",
               "True True True [] None");
}

TEST(what_a_loop_sets_stays_in_the_loop_and_what_an_if_sets_does_not)
{
    check_text("{% set x = 0 %}{% for i in [1, 2] %}{% set x = i %}{% endfor %}{{ x }}"
               "{% if true %}{% set x = 3 %}{% endif %}{{ x }}",
               "{}", "03");
}

TEST(characters_are_code_points)
{
    check_text("{{ s|length }} {{ s[1] }} {{ s[::-1] }} {{ s.find('z') }}", "{\"s\": \"a\\u00e9\\ud83d\\ude00z\"}",
               "4 \xc3\xa9 z\xf0\x9f\x98\x80\xc3\xa9"
               "a 3");
}

TEST(the_prompt_is_appended_and_an_error_takes_back_its_part)
{
    mf_buffer out = { 0 };
    CHECK_EQ(mf_buffer_append_text(&out, "before "), MF_OK);
    CHECK_OK(run_with("text", "{}", NULL, &out), err);
    CHECK_STR(mf_buffer_text(&out), "before text");
    CHECK_EQ(run_with("more {{ 1 / 0 }}", "{}", NULL, &out), MF_ERR_INVALID);
    CHECK_STR(mf_buffer_text(&out), "before text");
    mf_buffer_close(&out);
}

static int64_t test_clock(void)
{
    return 951782400123000000; /* 2000-02-29 00:00:00.123 UTC */
}

TEST(strftime_now_shows_the_clock_that_tests_own)
{
    int64_t (*system_clock)(void) = mf_chat_template_clock_ns;
    setenv("TZ", "UTC", 1);
    tzset();
    mf_chat_template_clock_ns = test_clock;
    check_text("{{ strftime_now('%d %b %Y %H:%M %f') }}", "{}", "29 Feb 2000 00:00 123000");
    mf_chat_template_clock_ns = system_clock;
}

static void *render_many(void *template)
{
    json_t *v = json_pack("{s:[s,s,s], s:s}", "l", "a", "\xc3\xa9", "c", "s", "x\xc3\xa9y");
    int *good = calloc(1, sizeof *good);
    for (int i = 0; i < 200; i++) {
        mf_buffer out = { 0 };
        mf_error error;
        if (mf_chat_template_render(template, v, &patient, &out, &error) == MF_OK) {
            *good += strcmp(mf_buffer_text(&out), "a\xc3\xa9" "c3\xc3\xa9" "const\xc3\xa9") == 0;
        }
        mf_buffer_close(&out);
    }
    json_decref(v);
    return good;
}

TEST(threads_render_one_template_at_the_same_time)
{
    const char *source = "{% for i in l %}{{ i }}{% endfor %}{{ s|length }}{{ s[1] }}{{ 'const\xc3\xa9' ~ '' }}";
    mf_chat_template *t;
    pthread_t threads[4];
    CHECK_OK(mf_chat_template_parse(source, strlen(source), "t", &t, &err), err);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, render_many, t), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *good;
        CHECK_EQ(pthread_join(threads[i], &good), 0);
        CHECK_EQ(*(int *)good, 200);
        free(good);
    }
    mf_chat_template_close(&t);
}

/* ---- errors ------------------------------------------------------------------------------------------------------- */

TEST(raise_exception_gives_its_text_alone)
{
    mf_buffer out = { 0 };
    CHECK_EQ(run_with("{{ raise_exception('roles must alternate: ' ~ 1) }}", "{}", NULL, &out), MF_ERR_INVALID);
    CHECK_STR(err.message, "roles must alternate: 1");
    mf_buffer_close(&out);
}

TEST(messages_are_utf8_also_when_cut)
{
    char *source = repeated("{{ raise_exception('x", "\xe4\xb8\xad", 1000, "') }}");
    mf_buffer out = { 0 };
    CHECK_EQ(run_with(source, "{}", NULL, &out), MF_ERR_INVALID);
    CHECK(strlen(err.message) > 900);
    CHECK(mf_utf8_valid(err.message, strlen(err.message), NULL));
    free(source);
    source = repeated("{{ x", "\xe4\xb8\xad", 1000, ".y }}");
    CHECK_EQ(run_with(source, "{}", NULL, &out), MF_ERR_INVALID);
    CHECK(mf_utf8_valid(err.message, strlen(err.message), NULL));
    mf_buffer_close(&out);
    free(source);
}

TEST(syntax_errors_name_template_and_line)
{
    check_error("a\nb\n{% if x %}", MF_ERR_FORMAT, "t.jinja: line 3: unexpected end of template; expected 'elif'");
    check_error("\n{{ 1 + }}", MF_ERR_FORMAT, "t.jinja: line 2: unexpected 'end of print statement'");
    check_error("{{ 'open }}", MF_ERR_FORMAT, "a string is not closed");
    check_error("{% endfor %}", MF_ERR_FORMAT, "unknown tag 'endfor'");
    check_error("{# open", MF_ERR_FORMAT, "missing end of comment");
    check_error("{{ (1] }}", MF_ERR_FORMAT, "unexpected ']'");
    check_error("{% break %}", MF_ERR_FORMAT, "'break' outside of a loop");
    check_error("{% for i in l %}{% macro m() %}{% continue %}{% endmacro %}{% endfor %}", MF_ERR_FORMAT, "'continue' outside");
    check_error("{{ x|nosuch }}", MF_ERR_FORMAT, "no filter named 'nosuch'");
    check_error("{{ 99999999999999999999 }}", MF_ERR_UNSUPPORTED, "does not fit 64 bits");
}

TEST(constructs_that_are_not_supported_are_named_when_parsed)
{
    check_error("x\n{% include 'a' %}", MF_ERR_UNSUPPORTED, "line 2: tag 'include' is not supported");
    check_error("{% extends 'a' %}", MF_ERR_UNSUPPORTED, "tag 'extends'");
    check_error("{% import 'a' as b %}", MF_ERR_UNSUPPORTED, "tag 'import'");
    check_error("{% from 'a' import b %}", MF_ERR_UNSUPPORTED, "tag 'from'");
    check_error("{% block a %}{% endblock %}", MF_ERR_UNSUPPORTED, "tag 'block'");
    check_error("{{ self }}", MF_ERR_UNSUPPORTED, "'self'");
    check_error("\n\n{{ x|urlize }}", MF_ERR_UNSUPPORTED, "line 3: filter 'urlize' is not supported");
    check_error("{{ lipsum() }}", MF_ERR_UNSUPPORTED, "function 'lipsum'");
    check_error("{{ 'a'.encode() }}", MF_ERR_UNSUPPORTED, "method 'encode'");
    check_error("{% do x %}", MF_ERR_FORMAT, "unknown tag 'do'");
}

TEST(errors_while_rendering_name_the_line)
{
    check_error("\n{{ nope.x }}", MF_ERR_INVALID, "t.jinja: line 2: 'nope' is undefined");
    check_error("{{ {}.a.b }}", MF_ERR_INVALID, "'dict object' has no attribute 'a'");
    check_error("{{ 'a' + 1 }}", MF_ERR_INVALID, "unsupported operand types for +: 'str' and 'int'");
    check_error("{{ [1].append(2) }}", MF_ERR_INVALID, "access to attribute 'append' of 'list' object is unsafe");
    check_error("{{ {}.update({}) }}", MF_ERR_INVALID, "unsafe");
    check_error("{% set ns = namespace() %}{% set ns._x = 1 %}", MF_ERR_INVALID, "underscore");
    check_error("{{ 9223372036854775807 + 1 }}", MF_ERR_INVALID, "does not fit 64 bits");
    check_error("{{ -(-9223372036854775807 - 1) }}", MF_ERR_INVALID, "does not fit 64 bits");
    check_error("{{ (-9223372036854775807 - 1) // -1 }}", MF_ERR_INVALID, "does not fit 64 bits");
    check_error("{{ 10 ** 19 }}", MF_ERR_INVALID, "does not fit 64 bits");
}

TEST(a_source_that_is_not_utf8_or_too_long_is_refused)
{
    mf_chat_template *t;
    CHECK_EQ(mf_chat_template_parse("a\xff", 2, "t", &t, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message, "not valid UTF-8 at byte 1");
    assert_null(t);
    char *big = repeated("", "0123456789abcdef", 65537, "");
    CHECK_EQ(mf_chat_template_parse(big, strlen(big), "t", &t, &err), MF_ERR_LIMIT);
    free(big);
}

TEST(the_source_is_kept)
{
    mf_chat_template *t;
    size_t size = 0;
    CHECK_OK(mf_chat_template_parse("a\r\n{{ 1 }}\n", 11, "t", &t, &err), err);
    const char *source = mf_chat_template_source(t, &size);
    CHECK_EQ(size, 11);
    CHECK_MEM(source, "a\r\n{{ 1 }}\n", 11);
    mf_chat_template_close(&t);
}

TEST(variables_must_be_an_object)
{
    mf_buffer out = { 0 };
    CHECK_EQ(run_with("x", "[1]", NULL, &out), MF_ERR_INVALID);
    CHECK_HAS(err.message, "must be an object; got a list");
}

/* ---- limits ------------------------------------------------------------------------------------------------------- */

TEST(steps_are_bounded)
{
    check_limit("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", &patient,
                "more than 1000000 steps");
    check_limit("{% for i in range(100) %}{{ i }}{% endfor %}", &(mf_template_limits){ .fuel = 100, .time_ns = 60000000000 },
                "more than 100 steps");
    check_limit("{% set x = range(100000)|list %}{% for i in range(100) %}{% set y = x|sort|map('string')|join %}{% endfor %}",
                &patient, "steps");
}

TEST(work_on_texts_is_paid_by_its_length)
{
    /* 300 searches through 16 MiB would take seconds. */
    check_limit("{% set s = 'ab' * 8000000 %}{% for i in range(300) %}{{ s.replace('c', 'd')|length }}{% endfor %}",
                &(mf_template_limits){ .fuel = 1000000, .time_ns = 60000000000, .output_bytes = (size_t)1 << 40 }, "steps");
}

TEST(output_is_bounded)
{
    mf_template_limits limits = { .output_bytes = 1000, .time_ns = 60000000000 };
    check_limit("{% for i in range(101) %}0123456789{% endfor %}", &limits, "more than 1000 bytes");
    mf_buffer out = { 0 };
    CHECK_OK(run_with("{% for i in range(100) %}0123456789{% endfor %}", "{}", &limits, &out), err);
    CHECK_EQ(out.size, 1000);
    mf_buffer_close(&out);
    out.limit = 10;
    CHECK_EQ(run_with("0123456789a", "{}", NULL, &out), MF_ERR_LIMIT);
    mf_buffer_close(&out);
}

TEST(range_is_bounded)
{
    check_limit("{{ range(1000000000) }}", &patient, "range: more than 100000 numbers");
    check_limit("{{ range(-9223372036854775807, 9223372036854775807) }}", &patient, "range");
    check_limit("{{ range(11)|length }}", &(mf_template_limits){ .range = 10 }, "more than 10 numbers");
    check_text("{{ range(100000)|length }}", "{}", "100000");
}

static int64_t slow_ns;

static int64_t slow_clock(void)
{
    return slow_ns += 1000000; /* each look costs a millisecond */
}

TEST(time_is_bounded)
{
    int64_t (*now_ns)(void) = mf_sys_table.now_ns;
    mf_sys_table.now_ns = slow_clock;
    mf_buffer out = { 0 };
    mf_status status = run_with("{% for i in range(100000) %}{{ i }}{% endfor %}", "{}", NULL, &out);
    mf_sys_table.now_ns = now_ns;
    CHECK_EQ(status, MF_ERR_LIMIT);
    CHECK_HAS(err.message, "longer than 50 ms");
    mf_buffer_close(&out);
}

TEST(memory_is_bounded)
{
    check_limit("{{ ('x' * 200000000)|length }}", &patient, "memory");
    check_limit("{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
                &patient, "memory");
    check_limit("{{ ([0] * 100000000)|length }}", &patient, "more than");
    check_limit("{{ '%1000000000s' % 1 }}", &patient, "more than");
    check_limit("{{ 'x'.ljust(1000000000) }}", &patient, "more than");
    check_limit("{{ [1]|batch(1000000000, 0)|list }}", &patient, "more than");
}

TEST(building_a_text_piece_by_piece_is_linear)
{
    /* 50,000 pieces of 20 bytes: copying the text each time would need 25 GB. */
    check_text("{% set ns = namespace(s='') %}{% for i in range(50000) %}{% set ns.s = ns.s ~ '01234567890123456789' %}"
               "{% endfor %}{{ ns.s|length }}",
               "{}", "1000000");
}

TEST(appending_to_a_text_leaves_its_other_uses_alone)
{
    check_text("{% set a = 'start-' ~ 'x' %}{% set b = a ~ 'one' %}{% set c = a ~ 'two' %}{% set d = b ~ '!' %}"
               "{{ a }} {{ b }} {{ c }} {{ d }}",
               "{}", "start-x start-xone start-xtwo start-xone!");
}

TEST(endless_recursion_is_an_error)
{
    check_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", &patient, "macros call each other deeper than 64");
    check_limit("{% macro a() %}{{ b() }}{{ caller }}{% endmacro %}{% macro b() %}{% call a() %}{% endcall %}{% endmacro %}{{ a() }}",
                &patient, "deeper than 64");
    check_limit("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", &patient, "deeper than 64");
    check_text("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% else %}end{% endif %}{% endmacro %}{{ m(60) }}", "{}", "end");
}

TEST(deep_nesting_in_the_source_is_an_error)
{
    static const struct {
        const char *head, *piece, *tail;
    } cases[] = {
        { "{{ ", "(", " }}" },       { "{{ ", "[", " }}" },   { "{{ ", "{1:", " }}" }, { "{{ ", "not ", "1 }}" },
        { "{{ ", "-", "1 }}" },      { "{{ 1", "+1", " }}" }, { "{{ x", ".a", " }}" }, { "{{ x", "|list", " }}" },
        { "{{ x", "[0]", " }}" },    { "{{ 1", " if 1 else 1", " }}" },                { "{{ 1", " and 1", " }}" },
        { "{{ x", "(1)", " }}" },    { "", "{% if 1 %}", "" },                         { "", "{% for i in x %}", "" },
        { "", "{% macro m() %}", "" }, { "{% set ", "(", "a %}" },
        { "{{ f", "(f", " }}" },     { "{{ 2", "**2", " }}" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *source = repeated(cases[i].head, cases[i].piece, 30000, cases[i].tail);
        mf_buffer out = { 0 };
        CHECK_EQ(run_with(source, "{}", &patient, &out), MF_ERR_LIMIT);
        CHECK_HAS(err.message, "deeper than");
        mf_buffer_close(&out);
        free(source);
    }
    /* Long is not deep. */
    char *source = repeated("{{ 1 }}", "{% if 0 %}{% elif 1 %}x{% endif %}", 2000, "");
    mf_buffer out = { 0 };
    CHECK_OK(run_with(source, "{}", &patient, &out), err);
    CHECK_EQ(out.size, 2001);
    mf_buffer_close(&out);
    free(source);
    source = repeated("{{ 'a'", " ~ 'a'", 2000, " }}");
    CHECK_OK(run_with(source, "{}", &patient, &out), err);
    CHECK_EQ(out.size, 2001);
    mf_buffer_close(&out);
    free(source);
}

TEST(deep_values_are_an_error_wherever_they_are_walked)
{
    static const char *const uses[] = { "{{ ns.x }}", "{{ ns.x|tojson }}", "{{ ns.x == ns.y }}", "{{ ns.x < ns.y }}",
                                        "{{ ns.x in [ns.y] }}", "{{ {ns.t: 1} }}" };
    for (size_t i = 0; i < sizeof uses / sizeof *uses; i++) {
        char source[400];
        snprintf(source, sizeof source,
                 "{%% set ns = namespace(x=1, y=1, t=1) %%}{%% for i in range(5000) %%}{%% set ns.x = [ns.x] %%}"
                 "{%% set ns.y = [ns.y] %%}{%% set ns.t = (ns.t,) %%}{%% endfor %%}%s",
                 uses[i]);
        check_limit(source, &patient, "nested deeper than 128");
    }
    check_limit("{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns }}", &patient, "nested deeper than 128");
}

TEST(generators_reading_from_generators_are_bounded)
{
    check_limit("{% set ns = namespace(g=[1]) %}{% for i in range(1000) %}{% set ns.g = ns.g|map('string') %}{% endfor %}"
                "{{ ns.g|list }}",
                &patient, "generators read from each other deeper than 64");
}

/* ---- failing allocations ------------------------------------------------------------------------------------------ */

static long allocations_left;

static void *failing_alloc(size_t bytes)
{
    return allocations_left-- > 0 ? malloc(bytes) : NULL;
}

static void *failing_resize(void *block, size_t bytes)
{
    return allocations_left-- > 0 ? realloc(block, bytes) : NULL;
}

TEST(every_failing_allocation_is_out_of_memory)
{
    mf_sys saved = mf_sys_table;
    const char *source = "{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{% for i in range(3000) %}{{ m(i|string ~ 'x') }}"
                         "{% endfor %}{% set x %}{{ {'a': [1, 2]}|tojson(indent=2) }}{% endset %}{{ x.split() }}";
    json_t *v = json_object();
    long k = 0;
    mf_status status = MF_ERR_NOMEM;
    for (; status != MF_OK && k < 10000; k++) {
        mf_chat_template *t = NULL;
        mf_buffer out = { 0 };
        allocations_left = k;
        mf_sys_table.alloc = failing_alloc;
        mf_sys_table.resize = failing_resize;
        status = mf_chat_template_parse(source, strlen(source), "t", &t, &err);
        if (status == MF_OK) {
            status = mf_chat_template_render(t, v, &patient, &out, &err);
        }
        mf_sys_table = saved;
        mf_chat_template_close(&t);
        mf_buffer_close(&out);
        if (status != MF_OK) {
            CHECK_EQ(status, MF_ERR_NOMEM);
        }
    }
    CHECK_EQ(status, MF_OK);
    CHECK(k > 10);
    json_decref(v);
}

/* ---- loading ------------------------------------------------------------------------------------------------------ */

static char folder[64];

static void make_folder(void)
{
    strcpy(folder, "/tmp/chat_template_XXXXXX");
    assert_non_null(mkdtemp(folder));
}

static void put(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void drop_folder(void)
{
    char path[128];
    snprintf(path, sizeof path, "%s/chat_template.jinja", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
    unlink(path);
    rmdir(folder);
}

static void check_loaded(const char *expected)
{
    mf_chat_template *t = NULL;
    json_t *tokens = NULL;
    mf_buffer out = { 0 };
    CHECK_OK(mf_chat_template_load(folder, &t, &tokens, &err), err);
    assert_non_null(t);
    CHECK_OK(mf_chat_template_render(t, tokens, &patient, &out, &err), err);
    CHECK_STR(mf_buffer_text(&out), expected);
    mf_buffer_close(&out);
    mf_chat_template_close(&t);
    json_decref(tokens);
}

TEST(a_model_without_a_template_has_none)
{
    mf_chat_template *t = (mf_chat_template *)&err;
    json_t *tokens = NULL;
    make_folder();
    CHECK_OK(mf_chat_template_load(folder, &t, &tokens, &err), err);
    assert_null(t);
    CHECK_EQ(json_object_size(tokens), 0);
    json_decref(tokens);
    put("tokenizer_config.json", "{\"bos_token\": null, \"chat_template\": null, \"model_max_length\": 1e30}");
    CHECK_OK(mf_chat_template_load(folder, &t, NULL, &err), err);
    assert_null(t);
    drop_folder();
}

TEST(special_tokens_are_texts_also_when_they_are_objects)
{
    make_folder();
    put("tokenizer_config.json", "{\"bos_token\": {\"__type\": \"AddedToken\", \"content\": \"<s>\"}, \"eos_token\": \"</s>\","
                                 " \"unk_token\": null, \"add_bos_token\": true,"
                                 " \"chat_template\": \"{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ add_bos_token is defined }}\"}");
    check_loaded("<s></s>FalseFalse");
    drop_folder();
}

TEST(of_several_templates_the_default_is_taken)
{
    mf_chat_template *t;
    make_folder();
    put("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"tools\"},"
                                 " {\"name\": \"default\", \"template\": \"plain\"}]}");
    check_loaded("plain");
    put("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"tools\"}]}");
    CHECK_EQ(mf_chat_template_load(folder, &t, NULL, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message, "no template named \"default\"");
    put("tokenizer_config.json", "{\"chat_template\": 5}");
    CHECK_EQ(mf_chat_template_load(folder, &t, NULL, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message, "expected a string or a list; got an integer");
    drop_folder();
}

TEST(a_template_file_goes_before_the_one_in_the_config)
{
    mf_chat_template *t;
    make_folder();
    put("tokenizer_config.json", "{\"eos_token\": \"E\", \"chat_template\": \"{% broken\"}");
    put("chat_template.jinja", "file {{ eos_token }}\n");
    check_loaded("file E");
    put("chat_template.jinja", "\n{% if %}");
    CHECK_EQ(mf_chat_template_load(folder, &t, NULL, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message, "chat_template.jinja: line 2: ");
    assert_null(t);
    drop_folder();
}
