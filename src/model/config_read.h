/* config_read.h - typed, ranged reading of one JSON object's keys, with messages that name file, key, expectation and
 * find: config.json: key "num_experts_per_tok": expected an integer in 1..64; got "eight"
 *
 * A key that is absent and a key that is null mean the same: the fallback, or an error when there is none. */
#ifndef MF_MODEL_CONFIG_READ_H
#define MF_MODEL_CONFIG_READ_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef struct mf_reader {
    const char *file;  /* for messages */
    const char *scope; /* "" or the path of the object inside the file, ending in a point: "rope_scaling." */
    const json_t *object;
    mf_error *err;
} mf_reader;

/* The value of a key; NULL when absent or null. */
const json_t *mf_read_value(const mf_reader *reader, const char *key);

/* fallback NULL: the key is required. */
mf_status mf_read_int(const mf_reader *reader, const char *key, int64_t min, int64_t max, const int64_t *fallback,
                      int64_t *out);
mf_status mf_read_number(const mf_reader *reader, const char *key, double min, double max, const double *fallback,
                         double *out);
mf_status mf_read_bool(const mf_reader *reader, const char *key, const bool *fallback, bool *out);
/* *out points into the JSON; NULL when the key is absent and not required. */
mf_status mf_read_text(const mf_reader *reader, const char *key, bool required, const char **out);
/* A reader of the object under key; *found false when absent.  scope is written to scope_text. */
mf_status mf_read_object(const mf_reader *reader, const char *key, mf_reader *inner, char *scope_text,
                         size_t scope_size, bool *found);

/* FILE: key "KEY": expected EXPECTED; got <the value> */
mf_status mf_read_unexpected(const mf_reader *reader, mf_status status, const char *key, const char *expected);
/* FILE: key "KEY": <text> */
mf_status mf_read_fail(const mf_reader *reader, mf_status status, const char *key, const char *fmt, ...)
    MF_PRINTF(4, 5);

/* A row of a range table: one integer key. */
typedef struct mf_int_key {
    const char *key;
    const char *alias; /* another spelling with the same meaning; both present and different is an error; or NULL */
    int64_t min, max;
    int64_t fallback; /* MF_KEY_REQUIRED: none */
    size_t offset;    /* of an int64_t in the struct that is read */
} mf_int_key;

#define MF_KEY_REQUIRED INT64_MIN

mf_status mf_read_int_keys(const mf_reader *reader, const mf_int_key *keys, size_t num_keys, void *out);

#endif
