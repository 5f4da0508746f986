/* cpu_kernels.h - the table that the dispatch ladder fills: scalar C first, then each ISA overwrites what it improves.
 *
 * Every entry's result for one (row, token) depends on the row, the token's values and the sizes alone, in one order of
 * sums per ISA and format: never on how many rows or tokens a call carries. */
#ifndef MF_KERNELS_CPU_KERNELS_H
#define MF_KERNELS_CPU_KERNELS_H

#include "kernels/cpu/attention_kernels.h"
#include "kernels/fp_env.h"
#include "kernels/quantise.h"
#include "kernels/ref/gate_row.h"

/* ---- inputs of products ---- */

/* What the values of an input row (x, or the intermediate h) are. */
typedef enum mf_cpu_input {
    MF_CPU_INPUT_F32,  /* any f32; also x that was quantised to fp8 and is f32 again, code times scale */
    MF_CPU_INPUT_BF16, /* values that bf16 holds exactly: act_dtype bf16, not quantised */
    MF_CPU_INPUT_I8,   /* codes of MF_QUANT_INT8_TOKEN, with one scale per token */
    MF_CPU_INPUT_COUNT
} mf_cpu_input;

/* How they lie in memory: each product of each rung asks for one of these.  Columns are zero-padded to a multiple of
 * MF_CPU_COLUMNS, in the interleaved forms of MF_CPU_INTERLEAVED; rows start at multiples of 64 bytes. */
typedef enum mf_cpu_form {
    MF_CPU_FORM_F32,        /* f32, k ascending */
    MF_CPU_FORM_F32_SPLIT,  /* f32; of each `split` columns (mf_cpu_kernels) the even k first, then the odd: the order in
                               which pairs of bf16, or of 4-bit codes, come out of one vector */
    MF_CPU_FORM_F32_BYTES,  /* f32; of each MF_CPU_COLUMNS columns eight vectors of eight: 0, 4, 8, 12 and 32, 36, 40, 44,
                               from each of 0, 2, 16, 18, 1, 3, 17, 19 on, as 4-bit codes come out of 32 bytes of AVX2 */
    MF_CPU_FORM_BF16,       /* bf16, k ascending */
    MF_CPU_FORM_BF16_QUADS, /* bf16; of each MF_CPU_INTERLEAVED columns the first pairs of the four 32 columns, then the
                               second, to the sixteenth; of each 8 columns pairs are 0 and 4, 1 and 5, 2 and 6, 3 and 7, as
                               4-bit codes come out of words of 16 bits, shifted by 4 each time */
    MF_CPU_FORM_I8,         /* int8 codes, k ascending; behind them one i32 per 32 codes: their sum */
    MF_CPU_FORM_I8_SPLIT,   /* the same; of each 32 columns the even k first, then the odd */
    MF_CPU_FORM_I8_HALVES,  /* the same; of each MF_CPU_INTERLEAVED columns the even k first, then the odd */
    MF_CPU_FORM_BF16_PANEL, /* n <= 16 tokens together: [k / 2][n][2] bf16 */
    MF_CPU_FORM_I8_PANEL,   /* n <= 16 tokens together: [k / 4][n][4] int8, then [k / 32][n] i32 sums of 32 codes */
    MF_CPU_FORM_COUNT
} mf_cpu_form;

enum { MF_CPU_COLUMNS = 64, MF_CPU_INTERLEAVED = 128, MF_CPU_PANEL = 16, MF_CPU_MOST_TILE_TOKENS = 128 };

static inline int64_t mf_cpu_round_columns(int64_t k)
{
    return (k + MF_CPU_COLUMNS - 1) / MF_CPU_COLUMNS * MF_CPU_COLUMNS;
}

/* Into how many parts a form takes each MF_CPU_INTERLEAVED columns apart by k modulo their number; 1: into none. */
static inline int mf_cpu_form_parts(mf_cpu_form form)
{
    return form == MF_CPU_FORM_I8_HALVES ? 2 : 1;
}

static inline bool mf_cpu_form_is_interleaved(mf_cpu_form form)
{
    return mf_cpu_form_parts(form) > 1 || form == MF_CPU_FORM_BF16_QUADS;
}

/* Columns of a row with the zeros behind it. */
static inline int64_t mf_cpu_form_columns(mf_cpu_form form, int64_t k)
{
    return !mf_cpu_form_is_interleaved(form) ? mf_cpu_round_columns(k)
                                             : (k + MF_CPU_INTERLEAVED - 1) / MF_CPU_INTERLEAVED * MF_CPU_INTERLEAVED;
}

static inline bool mf_cpu_form_is_panel(mf_cpu_form form)
{
    return form == MF_CPU_FORM_BF16_PANEL || form == MF_CPU_FORM_I8_PANEL;
}

/* Bytes of one row; of one token's share of a panel. */
static inline int64_t mf_cpu_form_bytes(mf_cpu_form form, int64_t k)
{
    const int64_t columns = mf_cpu_form_columns(form, k);
    switch (form) {
    case MF_CPU_FORM_F32:
    case MF_CPU_FORM_F32_SPLIT:
    case MF_CPU_FORM_F32_BYTES:
        return 4 * columns;
    case MF_CPU_FORM_BF16:
    case MF_CPU_FORM_BF16_QUADS:
    case MF_CPU_FORM_BF16_PANEL:
        return 2 * columns;
    default:
        return (columns + columns / 32 * 4 + 63) / 64 * 64;
    }
}

/* Where packed values go. */
typedef struct mf_cpu_pack {
    mf_cpu_form form;
    int64_t k;                  /* columns of the whole row */
    int64_t token, num_tokens;  /* place in the panel and its n; panel forms only */
    void *row;                  /* the row, or the panel */
} mf_cpu_pack;

/* out[t * out_stride + r] = row (first_row + r) of w times input t, r < num_rows, t < num_tokens.
 * num_tokens is 1 to the table's tile_tokens, any number of rows. */
typedef struct mf_cpu_tile {
    const mf_matrix *w;
    int64_t first_row, num_rows;
    int64_t num_tokens;
    const void *const *x; /* [num_tokens] rows in the product's form; panels: x[i] holds tokens 16i to 16i + 15, the last
                             one as many as are left */
    const float *x_scale; /* [num_tokens], of codes */
    float *out;
    int64_t out_stride;
    const mf_matrix *next; /* rows from next_row on, as many and as long as the tile's, are what this thread may read after
                              them; NULL: unknown */
    int64_t next_row;
} mf_cpu_tile;

typedef void (*mf_cpu_tile_fn)(const mf_cpu_tile *tile);

typedef struct mf_cpu_product {
    mf_cpu_tile_fn fn; /* NULL: this format has no product with this input */
    mf_cpu_form form;
} mf_cpu_product;

/* Rows that a combine adds: acc[h] = fma(weight[k], row[k][first + h], acc[h]), k ascending, for h < n. */
typedef struct mf_cpu_terms {
    mf_dtype dtype; /* of all rows: f32, bf16 or f16, at any alignment */
    int32_t count;
    const void *const *row;
    const float *weight;
} mf_cpu_terms;

/* One row of a combine: out[h] = round(fma(factor, r, s) + residual[h]); r and s are the chains of both terms from +0. */
typedef struct mf_cpu_combine {
    mf_cpu_terms routed, shared; /* of one dtype */
    float factor;
    mf_dtype dtype;       /* of residual and out */
    const void *residual; /* a row, or NULL; may be out */
    void *out;
} mf_cpu_combine;

/* One token of a gated delta net, columns of one value head: S = decay * S + k (beta * (v - k^T (decay * S)))^T, out = q^T S.
 * Each column's sums run over the rows in ascending order, whatever its neighbours. */
enum { MF_CPU_DELTA_COLUMNS = 64 };

typedef struct mf_cpu_delta {
    float *state;        /* [k_dim] rows, state_stride apart */
    int64_t state_stride;
    int64_t k_dim;
    int64_t num_columns; /* <= MF_CPU_DELTA_COLUMNS */
    float decay, beta;
    const float *q, *k;  /* [k_dim] */
    const float *v;      /* [num_columns] */
    float *out;          /* [num_columns] */
} mf_cpu_delta;

typedef struct mf_cpu_kernels {
    const char *isa;                      /* "c", "avx2+fma+f16c" */
    mf_cpu_product product[MF_FORMAT_COUNT][MF_CPU_INPUT_COUNT]; /* F32 and BF16: every format; I8: INT8_CHANNEL and
                                                                    INT4_GROUP */
    int64_t split;       /* of MF_CPU_FORM_F32_SPLIT: twice the f32 lanes of a vector; divides MF_CPU_COLUMNS */
    int64_t tile_tokens; /* most tokens of one tile that a product takes: a multiple of 16, <= MF_CPU_MOST_TILE_TOKENS */
    /* Columns [first, first + n) of a row in the pack's form, x[0] being column first, a multiple of MF_CPU_COLUMNS.  The
     * call that ends at k writes the zeros behind it.  I8: x holds whole numbers; the sums of the columns are written too.
     * Each value is stored by its own bits or, where a form is narrower, exactly (the caller has rounded it). */
    void (*pack)(const mf_cpu_pack *pack, const float *x, int64_t first, int64_t n);
    /* The same columns of MF_CPU_PANEL rows of bf16, n of each, to their places in a MF_CPU_FORM_BF16_PANEL, with zeros up to
     * a multiple of MF_CPU_COLUMNS; NULL: pack has to do. */
    void (*turn_panel)(const uint16_t *const rows[MF_CPU_PANEL], int64_t n, void *panel);
    /* h[i] = act(g[i], u[i]) rounded to dtype, kept as f32.  h may be g.  i < n, n any. */
    void (*activate)(const mf_slot *slot, mf_dtype dtype, const float *g, const float *u, int64_t n, float *h);
    /* f32 <-> stored rows of f32, bf16, f16 */
    void (*load_row)(const void *data, mf_dtype dtype, int64_t n, float *out);
    void (*store_row)(const float *x, int64_t n, mf_dtype dtype, void *data);
    /* x[n] quantised, over itself, as f32: by the fp8 rules to code times scale; by INT8_TOKEN to codes and *scale. */
    void (*quantise)(mf_quant quant, float static_scale, bool e8m0, float *x, int64_t n, float *scale);
    mf_cpu_attention_kernels attention;
    void (*rms_norm)(const float *x, const float *weight, int64_t n, float eps, float *out);
    void (*delta_step)(const mf_cpu_delta *step);
    int64_t delta_columns; /* that a step takes best, <= MF_CPU_DELTA_COLUMNS */
    /* x[i] *= sigmoid(gate[i]) */
    void (*sigmoid_gate)(float *x, const float *gate, int64_t n);
    /* acc[i] += x[i] */
    void (*add)(float *acc, const float *x, int64_t n);
    /* Rotates vectors in place by the bits of ref/dense.c: pairs (2i, 2i + 1), or (i, i + dim / 2); cos_sin [dim / 2][2]. */
    void (*rope)(float *x, int64_t num_vectors, int64_t vector_stride, int64_t dim, bool pair, const float *cos_sin);
    /* The gate's wide steps; bits are those of ref/gate.c. */
    const mf_gate_steps *gate_steps;
    /* The combine: bits are those of ref/sum_reduce.c. */
    void (*sum_rows)(const mf_cpu_terms *terms, int64_t first, int64_t n, float *acc);
    /* s = fma(factor, r, s), then + residual (may be NULL) */
    void (*scale_add)(float factor, const float *r, const float *residual, int64_t n, float *s);
    /* Elements [first, first + n) of a row, the two above in one; NULL: they are called instead. */
    void (*combine)(const mf_cpu_combine *combine, int64_t first, int64_t n);
} mf_cpu_kernels;

void mf_cpu_tile_c(const mf_cpu_tile *tile); /* every format with MF_CPU_FORM_F32, any group size */
/* Every form, for any split: what a rung's own pack falls back to. */
void mf_cpu_pack_c(const mf_cpu_pack *pack, int64_t split, const float *x, int64_t first, int64_t n);
/* Where column k stands when each `block` columns are taken apart by k modulo `parts`. */
static inline int64_t mf_cpu_place_apart(int64_t k, int64_t block, int64_t parts)
{
    const int64_t i = k % block;
    return k - i + i % parts * (block / parts) + i / parts;
}
/* Where MF_CPU_FORM_BF16_QUADS keeps column k. */
static inline int64_t mf_cpu_place_in_quads(int64_t k)
{
    const int64_t i = k % MF_CPU_INTERLEAVED;
    return k - i + (i % 32 / 8 * 4 + i % 4) * 8 + i / 32 * 2 + i % 8 / 4;
}
/* Where MF_CPU_FORM_F32_BYTES keeps column k. */
static inline int64_t mf_cpu_place_in_bytes(int64_t k)
{
    const int64_t i = k % MF_CPU_COLUMNS;
    return k - i + (i % 2 * 4 + i / 16 % 2 * 2 + i / 2 % 2) * 8 + i / 32 * 4 + i / 4 % 4;
}
/* Where a form keeps column k of a row, in elements, for the forms that are not panels. */
int64_t mf_cpu_form_place(const mf_cpu_kernels *kernels, mf_cpu_form form, int64_t k);

void mf_cpu_delta_step_c(const mf_cpu_delta *step); /* any number of columns */
void mf_cpu_sum_reduce_fill_c(
    mf_cpu_kernels *kernels); /* entries of the combine and the gate; called by the two below */
void mf_cpu_sum_reduce_fill_avx2(mf_cpu_kernels *kernels);
void mf_cpu_gate_fill_avx2(mf_cpu_kernels *kernels);
/* The entries of attention; called by the rungs below. */
void mf_cpu_attention_fill_c(mf_cpu_kernels *kernels);
void mf_cpu_attention_fill_avx2(mf_cpu_kernels *kernels);
void mf_cpu_attention_fill_avx512(mf_cpu_kernels *kernels);
void mf_cpu_attention_fill_amx(mf_cpu_kernels *kernels);          /* called by the ladder, after the rung's products */
void mf_cpu_attention_fill_amx_emulated(mf_cpu_kernels *kernels); /* only in tests' builds */
void mf_cpu_kernels_fill_c(mf_cpu_kernels *kernels);
void mf_cpu_kernels_fill_avx2(mf_cpu_kernels *kernels); /* only in builds for x86-64 */
void mf_cpu_products_fill_avx2(mf_cpu_kernels *kernels);   /* the product table, split and tile_tokens; so does the next */
void mf_cpu_products_fill_avx512(mf_cpu_kernels *kernels);
/* Codes under scales of groups; called by the rungs' products. */
void mf_cpu_quads_fill_avx512_vnni(mf_cpu_kernels *kernels);
void mf_cpu_quads_fill_avx512_bf16(mf_cpu_kernels *kernels);
void mf_cpu_codes_fill_avx2(mf_cpu_kernels *kernels); /* products of int8 inputs */
void mf_cpu_products_fill_avx512_vnni(mf_cpu_kernels *kernels); /* + VNNI: products of int8 inputs */
void mf_cpu_products_fill_avx512_bf16(mf_cpu_kernels *kernels); /* + BF16, VBMI: products of bf16 inputs */
void mf_cpu_kernels_fill_avx512(mf_cpu_kernels *kernels); /* F, BW, VL, DQ; the next two too */
void mf_cpu_gate_fill_avx512(mf_cpu_kernels *kernels);
void mf_cpu_sum_reduce_fill_avx512(mf_cpu_kernels *kernels);
void mf_cpu_kernels_fill_amx(mf_cpu_kernels *kernels); /* products with tiles; this process must be allowed to use them */
void mf_cpu_products_fill_amx_int8(mf_cpu_kernels *kernels);
void mf_cpu_kernels_fill_amx_emulated(mf_cpu_kernels *kernels); /* the same in plain C: only in tests' builds */
void mf_cpu_products_fill_amx_int8_emulated(mf_cpu_kernels *kernels);
void mf_cpu_kernels_fill_neon(mf_cpu_kernels *kernels); /* only in builds for aarch64; the next two need the rung below */
void mf_cpu_kernels_fill_neon_dotprod(mf_cpu_kernels *kernels);
void mf_cpu_kernels_fill_neon_bf16(mf_cpu_kernels *kernels);

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
