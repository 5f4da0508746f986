/* tool_json.h - reading JSON that is still being written: the head of a call, where its arguments end, a whole call. */
#ifndef MF_SERVER_TOOL_JSON_H
#define MF_SERVER_TOOL_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "base/buffer.h"

/* Finds the end of a value that begins with a bracket.  A '<' outside strings, which no JSON has, ends it too: there a
 * call's closing tag begins. */
typedef struct mf_json_scan {
    int32_t depth;
    bool in_string, escaped, done;
} mf_json_scan;

/* Bytes that belong to the value; fewer than size only when scan->done. */
size_t mf_json_scan_run(mf_json_scan *scan, const char *text, size_t size);

typedef enum mf_head_found { MF_HEAD_NO = 0, MF_HEAD_PART, MF_HEAD_YES } mf_head_found;

typedef struct mf_call_head {
    size_t name_at, name_size; /* without escapes */
    size_t arguments_at;       /* at the brace */
} mf_call_head;

/* { "name" : NAME , "arguments" (or "parameters") : {   with white space anywhere.  PART: so far it may become one. */
mf_head_found mf_call_head_read(const char *text, size_t size, mf_call_head *head);

typedef struct mf_call_text {
    json_t *document;
    const json_t *name;    /* a string of 1..256 bytes */
    const char *arguments; /* JSON text of an object, as it was written */
    size_t arguments_size;
} mf_call_text;

/* A whole call with its members in any order; arguments may be a string that holds an object, or absent. */
bool mf_call_text_read(const char *text, size_t size, mf_call_text *call);
void mf_call_text_close(mf_call_text *call);

mf_status mf_json_write_string(const char *text, size_t size, mf_buffer *out); /* with quotation marks, escaped */

#endif
