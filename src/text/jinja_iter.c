/* jinja_iter.c - going through values: over lists, texts, dicts, and lazily through map, select and their like.
 *
 * Generators are lazy as in jinja2: what is never read is never computed, and what was read is gone. */
#include <string.h>

#include "text/jinja_eval.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

bool jinja_is_iterable(jinja_value v)
{
    switch ((jinja_type)v.type) {
    case JINJA_UNDEFINED:
    case JINJA_STR:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
    case JINJA_RANGE:
    case JINJA_VIEW:
    case JINJA_ITER:
    case JINJA_LOOP: return true;
    default: return false;
    }
}

mf_status jinja_length(jinja_run *run, jinja_value v, bool *has, int64_t *length)
{
    *has = true;
    switch ((jinja_type)v.type) {
    case JINJA_UNDEFINED: *length = 0; return MF_OK;
    case JINJA_STR: *length = jinja_str_chars(v.as.s); return MF_OK;
    case JINJA_LIST:
    case JINJA_TUPLE: *length = (int64_t)v.as.l->count; return MF_OK;
    case JINJA_DICT: *length = (int64_t)v.as.d->count; return MF_OK;
    case JINJA_RANGE: *length = v.as.r->count; return MF_OK;
    case JINJA_VIEW: *length = (int64_t)v.as.view->dict->count; return MF_OK;
    case JINJA_LOOP: return jinja_loop_length(run, v.as.loop, length);
    default: *has = false; return MF_OK;
    }
}

mf_status jinja_iter_open(jinja_run *run, jinja_value v, jinja_iter **out)
{
    if (v.type == JINJA_ITER) {
        *out = v.as.iter;
        return MF_OK;
    }
    if (!jinja_is_iterable(v) || v.type == JINJA_LOOP) {
        return jinja_fail(run, MF_ERR_INVALID, "'%s' object is not iterable", jinja_type_name(v));
    }
    jinja_iter *iter;
    JINJA_NEW(run, iter, 1);
    iter->kind = JINJA_ITER_VALUE;
    iter->source = v;
    *out = iter;
    return MF_OK;
}

mf_status jinja_iter_new(jinja_run *run, jinja_iter_kind kind, jinja_value source, jinja_value *out)
{
    jinja_iter *iter;
    JINJA_NEW(run, iter, 1);
    iter->kind = kind;
    iter->source = source;
    iter->depth = source.type == JINJA_ITER ? source.as.iter->depth + 1 : 0;
    if (iter->depth > JINJA_MAX_ITER_DEPTH) {
        return jinja_fail(run, MF_ERR_LIMIT, "generators read from each other deeper than %d", JINJA_MAX_ITER_DEPTH);
    }
    *out = (jinja_value){ .type = JINJA_ITER, .as.iter = iter };
    return MF_OK;
}

static mf_status next_of_value(jinja_run *run, jinja_iter *it, jinja_value *item, bool *done)
{
    jinja_value v = it->source;
    size_t pos = it->pos;
    *done = true;
    switch ((jinja_type)v.type) {
    case JINJA_STR: {
        const jinja_str *s = v.as.s;
        if (pos >= s->size) {
            return MF_OK;
        }
        *done = false;
        jinja_next_char(s->data, s->size, &it->pos);
        MF_TRY(jinja_str_view(run, s->data + pos, it->pos - pos, item));
        item->as.s->chars = 1;
        return MF_OK;
    }
    case JINJA_LIST:
    case JINJA_TUPLE:
        if (pos < v.as.l->count) {
            *done = false;
            *item = v.as.l->items[it->pos++];
        }
        return MF_OK;
    case JINJA_DICT:
        if (pos < v.as.d->count) {
            *done = false;
            *item = v.as.d->entries[it->pos++].key;
        }
        return MF_OK;
    case JINJA_RANGE:
        if (pos < (size_t)v.as.r->count) {
            *done = false;
            *item = jinja_range_at(v.as.r, (int64_t)it->pos++);
        }
        return MF_OK;
    case JINJA_VIEW:
        if (pos < v.as.view->dict->count) {
            *done = false;
            return jinja_view_at(run, v.as.view, it->pos++, item);
        }
        return MF_OK;
    case JINJA_ITER: return jinja_iter_next(run, v.as.iter, item, done);
    default: return MF_OK; /* undefined: nothing */
    }
}

static mf_status next_reversed(jinja_run *run, jinja_iter *it, jinja_value *item, bool *done)
{
    jinja_value v = it->source;
    bool has;
    int64_t length = 0;
    MF_TRY(jinja_length(run, v, &has, &length));
    *done = it->pos >= (size_t)length;
    if (*done) {
        return MF_OK;
    }
    size_t index = (size_t)length - ++it->pos;
    switch ((jinja_type)v.type) {
    case JINJA_LIST:
    case JINJA_TUPLE: *item = v.as.l->items[index]; return MF_OK;
    case JINJA_DICT: *item = v.as.d->entries[index].key; return MF_OK;
    case JINJA_RANGE: *item = jinja_range_at(v.as.r, (int64_t)index); return MF_OK;
    default: return jinja_view_at(run, v.as.view, index, item);
    }
}

static mf_status lower_if_str(jinja_run *run, jinja_iter *it, jinja_value *key)
{
    if (it->case_sensitive || key->type != JINJA_STR) {
        return MF_OK;
    }
    return jinja_str_method_find("lower", 5)->fn(run, *key, &(jinja_args){ 0 }, key);
}

static mf_status next_selected(jinja_run *run, jinja_iter *it, jinja_value *item, bool *done)
{
    for (;;) {
        jinja_value v;
        bool holds;
        MF_TRY(jinja_iter_next(run, it->inner, item, done));
        if (*done) {
            return MF_OK;
        }
        v = *item;
        if (it->attribute.type != JINJA_MISSING) {
            MF_TRY(jinja_getpath(run, v, it->attribute, (jinja_value){ .type = JINJA_MISSING }, &v));
        }
        if (it->builtin) {
            if (!it->builtin->fn) {
                return jinja_fail(run, MF_ERR_INVALID, "no test named '%s'", it->builtin->name);
            }
            MF_TRY(it->builtin->fn(run, v, &it->args, &v));
        }
        MF_TRY(jinja_truth(run, v, &holds));
        if (holds == it->keep) {
            return MF_OK;
        }
    }
}

static mf_status next_unique(jinja_run *run, jinja_iter *it, jinja_value *item, bool *done)
{
    for (;;) {
        MF_TRY(jinja_iter_next(run, it->inner, item, done));
        if (*done) {
            return MF_OK;
        }
        jinja_value key = *item;
        jinja_value *seen;
        if (it->attribute.type != JINJA_MISSING) {
            MF_TRY(jinja_getpath(run, key, it->attribute, (jinja_value){ .type = JINJA_MISSING }, &key));
        }
        MF_TRY(lower_if_str(run, it, &key));
        MF_TRY(jinja_dict_get(run, it->seen, key, &seen));
        if (!seen) {
            return jinja_dict_set(run, it->seen, key, jinja_none());
        }
    }
}

/* A row ends when the item after it is there, which then waits in `attribute`. */
static mf_status next_batch(jinja_run *run, jinja_iter *it, jinja_value *item, bool *done)
{
    jinja_items row = { 0 };
    if (it->attribute.type != JINJA_MISSING) {
        MF_TRY(jinja_items_add(run, &row, it->attribute));
        it->attribute.type = JINJA_MISSING;
    }
    for (;;) {
        jinja_value v;
        MF_TRY(jinja_iter_next(run, it->inner, &v, done));
        if (*done) {
            break;
        }
        if ((int64_t)row.count == it->size) {
            it->attribute = v;
            return jinja_items_done(run, &row, JINJA_LIST, item);
        }
        MF_TRY(jinja_items_add(run, &row, v));
    }
    if (row.count == 0) {
        return MF_OK;
    }
    *done = false;
    if (it->fallback.type != JINJA_MISSING && it->fallback.type != JINJA_NONE) {
        while ((int64_t)row.count < it->size) {
            MF_TRY(jinja_step(run, 1));
            MF_TRY(jinja_items_add(run, &row, it->fallback));
        }
    }
    return jinja_items_done(run, &row, JINJA_LIST, item);
}

/* Row number pos of size rows over all items. */
static mf_status next_slice(jinja_run *run, jinja_iter *it, jinja_value *item, bool *done)
{
    const jinja_list *all = it->source.as.l;
    int64_t rows = it->size;
    *done = (int64_t)it->pos >= rows;
    if (*done) {
        return MF_OK;
    }
    int64_t row = (int64_t)it->pos++;
    int64_t per_row = (int64_t)all->count / rows;
    int64_t longer = (int64_t)all->count % rows;
    int64_t start = row * per_row + (row < longer ? row : longer);
    int64_t end = start + per_row + (row < longer);
    jinja_items out = { 0 };
    for (int64_t i = start; i < end; i++) {
        MF_TRY(jinja_items_add(run, &out, all->items[i]));
    }
    if (it->fallback.type != JINJA_MISSING && it->fallback.type != JINJA_NONE && row >= longer) {
        MF_TRY(jinja_items_add(run, &out, it->fallback));
    }
    return jinja_items_done(run, &out, JINJA_LIST, item);
}

static mf_status start(jinja_run *run, jinja_iter *it)
{
    it->started = true;
    bool truth = true;
    if (it->kind == JINJA_ITER_MAP || it->kind == JINJA_ITER_ATTR || it->kind == JINJA_ITER_SELECT) {
        MF_TRY(jinja_truth(run, it->source, &truth));
    }
    if (!truth) {
        it->done = true;
        return MF_OK;
    }
    if (it->kind == JINJA_ITER_SLICE) {
        if (it->size == 0) {
            return jinja_fail(run, MF_ERR_INVALID, "integer division or modulo by zero");
        }
        return jinja_collect(run, it->source, JINJA_LIST, &it->source);
    }
    if (it->kind == JINJA_ITER_ITEMS) {
        if (it->source.type != JINJA_DICT && it->source.type != JINJA_UNDEFINED) {
            return jinja_fail(run, MF_ERR_INVALID, "items: can only get item pairs from a mapping, not %s",
                              jinja_type_name(it->source));
        }
        it->done = it->source.type == JINJA_UNDEFINED;
        return MF_OK;
    }
    if (it->kind == JINJA_ITER_UNIQUE) {
        jinja_value seen;
        MF_TRY(jinja_dict_new(run, 0, &seen));
        it->seen = seen.as.d;
    }
    return jinja_iter_open(run, it->source, &it->inner);
}

static mf_status next_of_generator(jinja_run *run, jinja_iter *it, jinja_value *item, bool *done)
{
    switch (it->kind) {
    case JINJA_ITER_MAP:
        MF_TRY(jinja_iter_next(run, it->inner, item, done));
        if (*done) {
            return MF_OK;
        }
        if (!it->builtin->fn) {
            return jinja_fail(run, MF_ERR_INVALID, "no filter named '%s'", it->builtin->name);
        }
        return it->builtin->fn(run, *item, &it->args, item);
    case JINJA_ITER_ATTR:
        MF_TRY(jinja_iter_next(run, it->inner, item, done));
        return *done ? MF_OK : jinja_getpath(run, *item, it->attribute, it->fallback, item);
    case JINJA_ITER_SELECT: return next_selected(run, it, item, done);
    case JINJA_ITER_UNIQUE: return next_unique(run, it, item, done);
    case JINJA_ITER_BATCH: return next_batch(run, it, item, done);
    case JINJA_ITER_SLICE: return next_slice(run, it, item, done);
    case JINJA_ITER_ITEMS: {
        const jinja_dict *dict = it->source.as.d;
        *done = it->pos >= dict->count;
        return *done ? MF_OK : jinja_view_at(run, &(jinja_view){ dict, JINJA_VIEW_ITEMS }, it->pos++, item);
    }
    case JINJA_ITER_VALUE:
    case JINJA_ITER_REVERSED: break;
    }
    return MF_OK;
}

mf_status jinja_iter_next(jinja_run *run, jinja_iter *iter, jinja_value *item, bool *done)
{
    *done = true;
    MF_TRY(jinja_step(run, 1));
    if (iter->done) {
        return MF_OK;
    }
    if (iter->kind == JINJA_ITER_VALUE) {
        MF_TRY(next_of_value(run, iter, item, done));
    } else if (iter->kind == JINJA_ITER_REVERSED) {
        MF_TRY(next_reversed(run, iter, item, done));
    } else {
        if (!iter->started) {
            MF_TRY(start(run, iter));
        }
        if (!iter->done) {
            MF_TRY(next_of_generator(run, iter, item, done));
        }
    }
    iter->done = *done;
    return MF_OK;
}

mf_status jinja_collect(jinja_run *run, jinja_value v, jinja_type type, jinja_value *out)
{
    if (v.type == type) { /* lists do not change: the copy may be the same */
        *out = v;
        return MF_OK;
    }
    jinja_iter *iter;
    jinja_items items = { 0 };
    MF_TRY(jinja_iter_open(run, v, &iter));
    for (;;) {
        jinja_value item;
        bool done;
        MF_TRY(jinja_iter_next(run, iter, &item, &done));
        if (done) {
            return jinja_items_done(run, &items, type, out);
        }
        MF_TRY(jinja_items_add(run, &items, item));
    }
}
