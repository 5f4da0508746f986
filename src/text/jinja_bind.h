/* jinja_bind.h - how methods, filters and tests take their arguments: bound to names, then checked for their type. */
#ifndef MF_TEXT_JINJA_BIND_H
#define MF_TEXT_JINJA_BIND_H

#include "text/jinja_value.h"

#define METHOD(name) static mf_status name(jinja_run *run, jinja_value self, const jinja_args *args, jinja_value *out)
#define BIND(what, spec)                  \
    jinja_value arg[JINJA_MAX_PARAMS];    \
    MF_TRY(jinja_bind(run, what, spec, args, arg))

static inline mf_status need_str(jinja_run *run, const char *what, jinja_value v, const jinja_str **out)
{
    *out = v.as.s;
    if (v.type != JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "%s: argument must be str, not %s", what, jinja_type_name(v));
    }
    return MF_OK;
}

static inline mf_status need_int(jinja_run *run, const char *what, jinja_value v, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (v.type != JINJA_MISSING && !jinja_as_int(v, out)) {
        return jinja_fail(run, MF_ERR_INVALID, "%s: argument must be int, not %s", what, jinja_type_name(v));
    }
    return MF_OK;
}

#endif
