/* jinja_parser.h - what the parser of statements and the parser of expressions share. */
#ifndef MF_TEXT_JINJA_PARSER_H
#define MF_TEXT_JINJA_PARSER_H

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

typedef struct jinja_parser {
    jinja_parse *parse;
    jinja_lexer lexer;
    jinja_token token; /* current */
    jinja_token ahead; /* the one after it, when has_ahead */
    bool has_ahead;
    int32_t depth; /* of the parser's own recursion */
    int32_t loops; /* for loops around this place, in this function: where break may stand */
    int32_t fors;  /* for tags around this place, functions or not */
} jinja_parser;

typedef struct jinja_nodes {
    jinja_node **data;
    uint32_t count, capacity;
} jinja_nodes;

mf_status jinja_advance(jinja_parser *p);
mf_status jinja_look(jinja_parser *p, const jinja_token **token);
bool jinja_token_is_name(const jinja_token *token, const char *name);
bool jinja_at(const jinja_parser *p, jinja_token_type type);
bool jinja_at_name(const jinja_parser *p, const char *name);
mf_status jinja_skip_if(jinja_parser *p, jinja_token_type type, bool *skipped);
mf_status jinja_skip_if_name(jinja_parser *p, const char *name, bool *skipped);
mf_status jinja_expect(jinja_parser *p, jinja_token_type type);
mf_status jinja_expect_name(jinja_parser *p, jinja_name **name);
mf_status jinja_unexpected(jinja_parser *p, const char *expected);
mf_status jinja_enter(jinja_parser *p); /* one level of recursion deeper; undone by p->depth-- */

mf_status jinja_node_new(jinja_parser *p, jinja_kind kind, uint32_t line, jinja_node **out);
mf_status jinja_node_done(jinja_parser *p, jinja_node *node); /* its height, from its children */
mf_status jinja_nodes_add(jinja_parser *p, jinja_nodes *nodes, jinja_node *node);
mf_status jinja_const_str(jinja_parser *p, const char *data, size_t size, jinja_value *out);

typedef struct jinja_tuple_rules {
    bool simplified;      /* only names and literals: a target */
    bool no_cond;         /* no inline if */
    bool parentheses;     /* () is an empty tuple */
    bool namespaces;      /* ns.attr is allowed */
} jinja_tuple_rules;

mf_status jinja_list_node(jinja_parser *p, jinja_kind kind, uint32_t line, const jinja_nodes *nodes, jinja_node **out);
mf_status jinja_parse_expression(jinja_parser *p, jinja_node **out);
mf_status jinja_parse_or(jinja_parser *p, jinja_node **out); /* an expression without an inline if */
mf_status jinja_parse_unary(jinja_parser *p, bool with_filter, jinja_node **out);
mf_status jinja_parse_tuple(jinja_parser *p, const jinja_tuple_rules *rules, jinja_node **out);
mf_status jinja_parse_filters(jinja_parser *p, jinja_node *input, bool inside, jinja_node **out);
/* A target of set, for, with; `ctx` for its names. */
mf_status jinja_parse_target(jinja_parser *p, bool namespaces, jinja_ctx ctx, jinja_node **out);
mf_status jinja_parse_target_name(jinja_parser *p, jinja_ctx ctx, jinja_node **out);

#endif
