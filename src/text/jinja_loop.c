/* jinja_loop.c - the for tag and its `loop` variable.
 *
 * Items are taken one by one: the test of a for runs when its item is reached, or when loop.last or loop.nextitem looks
 * ahead, because templates change namespaces in between. */
#include <stdio.h>
#include <string.h>

#include "text/jinja_eval.h"

/* The value of a target, to hand a filtered item on: tuples are built anew, as jinja2 does. */
static mf_status target_value(jinja_run *run, const jinja_node *target, jinja_value *out)
{
    if (target->kind != JINJA_NODE_TUPLE) {
        *out = run->frame->slots[target->u.var.ref.slot];
        return MF_OK;
    }
    MF_TRY(jinja_list_new(run, JINJA_TUPLE, target->u.list.count, out));
    for (uint32_t i = 0; i < target->u.list.count; i++) {
        MF_TRY(target_value(run, target->u.list.nodes[i], &out->as.l->items[i]));
    }
    return MF_OK;
}

static mf_status test_item(jinja_run *run, const jinja_for *f, jinja_value *item, bool *keep)
{
    jinja_value v;
    MF_TRY(jinja_assign(run, f->test_target, *item));
    MF_TRY(jinja_eval(run, f->test, &v));
    MF_TRY(jinja_truth(run, v, keep));
    return *keep ? target_value(run, f->test_target, item) : MF_OK;
}

/* The next item behind the one that was looked ahead at. */
static mf_status fetch(jinja_run *run, jinja_loop *loop, jinja_value *item, bool *done)
{
    const jinja_for *f = loop->node->u.loop;
    for (;;) {
        MF_TRY(jinja_step(run, 1));
        MF_TRY(jinja_iter_next(run, loop->iter, item, done));
        if (*done || !loop->test_frame) {
            return MF_OK;
        }
        bool keep;
        jinja_frame *outer = run->frame;
        run->frame = loop->test_frame;
        mf_status status = test_item(run, f, item, &keep);
        run->frame = outer;
        MF_TRY(status);
        if (keep) {
            return MF_OK;
        }
    }
}

/* has_after with a MISSING value means that the end was seen. */
static mf_status peek(jinja_run *run, jinja_loop *loop)
{
    bool done = false;
    if (!loop->has_after || loop->after.type == JINJA_MISSING) {
        MF_TRY(fetch(run, loop, &loop->after, &done));
        if (done) {
            loop->after = (jinja_value){ .type = JINJA_MISSING };
        }
        loop->has_after = true;
    }
    return MF_OK;
}

static mf_status next_item(jinja_run *run, jinja_loop *loop, bool *done)
{
    jinja_value item;
    *done = false;
    if (loop->has_after && loop->after.type != JINJA_MISSING) {
        item = loop->after;
    } else {
        MF_TRY(fetch(run, loop, &item, done));
    }
    loop->has_after = false;
    if (!*done) {
        loop->index0++;
        loop->before = loop->current;
        loop->current = item;
    }
    return MF_OK;
}

mf_status jinja_loop_length(jinja_run *run, jinja_loop *loop, int64_t *length)
{
    if (!loop->has_length) {
        bool has = false;
        if (loop->iterable.type != JINJA_MISSING) {
            MF_TRY(jinja_length(run, loop->iterable, &has, &loop->length));
        }
        if (!has) { /* a generator: its rest is read into a list, which the loop goes on with */
            jinja_items rest = { 0 };
            for (;;) {
                jinja_value item;
                bool done;
                MF_TRY(fetch(run, loop, &item, &done));
                if (done) {
                    break;
                }
                MF_TRY(jinja_items_add(run, &rest, item));
            }
            jinja_value list;
            MF_TRY(jinja_items_done(run, &rest, JINJA_LIST, &list));
            MF_TRY(jinja_iter_open(run, list, &loop->iter));
            loop->test_frame = NULL;
            bool has_after = loop->has_after && loop->after.type != JINJA_MISSING;
            loop->length = (int64_t)rest.count + loop->index0 + 1 + has_after;
        }
        loop->has_length = true;
    }
    *length = loop->length;
    return MF_OK;
}

/* ---- running ------------------------------------------------------------------------------------------------------ */

static mf_status loop_new(jinja_run *run, const jinja_node *node, jinja_value iterable, jinja_loop **out)
{
    const jinja_for *f = node->u.loop;
    jinja_loop *loop;
    JINJA_NEW(run, loop, 1);
    loop->node = node;
    loop->index0 = -1;
    loop->frame = run->frame;
    loop->iterable = f->test ? (jinja_value){ .type = JINJA_MISSING } : iterable;
    MF_TRY(jinja_iter_open(run, iterable, &loop->iter));
    *out = loop;
    return MF_OK;
}

static mf_status open_test(jinja_run *run, jinja_loop *loop)
{
    const jinja_for *f = loop->node->u.loop;
    if (!f->test) {
        return MF_OK;
    }
    jinja_frame *outer = run->frame;
    MF_TRY(jinja_frame_new(run, loop->frame, f->test_slots, &loop->test_frame));
    run->frame = loop->test_frame;
    mf_status status = jinja_enter_scope(run, &f->test_scope);
    run->frame = outer;
    return status;
}

/* Runs the loop in run->frame. */
static mf_status run_loop(jinja_run *run, jinja_loop *loop)
{
    const jinja_node *node = loop->node;
    const jinja_for *f = node->u.loop;
    bool any = false;
    MF_TRY(open_test(run, loop));
    for (;;) {
        bool done;
        MF_TRY(next_item(run, loop, &done));
        if (done) {
            break;
        }
        MF_TRY(jinja_assign(run, node->a, loop->current));
        if (f->has_loop) {
            run->frame->slots[f->loop_slot] = (jinja_value){ .type = JINJA_LOOP, .as.loop = loop };
        }
        MF_TRY(jinja_enter_scope(run, &f->scope));
        MF_TRY(jinja_exec_body(run, &f->body));
        jinja_flow flow = run->flow;
        run->flow = JINJA_FLOW_NEXT;
        if (flow == JINJA_FLOW_NEXT) {
            any = true; /* jinja2 notes this at the end of the body: after a break the else still runs */
        } else if (flow == JINJA_FLOW_BREAK) {
            break;
        }
    }
    jinja_leave_scope(run, &f->scope);
    if (!any && f->else_body.count) {
        MF_TRY(jinja_enter_scope(run, &f->else_scope));
        MF_TRY(jinja_exec_body(run, &f->else_body));
        if (run->flow == JINJA_FLOW_NEXT) {
            jinja_leave_scope(run, &f->else_scope);
        }
    }
    return MF_OK;
}

/* One call of a recursive loop: a function whose text is its value. */
static mf_status run_recursive(jinja_run *run, const jinja_node *node, jinja_frame *around, jinja_value iterable,
                               int64_t depth0, jinja_value *out)
{
    jinja_loop *loop;
    jinja_frame *outer = run->frame;
    jinja_sink *outer_sink = run->sink;
    jinja_sink sink = { 0 };
    if (run->call_depth >= JINJA_MAX_CALL_DEPTH) {
        return jinja_fail(run, MF_ERR_LIMIT, "a recursive loop is deeper than %d", JINJA_MAX_CALL_DEPTH);
    }
    run->frame = around;
    MF_TRY(loop_new(run, node, iterable, &loop));
    loop->depth0 = depth0;
    MF_TRY(jinja_frame_new(run, around, node->u.loop->function_slots, &run->frame));
    run->sink = &sink;
    run->call_depth++;
    run->depth++;
    mf_status status = run_loop(run, loop);
    run->depth--;
    run->call_depth--;
    run->sink = outer_sink;
    run->frame = outer;
    MF_TRY(status);
    return jinja_str_text(run, &sink.text, out);
}

mf_status jinja_exec_for(jinja_run *run, const jinja_node *node)
{
    jinja_value iterable;
    MF_TRY(jinja_eval(run, node->b, &iterable));
    run->line = node->line;
    if (node->u.loop->recursive) {
        jinja_value text;
        MF_TRY(run_recursive(run, node, run->frame, iterable, 0, &text));
        return jinja_write(run, text.as.s->data, text.as.s->size);
    }
    jinja_loop *loop;
    MF_TRY(loop_new(run, node, iterable, &loop));
    return run_loop(run, loop);
}

mf_status jinja_loop_call(jinja_run *run, jinja_loop *loop, const jinja_args *args, jinja_value *out)
{
    jinja_value bound[JINJA_MAX_PARAMS];
    MF_TRY(jinja_bind(run, "loop", "iterable", args, bound));
    if (!loop->node->u.loop->recursive) {
        return jinja_fail(run, MF_ERR_INVALID, "the loop must have the 'recursive' marker to be called recursively");
    }
    return run_recursive(run, loop->node, loop->frame, bound[0], loop->depth0 + 1, out);
}

/* ---- loop.xxx ----------------------------------------------------------------------------------------------------- */

static mf_status loop_cycle(jinja_run *run, jinja_value self, const jinja_args *args, jinja_value *out)
{
    if (args->num_kw) {
        return jinja_fail(run, MF_ERR_INVALID, "loop.cycle takes no keyword arguments");
    }
    if (!args->num_pos) {
        return jinja_fail(run, MF_ERR_INVALID, "no items for cycling given");
    }
    *out = args->pos[(uint64_t)self.as.loop->index0 % args->num_pos];
    return MF_OK;
}

static mf_status loop_changed(jinja_run *run, jinja_value self, const jinja_args *args, jinja_value *out)
{
    jinja_loop *loop = self.as.loop;
    jinja_value now;
    bool same = false;
    if (args->num_kw) {
        return jinja_fail(run, MF_ERR_INVALID, "loop.changed takes no keyword arguments");
    }
    MF_TRY(jinja_list_new(run, JINJA_TUPLE, args->num_pos, &now));
    if (args->num_pos) {
        memcpy(now.as.l->items, args->pos, args->num_pos * sizeof *args->pos);
    }
    if (loop->has_changed) {
        MF_TRY(jinja_equal(run, loop->changed, now, &same));
    }
    if (!same) {
        loop->changed = now;
        loop->has_changed = true;
    }
    *out = jinja_bool(!same);
    return MF_OK;
}

static mf_status neighbour(jinja_run *run, jinja_value v, bool none, const char *hint, jinja_value *out)
{
    *out = v;
    return none ? jinja_undef_hint(run, hint, out) : MF_OK;
}

mf_status jinja_loop_attr(jinja_run *run, jinja_loop *loop, const char *name, size_t size, bool *found, jinja_value *out)
{
    static const jinja_builtin methods[] = { { "cycle", loop_cycle }, { "changed", loop_changed } };
    static const char *const names[] = { "index", "index0", "first", "last", "length", "revindex", "revindex0",
                                         "previtem", "nextitem", "depth", "depth0", NULL };
    int which = 0;
    *found = true;
    for (size_t i = 0; i < 2; i++) {
        if (strlen(methods[i].name) == size && memcmp(methods[i].name, name, size) == 0) {
            return jinja_method_new(run, (jinja_value){ .type = JINJA_LOOP, .as.loop = loop }, &methods[i], out);
        }
    }
    while (names[which] && (strlen(names[which]) != size || memcmp(names[which], name, size) != 0)) {
        which++;
    }
    int64_t length;
    switch (which) {
    case 0: *out = jinja_int(loop->index0 + 1); return MF_OK;
    case 1: *out = jinja_int(loop->index0); return MF_OK;
    case 2: *out = jinja_bool(loop->index0 == 0); return MF_OK;
    case 3:
        MF_TRY(peek(run, loop));
        *out = jinja_bool(loop->after.type == JINJA_MISSING);
        return MF_OK;
    case 4:
    case 5:
    case 6:
        MF_TRY(jinja_loop_length(run, loop, &length));
        *out = jinja_int(which == 4 ? length : which == 5 ? length - loop->index0 : length - loop->index0 - 1);
        return MF_OK;
    case 7: return neighbour(run, loop->before, loop->index0 == 0, "there is no previous item", out);
    case 8:
        MF_TRY(peek(run, loop));
        return neighbour(run, loop->after, loop->after.type == JINJA_MISSING, "there is no next item", out);
    case 9: *out = jinja_int(loop->depth0 + 1); return MF_OK;
    case 10: *out = jinja_int(loop->depth0); return MF_OK;
    default: *found = false; return MF_OK;
    }
}

mf_status jinja_loop_repr(jinja_run *run, jinja_text *text, jinja_loop *loop)
{
    char buf[80];
    int64_t length;
    MF_TRY(jinja_loop_length(run, loop, &length));
    snprintf(buf, sizeof buf, "<LoopContext %lld/%lld>", (long long)(loop->index0 + 1), (long long)length);
    return jinja_text_puts(run, text, buf);
}
