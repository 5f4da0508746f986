/* jinja_str_methods.c - methods of str, by code point as in Python: case, padding, questions.  Those that look for a part
 * are in jinja_str_search.c. */
#include <string.h>

#include "text/jinja_bind.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

/* ---- case --------------------------------------------------------------------------------------------------------- */

static mf_status put_case(jinja_run *run, jinja_text *text, const jinja_str *s, size_t start, size_t end, jinja_case to)
{
    int32_t mapped[3];
    size_t at = start;
    int32_t c = jinja_next_char(s->data, end, &at);
    if (c == 0x3a3 && to == JINJA_LOWER) {
        return jinja_text_char(run, text, jinja_lower_sigma(s->data, s->size, start));
    }
    int n = jinja_map_case(c, to, mapped);
    for (int i = 0; i < n; i++) {
        MF_TRY(jinja_text_char(run, text, mapped[i]));
    }
    return MF_OK;
}

typedef enum case_rule { ALL, CAPITALIZE, WORDS, SWAP } case_rule;

static mf_status change_case(jinja_run *run, jinja_value self, case_rule rule, jinja_case to, jinja_value *out)
{
    const jinja_str *s = self.as.s;
    jinja_text text = { 0 };
    bool cased_before = false;
    MF_TRY(jinja_step_bytes(run, s->size * 4));
    for (size_t pos = 0; pos < s->size;) {
        size_t start = pos;
        int32_t c = jinja_next_char(s->data, s->size, &pos);
        jinja_case how = to;
        if (rule == CAPITALIZE) {
            how = start == 0 ? JINJA_TITLE : JINJA_LOWER;
        } else if (rule == WORDS) {
            how = cased_before ? JINJA_LOWER : JINJA_TITLE;
            cased_before = jinja_is_upper(c) || jinja_is_lower(c) || jinja_is_title(c);
        } else if (rule == SWAP) {
            if (!jinja_is_upper(c) && !jinja_is_lower(c)) {
                MF_TRY(jinja_text_append(run, &text, s->data + start, pos - start));
                continue;
            }
            how = jinja_is_upper(c) ? JINJA_LOWER : JINJA_UPPER;
        }
        MF_TRY(put_case(run, &text, s, start, pos, how));
    }
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, s, out);
}

METHOD(str_lower)
{
    BIND("lower", "");
    return change_case(run, self, ALL, JINJA_LOWER, out);
}

METHOD(str_upper)
{
    BIND("upper", "");
    return change_case(run, self, ALL, JINJA_UPPER, out);
}

METHOD(str_casefold)
{
    BIND("casefold", "");
    return change_case(run, self, ALL, JINJA_FOLD, out);
}

METHOD(str_capitalize)
{
    BIND("capitalize", "");
    return change_case(run, self, CAPITALIZE, JINJA_LOWER, out);
}

METHOD(str_title)
{
    BIND("title", "");
    return change_case(run, self, WORDS, JINJA_LOWER, out);
}

METHOD(str_swapcase)
{
    BIND("swapcase", "");
    return change_case(run, self, SWAP, JINJA_LOWER, out);
}

/* ---- stripping and padding ---------------------------------------------------------------------------------------- */

static bool in_set(int32_t c, const jinja_str *set)
{
    if (!set) {
        return jinja_is_space(c);
    }
    for (size_t i = 0; i < set->size;) {
        if (jinja_next_char(set->data, set->size, &i) == c) {
            return true;
        }
    }
    return false;
}

static mf_status strip(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, bool left, bool right,
                       jinja_value *out)
{
    BIND(what, "chars/?");
    const jinja_str *s = self.as.s;
    const jinja_str *set = NULL;
    if (arg[0].type != JINJA_MISSING && arg[0].type != JINJA_NONE) {
        MF_TRY(need_str(run, what, arg[0], &set));
    }
    size_t start = 0;
    size_t end = s->size;
    while (left && start < end) {
        size_t next = start;
        if (!in_set(jinja_next_char(s->data, end, &next), set)) {
            break;
        }
        start = next;
    }
    while (right && end > start) {
        size_t before = end;
        if (!in_set(jinja_prev_char(s->data, &before), set)) {
            break;
        }
        end = before;
    }
    size_t set_size = set ? set->size : 1;
    MF_TRY(jinja_step_bytes(run, (s->size - (end - start)) * (1 + set_size / 4)));
    if (end - start == s->size) {
        *out = self;
        return MF_OK;
    }
    MF_TRY(jinja_str_view(run, s->data + start, end - start, out));
    return jinja_str_as(run, s, out);
}

METHOD(str_strip)
{
    return strip(run, "strip", self, args, true, true, out);
}

METHOD(str_lstrip)
{
    return strip(run, "lstrip", self, args, true, false, out);
}

METHOD(str_rstrip)
{
    return strip(run, "rstrip", self, args, false, true, out);
}

static mf_status pad(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, int side, jinja_value *out)
{
    BIND(what, "width/ fillchar/?");
    jinja_str *s = self.as.s;
    int64_t width;
    int32_t fill = ' ';
    MF_TRY(need_int(run, what, arg[0], 0, &width));
    if (arg[1].type != JINJA_MISSING) {
        const jinja_str *f;
        size_t pos = 0;
        MF_TRY(need_str(run, what, arg[1], &f));
        fill = f->size ? jinja_next_char(f->data, f->size, &pos) : 0;
        if (!f->size || pos != f->size) {
            return jinja_fail(run, MF_ERR_INVALID, "%s: the fill character must be exactly one character long", what);
        }
    }
    int64_t missing = width - jinja_str_chars(s);
    if (missing <= 0) {
        *out = self;
        return MF_OK;
    }
    /* center puts the odd blank on the left when the width is odd. */
    int64_t left = side < 0 ? 0 : side > 0 ? missing : missing / 2 + (missing & width & 1);
    jinja_text text = { 0 };
    MF_TRY(jinja_text_fill(run, &text, fill, left));
    MF_TRY(jinja_text_append(run, &text, s->data, s->size));
    MF_TRY(jinja_text_fill(run, &text, fill, missing - left));
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, s, out);
}

METHOD(str_center)
{
    return pad(run, "center", self, args, 0, out);
}

METHOD(str_ljust)
{
    return pad(run, "ljust", self, args, -1, out);
}

METHOD(str_rjust)
{
    return pad(run, "rjust", self, args, 1, out);
}

METHOD(str_zfill)
{
    BIND("zfill", "width/");
    jinja_str *s = self.as.s;
    int64_t width;
    MF_TRY(need_int(run, "zfill", arg[0], 0, &width));
    int64_t missing = width - jinja_str_chars(s);
    size_t sign = s->size && (s->data[0] == '-' || s->data[0] == '+');
    jinja_text text = { 0 };
    MF_TRY(jinja_text_append(run, &text, s->data, sign));
    MF_TRY(jinja_text_fill(run, &text, '0', missing));
    MF_TRY(jinja_text_append(run, &text, s->data + sign, s->size - sign));
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, s, out);
}

METHOD(str_expandtabs)
{
    BIND("expandtabs", "tabsize?");
    const jinja_str *s = self.as.s;
    int64_t size;
    int64_t column = 0;
    jinja_text text = { 0 };
    MF_TRY(need_int(run, "expandtabs", arg[0], 8, &size));
    for (size_t pos = 0; pos < s->size;) {
        size_t start = pos;
        int32_t c = jinja_next_char(s->data, s->size, &pos);
        if (c == '\t') {
            int64_t n = size > 0 ? size - column % size : 0;
            MF_TRY(jinja_text_fill(run, &text, ' ', n));
            column += n;
        } else {
            MF_TRY(jinja_text_append(run, &text, s->data + start, pos - start));
            column = c == '\n' || c == '\r' ? 0 : column + 1;
        }
    }
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, s, out);
}

METHOD(str_format)
{
    return jinja_str_format(run, self, args, out);
}

/* ---- questions ---------------------------------------------------------------------------------------------------- */

static bool is_alnum(int32_t c)
{
    return jinja_is_alpha(c) || jinja_is_numeric(c);
}

static bool is_ascii(int32_t c)
{
    return c < 0x80;
}

/* true when every character has the property; `empty` for the empty text. */
static mf_status all_chars(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, bool (*has)(int32_t),
                           bool empty, jinja_value *out)
{
    BIND(what, "");
    const jinja_str *s = self.as.s;
    bool all = s->size > 0 || empty;
    MF_TRY(jinja_step_bytes(run, s->size));
    for (size_t pos = 0; all && pos < s->size;) {
        all = has(jinja_next_char(s->data, s->size, &pos));
    }
    *out = jinja_bool(all);
    return MF_OK;
}

METHOD(str_isdigit)
{
    return all_chars(run, "isdigit", self, args, jinja_is_digit, false, out);
}

METHOD(str_isdecimal)
{
    return all_chars(run, "isdecimal", self, args, jinja_is_decimal, false, out);
}

METHOD(str_isnumeric)
{
    return all_chars(run, "isnumeric", self, args, jinja_is_numeric, false, out);
}

METHOD(str_isalpha)
{
    return all_chars(run, "isalpha", self, args, jinja_is_alpha, false, out);
}

METHOD(str_isalnum)
{
    return all_chars(run, "isalnum", self, args, is_alnum, false, out);
}

METHOD(str_isspace)
{
    return all_chars(run, "isspace", self, args, jinja_is_space, false, out);
}

METHOD(str_isascii)
{
    return all_chars(run, "isascii", self, args, is_ascii, true, out);
}

METHOD(str_isprintable)
{
    return all_chars(run, "isprintable", self, args, jinja_is_printable, true, out);
}

METHOD(str_isidentifier)
{
    const jinja_str *s = self.as.s;
    MF_TRY(all_chars(run, "isidentifier", self, args, jinja_is_name, false, out));
    size_t pos = 0;
    int32_t first = s->size ? jinja_next_char(s->data, s->size, &pos) : 0;
    out->as.b = out->as.b && (first == '_' || jinja_is_alpha(first));
    return MF_OK;
}

static mf_status one_case(jinja_run *run, const char *what, jinja_value self, const jinja_args *args,
                          bool (*wanted)(int32_t), bool (*other)(int32_t), jinja_value *out)
{
    BIND(what, "");
    const jinja_str *s = self.as.s;
    bool any = false;
    MF_TRY(jinja_step_bytes(run, s->size));
    for (size_t pos = 0; pos < s->size;) {
        int32_t c = jinja_next_char(s->data, s->size, &pos);
        if (other(c) || jinja_is_title(c)) {
            *out = jinja_bool(false);
            return MF_OK;
        }
        any |= wanted(c);
    }
    *out = jinja_bool(any);
    return MF_OK;
}

METHOD(str_islower)
{
    return one_case(run, "islower", self, args, jinja_is_lower, jinja_is_upper, out);
}

METHOD(str_isupper)
{
    return one_case(run, "isupper", self, args, jinja_is_upper, jinja_is_lower, out);
}

METHOD(str_istitle)
{
    BIND("istitle", "");
    const jinja_str *s = self.as.s;
    bool cased_before = false;
    bool any = false;
    bool good = true;
    MF_TRY(jinja_step_bytes(run, s->size));
    for (size_t pos = 0; good && pos < s->size;) {
        int32_t c = jinja_next_char(s->data, s->size, &pos);
        if (jinja_is_upper(c) || jinja_is_title(c)) {
            good = !cased_before;
            cased_before = any = true;
        } else if (jinja_is_lower(c)) {
            good = cased_before;
            cased_before = any = true;
        } else {
            cased_before = false;
        }
    }
    *out = jinja_bool(good && any);
    return MF_OK;
}

const jinja_builtin *jinja_str_method_find(const char *name, size_t size)
{
    static const jinja_builtin table[] = {
        { "strip", str_strip }, { "lstrip", str_lstrip }, { "rstrip", str_rstrip }, { "lower", str_lower },
        { "upper", str_upper }, { "title", str_title }, { "capitalize", str_capitalize }, { "format", str_format }, { "swapcase", str_swapcase }, { "casefold", str_casefold },
        { "center", str_center }, { "ljust", str_ljust }, { "rjust", str_rjust }, { "zfill", str_zfill },
        { "expandtabs", str_expandtabs }, { "isdigit", str_isdigit }, { "isdecimal", str_isdecimal },
        { "isnumeric", str_isnumeric }, { "isalpha", str_isalpha }, { "isalnum", str_isalnum },
        { "isspace", str_isspace }, { "isascii", str_isascii }, { "isprintable", str_isprintable },
        { "isidentifier", str_isidentifier }, { "islower", str_islower }, { "isupper", str_isupper },
        { "istitle", str_istitle }, { "encode", NULL }, { "format_map", NULL }, { "maketrans", NULL },
        { "translate", NULL },
    };
    const jinja_builtin *found = jinja_builtin_find(table, sizeof table / sizeof *table, name, size);
    return found ? found : jinja_str_search_find(name, size);
}
