/* jinja_ast.h - a parsed chat template: nodes, the slots that variables live in, and what parsing needs.
 *
 * The tree is made once, lives in the template's arena and is never written afterwards: several threads may render it. */
#ifndef MF_TEXT_JINJA_AST_H
#define MF_TEXT_JINJA_AST_H

#include "text/jinja_value.h"

enum {
    JINJA_MAX_SOURCE_BYTES = 1 << 20,
    JINJA_MAX_NESTING = 64,     /* blocks and parentheses: bounds the parser's recursion */
    JINJA_MAX_TREE_HEIGHT = 200 /* a + b + c ... makes one level per operator */
};

typedef struct jinja_name {
    const char *data;
    size_t size;
    uint32_t hash;
    struct jinja_name *next;        /* in the parser's table */
    struct jinja_binding *binding;  /* innermost meaning while slots are assigned */
    struct jinja_slot *slots;       /* slots of the function being compiled, and below them those around it */
} jinja_name;

typedef enum jinja_kind {
    /* expressions */
    JINJA_NODE_CONST,
    JINJA_NODE_NAME,
    JINJA_NODE_NSREF, /* ns.attr as the target of a set: name, attr */
    JINJA_NODE_TUPLE,
    JINJA_NODE_LIST,
    JINJA_NODE_DICT, /* list: key, value, key, value */
    JINJA_NODE_NEG,
    JINJA_NODE_POS,
    JINJA_NODE_NOT,
    JINJA_NODE_BINARY, /* op */
    JINJA_NODE_AND,
    JINJA_NODE_OR,
    JINJA_NODE_CONCAT,
    JINJA_NODE_COMPARE, /* a, then list of operands with ops */
    JINJA_NODE_COND,    /* b if a else c */
    JINJA_NODE_GETATTR,
    JINJA_NODE_GETITEM,
    JINJA_NODE_SLICE, /* a[b:c:d] */
    JINJA_NODE_CALL,
    JINJA_NODE_FILTER, /* a NULL: the captured text */
    JINJA_NODE_TEST,
    /* statements */
    JINJA_NODE_DATA,
    JINJA_NODE_PRINT,
    JINJA_NODE_FOR,
    JINJA_NODE_IF,
    JINJA_NODE_SET,
    JINJA_NODE_SET_BLOCK,
    JINJA_NODE_MACRO,
    JINJA_NODE_CALL_BLOCK,
    JINJA_NODE_GENERATION,
    JINJA_NODE_FILTER_BLOCK,
    JINJA_NODE_WITH,
    JINJA_NODE_BREAK,
    JINJA_NODE_CONTINUE
} jinja_kind;

typedef enum jinja_compare_op {
    JINJA_CMP_EQ,
    JINJA_CMP_NE,
    JINJA_CMP_LT,
    JINJA_CMP_LE,
    JINJA_CMP_GT,
    JINJA_CMP_GE,
    JINJA_CMP_IN,
    JINJA_CMP_NOT_IN
} jinja_compare_op;

typedef enum jinja_ctx { JINJA_LOAD, JINJA_STORE, JINJA_PARAM } jinja_ctx;

/* Where a variable is: `hops` functions outwards, slot number. */
typedef struct jinja_ref {
    uint32_t hops, slot;
} jinja_ref;

/* What happens to a slot when its scope is entered; when it is left the slot becomes MISSING. */
typedef struct jinja_load {
    enum { JINJA_LOAD_PARAM, JINJA_LOAD_RESOLVE, JINJA_LOAD_ALIAS, JINJA_LOAD_UNSET } action;
    uint32_t slot;
    jinja_ref from;                /* ALIAS */
    const jinja_name *name;        /* RESOLVE: a variable of the render, */
    const jinja_builtin *builtin;  /* else this global function, else missing */
} jinja_load;

typedef struct jinja_scope {
    jinja_load *loads;
    uint32_t count;
} jinja_scope;

typedef struct jinja_body {
    struct jinja_node **nodes;
    uint32_t count;
} jinja_body;

typedef struct jinja_call_args {
    struct jinja_node **pos;
    struct jinja_node **kw_values;
    jinja_value *kw_names;
    uint32_t num_pos, num_kw;
    struct jinja_node *dyn_args, *dyn_kwargs;
} jinja_call_args;

/* for */
typedef struct jinja_for {
    jinja_body body, else_body;
    struct jinja_node *test;        /* NULL = none */
    struct jinja_node *test_target; /* the target again, in the test's own function */
    uint32_t test_slots;
    bool has_loop, recursive;
    uint32_t loop_slot;
    uint32_t function_slots; /* recursive: the body is a function of its own */
    jinja_scope scope, else_scope, test_scope;
} jinja_for;

/* macro, call block, generation */
typedef struct jinja_function {
    jinja_value name; /* MISSING: a call block */
    struct jinja_node **params; /* NAME nodes; after scoping their refs are slots of the function */
    struct jinja_node **defaults; /* of the last num_defaults parameters */
    uint32_t num_params, num_defaults;
    bool has_caller, has_kwargs, has_varargs, explicit_caller; /* the body uses these names */
    uint32_t caller_slot, kwargs_slot, varargs_slot;
    jinja_body body;
    jinja_scope scope;
    uint32_t num_slots;
} jinja_function;

typedef struct jinja_with {
    struct jinja_node **targets, **values;
    uint32_t count;
    jinja_body body;
    jinja_scope scope;
} jinja_with;

/* set block, filter block */
typedef struct jinja_capture {
    struct jinja_node *filter; /* NULL = none */
    jinja_body body;
    jinja_scope scope;
} jinja_capture;

typedef struct jinja_node {
    uint8_t kind;
    uint8_t op;     /* BINARY: jinja_op */
    uint8_t ctx;    /* NAME */
    bool soft;      /* FILTER, TEST: an unknown name is an error only when it is reached */
    uint16_t height;
    uint32_t line;
    struct jinja_node *a, *b, *c, *d;
    jinja_value value; /* CONST; GETATTR: the name; FILTER, TEST: the name; NSREF: the attribute */
    union {
        struct {
            jinja_name *name;
            jinja_ref ref;
        } var; /* NAME, NSREF */
        struct {
            struct jinja_node **nodes;
            uint8_t *ops; /* COMPARE */
            uint32_t count;
        } list;
        struct {
            jinja_call_args *args;
            const jinja_builtin *builtin;
        } call; /* CALL, FILTER, TEST */
        struct {
            const char *data;
            size_t size;
        } text;            /* DATA */
        jinja_for *loop;   /* FOR: a target, b iterable */
        struct {
            jinja_body body, else_body;
            struct jinja_node **elifs; /* IF nodes without elifs of their own */
            uint32_t num_elifs;
        } cond;                   /* IF: a test */
        jinja_function *function; /* MACRO: a NAME in store context; CALL_BLOCK: a the call */
        jinja_with *with;
        jinja_capture *capture; /* SET_BLOCK: a target */
    } u;
} jinja_node;

/* A template being parsed. */
typedef struct jinja_parse {
    const char *name;
    mf_arena *arena;
    mf_error *err;
    jinja_name **names; /* hash table, num_buckets a power of two */
    uint32_t num_buckets;
    uint32_t line; /* of the construct in hand, for messages */
} jinja_parse;

typedef struct jinja_program {
    jinja_body body;
    jinja_scope scope;
    uint32_t num_slots;
} jinja_program;

mf_status jinja_parse_fail(jinja_parse *parse, mf_status status, uint32_t line, const char *fmt, ...) MF_PRINTF(4, 5);
mf_status jinja_parse_no_memory(jinja_parse *parse);
mf_status jinja_parse_name(jinja_parse *parse, const char *data, size_t size, jinja_name **out); /* interned */

#define JINJA_PARSE_NEW(parse, ptr, n)                                     \
    do {                                                                   \
        (ptr) = mf_arena_array((parse)->arena, (n), sizeof *(ptr));        \
        if (!(ptr)) {                                                      \
            return jinja_parse_no_memory(parse);                           \
        }                                                                  \
    } while (0)

mf_status jinja_parse_program(jinja_parse *parse, const char *source, size_t size, jinja_program *program);
mf_status jinja_assign_slots(jinja_parse *parse, jinja_program *program); /* jinja_scope.c */

#endif
