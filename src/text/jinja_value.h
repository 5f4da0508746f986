/* jinja_value.h - the values a chat template computes with, and one render's state: memory, limits, errors.
 *
 * Values behave as Python's do under jinja2.  They live in the render's arena and die together; strings, lists, tuples
 * and dicts never change once made, so they are shared freely.  Only namespaces, loops, cyclers and joiners change. */
#ifndef MF_TEXT_JINJA_VALUE_H
#define MF_TEXT_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/buffer.h"
#include "base/error.h"
#include "base/sys.h"

enum {
    JINJA_MAX_VALUE_DEPTH = 128, /* nesting of lists and dicts: JSON's 64 and what a template wraps around it */
    JINJA_MAX_ITER_DEPTH = 64,   /* generators reading from generators */
    JINJA_MAX_CALL_DEPTH = 64,   /* macros calling macros */
    JINJA_MAX_EVAL_DEPTH = 3000, /* nodes being evaluated at once: bounds the C stack to about 1 MiB */
    JINJA_MAX_PARAMS = 8         /* of a built-in function */
};

typedef enum jinja_type {
    JINJA_MISSING = 0, /* never visible to a template: an unset slot, an argument that was not given */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STR,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_RANGE,
    JINJA_VIEW, /* dict.keys(), values(), items() */
    JINJA_ITER, /* a generator: read once */
    JINJA_NAMESPACE,
    JINJA_MACRO,
    JINJA_LOOP,
    JINJA_FUNC,
    JINJA_METHOD,
    JINJA_CYCLER,
    JINJA_JOINER
} jinja_type;

typedef struct jinja_value {
    uint8_t type;
    union {
        bool b;
        int64_t i;
        double f;
        struct jinja_str *s;
        struct jinja_list *l; /* list, tuple */
        struct jinja_dict *d; /* dict, namespace */
        struct jinja_range *r;
        struct jinja_view *view;
        struct jinja_iter *iter;
        struct jinja_undef *undef;
        struct jinja_macro *macro;
        struct jinja_loop *loop;
        const struct jinja_builtin *func;
        struct jinja_method *method;
        struct jinja_cycler *cycler;
        struct jinja_joiner *joiner;
    } as;
} jinja_value;

/* The tail of a text that is being appended to: a + b extends a in place when nobody has appended to a before, so that
 * building a text piece by piece is linear. */
typedef struct jinja_strbuf {
    char *data;
    size_t used, capacity;
} jinja_strbuf;

typedef struct jinja_str {
    const char *data; /* UTF-8, not NUL-terminated */
    size_t size;
    int64_t chars; /* code points; -1 = not counted yet */
    jinja_strbuf *buf;
    bool markup; /* made by safe or escape */
} jinja_str;

typedef struct jinja_list {
    jinja_value *items;
    size_t count;
    bool group; /* a tuple (grouper, list) from groupby, whose parts also have names */
} jinja_list;

typedef struct jinja_entry {
    uint64_t hash;
    jinja_value key, value;
} jinja_entry;

typedef struct jinja_dict {
    jinja_entry *entries; /* in order of insertion */
    size_t count, capacity;
    uint32_t *index; /* open addressing over entries, index_size a power of two; NULL while small */
    size_t index_size;
} jinja_dict;

typedef struct jinja_range {
    int64_t start, stop, step, count;
} jinja_range;

typedef enum jinja_view_kind { JINJA_VIEW_KEYS, JINJA_VIEW_VALUES, JINJA_VIEW_ITEMS } jinja_view_kind;

typedef struct jinja_view {
    const jinja_dict *dict;
    jinja_view_kind kind;
} jinja_view;

typedef struct jinja_undef {
    const char *hint;   /* the whole message; NULL: made from the rest */
    const char *owner;  /* type that lacks the name; NULL: a variable */
    jinja_value name;   /* string, or another key */
} jinja_undef;

typedef struct jinja_args {
    const jinja_value *pos;
    size_t num_pos;
    const jinja_value *kw_names; /* strings */
    const jinja_value *kw_values;
    size_t num_kw;
} jinja_args;

struct jinja_run;

/* A filter, test, method or global function.  self is the value before the bar or the dot. */
typedef mf_status (*jinja_builtin_fn)(struct jinja_run *run, jinja_value self, const jinja_args *args, jinja_value *out);

typedef struct jinja_builtin {
    const char *name;
    jinja_builtin_fn fn; /* NULL: jinja2 has it, this interpreter does not */
} jinja_builtin;

typedef struct jinja_method {
    jinja_value self;
    const jinja_builtin *builtin;
} jinja_method;

typedef struct jinja_cycler {
    jinja_list *items;
    size_t pos;
} jinja_cycler;

typedef struct jinja_joiner {
    jinja_value separator;
    bool used;
} jinja_joiner;

/* A growing text in the arena. */
typedef struct jinja_text {
    char *data;
    size_t size, capacity;
} jinja_text;

/* Where output goes: the caller's buffer, or a text that a block captures. */
typedef struct jinja_sink {
    mf_buffer *buffer; /* NULL: text */
    jinja_text text;
} jinja_sink;

typedef enum jinja_flow { JINJA_FLOW_NEXT = 0, JINJA_FLOW_BREAK, JINJA_FLOW_CONTINUE } jinja_flow;

typedef struct jinja_run {
    const char *name; /* of the template, for messages */
    mf_arena arena;
    mf_error *err;
    int64_t fuel;      /* steps left */
    int64_t fuel_check; /* fuel at which the clock is read next */
    int64_t fuel_limit;
    int64_t time_ns, deadline_ns;
    int64_t range_limit;
    size_t output_limit, output_base;
    uint32_t line; /* of the node being evaluated */
    int32_t depth, call_depth;
    jinja_sink *sink;
    struct jinja_frame *frame;
    jinja_flow flow;
    jinja_dict *variables;
} jinja_run;

/* ---- state ---- */
/* Messages reach clients as JSON: a character that was cut becomes question marks. */
void jinja_clean_message(char *message);
mf_status jinja_fail(jinja_run *run, mf_status status, const char *fmt, ...) MF_PRINTF(3, 4);
/* The arena refused count elements of size bytes: because of its limit, or the system had none. */
mf_status jinja_no_memory(jinja_run *run, size_t count, size_t size);
mf_status jinja_step_slow(jinja_run *run);
static inline mf_status jinja_step(jinja_run *run, size_t steps)
{
    run->fuel -= steps > (size_t)1 << 40 ? (int64_t)1 << 40 : (int64_t)steps;
    return run->fuel > run->fuel_check ? MF_OK : jinja_step_slow(run);
}
/* The price of work on text: a step for each 256 bytes. */
static inline mf_status jinja_step_bytes(jinja_run *run, size_t bytes)
{
    return jinja_step(run, 1 + bytes / 256);
}

/* ptr = n zeroed elements in the arena, or return from the function. */
#define JINJA_NEW(run, ptr, n)                                              \
    do {                                                                    \
        (ptr) = mf_arena_array(&(run)->arena, (n), sizeof *(ptr));          \
        if (!(ptr)) {                                                       \
            return jinja_no_memory(run, (n), sizeof *(ptr));                \
        }                                                                   \
    } while (0)

/* ---- constructors ---- */
static inline jinja_value jinja_none(void)
{
    return (jinja_value){ .type = JINJA_NONE };
}
static inline jinja_value jinja_bool(bool b)
{
    return (jinja_value){ .type = JINJA_BOOL, .as.b = b };
}
static inline jinja_value jinja_int(int64_t i)
{
    return (jinja_value){ .type = JINJA_INT, .as.i = i };
}
static inline jinja_value jinja_float(double f)
{
    return (jinja_value){ .type = JINJA_FLOAT, .as.f = f };
}
mf_status jinja_str_view(jinja_run *run, const char *data, size_t size, jinja_value *out); /* borrows data */
mf_status jinja_str_copy(jinja_run *run, const char *data, size_t size, jinja_value *out);
mf_status jinja_str_text(jinja_run *run, jinja_text *text, jinja_value *out); /* takes the text over */
mf_status jinja_str_concat(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out);
mf_status jinja_str_as(jinja_run *run, const jinja_str *like, jinja_value *str); /* *str becomes markup when `like` is */
mf_status jinja_list_new(jinja_run *run, jinja_type type, size_t count, jinja_value *out); /* items to be filled in */
mf_status jinja_pair(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out);      /* a tuple */
mf_status jinja_undef_hint(jinja_run *run, const char *hint, jinja_value *out);            /* borrows hint */
mf_status jinja_undef_name(jinja_run *run, const char *owner, jinja_value name, jinja_value *out);
mf_status jinja_undef_fail(jinja_run *run, jinja_value undefined); /* the error that using it raises */
mf_status jinja_dict_new(jinja_run *run, size_t capacity, jinja_value *out);
mf_status jinja_dict_set(jinja_run *run, jinja_dict *dict, jinja_value key, jinja_value value);
/* *found NULL when absent.  An unhashable key is MF_ERR_INVALID. */
mf_status jinja_dict_get(jinja_run *run, const jinja_dict *dict, jinja_value key, jinja_value **found);
jinja_value *jinja_dict_get_text(const jinja_dict *dict, const char *key, size_t size);
mf_status jinja_method_new(jinja_run *run, jinja_value self, const jinja_builtin *builtin, jinja_value *out);

/* A list that grows: then out is made by jinja_items_done. */
typedef struct jinja_items {
    jinja_value *data;
    size_t count, capacity;
} jinja_items;
mf_status jinja_items_add(jinja_run *run, jinja_items *items, jinja_value value);
mf_status jinja_items_done(jinja_run *run, jinja_items *items, jinja_type type, jinja_value *out);

/* ---- texts and output ---- */
mf_status jinja_text_append(jinja_run *run, jinja_text *text, const char *data, size_t size);
mf_status jinja_text_puts(jinja_run *run, jinja_text *text, const char *s);
mf_status jinja_text_char(jinja_run *run, jinja_text *text, int32_t code_point);
mf_status jinja_text_fill(jinja_run *run, jinja_text *text, int32_t code_point, int64_t count);
mf_status jinja_write(jinja_run *run, const char *data, size_t size); /* to the sink */

/* ---- questions ---- */
const char *jinja_type_name(jinja_value v); /* Python's: "str", "NoneType" */
bool jinja_is_number(jinja_value v);        /* int, float, bool */
bool jinja_as_int(jinja_value v, int64_t *out); /* int and bool */
mf_status jinja_truth(jinja_run *run, jinja_value v, bool *out);
bool jinja_str_is(jinja_value v, const char *text);
int64_t jinja_str_chars(jinja_str *s);
/* *has false when the value has no length */
mf_status jinja_length(jinja_run *run, jinja_value v, bool *has, int64_t *length);
jinja_value jinja_range_at(const jinja_range *range, int64_t index);
mf_status jinja_view_at(jinja_run *run, const jinja_view *view, size_t index, jinja_value *out);

/* ---- comparison (jinja_compare.c) ---- */
typedef enum jinja_order { JINJA_LT, JINJA_LE, JINJA_GT, JINJA_GE } jinja_order;
mf_status jinja_equal(jinja_run *run, jinja_value a, jinja_value b, bool *out);
mf_status jinja_ordered(jinja_run *run, jinja_value a, jinja_value b, jinja_order order, bool *out);
mf_status jinja_contains(jinja_run *run, jinja_value container, jinja_value item, bool *out);
mf_status jinja_hash(jinja_run *run, jinja_value v, uint64_t *out);
bool jinja_same(jinja_value a, jinja_value b); /* Python's `is` */
/* Stable; keys[i] orders items[i]. */
mf_status jinja_sort(jinja_run *run, jinja_value *items, jinja_value *keys, size_t count, bool reverse);

/* ---- text forms (jinja_repr.c) ---- */
mf_status jinja_to_str(jinja_run *run, jinja_value v, jinja_value *out); /* str(v); markup stays markup */
mf_status jinja_append_str(jinja_run *run, jinja_text *text, jinja_value v);
mf_status jinja_append_repr(jinja_run *run, jinja_text *text, jinja_value v);
enum { JINJA_FLOAT_BYTES = 40 };
size_t jinja_float_repr(double f, char out[JINJA_FLOAT_BYTES]); /* shortest digits that read back the same */

/* ---- JSON (jinja_json.c) ---- */
typedef struct jinja_json_style {
    bool ensure_ascii, sort_keys;
    bool has_indent;
    const char *indent, *item_separator, *key_separator;
    size_t indent_size, item_separator_size, key_separator_size;
} jinja_json_style;
mf_status jinja_append_json(jinja_run *run, jinja_text *text, jinja_value v, const jinja_json_style *style);

/* ---- iteration (jinja_iter.c) ---- */
typedef enum jinja_iter_kind {
    JINJA_ITER_VALUE,   /* over a list, tuple, str, dict, range, view */
    JINJA_ITER_REVERSED,
    JINJA_ITER_ITEMS,   /* pairs of a dict */
    JINJA_ITER_MAP,     /* builtin(item, args) */
    JINJA_ITER_ATTR,    /* item.path, default */
    JINJA_ITER_SELECT,  /* items whose test or truth is `keep` */
    JINJA_ITER_UNIQUE,
    JINJA_ITER_BATCH,
    JINJA_ITER_SLICE
} jinja_iter_kind;

typedef struct jinja_iter {
    jinja_iter_kind kind;
    int32_t depth;    /* of the chain of generators below */
    bool started, done;
    jinja_value source; /* what it reads; a generator starts reading it at the first item */
    size_t pos;        /* index or byte offset in source */
    struct jinja_iter *inner;
    const jinja_builtin *builtin; /* MAP, SELECT */
    jinja_args args;
    jinja_value attribute, fallback; /* ATTR, SELECT, UNIQUE: MISSING = none */
    bool keep, case_sensitive;
    int64_t size;       /* BATCH, SLICE */
    jinja_dict *seen;   /* UNIQUE */
} jinja_iter;

/* Iterates over any iterable; a generator is read itself, not copied.  MF_ERR_INVALID for what cannot be iterated. */
mf_status jinja_iter_open(jinja_run *run, jinja_value v, jinja_iter **out);
mf_status jinja_iter_next(jinja_run *run, jinja_iter *iter, jinja_value *item, bool *done);
bool jinja_is_iterable(jinja_value v);
/* A generator that reads `source` later; the caller fills the fields of its kind. */
mf_status jinja_iter_new(jinja_run *run, jinja_iter_kind kind, jinja_value source, jinja_value *out);
mf_status jinja_collect(jinja_run *run, jinja_value v, jinja_type type, jinja_value *out); /* list(v) or tuple(v) */

/* ---- arithmetic (jinja_number.c) ---- */
typedef enum jinja_op { JINJA_ADD, JINJA_SUB, JINJA_MUL, JINJA_DIV, JINJA_FLOORDIV, JINJA_MOD, JINJA_POW } jinja_op;
mf_status jinja_binary(jinja_run *run, jinja_op op, jinja_value a, jinja_value b, jinja_value *out);
mf_status jinja_unary(jinja_run *run, bool negate, jinja_value v, jinja_value *out);
mf_status jinja_round(jinja_run *run, jinja_value v, jinja_value precision, jinja_value *out);
bool jinja_parse_float(const char *data, size_t size, double *out); /* as Python's float(str) */
typedef enum jinja_parsed { JINJA_PARSED, JINJA_NOT_A_NUMBER, JINJA_TOO_BIG } jinja_parsed;
jinja_parsed jinja_parse_int(const char *data, size_t size, int base, int64_t *out); /* as Python's int(str, base) */

/* ---- attributes, items, slices, calls (jinja_access.c) ---- */
mf_status jinja_getattr(jinja_run *run, jinja_value v, const char *name, size_t size, jinja_value *out);
mf_status jinja_getitem(jinja_run *run, jinja_value v, jinja_value key, jinja_value *out);
mf_status jinja_slice(jinja_run *run, jinja_value v, jinja_value start, jinja_value stop, jinja_value step, jinja_value *out);
mf_status jinja_getpath(jinja_run *run, jinja_value v, jinja_value path, jinja_value fallback, jinja_value *out);
mf_status jinja_call(jinja_run *run, jinja_value callee, const jinja_args *args, jinja_value *out);
/* Puts arguments in the order of `spec`: names apart by spaces; name? is optional, name/ cannot be given by name, a
 * name after * only so.  What is not given is MISSING.  out has JINJA_MAX_PARAMS elements. */
mf_status jinja_bind(jinja_run *run, const char *what, const char *spec, const jinja_args *args, jinja_value *out);
const jinja_builtin *jinja_builtin_find(const jinja_builtin *table, size_t count, const char *name, size_t size);

/* ---- tables (jinja_filters.c, jinja_tests.c, jinja_str_methods.c, jinja_methods.c, jinja_globals.c) ---- */
const jinja_builtin *jinja_filter_find(const char *name, size_t size);
const jinja_builtin *jinja_sequence_filter_find(const char *name, size_t size);
const jinja_builtin *jinja_test_find(const char *name, size_t size);
const jinja_builtin *jinja_global_find(const char *name, size_t size);
const jinja_builtin *jinja_str_method_find(const char *name, size_t size); /* those of jinja_str_search.c too */
const jinja_builtin *jinja_str_search_find(const char *name, size_t size);
const jinja_builtin *jinja_method_find(jinja_type type, const char *name, size_t size);

/* ---- formatting (jinja_format.c) ---- */
mf_status jinja_percent(jinja_run *run, jinja_value format, jinja_value args, jinja_value *out); /* format % args */
mf_status jinja_str_format(jinja_run *run, jinja_value format, const jinja_args *args, jinja_value *out);

#endif
