/* sampling_defaults.c - see sampling_defaults.h. */
#include "cli/sampling_defaults.h"

#include <math.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"

enum { MAX_BYTES = 64 << 10 };

typedef struct key_row {
    const char *name;
    double min, max;
    bool is_open; /* min itself is not allowed */
    double *number;
    int32_t *integer;
} key_row;

enum { NUM_KEYS = 6 };

static void fill_rows(mf_sampling_defaults *d, key_row *rows)
{
    const key_row table[NUM_KEYS] = {
        { "temperature", 0, 2, false, &d->temperature, NULL },
        { "top_p", 0, 1, true, &d->top_p, NULL },
        { "min_p", 0, 1, false, &d->min_p, NULL },
        { "repetition_penalty", 0, 10, true, &d->repetition_penalty, NULL },
        { "top_k", -1, INT32_MAX, false, NULL, &d->top_k },
        { "max_new_tokens", 1, INT32_MAX, false, NULL, &d->max_new_tokens },
    };
    memcpy(rows, table, sizeof table);
}

static mf_status take_value(const key_row *row, const json_t *value, const char *name, mf_error *err)
{
    double x = json_number_value(value);
    bool is_kind = row->integer ? json_is_integer(value) : json_is_number(value);
    if (!is_kind || x < row->min || x > row->max || (row->is_open && x == row->min)) {
        return mf_fail(err, MF_ERR_INVALID, "%.400s: key \"%s\": expected %s %s %g to %g", name, row->name,
                       row->integer ? "an integer" : "a number", row->is_open ? "above" : "of", row->min, row->max);
    }
    if (row->integer) {
        *row->integer = (int32_t)json_integer_value(value);
    } else {
        *row->number = x;
    }
    return MF_OK;
}

/* A file's other keys are another program's; in the override each key has to mean something. */
static mf_status take_object(const json_t *object, const char *name, bool is_strict, mf_sampling_defaults *d,
                             mf_error *err)
{
    key_row rows[NUM_KEYS];
    fill_rows(d, rows);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        const key_row *row = NULL;
        for (size_t i = 0; i < NUM_KEYS; i++) {
            row = strcmp(rows[i].name, key) == 0 ? &rows[i] : row;
        }
        if (!row && is_strict) {
            return mf_fail(err, MF_ERR_INVALID,
                           "%s: expected keys of temperature, top_p, min_p, top_k, repetition_penalty, "
                           "max_new_tokens; got \"%.64s\"",
                           name, key);
        }
        if (row && !json_is_null(value)) {
            MF_TRY(take_value(row, value, name, err));
        }
    }
    return MF_OK;
}

static mf_status read_file(const char *path, mf_sampling_defaults *d, mf_error *err)
{
    const mf_json_limits limits = { .top_is_object = true };
    char *inside = mf_path_is_dir(path) ? mf_path_join(path, "generation_config.json") : mf_strdup(path);
    if (!inside) {
        return mf_fail(err, MF_ERR_NOMEM, "--generation-config: out of memory");
    }
    json_t *json = NULL;
    mf_status status =
        mf_path_exists(inside)
            ? mf_json_load(inside, MAX_BYTES, &limits, &json, err)
            : mf_fail(err, MF_ERR_INVALID,
                      "--generation-config: expected auto, none, a file or a folder; got \"%.400s\"", path);
    if (status == MF_OK) {
        status = take_object(json, inside, false, d, err);
    }
    json_decref(json);
    mf_free(inside);
    return status;
}

mf_status mf_sampling_defaults_read(const mf_model_flags *flags, const mf_model_config *config, mf_sampling_defaults *d,
                                    mf_error *err)
{
    *d = (mf_sampling_defaults){ NAN, NAN, NAN, NAN, -1, -1 };
    if (strcmp(flags->generation_config, "auto") == 0) {
        d->temperature = config->default_temperature;
        d->top_p = config->default_top_p;
        d->repetition_penalty = config->default_repetition_penalty;
        d->top_k = (int32_t)config->default_top_k;
    } else if (strcmp(flags->generation_config, "none") != 0) {
        MF_TRY(read_file(flags->generation_config, d, err));
    }
    if (flags->override_generation_config) {
        static const char name[] = "--override-generation-config";
        const mf_json_limits limits = { .top_is_object = true };
        const char *text = flags->override_generation_config;
        json_t *json = NULL;
        MF_TRY(mf_json_parse(text, strlen(text), name, &limits, &json, err));
        mf_status status = take_object(json, name, true, d, err);
        json_decref(json);
        return status;
    }
    return MF_OK;
}
