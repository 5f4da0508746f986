/* cpu_ops.h - the CPU backend's operations: loops once, over the kernels of the device's table. */
#ifndef MF_KERNELS_CPU_OPS_H
#define MF_KERNELS_CPU_OPS_H

#include "kernels/cpu/cpu_kernels.h"

mf_status mf_cpu_gate(mf_device *device, const mf_gate_call *call, mf_error *err);
size_t mf_cpu_experts_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns);
mf_status mf_cpu_experts(mf_device *device, const mf_experts_call *call, mf_error *err);
size_t mf_cpu_experts_combine_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns,
                                              mf_dtype y_dtype);
mf_status mf_cpu_experts_combine(mf_device *device, const mf_experts_call *call, const mf_sum_reduce_call *sum, mf_error *err);
mf_status mf_cpu_sum_reduce(mf_device *device, const mf_sum_reduce_call *call, mf_error *err);

/* Columns [first, first + n) of row t of the combine, n <= 1024. */
void mf_cpu_sum_part(const mf_cpu_kernels *kernels, const mf_sum_reduce_call *call, int64_t t, int64_t first, int64_t n);

void mf_cpu_convert(mf_device *device, const float *x, int64_t n, mf_dtype dtype, void *out);
/* rows.c */
void mf_cpu_embed(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride);
void mf_cpu_rope(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride, int64_t dim,
                 bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens);
void mf_cpu_kv_write(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride, int64_t num_tokens);
void mf_cpu_add(mf_device *device, float *acc, const float *x, int64_t n);
void mf_cpu_scale_rows(mf_device *device, float *x, int64_t n, const float *factors, const int32_t *position,
                       int64_t num_tokens);
void mf_cpu_clip(mf_device *device, float *x, int64_t n, float limit);

void mf_cpu_rms_norm(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride);
void mf_cpu_linear(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride);
size_t mf_cpu_mla_scratch_floats(const mf_device *device, const mf_mla_args *args);
void mf_cpu_mla_attention(mf_device *device, const mf_mla_args *args);
size_t mf_cpu_gqa_scratch_floats(const mf_device *device, const mf_gqa_args *args);
void mf_cpu_gqa_attention(mf_device *device, const mf_gqa_args *args);
/* delta_net.c */
size_t mf_cpu_delta_net_scratch_floats(const mf_device *device, const mf_delta_net_args *args);
void mf_cpu_delta_net(mf_device *device, const mf_delta_net_args *args);
void mf_cpu_sigmoid_gate(mf_device *device, float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                         int64_t num_rows, int64_t n);

#endif
