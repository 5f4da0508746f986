/* gate_oracle.c - choice and weights in double: see gate_oracle.h.  Plain formulas, a full sort, libm's functions. */
#include "gate_oracle.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

enum { MAX_N = 4096, MAX_K = 64 };

typedef struct candidate {
    double key, tolerance;
    double x, b;
    double score;
    int32_t id, group;
    bool bad, allowed;
} candidate;

typedef struct row_oracle {
    candidate c[MAX_N];      /* by id */
    candidate sorted[MAX_N]; /* candidates in order of choice */
    int64_t num_sorted;
    double floor;            /* keys below it count as equal */
    bool ambiguous;          /* rounding may decide which groups stay */
} row_oracle;

double gate_canonical(double v)
{
    v = v > (double)FLT_MAX ? (double)FLT_MAX : v < -(double)FLT_MAX ? -(double)FLT_MAX : v;
    return fabs(v) < 0x1p-126 ? 0.0 : v;
}

static int by_choice(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->bad != y->bad) {
        return x->bad ? 1 : -1;
    }
    if (!x->bad && x->key != y->key) {
        return x->key > y->key ? -1 : 1;
    }
    return x->id < y->id ? -1 : 1;
}

static double plain_score(mf_scoring scoring, double x)
{
    if (scoring == MF_SCORING_SIGMOID || scoring == MF_SCORING_TOPK_SIGMOID) {
        return x >= 0.0 ? 1.0 / (1.0 + exp(-x)) : exp(x) / (1.0 + exp(x));
    }
    return sqrt((x > 0.0 ? x : 0.0) + log1p(exp(-fabs(x))));
}

static void fill(const gate_case *c, int64_t t, row_oracle *r)
{
    const mf_gate_args *a = &c->args;
    const mf_gate_config *g = a->config;
    bool alt = a->bias_alt.data && ((const uint8_t *)a->row_is_alt.data)[t] != 0;
    const mf_tensor *bias = alt ? &a->bias_alt : &a->e_score_correction_bias;
    bool by_logit = g->scoring == MF_SCORING_SOFTMAX || g->scoring == MF_SCORING_TOPK_SOFTMAX ||
                    g->scoring == MF_SCORING_TOPK_SIGMOID;
    double top = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < c->N; i++) {
        candidate *e = &r->c[i];
        *e = (candidate){ .id = (int32_t)i, .group = (int32_t)(i / (c->N / g->n_group)), .allowed = true };
        double x = conf_get(a->router_logits.data, a->router_logits.dtype, t * a->router_logits.stride[0] + i);
        double b = bias->data ? conf_get(bias->data, bias->dtype, i) : 0.0;
        e->bad = isnan(x);
        e->x = e->bad ? 0.0 : gate_canonical(x);
        e->b = isnan(b) ? 0.0 : gate_canonical(b);
        if (g->bias_domain == MF_BIAS_LOGIT) {
            e->x = gate_canonical((double)((float)e->x + (float)e->b));
        }
        top = !e->bad && e->x > top ? e->x : top;
        e->allowed = !a->expert_mask.data || ((const uint8_t *)a->expert_mask.data)[i] != 0;
    }
    for (int64_t i = 0; i < c->N; i++) {
        sum += r->c[i].bad ? 0.0 : exp(r->c[i].x - top);
    }
    for (int64_t i = 0; i < c->N; i++) {
        candidate *e = &r->c[i];
        double relative = 0.0;
        if (g->scoring == MF_SCORING_SOFTMAX) {
            e->score = e->bad ? 0.0 : exp(e->x - top) / sum;
        } else {
            e->score = e->bad ? 0.0 : plain_score(g->scoring, e->x);
        }
        if (g->bias_domain == MF_BIAS_SCORE) {
            e->key = e->score + e->b;
            relative = g->scoring == MF_SCORING_SOFTMAX ? 4e-6 : 4e-7;
        } else {
            e->key = by_logit ? e->x : e->score;
            relative = by_logit ? 0.0 : 4e-7;
        }
        e->tolerance = relative * fmax(fabs(e->score), g->bias_domain == MF_BIAS_SCORE ? fabs(e->b) : 0.0);
    }
    r->floor = by_logit && g->bias_domain != MF_BIAS_SCORE              ? 0.0
               : g->scoring == MF_SCORING_SIGMOID || by_logit ? 2e-38
                                                              : 2e-19;
}

typedef struct group_oracle {
    double score, first, second, tolerance;
    int32_t id;
} group_oracle;

static int by_group(const void *a, const void *b)
{
    const group_oracle *x = a, *y = b;
    return x->score != y->score ? (x->score > y->score ? -1 : 1) : (x->id < y->id ? -1 : 1);
}

static void drop_groups(const gate_case *c, row_oracle *r)
{
    static group_oracle groups[MAX_N];
    const mf_gate_config *g = c->args.config;
    int64_t size = c->N / g->n_group;
    for (int32_t i = 0; i < g->n_group; i++) {
        group_oracle *o = &groups[i];
        *o = (group_oracle){ .id = i, .first = -INFINITY, .second = -INFINITY };
        for (int64_t j = i * size; j < (i + 1) * size; j++) {
            const candidate *e = &r->c[j];
            double key = e->bad ? -INFINITY : e->key;
            o->tolerance = fmax(o->tolerance, e->tolerance);
            o->second = key > o->first ? o->first : fmax(o->second, key);
            o->first = fmax(o->first, key);
        }
        bool sum = g->group_score == MF_GROUP_SCORE_TOP2_SUM && size > 1;
        o->second = sum ? o->second : 0.0;
        o->score = o->first + o->second;
        if (sum && isinf((float)o->first + (float)o->second)) {
            o->score = o->score > 0.0 ? INFINITY : -INFINITY;
        }
        /* Two keys, each rounded, and their sum rounded. */
        o->tolerance = sum ? 2.0 * o->tolerance + 2e-7 * fabs(o->first) + 2.0 * r->floor : o->tolerance + r->floor;
    }
    qsort(groups, (size_t)g->n_group, sizeof groups[0], by_group);
    const group_oracle *last = &groups[g->topk_group - 1];
    bool inside = false, equal = true;
    for (int32_t i = 0; i < g->n_group; i++) {
        const group_oracle *o = &groups[i];
        bool near = o->score == last->score || fabs(o->score - last->score) <= fmax(o->tolerance, last->tolerance);
        inside |= near && i >= g->topk_group;
        equal &= !near || isinf(o->score) || (o->first == last->first && o->second == last->second);
    }
    r->ambiguous = inside && !equal;
    for (int32_t i = g->topk_group; i < g->n_group; i++) {
        for (int64_t j = groups[i].id * size; j < (groups[i].id + 1) * size; j++) {
            r->c[j].allowed = false;
        }
    }
}

static void sort_candidates(const gate_case *c, row_oracle *r)
{
    r->num_sorted = 0;
    for (int64_t i = 0; i < c->N; i++) {
        if (r->c[i].allowed) {
            r->sorted[r->num_sorted++] = r->c[i];
        }
    }
    qsort(r->sorted, (size_t)r->num_sorted, sizeof r->sorted[0], by_choice);
}

static bool near(const row_oracle *r, const candidate *a, const candidate *b)
{
    if (a->bad || b->bad) {
        return a->bad == b->bad;
    }
    return fabs(a->key - b->key) <= fmax(a->tolerance, b->tolerance) || (fabs(a->key) < r->floor && fabs(b->key) < r->floor);
}

/* Some zero expert may stand where the oracle has `want`. */
static bool near_zero_expert(const gate_case *c, const row_oracle *r, int32_t want)
{
    bool found = want >= c->spec.cfg.num_experts;
    for (int64_t i = c->spec.cfg.num_experts; want >= 0 && !found && i < c->N; i++) {
        found = r->c[i].allowed && near(r, &r->c[i], &r->c[want]);
    }
    return found;
}

/* Rounding may swap places i and j of the sorted list. */
static bool near_neighbour(const row_oracle *r, int64_t i, int64_t j)
{
    if (j < 0 || j >= r->num_sorted) {
        return false;
    }
    const candidate *a = &r->sorted[i], *b = &r->sorted[j];
    return !a->bad && (a->x != b->x || a->b != b->b) && near(r, a, b);
}

/* The logical id of each routed column: what was emitted, except that zero experts are emitted as -1 and taken from the
 * sorted list.  false: the row cannot be judged. */
static bool read_choice(const gate_case *c, const row_oracle *r, const int32_t *emitted, int32_t *chosen)
{
    bool certain = true, close = true;
    for (int64_t k = 0; k < c->spec.cfg.top_k; k++) {
        int32_t want = k < r->num_sorted ? r->sorted[k].id : -1;
        chosen[k] = emitted[k] < 0 ? want : emitted[k];
        certain &= !(emitted[k] < 0 && want >= 0 && (near_neighbour(r, k, k - 1) || near_neighbour(r, k, k + 1)));
        certain &= emitted[k] == want || (emitted[k] < 0 && want >= c->spec.cfg.num_experts);
        close &= emitted[k] == want || (emitted[k] < 0 ? near_zero_expert(c, r, want)
                                                       : want >= 0 && near(r, &r->c[emitted[k]], &r->c[want]));
    }
    /* A swap by rounding hides which zero expert stands where; any other difference is for check_choice. */
    return certain || !close || c->spec.cfg.num_zero_experts == 0;
}

static void check_choice(const gate_case *c, const row_oracle *r, int64_t t, const int32_t *chosen, const char *label)
{
    for (int64_t k = 0; k < c->spec.cfg.top_k; k++) {
        int32_t want = k < r->num_sorted ? r->sorted[k].id : -1;
        int32_t got = chosen[k];
        bool ok = (got < 0) == (want < 0);
        if (ok && got >= 0) {
            ok = r->c[got].allowed && (got == want || near(r, &r->c[got], &r->c[want]));
            for (int64_t j = 0; j < k; j++) {
                ok = ok && chosen[j] != got;
            }
            /* Of experts with equal inputs the lower ids must have been chosen before. */
            for (int32_t i = 0; ok && i < got; i++) {
                if (r->c[i].allowed && r->c[i].bad == r->c[got].bad && r->c[i].x == r->c[got].x && r->c[i].b == r->c[got].b) {
                    ok = false;
                    for (int64_t j = 0; j < k; j++) {
                        ok = ok || chosen[j] == i;
                    }
                }
            }
        }
        if (!ok) {
            fail_msg("%s: row %lld column %lld is expert %d (key %.9g), expected %d (key %.9g)\n  %s", label, (long long)t,
                     (long long)k, got, got >= 0 ? r->c[got].key : 0.0, want, want >= 0 ? r->c[want].key : 0.0,
                     gate_case_text(c));
        }
    }
}

static void check_weights(const gate_case *c, const row_oracle *r, int64_t t, const int32_t *chosen, const gate_outputs *o,
                          const char *label)
{
    const mf_gate_config *g = c->args.config;
    const float *got = o->weights + t * o->row;
    double w[MAX_K], sum = 0.0, first = 0.0, identity = 0.0, identity_slack = 0.0;
    bool any = false;
    for (int64_t k = 0; k < g->top_k; k++) {
        bool dead = chosen[k] < 0 || r->c[chosen[k]].bad;
        w[k] = 0.0;
        if (!dead && g->scoring == MF_SCORING_TOPK_SOFTMAX) {
            first = any ? first : r->c[chosen[k]].x;
            any = true;
            w[k] = exp(r->c[chosen[k]].x - first);
        } else if (!dead) {
            w[k] = r->c[chosen[k]].score;
        }
        sum += w[k];
    }
    double eps = isnan(g->renorm_eps) ? 1e-20 : g->renorm_eps;
    double d = g->renorm == MF_RENORM_SUM         ? (sum > 0.0 ? sum : 1.0)
               : g->renorm == MF_RENORM_SUM_EPS   ? sum + eps
               : g->renorm == MF_RENORM_SUM_FLOOR ? fmax(sum, eps)
               : any                              ? sum
                                                  : 1.0;
    double floor = g->scoring == MF_SCORING_SQRTSOFTPLUS || g->scoring == MF_SCORING_SQRTSOFTPLUS_LOG1P ? 2e-19 : 2e-38;
    for (int64_t k = 0; k < g->top_k; k++) {
        double scale = g->fold_scale ? (double)(float)g->routed_scaling_factor : 1.0;
        if (c->args.per_expert_scale.data && chosen[k] >= 0) {
            scale *= gate_canonical((double)((const float *)c->args.per_expert_scale.data)[chosen[k]]);
        }
        double want = w[k] / d * scale;
        double slack = 1e-5 * fabs(want) + 1e-7 * scale + 0x1p-126 +
                       (g->renorm != MF_RENORM_NONE ? (double)g->top_k * floor / d * scale : 0.0);
        if (chosen[k] >= g->num_experts) {
            identity += want;
            identity_slack += slack + 1e-6 * fabs(want);
            want = 0.0;
        }
        double found = (double)got[k];
        if (!(fabs(found - want) <= slack) && !(want > 3.4e38 && isinf(found))) {
            fail_msg("%s: row %lld weight %lld is %.9g, expected %.9g +- %.3g\n  %s", label, (long long)t, (long long)k,
                     found, want, slack, gate_case_text(c));
        }
    }
    if (o->args.identity_weight.data && !(fabs((double)o->identity[t] - identity) <= identity_slack) &&
        !(identity > 3.3e38 && isinf(o->identity[t]))) {
        fail_msg("%s: row %lld identity weight is %.9g, expected %.9g\n  %s", label, (long long)t, (double)o->identity[t],
                 identity, gate_case_text(c));
    }
}

static void check_shared(const gate_case *c, int64_t t, const gate_outputs *o, const char *label)
{
    const mf_gate_config *g = c->args.config;
    double want = 1.0, slack = 0.0;
    if (g->shared_weight == MF_SHARED_RECIPROCAL) { /* the f64 quotient of two f32 rounds to the f32 quotient */
        want = gate_canonical((double)(float)(1.0 / (double)(float)g->routed_scaling_factor));
    } else if (g->shared_weight == MF_SHARED_PER_TOKEN) {
        double x = conf_get(c->args.shared_gate.data, c->args.shared_gate.dtype, t);
        want = isnan(x) ? 0.0 : plain_score(MF_SCORING_SIGMOID, gate_canonical(x));
        slack = 3e-7 * want + 2e-38;
    }
    for (int64_t k = g->top_k; k < c->C; k++) {
        double got = (double)o->weights[t * o->row + k];
        if (!(fabs(got - want) <= slack) && o->ids[t * o->row + k] >= 0) {
            fail_msg("%s: row %lld shared weight is %.9g, expected %.9g\n  %s", label, (long long)t, got, want,
                     gate_case_text(c));
        }
    }
}

static void choose_by_table(const gate_case *c, row_oracle *r, int64_t t)
{
    const mf_gate_args *a = &c->args;
    int64_t token = a->token_ids.dtype == MF_I64 ? ((const int64_t *)a->token_ids.data)[t]
                                                 : ((const int32_t *)a->token_ids.data)[t];
    r->num_sorted = 0;
    for (int64_t k = 0; k < c->spec.cfg.top_k; k++) {
        int32_t id = -1;
        if (token >= 0 && token < a->hash_table.shape[0]) {
            id = ((const int32_t *)a->hash_table.data)[token * c->spec.cfg.top_k + k];
        }
        r->sorted[r->num_sorted++] = id >= 0 && id < c->spec.cfg.num_experts ? r->c[id] : (candidate){ .id = -1 };
    }
}

int64_t gate_oracle_check(const gate_case *c, const gate_outputs *o, const char *label)
{
    static row_oracle r;
    int64_t unjudged = 0;
    if (o->status != MF_OK) {
        fail_msg("%s: %s\n  %s", label, o->err.message, gate_case_text(c));
    }
    for (int64_t t = 0; t < c->spec.T; t++) {
        int32_t chosen[MAX_K];
        r.ambiguous = false;
        check_shared(c, t, o, label);
        fill(c, t, &r);
        if (c->spec.cfg.hash) {
            choose_by_table(c, &r, t);
            for (int64_t k = 0; k < c->spec.cfg.top_k; k++) {
                chosen[k] = r.sorted[k].id;
                if (o->ids[t * o->row + k] != chosen[k]) {
                    fail_msg("%s: row %lld column %lld is %d, the table says %d", label, (long long)t, (long long)k,
                             o->ids[t * o->row + k], chosen[k]);
                }
            }
        } else {
            if (c->spec.cfg.n_group > 1) {
                drop_groups(c, &r);
            }
            sort_candidates(c, &r);
            if (r.ambiguous || !read_choice(c, &r, o->ids + t * o->row, chosen)) {
                unjudged++;
                continue;
            }
            check_choice(c, &r, t, chosen, label);
        }
        check_weights(c, &r, t, chosen, o, label);
    }
    return unjudged;
}
