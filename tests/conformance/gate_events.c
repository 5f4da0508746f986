/* gate_events.c - what happens to a row after its weights are known, applied a second time: maps, per-rank numbering,
 * window, padding, order, packing, counting.  Integers only, so the check is exact. */
#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "gate_oracle.h"

enum { MAX_COLUMNS = 80 };

gate_spec gate_spec_without_events(const gate_spec *s)
{
    gate_spec b = *s;
    b.cfg.num_physical_experts = b.cfg.num_slots = b.cfg.shared_base = b.cfg.shared_stride = -1;
    b.cfg.ep_size = 0;
    b.cfg.ep_rank = -1;
    b.cfg.window_count = -1;
    b.cfg.out_order = MF_ORDER_KEY;
    b.cfg.pack = 0;
    b.padding = PAD_NONE;
    b.map = MAP_NONE;
    b.out_slack = 0;
    b.counters = b.histogram = b.load = true;
    return b;
}

typedef struct column {
    int64_t id, place;
    float w;
} column;

static int by_id(const void *a, const void *b)
{
    const column *x = a, *y = b;
    if (x->id != y->id) {
        return x->id < 0 ? 1 : y->id < 0 ? -1 : x->id < y->id ? -1 : 1;
    }
    return x->place < y->place ? -1 : 1;
}

static int64_t token_of(const mf_gate_args *a, int64_t t)
{
    return a->token_ids.dtype == MF_I64 ? ((const int64_t *)a->token_ids.data)[t] : ((const int32_t *)a->token_ids.data)[t];
}

static bool takes_part(const gate_case *c, int64_t t)
{
    const mf_gate_args *a = &c->args;
    int64_t n = a->num_valid_tokens.data ? *(const int32_t *)a->num_valid_tokens.data : c->spec.T;
    return t < n && (!a->row_valid.data || ((const uint8_t *)a->row_valid.data)[t] != 0);
}

static bool has_nan(const gate_case *c, int64_t t)
{
    const mf_gate_args *a = &c->args;
    bool found = a->shared_gate.data && isnan(conf_get(a->shared_gate.data, a->shared_gate.dtype, t));
    int64_t n = c->spec.cfg.hash ? c->spec.cfg.top_k : c->N;
    for (int64_t i = 0; i < n; i++) {
        int64_t e = i;
        if (c->spec.cfg.hash) {
            e = ((const int32_t *)a->hash_table.data)[token_of(a, t) * c->spec.cfg.top_k + i];
            if (e < 0 || e >= c->spec.cfg.num_experts) {
                continue;
            }
        }
        found |= isnan(conf_get(a->router_logits.data, a->router_logits.dtype, t * a->router_logits.stride[0] + e));
    }
    return found;
}

static int64_t final_id(const gate_case *c, int64_t t, int64_t col, int64_t id)
{
    const mf_gate_config *g = &c->spec.cfg;
    const mf_gate_args *a = &c->args;
    uint64_t row = (uint64_t)c->spec.row_base + (uint64_t)t;
    int64_t physical = g->num_physical_experts < 0 ? g->num_experts : g->num_physical_experts;
    int64_t per_rank = g->ep_size > 0 ? physical / g->ep_size : 0;
    if (col >= g->top_k) {
        int64_t j = col - g->top_k;
        if (g->ep_size > 0) {
            int64_t rank = g->ep_rank >= 0 ? g->ep_rank : (int64_t)(row % (uint64_t)g->ep_size);
            id = rank * (per_rank + g->num_shared_slots) + per_rank + j;
        } else {
            int64_t base = g->shared_base < 0 ? physical : g->shared_base;
            int64_t stride = g->shared_stride < 0 ? g->num_replicas : g->shared_stride;
            id = base + j * stride + (int64_t)(row % (uint64_t)g->num_replicas);
        }
    } else if (id >= 0) {
        if (c->spec.map == MAP_PLAIN) {
            id = ((const int32_t *)a->expert_map.data)[id];
        } else if (c->spec.map == MAP_COPIES) {
            int64_t copies = ((const int32_t *)a->expert_copies.data)[id];
            id = ((const int32_t *)a->expert_map.data)[id * 3 + (int64_t)(row % (uint64_t)copies)];
        }
        if (id >= 0 && g->ep_size > 0) {
            int64_t rank = id / per_rank;
            id = rank * (per_rank + g->num_shared_slots) + id % per_rank;
        }
    }
    if (id >= 0 && g->window_count >= 0) {
        id = id >= g->window_first && id < g->window_first + g->window_count ? id - g->window_first : -1;
    }
    return id;
}

#define EXPECT(name, t, got, want)                                                                                \
    do {                                                                                                          \
        if ((got) != (want)) {                                                                                    \
            fail_msg("%s: %s at %lld is %lld (0x%llx), expected %lld (0x%llx)\n  %s", label, name, (long long)(t), \
                     (long long)(got), (unsigned long long)(got), (long long)(want), (unsigned long long)(want),   \
                     gate_case_text(c));                                                                          \
        }                                                                                                         \
    } while (0)

void gate_events_check(const gate_case *c, const gate_outputs *base, const gate_outputs *o, const char *label)
{
    const mf_gate_config *g = &c->spec.cfg;
    int64_t bad = 1000, errors = 2000;
    int32_t *histogram = conf_alloc((size_t)c->P * 4), *load = conf_alloc((size_t)g->num_experts * 4);
    memset(histogram, 0, (size_t)c->P * 4);
    for (int32_t e = 0; e < g->num_experts; e++) {
        load[e] = 100 + e;
    }
    if (o->status != MF_OK || base->status != MF_OK) {
        fail_msg("%s: %s%s\n  %s", label, base->err.message, o->err.message, gate_case_text(c));
    }
    for (int64_t t = 0; t < c->spec.T; t++) {
        column col[MAX_COLUMNS];
        bool valid = takes_part(c, t);
        if (valid && g->hash) {
            int64_t token = token_of(&c->args, t);
            if (token < 0 || token >= c->args.hash_table.shape[0]) {
                errors++;
                valid = false;
            }
            for (int64_t k = 0; valid && k < g->top_k; k++) {
                int32_t entry = ((const int32_t *)c->args.hash_table.data)[token * g->top_k + k];
                errors += entry < 0 || entry >= g->num_experts;
            }
        }
        bad += valid && has_nan(c, t);
        for (int64_t k = 0; k < c->C; k++) {
            int32_t logical = base->ids[t * base->row + k];
            col[k] = (column){ .id = -1, .place = k };
            if (valid) {
                load[k < g->top_k && logical >= 0 ? logical : 0] += k < g->top_k && logical >= 0;
                col[k].id = final_id(c, t, k, logical);
                col[k].w = col[k].id < 0 ? 0.0f : base->weights[t * base->row + k];
            }
        }
        if (g->out_order == MF_ORDER_ID) {
            qsort(col, (size_t)g->top_k, sizeof col[0], by_id);
        }
        for (int64_t k = 0; k < c->C; k++) {
            EXPECT("topk_ids", t * o->row + k, o->ids[t * o->row + k], col[k].id);
            EXPECT("topk_weights", t * o->row + k, mf_f32_bits(o->weights[t * o->row + k]), mf_f32_bits(col[k].w));
            if (g->pack) {
                uint32_t want = (uint32_t)(col[k].id * 65536) | mf_f32_to_bf16(col[k].w);
                EXPECT("packed", t * o->row + k, (uint32_t)o->packed[t * o->row + k], want);
            }
            if (col[k].id >= c->P) {
                errors++;
            } else if (col[k].id >= 0) {
                histogram[col[k].id]++;
            }
        }
        if (o->args.identity_weight.data) {
            float want = valid ? base->identity[t] : 0.0f;
            EXPECT("identity_weight", t, mf_f32_bits(o->identity[t]), mf_f32_bits(want));
        }
    }
    for (int64_t p = 0; c->spec.histogram && p < c->P; p++) {
        EXPECT("histogram", p, o->histogram[p], histogram[p]);
    }
    for (int64_t e = 0; c->spec.load && e < g->num_experts; e++) {
        EXPECT("load", e, o->load[e], load[e]);
    }
    if (c->spec.counters) {
        EXPECT("bad_rows", 0, *o->bad_rows, bad);
        EXPECT("error_count", 0, *o->error_count, errors);
    }
    conf_free(histogram);
    conf_free(load);
}
