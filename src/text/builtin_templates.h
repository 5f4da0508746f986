/* builtin_templates.h - chat templates for checkpoints that ship none: text of system, user and assistant, no tools. */
#ifndef MF_TEXT_BUILTIN_TEMPLATES_H
#define MF_TEXT_BUILTIN_TEMPLATES_H

#include "text/tokenizer.h"

enum { MF_TEMPLATE_MAX_TOKENS = 4 };

typedef struct mf_builtin_template {
    const char *name;                              /* what --chat-template takes */
    const char *source;                            /* Jinja */
    const char *marks[MF_TEMPLATE_MAX_TOKENS + 1]; /* tokens that it writes; NULL-terminated */
    const char *stops[MF_TEMPLATE_MAX_TOKENS + 1]; /* tokens that end the assistant's turn, beside eos_token_id */
} mf_builtin_template;

/* The table, ended by an entry without a name. */
extern const mf_builtin_template mf_builtin_templates[];

const mf_builtin_template *mf_builtin_template_find(const char *name); /* NULL when unknown */
/* The first of `names` (NULL-terminated; NULL = none) whose marks are all added tokens of tok: a model that was never
 * taught them does not have them. */
const mf_builtin_template *mf_builtin_template_choose(const char *const *names, const mf_tokenizer *tok);
/* "a, b, c" into out, for messages. */
void mf_builtin_template_list(char *out, size_t size);

#endif
