/* config_read.c - typed getters for config.json: see config_read.h. */
#include "model/config_read.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

const json_t *mf_read_value(const mf_reader *reader, const char *key)
{
    const json_t *value = json_object_get(reader->object, key);
    return value && !json_is_null(value) ? value : NULL;
}

/* A short rendering of a value for messages; long strings are cut at a character's border. */
static void render(const json_t *value, char *out, size_t size)
{
    if (json_is_string(value)) {
        size_t n = json_string_length(value), most = 48;
        const char *text = json_string_value(value);
        bool cut = n > most;
        if (cut) {
            n = most;
            while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80) {
                n--;
            }
        }
        snprintf(out, size, "\"%.*s%s\"", (int)n, text, cut ? "..." : "");
    } else if (json_is_integer(value)) {
        snprintf(out, size, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        double v = json_real_value(value);
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(out, size, "%.*g", digits, v);
            if (strtod(out, NULL) == v) {
                break;
            }
        }
        if (!strpbrk(out, ".en")) { /* 64.0, so that "expected an integer" makes sense */
            size_t n = strlen(out);
            snprintf(out + n, size - n, ".0");
        }
    } else {
        snprintf(out, size, "%s", mf_json_type_name(value));
    }
}

mf_status mf_read_unexpected(const mf_reader *reader, mf_status status, const char *key, const char *expected)
{
    char got[96];
    render(json_object_get(reader->object, key), got, sizeof got);
    return mf_fail(reader->err, status, "%s: key \"%s%s\": expected %s; got %s", reader->file, reader->scope, key,
                   expected, got);
}

mf_status mf_read_fail(const mf_reader *reader, mf_status status, const char *key, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return mf_fail(reader->err, status, "%s: key \"%s%s\": %s", reader->file, reader->scope, key, text);
}

mf_status mf_read_int(const mf_reader *reader, const char *key, int64_t min, int64_t max, const int64_t *fallback,
                      int64_t *out)
{
    const json_t *value = mf_read_value(reader, key);
    if (!value && fallback) {
        *out = *fallback;
        return MF_OK;
    }
    if (!json_is_integer(value) || json_integer_value(value) < min || json_integer_value(value) > max) {
        char expected[80];
        snprintf(expected, sizeof expected, "an integer in %lld..%lld", (long long)min, (long long)max);
        return mf_read_unexpected(reader, MF_ERR_INVALID, key, expected);
    }
    *out = json_integer_value(value);
    return MF_OK;
}

mf_status mf_read_number(const mf_reader *reader, const char *key, double min, double max, const double *fallback,
                         double *out)
{
    const json_t *value = mf_read_value(reader, key);
    if (!value && fallback) {
        *out = *fallback;
        return MF_OK;
    }
    double v = json_number_value(value);
    if (!json_is_number(value) || !(v >= min && v <= max)) {
        char expected[80];
        snprintf(expected, sizeof expected, "a number in %g..%g", min, max);
        return mf_read_unexpected(reader, MF_ERR_INVALID, key, expected);
    }
    *out = v;
    return MF_OK;
}

mf_status mf_read_bool(const mf_reader *reader, const char *key, const bool *fallback, bool *out)
{
    const json_t *value = mf_read_value(reader, key);
    if (!value && fallback) {
        *out = *fallback;
        return MF_OK;
    }
    if (!json_is_boolean(value)) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, key, "true or false");
    }
    *out = json_is_true(value);
    return MF_OK;
}

mf_status mf_read_text(const mf_reader *reader, const char *key, bool required, const char **out)
{
    *out = NULL;
    const json_t *value = mf_read_value(reader, key);
    if (!value && !required) {
        return MF_OK;
    }
    if (!json_is_string(value)) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, key, "a string");
    }
    *out = json_string_value(value);
    return MF_OK;
}

mf_status mf_read_object(const mf_reader *reader, const char *key, mf_reader *inner, char *scope_text,
                         size_t scope_size, bool *found)
{
    const json_t *value = mf_read_value(reader, key);
    *found = value != NULL;
    if (!value) {
        return MF_OK;
    }
    if (!json_is_object(value)) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, key, "an object");
    }
    snprintf(scope_text, scope_size, "%s%s.", reader->scope, key);
    *inner = (mf_reader){ .file = reader->file, .scope = scope_text, .object = value, .err = reader->err };
    return MF_OK;
}

mf_status mf_read_int_keys(const mf_reader *reader, const mf_int_key *keys, size_t num_keys, void *out)
{
    for (size_t i = 0; i < num_keys; i++) {
        const mf_int_key *row = &keys[i];
        const char *key = row->key;
        if (row->alias && mf_read_value(reader, row->alias)) {
            if (!mf_read_value(reader, key)) {
                key = row->alias;
            } else if (!json_equal(mf_read_value(reader, key), mf_read_value(reader, row->alias))) {
                return mf_read_fail(reader, MF_ERR_INVALID, key, "differs from \"%s%s\", which means the same",
                                    reader->scope, row->alias);
            }
        }
        int64_t *value = (int64_t *)(void *)((char *)out + row->offset);
        MF_TRY(mf_read_int(reader, key, row->min, row->max, row->fallback == MF_KEY_REQUIRED ? NULL : &row->fallback,
                           value));
    }
    return MF_OK;
}
