/* api_constraint.c - response_format and structured_outputs to the one constraint of an answer.  See api_messages.h. */
#include <string.h>

#include "server/api_messages.h"

static bool is_absent(const json_t *value)
{
    return !value || json_is_null(value);
}

static mf_status set_text(mf_api_request *q, mf_constraint_kind kind, const char *text, size_t size, const char *param,
                          mf_api_error *error)
{
    if (size == 0 || size > MF_API_MAX_CONSTRAINT_BYTES) {
        return mf_api_fail(error, 400, param,
                           "%s: a schema, pattern, list or grammar must have 1 to %d bytes, got %zu.", param,
                           MF_API_MAX_CONSTRAINT_BYTES, size);
    }
    q->constraint = kind;
    q->constraint_text = mf_arena_strndup(&q->arena, text, size);
    return q->constraint_text ? MF_OK : mf_api_no_memory(error);
}

/* Members keep their order: a schema's properties are written in it. */
static mf_status set_json(mf_api_request *q, mf_constraint_kind kind, const json_t *value, const char *param,
                          mf_api_error *error)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text) {
        return mf_api_no_memory(error);
    }
    mf_status status = set_text(q, kind, text, strlen(text), param, error);
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    release(text);
    return status;
}

static mf_status read_response_format(mf_api_request *q, const json_t *format, mf_api_error *error)
{
    static const char param[] = "response_format";
    char quote[MF_QUOTE_BYTES];
    const json_t *type = json_object_get(format, "type");
    const char *name = json_string_value(type);
    if (name && strcmp(name, "text") == 0) {
        return MF_OK;
    }
    if (name && strcmp(name, "json_object") == 0) {
        q->constraint = MF_CONSTRAINT_JSON_OBJECT;
        return MF_OK;
    }
    if (!name || strcmp(name, "json_schema") != 0) {
        return mf_api_fail(error, 400, param, "response_format.type must be text, json_object or json_schema, got %s.",
                           mf_json_quote(type, quote));
    }
    const json_t *outer = json_object_get(format, "json_schema");
    const json_t *schema = json_object_get(outer, "schema"), *label = json_object_get(outer, "name");
    if (!is_absent(label) && !json_is_string(label)) {
        return mf_api_fail(error, 400, param, "response_format.json_schema.name must be a string, got %s.",
                           mf_json_quote(label, quote));
    }
    if (!json_is_object(schema) && !json_is_boolean(schema)) {
        return mf_api_fail(error, 400, param,
                           "response_format.json_schema.schema must be a JSON schema object, got %s.",
                           mf_json_quote(json_is_object(outer) ? schema : outer, quote));
    }
    return set_json(q, MF_CONSTRAINT_JSON_SCHEMA, schema, param, error);
}

static mf_status check_choices(const json_t *choices, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    if (!json_is_array(choices) || json_array_size(choices) == 0) {
        return mf_api_fail(error, 400, "structured_outputs",
                           "structured_outputs.choice must be a list of 1 or more strings, got %s.",
                           mf_json_quote(choices, quote));
    }
    for (size_t i = 0; i < json_array_size(choices); i++) {
        const json_t *choice = json_array_get(choices, i);
        if (!json_is_string(choice) || json_string_length(choice) == 0) {
            return mf_api_fail(error, 400, "structured_outputs",
                               "structured_outputs.choice[%zu] must be a string of 1 or more bytes, got %s.", i,
                               mf_json_quote(choice, quote));
        }
    }
    return MF_OK;
}

static mf_status read_member(mf_api_request *q, const char *name, const json_t *value, mf_api_error *error)
{
    static const char param[] = "structured_outputs";
    char quote[MF_QUOTE_BYTES];
    bool text = json_is_string(value);
    if (strcmp(name, "json") == 0 && (text || json_is_object(value))) {
        return text ? set_text(q, MF_CONSTRAINT_JSON_SCHEMA, json_string_value(value), json_string_length(value), param,
                               error)
                    : set_json(q, MF_CONSTRAINT_JSON_SCHEMA, value, param, error);
    }
    if (strcmp(name, "json_object") == 0 && json_is_true(value)) {
        q->constraint = MF_CONSTRAINT_JSON_OBJECT;
        return MF_OK;
    }
    if (strcmp(name, "choice") == 0) {
        MF_TRY(check_choices(value, error));
        return set_json(q, MF_CONSTRAINT_CHOICE, value, param, error);
    }
    if (text && (strcmp(name, "regex") == 0 || strcmp(name, "grammar") == 0)) {
        return set_text(q, name[0] == 'r' ? MF_CONSTRAINT_REGEX : MF_CONSTRAINT_GRAMMAR, json_string_value(value),
                        json_string_length(value), param, error);
    }
    return mf_api_fail(error, 400, param, "structured_outputs.%s must be %s, got %s.", name,
                       strcmp(name, "json") == 0          ? "a JSON schema"
                       : strcmp(name, "json_object") == 0 ? "true or false"
                                                          : "a string",
                       mf_json_quote(value, quote));
}

static mf_status read_structured_outputs(mf_api_request *q, const json_t *outputs, mf_api_error *error)
{
    static const char *const names[] = { "json", "json_object", "regex", "choice", "grammar" };
    const char *found = NULL;
    if (!is_absent(json_object_get(outputs, "structural_tag"))) {
        return mf_api_fail(error, 501, "structured_outputs",
                           "structured_outputs.structural_tag is not built into this server.");
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *value = json_object_get(outputs, names[i]);
        if (is_absent(value) || (json_is_false(value) && strcmp(names[i], "json_object") == 0)) {
            continue;
        }
        if (found) {
            return mf_api_fail(error, 400, "structured_outputs",
                               "You can only use one kind of structured outputs constraint, got both %s and %s.", found,
                               names[i]);
        }
        found = names[i];
    }
    if (!found) {
        return mf_api_fail(error, 400, "structured_outputs",
                           "You must use one kind of structured outputs constraint (json, json_object, regex, choice, "
                           "grammar), got none.");
    }
    return read_member(q, found, json_object_get(outputs, found), error);
}

mf_status mf_api_read_constraint(mf_api_request *q, const mf_field_value *values, mf_api_error *error)
{
    const json_t *format = values[MF_FIELD_ID_RESPONSE_FORMAT].json,
                 *outputs = values[MF_FIELD_ID_STRUCTURED_OUTPUTS].json;
    if (format) {
        MF_TRY(read_response_format(q, format, error));
    }
    if (outputs) {
        if (q->constraint != MF_CONSTRAINT_NONE) {
            return mf_api_fail(error, 400, "structured_outputs",
                               "response_format and structured_outputs cannot both constrain an answer.");
        }
        MF_TRY(read_structured_outputs(q, outputs, error));
    }
    if (q->constraint != MF_CONSTRAINT_NONE &&
        (q->tool_choice == MF_TOOLS_REQUIRED || q->tool_choice == MF_TOOLS_NAMED)) {
        return mf_api_fail(error, 400, "tool_choice", "tool_choice and %s cannot both constrain an answer.",
                           outputs ? "structured_outputs" : "response_format");
    }
    return MF_OK;
}
