/* attention.c - multi-head latent attention, absorbed form (see mf_mla_args), one task per token and HEADS heads.
 *
 * In the latent space all heads share keys and values, so a task reads a cached row once for its heads: scores are
 * products of the cache's blocks with the heads' queries, the results sums of its rows.  Sums over positions ascend
 * from 0, so they depend on the position alone: a prompt in one piece, in chunks or token by token gives the same bits.
 */
#include <math.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"

enum {
    HEADS = 4,
    DECODED_ROWS = 8 /* rows of W_UK that are decoded at a time */
};

/* One thread's part of the scratch memory; all rows start at multiples of 16 floats. */
typedef struct mla_scratch {
    float *scores; /* [HEADS, context] */
    float *query;  /* [HEADS, rank + rope]: q_lat, then q_rope */
    float *result; /* [HEADS, rank] */
    float *rows;   /* [DECODED_ROWS, rank] */
    int64_t score_stride, query_stride, result_stride;
    int64_t floats;
} mla_scratch;

static int64_t round16(int64_t n)
{
    return (n + 15) / 16 * 16;
}

static mla_scratch lay_out(const mf_mla_args *args, int32_t thread)
{
    mla_scratch s = { .score_stride = round16(args->kv.max_context),
                      .query_stride = round16(args->kv_lora_rank + args->qk_rope_head_dim),
                      .result_stride = round16(args->kv_lora_rank) };
    s.floats = HEADS * (s.score_stride + s.query_stride + s.result_stride) + DECODED_ROWS * s.result_stride;
    if (args->scratch) {
        s.scores = args->scratch + thread * s.floats;
        s.query = s.scores + HEADS * s.score_stride;
        s.result = s.query + HEADS * s.query_stride;
        s.rows = s.result + HEADS * s.result_stride;
    }
    return s;
}

size_t mf_cpu_mla_scratch_floats(const mf_device *device, const mf_mla_args *args)
{
    mf_mla_args sizes = *args;
    sizes.scratch = NULL;
    return (size_t)(lay_out(&sizes, 0).floats * mf_pool_num_threads(device->pool));
}

typedef struct mla_call {
    const mf_cpu_kernels *kernels;
    const mf_mla_args *args;
    int64_t groups; /* of heads */
} mla_call;

/* query = W_UK^T q_nope, then q_rope */
static void absorb_query(const mla_call *call, const mla_scratch *scratch, int64_t t, int64_t head, float *query)
{
    const mf_mla_args *args = call->args;
    const int64_t rank = args->kv_lora_rank;
    const int64_t nope = args->qk_nope_head_dim;
    const float *q = args->q + (t * args->num_heads + head) * (nope + args->qk_rope_head_dim);
    const int64_t first_row = head * (nope + args->v_head_dim);
    memset(query, 0, (size_t)rank * sizeof *query);
    for (int64_t j = 0; j < nope; j += DECODED_ROWS) {
        const int64_t count = nope - j < DECODED_ROWS ? nope - j : DECODED_ROWS;
        for (int64_t i = 0; i < count; i++) {
            float *row = scratch->rows + i * scratch->result_stride;
            if (args->kv_b->format <= MF_FORMAT_F16) {
                const mf_dtype dtype = (const mf_dtype[]){ MF_F32, MF_BF16, MF_F16 }[args->kv_b->format];
                call->kernels->load_row(mf_matrix_row(args->kv_b, first_row + j + i), dtype, rank, row);
            } else {
                mf_matrix_decode_row(args->kv_b, first_row + j + i, 0, rank, row);
            }
        }
        mf_cpu_mix mix = { .rows = scratch->rows,
                           .weights = q + j,
                           .row_stride = scratch->result_stride,
                           .num_rows = count,
                           .num_heads = 1,
                           .n = rank,
                           .acc = query };
        call->kernels->mix(&mix);
    }
    memcpy(query + rank, q + nope, (size_t)args->qk_rope_head_dim * sizeof *query);
}

/* Scores of all positions, a block of the cache at a time, for num_heads heads. */
static void score(const mla_call *call, const mla_scratch *scratch, int64_t t, int64_t num_heads, int64_t context)
{
    const mf_kv_view *kv = &call->args->kv;
    const void *query[HEADS];
    for (int64_t h = 0; h < num_heads; h++) {
        query[h] = scratch->query + h * scratch->query_stride;
    }
    for (int64_t first = 0; first < context; first += kv->block_size) {
        mf_matrix block = { .data = mf_kv_row(kv, t, first),
                            .n = context - first < kv->block_size ? context - first : kv->block_size,
                            .k = kv->row_size,
                            .row_stride = kv->row_size,
                            .format = MF_FORMAT_F32 };
        mf_cpu_tile tile = { .w = &block,
                             .num_rows = block.n,
                             .num_tokens = num_heads,
                             .x = query,
                             .out = scratch->scores + first,
                             .out_stride = scratch->score_stride };
        call->kernels->product[MF_FORMAT_F32][MF_CPU_INPUT_F32].fn(&tile);
    }
}

static void run_heads(void *context_, int64_t task, int32_t thread)
{
    const mla_call *call = context_;
    const mf_cpu_kernels *kernels = call->kernels;
    const mf_mla_args *args = call->args;
    const mf_kv_view *kv = &args->kv;
    const int64_t rank = args->kv_lora_rank;
    const int64_t t = task / call->groups;
    const int64_t first_head = task % call->groups * HEADS;
    const int64_t num_heads = args->num_heads - first_head < HEADS ? args->num_heads - first_head : HEADS;
    const int64_t context = kv->position[t] + (int64_t)1;
    const mla_scratch scratch = lay_out(args, thread);

    for (int64_t h = 0; h < num_heads; h++) {
        absorb_query(call, &scratch, t, first_head + h, scratch.query + h * scratch.query_stride);
    }
    score(call, &scratch, t, num_heads, context);
    float sums[HEADS];
    for (int64_t h = 0; h < num_heads; h++) {
        float *scores = scratch.scores + h * scratch.score_stride;
        float max = -INFINITY;
        for (int64_t s = 0; s < context; s++) {
            scores[s] *= args->softmax_scale;
            max = scores[s] > max ? scores[s] : max;
        }
        sums[h] = kernels->exp_sum(scores, context, max);
    }
    memset(scratch.result, 0, (size_t)(num_heads * scratch.result_stride) * sizeof *scratch.result);
    for (int64_t first = 0; first < context; first += kv->block_size) {
        mf_cpu_mix mix = { .rows = mf_kv_row(kv, t, first),
                           .weights = scratch.scores + first,
                           .row_stride = kv->row_size,
                           .weight_stride = scratch.score_stride,
                           .num_rows = context - first < kv->block_size ? context - first : kv->block_size,
                           .num_heads = num_heads,
                           .n = rank,
                           .acc = scratch.result,
                           .acc_stride = scratch.result_stride };
        kernels->mix(&mix);
    }
    for (int64_t h = 0; h < num_heads; h++) {
        float *result = scratch.result + h * scratch.result_stride;
        for (int64_t i = 0; i < rank; i++) {
            result[i] /= sums[h];
        }
        const int64_t head = first_head + h;
        mf_cpu_tile tile = { .w = args->kv_b,
                             .first_row = head * (args->qk_nope_head_dim + args->v_head_dim) + args->qk_nope_head_dim,
                             .num_rows = args->v_head_dim,
                             .num_tokens = 1,
                             .x = (const void *const[]){ result },
                             .out = args->out + (t * args->num_heads + head) * args->v_head_dim,
                             .out_stride = args->v_head_dim };
        kernels->product[args->kv_b->format][MF_CPU_INPUT_F32].fn(&tile);
    }
}

void mf_cpu_mla_attention(mf_device *device, const mf_mla_args *args)
{
    mla_call call = { .kernels = mf_cpu_kernels_of(device),
                      .args = args,
                      .groups = (args->num_heads + HEADS - 1) / HEADS };
    double work = 0;
    for (int64_t t = 0; t < args->num_tokens; t++) {
        work += (double)args->kv.position[t] * (double)(2 * args->kv_lora_rank + args->qk_rope_head_dim);
    }
    work += (double)args->num_tokens * (double)args->kv_lora_rank * (double)(args->qk_nope_head_dim + args->v_head_dim);
    mf_cpu_run(device, work * (double)args->num_heads, args->num_tokens * call.groups, run_heads, &call);
}
