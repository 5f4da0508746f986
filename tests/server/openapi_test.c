/* openapi_test.c - the OpenAPI document follows the route table and the field table. */
#include "test.h"

#include "api_support.h"
#include "base/json_walk.h"
#include "server/fields.h"
#include "server/openapi.h"

static const mf_route routes[] = {
    { "POST", "/v1/completions", NULL, "Continue a prompt", false },
    { "POST", "/v1/chat/completions", NULL, "Answer", false },
    { "GET", "/v1/models", NULL, "Names", false },
    { "GET", "/v1/models/*", NULL, "One name", false },
    { "GET", "/v1/moe/expert-load", NULL, "Experts", false },
    { "POST", "/tokenize", NULL, "Tokenize", false },
    { "POST", "/detokenize", NULL, "Detokenize", false },
    { "GET", "/tokenizer_info", NULL, "Tokenizer", false },
    { "GET", "/health", NULL, "Health", true },
    { "GET", "/metrics", NULL, "Metrics", true },
    { "GET", "/", NULL, "Page", true },
    { "GET", "/something/new", NULL, "Without a row of its own", true },
    { "GET", "/hidden", NULL, NULL, true },
};

static json_t *make(void)
{
    static const char *const names[] = { "word-problems" };
    mf_openapi_options options = { .routes = routes,
                                   .num_routes = sizeof routes / sizeof *routes,
                                   .version = "1.2.3",
                                   .names = names,
                                   .num_names = 1,
                                   .vocab_size = 1024,
                                   .max_model_len = 1024 };
    mf_buffer out = { 0 };
    mf_error err = { 0 };
    CHECK_OK(mf_openapi_write(&options, &out, &err), err);
    json_t *document = json_loadb(out.data, out.size, JSON_REJECT_DUPLICATES, NULL);
    CHECK(document != NULL);
    mf_buffer_close(&out);
    return document;
}

static json_t *at(json_t *json, const char *path)
{
    char part[128];
    while (*path) {
        size_t n = strcspn(path, ">");
        snprintf(part, sizeof part, "%.*s", (int)n, path);
        json = json_object_get(json, part);
        path += n + (path[n] == '>');
    }
    return json;
}

TEST(every_route_with_a_summary_is_a_path)
{
    json_t *document = make();
    CHECK_STR(json_string_value(at(document, "openapi")), "3.1.0");
    CHECK_STR(json_string_value(at(document, "info>version")), "1.2.3");
    CHECK_EQ(json_object_size(at(document, "paths")), sizeof routes / sizeof *routes - 1);
    CHECK(!at(document, "paths>/hidden"));
    CHECK_STR(json_string_value(at(document, "paths>/v1/models/{id}>get>operationId")), "get_v1_models_id");
    CHECK(at(document, "paths>/v1/completions>post>requestBody>content>application/json>schema"));
    CHECK(at(document, "paths>/v1/completions>post>responses>200>content>text/event-stream"));
    CHECK(at(document, "paths>/metrics>get>responses>200>content>text/plain"));
    CHECK(at(document, "paths>/something/new>get>responses>200>content>application/json"));
    CHECK(!at(document, "paths>/health>get>responses>413") && at(document, "paths>/tokenize>post>responses>413"));
    json_decref(document);
}

TEST(every_reference_leads_somewhere)
{
    json_t *document = make();
    mf_json_walk walk;
    const char *key;
    json_t *value;
    int refs = 0;
    mf_json_walk_begin(&walk, document);
    while ((value = mf_json_walk_next(&walk, NULL, &key, NULL))) {
        if (key && strcmp(key, "$ref") == 0) {
            static const char prefix[] = "#/components/schemas/";
            refs++;
            CHECK(strncmp(json_string_value(value), prefix, sizeof prefix - 1) == 0);
            CHECK(json_object_get(at(document, "components>schemas"), json_string_value(value) + sizeof prefix - 1) !=
                  NULL);
        }
    }
    CHECK(!walk.too_deep && refs > 50);
    json_decref(document);
}

TEST(every_row_is_a_property_of_its_bodies)
{
    json_t *document = make();
    static const struct {
        unsigned where;
        const char *path;
    } bodies[] = { { MF_IN_COMPLETION, "components>schemas>CompletionRequest" },
                   { MF_IN_CHAT, "components>schemas>ChatCompletionRequest" },
                   { MF_IN_TOKENIZE, "components>schemas>TokenizeRequest" },
                   { MF_IN_DETOKENIZE, "components>schemas>DetokenizeRequest" } };
    for (size_t b = 0; b < 4; b++) {
        json_t *properties = json_object_get(at(document, bodies[b].path), "properties");
        size_t rows = 0;
        for (int i = 0; i < MF_NUM_FIELDS; i++) {
            bool here = (mf_fields[i].where & bodies[b].where) && mf_fields[i].type != MF_FIELD_NEVER;
            rows += here;
            if (here && !json_object_get(properties, mf_fields[i].name)) {
                fail_msg("%s is not in %s", mf_fields[i].name, bodies[b].path);
            }
        }
        CHECK_EQ(json_object_size(properties), rows);
    }
    json_t *completion = at(document, "components>schemas>CompletionRequest");
    CHECK_EQ(json_array_size(at(completion, "required")), 1);
    CHECK_EQ(json_integer_value(at(completion, "properties>max_tokens>default")), 16);
    json_t *top_p = json_array_get(at(completion, "properties>top_p>anyOf"), 0);
    CHECK(json_real_value(at(top_p, "exclusiveMinimum")) == 0.0 && json_real_value(at(top_p, "maximum")) == 1.0);
    json_decref(document);
}

TEST(a_document_without_a_model_is_whole_too)
{
    mf_openapi_options options = { .routes = routes, .num_routes = sizeof routes / sizeof *routes, .version = "1" };
    mf_buffer out = { 0 };
    mf_error err = { 0 };
    CHECK_OK(mf_openapi_write(&options, &out, &err), err);
    CHECK_HAS(out.data, "ChatCompletionRequest");
    mf_buffer_close(&out);
}
