/* guide_schema.c - a JSON schema (2020-12, the part that structured output is asked for in) into rules.
 *
 * As vLLM's back ends do it: properties come in the schema's order, an object with properties has no others unless
 * additionalProperties allows them, oneOf is read as anyOf, and pattern has to match the whole string.  So what is made always
 * satisfies the schema (but for oneOf whose branches overlap), and is not everything that would. */
#include <string.h>

#include "base/sys.h"
#include "text/guide_schema.h"

typedef enum keyword_kind { CONSTRAINS, ANNOTATES, REFUSED } keyword_kind;

static const struct {
    const char *name;
    keyword_kind kind;
} keywords[] = {
    { "type", CONSTRAINS },           { "properties", CONSTRAINS },        { "required", CONSTRAINS },
    { "additionalProperties", CONSTRAINS }, { "items", CONSTRAINS },       { "prefixItems", CONSTRAINS },
    { "minItems", CONSTRAINS },       { "maxItems", CONSTRAINS },          { "enum", CONSTRAINS },
    { "const", CONSTRAINS },          { "anyOf", CONSTRAINS },             { "oneOf", CONSTRAINS },
    { "allOf", CONSTRAINS },          { "$ref", CONSTRAINS },              { "minLength", CONSTRAINS },
    { "maxLength", CONSTRAINS },      { "pattern", CONSTRAINS },           { "format", CONSTRAINS },
    { "minimum", CONSTRAINS },        { "maximum", CONSTRAINS },           { "exclusiveMinimum", CONSTRAINS },
    { "exclusiveMaximum", CONSTRAINS }, { "unevaluatedProperties", CONSTRAINS }, { "minProperties", CONSTRAINS },
    { "not", REFUSED },               { "if", REFUSED },                   { "then", REFUSED },
    { "else", REFUSED },              { "dependentSchemas", REFUSED },     { "dependentRequired", REFUSED },
    { "dependencies", REFUSED },      { "patternProperties", REFUSED },    { "propertyNames", REFUSED },
    { "maxProperties", REFUSED },     { "contains", REFUSED },             { "minContains", REFUSED },
    { "maxContains", REFUSED },       { "multipleOf", REFUSED },           { "unevaluatedItems", REFUSED },
    { "additionalItems", REFUSED },   { "$dynamicRef", REFUSED },          { "$recursiveRef", REFUSED },
    { "nullable", REFUSED },          { "uniqueItems", REFUSED },
};

void mf_schema_fail(mf_schema_reader *r, mf_status status, const char *keyword, const char *message)
{
    mf_guide_build_fail(r->b, status, "%.64s: %s", keyword, message);
}

static keyword_kind kind_of(const char *keyword)
{
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++) {
        if (strcmp(keywords[i].name, keyword) == 0) {
            return keywords[i].kind;
        }
    }
    return ANNOTATES; /* as the standard says of what it does not know */
}

bool mf_schema_constrains(const char *keyword)
{
    return kind_of(keyword) == CONSTRAINS;
}

bool mf_schema_check_keywords(mf_schema_reader *r, const json_t *schema)
{
    bool constrains = false;
    const char *keyword;
    json_t *value;
    json_object_foreach((json_t *)schema, keyword, value)
    {
        keyword_kind kind = kind_of(keyword);
        bool asks_nothing = json_is_false(value) && (strcmp(keyword, "uniqueItems") == 0 || strcmp(keyword, "nullable") == 0);
        if (kind == REFUSED && !asks_nothing) {
            mf_schema_fail(r, MF_ERR_UNSUPPORTED, keyword, "this keyword is not supported");
        }
        constrains = constrains || kind == CONSTRAINS;
    }
    return constrains;
}

/* ---- literal values ----------------------------------------------------------------------------------------------- */

static mf_guide_expr *literal(mf_schema_reader *r, const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text) {
        mf_guide_build_fail(r->b, MF_ERR_NOMEM, "out of memory for a value");
        return NULL;
    }
    mf_guide_expr *e = mf_guide_text(r->b, text);
    mf_free(text);
    return e;
}

static bool is_of_type(const json_t *value, const char *type)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return strcmp(type, "object") == 0;
    case JSON_ARRAY:
        return strcmp(type, "array") == 0;
    case JSON_STRING:
        return strcmp(type, "string") == 0;
    case JSON_INTEGER:
        return strcmp(type, "integer") == 0 || strcmp(type, "number") == 0;
    case JSON_REAL:
        return strcmp(type, "number") == 0 ||
               (strcmp(type, "integer") == 0 && json_real_value(value) == (double)(int64_t)json_real_value(value));
    case JSON_TRUE:
    case JSON_FALSE:
        return strcmp(type, "boolean") == 0;
    default:
        return strcmp(type, "null") == 0;
    }
}

static bool type_allows(const json_t *type, const json_t *value)
{
    bool found = !type || (json_is_string(type) && is_of_type(value, json_string_value(type)));
    for (size_t i = 0; i < json_array_size(type) && !found; i++) {
        const json_t *one = json_array_get(type, i);
        found = json_is_string(one) && is_of_type(value, json_string_value(one));
    }
    return found;
}

/* enum and const: values that the type allows.  Other keywords beside them would have to be checked against each. */
static mf_guide_expr *literals(mf_schema_reader *r, const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type");
    const json_t *constant = json_object_get(schema, "const");
    const json_t *values = json_object_get(schema, "enum");
    const char *keyword;
    json_t *value;
    json_object_foreach((json_t *)schema, keyword, value)
    {
        if (mf_schema_constrains(keyword) && strcmp(keyword, "type") != 0 && strcmp(keyword, "const") != 0 &&
            strcmp(keyword, "enum") != 0) {
            mf_schema_fail(r, MF_ERR_UNSUPPORTED, keyword, "not supported beside enum or const");
            return NULL;
        }
    }
    if (values && !json_is_array(values)) {
        mf_schema_fail(r, MF_ERR_INVALID, "enum", "expected a list");
        return NULL;
    }
    mf_guide_list list = { 0 };
    for (size_t i = 0; i < (values ? json_array_size(values) : 1) && r->b->status == MF_OK; i++) {
        const json_t *one = values ? json_array_get(values, i) : constant;
        if (type_allows(type, one) && (!constant || !values || json_equal(one, constant))) {
            mf_guide_list_add(r->b, &list, literal(r, one));
        }
    }
    if (list.num == 0 && r->b->status == MF_OK) {
        mf_schema_fail(r, MF_ERR_INVALID, values ? "enum" : "const", "no value that may come");
    }
    return r->b->status == MF_OK ? mf_guide_alt(r->b, list.items, list.num) : NULL;
}

/* ---- combining ---------------------------------------------------------------------------------------------------- */

/* Whether anything but annotations and `keyword` stands in the schema. */
static bool has_siblings(const json_t *schema, const char *keyword)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)schema, name, value)
    {
        if (mf_schema_constrains(name) && strcmp(name, keyword) != 0) {
            return true;
        }
    }
    return false;
}

static mf_guide_expr *reference(mf_schema_reader *r, const json_t *schema)
{
    const json_t *ref = json_object_get(schema, "$ref");
    if (!json_is_string(ref)) {
        mf_schema_fail(r, MF_ERR_INVALID, "$ref", "expected a string");
        return NULL;
    }
    const json_t *target = mf_schema_resolve(r, json_string_value(ref));
    if (target && has_siblings(schema, "$ref")) {
        target = mf_schema_merge(r, schema, "$ref", &target, 1);
    }
    return target ? mf_schema_expr(r, target) : NULL;
}

static mf_guide_expr *all_of(mf_schema_reader *r, const json_t *schema)
{
    const json_t *members = json_object_get(schema, "allOf");
    if (!json_is_array(members) || json_array_size(members) == 0) {
        mf_schema_fail(r, MF_ERR_INVALID, "allOf", "expected a list of schemas");
        return NULL;
    }
    const json_t *target = json_array_get(members, 0);
    if (json_array_size(members) > 1 || has_siblings(schema, "allOf")) {
        size_t n = json_array_size(members);
        const json_t **others = mf_guide_build_alloc(r->b, n, sizeof *others);
        for (size_t i = 0; others && i < n; i++) {
            others[i] = json_array_get(members, i);
        }
        target = others ? mf_schema_merge(r, schema, "allOf", others, n) : NULL;
    }
    return target ? mf_schema_expr(r, target) : NULL;
}

static mf_guide_expr *any_of(mf_schema_reader *r, const json_t *schema, const char *keyword)
{
    const json_t *branches = json_object_get(schema, keyword);
    if (!json_is_array(branches) || json_array_size(branches) == 0) {
        mf_schema_fail(r, MF_ERR_INVALID, keyword, "expected a list of schemas");
        return NULL;
    }
    bool merges = has_siblings(schema, keyword);
    mf_guide_list list = { 0 };
    for (size_t i = 0; i < json_array_size(branches) && r->b->status == MF_OK; i++) {
        const json_t *branch = json_array_get(branches, i);
        branch = merges ? mf_schema_merge(r, schema, keyword, &branch, 1) : branch;
        mf_guide_list_add(r->b, &list, branch ? mf_schema_expr(r, branch) : NULL);
    }
    return r->b->status == MF_OK ? mf_guide_alt(r->b, list.items, list.num) : NULL;
}

/* ---- types -------------------------------------------------------------------------------------------------------- */

static bool has_any(const json_t *schema, const char *const *names)
{
    for (; *names; names++) {
        if (json_object_get(schema, *names)) {
            return true;
        }
    }
    return false;
}

/* Without a type, the keywords say which is meant. */
static const char *implied_type(const json_t *schema)
{
    static const char *const object[] = { "properties", "required", "additionalProperties", "unevaluatedProperties",
                                          "minProperties", NULL };
    static const char *const array[] = { "items", "prefixItems", "minItems", "maxItems", NULL };
    static const char *const string[] = { "minLength", "maxLength", "pattern", "format", NULL };
    static const char *const number[] = { "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", NULL };
    return has_any(schema, object)   ? "object"
           : has_any(schema, array)  ? "array"
           : has_any(schema, string) ? "string"
           : has_any(schema, number) ? "number"
                                     : NULL;
}

static mf_guide_expr *typed(mf_schema_reader *r, const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type");
    if (!type) {
        const char *implied = implied_type(schema);
        return implied ? mf_schema_typed(r, schema, implied) : mf_guide_json_value(r->b);
    }
    if (json_is_string(type)) {
        return mf_schema_typed(r, schema, json_string_value(type));
    }
    if (!json_is_array(type) || json_array_size(type) == 0) {
        mf_schema_fail(r, MF_ERR_INVALID, "type", "expected a name or a list of names");
        return NULL;
    }
    mf_guide_list list = { 0 };
    for (size_t i = 0; i < json_array_size(type) && r->b->status == MF_OK; i++) {
        const char *name = json_string_value(json_array_get(type, i));
        mf_guide_list_add(r->b, &list, mf_schema_typed(r, schema, name ? name : ""));
    }
    return r->b->status == MF_OK ? mf_guide_alt(r->b, list.items, list.num) : NULL;
}

static mf_guide_expr *body_of(mf_schema_reader *r, const json_t *schema)
{
    if (json_is_true(schema)) {
        return mf_guide_json_value(r->b);
    }
    if (!json_is_object(schema)) {
        mf_guide_build_fail(r->b, MF_ERR_INVALID, json_is_false(schema) ? "a schema that is false: no text can be as asked for"
                                                                         : "a schema: expected an object or true");
        return NULL;
    }
    if (!mf_schema_check_keywords(r, schema)) {
        return mf_guide_json_value(r->b);
    }
    if (json_object_get(schema, "$ref")) {
        return reference(r, schema);
    }
    if (json_object_get(schema, "allOf")) {
        return all_of(r, schema);
    }
    if (json_object_get(schema, "anyOf")) {
        return any_of(r, schema, "anyOf");
    }
    if (json_object_get(schema, "oneOf")) {
        return any_of(r, schema, "oneOf");
    }
    if (json_object_get(schema, "const") || json_object_get(schema, "enum")) {
        return literals(r, schema);
    }
    return typed(r, schema);
}

/* ---- the queue ---------------------------------------------------------------------------------------------------- */

static mf_schema_entry *entry_of(mf_schema_reader *r, const json_t *schema)
{
    uint64_t hash = (uint64_t)(uintptr_t)schema * 0x9e3779b97f4a7c15u >> 48;
    mf_schema_entry *e = &r->entries[hash % MF_SCHEMA_SLOTS];
    while (e->schema && e->schema != schema) { /* never full: there are fewer rules than slots */
        e = e + 1 < r->entries + MF_SCHEMA_SLOTS ? e + 1 : r->entries;
    }
    return e;
}

/* Plain strings and numbers need no rule of their own. */
static bool is_scalar(const json_t *schema)
{
    static const char *const combining[] = { "$ref", "allOf", "anyOf", "oneOf", NULL };
    static const char *const scalars[] = { "string", "number", "integer", "boolean", "null", NULL };
    const char *type = json_string_value(json_object_get(schema, "type"));
    for (const char *const *name = scalars; type && *name; name++) {
        if (strcmp(type, *name) == 0) {
            return !has_any(schema, combining);
        }
    }
    return false;
}

mf_guide_expr *mf_schema_expr(mf_schema_reader *r, const json_t *schema)
{
    if (r->b->status != MF_OK) {
        return NULL;
    }
    if (!json_is_object(schema) || is_scalar(schema)) {
        return body_of(r, schema);
    }
    mf_schema_entry *e = entry_of(r, schema);
    if (!e->schema) {
        int32_t rule = mf_guide_add_rule(r->b, "a schema", 8);
        if (rule < 0) {
            return NULL;
        }
        r->b->rules[rule].is_kept = true;
        *e = (mf_schema_entry){ schema, rule };
        r->queue[r->queue_tail] = schema;
        r->queue_rules[r->queue_tail++] = rule;
    }
    return mf_guide_ref(r->b, e->rule);
}

void mf_guide_parse_schema(mf_guide_build *b, const char *text, size_t size)
{
    json_t *root = NULL;
    const mf_json_limits limits = { .max_depth = b->limits.depth };
    mf_status status = mf_json_parse(text, size, "schema", &limits, &root, b->err);
    if (status != MF_OK) {
        b->status = status == MF_ERR_FORMAT ? MF_ERR_INVALID : status;
        if (b->err) {
            b->err->status = b->status;
        }
        return;
    }
    mf_schema_reader r = {
        .b = b, .root = root, .made = json_array(),
        .entries = mf_guide_build_alloc(b, MF_SCHEMA_SLOTS, sizeof *r.entries),
        .queue = mf_guide_build_alloc(b, MF_GUIDE_MAX_RULES, sizeof *r.queue),
        .queue_rules = mf_guide_build_alloc(b, MF_GUIDE_MAX_RULES, sizeof *r.queue_rules),
    };
    if (!r.made) {
        mf_guide_build_fail(b, MF_ERR_NOMEM, "out of memory");
    }
    mf_guide_expr *body = mf_schema_expr(&r, root);
    b->rules[0].body = body;
    while (r.queue_head < r.queue_tail && !mf_guide_build_is_late(b)) {
        int32_t i = r.queue_head++;
        body = body_of(&r, r.queue[i]);
        b->rules[r.queue_rules[i]].body = body;
    }
    json_decref(r.made);
    json_decref(root);
}
