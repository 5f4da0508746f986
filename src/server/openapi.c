/* openapi.c - paths, their parameters and their answers: see openapi.h. */
#include "server/openapi.h"

#include <stdio.h>
#include <string.h>

#include "server/fields.h"
#include "server/openapi_schemas.h"

/* What a path takes and gives beside its row in the route table. */
static const struct {
    const char *path;
    unsigned body; /* MF_IN_...; 0 = none */
    const char *body_name;
    const char *answer; /* name of the schema; NULL: `media` alone */
    const char *media;  /* instead of application/json */
    const char *parameters;
    bool streams, is_health;
} operations[] = {
    { .path = "/v1/completions",
      .body = MF_IN_COMPLETION,
      .body_name = "CompletionRequest",
      .answer = "Completion",
      .streams = true },
    { .path = "/v1/chat/completions",
      .body = MF_IN_CHAT,
      .body_name = "ChatCompletionRequest",
      .answer = "ChatCompletion",
      .streams = true },
    { .path = "/v1/models", .answer = "Models" },
    { .path = "/v1/models/*",
      .answer = "Model",
      .parameters = "[{'name':'id','in':'path','required':true,'description':'A served "
                    "name','schema':{'type':'string','minLength':1}}]" },
    { .path = "/v1/moe/expert-load",
      .answer = "ExpertLoad",
      .parameters = "[{'name':'window','in':'query','description':'Seconds back; 0: since the "
                    "start','schema':{'type':'integer','minimum':0,"
                    "'maximum':60}},{'name':'layer','in':'query','description':'One layer; absent: "
                    "all','schema':{'type':'integer','minimum':0}}]" },
    { .path = "/tokenize", .body = MF_IN_TOKENIZE, .body_name = "TokenizeRequest", .answer = "Tokens" },
    { .path = "/detokenize", .body = MF_IN_DETOKENIZE, .body_name = "DetokenizeRequest", .answer = "Text" },
    { .path = "/tokenizer_info", .answer = "TokenizerInfo" },
    { .path = "/health", .answer = "Health", .is_health = true },
    { .path = "/ready", .answer = "Health", .is_health = true },
    { .path = "/live", .answer = "Health", .is_health = true },
    { .path = "/ping", .answer = "Health", .is_health = true },
    { .path = "/metrics", .media = "text/plain" },
    { .path = "/version", .answer = "Version" },
    { .path = "/load", .answer = "Load" },
    { .path = "/server_info", .answer = "ServerInfo" },
    { .path = "/get_server_info", .answer = "ServerInfo" },
    { .path = "/get_model_info", .answer = "ServerInfo" },
    { .path = "/", .media = "text/html" },
};

static const struct {
    int status;
    const char *about;
    bool with_body; /* only where a body is sent */
} errors[] = {
    { 400, "A malformed request, or a field out of its range", false },
    { 401, "No valid key", false },
    { 403, "An origin that is not allowed", false },
    { 404, "An unknown path or model", false },
    { 408, "The request came too slowly", false },
    { 413, "The body is too large", true },
    { 414, "The URL is too long", false },
    { 415, "The body is not application/json", true },
    { 429, "The queue is full; Retry-After says when to come back", true },
    { 431, "The head is too large", false },
    { 500, "A defect of the server", false },
    { 501, "A known field that is not built", true },
    { 503, "Loading, draining or down; Retry-After says when to come back", false },
    { 504, "The deadline passed in the queue", true },
};

static const size_t num_operations = sizeof operations / sizeof *operations;

static json_t *reference(const char *name)
{
    char target[80];
    snprintf(target, sizeof target, "#/components/schemas/%s", name);
    return json_pack("{s:s}", "$ref", target);
}

static json_t *json_content(const char *name)
{
    return json_pack("{s:{s:o}}", "application/json", "schema", reference(name));
}

static size_t find_operation(const char *path)
{
    size_t i = 0;
    while (i < num_operations && strcmp(operations[i].path, path) != 0) {
        i++;
    }
    return i;
}

/* ---- answers --------------------------------------------------------------------------------------------------------
 */

static json_t *good_answer(size_t op)
{
    const char *media = op < num_operations ? operations[op].media : NULL;
    const char *name = op < num_operations && operations[op].answer ? operations[op].answer : "Object";
    json_t *content = media ? json_pack("{s:{s:{s:s}}}", media, "schema", "type", "string") : json_content(name);
    if (content && op < num_operations && operations[op].streams &&
        json_object_set_new(content, "text/event-stream",
                            json_pack("{s:{s:s, s:s, s:[s], s:{s:{s:s, s:s}}}}", "schema", "description",
                                      "One event of the stream", "type", "object", "required", "data", "properties",
                                      "data", "type", "string", "description",
                                      "A chunk as JSON; [DONE] in the last event")) != 0) {
        json_decref(content);
        return NULL;
    }
    return json_pack("{s:s, s:o}", "description", "OK", "content", content);
}

static json_t *error_answer(const char *about, int status, bool is_health)
{
    json_t *content = is_health && status == 503 ? json_pack("{s:{s:{s:[o, o]}}}", "application/json", "schema",
                                                             "anyOf", reference("Health"), reference("Error"))
                                                 : json_content("Error");
    return json_pack("{s:s, s:o}", "description", about, "content", content);
}

static json_t *make_responses(size_t op)
{
    bool with_body = op < num_operations && operations[op].body != 0,
         is_health = op < num_operations && operations[op].is_health;
    json_t *responses = json_pack("{s:o}", "200", good_answer(op));
    bool ok = responses != NULL;
    for (size_t i = 0; ok && i < sizeof errors / sizeof *errors; i++) {
        char status[8];
        snprintf(status, sizeof status, "%d", errors[i].status);
        ok = (errors[i].with_body && !with_body) ||
             json_object_set_new(responses, status, error_answer(errors[i].about, errors[i].status, is_health)) == 0;
    }
    if (!ok) {
        json_decref(responses);
        return NULL;
    }
    return responses;
}

/* ---- operations -----------------------------------------------------------------------------------------------------
 */

/* get_v1_models_id */
static void name_operation(const char *method, const char *path, char *out, size_t size)
{
    size_t n = 0;
    for (const char *c = method; *c && n + 1 < size; c++) {
        out[n++] = (char)(*c | 0x20);
    }
    for (const char *c = path; *c && n + 3 < size; c++) {
        if (*c == '*') {
            out[n++] = 'i';
            out[n++] = 'd';
        } else if ((*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9')) {
            out[n++] = *c;
        } else if (n > 0 && out[n - 1] != '_') {
            out[n++] = '_';
        }
    }
    out[n] = '\0';
}

static json_t *make_operation(const mf_route *route, size_t op)
{
    char id[96];
    name_operation(route->method, route->path, id, sizeof id);
    json_t *operation =
        json_pack("{s:s, s:s, s:o}", "operationId", id, "summary", route->summary, "responses", make_responses(op));
    bool ok = operation != NULL;
    if (ok && op < num_operations && operations[op].parameters) {
        ok = json_object_set_new(operation, "parameters", mf_openapi_text(operations[op].parameters)) == 0;
    }
    if (ok && op < num_operations && operations[op].body) {
        ok = json_object_set_new(
                 operation, "requestBody",
                 json_pack("{s:b, s:o}", "required", 1, "content", json_content(operations[op].body_name))) == 0;
    }
    if (!ok) {
        json_decref(operation);
        return NULL;
    }
    return operation;
}

static bool add_route(json_t *paths, const mf_route *route)
{
    char path[128], method[8];
    size_t size = strlen(route->path), n = strlen(route->method);
    bool tail = size > 0 && route->path[size - 1] == '*';
    snprintf(path, sizeof path, "%.*s%s", (int)(tail ? size - 1 : size), route->path, tail ? "{id}" : "");
    snprintf(method, sizeof method, "%s", route->method);
    for (size_t i = 0; i < n && i + 1 < sizeof method; i++) {
        method[i] = (char)(method[i] | 0x20);
    }
    json_t *item = json_object_get(paths, path);
    if (!item) {
        item = json_object();
        if (json_object_set_new(paths, path, item) != 0) {
            return false;
        }
    }
    return json_object_set_new(item, method, make_operation(route, find_operation(route->path))) == 0;
}

/* ---- the document ---------------------------------------------------------------------------------------------------
 */

static json_t *make_schemas(const mf_openapi_options *options)
{
    json_t *schemas = mf_openapi_answers();
    bool ok = schemas != NULL;
    for (size_t i = 0; ok && i < num_operations; i++) {
        ok = !operations[i].body ||
             json_object_set_new(schemas, operations[i].body_name, mf_openapi_body(operations[i].body, options)) == 0;
    }
    if (!ok) {
        json_decref(schemas);
        return NULL;
    }
    return schemas;
}

static json_t *make_document(const mf_openapi_options *options)
{
    json_t *paths = json_object();
    bool ok = paths != NULL;
    for (size_t i = 0; ok && i < options->num_routes; i++) {
        ok = !options->routes[i].summary || add_route(paths, &options->routes[i]);
    }
    json_t *schemas = ok ? make_schemas(options) : NULL;
    json_t *document =
        schemas ? json_pack("{s:s, s:{s:s, s:s, s:s}, s:[{}, {s:[]}], s:O, s:{s:O, s:{s:{s:s, s:s}}}}", "openapi",
                            "3.1.0", "info", "title", "moefuse", "version", options->version, "description",
                            "An OpenAI-compatible server for mixture-of-experts language models.  null on an optional "
                            "field means absent; "
                            "unknown fields are ignored; a known field that is out of range or cannot be served is an "
                            "error that names it.",
                            "security", "bearer", "paths", paths, "components", "schemas", schemas, "securitySchemes",
                            "bearer", "type", "http", "scheme", "bearer")
                : NULL;
    json_decref(paths);
    json_decref(schemas);
    return document;
}

static int append(const char *bytes, size_t size, void *out)
{
    return mf_buffer_append(out, bytes, size) == MF_OK ? 0 : -1;
}

mf_status mf_openapi_write(const mf_openapi_options *options, mf_buffer *out, mf_error *err)
{
    json_t *document = make_document(options);
    bool ok = document && json_dump_callback(document, append, out, JSON_INDENT(1)) == 0;
    json_decref(document);
    return ok ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "out of memory");
}
