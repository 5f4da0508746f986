/* guide_nfa_check.c - a program's nodes once all are there: what each needs to come to its rule's end, and that no rule can begin
 * with itself. */
#include <string.h>

#include "text/guide_impl.h"

typedef struct checker {
    mf_guide_build *b;
    mf_guide_nfa *nfa;
} checker;

/* ---- what can end ------------------------------------------------------------------------------------------------- */

/* Edges by target, and calls by rule. */
typedef struct reverse {
    int32_t *first, *next, *source;      /* [nodes], [edges], [edges] */
    int32_t *first_call, *next_call;     /* [rules], [edges] */
    int32_t *start_of;                   /* [nodes]: the rule that starts there; -1 */
    int32_t *queue;                      /* [nodes] a ring */
    bool *is_queued;
} reverse;

static bool open_reverse(checker *m, reverse *r)
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
static void find_need(checker *m, reverse *r, bool empty_only)
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
static void find_left_calls(checker *m, left_calls *c)
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
static void refuse_left_recursion(checker *m)
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

void mf_guide_nfa_check(mf_guide_build *b, mf_guide_nfa *nfa)
{
    checker m = { .b = b, .nfa = nfa };
    reverse r = { 0 };
    if (!open_reverse(&m, &r)) {
        return;
    }
    find_need(&m, &r, true);
    refuse_left_recursion(&m);
    find_need(&m, &r, false);
    int32_t need = nfa->need[nfa->rules[0].start];
    if (b->status == MF_OK && need > MF_GUIDE_MAX_STACK) {
        mf_guide_build_fail(b, need == INT32_MAX ? MF_ERR_INVALID : MF_ERR_LIMIT,
                            need == INT32_MAX ? "no text can be as asked for" : "the shortest text nests too deeply");
    }
}
