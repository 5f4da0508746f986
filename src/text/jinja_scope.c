/* jinja_scope.c - gives every variable of a template its slot, by the rules of jinja2's compiler.
 *
 * jinja2 turns a template into nested Python functions (the template, macros, call blocks, recursive loops, the test of
 * a for) whose local variables are named by nesting level and name.  A scope (the template, a for's body, a with ...)
 * says what each name it mentions starts as: the render's variable, the outer scope's value, or nothing.  The same is
 * done here with slots instead of Python variables, so that what a loop sets stays in the loop, what an if sets does
 * not, and a macro sees what its surroundings set later. */
#include <string.h>

#include "text/jinja_ast.h"

typedef struct function_state {
    struct function_state *outer;
    uint32_t depth, num_slots;
    struct jinja_slot *slots;
} function_state;

/* One Python variable: (function, level, name). */
typedef struct jinja_slot {
    jinja_name *name;
    function_state *function;
    uint32_t level, number;
    struct jinja_slot *below; /* of the same name */
    struct jinja_slot *next;  /* of the same function */
} jinja_slot;

typedef struct symbols {
    struct symbols *outer;
    uint32_t level;
    function_state *function;
    jinja_scope *scope; /* filled in */
    uint32_t capacity;
    struct jinja_binding *bindings;
} symbols;

/* What a name means in a scope. */
typedef struct jinja_binding {
    jinja_name *name;
    symbols *owner;
    uint32_t slot;
    bool stored;
    struct jinja_binding *outside; /* the name's meaning outside of this scope */
    struct jinja_binding *next;    /* in this scope */
} jinja_binding;

typedef struct scoper {
    jinja_parse *parse;
    symbols *symbols;
    function_state *function;
    int32_t ifs; /* if tags between the scope and this place */
} scoper;

/* ---- scopes and functions ----------------------------------------------------------------------------------------- */

static mf_status enter_scope(scoper *s, symbols *inner, jinja_scope *scope)
{
    *inner = (symbols){ .outer = s->symbols, .function = s->function, .scope = scope };
    inner->level = s->symbols ? s->symbols->level + 1 : 0;
    s->symbols = inner;
    s->ifs = 0;
    return MF_OK;
}

static void leave_scope(scoper *s)
{
    for (jinja_binding *b = s->symbols->bindings; b; b = b->next) {
        b->name->binding = b->outside;
    }
    s->symbols = s->symbols->outer;
}

static void enter_function(scoper *s, function_state *inner)
{
    *inner = (function_state){ .outer = s->function, .depth = s->function ? s->function->depth + 1 : 0 };
    s->function = inner;
}

static uint32_t leave_function(scoper *s)
{
    function_state *f = s->function;
    for (jinja_slot *slot = f->slots; slot; slot = slot->next) {
        while (slot->name->slots && slot->name->slots->function == f) {
            slot->name->slots = slot->name->slots->below;
        }
    }
    s->function = f->outer;
    return f->num_slots;
}

static mf_status slot_for(scoper *s, jinja_name *name, uint32_t *number)
{
    uint32_t level = s->symbols->level;
    for (jinja_slot *slot = name->slots; slot && slot->function == s->function; slot = slot->below) {
        if (slot->level == level) {
            *number = slot->number;
            return MF_OK;
        }
    }
    jinja_slot *slot;
    JINJA_PARSE_NEW(s->parse, slot, 1);
    *slot = (jinja_slot){ name, s->function, level, s->function->num_slots++, name->slots, s->function->slots };
    name->slots = slot;
    s->function->slots = slot;
    *number = slot->number;
    return MF_OK;
}

static jinja_ref ref_to(const scoper *s, const jinja_binding *b)
{
    return (jinja_ref){ s->function->depth - b->owner->function->depth, b->slot };
}

static mf_status define(scoper *s, jinja_name *name, jinja_load load, uint32_t *slot)
{
    symbols *owner = s->symbols;
    jinja_scope *scope = owner->scope;
    MF_TRY(slot_for(s, name, &load.slot));
    if (scope->count == owner->capacity) {
        uint32_t capacity = owner->capacity ? owner->capacity * 2 : 4;
        jinja_load *loads;
        JINJA_PARSE_NEW(s->parse, loads, capacity);
        if (scope->count) {
            memcpy(loads, scope->loads, scope->count * sizeof *loads);
        }
        scope->loads = loads;
        owner->capacity = capacity;
    }
    scope->loads[scope->count++] = load;
    jinja_binding *b;
    JINJA_PARSE_NEW(s->parse, b, 1);
    *b = (jinja_binding){ name, owner, load.slot, false, name->binding, owner->bindings };
    owner->bindings = b;
    name->binding = b;
    if (slot) {
        *slot = load.slot;
    }
    return MF_OK;
}

static bool bound_here(const scoper *s, const jinja_name *name)
{
    return name->binding && name->binding->owner == s->symbols;
}

static jinja_load resolve_load(const jinja_name *name)
{
    return (jinja_load){ .action = JINJA_LOAD_RESOLVE, .name = name,
                         .builtin = jinja_global_find(name->data, name->size) };
}

static mf_status load_name(scoper *s, jinja_name *name)
{
    if (!name->binding && strcmp(name->data, "self") == 0) { /* jinja2's way to blocks, which are not supported */
        return jinja_parse_fail(s->parse, MF_ERR_UNSUPPORTED, s->parse->line, "the variable 'self' is not supported");
    }
    return name->binding ? MF_OK : define(s, name, resolve_load(name), NULL);
}

static mf_status store_name(scoper *s, jinja_name *name)
{
    if (!bound_here(s, name)) {
        jinja_load load = { .action = JINJA_LOAD_UNSET };
        if (name->binding) {
            load.action = JINJA_LOAD_ALIAS;
            load.from = ref_to(s, name->binding);
        } else if (s->ifs > 0) { /* the branch may not run: then the render's variable stays visible */
            load = resolve_load(name);
        }
        MF_TRY(define(s, name, load, NULL));
    }
    name->binding->stored = true;
    return MF_OK;
}

static mf_status declare_param(scoper *s, jinja_name *name, uint32_t *slot)
{
    if (bound_here(s, name)) {
        for (uint32_t i = 0; i < s->symbols->scope->count; i++) {
            if (s->symbols->scope->loads[i].slot == name->binding->slot) {
                s->symbols->scope->loads[i].action = JINJA_LOAD_PARAM;
            }
        }
        *slot = name->binding->slot;
    } else {
        MF_TRY(define(s, name, (jinja_load){ .action = JINJA_LOAD_PARAM }, slot));
    }
    name->binding->stored = true;
    return MF_OK;
}

static mf_status declare_special(scoper *s, const char *text, uint32_t *slot)
{
    jinja_name *name;
    MF_TRY(jinja_parse_name(s->parse, text, strlen(text), &name));
    return declare_param(s, name, slot);
}

/* ---- first pass over a scope: which names it mentions ------------------------------------------------------------- */

typedef mf_status (*visit_fn)(void *context, jinja_node *node);

/* Calls visit for each child expression, in jinja2's order. */
static mf_status each_child(jinja_node *node, visit_fn visit, void *context)
{
    jinja_node *fixed[4] = { node->a, node->b, node->c, node->d };
    for (int i = 0; i < 4; i++) {
        if (fixed[i]) {
            MF_TRY(visit(context, fixed[i]));
        }
    }
    switch (node->kind) {
    case JINJA_NODE_TUPLE:
    case JINJA_NODE_LIST:
    case JINJA_NODE_DICT:
    case JINJA_NODE_CONCAT:
    case JINJA_NODE_COMPARE:
        for (uint32_t i = 0; i < node->u.list.count; i++) {
            MF_TRY(visit(context, node->u.list.nodes[i]));
        }
        return MF_OK;
    case JINJA_NODE_CALL:
    case JINJA_NODE_FILTER:
    case JINJA_NODE_TEST: {
        const jinja_call_args *args = node->u.call.args;
        for (uint32_t i = 0; args && i < args->num_pos; i++) {
            MF_TRY(visit(context, args->pos[i]));
        }
        for (uint32_t i = 0; args && i < args->num_kw; i++) {
            MF_TRY(visit(context, args->kw_values[i]));
        }
        if (args && args->dyn_args) {
            MF_TRY(visit(context, args->dyn_args));
        }
        return args && args->dyn_kwargs ? visit(context, args->dyn_kwargs) : MF_OK;
    }
    default: return MF_OK;
    }
}

static mf_status note(void *context, jinja_node *node)
{
    scoper *s = context;
    s->parse->line = node->line;
    if (node->kind == JINJA_NODE_NSREF) {
        return load_name(s, node->u.var.name);
    }
    if (node->kind == JINJA_NODE_NAME) {
        uint32_t slot;
        return node->ctx == JINJA_LOAD    ? load_name(s, node->u.var.name)
               : node->ctx == JINJA_STORE ? store_name(s, node->u.var.name)
                                          : declare_param(s, node->u.var.name, &slot);
    }
    return each_child(node, note, s);
}

/* The target of a for is a parameter of the scope. */
static mf_status note_param(void *context, jinja_node *node)
{
    scoper *s = context;
    uint32_t slot;
    return node->kind == JINJA_NODE_NAME ? declare_param(s, node->u.var.name, &slot) : each_child(node, note_param, s);
}

static mf_status note_body(scoper *s, const jinja_body *body);

static mf_status note_statement(scoper *s, jinja_node *node)
{
    switch (node->kind) {
    case JINJA_NODE_PRINT: return note(s, node->a);
    case JINJA_NODE_FOR: return note(s, node->b);
    case JINJA_NODE_IF:
        MF_TRY(note(s, node->a));
        s->ifs++;
        MF_TRY(note_body(s, &node->u.cond.body));
        for (uint32_t i = 0; i < node->u.cond.num_elifs; i++) {
            MF_TRY(note_statement(s, node->u.cond.elifs[i]));
        }
        MF_TRY(note_body(s, &node->u.cond.else_body));
        s->ifs--;
        return MF_OK;
    case JINJA_NODE_SET:
        MF_TRY(note(s, node->b));
        return note(s, node->a);
    case JINJA_NODE_SET_BLOCK: return note(s, node->a);
    case JINJA_NODE_MACRO: return store_name(s, node->a->u.var.name);
    case JINJA_NODE_CALL_BLOCK: return note(s, node->a);
    case JINJA_NODE_FILTER_BLOCK: return note(s, node->u.capture->filter);
    case JINJA_NODE_WITH:
        for (uint32_t i = 0; i < node->u.with->count; i++) {
            MF_TRY(note(s, node->u.with->values[i]));
        }
        return MF_OK;
    default: return MF_OK;
    }
}

static mf_status note_body(scoper *s, const jinja_body *body)
{
    for (uint32_t i = 0; i < body->count; i++) {
        MF_TRY(note_statement(s, body->nodes[i]));
    }
    return MF_OK;
}

/* ---- names that make a construct special when its body uses them -------------------------------------------------- */

enum { USES_LOOP = 1, USES_CALLER = 2, USES_KWARGS = 4, USES_VARARGS = 8 };

typedef struct usage {
    unsigned wanted, found;
} usage;

static unsigned special_name(const jinja_name *name)
{
    return strcmp(name->data, "loop") == 0      ? USES_LOOP
           : strcmp(name->data, "caller") == 0  ? USES_CALLER
           : strcmp(name->data, "kwargs") == 0  ? USES_KWARGS
           : strcmp(name->data, "varargs") == 0 ? USES_VARARGS
                                                : 0;
}

/* Unlike the pass above this looks into inner scopes, and a name that is stored first is not wanted any more. */
static mf_status find_use(void *context, jinja_node *node)
{
    usage *u = context;
    if (node->kind != JINJA_NODE_NAME) {
        return each_child(node, find_use, u);
    }
    unsigned special = special_name(node->u.var.name);
    if (node->ctx == JINJA_LOAD) {
        u->found |= special & u->wanted;
    } else {
        u->wanted &= ~special;
    }
    return MF_OK;
}

static void find_uses(usage *u, const jinja_body *body);

static void find_uses_function(usage *u, const jinja_function *f)
{
    for (uint32_t i = 0; i < f->num_params; i++) {
        find_use(u, f->params[i]);
    }
    for (uint32_t i = 0; i < f->num_defaults; i++) {
        find_use(u, f->defaults[i]);
    }
    find_uses(u, &f->body);
}

static void find_uses_statement(usage *u, jinja_node *node)
{
    switch (node->kind) {
    case JINJA_NODE_PRINT: find_use(u, node->a); break;
    case JINJA_NODE_SET: find_use(u, node->a); find_use(u, node->b); break;
    case JINJA_NODE_FOR:
        find_use(u, node->a);
        find_use(u, node->b);
        find_uses(u, &node->u.loop->body);
        find_uses(u, &node->u.loop->else_body);
        if (node->u.loop->test) {
            find_use(u, node->u.loop->test);
        }
        break;
    case JINJA_NODE_IF:
        find_use(u, node->a);
        find_uses(u, &node->u.cond.body);
        for (uint32_t i = 0; i < node->u.cond.num_elifs; i++) {
            find_uses_statement(u, node->u.cond.elifs[i]);
        }
        find_uses(u, &node->u.cond.else_body);
        break;
    case JINJA_NODE_SET_BLOCK:
        find_use(u, node->a);
        if (node->u.capture->filter) {
            find_use(u, node->u.capture->filter);
        }
        find_uses(u, &node->u.capture->body);
        break;
    case JINJA_NODE_FILTER_BLOCK:
        find_uses(u, &node->u.capture->body);
        find_use(u, node->u.capture->filter);
        break;
    case JINJA_NODE_MACRO: find_uses_function(u, node->u.function); break;
    case JINJA_NODE_CALL_BLOCK:
        find_use(u, node->a);
        find_uses_function(u, node->u.function);
        break;
    case JINJA_NODE_GENERATION: find_uses(u, &node->u.function->body); break;
    case JINJA_NODE_WITH:
        for (uint32_t i = 0; i < node->u.with->count; i++) {
            find_use(u, node->u.with->targets[i]);
        }
        for (uint32_t i = 0; i < node->u.with->count; i++) {
            find_use(u, node->u.with->values[i]);
        }
        find_uses(u, &node->u.with->body);
        break;
    default: break;
    }
}

static void find_uses(usage *u, const jinja_body *body)
{
    for (uint32_t i = 0; i < body->count; i++) {
        find_uses_statement(u, body->nodes[i]);
    }
}

/* ---- second pass: slots ------------------------------------------------------------------------------------------- */

/* Inside an if, or an inline if, an unknown filter is an error only when it is reached. */
static mf_status place(scoper *s, jinja_node *node, bool soft)
{
    if (node->kind == JINJA_NODE_NAME || node->kind == JINJA_NODE_NSREF) {
        const jinja_binding *b = node->u.var.name->binding;
        if (!b) {
            return jinja_parse_fail(s->parse, MF_ERR_UNSUPPORTED, node->line,
                                    "'%s' cannot be used here: the filter of a set block sees only names used before it",
                                    node->u.var.name->data);
        }
        node->u.var.ref = ref_to(s, b);
        return MF_OK;
    }
    soft |= node->kind == JINJA_NODE_COND;
    jinja_node *fixed[4] = { node->a, node->b, node->c, node->d };
    for (int i = 0; i < 4; i++) {
        if (fixed[i]) {
            MF_TRY(place(s, fixed[i], soft));
        }
    }
    switch (node->kind) {
    case JINJA_NODE_TUPLE:
    case JINJA_NODE_LIST:
    case JINJA_NODE_DICT:
    case JINJA_NODE_CONCAT:
    case JINJA_NODE_COMPARE:
        for (uint32_t i = 0; i < node->u.list.count; i++) {
            MF_TRY(place(s, node->u.list.nodes[i], soft));
        }
        return MF_OK;
    case JINJA_NODE_FILTER:
    case JINJA_NODE_TEST:
        if (!node->u.call.builtin && !soft) {
            return jinja_parse_fail(s->parse, MF_ERR_FORMAT, node->line, "no %s named '%.*s'",
                                    node->kind == JINJA_NODE_FILTER ? "filter" : "test", (int)node->value.as.s->size,
                                    node->value.as.s->data);
        }
        break;
    case JINJA_NODE_CALL: break;
    default: return MF_OK;
    }
    jinja_call_args *args = node->u.call.args;
    for (uint32_t i = 0; args && i < args->num_pos; i++) {
        MF_TRY(place(s, args->pos[i], soft));
    }
    for (uint32_t i = 0; args && i < args->num_kw; i++) {
        MF_TRY(place(s, args->kw_values[i], soft));
    }
    if (args && args->dyn_args) {
        MF_TRY(place(s, args->dyn_args, soft));
    }
    return args && args->dyn_kwargs ? place(s, args->dyn_kwargs, soft) : MF_OK;
}

static mf_status place_body(scoper *s, const jinja_body *body, bool soft);

static mf_status place_function(scoper *s, jinja_function *f, uint32_t line)
{
    function_state function;
    symbols inner;
    enter_function(s, &function);
    MF_TRY(enter_scope(s, &inner, &f->scope));
    for (uint32_t i = 0; i < f->num_params; i++) {
        MF_TRY(note(s, f->params[i]));
    }
    for (uint32_t i = 0; i < f->num_defaults; i++) {
        MF_TRY(note(s, f->defaults[i]));
    }
    MF_TRY(note_body(s, &f->body));

    usage u = { .wanted = USES_CALLER | USES_KWARGS | USES_VARARGS };
    find_uses(&u, &f->body);
    bool own_kwargs = false;
    bool own_varargs = false;
    for (uint32_t i = 0; i < f->num_params; i++) {
        unsigned special = special_name(f->params[i]->u.var.name);
        own_kwargs |= special == USES_KWARGS;
        own_varargs |= special == USES_VARARGS;
        f->explicit_caller |= special == USES_CALLER;
        if (special == USES_CALLER && (u.found & USES_CALLER) && i + f->num_defaults < f->num_params) {
            return jinja_parse_fail(s->parse, MF_ERR_FORMAT, line,
                                    "the special argument \"caller\" must be left out or given a default");
        }
    }
    f->has_caller = (u.found & USES_CALLER) != 0;
    f->has_kwargs = (u.found & USES_KWARGS) && !own_kwargs;
    f->has_varargs = (u.found & USES_VARARGS) && !own_varargs;
    if (f->has_caller && !f->explicit_caller) {
        MF_TRY(declare_special(s, "caller", &f->caller_slot));
    }
    if (f->has_kwargs) {
        MF_TRY(declare_special(s, "kwargs", &f->kwargs_slot));
    }
    if (f->has_varargs) {
        MF_TRY(declare_special(s, "varargs", &f->varargs_slot));
    }
    for (uint32_t i = 0; i < f->num_params; i++) {
        MF_TRY(place(s, f->params[i], false));
    }
    for (uint32_t i = 0; i < f->num_defaults; i++) {
        MF_TRY(place(s, f->defaults[i], false));
    }
    MF_TRY(place_body(s, &f->body, false));
    leave_scope(s);
    f->num_slots = leave_function(s);
    return MF_OK;
}

static mf_status place_for_test(scoper *s, jinja_for *loop)
{
    function_state function;
    symbols inner;
    enter_function(s, &function);
    MF_TRY(enter_scope(s, &inner, &loop->test_scope));
    MF_TRY(note_param(s, loop->test_target));
    MF_TRY(note(s, loop->test));
    MF_TRY(place(s, loop->test_target, false));
    MF_TRY(place(s, loop->test, false));
    leave_scope(s);
    loop->test_slots = leave_function(s);
    return MF_OK;
}

static mf_status place_for(scoper *s, jinja_node *node, bool soft)
{
    jinja_for *loop = node->u.loop;
    MF_TRY(place(s, node->b, soft));
    if (loop->test) {
        MF_TRY(place_for_test(s, loop));
    }
    usage u = { .wanted = USES_LOOP };
    find_uses(&u, &loop->body);
    loop->has_loop = loop->recursive || u.found;

    function_state function;
    symbols inner;
    if (loop->recursive) {
        enter_function(s, &function);
    }
    MF_TRY(enter_scope(s, &inner, &loop->scope));
    if (loop->has_loop) {
        MF_TRY(declare_special(s, "loop", &loop->loop_slot));
    }
    MF_TRY(note_param(s, node->a));
    MF_TRY(note_body(s, &loop->body));
    MF_TRY(place(s, node->a, false));
    MF_TRY(place_body(s, &loop->body, false));
    leave_scope(s);
    MF_TRY(enter_scope(s, &inner, &loop->else_scope));
    MF_TRY(note_body(s, &loop->else_body));
    MF_TRY(place_body(s, &loop->else_body, false));
    leave_scope(s);
    if (loop->recursive) {
        loop->function_slots = leave_function(s);
    }
    return MF_OK;
}

static mf_status place_capture(scoper *s, jinja_node *node, bool soft)
{
    jinja_capture *capture = node->u.capture;
    symbols inner;
    MF_TRY(enter_scope(s, &inner, &capture->scope));
    MF_TRY(note_body(s, &capture->body));
    if (node->kind == JINJA_NODE_FILTER_BLOCK) {
        MF_TRY(note(s, capture->filter));
    }
    MF_TRY(place_body(s, &capture->body, false));
    if (capture->filter) {
        MF_TRY(place(s, capture->filter, false));
    }
    leave_scope(s);
    return node->a ? place(s, node->a, soft) : MF_OK;
}

static mf_status place_with(scoper *s, jinja_with *with, bool soft)
{
    symbols inner;
    for (uint32_t i = 0; i < with->count; i++) {
        MF_TRY(place(s, with->values[i], soft));
    }
    MF_TRY(enter_scope(s, &inner, &with->scope));
    for (uint32_t i = 0; i < with->count; i++) {
        MF_TRY(note(s, with->targets[i]));
    }
    MF_TRY(note_body(s, &with->body));
    for (uint32_t i = 0; i < with->count; i++) {
        MF_TRY(place(s, with->targets[i], false));
    }
    MF_TRY(place_body(s, &with->body, false));
    leave_scope(s);
    return MF_OK;
}

static mf_status place_statement(scoper *s, jinja_node *node, bool soft)
{
    switch (node->kind) {
    case JINJA_NODE_PRINT: return place(s, node->a, soft);
    case JINJA_NODE_FOR: return place_for(s, node, soft);
    case JINJA_NODE_IF:
        MF_TRY(place(s, node->a, true));
        MF_TRY(place_body(s, &node->u.cond.body, true));
        for (uint32_t i = 0; i < node->u.cond.num_elifs; i++) {
            MF_TRY(place_statement(s, node->u.cond.elifs[i], true));
        }
        return place_body(s, &node->u.cond.else_body, true);
    case JINJA_NODE_SET:
        MF_TRY(place(s, node->a, soft));
        return place(s, node->b, soft);
    case JINJA_NODE_SET_BLOCK:
    case JINJA_NODE_FILTER_BLOCK: return place_capture(s, node, soft);
    case JINJA_NODE_MACRO:
        MF_TRY(place(s, node->a, soft));
        return place_function(s, node->u.function, node->line);
    case JINJA_NODE_CALL_BLOCK:
        MF_TRY(place(s, node->a, soft));
        return place_function(s, node->u.function, node->line);
    case JINJA_NODE_GENERATION: return place_function(s, node->u.function, node->line);
    case JINJA_NODE_WITH: return place_with(s, node->u.with, soft);
    default: return MF_OK;
    }
}

static mf_status place_body(scoper *s, const jinja_body *body, bool soft)
{
    for (uint32_t i = 0; i < body->count; i++) {
        MF_TRY(place_statement(s, body->nodes[i], soft));
    }
    return MF_OK;
}

mf_status jinja_assign_slots(jinja_parse *parse, jinja_program *program)
{
    scoper s = { .parse = parse };
    function_state function;
    symbols root;
    enter_function(&s, &function);
    MF_TRY(enter_scope(&s, &root, &program->scope));
    MF_TRY(note_body(&s, &program->body));
    MF_TRY(place_body(&s, &program->body, false));
    leave_scope(&s);
    program->num_slots = leave_function(&s);
    return MF_OK;
}
