/* ref_ops.h - the reference backend's functions, as its device table and other backends' tables name them. */
#ifndef MF_KERNELS_REF_OPS_H
#define MF_KERNELS_REF_OPS_H

#include "kernels/ops.h"
#include "kernels/ref/ref_gate.h"

size_t mf_ref_experts_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns);
mf_status mf_ref_experts(mf_device *device, const mf_experts_call *call, mf_error *err);

void mf_ref_embed(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride);
void mf_ref_rms_norm(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride);
void mf_ref_linear(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride);
void mf_ref_rope(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride, int64_t dim,
                 bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens);
void mf_ref_kv_write(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride, int64_t num_tokens);
size_t mf_ref_mla_scratch_floats(const mf_device *device, const mf_mla_args *args);
void mf_ref_mla_attention(mf_device *device, const mf_mla_args *args);
size_t mf_ref_gqa_scratch_floats(const mf_device *device, const mf_gqa_args *args);
void mf_ref_gqa_attention(mf_device *device, const mf_gqa_args *args);
size_t mf_ref_delta_net_scratch_floats(const mf_device *device, const mf_delta_net_args *args);
void mf_ref_delta_net(mf_device *device, const mf_delta_net_args *args);
void mf_ref_sigmoid_gate(mf_device *device, float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                         int64_t num_rows, int64_t n);
void mf_ref_convert(mf_device *device, const float *x, int64_t n, mf_dtype dtype, void *out);
void mf_ref_add(mf_device *device, float *acc, const float *x, int64_t n);
void mf_ref_scale_rows(mf_device *device, float *x, int64_t n, const float *factors, const int32_t *position,
                       int64_t num_tokens);
void mf_ref_clip(mf_device *device, float *x, int64_t n, float limit);

/* The specification's order of sums: k ascending in f32 per 128 columns, the groups' sums ascending.  x is f32. */
float mf_ref_dot(const mf_matrix *w, int64_t row, const float *x);

static inline int64_t mf_kv_row_bytes(const mf_kv_view *kv)
{
    return kv->row_size * (kv->dtype == MF_F32 ? 4 : 2);
}

/* Token s of row t's sequence in the cache. */
static inline uint8_t *mf_kv_row(const mf_kv_view *kv, int64_t t, int64_t s)
{
    int64_t block = kv->block_table[(int64_t)kv->sequence[t] * kv->max_blocks + s / kv->block_size];
    return (uint8_t *)kv->cache + (block * kv->block_size + s % kv->block_size) * mf_kv_row_bytes(kv);
}

#endif
