/* jinja_value.c - making values, the render's limits, texts that grow, output: see jinja_value.h. */
#include "text/jinja_value.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "text/utf8.h"

/* ---- state -------------------------------------------------------------------------------------------------------- */

void jinja_clean_message(char *message)
{
    size_t bad;
    while (!mf_utf8_valid(message, strlen(message), &bad)) {
        message[bad] = '?';
    }
}

mf_status jinja_fail(jinja_run *run, mf_status status, const char *fmt, ...)
{
    if (run->err) {
        va_list args;
        va_start(args, fmt);
        char message[sizeof run->err->message];
        vsnprintf(message, sizeof message, fmt, args);
        va_end(args);
        mf_fail(run->err, status, "%s: line %u: %s", run->name, run->line, message);
        jinja_clean_message(run->err->message);
    }
    return status;
}

mf_status jinja_no_memory(jinja_run *run, size_t count, size_t size)
{
    size_t limit = run->arena.limit_bytes;
    size_t bytes;
    size_t total;
    if (!mf_mul_ok(count, size, &bytes) || !mf_add_ok(run->arena.used_bytes, bytes, &total) ||
        (limit && total > limit - 64)) {
        return jinja_fail(run, MF_ERR_LIMIT, "the template needs more than %zu bytes of memory", limit);
    }
    return jinja_fail(run, MF_ERR_NOMEM, "out of memory");
}

mf_status jinja_step_slow(jinja_run *run)
{
    if (run->fuel < 0) {
        return jinja_fail(run, MF_ERR_LIMIT, "the template takes more than %lld steps", (long long)run->fuel_limit);
    }
    if (mf_now_ns() > run->deadline_ns) {
        return jinja_fail(run, MF_ERR_LIMIT, "the template takes longer than %lld ms",
                          (long long)(run->time_ns / 1000000));
    }
    run->fuel_check = run->fuel > 512 ? run->fuel - 512 : 0;
    return MF_OK;
}

/* ---- strings ------------------------------------------------------------------------------------------------------ */

mf_status jinja_str_view(jinja_run *run, const char *data, size_t size, jinja_value *out)
{
    jinja_str *s;
    JINJA_NEW(run, s, 1);
    s->data = data;
    s->size = size;
    s->chars = size <= 1 ? (int64_t)size : -1;
    *out = (jinja_value){ .type = JINJA_STR, .as.s = s };
    return MF_OK;
}

mf_status jinja_str_copy(jinja_run *run, const char *data, size_t size, jinja_value *out)
{
    MF_TRY(jinja_step_bytes(run, size));
    char *copy = mf_arena_strndup(&run->arena, data, size);
    if (!copy) {
        return jinja_no_memory(run, size, 1);
    }
    return jinja_str_view(run, copy, size, out);
}

mf_status jinja_str_text(jinja_run *run, jinja_text *text, jinja_value *out)
{
    MF_TRY(jinja_step_bytes(run, text->size));
    MF_TRY(jinja_str_view(run, text->data ? text->data : "", text->size, out));
    if (text->capacity > text->size) {
        jinja_strbuf *buf;
        JINJA_NEW(run, buf, 1);
        *buf = (jinja_strbuf){ text->data, text->size, text->capacity };
        out->as.s->buf = buf;
    }
    *text = (jinja_text){ 0 };
    return MF_OK;
}

mf_status jinja_str_as(jinja_run *run, const jinja_str *like, jinja_value *str)
{
    if (!like->markup || str->type != JINJA_STR || str->as.s->markup) {
        return MF_OK;
    }
    jinja_str *s;
    JINJA_NEW(run, s, 1);
    *s = *str->as.s;
    s->markup = true;
    str->as.s = s;
    return MF_OK;
}

mf_status jinja_str_concat(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out)
{
    jinja_str *x = a.as.s;
    const jinja_str *y = b.as.s;
    size_t size;
    if (!mf_add_ok(x->size, y->size, &size)) {
        return jinja_no_memory(run, SIZE_MAX, 1);
    }
    MF_TRY(jinja_step_bytes(run, y->size));
    jinja_strbuf *buf = x->buf;
    if (!buf || x->data + x->size != buf->data + buf->used || buf->capacity - buf->used < y->size) {
        MF_TRY(jinja_step_bytes(run, x->size));
        JINJA_NEW(run, buf, 1);
        buf->capacity = size < 64 ? size : size + size / 2;
        JINJA_NEW(run, buf->data, buf->capacity);
        if (x->size) {
            memcpy(buf->data, x->data, x->size);
        }
        buf->used = x->size;
    }
    const char *start = buf->data + buf->used - x->size;
    if (y->size) {
        memcpy(buf->data + buf->used, y->data, y->size);
    }
    buf->used += y->size;
    int64_t chars = x->chars >= 0 && y->chars >= 0 ? x->chars + y->chars : -1;
    MF_TRY(jinja_str_view(run, start, size, out));
    out->as.s->chars = chars;
    out->as.s->buf = buf;
    return MF_OK;
}

int64_t jinja_str_chars(jinja_str *s)
{
    if (s->chars < 0) {
        int64_t n = 0;
        for (size_t i = 0; i < s->size; i++) {
            n += ((unsigned char)s->data[i] & 0xc0) != 0x80;
        }
        s->chars = n;
    }
    return s->chars;
}

bool jinja_str_is(jinja_value v, const char *text)
{
    return v.type == JINJA_STR && v.as.s->size == strlen(text) && memcmp(v.as.s->data, text, v.as.s->size) == 0;
}

/* ---- lists, dicts, undefined -------------------------------------------------------------------------------------- */

mf_status jinja_list_new(jinja_run *run, jinja_type type, size_t count, jinja_value *out)
{
    MF_TRY(jinja_step(run, count / 32)); /* filling it is a copy */
    jinja_list *list;
    JINJA_NEW(run, list, 1);
    JINJA_NEW(run, list->items, count);
    list->count = count;
    *out = (jinja_value){ .type = (uint8_t)type, .as.l = list };
    return MF_OK;
}

mf_status jinja_pair(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out)
{
    MF_TRY(jinja_list_new(run, JINJA_TUPLE, 2, out));
    out->as.l->items[0] = a;
    out->as.l->items[1] = b;
    return MF_OK;
}

mf_status jinja_items_add(jinja_run *run, jinja_items *items, jinja_value value)
{
    if (items->count == items->capacity) {
        size_t capacity = items->capacity ? items->capacity * 2 : 8;
        jinja_value *data;
        JINJA_NEW(run, data, capacity);
        if (items->count) {
            memcpy(data, items->data, items->count * sizeof *data);
        }
        items->data = data;
        items->capacity = capacity;
    }
    items->data[items->count++] = value;
    return MF_OK;
}

mf_status jinja_items_done(jinja_run *run, jinja_items *items, jinja_type type, jinja_value *out)
{
    jinja_list *list;
    JINJA_NEW(run, list, 1);
    list->items = items->data;
    list->count = items->count;
    *out = (jinja_value){ .type = (uint8_t)type, .as.l = list };
    return MF_OK;
}

mf_status jinja_undef_hint(jinja_run *run, const char *hint, jinja_value *out)
{
    jinja_undef *undef;
    JINJA_NEW(run, undef, 1);
    undef->hint = hint;
    *out = (jinja_value){ .type = JINJA_UNDEFINED, .as.undef = undef };
    return MF_OK;
}

mf_status jinja_undef_name(jinja_run *run, const char *owner, jinja_value name, jinja_value *out)
{
    MF_TRY(jinja_undef_hint(run, NULL, out));
    out->as.undef->owner = owner;
    out->as.undef->name = name;
    return MF_OK;
}

mf_status jinja_undef_fail(jinja_run *run, jinja_value undefined)
{
    const jinja_undef *u = undefined.as.undef;
    if (u->hint) {
        return jinja_fail(run, MF_ERR_INVALID, "%s", u->hint);
    }
    if (u->name.type == JINJA_STR) {
        const jinja_str *s = u->name.as.s;
        int n = s->size > 200 ? 200 : (int)s->size;
        return u->owner ? jinja_fail(run, MF_ERR_INVALID, "'%s object' has no attribute '%.*s'", u->owner, n, s->data)
                        : jinja_fail(run, MF_ERR_INVALID, "'%.*s' is undefined", n, s->data);
    }
    if (u->name.type == JINJA_INT) {
        return jinja_fail(run, MF_ERR_INVALID, "%s object has no element %lld", u->owner, (long long)u->name.as.i);
    }
    return jinja_fail(run, MF_ERR_INVALID, "%s object has no such element", u->owner ? u->owner : "the");
}

mf_status jinja_method_new(jinja_run *run, jinja_value self, const jinja_builtin *builtin, jinja_value *out)
{
    jinja_method *method;
    JINJA_NEW(run, method, 1);
    *method = (jinja_method){ self, builtin };
    *out = (jinja_value){ .type = JINJA_METHOD, .as.method = method };
    return MF_OK;
}

mf_status jinja_dict_new(jinja_run *run, size_t capacity, jinja_value *out)
{
    jinja_dict *dict;
    JINJA_NEW(run, dict, 1);
    if (capacity) {
        JINJA_NEW(run, dict->entries, capacity);
        dict->capacity = capacity;
    }
    *out = (jinja_value){ .type = JINJA_DICT, .as.d = dict };
    return MF_OK;
}

static void index_entry(jinja_dict *dict, size_t entry)
{
    size_t mask = dict->index_size - 1;
    size_t slot = dict->entries[entry].hash & mask;
    while (dict->index[slot]) {
        slot = (slot + 1) & mask;
    }
    dict->index[slot] = (uint32_t)entry + 1;
}

/* The entry whose key has this hash and compares equal; the comparison can fail on deep keys. */
static mf_status find_entry(jinja_run *run, const jinja_dict *dict, jinja_value key, uint64_t hash, jinja_entry **found)
{
    *found = NULL;
    size_t mask = dict->index ? dict->index_size - 1 : 0;
    size_t slot = hash & mask;
    for (size_t i = 0; dict->index ? dict->index[slot] != 0 : i < dict->count; i++, slot = (slot + 1) & mask) {
        jinja_entry *entry = &dict->entries[dict->index ? dict->index[slot] - 1 : i];
        if (i % 16 == 15) { /* keys chosen to collide are paid for */
            MF_TRY(jinja_step(run, 1));
        }
        if (entry->hash == hash) {
            bool same = jinja_same(entry->key, key);
            if (!same) {
                MF_TRY(jinja_equal(run, entry->key, key, &same));
            }
            if (same) {
                *found = entry;
                return MF_OK;
            }
        }
    }
    return MF_OK;
}

mf_status jinja_dict_get(jinja_run *run, const jinja_dict *dict, jinja_value key, jinja_value **found)
{
    uint64_t hash;
    jinja_entry *entry;
    *found = NULL;
    MF_TRY(jinja_hash(run, key, &hash));
    MF_TRY(find_entry(run, dict, key, hash, &entry));
    *found = entry ? &entry->value : NULL;
    return MF_OK;
}

mf_status jinja_dict_set(jinja_run *run, jinja_dict *dict, jinja_value key, jinja_value value)
{
    uint64_t hash;
    jinja_entry *entry;
    MF_TRY(jinja_step(run, 1));
    MF_TRY(jinja_hash(run, key, &hash));
    MF_TRY(find_entry(run, dict, key, hash, &entry));
    if (entry) {
        entry->value = value;
        return MF_OK;
    }
    if (dict->count == dict->capacity) {
        size_t capacity = dict->capacity ? dict->capacity * 2 : 4;
        if (capacity > UINT32_MAX / 4) {
            return jinja_no_memory(run, SIZE_MAX, 1);
        }
        jinja_entry *entries;
        JINJA_NEW(run, entries, capacity);
        if (dict->count) {
            memcpy(entries, dict->entries, dict->count * sizeof *entries);
        }
        dict->entries = entries;
        dict->capacity = capacity;
    }
    dict->entries[dict->count++] = (jinja_entry){ hash, key, value };
    if (dict->index && dict->count * 2 <= dict->index_size) {
        index_entry(dict, dict->count - 1);
    } else if (dict->count > 8) {
        dict->index_size = dict->index_size ? dict->index_size * 2 : 32;
        JINJA_NEW(run, dict->index, dict->index_size);
        for (size_t i = 0; i < dict->count; i++) {
            index_entry(dict, i);
        }
    }
    return MF_OK;
}

/* ---- texts and output --------------------------------------------------------------------------------------------- */

mf_status jinja_text_append(jinja_run *run, jinja_text *text, const char *data, size_t size)
{
    if (size > text->capacity - text->size) {
        size_t need;
        if (!mf_add_ok(text->size, size, &need)) {
            return jinja_no_memory(run, SIZE_MAX, 1);
        }
        size_t capacity = text->capacity ? text->capacity : 48;
        while (capacity < need) {
            capacity = capacity > SIZE_MAX / 2 ? need : capacity * 2;
        }
        char *grown;
        JINJA_NEW(run, grown, capacity);
        if (text->size) {
            memcpy(grown, text->data, text->size);
        }
        text->data = grown;
        text->capacity = capacity;
    }
    if (size) {
        memcpy(text->data + text->size, data, size);
        text->size += size;
    }
    return MF_OK;
}

mf_status jinja_text_puts(jinja_run *run, jinja_text *text, const char *s)
{
    return jinja_text_append(run, text, s, strlen(s));
}

mf_status jinja_text_char(jinja_run *run, jinja_text *text, int32_t code_point)
{
    char bytes[4];
    return jinja_text_append(run, text, bytes, mf_utf8_put((uint32_t)code_point, bytes));
}

mf_status jinja_text_fill(jinja_run *run, jinja_text *text, int32_t code_point, int64_t count)
{
    char bytes[4];
    size_t n = mf_utf8_put((uint32_t)code_point, bytes);
    for (int64_t i = 0; i < count; i++) {
        if (i % 256 == 0) {
            MF_TRY(jinja_step(run, 1));
        }
        MF_TRY(jinja_text_append(run, text, bytes, n));
    }
    return MF_OK;
}

mf_status jinja_write(jinja_run *run, const char *data, size_t size)
{
    MF_TRY(jinja_step_bytes(run, size));
    jinja_sink *sink = run->sink;
    if (!sink->buffer) {
        return jinja_text_append(run, &sink->text, data, size);
    }
    if (size > run->output_limit - (sink->buffer->size - run->output_base)) {
        return jinja_fail(run, MF_ERR_LIMIT, "the template writes more than %zu bytes", run->output_limit);
    }
    mf_status status = mf_buffer_append(sink->buffer, data, size);
    if (status == MF_ERR_LIMIT) {
        return jinja_fail(run, status, "the template writes more than %zu bytes", sink->buffer->limit);
    }
    return status == MF_OK ? MF_OK : jinja_fail(run, status, "out of memory");
}

/* ---- questions ---------------------------------------------------------------------------------------------------- */

const char *jinja_type_name(jinja_value v)
{
    switch ((jinja_type)v.type) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED: return "Undefined";
    case JINJA_NONE: return "NoneType";
    case JINJA_BOOL: return "bool";
    case JINJA_INT: return "int";
    case JINJA_FLOAT: return "float";
    case JINJA_STR: return v.as.s->markup ? "Markup" : "str";
    case JINJA_LIST: return "list";
    case JINJA_TUPLE: return "tuple";
    case JINJA_DICT: return "dict";
    case JINJA_RANGE: return "range";
    case JINJA_VIEW:
        return v.as.view->kind == JINJA_VIEW_KEYS     ? "dict_keys"
               : v.as.view->kind == JINJA_VIEW_VALUES ? "dict_values"
                                                      : "dict_items";
    case JINJA_ITER: return "generator";
    case JINJA_NAMESPACE: return "Namespace";
    case JINJA_MACRO: return "Macro";
    case JINJA_LOOP: return "LoopContext";
    case JINJA_FUNC: return "function";
    case JINJA_METHOD: return "method";
    case JINJA_CYCLER: return "Cycler";
    case JINJA_JOINER: return "Joiner";
    }
    return "object";
}

bool jinja_is_number(jinja_value v)
{
    return v.type == JINJA_INT || v.type == JINJA_FLOAT || v.type == JINJA_BOOL;
}

bool jinja_as_int(jinja_value v, int64_t *out)
{
    if (v.type == JINJA_INT) {
        *out = v.as.i;
    } else if (v.type == JINJA_BOOL) {
        *out = v.as.b;
    }
    return v.type == JINJA_INT || v.type == JINJA_BOOL;
}

mf_status jinja_truth(jinja_run *run, jinja_value v, bool *out)
{
    switch ((jinja_type)v.type) {
    case JINJA_BOOL: *out = v.as.b; return MF_OK;
    case JINJA_INT: *out = v.as.i != 0; return MF_OK;
    case JINJA_FLOAT: *out = v.as.f != 0; return MF_OK;
    case JINJA_MISSING:
    case JINJA_UNDEFINED:
    case JINJA_NONE: *out = false; return MF_OK;
    case JINJA_STR: *out = v.as.s->size != 0; return MF_OK;
    default: break;
    }
    bool has;
    int64_t length = 0;
    MF_TRY(jinja_length(run, v, &has, &length));
    *out = !has || length != 0;
    return MF_OK;
}

jinja_value jinja_range_at(const jinja_range *range, int64_t index)
{
    return jinja_int(range->start + index * range->step);
}

mf_status jinja_view_at(jinja_run *run, const jinja_view *view, size_t index, jinja_value *out)
{
    const jinja_entry *entry = &view->dict->entries[index];
    if (view->kind == JINJA_VIEW_ITEMS) {
        return jinja_pair(run, entry->key, entry->value, out);
    }
    *out = view->kind == JINJA_VIEW_KEYS ? entry->key : entry->value;
    return MF_OK;
}
