/* bench_parts.h - what the files of this folder share: the machine's ceilings, memory for weights, shapes, times. */
#ifndef MF_KERNELS_BENCH_PARTS_H
#define MF_KERNELS_BENCH_PARTS_H

#include "base/arena.h"
#include "base/random.h"
#include "base/sys.h"
#include "kernels/bench/rates.h"
#include "kernels/ops.h"

/* ---- the machine ---- */

const mf_rates *mf_bench_rates_of(const char *level); /* NULL: no loops for it */

typedef enum mf_bench_pages {
    MF_BENCH_PAGES_SMALL,
    MF_BENCH_PAGES_HUGE,       /* where the system has them */
    MF_BENCH_PAGES_INTERLEAVED /* huge, in turn over all NUMA nodes */
} mf_bench_pages;

/* A block on pages of the wanted kind, filled, first touched by the pool's threads. */
typedef struct mf_bench_block {
    void *small, *huge; /* owned; one of them */
    uint8_t *data;
    size_t bytes, used;
} mf_bench_block;

mf_status mf_bench_block_open(mf_bench_block *block, mf_pool *pool, size_t bytes, mf_bench_pages pages, mf_error *err);
void mf_bench_block_close(mf_bench_block *block);
/* The next `bytes` of the block, 64-byte aligned; NULL when it is full. */
void *mf_bench_block_take(mf_bench_block *block, size_t bytes);

/* GB/s over the block: median of passes, by the fastest of the machine's read loops. */
double mf_bench_read_block(mf_pool *pool, const mf_bench_block *block, double seconds);
/* Giga-operations per second on the pool: the level's own loop or, with or_lower, the best up to it. */
double mf_bench_pool_rate(mf_pool *pool, const char *level, bool or_lower, mf_rate_kind kind, double seconds);

int mf_bench_compare_doubles(const void *a, const void *b);

/* ---- shapes ---- */

typedef struct mf_bench_shape {
    const char *name;
    int64_t hidden, width, experts, top_k, shared;
    mf_scoring scoring;
    int32_t n_group, topk_group;
    double factor;
    int64_t heads, kv_heads, head_dim;  /* grouped-query attention; kv_heads 0: MLA */
    int64_t nope, rope, v_dim, kv_lora; /* MLA */
} mf_bench_shape;

extern const mf_bench_shape mf_bench_shapes[];
extern const size_t mf_bench_num_shapes;

mf_gate_config mf_bench_gate_config(const mf_bench_shape *shape, bool with_shared_slots);

/* ---- a run ---- */

/* From a point's arena: 64-byte aligned, zeroed. */
void *mf_bench_take(mf_arena *arena, size_t bytes);
mf_status mf_bench_out_of_memory(mf_error *err);

enum { MF_BENCH_MAX_REPEATS = 1000, MF_BENCH_MAX_LAYERS = 8 };

/* Of a run's weights and caches. */
static inline mf_bench_pages mf_bench_pages_of(const mf_bench_options *options)
{
    return options->interleave ? MF_BENCH_PAGES_INTERLEAVED : MF_BENCH_PAGES_HUGE;
}

typedef struct mf_bench_run {
    const mf_bench_options *options;
    const mf_bench_sink *sink;
    mf_device *device;
    const char *level; /* highest rung in use */
    const mf_bench_shape *shape;
    mf_format format;
    mf_act_quant act_quant;
    mf_dtype act_dtype;
    double read_ceiling;        /* GB/s over this run's own weights */
    double rate[MF_RATE_COUNT]; /* giga-operations per second, best of the levels in use */
    uint64_t seed;
    double times[MF_BENCH_MAX_REPEATS]; /* seconds */
    int32_t num_times;
} mf_bench_run;

/* Repeats: true while another one is wanted.  `index` starts at -WARM_UP. */
enum { MF_BENCH_WARM_UP = 2 };
bool mf_bench_wants_more(const mf_bench_run *run, int32_t index, double started);
void mf_bench_add_time(mf_bench_run *run, double seconds);

/* A row with names, times and the format's text filled in; sorts the run's times. */
mf_bench_row mf_bench_make_row(mf_bench_run *run, const char *op, int64_t tokens, bool has_weights);
/* Sets GB/s, GFLOP/s and the share of the ceiling that binds, reading or arithmetic: the nearer one. */
void mf_bench_set_rates(const mf_bench_run *run, mf_bench_row *row, double bytes, double operations, mf_rate_kind kind);
void mf_bench_emit(const mf_bench_run *run, const mf_bench_row *row);

/* The rate that bounds a product of this run's weights, given how activations enter. */
mf_rate_kind mf_bench_product_kind(const mf_bench_run *run);

/* x: random values in the run's activation dtype. */
void mf_bench_fill_activations(mf_dtype dtype, int64_t count, uint64_t *seed, void *out);
void mf_bench_fill_floats(float low, float high, int64_t count, uint64_t *seed, float *out);
/* ids [tokens, top_k + shared]: routed ones drawn without repetition, shared columns last.  Returns how many distinct.
 */
int64_t mf_bench_draw_ids(mf_bench_run *run, int64_t tokens, int32_t *ids, uint8_t *used);

/* ---- weights ---- */

int64_t mf_bench_code_bits(mf_format format);
/* int4_group: columns under one scale of INT4_GROUP. */
size_t mf_bench_matrix_room(mf_format format, int64_t int4_group, int64_t n, int64_t k);
mf_status mf_bench_make_matrix(mf_bench_block *block, mf_format format, int64_t int4_group, int64_t n, int64_t k,
                               mf_matrix *out, mf_error *err);

/* Layers of experts that take turns, so that caches hold nothing that a model's next layer would not find there. */
typedef struct mf_bench_layers {
    mf_bench_block block;
    int32_t count;
    mf_experts *all[MF_BENCH_MAX_LAYERS];    /* routed and shared slots */
    mf_experts *routed[MF_BENCH_MAX_LAYERS]; /* the routed ones of the same weights */
    mf_experts *shared[MF_BENCH_MAX_LAYERS]; /* NULL without shared ones */
    double slot_bytes;
} mf_bench_layers;

mf_status mf_bench_layers_open(mf_bench_run *run, mf_bench_layers *layers, mf_error *err);
void mf_bench_layers_close(mf_bench_layers *layers);

/* ---- the ops: one point each ---- */

mf_status mf_bench_experts(mf_bench_run *run, const mf_bench_layers *layers, int64_t tokens, mf_error *err);
mf_status mf_bench_layer(mf_bench_run *run, const mf_bench_layers *layers, int64_t tokens, mf_error *err);
mf_status mf_bench_gate(mf_bench_run *run, int64_t tokens, mf_error *err);
mf_status mf_bench_align(mf_bench_run *run, int64_t tokens, mf_error *err);
mf_status mf_bench_sum_reduce(mf_bench_run *run, int64_t tokens, mf_error *err);
mf_status mf_bench_linear(mf_bench_run *run, bool is_head, int64_t tokens, mf_error *err);
mf_status mf_bench_attention(mf_bench_run *run, int64_t tokens, bool prefill, mf_error *err);

#endif
