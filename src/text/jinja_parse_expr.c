/* jinja_parse_expr.c - what expressions are made of: names, literals, calls, filters, tests, subscripts.  The operators
 * between them are in jinja_parse_operators.c. */
#include <string.h>

#include "text/jinja_parser.h"

/* ---- nodes -------------------------------------------------------------------------------------------------------- */

mf_status jinja_node_new(jinja_parser *p, jinja_kind kind, uint32_t line, jinja_node **out)
{
    JINJA_PARSE_NEW(p->parse, *out, 1);
    (*out)->kind = (uint8_t)kind;
    (*out)->line = line;
    return MF_OK;
}

static void grow(uint16_t *height, const jinja_node *child)
{
    if (child && child->height > *height) {
        *height = child->height;
    }
}

mf_status jinja_node_done(jinja_parser *p, jinja_node *node)
{
    uint16_t height = 0;
    grow(&height, node->a);
    grow(&height, node->b);
    grow(&height, node->c);
    grow(&height, node->d);
    switch (node->kind) {
    case JINJA_NODE_TUPLE:
    case JINJA_NODE_LIST:
    case JINJA_NODE_DICT:
    case JINJA_NODE_CONCAT:
    case JINJA_NODE_COMPARE:
        for (uint32_t i = 0; i < node->u.list.count; i++) {
            grow(&height, node->u.list.nodes[i]);
        }
        break;
    case JINJA_NODE_CALL:
    case JINJA_NODE_FILTER:
    case JINJA_NODE_TEST: {
        const jinja_call_args *args = node->u.call.args;
        for (uint32_t i = 0; args && i < args->num_pos; i++) {
            grow(&height, args->pos[i]);
        }
        for (uint32_t i = 0; args && i < args->num_kw; i++) {
            grow(&height, args->kw_values[i]);
        }
        if (args) {
            grow(&height, args->dyn_args);
            grow(&height, args->dyn_kwargs);
        }
        break;
    }
    default: break;
    }
    node->height = (uint16_t)(height + 1);
    if (node->height > JINJA_MAX_TREE_HEIGHT) {
        return jinja_parse_fail(p->parse, MF_ERR_LIMIT, node->line, "an expression is nested deeper than %d",
                                JINJA_MAX_TREE_HEIGHT);
    }
    return MF_OK;
}

mf_status jinja_nodes_add(jinja_parser *p, jinja_nodes *nodes, jinja_node *node)
{
    if (nodes->count == nodes->capacity) {
        uint32_t capacity = nodes->capacity ? nodes->capacity * 2 : 4;
        jinja_node **data;
        JINJA_PARSE_NEW(p->parse, data, capacity);
        if (nodes->count) {
            memcpy(data, nodes->data, nodes->count * sizeof *data);
        }
        nodes->data = data;
        nodes->capacity = capacity;
    }
    nodes->data[nodes->count++] = node;
    return MF_OK;
}

/* Constants count their characters now: rendering must not write to them. */
mf_status jinja_const_str(jinja_parser *p, const char *data, size_t size, jinja_value *out)
{
    jinja_str *s;
    JINJA_PARSE_NEW(p->parse, s, 1);
    *s = (jinja_str){ .data = data, .size = size, .chars = -1 };
    jinja_str_chars(s);
    *out = (jinja_value){ .type = JINJA_STR, .as.s = s };
    return MF_OK;
}

mf_status jinja_list_node(jinja_parser *p, jinja_kind kind, uint32_t line, const jinja_nodes *nodes, jinja_node **out)
{
    MF_TRY(jinja_node_new(p, kind, line, out));
    (*out)->u.list.nodes = nodes->data;
    (*out)->u.list.count = nodes->count;
    return jinja_node_done(p, *out);
}

/* ---- names, literals ---------------------------------------------------------------------------------------------- */

static mf_status parse_list(jinja_parser *p, jinja_node **out)
{
    uint32_t line = p->token.line;
    jinja_nodes items = { 0 };
    MF_TRY(jinja_advance(p));
    while (!jinja_at(p, JINJA_TOK_RBRACKET)) {
        if (items.count) {
            MF_TRY(jinja_expect(p, JINJA_TOK_COMMA));
            if (jinja_at(p, JINJA_TOK_RBRACKET)) {
                break;
            }
        }
        jinja_node *item;
        MF_TRY(jinja_parse_expression(p, &item));
        MF_TRY(jinja_nodes_add(p, &items, item));
    }
    MF_TRY(jinja_expect(p, JINJA_TOK_RBRACKET));
    return jinja_list_node(p, JINJA_NODE_LIST, line, &items, out);
}

static mf_status parse_dict(jinja_parser *p, jinja_node **out)
{
    uint32_t line = p->token.line;
    jinja_nodes items = { 0 };
    MF_TRY(jinja_advance(p));
    while (!jinja_at(p, JINJA_TOK_RBRACE)) {
        if (items.count) {
            MF_TRY(jinja_expect(p, JINJA_TOK_COMMA));
            if (jinja_at(p, JINJA_TOK_RBRACE)) {
                break;
            }
        }
        jinja_node *item;
        MF_TRY(jinja_parse_expression(p, &item));
        MF_TRY(jinja_nodes_add(p, &items, item));
        MF_TRY(jinja_expect(p, JINJA_TOK_COLON));
        MF_TRY(jinja_parse_expression(p, &item));
        MF_TRY(jinja_nodes_add(p, &items, item));
    }
    MF_TRY(jinja_expect(p, JINJA_TOK_RBRACE));
    return jinja_list_node(p, JINJA_NODE_DICT, line, &items, out);
}

static mf_status parse_string(jinja_parser *p, jinja_node **out)
{
    MF_TRY(jinja_node_new(p, JINJA_NODE_CONST, p->token.line, out));
    const char *data = p->token.data;
    size_t size = p->token.size;
    size_t capacity = 0; /* 0: data is the token's */
    MF_TRY(jinja_advance(p));
    while (jinja_at(p, JINJA_TOK_STRING)) {
        size_t joined = size + p->token.size;
        if (joined > capacity) {
            char *grown;
            JINJA_PARSE_NEW(p->parse, grown, joined * 2);
            memcpy(grown, data, size);
            data = grown;
            capacity = joined * 2;
        }
        if (p->token.size) {
            memcpy((char *)data + size, p->token.data, p->token.size);
        }
        size = joined;
        MF_TRY(jinja_advance(p));
    }
    MF_TRY(jinja_const_str(p, data, size, &(*out)->value));
    return jinja_node_done(p, *out);
}

static mf_status parse_name(jinja_parser *p, bool namespaces, jinja_node **out)
{
    jinja_name *name = p->token.name;
    uint32_t line = p->token.line;
    bool is_true = jinja_at_name(p, "true") || jinja_at_name(p, "True");
    bool is_false = jinja_at_name(p, "false") || jinja_at_name(p, "False");
    bool is_none = jinja_at_name(p, "none") || jinja_at_name(p, "None");
    MF_TRY(jinja_advance(p));
    if (is_true || is_false || is_none) {
        MF_TRY(jinja_node_new(p, JINJA_NODE_CONST, line, out));
        (*out)->value = is_none ? jinja_none() : jinja_bool(is_true);
        return jinja_node_done(p, *out);
    }
    if (namespaces && jinja_at(p, JINJA_TOK_DOT)) {
        jinja_name *attr;
        MF_TRY(jinja_advance(p));
        MF_TRY(jinja_expect_name(p, &attr));
        MF_TRY(jinja_node_new(p, JINJA_NODE_NSREF, line, out));
        (*out)->u.var.name = name;
        MF_TRY(jinja_const_str(p, attr->data, attr->size, &(*out)->value));
        return jinja_node_done(p, *out);
    }
    MF_TRY(jinja_node_new(p, JINJA_NODE_NAME, line, out));
    (*out)->u.var.name = name;
    (*out)->ctx = JINJA_LOAD;
    return jinja_node_done(p, *out);
}

static mf_status parse_primary(jinja_parser *p, bool namespaces, jinja_node **out)
{
    const jinja_token *t = &p->token;
    switch (t->type) {
    case JINJA_TOK_NAME: return parse_name(p, namespaces, out);
    case JINJA_TOK_STRING: return parse_string(p, out);
    case JINJA_TOK_INTEGER:
    case JINJA_TOK_FLOAT:
        MF_TRY(jinja_node_new(p, JINJA_NODE_CONST, t->line, out));
        (*out)->value = t->type == JINJA_TOK_INTEGER ? jinja_int(t->integer) : jinja_float(t->real);
        MF_TRY(jinja_node_done(p, *out));
        return jinja_advance(p);
    case JINJA_TOK_LPAREN:
        MF_TRY(jinja_enter(p));
        MF_TRY(jinja_advance(p));
        MF_TRY(jinja_parse_tuple(p, &(jinja_tuple_rules){ .parentheses = true }, out));
        p->depth--;
        return jinja_expect(p, JINJA_TOK_RPAREN);
    case JINJA_TOK_LBRACKET: return parse_list(p, out);
    case JINJA_TOK_LBRACE: return parse_dict(p, out);
    default: return jinja_unexpected(p, NULL);
    }
}

static bool tuple_ends(const jinja_parser *p)
{
    return jinja_at(p, JINJA_TOK_VARIABLE_END) || jinja_at(p, JINJA_TOK_BLOCK_END) || jinja_at(p, JINJA_TOK_RPAREN);
}

mf_status jinja_parse_tuple(jinja_parser *p, const jinja_tuple_rules *rules, jinja_node **out)
{
    uint32_t line = p->token.line;
    jinja_nodes items = { 0 };
    bool is_tuple = false;
    for (;;) {
        if (items.count) {
            MF_TRY(jinja_expect(p, JINJA_TOK_COMMA));
        }
        if (tuple_ends(p)) {
            break;
        }
        jinja_node *item;
        if (rules->simplified) {
            MF_TRY(parse_primary(p, rules->namespaces, &item));
        } else if (rules->no_cond) {
            MF_TRY(jinja_parse_or(p, &item));
        } else {
            MF_TRY(jinja_parse_expression(p, &item));
        }
        MF_TRY(jinja_nodes_add(p, &items, item));
        if (!jinja_at(p, JINJA_TOK_COMMA)) {
            break;
        }
        is_tuple = true;
    }
    if (!is_tuple) {
        if (items.count) {
            *out = items.data[0];
            return MF_OK;
        }
        if (!rules->parentheses) {
            return jinja_unexpected(p, "an expression");
        }
    }
    return jinja_list_node(p, JINJA_NODE_TUPLE, line, &items, out);
}

/* ---- targets ------------------------------------------------------------------------------------------------------ */

static mf_status set_ctx(jinja_parser *p, jinja_node *node, jinja_ctx ctx, int depth)
{
    if (node->kind == JINJA_NODE_NAME) {
        node->ctx = (uint8_t)ctx;
        return MF_OK;
    }
    if (node->kind == JINJA_NODE_TUPLE && depth < JINJA_MAX_NESTING) {
        for (uint32_t i = 0; i < node->u.list.count; i++) {
            MF_TRY(set_ctx(p, node->u.list.nodes[i], ctx, depth + 1));
        }
        return MF_OK;
    }
    if (node->kind == JINJA_NODE_NSREF) {
        return MF_OK;
    }
    return jinja_parse_fail(p->parse, MF_ERR_FORMAT, node->line, "can't assign to this expression");
}

mf_status jinja_parse_target(jinja_parser *p, bool namespaces, jinja_ctx ctx, jinja_node **out)
{
    jinja_tuple_rules rules = { .simplified = true, .namespaces = namespaces };
    MF_TRY(jinja_parse_tuple(p, &rules, out));
    return set_ctx(p, *out, ctx, 0);
}

mf_status jinja_parse_target_name(jinja_parser *p, jinja_ctx ctx, jinja_node **out)
{
    if (!jinja_at(p, JINJA_TOK_NAME)) {
        return jinja_unexpected(p, "a name");
    }
    MF_TRY(parse_name(p, false, out));
    return set_ctx(p, *out, ctx, 0);
}

/* ---- calls, filters, tests ---------------------------------------------------------------------------------------- */

static mf_status add_keyword(jinja_parser *p, jinja_call_args *args, jinja_nodes *values, jinja_items *names)
{
    jinja_name *name = p->token.name;
    uint32_t line = p->token.line;
    for (uint32_t i = 0; i < values->count; i++) {
        if (names->data[i].as.s->data == name->data) {
            return jinja_parse_fail(p->parse, MF_ERR_FORMAT, line, "keyword argument repeated: %s", name->data);
        }
    }
    if (values->count >= 255) {
        return jinja_parse_fail(p->parse, MF_ERR_LIMIT, line, "more than 255 keyword arguments");
    }
    jinja_node *value;
    MF_TRY(jinja_advance(p));
    MF_TRY(jinja_advance(p));
    MF_TRY(jinja_parse_expression(p, &value));
    MF_TRY(jinja_nodes_add(p, values, value));
    if (names->count == names->capacity) {
        size_t capacity = names->capacity ? names->capacity * 2 : 4;
        jinja_value *data;
        JINJA_PARSE_NEW(p->parse, data, capacity);
        if (names->count) {
            memcpy(data, names->data, names->count * sizeof *data);
        }
        names->data = data;
        names->capacity = capacity;
    }
    MF_TRY(jinja_const_str(p, name->data, name->size, &names->data[names->count++]));
    args->kw_values = values->data;
    args->kw_names = names->data;
    args->num_kw = values->count;
    return MF_OK;
}

static mf_status parse_args(jinja_parser *p, jinja_call_args **out)
{
    jinja_call_args *args;
    jinja_nodes pos = { 0 };
    jinja_nodes kw = { 0 };
    jinja_items names = { 0 };
    JINJA_PARSE_NEW(p->parse, args, 1);
    uint32_t line = p->token.line;
    bool comma = false;
    MF_TRY(jinja_expect(p, JINJA_TOK_LPAREN));
    while (!jinja_at(p, JINJA_TOK_RPAREN)) {
        if (comma) {
            MF_TRY(jinja_expect(p, JINJA_TOK_COMMA));
            if (jinja_at(p, JINJA_TOK_RPAREN)) {
                break;
            }
        }
        comma = true;
        const jinja_token *ahead;
        bool keyword = false;
        if (jinja_at(p, JINJA_TOK_NAME)) {
            MF_TRY(jinja_look(p, &ahead));
            keyword = ahead->type == JINJA_TOK_ASSIGN;
        }
        bool star = jinja_at(p, JINJA_TOK_MUL);
        bool stars = jinja_at(p, JINJA_TOK_POW);
        bool after_stars = args->dyn_kwargs != NULL;
        bool after_star = args->dyn_args != NULL;
        if (after_stars || (after_star && !keyword && !stars) || (args->num_kw && !keyword && !star && !stars)) {
            return jinja_parse_fail(p->parse, MF_ERR_FORMAT, line, "invalid order of arguments in a call");
        }
        if (star || stars) {
            MF_TRY(jinja_advance(p));
            MF_TRY(jinja_parse_expression(p, star ? &args->dyn_args : &args->dyn_kwargs));
        } else if (keyword) {
            MF_TRY(add_keyword(p, args, &kw, &names));
        } else {
            jinja_node *value;
            MF_TRY(jinja_parse_expression(p, &value));
            MF_TRY(jinja_nodes_add(p, &pos, value));
        }
    }
    MF_TRY(jinja_expect(p, JINJA_TOK_RPAREN));
    args->pos = pos.data;
    args->num_pos = pos.count;
    *out = args;
    return MF_OK;
}

static mf_status parse_call(jinja_parser *p, jinja_node *callee, jinja_node **out)
{
    MF_TRY(jinja_node_new(p, JINJA_NODE_CALL, p->token.line, out));
    (*out)->a = callee;
    MF_TRY(parse_args(p, &(*out)->u.call.args));
    return jinja_node_done(p, *out);
}

static mf_status find_builtin(jinja_parser *p, jinja_node *node, const char *what, const jinja_name *name)
{
    MF_TRY(jinja_const_str(p, name->data, name->size, &node->value));
    node->u.call.builtin = node->kind == JINJA_NODE_FILTER ? jinja_filter_find(name->data, name->size)
                                                           : jinja_test_find(name->data, name->size);
    if (node->u.call.builtin && !node->u.call.builtin->fn) {
        return jinja_parse_fail(p->parse, MF_ERR_UNSUPPORTED, node->line, "%s '%s' is not supported", what, name->data);
    }
    return MF_OK;
}

/* A filter name with dots is never one of ours; jinja2 joins the parts before looking it up. */
static mf_status dotted_name(jinja_parser *p, jinja_name **name)
{
    MF_TRY(jinja_expect_name(p, name));
    if (jinja_at(p, JINJA_TOK_DOT)) {
        return jinja_parse_fail(p->parse, MF_ERR_UNSUPPORTED, p->token.line, "'%s.' is not a known filter or test",
                                (*name)->data);
    }
    return MF_OK;
}

mf_status jinja_parse_filters(jinja_parser *p, jinja_node *input, bool inside, jinja_node **out)
{
    *out = input;
    while (inside || jinja_at(p, JINJA_TOK_PIPE)) {
        if (!inside) {
            MF_TRY(jinja_advance(p));
        }
        inside = false;
        jinja_node *node;
        jinja_name *name;
        MF_TRY(jinja_node_new(p, JINJA_NODE_FILTER, p->token.line, &node));
        MF_TRY(dotted_name(p, &name));
        node->a = *out;
        MF_TRY(find_builtin(p, node, "filter", name));
        if (jinja_at(p, JINJA_TOK_LPAREN)) {
            MF_TRY(parse_args(p, &node->u.call.args));
        }
        MF_TRY(jinja_node_done(p, node));
        *out = node;
    }
    return MF_OK;
}

static mf_status parse_postfix(jinja_parser *p, jinja_node **node);

static bool starts_test_argument(const jinja_parser *p)
{
    switch (p->token.type) {
    case JINJA_TOK_NAME: return !jinja_at_name(p, "else") && !jinja_at_name(p, "or") && !jinja_at_name(p, "and");
    case JINJA_TOK_STRING:
    case JINJA_TOK_INTEGER:
    case JINJA_TOK_FLOAT:
    case JINJA_TOK_LBRACKET:
    case JINJA_TOK_LBRACE: return true;
    default: return false;
    }
}

static mf_status parse_test(jinja_parser *p, jinja_node *value, jinja_node **out)
{
    bool negated;
    jinja_node *node;
    jinja_name *name;
    MF_TRY(jinja_node_new(p, JINJA_NODE_TEST, p->token.line, &node));
    MF_TRY(jinja_advance(p));
    MF_TRY(jinja_skip_if_name(p, "not", &negated));
    MF_TRY(dotted_name(p, &name));
    node->a = value;
    MF_TRY(find_builtin(p, node, "test", name));
    if (jinja_at(p, JINJA_TOK_LPAREN)) {
        MF_TRY(parse_args(p, &node->u.call.args));
    } else if (starts_test_argument(p)) {
        if (jinja_at_name(p, "is")) {
            return jinja_parse_fail(p->parse, MF_ERR_FORMAT, p->token.line, "you cannot chain multiple tests with is");
        }
        jinja_node *argument;
        jinja_nodes one = { 0 };
        MF_TRY(parse_primary(p, false, &argument));
        MF_TRY(parse_postfix(p, &argument));
        MF_TRY(jinja_nodes_add(p, &one, argument));
        JINJA_PARSE_NEW(p->parse, node->u.call.args, 1);
        node->u.call.args->pos = one.data;
        node->u.call.args->num_pos = 1;
    }
    MF_TRY(jinja_node_done(p, node));
    *out = node;
    if (negated) {
        MF_TRY(jinja_node_new(p, JINJA_NODE_NOT, node->line, out));
        (*out)->a = node;
        return jinja_node_done(p, *out);
    }
    return MF_OK;
}

/* ---- subscripts --------------------------------------------------------------------------------------------------- */

static bool slice_part_ends(const jinja_parser *p)
{
    return jinja_at(p, JINJA_TOK_COLON) || jinja_at(p, JINJA_TOK_RBRACKET) || jinja_at(p, JINJA_TOK_COMMA);
}

/* What stands between the brackets: an index, or a slice, which comes back as a SLICE node without its object. */
static mf_status parse_subscribed(jinja_parser *p, jinja_node **out)
{
    uint32_t line = p->token.line;
    jinja_node *start = NULL;
    if (!jinja_at(p, JINJA_TOK_COLON)) {
        MF_TRY(jinja_parse_expression(p, &start));
        if (!jinja_at(p, JINJA_TOK_COLON)) {
            *out = start;
            return MF_OK;
        }
    }
    MF_TRY(jinja_node_new(p, JINJA_NODE_SLICE, line, out));
    (*out)->b = start;
    MF_TRY(jinja_advance(p));
    if (!slice_part_ends(p)) {
        MF_TRY(jinja_parse_expression(p, &(*out)->c));
    }
    bool colon;
    MF_TRY(jinja_skip_if(p, JINJA_TOK_COLON, &colon));
    if (colon && !jinja_at(p, JINJA_TOK_RBRACKET) && !jinja_at(p, JINJA_TOK_COMMA)) {
        MF_TRY(jinja_parse_expression(p, &(*out)->d));
    }
    return MF_OK;
}

static mf_status parse_subscript(jinja_parser *p, jinja_node **node)
{
    uint32_t line = p->token.line;
    jinja_node *out;
    if (jinja_at(p, JINJA_TOK_DOT)) {
        MF_TRY(jinja_advance(p));
        if (jinja_at(p, JINJA_TOK_NAME)) {
            MF_TRY(jinja_node_new(p, JINJA_NODE_GETATTR, line, &out));
            MF_TRY(jinja_const_str(p, p->token.name->data, p->token.name->size, &out->value));
        } else if (jinja_at(p, JINJA_TOK_INTEGER)) {
            MF_TRY(jinja_node_new(p, JINJA_NODE_GETITEM, line, &out));
            MF_TRY(jinja_node_new(p, JINJA_NODE_CONST, line, &out->b));
            out->b->value = jinja_int(p->token.integer);
            MF_TRY(jinja_node_done(p, out->b));
        } else {
            return jinja_unexpected(p, "a name or a number");
        }
        MF_TRY(jinja_advance(p));
        out->a = *node;
        *node = out;
        return jinja_node_done(p, out);
    }
    jinja_nodes items = { 0 };
    MF_TRY(jinja_expect(p, JINJA_TOK_LBRACKET));
    while (!jinja_at(p, JINJA_TOK_RBRACKET)) {
        if (items.count) {
            MF_TRY(jinja_expect(p, JINJA_TOK_COMMA));
        }
        jinja_node *item;
        MF_TRY(parse_subscribed(p, &item));
        MF_TRY(jinja_nodes_add(p, &items, item));
    }
    MF_TRY(jinja_expect(p, JINJA_TOK_RBRACKET));
    bool is_slice = items.count == 1 && items.data[0]->kind == JINJA_NODE_SLICE && !items.data[0]->a;
    for (uint32_t i = 0; !is_slice && i < items.count; i++) {
        if (items.data[i]->kind == JINJA_NODE_SLICE && !items.data[i]->a) {
            return jinja_parse_fail(p->parse, MF_ERR_FORMAT, line, "a slice cannot be part of a tuple");
        }
    }
    if (is_slice) {
        out = items.data[0];
    } else {
        MF_TRY(jinja_node_new(p, JINJA_NODE_GETITEM, line, &out));
        if (items.count == 1) {
            out->b = items.data[0];
        } else {
            MF_TRY(jinja_list_node(p, JINJA_NODE_TUPLE, line, &items, &out->b));
        }
    }
    out->a = *node;
    *node = out;
    return jinja_node_done(p, out);
}

static mf_status parse_postfix(jinja_parser *p, jinja_node **node)
{
    for (;;) {
        if (jinja_at(p, JINJA_TOK_DOT) || jinja_at(p, JINJA_TOK_LBRACKET)) {
            MF_TRY(parse_subscript(p, node));
        } else if (jinja_at(p, JINJA_TOK_LPAREN)) {
            MF_TRY(parse_call(p, *node, node));
        } else {
            return MF_OK;
        }
    }
}

/* ---- an operand with its sign and filters ------------------------------------------------------------------------- */

mf_status jinja_parse_unary(jinja_parser *p, bool with_filter, jinja_node **out)
{
    bool negative = jinja_at(p, JINJA_TOK_SUB);
    if (negative || jinja_at(p, JINJA_TOK_ADD)) {
        jinja_node *node;
        MF_TRY(jinja_node_new(p, negative ? JINJA_NODE_NEG : JINJA_NODE_POS, p->token.line, &node));
        MF_TRY(jinja_enter(p));
        MF_TRY(jinja_advance(p));
        MF_TRY(jinja_parse_unary(p, false, &node->a));
        p->depth--;
        MF_TRY(jinja_node_done(p, node));
        *out = node;
    } else {
        MF_TRY(parse_primary(p, false, out));
    }
    MF_TRY(parse_postfix(p, out));
    while (with_filter) {
        if (jinja_at(p, JINJA_TOK_PIPE)) {
            MF_TRY(jinja_parse_filters(p, *out, false, out));
        } else if (jinja_at_name(p, "is")) {
            MF_TRY(parse_test(p, *out, out));
        } else if (jinja_at(p, JINJA_TOK_LPAREN)) {
            MF_TRY(parse_call(p, *out, out));
        } else {
            break;
        }
    }
    return MF_OK;
}
