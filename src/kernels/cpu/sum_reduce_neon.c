/* sum_reduce_neon.c - the combine's sums on aarch64: 32 elements at a time stay in registers while the terms pass by.
 * Each element's chain is the scalar one. */
#include "kernels/cpu/neon.h"
#include "kernels/ref/views.h"

/* C short streams side by side are no pattern for hardware prefetchers: each asks this many bytes ahead. */
enum { LINE = 64, AHEAD = 1024 };

INLINE void sum_rows_of(const mf_cpu_terms *terms, mf_dtype dtype, int64_t first, int64_t n, float *acc)
{
    int64_t h = 0;
    for (; h + 32 <= n; h += 32) {
        float32x4_t a[8];
        UNROLL(8) for (int j = 0; j < 8; j++) {
            a[j] = vld1q_f32(acc + h + 4 * j);
        }
        for (int32_t k = 0; k < terms->count; k++) {
            const char *row = terms->row[k];
            const char *ahead = row + (first + h) * (dtype == MF_F32 ? 4 : 2) + AHEAD;
            const float32x4_t w = vdupq_n_f32(terms->weight[k]);
            __builtin_prefetch(ahead);
            if (dtype == MF_F32) {
                __builtin_prefetch(ahead + LINE);
            }
            UNROLL(8) for (int j = 0; j < 8; j++) {
                a[j] = vfmaq_f32(a[j], w, load4(row, dtype, first + h + 4 * j));
            }
        }
        UNROLL(8) for (int j = 0; j < 8; j++) {
            vst1q_f32(acc + h + 4 * j, a[j]);
        }
    }
    for (; h + 4 <= n; h += 4) {
        float32x4_t a = vld1q_f32(acc + h);
        for (int32_t k = 0; k < terms->count; k++) {
            a = vfmaq_f32(a, vdupq_n_f32(terms->weight[k]), load4(terms->row[k], dtype, first + h));
        }
        vst1q_f32(acc + h, a);
    }
    for (; h < n; h++) {
        for (int32_t k = 0; k < terms->count; k++) {
            mf_tensor row = { .data = (void *)terms->row[k], .dtype = dtype };
            acc[h] = fmaf(terms->weight[k], mf_load_f32(&row, first + h), acc[h]);
        }
    }
}

static void sum_rows_neon(const mf_cpu_terms *terms, int64_t first, int64_t n, float *acc)
{
    switch (terms->dtype) { /* constants, so that the loops hold no test */
    case MF_BF16:
        sum_rows_of(terms, MF_BF16, first, n, acc);
        break;
    case MF_F16:
        sum_rows_of(terms, MF_F16, first, n, acc);
        break;
    default:
        sum_rows_of(terms, MF_F32, first, n, acc);
        break;
    }
}

static void scale_add_neon(float factor, const float *r, const float *residual, int64_t n, float *s)
{
    int64_t h = 0;
    for (; h + 4 <= n; h += 4) {
        float32x4_t v = vfmaq_f32(vld1q_f32(s + h), vdupq_n_f32(factor), vld1q_f32(r + h));
        v = residual ? vaddq_f32(v, vld1q_f32(residual + h)) : v;
        vst1q_f32(s + h, v);
    }
    for (; h < n; h++) {
        s[h] = fmaf(factor, r[h], s[h]);
        s[h] = residual ? s[h] + residual[h] : s[h];
    }
}

void mf_cpu_sum_reduce_fill_neon(mf_cpu_kernels *kernels)
{
    kernels->sum_rows = sum_rows_neon;
    kernels->scale_add = scale_add_neon;
}
