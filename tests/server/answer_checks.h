/* answer_checks.h - an answer's text parsed in every way it may be cut, and claims about its message. */
#ifndef MF_TESTS_ANSWER_CHECKS_H
#define MF_TESTS_ANSWER_CHECKS_H

#include "server/tool_calls.h"

/* The message as JSON text: whole, byte by byte, cut at every single place and at some pairs of places; always the
 * same.  The caller frees it. */
char *answer_every_way(const mf_answer_options *options, const char *text);
json_t *answer_message(const mf_answer_options *options, const char *text); /* the same as JSON */

void answer_text_is(const json_t *object, const char *key, const char *want); /* NULL: absent or null */
void answer_call_is(const json_t *message, size_t index, const char *name, const char *arguments);
size_t answer_num_calls(const json_t *message);

#endif
