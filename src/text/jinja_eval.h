/* jinja_eval.h - running a parsed template: frames, macros, loops. */
#ifndef MF_TEXT_JINJA_EVAL_H
#define MF_TEXT_JINJA_EVAL_H

#include "text/jinja_ast.h"

/* The variables of one call of a function.  Frames stay until the render ends: a macro may outlive its surroundings. */
typedef struct jinja_frame {
    struct jinja_frame *closure;
    jinja_value slots[];
} jinja_frame;

typedef struct jinja_macro {
    const jinja_function *function;
    jinja_frame *closure;
} jinja_macro;

/* A running for: its items, and what `loop` answers. */
typedef struct jinja_loop {
    const jinja_node *node;
    jinja_value iterable; /* as written; of a filtered loop MISSING: it has no length */
    jinja_iter *iter;
    jinja_frame *frame;      /* of the function around the loop: where the test's and a recursive loop's begin */
    jinja_frame *test_frame; /* of the test, NULL = none */
    bool has_after, has_length, has_changed;
    int64_t index0, length, depth0;
    jinja_value after, before, current, changed;
} jinja_loop;

mf_status jinja_run_program(jinja_run *run, const jinja_program *program);

/* jinja_exec.c */
mf_status jinja_exec_body(jinja_run *run, const jinja_body *body);
mf_status jinja_enter_scope(jinja_run *run, const jinja_scope *scope);
void jinja_leave_scope(jinja_run *run, const jinja_scope *scope);
mf_status jinja_frame_new(jinja_run *run, jinja_frame *closure, uint32_t num_slots, jinja_frame **out);
mf_status jinja_assign(jinja_run *run, const jinja_node *target, jinja_value value);
/* Runs body into a text of its own. */
mf_status jinja_capture_body(jinja_run *run, const jinja_body *body, jinja_value *out);

/* jinja_eval.c */
mf_status jinja_eval(jinja_run *run, const jinja_node *node, jinja_value *out);
/* A filter whose innermost input is `captured`. */
mf_status jinja_eval_filter(jinja_run *run, const jinja_node *node, jinja_value captured, jinja_value *out);
/* A call with the keyword argument caller = `caller` added. */
mf_status jinja_eval_call(jinja_run *run, const jinja_node *node, const jinja_value *caller, jinja_value *out);

/* jinja_loop.c */
mf_status jinja_exec_for(jinja_run *run, const jinja_node *node);
mf_status jinja_loop_attr(jinja_run *run, jinja_loop *loop, const char *name, size_t size, bool *found, jinja_value *out);
mf_status jinja_loop_call(jinja_run *run, jinja_loop *loop, const jinja_args *args, jinja_value *out);
mf_status jinja_loop_length(jinja_run *run, jinja_loop *loop, int64_t *length);
mf_status jinja_loop_repr(jinja_run *run, jinja_text *text, jinja_loop *loop);

/* jinja_macro.c */
mf_status jinja_macro_new(jinja_run *run, const jinja_function *function, jinja_value *out);
mf_status jinja_macro_call(jinja_run *run, const jinja_macro *macro, const jinja_args *args, jinja_value *out);
mf_status jinja_macro_attr(jinja_run *run, const jinja_macro *macro, const char *name, size_t size, bool *found,
                           jinja_value *out);
mf_status jinja_macro_repr(jinja_run *run, jinja_text *text, const jinja_macro *macro);

#endif
