/* guide_impl.h - what the files of constrained decoding share; nobody else includes it.
 *
 * The way of a text: a front (guide_schema*, guide_regex, guide_grammar) makes rules of expressions (guide_expr.c);
 * guide_nfa.c turns each rule into byte edges and calls of other rules, and drops what cannot end; guide_dfa.c makes the sets of
 * its nodes into states as they are met; guide_walk.c runs sets of (state, stack of return states) over the vocabulary's trie.
 *
 * A config is a state and a stack.  A stack is a list of frames, the states to go on with when a called rule has ended; a call
 * whose return state has nothing left to do pushes none, so right recursion needs no depth. */
#ifndef MF_TEXT_GUIDE_IMPL_H
#define MF_TEXT_GUIDE_IMPL_H

#include <pthread.h>

#include "base/arena.h"
#include "text/charset.h"
#include "text/guide.h"

enum {
    MF_GUIDE_MAX_STACK = 400,       /* frames: how deep a text may nest; what would need more is never begun */
    MF_GUIDE_MAX_CONFIGS = 512,     /* of one position; more is an ambiguity that ends the request */
    MF_GUIDE_MAX_STATE_FRAMES = 4096,
    MF_GUIDE_MAX_RULES = 20000,
    MF_GUIDE_INLINE_SIZE = 64       /* rules of a grammar up to it become part of their callers */
};

/* ---- the vocabulary ----------------------------------------------------------------------------------------------- */

/* A trie in preorder: the subtree of node i is i + 1 .. end - 1. */
typedef struct mf_guide_trie_node {
    uint32_t end;
    int32_t token_id;  /* first token that ends here; -1 = none.  Others with the same bytes: next_same */
    uint16_t depth;    /* bytes from the root, 1.. */
    uint8_t byte;
    bool has_same;
} mf_guide_trie_node;

typedef struct mf_guide_mask mf_guide_mask;

/* What a state allows whatever called its rule, and the trie nodes behind which its rule may have ended inside a token. */
struct mf_guide_mask {
    int32_t num_ids;        /* -1: words instead */
    int32_t num_exits;
    int32_t reach;          /* deepest stack, with what is needed to end, above the state's own */
    const int32_t *ids;
    const uint32_t *words;  /* [vocabulary's words] */
    const uint32_t *exits;
};

/* Masks of the rule for any JSON string, which all programs share: found by the nodes of a state, counted from the rule's. */
typedef struct mf_guide_shared_mask {
    const int32_t *nodes;
    int32_t num_nodes;
    mf_guide_mask mask;
} mf_guide_shared_mask;

struct mf_guide_vocab {
    mf_guide_trie_node *nodes; /* [num_nodes] */
    uint32_t num_nodes;
    int32_t max_depth;
    int32_t num_ids;           /* tokenizer's vocabulary size */
    size_t num_words;          /* of a mask over num_ids */
    int32_t *next_same;        /* [num_ids] */
    uint32_t *bytes_at;        /* [num_ids + 1] into bytes */
    uint8_t *bytes;
    int32_t *eos_ids;
    int32_t num_eos;
    mf_guide_shared_mask *shared; /* state 0 is before the quote */
    int32_t num_shared;
    /* Strings of counted characters: their states are those of any string and a count, and so are the masks inside. */
    int16_t *string_next;      /* [num_shared, 256]: states, -1 = dead */
    int32_t string_inside;     /* the state between two characters */
    int32_t *inside_ids;       /* [num_inside] ids that may come there, by how many characters they begin */
    uint16_t *inside_chars;
    int32_t num_inside;
    int32_t *closers;          /* [num_closers] of those, the ones that end with the closing quote */
    uint16_t *closer_chars;
    int32_t num_closers;
    uint16_t *exit_chars;      /* before each exit of that state's mask */
    mf_arena arena;            /* of all these */
};

mf_status mf_guide_vocab_share_strings(mf_guide_vocab *vocab, mf_error *err);

/* ---- expressions -------------------------------------------------------------------------------------------------- */

typedef enum mf_guide_kind {
    MF_GUIDE_EMPTY,
    MF_GUIDE_BYTES,
    MF_GUIDE_SET,    /* one character of a set */
    MF_GUIDE_SEQ,
    MF_GUIDE_ALT,
    MF_GUIDE_REPEAT,
    MF_GUIDE_REF,    /* of a rule */
    MF_GUIDE_MEMBERS /* items [0] the separator, then members in order, each once or, where it is optional, not at all */
} mf_guide_kind;

typedef struct mf_guide_expr mf_guide_expr;

/* May be used in several places: expressions form a graph without cycles, cycles go through rules. */
struct mf_guide_expr {
    mf_guide_kind kind;
    bool in_json;              /* SET: of the characters of a JSON string: some are written as escapes */
    int32_t min, max;          /* REPEAT; max -1 = without end */
    int32_t rule;              /* REF */
    int32_t num_items;
    mf_guide_expr **items;     /* SEQ, ALT; [0] of REPEAT */
    const bool *is_optional;   /* MEMBERS: of items 1.. */
    bool has_tail;             /* MEMBERS: the last item comes any number of times, behind the others */
    const char *bytes;
    size_t size;               /* of bytes; ranges of a SET */
    const mf_char_range *ranges;
    int64_t cost;              /* nodes, about */
    int32_t min_chars, max_chars; /* of what it stands for, as a regular expression counts; INT32_MAX = without end */
};

typedef struct mf_guide_rule {
    const char *name;
    mf_guide_expr *body;       /* NULL: used and not yet defined */
    bool is_kept;              /* never made part of its callers */
    bool is_string;            /* the rule for any JSON string */
    bool is_counted;           /* a JSON string of min_chars to max_chars characters; max -1 = without end */
    int32_t min_chars, max_chars;
    bool is_inlined;
    int32_t start, end;        /* nodes, once made; all of a rule's lie in [start, start + num_nodes) */
    int32_t num_nodes;
} mf_guide_rule;

/* A program being made.  The first failure stays; constructors then return NULL. */
typedef struct mf_guide_build {
    mf_arena arena;
    mf_guide_limits limits;
    int64_t deadline_ns;
    mf_guide_rule *rules; /* rule 0 is the text */
    int32_t num_rules, rules_capacity;
    int32_t num_exprs;
    int32_t string_rule, value_rule, number_rule, integer_rule; /* -1 until they are made */
    mf_status status;
    mf_error *err;
} mf_guide_build;

mf_status mf_guide_build_open(mf_guide_build *build, const mf_guide_limits *limits, mf_error *err);
void mf_guide_build_close(mf_guide_build *build);
mf_status mf_guide_build_fail(mf_guide_build *build, mf_status status, const char *fmt, ...) MF_PRINTF(3, 4);
bool mf_guide_build_is_late(mf_guide_build *build); /* true, and failed, when the time is over */
void *mf_guide_build_alloc(mf_guide_build *build, size_t count, size_t size);

/* A list that grows in the arena. */
typedef struct mf_guide_list {
    mf_guide_expr **items;
    int32_t num, capacity;
} mf_guide_list;

int32_t mf_guide_add_rule(mf_guide_build *build, const char *name, size_t size); /* -1 = failed */
mf_guide_expr *mf_guide_empty(mf_guide_build *build);
mf_guide_expr *mf_guide_bytes(mf_guide_build *build, const char *bytes, size_t size);
mf_guide_expr *mf_guide_text(mf_guide_build *build, const char *text);
mf_guide_expr *mf_guide_set(mf_guide_build *build, const mf_char_range *ranges, size_t count, bool in_json);
mf_guide_expr *mf_guide_seq(mf_guide_build *build, mf_guide_expr *const *items, int32_t n);
mf_guide_expr *mf_guide_alt(mf_guide_build *build, mf_guide_expr *const *items, int32_t n); /* n 0: NULL and failed */
mf_guide_expr *mf_guide_repeat(mf_guide_build *build, mf_guide_expr *item, int32_t min, int32_t max);
mf_guide_expr *mf_guide_ref(mf_guide_build *build, int32_t rule);
mf_guide_expr *mf_guide_members(mf_guide_build *build, mf_guide_expr *separator, const mf_guide_list *members,
                                const bool *is_optional, mf_guide_expr *tail); /* tail NULL = none */

/* Two or three in a row. */
mf_guide_expr *mf_guide_seq2(mf_guide_build *build, mf_guide_expr *a, mf_guide_expr *b);
mf_guide_expr *mf_guide_seq3(mf_guide_build *build, mf_guide_expr *a, mf_guide_expr *b, mf_guide_expr *c);
mf_guide_expr *mf_guide_optional(mf_guide_build *build, mf_guide_expr *item);

void mf_guide_list_add(mf_guide_build *build, mf_guide_list *list, mf_guide_expr *item);

/* ---- fronts: each makes the body of a rule or an expression ------------------------------------------------------- */

/* in_json: what it matches stands inside the quotes of a JSON string. */
mf_guide_expr *mf_guide_parse_regex(mf_guide_build *build, const char *pattern, size_t size, bool in_json);
void mf_guide_parse_grammar(mf_guide_build *build, const char *text, size_t size);
void mf_guide_parse_schema(mf_guide_build *build, const char *text, size_t size);

/* "byte N: MESSAGE" */
void mf_guide_fail_at(mf_guide_build *build, mf_status status, size_t at, const char *message);

/* guide_json.c: the parts of JSON that know no schema. */
mf_guide_expr *mf_guide_json_space(mf_guide_build *build);                   /* between tokens of arrays and objects */
mf_guide_expr *mf_guide_json_string(mf_guide_build *build);                  /* any, quotes included */
mf_guide_expr *mf_guide_json_char(mf_guide_build *build);                    /* one inside a string */
mf_guide_expr *mf_guide_json_string_sized(mf_guide_build *build, int32_t min, int32_t max);
mf_guide_expr *mf_guide_json_quoted(mf_guide_build *build, mf_guide_expr *inside);
mf_guide_expr *mf_guide_json_number(mf_guide_build *build);
mf_guide_expr *mf_guide_json_integer(mf_guide_build *build);
mf_guide_expr *mf_guide_json_value(mf_guide_build *build);                   /* any */
mf_guide_expr *mf_guide_json_object(mf_guide_build *build, mf_guide_expr *value); /* any keys */
mf_guide_expr *mf_guide_json_array(mf_guide_build *build, mf_guide_expr *item, int32_t min, int32_t max);
mf_guide_expr *mf_guide_json_key_except(mf_guide_build *build, const char *const *names, int32_t num_names);

/* guide_range.c: decimal numbers between two bounds, as texts "-12.5"; NULL = none. */
mf_guide_expr *mf_guide_integer_range(mf_guide_build *build, const char *least, const char *most);
mf_guide_expr *mf_guide_number_range(mf_guide_build *build, const char *least, bool above, const char *most, bool below);

/* guide_format.c: the inside of a string of a named format; NULL and no failure when the name is not known. */
mf_guide_expr *mf_guide_format(mf_guide_build *build, const char *name);

/* ---- nodes -------------------------------------------------------------------------------------------------------- */

typedef enum mf_guide_edge_kind { MF_GUIDE_EDGE_BYTE, MF_GUIDE_EDGE_FREE, MF_GUIDE_EDGE_CALL } mf_guide_edge_kind;

typedef struct mf_guide_edge {
    int32_t next; /* of the same node; -1 = last */
    int32_t target;
    int32_t rule; /* CALL */
    uint8_t kind, low, high;
} mf_guide_edge;

typedef struct mf_guide_nfa {
    int32_t *first_edge; /* [num_nodes]; -1 = none */
    int32_t *need;       /* [num_nodes]: frames to push at least until the rule's end; INT32_MAX = cannot end */
    int32_t num_nodes, nodes_capacity;
    mf_guide_edge *edges;
    int32_t num_edges, edges_capacity;
    mf_guide_rule *rules; /* start, end, num_nodes, is_string */
    int32_t num_rules;
} mf_guide_nfa;

mf_status mf_guide_nfa_make(mf_guide_build *build, mf_guide_nfa *nfa);
void mf_guide_nfa_close(mf_guide_nfa *nfa);

/* ---- states ------------------------------------------------------------------------------------------------------- */

typedef struct mf_guide_call {
    int32_t start;    /* state of the called rule */
    int32_t back;     /* state to go on with */
    bool is_last;     /* back has nothing to do but end: no frame */
} mf_guide_call;

typedef struct mf_guide_dfa_state {
    int32_t rule;
    int32_t nodes_at, num_nodes;
    int32_t calls_at, num_calls; /* calls_at -1: not yet looked at */
    int32_t need;
    int32_t next_in_bucket;
    int32_t shared;              /* mask of the vocabulary; -1 = none */
    int32_t string_state;        /* of a counted string: the state of any string that it is like; -1 = none */
    int32_t num_chars;           /* and the characters before it */
    uint32_t mask_at, mask_serial; /* in the cache, valid while its half has that serial; 0 = none */
    uint8_t mask_half;
    bool is_direct;              /* its mask is no use: too many exits */
    bool is_end;                 /* the rule may end here */
    bool has_bytes, has_calls;
} mf_guide_dfa_state;

enum { MF_GUIDE_DEAD = -1, MF_GUIDE_UNKNOWN = -2, MF_GUIDE_BUCKETS = 1 << 14 };

typedef struct mf_guide_dfa {
    const mf_guide_nfa *nfa;
    uint8_t classes[256];
    uint8_t class_byte[256]; /* one byte of each */
    int32_t num_classes;
    mf_guide_dfa_state *states;
    int32_t num_states, max_states;
    int32_t *next;           /* [num_states, num_classes] */
    int32_t *nodes;          /* of all states */
    int32_t num_nodes, max_nodes;
    mf_guide_call *calls;
    int32_t num_calls, max_calls;
    int32_t *buckets;
    int32_t *rule_start;     /* [num_rules] states; MF_GUIDE_UNKNOWN */
    int32_t *set, *stack;    /* [num nodes of the NFA] scratch */
    uint32_t *marks;         /* [num nodes]: stamp */
    uint32_t stamp;
    int64_t work;            /* done so far; the walk watches it */
    bool is_full;            /* a state could not be made: the program is used up */
    const mf_guide_vocab *vocab;
} mf_guide_dfa;

mf_status mf_guide_dfa_open(mf_guide_dfa *dfa, const mf_guide_nfa *nfa, const mf_guide_vocab *vocab, mf_error *err);
void mf_guide_dfa_close(mf_guide_dfa *dfa);
int32_t mf_guide_dfa_start(mf_guide_dfa *dfa, int32_t rule);
int32_t mf_guide_dfa_make_next(mf_guide_dfa *dfa, int32_t state, int32_t byte_class); /* a state or MF_GUIDE_DEAD */
void mf_guide_dfa_make_calls(mf_guide_dfa *dfa, int32_t state);

static inline int32_t mf_guide_dfa_next(mf_guide_dfa *dfa, int32_t state, int32_t byte_class)
{
    int32_t next = dfa->next[(size_t)state * (size_t)dfa->num_classes + (size_t)byte_class];
    return next != MF_GUIDE_UNKNOWN ? next : mf_guide_dfa_make_next(dfa, state, byte_class);
}

/* ---- running ------------------------------------------------------------------------------------------------------ */

typedef struct mf_guide_config {
    int32_t state, stack;
} mf_guide_config;

/* Stacks 0 and 1 are empty: the text's own, and the unknown caller's of a mask being made. */
enum { MF_GUIDE_ROOT = 0, MF_GUIDE_CALLER = 1, MF_GUIDE_FIRST_FRAME = 2 };

typedef struct mf_guide_frame {
    int32_t back, below, depth;
} mf_guide_frame;

typedef struct mf_guide_level {
    int32_t begin, end, num_frames;
} mf_guide_level;

/* The working memory of a program, used by whoever holds its mutex. */
typedef struct mf_guide_work {
    mf_guide_frame *frames;
    int32_t num_frames;
    int32_t *frame_cache;     /* direct-mapped: equal stacks get equal numbers, mostly */
    mf_guide_config *configs;
    mf_guide_level *levels;   /* [max_depth + 2] */
    uint32_t *words;          /* a mask being made */
    uint32_t *exits;
    int32_t num_exits;        /* -1: more than there is room for */
    int32_t *remap;           /* of frames, while a state is stored */
    uint32_t *out;            /* the mask of a whole set */
    int32_t begin, end;       /* the set being made, in configs */
    int32_t reach;
    int64_t num_steps;        /* of this call; too many and it fails */
    bool at_end;              /* the set is one where the text, or the rule of a mask being made, may end */
    bool has_failed;          /* out of room or work: what was found is not all */
} mf_guide_work;

struct mf_guide_program {
    int32_t num_refs;         /* atomic */
    const mf_guide_vocab *vocab;
    mf_guide_nfa nfa;         /* read-only after it was made */
    pthread_mutex_t mutex;    /* guards all below: states and masks are made as they are met */
    mf_guide_dfa dfa;
    mf_guide_work work;
    uint32_t *cache;          /* two halves: the one being filled, and the one before */
    uint32_t cache_used[2], cache_serial[2], cache_last_serial;
    int cache_half;
    uint32_t cache_size;      /* of a half, in words */
};

struct mf_guide_state {
    mf_guide_program *program;
    int32_t num_configs, num_frames;
    bool may_end, has_ended, has_failed;
    mf_guide_config configs[MF_GUIDE_MAX_CONFIGS];
    mf_guide_frame frames[MF_GUIDE_MAX_STATE_FRAMES]; /* from MF_GUIDE_FIRST_FRAME on */
};

mf_status mf_guide_program_make(mf_guide_build *build, const mf_guide_vocab *vocab, mf_guide_program **out);
mf_status mf_guide_work_open(mf_guide_work *work, const mf_guide_vocab *vocab, mf_error *err);
void mf_guide_work_close(mf_guide_work *work);

/* The mask of a state into work->words and work->exits. */
void mf_guide_walk_mask(mf_guide_program *program, int32_t state);
void mf_guide_start_set(mf_guide_program *program, mf_guide_state *state);

#endif
