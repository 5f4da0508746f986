/* jinja_methods.c - methods of list, tuple, dict, range, numbers, and of jinja2's cycler. */
#include <math.h>
#include <string.h>

#include "text/jinja_bind.h"
#include "text/jinja_value.h"

/* ---- list, tuple, range ------------------------------------------------------------------------------------------- */

METHOD(list_copy)
{
    BIND("copy", "");
    *out = self;
    return MF_OK;
}

METHOD(list_count)
{
    BIND("count", "value/");
    jinja_iter *iter;
    int64_t n = 0;
    MF_TRY(jinja_iter_open(run, self, &iter));
    for (;;) {
        jinja_value item;
        bool done;
        MF_TRY(jinja_iter_next(run, iter, &item, &done));
        if (done) {
            *out = jinja_int(n);
            return MF_OK;
        }
        bool same = jinja_same(item, arg[0]);
        if (!same) {
            MF_TRY(jinja_equal(run, item, arg[0], &same));
        }
        n += same;
    }
}

METHOD(list_index)
{
    BIND("index", "value/ start/? stop/?");
    int64_t length = 0;
    int64_t bounds[2] = { 0, INT64_MAX };
    bool has;
    MF_TRY(jinja_length(run, self, &has, &length));
    for (int i = 0; i < 2; i++) {
        if (arg[i + 1].type != JINJA_MISSING && !jinja_as_int(arg[i + 1], &bounds[i])) {
            return jinja_fail(run, MF_ERR_INVALID, "index: positions must be int, not %s", jinja_type_name(arg[i + 1]));
        }
        bounds[i] = bounds[i] < 0 ? (bounds[i] + length < 0 ? 0 : bounds[i] + length) : bounds[i];
    }
    for (int64_t i = bounds[0]; i < length && i < bounds[1]; i++) {
        jinja_value item = self.type == JINJA_RANGE ? jinja_range_at(self.as.r, i) : self.as.l->items[i];
        bool same = jinja_same(item, arg[0]);
        if (!same) {
            MF_TRY(jinja_equal(run, item, arg[0], &same));
        }
        if (same) {
            *out = jinja_int(i);
            return MF_OK;
        }
    }
    return jinja_fail(run, MF_ERR_INVALID, "index: value is not in %s", jinja_type_name(self));
}

/* ---- dict --------------------------------------------------------------------------------------------------------- */

METHOD(dict_get)
{
    BIND("get", "key/ default/?");
    jinja_value *found;
    MF_TRY(jinja_dict_get(run, self.as.d, arg[0], &found));
    *out = found ? *found : arg[1].type == JINJA_MISSING ? jinja_none() : arg[1];
    return MF_OK;
}

static mf_status view(jinja_run *run, const jinja_dict *dict, jinja_view_kind kind, jinja_value *out)
{
    jinja_view *v;
    JINJA_NEW(run, v, 1);
    *v = (jinja_view){ dict, kind };
    *out = (jinja_value){ .type = JINJA_VIEW, .as.view = v };
    return MF_OK;
}

METHOD(dict_keys)
{
    BIND("keys", "");
    return view(run, self.as.d, JINJA_VIEW_KEYS, out);
}

METHOD(dict_values)
{
    BIND("values", "");
    return view(run, self.as.d, JINJA_VIEW_VALUES, out);
}

METHOD(dict_items)
{
    BIND("items", "");
    return view(run, self.as.d, JINJA_VIEW_ITEMS, out);
}

METHOD(dict_fromkeys)
{
    (void)self;
    BIND("fromkeys", "iterable/ value/?");
    jinja_iter *iter;
    MF_TRY(jinja_dict_new(run, 0, out));
    MF_TRY(jinja_iter_open(run, arg[0], &iter));
    for (;;) {
        jinja_value key;
        bool done;
        MF_TRY(jinja_iter_next(run, iter, &key, &done));
        if (done) {
            return MF_OK;
        }
        MF_TRY(jinja_dict_set(run, out->as.d, key, arg[1].type == JINJA_MISSING ? jinja_none() : arg[1]));
    }
}

/* ---- numbers ------------------------------------------------------------------------------------------------------ */

METHOD(float_is_integer)
{
    BIND("is_integer", "");
    *out = jinja_bool(isfinite(self.as.f) && floor(self.as.f) == self.as.f);
    return MF_OK;
}

METHOD(int_bit_length)
{
    BIND("bit_length", "");
    int64_t i = 0;
    jinja_as_int(self, &i);
    uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    *out = jinja_int(u ? 64 - __builtin_clzll(u) : 0);
    return MF_OK;
}

METHOD(number_conjugate)
{
    BIND("conjugate", "");
    return jinja_unary(run, false, self, out);
}

/* ---- cycler ------------------------------------------------------------------------------------------------------- */

METHOD(cycler_next)
{
    BIND("next", "");
    jinja_cycler *cycler = self.as.cycler;
    *out = cycler->items->items[cycler->pos];
    cycler->pos = (cycler->pos + 1) % cycler->items->count;
    return MF_OK;
}

METHOD(cycler_reset)
{
    BIND("reset", "");
    self.as.cycler->pos = 0;
    *out = jinja_none();
    return MF_OK;
}

const jinja_builtin *jinja_method_find(jinja_type type, const char *name, size_t size)
{
    static const jinja_builtin list[] = { { "copy", list_copy }, { "count", list_count }, { "index", list_index } };
    static const jinja_builtin dict[] = { { "get", dict_get },   { "items", dict_items },       { "keys", dict_keys },
                                          { "values", dict_values }, { "copy", list_copy },
                                          { "fromkeys", dict_fromkeys } };
    static const jinja_builtin real[] = { { "is_integer", float_is_integer }, { "conjugate", number_conjugate },
                                          { "as_integer_ratio", NULL }, { "hex", NULL }, { "fromhex", NULL } };
    static const jinja_builtin whole[] = { { "bit_length", int_bit_length }, { "conjugate", number_conjugate },
                                           { "as_integer_ratio", NULL }, { "bit_count", NULL }, { "to_bytes", NULL },
                                           { "from_bytes", NULL } };
    static const jinja_builtin keys[] = { { "isdisjoint", NULL }, { "mapping", NULL } };
    static const jinja_builtin cycler[] = { { "next", cycler_next }, { "reset", cycler_reset } };
    switch (type) {
    case JINJA_LIST: return jinja_builtin_find(list, 3, name, size);
    case JINJA_TUPLE:
    case JINJA_RANGE: return jinja_builtin_find(list + 1, 2, name, size);
    case JINJA_DICT: return jinja_builtin_find(dict, sizeof dict / sizeof *dict, name, size);
    case JINJA_FUNC: return jinja_builtin_find(dict + 5, 1, name, size);
    case JINJA_FLOAT: return jinja_builtin_find(real, sizeof real / sizeof *real, name, size);
    case JINJA_BOOL:
    case JINJA_INT: return jinja_builtin_find(whole, sizeof whole / sizeof *whole, name, size);
    case JINJA_VIEW: return jinja_builtin_find(keys, sizeof keys / sizeof *keys, name, size);
    case JINJA_CYCLER: return jinja_builtin_find(cycler, sizeof cycler / sizeof *cycler, name, size);
    default: return NULL;
    }
}
