/* cpu_kernels.h - the table that the dispatch ladder fills: scalar C first, then each ISA overwrites what it improves.
 *
 * Every entry's result for one (row, token) depends on the row, the token's values and the sizes alone, in one order of
 * sums per ISA and format: never on how many rows or tokens a call carries. */
#ifndef MF_KERNELS_CPU_KERNELS_H
#define MF_KERNELS_CPU_KERNELS_H

#include "kernels/fp_env.h"
#include "kernels/quantise.h"
#include "kernels/ref/gate_row.h"

/* out[t * out_stride + r] = row (first_row + r) of w times x[t], r < num_rows, t < num_tokens. */
typedef struct mf_cpu_tile {
    const mf_matrix *w;
    int64_t first_row, num_rows;
    int64_t num_tokens;
    const void *const *x; /* [num_tokens] rows of w->k: f32, or i16 codes for tile_int8_codes */
    const float *x_scale; /* [num_tokens] scales of i16 codes */
    float *out;
    int64_t out_stride;
} mf_cpu_tile;

typedef void (*mf_cpu_tile_fn)(const mf_cpu_tile *tile);

/* Rows that a combine adds: acc[h] = fma(weight[k], row[k][first + h], acc[h]), k ascending, for h < n. */
typedef struct mf_cpu_terms {
    mf_dtype dtype; /* of all rows: f32, bf16 or f16, at any alignment */
    int32_t count;
    const void *const *row;
    const float *weight;
} mf_cpu_terms;

/* acc[h][i] += sum over s, ascending, of weight[h][s] * row[s][i], for i < n, h < num_heads. */
typedef struct mf_cpu_mix {
    const float *rows, *weights;
    int64_t row_stride, weight_stride;
    int64_t num_rows, num_heads, n;
    float *acc;
    int64_t acc_stride;
} mf_cpu_mix;

typedef struct mf_cpu_kernels {
    const char *isa;                      /* "c", "avx2+fma+f16c" */
    mf_cpu_tile_fn tile[MF_FORMAT_COUNT]; /* x in f32; x that was quantised to fp8 is f32 again, code times scale */
    mf_cpu_tile_fn tile_int8_codes;       /* INT8_CHANNEL weights, x in codes: sums of integers */
    /* h[i] = act(g[i], u[i]) rounded to dtype, kept as f32.  h may be g.  i < n, n any. */
    void (*activate)(const mf_slot *slot, mf_dtype dtype, const float *g, const float *u, int64_t n, float *h);
    /* f32 <-> stored rows of f32, bf16, f16 */
    void (*load_row)(const void *data, mf_dtype dtype, int64_t n, float *out);
    void (*store_row)(const float *x, int64_t n, mf_dtype dtype, void *data);
    /* x[n] quantised, over itself: by the fp8 rules to code times scale; by INT8_TOKEN to i16 codes, which take the
     * first half of the row, and *scale. */
    void (*quantise)(mf_quant quant, float static_scale, bool e8m0, float *x, int64_t n, float *scale);
    void (*mix)(const mf_cpu_mix *mix);
    /* x[i] = exp(x[i] - max), and their sum */
    float (*exp_sum)(float *x, int64_t n, float max);
    void (*rms_norm)(const float *x, const float *weight, int64_t n, float eps, float *out);
    /* The gate's wide steps; bits are those of ref/gate.c. */
    const mf_gate_steps *gate_steps;
    /* The combine: bits are those of ref/sum_reduce.c. */
    void (*sum_rows)(const mf_cpu_terms *terms, int64_t first, int64_t n, float *acc);
    /* s = fma(factor, r, s), then + residual (may be NULL) */
    void (*scale_add)(float factor, const float *r, const float *residual, int64_t n, float *s);
} mf_cpu_kernels;

void mf_cpu_tile_c(const mf_cpu_tile *tile); /* every format with x in f32, any group size */

void mf_cpu_sum_reduce_fill_c(
    mf_cpu_kernels *kernels); /* entries of the combine and the gate; called by the two below */
void mf_cpu_sum_reduce_fill_avx2(mf_cpu_kernels *kernels);
void mf_cpu_gate_fill_avx2(mf_cpu_kernels *kernels);
void mf_cpu_kernels_fill_c(mf_cpu_kernels *kernels);
void mf_cpu_kernels_fill_avx2(mf_cpu_kernels *kernels); /* only in builds for x86-64 */

static inline const mf_cpu_kernels *mf_cpu_kernels_of(const mf_device *device)
{
    return device->kernels;
}

/* Runs tasks on the pool when there is enough work to pay for waking it; the tasks' results are the same either way. */
static inline void mf_cpu_run(mf_device *device, double work, int64_t num_tasks, mf_task_fn fn, void *context)
{
    enum { LEAST_WORK = 400000 };    /* multiply-adds: about 20 us of one core */
    mf_fp_env saved = mf_fp_enter(); /* the pool's own threads were started in this environment */
    mf_pool_run(work < LEAST_WORK ? NULL : device->pool, num_tasks, fn, context);
    mf_fp_leave(saved);
}

#endif
