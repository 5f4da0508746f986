/* api_support.h - what the tests of the request side share: a served model over the shipped tokenizer, bodies, answers.
 */
#ifndef API_SUPPORT_H
#define API_SUPPORT_H

#include "server/api_request.h"
#include "server/prepare.h"
#include "server/serve_model.h"

/* The shipped model's text side; opened once, closed at exit. */
const mf_serve_model *api_model(void);
/* A copy to change. */
mf_serve_model api_model_copy(void);

/* Parses; the request is closed again, *error tells.  Returns error->status, 200 when it was taken. */
int api_status(mf_api_kind kind, const char *body, mf_api_error *error);
/* Fails the test when the body is refused. */
mf_api_request *api_parse(mf_api_kind kind, const char *body);
mf_api_request *api_parse_for(const mf_serve_model *model, mf_api_kind kind, const char *body);

/* Parses and prepares; the same. */
int api_prepare_status(const mf_serve_model *model, mf_api_kind kind, const char *body, mf_api_error *error);

#define CHECK_REFUSED(kind, body, want_status, want_param, part)                                                       \
    do {                                                                                                               \
        mf_api_error error_ = { 0 };                                                                                   \
        int got_ = api_status(kind, body, &error_);                                                                    \
        if (got_ != (want_status) || strcmp(error_.param, want_param) != 0 || !strstr(error_.message, part)) {         \
            fail_msg("%s: expected %d, %s, \"%s\"; got %d, %s, \"%s\"", body, want_status, want_param, part, got_,     \
                     error_.param, error_.message);                                                                    \
        }                                                                                                              \
    } while (0)

#define COMPLETION(fields) "{\"prompt\": \"hi\"" fields "}"
#define CHAT(fields) "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]" fields "}"

#endif
