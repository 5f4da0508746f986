/* prompt.h - what a model's folder says about text: its tokenizer, its chat template; conversations to token ids. */
#ifndef MF_TEXT_PROMPT_H
#define MF_TEXT_PROMPT_H

#include <jansson.h>

#include "text/chat_template.h"
#include "text/tokenizer.h"

typedef struct mf_prompt {
    mf_tokenizer *tokenizer;
    mf_chat_template *chat_template; /* NULL: the model has none */
    json_t *special_tokens;          /* bos_token, eos_token, ... as the template's variables */
    size_t max_text_bytes;           /* of a rendered conversation */
    char *tokenizer_class;           /* as tokenizer_config.json names it; NULL: it does not */
} mf_prompt;

/* Opens DIR's tokenizer (tokenizer_dir.h) and the chat template (template_file when given, else the model's own). */
mf_status mf_prompt_open(const char *dir, const char *template_file, int64_t max_model_len, mf_prompt *prompt, mf_error *err);
void mf_prompt_close(mf_prompt *prompt);

/* Renders messages (a JSON list of {role, content}) with the generation prompt and encodes the result: what
 * mf_conversation_encode (conversation.h) does with nothing else said. */
mf_status mf_prompt_encode_chat(const mf_prompt *prompt, json_t *messages, mf_ids *ids, mf_error *err);
/* Encodes plain text as the tokenizer's post-processor says (begin-of-sentence where it adds one). */
mf_status mf_prompt_encode_raw(const mf_prompt *prompt, const char *text, size_t size, mf_ids *ids, mf_error *err);

#endif
