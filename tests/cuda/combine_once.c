/* combine_once.c - many tokens of long rows: the layer, whose combine knows the ids, has the bits of gate, experts and
 * sum-reduce one after the other.
 *
 * Needs a GPU; tests/cuda/run.sh runs it. */
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "moefuse.h"
#include "test.h"

enum { EXPERTS = 16, SHARED = 1, SLOTS = EXPERTS + SHARED };

static mf_error err;
static mf_device *device;
static uint64_t seed = 11;

static void *room(const void *data, size_t bytes)
{
    void *block;
    CHECK_OK(mf_device_malloc(device, bytes, &block, &err), err);
    if (data) {
        CHECK_OK(mf_device_copy(device, block, data, bytes, &err), err);
    }
    return block;
}

static void *random_bf16(size_t count)
{
    uint16_t *v = malloc(count * 2);
    for (size_t i = 0; i < count; i++) { /* +-[0.03, 0.12) */
        v[i] = (uint16_t)(0x3d00 + mf_random_below(&seed, 256) + (mf_random_below(&seed, 2) << 15));
    }
    void *block = room(v, count * 2);
    free(v);
    return block;
}

static mf_matrix random_matrix(int64_t n, int64_t k)
{
    return (
        mf_matrix){ .data = random_bf16((size_t)(n * k)), .n = n, .k = k, .row_stride = k, .format = MF_FORMAT_BF16 };
}

static void *fetch(const void *block, size_t bytes)
{
    void *host = malloc(bytes);
    CHECK_OK(mf_device_copy(device, host, block, bytes, &err), err);
    return host;
}

static void check(int64_t tokens, int64_t hidden, int64_t width, int32_t top_k)
{
    static mf_slot slots[SLOTS];
    CHECK_OK(mf_device_open("cuda", NULL, &device, &err), err);
    for (int s = 0; s < SLOTS; s++) {
        slots[s] = (mf_slot){ .gate = random_matrix(width, hidden),
                              .up = random_matrix(width, hidden),
                              .down = random_matrix(hidden, width) };
    }
    const mf_experts_desc desc = { .num_slots = SLOTS, .hidden_size = hidden, .slots = slots, .act_dtype = MF_BF16 };
    mf_experts *experts;
    CHECK_OK(mf_experts_create(device, &desc, &experts, &err), err);
    float *logits = malloc((size_t)tokens * EXPERTS * sizeof *logits);
    for (int64_t i = 0; i < tokens * EXPERTS; i++) {
        logits[i] = (float)(mf_random_unit(&seed) * 6 - 3);
    }
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    config.num_experts = EXPERTS;
    config.top_k = top_k;
    config.num_shared_slots = SHARED;
    config.scoring = MF_SCORING_SIGMOID;
    config.bias_domain = MF_BIAS_NONE;
    config.renorm = MF_RENORM_SUM;
    config.routed_scaling_factor = 1.0f;
    const int64_t columns = top_k + SHARED;
    const size_t out_bytes = (size_t)(tokens * hidden) * 2;
    void *together = room(NULL, out_bytes), *apart = room(NULL, out_bytes);
    const mf_gate_args gate = {
        .config = &config,
        .router_logits = mf_tensor_2d(room(logits, (size_t)tokens * EXPERTS * 4), MF_F32, tokens, EXPERTS),
        .topk_ids = mf_tensor_2d(room(NULL, (size_t)(tokens * columns) * 4), MF_I32, tokens, columns),
        .topk_weights = mf_tensor_2d(room(NULL, (size_t)(tokens * columns) * 4), MF_F32, tokens, columns),
    };
    const mf_tensor x = mf_tensor_2d(random_bf16((size_t)(tokens * hidden)), MF_BF16, tokens, hidden);
    const mf_layer_args layer = { .gate = &gate,
                                  .experts = experts,
                                  .y_dtype = MF_BF16,
                                  .x = x,
                                  .out = mf_tensor_2d(together, MF_BF16, tokens, hidden) };
    const mf_experts_args only = { .experts = experts,
                                   .x = x,
                                   .topk_ids = gate.topk_ids,
                                   .y = mf_tensor_3d(room(NULL, (size_t)(tokens * columns * hidden) * 2), MF_BF16,
                                                     tokens, columns, hidden) };
    const mf_sum_reduce_args sum = { .x = only.y,
                                     .topk_ids = gate.topk_ids,
                                     .topk_weights = gate.topk_weights,
                                     .routed_scaling_factor = 1.0f,
                                     .num_shared_columns = SHARED,
                                     .out = mf_tensor_2d(apart, MF_BF16, tokens, hidden) };
    const size_t layer_bytes = mf_moe_layer_workspace_bytes(&layer),
                 bytes = mf_fused_experts_workspace_bytes(experts, tokens, columns);
    CHECK_OK(mf_moe_layer(device, &layer, room(NULL, layer_bytes), layer_bytes, &err), err);
    CHECK_OK(mf_fused_experts(device, &only, room(NULL, bytes), bytes, &err), err);
    CHECK_OK(mf_moe_sum_reduce(device, &sum, &err), err);
    void *got = fetch(together, out_bytes), *want = fetch(apart, out_bytes);
    CHECK_MEM(got, want, out_bytes);
    free(got);
    free(want);
    free(logits);
    mf_experts_destroy(&experts);
    mf_device_close(&device); /* the test's blocks go with the process */
}

TEST(a_combine_of_many_long_rows_behind_experts_has_the_bits_of_one_alone)
{
    check(2100, 4096, 128, 7);
    check(1700, 4352, 64, 8);
}
