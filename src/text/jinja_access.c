/* jinja_access.c - attributes, items, slices, calls and the binding of arguments to built-in functions. */
#include <stdio.h>
#include <string.h>

#include "text/jinja_eval.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

const jinja_builtin *jinja_builtin_find(const jinja_builtin *table, size_t count, const char *name, size_t size)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(table[i].name) == size && memcmp(table[i].name, name, size) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

static bool is_name(const char *name, size_t size, const char *text)
{
    return strlen(text) == size && memcmp(name, text, size) == 0;
}

/* ---- attributes --------------------------------------------------------------------------------------------------- */

static mf_status number_attr(jinja_value v, const char *name, size_t size, bool *found, jinja_value *out)
{
    int64_t i;
    bool whole = jinja_as_int(v, &i);
    if (is_name(name, size, "real")) {
        *out = whole ? jinja_int(i) : v;
    } else if (is_name(name, size, "imag")) {
        *out = whole ? jinja_int(0) : jinja_float(0);
    } else if (whole && is_name(name, size, "numerator")) {
        *out = jinja_int(i);
    } else if (whole && is_name(name, size, "denominator")) {
        *out = jinja_int(1);
    } else {
        *found = false;
    }
    return MF_OK;
}

static mf_status cycler_attr(jinja_run *run, jinja_value v, const char *name, size_t size, bool *found, jinja_value *out)
{
    const jinja_cycler *cycler = v.as.cycler;
    if (is_name(name, size, "current")) {
        *out = cycler->items->items[cycler->pos];
        return MF_OK;
    }
    if (is_name(name, size, "items")) {
        *out = (jinja_value){ .type = JINJA_TUPLE, .as.l = cycler->items };
        return MF_OK;
    }
    const jinja_builtin *method = jinja_method_find(JINJA_CYCLER, name, size);
    *found = method != NULL;
    return method ? jinja_method_new(run, v, method, out) : MF_OK;
}

/* Methods that would change a list or a dict are there for jinja2, but touching them gives an undefined value. */
static bool is_refused(jinja_type type, const char *name, size_t size)
{
    static const char *const list[] = { "append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove", NULL };
    static const char *const dict[] = { "clear", "pop", "popitem", "setdefault", "update", NULL };
    const char *const *names = type == JINJA_LIST ? list : type == JINJA_DICT ? dict : NULL;
    for (; names && *names; names++) {
        if (is_name(name, size, *names)) {
            return true;
        }
    }
    return false;
}

static mf_status method_attr(jinja_run *run, jinja_value v, const char *name, size_t size, bool *found, jinja_value *out)
{
    if (is_refused((jinja_type)v.type, name, size)) {
        char hint[120];
        int n = snprintf(hint, sizeof hint, "access to attribute '%.*s' of '%s' object is unsafe", (int)size, name,
                         jinja_type_name(v));
        char *copy = mf_arena_strndup(&run->arena, hint, (size_t)n);
        return copy ? jinja_undef_hint(run, copy, out) : jinja_no_memory(run, (size_t)n, 1);
    }
    const jinja_builtin *method =
        v.type == JINJA_STR ? jinja_str_method_find(name, size) : jinja_method_find((jinja_type)v.type, name, size);
    *found = method != NULL;
    if (!method) {
        return MF_OK;
    }
    if (!method->fn) {
        return jinja_fail(run, MF_ERR_UNSUPPORTED, "method '%s' of '%s' is not supported", method->name,
                          jinja_type_name(v));
    }
    return jinja_method_new(run, v, method, out);
}

/* getattr(v, name) of Python. */
static mf_status find_attr(jinja_run *run, jinja_value v, const char *name, size_t size, bool *found, jinja_value *out)
{
    *found = true;
    switch ((jinja_type)v.type) {
    case JINJA_UNDEFINED: return jinja_undef_fail(run, v);
    case JINJA_NAMESPACE: {
        const jinja_value *value = jinja_dict_get_text(v.as.d, name, size);
        *found = value != NULL;
        if (value) {
            *out = *value;
        }
        return MF_OK;
    }
    case JINJA_MACRO: return jinja_macro_attr(run, v.as.macro, name, size, found, out);
    case JINJA_LOOP: return jinja_loop_attr(run, v.as.loop, name, size, found, out);
    case JINJA_CYCLER: return cycler_attr(run, v, name, size, found, out);
    case JINJA_TUPLE:
        if (v.as.l->group && (is_name(name, size, "grouper") || is_name(name, size, "list"))) {
            *out = v.as.l->items[size == 4];
            return MF_OK;
        }
        break;
    case JINJA_RANGE:
        if (is_name(name, size, "start") || is_name(name, size, "stop") || is_name(name, size, "step")) {
            const jinja_range *r = v.as.r;
            *out = jinja_int(size == 5 ? r->start : name[2] == 'o' ? r->stop : r->step);
            return MF_OK;
        }
        break;
    case JINJA_BOOL:
    case JINJA_INT:
    case JINJA_FLOAT:
        MF_TRY(number_attr(v, name, size, found, out));
        if (*found) {
            return MF_OK;
        }
        break;
    case JINJA_FUNC: {
        bool is_dict = strcmp(v.as.func->name, "dict") == 0;
        const jinja_builtin *method = is_dict ? jinja_method_find(JINJA_FUNC, name, size) : NULL;
        *found = method != NULL;
        return method ? jinja_method_new(run, v, method, out) : MF_OK;
    }
    default: break;
    }
    return method_attr(run, v, name, size, found, out);
}

static mf_status no_attr(jinja_run *run, jinja_value v, const char *name, size_t size, jinja_value *out)
{
    jinja_value key;
    MF_TRY(jinja_str_view(run, name, size, &key));
    return jinja_undef_name(run, jinja_type_name(v), key, out);
}

mf_status jinja_getattr(jinja_run *run, jinja_value v, const char *name, size_t size, jinja_value *out)
{
    bool found;
    MF_TRY(find_attr(run, v, name, size, &found, out));
    if (found) {
        return MF_OK;
    }
    const jinja_value *item = v.type == JINJA_DICT ? jinja_dict_get_text(v.as.d, name, size) : NULL;
    if (item) {
        *out = *item;
        return MF_OK;
    }
    return no_attr(run, v, name, size, out);
}

/* ---- items -------------------------------------------------------------------------------------------------------- */

static mf_status char_at(jinja_run *run, jinja_str *s, int64_t index, jinja_value *out)
{
    size_t start = (size_t)index;
    size_t end = start + 1;
    if ((size_t)jinja_str_chars(s) != s->size) {
        MF_TRY(jinja_step_bytes(run, s->size));
        start = jinja_char_offset(s->data, s->size, index);
        end = start + jinja_char_offset(s->data + start, s->size - start, 1);
    }
    MF_TRY(jinja_str_view(run, s->data + start, end - start, out));
    out->as.s->chars = 1;
    return jinja_str_as(run, s, out);
}

/* v[index] where v is a sequence; *found false when out of range. */
static mf_status item_at(jinja_run *run, jinja_value v, int64_t index, bool *found, jinja_value *out)
{
    bool has;
    int64_t length = 0;
    MF_TRY(jinja_length(run, v, &has, &length));
    index += index < 0 ? length : 0;
    *found = index >= 0 && index < length;
    if (!*found) {
        return MF_OK;
    }
    switch ((jinja_type)v.type) {
    case JINJA_STR: return char_at(run, v.as.s, index, out);
    case JINJA_RANGE: *out = jinja_range_at(v.as.r, index); return MF_OK;
    default: *out = v.as.l->items[index]; return MF_OK;
    }
}

/* Can the value be a key of a dict? */
static bool is_hashable(jinja_value v, int depth)
{
    if (v.type == JINJA_TUPLE && depth < JINJA_MAX_VALUE_DEPTH) {
        for (size_t i = 0; i < v.as.l->count; i++) {
            if (!is_hashable(v.as.l->items[i], depth + 1)) {
                return false;
            }
        }
    }
    return v.type != JINJA_LIST && v.type != JINJA_DICT && v.type != JINJA_VIEW;
}

mf_status jinja_getitem(jinja_run *run, jinja_value v, jinja_value key, jinja_value *out)
{
    bool found = false;
    int64_t index;
    switch ((jinja_type)v.type) {
    case JINJA_UNDEFINED: return jinja_undef_fail(run, v);
    case JINJA_STR:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
        if (jinja_as_int(key, &index)) {
            MF_TRY(item_at(run, v, index, &found, out));
        }
        break;
    case JINJA_DICT:
        if (is_hashable(key, 0)) {
            jinja_value *item;
            MF_TRY(jinja_dict_get(run, v.as.d, key, &item));
            if (item) {
                *out = *item;
                return MF_OK;
            }
        }
        break;
    default: break;
    }
    if (!found && key.type == JINJA_STR) {
        MF_TRY(find_attr(run, v, key.as.s->data, key.as.s->size, &found, out));
    }
    return found ? MF_OK : jinja_undef_name(run, jinja_type_name(v), key, out);
}

/* ---- slices ------------------------------------------------------------------------------------------------------- */

static mf_status slice_index(jinja_run *run, jinja_value v, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (v.type != JINJA_NONE && !jinja_as_int(v, out)) {
        return jinja_fail(run, MF_ERR_INVALID, "slice indices must be integers or None, not %s", jinja_type_name(v));
    }
    return MF_OK;
}

static int64_t clamp_index(int64_t index, int64_t length, int64_t step)
{
    if (index < 0) {
        index += length;
        return index < 0 ? (step < 0 ? -1 : 0) : index;
    }
    return index >= length ? (step < 0 ? length - 1 : length) : index;
}

static mf_status slice_str(jinja_run *run, jinja_str *s, int64_t start, int64_t step, int64_t count, jinja_value *out)
{
    bool ascii = (size_t)jinja_str_chars(s) == s->size;
    MF_TRY(jinja_step_bytes(run, s->size));
    if (step == 1) {
        size_t from = ascii ? (size_t)start : jinja_char_offset(s->data, s->size, start);
        size_t bytes = ascii ? (size_t)count : jinja_char_offset(s->data + from, s->size - from, count);
        MF_TRY(jinja_str_view(run, s->data + from, bytes, out));
        out->as.s->chars = count;
        return jinja_str_as(run, s, out);
    }
    size_t *offsets = NULL;
    if (!ascii) {
        size_t n = 0;
        JINJA_NEW(run, offsets, (size_t)s->chars);
        for (size_t pos = 0; pos < s->size && n < (size_t)s->chars;) {
            offsets[n++] = pos;
            jinja_next_char(s->data, s->size, &pos);
        }
    }
    jinja_text text = { 0 };
    for (int64_t i = 0; i < count; i++) {
        size_t from = ascii ? (size_t)(start + i * step) : offsets[start + i * step];
        size_t to = from;
        jinja_next_char(s->data, s->size, &to);
        MF_TRY(jinja_text_append(run, &text, s->data + from, to - from));
    }
    MF_TRY(jinja_step(run, (size_t)count / 16));
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, s, out);
}

static mf_status slice_range(jinja_run *run, const jinja_range *r, int64_t start, int64_t stop, int64_t step,
                             int64_t count, jinja_value *out)
{
    jinja_range *sub;
    JINJA_NEW(run, sub, 1);
    int64_t from;
    int64_t to;
    bool bad = __builtin_mul_overflow(start, r->step, &from) || __builtin_add_overflow(from, r->start, &sub->start) ||
               __builtin_mul_overflow(stop, r->step, &to) || __builtin_add_overflow(to, r->start, &sub->stop) ||
               __builtin_mul_overflow(step, r->step, &sub->step);
    if (bad) {
        return jinja_fail(run, MF_ERR_INVALID, "an integer does not fit 64 bits");
    }
    sub->count = count;
    *out = (jinja_value){ .type = JINJA_RANGE, .as.r = sub };
    return MF_OK;
}

mf_status jinja_slice(jinja_run *run, jinja_value v, jinja_value start_v, jinja_value stop_v, jinja_value step_v,
                      jinja_value *out)
{
    bool has;
    int64_t length = 0;
    int64_t start;
    int64_t stop;
    int64_t step;
    if (v.type == JINJA_UNDEFINED) {
        return jinja_undef_fail(run, v);
    }
    if (v.type != JINJA_STR && v.type != JINJA_LIST && v.type != JINJA_TUPLE && v.type != JINJA_RANGE) {
        return jinja_fail(run, MF_ERR_INVALID, "'%s' object cannot be sliced", jinja_type_name(v));
    }
    MF_TRY(jinja_length(run, v, &has, &length));
    MF_TRY(slice_index(run, step_v, 1, &step));
    if (step == 0) {
        return jinja_fail(run, MF_ERR_INVALID, "slice step cannot be zero");
    }
    step = step < -INT64_MAX ? -INT64_MAX : step;
    MF_TRY(slice_index(run, start_v, step < 0 ? INT64_MAX : 0, &start));
    MF_TRY(slice_index(run, stop_v, step < 0 ? INT64_MIN : INT64_MAX, &stop));
    start = clamp_index(start, length, step);
    stop = clamp_index(stop, length, step);
    int64_t count = 0;
    if (step < 0) {
        count = stop < start ? (start - stop - 1) / -step + 1 : 0;
    } else {
        count = start < stop ? (stop - start - 1) / step + 1 : 0;
    }
    if (v.type == JINJA_STR) {
        return slice_str(run, v.as.s, start, step, count, out);
    }
    if (v.type == JINJA_RANGE) {
        return slice_range(run, v.as.r, start, stop, step, count, out);
    }
    const jinja_list *list = v.as.l;
    MF_TRY(jinja_list_new(run, (jinja_type)v.type, (size_t)count, out));
    MF_TRY(jinja_step(run, (size_t)count / 8));
    for (int64_t i = 0; i < count; i++) {
        out->as.l->items[i] = list->items[start + i * step];
    }
    return MF_OK;
}

/* ---- paths: "a.b.0" ----------------------------------------------------------------------------------------------- */

mf_status jinja_getpath(jinja_run *run, jinja_value v, jinja_value path, jinja_value fallback, jinja_value *out)
{
    bool has_fallback = fallback.type != JINJA_MISSING && fallback.type != JINJA_NONE;
    *out = v;
    if (path.type == JINJA_NONE || path.type == JINJA_MISSING) {
        return MF_OK;
    }
    const char *data = path.type == JINJA_STR ? path.as.s->data : NULL;
    const char *end = data ? data + path.as.s->size : NULL;
    for (;;) {
        jinja_value part = path;
        const char *dot = NULL;
        if (data) {
            dot = memchr(data, '.', (size_t)(end - data));
            size_t size = (size_t)((dot ? dot : end) - data);
            int64_t index;
            size_t digits = 0;
            while (digits < size && data[digits] >= '0' && data[digits] <= '9') {
                digits++;
            }
            if (size && digits == size && jinja_parse_int(data, size, 10, &index) == JINJA_PARSED) {
                part = jinja_int(index);
            } else {
                MF_TRY(jinja_str_view(run, data, size, &part));
            }
        }
        MF_TRY(jinja_step(run, 1));
        MF_TRY(jinja_getitem(run, *out, part, out));
        if (has_fallback && out->type == JINJA_UNDEFINED) {
            *out = fallback;
        }
        if (!dot) {
            return MF_OK;
        }
        data = dot + 1;
    }
}

/* ---- calls -------------------------------------------------------------------------------------------------------- */

mf_status jinja_call(jinja_run *run, jinja_value callee, const jinja_args *args, jinja_value *out)
{
    switch ((jinja_type)callee.type) {
    case JINJA_UNDEFINED: return jinja_undef_fail(run, callee);
    case JINJA_MACRO: return jinja_macro_call(run, callee.as.macro, args, out);
    case JINJA_METHOD: return callee.as.method->builtin->fn(run, callee.as.method->self, args, out);
    case JINJA_LOOP: return jinja_loop_call(run, callee.as.loop, args, out);
    case JINJA_FUNC:
        if (!callee.as.func->fn) {
            return jinja_fail(run, MF_ERR_UNSUPPORTED, "function '%s' is not supported", callee.as.func->name);
        }
        return callee.as.func->fn(run, jinja_none(), args, out);
    case JINJA_JOINER: {
        jinja_joiner *joiner = callee.as.joiner;
        jinja_value bound[JINJA_MAX_PARAMS];
        MF_TRY(jinja_bind(run, "joiner", "", args, bound));
        if (joiner->used) {
            *out = joiner->separator;
            return MF_OK;
        }
        joiner->used = true;
        return jinja_str_view(run, "", 0, out);
    }
    default: return jinja_fail(run, MF_ERR_INVALID, "'%s' object is not callable", jinja_type_name(callee));
    }
}

typedef struct param {
    const char *name;
    size_t size;
    bool optional, by_position_only, by_name_only;
} param;

static size_t read_spec(const char *spec, param *params)
{
    size_t n = 0;
    while (*spec && n < JINJA_MAX_PARAMS) {
        param *p = &params[n++];
        *p = (param){ .by_name_only = *spec == '*' };
        p->name = spec + p->by_name_only;
        p->size = strcspn(p->name, "?/ ");
        spec = p->name + p->size;
        for (; *spec == '?' || *spec == '/'; spec++) {
            p->optional |= *spec == '?';
            p->by_position_only |= *spec == '/';
        }
        spec += *spec == ' ';
    }
    return n;
}

mf_status jinja_bind(jinja_run *run, const char *what, const char *spec, const jinja_args *args, jinja_value *out)
{
    param params[JINJA_MAX_PARAMS];
    size_t n = read_spec(spec, params);
    for (size_t i = 0; i < JINJA_MAX_PARAMS; i++) {
        out[i] = (jinja_value){ .type = JINJA_MISSING };
    }
    for (size_t i = 0; i < args->num_pos; i++) {
        if (i >= n || params[i].by_name_only) {
            return jinja_fail(run, MF_ERR_INVALID, "%s takes at most %zu arguments; got %zu", what, i, args->num_pos);
        }
        out[i] = args->pos[i];
    }
    for (size_t k = 0; k < args->num_kw; k++) {
        const jinja_str *key = args->kw_names[k].as.s;
        size_t i = 0;
        while (i < n && (params[i].by_position_only || params[i].size != key->size ||
                         memcmp(params[i].name, key->data, key->size) != 0)) {
            i++;
        }
        if (i == n || out[i].type != JINJA_MISSING) {
            return jinja_fail(run, MF_ERR_INVALID, "%s got %s keyword argument '%.*s'", what,
                              i == n ? "an unexpected" : "a second", key->size > 100 ? 100 : (int)key->size, key->data);
        }
        out[i] = args->kw_values[k];
    }
    for (size_t i = 0; i < n; i++) {
        if (!params[i].optional && out[i].type == JINJA_MISSING) {
            return jinja_fail(run, MF_ERR_INVALID, "%s needs argument '%.*s'", what, (int)params[i].size, params[i].name);
        }
    }
    return MF_OK;
}
