/* jinja_format.h - writing a value as a format asks, shared by "..." % values and "...".format(values). */
#ifndef MF_TEXT_JINJA_FORMAT_H
#define MF_TEXT_JINJA_FORMAT_H

#include "text/jinja_value.h"

enum { JINJA_MAX_PRECISION = 500 };

/* What stands between % and the letter, or behind the colon. */
typedef struct jinja_spec {
    int32_t fill;
    char align; /* < > ^ =, or 0 */
    char sign;  /* + - space, or 0 */
    bool alternate;
    char grouping;            /* , _ or 0 */
    int64_t width, precision; /* -1 = none */
    char type;                /* 0 = none */
} jinja_spec;

mf_status jinja_bad_spec(jinja_run *run, const char *why);
/* prefix and body, of `chars` characters, in the width that is wanted */
mf_status jinja_put_padded(jinja_run *run, jinja_text *text, const jinja_spec *sp, const char *prefix, const char *body,
                           size_t size, int64_t chars, char default_align);
mf_status jinja_put_text(jinja_run *run, jinja_text *text, const jinja_spec *sp, jinja_value str);
mf_status jinja_put_int(jinja_run *run, jinja_text *text, const jinja_spec *sp, int64_t value);
mf_status jinja_put_float(jinja_run *run, jinja_text *text, const jinja_spec *sp, double f);
mf_status jinja_put_char(jinja_run *run, jinja_text *text, const jinja_spec *sp, jinja_value v); /* a code or one character */
mf_status jinja_convert(jinja_run *run, jinja_value v, char conversion, jinja_value *out);       /* s, r or a */

#endif
