/* conversation.h - a conversation to token ids: the template's variables, rendering as transformers'
 * apply_chat_template does it, encoding. */
#ifndef MF_TEXT_CONVERSATION_H
#define MF_TEXT_CONVERSATION_H

#include "text/prompt.h"

typedef struct mf_conversation {
    json_t *messages;                      /* a list of {role, content, ...} */
    json_t *tools;                         /* NULL = none */
    json_t *variables;                     /* more variables of the template, an object; NULL = none */
    const mf_chat_template *chat_template; /* NULL: the model's */
    bool add_generation_prompt;
    bool continue_final_message; /* the text ends where the last message's content ends */
    bool add_special_tokens;     /* on top of what the template writes */
} mf_conversation;

/* Appends the rendered text.  MF_ERR_INVALID: there is no template, or it refused the conversation. */
mf_status mf_conversation_render(const mf_prompt *prompt, const mf_conversation *conversation, mf_buffer *text,
                                 mf_error *err);
/* Renders and encodes.  Special tokens come from the template alone: where a message, a tool or a variable holds the
 * text of one, that text is encoded as text - unless the template does something with it that hides where it came from,
 * in which case it becomes the token, as it does in transformers.  The ids of all other conversations are those of the
 * rendered text. */
mf_status mf_conversation_encode(const mf_prompt *prompt, const mf_conversation *conversation, mf_ids *ids,
                                 mf_error *err);

#endif
