/* jsonl.c - see jsonl.h. */
#include "cli/jsonl.h"

#include <string.h>

#include "base/file.h"
#include "base/json.h"

static const mf_json_limits limits = { .max_values = 1 << 26 };

static size_t skip_blanks(const char *text, size_t size, size_t at)
{
    while (at < size && (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r')) {
        at++;
    }
    return at;
}

static mf_status parse_lines(const char *text, size_t size, const char *name, json_t *list, mf_error *err)
{
    size_t number = 0;
    for (size_t at = 0; at < size;) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t n = end ? (size_t)(end - text) - at : size - at;
        number++;
        if (skip_blanks(text + at, n, 0) < n) {
            json_t *entry = NULL;
            mf_error why = { 0 };
            mf_status status = mf_json_parse(text + at, n, "", &limits, &entry, &why);
            if (status != MF_OK) {
                return mf_fail(err, status, "%.400s: line %zu%s", name, number, why.message);
            }
            json_array_append_new(list, entry);
        }
        at += n + 1;
    }
    return MF_OK;
}

mf_status mf_jsonl_parse(const char *text, size_t size, const char *name, json_t **out, mf_error *err)
{
    json_t *list = json_array(), *whole = NULL;
    if (!list) {
        return mf_fail(err, MF_ERR_NOMEM, "%.400s: out of memory", name);
    }
    mf_status status = MF_OK;
    if (mf_json_parse(text, size, name, &limits, &whole, NULL) == MF_OK) {
        if (json_is_array(whole)) {
            json_array_extend(list, whole);
        } else {
            json_array_append(list, whole);
        }
        json_decref(whole);
    } else {
        status = parse_lines(text, size, name, list, err);
    }
    if (status != MF_OK) {
        json_decref(list);
        list = NULL;
    }
    *out = list;
    return status;
}

mf_status mf_jsonl_load(const char *path, json_t **out, mf_error *err)
{
    mf_file file;
    *out = NULL;
    MF_TRY(mf_file_open(path, false, MF_JSONL_MAX_BYTES, &file, err));
    mf_status status = mf_jsonl_parse((const char *)file.data, file.size, path, out, err);
    mf_file_close(&file);
    return status;
}
