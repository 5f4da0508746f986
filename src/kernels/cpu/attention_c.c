/* attention_c.c - attention's inner kernels in plain C. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_kernels.h"

static void pack_c(const float *const *queries, int64_t num_queries, int64_t dim, float *panel, int64_t stride)
{
    for (int64_t d = 0; d < dim; d++) {
        for (int64_t q = 0; q < stride; q++) {
            panel[d * stride + q] = q < num_queries ? queries[q][d] : 0.0f;
        }
    }
}

static int64_t largest_limit(const int32_t *limits, int64_t n)
{
    int32_t most = 0;
    for (int64_t q = 0; q < n; q++) {
        most = limits[q] > most ? limits[q] : most;
    }
    return most;
}

enum { LANES = MF_CPU_QUERY_LANES };

static void scores_c(const mf_cpu_scores *a)
{
    for (int64_t q = a->first_query / LANES * LANES; q < a->stride; q += LANES) {
        const int64_t num_rows = largest_limit(a->limits + q, LANES);
        for (int64_t s = a->first_row; s < num_rows; s++) {
            float acc[LANES] = { 0 };
            for (int64_t d = 0; d < a->dim; d++) {
                const float x = a->rows[s][d];
                const float *queries = a->queries + d * a->stride + q;
                for (int i = 0; i < LANES; i++) {
                    acc[i] += x * queries[i];
                }
            }
            memcpy(a->out + s * a->stride + q, acc, sizeof acc);
        }
    }
}

static void softmax_c(const mf_cpu_softmax *a)
{
    for (int64_t q = a->first_query / LANES * LANES; q < a->stride; q += LANES) {
        const int64_t num_rows = largest_limit(a->limits + q, LANES);
        for (int64_t i = q; i < q + LANES; i++) {
            const int64_t begin = a->begins ? a->begins[i] : 0;
            float max = -FLT_MAX, sum = 0.0f;
            for (int64_t s = begin; s < a->limits[i]; s++) {
                float *x = a->scores + s * a->stride + i;
                *x *= a->scale;
                max = *x > max ? *x : max;
            }
            for (int64_t s = begin; s < num_rows; s++) {
                float *x = a->scores + s * a->stride + i;
                *x = s < a->limits[i] ? expf(*x - max) : 0.0f;
                sum += *x;
            }
            a->max[i] = max;
            a->sum[i] = sum;
        }
    }
}

static void merge_c(float *max, float *sum, const float *part_max, const float *part_sum, int64_t n, float *alpha,
                    float *beta)
{
    for (int64_t i = 0; i < n; i++) {
        const float m = part_max[i] > max[i] ? part_max[i] : max[i];
        alpha[i] = expf(max[i] - m);
        beta[i] = expf(part_max[i] - m);
        sum[i] = part_sum[i] * beta[i] + sum[i] * alpha[i];
        max[i] = m;
    }
}

static void combine_c(float *acc, const float *part, float alpha, float beta, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        acc[i] = part[i] * beta + acc[i] * alpha;
    }
}

static void blend_c(const mf_cpu_blend *a)
{
    enum { STRIP = 64 };
    for (int64_t q = a->first_query; q < a->num_queries; q++) {
        for (int64_t i = 0; i < a->n; i += STRIP) {
            const int64_t n = a->n - i < STRIP ? a->n - i : STRIP;
            float *out = a->acc + q * a->acc_stride + i;
            float acc[STRIP] = { 0 };
            if (a->onto_acc) {
                memcpy(acc, out, (size_t)n * sizeof *acc);
            }
            for (int64_t s = a->begins ? a->begins[q] : 0; s < a->limits[q]; s++) {
                const float weight = a->weights[s * a->stride + q];
                const float *row = a->rows[s] + i;
                for (int64_t j = 0; j < n; j++) {
                    acc[j] += weight * row[j];
                }
            }
            if (a->alpha) {
                combine_c(out, acc, a->alpha[q], a->beta[q], n);
            } else {
                memcpy(out, acc, (size_t)n * sizeof *acc);
            }
        }
    }
}

static void scale_c(const float *acc, float factor, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] = acc[i] * factor;
    }
}

void mf_cpu_attention_fill_c(mf_cpu_kernels *k)
{
    k->attention = (mf_cpu_attention_kernels){ .pack = pack_c,
                                               .scores = scores_c,
                                               .softmax = softmax_c,
                                               .merge = merge_c,
                                               .blend = blend_c,
                                               .combine = combine_c,
                                               .scale = scale_c,
                                               .decode_row = mf_matrix_decode_row };
}
