/* guide_nfa.c - expressions into nodes and edges, without recursion; then what cannot end is marked, and left recursion refused.
 *
 * An expression is written between two given nodes.  Nodes in the middle of a repeat are its own, so a start node never has an
 * edge from inside and an end node none to inside. */
#include <string.h>

#include "base/sys.h"
#include "text/guide_impl.h"
#include "text/utf8.h"

enum { EDGES_PER_NODE = 4, MAX_INLINE_SET_COST = 4096, SUFFIX_SLOTS = 1024 };

typedef struct task {
    const mf_guide_expr *expr;
    int32_t from, to;
    int64_t copies; /* that the repeats around it make */
} task;

typedef struct suffix {
    int32_t target, node;
    uint32_t stamp;
    uint8_t low, high;
} suffix;

typedef struct maker {
    mf_guide_build *b;
    mf_guide_nfa *nfa;
    task *tasks;
    size_t num_tasks, tasks_capacity;
    suffix suffixes[SUFFIX_SLOTS]; /* of the character set being written: tails that its byte sequences share */
    uint32_t suffix_stamp;
} maker;

/* ---- nodes, edges, tasks ------------------------------------------------------------------------------------------ */

static int32_t add_node(maker *m)
{
    mf_guide_nfa *n = m->nfa;
    if (m->b->status != MF_OK) {
        return 0;
    }
    if (n->num_nodes >= m->b->limits.states) {
        mf_guide_build_fail(m->b, MF_ERR_LIMIT, "more than %d states", m->b->limits.states);
        return 0;
    }
    if (n->num_nodes % 1024 == 0 && mf_guide_build_is_late(m->b)) {
        return 0;
    }
    if (n->num_nodes == n->nodes_capacity) {
        int32_t capacity = n->nodes_capacity ? 2 * n->nodes_capacity : 1024;
        int32_t *first = mf_resize_array(n->first_edge, (size_t)capacity, sizeof *first);
        if (!first) {
            mf_guide_build_fail(m->b, MF_ERR_NOMEM, "out of memory for states");
            return 0;
        }
        n->first_edge = first;
        n->nodes_capacity = capacity;
    }
    n->first_edge[n->num_nodes] = -1;
    return n->num_nodes++;
}

static void add_edge(maker *m, int32_t from, mf_guide_edge edge)
{
    mf_guide_nfa *n = m->nfa;
    if (m->b->status != MF_OK) {
        return;
    }
    if (n->num_edges / EDGES_PER_NODE >= m->b->limits.states) {
        mf_guide_build_fail(m->b, MF_ERR_LIMIT, "more than %d transitions", m->b->limits.states * EDGES_PER_NODE);
        return;
    }
    if (n->num_edges % 4096 == 0 && mf_guide_build_is_late(m->b)) {
        return;
    }
    if (n->num_edges == n->edges_capacity) {
        int32_t capacity = n->edges_capacity ? 2 * n->edges_capacity : 2048;
        mf_guide_edge *edges = mf_resize_array(n->edges, (size_t)capacity, sizeof *edges);
        if (!edges) {
            mf_guide_build_fail(m->b, MF_ERR_NOMEM, "out of memory for transitions");
            return;
        }
        n->edges = edges;
        n->edges_capacity = capacity;
    }
    edge.next = n->first_edge[from];
    n->first_edge[from] = n->num_edges;
    n->edges[n->num_edges++] = edge;
}

static void add_byte_edge(maker *m, int32_t from, int32_t to, uint8_t low, uint8_t high)
{
    add_edge(m, from, (mf_guide_edge){ .target = to, .kind = MF_GUIDE_EDGE_BYTE, .low = low, .high = high });
}

static void add_free_edge(maker *m, int32_t from, int32_t to)
{
    add_edge(m, from, (mf_guide_edge){ .target = to, .kind = MF_GUIDE_EDGE_FREE });
}

static void add_call(maker *m, int32_t from, int32_t to, int32_t rule)
{
    add_edge(m, from, (mf_guide_edge){ .target = to, .rule = rule, .kind = MF_GUIDE_EDGE_CALL });
}

static void push(maker *m, const mf_guide_expr *expr, int32_t from, int32_t to, int64_t copies)
{
    if (m->b->status != MF_OK) {
        return;
    }
    if (m->num_tasks == m->tasks_capacity) {
        size_t capacity = m->tasks_capacity ? 2 * m->tasks_capacity : 256;
        task *tasks = mf_resize_array(m->tasks, capacity, sizeof *tasks);
        if (!tasks) {
            mf_guide_build_fail(m->b, MF_ERR_NOMEM, "out of memory for parts");
            return;
        }
        m->tasks = tasks;
        m->tasks_capacity = capacity;
    }
    m->tasks[m->num_tasks++] = (task){ expr, from, to, copies };
}

/* ---- characters --------------------------------------------------------------------------------------------------- */

static void write_bytes(maker *m, const char *bytes, size_t size, int32_t from, int32_t to)
{
    for (size_t i = 0; i < size; i++) {
        int32_t next = i + 1 < size ? add_node(m) : to;
        add_byte_edge(m, from, next, (uint8_t)bytes[i], (uint8_t)bytes[i]);
        from = next;
    }
}

/* A node with one edge to target; equal ones of the same set are one. */
static int32_t tail_node(maker *m, int32_t target, uint8_t low, uint8_t high)
{
    uint32_t hash = ((uint32_t)target * 2654435761u ^ (uint32_t)low * 40503u ^ (uint32_t)high * 9973u) >> 7;
    suffix *s = &m->suffixes[hash % SUFFIX_SLOTS];
    if (s->stamp == m->suffix_stamp && s->target == target && s->low == low && s->high == high) {
        return s->node;
    }
    int32_t node = add_node(m);
    add_byte_edge(m, node, target, low, high);
    *s = (suffix){ .target = target, .node = node, .stamp = m->suffix_stamp, .low = low, .high = high };
    return node;
}

static void write_sequence(maker *m, uint32_t first, uint32_t last, int32_t from, int32_t to)
{
    char low[4], high[4];
    size_t n = mf_utf8_put(first, low);
    mf_utf8_put(last, high);
    int32_t target = to;
    for (size_t i = n - 1; i > 0; i--) {
        target = tail_node(m, target, (uint8_t)low[i], (uint8_t)high[i]);
    }
    add_byte_edge(m, from, target, (uint8_t)low[0], (uint8_t)high[0]);
}

/* A range as sequences of byte ranges: cut where the length changes, and where a lead byte would not have all of its tails. */
static void write_range(maker *m, uint32_t first, uint32_t last, int32_t from, int32_t to)
{
    struct {
        uint32_t first, last;
    } stack[64];
    size_t top = 0;
    stack[top].first = first;
    stack[top++].last = last;
    while (top > 0 && m->b->status == MF_OK) {
        uint32_t lo = stack[top - 1].first, hi = stack[top - 1].last;
        uint32_t cut = 0; /* the last code point of the first part; 0 = whole */
        static const uint32_t ends[] = { 0x7f, 0x7ff, 0xd7ff, 0xdfff, 0xffff };
        for (int i = 0; i < 5 && !cut; i++) {
            cut = lo <= ends[i] && ends[i] < hi ? ends[i] : 0;
        }
        for (uint32_t bits = 6; bits <= 18 && !cut && hi > 0x7f; bits += 6) {
            uint32_t tail = (1u << bits) - 1;
            if ((lo & ~tail) != (hi & ~tail)) {
                cut = lo & tail ? lo | tail : (hi & tail) != tail ? (hi & ~tail) - 1 : 0;
            }
        }
        top--;
        if (cut) {
            stack[top].first = lo;
            stack[top++].last = cut;
            stack[top].first = cut + 1;
            stack[top++].last = hi;
        } else if (lo < 0xd800 || lo > 0xdfff) {
            write_sequence(m, lo, hi, from, to);
        }
    }
}

/* In a JSON string quotes, backslashes and control characters are written as escapes, the short one where there is one. */
static void write_escape(maker *m, uint32_t c, int32_t from, int32_t to)
{
    static const char codes[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    static const char hex[] = "0123456789abcdef";
    for (size_t i = 0; codes[i]; i += 2) {
        if ((uint32_t)codes[i] == c) {
            write_bytes(m, (const char[]){ '\\', codes[i + 1] }, 2, from, to);
            return;
        }
    }
    write_bytes(m, (const char[]){ '\\', 'u', '0', '0', hex[c >> 4], hex[c & 15] }, 6, from, to);
}

static void write_json_range(maker *m, uint32_t first, uint32_t last, int32_t from, int32_t to)
{
    static const mf_char_range plain[] = { { 0x20, 0x21 }, { 0x23, 0x5b }, { 0x5d, MF_UNICODE_LAST } };
    for (int i = 0; i < 3; i++) {
        uint32_t lo = first > plain[i].first ? first : plain[i].first;
        uint32_t hi = last < plain[i].last ? last : plain[i].last;
        if (lo <= hi) {
            write_range(m, lo, hi, from, to);
        }
    }
    for (uint32_t c = first; c <= last && c <= '\\'; c++) {
        if (c < 0x20 || c == '"' || c == '\\') {
            write_escape(m, c, from, to);
        }
    }
}

static void write_set(maker *m, const mf_guide_expr *e, int32_t from, int32_t to)
{
    m->suffix_stamp++;
    for (size_t i = 0; i < e->size; i++) {
        if (e->in_json) {
            write_json_range(m, e->ranges[i].first, e->ranges[i].last, from, to);
        } else {
            write_range(m, e->ranges[i].first, e->ranges[i].last, from, to);
        }
    }
}

/* ---- expressions -------------------------------------------------------------------------------------------------- */

static void write_repeat(maker *m, const task *t)
{
    const mf_guide_expr *e = t->expr;
    int64_t times = e->max < 0 ? (int64_t)e->min + 1 : e->max;
    int64_t copies = t->copies * times > INT32_MAX ? INT32_MAX : t->copies * times;
    int32_t from = t->from;
    /* A node of its own, whatever leads here: nothing may come back to t->from. */
    for (int32_t i = 0; i < e->min && m->b->status == MF_OK; i++) {
        int32_t next = add_node(m);
        push(m, e->items[0], from, next, copies);
        from = next;
    }
    if (e->max < 0) {
        int32_t loop = add_node(m);
        add_free_edge(m, from, loop);
        push(m, e->items[0], loop, loop, copies);
        from = loop;
    }
    for (int32_t i = e->min; i < e->max && m->b->status == MF_OK; i++) {
        int32_t next = add_node(m);
        add_free_edge(m, from, t->to);
        push(m, e->items[0], from, next, copies);
        from = next;
    }
    add_free_edge(m, from, t->to);
}

/* Two rows of nodes: nothing written yet, and something.  A member is written once and entered from both, from the second
 * behind a separator. */
static void write_members(maker *m, const task *t)
{
    const mf_guide_expr *e = t->expr;
    int32_t num_members = e->num_items - 1 - e->has_tail;
    int32_t none = t->from;
    int32_t some = add_node(m);
    for (int32_t i = 0; i < num_members && m->b->status == MF_OK; i++) {
        int32_t member = add_node(m);
        int32_t next_none = add_node(m);
        int32_t next_some = add_node(m);
        add_free_edge(m, none, member);
        push(m, e->items[0], some, member, t->copies);
        push(m, e->items[i + 1], member, next_some, t->copies);
        if (e->is_optional[i]) {
            add_free_edge(m, none, next_none);
            add_free_edge(m, some, next_some);
        }
        none = next_none;
        some = next_some;
    }
    if (e->has_tail) {
        int32_t loop = add_node(m);
        int32_t member = add_node(m);
        add_free_edge(m, some, loop);
        add_free_edge(m, none, member);
        push(m, e->items[0], loop, member, t->copies);
        push(m, e->items[num_members + 1], member, loop, t->copies);
        some = loop;
    }
    add_free_edge(m, none, t->to);
    add_free_edge(m, some, t->to);
}

/* A large set many times over is a rule of its own. */
static bool call_set(maker *m, mf_guide_expr *e, const task *t, const mf_guide_expr *body)
{
    if (e == body || e->cost < 16 || e->cost * t->copies <= MAX_INLINE_SET_COST) {
        return false;
    }
    if (e->rule == 0) {
        e->rule = mf_guide_add_rule(m->b, "a set", 5);
        if (e->rule > 0) {
            m->b->rules[e->rule].body = e;
        }
    }
    add_call(m, t->from, t->to, e->rule);
    return true;
}

static void write_task(maker *m, const task *t, const mf_guide_expr *body)
{
    const mf_guide_expr *e = t->expr;
    switch (e->kind) {
    case MF_GUIDE_EMPTY:
        add_free_edge(m, t->from, t->to);
        break;
    case MF_GUIDE_BYTES:
        write_bytes(m, e->bytes, e->size, t->from, t->to);
        break;
    case MF_GUIDE_SET:
        if (!call_set(m, (mf_guide_expr *)e, t, body)) {
            write_set(m, e, t->from, t->to);
        }
        break;
    case MF_GUIDE_SEQ: {
        int32_t from = t->from;
        for (int32_t i = 0; i < e->num_items && m->b->status == MF_OK; i++) {
            int32_t next = i + 1 < e->num_items ? add_node(m) : t->to;
            push(m, e->items[i], from, next, t->copies);
            from = next;
        }
        break;
    }
    case MF_GUIDE_ALT:
        for (int32_t i = 0; i < e->num_items; i++) {
            push(m, e->items[i], t->from, t->to, t->copies);
        }
        break;
    case MF_GUIDE_REPEAT:
        write_repeat(m, t);
        break;
    case MF_GUIDE_MEMBERS:
        write_members(m, t);
        break;
    case MF_GUIDE_REF: {
        const mf_guide_rule *rule = &m->b->rules[e->rule];
        if (!rule->body) {
            mf_guide_build_fail(m->b, MF_ERR_INVALID, "rule %.100s is used and not defined", rule->name);
        } else if (rule->is_inlined) {
            push(m, rule->body, t->from, t->to, t->copies);
        } else {
            add_call(m, t->from, t->to, e->rule);
        }
        break;
    }
    }
}

static void write_rule(maker *m, int32_t index)
{
    int32_t start = add_node(m);
    int32_t end = add_node(m);
    const mf_guide_expr *body = m->b->rules[index].body;
    if (!body) {
        mf_guide_build_fail(m->b, MF_ERR_INVALID, "rule %.100s is used and not defined", m->b->rules[index].name);
        return;
    }
    push(m, body, start, end, 1);
    while (m->num_tasks > 0 && m->b->status == MF_OK) {
        task t = m->tasks[--m->num_tasks];
        write_task(m, &t, body);
    }
    mf_guide_rule *rule = &m->b->rules[index];
    rule->start = start;
    rule->end = end;
    rule->num_nodes = m->nfa->num_nodes - start;
}

/* ---- which rules become part of their callers --------------------------------------------------------------------- */

/* The rules that an expression names, each time it does, through `visit`. */
static void for_each_ref(maker *m, const mf_guide_expr *body, void (*visit)(void *context, int32_t rule), void *context)
{
    push(m, body, 0, 0, 1);
    int64_t steps = 0;
    while (m->num_tasks > 0 && m->b->status == MF_OK) {
        const mf_guide_expr *e = m->tasks[--m->num_tasks].expr;
        if (++steps % 1024 == 0 && mf_guide_build_is_late(m->b)) {
            return;
        }
        if (e->kind == MF_GUIDE_REF) {
            visit(context, e->rule);
        }
        for (int32_t i = 0; i < e->num_items; i++) {
            push(m, e->items[i], 0, 0, 1);
        }
    }
}

typedef struct inliner {
    mf_guide_build *b;
    int64_t cost;
    bool is_ready; /* all rules named have been settled */
    const bool *settled;
} inliner;

static void visit_ref(void *context, int32_t rule)
{
    inliner *in = context;
    in->is_ready = in->is_ready && in->settled[rule];
    in->cost += in->b->rules[rule].is_inlined ? in->b->rules[rule].num_nodes : 1;
}

/* Leaves first: a rule whose rules are settled is no part of a cycle.  A few rounds suffice for grammars as people write
 * them; what is not settled then is called. */
static void choose_inlined(maker *m)
{
    mf_guide_build *b = m->b;
    bool *settled = mf_guide_build_alloc(b, (size_t)b->num_rules, sizeof *settled);
    if (!settled) {
        return;
    }
    bool has_changed = true;
    for (int round = 0; round < 32 && has_changed && b->status == MF_OK; round++) {
        has_changed = false;
        for (int32_t r = b->num_rules - 1; r > 0 && b->status == MF_OK; r--) {
            mf_guide_rule *rule = &b->rules[r];
            if (settled[r] || rule->is_kept || !rule->body) {
                continue;
            }
            inliner in = { .b = b, .cost = rule->body->cost, .is_ready = true, .settled = settled };
            for_each_ref(m, rule->body, visit_ref, &in);
            if (in.is_ready) {
                settled[r] = true;
                has_changed = true;
                rule->is_inlined = in.cost <= MF_GUIDE_INLINE_SIZE;
                rule->num_nodes = (int32_t)(in.cost < INT32_MAX ? in.cost : INT32_MAX);
            }
        }
    }
}

/* ---- what can end ------------------------------------------------------------------------------------------------- */

/* Edges by target, and calls by rule. */
typedef struct reverse {
    int32_t *first, *next, *source;      /* [nodes], [edges], [edges] */
    int32_t *first_call, *next_call;     /* [rules], [edges] */
    int32_t *start_of;                   /* [nodes]: the rule that starts there; -1 */
    int32_t *queue;                      /* [nodes] a ring */
    bool *is_queued;
} reverse;

static bool open_reverse(maker *m, reverse *r)
{
    mf_guide_build *b = m->b;
    const mf_guide_nfa *n = m->nfa;
    size_t nodes = (size_t)n->num_nodes, edges = (size_t)n->num_edges + 1, rules = (size_t)n->num_rules;
    r->first = mf_guide_build_alloc(b, nodes, sizeof(int32_t));
    r->next = mf_guide_build_alloc(b, edges, sizeof(int32_t));
    r->source = mf_guide_build_alloc(b, edges, sizeof(int32_t));
    r->first_call = mf_guide_build_alloc(b, rules, sizeof(int32_t));
    r->next_call = mf_guide_build_alloc(b, edges, sizeof(int32_t));
    r->start_of = mf_guide_build_alloc(b, nodes, sizeof(int32_t));
    r->queue = mf_guide_build_alloc(b, nodes, sizeof(int32_t));
    r->is_queued = mf_guide_build_alloc(b, nodes, sizeof(bool));
    if (b->status != MF_OK) {
        return false;
    }
    memset(r->first, 0xff, nodes * sizeof(int32_t));
    memset(r->first_call, 0xff, rules * sizeof(int32_t));
    memset(r->start_of, 0xff, nodes * sizeof(int32_t));
    for (int32_t i = 0; i < n->num_nodes; i++) {
        for (int32_t e = n->first_edge[i]; e >= 0; e = n->edges[e].next) {
            const mf_guide_edge *edge = &n->edges[e];
            r->source[e] = i;
            r->next[e] = r->first[edge->target];
            r->first[edge->target] = e;
            if (edge->kind == MF_GUIDE_EDGE_CALL) {
                r->next_call[e] = r->first_call[edge->rule];
                r->first_call[edge->rule] = e;
            }
        }
    }
    for (int32_t i = 0; i < n->num_rules; i++) {
        if (n->rules[i].num_nodes > 0) {
            r->start_of[n->rules[i].start] = i;
        }
    }
    return true;
}

/* The least fixpoint of need: 0 at ends; along an edge; through a call one frame more than the called rule, or what follows. */
typedef struct ring {
    int32_t head, count;
} ring;

static void enqueue(const mf_guide_nfa *n, reverse *r, ring *q, int32_t node)
{
    if (!r->is_queued[node]) {
        r->is_queued[node] = true;
        r->queue[(q->head + q->count++) % n->num_nodes] = node;
    }
}

static int32_t need_through(const mf_guide_nfa *n, const mf_guide_edge *edge, bool empty_only)
{
    int32_t target = n->need[edge->target];
    if (edge->kind == MF_GUIDE_EDGE_BYTE) {
        return empty_only ? INT32_MAX : target;
    }
    if (edge->kind == MF_GUIDE_EDGE_FREE || target == INT32_MAX) {
        return target;
    }
    int32_t inside = n->need[n->rules[edge->rule].start];
    return inside == INT32_MAX ? inside : inside + 1 > target ? inside + 1 : target;
}

static void relax(const mf_guide_nfa *n, reverse *r, ring *q, int32_t e, bool empty_only)
{
    int32_t source = r->source[e];
    int32_t value = need_through(n, &n->edges[e], empty_only);
    if (value < n->need[source]) {
        n->need[source] = value;
        enqueue(n, r, q, source);
    }
}

/* empty_only: over what consumes nothing; need is then finite where the rule's end can be reached so. */
static void find_need(maker *m, reverse *r, bool empty_only)
{
    mf_guide_nfa *n = m->nfa;
    ring q = { 0 };
    for (int32_t i = 0; i < n->num_nodes; i++) {
        n->need[i] = INT32_MAX;
    }
    for (int32_t i = 0; i < n->num_rules; i++) {
        if (n->rules[i].num_nodes > 0) {
            n->need[n->rules[i].end] = 0;
            enqueue(n, r, &q, n->rules[i].end);
        }
    }
    for (int64_t steps = 0, next_check = 4096; q.count > 0;) {
        int32_t node = r->queue[q.head];
        q.head = (q.head + 1) % n->num_nodes;
        q.count--;
        r->is_queued[node] = false;
        if (++steps > next_check) {
            next_check = steps + 4096;
            if (mf_guide_build_is_late(m->b)) {
                return;
            }
        }
        for (int32_t e = r->first[node]; e >= 0; e = r->next[e], steps++) {
            relax(n, r, &q, e, empty_only);
        }
        for (int32_t e = r->start_of[node] >= 0 ? r->first_call[r->start_of[node]] : -1; e >= 0; e = r->next_call[e]) {
            relax(n, r, &q, e, empty_only);
        }
    }
}

/* ---- left recursion ----------------------------------------------------------------------------------------------- */

/* Who may call whom before anything is consumed. */
typedef struct left_calls {
    int32_t *caller, *called; /* [count] */
    int32_t count;
    int32_t *num_out, *num_in; /* [rules], of what is left */
} left_calls;

/* nfa->need holds the needs over empty edges: finite means that a rule may be empty. */
static void find_left_calls(maker *m, left_calls *c)
{
    mf_guide_build *b = m->b;
    const mf_guide_nfa *n = m->nfa;
    bool *seen = mf_guide_build_alloc(b, (size_t)n->num_nodes, sizeof *seen);
    int32_t *stack = mf_guide_build_alloc(b, (size_t)n->num_edges + 1, sizeof *stack);
    for (int32_t r = 0; r < n->num_rules && !mf_guide_build_is_late(b); r++) {
        int32_t top = 0;
        if (n->rules[r].num_nodes > 0) {
            stack[top++] = n->rules[r].start;
        }
        while (top > 0) {
            int32_t node = stack[--top];
            if (seen[node]) {
                continue;
            }
            seen[node] = true;
            for (int32_t e = n->first_edge[node]; e >= 0; e = n->edges[e].next) {
                const mf_guide_edge *edge = &n->edges[e];
                bool is_call = edge->kind == MF_GUIDE_EDGE_CALL;
                if (is_call) {
                    c->caller[c->count] = r;
                    c->called[c->count++] = edge->rule;
                }
                if (edge->kind == MF_GUIDE_EDGE_FREE || (is_call && n->need[n->rules[edge->rule].start] != INT32_MAX)) {
                    stack[top++] = edge->target;
                }
            }
        }
    }
}

/* Takes away rules that call none or that none calls, until none is left, or those on a circle are. */
static void refuse_left_recursion(maker *m)
{
    mf_guide_build *b = m->b;
    const mf_guide_nfa *n = m->nfa;
    left_calls c = {
        .caller = mf_guide_build_alloc(b, (size_t)n->num_edges + 1, sizeof(int32_t)),
        .called = mf_guide_build_alloc(b, (size_t)n->num_edges + 1, sizeof(int32_t)),
        .num_out = mf_guide_build_alloc(b, (size_t)n->num_rules, sizeof(int32_t)),
        .num_in = mf_guide_build_alloc(b, (size_t)n->num_rules, sizeof(int32_t)),
    };
    if (b->status != MF_OK) {
        return;
    }
    find_left_calls(m, &c);
    int32_t left = c.count;
    for (bool has_changed = true; has_changed && left > 0 && !mf_guide_build_is_late(b);) {
        memset(c.num_out, 0, (size_t)n->num_rules * sizeof(int32_t));
        memset(c.num_in, 0, (size_t)n->num_rules * sizeof(int32_t));
        for (int32_t i = 0; i < left; i++) {
            c.num_out[c.caller[i]]++;
            c.num_in[c.called[i]]++;
        }
        int32_t kept = 0;
        for (int32_t i = 0; i < left; i++) {
            if (c.num_out[c.called[i]] > 0 && c.num_in[c.caller[i]] > 0) {
                c.caller[kept] = c.caller[i];
                c.called[kept++] = c.called[i];
            }
        }
        has_changed = kept < left;
        left = kept;
    }
    if (left > 0 && b->status == MF_OK) {
        mf_guide_build_fail(b, MF_ERR_UNSUPPORTED, "left recursion: %.100s can begin with itself",
                            n->rules[c.caller[0]].name);
    }
}

/* ---- all of it ---------------------------------------------------------------------------------------------------- */

mf_status mf_guide_nfa_make(mf_guide_build *b, mf_guide_nfa *nfa)
{
    *nfa = (mf_guide_nfa){ 0 };
    maker *m = b->status == MF_OK ? mf_guide_build_alloc(b, 1, sizeof *m) : NULL;
    if (!m) {
        return b->status;
    }
    m->b = b;
    m->nfa = nfa;
    choose_inlined(m);
    for (int32_t i = 0; i < b->num_rules && b->status == MF_OK; i++) { /* sets may become rules meanwhile */
        b->rules[i].num_nodes = 0;
        if (!b->rules[i].is_inlined || i == 0) {
            write_rule(m, i);
        }
    }
    mf_free(m->tasks);
    if (b->status == MF_OK) {
        nfa->need = mf_alloc_array((size_t)nfa->num_nodes, sizeof *nfa->need);
        nfa->rules = mf_alloc_array((size_t)b->num_rules, sizeof *nfa->rules);
        if (!nfa->need || !nfa->rules) {
            mf_guide_build_fail(b, MF_ERR_NOMEM, "out of memory for states");
        }
    }
    reverse r = { 0 };
    if (b->status == MF_OK) {
        memcpy(nfa->rules, b->rules, (size_t)b->num_rules * sizeof *nfa->rules);
        nfa->num_rules = b->num_rules;
        if (open_reverse(m, &r)) {
            find_need(m, &r, true);
            refuse_left_recursion(m);
            find_need(m, &r, false);
        }
    }
    if (b->status == MF_OK && nfa->need[nfa->rules[0].start] > MF_GUIDE_MAX_STACK) {
        mf_guide_build_fail(b, nfa->need[nfa->rules[0].start] == INT32_MAX ? MF_ERR_INVALID : MF_ERR_LIMIT,
                            nfa->need[nfa->rules[0].start] == INT32_MAX ? "no text can be as asked for"
                                                                        : "the shortest text nests too deeply");
    }
    for (int32_t i = 0; i < nfa->num_rules; i++) {
        nfa->rules[i].name = NULL; /* these two go with the arena */
        nfa->rules[i].body = NULL;
    }
    if (b->status != MF_OK) {
        mf_guide_nfa_close(nfa);
    }
    return b->status;
}

void mf_guide_nfa_close(mf_guide_nfa *nfa)
{
    mf_free(nfa->first_edge);
    mf_free(nfa->need);
    mf_free(nfa->edges);
    mf_free(nfa->rules);
    *nfa = (mf_guide_nfa){ 0 };
}
