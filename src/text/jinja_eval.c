/* jinja_eval.c - expressions.
 *
 * The evaluator recurses over the tree, whose height the parser bounds; run->depth bounds what macros add to that. */
#include "text/jinja_eval.h"

#include <string.h>

static mf_status read_variable(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_frame *frame = run->frame;
    for (uint32_t hops = node->u.var.ref.hops; hops; hops--) {
        frame = frame->closure;
    }
    *out = frame->slots[node->u.var.ref.slot];
    if (out->type != JINJA_MISSING) {
        return MF_OK;
    }
    jinja_value name;
    MF_TRY(jinja_str_view(run, node->u.var.name->data, node->u.var.name->size, &name));
    return jinja_undef_name(run, NULL, name, out);
}

static mf_status eval_sequence(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    uint32_t count = node->u.list.count;
    MF_TRY(jinja_list_new(run, node->kind == JINJA_NODE_TUPLE ? JINJA_TUPLE : JINJA_LIST, count, out));
    for (uint32_t i = 0; i < count; i++) {
        MF_TRY(jinja_eval(run, node->u.list.nodes[i], &out->as.l->items[i]));
    }
    return MF_OK;
}

static mf_status eval_dict(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    MF_TRY(jinja_dict_new(run, node->u.list.count / 2, out));
    for (uint32_t i = 0; i + 1 < node->u.list.count; i += 2) {
        jinja_value key;
        jinja_value value;
        MF_TRY(jinja_eval(run, node->u.list.nodes[i], &key));
        MF_TRY(jinja_eval(run, node->u.list.nodes[i + 1], &value));
        MF_TRY(jinja_dict_set(run, out->as.d, key, value));
    }
    return MF_OK;
}

static mf_status eval_concat(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    MF_TRY(jinja_eval(run, node->u.list.nodes[0], out));
    MF_TRY(jinja_to_str(run, *out, out));
    if (out->as.s->markup) {
        MF_TRY(jinja_str_view(run, out->as.s->data, out->as.s->size, out));
    }
    for (uint32_t i = 1; i < node->u.list.count; i++) {
        jinja_value part;
        MF_TRY(jinja_eval(run, node->u.list.nodes[i], &part));
        MF_TRY(jinja_to_str(run, part, &part));
        MF_TRY(jinja_str_concat(run, *out, part, out));
    }
    return MF_OK;
}

static mf_status compare_two(jinja_run *run, jinja_compare_op op, jinja_value a, jinja_value b, bool *out)
{
    switch (op) {
    case JINJA_CMP_EQ: return jinja_equal(run, a, b, out);
    case JINJA_CMP_NE:
        MF_TRY(jinja_equal(run, a, b, out));
        *out = !*out;
        return MF_OK;
    case JINJA_CMP_LT: return jinja_ordered(run, a, b, JINJA_LT, out);
    case JINJA_CMP_LE: return jinja_ordered(run, a, b, JINJA_LE, out);
    case JINJA_CMP_GT: return jinja_ordered(run, a, b, JINJA_GT, out);
    case JINJA_CMP_GE: return jinja_ordered(run, a, b, JINJA_GE, out);
    case JINJA_CMP_IN: return jinja_contains(run, b, a, out);
    case JINJA_CMP_NOT_IN:
        MF_TRY(jinja_contains(run, b, a, out));
        *out = !*out;
        return MF_OK;
    }
    return MF_OK;
}

static mf_status eval_compare(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value left;
    bool holds = true;
    MF_TRY(jinja_eval(run, node->a, &left));
    for (uint32_t i = 0; holds && i < node->u.list.count; i++) {
        jinja_value right;
        MF_TRY(jinja_eval(run, node->u.list.nodes[i], &right));
        run->line = node->line;
        MF_TRY(compare_two(run, (jinja_compare_op)node->u.list.ops[i], left, right, &holds));
        left = right;
    }
    *out = jinja_bool(holds);
    return MF_OK;
}

static mf_status eval_getitem(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value object;
    jinja_value key;
    MF_TRY(jinja_eval(run, node->a, &object));
    MF_TRY(jinja_eval(run, node->b, &key));
    run->line = node->line;
    return jinja_getitem(run, object, key, out);
}

static mf_status eval_slice(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value object;
    jinja_value parts[3] = { jinja_none(), jinja_none(), jinja_none() };
    const jinja_node *nodes[3] = { node->b, node->c, node->d };
    MF_TRY(jinja_eval(run, node->a, &object));
    for (int i = 0; i < 3; i++) {
        if (nodes[i]) {
            MF_TRY(jinja_eval(run, nodes[i], &parts[i]));
        }
    }
    run->line = node->line;
    return jinja_slice(run, object, parts[0], parts[1], parts[2], out);
}

/* ---- calls -------------------------------------------------------------------------------------------------------- */

static mf_status add_mapping(jinja_run *run, jinja_value mapping, jinja_items *names, jinja_items *values)
{
    if (mapping.type != JINJA_DICT) {
        return jinja_fail(run, MF_ERR_INVALID, "argument after ** must be a mapping, not %s", jinja_type_name(mapping));
    }
    const jinja_dict *d = mapping.as.d;
    for (size_t i = 0; i < d->count; i++) {
        jinja_value key = d->entries[i].key;
        if (key.type != JINJA_STR) {
            return jinja_fail(run, MF_ERR_INVALID, "keywords must be strings");
        }
        for (size_t k = 0; k < names->count; k++) {
            if (jinja_same(names->data[k], key)) {
                return jinja_fail(run, MF_ERR_INVALID, "got multiple values for keyword argument '%.*s'",
                                  key.as.s->size > 100 ? 100 : (int)key.as.s->size, key.as.s->data);
            }
        }
        MF_TRY(jinja_step(run, 1 + names->count / 8));
        MF_TRY(jinja_items_add(run, names, key));
        MF_TRY(jinja_items_add(run, values, d->entries[i].value));
    }
    return MF_OK;
}

static mf_status eval_args(jinja_run *run, const jinja_call_args *written, const jinja_value *caller, jinja_args *out)
{
    jinja_items pos = { 0 };
    jinja_items names = { 0 };
    jinja_items values = { 0 };
    jinja_value v;
    *out = (jinja_args){ 0 };
    for (uint32_t i = 0; written && i < written->num_pos; i++) {
        MF_TRY(jinja_eval(run, written->pos[i], &v));
        MF_TRY(jinja_items_add(run, &pos, v));
    }
    for (uint32_t i = 0; written && i < written->num_kw; i++) {
        MF_TRY(jinja_eval(run, written->kw_values[i], &v));
        MF_TRY(jinja_items_add(run, &names, written->kw_names[i]));
        MF_TRY(jinja_items_add(run, &values, v));
    }
    if (caller) {
        MF_TRY(jinja_str_view(run, "caller", 6, &v));
        for (size_t i = 0; i < names.count; i++) {
            if (jinja_same(names.data[i], v)) {
                return jinja_fail(run, MF_ERR_INVALID, "a call block passes caller itself");
            }
        }
        MF_TRY(jinja_items_add(run, &names, v));
        MF_TRY(jinja_items_add(run, &values, *caller));
    }
    if (written && written->dyn_args) {
        jinja_iter *iter;
        bool done;
        MF_TRY(jinja_eval(run, written->dyn_args, &v));
        MF_TRY(jinja_iter_open(run, v, &iter));
        for (;;) {
            MF_TRY(jinja_iter_next(run, iter, &v, &done));
            if (done) {
                break;
            }
            MF_TRY(jinja_items_add(run, &pos, v));
        }
    }
    if (written && written->dyn_kwargs) {
        MF_TRY(jinja_eval(run, written->dyn_kwargs, &v));
        MF_TRY(add_mapping(run, v, &names, &values));
    }
    *out = (jinja_args){ pos.data, pos.count, names.data, values.data, names.count };
    return MF_OK;
}

mf_status jinja_eval_call(jinja_run *run, const jinja_node *node, const jinja_value *caller, jinja_value *out)
{
    jinja_value callee;
    jinja_args args;
    MF_TRY(jinja_eval(run, node->a, &callee));
    MF_TRY(eval_args(run, node->u.call.args, caller, &args));
    run->line = node->line;
    return jinja_call(run, callee, &args, out);
}

mf_status jinja_eval_filter(jinja_run *run, const jinja_node *node, jinja_value captured, jinja_value *out)
{
    jinja_value input = captured;
    jinja_args args;
    if (node->a) {
        /* Only the innermost filter of a block's chain lacks its input. */
        bool chain = node->kind == JINJA_NODE_FILTER && captured.type != JINJA_MISSING && node->a->kind == JINJA_NODE_FILTER;
        if (chain) {
            MF_TRY(jinja_eval_filter(run, node->a, captured, &input));
        } else {
            MF_TRY(jinja_eval(run, node->a, &input));
        }
    }
    MF_TRY(eval_args(run, node->u.call.args, NULL, &args));
    run->line = node->line;
    if (!node->u.call.builtin) {
        return jinja_fail(run, MF_ERR_INVALID, "no %s named '%.*s'",
                          node->kind == JINJA_NODE_FILTER ? "filter" : "test", (int)node->value.as.s->size,
                          node->value.as.s->data);
    }
    return node->u.call.builtin->fn(run, input, &args, out);
}

/* ---- the switch --------------------------------------------------------------------------------------------------- */

static mf_status eval_binary(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value a;
    jinja_value b;
    MF_TRY(jinja_eval(run, node->a, &a));
    MF_TRY(jinja_eval(run, node->b, &b));
    run->line = node->line;
    return jinja_binary(run, (jinja_op)node->op, a, b, out);
}

static mf_status eval_logic(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    bool truth;
    MF_TRY(jinja_eval(run, node->a, out));
    MF_TRY(jinja_truth(run, *out, &truth));
    switch (node->kind) {
    case JINJA_NODE_NOT: *out = jinja_bool(!truth); return MF_OK;
    case JINJA_NODE_AND: return truth ? jinja_eval(run, node->b, out) : MF_OK;
    case JINJA_NODE_OR: return truth ? MF_OK : jinja_eval(run, node->b, out);
    default: break;
    }
    if (truth || node->c) {
        return jinja_eval(run, truth ? node->b : node->c, out);
    }
    return jinja_undef_hint(run, "the inline if-expression evaluated to false and no else section was defined", out);
}

static mf_status eval_node(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    switch ((jinja_kind)node->kind) {
    case JINJA_NODE_CONST: *out = node->value; return MF_OK;
    case JINJA_NODE_NAME: return read_variable(run, node, out);
    case JINJA_NODE_TUPLE:
    case JINJA_NODE_LIST: return eval_sequence(run, node, out);
    case JINJA_NODE_DICT: return eval_dict(run, node, out);
    case JINJA_NODE_NEG:
    case JINJA_NODE_POS:
        MF_TRY(jinja_eval(run, node->a, out));
        return jinja_unary(run, node->kind == JINJA_NODE_NEG, *out, out);
    case JINJA_NODE_BINARY: return eval_binary(run, node, out);
    case JINJA_NODE_NOT:
    case JINJA_NODE_AND:
    case JINJA_NODE_OR:
    case JINJA_NODE_COND: return eval_logic(run, node, out);
    case JINJA_NODE_CONCAT: return eval_concat(run, node, out);
    case JINJA_NODE_COMPARE: return eval_compare(run, node, out);
    case JINJA_NODE_GETATTR:
        MF_TRY(jinja_eval(run, node->a, out));
        run->line = node->line;
        return jinja_getattr(run, *out, node->value.as.s->data, node->value.as.s->size, out);
    case JINJA_NODE_GETITEM: return eval_getitem(run, node, out);
    case JINJA_NODE_SLICE: return eval_slice(run, node, out);
    case JINJA_NODE_CALL: return jinja_eval_call(run, node, NULL, out);
    case JINJA_NODE_FILTER:
    case JINJA_NODE_TEST: return jinja_eval_filter(run, node, (jinja_value){ .type = JINJA_MISSING }, out);
    default: return jinja_fail(run, MF_ERR_INTERNAL, "a statement where an expression belongs");
    }
}

mf_status jinja_eval(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    run->line = node->line;
    MF_TRY(jinja_step(run, 1));
    if (run->depth >= JINJA_MAX_EVAL_DEPTH) {
        return jinja_fail(run, MF_ERR_LIMIT, "the template nests deeper than %d evaluations", JINJA_MAX_EVAL_DEPTH);
    }
    run->depth++;
    mf_status status = eval_node(run, node, out);
    run->depth--;
    return status;
}
