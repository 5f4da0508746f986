/* jinja_compare.c - equality, order, membership, hashing and sorting, as Python defines them. */
#include <math.h>
#include <string.h>

#include "text/jinja_value.h"

static mf_status too_deep(jinja_run *run)
{
    return jinja_fail(run, MF_ERR_LIMIT, "a value is nested deeper than %d", JINJA_MAX_VALUE_DEPTH);
}

/* -1, 0, 1, or 2 when not ordered (NaN).  Exact also where an int has no double. */
static int compare_numbers(jinja_value a, jinja_value b)
{
    int64_t x;
    int64_t y;
    bool int_a = jinja_as_int(a, &x);
    bool int_b = jinja_as_int(b, &y);
    if (int_a && int_b) {
        return x < y ? -1 : x > y;
    }
    if (!int_a && !int_b) {
        return isnan(a.as.f) || isnan(b.as.f) ? 2 : a.as.f < b.as.f ? -1 : a.as.f > b.as.f;
    }
    if (int_b) {
        int r = compare_numbers(b, a);
        return r == 2 ? 2 : -r;
    }
    double f = b.as.f;
    if (isnan(f)) {
        return 2;
    }
    if (f >= 0x1p63 || f < -0x1p63) {
        return f > 0 ? -1 : 1;
    }
    int64_t whole = (int64_t)f; /* towards zero */
    if (x != whole) {
        return x < whole ? -1 : 1;
    }
    double rest = f - (double)whole;
    return rest > 0 ? -1 : rest < 0;
}

static int compare_str(const jinja_str *a, const jinja_str *b)
{
    size_t n = a->size < b->size ? a->size : b->size;
    int r = n ? memcmp(a->data, b->data, n) : 0; /* UTF-8 sorts as its code points do */
    return r ? (r < 0 ? -1 : 1) : (a->size < b->size ? -1 : a->size > b->size);
}

bool jinja_same(jinja_value a, jinja_value b)
{
    if (a.type != b.type) {
        return false;
    }
    switch ((jinja_type)a.type) {
    case JINJA_MISSING:
    case JINJA_NONE: return true;
    case JINJA_BOOL: return a.as.b == b.as.b;
    case JINJA_INT: return a.as.i == b.as.i;
    case JINJA_FLOAT: return a.as.f == b.as.f;
    case JINJA_STR:
        return a.as.s == b.as.s ||
               (a.as.s->size == b.as.s->size && a.as.s->markup == b.as.s->markup && compare_str(a.as.s, b.as.s) == 0);
    case JINJA_METHOD: return a.as.method == b.as.method;
    default: return a.as.l == b.as.l; /* every other member is a pointer */
    }
}

static mf_status equal(jinja_run *run, jinja_value a, jinja_value b, int depth, bool *out);

static mf_status equal_dict(jinja_run *run, const jinja_dict *a, const jinja_dict *b, int depth, bool *out)
{
    *out = false;
    if (a->count != b->count) {
        return MF_OK;
    }
    for (size_t i = 0; i < a->count; i++) {
        jinja_value *other;
        MF_TRY(jinja_dict_get(run, b, a->entries[i].key, &other));
        if (!other) {
            return MF_OK;
        }
        bool same;
        MF_TRY(equal(run, a->entries[i].value, *other, depth + 1, &same));
        if (!same) {
            return MF_OK;
        }
    }
    *out = true;
    return MF_OK;
}

static mf_status equal_list(jinja_run *run, const jinja_list *a, const jinja_list *b, int depth, bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; *out && i < a->count; i++) {
        if (!jinja_same(a->items[i], b->items[i])) {
            MF_TRY(equal(run, a->items[i], b->items[i], depth + 1, out));
        }
    }
    return MF_OK;
}

/* Key and item views compare as sets. */
static mf_status equal_view(jinja_run *run, const jinja_view *a, const jinja_view *b, int depth, bool *out)
{
    *out = a == b;
    if (a->kind != b->kind || a->kind == JINJA_VIEW_VALUES || *out || a->dict->count != b->dict->count) {
        return MF_OK;
    }
    for (size_t i = 0; i < a->dict->count; i++) {
        jinja_value *other;
        MF_TRY(jinja_dict_get(run, b->dict, a->dict->entries[i].key, &other));
        bool same = other != NULL;
        if (same && a->kind == JINJA_VIEW_ITEMS) {
            MF_TRY(equal(run, a->dict->entries[i].value, *other, depth + 1, &same));
        }
        if (!same) {
            return MF_OK;
        }
    }
    *out = true;
    return MF_OK;
}

static mf_status equal(jinja_run *run, jinja_value a, jinja_value b, int depth, bool *out)
{
    if (depth > JINJA_MAX_VALUE_DEPTH) {
        return too_deep(run);
    }
    MF_TRY(jinja_step(run, 1));
    if (jinja_is_number(a) && jinja_is_number(b)) {
        *out = compare_numbers(a, b) == 0;
        return MF_OK;
    }
    if (a.type != b.type) {
        *out = false;
        return MF_OK;
    }
    switch ((jinja_type)a.type) {
    case JINJA_UNDEFINED: *out = true; return MF_OK;
    case JINJA_STR:
        MF_TRY(jinja_step_bytes(run, a.as.s->size));
        *out = a.as.s->size == b.as.s->size && compare_str(a.as.s, b.as.s) == 0;
        return MF_OK;
    case JINJA_LIST:
    case JINJA_TUPLE: return equal_list(run, a.as.l, b.as.l, depth, out);
    case JINJA_DICT: return equal_dict(run, a.as.d, b.as.d, depth, out);
    case JINJA_RANGE: {
        const jinja_range *x = a.as.r;
        const jinja_range *y = b.as.r;
        *out = x->count == y->count &&
               (x->count == 0 || (x->start == y->start && (x->count == 1 || x->step == y->step)));
        return MF_OK;
    }
    case JINJA_VIEW: return equal_view(run, a.as.view, b.as.view, depth, out);
    case JINJA_METHOD:
        *out = a.as.method->builtin == b.as.method->builtin && jinja_same(a.as.method->self, b.as.method->self);
        return MF_OK;
    default: *out = jinja_same(a, b); return MF_OK;
    }
}

mf_status jinja_equal(jinja_run *run, jinja_value a, jinja_value b, bool *out)
{
    return equal(run, a, b, 0, out);
}

static mf_status not_ordered(jinja_run *run, jinja_value a, jinja_value b)
{
    return jinja_fail(run, MF_ERR_INVALID, "values of type '%s' and '%s' have no order", jinja_type_name(a),
                      jinja_type_name(b));
}

static bool decide(int r, jinja_order order)
{
    switch (order) {
    case JINJA_LT: return r == -1;
    case JINJA_LE: return r == -1 || r == 0;
    case JINJA_GT: return r == 1;
    case JINJA_GE: return r == 1 || r == 0;
    }
    return false;
}

static mf_status ordered(jinja_run *run, jinja_value a, jinja_value b, jinja_order order, int depth, bool *out)
{
    if (depth > JINJA_MAX_VALUE_DEPTH) {
        return too_deep(run);
    }
    MF_TRY(jinja_step(run, 1));
    if (jinja_is_number(a) && jinja_is_number(b)) {
        *out = decide(compare_numbers(a, b), order);
        return MF_OK;
    }
    if (a.type == JINJA_UNDEFINED || b.type == JINJA_UNDEFINED) {
        return jinja_undef_fail(run, a.type == JINJA_UNDEFINED ? a : b);
    }
    if (a.type == JINJA_STR && b.type == JINJA_STR) {
        MF_TRY(jinja_step_bytes(run, a.as.s->size));
        *out = decide(compare_str(a.as.s, b.as.s), order);
        return MF_OK;
    }
    if (a.type != b.type || (a.type != JINJA_LIST && a.type != JINJA_TUPLE)) {
        return not_ordered(run, a, b);
    }
    const jinja_list *x = a.as.l;
    const jinja_list *y = b.as.l;
    size_t n = x->count < y->count ? x->count : y->count;
    for (size_t i = 0; i < n; i++) {
        bool same = jinja_same(x->items[i], y->items[i]);
        if (!same) {
            MF_TRY(equal(run, x->items[i], y->items[i], depth + 1, &same));
        }
        if (!same) {
            return ordered(run, x->items[i], y->items[i], order, depth + 1, out);
        }
    }
    *out = decide(x->count < y->count ? -1 : x->count > y->count, order);
    return MF_OK;
}

mf_status jinja_ordered(jinja_run *run, jinja_value a, jinja_value b, jinja_order order, bool *out)
{
    return ordered(run, a, b, order, 0, out);
}

mf_status jinja_contains(jinja_run *run, jinja_value container, jinja_value item, bool *out)
{
    *out = false;
    switch ((jinja_type)container.type) {
    case JINJA_STR: {
        if (item.type != JINJA_STR) {
            return jinja_fail(run, MF_ERR_INVALID, "'in <string>' requires string as left operand, not %s",
                              jinja_type_name(item));
        }
        MF_TRY(jinja_step_bytes(run, container.as.s->size));
        *out = item.as.s->size == 0 ||
               memmem(container.as.s->data, container.as.s->size, item.as.s->data, item.as.s->size) != NULL;
        return MF_OK;
    }
    case JINJA_DICT: {
        jinja_value *found;
        MF_TRY(jinja_dict_get(run, container.as.d, item, &found));
        *out = found != NULL;
        return MF_OK;
    }
    case JINJA_VIEW:
        if (container.as.view->kind == JINJA_VIEW_KEYS) {
            jinja_value *found;
            MF_TRY(jinja_dict_get(run, container.as.view->dict, item, &found));
            *out = found != NULL;
            return MF_OK;
        }
        break;
    default: break;
    }
    jinja_iter *iter;
    MF_TRY(jinja_iter_open(run, container, &iter));
    for (;;) {
        jinja_value v;
        bool done;
        MF_TRY(jinja_iter_next(run, iter, &v, &done));
        if (done) {
            return MF_OK;
        }
        *out = jinja_same(v, item);
        if (!*out) {
            MF_TRY(jinja_equal(run, v, item, out));
        }
        if (*out) {
            return MF_OK;
        }
    }
}

/* ---- hashing ------------------------------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t h)
{
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return h ^ (h >> 31);
}

static uint64_t hash_bytes(const char *data, size_t size)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++) {
        h = (h ^ (unsigned char)data[i]) * 0x100000001b3u;
    }
    return mix(h);
}

static mf_status hash_value(jinja_run *run, jinja_value v, int depth, uint64_t *out)
{
    switch ((jinja_type)v.type) {
    case JINJA_STR:
        MF_TRY(jinja_step_bytes(run, v.as.s->size));
        *out = hash_bytes(v.as.s->data, v.as.s->size);
        return MF_OK;
    case JINJA_NONE: *out = mix(1); return MF_OK;
    case JINJA_UNDEFINED: *out = mix(2); return MF_OK;
    case JINJA_BOOL: *out = mix((uint64_t)v.as.b); return MF_OK; /* as the equal int */
    case JINJA_INT: *out = mix((uint64_t)v.as.i); return MF_OK;
    case JINJA_FLOAT: {
        double f = v.as.f;
        if (f >= -0x1p63 && f < 0x1p63 && f == (double)(int64_t)f) {
            *out = mix((uint64_t)(int64_t)f);
        } else {
            uint64_t bits;
            memcpy(&bits, &f, sizeof bits);
            *out = mix(bits ^ 0x9e3779b97f4a7c15u);
        }
        return MF_OK;
    }
    case JINJA_TUPLE: {
        if (depth > JINJA_MAX_VALUE_DEPTH) {
            return too_deep(run);
        }
        uint64_t h = 3;
        for (size_t i = 0; i < v.as.l->count; i++) {
            uint64_t item;
            MF_TRY(hash_value(run, v.as.l->items[i], depth + 1, &item));
            h = mix(h * 31 + item);
        }
        MF_TRY(jinja_step(run, v.as.l->count));
        *out = h;
        return MF_OK;
    }
    case JINJA_RANGE:
        *out = mix((uint64_t)v.as.r->count * 31 + (v.as.r->count ? (uint64_t)v.as.r->start : 0));
        return MF_OK;
    case JINJA_LIST:
    case JINJA_DICT:
    case JINJA_VIEW:
        return jinja_fail(run, MF_ERR_INVALID, "unhashable type: '%s'", jinja_type_name(v));
    case JINJA_METHOD: *out = mix((uint64_t)(uintptr_t)v.as.method->builtin); return MF_OK;
    default: *out = mix((uint64_t)(uintptr_t)v.as.l); return MF_OK;
    }
}

mf_status jinja_hash(jinja_run *run, jinja_value v, uint64_t *out)
{
    return hash_value(run, v, 0, out);
}

jinja_value *jinja_dict_get_text(const jinja_dict *dict, const char *key, size_t size)
{
    uint64_t hash = hash_bytes(key, size);
    size_t mask = dict->index ? dict->index_size - 1 : 0;
    size_t slot = hash & mask;
    for (size_t i = 0; dict->index ? dict->index[slot] != 0 : i < dict->count; i++, slot = (slot + 1) & mask) {
        jinja_entry *entry = &dict->entries[dict->index ? dict->index[slot] - 1 : i];
        if (entry->hash == hash && entry->key.type == JINJA_STR && entry->key.as.s->size == size &&
            (size == 0 || memcmp(entry->key.as.s->data, key, size) == 0)) {
            return &entry->value;
        }
    }
    return NULL;
}

/* ---- sorting ------------------------------------------------------------------------------------------------------ */

/* A bottom-up merge sort of positions: stable, no recursion, and only "less than" is asked, as Python's sort does. */
mf_status jinja_sort(jinja_run *run, jinja_value *items, jinja_value *keys, size_t count, bool reverse)
{
    if (count < 2) {
        return MF_OK;
    }
    size_t *from;
    size_t *to;
    jinja_value *sorted;
    JINJA_NEW(run, from, count);
    JINJA_NEW(run, to, count);
    JINJA_NEW(run, sorted, count);
    for (size_t i = 0; i < count; i++) {
        from[i] = i;
    }
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t start = 0; start < count; start += 2 * width) {
            size_t mid = start + width < count ? start + width : count;
            size_t end = start + 2 * width < count ? start + 2 * width : count;
            size_t i = start;
            size_t j = mid;
            for (size_t k = start; k < end; k++) {
                bool take_right = i >= mid;
                if (!take_right && j < end) {
                    /* Equal keys keep their order, reversed or not. */
                    MF_TRY(reverse ? jinja_ordered(run, keys[from[i]], keys[from[j]], JINJA_LT, &take_right)
                                   : jinja_ordered(run, keys[from[j]], keys[from[i]], JINJA_LT, &take_right));
                }
                to[k] = take_right ? from[j++] : from[i++];
            }
        }
        size_t *swap = from;
        from = to;
        to = swap;
    }
    for (size_t i = 0; i < count; i++) {
        sorted[i] = items[from[i]];
    }
    memcpy(items, sorted, count * sizeof *items);
    for (size_t i = 0; i < count; i++) {
        sorted[i] = keys[from[i]];
    }
    memcpy(keys, sorted, count * sizeof *keys);
    return MF_OK;
}
