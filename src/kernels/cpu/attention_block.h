/* attention_block.h - query rows of one group of heads against one block of the cache: what attention_blocks.c's loops
 * call.  Cached rows of f32 are read in place, or copied where many queries meet them; rows of bf16 become f32 first,
 * or, where the rung has tiles that multiply bf16, go in as they are. */
#ifndef MF_KERNELS_CPU_ATTENTION_BLOCK_H
#define MF_KERNELS_CPU_ATTENTION_BLOCK_H

#include "kernels/cpu/attention_blocks.h"

enum { MF_CPU_COPY_QUERIES = 32 /* from as many on, copying a block to where it lies well pays */ };

/* The query rows of one task, or of one of its panels: row (t - first) * num_heads + h. */
typedef struct mf_cpu_attend_item {
    const mf_cpu_attend *call;
    int64_t first, num_tokens; /* tokens of the call */
    int64_t group, first_head, num_heads;
    int64_t num_queries, stride;
} mf_cpu_attend_item;

/* max[MF_CPU_QUERIES], sum[MF_CPU_QUERIES], then the rows' weighted sums */
typedef struct mf_cpu_attend_part {
    float *max, *sum, *acc;
} mf_cpu_attend_part;

/* Cached rows [first, first + n), and what to ask the memory for meanwhile. */
typedef struct mf_cpu_attend_block {
    int64_t first, n;
    const void *raw_keys[MF_CPU_KV_ROWS], *raw_values[MF_CPU_KV_ROWS]; /* in the cache */
    const float *keys[MF_CPU_KV_ROWS], *values[MF_CPU_KV_ROWS];        /* as f32; not for tiles */
    const void *key_groups[MF_CPU_KV_ROWS / MF_CPU_TILE_ROWS];         /* for tiles */
    int64_t key_stride;
    bool is_finite; /* the values */
    const float *next_keys[MF_CPU_KV_ROWS], *next_values[MF_CPU_KV_ROWS];
    mf_cpu_ahead during_scores, during_blend;
    mf_cpu_asker ahead; /* the same for tiles */
} mf_cpu_attend_block;

enum { MF_CPU_SPAN_BLOCKS = MF_CPU_SPAN_ROWS / MF_CPU_KV_ROWS };

/* Blocks of a span whose weighted sums a panel has yet to make, by tiles: together they pass over its sums once. */
typedef struct mf_cpu_attend_pending {
    int64_t count;
    mf_cpu_asker nothing; /* blocks of many queries ask for nothing */
    mf_cpu_tile_blend parts[MF_CPU_SPAN_BLOCKS];
    float alpha[MF_CPU_SPAN_BLOCKS][MF_CPU_QUERIES], beta[MF_CPU_SPAN_BLOCKS][MF_CPU_QUERIES];
} mf_cpu_attend_pending;

/* Which of a task's items this is, and whether they together ask for whole rows of the cache. */
typedef struct mf_cpu_attend_share {
    int64_t index, count;
    bool whole_rows;
} mf_cpu_attend_share;

static inline int64_t mf_cpu_attend_context(const mf_cpu_attend *call, int64_t t)
{
    return call->kv->position[call->first_token + t] + (int64_t)1;
}

static inline bool mf_cpu_attend_is_windowed(const mf_cpu_attend *call)
{
    return call->window > 0 || call->chunk > 0;
}

/* The first position that a token sees; it does not fall within a tile of tokens. */
static inline int64_t mf_cpu_attend_begin(const mf_cpu_attend *call, int64_t t)
{
    return mf_gqa_first(call->window, call->chunk, call->kv->position[call->first_token + t]);
}

static inline int64_t mf_cpu_attend_item_context(const mf_cpu_attend_item *it)
{
    return mf_cpu_attend_context(it->call, it->first + it->num_tokens - 1);
}

/* The first query row that sees position s. */
static inline int64_t mf_cpu_attend_first_query(const mf_cpu_attend_item *it, int64_t s)
{
    int64_t t = 0;
    while (mf_cpu_attend_context(it->call, it->first + t) <= s) {
        t++;
    }
    return t * it->num_heads;
}

static inline int64_t mf_cpu_attend_acc_stride(const mf_cpu_attend *call)
{
    return mf_cpu_spread(call->value_dim);
}

static inline bool mf_cpu_attend_uses_tiles(const mf_cpu_kernels *kernels, const mf_cpu_attend *call)
{
    return call->kv->dtype == MF_BF16 && kernels->attention.tiles;
}

/* Values that lie inside the key, as MLA's do. */
static inline bool mf_cpu_attend_values_are_in_keys(const mf_cpu_attend *call)
{
    return call->num_groups == 1 && call->value_first + call->value_dim <= call->key_dim;
}

/* Of num_queries packed query rows; of what a thread keeps for one block. */
int64_t mf_cpu_attend_panel_floats(const mf_cpu_kernels *kernels, const mf_cpu_attend *call, int64_t num_queries);
int64_t mf_cpu_attend_block_floats(const mf_cpu_kernels *kernels, const mf_cpu_attend *call);

void mf_cpu_attend_pack(const mf_cpu_kernels *kernels, const mf_cpu_attend_item *it, float *panel);
/* Block at `first`, without rows before the item's view (in steps of MF_CPU_TILE_COLUMNS, which moves no sum), in `room`
 * [mf_cpu_attend_block_floats] as far as its rows do not stay where they are; starts: the task's first. */
void mf_cpu_attend_make_block(const mf_cpu_kernels *kernels, const mf_cpu_attend_item *it, mf_cpu_attend_share share,
                              float *room, int64_t first, bool starts, mf_cpu_attend_block *b);
/* Adds a block to a panel's part of the span; the span's first block, `starts`, starts it.  With `pending` (panels of
 * MF_CPU_COPY_QUERIES and more) mf_cpu_attend_end_span makes the sums. */
void mf_cpu_attend_add_block(const mf_cpu_kernels *kernels, const mf_cpu_attend_item *it, mf_cpu_attend_block *b,
                             bool starts, float *panel, float *room, const mf_cpu_attend_part *span,
                             mf_cpu_attend_pending *pending);
void mf_cpu_attend_end_span(const mf_cpu_kernels *kernels, const mf_cpu_attend_item *it, const mf_cpu_attend_part *span,
                            mf_cpu_attend_pending *pending);
/* A part without rows: merging onto it gives what is merged. */
void mf_cpu_attend_clear(const mf_cpu_attend *call, const mf_cpu_attend_part *sums, int64_t num_queries);

#endif
