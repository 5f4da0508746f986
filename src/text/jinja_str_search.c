/* jinja_str_search.c - the methods of str that look for a part: find, replace, split, join and their like. */
#include <string.h>

#include "text/jinja_bind.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

static const char *find_bytes(const char *data, size_t size, const jinja_str *sub)
{
    return sub->size ? memmem(data, size, sub->data, sub->size) : data;
}

static int64_t count_chars(const char *data, size_t size)
{
    jinja_str s = { .data = data, .size = size, .chars = -1 };
    return jinja_str_chars(&s);
}

/* ---- searching ---------------------------------------------------------------------------------------------------- */

/* The bytes between code points start and end, as a slice would take them; false when start is behind the end. */
static mf_status part(jinja_run *run, const char *what, jinja_str *s, jinja_value start_v, jinja_value end_v,
                      size_t *start, size_t *end, int64_t *first, bool *valid)
{
    int64_t chars = jinja_str_chars(s);
    int64_t last;
    jinja_value missing = { .type = JINJA_MISSING };
    MF_TRY(need_int(run, what, start_v.type == JINJA_NONE ? missing : start_v, 0, first));
    MF_TRY(need_int(run, what, end_v.type == JINJA_NONE ? missing : end_v, chars, &last));
    *first = *first < 0 ? (*first + chars < 0 ? 0 : *first + chars) : *first;
    last = last < 0 ? (last + chars < 0 ? 0 : last + chars) : last > chars ? chars : last;
    *valid = *first <= last;
    if (*valid) {
        bool ascii = (size_t)chars == s->size;
        *start = ascii ? (size_t)*first : jinja_char_offset(s->data, s->size, *first);
        *end = ascii ? (size_t)last : *start + jinja_char_offset(s->data + *start, s->size - *start, last - *first);
    }
    return jinja_step_bytes(run, s->size);
}

/* From the right: matches are compared at every place, so the work is paid for by its product. */
static mf_status find_last(jinja_run *run, const char *data, size_t size, const jinja_str *sub, const char **found)
{
    *found = NULL;
    MF_TRY(jinja_step(run, size / 64));
    for (size_t i = size >= sub->size ? size - sub->size + 1 : 0; i-- > 0;) {
        if (sub->size == 0 || (data[i] == sub->data[0] && memcmp(data + i, sub->data, sub->size) == 0)) {
            *found = data + i;
            return MF_OK;
        }
        if (data[i] == sub->data[0]) {
            MF_TRY(jinja_step(run, sub->size / 256));
        }
    }
    return MF_OK;
}

static mf_status find(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, bool from_right,
                      bool must, jinja_value *out)
{
    BIND(what, "sub/ start/? end/?");
    const jinja_str *sub;
    const char *found = NULL;
    jinja_str *s = self.as.s;
    size_t start;
    size_t end;
    int64_t first;
    bool valid;
    MF_TRY(need_str(run, what, arg[0], &sub));
    MF_TRY(part(run, what, s, arg[1], arg[2], &start, &end, &first, &valid));
    if (valid && from_right) {
        MF_TRY(find_last(run, s->data + start, end - start, sub, &found));
    } else if (valid) {
        found = find_bytes(s->data + start, end - start, sub);
    }
    if (!found && must) {
        return jinja_fail(run, MF_ERR_INVALID, "%s: substring not found", what);
    }
    *out = jinja_int(found ? first + count_chars(s->data + start, (size_t)(found - s->data) - start) : -1);
    return MF_OK;
}

METHOD(str_find)
{
    return find(run, "find", self, args, false, false, out);
}

METHOD(str_rfind)
{
    return find(run, "rfind", self, args, true, false, out);
}

METHOD(str_index)
{
    return find(run, "index", self, args, false, true, out);
}

METHOD(str_rindex)
{
    return find(run, "rindex", self, args, true, true, out);
}

METHOD(str_count)
{
    BIND("count", "sub/ start/? end/?");
    const jinja_str *sub;
    jinja_str *s = self.as.s;
    size_t start;
    size_t end;
    int64_t first;
    int64_t n = 0;
    bool valid;
    MF_TRY(need_str(run, "count", arg[0], &sub));
    MF_TRY(part(run, "count", s, arg[1], arg[2], &start, &end, &first, &valid));
    if (valid && sub->size == 0) {
        n = count_chars(s->data + start, end - start) + 1;
    } else if (valid) {
        for (const char *p; (p = find_bytes(s->data + start, end - start, sub)); n++) {
            start = (size_t)(p - s->data) + sub->size;
        }
    }
    *out = jinja_int(n);
    return MF_OK;
}

static mf_status affix(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, bool prefix,
                       jinja_value *out)
{
    BIND(what, "affix/ start/? end/?");
    jinja_str *s = self.as.s;
    size_t start;
    size_t end;
    int64_t first;
    bool valid;
    bool holds = false;
    const jinja_value *options = arg[0].type == JINJA_TUPLE ? arg[0].as.l->items : arg;
    size_t count = arg[0].type == JINJA_TUPLE ? arg[0].as.l->count : 1;
    MF_TRY(part(run, what, s, arg[1], arg[2], &start, &end, &first, &valid));
    for (size_t i = 0; !holds && i < count; i++) {
        const jinja_str *a;
        MF_TRY(jinja_step(run, 1));
        MF_TRY(need_str(run, what, options[i], &a));
        holds = valid && a->size <= end - start &&
                (a->size == 0 || memcmp(prefix ? s->data + start : s->data + end - a->size, a->data, a->size) == 0);
    }
    *out = jinja_bool(holds);
    return MF_OK;
}

METHOD(str_startswith)
{
    return affix(run, "startswith", self, args, true, out);
}

METHOD(str_endswith)
{
    return affix(run, "endswith", self, args, false, out);
}

static mf_status remove_affix(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, bool prefix,
                              jinja_value *out)
{
    BIND(what, "affix/");
    const jinja_str *s = self.as.s;
    const jinja_str *a;
    MF_TRY(need_str(run, what, arg[0], &a));
    *out = self;
    if (a->size == 0 || a->size > s->size ||
        memcmp(prefix ? s->data : s->data + s->size - a->size, a->data, a->size) != 0) {
        return MF_OK;
    }
    MF_TRY(jinja_str_view(run, s->data + (prefix ? a->size : 0), s->size - a->size, out));
    return jinja_str_as(run, s, out);
}

METHOD(str_removeprefix)
{
    return remove_affix(run, "removeprefix", self, args, true, out);
}

METHOD(str_removesuffix)
{
    return remove_affix(run, "removesuffix", self, args, false, out);
}

/* ---- replacing, splitting, joining -------------------------------------------------------------------------------- */

METHOD(str_replace)
{
    BIND("replace", "old/ new/ count?");
    const jinja_str *s = self.as.s;
    const jinja_str *old;
    const jinja_str *new;
    int64_t count;
    jinja_text text = { 0 };
    MF_TRY(need_str(run, "replace", arg[0], &old));
    MF_TRY(need_str(run, "replace", arg[1], &new));
    MF_TRY(need_int(run, "replace", arg[2], -1, &count));
    MF_TRY(jinja_step_bytes(run, s->size));
    size_t pos = 0;
    while (count != 0) {
        size_t at;
        if (old->size == 0) { /* before each character and at the end */
            at = pos;
        } else {
            const char *p = memmem(s->data + pos, s->size - pos, old->data, old->size);
            if (!p) {
                break;
            }
            at = (size_t)(p - s->data);
        }
        MF_TRY(jinja_step_bytes(run, new->size));
        MF_TRY(jinja_text_append(run, &text, s->data + pos, at - pos));
        MF_TRY(jinja_text_append(run, &text, new->data, new->size));
        pos = at + old->size;
        count -= count > 0;
        if (old->size == 0) {
            if (pos >= s->size) {
                break;
            }
            jinja_next_char(s->data, s->size, &pos);
            MF_TRY(jinja_text_append(run, &text, s->data + at, pos - at));
        }
    }
    MF_TRY(jinja_text_append(run, &text, s->data + pos, s->size - pos));
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, s, out);
}

static mf_status add_part(jinja_run *run, jinja_items *items, const jinja_str *s, size_t start, size_t end)
{
    jinja_value v;
    MF_TRY(jinja_step(run, 1));
    MF_TRY(jinja_str_view(run, s->data + start, end - start, &v));
    MF_TRY(jinja_str_as(run, s, &v));
    return jinja_items_add(run, items, v);
}

static void skip_spaces(const jinja_str *s, size_t *pos, bool spaces)
{
    while (*pos < s->size) {
        size_t next = *pos;
        if (jinja_is_space(jinja_next_char(s->data, s->size, &next)) != spaces) {
            return;
        }
        *pos = next;
    }
}

static void skip_spaces_back(const jinja_str *s, size_t *pos, bool spaces)
{
    while (*pos > 0) {
        size_t before = *pos;
        if (jinja_is_space(jinja_prev_char(s->data, &before)) != spaces) {
            return;
        }
        *pos = before;
    }
}

static mf_status split_spaces(jinja_run *run, const jinja_str *s, int64_t max, jinja_items *items)
{
    size_t pos = 0;
    for (;;) {
        skip_spaces(s, &pos, true);
        if (pos >= s->size) {
            return MF_OK;
        }
        size_t start = pos;
        if (max-- == 0) {
            return add_part(run, items, s, start, s->size);
        }
        skip_spaces(s, &pos, false);
        MF_TRY(add_part(run, items, s, start, pos));
    }
}

static void reverse_items(jinja_items *items)
{
    for (size_t i = 0; i < items->count / 2; i++) {
        jinja_value v = items->data[i];
        items->data[i] = items->data[items->count - 1 - i];
        items->data[items->count - 1 - i] = v;
    }
}

static mf_status rsplit_spaces(jinja_run *run, const jinja_str *s, int64_t max, jinja_items *items)
{
    size_t pos = s->size;
    for (;;) {
        skip_spaces_back(s, &pos, true);
        if (pos == 0) {
            break;
        }
        size_t end = pos;
        if (max-- == 0) {
            MF_TRY(add_part(run, items, s, 0, end));
            break;
        }
        skip_spaces_back(s, &pos, false);
        MF_TRY(add_part(run, items, s, pos, end));
    }
    reverse_items(items);
    return MF_OK;
}

static mf_status split_at(jinja_run *run, const jinja_str *s, const jinja_str *sep, int64_t max, jinja_items *items)
{
    size_t pos = 0;
    while (max-- != 0) {
        const char *p = memmem(s->data + pos, s->size - pos, sep->data, sep->size);
        if (!p) {
            break;
        }
        MF_TRY(add_part(run, items, s, pos, (size_t)(p - s->data)));
        pos = (size_t)(p - s->data) + sep->size;
    }
    return add_part(run, items, s, pos, s->size);
}

static mf_status rsplit_at(jinja_run *run, const jinja_str *s, const jinja_str *sep, int64_t max, jinja_items *items)
{
    size_t end = s->size;
    while (max-- != 0) {
        const char *p;
        MF_TRY(find_last(run, s->data, end, sep, &p));
        if (!p) {
            break;
        }
        size_t at = (size_t)(p - s->data);
        MF_TRY(add_part(run, items, s, at + sep->size, end));
        end = at;
    }
    MF_TRY(add_part(run, items, s, 0, end));
    reverse_items(items);
    return MF_OK;
}

static mf_status split(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, bool right,
                       jinja_value *out)
{
    BIND(what, "sep? maxsplit?");
    const jinja_str *s = self.as.s;
    const jinja_str *sep;
    int64_t max;
    jinja_items items = { 0 };
    MF_TRY(need_int(run, what, arg[1], -1, &max));
    MF_TRY(jinja_step_bytes(run, s->size));
    if (arg[0].type == JINJA_MISSING || arg[0].type == JINJA_NONE) {
        MF_TRY(right ? rsplit_spaces(run, s, max, &items) : split_spaces(run, s, max, &items));
        return jinja_items_done(run, &items, JINJA_LIST, out);
    }
    MF_TRY(need_str(run, what, arg[0], &sep));
    if (sep->size == 0) {
        return jinja_fail(run, MF_ERR_INVALID, "%s: empty separator", what);
    }
    MF_TRY(right ? rsplit_at(run, s, sep, max, &items) : split_at(run, s, sep, max, &items));
    return jinja_items_done(run, &items, JINJA_LIST, out);
}

METHOD(str_split)
{
    return split(run, "split", self, args, false, out);
}

METHOD(str_rsplit)
{
    return split(run, "rsplit", self, args, true, out);
}

METHOD(str_splitlines)
{
    BIND("splitlines", "keepends?");
    const jinja_str *s = self.as.s;
    int64_t keep;
    jinja_items items = { 0 };
    MF_TRY(need_int(run, "splitlines", arg[0], 0, &keep));
    MF_TRY(jinja_step_bytes(run, s->size));
    for (size_t pos = 0; pos < s->size;) {
        size_t start = pos;
        size_t end = pos;
        while (pos < s->size) {
            int32_t c = jinja_next_char(s->data, s->size, &pos);
            if (jinja_is_line_break(c)) {
                pos += c == '\r' && pos < s->size && s->data[pos] == '\n';
                break;
            }
            end = pos;
        }
        MF_TRY(add_part(run, &items, s, start, keep ? pos : end));
    }
    return jinja_items_done(run, &items, JINJA_LIST, out);
}

static mf_status partition(jinja_run *run, const char *what, jinja_value self, const jinja_args *args, bool right,
                           jinja_value *out)
{
    BIND(what, "sep/");
    const jinja_str *s = self.as.s;
    const jinja_str *sep;
    const char *p;
    MF_TRY(need_str(run, what, arg[0], &sep));
    if (sep->size == 0) {
        return jinja_fail(run, MF_ERR_INVALID, "%s: empty separator", what);
    }
    if (right) {
        MF_TRY(find_last(run, s->data, s->size, sep, &p));
    } else {
        p = find_bytes(s->data, s->size, sep);
    }
    size_t at = p ? (size_t)(p - s->data) : right ? 0 : s->size;
    size_t after = p ? at + sep->size : at;
    jinja_items items = { 0 };
    MF_TRY(add_part(run, &items, s, 0, at));
    MF_TRY(add_part(run, &items, s, at, after));
    MF_TRY(add_part(run, &items, s, after, s->size));
    return jinja_items_done(run, &items, JINJA_TUPLE, out);
}

METHOD(str_partition)
{
    return partition(run, "partition", self, args, false, out);
}

METHOD(str_rpartition)
{
    return partition(run, "rpartition", self, args, true, out);
}

METHOD(str_join)
{
    BIND("join", "iterable/");
    const jinja_str *s = self.as.s;
    jinja_iter *iter;
    jinja_text text = { 0 };
    MF_TRY(jinja_iter_open(run, arg[0], &iter));
    for (size_t i = 0;; i++) {
        jinja_value item;
        bool done;
        MF_TRY(jinja_iter_next(run, iter, &item, &done));
        if (done) {
            break;
        }
        if (s->markup) {
            MF_TRY(jinja_filter_find("escape", 6)->fn(run, item, &(jinja_args){ 0 }, &item));
        }
        if (item.type != JINJA_STR) {
            return jinja_fail(run, MF_ERR_INVALID, "join: item %zu: expected str, got %s", i, jinja_type_name(item));
        }
        if (i) {
            MF_TRY(jinja_text_append(run, &text, s->data, s->size));
        }
        MF_TRY(jinja_step_bytes(run, s->size + item.as.s->size));
        MF_TRY(jinja_text_append(run, &text, item.as.s->data, item.as.s->size));
    }
    MF_TRY(jinja_str_text(run, &text, out));
    return jinja_str_as(run, s, out);
}

const jinja_builtin *jinja_str_search_find(const char *name, size_t size)
{
    static const jinja_builtin table[] = {
        { "startswith", str_startswith }, { "endswith", str_endswith }, { "find", str_find }, { "rfind", str_rfind },
        { "index", str_index }, { "rindex", str_rindex }, { "count", str_count }, { "replace", str_replace },
        { "split", str_split }, { "rsplit", str_rsplit }, { "splitlines", str_splitlines },
        { "partition", str_partition }, { "rpartition", str_rpartition }, { "removeprefix", str_removeprefix },
        { "removesuffix", str_removesuffix }, { "join", str_join },
    };
    return jinja_builtin_find(table, sizeof table / sizeof *table, name, size);
}
