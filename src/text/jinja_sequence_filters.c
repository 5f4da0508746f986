/* jinja_sequence_filters.c - filters on lists and other iterables. */
#include <string.h>

#include "text/jinja_bind.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

#define FILTER(name) static mf_status name(jinja_run *run, jinja_value self, const jinja_args *args, jinja_value *out)

static const jinja_value missing = { .type = JINJA_MISSING };

static mf_status flag(jinja_run *run, jinja_value v, bool *out)
{
    *out = false;
    return v.type == JINJA_MISSING ? MF_OK : jinja_truth(run, v, out);
}

/* What Python's sorted() takes: a number. */
static mf_status int_flag(jinja_run *run, const char *what, jinja_value v, bool *out)
{
    int64_t i = 0;
    if (v.type != JINJA_MISSING && !jinja_as_int(v, &i)) {
        return jinja_fail(run, MF_ERR_INVALID, "%s: reverse must be an integer, not %s", what, jinja_type_name(v));
    }
    *out = i != 0;
    return MF_OK;
}

static mf_status lower_str(jinja_run *run, jinja_value *v)
{
    return v->type == JINJA_STR ? jinja_str_method_find("lower", 5)->fn(run, *v, &(jinja_args){ 0 }, v) : MF_OK;
}

/* What an item is compared by: its attribute, in lower case unless case_sensitive. */
static mf_status key_of(jinja_run *run, jinja_value item, jinja_value attribute, jinja_value fallback,
                        bool case_sensitive, jinja_value *key)
{
    MF_TRY(jinja_getpath(run, item, attribute, fallback, key));
    return case_sensitive ? MF_OK : lower_str(run, key);
}

/* A list of our own, to be reordered. */
static mf_status fresh_list(jinja_run *run, jinja_value v, jinja_value *out)
{
    jinja_value all;
    MF_TRY(jinja_collect(run, v, JINJA_LIST, &all));
    MF_TRY(jinja_step(run, all.as.l->count / 4));
    MF_TRY(jinja_list_new(run, JINJA_LIST, all.as.l->count, out));
    if (all.as.l->count) {
        memcpy(out->as.l->items, all.as.l->items, all.as.l->count * sizeof(jinja_value));
    }
    return MF_OK;
}

/* ---- one item ----------------------------------------------------------------------------------------------------- */

FILTER(filter_first)
{
    BIND("first", "");
    jinja_iter *iter;
    bool done;
    MF_TRY(jinja_iter_open(run, self, &iter));
    MF_TRY(jinja_iter_next(run, iter, out, &done));
    return done ? jinja_undef_hint(run, "No first item, sequence was empty.", out) : MF_OK;
}

static bool is_reversible(jinja_value v)
{
    return jinja_is_iterable(v) && v.type != JINJA_ITER && v.type != JINJA_LOOP;
}

FILTER(filter_last)
{
    BIND("last", "");
    int64_t length = 0;
    bool has;
    if (!is_reversible(self)) {
        return jinja_fail(run, MF_ERR_INVALID, "'%s' object is not reversible", jinja_type_name(self));
    }
    MF_TRY(jinja_length(run, self, &has, &length));
    if (length == 0) {
        return jinja_undef_hint(run, "No last item, sequence was empty.", out);
    }
    switch ((jinja_type)self.type) {
    case JINJA_DICT: *out = self.as.d->entries[length - 1].key; return MF_OK;
    case JINJA_VIEW: return jinja_view_at(run, self.as.view, (size_t)length - 1, out);
    default: return jinja_getitem(run, self, jinja_int(-1), out);
    }
}

static mf_status extreme(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, jinja_order better,
                         jinja_value *out)
{
    BIND(what, "case_sensitive? attribute?");
    bool case_sensitive;
    bool done;
    jinja_iter *iter;
    jinja_value best;
    MF_TRY(flag(run, arg[0], &case_sensitive));
    MF_TRY(jinja_iter_open(run, self, &iter));
    MF_TRY(jinja_iter_next(run, iter, out, &done));
    if (done) {
        return jinja_undef_hint(run, "No aggregated item, sequence was empty.", out);
    }
    MF_TRY(key_of(run, *out, arg[1], missing, case_sensitive, &best));
    for (;;) {
        jinja_value item;
        jinja_value key;
        bool is_better;
        MF_TRY(jinja_iter_next(run, iter, &item, &done));
        if (done) {
            return MF_OK;
        }
        MF_TRY(key_of(run, item, arg[1], missing, case_sensitive, &key));
        MF_TRY(jinja_ordered(run, key, best, better, &is_better));
        if (is_better) {
            best = key;
            *out = item;
        }
    }
}

FILTER(filter_min)
{
    return extreme(run, "min", self, args, JINJA_LT, out);
}

FILTER(filter_max)
{
    return extreme(run, "max", self, args, JINJA_GT, out);
}

FILTER(filter_sum)
{
    BIND("sum", "attribute? start?");
    jinja_iter *iter;
    jinja_value total = arg[1].type == JINJA_MISSING ? jinja_int(0) : arg[1];
    if (total.type == JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "sum() can't sum strings");
    }
    MF_TRY(jinja_iter_open(run, self, &iter));
    for (;;) {
        jinja_value item;
        bool done;
        MF_TRY(jinja_iter_next(run, iter, &item, &done));
        if (done) {
            *out = total;
            return MF_OK;
        }
        MF_TRY(jinja_getpath(run, item, arg[0], missing, &item));
        MF_TRY(jinja_binary(run, JINJA_ADD, total, item, &total));
    }
}

FILTER(filter_join)
{
    BIND("join", "d? attribute?");
    jinja_iter *iter;
    jinja_text text = { 0 };
    jinja_value separator = arg[0];
    if (separator.type == JINJA_MISSING) {
        MF_TRY(jinja_str_view(run, "", 0, &separator));
    }
    MF_TRY(jinja_to_str(run, separator, &separator));
    MF_TRY(jinja_iter_open(run, self, &iter));
    for (bool any = false;; any = true) {
        jinja_value item;
        bool done;
        MF_TRY(jinja_iter_next(run, iter, &item, &done));
        if (done) {
            return jinja_str_text(run, &text, out);
        }
        MF_TRY(jinja_getpath(run, item, arg[1], missing, &item));
        if (any) {
            MF_TRY(jinja_append_str(run, &text, separator));
        }
        MF_TRY(jinja_append_str(run, &text, item));
    }
}

/* ---- whole lists -------------------------------------------------------------------------------------------------- */

FILTER(filter_list)
{
    BIND("list", "");
    return jinja_collect(run, self, JINJA_LIST, out);
}

FILTER(filter_reverse)
{
    BIND("reverse", "");
    if (self.type == JINJA_STR) {
        return jinja_slice(run, self, jinja_none(), jinja_none(), jinja_int(-1), out);
    }
    if (is_reversible(self)) {
        return jinja_iter_new(run, JINJA_ITER_REVERSED, self, out);
    }
    MF_TRY(fresh_list(run, self, out));
    jinja_list *list = out->as.l;
    for (size_t i = 0; i < list->count / 2; i++) {
        jinja_value v = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = v;
    }
    return MF_OK;
}

/* The keys of jinja2's sort are lists, one part for each attribute "a,b": equal parts are never asked for an order. */
static mf_status sort_key(jinja_run *run, jinja_value item, jinja_value attribute, bool case_sensitive, jinja_value *out)
{
    jinja_items parts = { 0 };
    jinja_value key;
    if (attribute.type != JINJA_STR) {
        MF_TRY(key_of(run, item, attribute, missing, case_sensitive, &key));
        MF_TRY(jinja_items_add(run, &parts, key));
        return jinja_items_done(run, &parts, JINJA_LIST, out);
    }
    const char *data = attribute.as.s->data;
    const char *end = data + attribute.as.s->size;
    for (;;) {
        const char *comma = memchr(data, ',', (size_t)(end - data));
        jinja_value path;
        MF_TRY(jinja_str_view(run, data, (size_t)((comma ? comma : end) - data), &path));
        MF_TRY(key_of(run, item, path, missing, case_sensitive, &key));
        MF_TRY(jinja_items_add(run, &parts, key));
        if (!comma) {
            return jinja_items_done(run, &parts, JINJA_LIST, out);
        }
        data = comma + 1;
    }
}

FILTER(filter_sort)
{
    BIND("sort", "reverse? case_sensitive? attribute?");
    bool reverse;
    bool case_sensitive;
    jinja_value *keys;
    MF_TRY(int_flag(run, "sort", arg[0], &reverse));
    MF_TRY(flag(run, arg[1], &case_sensitive));
    MF_TRY(fresh_list(run, self, out));
    jinja_list *list = out->as.l;
    JINJA_NEW(run, keys, list->count);
    for (size_t i = 0; i < list->count; i++) {
        MF_TRY(sort_key(run, list->items[i], arg[2], case_sensitive, &keys[i]));
    }
    return jinja_sort(run, list->items, keys, list->count, reverse);
}

FILTER(filter_dictsort)
{
    BIND("dictsort", "case_sensitive? by? reverse?");
    bool reverse;
    bool case_sensitive;
    jinja_value *keys;
    MF_TRY(flag(run, arg[0], &case_sensitive));
    MF_TRY(int_flag(run, "dictsort", arg[2], &reverse));
    bool by_value = jinja_str_is(arg[1], "value");
    if (arg[1].type != JINJA_MISSING && !by_value && !jinja_str_is(arg[1], "key")) {
        return jinja_fail(run, MF_ERR_INVALID, "dictsort: you can only sort by either \"key\" or \"value\"");
    }
    if (self.type == JINJA_UNDEFINED) {
        return jinja_undef_fail(run, self);
    }
    if (self.type != JINJA_DICT) {
        return jinja_fail(run, MF_ERR_INVALID, "dictsort: expected a mapping, got %s", jinja_type_name(self));
    }
    const jinja_dict *dict = self.as.d;
    MF_TRY(jinja_list_new(run, JINJA_LIST, dict->count, out));
    JINJA_NEW(run, keys, dict->count);
    for (size_t i = 0; i < dict->count; i++) {
        MF_TRY(jinja_pair(run, dict->entries[i].key, dict->entries[i].value, &out->as.l->items[i]));
        keys[i] = by_value ? dict->entries[i].value : dict->entries[i].key;
        if (!case_sensitive) {
            MF_TRY(lower_str(run, &keys[i]));
        }
    }
    return jinja_sort(run, out->as.l->items, keys, dict->count, reverse);
}

static mf_status add_group(jinja_run *run, jinja_items *groups, jinja_value key, jinja_value *items, size_t count)
{
    jinja_value members;
    jinja_value group;
    MF_TRY(jinja_list_new(run, JINJA_LIST, count, &members));
    memcpy(members.as.l->items, items, count * sizeof *items);
    MF_TRY(jinja_pair(run, key, members, &group));
    group.as.l->group = true;
    return jinja_items_add(run, groups, group);
}

FILTER(filter_groupby)
{
    BIND("groupby", "attribute default? case_sensitive?");
    bool case_sensitive;
    jinja_value all;
    jinja_value *keys;
    jinja_items groups = { 0 };
    MF_TRY(flag(run, arg[2], &case_sensitive));
    MF_TRY(fresh_list(run, self, &all));
    size_t count = all.as.l->count;
    jinja_value *items = all.as.l->items;
    JINJA_NEW(run, keys, count);
    for (size_t i = 0; i < count; i++) {
        MF_TRY(key_of(run, items[i], arg[0], arg[1], case_sensitive, &keys[i]));
    }
    MF_TRY(jinja_sort(run, items, keys, count, false));
    for (size_t i = 0; i < count;) {
        size_t end = i + 1;
        bool same = true;
        while (end < count && same) {
            same = jinja_same(keys[i], keys[end]);
            if (!same) {
                MF_TRY(jinja_equal(run, keys[i], keys[end], &same));
            }
            end += same;
        }
        jinja_value key; /* as the first member spells it */
        MF_TRY(key_of(run, items[i], arg[0], arg[1], true, &key));
        MF_TRY(add_group(run, &groups, key, items + i, end - i));
        i = end;
    }
    return jinja_items_done(run, &groups, JINJA_LIST, out);
}

/* ---- generators --------------------------------------------------------------------------------------------------- */

FILTER(filter_items)
{
    BIND("items", "");
    return jinja_iter_new(run, JINJA_ITER_ITEMS, self, out);
}

FILTER(filter_unique)
{
    BIND("unique", "case_sensitive? attribute?");
    bool case_sensitive;
    MF_TRY(flag(run, arg[0], &case_sensitive));
    MF_TRY(jinja_iter_new(run, JINJA_ITER_UNIQUE, self, out));
    out->as.iter->case_sensitive = case_sensitive;
    out->as.iter->attribute = arg[1];
    return MF_OK;
}

static mf_status rows(jinja_run *run, const char *what, jinja_iter_kind kind, jinja_value self, jinja_value size,
                      jinja_value fill, jinja_value *out)
{
    int64_t n;
    if (!jinja_as_int(size, &n)) {
        return jinja_fail(run, MF_ERR_INVALID, "%s: size must be int, not %s", what, jinja_type_name(size));
    }
    MF_TRY(jinja_iter_new(run, kind, self, out));
    out->as.iter->size = n;
    out->as.iter->fallback = fill;
    return MF_OK;
}

FILTER(filter_batch)
{
    BIND("batch", "linecount fill_with?");
    return rows(run, "batch", JINJA_ITER_BATCH, self, arg[0], arg[1], out);
}

FILTER(filter_slice)
{
    BIND("slice", "slices fill_with?");
    return rows(run, "slice", JINJA_ITER_SLICE, self, arg[0], arg[1], out);
}

/* The filter or test called `name`; one that is unknown fails at the first item, as in jinja2. */
static mf_status by_name(jinja_run *run, const char *what, jinja_value name, bool test, const jinja_builtin **out)
{
    if (name.type != JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "%s: the name of a %s must be str, not %s", what, test ? "test" : "filter",
                          jinja_type_name(name));
    }
    const jinja_str *s = name.as.s;
    *out = test ? jinja_test_find(s->data, s->size) : jinja_filter_find(s->data, s->size);
    if (!*out) {
        jinja_builtin *unknown;
        JINJA_NEW(run, unknown, 1);
        unknown->name = mf_arena_strndup(&run->arena, s->data, s->size);
        if (!unknown->name) {
            return jinja_no_memory(run, s->size, 1);
        }
        *out = unknown;
    }
    return MF_OK;
}

FILTER(filter_map)
{
    if (args->num_pos == 0) {
        BIND("map", "*attribute *default?");
        MF_TRY(jinja_iter_new(run, JINJA_ITER_ATTR, self, out));
        out->as.iter->attribute = arg[0];
        out->as.iter->fallback = arg[1];
        return MF_OK;
    }
    const jinja_builtin *filter;
    MF_TRY(by_name(run, "map", args->pos[0], false, &filter));
    MF_TRY(jinja_iter_new(run, JINJA_ITER_MAP, self, out));
    out->as.iter->builtin = filter;
    out->as.iter->args = *args;
    out->as.iter->args.pos++;
    out->as.iter->args.num_pos--;
    return MF_OK;
}

static mf_status select(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, bool attribute,
                        bool keep, jinja_value *out)
{
    size_t used = 0;
    MF_TRY(jinja_iter_new(run, JINJA_ITER_SELECT, self, out));
    jinja_iter *iter = out->as.iter;
    iter->keep = keep;
    if (attribute) {
        if (args->num_pos == 0) {
            return jinja_fail(run, MF_ERR_INVALID, "%s: missing parameter for attribute name", what);
        }
        iter->attribute = args->pos[used++];
    }
    if (used < args->num_pos) {
        MF_TRY(by_name(run, what, args->pos[used++], true, &iter->builtin));
        iter->args = *args;
        iter->args.pos += used;
        iter->args.num_pos -= used;
    }
    return MF_OK;
}

FILTER(filter_select)
{
    return select(run, "select", self, args, false, true, out);
}

FILTER(filter_reject)
{
    return select(run, "reject", self, args, false, false, out);
}

FILTER(filter_selectattr)
{
    return select(run, "selectattr", self, args, true, true, out);
}

FILTER(filter_rejectattr)
{
    return select(run, "rejectattr", self, args, true, false, out);
}

const jinja_builtin *jinja_sequence_filter_find(const char *name, size_t size)
{
    static const jinja_builtin table[] = {
        { "join", filter_join }, { "list", filter_list }, { "first", filter_first }, { "last", filter_last },
        { "map", filter_map }, { "select", filter_select }, { "reject", filter_reject },
        { "selectattr", filter_selectattr }, { "rejectattr", filter_rejectattr }, { "items", filter_items },
        { "sort", filter_sort }, { "dictsort", filter_dictsort }, { "reverse", filter_reverse },
        { "unique", filter_unique }, { "groupby", filter_groupby }, { "sum", filter_sum }, { "min", filter_min },
        { "max", filter_max }, { "batch", filter_batch }, { "slice", filter_slice },
    };
    return jinja_builtin_find(table, sizeof table / sizeof *table, name, size);
}
