/* jinja_format.c - numbers and texts in a given width, and "...".format(values).  "..." % values is in jinja_percent.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/jinja_format.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

enum { NUMBER_BYTES = 400 + JINJA_MAX_PRECISION };

mf_status jinja_bad_spec(jinja_run *run, const char *why)
{
    return jinja_fail(run, MF_ERR_INVALID, "format: %s", why);
}

/* Writes sign, prefix and digits, padded. */
mf_status jinja_put_padded(jinja_run *run, jinja_text *text, const jinja_spec *sp, const char *prefix, const char *body,
                            size_t size, int64_t chars, char default_align)
{
    char align = sp->align ? sp->align : default_align;
    int64_t missing = sp->width - chars - (int64_t)strlen(prefix);
    missing = missing < 0 ? 0 : missing;
    int64_t left = align == '>' ? missing : align == '^' ? missing / 2 : 0;
    MF_TRY(jinja_text_fill(run, text, sp->fill, left));
    MF_TRY(jinja_text_puts(run, text, prefix));
    if (align == '=') {
        MF_TRY(jinja_text_fill(run, text, sp->fill, missing));
        missing = 0;
    }
    MF_TRY(jinja_step_bytes(run, size));
    MF_TRY(jinja_text_append(run, text, body, size));
    return jinja_text_fill(run, text, sp->fill, missing - left);
}

mf_status jinja_put_text(jinja_run *run, jinja_text *text, const jinja_spec *sp, jinja_value str)
{
    if (sp->precision >= 0) {
        MF_TRY(jinja_slice(run, str, jinja_none(), jinja_int(sp->precision), jinja_none(), &str));
    }
    return jinja_put_padded(run, text, sp, "", str.as.s->data, str.as.s->size, jinja_str_chars(str.as.s), '<');
}

/* Groups the integer part of a number's digits by `every`. */
static void group_digits(char *digits, size_t capacity, char separator, int every)
{
    size_t whole = strcspn(digits, ".e");
    size_t n = strlen(digits);
    for (size_t at = whole; at > (size_t)every; at -= (size_t)every) {
        size_t cut = at - (size_t)every;
        if (n + 2 > capacity) {
            return;
        }
        memmove(digits + cut + 1, digits + cut, n - cut + 1);
        digits[cut] = separator;
        n++;
    }
}

static mf_status put_number(jinja_run *run, jinja_text *text, const jinja_spec *sp, bool negative, const char *base,
                            char *digits, size_t capacity)
{
    char prefix[8];
    const char *sign = negative ? "-" : sp->sign == '+' ? "+" : sp->sign == ' ' ? " " : "";
    snprintf(prefix, sizeof prefix, "%s%s", sign, base);
    if (sp->grouping) {
        if (sp->fill == '0' && sp->align == '=' && sp->width > 0) {
            return jinja_fail(run, MF_ERR_UNSUPPORTED, "format: padding with zeros and separators at once");
        }
        bool by_four = sp->type == 'x' || sp->type == 'X' || sp->type == 'o' || sp->type == 'b';
        group_digits(digits, capacity, sp->grouping, by_four ? 4 : 3);
    }
    size_t size = strlen(digits);
    return jinja_put_padded(run, text, sp, prefix, digits, size, (int64_t)size, '>');
}

mf_status jinja_put_int(jinja_run *run, jinja_text *text, const jinja_spec *sp, int64_t value)
{
    char digits[NUMBER_BYTES];
    uint64_t u = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    const char *base = "";
    switch (sp->type) {
    case 'x': snprintf(digits, sizeof digits, "%llx", (unsigned long long)u); base = "0x"; break;
    case 'X': snprintf(digits, sizeof digits, "%llX", (unsigned long long)u); base = "0X"; break;
    case 'o': snprintf(digits, sizeof digits, "%llo", (unsigned long long)u); base = "0o"; break;
    case 'b': {
        size_t n = 0;
        int top = u ? 63 - __builtin_clzll(u) : 0;
        for (int bit = top; bit >= 0; bit--) {
            digits[n++] = (char)('0' + (u >> bit & 1));
        }
        digits[n] = '\0';
        base = "0b";
        break;
    }
    default: snprintf(digits, sizeof digits, "%llu", (unsigned long long)u); break;
    }
    return put_number(run, text, sp, value < 0, sp->alternate ? base : "", digits, sizeof digits);
}

/* Appends as much of `tail` as there is room for. */
static void append(char *text, size_t capacity, const char *tail)
{
    size_t n = strlen(text);
    snprintf(text + n, capacity - n, "%s", tail);
}

/* No letter, but a precision: as g, and always with a point or an exponent. */
static void general(double f, int precision, char *digits, size_t capacity)
{
    precision = precision ? precision : 1;
    snprintf(digits, capacity, "%.*e", precision - 1, f);
    const char *e = strchr(digits, 'e');
    int exponent = 0;
    if (e) {
        sscanf(e + 1, "%d", &exponent);
    }
    if (exponent >= precision - 1 && exponent >= 0 && precision - 1 < exponent + 1 && exponent + 1 > precision - 1) {
        /* scientific, without trailing zeros */
        char mantissa[NUMBER_BYTES];
        size_t n = (size_t)(e - digits);
        memcpy(mantissa, digits, n);
        while (n > 1 && mantissa[n - 1] == '0') {
            n--;
        }
        n -= n > 1 && mantissa[n - 1] == '.';
        snprintf(digits, capacity, "%.*se%+03d", (int)n, mantissa, exponent);
        return;
    }
    snprintf(digits, capacity, "%.*g", precision, f);
    if (!strpbrk(digits, ".e")) {
        append(digits, capacity, ".0");
    }
}

mf_status jinja_put_float(jinja_run *run, jinja_text *text, const jinja_spec *sp, double f)
{
    char digits[NUMBER_BYTES];
    bool negative = signbit(f) && !isnan(f);
    bool percent = sp->type == '%';
    bool upper = sp->type == 'E' || sp->type == 'F' || sp->type == 'G';
    int precision = (int)(sp->precision >= 0 ? sp->precision : 6);
    f = fabs(percent ? f * 100 : f);
    if (!isfinite(f)) {
        snprintf(digits, sizeof digits, "%s%s", isnan(f) ? (upper ? "NAN" : "nan") : upper ? "INF" : "inf",
                 percent ? "%" : "");
        return put_number(run, text, sp, negative, "", digits, sizeof digits);
    }
    const char *alt = sp->alternate ? "#" : "";
    if (sp->type == 0) {
        if (sp->precision < 0) {
            char shortest[JINJA_FLOAT_BYTES];
            size_t n = jinja_float_repr(f, shortest);
            memcpy(digits, shortest, n);
            digits[n] = '\0';
        } else {
            general(f, precision, digits, sizeof digits);
        }
    } else {
        char format[8];
        snprintf(format, sizeof format, "%%%s.*%c", alt, percent ? 'f' : sp->type);
        snprintf(digits, sizeof digits - 1, format, precision, f);
    }
    if (percent) {
        append(digits, sizeof digits, "%");
    }
    return put_number(run, text, sp, negative, "", digits, sizeof digits);
}

/* Escapes what is not ASCII, as ascii() does. */
static mf_status ascii_repr(jinja_run *run, jinja_value v, jinja_value *out)
{
    jinja_text raw = { 0 };
    jinja_text text = { 0 };
    MF_TRY(jinja_append_repr(run, &raw, v));
    MF_TRY(jinja_step_bytes(run, raw.size));
    for (size_t i = 0; i < raw.size;) {
        char escape[12];
        int32_t c = jinja_next_char(raw.data, raw.size, &i);
        snprintf(escape, sizeof escape, c < 0x80 ? "%c" : c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x",
                 (unsigned)c);
        MF_TRY(jinja_text_puts(run, &text, escape));
    }
    return jinja_str_text(run, &text, out);
}

mf_status jinja_convert(jinja_run *run, jinja_value v, char conversion, jinja_value *out)
{
    jinja_text text = { 0 };
    switch (conversion) {
    case 's': return jinja_to_str(run, v, out);
    case 'r':
        MF_TRY(jinja_append_repr(run, &text, v));
        return jinja_str_text(run, &text, out);
    case 'a': return ascii_repr(run, v, out);
    default: return jinja_bad_spec(run, "unknown conversion");
    }
}

mf_status jinja_put_char(jinja_run *run, jinja_text *text, const jinja_spec *sp, jinja_value v)
{
    int64_t code;
    if (jinja_as_int(v, &code)) {
        jinja_text one = { 0 };
        if (code < 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
            return jinja_bad_spec(run, "%c arg not in range");
        }
        MF_TRY(jinja_text_char(run, &one, (int32_t)code));
        MF_TRY(jinja_str_text(run, &one, &v));
    }
    if (v.type != JINJA_STR || jinja_str_chars(v.as.s) != 1) {
        return jinja_bad_spec(run, "%c requires int or char");
    }
    return jinja_put_padded(run, text, sp, "", v.as.s->data, v.as.s->size, 1, '>');
}

/* ---- format(value, spec) ------------------------------------------------------------------------------------------ */

static mf_status read_digits(jinja_run *run, const jinja_str *s, size_t *pos, int64_t *out)
{
    if (*pos < s->size && s->data[*pos] >= '0' && s->data[*pos] <= '9') {
        *out = 0;
    }
    for (; *pos < s->size && s->data[*pos] >= '0' && s->data[*pos] <= '9'; (*pos)++) {
        *out = *out * 10 + (s->data[*pos] - '0');
        if (*out > 1000000000) {
            return jinja_bad_spec(run, "too many decimal digits in format string");
        }
    }
    return MF_OK;
}

static bool is_align(const jinja_str *s, size_t pos)
{
    return pos < s->size && s->data[pos] && strchr("<>^=", s->data[pos]);
}

static mf_status read_spec(jinja_run *run, const jinja_str *s, bool number, jinja_spec *sp)
{
    size_t pos = 0;
    size_t after = 0;
    *sp = (jinja_spec){ .fill = ' ', .width = -1, .precision = -1 };
    int32_t first = s->size ? jinja_next_char(s->data, s->size, &after) : 0;
    if (s->size && is_align(s, after)) {
        sp->fill = first;
        sp->align = s->data[after];
        pos = after + 1;
    } else if (is_align(s, 0)) {
        sp->align = s->data[pos++];
    }
    if (pos < s->size && s->data[pos] && strchr("+- ", s->data[pos])) {
        sp->sign = s->data[pos++];
    }
    if (pos < s->size && s->data[pos] == '#') {
        sp->alternate = true;
        pos++;
    }
    if (pos < s->size && s->data[pos] == '0') {
        bool filled = sp->align && is_align(s, after);
        sp->fill = filled ? sp->fill : '0';
        sp->align = sp->align ? sp->align : number ? '=' : 0;
        pos++;
    }
    MF_TRY(read_digits(run, s, &pos, &sp->width));
    if (pos < s->size && (s->data[pos] == ',' || s->data[pos] == '_')) {
        sp->grouping = s->data[pos++];
    }
    if (pos < s->size && s->data[pos] == '.') {
        pos++;
        MF_TRY(read_digits(run, s, &pos, &sp->precision));
        if (sp->precision < 0) {
            return jinja_bad_spec(run, "format specifier missing precision");
        }
    }
    if (pos < s->size) {
        sp->type = s->data[pos++];
    }
    return pos == s->size && (sp->type == 0 || strchr("bcdeEfFgGosxX%", sp->type)) ? MF_OK
                                                                                    : jinja_bad_spec(run, "invalid format specifier");
}

static mf_status format_number(jinja_run *run, jinja_text *text, const jinja_spec *sp, jinja_value v)
{
    int64_t i = 0;
    bool whole = jinja_as_int(v, &i);
    bool as_float = !whole || (sp->type && strchr("eEfFgG%", sp->type));
    if (sp->precision > JINJA_MAX_PRECISION) {
        return jinja_bad_spec(run, "precision too big");
    }
    if (as_float) {
        if (sp->type && !strchr("eEfFgG%", sp->type)) {
            return jinja_bad_spec(run, "unknown format code for a float");
        }
        return jinja_put_float(run, text, sp, whole ? (double)i : v.as.f);
    }
    if (sp->precision >= 0) {
        return jinja_bad_spec(run, "precision not allowed in integer format specifier");
    }
    if (sp->type == 'c') {
        return sp->sign || sp->alternate ? jinja_bad_spec(run, "sign not allowed with 'c'") : jinja_put_char(run, text, sp, v);
    }
    if (sp->type == 's' || (sp->grouping == ',' && sp->type && sp->type != 'd')) {
        return jinja_bad_spec(run, "unknown format code for an integer");
    }
    return jinja_put_int(run, text, sp, i);
}

static mf_status format_value(jinja_run *run, jinja_text *text, jinja_value v, const jinja_str *s)
{
    jinja_spec sp;
    if (s->size == 0) {
        return jinja_append_str(run, text, v);
    }
    if (v.type != JINJA_STR && !jinja_is_number(v)) {
        return jinja_fail(run, MF_ERR_INVALID, "format: unsupported format string for %s", jinja_type_name(v));
    }
    MF_TRY(read_spec(run, s, v.type != JINJA_STR, &sp));
    if (v.type != JINJA_STR) {
        return format_number(run, text, &sp, v);
    }
    if (sp.sign || sp.alternate || sp.grouping || sp.align == '=' || (sp.type && sp.type != 's')) {
        return jinja_bad_spec(run, "format specifier not allowed for a string");
    }
    return jinja_put_text(run, text, &sp, v);
}

/* ---- "...".format(...) -------------------------------------------------------------------------------------------- */

typedef struct formatter {
    const jinja_args *args;
    int64_t next_auto; /* -1: fields are numbered by hand */
} formatter;

static mf_status first_value(jinja_run *run, formatter *f, const char *name, size_t size, bool whole, jinja_value *out)
{
    int64_t index = -1;
    bool digits = size > 0 && jinja_parse_int(name, size, 10, &index) == JINJA_PARSED && name[0] >= '0' && name[0] <= '9';
    if (size == 0 && whole) {
        if (f->next_auto < 0) {
            return jinja_bad_spec(run, "cannot switch from manual field specification to automatic field numbering");
        }
        index = f->next_auto++;
        digits = true;
    } else if (digits && whole) {
        if (f->next_auto > 0) {
            return jinja_bad_spec(run, "cannot switch from automatic field numbering to manual field specification");
        }
        f->next_auto = -1;
    }
    if (digits) {
        if ((size_t)index >= f->args->num_pos) {
            return jinja_bad_spec(run, "replacement index out of range for positional args tuple");
        }
        *out = f->args->pos[index];
        return MF_OK;
    }
    for (size_t i = 0; i < f->args->num_kw; i++) {
        const jinja_str *key = f->args->kw_names[i].as.s;
        if (key->size == size && (size == 0 || memcmp(key->data, name, size) == 0)) {
            *out = f->args->kw_values[i];
            return MF_OK;
        }
    }
    return jinja_fail(run, MF_ERR_INVALID, "format: no argument '%.*s'", size > 100 ? 100 : (int)size, name);
}

/* name.attr[item] */
static mf_status field_value(jinja_run *run, formatter *f, const char *name, size_t size, jinja_value *out)
{
    size_t pos = 0;
    while (pos < size && name[pos] != '.' && name[pos] != '[') {
        pos++;
    }
    MF_TRY(first_value(run, f, name, pos, pos == size, out));
    while (pos < size) {
        size_t start = pos + 1;
        bool item = name[pos] == '[';
        if (!item && name[pos] != '.') {
            return jinja_bad_spec(run, "only '.' or '[' may follow ']' in format field specifier");
        }
        pos = start;
        while (pos < size && (item ? name[pos] != ']' : name[pos] != '.' && name[pos] != '[')) {
            pos++;
        }
        if (pos == start || (item && pos == size)) {
            return jinja_bad_spec(run, "empty attribute in format string");
        }
        if (item) {
            int64_t index;
            jinja_value key;
            bool digits = strspn(name + start, "0123456789") >= pos - start;
            if (digits && jinja_parse_int(name + start, pos - start, 10, &index) == JINJA_PARSED) {
                key = jinja_int(index);
            } else {
                MF_TRY(jinja_str_copy(run, name + start, pos - start, &key));
            }
            MF_TRY(jinja_getitem(run, *out, key, out));
            pos++;
        } else {
            MF_TRY(jinja_getattr(run, *out, name + start, pos - start, out));
        }
    }
    return MF_OK;
}

static mf_status format_text(jinja_run *run, formatter *f, const char *data, size_t size, int depth, jinja_text *text);

/* The field that begins behind the brace at data[*pos]. */
static mf_status format_field(jinja_run *run, formatter *f, const char *data, size_t size, size_t *pos, int depth,
                              jinja_text *text)
{
    size_t start = *pos;
    size_t p = start;
    while (p < size && data[p] != '}' && data[p] != '!' && data[p] != ':') {
        if (data[p] == '{') {
            return jinja_bad_spec(run, "unexpected '{' in field name");
        }
        if (data[p] == '[') { /* up to the closing bracket anything goes */
            while (p < size && data[p] != ']') {
                p++;
            }
        } else {
            p++;
        }
    }
    size_t name_end = p;
    char conversion = 0;
    if (p < size && data[p] == '!') {
        conversion = p + 1 < size ? data[p + 1] : '\0';
        p += 2;
        if (p >= size || (data[p] != ':' && data[p] != '}')) {
            return jinja_bad_spec(run, "expected ':' after conversion specifier");
        }
    }
    size_t spec_start = p;
    if (p < size && data[p] == ':') {
        spec_start = ++p;
        for (int nested = 1; p < size; p++) {
            nested += data[p] == '{' ? 1 : data[p] == '}' ? -1 : 0;
            if (nested == 0) {
                break;
            }
        }
    }
    if (p >= size) {
        return jinja_bad_spec(run, "expected '}' before end of string");
    }
    jinja_value v;
    jinja_text spec_text = { 0 };
    jinja_value spec_value;
    MF_TRY(field_value(run, f, data + start, name_end - start, &v));
    if (conversion) {
        MF_TRY(jinja_convert(run, v, conversion, &v));
    }
    MF_TRY(format_text(run, f, data + spec_start, p - spec_start, depth - 1, &spec_text));
    MF_TRY(jinja_str_text(run, &spec_text, &spec_value));
    *pos = p + 1;
    return format_value(run, text, v, spec_value.as.s);
}

static mf_status format_text(jinja_run *run, formatter *f, const char *data, size_t size, int depth, jinja_text *text)
{
    if (depth < 0) {
        return jinja_bad_spec(run, "max string recursion exceeded");
    }
    MF_TRY(jinja_step_bytes(run, size));
    for (size_t pos = 0; pos < size;) {
        char c = data[pos];
        if (c != '{' && c != '}') {
            size_t start = pos;
            while (pos < size && data[pos] != '{' && data[pos] != '}') {
                pos++;
            }
            MF_TRY(jinja_text_append(run, text, data + start, pos - start));
        } else if (pos + 1 < size && data[pos + 1] == c) {
            MF_TRY(jinja_text_append(run, text, data + pos, 1));
            pos += 2;
        } else if (c == '}') {
            return jinja_bad_spec(run, "single '}' encountered in format string");
        } else {
            pos++;
            MF_TRY(format_field(run, f, data, size, &pos, depth, text));
        }
    }
    return MF_OK;
}

mf_status jinja_str_format(jinja_run *run, jinja_value format, const jinja_args *args, jinja_value *out)
{
    formatter f = { .args = args };
    jinja_text text = { 0 };
    MF_TRY(format_text(run, &f, format.as.s->data, format.as.s->size, 2, &text));
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, format.as.s, out);
}
