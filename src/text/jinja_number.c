/* jinja_number.c - arithmetic on values and reading and rounding numbers, as Python does, on 64-bit ints. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "text/jinja_text.h"
#include "text/jinja_value.h"

static const char *const symbols[] = { "+", "-", "*", "/", "//", "%", "**" };

static mf_status no_operator(jinja_run *run, jinja_op op, jinja_value a, jinja_value b)
{
    return jinja_fail(run, MF_ERR_INVALID, "unsupported operand types for %s: '%s' and '%s'", symbols[op],
                      jinja_type_name(a), jinja_type_name(b));
}

static mf_status overflow(jinja_run *run)
{
    return jinja_fail(run, MF_ERR_INVALID, "an integer does not fit 64 bits");
}

static mf_status by_zero(jinja_run *run)
{
    return jinja_fail(run, MF_ERR_INVALID, "division by zero");
}

static double as_double(jinja_value v)
{
    return v.type == JINJA_FLOAT ? v.as.f : v.type == JINJA_INT ? (double)v.as.i : (double)v.as.b;
}

static mf_status int_pow(jinja_run *run, int64_t base, int64_t exponent, jinja_value *out)
{
    if (exponent < 0) {
        if (base == 0) {
            return by_zero(run);
        }
        *out = jinja_float(pow((double)base, (double)exponent));
        return MF_OK;
    }
    int64_t result = 1;
    while (exponent > 0) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) {
            return overflow(run);
        }
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base)) {
            return overflow(run);
        }
    }
    *out = jinja_int(result);
    return MF_OK;
}

static mf_status int_op(jinja_run *run, jinja_op op, int64_t x, int64_t y, jinja_value *out)
{
    int64_t r = 0;
    bool bad = false;
    switch (op) {
    case JINJA_ADD: bad = __builtin_add_overflow(x, y, &r); break;
    case JINJA_SUB: bad = __builtin_sub_overflow(x, y, &r); break;
    case JINJA_MUL: bad = __builtin_mul_overflow(x, y, &r); break;
    case JINJA_DIV:
        if (y == 0) {
            return by_zero(run);
        }
        /* In long double, so that both operands are exact before the one rounding that matters. */
        *out = jinja_float((double)((long double)x / (long double)y));
        return MF_OK;
    case JINJA_FLOORDIV:
    case JINJA_MOD:
        if (y == 0) {
            return by_zero(run);
        }
        if (y == -1) { /* the least int has no negative */
            bad = op == JINJA_FLOORDIV && __builtin_sub_overflow((int64_t)0, x, &r);
            break;
        }
        r = x % y;
        if (r != 0 && (r < 0) != (y < 0)) {
            r += y;
        }
        if (op == JINJA_FLOORDIV) {
            r = (x / y) - (x % y != 0 && (x < 0) != (y < 0));
        }
        break;
    case JINJA_POW: return int_pow(run, x, y, out);
    }
    if (bad) {
        return overflow(run);
    }
    *out = jinja_int(r);
    return MF_OK;
}

/* Python's float divmod: the remainder has the divisor's sign. */
static void float_divmod(double x, double y, double *div, double *mod)
{
    *mod = fmod(x, y);
    *div = (x - *mod) / y;
    if (*mod != 0) {
        if ((y < 0) != (*mod < 0)) {
            *mod += y;
            *div -= 1;
        }
    } else {
        *mod = copysign(0, y);
    }
    if (*div != 0) {
        double whole = floor(*div);
        *div = *div - whole > 0.5 ? whole + 1 : whole;
    } else {
        *div = copysign(0, x / y);
    }
}

static mf_status float_op(jinja_run *run, jinja_op op, double x, double y, jinja_value *out)
{
    double div;
    double mod;
    switch (op) {
    case JINJA_ADD: *out = jinja_float(x + y); return MF_OK;
    case JINJA_SUB: *out = jinja_float(x - y); return MF_OK;
    case JINJA_MUL: *out = jinja_float(x * y); return MF_OK;
    case JINJA_DIV:
        if (y == 0) {
            return by_zero(run);
        }
        *out = jinja_float(x / y);
        return MF_OK;
    case JINJA_FLOORDIV:
    case JINJA_MOD:
        if (y == 0) {
            return by_zero(run);
        }
        float_divmod(x, y, &div, &mod);
        *out = jinja_float(op == JINJA_MOD ? mod : div);
        return MF_OK;
    case JINJA_POW:
        if (x == 0 && y < 0) {
            return by_zero(run);
        }
        if (x < 0 && isfinite(x) && isfinite(y) && y != floor(y)) {
            return jinja_fail(run, MF_ERR_UNSUPPORTED, "a power would be a complex number");
        }
        mod = pow(x, y);
        if (isinf(mod) && isfinite(x) && isfinite(y)) {
            return jinja_fail(run, MF_ERR_INVALID, "a power is too large");
        }
        *out = jinja_float(mod);
        return MF_OK;
    }
    return MF_OK;
}

/* ---- texts and lists ---------------------------------------------------------------------------------------------- */

static mf_status repeat(jinja_run *run, jinja_value v, int64_t times, jinja_value *out)
{
    if (times < 0) {
        times = 0;
    }
    size_t count = v.type == JINJA_STR ? v.as.s->size : v.as.l->count;
    size_t total;
    if (!mf_mul_ok(count, (size_t)times, &total)) {
        return jinja_no_memory(run, SIZE_MAX, 1);
    }
    if (v.type == JINJA_STR) {
        char *data;
        MF_TRY(jinja_step_bytes(run, total));
        JINJA_NEW(run, data, total);
        if (count == 1) {
            memset(data, v.as.s->data[0], total);
        } else {
            for (size_t i = 0; count && i < total; i += count) {
                memcpy(data + i, v.as.s->data, count);
            }
        }
        MF_TRY(jinja_str_view(run, data, total, out));
        return jinja_str_as(run, v.as.s, out);
    }
    jinja_type type = (jinja_type)v.type;
    MF_TRY(jinja_list_new(run, type, total, out));
    for (size_t i = 0; count && i < total; i += count) {
        memcpy(out->as.l->items + i, v.as.l->items, count * sizeof(jinja_value));
    }
    return MF_OK;
}

static mf_status join_lists(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out)
{
    size_t n = a.as.l->count;
    size_t m = b.as.l->count;
    jinja_value joined;
    MF_TRY(jinja_list_new(run, (jinja_type)a.type, n + m, &joined));
    if (n) {
        memcpy(joined.as.l->items, a.as.l->items, n * sizeof(jinja_value));
    }
    if (m) {
        memcpy(joined.as.l->items + n, b.as.l->items, m * sizeof(jinja_value));
    }
    *out = joined;
    return MF_OK;
}

static mf_status add_texts(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out)
{
    if (!a.as.s->markup && !b.as.s->markup) {
        return jinja_str_concat(run, a, b, out);
    }
    /* Next to markup plain text is escaped. */
    const jinja_builtin *escape = jinja_filter_find("escape", 6);
    MF_TRY(escape->fn(run, a, &(jinja_args){ 0 }, &a));
    MF_TRY(escape->fn(run, b, &(jinja_args){ 0 }, &b));
    MF_TRY(jinja_str_concat(run, a, b, out));
    return jinja_str_as(run, a.as.s, out);
}

static bool is_sequence(jinja_value v)
{
    return v.type == JINJA_STR || v.type == JINJA_LIST || v.type == JINJA_TUPLE;
}

mf_status jinja_binary(jinja_run *run, jinja_op op, jinja_value a, jinja_value b, jinja_value *out)
{
    int64_t x;
    int64_t y;
    bool int_a = jinja_as_int(a, &x);
    bool int_b = jinja_as_int(b, &y);
    if (int_a && int_b) {
        return int_op(run, op, x, y, out);
    }
    if (jinja_is_number(a) && jinja_is_number(b)) {
        return float_op(run, op, as_double(a), as_double(b), out);
    }
    if (op == JINJA_MOD && a.type == JINJA_STR) {
        return jinja_percent(run, a, b, out);
    }
    if (a.type == JINJA_UNDEFINED || b.type == JINJA_UNDEFINED) {
        return jinja_undef_fail(run, a.type == JINJA_UNDEFINED ? a : b);
    }
    if (op == JINJA_ADD && a.type == JINJA_STR && b.type == JINJA_STR) {
        return add_texts(run, a, b, out);
    }
    if (op == JINJA_ADD && a.type == b.type && (a.type == JINJA_LIST || a.type == JINJA_TUPLE)) {
        return join_lists(run, a, b, out);
    }
    if (op == JINJA_MUL && is_sequence(a) && int_b) {
        return repeat(run, a, y, out);
    }
    if (op == JINJA_MUL && is_sequence(b) && int_a) {
        return repeat(run, b, x, out);
    }
    return no_operator(run, op, a, b);
}

mf_status jinja_unary(jinja_run *run, bool negate, jinja_value v, jinja_value *out)
{
    int64_t i;
    if (jinja_as_int(v, &i)) {
        if (negate && __builtin_sub_overflow((int64_t)0, i, &i)) {
            return overflow(run);
        }
        *out = jinja_int(i);
        return MF_OK;
    }
    if (v.type == JINJA_FLOAT) {
        *out = jinja_float(negate ? -v.as.f : v.as.f);
        return MF_OK;
    }
    if (v.type == JINJA_UNDEFINED) {
        return jinja_undef_fail(run, v);
    }
    return jinja_fail(run, MF_ERR_INVALID, "bad operand type for unary %c: '%s'", negate ? '-' : '+', jinja_type_name(v));
}

/* ---- rounding ----------------------------------------------------------------------------------------------------- */

static mf_status round_int(jinja_run *run, int64_t value, int64_t digits, jinja_value *out)
{
    if (digits >= 0) {
        *out = jinja_int(value);
        return MF_OK;
    }
    if (digits < -19) {
        *out = jinja_int(0);
        return MF_OK;
    }
    __int128 unit = 1;
    for (int64_t i = digits; i < 0; i++) {
        unit *= 10;
    }
    __int128 rest = (__int128)value % unit;
    if (rest < 0) {
        rest += unit;
    }
    __int128 down = (__int128)value - rest;
    bool up = rest * 2 > unit || (rest * 2 == unit && (down / unit) % 2 != 0);
    __int128 r = up ? down + unit : down;
    if (r > INT64_MAX || r < INT64_MIN) {
        return overflow(run);
    }
    *out = jinja_int((int64_t)r);
    return MF_OK;
}

mf_status jinja_round(jinja_run *run, jinja_value v, jinja_value precision, jinja_value *out)
{
    int64_t i;
    int64_t digits = 0;
    bool none = precision.type == JINJA_NONE;
    if (!none && !jinja_as_int(precision, &digits)) {
        return jinja_fail(run, MF_ERR_INVALID, "round: precision must be an int, not %s", jinja_type_name(precision));
    }
    if (jinja_as_int(v, &i)) {
        return round_int(run, i, digits, out);
    }
    if (v.type != JINJA_FLOAT) {
        return jinja_fail(run, MF_ERR_INVALID, "type %s cannot be rounded", jinja_type_name(v));
    }
    if (none) {
        double whole = rint(v.as.f);
        if (!(whole >= -0x1p63 && whole < 0x1p63)) {
            return overflow(run);
        }
        *out = jinja_int((int64_t)whole);
        return MF_OK;
    }
    if (!isfinite(v.as.f) || digits > 323) {
        *out = v;
        return MF_OK;
    }
    if (digits < -308) {
        *out = jinja_float(copysign(0, v.as.f));
        return MF_OK;
    }
    char text[400 + 330];
    if (digits >= 0) { /* printf rounds the exact value, ties to even */
        snprintf(text, sizeof text, "%.*f", (int)digits, v.as.f);
    } else {
        /* -d digits before the point go: %e with the digits that stay does the same. */
        int exponent = v.as.f == 0 ? 0 : (int)floor(log10(fabs(v.as.f)));
        char probe[32];
        snprintf(probe, sizeof probe, "%.17e", v.as.f);
        exponent = (int)strtol(strchr(probe, 'e') + 1, NULL, 10);
        int64_t keep = exponent + digits; /* digits after the first of the result */
        if (keep < 0) {
            double unit = pow(10, (double)-digits);
            bool up = keep == -1 && fabs(v.as.f) > unit / 2;
            *out = jinja_float(copysign(up ? unit : 0, v.as.f));
            return MF_OK;
        }
        snprintf(text, sizeof text, "%.*e", (int)keep, v.as.f);
    }
    double r = strtod(text, NULL);
    if (isinf(r)) {
        return jinja_fail(run, MF_ERR_INVALID, "rounded value too large to represent");
    }
    *out = jinja_float(r);
    return MF_OK;
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

/* Copies s without white space around it and underscores between digits, in ASCII digits; false when it cannot be a
 * number.  buf holds at least size + 1 bytes. */
static bool normalize(const char *data, size_t size, char *buf, size_t capacity, size_t *length)
{
    size_t start = 0;
    while (start < size) {
        size_t next = start;
        if (!jinja_is_space(jinja_next_char(data, size, &next))) {
            break;
        }
        start = next;
    }
    while (size > start) {
        size_t before = size;
        if (!jinja_is_space(jinja_prev_char(data, &before))) {
            break;
        }
        size = before;
    }
    size_t n = 0;
    bool after_digit = false;
    for (size_t i = start; i < size;) {
        int32_t c = jinja_next_char(data, size, &i);
        int32_t digit = jinja_decimal_value(c);
        if (c == '_') {
            size_t next = i;
            int32_t d = i < size ? jinja_next_char(data, size, &next) : 0;
            bool word = d < 0x80 && ((d >= '0' && d <= '9') || ((d | 32) >= 'a' && (d | 32) <= 'z'));
            if (!after_digit || !(word || jinja_decimal_value(d) >= 0)) {
                return false;
            }
            after_digit = false;
            continue;
        }
        if (n + 1 >= capacity || (digit < 0 && (c >= 0x80 || c < 0x20))) {
            return false;
        }
        buf[n++] = digit >= 0 ? (char)('0' + digit) : (char)c;
        after_digit = digit >= 0 || ((c | 32) >= 'a' && (c | 32) <= 'z');
    }
    buf[n] = '\0';
    *length = n;
    return n > 0;
}

bool jinja_parse_float(const char *data, size_t size, double *out)
{
    char buf[512];
    size_t n;
    if (!normalize(data, size, buf, sizeof buf, &n)) {
        return false;
    }
    /* float() knows no hexadecimal and no underscore next to a letter; strtod knows more words than it. */
    const char *p = buf + (buf[0] == '+' || buf[0] == '-');
    bool word = strcasecmp(p, "nan") == 0 || strcasecmp(p, "inf") == 0 || strcasecmp(p, "infinity") == 0;
    if (!word && strspn(p, "0123456789.eE+-") != strlen(p)) {
        return false;
    }
    char *end;
    *out = strtod(buf, &end);
    return *end == '\0' && end != buf;
}

static int digit_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'z' ? (c | 32) - 'a' + 10 : 99;
}

jinja_parsed jinja_parse_int(const char *data, size_t size, int base, int64_t *out)
{
    char buf[512];
    size_t n;
    if (!normalize(data, size, buf, sizeof buf, &n)) {
        return JINJA_NOT_A_NUMBER;
    }
    const char *p = buf;
    bool negative = *p == '-';
    p += *p == '-' || *p == '+';
    int prefix = p[0] != '0' ? 0 : (p[1] | 32) == 'x' ? 16 : (p[1] | 32) == 'o' ? 8 : (p[1] | 32) == 'b' ? 2 : 0;
    if (prefix && (base == 0 || base == prefix)) {
        p += 2;
        base = prefix;
    } else if (base == 0) {
        if (p[0] == '0' && strspn(p, "0") != strlen(p)) {
            return JINJA_NOT_A_NUMBER; /* 012 */
        }
        base = 10;
    }
    if (!*p) {
        return JINJA_NOT_A_NUMBER;
    }
    int64_t value = 0;
    bool big = false;
    for (; *p; p++) {
        int d = digit_of(*p);
        if (d >= base) {
            return JINJA_NOT_A_NUMBER;
        }
        big |= __builtin_mul_overflow(value, (int64_t)base, &value);
        big |= negative ? __builtin_sub_overflow(value, (int64_t)d, &value)
                        : __builtin_add_overflow(value, (int64_t)d, &value);
    }
    *out = value;
    return big ? JINJA_TOO_BIG : JINJA_PARSED;
}
