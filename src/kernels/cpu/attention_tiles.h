/* attention_tiles.h - attention's loops, written once for every vector ISA.
 *
 * The ISA's file defines before including it
 *   vec, LANES (a divisor of MF_CPU_QUERY_LANES), v_zero(), v_set(x), v_load(p), v_store(p, v), v_load_part(p, n),
 *   v_store_part(p, v, n) for n < LANES, v_add, v_mul, v_sub, v_fma(a, b, c) = a * b + c, v_max(a, b) = a > b ? a : b,
 *   v_exp(x) for x <= 0 or NaN, v_keep_below(s, limits, x): x in lanes where s < limits[lane], else -infinity,
 *   v_keep_from(s, begins, x): x in lanes where s >= begins[lane], else -infinity,
 * and the shapes of its tiles, by what its registers hold:
 *   SCORE_VECTORS, SCORE_ROWS(vectors): vectors of queries and cached rows of a tile of scores
 *   BLEND_QUERIES: queries of a tile of weighted sums, two vectors wide. */
#include <float.h>
#include <string.h>

#include "kernels/cpu/unroll.h"

enum {
    MOST_ROWS = 12,
    MOST_QUERIES = 12,
    WIDE = 8,            /* vectors of a tile with one query: enough chains to hide an fma's latency */
    PANEL_FLOATS = 6144, /* of the panel kept in L1 while cached rows pass: a half of 48 KiB */
    LINE_FLOATS = 16
};

INLINE int64_t most_rows(const int32_t *limits, int64_t n)
{
    int32_t most = 0;
    for (int64_t q = 0; q < n; q++) {
        most = limits[q] > most ? limits[q] : most;
    }
    return most;
}

INLINE int64_t least_rows(const int32_t *limits, int64_t n)
{
    int32_t least = limits[0];
    for (int64_t q = 1; q < n; q++) {
        least = limits[q] < least ? limits[q] : least;
    }
    return least;
}

/* ---- memory that will be wanted ---- */

typedef mf_cpu_asker asker;

/* Asks for the next `lines` lines. */
INLINE void ask_ahead(asker *a, int lines)
{
    for (int i = 0; i < lines && a->row < a->rows.num_rows; i++) {
        __builtin_prefetch(a->rows.rows[a->row] + a->column, 0, 3);
        a->column += LINE_FLOATS;
        if (a->column >= a->rows.floats) {
            a->column = 0;
            a->row++;
        }
    }
}

/* ---- scores ---- */

/* Rows [s, s + NR), NV vectors of queries from q, dimensions [first, end): the chains go on where an earlier part of
 * the dimensions left them. */
INLINE void score_tile(const mf_cpu_scores *a, const int NR, const int NV, int64_t s, int64_t q, int64_t first,
                       int64_t end, asker *ahead)
{
    vec acc[MOST_ROWS][SCORE_VECTORS];
    const float *row[MOST_ROWS];
    float *out = a->out + s * a->stride + q;
    UNROLL(12) for (int r = 0; r < NR; r++) {
        row[r] = a->rows[s + r];
        UNROLL(4) for (int v = 0; v < NV; v++) {
            acc[r][v] = first == 0 ? v_zero() : v_load(out + r * a->stride + v * LANES);
        }
    }
    const float *queries = a->queries + first * a->stride + q;
    for (int64_t d = first; d < end;) {
        const int64_t stop = end - d < LINE_FLOATS ? end : d + LINE_FLOATS;
        ask_ahead(ahead, NR);
        for (; d < stop; d++, queries += a->stride) {
            vec x[SCORE_VECTORS];
            UNROLL(4) for (int v = 0; v < NV; v++) {
                x[v] = v_load(queries + v * LANES);
            }
            UNROLL(12) for (int r = 0; r < NR; r++) {
                const vec value = v_set(row[r][d]);
                UNROLL(4) for (int v = 0; v < NV; v++) {
                    acc[r][v] = v_fma(value, x[v], acc[r][v]);
                }
            }
        }
    }
    UNROLL(12) for (int r = 0; r < NR; r++) {
        UNROLL(4) for (int v = 0; v < NV; v++) {
            v_store(out + r * a->stride + v * LANES, acc[r][v]);
        }
    }
}

INLINE void score_group(const mf_cpu_scores *a, const int NV, int64_t q, asker *ahead)
{
    const int NR = SCORE_ROWS(NV);
    const int64_t part = PANEL_FLOATS / (NV * LANES);
    const int64_t num_rows = most_rows(a->limits + q, NV * LANES);
    for (int64_t first = 0; first < a->dim; first += part) {
        const int64_t end = a->dim - first < part ? a->dim : first + part;
        int64_t s = a->first_row;
        for (; s + NR <= num_rows; s += NR) {
            score_tile(a, NR, NV, s, q, first, end, ahead);
        }
        if (NR > 8 && s + 8 <= num_rows) {
            score_tile(a, NR > 8 ? 8 : 1, NV, s, q, first, end, ahead);
            s += 8;
        }
        for (; s + 4 <= num_rows; s += 4) {
            score_tile(a, 4, NV, s, q, first, end, ahead);
        }
        for (; s + 2 <= num_rows; s += 2) {
            score_tile(a, 2, NV, s, q, first, end, ahead);
        }
        if (s < num_rows) {
            score_tile(a, 1, NV, s, q, first, end, ahead);
        }
    }
}

static void scores_of(const mf_cpu_scores *a)
{
    asker ahead = { .rows = a->ahead };
    int64_t q = a->first_query / LANES * LANES;
    const int64_t end = a->stride;
    for (; q + 4 * LANES <= end && SCORE_VECTORS >= 4; q += 4 * LANES) {
        score_group(a, SCORE_VECTORS >= 4 ? 4 : 1, q, &ahead);
    }
    for (; q + 2 * LANES <= end && a->limits[q + LANES] > 0; q += 2 * LANES) {
        score_group(a, 2, q, &ahead);
    }
    for (; q < end; q += LANES) {
        score_group(a, 1, q, &ahead);
    }
}

/* ---- softmax ---- */

/* One vector of queries whose rows begin where each one's view does. */
INLINE void softmax_within(const mf_cpu_softmax *a, int64_t q, vec scale)
{
    const int32_t *begins = a->begins + q, *limits = a->limits + q;
    const int64_t first = least_rows(begins, LANES), most = most_rows(limits, LANES);
    vec max = v_set(-FLT_MAX), sum = v_zero();
    float *x = a->scores + q;
    for (int64_t s = first; s < most; s++) {
        const vec score = v_mul(v_load(x + s * a->stride), scale);
        max = v_max(v_keep_from(s, begins, v_keep_below(s, limits, score)), max);
    }
    for (int64_t s = first; s < most; s++) {
        if (a->ahead) {
            ask_ahead(a->ahead, 1);
        }
        const vec score = v_mul(v_load(x + s * a->stride), scale);
        const vec weight = v_exp(v_sub(v_keep_from(s, begins, v_keep_below(s, limits, score)), max));
        v_store(x + s * a->stride, weight);
        sum = v_add(sum, weight);
    }
    v_store(a->max + q, max);
    v_store(a->sum + q, sum);
}

static void softmax_of(const mf_cpu_softmax *a)
{
    const vec scale = v_set(a->scale);
    for (int64_t q = a->first_query / LANES * LANES; q < a->stride; q += LANES) {
        if (a->begins) {
            softmax_within(a, q, scale);
            continue;
        }
        const int32_t *limits = a->limits + q;
        const int64_t least = least_rows(limits, LANES), most = most_rows(limits, LANES);
        vec max = v_set(-FLT_MAX), sum = v_zero();
        float *x = a->scores + q;
        int64_t row = 0;
        vec more[3] = { max, max, max }; /* which of equal maxima wins changes no bit of a result */
        for (; row + 4 <= least; row += 4) {
            max = v_max(v_mul(v_load(x + row * a->stride), scale), max);
            UNROLL(3) for (int i = 0; i < 3; i++) {
                more[i] = v_max(v_mul(v_load(x + (row + 1 + i) * a->stride), scale), more[i]);
            }
        }
        max = v_max(v_max(more[1], more[2]), v_max(more[0], max));
        for (; row < least; row++) {
            max = v_max(v_mul(v_load(x + row * a->stride), scale), max);
        }
        for (int64_t s = least; s < most; s++) {
            max = v_max(v_keep_below(s, limits, v_mul(v_load(x + s * a->stride), scale)), max);
        }
        for (int64_t s = 0; s < least; s++) {
            if (a->ahead) {
                ask_ahead(a->ahead, 1);
            }
            const vec weight = v_exp(v_sub(v_mul(v_load(x + s * a->stride), scale), max));
            v_store(x + s * a->stride, weight);
            sum = v_add(sum, weight);
        }
        for (int64_t s = least; s < most; s++) {
            const vec kept = v_keep_below(s, limits, v_mul(v_load(x + s * a->stride), scale));
            const vec weight = v_exp(v_sub(kept, max));
            v_store(x + s * a->stride, weight);
            sum = v_add(sum, weight);
        }
        v_store(a->max + q, max);
        v_store(a->sum + q, sum);
    }
}

static void merge_of(float *max, float *sum, const float *part_max, const float *part_sum, int64_t n, float *alpha,
                     float *beta)
{
    for (int64_t q = 0; q < n; q += LANES) {
        const vec old = v_load(max + q), part = v_load(part_max + q);
        const vec m = v_max(part, old);
        const vec a = v_exp(v_sub(old, m)), b = v_exp(v_sub(part, m));
        v_store(alpha + q, a);
        v_store(beta + q, b);
        v_store(sum + q, v_fma(v_load(part_sum + q), b, v_mul(v_load(sum + q), a)));
        v_store(max + q, m);
    }
}

/* ---- weighted sums ---- */

INLINE vec load_some(const float *p, const bool whole, int64_t left)
{
    return whole ? v_load(p) : v_load_part(p, left);
}

INLINE void store_some(float *p, vec v, const bool whole, int64_t left)
{
    if (whole) {
        v_store(p, v);
    } else {
        v_store_part(p, v, left);
    }
}

/* Rows [s, end) of one query onto its sums. */
INLINE void blend_rows(const mf_cpu_blend *a, vec *acc, const int NV, const bool whole, int64_t s, int64_t end, int64_t q,
                       int64_t i, int64_t left)
{
    for (; s < end; s++) {
        const vec weight = v_set(a->weights[s * a->stride + q]);
        UNROLL(8) for (int v = 0; v < NV; v++) {
            acc[v] = v_fma(weight, load_some(a->rows[s] + i + v * LANES, whole, left), acc[v]);
        }
    }
}

/* Queries [q, q + NQ), NV vectors from column i, or `left` columns when not whole.  Rows that all of the queries see
 * come together, the few that only the earlier or the later ones see query by query. */
INLINE void blend_tile(const mf_cpu_blend *a, const int NQ, const int NV, const bool whole, int64_t q, int64_t i,
                       int64_t left, asker *ahead)
{
    vec acc[MOST_QUERIES][WIDE];
    const int32_t *limits = a->limits + q;
    const int32_t *begins = a->begins ? a->begins + q : NULL;
    const int64_t common = limits[0];
    const int64_t first = !begins ? 0 : begins[NQ - 1] < common ? begins[NQ - 1] : common;
    float *out = a->acc + q * a->acc_stride + i;
    UNROLL(12) for (int j = 0; j < NQ; j++) {
        UNROLL(8) for (int v = 0; v < NV; v++) {
            acc[j][v] = a->onto_acc ? load_some(out + j * a->acc_stride + v * LANES, whole, left) : v_zero();
        }
    }
    if (first > 0 && begins[0] < first) {
        UNROLL(12) for (int j = 0; j < NQ; j++) {
            blend_rows(a, acc[j], NV, whole, begins[j], first, q + j, i, left);
        }
    }
    const float *weights = a->weights + first * a->stride + q;
    for (int64_t s = first; s < common; s++, weights += a->stride) {
        const float *row = a->rows[s] + i;
        if (q == a->first_query) {
            ask_ahead(ahead, (NV * LANES + LINE_FLOATS - 1) / LINE_FLOATS);
        }
        vec x[WIDE];
        UNROLL(8) for (int v = 0; v < NV; v++) {
            x[v] = load_some(row + v * LANES, whole, left);
        }
        UNROLL(12) for (int j = 0; j < NQ; j++) {
            const vec weight = v_set(weights[j]);
            UNROLL(8) for (int v = 0; v < NV; v++) {
                acc[j][v] = v_fma(weight, x[v], acc[j][v]);
            }
        }
    }
    if (limits[NQ - 1] > common) {
        UNROLL(12) for (int j = 1; j < NQ; j++) {
            const int64_t begin = begins && begins[j] > common ? begins[j] : common;
            blend_rows(a, acc[j], NV, whole, begin, limits[j], q + j, i, left);
        }
    }
    UNROLL(12) for (int j = 0; j < NQ; j++) {
        UNROLL(8) for (int v = 0; v < NV; v++) {
            float *p = out + j * a->acc_stride + v * LANES;
            vec sum = acc[j][v];
            if (a->alpha) {
                sum = v_fma(sum, v_set(a->beta[q + j]), v_mul(load_some(p, whole, left), v_set(a->alpha[q + j])));
            }
            store_some(p, sum, whole, left);
        }
    }
}

INLINE void blend_strip(const mf_cpu_blend *a, const int NV, const bool whole, int64_t i, int64_t left, asker *ahead)
{
    int64_t q = a->first_query;
    for (; q + BLEND_QUERIES <= a->num_queries; q += BLEND_QUERIES) {
        blend_tile(a, BLEND_QUERIES, NV, whole, q, i, left, ahead);
    }
    if (BLEND_QUERIES > 8 && q + 8 <= a->num_queries) {
        blend_tile(a, BLEND_QUERIES > 8 ? 8 : 1, NV, whole, q, i, left, ahead);
        q += 8;
    }
    if (q + 4 <= a->num_queries) {
        blend_tile(a, 4, NV, whole, q, i, left, ahead);
        q += 4;
    }
    if (q + 2 <= a->num_queries) {
        blend_tile(a, 2, NV, whole, q, i, left, ahead);
        q += 2;
    }
    if (q < a->num_queries) {
        blend_tile(a, 1, NV, whole, q, i, left, ahead);
    }
}

static void blend_of(const mf_cpu_blend *a)
{
    asker ahead = { .rows = a->ahead };
    int64_t i = 0;
    if (a->num_queries - a->first_query == 1) {
        for (; i + WIDE * LANES <= a->n; i += WIDE * LANES) {
            blend_tile(a, 1, WIDE, true, a->first_query, i, 0, &ahead);
        }
    }
    for (; i + 2 * LANES <= a->n; i += 2 * LANES) {
        blend_strip(a, 2, true, i, 0, &ahead);
    }
    if (i + LANES <= a->n) {
        blend_strip(a, 1, true, i, 0, &ahead);
        i += LANES;
    }
    if (i < a->n) {
        blend_strip(a, 1, false, i, a->n - i, &ahead);
    }
}

static void combine_of(float *acc, const float *part, float alpha, float beta, int64_t n)
{
    const vec a = v_set(alpha), b = v_set(beta);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        v_store(acc + i, v_fma(v_load(part + i), b, v_mul(v_load(acc + i), a)));
    }
    if (i < n) {
        v_store_part(acc + i, v_fma(v_load_part(part + i, n - i), b, v_mul(v_load_part(acc + i, n - i), a)), n - i);
    }
}

static void scale_of(const float *acc, float factor, int64_t n, float *out)
{
    const vec f = v_set(factor);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        v_store(out + i, v_mul(v_load(acc + i), f));
    }
    if (i < n) {
        v_store_part(out + i, v_mul(v_load_part(acc + i, n - i), f), n - i);
    }
}
