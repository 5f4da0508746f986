/* router_once.c - one token's norm, router and gate in one launch (norm_linear with the gate right behind it): sums,
 * logits, ids, weights and counts are those of two launches, to the bit, also in a graph that runs again and again.
 *
 * Needs a GPU; tests/cuda/run.sh runs it. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "base/random.h"
#include "kernels/ops.h"
#include "moefuse.h"
#include "small.h"
#include "test.h"

enum {
    MOST_K = 4096,
    MOST_EXPERTS = 128,
    TOP_K = 8,
    MOST_SHARED = 2,
    REPLAYS = 50,
    SMALL_REPLAYS = 3,
    SHAPES = 20,
    SMALL_SHAPES = 3
};

typedef enum content { USUAL, LARGE, EQUAL, A_NAN, AN_INFINITY, CONTENTS } content;

/* Everything that a run leaves, in one block. */
typedef struct left {
    float sum[MOST_K];
    uint16_t rounded[MOST_K];
    float logits[MOST_EXPERTS], weights[TOP_K + MOST_SHARED];
    int32_t ids[TOP_K + MOST_SHARED], load[MOST_EXPERTS], bad_rows;
} left;

typedef struct problem {
    mf_device *device;
    mf_matrix router;
    mf_linear_call product;
    mf_add_norm_call norm;
    mf_gate_config config;
    mf_gate_args gate;
    left *out; /* on the device */
} problem;

static mf_error err;
static uint64_t seed;

static void *put(mf_device *device, const void *data, size_t bytes)
{
    void *block;
    CHECK_OK(mf_device_malloc(device, bytes, &block, &err), err);
    CHECK_OK(mf_device_copy(device, block, data, bytes, &err), err);
    return block;
}

static float *floats(mf_device *device, int n, float scale, float middle)
{
    float v[MOST_K];
    for (int i = 0; i < n; i++) {
        v[i] = (float)(mf_random_unit(&seed) * 2 - 1) * scale + middle;
    }
    return put(device, v, (size_t)n * sizeof *v);
}

static void *router_rows(mf_device *device, int experts, int k, content what)
{
    const size_t n = (size_t)experts * (size_t)k;
    uint16_t *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) {
        const float w = (float)(mf_random_unit(&seed) * 2 - 1) * (what == LARGE ? 40.0f : 0.05f);
        const size_t above = i - (size_t)(2 * k); /* every other row is one before */
        v[i] = what == EQUAL && i / (size_t)k % 4 > 1 ? v[above] : mf_f32_to_bf16(w);
    }
    void *at = put(device, v, n * sizeof *v);
    free(v);
    return at;
}

static void open_problem(problem *p, int experts, int k, int shape, content what)
{
    const bool sigmoid = shape % 3 > 0, biased = shape % 3 == 2;
    const int shared = shape % 2 ? MOST_SHARED : 0;
    memset(p, 0, sizeof *p);
    CHECK_OK(mf_device_open("cuda", NULL, &p->device, &err), err);
    left *zeros = calloc(1, sizeof *zeros);
    p->out = put(p->device, zeros, sizeof *zeros);
    free(zeros);
    float add[MOST_K];
    for (int i = 0; i < k; i++) {
        add[i] = (float)(mf_random_unit(&seed) * 2 - 1);
    }
    add[k / 3] = what == A_NAN         ? mf_f32_from_bits(0xffc12345u)
                 : what == AN_INFINITY ? mf_f32_from_bits(0x7f800000u)
                                       : add[k / 3];
    p->router = (mf_matrix){ .data = router_rows(p->device, experts, k, what),
                             .n = experts,
                             .k = k,
                             .row_stride = k,
                             .format = MF_FORMAT_BF16 };
    p->norm = (mf_add_norm_call){ .acc = floats(p->device, k, 3.0f, 0.0f),
                                  .add = put(p->device, add, (size_t)k * sizeof *add),
                                  .num_tokens = 1,
                                  .n = k,
                                  .weight = floats(p->device, k, 0.5f, 1.0f),
                                  .eps = 1e-6f,
                                  .rounded = shape % 5 == 4 ? NULL : p->out->rounded,
                                  .rounded_dtype = MF_BF16 };
    p->product = (mf_linear_call){ .num = 1,
                                   .w = { &p->router },
                                   .bias = { shape % 4 == 3 ? floats(p->device, experts, 0.1f, 0.0f) : NULL },
                                   .out = { p->out->logits },
                                   .out_stride = { experts },
                                   .act_dtype = MF_F32,
                                   .num_tokens = 1 };
    p->config = (mf_gate_config)MF_GATE_CONFIG_INIT;
    p->config.num_experts = experts;
    p->config.top_k = shape % 4 == 2 ? 6 : TOP_K;
    p->config.num_shared_slots = shared;
    p->config.scoring = sigmoid ? MF_SCORING_SIGMOID : MF_SCORING_SOFTMAX;
    p->config.bias_domain = biased ? MF_BIAS_SCORE : MF_BIAS_NONE;
    p->config.renorm = shape % 5 == 0 ? MF_RENORM_NONE : MF_RENORM_SUM;
    p->config.routed_scaling_factor = shape % 2 ? 2.5 : 1.0;
    p->config.shared_weight = MF_SHARED_ONE;
    p->gate = (mf_gate_args){ .config = &p->config,
                              .router_logits = mf_tensor_2d(p->out->logits, MF_F32, 1, experts),
                              .topk_ids = mf_tensor_2d(p->out->ids, MF_I32, 1, p->config.top_k + shared),
                              .topk_weights = mf_tensor_2d(p->out->weights, MF_F32, 1, p->config.top_k + shared),
                              .load = mf_tensor_1d(p->out->load, MF_I32, experts),
                              .bad_rows = mf_tensor_1d(&p->out->bad_rows, MF_I32, 1) };
    if (biased) {
        p->gate.e_score_correction_bias = mf_tensor_1d(floats(p->device, experts, 0.2f, 0.0f), MF_F32, experts);
    }
}

static void clear(problem *p)
{
    left *rest = malloc(sizeof *rest);
    memset(rest, 0x5a, sizeof *rest);
    memset(rest->load, 0, sizeof rest->load);
    rest->bad_rows = 0;
    CHECK_OK(mf_device_copy(p->device, p->out, rest, sizeof *rest, &err), err);
    free(rest);
}

static void fetch(problem *p, left *to)
{
    CHECK_OK(mf_device_copy(p->device, to, p->out, sizeof *to, &err), err);
}

/* apart: something comes between the two. */
static void run(problem *p, bool apart)
{
    const mf_device_ops *ops = p->device->ops;
    float nothing;
    CHECK(ops->norm_linear(p->device, &p->norm, p->out->sum, &p->product));
    if (apart) {
        CHECK_OK(mf_device_copy(p->device, &nothing, p->out->sum, sizeof nothing, &err), err);
    }
    CHECK_OK(mf_moe_fused_gate(p->device, &p->gate, &err), err);
}

static void check_same(const left *got, const left *want, int shape, int what, const char *how)
{
    const struct {
        const char *name;
        const void *a, *b;
        size_t bytes;
    } parts[] = { { "sums", got->sum, want->sum, sizeof got->sum },
                  { "logits", got->logits, want->logits, sizeof got->logits },
                  { "ids", got->ids, want->ids, sizeof got->ids },
                  { "weights", got->weights, want->weights, sizeof got->weights },
                  { "counts", got->load, want->load, sizeof got->load + sizeof got->bad_rows },
                  { "rounded rows", got->rounded, want->rounded, sizeof got->rounded } };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (memcmp(parts[i].a, parts[i].b, parts[i].bytes) != 0) {
            fail_msg("shape %d, content %d, %s: %s differ", shape, what, how, parts[i].name);
        }
    }
}

static void check_shape(int experts, int k, int shape, content what)
{
    static left want, got;
    problem p;
    open_problem(&p, experts, k, shape, what);
    clear(&p);
    run(&p, true);
    fetch(&p, &want);
    clear(&p);
    run(&p, false);
    fetch(&p, &got);
    check_same(&got, &want, shape, (int)what, "together");
    const mf_device_memory_ops *memory = p.device->ops->memory;
    void *graph;
    int64_t launches;
    clear(&p);
    CHECK_OK(memory->graph_begin(p.device, &err), err);
    run(&p, false);
    CHECK_OK(memory->graph_end(p.device, &graph, &launches, &err), err);
    CHECK_EQ(launches, 1);
    const int replays = is_small() ? SMALL_REPLAYS : REPLAYS;
    for (int i = 0; i < replays; i++) {
        CHECK_OK(memory->graph_run(p.device, graph, &err), err);
    }
    fetch(&p, &got);
    for (int i = 0; i < experts; i++) {
        CHECK_EQ(got.load[i], replays * want.load[i]);
        got.load[i] = want.load[i];
    }
    CHECK_EQ(got.bad_rows, replays * want.bad_rows);
    got.bad_rows = want.bad_rows;
    check_same(&got, &want, shape, (int)what, "again and again");
    memory->graph_close(p.device, graph);
    mf_device_close(&p.device);
}

TEST(a_router_with_its_gate_has_the_bits_of_the_two)
{
    seed = 41;
    for (int shape = 0; shape < (is_small() ? SMALL_SHAPES : SHAPES); shape++) {
        check_shape(shape % 2 ? 64 : 128, shape / 2 % 2 ? 4096 : 2048, shape, USUAL);
        check_shape(shape % 2 ? 128 : 64, shape / 2 % 2 ? 4096 : 2048, shape, USUAL);
    }
}

TEST(odd_logits_go_the_same_way_in_one_launch)
{
    seed = 43;
    for (int what = LARGE; what < CONTENTS; what++) {
        for (int shape = 0; shape < (is_small() ? 2 : 6); shape++) {
            check_shape(shape % 2 ? 64 : 128, 2048, shape, (content)what);
        }
    }
}

/* A capture that ends right behind a product, and one whose gate is another's: nothing is lost. */
TEST(a_product_without_its_gate_is_launched_by_what_comes_next)
{
    static left want, got;
    problem p;
    void *graph;
    int64_t launches;
    seed = 47;
    open_problem(&p, 128, 2048, 0, USUAL);
    clear(&p);
    run(&p, true);
    fetch(&p, &want);
    clear(&p);
    const mf_device_memory_ops *memory = p.device->ops->memory;
    CHECK_OK(memory->graph_begin(p.device, &err), err);
    CHECK(p.device->ops->norm_linear(p.device, &p.norm, p.out->sum, &p.product));
    CHECK_OK(memory->graph_end(p.device, &graph, &launches, &err), err);
    CHECK_EQ(launches, 1);
    CHECK_OK(memory->graph_run(p.device, graph, &err), err);
    fetch(&p, &got);
    CHECK_MEM(got.logits, want.logits, sizeof got.logits);
    memory->graph_close(p.device, graph);
    const mf_gate_args own = p.gate;
    p.gate.router_logits.data = put(p.device, want.logits, sizeof want.logits);
    clear(&p);
    run(&p, false);
    fetch(&p, &got);
    check_same(&got, &want, 0, USUAL, "with another's gate");
    p.gate = own;
    p.config.pack = 1; /* a gate that the one launch does not have */
    p.gate.packed = mf_tensor_2d(p.out->rounded, MF_I32, 1, TOP_K);
    clear(&p);
    p.norm.rounded = NULL;
    run(&p, false);
    fetch(&p, &got);
    CHECK_MEM(got.ids, want.ids, sizeof got.ids);
    CHECK_MEM(got.weights, want.weights, sizeof got.weights);
    mf_device_close(&p.device);
}
