/* guide_schema_merge.c - references, and several schemas that must hold together as one: keyword by keyword, and what cannot be
 * joined exactly is refused by name. */
#include <stdlib.h>
#include <string.h>

#include "base/hex.h"

#include "text/guide_schema.h"

enum { MAX_PENDING = 1024, MAX_REFERENCE = 1024 };

/* ---- $ref --------------------------------------------------------------------------------------------------------- */

/* One step of a pointer, up to the next '/': "%41" and "~0", "~1" read. */
static const char *read_step(const char *at, char *step, size_t room)
{
    size_t n = 0;
    for (; *at && *at != '/' && n + 1 < room; at++) {
        char c = *at;
        if (c == '%' && mf_hex_digit(at[1]) >= 0 && mf_hex_digit(at[2]) >= 0) {
            c = (char)(mf_hex_digit(at[1]) * 16 + mf_hex_digit(at[2]));
            at += 2;
        }
        if (c == '~' && (at[1] == '0' || at[1] == '1')) {
            c = *++at == '0' ? '~' : '/';
        }
        step[n++] = c;
    }
    step[n] = '\0';
    return at;
}

const json_t *mf_schema_resolve(mf_schema_reader *r, const char *ref)
{
    if (ref[0] != '#' || (ref[1] != '\0' && ref[1] != '/') || strlen(ref) > MAX_REFERENCE) {
        mf_guide_build_fail(r->b, MF_ERR_UNSUPPORTED, "$ref \"%.100s\": only #/... within the schema", ref);
        return NULL;
    }
    const json_t *at = r->root;
    char step[MAX_REFERENCE + 1];
    for (const char *rest = ref + 1; *rest == '/' && at;) {
        rest = read_step(rest + 1, step, sizeof step);
        if (json_is_array(at)) {
            char *end;
            unsigned long index = strtoul(step, &end, 10);
            at = *step && !*end ? json_array_get(at, index) : NULL;
        } else {
            at = json_object_get(at, step);
        }
    }
    if (!at) {
        mf_guide_build_fail(r->b, MF_ERR_INVALID, "$ref \"%.100s\": nothing is there", ref);
    }
    return at;
}

/* ---- merging ------------------------------------------------------------------------------------------------------ */

static bool is_any_of(const char *keyword, const char *const *names)
{
    for (; *names; names++) {
        if (strcmp(keyword, *names) == 0) {
            return true;
        }
    }
    return false;
}

/* {"allOf": [a, b]}, or b added to a's list: many that are joined one by one must not nest.  NULL when out of memory. */
static json_t *both(const json_t *a, const json_t *b)
{
    const json_t *list = json_object_size(a) == 1 ? json_object_get(a, "allOf") : NULL;
    if (!json_is_array(list)) {
        return json_pack("{s:[O,O]}", "allOf", (json_t *)a, (json_t *)b);
    }
    json_t *copy = json_copy((json_t *)list);
    if (!copy || json_array_append(copy, (json_t *)b) != 0) {
        json_decref(copy);
        return NULL;
    }
    return json_pack("{s:o}", "allOf", copy);
}

static void set_in(mf_schema_reader *r, json_t *to, const char *keyword, json_t *value) /* takes value */
{
    if (!value || json_object_set_new(to, keyword, value) != 0) {
        mf_guide_build_fail(r->b, MF_ERR_NOMEM, "out of memory for a merged schema");
    }
}

static void merge_properties(mf_schema_reader *r, json_t *to, const json_t *a, const json_t *b)
{
    json_t *merged = json_copy((json_t *)a);
    const char *name;
    json_t *value;
    if (!json_is_object(a) || !json_is_object(b) || !merged) {
        mf_schema_fail(r, MF_ERR_INVALID, "properties", "expected an object");
        json_decref(merged);
        return;
    }
    json_object_foreach((json_t *)b, name, value)
    {
        const json_t *known = json_object_get(merged, name);
        json_t *one = known && !json_equal(known, value) ? both(known, value) : json_incref(value);
        set_in(r, merged, name, one);
    }
    set_in(r, to, "properties", merged);
}

static void merge_required(mf_schema_reader *r, json_t *to, const json_t *a, const json_t *b)
{
    json_t *merged = json_copy((json_t *)a);
    if (!json_is_array(a) || !json_is_array(b) || !merged || json_array_extend(merged, (json_t *)b) != 0) {
        mf_schema_fail(r, MF_ERR_INVALID, "required", "expected a list of names");
        json_decref(merged);
        return;
    }
    set_in(r, to, "required", merged);
}

static bool holds_string(const json_t *list, const char *text)
{
    bool found = json_is_string(list) && strcmp(json_string_value(list), text) == 0;
    for (size_t i = 0; i < json_array_size(list) && !found; i++) {
        const char *one = json_string_value(json_array_get(list, i));
        found = one && strcmp(one, text) == 0;
    }
    return found;
}

static void merge_type(mf_schema_reader *r, json_t *to, const json_t *a, const json_t *b)
{
    static const char *const types[] = { "object", "array", "string", "number", "integer", "boolean", "null" };
    json_t *merged = json_array();
    for (size_t i = 0; i < sizeof types / sizeof *types && merged; i++) {
        bool is_integer = strcmp(types[i], "integer") == 0;
        bool in_a = holds_string(a, types[i]) || (is_integer && holds_string(a, "number"));
        bool in_b = holds_string(b, types[i]) || (is_integer && holds_string(b, "number"));
        bool is_known = is_integer && json_array_size(merged) > 0 && holds_string(merged, "number");
        if (in_a && in_b && !is_known) {
            json_array_append_new(merged, json_string(types[i]));
        }
    }
    if (json_array_size(merged) == 0) {
        mf_schema_fail(r, MF_ERR_INVALID, "type", "no type satisfies all of allOf");
    }
    set_in(r, to, "type", merged);
}

static void merge_enum(mf_schema_reader *r, json_t *to, const json_t *a, const json_t *b)
{
    json_t *merged = json_array();
    for (size_t i = 0; i < json_array_size(a) && merged && !mf_guide_build_is_late(r->b); i++) {
        for (size_t j = 0; j < json_array_size(b); j++) {
            if (json_equal(json_array_get(a, i), json_array_get(b, j))) {
                json_array_append(merged, json_array_get(a, i));
                break;
            }
        }
    }
    if (json_array_size(merged) == 0) {
        mf_schema_fail(r, MF_ERR_INVALID, "enum", "no value satisfies all of allOf");
    }
    set_in(r, to, "enum", merged);
}

static void merge_keyword(mf_schema_reader *r, json_t *to, const char *keyword, json_t *value)
{
    static const char *const larger[] = { "minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", NULL };
    static const char *const smaller[] = { "maximum", "exclusiveMaximum", "maxLength", "maxItems", NULL };
    json_t *known = json_object_get(to, keyword);
    if (!known) {
        set_in(r, to, keyword, json_incref(value));
    } else if (json_equal(known, value)) {
        return;
    } else if (strcmp(keyword, "properties") == 0) {
        merge_properties(r, to, known, value);
    } else if (strcmp(keyword, "required") == 0) {
        merge_required(r, to, known, value);
    } else if (strcmp(keyword, "type") == 0) {
        merge_type(r, to, known, value);
    } else if (strcmp(keyword, "enum") == 0) {
        merge_enum(r, to, known, value);
    } else if (strcmp(keyword, "items") == 0) {
        set_in(r, to, keyword, both(known, value));
    } else if (strcmp(keyword, "additionalProperties") == 0) {
        bool takes_new = json_is_true(known) || json_is_false(value);
        set_in(r, to, keyword, takes_new || json_is_true(value) || json_is_false(known) ? json_incref(takes_new ? value : known)
                                                                                       : both(known, value));
    } else if (is_any_of(keyword, larger) && json_is_number(known) && json_is_number(value)) {
        bool takes_new = json_number_value(value) > json_number_value(known);
        set_in(r, to, keyword, json_incref(takes_new ? value : known));
    } else if (is_any_of(keyword, smaller) && json_is_number(known) && json_is_number(value)) {
        bool takes_new = json_number_value(value) < json_number_value(known);
        set_in(r, to, keyword, json_incref(takes_new ? value : known));
    } else {
        mf_schema_fail(r, MF_ERR_UNSUPPORTED, keyword, "two that must hold together are not supported");
    }
}

/* additionalProperties speaks of the properties beside it alone: another schema must not bring new ones. */
static void check_additional(mf_schema_reader *r, const json_t *a, const json_t *b)
{
    const json_t *additional = json_object_get(a, "additionalProperties");
    const char *name;
    json_t *value;
    if (!additional || json_is_true(additional)) {
        return;
    }
    json_object_foreach(json_object_get((json_t *)b, "properties"), name, value)
    {
        if (!json_object_get(json_object_get(a, "properties"), name)) {
            mf_schema_fail(r, MF_ERR_UNSUPPORTED, "additionalProperties", "not supported with properties of another schema");
            return;
        }
    }
}

typedef struct pending {
    const json_t *schemas[MAX_PENDING];
    size_t count;
} pending;

static void add_pending(mf_schema_reader *r, pending *p, const json_t *schema)
{
    if (p->count == MAX_PENDING) {
        mf_guide_build_fail(r->b, MF_ERR_LIMIT, "more than %d schemas that must hold together", MAX_PENDING);
    } else if (schema) {
        p->schemas[p->count++] = schema;
    }
}

static void merge_schema(mf_schema_reader *r, json_t *to, const json_t *from, const char *without, pending *p)
{
    const char *keyword;
    json_t *value;
    mf_schema_check_keywords(r, from);
    check_additional(r, to, from);
    check_additional(r, from, to);
    json_object_foreach((json_t *)from, keyword, value)
    {
        if (!mf_schema_constrains(keyword) || (without && strcmp(keyword, without) == 0)) {
            continue;
        }
        if (strcmp(keyword, "$ref") == 0 && json_is_string(value)) {
            add_pending(r, p, mf_schema_resolve(r, json_string_value(value)));
        } else if (strcmp(keyword, "allOf") == 0 && json_is_array(value)) {
            for (size_t i = 0; i < json_array_size(value) && r->b->status == MF_OK; i++) {
                add_pending(r, p, json_array_get(value, i));
            }
        } else {
            merge_keyword(r, to, keyword, value);
        }
        if (r->b->status != MF_OK) {
            return;
        }
    }
}

const json_t *mf_schema_merge(mf_schema_reader *r, const json_t *base, const char *without, const json_t *const *others,
                              size_t num_others)
{
    pending *p = mf_guide_build_alloc(r->b, 1, sizeof *p);
    json_t *merged = json_object();
    if (!p || !merged || json_array_append_new(r->made, merged) != 0) {
        mf_guide_build_fail(r->b, MF_ERR_NOMEM, "out of memory for a merged schema");
        return NULL;
    }
    merge_schema(r, merged, base, without, p);
    for (size_t i = 0; i < num_others && r->b->status == MF_OK; i++) {
        add_pending(r, p, others[i]);
    }
    for (size_t i = 0; i < p->count && !mf_guide_build_is_late(r->b); i++) {
        if (json_is_object(p->schemas[i])) {
            merge_schema(r, merged, p->schemas[i], NULL, p);
        } else if (!json_is_true(p->schemas[i])) {
            mf_schema_fail(r, MF_ERR_INVALID, "allOf", "expected schemas that can be satisfied");
        }
    }
    return r->b->status == MF_OK ? merged : NULL;
}
