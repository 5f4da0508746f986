/* guide_schema_types.c - a schema of one type: objects, arrays, strings, numbers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "text/guide_schema.h"

enum { BOUND_TEXT = 400 };

/* ---- members ------------------------------------------------------------------------------------------------------ */

/* A keyword's count; `otherwise` when it is absent. */
static int32_t read_count(mf_schema_reader *r, const json_t *schema, const char *keyword, int32_t otherwise)
{
    const json_t *value = json_object_get(schema, keyword);
    if (!value) {
        return otherwise;
    }
    double n = json_is_number(value) ? json_number_value(value) : -1.0;
    if (!(n >= 0.0) || n > 1e6 || n != floor(n)) {
        mf_schema_fail(r, n > 1e6 ? MF_ERR_LIMIT : MF_ERR_INVALID, keyword, "expected 0 to 1,000,000");
        return otherwise;
    }
    return (int32_t)n;
}

static mf_guide_expr *separator(mf_guide_build *b)
{
    return mf_guide_seq2(b, mf_guide_text(b, ","), mf_guide_json_space(b));
}

static mf_guide_expr *member(mf_guide_build *b, mf_guide_expr *key, mf_guide_expr *value)
{
    mf_guide_expr *colon = mf_guide_seq2(b, mf_guide_text(b, ":"), mf_guide_optional(b, mf_guide_text(b, " ")));
    return mf_guide_seq3(b, key, colon, value);
}

static mf_guide_expr *named_member(mf_schema_reader *r, const char *name, mf_guide_expr *value)
{
    json_t *string = json_string(name);
    char *text = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    json_decref(string);
    if (!text) {
        mf_guide_build_fail(r->b, MF_ERR_NOMEM, "out of memory for a key");
        return NULL;
    }
    mf_guide_expr *key = mf_guide_text(r->b, text);
    mf_free(text);
    return member(r->b, key, value);
}

static mf_guide_expr *in_brackets(mf_guide_build *b, const char *open, mf_guide_expr *inside, const char *close)
{
    return mf_guide_seq(b,
                        (mf_guide_expr *const[]){ mf_guide_text(b, open), mf_guide_json_space(b), inside,
                                                  mf_guide_json_space(b), mf_guide_text(b, close) },
                        5);
}

/* ---- objects ------------------------------------------------------------------------------------------------------ */

typedef struct object {
    mf_guide_list members;
    bool *is_optional;
    const char **names;
    int32_t num_required;
    mf_guide_expr *additional; /* value of other members; NULL = none */
} object;

static bool is_required(const json_t *required, const char *name)
{
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *one = json_string_value(json_array_get(required, i));
        if (one && strcmp(one, name) == 0) {
            return true;
        }
    }
    return false;
}

static void read_additional(mf_schema_reader *r, const json_t *schema, object *o)
{
    const json_t *additional = json_object_get(schema, "additionalProperties");
    additional = additional ? additional : json_object_get(schema, "unevaluatedProperties");
    bool has_properties = json_object_size(json_object_get(schema, "properties")) > 0;
    if (additional ? json_is_true(additional) : !has_properties) {
        o->additional = mf_guide_json_value(r->b);
    } else if (additional && !json_is_false(additional)) {
        o->additional = mf_schema_expr(r, additional);
    }
}

static void add_member(mf_schema_reader *r, object *o, const char *name, mf_guide_expr *value, bool is_optional)
{
    o->is_optional[o->members.num] = is_optional;
    o->names[o->members.num] = name;
    o->num_required += !is_optional;
    mf_guide_list_add(r->b, &o->members, named_member(r, name, value));
}

/* Properties in the schema's order, then required names that have no schema. */
static void read_members(mf_schema_reader *r, const json_t *schema, object *o)
{
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *required = json_object_get(schema, "required");
    if ((properties && !json_is_object(properties)) || (required && !json_is_array(required))) {
        mf_schema_fail(r, MF_ERR_INVALID, properties && !json_is_object(properties) ? "properties" : "required",
                       "expected an object of schemas, a list of names");
        return;
    }
    size_t most = json_object_size(properties) + json_array_size(required) + 1;
    o->is_optional = mf_guide_build_alloc(r->b, most, sizeof *o->is_optional);
    o->names = mf_guide_build_alloc(r->b, most, sizeof *o->names);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)properties, name, value)
    {
        bool optional = !is_required(required, name);
        if (mf_guide_build_is_late(r->b)) {
            return;
        }
        if (!(optional && json_is_false(value))) {
            add_member(r, o, name, mf_schema_expr(r, value), optional);
        }
    }
    for (size_t i = 0; i < json_array_size(required) && !mf_guide_build_is_late(r->b); i++) {
        const char *one = json_string_value(json_array_get(required, i));
        if (!one) {
            mf_schema_fail(r, MF_ERR_INVALID, "required", "expected a list of names");
            return;
        }
        bool is_known = json_object_get(properties, one) != NULL;
        for (size_t j = 0; j < i && !is_known; j++) {
            is_known = strcmp(json_string_value(json_array_get(required, j)), one) == 0;
        }
        if (!is_known) {
            add_member(r, o, one, o->additional ? o->additional : mf_guide_json_value(r->b), false);
        }
    }
}

static mf_guide_expr *object_of(mf_schema_reader *r, const json_t *schema)
{
    mf_guide_build *b = r->b;
    object o = { 0 };
    read_additional(r, schema, &o);
    read_members(r, schema, &o);
    if (read_count(r, schema, "minProperties", 0) > o.num_required) {
        mf_schema_fail(r, MF_ERR_UNSUPPORTED, "minProperties", "not supported above the number of required properties");
    }
    if (b->status != MF_OK) {
        return NULL;
    }
    mf_guide_expr *tail = NULL;
    if (o.additional) {
        mf_guide_expr *key = o.members.num > 0 ? mf_guide_json_key_except(b, o.names, o.members.num) : mf_guide_json_string(b);
        tail = member(b, key, o.additional);
    }
    return in_brackets(b, "{", mf_guide_members(b, separator(b), &o.members, o.is_optional, tail), "}");
}

/* ---- arrays ------------------------------------------------------------------------------------------------------- */

static mf_guide_expr *array_of(mf_schema_reader *r, const json_t *schema)
{
    mf_guide_build *b = r->b;
    const json_t *items = json_object_get(schema, "items");
    const json_t *prefix = json_object_get(schema, "prefixItems");
    int32_t min = read_count(r, schema, "minItems", 0);
    int32_t max = read_count(r, schema, "maxItems", -1);
    if (prefix && !json_is_array(prefix)) {
        mf_schema_fail(r, MF_ERR_INVALID, "prefixItems", "expected a list of schemas");
    } else if (json_is_array(items)) {
        mf_schema_fail(r, MF_ERR_UNSUPPORTED, "items", "a list: prefixItems is its name now");
    }
    int32_t num_prefix = (int32_t)json_array_size(prefix);
    num_prefix = max >= 0 && max < num_prefix ? max : num_prefix;
    bool has_more = items ? !json_is_false(items) : json_array_size(prefix) == 0;
    if (max >= 0 && (max < min || (!has_more && num_prefix < min))) {
        mf_schema_fail(r, MF_ERR_INVALID, "maxItems", "below minItems");
    } else if (!has_more && num_prefix < min) {
        mf_schema_fail(r, MF_ERR_INVALID, "minItems", "above the number of prefixItems, and items allows no more");
    }
    if (b->status != MF_OK) {
        return NULL;
    }
    mf_guide_expr *item = !has_more ? NULL : items ? mf_schema_expr(r, items) : mf_guide_json_value(b);
    if (num_prefix == 0) {
        return mf_guide_json_array(b, item ? item : mf_guide_empty(b), min, item ? max : 0);
    }
    mf_guide_expr *rest = mf_guide_empty(b);
    if (item) {
        rest = mf_guide_repeat(b, mf_guide_seq2(b, separator(b), item), min > num_prefix ? min - num_prefix : 0,
                               max < 0 ? -1 : max - num_prefix);
    }
    for (int32_t i = num_prefix; i-- > 0 && b->status == MF_OK;) {
        mf_guide_expr *one = mf_schema_expr(r, json_array_get(prefix, (size_t)i));
        rest = i > 0 ? mf_guide_seq3(b, separator(b), one, rest) : mf_guide_seq2(b, one, rest);
        rest = i < min ? rest : mf_guide_optional(b, rest);
    }
    return in_brackets(b, "[", rest, "]");
}

/* ---- strings ------------------------------------------------------------------------------------------------------ */

/* A pattern or format beside lengths is taken when all that it matches has such a length. */
static mf_guide_expr *string_of(mf_schema_reader *r, const json_t *schema)
{
    mf_guide_build *b = r->b;
    const json_t *pattern = json_object_get(schema, "pattern");
    const json_t *format = json_object_get(schema, "format");
    int32_t min = read_count(r, schema, "minLength", 0);
    int32_t max = read_count(r, schema, "maxLength", -1);
    if (max >= 0 && max < min) {
        mf_schema_fail(r, MF_ERR_INVALID, "maxLength", "below minLength");
    } else if ((pattern && !json_is_string(pattern)) || (format && !json_is_string(format))) {
        mf_schema_fail(r, MF_ERR_INVALID, pattern && !json_is_string(pattern) ? "pattern" : "format", "expected a string");
    } else if (pattern && format) {
        mf_schema_fail(r, MF_ERR_UNSUPPORTED, "format", "not supported beside pattern");
    }
    if (b->status != MF_OK) {
        return NULL;
    }
    if (!pattern && !format) {
        return min == 0 && max < 0 ? mf_guide_json_string(b) : mf_guide_json_string_sized(b, min, max);
    }
    mf_guide_expr *inside = pattern ? mf_guide_parse_regex(b, json_string_value(pattern), json_string_length(pattern), true)
                                    : mf_guide_format(b, json_string_value(format));
    if (!inside) {
        if (b->status == MF_OK) {
            mf_guide_build_fail(b, MF_ERR_UNSUPPORTED, "format: \"%.64s\" is not supported", json_string_value(format));
        }
        return NULL;
    }
    if (inside->min_chars < min || (max >= 0 && inside->max_chars > max)) {
        mf_schema_fail(r, MF_ERR_UNSUPPORTED, inside->min_chars < min ? "minLength" : "maxLength",
                       pattern ? "not supported beside a pattern that goes beyond it" : "not supported beside this format");
    }
    return mf_guide_json_quoted(b, inside);
}

/* ---- numbers ------------------------------------------------------------------------------------------------------ */

/* A bound as a decimal text without exponent: the shortest that reads back as the same number. */
static void write_bound(mf_schema_reader *r, const char *keyword, const json_t *value, char *text)
{
    double x = json_is_number(value) ? json_number_value(value) : NAN;
    if (!(x > -1e15 && x < 1e15) || (x != 0.0 && x > -1e-300 && x < 1e-300)) {
        mf_schema_fail(r, json_is_number(value) ? MF_ERR_UNSUPPORTED : MF_ERR_INVALID, keyword,
                       "expected a number between -1e15 and 1e15");
        x = 0.0;
    }
    if (json_is_integer(value)) {
        snprintf(text, BOUND_TEXT, "%lld", (long long)x);
        return;
    }
    char shortest[40];
    int precision = 0;
    do {
        snprintf(shortest, sizeof shortest, "%.*e", precision, x);
    } while (strtod(shortest, NULL) != x && ++precision < 17);
    char digits[24];
    size_t n = 0;
    const char *at = shortest + (shortest[0] == '-');
    for (; *at && *at != 'e'; at++) {
        if (*at != '.') {
            digits[n++] = *at;
        }
    }
    int32_t exponent = *at ? (int32_t)strtol(at + 1, NULL, 10) : 0;
    size_t out = 0;
    if (shortest[0] == '-') {
        text[out++] = '-';
    }
    for (int32_t i = exponent < 0 ? exponent : 0; i <= exponent || i < (int32_t)n; i++) { /* digit i has weight 10^(exponent - i) */
        if (i == exponent + 1) {
            text[out++] = '.';
        }
        text[out++] = i >= 0 && i < (int32_t)n ? digits[i] : '0';
    }
    text[out] = '\0';
}

typedef struct number_bounds {
    char least[BOUND_TEXT], most[BOUND_TEXT];
    bool has_least, has_most, above, below;
} number_bounds;

static void read_bounds(mf_schema_reader *r, const json_t *schema, number_bounds *x)
{
    const json_t *minimum = json_object_get(schema, "minimum");
    const json_t *above = json_object_get(schema, "exclusiveMinimum");
    const json_t *maximum = json_object_get(schema, "maximum");
    const json_t *below = json_object_get(schema, "exclusiveMaximum");
    x->above = above && !(minimum && json_number_value(minimum) > json_number_value(above));
    x->below = below && !(maximum && json_number_value(maximum) < json_number_value(below));
    x->has_least = minimum || above;
    x->has_most = maximum || below;
    if (x->has_least) {
        write_bound(r, x->above ? "exclusiveMinimum" : "minimum", x->above ? above : minimum, x->least);
    }
    if (x->has_most) {
        write_bound(r, x->below ? "exclusiveMaximum" : "maximum", x->below ? below : maximum, x->most);
    }
}

/* Bounds of integers: up or down to the next one inside. */
static mf_guide_expr *integer_of(mf_schema_reader *r, const json_t *schema)
{
    number_bounds x = { 0 };
    read_bounds(r, schema, &x);
    if (!x.has_least && !x.has_most) {
        return mf_guide_json_integer(r->b);
    }
    double least = strtod(x.least, NULL), most = strtod(x.most, NULL);
    least = x.above ? floor(least) + 1.0 : ceil(least);
    most = x.below ? ceil(most) - 1.0 : floor(most);
    snprintf(x.least, sizeof x.least, "%.0f", least);
    snprintf(x.most, sizeof x.most, "%.0f", most);
    return r->b->status == MF_OK ? mf_guide_integer_range(r->b, x.has_least ? x.least : NULL, x.has_most ? x.most : NULL) : NULL;
}

static mf_guide_expr *number_of(mf_schema_reader *r, const json_t *schema)
{
    number_bounds x = { 0 };
    read_bounds(r, schema, &x);
    if (!x.has_least && !x.has_most) {
        return mf_guide_json_number(r->b);
    }
    return r->b->status == MF_OK ? mf_guide_number_range(r->b, x.has_least ? x.least : NULL, x.above,
                                                         x.has_most ? x.most : NULL, x.below)
                                 : NULL;
}

mf_guide_expr *mf_schema_typed(mf_schema_reader *r, const json_t *schema, const char *type)
{
    mf_guide_build *b = r->b;
    if (strcmp(type, "object") == 0) {
        return object_of(r, schema);
    }
    if (strcmp(type, "array") == 0) {
        return array_of(r, schema);
    }
    if (strcmp(type, "string") == 0) {
        return string_of(r, schema);
    }
    if (strcmp(type, "integer") == 0) {
        return integer_of(r, schema);
    }
    if (strcmp(type, "number") == 0) {
        return number_of(r, schema);
    }
    if (strcmp(type, "boolean") == 0) {
        return mf_guide_alt(b, (mf_guide_expr *const[]){ mf_guide_text(b, "true"), mf_guide_text(b, "false") }, 2);
    }
    if (strcmp(type, "null") == 0) {
        return mf_guide_text(b, "null");
    }
    mf_guide_build_fail(b, MF_ERR_INVALID, "type: expected object, array, string, number, integer, boolean or null; got \"%.32s\"",
                        type);
    return NULL;
}
