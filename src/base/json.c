/* json.c - bounded JSON reading over jansson: see json.h. */
#include "base/json.h"

#include <pthread.h>
#include <string.h>

#include "base/file.h"
#include "base/sys.h"

bool mf_utf8_valid(const char *text, size_t size, size_t *bad_at)
{
    const uint8_t *s = (const uint8_t *)text;
    size_t i = 0;
    while (i < size) {
        uint8_t c = s[i];
        size_t n = c < 0x80 ? 1 : (c >= 0xc2 && c <= 0xdf) ? 2 : (c >= 0xe0 && c <= 0xef) ? 3 : (c >= 0xf0 && c <= 0xf4) ? 4 : 0;
        bool ok = n != 0 && n <= size - i;
        for (size_t j = 1; ok && j < n; j++) {
            ok = (s[i + j] & 0xc0) == 0x80;
        }
        /* Overlong forms, surrogates and values past U+10FFFF show in the second byte. */
        if (ok && ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) || (c == 0xf0 && s[i + 1] < 0x90) ||
                   (c == 0xf4 && s[i + 1] > 0x8f))) {
            ok = false;
        }
        if (!ok) {
            if (bad_at) {
                *bad_at = i;
            }
            return false;
        }
        i += n;
    }
    return true;
}

/* Counts brackets and values outside strings without recursion.  Grammar errors are left to jansson. */
static mf_status scan(const char *text, size_t size, const char *name, int32_t max_depth, int64_t max_values, mf_error *err)
{
    int64_t values = 0;
    int32_t depth = 0;
    bool in_string = false;
    bool in_scalar = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                in_string = false;
            }
            continue;
        }
        bool separator = c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == ',' || c == ':' || c == ']' || c == '}';
        if (separator) {
            in_scalar = false;
            if (c == ']' || c == '}') {
                depth--;
            }
            continue;
        }
        if (!in_scalar || c == '"' || c == '[' || c == '{') {
            values++;
        }
        in_scalar = false;
        if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > max_depth) {
                return mf_fail(err, MF_ERR_LIMIT, "%s: JSON nested deeper than %d at byte %zu", name, max_depth, i);
            }
        } else {
            in_scalar = true;
        }
        if (values > max_values) {
            return mf_fail(err, MF_ERR_LIMIT, "%s: more than %lld JSON values", name, (long long)max_values);
        }
    }
    return MF_OK;
}

/* jansson's memory comes from mf_alloc, and we notice when there is none: jansson 2.14 calls that a syntax error, or drops a
 * character of a string and succeeds. */
static pthread_once_t alloc_once = PTHREAD_ONCE_INIT;
static _Thread_local bool starved;

static void *json_block(size_t bytes)
{
    void *block = mf_alloc(bytes);
    starved |= !block;
    return block;
}

static void use_our_memory(void)
{
    json_set_alloc_funcs(json_block, mf_free);
}

mf_status mf_json_parse(const char *text, size_t size, const char *name, const mf_json_limits *limits, json_t **out,
                        mf_error *err)
{
    *out = NULL;
    int32_t max_depth = limits && limits->max_depth ? limits->max_depth : 64;
    int64_t max_values = limits && limits->max_values ? limits->max_values : 1048576;
    size_t bad_at = 0;
    if (!mf_utf8_valid(text, size, &bad_at)) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: not valid UTF-8 at byte %zu", name, bad_at);
    }
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: starts with a byte order mark; expected JSON", name);
    }
    MF_TRY(scan(text, size, name, max_depth, max_values, err));
    pthread_once(&alloc_once, use_our_memory);
    json_error_t problem;
    starved = false;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &problem);
    if (starved) {
        json_decref(root);
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory while parsing JSON", name);
    }
    if (!root) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: not valid JSON: line %d, column %d: %s", name, problem.line, problem.column,
                       problem.text);
    }
    if (limits && limits->top_is_object && !json_is_object(root)) {
        mf_status status =
            mf_fail(err, MF_ERR_FORMAT, "%s: expected a JSON object at the top; got %s", name, mf_json_type_name(root));
        json_decref(root);
        return status;
    }
    *out = root;
    return MF_OK;
}

mf_status mf_json_load(const char *path, uint64_t max_bytes, const mf_json_limits *limits, json_t **out, mf_error *err)
{
    *out = NULL;
    mf_file file;
    MF_TRY(mf_file_open(path, false, max_bytes, &file, err));
    mf_status status = mf_json_parse((const char *)file.data, file.size, path, limits, out, err);
    mf_file_close(&file);
    return status;
}

const char *mf_json_type_name(const json_t *value)
{
    if (!value) {
        return "nothing";
    }
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "an unknown value";
}
