/* dense_calls.h - what the host hands to the kernels of a model's dense operations; the rules are those of calls.h. */
#ifndef MF_KERNELS_CUDA_DENSE_CALLS_H
#define MF_KERNELS_CUDA_DENSE_CALLS_H

#include "kernels/cuda/calls.h"
#include "kernels/pick.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether the GPUs at hand know programmatic dependent launch (sm_90 on): set once, when a device is opened. */
extern int mf_cuda_starts_early;

/* ---- rows and elements ---- */

int mf_cuda_launch_embed(const mf_cuda_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                         int64_t out_stride, void *stream);

typedef struct mf_cuda_norm {
    float *acc;       /* with add: becomes x + add first */
    const float *add; /* or NULL */
    const float *x;   /* what is normed, or added to; may be acc */
    int64_t x_stride, num_tokens, n;
    const float *weight;
    float *out; /* or NULL */
    int64_t out_stride;
    uint16_t *rounded; /* bf16 [T, n] or NULL */
    uint16_t *planes;  /* three of bf16 [T, n], as mf_cuda_launch_split makes them, or NULL */
    uint16_t *rests;   /* norm_rows: [2][T, n] or NULL: what rounding leaves, as two more bf16 numbers */
    float eps;
} mf_cuda_norm;

int mf_cuda_launch_norm(const mf_cuda_norm *call, void *stream);
/* Of more than 256 columns without gaps, x acc: `rounded` alone, no `out`. */
int mf_cuda_launch_norm_rows(const mf_cuda_norm *call, void *stream);
int mf_cuda_launch_rope(float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride, int64_t dim, int pair,
                        const float *cos_sin, const int32_t *position, int64_t num_tokens, void *stream);
/* A warp takes a head of a query, of a key, or of a row's values; heads of keys have up to 256 elements. */
typedef struct mf_cuda_gqa_prepare {
    int64_t num_tokens;
    int32_t leaves_queries; /* to attention */
    int32_t num_heads, num_kv_heads, head_dim, values; /* values: num_kv_heads * v_head_dim */
    float *q, *rows;
    const float *q_norm, *k_norm, *cos_sin;
    float eps;
    int32_t rope_dim, rope_pair, norm_after_rope, is_bf16;
    void *cache;
    const int32_t *block_table, *sequence, *position;
    int64_t row_size, block_size, max_blocks;
} mf_cuda_gqa_prepare;

/* A warp takes a query's head, or a row's latent and key. */
typedef struct mf_cuda_mla_prepare {
    int64_t num_tokens;
    int32_t num_heads, nope, rope, rank, rope_pair, is_bf16;
    float *q;
    const float *rows, *norm, *cos_sin;
    float eps;
    void *cache;
    const int32_t *block_table, *sequence, *position;
    int64_t row_size, block_size, max_blocks;
} mf_cuda_mla_prepare;

int mf_cuda_launch_mla_prepare(const mf_cuda_mla_prepare *call, void *stream);
int mf_cuda_launch_gqa_prepare(const mf_cuda_gqa_prepare *call, void *stream);
int mf_cuda_launch_sigmoid_gate(float *x, int64_t x_stride, const float *gate, int64_t gate_stride, int64_t num_rows,
                                int64_t n, void *stream);
/* Few bytes, either way between the host's page-locked memory and the device's; `zeros` become 0. All words of 4. */
int mf_cuda_launch_carry(void *to, const void *from, int64_t bytes, void *zeros, int64_t zero_bytes, void *stream);
int mf_cuda_launch_convert(const float *x, int64_t x_stride, int64_t num_rows, int64_t n, int dtype, void *out,
                           void *stream);
int mf_cuda_launch_clip(float *x, int64_t n, float limit, void *stream);
int mf_cuda_launch_scale_rows(float *x, int64_t n, const float *factors, const int32_t *position, int64_t num_tokens,
                              void *stream);
int mf_cuda_launch_add(float *acc, const float *x, int64_t n, void *stream);

int mf_cuda_launch_glu(float *gate, const float *up, int64_t n, void *stream);
int mf_cuda_launch_best(const float *logits, int64_t num_rows, int64_t n, int64_t num_ids, uint64_t *keys,
                        void *stream);

/* Tokens chosen here: see kernels/pick.h. */
typedef struct mf_cuda_pick {
    float *logits; /* [num_rows, n]; changed in between, the same at the end */
    int64_t num_rows;
    int32_t n, num_ids;
    const mf_pick *picks;
    mf_pick_change *changes;
    mf_picked *picked;
    void *workspace; /* mf_cuda_pick_bytes */
    int32_t num_pieces, num_spans; /* the launch sets them */
} mf_cuda_pick;

int64_t mf_cuda_pick_bytes(int64_t num_rows, int64_t n);
int mf_cuda_launch_pick(const mf_cuda_pick *call, int64_t shared_bytes, void *stream); /* 3 kernels */

enum { MF_CUDA_FILL_CODES = 4 * 255 + 1 };

/* codes: [MF_CUDA_FILL_CODES] on the device */
int mf_cuda_launch_fill(void *data, int64_t count, int64_t chunk, uint64_t seed, int size, const uint32_t *codes,
                        void *stream);

/* ---- linear ---- */

enum { MF_CUDA_LINEAR_MOST = 4 };

/* The products of one input with several matrices of one path. */
typedef struct mf_cuda_linear {
    int32_t num;
    int32_t round_x; /* PLAIN: x becomes bf16 first */
    mf_cuda_matrix w[MF_CUDA_LINEAR_MOST];
    const float *bias[MF_CUDA_LINEAR_MOST];
    const float *row_scale[MF_CUDA_LINEAR_MOST]; /* wgmma: [n] on 8 bytes, times a row's sums, or NULL */
    float *out[MF_CUDA_LINEAR_MOST];
    int64_t out_stride[MF_CUDA_LINEAR_MOST];
    int64_t first_block[MF_CUDA_LINEAR_MOST + 1]; /* of a matrix's rows in the grid */
    const void *x;                                /* f32 (PLAIN, or x_is_f32) or bf16 */
    int64_t x_stride, num_tokens;
    int32_t x_is_f32;  /* RING takes it as it is */
    int32_t parts;     /* 1: x counts as bf16; 3: as f32, in three planes of bf16 */
    int32_t runs;      /* 8 or 16: of k, see linear.cu */
    int64_t x_plane;   /* elements between planes */
    const uint16_t *x_rests; /* wgmma's tiles: planes past the first one, [2][T, k]; NULL: they follow the first */
    int32_t x_is_wide; /* rows of x begin on 16 bytes */
    int32_t w_is_made; /* wgmma: w is the result of a launch in front */
    /* RING only: whether rings are long; units a warp asks for before it waits, with a norm; blocks at most; units of a
     * ring and groups of warps that are used. */
    int32_t is_deep, early, most_blocks, ring_units, ring_groups;
    /* RING of one token: x is the norm of acc + add (NULL: acc); the first block writes the sum and the rounded norm,
     * where wanted.  norm_weight NULL: x is x. */
    const float *norm_acc, *norm_add, *norm_weight;
    float *norm_out;
    uint16_t *norm_rounded;
    float norm_eps;
    /* Batches: batch b takes rows b * batch_rows + first_row .. + rows of w[0], x + b * x_step, out + b * out_step. */
    int64_t num_batches, batch_rows, first_row, rows, x_step, out_step;
    /* RING and few tokens' codes: an access policy's longest stretch of weights, and an element's bits. */
    int64_t most_window, element_bits;
} mf_cuda_linear;

int mf_cuda_launch_linear_plain(const mf_cuda_linear *call, void *stream);
/* bf16, up to MF_CUDA_LINEAR_RING tokens. */
enum { MF_CUDA_LINEAR_RING = 8 };
int mf_cuda_launch_linear_ring(const mf_cuda_linear *call, void *stream);
void mf_cuda_linear_ring_plan(mf_cuda_linear *call); /* ring_units and ring_groups from most_blocks and is_deep */
int64_t mf_cuda_linear_ring_shared(const mf_cuda_linear *call);
int mf_cuda_launch_linear_few(const mf_cuda_linear *call, void *stream);  /* bf16, up to MF_CUDA_LINEAR_FEW tokens */
int mf_cuda_launch_linear_tile(const mf_cuda_linear *call, void *stream); /* bf16 */
/* FP8 blocks or channels, k a multiple of 128, codes and x (bf16) on 16 bytes; capability 8.9 or later. */
int mf_cuda_launch_linear_fp8(const mf_cuda_linear *call, void *stream);
int mf_cuda_launch_split(const float *x, int64_t x_stride, int64_t num_rows, int64_t n, void *out, void *stream);
enum { MF_CUDA_LINEAR_FEW = 64 };
/* Integer codes of a kind (mf_cuda_packed: INT4, INT4_ANY or INT8), k a multiple of 64, up to MF_CUDA_CODES_FEW tokens, x
 * in bf16 on 8 bytes or f32 on 16 (x_is_f32), `runs` as of bf16; sm_90. */
enum { MF_CUDA_CODES_FEW = 16 };
int mf_cuda_launch_linear_codes(const mf_cuda_linear *call, int kind, void *stream);
/* The same for up to MF_CUDA_LINEAR_RING tokens, x on 16 bytes, groups of 64 columns and more; is_deep, ring_units
 * and most_blocks as planned (cuda_codes.c). */
int mf_cuda_launch_codes_ring(const mf_cuda_linear *call, int kind, void *stream);
int64_t mf_cuda_codes_ring_shared(const mf_cuda_linear *call, int kind);

/* Such matrices as bf16 in memory, and the scales of INT8's rows. */
typedef struct mf_cuda_widen_call {
    int32_t num;
    mf_cuda_matrix w[MF_CUDA_LINEAR_MOST];
    uint16_t *out[MF_CUDA_LINEAR_MOST]; /* [n, k] on 16 bytes */
    float *scale[MF_CUDA_LINEAR_MOST];  /* [n] */
} mf_cuda_widen_call;

int mf_cuda_launch_widen(const mf_cuda_widen_call *call, int kind, void *stream);

/* ---- attention ---- */

/* Grouped queries over a paged cache.  MLA is the same with one kv head whose values are the first v_dim of its keys.
 */
typedef struct mf_cuda_attention {
    const void *cache;
    const int32_t *block_table, *sequence, *position;
    int64_t row_size, block_size, max_blocks;
    int64_t num_tokens;
    int32_t num_heads, num_kv_heads, head_dim, v_dim;
    int32_t value_at, value_step; /* values of kv head g begin at value_at + g * value_step of a row */
    int64_t window, chunk;
    const float *sinks;
    /* [T, heads, head_dim]; of attention_mla.cu bf16, times the scale in units of log2, in decode with the tail */
    const float *q;
    int32_t q_is_rounded; /* as there; Hopper's prefill */
    const float *q_tail; /* with MLA: the last tail_dim of a head's query, else NULL */
    int64_t q_stride, q_head_stride, tail_stride, tail_head_stride;
    int32_t tail_dim;
    float *out; /* [T, heads, v_dim] */
    uint16_t *rounded; /* the same in bf16, instead, with tensor cores and a bf16 cache; or NULL */
    float scale;
    int32_t cache_is_bf16;
    int32_t heads_at_once; /* of a block */
    int32_t num_splits;    /* blocks that share a row's spans; 1: no partial results */
    float *partial;        /* [T, heads, spans, v_dim + 2] */
    int64_t most_spans;
} mf_cuda_attention;

enum { MF_CUDA_SPAN = 256 }; /* positions whose softmax is one piece: results of spans are merged in order */

/* Heads of 64 or 128, keys and values alike, a bf16 cache with rows on 16 bytes; up to 128 heads of a kv head in
 * prefill. Partial results are pieces of MF_CUDA_PIECE positions. */
enum { MF_CUDA_PIECE = 64 };
int mf_cuda_launch_attention_decode(const mf_cuda_attention *call, void *stream); /* 2 kernels */
int mf_cuda_launch_attention_prefill(const mf_cuda_attention *call, void *stream);
/* The same prefill on sm_90; with `prepare`, q is what the projection left. */
int mf_cuda_launch_attention_hopper(const mf_cuda_attention *call, const mf_cuda_gqa_prepare *prepare, void *stream);
int mf_cuda_launch_attention_merge_pieces(const mf_cuda_attention *call, void *stream);

/* One row in one launch, which makes queries, key and value itself.
 *
 * A unit is up to MF_CUDA_ROW_HEADS heads of a kv head.  What its blocks tell each other goes through words of 16 bytes:
 * two f32, each with the number of the launch above it.  A unit's words are no other's whatever the shape, and it counts
 * its launches itself, so no word of another launch has this one's number. */
enum {
    MF_CUDA_ROW_HEADS = 8,
    MF_CUDA_ROW_UNITS = 16,
    MF_CUDA_ROW_PIECES = 256,
    MF_CUDA_ROW_FACTORS = 1024, /* pieces of the heads that a block merges */
    MF_CUDA_ROW_MERGERS = 64,   /* blocks of a unit that merge, at most: each counts for an equal part of as many */
    MF_CUDA_ROW_WORDS = MF_CUDA_ROW_PIECES * (MF_CUDA_ROW_HEADS + MF_CUDA_ROW_HEADS / 2 * 128),
    MF_CUDA_ROW_FRONT = 256, /* bytes before the words: MF_CUDA_ROW_UNITS counts */
    MF_CUDA_ROW_SHARED = 52 * 1024
};

typedef struct mf_cuda_row {
    const int32_t *position, *sequence, *block_table;
    int32_t max_blocks, block_bits; /* a block has 1 << block_bits positions */
    int32_t group, num_kv_heads, head_dim, splits, mergers, window, chunk;
    const float *q, *rows, *cos_sin, *q_norm, *k_norm; /* what the projections left, and mf_cuda_gqa_prepare's */
    float eps, scale;
    int32_t rope_dim, rope_pair, norm_after_rope;
    int32_t row_size, value_at;
    uint16_t *cache;
    uint64_t *words;    /* [units][MF_CUDA_ROW_WORDS][2] */
    uint64_t *launches; /* [units]: MF_CUDA_ROW_MERGERS a launch */
    const float *sinks;
    uint16_t *rounded; /* or NULL: out */
    float *out;
} mf_cuda_row;

int mf_cuda_launch_attention_row(const mf_cuda_row *call, void *stream);
/* MLA with a latent of 512 and a rotated part of 64.  Decode leaves pieces in memory. */
int mf_cuda_launch_attention_mla(const mf_cuda_attention *call, int is_decode, void *stream);
int64_t mf_cuda_attention_mla_shared(void); /* bytes that a block needs */
/* Its prefill on sm_90: 64 rows a block, so numbers of heads that divide 64 or are multiples of it. */
int mf_cuda_launch_attention_mla_hopper(const mf_cuda_attention *call, void *stream);

int mf_cuda_launch_attention_plain(const mf_cuda_attention *call, int64_t shared_bytes, void *stream);
int mf_cuda_launch_attention_merge(const mf_cuda_attention *call, void *stream);
int64_t mf_cuda_attention_plain_shared(int heads, int head_dim, int v_dim);

/* q_lat[t, h, i] = sum_j q[t, h, j] * W_UK[h, j, i] */
typedef struct mf_cuda_absorb {
    mf_cuda_matrix kv_b;
    const float *q;
    int64_t q_stride, q_head_stride, num_tokens;
    int32_t num_heads, nope, v_dim, rank;
    int32_t tail;      /* 0, or MF_CUDA_MLA_TAIL elements behind a head's nope, which go behind its latent part */
    float *out;        /* [T, heads, rank] */
    uint16_t *rounded; /* [T, heads, rank + tail] times `scale` in bf16, instead, or NULL */
    float scale;
} mf_cuda_absorb;

enum { MF_CUDA_MLA_TAIL = 64, MF_CUDA_MLA_FEW = 64 };

int mf_cuda_launch_absorb(const mf_cuda_absorb *call, void *stream);
/* bf16 rows on 16 bytes, nope 64, 128 or 192, rank of whole 64 columns, q on 8 bytes; `rounded`.  With `prepare`, of
 * up to MF_CUDA_MLA_FEW rows with tails: these are rotated on the way, and the rows' latents and keys cached. */
int mf_cuda_launch_absorb_mma(const mf_cuda_absorb *call, const mf_cuda_mla_prepare *prepare, void *stream);

/* One row's results out of the latent space: its pieces merged, times the v rows of kv_b, with the bits of a merge and a
 * product.  bf16 rows on 16 bytes, rank 512, v_dim of whole 32 rows. */
typedef struct mf_cuda_mla_values {
    mf_cuda_matrix kv_b;
    int32_t nope, v_dim;
    float *out;        /* [heads, v_dim] */
    uint16_t *rounded; /* the same in bf16, instead, or NULL */
} mf_cuda_mla_values;

int mf_cuda_launch_mla_values(const mf_cuda_attention *call, const mf_cuda_mla_values *values, void *stream);

typedef struct mf_cuda_kv_write {
    void *cache;
    const int32_t *block_table, *sequence, *position;
    int64_t row_size, block_size, max_blocks, rows_stride, num_tokens;
    const float *rows;
    int32_t is_bf16;
} mf_cuda_kv_write;

int mf_cuda_launch_kv_write(const mf_cuda_kv_write *call, void *stream);

/* ---- gated delta net ---- */

typedef struct mf_cuda_delta_net {
    int64_t num_tokens;
    int32_t num_k_heads, num_v_heads, k_dim, v_dim, conv_size;
    float norm_eps;
    const float *qkvz, *ba, *conv, *a_log, *dt_bias, *norm;
    float *states;
    int64_t slot_floats;
    int32_t num_runs;
    const int32_t *rows, *start, *slot;
    const uint8_t *is_new;
    float *out;
    float *y; /* [T, channels] */
} mf_cuda_delta_net;

int mf_cuda_launch_delta_net(const mf_cuda_delta_net *call, void *stream); /* 3 kernels */

#ifdef __cplusplus
}
#endif
#endif
