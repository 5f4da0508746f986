/* calls.h - what the host hands to kernels: plain structs passed by value, and the functions that launch them.
 *
 * Included by C11 and by CUDA C++, so it holds no type of either side alone.  Pointers are device pointers; strides count
 * elements.  Each launch function returns the runtime's error code (0 = cudaSuccess) and neither allocates nor waits. */
#ifndef MF_KERNELS_CUDA_CALLS_H
#define MF_KERNELS_CUDA_CALLS_H

#include <stdalign.h>
#include <stdint.h>

#include "moefuse.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- gate ---- */

enum { MF_CUDA_HISTOGRAM_SLOTS = 65536, MF_CUDA_GATE_WORDS = MF_CUDA_HISTOGRAM_SLOTS + 3, /* counts, ticket, two more */
       MF_CUDA_BLOCK_HISTOGRAM = 4096, MF_CUDA_GATE_COLUMNS = 80 };

typedef enum mf_cuda_gate_stage {
    MF_CUDA_GATE_FUSED = 0,
    MF_CUDA_GATE_KEYS,   /* logits -> ordered keys and the softmax's maximum and sum */
    MF_CUDA_GATE_CHOOSE, /* keys -> ids */
    MF_CUDA_GATE_EMIT    /* ids -> weights, shared columns, maps, outputs */
} mf_cuda_gate_stage;

typedef struct mf_cuda_gate {
    /* inputs */
    const void *logits, *bias, *bias_alt, *scale, *shared_gate, *hash_table, *token_ids, *map, *copies, *num_valid;
    const uint8_t *row_is_alt, *mask, *row_valid;
    int64_t logits_stride, hash_stride, hash_rows, map_stride;
    /* outputs */
    void *ids, *weights, *identity, *packed, *histogram, *load, *bad_rows, *errors;
    int64_t ids_stride, weights_stride, packed_stride;
    /* sizes and choices */
    int64_t num_tokens, row_base, window_first, window_count;
    int32_t width, num_experts, top_k, num_shared, num_columns, num_slots, num_replicas, num_physical;
    int32_t shared_base, shared_stride, ep_size, ep_rank, n_group, topk_group, group_size, group_shift; /* shift -1: divide */
    int32_t scoring, bias_domain, renorm, group_score, shared_weight, fold, by_id, hash, map_copies;
    int32_t logits_dtype, bias_dtype, bias_alt_dtype, shared_gate_dtype, token_i64;
    float renorm_eps, factor;
    int32_t bytewise;   /* some view is not aligned to its elements */
    int32_t counts_to_output; /* the histogram is zeroed already and takes the counts itself */
    /* the device's: counts [MF_CUDA_HISTOGRAM_SLOTS] and ticket are zero between launches, the two words behind the
     * ticket are gate_rows.cu's */
    uint32_t *counts, *ticket;
    /* separate steps: keys [T, N], stats [T, 2], flags [T], ids [T, K] */
    uint32_t *ws_keys;
    float *ws_stats;
    int32_t *ws_flags, *ws_ids;
} mf_cuda_gate;

typedef struct mf_cuda_grid {
    int64_t blocks;
    int32_t warps, values; /* values a lane holds in registers; 0 = the general kernel, keys in shared memory */
    int64_t shared_bytes;
    int32_t rows_width;   /* gate_rows.cu's kernel of this width; 0 = gate.cu's */
    int32_t rows;         /* a warp takes together, up to 4, or 0: a block a row; gate_rows.cu */
    int32_t starts_early; /* the GPU knows programmatic dependent launch */
    int32_t warms;        /* a block a row: it runs its code once before it waits for the kernel in front */
} mf_cuda_grid;

int mf_cuda_launch_gate(const mf_cuda_gate *call, const mf_cuda_grid *grid, mf_cuda_gate_stage stage, void *stream);
int mf_cuda_launch_gate_rows(const mf_cuda_gate *call, const mf_cuda_grid *grid, void *stream);

/* ---- align ---- */

enum { MF_CUDA_ALIGN_STEPS = 5 }; /* of 32 pairs that a warp takes, at most, where all is one launch */

typedef struct mf_cuda_align {
    const void *ids;
    int64_t ids_stride;
    void *sorted, *experts, *total, *offsets, *errors;
    int64_t num_pairs, num_columns, block_size, capacity;
    int32_t num_slots, chunks, warps, bytewise;
    int64_t chunk; /* pairs of a chunk */
    uint32_t *counts; /* [chunks, P], workspace; chunks > 1 */
    int32_t once_blocks;  /* of the one launch; 0: the way of many pairs or slots */
    int32_t run;          /* pairs that a block counts of a cluster's; 0: each counts all */
    int32_t shares;       /* blocks of a cluster, 8 or 16 */
    int32_t slice;        /* run 0: entries of sorted that a block makes in shared memory */
    int32_t block_shift;  /* block_size is 1 << block_shift; -1: no power of two */
    int64_t num_blocks;   /* capacity / block_size */
    int32_t wide;         /* four entries of sorted can be stored at once */
    int32_t starts_early; /* the GPU knows programmatic dependent launch */
    int32_t reserved;
} mf_cuda_align;

/* Shared memory of align_once_kernel. */
static inline int64_t mf_cuda_align_shared(int64_t slots, int32_t warps, int32_t shares, int64_t slice)
{
    return (slice + slots * (warps / 4 + warps + 2 + shares)) * 4 + 16;
}

int mf_cuda_launch_align(const mf_cuda_align *call, void *stream);

/* ---- sum-reduce ---- */

enum { MF_CUDA_MAX_ADDENDS = 16 };

typedef struct mf_cuda_sum {
    const void *x, *ids, *weights, *identity, *hidden, *addend_weights, *residual, *num_valid;
    const uint8_t *row_valid;
    const void *addends[MF_CUDA_MAX_ADDENDS];
    int64_t addend_strides[MF_CUDA_MAX_ADDENDS];
    void *out;
    int64_t x_stride, column_stride, ids_stride, weights_stride, hidden_stride, addend_weights_stride, residual_stride,
        out_stride;
    int64_t num_tokens, hidden_size;
    int32_t num_columns, num_shared, num_addends;
    int32_t dtype, out_dtype;
    int32_t vector;   /* elements a thread takes: 16 bytes of x, or 1 */
    int32_t bytewise;
    float factor;
    int32_t narrow;        /* the usual combine takes two elements a thread, not four or eight */
    int32_t wide_residual; /* its rows are aligned, too */
    int32_t starts_early;  /* the GPU knows programmatic dependent launch */
} mf_cuda_sum;

int mf_cuda_launch_sum_reduce(const mf_cuda_sum *call, void *stream);

/* ---- the layer's rows between gate and combine ---- */

typedef struct mf_cuda_layer_rows {
    int64_t num_tokens, num_columns, num_routed, num_shared, hidden_size, row_width, num_experts;
    const void *num_valid, *token_ids, *weights, *shared_gate, *logits, *x, *hash_table;
    const uint8_t *row_valid_in;
    int64_t weights_stride, x_stride, logits_stride, hash_rows, hash_stride;
    int32_t hash, token_i64, logits_dtype, x_dtype, top_k;
    uint8_t *row_valid;
    float *input_scale, *combine_weights, *shared_weights, *hidden; /* each may be absent */
    int32_t *shared_ids;
    void *bad_rows;
} mf_cuda_layer_rows;

int mf_cuda_launch_layer_rows(const mf_cuda_layer_rows *call, void *stream);

/* ---- experts ---- */

/* One matrix and one slot as kernels see them. */
typedef struct mf_cuda_matrix {
    const uint8_t *data;
    const uint8_t *scale;
    const uint8_t *zero;
    int64_t row_stride, scale_row_stride, group_size;
    int64_t n, k;
    int32_t format, scale_dtype;
    int32_t quant; /* mf_quant of what meets it */
    int32_t reserved;
} mf_cuda_matrix;

/* Which kernel computes a slot's w13 or w2: a property of the slot, never of the batch. */
typedef enum mf_cuda_path {
    MF_CUDA_PATH_PLAIN = 0, /* f32 arithmetic, any format, any size */
    MF_CUDA_PATH_BF16,      /* mma.sync, bf16 weights and activations */
    MF_CUDA_PATH_F16,
    MF_CUDA_PATH_FP8,       /* mma.sync e4m3, FP8_BLOCK with W8A8 */
    MF_CUDA_PATH_COUNT
} mf_cuda_path;

typedef struct mf_cuda_slot {
    mf_cuda_matrix gate, up, down; /* gate.data NULL: none */
    const float *gate_bias, *up_bias, *down_bias;
    float limit, alpha, beta, lbeta, input_scale13, input_scale2;
    int32_t activation;
    int32_t path13, path2;
    int32_t reserved;
} mf_cuda_slot;

typedef struct mf_cuda_experts {
    const mf_cuda_slot *slots;
    int64_t num_slots, hidden_size, max_width;
    int64_t num_tokens, num_columns, num_pairs;
    const void *x, *ids, *input_scale; /* views of the caller */
    int64_t x_stride, ids_stride, input_scale_stride;
    void *y;
    int64_t y_stride, y_column_stride;
    int32_t act_dtype, y_dtype, e8m0, bytewise;
    /* workspace */
    void *h;           /* [num_pairs, h_stride] act_dtype, aligned rows */
    int64_t h_stride;
    uint16_t *x_codes; /* e4m3 codes as f16 [T, H] with x_scales [T, ceil(H / 128)] */
    float *x_scales;
    uint16_t *h_codes; /* the same [num_pairs, h_stride] with h_scales [num_pairs, ceil(max_width / 128)] */
    float *h_scales;
    int32_t *sorted, *block_slots, *total; /* pairs by slot in blocks of tile_tokens; only in tile launches */
    int64_t num_blocks;
    int32_t tile_tokens;
    int32_t y_is_wide;        /* eight 2-byte elements of y can be stored at once */
    int32_t quantises_itself; /* one token: FP8 kernels for few tokens make x's and the intermediate's codes themselves */
    int32_t starts_early; /* the GPU knows programmatic dependent launch */
} mf_cuda_experts;

/* Both grouped products of a table on Hopper (grouped.cu), with what prepares them (grouped_prepare.cu). */
enum { MF_CUDA_FEW_GROUPED_TOKENS = 8, MF_CUDA_FEW_GROUPED_PAIRS = 128 }; /* grouped_few.cu takes */
enum { MF_CUDA_SORTED_PAIRS = 12288 }; /* at most, that one block sorts */
enum { MF_CUDA_PREPARE_PAIRS = 4096, MF_CUDA_GROUPED_SLOTS = 2048, MF_CUDA_GROUPED_TILES = 65536 };

/* Words of the device's own counters, all zero between calls; those from LAUNCHES on are grouped_one.cu's, which tells
 * one launch's words from another's. */
enum { MF_CUDA_ONE_BLOCKS = 256, MF_CUDA_ONE_HANDED = 64, MF_CUDA_ONE_VALUES = 65536 };
enum {
    MF_CUDA_WORK_NEXT = 0,
    MF_CUDA_WORK_DONE,
    MF_CUDA_WORK_COPIED, /* rows that grouped_pairs.cu has claimed */
    MF_CUDA_WORK_COUNTS = 32,
    MF_CUDA_WORK_CURSORS = MF_CUDA_WORK_COUNTS + MF_CUDA_GROUPED_SLOTS,
    MF_CUDA_WORK_TILES = MF_CUDA_WORK_CURSORS + MF_CUDA_GROUPED_SLOTS,
    MF_CUDA_WORK_LAUNCHES = MF_CUDA_WORK_TILES + MF_CUDA_GROUPED_TILES,
    MF_CUDA_WORK_STARTED, /* blocks that run, or have */
    MF_CUDA_WORK_CLAIMED = MF_CUDA_WORK_LAUNCHES + 32, /* by block: its share of w13 is somebody's */
    MF_CUDA_WORK_HANDED = MF_CUDA_WORK_CLAIMED + MF_CUDA_ONE_BLOCKS, /* 8 bytes each: by block, sums of a unit that the next block goes on with */
    MF_CUDA_WORK_VALUES = MF_CUDA_WORK_HANDED + 2 * MF_CUDA_ONE_BLOCKS * MF_CUDA_ONE_HANDED, /* 8 bytes: two of the intermediate */
    MF_CUDA_WORK_WORDS = MF_CUDA_WORK_VALUES + MF_CUDA_ONE_VALUES
};

/* Boxes that a table's tensor maps copy: 64 rows by a line of 128 bytes; 32 and 64 rows by 4 and 2 lines; grouped_one.cu's: 8
 * rows by 8 lines, and what mf_cuda_box_rows and mf_cuda_box_lines say of w2; FP8: 128 rows by a line as grouped_rows.cu wants
 * them. */
enum { MF_CUDA_BOX_LONG = 0, MF_CUDA_BOX_32, MF_CUDA_BOX_64, MF_CUDA_BOX_UP, MF_CUDA_BOX_DOWN, MF_CUDA_BOX_TURNED, MF_CUDA_BOXES };

/* Rows of w2's boxes, which are large because the copy engine takes 0.2 us for the smallest: as many as a product has
 * (bf16: 16); FP8: a block's, of a product's 64. */
static inline int32_t mf_cuda_box_rows(int fp8, int64_t hidden, int64_t blocks)
{
    const int64_t rows = (hidden + blocks - 1) / blocks, parts = (rows + 63) / 64;
    return fp8 ? (int32_t)(((rows + parts - 1) / parts + 7) / 8 * 8) : 16;
}

/* Lines of those boxes: as many as all boxes of a row can have alike.  bytes: of a row. */
static inline int32_t mf_cuda_box_lines(int32_t rows, int64_t bytes)
{
    const int64_t lines = (bytes + 127) / 128, most = 16384 / (rows * 128), boxes = (lines + most - 1) / most;
    return (int32_t)((lines + boxes - 1) / (boxes < 1 ? 1 : boxes));
}

/* Leading slots of a table that lie evenly: their matrices are one each, with so many rows from a slot's to the next one's.
 * Their maps stand behind those of the slots. */
typedef struct mf_cuda_even {
    int32_t slots; /* 0: none */
    int32_t rows[3]; /* gate, up, down */
} mf_cuda_even;

/* grouped_one.cu: how a block's shared memory is laid out, places in bytes. */
enum { MF_CUDA_ONE_ROW_LINES = 16 }; /* of the intermediate that a lane holds, where scales are rows' */
enum { MF_CUDA_ONE_TOKENS = 4, MF_CUDA_ONE_PAIRS = 40, MF_CUDA_ONE_STAGES = 13, MF_CUDA_ONE_HALF = 8192, MF_CUDA_ONE_STATE = 5120 };

typedef struct mf_cuda_one {
    int32_t tokens;   /* a line's columns: 2 or 4, at least the call's tokens; 0: another kernel takes the call */
    int32_t combines; /* it ends with the combine, instead of y */
    int32_t stages, x_lines, h_lines; /* h_lines: of a slot's rows of w2, whole boxes */
    int32_t box_lines, most_tiles, most_units; /* at most: slots in use, a block's units, begun ones (FP8) too */
    int32_t x_at, up_parts_at; /* until w13 is done; then: */
    int32_t h_at, sums_at;
    int32_t floats_at, state_at, bytes;
    int32_t groups; /* of w2's rows, that a block multiplies before it adds up and combines them */
    int32_t down_rows; /* of a group */
    mf_cuda_even even;
} mf_cuda_one;

/* What grouped_packed.cu multiplies bf16 activations with; up to FEW, SEVERAL (wide codes), SOME or MANY tokens a tile. */
typedef enum mf_cuda_packed {
    MF_CUDA_PACKED_NONE = 0,
    MF_CUDA_PACKED_MXFP4,
    MF_CUDA_PACKED_INT4,     /* bf16 scales, no zero points */
    MF_CUDA_PACKED_INT4_ANY, /* scales of any dtype, zero points */
    MF_CUDA_PACKED_FP8_BLOCK,
    MF_CUDA_PACKED_FP8_CHANNEL,
    MF_CUDA_PACKED_INT8,
    MF_CUDA_PACKED_F16
} mf_cuda_packed;
enum { MF_CUDA_PACKED_FEW = 16, MF_CUDA_PACKED_SEVERAL = 32, MF_CUDA_PACKED_SOME = 64, MF_CUDA_PACKED_MANY = 128 };

/* What the grouped products on Hopper multiply natively: bf16, or codes of 8 bits on both sides with their scales. */
typedef enum mf_cuda_codes {
    MF_CUDA_CODES_NONE = 0,
    MF_CUDA_CODES_FP8_BLOCK, /* e4m3; a scale per 128 columns of a token, per 128 x 128 weights */
    MF_CUDA_CODES_FP8_ROW,   /* e4m3; a scale per token and per row of weights */
    MF_CUDA_CODES_INT8_ROW   /* the same of int8 */
} mf_cuda_codes;

typedef struct mf_cuda_grouped {
    mf_cuda_experts e;
    const void *maps; /* CUtensorMap [num_slots][gate, up, down][MF_CUDA_BOXES] */
    uint32_t *work;   /* the device's counters */
    int32_t *offsets; /* [num_slots + 1] of each slot's pairs in sorted */
    int32_t *sorted;  /* [num_pairs] */
    /* rows of tokens as the products read them, strides in bytes; codes: with a scale per 128 columns or per row */
    const uint8_t *x_bytes, *h_bytes;
    int64_t x_pitch, h_pitch;
    uint8_t *x_codes, *h_codes; /* [T, H] and, by place in sorted, [num_pairs, h_stride] */
    const float *x_scales;
    float *x_scales_out, *h_scales;
    int64_t x_groups, h_groups;
    int32_t codes, packed, x_is_wide, clears_counts; /* mf_cuda_codes, mf_cuda_packed */
    int32_t x_in_order; /* bf16, many tokens: grouped_pairs.cu copies x by place in sorted */
    uint8_t *x_sorted;  /* [num_pairs, H] */
    int32_t max_tokens, stages, up_tiles, down_tiles; /* a tile's tokens at most; row tiles of the widest slot, of H */
    int32_t down_steps, down_units; /* row tiles of w2 that are one unit of work; units of H */
    int32_t width;    /* of every slot; 0: they differ */
    int32_t few_rows; /* grouped_few.cu's rows of a warpgroup: 32 or 64; 0: grouped.cu */
    mf_cuda_one one;
    int64_t blocks;
    int64_t rows_group; /* grouped_rows.cu's tiles of tokens whose units are claimed together; 0: another kernel takes the call */
    int32_t quant; /* packed: x and the intermediate are codes of a scale per token (x_scales_out, h_scales): mf_quant */
    int32_t phase; /* with quant: 1 w13, 2 w2, for between them the intermediate becomes codes */
    /* packed_few.cu: multiprocessors (0: another kernel), warps among which a tile's columns are divided in w13 and in w2 */
    int32_t few_blocks, few_splits, few_splits2;
    /* packed_few4.cu (codes of 4 bits): tokens multiplied together, warps of a block, stages of a warp's ring and shared memory of
     * w13 and w2; w2 ends with the combine */
    int32_t few_most, few_warps, few_depth, few_bytes, few_warps2, few_depth2, few_bytes2, few_combines;
} mf_cuda_grouped;

/* grouped_pairs.cu: tokens of a block's tile at most, bytes of results on their way out and of its state. */
enum { MF_CUDA_PAIR_TOKENS = 160, MF_CUDA_PAIR_PIECE = 4096, MF_CUDA_PAIR_STATE = 768 };

/* How the copy engine reads a line of rows that lie in the slots' order, the tokens' and the intermediate's: boxes of 128, 64,
 * 32 and 16 rows (CUtensorMap).  Only with x_in_order. */
enum { MF_CUDA_ROW_BOXES = 4 };

typedef struct mf_cuda_row_maps {
    alignas(64) uint8_t x[MF_CUDA_ROW_BOXES][128];
    alignas(64) uint8_t h[MF_CUDA_ROW_BOXES][128];
} mf_cuda_row_maps;

/* grouped.cu's tiles of bf16 where slots have some tokens, few enough for a stage more than many have. */
enum { MF_CUDA_GROUPED_SOME = 80 };

/* Shared memory of a stage: 256 weight rows and the tokens' by 128 bytes of K, their scales. */
static inline int64_t mf_cuda_grouped_stage_bytes(int codes, int max_tokens)
{
    const int64_t scales = codes == MF_CUDA_CODES_NONE ? 0 : codes == MF_CUDA_CODES_FP8_BLOCK ? 1024 : 2048;
    return 4 * 64 * 128 + (int64_t)max_tokens * 128 + scales;
}

/* grouped_rows.cu: tokens of a tile; shared memory of a stage, 256 weight rows and the tokens' by 128 bytes of K with their
 * scales, a token's and two of weights or, where weights have a scale a row, 256. */
enum { MF_CUDA_ROWS_TOKENS = 128 };

static inline int64_t mf_cuda_rows_stage_bytes(int codes)
{
    return (256 + MF_CUDA_ROWS_TOKENS) * 128 + (codes == MF_CUDA_CODES_FP8_BLOCK ? 1024 : 2048);
}

/* The same of grouped_few.cu. */
static inline int64_t mf_cuda_few_stage_bytes(int rows)
{
    return 2 * 128 * 128 + 128 / rows * 1024 + 1024;
}

/* Tiles of 64 rows that a warpgroup of grouped_packed.cuh multiplies at once.  F16 has rows of two lines: one. */
static inline int mf_cuda_packed_tiles(int packed, int max_tokens)
{
    return max_tokens == MF_CUDA_PACKED_MANY && packed != MF_CUDA_PACKED_F16 ? 2 : 1;
}

/* The same of it: 128 rows a tile by 256 columns of 4 bits, with their scales, or by 128 columns. */
static inline int64_t mf_cuda_packed_stage_bytes(int packed, int max_tokens)
{
    const int tiles = mf_cuda_packed_tiles(packed, max_tokens);
    return packed < MF_CUDA_PACKED_FP8_BLOCK ? tiles * (16384 + 6144) + (int64_t)max_tokens * 512
                                             : tiles * 16384 * (packed == MF_CUDA_PACKED_F16 ? 2 : 1) + (int64_t)max_tokens * 256;
}

int mf_cuda_launch_prepare(const mf_cuda_grouped *call, void *stream);
int mf_cuda_launch_grouped(const mf_cuda_grouped *call, void *stream);
int mf_cuda_launch_grouped_pairs(const mf_cuda_grouped *call, const mf_cuda_row_maps *maps, void *stream); /* x_in_order */
int mf_cuda_launch_grouped_rows(const mf_cuda_grouped *call, void *stream);
int mf_cuda_launch_grouped_few(const mf_cuda_grouped *call, void *stream);
/* sum: read if one.combines. */
int mf_cuda_launch_grouped_one(const mf_cuda_grouped *call, const mf_cuda_sum *sum, void *stream);
int mf_cuda_launch_grouped_packed(const mf_cuda_grouped *call, void *stream);
int mf_cuda_launch_packed_few(const mf_cuda_grouped *call, void *stream); /* few_blocks: nothing is sorted before */
/* The same of codes of 4 bits; sum: read if few_combines. */
int mf_cuda_launch_packed_few4(const mf_cuda_grouped *call, const mf_cuda_sum *sum, void *stream);
int mf_cuda_launch_quantise_packed(const mf_cuda_grouped *call, void *stream); /* between its phases */
int mf_cuda_launch_grouped_blocks(const mf_cuda_grouped *call, void *stream); /* of its formats, these are */
int mf_cuda_launch_grouped_wide(const mf_cuda_grouped *call, void *stream);   /* files of their own */

int mf_cuda_launch_copy_x(const mf_cuda_experts *call, void *copy, void *stream); /* 2-byte elements */
int mf_cuda_launch_quantise_x(const mf_cuda_experts *call, void *stream);
int mf_cuda_launch_quantise_h(const mf_cuda_experts *call, void *stream);
int mf_cuda_launch_plain(const mf_cuda_experts *call, int second, void *stream);
int mf_cuda_launch_zero_rows(const mf_cuda_experts *call, void *stream); /* y of ids past the last slot */
int mf_cuda_launch_few_up(const mf_cuda_experts *call, mf_cuda_path path, void *stream);
int mf_cuda_launch_few_down(const mf_cuda_experts *call, mf_cuda_path path, void *stream);
int mf_cuda_launch_few_combine(const mf_cuda_experts *call, mf_cuda_path path, const mf_cuda_sum *sum, void *stream);
int mf_cuda_launch_tile_up(const mf_cuda_experts *call, mf_cuda_path path, void *stream);
int mf_cuda_launch_tile_down(const mf_cuda_experts *call, mf_cuda_path path, void *stream);

#ifdef __cplusplus
}
#endif
#endif
