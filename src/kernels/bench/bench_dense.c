/* bench_dense.c - the dense operations that a layer spends its other time in: a linear product, and attention. */
#include <stdio.h>
#include <string.h>

#include "kernels/bench/bench_parts.h"

enum { MAX_COPIES = 64, BLOCK_SIZE = 16, VOCABULARY = 151936 /* Qwen3's */ };

#define ROTATED_BYTES 512e6 /* that calls run through before one copy comes again */
#define MOST_CACHE_BYTES ((int64_t)4 << 30)

static int32_t copies_for(double bytes)
{
    double copies = ROTATED_BYTES / bytes + 1;
    return copies > MAX_COPIES ? MAX_COPIES : copies < 2 ? 2 : (int32_t)copies;
}

/* The attention's output projection [hidden, heads * v], or a vocabulary's logits [vocabulary, hidden]. */
mf_status mf_bench_linear(mf_bench_run *run, bool is_head, int64_t tokens, mf_error *err)
{
    const mf_bench_shape *s = run->shape;
    const int64_t n = is_head ? VOCABULARY : s->hidden;
    const int64_t k = is_head ? s->hidden : s->heads * (s->kv_heads ? s->head_dim : s->v_dim);
    const size_t room = mf_bench_matrix_room(run->format, run->options->group_size, n, k);
    const int32_t copies = copies_for((double)room);
    mf_matrix weights[MAX_COPIES];
    mf_bench_block block = { 0 };
    mf_arena arena = { 0 };
    float *x = mf_bench_take(&arena, (size_t)(tokens * k) * sizeof *x);
    float *out = mf_bench_take(&arena, (size_t)(tokens * n) * sizeof *out);
    mf_status status = x && out ? MF_OK : mf_bench_out_of_memory(err);
    if (status == MF_OK) {
        mf_bench_fill_floats(-1, 1, tokens * k, &run->seed, x);
        status =
            mf_bench_block_open(&block, run->device->pool, (size_t)copies * room, mf_bench_pages_of(run->options), err);
    }
    for (int32_t c = 0; status == MF_OK && c < copies; c++) {
        status = mf_bench_make_matrix(&block, run->format, run->options->group_size, n, k, &weights[c], err);
    }
    double started = 0;
    run->num_times = 0;
    for (int32_t i = -MF_BENCH_WARM_UP; status == MF_OK && mf_bench_wants_more(run, i, started); i++) {
        started = i == 0 ? mf_now_s() : started;
        double start = mf_now_s();
        run->device->ops->linear(run->device, &weights[(i + MF_BENCH_WARM_UP) % copies], NULL, run->act_dtype, x, k,
                                 tokens, out, n);
        if (i >= 0) {
            mf_bench_add_time(run, mf_now_s() - start);
        }
    }
    if (status == MF_OK) {
        mf_bench_row row = mf_bench_make_row(run, is_head ? "lm-head" : "linear", tokens, true);
        mf_bench_set_rates(run, &row, (double)mf_matrix_bytes(&weights[0]), 2.0 * (double)(n * k * tokens),
                           mf_bench_product_kind(run));
        mf_bench_emit(run, &row);
    }
    mf_bench_block_close(&block);
    mf_arena_clear(&arena);
    return status;
}

/* ---- attention ---- */

typedef struct attention_point {
    bool is_mla;
    mf_mla_args mla;
    mf_gqa_args gqa;
    mf_matrix kv_b;
    mf_bench_block cache; /* copies, one after the other */
    int64_t cache_bytes;  /* of one copy */
    int32_t copies;
    double positions; /* pairs of a query row and a cached row */
} attention_point;

/* tokens sequences with `context` cached rows each, or one sequence whose prompt of `tokens` runs at once. */
static mf_status fill_view(mf_bench_run *run, int64_t tokens, bool prefill, mf_arena *arena, attention_point *p,
                           mf_kv_view *kv, mf_error *err)
{
    const mf_bench_shape *s = run->shape;
    const int64_t context = prefill ? tokens : run->options->context, sequences = prefill ? 1 : tokens;
    const int64_t row = p->is_mla ? s->kv_lora + s->rope : 2 * s->kv_heads * s->head_dim;
    const int64_t blocks = (context + BLOCK_SIZE - 1) / BLOCK_SIZE;
    const int64_t size = (int64_t)mf_dtype_size(run->act_dtype);
    int64_t values, bytes;
    if (!mf_mul_ok(sequences * blocks * BLOCK_SIZE, row, &values) || !mf_mul_ok(values, size, &bytes) ||
        bytes > MOST_CACHE_BYTES) {
        return mf_fail(err, MF_ERR_LIMIT, "--tokens %lld with --context %lld: the KV cache would take more than 4 GiB",
                       (long long)tokens, (long long)context);
    }
    int32_t *table = mf_bench_take(arena, (size_t)(sequences * blocks) * sizeof *table);
    int32_t *sequence = mf_bench_take(arena, (size_t)tokens * sizeof *sequence);
    int32_t *position = mf_bench_take(arena, (size_t)tokens * sizeof *position);
    if (!table || !sequence || !position) {
        return mf_bench_out_of_memory(err);
    }
    for (int64_t i = 0; i < sequences * blocks; i++) {
        table[i] = (int32_t)i;
    }
    for (int64_t t = 0; t < tokens; t++) {
        sequence[t] = prefill ? 0 : (int32_t)t;
        position[t] = (int32_t)(prefill ? t : context - 1);
        p->positions += (double)position[t] + 1;
    }
    p->cache_bytes = bytes;
    p->copies = copies_for((double)bytes);
    MF_TRY(mf_bench_block_open(&p->cache, run->device->pool, (size_t)p->copies * (size_t)bytes,
                               mf_bench_pages_of(run->options), err));
    uint8_t *cache = mf_bench_block_take(&p->cache, (size_t)p->copies * (size_t)bytes);
    mf_bench_fill_activations(run->act_dtype, values, &run->seed, cache);
    for (int32_t c = 1; c < p->copies; c++) {
        memcpy(cache + c * bytes, cache, (size_t)bytes);
    }
    *kv = (mf_kv_view){ .cache = cache,
                        .dtype = run->act_dtype,
                        .row_size = row,
                        .block_size = BLOCK_SIZE,
                        .block_table = table,
                        .max_blocks = blocks,
                        .sequence = sequence,
                        .position = position,
                        .max_context = context };
    return MF_OK;
}

static mf_status open_attention(mf_bench_run *run, int64_t tokens, bool prefill, mf_arena *arena, attention_point *p,
                                mf_error *err)
{
    const mf_bench_shape *s = run->shape;
    const mf_device_ops *ops = run->device->ops;
    p->is_mla = s->kv_heads == 0;
    const int64_t q_dim = p->is_mla ? s->nope + s->rope : s->head_dim, v_dim = p->is_mla ? s->v_dim : s->head_dim;
    mf_kv_view kv;
    MF_TRY(fill_view(run, tokens, prefill, arena, p, &kv, err));
    float *q = mf_bench_take(arena, (size_t)(tokens * s->heads * q_dim) * sizeof *q);
    float *out = mf_bench_take(arena, (size_t)(tokens * s->heads * v_dim) * sizeof *out);
    const int64_t kv_b_rows = s->heads * (s->nope + s->v_dim);
    uint16_t *kv_b = mf_bench_take(arena, (size_t)(p->is_mla ? kv_b_rows * s->kv_lora : 1) * sizeof *kv_b);
    if (!q || !out || !kv_b) {
        return mf_bench_out_of_memory(err);
    }
    mf_bench_fill_floats(-1, 1, tokens * s->heads * q_dim, &run->seed, q);
    size_t scratch_floats;
    if (p->is_mla) {
        mf_bench_fill_activations(MF_BF16, kv_b_rows * s->kv_lora, &run->seed, kv_b);
        p->kv_b = (mf_matrix){
            .data = kv_b, .n = kv_b_rows, .k = s->kv_lora, .row_stride = s->kv_lora, .format = MF_FORMAT_BF16
        };
        p->mla = (mf_mla_args){ .num_tokens = tokens,
                                .num_heads = s->heads,
                                .qk_nope_head_dim = s->nope,
                                .qk_rope_head_dim = s->rope,
                                .v_head_dim = s->v_dim,
                                .kv_lora_rank = s->kv_lora,
                                .softmax_scale = 0.07f,
                                .q = q,
                                .kv_b = &p->kv_b,
                                .kv = kv,
                                .out = out };
        scratch_floats = ops->mla_scratch_floats(run->device, &p->mla);
        p->mla.scratch = mf_bench_take(arena, scratch_floats * sizeof(float));
        return p->mla.scratch ? MF_OK : mf_bench_out_of_memory(err);
    }
    p->gqa = (mf_gqa_args){ .num_tokens = tokens,
                            .num_heads = s->heads,
                            .num_kv_heads = s->kv_heads,
                            .head_dim = s->head_dim,
                            .v_head_dim = s->head_dim,
                            .softmax_scale = 0.088f,
                            .q = q,
                            .kv = kv,
                            .out = out };
    scratch_floats = ops->gqa_scratch_floats(run->device, &p->gqa);
    p->gqa.scratch = mf_bench_take(arena, scratch_floats * sizeof(float));
    return p->gqa.scratch ? MF_OK : mf_bench_out_of_memory(err);
}

static double attention_operations(const mf_bench_shape *s, const attention_point *p, int64_t tokens)
{
    if (!p->is_mla) {
        return 4.0 * p->positions * (double)(s->heads * s->head_dim);
    }
    double absorbed = 2.0 * (double)(tokens * s->heads * (s->nope + s->v_dim) * s->kv_lora);
    return absorbed + 2.0 * p->positions * (double)(s->heads * (2 * s->kv_lora + s->rope));
}

mf_status mf_bench_attention(mf_bench_run *run, int64_t tokens, bool prefill, mf_error *err)
{
    mf_arena arena = { 0 };
    attention_point p = { 0 };
    mf_status status = open_attention(run, tokens, prefill, &arena, &p, err);
    double started = 0;
    run->num_times = 0;
    uint8_t *first = p.cache.data;
    for (int32_t i = -MF_BENCH_WARM_UP; status == MF_OK && mf_bench_wants_more(run, i, started); i++) {
        started = i == 0 ? mf_now_s() : started;
        p.mla.kv.cache = p.gqa.kv.cache = first + (i + MF_BENCH_WARM_UP) % p.copies * p.cache_bytes;
        double start = mf_now_s();
        if (p.is_mla) {
            run->device->ops->mla_attention(run->device, &p.mla);
        } else {
            run->device->ops->gqa_attention(run->device, &p.gqa);
        }
        if (i >= 0) {
            mf_bench_add_time(run, mf_now_s() - start);
        }
    }
    if (status == MF_OK) {
        mf_bench_row row = mf_bench_make_row(run, prefill ? "attention prefill" : "attention decode", tokens, false);
        const int64_t row_size = p.is_mla ? p.mla.kv.row_size : p.gqa.kv.row_size;
        double bytes = prefill ? 0 : p.positions * (double)row_size * (double)mf_dtype_size(run->act_dtype);
        mf_bench_set_rates(run, &row, bytes, attention_operations(run->shape, &p, tokens),
                           run->act_dtype == MF_BF16 ? MF_RATE_BF16 : MF_RATE_F32);
        mf_bench_emit(run, &row);
    }
    mf_bench_block_close(&p.cache);
    mf_arena_clear(&arena);
    return status;
}
