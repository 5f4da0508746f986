/* openapi_schemas.h - JSON schemas of bodies and answers, for openapi.c.  All functions return new references, NULL
 * without memory. */
#ifndef MF_SERVER_OPENAPI_SCHEMAS_H
#define MF_SERVER_OPENAPI_SCHEMAS_H

#include <jansson.h>

#include "server/openapi.h"

/* JSON in C strings: ' stands for ". */
json_t *mf_openapi_text(const char *text);

/* The body of MF_IN_..., from the field table. */
json_t *mf_openapi_body(unsigned where, const mf_openapi_options *options);

/* Error, Usage, Completion, ...: an object of name to schema. */
json_t *mf_openapi_answers(void);

#endif
