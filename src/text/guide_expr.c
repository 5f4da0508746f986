/* guide_expr.c - rules and expressions of a program being made, in one arena, within its limits of time and size. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "text/guide_impl.h"

enum { ARENA_BYTES = 64 << 20, MAX_EXPRS = 1 << 20, MAX_COST = 1 << 30 };

mf_status mf_guide_build_open(mf_guide_build *b, const mf_guide_limits *limits, mf_error *err)
{
    *b = (mf_guide_build){ .err = err, .string_rule = -1, .value_rule = -1, .number_rule = -1,
                            .integer_rule = -1 };
    b->arena.limit_bytes = ARENA_BYTES;
    b->limits = limits ? *limits : (mf_guide_limits){ 0 };
    b->limits.source_bytes = b->limits.source_bytes ? b->limits.source_bytes : 64 << 10;
    b->limits.depth = b->limits.depth ? b->limits.depth : 64;
    b->limits.states = b->limits.states ? b->limits.states : 100000;
    b->limits.compile_ns = b->limits.compile_ns ? b->limits.compile_ns : 100000000;
    b->deadline_ns = mf_now_ns() + b->limits.compile_ns;
    return mf_guide_add_rule(b, "the text", 8) == 0 ? MF_OK : b->status;
}

void mf_guide_build_close(mf_guide_build *b)
{
    mf_arena_clear(&b->arena);
    mf_free(b->rules);
    b->rules = NULL;
}

mf_status mf_guide_build_fail(mf_guide_build *b, mf_status status, const char *fmt, ...)
{
    if (b->status == MF_OK) {
        char message[400];
        va_list args;
        va_start(args, fmt);
        vsnprintf(message, sizeof message, fmt, args);
        va_end(args);
        b->status = mf_fail(b->err, status, "%s", message);
    }
    return b->status;
}

bool mf_guide_build_is_late(mf_guide_build *b)
{
    if (b->status == MF_OK && mf_now_ns() > b->deadline_ns) {
        mf_guide_build_fail(b, MF_ERR_LIMIT, "compiling took longer than %lld ms",
                            (long long)(b->limits.compile_ns / 1000000));
    }
    return b->status != MF_OK;
}

void *mf_guide_build_alloc(mf_guide_build *b, size_t count, size_t size)
{
    void *p = b->status == MF_OK ? mf_arena_array(&b->arena, count, size) : NULL;
    if (!p && b->status == MF_OK) {
        mf_guide_build_fail(b, MF_ERR_LIMIT, "compiling needs more than %d MiB", ARENA_BYTES >> 20);
    }
    return p;
}

int32_t mf_guide_add_rule(mf_guide_build *b, const char *name, size_t size)
{
    if (b->status != MF_OK) {
        return -1;
    }
    if (b->num_rules == MF_GUIDE_MAX_RULES) {
        mf_guide_build_fail(b, MF_ERR_LIMIT, "more than %d rules", MF_GUIDE_MAX_RULES);
        return -1;
    }
    if (b->num_rules == b->rules_capacity) {
        int32_t capacity = b->rules_capacity ? 2 * b->rules_capacity : 64;
        mf_guide_rule *rules = mf_resize_array(b->rules, (size_t)capacity, sizeof *rules);
        if (!rules) {
            mf_guide_build_fail(b, MF_ERR_NOMEM, "out of memory for rules");
            return -1;
        }
        b->rules = rules;
        b->rules_capacity = capacity;
    }
    char *copy = mf_guide_build_alloc(b, size + 1, 1);
    if (!copy) {
        return -1;
    }
    memcpy(copy, name, size);
    b->rules[b->num_rules] = (mf_guide_rule){ .name = copy };
    return b->num_rules++;
}

static mf_guide_expr *new_expr(mf_guide_build *b, mf_guide_kind kind)
{
    mf_guide_expr *e = mf_guide_build_alloc(b, 1, sizeof *e);
    if (!e) {
        return NULL;
    }
    if (++b->num_exprs > MAX_EXPRS) {
        mf_guide_build_fail(b, MF_ERR_LIMIT, "more than %d parts", MAX_EXPRS);
        return NULL;
    }
    if (b->num_exprs % 1024 == 0 && mf_guide_build_is_late(b)) {
        return NULL;
    }
    e->kind = kind;
    return e;
}

static int32_t add_chars(int32_t a, int32_t b)
{
    return a == INT32_MAX || b == INT32_MAX || a > INT32_MAX - b ? INT32_MAX : a + b;
}

static int32_t times_chars(int32_t a, int32_t n)
{
    return a == 0 || n == 0 ? 0 : n < 0 || a == INT32_MAX || a > INT32_MAX / n ? INT32_MAX : a * n;
}

static void set_cost(mf_guide_expr *e, int64_t cost)
{
    e->cost = cost < MAX_COST ? cost : MAX_COST;
}

mf_guide_expr *mf_guide_empty(mf_guide_build *b)
{
    return new_expr(b, MF_GUIDE_EMPTY);
}

mf_guide_expr *mf_guide_bytes(mf_guide_build *b, const char *bytes, size_t size)
{
    if (size == 0) {
        return mf_guide_empty(b);
    }
    mf_guide_expr *e = new_expr(b, MF_GUIDE_BYTES);
    char *copy = e ? mf_guide_build_alloc(b, size, 1) : NULL;
    if (!copy) {
        return NULL;
    }
    memcpy(copy, bytes, size);
    e->bytes = copy;
    e->size = size;
    set_cost(e, (int64_t)size);
    for (size_t i = 0; i < size; i++) {
        e->min_chars += ((uint8_t)bytes[i] & 0xc0) != 0x80;
    }
    e->max_chars = e->min_chars;
    return e;
}

mf_guide_expr *mf_guide_text(mf_guide_build *b, const char *text)
{
    return mf_guide_bytes(b, text, strlen(text));
}

mf_guide_expr *mf_guide_set(mf_guide_build *b, const mf_char_range *ranges, size_t count, bool in_json)
{
    mf_guide_expr *e = new_expr(b, MF_GUIDE_SET);
    mf_char_range *copy = e ? mf_guide_build_alloc(b, count + 1, sizeof *copy) : NULL;
    if (!copy) {
        return NULL;
    }
    memcpy(copy, ranges, count * sizeof *copy);
    e->ranges = copy;
    e->size = count;
    e->in_json = in_json;
    e->min_chars = 1;
    e->max_chars = 1;
    int64_t cost = 0;
    for (size_t i = 0; i < count; i++) {
        cost += ranges[i].last < 0x80 ? 1 : 4;
    }
    set_cost(e, cost);
    return e;
}

static mf_guide_expr *new_list(mf_guide_build *b, mf_guide_kind kind, mf_guide_expr *const *items, int32_t n)
{
    mf_guide_expr *e = new_expr(b, kind);
    mf_guide_expr **copy = e ? mf_guide_build_alloc(b, (size_t)n + 1, sizeof *copy) : NULL;
    if (!copy) {
        return NULL;
    }
    e->items = copy;
    e->num_items = n;
    e->min_chars = kind == MF_GUIDE_ALT ? INT32_MAX : 0;
    int64_t cost = 1;
    for (int32_t i = 0; i < n; i++) {
        const mf_guide_expr *item = items[i];
        if (!item) {
            return NULL; /* its maker has failed */
        }
        copy[i] = items[i];
        cost += item->cost + 1;
        if (kind == MF_GUIDE_SEQ) {
            e->min_chars = add_chars(e->min_chars, item->min_chars);
            e->max_chars = add_chars(e->max_chars, item->max_chars);
        } else {
            e->min_chars = item->min_chars < e->min_chars ? item->min_chars : e->min_chars;
            e->max_chars = item->max_chars > e->max_chars ? item->max_chars : e->max_chars;
        }
    }
    set_cost(e, cost);
    return e;
}

mf_guide_expr *mf_guide_seq(mf_guide_build *b, mf_guide_expr *const *items, int32_t n)
{
    return n == 1 ? items[0] : n == 0 ? mf_guide_empty(b) : new_list(b, MF_GUIDE_SEQ, items, n);
}

mf_guide_expr *mf_guide_alt(mf_guide_build *b, mf_guide_expr *const *items, int32_t n)
{
    if (n == 0) {
        mf_guide_build_fail(b, MF_ERR_INVALID, "nothing to choose from");
        return NULL;
    }
    return n == 1 ? items[0] : new_list(b, MF_GUIDE_ALT, items, n);
}

mf_guide_expr *mf_guide_repeat(mf_guide_build *b, mf_guide_expr *item, int32_t min, int32_t max)
{
    if (!item) {
        return NULL;
    }
    if (max == 0) {
        return mf_guide_empty(b);
    }
    if (min == 1 && max == 1) {
        return item;
    }
    mf_guide_expr *e = new_list(b, MF_GUIDE_REPEAT, &item, 1);
    if (e) {
        e->min = min;
        e->max = max;
        e->min_chars = times_chars(item->min_chars, min);
        e->max_chars = times_chars(item->max_chars, max);
        set_cost(e, (item->cost + 1) * (max < 0 ? (int64_t)min + 1 : max));
    }
    return e;
}

mf_guide_expr *mf_guide_ref(mf_guide_build *b, int32_t rule)
{
    mf_guide_expr *e = rule >= 0 ? new_expr(b, MF_GUIDE_REF) : NULL;
    if (e) {
        e->rule = rule;
        e->max_chars = INT32_MAX;
        set_cost(e, 1);
    }
    return e;
}

mf_guide_expr *mf_guide_seq2(mf_guide_build *b, mf_guide_expr *first, mf_guide_expr *second)
{
    return mf_guide_seq(b, (mf_guide_expr *const[]){ first, second }, 2);
}

mf_guide_expr *mf_guide_seq3(mf_guide_build *b, mf_guide_expr *first, mf_guide_expr *second, mf_guide_expr *third)
{
    return mf_guide_seq(b, (mf_guide_expr *const[]){ first, second, third }, 3);
}

mf_guide_expr *mf_guide_optional(mf_guide_build *b, mf_guide_expr *item)
{
    return mf_guide_repeat(b, item, 0, 1);
}

void mf_guide_list_add(mf_guide_build *b, mf_guide_list *list, mf_guide_expr *item)
{
    if (list->num == list->capacity) {
        int32_t capacity = list->capacity ? 2 * list->capacity : 8;
        mf_guide_expr **items = mf_guide_build_alloc(b, (size_t)capacity, sizeof *items);
        if (!items) {
            return;
        }
        if (list->num > 0) {
            memcpy(items, list->items, (size_t)list->num * sizeof *items);
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->num++] = item;
}

mf_guide_expr *mf_guide_members(mf_guide_build *b, mf_guide_expr *separator, const mf_guide_list *members,
                                const bool *is_optional, mf_guide_expr *tail)
{
    mf_guide_list items = { 0 };
    mf_guide_list_add(b, &items, separator);
    for (int32_t i = 0; i < members->num; i++) {
        mf_guide_list_add(b, &items, members->items[i]);
    }
    if (tail) {
        mf_guide_list_add(b, &items, tail);
    }
    bool *copy = mf_guide_build_alloc(b, (size_t)members->num + 1, sizeof *copy);
    mf_guide_expr *e = copy && b->status == MF_OK ? new_list(b, MF_GUIDE_MEMBERS, items.items, items.num) : NULL;
    if (e) {
        memcpy(copy, is_optional, (size_t)members->num * sizeof *copy);
        e->is_optional = copy;
        e->has_tail = tail != NULL;
        set_cost(e, e->cost + separator->cost * members->num);
        e->min_chars = 0;
        e->max_chars = INT32_MAX;
    }
    return e;
}

void mf_guide_fail_at(mf_guide_build *b, mf_status status, size_t at, const char *message)
{
    mf_guide_build_fail(b, status, "byte %zu: %s", at, message);
}
