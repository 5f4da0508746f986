/* guide_grammar.c - EBNF as vLLM's and llama.cpp's users write it: `root ::= "yes" | item ("," item)*`, one rule after another.
 *
 * Strings, classes, groups, alternatives, * + ? {n} {n,} {n,m}, '.', comments from '#' to the line's end.  A rule ends where the
 * next `name ::=` begins. */
#include <string.h>

#include "base/hex.h"
#include "base/sys.h"
#include "text/guide_impl.h"
#include "text/utf8.h"

enum { MAX_DEPTH = 256, MAX_REPEAT = 100000, NAME_SLOTS = 4096 };

typedef struct frame {
    mf_guide_list alternatives, sequence;
    size_t at;
} frame;

typedef struct name_entry {
    const char *name; /* in the text */
    size_t size;
    int32_t rule;
    struct name_entry *next;
} name_entry;

typedef struct parser {
    mf_guide_build *b;
    const char *text;
    size_t size, at;
    frame frames[MAX_DEPTH];
    int32_t depth;
    int32_t rule; /* being read; -1 = none */
    bool has_atom;
    name_entry *names[NAME_SLOTS];
} parser;

static void fail(parser *p, mf_status status, size_t at, const char *message)
{
    mf_guide_fail_at(p->b, status, at, message);
}

static char peek(const parser *p, size_t ahead)
{
    return p->at + ahead < p->size ? p->text[p->at + ahead] : '\0';
}

static void skip_space(parser *p)
{
    for (; p->at < p->size; p->at++) {
        char c = p->text[p->at];
        if (c == '#') {
            while (p->at + 1 < p->size && p->text[p->at + 1] != '\n') {
                p->at++;
            }
        } else if (c != ' ' && c != '\t' && c != '\n' && c != '\r') {
            return;
        }
    }
}

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
}

static bool begins_name(char c)
{
    return is_name_byte(c) && c != '.' && c != '-' && !(c >= '0' && c <= '9');
}

/* The rule of a name, made when it is first met. */
static int32_t rule_of(parser *p, const char *name, size_t size)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ (uint8_t)name[i]) * 16777619u;
    }
    name_entry **slot = &p->names[hash % NAME_SLOTS];
    for (const name_entry *e = *slot; e; e = e->next) {
        if (e->size == size && memcmp(e->name, name, size) == 0) {
            return e->rule;
        }
    }
    name_entry *e = mf_guide_build_alloc(p->b, 1, sizeof *e);
    int32_t rule = e ? mf_guide_add_rule(p->b, name, size) : -1;
    if (rule >= 0) {
        *e = (name_entry){ name, size, rule, *slot };
        *slot = e;
    }
    return rule;
}

static void end_alternative(parser *p)
{
    frame *f = &p->frames[p->depth];
    mf_guide_list_add(p->b, &f->alternatives, mf_guide_seq(p->b, f->sequence.items, f->sequence.num));
    f->sequence = (mf_guide_list){ 0 };
    p->has_atom = false;
}

static mf_guide_expr *end_frame(parser *p)
{
    end_alternative(p);
    const frame *f = &p->frames[p->depth];
    return p->b->status == MF_OK ? mf_guide_alt(p->b, f->alternatives.items, f->alternatives.num) : NULL;
}

static void end_rule(parser *p)
{
    if (p->rule < 0 || p->b->status != MF_OK) {
        return;
    }
    if (p->depth > 0) {
        fail(p, MF_ERR_INVALID, p->frames[p->depth].at, "'(' without ')'");
        return;
    }
    mf_guide_expr *body = end_frame(p);
    p->b->rules[p->rule].body = body;
    p->frames[0] = (frame){ 0 };
}

static void add_item(parser *p, mf_guide_expr *item)
{
    if (item) {
        mf_guide_list_add(p->b, &p->frames[p->depth].sequence, item);
    }
    p->has_atom = true;
}

/* ---- characters --------------------------------------------------------------------------------------------------- */

static uint32_t read_hex(parser *p, size_t digits)
{
    uint32_t value;
    if (mf_hex_read(p->text, p->size, &p->at, digits, &value) != digits) {
        fail(p, MF_ERR_INVALID, p->at, "expected a hexadecimal digit");
        return 'x';
    }
    return value;
}

/* A character of a string or a class, escapes read. */
static uint32_t read_char(parser *p)
{
    static const char pairs[] = "n\nt\tr\rf\fv\v";
    size_t begin = p->at;
    uint32_t c = mf_utf8_next(p->text, &p->at);
    if (c != '\\') {
        if (c == '\n') {
            fail(p, MF_ERR_INVALID, begin, "a line end inside a string or class");
        }
        return c;
    }
    if (p->at >= p->size) {
        fail(p, MF_ERR_INVALID, begin, "the text ends with a backslash");
        return 'x';
    }
    c = mf_utf8_next(p->text, &p->at);
    if (c == 'x' || c == 'u' || c == 'U') {
        c = read_hex(p, c == 'x' ? 2 : c == 'u' ? 4 : 8);
    } else if (c == '0') {
        c = 0;
    } else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) {
        bool found = false;
        for (size_t i = 0; pairs[i] && !found; i += 2) {
            if ((uint32_t)pairs[i] == c) {
                c = (uint8_t)pairs[i + 1];
                found = true;
            }
        }
        if (!found) {
            fail(p, MF_ERR_UNSUPPORTED, begin, "this escape");
        }
    }
    if (c > MF_UNICODE_LAST || (c >= 0xd800 && c <= 0xdfff)) {
        fail(p, MF_ERR_INVALID, begin, "not a Unicode character");
        c = 'x';
    }
    return c;
}

static void parse_string(parser *p)
{
    char quote = peek(p, 0);
    size_t begin = p->at++;
    mf_buffer bytes = { 0 };
    while (p->b->status == MF_OK) {
        if (p->at >= p->size) {
            fail(p, MF_ERR_INVALID, begin, "a string without its end");
        } else if (peek(p, 0) == quote) {
            p->at++;
            break;
        } else {
            char utf8[4];
            size_t n = mf_utf8_put(read_char(p), utf8);
            if (mf_buffer_append(&bytes, utf8, n) != MF_OK) {
                mf_guide_build_fail(p->b, MF_ERR_NOMEM, "out of memory");
            }
        }
    }
    if (p->b->status == MF_OK) {
        add_item(p, mf_guide_bytes(p->b, mf_buffer_text(&bytes), bytes.size));
    }
    mf_buffer_close(&bytes);
}

static void parse_class(parser *p)
{
    size_t begin = p->at++;
    bool is_inverted = peek(p, 0) == '^';
    p->at += is_inverted;
    mf_charset set = { 0 };
    mf_status status = MF_OK;
    while (p->b->status == MF_OK && status == MF_OK) {
        if (p->at >= p->size) {
            fail(p, MF_ERR_INVALID, begin, "'[' without ']'");
        } else if (peek(p, 0) == ']') {
            p->at++;
            break;
        } else {
            uint32_t first = read_char(p);
            uint32_t last = first;
            if (peek(p, 0) == '-' && peek(p, 1) != ']' && p->at + 1 < p->size) {
                p->at++;
                last = read_char(p);
            }
            if (last < first) {
                fail(p, MF_ERR_INVALID, begin, "a range whose end comes first");
            }
            status = mf_charset_add(&set, first, last);
        }
    }
    mf_charset_settle(&set);
    if (status == MF_OK && is_inverted) {
        status = mf_charset_invert(&set);
    }
    if (status != MF_OK) {
        mf_guide_build_fail(p->b, status, "out of memory");
    } else if (p->b->status == MF_OK && set.count == 0) {
        fail(p, MF_ERR_INVALID, begin, "a class that no character is in");
    } else if (p->b->status == MF_OK) {
        add_item(p, mf_guide_set(p->b, set.ranges, set.count, false));
    }
    mf_charset_close(&set);
}

/* ---- structure ---------------------------------------------------------------------------------------------------- */

static void open_group(parser *p)
{
    if (peek(p, 1) == '=') {
        fail(p, MF_ERR_UNSUPPORTED, p->at, "lookahead assertion");
        return;
    }
    if (p->depth + 1 >= p->b->limits.depth || p->depth + 1 >= MAX_DEPTH) {
        fail(p, MF_ERR_LIMIT, p->at, "groups nested too deeply");
        return;
    }
    p->frames[++p->depth] = (frame){ .at = p->at++ };
    p->has_atom = false;
}

static void close_group(parser *p)
{
    if (p->depth == 0) {
        fail(p, MF_ERR_INVALID, p->at, "')' without '('");
        return;
    }
    mf_guide_expr *group = end_frame(p);
    p->depth--;
    p->at++;
    add_item(p, group);
}

static bool read_number(parser *p, int32_t *value)
{
    bool found = false;
    *value = 0;
    skip_space(p);
    for (; peek(p, 0) >= '0' && peek(p, 0) <= '9'; p->at++) {
        *value = *value > MAX_REPEAT ? *value : *value * 10 + (peek(p, 0) - '0');
        found = true;
    }
    skip_space(p);
    return found;
}

static void parse_repeat(parser *p)
{
    size_t begin = p->at;
    char c = peek(p, 0);
    int32_t min = c == '+', max = c == '?' ? 1 : -1;
    p->at++;
    if (c == '{') {
        bool has_min = read_number(p, &min);
        bool has_max = true;
        max = min;
        if (peek(p, 0) == ',') {
            p->at++;
            has_max = read_number(p, &max);
            max = has_max ? max : -1;
        } else if (!has_min) {
            has_max = false;
        }
        if ((!has_min && !has_max) || peek(p, 0) != '}') {
            fail(p, MF_ERR_INVALID, begin, "expected {n}, {n,} or {n,m}");
            return;
        }
        p->at++;
        if (min > MAX_REPEAT || max > MAX_REPEAT) {
            fail(p, MF_ERR_LIMIT, begin, "a repeat count this large");
        } else if (max >= 0 && max < min) {
            fail(p, MF_ERR_INVALID, begin, "a repeat whose end comes before its start");
        }
    }
    frame *f = &p->frames[p->depth];
    if (!p->has_atom || f->sequence.num == 0) {
        fail(p, MF_ERR_INVALID, begin, "a repeat of nothing");
    } else if (p->b->status == MF_OK) {
        mf_guide_expr **last = &f->sequence.items[f->sequence.num - 1];
        *last = mf_guide_repeat(p->b, *last, min, max);
    }
    p->has_atom = false;
}

static void parse_name(parser *p)
{
    size_t begin = p->at;
    while (is_name_byte(peek(p, 0))) {
        p->at++;
    }
    size_t size = p->at - begin;
    int32_t rule = rule_of(p, p->text + begin, size);
    size_t behind = p->at;
    skip_space(p);
    if (p->size - p->at >= 3 && memcmp(p->text + p->at, "::=", 3) == 0) {
        p->at += 3;
        end_rule(p);
        if (rule >= 0 && p->b->status == MF_OK && (p->b->rules[rule].body || rule == p->rule)) {
            mf_guide_build_fail(p->b, MF_ERR_INVALID, "byte %zu: rule %.100s is defined twice", begin, p->b->rules[rule].name);
        }
        p->rule = rule;
        p->has_atom = false;
        return;
    }
    if (p->rule < 0) {
        bool is_lark = peek(p, 0) == ':' || peek(p, 0) == '%' || p->text[begin] == '?';
        fail(p, is_lark ? MF_ERR_UNSUPPORTED : MF_ERR_INVALID, begin,
             is_lark ? "Lark grammar: only EBNF (root ::= ...) is read" : "expected `name ::=`");
        return;
    }
    p->at = behind;
    add_item(p, mf_guide_ref(p->b, rule));
}

static void parse_one(parser *p)
{
    static const mf_char_range dot[] = { { 0, '\n' - 1 }, { '\n' + 1, MF_UNICODE_LAST } };
    char c = peek(p, 0);
    if (begins_name(c)) {
        parse_name(p);
    } else if (p->rule < 0) {
        fail(p, c == '%' || c == '?' || c == '/' ? MF_ERR_UNSUPPORTED : MF_ERR_INVALID, p->at,
             c == '%' || c == '?' || c == '/' ? "Lark grammar: only EBNF (root ::= ...) is read" : "expected `name ::=`");
    } else if (c == '"' || c == '\'') {
        parse_string(p);
    } else if (c == '[') {
        parse_class(p);
    } else if (c == '(') {
        open_group(p);
    } else if (c == ')') {
        close_group(p);
    } else if (c == '|') {
        p->at++;
        end_alternative(p);
    } else if (c == '*' || c == '+' || c == '?' || c == '{') {
        parse_repeat(p);
    } else if (c == '.') {
        p->at++;
        add_item(p, mf_guide_set(p->b, dot, 2, false));
    } else {
        fail(p, MF_ERR_INVALID, p->at, c == ':' ? "expected `::=`" : "this character");
    }
}

void mf_guide_parse_grammar(mf_guide_build *b, const char *text, size_t size)
{
    parser *p = mf_guide_build_alloc(b, 1, sizeof *p);
    if (!p) {
        return;
    }
    *p = (parser){ .b = b, .text = text, .size = size, .rule = -1 };
    for (skip_space(p); p->at < p->size && b->status == MF_OK; skip_space(p)) {
        parse_one(p);
    }
    end_rule(p);
    if (b->status != MF_OK) {
        return;
    }
    int32_t root = rule_of(p, "root", 4);
    if (root >= 0 && !b->rules[root].body) {
        mf_guide_build_fail(b, MF_ERR_INVALID, "expected a rule `root ::=`");
    } else {
        mf_guide_expr *body = mf_guide_ref(b, root);
        b->rules[0].body = body;
    }
}
