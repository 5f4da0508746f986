/* prompt.h - what a model's folder says about text: its tokenizer, its chat template; conversations to token ids. */
#ifndef MF_TEXT_PROMPT_H
#define MF_TEXT_PROMPT_H

#include <jansson.h>

#include "text/builtin_templates.h"
#include "text/chat_template.h"

enum { MF_PROMPT_MAX_STOPS = MF_TEMPLATE_MAX_TOKENS + 1 };

typedef struct mf_prompt {
    mf_tokenizer *tokenizer;
    mf_chat_template *chat_template;    /* NULL: there is none */
    const mf_builtin_template *builtin; /* what chat_template is; NULL: the checkpoint's own, or a file's */
    bool is_fallback;                   /* nobody asked for `builtin`: the checkpoint has no template */
    int32_t stop_token_ids[MF_PROMPT_MAX_STOPS]; /* ends of a turn: the tokenizer's eos_token, the built-in template's */
    int32_t num_stop_token_ids;
    json_t *special_tokens;          /* bos_token, eos_token, ... as the template's variables */
    size_t max_text_bytes;           /* of a rendered conversation */
    char *tokenizer_class;           /* as tokenizer_config.json names it; NULL: it does not */
} mf_prompt;

/* Opens DIR's tokenizer (tokenizer_dir.h) and the chat template: the file or built-in template that `chat_template` names,
 * when not NULL; else the model's own; else the first built-in of `fallbacks` (NULL-terminated names; NULL = none) whose tokens
 * the tokenizer has. */
mf_status mf_prompt_open(const char *dir, const char *chat_template, const char *const *fallbacks, int64_t max_model_len,
                         mf_prompt *prompt, mf_error *err);
void mf_prompt_close(mf_prompt *prompt);

/* Renders messages (a JSON list of {role, content}) with the generation prompt and encodes the result: what
 * mf_conversation_encode (conversation.h) does with nothing else said. */
mf_status mf_prompt_encode_chat(const mf_prompt *prompt, json_t *messages, mf_ids *ids, mf_error *err);
/* Encodes plain text as the tokenizer's post-processor says (begin-of-sentence where it adds one). */
mf_status mf_prompt_encode_raw(const mf_prompt *prompt, const char *text, size_t size, mf_ids *ids, mf_error *err);

#endif
