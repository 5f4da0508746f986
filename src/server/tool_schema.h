/* tool_schema.h - the JSON schema of an answer that must be a tool call.
 *
 * As vLLM does: with a named function the answer is its arguments; with "required" it is a list of {"name",
 * "parameters"}. tool_calls.h reads both back. */
#ifndef MF_SERVER_TOOL_SCHEMA_H
#define MF_SERVER_TOOL_SCHEMA_H

#include <jansson.h>
#include <stdbool.h>

#include "base/buffer.h"

/* name: of the one function to call; NULL: one or more of any (one, unless parallel).  `tools` was checked.
 * MF_ERR_UNSUPPORTED: two functions define the same name differently, or refer to places that move. */
mf_status mf_tool_schema_write(const json_t *tools, const char *name, bool parallel, mf_buffer *out, mf_error *err);

#endif
