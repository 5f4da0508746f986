/* layer.c - mf_moe_layer: its modes agree to the bit, and it computes what the specification's sentence says. */
#include "experts_batch.h"

#include <math.h>
#include <stdlib.h>

#include "base/number.h"

enum { EXPERTS = 12, TOP_K = 3, CHUNKS = 2, HIDDEN = 72, WIDTH = 40, TOKENS = 11, VOCABULARY = 9 };

/* What varies between cases. */
typedef struct layer_case {
    const char *name;
    mf_format routed, shared;
    mf_scoring scoring;
    mf_renorm renorm;
    double factor;
    bool unfolded, per_token, hash, with_residual, by_id;
    int zero_experts, replicas, padding; /* padding: 0 none, 1 num_valid_tokens, 2 row_valid */
    mf_dtype act_dtype, y_dtype, out_dtype;
    mf_act_quant act_quant;
} layer_case;

static const layer_case cases[] = {
    { .name = "DeepSeek-V3",
      .routed = MF_FORMAT_FP8_BLOCK,
      .shared = MF_FORMAT_FP8_BLOCK,
      .scoring = MF_SCORING_SIGMOID,
      .renorm = MF_RENORM_SUM_EPS,
      .factor = 2.5,
      .with_residual = true,
      .act_dtype = MF_BF16,
      .y_dtype = MF_BF16,
      .out_dtype = MF_BF16 },
    { .name = "DeepSeek-V2, padded",
      .routed = MF_FORMAT_BF16,
      .shared = MF_FORMAT_BF16,
      .scoring = MF_SCORING_SOFTMAX,
      .renorm = MF_RENORM_NONE,
      .factor = 1,
      .padding = 1,
      .with_residual = true,
      .act_dtype = MF_F32,
      .y_dtype = MF_F32,
      .out_dtype = MF_F32 },
    { .name = "Qwen2-MoE",
      .routed = MF_FORMAT_INT4_GROUP,
      .shared = MF_FORMAT_BF16,
      .scoring = MF_SCORING_SOFTMAX,
      .renorm = MF_RENORM_NONE,
      .factor = 1,
      .per_token = true,
      .padding = 2,
      .act_dtype = MF_BF16,
      .y_dtype = MF_F32,
      .out_dtype = MF_BF16 },
    { .name = "unfolded factor, ids sorted",
      .routed = MF_FORMAT_MXFP4,
      .shared = MF_FORMAT_INT8_CHANNEL,
      .scoring = MF_SCORING_SQRTSOFTPLUS,
      .renorm = MF_RENORM_SUM,
      .factor = 0.3,
      .unfolded = true,
      .by_id = true,
      .act_dtype = MF_F16,
      .y_dtype = MF_F16,
      .out_dtype = MF_F32 },
    { .name = "Llama-4",
      .routed = MF_FORMAT_BF16,
      .shared = MF_FORMAT_F16,
      .scoring = MF_SCORING_TOPK_SIGMOID,
      .renorm = MF_RENORM_NONE,
      .factor = 1,
      .padding = 2,
      .act_dtype = MF_BF16,
      .y_dtype = MF_BF16,
      .out_dtype = MF_BF16 },
    { .name = "Llama-4 with a shared gate",
      .routed = MF_FORMAT_BF16,
      .shared = MF_FORMAT_F16,
      .per_token = true,
      .scoring = MF_SCORING_TOPK_SIGMOID,
      .renorm = MF_RENORM_NONE,
      .factor = 1,
      .act_dtype = MF_F32,
      .y_dtype = MF_F32,
      .out_dtype = MF_F32 },
    { .name = "zero experts",
      .routed = MF_FORMAT_FP8_CHANNEL,
      .shared = MF_FORMAT_F32,
      .scoring = MF_SCORING_SOFTMAX,
      .renorm = MF_RENORM_NONE,
      .factor = 6,
      .zero_experts = 5,
      .padding = 1,
      .act_dtype = MF_BF16,
      .y_dtype = MF_F32,
      .out_dtype = MF_F32 },
    { .name = "hash",
      .routed = MF_FORMAT_INT8_CHANNEL,
      .shared = MF_FORMAT_INT8_CHANNEL,
      .hash = true,
      .scoring = MF_SCORING_SQRTSOFTPLUS,
      .renorm = MF_RENORM_SUM,
      .factor = 1.5,
      .per_token = true,
      .act_dtype = MF_BF16,
      .y_dtype = MF_BF16,
      .out_dtype = MF_BF16,
      .act_quant = MF_ACT_QUANT_W8A8 },
    { .name = "replicas",
      .routed = MF_FORMAT_FP8_BLOCK,
      .shared = MF_FORMAT_BF16,
      .scoring = MF_SCORING_SIGMOID,
      .renorm = MF_RENORM_SUM_EPS,
      .factor = 2.5,
      .replicas = 3,
      .padding = 2,
      .act_dtype = MF_BF16,
      .y_dtype = MF_BF16,
      .out_dtype = MF_BF16,
      .act_quant = MF_ACT_QUANT_W8A8 },
};
enum { NUM_CASES = sizeof cases / sizeof cases[0] };

typedef struct layer_data {
    case_table routed, shared;
    float logits[TOKENS * (EXPERTS + 8)], bias[EXPERTS], shared_gate[TOKENS];
    uint8_t x[TOKENS * HIDDEN * 4], residual[TOKENS * HIDDEN * 4];
    int32_t num_valid, hash_table[VOCABULARY * TOP_K], token_ids[TOKENS];
    uint8_t row_valid[TOKENS];
} layer_data;

static void make_data(layer_data *data, const layer_case *c)
{
    uint64_t seed = (uint64_t)(c - cases) + 1;
    memset(data, 0, sizeof *data);
    data->routed.hidden_size = data->shared.hidden_size = HIDDEN;
    for (int e = 0; e < EXPERTS; e++) {
        case_slot_spec spec = silu(c->routed, 1, WIDTH);
        case_table_add(&data->routed, &seed, &spec);
    }
    for (int j = 0; j < CHUNKS; j++) {
        case_slot_spec spec = silu(c->shared, 2, WIDTH);
        case_table_add(&data->shared, &seed, &spec);
    }
    for (int i = 0; i < TOKENS * (EXPERTS + c->zero_experts); i++) {
        data->logits[i] = (float)conf_normal(&seed);
    }
    for (int t = 0; t < TOKENS; t++) {
        data->shared_gate[t] = (float)conf_normal(&seed);
        data->row_valid[t] = t % 4 != 1;
        data->token_ids[t] = t == 2 ? VOCABULARY : t == 3 ? -1 : (int32_t)conf_below(&seed, VOCABULARY);
    }
    data->shared_gate[4] = NAN; /* weight 0 and a bad row */
    data->shared_gate[6] = NAN; /* a bad row once, with the logit below */
    data->logits[6 * (EXPERTS + c->zero_experts) + 5] = NAN;
    data->num_valid = TOKENS - 3;
    for (int i = 0; i < VOCABULARY * TOP_K; i++) {
        data->hash_table[i] = i == 7 ? EXPERTS : (int32_t)conf_below(&seed, EXPERTS);
    }
    for (int i = 0; i < TOKENS * HIDDEN; i++) {
        conf_put(data->x, c->act_dtype, i, conf_normal(&seed));
        conf_put(data->residual, c->out_dtype, i, conf_normal(&seed));
    }
    if (c->padding) { /* what a padded row holds must not matter */
        for (int i = 0; i < HIDDEN; i++) {
            conf_put(data->x, c->act_dtype, (c->padding == 1 ? TOKENS - 1 : 1) * HIDDEN + i, NAN);
        }
    }
}

static void free_data(layer_data *data)
{
    case_table_free(&data->routed);
    case_table_free(&data->shared);
}

/* Routed slots, then R replicas of each chunk behind one another. */
static case_table slot_table(const layer_data *data, int replicas)
{
    case_table table = { .hidden_size = HIDDEN, .num_slots = EXPERTS + CHUNKS * replicas };
    memcpy(table.list, data->routed.list, EXPERTS * sizeof table.list[0]);
    for (int i = 0; i < CHUNKS * replicas; i++) {
        table.list[EXPERTS + i] = data->shared.list[i / replicas];
    }
    return table;
}

typedef struct layer_result {
    uint8_t out[TOKENS * HIDDEN * 4];
    int32_t bad_rows, error_count;
    int32_t ids[TOKENS * (TOP_K + CHUNKS)];
    float weights[TOKENS * (TOP_K + CHUNKS)];
    float identity[TOKENS];
} layer_result;

static void run_layer(mf_device *device, const layer_case *c, const layer_data *data, mf_layer_mode mode, int replicas,
                      int64_t row_base, bool unfused_gate, bool keep_ids, bool in_place, layer_result *result)
{
    const bool slot = mode == MF_MODE_SLOT;
    const int columns = TOP_K + (slot ? CHUNKS : 0), width = EXPERTS + c->zero_experts;
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    config.num_experts = EXPERTS;
    config.top_k = TOP_K;
    config.num_zero_experts = c->zero_experts;
    config.num_shared_slots = slot ? CHUNKS : 0;
    config.num_replicas = replicas;
    config.scoring = c->scoring;
    config.bias_domain = c->scoring == MF_SCORING_SIGMOID ? MF_BIAS_SCORE : MF_BIAS_NONE;
    config.renorm = c->renorm;
    config.routed_scaling_factor = c->factor;
    config.fold_scale = !c->unfolded;
    config.shared_weight = c->per_token ? MF_SHARED_PER_TOKEN : MF_SHARED_ONE;
    config.out_order = c->by_id ? MF_ORDER_ID : MF_ORDER_KEY;
    config.hash = c->hash;
    memset(result, 0, sizeof *result);
    memset(result->out, CONF_POISON, sizeof result->out);
    mf_gate_args gate = { .config = &config,
                          .router_logits = mf_tensor_2d(data->logits, MF_F32, TOKENS, width),
                          .row_base = row_base,
                          .bad_rows = mf_tensor_1d(&result->bad_rows, MF_I32, 1),
                          .error_count = mf_tensor_1d(&result->error_count, MF_I32, 1) };
    if (config.bias_domain == MF_BIAS_SCORE) {
        gate.e_score_correction_bias = mf_tensor_1d(data->bias, MF_F32, EXPERTS);
    }
    if (c->hash) {
        gate.hash_table = mf_tensor_2d(data->hash_table, MF_I32, VOCABULARY, TOP_K);
        gate.token_ids = mf_tensor_1d(data->token_ids, MF_I32, TOKENS);
    }
    if (c->padding == 1) {
        gate.num_valid_tokens = mf_tensor_1d(&data->num_valid, MF_I32, 1);
    } else if (c->padding == 2) {
        gate.row_valid = mf_tensor_1d(data->row_valid, MF_U8, TOKENS);
    }
    if (c->per_token && slot) {
        gate.shared_gate = mf_tensor_1d(data->shared_gate, MF_F32, TOKENS);
    }
    if (keep_ids) {
        gate.topk_ids = mf_tensor_2d(result->ids, MF_I32, TOKENS, columns);
        gate.topk_weights = mf_tensor_2d(result->weights, MF_F32, TOKENS, columns);
        if (c->zero_experts) {
            gate.identity_weight = mf_tensor_1d(result->identity, MF_F32, TOKENS);
        }
    }
    case_table table = slot ? slot_table(data, replicas) : data->routed;
    mf_experts *experts = case_experts(device, &table, c->act_dtype, c->act_quant);
    mf_experts *shared = slot ? NULL : case_experts(device, &data->shared, c->act_dtype, c->act_quant);
    mf_layer_args args = { .gate = &gate,
                           .experts = experts,
                           .shared = shared,
                           .mode = mode,
                           .unfused_gate = unfused_gate,
                           .y_dtype = c->y_dtype,
                           .x = mf_tensor_2d(data->x, c->act_dtype, TOKENS, HIDDEN),
                           .out = mf_tensor_2d(result->out, c->out_dtype, TOKENS, HIDDEN) };
    if (c->with_residual && in_place) {
        memcpy(result->out, data->residual, sizeof result->out);
        args.residual = args.out;
    } else if (c->with_residual) {
        args.residual = mf_tensor_2d(data->residual, c->out_dtype, TOKENS, HIDDEN);
    }
    if (c->per_token && !slot) {
        args.shared_gate_weight = mf_tensor_1d(data->shared_gate, MF_F32, TOKENS);
    }
    mf_error err = { 0 };
    size_t bytes = mf_moe_layer_workspace_bytes(&args);
    void *workspace = conf_alloc(bytes); /* poisoned: what is read unwritten shows */
    mf_status status = mf_moe_layer(device, &args, workspace, bytes, &err);
    if (status != MF_OK) {
        fail_msg("%s, %s: %s", mf_device_description(device), c->name, err.message);
    }
    conf_free(workspace);
    mf_experts_destroy(&experts);
    mf_experts_destroy(&shared);
}

static void check_same(const layer_case *c, const char *device, const char *what, const layer_result *a,
                       const layer_result *b)
{
    int64_t at = conf_difference(a->out, b->out, c->out_dtype, TOKENS * HIDDEN);
    if (at >= 0) {
        fail_msg("%s, %s: %s differs at token %d: %g, %g", device, c->name, what, (int)(at / HIDDEN),
                 conf_get(a->out, c->out_dtype, at), conf_get(b->out, c->out_dtype, at));
    }
    if (a->bad_rows != b->bad_rows || a->error_count != b->error_count) {
        fail_msg("%s, %s: %s counts %d bad rows and %d errors; %d and %d", device, c->name, what, b->bad_rows,
                 b->error_count, a->bad_rows, a->error_count);
    }
}

TEST(layer_modes_and_gates_agree_to_the_bit)
{
    static layer_data data;
    static layer_result slot, other;
    int count;
    const conf_device *devices = conf_devices(&count);
    for (const layer_case *c = cases; c < cases + NUM_CASES; c++) {
        make_data(&data, c);
        for (int d = 0; d < count; d++) {
            mf_device *device = devices[d].device;
            run_layer(device, c, &data, MF_MODE_SLOT, 1, 0, false, true, false, &slot);
            for (int mode = MF_MODE_SLOT; mode <= MF_MODE_SERIAL; mode++) {
                for (int variant = 0; variant < 8; variant++) {
                    run_layer(device, c, &data, (mf_layer_mode)mode, 1, 0, variant & 1, variant & 2, variant & 4,
                              &other);
                    check_same(c, devices[d].label,
                               label("mode %s variant %d", mf_layer_mode_name((mf_layer_mode)mode), variant), &slot,
                               &other);
                }
            }
        }
        free_data(&data);
    }
}

TEST(layer_bits_do_not_depend_on_replicas)
{
    static layer_data data;
    static layer_result one, other;
    int count;
    const conf_device *devices = conf_devices(&count);
    for (const layer_case *c = cases; c < cases + NUM_CASES; c += 4) {
        make_data(&data, c);
        for (int d = 0; d < count; d++) {
            run_layer(devices[d].device, c, &data, MF_MODE_SLOT, 1, 0, false, true, false, &one);
            for (int replicas = 2; replicas <= 8; replicas++) {
                run_layer(devices[d].device, c, &data, MF_MODE_SLOT, replicas, (int64_t)1 << (4 * replicas), false,
                          true, false, &other);
                check_same(c, devices[d].label, label("%d replicas", replicas), &one, &other);
                bool used_another = false;
                for (int t = 0; t < TOKENS; t++) {
                    int32_t id = other.ids[t * (TOP_K + CHUNKS) + TOP_K];
                    used_another |= id > EXPERTS && id < EXPERTS + replicas;
                }
                CHECK(used_another);
            }
        }
        free_data(&data);
    }
}

static bool row_is_padded(const layer_case *c, const layer_data *data, int t)
{
    return (c->padding == 1 && t >= data->num_valid) || (c->padding == 2 && !data->row_valid[t]) ||
           (c->hash && (data->token_ids[t] < 0 || data->token_ids[t] >= VOCABULARY));
}

/* out = residual + factor * sum of w y + sum of shared, from the gate's own ids and weights and the oracle's rows: the
 * factor reaches routed columns once, shared ones never; padded rows hold the residual alone. */
TEST(layer_is_the_weighted_sum_of_its_experts)
{
    static layer_data data;
    static layer_result result;
    int count;
    const conf_device *devices = conf_devices(&count);
    for (const layer_case *c = cases; c < cases + NUM_CASES; c++) {
        make_data(&data, c);
        for (int d = 0; d < count; d++) {
            run_layer(devices[d].device, c, &data, MF_MODE_SLOT, 1, 0, false, true, false, &result);
            case_error e = { 0 };
            for (int t = 0; t < TOKENS; t++) {
                double want[HIDDEN], x[HIDDEN], scaled[HIDDEN], y[HIDDEN];
                bool input_scaled = c->scoring == MF_SCORING_TOPK_SIGMOID;
                for (int i = 0; i < HIDDEN; i++) {
                    want[i] = c->with_residual ? conf_get(data.residual, c->out_dtype, t * HIDDEN + i) : 0;
                    x[i] = conf_get(data.x, c->act_dtype, t * HIDDEN + i);
                }
                for (int col = 0; col < TOP_K + CHUNKS; col++) {
                    int32_t id = result.ids[t * (TOP_K + CHUNKS) + col];
                    double w = (double)result.weights[t * (TOP_K + CHUNKS) + col];
                    CHECK(!row_is_padded(c, &data, t) || (id == -1 && w == 0));
                    if (id < 0) {
                        continue;
                    }
                    for (int i = 0; i < HIDDEN; i++) {
                        uint32_t rounded = 0;
                        conf_put(&rounded, c->act_dtype, 0, (double)((float)x[i] * (float)w));
                        scaled[i] = input_scaled && col < TOP_K ? conf_get(&rounded, c->act_dtype, 0) : x[i];
                    }
                    case_oracle(id < EXPERTS ? &data.routed.slots[id] : &data.shared.slots[id - EXPERTS], scaled,
                                HIDDEN, c->act_dtype, c->act_quant, y);
                    w = input_scaled && col < TOP_K ? 1 : w;
                    w *= c->unfolded && col < TOP_K ? (double)(float)c->factor : 1;
                    for (int i = 0; i < HIDDEN; i++) {
                        want[i] += w * y[i];
                    }
                }
                for (int i = 0; i < HIDDEN; i++) {
                    double identity =
                        c->zero_experts && !row_is_padded(c, &data, t) ? (double)result.identity[t] * x[i] : 0;
                    case_error_add(&e, conf_get(result.out, c->out_dtype, t * HIDDEN + i), want[i] + identity);
                }
            }
            double bound = fmax(2 * case_bound(c->act_dtype, c->y_dtype), case_bound(MF_F32, c->out_dtype));
            if (!(case_nmse(&e) <= bound)) {
                fail_msg("%s, %s: NMSE %g; bound %g", devices[d].label, c->name, case_nmse(&e), bound);
            }
        }
        free_data(&data);
    }
}

TEST(layer_of_no_tokens_is_fine)
{
    static const float logits[1];
    float weight = 1;
    mf_matrix m = { .data = &weight, .n = 1, .k = 1, .row_stride = 1 };
    mf_slot slot = { .gate = m, .up = m, .down = m };
    case_table table = { .num_slots = 1, .hidden_size = 1, .list = { slot } };
    mf_experts *experts = case_experts(conf_ref(), &table, MF_F32, MF_ACT_QUANT_NONE);
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    config.num_experts = config.top_k = 1;
    config.scoring = MF_SCORING_SIGMOID;
    config.bias_domain = MF_BIAS_NONE;
    config.renorm = MF_RENORM_NONE;
    config.routed_scaling_factor = 1;
    mf_gate_args gate = { .config = &config, .router_logits = mf_tensor_2d(logits, MF_F32, 0, 1) };
    mf_layer_args args = { .gate = &gate,
                           .experts = experts,
                           .x = mf_tensor_2d(logits, MF_F32, 0, 1),
                           .out = mf_tensor_2d(logits, MF_F32, 0, 1) };
    mf_error err = { 0 };
    size_t bytes = mf_moe_layer_workspace_bytes(&args);
    void *workspace = conf_alloc(bytes);
    CHECK_OK(mf_moe_layer(conf_ref(), &args, workspace, bytes, &err), err);
    conf_free(workspace);
    mf_experts_destroy(&experts);
}

TEST(layer_names_what_is_wrong)
{
    static layer_data data;
    mf_error err = { 0 };
    make_data(&data, &cases[1]);
    case_table table = slot_table(&data, 1);
    mf_experts *experts = case_experts(conf_ref(), &table, MF_F32, MF_ACT_QUANT_NONE);
    mf_experts *shared = case_experts(conf_ref(), &data.shared, MF_F32, MF_ACT_QUANT_NONE);
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    config.num_experts = EXPERTS;
    config.top_k = TOP_K;
    config.num_shared_slots = CHUNKS;
    config.scoring = MF_SCORING_SIGMOID;
    config.bias_domain = MF_BIAS_NONE;
    config.renorm = MF_RENORM_NONE;
    config.routed_scaling_factor = 2;
    float out[TOKENS * HIDDEN];
    mf_gate_args gate = { .config = &config, .router_logits = mf_tensor_2d(data.logits, MF_F32, TOKENS, EXPERTS) };
    mf_layer_args good = { .gate = &gate,
                           .experts = experts,
                           .x = mf_tensor_2d(data.x, MF_F32, TOKENS, HIDDEN),
                           .out = mf_tensor_2d(out, MF_F32, TOKENS, HIDDEN) };
    size_t bytes = mf_moe_layer_workspace_bytes(&good);
    void *workspace = conf_alloc(bytes);
    CHECK_OK(mf_moe_layer(conf_ref(), &good, workspace, bytes, &err), err);
    const mf_gate_config good_config = config;
#define REFUSE(change, part)                                                                                           \
    do {                                                                                                               \
        mf_layer_args args = good;                                                                                     \
        config = good_config;                                                                                          \
        change;                                                                                                        \
        CHECK_EQ(mf_moe_layer(conf_ref(), &args, workspace, bytes, &err), MF_ERR_INVALID);                             \
        CHECK_HAS(err.message, part);                                                                                  \
    } while (0)
    REFUSE(args.experts = NULL, "experts is NULL");
    REFUSE(args.mode = (mf_layer_mode)5, "mode 5; expected SLOT, OVERLAP or SERIAL");
    REFUSE(args.y_dtype = MF_I8, "y_dtype i8");
    REFUSE(args.x.dtype = MF_BF16, "x: dtype bf16; expected f32");
    REFUSE(args.shared = shared, "shared: given in mode SLOT");
    REFUSE(args.mode = MF_MODE_SERIAL, "num_shared_slots 2 in mode SERIAL; expected 0");
    REFUSE(config.num_shared_slots = 1, "experts: 14 slots; the gate's configuration has 13");
    REFUSE(args.out.shape[0] = 3, "out: shape [3, 72]; expected [11, 72]");
    REFUSE((config.shared_weight = MF_SHARED_RECIPROCAL, config.fold_scale = 0), "shared_weight RECIPROCAL");
    REFUSE(args.shared_gate_weight = mf_tensor_1d(data.shared_gate, MF_F32, TOKENS),
           "shared_gate_weight: given without");
    REFUSE(config.top_k = 0, "top_k 0");
    REFUSE(config.scoring = MF_SCORING_UNSET, "scoring");
    REFUSE(args.residual = mf_tensor_2d(data.x, MF_BF16, TOKENS, HIDDEN), "residual: dtype bf16; expected f32");
    REFUSE((args.experts = shared, args.mode = MF_MODE_OVERLAP, args.shared = shared, config.num_shared_slots = 0,
            config.num_experts = 2, config.top_k = 1, config.shared_weight = MF_SHARED_PER_TOKEN),
           "shared_gate_weight: missing with shared_weight PER_TOKEN");
#undef REFUSE
    config = good_config;
    CHECK_EQ(mf_moe_layer(conf_ref(), &good, workspace, bytes - 1, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "workspace");
    conf_free(workspace);
    mf_experts_destroy(&experts);
    mf_experts_destroy(&shared);
    free_data(&data);
}
