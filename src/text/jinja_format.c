/* jinja_format.c - "..." % values and "...".format(values), the two ways of Python to fill in a text. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/jinja_text.h"
#include "text/jinja_value.h"

enum { MAX_PRECISION = 500, NUMBER_BYTES = 400 + MAX_PRECISION };

/* What stands between % and the letter, or behind the colon. */
typedef struct spec {
    int32_t fill;
    char align; /* < > ^ =, or 0 */
    char sign;  /* + - space, or 0 */
    bool alternate;
    char grouping; /* , _ or 0 */
    int64_t width, precision; /* -1 = none */
    char type;                /* 0 = none */
} spec;

static mf_status bad_spec(jinja_run *run, const char *why)
{
    return jinja_fail(run, MF_ERR_INVALID, "format: %s", why);
}

/* Writes sign, prefix and digits, padded. */
static mf_status put_padded(jinja_run *run, jinja_text *text, const spec *sp, const char *prefix, const char *body,
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

static mf_status put_text(jinja_run *run, jinja_text *text, const spec *sp, jinja_value str)
{
    if (sp->precision >= 0) {
        MF_TRY(jinja_slice(run, str, jinja_none(), jinja_int(sp->precision), jinja_none(), &str));
    }
    return put_padded(run, text, sp, "", str.as.s->data, str.as.s->size, jinja_str_chars(str.as.s), '<');
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

static mf_status put_number(jinja_run *run, jinja_text *text, const spec *sp, bool negative, const char *base,
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
    return put_padded(run, text, sp, prefix, digits, size, (int64_t)size, '>');
}

static mf_status put_int(jinja_run *run, jinja_text *text, const spec *sp, int64_t value)
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
        strcat(digits, ".0");
    }
}

static mf_status put_float(jinja_run *run, jinja_text *text, const spec *sp, double f)
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
        strcat(digits, "%");
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

static mf_status convert(jinja_run *run, jinja_value v, char conversion, jinja_value *out)
{
    jinja_text text = { 0 };
    switch (conversion) {
    case 's': return jinja_to_str(run, v, out);
    case 'r':
        MF_TRY(jinja_append_repr(run, &text, v));
        return jinja_str_text(run, &text, out);
    case 'a': return ascii_repr(run, v, out);
    default: return bad_spec(run, "unknown conversion");
    }
}

/* ---- format % values ---------------------------------------------------------------------------------------------- */

typedef struct percent {
    const jinja_str *format;
    size_t pos;
    jinja_value values;
    size_t used;  /* of a tuple's items; of a single value 0 or 1 */
    bool mapping; /* values may be looked up by name, and need not be used up */
} percent;

static mf_status next_value(jinja_run *run, percent *p, jinja_value *out)
{
    bool tuple = p->values.type == JINJA_TUPLE;
    size_t count = tuple ? p->values.as.l->count : 1;
    if (p->used >= count) {
        return bad_spec(run, "not enough arguments for format string");
    }
    *out = tuple ? p->values.as.l->items[p->used] : p->values;
    p->used++;
    return MF_OK;
}

static char peek(const percent *p)
{
    return p->pos < p->format->size ? p->format->data[p->pos] : '\0';
}

static mf_status read_count(jinja_run *run, percent *p, int64_t *out)
{
    *out = 0;
    if (peek(p) == '*') {
        jinja_value v;
        p->pos++;
        MF_TRY(next_value(run, p, &v));
        return v.type == JINJA_INT || v.type == JINJA_BOOL ? (jinja_as_int(v, out), MF_OK) : bad_spec(run, "* wants int");
    }
    while (peek(p) >= '0' && peek(p) <= '9') {
        *out = *out * 10 + (p->format->data[p->pos++] - '0');
        if (*out > 1000000000) {
            return bad_spec(run, "width too big");
        }
    }
    return MF_OK;
}

static mf_status put_char(jinja_run *run, jinja_text *text, const spec *sp, jinja_value v)
{
    int64_t code;
    if (jinja_as_int(v, &code)) {
        jinja_text one = { 0 };
        if (code < 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
            return bad_spec(run, "%c arg not in range");
        }
        MF_TRY(jinja_text_char(run, &one, (int32_t)code));
        MF_TRY(jinja_str_text(run, &one, &v));
    }
    if (v.type != JINJA_STR || jinja_str_chars(v.as.s) != 1) {
        return bad_spec(run, "%c requires int or char");
    }
    return put_padded(run, text, sp, "", v.as.s->data, v.as.s->size, 1, '>');
}

static mf_status put_percent(jinja_run *run, jinja_text *text, spec *sp, jinja_value v, bool zeros)
{
    int64_t i;
    sp->align = sp->align ? sp->align : '>';
    bool pad_zeros = zeros && sp->align == '>';
    switch (sp->type) {
    case 's':
    case 'r':
    case 'a': {
        jinja_value str;
        MF_TRY(convert(run, v, sp->type, &str));
        return put_text(run, text, sp, str);
    }
    case 'c': return put_char(run, text, sp, v);
    default: break;
    }
    if (pad_zeros) {
        sp->fill = '0';
        sp->align = '=';
    }
    if (strchr("eEfFgG", sp->type)) {
        if (!jinja_is_number(v)) {
            return jinja_fail(run, MF_ERR_INVALID, "format: must be real number, not %s", jinja_type_name(v));
        }
        return put_float(run, text, sp, v.type == JINJA_FLOAT ? v.as.f : jinja_as_int(v, &i) ? (double)i : 0);
    }
    if (!strchr("diuoxX", sp->type)) {
        return jinja_fail(run, MF_ERR_INVALID, "format: unsupported format character '%c'", sp->type);
    }
    bool decimal = strchr("diu", sp->type) != NULL;
    if (decimal && v.type == JINJA_FLOAT && !isnan(v.as.f)) {
        if (!(v.as.f >= -0x1p63 && v.as.f < 0x1p63)) {
            return jinja_fail(run, MF_ERR_INVALID, "a float does not fit an integer of 64 bits");
        }
        v = jinja_int((int64_t)v.as.f);
    }
    if (!jinja_as_int(v, &i)) {
        return jinja_fail(run, MF_ERR_INVALID, "format: %%%c wants a number, not %s", sp->type, jinja_type_name(v));
    }
    if (sp->precision > 0) { /* at least so many digits */
        jinja_text digits = { 0 };
        spec inner = { .fill = '0', .align = '=', .width = sp->precision, .type = decimal ? 'd' : sp->type };
        int64_t magnitude = i < 0 && i > INT64_MIN ? -i : i;
        const char *base = sp->alternate && !decimal ? (sp->type == 'o' ? "0o" : sp->type == 'x' ? "0x" : "0X") : "";
        char prefix[8];
        snprintf(prefix, sizeof prefix, "%s%s", i < 0 ? "-" : sp->sign == '+' ? "+" : sp->sign == ' ' ? " " : "", base);
        MF_TRY(put_int(run, &digits, &inner, magnitude));
        return put_padded(run, text, sp, prefix, digits.data, digits.size, (int64_t)digits.size, '>');
    }
    sp->type = decimal ? 'd' : sp->type;
    return put_int(run, text, sp, i);
}

static mf_status one_percent(jinja_run *run, percent *p, jinja_text *text)
{
    spec sp = { .fill = ' ', .width = -1, .precision = -1 };
    jinja_value v = { .type = JINJA_MISSING };
    bool zeros = false;
    if (peek(p) == '(') {
        size_t start = ++p->pos;
        for (int depth = 1; p->pos < p->format->size; p->pos++) {
            depth += peek(p) == '(' ? 1 : peek(p) == ')' ? -1 : 0;
            if (depth == 0) {
                break;
            }
        }
        if (p->pos >= p->format->size) {
            return bad_spec(run, "incomplete format key");
        }
        jinja_value *found = NULL;
        if (p->values.type == JINJA_DICT) {
            found = jinja_dict_get_text(p->values.as.d, p->format->data + start, p->pos - start);
        }
        if (!found) {
            return bad_spec(run, "requires a mapping that has the key");
        }
        v = *found;
        p->pos++;
    }
    for (const char *flags = "-+ #0"; peek(p) && strchr(flags, peek(p)); p->pos++) {
        char c = peek(p);
        sp.align = c == '-' ? '<' : sp.align;
        sp.sign = c == '+' ? '+' : c == ' ' && sp.sign != '+' ? ' ' : sp.sign;
        sp.alternate |= c == '#';
        zeros |= c == '0';
    }
    MF_TRY(read_count(run, p, &sp.width));
    if (sp.width < 0) { /* from * */
        sp.align = '<';
        sp.width = sp.width < -1000000000 ? 1000000000 : -sp.width;
    }
    if (peek(p) == '.') {
        p->pos++;
        MF_TRY(read_count(run, p, &sp.precision));
        sp.precision = sp.precision < 0 ? 0 : sp.precision;
    }
    p->pos += peek(p) == 'h' || peek(p) == 'l' || peek(p) == 'L';
    sp.type = peek(p);
    p->pos++;
    if (sp.type == '\0' || p->pos > p->format->size) {
        return bad_spec(run, "incomplete format");
    }
    if (sp.type == '%') {
        return jinja_text_puts(run, text, "%");
    }
    bool is_text = sp.type == 's' || sp.type == 'r' || sp.type == 'a';
    if (sp.precision > MAX_PRECISION && !is_text) {
        return bad_spec(run, "precision too large");
    }
    if (v.type == JINJA_MISSING) {
        MF_TRY(next_value(run, p, &v));
    }
    return put_percent(run, text, &sp, v, zeros);
}

mf_status jinja_percent(jinja_run *run, jinja_value format, jinja_value args, jinja_value *out)
{
    percent p = { .format = format.as.s, .values = args };
    jinja_text text = { 0 };
    p.mapping = args.type == JINJA_DICT || args.type == JINJA_LIST || args.type == JINJA_UNDEFINED ||
                args.type == JINJA_RANGE;
    MF_TRY(jinja_step_bytes(run, p.format->size));
    while (p.pos < p.format->size) {
        const char *start = p.format->data + p.pos;
        const char *sign = memchr(start, '%', p.format->size - p.pos);
        size_t n = sign ? (size_t)(sign - start) : p.format->size - p.pos;
        MF_TRY(jinja_text_append(run, &text, start, n));
        p.pos += n;
        if (sign) {
            p.pos++;
            MF_TRY(jinja_step(run, 1));
            MF_TRY(one_percent(run, &p, &text));
        }
    }
    size_t count = args.type == JINJA_TUPLE ? args.as.l->count : p.mapping ? 0 : 1;
    if (p.used < count) {
        return bad_spec(run, "not all arguments converted during string formatting");
    }
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, p.format, out);
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
            return bad_spec(run, "too many decimal digits in format string");
        }
    }
    return MF_OK;
}

static bool is_align(const jinja_str *s, size_t pos)
{
    return pos < s->size && s->data[pos] && strchr("<>^=", s->data[pos]);
}

static mf_status read_spec(jinja_run *run, const jinja_str *s, bool number, spec *sp)
{
    size_t pos = 0;
    size_t after = 0;
    *sp = (spec){ .fill = ' ', .width = -1, .precision = -1 };
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
            return bad_spec(run, "format specifier missing precision");
        }
    }
    if (pos < s->size) {
        sp->type = s->data[pos++];
    }
    return pos == s->size && (sp->type == 0 || strchr("bcdeEfFgGosxX%", sp->type)) ? MF_OK
                                                                                    : bad_spec(run, "invalid format specifier");
}

static mf_status format_number(jinja_run *run, jinja_text *text, const spec *sp, jinja_value v)
{
    int64_t i = 0;
    bool whole = jinja_as_int(v, &i);
    bool as_float = !whole || (sp->type && strchr("eEfFgG%", sp->type));
    if (sp->precision > MAX_PRECISION) {
        return bad_spec(run, "precision too big");
    }
    if (as_float) {
        if (sp->type && !strchr("eEfFgG%", sp->type)) {
            return bad_spec(run, "unknown format code for a float");
        }
        return put_float(run, text, sp, whole ? (double)i : v.as.f);
    }
    if (sp->precision >= 0) {
        return bad_spec(run, "precision not allowed in integer format specifier");
    }
    if (sp->type == 'c') {
        return sp->sign || sp->alternate ? bad_spec(run, "sign not allowed with 'c'") : put_char(run, text, sp, v);
    }
    if (sp->type == 's' || (sp->grouping == ',' && sp->type && sp->type != 'd')) {
        return bad_spec(run, "unknown format code for an integer");
    }
    return put_int(run, text, sp, i);
}

static mf_status format_value(jinja_run *run, jinja_text *text, jinja_value v, const jinja_str *s)
{
    spec sp;
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
        return bad_spec(run, "format specifier not allowed for a string");
    }
    return put_text(run, text, &sp, v);
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
            return bad_spec(run, "cannot switch from manual field specification to automatic field numbering");
        }
        index = f->next_auto++;
        digits = true;
    } else if (digits && whole) {
        if (f->next_auto > 0) {
            return bad_spec(run, "cannot switch from automatic field numbering to manual field specification");
        }
        f->next_auto = -1;
    }
    if (digits) {
        if ((size_t)index >= f->args->num_pos) {
            return bad_spec(run, "replacement index out of range for positional args tuple");
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
            return bad_spec(run, "only '.' or '[' may follow ']' in format field specifier");
        }
        pos = start;
        while (pos < size && (item ? name[pos] != ']' : name[pos] != '.' && name[pos] != '[')) {
            pos++;
        }
        if (pos == start || (item && pos == size)) {
            return bad_spec(run, "empty attribute in format string");
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
    bool bracket = false;
    while (p < size && data[p] != '}' && (bracket || (data[p] != '!' && data[p] != ':'))) {
        if (data[p] == '{') {
            return bad_spec(run, "unexpected '{' in field name");
        }
        bracket = data[p] == '[' || (bracket && data[p] != ']');
        p++;
    }
    size_t name_end = p;
    char conversion = 0;
    if (p < size && data[p] == '!') {
        conversion = p + 1 < size ? data[p + 1] : '\0';
        p += 2;
        if (p >= size || (data[p] != ':' && data[p] != '}')) {
            return bad_spec(run, "expected ':' after conversion specifier");
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
        return bad_spec(run, "expected '}' before end of string");
    }
    jinja_value v;
    jinja_text spec_text = { 0 };
    jinja_value spec_value;
    MF_TRY(field_value(run, f, data + start, name_end - start, &v));
    if (conversion) {
        MF_TRY(convert(run, v, conversion, &v));
    }
    MF_TRY(format_text(run, f, data + spec_start, p - spec_start, depth - 1, &spec_text));
    MF_TRY(jinja_str_text(run, &spec_text, &spec_value));
    *pos = p + 1;
    return format_value(run, text, v, spec_value.as.s);
}

static mf_status format_text(jinja_run *run, formatter *f, const char *data, size_t size, int depth, jinja_text *text)
{
    if (depth < 0) {
        return bad_spec(run, "max string recursion exceeded");
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
            return bad_spec(run, "single '}' encountered in format string");
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
