/* tool_format.h - how model families write tool calls and reasoning into their text. */
#ifndef MF_SERVER_TOOL_FORMAT_H
#define MF_SERVER_TOOL_FORMAT_H

#include <stdbool.h>
#include <stddef.h>

typedef enum mf_call_syntax {
    MF_CALL_OBJECT = 0, /* BEGIN {"name": NAME, "arguments": {...}} END */
    MF_CALL_SEPARATED,  /* BEGIN HEAD SEPARATOR {...} END; the head holds the name */
    MF_CALL_ARG_KEYS,   /* BEGIN NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> ... END */
    MF_CALL_CHANNELS    /* calls, reasoning and content are messages with headers: harmony.c; no markers but `others` */
} mf_call_syntax;

typedef struct mf_tool_format {
    const char *name; /* "hermes", ... */
    mf_call_syntax syntax;
    const char *call_begin, *call_end;
    const char *section_begin, *section_end; /* around all calls; NULL = none */
    const char *separator;                   /* SEPARATED */
    bool fenced;              /* SEPARATED: "function" SEPARATOR NAME \n```json\n {...} \n``` is read too */
    bool head_is_id;          /* SEPARATED: the head is functions.NAME:INDEX, and the call's id */
    bool written_by_specials; /* the markers may be special tokens: they must not be skipped in the text */
    const char *others[8];    /* more markers that may be special tokens; NULL ends */
    const char *marker;       /* a template that holds it asks for this format */
    const char *families[8];  /* model_type; NULL ends */
} mf_tool_format;

/* The template's own markers decide, then the family; hermes, the most usual, for others. */
const mf_tool_format *mf_tool_format_find(const char *family, const char *template_source, size_t template_size);

/* Whether a special token of this text is one of the markers, or opens or closes reasoning: the text's other special
 * tokens are nothing that a client may see. */
bool mf_tool_format_is_marker(const mf_tool_format *format, const char *text, size_t size);

/* The template knows of <think>...</think>. */
bool mf_template_has_reasoning(const char *template_source, size_t template_size);

#endif
