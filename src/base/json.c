/* json.c - bounded JSON reading over jansson: see json.h. */
#include "base/json.h"

#include <pthread.h>
#include <setjmp.h>
#include <string.h>

#include "base/file.h"
#include "base/sys.h"

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

/* ---- memory ----
 *
 * jansson 2.14 does not survive a failed allocation inside its lexer: it drops the character that it could not store, which
 * changes a string silently or makes it run past the text's end.  So a failure during a parse never returns to jansson: all
 * blocks of the parse are released and a jump ends it. */

typedef struct parse_guard {
    jmp_buf out;
    void **blocks; /* of this parse, in order of allocation; released ones are NULL */
    size_t num_blocks, capacity;
} parse_guard;

static pthread_once_t alloc_once = PTHREAD_ONCE_INIT;
static _Thread_local parse_guard *active; /* the parse that this thread is in */

/* Room for one more block; released ones are squeezed out before the list grows. */
static bool reserve(parse_guard *guard)
{
    if (guard->num_blocks < guard->capacity) {
        return true;
    }
    size_t kept = 0;
    for (size_t i = 0; i < guard->num_blocks; i++) {
        if (guard->blocks[i]) {
            guard->blocks[kept++] = guard->blocks[i];
        }
    }
    guard->num_blocks = kept;
    if (kept >= guard->capacity / 2) {
        size_t capacity = guard->capacity ? 2 * guard->capacity : 64;
        void **grown = mf_resize_array(guard->blocks, capacity, sizeof *grown);
        if (!grown) {
            return false;
        }
        guard->blocks = grown;
        guard->capacity = capacity;
    }
    return true;
}

static void *json_block(size_t bytes)
{
    parse_guard *guard = active;
    if (!guard) {
        return mf_alloc(bytes);
    }
    void *block = reserve(guard) ? mf_alloc(bytes) : NULL;
    if (!block) {
        longjmp(guard->out, 1);
    }
    guard->blocks[guard->num_blocks++] = block;
    return block;
}

/* What jansson releases during a parse is mostly what it took last, so the search starts there. */
static void json_release(void *block)
{
    if (active && block) {
        size_t i = active->num_blocks;
        while (i > 0 && active->blocks[i - 1] != block) {
            i--;
        }
        if (i > 0) {
            active->blocks[i - 1] = NULL;
        }
        while (active->num_blocks > 0 && !active->blocks[active->num_blocks - 1]) {
            active->num_blocks--;
        }
    }
    mf_free(block);
}

static void use_our_memory(void)
{
    json_set_alloc_funcs(json_block, json_release);
}

/* The guard lives in the caller: a jump leaves this function's own variables undefined. */
static bool load_guarded(parse_guard *guard, const char *text, size_t size, size_t flags, json_t **root,
                         json_error_t *problem)
{
    pthread_once(&alloc_once, use_our_memory);
    if (setjmp(guard->out) != 0) {
        active = NULL;
        for (size_t i = 0; i < guard->num_blocks; i++) {
            mf_free(guard->blocks[i]);
        }
        *root = NULL;
        return false;
    }
    active = guard;
    *root = json_loadb(text, size, flags, problem);
    active = NULL;
    return true;
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
    parse_guard guard = { .blocks = NULL };
    json_error_t problem;
    json_t *root;
    size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | (limits && limits->allow_nul ? JSON_ALLOW_NUL : 0);
    bool had_memory = load_guarded(&guard, text, size, flags, &root, &problem);
    mf_free(guard.blocks);
    if (!had_memory) {
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

json_t *mf_json_copy(const json_t *value)
{
    json_t *copy = json_copy((json_t *)value);
    if (copy && (json_array_size(copy) != json_array_size(value) || json_object_size(copy) != json_object_size(value))) {
        json_decref(copy);
        return NULL;
    }
    return copy;
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
