/* gate.c - the gate, one row at a time: score, bias, groups, choose, weigh, shared columns, maps, sort, pack, count.
 *
 * This file is the specification: the plainest loops, in the order of events that every backend must reproduce.
 * T tokens, E routed experts, Z zero experts, N = E + Z, K = top_k, S shared slots, C = K + S. */
#include "kernels/ref/gate_row.h"

#include "kernels/ref/ref_gate.h"
#include "kernels/ref/views.h"

static bool is_topk_scoring(mf_scoring s)
{
    return s == MF_SCORING_TOPK_SOFTMAX || s == MF_SCORING_TOPK_SIGMOID;
}

static float bias_of(const mf_gate_args *args, int64_t t, int64_t i)
{
    bool alt = args->bias_alt.data && mf_load_u8(&args->row_is_alt, t) != 0;
    return mf_canon_bias(mf_load_f32(alt ? &args->bias_alt : &args->e_score_correction_bias, i));
}

static void read_logit(const mf_gate_call *call, mf_gate_row *row, int64_t i)
{
    const mf_tensor *logits = &call->args->router_logits;
    float x = mf_load_f32(logits, row->t * logits->stride[0] + i);
    row->bad[i] = mf_is_nan(x);
    row->has_nan |= row->bad[i];
    row->x[i] = row->bad[i] ? 0.0f : mf_canon_input(x);
    if (call->cfg.bias_domain == MF_BIAS_LOGIT) {
        row->x[i] = mf_canon_input(row->x[i] + bias_of(call->args, row->t, i));
    }
}

static float score_of(mf_scoring scoring, float x)
{
    switch (scoring) {
    case MF_SCORING_SIGMOID:
    case MF_SCORING_TOPK_SIGMOID:
        return mf_canon_zero(mf_sigmoid(x));
    case MF_SCORING_SQRTSOFTPLUS:
        return mf_canon_zero(mf_sqrtsoftplus(x));
    default: /* SQRTSOFTPLUS_LOG1P: past 20, adding log1p(exp(-x)) changes no bit */
        return mf_canon_zero(x > 20.0f ? sqrtf(x) : mf_sqrtsoftplus(x));
    }
}

/* Probabilities over all columns, masked ones and dropped groups included. */
static void softmax(mf_gate_row *row, int64_t n)
{
    float m = -FLT_MAX;
    for (int64_t i = 0; i < n; i++) {
        if (!row->bad[i] && row->x[i] > m) {
            m = row->x[i];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        row->a[i] = row->bad[i] ? 0.0f : mf_exp(row->x[i] - m);
    }
    float sum = mf_lanesum32(row->a, n);
    for (int64_t i = 0; i < n; i++) {
        row->a[i] = row->bad[i] ? 0.0f : mf_canon_zero(row->a[i] / sum);
    }
}

static void read_logits(const mf_gate_call *call, mf_gate_row *row)
{
    for (int64_t i = 0; i < call->row_width; i++) {
        read_logit(call, row, i);
    }
}

static void score(const mf_gate_call *call, mf_gate_row *row)
{
    mf_scoring scoring = call->cfg.scoring;
    if (scoring == MF_SCORING_SOFTMAX) {
        softmax(row, call->row_width);
    } else if (scoring != MF_SCORING_TOPK_SOFTMAX) {
        for (int64_t i = 0; i < call->row_width; i++) {
            row->a[i] = row->bad[i] ? 0.0f : score_of(scoring, row->x[i]);
        }
    }
}

/* Softmax without a score bias ranks by logit, so that probabilities which round to the same f32 make no ties. */
static void make_keys(const mf_gate_call *call, mf_gate_row *row)
{
    mf_scoring scoring = call->cfg.scoring;
    bool by_score_and_bias = call->cfg.bias_domain == MF_BIAS_SCORE;
    bool by_logit = scoring == MF_SCORING_SOFTMAX || is_topk_scoring(scoring);
    for (int64_t i = 0; i < call->row_width; i++) {
        float key;
        if (row->bad[i]) {
            key = -INFINITY;
        } else if (by_score_and_bias) {
            key = mf_canon_zero(row->a[i] + bias_of(call->args, row->t, i));
        } else {
            key = by_logit ? row->x[i] : row->a[i];
        }
        row->key[i] = key;
        row->allowed[i] = true;
    }
}

static float group_score(const mf_gate_row *row, int64_t first, int64_t size, mf_group_score kind)
{
    float best = -INFINITY, second = -INFINITY;
    for (int64_t i = first; i < first + size; i++) {
        float k = row->key[i];
        if (k > best) {
            second = best;
            best = k;
        } else if (k > second) { /* an equal key counts as second */
            second = k;
        }
    }
    if (kind == MF_GROUP_SCORE_MAX || size == 1) {
        return best;
    }
    return mf_canon_zero(best + second); /* may be +-inf */
}

/* Keeps the topk_group best groups; experts of the others can never be chosen, whatever the sign of their keys. */
static void drop_groups(const mf_gate_call *call, mf_gate_row *row)
{
    int64_t num_groups = call->cfg.n_group;
    int64_t size = call->row_width / num_groups;
    float gs[MF_GATE_MAX_WIDTH];
    bool kept[MF_GATE_MAX_WIDTH] = { false };
    for (int64_t g = 0; g < num_groups; g++) {
        gs[g] = group_score(row, g * size, size, call->cfg.group_score);
    }
    for (int32_t n = 0; n < call->cfg.topk_group; n++) {
        int64_t best = -1;
        for (int64_t g = 0; g < num_groups; g++) {
            if (!kept[g] && (best < 0 || gs[g] > gs[best])) {
                best = g;
            }
        }
        kept[best] = true;
    }
    for (int64_t i = 0; i < call->row_width; i++) {
        row->allowed[i] = kept[i / size];
    }
}

/* Key descending, id ascending; bad experts come last in id order.  Columns without a candidate get id -1. */
static void choose(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *mask = &call->args->expert_mask;
    for (int64_t i = 0; mask->data && i < call->row_width; i++) {
        row->allowed[i] = row->allowed[i] && mf_load_u8(mask, i) != 0;
    }
    for (int32_t k = 0; k < call->cfg.top_k; k++) {
        int32_t best = -1;
        for (int32_t i = 0; i < call->row_width; i++) {
            if (row->allowed[i] && (best < 0 || row->key[i] > row->key[best])) {
                best = i;
            }
        }
        row->id[k] = best;
        if (best >= 0) {
            row->allowed[best] = false;
        }
    }
}

/* HASH: the table names the experts.  false: the token is outside the table and the row becomes a padded one. */
static bool choose_by_table(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_gate_args *args = call->args;
    int64_t token = mf_load_index(&args->token_ids, row->t);
    if (token < 0 || token >= call->hash_rows) {
        mf_count(&args->error_count, 0);
        return false;
    }
    for (int32_t k = 0; k < call->cfg.top_k; k++) {
        int32_t id = mf_load_i32(&args->hash_table, token * args->hash_table.stride[0] + k);
        if (id < 0 || id >= call->cfg.num_experts) {
            mf_count(&args->error_count, 0);
            id = -1;
        } else {
            read_logit(call, row, id);
            row->a[id] = row->bad[id] ? 0.0f : score_of(call->cfg.scoring, row->x[id]);
        }
        row->id[k] = id;
    }
    return true;
}

/* TOPK_SOFTMAX: a softmax over the chosen alone. */
static void softmax_over_chosen(const mf_gate_call *call, mf_gate_row *row)
{
    float first = 0.0f, sum = 0.0f;
    bool any = false;
    for (int32_t k = 0; k < call->cfg.top_k; k++) {
        int32_t id = row->id[k];
        row->w[k] = 0.0f;
        if (id >= 0 && !row->bad[id]) {
            first = any ? first : row->x[id];
            any = true;
            row->w[k] = mf_exp(row->x[id] - first);
        }
        sum += row->w[k];
    }
    for (int32_t k = 0; any && k < call->cfg.top_k; k++) {
        row->w[k] = mf_canon_zero(row->w[k] / sum);
    }
}

static void renormalise(const mf_gate_call *call, mf_gate_row *row)
{
    float sum = 0.0f;
    for (int32_t k = 0; k < call->cfg.top_k; k++) {
        sum += row->w[k];
    }
    float d;
    switch (call->cfg.renorm) {
    case MF_RENORM_SUM:
        d = sum > 0.0f ? sum : 1.0f;
        break;
    case MF_RENORM_SUM_EPS:
        d = sum + call->renorm_eps;
        break;
    case MF_RENORM_SUM_FLOOR:
        d = sum > call->renorm_eps ? sum : call->renorm_eps;
        break;
    default:
        return;
    }
    for (int32_t k = 0; k < call->cfg.top_k; k++) {
        row->w[k] = mf_canon_zero(row->w[k] / d);
    }
}

/* The bias steers which experts win but not how much they weigh: weights come from scores without it. */
static void weigh(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_tensor *scale = &call->args->per_expert_scale;
    if (call->cfg.scoring == MF_SCORING_TOPK_SOFTMAX) {
        softmax_over_chosen(call, row);
    } else {
        for (int32_t k = 0; k < call->cfg.top_k; k++) {
            row->w[k] = row->id[k] >= 0 ? row->a[row->id[k]] : 0.0f;
        }
        renormalise(call, row);
    }
    row->identity = 0.0f;
    for (int32_t k = 0; k < call->cfg.top_k; k++) {
        int32_t id = row->id[k];
        if (id < 0) {
            row->w[k] = 0.0f;
            continue;
        }
        if (scale->data) {
            row->w[k] = mf_canon_zero(row->w[k] * mf_canon_zero(mf_load_f32(scale, id)));
        }
        if (call->cfg.fold_scale) {
            row->w[k] = mf_canon_zero(row->w[k] * call->routed_scaling_factor);
        }
        if (id >= call->cfg.num_experts) { /* a zero expert: its output is the hidden state itself */
            row->identity += row->w[k];
            row->id[k] = -1;
            row->w[k] = 0.0f;
        }
    }
}

static float shared_weight(const mf_gate_call *call, mf_gate_row *row)
{
    switch (call->cfg.shared_weight) {
    case MF_SHARED_PER_TOKEN: {
        float g = mf_load_f32(&call->args->shared_gate, row->t);
        if (mf_is_nan(g)) {
            row->has_nan = true;
            return 0.0f;
        }
        return mf_canon_zero(mf_sigmoid(mf_canon_input(g)));
    }
    case MF_SHARED_RECIPROCAL:
        return mf_canon_zero(1.0f / call->routed_scaling_factor);
    default:
        return 1.0f;
    }
}

/* Shared columns are additional to the routed ones and never candidates. */
static void add_shared(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_gate_config *cfg = &call->cfg;
    if (cfg->num_shared_slots == 0) {
        return;
    }
    float w = shared_weight(call, row);
    int64_t index = call->args->row_base + row->t;
    for (int32_t j = 0; j < cfg->num_shared_slots; j++) {
        int64_t id;
        if (cfg->ep_size > 0) {
            int64_t local = cfg->num_physical_experts / cfg->ep_size;
            int64_t rank = cfg->ep_rank >= 0 ? cfg->ep_rank : index % cfg->ep_size;
            id = rank * (local + cfg->num_shared_slots) + local + j;
        } else {
            id = cfg->shared_base + (int64_t)j * cfg->shared_stride + index % cfg->num_replicas;
        }
        row->id[cfg->top_k + j] = (int32_t)id;
        row->w[cfg->top_k + j] = w;
    }
}

/* Logical routed id -> physical id -> per-rank number.  Negative: not here. */
static int64_t map_routed(const mf_gate_call *call, int64_t t, int32_t logical)
{
    const mf_gate_args *args = call->args;
    const mf_gate_config *cfg = &call->cfg;
    int64_t id = logical;
    if (call->map_copies > 0) {
        int64_t copies = 1;
        if (args->expert_copies.data) { /* values outside 1..map_copies are the caller's mistake, not our access */
            copies = mf_load_i32(&args->expert_copies, logical);
            copies = copies < 1 ? 1 : copies > call->map_copies ? call->map_copies : copies;
        }
        id = mf_load_i32(&args->expert_map, logical * args->expert_map.stride[0] + (args->row_base + t) % copies);
    }
    if (id >= 0 && cfg->ep_size > 0) {
        id += id / (cfg->num_physical_experts / cfg->ep_size) * cfg->num_shared_slots;
    }
    return id > INT32_MAX ? INT32_MAX : id;
}

static void map_ids(const mf_gate_call *call, mf_gate_row *row)
{
    const mf_gate_config *cfg = &call->cfg;
    for (int32_t c = 0; c < call->num_columns; c++) {
        int64_t id = row->id[c];
        if (id >= 0 && c < cfg->top_k) {
            mf_count(&call->args->load, id);
            id = map_routed(call, row->t, (int32_t)id);
        }
        if (id >= 0 && cfg->window_count >= 0) {
            id -= cfg->window_first;
            id = id < cfg->window_count ? id : -1;
        }
        row->id[c] = id < 0 ? -1 : (int32_t)id;
        row->w[c] = id < 0 ? 0.0f : row->w[c];
    }
}

/* Ascending emitted id with -1 last, stable: equal ids keep selection order. */
static void sort_routed(const mf_gate_call *call, mf_gate_row *row)
{
    for (int32_t k = 1; k < call->cfg.top_k; k++) {
        int32_t id = row->id[k];
        float w = row->w[k];
        int32_t p = k;
        for (; p > 0 && (uint32_t)row->id[p - 1] > (uint32_t)id; p--) {
            row->id[p] = row->id[p - 1];
            row->w[p] = row->w[p - 1];
        }
        row->id[p] = id;
        row->w[p] = w;
    }
}

static void emit(const mf_gate_call *call, const mf_gate_row *row)
{
    const mf_gate_args *args = call->args;
    for (int32_t c = 0; c < call->num_columns; c++) {
        int32_t id = row->id[c];
        mf_store_i32(&args->topk_ids, row->t * args->topk_ids.stride[0] + c, id);
        mf_store_f32(&args->topk_weights, row->t * args->topk_weights.stride[0] + c, row->w[c]);
        if (args->packed.data && call->cfg.pack) {
            uint32_t pair = (uint32_t)id << 16 | mf_f32_to_bf16(row->w[c]);
            mf_store_i32(&args->packed, row->t * args->packed.stride[0] + c, (int32_t)pair);
        }
        if (id >= call->cfg.num_slots) {
            mf_count(&args->error_count, 0);
        } else if (id >= 0) {
            mf_count(&args->histogram, id);
        }
    }
    if (args->identity_weight.data) {
        mf_store_f32(&args->identity_weight, row->t, row->identity);
    }
    if (row->has_nan) {
        mf_count(&args->bad_rows, 0);
    }
}

static void pad(const mf_gate_call *call, mf_gate_row *row)
{
    for (int32_t c = 0; c < call->num_columns; c++) {
        row->id[c] = -1;
        row->w[c] = 0.0f;
    }
    row->identity = 0.0f;
}

const mf_gate_steps mf_ref_gate_steps = {
    .read_logits = read_logits, .score = score, .make_keys = make_keys, .drop_groups = drop_groups, .choose = choose
};

void mf_gate_run_row(const mf_gate_call *call, const mf_gate_steps *steps, mf_gate_row *row)
{
    bool valid = mf_row_is_valid(&call->args->row_valid, call->num_valid_tokens, row->t);
    row->has_nan = false;
    if (valid && call->cfg.hash) {
        valid = choose_by_table(call, row);
    } else if (valid) {
        steps->read_logits(call, row);
        steps->score(call, row);
        steps->make_keys(call, row);
        if (call->cfg.n_group > 1) {
            steps->drop_groups(call, row);
        }
        steps->choose(call, row);
    }
    if (valid) {
        weigh(call, row);
        add_shared(call, row);
        map_ids(call, row);
        if (call->cfg.out_order == MF_ORDER_ID) {
            sort_routed(call, row);
        }
    } else {
        pad(call, row);
    }
    emit(call, row);
}

void mf_gate_clear_histogram(const mf_gate_call *call)
{
    for (int64_t i = 0; call->args->histogram.data && i < call->cfg.num_slots; i++) {
        mf_store_i32(&call->args->histogram, i, 0);
    }
}

mf_status mf_ref_gate(mf_device *device, const mf_gate_call *call, mf_error *err)
{
    (void)device;
    (void)err;
    mf_gate_row row;
    mf_gate_clear_histogram(call);
    for (row.t = 0; row.t < call->num_tokens; row.t++) {
        mf_gate_run_row(call, &mf_ref_gate_steps, &row);
    }
    return MF_OK;
}
