/* answer_parser_impl.h - the parser of answers, shared by the files that read their forms: tool_calls.c (the machine,
 * and calls between markers), harmony.c (messages in channels), answer_parser.c (looking at the text, giving it out).
 *
 * Text that is not settled waits in `in` from `at` on.  Each state looks at it and moves on, or waits for more; what it
 * decides depends on the text alone, never on where it was cut. */
#ifndef MF_SERVER_ANSWER_PARSER_IMPL_H
#define MF_SERVER_ANSWER_PARSER_IMPL_H

#include "server/tool_calls.h"
#include "server/tool_json.h"

typedef enum mf_parser_state {
    STATE_START = 0, /* reasoning may begin here */
    STATE_REASONING,
    STATE_CONTENT,
    STATE_SECTION,   /* `at` is where section_begin stands */
    STATE_CALL,      /* `at` is where call_begin stands */
    STATE_WHOLE,     /* the same, and the call is read when its end is there */
    STATE_ARGUMENTS, /* `at` is inside a JSON object */
    STATE_TAIL,      /* behind it */
    STATE_PAIRS,     /* arg_key, arg_value pairs */
    STATE_BETWEEN,   /* behind a call */
    STATE_NAMED,     /* everything is arguments */
    STATE_LIST,      /* the list's bracket, or a comma, comes next */
    STATE_ITEM,      /* a call of the list */
    STATE_REST,      /* of a list, read at the end */
    STATE_LIST_END,  /* behind the list's bracket */
    STATE_HARMONY,   /* messages in channels: `harmony` says where */
    STATE_PLAIN      /* everything is content */
} mf_parser_state;

typedef enum mf_harmony_state {
    HARMONY_BEGIN = 0,     /* inside the header that the prompt began */
    HARMONY_BETWEEN,       /* behind a message */
    HARMONY_BODY,          /* `kind` is what its text becomes */
    HARMONY_CALL,          /* the body of a call begins */
    HARMONY_CALL_ARGUMENTS /* inside its JSON */
} mf_harmony_state;

typedef struct mf_harmony {
    mf_harmony_state state;
    mf_answer_kind kind;
    bool is_new; /* a header came, and no text since */
    bool has[2]; /* content, reasoning: some was given out */
} mf_harmony;

/* A head, a name or what stands before the arguments is this long at most. */
enum { MAX_HEAD_BYTES = 1024, MAX_NAME_BYTES = 256, ID_BYTES = MAX_NAME_BYTES + 1 };

struct mf_answer_parser {
    mf_answer_options options;
    mf_answer_emit emit;
    void *context;
    mf_parser_state state;
    mf_harmony harmony;
    mf_buffer in;
    size_t at;       /* what lies before is settled */
    size_t searched; /* STATE_WHOLE, STATE_PAIRS: no end begins before */
    bool final;      /* no more text comes */
    bool in_section;
    bool fenced;   /* this call's arguments stand between fences */
    bool has_pair; /* PAIRS: one was written */
    mf_json_scan scan;
    int32_t num_calls;
    mf_status status; /* of emit, or of memory: sticky */
};

typedef enum mf_found { MF_FOUND_NO = 0, MF_FOUND_PART, MF_FOUND_YES } mf_found;
typedef enum mf_step { MF_STEP_WAIT = 0, MF_STEP_ON } mf_step;

/* ---- looking at the text ---- */

/* Is `marker` (NULL: no) at pos?  PART: the text ends inside it. */
mf_found mf_answer_at_marker(const mf_answer_parser *p, size_t pos, const char *marker);
/* The first place from pos on where one of the markers, which begin with '<', is, or may be when the text ends inside
 * one; else the text's end. */
mf_found mf_answer_find_marker(const mf_answer_parser *p, size_t pos, const char *const *markers, size_t count,
                               size_t *where, size_t *which);
bool mf_answer_is_space(char c);
size_t mf_answer_skip_space(const mf_answer_parser *p, size_t pos);
bool mf_answer_is_name(const char *name, size_t size); /* of a function */

/* ---- giving out ---- */

void mf_answer_give(mf_answer_parser *p, mf_answer_kind kind, const char *text, size_t size);
void mf_answer_give_to(mf_answer_parser *p, mf_answer_kind kind, size_t end); /* what lies from `at` to `end` */
/* id_size 0: one is made. */
void mf_answer_begin_call(mf_answer_parser *p, const char *name, size_t name_size, const char *id, size_t id_size);

/* ---- harmony.c ---- */

void mf_harmony_begin(mf_answer_parser *p);
mf_step mf_harmony_step(mf_answer_parser *p);

#endif
