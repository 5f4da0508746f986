/* guide_until_merge.c - stands in for src/text/guide_*.c until that branch is merged. */
#include "base/error.h"
#include "text/guide.h"

mf_status mf_guide_vocab_open(const mf_tokenizer *tok, const int32_t *eos, int32_t n, mf_guide_vocab **out, mf_error *err)
{
    (void)tok, (void)eos, (void)n, (void)err;
    *out = NULL;
    return MF_OK;
}
void mf_guide_vocab_close(mf_guide_vocab **vocab) { *vocab = NULL; }
mf_status mf_guide_compile_json_schema(const mf_guide_vocab *v, const char *s, size_t n, const mf_guide_limits *l, mf_guide_program **out, mf_error *err)
{
    (void)v, (void)s, (void)n, (void)l;
    *out = NULL;
    return mf_fail(err, MF_ERR_UNSUPPORTED, "no guides in this build");
}
mf_status mf_guide_compile_json_object(const mf_guide_vocab *v, mf_guide_program **out, mf_error *err) { return mf_guide_compile_json_schema(v, "", 0, NULL, out, err); }
mf_status mf_guide_compile_regex(const mf_guide_vocab *v, const char *s, size_t n, const mf_guide_limits *l, mf_guide_program **out, mf_error *err) { return mf_guide_compile_json_schema(v, s, n, l, out, err); }
mf_status mf_guide_compile_choice(const mf_guide_vocab *v, const char *const *c, size_t n, const mf_guide_limits *l, mf_guide_program **out, mf_error *err) { (void)c; return mf_guide_compile_json_schema(v, "", n, l, out, err); }
mf_status mf_guide_compile_grammar(const mf_guide_vocab *v, const char *s, size_t n, const mf_guide_limits *l, mf_guide_program **out, mf_error *err) { return mf_guide_compile_json_schema(v, s, n, l, out, err); }
mf_guide_program *mf_guide_program_ref(mf_guide_program *p) { return p; }
void mf_guide_program_close(mf_guide_program **p) { *p = NULL; }
mf_status mf_guide_state_open(mf_guide_program *p, mf_guide_state **out, mf_error *err) { (void)p; *out = NULL; return mf_fail(err, MF_ERR_UNSUPPORTED, "no guides"); }
void mf_guide_state_close(mf_guide_state **s) { *s = NULL; }
void mf_guide_state_fill(mf_guide_state *s, uint32_t *mask, int32_t n) { (void)s, (void)mask, (void)n; }
void mf_guide_state_accept(mf_guide_state *s, int32_t id) { (void)s, (void)id; }
bool mf_guide_state_may_end(const mf_guide_state *s) { (void)s; return true; }
