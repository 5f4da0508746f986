/* kernels_bench.c - times the experts op at shapes that models have, beside the machine's own read ceiling.
 *
 *   moefuse_bench_kernels [--shape NAME] [--format NAME] [--act-quant] [--tokens 1,4,16] [--threads N] [--repeats N]
 *
 * One CSV line per (shape, format, T): median and least microseconds of a call, GB/s over the stored bytes of the
 * distinct experts that it touched, GFLOP/s, and the share of the ceiling measured in the same run.  Ids are drawn anew
 * for each call and two layers of weights alternate, so that caches hold nothing that a model's next layer would not
 * find there either. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "base/sys.h"
#include "base/threads.h"
#include "kernels/ops.h"

typedef struct shape {
    const char *name;
    int64_t hidden, width, experts, top_k, shared;
} shape;

static const shape shapes[] = {
    { "v2-lite", 2048, 1408, 64, 6, 2 },     { "qwen3-30b", 2048, 768, 128, 8, 0 }, { "v3-tp8", 7168, 256, 256, 8, 1 },
    { "glm-air-tp2", 4096, 704, 128, 8, 1 }, { "tiny", 256, 64, 16, 4, 1 },
};

typedef struct options {
    const char *shape, *format, *tokens;
    int32_t threads, repeats;
    bool act_quant;
} options;

typedef struct block {
    uint8_t *data;
    size_t bytes, used;
} block;

static void die(const char *what)
{
    fprintf(stderr, "moefuse_bench_kernels: %s\n", what);
    exit(1);
}

static void *take(block *b, size_t bytes)
{
    void *p = b->data + b->used;
    b->used += (bytes + 63) / 64 * 64;
    if (b->used > b->bytes) {
        die("weights do not fit in what was reserved for them");
    }
    return p;
}

/* ---- the ceiling ---- */

enum { CHUNK = 1 << 20 };

typedef struct read_call {
    const uint8_t *data;
    uint64_t sums[64];
} read_call;

static void read_chunk(void *context, int64_t task, int32_t thread)
{
    read_call *call = context;
    const uint64_t *p = (const uint64_t *)(const void *)(call->data + task * CHUNK);
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (int64_t i = 0; i < CHUNK / 8; i += 8) {
        __builtin_prefetch(p + i + 1024); /* hardware alone does not reach the ceiling everywhere */
        a += p[i] ^ p[i + 4];
        b ^= p[i + 1] + p[i + 5];
        c += p[i + 2] ^ p[i + 6];
        d ^= p[i + 3] + p[i + 7];
    }
    call->sums[thread % 64] += a + b + c + d;
}

static int compare_times(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double read_ceiling(mf_pool *pool, const block *b)
{
    int64_t times[9];
    static read_call call;
    call.data = b->data;
    int64_t chunks = (int64_t)(b->bytes / CHUNK);
    for (int i = 0; i < 9; i++) {
        int64_t start = mf_now_ns();
        mf_pool_run(pool, chunks, read_chunk, &call);
        times[i] = mf_now_ns() - start;
    }
    qsort(times, 9, sizeof times[0], compare_times);
    return (double)chunks * CHUNK / (double)times[4];
}

/* ---- weights ---- */

static int64_t code_bits(mf_format f)
{
    static const int64_t bits[MF_FORMAT_COUNT] = { 32, 16, 16, 8, 8, 8, 4, 4 };
    return bits[f];
}

static mf_matrix make_matrix(block *b, mf_format format, int64_t n, int64_t k)
{
    mf_matrix m = { .n = n, .k = k, .row_stride = k, .format = format };
    m.data = take(b, (size_t)(n * k * code_bits(format) / 8));
    int64_t rows = n, columns = 1;
    if (format == MF_FORMAT_FP8_BLOCK) {
        rows = (n + 127) / 128;
        columns = (k + 127) / 128;
    } else if (format == MF_FORMAT_INT4_GROUP || format == MF_FORMAT_MXFP4) {
        m.group_size = 32;
        columns = (k + 31) / 32;
    }
    if (format >= MF_FORMAT_FP8_BLOCK) {
        m.scale_dtype = format == MF_FORMAT_MXFP4 ? MF_F8_E8M0 : format == MF_FORMAT_INT4_GROUP ? MF_F16 : MF_F32;
        m.scale_row_stride = columns;
        m.scale = take(b, (size_t)(rows * columns) * mf_dtype_size(m.scale_dtype));
    }
    return m;
}

/* Bytes that are harmless in every format: no NaN, no subnormal f16 or f32 worth mentioning. */
static void fill(block *b)
{
    uint64_t seed = 1;
    for (size_t i = 0; i < b->bytes; i += 2) {
        uint64_t r = mf_random_next(&seed);
        b->data[i] = (uint8_t)(0x30 + r % 16);
        b->data[i + 1] = (uint8_t)(((r >> 8) & 0x80) | (0x38 + (r >> 16) % 8));
    }
}

/* ---- one point ---- */

static void bench(mf_device *device, mf_experts *const *layers, const shape *s, const options *o, mf_format format,
                  int64_t tokens, double ceiling)
{
    const int64_t columns = s->top_k + s->shared, num_slots = s->experts + s->shared;
    size_t workspace_bytes = mf_fused_experts_workspace_bytes(layers[0], tokens, columns);
    void *workspace = mf_alloc_aligned(workspace_bytes);
    uint16_t *x = mf_alloc_aligned((size_t)(tokens * s->hidden) * 2),
             *y = mf_alloc_aligned((size_t)(tokens * columns * s->hidden) * 2);
    int32_t *ids = mf_alloc_array((size_t)(tokens * columns), sizeof *ids);
    int64_t *times = mf_alloc_array((size_t)o->repeats, sizeof *times);
    uint8_t *used = mf_alloc((size_t)num_slots);
    if (!workspace || !x || !y || !ids || !times || !used) {
        die("out of memory");
    }
    uint64_t seed = 7;
    for (int64_t i = 0; i < tokens * s->hidden; i++) {
        x[i] = (uint16_t)(0x3f00 + mf_random_below(&seed, 128));
    }
    double bytes = 0, products = 0;
    for (int32_t repeat = -2; repeat < o->repeats; repeat++) {
        memset(used, 0, (size_t)num_slots);
        int64_t distinct = 0;
        for (int64_t t = 0; t < tokens; t++) {
            for (int64_t c = 0; c < columns; c++) {
                int32_t id = (int32_t)(c < s->top_k ? 0 : s->experts + c - s->top_k);
                bool again = c < s->top_k;
                while (again) {
                    id = (int32_t)mf_random_below(&seed, (uint64_t)s->experts);
                    again = false;
                    for (int64_t k = 0; k < c; k++) {
                        again |= ids[t * columns + k] == id;
                    }
                }
                ids[t * columns + c] = id;
                distinct += !used[id];
                used[id] = 1;
            }
        }
        const mf_experts *experts = layers[repeat & 1];
        mf_experts_args args = { .experts = experts,
                                 .x = mf_tensor_2d(x, MF_BF16, tokens, s->hidden),
                                 .topk_ids = mf_tensor_2d(ids, MF_I32, tokens, columns),
                                 .y = mf_tensor_3d(y, MF_BF16, tokens, columns, s->hidden) };
        mf_error err;
        int64_t start = mf_now_ns();
        if (mf_fused_experts(device, &args, workspace, workspace_bytes, &err) != MF_OK) {
            die(err.message);
        }
        if (repeat >= 0) {
            const mf_slot *slot = &experts->slots[0];
            times[repeat] = mf_now_ns() - start;
            bytes += (double)distinct *
                     (double)(mf_matrix_bytes(&slot->gate) + mf_matrix_bytes(&slot->up) + mf_matrix_bytes(&slot->down));
            products += (double)(tokens * columns) * 3 * (double)s->hidden * (double)s->width;
        }
    }
    qsort(times, (size_t)o->repeats, sizeof *times, compare_times);
    double ns = (double)times[o->repeats / 2];
    printf("experts,%s,%s%s,\"%s\",%lld,%.1f,%.1f,%.1f,%.1f,%.2f\n", s->name, mf_format_name(format),
           o->act_quant ? "+w8a8" : "", mf_device_description(device), (long long)tokens, ns / 1000,
           (double)times[0] / 1000, bytes / o->repeats / ns, 2 * products / o->repeats / ns,
           bytes / o->repeats / ns / ceiling);
    fflush(stdout);
    mf_free_aligned(workspace);
    mf_free_aligned(x);
    mf_free_aligned(y);
    mf_free(ids);
    mf_free(times);
    mf_free(used);
}

static void bench_shape(mf_device *device, const shape *s, const options *o, mf_format format)
{
    const int64_t num_slots = s->experts + s->shared;
    size_t slot_bytes = (size_t)(3 * s->hidden * s->width * code_bits(format) / 8);
    block b = { .bytes = (size_t)(2 * num_slots) * (slot_bytes + slot_bytes / 8 + 4096) + CHUNK };
    b.bytes = b.bytes < ((size_t)256 << 20) ? (size_t)256 << 20 : b.bytes;
    b.data = mf_alloc_aligned(b.bytes);
    mf_slot *slots = mf_alloc_array((size_t)num_slots, sizeof *slots);
    if (!b.data || !slots) {
        die("out of memory");
    }
    fill(&b);
    double ceiling = read_ceiling(device->pool, &b);
    printf("# read ceiling of %s: %.1f GB/s\n", mf_device_description(device), ceiling);
    mf_experts *layers[2];
    for (int l = 0; l < 2; l++) {
        for (int64_t i = 0; i < num_slots; i++) {
            slots[i] = (mf_slot){ .gate = make_matrix(&b, format, s->width, s->hidden),
                                  .up = make_matrix(&b, format, s->width, s->hidden),
                                  .down = make_matrix(&b, format, s->hidden, s->width) };
        }
        mf_experts_desc desc = { .num_slots = num_slots,
                                 .hidden_size = s->hidden,
                                 .slots = slots,
                                 .act_dtype = MF_BF16,
                                 .act_quant = o->act_quant ? MF_ACT_QUANT_W8A8 : MF_ACT_QUANT_NONE };
        mf_error err;
        if (mf_experts_create(device, &desc, &layers[l], &err) != MF_OK) {
            die(err.message);
        }
    }
    for (const char *p = o->tokens; *p;) {
        char *end;
        long tokens = strtol(p, &end, 10);
        if (end == p || tokens < 1 || tokens > 65536) {
            die("--tokens: expected numbers from 1 to 65536, with commas");
        }
        bench(device, layers, s, o, format, tokens, ceiling);
        p = *end == ',' ? end + 1 : end;
    }
    mf_experts_destroy(&layers[0]);
    mf_experts_destroy(&layers[1]);
    mf_free_aligned(b.data);
    mf_free(slots);
}

int main(int argc, char **argv)
{
    options o = { .shape = "v2-lite", .tokens = "1", .repeats = 21 };
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--act-quant") == 0) {
            o.act_quant = true;
            continue;
        }
        i++;
        if (strcmp(argv[i - 1], "--shape") == 0) {
            o.shape = value;
        } else if (strcmp(argv[i - 1], "--format") == 0) {
            o.format = value;
        } else if (strcmp(argv[i - 1], "--tokens") == 0) {
            o.tokens = value;
        } else if (strcmp(argv[i - 1], "--threads") == 0) {
            o.threads = (int32_t)strtol(value, NULL, 10);
        } else if (strcmp(argv[i - 1], "--repeats") == 0) {
            o.repeats = (int32_t)strtol(value, NULL, 10);
        } else {
            die("usage: [--shape NAME] [--format NAME] [--act-quant] [--tokens 1,4,16] [--threads N] [--repeats N]");
        }
    }
    if (o.repeats < 1 || o.repeats > 100000) {
        die("--repeats: expected 1 to 100000");
    }
    mf_error err;
    mf_device *device;
    mf_device_options device_options = { .num_threads = o.threads };
    if (mf_device_open("cpu", &device_options, &device, &err) != MF_OK) {
        die(err.message);
    }
    printf("op,shape,format,device,T,us,us_min,GB/s,GFLOP/s,of_ceiling\n");
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        for (int f = 0; f < MF_FORMAT_COUNT; f++) {
            bool wanted = o.format ? strcmp(o.format, mf_format_name((mf_format)f)) == 0 : f == MF_FORMAT_BF16;
            if (strcmp(o.shape, shapes[s].name) == 0 && wanted) {
                bench_shape(device, &shapes[s], &o, (mf_format)f);
            }
        }
    }
    mf_device_close(&device);
    return 0;
}
