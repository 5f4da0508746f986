/* jinja_repr.c - str() and repr() of values: what {{ }} prints. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja_eval.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

size_t jinja_float_repr(double f, char out[JINJA_FLOAT_BYTES])
{
    if (isnan(f)) {
        return (size_t)snprintf(out, JINJA_FLOAT_BYTES, "nan");
    }
    if (isinf(f)) {
        return (size_t)snprintf(out, JINJA_FLOAT_BYTES, "%s", f < 0 ? "-inf" : "inf");
    }
    /* The shortest digits that read back: 17 always do. */
    char digits[JINJA_FLOAT_BYTES];
    for (int precision = 0; precision < 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, f);
        if (strtod(digits, NULL) == f) {
            break;
        }
    }
    char *e = strchr(digits, 'e');
    int exponent = (int)strtol(e + 1, NULL, 10);
    char mantissa[24];
    size_t n = 0;
    for (const char *p = digits; p < e; p++) {
        if (isdigit((unsigned char)*p)) {
            mantissa[n++] = *p;
        }
    }
    const char *sign = signbit(f) ? "-" : "";
    if (exponent < -4 || exponent >= 16) {
        if (n == 1) {
            return (size_t)snprintf(out, JINJA_FLOAT_BYTES, "%s%ce%+03d", sign, mantissa[0], exponent);
        }
        return (size_t)snprintf(out, JINJA_FLOAT_BYTES, "%s%c.%.*se%+03d", sign, mantissa[0], (int)n - 1, mantissa + 1,
                                exponent);
    }
    if (exponent < 0) {
        return (size_t)snprintf(out, JINJA_FLOAT_BYTES, "%s0.%.*s%.*s", sign, -exponent - 1, "0000", (int)n, mantissa);
    }
    if ((int)n <= exponent + 1) {
        return (size_t)snprintf(out, JINJA_FLOAT_BYTES, "%s%.*s%.*s.0", sign, (int)n, mantissa, exponent + 1 - (int)n,
                                "0000000000000000");
    }
    return (size_t)snprintf(out, JINJA_FLOAT_BYTES, "%s%.*s.%.*s", sign, exponent + 1, mantissa,
                            (int)n - exponent - 1, mantissa + exponent + 1);
}

static mf_status repr_str(jinja_run *run, jinja_text *text, const jinja_str *s)
{
    MF_TRY(jinja_step_bytes(run, s->size));
    bool has_single = s->size && memchr(s->data, '\'', s->size);
    bool has_double = s->size && memchr(s->data, '"', s->size);
    char quote = has_single && !has_double ? '"' : '\'';
    if (s->markup) {
        MF_TRY(jinja_text_puts(run, text, "Markup("));
    }
    MF_TRY(jinja_text_append(run, text, &quote, 1));
    for (size_t i = 0; i < s->size;) {
        size_t start = i;
        int32_t c = jinja_next_char(s->data, s->size, &i);
        char escape[12];
        if (c == quote || c == '\\') {
            snprintf(escape, sizeof escape, "\\%c", (char)c);
        } else if (c == '\n' || c == '\r' || c == '\t') {
            snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        } else if (jinja_is_printable(c)) {
            MF_TRY(jinja_text_append(run, text, s->data + start, i - start));
            continue;
        } else {
            snprintf(escape, sizeof escape, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
        }
        MF_TRY(jinja_text_puts(run, text, escape));
    }
    MF_TRY(jinja_text_append(run, text, &quote, 1));
    return s->markup ? jinja_text_puts(run, text, ")") : MF_OK;
}

static mf_status repr_value(jinja_run *run, jinja_text *text, jinja_value v, int depth);

static mf_status repr_list(jinja_run *run, jinja_text *text, const jinja_list *list, bool tuple, int depth)
{
    MF_TRY(jinja_text_puts(run, text, tuple ? "(" : "["));
    for (size_t i = 0; i < list->count; i++) {
        if (i) {
            MF_TRY(jinja_text_puts(run, text, ", "));
        }
        MF_TRY(repr_value(run, text, list->items[i], depth + 1));
    }
    return jinja_text_puts(run, text, tuple ? (list->count == 1 ? ",)" : ")") : "]");
}

static mf_status repr_dict(jinja_run *run, jinja_text *text, const jinja_dict *dict, int depth)
{
    MF_TRY(jinja_text_puts(run, text, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        if (i) {
            MF_TRY(jinja_text_puts(run, text, ", "));
        }
        MF_TRY(repr_value(run, text, dict->entries[i].key, depth + 1));
        MF_TRY(jinja_text_puts(run, text, ": "));
        MF_TRY(repr_value(run, text, dict->entries[i].value, depth + 1));
    }
    return jinja_text_puts(run, text, "}");
}

static mf_status repr_view(jinja_run *run, jinja_text *text, jinja_value v, int depth)
{
    const jinja_view *view = v.as.view;
    MF_TRY(jinja_text_puts(run, text, jinja_type_name(v)));
    MF_TRY(jinja_text_puts(run, text, "(["));
    for (size_t i = 0; i < view->dict->count; i++) {
        if (i) {
            MF_TRY(jinja_text_puts(run, text, ", "));
        }
        jinja_value item;
        MF_TRY(jinja_view_at(run, view, i, &item));
        MF_TRY(repr_value(run, text, item, depth + 1));
    }
    return jinja_text_puts(run, text, "])");
}

static mf_status repr_range(jinja_run *run, jinja_text *text, const jinja_range *r)
{
    char buf[80];
    if (r->step == 1) {
        snprintf(buf, sizeof buf, "range(%lld, %lld)", (long long)r->start, (long long)r->stop);
    } else {
        snprintf(buf, sizeof buf, "range(%lld, %lld, %lld)", (long long)r->start, (long long)r->stop, (long long)r->step);
    }
    return jinja_text_puts(run, text, buf);
}

static mf_status repr_value(jinja_run *run, jinja_text *text, jinja_value v, int depth)
{
    if (depth > JINJA_MAX_VALUE_DEPTH) {
        return jinja_fail(run, MF_ERR_LIMIT, "a value is nested deeper than %d", JINJA_MAX_VALUE_DEPTH);
    }
    MF_TRY(jinja_step(run, 1));
    char buf[JINJA_FLOAT_BYTES];
    switch ((jinja_type)v.type) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED: return jinja_text_puts(run, text, "Undefined");
    case JINJA_NONE: return jinja_text_puts(run, text, "None");
    case JINJA_BOOL: return jinja_text_puts(run, text, v.as.b ? "True" : "False");
    case JINJA_INT:
        snprintf(buf, sizeof buf, "%lld", (long long)v.as.i);
        return jinja_text_puts(run, text, buf);
    case JINJA_FLOAT: return jinja_text_append(run, text, buf, jinja_float_repr(v.as.f, buf));
    case JINJA_STR: return repr_str(run, text, v.as.s);
    case JINJA_LIST: return repr_list(run, text, v.as.l, false, depth);
    case JINJA_TUPLE: return repr_list(run, text, v.as.l, true, depth);
    case JINJA_DICT: return repr_dict(run, text, v.as.d, depth);
    case JINJA_VIEW: return repr_view(run, text, v, depth);
    case JINJA_RANGE: return repr_range(run, text, v.as.r);
    case JINJA_NAMESPACE:
        MF_TRY(jinja_text_puts(run, text, "<Namespace "));
        MF_TRY(repr_dict(run, text, v.as.d, depth + 1));
        return jinja_text_puts(run, text, ">");
    case JINJA_MACRO: return jinja_macro_repr(run, text, v.as.macro);
    case JINJA_LOOP: return jinja_loop_repr(run, text, v.as.loop);
    default: break;
    }
    /* Python prints an address here, which no template can mean. */
    MF_TRY(jinja_text_puts(run, text, "<"));
    MF_TRY(jinja_text_puts(run, text, jinja_type_name(v)));
    return jinja_text_puts(run, text, " object>");
}

mf_status jinja_append_repr(jinja_run *run, jinja_text *text, jinja_value v)
{
    return repr_value(run, text, v, 0);
}

mf_status jinja_append_str(jinja_run *run, jinja_text *text, jinja_value v)
{
    if (v.type == JINJA_STR) {
        MF_TRY(jinja_step_bytes(run, v.as.s->size));
        return jinja_text_append(run, text, v.as.s->data, v.as.s->size);
    }
    return v.type == JINJA_UNDEFINED || v.type == JINJA_MISSING ? MF_OK : repr_value(run, text, v, 0);
}

mf_status jinja_to_str(jinja_run *run, jinja_value v, jinja_value *out)
{
    if (v.type == JINJA_STR) {
        *out = v;
        return MF_OK;
    }
    jinja_text text = { 0 };
    MF_TRY(jinja_append_str(run, &text, v));
    return jinja_str_text(run, &text, out);
}
