/* tool_schema.c - see tool_schema.h. */
#include "server/tool_schema.h"

#include <string.h>

#include "base/json.h"
#include "base/json_walk.h"

static mf_status no_memory(mf_error *err)
{
    return mf_fail(err, MF_ERR_NOMEM, "out of memory");
}

static const char *name_of(const json_t *tool)
{
    return json_string_value(json_object_get(json_object_get(tool, "function"), "name"));
}

/* A new reference: what the function says its arguments are, or any object. */
static json_t *parameters_of(const json_t *tool)
{
    json_t *parameters = json_object_get(json_object_get(tool, "function"), "parameters");
    if (json_is_object(parameters) && json_object_size(parameters) > 0) {
        return json_incref(parameters);
    }
    return json_pack("{s:s}", "type", "object");
}

/* References begin at the root, so only those into the definitions, which move there too, stay right. */
static mf_status check_references(const json_t *parameters, const char *name, mf_error *err)
{
    mf_json_walk walk;
    const char *key;
    json_t *value;
    mf_json_walk_begin(&walk, (json_t *)parameters);
    while ((value = mf_json_walk_next(&walk, NULL, &key, NULL))) {
        const char *target = key && strcmp(key, "$ref") == 0 ? json_string_value(value) : NULL;
        if (target && strncmp(target, "#/$defs/", 8) != 0 && strncmp(target, "#/definitions/", 14) != 0) {
            return mf_fail(err, MF_ERR_UNSUPPORTED,
                           "function %s: $ref %.100s: only references into $defs or definitions are supported with "
                           "tool_choice \"required\"",
                           name, target);
        }
    }
    return MF_OK;
}

static mf_status merge_definitions(json_t *root, const json_t *parameters, const char *key, const char *name,
                                   mf_error *err)
{
    const json_t *definitions = json_object_get(parameters, key);
    json_t *all = json_object_get(root, key);
    const char *def;
    json_t *value;
    if (!json_is_object(definitions)) {
        return MF_OK;
    }
    if (!all) {
        all = json_object();
        if (!all || json_object_set_new(root, key, all) != 0) {
            return no_memory(err);
        }
    }
    json_object_foreach((json_t *)definitions, def, value)
    {
        json_t *known = json_object_get(all, def);
        if (known && !json_equal(known, value)) {
            return mf_fail(err, MF_ERR_UNSUPPORTED, "function %s: its %s \"%.64s\" differs from another function's",
                           name, key, def);
        }
        if (!known && json_object_set(all, def, value) != 0) {
            return no_memory(err);
        }
    }
    return MF_OK;
}

/* {"type": "object", "properties": {"name": {"const": NAME}, "parameters": PARAMETERS}, ...} */
static json_t *make_call(const char *name, json_t *parameters)
{
    return json_pack("{s:s, s:{s:{s:s}, s:O}, s:[s,s], s:b}", "type", "object", "properties", "name", "const", name,
                     "parameters", parameters, "required", "name", "parameters", "additionalProperties", 0);
}

/* The parameters without the definitions that moved to the root. */
static json_t *without_definitions(json_t *parameters)
{
    json_t *copy = mf_json_copy(parameters);
    if (copy) {
        json_object_del(copy, "$defs");
        json_object_del(copy, "definitions");
    }
    return copy;
}

static mf_status add_call(json_t *root, json_t *calls, const json_t *tool, mf_error *err)
{
    const char *name = name_of(tool);
    json_t *parameters = parameters_of(tool);
    json_t *inner = NULL;
    mf_status status = parameters ? check_references(parameters, name, err) : no_memory(err);
    MF_TRY_GOTO(status, done);
    MF_TRY_GOTO(merge_definitions(root, parameters, "$defs", name, err), done);
    MF_TRY_GOTO(merge_definitions(root, parameters, "definitions", name, err), done);
    inner = without_definitions(parameters);
    json_t *call = inner ? make_call(name, inner) : NULL;
    if (!call || json_array_append_new(calls, call) != 0) {
        status = no_memory(err);
    }
done:
    json_decref(inner);
    json_decref(parameters);
    return status;
}

static mf_status make_list(const json_t *tools, bool parallel, json_t **out, mf_error *err)
{
    json_t *root = json_pack("{s:s, s:i}", "type", "array", "minItems", 1);
    json_t *calls = json_array();
    mf_status status = root && calls ? MF_OK : no_memory(err);
    for (size_t i = 0; i < json_array_size(tools) && status == MF_OK; i++) {
        status = add_call(root, calls, json_array_get(tools, i), err);
    }
    bool ok = status == MF_OK && (parallel || json_object_set_new(root, "maxItems", json_integer(1)) == 0);
    if (ok && json_array_size(calls) == 1) {
        ok = json_object_set(root, "items", json_array_get(calls, 0)) == 0;
    } else if (ok) {
        ok = json_object_set_new(root, "items", json_pack("{s:O}", "anyOf", calls)) == 0;
    }
    json_decref(calls);
    if (!ok) {
        json_decref(root);
        return status != MF_OK ? status : no_memory(err);
    }
    *out = root;
    return MF_OK;
}

static int append(const char *bytes, size_t size, void *out)
{
    return mf_buffer_append(out, bytes, size) == MF_OK ? 0 : -1;
}

mf_status mf_tool_schema_write(const json_t *tools, const char *name, bool parallel, mf_buffer *out, mf_error *err)
{
    json_t *schema = NULL;
    if (!name) {
        MF_TRY(make_list(tools, parallel, &schema, err));
    }
    for (size_t i = 0; name && !schema && i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        schema = strcmp(name_of(tool), name) == 0 ? parameters_of(tool) : NULL;
    }
    mf_status status = schema && json_dump_callback(schema, append, out, JSON_COMPACT) == 0 ? MF_OK : no_memory(err);
    json_decref(schema);
    return status;
}
