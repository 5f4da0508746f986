/* guide_json.c - the parts of JSON that know no schema: strings, numbers, any value, and where space may stand.
 *
 * Space: none, one blank, or a line end and up to 32 blanks or tabs - behind '{', '[' and ',' and before '}' and ']'; one blank or
 * none behind ':'.  That covers compact text, Python's and JavaScript's, and indented text, and no model gets lost in it. */
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "text/guide_impl.h"
#include "text/utf8.h"

enum { MAX_INDENT = 32 };

mf_guide_expr *mf_guide_json_space(mf_guide_build *b)
{
    mf_guide_expr *indent = mf_guide_set(b, (const mf_char_range[]){ { '\t', '\t' }, { ' ', ' ' } }, 2, false);
    mf_guide_expr *line = mf_guide_seq2(b, mf_guide_text(b, "\n"), mf_guide_repeat(b, indent, 0, MAX_INDENT));
    return mf_guide_alt(b, (mf_guide_expr *const[]){ mf_guide_empty(b), mf_guide_text(b, " "), line }, 3);
}

static mf_guide_expr *separator(mf_guide_build *b)
{
    return mf_guide_seq2(b, mf_guide_text(b, ","), mf_guide_json_space(b));
}

static mf_guide_expr *regex(mf_guide_build *b, const char *pattern)
{
    return mf_guide_parse_regex(b, pattern, strlen(pattern), false);
}

/* Any character in any way to write it; surrogates come in pairs. */
mf_guide_expr *mf_guide_json_char(mf_guide_build *b)
{
    static const mf_char_range plain[] = { { 0x20, 0x21 }, { 0x23, 0x5b }, { 0x5d, MF_UNICODE_LAST } };
    mf_guide_expr *escape = regex(b, "\\\\(?:[\"\\\\/bfnrt]|u(?:[0-9A-CEFa-cef][0-9A-Fa-f]{3}|[Dd][0-7][0-9A-Fa-f]{2}"
                                     "|[Dd][89ABab][0-9A-Fa-f]{2}\\\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}))");
    return mf_guide_alt(b, (mf_guide_expr *const[]){ mf_guide_set(b, plain, 3, false), escape }, 2);
}

mf_guide_expr *mf_guide_json_quoted(mf_guide_build *b, mf_guide_expr *inside)
{
    return mf_guide_seq3(b, mf_guide_text(b, "\""), inside, mf_guide_text(b, "\""));
}

/* A rule that all its users call, so that its states and masks are made once. */
static int32_t kept_rule(mf_guide_build *b, const char *name)
{
    int32_t rule = mf_guide_add_rule(b, name, strlen(name));
    if (rule >= 0) {
        b->rules[rule].is_kept = true;
    }
    return rule;
}

static void define(mf_guide_build *b, int32_t rule, mf_guide_expr *body)
{
    if (rule >= 0) {
        b->rules[rule].body = body;
    }
}

mf_guide_expr *mf_guide_json_string_sized(mf_guide_build *b, int32_t min, int32_t max)
{
    for (int32_t i = 0; i < b->num_rules; i++) {
        if (b->rules[i].is_counted && b->rules[i].min_chars == min && b->rules[i].max_chars == max) {
            return mf_guide_ref(b, i);
        }
    }
    int32_t rule = b->status == MF_OK ? kept_rule(b, "a string of some length") : -1;
    if (rule >= 0) {
        b->rules[rule].is_counted = true;
        b->rules[rule].min_chars = min;
        b->rules[rule].max_chars = max;
        define(b, rule, mf_guide_json_quoted(b, mf_guide_repeat(b, mf_guide_json_char(b), min, max)));
    }
    return mf_guide_ref(b, rule);
}

mf_guide_expr *mf_guide_json_string(mf_guide_build *b)
{
    if (b->string_rule < 0 && b->status == MF_OK) {
        b->string_rule = kept_rule(b, "a string");
        if (b->string_rule >= 0) {
            b->rules[b->string_rule].is_string = true;
        }
        define(b, b->string_rule, mf_guide_json_quoted(b, mf_guide_repeat(b, mf_guide_json_char(b), 0, -1)));
    }
    return mf_guide_ref(b, b->string_rule);
}

/* Up to 18 digits, so that every reader's integers hold them, and two of an exponent, so that every reader's doubles do. */
mf_guide_expr *mf_guide_json_integer(mf_guide_build *b)
{
    if (b->integer_rule < 0 && b->status == MF_OK) {
        b->integer_rule = kept_rule(b, "an integer");
        define(b, b->integer_rule, regex(b, "-?(?:0|[1-9][0-9]{0,17})"));
    }
    return mf_guide_ref(b, b->integer_rule);
}

mf_guide_expr *mf_guide_json_number(mf_guide_build *b)
{
    if (b->number_rule < 0 && b->status == MF_OK) {
        b->number_rule = kept_rule(b, "a number");
        define(b, b->number_rule, regex(b, "-?(?:0|[1-9][0-9]{0,17})(?:\\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?"));
    }
    return mf_guide_ref(b, b->number_rule);
}

static mf_guide_expr *member(mf_guide_build *b, mf_guide_expr *key, mf_guide_expr *value)
{
    mf_guide_expr *colon = mf_guide_seq2(b, mf_guide_text(b, ":"), mf_guide_optional(b, mf_guide_text(b, " ")));
    return mf_guide_seq3(b, key, colon, value);
}

mf_guide_expr *mf_guide_json_object(mf_guide_build *b, mf_guide_expr *value)
{
    mf_guide_list none = { 0 };
    mf_guide_expr *members =
        mf_guide_members(b, separator(b), &none, (const bool[]){ false }, member(b, mf_guide_json_string(b), value));
    return mf_guide_seq(b,
                        (mf_guide_expr *const[]){ mf_guide_text(b, "{"), mf_guide_json_space(b), members,
                                                  mf_guide_json_space(b), mf_guide_text(b, "}") },
                        5);
}

mf_guide_expr *mf_guide_json_array(mf_guide_build *b, mf_guide_expr *item, int32_t min, int32_t max)
{
    mf_guide_expr *items = mf_guide_empty(b);
    if (max != 0) {
        mf_guide_expr *more = mf_guide_seq2(b, separator(b), item);
        items = mf_guide_seq2(b, item, mf_guide_repeat(b, more, min > 1 ? min - 1 : 0, max < 0 ? -1 : max - 1));
        items = min == 0 ? mf_guide_optional(b, items) : items;
    }
    return mf_guide_seq(b,
                        (mf_guide_expr *const[]){ mf_guide_text(b, "["), mf_guide_json_space(b), items, mf_guide_json_space(b),
                                                  mf_guide_text(b, "]") },
                        5);
}

mf_guide_expr *mf_guide_json_value(mf_guide_build *b)
{
    if (b->value_rule < 0 && b->status == MF_OK) {
        int32_t rule = kept_rule(b, "a value");
        b->value_rule = rule;
        mf_guide_expr *self = mf_guide_ref(b, rule);
        mf_guide_expr *const kinds[] = {
            mf_guide_json_object(b, self), mf_guide_json_array(b, self, 0, -1), mf_guide_json_string(b),
            mf_guide_json_number(b), mf_guide_text(b, "true"), mf_guide_text(b, "false"), mf_guide_text(b, "null"),
        };
        define(b, rule, mf_guide_alt(b, kinds, 7));
    }
    return mf_guide_ref(b, b->value_rule);
}

/* ---- keys that are not among some names --------------------------------------------------------------------------- */

/* A trie of the names' characters.  A key follows it and leaves it somewhere, or ends where no name does; it has no escapes, so
 * that it cannot spell a name in another way. */
typedef struct key_node {
    uint32_t c;
    int32_t first, next; /* children */
    bool is_end;
} key_node;

static int32_t child_of(key_node *nodes, int32_t *count, int32_t parent, uint32_t c)
{
    for (int32_t i = nodes[parent].first; i >= 0; i = nodes[i].next) {
        if (nodes[i].c == c) {
            return i;
        }
    }
    nodes[*count] = (key_node){ .c = c, .first = -1, .next = nodes[parent].first };
    nodes[parent].first = *count;
    return (*count)++;
}

static bool is_plain(uint32_t c)
{
    return c >= 0x20 && c != '"' && c != '\\';
}

/* What may follow at a node of the trie. */
static mf_guide_expr *behind_node(mf_guide_build *b, const key_node *nodes, int32_t at, mf_guide_expr *const *behind,
                                  mf_guide_expr *rest, mf_guide_expr *quote)
{
    mf_charset others = { 0 };
    mf_guide_list list = { 0 };
    mf_status status = mf_charset_add(&others, 0, 0x1f);
    status = status == MF_OK ? mf_charset_add(&others, '"', '"') : status;
    status = status == MF_OK ? mf_charset_add(&others, '\\', '\\') : status;
    for (int32_t i = nodes[at].first; i >= 0 && status == MF_OK; i = nodes[i].next) {
        status = mf_charset_add(&others, nodes[i].c, nodes[i].c);
        if (is_plain(nodes[i].c)) {
            mf_guide_expr *c = mf_guide_set(b, &(mf_char_range){ nodes[i].c, nodes[i].c }, 1, false);
            mf_guide_list_add(b, &list, mf_guide_seq2(b, c, behind[i]));
        }
    }
    mf_charset_settle(&others);
    status = status == MF_OK ? mf_charset_invert(&others) : status;
    if (status != MF_OK) {
        mf_guide_build_fail(b, status, "out of memory");
    } else {
        mf_guide_expr *other = mf_guide_set(b, others.ranges, others.count, false);
        mf_guide_list_add(b, &list, mf_guide_seq2(b, other, rest));
        if (!nodes[at].is_end) {
            mf_guide_list_add(b, &list, quote);
        }
    }
    mf_charset_close(&others);
    return b->status == MF_OK ? mf_guide_alt(b, list.items, list.num) : NULL;
}

mf_guide_expr *mf_guide_json_key_except(mf_guide_build *b, const char *const *names, int32_t num_names)
{
    static const mf_char_range plain[] = { { 0x20, 0x21 }, { 0x23, 0x5b }, { 0x5d, MF_UNICODE_LAST } };
    size_t total = 1;
    for (int32_t i = 0; i < num_names; i++) {
        total += strlen(names[i]);
    }
    key_node *nodes = mf_guide_build_alloc(b, total, sizeof *nodes);
    mf_guide_expr **behind = mf_guide_build_alloc(b, total, sizeof *behind);
    if (!nodes || !behind) {
        return NULL;
    }
    int32_t count = 1;
    nodes[0].first = -1;
    for (int32_t i = 0; i < num_names; i++) {
        int32_t node = 0;
        for (size_t at = 0, size = strlen(names[i]); at < size;) {
            node = child_of(nodes, &count, node, mf_utf8_next(names[i], &at));
        }
        nodes[node].is_end = true;
    }
    mf_guide_expr *quote = mf_guide_text(b, "\"");
    mf_guide_expr *rest = mf_guide_seq2(b, mf_guide_repeat(b, mf_guide_set(b, plain, 3, false), 0, -1), quote);
    int32_t rest_rule = kept_rule(b, "the rest of a key");
    define(b, rest_rule, rest);
    rest = mf_guide_ref(b, rest_rule);
    for (int32_t i = count; i-- > 0 && b->status == MF_OK;) { /* children come behind their parents */
        behind[i] = behind_node(b, nodes, i, behind, rest, quote);
    }
    return mf_guide_seq2(b, quote, behind[0]);
}
