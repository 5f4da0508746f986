/* jinja_percent.c - "..." % values: Python's printf. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/jinja_format.h"
#include "text/jinja_value.h"

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
        return jinja_bad_spec(run, "not enough arguments for format string");
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
        return v.type == JINJA_INT || v.type == JINJA_BOOL ? (jinja_as_int(v, out), MF_OK) : jinja_bad_spec(run, "* wants int");
    }
    while (peek(p) >= '0' && peek(p) <= '9') {
        *out = *out * 10 + (p->format->data[p->pos++] - '0');
        if (*out > 1000000000) {
            return jinja_bad_spec(run, "width too big");
        }
    }
    return MF_OK;
}

static mf_status put_percent(jinja_run *run, jinja_text *text, jinja_spec *sp, jinja_value v, bool zeros)
{
    int64_t i;
    sp->align = sp->align ? sp->align : '>';
    bool pad_zeros = zeros && sp->align == '>';
    switch (sp->type) {
    case 's':
    case 'r':
    case 'a': {
        jinja_value str;
        MF_TRY(jinja_convert(run, v, sp->type, &str));
        return jinja_put_text(run, text, sp, str);
    }
    case 'c': return jinja_put_char(run, text, sp, v);
    default: break;
    }
    if (pad_zeros) {
        sp->fill = '0';
        sp->align = '=';
    }
    if (sp->type && strchr("eEfFgG", sp->type)) {
        if (!jinja_is_number(v)) {
            return jinja_fail(run, MF_ERR_INVALID, "format: must be real number, not %s", jinja_type_name(v));
        }
        return jinja_put_float(run, text, sp, v.type == JINJA_FLOAT ? v.as.f : jinja_as_int(v, &i) ? (double)i : 0);
    }
    if (!sp->type || !strchr("diuoxX", sp->type)) {
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
        jinja_spec inner = { .fill = '0', .align = '=', .width = sp->precision, .type = decimal ? 'd' : sp->type };
        int64_t magnitude = i < 0 && i > INT64_MIN ? -i : i;
        const char *base = sp->alternate && !decimal ? (sp->type == 'o' ? "0o" : sp->type == 'x' ? "0x" : "0X") : "";
        char prefix[8];
        snprintf(prefix, sizeof prefix, "%s%s", i < 0 ? "-" : sp->sign == '+' ? "+" : sp->sign == ' ' ? " " : "", base);
        MF_TRY(jinja_put_int(run, &digits, &inner, magnitude));
        return jinja_put_padded(run, text, sp, prefix, digits.data, digits.size, (int64_t)digits.size, '>');
    }
    sp->type = decimal ? 'd' : sp->type;
    return jinja_put_int(run, text, sp, i);
}

static mf_status one_percent(jinja_run *run, percent *p, jinja_text *text)
{
    jinja_spec sp = { .fill = ' ', .width = -1, .precision = -1 };
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
            return jinja_bad_spec(run, "incomplete format key");
        }
        jinja_value *found = NULL;
        if (p->values.type == JINJA_DICT) {
            found = jinja_dict_get_text(p->values.as.d, p->format->data + start, p->pos - start);
        }
        if (!found) {
            return jinja_bad_spec(run, "requires a mapping that has the key");
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
        return jinja_bad_spec(run, "incomplete format");
    }
    if (sp.type == '%') {
        return jinja_text_puts(run, text, "%");
    }
    bool is_text = sp.type == 's' || sp.type == 'r' || sp.type == 'a';
    if (sp.precision > JINJA_MAX_PRECISION && !is_text) {
        return jinja_bad_spec(run, "precision too large");
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
        return jinja_bad_spec(run, "not all arguments converted during string formatting");
    }
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, p.format, out);
}
