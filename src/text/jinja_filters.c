/* jinja_filters.c - filters on single values: texts, numbers, defaults, JSON.  Those on sequences are in
 * jinja_sequence_filters.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/jinja_bind.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

#define FILTER(name) static mf_status name(jinja_run *run, jinja_value self, const jinja_args *args, jinja_value *out)

static bool given(jinja_value v)
{
    return v.type != JINJA_MISSING && v.type != JINJA_NONE;
}

static mf_status flag(jinja_run *run, jinja_value v, bool *out)
{
    *out = false;
    return v.type == JINJA_MISSING ? MF_OK : jinja_truth(run, v, out);
}

/* Python's int(f): the integer part. */
static mf_status int_of_float(jinja_run *run, double f, jinja_value *out)
{
    if (!(f >= -0x1p63 && f < 0x1p63)) {
        return jinja_fail(run, MF_ERR_INVALID, "a float does not fit an integer of 64 bits");
    }
    *out = jinja_int((int64_t)f);
    return MF_OK;
}

/* A str method on str(self). */
static mf_status by_method(jinja_run *run, const char *method, jinja_value self, const jinja_args *args, jinja_value *out)
{
    MF_TRY(jinja_to_str(run, self, &self));
    return jinja_str_method_find(method, strlen(method))->fn(run, self, args, out);
}

/* ---- texts -------------------------------------------------------------------------------------------------------- */

FILTER(filter_upper)
{
    return by_method(run, "upper", self, args, out);
}

FILTER(filter_lower)
{
    return by_method(run, "lower", self, args, out);
}

FILTER(filter_capitalize)
{
    return by_method(run, "capitalize", self, args, out);
}

FILTER(filter_trim)
{
    BIND("trim", "chars?");
    jinja_args one = { .pos = arg, .num_pos = arg[0].type != JINJA_MISSING };
    return by_method(run, "strip", self, &one, out);
}

FILTER(filter_center)
{
    BIND("center", "width?");
    if (arg[0].type == JINJA_MISSING) {
        arg[0] = jinja_int(80);
    }
    return by_method(run, "center", self, &(jinja_args){ .pos = arg, .num_pos = 1 }, out);
}

FILTER(filter_string)
{
    BIND("string", "");
    return jinja_to_str(run, self, out);
}

/* str(v), markup no more */
static mf_status plain_str(jinja_run *run, jinja_value v, jinja_value *out)
{
    MF_TRY(jinja_to_str(run, v, out));
    return out->as.s->markup ? jinja_str_view(run, out->as.s->data, out->as.s->size, out) : MF_OK;
}

FILTER(filter_replace)
{
    BIND("replace", "old new count?");
    jinja_value parts[3];
    MF_TRY(plain_str(run, self, &self));
    MF_TRY(plain_str(run, arg[0], &parts[0]));
    MF_TRY(plain_str(run, arg[1], &parts[1]));
    parts[2] = given(arg[2]) ? arg[2] : jinja_int(-1);
    return by_method(run, "replace", self, &(jinja_args){ .pos = parts, .num_pos = 3 }, out);
}

static bool is_word_start(int32_t c)
{
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || jinja_is_space(c);
}

/* Unlike str.title: words begin after white space and opening brackets only. */
FILTER(filter_title)
{
    BIND("title", "");
    jinja_text text = { 0 };
    MF_TRY(jinja_to_str(run, self, &self));
    const jinja_str *s = self.as.s;
    MF_TRY(jinja_step_bytes(run, s->size));
    for (size_t pos = 0; pos < s->size;) {
        size_t start = pos;
        int32_t c = jinja_next_char(s->data, s->size, &pos);
        if (is_word_start(c)) {
            MF_TRY(jinja_text_append(run, &text, s->data + start, pos - start));
            continue;
        }
        int32_t first[3];
        int n = jinja_map_case(c, JINJA_UPPER, first);
        for (int i = 0; i < n; i++) {
            MF_TRY(jinja_text_char(run, &text, first[i]));
        }
        size_t rest = pos;
        while (pos < s->size) {
            size_t next = pos;
            if (is_word_start(jinja_next_char(s->data, s->size, &next))) {
                break;
            }
            pos = next;
        }
        jinja_value word;
        MF_TRY(jinja_str_view(run, s->data + rest, pos - rest, &word));
        MF_TRY(by_method(run, "lower", word, &(jinja_args){ 0 }, &word));
        MF_TRY(jinja_text_append(run, &text, word.as.s->data, word.as.s->size));
    }
    return jinja_str_text(run, &text, out);
}

FILTER(filter_wordcount)
{
    BIND("wordcount", "");
    int64_t words = 0;
    bool inside = false;
    MF_TRY(jinja_to_str(run, self, &self));
    const jinja_str *s = self.as.s;
    MF_TRY(jinja_step_bytes(run, s->size));
    for (size_t pos = 0; pos < s->size;) {
        bool word = jinja_is_word(jinja_next_char(s->data, s->size, &pos));
        words += word && !inside;
        inside = word;
    }
    *out = jinja_int(words);
    return MF_OK;
}

FILTER(filter_indent)
{
    BIND("indent", "width? first? blank?");
    bool first;
    bool blank;
    int64_t width = 0;
    jinja_text unit = { 0 };
    jinja_text text = { 0 };
    MF_TRY(flag(run, arg[1], &first));
    MF_TRY(flag(run, arg[2], &blank));
    if (arg[0].type == JINJA_STR) {
        MF_TRY(jinja_append_str(run, &unit, arg[0]));
    } else {
        MF_TRY(need_int(run, "indent", arg[0], 4, &width));
        MF_TRY(jinja_text_fill(run, &unit, ' ', width));
    }
    if (self.type == JINJA_UNDEFINED) {
        return jinja_undef_fail(run, self);
    }
    if (self.type != JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "indent: expected str, got %s", jinja_type_name(self));
    }
    /* The lines of the text with one line break added, as jinja2 does it. */
    jinja_value lines;
    jinja_value line_break;
    MF_TRY(jinja_str_view(run, "\n", 1, &line_break));
    MF_TRY(jinja_str_concat(run, self, line_break, &lines));
    MF_TRY(by_method(run, "splitlines", lines, &(jinja_args){ 0 }, &lines));
    for (size_t i = 0; i < lines.as.l->count; i++) {
        const jinja_str *line = lines.as.l->items[i].as.s;
        if (i) {
            MF_TRY(jinja_text_append(run, &text, "\n", 1));
        }
        if (i ? blank || line->size : first) {
            MF_TRY(jinja_step_bytes(run, unit.size));
            MF_TRY(jinja_text_append(run, &text, unit.data, unit.size));
        }
        MF_TRY(jinja_text_append(run, &text, line->data, line->size));
    }
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, self.as.s, out);
}

FILTER(filter_truncate)
{
    BIND("truncate", "length? killwords? end? leeway?");
    int64_t length;
    int64_t leeway;
    bool kill;
    MF_TRY(need_int(run, "truncate", arg[0], 255, &length));
    MF_TRY(flag(run, arg[1], &kill));
    MF_TRY(need_int(run, "truncate", given(arg[3]) ? arg[3] : jinja_int(5), 5, &leeway));
    if (arg[2].type == JINJA_MISSING) {
        MF_TRY(jinja_str_view(run, "...", 3, &arg[2]));
    }
    int64_t end = 0;
    int64_t chars = 0;
    bool has;
    MF_TRY(jinja_length(run, arg[2], &has, &end));
    if (!has || length < end || leeway < 0) {
        return jinja_fail(run, MF_ERR_INVALID, "truncate: expected length >= %lld and leeway >= 0", (long long)end);
    }
    MF_TRY(jinja_length(run, self, &has, &chars));
    if (has && chars - leeway <= length) {
        *out = self;
        return MF_OK;
    }
    if (self.type != JINJA_STR || arg[2].type != JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "truncate: expected str, got %s",
                          jinja_type_name(self.type == JINJA_STR ? arg[2] : self));
    }
    jinja_value cut;
    MF_TRY(jinja_slice(run, self, jinja_none(), jinja_int(length - end), jinja_none(), &cut));
    if (!kill) {
        const char *data = cut.as.s->data;
        const char *space = memrchr(data, ' ', cut.as.s->size);
        if (space) {
            MF_TRY(jinja_str_view(run, data, (size_t)(space - data), &cut));
        }
    }
    return jinja_str_concat(run, cut, arg[2], out);
}

static mf_status escape_str(jinja_run *run, const jinja_str *s, jinja_value *out)
{
    jinja_text text = { 0 };
    MF_TRY(jinja_step_bytes(run, s->size));
    for (size_t i = 0; i < s->size; i++) {
        char c = s->data[i];
        const char *entity = c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '\'' ? "&#39;"
                           : c == '"' ? "&#34;" : NULL;
        MF_TRY(entity ? jinja_text_puts(run, &text, entity) : jinja_text_append(run, &text, &c, 1));
    }
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, &(jinja_str){ .markup = true }, out);
}

FILTER(filter_escape)
{
    BIND("escape", "");
    MF_TRY(jinja_to_str(run, self, out));
    return out->as.s->markup ? MF_OK : escape_str(run, out->as.s, out);
}

FILTER(filter_forceescape)
{
    BIND("forceescape", "");
    MF_TRY(jinja_to_str(run, self, out));
    return escape_str(run, out->as.s, out);
}

FILTER(filter_safe)
{
    BIND("safe", "");
    MF_TRY(jinja_to_str(run, self, out));
    return jinja_str_as(run, &(jinja_str){ .markup = true }, out);
}

FILTER(filter_format)
{
    jinja_value values;
    MF_TRY(jinja_to_str(run, self, &self));
    if (args->num_pos && args->num_kw) {
        return jinja_fail(run, MF_ERR_INVALID, "format: can't handle positional and keyword arguments at the same time");
    }
    if (args->num_kw) {
        MF_TRY(jinja_dict_new(run, args->num_kw, &values));
        for (size_t i = 0; i < args->num_kw; i++) {
            MF_TRY(jinja_dict_set(run, values.as.d, args->kw_names[i], args->kw_values[i]));
        }
    } else {
        MF_TRY(jinja_list_new(run, JINJA_TUPLE, args->num_pos, &values));
        if (args->num_pos) {
            memcpy(values.as.l->items, args->pos, args->num_pos * sizeof *args->pos);
        }
    }
    return jinja_percent(run, self, values, out);
}

static mf_status quote_url(jinja_run *run, jinja_text *text, jinja_value v, bool query)
{
    MF_TRY(jinja_to_str(run, v, &v));
    for (size_t i = 0; i < v.as.s->size; i++) {
        unsigned char c = (unsigned char)v.as.s->data[i];
        char buf[4] = { (char)c, 0, 0, 0 };
        bool plain = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_' || c == '.' || c == '-' ||
                     c == '~' || (c == '/' && !query);
        if (query && c == ' ') {
            buf[0] = '+';
        } else if (!plain) {
            snprintf(buf, sizeof buf, "%%%02X", c);
        }
        MF_TRY(jinja_text_puts(run, text, buf));
    }
    return jinja_step_bytes(run, v.as.s->size);
}

FILTER(filter_urlencode)
{
    BIND("urlencode", "");
    jinja_text text = { 0 };
    if (self.type == JINJA_STR || !jinja_is_iterable(self)) {
        MF_TRY(quote_url(run, &text, self, false));
        return jinja_str_text(run, &text, out);
    }
    if (self.type == JINJA_DICT) {
        MF_TRY(jinja_method_find(JINJA_DICT, "items", 5)->fn(run, self, args, &self));
    }
    jinja_iter *iter;
    MF_TRY(jinja_iter_open(run, self, &iter));
    for (bool any = false;; any = true) {
        jinja_value pair;
        bool done;
        MF_TRY(jinja_iter_next(run, iter, &pair, &done));
        if (done) {
            return jinja_str_text(run, &text, out);
        }
        MF_TRY(jinja_collect(run, pair, JINJA_LIST, &pair));
        if (pair.as.l->count != 2) {
            return jinja_fail(run, MF_ERR_INVALID, "urlencode: expected pairs");
        }
        MF_TRY(any ? jinja_text_puts(run, &text, "&") : MF_OK);
        MF_TRY(quote_url(run, &text, pair.as.l->items[0], true));
        MF_TRY(jinja_text_puts(run, &text, "="));
        MF_TRY(quote_url(run, &text, pair.as.l->items[1], true));
    }
}

/* ---- numbers ------------------------------------------------------------------------------------------------------ */

FILTER(filter_abs)
{
    BIND("abs", "");
    int64_t i;
    if (self.type == JINJA_FLOAT) {
        *out = jinja_float(fabs(self.as.f));
        return MF_OK;
    }
    if (!jinja_as_int(self, &i)) {
        return jinja_fail(run, MF_ERR_INVALID, "abs: bad operand type '%s'", jinja_type_name(self));
    }
    return jinja_unary(run, i < 0, jinja_int(i), out);
}

FILTER(filter_int)
{
    BIND("int", "default? base?");
    int64_t i;
    int64_t base;
    double f;
    jinja_value fallback = arg[0].type == JINJA_MISSING ? jinja_int(0) : arg[0];
    MF_TRY(need_int(run, "int", arg[1], 10, &base));
    switch ((jinja_type)self.type) {
    case JINJA_UNDEFINED: return jinja_undef_fail(run, self);
    case JINJA_BOOL:
    case JINJA_INT:
        jinja_as_int(self, &i);
        *out = jinja_int(i);
        return MF_OK;
    case JINJA_FLOAT:
        if (isnan(self.as.f)) {
            break;
        }
        return int_of_float(run, self.as.f, out);
    case JINJA_STR: {
        bool known_base = base == 0 || (base >= 2 && base <= 36);
        jinja_parsed parsed = JINJA_NOT_A_NUMBER;
        if (known_base) {
            parsed = jinja_parse_int(self.as.s->data, self.as.s->size, (int)base, &i);
        }
        if (parsed == JINJA_PARSED) {
            *out = jinja_int(i);
            return MF_OK;
        }
        if (parsed == JINJA_TOO_BIG) {
            return jinja_fail(run, MF_ERR_INVALID, "an integer does not fit 64 bits");
        }
        if (jinja_parse_float(self.as.s->data, self.as.s->size, &f) && isfinite(f)) {
            return int_of_float(run, f, out);
        }
        break;
    }
    default: break;
    }
    *out = fallback;
    return MF_OK;
}

FILTER(filter_float)
{
    BIND("float", "default?");
    int64_t i;
    double f;
    if (self.type == JINJA_UNDEFINED) {
        return jinja_undef_fail(run, self);
    }
    if (self.type == JINJA_FLOAT) {
        *out = self;
    } else if (jinja_as_int(self, &i)) {
        *out = jinja_float((double)i);
    } else if (self.type == JINJA_STR && jinja_parse_float(self.as.s->data, self.as.s->size, &f)) {
        *out = jinja_float(f);
    } else {
        *out = arg[0].type == JINJA_MISSING ? jinja_float(0) : arg[0];
    }
    return MF_OK;
}

FILTER(filter_round)
{
    BIND("round", "precision? method?");
    jinja_value precision = arg[0].type == JINJA_MISSING ? jinja_int(0) : arg[0];
    if (arg[1].type == JINJA_MISSING || jinja_str_is(arg[1], "common")) {
        return jinja_round(run, self, precision, out);
    }
    bool up = jinja_str_is(arg[1], "ceil");
    if (!up && !jinja_str_is(arg[1], "floor")) {
        return jinja_fail(run, MF_ERR_INVALID, "round: method must be common, ceil or floor");
    }
    jinja_value unit;
    jinja_value scaled;
    MF_TRY(jinja_binary(run, JINJA_POW, jinja_int(10), precision, &unit));
    MF_TRY(jinja_binary(run, JINJA_MUL, self, unit, &scaled));
    if (scaled.type == JINJA_FLOAT) {
        MF_TRY(int_of_float(run, up ? ceil(scaled.as.f) : floor(scaled.as.f), &scaled));
    } else if (scaled.type != JINJA_INT) {
        return jinja_fail(run, MF_ERR_INVALID, "round: expected a number, got %s", jinja_type_name(self));
    }
    return jinja_binary(run, JINJA_DIV, scaled, unit, out);
}

FILTER(filter_filesizeformat)
{
    BIND("filesizeformat", "binary?");
    static const char *const units[2][8] = { { "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB" },
                                             { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB" } };
    bool binary;
    char buf[400];
    jinja_value number;
    MF_TRY(flag(run, arg[0], &binary));
    MF_TRY(filter_float(run, self, &(jinja_args){ .pos = &(jinja_value){ .type = JINJA_NONE }, .num_pos = 1 }, &number));
    if (number.type != JINJA_FLOAT) {
        return jinja_fail(run, MF_ERR_INVALID, "filesizeformat: expected a number, got %s", jinja_type_name(self));
    }
    double base = binary ? 1024 : 1000;
    if (number.as.f == 1) {
        snprintf(buf, sizeof buf, "1 Byte");
    } else if (number.as.f < base) {
        MF_TRY(int_of_float(run, number.as.f, &self));
        snprintf(buf, sizeof buf, "%lld Bytes", (long long)self.as.i);
    } else {
        double unit = base * base;
        int i = 0;
        while (i < 7 && !(number.as.f < unit)) {
            unit *= base;
            i++;
        }
        snprintf(buf, sizeof buf, "%.1f %s", base * number.as.f / unit, units[binary][i]);
    }
    return jinja_str_copy(run, buf, strlen(buf), out);
}

/* ---- anything ----------------------------------------------------------------------------------------------------- */

FILTER(filter_default)
{
    BIND("default", "default_value? boolean?");
    bool boolean;
    bool truth = true;
    MF_TRY(flag(run, arg[1], &boolean));
    if (boolean) {
        MF_TRY(jinja_truth(run, self, &truth));
    }
    *out = self;
    if (self.type == JINJA_UNDEFINED || !truth) {
        *out = arg[0];
        return arg[0].type == JINJA_MISSING ? jinja_str_view(run, "", 0, out) : MF_OK;
    }
    return MF_OK;
}

FILTER(filter_length)
{
    BIND("length", "");
    bool has;
    int64_t length = 0;
    MF_TRY(jinja_length(run, self, &has, &length));
    if (!has) {
        return jinja_fail(run, MF_ERR_INVALID, "object of type '%s' has no length", jinja_type_name(self));
    }
    *out = jinja_int(length);
    return MF_OK;
}

FILTER(filter_attr)
{
    BIND("attr", "name");
    if (arg[0].type != JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "attr: name must be str, not %s", jinja_type_name(arg[0]));
    }
    if (self.type == JINJA_DICT) { /* its methods, not its items */
        const jinja_builtin *method = jinja_method_find(JINJA_DICT, arg[0].as.s->data, arg[0].as.s->size);
        return method ? jinja_method_new(run, self, method, out)
                      : jinja_undef_name(run, jinja_type_name(self), arg[0], out);
    }
    return jinja_getattr(run, self, arg[0].as.s->data, arg[0].as.s->size, out);
}

static mf_status json_separators(jinja_run *run, jinja_value v, jinja_json_style *style)
{
    MF_TRY(jinja_collect(run, v, JINJA_LIST, &v));
    const jinja_value *items = v.as.l->items;
    if (v.as.l->count != 2 || items[0].type != JINJA_STR || items[1].type != JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "tojson: separators must be two strings");
    }
    style->item_separator = items[0].as.s->data;
    style->item_separator_size = items[0].as.s->size;
    style->key_separator = items[1].as.s->data;
    style->key_separator_size = items[1].as.s->size;
    return MF_OK;
}

FILTER(filter_tojson)
{
    BIND("tojson", "ensure_ascii? indent? separators? sort_keys?");
    jinja_json_style style = { .item_separator = ", ", .item_separator_size = 2, .key_separator = ": ",
                               .key_separator_size = 2 };
    jinja_text unit = { 0 };
    jinja_text text = { 0 };
    int64_t width;
    MF_TRY(flag(run, arg[0], &style.ensure_ascii));
    MF_TRY(flag(run, arg[3], &style.sort_keys));
    if (given(arg[1])) {
        style.has_indent = true;
        style.item_separator_size = 1;
        if (arg[1].type == JINJA_STR) {
            MF_TRY(jinja_append_str(run, &unit, arg[1]));
        } else {
            MF_TRY(need_int(run, "tojson", arg[1], 0, &width));
            MF_TRY(jinja_text_fill(run, &unit, ' ', width));
        }
        style.indent = unit.data;
        style.indent_size = unit.size;
    }
    if (given(arg[2]) && self.type != JINJA_STR) {
        MF_TRY(json_separators(run, arg[2], &style));
    }
    MF_TRY(jinja_append_json(run, &text, self, &style));
    return jinja_str_text(run, &text, out);
}

const jinja_builtin *jinja_filter_find(const char *name, size_t size)
{
    static const jinja_builtin table[] = {
        { "trim", filter_trim }, { "tojson", filter_tojson }, { "length", filter_length }, { "default", filter_default },
        { "d", filter_default }, { "upper", filter_upper }, { "lower", filter_lower }, { "replace", filter_replace },
        { "string", filter_string }, { "title", filter_title }, { "capitalize", filter_capitalize },
        { "count", filter_length }, { "int", filter_int }, { "float", filter_float }, { "round", filter_round },
        { "abs", filter_abs }, { "safe", filter_safe }, { "escape", filter_escape }, { "e", filter_escape },
        { "forceescape", filter_forceescape }, { "indent", filter_indent }, { "format", filter_format },
        { "wordcount", filter_wordcount }, { "center", filter_center }, { "truncate", filter_truncate },
        { "attr", filter_attr }, { "urlencode", filter_urlencode }, { "filesizeformat", filter_filesizeformat },
        { "pprint", NULL }, { "random", NULL }, { "striptags", NULL }, { "urlize", NULL }, { "wordwrap", NULL },
        { "xmlattr", NULL },
    };
    const jinja_builtin *found = jinja_builtin_find(table, sizeof table / sizeof *table, name, size);
    return found ? found : jinja_sequence_filter_find(name, size);
}
