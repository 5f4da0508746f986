/* attention.c - multi-head latent attention, absorbed form (see mf_mla_args), one task per token and head.
 *
 * Sums over positions ascend from 0, so they depend on the position alone: a prompt in one piece, in chunks or token by token
 * gives the same bits. */
#include <math.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"

/* Per thread: a score per position, the query and the result in the latent space, one decoded row. */
static int64_t thread_floats(const mf_mla_args *args)
{
    return (args->kv.max_context + 3 * args->kv_lora_rank + 15) / 16 * 16;
}

size_t mf_cpu_mla_scratch_floats(const mf_device *device, const mf_mla_args *args)
{
    return (size_t)(thread_floats(args) * mf_pool_num_threads(device->pool));
}

typedef struct mla_call {
    const mf_cpu_kernels *kernels;
    const mf_mla_args *args;
} mla_call;

static void run_head(void *context, int64_t task, int32_t thread)
{
    const mla_call *call = context;
    const mf_cpu_kernels *kernels = call->kernels;
    const mf_mla_args *args = call->args;
    const mf_kv_view *kv = &args->kv;
    const int64_t rank = args->kv_lora_rank;
    const int64_t nope = args->qk_nope_head_dim;
    const int64_t rope = args->qk_rope_head_dim;
    const int64_t t = task / args->num_heads;
    const int64_t head = task % args->num_heads;
    const int64_t first_row = head * (nope + args->v_head_dim);
    const int64_t context_size = kv->position[t] + (int64_t)1;
    const float *q = args->q + task * (nope + rope);
    float *scores = args->scratch + thread * thread_floats(args);
    float *q_lat = scores + kv->max_context;
    float *o_lat = q_lat + rank;
    float *row = o_lat + rank;

    for (int64_t i = 0; i < rank; i++) {
        q_lat[i] = 0.0f;
        o_lat[i] = 0.0f;
    }
    for (int64_t j = 0; j < nope; j++) {
        const float *values = row;
        if (args->kv_b->format == MF_FORMAT_F32) {
            values = (const float *)(const void *)mf_matrix_row(args->kv_b, first_row + j);
        } else if (args->kv_b->format == MF_FORMAT_BF16) {
            kernels->load_row(mf_matrix_row(args->kv_b, first_row + j), MF_BF16, rank, row);
        } else {
            mf_matrix_decode_row(args->kv_b, first_row + j, 0, rank, row);
        }
        kernels->axpy(q_lat, q[j], values, rank);
    }
    float max = -INFINITY;
    for (int64_t first = 0; first < context_size; first += kv->block_size) {
        const float *cached = mf_kv_row(kv, t, first);
        const int64_t end = context_size - first < kv->block_size ? context_size : first + kv->block_size;
        for (int64_t s = first; s < end; s++, cached += kv->row_size) {
            scores[s] = args->softmax_scale * (kernels->dot(q_lat, cached, rank) + kernels->dot(q + nope, cached + rank, rope));
            max = scores[s] > max ? scores[s] : max;
        }
    }
    float sum = kernels->exp_sum(scores, context_size, max);
    for (int64_t first = 0; first < context_size; first += kv->block_size) {
        const float *cached = mf_kv_row(kv, t, first);
        const int64_t end = context_size - first < kv->block_size ? context_size : first + kv->block_size;
        for (int64_t s = first; s < end; s++, cached += kv->row_size) {
            kernels->axpy(o_lat, scores[s], cached, rank);
        }
    }
    for (int64_t i = 0; i < rank; i++) {
        o_lat[i] /= sum;
    }
    mf_cpu_tile tile = { .w = args->kv_b,
                         .first_row = first_row + nope,
                         .num_rows = args->v_head_dim,
                         .num_tokens = 1,
                         .x = (const void *const[]){ o_lat },
                         .out = args->out + task * args->v_head_dim,
                         .out_stride = args->v_head_dim };
    kernels->tile[args->kv_b->format](&tile);
}

void mf_cpu_mla_attention(mf_device *device, const mf_mla_args *args)
{
    mla_call call = { .kernels = mf_cpu_kernels_of(device), .args = args };
    const int64_t tasks = args->num_tokens * args->num_heads;
    double per_task = (double)args->kv_lora_rank * (double)(args->qk_nope_head_dim + args->v_head_dim) +
                      (double)args->kv.max_context * (double)(2 * args->kv_lora_rank + args->qk_rope_head_dim);
    mf_cpu_run(device, per_task * (double)tasks, tasks, run_head, &call);
}
