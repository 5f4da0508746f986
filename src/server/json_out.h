/* json_out.h - JSON written straight into a buffer, piece by piece: no tree, no allocation but the buffer's growth.
 *
 * The caller writes commas and braces as literals; what is here does the rest.  A failed append is remembered, so that
 * only the end has to be looked at. */
#ifndef MF_SERVER_JSON_OUT_H
#define MF_SERVER_JSON_OUT_H

#include <stdint.h>
#include <string.h>

#include "base/buffer.h"

typedef struct mf_json_out {
    mf_buffer *buffer;
    mf_status status; /* the first failure */
} mf_json_out;

void mf_json_raw(mf_json_out *out, const char *bytes, size_t size);
#define mf_json_lit(out, literal) mf_json_raw((out), "" literal, sizeof(literal) - 1)

/* A string in quotes; `text` must be valid UTF-8.  Only what JSON demands is escaped. */
void mf_json_text(mf_json_out *out, const char *text, size_t size);
void mf_json_cstr(mf_json_out *out, const char *text); /* NULL: null */
/* The same without the quotes. */
void mf_json_escaped(mf_json_out *out, const char *text, size_t size);
void mf_json_int(mf_json_out *out, int64_t value);
void mf_json_ids(mf_json_out *out, const int32_t *ids, size_t count); /* [1,2,3] */
void mf_json_bool(mf_json_out *out, int value);
/* Three digits behind the point: milliseconds and rates.  What is no number is 0. */
void mf_json_fixed(mf_json_out *out, double value);
/* A log-probability: 9 significant digits, always with a point or an exponent; -infinity is -9999.0, NaN is null. */
void mf_json_logprob(mf_json_out *out, float value);

#endif
