/* guide.c - the ways to make a program, and the masks of any JSON string that all programs of a vocabulary share. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "text/guide_impl.h"

typedef void (*front)(mf_guide_build *build, const char *source, size_t size);

static mf_status compile(const mf_guide_vocab *vocab, const char *source, size_t size, const mf_guide_limits *limits,
                         const char *what, front parse, mf_guide_program **out, mf_error *err)
{
    *out = NULL;
    mf_guide_build build;
    mf_error own = { 0 };
    err = err ? err : &own;
    mf_status status = mf_guide_build_open(&build, limits, err);
    size_t bad_at;
    if (status == MF_OK && size > build.limits.source_bytes) {
        status = mf_fail(err, MF_ERR_LIMIT, "expected at most %zu bytes; got %zu", build.limits.source_bytes, size);
    } else if (status == MF_OK && !mf_utf8_valid(source, size, &bad_at)) {
        status = mf_fail(err, MF_ERR_INVALID, "byte %zu is not UTF-8", bad_at);
    }
    if (status == MF_OK) {
        parse(&build, source, size);
        status = mf_guide_program_make(&build, vocab, out);
    }
    mf_guide_build_close(&build);
    return status == MF_OK ? MF_OK : mf_fail_context(err, status, "%s", what);
}

mf_status mf_guide_compile_json_schema(const mf_guide_vocab *vocab, const char *schema, size_t size,
                                       const mf_guide_limits *limits, mf_guide_program **out, mf_error *err)
{
    return compile(vocab, schema, size, limits, "json schema", mf_guide_parse_schema, out, err);
}

static void parse_object(mf_guide_build *b, const char *source, size_t size)
{
    (void)source;
    (void)size;
    mf_guide_expr *object = mf_guide_json_object(b, mf_guide_json_value(b));
    b->rules[0].body = object;
}

mf_status mf_guide_compile_json_object(const mf_guide_vocab *vocab, mf_guide_program **out, mf_error *err)
{
    return compile(vocab, "", 0, NULL, "json object", parse_object, out, err);
}

static void parse_regex(mf_guide_build *b, const char *source, size_t size)
{
    mf_guide_expr *body = mf_guide_parse_regex(b, source, size, false);
    b->rules[0].body = body;
}

mf_status mf_guide_compile_regex(const mf_guide_vocab *vocab, const char *pattern, size_t size, const mf_guide_limits *limits,
                                 mf_guide_program **out, mf_error *err)
{
    return compile(vocab, pattern, size, limits, "regex", parse_regex, out, err);
}

mf_status mf_guide_compile_grammar(const mf_guide_vocab *vocab, const char *ebnf, size_t size, const mf_guide_limits *limits,
                                   mf_guide_program **out, mf_error *err)
{
    return compile(vocab, ebnf, size, limits, "grammar", mf_guide_parse_grammar, out, err);
}

mf_status mf_guide_compile_choice(const mf_guide_vocab *vocab, const char *const *choices, size_t num_choices,
                                  const mf_guide_limits *limits, mf_guide_program **out, mf_error *err)
{
    *out = NULL;
    mf_guide_build build;
    mf_error own = { 0 };
    err = err ? err : &own;
    mf_status status = mf_guide_build_open(&build, limits, err);
    mf_guide_list list = { 0 };
    size_t total = 0;
    for (size_t i = 0; i < num_choices && status == MF_OK && build.status == MF_OK; i++) {
        size_t size = strlen(choices[i]);
        size_t bad_at;
        total += size + 1;
        if (total > build.limits.source_bytes) {
            status = mf_fail(err, MF_ERR_LIMIT, "expected at most %zu bytes in all", build.limits.source_bytes);
        } else if (!mf_utf8_valid(choices[i], size, &bad_at)) {
            status = mf_fail(err, MF_ERR_INVALID, "[%zu]: byte %zu is not UTF-8", i, bad_at);
        } else {
            mf_guide_list_add(&build, &list, mf_guide_bytes(&build, choices[i], size));
        }
    }
    if (status == MF_OK) {
        build.rules[0].body = mf_guide_alt(&build, list.items, list.num);
        status = mf_guide_program_make(&build, vocab, out);
    }
    mf_guide_build_close(&build);
    return status == MF_OK ? MF_OK : mf_fail_context(err, status, "choice");
}

/* ---- shared masks ------------------------------------------------------------------------------------------------- */

static mf_status share_mask(mf_guide_vocab *v, mf_guide_program *p, int32_t state, mf_guide_shared_mask *shared, mf_error *err)
{
    mf_guide_work *w = &p->work;
    const mf_guide_dfa_state *s = &p->dfa.states[state];
    mf_guide_walk_mask(p, state);
    int32_t *nodes = mf_arena_array(&v->arena, (size_t)s->num_nodes, sizeof *nodes);
    uint32_t *words = mf_arena_array(&v->arena, v->num_words + 1, sizeof *words);
    uint32_t *exits = mf_arena_array(&v->arena, (size_t)(w->num_exits > 0 ? w->num_exits : 0) + 1, sizeof *exits);
    if (w->has_failed || w->num_exits < 0) {
        return mf_fail(err, MF_ERR_LIMIT, "guide: the vocabulary is too large");
    }
    if (!nodes || !words || !exits) {
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for masks");
    }
    for (int32_t i = 0; i < s->num_nodes; i++) {
        nodes[i] = p->dfa.nodes[s->nodes_at + i] - p->nfa.rules[s->rule].start;
    }
    memcpy(words, w->words, v->num_words * sizeof *words);
    memcpy(exits, w->exits, (size_t)w->num_exits * sizeof *exits);
    *shared = (mf_guide_shared_mask){
        .nodes = nodes, .num_nodes = s->num_nodes,
        .mask = { .num_ids = -1, .num_exits = w->num_exits, .reach = w->reach, .words = words, .exits = exits },
    };
    return MF_OK;
}

/* Every state of the rule for any string, found from its start byte class by byte class. */
static mf_status share_states(mf_guide_vocab *v, mf_guide_program *p, int32_t rule, mf_error *err)
{
    mf_guide_dfa *d = &p->dfa;
    int32_t first = mf_guide_dfa_start(d, rule);
    for (int32_t s = first; s >= 0 && s < d->num_states; s++) {
        for (int32_t c = 0; c < d->num_classes; c++) {
            mf_guide_dfa_next(d, s, c);
        }
    }
    int32_t count = d->num_states - first;
    mf_guide_shared_mask *shared = mf_arena_array(&v->arena, (size_t)count, sizeof *shared);
    if (!shared || first < 0) {
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for masks");
    }
    for (int32_t i = 0; i < count; i++) {
        d->work = 0;
        p->work.num_steps = 0;
        MF_TRY(share_mask(v, p, first + i, &shared[i], err));
    }
    v->shared = shared;
    v->num_shared = count;
    return MF_OK;
}

/* How many characters a token begins inside a string, up to a closing quote; *state is the one behind it. */
static uint16_t chars_of(const mf_guide_vocab *v, int32_t id, uint32_t num_bytes, int32_t *state)
{
    uint32_t n = 0;
    *state = v->string_inside;
    for (uint32_t i = 0; i < num_bytes && *state >= 0; i++) {
        uint8_t byte = v->bytes[v->bytes_at[id] + i];
        n += *state == v->string_inside && byte != '"';
        *state = v->string_next[*state * 256 + byte];
    }
    return (uint16_t)(n < UINT16_MAX ? n : UINT16_MAX);
}

typedef struct counted_id {
    uint16_t chars;
    int32_t id;
} counted_id;

static int compare_counts(const void *a, const void *b)
{
    const counted_id *x = a, *y = b;
    return x->chars != y->chars ? (x->chars > y->chars) - (x->chars < y->chars) : (x->id > y->id) - (x->id < y->id);
}

/* The tokens that may come inside a string, by the characters they begin. */
static mf_status count_inside(mf_guide_vocab *v, mf_error *err)
{
    const mf_guide_mask *mask = &v->shared[v->string_inside].mask;
    int32_t end = v->string_next[v->string_inside * 256 + '"'];
    counted_id *sorted = mf_alloc_array((size_t)v->num_ids + 1, sizeof *sorted);
    v->inside_ids = mf_arena_array(&v->arena, (size_t)v->num_ids + 1, sizeof *v->inside_ids);
    v->inside_chars = mf_arena_array(&v->arena, (size_t)v->num_ids + 1, sizeof *v->inside_chars);
    v->closers = mf_arena_array(&v->arena, (size_t)v->num_ids + 1, sizeof *v->closers);
    v->closer_chars = mf_arena_array(&v->arena, (size_t)v->num_ids + 1, sizeof *v->closer_chars);
    v->exit_chars = mf_arena_array(&v->arena, (size_t)mask->num_exits + 1, sizeof *v->exit_chars);
    if (!sorted || !v->inside_ids || !v->inside_chars || !v->closers || !v->closer_chars || !v->exit_chars) {
        mf_free(sorted);
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for masks");
    }
    int32_t state;
    for (int32_t id = 0; id < v->num_ids; id++) {
        if (mask->words[id >> 5] >> (id & 31) & 1) {
            uint16_t chars = chars_of(v, id, v->bytes_at[id + 1] - v->bytes_at[id], &state);
            sorted[v->num_inside++] = (counted_id){ chars, id };
            if (state == end) {
                v->closers[v->num_closers] = id;
                v->closer_chars[v->num_closers++] = chars;
            }
        }
    }
    qsort(sorted, (size_t)v->num_inside, sizeof *sorted, compare_counts);
    for (int32_t i = 0; i < v->num_inside; i++) {
        v->inside_ids[i] = sorted[i].id;
        v->inside_chars[i] = sorted[i].chars;
    }
    mf_free(sorted);
    for (int32_t i = 0; i < mask->num_exits; i++) {
        uint32_t node = mask->exits[i], below = node;
        while (v->nodes[below].token_id < 0) { /* a token lies below every node, and begins with the node's bytes */
            below++;
        }
        v->exit_chars[i] = chars_of(v, v->nodes[below].token_id, v->nodes[node].depth, &state);
    }
    return MF_OK;
}

static mf_status count_strings(mf_guide_vocab *v, mf_guide_program *p, mf_error *err)
{
    mf_guide_dfa *d = &p->dfa;
    int16_t *next = mf_arena_array(&v->arena, (size_t)v->num_shared * 256, sizeof *next);
    if (!next) {
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for masks");
    }
    for (int32_t s = 0; s < v->num_shared; s++) {
        for (int32_t byte = 0; byte < 256; byte++) {
            next[s * 256 + byte] = (int16_t)mf_guide_dfa_next(d, s, d->classes[byte]);
        }
    }
    v->string_next = next;
    v->string_inside = next['"'];
    return count_inside(v, err);
}

mf_status mf_guide_vocab_share_strings(mf_guide_vocab *v, mf_error *err)
{
    mf_guide_build build;
    mf_error own = { 0 };
    mf_guide_program *p = NULL;
    const mf_guide_limits limits = { .compile_ns = 1000000000 };
    err = err ? err : &own;
    mf_status status = mf_guide_build_open(&build, &limits, err);
    if (status == MF_OK) {
        mf_guide_expr *string = mf_guide_json_string(&build);
        build.rules[0].body = string;
        status = mf_guide_program_make(&build, v, &p);
    }
    if (status == MF_OK) {
        status = share_states(v, p, build.string_rule, err);
        status = status == MF_OK ? count_strings(v, p, err) : status;
    }
    mf_guide_build_close(&build);
    mf_guide_program_close(&p);
    return status;
}
