/* gate_random.c - random legal gate problems over the whole grid: every axis is drawn anew for each case, so any pair of
 * values meets often in a few thousand cases. */
#include "gate_case.h"

static const int64_t all_T[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 33, 64, 127, 256, 1024, 1536, 4096, 8192, 65536, 262144 };
static const int64_t all_N[] = { 1,   4,   6,   8,   16,  32,  60,  64,  72,  128, 129, 144, 160, 161,
                                 192, 256, 257, 288, 320, 352, 384, 512, 513, 576, 768, 896, 897, 1024, 4096 };
static const int64_t all_K[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 22, 32 };
static const int32_t all_groups[][4] = { { 64, 2, 2, 4 },  { 128, 4, 2, 4 },  { 128, 8, 2, 8 },  { 128, 8, 4, 6 },
                                         { 160, 8, 3, 6 }, { 256, 8, 4, 8 },  { 256, 4, 2, 8 },  { 384, 1, 1, 8 },
                                         { 512, 16, 8, 16 }, { 512, 8, 4, 8 }, { 96, 3, 2, 4 },  { 60, 5, 2, 4 },
                                         { 72, 9, 1, 8 } };
#define LENGTH(a) (sizeof(a) / sizeof((a)[0]))

static void draw_sizes(gate_spec *s, uint64_t *seed, int64_t max_work)
{
    mf_gate_config *g = &s->cfg;
    int64_t n;
    do {
        n = conf_pick(seed, all_N, LENGTH(all_N));
    } while (n > max_work);
    g->num_zero_experts = n > 1 && conf_below(seed, 5) == 0 ? 1 + (int32_t)conf_below(seed, n - 1) : 0;
    g->num_experts = (int32_t)(n - g->num_zero_experts);
    int64_t most = n < 64 ? n : 64;
    int64_t k = conf_below(seed, 8) == 0 ? most : conf_pick(seed, all_K, LENGTH(all_K));
    g->top_k = (int32_t)(k < most ? k : most);
    if (conf_below(seed, 3) == 0) {
        const int32_t *row = all_groups[conf_below(seed, LENGTH(all_groups))];
        g->num_experts = row[0];
        g->num_zero_experts = 0;
        g->n_group = row[1];
        g->topk_group = row[2];
        g->top_k = row[3];
        g->group_score = (mf_group_score)CONF_PICK(seed, MF_GROUP_SCORE_MAX, MF_GROUP_SCORE_TOP2_SUM);
    } else if (conf_below(seed, 12) == 0 && g->num_zero_experts == 0 && g->num_experts == g->top_k) {
        g->n_group = g->topk_group = g->num_experts; /* groups of one expert */
        g->group_score = MF_GROUP_SCORE_TOP2_SUM;
    }
    do {
        s->T = conf_pick(seed, all_T, LENGTH(all_T));
    } while (s->T * n > max_work && s->T > 1);
}

static void draw_function(gate_spec *s, uint64_t *seed)
{
    mf_gate_config *g = &s->cfg;
    bool grouped = g->n_group > 1;
    g->hash = !grouped && conf_below(seed, 8) == 0;
    g->scoring = (mf_scoring)(grouped ? CONF_PICK(seed, MF_SCORING_SOFTMAX, MF_SCORING_SIGMOID, MF_SCORING_SQRTSOFTPLUS)
                              : g->hash ? CONF_PICK(seed, MF_SCORING_SIGMOID, MF_SCORING_SQRTSOFTPLUS,
                                                    MF_SCORING_SQRTSOFTPLUS_LOG1P)
                                        : 1 + conf_below(seed, 6));
    bool topk = g->scoring == MF_SCORING_TOPK_SOFTMAX || g->scoring == MF_SCORING_TOPK_SIGMOID;
    g->bias_domain = (mf_bias_domain)(g->hash ? MF_BIAS_NONE
                                      : topk  ? CONF_PICK(seed, MF_BIAS_NONE, MF_BIAS_LOGIT)
                                              : 1 + conf_below(seed, 3));
    g->renorm = (mf_renorm)(topk ? MF_RENORM_NONE : 1 + conf_below(seed, 4));
    static const double eps[] = { 1e-20, 1e-12, 1e-3, 0x1p-126, 1.0 };
    g->renorm_eps = g->renorm == MF_RENORM_SUM_FLOOR || conf_below(seed, 2) ? eps[conf_below(seed, 5)] : g->renorm_eps;
    static const double factors[] = { 1.0, 2.5, 16.0, 0.3, 1e-30, 1e30 };
    g->routed_scaling_factor = factors[conf_below(seed, 6)];
    g->fold_scale = g->scoring == MF_SCORING_TOPK_SIGMOID && g->routed_scaling_factor != 1.0 ? 0 : conf_below(seed, 3) != 0;
}

static void draw_columns(gate_spec *s, uint64_t *seed)
{
    mf_gate_config *g = &s->cfg;
    g->num_shared_slots = (int32_t)conf_below(seed, 5);
    g->num_replicas = (int32_t)CONF_PICK(seed, 1, 2, 3, 8);
    if (g->num_shared_slots > 0) {
        g->shared_weight = (mf_shared_weight)conf_below(seed, g->fold_scale ? 2 : 3);
    }
    s->map = (map_kind)CONF_PICK(seed, MAP_NONE, MAP_NONE, MAP_PLAIN, MAP_COPIES);
    if (conf_below(seed, 3) == 0) { /* physical ids beyond the logical ones, or with a map fewer */
        g->num_physical_experts = g->num_experts + (int32_t)conf_below(seed, 9);
        if (s->map != MAP_NONE && conf_below(seed, 2)) {
            g->num_physical_experts = 1 + (int32_t)conf_below(seed, g->num_experts);
        }
    }
    int32_t physical = g->num_physical_experts < 0 ? g->num_experts : g->num_physical_experts;
    if (conf_below(seed, 4) == 0) {
        g->ep_size = (int32_t)CONF_PICK(seed, 1, 2, 3, 4, 8);
        if (physical % g->ep_size != 0) {
            physical += g->ep_size - physical % g->ep_size;
            g->num_physical_experts = physical;
        }
        g->ep_rank = (int32_t)conf_below(seed, g->ep_size + 1) - 1;
        g->num_slots = physical + g->ep_size * g->num_shared_slots;
    } else if (conf_below(seed, 4) == 0) {
        g->shared_base = physical + (int32_t)conf_below(seed, 5);
        g->shared_stride = g->num_replicas + (int32_t)conf_below(seed, 3);
        g->num_slots = g->shared_base + g->num_shared_slots * g->shared_stride + 1;
    }
    if (conf_below(seed, 5) == 0) { /* some final ids are past the end: errors, counted */
        g->num_slots = 1 + (int32_t)conf_below(seed, physical);
    }
    if (conf_below(seed, 5) == 0) {
        g->window_first = conf_below(seed, physical);
        g->window_count = conf_below(seed, physical + 3);
    }
    g->out_order = (mf_out_order)conf_below(seed, 2);
    g->pack = conf_below(seed, 3) == 0;
}

gate_spec gate_spec_random(uint64_t *seed, int64_t max_work)
{
    gate_spec s = gate_spec_default();
    draw_sizes(&s, seed, max_work);
    draw_function(&s, seed);
    draw_columns(&s, seed);
    s.seed = mf_random_next(seed);
    s.logits_dtype = (mf_dtype)CONF_PICK(seed, MF_F32, MF_BF16, MF_F16);
    s.bias_dtype = (mf_dtype)CONF_PICK(seed, MF_F32, MF_F32, MF_BF16, MF_F16);
    s.shared_gate_dtype = (mf_dtype)CONF_PICK(seed, MF_F32, MF_BF16, MF_F16);
    s.token_dtype = (mf_dtype)CONF_PICK(seed, MF_I32, MF_I64);
    s.values = (value_kind)CONF_PICK(seed, VALUES_NORMAL, VALUES_NORMAL, VALUES_TIES, VALUES_TIES, VALUES_NEGATIVE,
                                     VALUES_WIDE, VALUES_TINY, VALUES_SPECIAL, VALUES_SPECIAL, VALUES_ALL_MINUS_INF,
                                     VALUES_ONE_PLUS_INF, VALUES_ALL_NAN, VALUES_ZERO);
    s.bias_values = (value_kind)CONF_PICK(seed, VALUES_NORMAL, VALUES_TIES, VALUES_NEGATIVE, VALUES_TINY, VALUES_SPECIAL,
                                          VALUES_ALL_NAN, VALUES_ZERO);
    s.layout = (layout_kind)conf_below(seed, LAYOUT_COUNT);
    s.padding = s.T > 0 && conf_below(seed, 2) ? (padding_kind)conf_below(seed, PAD_COUNT) : PAD_NONE;
    s.bias_alt = conf_below(seed, 4) == 0;
    s.bias_2d = conf_below(seed, 4) == 0;
    s.scale = conf_below(seed, 4) == 0;
    s.mask = !s.cfg.hash && conf_below(seed, 4) == 0;
    s.bad_hash = conf_below(seed, 2) != 0;
    s.histogram = conf_below(seed, 4) != 0;
    s.load = conf_below(seed, 3) != 0;
    s.counters = conf_below(seed, 4) != 0;
    static const int64_t bases[] = { 0, 1, 7, (1LL << 40) + 5, INT64_MAX - 300000 };
    s.row_base = bases[conf_below(seed, 5)];
    s.out_slack = CONF_PICK(seed, 0, 0, 1, 5);
    return s;
}
