/* jinja_parser.c - statements: tags and text into a tree, with jinja2's grammar. */
#include "text/jinja_parser.h"

#include <stdio.h>
#include <string.h>

/* ---- messages, names ---------------------------------------------------------------------------------------------- */

mf_status jinja_parse_fail(jinja_parse *parse, mf_status status, uint32_t line, const char *fmt, ...)
{
    if (parse->err) {
        char message[sizeof parse->err->message];
        va_list args;
        va_start(args, fmt);
        vsnprintf(message, sizeof message, fmt, args);
        va_end(args);
        mf_fail(parse->err, status, "%s: line %u: %s", parse->name, line, message);
        jinja_clean_message(parse->err->message);
    }
    return status;
}

mf_status jinja_parse_no_memory(jinja_parse *parse)
{
    return mf_fail(parse->err, MF_ERR_NOMEM, "%s: out of memory while parsing the template", parse->name);
}

mf_status jinja_parse_name(jinja_parse *parse, const char *data, size_t size, jinja_name **out)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ (unsigned char)data[i]) * 16777619u;
    }
    jinja_name **bucket = &parse->names[hash & (parse->num_buckets - 1)];
    for (jinja_name *n = *bucket; n; n = n->next) {
        if (n->hash == hash && n->size == size && memcmp(n->data, data, size) == 0) {
            *out = n;
            return MF_OK;
        }
    }
    jinja_name *name;
    JINJA_PARSE_NEW(parse, name, 1);
    name->data = mf_arena_strndup(parse->arena, data, size);
    if (!name->data) {
        return jinja_parse_no_memory(parse);
    }
    name->size = size;
    name->hash = hash;
    name->next = *bucket;
    *bucket = name;
    *out = name;
    return MF_OK;
}

/* ---- the token window --------------------------------------------------------------------------------------------- */

mf_status jinja_advance(jinja_parser *p)
{
    if (p->has_ahead) {
        p->token = p->ahead;
        p->has_ahead = false;
        return MF_OK;
    }
    return jinja_lexer_next(&p->lexer, &p->token);
}

mf_status jinja_look(jinja_parser *p, const jinja_token **token)
{
    if (!p->has_ahead) {
        MF_TRY(jinja_lexer_next(&p->lexer, &p->ahead));
        p->has_ahead = true;
    }
    *token = &p->ahead;
    return MF_OK;
}

bool jinja_at(const jinja_parser *p, jinja_token_type type)
{
    return p->token.type == type;
}

bool jinja_token_is_name(const jinja_token *token, const char *name)
{
    return token->type == JINJA_TOK_NAME && strcmp(token->name->data, name) == 0;
}

bool jinja_at_name(const jinja_parser *p, const char *name)
{
    return jinja_token_is_name(&p->token, name);
}

mf_status jinja_skip_if(jinja_parser *p, jinja_token_type type, bool *skipped)
{
    *skipped = jinja_at(p, type);
    return *skipped ? jinja_advance(p) : MF_OK;
}

mf_status jinja_skip_if_name(jinja_parser *p, const char *name, bool *skipped)
{
    *skipped = jinja_at_name(p, name);
    return *skipped ? jinja_advance(p) : MF_OK;
}

mf_status jinja_unexpected(jinja_parser *p, const char *expected)
{
    const char *got = jinja_token_describe(&p->token);
    return expected ? jinja_parse_fail(p->parse, MF_ERR_FORMAT, p->token.line, "expected %s; got '%s'", expected, got)
                    : jinja_parse_fail(p->parse, MF_ERR_FORMAT, p->token.line, "unexpected '%s'", got);
}

mf_status jinja_expect(jinja_parser *p, jinja_token_type type)
{
    if (!jinja_at(p, type)) {
        char expected[64];
        snprintf(expected, sizeof expected, "'%s'", jinja_token_describe(&(jinja_token){ .type = type }));
        return jinja_unexpected(p, expected);
    }
    return jinja_advance(p);
}

mf_status jinja_expect_name(jinja_parser *p, jinja_name **name)
{
    if (!jinja_at(p, JINJA_TOK_NAME)) {
        return jinja_unexpected(p, "a name");
    }
    *name = p->token.name;
    return jinja_advance(p);
}

mf_status jinja_enter(jinja_parser *p)
{
    if (++p->depth > JINJA_MAX_NESTING) {
        return jinja_parse_fail(p->parse, MF_ERR_LIMIT, p->token.line, "the template is nested deeper than %d",
                                JINJA_MAX_NESTING);
    }
    return MF_OK;
}

/* ---- bodies ------------------------------------------------------------------------------------------------------- */

static mf_status parse_statement(jinja_parser *p, jinja_node **out);

static bool at_any_name(const jinja_parser *p, const char *const *names)
{
    for (; names && *names; names++) {
        if (jinja_at_name(p, *names)) {
            return true;
        }
    }
    return false;
}

/* Statements up to a tag whose name is in `ends`, which is left as the current token; NULL: up to the end. */
static mf_status parse_until(jinja_parser *p, const char *const *ends, jinja_body *body)
{
    jinja_nodes nodes = { 0 };
    MF_TRY(jinja_enter(p));
    for (;;) {
        jinja_node *node = NULL;
        uint32_t line = p->token.line;
        if (jinja_at(p, JINJA_TOK_EOF)) {
            if (ends) {
                return jinja_parse_fail(p->parse, MF_ERR_FORMAT, line, "unexpected end of template; expected '%s'",
                                        ends[0]);
            }
            break;
        }
        if (jinja_at(p, JINJA_TOK_DATA)) {
            MF_TRY(jinja_node_new(p, JINJA_NODE_DATA, line, &node));
            node->u.text.data = p->token.data;
            node->u.text.size = p->token.size;
            MF_TRY(jinja_advance(p));
        } else if (jinja_at(p, JINJA_TOK_VARIABLE_BEGIN)) {
            MF_TRY(jinja_node_new(p, JINJA_NODE_PRINT, line, &node));
            MF_TRY(jinja_advance(p));
            MF_TRY(jinja_parse_tuple(p, &(jinja_tuple_rules){ .simplified = false }, &node->a));
            MF_TRY(jinja_expect(p, JINJA_TOK_VARIABLE_END));
        } else {
            MF_TRY(jinja_expect(p, JINJA_TOK_BLOCK_BEGIN));
            if (at_any_name(p, ends)) {
                break;
            }
            MF_TRY(parse_statement(p, &node));
            MF_TRY(jinja_expect(p, JINJA_TOK_BLOCK_END));
        }
        MF_TRY(jinja_nodes_add(p, &nodes, node));
    }
    p->depth--;
    body->nodes = nodes.data;
    body->count = nodes.count;
    return MF_OK;
}

/* The rest of the tag, an optional colon, and the body up to one of `ends`; drop: that name is taken too. */
static mf_status parse_body(jinja_parser *p, const char *const *ends, bool drop, jinja_body *body)
{
    bool colon;
    MF_TRY(jinja_skip_if(p, JINJA_TOK_COLON, &colon));
    MF_TRY(jinja_expect(p, JINJA_TOK_BLOCK_END));
    MF_TRY(parse_until(p, ends, body));
    return drop ? jinja_advance(p) : MF_OK;
}

/* The body of a function: break and continue do not reach the loops around it. */
static mf_status parse_function_body(jinja_parser *p, const char *const *ends, jinja_body *body)
{
    int32_t loops = p->loops;
    p->loops = 0;
    MF_TRY(parse_body(p, ends, true, body));
    p->loops = loops;
    return MF_OK;
}

/* ---- tags --------------------------------------------------------------------------------------------------------- */

/* jinja2 refuses every assignment to `loop` inside a for; this looks at the targets of the tags themselves. */
static mf_status refuse_loop_target(jinja_parser *p, const jinja_node *target, int depth)
{
    if (target->kind == JINJA_NODE_NAME && p->fors > 0 && strcmp(target->u.var.name->data, "loop") == 0) {
        return jinja_parse_fail(p->parse, MF_ERR_FORMAT, target->line, "can't assign to special loop variable");
    }
    for (uint32_t i = 0; target->kind == JINJA_NODE_TUPLE && depth < JINJA_MAX_NESTING && i < target->u.list.count; i++) {
        MF_TRY(refuse_loop_target(p, target->u.list.nodes[i], depth + 1));
    }
    return MF_OK;
}

/* Names and tuples of names again: the test of a for has slots of its own. */
static mf_status copy_target(jinja_parser *p, const jinja_node *target, int depth, jinja_node **out)
{
    MF_TRY(jinja_node_new(p, (jinja_kind)target->kind, target->line, out));
    **out = *target;
    if (target->kind == JINJA_NODE_TUPLE && depth < JINJA_MAX_NESTING) {
        uint32_t count = target->u.list.count;
        JINJA_PARSE_NEW(p->parse, (*out)->u.list.nodes, count);
        for (uint32_t i = 0; i < count; i++) {
            MF_TRY(copy_target(p, target->u.list.nodes[i], depth + 1, &(*out)->u.list.nodes[i]));
        }
    }
    return MF_OK;
}

static mf_status parse_for(jinja_parser *p, jinja_node *node)
{
    static const char *const ends[] = { "endfor", "else", NULL };
    jinja_for *loop;
    bool skipped;
    JINJA_PARSE_NEW(p->parse, loop, 1);
    node->kind = JINJA_NODE_FOR;
    node->u.loop = loop;
    MF_TRY(jinja_advance(p));
    MF_TRY(jinja_parse_target(p, false, JINJA_STORE, &node->a));
    if (!jinja_at_name(p, "in")) {
        return jinja_unexpected(p, "'in'");
    }
    MF_TRY(jinja_advance(p));
    MF_TRY(jinja_parse_tuple(p, &(jinja_tuple_rules){ .no_cond = true }, &node->b));
    MF_TRY(jinja_skip_if_name(p, "if", &skipped));
    if (skipped) {
        MF_TRY(jinja_parse_expression(p, &loop->test));
        MF_TRY(copy_target(p, node->a, 0, &loop->test_target));
    }
    MF_TRY(jinja_skip_if_name(p, "recursive", &loop->recursive));
    int32_t loops = p->loops;
    p->loops = loop->recursive ? 1 : loops + 1;
    p->fors++;
    MF_TRY(refuse_loop_target(p, node->a, 0));
    MF_TRY(parse_body(p, ends, false, &loop->body));
    p->loops = loop->recursive ? 0 : loops;
    bool has_else = jinja_at_name(p, "else");
    MF_TRY(jinja_advance(p));
    if (has_else) {
        MF_TRY(parse_body(p, (const char *const[]){ "endfor", NULL }, true, &loop->else_body));
    }
    p->loops = loops;
    p->fors--;
    return MF_OK;
}

static mf_status parse_if(jinja_parser *p, jinja_node *node)
{
    static const char *const ends[] = { "elif", "else", "endif", NULL };
    jinja_nodes elifs = { 0 };
    jinja_node *branch = node;
    MF_TRY(jinja_advance(p));
    for (;;) {
        branch->kind = JINJA_NODE_IF;
        MF_TRY(jinja_parse_tuple(p, &(jinja_tuple_rules){ .no_cond = true }, &branch->a));
        MF_TRY(parse_body(p, ends, false, &branch->u.cond.body));
        bool is_elif = jinja_at_name(p, "elif");
        bool is_else = jinja_at_name(p, "else");
        MF_TRY(jinja_advance(p));
        if (!is_elif) {
            if (is_else) {
                MF_TRY(parse_body(p, (const char *const[]){ "endif", NULL }, true, &node->u.cond.else_body));
            }
            break;
        }
        MF_TRY(jinja_node_new(p, JINJA_NODE_IF, p->token.line, &branch));
        MF_TRY(jinja_nodes_add(p, &elifs, branch));
    }
    node->u.cond.elifs = elifs.data;
    node->u.cond.num_elifs = elifs.count;
    return MF_OK;
}

static mf_status parse_set(jinja_parser *p, jinja_node *node)
{
    bool assign;
    MF_TRY(jinja_advance(p));
    MF_TRY(jinja_parse_target(p, true, JINJA_STORE, &node->a));
    MF_TRY(refuse_loop_target(p, node->a, 0));
    MF_TRY(jinja_skip_if(p, JINJA_TOK_ASSIGN, &assign));
    if (assign) {
        node->kind = JINJA_NODE_SET;
        return jinja_parse_tuple(p, &(jinja_tuple_rules){ .simplified = false }, &node->b);
    }
    node->kind = JINJA_NODE_SET_BLOCK;
    JINJA_PARSE_NEW(p->parse, node->u.capture, 1);
    MF_TRY(jinja_parse_filters(p, NULL, false, &node->u.capture->filter));
    return parse_body(p, (const char *const[]){ "endset", NULL }, true, &node->u.capture->body);
}

static mf_status parse_filter_block(jinja_parser *p, jinja_node *node)
{
    node->kind = JINJA_NODE_FILTER_BLOCK;
    JINJA_PARSE_NEW(p->parse, node->u.capture, 1);
    MF_TRY(jinja_advance(p));
    MF_TRY(jinja_parse_filters(p, NULL, true, &node->u.capture->filter));
    return parse_body(p, (const char *const[]){ "endfilter", NULL }, true, &node->u.capture->body);
}

/* (a, b=1) */
static mf_status parse_signature(jinja_parser *p, jinja_function *function)
{
    jinja_nodes params = { 0 };
    jinja_nodes defaults = { 0 };
    MF_TRY(jinja_expect(p, JINJA_TOK_LPAREN));
    while (!jinja_at(p, JINJA_TOK_RPAREN)) {
        if (params.count) {
            MF_TRY(jinja_expect(p, JINJA_TOK_COMMA));
        }
        jinja_node *param;
        bool assign;
        MF_TRY(jinja_parse_target_name(p, JINJA_PARAM, &param));
        for (uint32_t i = 0; i < params.count; i++) {
            if (params.data[i]->u.var.name == param->u.var.name) {
                return jinja_parse_fail(p->parse, MF_ERR_FORMAT, param->line, "duplicate argument '%s'",
                                        param->u.var.name->data);
            }
        }
        if (params.count >= 255) {
            return jinja_parse_fail(p->parse, MF_ERR_LIMIT, param->line, "more than 255 parameters");
        }
        MF_TRY(jinja_skip_if(p, JINJA_TOK_ASSIGN, &assign));
        if (assign) {
            jinja_node *value;
            MF_TRY(jinja_parse_expression(p, &value));
            MF_TRY(jinja_nodes_add(p, &defaults, value));
        } else if (defaults.count) {
            return jinja_parse_fail(p->parse, MF_ERR_FORMAT, param->line,
                                    "non-default argument follows default argument");
        }
        MF_TRY(jinja_nodes_add(p, &params, param));
    }
    function->params = params.data;
    function->num_params = params.count;
    function->defaults = defaults.data;
    function->num_defaults = defaults.count;
    return jinja_expect(p, JINJA_TOK_RPAREN);
}

static mf_status parse_macro(jinja_parser *p, jinja_node *node)
{
    jinja_function *function;
    JINJA_PARSE_NEW(p->parse, function, 1);
    node->kind = JINJA_NODE_MACRO;
    node->u.function = function;
    MF_TRY(jinja_advance(p));
    MF_TRY(jinja_parse_target_name(p, JINJA_STORE, &node->a));
    const jinja_name *name = node->a->u.var.name;
    MF_TRY(jinja_const_str(p, name->data, name->size, &function->name));
    MF_TRY(parse_signature(p, function));
    return parse_function_body(p, (const char *const[]){ "endmacro", NULL }, &function->body);
}

static mf_status parse_call_block(jinja_parser *p, jinja_node *node)
{
    jinja_function *function;
    JINJA_PARSE_NEW(p->parse, function, 1);
    node->kind = JINJA_NODE_CALL_BLOCK;
    node->u.function = function;
    MF_TRY(jinja_advance(p));
    if (jinja_at(p, JINJA_TOK_LPAREN)) {
        MF_TRY(parse_signature(p, function));
    }
    MF_TRY(jinja_parse_expression(p, &node->a));
    if (node->a->kind != JINJA_NODE_CALL) {
        return jinja_parse_fail(p->parse, MF_ERR_FORMAT, node->line, "expected a call after 'call'");
    }
    return parse_function_body(p, (const char *const[]){ "endcall", NULL }, &function->body);
}

/* {% generation %} marks what the assistant wrote; the text is the body's. */
static mf_status parse_generation(jinja_parser *p, jinja_node *node)
{
    node->kind = JINJA_NODE_GENERATION;
    JINJA_PARSE_NEW(p->parse, node->u.function, 1);
    MF_TRY(jinja_advance(p));
    return parse_function_body(p, (const char *const[]){ "endgeneration", NULL }, &node->u.function->body);
}

static mf_status parse_with(jinja_parser *p, jinja_node *node)
{
    jinja_with *with;
    jinja_nodes targets = { 0 };
    jinja_nodes values = { 0 };
    JINJA_PARSE_NEW(p->parse, with, 1);
    node->kind = JINJA_NODE_WITH;
    node->u.with = with;
    MF_TRY(jinja_advance(p));
    while (!jinja_at(p, JINJA_TOK_BLOCK_END)) {
        jinja_node *target;
        jinja_node *value;
        if (targets.count) {
            MF_TRY(jinja_expect(p, JINJA_TOK_COMMA));
        }
        MF_TRY(jinja_parse_target(p, false, JINJA_PARAM, &target));
        MF_TRY(jinja_expect(p, JINJA_TOK_ASSIGN));
        MF_TRY(jinja_parse_expression(p, &value));
        MF_TRY(jinja_nodes_add(p, &targets, target));
        MF_TRY(jinja_nodes_add(p, &values, value));
    }
    with->targets = targets.data;
    with->values = values.data;
    with->count = targets.count;
    return parse_body(p, (const char *const[]){ "endwith", NULL }, true, &with->body);
}

/* {% print a, b %}: each on its own, wrapped so that one tag stays one statement. */
static mf_status parse_print(jinja_parser *p, jinja_node *node)
{
    jinja_nodes parts = { 0 };
    MF_TRY(jinja_advance(p));
    while (!jinja_at(p, JINJA_TOK_BLOCK_END)) {
        jinja_node *part;
        jinja_node *value;
        if (parts.count) {
            MF_TRY(jinja_expect(p, JINJA_TOK_COMMA));
        }
        MF_TRY(jinja_parse_expression(p, &value));
        MF_TRY(jinja_node_new(p, JINJA_NODE_PRINT, node->line, &part));
        part->a = value;
        MF_TRY(jinja_nodes_add(p, &parts, part));
    }
    node->kind = JINJA_NODE_IF;
    MF_TRY(jinja_node_new(p, JINJA_NODE_CONST, node->line, &node->a));
    node->a->value = jinja_bool(true);
    node->u.cond.body = (jinja_body){ parts.data, parts.count };
    return MF_OK;
}

static mf_status parse_loop_control(jinja_parser *p, jinja_node *node)
{
    node->kind = jinja_at_name(p, "break") ? JINJA_NODE_BREAK : JINJA_NODE_CONTINUE;
    if (p->loops == 0) {
        return jinja_parse_fail(p->parse, MF_ERR_FORMAT, node->line, "'%s' outside of a loop", p->token.name->data);
    }
    return jinja_advance(p);
}

static mf_status parse_statement(jinja_parser *p, jinja_node **out)
{
    static const struct {
        const char *name;
        mf_status (*parse)(jinja_parser *, jinja_node *);
    } tags[] = {
        { "for", parse_for },           { "if", parse_if },     { "set", parse_set },
        { "macro", parse_macro },       { "call", parse_call_block }, { "filter", parse_filter_block },
        { "with", parse_with },         { "print", parse_print }, { "generation", parse_generation },
        { "break", parse_loop_control }, { "continue", parse_loop_control },
    };
    static const char *const unsupported[] = { "block", "extends", "include", "import", "from", "autoescape", NULL };
    if (!jinja_at(p, JINJA_TOK_NAME)) {
        return jinja_unexpected(p, "the name of a tag");
    }
    MF_TRY(jinja_node_new(p, JINJA_NODE_DATA, p->token.line, out));
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        if (jinja_at_name(p, tags[i].name)) {
            return tags[i].parse(p, *out);
        }
    }
    if (at_any_name(p, unsupported)) {
        return jinja_parse_fail(p->parse, MF_ERR_UNSUPPORTED, p->token.line, "tag '%s' is not supported",
                                p->token.name->data);
    }
    return jinja_parse_fail(p->parse, MF_ERR_FORMAT, p->token.line, "unknown tag '%s'", p->token.name->data);
}

mf_status jinja_parse_program(jinja_parse *parse, const char *source, size_t size, jinja_program *program)
{
    jinja_parser p = { .parse = parse };
    MF_TRY(jinja_lexer_open(&p.lexer, parse, source, size));
    MF_TRY(jinja_advance(&p));
    MF_TRY(parse_until(&p, NULL, &program->body));
    return jinja_assign_slots(parse, program);
}
