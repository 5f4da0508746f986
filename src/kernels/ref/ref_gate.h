/* ref_gate.h - the reference's gate, align and sum-reduce.  All run on the calling thread. */
#ifndef MF_KERNELS_REF_GATE_H
#define MF_KERNELS_REF_GATE_H

#include "kernels/ops.h"

mf_status mf_ref_gate(mf_device *device, const mf_gate_call *call, mf_error *err); /* one pass per row */
mf_status mf_ref_align(mf_device *device, const mf_align_call *call, mf_error *err);
mf_status mf_ref_sum_reduce(mf_device *device, const mf_sum_reduce_call *call, mf_error *err);

/* The gate as separate steps over the whole batch, one buffer each; the same bits as mf_ref_gate.  bytes is 0 when T is 0
 * or the product overflows; workspace is 64-byte aligned. */
size_t mf_ref_gate_unfused_bytes(int64_t num_tokens, int64_t row_width, int64_t num_groups, int64_t num_columns);
mf_status mf_ref_gate_unfused(mf_device *device, const mf_gate_call *call, void *workspace, mf_error *err);

size_t mf_ref_align_workspace_bytes(int64_t num_slots);

#endif
