/* fake_guide.c - see fake_guide.h. */
#include "fake_guide.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

struct mf_guide_vocab {
    int unused;
};
struct mf_guide_program {
    int unused;
};

fake_guide fake_guide_last;
static struct mf_guide_program program;

const mf_guide_vocab *fake_guide_vocab(void)
{
    static struct mf_guide_vocab vocab;
    return &vocab;
}

static mf_status compile(const char *kind, const char *source, size_t size, mf_guide_program **out, mf_error *err)
{
    snprintf(fake_guide_last.kind, sizeof fake_guide_last.kind, "%s", kind);
    snprintf(fake_guide_last.source, sizeof fake_guide_last.source, "%.*s", (int)size, source);
    if (fake_guide_last.fail != MF_OK) {
        return mf_fail(err, fake_guide_last.fail, "keyword \"x\" is not supported");
    }
    fake_guide_last.num_open++;
    *out = &program;
    return MF_OK;
}

mf_status mf_guide_compile_json_schema(const mf_guide_vocab *vocab, const char *schema, size_t size,
                                       const mf_guide_limits *limits, mf_guide_program **out, mf_error *err)
{
    (void)vocab;
    (void)limits;
    return compile("schema", schema, size, out, err);
}

mf_status mf_guide_compile_json_object(const mf_guide_vocab *vocab, mf_guide_program **out, mf_error *err)
{
    (void)vocab;
    return compile("object", "", 0, out, err);
}

mf_status mf_guide_compile_regex(const mf_guide_vocab *vocab, const char *pattern, size_t size,
                                 const mf_guide_limits *limits, mf_guide_program **out, mf_error *err)
{
    (void)vocab;
    (void)limits;
    return compile("regex", pattern, size, out, err);
}

mf_status mf_guide_compile_choice(const mf_guide_vocab *vocab, const char *const *choices, size_t num_choices,
                                  const mf_guide_limits *limits, mf_guide_program **out, mf_error *err)
{
    (void)vocab;
    (void)limits;
    char text[1024] = "";
    for (size_t i = 0; i < num_choices; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s|", choices[i]);
    }
    return compile("choice", text, strlen(text), out, err);
}

mf_status mf_guide_compile_grammar(const mf_guide_vocab *vocab, const char *ebnf, size_t size,
                                   const mf_guide_limits *limits, mf_guide_program **out, mf_error *err)
{
    (void)vocab;
    (void)limits;
    return compile("grammar", ebnf, size, out, err);
}

void mf_guide_program_close(mf_guide_program **p)
{
    if (*p) {
        fake_guide_last.num_open--;
        *p = NULL;
    }
}
