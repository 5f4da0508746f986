/* guide_regex.c - regular expressions as people write them for structured output, into expressions.
 *
 * The whole text has to match, as vLLM's back ends read it.  \d, \w and \s are ASCII and their opposites the complements of
 * Unicode's, so that what comes matches under either reading.  Back-references, lookaround and word boundaries are refused by
 * name. */
#include <string.h>

#include "base/hex.h"
#include "base/sys.h"
#include "text/guide_impl.h"
#include "text/utf8.h"

enum { MAX_DEPTH = 256, MAX_REPEAT = 100000 };

typedef struct frame {
    mf_guide_list alternatives, sequence;
    bool starts;    /* at its beginning nothing of the text has been read */
    bool has_ended; /* '$' was read: nothing may follow */
    bool any_ended, has_anchor;
    size_t at;      /* of its '(' */
} frame;

typedef struct parser {
    mf_guide_build *b;
    const char *text;
    size_t size, at;
    bool in_json;
    frame frames[MAX_DEPTH];
    int32_t depth;
    bool has_atom, atom_has_anchor; /* the last item of the sequence is what a repeat applies to */
    bool has_repeated;              /* a repeat was just read */
} parser;

static void fail(parser *p, mf_status status, size_t at, const char *message)
{
    mf_guide_fail_at(p->b, status, at, message);
}

static void unsupported(parser *p, size_t at, const char *message)
{
    fail(p, MF_ERR_UNSUPPORTED, at, message);
}

static char peek(const parser *p, size_t ahead)
{
    return p->at + ahead < p->size ? p->text[p->at + ahead] : '\0';
}

static bool starts_with(const parser *p, const char *word)
{
    size_t n = strlen(word);
    return p->size - p->at >= n && memcmp(p->text + p->at, word, n) == 0;
}

static void add_item(parser *p, mf_guide_expr *item, bool has_anchor)
{
    frame *f = &p->frames[p->depth];
    if (f->has_ended) {
        unsupported(p, p->at, "'$' before the end");
    }
    if (item) {
        mf_guide_list_add(p->b, &f->sequence, item);
    }
    p->has_atom = true;
    p->atom_has_anchor = has_anchor;
}

static void check(parser *p, mf_status status)
{
    if (status != MF_OK) {
        fail(p, status, p->at, status == MF_ERR_NOMEM ? "out of memory" : "unknown name in \\p{..}");
    }
}

static void add_set(parser *p, mf_charset *set)
{
    mf_charset_settle(set);
    if (set->count == 0) {
        fail(p, MF_ERR_INVALID, p->at, "a class that no character is in");
    } else {
        add_item(p, mf_guide_set(p->b, set->ranges, set->count, p->in_json), false);
    }
}

/* ---- escapes ------------------------------------------------------------------------------------------------------ */

static void add_shorthand(parser *p, char letter, bool is_wide, mf_charset *set)
{
    static const mf_char_range digits[] = { { '0', '9' } };
    static const mf_char_range words[] = { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } };
    static const mf_char_range spaces[] = { { '\t', '\r' }, { ' ', ' ' } };
    mf_charset own = { 0 };
    bool is_opposite = letter < 'a';
    bool is_unicode = is_opposite != is_wide;
    mf_status status = MF_OK;
    switch (letter | 0x20) {
    case 'd':
        status = is_unicode ? mf_charset_add_categories(&own, 1u << MF_GC_ND) : mf_charset_add_ranges(&own, digits, 1);
        break;
    case 'w': /* as Python reads it, other numbers too */
        status = is_unicode ? mf_charset_add_word(&own) : mf_charset_add_ranges(&own, words, 4);
        if (is_unicode && status == MF_OK) {
            status = mf_charset_add_categories(&own, 1u << MF_GC_NO | 1u << MF_GC_NL);
        }
        break;
    default:
        status = is_unicode ? mf_charset_add_ranges(&own, mf_unicode_space, mf_unicode_space_count)
                            : mf_charset_add_ranges(&own, spaces, 2);
        if (is_unicode && status == MF_OK) {
            status = mf_charset_add(&own, 0x1c, 0x1f);
        }
        break;
    }
    mf_charset_settle(&own);
    if (status == MF_OK && is_opposite) {
        status = mf_charset_invert(&own);
    }
    if (status == MF_OK) {
        status = mf_charset_add_set(set, &own);
    }
    mf_charset_close(&own);
    check(p, status);
}

static void add_property(parser *p, bool is_opposite, mf_charset *set)
{
    const char *open = p->text + p->at;
    const char *close = p->at < p->size && *open == '{' ? memchr(open, '}', p->size - p->at) : NULL;
    if (!close) {
        fail(p, MF_ERR_INVALID, p->at, "expected {Name} after \\p");
        return;
    }
    const char *name = open + 1;
    if (*name == '^') {
        is_opposite = !is_opposite;
        name++;
    }
    mf_charset own = { 0 };
    mf_status status = mf_charset_add_property(&own, name, (size_t)(close - name));
    mf_charset_settle(&own);
    if (status == MF_OK && is_opposite) {
        status = mf_charset_invert(&own);
    }
    if (status == MF_OK) {
        status = mf_charset_add_set(set, &own);
    }
    mf_charset_close(&own);
    check(p, status);
    p->at = (size_t)(close + 1 - p->text);
}

static uint32_t read_hex(parser *p, size_t digits)
{
    uint32_t value;
    if (mf_hex_read(p->text, p->size, &p->at, digits, &value) != digits) {
        fail(p, MF_ERR_INVALID, p->at, "expected a hexadecimal digit");
        return 'x';
    }
    return value;
}

static uint32_t read_braced_hex(parser *p)
{
    size_t n = 0;
    while (peek(p, 1 + n) != '}' && n < 7) {
        n++;
    }
    if (n < 1 || n > 6) {
        fail(p, MF_ERR_INVALID, p->at, "expected 1 to 6 hexadecimal digits in braces");
        return 'x';
    }
    p->at++;
    uint32_t value = read_hex(p, n);
    p->at++;
    return value;
}

/* An escape that stands for characters, at its backslash.  Adds them to the set; returns the one it stands for, or -1.
 * is_wide: the set will be inverted, so it takes the larger reading. */
static int64_t read_escape(parser *p, bool is_wide, mf_charset *set)
{
    static const char pairs[] = "t\tn\nr\rf\fv\va\ae\x1b";
    size_t begin = p->at++;
    if (p->at >= p->size) {
        fail(p, MF_ERR_INVALID, begin, "the pattern ends with a backslash");
        return -1;
    }
    uint32_t c = mf_utf8_next(p->text, &p->at);
    bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (c != 0 && c < 0x80 && strchr("dDwWsS", (int)c)) {
        add_shorthand(p, (char)c, is_wide, set);
        return -1;
    }
    if (c == 'p' || c == 'P') {
        add_property(p, c == 'P', set);
        return -1;
    }
    if (c >= '1' && c <= '9') {
        unsupported(p, begin, "back-reference");
    } else if (c == '0') {
        c = 0;
    } else if (c == 'x' || c == 'u' || c == 'U') {
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        c = peek(p, 0) == '{' && c != 'U' ? read_braced_hex(p) : read_hex(p, digits);
        if (c >= 0xd800 && c <= 0xdbff && starts_with(p, "\\u")) {
            p->at += 2;
            uint32_t low = read_hex(p, 4);
            c = low >= 0xdc00 && low <= 0xdfff ? 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00) : c;
        }
    } else if (is_letter) {
        bool found = false;
        for (size_t i = 0; pairs[i] && !found; i += 2) {
            if ((uint32_t)pairs[i] == c) {
                c = (uint8_t)pairs[i + 1];
                found = true;
            }
        }
        if (!found) {
            unsupported(p, begin, c == 'b' || c == 'B' ? "word boundary"
                                  : c == 'k' || c == 'g' ? "back-reference"
                                                         : "this escape");
        }
    }
    if (c > MF_UNICODE_LAST || (c >= 0xd800 && c <= 0xdfff)) {
        fail(p, MF_ERR_INVALID, begin, "not a Unicode character");
        c = 'x';
    }
    check(p, mf_charset_add(set, c, c));
    return c;
}

/* ---- classes ------------------------------------------------------------------------------------------------------ */

/* One character or escape in brackets; -1: a class of several. */
static int64_t read_class_item(parser *p, bool is_wide, mf_charset *set)
{
    if (peek(p, 0) == '\\') {
        if (peek(p, 1) == 'b') { /* a backspace here */
            p->at += 2;
            check(p, mf_charset_add(set, 8, 8));
            return 8;
        }
        return read_escape(p, is_wide, set);
    }
    if (starts_with(p, "[:")) {
        unsupported(p, p->at, "POSIX class");
    }
    uint32_t c = mf_utf8_next(p->text, &p->at);
    check(p, mf_charset_add(set, c, c));
    return c;
}

static void parse_class(parser *p)
{
    size_t begin = p->at++;
    bool is_inverted = peek(p, 0) == '^';
    p->at += is_inverted;
    mf_charset set = { 0 };
    bool is_first = true;
    while (p->b->status == MF_OK) {
        if (p->at >= p->size) {
            fail(p, MF_ERR_INVALID, begin, "'[' without ']'");
            break;
        }
        if (peek(p, 0) == ']' && !is_first) {
            p->at++;
            break;
        }
        is_first = false;
        size_t at = p->at;
        int64_t first = read_class_item(p, is_inverted, &set);
        if (peek(p, 0) == '-' && p->at + 1 < p->size && peek(p, 1) != ']' && first >= 0) {
            mf_charset ignored = { 0 };
            p->at++;
            int64_t last = read_class_item(p, is_inverted, &ignored);
            mf_charset_close(&ignored);
            if (p->b->status == MF_OK && last < first) {
                fail(p, MF_ERR_INVALID, at, last < 0 ? "a range that ends with a class" : "a range whose end comes first");
            } else if (p->b->status == MF_OK) {
                check(p, mf_charset_add(&set, (uint32_t)first, (uint32_t)last));
            }
        }
    }
    mf_charset_settle(&set);
    if (is_inverted && p->b->status == MF_OK) {
        check(p, mf_charset_invert(&set));
    }
    if (p->b->status == MF_OK) {
        add_set(p, &set);
    }
    mf_charset_close(&set);
}

/* ---- groups, anchors, repeats ------------------------------------------------------------------------------------- */

static void open_group(parser *p)
{
    size_t begin = p->at++;
    if (peek(p, 0) == '?') {
        const char *close;
        if (starts_with(p, "?:")) {
            p->at += 2;
        } else if (starts_with(p, "?=") || starts_with(p, "?!")) {
            unsupported(p, begin, "lookahead");
        } else if (starts_with(p, "?<=") || starts_with(p, "?<!")) {
            unsupported(p, begin, "lookbehind");
        } else if (starts_with(p, "?P=")) {
            unsupported(p, begin, "back-reference");
        } else if ((starts_with(p, "?P<") || starts_with(p, "?<")) &&
                   (close = memchr(p->text + p->at, '>', p->size - p->at))) {
            p->at = (size_t)(close + 1 - p->text);
        } else {
            unsupported(p, begin, starts_with(p, "?>") ? "atomic group" : starts_with(p, "?(") ? "condition" : "flags in a group");
        }
    }
    const frame *outer = &p->frames[p->depth];
    if (outer->has_ended) {
        unsupported(p, begin, "'$' before the end");
    }
    if (p->depth + 1 >= p->b->limits.depth || p->depth + 1 >= MAX_DEPTH) {
        fail(p, MF_ERR_LIMIT, begin, "groups nested too deeply");
        return;
    }
    p->frames[p->depth + 1] = (frame){ .starts = outer->starts && outer->sequence.num == 0, .at = begin };
    p->depth++;
    p->has_atom = false;
}

static void end_alternative(parser *p)
{
    frame *f = &p->frames[p->depth];
    mf_guide_list_add(p->b, &f->alternatives, mf_guide_seq(p->b, f->sequence.items, f->sequence.num));
    f->sequence = (mf_guide_list){ 0 };
    f->any_ended = f->any_ended || f->has_ended;
    f->has_ended = false;
    p->has_atom = false;
}

static mf_guide_expr *end_group(parser *p)
{
    end_alternative(p);
    const frame *f = &p->frames[p->depth];
    return p->b->status == MF_OK ? mf_guide_alt(p->b, f->alternatives.items, f->alternatives.num) : NULL;
}

static void close_group(parser *p)
{
    if (p->depth == 0) {
        fail(p, MF_ERR_INVALID, p->at, "')' without '('");
        return;
    }
    mf_guide_expr *group = end_group(p);
    const frame *inner = &p->frames[p->depth--];
    p->at++;
    add_item(p, group, inner->has_anchor);
    frame *f = &p->frames[p->depth];
    f->has_ended = f->has_ended || inner->any_ended;
    f->has_anchor = f->has_anchor || inner->has_anchor;
}

static void add_anchor(parser *p, bool is_end, size_t size)
{
    frame *f = &p->frames[p->depth];
    if (!is_end && !(f->starts && f->sequence.num == 0)) {
        unsupported(p, p->at, "an anchor of the start that is not at the start");
    }
    f->has_anchor = true;
    f->has_ended = f->has_ended || is_end;
    p->has_atom = false;
    p->at += size;
}

static size_t read_number(const parser *p, size_t ahead, int32_t *value)
{
    size_t begin = ahead;
    *value = 0;
    for (; peek(p, ahead) >= '0' && peek(p, ahead) <= '9'; ahead++) {
        *value = *value > MAX_REPEAT ? *value : *value * 10 + (peek(p, ahead) - '0');
    }
    return ahead - begin;
}

/* At a '{': "{n}", "{n,}", "{,m}", "{n,m}"; false: only a character. */
static bool read_interval(parser *p, int32_t *min, int32_t *max)
{
    size_t first = read_number(p, 1, min);
    size_t at = 1 + first;
    *max = *min;
    if (peek(p, at) == ',') {
        size_t second = read_number(p, at + 1, max);
        if (first == 0 && second == 0) {
            return false;
        }
        at += 1 + second;
        *max = second > 0 ? *max : -1;
    } else if (first == 0) {
        return false;
    }
    if (peek(p, at) != '}') {
        return false;
    }
    if (*min > MAX_REPEAT || *max > MAX_REPEAT) {
        fail(p, MF_ERR_LIMIT, p->at, "a repeat count this large");
    } else if (*max >= 0 && *max < *min) {
        fail(p, MF_ERR_INVALID, p->at, "a repeat whose end comes before its start");
    }
    p->at += at + 1;
    return true;
}

static bool parse_repeat(parser *p)
{
    size_t begin = p->at;
    int32_t min = peek(p, 0) == '+', max = peek(p, 0) == '?' ? 1 : -1;
    if (peek(p, 0) != '{') {
        p->at++;
    } else if (!read_interval(p, &min, &max)) {
        return false;
    }
    frame *f = &p->frames[p->depth];
    if (!p->has_atom) {
        fail(p, MF_ERR_INVALID, begin, p->has_repeated ? "two repeats in a row" : "a repeat of nothing");
        return true;
    }
    if (p->atom_has_anchor) {
        unsupported(p, begin, "a repeat of an anchor");
    }
    if (peek(p, 0) == '+') {
        unsupported(p, p->at, "possessive repeat, or two repeats in a row");
    }
    p->at += peek(p, 0) == '?'; /* lazy: the same texts */
    if (f->sequence.num > 0 && p->b->status == MF_OK) {
        mf_guide_expr **last = &f->sequence.items[f->sequence.num - 1];
        *last = mf_guide_repeat(p->b, *last, min, max);
    }
    p->has_atom = false;
    p->has_repeated = true;
    return true;
}

static void add_char(parser *p, uint32_t c)
{
    char bytes[4];
    if (p->in_json && (c < 0x20 || c == '"' || c == '\\')) {
        add_item(p, mf_guide_set(p->b, &(mf_char_range){ c, c }, 1, true), false);
    } else {
        add_item(p, mf_guide_bytes(p->b, bytes, mf_utf8_put(c, bytes)), false);
    }
}

static void parse_escape(parser *p)
{
    char letter = peek(p, 1);
    if (letter == 'A' || letter == 'Z' || letter == 'z') {
        add_anchor(p, letter != 'A', 2);
        return;
    }
    mf_charset set = { 0 };
    int64_t single = read_escape(p, false, &set);
    if (p->b->status == MF_OK && single >= 0) {
        add_char(p, (uint32_t)single);
    } else if (p->b->status == MF_OK) {
        add_set(p, &set);
    }
    mf_charset_close(&set);
}

static void parse_one(parser *p)
{
    static const mf_char_range dot[] = { { 0, '\n' - 1 }, { '\n' + 1, MF_UNICODE_LAST } };
    switch (peek(p, 0)) {
    case '(':
        open_group(p);
        return;
    case ')':
        close_group(p);
        return;
    case '|':
        p->at++;
        end_alternative(p);
        return;
    case '^':
        add_anchor(p, false, 1);
        return;
    case '$':
        add_anchor(p, true, 1);
        return;
    case '.':
        p->at++;
        add_item(p, mf_guide_set(p->b, dot, 2, p->in_json), false);
        return;
    case '[':
        parse_class(p);
        return;
    case '\\':
        parse_escape(p);
        return;
    case '*':
    case '+':
    case '?':
    case '{':
        if (parse_repeat(p)) {
            return;
        }
        break;
    default:
        break;
    }
    add_char(p, mf_utf8_next(p->text, &p->at));
}

mf_guide_expr *mf_guide_parse_regex(mf_guide_build *b, const char *pattern, size_t size, bool in_json)
{
    parser *p = mf_guide_build_alloc(b, 1, sizeof *p);
    if (!p) {
        return NULL;
    }
    *p = (parser){ .b = b, .text = pattern, .size = size, .in_json = in_json };
    p->frames[0].starts = true;
    while (p->at < p->size && b->status == MF_OK) {
        size_t begin = p->at;
        bool had_repeated = p->has_repeated;
        parse_one(p);
        p->has_repeated = p->has_repeated && !(had_repeated && p->at > begin);
    }
    if (b->status == MF_OK && p->depth > 0) {
        fail(p, MF_ERR_INVALID, p->frames[p->depth].at, "'(' without ')'");
    }
    return b->status == MF_OK ? end_group(p) : NULL;
}
