/* api_messages.h - the parts of a request that are structures of their own: messages, tools, template variables, and
 * what constrains the answer. */
#ifndef MF_SERVER_API_MESSAGES_H
#define MF_SERVER_API_MESSAGES_H

#include "server/api_request.h"
#include "server/fields.h"

enum { MF_API_MAX_KWARGS_DEPTH = 4, MF_API_MAX_CONSTRAINT_BYTES = 64 << 10, MF_API_MAX_TOOL_NAME = 64 };

mf_status mf_api_check_model(const mf_serve_model *model, const char *name, mf_api_error *error); /* 404 */
/* Checks a list of messages and brings it into the form that templates expect, in place. */
mf_status mf_api_check_messages(json_t *messages, mf_api_error *error);
mf_status mf_api_check_tools(const json_t *tools, mf_api_error *error);
mf_status mf_api_check_kwargs(const json_t *kwargs, mf_api_error *error);

/* messages, tools, tool_choice, the template's switches. */
mf_status mf_api_read_chat(mf_api_request *request, const mf_serve_model *model, const mf_field_value *values,
                           mf_api_error *error);
/* response_format, structured_outputs. */
mf_status mf_api_read_constraint(mf_api_request *request, const mf_field_value *values, mf_api_error *error);

#endif
