/* api_messages.c - a chat's messages, tools and template variables: checked, and brought into the one form that
 * templates expect.  See api_messages.h. */
#include "server/api_messages.h"

#include <stdio.h>
#include <string.h>

#include "base/buffer.h"
#include "base/json.h"
#include "base/json_walk.h"

enum { MAX_TOOL_CALLS = 128, PLACE_BYTES = 64 };

static const char *const roles[] = { "system", "developer", "user", "assistant", "tool" };

static bool is_absent(const json_t *value)
{
    return !value || json_is_null(value);
}

/* ---- content --------------------------------------------------------------------------------------------------------
 */

/* Text parts become one text, joined by line breaks. */
static mf_status join_parts(json_t *message, const json_t *parts, const char *place, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    mf_buffer text = { 0 };
    mf_status status = MF_OK;
    for (size_t i = 0; i < json_array_size(parts) && status == MF_OK; i++) {
        const json_t *part = json_array_get(parts, i);
        const json_t *type = json_object_get(part, "type"), *piece = json_object_get(part, "text");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0) {
            status = mf_api_fail(error, 400, "messages",
                                 "%s.content[%zu]: only parts of type \"text\" are supported, got %s.", place, i,
                                 mf_json_quote(json_is_object(part) ? type : part, quote));
        } else if (!json_is_string(piece)) {
            status = mf_api_fail(error, 400, "messages", "%s.content[%zu].text must be a string, got %s.", place, i,
                                 mf_json_quote(piece, quote));
        } else if ((i > 0 && mf_buffer_append(&text, "\n", 1) != MF_OK) ||
                   mf_buffer_append(&text, json_string_value(piece), json_string_length(piece)) != MF_OK) {
            status = mf_api_no_memory(error);
        }
    }
    json_t *joined = status == MF_OK ? json_stringn(mf_buffer_text(&text), text.size) : NULL;
    if (status == MF_OK && (!joined || json_object_set_new(message, "content", joined) != 0)) {
        status = mf_api_no_memory(error);
    }
    mf_buffer_close(&text);
    return status;
}

static mf_status check_content(json_t *message, bool may_be_absent, const char *place, mf_api_error *error)
{
    const json_t *content = json_object_get(message, "content");
    char quote[MF_QUOTE_BYTES];
    if (json_is_array(content)) {
        return join_parts(message, content, place, error);
    }
    if (is_absent(content) && may_be_absent) {
        /* Templates ask for `content is none`. */
        return json_object_set_new(message, "content", json_null()) == 0 ? MF_OK : mf_api_no_memory(error);
    }
    if (!json_is_string(content)) {
        return mf_api_fail(error, 400, "messages", "%s.content must be a string or a list of text parts, got %s.",
                           place, mf_json_quote(content, quote));
    }
    return MF_OK;
}

/* ---- tool calls of earlier turns
 * -------------------------------------------------------------------------------------- */

/* Clients send what they got: arguments as a text that holds JSON.  Templates want the object. */
static mf_status open_arguments(json_t *function, const char *place, mf_api_error *error)
{
    const json_t *arguments = json_object_get(function, "arguments");
    char quote[MF_QUOTE_BYTES];
    json_t *value = NULL;
    if (json_is_object(arguments)) {
        return MF_OK;
    }
    if (is_absent(arguments) || (json_is_string(arguments) && json_string_length(arguments) == 0)) {
        value = json_object();
        return value && json_object_set_new(function, "arguments", value) == 0 ? MF_OK : mf_api_no_memory(error);
    }
    if (json_is_string(arguments)) {
        static const mf_json_limits limits = { .max_depth = MF_BODY_MAX_DEPTH, .top_is_object = true, .allow_nul = true };
        mf_error err = { 0 };
        if (mf_json_parse(json_string_value(arguments), json_string_length(arguments), "arguments", &limits, &value,
                          &err) == MF_OK) {
            return json_object_set_new(function, "arguments", value) == 0 ? MF_OK : mf_api_no_memory(error);
        }
        if (err.status == MF_ERR_NOMEM) {
            return mf_api_no_memory(error);
        }
    }
    return mf_api_fail(error, 400, "messages", "%s.function.arguments must be a JSON object, got %s.", place,
                       mf_json_quote(arguments, quote));
}

static mf_status check_call(json_t *call, const char *place, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    json_t *function = json_object_get(call, "function");
    const json_t *name = json_object_get(function, "name"), *type = json_object_get(call, "type"),
                 *id = json_object_get(call, "id");
    if (!json_is_object(call) || !json_is_object(function) || !json_is_string(name)) {
        return mf_api_fail(
            error, 400, "messages",
            "%s must be {\"id\", \"type\": \"function\", \"function\": {\"name\", \"arguments\"}}, got %s.", place,
            mf_json_type_name(json_is_object(function) ? name
                              : json_is_object(call)   ? function
                                                       : call));
    }
    if (!is_absent(id) && (!json_is_string(id) || json_string_length(id) > MF_FIELD_MAX_STRING)) {
        return mf_api_fail(error, 400, "messages", "%s.id must be a string of at most %d bytes, got %s.", place,
                           MF_FIELD_MAX_STRING, mf_json_quote(id, quote));
    }
    if (is_absent(type)) {
        json_t *text = json_string("function");
        if (!text || json_object_set_new(call, "type", text) != 0) {
            return mf_api_no_memory(error);
        }
    } else if (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0) {
        return mf_api_fail(error, 400, "messages", "%s.type must be \"function\", got %s.", place,
                           mf_json_quote(type, quote));
    }
    return open_arguments(function, place, error);
}

/* *present: there is at least one. */
static mf_status check_calls(json_t *message, bool assistant, const char *place, bool *present, mf_api_error *error)
{
    json_t *calls = json_object_get(message, "tool_calls");
    char quote[MF_QUOTE_BYTES], call_place[PLACE_BYTES + 24];
    size_t n = json_array_size(calls);
    *present = false;
    if (is_absent(calls) || (json_is_array(calls) && n == 0)) {
        json_object_del(message, "tool_calls"); /* templates test for its presence */
        return MF_OK;
    }
    if (!assistant || !json_is_array(calls) || n > MAX_TOOL_CALLS) {
        return mf_api_fail(error, 400, "messages",
                           "%s.tool_calls must be a list of 1 to %d calls of an assistant message, got %s.", place,
                           MAX_TOOL_CALLS, mf_json_quote(calls, quote));
    }
    for (size_t i = 0; i < n; i++) {
        snprintf(call_place, sizeof call_place, "%s.tool_calls[%zu]", place, i);
        MF_TRY(check_call(json_array_get(calls, i), call_place, error));
    }
    *present = true;
    return MF_OK;
}

/* ---- messages -------------------------------------------------------------------------------------------------------
 */

static mf_status check_text_member(const json_t *message, const char *name, size_t max_bytes, const char *place,
                                   mf_api_error *error)
{
    const json_t *value = json_object_get(message, name);
    char quote[MF_QUOTE_BYTES];
    if (!is_absent(value) && (!json_is_string(value) || (max_bytes && json_string_length(value) > max_bytes))) {
        return mf_api_fail(error, 400, "messages", "%s.%s must be a string%s, got %s.", place, name,
                           max_bytes ? " of at most 256 bytes" : "", mf_json_quote(value, quote));
    }
    return MF_OK;
}

static mf_status check_message(json_t *message, const char *place, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    if (!json_is_object(message)) {
        return mf_api_fail(error, 400, "messages", "%s must be an object, got %s.", place,
                           mf_json_quote(message, quote));
    }
    const json_t *role = json_object_get(message, "role");
    size_t i = 0, n = sizeof roles / sizeof *roles;
    while (json_is_string(role) && i < n && strcmp(json_string_value(role), roles[i]) != 0) {
        i++;
    }
    if (!json_is_string(role) || i == n) {
        return mf_api_fail(error, 400, "messages",
                           "%s.role must be system, developer, user, assistant or tool, got %s.", place,
                           mf_json_quote(role, quote));
    }
    bool assistant = strcmp(roles[i], "assistant") == 0;
    bool calls;
    MF_TRY(check_calls(message, assistant, place, &calls, error));
    MF_TRY(check_text_member(message, "name", MF_FIELD_MAX_STRING, place, error));
    MF_TRY(check_text_member(message, "tool_call_id", MF_FIELD_MAX_STRING, place, error));
    MF_TRY(check_text_member(message, "reasoning", 0, place, error));
    MF_TRY(check_text_member(message, "reasoning_content", 0, place, error));
    /* Both names are in use: what our answers call reasoning, templates call reasoning_content. */
    json_t *reasoning = json_object_get(message, "reasoning");
    if (json_is_string(reasoning) && is_absent(json_object_get(message, "reasoning_content")) &&
        json_object_set(message, "reasoning_content", reasoning) != 0) {
        return mf_api_no_memory(error);
    }
    return check_content(message, assistant && calls, place, error);
}

mf_status mf_api_check_messages(json_t *messages, mf_api_error *error)
{
    char place[PLACE_BYTES];
    for (size_t i = 0; i < json_array_size(messages); i++) {
        snprintf(place, sizeof place, "messages[%zu]", i);
        MF_TRY(check_message(json_array_get(messages, i), place, error));
    }
    return MF_OK;
}

/* ---- tools ----------------------------------------------------------------------------------------------------------
 */

static bool is_tool_name(const json_t *name)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    size_t size = json_string_length(name);
    return json_is_string(name) && size >= 1 && size <= MF_API_MAX_TOOL_NAME &&
           strspn(json_string_value(name), allowed) == size;
}

mf_status mf_api_check_tools(const json_t *tools, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        const json_t *type = json_object_get(tool, "type"), *function = json_object_get(tool, "function");
        const json_t *name = json_object_get(function, "name"), *parameters = json_object_get(function, "parameters");
        const json_t *about = json_object_get(function, "description");
        if (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0 || !json_is_object(function)) {
            return mf_api_fail(error, 400, "tools",
                               "tools[%zu] must be {\"type\": \"function\", \"function\": {...}}, got %s.", i,
                               mf_json_quote(json_is_object(tool) ? type : tool, quote));
        }
        if (!is_tool_name(name)) {
            return mf_api_fail(error, 400, "tools", "tools[%zu].function.name must match [A-Za-z0-9_-]{1,64}, got %s.",
                               i, mf_json_quote(name, quote));
        }
        if (!is_absent(parameters) && !json_is_object(parameters)) {
            return mf_api_fail(error, 400, "tools",
                               "tools[%zu].function.parameters must be a JSON schema object, got %s.", i,
                               mf_json_quote(parameters, quote));
        }
        if (!is_absent(about) && !json_is_string(about)) {
            return mf_api_fail(error, 400, "tools", "tools[%zu].function.description must be a string, got %s.", i,
                               mf_json_quote(about, quote));
        }
    }
    return MF_OK;
}

static bool is_tool(const json_t *tools, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        if (strcmp(json_string_value(json_object_get(json_object_get(json_array_get(tools, i), "function"), "name")),
                   name) == 0) {
            return true;
        }
    }
    return false;
}

static mf_status read_tool_choice(mf_api_request *q, const json_t *choice, mf_api_error *error)
{
    char quote[MF_QUOTE_BYTES];
    q->tool_choice = q->tools ? MF_TOOLS_AUTO : MF_TOOLS_NONE;
    if (!choice) {
        return MF_OK;
    }
    const char *text = json_string_value(choice);
    if (text && strcmp(text, "none") == 0) {
        q->tool_choice = MF_TOOLS_NONE;
        return MF_OK;
    }
    const json_t *type = json_object_get(choice, "type"),
                 *name = json_object_get(json_object_get(choice, "function"), "name");
    bool named = json_is_object(choice) && json_is_string(type) && strcmp(json_string_value(type), "function") == 0 &&
                 json_is_string(name);
    if (!named && (!text || (strcmp(text, "auto") != 0 && strcmp(text, "required") != 0))) {
        return mf_api_fail(error, 400, "tool_choice",
                           "tool_choice must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", "
                           "\"function\": {\"name\": ...}}, got %s.",
                           mf_json_quote(choice, quote));
    }
    if (!q->tools) {
        return mf_api_fail(error, 400, "tool_choice",
                           "When using `tool_choice`, `tools` must be set, got tool_choice=%s.",
                           mf_json_quote(named ? name : choice, quote));
    }
    if (!named) {
        q->tool_choice = strcmp(text, "auto") == 0 ? MF_TOOLS_AUTO : MF_TOOLS_REQUIRED;
        return MF_OK;
    }
    q->tool_choice = MF_TOOLS_NAMED;
    q->tool_name = json_string_value(name);
    return is_tool(q->tools, q->tool_name)
               ? MF_OK
               : mf_api_fail(error, 400, "tool_choice",
                             "The tool %s of tool_choice is not one of the request's `tools`.",
                             mf_json_quote(name, quote));
}

/* ---- template variables ---------------------------------------------------------------------------------------------
 */

mf_status mf_api_check_kwargs(const json_t *kwargs, mf_api_error *error)
{
    /* What the server itself says to the template, or what would change how it is run. */
    static const char *const reserved[] = {
        "messages",      "tools",        "documents",  "tokenize", "add_generation_prompt", "continue_final_message",
        "chat_template", "conversation", "return_dict"
    };
    const char *key;
    json_t *value;
    char quote[MF_QUOTE_BYTES];
    json_object_foreach((json_t *)kwargs, key, value)
    {
        for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
            if (strcmp(key, reserved[i]) == 0) {
                return mf_api_fail(error, 400, "chat_template_kwargs",
                                   "chat_template_kwargs cannot set %s: it is the server's.",
                                   mf_text_quote(key, strlen(key), quote));
            }
        }
    }
    mf_json_walk walk;
    mf_json_walk_begin(&walk, (json_t *)kwargs);
    while ((value = mf_json_walk_next(&walk, NULL, NULL, NULL))) {
        bool container = json_is_object(value) || json_is_array(value);
        /* The object itself is the first level. */
        if (container && walk.depth >= MF_API_MAX_KWARGS_DEPTH) {
            return mf_api_fail(error, 400, "chat_template_kwargs",
                               "chat_template_kwargs may be nested %d deep at most, got more.",
                               MF_API_MAX_KWARGS_DEPTH);
        }
    }
    return MF_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------
 */

static bool bool_or(const mf_field_value *value, bool otherwise)
{
    return value->json ? value->integer != 0 : otherwise;
}

mf_status mf_api_read_chat(mf_api_request *q, const mf_serve_model *model, const mf_field_value *values,
                           mf_api_error *error)
{
    q->messages = (json_t *)values[MF_FIELD_ID_MESSAGES].json; /* the document is ours to write */
    MF_TRY(mf_api_check_messages(q->messages, error));
    q->add_generation_prompt = bool_or(&values[MF_FIELD_ID_ADD_GENERATION_PROMPT], true);
    q->continue_final_message = bool_or(&values[MF_FIELD_ID_CONTINUE_FINAL_MESSAGE], false);
    if (q->continue_final_message && q->add_generation_prompt) {
        return mf_api_fail(
            error, 400, "continue_final_message",
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True, got true for both.");
    }
    if (values[MF_FIELD_ID_CHAT_TEMPLATE].json) {
        if (!model->trust_request_chat_template) {
            return mf_api_fail(error, 400, "chat_template",
                               "Chat template is passed with request, but --trust-request-chat-template is not set. "
                               "Refused request with "
                               "untrusted chat template.");
        }
        q->chat_template = json_string_value(values[MF_FIELD_ID_CHAT_TEMPLATE].json);
    }
    if (values[MF_FIELD_ID_CHAT_TEMPLATE_KWARGS].json) {
        q->chat_template_kwargs = (json_t *)values[MF_FIELD_ID_CHAT_TEMPLATE_KWARGS].json;
        MF_TRY(mf_api_check_kwargs(q->chat_template_kwargs, error));
    }
    if (values[MF_FIELD_ID_TOOLS].json && json_array_size(values[MF_FIELD_ID_TOOLS].json) > 0) {
        q->tools = (json_t *)values[MF_FIELD_ID_TOOLS].json;
        MF_TRY(mf_api_check_tools(q->tools, error));
    }
    return read_tool_choice(q, values[MF_FIELD_ID_TOOL_CHOICE].json, error);
}
