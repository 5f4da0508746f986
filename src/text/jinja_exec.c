/* jinja_exec.c - statements, scopes and assignments. */
#include <string.h>

#include "text/jinja_eval.h"

mf_status jinja_frame_new(jinja_run *run, jinja_frame *closure, uint32_t num_slots, jinja_frame **out)
{
    size_t bytes = sizeof(jinja_frame) + (size_t)num_slots * sizeof(jinja_value);
    MF_TRY(jinja_step(run, num_slots / 8));
    *out = mf_arena_alloc(&run->arena, bytes);
    if (!*out) {
        return jinja_no_memory(run, bytes, 1);
    }
    (*out)->closure = closure;
    return MF_OK;
}

static jinja_value *slot_at(const jinja_run *run, jinja_ref ref)
{
    jinja_frame *frame = run->frame;
    for (uint32_t hops = ref.hops; hops; hops--) {
        frame = frame->closure;
    }
    return &frame->slots[ref.slot];
}

mf_status jinja_enter_scope(jinja_run *run, const jinja_scope *scope)
{
    MF_TRY(jinja_step(run, scope->count / 4));
    for (uint32_t i = 0; i < scope->count; i++) {
        const jinja_load *load = &scope->loads[i];
        jinja_value *slot = &run->frame->slots[load->slot];
        switch (load->action) {
        case JINJA_LOAD_PARAM: break;
        case JINJA_LOAD_UNSET: *slot = (jinja_value){ .type = JINJA_MISSING }; break;
        case JINJA_LOAD_ALIAS: *slot = *slot_at(run, load->from); break;
        case JINJA_LOAD_RESOLVE: {
            const jinja_value *v = jinja_dict_get_text(run->variables, load->name->data, load->name->size);
            *slot = v               ? *v
                    : load->builtin ? (jinja_value){ .type = JINJA_FUNC, .as.func = load->builtin }
                                    : (jinja_value){ .type = JINJA_MISSING };
            break;
        }
        }
    }
    return MF_OK;
}

void jinja_leave_scope(jinja_run *run, const jinja_scope *scope)
{
    for (uint32_t i = 0; i < scope->count; i++) {
        run->frame->slots[scope->loads[i].slot] = (jinja_value){ .type = JINJA_MISSING };
    }
}

/* ---- assignment --------------------------------------------------------------------------------------------------- */

static mf_status namespace_of(jinja_run *run, const jinja_node *target, jinja_value *out)
{
    *out = *slot_at(run, target->u.var.ref);
    if (out->type != JINJA_NAMESPACE) {
        return jinja_fail(run, MF_ERR_INVALID, "cannot assign attribute on non-namespace object '%s'",
                          target->u.var.name->data);
    }
    return MF_OK;
}

static mf_status assign_tuple(jinja_run *run, const jinja_node *target, jinja_value value)
{
    jinja_iter *iter;
    uint32_t count = target->u.list.count;
    MF_TRY(jinja_iter_open(run, value, &iter));
    /* Python takes all items before it assigns the first. */
    jinja_value *items;
    JINJA_NEW(run, items, count);
    bool done = false;
    for (uint32_t i = 0; i < count; i++) {
        MF_TRY(jinja_iter_next(run, iter, &items[i], &done));
        if (done) {
            return jinja_fail(run, MF_ERR_INVALID, "not enough values to unpack (expected %u, got %u)", count, i);
        }
    }
    jinja_value extra;
    MF_TRY(jinja_iter_next(run, iter, &extra, &done));
    if (!done) {
        return jinja_fail(run, MF_ERR_INVALID, "too many values to unpack (expected %u)", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        MF_TRY(jinja_assign(run, target->u.list.nodes[i], items[i]));
    }
    return MF_OK;
}

mf_status jinja_assign(jinja_run *run, const jinja_node *target, jinja_value value)
{
    jinja_value ns;
    switch (target->kind) {
    case JINJA_NODE_NAME: *slot_at(run, target->u.var.ref) = value; return MF_OK;
    case JINJA_NODE_TUPLE: return assign_tuple(run, target, value);
    case JINJA_NODE_NSREF:
        MF_TRY(namespace_of(run, target, &ns));
        if (target->value.as.s->size && target->value.as.s->data[0] == '_') {
            return jinja_fail(run, MF_ERR_INVALID, "a namespace cannot store attributes that start with an underscore");
        }
        return jinja_dict_set(run, ns.as.d, target->value, value);
    default: return jinja_fail(run, MF_ERR_INTERNAL, "not a target");
    }
}

/* The namespaces a set writes to must be namespaces before the value is worked out. */
static mf_status check_namespaces(jinja_run *run, const jinja_node *target)
{
    jinja_value ns;
    if (target->kind == JINJA_NODE_NSREF) {
        return namespace_of(run, target, &ns);
    }
    for (uint32_t i = 0; target->kind == JINJA_NODE_TUPLE && i < target->u.list.count; i++) {
        MF_TRY(check_namespaces(run, target->u.list.nodes[i]));
    }
    return MF_OK;
}

/* ---- statements --------------------------------------------------------------------------------------------------- */

mf_status jinja_capture_body(jinja_run *run, const jinja_body *body, jinja_value *out)
{
    jinja_sink *outer = run->sink;
    jinja_sink sink = { 0 };
    run->sink = &sink;
    mf_status status = jinja_exec_body(run, body);
    run->sink = outer;
    MF_TRY(status);
    return jinja_str_text(run, &sink.text, out);
}

static mf_status exec_capture(jinja_run *run, const jinja_node *node)
{
    const jinja_capture *capture = node->u.capture;
    jinja_value text;
    MF_TRY(jinja_enter_scope(run, &capture->scope));
    MF_TRY(jinja_capture_body(run, &capture->body, &text));
    if (run->flow != JINJA_FLOW_NEXT) { /* break: what was captured is dropped */
        return MF_OK;
    }
    if (capture->filter) {
        MF_TRY(jinja_eval_filter(run, capture->filter, text, &text));
    }
    if (node->kind == JINJA_NODE_SET_BLOCK) {
        MF_TRY(jinja_assign(run, node->a, text));
    } else {
        if (text.type != JINJA_STR) {
            return jinja_fail(run, MF_ERR_INVALID, "a filter block must give a str, not %s", jinja_type_name(text));
        }
        MF_TRY(jinja_write(run, text.as.s->data, text.as.s->size));
    }
    jinja_leave_scope(run, &capture->scope);
    return MF_OK;
}

static mf_status exec_if(jinja_run *run, const jinja_node *node)
{
    jinja_value v;
    bool truth;
    MF_TRY(jinja_eval(run, node->a, &v));
    MF_TRY(jinja_truth(run, v, &truth));
    if (truth) {
        return jinja_exec_body(run, &node->u.cond.body);
    }
    for (uint32_t i = 0; i < node->u.cond.num_elifs; i++) {
        const jinja_node *elif = node->u.cond.elifs[i];
        MF_TRY(jinja_eval(run, elif->a, &v));
        MF_TRY(jinja_truth(run, v, &truth));
        if (truth) {
            return jinja_exec_body(run, &elif->u.cond.body);
        }
    }
    return jinja_exec_body(run, &node->u.cond.else_body);
}

static mf_status exec_with(jinja_run *run, const jinja_with *with)
{
    MF_TRY(jinja_enter_scope(run, &with->scope));
    for (uint32_t i = 0; i < with->count; i++) {
        jinja_value v;
        MF_TRY(jinja_eval(run, with->values[i], &v));
        MF_TRY(jinja_assign(run, with->targets[i], v));
    }
    MF_TRY(jinja_exec_body(run, &with->body));
    if (run->flow == JINJA_FLOW_NEXT) {
        jinja_leave_scope(run, &with->scope);
    }
    return MF_OK;
}

static mf_status exec_print(jinja_run *run, const jinja_node *node)
{
    jinja_value v;
    MF_TRY(jinja_eval(run, node->a, &v));
    if (v.type == JINJA_UNDEFINED) {
        return MF_OK;
    }
    MF_TRY(jinja_to_str(run, v, &v));
    return jinja_write(run, v.as.s->data, v.as.s->size);
}

static mf_status exec_call_block(jinja_run *run, const jinja_node *node)
{
    jinja_value caller;
    jinja_value v;
    MF_TRY(jinja_macro_new(run, node->u.function, &caller));
    if (node->kind == JINJA_NODE_GENERATION) {
        MF_TRY(jinja_macro_call(run, caller.as.macro, &(jinja_args){ 0 }, &v));
    } else {
        MF_TRY(jinja_eval_call(run, node->a, &caller, &v));
    }
    if (v.type != JINJA_STR) {
        return jinja_fail(run, MF_ERR_INVALID, "a call block must call what gives a str, not %s", jinja_type_name(v));
    }
    return jinja_write(run, v.as.s->data, v.as.s->size);
}

static mf_status exec_statement(jinja_run *run, const jinja_node *node)
{
    jinja_value v;
    switch ((jinja_kind)node->kind) {
    case JINJA_NODE_DATA: return jinja_write(run, node->u.text.data, node->u.text.size);
    case JINJA_NODE_PRINT: return exec_print(run, node);
    case JINJA_NODE_FOR: return jinja_exec_for(run, node);
    case JINJA_NODE_IF: return exec_if(run, node);
    case JINJA_NODE_SET:
        MF_TRY(check_namespaces(run, node->a));
        MF_TRY(jinja_eval(run, node->b, &v));
        return jinja_assign(run, node->a, v);
    case JINJA_NODE_SET_BLOCK:
    case JINJA_NODE_FILTER_BLOCK: return exec_capture(run, node);
    case JINJA_NODE_MACRO:
        MF_TRY(jinja_macro_new(run, node->u.function, &v));
        return jinja_assign(run, node->a, v);
    case JINJA_NODE_CALL_BLOCK:
    case JINJA_NODE_GENERATION: return exec_call_block(run, node);
    case JINJA_NODE_WITH: return exec_with(run, node->u.with);
    case JINJA_NODE_BREAK: run->flow = JINJA_FLOW_BREAK; return MF_OK;
    case JINJA_NODE_CONTINUE: run->flow = JINJA_FLOW_CONTINUE; return MF_OK;
    default: return jinja_fail(run, MF_ERR_INTERNAL, "an expression where a statement belongs");
    }
}

mf_status jinja_exec_body(jinja_run *run, const jinja_body *body)
{
    if (run->depth >= JINJA_MAX_EVAL_DEPTH) {
        return jinja_fail(run, MF_ERR_LIMIT, "the template nests deeper than %d evaluations", JINJA_MAX_EVAL_DEPTH);
    }
    run->depth++;
    for (uint32_t i = 0; i < body->count && run->flow == JINJA_FLOW_NEXT; i++) {
        run->line = body->nodes[i]->line;
        MF_TRY(jinja_step(run, 1));
        MF_TRY(exec_statement(run, body->nodes[i]));
    }
    run->depth--;
    return MF_OK;
}

mf_status jinja_run_program(jinja_run *run, const jinja_program *program)
{
    MF_TRY(jinja_frame_new(run, NULL, program->num_slots, &run->frame));
    MF_TRY(jinja_enter_scope(run, &program->scope));
    return jinja_exec_body(run, &program->body);
}
