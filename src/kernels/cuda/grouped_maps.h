/* grouped_maps.h - the tensor maps of a table: encoded by the driver on the host, read by grouped.cu from the device.
 */
#ifndef MF_KERNELS_CUDA_GROUPED_MAPS_H
#define MF_KERNELS_CUDA_GROUPED_MAPS_H

#include "kernels/cuda/calls.h"

/* packed: one box a matrix, for grouped_packed.cuh. */
size_t mf_cuda_grouped_maps_bytes(int64_t num_slots, bool packed);
/* maps: host memory of that many bytes, 64-byte aligned; blocks: of a launch, among which w2's rows are dealt out. */
mf_status mf_cuda_grouped_maps(const mf_cuda_slot *slots, int64_t num_slots, bool packed, const mf_cuda_even *even,
                               int64_t blocks, void *maps, mf_error *err);
/* Those of a call whose tokens are copied into the slots' order, and of its intermediate. */
mf_status mf_cuda_grouped_row_maps(const mf_cuda_grouped *call, mf_cuda_row_maps *out, mf_error *err);

#endif
