/* openapi.h - the OpenAPI 3.1 document, made from the route table and the field table: what is not in them is not in
 * it. */
#ifndef MF_SERVER_OPENAPI_H
#define MF_SERVER_OPENAPI_H

#include "base/buffer.h"
#include "server/http_server.h"

typedef struct mf_openapi_options {
    const mf_route *routes; /* those without a summary are left out */
    size_t num_routes;
    const char *version;
    /* What only a loaded model knows; 0 = not known. */
    const char *const *names; /* served; [num_names] */
    int32_t num_names, vocab_size;
    int64_t max_model_len;
} mf_openapi_options;

mf_status mf_openapi_write(const mf_openapi_options *options, mf_buffer *out, mf_error *err);

#endif
