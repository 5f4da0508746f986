/* guide_dfa.c - sets of a rule's nodes as states, made when a walk first comes to them, with their byte transitions and calls.
 *
 * All memory is taken at open; a program that meets more states than fit is full, and ends its requests. */
#include <string.h>

#include "base/sys.h"
#include "text/guide_impl.h"

enum { MAX_STATES = 32768, MAX_NEXT_BYTES = 16 << 20, MAX_NODES = 1 << 20, MAX_CALLS = 1 << 18 };

/* ---- open --------------------------------------------------------------------------------------------------------- */

/* Bytes that no edge tells apart are one class. */
static void find_classes(mf_guide_dfa *d)
{
    bool cut[257] = { false }; /* a class begins here */
    for (int32_t e = 0; e < d->nfa->num_edges; e++) {
        const mf_guide_edge *edge = &d->nfa->edges[e];
        if (edge->kind == MF_GUIDE_EDGE_BYTE) {
            cut[edge->low] = true;
            cut[edge->high + 1] = true;
        }
    }
    int32_t n = 0;
    for (int i = 0; i < 256; i++) {
        n += i > 0 && cut[i];
        d->classes[i] = (uint8_t)n;
        d->class_byte[n] = (uint8_t)i;
    }
    d->num_classes = n + 1;
}

mf_status mf_guide_dfa_open(mf_guide_dfa *d, const mf_guide_nfa *nfa, const mf_guide_vocab *vocab, mf_error *err)
{
    *d = (mf_guide_dfa){ .nfa = nfa, .vocab = vocab };
    find_classes(d);
    size_t nodes = (size_t)nfa->num_nodes;
    int32_t fit = MAX_NEXT_BYTES / (d->num_classes * (int32_t)sizeof(int32_t));
    d->max_states = fit < MAX_STATES ? fit : MAX_STATES;
    d->max_nodes = MAX_NODES;
    d->max_calls = MAX_CALLS;
    /* Sized for the worst and written as far as used: untouched pages cost nothing. */
    d->states = mf_alloc((size_t)d->max_states * sizeof *d->states);
    d->next = mf_alloc((size_t)d->max_states * (size_t)d->num_classes * sizeof *d->next);
    d->nodes = mf_alloc((size_t)d->max_nodes * sizeof *d->nodes);
    d->calls = mf_alloc((size_t)d->max_calls * sizeof *d->calls);
    d->buckets = mf_alloc_array(MF_GUIDE_BUCKETS, sizeof *d->buckets);
    d->rule_start = mf_alloc_array((size_t)nfa->num_rules, sizeof *d->rule_start);
    d->set = mf_alloc_array(nodes, sizeof *d->set);
    d->stack = mf_alloc_array(nodes, sizeof *d->stack);
    d->marks = mf_alloc_array(nodes, sizeof *d->marks);
    if (!d->states || !d->next || !d->nodes || !d->calls || !d->buckets || !d->rule_start || !d->set || !d->stack ||
        !d->marks) {
        mf_guide_dfa_close(d);
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for states");
    }
    memset(d->buckets, 0xff, MF_GUIDE_BUCKETS * sizeof *d->buckets);
    for (int32_t i = 0; i < nfa->num_rules; i++) {
        d->rule_start[i] = MF_GUIDE_UNKNOWN;
    }
    return MF_OK;
}

void mf_guide_dfa_close(mf_guide_dfa *d)
{
    mf_free(d->states);
    mf_free(d->next);
    mf_free(d->nodes);
    mf_free(d->calls);
    mf_free(d->buckets);
    mf_free(d->rule_start);
    mf_free(d->set);
    mf_free(d->stack);
    mf_free(d->marks);
    *d = (mf_guide_dfa){ 0 };
}

/* ---- sets --------------------------------------------------------------------------------------------------------- */

static void begin_set(mf_guide_dfa *d)
{
    if (++d->stamp == 0) {
        memset(d->marks, 0, (size_t)d->nfa->num_nodes * sizeof *d->marks);
        d->stamp = 1;
    }
}

/* Adds a node and what is free from it; of those the set keeps the ones that do something. */
static int32_t add_to_set(mf_guide_dfa *d, int32_t count, int32_t node, int32_t end)
{
    const mf_guide_nfa *n = d->nfa;
    int32_t top = 0;
    if (d->marks[node] == d->stamp || n->need[node] == INT32_MAX) {
        return count;
    }
    d->marks[node] = d->stamp;
    d->stack[top++] = node;
    while (top > 0) {
        node = d->stack[--top];
        bool does = node == end;
        d->work++;
        for (int32_t e = n->first_edge[node]; e >= 0; e = n->edges[e].next) {
            const mf_guide_edge *edge = &n->edges[e];
            if (edge->kind != MF_GUIDE_EDGE_FREE) {
                does = true;
            } else if (d->marks[edge->target] != d->stamp && n->need[edge->target] != INT32_MAX) {
                d->marks[edge->target] = d->stamp;
                d->stack[top++] = edge->target;
            }
        }
        if (does) {
            d->set[count++] = node;
        }
    }
    return count;
}

/* Shell sort: in place, no memory, and sets are short or nearly sorted. */
static void sort_set(int32_t *x, int32_t n)
{
    for (int32_t gap = n / 2; gap > 0; gap = gap == 2 ? 1 : (int32_t)((int64_t)gap * 5 / 11)) {
        for (int32_t i = gap; i < n; i++) {
            int32_t value = x[i];
            int32_t j = i;
            for (; j >= gap && x[j - gap] > value; j -= gap) {
                x[j] = x[j - gap];
            }
            x[j] = value;
        }
    }
}

static int32_t find_shared(const mf_guide_dfa *d, const mf_guide_rule *rule, const int32_t *set, int32_t n)
{
    for (int32_t i = 0; rule->is_string && i < d->vocab->num_shared; i++) {
        const mf_guide_shared_mask *s = &d->vocab->shared[i];
        bool same = s->num_nodes == n;
        for (int32_t j = 0; same && j < n; j++) {
            same = s->nodes[j] == set[j] - rule->start;
        }
        if (same) {
            return i;
        }
    }
    return -1;
}

static int32_t new_state(mf_guide_dfa *d, int32_t rule, int32_t count, uint32_t bucket)
{
    if (d->num_states == d->max_states || d->num_nodes + count > d->max_nodes) {
        d->is_full = true;
        return MF_GUIDE_DEAD;
    }
    const mf_guide_nfa *n = d->nfa;
    mf_guide_dfa_state s = { .rule = rule, .nodes_at = d->num_nodes, .num_nodes = count, .calls_at = -1,
                             .need = INT32_MAX, .string_state = -1, .next_in_bucket = d->buckets[bucket],
                             .shared = find_shared(d, &n->rules[rule], d->set, count) };
    for (int32_t i = 0; i < count; i++) {
        int32_t node = d->set[i];
        s.need = n->need[node] < s.need ? n->need[node] : s.need;
        s.is_end = s.is_end || node == n->rules[rule].end;
        for (int32_t e = n->first_edge[node]; e >= 0; e = n->edges[e].next) {
            s.has_bytes = s.has_bytes || n->edges[e].kind == MF_GUIDE_EDGE_BYTE;
            s.has_calls = s.has_calls || n->edges[e].kind == MF_GUIDE_EDGE_CALL;
        }
    }
    memcpy(d->nodes + d->num_nodes, d->set, (size_t)count * sizeof *d->set);
    d->num_nodes += count;
    int32_t *next = d->next + (size_t)d->num_states * (size_t)d->num_classes;
    for (int32_t i = 0; i < d->num_classes; i++) {
        next[i] = s.has_bytes ? MF_GUIDE_UNKNOWN : MF_GUIDE_DEAD;
    }
    d->states[d->num_states] = s;
    d->buckets[bucket] = d->num_states;
    return d->num_states++;
}

/* The state of the set being made. */
static int32_t end_set(mf_guide_dfa *d, int32_t rule, int32_t count)
{
    if (count == 0) {
        return MF_GUIDE_DEAD;
    }
    sort_set(d->set, count);
    uint32_t hash = 2166136261u;
    for (int32_t i = 0; i < count; i++) {
        hash = (hash ^ (uint32_t)d->set[i]) * 16777619u;
        hash ^= hash >> 15;
    }
    uint32_t bucket = hash % MF_GUIDE_BUCKETS;
    for (int32_t s = d->buckets[bucket]; s >= 0; s = d->states[s].next_in_bucket) {
        d->work++;
        if (d->states[s].num_nodes == count &&
            memcmp(d->nodes + d->states[s].nodes_at, d->set, (size_t)count * sizeof *d->set) == 0) {
            return s; /* a node belongs to one rule, so the rules are the same */
        }
    }
    return new_state(d, rule, count, bucket);
}

int32_t mf_guide_dfa_start(mf_guide_dfa *d, int32_t rule)
{
    if (d->rule_start[rule] == MF_GUIDE_UNKNOWN) {
        begin_set(d);
        const mf_guide_rule *r = &d->nfa->rules[rule];
        d->rule_start[rule] = end_set(d, rule, add_to_set(d, 0, r->start, r->end));
        if (r->is_counted && d->rule_start[rule] >= 0) {
            d->states[d->rule_start[rule]].string_state = 0;
        }
    }
    return d->rule_start[rule];
}

/* A counted string's states are reached by one number of characters each (or by that and more, once it may go on for ever). */
static void count_chars(mf_guide_dfa *d, const mf_guide_dfa_state *from, uint8_t byte, mf_guide_dfa_state *to)
{
    if (from->string_state >= 0 && to->string_state < 0 && d->vocab->string_next) {
        to->string_state = d->vocab->string_next[from->string_state * 256 + byte];
        to->num_chars = from->num_chars + (from->string_state != 0 && to->string_state == d->vocab->string_inside);
    }
}

int32_t mf_guide_dfa_make_next(mf_guide_dfa *d, int32_t state, int32_t byte_class)
{
    const mf_guide_dfa_state *s = &d->states[state];
    const mf_guide_nfa *n = d->nfa;
    int32_t end = n->rules[s->rule].end;
    uint8_t byte = d->class_byte[byte_class];
    int32_t count = 0;
    begin_set(d);
    for (int32_t i = 0; i < s->num_nodes; i++) {
        for (int32_t e = n->first_edge[d->nodes[s->nodes_at + i]]; e >= 0; e = n->edges[e].next) {
            const mf_guide_edge *edge = &n->edges[e];
            d->work++;
            if (edge->kind == MF_GUIDE_EDGE_BYTE && edge->low <= byte && byte <= edge->high) {
                count = add_to_set(d, count, edge->target, end);
            }
        }
    }
    int32_t next = end_set(d, s->rule, count);
    d->next[(size_t)state * (size_t)d->num_classes + (size_t)byte_class] = next;
    if (next >= 0) {
        count_chars(d, s, byte, &d->states[next]);
    }
    return next;
}

/* Calls of one rule from all nodes of the state are one call, whose return is the set of what follows any of them. */
void mf_guide_dfa_make_calls(mf_guide_dfa *d, int32_t state)
{
    const mf_guide_nfa *n = d->nfa;
    int32_t calls_at = d->num_calls;
    int32_t num_calls = 0;
    int32_t last_rule = -1;
    for (;;) {
        int32_t rule = INT32_MAX; /* the next one above last_rule */
        for (int32_t i = 0; i < d->states[state].num_nodes; i++) {
            for (int32_t e = n->first_edge[d->nodes[d->states[state].nodes_at + i]]; e >= 0; e = n->edges[e].next) {
                const mf_guide_edge *edge = &n->edges[e];
                d->work++;
                if (edge->kind == MF_GUIDE_EDGE_CALL && edge->rule > last_rule && edge->rule < rule &&
                    n->need[n->rules[edge->rule].start] != INT32_MAX && n->need[edge->target] != INT32_MAX) {
                    rule = edge->rule;
                }
            }
        }
        if (rule == INT32_MAX) {
            break;
        }
        last_rule = rule;
        int32_t count = 0;
        int32_t own = d->states[state].rule;
        begin_set(d);
        for (int32_t i = 0; i < d->states[state].num_nodes; i++) {
            for (int32_t e = n->first_edge[d->nodes[d->states[state].nodes_at + i]]; e >= 0; e = n->edges[e].next) {
                if (n->edges[e].kind == MF_GUIDE_EDGE_CALL && n->edges[e].rule == rule) {
                    count = add_to_set(d, count, n->edges[e].target, n->rules[own].end);
                }
            }
        }
        int32_t back = end_set(d, own, count);
        int32_t start = mf_guide_dfa_start(d, rule);
        if (back < 0 || start < 0 || d->num_calls == d->max_calls) {
            d->is_full = true;
            break;
        }
        const mf_guide_dfa_state *b = &d->states[back];
        d->calls[d->num_calls++] =
            (mf_guide_call){ .start = start, .back = back, .is_last = b->is_end && !b->has_bytes && !b->has_calls };
        num_calls++;
    }
    d->states[state].calls_at = calls_at;
    d->states[state].num_calls = num_calls;
}
