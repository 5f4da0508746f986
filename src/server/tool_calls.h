/* tool_calls.h - a generated text to an assistant's message: reasoning, content and tool calls, piece by piece.
 *
 * The pieces' concatenation does not depend on how the text was cut.  What only looks like a call stays content: no
 * text is lost.  A call is given out once its name and the beginning of its arguments are certain; its arguments follow
 * as they come. */
#ifndef MF_SERVER_TOOL_CALLS_H
#define MF_SERVER_TOOL_CALLS_H

#include <jansson.h>

#include "base/buffer.h"
#include "server/api_request.h"
#include "server/prepare.h"
#include "server/tool_format.h"

typedef enum mf_answer_kind {
    MF_ANSWER_CONTENT = 0,
    MF_ANSWER_REASONING,
    MF_ANSWER_CALL,     /* a call begins: index, id, name */
    MF_ANSWER_ARGUMENTS /* a piece of call `index`'s arguments, JSON text */
} mf_answer_kind;

typedef struct mf_answer_piece {
    mf_answer_kind kind;
    int32_t index;         /* of the call */
    const char *id, *name; /* CALL; valid during the call of `emit` */
    const char *text;      /* the others; not NUL-terminated */
    size_t size;           /* > 0 */
} mf_answer_piece;

/* MF_OK, or what ends the parse. */
typedef mf_status (*mf_answer_emit)(void *context, const mf_answer_piece *piece);

typedef struct mf_answer_options {
    const mf_tool_format *format;
    bool calls;            /* look for calls; else they are content */
    bool reasoning;        /* <think>...</think> at the text's beginning is reasoning; with a format of channels: the
                              text is in channels, else all of it is content */
    bool opens_reasoning;  /* the prompt ended with <think>, or with the header of reasoning */
    mf_tool_choice choice; /* REQUIRED: the text is a list of calls; NAMED: the arguments of tool_name */
    const char *tool_name;
    const json_t *tools; /* borrowed: types of arguments, where the format does not show them */
    uint64_t id_seed;    /* ids of calls are made of it */
} mf_answer_options;

typedef struct mf_answer_parser mf_answer_parser;

/* The options that a chat's answer wants.  id_seed: another for every choice. */
mf_answer_options mf_answer_options_for(const mf_serve_model *model, const mf_api_request *request,
                                        const mf_prepared_prompt *prompt, uint64_t id_seed);

mf_status mf_answer_parser_open(const mf_answer_options *options, mf_answer_emit emit, void *context,
                                mf_answer_parser **out);
void mf_answer_parser_close(mf_answer_parser **parser);
mf_status mf_answer_parser_push(mf_answer_parser *parser, const char *text, size_t size);
mf_status mf_answer_parser_finish(mf_answer_parser *parser); /* what was held back comes out */
int32_t mf_answer_parser_num_calls(const mf_answer_parser *parser);

/* ---- a whole message ---- */

typedef struct mf_answer_message {
    mf_buffer content, reasoning;
    json_t *calls;       /* [{"id", "type", "function": {"name", "arguments"}}]; NULL until there is one */
    mf_buffer arguments; /* of the last call, until the next begins or the message is made */
} mf_answer_message;

/* An emit whose context is a zeroed mf_answer_message. */
mf_status mf_answer_message_add(void *message, const mf_answer_piece *piece);
/* {"role": "assistant", "content", "reasoning"?, "tool_calls"?}: content is null beside calls when there is none.  A
 * new reference, or NULL without memory. */
json_t *mf_answer_message_json(mf_answer_message *message);
void mf_answer_message_close(mf_answer_message *message);

#endif
