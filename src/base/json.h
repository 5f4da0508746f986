/* json.h - reading untrusted JSON: an iterative scan bounds depth, number of values and checks UTF-8 before jansson sees
 * a byte (jansson itself recurses).  Duplicate keys, a BOM, bytes after the value and, unless allowed, NUL escapes are refused.
 *
 * Callers use jansson's json_t accessors on the result and json_decref it; the getters below make the usual
 * "key K of FILE: expected X; got Y" messages. */
#ifndef MF_BASE_JSON_H
#define MF_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/utf8_valid.h"

typedef struct mf_json_limits {
    int32_t max_depth;   /* 0 = 64 */
    int64_t max_values;  /* 0 = 1,048,576; strings that are keys count too */
    bool top_is_object;  /* refuse anything else at the top */
    bool allow_nul;      /* strings may hold \u0000, so their readers go by json_string_length; keys still may not */
} mf_json_limits;

/* `name` stands for the file in messages.  MF_ERR_FORMAT or MF_ERR_LIMIT with line or byte named. */
mf_status mf_json_parse(const char *text, size_t size, const char *name, const mf_json_limits *limits, json_t **out,
                        mf_error *err);

/* Reads a whole file (at most max_bytes) and parses it. */
mf_status mf_json_load(const char *path, uint64_t max_bytes, const mf_json_limits *limits, json_t **out, mf_error *err);

/* A shallow copy, or NULL without memory; jansson's own leaves out, without a word, members that found no memory. */
json_t *mf_json_copy(const json_t *value);

const char *mf_json_type_name(const json_t *value); /* "an integer", "a string", "nothing" for NULL */


#endif
