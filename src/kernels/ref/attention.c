/* attention.c - attention in plain C: multi-head latent over the compressed cache, absorbed form (see mf_mla_args), and
 * grouped-query (see mf_gqa_args). */
#include <math.h>
#include <string.h>

#include "kernels/format.h"
#include "kernels/ref/ref_ops.h"

size_t mf_ref_mla_scratch_floats(const mf_device *device, const mf_mla_args *args)
{
    (void)device;
    return (size_t)(args->kv.max_context + 3 * args->kv_lora_rank + args->kv.row_size);
}

static float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

/* Values [first, first + count) of token s of row t's sequence: in place, or as f32 in `room` [row_size]. */
static const float *cached_values(const mf_kv_view *kv, int64_t t, int64_t s, int64_t first, int64_t count, float *room)
{
    const uint8_t *row = mf_kv_row(kv, t, s);
    if (kv->dtype == MF_F32) {
        return (const float *)(const void *)row + first;
    }
    row += 2 * first;
    for (int64_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, row + 2 * i, sizeof bits);
        room[i] = mf_bf16_to_f32(bits);
    }
    return room;
}

static void attend(const mf_mla_args *args, int64_t t, int64_t head)
{
    const int64_t rank = args->kv_lora_rank;
    const int64_t nope = args->qk_nope_head_dim;
    const int64_t rope = args->qk_rope_head_dim;
    const int64_t first_row = head * (nope + args->v_head_dim);
    const int64_t context = args->kv.position[t] + (int64_t)1;
    const float *q = args->q + (t * args->num_heads + head) * (nope + rope);
    float *scores = args->scratch;
    float *q_lat = scores + args->kv.max_context;
    float *row = q_lat + rank;
    float *o_lat = row + rank;
    float *room = o_lat + rank;

    for (int64_t i = 0; i < rank; i++) {
        q_lat[i] = 0.0f;
        o_lat[i] = 0.0f;
    }
    for (int64_t j = 0; j < nope; j++) {
        mf_matrix_decode_row(args->kv_b, first_row + j, 0, rank, row);
        for (int64_t i = 0; i < rank; i++) {
            q_lat[i] += q[j] * row[i];
        }
    }
    float max = -INFINITY;
    for (int64_t s = 0; s < context; s++) {
        const float *cached = cached_values(&args->kv, t, s, 0, args->kv.row_size, room);
        scores[s] = args->softmax_scale * (dot(q_lat, cached, rank) + dot(q + nope, cached + rank, rope));
        max = scores[s] > max ? scores[s] : max;
    }
    float sum = 0.0f;
    for (int64_t s = 0; s < context; s++) {
        scores[s] = expf(scores[s] - max);
        sum += scores[s];
    }
    for (int64_t s = 0; s < context; s++) {
        const float *cached = cached_values(&args->kv, t, s, 0, args->kv.row_size, room);
        for (int64_t i = 0; i < rank; i++) {
            o_lat[i] += scores[s] * cached[i];
        }
    }
    for (int64_t i = 0; i < rank; i++) {
        o_lat[i] /= sum;
    }
    for (int64_t j = 0; j < args->v_head_dim; j++) {
        args->out[(t * args->num_heads + head) * args->v_head_dim + j] =
            mf_ref_dot(args->kv_b, first_row + nope + j, o_lat);
    }
}

size_t mf_ref_gqa_scratch_floats(const mf_device *device, const mf_gqa_args *args)
{
    (void)device;
    return (size_t)(args->kv.max_context + args->kv.row_size);
}

static void attend_grouped(const mf_gqa_args *args, int64_t t, int64_t head)
{
    const int64_t dim = args->head_dim;
    const int64_t v_dim = args->v_head_dim;
    const int64_t kv_head = head / (args->num_heads / args->num_kv_heads);
    const int64_t values = args->num_kv_heads * dim + kv_head * v_dim; /* where they start in a cached row */
    const int64_t context = args->kv.position[t] + (int64_t)1;
    const int64_t first = mf_gqa_first(args->window, args->chunk, args->kv.position[t]);
    const float *q = args->q + (t * args->num_heads + head) * dim;
    float *out = args->out + (t * args->num_heads + head) * v_dim;
    float *scores = args->scratch;
    float *room = scores + args->kv.max_context;
    float max = args->sinks ? args->sinks[head] : -INFINITY;
    for (int64_t s = first; s < context; s++) {
        scores[s] = args->softmax_scale * dot(q, cached_values(&args->kv, t, s, kv_head * dim, dim, room), dim);
        max = scores[s] > max ? scores[s] : max;
    }
    float sum = args->sinks ? expf(args->sinks[head] - max) : 0.0f;
    for (int64_t s = first; s < context; s++) {
        scores[s] = expf(scores[s] - max);
        sum += scores[s];
    }
    memset(out, 0, (size_t)v_dim * sizeof *out);
    for (int64_t s = first; s < context; s++) {
        const float *cached = cached_values(&args->kv, t, s, values, v_dim, room);
        for (int64_t i = 0; i < v_dim; i++) {
            out[i] += scores[s] * cached[i];
        }
    }
    for (int64_t i = 0; i < v_dim; i++) {
        out[i] /= sum;
    }
}

void mf_ref_gqa_attention(mf_device *device, const mf_gqa_args *args)
{
    (void)device;
    for (int64_t t = 0; t < args->num_tokens; t++) {
        for (int64_t head = 0; head < args->num_heads; head++) {
            attend_grouped(args, t, head);
        }
    }
}

void mf_ref_mla_attention(mf_device *device, const mf_mla_args *args)
{
    (void)device;
    for (int64_t t = 0; t < args->num_tokens; t++) {
        for (int64_t head = 0; head < args->num_heads; head++) {
            attend(args, t, head);
        }
    }
}
