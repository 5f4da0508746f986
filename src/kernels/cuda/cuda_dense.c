/* cuda_dense.c - the host's side of the dense operations that a whole model needs of device cuda.  cuda_device.c's
 * table points here.
 *
 * The dense operations return nothing: what fails becomes the device's failure, and the next operation that can say so
 * does.  Products are cuda_linear.c's. */
#include <cuda_runtime_api.h>
#include <string.h>

#include "kernels/cuda/attention_wgmma.h"
#include "kernels/cuda/dense_ops.h"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/format.h"

enum { MAX_PARTIAL_BYTES = 128 << 20, MAX_MLA_BYTES = 192 << 20, MAX_SPLITS = 64, DECODE_TOKENS = 64 };

/* ---- rows and elements ---- */

static void add_norm(mf_device *device, const mf_add_norm_call *call)
{
    if (call->num_tokens > 0 && begin(device)) {
        const mf_cuda_norm p = { .acc = call->acc,
                                 .add = call->add,
                                 .x = call->acc,
                                 .x_stride = call->n,
                                 .num_tokens = call->num_tokens,
                                 .n = call->n,
                                 .weight = call->weight,
                                 .out = call->out,
                                 .out_stride = call->n,
                                 .eps = call->eps,
                                 .rounded = call->rounded_dtype == MF_BF16 ? call->rounded : NULL };
        done(device, mf_cuda_launch_norm(&p, stream_of(device)), "add and norm");
        if (call->rounded && call->rounded_dtype != MF_BF16) {
            done(device,
                 mf_cuda_launch_convert(call->out, call->n, call->num_tokens, call->n, (int)call->rounded_dtype,
                                        call->rounded, stream_of(device)),
                 "convert");
        }
    }
}

static mf_cuda_gqa_prepare prepare_of(const mf_gqa_prepare_call *call)
{
    const mf_kv_view *kv = &call->kv;
    return (mf_cuda_gqa_prepare){ .num_tokens = call->num_tokens,
                                  .num_heads = (int32_t)call->num_heads,
                                  .num_kv_heads = (int32_t)call->num_kv_heads,
                                  .head_dim = (int32_t)call->head_dim,
                                  .values = (int32_t)(call->num_kv_heads * call->v_head_dim),
                                  .q = call->q,
                                  .rows = call->rows,
                                  .q_norm = call->q_norm,
                                  .k_norm = call->k_norm,
                                  .cos_sin = call->cos_sin,
                                  .eps = call->eps,
                                  .rope_dim = (int32_t)call->rope_dim,
                                  .rope_pair = call->rope_pair,
                                  .norm_after_rope = call->norm_after_rope,
                                  .is_bf16 = kv->dtype == MF_BF16,
                                  .cache = kv->cache,
                                  .block_table = kv->block_table,
                                  .sequence = kv->sequence,
                                  .position = kv->position,
                                  .row_size = kv->row_size,
                                  .block_size = kv->block_size,
                                  .max_blocks = kv->max_blocks };
}

static void gqa_prepare(mf_device *device, const mf_gqa_prepare_call *call)
{
    if (call->num_tokens > 0 && begin(device)) {
        const mf_cuda_gqa_prepare p = prepare_of(call);
        done(device, mf_cuda_launch_gqa_prepare(&p, stream_of(device)), "queries and keys");
    }
}

static mf_cuda_mla_prepare latents_of(const mf_mla_prepare_call *call)
{
    const mf_kv_view *kv = &call->kv;
    return (mf_cuda_mla_prepare){ .num_tokens = call->num_tokens,
                                  .num_heads = (int32_t)call->num_heads,
                                  .nope = (int32_t)call->qk_nope_head_dim,
                                  .rope = (int32_t)call->qk_rope_head_dim,
                                  .rank = (int32_t)call->kv_lora_rank,
                                  .rope_pair = call->rope_pair,
                                  .is_bf16 = kv->dtype == MF_BF16,
                                  .q = call->q,
                                  .rows = call->rows,
                                  .norm = call->norm,
                                  .cos_sin = call->cos_sin,
                                  .eps = call->eps,
                                  .cache = kv->cache,
                                  .block_table = kv->block_table,
                                  .sequence = kv->sequence,
                                  .position = kv->position,
                                  .row_size = kv->row_size,
                                  .block_size = kv->block_size,
                                  .max_blocks = kv->max_blocks };
}

static void mla_prepare(mf_device *device, const mf_mla_prepare_call *call)
{
    if (call->num_tokens > 0 && begin(device)) {
        const mf_cuda_mla_prepare p = latents_of(call);
        done(device, mf_cuda_launch_mla_prepare(&p, stream_of(device)), "latents");
    }
}

/* ---- attention ---- */

/* Parts of a context whose results may lie in memory: spans of plain attention, the shorter pieces of tensor cores. */
static int64_t num_spans(const mf_kv_view *kv)
{
    const int64_t size = kv->dtype == MF_BF16 ? MF_CUDA_PIECE : MF_CUDA_SPAN;
    return (kv->max_context + size - 1) / size;
}

static int64_t partial_floats(int64_t num_tokens, int64_t num_heads, int64_t spans, int64_t v_dim)
{
    return num_tokens * num_heads * spans * (v_dim + 2);
}

/* Rows may be split over their spans where the results fit. */
static bool may_split(int64_t num_tokens, int64_t num_heads, int64_t spans, int64_t v_dim)
{
    return partial_floats(num_tokens, num_heads, spans, v_dim) * 4 <= MAX_PARTIAL_BYTES;
}

/* Room for the pieces of the most rows that are ever split, of these sizes or smaller ones. */
static size_t partial_room(int64_t num_tokens, int64_t num_heads, int64_t spans, int64_t v_dim)
{
    return (size_t)min_i64(partial_floats(num_tokens, num_heads, spans, v_dim), MAX_PARTIAL_BYTES / 4);
}

static void set_view(mf_cuda_attention *p, const mf_kv_view *kv)
{
    p->cache = kv->cache;
    p->block_table = kv->block_table;
    p->sequence = kv->sequence;
    p->position = kv->position;
    p->row_size = kv->row_size;
    p->block_size = kv->block_size;
    p->max_blocks = kv->max_blocks;
    p->cache_is_bf16 = kv->dtype == MF_BF16;
    p->most_spans = num_spans(kv);
}

/* The tensor cores' path: sizes and the cache decide, never the batch. */
static bool takes_mma_attention(const mf_device *device, const mf_cuda_attention *p)
{
    const bool is_aligned = p->cache_is_bf16 && on16(p->cache) && p->row_size % 8 == 0 && on16(p->q) &&
                            p->q_stride % 4 == 0 && p->q_head_stride % 4 == 0;
    if (p->q_tail) {
        return is_aligned && p->head_dim == 576 && p->v_dim == 512 && on16(p->q_tail) && p->tail_stride % 4 == 0 &&
               p->tail_head_stride % 4 == 0 && (p->num_heads <= 32 ? 32 % p->num_heads == 0 : p->num_heads % 32 == 0) &&
               mf_cuda_attention_mla_shared() <= mf_cuda_state_of(device)->gpu.shared_bytes;
    }
    return is_aligned && p->head_dim == p->v_dim && (p->head_dim == 64 || p->head_dim == 128) && p->value_at % 8 == 0 &&
           p->num_heads / p->num_kv_heads <= 128;
}

/* Many rows on Hopper, which copies boxes of the cache's blocks. */
static bool takes_hopper_attention(const mf_device *device, const mf_cuda_attention *p)
{
    return mf_cuda_state_of(device)->gpu.capability == 90 && p->block_size % MF_CUDA_ATTENTION_BOX == 0 &&
           p->row_size % 64 == 0 && p->value_at % 64 == 0 &&
           (!p->q_tail || (p->num_heads < MF_CUDA_MLA_ROWS ? MF_CUDA_MLA_ROWS % p->num_heads == 0
                                                       : p->num_heads % MF_CUDA_MLA_ROWS == 0));
}

/* Few rows, whose pieces find room in memory. */
static bool is_few_rows(const mf_cuda_attention *p)
{
    return p->num_tokens <= DECODE_TOKENS && may_split(p->num_tokens, p->num_heads, p->most_spans, p->v_dim);
}

/* Blocks that share a row's pieces, and where these lie. */
static void split_rows(const mf_device *device, mf_cuda_attention *p, float *partial)
{
    const int64_t blocks = p->num_tokens * p->num_kv_heads * (p->q_tail ? (p->num_heads + 15) / 16 : 1);
    const int64_t wanted = 2 * mf_cuda_state_of(device)->gpu.num_multiprocessors;
    p->num_splits = (int32_t)min_i64(min_i64(p->most_spans, (wanted + blocks - 1) / blocks), MAX_SPLITS);
    p->partial = partial;
}

static int launch_mma_attention(const mf_device *device, const mf_cuda_attention *p)
{
    const mf_cuda_stream stream = mf_cuda_state_of(device)->stream;
    if (is_few_rows(p)) {
        if (!p->q_tail) {
            return mf_cuda_launch_attention_decode(p, stream);
        }
        const int code = mf_cuda_launch_attention_mla(p, 1, stream);
        return code != 0 ? code : mf_cuda_launch_attention_merge_pieces(p, stream);
    }
    if (takes_hopper_attention(device, p)) {
        return p->q_tail ? mf_cuda_launch_attention_mla_hopper(p, stream)
                         : mf_cuda_launch_attention_hopper(p, NULL, stream);
    }
    return p->q_tail ? mf_cuda_launch_attention_mla(p, 0, stream) : mf_cuda_launch_attention_prefill(p, stream);
}

static void run_attention(mf_device *device, mf_cuda_attention *p, float *partial)
{
    split_rows(device, p, partial);
    if (takes_mma_attention(device, p)) {
        done(device, launch_mma_attention(device, p), "attention");
        return;
    }
    const bool fits = may_split(p->num_tokens, p->num_heads, p->most_spans, p->v_dim);
    p->num_splits = fits ? p->num_splits : 1;
    const int64_t bytes = mf_cuda_attention_plain_shared(0, p->head_dim, p->v_dim);
    done(device, mf_cuda_launch_attention_plain(p, bytes, stream_of(device)), "attention");
    if (p->num_splits > 1) {
        done(device, mf_cuda_launch_attention_merge(p, stream_of(device)), "attention's merge");
    }
}

static size_t gqa_scratch_floats(const mf_device *device, const mf_gqa_args *args)
{
    (void)device;
    return partial_room(args->num_tokens, args->num_heads, num_spans(&args->kv), args->v_head_dim) + 1;
}

static mf_cuda_attention gqa_of(const mf_gqa_args *args)
{
    mf_cuda_attention p = { .num_tokens = args->num_tokens,
                            .num_heads = (int32_t)args->num_heads,
                            .num_kv_heads = (int32_t)args->num_kv_heads,
                            .head_dim = (int32_t)args->head_dim,
                            .v_dim = (int32_t)args->v_head_dim,
                            .value_at = (int32_t)(args->num_kv_heads * args->head_dim),
                            .value_step = (int32_t)args->v_head_dim,
                            .window = args->window,
                            .chunk = args->chunk,
                            .sinks = args->sinks,
                            .q = args->q,
                            .q_stride = args->num_heads * args->head_dim,
                            .q_head_stride = args->head_dim,
                            .out = args->out,
                            .scale = args->softmax_scale };
    set_view(&p, &args->kv);
    return p;
}

static void gqa_attention(mf_device *device, const mf_gqa_args *args)
{
    if (args->num_tokens > 0 && begin(device)) {
        mf_cuda_attention p = gqa_of(args);
        run_attention(device, &p, args->scratch);
    }
}

/* Many rows on Hopper whose products end as queries and as rows of the cache. */
static bool gqa_project(mf_device *device, const mf_add_norm_call *norm, const mf_linear_call *call,
                        const mf_gqa_prepare_call *prepare, const mf_gqa_args *args)
{
    enum { HEAD = 128, LEAST = 512 }; /* columns: no run of k is empty */
    const mf_cuda_attention a = gqa_of(args);
    const int64_t rows[3] = { args->num_heads * HEAD, args->num_kv_heads * HEAD, args->num_kv_heads * HEAD };
    if (args->num_tokens <= MF_CUDA_STREAM_TOKENS || !takes_mma_attention(device, &a) || is_few_rows(&a) ||
        !takes_hopper_attention(device, &a) || args->head_dim != HEAD || args->v_head_dim != HEAD || call->num != 3 ||
        call->act_dtype != MF_BF16 || !on16(norm ? norm->rounded : call->rounded) ||
        (norm && norm->rounded_dtype != MF_BF16) || call->w[0]->k < LEAST || (norm && norm->n != call->w[0]->k) ||
        (prepare->rope_dim != 0 && (prepare->rope_dim != HEAD || prepare->rope_pair)) || !on16(prepare->cos_sin) ||
        !on16(prepare->q_norm) || !on16(prepare->k_norm)) {
        return false;
    }
    const void *rounded = norm ? norm->rounded : call->rounded;
    mf_cuda_linear p = { .num = 3, .num_tokens = call->num_tokens, .parts = 1, .runs = mf_cuda_linear_runs(call->w[0]->k) };
    for (int i = 0; i < 3; i++) {
        if (!rounded || call->w[i]->n != rows[i] || call->w[i]->k != call->w[0]->k) {
            return false;
        }
        p.w[i] = seen_matrix(call->w[i]);
        p.bias[i] = call->bias[i];
    }
    mf_cuda_linear_path path;
    if (!mf_cuda_takes_wgmma_together(device, call, &p, &path)) {
        return false;
    }
    if (!begin(device)) {
        return true; /* told by a later call */
    }
    if (norm) {
        mf_cuda_norm_rounded(device, norm, NULL);
    }
    p.x = rounded;
    p.x_stride = call->w[0]->k;
    const mf_cuda_gqa_prepare r = prepare_of(prepare);
    if (mf_cuda_make_bf16(device, &p, path)) {
        done(device,
             mf_cuda_linear_hopper_heads(&mf_cuda_state_of(device)->gpu, &p, &r,
                                         mf_cuda_attention_scale(args->softmax_scale), stream_of(device)),
             "queries, keys and values");
    }
    return true;
}

/* Keys and values are cached first.  Many rows on Hopper: attention makes its queries, or gqa_project has. */
static bool gqa_at_once(mf_device *device, const mf_gqa_prepare_call *prepare, const mf_gqa_args *args,
                        const mf_matrix *reader, mf_dtype act_dtype, bool *is_rounded)
{
    mf_cuda_attention p = gqa_of(args);
    if (!takes_mma_attention(device, &p) || (!is_few_rows(&p) && !takes_hopper_attention(device, &p))) {
        return false;
    }
    if (!begin(device)) {
        return true; /* told by a later call */
    }
    *is_rounded = act_dtype == MF_BF16 && mf_cuda_takes_bf16_inputs(device, reader) && on16(args->out);
    p.rounded = *is_rounded ? (uint16_t *)args->out : NULL;
    if (!prepare) {
        p.q_is_rounded = 1;
        done(device, mf_cuda_launch_attention_hopper(&p, NULL, stream_of(device)), "attention");
        return true;
    }
    mf_cuda_gqa_prepare r = prepare_of(prepare);
    mf_cuda_row row;
    if (mf_cuda_plan_row(device, &p, &r, &row)) {
        done(device, mf_cuda_launch_attention_row(&row, stream_of(device)), "attention");
        return true;
    }
    r.leaves_queries = !is_few_rows(&p);
    done(device, mf_cuda_launch_gqa_prepare(&r, stream_of(device)), "keys");
    if (is_few_rows(&p)) {
        run_attention(device, &p, args->scratch);
        return true;
    }
    done(device, mf_cuda_launch_attention_hopper(&p, &r, stream_of(device)), "attention");
    return true;
}

/* Rows that go through MLA together: their latent queries and results share the scratch. */
static int64_t mla_rows(const mf_mla_args *args)
{
    const int64_t row = args->num_heads * 2 * args->kv_lora_rank * 4, most = MAX_MLA_BYTES / row;
    return min_i64(args->num_tokens, most > 0 ? most : 1);
}

static size_t mla_scratch_floats(const mf_device *device, const mf_mla_args *args)
{
    (void)device;
    const int64_t rows = mla_rows(args);
    return (size_t)(rows * args->num_heads * 2 * args->kv_lora_rank) +
           partial_room(rows, args->num_heads, num_spans(&args->kv), args->kv_lora_rank) + 1;
}

/* The v rows of kv_b times each head's latent result, which is `rounded` already where that is not NULL. */
static void unabsorb(mf_device *device, const mf_mla_args *args, const float *latent, const uint16_t *rounded,
                     int64_t num_tokens, float *out)
{
    mf_cuda_linear p = { .num = 1,
                         .w = { seen_matrix(args->kv_b) },
                         .out = { out },
                         .out_stride = { args->num_heads * args->v_head_dim },
                         .x = latent,
                         .x_stride = args->num_heads * args->kv_lora_rank,
                         .x_is_wide = on16(latent) && args->kv_lora_rank % 4 == 0,
                         .parts = 1,
                         .num_tokens = num_tokens,
                         .num_batches = args->num_heads,
                         .batch_rows = args->qk_nope_head_dim + args->v_head_dim,
                         .first_row = args->qk_nope_head_dim,
                         .rows = args->v_head_dim,
                         .x_step = args->kv_lora_rank,
                         .out_step = args->v_head_dim };
    if (args->kv.dtype == MF_BF16 &&
        mf_cuda_takes_mma(args->kv_b, MF_BF16)) { /* latent results may be rounded where the cache is */
        mf_cuda_launch_mma(device, &p, rounded);
    } else {
        done(device, mf_cuda_launch_linear_plain(&p, stream_of(device)), "latent results");
    }
}

/* Queries into the latent space through the tensor cores, for attention's own: sizes decide, never the batch. */
static bool takes_mma_absorb(const mf_cuda_absorb *p, const mf_matrix *kv_b)
{
    return p->rounded && mf_cuda_takes_mma(kv_b, MF_BF16) && (p->nope == 64 || p->nope == 128 || p->nope == 192) &&
           ((uintptr_t)p->q & 7) == 0 && p->q_stride % 2 == 0 && p->q_head_stride % 2 == 0;
}

/* Some rows of a batch on their way through the latent space. */
typedef struct latent_rows {
    mf_cuda_attention attention;
    mf_cuda_absorb absorb;
    float *partial;
    bool is_mma, is_decode;
} latent_rows;

static latent_rows latent_rows_of(const mf_device *device, const mf_mla_args *args, int64_t t, int64_t count)
{
    const int64_t rows = mla_rows(args), heads = args->num_heads, rank = args->kv_lora_rank;
    const int64_t nope = args->qk_nope_head_dim, tail = args->qk_rope_head_dim;
    float *q_lat = args->scratch, *o_lat = q_lat + rows * heads * rank;
    const float *q = args->q + t * heads * (nope + tail);
    latent_rows r = { .attention = { .num_tokens = count,
                                     .num_heads = (int32_t)heads,
                                     .num_kv_heads = 1,
                                     .head_dim = (int32_t)(rank + tail),
                                     .v_dim = (int32_t)rank,
                                     .q = q_lat,
                                     .q_stride = heads * rank,
                                     .q_head_stride = rank,
                                     .q_tail = q + nope,
                                     .tail_stride = heads * (nope + tail),
                                     .tail_head_stride = nope + tail,
                                     .tail_dim = (int32_t)tail,
                                     .out = o_lat,
                                     .scale = args->softmax_scale },
                      .absorb = { .kv_b = seen_matrix(args->kv_b),
                                  .q = q,
                                  .q_stride = heads * (nope + tail),
                                  .q_head_stride = nope + tail,
                                  .num_tokens = count,
                                  .num_heads = (int32_t)heads,
                                  .nope = (int32_t)nope,
                                  .v_dim = (int32_t)args->v_head_dim,
                                  .rank = (int32_t)rank,
                                  .out = q_lat,
                                  .scale = (float)((double)args->softmax_scale * 1.4426950408889634) },
                      .partial = o_lat + rows * heads * rank };
    set_view(&r.attention, &args->kv);
    r.attention.sequence += t;
    r.attention.position += t;
    r.is_mma = takes_mma_attention(device, &r.attention);
    r.is_decode = r.is_mma && is_few_rows(&r.attention);
    r.attention.rounded = r.is_mma && mf_cuda_takes_mma(args->kv_b, MF_BF16) ? (uint16_t *)o_lat : NULL;
    r.absorb.rounded = r.is_mma ? (uint16_t *)q_lat : NULL;
    if (r.is_decode) {
        r.absorb.tail = (int32_t)tail;
        r.attention.q_stride = heads * (rank + tail);
        r.attention.q_head_stride = rank + tail;
    }
    return r;
}

static void mla_attention(mf_device *device, const mf_mla_args *args)
{
    if (args->num_tokens == 0 || !begin(device)) {
        return;
    }
    const int64_t rows = mla_rows(args);
    for (int64_t t = 0; t < args->num_tokens; t += rows) {
        const int64_t count = min_i64(rows, args->num_tokens - t);
        latent_rows r = latent_rows_of(device, args, t, count);
        done(device,
             takes_mma_absorb(&r.absorb, args->kv_b) ? mf_cuda_launch_absorb_mma(&r.absorb, NULL, stream_of(device))
                                                     : mf_cuda_launch_absorb(&r.absorb, stream_of(device)),
             "latent queries");
        run_attention(device, &r.attention, r.partial);
        unabsorb(device, args, r.attention.out, r.attention.rounded, count,
                 args->out + t * args->num_heads * args->v_head_dim);
    }
}

/* Few rows; of one, whose pieces are few, in three launches: several blocks merge them, each for itself. */
static bool mla_at_once(mf_device *device, const mf_mla_prepare_call *prepare, const mf_mla_args *args,
                        const mf_matrix *reader, mf_dtype act_dtype, bool *is_rounded)
{
    enum { MOST_PIECES = 64 };
    latent_rows r = latent_rows_of(device, args, 0, args->num_tokens);
    if (args->num_tokens == 0 || !r.is_decode || !takes_mma_absorb(&r.absorb, args->kv_b) ||
        args->qk_rope_head_dim != MF_CUDA_MLA_TAIL || mla_rows(args) < args->num_tokens) {
        return false;
    }
    if (!begin(device)) {
        return true; /* told by a later call */
    }
    const mf_cuda_mla_prepare latents = latents_of(prepare);
    done(device, mf_cuda_launch_absorb_mma(&r.absorb, &latents, stream_of(device)), "latent queries");
    if (args->num_tokens > 1 || r.attention.most_spans > MOST_PIECES || args->v_head_dim % 32 != 0) {
        run_attention(device, &r.attention, r.partial);
        unabsorb(device, args, r.attention.out, r.attention.rounded, args->num_tokens, args->out);
        return true;
    }
    *is_rounded = act_dtype == MF_BF16 && mf_cuda_takes_bf16_inputs(device, reader) && on16(args->out);
    const mf_cuda_mla_values values = { .kv_b = seen_matrix(args->kv_b),
                                        .nope = (int32_t)args->qk_nope_head_dim,
                                        .v_dim = (int32_t)args->v_head_dim,
                                        .out = args->out,
                                        .rounded = *is_rounded ? (uint16_t *)args->out : NULL };
    split_rows(device, &r.attention, r.partial);
    done(device, mf_cuda_launch_attention_mla(&r.attention, 1, stream_of(device)), "attention");
    done(device, mf_cuda_launch_mla_values(&r.attention, &values, stream_of(device)), "latent results");
    return true;
}

/* ---- gated delta net ---- */

static size_t delta_net_scratch_floats(const mf_device *device, const mf_delta_net_args *args)
{
    (void)device;
    return (size_t)(args->num_tokens * mf_delta_net_channels(args)) + 1;
}

static void delta_net(mf_device *device, const mf_delta_net_args *args)
{
    if (args->num_tokens == 0 || args->state.num_runs == 0 || !begin(device)) {
        return;
    }
    const mf_cuda_delta_net p = { .num_tokens = args->num_tokens,
                                  .num_k_heads = (int32_t)args->num_k_heads,
                                  .num_v_heads = (int32_t)args->num_v_heads,
                                  .k_dim = (int32_t)args->k_dim,
                                  .v_dim = (int32_t)args->v_dim,
                                  .conv_size = (int32_t)args->conv_size,
                                  .norm_eps = args->norm_eps,
                                  .qkvz = args->qkvz,
                                  .ba = args->ba,
                                  .conv = args->conv,
                                  .a_log = args->a_log,
                                  .dt_bias = args->dt_bias,
                                  .norm = args->norm,
                                  .states = args->state.states,
                                  .slot_floats = args->state.slot_floats,
                                  .num_runs = (int32_t)args->state.num_runs,
                                  .rows = args->state.rows,
                                  .start = args->state.start,
                                  .slot = args->state.slot,
                                  .is_new = args->state.is_new,
                                  .out = args->out,
                                  .y = args->scratch };
    done(device, mf_cuda_launch_delta_net(&p, stream_of(device)), "delta net");
}

/* ---- tables ---- */

void mf_cuda_add_dense_ops(mf_device_ops *ops)
{
    mf_cuda_add_element_ops(ops);
    mf_cuda_add_linear_ops(ops);
    ops->mla_scratch_floats = mla_scratch_floats;
    ops->mla_attention = mla_attention;
    ops->gqa_scratch_floats = gqa_scratch_floats;
    ops->gqa_attention = gqa_attention;
    ops->delta_net_scratch_floats = delta_net_scratch_floats;
    ops->delta_net = delta_net;
    ops->add_norm = add_norm;
    ops->gqa_prepare = gqa_prepare;
    ops->gqa_project = gqa_project;
    ops->gqa_at_once = gqa_at_once;
    ops->mla_prepare = mla_prepare;
    ops->mla_at_once = mla_at_once;
}
