/* jinja_parse_operators.c - operators, from ** to the inline if, with jinja2's precedence. */
#include <string.h>

#include "text/jinja_parser.h"

static mf_status binary_node(jinja_parser *p, jinja_kind kind, uint8_t op, jinja_node *a, jinja_node *b, jinja_node **out)
{
    jinja_node *node;
    MF_TRY(jinja_node_new(p, kind, a->line, &node));
    node->op = op;
    node->a = a;
    node->b = b;
    *out = node;
    return jinja_node_done(p, node);
}

static mf_status parse_pow(jinja_parser *p, jinja_node **out)
{
    MF_TRY(jinja_parse_unary(p, true, out));
    while (jinja_at(p, JINJA_TOK_POW)) {
        jinja_node *right;
        MF_TRY(jinja_advance(p));
        MF_TRY(jinja_parse_unary(p, true, &right));
        MF_TRY(binary_node(p, JINJA_NODE_BINARY, JINJA_POW, *out, right, out));
    }
    return MF_OK;
}

static mf_status parse_product(jinja_parser *p, jinja_node **out)
{
    MF_TRY(parse_pow(p, out));
    for (;;) {
        jinja_op op;
        switch (p->token.type) {
        case JINJA_TOK_MUL: op = JINJA_MUL; break;
        case JINJA_TOK_DIV: op = JINJA_DIV; break;
        case JINJA_TOK_FLOORDIV: op = JINJA_FLOORDIV; break;
        case JINJA_TOK_MOD: op = JINJA_MOD; break;
        default: return MF_OK;
        }
        jinja_node *right;
        MF_TRY(jinja_advance(p));
        MF_TRY(parse_pow(p, &right));
        MF_TRY(binary_node(p, JINJA_NODE_BINARY, (uint8_t)op, *out, right, out));
    }
}

static mf_status parse_concat(jinja_parser *p, jinja_node **out)
{
    jinja_nodes parts = { 0 };
    MF_TRY(parse_product(p, out));
    if (!jinja_at(p, JINJA_TOK_TILDE)) {
        return MF_OK;
    }
    MF_TRY(jinja_nodes_add(p, &parts, *out));
    while (jinja_at(p, JINJA_TOK_TILDE)) {
        jinja_node *part;
        MF_TRY(jinja_advance(p));
        MF_TRY(parse_product(p, &part));
        MF_TRY(jinja_nodes_add(p, &parts, part));
    }
    return jinja_list_node(p, JINJA_NODE_CONCAT, (*out)->line, &parts, out);
}

static mf_status parse_sum(jinja_parser *p, jinja_node **out)
{
    MF_TRY(parse_concat(p, out));
    while (jinja_at(p, JINJA_TOK_ADD) || jinja_at(p, JINJA_TOK_SUB)) {
        jinja_op op = jinja_at(p, JINJA_TOK_ADD) ? JINJA_ADD : JINJA_SUB;
        jinja_node *right;
        MF_TRY(jinja_advance(p));
        MF_TRY(parse_concat(p, &right));
        MF_TRY(binary_node(p, JINJA_NODE_BINARY, (uint8_t)op, *out, right, out));
    }
    return MF_OK;
}

/* The comparison at the current token: its operator and how many tokens it takes; 0 = none. */
static mf_status compare_op(jinja_parser *p, jinja_compare_op *op, int *tokens)
{
    *tokens = 1;
    switch (p->token.type) {
    case JINJA_TOK_EQ: *op = JINJA_CMP_EQ; return MF_OK;
    case JINJA_TOK_NE: *op = JINJA_CMP_NE; return MF_OK;
    case JINJA_TOK_LT: *op = JINJA_CMP_LT; return MF_OK;
    case JINJA_TOK_LTEQ: *op = JINJA_CMP_LE; return MF_OK;
    case JINJA_TOK_GT: *op = JINJA_CMP_GT; return MF_OK;
    case JINJA_TOK_GTEQ: *op = JINJA_CMP_GE; return MF_OK;
    default: break;
    }
    *op = JINJA_CMP_IN;
    if (jinja_at_name(p, "in")) {
        return MF_OK;
    }
    *tokens = 0;
    if (jinja_at_name(p, "not")) {
        const jinja_token *ahead;
        MF_TRY(jinja_look(p, &ahead));
        if (jinja_token_is_name(ahead, "in")) {
            *op = JINJA_CMP_NOT_IN;
            *tokens = 2;
        }
    }
    return MF_OK;
}

static mf_status parse_compare(jinja_parser *p, jinja_node **out)
{
    jinja_nodes operands = { 0 };
    uint8_t *ops = NULL;
    uint32_t capacity = 0;
    MF_TRY(parse_sum(p, out));
    for (;;) {
        jinja_compare_op op;
        int tokens;
        MF_TRY(compare_op(p, &op, &tokens));
        if (!tokens) {
            break;
        }
        while (tokens-- > 0) {
            MF_TRY(jinja_advance(p));
        }
        jinja_node *operand;
        MF_TRY(parse_sum(p, &operand));
        if (operands.count == capacity) {
            uint8_t *grown;
            capacity = capacity ? capacity * 2 : 4;
            JINJA_PARSE_NEW(p->parse, grown, capacity);
            if (ops) {
                memcpy(grown, ops, operands.count);
            }
            ops = grown;
        }
        ops[operands.count] = (uint8_t)op;
        MF_TRY(jinja_nodes_add(p, &operands, operand));
    }
    if (!operands.count) {
        return MF_OK;
    }
    jinja_node *first = *out;
    MF_TRY(jinja_node_new(p, JINJA_NODE_COMPARE, first->line, out));
    (*out)->a = first;
    (*out)->u.list.nodes = operands.data;
    (*out)->u.list.count = operands.count;
    (*out)->u.list.ops = ops;
    return jinja_node_done(p, *out);
}

static mf_status parse_not(jinja_parser *p, jinja_node **out)
{
    if (!jinja_at_name(p, "not")) {
        return parse_compare(p, out);
    }
    jinja_node *node;
    MF_TRY(jinja_node_new(p, JINJA_NODE_NOT, p->token.line, &node));
    MF_TRY(jinja_enter(p));
    MF_TRY(jinja_advance(p));
    MF_TRY(parse_not(p, &node->a));
    p->depth--;
    *out = node;
    return jinja_node_done(p, node);
}

static mf_status parse_and(jinja_parser *p, jinja_node **out)
{
    MF_TRY(parse_not(p, out));
    while (jinja_at_name(p, "and")) {
        jinja_node *right;
        MF_TRY(jinja_advance(p));
        MF_TRY(parse_not(p, &right));
        MF_TRY(binary_node(p, JINJA_NODE_AND, 0, *out, right, out));
    }
    return MF_OK;
}

mf_status jinja_parse_or(jinja_parser *p, jinja_node **out)
{
    MF_TRY(parse_and(p, out));
    while (jinja_at_name(p, "or")) {
        jinja_node *right;
        MF_TRY(jinja_advance(p));
        MF_TRY(parse_and(p, &right));
        MF_TRY(binary_node(p, JINJA_NODE_OR, 0, *out, right, out));
    }
    return MF_OK;
}

mf_status jinja_parse_expression(jinja_parser *p, jinja_node **out)
{
    MF_TRY(jinja_enter(p));
    MF_TRY(jinja_parse_or(p, out));
    for (;;) {
        bool is_if;
        bool is_else;
        MF_TRY(jinja_skip_if_name(p, "if", &is_if));
        if (!is_if) {
            break;
        }
        jinja_node *node;
        MF_TRY(jinja_node_new(p, JINJA_NODE_COND, (*out)->line, &node));
        node->b = *out;
        MF_TRY(jinja_parse_or(p, &node->a));
        MF_TRY(jinja_skip_if_name(p, "else", &is_else));
        if (is_else) {
            MF_TRY(jinja_parse_expression(p, &node->c));
        }
        MF_TRY(jinja_node_done(p, node));
        *out = node;
    }
    p->depth--;
    return MF_OK;
}
