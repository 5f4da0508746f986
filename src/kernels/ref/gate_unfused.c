/* gate_unfused.c - the gate as separate steps over the whole batch, one buffer each: what --disable-fused-gate runs.
 *
 * It shares the elementary functions with gate.c and nothing else, so the two check each other.  Every step reads what the
 * one before it wrote.  Symbols as in gate.c; G = n_group. */
#include "kernels/ref/ref_gate.h"

#include "base/sys.h"
#include "kernels/ref/canonical.h"
#include "kernels/ref/views.h"

typedef struct steps {
    const mf_gate_call *call;
    const mf_gate_args *args;
    int64_t T, N, G, K, C;
    uint8_t *valid;     /* [T] the row takes part */
    uint8_t *has_nan;   /* [T] */
    float *x;           /* [T, N] canonical logits; NaN stays NaN and marks a bad expert */
    float *score;       /* [T, N] */
    float *key;         /* [T, N] */
    float *group_score; /* [T, G] */
    uint8_t *mask;      /* [T, N] 1 = may be chosen */
    int32_t *chosen;    /* [T, K] logical ids in selection order */
    float *weight;      /* [T, K] */
    float *identity;    /* [T] */
    int32_t *ids;       /* [T, C] emitted ids */
    float *weights;     /* [T, C] emitted weights */
} steps;

static size_t round_up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

size_t mf_ref_gate_unfused_bytes(int64_t num_tokens, int64_t row_width, int64_t num_groups, int64_t num_columns)
{
    /* Per token: 3 flags and sums, 13 bytes per expert, 4 per group, 8 per column twice; each buffer is rounded up. */
    int64_t wide, per_token, bytes;
    if (num_tokens <= 0 || !mf_mul_ok(row_width, (int64_t)13, &wide) || num_groups > INT32_MAX || num_columns > INT32_MAX ||
        !mf_add_ok(wide, 4 * num_groups + 16 * num_columns + 6, &per_token) || !mf_mul_ok(num_tokens, per_token, &bytes) ||
        !mf_add_ok(bytes, (int64_t)(12 * 64), &bytes)) {
        return 0;
    }
    return (size_t)bytes;
}

static void *take(char **next, int64_t count, size_t size)
{
    void *block = *next;
    *next += round_up((size_t)count * size);
    return block;
}

static steps open_steps(const mf_gate_call *call, void *workspace)
{
    steps s = { .call = call, .args = call->args, .T = call->num_tokens, .N = call->row_width, .G = call->cfg.n_group,
                .K = call->cfg.top_k, .C = call->num_columns };
    char *next = workspace;
    s.valid = take(&next, s.T, 1);
    s.has_nan = take(&next, s.T, 1);
    s.x = take(&next, s.T * s.N, sizeof(float));
    s.score = take(&next, s.T * s.N, sizeof(float));
    s.key = take(&next, s.T * s.N, sizeof(float));
    s.group_score = take(&next, s.T * s.G, sizeof(float));
    s.mask = take(&next, s.T * s.N, 1);
    s.chosen = take(&next, s.T * s.K, sizeof(int32_t));
    s.weight = take(&next, s.T * s.K, sizeof(float));
    s.identity = take(&next, s.T, sizeof(float));
    s.ids = take(&next, s.T * s.C, sizeof(int32_t));
    s.weights = take(&next, s.T * s.C, sizeof(float));
    return s;
}

static void find_valid_rows(steps *s)
{
    for (int64_t t = 0; t < s->T; t++) {
        s->has_nan[t] = 0;
        s->valid[t] = mf_row_is_valid(&s->args->row_valid, s->call->num_valid_tokens, t);
        if (s->valid[t] && s->call->cfg.hash) {
            int64_t token = mf_load_index(&s->args->token_ids, t);
            s->valid[t] = token >= 0 && token < s->call->hash_rows;
            if (!s->valid[t]) {
                mf_count(&s->args->error_count, 0);
            }
        }
    }
}

static void read_table(steps *s)
{
    const mf_tensor *table = &s->args->hash_table;
    for (int64_t t = 0; t < s->T; t++) {
        for (int64_t k = 0; s->valid[t] && k < s->K; k++) {
            int32_t id = mf_load_i32(table, mf_load_index(&s->args->token_ids, t) * table->stride[0] + k);
            if (id < 0 || id >= s->call->cfg.num_experts) {
                mf_count(&s->args->error_count, 0);
                id = -1;
            }
            s->chosen[t * s->K + k] = id;
        }
    }
}

static void load_logit(steps *s, int64_t t, int64_t i)
{
    float v = mf_load_f32(&s->args->router_logits, t * s->args->router_logits.stride[0] + i);
    s->x[t * s->N + i] = mf_is_nan(v) ? v : mf_canon_input(v);
    s->has_nan[t] |= mf_is_nan(v);
}

/* With HASH only the chosen columns are read; the others hold a number that nobody uses. */
static void load_logits(steps *s)
{
    for (int64_t t = 0; t < s->T; t++) {
        for (int64_t i = 0; i < s->N; i++) {
            s->x[t * s->N + i] = 0.0f;
        }
        for (int64_t i = 0; s->valid[t] && !s->call->cfg.hash && i < s->N; i++) {
            load_logit(s, t, i);
        }
        for (int64_t k = 0; s->valid[t] && s->call->cfg.hash && k < s->K; k++) {
            if (s->chosen[t * s->K + k] >= 0) {
                load_logit(s, t, s->chosen[t * s->K + k]);
            }
        }
    }
}

static const mf_tensor *row_bias(const steps *s, int64_t t)
{
    const mf_gate_args *a = s->args;
    return a->bias_alt.data && mf_load_u8(&a->row_is_alt, t) ? &a->bias_alt : &a->e_score_correction_bias;
}

static void bias_logits(steps *s)
{
    for (int64_t t = 0; t < s->T; t++) {
        for (int64_t i = 0; s->valid[t] && i < s->N; i++) {
            float *x = &s->x[t * s->N + i];
            if (!mf_is_nan(*x)) {
                *x = mf_canon_input(*x + mf_canon_bias(mf_load_f32(row_bias(s, t), i)));
            }
        }
    }
}

static void softmax_rows(steps *s)
{
    for (int64_t t = 0; t < s->T; t++) {
        const float *x = s->x + t * s->N;
        float *p = s->score + t * s->N;
        float top = -INFINITY;
        for (int64_t i = 0; i < s->N; i++) {
            top = x[i] > top ? x[i] : top; /* false for NaN */
        }
        for (int64_t i = 0; i < s->N; i++) {
            p[i] = mf_is_nan(x[i]) ? 0.0f : mf_exp(x[i] - top);
        }
        float sum = mf_lanesum32(p, s->N);
        for (int64_t i = 0; i < s->N && sum > 0.0f; i++) { /* 0: every expert is bad */
            p[i] = mf_canon_zero(p[i] / sum);
        }
    }
}

static void score_rows(steps *s)
{
    if (s->call->cfg.scoring == MF_SCORING_SOFTMAX) {
        softmax_rows(s);
        return;
    }
    for (int64_t i = 0; i < s->T * s->N; i++) {
        float x = s->x[i], v = 0.0f;
        if (mf_is_nan(x)) {
            s->score[i] = 0.0f;
            continue;
        }
        switch (s->call->cfg.scoring) {
        case MF_SCORING_SIGMOID:
        case MF_SCORING_TOPK_SIGMOID:
            v = mf_sigmoid(x);
            break;
        case MF_SCORING_SQRTSOFTPLUS:
        case MF_SCORING_SQRTSOFTPLUS_LOG1P:
            v = mf_sqrtsoftplus(x);
            break;
        default: /* TOPK_SOFTMAX scores the chosen only */
            break;
        }
        s->score[i] = mf_canon_zero(v);
    }
}

/* -inf stands for "bad": all other keys are finite. */
static void make_keys(steps *s)
{
    mf_scoring scoring = s->call->cfg.scoring;
    bool logits = scoring == MF_SCORING_SOFTMAX || scoring == MF_SCORING_TOPK_SOFTMAX || scoring == MF_SCORING_TOPK_SIGMOID;
    for (int64_t t = 0; t < s->T; t++) {
        for (int64_t i = 0; i < s->N; i++) {
            int64_t at = t * s->N + i;
            float key = logits ? s->x[at] : s->score[at];
            if (s->valid[t] && s->call->cfg.bias_domain == MF_BIAS_SCORE) {
                key = mf_canon_zero(s->score[at] + mf_canon_bias(mf_load_f32(row_bias(s, t), i)));
            }
            s->key[at] = mf_is_nan(s->x[at]) ? -INFINITY : key;
        }
    }
}

static void score_groups(steps *s)
{
    int64_t size = s->N / s->G;
    for (int64_t i = 0; i < s->T * s->G; i++) {
        const float *key = s->key + i * size;
        int64_t top = 0;
        for (int64_t j = 1; j < size; j++) {
            top = key[j] > key[top] ? j : top;
        }
        float second = -INFINITY;
        for (int64_t j = 0; j < size; j++) {
            second = j != top && key[j] > second ? key[j] : second;
        }
        bool sum = s->call->cfg.group_score == MF_GROUP_SCORE_TOP2_SUM && size > 1;
        s->group_score[i] = sum ? mf_canon_zero(key[top] + second) : key[top];
    }
}

/* A group stays when fewer than L groups precede it. */
static void make_mask(steps *s)
{
    int64_t size = s->N / s->G;
    for (int64_t t = 0; t < s->T; t++) {
        for (int64_t g = 0; g < s->G; g++) {
            const float *gs = s->group_score + t * s->G;
            int64_t ahead = 0;
            for (int64_t o = 0; s->G > 1 && o < s->G; o++) {
                ahead += gs[o] > gs[g] || (gs[o] == gs[g] && o < g);
            }
            for (int64_t i = g * size; i < (g + 1) * size; i++) {
                bool masked = s->args->expert_mask.data && mf_load_u8(&s->args->expert_mask, i) == 0;
                s->mask[t * s->N + i] = ahead < s->call->cfg.topk_group && !masked;
            }
        }
    }
}

/* Insertion into a list of the K best: equal keys stay in id order because ids come ascending. */
static void choose_rows(steps *s)
{
    for (int64_t t = 0; t < s->T; t++) {
        const float *key = s->key + t * s->N;
        int32_t *list = s->chosen + t * s->K;
        int64_t count = 0;
        for (int32_t i = 0; i < s->N; i++) {
            if (!s->mask[t * s->N + i] || (count == s->K && !(key[i] > key[list[count - 1]]))) {
                continue;
            }
            int64_t p = count < s->K ? count++ : count - 1;
            for (; p > 0 && key[i] > key[list[p - 1]]; p--) {
                list[p] = list[p - 1];
            }
            list[p] = i;
        }
        for (; count < s->K; count++) {
            list[count] = -1;
        }
    }
}

static void gather_weights(steps *s)
{
    bool over_chosen = s->call->cfg.scoring == MF_SCORING_TOPK_SOFTMAX;
    for (int64_t t = 0; t < s->T; t++) {
        const int32_t *id = s->chosen + t * s->K;
        float *w = s->weight + t * s->K;
        for (int64_t k = 0; k < s->K; k++) {
            bool dead = !s->valid[t] || id[k] < 0 || mf_is_nan(s->x[t * s->N + id[k]]);
            /* Bad experts come last, so the first chosen one is the largest logit unless all are bad. */
            w[k] = dead          ? 0.0f
                   : over_chosen ? mf_exp(s->x[t * s->N + id[k]] - s->x[t * s->N + id[0]])
                                 : s->score[t * s->N + id[k]];
        }
    }
}

static void divide_weights(steps *s)
{
    const mf_gate_config *cfg = &s->call->cfg;
    float eps = s->call->renorm_eps;
    bool over_chosen = cfg->scoring == MF_SCORING_TOPK_SOFTMAX;
    if (cfg->renorm == MF_RENORM_NONE && !over_chosen) {
        return;
    }
    for (int64_t t = 0; t < s->T; t++) {
        float *w = s->weight + t * s->K;
        float sum = 0.0f;
        for (int64_t k = 0; k < s->K; k++) {
            sum += w[k];
        }
        float d = sum > 0.0f ? sum : 1.0f;
        d = cfg->renorm == MF_RENORM_SUM_EPS ? sum + eps : d;
        d = cfg->renorm == MF_RENORM_SUM_FLOOR ? (sum > eps ? sum : eps) : d;
        for (int64_t k = 0; k < s->K; k++) {
            w[k] = mf_canon_zero(w[k] / d);
        }
    }
}

static void scale_weights(steps *s)
{
    const mf_tensor *scale = &s->args->per_expert_scale;
    for (int64_t i = 0; i < s->T * s->K; i++) {
        if (scale->data && s->valid[i / s->K] && s->chosen[i] >= 0) {
            s->weight[i] = mf_canon_zero(s->weight[i] * mf_canon_zero(mf_load_f32(scale, s->chosen[i])));
        }
        if (s->call->cfg.fold_scale) {
            s->weight[i] = mf_canon_zero(s->weight[i] * s->call->routed_scaling_factor);
        }
    }
}

static void split_zero_experts(steps *s)
{
    for (int64_t t = 0; t < s->T; t++) {
        s->identity[t] = 0.0f;
        for (int64_t i = t * s->K; s->valid[t] && i < (t + 1) * s->K; i++) {
            if (s->chosen[i] >= s->call->cfg.num_experts) {
                s->identity[t] += s->weight[i];
                s->chosen[i] = -1;
                s->weight[i] = 0.0f;
            }
        }
    }
}

static int64_t shared_id(const steps *s, int64_t t, int64_t j)
{
    const mf_gate_config *cfg = &s->call->cfg;
    int64_t row = s->args->row_base + t;
    if (cfg->ep_size == 0) {
        return cfg->shared_base + j * cfg->shared_stride + row % cfg->num_replicas;
    }
    int64_t local = cfg->num_physical_experts / cfg->ep_size;
    int64_t rank = cfg->ep_rank < 0 ? row % cfg->ep_size : cfg->ep_rank;
    return rank * (local + cfg->num_shared_slots) + local + j;
}

static float shared_weight(steps *s, int64_t t)
{
    if (s->call->cfg.shared_weight == MF_SHARED_ONE) {
        return 1.0f;
    }
    if (s->call->cfg.shared_weight == MF_SHARED_RECIPROCAL) {
        return mf_canon_zero(1.0f / s->call->routed_scaling_factor);
    }
    float g = mf_load_f32(&s->args->shared_gate, t);
    s->has_nan[t] |= mf_is_nan(g);
    return mf_is_nan(g) ? 0.0f : mf_canon_zero(mf_sigmoid(mf_canon_input(g)));
}

/* Ids and weights of all C columns, before maps: the routed ones copied, the shared ones made. */
static void join_columns(steps *s)
{
    for (int64_t t = 0; t < s->T; t++) {
        for (int64_t c = 0; s->valid[t] && c < s->C; c++) {
            bool routed = c < s->K;
            s->ids[t * s->C + c] = routed ? s->chosen[t * s->K + c] : (int32_t)shared_id(s, t, c - s->K);
            s->weights[t * s->C + c] = routed ? s->weight[t * s->K + c] : shared_weight(s, t);
        }
    }
}

static void count_load(steps *s)
{
    for (int64_t i = 0; i < s->T * s->K; i++) {
        if (s->valid[i / s->K] && s->chosen[i] >= 0) {
            mf_count(&s->args->load, s->chosen[i]);
        }
    }
}

static void map_experts(steps *s)
{
    const mf_gate_args *a = s->args;
    for (int64_t i = 0; s->call->map_copies > 0 && i < s->T * s->C; i++) {
        int64_t t = i / s->C, copies = 1;
        if (!s->valid[t] || i % s->C >= s->K || s->ids[i] < 0) {
            continue;
        }
        if (a->expert_copies.data) {
            copies = mf_load_i32(&a->expert_copies, s->ids[i]);
            copies = copies > s->call->map_copies ? s->call->map_copies : copies;
            copies = copies < 1 ? 1 : copies;
        }
        int32_t id = mf_load_i32(&a->expert_map, s->ids[i] * a->expert_map.stride[0] + (a->row_base + t) % copies);
        s->ids[i] = id < 0 ? -1 : id;
    }
}

static void number_by_rank(steps *s)
{
    const mf_gate_config *cfg = &s->call->cfg;
    for (int64_t i = 0; cfg->ep_size > 0 && i < s->T * s->C; i++) {
        if (s->valid[i / s->C] && i % s->C < s->K && s->ids[i] >= 0) {
            int64_t local = cfg->num_physical_experts / cfg->ep_size;
            int64_t id = s->ids[i] + s->ids[i] / local * cfg->num_shared_slots;
            s->ids[i] = id > INT32_MAX ? INT32_MAX : (int32_t)id;
        }
    }
}

static void apply_window(steps *s)
{
    const mf_gate_config *cfg = &s->call->cfg;
    for (int64_t i = 0; cfg->window_count >= 0 && i < s->T * s->C; i++) {
        if (s->valid[i / s->C] && s->ids[i] >= 0) {
            int64_t id = s->ids[i] - cfg->window_first;
            s->ids[i] = id < 0 || id >= cfg->window_count ? -1 : (int32_t)id;
        }
    }
}

static void pad_rows(steps *s)
{
    for (int64_t i = 0; i < s->T * s->C; i++) {
        if (!s->valid[i / s->C] || s->ids[i] < 0) {
            s->ids[i] = -1;
            s->weights[i] = 0.0f;
        }
    }
}

/* Bubble passes: adjacent pairs swap only when strictly out of order, which keeps equal ids in selection order. */
static void sort_rows(steps *s)
{
    for (int64_t t = 0; s->call->cfg.out_order == MF_ORDER_ID && t < s->T; t++) {
        int32_t *id = s->ids + t * s->C;
        float *w = s->weights + t * s->C;
        for (int64_t end = s->K; end > 1; end--) {
            for (int64_t k = 1; k < end; k++) {
                if (id[k] >= 0 && (id[k - 1] < 0 || id[k - 1] > id[k])) {
                    int32_t swap_id = id[k];
                    float swap_w = w[k];
                    id[k] = id[k - 1];
                    w[k] = w[k - 1];
                    id[k - 1] = swap_id;
                    w[k - 1] = swap_w;
                }
            }
        }
    }
}

static void write_columns(steps *s)
{
    const mf_gate_args *a = s->args;
    for (int64_t i = 0; i < s->T * s->C; i++) {
        mf_store_i32(&a->topk_ids, i / s->C * a->topk_ids.stride[0] + i % s->C, s->ids[i]);
        mf_store_f32(&a->topk_weights, i / s->C * a->topk_weights.stride[0] + i % s->C, s->weights[i]);
    }
    for (int64_t t = 0; a->identity_weight.data && t < s->T; t++) {
        mf_store_f32(&a->identity_weight, t, s->identity[t]);
    }
}

static void pack_columns(steps *s)
{
    const mf_tensor *packed = &s->args->packed;
    for (int64_t i = 0; s->call->cfg.pack && i < s->T * s->C; i++) {
        uint32_t pair = ((uint32_t)s->ids[i] << 16) + mf_f32_to_bf16(s->weights[i]);
        mf_store_i32(packed, i / s->C * packed->stride[0] + i % s->C, (int32_t)pair);
    }
}

static void count_columns(steps *s)
{
    for (int64_t p = 0; s->args->histogram.data && p < s->call->cfg.num_slots; p++) {
        mf_store_i32(&s->args->histogram, p, 0);
    }
    for (int64_t i = 0; i < s->T * s->C; i++) {
        if (s->ids[i] >= s->call->cfg.num_slots) {
            mf_count(&s->args->error_count, 0);
        } else if (s->ids[i] >= 0) {
            mf_count(&s->args->histogram, s->ids[i]);
        }
    }
    for (int64_t t = 0; t < s->T; t++) {
        if (s->has_nan[t]) {
            mf_count(&s->args->bad_rows, 0);
        }
    }
}

mf_status mf_ref_gate_unfused(mf_device *device, const mf_gate_call *call, void *workspace, mf_error *err)
{
    (void)device;
    (void)err;
    char empty[64]; /* T = 0 needs no workspace, but pointers into one */
    steps s = open_steps(call, call->num_tokens > 0 ? workspace : empty);
    find_valid_rows(&s);
    if (call->cfg.hash) {
        read_table(&s);
    }
    load_logits(&s);
    if (call->cfg.bias_domain == MF_BIAS_LOGIT) {
        bias_logits(&s);
    }
    score_rows(&s);
    if (!call->cfg.hash) {
        make_keys(&s);
        if (call->cfg.n_group > 1) {
            score_groups(&s);
        }
        make_mask(&s);
        choose_rows(&s);
    }
    gather_weights(&s);
    divide_weights(&s);
    scale_weights(&s);
    split_zero_experts(&s);
    join_columns(&s);
    count_load(&s);
    map_experts(&s);
    number_by_rank(&s);
    apply_window(&s);
    pad_rows(&s);
    sort_rows(&s);
    write_columns(&s);
    pack_columns(&s);
    count_columns(&s);
    return MF_OK;
}
