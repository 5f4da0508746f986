/* chat_template.c - parsing, rendering and loading of chat templates: see chat_template.h. */
#include "text/chat_template.h"

#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "text/jinja_eval.h"

enum { CONFIG_BYTES = 64 << 20, NAME_BUCKETS = 1024 };

struct mf_chat_template {
    mf_arena arena;
    char *name;
    char *source;
    size_t source_size;
    jinja_program program;
};

static const mf_template_limits default_limits = {
    .fuel = 1000000, .output_bytes = (size_t)16 << 20, .range = 100000, .time_ns = 50000000
};

mf_status mf_chat_template_parse(const char *source, size_t size, const char *name, mf_chat_template **out, mf_error *err)
{
    *out = NULL;
    size_t bad_at = 0;
    if (size > JINJA_MAX_SOURCE_BYTES) {
        return mf_fail(err, MF_ERR_LIMIT, "%s: the template has %zu bytes; at most %d are allowed", name, size,
                       JINJA_MAX_SOURCE_BYTES);
    }
    if (!mf_utf8_valid(source, size, &bad_at)) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: not valid UTF-8 at byte %zu", name, bad_at);
    }
    mf_chat_template *t = mf_alloc_zero(sizeof *t);
    if (!t) {
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", name);
    }
    jinja_parse parse = { .name = name, .arena = &t->arena, .err = err, .num_buckets = NAME_BUCKETS };
    mf_status status = MF_ERR_NOMEM;
    t->name = mf_arena_strdup(&t->arena, name);
    t->source = mf_arena_strndup(&t->arena, source, size);
    t->source_size = size;
    parse.names = mf_arena_array(&t->arena, NAME_BUCKETS, sizeof *parse.names);
    if (!t->name || !t->source || !parse.names) {
        jinja_parse_no_memory(&parse);
        goto fail;
    }
    MF_TRY_GOTO(jinja_parse_program(&parse, source, size, &t->program), fail);
    *out = t;
    return MF_OK;
fail:
    mf_chat_template_close(&t);
    return status;
}

void mf_chat_template_close(mf_chat_template **chat_template)
{
    mf_chat_template *t = *chat_template;
    if (t) {
        mf_arena_clear(&t->arena);
        mf_free(t);
        *chat_template = NULL;
    }
}

const char *mf_chat_template_source(const mf_chat_template *chat_template, size_t *size)
{
    *size = chat_template->source_size;
    return chat_template->source;
}

/* ---- variables ---------------------------------------------------------------------------------------------------- */

/* Texts are borrowed from the JSON value, which outlives the render. */
static mf_status from_json(jinja_run *run, const json_t *json, int depth, jinja_value *out)
{
    if (depth > JINJA_MAX_VALUE_DEPTH) {
        return jinja_fail(run, MF_ERR_LIMIT, "a variable is nested deeper than %d", JINJA_MAX_VALUE_DEPTH);
    }
    switch (json_typeof(json)) {
    case JSON_NULL: *out = jinja_none(); return MF_OK;
    case JSON_TRUE:
    case JSON_FALSE: *out = jinja_bool(json_is_true(json)); return MF_OK;
    case JSON_INTEGER: *out = jinja_int(json_integer_value(json)); return MF_OK;
    case JSON_REAL: *out = jinja_float(json_real_value(json)); return MF_OK;
    case JSON_STRING: return jinja_str_view(run, json_string_value(json), json_string_length(json), out);
    case JSON_ARRAY:
        MF_TRY(jinja_list_new(run, JINJA_LIST, json_array_size(json), out));
        for (size_t i = 0; i < out->as.l->count; i++) {
            MF_TRY(from_json(run, json_array_get(json, i), depth + 1, &out->as.l->items[i]));
        }
        return MF_OK;
    case JSON_OBJECT: {
        const char *key;
        json_t *value;
        MF_TRY(jinja_dict_new(run, json_object_size(json), out));
        json_object_foreach((json_t *)json, key, value) {
            jinja_value k;
            jinja_value v;
            MF_TRY(jinja_str_view(run, key, strlen(key), &k));
            MF_TRY(from_json(run, value, depth + 1, &v));
            MF_TRY(jinja_dict_set(run, out->as.d, k, v));
        }
        return MF_OK;
    }
    }
    return jinja_fail(run, MF_ERR_INTERNAL, "a JSON value of unknown type");
}

static mf_status render(jinja_run *run, const mf_chat_template *t, const json_t *variables, int64_t fuel)
{
    jinja_value converted;
    /* Taking the variables over is bounded by their size and not counted as the template's steps. */
    run->fuel = run->fuel_limit = INT64_MAX / 2;
    run->deadline_ns = INT64_MAX;
    MF_TRY(from_json(run, variables, 0, &converted));
    run->variables = converted.as.d;
    run->fuel = run->fuel_limit = fuel;
    run->fuel_check = fuel;
    run->deadline_ns = mf_now_ns() + run->time_ns;
    return jinja_run_program(run, &t->program);
}

mf_status mf_chat_template_render(const mf_chat_template *chat_template, const json_t *variables,
                                  const mf_template_limits *limits, mf_buffer *out, mf_error *err)
{
    const mf_template_limits *d = &default_limits;
    mf_template_limits l = limits ? *limits : default_limits;
    jinja_sink sink = { .buffer = out };
    jinja_run run = { .name = chat_template->name, .err = err, .sink = &sink };
    if (!json_is_object(variables)) {
        return mf_fail(err, MF_ERR_INVALID, "%s: the template's variables must be an object; got %s", chat_template->name,
                       mf_json_type_name(variables));
    }
    int64_t fuel = l.fuel > 0 ? l.fuel : d->fuel;
    run.range_limit = l.range > 0 ? l.range : d->range;
    run.time_ns = l.time_ns > 0 ? l.time_ns : d->time_ns;
    run.output_limit = l.output_bytes ? l.output_bytes : d->output_bytes;
    run.output_base = out->size;
    size_t memory;
    if (!mf_mul_ok(run.output_limit, (size_t)8, &memory) || !mf_add_ok(memory, (size_t)32 << 20, &memory)) {
        memory = SIZE_MAX;
    }
    run.arena.limit_bytes = memory;
    mf_status status = render(&run, chat_template, variables, fuel);
    mf_arena_clear(&run.arena);
    if (status != MF_OK) {
        out->size = run.output_base;
        if (out->data) {
            out->data[out->size] = '\0';
        }
    }
    return status;
}

/* ---- loading ------------------------------------------------------------------------------------------------------ */

static mf_status parse_file(const char *path, mf_chat_template **out, mf_error *err)
{
    mf_file file;
    MF_TRY(mf_file_open(path, false, JINJA_MAX_SOURCE_BYTES, &file, err));
    mf_status status = mf_chat_template_parse((const char *)file.data, file.size, path, out, err);
    mf_file_close(&file);
    return status;
}

/* chat_template is a string or [{"name": ..., "template": ...}, ...]. */
static mf_status find_template(const json_t *config, const char *path, const json_t **source, mf_error *err)
{
    const json_t *value = json_object_get(config, "chat_template");
    *source = NULL;
    if (!value || json_is_null(value)) {
        return MF_OK;
    }
    if (json_is_string(value)) {
        *source = value;
        return MF_OK;
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name && strcmp(name, "default") == 0 && json_is_string(json_object_get(entry, "template"))) {
            *source = json_object_get(entry, "template");
            return MF_OK;
        }
    }
    if (json_is_array(value)) {
        return mf_fail(err, MF_ERR_FORMAT, "key chat_template of %s: no template named \"default\" in the list", path);
    }
    return mf_fail(err, MF_ERR_FORMAT, "key chat_template of %s: expected a string or a list; got %s", path,
                   mf_json_type_name(value));
}

/* Every key that ends in _token and names a token, by its text. */
static mf_status collect_tokens(const json_t *config, json_t *tokens, const char *path, mf_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)config, key, value) {
        size_t n = strlen(key);
        const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
        if (n > 6 && strcmp(key + n - 6, "_token") == 0 && json_is_string(content) &&
            json_object_set(tokens, key, (json_t *)content) != 0) {
            return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", path);
        }
    }
    return MF_OK;
}

static mf_status load_config(const char *path, bool want_template, mf_chat_template **out, json_t *tokens, mf_error *err)
{
    json_t *config = NULL;
    const json_t *source = NULL;
    mf_status status = mf_json_load(path, CONFIG_BYTES, &(mf_json_limits){ .top_is_object = true }, &config, err);
    MF_TRY_GOTO(status, done);
    MF_TRY_GOTO(collect_tokens(config, tokens, path, err), done);
    if (want_template) {
        MF_TRY_GOTO(find_template(config, path, &source, err), done);
    }
    if (source) {
        status = mf_chat_template_parse(json_string_value(source), json_string_length(source), path, out, err);
    }
done:
    json_decref(config);
    return status;
}

mf_status mf_chat_template_load(const char *model_dir, mf_chat_template **out, json_t **special_tokens, mf_error *err)
{
    char *jinja_path = mf_path_join(model_dir, "chat_template.jinja");
    char *config_path = mf_path_join(model_dir, "tokenizer_config.json");
    json_t *tokens = json_object();
    mf_status status = MF_OK;
    *out = NULL;
    if (special_tokens) {
        *special_tokens = NULL;
    }
    if (!jinja_path || !config_path || !tokens) {
        status = mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", model_dir);
        goto done;
    }
    bool own_file = mf_path_is_file(jinja_path);
    if (own_file) {
        MF_TRY_GOTO(parse_file(jinja_path, out, err), done);
    }
    if (mf_path_is_file(config_path)) {
        MF_TRY_GOTO(load_config(config_path, !own_file, out, tokens, err), done);
    }
    if (special_tokens) {
        *special_tokens = json_incref(tokens);
    }
done:
    if (status != MF_OK) {
        mf_chat_template_close(out);
    }
    json_decref(tokens);
    mf_free(jinja_path);
    mf_free(config_path);
    return status;
}
