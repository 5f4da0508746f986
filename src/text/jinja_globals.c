/* jinja_globals.c - the global functions that chat templates get: range, dict, namespace, cycler, joiner,
 * raise_exception, strftime_now. */
#include <string.h>
#include <time.h>

#include "text/chat_template.h"
#include "text/jinja_value.h"

#define GLOBAL(name) static mf_status name(jinja_run *run, jinja_value self, const jinja_args *args, jinja_value *out)

GLOBAL(global_range)
{
    (void)self;
    jinja_value arg[JINJA_MAX_PARAMS];
    int64_t n[3] = { 0, 0, 1 };
    MF_TRY(jinja_bind(run, "range", "start/ stop/? step/?", args, arg));
    for (int i = 0; i < 3; i++) {
        if (arg[i].type != JINJA_MISSING && !jinja_as_int(arg[i], &n[i])) {
            return jinja_fail(run, MF_ERR_INVALID, "range: '%s' cannot be interpreted as an integer",
                              jinja_type_name(arg[i]));
        }
    }
    if (arg[1].type == JINJA_MISSING) {
        n[1] = n[0];
        n[0] = 0;
    }
    if (n[2] == 0) {
        return jinja_fail(run, MF_ERR_INVALID, "range: step must not be zero");
    }
    __int128 distance = n[2] > 0 ? (__int128)n[1] - n[0] : (__int128)n[0] - n[1];
    __int128 step = n[2] > 0 ? n[2] : -(__int128)n[2];
    __int128 count = distance > 0 ? (distance - 1) / step + 1 : 0;
    if (count > run->range_limit) {
        return jinja_fail(run, MF_ERR_LIMIT, "range: more than %lld numbers", (long long)run->range_limit);
    }
    jinja_range *range;
    JINJA_NEW(run, range, 1);
    *range = (jinja_range){ n[0], n[1], n[2], (int64_t)count };
    *out = (jinja_value){ .type = JINJA_RANGE, .as.r = range };
    return MF_OK;
}

/* dict(mapping or pairs, **kwargs) */
static mf_status make_dict(jinja_run *run, const char *what, const jinja_args *args, jinja_value *out)
{
    MF_TRY(jinja_dict_new(run, args->num_kw, out));
    if (args->num_pos > 1) {
        return jinja_fail(run, MF_ERR_INVALID, "%s takes at most 1 positional argument; got %zu", what, args->num_pos);
    }
    if (args->num_pos == 1) {
        jinja_value source = args->pos[0];
        bool mapping = source.type == JINJA_DICT;
        jinja_iter *iter;
        if (source.type == JINJA_UNDEFINED) { /* it has no keys() */
            return jinja_undef_fail(run, source);
        }
        MF_TRY(jinja_iter_open(run, source, &iter));
        for (size_t i = 0;; i++) {
            jinja_value pair[2];
            bool done;
            MF_TRY(jinja_iter_next(run, iter, &pair[0], &done));
            if (done) {
                break;
            }
            if (mapping) {
                pair[1] = source.as.d->entries[i].value;
            } else {
                jinja_value items;
                MF_TRY(jinja_collect(run, pair[0], JINJA_LIST, &items));
                if (items.as.l->count != 2) {
                    return jinja_fail(run, MF_ERR_INVALID, "%s: element %zu has length %zu; 2 is required", what, i,
                                      items.as.l->count);
                }
                memcpy(pair, items.as.l->items, sizeof pair);
            }
            MF_TRY(jinja_dict_set(run, out->as.d, pair[0], pair[1]));
        }
    }
    for (size_t i = 0; i < args->num_kw; i++) {
        MF_TRY(jinja_dict_set(run, out->as.d, args->kw_names[i], args->kw_values[i]));
    }
    return MF_OK;
}

GLOBAL(global_dict)
{
    (void)self;
    return make_dict(run, "dict", args, out);
}

GLOBAL(global_namespace)
{
    (void)self;
    MF_TRY(make_dict(run, "namespace", args, out));
    const jinja_dict *d = out->as.d;
    for (size_t i = 0; i < d->count; i++) {
        jinja_value key = d->entries[i].key;
        if (key.type == JINJA_STR && key.as.s->size && key.as.s->data[0] == '_') {
            return jinja_fail(run, MF_ERR_INVALID, "a namespace cannot store attributes that start with an underscore");
        }
    }
    out->type = JINJA_NAMESPACE;
    return MF_OK;
}

GLOBAL(global_cycler)
{
    (void)self;
    if (args->num_kw || !args->num_pos) {
        return jinja_fail(run, MF_ERR_INVALID, "cycler: at least one item has to be provided, without a name");
    }
    jinja_cycler *cycler;
    jinja_value items;
    JINJA_NEW(run, cycler, 1);
    MF_TRY(jinja_list_new(run, JINJA_TUPLE, args->num_pos, &items));
    memcpy(items.as.l->items, args->pos, args->num_pos * sizeof *args->pos);
    cycler->items = items.as.l;
    *out = (jinja_value){ .type = JINJA_CYCLER, .as.cycler = cycler };
    return MF_OK;
}

GLOBAL(global_joiner)
{
    (void)self;
    jinja_value arg[JINJA_MAX_PARAMS];
    jinja_joiner *joiner;
    MF_TRY(jinja_bind(run, "joiner", "sep?", args, arg));
    JINJA_NEW(run, joiner, 1);
    joiner->separator = arg[0];
    if (arg[0].type == JINJA_MISSING) {
        MF_TRY(jinja_str_view(run, ", ", 2, &joiner->separator));
    }
    *out = (jinja_value){ .type = JINJA_JOINER, .as.joiner = joiner };
    return MF_OK;
}

/* The message goes out as the template wrote it: a client reads it. */
GLOBAL(global_raise_exception)
{
    (void)self;
    (void)out;
    jinja_value arg[JINJA_MAX_PARAMS];
    MF_TRY(jinja_bind(run, "raise_exception", "message", args, arg));
    MF_TRY(jinja_to_str(run, arg[0], &arg[0]));
    const jinja_str *s = arg[0].as.s;
    mf_fail(run->err, MF_ERR_INVALID, "%.*s", s->size > 1000 ? 1000 : (int)s->size, s->data);
    if (run->err) {
        jinja_clean_message(run->err->message);
    }
    return MF_ERR_INVALID;
}

static int64_t system_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t (*mf_chat_template_clock_ns)(void) = system_clock_ns;

GLOBAL(global_strftime_now)
{
    (void)self;
    jinja_value arg[JINJA_MAX_PARAMS];
    MF_TRY(jinja_bind(run, "strftime_now", "format", args, arg));
    if (arg[0].type != JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "strftime_now: format must be str, not %s", jinja_type_name(arg[0]));
    }
    const jinja_str *format = arg[0].as.s;
    int64_t ns = mf_chat_template_clock_ns();
    time_t seconds = (time_t)(ns / 1000000000);
    struct tm tm;
    if (!localtime_r(&seconds, &tm)) {
        return jinja_fail(run, MF_ERR_INVALID, "strftime_now: the clock is out of range");
    }
    jinja_text text = { 0 };
    for (size_t i = 0; i < format->size; i++) {
        if (format->data[i] != '%' || i + 1 == format->size) {
            MF_TRY(jinja_text_append(run, &text, format->data + i, 1));
            continue;
        }
        char directive[16] = "%";
        char buf[512];
        size_t k = 1;
        size_t n = 0;
        i++;
        while (i + 1 < format->size && k < 5 && format->data[i] && strchr("_-0^#123456789EO", format->data[i])) {
            directive[k++] = format->data[i++]; /* the system's flags and width */
        }
        char c = directive[k++] = format->data[i];
        /* %f, %z and %Z are Python's own: a time without a zone has none to show. */
        if (c == 'f' && k == 2) {
            long micros = (long)(ns % 1000000000 / 1000);
            for (int digit = 5; digit >= 0; digit--, micros /= 10) {
                buf[digit] = (char)('0' + micros % 10);
            }
            n = 6;
        } else if ((unsigned char)c >= 0x80 || !c) {
            memcpy(buf, directive, k);
            n = k;
        } else if (k > 2 || (c != 'z' && c != 'Z')) {
            n = strftime(buf, sizeof buf, directive, &tm);
        }
        MF_TRY(jinja_text_append(run, &text, buf, n));
    }
    return jinja_str_text(run, &text, out);
}

const jinja_builtin *jinja_global_find(const char *name, size_t size)
{
    static const jinja_builtin table[] = {
        { "namespace", global_namespace },
        { "raise_exception", global_raise_exception },
        { "range", global_range },
        { "strftime_now", global_strftime_now },
        { "dict", global_dict },
        { "cycler", global_cycler },
        { "joiner", global_joiner },
        { "lipsum", NULL },
    };
    return jinja_builtin_find(table, sizeof table / sizeof *table, name, size);
}
