/* text_endpoints.h - /tokenize, /detokenize and /tokenizer_info: a body to the answer's JSON.  Pure: any thread may
 * call them. */
#ifndef MF_SERVER_TEXT_ENDPOINTS_H
#define MF_SERVER_TEXT_ENDPOINTS_H

#include "server/api_error.h"
#include "server/serve_model.h"

/* Each appends the whole answer to *out, or fills *error. */
mf_status mf_text_tokenize(const mf_serve_model *model, const char *body, size_t size, mf_buffer *out,
                           mf_api_error *error);
mf_status mf_text_detokenize(const mf_serve_model *model, const char *body, size_t size, mf_buffer *out,
                             mf_api_error *error);
mf_status mf_text_tokenizer_info(const mf_serve_model *model, mf_buffer *out, mf_api_error *error);

#endif
