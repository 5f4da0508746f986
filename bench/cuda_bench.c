/* cuda_bench.c - the operations of device cuda over the shapes of models, from captured graphs, timed by events.
 *
 *     moefuse_cuda_bench [gate] [align] [combine] [experts] [layer] [modes] [--quick | --few] [--once] [--shape PREFIX] [--tokens T]
 *
 * Weights rotate over four layers and the L2 cache is swept before each replay, so that nothing is met warm that a model
 * would meet cold; --once runs each call once, for a profiler.  Each figure is the median of 25 replays divided by the calls in a graph.  The ceilings (bytes copied, an
 * empty kernel's place in a graph) are measured in the same run.  modes, which has to be asked for: the layer with its
 * shared expert in slots, beside the routed ones and before them, as model/bands.c keeps it. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "base/random.h"
#include "kernels/ops.h"

enum { LAYERS = 4, REPLAYS = 25, MAX_T = 65536 };

static mf_device *device;
static cudaStream_t stream;
static mf_error err;
static void *sweep_block;
static bool quick, few, once;
static const char *only_shape;
static int64_t only_tokens;
static double copy_gbs;
static const size_t sweep_bytes = (size_t)256 << 20;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "cuda_bench: %s: %s\n", what, why);
    exit(1);
}

#define CUDA(call)                                                  \
    do {                                                            \
        cudaError_t cuda_error = (call);                            \
        if (cuda_error != cudaSuccess) {                            \
            die(#call, cudaGetErrorString(cuda_error));             \
        }                                                           \
    } while (0)
#define OK(call)                          \
    do {                                  \
        if ((call) != MF_OK) {            \
            die(#call, err.message);      \
        }                                 \
    } while (0)

static void *room(size_t bytes)
{
    void *block;
    OK(mf_device_malloc(device, bytes, &block, &err));
    return block;
}

static void *put(const void *data, size_t bytes)
{
    void *block = room(bytes);
    OK(mf_device_copy(device, block, data, bytes, &err));
    return block;
}

static bool is_4bit(mf_format format)
{
    return format == MF_FORMAT_INT4_GROUP || format == MF_FORMAT_MXFP4;
}

/* Bytes of small numbers of a format, made once and repeated over the block. */
static void *weights(size_t bytes, mf_format format, uint64_t seed)
{
    enum { PIECE = 8 << 20 };
    static uint8_t *pieces[MF_FORMAT_COUNT];
    if (!pieces[format]) {
        uint8_t *piece = pieces[format] = malloc(PIECE);
        for (size_t i = 0; i < PIECE; i += 2) {
            const uint64_t r = mf_random_next(&seed);
            uint16_t h = (uint16_t)(r & (is_4bit(format) ? 0xffff : 0xbfbf));
            if (format == MF_FORMAT_BF16) {
                h = mf_f32_to_bf16((float)((double)(r >> 40) / (1 << 24) - 0.5) * 0.1f);
            }
            memcpy(piece + i, &h, 2);
        }
    }
    uint8_t *block = room(bytes);
    for (size_t at = 0; at < bytes; at += PIECE) {
        const size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        CUDA(cudaMemcpyAsync(block + at, pieces[format], n, cudaMemcpyHostToDevice, stream));
    }
    CUDA(cudaStreamSynchronize(stream));
    return block;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

typedef void (*work_fn)(void *context, int i);

/* Microseconds of one call of `work`; calls 0..count-1 are one graph. */
static double measure(work_fn work, void *context, int count)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t start, stop;
    float times[REPLAYS];
    for (int i = 0; i < (once ? 1 : 2); i++) {
        work(context, i);
    }
    OK(mf_device_synchronize(device, &err));
    if (once) {
        return 1;
    }
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < count; i++) {
        work(context, i);
    }
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    for (int r = -2; r < REPLAYS; r++) {
        CUDA(cudaMemsetAsync(sweep_block, r, sweep_bytes, stream));
        CUDA(cudaEventRecord(start, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaEventRecord(stop, stream));
        CUDA(cudaEventSynchronize(stop));
        if (r >= 0) {
            CUDA(cudaEventElapsedTime(&times[r], start, stop));
        }
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    qsort(times, REPLAYS, sizeof *times, by_value);
    return (double)times[REPLAYS / 2] * 1000.0 / count;
}

/* ---- ceilings ---- */

static void copy_work(void *context, int i)
{
    char *block = context;
    const size_t half = (size_t)2 << 30;
    CUDA(cudaMemcpyAsync(block + (i % 2 ? 0 : half), block + (i % 2 ? half : 0), half, cudaMemcpyDeviceToDevice, stream));
}

static void empty_work(void *context, int i)
{
    (void)i;
    CUDA(cudaMemsetAsync(context, 0, 4, stream));
}

static void ceilings(void)
{
    char *block = room((size_t)4 << 30);
    CUDA(cudaMemsetAsync(block, 1, (size_t)4 << 30, stream));
    copy_gbs = 2.0 * (double)((size_t)2 << 30) / measure(copy_work, block, 4) / 1e3;
    printf("ceiling: copy %.0f GB/s (read and written), a memset node %.2f us\n", copy_gbs, measure(empty_work, block, 100));
    mf_device_free(device, block);
}

/* ---- gate ---- */

typedef struct gate_bench {
    mf_gate_config config;
    mf_gate_args args[LAYERS];
} gate_bench;

static void gate_work(void *context, int i)
{
    gate_bench *b = context;
    OK(mf_moe_fused_gate(device, &b->args[i % LAYERS], &err));
}

static float *random_logits(int64_t count, uint64_t seed)
{
    float *v = malloc((size_t)count * sizeof *v);
    for (int64_t i = 0; i < count; i++) {
        const uint64_t r = mf_random_next(&seed); /* a sum of uniforms is near enough to normal */
        v[i] = (float)((double)(r & 0xffff) + (double)(r >> 16 & 0xffff) + (double)(r >> 32 & 0xffff)) / 32768.0f - 3.0f;
    }
    return v;
}

static mf_gate_config gate_config(int experts, int top_k, int groups, int kept, int shared, mf_scoring scoring)
{
    mf_gate_config c = MF_GATE_CONFIG_INIT;
    c.num_experts = experts;
    c.top_k = top_k;
    c.n_group = groups;
    c.topk_group = kept;
    c.group_score = groups > 1 ? MF_GROUP_SCORE_TOP2_SUM : MF_GROUP_SCORE_UNSET;
    c.num_shared_slots = shared;
    c.scoring = scoring;
    c.bias_domain = scoring == MF_SCORING_SIGMOID ? MF_BIAS_SCORE : MF_BIAS_NONE;
    c.renorm = MF_RENORM_SUM;
    c.routed_scaling_factor = 2.5;
    return c;
}

static void bench_gate(const char *name, mf_gate_config config)
{
    static const int64_t ts[] = { 1, 256, 4096, 65536 };
    gate_bench b = { .config = config };
    const int64_t n = config.num_experts, c = config.top_k + config.num_shared_slots;
    float *logits = random_logits(MAX_T * n, 1), *bias = random_logits(n, 2);
    float *device_bias = put(bias, (size_t)n * 4);
    for (int l = 0; l < LAYERS; l++) {
        b.args[l] = (mf_gate_args){ .config = &b.config };
        b.args[l].router_logits = mf_tensor_2d(put(logits, (size_t)(MAX_T * n) * 4), MF_F32, MAX_T, n);
        if (config.bias_domain != MF_BIAS_NONE) {
            b.args[l].e_score_correction_bias = mf_tensor_1d(device_bias, MF_F32, n);
        }
        b.args[l].topk_ids = mf_tensor_2d(room((size_t)(MAX_T * c) * 4), MF_I32, MAX_T, c);
        b.args[l].topk_weights = mf_tensor_2d(room((size_t)(MAX_T * c) * 4), MF_F32, MAX_T, c);
        b.args[l].histogram = mf_tensor_1d(room((size_t)(n + 64) * 4), MF_I32, n + config.num_shared_slots);
    }
    printf("gate %-28s", name);
    for (int i = 0; i < 4; i++) {
        for (int l = 0; l < LAYERS; l++) {
            b.args[l].router_logits.shape[0] = b.args[l].topk_ids.shape[0] = b.args[l].topk_weights.shape[0] = ts[i];
        }
        printf("  T %lld %.2f", (long long)ts[i], measure(gate_work, &b, ts[i] <= 4096 ? 100 : 20));
    }
    printf(" us\n");
    for (int l = 0; l < LAYERS; l++) {
        mf_device_free(device, b.args[l].router_logits.data);
        mf_device_free(device, b.args[l].topk_ids.data);
        mf_device_free(device, b.args[l].topk_weights.data);
        mf_device_free(device, b.args[l].histogram.data);
    }
    mf_device_free(device, device_bias);
    free(logits);
    free(bias);
}

/* ---- align ---- */

/* K different experts a token, uniform, then the shared slots. */
static int32_t *random_ids(int64_t t, int experts, int top_k, int shared, uint64_t seed)
{
    int32_t *ids = malloc((size_t)(t * (top_k + shared)) * sizeof *ids);
    for (int64_t r = 0; r < t; r++) {
        int32_t *row = ids + r * (top_k + shared);
        for (int k = 0; k < top_k; k++) {
            bool again;
            do {
                row[k] = (int32_t)mf_random_below(&seed, (uint64_t)experts);
                again = false;
                for (int o = 0; o < k; o++) {
                    again |= row[o] == row[k];
                }
            } while (again);
        }
        for (int s = 0; s < shared; s++) {
            row[top_k + s] = experts + s;
        }
    }
    return ids;
}

typedef struct align_bench {
    mf_align_args args;
    void *workspace;
    size_t bytes;
} align_bench;

static void align_work(void *context, int i)
{
    align_bench *b = context;
    (void)i;
    OK(mf_moe_align_block_size(device, &b->args, b->workspace, b->bytes, &err));
}

static void bench_align(void)
{
    static const int64_t ts[] = { 1, 64, 455, 4096, 65536 };
    printf("align 257 slots, 9 columns, b 64    ");
    for (int i = 0; i < 5; i++) {
        const int64_t t = ts[i], capacity = mf_moe_align_capacity(t, 9, 64, 257);
        int32_t *ids = random_ids(t, 256, 8, 1, 3);
        align_bench b = { .args = { .topk_ids = mf_tensor_2d(put(ids, (size_t)(t * 9) * 4), MF_I32, t, 9),
                                    .block_size = 64,
                                    .num_slots = 257,
                                    .sorted_token_ids = mf_tensor_1d(room((size_t)capacity * 4), MF_I32, capacity),
                                    .expert_ids = mf_tensor_1d(room((size_t)capacity / 16), MF_I32, capacity / 64),
                                    .num_tokens_post_padded = mf_tensor_1d(room(4), MF_I32, 1) } };
        b.bytes = mf_moe_align_workspace_bytes(&b.args);
        b.workspace = room(b.bytes);
        printf("  T %lld %.2f", (long long)t, measure(align_work, &b, 100));
        free(ids);
    }
    printf(" us\n");
}

/* ---- combine ---- */

typedef struct sum_bench {
    mf_sum_reduce_args args[LAYERS];
    int layers; /* in turn; 1: x is still in the L2 cache, where a layer's w2 has just written it */
} sum_bench;

static void sum_work(void *context, int i)
{
    sum_bench *b = context;
    OK(mf_moe_sum_reduce(device, &b->args[i % b->layers], &err));
}

static void bench_combine(int64_t columns, int64_t hidden, const int64_t *ts, int count)
{
    printf("combine bf16 top %lld, H %lld          ", (long long)columns, (long long)hidden);
    for (int i = 0; i < count; i++) {
        const int64_t t = ts[i];
        sum_bench b = { .layers = LAYERS };
        float *w = malloc((size_t)(t * columns) * 4);
        for (int64_t k = 0; k < t * columns; k++) {
            w[k] = 0.1f;
        }
        for (int l = 0; l < LAYERS; l++) {
            const size_t bytes = (size_t)(t * columns * hidden) * 2;
            b.args[l] = (mf_sum_reduce_args){ .x = mf_tensor_3d(weights(bytes, MF_FORMAT_BF16, 9), MF_BF16, t, columns, hidden),
                                              .topk_weights = mf_tensor_2d(put(w, (size_t)(t * columns) * 4), MF_F32, t, columns),
                                              .routed_scaling_factor = 1.0f,
                                              .out = mf_tensor_2d(room((size_t)(t * hidden) * 2), MF_BF16, t, hidden) };
        }
        /* So many that what the sweep left to be written back does not count. */
        const int calls = t <= 256 ? 80 : 40;
        const double us = measure(sum_work, &b, calls);
        printf("  T %lld %.2f", (long long)t, us);
        b.layers = 1; /* as a peer's bench has it that knows one x; up to 256 tokens it is read from the L2 cache */
        printf(t <= 256 ? " (from L2 %.2f)" : " (one x %.2f)", measure(sum_work, &b, calls));
        if (t >= 1024) {
            printf(" (%.0f GB/s)", (double)(t * hidden * 2 * (columns + 1)) / us / 1e3);
        }
        for (int l = 0; l < LAYERS; l++) {
            mf_device_free(device, b.args[l].x.data);
            mf_device_free(device, b.args[l].topk_weights.data);
            mf_device_free(device, b.args[l].out.data);
        }
        free(w);
    }
    printf(" us\n");
}

/* ---- experts and layer ---- */

enum { NUM_POINTS = 9 };

typedef struct shape {
    const char *name;
    mf_format format;
    int64_t hidden, width;
    int experts, shared, top_k, groups, kept;
    mf_scoring scoring;
    struct {
        int64_t t;
        double peer, target;
    } points[NUM_POINTS];
    int64_t group; /* columns of a scale, 4-bit formats */
    bool w8a16;    /* codes of 8 bits with activations that are not quantised */
    bool gptq;     /* INT4_GROUP: scales of f16 and zero points */
} shape;

#define FEW_T { { 1, 0, 0 }, { 2, 0, 0 }, { 4, 0, 0 }, { 8, 0, 0 }, { 16, 0, 0 }, { 64, 0, 0 }, { 256, 0, 0 }, { 1024, 0, 0 }, { 8192, 0, 0 } }
#define EVERY_T { { 1, 0, 0 }, { 4, 0, 0 }, { 16, 0, 0 }, { 64, 0, 0 }, { 256, 0, 0 }, { 1024, 0, 0 }, { 8192, 0, 0 } }

static const shape shapes[] = {
    { "DeepSeek-V3 TP8 fp8", MF_FORMAT_FP8_BLOCK, 7168, 256, 256, 1, 8, 8, 4, MF_SCORING_SIGMOID,
      { { 1, 37.5, 15 }, { 2, 0, 0 }, { 4, 66.9, 46 }, { 16, 160, 140 }, { 64, 336.2, 295 }, { 256, 438.7, 360 }, { 1024, 643.8, 430 }, { 8192, 2775, 1100 } } },
    { "Qwen3-30B-A3B bf16", MF_FORMAT_BF16, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX,
      { { 1, 28.1, 20 }, { 2, 0, 0 }, { 4, 74.7, 0 }, { 16, 192.7, 185 }, { 64, 290.5, 277 }, { 256, 313.8, 285 }, { 1024, 370.1, 305 }, { 8192, 1508, 1050 } } },
    { "DeepSeek-V2-Lite bf16", MF_FORMAT_BF16, 2048, 1408, 64, 2, 6, 1, 1, MF_SCORING_SOFTMAX,
      { { 1, 45.0, 35 }, { 2, 0, 0 }, { 4, 118.4, 0 }, { 16, 234.7, 0 }, { 64, 288.4, 268 }, { 256, 335.5, 0 }, { 1024, 413.2, 0 }, { 8192, 2608, 1800 } } },
    { "GLM-4.5-Air TP2 bf16", MF_FORMAT_BF16, 4096, 704, 128, 1, 8, 1, 1, MF_SCORING_SIGMOID,
      { { 1, 54.3, 40 }, { 2, 0, 0 }, { 4, 140.4, 0 }, { 16, 363.3, 0 }, { 64, 532.9, 515 }, { 256, 612.1, 0 }, { 1024, 676.0, 0 }, { 8192, 3304, 2250 } } },
    { "GLM-4.5-Air fp8", MF_FORMAT_FP8_BLOCK, 4096, 1408, 128, 1, 8, 1, 1, MF_SCORING_SIGMOID, EVERY_T },
    { "Qwen3-30B-A3B int4/128", MF_FORMAT_INT4_GROUP, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, FEW_T, 128 },
    { "Qwen3-30B-A3B int4/32", MF_FORMAT_INT4_GROUP, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, FEW_T, 32 },
    { "Qwen3-30B-A3B gptq/128", MF_FORMAT_INT4_GROUP, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, FEW_T, 128, false, true },
    { "GLM-4.5-Air int4/128", MF_FORMAT_INT4_GROUP, 4096, 1408, 128, 1, 8, 1, 1, MF_SCORING_SIGMOID, FEW_T, 128 },
    { "gpt-oss-20b mxfp4", MF_FORMAT_MXFP4, 2880, 2880, 32, 0, 4, 1, 1, MF_SCORING_SOFTMAX, FEW_T, 32 },
    { "gpt-oss-120b mxfp4", MF_FORMAT_MXFP4, 2880, 2880, 128, 0, 4, 1, 1, MF_SCORING_SOFTMAX, FEW_T, 32 },
    { "w8a16 V3 TP8 fp8", MF_FORMAT_FP8_BLOCK, 7168, 256, 256, 1, 8, 8, 4, MF_SCORING_SIGMOID, EVERY_T, 0, true },
    { "w8a16 Qwen3 fp8", MF_FORMAT_FP8_BLOCK, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, EVERY_T, 0, true },
    { "w8a16 GLM-4.5-Air fp8", MF_FORMAT_FP8_BLOCK, 4096, 1408, 128, 1, 8, 1, 1, MF_SCORING_SIGMOID, EVERY_T, 0, true },
    { "w8a16 Qwen3 channel", MF_FORMAT_FP8_CHANNEL, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, EVERY_T, 0, true },
    { "w8a16 Qwen3 int8", MF_FORMAT_INT8_CHANNEL, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, EVERY_T, 0, true },
    { "w8a16 GLM-4.5-Air channel", MF_FORMAT_FP8_CHANNEL, 4096, 1408, 128, 1, 8, 1, 1, MF_SCORING_SIGMOID, EVERY_T, 0, true },
    { "w8a8 Qwen3 fp8", MF_FORMAT_FP8_BLOCK, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, EVERY_T },
    { "w8a8 Qwen3 channel", MF_FORMAT_FP8_CHANNEL, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, EVERY_T },
    { "w8a8 Qwen3 int8", MF_FORMAT_INT8_CHANNEL, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, EVERY_T },
    { "w8a8 GLM-4.5-Air channel", MF_FORMAT_FP8_CHANNEL, 4096, 1408, 128, 1, 8, 1, 1, MF_SCORING_SIGMOID, EVERY_T },
    { "w8a8 GLM-4.5-Air int8", MF_FORMAT_INT8_CHANNEL, 4096, 1408, 128, 1, 8, 1, 1, MF_SCORING_SIGMOID, EVERY_T },
    { "f16 Qwen3-30B-A3B", MF_FORMAT_F16, 2048, 768, 128, 0, 8, 1, 1, MF_SCORING_SOFTMAX, EVERY_T },
};

typedef struct layer_bench {
    const shape *s;
    mf_gate_config config;
    mf_experts *experts[LAYERS];
    mf_experts *routed[LAYERS], *shared[LAYERS]; /* modes: the same slots as two tables */
    mf_gate_args gate[LAYERS];
    mf_layer_args layer[LAYERS];
    mf_experts_args experts_args[LAYERS];
    mf_sum_reduce_args sum[LAYERS];
    void *workspace;
    size_t bytes;
} layer_bench;

static void layer_work(void *context, int i)
{
    layer_bench *b = context;
    OK(mf_moe_layer(device, &b->layer[i % LAYERS], b->workspace, b->bytes, &err));
}

/* Experts and combine alone, ids given: what the peer's figure holds. */
static void experts_work(void *context, int i)
{
    layer_bench *b = context;
    const int l = i % LAYERS;
    mf_sum_reduce_call sum;
    OK(mf_sum_reduce_check(device, &b->sum[l], false, &sum, &err));
    const mf_experts_call call = { .experts = b->experts[l],
                                   .args = &b->experts_args[l],
                                   .num_tokens = sum.num_tokens,
                                   .num_columns = sum.num_columns,
                                   .workspace = b->workspace };
    OK(device->ops->experts_combine(device, &call, &sum, &err));
}

/* Bytes of `count` elements, and with scales. */
static size_t format_bytes(const shape *s, int64_t count)
{
    return (size_t)(is_4bit(s->format) ? count / 2 : s->format >= MF_FORMAT_FP8_BLOCK ? count : count * 2);
}

static size_t bytes_with_scales(const shape *s, int64_t count)
{
    const size_t scales = s->format == MF_FORMAT_MXFP4        ? (size_t)(count / s->group)
                          : s->format == MF_FORMAT_INT4_GROUP ? (size_t)(count / s->group * (s->gptq ? 3 : 2))
                                                              : 0;
    return format_bytes(s, count) + scales;
}

/* Scales of a matrix, near 0.01. */
static void give_scales(const shape *s, mf_matrix *m)
{
    if (s->format < MF_FORMAT_FP8_BLOCK) {
        return;
    }
    const bool is_f32 = !is_4bit(s->format);
    const int64_t rows = s->format == MF_FORMAT_FP8_BLOCK ? m->n / 128 : m->n;
    const int64_t columns = s->format == MF_FORMAT_FP8_BLOCK ? m->k / 128 : is_4bit(s->format) ? m->k / s->group : 1;
    const int64_t count = rows * columns;
    m->scale_dtype = is_f32 ? MF_F32 : s->format == MF_FORMAT_MXFP4 ? MF_F8_E8M0 : s->gptq ? MF_F16 : MF_BF16;
    m->scale_row_stride = columns;
    m->group_size = s->group;
    const size_t size = is_f32 ? 4 : s->format == MF_FORMAT_MXFP4 ? 1 : 2;
    uint8_t *scales = malloc((size_t)count * size);
    for (int64_t i = 0; i < count; i++) {
        const float v = 0.01f + 0.0001f * (float)(i % 100);
        const uint16_t h = s->gptq ? mf_f32_to_f16(v) : mf_f32_to_bf16(v);
        if (is_f32) {
            memcpy(scales + 4 * i, &v, 4);
        } else if (size == 2) {
            memcpy(scales + 2 * i, &h, 2);
        } else {
            scales[i] = (uint8_t)(120 + i % 3);
        }
    }
    m->scale = put(scales, (size_t)count * size);
    if (s->gptq) {
        for (int64_t i = 0; i < count; i++) {
            scales[i] = (uint8_t)(7 + i % 3);
        }
        m->zero = put(scales, (size_t)count);
    }
    free(scales);
}

static mf_experts *open_table(const shape *s, const mf_slot *list, int slots)
{
    mf_experts *experts;
    const mf_experts_desc desc = { .num_slots = slots,
                                   .hidden_size = s->hidden,
                                   .slots = list,
                                   .act_dtype = MF_BF16,
                                   .act_quant = s->w8a16 ? MF_ACT_QUANT_NONE : MF_ACT_QUANT_W8A8 };
    OK(mf_experts_create(device, &desc, &experts, &err));
    return experts;
}

static void open_layers(layer_bench *b, bool apart)
{
    const shape *s = b->s;
    const int slots = s->experts + s->shared;
    const int64_t h = s->hidden, w = s->width;
    mf_slot *list = calloc((size_t)slots, sizeof *list);
    for (int l = 0; l < LAYERS; l++) {
        uint8_t *w13 = weights(format_bytes(s, slots * 2 * w * h), s->format, 5);
        uint8_t *w2 = weights(format_bytes(s, slots * w * h), s->format, 5);
        for (int e = 0; e < slots; e++) {
            mf_matrix up = { .data = w13 + format_bytes(s, (e * 2 + 1) * w * h), .n = w, .k = h, .row_stride = h, .format = s->format };
            mf_matrix down = { .data = w2 + format_bytes(s, e * w * h), .n = h, .k = w, .row_stride = w, .format = s->format };
            give_scales(s, &up);
            give_scales(s, &down);
            mf_matrix gate = up;
            gate.data = w13 + format_bytes(s, e * 2 * w * h);
            list[e] = (mf_slot){ .gate = gate, .up = up, .down = down };
        }
        b->experts[l] = open_table(s, list, slots);
        if (apart) {
            b->routed[l] = open_table(s, list, s->experts);
            b->shared[l] = open_table(s, list + s->experts, s->shared);
        }
    }
    free(list);
}

static void bench_shape(const shape *given, bool experts, bool layer)
{
    shape wanted = *given;
    bool is_listed = !only_tokens;
    for (int p = 0; p < NUM_POINTS; p++) {
        is_listed |= wanted.points[p].t == only_tokens;
    }
    if (!is_listed) { /* any other number of tokens takes the last place, without a peer */
        memset(&wanted.points[NUM_POINTS - 1], 0, sizeof wanted.points[NUM_POINTS - 1]);
        wanted.points[NUM_POINTS - 1].t = only_tokens;
    }
    const shape *s = &wanted;
    layer_bench b = { .s = s, .config = gate_config(s->experts, s->top_k, s->groups, s->kept, s->shared, s->scoring) };
    const int columns = s->top_k + s->shared;
    open_layers(&b, false);
    const size_t slot_bytes = bytes_with_scales(s, 3 * s->hidden * s->width);
    for (int p = 0; p < NUM_POINTS && s->points[p].t; p++) {
        const int64_t t = s->points[p].t;
        if ((quick && t != 1 && t != 64 && t != 8192) || (few && t > 16) || (only_tokens && t != only_tokens)) {
            continue;
        }
        uint8_t *used = calloc((size_t)(s->experts + s->shared), 1);
        int64_t distinct = 0;
        void *gone[LAYERS * 8];
        int num_gone = 0;
        for (int l = 0; l < LAYERS; l++) {
            int32_t *ids = random_ids(t, s->experts, s->top_k, s->shared, 11 + (uint64_t)l);
            float *logits = random_logits(t * s->experts, 21 + (uint64_t)l), *w = malloc((size_t)(t * columns) * 4);
            for (int64_t i = 0; i < t * columns; i++) {
                w[i] = 0.25f;
                distinct += l == 0 && !used[ids[i]];
                used[ids[i]] = 1;
            }
            void *x = gone[num_gone++] = weights((size_t)(t * s->hidden) * 2, MF_FORMAT_BF16, 7);
            void *out = gone[num_gone++] = room((size_t)(t * s->hidden) * 2);
            void *device_ids = gone[num_gone++] = put(ids, (size_t)(t * columns) * 4);
            void *device_w = gone[num_gone++] = put(w, (size_t)(t * columns) * 4);
            void *device_logits = gone[num_gone++] = put(logits, (size_t)(t * s->experts) * 4);
            for (int e = 0; e < s->experts; e++) { /* a bias that steers a little, as a trained one does */
                logits[e] *= 0.01f;
            }
            void *bias = gone[num_gone++] = put(logits, (size_t)s->experts * 4);
            b.gate[l] = (mf_gate_args){ .config = &b.config, .router_logits = mf_tensor_2d(device_logits, MF_F32, t, s->experts) };
            if (b.config.bias_domain != MF_BIAS_NONE) {
                b.gate[l].e_score_correction_bias = mf_tensor_1d(bias, MF_F32, s->experts);
            }
            b.layer[l] = (mf_layer_args){ .gate = &b.gate[l],
                                          .experts = b.experts[l],
                                          .y_dtype = MF_BF16,
                                          .x = mf_tensor_2d(x, MF_BF16, t, s->hidden),
                                          .out = mf_tensor_2d(out, MF_BF16, t, s->hidden) };
            b.experts_args[l] = (mf_experts_args){ .experts = b.experts[l],
                                                   .x = b.layer[l].x,
                                                   .topk_ids = mf_tensor_2d(device_ids, MF_I32, t, columns) };
            b.sum[l] = (mf_sum_reduce_args){ .x = mf_tensor_3d(NULL, MF_BF16, t, columns, s->hidden),
                                             .topk_ids = b.experts_args[l].topk_ids,
                                             .topk_weights = mf_tensor_2d(device_w, MF_F32, t, columns),
                                             .routed_scaling_factor = 1.0f,
                                             .num_shared_columns = s->shared,
                                             .out = b.layer[l].out };
            free(ids);
            free(logits);
            free(w);
        }
        free(used);
        b.bytes = mf_moe_layer_workspace_bytes(&b.layer[0]);
        b.workspace = room(b.bytes);
        printf("%-22s T %5lld", s->name, (long long)t);
        if (experts) {
            const double us = measure(experts_work, &b, t <= 16 ? 10 * LAYERS : 2 * LAYERS);
            printf("  experts+combine %8.2f us, %5.0f GB/s, %4.0f TFLOP/s", us,
                   (double)distinct * (double)slot_bytes / us / 1e3,
                   6.0 * (double)(t * columns) * (double)s->hidden * (double)s->width / us / 1e6);
        }
        if (layer) {
            printf("  layer %8.2f us", measure(layer_work, &b, t <= 16 ? 10 * LAYERS : 2 * LAYERS));
        }
        if (s->points[p].peer > 0) {
            printf("   (noted: peer %.1f, target %.0f)", s->points[p].peer, s->points[p].target);
        }
        printf("\n");
        fflush(stdout);
        mf_device_free(device, b.workspace);
        for (int i = 0; i < num_gone; i++) {
            mf_device_free(device, gone[i]);
        }
    }
    for (int l = 0; l < LAYERS; l++) {
        mf_experts_destroy(&b.experts[l]);
    }
}

/* The layer in its three modes as a model calls it: outputs of experts in bf16, summed in f32 onto the residual. */
static void bench_modes(const shape *s)
{
    static const int64_t ts[] = { 1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192 };
    static const mf_layer_mode modes[] = { MF_MODE_SLOT, MF_MODE_OVERLAP, MF_MODE_SERIAL };
    layer_bench b = { .s = s };
    open_layers(&b, true);
    for (size_t i = 0; i < sizeof ts / sizeof ts[0]; i++) {
        const int64_t t = ts[i];
        if ((quick && t != 1 && t != 64 && t != 8192) || (few && t > 16) || (only_tokens && t != only_tokens)) {
            continue;
        }
        void *gone[LAYERS * 3];
        int num_gone = 0;
        printf("modes %-22s T %5lld ", s->name, (long long)t);
        for (int l = 0; l < LAYERS; l++) {
            float *logits = random_logits(t * s->experts, 21 + (uint64_t)l);
            void *device_logits = gone[num_gone++] = put(logits, (size_t)(t * s->experts) * 4);
            void *x = gone[num_gone++] = weights((size_t)(t * s->hidden) * 2, MF_FORMAT_BF16, 7);
            void *out = gone[num_gone++] = room((size_t)(t * s->hidden) * 4);
            b.gate[l] = (mf_gate_args){ .config = &b.config, .router_logits = mf_tensor_2d(device_logits, MF_F32, t, s->experts) };
            b.layer[l] = (mf_layer_args){ .gate = &b.gate[l],
                                          .y_dtype = MF_BF16,
                                          .x = mf_tensor_2d(x, MF_BF16, t, s->hidden),
                                          .residual = mf_tensor_2d(out, MF_F32, t, s->hidden),
                                          .out = mf_tensor_2d(out, MF_F32, t, s->hidden) };
            CUDA(cudaMemset(out, 0, (size_t)(t * s->hidden) * 4));
            free(logits);
        }
        for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
            const bool is_slot = modes[m] == MF_MODE_SLOT;
            b.config = gate_config(s->experts, s->top_k, s->groups, s->kept, is_slot ? s->shared : 0, s->scoring);
            b.config.bias_domain = MF_BIAS_NONE;
            for (int l = 0; l < LAYERS; l++) {
                b.layer[l].mode = modes[m];
                b.layer[l].experts = is_slot ? b.experts[l] : b.routed[l];
                b.layer[l].shared = is_slot ? NULL : b.shared[l];
            }
            b.bytes = mf_moe_layer_workspace_bytes(&b.layer[0]);
            b.workspace = room(b.bytes);
            printf(" %s %8.2f", mf_layer_mode_name(modes[m]), measure(layer_work, &b, t <= 16 ? 10 * LAYERS : 2 * LAYERS));
            mf_device_free(device, b.workspace);
        }
        printf(" us\n");
        fflush(stdout);
        for (int g = 0; g < num_gone; g++) {
            mf_device_free(device, gone[g]);
        }
    }
    for (int l = 0; l < LAYERS; l++) {
        mf_experts_destroy(&b.experts[l]);
        mf_experts_destroy(&b.routed[l]);
        mf_experts_destroy(&b.shared[l]);
    }
}

static bool wants(int argc, char **argv, const char *name)
{
    bool any = false;
    for (int i = 1; i < argc; i++) {
        any |= argv[i][0] != '-';
        if (strcmp(argv[i], name) == 0) {
            return true;
        }
    }
    return !any;
}

int main(int argc, char **argv)
{
    OK(mf_device_open("cuda", NULL, &device, &err));
    stream = mf_device_stream(device);
    for (int i = 1; i < argc; i++) {
        quick |= strcmp(argv[i], "--quick") == 0;
        few |= strcmp(argv[i], "--few") == 0;
        once |= strcmp(argv[i], "--once") == 0;
        only_shape = i + 1 < argc && strcmp(argv[i], "--shape") == 0 ? argv[i + 1] : only_shape;
        only_tokens = i + 1 < argc && strcmp(argv[i], "--tokens") == 0 ? atoll(argv[i + 1]) : only_tokens;
    }
    sweep_block = room(sweep_bytes);
    printf("%s\n", mf_device_description(device));
    ceilings();
    if (wants(argc, argv, "gate")) {
        bench_gate("256, 8 groups, top 8+1, sigmoid", gate_config(256, 8, 8, 4, 1, MF_SCORING_SIGMOID));
        bench_gate("128, top 8, softmax", gate_config(128, 8, 1, 1, 0, MF_SCORING_SOFTMAX));
        bench_gate("384, top 8+1, sigmoid", gate_config(384, 8, 1, 1, 1, MF_SCORING_SIGMOID));
    }
    if (wants(argc, argv, "align")) {
        bench_align();
    }
    if (wants(argc, argv, "combine")) {
        bench_combine(9, 7168, (const int64_t[]){ 1, 64, 256, 1024, 4096 }, 5);
        bench_combine(8, 2048, (const int64_t[]){ 1, 256, 4096, 16384 }, 4);
    }
    const bool experts = wants(argc, argv, "experts"), layer = wants(argc, argv, "layer");
    for (size_t i = 0; (experts || layer) && i < sizeof shapes / sizeof shapes[0]; i++) {
        if (!only_shape || strncmp(shapes[i].name, only_shape, strlen(only_shape)) == 0) {
            bench_shape(&shapes[i], experts, layer);
        }
    }
    bool modes = false;
    for (int i = 1; i < argc; i++) {
        modes |= strcmp(argv[i], "modes") == 0;
    }
    for (size_t i = 0; modes && i < sizeof shapes / sizeof shapes[0]; i++) {
        if (shapes[i].shared > 0 && (!only_shape || strncmp(shapes[i].name, only_shape, strlen(only_shape)) == 0)) {
            bench_modes(&shapes[i]);
        }
    }
    mf_device_close(&device);
    return 0;
}
