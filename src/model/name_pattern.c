/* name_pattern.c - patterns over module names as Thompson automata: see name_pattern.h.
 *
 * Operators are reduced on explicit stacks as they are read; a fragment has one entry and one exit node, so that
 * joining two is one link.  Matching keeps the set of nodes that are alive: no state is tried twice at a position. */
#include "model/name_pattern.h"

#include <stdint.h>
#include <string.h>

#include "base/sys.h"

enum { MAX_TEXT = 512, MAX_NODES = 1200, MAX_DEPTH = 64 };

typedef enum node_kind { NODE_EMPTY, NODE_SET, NODE_BEGIN, NODE_END, NODE_ACCEPT } node_kind;

typedef struct node {
    node_kind kind;
    int16_t next[2]; /* -1: none; NODE_EMPTY may have two */
    uint64_t set[2]; /* NODE_SET: the ASCII characters; names hold no others */
} node;

struct mf_name_pattern {
    int32_t num_nodes, start;
    node nodes[];
};

typedef struct fragment {
    int16_t first, last;
} fragment;

typedef struct compiler {
    const char *at;
    const char *why;
    mf_status status;
    int32_t num_nodes, num_values, num_operators;
    node nodes[MAX_NODES];
    fragment values[2 * MAX_TEXT];
    char operators[2 * MAX_TEXT]; /* '(' '|' and '&' for one after the other */
} compiler;

static void refuse(compiler *c, mf_status status, const char *why)
{
    if (c->status == MF_OK) {
        c->status = status;
        c->why = why;
    }
}

static int16_t new_node(compiler *c, node_kind kind, int16_t next)
{
    if (c->num_nodes == MAX_NODES) {
        refuse(c, MF_ERR_UNSUPPORTED, "is too long");
        return 0;
    }
    c->nodes[c->num_nodes] = (node){ .kind = kind, .next = { next, -1 } };
    return (int16_t)c->num_nodes++;
}

static void push_node(compiler *c, node_kind kind, const uint64_t set[2])
{
    const int16_t last = new_node(c, NODE_EMPTY, -1);
    const int16_t first = new_node(c, kind, last);
    if (set) {
        memcpy(c->nodes[first].set, set, sizeof c->nodes[first].set);
    }
    c->values[c->num_values++] = (fragment){ first, last };
}

/* ---- operators ---- */

static void reduce(compiler *c)
{
    const char op = c->operators[--c->num_operators];
    if (c->num_values < 2) {
        refuse(c, MF_ERR_INVALID, "has an empty alternative");
        return;
    }
    const fragment b = c->values[--c->num_values];
    fragment *a = &c->values[c->num_values - 1];
    if (op == '&') {
        c->nodes[a->last].next[0] = b.first;
        a->last = b.last;
        return;
    }
    const int16_t first = new_node(c, NODE_EMPTY, a->first), last = new_node(c, NODE_EMPTY, -1);
    c->nodes[first].next[1] = b.first;
    c->nodes[a->last].next[0] = c->nodes[b.last].next[0] = last;
    *a = (fragment){ first, last };
}

/* Everything above the last '(' into one value; concatenation only when `concatenations`. */
static void reduce_down(compiler *c, bool only_concatenations)
{
    while (c->status == MF_OK && c->num_operators > 0 && c->operators[c->num_operators - 1] != '(' &&
           (!only_concatenations || c->operators[c->num_operators - 1] == '&')) {
        reduce(c);
    }
}

static void repeat(compiler *c, char how)
{
    fragment *a = &c->values[c->num_values - 1];
    const int16_t first = new_node(c, NODE_EMPTY, a->first), last = new_node(c, NODE_EMPTY, -1);
    c->nodes[a->last].next[0] = last;
    if (how != '?') {
        c->nodes[a->last].next[1] = a->first;
    }
    if (how != '+') {
        c->nodes[first].next[1] = last;
    }
    *a = (fragment){ first, last };
}

/* ---- characters ---- */

static void add_range(uint64_t set[2], int low, int high)
{
    for (int ch = low; ch <= high; ch++) {
        set[ch / 64] |= (uint64_t)1 << (ch % 64);
    }
}

/* After a backslash: adds what it stands for. */
static void add_escape(compiler *c, uint64_t set[2])
{
    const char ch = *c->at;
    const bool is_word = (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9');
    if (ch == 'd' || ch == 'w') {
        add_range(set, '0', '9');
        if (ch == 'w') {
            add_range(set, 'a', 'z');
            add_range(set, 'A', 'Z');
            add_range(set, '_', '_');
        }
    } else if (ch == '\0') {
        refuse(c, MF_ERR_INVALID, "ends in a backslash");
        return;
    } else if (is_word || (ch & 0x80)) {
        refuse(c, MF_ERR_UNSUPPORTED, "has an escape other than \\d, \\w and escaped punctuation");
    } else {
        add_range(set, ch, ch);
    }
    c->at++;
}

/* After '['. */
static void read_class(compiler *c)
{
    uint64_t set[2] = { 0, 0 };
    const bool negated = *c->at == '^';
    c->at += negated;
    for (bool first = true; c->status == MF_OK && (first || *c->at != ']'); first = false) {
        const char low = *c->at;
        if (low == '\0' || (low & 0x80)) {
            refuse(c, MF_ERR_INVALID, "has a class that is not closed");
            return;
        }
        c->at++;
        if (low == '[') {
            refuse(c, MF_ERR_UNSUPPORTED, "has a '[' inside a class");
        } else if (low == '\\') {
            add_escape(c, set);
        } else if (c->at[0] == '-' && c->at[1] != ']' && c->at[1] != '\0') {
            const char high = c->at[1];
            if (high < low || high == '\\' || (high & 0x80)) {
                refuse(c, MF_ERR_INVALID, "has a class with a range that runs backwards");
                return;
            }
            add_range(set, low, high);
            c->at += 2;
        } else {
            add_range(set, low, low);
        }
    }
    if (c->status != MF_OK) { /* perhaps at the text's end */
        return;
    }
    c->at++;
    if (negated) {
        set[0] = ~set[0];
        set[1] = ~set[1];
    }
    push_node(c, NODE_SET, set);
}

static void read_operand(compiler *c, char ch)
{
    uint64_t set[2] = { 0, 0 };
    switch (ch) {
    case '.':
        set[0] = set[1] = ~(uint64_t)0;
        push_node(c, NODE_SET, set);
        return;
    case '^':
        push_node(c, NODE_BEGIN, NULL);
        return;
    case '$':
        push_node(c, NODE_END, NULL);
        return;
    case '[':
        read_class(c);
        return;
    case '\\':
        add_escape(c, set);
        push_node(c, NODE_SET, set);
        return;
    default:
        if (ch & 0x80) {
            refuse(c, MF_ERR_UNSUPPORTED, "has a character outside ASCII");
            return;
        }
        add_range(set, ch, ch);
        push_node(c, NODE_SET, set);
    }
}

static void read_all(compiler *c)
{
    int depth = 0;
    bool after_operand = false, after_repeat = false;
    while (c->status == MF_OK && *c->at) {
        const char ch = *c->at++;
        if (ch == '*' || ch == '+' || ch == '?') {
            if (after_repeat && ch == '?') { /* lazy: the same names match */
                after_repeat = false;
            } else if (!after_operand || after_repeat) {
                refuse(c, MF_ERR_INVALID, "repeats nothing");
            } else {
                repeat(c, ch);
                after_repeat = true;
            }
            continue;
        }
        after_repeat = false;
        if (ch == '{' || ch == '}') {
            refuse(c, MF_ERR_UNSUPPORTED, "has a counted repetition");
        } else if (ch == '|' || ch == ')') {
            if (!after_operand) {
                refuse(c, MF_ERR_UNSUPPORTED, "has an empty alternative");
                return;
            }
            reduce_down(c, ch == '|');
            if (ch == '|') {
                c->operators[c->num_operators++] = '|';
                after_operand = false;
            } else if (depth-- == 0) {
                refuse(c, MF_ERR_INVALID, "closes a group that is not open");
            } else {
                c->num_operators--;
            }
        } else {
            if (after_operand) {
                reduce_down(c, true);
                c->operators[c->num_operators++] = '&';
            }
            if (ch != '(') {
                read_operand(c, ch);
                after_operand = true;
                continue;
            }
            if (*c->at == '?') {
                if (c->at[1] != ':') {
                    refuse(c, MF_ERR_UNSUPPORTED, "has a group other than (...) and (?:...)");
                    return;
                }
                c->at += 2;
            }
            if (++depth > MAX_DEPTH) {
                refuse(c, MF_ERR_UNSUPPORTED, "has groups too deep");
            }
            c->operators[c->num_operators++] = '(';
            after_operand = false;
        }
    }
    if (c->status == MF_OK && depth > 0) {
        refuse(c, MF_ERR_INVALID, "has a group that is not closed");
    } else if (c->status == MF_OK && !after_operand) {
        refuse(c, MF_ERR_INVALID, "is empty or ends in '|'");
    }
    reduce_down(c, false);
}

mf_status mf_name_pattern_compile(const char *text, mf_arena *arena, const mf_name_pattern **out, const char **why)
{
    *out = NULL;
    *why = NULL;
    if (strlen(text) > MAX_TEXT) {
        *why = "is too long";
        return MF_ERR_UNSUPPORTED;
    }
    compiler *c = mf_alloc_zero(sizeof *c);
    if (!c) {
        return MF_ERR_NOMEM;
    }
    mf_status status = MF_OK;
    c->at = text;
    read_all(c);
    if (c->status == MF_OK) {
        const int16_t accept = new_node(c, NODE_ACCEPT, -1);
        c->nodes[c->values[0].last].next[0] = accept;
    }
    *why = c->why;
    MF_TRY_GOTO(c->status, done);
    mf_name_pattern *pattern = mf_arena_alloc(arena, sizeof *pattern + (size_t)c->num_nodes * sizeof *pattern->nodes);
    if (!pattern) {
        status = MF_ERR_NOMEM;
        goto done;
    }
    pattern->num_nodes = c->num_nodes;
    pattern->start = c->values[0].first;
    memcpy(pattern->nodes, c->nodes, (size_t)c->num_nodes * sizeof *c->nodes);
    *out = pattern;
done:
    mf_free(c);
    return status;
}

/* ---- matching ---- */

typedef struct alive {
    int32_t count;
    int16_t nodes[MAX_NODES];
    uint8_t seen[MAX_NODES];
} alive;

/* Adds what can be reached from a node without a character; true: the end of the pattern is. */
static bool add_reachable(const mf_name_pattern *p, alive *set, int16_t from, bool at_begin, bool at_end)
{
    int16_t stack[MAX_NODES];
    int32_t depth = 0;
    if (!set->seen[from]) {
        set->seen[from] = 1;
        stack[depth++] = from;
    }
    while (depth > 0) { /* a node is pushed once */
        const int16_t i = stack[--depth];
        const node *n = &p->nodes[i];
        if (n->kind == NODE_ACCEPT) {
            return true;
        }
        if (n->kind == NODE_SET) {
            set->nodes[set->count++] = i;
            continue;
        }
        if ((n->kind == NODE_BEGIN && !at_begin) || (n->kind == NODE_END && !at_end)) {
            continue;
        }
        for (int k = 0; k < 2; k++) {
            const int16_t next = n->next[k];
            if (next >= 0 && !set->seen[next]) {
                set->seen[next] = 1;
                stack[depth++] = next;
            }
        }
    }
    return false;
}

bool mf_name_pattern_matches(const mf_name_pattern *p, const char *name)
{
    alive sets[2];
    alive *now = &sets[0], *then = &sets[1];
    now->count = 0;
    memset(now->seen, 0, (size_t)p->num_nodes);
    if (add_reachable(p, now, (int16_t)p->start, true, name[0] == '\0')) {
        return true;
    }
    for (const char *at = name; *at && now->count > 0; at++) {
        const uint8_t ch = (uint8_t)*at;
        then->count = 0;
        memset(then->seen, 0, (size_t)p->num_nodes);
        for (int32_t i = 0; i < now->count; i++) {
            const node *n = &p->nodes[now->nodes[i]];
            const bool is_in = ch < 128 ? n->set[ch / 64] >> (ch % 64) & 1 : n->set[0] == ~(uint64_t)0;
            if (is_in && add_reachable(p, then, n->next[0], false, at[1] == '\0')) {
                return true;
            }
        }
        alive *swap = now;
        now = then;
        then = swap;
    }
    return false;
}
