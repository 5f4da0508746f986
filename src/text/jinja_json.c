/* jinja_json.c - the tojson filter: json.dumps with the options that chat templates get. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/jinja_text.h"
#include "text/jinja_value.h"

static mf_status json_str(jinja_run *run, jinja_text *text, const jinja_str *s, bool ensure_ascii)
{
    MF_TRY(jinja_step_bytes(run, s->size));
    MF_TRY(jinja_text_puts(run, text, "\""));
    size_t plain = 0; /* start of the bytes not yet copied */
    for (size_t i = 0; i < s->size;) {
        size_t start = i;
        int32_t c = jinja_next_char(s->data, s->size, &i);
        char escape[16];
        const char *named = c == '"' ? "\\\"" : c == '\\' ? "\\\\" : c == '\n' ? "\\n" : c == '\r' ? "\\r"
                          : c == '\t' ? "\\t" : c == '\b' ? "\\b" : c == '\f' ? "\\f" : NULL;
        if (named) {
            snprintf(escape, sizeof escape, "%s", named);
        } else if (c < 0x20 || (ensure_ascii && c > 0x7e && c < 0x10000)) {
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)c);
        } else if (ensure_ascii && c >= 0x10000) {
            unsigned v = (unsigned)c - 0x10000;
            snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xd800 + (v >> 10), 0xdc00 + (v & 0x3ff));
        } else {
            continue;
        }
        MF_TRY(jinja_text_append(run, text, s->data + plain, start - plain));
        MF_TRY(jinja_text_puts(run, text, escape));
        plain = i;
    }
    MF_TRY(jinja_text_append(run, text, s->data + plain, s->size - plain));
    return jinja_text_puts(run, text, "\"");
}

static mf_status json_scalar(jinja_run *run, jinja_text *text, jinja_value v)
{
    char buf[JINJA_FLOAT_BYTES];
    switch ((jinja_type)v.type) {
    case JINJA_NONE: return jinja_text_puts(run, text, "null");
    case JINJA_BOOL: return jinja_text_puts(run, text, v.as.b ? "true" : "false");
    case JINJA_INT:
        snprintf(buf, sizeof buf, "%lld", (long long)v.as.i);
        return jinja_text_puts(run, text, buf);
    case JINJA_FLOAT:
        if (isnan(v.as.f)) {
            return jinja_text_puts(run, text, "NaN");
        }
        if (isinf(v.as.f)) {
            return jinja_text_puts(run, text, v.as.f < 0 ? "-Infinity" : "Infinity");
        }
        return jinja_text_append(run, text, buf, jinja_float_repr(v.as.f, buf));
    default: break;
    }
    return jinja_fail(run, MF_ERR_INVALID, "Object of type %s is not JSON serializable", jinja_type_name(v));
}

static mf_status new_line(jinja_run *run, jinja_text *text, const jinja_json_style *style, int depth)
{
    if (!style->has_indent) {
        return MF_OK;
    }
    MF_TRY(jinja_text_puts(run, text, "\n"));
    for (int i = 0; i < depth; i++) {
        MF_TRY(jinja_text_append(run, text, style->indent, style->indent_size));
    }
    return jinja_step(run, 1);
}

static mf_status json_value(jinja_run *run, jinja_text *text, jinja_value v, const jinja_json_style *style, int depth);

static mf_status json_list(jinja_run *run, jinja_text *text, const jinja_list *list, const jinja_json_style *style,
                           int depth)
{
    if (list->count == 0) {
        return jinja_text_puts(run, text, "[]");
    }
    MF_TRY(jinja_text_puts(run, text, "["));
    for (size_t i = 0; i < list->count; i++) {
        if (i) {
            MF_TRY(jinja_text_append(run, text, style->item_separator, style->item_separator_size));
        }
        MF_TRY(new_line(run, text, style, depth + 1));
        MF_TRY(json_value(run, text, list->items[i], style, depth + 1));
    }
    MF_TRY(new_line(run, text, style, depth));
    return jinja_text_puts(run, text, "]");
}

static mf_status json_key(jinja_run *run, jinja_text *text, jinja_value key, bool ensure_ascii)
{
    if (key.type == JINJA_STR) {
        return json_str(run, text, key.as.s, ensure_ascii);
    }
    if (key.type != JINJA_NONE && !jinja_is_number(key)) {
        return jinja_fail(run, MF_ERR_INVALID, "keys must be str, int, float, bool or None, not %s",
                          jinja_type_name(key));
    }
    MF_TRY(jinja_text_puts(run, text, "\""));
    MF_TRY(json_scalar(run, text, key));
    return jinja_text_puts(run, text, "\"");
}

static mf_status json_dict(jinja_run *run, jinja_text *text, const jinja_dict *dict, const jinja_json_style *style,
                           int depth)
{
    if (dict->count == 0) {
        return jinja_text_puts(run, text, "{}");
    }
    jinja_value *keys = NULL;
    jinja_value *values = NULL;
    if (style->sort_keys) {
        JINJA_NEW(run, keys, dict->count);
        JINJA_NEW(run, values, dict->count);
        for (size_t i = 0; i < dict->count; i++) {
            keys[i] = dict->entries[i].key;
            values[i] = dict->entries[i].value;
        }
        MF_TRY(jinja_sort(run, values, keys, dict->count, false));
    }
    MF_TRY(jinja_text_puts(run, text, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        if (i) {
            MF_TRY(jinja_text_append(run, text, style->item_separator, style->item_separator_size));
        }
        MF_TRY(new_line(run, text, style, depth + 1));
        MF_TRY(json_key(run, text, keys ? keys[i] : dict->entries[i].key, style->ensure_ascii));
        MF_TRY(jinja_text_append(run, text, style->key_separator, style->key_separator_size));
        MF_TRY(json_value(run, text, keys ? values[i] : dict->entries[i].value, style, depth + 1));
    }
    MF_TRY(new_line(run, text, style, depth));
    return jinja_text_puts(run, text, "}");
}

static mf_status json_value(jinja_run *run, jinja_text *text, jinja_value v, const jinja_json_style *style, int depth)
{
    if (depth > JINJA_MAX_VALUE_DEPTH) {
        return jinja_fail(run, MF_ERR_LIMIT, "tojson: a value is nested deeper than %d", JINJA_MAX_VALUE_DEPTH);
    }
    MF_TRY(jinja_step(run, 1));
    switch ((jinja_type)v.type) {
    case JINJA_STR: return json_str(run, text, v.as.s, style->ensure_ascii);
    case JINJA_LIST:
    case JINJA_TUPLE: return json_list(run, text, v.as.l, style, depth);
    case JINJA_DICT: return json_dict(run, text, v.as.d, style, depth);
    default: return json_scalar(run, text, v);
    }
}

mf_status jinja_append_json(jinja_run *run, jinja_text *text, jinja_value v, const jinja_json_style *style)
{
    return json_value(run, text, v, style, 0);
}
