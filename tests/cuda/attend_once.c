/* attend_once.c - attention that takes what the projections left: gqa_at_once and mla_at_once leave the results and the
 * cache that prepare and attention leave one after the other, to the bit; so do products that end as queries and as the
 * cache's rows (gqa_project), and products that leave their norm to themselves (norm_linear), of many rows.
 *
 * Needs a GPU; tests/cuda/run.sh runs it. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "base/random.h"
#include "kernels/ops.h"
#include "small.h"
#include "test.h"

enum { BLOCK = 16, MOST_CONTEXT = 5000, NUM_BLOCKS = (MOST_CONTEXT + BLOCK - 1) / BLOCK, MOST_HEADS = 128 };

static mf_error err;
static mf_device *device;
static uint64_t seed;

static void *room(size_t bytes)
{
    void *block;
    CHECK_OK(mf_device_malloc(device, bytes, &block, &err), err);
    return block;
}

static void *put(const void *data, size_t bytes)
{
    void *block = room(bytes);
    CHECK_OK(mf_device_copy(device, block, data, bytes, &err), err);
    return block;
}

static void *get(const void *from, size_t bytes)
{
    void *to = malloc(bytes);
    CHECK_OK(mf_device_copy(device, to, from, bytes, &err), err);
    return to;
}

/* The same bytes at another place of the device. */
static void *another(const void *from, size_t bytes)
{
    void *v = get(from, bytes), *at = put(v, bytes);
    free(v);
    return at;
}

static void release_both(void *a, void *b)
{
    mf_device_free(device, a);
    mf_device_free(device, b);
}

static float *random_floats(size_t n)
{
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) {
        v[i] = (float)(int64_t)(mf_random_below(&seed, 2001) - 1000) * 1e-3f;
    }
    float *at = put(v, n * sizeof *v);
    free(v);
    return at;
}

static uint16_t *random_bf16(size_t n)
{
    uint16_t *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) {
        v[i] = mf_f32_to_bf16((float)(int64_t)(mf_random_below(&seed, 2001) - 1000) * 1e-3f);
    }
    uint16_t *at = put(v, n * sizeof *v);
    free(v);
    return at;
}

/* One token of one sequence, whose blocks lie in an order of their own. */
static mf_kv_view view_of(int position, int64_t row_size, void *cache)
{
    static int32_t table[NUM_BLOCKS];
    static const int32_t zero = 0;
    for (int i = 0; i < NUM_BLOCKS; i++) {
        table[i] = (i * 7 + 3) % NUM_BLOCKS;
    }
    const int32_t at = position;
    return (mf_kv_view){ .dtype = MF_BF16,
                         .row_size = row_size,
                         .block_size = BLOCK,
                         .block_table = put(table, sizeof table),
                         .max_blocks = NUM_BLOCKS,
                         .sequence = put(&zero, sizeof zero),
                         .position = put(&at, sizeof at),
                         .max_context = position + 1,
                         .cache = cache };
}

static void same_bytes(const void *a, const void *b, size_t bytes, const char *what, int shape, int position)
{
    void *x = get(a, bytes), *y = get(b, bytes);
    if (memcmp(x, y, bytes) != 0) {
        fail_msg("shape %d, position %d: %s differ", shape, position, what);
    }
    free(x);
    free(y);
}

static const int positions[] = { 0, 1, 63, 64, 65, 130, 511, 4097, MOST_CONTEXT - 1 };

enum { SEQUENCES = 3 };

/* Rows of up to three sequences, those of one behind each other from `first` on. */
static mf_kv_view view_of_rows(int num_tokens, int first, int64_t row_size)
{
    static int32_t table[SEQUENCES * NUM_BLOCKS];
    int32_t sequence[64], position[64];
    for (int i = 0; i < SEQUENCES * NUM_BLOCKS; i++) {
        table[i] = (i * 7 + 3) % (SEQUENCES * NUM_BLOCKS);
    }
    for (int i = 0; i < num_tokens; i++) {
        sequence[i] = i % SEQUENCES;
        position[i] = first + i / SEQUENCES;
    }
    return (mf_kv_view){ .dtype = MF_BF16,
                         .row_size = row_size,
                         .block_size = BLOCK,
                         .block_table = put(table, sizeof table),
                         .max_blocks = NUM_BLOCKS,
                         .sequence = put(sequence, (size_t)num_tokens * 4),
                         .position = put(position, (size_t)num_tokens * 4),
                         .max_context = first + (num_tokens + SEQUENCES - 1) / SEQUENCES };
}

typedef struct gqa_shape {
    int heads, kv_heads, dim, rope_dim;
    bool has_norm, pair, norm_after_rope, has_sinks;
    int window;
    float scale; /* 0: 0.09 */
} gqa_shape;

TEST(grouped_queries_made_on_the_way_have_the_bits_of_one_step_after_the_other)
{
    static const gqa_shape shapes[] = {
        { 32, 4, 128, 128, .has_norm = true },
        { 12, 2, 64, 64, .has_norm = true, .pair = true, .norm_after_rope = true, .has_sinks = true, .window = 100 },
        { 20, 1, 128, 64, .has_norm = false },
        { 24, 24, 64, 32, .has_norm = true, .pair = true },
        { 8, 8, 128, 0, .has_norm = true },
        { 14, 2, 128, 128, .has_norm = true, .has_sinks = true, .scale = 3.0f }, /* pieces' maxima far apart */
        { 5, 1, 64, 64, .has_norm = false, .window = 700, .scale = 3.0f },
    };
    CHECK_OK(mf_device_open("cuda", NULL, &device, &err), err);
    const mf_device_ops *ops = device->ops;
    const mf_matrix reader = { .data = room(4096), .n = 16, .k = 64, .row_stride = 64, .format = MF_FORMAT_BF16 };
    int done = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const gqa_shape *s = &shapes[i];
        const size_t width = (size_t)(s->heads * s->dim), row = (size_t)(2 * s->kv_heads * s->dim);
        const size_t cached = (size_t)NUM_BLOCKS * BLOCK * row;
        seed = 3 + i;
        float *cos_sin = random_floats((size_t)MOST_CONTEXT * 128), *q_norm = random_floats(128),
              *k_norm = random_floats(128);
        float *sinks = random_floats(MOST_HEADS);
        uint16_t *start = random_bf16(cached), *caches[2] = { room(cached * 2), room(cached * 2) };
        void *host = get(start, cached * 2);
        for (size_t n = 0; n < sizeof positions / sizeof positions[0]; n++) {
            float *left = random_floats(width), *rows = random_floats(row), *q[2], *out[2];
            for (int k = 0; k < 2; k++) {
                q[k] = another(left, width * 4);
                out[k] = room(width * 4);
                CHECK_OK(mf_device_copy(device, caches[k], host, cached * 2, &err), err);
            }
            mf_gqa_args args = { .num_tokens = 1,
                                 .num_heads = s->heads,
                                 .num_kv_heads = s->kv_heads,
                                 .head_dim = s->dim,
                                 .v_head_dim = s->dim,
                                 .softmax_scale = s->scale > 0 ? s->scale : 0.09f,
                                 .window = s->window,
                                 .sinks = s->has_sinks ? sinks : NULL,
                                 .kv = view_of(positions[n], (int64_t)row, NULL) };
            args.scratch = room(ops->gqa_scratch_floats(device, &args) * 4);
            mf_gqa_prepare_call prepare = { .num_tokens = 1,
                                            .num_heads = s->heads,
                                            .num_kv_heads = s->kv_heads,
                                            .head_dim = s->dim,
                                            .v_head_dim = s->dim,
                                            .rows = rows,
                                            .q_norm = s->has_norm ? q_norm : NULL,
                                            .k_norm = s->has_norm ? k_norm : NULL,
                                            .eps = 1e-6f,
                                            .rope_dim = s->rope_dim,
                                            .rope_pair = s->pair,
                                            .norm_after_rope = s->norm_after_rope,
                                            .cos_sin = cos_sin };
            for (int k = 0; k < 2; k++) {
                args.kv.cache = caches[k];
                prepare.kv = args.kv;
                prepare.q = q[k];
                args.q = q[k];
                args.out = out[k];
                if (k == 0) {
                    ops->gqa_prepare(device, &prepare);
                    ops->gqa_attention(device, &args);
                    ops->convert(device, out[0], (int64_t)width, MF_BF16, q[0]);
                } else {
                    bool is_rounded = false;
                    if (!ops->gqa_at_once(device, &prepare, &args, &reader, MF_BF16, &is_rounded)) {
                        break;
                    }
                    CHECK(is_rounded);
                    CHECK_OK(mf_device_synchronize(device, &err), err);
                    same_bytes(q[0], out[1], width * 2, "results", (int)i, positions[n]);
                    same_bytes(caches[0], caches[1], cached * 2, "caches", (int)i, positions[n]);
                    done++;
                }
            }
            release_both(q[0], q[1]);
            release_both(out[0], out[1]);
            release_both(left, rows);
            mf_device_free(device, args.scratch);
        }
        release_both(caches[0], caches[1]);
        mf_device_free(device, start);
        free(host);
    }
    CHECK_EQ(done, (int)(sizeof shapes / sizeof shapes[0] * (sizeof positions / sizeof positions[0])));
    mf_device_close(&device);
}

TEST(latents_made_on_the_way_have_the_bits_of_one_step_after_the_other)
{
    enum { RANK = 512, ROPE = 64, ROW = RANK + ROPE, MOST_TOKENS = 40 };
    static const struct {
        int heads, nope, value;
        bool pair;
    } shapes[] = { { 16, 128, 128, true }, { 32, 64, 64, false }, { 8, 192, 128, true }, { 128, 128, 128, false } };
    static const struct {
        int tokens, first;
    } batches[] = { { 1, 0 },    { 1, 1 },    { 1, 63 },           { 1, 64 },
                    { 1, 65 },   { 1, 130 },  { 1, 511 },          { 1, 800 },
                    { 1, 2100 }, { 1, 4097 }, { 2, 511 },          { 1, MOST_CONTEXT - 1 },
                    { 3, 64 },   { 4, 62 },   { 5, 700 },          { 9, 63 },
                    { 16, 509 }, { 17, 130 }, { MOST_TOKENS, 400 } };
    enum { NUM_BATCHES = sizeof batches / sizeof batches[0], NUM_SHAPES = sizeof shapes / sizeof shapes[0] };
    CHECK_OK(mf_device_open("cuda", NULL, &device, &err), err);
    const mf_device_ops *ops = device->ops;
    const size_t cached = (size_t)SEQUENCES * NUM_BLOCKS * BLOCK * ROW;
    int done = 0;
    for (int i = 0; i < NUM_SHAPES; i++) {
        const int heads = shapes[i].heads, nope = shapes[i].nope, value = shapes[i].value;
        seed = 13 + (uint64_t)i;
        float *cos_sin = random_floats((size_t)MOST_CONTEXT * ROPE), *norm = random_floats(RANK);
        const int64_t rows_of_b = (int64_t)heads * (nope + value);
        const mf_matrix kv_b = { .data = random_bf16((size_t)rows_of_b * RANK),
                                 .n = rows_of_b,
                                 .k = RANK,
                                 .row_stride = RANK,
                                 .format = MF_FORMAT_BF16 };
        const mf_matrix reader = { .data = room(4096), .n = 16, .k = 64, .row_stride = 64, .format = MF_FORMAT_BF16 };
        uint16_t *start = random_bf16(cached), *caches[2] = { room(cached * 2), room(cached * 2) };
        void *host = get(start, cached * 2);
        for (int n = 0; n < NUM_BATCHES; n++) {
            const int tokens = batches[n].tokens;
            const size_t width = (size_t)tokens * heads * (nope + ROPE), wide = (size_t)tokens * heads * value;
            float *left = random_floats(width), *rows = random_floats((size_t)tokens * ROW), *q[2], *out[2];
            for (int k = 0; k < 2; k++) {
                q[k] = another(left, width * 4);
                out[k] = room(wide * 4);
                CHECK_OK(mf_device_copy(device, caches[k], host, cached * 2, &err), err);
            }
            mf_mla_args args = { .num_tokens = tokens,
                                 .num_heads = heads,
                                 .qk_nope_head_dim = nope,
                                 .qk_rope_head_dim = ROPE,
                                 .v_head_dim = value,
                                 .kv_lora_rank = RANK,
                                 .softmax_scale = 0.07f,
                                 .kv_b = &kv_b,
                                 .kv = view_of_rows(tokens, batches[n].first, ROW) };
            args.scratch = room(ops->mla_scratch_floats(device, &args) * 4);
            mf_mla_prepare_call prepare = { .num_tokens = tokens,
                                            .num_heads = heads,
                                            .qk_nope_head_dim = nope,
                                            .qk_rope_head_dim = ROPE,
                                            .kv_lora_rank = RANK,
                                            .rows = rows,
                                            .norm = norm,
                                            .eps = 1e-6f,
                                            .rope_pair = shapes[i].pair,
                                            .cos_sin = cos_sin };
            for (int k = 0; k < 2; k++) {
                bool is_rounded = false;
                args.kv.cache = caches[k];
                prepare.kv = args.kv;
                prepare.q = q[k];
                args.q = q[k];
                args.out = out[k];
                if (k == 0) {
                    ops->mla_prepare(device, &prepare);
                    ops->mla_attention(device, &args);
                } else if (ops->mla_at_once(device, &prepare, &args, &reader, MF_BF16, &is_rounded)) {
                    float *whole = room(wide * 4);
                    ops->convert(device, out[0], (int64_t)wide, MF_BF16, whole);
                    CHECK_OK(mf_device_synchronize(device, &err), err);
                    same_bytes(is_rounded ? whole : out[0], out[1], wide * (is_rounded ? 2 : 4), "results", i, n);
                    same_bytes(caches[0], caches[1], cached * 2, "caches", i, n);
                    mf_device_free(device, whole);
                    done++;
                }
            }
            release_both(q[0], q[1]);
            release_both(out[0], out[1]);
            release_both(left, rows);
            mf_device_free(device, args.scratch);
        }
        release_both(caches[0], caches[1]);
        mf_device_free(device, start);
        free(host);
    }
    CHECK_EQ(done, NUM_SHAPES * NUM_BATCHES);
    mf_device_close(&device);
}

/* ---- many rows: from the norm to attention's results ---- */

typedef struct many_shape {
    int tokens, behind; /* rows of two sequences; positions before the first one's */
    int hidden, heads, kv_heads, rope_dim;
    bool has_norm, norm_after_rope, has_bias, adds, in_order; /* in_order: blocks of the cache follow one another */
    bool small;                                               /* runs under checkers, too */
} many_shape;

enum { HEAD = 128, MANY_BLOCKS = 256 };

static mf_matrix random_matrix(int64_t n, int64_t k)
{
    return (mf_matrix){
        .data = (const uint8_t *)random_bf16((size_t)(n * k)), .n = n, .k = k, .row_stride = k, .format = MF_FORMAT_BF16
    };
}

/* The same as INT4 or INT8 codes, which only sm_90 takes here. */
static mf_matrix random_codes(mf_format format, int64_t n, int64_t k)
{
    enum { GROUP = 64 };
    const bool is_int4 = format == MF_FORMAT_INT4_GROUP;
    const size_t bytes = (size_t)(n * k / (is_int4 ? 2 : 1));
    uint8_t *codes = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) {
        codes[i] = (uint8_t)mf_random_next(&seed);
    }
    const mf_matrix m = { .data = put(codes, bytes),
                          .n = n,
                          .k = k,
                          .row_stride = k,
                          .format = format,
                          .scale = is_int4 ? (const void *)random_bf16((size_t)(n * k / GROUP))
                                           : (const void *)random_floats((size_t)n),
                          .scale_dtype = is_int4 ? MF_BF16 : MF_F32,
                          .scale_row_stride = is_int4 ? k / GROUP : 1,
                          .group_size = is_int4 ? GROUP : 0 };
    free(codes);
    return m;
}

/* Two sequences, the second one from 0 on with a third of the rows. */
static mf_kv_view view_of_many(const many_shape *s, void *cache)
{
    int32_t *sequence = malloc((size_t)s->tokens * 4), *position = malloc((size_t)s->tokens * 4),
            table[2 * MANY_BLOCKS];
    const int second = s->tokens - s->tokens / 3;
    for (int t = 0; t < s->tokens; t++) {
        sequence[t] = t >= second;
        position[t] = t >= second ? t - second : t + s->behind;
    }
    for (int i = 0; i < 2 * MANY_BLOCKS; i++) {
        const int apart = i % 2 == 0 ? i / 2 : 2 * MANY_BLOCKS - 1 - i / 2; /* each block once, neighbours apart */
        table[i] = s->in_order ? i : apart;
    }
    const mf_kv_view view = { .dtype = MF_BF16,
                              .row_size = 2 * s->kv_heads * HEAD,
                              .block_size = BLOCK,
                              .block_table = put(table, sizeof table),
                              .max_blocks = MANY_BLOCKS,
                              .sequence = put(sequence, (size_t)s->tokens * 4),
                              .position = put(position, (size_t)s->tokens * 4),
                              .max_context = s->tokens + s->behind,
                              .cache = cache };
    free(sequence);
    free(position);
    return view;
}

TEST(queries_and_keys_that_leave_their_products_finished_have_the_bits_of_one_step_after_the_other)
{
    static const many_shape shapes[] = {
        { 300, 77, 512, 32, 4, 128, .has_norm = true, .small = true },
        { 1111, 5, 576, 8, 8, 128, .has_norm = true, .norm_after_rope = true, .adds = true },
        { 200, 0, 3072, 20, 1, 0, .has_bias = true, .adds = true, .small = true },
        { 2048, 300, 2048, 16, 4, 128, .has_norm = true, .has_bias = true },
        { 1500, 0, 1024, 12, 2, 128, .adds = true },
        { 4100, 0, 2048, 8, 2, 128, .has_norm = true },
        { 4200, 0, 576, 4, 4, 128, .has_norm = true },
        { 3008, 160, 2048, 32, 4, 128, .has_norm = true, .in_order = true },
        { 4400, 0, 2048, 4, 4, 128, .has_norm = true },
        { 777, 0, 512, 8, 8, 128, .has_norm = true, .in_order = true, .small = true },
        { 400, 0, 2048, 4, 4, 128, .has_norm = true, .small = true }, /* many for a checker's 12 multiprocessors */
    };
    static const mf_format formats[] = { MF_FORMAT_BF16, MF_FORMAT_INT4_GROUP, MF_FORMAT_INT8_CHANNEL };
    enum { SHAPES = sizeof shapes / sizeof shapes[0], FORMATS = sizeof formats / sizeof formats[0] };
    CHECK_OK(mf_device_open("cuda", NULL, &device, &err), err);
    const mf_device_ops *ops = device->ops;
    const size_t rounds = strcmp(device->gpu, "sm_90") == 0 ? FORMATS : 1;
    int done = 0, added = 0, run = 0;
    for (size_t i = 0; i < rounds * SHAPES; i++) {
        const many_shape *s = &shapes[i % SHAPES];
        const mf_format format = formats[i / SHAPES];
        if (is_small() && !s->small) {
            continue;
        }
        run++;
        const size_t tokens = (size_t)s->tokens, width = (size_t)(s->heads * HEAD),
                     row = (size_t)(2 * s->kv_heads * HEAD);
        const size_t hidden = (size_t)s->hidden, cached = (size_t)2 * MANY_BLOCKS * BLOCK * row;
        seed = 30 + i;
        mf_matrix w[3];
        for (int k = 0; k < 3; k++) {
            const int64_t n = k == 0 ? (int64_t)width : s->kv_heads * HEAD;
            w[k] = format == MF_FORMAT_BF16 ? random_matrix(n, s->hidden) : random_codes(format, n, s->hidden);
        }
        const mf_matrix reader = { .data = room(4096), .n = 16, .k = 64, .row_stride = 64, .format = MF_FORMAT_BF16 };
        const mf_matrix few = random_matrix(i % 4 == 0 ? 128 : 100, s->hidden); /* a router's rows */
        const mf_matrix *chosen = i % 2 == 0 || format != MF_FORMAT_BF16 ? &few : &w[1];
        float *cos_sin = random_floats((size_t)4096 * HEAD), *q_norm = random_floats(HEAD),
              *k_norm = random_floats(HEAD);
        float *weight = random_floats(hidden), *bias = random_floats(width), *start = random_floats(tokens * hidden);
        float *router[2] = { room(tokens * row * 2), room(tokens * row * 2) };
        float *add = random_floats(tokens * hidden), *acc[3], *q = room(tokens * width * 4),
              *rows = room(tokens * row * 4);
        float *h = room(tokens * hidden * 4), *out[2] = { room(tokens * width * 4), room(tokens * width * 4) };
        void *rounded = room(tokens * hidden * 2), *before = random_bf16(cached), *caches[2],
             *host = get(before, cached * 2);
        const mf_kv_view view = view_of_many(s, NULL);
        for (int k = 0; k < 3; k++) {
            acc[k] = another(start, tokens * hidden * 4);
        }
        for (int k = 0; k < 2; k++) {
            caches[k] = put(host, cached * 2);
            mf_gqa_args args = { .num_tokens = s->tokens,
                                 .num_heads = s->heads,
                                 .num_kv_heads = s->kv_heads,
                                 .head_dim = HEAD,
                                 .v_head_dim = HEAD,
                                 .softmax_scale = 0.09f,
                                 .q = q,
                                 .out = out[k],
                                 .kv = view };
            args.kv.cache = caches[k];
            args.scratch = room(ops->gqa_scratch_floats(device, &args) * 4);
            const mf_gqa_prepare_call prepare = { .num_tokens = s->tokens,
                                                  .num_heads = s->heads,
                                                  .num_kv_heads = s->kv_heads,
                                                  .head_dim = HEAD,
                                                  .v_head_dim = HEAD,
                                                  .q = q,
                                                  .rows = rows,
                                                  .q_norm = s->has_norm ? q_norm : NULL,
                                                  .k_norm = s->has_norm ? k_norm : NULL,
                                                  .eps = 1e-6f,
                                                  .rope_dim = s->rope_dim,
                                                  .norm_after_rope = s->norm_after_rope,
                                                  .cos_sin = cos_sin,
                                                  .kv = args.kv };
            const mf_add_norm_call norm = { .acc = acc[k],
                                            .add = s->adds ? add : NULL,
                                            .num_tokens = s->tokens,
                                            .n = s->hidden,
                                            .weight = weight,
                                            .eps = 1e-6f,
                                            .out = h,
                                            .rounded = rounded,
                                            .rounded_dtype = MF_BF16 };
            const mf_linear_call call = { .num = 3,
                                          .w = { &w[0], &w[1], &w[2] },
                                          .bias = { s->has_bias ? bias : NULL, NULL, s->has_bias ? bias : NULL },
                                          .out = { q, rows, rows + row / 2 },
                                          .out_stride = { (int64_t)width, (int64_t)row, (int64_t)row },
                                          .act_dtype = MF_BF16,
                                          .x = h,
                                          .x_stride = s->hidden,
                                          .rounded = rounded,
                                          .num_tokens = s->tokens };
            mf_add_norm_call router_norm = norm;
            router_norm.acc = acc[2];
            const mf_linear_call router_call = { .num = 1, /* of inputs that count as f32 */
                                                 .w = { chosen },
                                                 .bias = { s->has_bias ? bias : NULL },
                                                 .out = { router[k] },
                                                 .out_stride = { chosen->n },
                                                 .act_dtype = MF_F32,
                                                 .x = h,
                                                 .x_stride = s->hidden,
                                                 .num_tokens = s->tokens };
            if (k == 0) {
                ops->add_norm(device, &norm);
                ops->linear_many(device, &router_call);
                ops->linear_many(device, &call);
                ops->gqa_prepare(device, &prepare);
                ops->gqa_attention(device, &args);
                ops->convert(device, out[0], (int64_t)(tokens * width), MF_BF16, q);
                void *results = get(q, tokens * width * 2);
                CHECK_OK(mf_device_copy(device, out[0], results, tokens * width * 2, &err), err);
                free(results);
            } else {
                bool is_rounded = false;
                if (ops->norm_linear(device, &router_norm, acc[2], &router_call)) {
                    CHECK_OK(mf_device_synchronize(device, &err), err);
                    same_bytes(acc[0], acc[2], tokens * hidden * 4, "sums", (int)i, s->behind);
                    same_bytes(router[0], router[1], tokens * (size_t)chosen->n * 4, "products of f32", (int)i,
                               s->behind);
                    done++;
                }
                if (ops->gqa_project && ops->gqa_project(device, &norm, &call, &prepare, &args)) {
                    CHECK(ops->gqa_at_once(device, NULL, &args, &reader, MF_BF16, &is_rounded));
                    CHECK(is_rounded);
                    CHECK_OK(mf_device_synchronize(device, &err), err);
                    same_bytes(acc[0], acc[1], tokens * hidden * 4, "sums", (int)i, s->behind);
                    same_bytes(caches[0], caches[1], cached * 2, "caches", (int)i, s->behind);
                    same_bytes(out[0], out[1], tokens * width * 2, "results", (int)i, s->behind);
                    done++;
                }
            }
            if (k == 0 && ops->linear_add) { /* to what is there, in one call or two */
                const size_t bytes = tokens * (size_t)w[1].n * 4;
                float *before_sum = random_floats(tokens * (size_t)w[1].n),
                      *sums[2] = { another(before_sum, bytes), another(before_sum, bytes) };
                mf_linear_call sum = { .num = 1,
                                       .w = { &w[1] },
                                       .bias = { s->has_bias ? bias : NULL },
                                       .out = { sums[1] },
                                       .out_stride = { w[1].n },
                                       .act_dtype = MF_BF16,
                                       .x = h,
                                       .x_stride = s->hidden,
                                       .rounded = rounded,
                                       .num_tokens = s->tokens };
                if (ops->linear_add(device, &sum)) {
                    sum.out[0] = before_sum;
                    ops->linear_many(device, &sum);
                    ops->add(device, sums[0], before_sum, (int64_t)tokens * w[1].n);
                    CHECK_OK(mf_device_synchronize(device, &err), err);
                    same_bytes(sums[0], sums[1], bytes, "added products", (int)i, s->behind);
                    added++;
                }
                release_both(sums[0], sums[1]);
                mf_device_free(device, before_sum);
            }
            mf_device_free(device, args.scratch);
        }
        void *const blocks[] = { acc[0], acc[1], acc[2], router[0], router[1], caches[0], caches[1], q,
                                 rows,   h,      out[0], out[1],    rounded,   before,    start,     add };
        for (size_t k = 0; k < sizeof blocks / sizeof blocks[0]; k++) {
            mf_device_free(device, blocks[k]);
        }
        free(host);
    }
    if (rounds > 1) {
        CHECK_EQ(done, 2 * run);
        CHECK(added > 0 && added % FORMATS == 0);
    }
    mf_device_close(&device);
}
