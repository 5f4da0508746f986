/* capture.c - the layer on a caller's stream, captured into a graph: a replay has the bits of the call, a thousand in a row
 * have the same, and an operation between two streams' worth of work allocates and waits for nothing.
 *
 * Needs a GPU; tests/cuda/run.sh runs it. */
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/random.h"
#include "kernels/ops.h"
#include "moefuse.h"
#include "test.h"

enum { EXPERTS = 16, SHARED = 1, TOP_K = 4, HIDDEN = 512, WIDTH = 128, MAX_TOKENS = 200 };

#define CUDA_OK(call)                                                               \
    do {                                                                            \
        cudaError_t cuda_error = (call);                                            \
        if (cuda_error != cudaSuccess) {                                            \
            fail_msg("%s: %s", #call, cudaGetErrorString(cuda_error));              \
        }                                                                           \
    } while (0)

typedef struct problem {
    mf_device *device;
    mf_experts *experts, *routed, *shared; /* the last two: the same slots as two tables, in mode OVERLAP */
    mf_gate_config config;
    mf_gate_args gate;
    mf_layer_args layer;
    void *workspace;
    size_t workspace_bytes;
    float *out;
    int32_t *histogram;
} problem;

static mf_error err;

static void *on_device(mf_device *device, const void *data, size_t bytes)
{
    void *block;
    CHECK_OK(mf_device_malloc(device, bytes, &block, &err), err);
    if (data) {
        CHECK_OK(mf_device_copy(device, block, data, bytes, &err), err);
    }
    return block;
}

static void *random_bf16(mf_device *device, uint64_t *seed, size_t count)
{
    uint16_t *v = malloc(count * 2);
    for (size_t i = 0; i < count; i++) { /* +-[0.03, 0.12) */
        v[i] = (uint16_t)(0x3d00 + mf_random_below(seed, 256) + (mf_random_below(seed, 2) << 15));
    }
    void *block = on_device(device, v, count * 2);
    free(v);
    return block;
}

static mf_slot slots[EXPERTS + SHARED];

/* apart: blocks of odd sizes lie between the slots, which then have no common distance. */
static void open_problem(problem *p, int64_t tokens, bool apart)
{
    enum { SLOTS = EXPERTS + SHARED };
    uint64_t seed = 5;
    memset(p, 0, sizeof *p);
    CHECK_OK(mf_device_open("cuda", NULL, &p->device, &err), err);
    for (int s = 0; s < SLOTS; s++) {
        const mf_matrix up = { .data = random_bf16(p->device, &seed, WIDTH * HIDDEN), .n = WIDTH, .k = HIDDEN,
                               .row_stride = HIDDEN, .format = MF_FORMAT_BF16 };
        mf_matrix gate = up, down = up;
        gate.data = random_bf16(p->device, &seed, WIDTH * HIDDEN);
        down.data = random_bf16(p->device, &seed, WIDTH * HIDDEN);
        down.n = HIDDEN;
        down.k = down.row_stride = WIDTH;
        slots[s] = (mf_slot){ .gate = gate, .up = up, .down = down };
        if (apart) {
            on_device(p->device, NULL, (size_t)(1 + s % 3) * 4096 * (1 + s % 2));
        }
    }
    const mf_experts_desc desc = { .num_slots = SLOTS, .hidden_size = HIDDEN, .slots = slots, .act_dtype = MF_BF16 };
    CHECK_OK(mf_experts_create(p->device, &desc, &p->experts, &err), err);
    float *logits = malloc((size_t)tokens * EXPERTS * sizeof *logits);
    for (int64_t i = 0; i < tokens * EXPERTS; i++) {
        logits[i] = (float)(mf_random_unit(&seed) * 6 - 3);
    }
    p->config = (mf_gate_config)MF_GATE_CONFIG_INIT;
    p->config.num_experts = EXPERTS;
    p->config.top_k = TOP_K;
    p->config.num_shared_slots = SHARED;
    p->config.scoring = MF_SCORING_SIGMOID;
    p->config.bias_domain = MF_BIAS_NONE;
    p->config.renorm = MF_RENORM_SUM;
    p->config.routed_scaling_factor = 2.5;
    p->histogram = on_device(p->device, NULL, SLOTS * 4);
    p->gate = (mf_gate_args){ .config = &p->config,
                              .router_logits = mf_tensor_2d(on_device(p->device, logits, (size_t)tokens * EXPERTS * 4), MF_F32,
                                                            tokens, EXPERTS),
                              .histogram = mf_tensor_1d(p->histogram, MF_I32, SLOTS) };
    free(logits);
    p->out = on_device(p->device, NULL, (size_t)tokens * HIDDEN * 4);
    p->layer = (mf_layer_args){ .gate = &p->gate,
                                .experts = p->experts,
                                .y_dtype = MF_BF16,
                                .x = mf_tensor_2d(random_bf16(p->device, &seed, (size_t)tokens * HIDDEN), MF_BF16, tokens, HIDDEN),
                                .out = mf_tensor_2d(p->out, MF_F32, tokens, HIDDEN) };
    p->workspace_bytes = mf_moe_layer_workspace_bytes(&p->layer);
    p->workspace = on_device(p->device, NULL, p->workspace_bytes);
}

/* The same layer with its shared expert on the second stream. */
static void set_overlap(problem *p)
{
    mf_experts_desc desc = { .num_slots = EXPERTS, .hidden_size = HIDDEN, .slots = slots, .act_dtype = MF_BF16 };
    CHECK_OK(mf_experts_create(p->device, &desc, &p->routed, &err), err);
    desc.num_slots = SHARED;
    desc.slots = slots + EXPERTS;
    CHECK_OK(mf_experts_create(p->device, &desc, &p->shared, &err), err);
    p->config.num_shared_slots = 0;
    p->gate.histogram = mf_tensor_1d(p->histogram, MF_I32, EXPERTS);
    p->layer.mode = MF_MODE_OVERLAP;
    p->layer.experts = p->routed;
    p->layer.shared = p->shared;
    p->workspace_bytes = mf_moe_layer_workspace_bytes(&p->layer);
    p->workspace = on_device(p->device, NULL, p->workspace_bytes);
}

static void close_problem(problem *p)
{
    mf_experts_destroy(&p->experts);
    mf_experts_destroy(&p->routed);
    mf_experts_destroy(&p->shared);
    mf_device_close(&p->device); /* the test's blocks go with the process */
}

static void fetch(problem *p, int64_t tokens, float *out, int32_t *histogram)
{
    CHECK_OK(mf_device_copy(p->device, out, p->out, (size_t)tokens * HIDDEN * 4, &err), err);
    CHECK_OK(mf_device_copy(p->device, histogram, p->histogram, (EXPERTS + SHARED) * 4, &err), err);
    CUDA_OK(cudaMemset(p->out, 0xa5, (size_t)tokens * HIDDEN * 4));
    CUDA_OK(cudaDeviceSynchronize());
}

static void check_replays(int64_t tokens, int replays, bool overlaps)
{
    static float want[MAX_TOKENS * HIDDEN], got[MAX_TOKENS * HIDDEN];
    int32_t want_counts[EXPERTS + SHARED], got_counts[EXPERTS + SHARED];
    problem p;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    open_problem(&p, tokens, false);
    CHECK_OK(mf_moe_layer(p.device, &p.layer, p.workspace, p.workspace_bytes, &err), err);
    fetch(&p, tokens, want, want_counts);
    const size_t counted = overlaps ? EXPERTS * sizeof *want_counts : sizeof want_counts;
    if (overlaps) {
        set_overlap(&p);
        CHECK_OK(mf_moe_layer(p.device, &p.layer, p.workspace, p.workspace_bytes, &err), err);
        fetch(&p, tokens, got, got_counts);
        CHECK_MEM(got, want, (size_t)tokens * HIDDEN * 4);
        CHECK_MEM(got_counts, want_counts, counted);
    }
    CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK_OK(mf_device_set_stream(p.device, stream, &err), err);
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal)); /* a wait or an allocation would break it */
    CHECK_OK(mf_moe_layer(p.device, &p.layer, p.workspace, p.workspace_bytes, &err), err);
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < replays; i++) {
        CUDA_OK(cudaGraphLaunch(exec, stream));
        if (i % 50 == 0 || i == replays - 1) {
            fetch(&p, tokens, got, got_counts);
            CHECK_MEM(got, want, (size_t)tokens * HIDDEN * 4);
            CHECK_MEM(got_counts, want_counts, counted);
        }
    }
    CUDA_OK(cudaGraphExecDestroy(exec));
    CUDA_OK(cudaGraphDestroy(graph));
    CHECK_OK(mf_device_set_stream(p.device, NULL, &err), err);
    CUDA_OK(cudaStreamDestroy(stream));
    close_problem(&p);
}

static int repeats(void)
{
    const char *v = getenv("MOEFUSE_CUDA_REPEATS");
    return v ? (int)strtol(v, NULL, 10) : 1000;
}

TEST(a_captured_layer_of_one_token_replays_with_the_same_bits)
{
    check_replays(1, repeats(), false);
}

TEST(a_captured_layer_of_a_few_tokens_replays_with_the_same_bits)
{
    check_replays(9, repeats(), false);
}

TEST(a_captured_layer_of_many_tokens_replays_with_the_same_bits)
{
    check_replays(MAX_TOKENS, repeats(), false);
}

TEST(a_shared_expert_on_the_second_stream_has_the_bits_of_one_in_slots_also_in_a_graph)
{
    static const int64_t tokens[] = { 1, 4, 9, MAX_TOKENS };
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        check_replays(tokens[i], repeats(), true);
    }
}

/* Slots that lie evenly are read through tensor maps that they share. */
TEST(where_slots_lie_changes_no_bit)
{
    static float out[2][MAX_TOKENS * HIDDEN];
    int32_t counts[EXPERTS + SHARED];
    for (int64_t tokens = 1; tokens <= 4; tokens++) {
        for (int apart = 0; apart < 2; apart++) {
            problem p;
            open_problem(&p, tokens, apart);
            CHECK_OK(mf_moe_layer(p.device, &p.layer, p.workspace, p.workspace_bytes, &err), err);
            fetch(&p, tokens, out[apart], counts);
            close_problem(&p);
        }
        CHECK_MEM(out[1], out[0], (size_t)tokens * HIDDEN * 4);
    }
}

/* The combine of a few rows takes the norm along that is offered to it; the bits are those of the two operations. */
TEST(an_offered_norm_has_the_bits_of_one_by_itself)
{
    static const int64_t counts[] = { 1, 5, 8, 9, 16, 64, MAX_TOKENS };
    static float want[2][MAX_TOKENS * HIDDEN], got[2][MAX_TOKENS * HIDDEN];
    static uint16_t want_rounded[MAX_TOKENS * HIDDEN], got_rounded[MAX_TOKENS * HIDDEN];
    for (size_t i = 0; i < 4 * sizeof counts / sizeof counts[0]; i++) {
        const int64_t tokens = counts[i / 4];
        const size_t bytes = (size_t)tokens * HIDDEN * 4;
        const bool has_residual = i % 2;
        problem p;
        uint64_t seed = 31 + i;
        open_problem(&p, tokens, false);
        const mf_device_ops *ops = p.device->ops;
        float *weight = malloc(HIDDEN * 4), *residual = malloc(bytes);
        for (int64_t k = 0; k < tokens * HIDDEN; k++) {
            weight[k % HIDDEN] = (float)(mf_random_unit(&seed) + 0.5);
            residual[k] = (float)(mf_random_unit(&seed) * 8 - 4);
        }
        p.layer.y_dtype = i / 2 % 2 ? MF_BF16 : MF_F32;
        p.workspace_bytes = mf_moe_layer_workspace_bytes(&p.layer);
        p.workspace = on_device(p.device, NULL, p.workspace_bytes);
        const mf_add_norm_call norm = { .acc = p.out,
                                        .num_tokens = tokens,
                                        .n = HIDDEN,
                                        .weight = on_device(p.device, weight, HIDDEN * 4),
                                        .eps = 1e-6f,
                                        .out = on_device(p.device, NULL, bytes),
                                        .rounded = on_device(p.device, NULL, bytes / 2),
                                        .rounded_dtype = MF_BF16 };
        const mf_linear_call readers = { .num = 0 };
        bool took = true;
        for (int offers = 0; offers < 2; offers++) {
            CHECK_OK(mf_device_copy(p.device, p.out, residual, bytes, &err), err); /* it lies where the sum goes */
            if (has_residual) {
                p.layer.residual = p.layer.out;
            }
            if (offers) {
                CUDA_OK(cudaMemset(norm.out, 0xa5, bytes));
                CUDA_OK(cudaMemset(norm.rounded, 0xa5, bytes / 2));
                CUDA_OK(cudaDeviceSynchronize());
                ops->offer_norm(p.device, &norm, &readers);
            }
            CHECK_OK(mf_moe_layer(p.device, &p.layer, p.workspace, p.workspace_bytes, &err), err);
            took = offers && ops->took_norm(p.device);
            if (!took) {
                ops->add_norm(p.device, &norm);
            }
            CHECK_OK(mf_device_copy(p.device, offers ? got[0] : want[0], p.out, bytes, &err), err);
            CHECK_OK(mf_device_copy(p.device, offers ? got[1] : want[1], norm.out, bytes, &err), err);
            CHECK_OK(mf_device_copy(p.device, offers ? got_rounded : want_rounded, norm.rounded, bytes / 2, &err), err);
        }
        CHECK_EQ(took, tokens > 4 && (tokens <= 64 || p.layer.y_dtype == MF_BF16));
        CHECK_MEM(got[0], want[0], bytes);
        CHECK_MEM(got[1], want[1], bytes);
        CHECK_MEM(got_rounded, want_rounded, bytes / 2);
        free(weight);
        free(residual);
        close_problem(&p);
    }
}

/* Blocks of the launch for a few tokens wait for one another.  Two devices on streams of different priority take
 * multiprocessors from each other between one block and the next; neither may be left with some of its blocks running
 * and waiting for those that find no room. */
TEST(launches_of_streams_with_different_priority_all_end)
{
    enum { STREAMS = 3, CALLS = 40, SECONDS = 20 };
    static const int64_t tokens[STREAMS] = { 1, 2, MAX_TOKENS };
    static float want[STREAMS][MAX_TOKENS * HIDDEN], got[MAX_TOKENS * HIDDEN];
    int32_t counts[EXPERTS + SHARED];
    problem p[STREAMS];
    cudaStream_t stream[STREAMS];
    cudaGraphExec_t exec[STREAMS];
    int least, greatest;
    CUDA_OK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    for (int i = 0; i < STREAMS; i++) {
        cudaGraph_t graph;
        open_problem(&p[i], tokens[i], false);
        CHECK_OK(mf_moe_layer(p[i].device, &p[i].layer, p[i].workspace, p[i].workspace_bytes, &err), err);
        fetch(&p[i], tokens[i], want[i], counts);
        CUDA_OK(cudaStreamCreateWithPriority(&stream[i], cudaStreamNonBlocking, i == 0 ? least : greatest));
        CHECK_OK(mf_device_set_stream(p[i].device, stream[i], &err), err);
        CUDA_OK(cudaStreamBeginCapture(stream[i], cudaStreamCaptureModeGlobal));
        for (int n = 0; n < CALLS; n++) {
            CHECK_OK(mf_moe_layer(p[i].device, &p[i].layer, p[i].workspace, p[i].workspace_bytes, &err), err);
        }
        CUDA_OK(cudaStreamEndCapture(stream[i], &graph));
        CUDA_OK(cudaGraphInstantiate(&exec[i], graph, 0));
        CUDA_OK(cudaGraphDestroy(graph));
    }
    for (int round = 0; round <= repeats() / 10; round++) {
        for (int i = 0; i < STREAMS; i++) {
            CUDA_OK(cudaGraphLaunch(exec[i], stream[i]));
        }
    }
    const time_t end = time(NULL) + SECONDS; /* a launch that hangs would let every other call wait for it */
    for (int i = 0; i < STREAMS; i++) {
        cudaError_t state;
        while ((state = cudaStreamQuery(stream[i])) == cudaErrorNotReady && time(NULL) < end) {
        }
        if (state == cudaErrorNotReady) {
            printf("# launches on stream %d do not end\n", i);
            fflush(stdout);
            _exit(1);
        }
        CUDA_OK(state);
    }
    for (int i = 0; i < STREAMS; i++) {
        fetch(&p[i], tokens[i], got, counts);
        CHECK_MEM(got, want[i], (size_t)tokens[i] * HIDDEN * 4);
        CUDA_OK(cudaGraphExecDestroy(exec[i]));
        CHECK_OK(mf_device_set_stream(p[i].device, NULL, &err), err);
        CUDA_OK(cudaStreamDestroy(stream[i]));
        close_problem(&p[i]);
    }
}

TEST(a_bad_pointer_is_an_error_with_text_and_stays_one)
{
    if (getenv("MOEFUSE_CUDA_NO_FAULTS")) {
        return; /* compute-sanitizer would report it, rightly */
    }
    problem p;
    open_problem(&p, 3, false);
    p.layer.x.data = (void *)(uintptr_t)0x1000;
    /* The fault may show at a later launch of the same call already. */
    if (mf_moe_layer(p.device, &p.layer, p.workspace, p.workspace_bytes, &err) == MF_OK) {
        CHECK_EQ(mf_device_synchronize(p.device, &err), MF_ERR_DEVICE);
    }
    CHECK_HAS(err.message, "illegal memory access");
    CHECK_EQ(mf_moe_layer(p.device, &p.layer, p.workspace, p.workspace_bytes, &err), MF_ERR_DEVICE);
    CHECK_HAS(err.message, "illegal memory access");
}
