/* ops.h - the contract between a device's backend and everything above it.
 *
 * api_*.c validates arguments once, resolves defaults into the *_call structs below and goes through mf_device_ops.  A
 * backend (ref/, cpu/, cuda/) fills that table and may trust every field.  The MoE operations are public
 * (moefuse.h); the dense operations in the second half exist for model/forward.c and take f32 activations.
 *
 * Every result row depends on its own inputs alone, summed in an order fixed by (format, sizes): not on T, on the row's
 * place, on other rows or on the number of threads. */
#ifndef MF_KERNELS_OPS_H
#define MF_KERNELS_OPS_H

#include <stdbool.h>

#include "base/error.h"
#include "base/threads.h"
#include "kernels/pick.h"
#include "moefuse.h"

/* ---- validated calls of the MoE operations ---- */

typedef struct mf_gate_call {
    mf_gate_config cfg;        /* all defaults resolved; eps and factor rounded to f32 below */
    const mf_gate_args *args;  /* tensors checked: dtype, shape, stride, presence */
    int64_t num_tokens;        /* T */
    int64_t num_valid_tokens;  /* from the tensor, clamped to [0, T]; rows at or past it are padded */
    int32_t num_columns;       /* C = K + S */
    int32_t row_width;         /* N = E + Z */
    int32_t map_copies;        /* columns of expert_map; 0 = no map */
    int64_t hash_rows;         /* V */
    float renorm_eps, routed_scaling_factor;
} mf_gate_call;

typedef struct mf_align_call {
    const mf_align_args *args;
    int64_t num_tokens, num_columns, block_size, num_slots;
    int64_t capacity;          /* entries of sorted_token_ids to fill */
    void *workspace;
} mf_align_call;

struct mf_experts {
    mf_device *device;
    int64_t num_slots, hidden_size;
    int64_t max_intermediate_size; /* the widest slot */
    mf_dtype act_dtype;
    mf_act_quant act_quant;
    mf_slot *slots;                /* [num_slots], owned */
    uint32_t quants13, quants2;    /* bit q set: some slot's w13 / w2 takes activations quantised by mf_quant q */
    void *backend;                 /* what ops->experts_open made; NULL: nothing */
};

typedef struct mf_experts_call {
    const mf_experts *experts;
    const mf_experts_args *args;
    int64_t num_tokens, num_columns;
    void *workspace;               /* 64-byte aligned part of the caller's, backend's size */
} mf_experts_call;

typedef struct mf_sum_reduce_call {
    const mf_sum_reduce_args *args;
    int64_t num_tokens, num_columns, hidden_size;
    int64_t num_valid_tokens;
} mf_sum_reduce_call;

/* What the layer needs of each row between its gate and its combine, for a device whose memory the host cannot read.
 * Absent outputs are not wanted.  The values are those of the loops in api_layer.c. */
typedef struct mf_layer_rows_call {
    const mf_gate_args *gate;      /* resolved: its outputs are written */
    const mf_gate_config *config;
    int64_t num_tokens, num_columns, num_routed, num_shared, hidden_size;
    mf_tensor x;
    mf_tensor shared_gate;         /* f32 [T]; with shared_weights */
    mf_tensor row_valid;           /* u8 [T] */
    mf_tensor shared_ids;          /* i32 [T, S] */
    mf_tensor shared_weights;      /* f32 [T, S] */
    mf_tensor input_scale;         /* f32 [T, C], with combine_weights f32 [T, C] */
    mf_tensor combine_weights;
    mf_tensor hidden;              /* f32 [T, H]: x widened */
} mf_layer_rows_call;

/* Many values of one distribution: weights_dummy.c's, made where they will lie.  Value i of `count` belongs to chunk
 * i / chunk, whose generator (base/random.h) starts at mf_random_mix(seed + chunk number). */
typedef struct mf_fill_call {
    void *data;
    int64_t count, chunk;
    uint64_t seed;
    int32_t size;           /* bytes of a value: 1, 2 or 4 */
    bool is_bytes;          /* the top byte of each random number; else codes[sum of four random bytes] */
    const uint32_t *codes;  /* [1021], in the host's memory */
} mf_fill_call;

/* Memory and order of a device of its own: pointers in tensors, slots and workspaces are then the device's.  Operations run
 * in the order of its stream and return before they are done. */
typedef struct mf_device_memory_ops {
    mf_status (*alloc)(mf_device *device, size_t bytes, void **out, mf_error *err);
    void (*release)(mf_device *device, void *block);
    mf_status (*copy)(mf_device *device, void *to, const void *from, size_t bytes, mf_error *err); /* waits */
    mf_status (*synchronize)(mf_device *device, mf_error *err);
    mf_status (*set_stream)(mf_device *device, void *stream, mf_error *err);
    void *(*stream)(const mf_device *device);

    /* Bytes that nobody has, and all, of the device. */
    mf_status (*info)(mf_device *device, int64_t *free_bytes, int64_t *total_bytes, mf_error *err);
    /* Memory of the host that copies reach without a stop in between. */
    mf_status (*alloc_host)(mf_device *device, size_t bytes, void **out, mf_error *err);
    void (*release_host)(mf_device *device, void *block);
    /* In the stream's order; does not wait.  The host's side is alloc_host's. */
    mf_status (*copy_async)(mf_device *device, void *to, const void *from, size_t bytes, mf_error *err);
    mf_status (*zero)(mf_device *device, void *block, size_t bytes, mf_error *err); /* does not wait */
    mf_status (*fill)(mf_device *device, const mf_fill_call *call, mf_error *err); /* does not wait */

    /* Optional: copy_async and zero (other memory) in one operation that may be noted, for little, either way. */
    mf_status (*carry)(mf_device *device, void *to, const void *from, size_t bytes, void *zeros, size_t zero_bytes,
                       mf_error *err);

    /* Between begin and end operations are noted and not run; what was noted is then run as often as wanted, with the same
     * pointers and sizes.  end gives NULL when the noting failed. */
    mf_status (*graph_begin)(mf_device *device, mf_error *err);
    mf_status (*graph_end)(mf_device *device, void **graph, int64_t *num_launches, mf_error *err);
    mf_status (*graph_run)(mf_device *device, void *graph, mf_error *err);
    void (*graph_close)(mf_device *device, void *graph);

    /* Between open and close: mark notes in the stream that a part (part.h) begins; take waits and adds the seconds from each
     * mark to the next to its part. */
    mf_status (*marks_open)(mf_device *device, mf_error *err);
    void (*mark)(mf_device *device, int part);
    mf_status (*marks_take)(mf_device *device, double *seconds, mf_error *err);
    void (*marks_close)(mf_device *device);
} mf_device_memory_ops;

/* ---- dense operations, f32 activations ---- */

/* Several products of one input in one call; what `linear` would give for each. */
enum { MF_LINEAR_MOST = 4 };

typedef struct mf_linear_call {
    int32_t num;
    const mf_matrix *w[MF_LINEAR_MOST];
    const float *bias[MF_LINEAR_MOST]; /* or NULL */
    float *out[MF_LINEAR_MOST];
    int64_t out_stride[MF_LINEAR_MOST];
    mf_dtype act_dtype;
    const float *x;                    /* [T, k] */
    int64_t x_stride;
    const void *rounded;               /* optional: x in act_dtype already, [T, k] without gaps */
    int64_t num_tokens;
} mf_linear_call;

enum { MF_NORM_LINEAR_ROWS = 64 };

/* acc += add, then the norm of acc. */
typedef struct mf_add_norm_call {
    float *acc;          /* [T, n] */
    const float *add;    /* [T, n] or NULL: nothing is added */
    int64_t num_tokens, n;
    const float *weight; /* [n] */
    float eps;
    float *out;          /* [T, n] */
    void *rounded;       /* optional: the result rounded to rounded_dtype too, [T, n] */
    mf_dtype rounded_dtype;
} mf_add_norm_call;

/* Rows of a batch and where their keys lie.  The cache of one layer is [num_blocks][block_size][row_size] of dtype; row r of
 * the batch is token `position[r]` of sequence `sequence[r]`, whose i-th block is block_table[sequence * max_blocks + i].
 * With a bf16 cache a backend may also round what meets cached rows, and what enters kv_b, to bf16: queries, softmax weights
 * (their sum is that of the unrounded ones), latent results. */
typedef struct mf_kv_view {
    void *cache;                /* this layer's part */
    mf_dtype dtype;             /* MF_F32 or MF_BF16 */
    int64_t row_size;           /* values per token: kv_lora_rank + qk_rope_head_dim for MLA */
    int64_t block_size;         /* tokens per block */
    const int32_t *block_table; /* [num_sequences, max_blocks] */
    int64_t max_blocks;
    const int32_t *sequence;    /* [T] */
    const int32_t *position;    /* [T] */
    int64_t max_context;        /* largest position + 1 of the batch: sizes score rows */
} mf_kv_view;

/* Tokens chosen from rows of logits: pick.h. */
typedef struct mf_pick_call {
    float *logits;            /* [num_rows, n] without gaps */
    int64_t num_rows, n, num_ids; /* ids below num_ids may be chosen */
    const mf_pick *picks;     /* [num_rows] */
    mf_pick_change *changes;
    mf_picked *picked;        /* [num_rows] */
    void *workspace;
} mf_pick_call;

/* Multi-head latent attention over the compressed cache, in the absorbed form:
 *   c_s = cache row [kv_lora_rank] (normed latent), p_s = its last qk_rope_head_dim floats (rotated key)
 *   q_lat = W_UK^T q_nope;  score_s = scale * (q_lat . c_s + q_rope . p_s), s = 0..position
 *   o = W_UV (sum_s softmax(score)_s c_s)
 * kv_b [heads * (nope + v), kv_lora_rank]: per head the nope rows W_UK, then the v rows W_UV. */
typedef struct mf_mla_args {
    int64_t num_tokens, num_heads;
    int64_t qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank;
    float softmax_scale;
    const float *q;             /* [T, heads, nope + rope], rope part rotated */
    const mf_matrix *kv_b;
    mf_kv_view kv;
    float *out;                 /* [T, heads, v] */
    float *scratch;             /* mla_scratch_floats() */
} mf_mla_args;

/* Grouped-query attention (num_kv_heads = num_heads: multi-head) over a cache whose rows hold the rotated keys of all
 * kv heads, then their values: row_size = num_kv_heads * (head_dim + v_head_dim).  Query head h reads kv head
 * h / (num_heads / num_kv_heads):
 *   score_s = scale * (q . k_s), s = first..position;  o = sum_s softmax(score)_s v_s
 * first = mf_gqa_first: 0 without window and chunk.  Rows before it are not weighed, whatever they hold.
 * A sink is one more score, without a value: it joins the softmax's maximum and sum.
 * The order of sums depends on the position alone, so chunks of a prompt and single tokens give the same bits. */
typedef struct mf_gqa_args {
    int64_t num_tokens, num_heads, num_kv_heads;
    int64_t head_dim, v_head_dim;
    float softmax_scale;
    int64_t window;             /* positions > position - window are seen; 0 = all */
    int64_t chunk;              /* positions of the same multiple of it are seen; 0 = all */
    const float *sinks;         /* [heads] or NULL */
    const float *q;             /* [T, heads, head_dim], rotated */
    mf_kv_view kv;
    float *out;                 /* [T, heads, v_head_dim] */
    float *scratch;             /* gqa_scratch_floats() */
} mf_gqa_args;

/* What stands between grouped-query attention's projections and attention: norms of heads, rope, the cache's rows. */
typedef struct mf_gqa_prepare_call {
    int64_t num_tokens, num_heads, num_kv_heads, head_dim, v_head_dim;
    float *q;                   /* [T, heads, head_dim], in place */
    float *rows;                /* [T, row_size]: keys, then values; scratch afterwards */
    const float *q_norm, *k_norm; /* [head_dim], of each head; NULL: none */
    float eps;
    int64_t rope_dim;           /* 0: none */
    bool rope_pair, norm_after_rope;
    const float *cos_sin;
    mf_kv_view kv;
} mf_gqa_prepare_call;

/* The same for multi-head latent attention: the latent's norm, rope of queries and keys, the cache's rows. */
typedef struct mf_mla_prepare_call {
    int64_t num_tokens, num_heads, qk_nope_head_dim, qk_rope_head_dim, kv_lora_rank;
    float *q;                   /* [T, heads, nope + rope], its rope part in place */
    const float *rows;          /* [T, rank + rope] */
    const float *norm;          /* [rank] */
    float eps;
    bool rope_pair;
    const float *cos_sin;
    mf_kv_view kv;
} mf_mla_prepare_call;

/* The first position that a token at `position` sees. */
static inline int64_t mf_gqa_first(int64_t window, int64_t chunk, int64_t position)
{
    const int64_t by_window = window > 0 && position >= window ? position - window + 1 : 0;
    const int64_t by_chunk = chunk > 0 ? position / chunk * chunk : 0;
    return by_window > by_chunk ? by_window : by_chunk;
}

/* The rows of a batch by sequence, and what a layer without keys and values keeps of each sequence's past instead: a state of
 * f32 that its rows change one after the other. */
typedef struct mf_state_view {
    float *states;             /* this layer's part: that of slot i begins at states + i * slot_floats */
    int64_t slot_floats;
    int64_t num_runs;          /* sequences that have rows in this batch */
    const int32_t *rows;       /* [T]: run i is rows[start[i]] .. rows[start[i + 1] - 1], in ascending positions */
    const int32_t *start;      /* [num_runs + 1] */
    const int32_t *slot;       /* [num_runs], each another one */
    const uint8_t *is_new;     /* [num_runs]: the state before the first row is zeros, whatever the slot holds */
} mf_state_view;

/* Gated delta net (Qwen3-Next's linear attention), defined token by token, so that the bits do not depend on how a text is
 * cut.  For each row in its sequence's order:
 *   (q, k, v) = silu(causal depthwise convolution of the last conv_size rows' q, k, v), no bias
 *   q, k of each key head: x / sqrt(sum x^2 + 1e-6); q also / sqrt(k_dim)
 *   beta = sigmoid(b), decay = exp(-exp(a_log) * softplus(a + dt_bias)), one of each value head
 *   S [k_dim, v_dim] of each value head: S *= decay;  S += k (beta * (v - k^T S))^T;  o = q^T S
 *   out = rms_norm(o) * norm * silu(z)
 * Value head h reads key head h / (num_v_heads / num_k_heads).  A slot holds S [num_v_heads, k_dim, v_dim], then the inputs
 * of the convolution at the last conv_size - 1 positions, the oldest first, channels as in `conv`. */
typedef struct mf_delta_net_args {
    int64_t num_tokens, num_k_heads, num_v_heads, k_dim, v_dim;
    int64_t conv_size;         /* >= 1 */
    float norm_eps;
    const float *qkvz;         /* [T, k heads, 2 * k_dim + 2 * r * v_dim], r value heads per key head: q, k, v.., z.. */
    const float *ba;           /* [T, k heads, 2 * r]: b.., a.. */
    const float *conv;         /* [channels, conv_size]; channels: q of all key heads, k of all, v of all value heads */
    const float *a_log;        /* [num_v_heads] */
    const float *dt_bias;      /* [num_v_heads] */
    const float *norm;         /* [v_dim] */
    mf_state_view state;
    float *out;                /* [T, num_v_heads, v_dim] */
    float *scratch;            /* delta_net_scratch_floats() */
} mf_delta_net_args;

static inline int64_t mf_delta_net_channels(const mf_delta_net_args *args)
{
    return 2 * args->num_k_heads * args->k_dim + args->num_v_heads * args->v_dim;
}

/* Floats of a slot that hold S. */
static inline int64_t mf_delta_net_matrix_floats(const mf_delta_net_args *args)
{
    return args->num_v_heads * args->k_dim * args->v_dim;
}

/* Floats of a slot: whole cache lines. */
static inline int64_t mf_delta_net_state_floats(const mf_delta_net_args *args)
{
    const int64_t floats = mf_delta_net_matrix_floats(args) + (args->conv_size - 1) * mf_delta_net_channels(args);
    return (floats + 15) / 16 * 16;
}

typedef struct mf_device_ops {
    const char *name;
    void (*close)(mf_device *device); /* frees backend state; may be NULL */

    const mf_device_memory_ops *memory; /* NULL: the process's own */
    int64_t layer_chunk_tokens;         /* tokens that go through experts and combine together; 0 = api_layer.c's */

    mf_status (*gate)(mf_device *device, const mf_gate_call *call, mf_error *err);
    /* NULL: the reference's steps on the host. */
    mf_status (*gate_unfused)(mf_device *device, const mf_gate_call *call, void *workspace, mf_error *err);
    mf_status (*layer_rows)(mf_device *device, const mf_layer_rows_call *call, mf_error *err); /* NULL: on the host */
    /* After the table was checked: what the backend keeps of it, in experts->backend.  Both or neither. */
    mf_status (*experts_open)(mf_device *device, mf_experts *experts, mf_error *err);
    void (*experts_close)(mf_experts *experts);
    mf_status (*align)(mf_device *device, const mf_align_call *call, mf_error *err);
    size_t (*experts_workspace_bytes)(const mf_experts *experts, int64_t num_tokens, int64_t num_columns);
    mf_status (*experts)(mf_device *device, const mf_experts_call *call, mf_error *err);
    mf_status (*sum_reduce)(mf_device *device, const mf_sum_reduce_call *call, mf_error *err);
    /* experts, then sum_reduce over their outputs, without [T, C, H] in between: call->args->y is absent; sum's x has
     * dtype (y_dtype) and shape but no data.  NULL: the backend has only the two above.  Same bits as these. */
    size_t (*experts_combine_workspace_bytes)(const mf_experts *experts, int64_t num_tokens, int64_t num_columns,
                                              mf_dtype y_dtype);
    mf_status (*experts_combine)(mf_device *device, const mf_experts_call *call, const mf_sum_reduce_call *sum,
                                 mf_error *err);

    /* out[t] = value of row ids[t] of the table; ids are in range (the caller checks). */
    void (*embed)(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride);
    /* out = x / sqrt(mean(x^2) + eps) * weight, f32; the mean's sum has a fixed order.  out may be x. */
    void (*rms_norm)(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride);
    /* out[t, :] = w . x[t, :] (+ bias); any mf_format, weight only.  x is rounded to act_dtype (f32, bf16) first. */
    void (*linear)(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride);
    /* Rotates num_vectors vectors of size dim per row in place: vector v of row t starts at x + t*row_stride +
     * v*vector_stride.  cos_sin: [positions][dim/2][2].  pair: (2i, 2i+1); else (i, i + dim/2). */
    void (*rope)(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride, int64_t dim,
                 bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens);
    /* Puts rows [T, row_size] into their places in the cache, rounded to its dtype. */
    void (*kv_write)(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride, int64_t num_tokens);
    size_t (*mla_scratch_floats)(const mf_device *device, const mf_mla_args *args);
    void (*mla_attention)(mf_device *device, const mf_mla_args *args);
    size_t (*gqa_scratch_floats)(const mf_device *device, const mf_gqa_args *args);
    void (*gqa_attention)(mf_device *device, const mf_gqa_args *args);
    size_t (*delta_net_scratch_floats)(const mf_device *device, const mf_delta_net_args *args);
    void (*delta_net)(mf_device *device, const mf_delta_net_args *args);
    /* x[r, :] *= sigmoid(gate[r, :]), n columns of num_rows rows. */
    void (*sigmoid_gate)(mf_device *device, float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                         int64_t num_rows, int64_t n);
    /* out[i] = x[i] rounded to dtype: bf16 or f16. */
    void (*convert)(mf_device *device, const float *x, int64_t n, mf_dtype dtype, void *out);
    /* Every x[i] into [-limit, limit]; a NaN stays. */
    void (*clip)(mf_device *device, float *x, int64_t n, float limit);
    /* x[t, 0..n) *= factors[position[t]], rows without gaps. */
    void (*scale_rows)(mf_device *device, float *x, int64_t n, const float *factors, const int32_t *position,
                       int64_t num_tokens);
    /* acc += x, n floats */
    void (*add)(mf_device *device, float *acc, const float *x, int64_t n);

    /* Optional, for a device where each call costs: the same bits as the operations above one by one. */
    void (*linear_many)(mf_device *device, const mf_linear_call *call);
    void (*add_norm)(mf_device *device, const mf_add_norm_call *call);
    /* linear_many of the norm's result, which is not written: acc + add goes to acc_out (acc itself, or elsewhere and acc stays; then
     * it has room for MF_NORM_LINEAR_ROWS, the most that this does elsewhere), norm->rounded is written.
     * false: nothing was done, add_norm and linear_many are to be called; the bits are theirs. */
    bool (*norm_linear)(mf_device *device, const mf_add_norm_call *norm, float *acc_out, const mf_linear_call *call);
    /* Optional: out += the product of one matrix, as add of linear_many's result.  false: nothing was done. */
    bool (*linear_add)(mf_device *device, const mf_linear_call *call);
    /* Both or none.  The norm (nothing added) of what the next combine writes to acc: the combine may take it along.  readers: the
     * matrices of the products of it (num 0: anybody may read it); norm->out is not written where they read `rounded` alone.
     * took_norm: whether it did; the offer is over. */
    void (*offer_norm)(mf_device *device, const mf_add_norm_call *norm, const mf_linear_call *readers);
    bool (*took_norm)(mf_device *device);
    void (*gqa_prepare)(mf_device *device, const mf_gqa_prepare_call *call);
    /* add_norm (of acc in place, where `norm` is not NULL; its f32 result is not written), linear_many of the result (queries, keys
     * and values) and gqa_prepare in one: the cache's rows are there, and the queries as the device's gqa_at_once takes them.
     * args: what gqa_at_once will be called with, prepare NULL.  false: nothing was done. */
    bool (*gqa_project)(mf_device *device, const mf_add_norm_call *norm, const mf_linear_call *call,
                        const mf_gqa_prepare_call *prepare, const mf_gqa_args *args);
    /* gqa_prepare and gqa_attention in one; what prepare would leave in q and rows is not written.  reader: the product that
     * reads the result next, with inputs rounded to act_dtype; is_rounded: the result lies in out as bf16, rows without gaps,
     * for linear_many.  false: nothing was done. */
    bool (*gqa_at_once)(mf_device *device, const mf_gqa_prepare_call *prepare, const mf_gqa_args *args,
                        const mf_matrix *reader, mf_dtype act_dtype, bool *is_rounded);
    void (*mla_prepare)(mf_device *device, const mf_mla_prepare_call *call);
    /* The same of mla_prepare and mla_attention, for few rows. */
    bool (*mla_at_once)(mf_device *device, const mf_mla_prepare_call *prepare, const mf_mla_args *args,
                        const mf_matrix *reader, mf_dtype act_dtype, bool *is_rounded);
    /* Optional: gate[i] = silu(gate[i]) * up[i]: a dense MLP is then three products, whose kernels are faster than those of an
     * expert that everybody picks. */
    void (*glu)(mf_device *device, float *gate, const float *up, int64_t n);
    /* Optional: keys[r] = the larger of itself and, of row r, mf_best_key of its largest number and the lowest id below num_ids
     * that has it; all ones where the row holds a NaN or +infinity.  logits [num_rows, n] without gaps. */
    void (*best)(mf_device *device, const float *logits, int64_t num_rows, int64_t n, int64_t num_ids, uint64_t *keys);
    /* Optional: of each row what its pick asks for; the rows are as before afterwards.  workspace: pick_bytes. */
    size_t (*pick_bytes)(const mf_device *device, int64_t num_rows, int64_t n);
    void (*pick)(mf_device *device, const mf_pick_call *call);
    /* Optional, all three or none: experts called between begin and end run on a second stream, behind what was called
     * before begin and beside what is called after end.  A combine with addends waits for them, or join, which does
     * nothing where nobody is to be waited for. */
    mf_status (*beside_begin)(mf_device *device, mf_error *err);
    mf_status (*beside_end)(mf_device *device, mf_error *err);
    mf_status (*beside_join)(mf_device *device, mf_error *err);
    /* Optional: memory of the device's own for linear's inputs of up to num_tokens rows of k columns, and for weights of
     * `formats` (bit f: mf_format f) with bf16 inputs, taken now; *bytes: how much that is.  Without it, or past it, it is
     * taken when it is needed, which a graph cannot hold. */
    mf_status (*reserve)(mf_device *device, int64_t num_tokens, int64_t k, uint32_t formats, int64_t *bytes, mf_error *err);
    /* profile.c's alone: a step's operations are over. */
    void (*step_ends)(mf_device *device);
} mf_device_ops;

struct mf_device {
    const mf_device_ops *ops;
    mf_pool *pool;       /* NULL: one thread */
    const void *kernels; /* cpu: its mf_cpu_kernels */
    void *scratch;       /* cpu: inputs of dense products */
    size_t scratch_bytes;
    bool prefers_bf16;   /* products of bf16 are faster than those of f32 */
    bool rounds_outputs; /* a model with bf16 activations: what an expert writes is rounded to bf16, too, before it is summed */
    bool wants_fp8_inputs; /* experts of FP8 blocks are fast with FP8 inputs alone */
    bool one_format_a_table; /* with bf16 activations: slots of several formats in one table get slower kernels, other bits */
    int32_t ordinal;     /* which of several: the N of "cuda:N" */
    void *backend;       /* cuda: its state */
    void *library;       /* cuda: the shared object that the ops come from */
    char name[16];
    char gpu[16]; /* cuda: "sm_90", which tables of measurements go by */
    char description[120];
};

/* Backends, found by name in device.c. */
mf_status mf_ref_device_init(mf_device *device, const mf_device_options *options, mf_error *err);
mf_status mf_cpu_device_init(mf_device *device, const mf_device_options *options, mf_error *err);
mf_status mf_cuda_device_init(mf_device *device, const mf_device_options *options, mf_error *err);
void mf_cuda_library_close(mf_device *device); /* after ops->close */

/* The rungs of "cpu", lowest first, as MOEFUSE_ISA names them. */
typedef struct mf_isa_level {
    const char *name;
    bool is_available;
    const char *needs; /* what the CPU and the system must offer for it */
    const char *passed_over; /* why this CPU uses it only when MOEFUSE_ISA names it; NULL: it does not */
} mf_isa_level;

/* Level i; name NULL past the last one. */
mf_isa_level mf_cpu_isa_level(size_t i);

/* Checks a combine's arguments and fills its call; has_x false: x has dtype and shape only (experts_combine). */
mf_status mf_sum_reduce_check(const mf_device *device, const mf_sum_reduce_args *args, bool has_x, mf_sum_reduce_call *call,
                              mf_error *err);

/* ---- matrices of any format (format.c) ---- */

/* Checks pointers, sizes, strides, scale dtype and group size of one matrix; `what` names it in messages. */
mf_status mf_matrix_check(const mf_matrix *m, const char *what, mf_error *err);
/* Values of row r, columns [first, first + count), to f32 in the format's own arithmetic. */
void mf_matrix_decode_row(const mf_matrix *m, int64_t r, int64_t first, int64_t count, float *out);
/* The sub-matrix of rows [first, first + count); first must be a multiple of the scale block's rows where blocks matter. */
mf_matrix mf_matrix_rows(const mf_matrix *m, int64_t first, int64_t count);
/* The sub-matrix of columns [first, first + count); first must be a multiple of the scale block, group or byte. */
mf_matrix mf_matrix_columns(const mf_matrix *m, int64_t first, int64_t count);
/* Bytes of the stored codes and scales that a view covers. */
int64_t mf_matrix_bytes(const mf_matrix *m);

#endif
