/* attention_kernels.h - the inner kernels of attention: up to MF_CPU_QUERIES query rows against up to MF_CPU_KV_ROWS
 * rows of the cache.
 *
 * Queries lie side by side in a panel [dim][stride], so scores of one cached row are vectors of queries and no sum
 * crosses lanes: a score is one chain of multiply-adds over ascending d, a weighted sum one chain over ascending rows.
 * Neither depends on which queries or how many share a call.  Rows before a query's begin, and at or past its limit, never
 * enter its results.  begins may be NULL: all 0; like limits they ascend, and a query that sees nothing begins at its limit.
 */
#ifndef MF_KERNELS_CPU_ATTENTION_KERNELS_H
#define MF_KERNELS_CPU_ATTENTION_KERNELS_H

#include "kernels/ops.h"

enum {
    MF_CPU_QUERIES = 64,     /* most query rows of a panel */
    MF_CPU_QUERY_LANES = 16, /* panels are zero-padded to a multiple of it; a multiple of every ISA's lanes */
    MF_CPU_KV_ROWS = 128     /* most rows of a block */
};

/* Rows that will be read after this call: it asks the memory for them while it computes. */
typedef struct mf_cpu_ahead {
    const float *const *rows;
    int64_t num_rows, floats; /* of each row */
} mf_cpu_ahead;

/* The same asked for little by little, by one call after the other: a line now and then keeps memory busy where many at
 * once would only wait for each other. */
typedef struct mf_cpu_asker {
    mf_cpu_ahead rows;
    int64_t row, column; /* where the asking has come to */
} mf_cpu_asker;

/* out[s * stride + q] = rows[s] . query q, for first_row <= s < the largest limit of q's vector of lanes. */
typedef struct mf_cpu_scores {
    const float *const *rows;
    mf_cpu_ahead ahead;
    int64_t first_row;
    int64_t dim;
    const float *queries;  /* [dim][stride] */
    const int32_t *limits; /* [stride], 0 in the padding */
    int64_t first_query;   /* queries before it have limit 0 */
    int64_t stride;        /* num_queries rounded up to MF_CPU_QUERY_LANES */
    float *out;            /* [num_rows][stride] */
} mf_cpu_scores;

/* Per query, over begin <= s < limit: x = scale * score; max = the largest x, -FLT_MAX without any; scores become
 * e^(x - max), 0 from limit on; sum = their sum, s ascending.  NaN is not larger than anything and stays.  What becomes of
 * scores before a begin is open. */
typedef struct mf_cpu_softmax {
    float *scores; /* [num_rows][stride] */
    const int32_t *begins, *limits;
    int64_t first_query, stride;
    float scale;
    float *max, *sum; /* [stride] */
    mf_cpu_asker *ahead; /* or NULL */
} mf_cpu_softmax;

/* acc[q] = sum over begins[q] <= s < limits[q], ascending, of weights[s][q] * rows[s]: one chain from 0, or from acc
 * itself with `onto_acc`; with alpha and beta: fma(that sum, beta[q], acc[q] * alpha[q]).  Queries [first_query,
 * num_queries), whose limits are > 0 and ascend. */
typedef struct mf_cpu_blend {
    const float *const *rows;
    mf_cpu_ahead ahead;
    const float *weights; /* [num_rows][stride] */
    const int32_t *begins, *limits;
    int64_t first_query, num_queries, stride;
    int64_t n; /* floats per row */
    bool onto_acc;
    const float *alpha, *beta; /* NULL or [stride] */
    float *acc;
    int64_t acc_stride;
} mf_cpu_blend;

/* ---- a cache of bf16, with tiles that multiply bf16 ----
 *
 * Queries and softmax weights are rounded to bf16 and products summed in f32.  Cached keys are read where they lie: 16
 * rows, key_stride bytes apart, are the left factor of scores.  Cached values are laid out anew, pairs of rows side by
 * side, once per block for all queries: the right factor of the weighted sums. */

enum { MF_CPU_TILE_ROWS = 16, MF_CPU_TILE_COLUMNS = 32 };

/* Columns of rows that tiles read: zero-padded. */
static inline int64_t mf_cpu_tile_columns(int64_t dim)
{
    return (dim + MF_CPU_TILE_COLUMNS - 1) / MF_CPU_TILE_COLUMNS * MF_CPU_TILE_COLUMNS;
}

/* out[s * stride + q] = row s . query q, as mf_cpu_scores; also for the rows that fill a group of 16. */
typedef struct mf_cpu_tile_scores {
    const void *const *groups; /* [num_rows / 16, rounded up]: where 16 rows start */
    int64_t key_stride;        /* bytes between them */
    mf_cpu_asker *ahead;
    int64_t first_row;
    int64_t dim;           /* a multiple of MF_CPU_TILE_COLUMNS */
    const void *queries;   /* of `pack` below */
    const int32_t *limits; /* [stride] */
    int64_t first_query, stride;
    float *out; /* [num_rows, rounded up to 16][stride] */
} mf_cpu_tile_scores;

/* Weights of rows [first_row, num_rows) for queries [first_query, num_queries), 0 outside [begins, limits). */
typedef struct mf_cpu_tile_weights {
    const float *weights; /* [num_rows][stride] */
    int64_t first_row, num_rows;
    mf_cpu_asker *ahead;
    const int32_t *begins, *limits; /* begins: NULL when all are 0 */
    int64_t first_query, num_queries, stride;
} mf_cpu_tile_weights;

enum { MF_CPU_TILE_WEIGHTS_BYTES = MF_CPU_QUERIES * MF_CPU_KV_ROWS * 2 };

/* As mf_cpu_blend, over rows that `pack_rows` has laid out, weighed as `weigh` left it; onto_acc is alpha = beta = 1. */
typedef struct mf_cpu_tile_blend {
    const void *rows, *weights;
    int64_t first_row, num_rows; /* rows before the first are not needed */
    mf_cpu_asker *ahead;
    int64_t first_query;
    const float *alpha, *beta; /* NULL or [stride] */
} mf_cpu_tile_blend;

/* Where they go: of num_queries in all, n floats each. */
typedef struct mf_cpu_tile_sums {
    int64_t num_queries, n;
    float *acc;
    int64_t acc_stride;
} mf_cpu_tile_sums;

typedef struct mf_cpu_attention_tiles {
    /* Queries [stride][dim, padded] as right factors; stride * mf_cpu_tile_columns(dim) * 2 bytes. */
    void (*pack)(const float *const *queries, int64_t num_queries, int64_t dim, void *panel, int64_t stride);
    void (*scores)(const mf_cpu_tile_scores *scores);
    /* num_rows <= MF_CPU_KV_ROWS rows of bf16 (NULL: zeros), padded with zeros to a multiple of 32 rows and columns, which
     * it takes 2 bytes each.  false: some value is not finite, and 0 times it would not be 0. */
    bool (*pack_rows)(const void *const *rows, int64_t num_rows, int64_t dim, mf_cpu_asker *ahead, void *out);
    void (*weigh)(const mf_cpu_tile_weights *weights, void *out); /* MF_CPU_TILE_WEIGHTS_BYTES, on a line of the cache */
    /* `count` parts one after the other: together they pass over acc once. */
    void (*blend)(const mf_cpu_tile_blend *parts, int64_t count, const mf_cpu_tile_sums *sums);
} mf_cpu_attention_tiles;

typedef struct mf_cpu_attention_kernels {
    const mf_cpu_attention_tiles *tiles; /* NULL: rows of a bf16 cache become f32 first */
    /* panel[d * stride + q] = queries[q][d], 0 for num_queries <= q < stride */
    void (*pack)(const float *const *queries, int64_t num_queries, int64_t dim, float *panel, int64_t stride);
    void (*scores)(const mf_cpu_scores *scores);
    void (*softmax)(const mf_cpu_softmax *softmax);
    /* Per lane, for two parts of a softmax: m = max(max, part_max); alpha = e^(max - m), beta = e^(part_max - m);
     * sum = fma(part_sum, beta, sum * alpha); max = m.  A part without rows (-FLT_MAX, 0) changes nothing. */
    void (*merge)(float *max, float *sum, const float *part_max, const float *part_sum, int64_t n, float *alpha,
                  float *beta);
    void (*blend)(const mf_cpu_blend *blend);
    /* acc = fma(part, beta, acc * alpha), n floats */
    void (*combine)(float *acc, const float *part, float alpha, float beta, int64_t n);
    /* out = acc * factor */
    void (*scale)(const float *acc, float factor, int64_t n, float *out);
    /* mf_matrix_decode_row */
    void (*decode_row)(const mf_matrix *m, int64_t r, int64_t first, int64_t count, float *out);
} mf_cpu_attention_kernels;

#endif
