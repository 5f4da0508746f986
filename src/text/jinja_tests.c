/* jinja_tests.c - what stands after `is`. */
#include <string.h>

#include "text/jinja_bind.h"
#include "text/jinja_value.h"

#define JTEST(name) static mf_status name(jinja_run *run, jinja_value self, const jinja_args *args, jinja_value *out)
/* Tests of the value alone. */
#define SIMPLE_TEST(fn_name, text, condition) \
    JTEST(fn_name)                            \
    {                                         \
        BIND(text, "");                       \
        *out = jinja_bool(condition);         \
        return MF_OK;                         \
    }

SIMPLE_TEST(test_defined, "defined", self.type != JINJA_UNDEFINED)
SIMPLE_TEST(test_undefined, "undefined", self.type == JINJA_UNDEFINED)
SIMPLE_TEST(test_none, "none", self.type == JINJA_NONE)
SIMPLE_TEST(test_boolean, "boolean", self.type == JINJA_BOOL)
SIMPLE_TEST(test_true, "true", self.type == JINJA_BOOL && self.as.b)
SIMPLE_TEST(test_false, "false", self.type == JINJA_BOOL && !self.as.b)
SIMPLE_TEST(test_integer, "integer", self.type == JINJA_INT)
SIMPLE_TEST(test_float, "float", self.type == JINJA_FLOAT)
SIMPLE_TEST(test_number, "number", jinja_is_number(self))
SIMPLE_TEST(test_string, "string", self.type == JINJA_STR)
SIMPLE_TEST(test_mapping, "mapping", self.type == JINJA_DICT)
SIMPLE_TEST(test_iterable, "iterable", jinja_is_iterable(self))
SIMPLE_TEST(test_escaped, "escaped", self.type == JINJA_STR && self.as.s->markup)
SIMPLE_TEST(test_sequence, "sequence",
            self.type == JINJA_STR || self.type == JINJA_LIST || self.type == JINJA_TUPLE || self.type == JINJA_DICT ||
                self.type == JINJA_RANGE || self.type == JINJA_UNDEFINED)
SIMPLE_TEST(test_callable, "callable",
            self.type == JINJA_MACRO || self.type == JINJA_FUNC || self.type == JINJA_METHOD ||
                self.type == JINJA_JOINER || self.type == JINJA_LOOP || self.type == JINJA_UNDEFINED)

static mf_status remainder_is(jinja_run *run, jinja_value value, jinja_value divisor, int64_t wanted, jinja_value *out)
{
    jinja_value rest;
    bool same;
    MF_TRY(jinja_binary(run, JINJA_MOD, value, divisor, &rest));
    MF_TRY(jinja_equal(run, rest, jinja_int(wanted), &same));
    *out = jinja_bool(same);
    return MF_OK;
}

JTEST(test_odd)
{
    BIND("odd", "");
    return remainder_is(run, self, jinja_int(2), 1, out);
}

JTEST(test_even)
{
    BIND("even", "");
    return remainder_is(run, self, jinja_int(2), 0, out);
}

JTEST(test_divisibleby)
{
    BIND("divisibleby", "num");
    return remainder_is(run, self, arg[0], 0, out);
}

static mf_status by_method(jinja_run *run, const char *method, jinja_value self, const jinja_args *args, jinja_value *out)
{
    MF_TRY(jinja_to_str(run, self, &self));
    return jinja_str_method_find(method, strlen(method))->fn(run, self, args, out);
}

JTEST(test_lower)
{
    return by_method(run, "islower", self, args, out);
}

JTEST(test_upper)
{
    return by_method(run, "isupper", self, args, out);
}

JTEST(test_sameas)
{
    BIND("sameas", "other");
    *out = jinja_bool(jinja_same(self, arg[0]));
    return MF_OK;
}

JTEST(test_in)
{
    BIND("in", "seq");
    bool found;
    MF_TRY(jinja_contains(run, arg[0], self, &found));
    *out = jinja_bool(found);
    return MF_OK;
}

JTEST(test_eq)
{
    BIND("eq", "other/");
    bool same;
    MF_TRY(jinja_equal(run, self, arg[0], &same));
    *out = jinja_bool(same);
    return MF_OK;
}

JTEST(test_ne)
{
    MF_TRY(test_eq(run, self, args, out));
    out->as.b = !out->as.b;
    return MF_OK;
}

static mf_status ordered(jinja_run *run, jinja_value self, const jinja_args *args, jinja_order order, jinja_value *out)
{
    BIND("comparison", "other/");
    bool holds;
    MF_TRY(jinja_ordered(run, self, arg[0], order, &holds));
    *out = jinja_bool(holds);
    return MF_OK;
}

JTEST(test_lt)
{
    return ordered(run, self, args, JINJA_LT, out);
}

JTEST(test_le)
{
    return ordered(run, self, args, JINJA_LE, out);
}

JTEST(test_gt)
{
    return ordered(run, self, args, JINJA_GT, out);
}

JTEST(test_ge)
{
    return ordered(run, self, args, JINJA_GE, out);
}

static mf_status known(jinja_run *run, const char *what, jinja_value self, const jinja_args *args,
                       const jinja_builtin *(*find)(const char *, size_t), jinja_value *out)
{
    BIND(what, "");
    uint64_t hash; /* what cannot be a key is an error in jinja2 */
    MF_TRY(jinja_hash(run, self, &hash));
    *out = jinja_bool(self.type == JINJA_STR && find(self.as.s->data, self.as.s->size));
    return MF_OK;
}

JTEST(test_filter)
{
    return known(run, "filter", self, args, jinja_filter_find, out);
}

JTEST(test_test)
{
    return known(run, "test", self, args, jinja_test_find, out);
}

const jinja_builtin *jinja_test_find(const char *name, size_t size)
{
    static const jinja_builtin table[] = {
        { "defined", test_defined }, { "undefined", test_undefined }, { "none", test_none }, { "string", test_string },
        { "mapping", test_mapping }, { "iterable", test_iterable }, { "sequence", test_sequence },
        { "true", test_true }, { "false", test_false }, { "boolean", test_boolean }, { "number", test_number },
        { "integer", test_integer }, { "float", test_float }, { "in", test_in }, { "eq", test_eq },
        { "equalto", test_eq }, { "==", test_eq }, { "ne", test_ne }, { "!=", test_ne }, { "lt", test_lt },
        { "lessthan", test_lt }, { "<", test_lt }, { "le", test_le }, { "<=", test_le }, { "gt", test_gt },
        { "greaterthan", test_gt }, { ">", test_gt }, { "ge", test_ge }, { ">=", test_ge }, { "odd", test_odd },
        { "even", test_even }, { "divisibleby", test_divisibleby }, { "lower", test_lower }, { "upper", test_upper },
        { "sameas", test_sameas }, { "callable", test_callable }, { "escaped", test_escaped },
        { "filter", test_filter }, { "test", test_test },
    };
    return jinja_builtin_find(table, sizeof table / sizeof *table, name, size);
}
