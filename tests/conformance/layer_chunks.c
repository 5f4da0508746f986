/* layer_chunks.c - the layer over more tokens than it takes at a time: same bits as alone, bounded workspace. */
#include <stdlib.h>

#include "experts_batch.h"

enum { TOKENS = 2300, EXPERTS = 7, TOP_K = 2, HIDDEN = 72, WIDTH = 40, COLUMNS = TOP_K + 1 };

typedef struct problem {
    case_table slots, routed, shared;
    float *logits;
    uint16_t *x;
} problem;

static void make_problem(problem *p, mf_format format)
{
    uint64_t seed = 77 + (uint64_t)format;
    *p = (problem){ .slots = { .hidden_size = HIDDEN } };
    for (int s = 0; s < EXPERTS + 1; s++) {
        case_slot_spec spec = silu(s == EXPERTS ? MF_FORMAT_BF16 : format, s == 3 ? 1 : 0, WIDTH);
        case_table_add(&p->slots, &seed, &spec);
    }
    p->routed = p->shared = (case_table){ .hidden_size = HIDDEN };
    p->routed.num_slots = EXPERTS;
    p->shared.num_slots = 1;
    memcpy(p->routed.list, p->slots.list, EXPERTS * sizeof *p->routed.list);
    p->shared.list[0] = p->slots.list[EXPERTS];
    p->logits = conf_alloc(TOKENS * EXPERTS * sizeof *p->logits);
    p->x = conf_alloc(TOKENS * HIDDEN * sizeof *p->x);
    for (int64_t i = 0; i < TOKENS * EXPERTS; i++) {
        p->logits[i] = (float)(mf_random_unit(&seed) * 4 - 2);
    }
    for (int64_t i = 0; i < TOKENS * HIDDEN; i++) {
        conf_put(p->x, MF_BF16, i, mf_random_unit(&seed) * 2 - 1);
    }
}

static void free_problem(problem *p)
{
    conf_free(p->logits);
    conf_free(p->x);
    case_table_free(&p->slots);
}

static void run_layer(mf_device *device, const problem *p, mf_layer_mode mode, mf_act_quant act_quant, int64_t first,
                      int64_t count, float *out)
{
    const bool slot = mode == MF_MODE_SLOT;
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    config.num_experts = EXPERTS;
    config.top_k = TOP_K;
    config.num_shared_slots = slot;
    config.scoring = MF_SCORING_SOFTMAX;
    config.bias_domain = MF_BIAS_NONE;
    config.renorm = MF_RENORM_SUM;
    config.routed_scaling_factor = 1.5;
    mf_gate_args gate = { .config = &config,
                          .router_logits = mf_tensor_2d(p->logits + first * EXPERTS, MF_F32, count, EXPERTS) };
    mf_experts *experts = case_experts(device, slot ? &p->slots : &p->routed, MF_BF16, act_quant);
    mf_experts *shared = slot ? NULL : case_experts(device, &p->shared, MF_BF16, act_quant);
    mf_layer_args args = { .gate = &gate,
                           .experts = experts,
                           .shared = shared,
                           .mode = mode,
                           .y_dtype = MF_BF16,
                           .x = mf_tensor_2d(p->x + first * HIDDEN, MF_BF16, count, HIDDEN),
                           .out = mf_tensor_2d(out, MF_F32, count, HIDDEN) };
    mf_error err = { 0 };
    size_t bytes = mf_moe_layer_workspace_bytes(&args);
    void *workspace = conf_alloc(bytes);
    CHECK_OK(mf_moe_layer(device, &args, workspace, bytes, &err), err);
    conf_free(workspace);
    mf_experts_destroy(&experts);
    mf_experts_destroy(&shared);
}

TEST(layer_of_many_tokens_has_the_bits_of_each_token_alone)
{
    static const mf_format formats[] = { MF_FORMAT_BF16, MF_FORMAT_FP8_BLOCK, MF_FORMAT_INT8_CHANNEL, MF_FORMAT_INT4_GROUP };
    static const int64_t places[] = { 0, 1, 511, 1022, 1023, 1024, 1025, 2047, 2048, TOKENS - 1 };
    float *whole = conf_alloc(TOKENS * HIDDEN * sizeof *whole);
    float *serial = conf_alloc(TOKENS * HIDDEN * sizeof *serial);
    int count;
    const conf_device *devices = conf_devices(&count);
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        problem p;
        make_problem(&p, formats[f]);
        for (int d = 0; d < count; d++) {
            for (int quant = MF_ACT_QUANT_NONE; quant <= MF_ACT_QUANT_INT8; quant += MF_ACT_QUANT_INT8) {
                run_layer(devices[d].device, &p, MF_MODE_SLOT, (mf_act_quant)quant, 0, TOKENS, whole);
                run_layer(devices[d].device, &p, MF_MODE_SERIAL, (mf_act_quant)quant, 0, TOKENS, serial);
                CHECK_EQ(conf_difference(whole, serial, MF_F32, TOKENS * HIDDEN), -1);
                for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
                    float alone[HIDDEN];
                    run_layer(devices[d].device, &p, MF_MODE_SLOT, (mf_act_quant)quant, places[i], 1, alone);
                    if (conf_difference(alone, whole + places[i] * HIDDEN, MF_F32, HIDDEN) >= 0) {
                        fail_msg("%s, %s, act_quant %d: token %d of %d differs alone", devices[d].label,
                                 mf_format_name(formats[f]), quant, (int)places[i], TOKENS);
                    }
                }
            }
        }
        free_problem(&p);
    }
    conf_free(whole);
    conf_free(serial);
}

/* Workspace of a DeepSeek-V3 layer (TP8 slice: width 256; whole: 2048) on the fastest CPU device. */
static size_t v3_workspace(int64_t tokens, int64_t width)
{
    enum { H = 7168, E = 256 };
    static const uint16_t weight;
    mf_slot *slots = calloc(E + 1, sizeof *slots);
    for (int s = 0; s <= E; s++) { /* sizes only: nothing is read */
        mf_matrix up = { .data = &weight, .n = width, .k = H, .row_stride = H, .format = MF_FORMAT_BF16 };
        mf_matrix down = { .data = &weight, .n = H, .k = width, .row_stride = width, .format = MF_FORMAT_BF16 };
        slots[s] = (mf_slot){ .gate = up, .up = up, .down = down };
    }
    mf_error err = { 0 };
    mf_device *device;
    mf_device_options options = { .num_threads = 2 };
    CHECK_OK(mf_device_open("cpu", &options, &device, &err), err);
    mf_experts_desc desc = { .num_slots = E + 1, .hidden_size = H, .slots = slots, .act_dtype = MF_BF16 };
    mf_experts *experts;
    CHECK_OK(mf_experts_create(device, &desc, &experts, &err), err);
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    config.num_experts = E;
    config.top_k = 8;
    config.num_shared_slots = 1;
    config.scoring = MF_SCORING_SIGMOID;
    config.renorm = MF_RENORM_SUM;
    mf_gate_args gate = { .config = &config, .router_logits = { .dtype = MF_F32, .shape = { tokens, E } } };
    mf_layer_args args = { .gate = &gate,
                           .experts = experts,
                           .y_dtype = MF_F32,
                           .x = { .dtype = MF_BF16, .shape = { tokens, H } },
                           .out = { .dtype = MF_F32, .shape = { tokens, H } } };
    args.x.data = args.out.data = gate.router_logits.data = slots;
    args.x = mf_tensor_2d(slots, MF_BF16, tokens, H);
    size_t bytes = mf_moe_layer_workspace_bytes(&args);
    mf_experts_destroy(&experts);
    mf_device_close(&device);
    free(slots);
    return bytes;
}

TEST(layer_workspace_does_not_grow_with_tokens_columns_and_width)
{
    enum { IDS = 9 * 8 + 8 }; /* bytes per token that the gate's results take, with room for the row mask */
    for (int64_t width = 256; width <= 2048; width += 2048 - 256) {
        const size_t most = v3_workspace(1024, width);
        CHECK(most > 0 && most < (size_t)224 << 20);
        CHECK(v3_workspace(65536, width) <= most + (size_t)65536 * IDS);
        CHECK(v3_workspace(1, width) < (size_t)1 << 20);
    }
}
