/* jinja_text.c - code points, character classes and case mappings as Python's str has them: see jinja_text.h. */
#include "text/jinja_text.h"

#include <utf8proc.h>

#include "text/jinja_case_tables.h"

int32_t jinja_next_char(const char *data, size_t size, size_t *pos)
{
    const unsigned char *s = (const unsigned char *)data + *pos;
    size_t left = size - *pos;
    int32_t c = s[0];
    size_t n = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (n > left) { /* not from a valid text; never read past it */
        n = left;
    }
    if (n > 1) {
        c &= 0xff >> (n + 1);
        for (size_t i = 1; i < n; i++) {
            c = c << 6 | (s[i] & 0x3f);
        }
    }
    *pos += n;
    return c;
}

int32_t jinja_prev_char(const char *data, size_t *pos)
{
    size_t start = *pos - 1;
    while (start > 0 && ((unsigned char)data[start] & 0xc0) == 0x80) {
        start--;
    }
    size_t at = start;
    int32_t c = jinja_next_char(data, *pos, &at);
    *pos = start;
    return c;
}

size_t jinja_char_offset(const char *data, size_t size, int64_t chars)
{
    size_t pos = 0;
    while (chars > 0 && pos < size) {
        pos++;
        while (pos < size && ((unsigned char)data[pos] & 0xc0) == 0x80) {
            pos++;
        }
        chars--;
    }
    return pos;
}

static bool in_ranges(int32_t c, const jinja_char_range *ranges, size_t count)
{
    size_t low = 0;
    size_t high = count;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (c > ranges[mid].last) {
            low = mid + 1;
        } else if (c < ranges[mid].first) {
            high = mid;
        } else {
            return true;
        }
    }
    return false;
}

bool jinja_is_space(int32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool jinja_is_line_break(int32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool jinja_is_printable(int32_t c)
{
    if (c < 0x7f) {
        return c >= 0x20;
    }
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
    }
}

bool jinja_is_alpha(int32_t c)
{
    if (c < 0x80) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    }
    utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

bool jinja_is_decimal(int32_t c)
{
    return c < 0x80 ? c >= '0' && c <= '9' : utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

bool jinja_is_digit(int32_t c)
{
    return jinja_is_decimal(c) || in_ranges(c, jinja_other_digit, jinja_other_digit_count);
}

bool jinja_is_numeric(int32_t c)
{
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO ||
           in_ranges(c, jinja_other_numeric, jinja_other_numeric_count);
}

bool jinja_is_word(int32_t c)
{
    return c == '_' || jinja_is_alpha(c) || jinja_is_numeric(c);
}

bool jinja_is_name(int32_t c)
{
    if (c < 0x80) {
        return jinja_is_word(c);
    }
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL: return true;
    default: return jinja_is_alpha(c);
    }
}

bool jinja_is_upper(int32_t c)
{
    if (c < 0x80) {
        return c >= 'A' && c <= 'Z';
    }
    return utf8proc_category(c) == UTF8PROC_CATEGORY_LU || in_ranges(c, jinja_other_upper, jinja_other_upper_count);
}

bool jinja_is_lower(int32_t c)
{
    if (c < 0x80) {
        return c >= 'a' && c <= 'z';
    }
    return utf8proc_category(c) == UTF8PROC_CATEGORY_LL || in_ranges(c, jinja_other_lower, jinja_other_lower_count);
}

bool jinja_is_title(int32_t c)
{
    return c >= 0x80 && utf8proc_category(c) == UTF8PROC_CATEGORY_LT;
}

int32_t jinja_decimal_value(int32_t c)
{
    if (c < 0x80) {
        return c >= '0' && c <= '9' ? c - '0' : -1;
    }
    if (!jinja_is_decimal(c)) {
        return -1;
    }
    for (int32_t value = 0; value < 10; value++) {
        if (in_ranges(c - value, jinja_decimal_zero, jinja_decimal_zero_count)) {
            return value;
        }
    }
    return -1;
}

static int from_row(int32_t c, const jinja_case_row *rows, size_t count, int32_t out[3])
{
    size_t low = 0;
    size_t high = count;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (c > rows[mid].from) {
            low = mid + 1;
        } else if (c < rows[mid].from) {
            high = mid;
        } else {
            int n = 0;
            while (n < 3 && rows[mid].to[n]) {
                out[n] = rows[mid].to[n];
                n++;
            }
            return n;
        }
    }
    return 0;
}

int jinja_map_case(int32_t c, jinja_case to, int32_t out[3])
{
    if (c < 0x80) {
        bool upper = to == JINJA_UPPER || to == JINJA_TITLE;
        out[0] = upper && c >= 'a' && c <= 'z' ? c - 32 : !upper && c >= 'A' && c <= 'Z' ? c + 32 : c;
        return 1;
    }
    int n = 0;
    switch (to) {
    case JINJA_LOWER:
        if (c == 0x130) { /* the one letter whose small form is two */
            out[0] = 'i';
            out[1] = 0x307;
            return 2;
        }
        out[0] = utf8proc_tolower(c);
        return 1;
    case JINJA_UPPER:
        n = from_row(c, jinja_upper_rows, jinja_upper_rows_count, out);
        out[0] = n ? out[0] : utf8proc_toupper(c);
        break;
    case JINJA_TITLE:
        n = from_row(c, jinja_title_rows, jinja_title_rows_count, out);
        out[0] = n ? out[0] : utf8proc_totitle(c);
        break;
    case JINJA_FOLD: {
        n = from_row(c, jinja_fold_rows, jinja_fold_rows_count, out);
        if (!n) {
            utf8proc_int32_t folded[8];
            int last_class = 0;
            utf8proc_ssize_t got = utf8proc_decompose_char(c, folded, 8, UTF8PROC_CASEFOLD, &last_class);
            out[0] = got == 1 ? folded[0] : c;
        }
        break;
    }
    }
    return n ? n : 1;
}

static bool is_cased(int32_t c)
{
    return jinja_is_upper(c) || jinja_is_lower(c) || jinja_is_title(c);
}

static bool is_case_ignorable(int32_t c)
{
    if (c < 0x80) {
        return c == '\'' || c == '.' || c == ':' || c == '^' || c == '`';
    }
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK: return true;
    default:
        return c == 0xb7 || c == 0x387 || c == 0x55f || c == 0x5f4 || c == 0x2018 || c == 0x2019 || c == 0x2024 ||
               c == 0x2027 || c == 0xfe13 || c == 0xfe52 || c == 0xfe55 || c == 0xff07 || c == 0xff0e || c == 0xff1a;
    }
}

int32_t jinja_lower_sigma(const char *data, size_t size, size_t pos)
{
    bool before = false;
    for (size_t at = pos; at > 0;) {
        int32_t c = jinja_prev_char(data, &at);
        if (!is_case_ignorable(c)) {
            before = is_cased(c);
            break;
        }
    }
    if (!before) {
        return 0x3c3;
    }
    size_t at = pos;
    jinja_next_char(data, size, &at);
    while (at < size) {
        int32_t c = jinja_next_char(data, size, &at);
        if (!is_case_ignorable(c)) {
            return is_cased(c) ? 0x3c3 : 0x3c2;
        }
    }
    return 0x3c2;
}
