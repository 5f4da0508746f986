/* conversation_plain.h - where in a rendered conversation stands text that users wrote and that reads like a special
 * token. */
#ifndef MF_TEXT_CONVERSATION_PLAIN_H
#define MF_TEXT_CONVERSATION_PLAIN_H

#include "text/conversation.h"

typedef struct mf_plain_places {
    size_t *at; /* ascending byte offsets into the rendered text; release with mf_free */
    size_t count;
} mf_plain_places;

/* Renders once more, with a mark before each such text, and takes the marks out again: when what is left is `text`,
 * they say exactly where it stands.  When it is not, or nobody wrote such a text, *places stays empty. */
mf_status mf_conversation_find_plain(const mf_prompt *prompt, const mf_conversation *conversation,
                                     const mf_buffer *text, mf_plain_places *places, mf_error *err);

#endif
