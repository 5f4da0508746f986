/* jinja_macro.c - macros and the bodies of call blocks: binding arguments as jinja2's Macro does, and calling. */
#include <stdio.h>
#include <string.h>

#include "text/jinja_eval.h"

mf_status jinja_macro_new(jinja_run *run, const jinja_function *function, jinja_value *out)
{
    jinja_macro *macro;
    JINJA_NEW(run, macro, 1);
    *macro = (jinja_macro){ function, run->frame };
    *out = (jinja_value){ .type = JINJA_MACRO, .as.macro = macro };
    return MF_OK;
}

/* The keyword arguments, of which the ones taken are marked. */
typedef struct keywords {
    const jinja_args *args;
    bool *taken;
    size_t num_taken;
} keywords;

static bool take_keyword(keywords *kw, const char *name, jinja_value *out)
{
    for (size_t i = 0; i < kw->args->num_kw; i++) {
        if (!kw->taken[i] && jinja_str_is(kw->args->kw_names[i], name)) {
            kw->taken[i] = true;
            kw->num_taken++;
            *out = kw->args->kw_values[i];
            return true;
        }
    }
    return false;
}

static mf_status refuse_keywords(jinja_run *run, const jinja_function *f, const keywords *kw)
{
    for (size_t i = 0; i < kw->args->num_kw; i++) {
        if (!kw->taken[i]) {
            const jinja_str *s = kw->args->kw_names[i].as.s;
            bool named = f->name.type == JINJA_STR;
            return jinja_fail(run, MF_ERR_INVALID, "macro '%.*s' takes no keyword argument '%.*s'",
                              named ? (int)f->name.as.s->size : 0, named ? f->name.as.s->data : "",
                              s->size > 100 ? 100 : (int)s->size, s->data);
        }
    }
    return MF_OK;
}

static mf_status bind_special(jinja_run *run, const jinja_function *f, keywords *kw, bool found_caller,
                              jinja_frame *frame)
{
    const jinja_args *args = kw->args;
    if (f->has_caller && !f->explicit_caller && !found_caller) {
        jinja_value *slot = &frame->slots[f->caller_slot];
        if (!take_keyword(kw, "caller", slot) || slot->type == JINJA_NONE) {
            MF_TRY(jinja_undef_hint(run, "No caller defined", slot));
        }
    }
    if (f->has_kwargs) {
        jinja_value *slot = &frame->slots[f->kwargs_slot];
        MF_TRY(jinja_dict_new(run, args->num_kw - kw->num_taken, slot));
        for (size_t i = 0; i < args->num_kw; i++) {
            if (!kw->taken[i]) {
                MF_TRY(jinja_dict_set(run, slot->as.d, args->kw_names[i], args->kw_values[i]));
            }
        }
    } else if (kw->num_taken < args->num_kw) {
        return refuse_keywords(run, f, kw);
    }
    if (f->has_varargs) {
        size_t extra = args->num_pos > f->num_params ? args->num_pos - f->num_params : 0;
        jinja_value *slot = &frame->slots[f->varargs_slot];
        MF_TRY(jinja_list_new(run, JINJA_TUPLE, extra, slot));
        if (extra) {
            memcpy(slot->as.l->items, args->pos + f->num_params, extra * sizeof *args->pos);
        }
    } else if (args->num_pos > f->num_params) {
        return jinja_fail(run, MF_ERR_INVALID, "macro takes not more than %u argument(s)", f->num_params);
    }
    return MF_OK;
}

/* Fills the parameters' slots; those not given stay MISSING. */
static mf_status bind_macro(jinja_run *run, const jinja_function *f, const jinja_args *args, jinja_frame *frame)
{
    keywords kw = { .args = args };
    JINJA_NEW(run, kw.taken, args->num_kw);
    bool found_caller = args->num_pos >= f->num_params && f->explicit_caller;
    for (uint32_t i = 0; i < f->num_params; i++) {
        const jinja_name *name = f->params[i]->u.var.name;
        jinja_value *slot = &frame->slots[f->params[i]->u.var.ref.slot];
        if (i < args->num_pos) {
            *slot = args->pos[i];
        } else {
            take_keyword(&kw, name->data, slot);
            found_caller |= strcmp(name->data, "caller") == 0;
        }
    }
    return bind_special(run, f, &kw, found_caller, frame);
}

static mf_status fill_defaults(jinja_run *run, const jinja_function *f)
{
    for (uint32_t i = 0; i < f->num_params; i++) {
        jinja_value *slot = &run->frame->slots[f->params[i]->u.var.ref.slot];
        if (slot->type != JINJA_MISSING) {
            continue;
        }
        uint32_t first = f->num_params - f->num_defaults;
        jinja_value v;
        if (i >= first) {
            MF_TRY(jinja_eval(run, f->defaults[i - first], &v));
        } else {
            char hint[160];
            int n = snprintf(hint, sizeof hint, "parameter '%.100s' was not provided", f->params[i]->u.var.name->data);
            char *copy = mf_arena_strndup(&run->arena, hint, (size_t)n);
            if (!copy) {
                return jinja_no_memory(run, (size_t)n, 1);
            }
            MF_TRY(jinja_undef_hint(run, copy, &v));
        }
        *slot = v;
    }
    return MF_OK;
}

static mf_status call_in_frame(jinja_run *run, const jinja_function *f, jinja_value *out)
{
    MF_TRY(jinja_enter_scope(run, &f->scope));
    MF_TRY(fill_defaults(run, f));
    return jinja_capture_body(run, &f->body, out);
}

mf_status jinja_macro_call(jinja_run *run, const jinja_macro *macro, const jinja_args *args, jinja_value *out)
{
    jinja_frame *frame;
    if (run->call_depth >= JINJA_MAX_CALL_DEPTH) {
        return jinja_fail(run, MF_ERR_LIMIT, "macros call each other deeper than %d", JINJA_MAX_CALL_DEPTH);
    }
    MF_TRY(jinja_frame_new(run, macro->closure, macro->function->num_slots, &frame));
    MF_TRY(bind_macro(run, macro->function, args, frame));
    jinja_frame *outer = run->frame;
    run->frame = frame;
    run->call_depth++;
    mf_status status = call_in_frame(run, macro->function, out);
    run->call_depth--;
    run->frame = outer;
    return status;
}

mf_status jinja_macro_attr(jinja_run *run, const jinja_macro *macro, const char *name, size_t size, bool *found,
                           jinja_value *out)
{
    const jinja_function *f = macro->function;
    jinja_value key;
    MF_TRY(jinja_str_view(run, name, size, &key));
    *found = true;
    if (jinja_str_is(key, "name")) {
        *out = f->name.type == JINJA_MISSING ? jinja_none() : f->name;
    } else if (jinja_str_is(key, "arguments")) {
        MF_TRY(jinja_list_new(run, JINJA_TUPLE, f->num_params, out));
        for (uint32_t i = 0; i < f->num_params; i++) {
            const jinja_name *param = f->params[i]->u.var.name;
            MF_TRY(jinja_str_view(run, param->data, param->size, &out->as.l->items[i]));
        }
    } else if (jinja_str_is(key, "catch_kwargs")) {
        *out = jinja_bool(f->has_kwargs);
    } else if (jinja_str_is(key, "catch_varargs")) {
        *out = jinja_bool(f->has_varargs);
    } else if (jinja_str_is(key, "caller")) {
        *out = jinja_bool(f->has_caller);
    } else if (jinja_str_is(key, "explicit_caller")) {
        *out = jinja_bool(f->explicit_caller);
    } else {
        *found = false;
    }
    return MF_OK;
}

mf_status jinja_macro_repr(jinja_run *run, jinja_text *text, const jinja_macro *macro)
{
    const jinja_function *f = macro->function;
    if (f->name.type == JINJA_MISSING) {
        return jinja_text_puts(run, text, "<Macro anonymous>");
    }
    MF_TRY(jinja_text_puts(run, text, "<Macro "));
    MF_TRY(jinja_append_repr(run, text, f->name));
    return jinja_text_puts(run, text, ">");
}
