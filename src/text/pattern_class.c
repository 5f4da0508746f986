/* pattern_class.c - the characters of a pattern: escapes and bracket classes, read into sets of code points. */
#include <string.h>

#include "text/pattern_impl.h"
#include "base/hex.h"
#include "text/utf8.h"

enum { MAX_CLASS_DEPTH = 8 };

mf_status mf_pattern_fail(mf_pattern_reader *reader, mf_status status, const char *message)
{
    /* Messages are one line, and patterns hold line ends. */
    char shown[320];
    size_t n = 0, i = 0;
    while (i < reader->size && n < 300) {
        char c = reader->text[i++];
        if (c == '\n' || c == '\r') {
            shown[n++] = '\\';
            c = c == '\n' ? 'n' : 'r';
        }
        shown[n++] = c;
    }
    while (i < reader->size && (reader->text[i] & 0xc0) == 0x80 && n + 4 < sizeof shown) {
        shown[n++] = reader->text[i++];
    }
    shown[n] = '\0';
    return mf_fail(reader->err, status, "pattern \"%s%s\": byte %zu: %s", shown, i < reader->size ? "..." : "",
                   reader->at, message);
}

static mf_status unsupported(mf_pattern_reader *reader, const char *message)
{
    return mf_pattern_fail(reader, MF_ERR_UNSUPPORTED, message);
}

static mf_status checked(mf_pattern_reader *reader, mf_status status)
{
    return status == MF_ERR_NOMEM ? mf_pattern_fail(reader, status, "out of memory") : status;
}

static mf_status read_hex(mf_pattern_reader *reader, size_t digits, uint32_t *value)
{
    return mf_hex_read(reader->text, reader->size, &reader->at, digits, value) == digits
               ? MF_OK
               : unsupported(reader, "expected a hexadecimal digit");
}

/* "\p{Name}", "\p{^Name}", "\P{Name}"; reader->at is behind the letter. */
static mf_status read_property(mf_pattern_reader *reader, bool inverted, mf_charset *set)
{
    const char *open = reader->text + reader->at;
    const char *close = reader->at < reader->size && *open == '{' ? memchr(open, '}', reader->size - reader->at) : NULL;
    if (!close) {
        return unsupported(reader, "expected {Name} after \\p");
    }
    /* The case variants of a category reach into others, some to several characters. */
    if (reader->caseless) {
        return unsupported(reader, "\\p{..} where case is ignored");
    }
    const char *name = open + 1;
    if (*name == '^') {
        inverted = !inverted;
        name++;
    }
    mf_charset own = { 0 };
    mf_status status = mf_charset_add_property(&own, name, (size_t)(close - name));
    if (status == MF_ERR_UNSUPPORTED) {
        return unsupported(reader, "unknown property name");
    }
    mf_charset_settle(&own);
    if (status == MF_OK && inverted) {
        status = mf_charset_invert(&own);
    }
    if (status == MF_OK) {
        status = mf_charset_add_set(set, &own);
    }
    mf_charset_close(&own);
    reader->at = (size_t)(close + 1 - reader->text);
    return checked(reader, status);
}

static mf_status add_shorthand(mf_pattern_reader *reader, char letter, mf_charset *set)
{
    mf_charset own = { 0 };
    mf_status status;
    switch (letter | 0x20) {
    case 'd':
        status = mf_charset_add_categories(&own, 1u << MF_GC_ND);
        break;
    case 's':
        status = mf_charset_add_ranges(&own, mf_unicode_space, mf_unicode_space_count);
        break;
    case 'w':
        status = mf_charset_add_word(&own);
        break;
    default:
        status = mf_charset_add_ranges(&own, (mf_char_range[]){ { '0', '9' }, { 'A', 'F' }, { 'a', 'f' } }, 3);
        break;
    }
    mf_charset_settle(&own);
    if (status == MF_OK && !(letter & 0x20)) {
        status = mf_charset_invert(&own);
    }
    if (status == MF_OK) {
        status = mf_charset_add_set(set, &own);
    }
    mf_charset_close(&own);
    return checked(reader, status);
}

mf_status mf_pattern_read_escape(mf_pattern_reader *reader, mf_charset *set, int64_t *single)
{
    *single = -1;
    size_t begin = reader->at++;
    if (reader->at == reader->size) {
        return mf_pattern_fail(reader, MF_ERR_FORMAT, "the pattern ends with a backslash");
    }
    uint32_t c = mf_utf8_next(reader->text, &reader->at);
    switch (c) {
    case 'p':
    case 'P':
        return read_property(reader, c == 'P', set);
    case 'd':
    case 'D':
    case 's':
    case 'S':
    case 'w':
    case 'W':
    case 'h':
    case 'H':
        if (reader->caseless && (c | 0x20) == 'w') {
            return unsupported(reader, "\\w where case is ignored");
        }
        return add_shorthand(reader, (char)c, set);
    case 't':
        c = '\t';
        break;
    case 'n':
        c = '\n';
        break;
    case 'v':
        c = '\v';
        break;
    case 'f':
        c = '\f';
        break;
    case 'r':
        c = '\r';
        break;
    case 'a':
        c = '\a';
        break;
    case 'e':
        c = 0x1b;
        break;
    case 'u':
        MF_TRY(read_hex(reader, 4, &c));
        break;
    case 'x':
        if (reader->at < reader->size && reader->text[reader->at] == '{') {
            const char *close = memchr(reader->text + reader->at, '}', reader->size - reader->at);
            size_t digits = close ? (size_t)(close - reader->text) - reader->at - 1 : 0;
            if (digits < 1 || digits > 6) {
                return unsupported(reader, "expected 1 to 6 hexadecimal digits in \\x{..}");
            }
            reader->at++;
            MF_TRY(read_hex(reader, digits, &c));
            reader->at++;
        } else {
            MF_TRY(read_hex(reader, 2, &c));
            if (c > 0x7f) {
                return unsupported(reader, "\\x80 to \\xff are bytes, not characters");
            }
        }
        break;
    default:
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) {
            reader->at = begin;
            return unsupported(reader, "this escape is not known");
        }
    }
    if (c > MF_UNICODE_LAST || (c >= 0xd800 && c <= 0xdfff)) {
        return mf_pattern_fail(reader, MF_ERR_FORMAT, "not a Unicode character");
    }
    *single = c;
    return mf_pattern_add_literal(reader, set, c);
}

mf_status mf_pattern_add_literal(mf_pattern_reader *reader, mf_charset *set, uint32_t c)
{
    mf_status status = mf_charset_add(set, c, c);
    if (reader->caseless && status == MF_OK) {
        if (c >= 0x80) {
            return unsupported(reader, "a character beyond ASCII where case is ignored");
        }
        uint32_t lower = c | 0x20;
        if (lower >= 'a' && lower <= 'z') {
            status = mf_charset_add(set, c ^ 0x20, c ^ 0x20);
            /* Two letters beyond ASCII fold to one of it: the long s and the kelvin sign. */
            uint32_t other = lower == 's' ? 0x17f : lower == 'k' ? 0x212a : 0;
            if (status == MF_OK && other) {
                status = mf_charset_add(set, other, other);
            }
        }
    }
    return checked(reader, status);
}

/* One level of brackets: the union being read, and what the operands before each && left. */
typedef struct class_level {
    mf_charset current, accumulated;
    bool inverted, has_and;
} class_level;

static void close_levels(class_level *levels, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        mf_charset_close(&levels[i].current);
        mf_charset_close(&levels[i].accumulated);
    }
}

static mf_status end_operand(class_level *level)
{
    mf_charset_settle(&level->current);
    if (level->has_and) {
        MF_TRY(mf_charset_intersect(&level->accumulated, &level->current));
        mf_charset_close(&level->current);
    } else {
        mf_charset_close(&level->accumulated);
        level->accumulated = level->current;
        level->current = (mf_charset){ 0 };
    }
    return MF_OK;
}

/* A character or escape, and the range that it may begin. */
static mf_status read_item(mf_pattern_reader *reader, mf_charset *set)
{
    int64_t first = -1, last = -1;
    mf_charset item = { 0 };
    mf_status status;
    if (reader->text[reader->at] == '\\') {
        status = mf_pattern_read_escape(reader, &item, &first);
    } else {
        first = mf_utf8_next(reader->text, &reader->at);
        status = mf_pattern_add_literal(reader, &item, (uint32_t)first);
    }
    bool range = status == MF_OK && reader->at + 1 < reader->size && reader->text[reader->at] == '-' &&
                 reader->text[reader->at + 1] != ']';
    if (range && first < 0) {
        status = unsupported(reader, "'-' after a class inside brackets");
    } else if (range) {
        reader->at++;
        mf_charset ignored = { 0 };
        if (reader->text[reader->at] == '\\') {
            status = mf_pattern_read_escape(reader, &ignored, &last);
        } else if (reader->text[reader->at] == '[') {
            status = unsupported(reader, "a range that ends with brackets");
        } else {
            last = mf_utf8_next(reader->text, &reader->at);
        }
        mf_charset_close(&ignored);
        if (status == MF_OK && last < first) {
            status = last < 0 ? unsupported(reader, "a range that ends with a class")
                              : mf_pattern_fail(reader, MF_ERR_FORMAT, "a range whose end comes before its start");
        }
        if (status == MF_OK && reader->caseless && last >= 0x80) {
            status = unsupported(reader, "a range beyond ASCII where case is ignored");
        }
        for (int64_t c = first; status == MF_OK && reader->caseless && c <= last; c++) {
            status = mf_pattern_add_literal(reader, set, (uint32_t)c);
        }
        if (status == MF_OK) {
            status = checked(reader, mf_charset_add(set, (uint32_t)first, (uint32_t)last));
        }
        if (status == MF_OK && reader->at + 1 < reader->size && reader->text[reader->at] == '-' &&
            reader->text[reader->at + 1] != ']') {
            status = unsupported(reader, "'-' after a range inside brackets");
        }
    } else if (status == MF_OK) {
        status = checked(reader, mf_charset_add_set(set, &item));
    }
    mf_charset_close(&item);
    return status;
}

mf_status mf_pattern_read_class(mf_pattern_reader *reader, mf_charset *set)
{
    class_level levels[MAX_CLASS_DEPTH] = { 0 };
    size_t depth = 0;
    mf_status status = MF_OK;
    bool fresh = false; /* nothing read since the '[' or && */
    do {
        if (reader->at == reader->size) {
            status = mf_pattern_fail(reader, MF_ERR_FORMAT, "'[' without ']'");
            break;
        }
        const char *s = reader->text + reader->at;
        size_t left = reader->size - reader->at;
        if (*s == '[') {
            if (left > 1 && s[1] == ':') {
                status = unsupported(reader, "POSIX bracket");
            } else if (depth == MAX_CLASS_DEPTH) {
                status = unsupported(reader, "brackets nested too deeply");
            } else {
                reader->at++;
                bool inverted = reader->at < reader->size && reader->text[reader->at] == '^';
                reader->at += inverted;
                levels[depth++].inverted = inverted;
                fresh = true;
            }
        } else if (*s == ']') {
            if (fresh) {
                status = unsupported(reader, "']' where a class has no character yet");
                break;
            }
            class_level *level = &levels[--depth];
            reader->at++;
            status = checked(reader, end_operand(level));
            if (status == MF_OK && level->inverted) {
                status = checked(reader, mf_charset_invert(&level->accumulated));
            }
            /* Oniguruma is not consistent about classes without characters; nobody means one. */
            if (status == MF_OK && level->accumulated.count == 0) {
                status = unsupported(reader, "a class that no character is in");
            }
            if (status == MF_OK) {
                status =
                    checked(reader, mf_charset_add_set(depth ? &levels[depth - 1].current : set, &level->accumulated));
            }
            close_levels(level, 1);
            *level = (class_level){ 0 };
        } else if (left > 1 && s[0] == '&' && s[1] == '&') {
            if (fresh) {
                status = unsupported(reader, "&& without a class before it");
                break;
            }
            reader->at += 2;
            status = checked(reader, end_operand(&levels[depth - 1]));
            levels[depth - 1].has_and = true;
            fresh = true;
        } else {
            fresh = false;
            status = read_item(reader, &levels[depth - 1].current);
        }
    } while (status == MF_OK && depth > 0);
    close_levels(levels, depth);
    mf_charset_settle(set);
    return status;
}
