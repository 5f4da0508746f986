/* chat_template.h - a model's chat template: messages and tools in, prompt text out.
 *
 * The template language is the part of Jinja that Hugging Face chat templates use, with the results of jinja2 set up as
 * transformers does.  A template reaches nothing but its variables; memory, steps, time and output are bounded.  A
 * parsed template is never written to: threads may render it at the same time. */
#ifndef MF_TEXT_CHAT_TEMPLATE_H
#define MF_TEXT_CHAT_TEMPLATE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"

typedef struct mf_chat_template mf_chat_template;

/* `name` stands for the template in messages ("NAME: line 3: ...").  Source is UTF-8, at most 1 MiB.  MF_ERR_FORMAT for
 * wrong syntax, MF_ERR_UNSUPPORTED for a construct that jinja2 has and moefuse lacks; both name construct and line. */
mf_status mf_chat_template_parse(const char *source, size_t size, const char *name, mf_chat_template **out, mf_error *err);
void mf_chat_template_close(mf_chat_template **chat_template); /* NULL is fine, sets NULL */

/* The template as it was given; it lives as long as the template. */
const char *mf_chat_template_source(const mf_chat_template *chat_template, size_t *size);

/* 0 = the default. */
typedef struct mf_template_limits {
    int64_t fuel;        /* steps: 1,000,000 */
    size_t output_bytes; /* 16 MiB; values in memory may take 8 times as much and 32 MiB */
    int64_t range;       /* numbers in one range(): 100,000 */
    int64_t time_ns;     /* 50 ms */
} mf_template_limits;

/* Appends the prompt to *out.  `variables` is an object: messages, tools, add_generation_prompt, bos_token, ...; what is
 * absent is undefined in the template, null is none.  limits may be NULL.
 * MF_ERR_INVALID: the template refused the input; after raise_exception(text) the message is that text alone.
 * MF_ERR_LIMIT: a limit was reached.  After an error *out holds what it held before. */
mf_status mf_chat_template_render(const mf_chat_template *chat_template, const json_t *variables,
                                  const mf_template_limits *limits, mf_buffer *out, mf_error *err);

/* Reads a model folder.  The template is chat_template.jinja, else chat_template of tokenizer_config.json (a string, or
 * the list's entry "default"); *out is NULL when there is none.  *special_tokens (optional) becomes an object with
 * bos_token, eos_token, unk_token, pad_token, ... as strings, for `variables`; json_decref it. */
mf_status mf_chat_template_load(const char *model_dir, mf_chat_template **out, json_t **special_tokens, mf_error *err);

/* The time that strftime_now shows, in nanoseconds since 1970; shown as local time.  Tests replace it. */
extern int64_t (*mf_chat_template_clock_ns)(void);

#endif
